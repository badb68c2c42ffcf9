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
from . import offset_kernels
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
SPANS, BLOCKS = 16, 128
#: Warps of programs over the nodes of a block, and over blocks.
NODE_WARPS, BLOCK_WARPS = 4, 8
#: Of the workspace, the part that a chunk's slots may take where logits need none.
SLOTS_SHARE = 6
#: Sources of an offset, and rows, that a program reads at once.
WEIGHED_SOURCES, DERIVED_ROWS = 16, 256
#: Lengths of rows of figures are multiples of it.
ALIGNED = 16
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
        self.teacher = TextSideRows(problem.teacher, readers["teacher"])
        self.student = TextSideRows(problem.student, readers["student"])
        self._same = tree.same.to(torch.int8)
        device, n_offsets = tree.same.device, problem.sizes.n_text_offsets
        # What `weigh_offsets` writes, and `finish_offsets` of every chunk. All rows are aligned in
        # one way: kernels are compiled for alignments.
        self._pitch = -(-n_offsets // ALIGNED) * ALIGNED
        self._ended = torch.empty((2, self._pitch), device=device)
        self._flags = torch.empty((5, self._pitch), dtype=torch.int8, device=device)
        self._factors = torch.empty(self._pitch, device=device)
        self._stats = torch.empty((len(OffsetStat), self._pitch), device=device)
        self._values, self._excesses, self._by_root, self._by_stop = torch.empty(
            (4, self._pitch), device=device
        )
        most = max((each.offsets.stop - each.offsets.start for each in self._chunks), default=0)
        self._size = max(1, most)
        self.n_blocks = -(-len(tree) // text_blocks.BLOCK)
        self._work = self._allocate(-(-most // UNITS))

    def _offsets_per_chunk(self, readers: list[TextReader]) -> int:
        problem = self.problem
        row_bytes = [reader.row_bytes() for reader in readers]
        share = LOGITS_SHARE if any(row_bytes) else 1 / SLOTS_SHARE
        of_offset = 4.0 * len(problem.tree) * 4
        for side, of_row in zip(problem.sides.values(), row_bytes, strict=True):
            rows_per_offset = side.events.row.shape[0] / max(1, side.events.own.shape[0])
            of_offset += of_row * rows_per_offset
        groups = int(share * problem.settings.chunk_bytes / (UNITS * of_offset))
        return UNITS * min(max(1, groups), MOST_GROUPS)

    def _allocate(self, groups: int) -> dict[str, Tensor]:
        """Return the memory that all chunks use."""
        blocks, n_nodes, device = self.problem.blocks, len(self.problem.tree), self._same.device
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
        work["sums_through"] = torch.empty_like(work["block_sums"], dtype=torch.float64)
        work["closed"] = torch.empty((groups, n_nodes), dtype=torch.int32, device=device)
        return work

    def run(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `TextRun`."""
        n_offsets = self.problem.sizes.n_text_offsets
        if n_offsets:
            self._weigh(weight.expand(n_offsets))
        # Offsets with opened nodes cost most. They come first in a chunk, so that few groups have
        # any.
        number = torch.arange(n_offsets, device=weight.device)
        is_deep = self._flags[1, :n_offsets]
        self._order = (2 * (number // self._size) + (is_deep == 0)).argsort(stable=True)
        self._place = torch.empty_like(number).scatter_(0, self._order, number)
        if self.problem.settings.gradient:
            self._order_sources()
        for chunk in self._chunks:
            self._run_chunk(chunk)
        return self._values[:n_offsets], self._stats[:, :n_offsets]

    def _weigh(self, factors: Tensor) -> None:
        """Find the weights of rows and sources, and what kind of offset every one is."""
        offset_kernels.weigh_offsets[(factors.shape[0],)](
            *self.teacher.weighing, *self.student.weighing, self.problem.settings.epsilon, factors,
            factors.stride(0), self._ended, self._flags, self._factors, self._stats,
            self._pitch, SOURCES=WEIGHED_SOURCES, SPLITS=SOURCE_SPLITS, num_warps=1,
        )  # fmt: skip

    def _order_sources(self) -> None:
        """Find the sources of every row of the student."""
        events = self.student.events
        rows, self._source_order = events.source_row.sort(stable=True)
        every_row = torch.arange(events.row.shape[0] + 1, device=rows.device)
        self._sources_of_row = torch.searchsorted(rows, every_row)

    def _run_chunk(self, chunk: TextChunk) -> None:
        at = chunk.offsets
        self.teacher.read(chunk.sides["teacher"].rows)
        self.student.read(chunk.sides["student"].rows)
        groups = -(-(at.stop - at.start) // UNITS)
        work = {name: memory[:groups] for name, memory in self._work.items()}
        lanes = Lanes(self._order, self._place, at.start, at.stop)
        reached = self._collect(chunk, lanes, work)
        tree = self.problem.tree
        of_tree = (
            work["teacher"], work["student"], len(tree), self.n_blocks, tree.parent,
            tree.subtree_end, self._same, *lanes.arguments,
        )  # fmt: skip
        self._close(of_tree, groups, work)
        self._compare(of_tree, groups, work, reached)
        self._finish(lanes, groups, work["partials"])
        if self.problem.settings.gradient:
            self._write_rows(chunk, lanes, work["student"])
            self.student.reader.accept(chunk.sides["student"].rows, self.student.at)

    def _collect(self, chunk: TextChunk, lanes: Lanes, work: dict[str, Tensor]) -> Tensor | None:
        """Collect both sides' masses.

        Returns:
            int8 `[2, offsets, CHILDREN]` where a side's sources have tokens that go on with a child
            of the root; None if all offsets have rows on both sides.
        """
        at, reached = chunk.offsets, None
        if chunk.may_lack_rows:
            shape = 2, at.stop - at.start, CHILDREN
            reached = torch.zeros(shape, dtype=torch.int8, device=self._flags.device)
        sides: dict[Side, TextSideRows] = {"teacher": self.teacher, "student": self.student}
        for number, (name, side) in enumerate(sides.items()):
            side.add_to(
                work[name].zero_(),
                lanes,
                chunk.sides[name],
                self.problem.blocks.child_of_node,
                None if reached is None else reached[number],
            )
        return reached

    def _close(self, of_tree: tuple[Any, ...], groups: int, work: dict[str, Tensor]) -> None:
        blocks, epsilon = self.problem.blocks, self.problem.settings.epsilon
        n_spans, n_ends = blocks.span_node.shape[0], blocks.end_node.shape[0]
        sizes = {"BLOCK": text_blocks.BLOCK, "UNITS": UNITS, "num_warps": NODE_WARPS}
        kernels.close_nodes[(self.n_blocks * groups,)](
            *of_tree, *self._flags[:2], epsilon, work["closed"], work["block_sums"], blocks.spans,
            blocks.span_of_node, blocks.span_node, n_spans, work["span_masses"],
            blocks.end_points, blocks.end_node, n_ends, work["end_sums"], **sizes,
        )  # fmt: skip
        if n_spans:
            kernels.add_up_blocks[(2 * groups,)](
                work["block_sums"], self.n_blocks, work["sums_through"], BLOCKS=BLOCKS,
                UNITS=UNITS, num_warps=BLOCK_WARPS,
            )  # fmt: skip
            kernels.close_spans[(-(-n_spans // SPANS), groups)](
                *of_tree, *self._flags[:2], epsilon, work["closed"], work["sums_through"],
                blocks.span_node, n_spans, work["span_masses"], blocks.span_end_point, n_ends,
                work["end_sums"], SPANS=SPANS, **sizes,
            )  # fmt: skip

    def _compare(
        self,
        of_tree: tuple[Any, ...],
        groups: int,
        work: dict[str, Tensor],
        reached: Tensor | None,
    ) -> None:
        blocks, settings = self.problem.blocks, self.problem.settings
        kernels.compare_nodes[(self.n_blocks * groups,)](
            *of_tree, self._flags[0], *self._flags[3:], work["closed"], blocks.span_of_node,
            blocks.span_node, blocks.span_node.shape[0], work["span_masses"], blocks.covers,
            blocks.cover_span, blocks.child_of_node, self._flags if reached is None else reached,
            0 if reached is None else reached.shape[1], CHILDREN, settings.floor,
            *self.formula[1:], work["partials"], DIVERGENCE=self.formula.number,
            WITH_ABSENT=reached is not None, GRADIENT=settings.gradient, BLOCK=text_blocks.BLOCK,
            UNITS=UNITS, num_warps=NODE_WARPS,
        )  # fmt: skip

    def _finish(self, lanes: Lanes, groups: int, partials: Tensor) -> None:
        kernels.finish_offsets[(groups,)](
            partials, self.n_blocks, *lanes.arguments, *self._ended, self.teacher.stop,
            self.student.stop, self._flags[0], self._flags[2], self._factors,
            self.problem.settings.floor, *self.formula[1:], self._values, self._excesses,
            self._stats[OffsetStat.LARGEST_LEAF], self._by_root, self._by_stop,
            DIVERGENCE=self.formula.number, BLOCKS=BLOCKS, UNITS=UNITS, num_warps=BLOCK_WARPS,
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
        by_norm, by_token = self._derive_weights(chunk, lanes, ratios, of_offsets)
        tiles = -(-count // UNITS)
        inverse = 1.0 / self.problem.settings.temperature
        split = Split.of(logits.width, tiles, COLUMNS, gradient.device)
        kernels.write_text_rows[(tiles * split.n_splits,)](
            logits.logits, at.starts, side.norms, logits.stride, side.table.slot_codes,
            side.n_codes, logits.width, logits.scale, inverse, rows.start, rows.stop,
            side.offset_of_row, lanes.place, side.own_weight, lanes.start, lanes.stop, ratios,
            *of_offsets, self._by_stop, by_norm, by_token, events.token, at.flat_rows,
            at.is_written, gradient, split.per_split, split.n_splits,
            ALIGNED=logits.aligned, UNITS=UNITS, COLUMNS=COLUMNS, num_warps=8,
        )  # fmt: skip
        if n_sources:
            kernels.add_source_gradients[(count, SOURCE_SPLITS)](
                *side.reading, side.table.suffixes, logits.width, logits.scale, inverse,
                rows.start, self._sources_of_row, self._source_order, *side.sources[1:],
                events.source_offset, lanes.place, events.own, events.token, lanes.start,
                lanes.stop, side.source_weight, ratios, *of_offsets, at.flat_rows, gradient,
                UNITS=UNITS, SPLITS=SOURCE_SPLITS, TILE=SOURCE_TILE, num_warps=4,
            )  # fmt: skip

    def _derive_weights(
        self, chunk: TextChunk, lanes: Lanes, ratios: Tensor, of_offsets: tuple[Any, ...]
    ) -> tuple[Tensor, Tensor]:
        """Return derivatives by the log-normalizers of a chunk's rows, and by their tokens."""
        side, events, of_side = self.student, self.student.events, chunk.sides["student"]
        rows, sources = of_side.rows, of_side.sources
        count, n_sources = rows.stop - rows.start, sources.stop - sources.start
        found = torch.zeros((2, -(-count // ALIGNED) * ALIGNED), device=ratios.device)
        if n_sources:
            sums = found.new_empty((n_sources, SOURCE_SPLITS))
            kernels.sum_source_gradients[(n_sources, SOURCE_SPLITS)](
                *side.reading, side.table.suffixes, *side.sources, events.source_offset,
                lanes.place, sources.start, lanes.start, side.at.rows.scale, ratios, *of_offsets,
                sums, UNITS=UNITS, SPLITS=SOURCE_SPLITS, TILE=SOURCE_TILE, num_warps=4,
            )  # fmt: skip
            by_weight = torch.empty(count, dtype=torch.float64, device=ratios.device)
            offset_kernels.derive_weights[(count,)](
                rows.start, sources.start, lanes.start, lanes.stop, self._sources_of_row,
                self._source_order, events.source_ends, events.source_offset, lanes.place,
                side.offset_of_row, sums, self._by_root, side.source_ended, side.source_weight,
                by_weight, SPLITS=SOURCE_SPLITS, num_warps=1,
            )  # fmt: skip
            offset_kernels.derive_tokens[(1,)](
                by_weight, events.token, rows.start, count, *found, ROWS=DERIVED_ROWS, num_warps=4
            )
        return found[0], found[1]

    def gradients(self) -> list[Tensor]:
        """See `TextRun`."""
        return self.student.reader.gradients()
