"""Internal: one side of text events in Triton kernels: its rows, its sources, and their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ....divergence import LOG_FLOOR
from ..torch.text_weights import SideRows, offset_weights
from . import text_kernels as kernels
from .launch import LN2, ROW_T, WARPS, E

if TYPE_CHECKING:
    from ...text_layout import SideChunk, TreeTensors
    from ..protocol import TextSide
    from .text_reading import TextReader

#: Programs of a source, and tokens that one reads at once.
SOURCE_SPLITS, SOURCE_TILE = 8, 256
#: Columns of rows that a program adds to the slots.
ADDED_COLUMNS = 64


class Lanes(NamedTuple):
    """The order of all offsets, and the places of a chunk in it.

    Attributes:
        order: `[O]` the offset at every place.
        place: `[O]` the place of every offset.
        start: The first place of the chunk.
        stop: One past the last place.
    """

    order: Tensor
    place: Tensor
    start: int
    stop: int

    @property
    def arguments(self) -> tuple[Tensor, int, int]:
        """The arguments of kernels over the lanes."""
        return self.order, self.start, self.stop


class TextSideRows:
    """One model's text rows and sources, with what every offset multiplies them by.

    Args:
        side: The side of the problem.
        tree: The joint tree.
        reader: Reads the rows.

    Attributes:
        reader: What reads the rows.
        at: Where the rows are that were read last.
        norms: `[K, 3]` of text rows; see `text_kernels`.
        slot_of_id: `[columns]` int32; see `text_kernels`.
        has_own: `[O]` whether there is a row at an offset.
        known: `[O]` whether there is any mass.
        spoiled: `[O]` whether a row that the offset reads holds NaN.
        own_weight: `[O]` what probabilities of the row at the offset are multiplied by.
        source_weight: `[X]` what those of sources are multiplied by.
        source_ended: `[X]` probability of tokens that end at the source's offset.
        stop: `[O]` mass of the stops.
        ended: `[O]` mass of tokens of earlier rows that end at the offset.
        straddling: `[O]` mass of tokens of earlier rows that reach beyond it.
        control: `[O]` probability of control tokens other than stops in the own row.
        realized: `[X]` the realized token of a source's row if it ends at the offset, else -1.
    """

    def __init__(self, side: TextSide, tree: TreeTensors, reader: TextReader) -> None:
        self.reader = reader
        self.events, self.table = side.events, side.table
        self.slot_of_id = self._slots(side, 2 * len(tree))
        events, device = self.events, self.slot_of_id.device
        n_rows, n_sources = events.row.shape[0], events.source_row.shape[0]
        self.norms = torch.empty((n_rows, 3), dtype=torch.float32, device=device)
        stop, log_prob = self.norms.new_empty(n_rows), self.norms.new_empty(n_rows)
        of_sources = self.norms.new_zeros((n_sources, SOURCE_SPLITS, 2))
        self.has_own = events.own >= 0
        own = events.own.clamp_min(0)
        follows = self.has_own[events.source_offset]
        follows = follows & (own[events.source_offset] == events.source_row + 1)
        self.realized = torch.where(follows, events.token[events.source_row], -1)
        for run in reader.runs():
            self.read(run)
            self._sum_rows(run, stop[run], log_prob[run])
            self._sum_sources(run, of_sources)
        _, norm, text = self.norms.unbind(1)
        is_nan = norm.isnan()
        stop.masked_fill_(is_nan, 0.0)
        text = text.masked_fill(is_nan, 0.0)
        log_prob = log_prob.double().nan_to_num(0.0, 0.0, LOG_FLOOR).clamp_(min=LOG_FLOOR)
        log_prob.masked_fill_((events.token < 0) | is_nan, 0.0)
        self.source_ended, goes_on = of_sources.sum(1).unbind(1)
        own_total = (text + stop)[own].masked_fill_(~self.has_own, 0.0)
        weights = offset_weights(
            SideRows(
                log_prob.cumsum(0) - log_prob,
                is_nan,
                own,
                self.has_own,
                own_total,
                events.source_row,
                events.source_offset,
                self.source_ended + goes_on,
            )
        )
        self.known, self.spoiled = weights.known, weights.spoiled
        self.own_weight, self.source_weight = weights.own, weights.source
        self.stop = stop[own] * self.own_weight
        self.ended = self._by_offset(self.source_ended)
        self.straddling = self._by_offset(goes_on)
        self.control = (1.0 - own_total).masked_fill_(~self.has_own, 0.0)

    def read(self, rows: slice) -> None:
        """Make a run of text rows the one that kernels read.

        Args:
            rows: The run.
        """
        self.at = self.reader.read(rows)

    def _sum_rows(self, run: slice, stop: Tensor, log_prob: Tensor) -> None:
        """Compute norms of rows, and the probabilities of stops and of the realized tokens."""
        events, rows, count = self.events, self.at.rows, run.stop - run.start
        kernels.sum_text_rows[(count,)](
            rows.logits, self.at.starts, rows.stride, self.slot_of_id, rows.width,
            rows.scale, run.start, self.norms, ALIGNED=rows.aligned, T=ROW_T, E=E, num_warps=WARPS,
        )  # fmt: skip
        shift, norm, _ = self.norms[run].unbind(1)
        flat = self.at.flat_rows[run]
        of_stops = rows.pick(flat, self.table.stops.expand(count, -1), shift)
        torch.sum((of_stops - norm.unsqueeze(1) * LN2).exp_(), 1, out=stop)
        log_prob.copy_(rows.pick(flat, events.token[run].clamp_min(0), shift) - norm * LN2)

    def _slots(self, side: TextSide, n_slots: int) -> Tensor:
        slot_of_column = side.table.slot_of_column
        counts = torch.zeros(n_slots + 1, dtype=torch.int32, device=slot_of_column.device)
        ones = torch.ones_like(slot_of_column, dtype=torch.int32)
        counts.index_add_(0, slot_of_column, ones)
        slots = slot_of_column.int() + (counts[slot_of_column] > 1) * kernels.SEVERAL.value
        slots.masked_fill_(slot_of_column == n_slots, kernels.CONTROL.value)
        slots.index_fill_(0, side.table.stops, kernels.STOP.value)
        found: Tensor = slots.new_full((self.reader.width,), kernels.NO_TOKEN.value)
        found[: slots.shape[0]] = slots
        found.index_fill_(0, side.columns.unused, kernels.NO_TOKEN.value)
        return found

    @property
    def reading(self) -> tuple[object, ...]:
        """The first arguments of kernels that read tokens by their places."""
        at = self.at
        return at.rows.logits, at.starts, self.norms, at.rows.stride, self.table.token_ids

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """The rows and tokens of all sources, in the order of the kernels' arguments."""
        events = self.events
        return (
            events.source_row, events.source_first, events.source_end, events.source_exact,
            events.source_suffix,
        )  # fmt: skip

    def _sum_sources(self, run: slice, sums: Tensor) -> None:
        """Sum up the tokens of all sources whose rows are in a run."""
        if sums.shape[0]:
            kernels.sum_sources[(sums.shape[0], SOURCE_SPLITS)](
                *self.reading, *self.sources[:4], self.realized, self.at.rows.scale, run.start,
                run.stop, sums, SPLITS=SOURCE_SPLITS, TILE=SOURCE_TILE, num_warps=4,
            )  # fmt: skip

    def _by_offset(self, mass: Tensor) -> Tensor:
        zeros = mass.new_zeros(self.has_own.shape)
        return zeros.index_add_(0, self.events.source_offset, mass * self.source_weight)

    def add_to(
        self,
        slots: Tensor,
        lanes: Lanes,
        chunk: SideChunk,
        child_of_node: Tensor,
        reached: Tensor | None,
    ) -> None:
        """Collect the masses of a chunk.

        Args:
            slots: `[groups, 2 N, UNITS]` zeros; receives the masses.
            lanes: The offsets of the chunk.
            chunk: What it reads of this side.
            child_of_node: See `TreeBlocks`.
            reached: int8 `[offsets, children]` zeros; receives 1 where sources have tokens that go
                on with a child of the root. None if it is not wanted.
        """
        rows, events = self.at.rows, self.events
        groups, n_slots, units = slots.shape
        kernels.add_rows[(-(-rows.width // ADDED_COLUMNS), groups)](
            rows.logits, self.at.starts, self.norms, rows.stride, self.slot_of_id, rows.width,
            events.own, self.own_weight, *lanes.arguments, rows.scale, slots, n_slots,
            ALIGNED=rows.aligned, UNITS=units, COLUMNS=ADDED_COLUMNS, num_warps=4,
        )  # fmt: skip
        n_sources = chunk.sources.stop - chunk.sources.start
        if n_sources:
            kernels.add_sources[(n_sources, SOURCE_SPLITS)](
                *self.reading, self.table.suffixes, *self.sources,
                lanes.place[events.source_offset], self.source_weight, chunk.sources.start,
                lanes.start, rows.scale, slots, n_slots // 2, child_of_node,
                slots if reached is None else reached,
                1 if reached is None else reached.shape[1], WITH_REACHED=reached is not None,
                UNITS=units, SPLITS=SOURCE_SPLITS, TILE=SOURCE_TILE, num_warps=4,
            )  # fmt: skip
