"""Internal: the reader for Mistral's Tekken tokenizer, an object or file of `mistral_common`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.readers.base import (
    TokenTable,
    build_table,
    refuse_control_tokens,
    resolve_special,
)
from simct_align.readers.facts import EndOfTurn, TokenizerFacts, resolve_stops
from simct_align.token_kind import TokenKind

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class TekkenTokenizer:
    """A Tekken tokenizer: special tokens first, then byte-pair tokens.

    Args:
        tekkenizer: The `mistral_common` `Tekkenizer`.
        facts: What configurations say about its tokens.
    """

    def __init__(self, tekkenizer: Any, facts: TokenizerFacts | None = None) -> None:
        self._tekkenizer = tekkenizer
        self._facts = facts or TokenizerFacts()
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
        specials = flagged | declared
        own = TokenizerFacts(ends=(EndOfTurn(tekkenizer.eos_id, "class Tekkenizer"),))
        stops = resolve_stops(
            self._facts.before(own),
            control_tokens={tekkenizer.id_to_piece(token): token for token in sorted(specials)},
            token_id=self.token_id,
            may_end=lambda _, token: token in specials,
        )
        return build_table(
            token_bytes,
            kinds,
            special=specials,
            name_of=tekkenizer.id_to_piece,
            stops=stops,
            notes=self._facts.notes,
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
