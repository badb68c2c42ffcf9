"""Internal: the text events of an index and the joint tree of a pair, as `TextLoss` reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from .scores.on_path_plan import SIDES

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from simct_align.index import Side

    from .layout import IndexSizes

#: What stands in `TextSideTable.slot_codes` in addition to slots.
SEVERAL, CONTROL, STOP, NO_TOKEN = 1 << 30, -1, -2, -3


@dataclass(frozen=True)
class TextSideView:
    """One side's text rows, offsets and sources in a packed index, on the device.

    Attributes:
        row: `[K]` flat logit row of every text row.
        token: `[K]` the realized token that the row predicts, -1 at the end of a stretch.
        own: `[O]` the text row at every offset, -1 without one.
        source_ends: `[O + 1]` where the sources of every offset begin, and those of the last end.
        source_offset: `[X]` the offset of every source, ascending.
        source_row: `[X]` its text row.
        source_first: `[X]` its first token, a position in token order.
        source_end: `[X]` one past its last token.
        source_exact: `[X]` how many of its tokens, the first ones, end at the offset.
        source_suffix: `[X]` where the suffixes of its other tokens begin.
    """

    row: Tensor
    token: Tensor
    own: Tensor
    source_ends: Tensor
    source_offset: Tensor
    source_row: Tensor
    source_first: Tensor
    source_end: Tensor
    source_exact: Tensor
    source_suffix: Tensor


def view_text_side(packed: Tensor, sizes: IndexSizes, side: Side) -> TextSideView:
    """Return one side's text events.

    Args:
        packed: The int64 buffer of an `AlignedIndex`.
        sizes: Its sizes.
        side: `"teacher"` or `"student"`.

    Returns:
        Views, and the offset of every source; nothing is read back to the host.
    """
    at = sizes.sections(packed.numel())

    def section(name: str) -> Tensor:
        return packed[at[name]]

    ends = section(f"{side}_source_offsets")
    sources = at[f"{side}_source_row"]
    numbers = torch.arange(ends.shape[0] - 1, device=packed.device)
    return TextSideView(
        row=section(f"{side}_text_row"),
        token=section(f"{side}_text_id"),
        own=section(f"{side}_own_text_row"),
        source_ends=ends,
        source_offset=torch.repeat_interleave(
            numbers, ends.diff(), output_size=sources.stop - sources.start
        ),
        source_row=section(f"{side}_source_row"),
        source_first=section(f"{side}_source_start"),
        source_end=section(f"{side}_source_end"),
        source_exact=section(f"{side}_source_exact"),
        source_suffix=section(f"{side}_source_suffix"),
    )


class SideChunk(NamedTuple):
    """What a chunk of offsets reads of one side.

    Attributes:
        rows: Text rows: those at the offsets, and those of their sources.
        sources: Sources.
        n_entries: Tokens of all these sources together.
    """

    rows: slice
    sources: slice
    n_entries: int


class TextChunk(NamedTuple):
    """A run of offsets that are computed together.

    Attributes:
        offsets: The offsets.
        sides: What they read of either side.
        may_lack_rows: Whether a side has no row at one of them.
    """

    offsets: slice
    sides: dict[Side, SideChunk]
    may_lack_rows: bool


def plan_chunks(host: Tensor, sizes: IndexSizes, size: int, entries: int) -> list[TextChunk]:
    """Cut the offsets of an index into chunks, on the host.

    Args:
        host: The packed index, on the host.
        sizes: Its sizes.
        size: How many offsets a chunk has at most.
        entries: How many tokens of sources it has at most on a side, unless it is one offset.

    Returns:
        The chunks, in order.

    Complexity:
        O(offsets + sources) on the host.
    """
    values: NDArray[np.int64] = host.numpy()
    at = sizes.sections(values.size)
    own, ends, source_row, tokens_before = {}, {}, {}, {}
    for side in SIDES:
        own[side] = values[at[f"{side}_own_text_row"]]
        ends[side] = values[at[f"{side}_source_offsets"]]
        source_row[side] = values[at[f"{side}_source_row"]]
        counts = values[at[f"{side}_source_end"]] - values[at[f"{side}_source_start"]]
        tokens_before[side] = np.concatenate([[0], np.cumsum(counts)])[ends[side]]
    total = len(own["teacher"])
    found, start = [], 0
    while start < total:
        stop = min(total, start + size)
        for side in SIDES:
            room = tokens_before[side][start] + entries
            fits = int(np.searchsorted(tokens_before[side], room, side="right")) - 1
            stop = max(start + 1, min(stop, fits))
        sides = {}
        for side in SIDES:
            sources = slice(int(ends[side][start]), int(ends[side][stop]))
            rows = np.concatenate([own[side][start:stop], source_row[side][sources]])
            rows = rows[rows >= 0]
            # One row at least, so that nothing has no rows: it has no weight anywhere.
            first, last = (int(rows.min()), int(rows.max())) if len(rows) else (0, 0)
            n_entries = int(tokens_before[side][stop] - tokens_before[side][start])
            sides[side] = SideChunk(slice(first, last + 1), sources, n_entries)
        lacks = any(bool((own[side][start:stop] < 0).any()) for side in SIDES)
        found.append(TextChunk(slice(start, stop), sides, lacks))
        start = stop
    return found


@dataclass(frozen=True)
class TreeTensors:
    """The joint tree of a pair, `N` nodes in depth-first order, and `2 N` *slots*.

    Slot `n` is for tokens that are attached to node `n` and go on after its string, slot `N + n`
    for tokens that are exactly its string.

    Attributes:
        parent: int32 `[N]` the node above, 0 for the root.
        subtree_end: int32 `[N]` one past the last node of the subtree.
        same: `[N]` whether both vocabularies have the same strings below.
    """

    parent: Tensor
    subtree_end: Tensor
    same: Tensor

    def __len__(self) -> int:
        return int(self.parent.shape[0])


@dataclass(frozen=True)
class TextSideTable:
    """One side's tokens in the joint tree.

    Attributes:
        slot_of_column: `[needed]` the slot of every logit column, `2 N` where it is not a text
            token.
        slot_codes: int32 `[at least needed]` the same, with `SEVERAL` added where the slot has
            several tokens; `CONTROL`, `STOP` or `NO_TOKEN` where it is not a text token. Its length
            is a multiple of 128, for kernels.
        token_ids: int32 `[tokens]` the ids in token order.
        node_tokens: int32 `[N + 1]` where the tokens of every node begin in token order.
        node_exact: int32 `[N]` how many tokens of a node, the first ones, are its string.
        suffixes: int32 `[suffixes]`, the node of what follows a beginning of a token; negative
            where that is exactly the node's string.
        stops: The ids of the stops.
    """

    slot_of_column: Tensor
    slot_codes: Tensor
    token_ids: Tensor
    node_tokens: Tensor
    node_exact: Tensor
    suffixes: Tensor
    stops: Tensor
