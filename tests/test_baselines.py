"""The baselines against their slow twins, and their common interface."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from simct_align import Aligner, Vocabulary
from simct_align.loss import SimCTLoss
from simct_align.loss.baselines import ALMLoss, BPMLoss, ESCDLoss, GOLDLoss, StrictLoss, ULDLoss
from support import loss_twins
from support.index_twin import MULTI, SHARED, case, random_pair

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
    "bpm": (BPMLoss, loss_twins.bpm_twin, {}, {}),
    "bpm_beta": (BPMLoss, loss_twins.bpm_twin, {"beta": 0.8}, {"beta": 0.8}),
    "strict": (StrictLoss, loss_twins.strict_twin, {}, {}),
    "strict_top_k": (StrictLoss, loss_twins.strict_twin, {"top_k": 4}, {"top_k": 4}),
    "escd": (ESCDLoss, loss_twins.escd_twin, {}, {}),
}
KINDS = [ULDLoss, ALMLoss, GOLDLoss, BPMLoss, StrictLoss, ESCDLoss]


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
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, reduction):
    c = case(5, rows=1, length=6)
    loss_fn = kind(c.pair, reduction=reduction)
    student = c.student.clone().requires_grad_()
    torch.autograd.gradcheck(lambda x: run(loss_fn, c, x).loss, (student,))


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_backward_pass_and_one_from_the_units(kind):
    c = case(5)
    student = c.student.clone().requires_grad_()
    out = run(kind(c.pair, reduction="sum"), c, student)
    grads = [torch.autograd.grad(out.loss, student, retain_graph=True)[0] for _ in range(2)]
    grads.append(torch.autograd.grad(out.per_unit.sum(), student, retain_graph=True)[0])
    grads.append(torch.autograd.grad(2 * out.loss - out.per_unit.sum(), student)[0])
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0])


@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("kind", KINDS)
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
        (BPMLoss, {"beta": 0.0}, "beta"),
        (BPMLoss, {"beta": 1.0}, "beta"),
        (StrictLoss, {"top_k": 0}, "top_k"),
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


@pytest.mark.parametrize("name", ["bpm", "bpm_beta", "escd"])
def test_multi_units_of_all_shapes(name):
    kind, twin, keywords, twin_keywords = BASELINES[name]
    shapes = set()
    for seed in range(20, 32):
        c = case(seed, only=MULTI if seed % 3 == 0 else None, rows=4, length=16)
        out = run(kind(c.pair, chunk_bytes=20_000, **keywords), c)
        expected = twin(c.student, c.teacher, c.pair, c.units, **twin_keywords)
        torch.testing.assert_close(out.per_unit, expected)
        shapes |= {(len(u.teacher_path), len(u.student_path)) for u in c.units if u.kind == MULTI}
    # One token against several, both ways, and several against several.
    assert {(1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (2, 3), (3, 2)} <= shapes
    assert any(teacher >= 3 and student >= 3 for teacher, student in shapes)


@pytest.mark.parametrize("skip", [False, True])
def test_bpm_leaves_white_space_out(skip):
    values = []
    for seed in (1, 2):
        c = case(seed, pair=random_pair(seed, alphabet=b"a "), alphabet=b"a ")
        expected = loss_twins.bpm_twin(c.student, c.teacher, c.pair, c.units, skip_whitespace=skip)
        out = run(BPMLoss(c.pair, skip_whitespace=skip), c)
        torch.testing.assert_close(out.per_unit, expected)
        values.append(out.per_unit)
    assert any((value == 0).any() for value in values) == skip


def test_strict_is_the_shared_objective():
    for seed, keywords in ((1, {}), (2, {"only": SHARED}), (3, {"extra_columns": 2})):
        c = case(seed, **keywords)
        students = [c.student.clone().requires_grad_() for _ in range(2)]
        losses = StrictLoss(c.pair), SimCTLoss(c.pair, candidates="shared")
        outs = [run(fn, c, student) for fn, student in zip(losses, students, strict=True)]
        torch.testing.assert_close(outs[0].per_unit, outs[1].per_unit)
        for out in outs:
            out.loss.backward()
        torch.testing.assert_close(students[0].grad, students[1].grad)
        all_of_them = run(StrictLoss(c.pair, top_k=10**6), c)
        torch.testing.assert_close(all_of_them.per_unit, outs[0].per_unit)


def digits():
    """A teacher with pairs of digits, a student without; only the teacher has `x`."""
    teacher = Vocabulary.from_token_bytes([b"1", b"12", b"13", b"+", b"x", b"123"])
    student = Vocabulary.from_token_bytes([b"1", b"2", b"3", b"+", b"", b""], unused=[4, 5])
    return Aligner(teacher, student)


def test_projected_rows_by_hand():
    """`1+` in the same tokens on both sides, then `12` as one token and as two."""
    aligner = digits()
    batch = aligner.align_batch([[3, 0, 3, 1]], [[3, 0, 3, 0, 1]])
    q = torch.tensor([0.2, 0.1, 0.3, 0.15, 0.05, 0.2], dtype=torch.float64)
    p = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    # The student's logits have no columns for the unused ids.
    logits = {"teacher_logits": q.log().expand(4, -1), "student_logits": p.log().expand(5, -1)}

    def jsd(p, t):
        m = (p + t) / 2
        return sum((x * (x / y).log()).nan_to_num().sum() for x, y in ((p, m), (t, m))) / 2

    p_events = torch.tensor([0.4, 0.3, 0.2, 0.1, 0.0], dtype=torch.float64)
    root = torch.tensor([0.8, 0.0, 0.0, 0.15, 0.05], dtype=torch.float64)
    # After `1`: `12` and `123` go on with `2`, `13` with `3`, and `1` with nothing.
    inside = torch.tensor([0.0, 0.3, 0.3, 0.0, 0.2], dtype=torch.float64) / 0.8
    out = BPMLoss(aligner)(**logits, index=batch)
    expected = [jsd(p_events, root)] * 2 + [jsd(p_events, root) + jsd(p_events, inside)]
    torch.testing.assert_close(out.per_unit, torch.stack(expected))

    kl = 0.8 * math.log(0.8 / 0.4) + 0.15 * math.log(0.15 / 0.1)
    # `123` begins with `12`; the student goes on with `2` or with `3`.
    rest = -(0.1 + 0.2) * math.log(0.3) - 0.3 * math.log(0.2)
    out = ESCDLoss(aligner)(**logits, index=batch)
    expected = torch.tensor([kl + rest, kl, kl + rest], dtype=torch.float64)
    torch.testing.assert_close(out.per_unit, expected)


def test_escd_after_a_special_token_is_the_kl():
    """A special token has no bytes: no teacher token begins with it, though text follows."""
    vocabularies = [
        Vocabulary.from_token_bytes([*texts, b""], special={len(texts): "<s>"})
        for texts in ([b"1", b"12", b"+"], [b"1", b"2", b"+", b"125"])
    ]
    aligner = Aligner(*vocabularies, special_tokens={"<s>": "<s>"})
    batch = aligner.align_batch([[2, 3, 0]], [[2, 4, 0]])
    generator = torch.Generator().manual_seed(0)
    teacher, student = (
        torch.randn(3, columns, generator=generator, dtype=torch.float64) for columns in (4, 5)
    )
    out = ESCDLoss(aligner)(teacher_logits=teacher, student_logits=student, index=batch)
    q, p = teacher[0].softmax(0), student[0].softmax(0)
    t = torch.stack([q[0] + q[1], q[2], q[3]])
    assert batch.kind.tolist() == [0, 2, 0]
    torch.testing.assert_close(out.per_unit[0], (t * (t / p[[0, 2, 4]]).log()).sum())


@pytest.mark.parametrize("name", ["bpm", "strict", "escd"])
def test_with_one_vocabulary_on_both_sides(name):
    kind, twin, keywords, _ = BASELINES[name]
    c = case(9, pair=random_pair(9, identical=True))
    expected = twin(c.student, c.teacher, c.pair, c.units)
    out = run(kind(c.pair, **keywords), c)
    torch.testing.assert_close(out.per_unit[: len(expected)], expected)


def test_the_next_row_is_in_the_same_sample():
    """Logits without the last position: the row after a sample's last one is another sample's."""
    aligner = digits()
    loss_fn = ESCDLoss(aligner)
    batch = aligner.align_batch([[3, 0], [3, 3]], [[3, 0], [3, 3]])
    index = batch.index(teacher_stride=1, student_stride=1, first_ids=True)
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(2, 1, n, generator=generator) for n in (6, 4))
    before = loss_fn(teacher_logits=teacher, student_logits=student, index=index).per_unit
    student[1] = torch.randn(1, 4, generator=generator)
    after = loss_fn(teacher_logits=teacher, student_logits=student, index=index).per_unit
    assert before[0] == after[0]
    assert before[1] != after[1]


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_is_near_the_truth(kind):
    c = case(7)
    truth = run(kind(c.pair), c).per_unit
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        student = c.student.to(dtype).requires_grad_()
        exact = run(kind(c.pair), c, student.detach().double()).per_unit
        out = run(kind(c.pair), c, student)
        torch.testing.assert_close(out.per_unit.double(), exact, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(exact, truth, rtol=near, atol=near)
        out.loss.backward()
        assert student.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_impossible_tokens_leave_gradients_finite(kind):
    """Logits of -inf, and of a student that is certain, in float32."""
    c = case(8)
    teacher, student = c.teacher.float(), c.student.float()
    teacher[:, ::3] = -math.inf
    student = 200 * student
    student.requires_grad_()
    out = kind(c.pair)(teacher_logits=teacher, student_logits=student, index=c.index)
    out.loss.backward()
    assert student.grad.isfinite().all()
