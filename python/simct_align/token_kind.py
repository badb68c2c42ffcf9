"""Internal: the kinds of token ids, for the readers and the vocabulary."""

from __future__ import annotations

from enum import IntEnum


class TokenKind(IntEnum):
    """The kind of a token id."""

    #: A token with text.
    NORMAL = 0
    #: A byte fallback: one byte (`<0x0A>`), for text that no normal token spells.
    BYTE = 1
    #: A special token (control token), which adds no bytes.
    SPECIAL = 2
    #: An id without a token: a gap between ids, or a padding row of an embedding.
    UNUSED = 3
