"""A teacher as logits, as hidden states with an output embedding, or as lists: for every loss."""

from __future__ import annotations

import pytest
import torch

from simct_align import LinearSimCTLoss, LinearTextLoss, SimCTLoss, TextLoss
from simct_align.loss.baselines import (
    ALMLoss,
    BPMLoss,
    ESCDLoss,
    GOLDLoss,
    StrictLoss,
    ULDLoss,
)
from simct_align.served import TopKLogprobs
from support.text_cases import random_case

WIDTH = 5
FROM_LOGITS = {
    "simct": SimCTLoss,
    "on_path": lambda aligner: SimCTLoss(aligner, candidates="on_path"),
    "text": TextLoss,
    "text_torch": lambda aligner: TextLoss(aligner, backend="torch"),
    "uld": ULDLoss,
    "alm": ALMLoss,
    "gold": GOLDLoss,
    "strict": StrictLoss,
    "bpm": BPMLoss,
    "escd": ESCDLoss,
}
FROM_HIDDEN = {"simct": LinearSimCTLoss, "text": LinearTextLoss}


def head(c, side, seed=0):
    """Random hidden states and an output embedding with bias, soft-cap and scale."""
    generator = torch.Generator().manual_seed(seed + (side == "teacher"))
    tokens = len(getattr(c.batch, side).values)
    columns = len(c.vocabulary(side)) + 2

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        f"{side}_hidden": random(tokens, WIDTH),
        f"{side}_weight": random(columns, WIDTH),
        f"{side}_bias": random(columns),
        f"{side}_softcap": 4.0,
        f"{side}_scale": 1.3,
    }


def logits(parts, side):
    z = parts[f"{side}_hidden"] @ parts[f"{side}_weight"].T + parts[f"{side}_bias"]
    return 4.0 * torch.tanh(1.3 * z / 4.0)


def value_and_gradients(out, *inputs):
    return out.per_unit, *torch.autograd.grad(out.loss, inputs)


@pytest.mark.parametrize("name", FROM_LOGITS)
def test_teacher_hidden_states_beside_student_logits(name):
    c = random_case(3, alphabet=b"abc", scale=2.0)
    loss_fn, parts = FROM_LOGITS[name](c.aligner), head(c, "teacher")
    index = c.batch.index(**loss_fn.index_options)
    student = c.logits["student"].clone().requires_grad_()
    keywords = {"student_logits": student, "index": index}
    expected = loss_fn(teacher_logits=logits(parts, "teacher"), **keywords)
    found = loss_fn(**parts, **keywords)
    assert expected.per_unit.abs().max() > 0.01
    for a, b in zip(
        value_and_gradients(found, student), value_and_gradients(expected, student), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", FROM_HIDDEN)
@pytest.mark.parametrize("form", ["logits", "lists"])
def test_teacher_logits_and_lists_beside_student_hidden_states(name, form):
    c = random_case(3, alphabet=b"abc", scale=2.0)
    parts = head(c, "student")
    teacher = c.logits["teacher"]
    if form == "lists":
        teacher = TopKLogprobs.from_logits(teacher, 3, vocab_size=len(c.aligner.teacher))
    student = logits(parts, "student").requires_grad_()
    expected = FROM_LOGITS[name](c.aligner)(
        teacher_logits=teacher, student_logits=student, index=c.index
    )
    hidden = parts["student_hidden"].requires_grad_()
    found = FROM_HIDDEN[name](c.aligner)(teacher_logits=teacher, **parts, index=c.index)
    torch.testing.assert_close(found.per_unit, expected.per_unit, rtol=1e-9, atol=1e-11)
    assert found.per_unit.abs().max() > 0.01
    (by_logits,) = torch.autograd.grad(expected.loss, student)
    (by_hidden,) = torch.autograd.grad(found.loss, hidden)
    fresh = parts["student_hidden"].detach().requires_grad_()
    (chained,) = torch.autograd.grad(
        logits(parts | {"student_hidden": fresh}, "student"), fresh, by_logits
    )
    torch.testing.assert_close(by_hidden, chained, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("name", ["gold", "strict", "bpm", "escd"])
def test_baselines_refuse_lists(name):
    c = random_case(0)
    loss_fn = FROM_LOGITS[name](c.aligner)
    with pytest.raises(TypeError, match="needs whole rows of logits, got TopKLogprobs"):
        loss_fn(
            teacher_logits=TopKLogprobs.from_logits(c.logits["teacher"], 2),
            student_logits=c.logits["student"],
            index=c.batch.index(**loss_fn.index_options),
        )


@pytest.mark.parametrize("name", ["simct", "text", "gold"])
def test_a_teacher_is_given_once(name):
    c = random_case(0)
    loss_fn, parts = FROM_LOGITS[name](c.aligner), head(c, "teacher")
    keywords = {"student_logits": c.logits["student"], "index": c.index}
    with pytest.raises(TypeError, match=r"needs the teacher: teacher_logits=\.\.\., or both"):
        loss_fn(**keywords)
    with pytest.raises(TypeError, match=r"needs the teacher"):
        loss_fn(teacher_hidden=parts["teacher_hidden"], **keywords)
    for extra in ("teacher_hidden", "teacher_weight", "teacher_bias", "teacher_softcap",
                  "teacher_scale"):  # fmt: skip
        with pytest.raises(TypeError, match=f"{extra} belongs to hidden states"):
            loss_fn(teacher_logits=c.logits["teacher"], **{extra: parts[extra]}, **keywords)


def test_lists_of_another_length_are_refused():
    c = random_case(0)
    lists = TopKLogprobs.from_logits(c.logits["teacher"][:3], 2)
    with pytest.raises(ValueError, match="teacher_logits has 3 rows"):
        c.run(teacher=lists)
