"""Internal: the regular expressions of Replace components that can be read exactly.

The `tokenizers` library uses Oniguruma's Ruby syntax. In it `^` matches at the start of every line.
"""

from __future__ import annotations

import re

# One character of a regular expression that stands for itself: plain, escaped, or alone in a class.
_LITERAL = re.compile(
    r"""
    (?P<plain> [^\\^$.|?*+()\[\]{}] )
    | \\ (?P<escaped> [^0-9A-Za-z] )
    | \\ (?P<control> [tnrfv] )
    | \\ (?: x(?P<two>[0-9A-Fa-f]{2}) | u(?P<four>[0-9A-Fa-f]{4}) | x\{(?P<any>[0-9A-Fa-f]{1,6})\} )
    | \[ (?P<alone> [^\\^\[\]&] ) \]
    """,
    re.VERBOSE,
)
_CONTROL = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v"}
# What matches at the start of a text and nowhere else. `(?<!\n)^` is a start of a line that does
# not follow a line break.
_TEXT_START = re.compile(r"\\A|\(\?<!(?:\\n|\n|\[\\n\]|\[\n\])\)\^")


def literal_of(pattern: dict[str, str]) -> str | None:
    """Return the only text that the pattern of a Replace component matches.

    Args:
        pattern: `{"String": text}` or `{"Regex": expression}`.

    Returns:
        The text; `None` if the pattern matches other texts, too, or is empty.
    """
    if "String" in pattern:
        return pattern["String"] or None
    expression = pattern.get("Regex", "")
    text = ""
    position = 0
    while position < len(expression):
        match = _LITERAL.match(expression, position)
        if match is None:
            return None
        position = match.end()
        kind = str(match.lastgroup)
        if kind == "control":
            text += _CONTROL[match[kind]]
        elif kind in ("two", "four", "any"):
            text += chr(int(match[kind], 16))
        else:
            text += match[kind]
    return text or None


def text_at_start(pattern: dict[str, str]) -> str | None:
    r"""Return what a pattern matches at the start of a text, if it matches nowhere else.

    Args:
        pattern: `{"Regex": expression}`, such as `\A ` or `(?<!\n)^▁?`.

    Returns:
        The text; empty if the pattern is only the start. `None` for other patterns.
    """
    anchor = _TEXT_START.match(pattern.get("Regex", ""))
    if anchor is None:
        return None
    rest = pattern["Regex"][anchor.end() :]
    if len(rest) > 1 and rest.endswith("?") and not rest.endswith("\\?"):
        rest = rest[:-1]  # once or not at all
    return "" if not rest else literal_of({"Regex": rest})
