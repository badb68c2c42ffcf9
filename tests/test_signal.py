"""Never the wrong signal: what a loss reads is decoded again, and agrees with the texts.

Nothing here knows how an alignment is found. The rows and ids of an index are looked up in the ids
as they lie under the logits, and turned into bytes on both sides.
"""

from __future__ import annotations

import functools
import random
import warnings

import numpy as np
import pytest

from simct_align import Aligner, UnitClass, UnitKind, UnmatchedReason, Vocabulary
from support.lengths import full
from support.rollouts import KINDS, LAYOUTS, SIDES, Rollouts, random_rows, rollouts
from support.slow_alignment import assert_every_token_once
from support.slow_text_events import listed, text_events
from support.texts import answers
from support.vocabularies import ALL_NAMES, BUNDLED, aligner_of, token_bytes, vocabulary

PAIRS = [
    BUNDLED,
    BUNDLED[::-1],
    (BUNDLED[0], BUNDLED[0]),
    ("mistral_v3", "tekken"),
    ("deepseek", "mistral_v3"),
    ("qwen2_5", "gemma2"),
    ("llama3_1", "gpt4o"),
    ("gemma2", "mistral_nemo"),
]
assert {name for pair in PAIRS for name in pair} <= set(ALL_NAMES)


class Decoded:
    """The bytes of ids, and of runs of ids as they lie under the logits."""

    def __init__(self, names: tuple[str, str], made: Rollouts) -> None:
        self.made = made
        self._bytes = {side: token_bytes(name) for side, name in zip(SIDES, names, strict=True)}

    def token(self, side: str, token: int) -> bytes:
        return self._bytes[side][token]

    def after(self, side: str, row: int, tokens: int) -> list[int]:
        """The ids that `tokens` rows of logits from `row` on predict, all of which take part."""
        at = slice(row + 1, row + 1 + tokens)
        assert self.made.taken[side][at].all()
        ids: list[int] = self.made.ids[side][at].tolist()
        assert len(ids) == tokens
        return ids

    def text(self, side: str, ids: list[int]) -> bytes:
        return b"".join(self.token(side, token) for token in ids)


@functools.lru_cache(maxsize=2)
def columns_of(names: tuple[str, str]) -> dict[bytes, set[int]]:
    """The shared columns of every text: one vocabulary on both sides has one for every id of it."""
    shared, found = aligner_of(*names).shared, dict[bytes, set[int]]()
    teacher, student = map(token_bytes, names)
    for column, (t, s) in enumerate(zip(shared.teacher_ids, shared.student_ids, strict=True)):
        if text := teacher[t]:
            assert text == student[s]
            found.setdefault(text, set()).add(column)
    return found


def check_units(names: tuple[str, str], made: Rollouts) -> None:
    """Every unit is the same text on both sides; what its sections say of it is true."""
    index, decoded, column_of = made.index, Decoded(names, made), columns_of(names)
    aligner = aligner_of(*names)
    shared = aligner.shared
    specials = set(zip(shared.teacher_ids.tolist(), shared.student_ids.tolist(), strict=True))
    specials |= {(t, s) for t in shared.teacher_stop_ids for s in shared.student_stop_ids}
    steps = {side: np.diff(getattr(index, f"{side}_offsets")) for side in SIDES}
    for number in range(index.n_units):
        multi = number - index.n_shared
        ids = {}
        for side in SIDES:
            row = int(getattr(index, f"{side}_row")[number])
            count = int(steps[side][multi]) if multi >= 0 else 1
            ids[side] = decoded.after(side, row, count)
            assert getattr(index, f"{side}_first_id")[number] == ids[side][0]
            if multi >= 0:
                ends = getattr(index, f"{side}_offsets")[multi : multi + 2]
                at = slice(int(ends[0]), int(ends[1]))
                assert (getattr(index, f"{side}_step_unit")[at] == multi).all()
                rows = getattr(index, f"{side}_step_row")[at]
                assert rows.tolist() == list(range(row, row + count))
                assert getattr(index, f"{side}_step_id")[at].tolist() == ids[side]
        assert index.student_tokens[number] == len(ids["student"])
        texts = [decoded.text(side, ids[side]) for side in SIDES]
        assert texts[0] == texts[1]
        if index.kind[number] == UnitKind.SPECIAL:
            assert texts[0] == b""
            assert (ids["teacher"][0], ids["student"][0]) in specials
        else:
            assert texts[0]
            assert (index.kind[number] == UnitKind.MULTI) == (multi >= 0)
        if multi >= 0:
            column = int(index.realized_shared_column[multi])
            assert (column in column_of[texts[0]]) if column >= 0 else texts[0] not in column_of
    check_continuations(aligner, made, decoded)


def check_continuations(aligner: Aligner, made: Rollouts, decoded: Decoded) -> None:
    """The realized tokens from a unit on are the path of its nodes; leaves spell their tokens."""
    index = made.index
    for direction, speller in (("teacher", "student"), ("student", "teacher")):
        spellings = getattr(aligner.spellings, direction)
        parent, token = spellings.nodes
        for unit, node, depth in zip(
            *(
                getattr(index, f"{direction}_entry_{what}").tolist()
                for what in ("unit", "node", "depth")
            ),
            strict=True,
        ):
            row = int(getattr(index, f"{speller}_row")[unit])
            path: list[int] = []
            at = node
            while at >= 0:
                path.insert(0, int(token[at]))
                at = int(parent[at])
            assert decoded.after(speller, row, depth) == path
            begun = decoded.text(speller, path)
            leaves = spellings.leaves
            some = slice(*leaves.node_offsets[node : node + 2].tolist())
            assert some.stop > some.start
            for last, one in zip(
                leaves.last_token[some][:20], leaves.one_sided_token[some][:20], strict=True
            ):
                assert begun + decoded.token(speller, last) == decoded.token(direction, one)


def check_counts(made: Rollouts) -> None:
    """Every position that takes part is in a unit or counted with its reason; all adds up."""
    batch, index = made.batch, made.index
    sides = []
    for side in SIDES:
        ids = getattr(batch, side)
        sides.append(np.ones(len(ids.values)) if ids.mask is None else np.asarray(ids.mask))
        assert sides[-1].sum() == made.taken[side].sum()
    assert_every_token_once(batch, sides=sides)
    counts = batch.coverage()
    for side in SIDES:
        tokens = getattr(counts, f"{side}_tokens")
        assert tokens == made.taken[side].sum()
        in_units = getattr(counts, f"{side}_tokens_in_units")
        assert in_units + sum(getattr(counts, f"{side}_unmatched").values()) == tokens
    assert sum(counts.units.values()) == batch.n_units
    trimmed = (batch.unit_class & UnitClass.TRIMMED) > 0
    no_prefix = (batch.teacher_start == 0) | (batch.student_start == 0)
    assert index.dropped_no_prefix == counts.units_without_prefix == no_prefix.sum()
    assert index.dropped_dummy_prefix == (trimmed & ~no_prefix).sum()
    kept = np.flatnonzero(~trimmed & ~no_prefix)
    assert sorted(index.unit.tolist()) == kept.tolist()
    assert index.n_shared == (batch.kind[kept] != UnitKind.MULTI).sum()


def check_text_events(aligner: Aligner, made: Rollouts, names: tuple[str, str]) -> None:
    """Every offset, row and source, event by event, as a brute force over all tokens lists them."""
    starts = tuple(made.starts[side] for side in SIDES)
    known, tokens = text_events(made.batch, names, starts)
    assert listed(made.index, aligner.text_tree) == known
    assert made.index.text_student_tokens == tokens
    for offset in known:
        for side in SIDES:
            own = offset.own[side]
            if own is not None and own[1] >= 0:
                assert made.ids[side][own[0] + 1] == own[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_rollouts_read_back(names: tuple[str, str], layout: str) -> None:
    aligner = aligner_of(*names)
    rng = random.Random(f"{names} {layout}")
    found: dict[str, int] = {}
    for _ in range(full(3, 2)):
        made = rollouts(rng, aligner, layout=layout)
        check_units(names, made)
        check_counts(made)
        check_text_events(aligner, made, names)
        for what in ("n_shared", "n_multi", "n_text_offsets", "n_teacher_sources"):
            found[what] = found.get(what, 0) + getattr(made.index, what)
    if names[0] != names[1]:
        assert all(found.values()), found


@pytest.mark.parametrize("kind", KINDS)
def test_rollouts_of_one_kind_read_back(kind: str) -> None:
    """What the teacher's ids are made of has its bytes, so all of it is in units."""
    for names in (BUNDLED, ("deepseek", "mistral_v3")):
        aligner = aligner_of(*names)
        rng = random.Random(kind)
        for _ in range(full(4, 2)):
            made = rollouts(rng, aligner, kinds=(kind,))
            check_units(names, made)
            check_counts(made)
            if kind in ("canonical", "another cut", "cut off"):
                lost = made.batch.coverage().student_unmatched
                assert lost["bytes_differ"] == lost["no_resync"] == 0


# --- exchanged sides ----------------------------------------------------------------------------


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_exchanged_sides_mirror_the_alignment(names: tuple[str, str]) -> None:
    forth, back = aligner_of(*names), aligner_of(*names[::-1])
    ids, masks = random_rows(random.Random(str(names)), forth, KINDS, 30)
    one = forth.align_batch(
        ids["teacher"],
        ids["student"],
        teacher_mask=masks["teacher"],
        student_mask=masks["student"],
    )
    two = back.align_batch(
        ids["student"],
        ids["teacher"],
        teacher_mask=masks["student"],
        student_mask=masks["teacher"],
    )
    differ = one.unmatched.reason == UnmatchedReason.BYTES_DIFFER
    rows = np.repeat(np.arange(len(one)), np.diff(one.unmatched.row_offsets))
    # Where as few bytes can be left out in several ways, the fewest of the student's are: rows in
    # which texts differ need not mirror.
    same = np.setdiff1d(np.arange(len(one)), rows[differ])
    assert len(same) > 10
    for row in same:
        for mirrored, batch in ((two, one), (two.unmatched, one.unmatched)):
            at, back_at = (slice(*b.row_offsets[row : row + 2].tolist()) for b in (batch, mirrored))
            for side, other in (SIDES, SIDES[::-1]):
                for end in ("start", "end"):
                    assert np.array_equal(
                        getattr(batch, f"{side}_{end}")[at],
                        getattr(mirrored, f"{other}_{end}")[back_at],
                    )
        at, back_at = (slice(*b.row_offsets[row : row + 2].tolist()) for b in (one, two))
        assert np.array_equal(one.kind[at], two.kind[back_at])
        assert np.array_equal(one.unit_class[at], two.unit_class[back_at])


# --- pairs that look alike and are not ----------------------------------------------------------


def new_aligner(teacher: str, student: str) -> Aligner:
    """An aligner of its own: it warns once."""
    return Aligner(vocabulary(teacher), vocabulary(student))


def revised(names: tuple[str, str]) -> Aligner:
    """The same vocabularies in another revision of the student: a token was added in front."""
    student = vocabulary(names[1])
    tokens = [student.token_bytes(token) for token in range(len(student))]
    special = {token + 1: name for token, name in student.special_names.items()}
    stops = [token + 1 for token in student.stop_ids]
    return Aligner(
        vocabulary(names[0]),
        Vocabulary.from_token_bytes([b"", *tokens], special=special, unused=[0], stop_ids=stops),
    )


@pytest.mark.parametrize("names", [BUNDLED, ("deepseek", "mistral_v3")], ids="-".join)
def test_ids_of_another_tokenizer_raise_or_warn(names: tuple[str, str]) -> None:
    aligner = new_aligner(*names)
    teacher, student = (vocabulary(name).encode_batch(answers(8)) for name in names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aligner.align_batch(teacher, student)
    wrong = {
        "exchanged": (aligner, student, teacher),
        "the student's ids as the teacher's": (new_aligner(*names), student, student),
        "another revision": (revised(names), teacher, student),
        "other rows": (new_aligner(*names), teacher[::-1], student),
    }
    for what, (other, *ids) in wrong.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                batch = other.align_batch(*ids)
            except ValueError as error:
                assert "is not in the vocabulary of" in str(error), what  # noqa: PT017
                continue
        [warning] = caught
        assert "are these the ids of these two tokenizers" in str(warning.message), what
        assert warning.filename == __file__
        assert sum(batch.coverage().student_unmatched.values()) > batch.n_units, what
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            other.align_batch(*ids)


def test_a_few_other_texts_are_no_reason_to_warn() -> None:
    aligner = new_aligner(*BUNDLED)
    teacher, student = (vocabulary(name).encode_batch(answers(8)) for name in BUNDLED)
    teacher[0], teacher[1] = teacher[1], teacher[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batch = aligner.align_batch(teacher, student)
        aligner.align_batch([[5, 6, 7]], [[9, 8]])
    assert batch.coverage().student_unmatched["bytes_differ"] > 64
