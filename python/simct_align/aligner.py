"""The aligner: two vocabularies, and the alignment of batches over them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from simct_align.align import align_batch
from simct_align.continuations import enumerate_continuations
from simct_align.errors import MissingTokenizerError
from simct_align.inputs import thread_count
from simct_align.pair import VocabularyPair
from simct_align.prepare import PreparedBatch, prepare
from simct_align.retokenize import PaddingSide, RetokenizedIds, retokenize
from simct_align.vocabulary import Vocabulary

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from simct_align.batch import AlignedBatch
    from simct_align.continuations import Continuations


class Aligner(VocabularyPair):
    """Aligns token ids of a teacher with token ids of a student.

    Make one per pair of tokenizers and keep it: building reads both vocabularies and joins them
    by their bytes. It is immutable, so threads may share it, and it pickles.

    Args:
        teacher: A `Vocabulary`, or anything that `from_tokenizer` takes.
        student: Likewise.
        special_tokens: Control tokens that mean the same, teacher's -> student's, by name or id,
            beside the stops.
        stop_tokens: `(teacher's, student's)` names or ids of the tokens that end a turn, the
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
        super().__init__(
            _vocabulary(teacher),
            _vocabulary(student),
            special_tokens=special_tokens,
            stop_tokens=stop_tokens,
        )

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
                arrays; a 2-D array or CPU tensor `[rows, positions]`; or a tuple
                `(values [tokens], offsets [rows + 1])`. Contiguous int32, uint32 and int64
                arrays are read without a copy.
            student_ids: The student's ids, in any of these forms.
            teacher_mask: The positions that take part, true or not 0, in the shape of the ids;
                all without it. Each contiguous run in a row is a region.
            student_mask: Likewise. Region `k` of a row's one side is aligned with region `k`
                of its other side.
            on_mismatch: Where texts differ, `"skip"` leaves the difference unmatched and goes
                on behind it, `"error"` raises.
            resync_bytes: How many equal bytes make a place to go on at, 1 to 4,096.
            threads: How many threads work; all cores without it. The result is the same.

        Returns:
            Units and unmatched spans as arrays.

        Raises:
            TypeError: Ids or masks of a wrong type, dtype or rank.
            ValueError: Sides with different numbers of rows, or of regions in a row; a mask of
                another shape; an id that is not in the vocabulary (row, position and id are
                named).
            AlignmentError: Texts differ, with `on_mismatch="error"`.

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
        return align_batch(
            self,
            teacher_ids,
            student_ids,
            teacher_mask=teacher_mask,
            student_mask=student_mask,
            on_mismatch=on_mismatch,
            resync_bytes=resync_bytes,
            threads=threads,
        )

    def spelling(
        self, token_id: int, *, side: Literal["teacher", "student"] = "teacher"
    ) -> tuple[int, ...] | None:
        """How the other side writes one token.

        Args:
            token_id: A token of `side`.
            side: The side that has the token.

        Returns:
            Ids of the other side: one for a shared token, the spelling of a one-sided one;
            `None` for a control token, an unused id, a token without bytes and one that the
            other side cannot write.

        Raises:
            IndexError: There is no such id.

        Example:
            >>> from simct_align import Aligner, Vocabulary
            >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
            >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
            >>> aligner = Aligner(teacher, student)
            >>> aligner.spelling(0), aligner.spelling(1), aligner.spelling(0, side="student")
            ((0, 1), (2,), None)
        """
        own, other = self._sides(side)
        text = own.token_bytes(token_id)
        if not text:
            return None
        shared = other._native.find(text)
        if shared is not None:
            return (shared,)
        canonical = own._native.find(text)
        assert canonical is not None  # it is a token with bytes
        teacher, student = self.spellings
        return (teacher if side == "teacher" else student).spelling(canonical)

    def continuations_after(
        self, path: Sequence[int], *, side: Literal["teacher", "student"] = "student"
    ) -> list[tuple[str, tuple[int, ...], int]]:
        """The texts that one side spells with a path and one token more, the other with one token.

        Args:
            path: Ids of `side`, at least one.
            side: The side that spells.

        Returns:
            `(text, ids of side, id of the other side)` of each; the ids begin with `path`.

        Example:
            >>> from simct_align import Aligner, Vocabulary
            >>> teacher = Vocabulary.from_token_bytes([b"12", b"13", b"123"])
            >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"3"])
            >>> Aligner(teacher, student).continuations_after([0])
            [('12', (0, 1), 0), ('13', (0, 2), 1)]
        """
        self._sides(side)
        spellings = self.spellings
        return (spellings.teacher if side == "student" else spellings.student).after(path)

    def continuations(
        self, batch: AlignedBatch, *, max_path: int = 8, threads: int | None = None
    ) -> Continuations:
        """The on-path continuations of all units of a batch: to study them.

        A continuation is a text that is a single token on one side, and whose spelling on the
        other consists of the realized tokens from the unit on and one token more: one forward pass
        per model scores it. The realized tokens are followed across units, up to the end of the
        region, a control token, anything unmatched, and anything that is missing from the batch.

        Args:
            batch: A batch that this aligner made.
            max_path: How many realized tokens a continuation may begin with, 1 to 64.
            threads: How many threads work; all cores without it. The result is the same.

        Returns:
            The nodes that every unit reaches; texts, paths and ids on demand.

        Raises:
            TypeError: `max_path` is no integer.
            ValueError: `max_path` is out of range, or the batch is of other vocabularies.

        Complexity:
            O(units × `max_path`) at most, in Rust, without the GIL; the first call makes the
            spellings.

        Example:
            >>> from simct_align import Aligner, Vocabulary
            >>> teacher = Vocabulary.from_token_bytes([b"12", b"13", b"+"])
            >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"3", b"+"])
            >>> aligner = Aligner(teacher, student)
            >>> batch = aligner.align_batch([[2, 0]], [[3, 0, 1]])
            >>> aligner.continuations(batch).of_unit(1)[1]
            Continuation(text='13', teacher=(1,), student=(0, 2))
        """
        if batch.pair_digest != self.digest:
            raise ValueError(
                f"batch: expected one of {self!r} with digest {self.digest[:12]}, got one of an "
                f"aligner with digest {batch.pair_digest[:12]}"
            )
        return enumerate_continuations(
            self._pair,
            self.spellings,
            batch,
            (batch.teacher, batch.student),
            max_path=max_path,
            threads=threads,
        )

    def _sides(self, side: str) -> tuple[Vocabulary, Vocabulary]:
        """The named side, then the other."""
        if side == "teacher":
            return self._teacher, self._student
        if side == "student":
            return self._student, self._teacher
        raise ValueError(f"expected the side 'teacher' or 'student', got {side!r}")

    def align_texts(self, texts: Sequence[str], *, threads: int | None = None) -> AlignedBatch:
        """Tokenizes texts on both sides and aligns them.

        Args:
            texts: Any number of texts; control tokens in them stay text.
            threads: How many threads align; all cores without it.

        Returns:
            The alignment, one row for each text.

        Raises:
            MissingTokenizerError: A side has no tokenizer.
            TypeError: One string, or what is no string; names its place.
            ValueError: A text is no valid Unicode (half a surrogate pair); names its place.

        Complexity:
            That of tokenizing.
        """
        for name, vocabulary in (("teacher", self._teacher), ("student", self._student)):
            if vocabulary.tokenizer is None:
                raise MissingTokenizerError(
                    f"align_texts needs the {name}'s tokenizer: give {name}_tokenizer= to "
                    "Aligner.load, or build the aligner from tokenizers"
                )
        if isinstance(texts, str):
            raise TypeError("texts: expected several texts, got one string")
        texts = list(texts)
        for number, text in enumerate(texts):
            _check_text(number, text)
        return self.align_batch(
            self._teacher.encode_batch(texts), self._student.encode_batch(texts), threads=threads
        )

    @overload
    def retokenize(
        self,
        student_ids: object,
        *,
        student_mask: object | None = ...,
        padding_side: None = ...,
        pad_id: int = ...,
        threads: int | None = ...,
    ) -> RetokenizedIds: ...

    @overload
    def retokenize(
        self,
        student_ids: object,
        *,
        student_mask: object | None = ...,
        padding_side: PaddingSide,
        pad_id: int = ...,
        threads: int | None = ...,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]: ...

    def retokenize(
        self,
        student_ids: object,
        *,
        student_mask: object | None = None,
        padding_side: PaddingSide | None = None,
        pad_id: int = 0,
        threads: int | None = None,
    ) -> RetokenizedIds | tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Makes the teacher's ids of what the student sampled, byte for byte.

        Use it on rollouts: sampled ids may be cut as no encoder cuts, end inside a character, or
        be no text at all. Text goes through the teacher's own encoder and never becomes a control
        token, special tokens cross by the aligner's map, and bytes that the encoder would change
        (half characters, a `▁`, characters that it composes) become the teacher's byte tokens.
        What it has no tokens for becomes U+FFFD, which alignment reports as unmatched. The same
        vocabulary on both sides keeps the sampled ids.

        Args:
            student_ids: The sampled ids, in any form that `align_batch` takes.
            student_mask: The positions to take, in the shape of the ids; all without it. Each
                contiguous run is tokenized for itself.
            padding_side: `"left"` or `"right"`: return a dense array and its mask.
            pad_id: What fills it.
            threads: How many threads look whether the bytes agree; all cores without it.

        Returns:
            Ragged ids with counts of what took another way; with `padding_side`, `(ids, mask)`,
            int64 `[rows, longest row]` each.

        Raises:
            MissingTokenizerError: The teacher has no tokenizer.
            TypeError, ValueError: As `align_batch`.

        Complexity:
            That of the teacher's tokenizer, in one batch call without the GIL.

        Example:
            >>> from simct_align.demo import demo_tokenizers
            >>> aligner = Aligner(*demo_tokenizers())
            >>> text = aligner.student.encode_batch(["x = 12"])[0]
            >>> teacher_ids = aligner.retokenize([[*text, *aligner.student.stop_ids]])
            >>> aligner.teacher.decode_bytes(teacher_ids.row(0)), teacher_ids.counts.specials
            (b' x = 12', 1)
        """
        made = retokenize(
            self, student_ids, student_mask=student_mask, threads=thread_count(threads)
        )
        return made if padding_side is None else made.padded(padding_side, pad_id=pad_id)

    def prepare(
        self,
        completion_ids: object,
        *,
        teacher_prompt_ids: object,
        student_prompt_ids: object,
        completion_mask: object | None = None,
        teacher_prompt_mask: object | None = None,
        student_prompt_mask: object | None = None,
        truncated: ArrayLike | Sequence[Sequence[bool]] | None = None,
        padding_side: PaddingSide = "right",
        teacher_pad_id: int = 0,
        student_pad_id: int = 0,
        teacher_max_length: int | None = None,
        student_max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        threads: int | None = None,
    ) -> PreparedBatch:
        """Joins rollouts with each side's own prompts: all that a training step needs.

        Use it where a student has sampled. A row is a prompt and a completion, or a conversation:
        turns of a prompt (all that stands between two completions, as the side's chat template
        has it: see `prompt_ids`) and a completion each. Turn k is aligned
        with turn k. A completion that was not truncated ends with a stop on both sides, which is
        added where it is missing; a prompt's first token is dropped if it repeats that stop.

        Args:
            completion_ids: What the student sampled: one completion per row, in any form that
                `align_batch` takes, or lists of turns `[row][turn]` of ids.
            teacher_prompt_ids: The teacher's prompts, likewise.
            student_prompt_ids: The student's prompts, likewise.
            completion_mask: Positions to take, in the shape of the ids; not for lists of turns.
            teacher_prompt_mask: Likewise.
            student_prompt_mask: Likewise.
            truncated: Completions that did not end by themselves, true or false for every row
                (about its last turn) or for every turn.
            padding_side: `"left"` or `"right"`.
            teacher_pad_id: What fills the teacher's rows.
            student_pad_id: What fills the student's rows.
            teacher_max_length: Cut the teacher's rows at so many tokens.
            student_max_length: Cut the student's rows at so many tokens; the teacher's lose the
                same text.
            pad_to_multiple_of: Round both widths up to a multiple of this.
            threads: How many threads align; all cores without it.

        Returns:
            Ids and masks of both sides, their alignment, and counts of what was left out.

        Raises:
            MissingTokenizerError: The teacher has no tokenizer.
            TypeError, ValueError: As `align_batch`; numbers of rows or turns that differ; a
                later turn whose prompt is empty.

        Complexity:
            That of `retokenize`, and O(rows × longest row).

        Example:
            >>> from simct_align.demo import demo_tokenizers
            >>> aligner = Aligner(*demo_tokenizers())
            >>> batch = aligner.prepare(
            ...     aligner.student.encode_batch(["4", "12"]),
            ...     teacher_prompt_ids=aligner.teacher.encode_batch(["2 + 2 =", "5 + 7 ="]),
            ...     student_prompt_ids=aligner.student.encode_batch(["2 + 2 =", "5 + 7 ="]),
            ...     truncated=[False, True],
            ... )
            >>> batch.teacher.completion_mask.sum(axis=1), batch.counts.stops_added
            (array([3, 3]), 1)
        """
        return prepare(
            self,
            completion_ids,
            teacher_prompt_ids=teacher_prompt_ids,
            student_prompt_ids=student_prompt_ids,
            completion_mask=completion_mask,
            teacher_prompt_mask=teacher_prompt_mask,
            student_prompt_mask=student_prompt_mask,
            truncated=truncated,
            padding_side=padding_side,
            teacher_pad_id=teacher_pad_id,
            student_pad_id=student_pad_id,
            teacher_max_length=teacher_max_length,
            student_max_length=student_max_length,
            pad_to_multiple_of=pad_to_multiple_of,
            threads=thread_count(threads),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes vocabularies and tables to one file: versioned, checksummed, no tokenizer.

        The spellings of `spellings` are written if they have been made; ask for them first
        where the file shall hold what the tokenizers emit.

        Args:
            path: The file; it is replaced if it exists.

        Raises:
            OSError: The file cannot be written.
        """
        Path(path).write_bytes(self._pair.to_bytes())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        teacher_tokenizer: object | None = None,
        student_tokenizer: object | None = None,
    ) -> Aligner:
        """Reads what `save` wrote; tens of milliseconds for the largest vocabularies.

        Args:
            path: The file.
            teacher_tokenizer: Anything that `from_tokenizer` takes, for the
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


def _vocabulary(source: object) -> Vocabulary:
    return source if isinstance(source, Vocabulary) else Vocabulary.from_tokenizer(source)


def _check_text(number: int, text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"texts[{number}]: expected a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"texts[{number}] is no valid Unicode at character {error.start}: {error.reason}"
        ) from None
