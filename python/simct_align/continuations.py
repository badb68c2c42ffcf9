"""Internal: spellings of one-sided tokens, and the on-path continuations of a batch.

These classes are for inspection. A loss reads the same data from `batch.index(max_path=8)`.
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

#: The largest number of realized tokens at the start of a continuation: the longest node path.
MAX_PATH = 64


@dataclass(frozen=True)
class LeafTable:
    """The leaves of all nodes of one direction, numbered consecutively.

    A leaf is a candidate at its node: a one-sided token, and the last token of its spelling.

    Attributes:
        node_offsets: The leaves of node `n` are `node_offsets[n]:node_offsets[n + 1]`; int64
            `[nodes + 1]`.
        last_token: The last token of the spelling, which follows the path of the node on the side
            that spells; int64 `[leaves]`, ascending within a node.
        one_sided_token: The single token on the other side, int64 `[leaves]`.
    """

    node_offsets: NDArray[np.int64]
    last_token: NDArray[np.int64]
    one_sided_token: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.last_token)


class PathNodes(NamedTuple):
    """The paths of the nodes of one direction, each as a parent node and a last token.

    Attributes:
        parent: The node of the path without its last token, or −1 for a path of one token; int64
            `[nodes]`.
        token: The last token of the path, on the side that spells; int64 `[nodes]`.
    """

    parent: NDArray[np.int64]
    token: NDArray[np.int64]


class Spellings:
    """The spellings of one side's one-sided tokens, in tokens of the other side.

    `aligner.spellings` has two such objects. Its `teacher` contains the spellings of the teacher's
    one-sided tokens in student tokens. The side that has the tokens of a spelling is called the
    side that spells. A spelling is what the tokenizer of that side emits for the text of the
    one-sided token alone, if the result has exactly the bytes of that token. Otherwise the
    spelling is the fewest tokens with exactly these bytes, the longest tokens first.
    """

    def __init__(self, native: _native.Spellings, own: Vocabulary) -> None:
        self._native = native
        self._own = own

    def __repr__(self) -> str:
        spelled = sum(self.by_length.values())
        return f"<Spellings of {spelled:,} tokens, {len(self.unspelled):,} without one>"

    @cached_property
    def leaves(self) -> LeafTable:
        """The leaves of all nodes."""
        return LeafTable(*self._native.leaf_table())

    @cached_property
    def nodes(self) -> PathNodes:
        """The paths of all nodes."""
        return PathNodes(*self._native.node_table())

    @cached_property
    def unspelled(self) -> NDArray[np.int64]:
        """The one-sided tokens without a spelling, ascending, int64 `[tokens]`."""
        return self._native.unspelled()

    @cached_property
    def by_length(self) -> dict[int, int]:
        """The number of one-sided tokens by the length of their spelling, in tokens."""
        counts = enumerate(self._native.counts_by_length())
        return {length: count for length, count in counts if count}

    def cut_off(self, max_path: int) -> int:
        """Count the spellings that have more than `max_path` + 1 tokens."""
        return sum(count for length, count in self.by_length.items() if length > max_path + 1)

    def spelling(self, token_id: int) -> tuple[int, ...] | None:
        """Return the spelling of a one-sided token.

        Args:
            token_id: The canonical id of the one-sided token.

        Returns:
            Ids of the side that spells; `None` if `token_id` is not a one-sided token, or has no
            spelling.
        """
        found = self._native.spelling(token_id)
        return None if found is None else tuple(found)

    def after(self, path: Sequence[int]) -> list[tuple[str, tuple[int, ...], int]]:
        """Return the one-sided tokens whose spelling is a path and one more token.

        Args:
            path: Ids of the side that spells.

        Returns:
            One tuple `(text, ids of the side that spells, id of the one-sided token)` per token.
        """
        if not path or min(path) < 0 or max(path) >= 1 << 32:
            return []
        node = self._native.node([int(token) for token in path])
        return [] if node is None else list(self.at_node(node))

    def at_node(self, node: int) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """Yield the leaves of a node, in the form that `after` returns."""
        leaves = self.leaves
        for token in leaves.one_sided_token[slice(*leaves.node_offsets[node : node + 2])].tolist():
            text = self._own.token_bytes(token).decode("utf-8", "backslashreplace")
            spelling = self.spelling(token)
            assert spelling is not None  # a leaf is made from one
            yield text, spelling, token


class PairSpellings(NamedTuple):
    """The spellings of both directions.

    Attributes:
        teacher: The spellings of the teacher's one-sided tokens, in student tokens.
        student: The spellings of the student's one-sided tokens, in teacher tokens.
    """

    teacher: Spellings
    student: Spellings


class Continuation(NamedTuple):
    r"""An on-path continuation: a text that can follow a prefix, with its path on either side.

    One of the two paths is a single token. The other consists of realized tokens and one last
    token. One forward pass per model scores both paths.

    Attributes:
        text: The text. Bytes that are not whole characters are escaped (`\xf0`).
        teacher: The path of teacher tokens.
        student: The path of student tokens.
    """

    text: str
    teacher: tuple[int, ...]
    student: tuple[int, ...]


@dataclass(frozen=True)
class Entries:
    """The nodes that units reach in one direction, sorted by unit, then by depth.

    Attributes:
        unit: Number of the unit in the batch, int32 `[entries]`.
        node: The node of the spellings; it has leaves, int32 `[entries]`.
        depth: Number of realized tokens that lead to the node, int32 `[entries]`.
        leaves: The leaves of all nodes.
    """

    unit: NDArray[np.int32]
    node: NDArray[np.int32]
    depth: NDArray[np.int32]
    leaves: LeafTable

    def __len__(self) -> int:
        return len(self.unit)

    def of_unit(self, unit: int) -> NDArray[np.int32]:
        """Return the nodes that one unit reaches, by ascending depth."""
        return self.node[slice(*np.searchsorted(self.unit, [unit, unit + 1]))]

    def counts(self, n_units: int) -> NDArray[np.int64]:
        """Count the continuations of every unit in this direction, int64 `[n_units]`."""
        per_entry = np.diff(self.leaves.node_offsets)[self.node]
        return np.bincount(self.unit, weights=per_entry, minlength=n_units).astype(np.int64)


@dataclass(frozen=True, repr=False)
class Continuations:
    """The on-path continuations of all units of a batch, from `Aligner.continuations`.

    Only the units that `batch.index()` contains have continuations. Units without a prefix, and
    units whose first token lost a dummy prefix, have none.

    Attributes:
        teacher: Entries of the teacher's direction: the continuations are single teacher tokens.
        student: Entries of the student's direction: the continuations are single student tokens.
        max_path: The largest number of realized tokens at the start of a continuation.
        spellings: The spellings of both directions.
    """

    teacher: Entries
    student: Entries
    max_path: int
    spellings: PairSpellings

    def __repr__(self) -> str:
        return f"<Continuations: {len(self.teacher)} teacher and {len(self.student)} student nodes>"

    @property
    def cut_off(self) -> tuple[int, int]:
        """How many one-sided tokens have a spelling of more than `max_path` + 1 tokens.

        A tuple: the count of the teacher's tokens, then of the student's. None of these tokens is a
        continuation.
        """
        teacher, student = self.spellings
        return teacher.cut_off(self.max_path), student.cut_off(self.max_path)

    def of_unit(self, unit: int) -> list[Continuation]:
        """Return all continuations of a unit.

        Args:
            unit: Number of the unit in the batch.

        Returns:
            Single teacher tokens first, then single student tokens, each by ascending depth.

        Complexity:
            O(continuations), in Python.
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
    """Compute the spellings of both directions, unless the pair has them.

    Args:
        pair: The pair.
        teacher: The teacher's vocabulary. Without a tokenizer, it spells with the fewest tokens.
        student: The student's vocabulary. Without a tokenizer, it spells with the fewest tokens.

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
    """Tokenize the other side's one-sided tokens, as ragged ids; None without a tokenizer."""
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
    """Tokenize texts; a text that the tokenizer refuses has no ids.

    A reader refuses a text if its tokenizer cannot avoid a special token for it. The spelling of
    that text is then the fewest tokens, as it is if the tokenizer changes the bytes of a text.
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
    """Find on-path continuations: see `Aligner.continuations`.

    Args:
        pair: The native pair.
        spellings: The spellings of the pair.
        units: The units.
        sides: The teacher's ids and the student's ids.
        max_path: The largest number of realized tokens at the start of a continuation.
        threads: Number of threads, or None for all cores.

    Returns:
        The continuations of `units`.
    """
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
    """Check the argument `max_path`.

    Args:
        max_path: The value.
        at_least: The smallest allowed value; the largest is `MAX_PATH`.

    Returns:
        The value as a Python integer.

    Raises:
        TypeError: `max_path` is not an integer.
        ValueError: `max_path` is out of range.
    """
    return integer("max_path", max_path, at_least=at_least, at_most=MAX_PATH)
