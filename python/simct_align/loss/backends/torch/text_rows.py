"""Internal: the text rows of one side that a chunk of offsets reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ....divergence import LOG_FLOOR
from .list_rows import ListRows

if TYPE_CHECKING:
    from torch import Tensor

    from ...text_layout import SideChunk, TextSideView
    from .list_rows import ListedRows
    from .rows import WholeRows


class TextRows:
    """Probabilities of a run of text rows, and of what the text takes after each of them.

    Args:
        rows: The side's logits.
        events: Its text rows.
        chunk: What a chunk of offsets reads of them.
        dtype: The compute dtype.

    Attributes:
        flat: `[R]` the rows of the logits.
        probs: `[R, columns]` probabilities, 0 in a row that holds NaN.
        is_nan: `[R]` whether a row holds NaN.
        token: `[R]` the realized token, 0 without one.
        has_token: `[R]` whether there is one.
        log_weight: `[R]` float64, the log-probability of the realized tokens before the row, from
            the first row on.
        lists: What is listed of the rows; None where whole rows are known.
    """

    lists: ListedRows | None = None

    def __init__(
        self, rows: WholeRows, events: TextSideView, chunk: SideChunk, dtype: torch.dtype
    ) -> None:
        self.flat = events.row[chunk.rows]
        token = events.token[chunk.rows]
        self.token, self.has_token = token.clamp_min(0), token >= 0
        log_prob = self._read(rows, dtype)
        log_prob = log_prob.nan_to_num(0.0, 0.0, LOG_FLOOR)
        log_prob = log_prob.clamp_(min=LOG_FLOOR).masked_fill_(~self.has_token, 0.0)
        self.log_weight = log_prob.cumsum(0).sub_(log_prob)

    def _read(self, rows: WholeRows, dtype: torch.dtype) -> Tensor:
        """Read the probabilities; return the float64 log-probabilities of the realized tokens."""
        if isinstance(rows, ListRows):
            self.lists = rows.read(self.flat)
            self.probs, self.is_nan = self.lists.probs, self.lists.is_nan
            self.probs.masked_fill_(self.is_nan.unsqueeze(1), 0.0)
            return rows.pick(self.flat, self.token).double()
        on_host = self.flat.device.type == "cpu"
        if on_host:
            # The host can be asked, which saves the log-normalizers: two passes over all rows.
            self.probs = rows.softmax(self.flat)
            realized = self.probs.gather(1, self.token.unsqueeze(1)).squeeze(1)
            unknown = (realized == 0.0) & self.has_token
            if not bool((unknown | realized.isnan()).any()):
                self.is_nan = torch.zeros_like(self.has_token)
                return realized.double().log_()
        log_norm = torch.empty(self.flat.shape, dtype=dtype, device=self.flat.device)
        self.probs = rows.softmax(self.flat, log_norm)
        self.is_nan = log_norm.isnan()
        self.probs.masked_fill_(self.is_nan.unsqueeze(1), 0.0)
        return rows.pick(self.flat, self.token).sub_(log_norm).double()
