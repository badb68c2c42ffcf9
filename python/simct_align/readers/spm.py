"""Internal: the reader for SentencePiece processors and `.model` files."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simct_align.errors import UnsupportedTokenizerError
from simct_align.readers.base import (
    META_SPACE,
    TokenTable,
    build_table,
    encode_in_slices,
    refuse_control_tokens,
    resolve_special,
)
from simct_align.readers.facts import EndOfTurn, TokenizerFacts, resolve_stops, role_token_notes
from simct_align.token_kind import TokenKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

# Field numbers of sentencepiece_model.proto.
_MODEL_PIECES = 1
_MODEL_TRAINER = 2
_MODEL_NORMALIZER = 3
_MODEL_DENORMALIZER = 5
_TRAINER_SPACE_AS_SUFFIX = 24
_NORMALIZER_CHARSMAP = 2
_NORMALIZER_DUMMY_PREFIX = 3
_NORMALIZER_ESCAPE_SPACES = 5
_PIECE_TEXT = 1
_PIECE_TYPE = 3
_USER_DEFINED = 4
# The field `type` of a piece with the value CONTROL: tag (3 << 3 | 0) and value 3. The last value
# of a field counts in a message, so it is enough to append this one.
_TYPE_CONTROL = b"\x18\x03"


class SentencePieceTokenizer:
    """A SentencePiece model.

    Args:
        processor: A loaded `SentencePieceProcessor`. It is never changed.
        facts: What configurations say about its tokens. Symbols that the chat template writes
            around messages become special even if the model only lists them as user-defined.
    """

    def __init__(self, processor: Any, facts: TokenizerFacts | None = None) -> None:
        self._processor = processor
        self._facts = facts or TokenizerFacts()
        self._declared: set[int] = set()
        self._encoder: Any = None

    def table(self, *, special: Collection[str | int] = ()) -> TokenTable:
        """See `TextTokenizer.table`."""
        processor = self._processor
        proto = processor.serialized_model_proto()
        dummy_prefix = _dummy_prefix(proto)
        size = processor.get_piece_size()
        token_bytes = [
            processor.id_to_piece(token).replace(META_SPACE, " ").encode() for token in range(size)
        ]
        kinds = np.full(size, TokenKind.NORMAL, dtype=np.uint8)
        specials = set()
        for token in range(size):
            if processor.is_control(token) or processor.is_unknown(token):
                specials.add(token)
            elif processor.is_byte(token):
                kinds[token] = TokenKind.BYTE
                token_bytes[token] = bytes((int(processor.id_to_piece(token)[3:5], 16),))
            elif processor.is_unused(token):
                kinds[token] = TokenKind.UNUSED
                token_bytes[token] = b""
        declared = resolve_special(special, kinds, self.token_id)
        frame = self._facts.frame
        symbols = {} if frame is None else _user_defined(proto)
        roles = (
            {} if frame is None else {name: symbols[name] for name in frame.role_tokens(symbols)}
        )
        unflagged = [name for name, token in roles.items() if token not in declared]
        # The encoder must not make role tokens of text either.
        declared |= set(roles.values())
        if declared != self._declared:
            self._declared = declared
            self._encoder = None
        specials |= declared
        end = processor.eos_id()
        own = () if end < 0 else (EndOfTurn(end, "class SentencePieceProcessor"),)
        stops = resolve_stops(
            self._facts.before(TokenizerFacts(ends=own)),
            control_tokens={processor.id_to_piece(token): token for token in sorted(specials)},
            token_id=self.token_id,
            may_end=lambda _, token: token in specials,
        )
        return build_table(
            token_bytes,
            kinds,
            special=specials,
            name_of=processor.id_to_piece,
            stops=stops,
            dummy_prefix=dummy_prefix,
            notes=(*self._facts.notes, *role_token_notes(unflagged)),
        )

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """See `TextTokenizer.encode_batch`."""
        if self._encoder is None:
            # A new processor: that of the caller may add BOS or EOS, or sample.
            proto = self._processor.serialized_model_proto()
            self._encoder = type_of_processor()(model_proto=_with_controls(proto, self._declared))
        rows = encode_in_slices(partial(self._encoder.encode, out_type=int), texts)
        names = {token: self._processor.id_to_piece(token) for token in self._declared}
        refuse_control_tokens(rows, names, texts)
        return rows

    def token_id(self, name: str) -> int | None:
        """See `TextTokenizer.token_id`."""
        token: int = self._processor.piece_to_id(name)
        # `piece_to_id` returns the unknown token for a name that does not exist.
        return token if self._processor.id_to_piece(token) == name else None


def type_of_processor() -> Any:
    """Import `SentencePieceProcessor`, with the install command in the error."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise ImportError(
            "reading a SentencePiece model needs the package sentencepiece: "
            "pip install sentencepiece"
        ) from error
    return SentencePieceProcessor


class _Field(NamedTuple):
    number: int
    tag_start: int
    start: int
    end: int
    value: int


def _fields(data: bytes, start: int, end: int) -> Iterator[_Field]:
    """Yield the fields of a protobuf message: number, extent and, for integers, the value."""
    position = start
    while position < end:
        tag_start = position
        tag, position = _varint(data, position)
        value = 0
        wire = tag & 7
        if wire == 0:
            begin = position
            value, position = _varint(data, position)
        elif wire == 2:
            length, begin = _varint(data, position)
            position = begin + length
        elif wire in (1, 5):
            begin = position
            position += 8 if wire == 1 else 4
        else:
            raise ValueError(f"not a SentencePiece model: wire type {wire} at byte {tag_start}")
        yield _Field(tag >> 3, tag_start, begin, position, value)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _as_varint(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _dummy_prefix(proto: bytes) -> bool:
    """Read from a model whether it has a dummy prefix.

    Args:
        proto: The serialized model.

    Returns:
        Whether the model puts a space before every text.

    Raises:
        UnsupportedTokenizerError: The pieces alone do not determine the bytes of a text.
    """
    dummy_prefix = True  # the format's default
    for field in _fields(proto, 0, len(proto)):
        if field.number == _MODEL_TRAINER:
            for inner in _fields(proto, field.start, field.end):
                if inner.number == _TRAINER_SPACE_AS_SUFFIX and inner.value:
                    raise UnsupportedTokenizerError(
                        "trainer_spec.treat_whitespace_as_suffix",
                        "the model writes spaces after words and adds one at the end of a text",
                    )
        elif field.number == _MODEL_NORMALIZER:
            for inner in _fields(proto, field.start, field.end):
                if inner.number == _NORMALIZER_DUMMY_PREFIX:
                    dummy_prefix = bool(inner.value)
                elif inner.number == _NORMALIZER_ESCAPE_SPACES and not inner.value:
                    raise UnsupportedTokenizerError(
                        "normalizer_spec.escape_whitespaces", "false is not supported"
                    )
        elif field.number == _MODEL_DENORMALIZER:
            for inner in _fields(proto, field.start, field.end):
                if inner.number == _NORMALIZER_CHARSMAP and inner.end > inner.start:
                    raise UnsupportedTokenizerError(
                        "denormalizer_spec", "the decoder rewrites text across pieces"
                    )
    return dummy_prefix


def _user_defined(proto: bytes) -> dict[str, int]:
    """Return the user-defined symbols, which SentencePiece always cuts out of a text."""
    symbols = {}
    pieces = (field for field in _fields(proto, 0, len(proto)) if field.number == _MODEL_PIECES)
    for token, field in enumerate(pieces):
        name, kind = "", 0
        for inner in _fields(proto, field.start, field.end):
            if inner.number == _PIECE_TEXT:
                name = proto[inner.start : inner.end].decode()
            elif inner.number == _PIECE_TYPE:
                kind = inner.value
        if kind == _USER_DEFINED:
            symbols[name] = token
    return symbols


def _with_controls(proto: bytes, controls: set[int]) -> bytes:
    """Turn the given pieces into control symbols, which SentencePiece never makes from text."""
    if not controls:
        return proto
    result = bytearray()
    piece = 0
    for field in _fields(proto, 0, len(proto)):
        if field.number == _MODEL_PIECES:
            if piece in controls:
                body = proto[field.start : field.end] + _TYPE_CONTROL
                result += proto[field.tag_start : field.tag_start + 1]
                result += _as_varint(len(body)) + body
                piece += 1
                continue
            piece += 1
        result += proto[field.tag_start : field.end]
    return bytes(result)
