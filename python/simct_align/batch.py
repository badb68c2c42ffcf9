"""Internal: `AlignedBatch`, the result of an alignment as arrays."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from simct_align import _native, ablations
from simct_align.continuations import checked_max_path, enumerate_continuations
from simct_align.errors import MissingAlignerError
from simct_align.index import AlignedIndex, IndexContents
from simct_align.inputs import RaggedIds, flag, logit_rows, same_dtype, thread_count
from simct_align.logprobs import TokenLogprobs
from simct_align.pair import VocabularyPair, living_pair
from simct_align.units import Unit, UnitClass, UnitKind, UnmatchedReason

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from simct_align.index import Side
    from simct_align.vocabulary import Vocabulary


@dataclass(frozen=True)
class UnmatchedSpans:
    """Token ranges that are in no unit, each with a reason.

    Attributes:
        row_offsets: Spans of row `i` are `row_offsets[i]:row_offsets[i + 1]`; int64
            `[rows + 1]`.
        teacher_start: First position of a span in the teacher's row, int32 `[spans]`.
        teacher_end: One past the last position in the teacher's row, int32 `[spans]`. It equals
            `teacher_start` if the span has no teacher token.
        student_start: First position of a span in the student's row, int32 `[spans]`.
        student_end: One past the last position in the student's row, int32 `[spans]`. It equals
            `student_start` if the span has no student token.
        reason: The `UnmatchedReason` of a span, uint8 `[spans]`.
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
    """Counts of tokens and units in a batch.

    Attributes:
        rows: Rows of the batch.
        teacher_tokens: Teacher tokens that take part in the alignment.
        student_tokens: Student tokens that take part in the alignment.
        units: Number of units by the lower-case name of their kind.
        teacher_tokens_in_units: Teacher tokens that are in units.
        student_tokens_in_units: Student tokens that are in units.
        teacher_unmatched: Number of teacher tokens in no unit, by the lower-case name of the
            reason.
        student_unmatched: Number of student tokens in no unit, by the lower-case name of the
            reason.
        units_without_prefix: Units at position 0 of a row of either side. No logits predict them.
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
        """Return all counts as plain Python objects, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class AlignedBatch(TokenLogprobs):
    """The finest joint segmentation of a batch, from `Aligner.align_batch`.

    Positions count from the start of their row, as the row was passed in. Ranges are half-open.
    Rows, units and spans are in the order of the text. Every position that takes part is in
    exactly one unit or one unmatched span. The batch refers to the caller's arrays of ids where
    they needed no copy: do not write to them while the batch is in use.

    A batch holds its aligner, but a pickled batch contains only the arrays and the digest of the
    aligner. After unpickling, `units`, `index` and `coarsen("whitespace")` need an aligner with
    the same digest. They use the newest such aligner in the process; `with_aligner` sets one
    explicitly. All other methods work without an aligner.

    Attributes:
        row_offsets: Units of row `i` are `row_offsets[i]:row_offsets[i + 1]`; int64
            `[rows + 1]`.
        teacher_start: First position of a unit in the teacher's row, int32 `[units]`.
        teacher_end: One past the last position in the teacher's row, int32 `[units]`.
        student_start: First position of a unit in the student's row, int32 `[units]`.
        student_end: One past the last position in the student's row, int32 `[units]`.
        kind: The `UnitKind` of a unit, uint8 `[units]`.
        unit_class: The `UnitClass` bits of a unit, uint8 `[units]`.
        unmatched: The tokens that are in no unit, with the reasons.
        teacher: The teacher's ids.
        student: The student's ids.
        pair_digest: The `digest` of the aligner that made the batch.

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
        """Return the batch with an aligner, for methods that need one after unpickling.

        Args:
            aligner: An `Aligner` whose `digest` equals the batch's `pair_digest`.

        Returns:
            A batch over the same arrays.

        Raises:
            TypeError: `aligner` is not an `Aligner`.
            ValueError: `aligner` has another digest.
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
                f"{what} needs the aligner that made this batch, but this process has no aligner "
                f"with digest {self.pair_digest[:12]}: build or load one and keep it, or pass it "
                "with batch.with_aligner(aligner)"
            )
        return pair

    def units(self, row: int, *, max_path: int = 0) -> list[Unit]:
        """Return the units of one row as objects, for inspection.

        Args:
            row: Number of the row. Negative numbers count from the end.
            max_path: If not 0, every unit lists the texts of its on-path continuations that begin
                with at most `max_path` realized tokens, 64 at most.

        Returns:
            One `Unit` per unit of the row, in order.

        Raises:
            IndexError: `row` is out of range.
            TypeError: `max_path` is not an integer.
            ValueError: `max_path` is out of range.
            MissingAlignerError: The batch was unpickled, and the process has no aligner with its
                digest.

        Complexity:
            O(tokens of the row + continuations), in Python. Do not use it in a hot loop.

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
                # The bytes of one side include the dummy prefix, those of the other do not.
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
        """Count the tokens in units and the unmatched tokens.

        Returns:
            The counts of the whole batch.

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
        """Build the index with which a loss gathers logits.

        The default layout of the logits follows the ids. Dense ids `[rows, T]` mean logits
        `[rows, T, vocabulary]`. Ragged ids mean packed logits `[tokens, vocabulary]`. Give row
        starts or a stride for any other layout.

        Args:
            teacher_row_starts: For every row of the batch, the row of the teacher's flattened
                logits that belongs to position 0; integers `[rows]`.
            student_row_starts: The same for the student's logits.
            teacher_stride: The number of rows of the teacher's logits per row of the batch, for
                ragged ids whose logits are padded on the right. It replaces
                `teacher_row_starts`.
            student_stride: The same for the student's logits.
            max_path: If not 0, the index contains the on-path continuations that begin with at
                most `max_path` realized tokens; 8 is a good value, 64 the largest.
            first_ids: Whether the index contains the first token of every unit on either side.
            text_events: Whether the index contains text events: at every boundary of either side,
                the rows and the tokens that tell how the text goes on.
            threads: Number of threads that enumerate continuations and text events. The default is
                all cores.

        Returns:
            The index, in NumPy memory. Its method `to` moves it to a device.

        Raises:
            TypeError: An option that must be an integer, True or False is something else.
            ValueError: Row starts have a wrong length or dtype, or begin before the logits; row
                starts and a stride are both given; a stride is smaller than the number of rows
                that are read; or `max_path` is out of range.
            MissingAlignerError: The batch was unpickled, and the process has no aligner with its
                digest.

        Complexity:
            O(units + tokens in MULTI units), and at most O(units × `max_path`) with continuations,
            in Rust, without the GIL. The first index with continuations computes the spellings of
            the pair, the first one with text events the `text_tree` of the aligner.

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
        first_ids, text_events = flag("first_ids", first_ids), flag("text_events", text_events)
        pair = self._need_pair("index")
        if max_path:
            _ = pair.spellings
        teacher_ids, student_ids = same_dtype(self.teacher, self.student)
        teacher = logit_rows("teacher", teacher_ids, teacher_row_starts, teacher_stride)
        student = logit_rows("student", student_ids, student_row_starts, student_stride)
        if text_events:
            teacher = teacher._replace(dummy_prefixes=self._dummy_prefixes("teacher"))
            student = student._replace(dummy_prefixes=self._dummy_prefixes("student"))
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

    def _dummy_prefixes(self, side: Side) -> NDArray[np.int64]:
        """Return the places, in the side's ids, of the tokens that are only a dummy prefix."""
        spans = self.unmatched
        start, end = (getattr(spans, f"{side}_{what}") for what in ("start", "end"))
        row = np.repeat(np.arange(len(self)), np.diff(spans.row_offsets))
        places = getattr(self, side).offsets[row] + start
        found: NDArray[np.int64] = places[
            (spans.reason == UnmatchedReason.DUMMY_PREFIX) & (end > start)
        ]
        return found

    def coarsen(
        self, n: int | Literal["whitespace", "random"] = 2, *, seed: int | None = None
    ) -> AlignedBatch:
        """Join neighbouring units, as an ablation with a coarser segmentation.

        Units are joined only within a region, never across an unmatched span, and never with a
        SPECIAL unit. A joined group of several units has kind MULTI. It has a class bit for white
        space, numbers or punctuation if all of its parts have that bit, and any other class bit
        if one of its parts has that bit.

        Args:
            n: How units are grouped. An integer joins that many neighbouring units.
                `"whitespace"` joins units up to the next unit that begins with white space.
                `"random"` keeps every boundary with probability 1/2.
            seed: Seed of the random numbers; `"random"` needs it.

        Returns:
            A batch over the same ids.

        Raises:
            ValueError: `n` is something else, or `"random"` has no seed.
            MissingAlignerError: With `"whitespace"`: the batch was unpickled, and the process has
                no aligner with its digest.

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
        """Return whether the text of every unit begins with white space, bool `[units]`."""
        rows = np.repeat(np.arange(len(self)), np.diff(self.row_offsets))
        first_ids = self.student.values[self.student.offsets[rows] + self.student_start]
        student = self._need_pair('coarsen("whitespace")').student
        begins: NDArray[np.bool_] = student._native.begins_with_whitespace[first_ids] != 0
        return begins

    def without(self, kind: UnitKind | str) -> AlignedBatch:
        """Leave out all units of one kind.

        Args:
            kind: A `UnitKind` or its name, in upper or lower case.

        Returns:
            A batch over the same ids.

        Raises:
            ValueError: `kind` is unknown.

        Complexity:
            O(units), in NumPy.
        """
        return ablations.without(self, kind)

    def sample_units(self, fraction: float, *, seed: int) -> AlignedBatch:
        """Keep a random sample of the units.

        Args:
            fraction: The probability with which each unit is kept, 0 to 1.
            seed: Seed of the random numbers. The same seed keeps the same units of a batch.

        Returns:
            A batch over the same ids.

        Raises:
            ValueError: `fraction` is out of range.

        Complexity:
            O(units), in NumPy.
        """
        return ablations.sample_units(self, fraction, seed=seed)

    def chunk_ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the number of the unit at every position, as other trainers expect it.

        Returns:
            `(teacher, student)`, int64 `[rows, T]` each. Units are numbered from 0 within a row;
            positions in no unit have −1. `T` is the width of that side's dense ids, or the length
            of its longest row if the ids are ragged.

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
