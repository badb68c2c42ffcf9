"""`SimCTLoss` against its slow twin, its keywords, and its promises about gradients."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from simct_align.divergence import JSD, SkewedForwardKL, SkewedReverseKL
from simct_align.loss import SimCTLoss
from support import loss_twins
from support.index_twin import MULTI, SHARED, case, random_pair

SCORES = ("mean", "sum", "event", "mean_logit")
DIVERGENCES = {
    "reverse_kl": ("reverse_kl", loss_twins.reverse_kl),
    "forward_kl": ("forward_kl", loss_twins.forward_kl),
    "tvd": ("tvd", loss_twins.tvd),
    "jsd": ("jsd", loss_twins.jsd(0.5)),
    "jsd_0.3": (JSD(beta=0.3), loss_twins.jsd(0.3)),
    "jsd_0": (JSD(beta=0.0), loss_twins.forward_kl),
    "jsd_1": (JSD(beta=1.0), loss_twins.reverse_kl),
    "skewed_forward": (SkewedForwardKL(alpha=0.2), loss_twins.skewed_forward_kl(0.2)),
    "skewed_reverse": (SkewedReverseKL(alpha=0.2), loss_twins.skewed_reverse_kl(0.2)),
}
SHAPES = {
    "plain": {},
    "padded": {"padded": True},
    "extra_columns": {"extra_columns": 5},
    "empty_row": {"empty_row": True},
    "only_shared": {"only": SHARED},
    "only_multi": {"only": MULTI},
    "one_unit": {"rows": 1, "length": 5, "stop": False},
    "no_unit": {"rows": 1, "length": 1, "stop": False},
}


def compare(case_, keywords, twin_keywords, chunk_bytes=None):
    """Values and gradients of loss and twin; returns the output."""
    s1 = case_.student.clone().requires_grad_()
    s2 = case_.student.clone().requires_grad_()
    loss_fn = SimCTLoss(case_.pair, metrics="full", chunk_bytes=chunk_bytes, **keywords)
    out = loss_fn(teacher_logits=case_.teacher, student_logits=s1, index=case_.index)
    flat = [x.reshape(-1, x.shape[-1]) for x in (s2, case_.teacher)]
    expected, coverage = loss_twins.simct_twin(*flat, case_.pair, case_.units, **twin_keywords)
    assert out.per_unit.shape == (len(case_.units),)
    torch.testing.assert_close(out.per_unit[: len(expected)], expected, rtol=1e-9, atol=1e-11)
    assert not out.per_unit[len(expected) :].any()
    count = max(case_.index.normalizer("unit", keywords.get("candidates", "realized")), 1)
    torch.testing.assert_close(out.loss, expected.sum() / count, rtol=1e-9, atol=1e-11)
    out.loss.backward()
    (expected.sum() / count).backward()
    torch.testing.assert_close(s1.grad, s2.grad, rtol=1e-8, atol=1e-11)
    if coverage:
        means = torch.stack([torch.stack(c) for c in coverage]).mean(0)
        torch.testing.assert_close(out.metrics.teacher_mass_candidates, means[0])
        torch.testing.assert_close(out.metrics.student_mass_candidates, means[1])
    return out


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_its_twin(score, shape):
    for seed in range(3):
        compare(case(seed, **SHAPES[shape]), {"score": score}, {"score": score})


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("stops", [(0, 0), (1, 1), (1, 3), (3, 1)])
def test_equals_its_twin_for_any_number_of_stops(score, stops):
    for seed in range(4):
        pair = random_pair(seed, teacher_stops=stops[0], student_stops=stops[1])
        compare(case(seed, pair=pair), {"score": score}, {"score": score})


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("name", DIVERGENCES)
def test_equals_its_twin_under_every_divergence(name, score):
    ours, twin = DIVERGENCES[name]
    keywords = {"temperature": 1.7, "score": score}
    compare(case(5), {"divergence": ours, **keywords}, {"divergence": twin, **keywords})


@pytest.mark.parametrize("candidates", ["shared", "realized"])
@pytest.mark.parametrize("minimum", [0.0, 0.4, 1.0])
def test_equals_its_twin_with_the_coverage_filter(candidates, minimum):
    keywords = {"candidates": candidates, "min_teacher_mass": minimum}
    for seed in range(4):
        compare(case(seed), keywords, keywords)


def test_many_seeds_and_duplicate_paths():
    kinds = set()
    for seed in range(60):
        pair = random_pair(seed, duplicates=8, size=6)
        c = case(seed, pair=pair, rows=2, length=10)
        for u in c.units:
            if u.kind == MULTI:
                kinds.add((u.text in pair.column_of_text, len(u.teacher_path), len(u.student_path)))
        for score in SCORES:
            compare(c, {"score": score}, {"score": score})
    assert (True, 1, 2) in kinds
    assert (True, 2, 1) in kinds
    assert (False, 2, 1) in kinds


@pytest.mark.parametrize("chunk_bytes", [1, 3_000, 10_000])
def test_chunking_changes_nothing(chunk_bytes):
    for score in SCORES:
        compare(case(7), {"score": score}, {"score": score}, chunk_bytes=chunk_bytes)


@pytest.mark.parametrize("score", SCORES)
def test_gradcheck(score):
    c = case(3, rows=1, length=6)
    loss_fn = SimCTLoss(c.pair, score=score)
    student = c.student.clone().requires_grad_()
    torch.autograd.gradcheck(
        lambda x: loss_fn(teacher_logits=c.teacher, student_logits=x, index=c.index).loss,
        (student,),
    )
    none = SimCTLoss(c.pair, score=score, reduction="none")
    torch.autograd.gradcheck(
        lambda x: none(teacher_logits=c.teacher, student_logits=x, index=c.index).loss, (student,)
    )


def test_second_derivative_is_refused():
    c = case(0)
    student = c.student.clone().requires_grad_()
    loss = SimCTLoss(c.pair)(teacher_logits=c.teacher, student_logits=student, index=c.index).loss
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, student, create_graph=True)


def test_backward_twice_and_from_per_unit():
    c = case(1)
    student = c.student.clone().requires_grad_()
    out = SimCTLoss(c.pair, reduction="sum")(
        teacher_logits=c.teacher, student_logits=student, index=c.index
    )
    (first,) = torch.autograd.grad(out.loss, student, retain_graph=True)
    first = first.clone()
    (second,) = torch.autograd.grad(3 * out.loss, student, retain_graph=True)
    torch.testing.assert_close(second, 3 * first)
    (third,) = torch.autograd.grad(out.loss + out.per_unit.sum(), student)
    torch.testing.assert_close(third, 2 * first)


def test_per_unit_weights_reach_their_rows():
    c = case(2)
    weights = torch.rand(len(c.units), dtype=torch.float64)
    s1, s2 = (c.student.clone().requires_grad_() for _ in range(2))
    out = SimCTLoss(c.pair, reduction="none")(
        teacher_logits=c.teacher, student_logits=s1, index=c.index
    )
    (out.loss * weights).sum().backward()
    expected, _ = loss_twins.simct_twin(s2, c.teacher, c.pair, c.units)
    (expected * weights).sum().backward()
    torch.testing.assert_close(s1.grad, s2.grad)


@pytest.mark.parametrize("score", SCORES)
def test_one_vocabulary_gives_plain_reverse_kl(score):
    pair = random_pair(4, 1, 1, duplicates=0, identical=True)
    c = case(4, pair=pair, only=SHARED, extra_columns=3)
    student = c.student.clone().requires_grad_()
    out = SimCTLoss(c.pair, score=score)(
        teacher_logits=c.teacher, student_logits=student, index=c.index
    )
    rows = [u.student_row for u in c.units], [u.teacher_row for u in c.units]
    ids = pair.shared.student_ids
    plain = c.student.clone().requires_grad_()
    log_s = torch.log_softmax(plain[rows[0]][:, ids], -1)
    log_t = torch.log_softmax(c.teacher[rows[1]][:, ids], -1)
    expected = (log_s.exp() * (log_s - log_t)).sum(1).mean()
    out.loss.backward()
    expected.backward()
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(student.grad, plain.grad)


def test_reductions_and_union_of_micro_batches():
    cases = [case(11, pair=random_pair(1)), case(12, pair=random_pair(1), rows=5)]
    for reduction in ("unit", "token"):
        for candidates in ("shared", "realized"):
            loss_fn = SimCTLoss(
                cases[0].pair,
                reduction=reduction,
                candidates=candidates,
                min_teacher_mass=0.5,
            )
            total = sum(c.index.normalizer(reduction, candidates) for c in cases)
            parts = [
                loss_fn(
                    teacher_logits=c.teacher,
                    student_logits=c.student,
                    index=c.index,
                    normalizer=total,
                ).loss
                for c in cases
            ]
            same = [
                loss_fn(
                    teacher_logits=c.teacher,
                    student_logits=c.student,
                    index=c.index,
                    normalizer=torch.tensor(float(total)),
                ).loss
                for c in cases
            ]
            sums = [
                loss_fn(
                    teacher_logits=c.teacher, student_logits=c.student, index=c.index
                ).per_unit.sum()
                for c in cases
            ]
            torch.testing.assert_close(sum(parts), sum(sums) / total)
            torch.testing.assert_close(sum(same), sum(parts))


KEYWORDS = {
    "candidates": "shared",
    "score": "sum",
    "divergence": "tvd",
    "temperature": 2.0,
    "min_teacher_mass": 0.6,
    "reduction": "token",
}


@pytest.mark.parametrize("name", KEYWORDS)
def test_every_keyword_changes_the_result(name):
    c = case(6)
    default = SimCTLoss(c.pair)(teacher_logits=c.teacher, student_logits=c.student, index=c.index)
    changed = SimCTLoss(c.pair, **{name: KEYWORDS[name]})(
        teacher_logits=c.teacher, student_logits=c.student, index=c.index
    )
    assert not torch.isclose(default.loss, changed.loss, rtol=1e-4)


def test_metrics_keyword():
    c = case(6)
    outs = {
        metrics: SimCTLoss(c.pair, metrics=metrics)(
            teacher_logits=c.teacher, student_logits=c.student, index=c.index
        )
        for metrics in ("none", "multi", "full")
    }
    assert outs["none"].metrics.teacher_mass_shared.isnan()
    multi, full = (outs[m].metrics.teacher_mass_shared for m in ("multi", "full"))
    assert not torch.isclose(multi, full)
    assert outs["none"].loss == outs["full"].loss
    counts = outs["full"].metrics
    assert counts.units_shared + counts.units_special == c.index.n_shared
    assert counts.units_multi == c.index.n_multi
    assert counts.units_special > 0
    assert counts.dropped_no_prefix == c.index.dropped_no_prefix > 0
    assert all(not m.requires_grad and m.dim() == 0 for m in counts)


def test_chunk_bytes_bounds_the_workspace():
    from simct_align.loss.backends.torch.rows import Workspace

    taken = []
    original = Workspace.take

    def take(self, name, rows, columns, dtype):
        taken.append(rows)
        return original(self, name, rows, columns, dtype)

    c = case(6, rows=8)
    for chunk_bytes in (1, 1 << 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Workspace, "take", take)
            taken.clear()
            SimCTLoss(c.pair, chunk_bytes=chunk_bytes)(
                teacher_logits=c.teacher, student_logits=c.student, index=c.index
            )
        assert (max(taken) == 1) == (chunk_bytes == 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_gradients_are_as_near_the_truth_as_the_plain_formula(dtype):
    errors = []
    for seed in range(8):
        c = case(seed, only=SHARED, rows=6)
        ids = c.pair.shared.student_ids, c.pair.shared.teacher_ids
        rows = [u.student_row for u in c.units], [u.teacher_row for u in c.units]
        low = c.student.to(dtype), c.teacher.to(dtype)
        stop = c.pair.shared.stop_column

        def plain(s, t, ids=ids, rows=rows, pair=c.pair, stop=stop):
            z = []
            for x, r, i, side in ((s, rows[0], ids[0], pair.student_side),
                                  (t, rows[1], ids[1], pair.teacher_side)):  # fmt: skip
                columns = list(x[r][:, i].unbind(1))
                columns[stop] = torch.logsumexp(x[r][:, side.stop_ids], 1)
                z.append(torch.log_softmax(torch.stack(columns, 1), -1))
            return (z[0].exp() * (z[0] - z[1])).sum(1).mean()

        grads = []
        for convert in (lambda x: x.double(), lambda x: x.float(), lambda x: x):
            s = low[0].clone().requires_grad_()
            plain(convert(s), convert(low[1])).backward()
            grads.append(s.grad)
        truth = low[0].double().requires_grad_()
        plain(truth, low[1].double()).backward()
        s = low[0].clone().requires_grad_()
        SimCTLoss(c.pair)(teacher_logits=low[1], student_logits=s, index=c.index).loss.backward()
        assert s.grad.dtype == dtype
        errors.append([(g.double() - truth.grad).norm().item() for g in (s.grad, *grads[1:])])
    ours, plain_float, plain_low = torch.tensor(errors).sum(0)
    assert ours <= plain_float * 1.001
    assert ours < plain_low


def test_float16_gradients_survive_a_loss_scale():
    c = case(2)
    truth = c.student.clone().requires_grad_()
    SimCTLoss(c.pair)(
        teacher_logits=c.teacher, student_logits=truth, index=c.index, normalizer=1e6
    ).loss.backward()
    half = c.student.half().requires_grad_()
    loss = SimCTLoss(c.pair)(
        teacher_logits=c.teacher.half(), student_logits=half, index=c.index, normalizer=1e6
    ).loss
    (loss * 65536).backward()
    error = (half.grad.double() / 65536 - truth.grad).norm() / truth.grad.norm()
    assert error < 5e-3


def test_inputs_that_forbid_a_token_stay_finite():
    c = case(8)
    column = 3
    s_id, t_id = c.pair.shared.student_ids[column], c.pair.shared.teacher_ids[column]
    for forbid_student, forbid_teacher in ((True, False), (False, True), (True, True)):
        student, teacher = c.student.clone(), c.teacher.clone()
        if forbid_student:
            student[:, s_id] = -torch.inf
        if forbid_teacher:
            teacher[:, t_id] = -torch.inf
        for score in SCORES:
            for divergence, _ in DIVERGENCES.values():
                s = student.clone().requires_grad_()
                out = SimCTLoss(c.pair, score=score, divergence=divergence)(
                    teacher_logits=teacher, student_logits=s, index=c.index
                )
                out.loss.backward()
                assert out.loss.isfinite()
                assert s.grad.isfinite().all()


def test_strided_logits_are_read_in_place():
    c = case(3, padded=True)
    wide = torch.zeros(*c.student.shape[:2], c.student.shape[2] + 4, dtype=torch.float64)
    long = torch.zeros(c.student.shape[0], c.student.shape[1] + 3, c.student.shape[2]).double()
    long[:, : c.student.shape[1]] = c.student
    wide[..., : c.student.shape[2]] = c.student
    expected = SimCTLoss(c.pair)(
        teacher_logits=c.teacher, student_logits=c.student, index=c.index
    ).loss
    for source, view in (
        (long, lambda x: x[:, : c.student.shape[1]]),
        (wide, lambda x: x[..., : c.student.shape[2]]),
    ):
        leaf = source.requires_grad_()
        out = SimCTLoss(c.pair)(teacher_logits=c.teacher, student_logits=view(leaf), index=c.index)
        torch.testing.assert_close(out.loss, expected)
        out.loss.backward()
        plain = c.student.clone().requires_grad_()
        SimCTLoss(c.pair)(
            teacher_logits=c.teacher, student_logits=plain, index=c.index
        ).loss.backward()
        torch.testing.assert_close(view(leaf.grad), plain.grad)


def test_module_can_be_copied_and_pickled():
    c = case(0)
    loss_fn = SimCTLoss(c.pair, divergence=JSD(beta=0.25))
    expected = loss_fn(teacher_logits=c.teacher, student_logits=c.student, index=c.index).loss
    for twin in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))):
        torch.testing.assert_close(
            twin(teacher_logits=c.teacher, student_logits=c.student, index=c.index).loss, expected
        )
    assert loss_fn.state_dict() == {}


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"candidates": "all"}, "candidates"),
        ({"score": "max"}, "score"),
        ({"divergence": "kl"}, "divergence"),
        ({"temperature": 0.0}, "temperature"),
        ({"min_teacher_mass": 1.5}, "min_teacher_mass"),
        ({"metrics": "all"}, "metrics"),
        ({"reduction": "average"}, "reduction"),
        ({"backend": "cuda"}, "backend"),
        ({"chunk_bytes": 0}, "chunk_bytes"),
    ],
)
def test_bad_keywords_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        SimCTLoss(random_pair(0), **keywords)


def test_bad_inputs_are_named():
    c = case(0)
    loss_fn = SimCTLoss(c.pair)
    with pytest.raises(ValueError, match=r"student_logits: expected at least .*; got 4"):
        loss_fn(teacher_logits=c.teacher, student_logits=c.student[:, :4], index=c.index)
    with pytest.raises(ValueError, match=r"teacher_logits: expected at least .*; got 4"):
        loss_fn(teacher_logits=c.teacher[:, :4], student_logits=c.student, index=c.index)
    with pytest.raises(ValueError, match="student_logits: expected floating"):
        loss_fn(teacher_logits=c.teacher, student_logits=c.student.long(), index=c.index)
    with pytest.raises(ValueError, match="normalizer"):
        SimCTLoss(c.pair, reduction="sum")(
            teacher_logits=c.teacher, student_logits=c.student, index=c.index, normalizer=3
        )
    with pytest.raises(ValueError, match="teacher_logits is on meta"):
        loss_fn(teacher_logits=c.teacher.to("meta"), student_logits=c.student, index=c.index)
    short = replace(c.index, packed=c.index.packed[:-1])
    with pytest.raises(ValueError, match="packed buffer"):
        loss_fn(teacher_logits=c.teacher, student_logits=c.student, index=short)
