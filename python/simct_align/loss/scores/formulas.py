"""Internal: the formulas of the scores, for the realized unit and for on-path continuations.

A row of scores holds the logits `z` of the shared columns instead of `log p = z - L`, where `L` is
the log-normalizer of the prefix row. Every other score of the row is shifted by `L` as well, and
the row's softmax does not depend on the shift. With `J` the logit of a path's first token plus the
log-probabilities of the path's other tokens, a path of `k` tokens has the score

    sum, event   J
    mean         (J - L) / k + L
    mean_logit   J / k, with logits in place of all log-probabilities

The candidate set is a set of texts. The realized text may be a shared column or a continuation as
well; this column is the *target*. "mean" and "mean_logit" then score the text by the realized path
only, and leave the target out. "sum" and "event" add the path's probability to the target's, unless
both are the same path.

"event" subtracts from the probability of a text the share `M` of longer candidates that begin with
the text: the score of the text changes by `log(1 - M)`, with `1 - M` floored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

SCORES = ("mean", "sum", "event", "mean_logit")
EVENT_FLOOR = 1.0e-6
"""The floor of `1 - M`, the share of a text's probability that "event" leaves; the derivative is 0
at the floor."""


def mean_of_path(log_joint: Tensor, log_norm: Tensor, length: Tensor) -> Tensor:
    """Return the score "mean" of whole paths.

    Args:
        log_joint: `J` of every path.
        log_norm: The log-normalizers of the prefix rows.
        length: The number of tokens of every path, at least 1.

    Returns:
        `(J - L) / k + L`.
    """
    return (log_joint - log_norm) / length + log_norm


def mean_of_extended_path(
    log_joint: Tensor, log_norm: Tensor, per_token: Tensor, entry: Tensor, last: Tensor
) -> Tensor:
    """Return the score "mean" of paths that share all tokens except the last one.

    The shared beginning is divided once for all of its paths. Thousands of paths may share a
    beginning, so this is much less work than one division per path.

    Args:
        log_joint: `[e]` `J` of every beginning.
        log_norm: `[e]` log-normalizers of the prefix rows.
        per_token: `[e]` `1 / k`, with `k` the number of tokens of a whole path.
        entry: `[l]` number of every path's beginning.
        last: `[l]` log-probability of every path's last token.

    Returns:
        `[l]` scores `(J + last - L) / k + L`.
    """
    beginning = (log_joint - log_norm) * per_token + log_norm
    return beginning.index_select(0, entry).addcmul_(last, per_token.index_select(0, entry))


class Remainder:
    """`log(1 - M)` of texts, where `M` is the share of longer candidates in a text's probability.

    Args:
        remainder: `1 - M` of every text.
        is_candidate: Whether the text is a candidate; the logarithm is 0 for all other texts.
    """

    def __init__(self, remainder: Tensor, is_candidate: Tensor) -> None:
        floored = remainder <= EVENT_FLOOR
        self._constant = floored | ~is_candidate
        self._remainder = remainder.clamp_min(EVENT_FLOOR)
        self.log = self._remainder.log().masked_fill(~is_candidate, 0.0)

    def odds(self, taken: Tensor) -> Tensor:
        """Return `M / (1 - M)`, and 0 where the derivative is 0.

        Args:
            taken: `M` of every text.

        Returns:
            The ratios.
        """
        return (taken / self._remainder).masked_fill(self._constant, 0.0)

    def backward(self, grad: Tensor) -> Tensor:
        """Return the derivative by `M`.

        Args:
            grad: The derivative by the logarithm.

        Returns:
            The derivative.
        """
        return (-grad / self._remainder).masked_fill(self._constant, 0.0)


class RealizedText:
    """The realized path as a candidate, in a column of its own or merged with its target.

    Args:
        averages: Whether the score is "mean" or "mean_logit".
        slot: The column of the realized unit.
        target: `[c]` the other column with the realized text, -1 if there is none.
        same: `[c]` whether the target is the same path.
    """

    def __init__(self, averages: bool, slot: int, target: Tensor, same: Tensor) -> None:
        self._averages = averages
        self._slot = slot
        self._has_target = target >= 0
        self._adds = self._has_target & ~same
        self._target = target.clamp_min(0).unsqueeze(1)
        # The path's share of the text's probability, for `backward`.
        self._share: Tensor | None = None

    def insert(self, z: Tensor, own: Tensor, part: slice = slice(None)) -> None:
        """Write the realized scores, and merge them with their targets.

        Args:
            z: `[rows, columns]` scores; changed in place.
            own: `[rows]` scores of the realized paths.
            part: The units of the rows, among the `c` units.
        """
        target, has_target, adds = self._target[part], self._has_target[part], self._adds[part]
        at_target = z.gather(1, target).squeeze(1)
        if self._averages:
            at_target = at_target.masked_fill(has_target, -torch.inf)
            z.scatter_(1, target, at_target.unsqueeze(1))
            z[:, self._slot] = own
            return
        merged = torch.where(adds, torch.logaddexp(at_target, own), at_target)
        # The share is 0 where both paths have probability 0.
        share = (own - merged).exp_().nan_to_num_(0.0)
        if self._share is None:
            self._share = own.new_zeros(self._adds.shape)
        self._share[part] = torch.where(adds, share, 0.0)
        z.scatter_(1, target, merged.unsqueeze(1))
        z[:, self._slot] = own.masked_fill(has_target, -torch.inf)

    def backward(self, gradient: Tensor, part: slice = slice(None)) -> Tensor:
        """Return the derivative by the realized scores, and leave the target's part in place.

        Args:
            gradient: `[rows, columns]` derivative by the scores of the row; changed in place.
            part: The units of the rows, among the `c` units.

        Returns:
            `[rows]` derivatives.
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
