"""Common code of the benches: timing, a CSV row per case, a table on the terminal."""

from __future__ import annotations

import csv
import gc
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

ROOT = Path(__file__).resolve().parent.parent
CSV_FIELDS = ("commit", "case", "n", "p20", "p50", "p80", "unit", "ratio")


@dataclass(frozen=True)
class Timing:
    """Seconds per call, one sample per repetition, sorted."""

    samples: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.samples)

    @property
    def best(self) -> float:
        return self.samples[0]

    def quantile(self, q: float) -> float:
        """Return a quantile, interpolated linearly between the two nearest samples."""
        place = q * (self.n - 1)
        low = int(place)
        high = min(low + 1, self.n - 1)
        return self.samples[low] + (place - low) * (self.samples[high] - self.samples[low])

    @property
    def p20(self) -> float:
        return self.quantile(0.2)

    @property
    def p50(self) -> float:
        return self.quantile(0.5)

    @property
    def p80(self) -> float:
        return self.quantile(0.8)


def time_best(
    fn: Callable[[], object], repeat: int = 7, min_seconds: float = 0.2, *, collector: bool = False
) -> Timing:
    """Time `fn`: at least `repeat` calls after a warm-up call, and calls of at least `min_seconds`.

    The garbage collector is off during the calls, as in `timeit`, unless `collector` leaves it on.
    The results are freed inside of the timed part, because the time to free memory is part of the
    cost of a result.
    """
    fn()
    samples: list[float] = []
    was_on = gc.isenabled()
    if not collector:
        gc.disable()
    try:
        begun = time.perf_counter()
        while len(samples) < repeat or time.perf_counter() - begun < min_seconds:
            start = time.perf_counter()
            fn()
            samples.append(time.perf_counter() - start)
    finally:
        if was_on:
            gc.enable()
    return Timing(tuple(sorted(samples)))


def time_in_turn(
    functions: Sequence[Callable[[], object]], repeat: int, min_seconds: float, *, calls: int = 5
) -> list[Timing]:
    """Time functions in turn, a few calls each, so that the machine's state is the same for all."""
    rounds: list[list[float]] = [[] for _ in functions]
    begun = time.perf_counter()
    while len(rounds[0]) < repeat or time.perf_counter() - begun < min_seconds * len(functions):
        for function, samples in zip(functions, rounds, strict=True):
            samples += time_best(function, calls, 0.0).samples
    return [Timing(tuple(sorted(samples))) for samples in rounds]


def commit_id() -> str:
    """Return the short commit of the checkout, `+` appended if tracked files have changed."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        # A bench appends to its own record; this change must not mark the commit as changed.
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "--", ".", ":!benches/record"
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True, timeout=30
    )
    return done.stdout.strip()


def append_csv(path: str | Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Append rows with the fields of `CSV_FIELDS`; this function sets `commit`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists() or path.stat().st_size == 0
    commit = commit_id()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, CSV_FIELDS, restval="", lineterminator="\n")
        if is_new:
            writer.writeheader()
        for row in rows:
            writer.writerow({"commit": commit, **{k: _plain(v) for k, v in row.items()}})


def _plain(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def print_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under headers, with numbers aligned right and text aligned left."""
    body = [[_plain(cell) for cell in row] for row in rows]
    texts = [[str(cell) for cell in row] for row in body]
    widths = [max(map(len, column)) for column in zip(headers, *texts, strict=True)]
    numeric = [
        all(_is_number(row[i]) for row in texts if row[i]) and bool(texts)
        for i in range(len(headers))
    ]

    def line(cells: Sequence[str]) -> str:
        set_ = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, numeric, strict=True)
        )
        return "  ".join(set_).rstrip()

    print(line(list(headers)))
    print("  ".join("-" * width for width in widths))
    for cells in texts:
        print(line(cells))


def _is_number(text: str) -> bool:
    return text.lstrip("+-").replace(",", "").replace(".", "").rstrip(" xM%").isdigit()
