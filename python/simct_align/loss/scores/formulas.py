"""What the realized unit and the on-path continuations have in common: each formula once.

A row of scores holds the logits `z` of the shared columns instead of `log p = z - L`. The row's
softmax does not see the difference, and every other score of the row is shifted by the prefix row's
log-normalizer `L` as well. With `J` the logit of a path's first token plus the
log-probabilities of its other tokens, a path of `k` tokens has the score

    sum, event   J
    mean         (J - L) / k + L
    mean_logit   J / k, with logits in place of all log-probabilities

C(h) is a set of texts. Where the realized text is a shared column or a continuation as well (its
*target*), "mean" and "mean_logit" let the realized path stand for the text and leave the target
out; "sum" and "event" add the path's probability to the target's, unless both are the same path.

"event" takes from a text the probability `M` of the longer candidates that begin with it: the
score of the text changes by `log(1 - M)`, with `1 - M` floored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

SCORES = ("mean", "sum", "event", "mean_logit")
EVENT_FLOOR = 1.0e-6
"""What "event" leaves of a token's probability at least; the derivative is 0 there."""


def mean_of_path(log_joint: Tensor, log_norm: Tensor, length: Tensor) -> Tensor:
    """Return the score "mean" of whole paths.

    Args:
        log_joint: `J` of every path.
        log_norm: Log-normalizers of the prefix rows.
        length: Tokens of every path, at least 1.

    Returns:
        `(J - L) / k + L`.
    """
    return (log_joint - log_norm) / length + log_norm


def mean_of_extended_path(
    log_joint: Tensor, log_norm: Tensor, per_token: Tensor, entry: Tensor, last: Tensor
) -> Tensor:
    """Return the score "mean" of paths that share all tokens except the last one.

    The shared part is divided once for each beginning, which is much less work than once for each
    path where thousands of paths have one beginning.

    Args:
        log_joint: `[e]` `J` of every beginning.
        log_norm: `[e]` log-normalizers of the prefix rows.
        per_token: `[e]` `1 / k` with `k` the tokens of the whole path.
        entry: `[l]` the beginning of every path.
        last: `[l]` log-probability of every path's last token.

    Returns:
        `[l]` scores `(J + last - L) / k + L`.
    """
    beginning = (log_joint - log_norm) * per_token + log_norm
    return beginning.index_select(0, entry).addcmul_(last, per_token.index_select(0, entry))


class Remainder:
    """`log(1 - M)` of texts that lose `M` of their probability to longer candidates.

    Args:
        remainder: `1 - M` of every text.
        is_candidate: Where the text is a candidate; the logarithm is 0 elsewhere.
    """

    def __init__(self, remainder: Tensor, is_candidate: Tensor) -> None:
        floored = remainder <= EVENT_FLOOR
        self._constant = floored | ~is_candidate
        self._remainder = remainder.clamp_min(EVENT_FLOOR)
        self.log = self._remainder.log().masked_fill(~is_candidate, 0.0)

    def odds(self, taken: Tensor) -> Tensor:
        """Return `M / (1 - M)`, 0 where the derivative is 0.

        Args:
            taken: `M`.
        """
        return (taken / self._remainder).masked_fill(self._constant, 0.0)

    def backward(self, grad: Tensor) -> Tensor:
        """Return the derivative by `M`.

        Args:
            grad: The derivative by the logarithm.
        """
        return (-grad / self._remainder).masked_fill(self._constant, 0.0)


class RealizedText:
    """The realized path as a candidate: in a column of its own, or joined with its target's.

    Args:
        averages: Whether the score is "mean" or "mean_logit".
        slot: The column of the realized unit.
        target: `[c]` the other column with the realized text, -1 if none.
        same: `[c]` whether the target is the very same path.
    """

    def __init__(self, averages: bool, slot: int, target: Tensor, same: Tensor) -> None:
        self._averages = averages
        self._slot = slot
        self._has_target = target >= 0
        self._adds = self._has_target & ~same
        self._target = target.clamp_min(0).unsqueeze(1)
        # The path's share of its text, for `backward`.
        self._share: Tensor | None = None

    def insert(self, z: Tensor, own: Tensor, part: slice = slice(None)) -> None:
        """Write the realized score, and join it with the target.

        Args:
            z: `[rows, columns]` scores; changed in place.
            own: `[rows]` scores of the realized paths.
            part: Which of the `c` units the rows are.
        """
        target, has_target, adds = self._target[part], self._has_target[part], self._adds[part]
        at_target = z.gather(1, target).squeeze(1)
        if self._averages:
            at_target = at_target.masked_fill(has_target, -torch.inf)
            z.scatter_(1, target, at_target.unsqueeze(1))
            z[:, self._slot] = own
            return
        merged = torch.where(adds, torch.logaddexp(at_target, own), at_target)
        # Where neither has probability there is nothing to share.
        share = (own - merged).exp_().nan_to_num_(0.0)
        if self._share is None:
            self._share = own.new_zeros(self._adds.shape)
        self._share[part] = torch.where(adds, share, 0.0)
        z.scatter_(1, target, merged.unsqueeze(1))
        z[:, self._slot] = own.masked_fill(has_target, -torch.inf)

    def backward(self, gradient: Tensor, part: slice = slice(None)) -> Tensor:
        """Return the derivative by the realized scores; the target keeps its own part.

        Args:
            gradient: `[rows, columns]` by the scores of the row; changed in place.
            part: Which of the `c` units the rows are.

        Returns:
            `[rows]`.
        """
        own = gradient[:, self._slot]
        if self._averages:
            return own
        assert self._share is not None
        target, share = self._target[part], self._share[part]
        at_target = gradient.gather(1, target).squeeze(1)
        own = own + share * at_target
        gradient.scatter_(1, target, ((1 - share) * at_target).unsqueeze(1))
        return own
