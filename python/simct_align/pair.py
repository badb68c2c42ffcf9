"""Internal: a pair of vocabularies and the tables that are computed once for both."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from simct_align import _native
from simct_align.continuations import make_spellings
from simct_align.inputs import integer
from simct_align.text_tree import TextTree, make_text_tree
from simct_align.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Self

    from simct_align.continuations import PairSpellings
    from simct_align.tokenizer_source import TokenizerSource

#: All pairs of this process, the newest last. Several pairs can have the same digest.
_LIVING: weakref.WeakValueDictionary[int, VocabularyPair] = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class SharedVocabulary:
    """The tokens that both sides have, as columns of a loss.

    There is one column per byte string that is a single token on both sides (with canonical ids),
    one per mapped pair of special tokens, and one for all stops together. Columns are sorted by
    teacher id.

    Attributes:
        teacher_ids: The teacher's token of every column, int64 `[columns]`.
        student_ids: The student's token of every column, int64 `[columns]`.
        stop_column: The column of the stops, or −1 if a side has no stops.
        teacher_stop_ids: All stops of the teacher, the canonical one first, int64 `[stops]`. Empty
            if a side has no stops.
        student_stop_ids: All stops of the student, the canonical one first, int64 `[stops]`. Empty
            if a side has no stops.
    """

    teacher_ids: NDArray[np.int64]
    student_ids: NDArray[np.int64]
    stop_column: int
    teacher_stop_ids: NDArray[np.int64]
    student_stop_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.teacher_ids)


class VocabularyPair:
    """A teacher's and a student's vocabulary: the data of an `Aligner`, without the alignment.

    Args:
        teacher: The teacher's vocabulary.
        student: The student's vocabulary.
        special_tokens: As for `Aligner`.
        stop_tokens: As for `Aligner`.

    Raises:
        TypeError: `stop_tokens` is not a pair of sequences, or a token is neither a name nor an
            id.
        ValueError: A token name is unknown, a token is not a special token, or a token is mapped
            twice.

    Complexity:
        O(bytes of all tokens of both vocabularies) time and memory.
    """

    _pair: _native.Pair
    _shared: SharedVocabulary
    #: Whether a batch of this pair had texts that mostly differ: `align` warns once.
    _warned_of_other_texts = False

    def __init__(
        self,
        teacher: Vocabulary,
        student: Vocabulary,
        *,
        special_tokens: Mapping[str | int, str | int] | None = None,
        stop_tokens: tuple[Sequence[str | int], Sequence[str | int]] | None = None,
    ) -> None:
        self._teacher = teacher
        self._student = student
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
                    "stop_tokens: expected two sequences of ids or names, ([teacher's], "
                    f"[student's]), got {stop_tokens!r}"
                )
            stops = [
                [_token_id("stop_tokens", vocabulary, token) for token in side]
                for vocabulary, side in zip(
                    (self._teacher, self._student), stop_tokens, strict=True
                )
            ]
        native = _native.Pair(
            self._teacher._native,
            self._student._native,
            special_tokens=pairs,
            teacher_stops=stops[0],
            student_stops=stops[1],
        )
        self._adopt(native)

    def _adopt(self, native: _native.Pair) -> None:
        """Set the native pair. From then on, unpickled batches find this pair by its digest."""
        self._pair = native
        self._shared = _shared_vocabulary(native)
        _LIVING[id(self)] = self

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

    @cached_property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, of everything that an alignment depends on.

        These are both vocabularies (as in `Vocabulary.digest`), the mapped special tokens and the
        stops, not the tokenizers and not the spellings. The digest is the same in every process,
        and for an aligner that was saved and loaded.
        """
        return self._pair.digest.hex()

    @cached_property
    def spellings(self) -> PairSpellings:
        """The spellings of the one-sided tokens of both sides.

        They are computed on first use and kept with the aligner. From then on, `save` and pickle
        include them. A side that has a tokenizer spells with it; a side without one spells with
        the fewest tokens.
        """
        return make_spellings(self._pair, self._teacher, self._student)

    @cached_property
    def text_tree(self) -> TextTree:
        """The strings that the tokens of both sides begin with, as a tree.

        Made on first use, or by the first `index(text_events=True)`, and kept with the aligner:
        `save` and pickle hold the tree once it has been made.
        """
        return make_text_tree(self._pair)

    def spelling(
        self, token_id: int, *, side: Literal["teacher", "student"] = "teacher"
    ) -> tuple[int, ...] | None:
        """Return the tokens with which the other side writes one token.

        Args:
            token_id: An id of `side`.
            side: The side that has the token, `"teacher"` or `"student"`.

        Returns:
            Ids of the other side: one id for a shared token, and the spelling for a one-sided
            token. `None` for a special token, an unused id, a token without bytes, and a token
            that the other side cannot write.

        Raises:
            IndexError: `token_id` is out of range.
            ValueError: `side` is not `"teacher"` or `"student"`.

        Complexity:
            O(spelling). The first call for a one-sided token computes all spellings of the pair.

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
        """Return the one-sided tokens of the other side that extend a path by one token.

        These are the texts that are a single token on the other side, and whose spelling on
        `side` is `path` and one more token.

        Args:
            path: Ids of `side`, at least one.
            side: The side that spells, `"teacher"` or `"student"`.

        Returns:
            One tuple `(text, ids of side, id of the other side)` per text. The ids of `side` begin
            with `path`. The list is empty if no spelling begins with `path`.

        Raises:
            ValueError: `side` is not `"teacher"` or `"student"`.

        Complexity:
            O(path + texts). The first call computes all spellings of the pair.

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

    def _sides(self, side: str) -> tuple[Vocabulary, Vocabulary]:
        """Return the vocabulary of the named side, then the other one."""
        if side == "teacher":
            return self._teacher, self._student
        if side == "student":
            return self._student, self._teacher
        raise ValueError(f"side: expected 'teacher' or 'student', got {side!r}")

    @cached_property
    def _retokenizer(self) -> _native.Retokenizer:
        return _native.Retokenizer(self._pair)

    @classmethod
    def _from_bytes(
        cls,
        data: bytes,
        teacher_source: TokenizerSource | None,
        student_source: TokenizerSource | None,
    ) -> Self:
        native = _native.Pair.from_bytes(data)
        pair = cls.__new__(cls)
        pair._teacher = Vocabulary(native.teacher, source=teacher_source)
        pair._student = Vocabulary(native.student, source=student_source)
        pair._adopt(native)
        return pair

    def __reduce__(self) -> tuple[object, ...]:
        sources = (self._teacher._source, self._student._source)
        return self._from_bytes, (self._pair.to_bytes(), *sources)


def living_pair(digest: str) -> VocabularyPair | None:
    """Return the newest pair in this process that has a digest.

    Args:
        digest: The digest.

    Returns:
        The pair, or None if this process has no pair with the digest.
    """
    # `valuerefs` copies the list at once: another thread may build a pair in the meantime.
    for reference in reversed(_LIVING.valuerefs()):
        pair = reference()
        if pair is not None and pair.digest == digest:
            return pair
    return None


def _shared_vocabulary(pair: _native.Pair) -> SharedVocabulary:
    column = pair.stop_column
    return SharedVocabulary(*pair.shared_ids, -1 if column is None else column, *pair.stop_ids)


def _token_id(argument: str, vocabulary: Vocabulary, token: str | int) -> int:
    """Return the id of a token that is given by name or id."""
    if not isinstance(token, str):
        token = integer(argument, token, at_least=0)
        if token >= len(vocabulary):
            raise ValueError(
                f"{argument}: id {token} is not in the vocabulary of {len(vocabulary)} tokens"
            )
        return token
    token_id = vocabulary.special_ids.get(token)
    if token_id is None:
        raise ValueError(
            f"{argument}: {token!r} is not a special token of {vocabulary!r}; if the tokenizer "
            "does not flag the token as special, name it in "
            "Vocabulary.from_tokenizer(..., special=[...])"
        )
    return token_id
