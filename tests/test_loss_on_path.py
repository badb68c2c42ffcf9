"""On-path continuations in the losses: against the slow twin, and what must hold of them."""

from __future__ import annotations

import copy
import itertools
import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from simct_align import Aligner, Vocabulary
from simct_align.divergence import JSD
from simct_align.loss import LinearSimCTLoss, SimCTLoss
from support import loss_twins
from support.on_path_twin import on_path_twin, twin_units
from test_loss_system import Strict, without_operators

SCORES = ("mean", "sum", "event")
DIVERGENCES = {
    "reverse_kl": ("reverse_kl", loss_twins.reverse_kl),
    "forward_kl": ("forward_kl", loss_twins.forward_kl),
    "jsd": (JSD(beta=0.3), loss_twins.jsd(0.3)),
}


def vocabulary(rng, texts, stops, duplicates):
    """Tokens in random order: some twice, stops and another special, two unused ids."""
    entries = [(text, 0) for text in texts]
    entries += [(rng.choice(texts), 0) for _ in range(duplicates)]
    entries += [(b"", 2)] * (stops + 1) + [(b"", 3)] * 2
    rng.shuffle(entries)
    special = [i for i, (_, kind) in enumerate(entries) if kind == 2]
    return Vocabulary.from_token_bytes(
        [text for text, _ in entries],
        special=special,
        unused=[i for i, (_, kind) in enumerate(entries) if kind == 3],
        stop_ids=special[:stops],
    )


def make_aligner(seed, *, stops=(2, 1), duplicates=2, size=12, longest=4, alphabet=b"ab"):
    rng = random.Random(seed)
    letters = [bytes([letter]) for letter in alphabet]
    texts = {bytes(rng.choice(alphabet) for _ in range(rng.randint(2, longest))) for _ in range(40)}
    sides = [
        vocabulary(rng, letters + rng.sample(sorted(texts), min(size, len(texts))), s, duplicates)
        for s in stops
    ]
    return Aligner(*sides)


def random_spelling(rng, vocabulary, text):
    ids, at = [], 0
    while at < len(text):
        fits = [
            i for i in range(len(vocabulary))
            if vocabulary.kinds[i] == 0 and text.startswith(vocabulary.token_bytes(i), at)
        ]  # fmt: skip
        ids.append(rng.choice(fits))
        at += len(vocabulary.token_bytes(ids[-1]))
    return ids


def case(seed, aligner=None, *, rows=3, length=12, extra_columns=2, dtype=torch.float64,
         max_path=8, alphabet=b"ab", **keywords):  # fmt: skip
    """Rows of random text in random spellings, one with texts that differ; random logits."""
    aligner = aligner or make_aligner(seed, alphabet=alphabet, **keywords)
    rng = random.Random(seed)
    ids = {"teacher": [], "student": []}
    for row in range(rows):
        text = bytes(rng.choice(alphabet) for _ in range(length))
        for side, v in (("teacher", aligner.teacher), ("student", aligner.student)):
            spelled = random_spelling(rng, v, text)
            if row == 1 and side == "teacher":
                # Texts differ here, and a control token stands in the middle.
                middle = len(spelled) // 2
                spelled[middle:middle] = random_spelling(rng, v, b"bab"[: rng.randint(1, 3)])
            stops = v.stop_ids
            ids[side].append(spelled + ([rng.choice(list(stops))] if stops else []))
    batch = aligner.align_batch(ids["teacher"], ids["student"])
    starts = {side: np.cumsum([0, *map(len, rows)]) for side, rows in ids.items()}
    index = batch.index(max_path=max_path)
    generator = torch.Generator().manual_seed(seed)
    logits = {
        side: 2 * torch.randn(
            int(starts[side][-1]), len(v) + extra_columns, generator=generator, dtype=dtype
        )
        for side, v in (("teacher", aligner.teacher), ("student", aligner.student))
    }  # fmt: skip
    units = {u.number: u for u in twin_units(aligner, batch, ids, starts, max_path)}
    units = [units[number] for number in index.unit.tolist()]
    return SimpleNamespace(
        aligner=aligner, batch=batch, index=index, units=units, starts=starts,
        teacher=logits["teacher"], student=logits["student"],
    )  # fmt: skip


def compare(c, *, score, divergence="reverse_kl", chunk_bytes=None, **keywords):
    s1, s2 = (c.student.clone().requires_grad_() for _ in range(2))
    ours, twin = DIVERGENCES[divergence]
    loss_fn = SimCTLoss(
        c.aligner, candidates="on_path", score=score, divergence=ours, metrics="full",
        chunk_bytes=chunk_bytes, **keywords,
    )  # fmt: skip
    out = loss_fn(teacher_logits=c.teacher, student_logits=s1, index=c.index)
    expected, coverage = on_path_twin(
        s2, c.teacher, c.aligner, c.units, score=score, divergence=twin, **keywords
    )
    torch.testing.assert_close(out.per_unit, expected, rtol=1e-8, atol=1e-11)
    out.loss.backward()
    expected.mean().backward()
    torch.testing.assert_close(s1.grad, s2.grad, rtol=1e-7, atol=1e-11)
    torch.testing.assert_close(out.metrics.teacher_mass_candidates, coverage[:, 0].mean())
    torch.testing.assert_close(out.metrics.student_mass_candidates, coverage[:, 1].mean())
    return out


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equals_its_twin(score, divergence):
    for seed in range(6):
        c = case(seed)
        assert c.index.n_teacher_leaves > 0
        assert c.index.n_student_leaves > 0
        compare(c, score=score, divergence=divergence)


@pytest.mark.parametrize("score", SCORES)
def test_equals_its_twin_over_many_vocabularies(score):
    seen = set()
    for seed in range(40):
        c = case(seed, size=6 + seed % 12, longest=3 + seed % 4, duplicates=seed % 5, rows=2)
        compare(c, score=score)
        depths = [*c.index.teacher_entry_depth.tolist(), *c.index.student_entry_depth.tolist()]
        seen.add(("depth", max(depths, default=0)))
        seen |= {("leaf", side) for side in ("teacher", "student")
                 if (getattr(c.index, f"realized_{side}_leaf") >= 0).any()}  # fmt: skip
    assert {("depth", 2), ("depth", 3), ("leaf", "teacher"), ("leaf", "student")} <= seen


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    "keywords",
    [
        {"temperature": 1.7},
        {"min_teacher_mass": 0.7},
        {"chunk_bytes": 1},
        {"chunk_bytes": 3_000},
    ],
)
def test_keywords_agree_with_the_twin(score, keywords):
    for seed in range(3):
        compare(case(seed), score=score, **keywords)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("stops", [(0, 0), (1, 1), (3, 1), (1, 3)])
def test_stops(score, stops):
    for seed in range(3):
        compare(case(seed, stops=stops), score=score)


class OneCopy(Strict):
    """`Strict`, but for the copy that brings the plan from the host to the device."""

    copies = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith("aten._to_copy") and args[0].device.type == "cpu":
            self.copies += 1
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("keywords", [{}, {"metrics": "full"}, {"metrics": "none"},
                                      {"min_teacher_mass": 0.5, "chunk_bytes": 2_000}],
                         ids=str)  # fmt: skip
def test_nothing_waits_for_the_device(score, device, keywords):
    c = case(3)
    loss_fn = SimCTLoss(c.aligner, candidates="on_path", score=score, **keywords).to(device)
    student = c.student.to(device).requires_grad_()
    index, teacher = c.index.to(device), c.teacher.to(device)
    with pytest.MonkeyPatch.context() as patch, OneCopy() as strict:
        without_operators(patch)
        loss_fn(teacher_logits=teacher, student_logits=student, index=index)
    assert strict.seen > 100
    assert device == "cpu" or strict.copies == 1
    loss_fn(teacher_logits=teacher, student_logits=student, index=index).loss.backward()
    assert student.grad.device.type == device


def test_autocast_changes_nothing():
    c = case(3, dtype=torch.float32)
    loss_fn = SimCTLoss(c.aligner, candidates="on_path")
    plain = loss_fn(teacher_logits=c.teacher, student_logits=c.student, index=c.index).loss
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(
            loss_fn(teacher_logits=c.teacher, student_logits=c.student, index=c.index).loss, plain
        )


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("max_path", [1, 2])
def test_max_path_bounds_the_candidates(score, max_path):
    for seed in range(4):
        compare(case(seed, max_path=max_path, longest=6), score=score)


def test_max_path_changes_the_loss():
    short, long = case(3, max_path=1, longest=6), case(3, max_path=8, longest=6)
    assert compare(short, score="sum").loss != compare(long, score="sum").loss


@pytest.mark.parametrize("score", SCORES)
def test_without_continuations_it_equals_realized(score):
    c = case(11)
    reached = set(c.index.teacher_entry_unit.tolist()) | set(c.index.student_entry_unit.tolist())
    rest = [unit for unit in range(len(c.index)) if unit not in reached]
    assert rest
    on_path, realized = (
        SimCTLoss(c.aligner, candidates=candidates, score=score)(
            teacher_logits=c.teacher, student_logits=c.student, index=c.index
        )
        for candidates in ("on_path", "realized")
    )
    torch.testing.assert_close(on_path.per_unit[rest], realized.per_unit[rest])
    assert not torch.allclose(on_path.per_unit, realized.per_unit)


@pytest.mark.parametrize("score", SCORES)
def test_the_same_tokenizer_on_both_sides_gives_plain_reverse_kl(score):
    tokenizer = make_aligner(0, stops=(1, 1), duplicates=0).teacher
    aligner = Aligner(tokenizer, tokenizer)
    used = np.flatnonzero(tokenizer.kinds != 3)
    ids = [[token for token in used.tolist() if tokenizer.kinds[token] == 0]]
    index = aligner.align_batch(ids, ids).index(max_path=8)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(len(ids[0]), len(tokenizer), generator=generator).double() for _ in range(2)
    )
    out = SimCTLoss(aligner, candidates="on_path", score=score)(
        teacher_logits=teacher, student_logits=student, index=index
    )
    s, t = (torch.log_softmax(z[:-1, used], -1) for z in (student, teacher))
    torch.testing.assert_close(out.per_unit, (s.exp() * (s - t)).sum(-1))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"softcap": 3.0, "scale": 0.7}])
@pytest.mark.parametrize("chunk_bytes", [None, 2_000])
def test_from_hidden_states(score, options, chunk_bytes):
    c = case(4)
    generator = torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors, keywords, logits = [], {}, []
    for side in ("student", "teacher"):
        rows, columns = getattr(c, side).shape
        hidden, weight = randn(rows, 5), randn(columns, 5)
        bias = randn(columns) if options.get("bias") else None
        if side == "student":
            tensors = [x.requires_grad_() for x in (hidden, weight, bias) if x is not None]
        z = hidden @ weight.T + (bias if bias is not None else 0.0)
        z = z * options.get("scale", 1.0)
        cap = options.get("softcap")
        logits.append(z if cap is None else cap * torch.tanh(z / cap))
        keywords |= {f"{side}_bias": bias, f"{side}_softcap": cap,
                     f"{side}_scale": options.get("scale", 1.0)}  # fmt: skip
        if side == "student":
            student = {"student_hidden": hidden, "student_weight": weight}
        else:
            teacher = {"teacher_hidden": hidden, "teacher_weight": weight}
    common = {"candidates": "on_path", "score": score, "temperature": 1.3}
    expected = SimCTLoss(c.aligner, **common)(
        student_logits=logits[0], teacher_logits=logits[1], index=c.index
    )
    wanted = torch.autograd.grad(expected.loss, tensors)
    linear = LinearSimCTLoss(c.aligner, **common, chunk_bytes=chunk_bytes)
    out = linear(**student, **teacher, index=c.index, **keywords)
    torch.testing.assert_close(out.per_unit, expected.per_unit)
    for got, want in zip(torch.autograd.grad(out.loss, tensors), wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("score", SCORES)
def test_gradcheck(score):
    c = case(2, rows=1, length=5, size=5)
    loss_fn = SimCTLoss(c.aligner, candidates="on_path", score=score)
    student = c.student.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: loss_fn(teacher_logits=c.teacher, student_logits=z, index=c.index).per_unit,
        (student,),
        atol=1e-6,
    )


@pytest.mark.parametrize("score", SCORES)
def test_padded_rows_and_a_batch_instead_of_an_index(score):
    c = case(6)
    expected = SimCTLoss(c.aligner, candidates="on_path", score=score)(
        teacher_logits=c.teacher, student_logits=c.student, index=c.index
    )
    widths = {side: int(np.diff(starts).max()) + 1 for side, starts in c.starts.items()}
    padded = {}
    for side, starts in c.starts.items():
        logits = getattr(c, side)
        padded[side] = torch.zeros(len(starts) - 1, widths[side], logits.shape[1]).double()
        for row, (a, b) in enumerate(itertools.pairwise(starts)):
            padded[side][row, : b - a] = logits[a:b]
    student = torch.cat([padded["student"], padded["student"]], 1)[:, : widths["student"]]
    out = SimCTLoss(c.aligner, candidates="on_path", score=score)(
        teacher_logits=padded["teacher"], student_logits=student, index=c.batch
    )
    torch.testing.assert_close(out.per_unit, expected.per_unit)


@pytest.mark.parametrize("candidates", ["realized", "on_path"])
def test_logits_wider_than_the_vocabulary_and_with_gaps_between_rows(candidates):
    c = case(6)
    loss_fn = SimCTLoss(c.aligner, candidates=candidates, metrics="full")
    found = []
    for widen in (False, True):
        sides = []
        for logits in (c.student, c.teacher):
            if widen:
                wide = torch.full((len(logits), logits.shape[1] + 9), 7.0, dtype=logits.dtype)
                wide[:, : logits.shape[1]] = logits
                sides.append(wide[:, :-2])
            else:
                sides.append(logits.clone())
        student = sides[0].requires_grad_()
        out = loss_fn(teacher_logits=sides[1], student_logits=student, index=c.index)
        (gradient,) = torch.autograd.grad(out.loss, student)
        found.append((out, gradient))
    (narrow, expected), (wide, gradient) = found
    torch.testing.assert_close(wide.per_unit, narrow.per_unit)
    torch.testing.assert_close(wide.metrics, narrow.metrics)
    columns = expected.shape[1]
    torch.testing.assert_close(gradient[:, :columns], expected)
    assert not gradient[:, columns:].any()


def test_a_moved_leaf_is_noticed():
    c = case(1)
    loss_fn = SimCTLoss(c.aligner, candidates="on_path", score="sum")
    right = loss_fn(teacher_logits=c.teacher, student_logits=c.student, index=c.index).per_unit
    for name in ("teacher_one_sided_token", "student_one_sided_token"):
        wrong_fn = copy.deepcopy(loss_fn)
        tokens = getattr(wrong_fn.columns, name)
        tokens.copy_(tokens.roll(1))
        wrong = wrong_fn(teacher_logits=c.teacher, student_logits=c.student, index=c.index).per_unit
        assert not torch.allclose(wrong, right)


def test_continuations_appear_in_the_metrics():
    c = case(0)
    outs = [
        SimCTLoss(c.aligner, candidates=candidates, metrics="full")(
            teacher_logits=c.teacher, student_logits=c.student, index=c.index
        )
        for candidates in ("realized", "on_path")
    ]
    for side in ("teacher", "student"):
        candidates = [getattr(out.metrics, f"{side}_mass_candidates") for out in outs]
        added = [getattr(out.metrics, f"{side}_mass_continuations") for out in outs]
        assert added[0] == 0
        assert added[1] > 0
        torch.testing.assert_close(candidates[1] - candidates[0], added[1])
        assert candidates[1] <= 1 + 1e-12


def test_an_index_with_continuations_serves_the_other_candidate_sets():
    c = case(0)
    plain = c.batch.index()
    for candidates in ("shared", "realized"):
        loss_fn = SimCTLoss(c.aligner, candidates=candidates)
        torch.testing.assert_close(
            loss_fn(teacher_logits=c.teacher, student_logits=c.student, index=c.index).loss,
            loss_fn(teacher_logits=c.teacher, student_logits=c.student, index=plain).loss,
        )


def test_what_it_refuses():
    c = case(0)
    with pytest.raises(ValueError, match="mean_logit"):
        SimCTLoss(c.aligner, candidates="on_path", score="mean_logit")
    with pytest.raises(ValueError, match=r"index\(max_path=8\)"):
        SimCTLoss(c.aligner, candidates="on_path")(
            teacher_logits=c.teacher, student_logits=c.student, index=c.batch.index()
        )


def test_copies_and_second_backward_passes():
    c = case(0)
    loss_fn = SimCTLoss(c.aligner, candidates="on_path", score="event")
    student = c.student.clone().requires_grad_()
    out = loss_fn(teacher_logits=c.teacher, student_logits=student, index=c.index)
    (once,) = torch.autograd.grad(out.loss, student, retain_graph=True)
    (twice,) = torch.autograd.grad(out.loss, student)
    torch.testing.assert_close(once, twice)
    weights = torch.rand(len(c.index), dtype=torch.float64)
    for copied in (loss_fn, copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))):
        tensors = {"teacher_logits": c.teacher, "student_logits": student, "index": c.index}
        out = copied(**tensors)
        (weighted,) = torch.autograd.grad((out.per_unit * weights).sum(), student)
        single = sum(
            w * torch.autograd.grad(copied(**tensors).per_unit[u], student)[0]
            for u, w in enumerate(weights)
        )
        torch.testing.assert_close(weighted, single)


@pytest.mark.parametrize("score", SCORES)
def test_bfloat16_is_as_good_as_rounding_its_input(score):
    c = case(9, rows=6, length=20)
    loss_fn = SimCTLoss(c.aligner, candidates="on_path", score=score)
    narrow = c.student.bfloat16().requires_grad_()
    wide = narrow.detach().double().requires_grad_()
    loss_fn(
        teacher_logits=c.teacher.bfloat16(), student_logits=narrow, index=c.index
    ).loss.backward()
    loss_fn(
        teacher_logits=c.teacher.bfloat16().double(), student_logits=wide, index=c.index
    ).loss.backward()
    error = (narrow.grad.double() - wide.grad).abs().max()
    assert error <= 2**-7 * wide.grad.abs().max()


def test_compiles_into_one_graph():
    c = case(0)
    loss_fn = SimCTLoss(c.aligner, candidates="on_path")
    index = c.index.to("cpu")
    student = c.student.clone().requires_grad_()
    eager = loss_fn(teacher_logits=c.teacher, student_logits=student, index=index).loss

    def step(student, teacher):
        return loss_fn(teacher_logits=teacher, student_logits=student, index=index).loss

    (wanted,) = torch.autograd.grad(eager, student)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    loss = compiled(student, c.teacher)
    torch.testing.assert_close(loss, eager)
    torch.testing.assert_close(torch.autograd.grad(loss, student)[0], wanted)
