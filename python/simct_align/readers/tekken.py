"""Internal: the reader for Mistral's Tekken tokenizer, an object or file of `mistral_common`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.readers.base import (
    TokenTable,
    build_table,
    refuse_control_tokens,
    resolve_special,
    stop_ids,
)
from simct_align.token_kind import TokenKind

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class TekkenTokenizer:
    """A Tekken tokenizer: special tokens first, then byte-pair tokens.

    Args:
        tekkenizer: The `mistral_common` `Tekkenizer`.
        stops: Names or ids of tokens that end a turn, in addition to EOS. Tokens that are not
            special are left out.
    """

    def __init__(self, tekkenizer: Any, *, stops: Sequence[str | int] = ()) -> None:
        self._tekkenizer = tekkenizer
        self._stops = stops
        self._declared: dict[int, str] = {}

    def table(self, *, special: Collection[str | int] = ()) -> TokenTable:
        """See `TextTokenizer.table`."""
        tekkenizer = self._tekkenizer
        first = tekkenizer.num_special_tokens
        token_bytes = [b""] * first
        token_bytes += [
            tekkenizer.id_to_byte_piece(token) for token in range(first, tekkenizer.n_words)
        ]
        kinds = np.full(len(token_bytes), TokenKind.NORMAL, dtype=np.uint8)
        flagged = set(range(first))
        declared = resolve_special(special, kinds, self.token_id) - flagged
        self._declared = {token: tekkenizer.id_to_piece(token) for token in declared}
        return build_table(
            token_bytes,
            kinds,
            special=flagged | declared,
            name_of=tekkenizer.id_to_piece,
            stops=[*stop_ids(self._stops, self.token_id), tekkenizer.eos_id],
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `TextTokenizer.encode_batch`."""
        rows = [self._tekkenizer.encode(text, bos=False, eos=False) for text in texts]
        refuse_control_tokens(rows, self._declared, texts)
        return rows

    def token_id(self, name: str) -> int | None:
        """See `TextTokenizer.token_id`; the name of an ordinary token is its text."""
        tekkenizer = self._tekkenizer
        if tekkenizer.is_special(name):
            token: int = tekkenizer.get_special_token(name)
            return token
        row = tekkenizer.encode(name, bos=False, eos=False)
        return int(row[0]) if len(row) == 1 else None
