"""Internal: what several commands need: opening tokenizers, sources of texts, JSON lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simct_align import Aligner, Vocabulary
from simct_align.terminal import Progress
from simct_align.text_input import DataError, Source, open_file, single_text, standard_input

if TYPE_CHECKING:
    import argparse
    from contextlib import ExitStack


def open_pair(teacher: str, student: str) -> Aligner:
    """Open two tokenizers; a `DataError` names the one that cannot be read."""
    return Aligner(_open_vocabulary(teacher), _open_vocabulary(student))


def _open_vocabulary(source: str) -> Vocabulary:
    try:
        return Vocabulary.from_tokenizer(source)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise DataError(f"cannot read the tokenizer {source!r}: {error}") from error


def open_source(arguments: argparse.Namespace, stack: ExitStack) -> Source:
    """Open the source of texts that the arguments name: --text, --file or standard input."""
    if arguments.text is not None:
        return single_text(arguments.text)
    if arguments.file is None or arguments.file == "-":
        return standard_input(arguments.field)
    return open_file(Path(arguments.file), arguments.field, stack)


def open_progress(
    arguments: argparse.Namespace, source: Source, stack: ExitStack, *, prints_texts: bool = False
) -> Progress:
    """Return the progress bar of a command, which the stack erases.

    The bar is shown with --progress, or if standard error is a terminal to which no other output
    goes.
    """
    quiet = prints_texts and sys.stdout.isatty()
    shown = arguments.progress or (sys.stderr.isatty() and not quiet)
    progress = Progress(source.total_bytes, shown=shown)
    stack.callback(progress.close)
    return progress


def print_json(value: dict[str, Any]) -> None:
    """Write one JSON object as a line."""
    # Everything but ASCII is escaped: every encoding of stdout can write the line, and no reader
    # takes U+2028 for the end of the line.
    sys.stdout.write(json.dumps(value, ensure_ascii=True) + "\n")
