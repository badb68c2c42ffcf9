"""The index and the loss over real alignments, every pair of tokenizers at hand."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch

from simct_align import Aligner
from simct_align.loss import SimCTLoss
from support import loss_twins
from support.index_twin import PlainPair, PlainSide, build_index, plain_units
from support.lengths import full
from support.texts import answers, hard_texts
from support.vocabularies import ALL_NAMES, token_bytes, vocabulary

SCORES = ("mean", "sum", "event", "mean_logit")
PAIRS = list(itertools.permutations(ALL_NAMES, 2))
#: They write these texts alike.
SAME_MERGES = ({"mistral_nemo", "tekken"}, {"qwen2_5", "qwen_tiktoken"})
TEXTS = ["1234567 naïve\n\n\n", "Σ x² → “quote” 🙂", "def f(xs):\n\treturn  xs[::-1]  # ok"]


@functools.cache
def aligner(teacher, student):
    return Aligner(vocabulary(teacher), vocabulary(student))


@functools.cache
def plain_pair(teacher, student):
    """The pair as the twins read it: the columns' texts from token bytes, not from the aligner."""
    shared = aligner(teacher, student).shared
    sides = []
    for name, ids, stops in (
        (teacher, shared.teacher_ids, shared.teacher_stop_ids),
        (student, shared.student_ids, shared.student_stop_ids),
    ):
        texts = [token_bytes(name)[i] or None for i in ids.tolist()]
        kinds = np.asarray(vocabulary(name).kinds)
        column = shared.stop_column
        sides.append(
            PlainSide(token_bytes(name), kinds, ids.tolist(), stops.tolist(), column, texts)
        )
    columns = {text: c for c, text in enumerate(sides[0].texts) if text is not None}
    return PlainPair(*sides, columns)


def rows_of(side):
    return [side.row(i).tolist() for i in range(len(side))]


def twin_of(batch, pair, strides=(None, None), starts=(None, None)):
    """Plain units and packed index of a batch; logit rows by strides, starts, or ragged."""
    ids = rows_of(batch.teacher), rows_of(batch.student)
    row_starts = []
    for side, stride, start in zip(ids, strides, starts, strict=True):
        if start is None:
            ragged = np.cumsum([0, *map(len, side)])
            start = ragged if stride is None else np.arange(len(side)) * stride
        row_starts.append(start)
    units, no_prefix, dummy = plain_units(batch, *ids, pair.teacher_side.token_bytes, *row_starts)
    return units, build_index(units, no_prefix, dummy, pair.column_of_text)


def assert_same_index(index, twin):
    assert (index.n_shared, index.n_multi) == (twin.n_shared, twin.n_multi)
    assert index.n_teacher_steps == twin.n_teacher_steps
    assert index.n_student_steps == twin.n_student_steps
    assert index.dropped_no_prefix == twin.dropped_no_prefix
    assert index.dropped_dummy_prefix == twin.dropped_dummy_prefix
    assert index.packed.tolist() == twin.packed.tolist()
    for reduction, candidates in itertools.product(("unit", "token"), ("shared", "realized")):
        ours, theirs = (x.normalizer(reduction, candidates) for x in (index, twin))
        assert ours == theirs


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_index_equals_its_twin(teacher, student):
    batch = aligner(teacher, student).align_texts([*answers(20), *hard_texts(), "", *TEXTS])
    pair = plain_pair(teacher, student)
    _, twin = twin_of(batch, pair)
    assert (twin.n_multi == 0) == ({teacher, student} in SAME_MERGES)
    assert_same_index(batch.index(first_ids=True), twin)
    strides = tuple(max(map(len, rows_of(side))) + 3 for side in (batch.teacher, batch.student))
    _, twin = twin_of(batch, pair, strides=strides)
    assert_same_index(
        batch.index(first_ids=True, teacher_stride=strides[0], student_stride=strides[1]), twin
    )
    starts = np.random.default_rng(0).permutation(len(batch)) * max(strides)
    _, twin = twin_of(batch, pair, starts=(starts, starts[::-1]))
    index = batch.index(first_ids=True, teacher_row_starts=starts, student_row_starts=starts[::-1])
    assert_same_index(index, twin)


# With a step of 11 every score and every text, under ten teachers and ten students.
@pytest.mark.parametrize(("teacher", "student"), PAIRS[:: full(5, 11)])
def test_loss_equals_its_twin(teacher, student):
    number = PAIRS.index((teacher, student))
    pair = plain_pair(teacher, student)
    batch = aligner(teacher, student).align_texts([TEXTS[number % len(TEXTS)]])
    score = SCORES[number % len(SCORES)]
    units, _ = twin_of(batch, pair)
    generator = torch.Generator().manual_seed(number)
    logits = [
        3 * torch.randn(len(side.values), len(vocabulary(name)) + 2, generator=generator).double()
        for side, name in ((batch.teacher, teacher), (batch.student, student))
    ]
    ours, plain = (logits[1].clone().requires_grad_() for _ in range(2))
    loss_fn = SimCTLoss(aligner(teacher, student), score=score, metrics="full")
    out = loss_fn(teacher_logits=logits[0], student_logits=ours, index=batch)
    expected, coverage = loss_twins.simct_twin(plain, logits[0], pair, units, score=score)
    torch.testing.assert_close(out.per_unit, expected, rtol=1e-9, atol=1e-12)
    means = torch.tensor([[float(c) for c in both] for both in coverage]).mean(0)
    measured = out.metrics.teacher_mass_candidates, out.metrics.student_mass_candidates
    torch.testing.assert_close(torch.stack(measured).float(), means)
    out.loss.backward()
    expected.mean().backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("score", SCORES)
def test_two_newlines_against_one_and_one(score):
    pair, both = (make("qwen_tiktoken", "deepseek") for make in (plain_pair, aligner))
    ids = {
        t: [token_bytes(n).index(t) for n in ("qwen_tiktoken", "deepseek")]
        for t in (b"a", b"\n", b"\n\n")
    }
    teacher = [ids[b"a"][0], ids[b"\n\n"][0]]
    student = [ids[b"a"][1], ids[b"\n"][1], ids[b"\n"][1]]
    batch = both.align_batch([teacher], [student])
    index = batch.index(first_ids=True)
    assert (index.n_multi, index.dropped_no_prefix) == (1, 1)
    column = int(index.realized_shared_column[0])
    assert both.shared.teacher_ids[column] == ids[b"\n\n"][0]
    units, twin = twin_of(batch, pair)
    assert_same_index(index, twin)
    logits = [torch.randn(n, len(v)).double() for n, v in ((2, both.teacher), (3, both.student))]
    ours, plain = (logits[1].clone().requires_grad_() for _ in range(2))
    out = SimCTLoss(both, score=score)(teacher_logits=logits[0], student_logits=ours, index=index)
    expected, _ = loss_twins.simct_twin(plain, logits[0], pair, units, score=score)
    torch.testing.assert_close(out.per_unit, expected)
    out.loss.backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)


@pytest.mark.parametrize("score", SCORES)
def test_one_real_tokenizer_gives_plain_reverse_kl(score):
    same = aligner("demo_byte_level", "demo_byte_level")
    batch = same.align_texts(TEXTS)
    columns = len(same.teacher) + 5
    teacher, student = (torch.randn(len(batch.teacher.values), columns).double() for _ in range(2))
    index = batch.index(first_ids=True)
    assert index.n_multi == 0
    out = SimCTLoss(same, score=score)(teacher_logits=teacher, student_logits=student, index=index)
    ids = same.shared.student_ids
    log_s, log_t = (
        torch.log_softmax(z[rows][:, ids], -1)
        for z, rows in ((student, index.student_row), (teacher, index.teacher_row))
    )
    expected = (log_s.exp() * (log_s - log_t)).sum(-1)
    torch.testing.assert_close(out.per_unit, expected)


def test_padded_batches_and_a_batch_in_place_of_an_index():
    both = aligner("demo_byte_level", "demo_byte_fallback")
    batch = both.align_texts([*TEXTS, ""])
    flat = [
        torch.randn(len(side.values), len(v))
        for side, v in ((batch.teacher, both.teacher), (batch.student, both.student))
    ]
    padded = []
    for logits, side in zip(flat, (batch.teacher, batch.student), strict=True):
        offsets = side.offsets.tolist()
        rows = [logits[a:b] for a, b in itertools.pairwise(offsets)]
        padded.append(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))
    loss_fn = SimCTLoss(both)
    expected = loss_fn(
        teacher_logits=flat[0], student_logits=flat[1], index=batch.index(first_ids=True)
    ).loss
    torch.testing.assert_close(
        loss_fn(teacher_logits=flat[0], student_logits=flat[1], index=batch).loss, expected
    )
    torch.testing.assert_close(
        loss_fn(teacher_logits=padded[0], student_logits=padded[1], index=batch).loss, expected
    )
    with_continuations = batch.index(max_path=4)
    torch.testing.assert_close(
        loss_fn(teacher_logits=flat[0], student_logits=flat[1], index=with_continuations).loss,
        expected,
    )


def test_coarser_units_never_diverge_more():
    """The paper's Proposition 1: over outcomes of two tokens, merging outcomes cannot raise KL."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        joint = torch.rand(2, 4, 4, generator=generator, dtype=torch.float64)
        joint = joint / joint.sum((1, 2), keepdim=True)
        coarse = torch.stack([joint[:, :2].sum((1, 2))]
                             + [joint[:, 2, i] for i in range(4)]
                             + [joint[:, 3, i] for i in range(4)], -1)  # fmt: skip
        values = [
            loss_twins.reverse_kl(x[0].log().flatten(), x[1].log().flatten())
            for x in (joint, coarse)
        ]
        assert values[1] <= values[0] + 1e-12
