"""What a token id stands for: the readers and the vocabulary share it."""

from __future__ import annotations

from enum import IntEnum


class TokenKind(IntEnum):
    """What a token id stands for."""

    #: Text.
    NORMAL = 0
    #: One byte, the fallback for text that no normal token spells (`<0x0A>`).
    BYTE = 1
    #: A control token, which adds no bytes.
    SPECIAL = 2
    #: No token: a hole, or a padding row of an embedding.
    UNUSED = 3
