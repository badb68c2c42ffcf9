"""Spellings of one-sided tokens, and the continuations that a batch realizes: to study them.

A loss does not need this module: it reads the same from `batch.index(max_path=8)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simct_align import _native
from simct_align.inputs import integer, same_dtype, thread_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from simct_align.inputs import RaggedIds
    from simct_align.units import UnitColumns
    from simct_align.vocabulary import Vocabulary

#: How many realized tokens a continuation may begin with at most: no node's path is longer.
MAX_PATH = 64


@dataclass(frozen=True)
class LeafTable:
    """The candidates of every node in one direction: leaves, numbered through.

    Attributes:
        node_offsets: The leaves of node `n` are `node_offsets[n]:node_offsets[n + 1]`; int64
            `[nodes + 1]`.
        last_token: What follows the node's path, on the side that spells; int64 `[leaves]`,
            ascending within a node.
        one_sided_token: The single token of the other side, int64 `[leaves]`.
    """

    node_offsets: NDArray[np.int64]
    last_token: NDArray[np.int64]
    one_sided_token: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.last_token)


class PathNodes(NamedTuple):
    """The paths that the nodes of one direction stand for, each by its last step.

    Attributes:
        parent: The node of the path without its last token; −1 for a path of one token; int64
            `[nodes]`.
        token: The last token of the path, on the side that spells; int64 `[nodes]`.
    """

    parent: NDArray[np.int64]
    token: NDArray[np.int64]


class Spellings:
    """How one side writes the tokens that only the other side has: one direction.

    From `spellings`; its `teacher` holds the teacher's one-sided tokens, spelled
    by the student. A spelling is what the writing side's tokenizer emits for the token's text
    alone, if that spells exactly its bytes; else the fewest tokens that do, the longest first.
    """

    def __init__(self, native: _native.Spellings, own: Vocabulary) -> None:
        self._native = native
        self._own = own

    def __repr__(self) -> str:
        spelled = sum(self.by_length.values())
        return f"<Spellings of {spelled:,} tokens, {len(self.unspelled):,} without one>"

    @cached_property
    def leaves(self) -> LeafTable:
        """The candidates of every node."""
        return LeafTable(*self._native.leaf_table())

    @cached_property
    def nodes(self) -> PathNodes:
        """The paths of the nodes."""
        return PathNodes(*self._native.node_table())

    @cached_property
    def unspelled(self) -> NDArray[np.int64]:
        """The one-sided tokens that the other side cannot write, ascending, int64."""
        return self._native.unspelled()

    @cached_property
    def by_length(self) -> dict[int, int]:
        """How many one-sided tokens have a spelling of so many tokens."""
        counts = enumerate(self._native.counts_by_length())
        return {length: count for length, count in counts if count}

    def cut_off(self, max_path: int) -> int:
        """How many spellings are longer than a path of `max_path` tokens and a last one."""
        return sum(count for length, count in self.by_length.items() if length > max_path + 1)

    def spelling(self, token_id: int) -> tuple[int, ...] | None:
        """The spelling of a one-sided token, by canonical id; `None` for all others."""
        found = self._native.spelling(token_id)
        return None if found is None else tuple(found)

    def after(self, path: Sequence[int]) -> list[tuple[str, tuple[int, ...], int]]:
        """The texts that begin with a path and are spelled with one token more.

        Args:
            path: Ids of the side that spells.

        Returns:
            `(text, ids of the side that spells, id of the one-sided token)` of each.
        """
        if not path or min(path) < 0 or max(path) >= 1 << 32:
            return []
        node = self._native.node([int(token) for token in path])
        return [] if node is None else list(self.at_node(node))

    def at_node(self, node: int) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """The leaves of a node, as `after` returns them."""
        leaves = self.leaves
        for token in leaves.one_sided_token[slice(*leaves.node_offsets[node : node + 2])].tolist():
            text = self._own.token_bytes(token).decode("utf-8", "backslashreplace")
            spelling = self.spelling(token)
            assert spelling is not None  # a leaf is made from one
            yield text, spelling, token


class PairSpellings(NamedTuple):
    """The spellings of both directions.

    Attributes:
        teacher: Of the teacher's one-sided tokens, in the student's tokens.
        student: Of the student's one-sided tokens, in the teacher's tokens.
    """

    teacher: Spellings
    student: Spellings


class Continuation(NamedTuple):
    r"""A text that can follow a prefix, and that both models have scored.

    Attributes:
        text: The text; bytes that are not whole characters are escaped (`\xf0`).
        teacher: Its path of teacher tokens.
        student: Its path of student tokens. One of the two paths is a single token; the other
            consists of realized tokens but for its last.
    """

    text: str
    teacher: tuple[int, ...]
    student: tuple[int, ...]


@dataclass(frozen=True)
class Entries:
    """The nodes that units reach in one direction, by unit, then by depth.

    Attributes:
        unit: Number of the unit in the batch, int32 `[entries]`.
        node: A node of the spellings that has leaves, int32 `[entries]`.
        depth: How many realized tokens lead to it, int32 `[entries]`.
        leaves: The leaves of all nodes.
    """

    unit: NDArray[np.int32]
    node: NDArray[np.int32]
    depth: NDArray[np.int32]
    leaves: LeafTable

    def __len__(self) -> int:
        return len(self.unit)

    def of_unit(self, unit: int) -> NDArray[np.int32]:
        """The nodes that one unit reaches."""
        return self.node[slice(*np.searchsorted(self.unit, [unit, unit + 1]))]

    def counts(self, n_units: int) -> NDArray[np.int64]:
        """How many continuations every unit has in this direction, int64 `[n_units]`."""
        per_entry = np.diff(self.leaves.node_offsets)[self.node]
        return np.bincount(self.unit, weights=per_entry, minlength=n_units).astype(np.int64)


@dataclass(frozen=True, repr=False)
class Continuations:
    """What a batch realizes beside its text, from `continuations`.

    Only units that have a prefix, and no trimmed token, have continuations; those that
    `batch.index(max_path=...)` holds.

    Attributes:
        teacher: Single teacher tokens that the student spells along its realized tokens.
        student: Single student tokens that the teacher spells along its realized tokens.
        max_path: How many realized tokens a continuation may begin with.
        spellings: The spellings that it was made with.
    """

    teacher: Entries
    student: Entries
    max_path: int
    spellings: PairSpellings

    def __repr__(self) -> str:
        return f"<Continuations: {len(self.teacher)} teacher and {len(self.student)} student nodes>"

    @property
    def cut_off(self) -> tuple[int, int]:
        """The teacher's and the student's one-sided tokens whose spelling is too long."""
        teacher, student = self.spellings
        return teacher.cut_off(self.max_path), student.cut_off(self.max_path)

    def of_unit(self, unit: int) -> list[Continuation]:
        """All continuations of a unit.

        Args:
            unit: Number of the unit in the batch.

        Returns:
            The teacher's single tokens first, then the student's, each by rising depth.
        """
        return [
            Continuation(text, (token,), spelling)
            for node in self.teacher.of_unit(unit).tolist()
            for text, spelling, token in self.spellings.teacher.at_node(node)
        ] + [
            Continuation(text, spelling, (token,))
            for node in self.student.of_unit(unit).tolist()
            for text, spelling, token in self.spellings.student.at_node(node)
        ]


def make_spellings(pair: _native.Pair, teacher: Vocabulary, student: Vocabulary) -> PairSpellings:
    """Makes the spellings of both directions, unless the pair has them.

    Args:
        pair: The pair.
        teacher: The teacher's vocabulary; without a tokenizer it writes by the shortest paths.
        student: Likewise.

    Returns:
        The spellings.

    Complexity:
        Two batch calls of the tokenizers, and O(bytes of the one-sided tokens).
    """
    if not pair.has_spellings:
        _native.make_spellings(
            pair, _encodings(pair, student, of_teacher=True), _encodings(pair, teacher)
        )
    return PairSpellings(
        Spellings(_native.Spellings(pair, of_teacher=True), teacher),
        Spellings(_native.Spellings(pair, of_teacher=False), student),
    )


def _encodings(
    pair: _native.Pair, writer: Vocabulary, *, of_teacher: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """What a tokenizer emits for the other side's one-sided tokens, as ragged ids."""
    tokenizer = writer.tokenizer
    if tokenizer is None:
        return None
    ids, texts = _native.one_sided_tokens(pair, of_teacher=of_teacher)
    encoded = _encode(writer, [text for text in texts if text is not None])
    values, offsets = _native.ids_from_lists("encodings", encoded)
    lengths = np.zeros(len(ids), np.int64)
    lengths[[text is not None for text in texts]] = np.diff(offsets)
    return values, np.concatenate([[0], lengths.cumsum()])


def _encode(writer: Vocabulary, texts: list[str]) -> list[list[int]]:
    """Tokenizes texts; those that the tokenizer refuses are empty.

    Some tokenizers cannot but make a control token of its name, and say so. The token then has
    the shortest path for its spelling, as it does where tokenizers write something else.
    """
    rows: list[list[int]] = [[] for _ in texts]
    parts = [(0, len(texts))] if texts else []
    while parts:
        start, end = parts.pop()
        try:
            rows[start:end] = writer.encode_batch(texts[start:end])
        except ValueError:
            if end - start > 1:
                middle = (start + end) // 2
                parts += [(start, middle), (middle, end)]
    return rows


def enumerate_continuations(
    pair: _native.Pair,
    spellings: PairSpellings,
    units: UnitColumns,
    sides: tuple[RaggedIds, RaggedIds],
    *,
    max_path: int,
    threads: int | None,
) -> Continuations:
    """See `continuations`; `sides` are the teacher's ids and the student's."""
    found = _native.on_path(
        pair,
        units,
        *same_dtype(*sides),
        max_path=checked_max_path(max_path, at_least=1),
        threads=thread_count(threads),
    )
    teacher, student = (
        Entries(*entries, side.leaves) for entries, side in zip(found, spellings, strict=True)
    )
    return Continuations(teacher, student, max_path, spellings)


def checked_max_path(max_path: int, *, at_least: int) -> int:
    """`max_path`, if it is one.

    Raises:
        TypeError: Not an integer.
        ValueError: Out of range.
    """
    return integer("max_path", max_path, at_least=at_least, at_most=MAX_PATH)
