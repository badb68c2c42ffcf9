"""Internal: `SimCTLoss` and `LinearSimCTLoss`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..divergence import TermwiseDivergence
from .contract import LossOutput, one_of
from .forms import FromHidden, FromLogits
from .layout import IndexSizes
from .operator import FLOAT16_GRADIENT_SCALE
from .operator_loss import OperatorLoss
from .ops import Numbers, PairTensors, linear_loss, logits_loss
from .scores.formulas import SCORES

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import AlignedIndex
    from simct_align.top_k import TopKLogprobs

    from ..divergence import Divergence
    from .backends import Backend
    from .columns import PairOfVocabularies
    from .operator import OperatorOutput

CANDIDATES = ("shared", "realized", "on_path")
METRICS = ("none", "multi", "full")
MEBIBYTE = 1 << 20


class SimCTBase(OperatorLoss):
    """The keywords of `SimCTLoss` and `LinearSimCTLoss`; `SimCTLoss` documents them.

    Args:
        aligner: The pair of vocabularies.
        candidates: The candidate set.
        score: The score of a path.
        divergence: The name of a divergence, or a `Divergence`.
        temperature: The number that the logits of both sides are divided by.
        min_teacher_mass: The smallest teacher mass of a unit that is not left out.
        metrics: The units at which masses are measured.
        reduction: What the sum over units is divided by.
        chunk_bytes: The workspace to aim for, in bytes; None takes the device's default.
        backend: The name of a back end, or a `Backend`.

    Raises:
        TypeError: `divergence` or `backend` is neither a name nor an object of its kind.
        ValueError: A keyword is out of its range, or the shared vocabulary of the aligner
            contradicts its stops.
    """

    moves_teacher_rows = True

    def __init__(
        self,
        aligner: PairOfVocabularies,
        *,
        candidates: str = "realized",
        score: str = "mean",
        divergence: str | Divergence = "reverse_kl",
        temperature: float = 1.0,
        min_teacher_mass: float = 0.0,
        metrics: str = "multi",
        reduction: str = "unit",
        chunk_bytes: int | None = None,
        backend: str | Backend = "auto",
    ) -> None:
        on_path = one_of("candidates", candidates, CANDIDATES) == "on_path"
        super().__init__(
            aligner,
            divergence=divergence,
            backend=backend,
            temperature=temperature,
            reduction=reduction,
            chunk_bytes=chunk_bytes,
            continuations=on_path,
        )
        self.candidates = candidates
        self.score = one_of("score", score, SCORES)
        self.metrics = one_of("metrics", metrics, METRICS)
        if on_path and score == "mean_logit":
            raise ValueError(
                "score: 'mean_logit' is not defined for candidates='on_path': "
                "expected 'mean', 'sum' or 'event'"
            )
        if not 0.0 <= min_teacher_mass <= 1.0:
            raise ValueError(
                f"min_teacher_mass: expected a probability in [0, 1], got {min_teacher_mass}"
            )
        self.min_teacher_mass = float(min_teacher_mass)

    @property
    def uses_multi(self) -> bool:
        """Whether MULTI units take part."""
        return self.candidates != "shared"

    @property
    def index_groups(self) -> tuple[str, ...]:
        """The groups of index sections that the loss reads in addition to the units."""
        return ("continuations",) if self.candidates == "on_path" else ()

    def extra_repr(self) -> str:
        """Return the keywords for `repr`."""
        return (
            f"candidates={self.candidates!r}, score={self.score!r}, divergence={self.divergence}, "
            f"temperature={self.temperature}, reduction={self.reduction!r}, "
            f"backend={self.backend.name!r}"
        )

    def check_lists(self, lists: TopKLogprobs) -> None:
        """Refuse candidates and scores that are not defined for lists: see `Loss`."""
        del lists
        if self.candidates == "on_path":
            raise ValueError(
                "teacher_logits: candidates='on_path' needs whole rows of logits, got "
                "TopKLogprobs: use candidates='realized' or TextLoss"
            )
        if self.score == "mean_logit":
            raise ValueError(
                "teacher_logits: score='mean_logit' is an average of logits, and TopKLogprobs has "
                "log-probabilities: use score='mean', 'sum' or 'event'"
            )

    def check_shards(self, *, lists: bool) -> None:
        """Refuse what needs whole rows, and divergences without terms: see `OperatorLoss`."""
        if self.candidates == "on_path":
            raise ValueError(
                "candidates='on_path' needs whole rows of logits, which no process has with shards "
                "of the vocabulary: use candidates='realized'"
            )
        if lists:
            raise ValueError(
                "teacher_logits: TopKLogprobs and student_shard cannot be combined in "
                "LinearSimCTLoss: use LinearTextLoss, or a student without shards"
            )
        if not isinstance(self.divergence, TermwiseDivergence):
            raise TypeError(
                "divergence: shards of the vocabulary need a TermwiseDivergence, whose candidates "
                f"can be added up in parts, got {type(self.divergence).__name__}"
            )

    @property
    def _mass_multi(self) -> bool:
        return self.metrics != "none" and self.uses_multi

    @property
    def _mass_shared(self) -> bool:
        return self.metrics == "full"

    def _numbers(self, index: AlignedIndex, student: Tensor, *, requires_grad: bool) -> Numbers:
        columns = self.columns
        teacher_columns, student_columns = columns.side("teacher"), columns.side("student")
        is_half = student.dtype == torch.float16
        return Numbers(
            sizes=IndexSizes.of(index),
            stop_column=columns.stop_column,
            teacher_needed=teacher_columns.needed,
            teacher_extra=teacher_columns.n_extra,
            student_needed=student_columns.needed,
            student_extra=student_columns.n_extra,
            score=self.score,
            divergence=self._divergence_handle.key,
            backend=self._backend_handle.key,
            multi=self.uses_multi,
            on_path=self.candidates == "on_path",
            mass_multi=self._mass_multi,
            mass_shared=self._mass_shared,
            gradient=self.reduction != "none" and torch.is_grad_enabled() and requires_grad,
            chunk_bytes=self.workspace(student.device),
            temperature=self.temperature,
            min_teacher_mass=self.min_teacher_mass,
            gradient_scale=FLOAT16_GRADIENT_SCALE if is_half else 1.0,
            inplace=False,
        )

    def _tensors(self, index: AlignedIndex, weight: Tensor) -> PairTensors:
        columns = self.columns
        host = torch.empty(0, dtype=torch.int64)
        if index.host is not None:
            host = torch.from_numpy(index.host)
        return PairTensors(
            packed=index.packed,
            weight=weight,
            column_of_shared=columns.column_of_shared,
            teacher_ids=columns.teacher_ids,
            teacher_column_of_id=columns.teacher_column_of_id,
            teacher_unused=columns.teacher_unused,
            teacher_code_of_id=columns.teacher_code_of_id,
            student_ids=columns.student_ids,
            student_column_of_id=columns.student_column_of_id,
            student_unused=columns.student_unused,
            student_code_of_id=columns.student_code_of_id,
            host=host,
            teacher_spellings=columns.spellings["teacher"],
            student_spellings=columns.spellings["student"],
            teacher_last_token=columns.teacher_last_token,
            teacher_one_sided_token=columns.teacher_one_sided_token,
            student_last_token=columns.student_last_token,
            student_one_sided_token=columns.student_one_sided_token,
        )

    def _output(self, result: OperatorOutput, index: AlignedIndex) -> LossOutput:
        return self.output(
            result.loss,
            result.per_unit,
            result.stats,
            index,
            mass_shared=self._mass_shared,
            mass_multi=self._mass_multi,
        )


class SimCTLoss(FromLogits[LossOutput], SimCTBase):
    """Compute the SimCT loss from the logits of both models.

    Use this loss where the logits exist anyway; `LinearSimCTLoss` never builds them. Candidates,
    scores and distributions are those of the paper (arXiv 2605.07711, Eqs. 7 to 9), with two
    rules: every text of the candidate set counts once, and all stops together are one candidate.
    The gradient is computed in the forward pass, a chunk of units at a time, by the student's
    logits only. There is no second derivative.

    Two units must not share a row of the student's logits: row starts must not overlap.

    Of a teacher that is served, the likeliest tokens of every position are enough: a
    `TopKLogprobs` in place of the teacher's logits. The shared tokens that are not listed are then
    one candidate of both sides (`docs/served.md`).

    Args:
        aligner: An `Aligner`, or an object with the attributes `shared`, `teacher.kinds`,
            `student.kinds` and `digest`, and with `spellings` for `"on_path"`.
        candidates: The candidate set. `"shared"` compares SHARED and SPECIAL units only.
            `"realized"` adds MULTI units, and the realized unit as a candidate there.
            `"on_path"` also adds the on-path continuations at all units. The index must then be
            made with `max_path=`.
        score: The score of a path: `"mean"` (Eq. 7), `"sum"`, `"event"` (disjoint events), or
            `"mean_logit"`, the score of the code published with the paper, for comparison.
            `"mean_logit"` is not defined for `"on_path"`.
        divergence: `"reverse_kl"`, `"forward_kl"`, `"tvd"`, `"jsd"`, or a `Divergence` such as
            `JSD(beta=0.1)`.
        temperature: The number that the logits of both sides are divided by. The loss is not
            multiplied by its square.
        min_teacher_mass: A probability. A unit at which the teacher's mass on the candidate set
            is smaller adds 0 to the sum, and still counts in the normalizer.
        metrics: The units at which masses are measured: `"multi"` for MULTI units, `"full"` for
            all units, which needs the log-normalizer of every prefix row, or `"none"`.
        reduction: `"unit"` (or `"mean"`) and `"token"` divide the sum over units by
            `AlignedIndex.normalizer`. `"sum"` does not divide. `"none"` returns `per_unit` as
            the loss.
        chunk_bytes: The workspace to aim for, in bytes; a chunk has at least one row. None
            takes the device's default.
        backend: `"auto"`, `"torch"`, a name given to `register_backend`, or a `Backend`.

    Raises:
        TypeError: `divergence` or `backend` is neither a name nor an object of its kind.
        ValueError: A keyword is out of its range, or the shared vocabulary of the aligner
            contradicts its stops.

    Complexity:
        O(units x shared tokens + path steps x vocabulary) time, O(chunk_bytes) memory in addition
        to the student's gradient; the rows that a continuation's path reads count as path steps.

    Example:
        >>> import torch
        >>> from simct_align import Aligner, Vocabulary
        >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> aligner = Aligner(teacher, student)
        >>> index = aligner.align_batch([[1, 0, 1]], [[2, 0, 1, 2]]).index()
        >>> student_logits = torch.zeros(4, 3, requires_grad=True)
        >>> loss_fn = SimCTLoss(aligner)
        >>> out = loss_fn(
        ...     teacher_logits=torch.zeros(3, 2), student_logits=student_logits, index=index
        ... )
        >>> out.loss.backward()
        >>> out.per_unit.shape, student_logits.grad.shape
        (torch.Size([2]), torch.Size([4, 3]))
    """

    from_logits = logits_loss
    default_chunk_bytes = {"cpu": 8 * MEBIBYTE, "other": 512 * MEBIBYTE}  # noqa: RUF012


class LinearSimCTLoss(FromHidden[LossOutput], SimCTBase):
    """Compute the SimCT loss from hidden states, without `[tokens, vocabulary]` logits.

    Use this loss where the logits would not fit into memory, or where most of their columns would
    never be read: SHARED units multiply with the shared rows of the weights only. The keywords are
    those of `SimCTLoss`. Logits are computed in float32 for inputs of any dtype but float64, and
    in float64 for float64. On a GPU, the kernels of the back end "triton" multiply bfloat16 and
    float16 inputs without a wider copy, with float32 sums. A chunk's logits, and the derivative by
    them, have the dtype of the hidden states there, as a model's own have.

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

    from_hidden = linear_loss
    default_chunk_bytes = {"cpu": 112 * MEBIBYTE, "other": 1024 * MEBIBYTE}  # noqa: RUF012
