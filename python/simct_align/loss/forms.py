"""Internal: the forms in which losses take the student: logits, or hidden states with a head."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from .model_inputs import linear_inputs, teacher_inputs
from .operator_loss import OperatorLoss

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.batch import AlignedBatch
    from simct_align.index import AlignedIndex
    from simct_align.top_k import TopKLogprobs

    from .operator import Operator
    from .shards import VocabularyShard

Output = TypeVar("Output")
"""What a loss returns."""


class FromLogits(OperatorLoss, Generic[Output]):
    """A loss from the student's logits."""

    #: The operator that computes it.
    from_logits: ClassVar[Operator]

    def forward(
        self,
        *positional: object,
        student_logits: Tensor,
        index: AlignedIndex | AlignedBatch,
        normalizer: Tensor | float | None = None,
        inplace: bool = False,
        teacher_logits: Tensor | TopKLogprobs | None = None,
        teacher_hidden: Tensor | None = None,
        teacher_weight: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        teacher_softcap: float | None = None,
        teacher_scale: float = 1.0,
    ) -> Output:
        """Compute the loss.

        Args:
            *positional: Refused, because the logits of both models have the same type.
            student_logits: `[tokens, columns]` or `[batch, length, columns]`, floating.
            index: An `AlignedIndex` on the device, with the sections that the loss reads, or an
                `AlignedBatch`, which is converted.
            normalizer: The number to divide the sum by, such as the sum of
                `index.normalizer(...)` over micro-batches or ranks. None takes the number of
                this index.
            inplace: Whether the gradient may be written over `student_logits`, which saves its
                memory, as large as the logits. They must be contiguous and no leaf, and must
                not be read any more, by this or another loss. `per_unit` is then not
                differentiable, there is one backward pass, and `torch.compile` breaks its graph
                here. Without a gradient nothing is written. `SimCTLoss` in kernels of the back
                end "triton" never makes a second copy; elsewhere it is dropped after the forward
                pass.
            teacher_logits: The same as `student_logits` for the teacher; every size may differ.
                Or a `TopKLogprobs`, of a teacher that is served (`docs/served.md`).
            teacher_hidden: In place of `teacher_logits`: hidden states `[tokens, width]` or
                `[batch, length, width]`, floating. The logits are then
                `softcap tanh(scale (h W^T + b) / softcap)`.
            teacher_weight: `[columns, width]` output embedding, with `teacher_hidden`.
            teacher_bias: `[columns]` bias of the output embedding; None without a bias.
            teacher_softcap: The bound of the logits' absolute values (Gemma 2: 30.0); None
                without a bound.
            teacher_scale: The factor of the product before the soft-cap.

        Returns:
            `loss`; `per_unit`, the divergences of all units in nats, or of all offsets of text
            events; and `metrics`.

        Raises:
            TypeError: There are positional arguments, the teacher is missing or given twice, or
                `index` is neither an index nor a batch.
            ValueError: Shapes, devices, columns or pairs of vocabularies do not fit one another or
                the index, a soft-cap is not positive, a normalizer came with a reduction that does
                not divide, the gradient cannot be written over the logits, or the loss cannot use
                lists: `SimCTLoss` with `candidates="on_path"` or `score="mean_logit"`.
        """
        teacher = teacher_inputs(
            self,
            positional,
            student="student_logits=...",
            teacher_logits=teacher_logits,
            teacher_hidden=teacher_hidden,
            teacher_weight=teacher_weight,
            teacher_bias=teacher_bias,
            teacher_softcap=teacher_softcap,
            teacher_scale=teacher_scale,
        )
        self.check_logits("student", student_logits)
        index = self.take_index(
            index,
            teacher=teacher.tensors.teacher_rows,
            student=student_logits,
            arguments=(teacher.argument, "student_logits"),
        )
        result = self.from_logits(
            teacher.with_logits(student_logits),
            self._tensors(index, self.weight(index, normalizer, student_logits)),
            self._numbers(index, student_logits, requires_grad=student_logits.requires_grad),
            teacher.numbers,
            inplace=inplace,
        )
        output: Output = self._output(result, index)
        return output

    if TYPE_CHECKING:  # type checkers see what a call takes and returns
        __call__ = forward


class FromHidden(OperatorLoss, Generic[Output]):
    """A loss from the student's hidden states."""

    #: The operator that computes it.
    from_hidden: ClassVar[Operator]

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
    ) -> Output:
        """Compute the loss with `z = softcap tanh(scale (h W^T + b) / softcap)`.

        Args:
            *positional: Refused, because the tensors of both models have the same types.
            student_hidden: `[tokens, width]` or `[batch, length, width]`, floating.
            student_weight: `[columns, width]` output embedding.
            index: An `AlignedIndex` on the device, with the sections that the loss reads, or an
                `AlignedBatch`, which is converted.
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
            TypeError: As for the loss from logits; or, with shards, a `DTensor` as hidden states,
                or a divergence that is not a `TermwiseDivergence`.
            ValueError: As for the loss from logits; or the rows do not match their shard, the
                shards of both sides are of different processes, or shards came with
                `candidates="on_path"` or lists.
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
        result = self.from_hidden(
            inputs.tensors,
            self._tensors(index, self.weight(index, normalizer, student_hidden)),
            self._numbers(index, student_hidden, requires_grad=inputs.requires_grad),
            inputs.numbers,
        )
        output: Output = self._output(result, index)
        return output

    if TYPE_CHECKING:  # type checkers see what a call takes and returns
        __call__ = forward
