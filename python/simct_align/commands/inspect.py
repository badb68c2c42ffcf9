"""Internal: `simct-align inspect`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from simct_align.commands.shared import open_pair, print_json
from simct_align.describe import describe_pair, describe_spellings
from simct_align.terminal import Screen, draw_table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

EPILOG = """\
The share of the side is the part of its distinct token texts that are a single
token on the other side too. It is the part of the vocabulary that can be
compared token by token. `simct-align align` shows the coverage of a text.

One-sided tokens are tokens whose text is not a single token of the other side.
They are counted by the length of their spelling: the number of tokens with
which the other side writes them.

Stops are the tokens that end a turn, the canonical one first, each with the
places that name it: the chat template, eos_token of special_tokens_map.json and
of tokenizer_config.json, eos_token_id of config.json and of
generation_config.json, and the default of the tokenizer's class.

example:
  simct-align inspect path/to/teacher path/to/student --json"""


def run(arguments: argparse.Namespace) -> None:
    """Print counts of two vocabularies."""
    aligner = open_pair(arguments.teacher, arguments.student)
    found = describe_pair(aligner)
    for name in ("teacher", "student"):
        found[name] |= describe_spellings(getattr(aligner.spellings, name))
    if arguments.json:
        print_json(found)
        return
    teacher, student, shared = found["teacher"], found["student"], found["shared"]

    def both(label: str, value: Callable[[dict[str, Any]], str]) -> list[str]:
        return [label, value(teacher), value(student)]

    def row(label: str, name: str) -> list[str]:
        return both(label, lambda side: f"{side[name]:,}")

    screen = Screen.of(sys.stdout)
    rows = [["", "teacher", "student"], row("ids", "vocabulary")]
    labels = {"normal": "text", "byte": "byte fallback", "special": "special", "unused": "unused"}
    for kind, label in labels.items():
        rows.append(both(f"  {label}", lambda side, kind=kind: f"{side['kinds'][kind]:,}"))  # type: ignore[misc]
    rows.append(row("distinct texts", "distinct_texts"))
    rows.append(["shared texts", f"{shared['texts']:,}", f"{shared['texts']:,}"])
    rows.append(both("  share of the side", lambda side: f"{side['shared_share']:.1%}"))
    rows.append(row("one-sided tokens", "one_sided"))
    rows += _spelling_rows(teacher, student)
    rows.append(row("  without a spelling", "unspelled"))
    rows.append(both("space before a text", lambda side: "yes" if side["dummy_prefix"] else "no"))
    screen.line(f"teacher  {arguments.teacher}")
    screen.line(f"student  {arguments.student}")
    screen.line()
    draw_table(screen, rows)
    screen.line()
    for label, side in (("teacher", teacher), ("student", student)):
        screen.line(f"  stops of the {label}: {'' if side['stops'] else 'none known'}".rstrip())
        for token, name in side["stops"].items():
            screen.line(f"    {name}  id {token}, from {', '.join(side['stop_sources'][token])}")
    specials = "  ".join(f"{left} = {right}" for left, right in shared["mapped_specials"])
    screen.line(f"  special tokens mapped onto each other: {specials or 'none'}")


def _spelling_rows(teacher: dict[str, Any], student: dict[str, Any]) -> list[list[str]]:
    """Return table rows of one-sided tokens by the length of their spelling."""
    rows = []
    for first, last in ((2, 2), (3, 3), (4, 4), (5, 8), (9, None)):
        counts = [
            sum(
                count
                for length, count in side["spelled_by_length"].items()
                if first <= int(length) and (last is None or int(length) <= last)
            )
            for side in (teacher, student)
        ]
        if any(counts):
            lengths = f"{first}" if last == first else f"{first} to {last}" if last else f"{first}+"
            rows.append([f"  spelled with {lengths} tokens", *(f"{count:,}" for count in counts)])
    return rows
