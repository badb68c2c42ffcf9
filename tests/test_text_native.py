"""Text events in Rust against PyTorch operations, on more than the twin can take."""

import numpy as np
import pytest
import torch

from simct_align import Aligner, LinearTextLoss, TextLoss
from simct_align.demo import demo_tokenizers
from simct_align.loss import TextMetrics
from support.text_cases import SIDES, random_case

TEXTS = [
    "def add(a, b):\n    # 12345 + 678\n    return a + b\n",
    "The café — “naïve” coöperation 中文字符 🙂🙃 ends.\n\n\tTabs   and spaces  ",
    "x = {'key': [1, 22, 333], \"other\": null}\n" * 3,
]


@pytest.fixture(scope="module")
def demo():
    """The bundled pair, whose tree has thousands of nodes."""
    aligner = Aligner(*demo_tokenizers())
    ids = [side.encode_batch(TEXTS) for side in (aligner.teacher, aligner.student)]
    batch = aligner.align_batch(*ids)
    return aligner, batch, batch.index(text_events=True)


def logits_of(batch, aligner, dtype, seed=0, boost=6.0):
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for side in SIDES:
        ids = torch.from_numpy(getattr(batch, side).values.astype(np.int64))
        z = torch.randn(len(ids), len(getattr(aligner, side)) + 3, generator=generator)
        raised = torch.rand(len(ids) - 1, generator=generator)
        z[torch.arange(len(ids) - 1), ids[1:]] += boost * raised
        found[side] = z.to(dtype)
    return found


def run(loss_fn, logits, index, **keywords):
    student = logits["student"].clone().requires_grad_()
    out = loss_fn(teacher_logits=logits["teacher"], student_logits=student, index=index, **keywords)
    out.loss.backward()
    return out, student.grad


def assert_same(left, right, rtol, atol):
    (ours, our_grad), (theirs, their_grad) = left, right
    torch.testing.assert_close(ours.per_unit, theirs.per_unit, rtol=rtol, atol=atol)
    torch.testing.assert_close(our_grad, their_grad, rtol=rtol, atol=atol)
    for name in TextMetrics._fields:
        torch.testing.assert_close(
            getattr(ours.metrics, name), getattr(theirs.metrics, name),
            rtol=rtol, atol=atol, equal_nan=True,
        )  # fmt: skip


@pytest.mark.parametrize("straddled", ["byte", "tree"])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd", "tvd"])
def test_equals_torch_in_float64(demo, divergence, straddled):
    aligner, batch, index = demo
    logits = logits_of(batch, aligner, torch.float64)
    keywords = {"divergence": divergence, "straddled": straddled, "temperature": 1.3}
    results = [
        run(TextLoss(aligner, backend=backend, chunk_bytes=size, **keywords), logits, index)
        for backend, size in (("native", None), ("torch", None), ("native", 1 << 20))
    ]
    assert results[0][0].metrics.offsets_one_row > 5
    assert results[0][0].metrics.offsets_tree > 5
    for other in results[1:]:
        assert_same(results[0], other, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_logits_equal_torch(demo, dtype):
    aligner, batch, index = demo
    logits = logits_of(batch, aligner, dtype)
    ours, theirs = (
        run(TextLoss(aligner, backend=backend), logits, index) for backend in ("native", "torch")
    )
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(ours[0].loss, theirs[0].loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours[1], theirs[1], rtol=tolerance, atol=1e-6)


def test_the_number_of_threads_changes_no_bit(demo):
    aligner, batch, index = demo
    logits = logits_of(batch, aligner, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            loss_fn = TextLoss(aligner, reduction="none")
            results.append(loss_fn(
                teacher_logits=logits["teacher"], student_logits=logits["student"], index=index
            ).per_unit)  # fmt: skip
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


def test_auto_is_native_on_the_cpu(demo, caplog):
    aligner, batch, index = demo
    logits = logits_of(batch, aligner, torch.float32)
    auto, native = (
        run(TextLoss(aligner, backend=name), logits, index) for name in ("auto", "native")
    )
    torch.testing.assert_close(auto[1], native[1], rtol=0, atol=0)
    assert not caplog.records


def test_a_nan_spoils_the_same_offsets():
    for seed in range(6):
        c = random_case(seed, alphabet=b"abc", scale=3.0)
        for side in SIDES:
            broken = dict(c.logits)
            broken[side] = broken[side].clone()
            broken[side][seed % len(broken[side]), 1] = torch.nan
            ours, theirs = (
                run(TextLoss(c.aligner, backend=backend), broken, c.index)
                for backend in ("native", "torch")
            )
            assert_same(ours, theirs, rtol=1e-9, atol=1e-12)


def test_masked_columns_equal_torch():
    """Whole vocabularies at -inf but for a few tokens: nodes, sources and rows without mass."""
    for seed in range(12):
        c = random_case(seed, alphabet=b"abc", scale=2.0)
        logits = {}
        generator = torch.Generator().manual_seed(seed)
        for side in SIDES:
            z = c.logits[side].clone()
            hidden = torch.rand(z.shape, generator=generator) < 0.8
            hidden[:, seed % z.shape[1]] = False
            logits[side] = z.masked_fill(hidden, -torch.inf)
        ours, theirs = (
            run(TextLoss(c.aligner, backend=backend, epsilon=0.1), logits, c.index)
            for backend in ("native", "torch")
        )
        assert_same(ours, theirs, rtol=1e-9, atol=1e-12)


def test_hidden_states_equal_torch(demo):
    aligner, batch, index = demo
    generator = torch.Generator().manual_seed(1)
    inputs = {}
    for side, width in (("teacher", 6), ("student", 9)):
        rows, columns = len(getattr(batch, side).values), len(getattr(aligner, side))
        inputs[f"{side}_hidden"] = torch.randn(rows, width, generator=generator).double()
        inputs[f"{side}_weight"] = torch.randn(columns, width, generator=generator).double()
    found = []
    for backend in ("native", "torch"):
        given = {name: each.clone() for name, each in inputs.items()}
        for name in ("student_hidden", "student_weight"):
            given[name].requires_grad_()
        LinearTextLoss(aligner, backend=backend)(**given, index=index).loss.backward()
        found.append([given["student_hidden"].grad, given["student_weight"].grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)
