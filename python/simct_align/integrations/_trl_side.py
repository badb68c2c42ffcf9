"""One model's rows in the TRL trainer, and which of their logits are made."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simct_align.prepare import PreparedSide

#: Rows of logits that become float32 at a time where they are only read.
_ROWS_AT_ONCE = 256


class Side(NamedTuple):
    """One model's rows, on the device.

    Logits are made of the last positions only, from the first on that predicts a completion's token
    in any row: prompts need none. What refers to logits refers to these.
    """

    ids: Tensor
    mask: Tensor
    #: How many last positions have logits; all of them where the model cannot leave any out.
    kept: int
    #: Rows of the logits, `[rows * kept]`, that predict the completions.
    predicting: Tensor

    @classmethod
    def read(cls, side: PreparedSide, model: Any, device: torch.device) -> Side:
        """Copies rows to a device.

        Args:
            side: The rows.
            model: Who will run them.
            device: Where.
        """
        rows, width = side.input_ids.shape
        predicts = np.zeros((rows, width), bool)
        predicts[:, :-1] = side.completion_mask[:, 1:] != 0
        # A model gives logits of one position at least.
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
        """Where position 0 of every row would be among the logits; it may lie before them."""
        rows, width = self.ids.shape
        return np.arange(rows, dtype=np.int64) * self.kept - (width - self.kept)

    @property
    def kept_ids(self) -> Tensor:
        """Tokens at the positions of the logits."""
        return self.ids[:, self.ids.shape[1] - self.kept :]

    def forward(self, model: Any) -> Any:
        """Runs a model; its output."""
        only = {} if self.kept == self.ids.shape[1] else {"logits_to_keep": self.kept}
        return model(input_ids=self.ids, attention_mask=self.mask, use_cache=False, **only)


def _can_keep_logits(model: Any) -> bool:
    """Whether a model takes `logits_to_keep`, whatever it is wrapped in."""
    while (inner := getattr(model, "_orig_mod", getattr(model, "module", None))) is not None:
        model = inner
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    # On the instance, accelerate may have put a forward without the signature.
    return "logits_to_keep" in inspect.signature(type(model).forward).parameters


def log_likelihood(logits: Tensor, side: Side) -> Tensor:
    """Of the completions' tokens, summed; 0-d float32."""
    rows, targets = logits.flatten(0, 1), side.kept_ids.flatten()
    total = torch.zeros((), dtype=torch.float32, device=logits.device)
    for part in torch.split(side.predicting, _ROWS_AT_ONCE):
        chosen = rows.index_select(0, part).float()
        target = targets.index_select(0, part + 1)
        total += (chosen.gather(1, target[:, None])[:, 0] - chosen.logsumexp(dim=1)).sum()
    return total
