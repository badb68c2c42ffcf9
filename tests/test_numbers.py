"""Extreme numbers: a loss is finite or says so, and near what float64 makes of the same input."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch

from simct_align import Aligner, Vocabulary
from simct_align.divergence import LOG_FLOOR
from simct_align.loss import LinearSimCTLoss, LinearTextLoss, SimCTLoss, TextLoss
from simct_align.loss.baselines import (
    ALMLoss,
    BPMLoss,
    ESCDLoss,
    GOLDLoss,
    StrictLoss,
    ULDLoss,
)
from support.index_twin import case
from support.text_cases import BACKENDS, random_case

if TYPE_CHECKING:
    from collections.abc import Callable

DIVERGENCES = ("reverse_kl", "forward_kl", "tvd", "jsd")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
#: By how much a value may differ from float64's for the same input, relative to 1 + its size; and
#: a gradient, which has the digits of the input's dtype. All but float64 is computed in float32, in
#: which the log-normalizer of logits of 10,000 has an error of 0.0005: so much per unit of logit.
NEAR = 2e-5
NEAR_PER_LOGIT = 5e-7
GRADIENT_NEAR = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def shaped(teacher: torch.Tensor, student: torch.Tensor, kind: str) -> tuple[Any, Any]:
    """Logits of both sides in which something is extreme."""
    generator = torch.Generator().manual_seed(1)
    t, s = (
        torch.randn(z.shape, generator=generator, dtype=torch.float64) for z in (teacher, student)
    )
    if kind == "scale 1e4":
        t, s = 1e4 * t, 1e4 * s
    elif kind == "far from zero":
        t, s = t + 1e4, s - 1e4
    elif kind == "-inf columns":
        t[:, ::3], s[:, 1::3] = -math.inf, -math.inf
    elif kind == "equal":
        t, s = torch.zeros_like(t), torch.full_like(s, 7.0)
    elif kind == "edge of float16":
        t[:, 2], s[:, 1], s[:, 3] = 65504.0, -65504.0, 65504.0
    return t, s


KINDS = ("scale 1e4", "far from zero", "-inf columns", "equal", "edge of float16")


def run(loss: Any, index: Any, t: torch.Tensor, s: torch.Tensor) -> tuple[Any, torch.Tensor]:
    leaf = s.detach().clone().requires_grad_()
    out = loss(teacher_logits=t, student_logits=leaf, index=index)
    out.loss.backward()
    assert leaf.grad is not None
    return out, leaf.grad


def check_near_float64(
    loss: Any, index: Any, t: torch.Tensor, s: torch.Tensor, *, same_kinds: bool = False
) -> None:
    """Finite in every dtype; equal to float64 on the same, rounded input."""
    for dtype in DTYPES:
        low = t.to(dtype), s.to(dtype)
        out, gradient = run(loss, index, *low)
        truth, true_gradient = run(loss, index, *(z.double() for z in low))
        assert out.loss.isfinite()
        assert out.per_unit.isfinite().all()
        assert gradient.isfinite().all()
        if same_kinds and out.metrics.offsets_left_out != truth.metrics.offsets_left_out:
            # Masses below 1e-38 of the earliest row's are 0 in float32, and nothing is compared.
            assert out.metrics.offsets_left_out > truth.metrics.offsets_left_out
            continue
        near = ((out.per_unit - truth.per_unit).abs() / (1 + truth.per_unit.abs())).max()
        # A logit of -inf counts as a log-probability of LOG_FLOOR.
        largest = max(z.abs().nan_to_num(posinf=-LOG_FLOOR).max() for z in low)
        lost = NEAR_PER_LOGIT * float(largest)
        assert near < NEAR + lost, (dtype, near)
        near = ((gradient - true_gradient).abs() / (1 + true_gradient.abs())).max()
        assert near < GRADIENT_NEAR[dtype] + lost, (dtype, near)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("score", ["mean", "sum", "event", "mean_logit"])
@pytest.mark.parametrize("reduction", ["sum", "unit"])
def test_units(kind: str, divergence: str, score: str, reduction: str) -> None:
    for seed in (3, 4):
        c = case(seed)
        loss = SimCTLoss(c.pair, score=score, divergence=divergence, reduction=reduction)
        check_near_float64(loss, c.index, *shaped(c.teacher, c.student, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_text_events(kind: str, divergence: str, backend: str) -> None:
    for seed in (4, 5):
        c = random_case(seed)
        loss = TextLoss(c.aligner, backend=backend, divergence=divergence, reduction="sum")
        logits = shaped(c.logits["teacher"], c.logits["student"], kind)
        check_near_float64(loss, c.index, *logits, same_kinds=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("baseline", [ALMLoss, BPMLoss, ESCDLoss, GOLDLoss, StrictLoss, ULDLoss])
def test_baselines(kind: str, baseline: Callable[..., Any]) -> None:
    c = case(3)
    loss = baseline(c.pair, reduction="sum")
    t, s = shaped(c.teacher, c.student, kind)
    if baseline is ESCDLoss and kind in ("scale 1e4", "-inf columns", "edge of float16"):
        # Its logarithms have the smallest number of the dtype as their floor.
        for dtype in DTYPES:
            out, gradient = run(loss, c.index, t.to(dtype), s.to(dtype))
            assert out.per_unit.isfinite().all()
            assert gradient.isfinite().all()
        return
    check_near_float64(loss, c.index, t, s)


def test_float16_gradients_of_single_units_do_not_overflow() -> None:
    """A derivative of hundreds, times the factor against underflow, is more than float16 holds."""
    c = case(3)
    t, s = (1000 * c.teacher).half(), torch.zeros_like(c.student).half()
    for reduction, least in (("sum", 65504 / 1024), ("unit", 0.0)):
        loss = SimCTLoss(c.pair, score="sum", reduction=reduction)
        _, gradient = run(loss, c.index, t, s)
        _, truth = run(loss, c.index, t.double(), s.double())
        assert truth.abs().max() > least
        torch.testing.assert_close(gradient.double(), truth, rtol=2e-3, atol=1e-5)


# --- rows without a distribution ----------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["teacher", "student"])
@pytest.mark.parametrize("score", ["mean", "event"])
def test_a_row_without_a_distribution_spoils_its_units_alone(
    value: float, side: str, score: str
) -> None:
    c = case(3)
    loss = SimCTLoss(c.pair, score=score, reduction="sum")
    clean, clean_gradient = run(loss, c.index, c.teacher, c.student)
    assert clean.metrics.units_spoiled == 0
    rows = getattr(c.index, f"{side}_row")
    for number in (0, len(rows) - 1):
        logits = {"teacher": c.teacher.clone(), "student": c.student.clone()}
        logits[side][int(rows[number])] = value
        out, gradient = run(loss, c.index, logits["teacher"], logits["student"])
        assert out.loss.isnan()
        spoiled = out.per_unit.isnan()
        assert spoiled[number]
        assert out.metrics.units_spoiled == spoiled.sum() < len(spoiled)
        torch.testing.assert_close(out.per_unit[~spoiled], clean.per_unit[~spoiled])
        read = {int(c.index.student_row[unit]) for unit in spoiled.nonzero().flatten()}
        for unit in (spoiled.nonzero().flatten() - c.index.n_shared).tolist():
            if unit >= 0:
                ends = c.index.student_offsets[unit : unit + 2].tolist()
                read |= set(c.index.student_step_row[slice(*ends)].tolist())
        others = torch.tensor([row not in read for row in range(len(c.student))])
        assert others.any()
        torch.testing.assert_close(gradient[others], clean_gradient[others])


# --- few candidates -----------------------------------------------------------------------------


def one_shared_token() -> tuple[Aligner, Any]:
    teacher = Vocabulary.from_token_bytes([b"aa", b"b", b"ab"])
    student = Vocabulary.from_token_bytes([b"a", b"b", b"ba"])
    aligner = Aligner(teacher, student)
    assert len(aligner.shared.teacher_ids) == 1
    return aligner, aligner.align_batch([[1, 1, 0, 1, 2]], [[1, 1, 0, 0, 1, 0, 1]])


@pytest.mark.parametrize("candidates", ["shared", "realized", "on_path"])
def test_one_shared_token(candidates: str) -> None:
    aligner, batch = one_shared_token()
    index = batch.index(max_path=8)
    generator = torch.Generator().manual_seed(0)
    t, s = (torch.randn(rows, 3, generator=generator).double() for rows in (5, 7))
    out, gradient = run(SimCTLoss(aligner, candidates=candidates, reduction="sum"), index, t, s)
    assert out.per_unit.isfinite().all()
    assert gradient.isfinite().all()
    if candidates == "shared":  # a distribution over one candidate
        assert out.loss == 0
        assert not gradient.any()


@pytest.mark.parametrize("reduction", ["unit", "token", "sum"])
def test_zero_units(reduction: str) -> None:
    aligner, _ = one_shared_token()
    index = aligner.align_batch([[1], []], [[1], []]).index(
        max_path=8, first_ids=True, text_events=True
    )
    assert index.n_units == index.n_text_offsets == 0
    losses = [
        *(SimCTLoss(aligner, candidates=c, reduction=reduction) for c in ("shared", "on_path")),
        *(kind(aligner, reduction=reduction) for kind in (ALMLoss, BPMLoss, GOLDLoss, ULDLoss)),
    ]
    if reduction != "unit":
        losses += [TextLoss(aligner, reduction=reduction, backend=name) for name in BACKENDS]
    for loss in losses:
        out, gradient = run(loss, index, torch.zeros(1, 3), torch.zeros(1, 3))
        assert out.loss == 0
        assert not gradient.any()
        assert len(out.per_unit) == 0


# --- the same bits ------------------------------------------------------------------------------


def test_the_same_bits_again_and_for_any_number_of_threads() -> None:
    c, d = case(5, rows=8, length=40), random_case(6, rows=8)
    hidden = torch.randn(len(d.logits["student"]), 16, generator=torch.Generator().manual_seed(2))
    weight = torch.randn(
        d.logits["student"].shape[1], 16, generator=torch.Generator().manual_seed(3)
    )

    def results() -> list[torch.Tensor]:
        found = []
        for loss, index, t, s in (
            (SimCTLoss(c.pair), c.index, c.teacher, c.student),
            (SimCTLoss(c.pair, score="event"), c.index, c.teacher, c.student),
            *(
                (TextLoss(d.aligner, backend=name), d.index, *d.logits.values())
                for name in BACKENDS
            ),
        ):
            out, gradient = run(loss, index, t.float(), s.float())
            found += [out.loss, out.per_unit, gradient]
        for kind in (LinearSimCTLoss, LinearTextLoss):
            leaf = hidden.clone().requires_grad_()
            out = kind(d.aligner)(
                teacher_hidden=d.logits["teacher"].float(),
                teacher_weight=torch.eye(d.logits["teacher"].shape[1]),
                student_hidden=leaf,
                student_weight=weight,
                index=d.index,
            )
            out.loss.backward()
            found += [out.loss, leaf.grad]
        return found

    before = torch.get_num_threads()
    try:
        first = results()
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for ours, again in zip(first, results(), strict=True):
                assert torch.equal(ours, again)
    finally:
        torch.set_num_threads(before)
