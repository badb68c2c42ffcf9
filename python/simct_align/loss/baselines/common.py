"""Internal: the base classes of the baselines, and the chunk loop over units.

A baseline computes the values of a chunk of units from the log-probabilities at the units' prefixes
and along the units' paths. The gradient comes from autograd, one chunk at a time, in the forward
pass. Memory is therefore O(chunk x vocabulary), as for the SimCT losses. There is no loop over
units. `row_pairs` has the chunk loop of the baselines that compare other rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..backends.protocol import Lists, RowSettings
from ..backends.torch.list_rows import ListRows
from ..backends.torch.readers import teacher_rows
from ..backends.torch.rows import StudentLogitsRows, Workspace
from ..contract import Loss
from ..engine import chunks
from ..layout import IndexSizes, view_index
from ..metrics import UnitStat, count_special
from ..model_inputs import teacher_inputs

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.batch import AlignedBatch
    from simct_align.index import AlignedIndex
    from simct_align.top_k import TopKLogprobs

    from ..backends.protocol import Head, Logits
    from ..backends.torch.rows import Rows
    from ..columns import PairColumns, PairOfVocabularies, SideColumns
    from ..contract import LossOutput
    from ..layout import IndexView, SideUnits

_ARRAYS = 12  # about how many [chunk, vocabulary] arrays a baseline's autograd graph holds


@dataclass(frozen=True)
class UnitRows:
    """One side of a chunk of c units, the input of `Baseline.per_unit`.

    Attributes:
        log_probs: `[c, columns]` log-probabilities at the prefixes, at the loss's temperature;
            padding columns are -inf, and so are the tokens that a teacher's list lacks.
        rest: `[c]` sum of the log-probabilities of the path's tokens after the first.
        first_id: `[c]` first token of the path; None without `reads_first_ids`.
        shared_ids: `[shared]` logit columns of the shared vocabulary.
    """

    log_probs: Tensor
    rest: Tensor
    first_id: Tensor | None
    shared_ids: Tensor

    def realized(self) -> Tensor:
        """Return the log-probabilities of the realized units.

        Returns:
            `[c]` sums over the tokens of each path.

        Raises:
            ValueError: The baseline's class does not set `reads_first_ids`.
        """
        if self.first_id is None:
            raise ValueError(
                "first_id is None, but realized probabilities need the first tokens: set "
                "reads_first_ids = True in the class of the baseline"
            )
        first = self.log_probs.gather(1, self.first_id.unsqueeze(1)).squeeze(1)
        return first + self.rest


def sorted_distance(left: Tensor, right: Tensor) -> Tensor:
    """Return the L1 distances of sorted rows, with zeros at the end of the shorter rows.

    Args:
        left: `[rows, m]` probabilities.
        right: `[rows, n]` probabilities.

    Returns:
        `[rows]` distances.
    """
    a, b = (x.sort(dim=1, descending=True).values for x in (left, right))
    common = min(a.shape[1], b.shape[1])
    distance = (a[:, :common] - b[:, :common]).abs().sum(1)
    return distance + a[:, common:].sum(1) + b[:, common:].sum(1)


@dataclass(frozen=True)
class _Side:
    rows: Rows
    columns: SideColumns
    units: SideUnits

    def log_probs(self, rows: Tensor) -> Tensor:
        """Return `[n, columns]` log-probabilities; those of lists are -inf where none is listed."""
        z = self.rows.full(rows)
        return z if isinstance(self.rows, ListRows) else z.log_softmax(1)

    def rest(self, n_shared: int, size: int, dtype: torch.dtype) -> Tensor:
        """Sum the log-probabilities of the steps after the first, for all units."""
        total = torch.zeros(self.units.row.shape, dtype=dtype, device=self.units.row.device)
        paths = self.units.paths
        for steps in chunks(paths.rest_row.shape[0], size):
            log_probs = self.log_probs(paths.rest_row[steps])
            picked = log_probs.gather(1, paths.rest_id[steps].unsqueeze(1)).squeeze(1)
            total.index_add_(0, paths.rest_unit[steps] + n_shared, picked)
        return total

    def chunk(self, units: slice, log_probs: Tensor, rest: Tensor) -> UnitRows:
        first_id = self.units.first_id
        columns = self.columns
        return UnitRows(
            log_probs=log_probs,
            rest=rest,
            first_id=None if first_id is None else first_id[units],
            shared_ids=columns.ids[: columns.ids.shape[0] - columns.n_extra],
        )


class Computed(NamedTuple):
    """What a job computes of all units.

    Attributes:
        per_unit: `[units]` values.
        gradient: The gradient by the student's logits, if it is wanted.
        left_out: `[units]` whether the teacher's lists lack what a unit needs; None for no unit.
        unlisted: `[units]` probability of all tokens that the list at the prefix lacks; None for 0.
    """

    per_unit: Tensor
    gradient: Tensor | None
    left_out: Tensor | None = None
    unlisted: Tensor | None = None

    def stats(self) -> Tensor:
        """Return the statistics `[len(UnitStat), units]`, without those of SPECIAL units."""
        stats = self.per_unit.new_zeros((len(UnitStat), *self.per_unit.shape))
        stats[UnitStat.KEPT] = 1.0
        if self.left_out is not None:
            stats[UnitStat.LACKS] = self.left_out
            stats[UnitStat.KEPT] -= stats[UnitStat.LACKS]
        if self.unlisted is not None:
            stats[UnitStat.TEACHER_UNLISTED] = self.unlisted
        return stats


@dataclass(frozen=True)
class Job(ABC):
    """One call of a baseline.

    Attributes:
        columns: The logit columns of both sides.
        teacher: The teacher's logits, or its hidden states and output embedding.
        student_logits: The student's logits.
        index: The units.
        settings: The temperature, the workspace, the dtype, and whether the gradient is wanted.
    """

    columns: PairColumns
    teacher: Logits | Head | Lists
    student_logits: Tensor
    index: IndexView
    settings: RowSettings

    @abstractmethod
    def run(self, weight: Tensor) -> Computed:
        """Compute all units.

        Args:
            weight: `[]` or `[units]` factor of every unit's gradient.
        """

    def open_rows(self) -> tuple[Rows, StudentLogitsRows]:
        """Return readers of the teacher's and of the student's rows, with shared buffers."""
        columns, work = self.columns, Workspace(self.student_logits.device)
        teacher = teacher_rows(self.teacher, columns.side("teacher"), work, self.settings)
        return teacher, StudentLogitsRows(
            self.student_logits, columns.side("student"), work, self.settings
        )

    def chunk_size(self) -> int:
        """Return the number of rows whose autograd graph fits into the workspace."""
        teacher = self.teacher
        of_teacher = (
            self.columns.side("teacher").needed if isinstance(teacher, Lists) else teacher.columns
        )
        widest = max(of_teacher, self.student_logits.shape[-1])
        itemsize = torch.finfo(self.settings.dtype).bits // 8
        return max(1, self.settings.chunk_bytes // (itemsize * _ARRAYS * widest))


@dataclass(frozen=True)
class _UnitJob(Job):
    """The chunk loop over units."""

    baseline: Baseline

    def run(self, weight: Tensor) -> Computed:
        """See `Job`."""
        gradient = self.settings.gradient
        index, dtype, size = self.index, self.settings.dtype, self.chunk_size()
        teacher_rows, rows = self.open_rows()
        teacher = _Side(teacher_rows, self.columns.side("teacher"), index.teacher)
        student = _Side(rows, self.columns.side("student"), index.student)

        n_multi = index.n_multi if self.baseline.uses_multi else 0
        n_units = index.n_shared + n_multi
        if n_multi:
            rests = [side.rest(index.n_shared, size, dtype) for side in (teacher, student)]
        else:
            rests = [torch.zeros(n_units, dtype=dtype, device=weight.device)] * 2
        teacher_rest, student_rest = rests
        weight = weight.expand(n_units)
        per_unit = torch.zeros(n_units, dtype=dtype, device=weight.device)
        d_rest = torch.zeros_like(student_rest)
        left_out = torch.zeros(n_units, dtype=torch.bool, device=weight.device)
        unlisted = torch.zeros_like(per_unit)
        for units in chunks(n_units, size):
            at = index.teacher.row[units]
            of_teacher = teacher.chunk(units, teacher.log_probs(at), teacher_rest[units])
            if isinstance(teacher_rows, ListRows):
                left_out[units] = self.baseline.lacks(of_teacher)
                unlisted[units] = teacher_rows.unlisted(at)
            with torch.set_grad_enabled(gradient):
                z = rows.full(index.student.row[units]).detach().requires_grad_(gradient)
                rest = student_rest[units].detach().requires_grad_(gradient)
                value = self.baseline.per_unit(
                    teacher=of_teacher, student=student.chunk(units, z.log_softmax(1), rest)
                )
                value = value.masked_fill(left_out[units], 0.0)
            per_unit[units] = value.detach()
            if gradient:
                by_z, by_rest = torch.autograd.grad(
                    value, (z, rest), weight[units], materialize_grads=True
                )
                rows.write_full(index.student.row[units], by_z)
                d_rest[units] = by_rest
        if not gradient:
            return Computed(per_unit, None, left_out, unlisted)
        if n_multi:
            self._write_rest(rows, d_rest[index.n_shared :], size)
        return Computed(per_unit, rows.gradients()[0], left_out, unlisted)

    def _write_rest(self, rows: StudentLogitsRows, d_rest: Tensor, size: int) -> None:
        paths = self.index.student.paths
        for steps in chunks(paths.rest_row.shape[0], size):
            at = paths.rest_row[steps]
            grad = d_rest.index_select(0, paths.rest_unit[steps]).unsqueeze(1)
            gradient = rows.full(at).softmax(1).mul_(-grad)
            token = paths.rest_id[steps].unsqueeze(1)
            gradient.scatter_(1, token, gradient.gather(1, token) + grad)
            rows.write_full(at, gradient)


class _ChunkedSum(torch.autograd.Function):
    """`sum(weight * per_unit)`, its gradient and statistics, a chunk of units at a time."""

    @staticmethod
    def forward(
        ctx: Any, student_logits: Tensor, weight: Tensor, job: Job
    ) -> tuple[Tensor, Tensor, Tensor]:
        del student_logits  # the job has it
        computed = job.run(weight)
        stats = computed.stats()
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)
        ctx.job, ctx.weight, ctx.gradient = job, weight, computed.gradient
        return (computed.per_unit * weight).sum(), computed.per_unit, stats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, d_loss: Tensor | None, d_per_unit: Tensor | None, d_stats: None
    ) -> tuple[Tensor | None, None, None]:
        del d_stats
        gradient, ctx.gradient = ctx.gradient, None
        if d_loss is None and d_per_unit is None:
            return None, None, None
        if gradient is not None and d_per_unit is None:
            assert d_loss is not None
            return gradient.mul_(d_loss.to(gradient.dtype)), None, None
        # A second backward pass, or one from `per_unit`, computes the gradient anew.
        weight = torch.zeros_like(ctx.weight) if d_loss is None else ctx.weight * d_loss
        weight = weight if d_per_unit is None else weight + d_per_unit
        job = replace(ctx.job, settings=replace(ctx.job.settings, gradient=True))
        return job.run(weight).gradient, None, None


class ChunkedLoss(Loss, ABC):
    """The call that all baselines have in common; a subclass makes the job of a call.

    Args:
        aligner: The pair of vocabularies.
        temperature: The number that the logits of both sides are divided by.
        reduction: What the sum over units is divided by; see `Loss`.
        chunk_bytes: The workspace to aim for, in bytes; None takes the device's default.

    Raises:
        ValueError: A keyword is out of its range, or the shared vocabulary of the aligner
            contradicts its stops.

    Complexity:
        O(chunk_bytes) memory in addition to the student's gradient.
    """

    #: Whether the loss reads every unit's first token; the index then needs `first_ids=True`.
    reads_first_ids: bool = False

    default_chunk_bytes = {"other": 1 << 26}  # noqa: RUF012

    def __init__(
        self,
        aligner: PairOfVocabularies,
        *,
        temperature: float = 1.0,
        reduction: str = "unit",
        chunk_bytes: int | None = None,
    ) -> None:
        super().__init__(
            aligner, temperature=temperature, reduction=reduction, chunk_bytes=chunk_bytes
        )

    @property
    def index_groups(self) -> tuple[str, ...]:
        """The groups of index sections that the loss reads in addition to the units."""
        return ("first_ids",) if self.reads_first_ids else ()

    @abstractmethod
    def make_job(self, **inputs: Any) -> Job:
        """Return the job of a call.

        Args:
            **inputs: The attributes of `Job`.
        """

    def forward(
        self,
        *positional: object,
        student_logits: Tensor,
        index: AlignedIndex | AlignedBatch,
        normalizer: Tensor | float | None = None,
        teacher_logits: Tensor | TopKLogprobs | None = None,
        teacher_hidden: Tensor | None = None,
        teacher_weight: Tensor | None = None,
        teacher_bias: Tensor | None = None,
        teacher_softcap: float | None = None,
        teacher_scale: float = 1.0,
    ) -> LossOutput:
        """Compute the objective.

        Args:
            *positional: Refused, because the logits of both models have the same type.
            student_logits: `[tokens, columns]` or `[batch, length, columns]`, floating.
            index: An `AlignedIndex` on the device, or an `AlignedBatch`, which is converted.
            normalizer: The number to divide the sum by, such as the sum of
                `index.normalizer(...)` over micro-batches or ranks. None takes the number of
                this index.
            teacher_logits: The same as `student_logits` for the teacher; every size may differ.
                `ALMLoss`, and `ULDLoss` with `top_k`, also take a `TopKLogprobs`.
            teacher_hidden: In place of `teacher_logits`; see `SimCTLoss`, also for all others.
            teacher_weight: The teacher's output embedding.
            teacher_bias: The teacher's bias.
            teacher_softcap: The teacher's soft-cap.
            teacher_scale: The teacher's scale.

        Returns:
            `loss`, `per_unit` and `metrics`; the masses of the metrics are NaN.

        Raises:
            TypeError: There are positional arguments, the teacher is missing, given twice or a
                `TopKLogprobs` that the loss cannot use, or `index` is neither an index nor a batch.
            ValueError: Shapes, devices, columns or pairs of vocabularies do not fit one another or
                the index, or a normalizer came with a reduction that does not divide.
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
        weight = self.weight(index, normalizer, student_logits)
        wants_gradient = (
            self.reduction != "none" and torch.is_grad_enabled() and student_logits.requires_grad
        )
        job = self.make_job(
            columns=self.columns,
            teacher=teacher.source(),
            student_logits=student_logits.detach(),
            index=view_index(index.packed, IndexSizes.of(index)),
            settings=RowSettings(
                temperature=self.temperature,
                chunk_bytes=self.workspace(student_logits.device),
                gradient=wants_gradient,
                dtype=weight.dtype,
            ),
        )
        loss, per_unit, stats = _ChunkedSum.apply(student_logits, weight, job)
        count_special(stats, job.index.kind)
        return self.output(loss, per_unit, stats, index)

    if TYPE_CHECKING:  # type checkers see what a call takes and returns
        __call__ = forward


class Baseline(ChunkedLoss):
    """The base class of the baselines, over the units of an `AlignedIndex`.

    Use a subclass. A new baseline implements `per_unit` with differentiable operations. It sets
    `uses_multi` to False if it reads no MULTI units, and `reads_first_ids` to True if it reads
    the first tokens of the units.

    Args:
        aligner: The pair of vocabularies.
        temperature: The number that the logits of both sides are divided by.
        reduction: What the sum over units is divided by; see `Loss`.
        chunk_bytes: The workspace to aim for, in bytes; None takes the device's default.

    Raises:
        ValueError: A keyword is out of its range, or the shared vocabulary of the aligner
            contradicts its stops.

    Complexity:
        O(chunk_bytes) memory in addition to the student's gradient.

    Example:
        >>> from simct_align import Aligner, Vocabulary
        >>> class FirstTokenGap(Baseline):
        ...     reads_first_ids = True
        ...
        ...     def per_unit(self, *, teacher, student):
        ...         return (teacher.realized() - student.realized()).square()
        >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> aligner = Aligner(teacher, student)
        >>> batch = aligner.align_batch([[1, 0, 1]], [[2, 0, 1, 2]])
        >>> logits = {"teacher_logits": torch.zeros(3, 2), "student_logits": torch.zeros(4, 3)}
        >>> FirstTokenGap(aligner)(**logits, index=batch).per_unit.shape
        torch.Size([2])
    """

    @abstractmethod
    def per_unit(self, *, teacher: UnitRows, student: UnitRows) -> Tensor:
        """Return the values of a chunk of units, differentiable by the student's side.

        Args:
            teacher: The teacher's side.
            student: The student's side; gradients reach `log_probs` and `rest`.

        Returns:
            `[c]` values.
        """

    def lacks(self, teacher: UnitRows) -> Tensor:
        """Return the units for which the lists of a teacher lack what `per_unit` reads.

        These units are left out and counted. A baseline that takes lists implements this method,
        and `check_lists`, which refuses lists otherwise.

        Args:
            teacher: The teacher's side.

        Returns:
            `[c]` bool.
        """
        raise NotImplementedError(f"{type(self).__name__} does not take lists")

    def make_job(self, **inputs: Any) -> Job:
        """Return the job of a call: see `ChunkedLoss`."""
        return _UnitJob(baseline=self, **inputs)


class TopKBaseline(Baseline):
    """The base class of baselines over units of one token, of all tokens or of the top k.

    Args:
        aligner: The pair of vocabularies.
        top_k: The number of tokens to compare; None compares all.
        **keywords: The keywords of `Baseline`.

    Raises:
        ValueError: `top_k` is not positive, or a keyword is out of its range.
    """

    @property
    def uses_multi(self) -> bool:
        """Whether MULTI units take part: False."""
        return False

    def __init__(self, aligner: Any, *, top_k: int | None = None, **keywords: Any) -> None:
        super().__init__(aligner, **keywords)
        if top_k is not None and top_k <= 0:
            raise ValueError(f"top_k: expected a positive number, got {top_k}")
        self.top_k = top_k
