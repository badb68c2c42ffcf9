"""The realized unit and the merged stops as candidates of a row: scores in, derivatives out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .formulas import RealizedText, Remainder, mean_of_path

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RealizedGradient:
    """Derivatives `[c]` by what `RealizedScores.insert` read.

    Attributes:
        first: By the logit of the first step.
        log_norm: By the log-normalizer of the prefix row.
        rest: By the sum over the other steps.
    """

    first: Tensor
    log_norm: Tensor
    rest: Tensor


class RealizedScores:
    """The realized paths of a chunk of MULTI units on one side; formulas as in `formulas`.

    Args:
        score: One of `formulas.SCORES`.
        slot: The column of the row that the realized unit takes.
        length: `[c]` steps of the path.
        first_column: `[c]` shared column of the first step's id, -1 if none.
        realized_column: `[c]` shared column of the realized text, -1 if none.
    """

    def __init__(
        self, score: str, slot: int, length: Tensor, first_column: Tensor, realized_column: Tensor
    ) -> None:
        self._averages = score in ("mean", "mean_logit")
        self._normalized = score == "mean"
        self._event = score == "event"
        self._length = length
        is_column = (realized_column >= 0) & (first_column == realized_column)
        self._text = RealizedText(self._averages, slot, realized_column, is_column)
        self._has_child = (first_column >= 0) & (length > 1)
        self._parent = first_column.clamp_min(0).unsqueeze(1)

    def insert(self, z: Tensor, first: Tensor, log_norm: Tensor | None, rest: Tensor) -> None:
        """Write the realized scores into the rows.

        Args:
            z: `[c, columns]` logits of the shared columns; changed in place.
            first: `[c]` logit of the first step.
            log_norm: `[c]` log-normalizer of the prefix row; only "mean" reads it.
            rest: `[c]` sum over the other steps, 0 where there are none.
        """
        own = first + rest
        if self._normalized:
            assert log_norm is not None
            own = mean_of_path(own, log_norm, self._length)
        elif self._averages:
            own = own / self._length
        elif self._event:
            self._rest = rest
            self._remainder = Remainder(torch.expm1(rest).neg_(), self._has_child)
            parent = z.gather(1, self._parent) + self._remainder.log.unsqueeze(1)
            z.scatter_(1, self._parent, parent)
        self._text.insert(z, own)

    def backward(self, gradient: Tensor) -> RealizedGradient:
        """Turn the derivative by the row's scores into that by what `insert` read.

        Args:
            gradient: `[c, columns]`; the shared columns' part is changed in place to the
                derivative by `z`.
        """
        if self._averages:
            own = self._text.backward(gradient)
            first = own / self._length
            log_norm = own - first if self._normalized else torch.zeros_like(first)
            return RealizedGradient(first, log_norm, first)
        # Read before the target's column is split: the parent is another column.
        at_parent = gradient.gather(1, self._parent).squeeze(1) if self._event else None
        own = rest = self._text.backward(gradient)
        if at_parent is not None:
            rest = own - at_parent * self._remainder.odds(self._rest.exp())
        return RealizedGradient(own, torch.zeros_like(own), rest)


class MergedStops:
    """The stops of one side as one candidate, in the column of the first.

    Args:
        column: The stops' shared column, -1 if none.
        shared: The number of shared columns; the other stops come after them.
        n_extra: How many other stops there are.
    """

    def __init__(self, column: int, shared: int, n_extra: int) -> None:
        self._column = column
        self._others = slice(shared, shared + n_extra)
        self._n_extra = n_extra
        self._shares: Tensor | None = None

    def merge(self, z: Tensor) -> None:
        """Sum the stops' probabilities into the first one's column; the others count as -inf.

        Args:
            z: `[c, columns]` logits; changed in place.
        """
        if not self._n_extra:
            return
        stops = torch.cat([z[:, self._column, None], z[:, self._others]], dim=1)
        total = torch.logsumexp(stops, dim=1)
        self._shares = (stops - total.unsqueeze(1)).exp_().nan_to_num_(0.0)
        z[:, self._column] = total
        z[:, self._others] = -math.inf

    def backward(self, gradient: Tensor) -> None:
        """Give every stop its share of the column's derivative.

        Args:
            gradient: `[c, columns]`; changed in place.
        """
        if self._shares is None:
            return
        shares = gradient[:, self._column, None] * self._shares
        gradient[:, self._column] = shares[:, 0]
        gradient[:, self._others] = shares[:, 1:]
