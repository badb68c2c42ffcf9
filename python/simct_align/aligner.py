"""The aligner: two vocabularies, and the alignment of batches over them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from simct_align import _native
from simct_align.batch import AlignedBatch, UnmatchedSpans
from simct_align.errors import MissingTokenizerError
from simct_align.inputs import read_side, same_dtype
from simct_align.vocabulary import Vocabulary

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from simct_align.tokenizer_source import TokenizerSource


@dataclass(frozen=True)
class SharedVocabulary:
    """The texts and control tokens that are a single token on both sides: the loss's columns.

    Columns are sorted by teacher id, by canonical ids, one for every byte string, one for every
    mapped pair of special tokens and one for all stops together.

    Attributes:
        teacher_ids: int64 ``[columns]``.
        student_ids: int64 ``[columns]``.
        stop_column: The column of the stops; −1 if one side has none.
        teacher_stop_ids: All stops of the teacher, the canonical one first; int64.
        student_stop_ids: All stops of the student, likewise.
    """

    teacher_ids: NDArray[np.int64]
    student_ids: NDArray[np.int64]
    stop_column: int
    teacher_stop_ids: NDArray[np.int64]
    student_stop_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.teacher_ids)


class Aligner:
    """Aligns token ids of a teacher with token ids of a student.

    Make one per pair of tokenizers and keep it: building reads both vocabularies and joins them
    by their bytes. It is immutable, so threads may share it, and it pickles.

    Args:
        teacher: A :class:`Vocabulary`, or anything that :meth:`Vocabulary.from_tokenizer` takes.
        student: Likewise.
        special_tokens: Control tokens that mean the same, teacher's -> student's, by name or id,
            beside the stops.
        stop_tokens: ``(teacher's, student's)`` names or ids of the tokens that end a turn, the
            canonical one first. Without it each side's EOS, where its tokenizer names one. If
            one side has none, the other's stops stay without a partner.

    Raises:
        UnsupportedTokenizerError: Token bytes cannot be read exactly.
        ValueError: A token name is unknown or not a special token, or tokens are mapped twice.

    Complexity:
        O(tokens of both vocabularies) time and memory.

    Example:
        >>> from simct_align.demo import demo_tokenizers
        >>> aligner = Aligner(*demo_tokenizers())
        >>> batch = aligner.align_texts(["2 + 2 = 4"])
        >>> b"".join(unit.bytes for unit in batch.units(0))
        b'2 + 2 = 4'
    """

    def __init__(
        self,
        teacher: object,
        student: object,
        *,
        special_tokens: Mapping[str | int, str | int] | None = None,
        stop_tokens: tuple[Sequence[str | int], Sequence[str | int]] | None = None,
    ) -> None:
        self._teacher = _vocabulary(teacher)
        self._student = _vocabulary(student)
        pairs = [
            (
                _token_id("special_tokens", self._teacher, t),
                _token_id("special_tokens", self._student, s),
            )
            for t, s in (special_tokens or {}).items()
        ]
        stops: list[list[int] | None] = [None, None]
        if stop_tokens is not None:
            if len(stop_tokens) != 2 or any(isinstance(side, (str, int)) for side in stop_tokens):
                raise TypeError(
                    "stop_tokens: expected ([teacher's ids or names], [student's ids or names]), "
                    f"got {stop_tokens!r}"
                )
            stops = [
                [_token_id("stop_tokens", vocabulary, token) for token in side]
                for vocabulary, side in zip(
                    (self._teacher, self._student), stop_tokens, strict=True
                )
            ]
        self._pair = _native.Pair(
            self._teacher._native,
            self._student._native,
            special_tokens=pairs,
            teacher_stops=stops[0],
            student_stops=stops[1],
        )
        self._shared = _shared_vocabulary(self._pair)

    @property
    def teacher(self) -> Vocabulary:
        """The teacher's vocabulary."""
        return self._teacher

    @property
    def student(self) -> Vocabulary:
        """The student's vocabulary."""
        return self._student

    @property
    def shared(self) -> SharedVocabulary:
        """The shared vocabulary."""
        return self._shared

    def __repr__(self) -> str:
        return (
            f"<Aligner of {len(self.teacher):,} teacher and {len(self.student):,} student tokens, "
            f"{len(self.shared):,} shared>"
        )

    def align_batch(
        self,
        teacher_ids: object,
        student_ids: object,
        *,
        teacher_mask: object | None = None,
        student_mask: object | None = None,
        on_mismatch: Literal["skip", "error"] = "skip",
        resync_bytes: int = 8,
        threads: int | None = None,
    ) -> AlignedBatch:
        """Finds the finest joint segmentation of every row.

        Args:
            teacher_ids: The teacher's ids, of any integer dtype: lists of lists; a list of 1-D
                arrays; a 2-D array or CPU tensor ``[rows, positions]``; or a tuple
                ``(values [tokens], offsets [rows + 1])``. Contiguous int32, uint32 and int64
                arrays are read without a copy.
            student_ids: The student's ids, in any of these forms.
            teacher_mask: The positions that take part, true or not 0, in the shape of the ids;
                all without it. Each contiguous run in a row is a region.
            student_mask: Likewise. Region ``k`` of a row's one side is aligned with region ``k``
                of its other side.
            on_mismatch: Where texts differ, ``"skip"`` leaves the difference unmatched and goes
                on behind it, ``"error"`` raises.
            resync_bytes: How many equal bytes make a place to go on at, 1 to 4,096.
            threads: How many threads work; all cores without it. The result is the same.

        Returns:
            Units and unmatched spans as arrays.

        Raises:
            TypeError: Ids or masks of a wrong type, dtype or rank.
            ValueError: Sides with different numbers of rows, or of regions in a row; a mask of
                another shape; an id that is not in the vocabulary (row, position and id are
                named).
            AlignmentError: Texts differ, with ``on_mismatch="error"``.

        Complexity:
            O(teacher tokens + student tokens) time, 18 bytes of memory per unit.

        Example:
            >>> from simct_align.demo import demo_tokenizers
            >>> aligner = Aligner(*demo_tokenizers())
            >>> teacher_ids = aligner.teacher.encode_batch(["x = 12"])
            >>> student_ids = aligner.student.encode_batch(["x = 12"])
            >>> batch = aligner.align_batch(teacher_ids, student_ids)
            >>> [(unit.text, len(unit.teacher), len(unit.student)) for unit in batch.units(0)][-1]
            ('12', 2, 1)
        """
        if on_mismatch not in ("skip", "error"):
            raise ValueError(f"on_mismatch: expected 'skip' or 'error', got {on_mismatch!r}")
        teacher = read_side("teacher", teacher_ids, teacher_mask)
        student = read_side("student", student_ids, student_mask)
        teacher_values, student_values = same_dtype(teacher, student)
        units, kind, unit_class, unmatched, reason = self._pair.align(
            teacher_values,
            teacher.offsets,
            teacher.mask,
            student_values,
            student.offsets,
            student.mask,
            fail_on_mismatch=on_mismatch == "error",
            resync_bytes=_count("resync_bytes", resync_bytes),
            threads=None if threads is None else _count("threads", threads),
        )
        return AlignedBatch(
            *units,
            kind=kind,
            unit_class=unit_class,
            unmatched=UnmatchedSpans(*unmatched, reason=reason),
            teacher=teacher,
            student=student,
            _pair=self._pair,
        )

    def align_texts(self, texts: Sequence[str], *, threads: int | None = None) -> AlignedBatch:
        """Tokenizes texts on both sides and aligns them.

        Args:
            texts: Any number of texts; control tokens in them stay text.
            threads: How many threads align; all cores without it.

        Returns:
            The alignment, one row for each text.

        Raises:
            MissingTokenizerError: A side has no tokenizer.

        Complexity:
            That of tokenizing.
        """
        for name, vocabulary in (("teacher", self._teacher), ("student", self._student)):
            if vocabulary.tokenizer is None:
                raise MissingTokenizerError(
                    f"align_texts needs the {name}'s tokenizer: give {name}_tokenizer= to "
                    "Aligner.load, or build the aligner from tokenizers"
                )
        texts = list(texts)
        return self.align_batch(
            self._teacher.encode_batch(texts), self._student.encode_batch(texts), threads=threads
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes vocabularies and tables to one file: versioned, checksummed, no tokenizer.

        Args:
            path: The file; it is replaced if it exists.

        Raises:
            OSError: The file cannot be written.
        """
        Path(path).write_bytes(self._pair.to_bytes(""))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        teacher_tokenizer: object | None = None,
        student_tokenizer: object | None = None,
    ) -> Aligner:
        """Reads what :meth:`save` wrote; tens of milliseconds for the largest vocabularies.

        Args:
            path: The file.
            teacher_tokenizer: Anything that :meth:`Vocabulary.from_tokenizer` takes, for the
                methods that tokenize; opened and checked on first use.
            student_tokenizer: Likewise.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is not a saved aligner, damaged, or of another version.
        """
        aligner = cls._from_bytes(Path(path).read_bytes(), None, None)
        if teacher_tokenizer is not None:
            aligner._teacher = aligner._teacher.with_tokenizer(teacher_tokenizer)
        if student_tokenizer is not None:
            aligner._student = aligner._student.with_tokenizer(student_tokenizer)
        return aligner

    @classmethod
    def _from_bytes(
        cls,
        data: bytes,
        teacher_source: TokenizerSource | None,
        student_source: TokenizerSource | None,
    ) -> Aligner:
        aligner = cls.__new__(cls)
        aligner._pair, _ = _native.Pair.from_bytes(data)
        aligner._teacher = Vocabulary(aligner._pair.teacher, source=teacher_source)
        aligner._student = Vocabulary(aligner._pair.student, source=student_source)
        aligner._shared = _shared_vocabulary(aligner._pair)
        return aligner

    def __reduce__(self) -> tuple[object, ...]:
        sources = (self._teacher._source, self._student._source)
        return self._from_bytes, (self._pair.to_bytes(""), *sources)


def _vocabulary(source: object) -> Vocabulary:
    return source if isinstance(source, Vocabulary) else Vocabulary.from_tokenizer(source)


def _shared_vocabulary(pair: _native.Pair) -> SharedVocabulary:
    column = pair.stop_column
    return SharedVocabulary(*pair.shared_ids, -1 if column is None else column, *pair.stop_ids)


def _token_id(argument: str, vocabulary: Vocabulary, token: str | int) -> int:
    """The id of a token given by name or id."""
    if isinstance(token, int):
        if not 0 <= token < len(vocabulary):
            raise ValueError(
                f"{argument}: id {token} is not in the vocabulary of {len(vocabulary)}"
            )
        return token
    token_id = vocabulary.special_ids.get(token)
    if token_id is None:
        raise ValueError(
            f"{argument}: {token!r} is not a special token of {vocabulary!r}; if the tokenizer "
            f"does not flag it as one, name it in Vocabulary.from_tokenizer(..., special=[...])"
        )
    return token_id


def _count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} is {value}, expected at least 1")
    return value
