"""`TextLoss` against its twin from the definition, and its properties."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from simct_align import Aligner, SimCTLoss, TextLoss, Vocabulary
from simct_align.demo import demo_tokenizers
from simct_align.divergence import JSD
from simct_align.loss import TextMetrics
from support.text_cases import DIVERGENCES, SIDES, TextCase, compare, random_case
from test_loss import DIVERGENCES as PLAIN_DIVERGENCES

#: The kinds of pairs and logits: peaky logits close few nodes, flat ones leave offsets out.
SHAPES = {
    "two letters": {"scale": 6.0},
    "three letters": {"alphabet": b"abc", "scale": 4.0},
    "peaky": {"scale": 12.0},
    "flat": {"alphabet": b"abc", "scale": 1.0},
    "one vocabulary": {"scale": 3.0, "same": True},
}


@pytest.mark.parametrize("straddled", ["byte", "tree"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_its_twin(shape, straddled):
    counts = None
    for seed in range(8):
        found = compare(
            random_case(seed, **SHAPES[shape]),
            straddled=straddled,
            epsilon=(0.02, 0.3, 0.1, 0.0)[seed % 4],
            chunk_bytes=1 if seed % 2 else None,
            temperature=(1.0, 1.7, 0.5)[seed % 3],
            floor=(1e-6, 0.0)[seed // 2 % 2],
        )
        counts = found if counts is None else counts + found
    kinds = {"tree", "one row", "left out"} if shape != "one vocabulary" else {"tree"}
    kinds |= {"next byte"} if straddled == "byte" and shape != "one vocabulary" else set()
    assert kinds <= set(counts)


@pytest.mark.parametrize(
    ("divergence", "floor"),
    [(name, floor) for name in DIVERGENCES for floor in (0.0, 1e-6)],
)
def test_equals_its_twin_under_every_divergence(divergence, floor):
    for seed in range(20, 24):
        for scale in (2.0, 5.0):
            c = random_case(seed, alphabet=b"abc", scale=scale)
            compare(c, divergence=divergence, floor=floor, epsilon=0.1)


def test_nodes_of_vanishing_mass_equal_the_twin():
    compare(random_case(3, scale=12.0, cut=100.0), straddled="tree")


def test_sides_without_stops():
    for seed in range(4):
        for stops in ((0, 0), (1, 0), (0, 1)):
            compare(random_case(seed, stops=stops, scale=4.0), epsilon=0.1)


def demo_case(texts, seed=0, boost=7.0):
    """The bundled pair; logits prefer the tokens that the text took."""
    vocabularies = [Vocabulary.from_tokenizer(each) for each in demo_tokenizers()]
    ids, masks, logits = {}, {}, {}
    for side, vocabulary in zip(SIDES, vocabularies, strict=True):
        stop = vocabulary.stop_ids[0]
        ids[side] = [[stop, *row, stop] for row in vocabulary.encode_batch(texts)]
        masks[side] = [[0, *[1] * (len(row) - 1)] for row in ids[side]]
    aligner = Aligner(*vocabularies)
    batch = aligner.align_batch(
        ids["teacher"], ids["student"],
        teacher_mask=masks["teacher"], student_mask=masks["student"],
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    for side, vocabulary in zip(SIDES, vocabularies, strict=True):
        flat = torch.tensor([token for row in ids[side] for token in row])
        shape = len(flat), len(vocabulary)
        z = 2.0 * torch.randn(shape, generator=generator, dtype=torch.float64)
        z[torch.arange(len(flat) - 1), flat[1:]] += boost
        logits[side] = z
    return TextCase(aligner, batch, ids, logits)


TEXTS = (
    "12345 + 67 = 3.14",
    "def f(x):\n    return x\n\n\n        # ok\n",
    "naïve café",
    "🙂🙃 ok",
)


@pytest.mark.parametrize("straddled", ["byte", "tree"])
@pytest.mark.parametrize("text", ["x=3", ":\n a", "é", "🙂 o"])
def test_real_text_equals_its_twin(text, straddled):
    compare(demo_case([text], len(text), boost=10.0), epsilon=0.1, straddled=straddled)


def plain_divergence(c, student, divergence):
    """The divergence per token, control tokens left out and ids of equal bytes added up."""
    vocabulary = c.aligner.student
    names = ["stop" if token in vocabulary.stop_ids else vocabulary.token_bytes(token)
             for token in range(len(vocabulary))]  # fmt: skip
    groups = sorted({name for name in names if name}, key=str)
    member = torch.tensor([[name == group for group in groups] for name in names]).double()
    mask = torch.from_numpy(np.concatenate([[0], c.batch.student.mask[1:]]))
    rows = mask.nonzero().squeeze(1) - 1
    logs = []
    for logits in (student, c.logits["teacher"]):
        grouped = logits[rows, : len(names)].softmax(1) @ member
        logs.append((grouped / grouped.sum(1, keepdim=True)).log())
    return torch.stack([divergence(s, t) for s, t in zip(*logs, strict=True)])


@pytest.mark.parametrize("divergence", PLAIN_DIVERGENCES)
def test_one_tokenizer_on_both_sides_gives_the_divergence_per_token(divergence):
    ours, twin = PLAIN_DIVERGENCES[divergence]
    for seed in range(6):
        c = random_case(seed, alphabet=b"abc", same=True, scale=2.0, stops=(2, 2))
        s1, s2 = (c.logits["student"].clone().requires_grad_() for _ in range(2))
        out = c.run(s1, divergence=ours, floor=0.0, epsilon=(0.0, 0.02)[seed % 2])
        expected = plain_divergence(c, s2, twin)
        torch.testing.assert_close(out.per_unit, expected, rtol=1e-9, atol=1e-11)
        assert out.metrics.offsets_tree == len(expected)
        out.loss.backward()
        expected.sum().backward()
        torch.testing.assert_close(s1.grad, s2.grad, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("straddled", ["byte", "tree"])
def test_gradcheck(straddled):
    kinds = Counter()
    for seed in range(3):
        c = random_case(seed, rows=1, regions=1, longest=5, extra=0)
        student = c.logits["student"].clone().requires_grad_()
        for reduction in ("token", "none"):
            keywords = {"reduction": reduction, "epsilon": 0.2, "straddled": straddled}
            torch.autograd.gradcheck(lambda x, c=c, k=keywords: c.run(x, **k).loss, (student,))
        kinds.update(c.twin(student, epsilon=0.2, straddled=straddled)[1])
    assert len(kinds) > 2


def test_gradient_is_that_of_differences_on_real_text():
    c = demo_case(TEXTS)
    student = c.logits["student"].clone().requires_grad_()
    c.run(student).loss.backward()
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        step = torch.randn(student.shape, generator=generator, dtype=torch.float64)
        up, down = (c.run(student.detach() + e * step).loss for e in (1e-6, -1e-6))
        torch.testing.assert_close(
            (student.grad * step).sum(), (up - down) / 2e-6, rtol=1e-5, atol=0
        )


def test_accumulation_by_normalizer_gives_the_gradient_of_one_batch():
    c = random_case(3, rows=6, scale=4.0)
    whole, parts = (c.logits["student"].clone().requires_grad_() for _ in range(2))
    out = c.run(whole, reduction="token")
    out.loss.backward()
    slices, pieces = [slice(0, 1), slice(1, 4), slice(4, 6)], []
    for rows in slices:
        at = {
            side: slice(*getattr(c.batch, side).offsets[[rows.start, rows.stop]]) for side in SIDES
        }
        masks = {
            side: [
                getattr(c.batch, side).mask[slice(*getattr(c.batch, side).offsets[[r, r + 1]])]
                for r in range(rows.start, rows.stop)
            ]
            for side in SIDES
        }
        batch = c.aligner.align_batch(
            c.ids["teacher"][rows], c.ids["student"][rows],
            teacher_mask=masks["teacher"], student_mask=masks["student"],
        )  # fmt: skip
        pieces.append((batch.index(text_events=True), at))
    loss_fn = TextLoss(c.aligner)
    numbers = [loss_fn.normalizer(index) for index, _ in pieces]
    assert sum(numbers) == loss_fn.normalizer(c.index)
    assert len(set(numbers)) > 1
    total = 0.0
    for index, at in pieces:
        loss = loss_fn(
            teacher_logits=c.logits["teacher"][at["teacher"]],
            student_logits=parts[at["student"]],
            index=index,
            normalizer=torch.tensor(float(sum(numbers))),
        ).loss
        loss.backward()
        total += loss.detach()
    torch.testing.assert_close(total, out.loss.detach())
    torch.testing.assert_close(parts.grad, whole.grad)


def test_nothing_to_compare():
    c = random_case(0)
    vocabulary = c.aligner.student
    control = [len(each) - 1 for each in (c.aligner.teacher, vocabulary)]
    letter = [
        next(t for t in range(len(v)) if v.token_bytes(t) == b"a")
        for v in (c.aligner.teacher, vocabulary)
    ]
    loss_fn = TextLoss(c.aligner)
    batches = {
        "no rows": ([], [], 0),
        "empty rows": ([[], []], [[], []], 0),
        "control tokens": ([[control[0]]], [[control[1]]], 0),
        "no prefix": ([[letter[0]]], [[letter[1]]], 0),
        "one unit": ([[control[0], letter[0]]], [[control[1], letter[1]]], 1),
    }
    for name, (teacher, student, offsets) in batches.items():
        batch = c.aligner.align_batch(teacher, student)
        x = torch.randn(len(batch.student.values), len(vocabulary)).double().requires_grad_()
        out = loss_fn(
            teacher_logits=torch.randn(len(batch.teacher.values), len(c.aligner.teacher)).double(),
            student_logits=x,
            index=batch.index(text_events=True),
        )
        assert out.per_unit.shape == (offsets,), name
        assert (out.loss > 0) == (offsets > 0), name
        out.loss.backward()
        assert x.grad.shape == x.shape, name
        assert bool(x.grad.any()) == (offsets > 0), name
        assert out.metrics.units_without_prefix == (name == "no prefix"), name
        assert out.metrics.divergence_next_byte.isnan(), name


def test_offsets_that_are_left_out_give_nothing():
    """Every row prefers a letter, and the teacher's tokens end everywhere off the path."""
    for seed in range(40):
        c = random_case(seed, rows=1, regions=1, scale=0.5)
        x = c.logits["student"].clone().requires_grad_()
        out = c.run(x, epsilon=0.0, straddled="tree")
        dropped = out.metrics.offsets_left_out
        if dropped == len(out.per_unit) - 1 > 2:
            break
    else:
        raise AssertionError("no seed leaves all offsets but the first out")
    # The first offset of a stretch has no earlier rows.
    assert not out.per_unit[1:].any()
    out.loss.backward()
    rows = x.grad.abs().sum(1)
    assert rows[c.index.student_text_row[0]] > 0
    assert rows.count_nonzero() == 1


def test_exchanged_sides_mirror_the_offsets():
    for seed in range(3):
        c = random_case(seed, scale=3.0)
        turned = TextCase(
            Aligner(c.aligner.student, c.aligner.teacher),
            None,
            {"teacher": c.ids["student"], "student": c.ids["teacher"]},
            {"teacher": c.logits["student"], "student": c.logits["teacher"]},
        )
        masks = [
            [side.mask[slice(*side.offsets[[r, r + 1]])] for r in range(len(c.batch))]
            for side in (c.batch.student, c.batch.teacher)
        ]
        turned.batch = turned.aligner.align_batch(
            turned.ids["teacher"], turned.ids["student"],
            teacher_mask=masks[0], student_mask=masks[1],
        )  # fmt: skip
        for ours, theirs in (
            ("tvd", "tvd"), ("jsd", "jsd"), (JSD(0.3), JSD(0.7)), ("reverse_kl", "forward_kl")
        ):  # fmt: skip
            for straddled in ("byte", "tree"):
                keywords = {"straddled": straddled, "floor": 0.0, "epsilon": 0.1}
                out = c.run(divergence=ours, **keywords)
                mirrored = turned.run(divergence=theirs, **keywords)
                torch.testing.assert_close(out.per_unit, mirrored.per_unit, rtol=1e-9, atol=1e-11)
                for name in TextMetrics._fields:
                    if name.startswith("offsets"):
                        assert getattr(out.metrics, name) == getattr(mirrored.metrics, name)


def test_an_index_without_text_events_is_refused():
    c = random_case(0)
    with pytest.raises(ValueError, match=r"'text_events'.*batch\.index\(text_events=True\)"):
        c.run(index=c.batch.index())
    torch.testing.assert_close(c.run(index=c.batch).per_unit, c.run().per_unit)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"epsilon": 1.0}, "epsilon: expected a probability below 1, got 1.0"),
        ({"floor": -0.1}, "floor: expected a probability below 1, got -0.1"),
        ({"straddled": "bytes"}, "straddled: expected one of"),
        ({"reduction": "unit"}, "reduction: text events have no units"),
        ({"temperature": 0.0}, "temperature"),
        ({"divergence": "kl"}, "divergence"),
    ],
)
def test_bad_keywords_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        random_case(0).run(**keywords)


def test_metrics_of_a_case_checked_by_hand():
    teacher = Vocabulary.from_token_bytes([b"12", b"1", b"2", b"+"])
    student = Vocabulary.from_token_bytes([b"1", b"2", b"+", b""], special=[3])
    aligner = Aligner(teacher, student)
    batch = aligner.align_batch([[3, 0, 3]], [[2, 0, 1, 2]])
    teacher_rows = [[0.59, 0.01, 0.2, 0.2], [0.4, 0.1, 0.2, 0.3], [0.25] * 4]
    student_rows = [[0.4, 0.24, 0.16, 0.2], [0.1, 0.8, 0.1, 1e-30], [0.6, 0.1, 0.3, 1e-30],
                    [0.25] * 4]  # fmt: skip
    out = TextLoss(aligner)(
        teacher_logits=torch.tensor(teacher_rows).double().log(),
        student_logits=torch.tensor(student_rows).double().log(),
        index=batch,
    )

    def kl(student, teacher):
        return sum(q * math.log(q / p) for q, p in zip(student, teacher, strict=True))

    # Before "12+": both have a row. What follows "1" is in no row of the student: a leaf.
    first = kl([0.5, 0.3, 0.2], [0.6, 0.2, 0.2])
    # Between "1" and "2": the teacher's "12" goes on with "2", its "1" ends; the student's "1" and
    # "+" begin nothing that the teacher has tokens for.
    second = kl([0.8, 0.2], [0.59 / 0.6, 0.01 / 0.6])
    # After "12": both have a row, and the teacher's "1" and "12" begin with "1".
    third = kl([0.6, 0.1, 0.3], [0.5, 0.2, 0.3])
    expected = torch.tensor([first, second, third]).double()
    torch.testing.assert_close(out.per_unit, expected, rtol=1e-6, atol=0)
    # The student's tokens after the first, which has no prefix.
    torch.testing.assert_close(out.loss, expected.sum() / 3, rtol=1e-6, atol=0)
    metrics = {
        "offsets_tree": 2, "offsets_next_byte": 0, "offsets_one_row": 1, "offsets_left_out": 0,
        "offsets_spoiled": 0, "offsets_unlisted": 0, "units_without_prefix": 1,
        "divergence_tree": (first + third) / 2, "divergence_next_byte": math.nan,
        "divergence_one_row": second,
        "mass_ended": 0.01 / 0.6 / 3, "mass_straddling": 0.59 / 0.6 / 3,
        "teacher_mass_control": 0.0, "student_mass_control": 0.2 / 3,
        "mass_largest_leaf": (0.5 + 0.8 + 0.6) / 3, "teacher_mass_unlisted": 0.0,
    }  # fmt: skip
    assert list(metrics) == list(TextMetrics._fields)
    for name, value in metrics.items():
        found = float(getattr(out.metrics, name))
        assert found == pytest.approx(value, rel=1e-6, abs=1e-9, nan_ok=True), name


def code(rng):
    """A function of one or two indented lines."""
    indent = rng.choice(("    ", "  ", "\t", "        "))
    lines = [f"def {rng.choice(('area', 'f', 'node_id'))}({rng.choice(('x', 'value', ''))}):\n"]
    for _ in range(rng.randint(1, 2)):
        statement = rng.choice(("return ", "x = ", "if ", "for i in range("))
        end = rng.choice(("\n", "\n\n", ":\n", "  # ok\n"))
        lines.append(indent * rng.choice((1, 1, 2)) + statement + str(rng.randint(0, 99)) + end)
    return "".join(lines)


def make_exact(c):
    """Replace the logits of a case by counts over its rows: exact models of both tokenizers."""
    for side in SIDES:
        follows = defaultdict(Counter)
        for row in c.ids[side]:
            for end in range(1, len(row)):
                follows[tuple(row[:end])][row[end]] += 1
        counts = [
            follows[tuple(row[:end])] for row in c.ids[side] for end in range(1, len(row) + 1)
        ]
        z = torch.full((len(counts), len(c.vocabulary(side))), 1e-12, dtype=torch.float64)
        for row, found in enumerate(counts):
            for token, count in found.items():
                z[row, token] = count / found.total()
        c.logits[side] = z.log()


@pytest.mark.parametrize("turned", [False, True])
def test_models_that_agree_on_every_text_have_no_divergence(turned):
    """Rows are counts over the same texts: both models are exact. SimCT reports a difference."""
    rng = random.Random(0)
    texts = [code(rng) for _ in range(40)]
    c = demo_case(texts)
    if turned:
        ids = {"teacher": c.ids["student"], "student": c.ids["teacher"]}
        c = TextCase(Aligner(c.aligner.student, c.aligner.teacher), None, ids, {})
        masks = [[[0, *[1] * (len(row) - 1)] for row in ids[side]] for side in SIDES]
        c.batch = c.aligner.align_batch(
            ids["teacher"], ids["student"], teacher_mask=masks[0], student_mask=masks[1]
        )
    make_exact(c)
    size = sum(len(text.encode()) for text in texts)
    for straddled in ("byte", "tree"):
        out = c.run(straddled=straddled)
        assert -1e-6 < out.metrics.divergence_tree < 1e-6
        # Where one side has no row, tokens may have ended off the path: what follows is unknown.
        assert -1e-6 < out.loss / size < 0.015
    simct = SimCTLoss(c.aligner, reduction="sum")(
        teacher_logits=c.logits["teacher"], student_logits=c.logits["student"],
        index=c.batch.index(),
    )  # fmt: skip
    assert simct.loss / size > 0.1
