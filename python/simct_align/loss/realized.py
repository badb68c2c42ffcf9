"""The realized unit as a candidate of its own row: scores in, derivatives out.

A row of scores holds the logits ``z`` of the shared columns instead of ``log p = z - L``. The row's
softmax does not see the difference, and what stands beside them is shifted by ``L`` as well. With a
path of ``k`` steps, first logit ``z_1`` and ``R`` the sum of the other steps' log-probabilities:

    mean        (z_1 - L + R) / k + L
    sum, event   z_1 + R
    mean_logit  (z_1 + R) / k, R the sum of logits

C(h) is a set of texts. If the realized text is a shared column too, "mean" and "mean_logit" let the
path stand for it and leave the column out; "sum" and "event" add the path's probability to the
column's, unless the path is the column itself. "event" takes from the column of the path's first
token what goes on with the path: ``log(1 - exp(R))``, floored.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

SCORES = ("mean", "sum", "event", "mean_logit")
EVENT_FLOOR = 1.0e-6
"""What "event" leaves of a token's probability at least; the derivative is 0 there."""


class RealizedScores:
    """The realized paths of a chunk of MULTI units on one side.

    Args:
        score: one of `SCORES`.
        slot: the column of the row that the realized unit takes.
        length: ``[c]`` steps of the path.
        first_column: ``[c]`` shared column of the first step's id, -1 if none.
        realized_column: ``[c]`` shared column of the realized text, -1 if none.
    """

    def __init__(
        self, score: str, slot: int, length: Tensor, first_column: Tensor, realized_column: Tensor
    ) -> None:
        self._averaged = score in ("mean", "mean_logit")
        self._normalized = score == "mean"
        self._event = score == "event"
        self._slot = slot
        self._length = length
        self._listed = realized_column >= 0
        self._column = realized_column.clamp_min(0).unsqueeze(1)
        self._is_column = self._listed & (first_column == realized_column)
        self._has_child = (first_column >= 0) & (length > 1)
        self._parent = first_column.clamp_min(0).unsqueeze(1)

    def insert(self, z: Tensor, first: Tensor, log_norm: Tensor | None, rest: Tensor) -> None:
        """Write the realized scores into the rows.

        Args:
            z: ``[c, columns]`` logits of the shared columns; changed in place.
            first: ``[c]`` logit of the first step.
            log_norm: ``[c]`` log-normalizer of the prefix row; only "mean" reads it.
            rest: ``[c]`` sum over the other steps, 0 where there are none.
        """
        at_column = z.gather(1, self._column).squeeze(1)
        if self._averaged:
            own = first + rest
            if self._normalized:
                assert log_norm is not None
                own = (own - log_norm) / self._length + log_norm
            else:
                own = own / self._length
            at_column = at_column.masked_fill(self._listed, -torch.inf)
            z.scatter_(1, self._column, at_column.unsqueeze(1))
            z[:, self._slot] = own
            return
        own = first + rest
        if self._event:
            stays = torch.expm1(rest).neg_()
            self._rest = rest
            self._floored = stays <= EVENT_FLOOR
            factor = stays.clamp_min(EVENT_FLOOR).log_().masked_fill(~self._has_child, 0.0)
            parent = z.gather(1, self._parent) + factor.unsqueeze(1)
            z.scatter_(1, self._parent, parent)
            at_column = z.gather(1, self._column).squeeze(1)
        adds = self._listed & ~self._is_column
        merged = torch.where(adds, torch.logaddexp(at_column, own), at_column)
        # The path's share of its column; where neither has probability there is nothing to share.
        share = (own - merged).exp_().nan_to_num_(0.0)
        self._share = torch.where(adds, share, torch.zeros_like(share))
        z.scatter_(1, self._column, merged.unsqueeze(1))
        z[:, self._slot] = own.masked_fill(self._listed, -torch.inf)

    def pull_back(self, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Turn the derivative by the row's scores into that by what `insert` read.

        Args:
            gradient: ``[c, columns]``; the shared columns' part is changed in place to the
                derivative by ``z``.

        Returns:
            The derivatives ``[c]`` by ``first``, ``log_norm`` and ``rest``.
        """
        own = gradient[:, self._slot]
        if self._averaged:
            first = own / self._length
            return first, own - first if self._normalized else torch.zeros_like(first), first
        at_column = gradient.gather(1, self._column).squeeze(1)
        own = own + self._share * at_column
        rest = own
        if self._event:
            # Read before the merged column is split: the parent is another column.
            at_parent = gradient.gather(1, self._parent).squeeze(1)
            odds = self._rest.exp() / torch.expm1(self._rest)
            odds = odds.masked_fill(self._floored | ~self._has_child, 0.0)
            rest = own + at_parent * odds
        gradient.scatter_(1, self._column, ((1 - self._share) * at_column).unsqueeze(1))
        return own, torch.zeros_like(own), rest


class MergedStops:
    """The stops of one side as one candidate, in the column of the first.

    Args:
        column: the stops' shared column, -1 if none.
        shared: the number of shared columns; the other stops stand behind them.
        n_extra: how many other stops there are.
    """

    def __init__(self, column: int, shared: int, n_extra: int) -> None:
        self._column = column
        self._others = slice(shared, shared + n_extra)
        self._n_extra = n_extra
        self._shares: Tensor | None = None

    def merge(self, z: Tensor) -> None:
        """Sum the stops' probabilities into the first one's column; the others count as -inf.

        Args:
            z: ``[c, columns]`` logits; changed in place.
        """
        if not self._n_extra:
            return
        stops = torch.cat([z[:, self._column, None], z[:, self._others]], dim=1)
        total = torch.logsumexp(stops, dim=1)
        self._shares = (stops - total.unsqueeze(1)).exp_().nan_to_num_(0.0)
        z[:, self._column] = total
        z[:, self._others] = -math.inf

    def pull_back(self, gradient: Tensor) -> None:
        """Give every stop its share of the column's derivative.

        Args:
            gradient: ``[c, columns]``; changed in place.
        """
        if self._shares is None:
            return
        shares = gradient[:, self._column, None] * self._shares
        gradient[:, self._column] = shares[:, 0]
        gradient[:, self._others] = shares[:, 1:]
