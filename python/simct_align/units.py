"""What units are made of, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class UnitKind(IntEnum):
    """What a unit is made of."""

    #: One token on both sides.
    SHARED = 0
    #: More than one token on at least one side, or a token without its dummy prefix.
    MULTI = 1
    #: Two control tokens that are mapped onto each other.
    SPECIAL = 2


class UnitClass(IntFlag):
    """What kind of text a unit holds; `SPECIAL` units have no bit."""

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
        text: Its text; bytes that are not whole characters are escaped (`\xf0`).
        continuations: The texts of its on-path continuations, where they were asked for.
    """

    teacher: range
    student: range
    kind: UnitKind
    unit_class: UnitClass
    bytes: bytes
    text: str
    continuations: tuple[str, ...] = ()


@dataclass(frozen=True)
class UnitColumns:
    """Units as columns; positions count from the start of their row, ranges are half-open.

    Attributes:
        row_offsets: Units of row `i` are `row_offsets[i]:row_offsets[i + 1]`; int64
            `[rows + 1]`.
        teacher_start: First position of a unit on the teacher's side, int32 `[units]`.
        teacher_end: One past the last position there, int32 `[units]`.
        student_start: First position of a unit on the student's side, int32 `[units]`.
        student_end: One past the last position there, int32 `[units]`.
        kind: `UnitKind`, uint8 `[units]`.
        unit_class: `UnitClass` bits, uint8 `[units]`.
    """

    row_offsets: NDArray[np.int64]
    teacher_start: NDArray[np.int32]
    teacher_end: NDArray[np.int32]
    student_start: NDArray[np.int32]
    student_end: NDArray[np.int32]
    kind: NDArray[np.uint8]
    unit_class: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    @property
    def n_units(self) -> int:
        """The number of units in all rows."""
        return len(self.kind)
