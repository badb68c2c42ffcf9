"""Internal: the operators of `TextLoss` and `LinearTextLoss`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .backends.protocol import Head, Logits, RowSettings
from .backends.torch.text_computation import TextComputation, TextSettings
from .columns import SideColumns
from .layout import IndexSizes
from .operator import (
    DIVERGENCES,
    OperatorOutput,
    compute_dtype,
    loss_operators,
    without_autocast,
)
from .text_metrics import OffsetStat

if TYPE_CHECKING:
    from simct_align.index import Side


class TextTensors(NamedTuple):
    """The index and the joint tree; the fields after `host` are the buffers of `TextColumns`.

    Attributes:
        packed: The packed index.
        weight: `[]` or `[offsets]` factor of every offset's divergence.
        teacher_unused: See `PairColumns`, also for the student.
        host: The packed index on the host.
    """

    packed: Tensor
    weight: Tensor
    teacher_unused: Tensor
    student_unused: Tensor
    host: Tensor
    parent: Tensor
    subtree_end: Tensor
    same: Tensor
    teacher_slot_of_column: Tensor
    teacher_token_ids: Tensor
    teacher_suffixes: Tensor
    teacher_text_stops: Tensor
    student_slot_of_column: Tensor
    student_token_ids: Tensor
    student_suffixes: Tensor
    student_text_stops: Tensor


class TextNumbers(NamedTuple):
    """The numbers of both operators; the first fields are those of `IndexSizes`."""

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
    teacher_needed: int
    student_needed: int
    divergence: str
    backend: str
    gradient: bool
    chunk_bytes: int
    temperature: float
    epsilon: float
    floor: float
    straddled: str
    gradient_scale: float

    @property
    def sizes(self) -> IndexSizes:
        """The index's sizes."""
        return IndexSizes(**{name: getattr(self, name) for name in IndexSizes._fields})

    @property
    def n_values(self) -> int:
        """How many offsets there are."""
        return self.n_text_offsets

    @property
    def n_stats(self) -> int:
        """How many figures are kept for each offset."""
        return len(OffsetStat)


def _compute(
    teacher: Logits | Head, student: Logits | Head, tensors: TextTensors, numbers: TextNumbers
) -> tuple[OperatorOutput, list[Tensor]]:
    empty = tensors.packed[:0]
    student_input = student.logits if isinstance(student, Logits) else student.hidden
    with torch.no_grad(), without_autocast(tensors.packed.device.type):
        settings = TextSettings(
            rows=RowSettings(
                temperature=numbers.temperature,
                chunk_bytes=numbers.chunk_bytes,
                gradient=numbers.gradient,
                dtype=compute_dtype(student_input),
            ),
            divergence=DIVERGENCES[numbers.divergence].value,
            epsilon=numbers.epsilon,
            floor=numbers.floor,
            straddled=numbers.straddled,
        )
        columns: dict[Side, SideColumns] = {
            "teacher": SideColumns(empty, 0, empty, tensors.teacher_unused, numbers.teacher_needed),
            "student": SideColumns(empty, 0, empty, tensors.student_unused, numbers.student_needed),
        }
        weight = tensors.weight.to(settings.rows.dtype)
        computation = TextComputation(teacher, student, columns, tensors, numbers.sizes, settings)
        per_offset, stats = computation.run(weight * numbers.gradient_scale)
        loss = (per_offset * weight).sum()
        return OperatorOutput(loss, per_offset, stats), computation.gradients()


text_loss, linear_text_loss = loss_operators(
    "text_loss", "linear_text_loss", tensors=TextTensors, numbers=TextNumbers, compute=_compute
)
