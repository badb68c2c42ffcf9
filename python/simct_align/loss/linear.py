"""`LinearSimCTLoss`: the same loss from hidden states and output embeddings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .contract import refuse_positional
from .ops import LinearNumbers, LinearTensors, linear_loss
from .simct import MEBIBYTE, SimCTBase

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.batch import AlignedBatch
    from simct_align.index import AlignedIndex, Side

    from .contract import LossOutput


class LinearSimCTLoss(SimCTBase):
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
        >>> hidden = torch.zeros(4, 8, requires_grad=True)
        >>> out = LinearSimCTLoss(aligner)(
        ...     teacher_hidden=torch.zeros(3, 6),
        ...     teacher_weight=torch.zeros(2, 6),
        ...     student_hidden=hidden,
        ...     student_weight=torch.zeros(3, 8),
        ...     index=index,
        ... )
        >>> out.loss.backward()
        >>> hidden.grad.shape
        torch.Size([4, 8])
    """

    default_chunk_bytes = {"cpu": 96 * MEBIBYTE, "other": 1024 * MEBIBYTE}  # noqa: RUF012

    def forward(
        self,
        *positional: object,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        student_hidden: Tensor,
        student_weight: Tensor,
        index: AlignedIndex | AlignedBatch,
        normalizer: Tensor | float | None = None,
        teacher_bias: Tensor | None = None,
        student_bias: Tensor | None = None,
        teacher_softcap: float | None = None,
        student_softcap: float | None = None,
        teacher_scale: float = 1.0,
        student_scale: float = 1.0,
    ) -> LossOutput:
        """Compute the loss with `z = softcap tanh(scale (h W^T + b) / softcap)`.

        Args:
            *positional: Refused: the two models' tensors have the same types.
            teacher_hidden: `[tokens, width]` or `[batch, length, width]`, floating.
            teacher_weight: `[columns, width]` output embedding.
            student_hidden: The same for the student.
            student_weight: The same for the student.
            index: An `AlignedIndex` on the device, or an `AlignedBatch`, which is converted.
            normalizer: What to divide the sum by instead of this index's own.
            teacher_bias: `[columns]`.
            student_bias: `[columns]`.
            teacher_softcap: Logits are squeezed into +-softcap, None for none (Gemma 2: 30.0).
            student_softcap: The same for the student.
            teacher_scale: What the product is multiplied by before the soft-cap.
            student_scale: The same for the student.

        Returns:
            `loss`, `per_unit` and `metrics`; gradients reach the student's hidden states,
            weight and bias.

        Raises:
            TypeError: Positional arguments, or an index that is none.
            ValueError: Shapes, devices, widths or pairs do not fit one another or the index, or a
                soft-cap is not positive.
        """
        refuse_positional(
            self,
            positional,
            "teacher_hidden=..., teacher_weight=..., student_hidden=..., student_weight=..., "
            "index=...",
        )
        self._check_head("teacher", teacher_hidden, teacher_weight, teacher_bias, teacher_softcap)
        self._check_head("student", student_hidden, student_weight, student_bias, student_softcap)
        index = self.take_index(
            index, teacher=teacher_hidden, student=student_hidden, argument="hidden"
        )
        weight_gradient = student_weight.requires_grad
        bias_gradient = student_bias is not None and student_bias.requires_grad
        result = linear_loss(
            LinearTensors(
                teacher_hidden=teacher_hidden.detach(),
                teacher_weight=teacher_weight.detach(),
                teacher_bias=None if teacher_bias is None else teacher_bias.detach(),
                student_hidden=student_hidden,
                student_weight=student_weight,
                student_bias=student_bias,
            ),
            self._tensors(index, self.weight(index, normalizer, student_hidden)),
            self._numbers(
                index,
                student_hidden,
                requires_grad=student_hidden.requires_grad or weight_gradient or bias_gradient,
            ),
            LinearNumbers(
                teacher_softcap=teacher_softcap or 0.0,
                teacher_scale=float(teacher_scale),
                student_softcap=student_softcap or 0.0,
                student_scale=float(student_scale),
                weight_gradient=weight_gradient,
                bias_gradient=bias_gradient,
            ),
        )
        return self._simct_output(result, index)

    def _check_head(
        self,
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
                f"{side}_weight: expected [columns, {hidden.shape[-1]}], got {tuple(weight.shape)}"
            )
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(
                f"{side}_bias: expected {tuple(weight.shape[:1])}, got {tuple(bias.shape)}"
            )
        if softcap is not None and not 0.0 < softcap < math.inf:
            raise ValueError(
                f"{side}_softcap: expected a positive number, or None for none, got {softcap}"
            )
        self.check_device(f"{side}_hidden", hidden)
        self.check_device(f"{side}_weight", weight)
        self.columns.check_columns(weight.shape[0], side, f"{side}_weight")
