"""Internal: the command line `simct-align`, which inspects tokenizers and aligns texts."""

from __future__ import annotations

import argparse
import io
import os
import sys
import warnings
from typing import TYPE_CHECKING, Any

from simct_align import __version__
from simct_align.commands import align, bench, completion, inspect, report
from simct_align.inputs import thread_count
from simct_align.terminal import Screen
from simct_align.text_input import DataError

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
  simct-align report path/to/teacher path/to/student --file train.jsonl -o report.html
  simct-align align path/to/teacher path/to/student --text "It costs 12345."
  simct-align align TEACHER STUDENT --file train.jsonl --field answer --summary
  simct-align align TEACHER STUDENT --file train.jsonl --json > units.jsonl
  cat notes.txt | simct-align align TEACHER STUDENT -

exit codes: 0 done; 1 the data or a tokenizer cannot be read; 2 wrong usage.
NO_COLOR=1 turns colours off, FORCE_COLOR=1 turns them on."""


def _demo(arguments: argparse.Namespace) -> None:
    from simct_align.demo.show import show_demo

    show_demo(Screen.of(sys.stdout), json=arguments.json)


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
    def add(
        name: str,
        run: Callable[[argparse.Namespace], None],
        options: Sequence[Callable[[Any], None]],
        **texts: Any,
    ) -> None:
        command = commands.add_parser(
            name, formatter_class=argparse.RawDescriptionHelpFormatter, **texts
        )
        command.set_defaults(run=run)
        for option in options:
            option(command)

    parser = argparse.ArgumentParser(
        prog="simct-align",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"simct-align {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    add(
        "inspect", inspect.run, (_pair_options, _json_option),
        help="count shared and one-sided tokens", epilog=inspect.EPILOG,
        description="Count the tokens of two vocabularies by kind, shared and one-sided.",
    )  # fmt: skip
    add(
        "align", align.run,
        (_pair_options, _json_option, _text_options, _limit_options, _progress_option,
         _summary_option),
        help="align texts, show units and coverage", epilog=align.EPILOG,
        description="Tokenize texts on both sides, align them, and show units and coverage.",
    )  # fmt: skip
    add(
        "report", report.run,
        (_pair_options, _json_option, _text_options, _limit_options, _progress_option,
         _output_option),
        help="write a page about a pair and texts", epilog=report.EPILOG,
        description="Write a page on what a distillation loss can compare on given texts.",
    )  # fmt: skip
    add(
        "bench", bench.run, (_pair_options, _json_option, _bench_options, _limit_options),
        help="time encoding, alignment and index", epilog=bench.EPILOG,
        description="Time encoding, alignment and index on given texts.",
    )  # fmt: skip
    add(
        "demo", _demo, (_json_option,), help="show a demo without any file",
        description="Align a passage with the two bundled tokenizers: units, coverage, speed.",
        epilog="Takes a few seconds; needs no network and no file.",
    )  # fmt: skip
    add(
        "completion", lambda given: completion.write_completion(_parser(), given.shell),
        (_shell_option,), help="print a script that completes this command in a shell",
        epilog=completion.EPILOG, description="Print a script for a shell.",
    )  # fmt: skip
    return parser


def _pair_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("teacher", metavar="TEACHER", help=_TOKENIZER_HELP)
    command.add_argument("student", metavar="STUDENT", help=_TOKENIZER_HELP)


def _json_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON lines instead of text")


def _text_options(command: argparse.ArgumentParser) -> None:
    source = command.add_mutually_exclusive_group()
    source.add_argument("--text", metavar="T", help="take this text")
    source.add_argument("--file", metavar="F", help="read texts from a file (- for standard input)")
    source.add_argument("stdin", nargs="?", choices=["-"], metavar="-", help="read standard input")
    _field_option(command)


def _field_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--field", metavar="NAME", help='JSON field of the text (default "text")')


def _bench_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data", "--file", dest="file", metavar="F", help="read texts from a file (- for stdin)"
    )
    _field_option(command)
    command.set_defaults(text=None)


def _limit_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--limit", type=_positive, metavar="N", help="stop after N texts")
    command.add_argument("--threads", type=_threads, metavar="N", help="threads (default: all)")


def _summary_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--summary", action="store_true", help="print only the coverage")


def _progress_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--progress", action="store_true", help="show progress without a terminal, too"
    )


def _output_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "-o", "--output", metavar="HTML", help=f"the file (default {report.DEFAULT_OUTPUT})"
    )


def _shell_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("shell", choices=completion.SHELLS, help="the shell")


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if arguments.command == "bench" and arguments.field is not None and arguments.file is None:
        parser.error("bench: --field is for JSON lines; name their file with --data")
    if hasattr(arguments, "stdin"):
        given = [s for s in (arguments.text, arguments.file, arguments.stdin) if s is not None]
        # argparse has already matched the optional "-" with nothing when it reads the options.
        if rest == ["-"] and not given:
            given, rest = rest, []
        if not rest and not given:
            parser.error(f"{arguments.command}: give one of --text, --file and -")
        if arguments.field is not None and arguments.text is not None:
            parser.error(
                f"{arguments.command}: --field is for JSON lines; leave it out with --text"
            )
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


class _Nowhere(io.TextIOBase):
    """A stream that drops what is written."""

    def write(self, text: str) -> int:
        return len(text)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    sys.stderr.write(f"simct-align: warning: {' '.join(str(message).split())}\n")


def _run(argv: Sequence[str]) -> int:
    try:
        arguments = _parse(argv)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            arguments.run(arguments)
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a usage error
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    except DataError as error:
        sys.stderr.write(f"simct-align: {' '.join(str(error).split())}\n")
        return EXIT_BAD_DATA
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


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
    # A stream that was closed before the start has no reader.
    if sys.stdout is None:
        sys.stdout = _Nowhere()
    if sys.stderr is None:
        sys.stderr = _Nowhere()
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
