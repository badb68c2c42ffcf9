"""Internal: `LinearSimCTLoss`, the SimCT loss from hidden states and output embeddings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .model_inputs import linear_inputs, teacher_inputs
from .ops import linear_loss
from .simct import MEBIBYTE, SimCTBase

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.batch import AlignedBatch
    from simct_align.index import AlignedIndex
    from simct_align.top_k import TopKLogprobs

    from .contract import LossOutput
    from .shards import VocabularyShard


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

    def forget_teacher_rows(self) -> None:
        """Move the teacher's rows again in the next call with `teacher_shard=`.

        The rows of the shared tokens are moved to the process that compares them, and kept for
        calls with the same `teacher_weight`. A change of the weight that PyTorch counts, such as
        `copy_` or `load_state_dict`, is noticed. Call this method on all processes after a change
        that it does not count, through `.data`.
        """
        self.shards.forget()

    default_chunk_bytes = {"cpu": 96 * MEBIBYTE, "other": 1024 * MEBIBYTE}  # noqa: RUF012

    def forward(
        self,
        *positional: object,
        student_hidden: Tensor,
        student_weight: Tensor,
        index: AlignedIndex | AlignedBatch,
        normalizer: Tensor | float | None = None,
        teacher_hidden: Tensor | None = None,
        teacher_weight: Tensor | None = None,
        teacher_logits: Tensor | TopKLogprobs | None = None,
        teacher_bias: Tensor | None = None,
        student_bias: Tensor | None = None,
        teacher_softcap: float | None = None,
        student_softcap: float | None = None,
        teacher_scale: float = 1.0,
        student_scale: float = 1.0,
        teacher_shard: VocabularyShard | None = None,
        student_shard: VocabularyShard | None = None,
    ) -> LossOutput:
        """Compute the loss with `z = softcap tanh(scale (h W^T + b) / softcap)`.

        Args:
            *positional: Refused, because the tensors of both models have the same types.
            student_hidden: `[tokens, width]` or `[batch, length, width]`, floating.
            student_weight: `[columns, width]` output embedding.
            index: An `AlignedIndex` on the device, or an `AlignedBatch`, which is converted.
            normalizer: The number to divide the sum by, such as the sum of
                `index.normalizer(...)` over micro-batches or ranks. None takes the number of
                this index.
            teacher_hidden: The same as `student_hidden` for the teacher; every size may differ.
            teacher_weight: The same for the teacher.
            teacher_logits: In place of both, logits `[tokens, columns]` or
                `[batch, length, columns]`, or a `TopKLogprobs`; see `SimCTLoss`.
            teacher_bias: `[columns]` bias of the output embedding; None without a bias.
            student_bias: The same for the student.
            teacher_softcap: The bound of the logits' absolute values (Gemma 2: 30.0); None
                without a bound.
            student_softcap: The same for the student.
            teacher_scale: The factor of the product before the soft-cap.
            student_scale: The same for the student.
            teacher_shard: Which rows of the teacher's output embedding `teacher_weight` and
                `teacher_bias` are, with tensor parallelism: see `VocabularyShard`. None for all
                rows, and where `teacher_weight` is a `DTensor`, which says it itself.
            student_shard: The same for the student. Every process of the group has the same
                hidden states and index, and gets the same loss and metrics.

        Returns:
            `loss`, `per_unit` and `metrics`. Gradients reach the student's hidden states, weight
            and bias. With shards, those of weight and bias are of the rows of this process, and
            that of the hidden states is the sum over the processes, unless
            `partial_hidden_gradient`.

        Raises:
            TypeError: As for `SimCTLoss`; or, with shards, a `DTensor` as hidden states, or a
                divergence that is not a `TermwiseDivergence`.
            ValueError: As for `SimCTLoss`; or the rows do not match their shard, the shards of both
                sides are of different processes, or shards came with `candidates="on_path"` or
                lists.
        """
        teacher = teacher_inputs(
            self,
            positional,
            student="student_hidden=..., student_weight=...",
            teacher_logits=teacher_logits,
            teacher_hidden=teacher_hidden,
            teacher_weight=teacher_weight,
            teacher_bias=teacher_bias,
            teacher_softcap=teacher_softcap,
            teacher_scale=teacher_scale,
            teacher_shard=teacher_shard,
        )
        inputs = linear_inputs(
            self,
            teacher,
            student_hidden=student_hidden,
            student_weight=student_weight,
            student_bias=student_bias,
            student_softcap=student_softcap,
            student_scale=student_scale,
            student_shard=student_shard,
        )
        index = self.take_index(
            index,
            teacher=teacher.tensors.teacher_rows,
            student=student_hidden,
            arguments=(teacher.argument, "student_hidden"),
        )
        result = linear_loss(
            inputs.tensors,
            self._tensors(index, self.weight(index, normalizer, student_hidden)),
            self._numbers(index, student_hidden, requires_grad=inputs.requires_grad),
            inputs.numbers,
        )
        return self._simct_output(result, index)

    if TYPE_CHECKING:  # type checkers see what a call takes and returns
        __call__ = forward
