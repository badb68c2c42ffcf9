"""How fast text events are found, beside `align_batch` on the same ids, in one run.

    python benches/text_events.py [--teacher DIR] [--student DIR] [--data JSONL] [--csv CSV]
                                  [--quick]

Answers come before timings: the tokens of every source of a sample of rows must be exactly those
that begin with the text, found by a scan of all sorted tokens. The ratio is the time of
`batch.index(text_events=True)` over that of `align_batch` with as many threads; "events alone" is
the same without the time of a plain `batch.index()`. The index is int64: about 170 bytes for every
student token. Beyond a few hundred rows that is fresh memory, whose first touch alone takes several
times as long as `align_batch`, so a batch as a trainer has it stands beside the whole corpus.

The tree is timed for itself: made for a fresh aligner, read from a file (beside the same file
without a tree), its bytes in the file, and its first use after reading.
"""

from __future__ import annotations

import argparse
import bisect
import itertools
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from _common import ROOT, Timing, append_csv, print_table, time_best, time_in_turn
from simct_align import Aligner, TokenKind, Vocabulary, _native
from simct_align.demo import demo_passage, demo_tokenizers

SHARED = ROOT.parent / "shared"
TOKENIZERS = Path(os.environ.get("SIMCT_TOKENIZERS", SHARED / "tokenizers"))
DATA = Path(os.environ.get("SIMCT_DATA", SHARED / "data")) / "gsm8k_train_2000.jsonl"
CHECKED_ROWS = 20
TRAINER_ROWS = 32


def load_texts(path: Path | None, rows: int) -> list[str]:
    if path is None:
        return [f"{text} {7 * n}" for n in range(rows) for text in demo_passage()][:rows]
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["answer"] for line in itertools.islice(lines, rows)]


def ragged(vocabulary: Vocabulary, texts: list[str]) -> tuple[Any, Any]:
    rows = vocabulary.encode_batch(texts)
    values = np.fromiter(itertools.chain.from_iterable(rows), np.int64)
    return values, np.cumsum([0, *map(len, rows)], dtype=np.int64)


def check(aligner: Aligner, sides: list[tuple[Any, Any]]) -> int:
    """Stop unless every source's tokens are those that begin with the text; count the sources."""
    few = [(v[: o[CHECKED_ROWS]], o[: CHECKED_ROWS + 1]) for v, o in sides]
    index = aligner.align_batch(*few).index(text_events=True)
    checked = 0
    for side in ("teacher", "student"):
        own: Vocabulary = getattr(aligner, side)
        kinds = np.asarray(own.kinds)
        is_text = (kinds == TokenKind.NORMAL) | (kinds == TokenKind.BYTE)
        all_tokens = ((own.token_bytes(i), i) for i in np.flatnonzero(is_text).tolist())
        tokens = sorted(token for token in all_tokens if token[0])
        order = getattr(aligner.text_tree, side).token_ids
        rows = getattr(index, f"{side}_text_row")
        columns = [
            getattr(index, f"{side}_source_{what}").tolist()
            for what in ("row", "start", "end", "length", "exact")
        ]
        values = few[side == "student"][0]
        for row, start, end, length, exact in zip(*columns, strict=True):
            begun, at = b"", int(rows[row]) + 1
            while len(begun) < length:
                begun, at = begun + own.token_bytes(int(values[at])), at + 1
            begun = begun[:length]
            place = last = bisect.bisect_left(tokens, (begun,))
            while last < len(tokens) and tokens[last][0].startswith(begun):
                last += 1
            ids = order[start:end].tolist()
            ends = {token for text, token in tokens[place:last] if text == begun}
            if sorted(ids) != sorted(t for _, t in tokens[place:last]) or set(ids[:exact]) != ends:
                raise SystemExit(f"the {side}'s source of {begun!r} is not what a scan finds")
            checked += 1
    return checked


def time_events(
    aligner: Aligner, sides: list[tuple[Any, Any]], repeat: int, min_seconds: float
) -> list[list[object]]:
    """Milliseconds of a batch, and ratios to `align_batch`."""
    batch = aligner.align_batch(*sides)
    index = batch.index(text_events=True)
    rows, tokens = len(batch), len(sides[1][0])
    print(
        f"{rows:,} rows: {tokens:,} student tokens, {index.n_text_offsets:,} offsets, "
        f"{index.n_text_stretches:,} stretches, "
        f"{index.n_teacher_sources + index.n_student_sources:,} sources, "
        f"{index.packed.nbytes / tokens:.0f} bytes of index per student token"
    )
    table: list[list[object]] = []
    for threads in (1, os.cpu_count() or 1):
        aligned, plain, events = time_in_turn(
            [
                lambda threads=threads: aligner.align_batch(*sides, threads=threads),
                lambda threads=threads: batch.index(threads=threads),
                lambda threads=threads: batch.index(text_events=True, threads=threads),
            ],
            repeat,
            min_seconds,
        )
        where = f"{rows:,} rows, {threads} thread{'s' * (threads > 1)}"
        for what, timing in (
            ("align_batch", aligned),
            ("index", plain),
            ("index with text events", events),
        ):
            cells = [1e3 * x for x in (timing.p20, timing.p50, timing.p80)]
            table.append([f"{what}, {where}", "ms", *cells, timing.p50 / aligned.p50])
        alone = events.p50 - plain.p50
        table.append([f"events alone, {where}", "ms", "", 1e3 * alone, "", alone / aligned.p50])
    filled = time_best(lambda: np.zeros_like(index.packed).fill(1), repeat)
    cells = [1e3 * x for x in (filled.p20, filled.p50, filled.p80)]
    return [*table, [f"memory of that size, filled, {rows:,} rows", "ms", *cells, ""]]


def time_tree(teacher: Vocabulary, student: Vocabulary, repeat: int) -> list[list[object]]:
    """Seconds to make, to read and to use; bytes in the file."""
    made, read, plain, first = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        with_tree, without = Path(folder, "with"), Path(folder, "without")
        aligner = Aligner(teacher, student)
        aligner.save(without)
        _ = aligner.text_tree
        aligner.save(with_tree)
        for _ in range(repeat):
            fresh = Aligner(teacher, student)
            made.append(seconds(lambda pair=fresh._pair: _native.TextTree(pair)))
            plain.append(seconds(lambda: Aligner.load(without)))
            loaded: list[Aligner] = []
            read.append(seconds(lambda held=loaded: held.append(Aligner.load(with_tree))))
            first.append(seconds(lambda held=loaded: _native.TextTree(held[0]._pair)))
        size = with_tree.stat().st_size - without.stat().st_size
    more = [whole - part for whole, part in zip(sorted(read), sorted(plain), strict=True)]
    return [
        ["tree: build", "ms", *quantiles([1e3 * x for x in made])],
        ["tree: load, more than without it", "ms", *quantiles([1e3 * x for x in more])],
        ["tree: first use after load", "ms", *quantiles([1e3 * x for x in first])],
        ["tree: in the file", "MB", size / 1e6, size / 1e6, size / 1e6],
    ]


def seconds(fn: Any) -> float:
    start = time.perf_counter()
    fn()
    return time.perf_counter() - start


def quantiles(samples: list[float]) -> list[float]:
    timing = Timing(tuple(sorted(samples)))
    return [timing.p20, timing.p50, timing.p80]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", type=Path, default=TOKENIZERS / "qwen2_5")
    parser.add_argument("--student", type=Path, default=TOKENIZERS / "gemma2")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--csv", type=Path, help="default: benches/record/text_events.csv")
    parser.add_argument("--quick", action="store_true", help="small; records nothing")
    arguments = parser.parse_args()
    quick = arguments.quick
    paths = demo_tokenizers() if quick else (arguments.teacher, arguments.student)
    teacher, student = map(Vocabulary.from_tokenizer, paths)
    texts = load_texts(None if quick else arguments.data, 50 if quick else 2000)
    aligner = Aligner(teacher, student)
    sides = [ragged(vocabulary, texts) for vocabulary in (teacher, student)]
    print(f"checked: {check(aligner, sides):,} sources of {CHECKED_ROWS} rows equal a scan\n")
    table: list[list[object]] = []
    for rows in (TRAINER_ROWS, len(texts)):
        part = [(v[: o[rows]], o[: rows + 1]) for v, o in sides]
        table += time_events(aligner, part, 2 if quick else 20, 0.0 if quick else 1.0)
    table += [[*row, ""] for row in time_tree(teacher, student, 2 if quick else 7)]
    print_table(["case", "unit", "p20", "p50", "p80", "ratio to align_batch"], table)
    if not quick:
        rows = [
            dict(zip(("case", "unit", "p20", "p50", "p80", "ratio"), row, strict=True))
            for row in table
        ]
        append_csv(arguments.csv or ROOT / "benches" / "record" / "text_events.csv", rows)


if __name__ == "__main__":
    main()
