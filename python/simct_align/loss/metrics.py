"""Internal: metrics for the log, from the statistics of the units."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import torch

from ..units import UnitKind

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import AlignedIndex


class UnitStat(IntEnum):
    """The rows of the statistics that an engine keeps for every unit.

    KEPT is 1 for units that took part, else 0; KEPT_SPECIAL is 1 for SPECIAL units that took part.
    LACKS is 1 for units that are left out because the teacher's lists lack what they need. The
    other rows are masses: a model's probability of the shared vocabulary, of the shared vocabulary
    and the realized unit, and of all candidates; and of the tokens that the teacher's lists lack.
    """

    KEPT = 0
    TEACHER_SHARED = 1
    TEACHER_REALIZED = 2
    TEACHER_CANDIDATES = 3
    STUDENT_SHARED = 4
    STUDENT_REALIZED = 5
    STUDENT_CANDIDATES = 6
    KEPT_SPECIAL = 7
    TEACHER_UNLISTED = 8
    LACKS = 9


class MassStats(NamedTuple):
    """The rows of `UnitStat` with the masses of one side."""

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
    """Metrics of one call of a loss, as detached 0-d tensors on the device of the loss.

    Computing the metrics does not wait for the device; reading a value does. A mean is NaN where
    there is no unit to average over, and where the loss does not measure the mass.

    Attributes:
        units_shared: Number of SHARED units that took part.
        units_special: Number of SPECIAL units that took part.
        units_multi: Number of MULTI units that took part.
        left_out_shared: Number of SHARED and SPECIAL units that are left out: those below
            `min_teacher_mass`, and those of `left_out_unlisted`.
        left_out_multi: Number of MULTI units that are left out, in the same way; all MULTI units
            with `candidates="shared"`.
        left_out_unlisted: Number of units that are left out because the teacher's lists lack a
            token of the realized unit, or all shared tokens; 0 where whole rows are known.
        dropped_no_prefix: Number of units at the start of their row, which no logits predict.
        dropped_dummy_prefix: Number of units with a trimmed dummy prefix.
        units_spoiled: Number of units whose divergence is NaN, because a row of logits that they
            read has NaN, or no finite logit. The loss is then NaN too; the gradients of rows that
            only other units read are as without them.
        divergence_shared: Mean divergence of the SHARED and SPECIAL units that took part, in nats.
        divergence_multi: Mean divergence of the MULTI units that took part, in nats.
        teacher_mass_shared: Mean teacher mass on the shared vocabulary.
        teacher_mass_candidates: Mean teacher mass on the candidate set.
        teacher_mass_recovered: `teacher_mass_candidates` minus `teacher_mass_shared`.
        teacher_mass_continuations: The part of the recovered teacher mass that only the on-path
            continuations add; 0 for other candidate sets.
        student_mass_shared: Mean student mass on the shared vocabulary.
        student_mass_candidates: Mean student mass on the candidate set.
        student_mass_recovered: `student_mass_candidates` minus `student_mass_shared`.
        student_mass_continuations: The part of the recovered student mass that only the on-path
            continuations add; 0 for other candidate sets.
        teacher_mass_unlisted: Mean probability of the tokens that the teacher's lists lack, over
            the units' prefixes; 0 where whole rows are known.
    """

    units_shared: Tensor
    units_special: Tensor
    units_multi: Tensor
    left_out_shared: Tensor
    left_out_multi: Tensor
    left_out_unlisted: Tensor
    dropped_no_prefix: Tensor
    dropped_dummy_prefix: Tensor
    units_spoiled: Tensor
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
    teacher_mass_unlisted: Tensor


def count_special(stats: Tensor, kind: Tensor) -> None:
    """Fill the row `KEPT_SPECIAL` of the statistics.

    Args:
        stats: `[len(UnitStat), units that take part]`, in index order; changed in place.
        kind: `[units]` the `UnitKind` of every unit.
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
    """Make the metrics from the statistics of the units, without waiting for the device.

    Args:
        per_unit: `[units]` divergences.
        stats: `[len(UnitStat), units]` statistics that the engine kept.
        index: The units.
        mass_shared: Whether `stats` has the masses of SHARED and SPECIAL units.
        mass_multi: Whether `stats` has the masses of MULTI units.

    Returns:
        The metrics.
    """
    # Every operation is a launch, which takes longer than its work: rows are added up together.
    per_unit, n_shared = per_unit.detach(), index.n_shared
    shared, multi = stats[:, :n_shared].sum(1), stats[:, n_shared:].sum(1)
    both, n_units = shared + multi, stats.shape[1]
    kept_shared, kept_multi = shared[UnitStat.KEPT], multi[UnitStat.KEPT]

    def count(number: int) -> Tensor:
        return torch.full_like(kept_shared, number)

    if mass_shared:
        mean = both / n_units
    elif mass_multi:
        mean = multi / (n_units - n_shared)
    else:
        mean = torch.full_like(both, torch.nan)
    masses = mean[TEACHER_MASS.shared : STUDENT_MASS.candidates + 1].view(2, len(MassStats._fields))
    teacher_more, student_more = (masses[:, 2:] - masses[:, :2]).unbind()
    return LossMetrics(
        units_shared=kept_shared - shared[UnitStat.KEPT_SPECIAL],
        units_special=shared[UnitStat.KEPT_SPECIAL],
        units_multi=kept_multi,
        left_out_shared=n_shared - kept_shared,
        left_out_multi=index.n_multi - kept_multi,
        left_out_unlisted=both[UnitStat.LACKS],
        dropped_no_prefix=count(index.dropped_no_prefix),
        dropped_dummy_prefix=count(index.dropped_dummy_prefix),
        units_spoiled=per_unit.isnan().sum(dtype=stats.dtype),
        divergence_shared=per_unit[:n_shared].sum() / kept_shared,
        divergence_multi=per_unit[n_shared:].sum() / kept_multi,
        teacher_mass_shared=mean[TEACHER_MASS.shared],
        teacher_mass_candidates=mean[TEACHER_MASS.candidates],
        teacher_mass_recovered=teacher_more[0],
        teacher_mass_continuations=teacher_more[1],
        student_mass_shared=mean[STUDENT_MASS.shared],
        student_mass_candidates=mean[STUDENT_MASS.candidates],
        student_mass_recovered=student_more[0],
        student_mass_continuations=student_more[1],
        teacher_mass_unlisted=both[UnitStat.TEACHER_UNLISTED] / n_units,
    )
