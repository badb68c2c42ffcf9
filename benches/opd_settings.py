"""Settings that bring a real student closer to a teacher and do not harm its gold answers.

    export PYTHONPATH=examples
    python benches/opd_settings.py                    # run what is missing; hours
    python benches/opd_settings.py --only 'rate-*'    # a part of it
    python benches/opd_settings.py --show             # the table of the finished runs
    python benches/opd_settings.py --quick            # all runs on tiny random models

A sweep for the defaults of examples/two_families.py. Every run trains as the example does, except
for the change in the run's name. A run is measured on prompts that are used neither in training nor
in the example's report. A setting passes if two conditions hold: the 95 % interval of the change of
the samples' reverse KL lies below 0, and the upper end of the paired 95 % interval of the change of
the gold answers' negative log-likelihood is at most 0.01 nats per byte. Runs are files of
`benches/record/opd_settings`; finished runs are not run again.
"""

from __future__ import annotations

import copy
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from _cells import Cell, command_line, matches, measured_as_json, tiny_models
from _common import ROOT, print_table
from gguf_models import Loaded, load
from measurements import Measurer, change
from two_families import (
    TOLERANCE,
    Row,
    Settings,
    Splits,
    as_json,
    make_trainer,
    read_rows,
    seconds_per_step,
    split_rows,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RUNS = ROOT / "benches" / "record" / "opd_settings"
#: The same number as in the example, so that the prompts of the example's report are not used here.
HELD_OUT, MEASURED_TOKENS = 32, 64
BASE = Settings(steps=30, batch_size=4, max_new_tokens=32, learning_rate=3e-6, objective="simct")

#: The changed settings of each run, and its (teacher, student), in the order of the runs.
FORWARD, BACKWARD = ("smollm2", "gemma3"), ("gemma3", "smollm2")
RUNS_BY_NAME: dict[str, tuple[tuple[str, str], dict[str, Any]]] = {
    "rate-3e-6": (FORWARD, {}),
    "rate-1e-6": (FORWARD, {"learning_rate": 1e-6}),
    "rate-1e-5": (FORWARD, {"learning_rate": 1e-5}),
    "initial-kl-0.3": (FORWARD, {"initial_kl_weight": 0.3}),
    "rate-1e-5-initial-kl-1": (FORWARD, {"learning_rate": 1e-5, "initial_kl_weight": 1.0}),
    "tokens-64": (FORWARD, {"max_new_tokens": 64}),
    "temperature-0.7": (FORWARD, {"temperature": 0.7}),
    "no-eos": (FORWARD, {"eos": False}),
    "on_path-event": (FORWARD, {"candidates": "on_path", "score": "event"}),
    "backward": (BACKWARD, {}),
}

SHOWN = {
    "reverse_kl": "reverse KL",
    "gold_student": "gold NLL",
    "teacher_samples_student": "teacher's samples NLL",
    "bytes_per_token": "bytes per token",
    "multi_tokens": "in MULTI",
    "digits": "digits",
    "newlines": "newlines",
    "distinct_4grams": "4-grams",
    "ended": "ended",
}


class Sweep:
    """All runs of the sweep.

    Args:
        folder: The folder of the runs' files.
        rows: The rows for measuring and training, which are split as in the example.
        models: A function that loads a model by its name.
        base: The settings that a run changes.
        held_out: The number of prompts to measure on.
        measured_tokens: The length of measured samples.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rows: Callable[[int], list[Row]] = lambda count: read_rows(None, count),
        models: Callable[[str], Loaded] = load,
        base: Settings = BASE,
        held_out: int = HELD_OUT,
        measured_tokens: int = MEASURED_TOKENS,
    ) -> None:
        self.folder, self.base = folder, base
        self.rows, self.models = rows, models
        self.held_out, self.measured_tokens = held_out, measured_tokens
        self._ready: dict[tuple[str, str], tuple[Loaded, Loaded, Measurer]] = {}

    def cell(self, name: str) -> Cell:
        return Cell(self.folder, name)

    def start(self, direction: tuple[str, str]) -> Cell:
        return Cell(self.folder, "start-" + "-".join(direction))

    def run(self, patterns: Sequence[str]) -> int:
        """Run missing runs whose names match; return how many."""
        missing = [
            name
            for name in RUNS_BY_NAME
            if not self.cell(name).exists() and matches(name, patterns)
        ]
        print(f"{len(missing)} runs are missing")
        for number, name in enumerate(missing, 1):
            begun = time.perf_counter()
            self._run(name)
            seconds = time.perf_counter() - begun
            print(f"[{number}/{len(missing)}] {name}: {seconds:.0f} s", flush=True)
        return len(missing)

    def _run(self, name: str) -> None:
        direction, changes = RUNS_BY_NAME[name]
        teacher, student, measurer = self._measurer(direction)
        settings = replace(self.base, **changes)
        fresh = student._replace(model=copy.deepcopy(student.model))
        with tempfile.TemporaryDirectory() as folder:
            trainer, recorder = make_trainer(
                teacher, fresh, self._splits(settings).train, settings, Path(folder)
            )
            trainer.train()
        self.cell(name).write(
            direction=direction,
            settings=asdict(settings),
            steps=[step.figures for step in recorder.steps],
            seconds=seconds_per_step(recorder.steps),
            **measured_as_json(measurer.measure(fresh.model)),
        )

    def _splits(self, settings: Settings) -> Splits:
        needed = 2 * self.held_out + settings.steps * settings.batch_size
        return split_rows(self.rows(needed), self.held_out)

    def _measurer(self, direction: tuple[str, str]) -> tuple[Loaded, Loaded, Measurer]:
        """Return both models, with a measurer on the prompts of the sweep."""
        if direction not in self._ready:
            teacher, student = map(self.models, direction)
            measurer = Measurer(
                teacher,
                student,
                self._splits(self.base).sweep,
                max_new_tokens=self.measured_tokens,
            )
            start = self.start(direction)
            if not start.exists():
                looks = measurer.teacher_looks
                start.write(
                    teacher={name: as_json(ratio) for name, ratio in looks.items()},
                    **measured_as_json(measurer.measure()),
                )
            self._ready[direction] = teacher, student, measurer
        return self._ready[direction]

    def passes(self, name: str) -> bool:
        """Return whether a finished run fulfils both conditions."""
        start, cell = self.start(RUNS_BY_NAME[name][0]), self.cell(name)
        samples, gold = (
            change(start.figure(figure), cell.figure(figure))
            for figure in ("reverse_kl", "gold_student")
        )
        return samples.interval[1] < 0.0 and gold.interval[1] < TOLERANCE

    def show(self) -> None:
        """Print a table of the finished runs, and list the empty ones."""
        rows: list[list[str]] = []
        for direction in (FORWARD, BACKWARD):
            start = self.start(direction)
            if not start.exists():
                continue
            teacher = start.read()["teacher"]
            title = " to ".join(direction)
            values = (f"{start.figure(figure).value:.4f}" for figure in SHOWN)
            rows.append([f"start, {title}", "", *values])
            rows.append([f"teacher, {title}", "", *(
                f"{start.figure(figure, 'teacher').value:.4f}" if figure in teacher else ""
                for figure in SHOWN
            )])  # fmt: skip
        for name, (direction, _) in RUNS_BY_NAME.items():
            cell = self.cell(name)
            if not cell.exists():
                rows.append([name, "empty", *("" for _ in SHOWN)])
                continue
            start = self.start(direction)
            changes = (change(start.figure(each), cell.figure(each)) for each in SHOWN)
            rows.append([
                name,
                "yes" if self.passes(name) else "no",
                *(f"{found.value:+.4f} ± {found.error:.4f}" for found in changes),
            ])  # fmt: skip
        print(f"\nchange from the start ± standard error over {self.held_out} prompts")
        print_table(["run", "passes", *SHOWN.values()], rows)


def quick() -> None:
    """Run a small version of the sweep; check that finished runs stay and numbers are valid."""
    with tempfile.TemporaryDirectory() as folder:
        models = dict(zip(FORWARD, tiny_models(), strict=True))
        sweep = Sweep(
            Path(folder),
            models=models.__getitem__,
            base=replace(BASE, steps=2, batch_size=2, max_new_tokens=8),
            held_out=3,
            measured_tokens=8,
        )
        assert sweep.run(["rate-3e-6"]) == 1
        written = sweep.cell("rate-3e-6").path.stat().st_mtime_ns
        sweep.show()
        assert sweep.run([]) == len(RUNS_BY_NAME) - 1
        assert sweep.run([]) == 0
        assert sweep.cell("rate-3e-6").path.stat().st_mtime_ns == written
        sweep.show()
        for name, (direction, changes) in RUNS_BY_NAME.items():
            found = sweep.cell(name).read()
            assert len(found["steps"]) == 2
            assert found["settings"] == asdict(replace(sweep.base, **changes))
            before = sweep.start(direction).figure("gold_student")
            after = sweep.cell(name).figure("gold_student")
            assert (before.denominator == after.denominator).all(), "not the same gold answers"


if __name__ == "__main__":
    command_line(__doc__, RUNS, Sweep, quick)
