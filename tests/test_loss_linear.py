"""`LinearSimCTLoss` gives what `SimCTLoss` gives on the logits that it never builds."""

from __future__ import annotations

import pytest
import torch

from simct_align.loss import LinearSimCTLoss, SimCTLoss
from simct_align.loss.backends.torch import linear_rows
from support.index_twin import case

SCORES = ("mean", "sum", "event", "mean_logit")


def linear_case(seed=0, dtype=torch.float64, width=(5, 7), padded=False, **keywords):
    """A case with hidden states, weights and biases in place of logits."""
    c = case(seed, padded=padded, **keywords)
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    for side, n in (("student", width[0]), ("teacher", width[1])):
        logits = getattr(c, side)
        setattr(c, f"{side}_hidden", random(*logits.shape[:-1], n))
        setattr(c, f"{side}_weight", random(logits.shape[-1], n))
        setattr(c, f"{side}_bias", random(logits.shape[-1]))
    return c


def logits_of(hidden, weight, bias=None, softcap=None, scale=1.0):
    z = scale * (hidden @ weight.T + (0 if bias is None else bias))
    return softcap * torch.tanh(z / softcap) if softcap else z


OPTIONS = {
    "plain": {},
    "bias": {"bias": True},
    "softcap": {"student_softcap": 30.0, "teacher_softcap": 30.0},
    "small_softcap": {"student_softcap": 1.5, "teacher_softcap": 2.5, "bias": True},
    "one_softcap": {"student_softcap": 3.0},
    "scale": {"student_scale": 0.5, "teacher_scale": 2.0, "bias": True, "student_softcap": 2.0},
}


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("chunk_bytes", [1, 4_000, None])
def test_equals_the_loss_from_logits(score, option, chunk_bytes):
    for seed, keywords in ((1, {}), (2, {"padded": True}), (3, {"only": 0}), (4, {"only": 1})):
        c = linear_case(seed, extra_columns=2, **keywords)
        options = dict(OPTIONS[option])
        bias = options.pop("bias", False)
        for metrics in ("multi", "full"):
            common = {"score": score, "temperature": 1.3, "metrics": metrics}
            leaves = [c.student_hidden, c.student_weight] + [c.student_bias] * bias
            ours = [x.clone().requires_grad_() for x in leaves]
            plain = [x.clone().requires_grad_() for x in leaves]
            out = LinearSimCTLoss(c.pair, chunk_bytes=chunk_bytes, **common)(
                teacher_hidden=c.teacher_hidden,
                teacher_weight=c.teacher_weight,
                student_hidden=ours[0],
                student_weight=ours[1],
                index=c.index,
                student_bias=ours[2] if bias else None,
                teacher_bias=c.teacher_bias if bias else None,
                **options,
            )
            student = logits_of(
                *plain,
                softcap=options.get("student_softcap"),
                scale=options.get("student_scale", 1.0),
            )
            teacher = logits_of(
                c.teacher_hidden,
                c.teacher_weight,
                c.teacher_bias if bias else None,
                options.get("teacher_softcap"),
                options.get("teacher_scale", 1.0),
            )
            expected = SimCTLoss(c.pair, **common)(
                teacher_logits=teacher, student_logits=student, index=c.index
            )
            torch.testing.assert_close(out.per_unit, expected.per_unit)
            torch.testing.assert_close(out.loss, expected.loss)
            out.loss.backward()
            expected.loss.backward()
            for a, b in zip(ours, plain, strict=True):
                torch.testing.assert_close(a.grad, b.grad)
            for a, b in zip(out.metrics, expected.metrics, strict=True):
                torch.testing.assert_close(a, b, equal_nan=True)


def assert_near(ours, expected, tolerance):
    """Relative to the whole: single values of a rounded product may be anything."""
    error = (ours.double() - expected.double()).norm() / expected.double().norm()
    assert error < tolerance, error


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("chunk_bytes", [1, 4_000, None])
def test_narrow_factors(monkeypatch, score, chunk_bytes):
    """What a GPU does with bfloat16, its products replaced by those of widened factors."""
    c = linear_case(2, dtype=torch.bfloat16, extra_columns=2)
    biases = {f"{side}_bias": getattr(c, f"{side}_bias") for side in ("student", "teacher")}
    results = []
    for narrow in (False, True):
        if narrow:
            monkeypatch.setattr(linear_rows, "multiplies_narrow", lambda *_: True)
            monkeypatch.setattr(
                linear_rows, "product", lambda a, b, out: torch.mm(a.float(), b.float(), out=out)
            )
        leaves = [x.clone().requires_grad_() for x in (c.student_hidden, c.student_weight)]
        out = LinearSimCTLoss(c.pair, score=score, chunk_bytes=chunk_bytes)(
            teacher_hidden=c.teacher_hidden, teacher_weight=c.teacher_weight,
            student_hidden=leaves[0], student_weight=leaves[1], index=c.index,
            student_softcap=3.0, teacher_scale=0.7, **biases,
        )  # fmt: skip
        out.loss.backward()
        results.append([out.per_unit, *(leaf.grad for leaf in leaves)])
    wide, narrow = results
    torch.testing.assert_close(narrow[0], wide[0])
    for a, b in zip(narrow[1:], wide[1:], strict=True):
        assert a.dtype == torch.bfloat16
        assert_near(a, b, 0.01)


def test_gradcheck():
    c = linear_case(5, rows=1, length=5, width=(2, 3))
    for reduction in ("unit", "none"):
        loss_fn = LinearSimCTLoss(c.pair, reduction=reduction)

        def run(hidden, weight, bias, loss_fn=loss_fn):
            return loss_fn(
                teacher_hidden=c.teacher_hidden,
                teacher_weight=c.teacher_weight,
                student_hidden=hidden,
                student_weight=weight,
                index=c.index,
                student_bias=bias,
                student_softcap=3.0,
            ).loss

        leaves = [
            x.clone().requires_grad_() for x in (c.student_hidden, c.student_weight, c.student_bias)
        ]
        torch.autograd.gradcheck(run, leaves)


def test_frozen_inputs_get_no_gradient():
    c = linear_case(6)
    loss_fn = LinearSimCTLoss(c.pair)
    hidden = c.student_hidden.clone().requires_grad_()
    loss_fn(
        teacher_hidden=c.teacher_hidden,
        teacher_weight=c.teacher_weight,
        student_hidden=hidden,
        student_weight=c.student_weight,
        index=c.index,
    ).loss.backward()
    weight = c.student_weight.clone().requires_grad_()
    out = loss_fn(
        teacher_hidden=c.teacher_hidden,
        teacher_weight=c.teacher_weight,
        student_hidden=c.student_hidden,
        student_weight=weight,
        index=c.index,
    )
    out.loss.backward()
    both = [x.clone().requires_grad_() for x in (c.student_hidden, c.student_weight)]
    teacher = {"teacher_hidden": c.teacher_hidden, "teacher_weight": c.teacher_weight}
    student = dict(zip(("student_hidden", "student_weight"), both, strict=True))
    loss_fn(**teacher, **student, index=c.index).loss.backward()
    torch.testing.assert_close(hidden.grad, both[0].grad)
    torch.testing.assert_close(weight.grad, both[1].grad)
    with torch.no_grad():
        out = loss_fn(**teacher, **student, index=c.index)
    assert not out.loss.requires_grad


def test_low_precision_gradients_are_as_near_the_truth_as_from_logits():
    errors = []
    for seed in range(6):
        c = linear_case(seed, dtype=torch.bfloat16, width=(16, 16), rows=6)
        c.student_hidden, c.teacher_hidden = c.student_hidden / 4, c.teacher_hidden / 4
        data = [c.student_hidden, c.student_weight, c.teacher_hidden, c.teacher_weight]
        grads = []
        for dtype in (torch.float64, torch.bfloat16):
            x = [d.to(dtype) for d in data]
            leaves = [x[0].clone().requires_grad_(), x[1].clone().requires_grad_()]
            SimCTLoss(c.pair)(
                teacher_logits=logits_of(*x[2:]), student_logits=logits_of(*leaves), index=c.index
            ).loss.backward()
            grads.append([leaf.grad.double() for leaf in leaves])
        leaves = [d.clone().requires_grad_() for d in data[:2]]
        LinearSimCTLoss(c.pair)(
            student_hidden=leaves[0], student_weight=leaves[1],
            teacher_hidden=data[2], teacher_weight=data[3], index=c.index,
        ).loss.backward()  # fmt: skip
        ours = [leaf.grad.double() for leaf in leaves]
        errors.append([[(a - b).norm() for a, b in zip(g, grads[0], strict=True)]
                       for g in (ours, grads[1])])  # fmt: skip
    ours, plain = torch.tensor(errors).sum(0)
    assert (ours < plain).all()


def test_whole_logits_are_never_built():
    from simct_align.loss.backends.torch.rows import Workspace

    c = linear_case(7, rows=12)
    taken = []
    original = Workspace.take

    def take(self, name, rows, columns, dtype):
        taken.append(rows * columns)
        return original(self, name, rows, columns, dtype)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workspace, "take", take)
        LinearSimCTLoss(c.pair, chunk_bytes=8_000)(
            teacher_hidden=c.teacher_hidden,
            teacher_weight=c.teacher_weight,
            student_hidden=c.student_hidden,
            student_weight=c.student_weight,
            index=c.index,
        )
    assert 8 * max(taken) <= 8_000 < 8 * c.student.numel()


def test_bad_inputs_are_named():
    c = linear_case(0)
    names = ("student_hidden", "student_weight", "teacher_hidden", "teacher_weight")
    good = {name: getattr(c, name) for name in names} | {"index": c.index}
    loss_fn = LinearSimCTLoss(c.pair)
    for bad, message in (
        ({"student_weight": c.student_weight[:, :2]}, "student_weight"),
        ({"teacher_hidden": c.teacher_hidden.long()}, "teacher_hidden"),
        ({"teacher_bias": c.teacher_bias[:-1]}, "teacher_bias"),
        ({"student_softcap": -1.0}, "student_softcap"),
        ({"teacher_weight": c.teacher_weight[:5]}, r"teacher_weight: expected at least .*; got 5"),
    ):
        with pytest.raises(ValueError, match=message):
            loss_fn(**good | bad)
