"""Internal: the reader for models whose tokens are single bytes, which have no tokenizer file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.errors import SlowTokenizerError
from simct_align.limits import checked_size
from simct_align.readers.base import TokenTable, build_table, refuse_control_tokens, resolve_special
from simct_align.readers.facts import TokenizerFacts, resolve_stops
from simct_align.token_kind import TokenKind

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence


class ByteTokenizer:
    """A `transformers` tokenizer of bytes, such as that of ByT5.

    The tokenizer writes byte `b` as the token `chr(b)`. Its other tokens are control tokens.

    Args:
        tokenizer: The tokenizer. It is never changed.
        facts: What the tokenizer and its configurations say about its tokens.

    Raises:
        SlowTokenizerError: The tokenizer does not have 256 tokens of single bytes.
    """

    def __init__(self, tokenizer: Any, facts: TokenizerFacts) -> None:
        self._tokenizer = tokenizer
        self._facts = facts
        self._declared: dict[int, str] = {}
        ids = tokenizer.convert_tokens_to_ids([chr(byte) for byte in range(256)])
        self._ids = np.array(ids, np.int64)
        probe = "a\n\u00e9\U0001f600"
        expected = tokenizer(probe, add_special_tokens=False)["input_ids"]
        if len(set(ids)) != 256 or self.encode_batch([probe]) != [list(expected)]:
            raise SlowTokenizerError(
                type(tokenizer).__name__, "its tokens are not the 256 bytes", files=()
            )

    def table(self, *, special: Collection[str | int] = ()) -> TokenTable:
        """See `TextTokenizer.table`."""
        added = {
            token: entry.content for token, entry in self._tokenizer.added_tokens_decoder.items()
        }
        size = checked_size(max(int(self._ids.max()), *added))
        token_bytes = [b""] * size
        kinds = np.full(size, TokenKind.UNUSED, np.uint8)
        for token, text in added.items():
            token_bytes[token] = text.encode()
            kinds[token] = TokenKind.NORMAL
        for byte, token in enumerate(self._ids.tolist()):
            token_bytes[token] = bytes((byte,))
        kinds[self._ids] = TokenKind.NORMAL
        flagged = set(self._tokenizer.all_special_ids) | {
            token
            for token, entry in self._tokenizer.added_tokens_decoder.items()
            if entry.special or token == self._tokenizer.unk_token_id
        }
        declared = resolve_special(special, kinds, self.token_id)
        specials = flagged | declared
        names = {token: added.get(token, chr(token_bytes[token][0])) for token in specials}
        self._declared = {token: names[token] for token in declared - added.keys()}
        stops = resolve_stops(
            self._facts,
            control_tokens={name: token for token, name in sorted(names.items(), reverse=True)},
            token_id=self.token_id,
            may_end=lambda _, token: token in specials,
        )
        return build_table(
            token_bytes,
            kinds,
            special=specials,
            name_of=names.__getitem__,
            stops=stops,
            notes=self._facts.notes,
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `TextTokenizer.encode_batch`."""
        rows = [self._ids[np.frombuffer(text.encode(), np.uint8)].tolist() for text in texts]
        refuse_control_tokens(rows, self._declared, texts)
        return rows

    def token_id(self, name: str) -> int | None:
        """See `TextTokenizer.token_id`."""
        for token, entry in self._tokenizer.added_tokens_decoder.items():
            if entry.content == name:
                return int(token)
        return int(self._ids[ord(name)]) if len(name) == 1 and ord(name) < 256 else None
