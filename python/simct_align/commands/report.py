"""Internal: `simct-align report`."""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simct_align.commands.shared import open_pair, open_progress, open_source, print_json
from simct_align.describe import draw_coverage
from simct_align.report import Report
from simct_align.report.builder import ReportBuilder, source_name
from simct_align.report.page import check_page
from simct_align.terminal import Screen
from simct_align.text_input import DataError, in_batches

if TYPE_CHECKING:
    import argparse

DEFAULT_OUTPUT = "report.html"

EPILOG = f"""\
Writes one HTML file that needs no other file and no network: send it to a
colleague. It has the tokens in shared and multi units and in no unit, tokens
that mean different texts on both sides, shapes, writing systems, and a sample
of the texts with their units. The default file is {DEFAULT_OUTPUT}.

--json prints all numbers as one JSON object; then a page is written only with
--output. The page needs: pip install 'simct-align[report]'

examples:
  simct-align report TEACHER STUDENT --file train.jsonl --field answer
  simct-align report TEACHER STUDENT --file notes.txt -o notes.html
  simct-align report TEACHER STUDENT --file train.jsonl --json > report.json"""


def run(arguments: argparse.Namespace) -> None:
    """Write a report, and print its main numbers."""
    output = arguments.output or (None if arguments.json else DEFAULT_OUTPUT)
    if output is not None:
        _check_output(Path(output))
    with ExitStack() as stack:
        source = open_source(arguments, stack)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            aligner = open_pair(arguments.teacher, arguments.student)
        for found in caught:
            warnings.showwarning(found.message, found.category, found.filename, found.lineno)
        progress = open_progress(arguments, source, stack)
        builder = ReportBuilder(
            aligner,
            teacher_name=source_name(arguments.teacher),
            student_name=source_name(arguments.student),
            warned=[str(found.message) for found in caught],
        )
        done = 0
        for texts in in_batches(source.texts, arguments.limit):
            builder.add(
                [item.text for item in texts],
                [item.line for item in texts],
                threads=arguments.threads,
            )
            done += len(texts)
            progress.update(texts[-1].bytes_read, done)
        report = Report(builder)
    if output is not None:
        try:
            report.save(output)
        except OSError as error:
            raise DataError(f"cannot write {output}: {error.strerror or error}") from error
    if arguments.json:
        print_json(report.to_dict())
    else:
        _draw(Screen.of(sys.stdout), report.to_dict(), str(output))


def _check_output(output: Path) -> None:
    """Find what keeps the page from being written before any work is done."""
    try:
        check_page()
    except ModuleNotFoundError as error:
        raise DataError(str(error)) from error
    if output.is_dir():
        raise DataError(f"cannot write {output}: it is a directory; name a file")
    folder = output.parent
    if not folder.is_dir():
        raise DataError(f"cannot write {output}: there is no directory {folder}")
    if not os.access(folder, os.W_OK) and not output.exists():
        raise DataError(f"cannot write {output}: no right to write to {folder.resolve()}")


def _draw(screen: Screen, facts: dict[str, Any], output: str) -> None:
    draw_coverage(screen, facts["coverage"])
    straddling = facts["straddling"]
    if straddling["shared_units"]:
        share = straddling["straddled_units"] / straddling["shared_units"]
        screen.line(
            f"  shared units that are straddled: {straddling['straddled_units']:,} ({share:.1%})"
        )
    for item in facts["warnings"]:
        style = "yellow" if item["level"] == "warning" else "dim"
        screen.line(f"  {screen.paint(item['level'], style)}: {item['title']}")
    screen.line(f"Written to {screen.paint(output, 'bold')}")
