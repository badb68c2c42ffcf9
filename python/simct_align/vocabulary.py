"""Internal: `Vocabulary`, the exact bytes that every token id adds to a text."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, AnyStr

import numpy as np

from simct_align import _native
from simct_align.errors import MissingTokenizerError
from simct_align.inputs import read_row
from simct_align.limits import MAX_TOKENS
from simct_align.token_kind import TokenKind
from simct_align.tokenizer_source import TokenizerSource

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from simct_align.readers import TextTokenizer, TokenTable


@dataclass(frozen=True)
class Difference:
    """The first difference between a text and the bytes of its tokens.

    Attributes:
        text: Number of the text.
        byte_offset: Offset of the first different byte.
        expected: The bytes of the text from `byte_offset` on, at most 40.
        found: The bytes of the tokens from `byte_offset` on, at most 40.
    """

    text: int
    byte_offset: int
    expected: bytes
    found: bytes


@dataclass(frozen=True)
class VerifyReport:
    """The result of `Vocabulary.verify`.

    Attributes:
        texts: Number of texts that were tokenized.
        differences: The first difference of every text whose tokens have other bytes.
    """

    texts: int
    differences: tuple[Difference, ...]

    @property
    def exact(self) -> bool:
        """Whether the tokens of every text have exactly the bytes of the text."""
        return not self.differences


class Vocabulary:
    """The token bytes and the kind of every token id, read from a tokenizer or given as lists.

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
        self,
        native: _native.Vocabulary,
        *,
        source: TokenizerSource | None = None,
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
        pattern: str | None = None,
        control_tokens: Mapping[str, int] | None = None,
    ) -> Vocabulary:
        """Read the exact bytes of every token from a tokenizer.

        The stops are the union of what the chat template ends a turn with, `eos_token` of the
        tokenizer object, of `special_tokens_map.json` and of `tokenizer_config.json`,
        `eos_token_id` of `config.json` and of `generation_config.json`, and the default of the
        tokenizer's class, in this order. The files are those in the directory of the tokenizer
        file, or in that from which an object was loaded. `stop_sources` says where each stop was
        found.

        Args:
            source: A `tokenizers.Tokenizer`; a `transformers` tokenizer that is fast, reads bytes
                (ByT5) or wraps a `tiktoken.Encoding`; a path to a `tokenizer.json`,
                `tokenizer.json.gz`, SentencePiece `.model`, `tekken.json` or tiktoken rank file,
                or to a directory with one of them; a hub id (needs `transformers`; its tokenizer
                file is read like that of a directory, and remote code is never run); a
                `tiktoken.Encoding`; a SentencePiece processor; a `mistral_common` tokenizer.
            vocab_size: Number of rows of the model's embedding. Ids from the length of the
                tokenizer up to `vocab_size` become `UNUSED`. The default is the length of the
                tokenizer.
            special: Names or ids of additional special tokens, which the tokenizer does not flag
                as special.
            pattern: For a rank file only: the regular expression that cuts text into words, as in
                `tiktoken.Encoding`.
            control_tokens: For a rank file only: the ids of the special tokens by name. The default
                is what `tokenizer_config.json` beside the file lists.

        Returns:
            The vocabulary. It keeps the tokenizer for the methods that tokenize.

        Raises:
            UnsupportedTokenizerError: The exact token bytes cannot be read.
            TypeError: `source` is not one of the supported tokenizers.
            ValueError: `vocab_size` is smaller than the length of the tokenizer, an entry of
                `special` is not a token, an id is above 2^24 − 2, or a file is not a readable
                tokenizer or has more than 256 MiB (the environment variable
                `SIMCT_ALIGN_MAX_FILE_BYTES` sets another limit).
            OSError: A file or hub id cannot be found or read.
            ImportError: The library that the tokenizer needs is not installed.

        Warns:
            UserWarning: The chat template shows special tokens that the tokenizer does not flag, or
                a configuration names a stop that is no control token.

        Complexity:
            O(bytes of all tokens) time and memory.

        Example:
            >>> from simct_align.demo import demo_tokenizers
            >>> teacher, _ = demo_tokenizers()
            >>> vocabulary = Vocabulary.from_tokenizer(teacher)
            >>> vocabulary.decode_bytes(vocabulary.encode_batch(["naïve"])[0]).decode()
            'naïve'
        """
        from simct_align.readers import open_ranks, open_tokenizer

        tokenizer: TextTokenizer
        if pattern is None and control_tokens is None:
            tokenizer = open_tokenizer(source)
        else:
            ranks = open_ranks(source, pattern=pattern, control_tokens=control_tokens)
            tokenizer, source = ranks, ranks.encoding
        table = tokenizer.table(special=special)
        for note in table.notes:
            warnings.warn(note, stacklevel=2)
        found = len(table.token_bytes)
        if vocab_size is not None and vocab_size < found:
            raise ValueError(
                f"vocab_size is {vocab_size}, expected at least {found}: the tokenizer has ids up "
                f"to {found - 1}"
            )
        if vocab_size is not None and vocab_size > MAX_TOKENS:
            raise ValueError(f"vocab_size is {vocab_size}, expected at most {MAX_TOKENS}")
        kinds = np.full(max(found, vocab_size or 0), TokenKind.UNUSED, np.uint8)
        kinds[:found] = table.kinds
        native = _build(
            table.token_bytes,
            kinds,
            dummy_prefix=table.dummy_prefix,
            special_names=table.special_names,
            stop_ids=table.stop_ids,
            stop_sources=table.stop_sources,
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
        r"""Build a vocabulary from a list of token bytes.

        Args:
            token_bytes: The bytes of every id, in order of ids. Special and unused ids have empty
                bytes.
            special: Ids of special tokens: a mapping from ids to names, or ids without names.
            byte_fallback: Ids of byte fallbacks. Each of them has one byte.
            unused: Ids without a token.
            dummy_prefix: Whether the tokenizer puts a space before a text that it tokenizes alone.
            stop_ids: The special ids that end a turn, the canonical one first.

        Returns:
            The vocabulary, without a tokenizer.

        Raises:
            ValueError: An id is out of range, a special or unused id has bytes, a byte fallback
                does not have one byte, or a stop is not a special token.

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
                if kinds[token_id] not in (TokenKind.NORMAL, kind):
                    raise ValueError(
                        f"id {token_id} is given as {TokenKind(kinds[token_id]).name.lower()} and "
                        f"as {kind.name.lower()}, expected one kind"
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
        """The canonical id of every id, int64 `[len(vocabulary)]`.

        Of several ids with the same bytes, the canonical one is the smallest that is not a byte
        fallback, or the smallest if all are byte fallbacks. An id without bytes is its own
        canonical id.
        """
        return self._native.canonical_ids

    @property
    def digest(self) -> str:
        """SHA-256 of all tokens, in hexadecimal: equal digests mean equal tokens with equal ids.

        The digest does not depend on the stops, nor on the unused ids after the last token, which
        pad the output of a model.
        """
        return self._native.digest.hex()

    @property
    def dummy_prefix(self) -> bool:
        """Whether the tokenizer puts a space before a text that it tokenizes alone."""
        return self._native.dummy_prefix

    @property
    def special_names(self) -> dict[int, str]:
        """The names of the special ids, as far as they are known."""
        return self._native.special_names

    @property
    def special_ids(self) -> dict[str, int]:
        """The special ids by name, as far as the names are known.

        Of several ids with one name it has the smallest.
        """
        descending = sorted(self.special_names.items(), reverse=True)
        return {name: token_id for token_id, name in descending}

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The special ids that end a turn, the canonical one first; empty if none is known."""
        return tuple(self._native.stop_ids)

    @property
    def stop_sources(self) -> dict[int, tuple[str, ...]]:
        """Where each stop was found, such as `"generation_config.json"`, in the order of the stops.

        Empty tuples for a vocabulary that was not read from a tokenizer. A saved or pickled
        aligner keeps the places.
        """
        found = self._native.stop_sources
        return {stop: tuple(found.get(stop, ())) for stop in self.stop_ids}

    @property
    def tokenizer(self) -> TextTokenizer | None:
        """The tokenizer of the vocabulary, or None; a saved source is opened on first use."""
        return None if self._source is None else self._source.open()

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that one token adds to a text.

        Args:
            token_id: An id, `0` to `len(vocabulary) - 1`.

        Returns:
            The bytes; empty for special and unused ids.

        Raises:
            IndexError: The id is out of range.
        """
        if not 0 <= token_id < len(self):
            raise IndexError(f"token id {token_id} is not in the vocabulary of {len(self)} tokens")
        return self._native.token_bytes(token_id)

    def decode_bytes(self, ids: object) -> bytes:
        """Return the bytes of a sequence of ids, concatenated.

        Args:
            ids: Integers `[n]`: a sequence, or a 1-D array.

        Returns:
            The bytes. Special and unused ids add none.

        Raises:
            IndexError: An id is out of range.
            TypeError: `ids` is not a one-dimensional sequence of integers.

        Complexity:
            O(n + bytes) time.
        """
        return self._native.decode_bytes(read_row("ids", ids).astype(np.int64, copy=False))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts without special tokens.

        No BOS or EOS is added, and the name of a special token in a text stays text.

        Args:
            texts: Any number of texts.

        Returns:
            One list of ids per text.

        Raises:
            MissingTokenizerError: The vocabulary has no tokenizer.
            ValueError: The tokenizer of `with_tokenizer` has other tokens than this vocabulary, or
                the tokenizer cannot avoid a special token in a text.

        Complexity:
            That of the tokenizer's own batch call.
        """
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise MissingTokenizerError(
                "this vocabulary has no tokenizer: read it with Vocabulary.from_tokenizer, or "
                "pass teacher_tokenizer= or student_tokenizer= to Aligner.load"
            )
        return tokenizer.encode_batch(texts)

    def with_tokenizer(self, source: object) -> Vocabulary:
        """Return the same vocabulary with a tokenizer.

        The tokenizer is opened and checked on first use.

        Args:
            source: Any source that `from_tokenizer` reads, or a `Vocabulary` with a tokenizer.

        Returns:
            A vocabulary with the same tokens. On first use, its methods that tokenize raise
            `ValueError` if the tokenizer has other tokens. The message names the first of them.

        Raises:
            MissingTokenizerError: `source` is a vocabulary without a tokenizer.
        """
        if isinstance(source, Vocabulary):
            if source._source is None:
                raise MissingTokenizerError(
                    "with_tokenizer: the given vocabulary has no tokenizer itself"
                )
            source = source._source.source

        def check(tokenizer: TextTokenizer) -> None:
            try:
                table = tokenizer.table(special=list(self.special_names))
            except ValueError:  # it lacks one of them, as the comparison tells
                table = tokenizer.table()
            if self._agrees_with(table):
                return
            raise ValueError(
                f"the tokenizer has other tokens, or another dummy prefix, than this vocabulary "
                f"(digest {self.digest[:12]}): {_first_difference(self, table)}; pass the "
                "tokenizer from which the vocabulary was read"
            )

        return Vocabulary(
            self._native,
            source=TokenizerSource(source, special=list(self.special_names), check=check),
        )

    def _agrees_with(self, table: TokenTable) -> bool:
        if not np.array_equal(self.kinds[: len(table.kinds)], table.kinds):
            return False
        names = self.special_names.items()
        theirs = _build(
            table.token_bytes,
            table.kinds,
            dummy_prefix=table.dummy_prefix,
            special_names={token: name for token, name in names if token < len(table.kinds)},
            stop_ids=(),
        )
        return theirs.digest == self._native.digest

    def verify(self, texts: Sequence[str]) -> VerifyReport:
        """Tokenize texts and report where the tokens do not have the bytes of the text.

        A difference is not an error. It shows that the tokenizer normalizes text (NFC,
        lower-casing, a dummy prefix). Where only one side normalizes, the differing tokens are
        unmatched in an alignment.

        Args:
            texts: Any number of texts.

        Returns:
            The number of texts, and the first difference of every text that has one.

        Raises:
            MissingTokenizerError: The vocabulary has no tokenizer.

        Complexity:
            That of tokenization.

        Example:
            >>> from simct_align.demo import demo_tokenizers
            >>> Vocabulary.from_tokenizer(demo_tokenizers()[0]).verify(["12 + 3 = 15"]).exact
            True
        """
        differences = []
        for number, (text, ids) in enumerate(zip(texts, self.encode_batch(texts), strict=True)):
            expected, found = text.encode("utf-8", "surrogatepass"), self.decode_bytes(ids)
            if expected != found:
                offset = common_prefix(expected, found)
                rest = slice(offset, offset + 40)
                differences.append(Difference(number, offset, expected[rest], found[rest]))
        return VerifyReport(len(texts), tuple(differences))


def _first_difference(vocabulary: Vocabulary, table: TokenTable) -> str:
    """Describe the first token that a tokenizer has otherwise than a vocabulary."""
    sizes = (len(vocabulary), len(table.kinds))
    kinds = np.full((2, max(sizes)), TokenKind.UNUSED, np.uint8)
    kinds[0, : sizes[0]], kinds[1, : sizes[1]] = vocabulary.kinds, table.kinds
    different = np.flatnonzero(kinds[0] != kinds[1]).tolist()
    own = map(vocabulary._native.token_bytes, range(sizes[0]))
    texts = enumerate(zip(own, table.token_bytes, strict=False))
    different += [token for token, (left, right) in texts if left != right][:1]
    if not different:
        found = "puts" if table.dummy_prefix else "does not put"
        return f"the tokens are the same, but the tokenizer {found} a space before a text"
    first = min(different)

    def shown(side: int, text: bytes) -> str:
        return f"{TokenKind(int(kinds[side, first])).name} {text!r}"

    here = vocabulary.token_bytes(first) if first < sizes[0] else b""
    there = table.token_bytes[first] if first < sizes[1] else b""
    return (
        f"the first that differs is id {first}, {shown(0, here)} in the vocabulary and "
        f"{shown(1, there)} in the tokenizer"
    )


def common_prefix(left: AnyStr, right: AnyStr) -> int:
    """Count the equal leading bytes or characters, by bisection: each step compares in C."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
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
    stop_sources: Mapping[int, Sequence[str]] | None = None,
) -> _native.Vocabulary:
    """Build the native vocabulary; ids without an entry in `token_bytes` have no bytes."""
    offsets = np.zeros(len(kinds) + 1, np.int64)
    lengths = np.fromiter(map(len, token_bytes), np.int64, len(token_bytes))
    np.cumsum(lengths, out=offsets[1 : len(lengths) + 1])
    offsets[len(lengths) + 1 :] = offsets[len(lengths)]
    return _native.Vocabulary(
        # `join` takes 80 bytes for every entry, and a file of one token may have the largest id.
        b"".join(filter(None, token_bytes)),
        offsets,
        kinds,
        dummy_prefix=dummy_prefix,
        special_names=special_names,
        stops=[(int(stop), list((stop_sources or {}).get(stop, ()))) for stop in stop_ids],
    )
