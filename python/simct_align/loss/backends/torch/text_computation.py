"""Internal: the chunk loop over the offsets of text events."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...text_layout import plan_chunks
from ...text_metrics import N_STATS, ListStat, OffsetStat
from ..protocol import Lists
from .readers import student_rows, teacher_rows
from .rows import Workspace
from .text import SideMasses
from .text_partition import Partition

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import Side

    from ...text_layout import TextChunk
    from ..protocol import TextProblem
    from .rows import StudentWholeRows, WholeRows


def text_readers(problem: TextProblem) -> tuple[WholeRows, StudentWholeRows]:
    """Return readers of the teacher's and the student's rows."""
    teacher, student, settings = problem.teacher, problem.student, problem.settings
    device = student.events.row.device
    # A workspace for each side: probabilities of both are needed at once.
    return (
        teacher_rows(teacher.source, teacher.columns, Workspace(device), settings),
        student_rows(student.source, student.columns, Workspace(device), settings),
    )


#: Numbers per node, in addition, that the counts of listed tokens take.
LIST_VALUES_PER_NODE = 12


class TextComputation:
    """One computation of text events.

    Args:
        problem: The problem.
        readers: Readers of the teacher's and the student's rows; None takes those of `readers`.
    """

    #: Numbers per node of the tree that an offset takes, about.
    values_per_node = 24

    def __init__(
        self, problem: TextProblem, readers: tuple[WholeRows, StudentWholeRows] | None = None
    ) -> None:
        self.problem, settings = problem, problem.settings
        teacher = problem.teacher
        self.teacher, self.student = readers or text_readers(problem)
        itemsize = torch.finfo(settings.dtype).bits // 8
        widest = max(self.teacher.row_values(full=True), self.student.row_values(full=True))
        per_node = self.values_per_node + LIST_VALUES_PER_NODE * isinstance(teacher.source, Lists)
        values = per_node * len(problem.tree) + 3 * widest
        size = max(1, settings.chunk_bytes // (itemsize * values))
        entries = max(1, settings.chunk_bytes // (64 * itemsize))
        self.chunks = plan_chunks(problem.host, problem.sizes, size, entries)

    def run(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Compute everything; the student's rows keep the gradient.

        Args:
            weight: `[]` or `[offsets]`, what every offset's gradient is multiplied by.

        Returns:
            `[offsets]` divergences, and `[N_STATS, offsets]`.
        """
        dtype, device = self.problem.settings.dtype, weight.device
        n_offsets = self.problem.sizes.n_text_offsets
        weight = weight.to(dtype).expand(n_offsets)
        per_offset = torch.zeros(n_offsets, dtype=dtype, device=device)
        stats = torch.zeros((N_STATS, n_offsets), dtype=dtype, device=device)
        for chunk in self.chunks:
            at = chunk.offsets
            per_offset[at] = self.compare(chunk, weight[at], stats[:, at])
        return per_offset, stats

    def _masses(self, side: Side, rows: WholeRows, chunk: TextChunk) -> SideMasses:
        of_side = self.problem.sides[side]
        return SideMasses(
            rows,
            of_side.table,
            of_side.events,
            self.problem.tree,
            chunk.offsets,
            chunk.sides[side],
            self.problem.settings.dtype,
        )

    def compare(self, chunk: TextChunk, weight: Tensor, stats: Tensor) -> Tensor:
        """Compare a chunk of offsets, and accumulate the gradient.

        Args:
            chunk: The offsets.
            weight: `[o]` factor of every offset's gradient.
            stats: `[N_STATS, o]`, zeros; receives the figures.

        Returns:
            `[o]` divergences.
        """
        settings = self.problem.settings
        # The teacher first: the student's probabilities must last until the gradient.
        teacher = self._masses("teacher", self.teacher, chunk)
        student = self._masses("student", self.student, chunk)
        partition = Partition(
            self.problem.tree,
            teacher,
            student,
            epsilon=settings.epsilon,
            straddled=settings.straddled,
            may_lack_rows=chunk.may_lack_rows,
        )
        value, largest, grad = partition.compare(
            settings.divergence, settings.floor, weight if settings.gradient else None
        )
        if grad is not None:
            gradient = student.backward(grad.slots, grad.stop, grad.ended)
            self.student.accumulate_full(student.flat_rows, gradient)
        counted = partition.counted
        stats[OffsetStat.TREE] = counted & partition.both_own & partition.deep
        stats[OffsetStat.NEXT_BYTE] = counted & partition.both_own & ~partition.deep
        stats[OffsetStat.ONE_ROW] = counted & ~partition.both_own
        stats[OffsetStat.LEFT_OUT] = ~(counted | partition.spoiled | partition.unlisted)
        stats[OffsetStat.SPOILED] = partition.spoiled
        stats[ListStat.UNLISTED] = partition.unlisted
        stats[OffsetStat.ENDED] = torch.maximum(teacher.ended, student.ended)
        stats[OffsetStat.STRADDLING] = torch.maximum(teacher.straddling, student.straddling)
        stats[OffsetStat.TEACHER_CONTROL] = teacher.control
        stats[OffsetStat.STUDENT_CONTROL] = student.control
        stats[OffsetStat.LARGEST_LEAF] = largest
        if teacher.lists is not None:
            stats[ListStat.TEACHER_UNLISTED] = teacher.lists.own_unlisted
        return value

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the student's tensors."""
        return self.student.gradients()
