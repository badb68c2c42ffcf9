"""Internal: a joint tree cut into blocks of nodes, for kernels that work on a block at a time.

Nodes are in depth-first order, so that most subtrees end in the block in which they begin. A node
whose subtree goes on in later blocks is a *span*: its mass is what is left of its own block, the
blocks in between, and the beginning of the block in which it ends. The root is no span: nothing
ever asks for its mass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Nodes of a block.
BLOCK = 64


class TreeBlocks(NamedTuple):
    """Tables of a tree of `N` nodes with `P` spans, int32.

    Attributes:
        spans: `[blocks + 1]` where the spans that begin in every block begin.
        span_of_node: `[N]` the span of a node, -1 for other nodes.
        span_node: `[P]` the nodes of the spans, ascending.
        span_end_point: `[P]` the end point of a span, -1 where it ends together with a block.
        end_points: `[blocks + 1]` where the end points of every block begin.
        end_node: The nodes before which spans end inside a block, ascending.
        covers: `[blocks + 1]` where the covers of every block begin.
        cover_span: The spans that begin before a block and do not end before it, from the root
            down.
        child_of_node: `[N]` the number of the root's child above a node or at it, -1 for the root.
    """

    spans: Tensor
    span_of_node: Tensor
    span_node: Tensor
    span_end_point: Tensor
    end_points: Tensor
    end_node: Tensor
    covers: Tensor
    cover_span: Tensor
    child_of_node: Tensor


def tree_blocks(parent: NDArray[np.int64], subtree_end: NDArray[np.int64]) -> TreeBlocks:
    """Cut a tree into blocks.

    Args:
        parent: `[N]` the node above, -1 for the root.
        subtree_end: `[N]` one past the last node of the subtree.

    Returns:
        The tables.

    Complexity:
        O(N) time and memory.
    """
    node = np.arange(len(parent))
    n_blocks = -(-len(node) // BLOCK)
    is_span = (node > 0) & (subtree_end > (node // BLOCK + 1) * BLOCK)
    span_node = node[is_span]
    ends = subtree_end[is_span]
    inside = ends % BLOCK != 0
    end_node = np.unique(ends[inside])
    covered = (ends - 1) // BLOCK - span_node // BLOCK
    spans = np.repeat(np.arange(len(span_node)), covered)
    within = np.arange(len(spans)) - np.repeat(np.cumsum(covered) - covered, covered)
    blocks = span_node[spans] // BLOCK + 1 + within
    # Ascending spans of a block are nested.
    order = np.argsort(blocks, kind="stable")
    every_block = np.arange(n_blocks + 1)
    is_child = (parent == 0) & (node > 0)
    tables = (
        np.searchsorted(span_node // BLOCK, every_block),
        np.where(is_span, np.cumsum(is_span) - 1, -1),
        span_node,
        np.where(inside, np.searchsorted(end_node, ends), -1),
        np.searchsorted(end_node // BLOCK, every_block),
        end_node,
        np.searchsorted(blocks[order], every_block),
        spans[order],
        np.cumsum(is_child) - 1,
    )
    return TreeBlocks(*(torch.from_numpy(each.astype(np.int32)) for each in tables))
