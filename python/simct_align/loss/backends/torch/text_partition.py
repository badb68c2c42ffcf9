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
    it. What is below a closed node is one leaf. Where straddling tokens hold more than `epsilon`,
    and where one side has no row, every node below the root is closed.

    Args:
        tree: The joint tree.
        teacher: The teacher's masses.
        student: The student's.
        epsilon: The share of mass that may end unknown.
        straddled: `"byte"`: close all nodes below the root where tokens straddle; `"tree"`: do not.
    """

    def __init__(
        self,
        tree: TreeTensors,
        teacher: SideMasses,
        student: SideMasses,
        *,
        epsilon: float,
        straddled: str,
    ) -> None:
        self._tree, self._n = tree, len(tree)
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
        closed = self._closed(epsilon)
        absent = self._absent()
        cut = closed | absent
        node = torch.arange(self._n, device=cut.device)
        end = tree.subtree_end.masked_fill(~cut, 0).cummax(1).values
        hidden = torch.zeros_like(cut)
        hidden[:, 1:] = end[:, :-1] > node[1:]
        top = cut & ~hidden
        #: The closed or absent node above every hidden one.
        last = torch.where(top, node, 0).cummax(1).values
        leaf = torch.where(hidden, last, node)
        #: `[O, N]` the node whose leaf takes what is attached to a node.
        self._leaf = torch.where(absent.gather(1, leaf), tree.parent[leaf], leaf)
        self._exact = ~hidden & ~cut & tree.same & self.both_own.unsqueeze(1)

    def _subtrees(self, slots: Tensor) -> Tensor:
        """Return `[O, N]` the masses of the nodes' subtrees."""
        mass = slots[:, : self._n].double() + slots[:, self._n :]
        before = torch.zeros(mass.shape[0], self._n + 1, dtype=mass.dtype, device=mass.device)
        torch.cumsum(mass, 1, out=before[:, 1:])
        end = self._tree.subtree_end.expand(mass.shape[0], -1)
        return (before.gather(1, end) - before[:, :-1]).clamp_(min=0.0).to(slots.dtype)

    def _closed(self, epsilon: float) -> Tensor:
        shape = self._below[0].shape
        closed = torch.zeros(shape, dtype=torch.bool, device=self._below[0].device)
        for side, below in zip(self._sides, self._below, strict=True):
            closed |= side.slots[:, self._n :] > epsilon * below
        closed &= ~(self._tree.same & self.both_own.unsqueeze(1))
        first_level = self._tree.parent == 0
        closed |= first_level & ~self.deep.unsqueeze(1)
        closed[:, 0] = False  # the offset as a whole is counted or left out
        return closed

    def _absent(self) -> Tensor:
        """Return `[O, N]` nodes for which a side without a row has no tokens."""
        absent = torch.zeros_like(self._below[0], dtype=torch.bool)
        for side in self._sides:
            counts = side.reached().double()
            before = torch.zeros(
                counts.shape[0], self._n + 1, dtype=counts.dtype, device=counts.device
            )
            torch.cumsum(counts, 1, out=before[:, 1:])
            end = self._tree.subtree_end.expand(counts.shape[0], -1)
            tokens = before.gather(1, end) - before[:, :-1]
            absent |= (tokens == 0) & ~side.has_own.unsqueeze(1)
        absent[:, 0] = False
        return absent

    def leaves(self, side: SideMasses) -> Tensor:
        """Return `[O, 2 N + 1]` masses of the leaves: by node, exact ends by node, the stop."""
        n, both = self._n, self.both_own
        out = side.slots.new_zeros(side.n_offsets, 2 * n + 1)
        out.scatter_add_(1, self._leaf, side.slots[:, :n])
        exact = side.slots[:, n:]
        out.scatter_add_(1, self._leaf, exact.masked_fill(self._exact, 0.0))
        out[:, n : 2 * n] = exact.masked_fill(~self._exact, 0.0)
        out[:, 0] += side.ended + side.stop.masked_fill(both, 0.0)
        out[:, 2 * n] = side.stop.masked_fill(~both, 0.0)
        return out

    def compare(
        self, divergence: Divergence, floor: float, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, SlotGradient | None]:
        """Return the divergences, the largest leaf of the student, and the student's derivative.

        Args:
            divergence: Value and derivative.
            floor: What a leaf's probability counts as at least, for the teacher.
            weight: `[O]` what the derivative of every offset is multiplied by; None where no
                derivative is wanted.

        Returns:
            `[O]` divergences, 0 where an offset is left out; `[O]` masses; the derivative.
        """
        q_teacher, q_student = (self.leaves(side) for side in self._sides)
        largest = q_student.amax(1)
        is_leaf = (q_teacher > 0) | (q_student > 0)
        total = q_student.sum(1, keepdim=True).clamp_(min=torch.finfo(q_student.dtype).tiny)
        log_student = (q_student / total).log_().clamp_(min=LOG_FLOOR)
        total = q_teacher.sum(1, keepdim=True).clamp_(min=torch.finfo(q_student.dtype).tiny)
        log_teacher = (q_teacher / total).clamp_(min=floor).log_().clamp_(min=LOG_FLOOR)
        log_teacher.masked_fill_(~is_leaf, LOG_FLOOR)
        grad = torch.empty_like(log_student)
        value = divergence(log_teacher=log_teacher, log_student=log_student, grad=grad)
        value = value.masked_fill(~self.counted, 0.0)
        if weight is None:
            return value, largest, None
        by_leaf = torch.where(q_student > 0, grad / q_student, 0.0).mul_(weight.unsqueeze(1))
        by_leaf = by_leaf.masked_fill_(~self.counted.unsqueeze(1), 0.0)
        return value, largest, self._slot_gradient(by_leaf)

    def _slot_gradient(self, by_leaf: Tensor) -> SlotGradient:
        n = self._n
        attached = by_leaf.gather(1, self._leaf)
        slots = by_leaf.new_zeros(by_leaf.shape[0], 2 * n + 1)
        slots[:, :n] = attached
        slots[:, n : 2 * n] = torch.where(self._exact, by_leaf[:, n : 2 * n], attached)
        stop = torch.where(self.both_own, by_leaf[:, 2 * n], by_leaf[:, 0])
        return SlotGradient(slots, stop, by_leaf[:, 0])
