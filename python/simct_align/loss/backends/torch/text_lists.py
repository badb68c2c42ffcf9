"""Internal: text events of a teacher of which only lists of likeliest tokens are known.

A list leaves a share `u` of its row's probability to tokens that are not listed. Of a source, the
tokens that begin with the text since the row have the listed mass `l`. The same share of all their
mass is taken to be unlisted: `l u / (1 - u)`, or 0 if all of these tokens are listed. At the own
row, where they are all tokens, that is `u`. Unlisted mass belongs to the rest of the root. So does,
on both sides, every leaf for which the teacher has tokens but lists none. A node is closed if
nothing is listed below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ...text_layout import TextSideTable
    from .list_rows import ListedRows
    from .text import Entries
    from .text_rows import TextRows


class SideLists:
    """What is listed at the offsets of a chunk.

    Args:
        rows: What is listed of the chunk's rows.
        own: `[O]` the own row of every offset, 0 without one.
        has_own: `[O]` whether there is one.
        entries: The tokens of straddling sources.

    Attributes:
        own_unlisted: `[O]` the probability of tokens that the own row does not list.
        unlisted: `[O]` the unlisted mass; `weigh` fills it in.
        unknown: `[O]` whether the lists lack what the masses need; `weigh` fills it in.
    """

    unlisted: Tensor
    unknown: Tensor

    def __init__(self, rows: ListedRows, own: Tensor, has_own: Tensor, entries: Entries) -> None:
        self._rows, self._own, self._has_own, self._entries = rows, own, has_own, entries
        self.own_unlisted = rows.unlisted[own] * has_own
        self._listed = rows.listed[entries.row, entries.column]

    def shares(self, source_row: Tensor) -> Tensor:
        """Return `[X]` the unlisted mass of every source, as a multiple of its listed mass.

        Args:
            source_row: `[X]` the row of every source.
        """
        entries, unlisted = self._entries, self._rows.unlisted[source_row]
        lacks = (~self._listed & ~entries.realized).to(unlisted.dtype)
        lacks = unlisted.new_zeros(source_row.shape).index_add_(0, entries.source, lacks)
        # Without any listed mass, any finite multiple will do.
        least = torch.finfo(unlisted.dtype).tiny
        return (unlisted / (1.0 - unlisted).clamp_(min=least)).masked_fill_(lacks == 0, 0.0)

    def weigh(
        self,
        rows: TextRows,
        own_mass: Tensor,
        source_offset: Tensor,
        source_row: Tensor,
        source_mass: Tensor,
        unlisted: Tensor,
    ) -> None:
        """Keep the unlisted masses, and find the offsets whose masses are not known.

        The weight of a row against a later one is the probability of the realized tokens between
        them, so all of these must be listed.

        Args:
            rows: The chunk's rows.
            own_mass: `[O]` listed mass of the own rows.
            source_offset: `[X]` the offset of every source.
            source_row: `[X]` its row.
            source_mass: `[X]` its listed mass.
            unlisted: `[O]` unlisted mass.
        """
        n_rows = rows.token.shape[0]
        token = rows.token.unsqueeze(1)
        lacks = rows.has_token & ~self._rows.listed.gather(1, token).squeeze(1)
        before = lacks.cumsum(0) - lacks.long()
        has_mass = source_mass > 0
        first = source_row.masked_fill(~has_mass, n_rows)
        last = source_row.masked_fill(~has_mass, 0)
        first = self._own.new_full(self._own.shape, n_rows).scatter_reduce(
            0, source_offset, first, "amin"
        )
        last = self._own.scatter_reduce(0, source_offset, last, "amax")
        between = before[last] - before[first.clamp_max(n_rows - 1)]
        some = torch.zeros_like(own_mass).index_add_(0, source_offset, source_mass) + own_mass
        could = torch.zeros_like(own_mass).index_add_(
            0, self._entries.offset, (~self._entries.realized).to(own_mass.dtype)
        )
        nothing = (some == 0) & ((could > 0) | self._has_own)
        self.unknown = nothing | ((first < last) & (between > 0))
        self.unlisted = unlisted

    def counts(self, table: TextSideTable, n_slots: int) -> tuple[Tensor, Tensor]:
        """Return `[O, slots]` the numbers of all tokens, and of listed ones, of every slot.

        Args:
            table: The side's tokens in the joint tree.
            n_slots: The number of slots.
        """
        entries, n_offsets = self._entries, self._own.shape[0]
        slot_of_column = table.slot_of_column
        ones = torch.ones_like(slot_of_column, dtype=torch.int32)
        # The last slot takes what is not a text token.
        in_slot = ones.new_zeros(n_slots + 1).index_add_(0, slot_of_column, ones)
        tokens = in_slot[:n_slots] * self._has_own.unsqueeze(1)
        own = self._rows.listed.index_select(0, self._own) & self._has_own.unsqueeze(1)
        listed = ones.new_zeros(n_offsets, n_slots + 1).scatter_add_(
            1,
            slot_of_column.expand(n_offsets, -1),
            own[:, : slot_of_column.shape[0]].to(torch.int32),
        )
        listed = listed[:, :n_slots].contiguous()
        goes_on, place = ~entries.ends, entries.offset * n_slots + entries.slot
        tokens.view(-1).index_add_(0, place, goes_on.to(torch.int32))
        listed.view(-1).index_add_(0, place, (goes_on & self._listed).to(torch.int32))
        return tokens, listed

    def lacks_stops(self, table: TextSideTable) -> Tensor:
        """Return `[O]` whether the own row has stops and lists none."""
        listed = self._rows.listed.index_select(0, self._own).index_select(1, table.stops)
        return self._has_own & ~listed.any(1) & (table.stops.shape[0] > 0)
