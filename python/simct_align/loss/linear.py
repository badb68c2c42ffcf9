"""`LinearSimCTLoss`: the same loss from hidden states and output embeddings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from .module import FLOAT16_GRADIENT_SCALE, MEBIBYTE, LossBase
from .ops import linear_loss

if TYPE_CHECKING:
    from torch import Tensor

    from .outputs import LossOutput


class LinearSimCTLoss(LossBase):
    """`SimCTLoss` from hidden states, without the [tokens, vocabulary] logits of either model.

    Use it where the logits would not fit, or where most of their columns would never be read:
    SHARED units multiply with the shared rows of the weights only. Keywords are `SimCTLoss`'s.
    Logits are computed in float32 (float64 for float64), whatever the inputs' dtype is. bfloat16
    inputs on a GPU are multiplied without a wider copy of them, with float32 sums; the derivative
    by the logits is rounded to bfloat16 there.

    Complexity:
        O((units x shared tokens + path steps x vocabulary) x width) time, O(chunk_bytes) memory
        besides the gradients; the weight's gradient accumulates in the compute dtype.

    Example:
        >>> import torch
        >>> from simct_align import Aligner, Vocabulary
        >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> aligner = Aligner(teacher, student)
        >>> index = aligner.align_batch([[1, 0, 1]], [[2, 0, 1, 2]]).index()
        >>> hidden, weight = torch.zeros(4, 8, requires_grad=True), torch.zeros(3, 8)
        >>> out = LinearSimCTLoss(aligner)(
        ...     hidden, weight, torch.zeros(3, 6), torch.zeros(2, 6), index
        ... )
        >>> out.loss.backward()
        >>> hidden.grad.shape
        torch.Size([4, 8])
    """

    default_chunk_bytes = {"cpu": 96 * MEBIBYTE, "other": 1024 * MEBIBYTE}  # noqa: RUF012

    def forward(
        self,
        student_hidden: Tensor,
        student_weight: Tensor,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        index: Any,
        normalizer: Tensor | float | None = None,
        *,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        student_softcap: float | None = None,
        teacher_softcap: float | None = None,
        student_scale: float = 1.0,
        teacher_scale: float = 1.0,
    ) -> LossOutput:
        """Compute the loss with ``z = softcap tanh(scale (h W^T + b) / softcap)``.

        Args:
            student_hidden: ``[tokens, width]`` or ``[batch, length, width]``, floating.
            student_weight: ``[columns, width]`` output embedding.
            teacher_hidden: the same for the teacher.
            teacher_weight: the same for the teacher.
            index: an `AlignedIndex` on the device, or an `AlignedBatch`, which is converted.
            normalizer: what to divide the sum by instead of this index's own.
            student_bias: ``[columns]``.
            teacher_bias: ``[columns]``.
            student_softcap: logits are squeezed into +-softcap, None for none (Gemma 2: 30.0).
            teacher_softcap: the same for the teacher.
            student_scale: what the product is multiplied by before the soft-cap.
            teacher_scale: the same for the teacher.

        Returns:
            ``loss``, ``per_unit`` and ``metrics``; gradients reach the student's hidden states,
            weight and bias.

        Raises:
            ValueError: shapes, devices or widths do not fit one another or the index, or a soft-cap
                is not positive.
        """
        sides = (
            ("student", student_hidden, student_weight, student_bias, student_softcap),
            ("teacher", teacher_hidden, teacher_weight, teacher_bias, teacher_softcap),
        )
        for side, hidden, weight, bias, softcap in sides:
            if hidden.dim() not in (2, 3) or not hidden.is_floating_point():
                raise ValueError(
                    f"{side}_hidden: expected floating [tokens, width] or [batch, length, width], "
                    f"got {hidden.dtype} of shape {tuple(hidden.shape)}"
                )
            if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
                raise ValueError(
                    f"{side}_weight: expected [columns, {hidden.shape[-1]}], "
                    f"got {tuple(weight.shape)}"
                )
            if bias is not None and bias.shape != weight.shape[:1]:
                raise ValueError(
                    f"{side}_bias: expected {tuple(weight.shape[:1])}, got {tuple(bias.shape)}"
                )
            if softcap is not None and not 0.0 < softcap < math.inf:
                raise ValueError(
                    f"{side}_softcap: expected a positive number, or None for none, got {softcap}"
                )
            self._check_devices(**{f"{side}_hidden": hidden, f"{side}_weight": weight})
            self.tables.check_columns(weight.shape[0], side, f"{side}_weight")
        index = self._index(index, student_hidden, teacher_hidden)
        index.check_logits("student", "student_hidden", student_hidden.shape)
        index.check_logits("teacher", "teacher_hidden", teacher_hidden.shape)
        packed = self._packed(index, student_hidden.device)
        self._check_devices(index=packed)
        weight = self._weight(index, normalizer, student_hidden)
        weight_gradient = student_weight.requires_grad
        bias_gradient = student_bias is not None and student_bias.requires_grad
        gradient = (
            self.reduction != "none"
            and torch.is_grad_enabled()
            and (student_hidden.requires_grad or weight_gradient or bias_gradient)
        )
        scalars = self._scalars(index, student_hidden.device, gradient)
        if student_hidden.dtype == torch.float16:
            scalars = scalars._replace(gradient_scale=FLOAT16_GRADIENT_SCALE)
        loss, per_unit, stats, *_ = linear_loss(
            student_hidden,
            student_weight,
            student_bias,
            teacher_hidden.detach(),
            teacher_weight.detach(),
            None if teacher_bias is None else teacher_bias.detach(),
            *self._tensors(index, packed, weight),
            *scalars,
            student_softcap or 0.0,
            teacher_softcap or 0.0,
            float(student_scale),
            float(teacher_scale),
            weight_gradient,
            bias_gradient,
        )
        return self._output(loss, per_unit, stats, packed, index)
