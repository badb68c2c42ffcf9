"""Internal: the command line `simct-align`, which inspects tokenizers and aligns texts."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simct_align import Aligner, Vocabulary, __version__
from simct_align.describe import (
    CoverageSum,
    describe_pair,
    describe_row,
    describe_spellings,
    draw_coverage,
    draw_row,
)
from simct_align.inputs import thread_count
from simct_align.terminal import Progress, Screen, draw_legend, draw_table
from simct_align.text_input import DataError, in_batches, open_file, single_text, standard_input

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

EXIT_OK, EXIT_BAD_DATA, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

_TOKENIZER_HELP = "directory, tokenizer.json[.gz], .model, tekken.json, or hub id"

_DESCRIPTION = """\
Align two tokenizations of the same text, byte for byte.

The text is cut into units: the smallest pieces that both tokenizations have.
A unit is one token on both sides (shared) or several on at least one (multi)."""

_EPILOG = """\
examples:
  simct-align demo
  simct-align inspect path/to/teacher path/to/student
  simct-align align path/to/teacher path/to/student --text "It costs 12345."
  simct-align align TEACHER STUDENT --file train.jsonl --field answer --summary
  simct-align align TEACHER STUDENT --file train.jsonl --json > units.jsonl
  cat notes.txt | simct-align align TEACHER STUDENT -

exit codes: 0 done; 1 the data or a tokenizer cannot be read; 2 wrong usage.
NO_COLOR=1 turns colours off, FORCE_COLOR=1 turns them on."""

_INSPECT_EPILOG = """\
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

_ALIGN_EPILOG = """\
Sources of texts:
  --text T          one text
  --file F.jsonl    one JSON object per line; --field names the field of the text
  --file F.txt      any other file: every line is a text
  -                 standard input: every line is a text, or a JSON object with --field
Files may be compressed (.gz). Lines of white space in a JSONL file are skipped.

Output of --json, one object per line:
  {"type": "text", "text": 0, "line": 1, "teacher_tokens": [ids], "student_tokens": [ids],
   "units": [{"teacher": [start, end], "student": [start, end], "kind": "shared", "text": "It"}],
   "unmatched": [{"teacher": [start, end], "student": [start, end], "reason": "bytes_differ"}]}
and, after all texts, {"type": "coverage", ...}. Ranges are token positions, end excluded.
"bytes" (hex) is added if the bytes of a unit are not valid UTF-8.

examples:
  simct-align align TEACHER STUDENT --text "naïve café 12345"
  simct-align align TEACHER STUDENT --file train.jsonl --field answer --limit 10
  simct-align align TEACHER STUDENT --file train.jsonl --field answer --summary"""


def _open_pair(teacher: str, student: str) -> Aligner:
    return Aligner(_open_vocabulary(teacher), _open_vocabulary(student))


def _open_vocabulary(source: str) -> Vocabulary:
    try:
        return Vocabulary.from_tokenizer(source)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise DataError(f"cannot read the tokenizer {source!r}: {error}") from error


# --- inspect -------------------------------------------------------------------------------------


def _inspect(arguments: argparse.Namespace) -> int:
    aligner = _open_pair(arguments.teacher, arguments.student)
    found = describe_pair(aligner)
    for name in ("teacher", "student"):
        found[name] |= describe_spellings(getattr(aligner.spellings, name))
    if arguments.json:
        _print_json(found)
        return EXIT_OK
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
    return EXIT_OK


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


def _print_json(value: dict[str, Any]) -> None:
    # Everything but ASCII is escaped: every encoding of stdout can write the line, and no reader
    # takes U+2028 for the end of the line.
    sys.stdout.write(json.dumps(value, ensure_ascii=True) + "\n")


def _align(arguments: argparse.Namespace) -> int:
    with ExitStack() as stack:
        if arguments.text is not None:
            source = single_text(arguments.text)
        elif arguments.file is None or arguments.file == "-":
            source = standard_input(arguments.field)
        else:
            source = open_file(Path(arguments.file), arguments.field, stack)
        aligner = _open_pair(arguments.teacher, arguments.student)
        screen = Screen.of(sys.stdout)
        prints_rows_here = sys.stdout.isatty() and not arguments.summary
        shown = arguments.progress or (sys.stderr.isatty() and not prints_rows_here)
        progress = Progress(source.total_bytes, shown=shown)
        stack.callback(progress.close)
        total = CoverageSum()
        done = 0
        if not arguments.json and not arguments.summary:
            draw_legend(screen)
            screen.line()
        for texts in in_batches(source.texts, arguments.limit):
            batch = aligner.align_texts([item.text for item in texts], threads=arguments.threads)
            total.add(batch.coverage().as_dict())
            for row, item in enumerate([] if arguments.summary else texts):
                described = describe_row(batch, row)
                if arguments.json:
                    place = {"type": "text", "text": done + row, "line": item.line}
                    _print_json({**place, **described})
                else:
                    where = f"line {item.line}" if item.line else "text"
                    draw_row(screen, aligner, described, where)
            done += len(texts)
            progress.update(texts[-1].bytes_read, done)
        if not done:
            total.add(aligner.align_texts([]).coverage().as_dict())
    if arguments.json:
        _print_json({"type": "coverage", **total.counts})
    else:
        draw_coverage(screen, total.counts)
    return EXIT_OK


# --- the command line ----------------------------------------------------------------------------


def _demo(_: argparse.Namespace) -> int:
    from simct_align.demo.show import show_demo

    show_demo(Screen.of(sys.stdout))
    return EXIT_OK


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _threads(text: str) -> int:
    try:
        number = thread_count(_positive(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    assert number is not None
    return number


def _parser() -> argparse.ArgumentParser:
    def add(commands: Any, name: str, run: Callable[..., int], **texts: str) -> Any:
        parser = commands.add_parser(
            name, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
        )
        parser.set_defaults(run=run)
        return parser

    parser = argparse.ArgumentParser(
        prog="simct-align",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"simct-align {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    inspect = add(
        commands, "inspect", _inspect, help="count shared and one-sided tokens",
        epilog=_INSPECT_EPILOG,
        description="Count the tokens of two vocabularies by kind, shared and one-sided.",
    )  # fmt: skip
    align = add(
        commands, "align", _align, help="align texts, show units and coverage",
        epilog=_ALIGN_EPILOG,
        description="Tokenize texts on both sides, align them, and show units and coverage.",
    )  # fmt: skip
    add(
        commands, "demo", _demo, help="show a demo without any file",
        description="Align a passage with the two bundled tokenizers: units, coverage, speed.",
        epilog="Takes a few seconds; needs no network and no file.",
    )  # fmt: skip
    for command in (inspect, align):
        command.add_argument("teacher", metavar="TEACHER", help=_TOKENIZER_HELP)
        command.add_argument("student", metavar="STUDENT", help=_TOKENIZER_HELP)
        command.add_argument("--json", action="store_true", help="print JSON lines instead of text")
    source = align.add_mutually_exclusive_group()
    source.add_argument("--text", metavar="T", help="align this text")
    source.add_argument("--file", metavar="F", help="read texts from a file (- for standard input)")
    source.add_argument("stdin", nargs="?", choices=["-"], metavar="-", help="read standard input")
    align.add_argument("--field", metavar="NAME", help='JSON field of the text (default "text")')
    align.add_argument("--limit", type=_positive, metavar="N", help="stop after N texts")
    align.add_argument("--threads", type=_threads, metavar="N", help="threads (default: all)")
    align.add_argument("--summary", action="store_true", help="print only the coverage")
    align.add_argument(
        "--progress", action="store_true", help="show progress without a terminal, too"
    )
    return parser


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "align":
        given = [s for s in (arguments.text, arguments.file, arguments.stdin) if s is not None]
        # argparse has already matched the optional "-" with nothing when it reads the options.
        if rest == ["-"] and not given:
            given, rest = rest, []
        if not rest and not given:
            parser.error("align: give one of --text, --file and -")
        if arguments.field is not None and arguments.text is not None:
            parser.error("align: --field is for JSON lines; leave it out with --text")
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    sys.stderr.write(f"simct-align: warning: {' '.join(str(message).split())}\n")


def _run(argv: Sequence[str]) -> int:
    try:
        arguments = _parse(argv)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code: int = arguments.run(arguments)
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a usage error
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    except DataError as error:
        sys.stderr.write(f"simct-align: {' '.join(str(error).split())}\n")
        return EXIT_BAD_DATA
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Use it as the entry point of `simct-align`, or call it with arguments in a test.

    Args:
        argv: Arguments without the program's name. None means `sys.argv[1:]`.

    Returns:
        0 when done; 1 if the data or a tokenizer cannot be read, or the output cannot be written
        (one line on stderr gives the reason); 2 for wrong usage; 130 when interrupted.

    Complexity:
        `align` takes time linear in the input and holds one batch of texts in memory.

    Example:
        >>> from simct_align.cli import main
        >>> from simct_align.demo import demo_tokenizers
        >>> teacher, student = map(str, demo_tokenizers())
        >>> main(["align", teacher, student, "--text", "12", "--json"])  # doctest: +ELLIPSIS
        {"type": "text", ...
        0
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character shows an escape; in-memory streams show all.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except OSError as error:  # from stdout: errors of reading are DataErrors
        # Python flushes stdout once more at exit: discard that output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader has seen enough
            return EXIT_OK
        sys.stderr.write(f"simct-align: cannot write: {error.strerror or error}\n")
        return EXIT_BAD_DATA
    return code


if __name__ == "__main__":
    raise SystemExit(main())
