"""Internal: `TextLoss` and `LinearTextLoss`, the losses over text events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .contract import one_of
from .forms import FromHidden, FromLogits
from .layout import IndexSizes
from .operator import FLOAT16_GRADIENT_SCALE
from .operator_loss import OperatorLoss
from .scores.on_path_plan import SIDES
from .text_columns import TextColumns
from .text_metrics import TextLossOutput, make_text_metrics
from .text_ops import TextNumbers, TextTensors, linear_text_loss, text_loss

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import AlignedIndex
    from simct_align.top_k import TopKLogprobs

    from ..divergence import Divergence
    from .backends import Backend
    from .operator import OperatorOutput

MEBIBYTE = 1 << 20


class TextBase(OperatorLoss):
    """Keywords of `TextLoss` and `LinearTextLoss`; documented there."""

    default_chunk_bytes = {"cpu": 64 * MEBIBYTE, "other": 1024 * MEBIBYTE}  # noqa: RUF012

    def __init__(
        self,
        aligner: Any,
        *,
        divergence: str | Divergence = "reverse_kl",
        epsilon: float = 0.02,
        floor: float = 1e-6,
        straddled: str = "byte",
        temperature: float = 1.0,
        reduction: str = "token",
        chunk_bytes: int | None = None,
        backend: str | Backend = "auto",
    ) -> None:
        super().__init__(
            aligner,
            divergence=divergence,
            backend=backend,
            temperature=temperature,
            reduction=reduction,
            chunk_bytes=chunk_bytes,
        )
        if reduction in ("unit", "mean"):
            raise ValueError(
                f"reduction: text events have no units; expected 'token', 'sum' or 'none', got "
                f"{reduction!r}"
            )
        for name, value in (("epsilon", epsilon), ("floor", floor)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"{name}: expected a probability below 1, got {value}")
        self.epsilon, self.floor = float(epsilon), float(floor)
        self.straddled = one_of("straddled", straddled, ("byte", "tree"))
        self.tree = TextColumns(aligner, {side: self.columns.side(side) for side in SIDES})

    @property
    def index_groups(self) -> tuple[str, ...]:
        """The groups of index sections that the loss reads in addition to the units."""
        return ("text_events",)

    def normalizer(self, index: AlignedIndex) -> int:
        """Return the student tokens of the stretches; see `Loss.normalizer`.

        Args:
            index: The index.
        """
        return index.normalizer(self.reduction, "text")

    def check_lists(self, lists: TopKLogprobs) -> None:
        """Accept lists: see `Loss`."""

    def extra_repr(self) -> str:
        """Return the keywords for `repr`."""
        return (
            f"divergence={self.divergence}, epsilon={self.epsilon}, floor={self.floor}, "
            f"straddled={self.straddled!r}, temperature={self.temperature}, "
            f"reduction={self.reduction!r}, backend={self.backend.name!r}"
        )

    def _numbers(self, index: AlignedIndex, student: Tensor, *, requires_grad: bool) -> TextNumbers:
        is_half = student.dtype == torch.float16
        return TextNumbers(
            sizes=IndexSizes.of(index),
            teacher_needed=self.columns.columns_needed["teacher"],
            student_needed=self.columns.columns_needed["student"],
            divergence=self._divergence_handle.key,
            backend=self._backend_handle.key,
            gradient=self.reduction != "none" and torch.is_grad_enabled() and requires_grad,
            chunk_bytes=self.workspace(student.device),
            temperature=self.temperature,
            epsilon=self.epsilon,
            floor=self.floor,
            straddled=self.straddled,
            gradient_scale=FLOAT16_GRADIENT_SCALE if is_half else 1.0,
            inplace=False,
        )

    def _tensors(self, index: AlignedIndex, weight: Tensor) -> TextTensors:
        assert index.host is not None
        return TextTensors(
            packed=index.packed,
            weight=weight,
            teacher_unused=self.columns.teacher_unused,
            student_unused=self.columns.student_unused,
            host=torch.from_numpy(index.host),
            **self.tree.tensors(),
        )

    def _output(self, result: OperatorOutput, index: AlignedIndex) -> TextLossOutput:
        metrics = make_text_metrics(result.per_unit, result.stats, index)
        loss = result.per_unit if self.reduction == "none" else result.loss
        return TextLossOutput(loss, result.per_unit, metrics)


class TextLoss(FromLogits[TextLossOutput], TextBase):
    """The divergence over text events, from ready-made logits of both models.

    Use it where the tokenizers cut the text differently and both models may be right. At every
    boundary of either tokenization the texts that can follow are divided into the finest events
    whose probability both models give, tokens that began before the boundary included. Two models
    that agree on the probability of every text have a divergence of 0, or nearly so; every
    objective over tokens reports one.

    A *stretch* is a run of text that both sides cover without anything unmatched and without
    control tokens. At an offset of a stretch, the mass of "the text goes on with z" is a sum over
    the tokens of that row and of earlier rows. A string z is *opened*, that is, divided by what
    follows it, where at most `epsilon` of its mass on either side belongs to tokens that end
    exactly behind z, since what follows those is in no row; or where both vocabularies have the
    same tokens below z. An offset is left out where more than `epsilon` of a side's mass belongs to
    tokens that end there off the realized path. Where one side has no row, and where tokens of
    earlier rows hold more than `epsilon`, only the next bytes are compared.

    Of a teacher that is served, the likeliest tokens of every position are enough: a
    `TopKLogprobs` in place of the teacher's logits. Texts for which it lists nothing are then one
    event, with the probability that is left (`docs/served.md`).

    Args:
        aligner: The `Aligner` of the pair.
        divergence: `"reverse_kl"`, `"forward_kl"`, `"tvd"`, `"jsd"`, or an object such as
            `JSD(beta=0.1)`.
        epsilon: The share of mass that may end unknown, in [0, 1).
        floor: The least probability of an event under the teacher, in [0, 1). The events of least
            probability decide much of a reverse KL.
        straddled: `"byte"`, or `"tree"` to divide further than the next byte where tokens straddle.
        temperature: The logits of both sides are divided by it.
        reduction: `"token"` divides by the student tokens in stretches
            (`index.normalizer("token", "text")`), `"sum"` by nothing, `"none"` returns `per_unit`.
        chunk_bytes: Workspace to aim for, in bytes.
        backend: `"auto"`, which is `"native"` (Rust) on the CPU and `"torch"` on other devices; one
            of the two; a name given to `register_backend`; or a `Backend`. A back end that is no
            `TextBackend` leaves text events to `"torch"`.

    Raises:
        TypeError: A divergence or a back end that is none.
        ValueError: A keyword is out of its range.

    Complexity:
        O(offsets × (vocabularies + nodes of the joint tree)) time, O(`chunk_bytes`) memory in
        addition to the student's gradient. On the CPU on as many threads as
        `torch.get_num_threads()`, which changes no bit of the result.

    Example:
        >>> import torch
        >>> from simct_align import Aligner, Vocabulary
        >>> teacher = Vocabulary.from_token_bytes([b"12", b"1", b"2", b"+"])
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> aligner = Aligner(teacher, student)
        >>> batch = aligner.align_batch([[3, 0, 3]], [[2, 0, 1, 2]])
        >>> student_logits = torch.zeros(4, 3, requires_grad=True)
        >>> out = TextLoss(aligner)(
        ...     teacher_logits=torch.zeros(3, 4), student_logits=student_logits, index=batch
        ... )
        >>> out.loss.backward()
        >>> student_logits.grad.shape
        torch.Size([4, 3])
    """

    from_logits = text_loss


class LinearTextLoss(FromHidden[TextLossOutput], TextBase):
    """`TextLoss` from hidden states and output embeddings.

    Use it where logits are not at hand. Keywords are those of `TextLoss`. A chunk's rows of logits
    are made and dropped again; `LinearSimCTLoss` documents the dtypes.

    Complexity:
        O(tokens × vocabulary × width) time and that of `TextLoss`; O(`chunk_bytes`) memory in
        addition to the gradients.
    """

    from_hidden = linear_text_loss
