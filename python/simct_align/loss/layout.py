"""The packed index as the losses read it: by the names of its sections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

# The module, not its table: whoever replaces the table replaces it for the losses too.
from simct_align import index as packed_index

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import AlignedIndex


class IndexSizes(NamedTuple):
    """The numbers that the lengths of an index's sections follow from.

    Attributes:
        n_shared: SHARED and SPECIAL units.
        n_multi: MULTI units.
        n_teacher_steps: Teacher tokens in MULTI units.
        n_student_steps: Student tokens in MULTI units.
        n_teacher_entries: Entries of the teacher's direction.
        n_student_entries: Entries of the student's direction.
        n_text_offsets: Offsets of text events, which these losses do not read.
        n_teacher_text_rows: Text rows of the teacher.
        n_student_text_rows: Text rows of the student.
        n_teacher_sources: Sources of the teacher.
        n_student_sources: Sources of the student.
        groups: Groups of sections that the index has, joined by commas.
    """

    n_shared: int
    n_multi: int
    n_teacher_steps: int
    n_student_steps: int
    n_teacher_entries: int
    n_student_entries: int
    n_text_offsets: int
    n_teacher_text_rows: int
    n_student_text_rows: int
    n_teacher_sources: int
    n_student_sources: int
    groups: str

    @classmethod
    def of(cls, index: AlignedIndex) -> IndexSizes:
        """Return the sizes of an index."""
        return cls(
            n_shared=index.n_shared,
            n_multi=index.n_multi,
            n_teacher_steps=index.n_teacher_steps,
            n_student_steps=index.n_student_steps,
            n_teacher_entries=index.n_teacher_entries,
            n_student_entries=index.n_student_entries,
            n_text_offsets=index.n_text_offsets,
            n_teacher_text_rows=index.n_teacher_text_rows,
            n_student_text_rows=index.n_student_text_rows,
            n_teacher_sources=index.n_teacher_sources,
            n_student_sources=index.n_student_sources,
            groups=",".join(index.groups),
        )

    def sections(self, packed_length: int) -> dict[str, slice]:
        """Return where every section is.

        Args:
            packed_length: Numbers in the packed buffer.

        Raises:
            ValueError: The buffer has another length than the sections together.
        """
        counts = {"n_units": self.n_shared + self.n_multi, **self._asdict()}
        groups = counts.pop("groups").split(",")
        slices = packed_index.section_slices(counts, groups)
        total = max((section.stop for section in slices.values()), default=0)
        if packed_length != total:
            raise ValueError(
                f"index: the packed buffer has {packed_length} numbers, but its counts ask for "
                f"{total}"
            )
        return slices


@dataclass(frozen=True)
class RealizedPaths:
    """One side's realized paths of the MULTI units, the first step apart from the rest.

    The first step of a path is read at the unit's prefix row, together with the shared columns;
    the remaining `R = steps - units` steps are rows of their own.

    Attributes:
        first_id: `[M]` the first token.
        length: `[M]` tokens of the path.
        rest_unit: `[R]` number of the unit among the MULTI units.
        rest_row: `[R]` flat logit row that predicts the token.
        rest_id: `[R]` the token.
    """

    first_id: Tensor
    length: Tensor
    rest_unit: Tensor
    rest_row: Tensor
    rest_id: Tensor


@dataclass(frozen=True)
class SideUnits:
    """One side of all units.

    Attributes:
        row: `[N]` flat logit row of every unit's prefix.
        paths: The realized paths of the last `M` units.
        first_id: `[N]` first realized token of every unit; None where the index has none.
    """

    row: Tensor
    paths: RealizedPaths
    first_id: Tensor | None


@dataclass(frozen=True)
class IndexView:
    """Sections of a packed index: `N = n_shared + n_multi` units, the last `n_multi` MULTI.

    Attributes:
        n_shared: SHARED and SPECIAL units.
        n_multi: MULTI units.
        kind: `[N]` their `UnitKind`.
        realized_column: `[n_multi]` shared column of the realized text, -1 if none.
        teacher: The teacher's side.
        student: The student's side.
    """

    n_shared: int
    n_multi: int
    kind: Tensor
    realized_column: Tensor
    teacher: SideUnits
    student: SideUnits


def view_index(packed: Tensor, sizes: IndexSizes) -> IndexView:
    """Return the sections that the losses gather with.

    Args:
        packed: The int64 buffer of an `AlignedIndex`.
        sizes: Its sizes.

    Returns:
        Views and small device tensors; nothing is read back to the host.

    Raises:
        ValueError: The buffer does not have the length that the sizes ask for.

    Complexity:
        O(steps log steps) on the device.
    """
    at = sizes.sections(packed.numel())

    def side(name: str) -> SideUnits:
        first_id = at.get(f"{name}_first_id")
        paths = _paths(
            offsets=packed[at[f"{name}_offsets"]],
            unit=packed[at[f"{name}_step_unit"]],
            row=packed[at[f"{name}_step_row"]],
            token=packed[at[f"{name}_step_id"]],
            n_multi=sizes.n_multi,
        )
        row = packed[at[f"{name}_row"]]
        return SideUnits(row, paths, None if first_id is None else packed[first_id])

    return IndexView(
        n_shared=sizes.n_shared,
        n_multi=sizes.n_multi,
        kind=packed[at["kind"]],
        realized_column=packed[at["realized_shared_column"]],
        teacher=side("teacher"),
        student=side("student"),
    )


def _paths(
    offsets: Tensor, unit: Tensor, row: Tensor, token: Tensor, n_multi: int
) -> RealizedPaths:
    first = offsets[:-1]
    # The steps after the first, in order, without asking the device how many there are: a stable
    # sort moves the known number of first steps to the end.
    is_first = torch.zeros_like(unit).index_fill_(0, first, 1)
    rest = torch.argsort(is_first, stable=True)[: unit.shape[0] - n_multi]
    return RealizedPaths(
        first_id=token.index_select(0, first),
        length=offsets.diff(),
        rest_unit=unit.index_select(0, rest),
        rest_row=row.index_select(0, rest),
        rest_id=token.index_select(0, rest),
    )
