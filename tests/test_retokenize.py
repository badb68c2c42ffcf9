"""Sampled ids as the teacher's ids: bytes kept, control tokens only by the map, losses counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simct_align import Aligner, MissingTokenizerError, UnmatchedReason, Vocabulary
from support.texts import answers, hard_texts
from support.vocabularies import SOURCES, vocabulary

#: Teachers of every kind: byte-level, byte fallback, with a dummy prefix, with NFC, SentencePiece.
PAIRS = (
    ("demo_byte_level", "demo_byte_fallback"),
    ("demo_byte_fallback", "demo_byte_level"),
    ("mistral_v3", "qwen_tiktoken"),
    ("tekken", "deepseek"),
    ("deepseek", "mistral_v3"),
    ("gemma2", "qwen2_5"),
    ("qwen2_5", "gpt4o"),
    ("llama3_1", "gemma2"),
    ("mistral_v3", "demo_byte_fallback"),
)
DUMMY_PREFIX = {"demo_byte_fallback", "mistral_v3"}


@pytest.fixture(scope="module")
def aligners() -> dict[tuple[str, str], Aligner]:
    return {}


def aligner_of(cache: dict[tuple[str, str], Aligner], teacher: str, student: str) -> Aligner:
    if (teacher, student) not in cache:
        cache[teacher, student] = Aligner(vocabulary(teacher), vocabulary(student))
    return cache[teacher, student]


def assert_exact(aligner: Aligner, student_ids: list[list[int]]) -> None:
    teacher_ids = aligner.retokenize(student_ids)
    assert len(teacher_ids) == len(student_ids)
    for number, row in enumerate(student_ids):
        expected = aligner.student.decode_bytes(row)
        assert aligner.teacher.decode_bytes(teacher_ids.row(number)) == expected
    assert teacher_ids.counts.replaced_bytes == 0
    batch = aligner.align_batch(teacher_ids, student_ids)
    coverage = batch.coverage()
    assert coverage.teacher_tokens_in_units == coverage.teacher_tokens
    left_out = teacher_ids.counts.specials_left_out + teacher_ids.counts.empty_left_out
    assert coverage.student_unmatched["special"] == left_out
    assert sum(coverage.student_unmatched.values()) == left_out
    assert coverage.units["special"] == teacher_ids.counts.specials


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_random_ids_keep_their_bytes(aligners, teacher, student):
    aligner = aligner_of(aligners, teacher, student)
    rng = np.random.default_rng(7)
    assert_exact(aligner, [rng.integers(0, len(aligner.student), 60).tolist() for _ in range(40)])


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_ids_around_spaces_specials_and_half_characters_keep_their_bytes(
    aligners, teacher, student
):
    """Few tokens, those that tempt an encoder, in every order."""
    aligner = aligner_of(aligners, teacher, student)
    vocab = aligner.student
    texts = ["▁", " ", "  ", "\n", "a", " a", "e\u0301", "é", "\ufffd", "🙂", "2️⃣", "\x00", "ﬁ"]
    alphabet = sorted({token for row in vocab.encode_batch(texts) for token in row})
    alphabet += [*vocab.special_ids.values()][:3]
    rng = np.random.default_rng(11)
    rows = [rng.choice(alphabet, size=rng.integers(0, 9)).tolist() for _ in range(400)]
    assert_exact(aligner, rows)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4095), max_size=12), max_size=4), st.booleans())
def test_any_ids_of_the_bundled_tokenizers_keep_their_bytes(rows, turned):
    names = ("demo_byte_fallback", "demo_byte_level")[:: -1 if turned else 1]
    assert_exact(_DEMO.setdefault(names, Aligner(*map(vocabulary, names))), rows)


_DEMO: dict[tuple[str, ...], Aligner] = {}


@pytest.mark.parametrize(
    ("teacher", "student"), [pair for pair in PAIRS if pair[0] not in DUMMY_PREFIX]
)
def test_real_text_becomes_what_the_teacher_makes_of_it(aligners, teacher, student):
    aligner = aligner_of(aligners, teacher, student)
    texts = answers(100)
    student_ids = aligner.student.encode_batch(texts)
    # A dummy prefix of the student's is part of what it says.
    texts = [aligner.student.decode_bytes(row).decode() for row in student_ids]
    teacher_ids = aligner.retokenize(student_ids)
    assert teacher_ids.tolist() == aligner.teacher.encode_batch(texts)
    assert set(teacher_ids.counts.as_dict().values()) == {0}


def test_a_teachers_dummy_prefix_stays_out(aligners):
    aligner = aligner_of(aligners, "demo_byte_fallback", "demo_byte_level")
    stop = aligner.student.stop_ids[0]
    words, more = aligner.student.encode_batch(["Step 1: add", "12 cookies"])
    teacher_ids = aligner.retokenize([[*words, stop, *more]])
    assert aligner.teacher.decode_bytes(teacher_ids.row(0)) == b"Step 1: add12 cookies"
    # The encoder's own tokens, not the fewest that have these bytes.
    assert teacher_ids.counts.respelled_bytes == 0
    canonical = aligner.teacher.encode_batch(["Step 1: add"])[0]
    row = teacher_ids.tolist()[0]
    end = row.index(aligner.teacher.stop_ids[0])
    assert row[:end][1 - len(canonical) :] == canonical[1:]


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_hard_texts_keep_their_bytes(aligners, teacher, student):
    aligner = aligner_of(aligners, teacher, student)
    assert_exact(aligner, aligner.student.encode_batch(hard_texts()))


@pytest.mark.parametrize(
    ("teacher", "student"), [("mistral_v3", "qwen_tiktoken"), ("gemma2", "qwen2_5")]
)
def test_a_literal_meta_space_crosses_as_bytes_and_only_it(aligners, teacher, student):
    aligner = aligner_of(aligners, teacher, student)
    before, after = "The quick brown fox ", " jumps over the lazy dog"
    rows = aligner.student.encode_batch([f"{before}x▁y{after}", before + after])
    teacher_ids = aligner.retokenize(rows)
    assert 3 <= teacher_ids.counts.respelled_bytes <= 6
    fallbacks = [aligner.teacher.kinds[token] == 1 for token in teacher_ids.row(0)]
    assert sum(fallbacks) == 3
    assert_exact(aligner, rows)


def test_control_tokens_cross_by_the_map_alone():
    teacher = Vocabulary.from_tokenizer(SOURCES["demo_byte_level"]())
    student = Vocabulary.from_tokenizer(SOURCES["demo_byte_fallback"]())
    aligner = Aligner(teacher, student)
    unmapped = student.special_ids["<s>"]
    text = student.encode_batch(["ab<|end|></s>cd"])[0]
    teacher_ids = aligner.retokenize([[unmapped, *text, student.stop_ids[0]]])
    row = teacher_ids.row(0)
    assert teacher.decode_bytes(row).strip() == b"ab<|end|></s>cd"
    assert [token for token in row if teacher.kinds[token] == 2] == [teacher.stop_ids[0]]
    assert (teacher_ids.counts.specials, teacher_ids.counts.specials_left_out) == (1, 1)


def test_all_stops_become_the_canonical_one():
    teacher = Vocabulary.from_token_bytes([b"a", b"", b""], special=[1, 2], stop_ids=[2, 1])
    student = Vocabulary.from_token_bytes([b"a", b"", b""], special=[1, 2], stop_ids=[1, 2])
    teacher = teacher.with_tokenizer(_tokenizer({"a": 0, "<x>": 1, "<y>": 2}, ["<x>", "<y>"]))
    # Equal vocabularies: ids cross as they are, the sampled stop too.
    assert Aligner(teacher, student).retokenize([[0, 1, 0, 2]]).tolist() == [[0, 1, 0, 2]]
    other = Vocabulary.from_token_bytes([b"a", b"", b"", b"b"], special=[1, 2], stop_ids=[1, 2])
    assert Aligner(teacher, other).retokenize([[0, 1, 0, 2]]).tolist() == [[0, 2, 0, 2]]


def test_the_same_vocabulary_keeps_the_sampled_cut():
    vocab = vocabulary("demo_byte_level")
    padded = Vocabulary.from_tokenizer(SOURCES["demo_byte_level"](), vocab_size=len(vocab) + 8)
    aligner = Aligner(padded, padded)
    rng = np.random.default_rng(3)
    row = rng.integers(0, len(vocab), 50).tolist()
    teacher_ids = aligner.retokenize([[*row[:20], len(vocab) + 1, *row[20:]], row])
    assert teacher_ids.tolist() == [row, row]
    assert teacher_ids.counts.empty_left_out == 1


def test_what_the_teacher_has_no_tokens_for_is_replaced_and_counted():
    teacher = Vocabulary.from_token_bytes(
        [b"a", b"b", "\ufffd".encode(), b""], special={3: "<unk>"}
    ).with_tokenizer(_tokenizer({"a": 0, "b": 1, "\ufffd": 2, "<unk>": 3}, ["<unk>"]))
    student = Vocabulary.from_token_bytes([b"ab", "☃".encode(), b"\xf0"])
    aligner = Aligner(teacher, student)
    ids = [[0, 1, 0], [2, 2, 0], [1, 2]]
    teacher_ids = aligner.retokenize(ids)
    assert teacher_ids.tolist() == [[0, 1, 2, 0, 1], [2, 0, 1], [2]]
    assert teacher_ids.counts.replaced_bytes == 3 + 2 + 4
    assert teacher_ids.counts.invalid_bytes == 3
    coverage = aligner.align_batch(teacher_ids, ids).coverage()
    assert sum(coverage.student_unmatched.values()) == 1 + 2 + 2
    assert coverage.teacher_unmatched[UnmatchedReason.SPECIAL.name.lower()] == 0


def test_masks_make_regions_that_are_tokenized_apart(aligners):
    aligner = aligner_of(aligners, "demo_byte_level", "demo_byte_fallback")
    one, two = aligner.student.encode_batch(["alpha beta", "gamma"])
    rows = [[*one, 5, *two], [7, 7], [*two]]
    mask = [[1] * len(one) + [0] + [1] * len(two), [0, 0], [1] * len(two)]
    teacher_ids = aligner.retokenize(rows, student_mask=mask)
    assert teacher_ids.row_regions.tolist() == [0, 2, 2, 3]
    regions = [
        teacher_ids.values[start:end].tolist()
        for start, end in zip(
            teacher_ids.region_offsets[:-1], teacher_ids.region_offsets[1:], strict=True
        )
    ]
    alone = aligner.retokenize([one, two]).tolist()
    assert regions == [*alone, alone[1]]
    assert teacher_ids.tolist() == [alone[0] + alone[1], [], alone[1]]


def test_dense_ids_with_masks_and_padding_of_either_side(aligners):
    aligner = aligner_of(aligners, "demo_byte_level", "demo_byte_fallback")
    rows = aligner.student.encode_batch(["one two three", "four", ""])
    ragged = aligner.retokenize(rows)
    width = max(map(len, rows))
    dense = np.array([[*row, *[4095] * (width - len(row))] for row in rows], np.int32)
    mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in rows], bool)
    for side in ("left", "right"):
        ids, taken = aligner.retokenize(dense, student_mask=mask, padding_side=side, pad_id=9)
        assert ids.shape == taken.shape == (3, max(map(len, ragged.tolist())))
        assert [row[keep == 1].tolist() for row, keep in zip(ids, taken, strict=True)] == (
            ragged.tolist()
        )
        assert (ids[taken == 0] == 9).all()
        edge = taken[:, -1] if side == "left" else taken[:, 0]
        assert edge.tolist() == [1, 1, len(rows[2]) > 0]
    with pytest.raises(ValueError, match="'left' or 'right', got 'up'"):
        aligner.retokenize(rows, padding_side="up")


def test_no_rows_and_empty_rows(aligners):
    aligner = aligner_of(aligners, "demo_byte_level", "demo_byte_fallback")
    assert aligner.retokenize([]).tolist() == []
    assert aligner.retokenize([[], []]).tolist() == [[], []]
    assert aligner.retokenize([[], [3]], student_mask=[[], [0]]).tolist() == [[], []]
    ids, mask = aligner.retokenize([[]], padding_side="left")
    assert ids.shape == mask.shape == (1, 0)


def test_wrong_ids_are_named_with_their_place(aligners):
    aligner = aligner_of(aligners, "demo_byte_level", "demo_byte_fallback")
    with pytest.raises(ValueError, match="row 1, position 2: student id 4096 is not in"):
        aligner.retokenize([[1], [1, 2, 4096]])
    with pytest.raises(ValueError, match="row 1, position 2: student id -1 is not in"):
        aligner.retokenize([[1], [1, 2, -1]], student_mask=[[1], [0, 0, 1]])
    assert aligner.retokenize([[9, -100]], student_mask=[[1, 0]]).tolist() != [[]]


def test_a_teacher_without_a_tokenizer_is_named(tmp_path):
    aligner = Aligner(vocabulary("demo_byte_level"), vocabulary("demo_byte_fallback"))
    aligner.save(tmp_path / "pair")
    with pytest.raises(MissingTokenizerError, match="teacher_tokenizer"):
        Aligner.load(tmp_path / "pair").retokenize([[5]])
    loaded = Aligner.load(tmp_path / "pair", teacher_tokenizer=SOURCES["demo_byte_level"]())
    assert loaded.retokenize([[5, 600]]).tolist() == aligner.retokenize([[5, 600]]).tolist()


def test_the_encoder_is_called_once_for_a_batch(monkeypatch):
    aligner = Aligner(vocabulary("demo_byte_fallback"), vocabulary("demo_byte_level"))
    calls = []
    encode = Vocabulary.encode_batch

    def counted(self, texts):
        calls.append(len(texts))
        return encode(self, texts)

    rng = np.random.default_rng(5)
    rows = rng.integers(0, len(aligner.student), (30, 40))
    monkeypatch.setattr(Vocabulary, "encode_batch", counted)
    aligner.retokenize(rows)
    assert len(calls) == 1


def _tokenizer(tokens: dict[str, int], special: list[str]) -> object:
    """A tokenizer of single characters."""
    from tokenizers import Tokenizer, decoders, models

    tokenizer = Tokenizer(models.BPE(vocab=tokens, merges=[], unk_token=None))
    if "<unk>" in tokens:
        tokenizer.model.unk_token = "<unk>"
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(special)
    return tokenizer
