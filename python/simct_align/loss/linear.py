"""Internal: `LinearSimCTLoss`, the SimCT loss from hidden states and output embeddings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .contract import refuse_positional
from .operator import LinearNumbers, LinearTensors
from .ops import linear_loss
from .simct import MEBIBYTE, SimCTBase

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.batch import AlignedBatch
    from simct_align.index import AlignedIndex, Side

    from .contract import LossOutput


class LinearSimCTLoss(SimCTBase):
    """Compute the SimCT loss from hidden states, without `[tokens, vocabulary]` logits.

    Use this loss where the logits would not fit into memory, or where most of their columns would
    never be read: SHARED units multiply with the shared rows of the weights only. The keywords are
    those of `SimCTLoss`. Logits are computed in float32 for inputs of any dtype but float64, and
    in float64 for float64. bfloat16 inputs on a GPU are multiplied without a wider copy, with
    float32 sums; the derivative by the logits is rounded to bfloat16 there.

    Complexity:
        O((units x shared tokens + path steps x vocabulary) x width) time, O(chunk_bytes) memory in
        addition to the gradients; the weight's gradient accumulates in the compute dtype.

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
            *positional: Refused, because the tensors of both models have the same types.
            teacher_hidden: `[tokens, width]` or `[batch, length, width]`, floating.
            teacher_weight: `[columns, width]` output embedding.
            student_hidden: The same for the student; every size may differ.
            student_weight: The same for the student.
            index: An `AlignedIndex` on the device, or an `AlignedBatch`, which is converted.
            normalizer: The number to divide the sum by, such as the sum of
                `index.normalizer(...)` over micro-batches or ranks. None takes the number of
                this index.
            teacher_bias: `[columns]` bias of the output embedding; None without a bias.
            student_bias: The same for the student.
            teacher_softcap: The bound of the logits' absolute values (Gemma 2: 30.0); None
                without a bound.
            student_softcap: The same for the student.
            teacher_scale: The factor of the product before the soft-cap.
            student_scale: The same for the student.

        Returns:
            `loss`, `per_unit` and `metrics`. Gradients reach the student's hidden states, weight
            and bias.

        Raises:
            TypeError: There are positional arguments, or `index` is neither an index nor a batch.
            ValueError: Shapes, devices, columns or pairs of vocabularies do not fit one another or
                the index, a soft-cap is not positive, or a normalizer came with a reduction that
                does not divide.
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
                f"{side}_softcap: expected a positive number, or None without a soft-cap, "
                f"got {softcap}"
            )
        self.check_device(f"{side}_hidden", hidden)
        self.check_device(f"{side}_weight", weight)
        self.columns.check_columns(weight.shape[0], side, f"{side}_weight")
