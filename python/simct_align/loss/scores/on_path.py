"""Scores of on-path continuations and of the realized unit among them; formulas as in `formulas`.

With `prefix_b` the logit of the first realized token plus the log-probabilities of the next
`b - 1`, and `q` the log-probability of a continuation's last token, a continuation that leaves
the realized tokens after `b` of them has `J = prefix_b + q` and `k = b + 1`.

Only `R_j`, the first j realized tokens, can be the beginning of another candidate. With `S_b`
the probability of all continuations that leave after b tokens, and `p_b` that of the b-th token,
both given the tokens before it,

    M_b = S_b + p_{b+1} (M_{b+1} if R_{b+1} is not a candidate, 1 if R_{b+1} is the realized unit)

is what longer candidates take of `R_b`. Where `R_{b+1}` is a continuation, `S_b` holds it
already, with all candidates that begin with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .formulas import RealizedText, Remainder, mean_of_extended_path, mean_of_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass
class Entries:
    """The `e` nodes that a group of units reaches in one direction, and their `l` leaves.

    Attributes:
        unit: `[e]` the unit's number in the group, ascending.
        depth: `[e]` realized tokens that lead to the node.
        norm_at: `[e]` the row behind them, as a place among the rows with a log-normalizer of the
            side that spells.
        entry: `[l]` the entry of every leaf, ascending.
        place: `[l]` where its score stands in the scores of its unit's chunk.
        bounds: `[units + 1]` leaves before each unit, on the host.
    """

    unit: Tensor
    depth: Tensor
    norm_at: Tensor
    entry: Tensor
    place: Tensor
    bounds: NDArray[np.int64]

    def of(self, part: slice) -> slice:
        """Return where the leaves of a range of units stand."""
        return slice(int(self.bounds[part.start]), int(self.bounds[part.stop]))

    def spread(self, values: Tensor) -> Tensor:
        """Return for each leaf `[l]` what its entry has, of `[e]`."""
        # Ten times as fast as an index on the CPU.
        return values.index_select(0, self.entry)

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum `[e]` over each entry of what its leaves `[l]` have."""
        return values.new_zeros(self.unit.shape).index_add_(0, self.entry, values)


@dataclass
class Leaves:
    """Continuations of a group of units on one side: all that it spells, or its own tokens.

    Attributes:
        entries: where they begin.
        token: `[l]` the token id: the last of the path, or the only one.
        row: `[l]` the flat logit row that predicts it.
        value: `[l]` log-probability of the token, for a token of its own the logit.
    """

    entries: Entries
    token: Tensor
    row: Tensor
    value: Tensor


@dataclass
class PathGradient:
    """Derivatives by what the scores of a group of `c` units were made of.

    Attributes:
        first: `[c]` by the logit of the first realized token.
        log_norm: `[c]` by the prefix row's log-normalizer.
        steps: `[c, d]` by the log-probabilities of realized tokens; the first column is 0.
        rest: `[c]` by the sum over the realized path behind its first token.
        spelled: by the log-probabilities of the last tokens of spelled leaves.
        single: by the logits of single leaves.
    """

    first: Tensor
    log_norm: Tensor
    steps: Tensor
    rest: Tensor
    spelled: Tensor
    single: Tensor


@dataclass
class RealizedUnits:
    """A group of `c` units on one side, as far as their realized tokens go.

    Attributes:
        length: `[c]` tokens of the realized path, 0 where there is none.
        node: `[c, d]` the column of `R_j` where that is a candidate beside the realized unit,
            −1 elsewhere.
        continues: `[c, d]` whether `R_j` is a continuation, of two tokens or more.
        target: `[c]` the column of the realized text beside the slot, −1 if none.
        same: `[c]` whether the target's path is the realized one.
        steps: `[c, d]` log-probabilities of realized tokens, 0 in the first column.
        rest: `[c]` sum over the realized path behind its first token.
        first: `[c]` logit of the first realized token.
        log_norm: `[c]` log-normalizers of the prefix rows, or None where nobody needs them.
    """

    length: Tensor
    node: Tensor
    continues: Tensor
    target: Tensor
    same: Tensor
    steps: Tensor
    rest: Tensor
    first: Tensor
    log_norm: Tensor | None


class PathScores:
    """The paths of a group of units on one side.

    All that does not depend on the shared columns is computed once for the group, and a chunk of
    it then takes part in `insert` and `collect`, which touch its rows of scores.

    Args:
        score: `"mean"`, `"sum"` or `"event"`.
        slot: the column of the realized unit.
        units: the units.
        spelled: continuations that this side spells.
        single: continuations that are its own tokens.
    """

    def __init__(
        self, score: str, slot: int, units: RealizedUnits, spelled: Leaves, single: Leaves
    ) -> None:
        self._averages = score == "mean"
        self._event = score == "event"
        self._slot = slot
        self._units = units
        self._spelled = spelled
        self._single = single
        self._is_path = units.length > 0
        self._text = RealizedText(self._averages, slot, units.target, units.same)
        self._depth = units.steps.shape[1]
        level = torch.arange(1, self._depth + 1, device=units.length.device)
        self._ends_here = units.length.unsqueeze(1) == level
        column = torch.where((units.node < 0) & self._ends_here, slot, units.node)
        self._is_node = column >= 0
        self._node = column.clamp_min(0)
        entries = spelled.entries
        self._level = entries.unit * self._depth + entries.depth - 1
        self._probs = spelled.value.exp()
        self._taken = self._taken_by_candidates()
        prefix = (units.first.unsqueeze(1) + units.steps.cumsum(1)).view(-1)[self._level]
        self._own = units.first + units.rest
        if not self._averages:
            self._joint = entries.spread(prefix).add_(spelled.value)
        else:
            norm = units.log_norm
            assert norm is not None
            self._per_token = (entries.depth + 1).to(norm.dtype).reciprocal_()
            self._joint = mean_of_extended_path(
                prefix, norm[entries.unit], self._per_token, entries.entry, spelled.value
            )
            self._own = mean_of_path(self._own, norm, units.length.clamp_min(1))
        self._own.masked_fill_(~self._is_path, -torch.inf)
        if self._event:
            self._remainder = Remainder(1.0 - self._taken, self._is_node)
        # What `collect` finds, for all chunks of the group.
        self._d_spelled = torch.zeros_like(spelled.value)
        self._d_single = torch.zeros_like(single.value)
        self._d_own = torch.zeros_like(self._own)
        self._d_node = torch.zeros_like(self._taken)

    def _taken_by_candidates(self) -> Tensor:
        """`M_1 .. M_d`, `[c, d]`."""
        units, depth = self._units, self._depth
        taken = torch.zeros_like(units.steps)
        taken.view(-1).index_add_(0, self._level, self._spelled.entries.sums(self._probs))
        # The realized path goes on behind R_d, where no other candidate begins any more.
        beyond = (units.rest - units.steps.sum(1)).exp()
        self._beyond = beyond.masked_fill(units.length <= depth, 0.0)
        taken[:, -1] += self._beyond
        self._weights = torch.zeros_like(taken)
        for b in range(depth - 1, 0, -1):
            alone = (self._ends_here[:, b] & ~units.continues[:, b]).to(taken.dtype)
            behind = torch.where(self._is_node[:, b], alone, taken[:, b])
            self._weights[:, b] = units.steps[:, b].exp() * behind
            taken[:, b - 1] += self._weights[:, b]
        return taken

    def covered_behind_first(self, first_log_prob: Tensor) -> Tensor:
        """Return the probability of candidates of several tokens that no candidate begins.

        Args:
            first_log_prob: `[c]` log-probability of the first realized token.

        Returns:
            `[c]`: what they add to the probability of the shared tokens and single leaves.
        """
        taken = torch.where(self._ends_here[:, 0], 1.0, self._taken[:, 0])
        beside = self._is_node[:, 0] & (self._node[:, 0] != self._slot)
        return (first_log_prob.exp() * taken).masked_fill(beside, 0.0)

    def insert(self, z: Tensor, part: slice, *, has_paths: bool) -> None:
        """Write all scores but those of the shared columns into the rows of a chunk.

        Args:
            z: `[rows, columns]`: logits of the shared columns, −inf elsewhere; contiguous.
            part: the chunk's units in the group.
            has_paths: whether some of them are MULTI.
        """
        for leaves, scores in ((self._spelled, self._joint), (self._single, self._single.value)):
            here = leaves.entries.of(part)
            if here.stop > here.start:
                z.view(-1).index_copy_(0, leaves.entries.place[here], scores[here])
        if has_paths:
            z[:, self._slot] = self._own[part]
        if self._event:
            # No column is twice a node of its row, except those that are none.
            z.scatter_add_(1, self._node[part], self._remainder.log[part])
        if has_paths:
            self._text.insert(z, z[:, self._slot], part)

    def collect(self, gradient: Tensor, part: slice, *, has_paths: bool) -> None:
        """Take the derivative by a chunk's scores but for the shared columns, which stay in place.

        Args:
            gradient: `[rows, columns]`; the shared columns become the derivative by their logits.
            part: the chunk's units in the group.
            has_paths: whether some of them are MULTI.
        """
        if has_paths:
            own = self._text.backward(gradient, part)
            gradient[:, self._slot] = own
            self._d_own[part] = own
        if self._event:
            self._d_node[part] = gradient.gather(1, self._node[part])
        for leaves, grad in ((self._spelled, self._d_spelled), (self._single, self._d_single)):
            here = leaves.entries.of(part)
            if here.stop > here.start:
                place = leaves.entries.place[here]
                torch.index_select(gradient.view(-1), 0, place, out=grad[here])

    def backward(self) -> PathGradient:
        """Turn what `collect` took of the whole group into the derivatives of its parts."""
        units, entries = self._units, self._spelled.entries
        log_norm = torch.zeros_like(units.first)
        own = self._d_own.masked_fill(~self._is_path, 0.0)
        joint = self._d_spelled
        if self._averages:
            length = units.length.clamp_min(1)
            log_norm += own * (length - 1) / length
            by_norm = entries.sums(joint) * entries.depth * self._per_token
            log_norm.index_add_(0, entries.unit, by_norm)
            own, joint = own / length, joint * entries.spread(self._per_token)
        at_prefix = torch.zeros_like(units.steps)
        at_prefix.view(-1).index_add_(0, self._level, entries.sums(joint))
        steps = at_prefix.flip(1).cumsum(1).flip(1)
        grads = PathGradient(steps[:, 0] + own, log_norm, steps, own.clone(), joint, self._d_single)
        if self._event:
            self._through_taken(self._remainder.backward(self._d_node), grads)
        grads.steps[:, 0] = 0.0
        return grads

    def _through_taken(self, by_taken: Tensor, grads: PathGradient) -> None:
        """Add the derivatives through `M_1 .. M_d`, given those of the candidates by them."""
        units = self._units
        for b in range(1, self._depth):
            above = by_taken[:, b - 1]
            grads.steps[:, b] += above * self._weights[:, b]
            passed = above * units.steps[:, b].exp()
            by_taken[:, b] += passed.masked_fill(self._is_node[:, b], 0.0)
        beyond = by_taken[:, -1] * self._beyond
        grads.rest += beyond
        grads.steps[:, 1:] -= beyond.unsqueeze(1)
        at_entry = by_taken.reshape(-1)[self._level]
        grads.spelled += self._spelled.entries.spread(at_entry) * self._probs
