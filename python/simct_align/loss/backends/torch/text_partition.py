"""Internal: the partition of the texts that can follow into events that both models give."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from ....divergence import LOG_FLOOR

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
        #: `[O, N]` whether a node has a leaf of its own: closed, or what is left of an opened one.
        self._is_leaf = ~hidden
        self._leaf = last
        if absent is not None:
            self._is_leaf &= ~absent
            self._leaf = torch.where(absent.gather(1, last), tree.parent[last], last)
        self._exact = ~hidden & ~cut & tree.same & self.both_own.unsqueeze(1)
        self._places = self._compact() if cut.device.type == "cpu" else None

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
        closed[:, 0] = False  # the offset as a whole is counted or left out
        return closed

    def _absent(self) -> Tensor | None:
        """Return `[O, N]` nodes for which a side without a row has no tokens; None if all have."""
        if not self._may_lack_rows:
            return None
        absent = torch.zeros_like(self._below[0], dtype=torch.bool)
        for side in self._sides:
            counts = side.reached()
            before = torch.zeros(
                counts.shape[0], self._n + 1, dtype=torch.int32, device=counts.device
            )
            torch.cumsum(counts, 1, dtype=torch.int32, out=before[:, 1:])
            tokens = before.index_select(1, self._tree.subtree_end).sub_(before[:, :-1])
            absent |= (tokens == 0) & ~side.has_own.unsqueeze(1)
        absent[:, 0] = False
        return absent

    def _compact(self) -> _Places:
        """Return where the leaves are; the CPU can be asked for their number."""
        return _Places(_padded(self._is_leaf), _padded(self._exact))

    def _leaves(self, side: SideMasses) -> Tensor:
        """Return `[O, leaves]` masses: what is left of every node, exact ends, and the stop."""
        n = self._n
        exact = side.slots[:, n:]
        mass = side.slots[:, :n] + exact.masked_fill(self._exact, 0.0)
        # Sums, not differences of sums: a leaf of little mass keeps its digits.
        nodes = torch.zeros_like(mass).scatter_add_(1, self._leaf, mass)
        nodes[:, 0] += side.ended + side.stop.masked_fill(self.both_own, 0.0)
        if self._places is None:
            ends = exact.masked_fill(~self._exact, 0.0)
        else:
            at_nodes, at_exact = self._places
            nodes = nodes.gather(1, at_nodes.columns).masked_fill_(~at_nodes.valid, 0.0)
            ends = exact.gather(1, at_exact.columns).masked_fill_(~at_exact.valid, 0.0)
        stop = side.stop.masked_fill(~self.both_own, 0.0)
        return torch.cat([nodes, ends, stop.unsqueeze(1)], 1)

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
        q_teacher, q_student = map(self._leaves, self._sides)
        largest = q_student.amax(1)
        is_leaf = (q_teacher > 0) | (q_student > 0)
        tiny = torch.finfo(q_student.dtype).tiny
        total = q_student.sum(1, keepdim=True).clamp_(min=tiny)
        log_student = (q_student / total).log_().clamp_(min=LOG_FLOOR)
        total = q_teacher.sum(1, keepdim=True).clamp_(min=tiny)
        log_teacher = q_teacher.div_(total).clamp_(min=floor).log_().clamp_(min=LOG_FLOOR)
        log_teacher.masked_fill_(~is_leaf, LOG_FLOOR)
        grad = torch.empty_like(log_student)
        value = divergence(log_teacher=log_teacher, log_student=log_student, grad=grad)
        value = value.masked_fill(~self.counted, 0.0)
        if weight is None:
            return value, largest, None
        # Floored probabilities do not sum to 1, and a leaf without any student mass has no
        # derivative: a divergence may rely on either. By scores, derivatives sum to 0.
        grad.masked_fill_(q_student == 0, 0.0)
        excess = grad.sum(1, keepdim=True)
        by_leaf = torch.where(q_student > 0, grad / q_student - excess, 0.0)
        by_leaf.mul_(weight.unsqueeze(1))
        by_leaf = by_leaf.masked_fill_(~self.counted.unsqueeze(1), 0.0)
        return value, largest, self._slot_gradient(by_leaf)

    def _slot_gradient(self, by_leaf: Tensor) -> SlotGradient:
        n, places = self._n, self._places
        n_nodes = n if places is None else places.nodes.columns.shape[1]
        by_node, by_exact, by_stop = by_leaf[:, :n_nodes], by_leaf[:, n_nodes:-1], by_leaf[:, -1]
        by_root = by_node[:, 0]  # the root has a leaf everywhere, the first one
        if places is not None:
            spread = by_leaf.new_zeros(by_leaf.shape[0], n)
            # Padding repeats the first node, whose value it must not change.
            padded = torch.where(places.nodes.valid, by_node, by_root.unsqueeze(1))
            by_node = spread.scatter_(1, places.nodes.columns, padded)
        attached = by_node.gather(1, self._leaf)
        slots = by_leaf.new_zeros(by_leaf.shape[0], 2 * n + 1)
        slots[:, :n] = attached
        exact = slots[:, n : 2 * n]
        if places is None:
            exact.copy_(torch.where(self._exact, by_exact, attached))
        else:
            exact.copy_(attached)
            columns, valid = places.exact
            kept = exact.gather(1, columns)
            exact.scatter_(1, columns, torch.where(valid, by_exact, kept))
        stop = torch.where(self.both_own, by_stop, by_root)
        return SlotGradient(slots, stop, by_root)


class _Columns(NamedTuple):
    """The true columns of a matrix, row by row.

    Attributes:
        columns: `[O, most]` the columns in ascending order, 0 where there are no more.
        valid: `[O, most]` where there are.
    """

    columns: Tensor
    valid: Tensor


class _Places(NamedTuple):
    """The columns of the leaves: those of nodes, and those of exact ends."""

    nodes: _Columns
    exact: _Columns


def _padded(is_true: Tensor) -> _Columns:
    """Return the true columns of a matrix on the CPU."""
    row, column = is_true.nonzero(as_tuple=True)
    counts = is_true.sum(1)
    most = max(1, int(counts.max())) if counts.numel() else 1
    within = torch.arange(row.shape[0]) - (counts.cumsum(0) - counts)[row]
    columns = torch.zeros(is_true.shape[0], most, dtype=torch.int64)
    columns[row, within] = column
    return _Columns(columns, torch.arange(most) < counts.unsqueeze(1))
