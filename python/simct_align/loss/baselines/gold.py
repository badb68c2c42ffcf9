"""Internal: GOLD's hybrid loss (TRL 1.16, `trl.experimental.gold`; arXiv 2402.12030, 2306.13649).

The distribution of a unit is that of the path's first position, multiplied by the probabilities of
the path's other tokens (TRL's merge strategy "observed"). The distribution therefore does not sum
to 1 where the path has several tokens. The value of a unit has two parts:

* matched tokens are compared by a generalised Jensen-Shannon divergence, which is a KL at both
  ends of `beta`; probabilities below 1e-8 count as 1e-8 in logarithms;
* all other tokens are compared by the L1 distance of the sorted probabilities.

The parts are weighted with the share of the teacher's columns that are matched, or with fixed
numbers.

TRL matches tokens by their printed form, and averages over the positions of a sample first. Here
the shared tokens are matched, and every unit has the same weight.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from .common import Baseline, sorted_distance

if TYPE_CHECKING:
    from torch import Tensor

    from .common import UnitRows

_LEAST = 1.0e-8


class GOLDLoss(Baseline):
    """GOLD's hybrid loss: JSD over shared tokens, sorted L1 distance over all others.

    Use this baseline to compare with the loss of TRL's `GOLDTrainer`.

    Args:
        aligner: The pair of vocabularies.
        beta: The weight of the Jensen-Shannon divergence: 0 is KL(teacher || student), 1 is
            KL(student || teacher).
        matched_weight: The weight of the matched part; None for the share of the teacher's
            columns that are matched.
        unmatched_weight: The weight of the other part; None if, and only if, `matched_weight` is
            None.
        **keywords: The keywords of `Baseline`.

    Raises:
        ValueError: `beta` is outside [0, 1], one weight came without the other, or a keyword is
            out of its range.

    Complexity:
        O(units x vocabulary x log vocabulary) time for the sort; memory as for `Baseline`.

    Example:
        >>> from simct_align import Aligner, Vocabulary
        >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> aligner = Aligner(teacher, student)
        >>> GOLDLoss(aligner, beta=0.0).beta
        0.0
    """

    def __init__(
        self,
        aligner: Any,
        *,
        beta: float = 0.5,
        matched_weight: float | None = None,
        unmatched_weight: float | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(aligner, **keywords)
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta: expected a number in [0, 1], got {beta}")
        if (matched_weight is None) != (unmatched_weight is None):
            raise ValueError(
                f"matched_weight, unmatched_weight: expected two numbers or two None, "
                f"got {matched_weight} and {unmatched_weight}"
            )
        self.beta = beta
        self.matched_weight = matched_weight
        self.unmatched_weight = unmatched_weight

    def per_unit(self, *, teacher: UnitRows, student: UnitRows) -> Tensor:
        """Return the values of a chunk: see `Baseline`."""
        merged = [
            side.log_probs.exp() * side.rest.exp().clamp_min(_LEAST).unsqueeze(1)
            for side in (student, teacher)
        ]
        matched_ids = [side.shared_ids for side in (student, teacher)]
        log_s, log_t = (
            probs.index_select(1, ids).clamp_min(_LEAST).log()
            for probs, ids in zip(merged, matched_ids, strict=True)
        )
        matched = self._jsd(log_s, log_t).sum(1)
        # A column of probability 0 is sorted among the padding and adds nothing.
        unmatched = sorted_distance(
            *(p.index_fill(1, ids, 0.0) for p, ids in zip(merged, matched_ids, strict=True))
        )
        if self.matched_weight is None or self.unmatched_weight is None:
            share = matched_ids[1].shape[0] / merged[1].shape[1]
            return share * matched + (1.0 - share) * unmatched
        return self.matched_weight * matched + self.unmatched_weight * unmatched

    def _jsd(self, log_s: Tensor, log_t: Tensor) -> Tensor:
        if self.beta == 0.0:
            return log_t.exp() * (log_t - log_s)
        if self.beta == 1.0:
            return log_s.exp() * (log_s - log_t)
        mixed = torch.logaddexp(log_s + math.log1p(-self.beta), log_t + math.log(self.beta))
        of_teacher = log_t.exp() * (log_t - mixed)
        of_student = log_s.exp() * (log_s - mixed)
        return self.beta * of_teacher + (1.0 - self.beta) * of_student
