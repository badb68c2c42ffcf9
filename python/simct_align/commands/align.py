"""Internal: `simct-align align`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from simct_align.commands.shared import open_pair, open_progress, open_source, print_json
from simct_align.describe import CoverageSum, describe_row, draw_coverage, draw_row
from simct_align.terminal import Screen, draw_legend
from simct_align.text_input import in_batches

if TYPE_CHECKING:
    import argparse

EPILOG = """\
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


def run(arguments: argparse.Namespace) -> None:
    """Print the units of texts, or their coverage alone."""
    with ExitStack() as stack:
        source = open_source(arguments, stack)
        aligner = open_pair(arguments.teacher, arguments.student)
        screen = Screen.of(sys.stdout)
        progress = open_progress(arguments, source, stack, prints_texts=not arguments.summary)
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
                    print_json({**place, **described})
                else:
                    where = f"line {item.line}" if item.line else "text"
                    draw_row(screen, aligner, described, where)
            done += len(texts)
            progress.update(texts[-1].bytes_read, done)
        if not done:
            total.add(aligner.align_texts([]).coverage().as_dict())
    if arguments.json:
        print_json({"type": "coverage", **total.counts})
    else:
        draw_coverage(screen, total.counts)
