"""The gradient in place of the student's logits."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from simct_align import SimCTLoss, TextLoss
from simct_align.loss import LinearSimCTLoss
from support.index_twin import case
from support.text_cases import random_case
from test_loss import SCORES, SHAPES

BACKENDS = ["torch"]
if os.environ.get("TRITON_INTERPRET") == "1":
    BACKENDS.append("triton")


def step(loss_fn, c, *, inplace, dtype=torch.float32):
    """A loss from logits that a model computed: their memory after it, and the gradient."""
    base = c.student.to(dtype, copy=True).requires_grad_()
    logits = base * 1.0
    place = logits.data_ptr()
    out = loss_fn(
        teacher_logits=c.teacher.to(dtype), student_logits=logits, index=c.index, inplace=inplace
    )
    assert logits.data_ptr() == place
    (3.0 * out.loss).backward()
    return out, logits.detach(), base.grad


def check(loss_fn, c, dtype=torch.float32):
    plain, _, expected = step(loss_fn, c, inplace=False, dtype=dtype)
    out, logits, gradient = step(loss_fn, c, inplace=True, dtype=dtype)
    assert torch.equal(gradient, expected)
    # The scaled gradient is where the logits were.
    assert torch.equal(logits, gradient)
    assert torch.equal(out.per_unit, plain.per_unit.detach())
    assert not out.per_unit.requires_grad


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes masked entries too
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("shape", SHAPES)
def test_units(shape, score, backend):
    c = case(31 + SCORES.index(score), **SHAPES[shape])
    check(SimCTLoss(c.pair, score=score, backend=backend, temperature=1.3), c)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits(dtype, backend):
    c = case(8)
    check(SimCTLoss(c.pair, backend=backend, chunk_bytes=1), c, dtype)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
def test_text_events(backend):
    c = random_case(5)
    sides = SimpleNamespace(
        teacher=c.logits["teacher"],
        student=c.logits["student"],
        index=c.index,
    )
    check(TextLoss(c.aligner, backend=backend), sides)


def test_kernels_write_over_the_logits_alone(monkeypatch):
    if "triton" not in BACKENDS:
        pytest.skip("no Triton interpreter: where its kernels write was not looked at")
    from simct_align.loss.backends.triton import unit_sides

    made = []
    clear = unit_sides.clear_unwritten
    monkeypatch.setattr(
        unit_sides,
        "clear_unwritten",
        lambda gradient, written: (made.append(gradient.data_ptr()), clear(gradient, written)),
    )
    c = case(2)
    logits = c.student.float().requires_grad_() * 1.0
    SimCTLoss(c.pair, backend="triton")(
        teacher_logits=c.teacher.float(), student_logits=logits, index=c.index, inplace=True
    )
    assert made == [logits.data_ptr()]


def test_nothing_is_written_without_a_gradient():
    c = case(4)
    loss_fn = SimCTLoss(c.pair)
    logits = c.student.clone()
    loss_fn(teacher_logits=c.teacher, student_logits=logits, index=c.index, inplace=True)
    assert torch.equal(logits, c.student)
    logits = c.student.clone().requires_grad_() * 1.0
    with torch.no_grad():
        loss_fn(teacher_logits=c.teacher, student_logits=logits, index=c.index, inplace=True)
    assert torch.equal(logits, c.student)


def test_logits_that_another_term_saved_are_an_error():
    c = case(4)
    logits = c.student.clone().requires_grad_() * 1.0
    other = logits.square().sum()
    out = SimCTLoss(c.pair)(
        teacher_logits=c.teacher, student_logits=logits, index=c.index, inplace=True
    )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (out.loss + other).backward()


def test_one_backward_pass():
    c = case(4)
    out, _, _ = step(SimCTLoss(c.pair), c, inplace=True)
    with pytest.raises(RuntimeError, match="first backward pass took it"):
        out.loss.backward(retain_graph=True)


@pytest.mark.parametrize(
    ("make", "keywords", "message"),
    [
        (lambda x: x.requires_grad_(), {}, "got a leaf"),
        (lambda x: (x.requires_grad_() * 1.0).T.contiguous().T, {}, "contiguous logits, got str"),
        (lambda x: x.requires_grad_() * 1.0, {"reduction": "none"}, "'none' does not"),
    ],
)
def test_logits_that_cannot_be_overwritten_are_an_error(make, keywords, message):
    c = case(4)
    logits = make(c.student.flatten(0, -2).clone())
    before = logits.detach().clone()
    loss_fn = SimCTLoss(c.pair, **keywords)
    index = c.index
    with pytest.raises(ValueError, match=f"student_logits: inplace=True.*{message}"):
        loss_fn(teacher_logits=c.teacher, student_logits=logits, index=index, inplace=True)
    assert torch.equal(logits, before)


def test_hidden_states_have_no_logits_to_write_over():
    c = case(4)
    with pytest.raises(TypeError, match="inplace"):
        LinearSimCTLoss(c.pair)(
            teacher_logits=c.teacher, student_hidden=c.student, student_weight=c.student,
            index=c.index, inplace=True,
        )  # fmt: skip


def test_torch_compile_goes_around_it():
    c = case(6)
    loss_fn = SimCTLoss(c.pair)

    def run(base):
        out = loss_fn(
            teacher_logits=c.teacher, student_logits=base * 1.0, index=c.index, inplace=True
        )
        return 2.0 * out.loss

    plain, compiled = (c.student.clone().requires_grad_() for _ in range(2))
    run(plain).backward()
    torch.compile(run, backend="aot_eager")(compiled).backward()
    torch.testing.assert_close(compiled.grad, plain.grad)
