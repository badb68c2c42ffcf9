"""The losses on a GPU beside what its memory allows: part of `loss.py`.

    python benches/loss.py --device cuda [--units 4000] [--dtype bfloat16] [--quick]

Every part is measured by itself; one that fails prints its error, and the others go on. The table
comes last. The case is that of `loss.py`, by default 4,000 units, one in four MULTI, in bfloat16.
The *floor* is the time in which the memory can do what no loss can avoid: read all rows of both
models once and write the student's gradient, at the rate of a copy on this device in this run.
Liger's fused linear JSD (PyPI: `liger-kernel`) compares two models of one vocabulary: it is no
rival, but what engineers know.
"""

from __future__ import annotations

import functools
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from _common import ROOT, Timing, append_csv, print_table
from _loss_common import peak_extra, real_batches
from _loss_rivals import Case, plain_kl
from simct_align.loss import LinearSimCTLoss, LinearTextLoss, SimCTLoss, TextLoss

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from _loss_common import Setting

COPIED_BYTES = 1 << 30
COLUMNS, WIDTHS = (256_000, 151_936, 97_675), (2_304, 3_584)
QUICK_COLUMNS, QUICK_WIDTHS = (2_560, 1_519, 976), (32, 48)
FEW_UNITS = 500


@dataclass
class Measured:
    """A row of the table.

    Attributes:
        name: The case.
        timing: Seconds of a step, forward and backward.
        floor: The floor in seconds; None where there is none.
        extra: Peak memory beside inputs and gradients, in bytes; None where it is not measured.
        student_bytes: The bytes of the student's logits, or of its weight.
    """

    name: str
    timing: Timing
    floor: float | None
    extra: int | None
    student_bytes: int


def seconds_of(step: Callable[[], object], setting: Setting, repeat: int) -> Timing:
    """Time a step that is queued on a device, with its queue empty before and after."""
    samples = []
    for warm_up in (True, True, *[False] * repeat):
        setting.wait()
        begun = time.perf_counter()
        step()
        setting.wait()
        if not warm_up:
            samples.append(time.perf_counter() - begun)
    return Timing(tuple(sorted(samples)))


class Bench:
    """All parts of the bench on one device.

    Args:
        setting: Units, device and dtype.
        repeat: How often a step is timed.
        quick: Whether all sizes are small.
    """

    def __init__(self, setting: Setting, repeat: int, *, quick: bool) -> None:
        self.setting = setting
        self.repeat = repeat
        self.quick = quick
        self.rows: list[Measured] = []
        self.failed: list[str] = []
        self.copy_rate = 0.0

    def case(self, units: int) -> Case:
        columns = QUICK_COLUMNS if self.quick else COLUMNS
        made = Case(units, round(1.082 * units), round(1.064 * units), *columns)
        made.index = made.index.to(self.setting.device)
        return made

    def part(self, name: str, run: Callable[[], None]) -> None:
        """Run a part; print its error if it has one."""
        try:
            run()
        except Exception:
            print(f"{name}: failed\n{traceback.format_exc()}")
            self.failed.append(name)
        if self.setting.device.type == "cuda":
            torch.cuda.empty_cache()

    def add(
        self,
        name: str,
        forward: Callable[[], Tensor],
        leaves: list[Tensor],
        floor_bytes: int | None,
    ) -> None:
        """Measure a loss, and print its row at once."""

        def step() -> None:
            for leaf in leaves:
                leaf.grad = None
            forward().backward()

        timing = seconds_of(step, self.setting, self.repeat)
        extra = peak_extra(step, leaves)
        for leaf in leaves:
            leaf.grad = None
        floor = floor_bytes / self.copy_rate if floor_bytes and self.copy_rate else None
        self.rows.append(Measured(name, timing, floor, extra, leaves[-1].nbytes))
        print(f"{name}: {1e3 * timing.p50:.3f} ms", flush=True)

    # The parts.

    def copy(self) -> None:
        source = torch.empty(COPIED_BYTES >> (8 if self.quick else 0), dtype=torch.uint8)
        source = source.to(self.setting.device)
        target = torch.empty_like(source)
        timing = seconds_of(lambda: target.copy_(source), self.setting, self.repeat)
        self.copy_rate = 2 * source.nbytes / timing.p50
        print(f"copy: {self.copy_rate / 1e12:.3f} TB/s read and written")

    def plain(self) -> None:
        case, setting = self.case(self.setting.units), self.setting
        ready = [setting.randn(case.units, case.shared) for _ in range(2)]
        ready[0].requires_grad_()
        floor = 3 * ready[0].nbytes
        self.add("plain reverse KL, eager", lambda: plain_kl(*ready), ready[:1], floor)
        compiled = torch.compile(plain_kl)
        self.add("plain reverse KL, compiled", lambda: compiled(*ready), ready[:1], floor)

    def simct(self, units: int, backends: tuple[str, ...], **keywords: Any) -> None:
        case, setting = self.case(units), self.setting
        student = setting.randn(case.student_rows, case.student_columns, requires_grad=True)
        teacher = setting.randn(case.teacher_rows, case.teacher_columns)
        what = ", ".join(f"{value}" for value in keywords.values())
        values = []
        for backend in backends:
            loss_fn = SimCTLoss(case.aligner, backend=backend, **keywords).to(setting.device)
            step = functools.partial(
                loss_fn, teacher_logits=teacher, student_logits=student, index=case.index
            )
            self.add(
                f"SimCTLoss {what}, {units} units, {backend}",
                lambda: step().loss,  # noqa: B023 - called before the next round
                [student],
                2 * student.nbytes + teacher.nbytes,
            )
            values.append(step().loss.item())
        if max(values) - min(values) > 1e-3 * abs(values[0]):
            raise AssertionError(
                f"the back ends differ: {dict(zip(backends, values, strict=True))}"
            )

    def text(self, *, linear: bool) -> None:
        setting = self.setting
        for corpus, aligner, batch in real_batches(setting.units, quick=self.quick):
            index = batch.index(text_events=True).to(setting.device)
            sides = (("teacher", aligner.teacher), ("student", aligner.student))
            rows = {name: len(getattr(batch, name).values) for name, _ in sides}
            inputs = {}
            for (name, side), width in zip(sides, WIDTHS[::-1], strict=True):
                if linear:
                    inputs[f"{name}_hidden"] = setting.randn(rows[name], width)
                    inputs[f"{name}_weight"] = setting.randn(len(side), width) * width**-0.5
                else:
                    inputs[f"{name}_logits"] = setting.randn(rows[name], len(side))
            leaves = [value for name, value in inputs.items() if name.startswith("student")]
            for leaf in leaves:
                leaf.requires_grad_()
            kind = LinearTextLoss if linear else TextLoss
            loss_fn = kind(aligner).to(setting.device)
            step = functools.partial(loss_fn, **inputs, index=index)
            floor = None if linear else 2 * leaves[0].nbytes + inputs["teacher_logits"].nbytes
            name = f"{kind.__name__}, {corpus}, {rows['student']} student tokens"
            self.add(name, lambda: step().loss, leaves, floor)  # noqa: B023
            if corpus == "code" or self.quick:
                print(f"{name}: {step().metrics}")

    def hidden(self, columns: tuple[int, int], rows: tuple[int, int]) -> list[Tensor]:
        """Hidden states and weights: student's, then teacher's."""
        widths = QUICK_WIDTHS if self.quick else WIDTHS
        found = []
        for n_columns, n_rows, width in zip(columns, rows, widths, strict=True):
            found += [
                self.setting.randn(n_rows, width),
                self.setting.randn(n_columns, width) * width**-0.5,
            ]
        found[0].requires_grad_()
        found[1].requires_grad_()
        return found

    def linear(self) -> None:
        case = self.case(self.setting.units)
        tensors = self.hidden(
            (case.student_columns, case.teacher_columns), (case.student_rows, case.teacher_rows)
        )
        names = ("student_hidden", "student_weight", "teacher_hidden", "teacher_weight")
        for backend in ("triton", "torch"):
            loss_fn = LinearSimCTLoss(case.aligner, backend=backend).to(self.setting.device)
            step = functools.partial(
                loss_fn, **dict(zip(names, tensors, strict=True)), index=case.index
            )
            name = f"LinearSimCTLoss mean, {case.units} units, {backend}"
            self.add(name, lambda: step().loss, tensors[:2], None)  # noqa: B023

    def liger(self) -> None:
        from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

        columns = (QUICK_COLUMNS if self.quick else COLUMNS)[0]
        tensors = self.hidden((columns, columns), (self.setting.units, self.setting.units))
        loss_fn = LigerFusedLinearJSD(jsd_beta=1.0)
        step = functools.partial(loss_fn, *tensors, shift_labels=None)
        name = f"Liger's fused linear JSD, one tokenizer, {self.setting.units} rows"
        self.add(name, step, tensors[:2], None)

    def run(self) -> int:
        """Run all parts; return how many failed."""
        units, ours, both = self.setting.units, ("triton",), ("triton", "torch")
        mean = {"candidates": "realized", "score": "mean"}
        event = {"candidates": "realized", "score": "event"}
        for name, part in (
            ("copy", self.copy),
            ("plain reverse KL", self.plain),
            ("SimCTLoss", lambda: self.simct(units, both, **mean)),
            ("shared", lambda: self.simct(units, ours, candidates="shared")),
            ("event", lambda: self.simct(units, ours, **event)),
            ("jsd", lambda: self.simct(units, ours, divergence="jsd")),
            ("few units", lambda: self.simct(min(units, FEW_UNITS), both, **mean)),
            ("LinearSimCTLoss", self.linear),
            ("Liger", self.liger),
            ("TextLoss", lambda: self.text(linear=False)),
            ("LinearTextLoss", lambda: self.text(linear=True)),
        ):
            self.part(name, part)
        print_table(
            ["case", "p20 ms", "p50 ms", "p80 ms", "times the floor", "extra MB", "of the logits"],
            [
                [
                    row.name,
                    *(
                        f"{1e3 * each:.3f}"
                        for each in (row.timing.p20, row.timing.p50, row.timing.p80)
                    ),
                    "" if row.floor is None else f"{row.timing.p50 / row.floor:.1f}",
                    "" if row.extra is None else f"{row.extra / 1e6:.0f}",
                    "" if row.extra is None else f"{100 * row.extra / row.student_bytes:.1f}%",
                ]
                for row in self.rows
            ],
        )
        if self.failed:
            print(f"failed: {', '.join(self.failed)}")
        return len(self.failed)


def measure_gpu(setting: Setting, repeat: int, *, quick: bool) -> int:
    """Measure everything on a device, and append it to the record of the device.

    Args:
        setting: Units, device and dtype.
        repeat: How often a step is timed.
        quick: Whether all sizes are small; records nothing.

    Returns:
        The exit status: 1 if a part failed.
    """
    bench = Bench(setting, repeat, quick=quick)
    failed = bench.run()
    if not quick:
        append_csv(
            ROOT / "benches" / "record" / f"{setting.record}.csv",
            [
                {
                    "case": row.name, "n": row.timing.n, "p20": row.timing.p20,
                    "p50": row.timing.p50, "p80": row.timing.p80, "unit": "s",
                    "ratio": "" if row.floor is None else row.timing.p50 / row.floor,
                }
                for row in bench.rows
            ],
        )  # fmt: skip
    return int(failed > 0)
