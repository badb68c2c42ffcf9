"""What units are made of, and the words for it."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import NamedTuple


class UnitKind(IntEnum):
    """What a unit is made of."""

    #: One token on both sides.
    SHARED = 0
    #: More than one token on at least one side, or a token without its dummy prefix.
    MULTI = 1
    #: Two control tokens that are mapped onto each other.
    SPECIAL = 2


class UnitClass(IntFlag):
    """What kind of text a unit holds; ``SPECIAL`` units have no bit."""

    #: All characters are Unicode white space.
    WHITESPACE = 1
    #: All characters are numbers (Unicode category N).
    DIGITS = 2
    #: All characters are punctuation or symbols (Unicode categories P and S).
    PUNCTUATION = 4
    #: At least one byte is not ASCII.
    NON_ASCII = 8
    #: A token of the unit, on either side, is not made of whole characters.
    SPLITS_CHARACTER = 16
    #: The first token lost the space that its tokenizer put in front of the text.
    TRIMMED = 32


class UnmatchedReason(IntEnum):
    """Why tokens are in no unit."""

    #: The texts differ here, and go on alike behind it.
    BYTES_DIFFER = 0
    #: One side has no more text, or ends inside a token of the other.
    ONE_SIDE_ENDED = 1
    #: A control or zero-byte token without a partner, or a unit that one stands in.
    SPECIAL = 2
    #: The texts differ from here to the end of the region.
    NO_RESYNC = 3
    #: A token that is only the space that its tokenizer put in front of the text.
    DUMMY_PREFIX = 4


class Unit(NamedTuple):
    r"""One unit, to look at.

    Attributes:
        teacher: Positions of its tokens in the teacher's row.
        student: Positions of its tokens in the student's row.
        kind: What it is made of.
        unit_class: What kind of text it holds.
        bytes: Its text, exactly.
        text: Its text; bytes that are not whole characters are escaped (``\xf0``).
        continuations: The texts of its on-path continuations, where they were asked for.
    """

    teacher: range
    student: range
    kind: UnitKind
    unit_class: UnitClass
    bytes: bytes
    text: str
    continuations: tuple[str, ...] = ()
