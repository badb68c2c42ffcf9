"""Internal: the realized unit and the merged stops as candidates, with scores and derivatives."""

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
    """The derivatives by the inputs of `RealizedScores.insert`.

    Attributes:
        first: `[c]` derivative by the logit of the first step.
        log_norm: `[c]` derivative by the log-normalizer of the prefix row.
        rest: `[c]` derivative by the sum over the later steps.
    """

    first: Tensor
    log_norm: Tensor
    rest: Tensor


class RealizedScores:
    """The realized paths of a chunk of c MULTI units on one side; see `formulas` for the scores.

    Args:
        score: One of `formulas.SCORES`.
        slot: The column of the realized unit in the row of scores.
        length: `[c]` number of steps of the path.
        first_column: `[c]` shared column of the first step's id, -1 if there is none.
        realized_column: `[c]` shared column of the realized text, -1 if there is none.
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
            rest: `[c]` sum over the later steps, 0 where there are none.
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
        """Turn the derivative by the row's scores into the derivatives by the inputs of `insert`.

        Args:
            gradient: `[c, columns]` derivative by the scores. In the shared columns the derivative
                by `z` replaces it.

        Returns:
            The derivatives by the other inputs.
        """
        if self._averages:
            own = self._text.backward(gradient)
            first = own / self._length
            log_norm = own - first if self._normalized else torch.zeros_like(first)
            return RealizedGradient(first, log_norm, first)
        # Read first: the next line changes the target's column, which is another column.
        at_parent = gradient.gather(1, self._parent).squeeze(1) if self._event else None
        own = rest = self._text.backward(gradient)
        if at_parent is not None:
            rest = own - at_parent * self._remainder.odds(self._rest.exp())
        return RealizedGradient(own, torch.zeros_like(own), rest)


class MergedStops:
    """The stops of one side as one candidate, in the column of the first stop.

    Args:
        column: The shared column of the stops, -1 if there are none.
        shared: The number of shared columns, which the other stops follow.
        n_extra: The number of the other stops.
    """

    def __init__(self, column: int, shared: int, n_extra: int) -> None:
        self._column = column
        self._others = slice(shared, shared + n_extra)
        self._n_extra = n_extra
        self._shares: Tensor | None = None

    def merge(self, z: Tensor) -> None:
        """Add the probabilities of all stops up in the first stop's column; set the others to -inf.

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
        """Distribute the column's derivative over the stops, by their shares.

        Args:
            gradient: `[c, columns]` derivative by the merged scores; changed in place.
        """
        if self._shares is None:
            return
        shares = gradient[:, self._column, None] * self._shares
        gradient[:, self._column] = shares[:, 0]
        gradient[:, self._others] = shares[:, 1:]
