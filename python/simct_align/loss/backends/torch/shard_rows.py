"""Internal: rows of logits of which every process has a range of columns.

`ShardRows` reads the columns of this process with any reader, and normalizes over all of them. The
processes exchange a maximum and a sum for every row, and the logits of single tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...columns import SideColumns
from ..protocol import Head, Lists, Logits
from .linear_rows import StudentLinearRows
from .readers import teacher_rows

if TYPE_CHECKING:
    from torch import Tensor

    from ...exchange import Exchange
    from ...shard_plan import Shards, SideShard
    from ..protocol import RowSettings
    from .rows import Rows, Workspace


def local_source(source: Logits | Head | Lists, side: SideShard) -> Logits | Head:
    """Return the columns of this process.

    Args:
        source: A side's logits, or its head with the rows of this process or, where the side is
            whole on every process, with all rows.
        side: The side's columns on this process.
    """
    here = slice(side.start, side.stop)
    if isinstance(source, Logits):
        return Logits(source.logits[..., here])
    assert isinstance(source, Head)  # a loss refuses lists together with shards
    if not side.whole:
        return source
    bias = None if source.bias is None else source.bias[here]
    return replace(source, weight=source.weight[here], bias=bias)


def teacher_columns(
    source: Logits | Head | Lists, shards: Shards, work: Workspace, settings: RowSettings
) -> Rows:
    """Return a reader whose `chosen` columns are those of `ShardPlan.teacher_ids`.

    Args:
        source: The teacher.
        shards: The shards.
        work: Scratch buffers.
        settings: See `teacher_rows`.
    """
    ids = shards.plan.teacher_ids
    if shards.teacher_weight is not None:
        assert isinstance(source, Head)
        source = replace(source, weight=shards.teacher_weight, bias=shards.teacher_bias)
        ids = torch.arange(ids.shape[0], device=ids.device)
    empty = ids[:0]
    table = SideColumns(ids, n_extra=0, column_of_id=ids, unused=empty, code_of_id=empty, needed=0)
    return teacher_rows(source, table, work, settings)


class ShardRows:
    """A side's rows, with the columns of this process.

    Args:
        rows: A reader of these columns.
        side: The columns.
        exchange: The group.
    """

    def __init__(self, rows: Rows, side: SideShard, exchange: Exchange) -> None:
        self.rows, self._side, self._exchange = rows, side, exchange

    def here(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens as columns of this process, 0 for those of others, and which are here."""
        is_here = (ids >= self._side.start) & (ids < self._side.stop)
        return (ids - self._side.start).masked_fill(~is_here, 0), is_here

    def picked(self, z: Tensor, ids: Tensor) -> Tensor:
        """Return the logits `[c]` of single tokens, one per row, of rows that `full` read."""
        column, is_here = self.here(ids)
        own = z.gather(1, column.unsqueeze(1)).squeeze(1)
        return self._exchange.sum(own.masked_fill(~is_here, 0.0))

    def pick(self, rows: Tensor, ids: Tensor) -> Tensor:
        """See `Rows`."""
        column, is_here = self.here(ids)
        return self._exchange.sum(self.rows.pick(rows, column).masked_fill(~is_here, 0.0))

    def normalize(self, z: Tensor) -> Tensor:
        """Replace rows that `full` read by their softmax over all processes' columns.

        Args:
            z: `[c, columns of this process]` logits.

        Returns:
            `[c]` log-normalizers.
        """
        top = self._exchange.max(z.amax(1))
        # A row without a finite logit has no softmax: NaN, as with all columns in one place.
        total = self._exchange.sum(z.sub_(top.unsqueeze(1)).exp_().sum(1))
        z.div_(total.unsqueeze(1))
        return total.log_().add_(top)


def log_sum_exp_(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the sum of exponentials of every row, and overwrite the rows.

    Args:
        z: `[c, columns]`; a row may be -inf throughout.

    Returns:
        `[c]` the largest values, and `[c]` what to add to them; see `Exchange.log_sum_exp`.
    """
    top = z.amax(1)
    z.sub_(top.masked_fill(top == -torch.inf, 0.0).unsqueeze(1))
    return top, z.exp_().sum(1).log_()


class SummedRows(StudentLinearRows):
    """`StudentLinearRows` of the whole vocabulary, whose gradients are sums over all processes.

    Args:
        head: The student's head.
        table: The student's ids.
        work: Scratch buffers.
        settings: See `StudentLinearRows`.
        exchange: The group.
    """

    def __init__(
        self,
        head: Head,
        table: SideColumns,
        work: Workspace,
        settings: RowSettings,
        exchange: Exchange,
    ) -> None:
        super().__init__(head, table, work, settings)
        self._exchange = exchange

    def gradients(self) -> list[Tensor]:
        """See `StudentRows`."""
        for gradient in (self._hidden_grad, self._weight_grad, self._bias_grad):
            if gradient is not None:
                self._exchange.sum(gradient)
        return super().gradients()


class StudentShardRows(StudentLinearRows):
    """`StudentLinearRows` of this process's columns, with the gradients of the whole.

    Args:
        head: The student's head as the loss got it.
        shards: The shards.
        work: Scratch buffers.
        settings: See `StudentLinearRows`.
    """

    def __init__(self, head: Head, shards: Shards, work: Workspace, settings: RowSettings) -> None:
        side = shards.plan.sides["student"]
        local = local_source(head, side)
        assert isinstance(local, Head)
        super().__init__(local, side.local, work, settings)
        self._side, self._exchange = side, shards.plan.exchange
        self._partial = shards.partial_hidden_gradient

    def gradients(self) -> list[Tensor]:
        """See `StudentRows`."""
        if self._wanted and not self._partial:
            self._exchange.sum(self._hidden_grad)
        hidden, *others = super().gradients()
        if self._side.whole:
            counts = [stop - start for start, stop in self._side.ranges]
            others = [self._exchange.gathered(each, counts) if each.numel() else each
                      for each in others]  # fmt: skip
        return [hidden, *others]
