"""What a loss returns: the loss, the divergences per unit, and figures for the log."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from .engine import (
    KEPT,
    STUDENT_CANDIDATES,
    STUDENT_REALIZED,
    STUDENT_SHARED,
    TEACHER_CANDIDATES,
    TEACHER_REALIZED,
    TEACHER_SHARED,
)

if TYPE_CHECKING:
    from torch import Tensor

    from .index_view import PackedIndex

_SPECIAL_KIND = 2


class LossMetrics(NamedTuple):
    """Detached 0-d tensors on the loss's device; reading one waits for the device, making it not.

    A mean over no unit, or one that was not asked for, is NaN.

    Attributes:
        units_shared: SHARED units that took part.
        units_special: SPECIAL units that took part.
        units_multi: MULTI units that took part.
        left_out_shared: SHARED and SPECIAL units below ``min_teacher_mass``.
        left_out_multi: MULTI units below it, or all of them with ``candidates="shared"``.
        dropped_no_prefix: units that start their row, which no logits predict.
        dropped_dummy_prefix: units with a trimmed dummy prefix.
        divergence_shared: mean divergence of the SHARED and SPECIAL units that took part.
        divergence_multi: the same for MULTI units.
        teacher_mass_shared: mean probability that the teacher puts on the shared vocabulary.
        teacher_mass_candidates: the same for the candidate set.
        teacher_mass_recovered: the difference of the two.
        teacher_mass_continuations: what the on-path continuations alone add, beside the shared
            vocabulary and the realized unit; 0 for other candidates.
        student_mass_shared: mean probability that the student puts on the shared vocabulary.
        student_mass_candidates: the same for the candidate set.
        student_mass_recovered: the difference of the two.
        student_mass_continuations: what the on-path continuations alone add, beside the shared
            vocabulary and the realized unit; 0 for other candidates.
    """

    units_shared: Tensor
    units_special: Tensor
    units_multi: Tensor
    left_out_shared: Tensor
    left_out_multi: Tensor
    dropped_no_prefix: Tensor
    dropped_dummy_prefix: Tensor
    divergence_shared: Tensor
    divergence_multi: Tensor
    teacher_mass_shared: Tensor
    teacher_mass_candidates: Tensor
    teacher_mass_recovered: Tensor
    teacher_mass_continuations: Tensor
    student_mass_shared: Tensor
    student_mass_candidates: Tensor
    student_mass_recovered: Tensor
    student_mass_continuations: Tensor


class LossOutput(NamedTuple):
    """What a loss returns.

    Attributes:
        loss: the reduced loss, or ``[units]`` with ``reduction="none"``.
        per_unit: ``[units]`` divergences in nats, in index order (SHARED and SPECIAL units, then
            MULTI), 0 where a unit is left out; differentiable, without reduction or normalizer.
        metrics: figures for the log.
    """

    loss: Tensor
    per_unit: Tensor
    metrics: LossMetrics


def make_metrics(
    per_unit: Tensor,
    stats: Tensor,
    kind: Tensor,
    index: PackedIndex,
    coverage: tuple[bool, bool],
) -> LossMetrics:
    """Sum up the per-unit figures, without waiting for the device.

    Args:
        per_unit: ``[units]`` divergences.
        stats: ``[N_STATS, units]`` of the engine.
        kind: ``[units]`` unit kinds.
        index: for the counts of what never reached the loss.
        coverage: whether SHARED and MULTI units have their coverage in ``stats``.

    Returns:
        The figures.
    """
    per_unit, n_shared = per_unit.detach(), index.n_shared
    kept = stats[KEPT]
    special = (kind == _SPECIAL_KIND).to(kept.dtype)
    kept_shared, kept_multi = kept[:n_shared].sum(), kept[n_shared:].sum()
    kept_special = (kept * special).sum()

    def count(number: int) -> Tensor:
        return torch.full_like(kept_shared, number)

    over_shared, over_multi = coverage
    if over_shared:
        covered = stats
    elif over_multi:
        covered = stats[:, n_shared:]
    else:
        covered = stats[:, :0]
    means = covered.mean(1)
    return LossMetrics(
        units_shared=kept_shared - kept_special,
        units_special=kept_special,
        units_multi=kept_multi,
        left_out_shared=count(n_shared) - kept_shared,
        left_out_multi=count(index.n_multi) - kept_multi,
        dropped_no_prefix=count(index.dropped_no_prefix),
        dropped_dummy_prefix=count(index.dropped_dummy_prefix),
        divergence_shared=per_unit[:n_shared].sum() / kept_shared,
        divergence_multi=per_unit[n_shared:].sum() / kept_multi,
        teacher_mass_shared=means[TEACHER_SHARED],
        teacher_mass_candidates=means[TEACHER_CANDIDATES],
        teacher_mass_recovered=means[TEACHER_CANDIDATES] - means[TEACHER_SHARED],
        teacher_mass_continuations=means[TEACHER_CANDIDATES] - means[TEACHER_REALIZED],
        student_mass_shared=means[STUDENT_SHARED],
        student_mass_candidates=means[STUDENT_CANDIDATES],
        student_mass_recovered=means[STUDENT_CANDIDATES] - means[STUDENT_SHARED],
        student_mass_continuations=means[STUDENT_CANDIDATES] - means[STUDENT_REALIZED],
    )
