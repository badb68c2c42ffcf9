"""Internal: the reader for `tiktoken.Encoding`, and encodings of rank files."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.errors import UnsupportedTokenizerError
from simct_align.limits import checked_size, library_errors
from simct_align.readers.base import (
    TokenTable,
    build_table,
    encode_in_slices,
    refuse_control_tokens,
    resolve_special,
)
from simct_align.readers.facts import EndOfTurn, TokenizerFacts, resolve_stops
from simct_align.token_kind import TokenKind

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path


class TiktokenTokenizer:
    """A tiktoken encoding, read through its public methods.

    Args:
        encoding: The `tiktoken.Encoding`.
        facts: What configurations say about its tokens.
    """

    def __init__(self, encoding: Any, facts: TokenizerFacts | None = None) -> None:
        self._encoding = encoding
        self._facts = facts or TokenizerFacts()
        self._declared: dict[int, str] = {}

    @property
    def encoding(self) -> Any:
        """The `tiktoken.Encoding`."""
        return self._encoding

    def table(self, *, special: Collection[str | int] = ()) -> TokenTable:
        """See `TextTokenizer.table`."""
        encoding = self._encoding
        size = checked_size(encoding.max_token_value)
        found = [self._bytes_of(token) for token in range(size)]
        token_bytes = [text or b"" for text in found]
        kinds = np.full(size, TokenKind.NORMAL, dtype=np.uint8)
        # Ids without a token: between the ranks and the special tokens, or between special tokens.
        kinds[[token for token, text in enumerate(found) if text is None]] = TokenKind.UNUSED
        names = self._special_names(token_bytes)
        declared = resolve_special(special, kinds, self.token_id)
        self._declared = {
            token: token_bytes[token].decode(errors="replace") for token in declared - names.keys()
        }
        names.update(self._declared)
        stops = resolve_stops(
            self._facts.before(self._own_facts()),
            control_tokens={name: token for token, name in names.items()},
            token_id=self.token_id,
            may_end=lambda _, token: token in names,
        )
        return build_table(
            token_bytes,
            kinds,
            special=names,
            name_of=names.__getitem__,
            stops=stops,
            notes=self._facts.notes,
        )

    def _own_facts(self) -> TokenizerFacts:
        try:
            end = self._encoding.eot_token
        except KeyError:
            return TokenizerFacts()
        return TokenizerFacts(ends=(EndOfTurn(end, "class tiktoken.Encoding"),))

    def _special_names(self, token_bytes: Sequence[bytes]) -> dict[int, str]:
        """Return the names of the special tokens; of several names of an id the first by alphabet.

        Raises:
            UnsupportedTokenizerError: A special token has the id of a token of text.
        """
        names: dict[int, str] = {}
        for name in sorted(self._encoding.special_tokens_set):
            names.setdefault(self._special_id(name), name)
        written = {name.encode() for name in self._encoding.special_tokens_set}
        for token, name in names.items():
            if token_bytes[token] not in written:
                raise UnsupportedTokenizerError(
                    f"id {token}",
                    f"it is claimed by the text token {token_bytes[token]!r} and by the special "
                    f"token {name!r}; change the id of one",
                )
        return names

    def _special_id(self, name: str) -> int:
        # `encode_single_token` prefers a text token of the same bytes. Only if one special name
        # begins with another, `encode` returns several tokens.
        ids = self._encoding.encode(name, allowed_special={name}, disallowed_special=())
        return int(ids[0] if len(ids) == 1 else self._encoding.encode_single_token(name))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `TextTokenizer.encode_batch`."""
        with library_errors("the tokenizer cannot encode a text"):
            rows = encode_in_slices(self._encoding.encode_ordinary_batch, texts)
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


def encoding_of_ranks(
    path: Path, data: bytes, pattern: str | None, control_tokens: Mapping[str, int] | None
) -> Any:
    """Make an encoding of a rank file, which has neither the pattern nor the control tokens.

    Args:
        path: The file, for messages and for the name of the encoding.
        data: The content: lines of a token in base 64 and its rank.
        pattern: The regular expression that cuts text into words, as in `tiktoken.Encoding`.
        control_tokens: Names and ids of the special tokens.

    Returns:
        The `tiktoken.Encoding`.

    Raises:
        ValueError: The pattern or the control tokens are missing, the pattern is not valid, a line
            is not a rank, or a rank or token occurs twice.
        ImportError: The package tiktoken is not installed.
    """
    if pattern is None or control_tokens is None:
        missing = [
            argument
            for argument, value in (("pattern=", pattern), ("control_tokens=", control_tokens))
            if value is None
        ]
        raise ValueError(
            f"{path} is a tiktoken rank file, which has neither the regular expression that cuts "
            f"text nor the control tokens; {' and '.join(missing)} missing: read it with "
            "Vocabulary.from_tokenizer(path, pattern=..., control_tokens={name: id}), or pass the "
            "model's tiktoken.Encoding; both are in the code that comes with the model"
        )
    try:
        import tiktoken
    except ImportError as error:
        raise ImportError(
            f"reading the rank file {path} needs the package tiktoken: pip install tiktoken"
        ) from error
    ranks: dict[bytes, int] = {}
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            encoded, written = line.split()
            token, rank = base64.b64decode(encoded, validate=True), int(written)
        except ValueError as error:
            raise ValueError(
                f"{path}: line {number} is {line[:60]!r}, expected a token in base 64 and its rank"
            ) from error
        if token in ranks or rank in tokens:
            raise ValueError(
                f"{path}: line {number}: the token {token!r} or its rank {rank} occurs twice"
            )
        ranks[token], tokens[rank] = rank, token
    try:
        with library_errors("tiktoken fails"):
            return tiktoken.Encoding(
                path.name,
                pat_str=pattern,
                mergeable_ranks=ranks,
                special_tokens=dict(control_tokens),
            )
    except ValueError as error:
        raise ValueError(f"{path} with pattern={pattern!r}: {error}") from error
