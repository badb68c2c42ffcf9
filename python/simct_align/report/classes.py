"""Internal: what units and tokens consist of: writing systems, numbers, code, in bulk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from simct_align import _native

if TYPE_CHECKING:
    from numpy.typing import NDArray

CODE = "Code"
#: Signs that stand inside or next to a word in code, and hardly ever inside a token of prose.
_CODE_SIGNS = '_(){}[]<>=+*/\\|&^%$#@~;:."`'
_LETTER, _CODE_SIGN = 1, 2


@dataclass(frozen=True)
class TextClasses:
    """The classes of texts, by number: groups of characters, and code.

    The class of a text is that of its most telling character: an emoji, else a letter, else a
    number, else punctuation, else white space. A text of letters and signs of code is of class
    `CODE`. Of two writing systems in one text the one with the larger number counts.

    Attributes:
        names: The names of the classes.
    """

    names: tuple[str, ...]
    _rank: NDArray[np.uint8]
    _class_of_rank: NDArray[np.uint8]
    _flags: NDArray[np.uint8]

    def of_spans(
        self, data: bytes, starts: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        """Return the class of every span of bytes.

        Args:
            data: Texts, one after another. A byte that is part of no character is of class "Other".
            starts: Where the spans begin, int64 `[spans]`.
            ends: Where the spans end, int64 `[spans]`. An empty span is of class "Other".

        Returns:
            Numbers of classes, `[spans]`.

        Complexity:
            O(bytes + spans), in NumPy.
        """
        text = data.decode("utf-8", "surrogateescape")
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        width = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
        width[(codes >= 0xD800) & (codes < 0xE000)] = 1  # an escaped byte
        # `reduceat` reads from every index up to the next one: those of spans are every other one.
        # The zero at the end lets the last span end there.
        bounds = np.stack([starts, ends], axis=1).reshape(-1)
        if not len(bounds):
            return np.zeros(0, np.uint8)
        rank = np.append(np.repeat(self._rank[codes], width), np.uint8(0))
        flags = np.append(np.repeat(self._flags[codes], width), np.uint8(0))
        found = self._class_of_rank[np.maximum.reduceat(rank, bounds)[::2]]
        both = np.bitwise_or.reduceat(flags, bounds)[::2] == _LETTER | _CODE_SIGN
        found = np.where(both, np.uint8(len(self.names) - 1), found)
        return np.where(starts < ends, found, np.uint8(0))


@cache
def text_classes() -> TextClasses:
    """Return the classes, which are made once per process, in some tens of milliseconds."""
    group, names = _native.character_groups()
    order = np.arange(len(names), dtype=np.uint8)
    emoji = names.index("Emoji")
    # Emoji come last, so that they outrank the letters of writing systems.
    class_of_rank = np.append(np.delete(order, emoji), np.uint8(emoji))
    rank_of_class = np.argsort(class_of_rank).astype(np.uint8)
    flags = (group > emoji).astype(np.uint8) * np.uint8(_LETTER)
    flags[[ord(sign) for sign in _CODE_SIGNS]] |= np.uint8(_CODE_SIGN)
    return TextClasses((*names, CODE), rank_of_class[group], class_of_rank, flags)
