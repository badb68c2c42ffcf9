"""Internal: what a loss takes of both models: logits, hidden states with a head, or lists."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from simct_align.top_k import TopKLogprobs

from .contract import refuse_positional
from .operator import (
    LinearNumbers,
    LinearTensors,
    LogitsTensors,
    TeacherNumbers,
    TeacherTensors,
    teacher_source,
)
from .shards import VocabularyShard, refuse_dtensor, sharded_weight

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import Side

    from .contract import Loss
    from .operator_loss import OperatorLoss
    from .shards import ShardedWeight


class Teacher(NamedTuple):
    """The checked arguments of the teacher, detached.

    Attributes:
        tensors: Its tensors. The first one has the rows.
        numbers: Soft-cap and scale.
        argument: The name of the argument with the rows, for messages.
        held: The rows of its output embedding that are on this process; None without one.
        arguments: The output embedding and the bias as they were passed.
    """

    tensors: TeacherTensors
    numbers: TeacherNumbers
    argument: str
    held: ShardedWeight | None = None
    arguments: tuple[Tensor | None, ...] = ()

    def source(self) -> Any:
        """Return `Logits`, `Head` or `Lists`, with all columns.

        Raises:
            ValueError: The teacher's output embedding is a shard of the vocabulary.
        """
        self._refuse_shard()
        return teacher_source(self.tensors, self.numbers)

    def with_logits(self, student_logits: Tensor) -> LogitsTensors:
        """Return the tensors of an operator from the student's logits.

        Raises:
            ValueError: The teacher's output embedding is a shard of the vocabulary.
        """
        self._refuse_shard()
        return LogitsTensors(*self.tensors, student_logits)

    def _refuse_shard(self) -> None:
        if self.held is not None and self.held.shard is not None:
            raise ValueError(
                "teacher_weight: shards of the vocabulary need the student's hidden states, too: "
                "use LinearSimCTLoss or LinearTextLoss, or pass full_tensor()"
            )


class LinearInputs(NamedTuple):
    """The checked arguments of a loss from the student's hidden states.

    Attributes:
        tensors: The tensors of both models.
        numbers: Soft-caps, scales, and which gradients are wanted.
        requires_grad: Whether any of the student's tensors takes a gradient.
    """

    tensors: LinearTensors
    numbers: LinearNumbers
    requires_grad: bool


def teacher_inputs(
    loss: Loss,
    positional: tuple[object, ...],
    *,
    student: str,
    teacher_logits: Tensor | TopKLogprobs | None,
    teacher_hidden: Tensor | None,
    teacher_weight: Tensor | None,
    teacher_bias: Tensor | None,
    teacher_softcap: float | None,
    teacher_scale: float,
    teacher_shard: VocabularyShard | None = None,
) -> Teacher:
    """Check the arguments of the teacher; see `SimCTLoss.forward`.

    Args:
        loss: The loss.
        positional: The positional arguments of the call, which are refused.
        student: The student's arguments in a call, for messages.
        teacher_logits: See `SimCTLoss.forward`, also for all others.
        teacher_hidden: The teacher's hidden states.
        teacher_weight: The teacher's output embedding.
        teacher_bias: The teacher's bias.
        teacher_softcap: The teacher's soft-cap.
        teacher_scale: The teacher's scale.
        teacher_shard: See `LinearSimCTLoss.forward`.

    Raises:
        TypeError: There are positional arguments, or not one form of the teacher.
        ValueError: Shapes, devices or columns do not fit, or a soft-cap is not positive.
    """
    refuse_positional(loss, positional, f"teacher_logits=..., {student}, index=...")
    numbers = TeacherNumbers(teacher_softcap or 0.0, float(teacher_scale))
    if teacher_logits is None:
        if teacher_hidden is None or teacher_weight is None:
            raise TypeError(
                f"{type(loss).__name__} needs the teacher: teacher_logits=..., or both "
                "teacher_hidden=... and teacher_weight=..."
            )
        held = sharded_weight("teacher", teacher_weight, teacher_bias, teacher_shard)
        check_head(loss, "teacher", teacher_hidden, held, teacher_softcap)
        bias = None if held.bias is None else held.bias.detach()
        tensors = TeacherTensors(teacher_hidden.detach(), held.weight.detach(), bias, None)
        arguments = (teacher_weight, teacher_bias)
        return Teacher(tensors, numbers, "teacher_hidden", held, arguments)
    head = {
        "teacher_hidden": teacher_hidden,
        "teacher_weight": teacher_weight,
        "teacher_bias": teacher_bias,
        "teacher_softcap": teacher_softcap,
        "teacher_shard": teacher_shard,
    }
    if (doubled := next((name for name, value in head.items() if value is not None), None)) or (
        teacher_scale != 1.0
    ):
        raise TypeError(
            f"{type(loss).__name__}: {doubled or 'teacher_scale'} belongs to hidden states, and "
            "teacher_logits is given: leave one of them out"
        )
    if isinstance(teacher_logits, TopKLogprobs):
        lists = teacher_logits
        loss.check_lists(lists)
        device = loss.columns.student_ids.device
        ids, logprobs = (lists.to(device) if lists.is_ragged else lists).rows_of_logits()
        loss.check_device("teacher_logits", ids)
        tensors = TeacherTensors(logprobs, None, None, ids)
    else:
        loss.check_logits("teacher", teacher_logits)
        tensors = TeacherTensors(teacher_logits.detach(), None, None, None)
    return Teacher(tensors, numbers, "teacher_logits")


def linear_inputs(
    loss: OperatorLoss,
    teacher: Teacher,
    *,
    student_hidden: Tensor,
    student_weight: Tensor,
    student_bias: Tensor | None,
    student_softcap: float | None,
    student_scale: float,
    student_shard: VocabularyShard | None,
) -> LinearInputs:
    """Check the arguments of a loss from hidden states; see `LinearSimCTLoss.forward`.

    Args:
        loss: The loss.
        teacher: The teacher's arguments.
        student_hidden: See `LinearSimCTLoss.forward`, also for all others.
        student_weight: The student's output embedding.
        student_bias: The student's bias.
        student_softcap: The student's soft-cap.
        student_scale: The student's scale.
        student_shard: The student's shard.

    Raises:
        TypeError: A tensor or a shard has a wrong type, or the loss cannot use shards.
        ValueError: Shapes, devices or columns do not fit, or a soft-cap is not positive.
    """
    held = sharded_weight("student", student_weight, student_bias, student_shard)
    student_weight, student_bias, _ = held
    check_head(loss, "student", student_hidden, held, student_softcap)
    weight_gradient = student_weight.requires_grad
    bias_gradient = student_bias is not None and student_bias.requires_grad
    return LinearInputs(
        tensors=LinearTensors(*teacher.tensors, student_hidden, student_weight, student_bias),
        numbers=LinearNumbers(
            *teacher.numbers,
            student_softcap=student_softcap or 0.0,
            student_scale=float(student_scale),
            weight_gradient=weight_gradient,
            bias_gradient=bias_gradient,
            shards=_shards(loss, teacher, held),
        ),
        requires_grad=student_hidden.requires_grad or weight_gradient or bias_gradient,
    )


def _shards(loss: OperatorLoss, teacher: Teacher, student: ShardedWeight) -> str:
    """Return the key of the shards' handle, which the loss keeps; empty without a shard."""
    held = teacher.held
    teacher_shard = None if held is None else held.shard
    if teacher_shard is None and student.shard is None:
        return ""
    loss.check_shards(lists=teacher.tensors.teacher_listed is not None)
    rows: list[tuple[Tensor, Tensor]] = []
    if held is not None and held.shard is not None and loss.moves_teacher_rows:
        pairs = zip(held[:2], teacher.arguments, strict=True)
        rows = [(own, given) for own, given in pairs if own is not None and given is not None]
    if held is not None:
        n_columns = held.columns
    elif teacher.tensors.teacher_listed is not None:
        n_columns = loss.columns.columns_needed["teacher"]
    else:
        n_columns = teacher.tensors.teacher_rows.shape[-1]
    handle = loss.shards.handle(
        {"teacher": teacher_shard, "student": student.shard},
        {"teacher": n_columns, "student": student.columns},
        tuple(own for own, _ in rows),
        tuple(given for _, given in rows),
    )
    return handle.key


def check_head(
    loss: Loss, side: Side, hidden: Tensor, held: ShardedWeight, softcap: float | None
) -> None:
    """Refuse hidden states and an output embedding that do not fit.

    Args:
        loss: The loss.
        side: `"teacher"` or `"student"`.
        hidden: The hidden states.
        held: The output embedding on this process.
        softcap: The soft-cap.

    Raises:
        ValueError: Shapes, devices or columns do not fit, or the soft-cap is not positive.
    """
    weight, bias, _ = held
    refuse_dtensor(f"{side}_hidden", hidden)
    if hidden.dim() not in (2, 3) or not hidden.is_floating_point():
        raise ValueError(
            f"{side}_hidden: expected floating [tokens, width] or [batch, length, width], "
            f"got {hidden.dtype} of shape {tuple(hidden.shape)}"
        )
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"{side}_weight: expected shape [columns, {hidden.shape[-1]}] for the width of "
            f"{side}_hidden, got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{side}_bias: expected shape {tuple(weight.shape[:1])} for the columns of "
            f"{side}_weight, got {tuple(bias.shape)}"
        )
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise ValueError(
            f"{side}_softcap: expected a positive number, or None without a soft-cap, got {softcap}"
        )
    loss.check_device(f"{side}_hidden", hidden)
    loss.check_device(f"{side}_weight", weight)
    loss.columns.check_columns(held.columns, side, f"{side}_weight")
