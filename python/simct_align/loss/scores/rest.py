"""Internal: the candidates that a teacher's list lacks, as one candidate of both sides."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

UNLISTED_FLOOR = 1.0e-6
"""The least probability of the unlisted candidates under the teacher: what a list leaves of 1 is
known to the rounding of its log-probabilities only, which are float32 numbers on most servers."""


class RestColumn:
    """The unlisted candidates of a chunk in the last column of the scores.

    The student's score is the logarithm of the sum over the candidates that the teacher's list
    lacks. The teacher's is that of all probability that is not listed, which is at least that of
    these candidates: other tokens can have a part of it. Where the list lacks no candidate, the
    column is -inf on both sides.

    Args:
        z_teacher: `[c, columns]` the teacher's scores, -inf where nothing is listed; the last
            column is overwritten.
        z_student: `[c, columns]` the student's scores. The unlisted ones become -inf, and the last
            column is overwritten.
        unlisted: `[c]` probability of all tokens that the teacher does not list together.
        shares: `[c, columns - 1]` scratch memory, used until `backward`.
    """

    def __init__(
        self, z_teacher: Tensor, z_student: Tensor, unlisted: Tensor, shares: Tensor
    ) -> None:
        student = z_student[:, :-1]
        # A candidate without a column on either side, such as a merged stop, is -inf on both.
        lacks = (z_teacher[:, :-1] == -torch.inf) & (student > -torch.inf)
        shares.copy_(student).masked_fill_(~lacks, -torch.inf)
        rest = shares.logsumexp(1)
        self._shares = shares.sub_(rest.unsqueeze(1)).exp_().nan_to_num_(0.0)
        student.masked_fill_(lacks, -torch.inf)
        z_student[:, -1] = rest
        log_unlisted = unlisted.clamp_min(UNLISTED_FLOOR).log()
        z_teacher[:, -1] = log_unlisted.masked_fill(~lacks.any(1), -torch.inf)

    def backward(self, gradient: Tensor) -> None:
        """Distribute the rest's derivative over the unlisted candidates, by their shares.

        Args:
            gradient: `[c, columns]` derivative by the student's scores; changed in place.
        """
        gradient[:, :-1].addcmul_(self._shares, gradient[:, -1:])
