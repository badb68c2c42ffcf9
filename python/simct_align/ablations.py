"""Internal: ablations of an aligned batch, with joined units or with fewer units.

Each function takes an `AlignedBatch` and returns another one over the same ids. Unmatched spans
stay as they are. Tokens of units that are left out are in no unit and in no unmatched span.

Complexity:
    O(units) time and memory, in NumPy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from simct_align.units import UnitClass, UnitColumns, UnitKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

#: A batch, or units alone.
_Units = TypeVar("_Units", bound=UnitColumns)

#: Class bits that a group has if one of its units has them; other bits need all of its units.
_BITS_OF_A_PART = UnitClass.NON_ASCII | UnitClass.SPLITS_CHARACTER | UnitClass.TRIMMED


def coarsen(
    batch: _Units,
    by: int | Literal["whitespace", "random"],
    *,
    seed: int | None,
    begins_with_whitespace: Callable[[], NDArray[np.bool_]],
) -> _Units:
    """Join neighbouring units: see `AlignedBatch.coarsen`."""
    starts_run = _starts_run(batch)
    if by == "whitespace":
        starts_group = starts_run | begins_with_whitespace()
    elif by == "random":
        if seed is None:
            raise ValueError("coarsen('random') needs a seed: pass seed=")
        starts_group = starts_run | (np.random.default_rng(seed).random(len(starts_run)) < 0.5)
    elif isinstance(by, (int, np.integer)) and not isinstance(by, bool) and by >= 1:
        number = np.arange(len(starts_run))
        run_start = np.maximum.accumulate(np.where(starts_run, number, 0))
        starts_group = (number - run_start) % by == 0
    else:
        raise ValueError(f"coarsen: expected an int >= 1, 'whitespace' or 'random', got {by!r}")
    return _merge(batch, np.flatnonzero(starts_group))


def keep_units(batch: _Units, keep: NDArray[np.bool_]) -> _Units:
    """Keep only the units that a mask selects, bool `[units]`."""
    kept_before = np.concatenate([[0], np.cumsum(keep, dtype=np.int64)])
    return replace(
        batch,
        row_offsets=kept_before[batch.row_offsets],
        teacher_start=batch.teacher_start[keep],
        teacher_end=batch.teacher_end[keep],
        student_start=batch.student_start[keep],
        student_end=batch.student_end[keep],
        kind=batch.kind[keep],
        unit_class=batch.unit_class[keep],
    )


def without(batch: _Units, kind: UnitKind | str) -> _Units:
    """Leave out all units of one kind: see `AlignedBatch.without`."""
    by_name = {known.name.lower(): known for known in UnitKind}
    if isinstance(kind, str):
        kind = by_name.get(kind.lower(), kind)
    if kind not in list(UnitKind):
        raise ValueError(f"kind: expected one of {', '.join(by_name)}, got {kind!r}")
    return keep_units(batch, batch.kind != kind)


def sample_units(batch: _Units, fraction: float, *, seed: int) -> _Units:
    """Keep a random sample of the units: see `AlignedBatch.sample_units`."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}, expected 0 to 1")
    drawn = np.random.default_rng(seed).random(batch.n_units)
    return keep_units(batch, drawn < fraction)


def _starts_run(batch: UnitColumns) -> NDArray[np.bool_]:
    """Return which units must not be joined with the unit before them, bool `[units]`."""
    starts = np.ones(batch.n_units, bool)
    special = batch.kind == UnitKind.SPECIAL
    starts[1:] = (
        (batch.teacher_start[1:] != batch.teacher_end[:-1])
        | (batch.student_start[1:] != batch.student_end[:-1])
        | special[1:]
        | special[:-1]
    )
    first_of_row = batch.row_offsets[:-1]
    starts[first_of_row[first_of_row < batch.n_units]] = True
    return starts


def _merge(batch: _Units, first: NDArray[np.intp]) -> _Units:
    """Join units into groups, given the first unit of every group."""
    if not len(first):
        return batch
    last = np.append(first[1:], batch.n_units) - 1
    of_all = np.bitwise_and.reduceat(batch.unit_class, first)
    of_any = np.bitwise_or.reduceat(batch.unit_class, first)
    part = np.uint8(_BITS_OF_A_PART)
    return replace(
        batch,
        row_offsets=np.searchsorted(first, batch.row_offsets).astype(np.int64),
        teacher_start=batch.teacher_start[first],
        teacher_end=batch.teacher_end[last],
        student_start=batch.student_start[first],
        student_end=batch.student_end[last],
        kind=np.where(first == last, batch.kind[first], np.uint8(UnitKind.MULTI)),
        unit_class=(of_all & ~part) | (of_any & part),
    )
