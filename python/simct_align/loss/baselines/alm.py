"""Internal: Approximate Likelihood Matching (Minixhofer et al. 2025, arXiv 2503.20083).

A unit u is a binary event: the text goes on with u, or not. With `p = P_T(u)^(1/tau)` and
`q = P_S(u)^(1/tau)` the value of the unit is

    p log(p / q) + (1 - p) log((1 - p) / (1 - q)).

For `tau = inf` the value is the limit of tau times this expression: with `x = -log P_T(u)` and
`y = -log P_S(u)`, `x log(x / y) - x + y`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from simct_align.divergence import LOG_FLOOR

from .common import Baseline

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.top_k import TopKLogprobs

    from .common import UnitRows

_SURE = -1.0e-6  # log-probabilities of certain units stay below this, where log(1 - p) is finite


class ALMLoss(Baseline):
    """Approximate Likelihood Matching: a binary divergence of the units' own probabilities.

    Use this baseline to compare with an objective that reads the realized units only. The loss
    needs an index made with `first_ids=True`. Of a teacher that is served, the log-probabilities of
    the text's own tokens are enough: a `TopKLogprobs` that lists them.

    Args:
        aligner: The pair of vocabularies.
        tau: The temperature of the unit probabilities; `math.inf` for the limit.
        **keywords: The keywords of `Baseline`.

    Raises:
        ValueError: `tau` is not positive, or a keyword is out of its range.

    Complexity:
        O((units + path steps) x vocabulary) time; memory as for `Baseline`.

    Example:
        >>> from simct_align import Aligner, Vocabulary
        >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> aligner = Aligner(teacher, student)
        >>> ALMLoss(aligner, tau=float("inf")).tau
        inf
    """

    reads_first_ids = True

    def __init__(self, aligner: Any, *, tau: float = 100.0, **keywords: Any) -> None:
        super().__init__(aligner, **keywords)
        if not tau > 0.0:
            raise ValueError(f"tau: expected a positive number, got {tau}")
        self.tau = tau

    def check_lists(self, lists: TopKLogprobs) -> None:
        """Take any lists: see `Loss`."""

    def lacks(self, teacher: UnitRows) -> Tensor:
        """Return the units of which a teacher token is not listed: see `Baseline`."""
        return teacher.realized() == -math.inf

    def per_unit(self, *, teacher: UnitRows, student: UnitRows) -> Tensor:
        """Return the values of a chunk: see `Baseline`."""
        log_q, log_p = (side.realized().clamp(LOG_FLOOR, _SURE) for side in (student, teacher))
        if math.isinf(self.tau):
            return log_p - log_q - log_p * torch.log(log_p / log_q)
        log_q, log_p = log_q / self.tau, log_p / self.tau
        p, not_p, not_q = log_p.exp(), -torch.expm1(log_p), -torch.expm1(log_q)
        return p * (log_p - log_q) + not_p * torch.log(not_p / not_q)
