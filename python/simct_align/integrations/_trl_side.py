"""Rows of the data set and of one model in the TRL trainer, and the positions with logits."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from simct_align.conversation import read_messages

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simct_align.prepare import PreparedSide

#: Rows of logits that are converted to float32 at a time where no gradient is needed.
_ROWS_AT_ONCE = 256


class Side(NamedTuple):
    """One model's rows, on the device.

    Logits are computed for the last `kept` positions only: from the first position that predicts a
    completion's token in any row to the end. Row numbers and `row_starts` refer to these logits.
    """

    ids: Tensor
    mask: Tensor
    #: The number of last positions with logits; the row's length for a model without
    #: `logits_to_keep`.
    kept: int
    #: Rows of the flat logits, of `rows * kept`, that predict the completions' tokens.
    predicting: Tensor

    @classmethod
    def read(cls, side: PreparedSide, model: Any, device: torch.device) -> Side:
        """Copy rows to a device.

        Args:
            side: The rows.
            model: The model that will read the rows.
            device: The device.
        """
        rows, width = side.input_ids.shape
        predicts = np.zeros((rows, width), bool)
        predicts[:, :-1] = side.completion_mask[:, 1:] != 0
        # A model returns the logits of at least one position.
        columns = np.append(np.flatnonzero(predicts.any(axis=0)), width - 1)
        first = int(columns[0]) if _can_keep_logits(model) else 0
        predicting = np.flatnonzero(predicts[:, first:]).astype(np.int64)
        return cls(
            torch.from_numpy(side.input_ids).to(device),
            torch.from_numpy(side.attention_mask).to(device),
            width - first,
            torch.from_numpy(predicting).to(device),
        )

    @property
    def row_starts(self) -> NDArray[np.int64]:
        """The number of the logit row of every row's position 0; negative before the first."""
        rows, width = self.ids.shape
        return np.arange(rows, dtype=np.int64) * self.kept - (width - self.kept)

    @property
    def kept_ids(self) -> Tensor:
        """The tokens at the positions of the logits."""
        return self.ids[:, self.ids.shape[1] - self.kept :]

    def forward(self, model: Any) -> Any:
        """Return a model's output for the rows."""
        only = {} if self.kept == self.ids.shape[1] else {"logits_to_keep": self.kept}
        return model(input_ids=self.ids, attention_mask=self.mask, use_cache=False, **only)


def _can_keep_logits(model: Any) -> bool:
    """Return whether the innermost wrapped model takes `logits_to_keep`."""
    while (inner := getattr(model, "_orig_mod", getattr(model, "module", None))) is not None:
        model = inner
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    # accelerate may replace the instance's forward by one without the signature.
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters


def log_likelihood(logits: Tensor, side: Side) -> Tensor:
    """Return the sum of the completion tokens' log-probabilities, 0-d float32."""
    rows, targets = logits.flatten(0, 1), side.kept_ids.flatten()
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    for part in torch.split(side.predicting, _ROWS_AT_ONCE):
        chosen = rows.index_select(0, part).float()
        target = targets.index_select(0, part + 1)
        total += (chosen.gather(1, target[:, None])[:, 0] - chosen.logsumexp(dim=1)).sum()
    return total


def read_row(number: int, example: dict[str, Any]) -> dict[str, Any]:
    """Return a row in the collator's form, without the None values of mixed data sets."""
    row = {name: value for name, value in example.items() if value is not None}
    if "messages" in row:
        messages = read_messages("'messages'", row["messages"], f"row {number}: ")
        while messages and messages[-1]["role"] != "assistant":
            messages.pop()
        if messages:
            return row | {"messages": messages}
        # The conversation has no assistant turn yet.
        return row | {"completion_ids": [], "truncated": True}
    if "prompt" in row and "completion" not in row:
        return row | {"completion_ids": [], "truncated": True}
    if "prompt" not in row:
        raise ValueError(
            f"row {number} has the keys {sorted(row)}; expected 'messages' or 'prompt'"
        )
    return row
