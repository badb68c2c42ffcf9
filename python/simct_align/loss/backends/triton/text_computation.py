"""Internal: text events in Triton kernels, a chunk of offsets at a time.

Weights of rows and sources are known for all offsets at once; the masses at nodes of the tree need
much memory and are collected for a chunk of offsets. A node is closed as in `torch`; a leaf's mass
is that of a run of nodes, and its derivative replaces the student's masses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ... import text_blocks
from ...text_layout import plan_chunks
from ...text_metrics import OffsetStat
from . import text_kernels as kernels
from .launch import UNITS, Split
from .text_reading import text_reader
from .text_side import SOURCE_SPLITS, SOURCE_TILE, Lanes, TextSideRows
from .unit_sides import LOGITS_SHARE

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import Side

    from ...text_layout import TextChunk
    from ..protocol import TextProblem
    from .computation import Formula
    from .text_reading import TextReader

#: Columns of the gradient that a program writes at once.
COLUMNS = 64
#: Spans, and blocks, that a program reads at once.
SPANS, BLOCKS = 16, 64
#: Warps of programs over blocks of nodes.
NODE_WARPS = 4
#: Groups of a chunk at most: grids have a limit.
MOST_GROUPS = 4096
#: The root's children differ in their byte.
CHILDREN = 256


class TritonText:
    """Text events of a problem; see `TextRun`.

    Args:
        problem: The problem.
        formula: Its divergence.
    """

    def __init__(self, problem: TextProblem, formula: Formula) -> None:
        self.problem, self.formula = problem, formula
        settings, tree = problem.settings, problem.tree
        readers = {
            name: text_reader(side, settings, gradient=settings.gradient and name == "student")
            for name, side in problem.sides.items()
        }
        size = self._offsets_per_chunk(list(readers.values()))
        self._chunks = plan_chunks(problem.host, problem.sizes, size, entries=1 << 60)
        for name, reader in readers.items():
            rows = [chunk.sides[name].rows for chunk in self._chunks]
            reader.prepare(max((each.stop - each.start for each in rows), default=1))
        self.teacher = TextSideRows(problem.teacher, tree, readers["teacher"])
        self.student = student = TextSideRows(problem.student, tree, readers["student"])
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

        # Offsets with opened nodes cost most. They come first in a chunk, so that few groups have
        # any.
        number = torch.arange(self.deep.shape[0], device=self.deep.device)
        self._order = (2 * (number // size) + (~self.deep).long()).argsort(stable=True)
        self._place = torch.empty_like(number).scatter_(0, self._order, number)
        if settings.gradient:
            self._prepare_rows()
        most = max((each.offsets.stop - each.offsets.start for each in self._chunks), default=0)
        self.n_blocks = -(-len(tree) // text_blocks.BLOCK)
        self._work = self._allocate(-(-most // UNITS))

    def _offsets_per_chunk(self, readers: list[TextReader]) -> int:
        problem, budget = self.problem, float(self.problem.settings.chunk_bytes)
        of_offset = 4.0 * len(problem.tree) * 4
        row_bytes = [reader.row_bytes() for reader in readers]
        if any(row_bytes):
            budget *= LOGITS_SHARE
            for side, of_row in zip(problem.sides.values(), row_bytes, strict=True):
                rows_per_offset = side.events.row.shape[0] / max(1, side.events.own.shape[0])
                of_offset += of_row * rows_per_offset
        return UNITS * min(max(1, int(budget / (UNITS * of_offset))), MOST_GROUPS)

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
        # Differences of these keep their digits.
        work["sums_through"] = work["block_sums"].double()
        work["closed"] = torch.empty((groups, n_nodes), dtype=torch.int32, device=device)
        return work

    def _prepare_rows(self) -> None:
        """Find what reads every row of the student."""
        student, events = self.student, self.student.events
        n_rows = events.row.shape[0]
        # One place more, for offsets without a row.
        own = events.own.masked_fill(~student.has_own, n_rows)
        numbers = torch.arange(own.shape[0], device=own.device)
        offset_of_row = own.new_full((n_rows + 1,), -1).index_copy_(0, own, numbers)[:n_rows]
        place_of_row = self._place[offset_of_row.clamp_min(0)] if own.shape[0] else offset_of_row
        self._offset_of_row = offset_of_row
        self._place_of_row = torch.where(offset_of_row < 0, -1, place_of_row)
        rows, self._source_order = events.source_row.sort(stable=True)
        every_row = torch.arange(n_rows + 1, device=rows.device)
        self._sources_of_row = torch.searchsorted(rows, every_row)
        self._place_of_source = self._place[events.source_offset]

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

    def _run_chunk(self, chunk: TextChunk) -> None:
        at = chunk.offsets
        self.teacher.read(chunk.sides["teacher"].rows)
        self.student.read(chunk.sides["student"].rows)
        groups = -(-(at.stop - at.start) // UNITS)
        work = {name: memory[:groups] for name, memory in self._work.items()}
        lanes = Lanes(self._order, self._place, at.start, at.stop)
        absent = self._collect(chunk, lanes, work)
        tree = self.problem.tree
        of_tree = (
            work["teacher"], work["student"], len(tree), self.n_blocks, tree.parent,
            tree.subtree_end, self._same, *lanes.arguments,
        )  # fmt: skip
        self._close(of_tree, groups, work)
        self._compare(of_tree, groups, work, absent)
        self._finish(lanes, groups, work["partials"])
        if self.problem.settings.gradient:
            self._write_rows(chunk, lanes, work["student"])
            self.student.reader.accept(chunk.sides["student"].rows, self.student.at)

    def _collect(self, chunk: TextChunk, lanes: Lanes, work: dict[str, Tensor]) -> Tensor | None:
        """Collect both sides' masses.

        Returns:
            int8 `[offsets, CHILDREN]` where a side without a row has no tokens for a child of the
            root; None if all offsets have rows on both sides.
        """
        at, device = chunk.offsets, self.both.device
        sides: dict[Side, TextSideRows] = {"teacher": self.teacher, "student": self.student}
        absent: Tensor | None = None
        for name, side in sides.items():
            reached = None
            if chunk.may_lack_rows:
                shape = at.stop - at.start, CHILDREN
                reached = torch.zeros(shape, dtype=torch.int8, device=device)
            side.add_to(
                work[name].zero_(),
                lanes,
                chunk.sides[name],
                self.problem.blocks.child_of_node,
                reached,
            )
            if reached is not None:
                lacks = ~side.has_own[self._order[at]].unsqueeze(1) & (reached == 0)
                absent = lacks if absent is None else absent | lacks
        return None if absent is None else absent.to(torch.int8)

    def _close(self, of_tree: tuple[Any, ...], groups: int, work: dict[str, Tensor]) -> None:
        blocks, epsilon = self.problem.blocks, self.problem.settings.epsilon
        n_spans, n_ends = blocks.span_node.shape[0], blocks.end_node.shape[0]
        sizes = {"BLOCK": text_blocks.BLOCK, "UNITS": UNITS, "num_warps": NODE_WARPS}
        kernels.close_nodes[(self.n_blocks * groups,)](
            *of_tree, *self._flags, epsilon, work["closed"], work["block_sums"], blocks.spans,
            blocks.span_of_node, blocks.span_node, n_spans, work["span_masses"],
            blocks.end_points, blocks.end_node, n_ends, work["end_sums"], **sizes,
        )  # fmt: skip
        if n_spans:
            kernels.add_up_blocks[(2 * groups,)](
                work["block_sums"], self.n_blocks, work["sums_through"], BLOCKS=BLOCKS,
                UNITS=UNITS, num_warps=4,
            )  # fmt: skip
            kernels.close_spans[(-(-n_spans // SPANS), groups)](
                *of_tree, *self._flags, epsilon, work["closed"], work["sums_through"],
                blocks.span_node, n_spans, work["span_masses"], blocks.span_end_point, n_ends,
                work["end_sums"], SPANS=SPANS, **sizes,
            )  # fmt: skip

    def _compare(
        self,
        of_tree: tuple[Any, ...],
        groups: int,
        work: dict[str, Tensor],
        absent: Tensor | None,
    ) -> None:
        blocks, settings = self.problem.blocks, self.problem.settings
        kernels.compare_nodes[(self.n_blocks * groups,)](
            *of_tree, self._flags[0], work["closed"], blocks.span_of_node, blocks.span_node,
            blocks.span_node.shape[0], work["span_masses"], blocks.covers, blocks.cover_span,
            blocks.child_of_node, work["closed"] if absent is None else absent, CHILDREN,
            settings.floor, *self.formula[1:], work["partials"], DIVERGENCE=self.formula.number,
            WITH_ABSENT=absent is not None, GRADIENT=settings.gradient, BLOCK=text_blocks.BLOCK,
            UNITS=UNITS, num_warps=NODE_WARPS,
        )  # fmt: skip

    def _finish(self, lanes: Lanes, groups: int, partials: Tensor) -> None:
        kernels.finish_offsets[(groups,)](
            partials, self.n_blocks, *lanes.arguments, self.teacher.ended, self.student.ended,
            self.teacher.stop, self.student.stop, self._flags[0], self._factors,
            self.problem.settings.floor, *self.formula[1:], self.values, self._excesses,
            self.largest, self._by_root, self._by_stop, DIVERGENCE=self.formula.number,
            BLOCKS=BLOCKS, UNITS=UNITS, num_warps=4,
        )  # fmt: skip

    def _write_rows(self, chunk: TextChunk, lanes: Lanes, ratios: Tensor) -> None:
        side, events, of_side = self.student, self.student.events, chunk.sides["student"]
        rows, sources = of_side.rows, of_side.sources
        count, n_sources = rows.stop - rows.start, sources.stop - sources.start
        n_nodes, at, logits, gradient = (
            len(self.problem.tree),
            side.at,
            side.at.rows,
            side.at.gradient,
        )
        of_offsets = (n_nodes, self._excesses, self._factors, self._by_root)
        by_weight = torch.zeros(count + 1, dtype=torch.float64, device=gradient.device)
        if n_sources:
            sums = self.values.new_empty((n_sources, SOURCE_SPLITS))
            kernels.sum_source_gradients[(n_sources, SOURCE_SPLITS)](
                *side.reading, side.table.suffixes, *side.sources, events.source_offset,
                self._place_of_source, sources.start, lanes.start, logits.scale, ratios,
                *of_offsets, sums, UNITS=UNITS, SPLITS=SOURCE_SPLITS, TILE=SOURCE_TILE,
                num_warps=4,
            )  # fmt: skip
            # By the logarithm of a source's weight. To scale the weights of all rows of an offset
            # changes nothing, so that the derivative by its own row's is minus the sum of these.
            offsets = events.source_offset[sources]
            by_log = sums.sum(1) + self._by_root[offsets] * side.source_ended[sources]
            by_log = (by_log * side.source_weight[sources]).double()
            by_weight.index_add_(0, events.source_row[sources] - rows.start, by_log)
            own = events.own[offsets]
            by_weight.index_add_(0, torch.where(own >= 0, own - rows.start, count), -by_log)
        by_weight = by_weight[:count]
        # Every realized token is part of the weights of all later rows.
        by_token = by_weight.sum() - by_weight.cumsum(0)
        by_token = by_token.masked_fill_(events.token[rows] < 0, 0.0)
        tiles = -(-count // UNITS)
        inverse = 1.0 / self.problem.settings.temperature
        split = Split.of(logits.width, tiles, COLUMNS, gradient.device)
        kernels.write_text_rows[(tiles * split.n_splits,)](
            logits.logits, at.starts, side.norms, logits.stride, side.slot_of_id, logits.width,
            logits.scale, inverse, rows.start, rows.stop, self._offset_of_row,
            self._place_of_row, side.own_weight, lanes.start, lanes.stop, ratios, *of_offsets,
            self._by_stop, (by_weight + by_token).float(), by_token.float(), events.token,
            at.flat_rows, at.is_written, gradient, split.per_split, split.n_splits,
            ALIGNED=logits.aligned, UNITS=UNITS, COLUMNS=COLUMNS, num_warps=8,
        )  # fmt: skip
        if n_sources:
            kernels.add_source_gradients[(count, SOURCE_SPLITS)](
                *side.reading, side.table.suffixes, logits.width, logits.scale, inverse,
                rows.start, self._sources_of_row, self._source_order, *side.sources[1:],
                events.source_offset, self._place_of_source, lanes.start, lanes.stop,
                side.source_weight, side.realized, ratios, *of_offsets, at.flat_rows, gradient,
                UNITS=UNITS, SPLITS=SOURCE_SPLITS, TILE=SOURCE_TILE, num_warps=4,
            )  # fmt: skip

    def gradients(self) -> list[Tensor]:
        """See `TextRun`."""
        return self.student.reader.gradients()
