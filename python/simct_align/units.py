"""Internal: units, their kinds and class bits, and the reasons of unmatched spans."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class UnitKind(IntEnum):
    """The kind of a unit."""

    #: One token on both sides.
    SHARED = 0
    #: Several tokens on at least one side, or a first token that lost its dummy prefix.
    MULTI = 1
    #: Two special tokens that are mapped onto each other.
    SPECIAL = 2


class UnitClass(IntFlag):
    """The class bits of a unit: what text it contains. `SPECIAL` units have no bit."""

    #: All characters are Unicode white space.
    WHITESPACE = 1
    #: All characters are numbers (Unicode category N).
    DIGITS = 2
    #: All characters are punctuation or symbols (Unicode categories P and S).
    PUNCTUATION = 4
    #: At least one byte is not ASCII.
    NON_ASCII = 8
    #: At least one token of the unit, on either side, does not consist of whole characters.
    SPLITS_CHARACTER = 16
    #: The first token lost its dummy prefix: the space that its tokenizer put before the text.
    TRIMMED = 32


class UnmatchedReason(IntEnum):
    """The reason why tokens are in no unit."""

    #: The texts differ here, and are equal again after this span.
    BYTES_DIFFER = 0
    #: One side has no more text, or ends inside a token of the other side.
    ONE_SIDE_ENDED = 1
    #: A special or zero-byte token without a partner, or the text range that contains one.
    SPECIAL = 2
    #: The texts differ from here to the end of the region.
    NO_RESYNC = 3
    #: A token that is only the dummy prefix: the space that its tokenizer put before the text.
    DUMMY_PREFIX = 4


class Unit(NamedTuple):
    r"""One unit, for inspection.

    Attributes:
        teacher: Positions of the unit's tokens in the teacher's row.
        student: Positions of the unit's tokens in the student's row.
        kind: The kind of the unit.
        unit_class: The class bits of the unit.
        bytes: The exact bytes of the unit.
        text: The bytes as text. Bytes that are not whole characters are escaped (`\xf0`).
        continuations: The texts of the unit's on-path continuations; empty if they were not
            requested.
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
    """Units as columns. Positions count from the start of their row; ranges are half-open.

    Attributes:
        row_offsets: Units of row `i` are `row_offsets[i]:row_offsets[i + 1]`; int64
            `[rows + 1]`.
        teacher_start: First position of a unit in the teacher's row, int32 `[units]`.
        teacher_end: One past the last position in the teacher's row, int32 `[units]`.
        student_start: First position of a unit in the student's row, int32 `[units]`.
        student_end: One past the last position in the student's row, int32 `[units]`.
        kind: The `UnitKind` of a unit, uint8 `[units]`.
        unit_class: The `UnitClass` bits of a unit, uint8 `[units]`.
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
