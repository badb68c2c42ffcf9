"""Teachers of which only the likeliest tokens are known: lists, and the losses over them."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from simct_align import SimCTLoss
from simct_align.loss.baselines import ALMLoss, BPMLoss, ESCDLoss, GOLDLoss, StrictLoss, ULDLoss
from simct_align.served import TopKLogprobs
from support import loss_twins
from support.index_twin import case, random_pair
from support.list_twin import simct_list_twin, unlisted
from support.text_cases import DIVERGENCES, compare, random_case
from test_loss import DIVERGENCES as PLAIN_DIVERGENCES
from test_text_loss import code, demo_case, make_exact

NEVER, ALWAYS = 0.0, 1.0


def teacher_lists(c, k, *, seed=0, own=ALWAYS, temperature=1.0):
    """The k likeliest tokens of every row of the teacher, in both forms, in random order.

    Args:
        c: A case.
        k: How many; as many as there are if there are fewer.
        seed: Of what is random.
        own: How often the token that the text takes is listed in addition.
        temperature: Of the logits.

    Returns:
        `TopKLogprobs` of tensors, and a dictionary from id to probability for every row.
    """
    taken = dict(enumerate(c.batch.teacher.values[1:].tolist()))
    rows, vocabulary = c.logits["teacher"], c.aligner.teacher
    return listed(rows, vocabulary, taken, k, seed=seed, own=own, temperature=temperature)


def listed(logits, vocabulary, taken, k, *, seed, own, temperature):
    """`teacher_lists` of rows of logits, of which `taken` has the realized tokens."""
    rng = random.Random(seed)
    used = torch.from_numpy(np.asarray(vocabulary.kinds) != 3).nonzero().squeeze(1)
    logprobs = (logits[:, used] / temperature).log_softmax(1)
    found = []
    for number, row in enumerate(logprobs):
        places = row.argsort(descending=True)[:k].tolist()
        tokens = {int(used[place]): float(row[place]) for place in places}
        if (token := taken.get(number)) is not None and rng.random() < own:
            tokens[token] = float(row[used == token])
        items = list(tokens.items())
        rng.shuffle(items)
        found.append(dict(items))
    width = max(len(row) for row in found)
    ids = torch.full((len(found), width), -1)
    values = torch.full((len(found), width), math.nan, dtype=torch.float64)
    for number, row in enumerate(found):
        ids[number, : len(row)] = torch.tensor(list(row))
        values[number, : len(row)] = torch.tensor(list(row.values()), dtype=torch.float64)
    lists = [{token: math.exp(value) for token, value in row.items()} for row in found]
    return TopKLogprobs(ids, values), lists


@pytest.mark.parametrize("straddled", ["byte", "tree"])
@pytest.mark.parametrize("own", [NEVER, 0.5, ALWAYS])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_text_loss_equals_its_twin(k, own, straddled):
    kinds = set()
    for seed in range(6):
        c = random_case(seed, alphabet=b"abc", scale=(2.0, 5.0)[seed % 2])
        temperature = (1.0, 1.7)[seed % 2]
        teacher, lists = teacher_lists(c, k, seed=seed, own=own, temperature=temperature)
        kinds |= set(
            compare(
                c,
                teacher=teacher,
                lists=lists,
                straddled=straddled,
                epsilon=(0.02, 0.3, 0.1)[seed % 3],
                temperature=temperature,
                chunk_bytes=1 if seed % 2 else None,
                floor=(1e-6, 0.0)[seed // 2 % 2],
            )
        )
    assert {"tree", "one row"} <= kinds
    assert ("unlisted" in kinds) == (own < 1.0)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_text_loss_equals_its_twin_under_every_divergence(divergence):
    for seed in range(20, 24):
        c = random_case(seed, alphabet=b"abc", scale=4.0)
        teacher, lists = teacher_lists(c, 3, seed=seed)
        compare(c, teacher=teacher, lists=lists, divergence=divergence, epsilon=0.1)


@pytest.mark.parametrize("straddled", ["byte", "tree"])
def test_text_loss_with_all_tokens_listed_is_the_full_loss(straddled):
    for seed in range(8):
        c = random_case(seed, alphabet=b"abc", scale=4.0, cut=100.0)
        keywords = {"straddled": straddled, "epsilon": 0.1, "divergence": "jsd"}
        # Of the padded columns too: ids without a token are ignored.
        logits = c.logits["teacher"].clone()
        logits[:, len(c.aligner.teacher) :] = -torch.inf
        teacher = TopKLogprobs.from_logits(logits, logits.shape[1])
        full, listed = (c.logits["student"].clone().requires_grad_() for _ in range(2))
        expected = c.run(full, **keywords)
        found = c.run(listed, teacher=teacher, **keywords)
        torch.testing.assert_close(found.per_unit, expected.per_unit, rtol=1e-9, atol=1e-11)
        for name, value in expected.metrics._asdict().items():
            torch.testing.assert_close(
                getattr(found.metrics, name), value, rtol=1e-7, atol=1e-9, equal_nan=True
            )
        expected.loss.backward()
        found.loss.backward()
        torch.testing.assert_close(listed.grad, full.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_one_tokenizer_on_both_sides_compares_listed_tokens_and_one_rest(k):
    """By hand; and wrong by the unlisted mass at most, in total variation."""
    for seed in range(6):
        c = random_case(seed, alphabet=b"abc", same=True, scale=2.0, stops=(2, 2))
        teacher, lists = teacher_lists(c, k, own=NEVER)
        keywords = {"divergence": "tvd", "floor": 0.0}
        found, full = c.run(teacher=teacher, **keywords), c.run(**keywords)
        assert found.per_unit.shape == full.per_unit.shape
        rows = c.index.teacher_text_row[c.index.teacher_own_text_row].tolist()
        vocabulary = c.aligner.student
        names = [
            "stop" if token in vocabulary.stop_ids else vocabulary.token_bytes(token)
            for token in range(len(vocabulary))
        ]
        for value, of_full, row in zip(found.per_unit, full.per_unit, rows, strict=True):
            probs = c.logits["student"][row, : len(names)].softmax(0)
            unlisted = 1.0 - sum(lists[row].values())
            kept = {names[token] for token in lists[row] if names[token]}
            taught = dict.fromkeys(kept, 0.0) | {"rest": unlisted}
            for token, p in lists[row].items():
                if names[token]:
                    taught[names[token]] += p
            learned = dict.fromkeys(taught, 0.0)
            for name, p in zip(names, probs.tolist(), strict=True):
                if name:
                    learned[name if name in kept else "rest"] += p
            p, q = (
                torch.tensor(list(masses.values()), dtype=torch.float64)
                for masses in (taught, learned)
            )
            expected = (p / p.sum() - q / q.sum()).abs().sum() / 2
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-11)
            assert value <= of_full + unlisted + 1e-9


def test_models_that_agree_on_every_text_stay_near_0():
    """What lists add to the divergence is about the mass that they lack."""
    rng = random.Random(0)
    texts = [code(rng) for _ in range(12)]
    c = demo_case(texts)
    make_exact(c)
    full = c.run()
    for k in (1, 2, 12):
        teacher, _ = teacher_lists(c, k)
        found = c.run(teacher=teacher)
        lacking = found.metrics.teacher_mass_unlisted * len(found.per_unit)
        assert found.loss <= full.loss + 2.0 * lacking + 1e-4
        assert found.metrics.offsets_unlisted == 0
    assert lacking < 1e-4
    torch.testing.assert_close(found.loss, full.loss, rtol=1e-3, atol=1e-4)


def test_what_lists_lack_is_counted():
    c = random_case(1, alphabet=b"abc", scale=2.0)
    teacher, _ = teacher_lists(c, 2, own=NEVER)
    out = c.run(teacher=teacher)
    rows = c.index.teacher_own_text_row
    unlisted = 1.0 - teacher.logprobs.exp().sum(1)
    at_own = unlisted[c.index.teacher_text_row[rows.clip(0)]] * torch.from_numpy(rows >= 0)
    torch.testing.assert_close(out.metrics.teacher_mass_unlisted, at_own.mean())
    assert out.metrics.offsets_unlisted > 0
    kinds = ("tree", "next_byte", "one_row", "left_out", "spoiled", "unlisted")
    counts = [getattr(out.metrics, f"offsets_{kind}") for kind in kinds]
    assert sum(counts) == len(out.per_unit)
    # Without any list nothing can be compared.
    empty = TopKLogprobs(torch.full_like(teacher.ids, -1), teacher.logprobs)
    student = c.logits["student"].clone().requires_grad_()
    out = c.run(student, teacher=empty)
    assert out.metrics.offsets_unlisted + out.metrics.offsets_left_out == len(out.per_unit)
    out.loss.backward()
    assert not out.per_unit.any()
    assert not student.grad.any()


def test_forms_of_lists_are_equal():
    c = random_case(2, alphabet=b"abc", scale=3.0)
    teacher, _ = teacher_lists(c, 3, own=NEVER)
    expected = c.run(teacher=teacher).per_unit
    tokens, width = teacher.ids.shape
    ragged = TopKLogprobs(
        teacher.ids.reshape(-1).numpy(),
        teacher.logprobs.reshape(-1).numpy(),
        np.arange(tokens + 1) * width,
    )
    forms = {
        "dense arrays": TopKLogprobs(teacher.ids.numpy(), teacher.logprobs.numpy()),
        "nested lists": TopKLogprobs(teacher.ids.tolist(), teacher.logprobs.tolist()),
        "ragged": ragged,
        "moved": ragged.to("cpu"),
        "a batch": TopKLogprobs(teacher.ids[None], teacher.logprobs[None]),
        "int32": TopKLogprobs(teacher.ids.int(), teacher.logprobs),
        "with padding": TopKLogprobs(
            torch.nn.functional.pad(teacher.ids, (0, 2), value=-1),
            torch.nn.functional.pad(teacher.logprobs, (0, 2), value=0.0),
        ),
    }
    for name, form in forms.items():
        assert len(form) == tokens, name
        found = c.run(teacher=form).per_unit
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)
    # A list about a position's own token is the row of logits before.
    own = TopKLogprobs(
        torch.cat([torch.full((1, width), -1), teacher.ids[:-1]]),
        torch.cat([torch.zeros(1, width).double(), teacher.logprobs[:-1]]),
        token="own",
    )
    torch.testing.assert_close(c.run(teacher=own).per_unit, expected)


def test_gradient_reaches_the_student_only():
    c = random_case(4, rows=1, regions=1, longest=5, extra=0)
    teacher, _ = teacher_lists(c, 2)
    logprobs = teacher.logprobs.nan_to_num(0.0).requires_grad_()
    lists = TopKLogprobs(teacher.ids, logprobs)
    student = c.logits["student"].clone().requires_grad_()
    torch.autograd.gradcheck(lambda x: c.run(x, teacher=lists, epsilon=0.2).loss, (student,))
    assert logprobs.grad is None


def simct_lists(c, k, *, seed=0, own=ALWAYS, temperature=1.0):
    """As `teacher_lists`, for a case of units."""
    flat = c.teacher.reshape(-1, c.teacher.shape[-1])
    taken = {}
    for unit in c.units:
        for step, token in enumerate(unit.teacher_path):
            taken[unit.teacher_row + step] = token
    return listed(flat, c.pair.teacher, taken, k, seed=seed, own=own, temperature=temperature)


def run_simct(c, teacher, student=None, **keywords):
    return SimCTLoss(c.pair, **({"reduction": "sum", "metrics": "full"} | keywords))(
        teacher_logits=teacher, student_logits=c.student if student is None else student,
        index=c.index,
    )  # fmt: skip


def compare_simct(c, k, name="reverse_kl", *, seed=0, own=ALWAYS, chunk_bytes=None, **keywords):
    temperature = keywords.get("temperature", 1.0)
    teacher, lists = simct_lists(c, k, seed=seed, own=own, temperature=temperature)
    ours, twin = PLAIN_DIVERGENCES[name]
    s1, s2 = (c.student.clone().requires_grad_() for _ in range(2))
    out = run_simct(c, teacher, s1, divergence=ours, chunk_bytes=chunk_bytes, **keywords)
    flat = s2.reshape(-1, s2.shape[-1])
    expected, left_out = simct_list_twin(flat, lists, c.pair, c.units, twin, **keywords)
    torch.testing.assert_close(out.per_unit, expected, rtol=1e-8, atol=1e-10)
    assert out.metrics.left_out_unlisted == sum(left_out)
    counts = out.metrics
    assert counts.left_out_shared + counts.left_out_multi == sum(left_out)
    mean = [unlisted(lists[unit.teacher_row], c.pair.teacher_side) for unit in c.units]
    if mean:
        assert float(counts.teacher_mass_unlisted) == pytest.approx(np.mean(mean))
    out.loss.backward()
    expected.sum().backward()
    torch.testing.assert_close(s1.grad, s2.grad, rtol=1e-7, atol=1e-10)
    return sum(left_out), len(left_out)


@pytest.mark.parametrize("score", ["mean", "sum", "event"])
@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("own", [NEVER, 0.5, ALWAYS])
def test_simct_loss_equals_its_twin(score, k, own):
    found = 0
    for seed in range(8):
        c = case(seed, pair=random_pair(seed, duplicates=6, size=8), padded=bool(seed % 2))
        keywords = {"score": score, "temperature": (1.0, 1.7)[seed % 2], "seed": seed, "own": own}
        found += compare_simct(c, k, chunk_bytes=1 if seed % 3 else None, **keywords)[0]
    # A list may have a token that is no candidate, such as a duplicate of a shared one.
    assert found > 0 or own == ALWAYS


@pytest.mark.parametrize("score", ["mean", "sum", "event"])
@pytest.mark.parametrize("name", PLAIN_DIVERGENCES)
def test_simct_loss_equals_its_twin_under_every_divergence(name, score):
    compare_simct(case(5), 4, name, score=score)


@pytest.mark.parametrize("stops", [(0, 0), (1, 1), (1, 3), (3, 1)])
def test_simct_loss_equals_its_twin_for_any_number_of_stops(stops):
    for seed in range(4):
        pair = random_pair(seed, teacher_stops=stops[0], student_stops=stops[1])
        compare_simct(case(seed, pair=pair), 3)


@pytest.mark.parametrize("score", ["mean", "sum", "event"])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_simct_loss_with_all_tokens_listed_is_the_full_loss(score, divergence):
    for seed in range(6):
        c = case(seed, padded=bool(seed % 2))
        c.teacher[..., 0].masked_fill_(torch.rand(c.teacher.shape[:-1]) < 0.2, -torch.inf)
        unused = torch.from_numpy(c.pair.teacher_side.kinds == 3)
        logits = c.teacher.masked_fill(unused, -torch.inf)
        full, of_lists = (c.student.clone().requires_grad_() for _ in range(2))
        keywords = {"score": score, "divergence": divergence, "min_teacher_mass": 0.3}
        expected = run_simct(c, c.teacher, full, **keywords)
        teacher = TopKLogprobs.from_logits(logits, logits.shape[-1])
        found = run_simct(c, teacher, of_lists, **keywords)
        torch.testing.assert_close(found.per_unit, expected.per_unit, rtol=1e-9, atol=1e-11)
        for name, value in expected.metrics._asdict().items():
            torch.testing.assert_close(getattr(found.metrics, name), value, equal_nan=True)
        expected.loss.backward()
        found.loss.backward()
        torch.testing.assert_close(of_lists.grad, full.grad, rtol=1e-8, atol=1e-11)


def test_simct_loss_of_shared_tokens_is_wrong_by_the_unlisted_mass_at_most():
    """In total variation: lists add the mass that they lack, over the mass of the candidates."""
    for seed in range(6):
        c = case(seed, only=0)
        full = run_simct(c, c.teacher, divergence="tvd")
        for k in (1, 3, 6):
            teacher, lists = simct_lists(c, k, own=NEVER)
            found = run_simct(c, teacher, divergence="tvd").per_unit
            for unit, value, of_full in zip(c.units, found, full.per_unit, strict=True):
                side, row = c.pair.teacher_side, lists[unit.teacher_row]
                lacking = unlisted(row, side)
                known = sum(row[v] for v in {*side.shared_ids, *side.stop_ids} & {*row})
                assert value <= of_full + lacking / (known + lacking) + 1e-9


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"candidates": "on_path"}, "candidates='on_path' needs whole rows of logits"),
        ({"score": "mean_logit"}, "score='mean_logit' is an average of logits"),
    ],
)
def test_simct_loss_refuses_what_lists_do_not_define(keywords, message):
    aligner = random_case(0).aligner
    with pytest.raises(ValueError, match=message):
        SimCTLoss(aligner, **keywords).check_lists(TopKLogprobs([[1]], [[-0.5]]))


@pytest.mark.parametrize("tau", [3.0, math.inf])
@pytest.mark.parametrize(("k", "own"), [(0, ALWAYS), (1, 0.5), (3, NEVER), (3, ALWAYS)])
def test_alm_reads_the_listed_tokens_of_the_text_alone(tau, k, own):
    """Exact where the text's tokens are listed; all other units are left out and counted."""
    for seed in range(4):
        c = case(seed, pair=random_pair(seed, duplicates=6, size=8), padded=bool(seed % 2))
        teacher, lists = simct_lists(c, k, seed=seed, own=own, temperature=1.4)
        known = [
            all(v in lists[unit.teacher_row + j] for j, v in enumerate(unit.teacher_path))
            for unit in c.units
        ]
        assert all(known) or own != ALWAYS
        loss_fn = ALMLoss(c.pair, tau=tau, temperature=1.4, chunk_bytes=1 if seed % 3 else None)
        compare_with_rows(loss_fn, c, teacher, lists, known, loss_twins.alm_twin, tau=tau)


@pytest.mark.parametrize("top_k", [1, 3, 50])
@pytest.mark.parametrize("k", [3, 50])
def test_uld_reads_lists_of_top_k_tokens(top_k, k):
    for seed in range(4):
        c = case(seed, padded=bool(seed % 2))
        teacher, lists = simct_lists(c, k, seed=seed, temperature=1.4)
        vocabulary = sum(kind != 3 for kind in c.pair.teacher_side.kinds)
        known = [
            unit.kind != 1 and len(lists[unit.teacher_row]) >= min(top_k, vocabulary)
            for unit in c.units
        ]
        loss_fn = ULDLoss(c.pair, top_k=top_k, temperature=1.4)
        compare_with_rows(loss_fn, c, teacher, lists, known, loss_twins.uld_twin, top_k=top_k)


def compare_with_rows(loss_fn, c, teacher, lists, known, twin, **keywords):
    """The values are those of whole rows for known units, and 0 for the others."""
    s1, s2 = (c.student.clone().requires_grad_() for _ in range(2))
    out = loss_fn(teacher_logits=teacher, student_logits=s1, index=c.index)
    unused = torch.from_numpy(c.pair.teacher_side.kinds == 3)
    unused = torch.nn.functional.pad(unused, (0, c.teacher.shape[-1] - len(unused)), value=True)
    rows = c.teacher.masked_fill(unused, -torch.inf)
    flat = [x.reshape(-1, x.shape[-1]) for x in (s2, rows)]
    expected = twin(*flat, c.pair, c.units, temperature=1.4, **keywords)
    expected = torch.where(torch.tensor(known[: len(expected)]), expected, 0.0)
    torch.testing.assert_close(out.per_unit[: len(expected)], expected, rtol=1e-8, atol=1e-10)
    assert not out.per_unit[len(expected) :].any()
    units = [unit for unit in c.units if unit.kind != 1] if not loss_fn.uses_multi else c.units
    assert out.metrics.left_out_unlisted == len(units) - sum(known)
    mean = np.mean([unlisted(lists[unit.teacher_row], c.pair.teacher_side) for unit in units])
    assert float(out.metrics.teacher_mass_unlisted) == pytest.approx(mean)
    out.loss.backward()
    (expected.sum() / len(units)).backward()
    torch.testing.assert_close(s1.grad, s2.grad, rtol=1e-7, atol=1e-10)


def test_an_impossible_token_that_is_listed_takes_part():
    c = case(3)
    teacher, _ = simct_lists(c, 3)
    logprobs = teacher.logprobs.clone()
    unit = c.units[0]
    logprobs[unit.teacher_row][teacher.ids[unit.teacher_row] == unit.teacher_path[0]] = -math.inf
    lists = TopKLogprobs(teacher.ids, logprobs)
    student = c.student.clone().requires_grad_()
    out = ALMLoss(c.pair)(teacher_logits=lists, student_logits=student, index=c.index)
    assert out.metrics.left_out_unlisted == 0
    assert torch.isfinite(out.per_unit).all()
    assert out.per_unit[0] > 0
    # NaN spoils the units that read it, and no others.
    logprobs[unit.teacher_row] = math.nan
    out = ALMLoss(c.pair)(teacher_logits=lists, student_logits=student, index=c.index)
    assert out.metrics.units_spoiled == out.per_unit.isnan().sum() >= 1
    assert out.per_unit.isnan().sum() < len(out.per_unit)


@pytest.mark.parametrize("kind", [GOLDLoss, BPMLoss, StrictLoss, ESCDLoss, ULDLoss])
def test_baselines_of_whole_rows_refuse_lists(kind):
    c = case(3)
    with pytest.raises(TypeError, match=f"{kind.__name__}.* whole rows.*got TopKLogprobs"):
        kind(c.pair)(
            teacher_logits=TopKLogprobs([[1]], [[-0.5]]), student_logits=c.student, index=c.index
        )
