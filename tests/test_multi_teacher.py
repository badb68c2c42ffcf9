"""Several teachers with tokenizers of their own over one student."""

from __future__ import annotations

import copy
import gc
import random

import pytest
import torch

from simct_align import Aligner, LinearTextLoss, SimCTLoss, TextLoss
from simct_align.loss import MultiTeacherLoss
from simct_align.loss.baselines import GOLDLoss
from simct_align.served import TopKLogprobs
from support.text_cases import random_spelling, random_vocabulary

KINDS = {"text": TextLoss, "simct": SimCTLoss, "gold": GOLDLoss, "lists": TextLoss}
WEIGHTS = {"text": 0.5, "simct": 2.0, "gold": -0.25, "lists": 1.0}


class Case:
    """One student, and a teacher of another vocabulary for every kind of loss."""

    def __init__(self, seed=0, dtype=torch.float64):
        rng = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        alphabet = b"abc"
        texts = [bytes(rng.choice(alphabet) for _ in range(rng.randint(3, 8))) for _ in range(3)]

        def rows(vocabulary):
            begin, stop = len(vocabulary) - 1, vocabulary.stop_ids[0]
            return [[begin, *random_spelling(rng, vocabulary, text), stop] for text in texts]

        def logits(ids, vocabulary):
            shape = sum(map(len, ids)), len(vocabulary)
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        student = random_vocabulary(rng, alphabet)
        student_ids = rows(student)
        self.student = logits(student_ids, student)
        self.aligners, self.losses, self.teachers = {}, {}, {}
        for name, kind in KINDS.items():
            vocabulary = random_vocabulary(rng, alphabet)
            teacher_ids = rows(vocabulary)
            aligner = self.aligners[name] = Aligner(vocabulary, student)
            self.losses[name] = kind(aligner)
            teacher = logits(teacher_ids, vocabulary)
            if name == "lists":
                teacher = TopKLogprobs.from_logits(teacher, 4)
            self.teachers[name] = {
                "teacher_logits": teacher,
                "index": aligner.align_batch(teacher_ids, student_ids),
            }

    def plain_sum(self, student):
        outputs = {
            name: loss(**self.teachers[name], student_logits=student)
            for name, loss in self.losses.items()
        }
        return sum(WEIGHTS[name] * out.loss for name, out in outputs.items()), outputs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_equals_the_sum_of_the_losses(dtype):
    for seed in range(3):
        c = Case(seed, dtype)
        ours, plain = (c.student.clone().requires_grad_() for _ in range(2))
        out = MultiTeacherLoss(c.losses, weights=WEIGHTS)(teachers=c.teachers, student_logits=ours)
        expected, outputs = c.plain_sum(plain)
        torch.testing.assert_close(out.loss, expected.detach())
        assert list(out.by_teacher) == list(c.losses)
        for name, found in out.by_teacher.items():
            torch.testing.assert_close(found.loss, outputs[name].loss.detach())
            torch.testing.assert_close(found.per_unit, outputs[name].per_unit.detach())
            assert not found.loss.requires_grad
            assert not found.per_unit.requires_grad
            for field, value in outputs[name].metrics._asdict().items():
                torch.testing.assert_close(getattr(found.metrics, field), value, equal_nan=True)
        (3.0 * out.loss).backward()
        (3.0 * expected).backward()
        tolerance = {torch.bfloat16: 0.05, torch.float16: 0.01}.get(dtype, 1e-5)
        torch.testing.assert_close(ours.grad, plain.grad, rtol=tolerance, atol=tolerance / 10)


def test_weights_are_1_unless_given():
    c = Case()
    found = MultiTeacherLoss(c.losses)(teachers=c.teachers, student_logits=c.student)
    assert found.loss == pytest.approx(sum(float(out.loss) for out in found.by_teacher.values()))


def test_a_second_backward_pass_and_no_gradient():
    c = Case()
    loss_fn = MultiTeacherLoss(c.losses, weights=WEIGHTS)
    student = c.student.clone().requires_grad_()
    out = loss_fn(teachers=c.teachers, student_logits=student)
    (first,) = torch.autograd.grad(out.loss, student, retain_graph=True)
    first = first.clone()
    (second,) = torch.autograd.grad(2.0 * out.loss, student)
    torch.testing.assert_close(second, 2.0 * first)
    with torch.no_grad():
        alone = loss_fn(teachers=c.teachers, student_logits=student)
    assert not alone.loss.requires_grad
    torch.testing.assert_close(alone.loss, out.loss.detach())
    assert not loss_fn(teachers=c.teachers, student_logits=c.student).loss.requires_grad


def test_gradients_reach_all_tensors_of_a_student_with_hidden_states():
    c = Case(1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(c.student.shape[0], 5, generator=generator, dtype=torch.float64)
    weight = torch.randn(c.student.shape[1], 5, generator=generator, dtype=torch.float64)
    losses = {name: LinearTextLoss(c.aligners[name]) for name in ("text", "lists")}
    teachers = {name: c.teachers[name] for name in losses}
    grads = []
    for fused in (True, False):
        inputs = [hidden.clone().requires_grad_(), weight.clone().requires_grad_()]
        student = {"student_hidden": inputs[0], "student_weight": inputs[1], "student_scale": 0.7}
        if fused:
            loss = MultiTeacherLoss(losses)(teachers=teachers, **student).loss
        else:
            loss = sum(losses[name](**teachers[name], **student).loss for name in losses)
        grads.append(torch.autograd.grad(loss, inputs))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
        assert a.any()


def test_one_gradient_is_held_until_the_backward_pass():
    c = Case()
    student = c.student.clone().requires_grad_()

    def alike():
        gc.collect()
        return sum(
            torch.is_tensor(each) and each.shape == student.shape for each in gc.get_objects()
        )

    before = alike()
    out = MultiTeacherLoss(c.losses)(teachers=c.teachers, student_logits=student)
    assert alike() - before <= 2  # the gradient, and the saved student
    out.loss.backward()
    del out
    before = alike()
    expected, _ = c.plain_sum(student)
    assert alike() - before >= len(c.losses)
    expected.backward()


def test_copies_and_moves_with_its_losses():
    c = Case()
    loss_fn = copy.deepcopy(MultiTeacherLoss(c.losses, weights=WEIGHTS)).to("cpu")
    found = loss_fn(teachers=c.teachers, student_logits=c.student)
    torch.testing.assert_close(found.loss, c.plain_sum(c.student)[0])
    assert "simct=2.0" in repr(loss_fn)


def test_what_is_wrong_is_named():
    c = Case()
    with pytest.raises(TypeError, match="losses: expected a mapping from names to losses"):
        MultiTeacherLoss(list(c.losses.values()))
    with pytest.raises(ValueError, match="at least one loss"):
        MultiTeacherLoss({})
    with pytest.raises(TypeError, match="losses: 'a' is a Linear, expected a loss"):
        MultiTeacherLoss({"a": torch.nn.Linear(1, 1)})
    none = TextLoss(c.aligners["text"], reduction="none")
    with pytest.raises(ValueError, match="'a' has reduction='none'"):
        MultiTeacherLoss({"a": none})
    with pytest.raises(ValueError, match=r"weights: expected the names \['gold', .*got \['text'\]"):
        MultiTeacherLoss(c.losses, weights={"text": 1.0})
    with pytest.raises(ValueError, match="weights: 'text' is nan, expected a finite number"):
        MultiTeacherLoss(c.losses, weights=WEIGHTS | {"text": float("nan")})
    with pytest.raises(TypeError, match="weights: 'text' is a str, expected a number"):
        MultiTeacherLoss(c.losses, weights=WEIGHTS | {"text": "1"})
    loss_fn = MultiTeacherLoss(c.losses)
    with pytest.raises(TypeError, match="takes keyword arguments only"):
        loss_fn(c.student, teachers=c.teachers)
    with pytest.raises(ValueError, match="teachers: expected the names"):
        loss_fn(teachers={}, student_logits=c.student)
    with pytest.raises(TypeError, match=r"index is not the student's: pass it in teachers\[name\]"):
        loss_fn(teachers=c.teachers, student_logits=c.student, index=c.teachers["text"]["index"])
    wrong = c.teachers | {"simct": c.teachers["simct"] | {"index": c.teachers["text"]["index"]}}
    with pytest.raises(ValueError, match="teacher 'simct': index: expected an index of the loss's"):
        loss_fn(teachers=wrong, student_logits=c.student)
