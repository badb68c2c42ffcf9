"""Vocabularies: the exact bytes that every token id adds to a text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simct_align import _native
from simct_align.errors import MissingTokenizerError
from simct_align.token_kind import TokenKind
from simct_align.tokenizer_source import TokenizerSource

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from simct_align.readers import TextTokenizer


@dataclass(frozen=True)
class Difference:
    """A text that its tokens do not spell.

    Attributes:
        text: Number of the text.
        byte_offset: Where the two first differ, in bytes.
        expected: The text from there on, at most 40 bytes.
        found: What the tokens spell from there on, at most 40 bytes.
    """

    text: int
    byte_offset: int
    expected: bytes
    found: bytes


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    Attributes:
        texts: How many texts were tokenized.
        differences: The texts that their tokens do not spell, the first difference of each.
    """

    texts: int
    differences: tuple[Difference, ...]

    @property
    def exact(self) -> bool:
        """Whether the tokens of every text spell it byte for byte."""
        return not self.differences


class Vocabulary:
    """Token id -> token bytes and kind, read from a real tokenizer or given by hand.

    Build one with `from_tokenizer` or `from_token_bytes`. Ids are `0` to
    `len(vocabulary) - 1`.

    Example:
        >>> vocabulary = Vocabulary.from_token_bytes([b"ab", b" c", b""], special={2: "<eos>"})
        >>> vocabulary.decode_bytes([0, 1, 2])
        b'ab c'
        >>> vocabulary.special_ids
        {'<eos>': 2}
    """

    def __init__(
        self, native: _native.Vocabulary, *, source: TokenizerSource | None = None
    ) -> None:
        self._native = native
        self._source = source

    @classmethod
    def from_tokenizer(
        cls,
        source: object,
        *,
        vocab_size: int | None = None,
        special: Collection[str | int] = (),
    ) -> Vocabulary:
        """Reads the exact bytes of every token from a tokenizer.

        Args:
            source: A `tokenizers.Tokenizer`; a fast `transformers` tokenizer; a path to a
                `tokenizer.json`, `tokenizer.json.gz`, SentencePiece `.model` or
                `tekken.json`, or to a directory with one of them; a hub id (needs
                `transformers`; remote code is never run); a `tiktoken.Encoding`; a
                SentencePiece processor; a `mistral_common` tokenizer.
            vocab_size: Rows of the model's embedding. Ids from the tokenizer's own length up to
                it become `UNUSED`.
            special: Names or ids of further control tokens that the tokenizer does not flag as
                special.

        Returns:
            The vocabulary; it keeps the tokenizer for the methods that need one.

        Raises:
            UnsupportedTokenizerError: A part of the tokenizer stands in the way of exact bytes.
            TypeError: `source` is none of the above.
            ValueError: `vocab_size` is smaller than the tokenizer, or a name of `special` is
                unknown.

        Complexity:
            O(bytes of all tokens) time and memory.

        Example:
            >>> from simct_align.demo import demo_tokenizers
            >>> teacher, _ = demo_tokenizers()
            >>> vocabulary = Vocabulary.from_tokenizer(teacher)
            >>> vocabulary.decode_bytes(vocabulary.encode_batch(["naïve"])[0]).decode()
            'naïve'
        """
        from simct_align.readers import open_tokenizer

        tokenizer = open_tokenizer(source)
        table = tokenizer.table(special=special)
        found = len(table.token_bytes)
        if vocab_size is not None and vocab_size < found:
            raise ValueError(
                f"vocab_size is {vocab_size}, but the tokenizer has ids up to {found - 1}"
            )
        kinds = np.full(max(found, vocab_size or 0), TokenKind.UNUSED, np.uint8)
        kinds[:found] = table.kinds
        native = _build(
            table.token_bytes,
            kinds,
            dummy_prefix=table.dummy_prefix,
            special_names=table.special_names,
            stop_ids=table.stop_ids,
        )
        return cls(native, source=TokenizerSource(source, special=special, opened=tokenizer))

    @classmethod
    def from_token_bytes(
        cls,
        token_bytes: Sequence[bytes],
        *,
        special: Mapping[int, str] | Iterable[int] = (),
        byte_fallback: Iterable[int] = (),
        unused: Iterable[int] = (),
        dummy_prefix: bool = False,
        stop_ids: Sequence[int] = (),
    ) -> Vocabulary:
        r"""Builds a vocabulary by hand.

        Args:
            token_bytes: The bytes of every id, in order; empty for special and unused ids.
            special: Ids of control tokens, with or without their names.
            byte_fallback: Ids of byte fallbacks; each is one byte.
            unused: Ids without a token.
            dummy_prefix: The tokenizer puts a space in front of a text that is tokenized alone.
            stop_ids: The special ids that end a turn, the canonical one first.

        Returns:
            The vocabulary, without a tokenizer.

        Raises:
            ValueError: An id is out of range, special or unused and has bytes, a byte fallback
                and not one byte, or a stop and not special.

        Complexity:
            O(bytes of all tokens) time and memory.

        Example:
            >>> len(Vocabulary.from_token_bytes([b"a", b"b", b"\n"], byte_fallback=[2]))
            3
        """
        from collections.abc import Mapping

        names = (
            {int(i): str(name) for i, name in special.items()}
            if isinstance(special, Mapping)
            else {}
        )
        ids_by_kind = {
            TokenKind.SPECIAL: names or special,
            TokenKind.BYTE: byte_fallback,
            TokenKind.UNUSED: unused,
        }
        kinds = np.full(len(token_bytes), TokenKind.NORMAL, np.uint8)
        for kind, ids in ids_by_kind.items():
            for token_id in ids:
                if not 0 <= token_id < len(token_bytes):
                    raise ValueError(
                        f"{kind.name.lower()} id {token_id} is not in the vocabulary of "
                        f"{len(token_bytes)} tokens"
                    )
                kinds[token_id] = kind
        return cls(
            _build(
                token_bytes,
                kinds,
                dummy_prefix=dummy_prefix,
                special_names=names,
                stop_ids=stop_ids,
            )
        )

    def __len__(self) -> int:
        return len(self._native)

    def __repr__(self) -> str:
        return f"<Vocabulary of {len(self):,} tokens, digest {self.digest[:12]}>"

    @property
    def kinds(self) -> NDArray[np.uint8]:
        """The `TokenKind` of every id, uint8 `[len(vocabulary)]`."""
        return self._native.kinds

    @property
    def canonical_ids(self) -> NDArray[np.int64]:
        """For every id the canonical id of its bytes, int64 `[len(vocabulary)]`.

        Of several ids with the same bytes it is the one that is not a byte fallback, then the
        smallest; an id without bytes is its own.
        """
        return self._native.canonical_ids

    @property
    def digest(self) -> str:
        """SHA-256 of all tokens, in hexadecimal: equal digests, equal tokens under equal ids.

        Stops and the unused ids behind the last token, which pad a model's output, take no part.
        """
        return self._native.digest.hex()

    @property
    def dummy_prefix(self) -> bool:
        """Whether the tokenizer puts a space in front of a text that is tokenized alone."""
        return self._native.dummy_prefix

    @property
    def special_names(self) -> dict[int, str]:
        """Special id -> printable name, where known."""
        return self._native.special_names

    @property
    def special_ids(self) -> dict[str, int]:
        """Printable name -> special id, where known."""
        return {name: token_id for token_id, name in self.special_names.items()}

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The special ids that end a turn, the canonical one first; empty if not known."""
        return tuple(self._native.stop_ids)

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """The tokenizer that the vocabulary was read from, if any; opened on first use."""
        return None if self._source is None else self._source.open()

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds to a text; empty for special and unused ids.

        Args:
            token_id: An id, `0` to `len(vocabulary) - 1`.

        Raises:
            IndexError: The id is out of range.
        """
        if not 0 <= token_id < len(self):
            raise IndexError(f"token id {token_id} is not in the vocabulary of {len(self)} tokens")
        return self._native.token_bytes(token_id)

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        """The bytes of all ids, one after another.

        Args:
            ids: Integers `[n]`.

        Raises:
            IndexError: An id is out of range.
            TypeError: Not integers.

        Complexity:
            O(n + bytes).
        """
        array = np.asarray(ids)
        if array.size == 0:
            return b""
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise TypeError(
                f"ids: expected a one-dimensional sequence of integers, got {array.dtype} of "
                f"rank {array.ndim}"
            )
        return self._native.decode_bytes(np.ascontiguousarray(array, np.int64))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenizes texts as text alone: no BOS or EOS, and control tokens stay text.

        Args:
            texts: Any number of texts.

        Returns:
            One list of ids for each.

        Raises:
            MissingTokenizerError: The vocabulary has no tokenizer.
        """
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise MissingTokenizerError(
                "this vocabulary has no tokenizer: read it with Vocabulary.from_tokenizer, or "
                "give teacher_tokenizer=/student_tokenizer= to Aligner.load"
            )
        return tokenizer.encode_batch(texts)

    def with_tokenizer(self, source: object) -> Vocabulary:
        """The same vocabulary with a tokenizer, which is opened and checked on first use.

        Args:
            source: Anything that `from_tokenizer` takes.

        Returns:
            A vocabulary over the same tokens. Its methods that tokenize raise `ValueError` if
            the tokenizer turns out to have other tokens.
        """

        def check(tokenizer: TextTokenizer) -> None:
            table = tokenizer.table(special=list(self.special_names))
            same = np.array_equal(self.kinds[: len(table.kinds)], table.kinds)
            if same:
                theirs = _build(
                    table.token_bytes,
                    table.kinds,
                    dummy_prefix=table.dummy_prefix,
                    special_names=self.special_names,
                    stop_ids=(),
                )
                same = theirs.digest == self._native.digest
            if not same:
                raise ValueError(
                    f"the tokenizer has other tokens ({len(table.kinds):,}), or another dummy "
                    f"prefix, than this vocabulary ({len(self):,}, digest {self.digest[:12]}) was "
                    f"made from"
                )

        return Vocabulary(
            self._native,
            source=TokenizerSource(source, special=list(self.special_names), check=check),
        )

    def verify(self, texts: Sequence[str]) -> VerifyReport:
        """Tokenizes texts and reports where the tokens do not spell the text.

        Normalization (NFC, lower-casing, a dummy prefix) is a fact to know before one aligns,
        not an error: where only one side normalizes, the differing stretches are unmatched.

        Args:
            texts: Any number of texts.

        Returns:
            The number of texts, and the first difference of each that differs.

        Raises:
            MissingTokenizerError: The vocabulary has no tokenizer.

        Complexity:
            That of tokenizing.

        Example:
            >>> from simct_align.demo import demo_tokenizers
            >>> Vocabulary.from_tokenizer(demo_tokenizers()[0]).verify(["12 + 3 = 15"]).exact
            True
        """
        differences = []
        for number, (text, ids) in enumerate(zip(texts, self.encode_batch(texts), strict=True)):
            expected, found = text.encode("utf-8", "surrogatepass"), self.decode_bytes(ids)
            if expected != found:
                offset = _common_prefix(expected, found)
                rest = slice(offset, offset + 40)
                differences.append(Difference(number, offset, expected[rest], found[rest]))
        return VerifyReport(len(texts), tuple(differences))


def _common_prefix(left: bytes, right: bytes) -> int:
    """How many leading bytes are equal, by bisection: each step compares in C."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[:middle] == right[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _build(
    token_bytes: Sequence[bytes],
    kinds: NDArray[np.uint8],
    *,
    dummy_prefix: bool,
    special_names: dict[int, str],
    stop_ids: Sequence[int],
) -> _native.Vocabulary:
    """Builds the native vocabulary; ids without an entry in `token_bytes` have no bytes."""
    offsets = np.zeros(len(kinds) + 1, np.int64)
    lengths = np.fromiter(map(len, token_bytes), np.int64, len(token_bytes))
    np.cumsum(lengths, out=offsets[1 : len(lengths) + 1])
    offsets[len(lengths) + 1 :] = offsets[len(lengths)]
    return _native.Vocabulary(
        b"".join(token_bytes),
        offsets,
        kinds,
        dummy_prefix=dummy_prefix,
        special_names=special_names,
        stop_ids=[int(stop) for stop in stop_ids],
    )
