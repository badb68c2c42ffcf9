"""Internal: scores of on-path continuations and of the realized unit; see `formulas`.

The path of an on-path continuation is the first `b` realized tokens, followed by a last token. Let
`prefix_b` be the logit of the first realized token plus the log-probabilities of the next `b - 1`,
and `q` the log-probability of the last token. Then the path has `J = prefix_b + q` and `k = b + 1`.

Let `R_j` be the first j realized tokens. Only an `R_j` can be the beginning of another candidate.
Let `S_b` be the probability of all continuations that leave the realized tokens after b tokens, and
`p_b` that of the b-th realized token, both given the tokens before. The share of longer candidates
in the probability of `R_b` is

    M_b = S_b + p_{b+1} (M_{b+1} if R_{b+1} is not a candidate, 1 if R_{b+1} is the realized unit).

Where `R_{b+1}` is a continuation, `S_b` already includes it, and all candidates that begin with it.
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
    """The `e` entries of a group of units in one direction, and their `l` leaves.

    Attributes:
        unit: `[e]` the unit's number in the group, ascending.
        depth: `[e]` number of realized tokens that lead to the node.
        norm_at: `[e]` the row after these tokens, as a place in `SidePlan.norm_row` of the side
            that spells.
        entry: `[l]` the entry of every leaf, ascending.
        place: `[l]` the place of the leaf's score in the scores of the unit's chunk.
        bounds: `[units + 1]` number of leaves before each unit, on the host.
    """

    unit: Tensor
    depth: Tensor
    norm_at: Tensor
    entry: Tensor
    place: Tensor
    bounds: NDArray[np.int64]

    def of(self, part: slice) -> slice:
        """Return the range of the leaves of a range of units."""
        return slice(int(self.bounds[part.start]), int(self.bounds[part.stop]))

    def spread(self, values: Tensor) -> Tensor:
        """Return the values `[l]` of the leaves' entries, from `[e]` values."""
        # Ten times as fast as indexing on the CPU.
        return values.index_select(0, self.entry)

    def sums(self, values: Tensor) -> Tensor:
        """Return the sums `[e]` over the leaves of every entry, from `[l]` values."""
        return values.new_zeros(self.unit.shape).index_add_(0, self.entry, values)


@dataclass
class Leaves:
    """The spelled leaves, or the single leaves, of a group of units on one side.

    Attributes:
        entries: The entries of the leaves.
        token: `[l]` token id: the last token of a spelled leaf's path, or the single token.
        row: `[l]` flat logit row that predicts the token.
        value: `[l]` log-probability of the token for spelled leaves, logit for single leaves.
    """

    entries: Entries
    token: Tensor
    row: Tensor
    value: Tensor


@dataclass
class PathGradient:
    """The derivatives by the inputs of the scores of a group of `c` units.

    Attributes:
        first: `[c]` derivative by the logit of the first realized token.
        log_norm: `[c]` derivative by the prefix row's log-normalizer.
        steps: `[c, d]` derivative by the realized tokens' log-probabilities; 0 in the first column.
        rest: `[c]` derivative by the sum over the later steps of the realized path.
        spelled: `[l]` derivative by the values of the spelled leaves.
        single: `[l]` derivative by the values of the single leaves.
    """

    first: Tensor
    log_norm: Tensor
    steps: Tensor
    rest: Tensor
    spelled: Tensor
    single: Tensor


@dataclass
class RealizedUnits:
    """The realized tokens of a group of `c` units on one side.

    Attributes:
        length: `[c]` number of tokens of the realized path, 0 where there is none.
        node: `[c, d]` column of `R_j` where `R_j` is a candidate other than the realized unit, −1
            elsewhere.
        continues: `[c, d]` whether `R_j` is a continuation of at least two tokens.
        target: `[c]` the other column with the realized text, −1 if there is none.
        same: `[c]` whether the target's path is the realized path.
        steps: `[c, d]` log-probabilities of realized tokens, 0 in the first column.
        rest: `[c]` sum over the later steps of the realized path.
        first: `[c]` logit of the first realized token.
        log_norm: `[c]` log-normalizers of the prefix rows; None where they are not needed.
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

    Values that do not depend on the shared columns are computed once for the group. `insert` and
    `collect` then read and write the rows of scores, a chunk of the group at a time.

    Args:
        score: `"mean"`, `"sum"` or `"event"`.
        slot: The column of the realized unit.
        units: The realized tokens of the units.
        spelled: The spelled leaves.
        single: The single leaves.
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
        # The derivatives that `collect` reads, for all chunks of the group.
        self._d_spelled = torch.zeros_like(spelled.value)
        self._d_single = torch.zeros_like(single.value)
        self._d_own = torch.zeros_like(self._own)
        self._d_node = torch.zeros_like(self._taken)

    def _taken_by_candidates(self) -> Tensor:
        """Return `M_1 .. M_d`, `[c, d]`."""
        units, depth = self._units, self._depth
        taken = torch.zeros_like(units.steps)
        taken.view(-1).index_add_(0, self._level, self._spelled.entries.sums(self._probs))
        # The realized path may go on after R_d, where no other candidate begins.
        beyond = (units.rest - units.steps.sum(1)).exp()
        self._beyond = beyond.masked_fill(units.length <= depth, 0.0)
        taken[:, -1] += self._beyond
        self._weights = torch.zeros_like(taken)
        for b in range(depth - 1, 0, -1):
            alone = (self._ends_here[:, b] & ~units.continues[:, b]).to(taken.dtype)
            longer = torch.where(self._is_node[:, b], alone, taken[:, b])
            self._weights[:, b] = units.steps[:, b].exp() * longer
            taken[:, b - 1] += self._weights[:, b]
        return taken

    def covered_after_first(self, first_log_prob: Tensor) -> Tensor:
        """Return the mass that candidates of several tokens add.

        Args:
            first_log_prob: `[c]` log-probability of the first realized token.

        Returns:
            `[c]` masses, in addition to those of the shared tokens and the single leaves. A
            candidate that begins with another candidate adds 0.
        """
        taken = torch.where(self._ends_here[:, 0], 1.0, self._taken[:, 0])
        is_other = self._is_node[:, 0] & (self._node[:, 0] != self._slot)
        return (first_log_prob.exp() * taken).masked_fill(is_other, 0.0)

    def insert(self, z: Tensor, part: slice, *, has_paths: bool) -> None:
        """Write all scores except those of the shared columns into the rows of a chunk.

        Args:
            z: `[rows, columns]` logits of the shared columns, −inf elsewhere; contiguous.
            part: The chunk's units in the group.
            has_paths: Whether the chunk has MULTI units.
        """
        for leaves, scores in ((self._spelled, self._joint), (self._single, self._single.value)):
            here = leaves.entries.of(part)
            if here.stop > here.start:
                z.view(-1).index_copy_(0, leaves.entries.place[here], scores[here])
        if has_paths:
            z[:, self._slot] = self._own[part]
        if self._event:
            # A column is a node of its row at most once; columns without a node add 0.
            z.scatter_add_(1, self._node[part], self._remainder.log[part])
        if has_paths:
            self._text.insert(z, z[:, self._slot], part)

    def collect(self, gradient: Tensor, part: slice, *, has_paths: bool) -> None:
        """Read the derivative by a chunk's scores; leave that by the shared columns in place.

        Args:
            gradient: `[rows, columns]` derivative by the scores. In the shared columns the
                derivative by the logits replaces it.
            part: The chunk's units in the group.
            has_paths: Whether the chunk has MULTI units.
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
        """Turn the derivatives that `collect` read into those by the inputs of the scores."""
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
        """Add the derivatives through `M_1 .. M_d`, given the derivatives by `M_1 .. M_d`."""
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
