"""Internal: the operators of `TextLoss` and `LinearTextLoss`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .backends import AutoBackend, NativeBackend, TorchBackend
from .backends.native.text_computation import NativeTextComputation
from .backends.protocol import (
    Head,
    Lists,
    Logits,
    TextBackend,
    TextProblem,
    TextRun,
    TextSettings,
    TextSide,
)
from .backends.torch.sharded_text import ShardedTextRun
from .backends.torch.text_computation import TextComputation
from .columns import SideColumns
from .layout import IndexSizes  # noqa: TC001 - an operator reads the types of its fields
from .operator import (
    BACKENDS,
    DIVERGENCES,
    OperatorOutput,
    compute_dtype,
    log_fallback,
    loss_operators,
    scale_weight,
    without_autocast,
)
from .text_columns import blocks_of, table_of, tree_of
from .text_layout import view_text_side
from .text_metrics import N_STATS

if TYPE_CHECKING:
    from simct_align.index import Side

    from .shard_plan import Shards


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
    spans: Tensor
    span_of_node: Tensor
    span_node: Tensor
    span_end_point: Tensor
    end_points: Tensor
    end_node: Tensor
    covers: Tensor
    cover_span: Tensor
    child_of_node: Tensor
    teacher_slot_of_column: Tensor
    teacher_slot_codes: Tensor
    teacher_token_ids: Tensor
    teacher_node_tokens: Tensor
    teacher_node_exact: Tensor
    teacher_suffixes: Tensor
    teacher_text_stops: Tensor
    student_slot_of_column: Tensor
    student_slot_codes: Tensor
    student_token_ids: Tensor
    student_node_tokens: Tensor
    student_node_exact: Tensor
    student_suffixes: Tensor
    student_text_stops: Tensor


class TextNumbers(NamedTuple):
    """The numbers of both operators."""

    sizes: IndexSizes
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
    inplace: bool

    @property
    def n_values(self) -> int:
        """How many offsets there are."""
        return self.sizes.n_text_offsets

    @property
    def n_stats(self) -> int:
        """How many figures are kept for each offset."""
        return N_STATS


def _compute(
    teacher: Logits | Head | Lists,
    student: Logits | Head,
    tensors: TextTensors,
    numbers: TextNumbers,
    shards: Shards | None,
) -> tuple[OperatorOutput, list[Tensor]]:
    with torch.no_grad(), without_autocast(tensors.packed.device.type):
        problem = _problem(teacher, student, tensors, numbers)
        weight = tensors.weight.to(problem.settings.dtype)
        run = _start(problem, numbers, shards)
        per_offset, stats = run.run(scale_weight(weight, numbers.gradient_scale))
        # Only back ends that take lists have figures of lists.
        stats = torch.nn.functional.pad(stats, (0, 0, 0, N_STATS - stats.shape[0]))
        loss = (per_offset * weight).sum()
        return OperatorOutput(loss, per_offset, stats), run.gradients()


def _problem(
    teacher: Logits | Head | Lists,
    student: Logits | Head,
    tensors: TextTensors,
    numbers: TextNumbers,
) -> TextProblem:
    empty = tensors.packed[:0]

    def of_side(side: Side, source: Logits | Head | Lists, unused: Tensor, needed: int) -> TextSide:
        return TextSide(
            source,
            SideColumns(empty, 0, empty, unused, empty, needed),
            table_of(tensors, side),
            view_text_side(tensors.packed, numbers.sizes, side),
        )

    student_input = student.logits if isinstance(student, Logits) else student.hidden
    return TextProblem(
        teacher=of_side("teacher", teacher, tensors.teacher_unused, numbers.teacher_needed),
        student=of_side("student", student, tensors.student_unused, numbers.student_needed),
        tree=tree_of(tensors),
        blocks=blocks_of(tensors),
        sizes=numbers.sizes,
        host=tensors.host,
        settings=TextSettings(
            temperature=numbers.temperature,
            chunk_bytes=numbers.chunk_bytes,
            gradient=numbers.gradient,
            dtype=compute_dtype(student_input),
            divergence=DIVERGENCES[numbers.divergence].value,
            epsilon=numbers.epsilon,
            floor=numbers.floor,
            straddled=numbers.straddled,
        ),
    )


def _start(problem: TextProblem, numbers: TextNumbers, shards: Shards | None) -> TextRun:
    """Begin on a back end, or on the reference if the back end refuses the problem."""
    backend = BACKENDS[numbers.backend].value
    if shards is not None:
        takes_native = backend.name in (AutoBackend.name, NativeBackend.name)
        is_native = takes_native and NativeBackend().refuses_text(problem) is None
        computes = NativeTextComputation if is_native else TextComputation
        return ShardedTextRun(problem, shards, computes)
    if not isinstance(backend, TextBackend):
        log_fallback(backend.name, "it does not compute text events")
    elif (reason := backend.refuses_text(problem)) is not None:
        log_fallback(backend.name, reason)
    else:
        return backend.start_text(problem)
    return TorchBackend().start_text(problem)


text_loss, linear_text_loss = loss_operators(
    "text_loss", "linear_text_loss", tensors=TextTensors, numbers=TextNumbers, compute=_compute
)
