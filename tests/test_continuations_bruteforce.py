"""On real tokenizers and text: what the engine enumerates is what brute force finds."""

from __future__ import annotations

import copy
import functools
import random
from typing import Any

import numpy as np
import pytest

from simct_align import Aligner, UnitKind
from simct_align.continuations import LeafTable
from support.lengths import full
from support.slow_continuations import BOTH, expected, ids_by_bytes, listed, one_sided, spell
from support.texts import answers, gsm8k_answers, hard_texts
from support.vocabularies import ALL_NAMES, aligner_of, token_bytes, vocabulary

CODE = "def f(x):\n    return [i ** 2 for i in range(10_000)  # naïve\n            if i % 3 == 0]\n"
UNITS_PER_PAIR = 40
# In full every two tokenizers once, else every one with two others on either side: both directions
# are compared for a pair, and swapping the sides mirrors them.
PAIRS = [
    (name, ALL_NAMES[(place + step) % len(ALL_NAMES)])
    for place, name in enumerate(ALL_NAMES)
    for step in full(range(1, len(ALL_NAMES) // 2 + 1), (1, 4))
]


@functools.cache
def corpus() -> tuple[str, ...]:
    return (*answers(40), *hard_texts(), CODE)


@functools.cache
def corpus_ids(name: str) -> list[list[int]]:
    return vocabulary(name).encode_batch(corpus())


@functools.lru_cache(maxsize=4)
def aligned(teacher: str, student: str) -> tuple[Aligner, Any]:
    aligner = aligner_of(teacher, student)
    return aligner, aligner.align_batch(corpus_ids(teacher), corpus_ids(student))


def check(
    names: tuple[str, str], continuations: Any, batch: Any, units: list[int], max_path: int
) -> int:
    """Compare with brute force; return how many continuations there were."""
    by_side = dict(zip(BOTH, names, strict=True))
    shared = ids_by_bytes(names[0]).keys() & ids_by_bytes(names[1]).keys()
    rows = np.searchsorted(batch.row_offsets, units, side="right") - 1
    total = 0
    for unit, row in zip(units, rows.tolist(), strict=True):
        found = listed(continuations, batch, unit, row)
        assert set(found) == expected(by_side, batch, unit, row, max_path)
        texts = [token_bytes(by_side[side])[token] for side, token, _ in found]
        assert len(set(texts)) == len(texts)
        assert not shared.intersection(texts)
        for text, (side, _, path) in zip(texts, found, strict=True):
            table = token_bytes(names[side == "teacher"])
            assert b"".join(table[token] for token in path) == text
        total += len(found)
    return total


def some_units(batch: Any, seed: int, count: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(batch.n_units), count))


@pytest.mark.parametrize(("teacher", "student"), PAIRS, ids=lambda name: name)
def test_continuations_are_what_brute_force_finds(teacher: str, student: str) -> None:
    aligner, batch = aligned(teacher, student)
    continuations = aligner.continuations(batch)
    units = some_units(batch, PAIRS.index((teacher, student)), UNITS_PER_PAIR)
    check((teacher, student), continuations, batch, units, 8)
    one = aligner.continuations(batch, max_path=1)
    check((teacher, student), one, batch, units[:6], 1)


def test_many_units_and_deep_nodes_are_what_brute_force_finds() -> None:
    names = ("deepseek", "tekken")
    aligner, batch = aligned(*names)
    found = aligner.continuations(batch)
    assert check(names, found, batch, some_units(batch, 7, 600), 8) > 1000
    sides = (found.teacher, found.student)
    deep = sorted({int(unit) for side in sides for unit in side.unit[side.depth > 1]})
    assert len(deep) > 100
    assert check(names, found, batch, deep[:150], 8) > 150


def broken(leaves: LeafTable, node: int, how: str) -> LeafTable:
    """A table with one leaf moved to the next node, or dropped."""
    offsets = leaves.node_offsets.copy()
    last, tokens = leaves.last_token, leaves.one_sided_token
    if how == "moved":
        offsets[node + 1] -= 1
    else:
        gone = offsets[node]
        offsets[node + 1 :] -= 1
        last, tokens = np.delete(last, gone), np.delete(tokens, gone)
    return LeafTable(offsets, last, tokens)


@pytest.mark.parametrize("how", ["moved", "dropped"])
@pytest.mark.parametrize("side", BOTH)
def test_a_mutated_table_is_seen(side: str, how: str) -> None:
    names = ("qwen_tiktoken", "tekken")
    aligner, batch = aligned(*names)
    found = aligner.continuations(batch)
    entries = getattr(found, side)
    unit, node = int(entries.unit[5]), int(entries.node[5])
    check(names, found, batch, [unit], 8)
    wrong = copy.copy(found)
    mutated = copy.copy(entries)
    object.__setattr__(mutated, "leaves", broken(entries.leaves, node, how))
    object.__setattr__(wrong, side, mutated)
    with pytest.raises(AssertionError):
        check(names, wrong, batch, [unit], 8)


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("gemma2", "qwen2_5"),
        ("mistral_v3", "deepseek"),
        ("qwen_tiktoken", "tekken"),
        ("tekken", "demo_byte_fallback"),
    ],
)
def test_spellings_are_what_the_tokenizers_write(teacher: str, student: str) -> None:
    aligner, _ = aligned(teacher, student)
    for own, other, of in ((teacher, student, "teacher"), (student, teacher, "student")):
        texts = one_sided(own, other)
        table = getattr(aligner.spellings, of)
        assert sum(table.by_length.values()) + len(table.unspelled) == len(texts)
        sample = random.Random(1).sample(texts, min(1500, len(texts)))
        for text, path in zip(sample, spell(other, sample), strict=True):
            assert aligner.spelling(ids_by_bytes(own)[text], side=of) == path


def test_spellings_have_the_lengths_that_were_counted() -> None:
    """Of the tokens whose text the tokenizer writes exactly, and how many are no valid text."""
    aligner, _ = aligned("gemma2", "qwen2_5")

    def counts(of: str, own: str, other: str) -> tuple[int, int, int, int]:
        texts = one_sided(own, other)
        valid = [text for text in texts if text.decode("utf-8", "ignore").encode() == text]
        written = vocabulary(other).encode_batch([text.decode() for text in valid])
        lengths = [
            len(path)
            for text, path in zip(valid, written, strict=True)
            if aligner.spelling(ids_by_bytes(own)[text], side=of) == tuple(path)
        ]
        return lengths.count(2), lengths.count(3), len(texts) - len(valid), len(texts)

    assert counts("student", "qwen2_5", "gemma2") == (45_528, 6_249, 1_320, 53_976)
    two, three, _, total = counts("teacher", "gemma2", "qwen2_5")
    assert (two, three, total) == (129_650, 23_323, 158_194)


def test_shares_of_units_with_continuations() -> None:
    texts = gsm8k_answers(400)
    for names, share, entries in (
        (("gemma2", "qwen2_5"), 0.47, 0.80),
        (("gemma2", "gpt4o"), 0.85, 1.48),
    ):
        aligner, _ = aligned(*names)
        batch = aligner.align_texts(texts)
        found = aligner.continuations(batch)
        counts = found.teacher.counts(batch.n_units) + found.student.counts(batch.n_units)
        assert (counts > 0).mean() == pytest.approx(share, abs=0.02)
        per_unit = (len(found.teacher) + len(found.student)) / batch.n_units
        assert per_unit == pytest.approx(entries, abs=0.1)


def test_realized_leaves_are_the_texts_that_units_have_twice() -> None:
    names = ("qwen_tiktoken", "tekken")
    aligner, batch = aligned(*names)
    index = batch.index(max_path=8)
    found = aligner.continuations(batch)
    seen = dict.fromkeys(BOTH, 0)
    by_row = [unit for row in range(len(batch)) for unit in batch.units(row)]
    for place, unit in enumerate(index.unit[index.n_shared :].tolist()):
        assert batch.kind[unit] == UnitKind.MULTI
        for side in BOTH:
            entries, table = getattr(found, side), getattr(aligner.spellings, side)
            leaves, leaf = table.leaves, int(getattr(index, f"realized_{side}_leaf")[place])
            candidates = [
                leaf
                for node in entries.of_unit(unit).tolist()
                for leaf in range(leaves.node_offsets[node], leaves.node_offsets[node + 1])
                if getattr(aligner, side).token_bytes(int(leaves.one_sided_token[leaf]))
                == by_row[unit].bytes
            ]
            assert candidates == ([] if leaf < 0 else [leaf])
            seen[side] += leaf >= 0
    assert min(seen.values()) > 10
