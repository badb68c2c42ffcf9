"""Internal: the partition of the texts that can follow into events that both models give."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from .leaves import compare_leaves

if TYPE_CHECKING:
    from torch import Tensor

    from ....divergence import Divergence
    from ...text_layout import TreeTensors
    from .text import SideMasses

#: The share of an offset's mass below which the masses of nodes are not told apart.
NEGLIGIBLE = 1e-12


class SlotGradient(NamedTuple):
    """Derivatives by one side's masses.

    Attributes:
        slots: `[O, 2 N + 1]` by slot; the last column is 0.
        stop: `[O]` by the mass of the stops.
        ended: `[O]` by the mass of tokens that end at the offset.
    """

    slots: Tensor
    stop: Tensor
    ended: Tensor


class Partition:
    """The leaves at the offsets of a chunk.

    An offset is *left out* where tokens of earlier rows end at it with more than `epsilon` of the
    mass of a side. A node of the tree is *closed* where tokens end exactly behind its string with
    more than `epsilon` of its mass on a side, unless both vocabularies have the same strings below
    it; a node of less than `NEGLIGIBLE` of the offset's mass is taken to have that much. What is
    below a closed node is one leaf. Where straddling tokens hold more than `epsilon`, and where one
    side has no row, every node below the root is closed.

    Args:
        tree: The joint tree.
        teacher: The teacher's masses.
        student: The student's.
        epsilon: The share of mass that may end unknown.
        straddled: `"byte"`: close all nodes below the root where tokens straddle; `"tree"`: do not.
        may_lack_rows: Whether a side may have no row at one of the offsets.
    """

    def __init__(
        self,
        tree: TreeTensors,
        teacher: SideMasses,
        student: SideMasses,
        *,
        epsilon: float,
        straddled: str,
        may_lack_rows: bool,
    ) -> None:
        self._tree, self._n, self._may_lack_rows = tree, len(tree), may_lack_rows
        sides = self._sides = (teacher, student)
        self.both_own = teacher.has_own & student.has_own
        known = teacher.known & student.known
        self.spoiled = teacher.spoiled | student.spoiled
        self.counted = (
            known & ~self.spoiled & (teacher.ended <= epsilon) & (student.ended <= epsilon)
        )
        self.unlisted = torch.zeros_like(self.counted)
        #: `[O, 2 N]` the numbers of the teacher's tokens of every slot, all and listed ones.
        self._counts: tuple[Tensor, Tensor] | None = None
        if teacher.lists is not None:
            self._counts = teacher.lists.counts(teacher.table, 2 * self._n)
            self.unlisted = teacher.lists.unknown & ~self.spoiled
            self.counted &= ~self.unlisted
        straddles = (teacher.straddling > epsilon) | (student.straddling > epsilon)
        self.deep = self.both_own & ~straddles
        if straddled == "tree":
            self.deep = torch.ones_like(self.deep)

        self._below = [self._subtrees(side.slots) for side in sides]
        cut = self._closed(epsilon)
        absent = self._absent()
        if absent is not None:
            cut |= absent
        node = torch.arange(self._n, dtype=torch.int32, device=cut.device)
        end = tree.subtree_end.to(torch.int32).masked_fill(~cut, 0).cummax(1).values
        hidden = torch.zeros_like(cut)
        torch.gt(end[:, :-1], node[1:], out=hidden[:, 1:])
        top = cut & ~hidden
        # The closed or absent node above every hidden one; a node that is not hidden is its own.
        last = node.masked_fill(~(top | ~hidden), 0).cummax(1).values.long()
        #: `[O, N]` the node whose leaf every node belongs to.
        self._leaf = last
        if absent is not None:
            self._leaf = torch.where(absent.gather(1, last), tree.parent[last], last)
        self._exact = ~hidden & ~cut & tree.same & self.both_own.unsqueeze(1)

    def _subtrees(self, slots: Tensor) -> Tensor:
        """Return `[O, N]` the masses of the nodes' subtrees."""
        mass = slots[:, : self._n] + slots[:, self._n :]
        before = torch.zeros(mass.shape[0], self._n + 1, dtype=torch.float64, device=mass.device)
        torch.cumsum(mass, 1, dtype=torch.float64, out=before[:, 1:])
        # Exact to 1e-16 of the whole, hence `NEGLIGIBLE`.
        below = before.index_select(1, self._tree.subtree_end).sub_(before[:, :-1])
        return below.to(slots.dtype).clamp_(min=0.0)

    def _closed(self, epsilon: float) -> Tensor:
        teacher, student = self._sides
        closed = torch.zeros_like(self._below[0], dtype=torch.bool)
        for side, below in zip((teacher, student), self._below, strict=True):
            least = NEGLIGIBLE * below[:, :1]
            closed |= side.slots[:, self._n :] > epsilon * torch.maximum(below, least)
        closed &= ~(self._tree.same & self.both_own.unsqueeze(1))
        closed |= (self._tree.parent == 0) & ~self.deep.unsqueeze(1)
        if self._counts is not None:
            listed = self._counts[1]
            closed |= self._below_counts(listed[:, : self._n] + listed[:, self._n :]) == 0
        closed[:, 0] = False  # the offset as a whole is counted or left out
        return closed

    def _absent(self) -> Tensor | None:
        """Return `[O, N]` nodes for which a side without a row has no tokens; None if all have."""
        if not self._may_lack_rows:
            return None
        absent = torch.zeros_like(self._below[0], dtype=torch.bool)
        for side in self._sides:
            tokens = self._below_counts(side.reached())
            absent |= (tokens == 0) & ~side.has_own.unsqueeze(1)
        absent[:, 0] = False
        return absent

    def _below_counts(self, counts: Tensor) -> Tensor:
        """Return `[O, N]` the sums over the nodes' subtrees of int32 counts `[O, N]`."""
        before = torch.zeros(counts.shape[0], self._n + 1, dtype=torch.int32, device=counts.device)
        torch.cumsum(counts, 1, dtype=torch.int32, out=before[:, 1:])
        return before.index_select(1, self._tree.subtree_end).sub_(before[:, :-1])

    def _by_leaf(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Return `[O, N]` sums of slots: of what is left of every node, and of exact ends."""
        exact = slots[:, self._n :]
        values = slots[:, : self._n] + exact.masked_fill(self._exact, 0)
        # Sums, not differences of sums: a leaf of little mass keeps its digits.
        nodes = torch.zeros_like(values).scatter_add_(1, self._leaf, values)
        return nodes, exact.masked_fill(~self._exact, 0)

    def _leaves(self, side: SideMasses) -> Tensor:
        """Return `[O, leaves]` masses: what is left of every node, exact ends, and the stop."""
        nodes, ends = self._by_leaf(side.slots)
        nodes[:, 0] += side.ended + side.stop.masked_fill(self.both_own, 0.0)
        if side.lists is not None:
            nodes[:, 0] += side.lists.unlisted
        stop = side.stop.masked_fill(~self.both_own, 0.0)
        return torch.cat([nodes, ends, stop.unsqueeze(1)], 1)

    def _merged(self) -> Tensor | None:
        """Return `[O, leaves]` the leaves that are part of the root's rest; None if none are.

        They are those for which the teacher has tokens, but lists none.
        """
        if self._counts is None:
            return None
        teacher = self._sides[0]
        assert teacher.lists is not None
        tokens, listed = (torch.cat(self._by_leaf(counts), 1) for counts in self._counts)
        stop = self.both_own & teacher.lists.lacks_stops(teacher.table)
        merged = torch.cat([(tokens > 0) & (listed == 0), stop.unsqueeze(1)], 1)
        merged[:, 0] = False
        return merged

    def compare(
        self, divergence: Divergence, floor: float, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, SlotGradient | None]:
        """Return the divergences, the largest leaf of the student, and the student's derivative.

        Args:
            divergence: Value and derivative.
            floor: The least probability of a leaf under the teacher.
            weight: `[O]` what the derivative of every offset is multiplied by; None where no
                derivative is wanted.

        Returns:
            `[O]` divergences, 0 where an offset is left out; `[O]` masses; the derivative.
        """
        teacher, student = map(self._leaves, self._sides)
        merged = self._merged()
        if merged is not None:
            for masses in (teacher, student):
                masses[:, 0] += masses.masked_fill(~merged, 0.0).sum(1)
                masses.masked_fill_(merged, 0.0)
        found = compare_leaves(teacher, student, divergence, floor, weight)
        value = found.value.masked_fill(~self.counted, 0.0)
        if found.by_leaf is None:
            return value, found.largest, None
        by_leaf = found.by_leaf.masked_fill_(~self.counted.unsqueeze(1), 0.0)
        if merged is not None:
            by_leaf = torch.where(merged, by_leaf[:, :1], by_leaf)
        return value, found.largest, self._slot_gradient(by_leaf)

    def _slot_gradient(self, by_leaf: Tensor) -> SlotGradient:
        n = self._n
        by_node, by_exact, by_stop = by_leaf[:, :n], by_leaf[:, n:-1], by_leaf[:, -1]
        attached = by_node.gather(1, self._leaf)
        slots = by_leaf.new_zeros(by_leaf.shape[0], 2 * n + 1)
        slots[:, :n] = attached
        slots[:, n : 2 * n] = torch.where(self._exact, by_exact, attached)
        by_root = by_node[:, 0]  # the root has a leaf everywhere
        return SlotGradient(slots, torch.where(self.both_own, by_stop, by_root), by_root)
