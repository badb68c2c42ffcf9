"""Internal: rows of which only the log-probabilities of listed tokens are known.

A row is written out over the whole vocabulary, a chunk of rows at a time: a listed token has its
log-probability, every other one -inf. The log-normalizer is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ...columns import SideColumns
    from ..protocol import Lists, RowSettings
    from .rows import Workspace


LISTED_FLOOR = -1.0e30
"""What a list's log-probability of -inf counts as, so that it differs from that of a token which is
not listed; sums of several stay finite."""


class ListedRows(NamedTuple):
    """Some rows of lists.

    Attributes:
        probs: `[n, columns]` probabilities, 0 where a token is not listed; NaN where it is NaN.
        listed: `[n, columns]` whether a token is listed.
        unlisted: `[n]` the probability of all tokens that are not listed together.
        is_nan: `[n]` whether a list holds NaN.
    """

    probs: Tensor
    listed: Tensor
    unlisted: Tensor
    is_nan: Tensor


class ListRows:
    """Rows of lists; see `Rows`.

    Args:
        lists: The lists. Ids outside of the vocabulary are ignored.
        table: The side's ids.
        work: Scratch buffers.
        settings: Compute dtype. Log-probabilities are taken as they are, at any temperature.
    """

    def __init__(
        self, lists: Lists, table: SideColumns, work: Workspace, settings: RowSettings
    ) -> None:
        width = lists.ids.shape[-1]
        self._ids = lists.ids.reshape(-1, width)
        self._logprobs = lists.logprobs.reshape(-1, width)
        self._padding = table.needed
        #: One more for what is in no list.
        self.columns = table.needed + 1
        self._table = table
        self._work = work
        self._dtype = settings.dtype
        self._is_token = torch.ones(self.columns, dtype=torch.bool, device=lists.ids.device)
        self._is_token[table.needed :] = False
        if table.unused.shape[0]:
            self._is_token.index_fill_(0, table.unused, False)
        self._n_tokens = table.needed - table.unused.shape[0]

    def _entries(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return `[n, K]` columns, the last one for what is no token, and log-probabilities."""
        ids = self._ids.index_select(0, rows)
        column = ids.masked_fill((ids < 0) | (ids >= self._padding), self._padding)
        is_token = self._is_token[column]
        logprobs = self._logprobs.index_select(0, rows).to(self._dtype).clamp_min(LISTED_FLOOR)
        return (
            column.masked_fill_(~is_token, self._padding),
            logprobs.masked_fill_(~is_token, -torch.inf),
        )

    def full(self, rows: Tensor) -> Tensor:
        """See `Rows`."""
        z = self._work.take("full", rows.shape[0], self.columns, self._dtype).fill_(-torch.inf)
        return z.scatter_(1, *self._entries(rows))

    def softmax(self, rows: Tensor, log_norm: Tensor | None = None) -> Tensor:
        """See `Rows`."""
        z = self.full(rows)
        if log_norm is not None:
            log_norm.copy_(self.normalize(z))
            return z
        return z.exp_()

    def normalize(self, z: Tensor) -> Tensor:
        """See `Rows`."""
        z.exp_()
        # 0, and NaN where the row holds NaN.
        return z.sum(1).mul_(0.0)

    def chosen(self, rows: Tensor, out: Tensor) -> None:
        """See `Rows`."""
        ids = self._table.ids.expand(rows.shape[0], -1)
        torch.gather(self.full(rows), 1, ids, out=out)

    def pick(self, rows: Tensor, ids: Tensor) -> Tensor:
        """See `Rows`."""
        column, logprobs = self._entries(rows)
        return logprobs.masked_fill_(column != ids.unsqueeze(1), -torch.inf).amax(1)

    def row_values(self, full: bool) -> int:
        """See `Rows`."""
        del full
        return self.columns + 4 * self._ids.shape[1]

    def unlisted(self, rows: Tensor) -> Tensor:
        """Return `[n]` the probability of all tokens that are not listed together.

        It is what the listed ones leave of 1, and 0 where the whole vocabulary is listed.
        """
        column, logprobs = self._entries(rows)
        is_complete = (column < self._padding).sum(1) >= self._n_tokens
        rest = 1.0 - logprobs.double().exp_().sum(1)
        return rest.clamp_(0.0, 1.0).masked_fill_(is_complete, 0.0).to(self._dtype)

    def read(self, rows: Tensor) -> ListedRows:
        """Return all that is known of some rows; probabilities may be overwritten."""
        z = self.full(rows)
        listed = z > -torch.inf
        is_nan = self.normalize(z).isnan()
        return ListedRows(z, listed, self.unlisted(rows).masked_fill_(is_nan, 0.0), is_nan)
