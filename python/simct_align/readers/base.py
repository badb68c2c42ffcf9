"""What every reader gives: a table of token bytes, and a text encoder.

A reader stands between one tokenizer library and the engine. The engine never sees a tokenizer
object: it gets a `TokenTable` once per vocabulary, and token ids from `encode_batch`.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from simct_align.token_kind import TokenKind

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

# SentencePiece's stand-in for a space (U+2581), also used by tokenizers converted from it.
META_SPACE = "\u2581"


@dataclass(frozen=True)
class TokenTable:
    """Every token id of a tokenizer with its exact bytes and kind.

    Made by `TextTokenizer.table`; `Vocabulary.from_tokenizer` is the usual way to one.

    Attributes:
        token_bytes: Index is the token id; `b""` for SPECIAL, UNUSED and zero-byte tokens.
        kinds: `TokenKind` values, uint8, one per id.
        dummy_prefix: Whether the encoder puts a space in front of a text tokenized alone.
        special_names: Printable names of the SPECIAL ids.
        stop_ids: Ids that end a turn, where known, the canonical one first; all are SPECIAL.
    """

    token_bytes: list[bytes]
    kinds: NDArray[np.uint8]
    dummy_prefix: bool
    special_names: dict[int, str]
    stop_ids: tuple[int, ...]


class TextTokenizer(Protocol):
    """What the package needs of a tokenizer, whichever library it comes from."""

    def table(self, *, special: Collection[str | int] = ()) -> TokenTable:
        """Read the exact bytes and kind of every token id.

        Args:
            special: Names or ids of further tokens to treat as control tokens, although the
                tokenizer does not flag them. `encode_batch` then keeps clear of them, too;
                each call replaces the choice of the call before.

        Returns:
            The table. Its length is the largest token id plus one.

        Raises:
            UnsupportedTokenizerError: If the token bytes cannot be read exactly.
            ValueError: If a name or id in `special` is no token of this tokenizer.

        Complexity:
            O(bytes of all tokens) time and memory.
        """
        ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts, adding nothing: no BOS or EOS, no truncation, no padding.

        Text never becomes a control token: a sampled `<eos>` stays five characters. The
        tokenizer object that the reader was opened with is never changed.

        Args:
            texts: The texts, each tokenized for itself.

        Returns:
            The token ids of every text.

        Raises:
            ValueError: If a token declared in `table(special=...)` would come from text, and
                the tokenizer's library has no way to avoid it.

        Complexity:
            That of the tokenizer's own batch call.
        """
        ...

    def token_id(self, name: str) -> int | None:
        """Look up a token by its printable name (`"<|im_end|>"`), None if there is none."""
        ...


def build_table(
    token_bytes: list[bytes],
    kinds: NDArray[np.uint8],
    *,
    special: Iterable[int],
    name_of: Callable[[int], str],
    stops: Sequence[int] = (),
    dummy_prefix: bool = False,
) -> TokenTable:
    """Turn the given ids into SPECIAL ones and close the table.

    Args:
        token_bytes: The bytes of every id; changed in place.
        kinds: The kind of every id before that; changed in place.
        special: All control tokens, those already of kind SPECIAL included.
        name_of: Printable name of a special id.
        stops: Ids that end a turn; the ones that are no SPECIAL token are left out.
        dummy_prefix: See `TokenTable`.

    Returns:
        The finished table.
    """
    specials = sorted(set(special))
    for token in specials:
        token_bytes[token] = b""
    kinds[specials] = TokenKind.SPECIAL
    kept = set(specials)
    return TokenTable(
        token_bytes=token_bytes,
        kinds=kinds,
        dummy_prefix=dummy_prefix,
        special_names={token: name_of(token) for token in specials},
        stop_ids=tuple(token for token in dict.fromkeys(stops) if token in kept),
    )


def stop_ids(stops: Iterable[str | int], token_id: Callable[[str], int | None]) -> list[int]:
    """Give the ids of the stops that exist; a configuration may name others.

    Args:
        stops: Names or ids.
        token_id: Look-up of names.

    Returns:
        The ids, in order.
    """
    ids = (token_id(stop) if isinstance(stop, str) else stop for stop in stops)
    return [token for token in ids if token is not None]


def resolve_special(
    special: Collection[str | int],
    kinds: NDArray[np.uint8],
    token_id: Callable[[str], int | None],
) -> set[int]:
    """Find the ids of the tokens that a caller declared special.

    Args:
        special: Names or ids, as passed to `TextTokenizer.table`.
        kinds: The kind of every id.
        token_id: Look-up of names.

    Returns:
        The ids.

    Raises:
        ValueError: Naming all entries that are no token of the tokenizer.
        TypeError: If `special` is a single string, or an entry is neither a name nor an id.
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


def refuse_control_tokens(
    rows: Sequence[Sequence[int]], names: Mapping[int, str], texts: Sequence[str]
) -> None:
    """Raise if encoding turned text into a token that was declared special.

    Args:
        rows: Token ids of each text.
        names: The ids that must not occur, with their names.
        texts: The texts, for the message.

    Raises:
        ValueError: Naming the token and where it came from.
    """
    if not names:
        return
    for number, row in enumerate(rows):
        if not names.keys().isdisjoint(row):
            token = next(token for token in row if token in names)
            raise ValueError(
                f"texts[{number}] is encoded with token {token} ({names[token]!r}), which is "
                "declared special, and this tokenizer offers no way to spell that text otherwise: "
                f"{texts[number][:80]!r}"
            )
