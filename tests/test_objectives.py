"""The baselines against their slow twins, and their common interface."""

from __future__ import annotations

import math

import pytest
import torch

from simct_align.objectives import Alm, Gold, Uld, shared, simct
from support import loss_twins
from support.index_twin import SHARED, case

BASELINES = {
    "uld": (Uld, loss_twins.uld_twin, {}, {}),
    "uld_top_k": (Uld, loss_twins.uld_twin, {"top_k": 5}, {"top_k": 5}),
    "alm": (Alm, loss_twins.alm_twin, {"tau": 3.0}, {"tau": 3.0}),
    "alm_limit": (Alm, loss_twins.alm_twin, {"tau": math.inf}, {"tau": math.inf}),
    "gold": (Gold, loss_twins.gold_twin, {}, {}),
    "gold_0": (Gold, loss_twins.gold_twin, {"beta": 0.0}, {"beta": 0.0}),
    "gold_1": (Gold, loss_twins.gold_twin, {"beta": 1.0}, {"beta": 1.0}),
    "gold_weights": (
        Gold,
        loss_twins.gold_twin,
        {"beta": 0.3, "matched_weight": 0.8, "unmatched_weight": 0.1},
        {"beta": 0.3, "weights": (0.8, 0.1)},
    ),
}


def ids_of(c, padded):
    """Token ids in the layout of the logits."""
    out = {}
    for n, side in enumerate(("teacher", "student")):
        logits = getattr(c, side)
        ids = torch.zeros(logits.shape[:-1], dtype=torch.int64)
        if padded:
            for row, values in enumerate(c.ids[n]):
                ids[row, : len(values)] = torch.tensor(values, dtype=torch.int64)
        else:
            flat = [i for values in c.ids[n] for i in values]
            ids[: len(flat)] = torch.tensor(flat)
        out[f"{side}_ids"] = ids
    return out


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("chunk_bytes", [1, 1 << 26])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_its_twin(name, chunk_bytes, padded):
    kind, twin, keywords, twin_keywords = BASELINES[name]
    for seed, shape in ((1, {}), (2, {"extra_columns": 3}), (3, {"only": SHARED})):
        c = case(seed, padded=padded, **shape)
        objective = kind(c.pair, temperature=1.4, chunk_bytes=chunk_bytes, **keywords)
        s1, s2 = (c.student.clone().requires_grad_() for _ in range(2))
        ids = ids_of(c, padded) if kind.reads_ids else {}
        out = objective(s1, c.teacher, c.index, **ids)
        flat = [x.reshape(-1, x.shape[-1]) for x in (s2, c.teacher)]
        expected = twin(*flat, c.pair, c.units, temperature=1.4, **twin_keywords)
        torch.testing.assert_close(out.per_unit, expected)
        torch.testing.assert_close(out.loss, expected.mean())
        out.loss.backward()
        expected.mean().backward()
        torch.testing.assert_close(s1.grad, s2.grad)


def test_the_limit_is_a_limit():
    c = case(4)
    ids = ids_of(c, padded=False)
    far = 1e5
    near = Alm(c.pair, tau=far)(c.student, c.teacher, c.index, **ids)
    limit = Alm(c.pair, tau=math.inf)(c.student, c.teacher, c.index, **ids)
    torch.testing.assert_close(far * near.per_unit, limit.per_unit, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [Uld, Gold])
def test_gradcheck(kind):
    c = case(5, rows=1, length=6)
    objective = kind(c.pair)
    student = c.student.clone().requires_grad_()
    torch.autograd.gradcheck(lambda x: objective(x, c.teacher, c.index).loss, (student,))


@pytest.mark.parametrize("kind", [Uld, Gold])
def test_reduction_normalizer_and_no_grad(kind):
    c = case(6)
    per_unit = kind(c.pair)(c.student, c.teacher, c.index).per_unit
    candidates = "realized" if kind.uses_multi else "shared"
    for reduction in ("unit", "token", "sum"):
        out = kind(c.pair, reduction=reduction)(c.student, c.teacher, c.index)
        by = 1 if reduction == "sum" else c.index.normalizer(reduction, candidates)
        torch.testing.assert_close(out.loss, per_unit.sum() / by)
    out = kind(c.pair)(c.student, c.teacher, c.index, normalizer=7)
    torch.testing.assert_close(out.loss, per_unit.sum() / 7)
    assert not out.loss.requires_grad


def test_simct_and_shared_are_the_losses():
    c = case(7)
    for make, candidates in ((simct, "realized"), (shared, "shared")):
        loss_fn = make(c.pair, score="sum")
        assert (loss_fn.candidates, loss_fn.score) == (candidates, "sum")
        out = loss_fn(c.student, c.teacher, c.index)
        expected, _ = loss_twins.simct_twin(
            c.student, c.teacher, c.pair, c.units, score="sum", candidates=candidates
        )
        torch.testing.assert_close(out.per_unit[: len(expected)], expected)
        assert not out.per_unit[len(expected) :].any()


def test_bad_arguments_are_named():
    c = case(0)
    for kind, keywords, name in (
        (Uld, {"top_k": 0}, "top_k"),
        (Alm, {"tau": 0.0}, "tau"),
        (Gold, {"beta": 2.0}, "beta"),
        (Gold, {"matched_weight": 1.0}, "unmatched_weight"),
        (Uld, {"reduction": "mean"}, "reduction"),
        (Uld, {"temperature": -1.0}, "temperature"),
        (Uld, {"chunk_bytes": 0}, "chunk_bytes"),
    ):
        with pytest.raises(ValueError, match=name):
            kind(c.pair, **keywords)
    with pytest.raises(ValueError, match="student_ids: Alm reads token ids"):
        Alm(c.pair)(c.student, c.teacher, c.index)
    with pytest.raises(ValueError, match="teacher_ids: Uld does not read"):
        Uld(c.pair)(c.student, c.teacher, c.index, teacher_ids=torch.zeros(3))
    with pytest.raises(ValueError, match="teacher_logits has 4"):
        Uld(c.pair)(c.student, c.teacher[:, :4], c.index)
