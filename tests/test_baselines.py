"""The baselines against their slow twins, and their common interface."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from simct_align.loss import SimCTLoss
from simct_align.loss.baselines import ALMLoss, GOLDLoss, ULDLoss
from support import loss_twins
from support.index_twin import SHARED, case

BASELINES = {
    "uld": (ULDLoss, loss_twins.uld_twin, {}, {}),
    "uld_top_k": (ULDLoss, loss_twins.uld_twin, {"top_k": 5}, {"top_k": 5}),
    "alm": (ALMLoss, loss_twins.alm_twin, {"tau": 3.0}, {"tau": 3.0}),
    "alm_limit": (ALMLoss, loss_twins.alm_twin, {"tau": math.inf}, {"tau": math.inf}),
    "gold": (GOLDLoss, loss_twins.gold_twin, {}, {}),
    "gold_0": (GOLDLoss, loss_twins.gold_twin, {"beta": 0.0}, {"beta": 0.0}),
    "gold_1": (GOLDLoss, loss_twins.gold_twin, {"beta": 1.0}, {"beta": 1.0}),
    "gold_weights": (
        GOLDLoss,
        loss_twins.gold_twin,
        {"beta": 0.3, "matched_weight": 0.8, "unmatched_weight": 0.1},
        {"beta": 0.3, "weights": (0.8, 0.1)},
    ),
}


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 26])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_its_twin(name, chunk_bytes, padded):
    kind, twin, keywords, twin_keywords = BASELINES[name]
    for seed, shape in ((1, {}), (2, {"extra_columns": 3}), (3, {"only": SHARED})):
        c = case(seed, padded=padded, **shape)
        loss_fn = kind(c.pair, temperature=1.4, chunk_bytes=chunk_bytes, **keywords)
        s1, s2 = (c.student.clone().requires_grad_() for _ in range(2))
        out = loss_fn(teacher_logits=c.teacher, student_logits=s1, index=c.index)
        flat = [x.reshape(-1, x.shape[-1]) for x in (s2, c.teacher)]
        expected = twin(*flat, c.pair, c.units, temperature=1.4, **twin_keywords)
        assert out.per_unit.shape == (len(c.units),)
        torch.testing.assert_close(out.per_unit[: len(expected)], expected)
        assert not out.per_unit[len(expected) :].any()
        torch.testing.assert_close(out.loss, expected.mean())
        out.loss.backward()
        expected.mean().backward()
        torch.testing.assert_close(s1.grad, s2.grad)


def run(loss_fn, c, student=None, **keywords):
    student = c.student if student is None else student
    return loss_fn(teacher_logits=c.teacher, student_logits=student, index=c.index, **keywords)


def test_the_limit_is_a_limit():
    c = case(4)
    far = 1e5
    near = run(ALMLoss(c.pair, tau=far), c)
    limit = run(ALMLoss(c.pair, tau=math.inf), c)
    torch.testing.assert_close(far * near.per_unit, limit.per_unit, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("reduction", ["unit", "none"])
@pytest.mark.parametrize("kind", [ULDLoss, ALMLoss, GOLDLoss])
def test_gradcheck(kind, reduction):
    c = case(5, rows=1, length=6)
    loss_fn = kind(c.pair, reduction=reduction)
    student = c.student.clone().requires_grad_()
    torch.autograd.gradcheck(lambda x: run(loss_fn, c, x).loss, (student,))


@pytest.mark.parametrize("kind", [ULDLoss, ALMLoss, GOLDLoss])
def test_a_second_backward_pass_and_one_from_the_units(kind):
    c = case(5)
    student = c.student.clone().requires_grad_()
    out = run(kind(c.pair, reduction="sum"), c, student)
    grads = [torch.autograd.grad(out.loss, student, retain_graph=True)[0] for _ in range(2)]
    grads.append(torch.autograd.grad(out.per_unit.sum(), student, retain_graph=True)[0])
    grads.append(torch.autograd.grad(2 * out.loss - out.per_unit.sum(), student)[0])
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0])


@pytest.mark.parametrize("kind", [ULDLoss, ALMLoss, GOLDLoss])
def test_reduction_normalizer_and_no_grad(kind):
    c = case(6)
    per_unit = run(kind(c.pair), c).per_unit
    candidates = "realized" if kind(c.pair).uses_multi else "shared"
    for reduction in ("unit", "mean", "token", "sum"):
        out = run(kind(c.pair, reduction=reduction), c)
        by = 1 if reduction == "sum" else c.index.normalizer(reduction, candidates)
        torch.testing.assert_close(out.loss, per_unit.sum() / by)
    torch.testing.assert_close(run(kind(c.pair, reduction="none"), c).loss, per_unit)
    out = run(kind(c.pair), c, normalizer=7)
    torch.testing.assert_close(out.loss, per_unit.sum() / 7)
    assert not out.loss.requires_grad


@pytest.mark.parametrize("kind", [ULDLoss, ALMLoss, GOLDLoss])
def test_metrics_count_what_took_part(kind):
    c = case(6)
    metrics = run(kind(c.pair), c).metrics
    expected = run(SimCTLoss(c.pair, candidates="realized"), c).metrics
    assert metrics.units_shared == expected.units_shared
    assert metrics.units_special == expected.units_special
    assert metrics.units_multi == (expected.units_multi if kind(c.pair).uses_multi else 0)
    assert metrics.teacher_mass_shared.isnan()


def test_bad_arguments_are_named():
    c = case(0)
    for kind, keywords, name in (
        (ULDLoss, {"top_k": 0}, "top_k"),
        (ALMLoss, {"tau": 0.0}, "tau"),
        (GOLDLoss, {"beta": 2.0}, "beta"),
        (GOLDLoss, {"matched_weight": 1.0}, "unmatched_weight"),
        (ULDLoss, {"reduction": "average"}, "reduction"),
        (ULDLoss, {"temperature": -1.0}, "temperature"),
        (ULDLoss, {"temperature": math.inf}, "temperature"),
        (ULDLoss, {"chunk_bytes": 0}, "chunk_bytes"),
    ):
        with pytest.raises(ValueError, match=name):
            kind(c.pair, **keywords)
    plain = replace(c.index, groups=("units",))
    with pytest.raises(ValueError, match=r"ALMLoss reads the group 'first_ids', .*first_ids=True"):
        ALMLoss(c.pair)(teacher_logits=c.teacher, student_logits=c.student, index=plain)
