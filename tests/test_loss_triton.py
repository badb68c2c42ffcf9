"""The kernels of the back end "triton" against PyTorch operations in float64.

Without a GPU, Triton's interpreter runs the kernels on the CPU: see conftest.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="no Triton here: the tests of its kernels are left out")

from simct_align.loss import SimCTLoss
from simct_align.loss.backends.triton import (
    computation,
    kernels,
    launch,
    offset_kernels,
    text_kernels,
    unit_kernels,
)
from support.index_twin import case, random_pair
from test_loss import DIVERGENCES, SCORES, SHAPES

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Relative errors. The interpreter cuts float32 to bfloat16 instead of rounding it.
TOLERANCES = {torch.float32: 2e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}

pytestmark = [
    pytest.mark.skipif(
        DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1",
        reason="no GPU and no interpreter: the tests of Triton's kernels are left out",
    ),
    # The interpreter computes with NumPy, also what a mask then leaves out.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def set_tiles(monkeypatch, threads, columns):
    for module in (launch, computation):
        monkeypatch.setattr(module, "T", threads)
        monkeypatch.setattr(module, "ROW_T", threads)
        monkeypatch.setattr(module, "E", columns)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of 8 columns: small vocabularies have many, and several parts."""
    set_tiles(monkeypatch, 4, 2)


def run(loss_fn, c, dtype, weights=None):
    """The output and the gradient on the CPU."""
    student = c.student.to(DEVICE, dtype, copy=True).requires_grad_()
    out = loss_fn.to(DEVICE)(
        teacher_logits=c.teacher.to(DEVICE, dtype), student_logits=student,
        index=c.index.to(DEVICE),
    )  # fmt: skip
    (out.loss if weights is None else (out.per_unit * weights.to(DEVICE)).sum()).backward()
    return out, student.grad.cpu().double()


def assert_same_figures(ours, truth, rtol=1e-4, atol=2e-5):
    """Values and metrics against those of float64."""
    close = {"rtol": rtol, "atol": atol}
    torch.testing.assert_close(ours.per_unit.cpu().double(), truth.per_unit.cpu(), **close)
    for name in truth.metrics._fields:
        torch.testing.assert_close(
            getattr(ours.metrics, name).cpu().double(), getattr(truth.metrics, name).cpu(),
            **close, equal_nan=True,
        )  # fmt: skip


def compare(c, dtype=torch.float32, **keywords):
    """Kernels against float64 on the same rounded logits."""
    keywords = {"metrics": "full", **keywords}
    c.teacher, c.student = c.teacher.to(dtype).double(), c.student.to(dtype).double()
    ours, gradient = run(SimCTLoss(c.pair, backend="triton", **keywords), c, dtype)
    truth, expected = run(SimCTLoss(c.pair, backend="torch", **keywords), c, torch.float64)
    assert_same_figures(ours, truth)
    if expected.numel():
        # What PyTorch operations in float32 get wrong, too, is allowed.
        _, plain = run(SimCTLoss(c.pair, backend="torch", **keywords), c, dtype)
        allowed = 2e-7 + 4 * (plain - expected).abs().amax(-1, keepdim=True)
        allowed += TOLERANCES[dtype] * expected.abs().amax(-1, keepdim=True)
        # Derivatives are differences of terms as large as the divergence.
        allowed += 1e-8 * float(truth.per_unit.detach().sum())
        wrong = (gradient - expected).abs()
        assert (wrong <= allowed).all(), float((wrong - allowed).max())
    return ours


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_torch(score, shape):
    seed = 7 * SCORES.index(score) + list(SHAPES).index(shape)
    compare(case(seed, **SHAPES[shape]), score=score)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("score", ["mean", "event"])
def test_equals_torch_under_every_divergence(name, score):
    compare(case(5), divergence=DIVERGENCES[name][0], score=score)


@pytest.mark.parametrize("stops", [(1, 1), (1, 3), (3, 1), (2, 2)])
@pytest.mark.parametrize("score", ["mean", "sum", "event"])
def test_any_number_of_stops(score, stops):
    pair = random_pair(2, teacher_stops=stops[0], student_stops=stops[1])
    compare(case(2, pair=pair), score=score)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("score", ["mean", "event"])
def test_narrow_logits(dtype, score):
    compare(case(9), dtype, score=score)


@pytest.mark.parametrize(
    "keywords",
    [
        {"candidates": "shared"},
        {"temperature": 1.7},
        {"min_teacher_mass": 0.5},
        {"min_teacher_mass": 0.5, "candidates": "shared"},
        {"metrics": "none"},
        {"metrics": "multi"},
        {"chunk_bytes": 1},
        {"reduction": "sum"},
    ],
    ids=str,
)
def test_every_keyword(keywords):
    compare(case(10, rows=9), **keywords)


@pytest.mark.parametrize("score", ["mean", "event"])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_logits_far_from_zero(score, divergence):
    for factor in (50.0, 1e4):
        c = case(3)
        c.student, c.teacher = factor * c.student, factor * c.teacher
        compare(c, score=score, divergence=divergence)


def test_forbidden_tokens_stay_finite():
    c = case(4)
    shared = torch.as_tensor(c.pair.shared.student_ids[:2])
    c.student[:, shared] = -torch.inf
    c.teacher[:, torch.as_tensor(c.pair.shared.teacher_ids[1:3])] = -torch.inf
    out = compare(c)
    assert torch.isfinite(out.per_unit).all()


def test_any_strides():
    c = case(6, padded=True)
    wide = [
        torch.randn(*z.shape[:2], z.shape[2] + 3, dtype=z.dtype) for z in (c.teacher, c.student)
    ]
    for z, own in zip(wide, (c.teacher, c.student), strict=True):
        z[..., 1 : own.shape[2] + 1] = own
    c.teacher = wide[0][..., 1 : c.teacher.shape[2] + 1]
    c.student = (
        wide[1][..., 1 : c.student.shape[2] + 1].transpose(0, 1).contiguous().transpose(0, 1)
    )
    loss = [SimCTLoss(c.pair, backend=name) for name in ("triton", "torch")]
    results = []
    for loss_fn in loss:
        leaf = c.student.float().detach().requires_grad_()
        out = loss_fn(teacher_logits=c.teacher.float(), student_logits=leaf, index=c.index)
        out.loss.backward()
        results.append((out.per_unit, leaf.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=2e-5)


def test_a_nan_spoils_its_row_alone():
    c = case(7)
    row = int(c.index.student_row[0])
    c.student[row, 0] = torch.nan
    ours, gradient = run(SimCTLoss(c.pair, backend="triton", reduction="none"), c, torch.float32,
                         torch.ones(c.index.n_shared + c.index.n_multi))  # fmt: skip
    truth, _ = run(SimCTLoss(c.pair, backend="torch", reduction="none"), c, torch.float64,
                   torch.ones(c.index.n_shared + c.index.n_multi))  # fmt: skip
    assert (ours.per_unit.isnan().cpu() <= truth.per_unit.isnan().cpu()).all()
    others = torch.ones(len(gradient), dtype=torch.bool)
    others[row] = False
    assert torch.isfinite(gradient[others]).all()


def test_problems_that_it_refuses_are_computed_and_logged(caplog):
    c = case(8)
    with caplog.at_level(logging.WARNING, "simct_align"):
        for _ in range(2):
            run(SimCTLoss(c.pair, backend="triton"), c, torch.float64)
    messages = [record.message for record in caplog.records]
    assert messages == [
        "backend='triton': computing with the back end 'torch' instead: the kernels compute in "
        "float32, and the logits are float64"
    ]


def test_the_environment_names_the_back_end(monkeypatch):
    c = case(1)
    monkeypatch.setenv("SIMCT_BACKEND", "triton")
    assert SimCTLoss(c.pair).backend.name == "triton"
    assert SimCTLoss(c.pair, backend="torch").backend.name == "torch"
    monkeypatch.setenv("SIMCT_BACKEND", "fast")
    with pytest.raises(ValueError, match="SIMCT_BACKEND: expected one of"):
        SimCTLoss(c.pair)


def test_the_bench_goes_on_where_a_part_fails(monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benches")
    import _loss_gpu
    from _loss_common import Setting

    set_tiles(monkeypatch, 16, 8)
    monkeypatch.setattr(_loss_gpu, "QUICK_COLUMNS", (96, 64, 40))
    bench = _loss_gpu.Bench(Setting(8, torch.device(DEVICE), torch.float32), 1, quick=True)
    monkeypatch.setattr(bench, "plain", lambda: 1 / 0)
    for part in ("text", "linear", "liger"):
        monkeypatch.setattr(bench, part, lambda **_: None)
    assert bench.run() == 1
    printed = capsys.readouterr().out
    assert "ZeroDivisionError" in printed
    assert "failed: plain reverse KL" in printed
    assert {"SimCTLoss shared, 8 units, triton", "SimCTLoss realized, mean, 8 units, torch"} <= {
        row.name for row in bench.rows
    }


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_kernels_compile_without_spilling(capability):
    """The compiler needs no GPU, but a process without the interpreter."""
    script = Path(__file__).parent / "support" / "compile_kernels.py"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    printed = subprocess.run(
        [sys.executable, script, str(capability)], env=environment, capture_output=True, text=True
    )
    assert printed.returncode == 0, printed.stderr
    found = [json.loads(line) for line in printed.stdout.splitlines()]
    assert {each["kernel"] for each in found} == {
        name
        for module in (kernels, unit_kernels, text_kernels, offset_kernels)
        for name, function in vars(module).items()
        if hasattr(function, "arg_names") and not name.startswith("_")
    }
    for each in found:
        # On sm_80 the leaves of text events need a few registers more than a thread has.
        spilled = 128 if capability == 80 and each["kernel"] == "compare_nodes" else 0
        assert each["STACK"] <= spilled, each
        assert each["LOCAL"] == 0, each
        assert each["REG"] <= 255
        # Whole rows are read and written 16 bytes at a time.
        if each["kernel"] in ("write_gradient", "write_path_rows"):
            assert each["st"] == 128, each
            # Without the norm, rows of later steps are not read.
            assert each["ld"] == 128 or not each["WITH_NORM"], each
        if each["kernel"] == "write_text_rows":
            assert min(each["ld"], each["st"]) >= 64, each


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU: graphs of kernels are left out")
@pytest.mark.parametrize("score", ["mean", "event"])
def test_cuda_graphs_capture_it(score):
    c = case(12)
    loss_fn, index = SimCTLoss(c.pair, backend="triton", score=score).to(DEVICE), c.index.to(DEVICE)
    inputs = {
        f"{side}_logits": getattr(c, side).float().to(DEVICE) for side in ("teacher", "student")
    }
    replay, gradient = captured(loss_fn, inputs, index)
    with torch.no_grad():
        for z in inputs.values():
            z.mul_(0.5)
    loss = replay()
    student = inputs["student_logits"].detach().clone().requires_grad_()
    expected = loss_fn(**{**inputs, "student_logits": student}, index=index).loss
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient(), student.grad)


def captured(loss_fn, inputs, index):
    """A graph of the loss and its backward pass: what runs it, and what reads the gradient."""
    student = inputs["student_logits"].requires_grad_()

    def step():
        student.grad = None
        loss = loss_fn(**inputs, index=index).loss
        loss.backward()
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    student.grad = None
    with torch.cuda.graph(graph):
        loss = step()

    def replay():
        graph.replay()
        return loss

    return replay, lambda: student.grad
