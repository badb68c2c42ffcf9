"""Canonical ids and shortest spellings, by definition: what the twins of continuations share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from simct_align import TokenKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from simct_align import Vocabulary


def canonical_ids(vocabulary: Vocabulary) -> dict[bytes, int]:
    """Byte string -> canonical id: the first normal token, else the first byte token."""
    found: dict[bytes, int] = {}
    for kind in (TokenKind.NORMAL, TokenKind.BYTE):
        for token in (vocabulary.kinds == kind).nonzero()[0].tolist():
            found.setdefault(vocabulary.token_bytes(token), token)
    found.pop(b"", None)
    return found


def fewest_tokens(text: bytes, ids: Mapping[bytes, int]) -> tuple[int, ...] | None:
    """The fewest tokens that spell a text, the longest first among equals; None if none do."""
    best: list[tuple[int, ...] | None] = [None] * len(text) + [()]
    for at in reversed(range(len(text))):
        for end in range(at + 1, len(text) + 1):  # the longest come last, and win ties
            token, rest = ids.get(text[at:end]), best[end]
            if token is not None and rest is not None:
                here = best[at]
                if here is None or len(rest) + 1 <= len(here):
                    best[at] = (token, *rest)
    return best[0]
