"""The kernels of the back end "triton" from hidden states, against float64 on PyTorch operations.

Without a GPU, Triton's interpreter runs the kernels on the CPU: see conftest.
"""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch

pytest.importorskip("triton", reason="no Triton here: the tests of its kernels are left out")

from simct_align import TextLoss
from simct_align.loss import LinearSimCTLoss, LinearTextLoss, SimCTLoss
from simct_align.loss.backends.triton import heads
from support.text_cases import random_case
from test_loss import DIVERGENCES, SCORES, SHAPES
from test_loss_cuda import without_synchronization
from test_loss_linear import OPTIONS, assert_near, linear_case, logits_of
from test_loss_triton import DEVICE, assert_same_figures, set_tiles
from test_loss_triton import pytestmark as pytestmark
from test_text_triton import small_tiles as small_tiles
from test_text_triton import wide_case

SIDES = ("teacher", "student")
PARTS = ("hidden", "weight", "bias")


@pytest.fixture(autouse=True)
def small_rows(monkeypatch):
    """Rows with padding, and tiles and blocks of few columns, as in the tests from logits."""
    set_tiles(monkeypatch, 4, 2)
    monkeypatch.setattr(heads, "PITCH", 8)


def run(loss_fn, c, dtype, *, bias=False, weights=None, only=SIDES, **options):
    """The output, and the gradients by the student's tensors, on the CPU in float64.

    Sides that are not among `only` come as logits, computed in float64.
    """
    inputs = {}
    for side in SIDES:
        parts = [getattr(c, f"{side}_{part}") for part in PARTS[: 2 + bias]]
        if side in only:
            for part, value in zip(PARTS, parts, strict=False):
                inputs[f"{side}_{part}"] = value.to(DEVICE, dtype, copy=True)
            for what in ("softcap", "scale"):
                if f"{side}_{what}" in options:
                    inputs[f"{side}_{what}"] = options[f"{side}_{what}"]
        else:
            softcap, scale = (options.get(f"{side}_{what}") for what in ("softcap", "scale"))
            bias_of_side = parts[2].double() if bias else None
            z = logits_of(parts[0].double(), parts[1].double(), bias_of_side, softcap, scale or 1.0)
            inputs[f"{side}_logits"] = z.to(DEVICE, dtype)
    leaves = [
        value.requires_grad_()
        for name, value in inputs.items()
        if name.startswith("student") and isinstance(value, torch.Tensor)
    ]
    out = loss_fn.to(DEVICE)(**inputs, index=c.index.to(DEVICE))
    (out.loss if weights is None else (out.per_unit * weights.to(DEVICE)).sum()).backward()
    return out, [leaf.grad.cpu() for leaf in leaves]


def compare(c, *, kind=LinearSimCTLoss, only=SIDES, bias=False, options=None, **keywords):
    keywords = {"metrics": "full", **keywords}
    where = {"only": only, "bias": bias, **(options or {})}
    ours, gradients = run(kind(c.pair, backend="triton", **keywords), c, torch.float32, **where)
    truth, expected = run(kind(c.pair, backend="torch", **keywords), c, torch.float64, **where)
    assert_same_figures(ours, truth)
    for found, wanted in zip(gradients, expected, strict=True):
        if wanted.numel():
            allowed = 5e-5 * float(wanted.abs().max()) + 1e-6
            assert float((found.double() - wanted).abs().max()) <= allowed
    return ours


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_torch(score, shape):
    seed = 7 * SCORES.index(score) + list(SHAPES).index(shape)
    compare(linear_case(seed, **SHAPES[shape]), score=score)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("metrics", ["none", "full"])
def test_every_form_of_a_head(option, metrics):
    options = dict(OPTIONS[option])
    bias = options.pop("bias", False)
    c = linear_case(3, extra_columns=3, padded=True)
    compare(c, bias=bias, options=options, temperature=1.3, metrics=metrics)


@pytest.mark.parametrize("chunk_bytes", [1, 3_000, 20_000])
@pytest.mark.parametrize("score", ["mean", "event"])
def test_any_number_of_chunks(score, chunk_bytes):
    c = linear_case(4, rows=12, length=12)
    compare(c, score=score, chunk_bytes=chunk_bytes, metrics="multi")
    compare(c, score=score, chunk_bytes=chunk_bytes, bias=True, options={"student_softcap": 3.0})


@pytest.mark.parametrize("name", DIVERGENCES)
def test_every_divergence(name):
    compare(linear_case(5), divergence=DIVERGENCES[name][0])


@pytest.mark.parametrize(
    "keywords",
    [
        {"candidates": "shared"},
        {"min_teacher_mass": 0.5},
        {"min_teacher_mass": 0.5, "candidates": "shared", "metrics": "none"},
        {"reduction": "sum"},
    ],
    ids=str,
)
def test_every_keyword(keywords):
    compare(linear_case(10, rows=9), **keywords)


@pytest.mark.parametrize("metrics", ["multi", "full"])
@pytest.mark.parametrize("chunk_bytes", [1, None])
def test_one_side_from_logits(metrics, chunk_bytes):
    c = linear_case(6, rows=9)
    common = {"metrics": metrics, "chunk_bytes": chunk_bytes}
    compare(c, only=("student",), **common)
    compare(c, kind=SimCTLoss, only=("teacher",), **common)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("score", ["mean", "event"])
def test_narrow_hidden_states(dtype, score):
    """Logits are rounded as those of a model are: the truth has rounded logits, too."""
    c = linear_case(7, dtype=dtype, width=(16, 16), rows=6)
    c.student_hidden, c.teacher_hidden = c.student_hidden / 4, c.teacher_hidden / 4
    loss_fn = LinearSimCTLoss(c.pair, backend="triton", score=score)
    ours, gradients = run(loss_fn, c, dtype)
    leaves = [
        getattr(c, f"student_{part}").double().requires_grad_() for part in ("hidden", "weight")
    ]
    student = logits_of(*leaves)
    rounded = student + (student.to(dtype).double() - student).detach()
    teacher = logits_of(c.teacher_hidden.double(), c.teacher_weight.double()).to(dtype).double()
    truth = SimCTLoss(c.pair, score=score)(
        teacher_logits=teacher, student_logits=rounded, index=c.index
    )
    truth.loss.backward()
    torch.testing.assert_close(ours.per_unit.cpu().double(), truth.per_unit, rtol=2e-2, atol=2e-3)
    for found, leaf in zip(gradients, leaves, strict=True):
        assert found.dtype == dtype
        assert_near(found, leaf.grad, 0.02)


def test_weights_of_units():
    c = linear_case(8)
    weights = torch.rand(c.index.n_shared + c.index.n_multi, dtype=torch.float64)
    found = []
    for backend, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        loss_fn = LinearSimCTLoss(c.pair, backend=backend, reduction="none")
        found.append(run(loss_fn, c, dtype, weights=weights.to(dtype))[1])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5)


def test_gradients_that_nobody_wants(monkeypatch):
    c = linear_case(9)
    inputs = {f"{side}_{part}": getattr(c, f"{side}_{part}").float().to(DEVICE)
              for side in SIDES for part in PARTS[:2]}  # fmt: skip
    index, loss_fn = c.index.to(DEVICE), LinearSimCTLoss(c.pair, backend="triton").to(DEVICE)
    expected = loss_fn(**inputs, index=index)
    assert not expected.loss.requires_grad
    inputs["student_hidden"].requires_grad_()
    monkeypatch.setattr(heads.HeadProducts, "_add_to_weight", None)
    monkeypatch.setattr(heads.HeadProducts, "_sums_by_weight", None)
    out = loss_fn(**inputs, index=index)
    out.loss.backward()
    torch.testing.assert_close(out.loss.detach(), expected.loss)
    assert inputs["student_hidden"].grad.abs().sum() > 0


def test_what_the_kernels_leave_to_torch(caplog):
    c = linear_case(8)
    inputs = {f"{side}_{part}": getattr(c, f"{side}_{part}").float()
              for side in SIDES for part in PARTS[:2]}  # fmt: skip
    loss_fn = LinearSimCTLoss(c.pair, backend="triton")
    with caplog.at_level(logging.WARNING, "simct_align"):
        first = loss_fn(**inputs, index=dataclasses.replace(c.index, host=None)).loss
        inputs["teacher_weight"] = inputs["teacher_weight"].double()
        second = loss_fn(**inputs, index=c.index).loss
    torch.testing.assert_close(first, second)
    reasons = [record.message for record in caplog.records]
    assert len(reasons) == 2
    assert "a copy on the host" in reasons[0]
    assert "of one dtype" in reasons[1]


def text_heads(c, *, softcap=None, bias=False):
    """Hidden states and output embeddings whose logits are those of a case of text events.

    With a soft-cap the logits are capped ones of the case's.
    """
    heads_of = {}
    for side in SIDES:
        z = c.logits[side]
        generator = torch.Generator().manual_seed(z.shape[1])
        square = torch.randn(z.shape[1], z.shape[1], generator=generator, dtype=torch.float64)
        weight = torch.linalg.qr(square)[0]
        shift = torch.randn(z.shape[1], generator=generator, dtype=torch.float64) * float(bias)
        heads_of[side] = {"hidden": (z - shift) @ weight, "weight": weight}
        if bias:
            heads_of[side]["bias"] = shift
        if softcap is not None:
            heads_of[side]["softcap"] = softcap
    return heads_of


def run_text(c, heads_of, backend, dtype, only=SIDES, **keywords):
    inputs = {}
    for side in SIDES:
        if side in only:
            for part, value in heads_of[side].items():
                of_dtype = value.to(DEVICE, dtype) if isinstance(value, torch.Tensor) else value
                inputs[f"{side}_{part}"] = of_dtype
        else:
            inputs[f"{side}_logits"] = c.logits[side].to(DEVICE, dtype)
    leaves = [
        value.requires_grad_()
        for name, value in inputs.items()
        if name.startswith("student") and isinstance(value, torch.Tensor)
    ]
    kind = LinearTextLoss if "student" in only else TextLoss
    loss_fn = kind(c.aligner, backend=backend, reduction="sum", **keywords).to(DEVICE)
    out = loss_fn(**inputs, index=c.index.to(DEVICE))
    out.loss.backward()
    return out, [leaf.grad.cpu() for leaf in leaves]


def compare_text(c, heads_of=None, *, only=SIDES, **keywords):
    heads_of = heads_of or text_heads(c)
    ours, gradients = run_text(c, heads_of, "triton", torch.float32, only, **keywords)
    truth, expected = run_text(c, heads_of, "torch", torch.float64, only, **keywords)
    assert_same_figures(ours, truth, rtol=2e-4, atol=5e-5)
    for found, wanted in zip(gradients, expected, strict=True):
        if wanted.numel():
            allowed = 1e-4 * float(wanted.abs().max()) + 2e-5
            assert float((found.double() - wanted).abs().max()) <= allowed
    return ours


@pytest.mark.parametrize("seed", range(6))
def test_text_events(seed):
    c = random_case(seed, alphabet=b"abc"[: 2 + seed % 2])
    compare_text(c, chunk_bytes=1 if seed % 2 else None, temperature=(1.0, 1.7)[seed // 2 % 2])


@pytest.mark.parametrize("chunk_bytes", [1, 100_000])
def test_text_events_of_a_tree_with_many_blocks(chunk_bytes):
    c = wide_case(3, rows=3, length=12)
    assert compare_text(c, chunk_bytes=chunk_bytes).metrics.offsets_tree > 0
    compare_text(c, text_heads(c, softcap=8.0, bias=True), chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("only", [("teacher",), ("student",)])
def test_text_events_of_one_side_from_logits(only):
    compare_text(wide_case(4, tokens=40), only=only, chunk_bytes=50_000)


def test_text_events_of_narrow_hidden_states():
    c = wide_case(5, tokens=40)
    heads_of = text_heads(c)
    ours, gradients = run_text(c, heads_of, "triton", torch.bfloat16)
    truth, expected = run_text(c, heads_of, "torch", torch.float64)
    # Logits of up to 15 are rounded to a 256th of them, the case's text takes likely tokens.
    assert abs(float(ours.loss.detach() - truth.loss.detach())) < 0.05 * float(truth.loss.detach())
    for found, wanted in zip(gradients, expected, strict=True):
        assert found.dtype == torch.bfloat16
        assert_near(found, wanted, 0.1)


def test_no_text_events():
    c = random_case(2)
    ids = {side: [[]] for side in SIDES}
    c.batch = c.aligner.align_batch(ids["teacher"], ids["student"])
    c.logits = {side: z[:0] for side, z in c.logits.items()}
    heads_of = text_heads(c)
    out, gradients = run_text(c, heads_of, "triton", torch.float32)
    assert len(out.per_unit) == 0
    assert all(gradient.abs().sum() == 0 for gradient in gradients)


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU: synchronizations are left out")
def test_no_synchronization():
    units, text = linear_case(3), wide_case(3)
    heads_of = text_heads(text)
    units.index = units.index.to(DEVICE)
    text.index = text.index.to(DEVICE)
    of_units = LinearSimCTLoss(units.pair, backend="triton").to(DEVICE)
    of_text = LinearTextLoss(text.aligner, backend="triton").to(DEVICE)
    inputs = [
        {f"{side}_{part}": getattr(units, f"{side}_{part}") for side in SIDES for part in PARTS},
        {f"{side}_{part}": value for side in SIDES for part, value in heads_of[side].items()},
    ]
    for loss_fn, of_loss, index in zip(
        (of_units, of_text), inputs, (units.index, text.index), strict=True
    ):
        tensors = {name: value.float().to(DEVICE) for name, value in of_loss.items()}
        tensors["student_weight"].requires_grad_()
        loss_fn(**tensors, index=index).loss.backward()
        with without_synchronization():
            loss_fn(**tensors, index=index).loss.backward()
