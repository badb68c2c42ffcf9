"""Internal: the counts of a report, added up batch by batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simct_align.describe import CoverageSum
from simct_align.report.classes import text_classes
from simct_align.report.columns import UnitTable, unit_table
from simct_align.report.row_counts import RowCounts
from simct_align.units import UnitClass, UnitKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simct_align import AlignedBatch, Aligner

#: Units with more tokens on a side share the last row or column of the table of shapes.
MAX_SHAPE = 8
#: Units of more tokens, of both sides together, are counted and not told apart.
MAX_LISTED_TOKENS = 12


class Cut(NamedTuple):
    """A text of several tokens, as both sides cut it."""

    teacher: tuple[int, ...]
    student: tuple[int, ...]


class Tally:
    """The counts of all batches that were added.

    Args:
        aligner: The aligner of all batches.

    Attributes:
        coverage: The sum of the batches' `coverage()`.
        texts: Number of texts.
        text_bytes: Bytes of the texts, in UTF-8.
        teacher_ids: How often each id of the teacher occurs, int64 `[vocabulary]`.
        student_ids: The same for the student.
        shared_ids: How often each id of the student is a SHARED unit, int64 `[vocabulary]`.
        units: Number of units by (class of text, kind), int64 `[classes, kinds]`.
        teacher_tokens: Teacher tokens in these units.
        student_tokens: Student tokens in these units.
        unit_bytes: Bytes in these units.
        shapes: MULTI units by their numbers of teacher and student tokens, int64
            `[MAX_SHAPE + 1, MAX_SHAPE + 1]`; the last row and column hold all larger numbers.
        unlisted: MULTI units that are too long for `most_common_cuts`.
        splitting: Units of which a token does not consist of whole characters.
        trimmed: Units that lost a dummy prefix.
    """

    def __init__(self, aligner: Aligner) -> None:
        classes, kinds = len(text_classes().names), len(UnitKind)
        self._aligner = aligner
        self._lengths = (
            np.diff(aligner.teacher._native.byte_table()[1]),
            np.diff(aligner.student._native.byte_table()[1]),
        )
        self.coverage = CoverageSum()
        self.texts = 0
        self.text_bytes = 0
        self.teacher_ids = np.zeros(len(aligner.teacher), np.int64)
        self.student_ids = np.zeros(len(aligner.student), np.int64)
        self.shared_ids = np.zeros(len(aligner.student), np.int64)
        self.units = np.zeros((classes, kinds), np.int64)
        self.teacher_tokens = np.zeros((classes, kinds), np.int64)
        self.student_tokens = np.zeros((classes, kinds), np.int64)
        self.unit_bytes = np.zeros((classes, kinds), np.int64)
        self.shapes = np.zeros((MAX_SHAPE + 1, MAX_SHAPE + 1), np.int64)
        # By the numbers of teacher and student tokens: the ids of both sides, one after the other.
        self._cuts: dict[tuple[int, int], RowCounts] = {}
        self.unlisted = 0
        self.splitting = 0
        self.trimmed = 0

    def add(self, batch: AlignedBatch, text_bytes: int) -> UnitTable:
        """Add a batch of ragged rows.

        Args:
            batch: The batch.
            text_bytes: Bytes of its texts.

        Returns:
            The units of the batch.

        Complexity:
            O(bytes + tokens), and the sorting of MULTI units, in NumPy.
        """
        table = unit_table(self._aligner, batch, self._lengths)
        self.coverage.add(batch.coverage().as_dict())
        self.texts += len(batch)
        self.text_bytes += text_bytes
        self.teacher_ids += _counts(batch.teacher.values, len(self.teacher_ids))
        self.student_ids += _counts(batch.student.values, len(self.student_ids))
        shared = batch.student.values[table.student_first[table.kind == UnitKind.SHARED]]
        self.shared_ids += _counts(shared, len(self.shared_ids))
        cell = table.text_class.astype(np.int64) * len(UnitKind) + table.kind
        for total, weights in (
            (self.units, None),
            (self.teacher_tokens, table.teacher_tokens),
            (self.student_tokens, table.student_tokens),
            (self.unit_bytes, table.n_bytes),
        ):
            # The weights are whole numbers below 2^53, which float64 adds up exactly.
            counts = np.bincount(cell, weights, minlength=total.size).astype(np.int64)
            total += counts.reshape(total.shape)
        self.splitting += int(((batch.unit_class & UnitClass.SPLITS_CHARACTER) != 0).sum())
        self.trimmed += int(((batch.unit_class & UnitClass.TRIMMED) != 0).sum())
        self._add_shapes(batch, table)
        return table

    def _add_shapes(self, batch: AlignedBatch, table: UnitTable) -> None:
        multi = np.flatnonzero(table.kind == UnitKind.MULTI)
        teacher, student = table.teacher_tokens[multi], table.student_tokens[multi]
        cell = np.minimum(teacher, MAX_SHAPE + 1) * (MAX_SHAPE + 2)
        cell += np.minimum(student, MAX_SHAPE + 1)
        counts = np.bincount(cell, minlength=(MAX_SHAPE + 2) ** 2)
        self.shapes += counts.reshape(MAX_SHAPE + 2, MAX_SHAPE + 2)[1:, 1:]
        listed = teacher + student <= MAX_LISTED_TOKENS
        self.unlisted += int((~listed).sum())
        shape = teacher * (MAX_LISTED_TOKENS + 1) + student
        for one in np.unique(shape[listed]).tolist():
            n_teacher, n_student = divmod(one, MAX_LISTED_TOKENS + 1)
            units = multi[listed & (shape == one)]
            ids = np.concatenate(
                [
                    _ids_after(batch.teacher.values, table.teacher_first[units], n_teacher),
                    _ids_after(batch.student.values, table.student_first[units], n_student),
                ],
                axis=1,
            )
            cut_counts = self._cuts.setdefault(
                (n_teacher, n_student), RowCounts(n_teacher + n_student)
            )
            cut_counts.add(ids)

    def most_common_cuts(self, number: int) -> tuple[list[tuple[Cut, int]], int]:
        """Return the most frequent cuts of MULTI units, and how many different ones there are."""
        found, different = list[tuple[Cut, int]](), 0
        for n_teacher, n_student in sorted(self._cuts):
            rows, counts = self._cuts[n_teacher, n_student].counted()
            different += len(rows)
            for place in np.argsort(-counts, kind="stable")[:number].tolist():
                ids = rows[place].tolist()
                cut = Cut(tuple(ids[:n_teacher]), tuple(ids[n_teacher:]))
                found.append((cut, int(counts[place])))
        # Of equally frequent ones the shortest comes first, whatever the batches were.
        return sorted(found, key=lambda item: -item[1])[:number], different


def _counts(ids: NDArray[np.integer[Any]], size: int) -> NDArray[np.int64]:
    return np.bincount(ids, minlength=size).astype(np.int64)


def _ids_after(
    values: NDArray[np.integer[Any]], first: NDArray[np.int64], number: int
) -> NDArray[np.int32]:
    return values[first[:, None] + np.arange(number)].astype(np.int32)
