"""Internal: the interface of all readers, with a table of token bytes and a text encoder.

A reader connects one tokenizer library with the engine. The engine never sees a tokenizer object:
it gets one `TokenTable` per vocabulary, and token ids from `encode_batch`.
"""

from __future__ import annotations

import operator
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from simct_align.token_kind import TokenKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from simct_align.readers.facts import Stops

# The character (U+2581) with which SentencePiece, and tokenizers converted from it, write a space.
META_SPACE = "\u2581"

# The characters of a core's share of one call of a library: far below 0.1 s of work.
_SLICE_CHARACTERS = 1 << 15


@dataclass(frozen=True)
class TokenTable:
    """Every token id of a tokenizer with its exact bytes and kind.

    `TextTokenizer.table` returns it. `Vocabulary.from_tokenizer` is the usual way to read one.

    Attributes:
        token_bytes: The bytes of every id; `b""` for SPECIAL, UNUSED and zero-byte tokens.
        kinds: The `TokenKind` of every id, uint8 `[ids]`.
        dummy_prefix: Whether the tokenizer puts a space before a text that it tokenizes alone.
        special_names: Printable names of the SPECIAL ids.
        stop_sources: Ids that end a turn, as far as they are known, the canonical one first, each
            with the places where it was found. All are SPECIAL.
        notes: Warnings about tokens that were read in another way than the tokenizer says.
    """

    token_bytes: list[bytes]
    kinds: NDArray[np.uint8]
    dummy_prefix: bool
    special_names: dict[int, str]
    stop_sources: dict[int, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end a turn, the canonical one first."""
        return tuple(self.stop_sources)


class TextTokenizer(Protocol):
    """The methods that the package needs of a tokenizer of any library."""

    def table(self, *, special: Collection[str | int] = ()) -> TokenTable:
        """Read the exact bytes and kind of every token id.

        Args:
            special: Names or ids of additional special tokens, which the tokenizer does not flag
                as special. From then on, `encode_batch` does not make them from text either. Each
                call replaces the choice of the previous call.

        Returns:
            The table. Its length is the largest token id plus one.

        Raises:
            UnsupportedTokenizerError: The exact token bytes cannot be read.
            TypeError: `special` is a string, or an entry is neither a name nor an id.
            ValueError: A name or id in `special` is not a token of this tokenizer.

        Complexity:
            O(bytes of all tokens) time and memory.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts without BOS or EOS, truncation and padding.

        Text never becomes a special token: a sampled text `<eos>` stays five characters. The
        tokenizer object from which the reader was opened is never changed.

        Args:
            texts: The texts. Each is tokenized separately.

        Returns:
            The token ids of every text.

        Raises:
            ValueError: Text would become a token that was declared in `table(special=...)`, and
                the library of the tokenizer cannot avoid it.

        Complexity:
            That of the tokenizer's own batch call.
        """
        ...

    def token_id(self, name: str) -> int | None:
        """Look up a token by its printable name, such as `"<|im_end|>"`; None if there is none."""
        ...


def is_a(source: object, package: str, name: str) -> bool:
    """Return whether the class of an object, or a base of it, has this name and package.

    The check does not import the package.
    """
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] == package
        for base in type(source).__mro__
    )


def build_table(
    token_bytes: list[bytes],
    kinds: NDArray[np.uint8],
    *,
    special: Iterable[int],
    name_of: Callable[[int], str],
    stops: Stops,
    dummy_prefix: bool = False,
    notes: Iterable[str] = (),
) -> TokenTable:
    """Mark the given ids as SPECIAL and build the table.

    Args:
        token_bytes: The bytes of every id. The list is changed in place.
        kinds: The kind of every id. The array is changed in place.
        special: All special ids, including ids that already have kind SPECIAL.
        name_of: A function that returns the printable name of a special id.
        stops: Ids that end a turn. All are special.
        dummy_prefix: As in `TokenTable`.
        notes: Warnings, before those about the stops.

    Returns:
        The finished table.
    """
    specials = sorted(set(special))
    for token in specials:
        token_bytes[token] = b""
    kinds[specials] = TokenKind.SPECIAL
    return TokenTable(
        token_bytes=token_bytes,
        kinds=kinds,
        dummy_prefix=dummy_prefix,
        special_names={token: name_of(token) for token in specials},
        stop_sources={token: tuple(places) for token, places in stops.sources.items()},
        notes=(*notes, *stops.notes),
    )


def resolve_special(
    special: Collection[str | int],
    kinds: NDArray[np.uint8],
    token_id: Callable[[str], int | None],
) -> set[int]:
    """Find the ids of the tokens that a caller declared special.

    Args:
        special: Names or ids, as passed to `TextTokenizer.table`.
        kinds: The kind of every id.
        token_id: A function that returns the id of a name, or None.

    Returns:
        The ids.

    Raises:
        ValueError: Entries are not tokens of the tokenizer; the message names all of them.
        TypeError: `special` is a string, or an entry is neither a name nor an id.
    """
    if isinstance(special, str):
        raise TypeError(
            f"special: expected a collection of token names or ids, got the string {special!r}"
        )
    found: set[int] = set()
    unknown: list[str | int] = []
    for entry in special:
        token = token_id(entry) if isinstance(entry, str) else _as_id(entry)
        if token is None or not 0 <= token < len(kinds) or kinds[token] == TokenKind.UNUSED:
            unknown.append(entry)
        else:
            found.add(token)
    if unknown:
        listed = ", ".join(repr(entry) for entry in unknown)
        raise ValueError(
            f"special: no such token: {listed} (this tokenizer has ids 0 to {len(kinds) - 1})"
        )
    return found


def _as_id(entry: object) -> int:
    if isinstance(entry, bool):
        raise TypeError(f"special: expected token names or ids, got {entry!r}")
    try:
        return operator.index(entry)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(
            f"special: expected token names or ids, got {entry!r} of type {type(entry).__name__}"
        ) from None


def encode_in_slices(
    encode: Callable[[list[str]], list[list[int]]], texts: Sequence[str]
) -> list[list[int]]:
    """Tokenize texts with several calls of a library.

    A signal such as Ctrl-C has to wait for the end of a call. Each call gets a text for every core.

    Args:
        encode: The library's call. It tokenizes each text separately.
        texts: The texts.

    Returns:
        The token ids of every text.
    """
    cores = os.cpu_count() or 1
    rows: list[list[int]] = []
    part: list[str] = []
    characters = 0
    for text in texts:
        part.append(text)
        characters += len(text)
        if len(part) >= cores and characters >= cores * _SLICE_CHARACTERS:
            rows += encode(part)
            part, characters = [], 0
    if part:
        rows += encode(part)
    return rows


def refuse_control_tokens(
    rows: Sequence[Sequence[int]], names: Mapping[int, str], texts: Sequence[str]
) -> None:
    """Raise an error if text became a token that was declared special.

    Args:
        rows: The token ids of every text.
        names: The ids that must not occur, with their names.
        texts: The texts, for the message.

    Raises:
        ValueError: Such a token occurs; the message names the token and its text.
    """
    if not names:
        return
    for number, row in enumerate(rows):
        if not names.keys().isdisjoint(row):
            token = next(token for token in row if token in names)
            raise ValueError(
                f"texts[{number}] is encoded with token {token} ({names[token]!r}), which is "
                "declared special, and this tokenizer cannot encode the text without that token; "
                f"change the text or leave the token out of special=: {texts[number][:80]!r}"
            )
