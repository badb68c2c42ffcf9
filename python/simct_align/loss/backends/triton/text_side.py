"""Internal: one side of text events in Triton kernels: its rows, its sources, and their weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from . import text_kernels as kernels
from .launch import ROW_T, WARPS, E, power_of_two

if TYPE_CHECKING:
    from ...text_layout import SideChunk
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
        reader: Reads the rows.

    Attributes:
        reader: What reads the rows.
        at: Where the rows are that were read last.
        n_codes: How many columns may be tokens.
        norms: `[K, 3]` of text rows; see `text_kernels`.

    `weigh_offsets` writes these:
        own_weight: `[O]` what probabilities of the row at the offset are multiplied by.
        source_weight: `[X]` what those of sources are multiplied by.
        source_ended: `[X]` probability of tokens that end at the source's offset.
        stop: `[O]` mass of the stops.
        offset_of_row: `[K]` the offset with the row, -1 without one.
    """

    def __init__(self, side: TextSide, reader: TextReader) -> None:
        self.reader = reader
        self.events, self.table = side.events, side.table
        events, codes = self.events, self.table.slot_codes
        self.n_codes = min(reader.width, codes.shape[0])
        n_rows, n_sources = events.row.shape[0], events.source_row.shape[0]
        self.norms = torch.empty((n_rows, 3), dtype=torch.float32, device=codes.device)
        self._stop_of_row = self.norms.new_empty(n_rows)
        self._sums = self.norms.new_zeros((n_sources, SOURCE_SPLITS, 2))
        log_probs = torch.empty(n_rows, dtype=torch.float64, device=codes.device)
        for run in reader.runs():
            self._sum_run(run, log_probs)
        #: The log-probability of the realized tokens before every row.
        self._log_weight = log_probs.cumsum(0) - log_probs
        is_nan = self.norms[:, 1].isnan()
        self._nans_before = torch.nn.functional.pad(is_nan.cumsum(0), (1, 0))
        self.own_weight = self.norms.new_empty(events.own.shape)
        self.stop = torch.empty_like(self.own_weight)
        self.source_weight = self.norms.new_empty(n_sources)
        self.source_ended = torch.empty_like(self.source_weight)
        self.offset_of_row = events.row.new_full((n_rows,), -1)

    def read(self, rows: slice) -> None:
        """Make a run of text rows the one that kernels read.

        Args:
            rows: The run.
        """
        self.at = self.reader.read(rows)

    def _sum_run(self, run: slice, log_probs: Tensor) -> None:
        """Sum up a run of rows, and the tokens of all sources whose rows are in it."""
        self.read(run)
        events, rows, stops = self.events, self.at.rows, self.table.stops
        kernels.sum_text_rows[(run.stop - run.start,)](
            rows.logits, self.at.starts, rows.stride, self.table.slot_codes, self.n_codes,
            rows.scale, run.start, events.token, stops, stops.shape[0], self.norms,
            self._stop_of_row, log_probs, ALIGNED=rows.aligned, T=ROW_T, E=E,
            STOPS=power_of_two(stops.shape[0]), num_warps=WARPS,
        )  # fmt: skip
        if self._sums.shape[0]:
            kernels.sum_sources[(self._sums.shape[0], SOURCE_SPLITS)](
                *self.reading, *self.sources[:4], events.source_offset, events.own, events.token,
                rows.scale, run.start, run.stop, self._sums, SPLITS=SOURCE_SPLITS,
                TILE=SOURCE_TILE, num_warps=4,
            )  # fmt: skip

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

    @property
    def weighing(self) -> tuple[Tensor, ...]:
        """One side's arguments of `weigh_offsets`."""
        events = self.events
        return (
            events.own, events.source_ends, events.source_row, self.norms, self._stop_of_row,
            self._log_weight, self._nans_before, self._sums, self.own_weight, self.source_weight,
            self.source_ended, self.stop, self.offset_of_row,
        )  # fmt: skip

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
        kernels.add_rows[(-(-self.n_codes // ADDED_COLUMNS), groups)](
            rows.logits, self.at.starts, self.norms, rows.stride, self.table.slot_codes,
            self.n_codes, events.own, self.own_weight, *lanes.arguments, rows.scale, slots,
            n_slots, ALIGNED=rows.aligned, UNITS=units, COLUMNS=ADDED_COLUMNS, num_warps=4,
        )  # fmt: skip
        n_sources = chunk.sources.stop - chunk.sources.start
        if n_sources:
            kernels.add_sources[(n_sources, SOURCE_SPLITS)](
                *self.reading, self.table.suffixes, *self.sources, events.source_offset,
                lanes.place, self.source_weight, chunk.sources.start, lanes.start, rows.scale,
                slots, n_slots // 2, child_of_node, slots if reached is None else reached,
                1 if reached is None else reached.shape[1], WITH_REACHED=reached is not None,
                UNITS=units, SPLITS=SOURCE_SPLITS, TILE=SOURCE_TILE, num_warps=4,
            )  # fmt: skip
