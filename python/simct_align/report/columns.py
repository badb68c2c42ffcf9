"""Internal: the units of a batch with their bytes and classes, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simct_align.report.classes import text_classes
from simct_align.units import UnitClass, UnitKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simct_align import AlignedBatch, Aligner, RaggedIds


@dataclass(frozen=True)
class UnitTable:
    """The units of a batch; all columns are `[units]`.

    Attributes:
        kind: `UnitKind`.
        text_class: Number of the class of the unit's text, see `text_classes`.
        n_bytes: Bytes of the unit's text.
        teacher_first: Place of the first token in the teacher's flat ids.
        student_first: Place of the first token in the student's flat ids.
        teacher_tokens: Number of teacher tokens.
        student_tokens: Number of student tokens.
    """

    kind: NDArray[np.uint8]
    text_class: NDArray[np.uint8]
    n_bytes: NDArray[np.int64]
    teacher_first: NDArray[np.int64]
    student_first: NDArray[np.int64]
    teacher_tokens: NDArray[np.int64]
    student_tokens: NDArray[np.int64]


def byte_bounds(ids: RaggedIds, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where every token's bytes begin and, last, where all end; int64 `[tokens + 1]`."""
    bounds = np.zeros(len(ids.values) + 1, np.int64)
    np.cumsum(lengths[ids.values], out=bounds[1:])
    return bounds


def unit_table(
    aligner: Aligner,
    batch: AlignedBatch,
    lengths: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> UnitTable:
    """Return the units of a batch of ragged rows as a table.

    Args:
        aligner: The aligner of the batch.
        batch: The batch.
        lengths: The number of bytes of every token of the teacher and of the student.

    Returns:
        The table.

    Complexity:
        O(bytes + tokens), in NumPy.
    """
    rows = np.repeat(np.arange(len(batch)), np.diff(batch.row_offsets))
    starts, ends = [], []
    for side, first, last in (
        (batch.teacher, batch.teacher_start, batch.teacher_end),
        (batch.student, batch.student_start, batch.student_end),
    ):
        starts.append(side.offsets[rows] + first)
        ends.append(side.offsets[rows] + last)
    bounds = [
        byte_bounds(side, length)
        for side, length in zip((batch.teacher, batch.student), lengths, strict=True)
    ]
    teacher_bytes, student_bytes = (
        bound[end] - bound[start] for bound, start, end in zip(bounds, starts, ends, strict=True)
    )
    # The bytes of one side of a trimmed unit include the dummy prefix.
    trimmed = (batch.unit_class & UnitClass.TRIMMED) != 0
    n_bytes = np.where(trimmed, np.minimum(teacher_bytes, student_bytes), student_bytes)
    last_byte = bounds[1][ends[1]]
    first_byte = last_byte - n_bytes
    data = aligner.student._native.decode_bytes(batch.student.values.astype(np.int64))
    text_class = text_classes().of_spans(data, first_byte, last_byte)
    return UnitTable(
        batch.kind,
        np.where(batch.kind == UnitKind.SPECIAL, np.uint8(0), text_class),
        n_bytes,
        starts[0],
        starts[1],
        ends[0] - starts[0],
        ends[1] - starts[1],
    )
