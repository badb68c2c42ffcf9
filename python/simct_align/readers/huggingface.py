"""Internal: the reader for tokenizers of Hugging Face's `tokenizers` and `transformers`."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.errors import UnsupportedTokenizerError
from simct_align.limits import MAX_TOKENS, checked_size, library_errors
from simct_align.readers.base import (
    TokenTable,
    build_table,
    encode_in_slices,
    refuse_control_tokens,
    resolve_special,
)
from simct_align.readers.decoders import (
    ByteLevelReader,
    ReplacingReader,
    TokenReader,
    WordPieceReader,
    component_state,
    flatten,
    token_reader,
)
from simct_align.readers.facts import (
    EndOfTurn,
    Stops,
    TokenizerFacts,
    resolve_stops,
    role_token_notes,
)
from simct_align.readers.patterns import literal_of, text_at_start
from simct_align.token_kind import TokenKind

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from numpy.typing import NDArray
    from tokenizers import AddedToken, Tokenizer


#: How many times longer the replacements of a normalizer may make a text.
_MAX_GROWTH = 64


class HuggingFaceTokenizer:
    """A `tokenizers.Tokenizer` with facts about its tokens from configuration files.

    Args:
        tokenizer: The tokenizer. It is never changed.
        facts: What configurations say. Of the special tokens only added tokens become special: a
            text token such as `!` that is the padding token stays text. The EOS token becomes
            special even if it is not an added token. Tokens that the chat template writes around
            messages become special even if the tokenizer does not flag them.
    """

    def __init__(self, tokenizer: Tokenizer, facts: TokenizerFacts | None = None) -> None:
        self._tokenizer = tokenizer
        self._facts = facts or TokenizerFacts()
        self._declared: set[int] = set()
        self._encoder: _Encoder | None = None

    def table(self, *, special: Collection[str | int] = ()) -> TokenTable:
        """See `TextTokenizer.table`."""
        tokenizer = self._tokenizer
        reader = token_reader(component_state(tokenizer.decoder, "decoder"))
        _check_model(tokenizer.model, reader)
        _check_growth(tokenizer)
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        added = tokenizer.get_added_tokens_decoder()
        names, ids = _model_tokens(tokenizer, vocabulary)
        _check_claims(names, ids, added)
        size = checked_size(max(int(ids.max(initial=-1)), max(added, default=-1)))
        token_bytes = [b""] * size
        kinds = np.full(size, TokenKind.UNUSED, dtype=np.uint8)
        texts, fallbacks = reader.read(names)
        for token, text in zip(ids.tolist(), texts, strict=True):
            token_bytes[token] = text
        reader.check(token for token, number in vocabulary.items() if number not in added)
        kinds[ids] = TokenKind.NORMAL
        kinds[ids[fallbacks]] = TokenKind.BYTE
        for token, entry in added.items():
            # The tokenizer cuts added tokens out of a text before the model reads the text, so an
            # added token has the bytes that are cut out. An added token that the model also has
            # keeps the bytes from the model, which can build it from other tokens as well.
            if vocabulary.get(entry.content) != token:
                token_bytes[token] = _added_bytes(tokenizer, entry, reader)
                kinds[token] = TokenKind.NORMAL

        declared = resolve_special(special, kinds, self.token_id)
        if declared != self._declared:
            self._declared = declared
            self._encoder = None
        specials, stops = self._special_and_stops()
        return build_table(
            token_bytes,
            kinds,
            special=specials,
            name_of=_names(tokenizer, specials).__getitem__,
            stops=stops,
            dummy_prefix=isinstance(reader, WordPieceReader) or _prepends_space(tokenizer, reader),
            notes=(*self._facts.notes, *self._unflagged_notes()),
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `TextTokenizer.encode_batch`."""
        with library_errors("the tokenizer cannot encode a text"):
            if self._encoder is None:
                self._encoder = _Encoder(self._tokenizer, self._special_and_stops()[0])
            return self._encoder.encode_batch(texts)

    def token_id(self, name: str) -> int | None:
        """See `TextTokenizer.token_id`."""
        return self._tokenizer.token_to_id(name)

    def _special_and_stops(self) -> tuple[set[int], Stops]:
        """Return all special ids, and the stops among them."""
        added = self._tokenizer.get_added_tokens_decoder()
        flagged = self._flagged_special() | self._declared
        flagged |= {self._added_ids()[name] for name in self._role_tokens()}

        def may_end(entry: EndOfTurn, token: int) -> bool:
            exists = self._id_of(token) is not None
            return exists and (token in added or token in flagged or not entry.of_model)

        named = {self._id_of(entry.token) for entry in self._facts.ends if not entry.of_model}
        known = flagged | {token for token in named if token is not None}
        stops = resolve_stops(
            self._facts,
            # Of several ids with one name the smallest.
            control_tokens={
                name: token
                for token, name in sorted(_names(self._tokenizer, known).items(), reverse=True)
            },
            token_id=self.token_id,
            may_end=may_end,
        )
        return flagged | stops.sources.keys(), stops

    def _flagged_special(self) -> set[int]:
        """Return the ids that the tokenizer or its configuration flags as special."""
        added = self._tokenizer.get_added_tokens_decoder()
        text = self._facts.text
        flagged = {t for t, entry in added.items() if entry.special and entry.content not in text}
        named = {
            self.token_id(entry) if isinstance(entry, str) else entry
            for entry in self._facts.special
        }
        flagged |= added.keys() & named
        unknown = _unknown_token(self._tokenizer.model)
        token = self.token_id(unknown) if isinstance(unknown, str) else unknown
        return flagged if token is None else flagged | {token}

    def _id_of(self, token: str | int) -> int | None:
        """Return the id of a name or id, or None if there is no such token."""
        if isinstance(token, str):
            return self.token_id(token)
        exists = 0 <= token < MAX_TOKENS and self._tokenizer.id_to_token(token) is not None
        return token if exists else None

    def _added_ids(self) -> dict[str, int]:
        added = self._tokenizer.get_added_tokens_decoder()
        return {entry.content: token for token, entry in added.items()}

    def _role_tokens(self) -> list[str]:
        """Return the added tokens that the chat template writes around messages."""
        frame = self._facts.frame
        return [] if frame is None else frame.role_tokens(self._added_ids())

    def _unflagged_notes(self) -> tuple[str, ...]:
        """Return a warning about role tokens that only the chat template shows to be special."""
        flagged = self._flagged_special() | self._declared
        added = self._added_ids()
        names = [name for name in self._role_tokens() if added[name] not in flagged]
        return role_token_notes(names)


class _Encoder:
    """A private copy of a tokenizer that never makes special tokens from text.

    The copy shares the model, which has most of the memory and would take most of the time to
    copy. It has its own added tokens. A model can still make a special token from text by itself,
    as Unigram models do. If such a token occurs in the output, the texts are tokenized again with a
    second copy whose model does not have the names of special tokens.
    """

    def __init__(self, tokenizer: Tokenizer, special: set[int]) -> None:
        unknown = _unknown_token(tokenizer.model)
        unknown_id = tokenizer.token_to_id(unknown) if isinstance(unknown, str) else unknown
        names = _names(tokenizer, special)
        # Unknown text may become the unknown token, but the name of that token in a text must not.
        self._unknown = None if unknown_id is None else (unknown_id, names.pop(unknown_id, ""))
        self._names = names
        self._special = special
        self._encoder = _private_copy(tokenizer, special)
        self._hardened: Tokenizer | None = None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        rows = encode_in_slices(partial(_encode, self._encoder), texts)
        again = [number for number, row in enumerate(rows) if self._is_control(row, texts[number])]
        if again:
            if self._hardened is None:
                self._hardened = _hardened_copy(self._encoder, self._special)
            repeated = [texts[number] for number in again]
            encoded = encode_in_slices(partial(_encode, self._hardened), repeated)
            for number, row in zip(again, encoded, strict=True):
                rows[number] = row
            refuse_control_tokens(rows, self._names, texts)
        return rows

    def _is_control(self, row: list[int], text: str) -> bool:
        if not self._names.keys().isdisjoint(row):
            return True
        return self._unknown is not None and self._unknown[0] in row and self._unknown[1] in text


def _encode(encoder: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [row.ids for row in encoder.encode_batch_fast(texts, add_special_tokens=False)]


def _private_copy(tokenizer: Tokenizer, special: set[int]) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer

    if getattr(tokenizer.model, "dropout", None):
        # Dropout leaves merges out at random, for training; it is a property of the shared model.
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.model.dropout = None
    copy = Tokenizer(tokenizer.model)
    if tokenizer.normalizer is not None:
        copy.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        copy.pre_tokenizer = tokenizer.pre_tokenizer
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    for token, entry in added:
        # An object can flag a token that is text.
        entry.special = entry.special and token in special
    copy.add_tokens([entry for _, entry in added])
    copy.add_special_tokens(
        [
            AddedToken(entry.content, special=True, normalized=entry.normalized)
            for token, entry in added
            if token in special
        ]
    )
    _check_ids(copy, tokenizer)
    copy.encode_special_tokens = True
    return copy


def _check_ids(copy: Tokenizer, tokenizer: Tokenizer) -> None:
    for token, entry in tokenizer.get_added_tokens_decoder().items():
        if copy.token_to_id(entry.content) != token:
            raise UnsupportedTokenizerError(
                f"added token {entry.content!r}",
                f"its id {token} is not the id that the tokenizers library assigns",
            )


def _hardened_copy(encoder: Tokenizer, special: set[int]) -> Tokenizer:
    """Copy an encoder, with the special tokens of the model renamed to strings that no text has."""
    from tokenizers import Tokenizer

    state: dict[str, Any] = json.loads(encoder.to_str())
    model = state["model"]
    # A token of one character can be the only token of that character: it stays, and is checked.
    hidden = {
        name: f"\U0010ffff{token}"
        for token in sorted(special)
        if (name := encoder.model.id_to_token(token)) is not None and len(name) > 1
    }
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {hidden.get(name, name): token for name, token in vocabulary.items()}
        known = hidden.keys() & vocabulary.keys()
    else:
        model["vocab"] = [[hidden.get(name, name), score] for name, score in vocabulary]
        known = hidden.keys() & {name for name, _ in vocabulary}
    if model.get("unk_token") in known:
        model["unk_token"] = hidden[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [
            [left, right]
            for left, right in model["merges"]
            if known.isdisjoint((left, right, left + right))
        ]
    for entry in state["added_tokens"]:
        # A renamed token gets its id from the model; other added tokens keep theirs by their order.
        if entry["content"] in known:
            entry["content"] = hidden[entry["content"]]
    copy = Tokenizer.from_str(json.dumps(state))
    copy.encode_special_tokens = True
    return copy


def _names(tokenizer: Tokenizer, tokens: set[int]) -> dict[int, str]:
    """Return the names of tokens; `id_to_token` alone returns the normalized form of added ones."""
    added = tokenizer.get_added_tokens_decoder()
    return {
        token: added[token].content if token in added else str(tokenizer.id_to_token(token))
        for token in tokens
    }


def _model_tokens(
    tokenizer: Tokenizer, vocabulary: dict[str, int]
) -> tuple[list[str], NDArray[np.int64]]:
    """Return the names and ids of the model's tokens.

    A Unigram model can list a text twice. The encoder makes one of the ids, which is the one in
    `vocabulary`; a model can have learned the other, so both ids have the bytes of the text.
    """
    names = list(vocabulary)
    ids = list(vocabulary.values())
    size = tokenizer.get_vocab_size(with_added_tokens=False)
    if size > len(names):
        for token in sorted(set(range(size)).difference(ids)):
            name = tokenizer.model.id_to_token(token)
            if name is not None:
                names.append(name)
                ids.append(token)
    return names, np.array(ids, np.int64)


def _check_claims(names: list[str], ids: NDArray[np.int64], added: dict[int, AddedToken]) -> None:
    """Raise an error if two tokens have one id: nothing says which of them the id means."""
    order = np.argsort(ids, kind="stable")
    repeated = np.flatnonzero(np.diff(ids[order]) == 0)
    if len(repeated):
        first, second = sorted(names[order[place]] for place in (repeated[0], repeated[0] + 1))
        raise UnsupportedTokenizerError(
            f"id {ids[order[repeated[0]]]}",
            f"the model gives it to two tokens, {first!r} and {second!r}; change the id of one",
        )
    for place in np.flatnonzero(np.isin(ids, list(added))).tolist():
        token = int(ids[place])
        if names[place] != added[token].content and added[token].content not in names:
            raise UnsupportedTokenizerError(
                f"id {token}",
                f"it is claimed by the token {names[place]!r} of the model and by the added token "
                f"{added[token].content!r}; change the id of one",
            )


def _added_bytes(tokenizer: Tokenizer, entry: AddedToken, reader: TokenReader) -> bytes:
    """Return the bytes of an added token that the model does not have.

    They are the UTF-8 of its content, which the decoder does not convert (`é` is not a byte of the
    byte-level alphabet there). There is one exception. If the tokenizer searches the token in
    normalized text, and the normalizer already writes what the decoder undoes (bytes as characters,
    a mark for spaces, a space before the text), the decoder reads the normalized content.
    """
    text: str = entry.content
    if not entry.normalized or tokenizer.normalizer is None:
        return text.encode()
    text = tokenizer.normalizer.normalize_str(text)
    state = component_state(tokenizer.normalizer, "normalizer")
    for part in flatten(state, "normalizers"):
        if part["type"] == "ByteLevel":
            undone = isinstance(reader, ByteLevelReader)
        else:
            spaces = part["type"] == "Prepend" or (
                part["type"] == "Replace"
                and (literal_of(part["pattern"]) == " " or _prepended(part) is not None)
            )
            undone = spaces and isinstance(reader, ReplacingReader)
        if undone:
            return reader.read([text])[0][0]
    return text.encode()


def _check_model(model: Any, reader: TokenReader) -> None:
    """Raise an error if the model marks words in a way that the decoder does not undo."""
    kind = type(model).__name__
    prefix = getattr(model, "continuing_subword_prefix", None)
    undone = reader.prefix if isinstance(reader, WordPieceReader) else None
    if prefix and prefix != undone:
        raise UnsupportedTokenizerError(
            f"model {kind} continuing_subword_prefix",
            f"the decoder does not remove {prefix!r}",
        )
    if suffix := getattr(model, "end_of_word_suffix", None):
        raise UnsupportedTokenizerError(
            f"model {kind} end_of_word_suffix", f"the decoder does not remove {suffix!r}"
        )


def _check_growth(tokenizer: Tokenizer) -> None:
    """Raise an error if the normalizer makes texts many times longer, which takes all memory."""
    growth = 1.0
    for part in flatten(component_state(tokenizer.normalizer, "normalizer"), "normalizers"):
        if part["type"] == "Replace":
            # What another pattern matches can be a single character.
            found = literal_of(part["pattern"]) or " "
            growth *= max(1.0, len(part["content"]) / len(found))
    if growth > _MAX_GROWTH:
        raise UnsupportedTokenizerError(
            "normalizer Replace",
            f"it can make a text {growth:.0f} times as long, more than {_MAX_GROWTH} times",
        )


def _unknown_token(model: Any) -> str | int | None:
    """Return the name or the id of the unknown token of the model, or None."""
    if hasattr(model, "unk_token"):
        name: str | None = model.unk_token
        return name
    # A Unigram model has the id in its serialized form only.
    token: int | None = json.loads(model.__getstate__()).get("unk_id")
    return token


def _prepends_space(tokenizer: Tokenizer, reader: TokenReader) -> bool:
    """Return whether the tokenizer puts a space before a text that it tokenizes alone."""
    found = False
    for part in flatten(component_state(tokenizer.normalizer, "normalizer"), "normalizers"):
        if (prefix := _prepended(part)) is not None:
            _check_reads_as_space(prefix, reader, f"normalizer {part['type']}")
            found = True
    pre_tokenizer = component_state(tokenizer.pre_tokenizer, "pre_tokenizer")
    for part in flatten(pre_tokenizer, "pretokenizers"):
        if part["type"] == "Metaspace":
            _check_reads_as_space(part["replacement"], reader, "pre_tokenizer Metaspace")
            found = found or part["prepend_scheme"] in ("always", "first")
        elif part["type"] == "ByteLevel":
            found = found or bool(part["add_prefix_space"])
    return found


def _prepended(part: dict[str, Any]) -> str | None:
    """Return what a normalizer puts before a text, or None for other normalizers."""
    if part["type"] == "Prepend":
        return str(part["prepend"])
    if part["type"] == "Replace" and part["content"]:
        # `^` alone is every start of a line, of which the first is the start of the text.
        pattern = part["pattern"]
        if text_at_start(pattern) == "" or pattern.get("Regex") == "^":
            return str(part["content"])
    return None


def _check_reads_as_space(text: str, reader: TokenReader, component: str) -> None:
    if reader.read([text])[0] != [b" "]:
        raise UnsupportedTokenizerError(
            component, f"it writes {text!r} for a space, and the decoder does not read it as one"
        )
