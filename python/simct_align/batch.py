"""What alignment finds in a batch, as arrays."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from simct_align import _native, ablations
from simct_align.continuations import checked_max_path, enumerate_continuations
from simct_align.errors import MissingAlignerError
from simct_align.index import AlignedIndex, IndexContents
from simct_align.inputs import RaggedIds, logit_rows, same_dtype, thread_count
from simct_align.pair import VocabularyPair, living_pair
from simct_align.units import Unit, UnitClass, UnitColumns, UnitKind, UnmatchedReason

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from simct_align.vocabulary import Vocabulary


@dataclass(frozen=True)
class UnmatchedSpans:
    """Token ranges that are in no unit: the columns of `AlignedBatch` and a reason.

    Attributes:
        row_offsets: Spans of row `i` are `row_offsets[i]:row_offsets[i + 1]`; int64
            `[rows + 1]`.
        teacher_start: First position on the teacher's side, int32 `[spans]`.
        teacher_end: One past the last; equal to the start where that side has no token.
        student_start: First position on the student's side, int32 `[spans]`.
        student_end: One past the last.
        reason: `UnmatchedReason`, uint8 `[spans]`.
    """

    row_offsets: NDArray[np.int64]
    teacher_start: NDArray[np.int32]
    teacher_end: NDArray[np.int32]
    student_start: NDArray[np.int32]
    student_end: NDArray[np.int32]
    reason: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.reason)


@dataclass(frozen=True)
class AlignmentCounts:
    """Counts over a batch.

    Attributes:
        rows: Rows of the batch.
        teacher_tokens: Tokens that take part on the teacher's side.
        student_tokens: Tokens that take part on the student's side.
        units: Units by the lower-case name of their kind.
        teacher_tokens_in_units: Of the teacher's, those in units.
        student_tokens_in_units: Of the student's, those in units.
        teacher_unmatched: The teacher's tokens in no unit, by the lower-case name of the reason.
        student_unmatched: The student's tokens in no unit, likewise.
        units_without_prefix: Units at position 0 of a row: no logits predict them.
    """

    rows: int
    teacher_tokens: int
    student_tokens: int
    units: dict[str, int]
    teacher_tokens_in_units: int
    student_tokens_in_units: int
    teacher_unmatched: dict[str, int]
    student_unmatched: dict[str, int]
    units_without_prefix: int

    def as_dict(self) -> dict[str, Any]:
        """All counts as plain Python objects, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class AlignedBatch(UnitColumns):
    """The finest joint segmentation of a batch, from `align_batch`.

    Positions count from the start of their row as it was passed in; ranges are half-open; rows,
    units and spans are in order. Every position that takes part lies in exactly one unit or one
    unmatched span. The arrays of ids are the caller's own: do not write to them while the batch
    is in use.

    A batch holds its aligner, but pickles without it: arrays and a digest travel between
    processes, vocabularies do not. After unpickling, `units`, `index`,
    `coarsen("whitespace")` and `continuations` need an aligner of that digest: the
    newest that lives in the process is found by itself, and `with_aligner` gives one. All
    else works without.

    Attributes:
        row_offsets: Units of row `i` are `row_offsets[i]:row_offsets[i + 1]`; int64
            `[rows + 1]`.
        teacher_start: First position of a unit on the teacher's side, int32 `[units]`.
        teacher_end: One past the last position there, int32 `[units]`.
        student_start: First position of a unit on the student's side, int32 `[units]`.
        student_end: One past the last position there, int32 `[units]`.
        kind: `UnitKind`, uint8 `[units]`.
        unit_class: `UnitClass` bits, uint8 `[units]`.
        unmatched: What is not in a unit, and why.
        teacher: The teacher's ids.
        student: The student's ids.
        pair_digest: `digest` of the aligner that made the batch.

    Example:
        >>> from simct_align import Aligner, Vocabulary
        >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> batch = Aligner(teacher, student).align_batch([[0, 1]], [[0, 1, 2]])
        >>> [(unit.text, unit.kind.name, unit.student) for unit in batch.units(0)]
        [('12', 'MULTI', range(0, 2)), ('+', 'SHARED', range(2, 3))]
    """

    unmatched: UnmatchedSpans
    teacher: RaggedIds
    student: RaggedIds
    pair_digest: str
    _pair: VocabularyPair | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return (
            f"<AlignedBatch of {len(self)} rows: {self.n_units} units, "
            f"{len(self.unmatched)} unmatched spans>"
        )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_pair": None}

    def with_aligner(self, aligner: VocabularyPair) -> AlignedBatch:
        """The batch with an aligner, for methods that need one after unpickling.

        Args:
            aligner: An `Aligner` of the batch's `pair_digest`.

        Returns:
            A batch over the same arrays.

        Raises:
            TypeError: No aligner.
            ValueError: An aligner of another digest.
        """
        if not isinstance(aligner, VocabularyPair):
            raise TypeError(f"aligner: expected an Aligner, got {type(aligner).__name__}")
        if aligner.digest != self.pair_digest:
            raise ValueError(
                f"aligner: {aligner!r} has digest {aligner.digest[:12]}, but the batch was made by "
                f"an aligner with digest {self.pair_digest[:12]}"
            )
        return replace(self, _pair=aligner)

    def _need_pair(self, what: str) -> VocabularyPair:
        pair = self._pair or living_pair(self.pair_digest)
        if pair is None:
            raise MissingAlignerError(
                f"{what} needs the aligner that made this batch, and no aligner with its digest "
                f"{self.pair_digest[:12]} lives in this process: make or load one and keep it, or "
                "give it with batch.with_aligner(aligner)"
            )
        return pair

    def units(self, row: int, *, max_path: int = 0) -> list[Unit]:
        """The units of one row as objects, to look at.

        Args:
            row: Number of the row; negative numbers count from the end.
            max_path: With a number other than 0, every unit lists the texts of its on-path
                continuations that begin with so many realized tokens at most.

        Raises:
            IndexError: There is no such row.

        Complexity:
            O(tokens of the row + continuations), in Python: not for a hot path.

        Example:
            >>> from simct_align import Aligner, Vocabulary
            >>> teacher = Vocabulary.from_token_bytes([b"12", b"13", b"+"])
            >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"3", b"+"])
            >>> batch = Aligner(teacher, student).align_batch([[2, 0]], [[3, 0, 1]])
            >>> batch.units(0, max_path=8)[1].continuations
            ('12', '13')
        """
        number = row + len(self) if row < 0 else row
        if not 0 <= number < len(self):
            raise IndexError(f"row {row} is not in a batch of {len(self)} rows")
        units = slice(self.row_offsets[number], self.row_offsets[number + 1])
        columns = [
            column[units].tolist()
            for column in (
                self.teacher_start,
                self.teacher_end,
                self.student_start,
                self.student_end,
                self.kind,
                self.unit_class,
            )
        ]
        pair = self._need_pair("units")
        teacher_ids, student_ids = self.teacher.row(number), self.student.row(number)
        continuations = self._continuations_of_row(pair, number, max_path)
        found = []
        for *columns_of_unit, further in zip(*columns, continuations, strict=True):
            t_start, t_end, s_start, s_end, kind, unit_class = columns_of_unit
            text = _decode(pair.student, student_ids[s_start:s_end])
            if unit_class & UnitClass.TRIMMED:
                # One side's bytes hold the dummy prefix, the other's are the text.
                text = min(text, _decode(pair.teacher, teacher_ids[t_start:t_end]), key=len)
            found.append(
                Unit(
                    range(t_start, t_end),
                    range(s_start, s_end),
                    UnitKind(kind),
                    UnitClass(unit_class),
                    text,
                    text.decode("utf-8", "backslashreplace"),
                    further,
                )
            )
        return found

    def _continuations_of_row(
        self, pair: VocabularyPair, row: int, max_path: int
    ) -> list[tuple[str, ...]]:
        units = slice(self.row_offsets[row], self.row_offsets[row + 1])
        if checked_max_path(max_path, at_least=0) == 0:
            return [()] * int(units.stop - units.start)
        alone = replace(
            self,
            row_offsets=self.row_offsets[row : row + 2] - units.start,
            teacher_start=self.teacher_start[units],
            teacher_end=self.teacher_end[units],
            student_start=self.student_start[units],
            student_end=self.student_end[units],
            kind=self.kind[units],
            unit_class=self.unit_class[units],
            teacher=self.teacher.only(row),
            student=self.student.only(row),
        )
        sides = (alone.teacher, alone.student)
        found = enumerate_continuations(
            pair._pair, pair.spellings, alone, sides, max_path=max_path, threads=1
        )
        return [
            tuple(continuation.text for continuation in found.of_unit(unit))
            for unit in range(alone.n_units)
        ]

    def coverage(self) -> AlignmentCounts:
        """Counts what is in units and what is not.

        Complexity:
            O(tokens + units), in NumPy.
        """
        spans = self.unmatched
        no_prefix = (self.teacher_start == 0) | (self.student_start == 0)
        by_kind = np.bincount(self.kind, minlength=len(UnitKind))
        return AlignmentCounts(
            rows=len(self),
            teacher_tokens=_tokens(self.teacher),
            student_tokens=_tokens(self.student),
            units={kind.name.lower(): int(by_kind[kind]) for kind in UnitKind},
            teacher_tokens_in_units=_total(self.teacher_start, self.teacher_end),
            student_tokens_in_units=_total(self.student_start, self.student_end),
            teacher_unmatched=_by_reason(spans.reason, spans.teacher_start, spans.teacher_end),
            student_unmatched=_by_reason(spans.reason, spans.student_start, spans.student_end),
            units_without_prefix=int(np.count_nonzero(no_prefix)),
        )

    def index(
        self,
        *,
        teacher_row_starts: ArrayLike | None = None,
        student_row_starts: ArrayLike | None = None,
        teacher_stride: int | None = None,
        student_stride: int | None = None,
        max_path: int = 0,
        first_ids: bool = False,
        text_events: bool = False,
        threads: int | None = None,
    ) -> AlignedIndex:
        """The tensors that a loss gathers with.

        Args:
            teacher_row_starts: The flat row, in the teacher's logits, of position 0 of every row
                of the batch; integers `[rows]`. Without it, and without a stride, the logits
                are laid out as the ids are: dense ids `[rows, T]` as `[rows, T, V]` logits,
                ragged ids as packed `[tokens, V]` logits.
            student_row_starts: Likewise for the student's logits.
            teacher_stride: Rows of the teacher's logits per row of the batch, for ragged ids
                whose logits are padded on the right; instead of row starts.
            student_stride: Likewise for the student.
            max_path: With a number other than 0 (8 is a good one), the index holds the on-path
                continuations that begin with so many realized tokens at most, 64 at most.
            first_ids: Whether the index holds the first token of every unit on either side.
            text_events: Whether the index holds text events: at every boundary of either side, the
                rows and tokens that say how the text goes on.
            threads: How many threads enumerate continuations and text events; all cores without it.

        Returns:
            The index, in NumPy memory; `to` moves it.

        Raises:
            ValueError: Row starts of a wrong length or before the logits, row starts and a stride
                together, or a stride that is too short for what is read; `max_path` out of range.

        Complexity:
            O(units + tokens in MULTI units), and O(units × `max_path`) at most with
            continuations, in Rust, without the GIL. The first index with continuations makes the
            aligner's spellings, the first one with text events the aligner's `text_tree`.

        Example:
            >>> from simct_align import Aligner, Vocabulary
            >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
            >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
            >>> batch = Aligner(teacher, student).align_batch([[1, 0, 1]], [[2, 0, 1, 2]])
            >>> index = batch.index()
            >>> index.n_shared, index.n_multi, index.dropped_no_prefix
            (1, 1, 1)
            >>> index.student_step_row.tolist(), index.student_step_id.tolist()
            ([0, 1], [0, 1])
        """
        max_path = checked_max_path(max_path, at_least=0)
        pair = self._need_pair("index")
        if max_path:
            _ = pair.spellings
        teacher_ids, student_ids = same_dtype(self.teacher, self.student)
        teacher = logit_rows("teacher", teacher_ids, teacher_row_starts, teacher_stride)
        student = logit_rows("student", student_ids, student_row_starts, student_stride)
        packed, counts = _native.build_index(
            pair._pair,
            self,
            (teacher, student),
            IndexContents(first_ids, max_path, text_events, thread_count(threads)),
        )
        return AlignedIndex(
            packed,
            **counts,
            max_path=max_path,
            groups=(
                "units",
                *(["first_ids"] if first_ids else []),
                *(["continuations"] if max_path else []),
                *(["text_events"] if text_events else []),
            ),
            teacher_stride=teacher.stride,
            student_stride=student.stride,
            host=packed,
            pair_digest=self.pair_digest,
        )

    def coarsen(
        self, n: int | Literal["whitespace", "random"] = 2, *, seed: int | None = None
    ) -> AlignedBatch:
        """Joins neighbouring units: what a coarser segmentation would compare.

        Units are joined within a region and across nothing unmatched, control tokens never. A
        group of several is MULTI; its class bits are those of its parts.

        Args:
            n: How many units to join; `"whitespace"`: up to the next unit that begins with
                white space; `"random"`: every boundary stays with probability 1/2.
            seed: For `"random"`.

        Returns:
            A batch over the same ids.

        Raises:
            ValueError: Another `n`, or `"random"` without a seed.

        Complexity:
            O(units), in NumPy.

        Example:
            >>> from simct_align import Aligner
            >>> from simct_align.demo import demo_tokenizers
            >>> batch = Aligner(*demo_tokenizers()).align_texts(["one two 34"])
            >>> [unit.text for unit in batch.coarsen("whitespace").units(0)]
            ['one', ' two', ' 34']
        """
        return ablations.coarsen(
            self, n, seed=seed, begins_with_whitespace=self._begins_with_whitespace
        )

    def _begins_with_whitespace(self) -> NDArray[np.bool_]:
        """Whether the text of every unit begins with white space."""
        rows = np.repeat(np.arange(len(self)), np.diff(self.row_offsets))
        first_ids = self.student.values[self.student.offsets[rows] + self.student_start]
        student = self._need_pair('coarsen("whitespace")').student
        begins: NDArray[np.bool_] = student._native.begins_with_whitespace[first_ids] != 0
        return begins

    def without(self, kind: UnitKind | str) -> AlignedBatch:
        """Leaves out all units of one kind.

        Args:
            kind: A `UnitKind` or its name.

        Returns:
            A batch over the same ids.

        Raises:
            ValueError: An unknown kind.

        Complexity:
            O(units), in NumPy.
        """
        return ablations.without(self, kind)

    def sample_units(self, fraction: float, *, seed: int) -> AlignedBatch:
        """Keeps a random part of the units.

        Args:
            fraction: The probability of each unit to stay, 0 to 1.
            seed: The same seed keeps the same units of the same batch.

        Returns:
            A batch over the same ids.

        Raises:
            ValueError: `fraction` is out of range.

        Complexity:
            O(units), in NumPy.
        """
        return ablations.sample_units(self, fraction, seed=seed)

    def chunk_ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For every position the number of its unit within the row, as other trainers expect it.

        Returns:
            `(teacher, student)`, int64 `[rows, T]` each, −1 outside of units. `T` is the
            width of that side's dense ids, else the length of its longest row.

        Complexity:
            O(rows × T) time and memory.
        """
        return (
            self._chunk_ids(self.teacher, self.teacher_start, self.teacher_end),
            self._chunk_ids(self.student, self.student_start, self.student_end),
        )

    def _chunk_ids(
        self, side: RaggedIds, start: NDArray[np.int32], end: NDArray[np.int32]
    ) -> NDArray[np.int64]:
        width = side.width
        if width is None:
            width = int(np.diff(side.offsets).max(initial=0))
        numbers = _native.segment_numbers(self.row_offsets, start, end, width)
        return numbers.reshape(len(self), width)


def _decode(vocabulary: Vocabulary, ids: NDArray[Any]) -> bytes:
    return vocabulary._native.decode_bytes(ids.astype(np.int64))


def _tokens(side: RaggedIds) -> int:
    return len(side.values) if side.mask is None else int(np.count_nonzero(side.mask))


def _total(start: NDArray[np.int32], end: NDArray[np.int32]) -> int:
    return int(end.sum(dtype=np.int64) - start.sum(dtype=np.int64))


def _by_reason(
    reason: NDArray[np.uint8], start: NDArray[np.int32], end: NDArray[np.int32]
) -> dict[str, int]:
    tokens = np.bincount(reason, weights=end - start, minlength=len(UnmatchedReason))
    return {reason.name.lower(): int(tokens[reason]) for reason in UnmatchedReason}
