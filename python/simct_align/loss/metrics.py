"""Metrics for the log: what took part, how far apart the models are, what the candidates hold."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..units import UnitKind

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import AlignedIndex


class UnitStat(IntEnum):
    """Rows of the figures per unit that an engine keeps.

    KEPT is 1 for units that took part, else 0; KEPT_SPECIAL is 1 for SPECIAL ones among them. The
    masses are probabilities: what a model puts on the shared vocabulary, on it and the realized
    unit, and on all candidates.
    """

    KEPT = 0
    TEACHER_SHARED = 1
    TEACHER_REALIZED = 2
    TEACHER_CANDIDATES = 3
    STUDENT_SHARED = 4
    STUDENT_REALIZED = 5
    STUDENT_CANDIDATES = 6
    KEPT_SPECIAL = 7


class MassStats(NamedTuple):
    """Where the masses of one side are among the figures per unit."""

    shared: UnitStat
    realized: UnitStat
    candidates: UnitStat


TEACHER_MASS = MassStats(
    UnitStat.TEACHER_SHARED, UnitStat.TEACHER_REALIZED, UnitStat.TEACHER_CANDIDATES
)
STUDENT_MASS = MassStats(
    UnitStat.STUDENT_SHARED, UnitStat.STUDENT_REALIZED, UnitStat.STUDENT_CANDIDATES
)


class LossMetrics(NamedTuple):
    """Detached 0-d tensors on the loss's device; reading one waits for the device, making it not.

    A mean over no unit, or one that was not asked for, is NaN.

    Attributes:
        units_shared: SHARED units that took part.
        units_special: SPECIAL units that took part.
        units_multi: MULTI units that took part.
        left_out_shared: SHARED and SPECIAL units below `min_teacher_mass`.
        left_out_multi: MULTI units below it, or all of them with `candidates="shared"`.
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


def count_special(stats: Tensor, kind: Tensor) -> None:
    """Fill the row of SPECIAL units.

    Args:
        stats: `[len(UnitStat), units that take part]`, in index order; changed in place.
        kind: `[units]` kinds of the units.
    """
    is_special = kind[: stats.shape[1]] == UnitKind.SPECIAL
    torch.mul(stats[UnitStat.KEPT], is_special, out=stats[UnitStat.KEPT_SPECIAL])


def make_metrics(
    per_unit: Tensor,
    stats: Tensor,
    index: AlignedIndex,
    *,
    mass_shared: bool,
    mass_multi: bool,
) -> LossMetrics:
    """Sum up the figures per unit, without waiting for the device.

    Args:
        per_unit: `[units]` divergences.
        stats: `[len(UnitStat), units]` of the engine.
        index: The units.
        mass_shared: Whether SHARED and SPECIAL units have their masses in `stats`.
        mass_multi: Whether MULTI units have.

    Returns:
        The metrics.
    """
    per_unit, n_shared = per_unit.detach(), index.n_shared
    kept = stats[UnitStat.KEPT]
    kept_shared, kept_multi = kept[:n_shared].sum(), kept[n_shared:].sum()
    kept_special = stats[UnitStat.KEPT_SPECIAL].sum()

    def count(number: int) -> Tensor:
        return torch.full_like(kept_shared, number)

    if mass_shared:
        measured = stats
    elif mass_multi:
        measured = stats[:, n_shared:]
    else:
        measured = stats[:, :0]
    mean = measured.mean(1)
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
        teacher_mass_shared=mean[TEACHER_MASS.shared],
        teacher_mass_candidates=mean[TEACHER_MASS.candidates],
        teacher_mass_recovered=mean[TEACHER_MASS.candidates] - mean[TEACHER_MASS.shared],
        teacher_mass_continuations=mean[TEACHER_MASS.candidates] - mean[TEACHER_MASS.realized],
        student_mass_shared=mean[STUDENT_MASS.shared],
        student_mass_candidates=mean[STUDENT_MASS.candidates],
        student_mass_recovered=mean[STUDENT_MASS.candidates] - mean[STUDENT_MASS.shared],
        student_mass_continuations=mean[STUDENT_MASS.candidates] - mean[STUDENT_MASS.realized],
    )
