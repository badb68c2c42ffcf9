"""`SimCTLoss` and what it has in common with `LinearSimCTLoss`."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch

from ..divergence import Divergence, as_divergence
from .ops import Scalars, divergence_handle, logits_loss
from .outputs import LossOutput, make_metrics
from .realized import SCORES
from .tables import Tables

if TYPE_CHECKING:
    from torch import Tensor

    from .index_view import PackedIndex
    from .tables import PairTables

CANDIDATES = ("shared", "realized", "on_path")
METRICS = ("none", "multi", "full")
REDUCTIONS = ("unit", "token", "sum", "none")
MAX_PATH = 8
"""How many realized tokens a continuation begins with at most, where the loss makes the index."""
MEBIBYTE = 1 << 20
FLOAT16_GRADIENT_SCALE = 1024.0
"""float16 gradients wait for the backward pass multiplied by this, so that few underflow."""


def one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of the choices.

    Args:
        name: the argument's name, for the message.
        value: what came.
        choices: what is expected.

    Returns:
        ``value``.

    Raises:
        ValueError: it is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")
    return value


class LossBase(torch.nn.Module):
    """Keywords, tables and reductions of both losses.

    Args:
        aligner: the pair of vocabularies.
        candidates: see `SimCTLoss`, also for all others.
        score: how a path is scored.
        divergence: name or object.
        temperature: both sides' logits are divided by it.
        min_teacher_mass: units below it are left out.
        metrics: where coverage is measured.
        reduction: what the sum is divided by.
        chunk_bytes: workspace to aim for, None for the device's default.

    Raises:
        ValueError: a keyword is out of its range.
    """

    default_chunk_bytes: dict[str, int]

    def __init__(
        self,
        aligner: PairTables,
        *,
        candidates: str = "realized",
        score: str = "mean",
        divergence: str | Divergence = "reverse_kl",
        temperature: float = 1.0,
        min_teacher_mass: float = 0.0,
        metrics: str = "multi",
        reduction: str = "unit",
        chunk_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self.candidates = one_of("candidates", candidates, CANDIDATES)
        self.score = one_of("score", score, SCORES)
        self.metrics = one_of("metrics", metrics, METRICS)
        self.reduction = one_of("reduction", reduction, REDUCTIONS)
        if candidates == "on_path" and score == "mean_logit":
            raise ValueError("score: 'mean_logit' has no candidates='on_path': expected another")
        self.divergence = as_divergence(divergence)
        if not (temperature > 0.0 and math.isfinite(temperature)):
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        if not 0.0 <= min_teacher_mass <= 1.0:
            raise ValueError(f"min_teacher_mass: expected a probability, got {min_teacher_mass}")
        if chunk_bytes is not None and chunk_bytes <= 0:
            raise ValueError(f"chunk_bytes: expected a positive number, got {chunk_bytes}")
        self.temperature = float(temperature)
        self.min_teacher_mass = float(min_teacher_mass)
        self.chunk_bytes = chunk_bytes
        self.tables = Tables(aligner, continuations=candidates == "on_path")
        self._divergence = divergence_handle(self.divergence)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or copied module; the divergence gets this process's number."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._divergence = divergence_handle(self.divergence)

    def extra_repr(self) -> str:
        """Return the keywords for ``repr``."""
        return (
            f"candidates={self.candidates!r}, score={self.score!r}, divergence={self.divergence}, "
            f"temperature={self.temperature}, reduction={self.reduction!r}"
        )

    def _scalars(self, index: PackedIndex, device: torch.device, gradient: bool) -> Scalars:
        tables = self.tables
        chunk_bytes = self.chunk_bytes
        if chunk_bytes is None:
            chunk_bytes = self.default_chunk_bytes.get(
                device.type, self.default_chunk_bytes["other"]
            )
        return Scalars(
            n_shared=index.n_shared,
            n_multi=index.n_multi,
            n_teacher_steps=index.n_teacher_steps,
            n_student_steps=index.n_student_steps,
            n_teacher_entries=index.n_teacher_entries if self._on_path else 0,
            n_student_entries=index.n_student_entries if self._on_path else 0,
            stop_column=tables.stop_column,
            teacher_needed=tables.columns_needed["teacher"],
            student_needed=tables.columns_needed["student"],
            teacher_extra=tables.teacher_ids.shape[0] - tables.n_shared_tokens,
            student_extra=tables.student_ids.shape[0] - tables.n_shared_tokens,
            score=SCORES.index(self.score),
            divergence=self._divergence,
            multi=self.candidates != "shared",
            on_path=self._on_path,
            coverage_multi=self.metrics != "none" and self.candidates != "shared",
            coverage_shared=self.metrics == "full",
            gradient=gradient,
            chunk_bytes=chunk_bytes,
            temperature=self.temperature,
            min_teacher_mass=self.min_teacher_mass,
            gradient_scale=1.0,
        )

    @property
    def _on_path(self) -> bool:
        return self.candidates == "on_path"

    def _tensors(self, index: PackedIndex, packed: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        tables = self.tables
        host = tables.nothing
        if self._on_path:
            if not index.max_path:
                raise ValueError(
                    "index has no continuations, which candidates='on_path' compares: make it "
                    "with batch.index(max_path=8)"
                )
            assert index.host is not None
            host = torch.from_numpy(index.host)
        return (
            packed,
            weight,
            tables.column_of_shared,
            tables.teacher_ids,
            tables.teacher_column_of_id,
            tables.teacher_unused,
            tables.student_ids,
            tables.student_column_of_id,
            tables.student_unused,
            host,
            tables.spellings["teacher"],
            tables.spellings["student"],
            tables.teacher_leaves,
            tables.student_leaves,
        )

    def _weight(
        self, index: PackedIndex, normalizer: Tensor | float | None, student: Tensor
    ) -> Tensor:
        """Return what the units' sum is multiplied by, a 0-d tensor on the device."""
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        if self.reduction in ("sum", "none"):
            if normalizer is not None:
                raise ValueError(f"normalizer: reduction={self.reduction!r} divides by nothing")
            return torch.ones((), dtype=dtype, device=student.device)
        if isinstance(normalizer, torch.Tensor):
            total = normalizer.detach().to(device=student.device, dtype=dtype, non_blocking=True)
            if total.dim() != 0:
                raise ValueError(f"normalizer: expected one number, got shape {tuple(total.shape)}")
        else:
            number = (
                index.normalizer(self.reduction, self.candidates)
                if normalizer is None
                else normalizer
            )
            total = torch.full((), number, dtype=dtype, device=student.device)
        # Without any unit the sum is 0, and so is the loss.
        return torch.where(total == 0, 1.0, total).reciprocal()

    def _index(self, index: Any, student: Tensor, teacher: Tensor) -> PackedIndex:
        """Return an index on the device, made from the batch if that is what came."""
        if not hasattr(index, "packed"):
            index = index.index(
                student_stride=student.shape[1] if student.dim() == 3 else None,
                teacher_stride=teacher.shape[1] if teacher.dim() == 3 else None,
                max_path=MAX_PATH if self._on_path else 0,
            ).to(student.device)
        return cast("PackedIndex", index)

    def _packed(self, index: PackedIndex, device: torch.device) -> Tensor:
        packed = index.packed
        if not isinstance(packed, torch.Tensor):
            packed = torch.from_numpy(packed)
            if device.type != "cpu":
                packed = packed.to(device, non_blocking=True)
        return packed

    def _check_devices(self, **tensors: Tensor) -> None:
        expected = self.tables.student_ids.device
        for name, tensor in tensors.items():
            if tensor.device != expected:
                raise ValueError(
                    f"{name} is on {tensor.device}, but the loss is on {expected}: "
                    f"move one of them with .to()"
                )

    def _output(
        self,
        loss: Tensor,
        per_unit: Tensor,
        stats: Tensor,
        packed: Tensor,
        index: PackedIndex,
    ) -> LossOutput:
        n_units = index.n_shared + index.n_multi
        kind = packed[n_units : n_units + per_unit.shape[0]]
        measured = (
            self.metrics == "full",
            self.metrics != "none" and self.candidates != "shared",
        )
        metrics = make_metrics(per_unit, stats, kind, index, measured)
        # MULTI units that take no part are still units of the index.
        per_unit = torch.nn.functional.pad(per_unit, (0, n_units - per_unit.shape[0]))
        return LossOutput(per_unit if self.reduction == "none" else loss, per_unit, metrics)


class SimCTLoss(LossBase):
    """The SimCT loss from ready-made logits of both models.

    Use it where logits exist anyway; `LinearSimCTLoss` never builds them. Texts, scores and
    distributions are those of the paper (arXiv 2605.07711, Eqs. 7 to 9) with every text of the
    candidate set counted once and all stops as one candidate. The gradient is computed in the
    forward pass, a chunk of units at a time, and by the student's logits only.

    A unit's rows on the student's side are its own: row starts must not overlap.

    Args:
        aligner: an `Aligner`, or anything with its ``shared``, ``teacher.kinds`` and
            ``student.kinds``.
        candidates: ``"shared"`` (SHARED and SPECIAL units only), ``"realized"``, or ``"on_path"``:
            the on-path continuations as well, at all units; the index must have been made with
            ``max_path``, and the tables of spellings are taken from the aligner.
        score: ``"mean"`` (Eq. 7), ``"sum"``, ``"event"`` (disjoint events) or ``"mean_logit"``
            (what the code published with the paper does, for comparison; not for
            ``"on_path"``).
        divergence: ``"reverse_kl"``, ``"forward_kl"``, ``"tvd"``, ``"jsd"``, or an object such as
            ``JSD(beta=0.1)``.
        temperature: both sides' logits are divided by it; there is no factor T^2.
        min_teacher_mass: units at which the teacher puts less probability than this on the
            candidate set add 0; they stay in the normalizer.
        metrics: coverage over MULTI units (``"multi"``), over all (``"full"``, which needs the full
            normalizers everywhere), or not at all (``"none"``).
        reduction: ``"unit"`` and ``"token"`` divide by `AlignedIndex.normalizer`, ``"sum"`` by
            nothing, ``"none"`` returns ``per_unit`` as the loss.
        chunk_bytes: workspace to aim for; at least one row is always taken.

    Raises:
        ValueError: a keyword is out of its range.

    Complexity:
        O(units x shared tokens + path steps x vocabulary) time, O(chunk_bytes) memory besides the
        student's gradient; rows behind a continuation's path count as path steps.

    Example:
        >>> import torch
        >>> from simct_align import Aligner, Vocabulary
        >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> aligner = Aligner(teacher, student)
        >>> index = aligner.align_batch([[1, 0, 1]], [[2, 0, 1, 2]]).index()
        >>> student_logits = torch.zeros(4, 3, requires_grad=True)
        >>> out = SimCTLoss(aligner)(student_logits, torch.zeros(3, 2), index)
        >>> out.loss.backward()
        >>> out.per_unit.shape, student_logits.grad.shape
        (torch.Size([2]), torch.Size([4, 3]))
    """

    default_chunk_bytes = {"cpu": 8 * MEBIBYTE, "other": 512 * MEBIBYTE}  # noqa: RUF012

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        index: Any,
        normalizer: Tensor | float | None = None,
    ) -> LossOutput:
        """Compute the loss.

        Args:
            student_logits: ``[tokens, columns]`` or ``[batch, length, columns]``, floating.
            teacher_logits: the same for the teacher; may differ in every size.
            index: an `AlignedIndex` on the device, or an `AlignedBatch`, which is converted.
            normalizer: what to divide the sum by instead of this index's own: the sum of
                ``index.normalizer(...)`` over micro-batches or ranks.

        Returns:
            ``loss``, ``per_unit`` and ``metrics``.

        Raises:
            ValueError: shapes, devices or widths do not fit one another or the index, or a
                normalizer came with a reduction that has none.
        """
        for name, logits in (
            ("student_logits", student_logits),
            ("teacher_logits", teacher_logits),
        ):
            if logits.dim() not in (2, 3) or not logits.is_floating_point():
                raise ValueError(
                    f"{name}: expected floating [tokens, columns] or [batch, length, columns], "
                    f"got {logits.dtype} of shape {tuple(logits.shape)}"
                )
        self._check_devices(student_logits=student_logits, teacher_logits=teacher_logits)
        self.tables.check_columns(student_logits.shape[-1], "student", "student_logits")
        self.tables.check_columns(teacher_logits.shape[-1], "teacher", "teacher_logits")
        index = self._index(index, student_logits, teacher_logits)
        index.check_logits("student", "student_logits", student_logits.shape)
        index.check_logits("teacher", "teacher_logits", teacher_logits.shape)
        packed = self._packed(index, student_logits.device)
        self._check_devices(index=packed)
        weight = self._weight(index, normalizer, student_logits)
        gradient = (
            self.reduction != "none" and torch.is_grad_enabled() and student_logits.requires_grad
        )
        scalars = self._scalars(index, student_logits.device, gradient)
        if student_logits.dtype == torch.float16:
            scalars = scalars._replace(gradient_scale=FLOAT16_GRADIENT_SCALE)
        loss, per_unit, stats, _ = logits_loss(
            student_logits, teacher_logits.detach(), *self._tensors(index, packed, weight), *scalars
        )
        return self._output(loss, per_unit, stats, packed, index)
