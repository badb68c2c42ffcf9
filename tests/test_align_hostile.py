"""What no tokenizer would emit: random ids, half characters, truncated sides, very long rows."""

from __future__ import annotations

import random
import time
import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simct_align import Aligner, TokenKind, UnitKind, UnmatchedReason, Vocabulary
from support.slow_alignment import align_region, assert_every_token_once, columns
from support.texts import answers, hard_texts
from support.vocabularies import token_bytes, vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simct_align import AlignedBatch

Rows = list[list[int]]
PAIR_NAMES = [("qwen_tiktoken", "tekken"), ("qwen2_5", "gemma2"), ("mistral_v3", "deepseek")]


# --- comparing a batch with the slow twin, row by row -------------------------------------------


def regions(length: int, mask: Sequence[int] | None) -> list[tuple[int, int]]:
    if mask is None:
        return [(0, length)]
    edges = [0, *mask, 0]
    starts = [i for i in range(length) if edges[i + 1] and not edges[i]]
    ends = [i + 1 for i in range(length) if edges[i + 1] and not edges[i + 2]]
    return list(zip(starts, ends, strict=True))


def special_matches(aligner: Aligner, pairs: set[tuple[int, int]]) -> Any:
    shared = aligner.shared
    stops = {(t, s) for t in shared.teacher_stop_ids for s in shared.student_stop_ids}
    taken = {t for t, _ in pairs | stops} | {s for _, s in pairs | stops}
    itself = set()
    if aligner.teacher.digest == aligner.student.digest:
        specials = np.flatnonzero(aligner.teacher.kinds == TokenKind.SPECIAL).tolist()
        itself = {(i, i) for i in specials if i not in taken}
    return lambda teacher, student: (teacher, student) in pairs | stops | itself


def check_against_twin(
    aligner: Aligner,
    teacher: Rows,
    student: Rows,
    *,
    masks: tuple[Rows, Rows] | None = None,
    pairs: set[tuple[int, int]] = frozenset(),  # type: ignore[assignment]
    resync_bytes: int = 8,
) -> None:
    batch = aligner.align_batch(
        teacher,
        student,
        teacher_mask=masks and masks[0],
        student_mask=masks and masks[1],
        resync_bytes=resync_bytes,
    )
    matches = special_matches(aligner, pairs)
    for row, (t_ids, s_ids) in enumerate(zip(teacher, student, strict=True)):
        units, lost = [], []
        t_regions = regions(len(t_ids), masks and masks[0][row])
        s_regions = regions(len(s_ids), masks and masks[1][row])
        for (t, t_end), (s, s_end) in zip(t_regions, s_regions, strict=True):
            found = align_region(
                t_ids[t:t_end],
                s_ids[s:s_end],
                aligner.teacher.token_bytes,
                aligner.student.token_bytes,
                matches,
                dummies=(aligner.teacher.dummy_prefix, aligner.student.dummy_prefix),
                resync_bytes=resync_bytes,
            )
            for a, b, c, d, kind, bits in found[0]:
                units.append((a + t, b + t, c + s, d + s, UnitKind[kind.upper()], bits))
            for a, b, c, d, reason in found[1]:
                lost.append((a + t, b + t, c + s, d + s, UnmatchedReason[reason.upper()]))
        seen = (t_ids, s_ids)
        assert columns(batch, (batch.kind, batch.unit_class), row) == units, seen
        assert columns(batch.unmatched, (batch.unmatched.reason,), row) == lost, seen


# --- synthetic vocabularies: every rule meets every other ---------------------------------------

PIECES = [
    b"a",
    b"b",
    b"ab",
    b"ba",
    b"aab",
    b" ",
    b"  ",
    b" a",
    b"\n",
    b"1",
    b"2",
    b"12",
    b".",
    b"+=",
]
PIECES += ["é".encode(), b"\xc3", b"\xa9", "🙂".encode(), b"\xf0\x9f", b"\x99\x82", b"", b"\x1f"]
LONG = [b"a" * 70, b"b" * 500, b"ab" * 600, b"ba" * 1024, b"ab" * 1024, b"c" * 4095]


class Toy:
    """A random pair of vocabularies with mapped, unmapped and stop tokens, and texts for them."""

    def __init__(self, rng: random.Random, *, long: bool = False) -> None:
        self.rng = rng
        self.long = LONG if long else []
        self.bytes: list[list[bytes]] = []
        self.specials: list[list[int]] = []
        vocabularies = []
        for _side in range(2):
            tokens = [rng.choice(PIECES) for _ in range(rng.randint(1, 12))]
            tokens += PIECES[:3] + self.long
            specials = list(range(len(tokens), len(tokens) + 5))
            vocabularies.append(
                Vocabulary.from_token_bytes(
                    [*tokens, *[b""] * 5],
                    special={i: f"<{i - len(tokens)}>" for i in specials},
                    dummy_prefix=rng.random() < 0.3,
                )
            )
            self.bytes.append(tokens)
            self.specials.append(specials)
        stops = (self.specials[0][2:4], self.specials[1][2:3])
        mapped = dict(zip(self.specials[0][:2], self.specials[1][:2], strict=True))
        self.aligner = Aligner(*vocabularies, special_tokens=mapped, stop_tokens=stops)
        self.pairs = set(mapped.items())

    def spell(self, text: bytes, side: int) -> list[int]:
        """A random spelling, cut off at some length; where no token fits, a byte is lost."""
        ids = []
        while text:
            fits = [i for i, b in enumerate(self.bytes[side]) if b and text.startswith(b)]
            if fits:
                longest = max(fits, key=lambda i: len(self.bytes[side][i]))
                greedy = self.long and self.rng.random() < 0.9
                ids.append(longest if greedy else self.rng.choice(fits))
            text = text[len(self.bytes[side][ids[-1]]) if fits else 1 :]
        return ids[:200]

    def noise(self, ids: list[int], side: int, rate: float) -> list[int]:
        noisy = []
        for token in ids:
            draw = self.rng.random()
            if draw < rate:
                noisy.append(self.rng.choice(self.specials[side]))
            elif draw < 2 * rate:
                noisy.append(self.rng.randrange(len(self.bytes[side]) + 5))
            if not 2 * rate < draw < 3 * rate:
                noisy.append(token)
        return noisy

    def row(self, length: int) -> tuple[list[int], list[int]]:
        rng = self.rng
        text = b"".join(rng.choice(self.bytes[rng.randrange(2)]) for _ in range(length))
        if rng.random() < 0.2:
            return tuple(  # type: ignore[return-value]
                [rng.randrange(len(self.bytes[side]) + 5) for _ in range(rng.randint(0, length))]
                for side in range(2)
            )
        rate = rng.choice([0.0, 0.03, 0.1])
        t, s = (self.noise(self.spell(text, side), side, rate) for side in range(2))
        if rng.random() < 0.3:
            t = t[: rng.randint(0, len(t))]
        if rng.random() < 0.3:
            s = s[rng.randint(0, min(2, len(s))) :]
        return t, s


@pytest.mark.parametrize("seed", range(80))
def test_toy_rows_against_the_slow_twin(seed: int) -> None:
    toy = Toy(random.Random(seed))
    rows = [toy.row(toy.rng.randint(0, 30)) for _ in range(60)]
    check_against_twin(
        toy.aligner,
        [row[0] for row in rows],
        [row[1] for row in rows],
        pairs=toy.pairs,
        resync_bytes=toy.rng.choice([1, 2, 3, 5, 8, 8, 8, 20]),
    )


@pytest.mark.parametrize("seed", range(20))
def test_window_against_the_slow_twin(seed: int) -> None:
    toy = Toy(random.Random(1000 + seed), long=True)
    rows = [toy.row(toy.rng.randint(0, 12)) for _ in range(8)]
    check_against_twin(
        toy.aligner, [row[0] for row in rows], [row[1] for row in rows], pairs=toy.pairs
    )


@pytest.mark.parametrize("seed", range(20))
def test_regions_against_the_slow_twin(seed: int) -> None:
    """Several regions per row: what lies between them may be anything, ids out of range too."""
    toy = Toy(random.Random(2000 + seed))
    rows: tuple[Rows, Rows] = ([], [])
    masks: tuple[Rows, Rows] = ([], [])
    for _ in range(12):
        parts = [toy.row(toy.rng.randint(1, 8)) for _ in range(toy.rng.randint(0, 4))]
        parts = [part for part in parts if part[0] and part[1]]
        for side in range(2):
            ids, mask = [-100] * toy.rng.randint(0, 2), []
            mask = [0] * len(ids)
            for part in parts:
                gap = toy.rng.randint(1, 3)
                ids += [*part[side], *[toy.rng.choice([-1, 0, 10**9])] * gap]
                mask += [1] * len(part[side]) + [0] * gap
            rows[side].append(ids)
            masks[side].append(mask)
    check_against_twin(toy.aligner, *rows, masks=masks, pairs=toy.pairs)


small_ids = st.lists(st.integers(0, 13), max_size=8)


@settings(max_examples=800, deadline=None, derandomize=True, database=None)
@given(small_ids, small_ids, st.booleans(), st.booleans(), st.integers(1, 3))
def test_small_rows_against_the_slow_twin(
    teacher: list[int], student: list[int], dummy: bool, other_dummy: bool, resync_bytes: int
) -> None:
    tokens = [b"a", b"aa", b"ab", b"b", b" ", b" a", b"  ", b"\xc3", b"\xa9", b"", b"ba"]
    sides = [
        Vocabulary.from_token_bytes(
            [*tokens[shift:], *tokens[:shift], *[b""] * 3],
            special={11: "<a>", 12: "<b>", 13: "<c>"},
            dummy_prefix=marked,
        )
        for shift, marked in ((0, dummy), (3, other_dummy))
    ]
    aligner = Aligner(*sides, special_tokens={"<a>": "<b>"}, stop_tokens=(["<b>"], ["<a>"]))
    check_against_twin(aligner, [teacher], [student], pairs={(11, 12)}, resync_bytes=resync_bytes)


# --- real vocabularies ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=PAIR_NAMES, ids="-".join)
def real(request: pytest.FixtureRequest) -> tuple[str, str, Aligner]:
    teacher, student = request.param
    return teacher, student, Aligner(vocabulary(teacher), vocabulary(student))


def test_random_ids(real: tuple[str, str, Aligner]) -> None:
    """Ids sampled at random: invalid UTF-8, specials, texts that never agree."""
    teacher, student, aligner = real
    rng = random.Random(7)
    rows: tuple[Rows, Rows] = tuple(  # type: ignore[assignment]
        [[rng.randrange(len(vocabulary(n))) for _ in range(rng.randint(0, 40))] for _ in range(30)]
        for n in (teacher, student)
    )
    check_against_twin(aligner, *rows)


def encode(name: str, texts: Sequence[str]) -> Rows:
    return vocabulary(name).encode_batch(list(texts))


def test_rows_with_replaced_tokens(real: tuple[str, str, Aligner]) -> None:
    teacher, student, aligner = real
    rng = random.Random(8)
    texts = [text[:200] for text in answers(20)]
    t_rows, s_rows = encode(teacher, texts), encode(student, texts)
    for row in t_rows:
        for _ in range(3):
            row[rng.randrange(len(row))] = rng.randrange(len(vocabulary(teacher)))
    check_against_twin(aligner, t_rows, s_rows)
    check_against_twin(aligner, t_rows, s_rows, resync_bytes=3)


def test_truncated_sides_and_half_characters(real: tuple[str, str, Aligner]) -> None:
    """Either side cut at any token, at either end: completions stop inside of characters."""
    teacher, student, aligner = real
    rng = random.Random(9)
    rows: tuple[Rows, Rows] = ([], [])
    for text in hard_texts():
        for side, name in enumerate((teacher, student)):
            ids = encode(name, [text])[0]
            start = rng.choice([0, 0, 1, 2])
            rows[side].append(ids[start : len(ids) - rng.choice([0, 1, 2, 5])])
    check_against_twin(aligner, *rows)


def test_byte_tokens_cut_inside_of_characters(real: tuple[str, str, Aligner]) -> None:
    """Every prefix and suffix of the bytes of an emoji, in single-byte tokens on both sides."""
    teacher, student, aligner = real
    raw = "👩‍👧é".encode()
    of_byte: list[dict[bytes, int]] = []
    for name in (teacher, student):
        table = token_bytes(name)
        of_byte.append({b: i for i, b in reversed(list(enumerate(table))) if len(b) == 1})
    pieces = [raw[i:j] for i in range(len(raw)) for j in range(i + 1, len(raw) + 1)]
    pieces = [p for p in pieces if all(bytes([b]) in t for b in p for t in of_byte)]
    rows = [[[ids[bytes([b])] for b in piece] for piece in pieces] for ids in of_byte]
    batch = aligner.align_batch(rows[0], rows[1])
    assert len(pieces) > 50
    assert batch.coverage().units == {"shared": sum(map(len, pieces)), "multi": 0, "special": 0}
    assert (batch.unit_class == 8 | 16).all()


def test_composed_against_decomposed(real: tuple[str, str, Aligner]) -> None:
    teacher, student, aligner = real
    texts = ["naïve café, Ångström, Łódź and 12 more words", "한국어 텍스트 is decomposed too"]
    forms = [[unicodedata.normalize(form, text) for text in texts] for form in ("NFC", "NFD")]
    t_rows, s_rows = encode(teacher, forms[0]), encode(student, forms[1])
    check_against_twin(aligner, t_rows, s_rows)
    if vocabulary(student).verify(forms[1]).exact:
        lost = aligner.align_batch(t_rows, s_rows).coverage().student_unmatched
        assert lost["bytes_differ"] > 0
        assert lost["no_resync"] == 0


def test_only_special_tokens(real: tuple[str, str, Aligner]) -> None:
    teacher, student, aligner = real
    names = [list(vocabulary(name).special_ids.values())[:4] for name in (teacher, student)]
    mapped = Aligner(
        aligner.teacher,
        aligner.student,
        special_tokens=dict(zip(names[0], names[1], strict=False)),
        stop_tokens=([], []),
    )
    pairs = list(zip(names[0], names[1], strict=False))
    batch = mapped.align_batch([[t for t, _ in pairs]], [[s for _, s in pairs]])
    assert batch.coverage().units == {"shared": 0, "multi": 0, "special": len(pairs)}
    assert len(batch.unmatched) == 0
    assert (batch.unit_class == 0).all()
    reverse = mapped.align_batch([[t for t, _ in pairs]], [[]])
    assert reverse.n_units == 0
    assert reverse.unmatched.reason.tolist() == [UnmatchedReason.SPECIAL]


# --- sizes ---------------------------------------------------------------------------------------


def repeated(name: str, tokens: int) -> np.ndarray[Any, Any]:
    """Answers, one after another, as one long row of about `tokens` tokens."""
    ids = np.concatenate([np.asarray(row) for row in encode(name, answers(300))])
    return np.tile(ids, tokens // len(ids) + 1)


@pytest.mark.parametrize("names", PAIR_NAMES[:2], ids="-".join)
def test_a_row_of_a_million_tokens(names: tuple[str, str]) -> None:
    """Against NumPy's intersection of cumulative lengths; no dummy prefix in either of these."""
    rows = [np.concatenate(encode(name, answers(300))) for name in names]
    times = 1_000_000 // min(map(len, rows)) + 1
    teacher, student = (np.tile(ids, times) for ids in rows)
    ends = [
        np.cumsum(np.array([len(token) for token in token_bytes(name)])[ids])
        for name, ids in zip(names, (teacher, student), strict=True)
    ]
    assert ends[0][-1] == ends[1][-1]
    batch = Aligner(*map(vocabulary, names)).align_batch([teacher], [student])
    common = np.intersect1d(*ends)
    assert len(batch.unmatched) == 0
    assert np.array_equal(np.searchsorted(ends[0], common) + 1, batch.teacher_end)
    assert np.array_equal(np.searchsorted(ends[1], common) + 1, batch.student_end)
    assert np.array_equal(batch.teacher_start[1:], batch.teacher_end[:-1])
    assert np.array_equal(batch.student_start[1:], batch.student_end[:-1])


def test_a_million_tokens_with_differences(real: tuple[str, str, Aligner]) -> None:
    teacher, student, aligner = real
    t_ids, s_ids = repeated(teacher, 1_000_000), repeated(student, 1_000_000)
    rng = np.random.default_rng(3)
    places = rng.integers(0, len(t_ids), len(t_ids) // 100)
    t_ids[places] = rng.integers(0, len(vocabulary(teacher)), len(places))
    batch = aligner.align_batch([t_ids], [s_ids])
    assert_every_token_once(batch, sides=(np.ones(len(t_ids)), np.ones(len(s_ids))))


def test_ten_thousand_rows_and_threads(real: tuple[str, str, Aligner]) -> None:
    """Rows of every length, some empty, some with differences: any number of threads agrees."""
    teacher, student, aligner = real
    rng = random.Random(5)
    texts = [*answers(300), *hard_texts(), ""]
    t_texts, s_texts = encode(teacher, texts), encode(student, texts)
    rows: tuple[Rows, Rows] = ([], [])
    for _ in range(10_000):
        number = rng.randrange(len(texts))
        rows[0].append(t_texts[number])
        other = rng.randrange(len(texts)) if rng.random() < 0.02 else number
        rows[1].append(s_texts[other])
    one = aligner.align_batch(*rows, threads=1)
    assert len(one) == 10_000
    sides = [np.ones(sum(map(len, side))) for side in rows]
    assert_every_token_once(one, sides=sides)
    for threads in (2, 3, 16, None):
        assert_equal_batches(one, aligner.align_batch(*rows, threads=threads))


def assert_equal_batches(left: AlignedBatch, right: AlignedBatch) -> None:
    spans = ("row_offsets", "teacher_start", "teacher_end", "student_start", "student_end")
    for name in (*spans, "kind", "unit_class"):
        assert np.array_equal(getattr(left, name), getattr(right, name)), name
    for name in (*spans, "reason"):
        assert np.array_equal(getattr(left.unmatched, name), getattr(right.unmatched, name)), name


def test_time_is_linear_where_boundaries_never_meet() -> None:
    """One long unit that fails at its end: skipping one token must not start all over again.

    Even offsets against odd ones, so that no boundary is common until the texts differ.
    """
    teacher = Vocabulary.from_token_bytes([b"aa", b"x"])
    student = Vocabulary.from_token_bytes([b"aaa", b"aaaa", b"y"])
    aligner = Aligner(teacher, student)

    def seconds(tokens: int) -> float:
        rows = [[0] * tokens + [1]], [[0] + [1] * (tokens // 2 - 1) + [0, 2]]
        begun = time.perf_counter()
        batch = aligner.align_batch(*rows)
        assert_every_token_once(batch, sides=[np.ones(len(row[0])) for row in rows])
        return time.perf_counter() - begun

    seconds(100)
    assert seconds(16_000) < 8 * 4 * max(seconds(2_000), 1e-3)
