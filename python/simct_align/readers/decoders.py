"""From a Hugging Face decoder's description to the bytes of token strings.

A `tokenizers` model holds printable strings; its decoder says which bytes they stand for. Calling
`decode` per id would be slow and wrong (half a character comes back as U+FFFD), so the decoder's
components are read instead. A chain that could let one token change another's bytes is refused.
"""

from __future__ import annotations

import itertools
import json
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.errors import UnsupportedTokenizerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

# What the ByteFallback component takes for a byte: six characters, two of them read as base 16
# (which lets a plus sign pass as the first).
_BYTE_TOKEN = re.compile(r"<0x([+0-9A-Fa-f][0-9A-Fa-f])>")

# The replacements of the WordPiece component's `cleanup`, in its order.
_WORDPIECE_CLEANUP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def _byte_alphabet() -> NDArray[np.int16]:
    """Byte of every character of the byte-level alphabet, -1 for other code points."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = sorted(set(range(256)) - set(printable))
    table = np.full(0x100 + len(rest) + 1, -1, dtype=np.int16)
    table[printable] = printable
    # The other bytes, in order, take the code points from U+0100 on.
    table[0x100 : 0x100 + len(rest)] = rest
    return table


_BYTE_OF_CHARACTER = _byte_alphabet()


class TokenReader(ABC):
    """How one decoder reads token strings."""

    @abstractmethod
    def read(self, tokens: Sequence[str]) -> tuple[list[bytes], list[int]]:
        """Give the bytes of token strings, as inside a text (not at its start).

        Args:
            tokens: The strings of the model's vocabulary.

        Returns:
            The bytes of each, and the indices of those that are byte fallbacks (`<0x0A>`).
        """

    def check(self, tokens: Iterable[str]) -> None:  # noqa: B027
        """Refuse strings that the decoder reads otherwise than `read` does; most have none.

        Args:
            tokens: Strings of tokens that text is made of.

        Raises:
            UnsupportedTokenizerError: One of them.
        """


class ByteLevelReader(TokenReader):
    """Characters of the byte alphabet stand for bytes; any other token for its own UTF-8."""

    def read(self, tokens: Sequence[str]) -> tuple[list[bytes], list[int]]:
        """See `TokenReader`. All tokens at once: O(characters), vectorised."""
        joined = "".join(tokens)
        code_points = np.frombuffer(joined.encode("utf-32-le"), dtype="<u4")
        outside = len(_BYTE_OF_CHARACTER) - 1
        values = _BYTE_OF_CHARACTER[np.minimum(code_points, outside)]
        data = values.astype(np.uint8).tobytes()
        ends = np.cumsum(np.fromiter(map(len, tokens), dtype=np.int64, count=len(tokens)))
        bounds = [0, *ends.tolist()]
        result = [data[start:end] for start, end in itertools.pairwise(bounds)]
        # One character that is no byte makes the whole token plain text, as in the decoder.
        plain = np.searchsorted(ends, np.flatnonzero(values < 0), side="right")
        for index in np.unique(plain).tolist():
            result[index] = tokens[index].encode()
        return result, []


@dataclass(frozen=True)
class GuardedByteLevelReader(ByteLevelReader):
    """A byte alphabet read at the end of a chain whose other components find nothing to do.

    Tokenizers made from GGUF files have such chains: a SentencePiece one, and the byte level
    behind it. It is exact as long as no token contains what the others look for.
    """

    chain: str
    marks: frozenset[str]
    byte_fallback: bool
    fused: bool

    def check(self, tokens: Iterable[str]) -> None:
        """See `TokenReader`."""
        alphabet = {chr(c) for c, byte in enumerate(_BYTE_OF_CHARACTER) if byte >= 0}
        for token in tokens:
            characters = set(token)
            # All tokens are one string by then: a character that is no byte leaves all of it plain.
            plain = self.fused and not characters <= alphabet
            fallback = self.byte_fallback and _BYTE_TOKEN.fullmatch(token)
            if plain or fallback or characters & self.marks:
                raise UnsupportedTokenizerError(
                    self.chain, f"the components read one another's output for token {token!r}"
                )


@dataclass(frozen=True)
class ReplacingReader(TokenReader):
    """The SentencePiece chain: literal replacements, then perhaps byte fallbacks."""

    replacements: tuple[tuple[str, str], ...]
    byte_fallback: bool

    def read(self, tokens: Sequence[str]) -> tuple[list[bytes], list[int]]:
        """See `TokenReader`."""
        for old, new in self.replacements:
            tokens = [token.replace(old, new) for token in tokens]
        result = [token.encode() for token in tokens]
        fallbacks = []
        if self.byte_fallback:
            for index, token in enumerate(tokens):
                if len(token) == 6 and (match := _BYTE_TOKEN.fullmatch(token)):
                    result[index] = bytes((int(match[1], 16),))
                    fallbacks.append(index)
        return result, fallbacks


@dataclass(frozen=True)
class WordPieceReader(TokenReader):
    """Continuations (`##x`) follow directly, every other token after a space."""

    prefix: str
    cleanup: bool

    def read(self, tokens: Sequence[str]) -> tuple[list[bytes], list[int]]:
        """See `TokenReader`."""
        result = []
        for token in tokens:
            continues = token.startswith(self.prefix)
            text = token.removeprefix(self.prefix) if continues else f" {token}"
            if self.cleanup:
                for old, new in _WORDPIECE_CLEANUP:
                    text = text.replace(old, new)
            result.append(text.encode())
        return result, []


def component_state(component: Any, role: str) -> dict[str, Any] | None:
    """Read the description of a decoder, normalizer or pre-tokenizer.

    Args:
        component: The object, or None where the tokenizer has none.
        role: What it is, for the message.

    Returns:
        Its JSON description, None without a component.

    Raises:
        UnsupportedTokenizerError: If it is written in Python, so that it has no description.
    """
    if component is None:
        return None
    try:
        state: dict[str, Any] = json.loads(component.__getstate__())
    except Exception as error:  # the library raises plain Exception here
        raise UnsupportedTokenizerError(
            f"{role} {type(component).__name__}", f"it has no description to read ({error})"
        ) from error
    return state


def flatten(state: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """List the components of a description, those inside (nested) Sequences in order."""
    if state is None:
        return []
    if state["type"] != "Sequence":
        return [state]
    return [leaf for part in state[key] for leaf in flatten(part, key)]


def token_reader(state: dict[str, Any] | None) -> TokenReader:
    """Find out how a decoder reads token strings.

    Args:
        state: The decoder's JSON description.

    Returns:
        The reader.

    Raises:
        UnsupportedTokenizerError: If a component, or the order of the components, has no exact
            reading per token.
    """
    if state is None:
        raise UnsupportedTokenizerError(
            "decoder missing", "without a decoder, tokens are joined with spaces between them"
        )
    parts = flatten(state, "decoders")
    kinds = [part["type"] for part in parts]
    bare = kinds[:-1] if kinds[-1:] == ["Fuse"] else kinds  # at the end it changes nothing
    if bare == ["ByteLevel"]:
        return ByteLevelReader()
    if bare == ["WordPiece"]:
        return WordPieceReader(parts[0]["prefix"], parts[0]["cleanup"])
    if bare[-1:] == ["ByteLevel"]:
        return _guarded_reader(parts[: len(bare) - 1], f"decoder Sequence[{', '.join(kinds)}]")
    if "ByteLevel" in kinds or "WordPiece" in kinds:
        raise UnsupportedTokenizerError(
            f"decoder Sequence[{', '.join(kinds)}]", "the components read one another's output"
        )
    return _replacing_reader(parts, kinds)


def _guarded_reader(before: list[dict[str, Any]], chain: str) -> TokenReader:
    """Read `(Replace | Metaspace | ByteFallback | Fuse)*` in front of the byte level."""
    marks = set()
    for part in before:
        mark = None
        if part["type"] == "Metaspace":
            mark = part["replacement"]
        elif part["type"] == "Replace":
            mark = part["pattern"].get("String")
        # A longer pattern might be found where two tokens meet.
        if mark is not None and len(mark) == 1:
            marks.add(mark)
        elif part["type"] not in ("ByteFallback", "Fuse"):
            raise UnsupportedTokenizerError(chain, "the components read one another's output")
    kinds = {part["type"] for part in before}
    return GuardedByteLevelReader(chain, frozenset(marks), "ByteFallback" in kinds, "Fuse" in kinds)


def _replacing_reader(parts: list[dict[str, Any]], kinds: list[str]) -> TokenReader:
    """Read `(Replace | Metaspace)* ByteFallback? Fuse? Strip?`, in that order only."""
    replacements: list[tuple[str, str]] = []
    order = {"Replace": 0, "Metaspace": 0, "ByteFallback": 1, "Fuse": 2, "Strip": 3}
    stage = 0
    for part, kind in zip(parts, kinds, strict=True):
        component = f"decoder {kind}"
        if kind not in order:
            raise UnsupportedTokenizerError(component, "it has no exact reading per token")
        repeated = order[kind] == stage > 0
        if order[kind] < stage or repeated or (kind == "Strip" and stage != order["Fuse"]):
            raise UnsupportedTokenizerError(
                f"decoder Sequence[{', '.join(kinds)}]",
                f"{kind} at this place could change bytes across tokens",
            )
        stage = order[kind]
        if kind == "Metaspace":
            replacements.append((part["replacement"], " "))
        elif kind == "Replace":
            pattern = part["pattern"].get("String")
            if not pattern:
                raise UnsupportedTokenizerError(component, "only a literal pattern can be read")
            replacements.append((pattern, part["content"]))
        elif kind == "Strip" and not (
            part["content"] == " " and part["start"] <= 1 and part["stop"] == 0
        ):
            # One leading space of the whole text is the dummy prefix; more would be text.
            raise UnsupportedTokenizerError(component, f"it strips more than a prefix: {part}")
    return ReplacingReader(tuple(replacements), "ByteFallback" in kinds)
