"""Internal: the packed index as the losses read it, by the names of its sections."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

# Import the module and not its table, so that a replaced table is used here too.
from simct_align import index as packed_index

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import AlignedIndex


class IndexSizes(NamedTuple):
    """The numbers that determine the lengths of an index's sections.

    Attributes:
        n_shared: The number of SHARED and SPECIAL units.
        n_multi: The number of MULTI units.
        n_teacher_steps: The number of teacher tokens in MULTI units.
        n_student_steps: The number of student tokens in MULTI units.
        n_teacher_entries: The number of entries of the teacher's direction.
        n_student_entries: The number of entries of the student's direction.
        n_text_offsets: Offsets of text events.
        n_teacher_text_rows: Text rows of the teacher.
        n_student_text_rows: Text rows of the student.
        n_teacher_sources: Sources of the teacher at all offsets.
        n_student_sources: Sources of the student at all offsets.
        groups: The groups of sections that the index has, joined by commas.
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
        """Return the slice of every section in the packed buffer.

        Args:
            packed_length: The number of values in the packed buffer.

        Returns:
            Slices by the names of the sections.

        Raises:
            ValueError: The buffer's length differs from the sum of the sections' lengths.
        """
        counts = {"n_units": self.n_shared + self.n_multi, **self._asdict()}
        groups = counts.pop("groups").split(",")
        slices = packed_index.section_slices(counts, groups)
        total = max((section.stop for section in slices.values()), default=0)
        if packed_length != total:
            raise ValueError(
                f"index: expected a packed buffer of {total} numbers for its counts, "
                f"got {packed_length}"
            )
        return slices


class PathSteps(NamedTuple):
    """One side's S steps, the tokens of its MULTI units, unit after unit.

    Attributes:
        unit: `[S]` number of the step's unit among the MULTI units.
        row: `[S]` flat logit row that predicts the step's token.
        id: `[S]` the step's token.
    """

    unit: Tensor
    row: Tensor
    id: Tensor


class RealizedPaths:
    """One side's realized paths of the M MULTI units.

    The first step of a path is read at the unit's prefix row, together with the shared columns. The
    `R = steps - M` later steps have rows of their own. Everything but the steps is computed when it
    is read for the first time, in O(steps log steps) on the device.

    Args:
        offsets: `[M + 1]` number of every path's first step among all steps.
        steps: All steps.
    """

    def __init__(self, offsets: Tensor, steps: PathSteps) -> None:
        self._offsets = offsets
        self.steps = steps

    @property
    def first(self) -> Tensor:
        """`[M]` number of the path's first step among all steps."""
        return self._offsets[:-1]

    @cached_property
    def first_id(self) -> Tensor:
        """`[M]` first token of the path."""
        return self.steps.id.index_select(0, self.first)

    @cached_property
    def length(self) -> Tensor:
        """`[M]` number of tokens of the path."""
        return self._offsets.diff()

    @cached_property
    def rest(self) -> Tensor:
        """`[R]` numbers of the later steps among all steps."""
        # In order, without reading their number from the device: a stable sort moves the first
        # steps, whose number is known, to the end.
        is_first = torch.zeros_like(self.steps.unit).index_fill_(0, self.first, 1)
        count = self.steps.unit.shape[0] - self.first.shape[0]
        return torch.argsort(is_first, stable=True)[:count]

    @cached_property
    def rest_unit(self) -> Tensor:
        """`[R]` number of a later step's unit among the MULTI units."""
        return self.steps.unit.index_select(0, self.rest)

    @cached_property
    def rest_row(self) -> Tensor:
        """`[R]` flat logit row that predicts the step's token."""
        return self.steps.row.index_select(0, self.rest)

    @cached_property
    def rest_id(self) -> Tensor:
        """`[R]` the step's token."""
        return self.steps.id.index_select(0, self.rest)


@dataclass(frozen=True)
class SideUnits:
    """One side of all N units.

    Attributes:
        row: `[N]` flat logit row of every unit's prefix.
        paths: The realized paths of the MULTI units, which are the last M units.
        first_id: `[N]` first realized token of every unit; None for an index without first ids.
    """

    row: Tensor
    paths: RealizedPaths
    first_id: Tensor | None


@dataclass(frozen=True)
class IndexView:
    """The sections of a packed index of `N = n_shared + n_multi` units; MULTI units come last.

    Attributes:
        packed: The packed index.
        starts: Where its sections begin, by name.
        n_shared: The number of SHARED and SPECIAL units.
        n_multi: The number of MULTI units.
        kind: `[N]` the `UnitKind` of every unit.
        realized_column: `[n_multi]` shared column of the realized text, -1 if there is none.
        teacher: The teacher's side.
        student: The student's side.
        host: The packed index on the host; None for an index without a copy there.
    """

    packed: Tensor
    starts: dict[str, int]
    n_shared: int
    n_multi: int
    kind: Tensor
    realized_column: Tensor
    teacher: SideUnits
    student: SideUnits
    host: Tensor | None


def view_index(packed: Tensor, sizes: IndexSizes, host: Tensor | None = None) -> IndexView:
    """Return the sections that the losses gather with.

    Args:
        packed: The int64 buffer of an `AlignedIndex`.
        sizes: The sizes of the index.
        host: The same buffer on the host, if there is one.

    Returns:
        Views; nothing is read back to the host.

    Raises:
        ValueError: The buffer's length does not follow from the sizes.
    """
    at = sizes.sections(packed.numel())

    def side(name: str) -> SideUnits:
        first_id = at.get(f"{name}_first_id")
        paths = RealizedPaths(
            offsets=packed[at[f"{name}_offsets"]],
            steps=PathSteps(*(packed[at[f"{name}_step_{what}"]] for what in PathSteps._fields)),
        )
        row = packed[at[f"{name}_row"]]
        return SideUnits(row, paths, None if first_id is None else packed[first_id])

    return IndexView(
        packed=packed,
        starts={name: section.start for name, section in at.items()},
        n_shared=sizes.n_shared,
        n_multi=sizes.n_multi,
        kind=packed[at["kind"]],
        realized_column=packed[at["realized_shared_column"]],
        teacher=side("teacher"),
        student=side("student"),
        host=host,
    )
