"""Text events of real tokenizers and text: what the index lists is what brute force finds."""

from __future__ import annotations

import functools
import pickle
from typing import Any

import numpy as np
import pytest

from simct_align import Aligner, Vocabulary
from support.slow_text_events import BOTH, listed, text_events
from support.texts import answers, hard_texts
from support.vocabularies import ALL_NAMES, BUNDLED, aligner_of, vocabulary

CODE = "def f(x):\n    return [i ** 2 for i in range(10_000)  # naïve\n            if i % 3 == 0]\n"
PAIRS = [(name, ALL_NAMES[(place + 1) % len(ALL_NAMES)]) for place, name in enumerate(ALL_NAMES)]


@functools.cache
def corpus() -> tuple[str, ...]:
    hard = [text for text in hard_texts() if len(text) < 400]
    return (*answers(4), *hard[::3], CODE, " " * 70, "", "🙂🙃 ok")


def aligned(teacher: str, student: str, *, mask: bool = False) -> tuple[Aligner, Any]:
    """With a mask, the first token of a row is a prompt and the last takes no part."""
    aligner = aligner_of(teacher, student)
    ids = [vocabulary(name).encode_batch(corpus()) for name in (teacher, student)]
    if not mask:
        return aligner, aligner.align_batch(*ids)
    ids = [[[0, *row, 0] for row in side] for side in ids]
    masks = [[[0, *[1] * (len(row) - 2), 0] for row in side] for side in ids]
    return aligner, aligner.align_batch(*ids, teacher_mask=masks[0], student_mask=masks[1])


def check(aligner: Aligner, batch: Any, names: tuple[str, str]) -> Any:
    index = batch.index(text_events=True)
    starts = (batch.teacher.offsets, batch.student.offsets)
    offsets, tokens = text_events(batch, names, starts)
    found = listed(index, aligner.text_tree)
    assert len(found) == index.n_text_offsets == len(offsets)
    for known, offset in zip(offsets, found, strict=True):
        assert offset == known
    assert index.text_student_tokens == index.normalizer("token", "text") == tokens
    assert index.n_text_stretches == (offsets[-1].stretch + 1 if offsets else 0)
    return index


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_offsets_and_sources_are_what_all_tokens_say(names):
    check(*aligned(*names, mask=len(names[0]) % 2 == 0), names)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("names", [BUNDLED, (BUNDLED[1], BUNDLED[0]), ("mistral_v3", "tekken")])
def test_prompts_and_masks(names, mask):
    index = check(*aligned(*names, mask=mask), names)
    assert min(index.n_teacher_sources, index.n_student_sources) > 0
    assert (index.text_units_without_prefix == 0) == mask


def test_with_one_tokenizer_every_offset_is_a_stretch_of_own_rows():
    names = (BUNDLED[0], BUNDLED[0])
    index = check(*aligned(*names), names)
    assert index.n_text_stretches == index.n_text_offsets == index.text_student_tokens
    assert index.n_teacher_sources == index.n_student_sources == 0
    assert np.array_equal(index.teacher_own_text_row, np.arange(index.n_text_offsets))


def test_a_restart_forgets_the_rows_before():
    # Both have `b`, and nothing that begins with it; `a` goes on for the teacher alone.
    teacher = Vocabulary.from_token_bytes([b"a", b"b", b"ab", b"c"])
    student = Vocabulary.from_token_bytes([b"a", b"b", b"c"])
    aligner = Aligner(teacher, student)
    batch = aligner.align_batch([[3, 0, 1, 0, 3]], [[2, 0, 1, 0, 2]])
    index = batch.index(text_events=True)
    # c is the prefix; a restart comes after b, and none after a.
    assert index.text_offset_stretch.tolist() == [0, 0, 1, 1]
    assert index.teacher_source_offsets.tolist() == [0, 0, 1, 1, 2]
    assert index.teacher_source_row.tolist() == [0, 2]
    assert index.teacher_source_length.tolist() == [1, 1]
    tree = aligner.text_tree
    run = slice(int(index.teacher_source_start[0]), int(index.teacher_source_end[0]))
    assert tree.teacher.token_ids[run].tolist() == [0, 2]
    assert index.teacher_source_exact.tolist() == [1, 1]
    # What is left of `ab` is `b`, a node.
    [suffix] = tree.teacher.suffixes[index.teacher_source_suffix[:1]]
    assert suffix < 0
    assert tree.depth[suffix & 0x7FFFFFFF] == 1


def test_the_row_after_the_last_token_needs_a_token_that_takes_part():
    own = Vocabulary.from_token_bytes([b"a", b"b"])
    aligner = Aligner(own, own)
    ids = [[0, 0, 1, 1]]
    whole = aligner.align_batch(ids, ids).index(text_events=True)
    assert whole.teacher_text_id.tolist() == [0, 1, 1]
    masks = [[0, 1, 1, 0]]
    masked = aligner.align_batch(ids, ids, teacher_mask=masks, student_mask=masks)
    assert masked.index(text_events=True).teacher_text_id.tolist() == [0, 1]
    # A control token takes part: the row after the last text token says whether the text ends.
    stop = Vocabulary.from_token_bytes([b"a", b"b", b""], special=[2], stop_ids=[2])
    aligner = Aligner(stop, stop)
    ended = aligner.align_batch([[0, 0, 1, 2]], [[0, 0, 1, 2]]).index(text_events=True)
    assert ended.teacher_text_id.tolist() == [0, 1, -1]
    assert ended.teacher_text_row.tolist() == [0, 1, 2]
    assert ended.teacher_rows_needed == 3


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_the_result_is_the_same_for_every_number_of_threads(threads):
    _, batch = aligned(*BUNDLED)
    index = batch.index(text_events=True)
    other = batch.index(text_events=True, threads=threads)
    assert np.array_equal(index.packed, other.packed)


def test_text_events_stand_beside_everything_else():
    _, batch = aligned(*BUNDLED)
    index = batch.index(text_events=True, max_path=8, first_ids=True)
    assert index.groups == ("units", "first_ids", "continuations", "text_events")
    for other in (
        batch.index(text_events=True),
        batch.index(max_path=8),
        batch.index(first_ids=True),
    ):
        for name in other.sections():
            assert np.array_equal(getattr(index, name), getattr(other, name)), name
    again = pickle.loads(pickle.dumps(index))
    assert np.array_equal(again.student_source_row, index.student_source_row)
    assert again.on_host("text_offset_stretch").tolist() == index.text_offset_stretch.tolist()
    moved = index.to("cpu")
    assert moved.teacher_text_row.tolist() == index.teacher_text_row.tolist()


def test_swapping_the_sides_mirrors_everything():
    names = ("mistral_v3", "deepseek")
    _, batch = aligned(*names)
    _, swapped = aligned(*names[::-1])
    index, mirrored = (side.index(text_events=True) for side in (batch, swapped))
    for name in index.sections():
        if "text" in name or "source" in name:
            other = (
                name.replace("teacher", "?").replace("student", "teacher").replace("?", "student")
            )
            assert np.array_equal(getattr(index, name), getattr(mirrored, other)), name


def test_row_starts_and_strides():
    aligner, batch = aligned(*BUNDLED, mask=True)
    width = max(np.diff(batch.teacher.offsets).max(), np.diff(batch.student.offsets).max())
    plain = batch.index(text_events=True)
    index = batch.index(text_events=True, teacher_stride=width, student_stride=width)
    for side in BOTH:
        own = getattr(index, f"{side}_own_text_row")
        rows = getattr(index, f"{side}_text_row")[own[own >= 0]]
        assert np.array_equal(rows // width, index.text_offset_batch_row[own >= 0])
        ids = getattr(batch, side)
        starts = ids.offsets[index.text_offset_batch_row[own >= 0]]
        packed = getattr(plain, f"{side}_text_row")[own[own >= 0]]
        assert np.array_equal(packed, rows % width + starts)
        realized = getattr(plain, f"{side}_text_id")[own[own >= 0]]
        has_token = realized >= 0
        assert np.array_equal(ids.values[packed + 1][has_token], realized[has_token])
    with pytest.raises(ValueError, match="student_stride: expected at least"):
        batch.index(text_events=True, student_stride=2)
    assert len(aligner.text_tree) > 1


def test_what_normalizes():
    _, batch = aligned(*BUNDLED)
    index = batch.index(text_events=True)
    assert index.normalizer("sum", "text") == index.normalizer("none", "text") == 1
    for reduction in ("unit", "mean"):
        with pytest.raises(ValueError, match="counted by offsets, not by units"):
            index.normalizer(reduction, "text")
    with pytest.raises(ValueError, match="make it with text_events=True"):
        batch.index().normalizer("token", "text")
    with pytest.raises(ValueError, match="reduction: expected"):
        index.normalizer("tokens", "text")
    with pytest.raises(AttributeError, match=r"batch\.index\(text_events=True\)"):
        _ = batch.index().teacher_source_row


def test_batches_without_text():
    aligner = Aligner(*map(vocabulary, BUNDLED))
    for ids in ([], [[]], [[], []]):
        index = aligner.align_batch(ids, ids).index(text_events=True)
        assert index.n_text_offsets == index.n_text_stretches == 0
        assert index.teacher_source_offsets.tolist() == [0]


@pytest.mark.parametrize("exchanged", [False, True])
def test_a_dummy_prefix_stands_before_the_text(exchanged):
    """A token of its own or not, it has a row, which is a source of what follows."""
    with_prefix = Vocabulary.from_token_bytes([b" a", b"b", b"a", b" "], dummy_prefix=True)
    plain = Vocabulary.from_token_bytes([b"a", b"b"])
    names = ("student", "teacher") if exchanged else ("teacher", "student")
    aligner = Aligner(*((plain, with_prefix) if exchanged else (with_prefix, plain)))
    # Behind the same tokens "a" a new stretch begins; behind "a" and " a" none does.
    for ids, slots, sources in (
        ([1, 0, 1, 1], [-1, 1, 2], [(0, 1), (0, 2)]),
        ([1, 3, 2, 1, 1], [1, 2, 3], [(0, 1)]),
    ):
        rows = dict(zip(names, ([ids], [[1, 0, 1, 1]]), strict=True))
        masks = {side: [[0, *[1] * (len(row[0]) - 1)]] for side, row in rows.items()}
        index = aligner.align_batch(
            rows["teacher"], rows["student"],
            teacher_mask=masks["teacher"], student_mask=masks["student"],
        ).index(text_events=True)  # fmt: skip
        assert (index.text_units_left_out, index.text_units_without_prefix) == (0, 0)
        read = {
            what: getattr(index, f"{names[0]}_{what}").tolist()
            for what in ("text_id", "text_row", "own_text_row", "source_row", "source_length")
        }
        assert read["text_id"] == ids[1:]
        assert read["text_row"] == list(range(len(ids) - 1))
        assert read["own_text_row"] == slots
        assert list(zip(read["source_row"], read["source_length"], strict=True)) == sources
        assert getattr(index, f"{names[1]}_own_text_row").tolist() == [0, 1, 2]


def test_units_without_a_prefix_are_counted():
    teacher = Vocabulary.from_token_bytes([b" a", b"b", b"a"], dummy_prefix=True)
    student = Vocabulary.from_token_bytes([b"a", b"b"])
    aligner = Aligner(teacher, student)
    first = aligner.align_batch([[1, 1]], [[1, 1]]).index(text_events=True)
    assert (first.text_units_left_out, first.text_units_without_prefix) == (0, 1)
    assert first.text_student_tokens == first.n_text_offsets == 1
