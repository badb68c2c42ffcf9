"""Internal: the reader for `tiktoken.Encoding`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.readers.base import TokenTable, build_table, refuse_control_tokens, resolve_special
from simct_align.token_kind import TokenKind

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class TiktokenTokenizer:
    """A tiktoken encoding, read through its public methods.

    Args:
        encoding: The `tiktoken.Encoding`.
    """

    def __init__(self, encoding: Any) -> None:
        self._encoding = encoding
        self._declared: dict[int, str] = {}

    def table(self, *, special: Collection[str | int] = ()) -> TokenTable:
        """See `TextTokenizer.table`."""
        encoding = self._encoding
        size = encoding.n_vocab
        found = [self._bytes_of(token) for token in range(size)]
        token_bytes = [text or b"" for text in found]
        kinds = np.full(size, TokenKind.NORMAL, dtype=np.uint8)
        # Ids without a token: between the ranks and the special tokens, or between special tokens.
        kinds[[token for token, text in enumerate(found) if text is None]] = TokenKind.UNUSED
        names = {encoding.encode_single_token(name): name for name in encoding.special_tokens_set}
        declared = resolve_special(special, kinds, self.token_id)
        self._declared = {
            token: token_bytes[token].decode(errors="replace") for token in declared - names.keys()
        }
        names.update(self._declared)
        end = self.token_id("<|endoftext|>")
        return build_table(
            token_bytes,
            kinds,
            special=names,
            name_of=names.__getitem__,
            stops=() if end is None else (end,),
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `TextTokenizer.encode_batch`."""
        rows: list[list[int]] = self._encoding.encode_ordinary_batch(list(texts))
        refuse_control_tokens(rows, self._declared, texts)
        return rows

    def token_id(self, name: str) -> int | None:
        """See `TextTokenizer.token_id`; the name of an ordinary token is its text."""
        try:
            token: int = self._encoding.encode_single_token(name)
        except KeyError:
            return None
        return token

    def _bytes_of(self, token: int) -> bytes | None:
        try:
            text: bytes = self._encoding.decode_single_token_bytes(token)
        except KeyError:
            return None
        return text
