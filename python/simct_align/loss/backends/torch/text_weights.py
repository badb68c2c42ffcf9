"""Internal: the weights of the rows that an offset reads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SideRows(NamedTuple):
    """What one side's text rows and sources say, before any mass is collected.

    Attributes:
        log_weight: `[R]` float64, the log-probability of the realized tokens before every row.
        is_nan: `[R]` whether a row holds NaN.
        own: `[O]` the row at every offset, 0 without one.
        has_own: `[O]` whether there is one.
        own_total: `[O]` the probability of its text tokens and stops.
        source_row: `[X]` the row of every source.
        source_offset: `[X]` its offset.
        source_mass: `[X]` the probability of its tokens.
    """

    log_weight: Tensor
    is_nan: Tensor
    own: Tensor
    has_own: Tensor
    own_total: Tensor
    source_row: Tensor
    source_offset: Tensor
    source_mass: Tensor


class Weights(NamedTuple):
    """What probabilities are multiplied by, so that all masses of an offset sum to 1.

    Attributes:
        own: `[O]` of the own rows.
        source: `[X]` of the sources.
        known: `[O]` whether an offset has any mass.
        spoiled: `[O]` whether a row that the offset reads holds NaN.
    """

    own: Tensor
    source: Tensor
    known: Tensor
    spoiled: Tensor


def offset_weights(rows: SideRows) -> Weights:
    """Return the weights of all offsets.

    Args:
        rows: The side's rows and sources.

    Returns:
        Weights in the dtype of `own_total`.
    """
    log_source = rows.log_weight[rows.source_row] + rows.source_mass.double().log()
    log_own = rows.log_weight[rows.own] + rows.own_total.double().log()
    log_own = log_own.masked_fill(~rows.has_own, -torch.inf)
    log_total = _grouped_logsumexp(log_own, rows.source_offset, log_source)
    known = log_total > -torch.inf
    log_total = log_total.masked_fill(~known, 0.0)

    def weight(row: Tensor, log_total: Tensor, log_mass: Tensor) -> Tensor:
        # Without any mass a weight does not matter, but must be finite.
        scaled = (rows.log_weight[row] - log_total).clamp_(max=80.0).exp_()
        return scaled.masked_fill_(log_mass == -torch.inf, 0.0).to(rows.own_total.dtype)

    return Weights(
        weight(rows.own, log_total, log_own),
        weight(rows.source_row, log_total[rows.source_offset], log_source),
        known,
        _spoiled(rows),
    )


def _spoiled(rows: SideRows) -> Tensor:
    """Return `[O]` whether a row at the offset, or from one of its sources on, holds NaN."""
    at_own = rows.is_nan[rows.own] & rows.has_own
    # A source's weight against the others' depends on all rows in between.
    first = rows.source_row.new_full(rows.own.shape, rows.is_nan.shape[0])
    first = first.scatter_reduce(0, rows.source_offset, rows.source_row, "amin")
    last = torch.zeros_like(first).scatter_reduce(0, rows.source_offset, rows.source_row, "amax")
    last = torch.maximum(last, rows.own)
    before = torch.nn.functional.pad(rows.is_nan.cumsum(0), (1, 0))
    between = before[last + 1] - before[first.clamp_max(rows.is_nan.shape[0] - 1)]
    return at_own | ((first <= last) & (between > 0))


def _grouped_logsumexp(own: Tensor, group: Tensor, values: Tensor) -> Tensor:
    """Return `log(exp(own) + sum of exp(values) of the group)` for every group.

    Args:
        own: `[g]`.
        group: `[v]` the group of every value.
        values: `[v]`.
    """
    top = own.scatter_reduce(0, group, values, "amax")
    finite = top.masked_fill(top == -torch.inf, 0.0)
    total = (own - finite).exp().index_add(0, group, (values - finite[group]).exp())
    return total.log() + finite
