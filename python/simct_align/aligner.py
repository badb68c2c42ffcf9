"""Internal: the `Aligner`, which holds two vocabularies and aligns batches of token ids."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from simct_align.align import align_batch
from simct_align.continuations import enumerate_continuations
from simct_align.errors import MissingTokenizerError
from simct_align.inputs import check_text, thread_count
from simct_align.limits import read_limited
from simct_align.pair import VocabularyPair
from simct_align.prepare import PreparedBatch, prepare
from simct_align.retokenize import PaddingSide, RetokenizedIds, retokenize
from simct_align.vocabulary import Vocabulary

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from simct_align.batch import AlignedBatch
    from simct_align.continuations import Continuations
    from simct_align.report import Report


class Aligner(VocabularyPair):
    """Alignment of a teacher's token ids with a student's token ids.

    Build one aligner per pair of tokenizers and keep it. Building reads both vocabularies and
    matches their tokens by bytes. An aligner is immutable, so threads can share it. It pickles.

    Args:
        teacher: The teacher's tokenizer: a `Vocabulary`, or any source that
            `Vocabulary.from_tokenizer` reads.
        student: The student's tokenizer, in the same forms.
        special_tokens: Special tokens that mean the same on both sides: a mapping from the
            teacher's tokens to the student's, each by name or id. The stops are mapped by
            `stop_tokens` instead.
        stop_tokens: A pair of sequences, teacher's then student's: the names or ids of the tokens
            that end a turn, the canonical one first. The default is the `stop_ids` of each
            vocabulary. If one side has no stops, the stops of the other side have no partner, and
            without `stop_tokens` a warning says so.

    Raises:
        UnsupportedTokenizerError: The exact token bytes of a tokenizer cannot be read.
        TypeError: `teacher` or `student` is not a supported tokenizer, or `stop_tokens` is not a
            pair of sequences.
        ValueError: A token name is unknown, a token is not a special token, or a token is mapped
            twice.
        OSError: A tokenizer file cannot be found or read.
        ImportError: The library that a tokenizer needs is not installed.

    Complexity:
        O(bytes of all tokens of both vocabularies) time and memory.

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
        if stop_tokens is None:
            _warn_without_stops(self._teacher, self._student)

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
        """Find the finest joint segmentation of every row.

        Args:
            teacher_ids: The teacher's ids, of any integer dtype: any sequence of rows, where a row
                is a sequence of integers or a 1-D array; a 2-D array `[rows, positions]`; a list
                array of PyArrow, a column of a `datasets.Dataset` or a nested tensor; or a tuple
                `(values [tokens], offsets [rows + 1])`. Arrays are those of NumPy, tensors on the
                CPU, and what has DLPack or the buffer protocol. A tuple of two is `(values,
                offsets)` if both are flat and one of them is an array or a list; else its entries
                are rows. Contiguous int32, uint32 and int64 arrays are read without a copy. For
                several sequences in one row, pass what `packed_rows` returns.
            student_ids: The student's ids, in the same forms as `teacher_ids`.
            teacher_mask: Which of the teacher's positions take part (nonzero or True), in the
                shape of `teacher_ids`. The default is all positions. Every contiguous run of
                positions in a row is a region.
            student_mask: Which of the student's positions take part, in the shape of
                `student_ids`. Region `k` of the teacher's row is aligned with region `k` of the
                student's row.
            on_mismatch: What happens where the texts of both sides differ. `"skip"` reports the
                differing tokens as unmatched and continues after them. `"error"` raises
                `AlignmentError`.
            resync_bytes: How many bytes must be equal before alignment continues after a
                difference, 1 to 4,096. After a short difference, such as a character that only one
                side composes, 4 or 6 are enough.
            threads: Number of threads. The default is all cores. The result does not depend on
                the number.

        Returns:
            The units and the unmatched spans as arrays.

        Raises:
            TypeError: Ids or a mask have a wrong type, dtype or rank.
            ValueError: The two sides have different numbers of rows, or of regions in a row; a
                mask does not have the shape of its ids; an id is not in the vocabulary (the
                message names row, position and id); or an option is out of range.
            AlignmentError: The texts differ and `on_mismatch` is `"error"`.

        Warns:
            UserWarning: Most of a batch holds other texts on one side than on the other, as it does
                with ids of another tokenizer or of the other side. Once per aligner.

        Complexity:
            O(teacher tokens + student tokens) time, and 18 bytes of memory per unit.

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

    def continuations(
        self, batch: AlignedBatch, *, max_path: int = 8, threads: int | None = None
    ) -> Continuations:
        """Find the on-path continuations of all units of a batch, for inspection.

        An on-path continuation is a text that is a single token on one side. On the other side,
        its spelling consists of realized tokens, starting at the unit, and one more token. One
        forward pass per model therefore scores it. The realized tokens are followed across units.
        They end at the end of the region, at a special token, at an unmatched span, and where the
        batch has no unit for a position.

        Args:
            batch: A batch that this aligner made.
            max_path: The largest number of realized tokens at the start of a continuation, 1
                to 64.
            threads: Number of threads. The default is all cores. The result does not depend on
                the number.

        Returns:
            The nodes that every unit reaches. Texts, paths and ids are computed on demand.

        Raises:
            TypeError: `max_path` is not an integer.
            ValueError: `max_path` is out of range, or the batch was made by an aligner with
                another digest.

        Complexity:
            At most O(units × `max_path`), in Rust, without the GIL. The first call computes the
            spellings of the pair.

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
                f"batch: expected a batch that {self!r} (digest {self.digest[:12]}) made, got "
                f"one that an aligner with digest {batch.pair_digest[:12]} made; align the ids "
                "again with this aligner"
            )
        return enumerate_continuations(
            self._pair,
            self.spellings,
            batch,
            (batch.teacher, batch.student),
            max_path=max_path,
            threads=threads,
        )

    def align_texts(self, texts: Sequence[str], *, threads: int | None = None) -> AlignedBatch:
        """Tokenize texts on both sides and align the results.

        Args:
            texts: Any number of texts. The name of a special token in a text stays text.
            threads: Number of threads of the alignment. The default is all cores.

        Returns:
            The alignment, one row per text.

        Raises:
            MissingTokenizerError: A side has no tokenizer.
            TypeError: `texts` is one string, or an entry is not a string; the message names its
                position.
            ValueError: A text is not valid Unicode (half a surrogate pair); the message names its
                position.

        Complexity:
            That of tokenization.
        """
        for name, vocabulary in (("teacher", self._teacher), ("student", self._student)):
            if vocabulary.tokenizer is None:
                raise MissingTokenizerError(
                    f"align_texts needs the {name}'s tokenizer: give {name}_tokenizer= to "
                    "Aligner.load, or build the aligner from tokenizers"
                )
        if isinstance(texts, str):
            raise TypeError("texts: expected a list of strings, got one string; wrap it in a list")
        texts = list(texts)
        for number, text in enumerate(texts):
            check_text(f"texts[{number}]", text)
        return self.align_batch(
            self._teacher.encode_batch(texts), self._student.encode_batch(texts), threads=threads
        )

    def report(
        self,
        texts: Iterable[str],
        *,
        teacher_name: str | None = None,
        student_name: str | None = None,
        progress: bool = False,
        threads: int | None = None,
    ) -> Report:
        """Count what a distillation loss can compare on given texts, for people to read.

        Use it before training, on texts of the kind that the student will write. The report has the
        tokens in SHARED and MULTI units and in no unit, the tokens that mean different texts on
        both sides, and the texts themselves with their units.

        Args:
            texts: Any number of texts. An iterator is read once, in batches.
            teacher_name: What the report calls the teacher's tokenizer. The default is the last
                part of its path, its hub id, or "teacher".
            student_name: The same for the student.
            progress: Whether to show the number of texts on standard error.
            threads: Number of threads of the alignment. The default is all cores.

        Returns:
            The report: `save` writes a page, `to_dict` returns the numbers.

        Raises:
            MissingTokenizerError: A side has no tokenizer.
            TypeError: `texts` is one string, or an entry is not a string; the message names its
                position.
            ValueError: A text is not valid Unicode; the message names its position.

        Complexity:
            That of tokenization. Memory is that of a batch of some hundred texts, and of the
            different MULTI units.

        Example:
            >>> from simct_align.demo import demo_tokenizers
            >>> report = Aligner(*demo_tokenizers()).report(["12 apples", "345 pears"])
            >>> report.to_dict()["cuts"]["most_common"][0]["student"]
            ['12']
        """
        from simct_align.report.builder import build_report

        return build_report(
            self,
            texts,
            teacher_name=teacher_name,
            student_name=student_name,
            progress=progress,
            threads=threads,
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
        """Return the teacher's ids of the bytes that the student sampled.

        Use it on rollouts. A student can sample ids that no tokenizer emits for the text, that end
        inside a character, or that are not valid text. Text goes through the teacher's own
        tokenizer and never becomes a special token. Special tokens are translated by the aligner's
        map. Bytes that the teacher's tokenizer would change (half characters, a `▁`, characters
        that its normalizer composes) become the fewest teacher tokens with exactly these bytes.
        Bytes for which the teacher has no tokens become U+FFFD, which alignment reports as
        unmatched. If both sides have the same vocabulary, the sampled ids stay as they are.

        Args:
            student_ids: The sampled ids, in any form that `align_batch` takes.
            student_mask: Which positions to retokenize, in the shape of `student_ids`. The default
                is all positions. Every contiguous run of positions is tokenized separately.
            padding_side: `"left"` or `"right"` returns a dense array and its mask. The default
                returns ragged ids.
            pad_id: The id of padding positions in the dense array.
            threads: Number of threads that compare the bytes of both sides. The default is all
                cores.

        Returns:
            Ragged ids, with counts of the tokens and bytes that did not go through the teacher's
            tokenizer. With `padding_side`, a tuple `(ids, mask)`, int64 `[rows, longest row]`
            each.

        Raises:
            MissingTokenizerError: The teacher has no tokenizer.
            TypeError: As for `align_batch`.
            ValueError: As for `align_batch`, or `padding_side` is not `"left"` or `"right"`.

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
        teacher_end_ids: Sequence[object] | None = None,
        student_end_ids: Sequence[object] | None = None,
        truncated: ArrayLike | Sequence[Sequence[bool]] | None = None,
        padding_side: PaddingSide = "right",
        teacher_pad_id: int = 0,
        student_pad_id: int = 0,
        teacher_max_length: int | None = None,
        student_max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        threads: int | None = None,
    ) -> PreparedBatch:
        """Join rollouts with the prompts of each side into the inputs of a training step.

        Use it after the student has sampled. A row is one turn or several turns, such as a
        conversation. A turn is a prompt and a completion. The prompt of a later turn is the text
        between two completions, as the chat template of that side writes it (see
        `simct_align.chat.prompt_ids`). Turn `k` of the teacher is aligned with turn `k` of the
        student. A completion that was not truncated ends with a stop on both sides: the stop is
        added where it is missing. If the next prompt begins with the end of the turn as well, a
        stop with or without white space before it, that repetition is dropped.

        With `teacher_end_ids` and `student_end_ids` a completion that was not truncated ends as the
        chat template of that side writes it: with the white space and the stop at the start of
        what follows, in place of the completion's own stop. If something else follows, no stop is
        added. The end ids after the stop are in the row and take no part.

        Args:
            completion_ids: The ids that the student sampled: one completion per row, in any form
                that `align_batch` takes, or nested lists `[row][turn]` of ids.
            teacher_prompt_ids: The teacher's prompts, in the same forms as `completion_ids`.
            student_prompt_ids: The student's prompts, in the same forms as `completion_ids`.
            completion_mask: Which positions of `completion_ids` to use, in its shape. The default
                is all positions. Nested lists of turns cannot have a mask.
            teacher_prompt_mask: Which positions of `teacher_prompt_ids` to use, in its shape.
            student_prompt_mask: Which positions of `student_prompt_ids` to use, in its shape.
            teacher_end_ids: What the teacher's chat template writes after the last completion of
                each row: one list of ids per row, or None for a row whose completions end with
                stops that are added where they are missing. The default is None for all rows.
            student_end_ids: The same for the student.
            truncated: Whether a completion was cut off before its end. One flag per row, which
                describes its last turn, or one list of flags per row with one flag per turn.
            padding_side: `"left"` or `"right"`.
            teacher_pad_id: The id of padding positions in the teacher's rows.
            student_pad_id: The id of padding positions in the student's rows.
            teacher_max_length: The largest number of tokens in a row of the teacher. Longer rows
                are cut at the end.
            student_max_length: The largest number of tokens in a row of the student. Longer rows
                are cut at the end, and the teacher's rows lose the same text.
            pad_to_multiple_of: The width of the arrays is rounded up to a multiple of this number.
            threads: Number of threads of the alignment. The default is all cores.

        Returns:
            Ids and masks of both sides, their alignment, and counts of what was cut, added and
            left out.

        Raises:
            MissingTokenizerError: The teacher has no tokenizer.
            TypeError: As for `align_batch`, or nested lists of turns have a mask.
            ValueError: As for `align_batch`; the arguments have different numbers of rows or of
                turns in a row; or the prompt of a later turn is empty, or contains only the stop
                of the turn before.

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
            teacher_end_ids=teacher_end_ids,
            student_end_ids=student_end_ids,
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
        """Write both vocabularies and all tables to one file.

        The file has a version and a checksum. It does not contain the tokenizers. It contains the
        spellings if they have been computed. To store the spellings that the tokenizers emit, read
        `aligner.spellings` before saving.

        Args:
            path: The file. An existing file is replaced.

        Raises:
            OSError: The file cannot be written.

        Complexity:
            O(bytes of all tokens of both vocabularies) time and memory.
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
        """Load an aligner from a file that `save` wrote.

        Loading takes tens of milliseconds for the largest vocabularies.

        Args:
            path: The file.
            teacher_tokenizer: The teacher's tokenizer, for methods that tokenize: any source that
                `Vocabulary.from_tokenizer` reads. It is opened and checked on first use.
            student_tokenizer: The student's tokenizer, in the same forms.

        Returns:
            The aligner. Without a tokenizer, methods that tokenize with that side raise
            `MissingTokenizerError`.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file is not a saved aligner, is damaged, has another format version, or
                has more than 256 MiB (the environment variable `SIMCT_ALIGN_MAX_FILE_BYTES` sets
                another limit).

        Complexity:
            O(bytes of all tokens of both vocabularies) time and memory.
        """
        aligner = cls._from_bytes(read_limited(Path(path)), None, None)
        if teacher_tokenizer is not None:
            aligner._teacher = aligner._teacher.with_tokenizer(teacher_tokenizer)
        if student_tokenizer is not None:
            aligner._student = aligner._student.with_tokenizer(student_tokenizer)
        return aligner


def _vocabulary(source: object) -> Vocabulary:
    return source if isinstance(source, Vocabulary) else Vocabulary.from_tokenizer(source)


def _warn_without_stops(teacher: Vocabulary, student: Vocabulary) -> None:
    """Warn of a side without stops, unless both sides are lists of token bytes without any."""
    sides = {"teacher": teacher, "student": student}
    if not any(side.stop_ids or side._source is not None for side in sides.values()):
        return
    without = [name for name, side in sides.items() if not side.stop_ids]
    if without:
        warnings.warn(
            f"no token that ends a turn is known of the {' and the '.join(without)}, so ends of "
            "turn are not compared; name them in Aligner(..., stop_tokens=([teacher's], "
            "[student's])), with [] for a side that has none",
            stacklevel=3,
        )
