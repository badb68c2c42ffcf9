"""Text events in Triton against Rust or PyTorch operations in float64.

Without a GPU, Triton's interpreter runs the kernels on the CPU: see conftest.
"""

from __future__ import annotations

import random

import pytest
import torch

pytest.importorskip("triton", reason="no Triton here: the tests of its kernels are left out")

from simct_align import Aligner, TextLoss, Vocabulary
from simct_align.divergence import JSD, SkewedForwardKL, SkewedReverseKL
from simct_align.loss import text_blocks
from simct_align.loss.backends.triton import launch, text_computation, text_side
from support.lengths import full
from support.text_cases import SIDES, TextCase, random_case
from test_loss_triton import DEVICE, TOLERANCES, assert_same_figures, captured
from test_loss_triton import pytestmark as pytestmark

DIVERGENCES = (
    "reverse_kl",
    "forward_kl",
    "tvd",
    JSD(0.3),
    SkewedForwardKL(0.2),
    SkewedReverseKL(0.2),
)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Small blocks and tiles: small trees have several of them."""
    monkeypatch.setattr(text_blocks, "BLOCK", 16)
    monkeypatch.setattr(text_computation, "COLUMNS", 16)
    monkeypatch.setattr(text_side, "ADDED_COLUMNS", 16)
    for module in (text_side, text_computation):
        monkeypatch.setattr(module, "SOURCE_SPLITS", 2)
        monkeypatch.setattr(module, "SOURCE_TILE", 8)
    for module in (launch, text_side):
        monkeypatch.setattr(module, "ROW_T", 4)
        monkeypatch.setattr(module, "E", 2)


def wide_case(seed, *, tokens=120, alphabet=b"abcd", scale=4.0, boost=6.0, rows=2, length=10):
    """A pair whose tree has many blocks and subtrees over several of them.

    Args:
        seed: Everything is drawn from it.
        tokens: Texts of either vocabulary.
        alphabet: The letters.
        scale: The standard deviation of logits.
        boost: What is added to the logits of the tokens that the text takes.
        rows: The number of rows.
        length: The number of letters of a row.
    """
    rng = random.Random(seed)
    vocabularies = {}
    for side in SIDES:
        texts = {bytes([letter]) for letter in alphabet}
        while len(texts) < tokens:
            texts.add(bytes(rng.choice(alphabet) for _ in range(rng.randint(1, 7))))
        ordered = sorted(texts)
        rng.shuffle(ordered)
        ordered += ordered[: seed % 2 * 5]  # several ids of the same bytes
        vocabularies[side] = Vocabulary.from_token_bytes(
            [*ordered, b"", b""], special=[len(ordered), len(ordered) + 1],
            stop_ids=[len(ordered)],
        )  # fmt: skip
    ids = {side: [] for side in SIDES}
    for _ in range(rows):
        text = bytes(rng.choice(alphabet) for _ in range(length))
        for side, vocabulary in vocabularies.items():
            of_text = [vocabulary.token_bytes(i) for i in range(len(vocabulary))]
            row, at = [], 0
            while at < len(text):
                found = [i for i, t in enumerate(of_text) if t and text.startswith(t, at)]
                row.append(rng.choice(found))
                at += len(of_text[row[-1]])
            ids[side].append([len(vocabulary) - 2, *row, len(vocabulary) - 2])
    aligner = Aligner(*vocabularies.values())
    generator = torch.Generator().manual_seed(seed)
    logits = {}
    for side, vocabulary in vocabularies.items():
        flat = torch.tensor([token for row in ids[side] for token in row])
        shape = len(flat), len(vocabulary) + 3
        z = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        z[torch.arange(len(flat) - 1), flat[1:]] += boost
        logits[side] = z
    return TextCase(aligner, aligner.align_batch(ids["teacher"], ids["student"]), ids, logits)


def run(c, backend, dtype, **keywords):
    """The output, and the gradient on the CPU."""
    student = c.logits["student"].to(DEVICE, dtype, copy=True).requires_grad_()
    loss_fn = TextLoss(c.aligner, backend=backend, **{"reduction": "sum"} | keywords).to(DEVICE)
    out = loss_fn(
        teacher_logits=c.logits["teacher"].to(DEVICE, dtype), student_logits=student,
        index=c.index.to(DEVICE),
    )  # fmt: skip
    out.loss.backward()
    return out, student.grad.cpu().double()


def compare(c, dtype=torch.float32, **keywords):
    """Kernels against float64 on the same rounded logits."""
    c.logits = {side: z.to(dtype).double() for side, z in c.logits.items()}
    ours, gradient = run(c, "triton", dtype, **keywords)
    truth, expected = run(c, "torch" if DEVICE == "cuda" else "native", torch.float64, **keywords)
    assert_same_figures(ours, truth)
    if expected.numel():
        # What PyTorch operations in float32 get wrong, too, is allowed.
        _, plain = run(c, "torch", dtype, **keywords)
        allowed = 2e-6 * float(truth.per_unit.detach().max().clamp(min=1.0))
        allowed = allowed + 4 * (plain - expected).abs().amax(-1, keepdim=True)
        allowed += 4 * TOLERANCES[dtype] * expected.abs().amax(-1, keepdim=True)
        wrong = (gradient - expected).abs()
        assert (wrong <= allowed).all(), float((wrong - allowed).max())
    return ours


@pytest.mark.parametrize("seed", range(8))
def test_small_pairs(seed):
    compare(
        random_case(seed, alphabet=b"abc"[: 2 + seed % 2], scale=(1.0, 4.0, 9.0)[seed % 3]),
        epsilon=(0.02, 0.3, 0.1, 0.0)[seed % 4],
        chunk_bytes=1 if seed % 2 else None,
        temperature=(1.0, 1.7, 0.5)[seed % 3],
        floor=(1e-6, 0.0)[seed // 2 % 2],
    )


@pytest.mark.parametrize(
    ("seed", "boost"),
    full(
        [(seed, boost) for seed in (0, 1) for boost in (0.0, 6.0, 12.0)],
        [(0, 0.0), (1, 6.0), (0, 12.0)],
    ),
)
def test_trees_of_many_blocks(seed, boost):
    out = compare(wide_case(seed, boost=boost), epsilon=(0.02, 0.2)[seed])
    assert out.metrics.offsets_tree + out.metrics.offsets_next_byte > 0


def test_many_chunks_add_to_the_same_rows():
    c = wide_case(2, tokens=40, rows=3, length=16)
    assert c.index.n_text_offsets > 2 * launch.UNITS
    compare(c, chunk_bytes=1)


@pytest.mark.parametrize("divergence", DIVERGENCES, ids=str)
def test_every_divergence(divergence):
    compare(random_case(20, alphabet=b"abc", scale=4.0), divergence=divergence, epsilon=0.1)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_narrow_logits(dtype):
    compare(random_case(9, scale=3.0), dtype)


def test_one_vocabulary():
    compare(random_case(5, same=True, scale=3.0))


def test_sides_without_stops():
    for stops in ((0, 0), (1, 0), (0, 1)):
        compare(random_case(3, stops=stops, scale=4.0), epsilon=0.1)


def test_a_nan_spoils_the_offsets_that_read_it():
    c = random_case(6, scale=3.0)
    for side in SIDES:
        c.logits[side][int(getattr(c.index, f"{side}_text_row")[1]), 0] = torch.nan
    out = compare(c)
    assert out.metrics.offsets_spoiled > 0


def test_forbidden_tokens():
    c = random_case(7, scale=3.0)
    for side in SIDES:
        c.logits[side][:, 1] = -torch.inf
    assert torch.isfinite(compare(c, floor=1e-6).per_unit).all()


@pytest.mark.parametrize("factor", [10.0, 1e4])
def test_logits_far_from_zero(factor):
    c = random_case(8, scale=1.0)
    c.logits = {side: factor * z for side, z in c.logits.items()}
    # Probabilities that are 0 in float32 count as none, whatever computes.
    ours, gradient = run(c, "triton", torch.float32)
    theirs, expected = run(c, "torch", torch.float32)
    torch.testing.assert_close(ours.per_unit, theirs.per_unit, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


def test_any_strides():
    c = random_case(4, scale=3.0)
    truth, expected = run(c, "torch", torch.float32)
    wide = {side: torch.randn(z.shape[0], 2 * z.shape[1] + 1) for side, z in c.logits.items()}
    for side, z in c.logits.items():
        wide[side][:, 1::2] = z.float()
    leaf = wide["student"].to(DEVICE)[:, 1::2].detach().requires_grad_()
    out = TextLoss(c.aligner, backend="triton", reduction="sum").to(DEVICE)(
        teacher_logits=wide["teacher"].to(DEVICE)[:, 1::2], student_logits=leaf,
        index=c.index.to(DEVICE),
    )  # fmt: skip
    out.loss.backward()
    torch.testing.assert_close(out.per_unit, truth.per_unit, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(leaf.grad.cpu().double(), expected, rtol=1e-4, atol=2e-5)


def test_empty_batch_and_no_gradient():
    c = random_case(1)
    empty = c.aligner.align_batch([[]], [[]]).index(text_events=True).to(DEVICE)
    loss_fn = TextLoss(c.aligner, backend="triton", reduction="sum").to(DEVICE)
    logits = {side: z.float().to(DEVICE) for side, z in c.logits.items()}
    out = loss_fn(
        teacher_logits=logits["teacher"][:0], student_logits=logits["student"][:0], index=empty
    )
    assert out.loss == 0
    without = loss_fn(
        teacher_logits=logits["teacher"], student_logits=logits["student"],
        index=c.index.to(DEVICE),
    )  # fmt: skip
    with_gradient, _ = run(c, "triton", torch.float32)
    torch.testing.assert_close(without.per_unit, with_gradient.per_unit)


def test_trees_at_straddled_offsets_are_computed_by_torch():
    c = random_case(2, scale=4.0)
    compare(c, straddled="tree", epsilon=0.1)


@pytest.mark.skipif(DEVICE == "cpu", reason="no GPU: graphs of kernels are left out")
def test_cuda_graphs_capture_it():
    c = wide_case(3)
    loss_fn = TextLoss(c.aligner, backend="triton", reduction="sum").to(DEVICE)
    inputs = {f"{side}_logits": z.float().to(DEVICE) for side, z in c.logits.items()}
    replay, gradient = captured(loss_fn, inputs, c.index.to(DEVICE))
    with torch.no_grad():
        for z in inputs.values():
            z.mul_(0.5)
    loss = replay()
    c.logits = {side: inputs[f"{side}_logits"].detach().cpu().double() for side in SIDES}
    expected, by_student = run(c, "triton", torch.float32)
    torch.testing.assert_close(loss, expected.loss.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient().cpu().double(), by_student, rtol=1e-4, atol=1e-5)
