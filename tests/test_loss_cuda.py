"""The losses on a real GPU: the same figures as on the CPU, without a single synchronization."""

from __future__ import annotations

import contextlib

import pytest
import torch

from simct_align.loss import LinearSimCTLoss, SimCTLoss
from test_baselines import BASELINES
from test_loss_linear import assert_near, linear_case
from test_loss_on_path import case as on_path_case
from test_loss_system import KEYWORDS, LINEAR, LOGITS, both_losses, compiled_step, named

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device here: the tests on a GPU are left out"
)

ON_PATH = [
    {"score": score, **more}
    for score in ("mean", "sum", "event")
    for more in ({}, {"metrics": "full", "chunk_bytes": 2_000}, {"min_teacher_mass": 0.5})
]


@contextlib.contextmanager
def without_synchronization():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_path_losses(device, seed, keywords, dtype=torch.float64):
    """Both losses with continuations on a device, ready to run, and the leaves with gradients."""
    c = on_path_case(seed)
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for side in ("student", "teacher"):
        rows, columns = getattr(c, side).shape
        tensors += [
            torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)
            for shape in ((rows, 5), (columns, 5))
        ]
    logits = [z.to(device, dtype) for z in (c.student, c.teacher)]
    index = c.index.to(device)
    for leaf in (logits[0], *tensors[:2]):
        leaf.requires_grad_()
    from_logits = SimCTLoss(c.aligner, candidates="on_path", **keywords).to(device)
    yield lambda: from_logits(**named(LOGITS, logits), index=index), logits[:1]
    from_hidden = LinearSimCTLoss(c.aligner, candidates="on_path", **keywords).to(device)
    yield lambda: from_hidden(**named(LINEAR, tensors), index=index), tensors[:2]


def results_of(losses):
    """Loss, divergences, metrics and gradients of every loss, on the CPU."""
    results = []
    for run, leaves in losses:
        out = run()
        out.loss.backward()
        results += [out.loss, out.per_unit, *out.metrics, *(leaf.grad for leaf in leaves)]
    return [torch.as_tensor(result).cpu() for result in results]


@pytest.mark.parametrize("keywords", KEYWORDS, ids=str)
@pytest.mark.parametrize("padded", [False, True])
def test_cuda_equals_cpu(keywords, padded):
    c = linear_case(3, extra_columns=2, padded=padded)
    cpu, cuda = (results_of(both_losses(device, c, keywords)) for device in ("cpu", "cuda"))
    torch.testing.assert_close(cuda, cpu, equal_nan=True)


@pytest.mark.parametrize("keywords", ON_PATH, ids=str)
def test_continuations_on_cuda_equal_those_on_the_cpu(keywords):
    for seed in range(3):
        cpu, cuda = (results_of(on_path_losses(d, seed, keywords)) for d in ("cpu", "cuda"))
        torch.testing.assert_close(cuda, cpu, equal_nan=True)


@pytest.mark.parametrize("score", ["mean", "sum", "event"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_computes_in_float32(dtype, score):
    """Same inputs, so what differs is the arithmetic and the rounding of the gradients."""
    results = []
    for device in ("cpu", "cuda"):
        values, gradients = [], []
        for run, leaves in on_path_losses(device, 1, {"score": score}, dtype):
            out = run()
            out.loss.backward()
            values += [out.loss.cpu(), out.per_unit.cpu()]
            gradients += [leaf.grad.cpu() for leaf in leaves]
        results.append((values, gradients))
    (expected, cpu), (values, cuda) = results
    torch.testing.assert_close(values, expected)
    for ours, other in zip(cuda, cpu, strict=True):
        assert ours.dtype == dtype
        assert_near(ours, other, 0.01)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_on_cuda_equal_those_on_the_cpu(name):
    kind, _, keywords, _ = BASELINES[name]
    c = linear_case(2, extra_columns=3)
    results = []
    for device in ("cpu", "cuda"):
        student = c.student.detach().to(device).requires_grad_()
        out = kind(c.pair, **keywords).to(device)(
            teacher_logits=c.teacher.to(device), student_logits=student, index=c.index.to(device)
        )
        out.loss.backward()
        results.append([out.loss.cpu(), out.per_unit.cpu(), student.grad.cpu()])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("keywords", KEYWORDS, ids=str)
def test_no_synchronization(keywords):
    c = linear_case(3)
    for run, _ in both_losses("cuda", c, keywords):
        run().loss.backward()
        with without_synchronization():
            run().loss.backward()


@pytest.mark.parametrize("keywords", ON_PATH, ids=str)
def test_no_synchronization_with_continuations(keywords):
    for run, _ in on_path_losses("cuda", 3, keywords):
        run().loss.backward()
        with without_synchronization():
            run().loss.backward()


def test_no_synchronization_from_a_batch():
    """A batch in place of an index is converted and copied on the way."""
    c = on_path_case(3)
    loss_fn = SimCTLoss(c.aligner, candidates="on_path").cuda()
    student, teacher = c.student.cuda().requires_grad_(), c.teacher.cuda()
    loss_fn(teacher_logits=teacher, student_logits=student, index=c.batch).loss.backward()
    with without_synchronization():
        loss_fn(teacher_logits=teacher, student_logits=student, index=c.batch).loss.backward()


@pytest.mark.parametrize("candidates", ["realized", "on_path"])
def test_compiled_for_cuda(candidates):
    c = on_path_case(5, dtype=torch.float32)
    index, teacher = c.index.to("cuda"), c.teacher.cuda()
    step = compiled_step(SimCTLoss(c.aligner, candidates=candidates).cuda())
    torch._dynamo.reset()
    results = []
    for run in (step, torch.compile(step, fullgraph=True)):
        student = c.student.cuda().requires_grad_()
        loss, _ = run(student, teacher, index)
        loss.backward()
        results.append([loss, student.grad])
    torch.testing.assert_close(*results)


def test_autocast_changes_nothing():
    results = []
    for enabled in (False, True):
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            results.append(results_of(on_path_losses("cuda", 2, {}, torch.float32)))
    # Sums into one place are added in any order there.
    torch.testing.assert_close(*results, equal_nan=True)
