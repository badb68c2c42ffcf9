"""Internal: the joint tree of a pair of vocabularies as buffers of a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from .scores.on_path_plan import SIDES
from .text_blocks import TreeBlocks, tree_blocks
from .text_layout import CONTROL, NO_TOKEN, SEVERAL, STOP, TextSideTable, TreeTensors

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from simct_align.index import Side
    from simct_align.pair import SharedVocabulary
    from simct_align.text_tree import TextTree, TextTreeSide

    from .columns import SideColumns


class PairWithTree(Protocol):
    """The part of an `Aligner` that text events read."""

    @property
    def shared(self) -> SharedVocabulary:
        """The shared vocabulary, for its stops."""
        ...

    @property
    def text_tree(self) -> TextTree:
        """The joint tree of both vocabularies."""
        ...


def _slots(tree: TextTree, side: TextTreeSide) -> NDArray[np.int64]:
    """Return the slots of all text tokens, in token order."""
    counts = np.diff(side.node_tokens)
    node = np.repeat(np.arange(len(tree)), counts)
    within = np.arange(len(node)) - np.repeat(side.node_tokens[:-1], counts)
    slots: NDArray[np.int64] = node + len(tree) * (within < side.node_exact[node])
    return slots


def _slot_codes(
    slots: NDArray[np.int64], side: TextTreeSide, columns: SideColumns, stops: NDArray[np.int64]
) -> Tensor:
    """Return what every column is; see `TextSideTable`."""
    is_several = np.bincount(slots)[slots] > 1
    codes = np.full(columns.code_of_id.shape[0], NO_TOKEN, np.int32)
    codes[: columns.needed] = CONTROL
    codes[side.token_ids] = slots + SEVERAL * is_several
    codes[stops] = STOP
    return torch.from_numpy(codes).index_fill_(0, columns.unused, NO_TOKEN)


def _int32(values: NDArray[np.int64]) -> Tensor:
    """Return numbers of nodes or tokens, which are below 2^31."""
    return torch.from_numpy(values.astype(np.int32))


class TextColumns(torch.nn.Module):
    """The joint tree of a pair, and both vocabularies in it, as non-persistent buffers.

    Args:
        aligner: The pair.
        columns: The logit columns of either side, on the CPU.

    Complexity:
        O(tokens of both vocabularies) time and memory; the aligner's first use of the tree makes
        the tree.
    """

    parent: Tensor
    subtree_end: Tensor
    same: Tensor

    def __init__(self, aligner: PairWithTree, columns: dict[Side, SideColumns]) -> None:
        super().__init__()
        tree = aligner.text_tree
        self._keep("parent", _int32(np.maximum(tree.parent, 0)))
        self._keep("subtree_end", _int32(tree.subtree_end))
        self._keep("same", torch.from_numpy(tree.same != 0))
        for name, table in tree_blocks(tree.parent, tree.subtree_end)._asdict().items():
            self._keep(name, table)
        for side in SIDES:
            of_side: TextTreeSide = getattr(tree, side)
            stops = np.asarray(getattr(aligner.shared, f"{side}_stop_ids"), np.int64)
            # One entry more: what no suffix is read of still needs a place.
            suffixes = np.concatenate([of_side.suffixes, np.zeros(1, np.int32)])
            slots = _slots(tree, of_side)
            slot_of_column = np.full(columns[side].needed, 2 * len(tree))
            slot_of_column[of_side.token_ids] = slots
            self._keep(f"{side}_slot_of_column", torch.from_numpy(slot_of_column))
            codes = _slot_codes(slots, of_side, columns[side], stops)
            self._keep(f"{side}_slot_codes", codes)
            self._keep(f"{side}_token_ids", _int32(of_side.token_ids))
            self._keep(f"{side}_node_tokens", _int32(of_side.node_tokens))
            self._keep(f"{side}_node_exact", _int32(of_side.node_exact))
            self._keep(f"{side}_suffixes", torch.from_numpy(suffixes))
            self._keep(f"{side}_text_stops", torch.from_numpy(stops))

    def _keep(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(name, tensor, persistent=False)

    def tensors(self) -> dict[str, Any]:
        """Return the buffers by name."""
        return dict(self.named_buffers())


def tree_of(tensors: Any) -> TreeTensors:
    """Return the tree among the tensors of an operator.

    Args:
        tensors: An object with the buffers of `TextColumns` as attributes.
    """
    return TreeTensors(tensors.parent, tensors.subtree_end, tensors.same)


def blocks_of(tensors: Any) -> TreeBlocks:
    """Return the blocks of the tree among the tensors of an operator.

    Args:
        tensors: An object with the buffers of `TextColumns` as attributes.
    """
    return TreeBlocks(*(getattr(tensors, name) for name in TreeBlocks._fields))


def table_of(tensors: Any, side: Side) -> TextSideTable:
    """Return a side's tokens among the tensors of an operator.

    Args:
        tensors: An object with the buffers of `TextColumns` as attributes.
        side: `"teacher"` or `"student"`.
    """
    return TextSideTable(
        slot_of_column=getattr(tensors, f"{side}_slot_of_column"),
        slot_codes=getattr(tensors, f"{side}_slot_codes"),
        token_ids=getattr(tensors, f"{side}_token_ids"),
        node_tokens=getattr(tensors, f"{side}_node_tokens"),
        node_exact=getattr(tensors, f"{side}_node_exact"),
        suffixes=getattr(tensors, f"{side}_suffixes"),
        stops=getattr(tensors, f"{side}_text_stops"),
    )
