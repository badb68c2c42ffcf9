"""Internal: terminal output of the command line: colours, token cells, tables, a progress bar."""

from __future__ import annotations

import os
import shutil
import sys
import time
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_CODES = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
    "shared": "32",
    "multi": "30;43",
    "special": "30;46",
    "unmatched": "97;41",
}
# Marks below a cell that show its kind on a terminal without colours.
_MARKS = {"shared": " ", "multi": "~", "special": "^", "unmatched": "!"}
_WHITE_SPACE = {" ": "·", "\n": "↵", "\t": "⇥"}
_TOKEN_EDGE = "┊"
_UNIT_EDGE = "│"
_LABEL_COLUMNS = 10
_MAX_COLUMNS = 160


def wants_colour(stream: TextIO) -> bool:
    """Return whether to colour a stream: by NO_COLOR, then FORCE_COLOR, then isatty."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return os.environ["FORCE_COLOR"] != "0"
    return stream.isatty() and os.environ.get("TERM") != "dumb"


@dataclass(frozen=True)
class Screen:
    """A stream with its width and whether it shows colours."""

    stream: TextIO
    colour: bool
    columns: int

    @classmethod
    def of(cls, stream: TextIO) -> Screen:
        """Return the screen of a stream, as wide as COLUMNS, else the terminal, else 100."""
        columns = shutil.get_terminal_size(fallback=(100, 24)).columns
        return cls(stream, wants_colour(stream), max(40, min(columns, _MAX_COLUMNS)))

    def line(self, text: str = "") -> None:
        """Write one line."""
        self.stream.write(text + "\n")

    def paint(self, text: str, style: str) -> str:
        """Return the text in a style, or unchanged if the stream shows no colours."""
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self.colour and text else text

    def title(self, text: str) -> None:
        """Write a heading with an empty line before it."""
        self.line()
        self.line(self.paint(text, "bold"))


def columns_of(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(
        0
        if unicodedata.combining(character) or unicodedata.category(character) in ("Mn", "Me")
        else 2
        if unicodedata.east_asian_width(character) in ("W", "F")
        else 1
        for character in text
    )


def _escape(code: int) -> str:
    r"""Return the escape of a code point, also of ASCII ones, which `backslashreplace` keeps."""
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def visible(token: bytes) -> str:
    r"""Return a token's bytes as text without invisible and control characters.

    White space becomes `·`, `↵` and `⇥`. Bytes that are not whole characters, control characters,
    other invisible characters, and these three signs themselves become escapes such as `\x9f`.
    """
    shown = []
    for character in token.decode("utf-8", "backslashreplace"):
        if character in _WHITE_SPACE:
            shown.append(_WHITE_SPACE[character])
        elif unicodedata.category(character)[0] in "CZ" or character in _WHITE_SPACE.values():
            shown.append(_escape(ord(character)))
        else:
            shown.append(character)
    if shown and unicodedata.category(shown[0][0])[0] == "M":
        shown.insert(0, "◌")  # an accent alone would sit on the edge of the cell
    return "".join(shown)


@dataclass(frozen=True)
class Cell:
    """One unit or unmatched span: the printable tokens of both sides, and its kind."""

    kind: str
    teacher: Sequence[str]
    student: Sequence[str]


def _joined(tokens: Sequence[str], room: int) -> str:
    """Join tokens with edges; tokens in the middle that do not fit are replaced by a count."""
    whole = _TOKEN_EDGE.join(tokens)
    if columns_of(whole) <= room:
        return whole
    head, tail = list[str](), list[str]()
    used, low, high = len(f" … {len(tokens)} more … "), 0, len(tokens)
    while low < high:
        from_head = len(head) <= len(tail)
        token = tokens[low] if from_head else tokens[high - 1]
        used += columns_of(token) + 1
        if used > room:
            break
        if from_head:
            head.append(token)
            low += 1
        else:
            tail.insert(0, token)
            high -= 1
    return _TOKEN_EDGE.join([*head, f" … {high - low} more … ", *tail])


def _lines(cells: Sequence[Cell], room: int) -> Iterator[list[tuple[str, str, str, int]]]:
    """Yield lines of cells (kind, teacher, student, columns), each as full as possible."""
    line: list[tuple[str, str, str, int]] = []
    used = 1
    for cell in cells:
        teacher, student = _joined(cell.teacher, room - 2), _joined(cell.student, room - 2)
        columns = max(columns_of(teacher), columns_of(student), 1)
        if line and used + columns + 1 > room:
            yield line
            line, used = [], 1
        line.append((cell.kind, teacher, student, columns))
        used += columns + 1
    if line:
        yield line


def draw_cells(screen: Screen, cells: Sequence[Cell]) -> None:
    """Draw both tokenizations one above the other, with one column per unit.

    Without colours, a third line marks units of several tokens with `~`, pairs of special tokens
    with `^`, and unmatched spans with `!`.
    """
    edge = screen.paint(_UNIT_EDGE, "dim")
    for line in _lines(cells, screen.columns - _LABEL_COLUMNS):
        for label, side in (("teacher", 1), ("student", 2)):
            shown = [
                screen.paint(
                    str(item[side]) + " " * (item[3] - columns_of(str(item[side]))), item[0]
                )
                for item in line
            ]
            name = screen.paint(f"{label:>{_LABEL_COLUMNS - 1}}", "dim")
            screen.line(f"{name} {edge}{edge.join(shown)}{edge}")
        marks = " ".join(_MARKS[kind] * columns for kind, _, _, columns in line)
        if not screen.colour and marks.strip():
            screen.line(f"{'':>{_LABEL_COLUMNS}} {marks}".rstrip())


def draw_legend(screen: Screen) -> None:
    """Draw the meaning of the colours (or marks) and of the edges of cells."""
    meanings = {
        "shared": "one token on both sides",
        "multi": "several tokens",
        "special": "special tokens",
        "unmatched": "unmatched",
    }
    keys = [
        screen.paint(f" {text} ", kind)
        if screen.colour
        else text
        if kind == "shared"
        else f"{_MARKS[kind]} {text}"
        for kind, text in meanings.items()
    ]
    screen.line(f"{' '.join(keys) if screen.colour else ', '.join(keys)}")
    screen.line(
        screen.paint(f"{_UNIT_EDGE} unit  {_TOKEN_EDGE} token  · space  ↵ line end  ⇥ tab", "dim")
    )


def draw_table(screen: Screen, rows: Sequence[Sequence[str]]) -> None:
    """Draw a table: row 0 is the head, the first column is left-aligned, the others right."""
    widths = [max(columns_of(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        parts = [
            text + " " * (width - columns_of(text))
            if place == 0
            else " " * (width - columns_of(text)) + text
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = "  " + "  ".join(parts).rstrip()
        screen.line(screen.paint(line, "dim") if number == 0 else line)


class Progress:
    """A progress bar on stderr.

    Args:
        total_bytes: The size of the input; None if it is not known, then the bar counts texts.
        shown: Whether to draw the bar.
    """

    _SECONDS_BETWEEN = 0.1
    _BAR_COLUMNS = 30

    def __init__(self, total_bytes: int | None, *, shown: bool) -> None:
        self._total = total_bytes
        self._shown = shown
        self._drawn_at = 0.0

    def close(self) -> None:
        """Erase the bar."""
        if self._shown and self._drawn_at:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def update(self, done_bytes: int, done_texts: int) -> None:
        """Draw the bar again, at most every 0.1 seconds."""
        now = time.monotonic()
        if not self._shown or now - self._drawn_at < self._SECONDS_BETWEEN:
            return
        self._drawn_at = now
        if self._total:
            share = min(done_bytes / self._total, 1.0)
            bar = ("█" * round(share * self._BAR_COLUMNS)).ljust(self._BAR_COLUMNS, "░")
            sys.stderr.write(f"\r\x1b[K{bar} {share:4.0%}  {done_texts:,} texts")
        else:
            sys.stderr.write(f"\r\x1b[K{done_texts:,} texts")
        sys.stderr.flush()
