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
    from torch import Tensor


@dataclass
class Leaves:
    """Continuations of a chunk of units on one side.

    Attributes:
        unit: ``[l]`` the unit's number in the chunk.
        flat: ``[l]`` the place of the score in the chunk's scores, flattened.
        token: ``[l]`` the token id: the last of the path, or the only one.
        row: ``[l]`` the flat logit row that predicts it.
        depth: ``[l]`` realized tokens before it, 0 for a single token.
        norm_at: ``[l]`` the row's place among those with a log-normalizer; unused at depth 0.
        value: ``[l]`` log-probability of the token, for a single token its logit.
    """

    unit: Tensor
    flat: Tensor
    token: Tensor
    row: Tensor
    depth: Tensor
    norm_at: Tensor
    value: Tensor


@dataclass
class PathSlopes:
    """Derivatives by what `PathScores.insert` read, of a chunk of ``c`` units.

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


class PathScores:
    """The paths of a chunk of units on one side.

    Args:
        score: ``"mean"``, ``"sum"`` or ``"event"``.
        slot: the column of the realized unit.
        length: ``[c]`` tokens of the realized path, 0 where there is none.
        node: ``[c, d]`` the column of ``R_j`` where that is a candidate beside the realized unit,
            −1 elsewhere.
        continues: ``[c, d]`` whether ``R_j`` is a continuation, of two tokens or more.
        target: ``[c]`` the column of the realized text beside the slot, −1 if none.
        same: ``[c]`` whether the target's path is the realized one.
        steps: ``[c, d]`` log-probabilities of realized tokens; the first column is not read.
        rest: ``[c]`` sum over the realized path behind its first token.
        first: ``[c]`` logit of the first realized token.
        log_norm: ``[c]`` log-normalizers of the prefix rows, or None where nobody needs them.
        spelled: continuations that this side spells.
        single: continuations that are its own tokens.
    """

    def __init__(
        self,
        score: str,
        slot: int,
        length: Tensor,
        node: Tensor,
        continues: Tensor,
        target: Tensor,
        same: Tensor,
        steps: Tensor,
        rest: Tensor,
        first: Tensor,
        log_norm: Tensor | None,
        spelled: Leaves,
        single: Leaves,
    ) -> None:
        self._score = score
        self._slot = slot
        self._length = length
        self._is_path = length > 0
        self._listed = target >= 0
        self._same = same & self._listed
        self._target = target.clamp_min(0).unsqueeze(1)
        self._rest = rest
        self._first = first
        self._log_norm = log_norm
        self._spelled = spelled
        self._single = single
        self._continues = continues
        self._depth = steps.shape[1]
        level = torch.arange(1, self._depth + 1, device=length.device)
        self._ends_here = length.unsqueeze(1) == level
        column = torch.where((node < 0) & self._ends_here, slot, node)
        self._is_node = column >= 0
        self._node = column.clamp_min(0)
        self._steps = steps.clone()
        self._steps[:, 0] = 0.0
        self._prefix = first.unsqueeze(1) + self._steps.cumsum(1)
        self._taken = self._taken_by_candidates()

    def _taken_by_candidates(self) -> Tensor:
        """``M_1 .. M_d``, ``[c, d]``."""
        leaves, depth = self._spelled, self._depth
        rows = self._length.shape[0]
        taken = torch.zeros(rows * depth, dtype=self._first.dtype, device=self._first.device)
        taken.index_add_(0, leaves.unit * depth + leaves.depth - 1, leaves.value.exp())
        taken = taken.view(rows, depth)
        # The realized path goes on behind R_d, where no other candidate begins any more.
        beyond = (self._rest - self._steps.sum(1)).exp()
        self._beyond = beyond.masked_fill(self._length <= depth, 0.0)
        taken[:, -1] += self._beyond
        self._weights = torch.zeros_like(taken)
        for b in range(depth - 1, 0, -1):
            is_node, continues = self._is_node[:, b], self._continues[:, b]
            alone = (self._ends_here[:, b] & ~continues).to(taken.dtype)
            behind = torch.where(is_node, alone, taken[:, b])
            self._weights[:, b] = self._steps[:, b].exp() * behind
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

    def insert(self, z: Tensor) -> None:
        """Write all scores but those of the shared columns into the rows.

        Args:
            z: ``[c, columns]``: logits of the shared columns, −inf elsewhere; contiguous.
        """
        flat, spelled = z.view(-1), self._spelled
        joint = self._prefix.view(-1)[spelled.unit * self._depth + spelled.depth - 1]
        joint = joint + spelled.value
        own = self._first + self._rest
        if self._score == "mean":
            assert self._log_norm is not None
            norm = self._log_norm[spelled.unit]
            joint = (joint - norm) / (spelled.depth + 1) + norm
            own = (own - self._log_norm) / self._length.clamp_min(1) + self._log_norm
        flat.index_copy_(0, spelled.flat, joint)
        flat.index_copy_(0, self._single.flat, self._single.value)
        z[:, self._slot] = own.masked_fill(~self._is_path, -torch.inf)
        at_target = z.gather(1, self._target).squeeze(1)
        if self._score == "mean":
            at_target = at_target.masked_fill(self._listed, -torch.inf)
            z.scatter_(1, self._target, at_target.unsqueeze(1))
            return
        if self._score == "event":
            stays = 1.0 - self._taken
            self._floored = stays <= EVENT_FLOOR
            self._stays = stays.clamp_min(EVENT_FLOOR)
            # No column is twice a node of its row, except those that are none.
            factor = self._stays.log().masked_fill(~self._is_node, 0.0)
            z.scatter_add_(1, self._node, factor)
            at_target = z.gather(1, self._target).squeeze(1)
        own = z[:, self._slot].clone()
        adds = self._listed & ~self._same
        merged = torch.where(adds, torch.logaddexp(at_target, own), at_target)
        # The path's share of its text; where neither has probability there is nothing to share.
        share = (own - merged).exp_().nan_to_num_(0.0)
        self._share = torch.where(adds, share, torch.zeros_like(share))
        z.scatter_(1, self._target, merged.unsqueeze(1))
        z[:, self._slot] = own.masked_fill(self._listed, -torch.inf)

    def pull_back(self, gradient: Tensor) -> PathSlopes:
        """Turn the derivative by the row's scores into that by what `insert` read.

        Args:
            gradient: ``[c, columns]``; the shared columns' part is changed in place to the
                derivative by their logits. Contiguous.

        Returns:
            All other derivatives.
        """
        spelled, depth = self._spelled, self._depth
        log_norm = torch.zeros_like(self._first)
        by_taken = None
        own = gradient[:, self._slot]
        if self._score == "mean":
            length = self._length.clamp_min(1)
            log_norm += own * (length - 1) / length
            own = own / length
        else:
            at_target = gradient.gather(1, self._target).squeeze(1)
            own = own + self._share * at_target
            at_target = (1 - self._share) * at_target
            gradient.scatter_(1, self._target, at_target.unsqueeze(1))
            if self._score == "event":
                gradient[:, self._slot] = own
                by_taken = -gradient.gather(1, self._node) / self._stays
                by_taken = by_taken.masked_fill(self._floored | ~self._is_node, 0.0)
        own = own.masked_fill(~self._is_path, 0.0)
        joint = gradient.view(-1)[spelled.flat]
        if self._score == "mean":
            tokens = spelled.depth + 1
            log_norm.index_add_(0, spelled.unit, joint * spelled.depth / tokens)
            joint = joint / tokens
        at_prefix = torch.zeros_like(self._prefix).view(-1)
        at_prefix.index_add_(0, spelled.unit * depth + spelled.depth - 1, joint)
        at_prefix = at_prefix.view(-1, depth)
        steps = at_prefix.flip(1).cumsum(1).flip(1)
        slopes = PathSlopes(
            first=steps[:, 0] + own,
            log_norm=log_norm,
            steps=steps,
            rest=own.clone(),
            spelled=joint,
            single=gradient.view(-1)[self._single.flat],
        )
        if by_taken is not None:
            self._through_taken(by_taken, slopes)
        slopes.steps[:, 0] = 0.0
        return slopes

    def _through_taken(self, by_taken: Tensor, slopes: PathSlopes) -> None:
        """Add the derivatives through ``M_1 .. M_d``, given those of the candidates by them."""
        for b in range(1, self._depth):
            above = by_taken[:, b - 1]
            slopes.steps[:, b] += above * self._weights[:, b]
            passed = above * self._steps[:, b].exp()
            by_taken[:, b] += passed.masked_fill(self._is_node[:, b], 0.0)
        beyond = by_taken[:, -1] * self._beyond
        slopes.rest += beyond
        slopes.steps[:, 1:] -= beyond.unsqueeze(1)
        spelled = self._spelled
        level = spelled.unit * self._depth + spelled.depth - 1
        slopes.spelled += by_taken.reshape(-1)[level] * spelled.value.exp()
