"""Continuations by brute force: no trie, no table, one token after another."""

from __future__ import annotations

import bisect
import functools
from typing import TYPE_CHECKING, Any

from simct_align import UnitClass, UnitKind
from support.spelling import canonical_ids, fewest_tokens
from support.vocabularies import token_bytes, vocabulary

if TYPE_CHECKING:
    from simct_align import AlignedBatch

BOTH = ("teacher", "student")


@functools.cache
def ids_by_bytes(name: str) -> dict[bytes, int]:
    """Byte string -> canonical id."""
    return canonical_ids(vocabulary(name))


@functools.cache
def one_sided(own: str, other: str) -> list[bytes]:
    """The texts that are a token of `own` alone, sorted."""
    return sorted(ids_by_bytes(own).keys() - ids_by_bytes(other).keys())


def beginning_with(texts: list[bytes], prefix: bytes) -> list[bytes]:
    """The slice of sorted texts that begin with a prefix."""
    start = end = bisect.bisect_left(texts, prefix)
    while end < len(texts) and texts[end].startswith(prefix):
        end += 1
    return texts[start:end]


#: (writer, text) -> path: units ask for the same texts again and again.
_spelled: dict[tuple[str, bytes], tuple[int, ...] | None] = {}


def spell(name: str, texts: list[bytes]) -> list[tuple[int, ...] | None]:
    """What the tokenizer writes for every text, if exact, else the shortest path."""
    table, dummy = token_bytes(name), vocabulary(name).dummy_prefix
    new = [text for text in texts if (name, text) not in _spelled]
    valid = [text for text in new if text.decode("utf-8", "ignore").encode() == text]
    written = vocabulary(name).encode_batch([text.decode() for text in valid])
    emitted = dict(zip(valid, written, strict=True))
    for text in new:
        ids = tuple(emitted.get(text, ()))
        pieces = [table[token] for token in ids]
        if dummy and pieces[:1] == [b" "] and b"".join(pieces) == b" " + text:
            ids, pieces = ids[1:], pieces[1:]
        exact = b"".join(pieces) == text and b"" not in pieces
        _spelled[name, text] = ids if exact else fewest_tokens(text, ids_by_bytes(name))
    return [_spelled[name, text] for text in texts]


def realized_from(batch: AlignedBatch, unit: int, row: int) -> dict[str, list[int]]:
    """The tokens of both sides from a unit on, as far as nothing but text follows."""
    end = unit
    for following in range(unit, int(batch.row_offsets[row + 1])):
        gap = following > unit and any(
            getattr(batch, f"{side}_start")[following] != getattr(batch, f"{side}_end")[end]
            for side in BOTH
        )
        trimmed = batch.unit_class[following] & UnitClass.TRIMMED
        if gap or trimmed or batch.kind[following] == UnitKind.SPECIAL:
            break
        end = following
    return {
        side: getattr(batch, side)
        .row(row)[getattr(batch, f"{side}_start")[unit] : getattr(batch, f"{side}_end")[end]]
        .tolist()
        for side in BOTH
    }


def expected(
    names: dict[str, str], batch: AlignedBatch, unit: int, row: int, max_path: int
) -> set[tuple[str, int, tuple[int, ...]]]:
    """All continuations of a unit: (side of the single token, its id, the other side's path)."""
    if min(batch.teacher_start[unit], batch.student_start[unit]) == 0:
        return set()
    if batch.kind[unit] == UnitKind.SPECIAL or batch.unit_class[unit] & UnitClass.TRIMMED:
        return set()
    realized = realized_from(batch, unit, row)
    found = set()
    for side, other in (BOTH, BOTH[::-1]):
        # A spelling that begins with a token begins with its bytes: no other text can follow.
        texts = beginning_with(
            one_sided(names[side], names[other]), token_bytes(names[other])[realized[other][0]]
        )
        for text, path in zip(texts, spell(names[other], texts), strict=True):
            if path is None or len(path) > max_path + 1:
                continue
            if list(path[:-1]) == realized[other][: len(path) - 1]:
                found.add((side, ids_by_bytes(names[side])[text], path))
    return found


def listed(
    continuations: Any, batch: AlignedBatch, unit: int, row: int
) -> list[tuple[str, int, tuple[int, ...]]]:
    """The same, from the arrays that the engine gives."""
    found = []
    for side, other in (BOTH, BOTH[::-1]):
        entries = getattr(continuations, side)
        leaves = entries.leaves
        start = int(getattr(batch, f"{other}_start")[unit])
        row_ids = getattr(batch, other).row(row)
        for entry in (entries.unit == unit).nonzero()[0].tolist():
            path = tuple(row_ids[start : start + int(entries.depth[entry])].tolist())
            node = int(entries.node[entry])
            of_node = slice(*leaves.node_offsets[node : node + 2])
            last, tokens = leaves.last_token[of_node], leaves.one_sided_token[of_node]
            pairs = zip(tokens.tolist(), last.tolist(), strict=True)
            found += [(side, token, (*path, last)) for token, last in pairs]
    return found
