"""Internal: text events in Triton kernels, a chunk of offsets at a time.

Weights of rows and sources are known for all offsets at once; the masses at nodes of the tree need
much memory and are collected for a chunk of offsets. A node is closed as in `torch`; a leaf's mass
is that of a run of nodes, and its derivative replaces the student's masses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ... import text_blocks
from ...text_layout import plan_chunks
from ...text_metrics import OffsetStat
from . import text_kernels as kernels
from .launch import UNITS, Split, clear_unwritten
from .text_side import TextSideRows

if TYPE_CHECKING:
    from torch import Tensor

    from ...text_layout import TextChunk
    from ..protocol import TextProblem
    from .computation import Formula

#: Columns of the gradient that a program writes at once.
COLUMNS = 64
SPANS, BLOCKS = 16, 64


class TritonText:
    """Text events of a problem; see `TextRun`.

    Args:
        problem: The problem.
        formula: Its divergence.
    """

    def __init__(self, problem: TextProblem, formula: Formula) -> None:
        self.problem, self.formula = problem, formula
        settings, tree = problem.settings, problem.tree
        self.teacher = TextSideRows(problem.teacher, tree, settings.temperature)
        self.student = student = TextSideRows(problem.student, tree, settings.temperature)
        sides = (self.teacher, student)
        self.both = self.teacher.has_own & student.has_own
        self.spoiled = self.teacher.spoiled | student.spoiled
        self.straddling = torch.maximum(*(side.straddling for side in sides))
        self.ended = torch.maximum(*(side.ended for side in sides))
        self.counted = self.teacher.known & student.known & ~self.spoiled
        self.counted &= self.ended <= settings.epsilon
        self.deep = self.both & (self.straddling <= settings.epsilon)
        self._same = tree.same.to(torch.int8)
        self._flags = (self.both.to(torch.int8), self.deep.to(torch.int8))

        logits = student.rows.logits
        self._gradient: Tensor | None = None
        self._is_written = torch.zeros(0, dtype=torch.int8, device=logits.device)
        if settings.gradient:
            self._gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
            self._is_written = self._is_written.new_zeros(logits.shape[:-1].numel())
            self._prepare_rows()

        n_slots = 2 * len(tree)
        groups = settings.chunk_bytes // (2 * n_slots * UNITS * 4)
        self._chunks = plan_chunks(
            problem.host, problem.sizes, UNITS * max(1, groups), entries=1 << 60
        )
        most = max((each.offsets.stop - each.offsets.start for each in self._chunks), default=0)
        self.n_blocks = -(-len(tree) // text_blocks.BLOCK)
        self._work = self._allocate(-(-most // UNITS))

    def _allocate(self, groups: int) -> dict[str, Tensor]:
        """Return the memory that all chunks use."""
        blocks, n_nodes, device = self.problem.blocks, len(self.problem.tree), self.both.device
        shapes = {
            "teacher": (2 * n_nodes,),
            "student": (2 * n_nodes,),
            "block_sums": (2, self.n_blocks),
            "span_masses": (2, blocks.span_node.shape[0]),
            "end_sums": (2, blocks.end_node.shape[0]),
            "partials": (self.n_blocks, 5),
        }
        work = {
            name: torch.empty((groups, *shape, UNITS), dtype=torch.float32, device=device)
            for name, shape in shapes.items()
        }
        work["closed"] = torch.empty((groups, n_nodes), dtype=torch.int32, device=device)
        return work

    def _prepare_rows(self) -> None:
        """Find what reads every row of the student."""
        student, events = self.student, self.student.events
        n_rows = events.row.shape[0]
        self._place_of_id = student.places()
        # One place more, for offsets without a row.
        own = events.own.masked_fill(~student.has_own, n_rows)
        numbers = torch.arange(own.shape[0], device=own.device)
        offset_of_row = own.new_full((n_rows + 1,), -1).index_copy_(0, own, numbers)
        self._offset_of_row = offset_of_row[:n_rows]
        rows, self._source_order = events.source_row.sort(stable=True)
        every_row = torch.arange(n_rows + 1, device=rows.device)
        self._sources_of_row = torch.searchsorted(rows, every_row)

    def run(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `TextRun`."""
        n_offsets = self.problem.sizes.n_text_offsets
        zeros = torch.zeros(n_offsets, dtype=torch.float32, device=weight.device)
        factors = weight.float().expand(n_offsets).masked_fill(~self.counted, 0.0)
        self._factors = factors.contiguous()
        self.values, self.largest = zeros, zeros.clone()
        self._excesses, self._by_root, self._by_stop = (torch.empty_like(zeros) for _ in range(3))
        for chunk in self._chunks:
            self._run_chunk(chunk)
        return self.values.masked_fill(~self.counted, 0.0), self._stats()

    def _stats(self) -> Tensor:
        counted, both, deep = self.counted, self.both, self.deep
        figures = {
            OffsetStat.TREE: counted & deep,
            OffsetStat.NEXT_BYTE: counted & both & ~deep,
            OffsetStat.ONE_ROW: counted & ~both,
            OffsetStat.LEFT_OUT: ~counted & ~self.spoiled,
            OffsetStat.SPOILED: self.spoiled,
            OffsetStat.ENDED: self.ended,
            OffsetStat.STRADDLING: self.straddling,
            OffsetStat.TEACHER_CONTROL: self.teacher.control,
            OffsetStat.STUDENT_CONTROL: self.student.control,
            OffsetStat.LARGEST_LEAF: self.largest,
        }
        return torch.stack([figures[each].float() for each in OffsetStat])

    def _absent(self, chunk: TextChunk) -> tuple[Tensor | None, Tensor | None]:
        """Return int8 `[2, offsets, children]` for `add_to` where sides may have no rows."""
        if not chunk.may_lack_rows:
            return None, None
        # The root's children are distinct bytes.
        count = chunk.offsets.stop - chunk.offsets.start
        reached = torch.zeros((2, count, 256), dtype=torch.int8, device=self.both.device)
        return reached[0], reached[1]

    def _run_chunk(self, chunk: TextChunk) -> None:
        tree, blocks, at = self.problem.tree, self.problem.blocks, chunk.offsets
        settings, n_nodes = self.problem.settings, len(tree)
        groups = -(-(at.stop - at.start) // UNITS)
        work = {name: memory[:groups] for name, memory in self._work.items()}
        reached = self._absent(chunk)
        for name, side, of_side in (
            ("teacher", self.teacher, reached[0]), ("student", self.student, reached[1])
        ):  # fmt: skip
            side.add_to(work[name].zero_(), at, chunk.sides[name], blocks.child_of_node, of_side)  # type: ignore[index]
        absent = work["closed"]
        if reached[0] is not None and reached[1] is not None:
            lacks = [~side.has_own[at].unsqueeze(1) for side in (self.teacher, self.student)]
            absent = (reached[0] == 0) & lacks[0] | (reached[1] == 0) & lacks[1]
            absent = absent.to(torch.int8)
        of_tree = (tree.parent, tree.subtree_end, self._same)
        n_spans, n_ends = blocks.span_node.shape[0], blocks.end_node.shape[0]
        slots = (work["teacher"], work["student"], n_nodes, self.n_blocks)
        sizes = {"BLOCK": text_blocks.BLOCK, "UNITS": UNITS}
        grid = (self.n_blocks * groups,)
        kernels.close_nodes[grid](
            *slots, *of_tree, blocks.span_of_node, blocks.end_points, blocks.end_node, n_ends,
            *self._flags, at.start, at.stop, settings.epsilon, work["closed"],
            work["block_sums"], work["span_masses"], n_spans, work["end_sums"], **sizes,
            num_warps=4,
        )  # fmt: skip
        if n_spans:
            through = work["block_sums"].cumsum(2, dtype=torch.float64)
            kernels.close_spans[(-(-n_spans // SPANS), groups)](
                *slots, *of_tree, blocks.span_node, blocks.span_end_point, n_ends, *self._flags,
                at.start, at.stop, settings.epsilon, work["closed"], through,
                work["span_masses"], n_spans, work["end_sums"], SPANS=SPANS, **sizes, num_warps=4,
            )  # fmt: skip
        of_leaves = (
            *slots, *of_tree, blocks.span_of_node, blocks.span_node, work["span_masses"], n_spans,
            blocks.covers, blocks.cover_span, blocks.child_of_node, absent, 256, self._flags[0],
            at.start, at.stop, work["closed"],
        )  # fmt: skip
        of_formula = (settings.floor, *self.formula[1:])
        kinds = {"DIVERGENCE": self.formula.number, "WITH_ABSENT": chunk.may_lack_rows}
        kernels.compare_nodes[grid](
            *of_leaves, *of_formula, work["partials"], **kinds, **sizes, num_warps=4
        )
        kernels.finish_offsets[(groups,)](
            work["partials"], self.n_blocks, self.teacher.ended, self.student.ended,
            self.teacher.stop, self.student.stop, self._flags[0], at.start, at.stop,
            self._factors, *of_formula, self.values, self._excesses, self.largest,
            self._by_root, self._by_stop, DIVERGENCE=self.formula.number, BLOCKS=BLOCKS,
            UNITS=UNITS, num_warps=4,
        )  # fmt: skip
        if self._gradient is not None:
            kernels.write_slot_gradients[grid](
                *of_leaves, *of_formula, self._factors, self._excesses, self._by_root, **kinds,
                **sizes, num_warps=4,
            )  # fmt: skip
            self._write_rows(chunk, work["student"], self._gradient)

    def _write_rows(self, chunk: TextChunk, by_slot: Tensor, gradient: Tensor) -> None:
        side, events, of_side = self.student, self.student.events, chunk.sides["student"]
        at, rows, sources = chunk.offsets, of_side.rows, of_side.sources
        # By the logarithm of every row's weight, and so by every realized token before the row. To
        # scale the weights of all rows of an offset changes nothing, so that the derivative by its
        # own row's is minus the sum of the others'.
        by_log = side.source_gradients(by_slot, at, of_side)
        offsets = events.source_offset[sources]
        by_log = by_log + self._by_root[offsets] * side.source_ended[sources]
        by_log = (by_log * side.source_weight[sources]).double()
        count = rows.stop - rows.start
        by_weight = by_log.new_zeros(count + 1)
        by_weight.index_add_(0, events.source_row[sources] - rows.start, by_log)
        own = events.own[offsets]
        by_weight.index_add_(0, torch.where(own >= 0, own - rows.start, count), -by_log)
        by_weight = by_weight[:count]
        by_token = by_weight.sum() - by_weight.cumsum(0)
        by_token = by_token.masked_fill_(events.token[rows] < 0, 0.0)
        by_norm = (by_weight + by_token).float()
        tiles = -(-count // UNITS)
        logits = side.rows
        split = Split.of(logits.width, tiles, COLUMNS, gradient.device)
        kernels.write_text_rows[(tiles * split.n_splits,)](
            logits.logits, side.starts, side.norms, logits.stride, side.slot_of_id,
            self._place_of_id, logits.width, logits.scale,
            1.0 / self.problem.settings.temperature, rows.start, rows.stop, self._offset_of_row,
            side.own_weight, at.start, at.stop, by_slot, len(self.problem.tree), self._by_root,
            self._by_stop, self._sources_of_row, self._source_order, events.source_first,
            events.source_end, events.source_exact, events.source_suffix, events.source_offset,
            side.source_weight, side.realized, side.table.suffixes, by_norm, by_token.float(),
            events.token, events.row, self._is_written, gradient, split.per_split,
            split.n_splits, ALIGNED=logits.aligned, UNITS=UNITS, COLUMNS=COLUMNS, num_warps=4,
        )  # fmt: skip
        self._is_written.index_fill_(0, events.row[rows], 1)

    def gradients(self) -> list[Tensor]:
        """See `TextRun`."""
        if self._gradient is None:
            return []
        gradient, self._gradient = self._gradient, None
        clear_unwritten(gradient, self._is_written)
        return [gradient]
