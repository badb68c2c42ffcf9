"""The speed of alignment, compared with other ways to align, in one run.

    python benches/align.py [--teacher DIR] [--student DIR] [--data JSONL] [--repeat N] [--csv CSV]
                            [--hostile] [--quick]

Results are checked before they are timed: `align_batch` must equal a brute force over all common
boundaries, and the agreement of each rival with `align_batch` is printed. Rates are student tokens
per second. A ratio is the median rate of `align_batch` over the median rate of the rival.
`align_batch` runs with all of its parts: regions, byte verification, classes.

The rate of a rival depends on how it is called, so each rival is timed in two ways. "As run" is the
way of a user: Python's garbage collector is on, and the results of all rows are returned together,
as `align_batch` returns them. The scan decodes through `transformers`, and GOLD's walk takes the
collator's offset tensors. "Kindest" is the fastest way: the rival gets its inputs ready made
(strings, lists of offsets), the result of each row is dropped, and the collector is off. The bars
apply to "as run".

--repeat also aligns the corpus N times in one batch, in turn with the corpus itself: results of
large batches do not fit the caches, and their memory must not be fetched from the system anew each
time. The ratio of both rates has a bar, 0.85.

--hostile instead times inputs that make alignment work hard (random streams, a text against itself
one byte later, one byte repeated), in turn with the corpus as one row. Their cost per token has a
bar, 3 times that of the corpus.

Memory is measured in a process of its own. The process loads a saved aligner and the ids, resets
the kernel's high-water mark of the resident set (Linux: /proc/self/clear_refs), aligns once, and
reads the mark. The measure is the growth, including the result, per student token. The ids are
repeated up to millions of tokens, so that the share of pages and libraries is negligible.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

import _align_rivals as rivals
from _align_hostile import run_hostile
from _common import ROOT, Timing, append_csv, print_table, time_best, time_in_turn
from simct_align import Aligner
from simct_align.demo import demo_passage, demo_tokenizers

if TYPE_CHECKING:
    from collections.abc import Callable

SHARED = ROOT.parent / "shared"
TOKENIZERS = Path(os.environ.get("SIMCT_TOKENIZERS", SHARED / "tokenizers"))
DATA = Path(os.environ.get("SIMCT_DATA", SHARED / "data"))
MEMORY_TOKENS = 4_000_000
SCAN = "decoded-string scan, as run"
GOLD = "TRL GOLD byte-offset walk, as run"
OURS = "align_batch, ragged, 1 thread"
TWO_THREADS = "align_batch, ragged, 2 threads"
#: The rate of a large batch over that of the corpus.
LARGE_BAR = 0.85


@dataclass
class Inputs:
    """One corpus, in the input form of each rival."""

    aligner: Aligner
    tokenizers: tuple[Tokenizer, Tokenizer]
    texts: list[str]
    ids: tuple[list[list[int]], list[list[int]]]
    tokens: tuple[list[list[bytes]], list[list[bytes]]]
    expected: list[list[rivals.Span]]

    @property
    def student_tokens(self) -> int:
        return sum(map(len, self.ids[1]))

    def ragged(self, side: int, dtype: type = np.int64) -> tuple[Any, Any]:
        rows = self.ids[side]
        values = np.fromiter(itertools.chain.from_iterable(rows), dtype)
        return values, np.cumsum([0, *map(len, rows)], dtype=np.int64)


def load_tokenizer(path: Path) -> Tokenizer:
    file = next(
        p for p in (path, path / "tokenizer.json", path / "tokenizer.json.gz") if p.is_file()
    )
    raw = file.read_bytes()
    return Tokenizer.from_str((gzip.decompress(raw) if file.suffix == ".gz" else raw).decode())


def load_texts(path: Path | None, rows: int) -> list[str]:
    if path is None:
        numbers = range(rows // len(demo_passage()) + 1)
        return [f"{text} {7 * n}" for n in numbers for text in demo_passage()][:rows]
    with path.open(encoding="utf-8") as lines:
        records = [json.loads(line) for line in itertools.islice(lines, rows)]
    return [record.get("answer") or record["text"] for record in records]


def prepare(teacher: Path, student: Path, data: Path | None, rows: int) -> Inputs:
    aligner = Aligner(teacher, student)
    texts = load_texts(data, rows)
    ids = (aligner.teacher.encode_batch(texts), aligner.student.encode_batch(texts))
    tokens = tuple(
        [[vocabulary.token_bytes(token) for token in row] for row in side]
        for vocabulary, side in zip((aligner.teacher, aligner.student), ids, strict=True)
    )
    units = [rivals.common_boundaries(t, s) for t, s in zip(*tokens, strict=True)]
    kept = [row for row, found in enumerate(units) if found is not None]
    if len(kept) < len(texts):
        print(f"{len(texts) - len(kept)} texts left out: one side normalizes them")

    def pick(rows: Any) -> Any:
        return [rows[row] for row in kept]

    return Inputs(
        aligner,
        (load_tokenizer(teacher), load_tokenizer(student)),
        pick(texts),
        (pick(ids[0]), pick(ids[1])),
        (pick(tokens[0]), pick(tokens[1])),
        pick(units),
    )


def check_ours(inputs: Inputs) -> None:
    """Exit if the engine does not find exactly the common boundaries, with any thread count."""
    for threads in (1, None):
        batch = inputs.aligner.align_batch(
            inputs.ragged(0), inputs.ragged(1), threads=threads, on_mismatch="error"
        )
        columns = (batch.teacher_start, batch.teacher_end, batch.student_start, batch.student_end)
        found = list(zip(*(column.tolist() for column in columns), strict=True))
        if found != list(itertools.chain.from_iterable(inputs.expected)):
            raise SystemExit("align_batch does not agree with the brute force")
    print(
        f"checked: {len(found):,} units of {len(inputs.texts):,} texts equal the brute force; "
        f"{inputs.student_tokens:,} student tokens\n"
    )


def agreement(inputs: Inputs, found: list[list[rivals.Span]]) -> tuple[str, str]:
    """Return the share of units that a rival finds exactly, and its share of covered tokens."""
    same = sum(
        len(set(ours) & set(theirs)) for ours, theirs in zip(inputs.expected, found, strict=True)
    )
    units = sum(map(len, inputs.expected))
    covered = sum(span[3] - span[2] for row in found for span in row)
    return f"{same / units:.1%}", f"{covered / inputs.student_tokens:.1%}"


@dataclass
class Case:
    name: str
    run: Callable[[], object]
    #: The spans that a rival finds, for its agreement with `align_batch`.
    spans: Callable[[], list[list[rivals.Span]]] | None = None
    collector: bool = True


def left_out(name: str, error: ImportError) -> list[Case]:
    print(f"left out: {name} ({error})")
    return []


def scan_cases(inputs: Inputs, strings: list[list[list[str]]]) -> list[Case]:
    def ready() -> None:
        for teacher, student in zip(*strings, strict=True):
            rivals.scan_strings(teacher, student)

    def spans() -> list[list[rivals.Span]]:
        return [rivals.scan_strings(t, s) for t, s in zip(*strings, strict=True)]

    kindest = Case("decoded-string scan, kindest", ready, spans, collector=False)
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        return [*left_out(SCAN, error), kindest]
    teacher, student = (PreTrainedTokenizerFast(tokenizer_object=t) for t in inputs.tokenizers)

    def scan() -> list[list[rivals.Span]]:
        return [rivals.scan_ids(t, s, teacher, student) for t, s in zip(*inputs.ids, strict=True)]

    return [Case(SCAN, scan, scan), kindest]


def gold_cases(inputs: Inputs) -> list[Case]:
    try:
        import torch

        walk = rivals.load_gold_walk()
    except ImportError as error:
        return left_out(GOLD, error)
    lists = [[rivals.byte_offsets(row) for row in side] for side in inputs.tokens]
    tensors = [[torch.tensor(row) for row in side] for side in lists]
    # The lists of lists are made when they are needed, because live lists slow the collector down.
    del lists

    def gold() -> list[Any]:
        return [walk(s.tolist(), t.tolist()) for t, s in zip(*tensors, strict=True)]

    def spans() -> list[list[rivals.Span]]:
        return [rivals.spans_of_groups(row) for row in gold()]

    prepared: list[list[Any]] = []

    def kindest() -> None:
        if not prepared:
            prepared.extend([row.tolist() for row in side] for side in tensors)
        for t, s in zip(*prepared, strict=True):
            walk(s, t)

    return [
        Case(GOLD, gold, spans),
        Case("TRL GOLD byte-offset walk, kindest", kindest, spans, collector=False),
    ]


def spacy_cases(strings: list[list[list[str]]]) -> list[Case]:
    try:
        from spacy_alignments import get_alignments
    except ImportError as error:
        return left_out("spacy-alignments", error)

    def links() -> list[Any]:
        return [get_alignments(s, t)[0] for t, s in zip(*strings, strict=True)]

    def spans() -> list[list[rivals.Span]]:
        return [rivals.spans_of_links(row) for row in links()]

    def kindest() -> None:
        for t, s in zip(*strings, strict=True):
            get_alignments(s, t)

    return [
        Case("spacy-alignments, strings ready, as run", links, spans),
        Case("spacy-alignments, strings ready, kindest", kindest, spans, collector=False),
    ]


def rival_cases(inputs: Inputs) -> list[Case]:
    strings = [
        [[t.decode([token], skip_special_tokens=False) for token in row] for row in side]
        for t, side in zip(inputs.tokenizers, inputs.ids, strict=True)
    ]
    cases = [*scan_cases(inputs, strings), *spacy_cases(strings), *gold_cases(inputs)]
    return sorted(cases, key=lambda case: not case.collector)  # prepared lists come last


def our_cases(inputs: Inputs) -> list[Case]:
    align = inputs.aligner.align_batch
    wide = (inputs.ragged(0), inputs.ragged(1))
    narrow = (inputs.ragged(0, np.int32), inputs.ragged(1, np.int32))
    masks = [np.ones(len(values), bool) for values, _ in wide]
    all_cores = os.cpu_count() or 1
    return [
        Case(OURS, lambda: align(*wide, threads=1)),
        Case(TWO_THREADS, lambda: align(*wide, threads=2)),
        Case(f"align_batch, ragged, all {all_cores} cores", lambda: align(*wide)),
        Case("align_batch, ragged int32, 1 thread", lambda: align(*narrow, threads=1)),
        Case(
            "align_batch, ragged with masks, 1 thread",
            lambda: align(*wide, teacher_mask=masks[0], student_mask=masks[1], threads=1),
        ),
        Case("align_batch, lists of lists, 1 thread", lambda: align(*inputs.ids, threads=1)),
        Case("align_texts, 1 thread", lambda: inputs.aligner.align_texts(inputs.texts, threads=1)),
    ]


def repeated(values: Any, offsets: Any, times: int) -> tuple[Any, Any]:
    """Return rows, several times over, as ragged arrays."""
    lengths = np.tile(np.diff(offsets), times)
    return np.tile(values, times), np.concatenate([[0], np.cumsum(lengths)])


def run_large(inputs: Inputs, times: int, repeat: int) -> list[dict[str, Any]]:
    """Time the corpus several times in one batch, and by itself; return rows of the record."""
    align = inputs.aligner.align_batch
    small = [inputs.ragged(side) for side in (0, 1)]
    large = [repeated(*side, times) for side in small]
    tokens, rows = inputs.student_tokens, []
    for name, threads in ((OURS, 1), (TWO_THREADS, 2)):
        one, many = time_in_turn(
            [
                lambda threads=threads: align(*small, threads=threads),
                lambda threads=threads: align(*large, threads=threads),
            ],
            repeat,
            0.0,
        )
        rates = [times * tokens / seconds / 1e6 for seconds in (many.p80, many.p50, many.p20)]
        ratio = times * one.p50 / many.p50
        rows.append({
            "case": f"{name}, {times} times the corpus", "n": many.n,
            **dict(zip(("p20", "p50", "p80"), rates, strict=True)),
            "unit": "M student tokens/s", "ratio": ratio,
        })  # fmt: skip
        reached = "yes" if ratio >= LARGE_BAR else "NO"
        print(
            f"{rows[-1]['case']}: {rates[1]:.3g} M student tokens/s, {ratio:.2f} of the rate "
            f"of the corpus (wanted >= {LARGE_BAR}: {reached})"
        )
    if Path("/proc/self/status").exists():
        print(f"resident after {times} times the corpus: {resident('VmRSS') / 1e6:.0f} MB")
    return rows


# --- memory -------------------------------------------------------------------------------------


def memory_per_student_token(inputs: Inputs, threads: int | None) -> float | None:
    """Return the peak extra bytes per student token, from a new process; None if not on Linux."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    with tempfile.TemporaryDirectory() as folder:
        inputs.aligner.save(Path(folder, "aligner"))
        times = MEMORY_TOKENS // inputs.student_tokens + 1
        arrays = {}
        for side, name in enumerate(("teacher", "student")):
            arrays[name], arrays[f"{name}_offsets"] = repeated(*inputs.ragged(side), times)
        np.savez(Path(folder, "ids.npz"), **arrays)
        command = [sys.executable, __file__, "--measure-memory", folder, str(threads or 0)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def measure_memory(folder: str, threads: int) -> None:
    """Print the peak extra bytes per student token of one call, in this fresh process."""
    aligner = Aligner.load(Path(folder, "aligner"))
    with np.load(Path(folder, "ids.npz")) as file:
        ids = {name: file[name] for name in file.files}
    sides = [(ids[name], ids[f"{name}_offsets"]) for name in ("teacher", "student")]
    # A small call first starts the threads and loads the code; then the mark is reset.
    small = [(values[: offsets[1]], offsets[:2]) for values, offsets in sides]
    aligner.align_batch(*small, threads=threads or None)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = resident("VmRSS")
    batch = aligner.align_batch(*sides, threads=threads or None)
    after = resident("VmHWM")
    if batch.n_units == 0:
        raise SystemExit("nothing was aligned")
    print((after - before) / len(ids["student"]))


def resident(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if field in line)


# --- the report ---------------------------------------------------------------------------------


def run(inputs: Inputs, *, repeat: int, min_seconds: float) -> dict[str, Timing]:
    timings: dict[str, Timing] = {}
    theirs, ours = rival_cases(inputs), our_cases(inputs)
    found = {case.name: agreement(inputs, case.spans()) for case in theirs if case.spans}
    # Thread counts are timed in turn, so that all run in the same state of the machine.
    turns, rest = ours[:2], ours[2:]
    in_turn = time_in_turn([case.run for case in turns], repeat, min_seconds)
    timings.update(zip((case.name for case in turns), in_turn, strict=True))
    for case in rest + theirs:
        rounds = max(3, repeat // 8) if case.spans else repeat
        timings[case.name] = time_best(case.run, rounds, min_seconds, collector=case.collector)
    tokens, table = inputs.student_tokens, []
    for name, time in timings.items():
        rates = [tokens / seconds / 1e6 for seconds in (time.p80, time.p50, time.p20, time.best)]
        ours_faster = time.p50 / timings[OURS].p50
        same, covered = found.get(name, ("100.0%", "100.0%"))
        cells = [f"{number:.3g}" for number in (*rates, ours_faster)]
        table.append([name, time.n, *cells, same, covered])
    print_table(["case", "n", "p20", "p50", "p80", "best", "ratio", "same units", "covered"], table)
    print("millions of student tokens per second; ratio: rate of the first row over this one's\n")
    return timings


def bars(timings: dict[str, Timing], memory: dict[str, float]) -> None:
    """Print the bars, and whether each is reached."""

    def speed(fast: str, slow: str, *, best: bool = False) -> float | None:
        if fast not in timings or slow not in timings:
            return None
        if best:
            return timings[slow].best / timings[fast].best
        return timings[slow].p50 / timings[fast].p50

    lists = "align_batch, lists of lists, 1 thread"
    wanted = [
        (f"{OURS} / {SCAN}", speed(OURS, SCAN), 600.0),
        (f"{OURS} / {GOLD}", speed(OURS, GOLD), 300.0),
        ("2 threads / 1 thread, best of n", speed(TWO_THREADS, OURS, best=True), 1.7),
        (f"{lists} / {SCAN}", speed(lists, SCAN), 100.0),
    ]
    table = []
    for kind in (SCAN, GOLD):
        kindest = kind.replace("as run", "kindest")
        if (found := speed(OURS, kindest)) is not None:
            table.append([f"{OURS} / {kindest}", f"{found:.4g}", "-", "for comparison"])
    for name, found, least in wanted:
        if found is None:
            table.append([name, "-", f">= {least:g}", "not measured"])
        else:
            reached = "yes" if found >= least else "NO"
            table.append([name, f"{found:.4g}", f">= {least:g}", reached])
    for name, found in memory.items():
        reached = "yes" if found <= 40 else "NO"
        table.append(
            [f"peak extra bytes per student token, {name}", f"{found:.3g}", "<= 40", reached]
        )
    print_table(["bar (Qwen2.5 to Gemma 2)", "found", "wanted", "reached"], table)


def csv_rows(inputs: Inputs, timings: dict[str, Timing], memory: dict[str, float]) -> list[Any]:
    tokens = inputs.student_tokens
    rows: list[dict[str, object]] = [
        {
            "case": name,
            "n": time.n,
            "p20": tokens / time.p80 / 1e6,
            "p50": tokens / time.p50 / 1e6,
            "p80": tokens / time.p20 / 1e6,
            "unit": "M student tokens/s",
            "ratio": time.p50 / timings[OURS].p50,
        }
        for name, time in timings.items()
    ]
    rows += [
        {"case": f"peak extra memory, {name}", "n": 1, "p50": found, "unit": "B/student token"}
        for name, found in memory.items()
    ]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", type=Path, default=TOKENIZERS / "qwen2_5")
    parser.add_argument("--student", type=Path, default=TOKENIZERS / "gemma2")
    parser.add_argument("--data", type=Path, default=DATA / "gsm8k_train_2000.jsonl")
    parser.add_argument("--repeat", type=int, metavar="N", help="also N times the corpus at once")
    parser.add_argument("--hostile", action="store_true", help="only inputs that are hard")
    parser.add_argument("--csv", type=Path, help="default: benches/record/align.csv")
    parser.add_argument("--quick", action="store_true", help="small; records nothing")
    parser.add_argument("--measure-memory", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure_memory:
        measure_memory(options.measure_memory[0], int(options.measure_memory[1]))
        return
    missing = [p for p in (options.teacher, options.student, options.data) if not p.exists()]
    if missing and not options.quick:
        raise SystemExit(f"not there: {', '.join(map(str, missing))}; --quick runs without")
    if missing:
        print(f"not there: {', '.join(map(str, missing))}; the bundled tokenizers are used instead")
        options.teacher, options.student = demo_tokenizers()
        options.data = None
    inputs = prepare(options.teacher, options.student, options.data, 64 if options.quick else 2000)
    check_ours(inputs)
    if options.hostile:
        sides = (inputs.ragged(0), inputs.ragged(1))
        rows = run_hostile(inputs.aligner, sides, 3 if options.quick else 15)
        if options.csv or not options.quick:
            append_csv(options.csv or ROOT / "benches" / "record" / "align.csv", rows)
        return
    repeat, min_seconds = (3, 0.0) if options.quick else (40, 1.5)
    timings = run(inputs, repeat=repeat, min_seconds=min_seconds)
    large = []
    if options.repeat:
        large = run_large(inputs, options.repeat, 2 if options.quick else 15)
    memory = {}
    for name, threads in () if options.quick else (("1 thread", 1), ("all cores", None)):
        found = memory_per_student_token(inputs, threads)
        if found is None:
            print("memory not measured: needs /proc/self/clear_refs")
        else:
            memory[name] = found
    if options.quick:
        print("--quick: the results are checked; the timings have no meaning and are not recorded")
    else:
        bars(timings, memory)
    if options.csv or not options.quick:
        path = options.csv or ROOT / "benches" / "record" / "align.csv"
        append_csv(path, csv_rows(inputs, timings, memory) + large)
        print(f"\nappended to {path}")


if __name__ == "__main__":
    main()
