"""Reader for Hugging Face tokenizers: `tokenizers` objects, their files, and transformers'."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.errors import UnsupportedTokenizerError
from simct_align.readers.base import TokenTable, build_table, refuse_control_tokens, resolve_special
from simct_align.readers.decoders import (
    ByteLevelReader,
    ReplacingReader,
    TokenReader,
    WordPieceReader,
    component_state,
    flatten,
    token_reader,
)
from simct_align.token_kind import TokenKind

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from tokenizers import AddedToken, Tokenizer


class HuggingFaceTokenizer:
    """A `tokenizers.Tokenizer` with what is known about it from elsewhere.

    Args:
        tokenizer: The tokenizer; never changed.
        special: Names or ids that a configuration counts among the special tokens. Only added
            tokens can become special this way: a text token such as `!` named as the padding
            token stays text.
        eos: Name or id of the token that the configuration calls EOS. It becomes special
            even if it is not an added token.
        stops: Further ids or names that end a turn; added tokens among them become special,
            text tokens are left out.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        special: Sequence[str | int] = (),
        eos: str | int | None = None,
        stops: Sequence[str | int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._eos = eos
        self._stops = stops
        self._declared: set[int] = set()
        self._encoder: _Encoder | None = None

    def table(self, *, special: Collection[str | int] = ()) -> TokenTable:
        """See `TextTokenizer.table`."""
        tokenizer = self._tokenizer
        reader = token_reader(component_state(tokenizer.decoder, "decoder"))
        _check_model(tokenizer.model, reader)
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        added = tokenizer.get_added_tokens_decoder()

        ids = np.fromiter(vocabulary.values(), dtype=np.int64, count=len(vocabulary))
        size = max(int(ids.max(initial=-1)), max(added, default=-1)) + 1
        token_bytes = [b""] * size
        kinds = np.full(size, TokenKind.UNUSED, dtype=np.uint8)
        texts, fallbacks = reader.read(list(vocabulary))
        for token, text in zip(ids.tolist(), texts, strict=True):
            token_bytes[token] = text
        reader.check(token for token, number in vocabulary.items() if number not in added)
        kinds[ids] = TokenKind.NORMAL
        kinds[ids[fallbacks]] = TokenKind.BYTE
        for token, entry in added.items():
            # Text is cut at added tokens before the model sees it, so they stand for what is cut
            # out; the ones that the model knows as well, it may also build from others.
            if vocabulary.get(entry.content) != token:
                token_bytes[token] = _added_bytes(tokenizer, entry, reader)
                kinds[token] = TokenKind.NORMAL

        declared = resolve_special(special, kinds, self.token_id)
        specials = self._flagged_special() | declared
        if declared != self._declared:
            self._declared = declared
            self._encoder = None
        return build_table(
            token_bytes,
            kinds,
            special=specials,
            name_of=_names(tokenizer, specials).__getitem__,
            stops=self._known_stops(),
            dummy_prefix=isinstance(reader, WordPieceReader) or _prepends_space(tokenizer, reader),
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `TextTokenizer.encode_batch`."""
        if self._encoder is None:
            self._encoder = _Encoder(self._tokenizer, self._flagged_special() | self._declared)
        return self._encoder.encode_batch(texts)

    def token_id(self, name: str) -> int | None:
        """See `TextTokenizer.token_id`."""
        return self._tokenizer.token_to_id(name)

    def _flagged_special(self) -> set[int]:
        """Ids of the control tokens, as the tokenizer and its configuration flag them."""
        added = self._tokenizer.get_added_tokens_decoder()
        flagged = {token for token, entry in added.items() if entry.special}
        flagged.update(self._ids([*self._special, *self._stops]) & added.keys())
        unknown = _unknown_token(self._tokenizer.model)
        named = [name for name in (self._eos, unknown) if name is not None]
        return flagged | self._ids(named)

    def _known_stops(self) -> list[int]:
        named = [] if self._eos is None else [self._eos]
        return [token for entry in (*named, *self._stops) for token in self._ids([entry])]

    def _ids(self, entries: Sequence[str | int]) -> set[int]:
        """Ids of the entries that the tokenizer has; a configuration may name more."""
        found = set()
        for entry in entries:
            if isinstance(entry, str):
                token = self._tokenizer.token_to_id(entry)
                if token is not None:
                    found.add(token)
            elif entry >= 0 and self._tokenizer.id_to_token(entry) is not None:
                found.add(entry)
        return found


class _Encoder:
    """A private copy of a tokenizer that never makes control tokens out of text.

    The copy shares the model, which is most of the memory and of the time to copy, and gets
    its own added tokens. What the copy cannot keep apart that way (a model that reaches a control
    token from text by itself, as Unigram models do) is noticed in the output; then a second copy is
    made whose model does not know these strings.
    """

    def __init__(self, tokenizer: Tokenizer, special: set[int]) -> None:
        unknown = _unknown_token(tokenizer.model)
        unknown_id = tokenizer.token_to_id(unknown) if isinstance(unknown, str) else unknown
        names = _names(tokenizer, special)
        # Unknown text rightly becomes the unknown token; only its name as text must not.
        self._unknown = None if unknown_id is None else (unknown_id, names.pop(unknown_id, ""))
        self._names = names
        self._special = special
        self._encoder = _private_copy(tokenizer, special)
        self._hardened: Tokenizer | None = None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        rows = [row.ids for row in self._encoder.encode_batch_fast(texts, add_special_tokens=False)]
        again = [number for number, row in enumerate(rows) if self._is_control(row, texts[number])]
        if again:
            if self._hardened is None:
                self._hardened = _hardened_copy(self._encoder, self._special)
            repeated = [texts[number] for number in again]
            encoded = self._hardened.encode_batch_fast(repeated, add_special_tokens=False)
            for number, row in zip(again, encoded, strict=True):
                rows[number] = row.ids
            refuse_control_tokens([rows[number] for number in again], self._names, repeated)
        return rows

    def _is_control(self, row: list[int], text: str) -> bool:
        if not self._names.keys().isdisjoint(row):
            return True
        return self._unknown is not None and self._unknown[0] in row and self._unknown[1] in text


def _private_copy(tokenizer: Tokenizer, special: set[int]) -> Tokenizer:
    from tokenizers import AddedToken, Tokenizer

    if getattr(tokenizer.model, "dropout", None):
        # Merges left out at random are for training; they are a property of the shared model.
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.model.dropout = None
    copy = Tokenizer(tokenizer.model)
    if tokenizer.normalizer is not None:
        copy.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        copy.pre_tokenizer = tokenizer.pre_tokenizer
    added = sorted(tokenizer.get_added_tokens_decoder().items())
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
                f"its id {token} is not the one that the tokenizers library gives it",
            )


def _hardened_copy(encoder: Tokenizer, special: set[int]) -> Tokenizer:
    """Copy an encoder, with the model's special strings renamed to what no text contains."""
    from tokenizers import Tokenizer

    state: dict[str, Any] = json.loads(encoder.to_str())
    model = state["model"]
    # A one-character token may be the only spelling of its character: leave it to the check.
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
        # The model finds its id under the new name; other added tokens keep theirs by their order.
        if entry["content"] in known:
            entry["content"] = hidden[entry["content"]]
    copy = Tokenizer.from_str(json.dumps(state))
    copy.encode_special_tokens = True
    return copy


def _names(tokenizer: Tokenizer, tokens: set[int]) -> dict[int, str]:
    """Names of tokens; `id_to_token` alone would give an added token's normalized form."""
    added = tokenizer.get_added_tokens_decoder()
    return {
        token: added[token].content if token in added else str(tokenizer.id_to_token(token))
        for token in tokens
    }


def _added_bytes(tokenizer: Tokenizer, entry: AddedToken, reader: TokenReader) -> bytes:
    """Bytes of the text that is cut out for an added token the model does not have.

    That is its content, never read by the decoder (`é` is no byte-level byte there), unless the
    token is looked for in normalized text and the normalizer already writes what the decoder
    undoes: bytes as characters, or a mark for spaces, perhaps one in front of the token.
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
                part["type"] == "Replace" and part["pattern"] == {"String": " "}
            )
            undone = spaces and isinstance(reader, ReplacingReader)
        if undone:
            return reader.read([text])[0][0]
    return text.encode()


def _check_model(model: Any, reader: TokenReader) -> None:
    """Refuse models that mark word ends or continuations in a way the decoder does not undo."""
    kind = type(model).__name__
    prefix = getattr(model, "continuing_subword_prefix", None)
    undone = reader.prefix if isinstance(reader, WordPieceReader) else None
    if prefix and prefix != undone:
        raise UnsupportedTokenizerError(
            f"model {kind} continuing_subword_prefix",
            f"the decoder does not take {prefix!r} off",
        )
    if suffix := getattr(model, "end_of_word_suffix", None):
        raise UnsupportedTokenizerError(
            f"model {kind} end_of_word_suffix", f"the decoder does not take {suffix!r} off"
        )


def _unknown_token(model: Any) -> str | int | None:
    """Name or id of the model's unknown token."""
    if hasattr(model, "unk_token"):
        name: str | None = model.unk_token
        return name
    # Unigram models show it in their serialized form only.
    token: int | None = json.loads(model.__getstate__()).get("unk_id")
    return token


def _prepends_space(tokenizer: Tokenizer, reader: TokenReader) -> bool:
    """Tell whether the encoder puts a space in front of a text tokenized alone."""
    found = False
    for part in flatten(component_state(tokenizer.normalizer, "normalizer"), "normalizers"):
        if part["type"] == "Prepend":
            _check_reads_as_space(part["prepend"], reader, "normalizer Prepend")
            found = True
    pre_tokenizer = component_state(tokenizer.pre_tokenizer, "pre_tokenizer")
    for part in flatten(pre_tokenizer, "pretokenizers"):
        if part["type"] == "Metaspace":
            _check_reads_as_space(part["replacement"], reader, "pre_tokenizer Metaspace")
            found = found or part["prepend_scheme"] in ("always", "first")
        elif part["type"] == "ByteLevel":
            found = found or bool(part["add_prefix_space"])
    return found


def _check_reads_as_space(text: str, reader: TokenReader, component: str) -> None:
    if reader.read([text])[0] != [b" "]:
        raise UnsupportedTokenizerError(
            component, f"it writes {text!r} for a space, and the decoder does not read it as one"
        )
