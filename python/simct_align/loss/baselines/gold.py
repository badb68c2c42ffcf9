"""GOLD's hybrid loss (TRL 1.16, `trl.experimental.gold`, after arXiv 2402.12030 and 2306.13649).

A unit's distribution is that of its first position times the probabilities of the path's other
tokens (TRL's merge strategy "observed"), so it does not sum to 1 where the path is longer. Over
matched tokens it is compared by a generalised JSD (an end of `beta` is a KL), with probabilities
of at least 1e-8 in logarithms, over all others by the L1 distance of sorted probabilities. The
parts are weighted with the share of the teacher's columns that are matched, or with fixed numbers.

TRL matches tokens by their printed form and divides by positions within a sample first; here the
shared tokens are matched, and every unit counts the same.
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
    """JSD over shared tokens and sorted L1 over the others, path probabilities merged.

    Use it as the baseline that TRL users have.

    Args:
        aligner: the pair of vocabularies.
        beta: of the JSD: 0 is KL(T || S), 1 is KL(S || T).
        matched_weight: of the matched part; None for the share of matched columns.
        unmatched_weight: of the other part; None exactly if `matched_weight` is.
        **keywords: Of `Baseline`.

    Raises:
        ValueError: `beta` outside [0, 1], or one weight without the other.

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
            raise ValueError("matched_weight, unmatched_weight: expected both or neither")
        self.beta = beta
        self.matched_weight = matched_weight
        self.unmatched_weight = unmatched_weight

    def per_unit(self, *, teacher: UnitRows, student: UnitRows) -> Tensor:
        """See `Baseline`."""
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
        # A column of probability 0 sorts among the padding: as good as taken out.
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
