"""Seconds and peak extra memory of the losses, forward and backward, compared with rivals.

    python benches/loss.py                  the full sizes (500 units; 12 GB of memory)
    python benches/loss.py --quick          a tenth of every size, for CI; no CSV row, no bars
    python benches/loss.py --device cuda    on a GPU, beside what its memory allows: _loss_gpu.py

All cases run in one process with one thread, and ratios are those of one run. The cases:

* (a) a plain reverse KL on ready-made logits of the shared columns;
* (b) the formula, vectorised over all units without chunks;
* (c) a loop over units that indexes the whole logits, timed over a tenth of the units;
* (d) `LinearSimCTLoss`, compared with the matrix products that no implementation can avoid.

The results of `SimCTLoss` are checked against those of (b) and (c), and the result of (d) against
the formula of (b).

Text events: `TextLoss` beside `SimCTLoss` on the same real text and logits, in turn, and
`LinearTextLoss` beside `LinearSimCTLoss` on a tenth of it, with where the time goes.

Then `candidates="on_path"` is compared with `"realized"` on the same index, in turn: the first 500
units of real texts, with random logits, for Qwen2.5 as the teacher and Gemma 2 as the student. The
texts are GSM8K answers and code (the source of this Python's standard library). Some units are
checked against log-probabilities of the paths that `Aligner.continuations` lists.

Peak extra memory is the high-water mark of the process during a call, minus the resident memory
after the call (the inputs, and the gradients that the caller keeps). It is measured on Linux only;
elsewhere the column is empty. On a GPU the allocator's numbers are used in the same way.

`--dtype bfloat16` gives every case inputs of that dtype; all cases compute in float32. The bars
apply to 500 units in float32 on a CPU; other settings are recorded in a CSV of their own. The
defaults on a GPU are 4,000 units in bfloat16.
"""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from _common import ROOT, append_csv, print_table, time_best, time_in_turn
from _loss_common import DTYPES, Setting, peak_extra, real_batches
from _loss_gpu import measure_gpu
from _loss_rivals import Case, on_path_by_hand, per_unit_loop, plain_kl, vectorised
from _loss_text import MEMORY_BAR, TIME_BAR, measure_text
from continuations import MAX_PATH
from simct_align.loss import LinearSimCTLoss, SimCTLoss

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from simct_align.loss import LossOutput


@dataclass
class Row:
    name: str
    seconds: float
    timing: object
    extra: int | None
    loss: float


def measure(
    name: str, fn: Callable[[], Tensor], leaves: list[Tensor], repeat: int, times: int = 1
) -> Row:
    """Time `fn` and its backward pass; `times` scales the time of a part up to the whole."""
    value = 0.0

    def step() -> None:
        nonlocal value
        for leaf in leaves:
            leaf.grad = None
        loss = fn()
        loss.backward()
        value = loss.item()  # waits for the device

    extra = peak_extra(step, leaves)
    timing = time_best(step, repeat=repeat, min_seconds=0.0)
    for leaf in leaves:
        leaf.grad = None
    return Row(name, timing.p50 * times, timing, extra, value)


def products(
    case: Case, setting: Setting, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]
) -> float:
    """Return the seconds of the products of (d): student forward and backward, teacher forward."""

    def seconds_of(a: Tensor, b: Tensor, out: Tensor) -> float:
        def product() -> None:
            torch.mm(a, b, out=out)
            setting.wait()

        return time_best(product, 2, 0.0).p50

    shared_rows = case.units - case.n_multi
    seconds = 0.0
    for is_student, (hidden, weight), steps in (
        (True, student, case.index.n_student_steps),
        (False, teacher, case.index.n_teacher_steps),
    ):
        for rows, columns in ((shared_rows, case.shared), (steps, weight.shape[0])):
            h, w = hidden[:rows].detach(), weight[:columns].detach()
            out = h.new_empty(rows, columns)
            seconds += seconds_of(h, w.T, out)
            if is_student:
                by_h, by_w = torch.empty_like(h), torch.empty_like(w)
                seconds += seconds_of(out, w, by_h) + seconds_of(out.T, h, by_w)
                del by_w
    return seconds


def measure_plain(case: Case, setting: Setting, repeat: int) -> Row:
    ready = [setting.randn(case.units, case.shared) for _ in range(2)]
    ready[0].requires_grad_()
    return measure("(a) plain reverse KL", lambda: plain_kl(*ready), ready[:1], repeat)


def measure_from_logits(case: Case, setting: Setting, repeat: int) -> list[Row]:
    """Measure `SimCTLoss` with every score, then (b) and (c)."""
    student = setting.randn(case.student_rows, case.student_columns, requires_grad=True)
    teacher = setting.randn(case.teacher_rows, case.teacher_columns)
    rows = []
    for score in ("mean", "sum", "event", "mean_logit"):
        loss_fn = SimCTLoss(case.aligner, score=score).to(setting.device)
        step = functools.partial(
            loss_fn, teacher_logits=teacher, student_logits=student, index=case.index
        )
        rows.append(measure(f"SimCTLoss {score}", lambda: step().loss, [student], repeat))  # noqa: B023
    rows.append(measure("(b) vectorised", lambda: vectorised(case, student, teacher), [student], 2))
    tenth = list(range(0, case.units, 10))
    rows.append(
        measure(
            "(c) loop over units",
            lambda: per_unit_loop(case, student, teacher, tenth),
            [student],
            1,
            times=10,
        )
    )
    with torch.no_grad():
        loss_fn = SimCTLoss(case.aligner, score="mean_logit").to(setting.device)
        out = loss_fn(teacher_logits=teacher, student_logits=student, index=case.index)
    same = out.per_unit[[case.order.index(unit) for unit in tenth]].mean().item()
    assert abs(same - rows[-1].loss) < 1e-4 * abs(same), (same, rows[-1].loss)
    return rows


def measure_on_path(setting: Setting, repeat: int, quick: bool) -> list[dict[str, object]]:
    """Measure "on_path" and "realized" over the same real units, for every score."""
    rows: list[dict[str, object]] = []
    for corpus, aligner, batch in real_batches(setting.units, quick=quick):
        on_host = batch.index(max_path=MAX_PATH)
        index = on_host.to(setting.device)
        student = setting.randn(len(batch.student.values), len(aligner.student), requires_grad=True)
        teacher = setting.randn(len(batch.teacher.values), len(aligner.teacher))
        leaves = np.zeros(len(index))
        for side in ("teacher", "student"):
            per_node = np.diff(getattr(aligner.spellings, side).leaves.node_offsets)
            counts = per_node[getattr(on_host, f"{side}_entry_node")]
            np.add.at(leaves, getattr(on_host, f"{side}_entry_unit"), counts)
        print(
            f"{corpus}: {len(index)} units, {index.n_multi} MULTI; "
            f"{leaves.mean():.0f} leaves per unit, median {np.median(leaves):.0f}"
        )
        with torch.no_grad():
            loss_fn = SimCTLoss(aligner, candidates="on_path", score="sum").to(setting.device)
            out = loss_fn(teacher_logits=teacher, student_logits=student, index=index)
        for unit in np.argsort(-leaves[: index.n_shared])[:3]:
            expected = on_path_by_hand(aligner, batch, on_host, int(unit), (student, teacher))
            assert abs(out.per_unit[unit] - expected) < 1e-4 * abs(expected), (unit, expected)
        for score, bar in (("mean", 1.8), ("sum", 1.4), ("event", 1.4)):
            steps = []
            for candidates in ("realized", "on_path"):
                loss_fn = SimCTLoss(aligner, candidates=candidates, score=score).to(setting.device)

                run = functools.partial(
                    loss_fn, teacher_logits=teacher, student_logits=student, index=index
                )

                def step(run: Callable[[], LossOutput] = run) -> None:
                    student.grad = None  # noqa: B023
                    run().loss.backward()
                    setting.wait()

                steps.append(step)
            # Two calls per turn: on our virtual machines, about every two seconds a step takes a
            # third of a second more of system time. With longer turns one case would get them all.
            timings = time_in_turn(steps, 1 if quick else 4 * repeat, 0.0, calls=2)
            extra = peak_extra(steps[1], [student])
            student.grad = None
            share = "" if extra is None else f"{100 * extra / student.nbytes:.0f}%"
            for name, timing in zip(("realized", "on_path"), timings, strict=True):
                rows.append(
                    {
                        "case": f"{corpus} {score}, {name}", "n": timing.n, "p20": timing.p20,
                        "p50": timing.p50, "p80": timing.p80, "unit": "s",
                        "ratio": timing.p50 / timings[0].p50, "bar": bar,
                        "memory": share if name == "on_path" else "",
                    }
                )  # fmt: skip
    print_table(
        ["case", "seconds", "of realized", "peak extra of student logits"],
        [[r["case"], f"{r['p50']:.3f}", f"{r['ratio']:.2f}", r["memory"]] for r in rows],
    )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of every size")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="where the losses run (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, help="of logits and weights (default: float32)")
    parser.add_argument("--units", type=int, help="(default: 500; 50 with --quick)")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    on_gpu = device.type != "cpu"
    setting = Setting(
        arguments.units or (50 if arguments.quick else 4000 if on_gpu else 500),
        device,
        DTYPES[arguments.dtype or ("bfloat16" if on_gpu else "float32")],
    )
    if on_gpu:
        return measure_gpu(setting, 2 * arguments.repeat, quick=arguments.quick)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quick = arguments.quick
    units = setting.units
    columns = (25_600, 15_193, 9_767) if quick else (256_000, 151_936, 97_675)
    case = Case(units, round(1.082 * units), round(1.064 * units), *columns)
    widths = (230, 358) if quick else (2_304, 3_584)
    repeat = arguments.repeat
    rows = []

    case.index = case.index.to(setting.device)
    rows.append(measure_plain(case, setting, repeat))
    rows += measure_from_logits(case, setting, repeat)
    loop = rows[-1]
    student_bytes = setting.dtype.itemsize * case.student_rows * case.student_columns

    hidden = [
        setting.randn(case.student_rows, widths[0]),
        setting.randn(case.teacher_rows, widths[1]),
    ]
    weight = [
        setting.randn(columns, width) * width**-0.5
        for columns, width in zip((case.student_columns, case.teacher_columns), widths, strict=True)
    ]
    unavoidable = products(case, setting, (hidden[0], weight[0]), (hidden[1], weight[1]))
    leaves = [hidden[0].requires_grad_(), weight[0].requires_grad_()]
    linear = functools.partial(
        LinearSimCTLoss(case.aligner).to(setting.device),
        teacher_hidden=hidden[1],
        teacher_weight=weight[1],
        student_hidden=hidden[0],
        student_weight=weight[0],
        index=case.index,
    )
    rows.append(measure("(d) LinearSimCTLoss", lambda: linear().loss, leaves, 3))
    with torch.no_grad():
        logits = [h.float() @ w.float().T for h, w in zip(hidden, weight, strict=True)]
        expected = vectorised(case, *logits).item()
        del logits

    by_name = {row.name: row for row in rows}
    a, b, d = (
        by_name[n] for n in ("(a) plain reverse KL", "(b) vectorised", "(d) LinearSimCTLoss")
    )
    ours = by_name["SimCTLoss mean"]
    assert abs(ours.loss - b.loss) < 1e-4 * abs(b.loss), (ours.loss, b.loss)
    assert abs(d.loss - expected) < 1e-4 * abs(expected), (d.loss, expected)
    print_table(
        ["case", "seconds", "of (a)", "peak extra MB", "of student logits"],
        [
            [
                row.name,
                f"{row.seconds:.3f}",
                f"{row.seconds / a.seconds:.2f}",
                "" if row.extra is None else f"{row.extra / 1e6:.0f}",
                "" if row.extra is None else f"{100 * row.extra / student_bytes:.0f}%",
            ]
            for row in rows
        ],
    )
    print(f"products that (d) cannot avoid: {unavoidable:.2f} s")
    text = measure_text(setting, repeat, quick=quick)
    on_path = measure_on_path(setting, repeat, quick)
    if quick:
        return 0
    bars = [
        ("SimCTLoss <= 1.0 x (a), time", ours.seconds / a.seconds, 1.0),
        ("(c) >= 50 x SimCTLoss: inverse", ours.seconds / loop.seconds, 1 / 50),
        ("(d) <= 1.5 x (products + (a)), time", d.seconds / (unavoidable + a.seconds), 1.5),
    ]
    if ours.extra is not None and b.extra is not None and d.extra is not None:
        bars.append(
            ("SimCTLoss <= 15% of student logits, memory", ours.extra / student_bytes, 0.15)
        )
        bars.append(("(d) <= 10% of (b), memory", d.extra / b.extra, 0.10))
    for row in text:
        if row["case"].endswith(": TextLoss"):
            bars.append((f"{row['case']} <= 3 x SimCTLoss, time", row["ratio"], TIME_BAR))
            if row["memory"] is not None:
                case = f"{row['case']} <= 15% of student logits, memory"
                bars.append((case, row["memory"], MEMORY_BAR))
    bars += [
        (f"{row['case']} <= {row['bar']} x realized, time", row["ratio"], row["bar"])
        for row in on_path
        if row["ratio"] != 1.0
    ]
    reached = True
    if setting.has_bars:
        for name, value, bar in bars:
            print(f"{'reached' if value <= bar else 'MISSED '}  {name}: {value:.3f} (bar {bar:g})")
            reached &= value <= bar
    append_csv(
        ROOT / "benches" / "record" / f"{setting.record}.csv",
        [
            {
                "case": row.name,
                "n": row.timing.n,
                "p20": row.timing.p20 * row.seconds / row.timing.p50,
                "p50": row.seconds,
                "p80": row.timing.p80 * row.seconds / row.timing.p50,
                "unit": "s",
                "ratio": row.seconds / a.seconds,
            }
            for row in rows
        ]
        + [
            {"case": f"{row.name}, peak extra memory", "n": 1, "p50": row.extra, "unit": "bytes",
             "ratio": row.extra / student_bytes}
            for row in rows
            if row.extra is not None
        ]
        + [
            {"case": row["case"], "n": row["timing"].n, "p20": row["timing"].p20,
             "p50": row["timing"].p50, "p80": row["timing"].p80, "unit": "s",
             "ratio": row["ratio"]}
            for row in text
        ]
        + [
            {name: value for name, value in row.items() if name not in ("bar", "memory")}
            for row in on_path
        ],
    )  # fmt: skip
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
