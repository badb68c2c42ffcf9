"""Internal: text events in PyTorch operations, a chunk of offsets at a time.

At an offset c every source k of a side has a weight `a_k`, and the masses of the texts that can
follow are sums of `a_k p(t | row k)` over tokens t. They are collected in the *slots* of the joint
tree of both vocabularies. Nodes are in depth-first order, so the mass of a subtree is a difference
of prefix sums, and one running maximum finds all nodes below a closed one: nothing walks the tree.

With `G = dD / d mass` of a leaf, a token's probability in row k gets the derivative
`a_k G(leaf of the token)`, and `log a_k` the sum of `a_k p G` over the row's tokens, which the
log-probabilities of the realized tokens before row k share.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .text_lists import SideLists
from .text_rows import TextRows
from .text_weights import SideRows, offset_weights

if TYPE_CHECKING:
    from torch import Tensor

    from ...text_layout import SideChunk, TextSideTable, TextSideView, TreeTensors
    from .rows import WholeRows

_NODE = 0x7FFFFFFF


@dataclass
class Entries:
    """The tokens of all straddling sources of a chunk, `[e]` each.

    Attributes:
        source: The source's number in the chunk.
        row: Its row among the chunk's rows of the side.
        offset: Its offset in the chunk.
        column: The token's logit column.
        slot: The slot of what the token goes on with; 0 where it ends at the offset.
        ends: Whether the token ends at the offset.
        realized: Whether it is the realized token, at whose end the own row stands.
        value: Its probability; 0 for the realized token, which ends at its own boundary.
    """

    source: Tensor
    row: Tensor
    offset: Tensor
    column: Tensor
    slot: Tensor
    ends: Tensor
    realized: Tensor
    value: Tensor


class SideMasses:
    """One side's masses at the offsets of a chunk; all masses of an offset sum to 1.

    Args:
        rows: The side's logits.
        table: Its tokens in the joint tree.
        view: Its text rows, offsets and sources.
        tree: The joint tree.
        offsets: The chunk's offsets.
        chunk: What the chunk reads of this side.
        dtype: What is computed in.

    Attributes:
        slots: `[O, 2 N]` masses by slot.
        stop: `[O]` mass of the stops, 0 without an own row.
        ended: `[O]` mass of tokens of earlier rows that end at the offset.
        straddling: `[O]` mass of tokens of earlier rows that reach beyond it.
        control: `[O]` probability of control tokens other than stops in the own row, left out.
        has_own: `[O]` whether there is an own row.
        known: `[O]` whether there is any mass.
        spoiled: `[O]` whether a row that the offset reads holds NaN.
        lists: What is listed; None where whole rows are known.
    """

    lists: SideLists | None = None

    def __init__(
        self,
        rows: WholeRows,
        table: TextSideTable,
        view: TextSideView,
        tree: TreeTensors,
        offsets: slice,
        chunk: SideChunk,
        dtype: torch.dtype,
    ) -> None:
        self.table, self._n_slots = table, 2 * len(tree)
        self.n_offsets = offsets.stop - offsets.start
        read = TextRows(rows, view, chunk, dtype)
        self.flat_rows, self.probs = read.flat, read.probs
        self.token, self.has_token = read.token, read.has_token
        is_nan, log_weight = read.is_nan, read.log_weight

        own = view.own[offsets]
        self.has_own = own >= 0
        self.own = (own - chunk.rows.start).masked_fill(~self.has_own, 0)
        own_slots, own_stop = self._own_masses()
        own_total = own_slots.sum(1).add_(own_stop)
        entries = self.entries = self._make_entries(view, offsets, chunk)
        n_sources = chunk.sources.stop - chunk.sources.start
        mass = own_total.new_zeros(n_sources).index_add_(0, entries.source, entries.value)
        source_row = view.source_row[chunk.sources] - chunk.rows.start
        source_offset = view.source_offset[chunk.sources] - offsets.start
        listed, listed_of_sources = own_total, mass
        if read.lists is not None:
            self.lists = SideLists(read.lists, self.own, self.has_own, entries)
            own_total = listed + self.lists.own_unlisted
            mass = listed_of_sources * (1.0 + self.lists.shares(source_row))
        self.control = (1.0 - own_total).masked_fill_(~self.has_own, 0.0)
        weights = offset_weights(
            SideRows(
                log_weight,
                is_nan,
                self.own,
                self.has_own,
                own_total,
                source_row,
                source_offset,
                mass,
            )
        )
        self.known, self.spoiled, self.own_weight = weights.known, weights.spoiled, weights.own
        self.entry_weight = weights.source[entries.source]

        weighted = entries.value * self.entry_weight
        self.ended = self._by_offset(weighted.masked_fill(~entries.ends, 0.0))
        going_on = weighted.masked_fill(entries.ends, 0.0)
        self.straddling = self._by_offset(going_on)
        self.slots = own_slots.mul_(self.own_weight.unsqueeze(1))
        self.slots.view(-1).index_add_(0, entries.offset * self._n_slots + entries.slot, going_on)
        self.stop = own_stop * self.own_weight
        if self.lists is not None:
            unlisted = self.lists.own_unlisted * self.own_weight
            unlisted.index_add_(0, source_offset, weights.source * (mass - listed_of_sources))
            self.lists.weigh(read, listed, source_offset, source_row, listed_of_sources, unlisted)

    def _own_masses(self) -> tuple[Tensor, Tensor]:
        """Return the own rows' probabilities by slot, `[O, 2 N]`, and of the stops, `[O]`."""
        slot_of_column = self.table.slot_of_column
        probs = self.probs.index_select(0, self.own)
        probs = probs.mul_(self.has_own.unsqueeze(1))
        # The last slot takes what is not a text token.
        slots = probs.new_zeros(self.n_offsets, self._n_slots + 1)
        text = probs[:, : slot_of_column.shape[0]]
        slots.scatter_add_(1, slot_of_column.expand(self.n_offsets, -1), text)
        stop = probs.index_select(1, self.table.stops).sum(1)
        return slots[:, : self._n_slots].contiguous(), stop

    def _make_entries(self, view: TextSideView, offsets: slice, chunk: SideChunk) -> Entries:
        first = view.source_first[chunk.sources]
        exact = view.source_exact[chunk.sources]
        counts = view.source_end[chunk.sources] - first
        device, total = counts.device, chunk.n_entries
        numbers = torch.arange(counts.shape[0], device=device)
        source = torch.repeat_interleave(numbers, counts, output_size=total)
        before = counts.cumsum(0) - counts
        within = torch.arange(total, device=device) - before[source]
        ends = within < exact[source]
        place = view.source_suffix[chunk.sources][source] + within - exact[source]
        suffix = self.table.suffixes[place.masked_fill(ends, 0)].long()
        slot = torch.where(suffix < 0, self._n_slots // 2, 0) + (suffix & _NODE)
        column = self.table.token_ids[first[source] + within]
        row = view.source_row[chunk.sources][source] - chunk.rows.start
        offset = view.source_offset[chunk.sources][source] - offsets.start
        realized = ends & self.has_own[offset] & (self.own[offset] == row + 1)
        realized &= column == self.token[row]
        value = self.probs[row, column].masked_fill(realized, 0.0)
        slot = slot.masked_fill(ends, 0)
        return Entries(source, row, offset, column, slot, ends, realized, value)

    def _by_offset(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.n_offsets).index_add_(0, self.entries.offset, values)

    def reached(self) -> Tensor:
        """Return `[O, N]` whether straddling tokens go on with a string that begins with a node."""
        n_nodes = self._n_slots // 2
        node = self.entries.slot % n_nodes
        counts = torch.zeros(self.n_offsets * n_nodes, dtype=torch.int32, device=node.device)
        ones = (~self.entries.ends).to(torch.int32)
        counts.index_add_(0, self.entries.offset * n_nodes + node, ones)
        return counts.view(self.n_offsets, n_nodes)

    def backward(self, grad: Tensor, grad_stop: Tensor, grad_ended: Tensor) -> Tensor:
        """Turn the derivative by the masses into that by the logits over temperature.

        Args:
            grad: `[O, 2 N + 1]` by the slots; the last column is 0.
            grad_stop: `[O]` by the mass of the stops.
            grad_ended: `[O]` by the mass of tokens that end at the offset.

        Returns:
            `[rows, columns]`, in the memory of the probabilities.
        """
        table, entries, probs = self.table, self.entries, self.probs
        by_probs = torch.zeros_like(probs)
        own = grad.gather(1, table.slot_of_column.expand(self.n_offsets, -1))
        own.index_add_(1, table.stops, grad_stop.unsqueeze(1).expand(-1, table.stops.shape[0]))
        own.mul_((self.own_weight * self.has_own).unsqueeze(1))
        by_probs[:, : own.shape[1]].index_add_(0, self.own, own)
        by_entry = grad[entries.offset, entries.slot]
        by_entry = torch.where(entries.ends, grad_ended[entries.offset], by_entry)
        by_entry = by_entry * self.entry_weight
        # The realized token that ends at its own boundary is in no mass.
        by_entry = by_entry.masked_fill_(entries.value == 0.0, 0.0)
        places = entries.row * probs.shape[1] + entries.column
        by_probs.view(-1).index_add_(0, places, by_entry)

        # By the logarithm of every row's weight, and so by every realized token before the row.
        by_weight = (probs * by_probs).sum(1)
        later = by_weight.sum() - by_weight.cumsum(0)
        by_token = later.masked_fill(~self.has_token, 0.0)
        by_probs.sub_((by_weight + by_token).unsqueeze(1))
        gradient = probs.mul_(by_probs)
        token = self.token.unsqueeze(1)
        gradient.scatter_add_(1, token, by_token.unsqueeze(1))
        return gradient
