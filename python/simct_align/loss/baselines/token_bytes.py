"""Internal: tables over the bytes of all tokens, made once per pair of vocabularies.

A *place* is the number of a byte among the bytes of all tokens of a vocabulary, token after token:
byte n of token v is at place `start[v] + n`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simct_align import _native

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from simct_align.vocabulary import Vocabulary

    Longs = NDArray[np.int64]


class TokenBytes:
    """The bytes of all tokens of a vocabulary.

    Args:
        vocabulary: The vocabulary.

    Attributes:
        text: The bytes of all tokens, in the order of ids.
        length: `[vocabulary]` number of bytes of every token.
        start: `[vocabulary]` place of every token's first byte.
        canonical_ids: `[vocabulary]` canonical id of every token.
        trie: The distinct texts, sorted by their bytes.
        rank: `[vocabulary]` number of the token's text among the distinct texts, sorted by their
            bytes; -1 for a token without bytes.

    Complexity:
        O(bytes + tokens log tokens) time, O(bytes) memory.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        native = vocabulary._native
        size = len(native)
        self.text = native.decode_bytes(np.arange(size))
        self.length: Longs = np.fromiter(
            (len(native.token_bytes(i)) for i in range(size)), np.int64
        )
        self.start: Longs = np.cumsum(self.length) - self.length
        self.canonical_ids: Longs = native.canonical_ids
        self.trie = _native.ByteTrie(native)
        by_bytes = self.trie.with_prefix(b"")
        rank = np.full(size, -1, np.int64)
        rank[by_bytes] = np.arange(len(by_bytes))
        self.rank: Longs = rank[self.canonical_ids]

    @property
    def end(self) -> Longs:
        """The place after every token's last byte, `[vocabulary]`."""
        return self.start + self.length

    def longest_begins(self, student: TokenBytes) -> Longs:
        """Return the longest student token that begins what is left of a token at every place.

        Args:
            student: The student's tokens.

        Returns:
            `[places]` ids, -1 where no token does.

        Complexity:
            O(places) look-ups in the student's trie: about a second for 250,000 tokens.
        """
        places = np.arange(len(self.text))
        return student.trie.longest_prefixes(self.text, places, np.repeat(self.end, self.length))


class Events(NamedTuple):
    """What a student's token says about the text, as numbers of events.

    An event is a text of a student's token, all stops together, or another token without bytes.
    One more event is the *residual*: teacher tokens that no student token begins.

    Attributes:
        of_student: `[student vocabulary]` event of every student token.
        of_teacher: `[teacher vocabulary]` event of every teacher token at the start of a unit:
            that of the longest student token that begins the token, of the student's token for a
            mapped special token, or the residual.
        residual: The number of the residual, which is the last event.
    """

    of_student: Longs
    of_teacher: Longs
    residual: int


def make_events(aligner: Any, longest: Longs) -> Events:
    """Return the events of a pair of vocabularies.

    Args:
        aligner: The pair.
        longest: `[teacher vocabulary]` the longest student token that begins every teacher token,
            -1 where no token does.

    Returns:
        The events.

    Complexity:
        O(vocabulary log vocabulary) time.
    """
    shared = aligner.shared
    representative = aligner.student.canonical_ids.copy()
    has_stops = shared.stop_column >= 0
    if has_stops:
        representative[shared.student_stop_ids] = shared.student_ids[shared.stop_column]
    numbers, of_student = np.unique(representative, return_inverse=True)
    residual = len(numbers)
    of_teacher = np.append(of_student, residual)[longest]
    of_teacher[shared.teacher_ids] = of_student[shared.student_ids]
    if has_stops:
        of_teacher[shared.teacher_stop_ids] = of_student[shared.student_stop_ids[0]]
    return Events(of_student, of_teacher, residual)
