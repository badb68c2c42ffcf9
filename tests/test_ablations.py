"""Coarser and smaller versions of an aligned batch."""

from __future__ import annotations

import numpy as np
import pytest

from simct_align import AlignedBatch, Aligner, UnitClass, UnitKind
from simct_align.demo import demo_tokenizers

TEXTS = ["It is 1234 km,\n  naïve — 🙂🙃.", "", "x = 12 + 345; y = [6, 7]"]


@pytest.fixture(scope="module")
def batch() -> AlignedBatch:
    return Aligner(*demo_tokenizers()).align_texts(TEXTS)


def _text(batch: AlignedBatch, row: int) -> bytes:
    return b"".join(unit.bytes for unit in batch.units(row))


@pytest.mark.parametrize("n", [1, 2, 3, 1000, "whitespace", "random"])
def test_coarsening_keeps_the_text_and_only_removes_boundaries(
    batch: AlignedBatch, n: int | str
) -> None:
    coarse = batch.coarsen(n, seed=7)
    assert coarse.coverage().student_tokens_in_units == batch.coverage().student_tokens_in_units
    for row, text in enumerate(TEXTS):
        assert _text(coarse, row) == text.encode()
        fine_starts = {unit.student.start for unit in batch.units(row)}
        coarse_units = coarse.units(row)
        assert {unit.student.start for unit in coarse_units} <= fine_starts
        for unit in coarse_units:
            tokens = max(len(unit.teacher), len(unit.student))
            trimmed = UnitClass.TRIMMED in unit.unit_class
            assert (unit.kind == UnitKind.MULTI) == (tokens > 1 or trimmed)


def test_groups_of_two(batch: AlignedBatch) -> None:
    fine, coarse = batch.units(2), batch.coarsen(2).units(2)
    assert [unit.bytes for unit in coarse] == [
        b"".join(unit.bytes for unit in fine[first : first + 2]) for first in range(0, len(fine), 2)
    ]
    assert batch.coarsen().n_units == batch.coarsen(2).n_units
    assert batch.coarsen(1).n_units == batch.n_units


def test_words(batch: AlignedBatch) -> None:
    assert [unit.text for unit in batch.coarsen("whitespace").units(2)] == [
        "x",
        " =",
        " 12",
        " +",
        " 345;",
        " y",
        " =",
        " [6,",
        " 7]",
    ]


def test_classes_of_groups_are_those_of_their_text(batch: AlignedBatch) -> None:
    (unit,) = Aligner(*demo_tokenizers()).align_texts(["12345"]).coarsen(99).units(0)
    assert unit.unit_class & UnitClass.DIGITS
    smiles = batch.coarsen(1000).units(0)[0]
    assert UnitClass.NON_ASCII in smiles.unit_class
    assert UnitClass.DIGITS not in smiles.unit_class


def test_random_is_seeded(batch: AlignedBatch) -> None:
    starts = [batch.coarsen("random", seed=seed).student_start for seed in (1, 1, 2)]
    np.testing.assert_array_equal(starts[0], starts[1])
    assert len(starts[0]) != len(starts[2]) or (starts[0] != starts[2]).any()


def test_special_units_stay_alone() -> None:
    aligner = Aligner(*demo_tokenizers())
    stops = aligner.shared.teacher_stop_ids[:1], aligner.shared.student_stop_ids[:1]
    ids = [
        [np.concatenate([vocabulary.encode_batch(["ab 12"])[0], stop, stop])]
        for vocabulary, stop in zip((aligner.teacher, aligner.student), stops, strict=True)
    ]
    units = aligner.align_batch(*ids).coarsen(1000).units(0)
    assert [unit.kind for unit in units] == [UnitKind.MULTI, UnitKind.SPECIAL, UnitKind.SPECIAL]


def test_without(batch: AlignedBatch) -> None:
    for kind in UnitKind:
        rest = batch.without(kind)
        assert rest.n_units == int((batch.kind != kind).sum())
        assert kind not in rest.kind
        assert len(rest) == len(batch)
        expected = [unit for row in range(3) for unit in batch.units(row) if unit.kind != kind]
        assert [unit for row in range(3) for unit in rest.units(row)] == expected
    assert batch.without("multi").n_units == batch.without(UnitKind.MULTI).n_units


def test_sample_units(batch: AlignedBatch) -> None:
    assert batch.sample_units(1.0, seed=0).n_units == batch.n_units
    assert batch.sample_units(0.0, seed=0).n_units == 0
    half = batch.sample_units(0.5, seed=3)
    assert 0 < half.n_units < batch.n_units
    np.testing.assert_array_equal(half.kind, batch.sample_units(0.5, seed=3).kind)


def test_an_empty_batch() -> None:
    empty = Aligner(*demo_tokenizers()).align_batch([], [])
    assert empty.coarsen(2).n_units == empty.without("multi").n_units == 0
    assert len(Aligner(*demo_tokenizers()).align_batch([[], []], [[], []]).coarsen()) == 2


def test_bad_arguments(batch: AlignedBatch) -> None:
    for n in (0, -1, "word", 1.5, True):
        with pytest.raises(ValueError, match="coarsen: expected an int"):
            batch.coarsen(n)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a seed"):
        batch.coarsen("random")
    with pytest.raises(ValueError, match=r"fraction is 1\.5"):
        batch.sample_units(1.5, seed=0)
    with pytest.raises(ValueError, match="kind: expected one of shared, multi, special"):
        batch.without("both")
