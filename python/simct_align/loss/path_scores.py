"""Scores of paths beside the shared columns: the realized unit and on-path continuations.

A row of scores holds logits ``z`` instead of ``log p = z - L`` (the row's softmax does not see the
difference), so all else in it is shifted by the prefix row's log-normalizer ``L`` as well. With
``pre_b`` the logit of the first realized token and the log-probabilities of the next ``b - 1``, and
``q`` the log-probability of a continuation's last token, its path has

    sum, event   J = pre_b + q
    mean         (J - L) / (b + 1) + L

"event" takes from a text what a longer candidate says. Only ``R_j``, the first j realized tokens,
can be the beginning of another candidate. With ``S_b`` the probability of all continuations that
leave after b tokens, and ``p_b`` that of the b-th token, both behind what comes before,

    M_b = S_b + p_{b+1} (M_{b+1} if R_{b+1} is no candidate, 1 if it is the realized unit alone)

is what candidates take of ``R_b`` (a continuation ``R_{b+1}`` is in ``S_b`` already, and keeps what
lies behind it to itself), and ``log(1 - M_j)`` is added to the score of every candidate ``R_j``.

C(h) is a set of texts: where the realized text is a shared column or a continuation (its *target*),
"mean" lets the realized path stand for it and leaves the target out; "sum" and "event" add the
path's probability to the target's, unless both are the same path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .realized import EVENT_FLOOR

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass
class Entries:
    """The ``e`` nodes that a group of units reaches in one direction, and their ``l`` leaves.

    Attributes:
        unit: ``[e]`` the unit's number in the group, ascending.
        depth: ``[e]`` realized tokens that lead to the node.
        norm_at: ``[e]`` the row behind them, as a place among the rows with a log-normalizer of the
            side that spells.
        entry: ``[l]`` the entry of every leaf, ascending.
        place: ``[l]`` where its score stands in the scores of its unit's chunk.
        bounds: ``[units + 1]`` leaves before each unit, on the host.
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
        """Return for each leaf ``[l]`` what its entry has, of ``[e]``."""
        # Ten times as fast as an index on the CPU.
        return values.index_select(0, self.entry)

    def sums(self, values: Tensor) -> Tensor:
        """Return the sum ``[e]`` over each entry of what its leaves ``[l]`` have."""
        return values.new_zeros(self.unit.shape).index_add_(0, self.entry, values)


@dataclass
class Leaves:
    """Continuations of a group of units on one side: all that it spells, or its own tokens.

    Attributes:
        entries: where they begin.
        token: ``[l]`` the token id: the last of the path, or the only one.
        row: ``[l]`` the flat logit row that predicts it.
        value: ``[l]`` log-probability of the token, for a token of its own the logit.
    """

    entries: Entries
    token: Tensor
    row: Tensor
    value: Tensor


@dataclass
class PathSlopes:
    """Derivatives by what the scores of a group of ``c`` units were made of.

    Attributes:
        first: ``[c]`` by the logit of the first realized token.
        log_norm: ``[c]`` by the prefix row's log-normalizer.
        steps: ``[c, d]`` by the log-probabilities of realized tokens; the first column is 0.
        rest: ``[c]`` by the sum over the realized path behind its first token.
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
    """A group of ``c`` units on one side, as far as their realized tokens go.

    Attributes:
        length: ``[c]`` tokens of the realized path, 0 where there is none.
        node: ``[c, d]`` the column of ``R_j`` where that is a candidate beside the realized unit,
            −1 elsewhere.
        continues: ``[c, d]`` whether ``R_j`` is a continuation, of two tokens or more.
        target: ``[c]`` the column of the realized text beside the slot, −1 if none.
        same: ``[c]`` whether the target's path is the realized one.
        steps: ``[c, d]`` log-probabilities of realized tokens, 0 in the first column.
        rest: ``[c]`` sum over the realized path behind its first token.
        first: ``[c]`` logit of the first realized token.
        log_norm: ``[c]`` log-normalizers of the prefix rows, or None where nobody needs them.
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
        score: ``"mean"``, ``"sum"`` or ``"event"``.
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
        self._listed = units.target >= 0
        self._adds = self._listed & ~units.same
        self._target = units.target.clamp_min(0).unsqueeze(1)
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
            at_entry = norm[entries.unit]
            self._per_token = (entries.depth + 1).to(norm.dtype).reciprocal_()
            prefix = (prefix - at_entry) * self._per_token + at_entry
            self._joint = entries.spread(prefix).addcmul_(
                spelled.value, entries.spread(self._per_token)
            )
            self._own = (self._own - norm) / units.length.clamp_min(1) + norm
        self._own.masked_fill_(~self._is_path, -torch.inf)
        if self._event:
            stays = 1.0 - self._taken
            self._floored = stays <= EVENT_FLOOR
            self._stays = stays.clamp_min(EVENT_FLOOR)
            self._factor = self._stays.log().masked_fill(~self._is_node, 0.0)
        self._share = torch.zeros_like(self._own)
        # What `collect` finds, for all chunks of the group.
        self._d_spelled = torch.zeros_like(spelled.value)
        self._d_single = torch.zeros_like(single.value)
        self._d_own = torch.zeros_like(self._own)
        self._d_node = torch.zeros_like(self._taken)

    def _taken_by_candidates(self) -> Tensor:
        """``M_1 .. M_d``, ``[c, d]``."""
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
            first_log_prob: ``[c]`` log-probability of the first realized token.

        Returns:
            ``[c]``: what they add to the probability of the shared tokens and single leaves.
        """
        taken = torch.where(self._ends_here[:, 0], 1.0, self._taken[:, 0])
        beside = self._is_node[:, 0] & (self._node[:, 0] != self._slot)
        return (first_log_prob.exp() * taken).masked_fill(beside, 0.0)

    def insert(self, z: Tensor, part: slice, *, has_paths: bool) -> None:
        """Write all scores but those of the shared columns into the rows of a chunk.

        Args:
            z: ``[rows, columns]``: logits of the shared columns, −inf elsewhere; contiguous.
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
            z.scatter_add_(1, self._node[part], self._factor[part])
        if not has_paths:
            return
        target, listed, adds = self._target[part], self._listed[part], self._adds[part]
        at_target = z.gather(1, target).squeeze(1)
        if self._averages:
            at_target = at_target.masked_fill(listed, -torch.inf)
            z.scatter_(1, target, at_target.unsqueeze(1))
            return
        own = z[:, self._slot]
        merged = torch.where(adds, torch.logaddexp(at_target, own), at_target)
        # The path's share of its text; where neither has probability there is nothing to share.
        share = (own - merged).exp_().nan_to_num_(0.0)
        self._share[part] = torch.where(adds, share, 0.0)
        z.scatter_(1, target, merged.unsqueeze(1))
        z[:, self._slot] = own.masked_fill(listed, -torch.inf)

    def collect(self, gradient: Tensor, part: slice, *, has_paths: bool) -> None:
        """Take the derivative by a chunk's scores but for the shared columns, which stay in place.

        Args:
            gradient: ``[rows, columns]``; the shared columns become the derivative by their logits.
            part: the chunk's units in the group.
            has_paths: whether some of them are MULTI.
        """
        if has_paths:
            own = gradient[:, self._slot]
            if not self._averages:
                at_target = gradient.gather(1, self._target[part]).squeeze(1)
                own = own + self._share[part] * at_target
                at_target = (1 - self._share[part]) * at_target
                gradient.scatter_(1, self._target[part], at_target.unsqueeze(1))
                gradient[:, self._slot] = own
            self._d_own[part] = own
        if self._event:
            self._d_node[part] = gradient.gather(1, self._node[part])
        for leaves, slope in ((self._spelled, self._d_spelled), (self._single, self._d_single)):
            here = leaves.entries.of(part)
            if here.stop > here.start:
                place = leaves.entries.place[here]
                torch.index_select(gradient.view(-1), 0, place, out=slope[here])

    def pull_back(self) -> PathSlopes:
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
        slopes = PathSlopes(steps[:, 0] + own, log_norm, steps, own.clone(), joint, self._d_single)
        if self._event:
            by_taken = (-self._d_node / self._stays).masked_fill_(
                self._floored | ~self._is_node, 0.0
            )
            self._through_taken(by_taken, slopes)
        slopes.steps[:, 0] = 0.0
        return slopes

    def _through_taken(self, by_taken: Tensor, slopes: PathSlopes) -> None:
        """Add the derivatives through ``M_1 .. M_d``, given those of the candidates by them."""
        units = self._units
        for b in range(1, self._depth):
            above = by_taken[:, b - 1]
            slopes.steps[:, b] += above * self._weights[:, b]
            passed = above * units.steps[:, b].exp()
            by_taken[:, b] += passed.masked_fill(self._is_node[:, b], 0.0)
        beyond = by_taken[:, -1] * self._beyond
        slopes.rest += beyond
        slopes.steps[:, 1:] -= beyond.unsqueeze(1)
        at_entry = by_taken.reshape(-1)[self._level]
        slopes.spelled += self._spelled.entries.spread(at_entry) * self._probs
