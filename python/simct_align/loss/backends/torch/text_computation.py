"""Internal: the chunk loop over the offsets of text events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...text_columns import table_of, tree_of
from ...text_layout import plan_chunks, view_text_side
from ...text_metrics import OffsetStat
from ..protocol import Head
from .linear_rows import LinearRows, StudentLinearRows
from .rows import LogitsRows, StudentLogitsRows, Workspace
from .text import SideMasses
from .text_partition import Partition

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import Side

    from ....divergence import Divergence
    from ...columns import SideColumns
    from ...layout import IndexSizes
    from ...text_layout import TextChunk
    from ..protocol import Logits, RowSettings
    from .rows import Rows, StudentRows

_ARRAYS = 24  # numbers per node that an offset takes, about


@dataclass(frozen=True)
class TextSettings:
    """The caller's choices.

    Attributes:
        rows: How rows are read and written.
        divergence: The divergence.
        epsilon: The share of mass that may end unknown.
        floor: The least probability of a leaf under the teacher.
        straddled: `"byte"` or `"tree"`; see `Partition`.
    """

    rows: RowSettings
    divergence: Divergence
    epsilon: float
    floor: float
    straddled: str


class TextComputation:
    """One computation of text events.

    Args:
        teacher: The source of the teacher's logits.
        student: The source of the student's.
        columns: Columns of both sides.
        tensors: The `TextTensors` of the operator.
        sizes: The sizes of the index.
        settings: The caller's choices.
    """

    def __init__(
        self,
        teacher: Logits | Head,
        student: Logits | Head,
        columns: dict[Side, SideColumns],
        tensors: Any,
        sizes: IndexSizes,
        settings: TextSettings,
    ) -> None:
        self._settings = settings
        work = Workspace(tensors.packed.device)
        self._teacher: Rows
        self._student: StudentRows
        if isinstance(teacher, Head):
            self._teacher = LinearRows(teacher, columns["teacher"], work, settings.rows)
        else:
            self._teacher = LogitsRows(teacher.logits, columns["teacher"], work, settings.rows)
        if isinstance(student, Head):
            self._student = StudentLinearRows(student, columns["student"], work, settings.rows)
        else:
            self._student = StudentLogitsRows(
                student.logits, columns["student"], work, settings.rows
            )
        self._tree = tree_of(tensors)
        self._tables = {side: table_of(tensors, side) for side in columns}
        self._views = {side: view_text_side(tensors.packed, sizes, side) for side in columns}
        self._n_offsets = sizes.n_text_offsets
        itemsize = torch.finfo(settings.rows.dtype).bits // 8
        widest = max(self._teacher.row_values(full=True), self._student.row_values(full=True))
        values = _ARRAYS * len(self._tree) + 3 * widest
        size = max(1, settings.rows.chunk_bytes // (itemsize * values))
        entries = max(1, settings.rows.chunk_bytes // (64 * itemsize))
        self._chunks = plan_chunks(tensors.host, sizes, size, entries)

    def run(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Compute everything; the student's rows keep the gradient.

        Args:
            weight: `[]` or `[offsets]`, what every offset's gradient is multiplied by.

        Returns:
            `[offsets]` divergences, and `[len(OffsetStat), offsets]`.
        """
        dtype, device = self._settings.rows.dtype, weight.device
        weight = weight.expand(self._n_offsets)
        per_offset = torch.zeros(self._n_offsets, dtype=dtype, device=device)
        stats = torch.zeros((len(OffsetStat), self._n_offsets), dtype=dtype, device=device)
        for chunk in self._chunks:
            at = chunk.offsets
            per_offset[at] = self._compare(chunk, weight[at], stats[:, at])
        return per_offset, stats

    def _masses(self, side: Side, rows: Rows, chunk: TextChunk) -> SideMasses:
        return SideMasses(
            rows,
            self._tables[side],
            self._views[side],
            self._tree,
            chunk.offsets,
            chunk.sides[side],
            self._settings.rows.dtype,
        )

    def _compare(self, chunk: TextChunk, weight: Tensor, stats: Tensor) -> Tensor:
        settings = self._settings
        # The teacher first: the student's probabilities must last until the gradient.
        teacher = self._masses("teacher", self._teacher, chunk)
        student = self._masses("student", self._student, chunk)
        partition = Partition(
            self._tree,
            teacher,
            student,
            epsilon=settings.epsilon,
            straddled=settings.straddled,
            may_lack_rows=chunk.may_lack_rows,
        )
        value, largest, grad = partition.compare(
            settings.divergence, settings.floor, weight if settings.rows.gradient else None
        )
        if grad is not None:
            gradient = student.backward(grad.slots, grad.stop, grad.ended)
            self._student.accumulate_full(student.flat_rows, gradient)
        counted = partition.counted
        stats[OffsetStat.TREE] = counted & partition.both_own & partition.deep
        stats[OffsetStat.NEXT_BYTE] = counted & partition.both_own & ~partition.deep
        stats[OffsetStat.ONE_ROW] = counted & ~partition.both_own
        stats[OffsetStat.LEFT_OUT] = ~counted & ~partition.spoiled
        stats[OffsetStat.SPOILED] = partition.spoiled
        stats[OffsetStat.ENDED] = torch.maximum(teacher.ended, student.ended)
        stats[OffsetStat.STRADDLING] = torch.maximum(teacher.straddling, student.straddling)
        stats[OffsetStat.TEACHER_CONTROL] = teacher.control
        stats[OffsetStat.STUDENT_CONTROL] = student.control
        stats[OffsetStat.LARGEST_LEAF] = largest
        return value

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the student's tensors."""
        return self._student.gradients()
