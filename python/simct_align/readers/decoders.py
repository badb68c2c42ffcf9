"""Internal: the bytes of token strings, read from the description of a Hugging Face decoder.

A `tokenizers` model contains printable strings, and its decoder turns them into bytes. Calling
`decode` for every id would be slow and wrong, because half a character becomes U+FFFD. The
components of the decoder are read instead. A decoder in which one token could change the bytes of
another token is refused.
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
from simct_align.readers.patterns import literal_of, text_at_start

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

# The byte tokens of the ByteFallback component: six characters, two of them a number in base 16.
# That component also accepts a plus sign as the first of the two.
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
    """Return the byte of every character of the byte-level alphabet, -1 for other characters."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = sorted(set(range(256)) - set(printable))
    table = np.full(0x100 + len(rest) + 1, -1, dtype=np.int16)
    table[printable] = printable
    # The other bytes, in order, take the code points from U+0100 on.
    table[0x100 : 0x100 + len(rest)] = rest
    return table


_BYTE_OF_CHARACTER = _byte_alphabet()


class TokenReader(ABC):
    """The conversion of token strings to bytes by one decoder."""

    @abstractmethod
    def read(self, tokens: Sequence[str]) -> tuple[list[bytes], list[int]]:
        """Return the bytes of token strings inside a text, not at its start.

        Args:
            tokens: The strings of the model's vocabulary.

        Returns:
            The bytes of every string, and the indices of the byte fallbacks (`<0x0A>`).
        """

    def check(self, tokens: Iterable[str]) -> None:  # noqa: B027
        """Raise an error for a string that the decoder does not convert as `read` does.

        Most decoders have no such strings.

        Args:
            tokens: Strings of tokens of text.

        Raises:
            UnsupportedTokenizerError: A string is converted differently.
        """


class ByteLevelReader(TokenReader):
    """Characters of the byte alphabet become their bytes; any other token becomes its UTF-8."""

    def read(self, tokens: Sequence[str]) -> tuple[list[bytes], list[int]]:
        """See `TokenReader`. O(characters of all tokens), in NumPy."""
        joined = "".join(tokens)
        code_points = np.frombuffer(joined.encode("utf-32-le"), dtype="<u4")
        outside = len(_BYTE_OF_CHARACTER) - 1
        values = _BYTE_OF_CHARACTER[np.minimum(code_points, outside)]
        data = values.astype(np.uint8).tobytes()
        ends = np.cumsum(np.fromiter(map(len, tokens), dtype=np.int64, count=len(tokens)))
        bounds = [0, *ends.tolist()]
        result = [data[start:end] for start, end in itertools.pairwise(bounds)]
        # One character outside the alphabet makes the whole token plain text, as in the decoder.
        plain = np.searchsorted(ends, np.flatnonzero(values < 0), side="right")
        for index in np.unique(plain).tolist():
            result[index] = tokens[index].encode()
        return result, []


@dataclass(frozen=True)
class GuardedByteLevelReader(ByteLevelReader):
    """The byte level at the end of a chain whose other components change nothing.

    Tokenizers made from GGUF files have such chains: the components of SentencePiece, then the
    byte level. The result is exact if no token contains what the other components replace.
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
            # Fuse has joined all tokens: one character outside the alphabet makes all plain.
            plain = self.fused and not characters <= alphabet
            fallback = self.byte_fallback and _BYTE_TOKEN.fullmatch(token)
            if plain or fallback or characters & self.marks:
                raise UnsupportedTokenizerError(
                    self.chain, f"one component changes the input of another for token {token!r}"
                )


@dataclass(frozen=True)
class ReplacingReader(TokenReader):
    """The SentencePiece chain: literal replacements, before and after perhaps byte fallbacks.

    Attributes:
        chain: The chain, for messages.
        before: Replacements of the tokens' own strings.
        byte_fallback: Whether tokens such as `<0x0A>` are bytes.
        after: Replacements of what the byte fallbacks spell, too.
    """

    chain: str
    before: tuple[tuple[str, str], ...]
    byte_fallback: bool = False
    after: tuple[tuple[str, str], ...] = ()

    def read(self, tokens: Sequence[str]) -> tuple[list[bytes], list[int]]:
        """See `TokenReader`."""
        tokens = _replaced(tokens, self.before)
        result = [token.encode() for token in _replaced(tokens, self.after)]
        fallbacks = []
        if self.byte_fallback:
            for index, token in enumerate(tokens):
                if len(token) == 6 and (match := _BYTE_TOKEN.fullmatch(token)):
                    byte = int(match[1], 16)
                    # A byte below 0x80 is a character, which later components replace.
                    text = _replaced([chr(byte)], self.after)[0] if byte < 0x80 else ""
                    result[index] = text.encode() if byte < 0x80 else bytes((byte,))
                    if len(result[index]) == 1:
                        fallbacks.append(index)
        return result, fallbacks

    def check(self, tokens: Iterable[str]) -> None:
        """See `TokenReader`.

        What is replaced after the byte fallbacks would also be replaced where several fallbacks
        spell it. No encoder spells it so if its characters are tokens of their own. Where a model
        samples such fallbacks all the same, their bytes are what they spell.
        """
        spelled = {
            character
            for old, _ in self.after
            for character in old
            if len(old) > 1 or ord(character) > 0x7F
        }
        if not spelled:
            return
        alone = set()
        fallbacks = set()
        for token in _replaced(list(tokens), self.before):
            if len(token) == 1:
                alone.add(token)
            elif match := _BYTE_TOKEN.fullmatch(token):
                fallbacks.add(int(match[1], 16))
        for character in sorted(spelled - alone):
            if fallbacks.issuperset(character.encode()):
                raise UnsupportedTokenizerError(
                    self.chain,
                    f"it replaces {character!r} after the byte fallbacks, and only byte fallbacks "
                    f"spell {character!r}: what one of them adds depends on its neighbours",
                )


def _replaced(tokens: Sequence[str], replacements: Iterable[tuple[str, str]]) -> Sequence[str]:
    for old, new in replacements:
        tokens = [token.replace(old, new) for token in tokens]
    return tokens


@dataclass(frozen=True)
class WordPieceReader(TokenReader):
    """Continuations (`##x`) follow directly; every other token follows after a space."""

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
        component: The object, or None if the tokenizer has no such component.
        role: The role of the component, for the message.

    Returns:
        The JSON description, or None without a component.

    Raises:
        UnsupportedTokenizerError: The component is written in Python and has no description.
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
    """Return the components of a description; nested Sequences are flattened, in order."""
    if state is None:
        return []
    if state["type"] != "Sequence":
        return [state]
    return [leaf for part in state[key] for leaf in flatten(part, key)]


def token_reader(state: dict[str, Any] | None) -> TokenReader:
    """Choose the reader of token strings for a decoder.

    Args:
        state: The JSON description of the decoder.

    Returns:
        The reader.

    Raises:
        UnsupportedTokenizerError: A component, or the order of the components, does not determine
            the bytes of every single token.
    """
    if state is None:
        raise UnsupportedTokenizerError(
            "decoder missing", "without a decoder, the library puts spaces between tokens"
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
            f"decoder Sequence[{', '.join(kinds)}]", "one component changes the input of another"
        )
    return _replacing_reader(parts, kinds)


def _guarded_reader(before: list[dict[str, Any]], chain: str) -> TokenReader:
    """Read `(Replace | Metaspace | ByteFallback | Fuse)*` before the byte level."""
    marks = set()
    for part in before:
        mark = None
        if part["type"] == "Metaspace":
            mark = part["replacement"]
        elif part["type"] == "Replace":
            mark = literal_of(part["pattern"])
        # A longer pattern could match across two tokens.
        if mark is not None and len(mark) == 1:
            marks.add(mark)
        elif part["type"] not in ("ByteFallback", "Fuse"):
            raise UnsupportedTokenizerError(chain, "one component changes the input of another")
    kinds = {part["type"] for part in before}
    return GuardedByteLevelReader(chain, frozenset(marks), "ByteFallback" in kinds, "Fuse" in kinds)


def _replacing_reader(parts: list[dict[str, Any]], kinds: list[str]) -> TokenReader:
    """Read chains of Replace, Metaspace, ByteFallback, Fuse and Strip.

    Before Fuse, every component reads the tokens one by one. After Fuse it reads the whole text:
    then only what acts on single characters, or once at the start of the text, is exact.
    """
    chain = f"decoder Sequence[{', '.join(kinds)}]"
    replacements: list[tuple[str, str]] = []
    before_fallback = None
    removed_at_start: list[tuple[str, int]] = []
    seen: set[str] = set()
    for part, kind in zip(parts, kinds, strict=True):
        if kind not in ("Replace", "Metaspace", "ByteFallback", "Fuse", "Strip"):
            raise UnsupportedTokenizerError(
                f"decoder {kind}", "it does not determine the bytes per token"
            )
        repeated = kind in seen and kind not in ("Replace", "Metaspace")
        misplaced = kind == "ByteFallback" and "Fuse" in seen
        if repeated or misplaced or "Strip" in seen:
            raise UnsupportedTokenizerError(
                chain, f"{kind} at this place can change bytes across tokens"
            )
        seen.add(kind)
        if kind == "ByteFallback":
            before_fallback = len(replacements)
        elif kind == "Strip":
            _check_strip(part, chain, fused="Fuse" in seen)
        elif kind == "Metaspace":
            if "Fuse" in seen and part["prepend_scheme"] != "never":
                raise UnsupportedTokenizerError(
                    chain, "Metaspace after Fuse takes all spaces for those before the text"
                )
            replacements.append((part["replacement"], " "))
        elif kind == "Replace":
            at_start = text_at_start(part["pattern"])
            if at_start and not part["content"]:
                if "Fuse" not in seen:
                    raise UnsupportedTokenizerError(
                        chain, f"before Fuse it removes {at_start!r} from every token"
                    )
                removed_at_start.append((at_start, len(replacements)))
            else:
                replacements.append(_replacement(part, chain, fused="Fuse" in seen))
    for text, place in removed_at_start:
        # One space at the start of the whole text is the dummy prefix; more would be text.
        if len(removed_at_start) > 1 or _replaced([text], replacements[place:]) != [" "]:
            raise UnsupportedTokenizerError(
                "decoder Replace", f"it removes {text!r} at the start, which is more than a prefix"
            )
    if before_fallback is None:
        return ReplacingReader(chain, tuple(replacements))
    before, after = replacements[:before_fallback], replacements[before_fallback:]
    return ReplacingReader(chain, tuple(before), byte_fallback=True, after=tuple(after))


def _replacement(part: dict[str, Any], chain: str, *, fused: bool) -> tuple[str, str]:
    """Read a Replace component that acts on single tokens."""
    text = literal_of(part["pattern"])
    if text is None:
        shown = part["pattern"].get("Regex", "")
        reason = (
            f"the pattern {shown!r} matches at the start of every line, so the bytes of a token "
            "depend on the one before"
            if shown.startswith("^")
            else f"the pattern {shown!r} matches more than one text; only a literal pattern, or "
            "one that removes a space at the start of the text, is exact for single tokens"
        )
        raise UnsupportedTokenizerError("decoder Replace", reason)
    if fused and len(text) > 1:
        raise UnsupportedTokenizerError(
            chain, f"after Fuse, the pattern {text!r} can match across two tokens"
        )
    return text, part["content"]


def _check_strip(part: dict[str, Any], chain: str, *, fused: bool) -> None:
    if not fused:
        raise UnsupportedTokenizerError(
            chain, "Strip at this place can change bytes across tokens: it strips every token"
        )
    if part["content"] != " " or part["start"] > 1 or part["stop"]:
        # One space at the start of the whole text is the dummy prefix; more would be text.
        raise UnsupportedTokenizerError("decoder Strip", f"it strips more than a prefix: {part}")
