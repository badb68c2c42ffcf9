"""Internal: tokens by which the two sides mean different events, from counts and the joint tree.

After a SHARED unit of token X both models say "the next token is X". For a side that also has
longer tokens which begin with X, this means "X, and none of them follows". If the other side lacks
such a token, it writes the same text with X and more tokens: one side's event holds texts that the
other side's does not. A token that begins with X, goes on, and is a token of one side only
*straddles* the end of X.

How much probability straddling tokens hold is known of a model and a prefix only. The figures here
take the data instead: of the tokens of a side that begin with X, the share that are straddling
ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simct_align import Aligner, Vocabulary
    from simct_align.report.tally import Tally
    from simct_align.text_tree import TextTree, TextTreeSide

#: A SHARED unit counts as straddled from this share on: the `epsilon` of `TextLoss`.
STRADDLED_FROM = 0.02


@dataclass(frozen=True)
class _Side:
    """One side's figures; arrays are `[nodes]`, but for those in token order, `[tokens]`."""

    tree: TextTreeSide
    counts: NDArray[np.int64]
    """How often every token occurs in the data, in token order."""
    one_sided: NDArray[np.bool_]
    """Whether every token is a token of this side only, in token order."""
    begin: NDArray[np.int64]
    """How many tokens of the data begin with the node's string."""
    straddle: NDArray[np.int64]
    """How many of these are longer and one-sided."""

    def share(self) -> NDArray[np.float64]:
        """Return the straddling tokens' share of those that begin with the node's string."""
        return np.divide(
            self.straddle, self.begin, out=np.zeros(len(self.begin)), where=self.begin > 0
        )


@dataclass(frozen=True)
class Straddling:
    """Which SHARED units are straddled.

    Attributes:
        student_flag: Whether a SHARED unit of a student's token counts as straddled, bool
            `[vocabulary]`.
        units: Number of such units in the data.
        same_units: SHARED units whose token has the same longer tokens on both sides: nothing can
            straddle their ends, whatever the text.
        tokens: The tokens with the largest products of such units and the larger share, largest
            first.
    """

    student_flag: NDArray[np.bool_]
    units: int
    same_units: int
    tokens: list[StraddledToken]


@dataclass(frozen=True)
class StraddledToken:
    """A token of both sides whose end is straddled.

    Attributes:
        student_id: The student's id.
        units: SHARED units of the token in the data.
        teacher_share: Share of straddling tokens among the teacher's tokens that begin with it.
        student_share: The same for the student.
        teacher_longer: The teacher's most frequent straddling tokens, as (id, count in the data).
        student_longer: The student's.
    """

    student_id: int
    units: int
    teacher_share: float
    student_share: float
    teacher_longer: list[tuple[int, int]]
    student_longer: list[tuple[int, int]]


def _side(
    tree: TextTree, side: TextTreeSide, vocabulary: Vocabulary, shared: NDArray[np.int64],
    counts_by_id: NDArray[np.int64],
) -> _Side:  # fmt: skip
    is_shared = np.zeros(len(vocabulary), np.bool_)
    is_shared[shared] = True
    counts = counts_by_id[side.token_ids]
    one_sided = ~is_shared[vocabulary.canonical_ids[side.token_ids]]
    sums = np.append(0, np.cumsum(counts))
    one_sided_sums = np.append(0, np.cumsum(np.where(one_sided, counts, 0)))
    first = side.node_tokens[:-1]
    end = side.node_tokens[tree.subtree_end]
    # A node's tokens of exactly its string come first.
    longer = first + side.node_exact
    return _Side(
        side,
        counts,
        one_sided,
        sums[end] - sums[first],
        one_sided_sums[end] - one_sided_sums[longer],
    )


def find_straddling(
    aligner: Aligner, tally: Tally, *, listed: int = 25, longer: int = 6
) -> Straddling:
    """Find the SHARED units that straddling tokens concern.

    Args:
        aligner: The aligner.
        tally: The counts of the data.
        listed: How many tokens to list.
        longer: How many straddling tokens of a side to list for each.

    Returns:
        The figures.

    Complexity:
        O(tokens of both vocabularies), in NumPy; the first call makes the aligner's `text_tree`.
    """
    tree, shared = aligner.text_tree, aligner.shared
    teacher = _side(tree, tree.teacher, aligner.teacher, shared.teacher_ids, tally.teacher_ids)
    student = _side(tree, tree.student, aligner.student, shared.student_ids, tally.student_ids)
    node = _nodes_of_tokens(tree.student, len(aligner.student))
    shares = np.stack([teacher.share(), student.share()])
    straddled: NDArray[np.bool_] = np.maximum(*shares) >= STRADDLED_FROM
    flag = (node >= 0) & straddled[node] & (tally.shared_ids > 0)
    ids = np.flatnonzero(flag)
    weight = tally.shared_ids[ids] * shares[:, node[ids]].max(axis=0)
    order = np.lexsort((ids, -weight))[:listed]
    same = (node >= 0) & (tree.same[node] != 0)
    return Straddling(
        flag,
        int(tally.shared_ids[flag].sum()),
        int(tally.shared_ids[same].sum()),
        [
            StraddledToken(
                token,
                int(tally.shared_ids[token]),
                float(shares[0, node[token]]),
                float(shares[1, node[token]]),
                _most_frequent(tree, teacher, int(node[token]), longer),
                _most_frequent(tree, student, int(node[token]), longer),
            )
            for token in ids[order].tolist()
        ],
    )


def _nodes_of_tokens(side: TextTreeSide, vocabulary: int) -> NDArray[np.int64]:
    """Return the node whose string a token is, −1 for none, for every id; int64 `[vocabulary]`."""
    # A node's tokens are at `node_tokens[node]` and after, those of exactly its string first.
    place = np.arange(len(side)) - np.repeat(side.node_tokens[:-1], np.diff(side.node_tokens))
    attached = np.repeat(np.arange(len(side.node_exact)), np.diff(side.node_tokens))
    node = np.full(vocabulary, -1, np.int64)
    node[side.token_ids] = np.where(place < side.node_exact[attached], attached, -1)
    return node


def _most_frequent(tree: TextTree, side: _Side, node: int, number: int) -> list[tuple[int, int]]:
    first = int(side.tree.node_tokens[node] + side.tree.node_exact[node])
    run = slice(first, int(side.tree.node_tokens[tree.subtree_end[node]]))
    counts = np.where(side.one_sided[run], side.counts[run], 0)
    order = np.argsort(-counts, kind="stable")[:number]
    ids = side.tree.token_ids[run]
    return [(int(ids[i]), int(counts[i])) for i in order if counts[i]]
