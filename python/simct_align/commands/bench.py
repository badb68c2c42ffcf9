"""Internal: `simct-align bench`, the speed of a pair on a user's own texts."""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from simct_align.commands.shared import open_pair, open_source, print_json
from simct_align.demo import demo_passage
from simct_align.inputs import read_side
from simct_align.terminal import Screen, draw_table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from simct_align import Aligner

#: Without a file: the bundled passage, so many times.
_PASSAGES = 200
_DEFAULT_TEXTS = 2_000
_SECONDS, _MAX_RUNS = 0.5, 50

EPILOG = f"""\
Times are the best of several runs. Encoding is the work of the tokenizers' own
libraries. --data names a file as --file of `align` does; without it, the texts
are those of the demo. The default of --limit is {_DEFAULT_TEXTS:,} texts.

examples:
  simct-align bench TEACHER STUDENT
  simct-align bench TEACHER STUDENT --data train.jsonl --field answer --json"""


class Timing(NamedTuple):
    """The best time of one step."""

    name: str
    seconds: float
    runs: int


def _best(name: str, step: Callable[[], object]) -> Timing:
    start = time.perf_counter()
    best, runs = float("inf"), 0
    while runs < _MAX_RUNS and (runs == 0 or time.perf_counter() - start < _SECONDS):
        before = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - before)
        runs += 1
    return Timing(name, best, runs)


def _measure(aligner: Aligner, texts: list[str], threads: int | None) -> dict[str, Any]:
    sides = {"teacher": aligner.teacher, "student": aligner.student}
    ids = {name: side.encode_batch(texts) for name, side in sides.items()}
    timings = [
        _best(f"encode, {name}", lambda side=side: side.encode_batch(texts))  # type: ignore[misc]
        for name, side in sides.items()
    ]
    ragged = [read_side(name, rows, None) for name, rows in ids.items()]
    teacher, student = ((side.values, side.offsets) for side in ragged)
    batch = aligner.align_batch(teacher, student, threads=threads)
    # Made once per pair, not per batch.
    _ = aligner.text_tree

    def align(number: int | None) -> Callable[[], object]:
        return lambda: aligner.align_batch(teacher, student, threads=number)

    cores = threads or os.cpu_count() or 1
    timings += [
        _best("align_batch, 1 thread", align(1)),
        *([_best(f"align_batch, {cores} threads", align(threads))] if cores > 1 else []),
        _best("index", batch.index),
        _best("index with text events", lambda: batch.index(text_events=True, threads=threads)),
    ]
    tokens = {name: len(side.values) for name, side in zip(sides, ragged, strict=True)}
    return {
        "texts": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "teacher_tokens": tokens["teacher"],
        "student_tokens": tokens["student"],
        "units": batch.n_units,
        "timings": [
            {
                "name": timing.name,
                "seconds": timing.seconds,
                "runs": timing.runs,
                "tokens_per_second": tokens[
                    "teacher" if timing.name == "encode, teacher" else "student"
                ]
                / timing.seconds,
            }
            for timing in timings
        ],
    }


def run(arguments: argparse.Namespace) -> None:
    """Print how long encoding, alignment and index take."""
    with ExitStack() as stack:
        if arguments.file is None:
            texts = list(demo_passage()) * _PASSAGES
            texts = texts[: arguments.limit]
        else:
            source = open_source(arguments, stack)
            limit = arguments.limit or _DEFAULT_TEXTS
            texts = [item.text for item in islice(source.texts, limit)]
        aligner = open_pair(arguments.teacher, arguments.student)
    found = _measure(aligner, texts, arguments.threads)
    if arguments.json:
        print_json(found)
        return
    screen = Screen.of(sys.stdout)
    rows = [["", "time", "million tokens/s"]]
    rows += [
        [row["name"], f"{row['seconds'] * 1e3:,.2f} ms", f"{row['tokens_per_second'] / 1e6:,.2f}"]
        for row in found["timings"]
    ]
    draw_table(screen, rows)
    screen.line(
        f"  {found['texts']:,} texts of {found['bytes']:,} bytes: {found['teacher_tokens']:,} "
        f"teacher and {found['student_tokens']:,} student tokens, {found['units']:,} units."
    )
    screen.line("  Best of several runs. Tokens are the student's, but for the teacher's encoding.")
