"""The part of the bench of the losses about text events."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

import torch

from _common import print_table, time_in_turn
from _loss_common import Setting, peak_extra, real_batches
from simct_align import _native
from simct_align.loss import LinearSimCTLoss, LinearTextLoss, SimCTLoss, TextLoss
from simct_align.loss.backends.native import text_computation
from simct_align.loss.backends.torch.rows import LogitsRows, StudentLogitsRows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from simct_align import AlignedBatch, Aligner

#: `TextLoss` over `SimCTLoss`, in time; and its extra memory over the student's logits.
TIME_BAR, MEMORY_BAR = 3.0, 0.15
#: By how much the logit of the token that the text takes next exceeds the others', in the mean:
#: not at all, or as models do that wrote the text themselves.
LOGITS = {"random logits": 0.0, "confident logits": 12.0}
WIDTHS = {"teacher": 3_584, "student": 2_304}


def _logits(
    setting: Setting, aligner: Aligner, batch: AlignedBatch, boost: float
) -> dict[str, Tensor]:
    found = {}
    for side in ("teacher", "student"):
        ids = torch.from_numpy(getattr(batch, side).values).long().to(setting.device)
        z = setting.randn(len(ids), len(getattr(aligner, side)))
        if boost:
            rows = torch.arange(len(ids) - 1, device=setting.device)
            z[rows, ids[1:]] += boost + boost / 4 * setting.randn(len(ids) - 1)
        found[f"{side}_logits"] = z
    found["student_logits"].requires_grad_()
    return found


def _hidden(setting: Setting, aligner: Aligner, batch: AlignedBatch) -> dict[str, Tensor]:
    found = {}
    for side, width in WIDTHS.items():
        rows, columns = len(getattr(batch, side).values), len(getattr(aligner, side))
        found[f"{side}_hidden"] = setting.randn(rows, width)
        found[f"{side}_weight"] = setting.randn(columns, width).mul_(width**-0.5)
    for name in ("student_hidden", "student_weight"):
        found[name].requires_grad_()
    return found


def _in_turn(
    losses: dict[str, Any], inputs: dict[str, Tensor], leaf: str, setting: Setting, repeat: int
) -> list[dict[str, Any]]:
    """Measure losses of one batch in turn; ratios are to the first."""
    steps = []
    for loss_fn, index in losses.values():
        run = functools.partial(loss_fn.to(setting.device), **inputs, index=index)

        def step(run: Callable[[], Any] = run) -> None:
            for each in inputs.values():
                each.grad = None
            run().loss.backward()
            setting.wait()

        steps.append(step)
    timings = time_in_turn(steps, repeat, 0.0, calls=2)
    leaves = [each for each in inputs.values() if each.requires_grad]
    extra = [peak_extra(step, leaves) for step in steps]
    for each in leaves:
        each.grad = None
    return [
        {
            "case": name, "timing": timing, "ratio": timing.p50 / timings[0].p50,
            "memory": None if memory is None else memory / inputs[leaf].nbytes,
        }
        for name, timing, memory in zip(losses, timings, extra, strict=True)
    ]  # fmt: skip


def time_shares(step: Callable[[], object]) -> dict[str, float]:
    """Return the shares of the parts of `TextLoss` on the CPU in the time of one step."""
    spent: dict[str, float] = {}

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            begun = time.perf_counter()
            result = function(*arguments, **keywords)
            spent[name] = spent.get(name, 0.0) + time.perf_counter() - begun
            return result

        return call

    class TimedLeaves:
        """`TextLeaves` with a clock."""

        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            make = timed("leaves and their masses", _native.TextLeaves)
            self._leaves = make(*arguments, **keywords)
            self.figures, self.group = self._leaves.figures, self._leaves.group
            self.gradient = timed("gradient by probabilities", self._leaves.gradient)

    class Module:
        """The native module with a clock."""

        TextLeaves = TimedLeaves

    computation = text_computation.NativeTextComputation
    patches = [
        (text_computation, "_native", Module),
        (LogitsRows, "softmax", timed("softmax", LogitsRows.softmax)),
        (computation, "_divergences", timed("divergence", computation._divergences)),
        (
            StudentLogitsRows,
            "accumulate_full",
            timed("gradient by logits", StudentLogitsRows.accumulate_full),
        ),
    ]
    before = [(where, name, getattr(where, name)) for where, name, _ in patches]
    for where, name, value in patches:
        setattr(where, name, value)
    try:
        begun = time.perf_counter()
        step()
        whole = time.perf_counter() - begun
    finally:
        for where, name, value in before:
            setattr(where, name, value)
    return {name: seconds / whole for name, seconds in spent.items()}


def measure_text(setting: Setting, repeat: int, *, quick: bool) -> list[dict[str, Any]]:
    """Measure `TextLoss` beside `SimCTLoss`, and the forms from hidden states, on real text.

    Args:
        setting: Units, device and dtype.
        repeat: How often a case is measured.
        quick: Whether to take the bundled pair.

    Returns:
        A row of the record for every case, with `bar` and `memory`.
    """
    rows: list[dict[str, Any]] = []
    shares: dict[str, dict[str, float]] = {}
    # A tenth of the text: products of real widths take most of the time.
    tenth = max(5, setting.units // 10)
    pieces = {corpus: piece for corpus, _, piece in real_batches(tenth, quick=quick)}
    for corpus, aligner, batch in real_batches(setting.units, quick=quick):
        plain = batch.index().to(setting.device)
        events = batch.index(text_events=True).to(setting.device)
        losses = {
            "SimCTLoss mean": (SimCTLoss(aligner), plain),
            "TextLoss": (TextLoss(aligner), events),
        }
        for kind, boost in LOGITS.items():
            logits = _logits(setting, aligner, batch, boost)
            found = _in_turn(losses, logits, "student_logits", setting, 1 if quick else repeat)
            out = losses["TextLoss"][0](**logits, index=events)
            out.loss.backward()
            counts = {
                name.removeprefix("offsets_"): int(getattr(out.metrics, name))
                for name in out.metrics._fields
                if name.startswith("offsets_")
            }
            print(
                f"{corpus}, {kind}: {len(plain)} units, {events.n_text_offsets} offsets, {counts}"
            )
            if setting.device.type == "cpu":
                shares[f"{corpus}, {kind}"] = time_shares(
                    lambda: losses["TextLoss"][0](**logits, index=events).loss.backward()  # noqa: B023
                )
            rows += [row | {"case": f"{corpus}, {kind}: {row['case']}"} for row in found]
        piece = pieces[corpus]
        linear = {
            "LinearSimCTLoss mean": (LinearSimCTLoss(aligner), piece.index().to(setting.device)),
            "LinearTextLoss": (
                LinearTextLoss(aligner), piece.index(text_events=True).to(setting.device)
            ),
        }  # fmt: skip
        found = _in_turn(linear, _hidden(setting, aligner, piece), "student_weight", setting, 1)
        rows += [
            row | {"case": f"{corpus}, {len(linear['LinearTextLoss'][1])} units: {row['case']}"}
            for row in found
        ]
    print_table(
        ["case", "seconds", "of SimCT", "peak extra of student logits (or weight)"],
        [
            [
                row["case"],
                f"{row['timing'].p50:.3f}",
                f"{row['ratio']:.2f}",
                "" if row["memory"] is None else f"{100 * row['memory']:.0f}%",
            ]
            for row in rows
        ],
    )
    names = list(dict.fromkeys(name for each in shares.values() for name in each))
    print_table(
        ["where the time of TextLoss goes", *names],
        [
            [case, *(f"{100 * each.get(name, 0.0):.0f}%" for name in names)]
            for case, each in shares.items()
        ],
    )
    return rows
