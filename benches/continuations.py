"""The speed of enumerating on-path continuations, compared with a dictionary of path prefixes.

    python benches/continuations.py [--csv CSV] [--quick]

The rival is a plain Python solution: a dictionary from every path prefix (a tuple of ids) to its
node, with a look-up for every unit and every length until a look-up fails. The rival must find the
same entries. It is timed in two ways. "As run" starts from the arrays of the batch and ends with
arrays of entries, as the package does, with Python's garbage collector on. "Kindest" starts from
ready-made lists and ends with lists, with the collector off. The bar applies to "as run". The
package and the rival are timed with one thread, over GSM8K answers and over code. The code is the
source of this interpreter's standard library, so it differs a little between versions of Python.

`align_batch` is timed on the same ids with the same number of threads. Times to build are those of
a new aligner with loaded tokenizers, and include one batch call per side.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from _common import ROOT, Timing, append_csv, print_table, time_best, time_in_turn
from simct_align import Aligner, UnitClass, UnitKind, Vocabulary, _native
from simct_align.demo import demo_tokenizers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simct_align import AlignedBatch, Spellings

SHARED = ROOT.parent / "shared"
TOKENIZERS = Path(os.environ.get("SIMCT_TOKENIZERS", SHARED / "tokenizers"))
DATA = Path(os.environ.get("SIMCT_DATA", SHARED / "data")) / "gsm8k_train_2000.jsonl"
PAIRS = (("gemma2", "qwen2_5"), ("gemma2", "gpt4o"))
MAX_PATH = 8
CODE_FILES = 150
BARS = {"dictionary": 100.0, "align_batch": 4.0, "build": 3.0, "load": 0.05, "trie": 0.15}

Rows = list[tuple[int, int, int]]
Path_ = tuple[int, ...]


def gsm8k(rows: int) -> list[str]:
    with DATA.open(encoding="utf-8") as lines:
        return [json.loads(line)["answer"] for line, _ in zip(lines, range(rows), strict=False)]


def code(files: int) -> list[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(library.glob("*.py"))[:files]
    return [path.read_text(encoding="utf-8", errors="replace") for path in paths]


@dataclass
class Dictionary:
    """One direction of the rival: a dictionary of path prefix -> (node, whether it has leaves)."""

    nodes: dict[Path_, tuple[int, bool]]

    @classmethod
    def of(cls, spellings: Spellings) -> Dictionary:
        """Make the dictionary, with nodes numbered in the order of paths, as in the package."""
        prefixes: dict[Path_, bool] = {}
        for token in spellings.leaves.one_sided_token.tolist():
            path = spellings.spelling(token)
            assert path is not None
            for length in range(1, len(path) - 1):
                prefixes.setdefault(path[:length], False)
            prefixes[path[:-1]] = True
        ordered = enumerate(sorted(prefixes.items()))
        return cls({path: (node, has_leaves) for node, (path, has_leaves) in ordered})

    def walk(self, ids: Sequence[int], start: int, end: int, unit: int, found: Rows) -> None:
        nodes = self.nodes
        for depth in range(1, min(MAX_PATH, end - start) + 1):
            node = nodes.get(tuple(ids[start : start + depth]))
            if node is None:
                return
            if node[1]:
                found.append((unit, node[0], depth))


@dataclass
class Columns:
    """A batch as lists, made before the timing."""

    rows: list[int]
    teacher: list[list[int]]
    student: list[list[int]]
    starts: tuple[list[int], list[int]]
    ends: tuple[list[int], list[int]]
    is_text: list[bool]

    @classmethod
    def of(cls, batch: AlignedBatch) -> Columns:
        trimmed = (batch.unit_class & UnitClass.TRIMMED) != 0
        return cls(
            batch.row_offsets.tolist(),
            [batch.teacher.row(row).tolist() for row in range(len(batch))],
            [batch.student.row(row).tolist() for row in range(len(batch))],
            (batch.teacher_start.tolist(), batch.student_start.tolist()),
            (batch.teacher_end.tolist(), batch.student_end.tolist()),
            ((batch.kind != UnitKind.SPECIAL) & ~trimmed).tolist(),
        )


def by_dictionary(columns: Columns, teacher: Dictionary, student: Dictionary) -> tuple[Rows, Rows]:
    """Find all entries of both directions."""
    of_teacher: Rows = []
    of_student: Rows = []
    (t_starts, s_starts), (t_ends, s_ends) = columns.starts, columns.ends
    for row, t_ids in enumerate(columns.teacher):
        s_ids = columns.student[row]
        unit, last = columns.rows[row], columns.rows[row + 1]
        while unit < last:
            end = unit
            while end < last and columns.is_text[end]:
                follows = t_starts[end] == t_ends[end - 1] and s_starts[end] == s_ends[end - 1]
                if end > unit and not follows:
                    break
                end += 1
            for here in range(unit, end):
                if t_starts[here] and s_starts[here]:
                    teacher.walk(s_ids, s_starts[here], s_ends[end - 1], here, of_teacher)
                    student.walk(t_ids, t_starts[here], t_ends[end - 1], here, of_student)
            unit = max(end, unit + 1)
    return of_teacher, of_student


def as_run(batch: AlignedBatch, teacher: Dictionary, student: Dictionary) -> list[Any]:
    """Find all entries, from the arrays of a batch to arrays of entries."""
    gc.enable()
    try:
        found = by_dictionary(Columns.of(batch), teacher, student)
        return [np.array(rows, np.int32).reshape(-1, 3).T for rows in found]
    finally:
        gc.disable()


def check(aligner: Aligner, batch: AlignedBatch, found: list[Any]) -> None:
    ours = aligner.continuations(batch, max_path=MAX_PATH)
    for entries, columns in zip((ours.teacher, ours.student), found, strict=True):
        for mine, theirs in zip((entries.unit, entries.node, entries.depth), columns, strict=True):
            assert np.array_equal(mine, theirs), "the dictionary finds other entries"


def fresh(aligner: Aligner) -> Aligner:
    """Return a new aligner of the same pair, without spellings, with loaded tokenizers."""
    return Aligner(aligner.teacher, aligner.student)


def seconds(function: Any) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def build_times(name: str, aligner: Aligner, repeat: int) -> list[dict[str, object]]:
    for side in (aligner.teacher, aligner.student):
        side.encode_batch(["x"])
    untold = Aligner(Vocabulary(aligner.teacher._native), Vocabulary(aligner.student._native))
    build = [seconds(lambda: fresh(aligner).spellings) for _ in range(repeat)]
    without = [seconds(lambda: fresh(untold).spellings) for _ in range(repeat)]
    trie = time_best(lambda: _native.ByteTrie(aligner.teacher._native), repeat, 0.0)
    plain, spelled = fresh(aligner)._pair.to_bytes(), aligner._pair.to_bytes()
    load = [
        time_best(lambda d=d: _native.Pair.from_bytes(d), repeat, 0.0) for d in (plain, spelled)
    ]
    more = load[1].p50 - load[0].p50
    rows = []
    for case, timing, bar in (
        ("spellings, tokenizers", Timing(tuple(sorted(build))), "build"),
        ("spellings, byte tries alone", Timing(tuple(sorted(without))), "build"),
        ("byte trie of the teacher", trie, "trie"),
        ("loading them with the aligner", Timing((more,)), "load"),
    ):
        rows.append(
            {
                "case": f"{name}: {case}", "n": timing.n, "p20": timing.p20, "p50": timing.p50,
                "p80": timing.p80, "unit": "s", "bar": f"< {BARS[bar]} s",
                "met": timing.p50 < BARS[bar],
            }
        )  # fmt: skip
    return rows


def run(name: str, aligner: Aligner, texts: list[str], quick: bool) -> list[dict[str, object]]:
    batch = aligner.align_texts(texts)
    teacher, student = ((side.values, side.offsets) for side in (batch.teacher, batch.student))
    dictionaries = [Dictionary.of(side) for side in aligner.spellings]
    columns = Columns.of(batch)
    check(aligner, batch, as_run(batch, *dictionaries))

    units = batch.n_units
    found = aligner.continuations(batch, max_path=MAX_PATH)
    entries = (len(found.teacher) + len(found.student)) / units
    counts = found.teacher.counts(units) + found.student.counts(units)
    print(
        f"{name}: {units:,} units, {entries:.2f} entries per unit, continuations at "
        f"{(counts > 0).mean():.0%} of them, mean {counts.mean():.0f}, median "
        f"{np.median(counts):.0f}, 99th percentile {np.percentile(counts, 99):,.0f}"
    )
    repeat, min_seconds = (3, 0.0) if quick else (30, 0.7)
    calls = 1 if quick else 3
    kindest = time_best(lambda: by_dictionary(columns, *dictionaries), calls, 0.0)
    rival = time_best(lambda: as_run(batch, *dictionaries), calls, 0.0)
    rows = []
    for label, threads in (("1 thread", 1), ("all cores", None)):
        ours, align, index, plain = time_in_turn(
            [
                lambda t=threads: aligner.continuations(batch, max_path=MAX_PATH, threads=t),
                lambda t=threads: aligner.align_batch(teacher, student, threads=t),
                lambda t=threads: batch.index(max_path=MAX_PATH, threads=t),
                lambda: batch.index(),
            ],
            repeat,
            min_seconds,
        )
        timings = {"continuations": ours, "align_batch": align, "index, max_path=8": index}
        timings["index, max_path=0"] = plain
        for case, timing in timings.items():
            rows.append(rate(f"{name}, {label}: {case}", timing, units, timing.p50 / align.p50))
        rows[-4] |= {"bar": "<= 4x align_batch", "met": ours.p50 <= 4 * align.p50}
        if threads == 1:
            ratio = kindest.p50 / ours.p50
            rows.append(rate(f"{name}: dictionary, kindest", kindest, units, ratio))
            ratio = rival.p50 / ours.p50
            rows.append(rate(f"{name}: dictionary, as run", rival, units, ratio))
            rows[-1] |= {"bar": ">= 100x slower", "met": ratio >= BARS["dictionary"]}
    return rows


def rate(case: str, timing: Timing, units: int, ratio: float) -> dict[str, object]:
    """Return a row in millions of units per second, with quantiles from slow to fast."""
    p20, p50, p80 = (units / 1e6 / at for at in (timing.p80, timing.p50, timing.p20))
    return {
        "case": case, "n": timing.n, "p20": p20, "p50": p50, "p80": p80, "unit": "M units/s",
        "ratio": ratio,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--csv", type=Path, help="default: benches/record/continuations.csv")
    parser.add_argument("--quick", action="store_true", help="small; records nothing")
    options = parser.parse_args()
    wanted = [DATA, *(TOKENIZERS / name for pair in PAIRS for name in pair)]
    missing = [path for path in wanted if not path.exists()]
    if missing and not options.quick:
        raise SystemExit(f"not there: {', '.join(map(str, missing))}; --quick runs without")
    if options.quick:
        print("--quick: the bundled tokenizers, a few files of code")
        sources: dict[str, tuple[Any, Any]] = {"demo": demo_tokenizers()}
        corpora = {"code": code(6)}
    else:
        sources = {f"{t}/{s}": (TOKENIZERS / t, TOKENIZERS / s) for t, s in PAIRS}
        corpora = {"GSM8K": gsm8k(2000), "code": code(CODE_FILES)}
    rows: list[dict[str, object]] = []
    for pair, (teacher, student) in sources.items():
        aligner = Aligner(teacher, student)
        _ = aligner.spellings
        rows += build_times(pair, aligner, 2 if options.quick else 5)
        for corpus, texts in corpora.items():
            rows += run(f"{pair}, {corpus}", aligner, texts, options.quick)
    shown = ("case", "p20", "p50", "p80", "unit", "ratio", "bar", "met")
    print_table(shown, [[row.get(name, "") for name in shown] for row in rows])
    if options.quick:
        print("--quick: the results are checked; the timings have no meaning and are not recorded")
        return
    missed = [row["case"] for row in rows if row.get("met") is False]
    print(f"bars missed: {', '.join(map(str, missed)) or 'none'}")
    path = options.csv or ROOT / "benches" / "record" / "continuations.csv"
    kept = ("case", "n", "p20", "p50", "p80", "unit", "ratio")
    append_csv(path, [{name: row.get(name, "") for name in kept} for row in rows])
    print(f"appended to {path}")


if __name__ == "__main__":
    main()
