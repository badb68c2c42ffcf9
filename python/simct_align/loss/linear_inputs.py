"""Internal: hidden states and output embeddings as the inputs of a loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from .contract import refuse_positional
from .operator import LinearNumbers, LinearTensors

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import Side

    from .contract import Loss


class LinearInputs(NamedTuple):
    """The checked arguments of a loss from hidden states.

    Attributes:
        tensors: The tensors; those of the teacher are detached.
        numbers: Soft-caps, scales, and which gradients are wanted.
        requires_grad: Whether any of the student's tensors takes a gradient.
    """

    tensors: LinearTensors
    numbers: LinearNumbers
    requires_grad: bool


def linear_inputs(
    loss: Loss,
    positional: tuple[object, ...],
    *,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_bias: Tensor | None,
    student_bias: Tensor | None,
    teacher_softcap: float | None,
    student_softcap: float | None,
    teacher_scale: float,
    student_scale: float,
) -> LinearInputs:
    """Check the arguments of a loss from hidden states; see `LinearSimCTLoss.forward`.

    Args:
        loss: The loss.
        positional: The positional arguments of the call, which are refused.
        teacher_hidden: See `LinearSimCTLoss.forward`, also for all others.
        teacher_weight: The teacher's output embedding.
        student_hidden: The student's hidden states.
        student_weight: The student's output embedding.
        teacher_bias: The teacher's bias.
        student_bias: The student's bias.
        teacher_softcap: The teacher's soft-cap.
        student_softcap: The student's soft-cap.
        teacher_scale: The teacher's scale.
        student_scale: The student's scale.

    Raises:
        TypeError: There are positional arguments.
        ValueError: Shapes, devices or columns do not fit, or a soft-cap is not positive.
    """
    refuse_positional(
        loss,
        positional,
        "teacher_hidden=..., teacher_weight=..., student_hidden=..., student_weight=..., index=...",
    )
    _check_head(loss, "teacher", teacher_hidden, teacher_weight, teacher_bias, teacher_softcap)
    _check_head(loss, "student", student_hidden, student_weight, student_bias, student_softcap)
    weight_gradient = student_weight.requires_grad
    bias_gradient = student_bias is not None and student_bias.requires_grad
    return LinearInputs(
        tensors=LinearTensors(
            teacher_hidden=teacher_hidden.detach(),
            teacher_weight=teacher_weight.detach(),
            teacher_bias=None if teacher_bias is None else teacher_bias.detach(),
            student_hidden=student_hidden,
            student_weight=student_weight,
            student_bias=student_bias,
        ),
        numbers=LinearNumbers(
            teacher_softcap=teacher_softcap or 0.0,
            teacher_scale=float(teacher_scale),
            student_softcap=student_softcap or 0.0,
            student_scale=float(student_scale),
            weight_gradient=weight_gradient,
            bias_gradient=bias_gradient,
        ),
        requires_grad=student_hidden.requires_grad or weight_gradient or bias_gradient,
    )


def _check_head(
    loss: Loss,
    side: Side,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
) -> None:
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
    loss.columns.check_columns(weight.shape[0], side, f"{side}_weight")
