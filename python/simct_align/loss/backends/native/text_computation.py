"""Internal: chunks of offsets of text events in Rust."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from simct_align import _native

from ....divergence import LOG_FLOOR
from ...text_metrics import ListStat, OffsetStat
from ..protocol import Logits
from ..torch.rows import StudentLogitsRows
from ..torch.text_computation import TextComputation
from ..torch.text_rows import TextRows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from simct_align.index import Side

    from ...text_layout import TextChunk, TreeTensors
    from ..protocol import TextProblem, TextSide
    from ..torch.rows import StudentWholeRows, WholeRows


def _unsigned(values: Tensor) -> NDArray[np.uint32]:
    array: NDArray[np.uint32] = values.numpy().view(np.uint32)
    return array


class HostTree:
    """The joint tree as arrays."""

    def __init__(self, tree: TreeTensors) -> None:
        self.subtree_end = _unsigned(tree.subtree_end)
        self.same = tree.same.numpy().view(np.uint8)


class HostSide:
    """One side of a chunk as arrays: see `SideChunk` of the Rust crate.

    Args:
        side: The side.
        rows: Its text rows.
        chunk: The chunk.
        name: `"teacher"` or `"student"`.
    """

    def __init__(self, side: TextSide, rows: TextRows, chunk: TextChunk, name: Side) -> None:
        table, events, at = side.table, side.events, chunk.sides[name]
        self.token_ids = _unsigned(table.token_ids)
        self.node_tokens = _unsigned(table.node_tokens)
        self.node_exact = _unsigned(table.node_exact)
        self.suffixes = _unsigned(table.suffixes)
        self.stops = table.stops.numpy()
        self.probs = rows.probs.numpy()
        self.log_weight = rows.log_weight.numpy()
        self.token = rows.token.masked_fill(~rows.has_token, -1).numpy()
        self.is_nan = rows.is_nan.numpy().view(np.uint8)
        self.first_row = at.rows.start
        self.own = events.own[chunk.offsets].numpy()
        ends = slice(chunk.offsets.start, chunk.offsets.stop + 1)
        self.source_offsets = events.source_ends[ends].numpy()
        self.source_row = events.source_row[at.sources].numpy()
        self.source_start = events.source_first[at.sources].numpy()
        self.source_end = events.source_end[at.sources].numpy()
        self.source_exact = events.source_exact[at.sources].numpy()
        self.source_suffix = events.source_suffix[at.sources].numpy()
        lists = rows.lists
        self.listed = None if lists is None else lists.listed.numpy().view(np.uint8)
        self.unlisted = None if lists is None else lists.unlisted.double().numpy()


class HostGradient:
    """What the gradient of a chunk is made of, as arrays.

    Args:
        by_log_next_bytes: The derivatives by the logarithms of the leaves' masses where no nodes
            are opened.
        by_log_tree: The same where nodes are opened.
        weight: `[o]` a factor for every offset.
        out: `[rows, columns]`; receives the gradient by the student's scaled logits.
    """

    def __init__(
        self, by_log_next_bytes: Tensor, by_log_tree: Tensor, weight: Tensor, out: Tensor
    ) -> None:
        self.by_log_next_bytes = by_log_next_bytes.numpy()
        self.by_log_tree = by_log_tree.numpy()
        self.weight = weight.contiguous().numpy()
        self.out = out.numpy()


@dataclass(frozen=True)
class Figures:
    """Figures of the offsets of a chunk, `[o]` each, in the order of the Rust crate.

    Attributes:
        counted: Whether the offset adds to the loss.
        both_own: Whether both sides have a row.
        deep: Whether nodes below the root may be opened.
        spoiled: Whether a row holds NaN.
        ended: The larger mass of tokens that end there off the realized path.
        straddling: The larger mass of tokens that reach beyond.
        teacher_control: Mass of the teacher's control tokens.
        student_control: Mass of the student's.
        largest_leaf: The student's mass of its largest leaf.
        unlisted: Whether the teacher's lists lack what the offset needs.
        teacher_unlisted: Probability that the teacher's row does not list.
    """

    counted: Tensor
    both_own: Tensor
    deep: Tensor
    spoiled: Tensor
    ended: Tensor
    straddling: Tensor
    teacher_control: Tensor
    student_control: Tensor
    largest_leaf: Tensor
    unlisted: Tensor
    teacher_unlisted: Tensor


class NativeTextComputation(TextComputation):
    """`TextComputation` whose leaves and derivatives are found in Rust, on torch's threads."""

    #: The leaves of an offset, and what is computed of them; half of the nodes are leaves.
    values_per_node = 8

    def __init__(
        self, problem: TextProblem, readers: tuple[WholeRows, StudentWholeRows] | None = None
    ) -> None:
        super().__init__(problem, readers)
        self._tree = HostTree(problem.tree)
        self._by_probs = torch.empty(0, dtype=problem.settings.dtype)
        #: Of every row of the logits, whether its gradient has been written.
        self._written = np.zeros(0, bool)
        if isinstance(problem.student.source, Logits):
            self._written = np.zeros(problem.student.source.logits[..., 0].numel(), bool)

    def _side(self, name: Side, rows: WholeRows, chunk: TextChunk) -> tuple[TextRows, HostSide]:
        side = self.problem.sides[name]
        read = TextRows(rows, side.events, chunk.sides[name], self.problem.settings.dtype)
        return read, HostSide(side, read, chunk, name)

    def compare(self, chunk: TextChunk, weight: Tensor, stats: Tensor) -> Tensor:
        """See `TextComputation`."""
        settings, n_threads = self.problem.settings, torch.get_num_threads()
        _, teacher = self._side("teacher", self.teacher, chunk)
        rows, student = self._side("student", self.student, chunk)
        leaves = _native.TextLeaves(
            self._tree,
            teacher,
            student,
            epsilon=settings.epsilon,
            tree=settings.straddled == "tree",
            n_threads=n_threads,
        )
        figures = Figures(*(torch.from_numpy(each) for each in leaves.figures()))
        counted, both_own, deep = (
            each.bool() for each in (figures.counted, figures.both_own, figures.deep)
        )
        value = torch.zeros_like(weight)
        by_log = (self._divergences(leaves, value, False), self._divergences(leaves, value, True))
        if settings.gradient:

            def write(out: Tensor) -> None:
                wanted = HostGradient(*by_log, weight, out)
                leaves.gradient(self._tree, student, wanted, n_threads)

            self._accumulate(rows, write)
        stats[OffsetStat.TREE] = counted & both_own & deep
        stats[OffsetStat.NEXT_BYTE] = counted & both_own & ~deep
        stats[OffsetStat.ONE_ROW] = counted & ~both_own
        stats[OffsetStat.LEFT_OUT] = ~counted & (figures.spoiled + figures.unlisted == 0)
        stats[OffsetStat.SPOILED] = figures.spoiled
        stats[OffsetStat.ENDED] = figures.ended
        stats[OffsetStat.STRADDLING] = figures.straddling
        stats[OffsetStat.TEACHER_CONTROL] = figures.teacher_control
        stats[OffsetStat.STUDENT_CONTROL] = figures.student_control
        stats[OffsetStat.LARGEST_LEAF] = figures.largest_leaf
        stats[ListStat.UNLISTED] = figures.unlisted
        stats[ListStat.TEACHER_UNLISTED] = figures.teacher_unlisted
        return value.masked_fill_(~counted, 0.0)

    def _accumulate(self, rows: TextRows, write: Callable[[Tensor], None]) -> None:
        """Write the gradient of rows that no chunk has written, and add that of the others.

        Adding to rows that nothing has touched takes twice as long as writing them: their pages are
        mapped to be read, and again to be written. Rows that lie one after the other are written
        where they belong.

        Args:
            rows: The student's rows.
            write: Writes the gradient of all rows into a tensor.
        """
        count, flat = rows.flat.shape[0], rows.flat
        again = self._count_written(flat.numpy())
        student = self.student
        if isinstance(student, StudentLogitsRows):
            place = student.gradient_rows(flat.numpy())
            if place is not None and again < count:
                before = place[:again].clone()
                write(place)
                place[:again] += before
                return
        if self._by_probs.numel() < rows.probs.numel():
            self._by_probs = torch.empty_like(rows.probs).view(-1)
        gradient = self._by_probs[: rows.probs.numel()].view_as(rows.probs)
        write(gradient)
        if again:
            student.accumulate_full(flat[:again], gradient[:again])
        if again < count:
            assert isinstance(student, StudentLogitsRows)
            student.write_full(flat[again:], gradient[again:])

    def _count_written(self, numbers: NDArray[np.int64]) -> int:
        """Return how many rows, the first ones, have a gradient; all of them if others have, too.

        Args:
            numbers: The numbers of the rows, which count as written from now on.
        """
        if not isinstance(self.student, StudentLogitsRows):
            return len(numbers)
        known = self._written
        again = int(known[numbers].sum())
        later = numbers[again:]
        if known[later].any() or len(np.unique(later)) < len(later):
            again = len(numbers)  # rows that repeat are added
        known[numbers] = True
        return again

    def _divergences(self, leaves: _native.TextLeaves, value: Tensor, deep: bool) -> Tensor:
        """Write the divergences of a group of offsets; return their derivatives.

        There are two groups, because offsets where nodes are opened have a hundred times as many
        leaves as the others.

        Args:
            leaves: The leaves of the chunk.
            value: `[o]`; receives the divergences of the group.
            deep: Whether the group is that of opened nodes.

        Returns:
            The derivatives by the logarithms of the student's masses.
        """
        settings = self.problem.settings
        arrays = leaves.group(deep, settings.floor)
        offsets, log_teacher, log_student = (torch.from_numpy(each) for each in arrays)
        for masses in (log_teacher, log_student):
            masses.log_().clamp_(min=LOG_FLOOR)
        grad = torch.empty_like(log_student)
        if offsets.numel():
            value[offsets] = settings.divergence(
                log_teacher=log_teacher, log_student=log_student, grad=grad
            )
        return grad
