"""Internal: the output of `simct-align demo`: units, coverage, saving, speed and a loss."""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align import Aligner
from simct_align.commands.shared import print_json
from simct_align.demo import demo_passage, demo_tokenizers
from simct_align.describe import describe_pair, describe_row, draw_coverage, draw_row
from simct_align.terminal import Screen, draw_legend, draw_table

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from simct_align import AlignedBatch

# Large enough that a batch takes milliseconds, small enough for any machine.
_SPEED_REPEATS = 2_000
_SPEED_RUNS = 25


@dataclass(frozen=True)
class Demo:
    """The input of the sections of the demo."""

    screen: Screen
    aligner: Aligner
    batch: AlignedBatch
    """The passage, one row per text."""


def show_pair(demo: Demo) -> None:
    """Show counts of the two bundled tokenizers and of their shared texts."""
    demo.screen.title("1. Two bundled tokenizers")
    found = describe_pair(demo.aligner)
    rows = [["", "ids", "shared texts", "of its texts", "stop"]]
    for place, side in enumerate(("teacher", "student")):
        shared = f"{found['shared']['texts']:,}"
        share = f"{found[side]['shared_share']:.1%}"
        stop = " ".join(found["shared"]["stops"][place])
        rows.append([side, f"{found[side]['vocabulary']:,}", shared, share, stop])
    draw_table(demo.screen, rows)
    demo.screen.line(
        "  The teacher cuts numbers into single digits, the student into up to three digits."
    )
    demo.screen.line(
        "  The student puts a space before a text and writes rare characters as bytes."
    )


def show_passage(demo: Demo) -> None:
    """Show the units of every text of the passage, then the coverage."""
    demo.screen.title("2. The finest units that both tokenizations have")
    draw_legend(demo.screen)
    demo.screen.line()
    for row in range(len(demo.batch)):
        draw_row(demo.screen, demo.aligner, describe_row(demo.batch, row), f"text {row + 1}")
    draw_coverage(demo.screen, demo.batch.coverage().as_dict())


def show_file(demo: Demo) -> None:
    """Save the pair as one file and load it again."""
    demo.screen.title("3. The pair as one file")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair.simct"
        demo.aligner.save(path)
        start = time.perf_counter()
        loaded = Aligner.load(path)
        milliseconds = (time.perf_counter() - start) * 1e3
        size = path.stat().st_size
    teacher, student = demo.batch.teacher, demo.batch.student
    again = loaded.align_batch((teacher.values, teacher.offsets), (student.values, student.offsets))
    if not np.array_equal(again.student_end, demo.batch.student_end):
        raise RuntimeError("the loaded pair aligns differently")
    demo.screen.line(f"  aligner.save, {size:,} bytes; Aligner.load took {milliseconds:.1f} ms;")
    demo.screen.line("  the loaded pair has no tokenizers and gives the same units.")


def _repeated(
    values: NDArray[np.int64], offsets: NDArray[np.int64], times: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lengths = np.tile(np.diff(offsets), times)
    return np.tile(values, times), np.concatenate([[0], np.cumsum(lengths)])


def measure_speed(demo: Demo) -> dict[str, Any]:
    """Time `align_batch` on many copies of the passage, and check the result."""
    sides = (demo.batch.teacher, demo.batch.student)
    teacher, student = (
        _repeated(np.asarray(s.values), np.asarray(s.offsets), _SPEED_REPEATS) for s in sides
    )
    tokens = len(student[0])
    best = {}
    cores = os.cpu_count() or 1
    for label, threads in (("1 thread", 1), (f"all threads ({cores})", None)):
        seconds = []
        for _ in range(_SPEED_RUNS):
            start = time.perf_counter()
            batch = demo.aligner.align_batch(teacher, student, threads=threads)
            seconds.append(time.perf_counter() - start)
        if batch.n_units != demo.batch.n_units * _SPEED_REPEATS:
            raise RuntimeError("a repeated batch has other units than its rows")
        best[label] = min(seconds)
    return {"rows": len(teacher[1]) - 1, "student_tokens": tokens, "seconds": best}


def show_speed(demo: Demo) -> None:
    """Show how long `align_batch` takes."""
    demo.screen.title("4. The speed of align_batch")
    found = measure_speed(demo)
    tokens = found["student_tokens"]
    rows = [["", "time per batch", "student tokens/s"]]
    for label, best in found["seconds"].items():
        rows.append([label, f"{best * 1e3:.2f} ms", f"{tokens / best / 1e6:.1f} M"])
    draw_table(demo.screen, rows)
    count = f"{found['rows']:,} rows, {tokens:,} student tokens"
    demo.screen.line(f"  {count}; best of {_SPEED_RUNS} runs; from token ids to units.")


def compute_loss(demo: Demo) -> list[tuple[str, float, float]] | None:
    """Compute the loss of two tiny random models on the passage; None without torch."""
    if importlib.util.find_spec("torch") is None:
        return None
    from simct_align.demo.tiny import tiny_loss

    return tiny_loss(demo.aligner, demo.batch)


def show_loss(demo: Demo) -> None:
    """Show the loss of two tiny random models on the passage, if torch is installed."""
    demo.screen.title("5. The loss")
    loss = compute_loss(demo)
    if loss is None:
        demo.screen.line("  needs PyTorch: pip install 'simct-align[torch]'")
        return
    rows = [["", "reverse KL per unit", "norm of the student's gradient"]]
    rows += [
        [f'candidates="{candidates}"', f"{value:.4f}", f"{norm:.4f}"]
        for candidates, value, norm in loss
    ]
    draw_table(demo.screen, rows)
    demo.screen.line("  two recurrent models with random weights, one pass over the passage.")


SECTIONS: tuple[Callable[[Demo], None], ...] = (
    show_pair,
    show_passage,
    show_file,
    show_speed,
    show_loss,
)


def show_demo(screen: Screen, *, json: bool = False) -> None:
    """Show all sections of the demo, in order, or their numbers as one line of JSON.

    Use it through `simct-align demo`. It needs no network, and no file outside the package.

    Args:
        screen: The screen to write to.
        json: Whether to write JSON.

    Raises:
        RuntimeError: The result of a section is wrong.

    Complexity:
        A few seconds, and the memory of a batch of about half a million tokens.
    """
    start = time.perf_counter()
    teacher, student = demo_tokenizers()
    aligner = Aligner(str(teacher), str(student))
    demo = Demo(screen, aligner, aligner.align_texts(list(demo_passage())))
    if json:
        loss = compute_loss(demo)
        print_json(
            {
                **describe_pair(aligner),
                "coverage": demo.batch.coverage().as_dict(),
                "speed": measure_speed(demo),
                "loss": loss
                and [{"candidates": n, "loss": value, "gradient": norm} for n, value, norm in loss],
            }
        )
        return
    for section in SECTIONS:
        section(demo)
    screen.line()
    screen.line(f"Done in {time.perf_counter() - start:.1f} s. Next: simct-align --help")
