"""The packed index buffer as the engine reads it: names for its sections, and the path steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from simct_align.index import Side


class PackedIndex(Protocol):
    """What the loss reads of an `AlignedIndex`."""

    n_shared: int
    n_multi: int
    n_teacher_steps: int
    n_student_steps: int
    n_teacher_entries: int
    n_student_entries: int
    max_path: int
    host: NDArray[np.int64] | None
    dropped_no_prefix: int
    dropped_dummy_prefix: int

    @property
    def packed(self) -> Tensor:
        """All sections in one int64 buffer."""
        ...

    def check_logits(self, side: Side, argument: str, shape: Sequence[int]) -> None:
        """Raise if logits or hidden states of a shape do not hold what the index reads."""
        ...

    def normalizer(self, reduction: str, candidates: str) -> int:
        """What the sum over units is divided by."""
        ...


@dataclass(frozen=True)
class RealizedPaths:
    """One side's realized paths of the MULTI units, the first step apart from the rest.

    The first step of a path is read at the unit's prefix row, together with the shared columns;
    the remaining ``R = steps - units`` steps are rows of their own.
    """

    first_id: Tensor
    length: Tensor
    rest_unit: Tensor
    rest_row: Tensor
    rest_id: Tensor


@dataclass(frozen=True)
class IndexView:
    """Sections of the packed buffer: units ``[N]``, of which the last ``n_multi`` are MULTI."""

    n_shared: int
    n_multi: int
    kind: Tensor
    teacher_row: Tensor
    student_row: Tensor
    realized_column: Tensor
    teacher: RealizedPaths
    student: RealizedPaths


def _paths(offsets: Tensor, steps: Sequence[Tensor], n_multi: int) -> RealizedPaths:
    unit, row, token = steps
    first = offsets[:-1]
    # The steps after the first, in order, without asking the device how many there are: a stable
    # sort moves the known number of first steps behind them.
    is_first = torch.zeros_like(unit).index_fill_(0, first, 1)
    rest = torch.argsort(is_first, stable=True)[: unit.shape[0] - n_multi]
    return RealizedPaths(
        first_id=token.index_select(0, first),
        length=offsets[1:] - first,
        rest_unit=unit.index_select(0, rest),
        rest_row=row.index_select(0, rest),
        rest_id=token.index_select(0, rest),
    )


def view_index(
    packed: Tensor, n_shared: int, n_multi: int, n_teacher_steps: int, n_student_steps: int
) -> IndexView:
    """Cut the packed buffer into its sections.

    Args:
        packed: int64, one-dimensional, the sections in `AlignedIndex` order; more may follow.
        n_shared: SHARED and SPECIAL units.
        n_multi: MULTI units.
        n_teacher_steps: tokens of all MULTI units on the teacher's side.
        n_student_steps: the same for the student.

    Returns:
        Views and small device tensors; nothing is read back to the host.

    Raises:
        ValueError: the buffer is shorter than the counts say.

    Complexity:
        O(steps log steps) on the device.
    """
    units = n_shared + n_multi
    sizes = [units] * 5 + [n_multi, n_multi + 1, n_multi + 1]
    sizes += [n_teacher_steps] * 3 + [n_student_steps] * 3
    total = sum(sizes)
    if packed.dim() != 1 or packed.shape[0] < total:
        raise ValueError(
            f"index: the packed buffer has shape {tuple(packed.shape)}, "
            f"but its counts ask for {total} numbers"
        )
    _, kind, _, teacher_row, student_row, realized, t_off, s_off, *steps = torch.split(
        packed[:total], sizes
    )
    return IndexView(
        n_shared=n_shared,
        n_multi=n_multi,
        kind=kind,
        teacher_row=teacher_row,
        student_row=student_row,
        realized_column=realized,
        teacher=_paths(t_off, steps[:3], n_multi),
        student=_paths(s_off, steps[3:], n_multi),
    )
