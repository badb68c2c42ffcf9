"""Every ordered pair of real tokenizers: units are all common boundaries, no more, no fewer."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simct_align import Aligner, UnitKind, UnmatchedReason
from support.slow_alignment import Span, align_region, columns, common_boundaries
from support.texts import answers, hard_texts
from support.vocabularies import ALL_NAMES, token_bytes, vocabulary

PAIRS = list(itertools.permutations(ALL_NAMES, 2))
N_ANSWERS = 150
LINES = (
    "12345 = 12,345.0",
    "  two spaces, then\ttab\r\n\r\n   and blank lines \n",
    " leading space",
    "\n\nleading newlines",
    "🙂🙃👩‍👩‍👧 ok",
    "Σ x² ≤ ∞ → “quote” naïve café 12345",
    "<|endoftext|> <eos> </s> [INST] stay text",
    "",
    " ",
    "a",
)
texts_of_any_kind = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.text(alphabet=" \n\t0123456789.,+-=/$abAB'é🙂中ก\u0301\u200d\ufe0f", max_size=60),
        st.lists(
            st.sampled_from(
                [" the", "The", " answer", " is", "12", "3", "\n", "  ", "é", "数", "🙂"]
            ),
            max_size=20,
        ).map("".join),
    ),
    min_size=1,
    max_size=6,
)


@functools.cache
def corpus() -> tuple[str, ...]:
    return (*answers(N_ANSWERS), *hard_texts(), *LINES)


@functools.cache
def corpus_ids(name: str) -> list[list[int]]:
    return vocabulary(name).encode_batch(corpus())


def spelling(name: str, ids: list[int]) -> list[bytes]:
    table = token_bytes(name)
    return [table[token_id] for token_id in ids]


def without_dummy(tokens: list[bytes]) -> tuple[int, list[bytes]]:
    """Take one space off the front: the number of tokens that vanish, and the others."""
    rest = tokens[0][1:]
    return (0, [rest, *tokens[1:]]) if rest else (1, tokens[1:])


def expected_units(teacher: str, student: str, ids: Any, text: str) -> list[Span] | None:
    """All common boundaries, or None where a side's tokens do not spell the text."""
    raw = text.encode()
    sides = [spelling(teacher, ids[0]), spelling(student, ids[1])]
    extra = []
    for name, tokens in zip((teacher, student), sides, strict=True):
        joined = b"".join(tokens)
        extra.append(joined == b" " + raw and vocabulary(name).dummy_prefix)
        if (joined != raw and not extra[-1]) or b"" in tokens:
            return None
    skipped = [0, 0]
    if extra[0] != extra[1]:
        side = extra.index(True)
        skipped[side], sides[side] = without_dummy(sides[side])
    t, s = skipped
    return [(a + t, b + t, c + s, d + s) for a, b, c, d in common_boundaries(*sides)]


def check_rows(teacher: str, student: str, aligner: Aligner, texts: Any, ids: Any) -> int:
    """Compare with the slow twin; return how many rows both sides spell faithfully."""
    batch = aligner.align_batch(ids[0], ids[1])
    faithful = 0
    for row, text in enumerate(texts):
        row_ids = (ids[0][row], ids[1][row])
        wanted = expected_units(teacher, student, row_ids, text)
        if wanted is None:
            continue
        faithful += 1
        found = columns(batch, (batch.kind, batch.unit_class), row)
        assert [unit[:4] for unit in found] == wanted, text
        for t0, t1, s0, s1, kind, bits in found:
            trimmed = bool(bits & 32)
            one = t1 - t0 == 1 and s1 - s0 == 1 and not trimmed
            assert kind == (UnitKind.SHARED if one else UnitKind.MULTI)
        lost = columns(batch.unmatched, (batch.unmatched.reason,), row)
        assert {span[4] for span in lost} <= {UnmatchedReason.DUMMY_PREFIX}, text
        assert sum(unit[1] - unit[0] for unit in found + lost) == len(row_ids[0])
        assert sum(unit[3] - unit[2] for unit in found + lost) == len(row_ids[1])
        units = batch.units(row)
        assert b"".join(unit.bytes for unit in units) == text.encode() or extra_space(
            teacher, student, units, text
        )
    return faithful


def extra_space(teacher: str, student: str, units: Any, text: str) -> bool:
    """Two sides with a dummy prefix agree on it, so it stays in the units."""
    both = vocabulary(teacher).dummy_prefix and vocabulary(student).dummy_prefix
    return both and b"".join(unit.bytes for unit in units) == b" " + text.encode()


@pytest.mark.parametrize(("teacher", "student"), PAIRS, ids=lambda name: name)
def test_units_are_all_common_boundaries(teacher: str, student: str) -> None:
    aligner = Aligner(vocabulary(teacher), vocabulary(student))
    faithful = check_rows(
        teacher, student, aligner, corpus(), (corpus_ids(teacher), corpus_ids(student))
    )
    # Only the decomposed and compatibility characters of a few texts are normalized by anyone.
    assert faithful >= 0.9 * len(corpus())

    @settings(
        max_examples=12,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(texts_of_any_kind)
    def any_text(texts: list[str]) -> None:
        ids = tuple(vocabulary(name).encode_batch(texts) for name in (teacher, student))
        check_rows(teacher, student, aligner, texts, ids)

    any_text()
    check_every_rule(teacher, student, aligner)


def check_every_rule(teacher: str, student: str, aligner: Aligner) -> None:
    """Hard texts, unfaithful ones included, against the twin of the full rules."""
    last = len(corpus())
    first = last - len(LINES) - len(hard_texts())
    # A fifth of the texts for each pair: every text meets every tokenizer many times.
    rows = range(first + PAIRS.index((teacher, student)) % 5, last, 5)
    ids = [[corpus_ids(name)[row] for row in rows] for name in (teacher, student)]
    batch = aligner.align_batch(ids[0], ids[1])
    dummies = (vocabulary(teacher).dummy_prefix, vocabulary(student).dummy_prefix)
    for number in range(len(rows)):
        units, lost = align_region(
            ids[0][number],
            ids[1][number],
            token_bytes(teacher).__getitem__,
            token_bytes(student).__getitem__,
            lambda _teacher, _student: False,
            dummies=dummies,
        )
        named = [(*unit[:4], UnitKind[unit[4].upper()], unit[5]) for unit in units]
        assert columns(batch, (batch.kind, batch.unit_class), number) == named
        reasons = [(*span[:4], UnmatchedReason[span[4].upper()]) for span in lost]
        assert columns(batch.unmatched, (batch.unmatched.reason,), number) == reasons
