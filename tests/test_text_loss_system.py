"""`LinearTextLoss`, and the losses over text events inside other machinery."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from simct_align import LinearTextLoss, TextLoss
from simct_align.loss import text_ops
from simct_align.loss.text_metrics import OffsetStat
from support.text_cases import SIDES, random_case
from test_loss_linear import OPTIONS, logits_of
from test_loss_system import LINEAR, LOGITS, Strict, named

KEYWORDS = [
    {},
    {"straddled": "tree", "reduction": "sum"},
    {"divergence": "tvd", "temperature": 2.0, "chunk_bytes": 1, "epsilon": 0.3},
    {"reduction": "none", "floor": 0.0},
]


def linear_case(seed, dtype=torch.float64, width=(5, 7), **keywords):
    """A case with hidden states, weights and biases in place of logits."""
    c = random_case(seed, **keywords)
    generator = torch.Generator().manual_seed(seed)
    heads = {}
    for side, n in zip(("student", "teacher"), width, strict=True):
        rows, columns = c.logits[side].shape
        for name, shape in (("hidden", (rows, n)), ("weight", (columns, n)), ("bias", (columns,))):
            z = torch.randn(shape, generator=generator, dtype=torch.float64)
            heads[f"{side}_{name}"] = z.to(dtype)
    return c, heads


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("chunk_bytes", [1, None])
def test_linear_equals_the_loss_from_logits(option, chunk_bytes):
    for seed in range(3):
        c, heads = linear_case(seed)
        options = dict(OPTIONS[option])
        with_bias = options.pop("bias", False)
        biases = [f"{side}_bias" for side in SIDES] if with_bias else []
        names = ["student_hidden", "student_weight", *(["student_bias"] if with_bias else [])]
        keywords = {"epsilon": 0.1, "temperature": 1.3, "straddled": ("byte", "tree")[seed % 2]}
        ours, plain = ({name: heads[name].clone().requires_grad_() for name in names}
                       for _ in range(2))  # fmt: skip
        tensors = {name: heads[name] for name in (*LINEAR, *biases)}
        out = LinearTextLoss(c.aligner, chunk_bytes=chunk_bytes, **keywords)(
            **tensors | ours, index=c.index, **options
        )
        tensors |= plain
        logits = {
            side: logits_of(
                tensors[f"{side}_hidden"],
                tensors[f"{side}_weight"],
                tensors.get(f"{side}_bias"),
                options.get(f"{side}_softcap"),
                options.get(f"{side}_scale", 1.0),
            )
            for side in SIDES
        }
        expected = c.run(
            logits["student"], teacher=logits["teacher"], reduction="token", **keywords
        )
        torch.testing.assert_close(out.per_unit, expected.per_unit)
        torch.testing.assert_close(out.loss, expected.loss)
        out.loss.backward()
        expected.loss.backward()
        for name in names:
            assert plain[name].grad.any()
            torch.testing.assert_close(ours[name].grad, plain[name].grad)
        for a, b in zip(out.metrics, expected.metrics, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


def test_linear_gradcheck():
    c, heads = linear_case(1, rows=1, regions=1, longest=4, width=(2, 3), extra=0)
    leaves = [heads[f"student_{n}"].clone().requires_grad_() for n in ("hidden", "weight", "bias")]
    for reduction in ("token", "none"):
        loss_fn = LinearTextLoss(c.aligner, reduction=reduction, epsilon=0.3)

        def run(hidden, weight, bias, loss_fn=loss_fn):
            return loss_fn(
                teacher_hidden=heads["teacher_hidden"], teacher_weight=heads["teacher_weight"],
                student_hidden=hidden, student_weight=weight, student_bias=bias,
                student_softcap=3.0, index=c.index,
            ).loss  # fmt: skip

        torch.autograd.gradcheck(run, leaves)


def both_losses(device, c, heads, keywords, dtype=torch.float64):
    """Both losses on a device, ready to run, and the leaves that get gradients."""
    index = c.index.to(device)
    student = c.logits["student"].to(device, dtype).requires_grad_()
    logits = student, c.logits["teacher"].to(device, dtype)
    hidden = tuple(heads[name].to(device, dtype) for name in LINEAR)
    for leaf in hidden[:2]:
        leaf.requires_grad_()
    from_logits = TextLoss(c.aligner, **keywords).to(device)
    yield lambda: from_logits(**named(LOGITS, logits), index=index), logits[:1]
    from_hidden = LinearTextLoss(c.aligner, **keywords).to(device)
    yield lambda: from_hidden(**named(LINEAR, hidden), index=index), hidden[:2]


def without_operators(patch):
    """Let the losses call the Python functions, so that modes see what is inside."""
    for operator in (text_ops.text_loss, text_ops.linear_text_loss):
        patch.setattr(operator, "op", operator.forward)


@pytest.mark.parametrize("keywords", KEYWORDS, ids=str)
def test_nothing_waits_for_the_device(keywords):
    """On devices other than the CPU, where leaves are counted to make their matrix smaller."""
    for run, _ in both_losses("meta", *linear_case(3), keywords):
        with pytest.MonkeyPatch.context() as patch, Strict() as strict:
            without_operators(patch)
            run()
        assert strict.seen > 100


@pytest.mark.parametrize("keywords", KEYWORDS, ids=str)
def test_forward_and_backward_on_meta(keywords):
    for run, leaves in both_losses("meta", *linear_case(3), keywords):
        out = run()
        out.loss.sum().backward()
        assert out.per_unit.device.type == "meta"
        assert all(leaf.grad.shape == leaf.shape for leaf in leaves)


FAKE_CUDA = """
import pytest, torch
from torch._subclasses.fake_tensor import FakeTensorMode
from simct_align.loss.backends.torch import text_computation
from test_text_loss_system import KEYWORDS, both_losses, linear_case, without_operators
c, heads = linear_case(3)
plan_chunks, host = text_computation.plan_chunks, c.index.packed
class Host:
    def numpy(self):
        return host
for keywords in KEYWORDS:
    for inside in (False, True):
        with FakeTensorMode(allow_non_fake_inputs=True), pytest.MonkeyPatch.context() as patch:
            # Chunks are planned on the host, from real numbers.
            patch.setattr(text_computation, "plan_chunks", lambda _, *at: plan_chunks(Host(), *at))
            if inside:
                without_operators(patch)
            for run, leaves in both_losses("cuda", c, heads, keywords):
                out = run()
                assert out.loss.device.type == "cuda"
                assert out.metrics.mass_ended.device.type == "cuda"
                if not inside and keywords.get("reduction") != "none":
                    # The autograd engine wants a driver; the node itself does not.
                    with torch.no_grad():
                        grads = out.loss.grad_fn.apply(torch.ones_like(out.loss), *[None] * 5)
                    for grad, leaf in zip([g for g in grads if g is not None], leaves, strict=True):
                        assert grad.device.type == "cuda" and grad.shape == leaf.shape
print("ran on CUDA fake tensors")
"""


def test_forward_and_backward_on_cuda_fake_tensors():
    if torch.version.cuda is None:
        pytest.skip("this torch is not a CUDA build: CUDA fake tensors left out")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", FAKE_CUDA],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ran on CUDA fake tensors" in done.stdout


@pytest.mark.parametrize("operator", ["text_loss", "linear_text_loss"])
def test_operators_pass_opcheck(operator):
    operator = getattr(text_ops, operator)
    captured = []
    with pytest.MonkeyPatch.context() as patch:
        for each in (text_ops.text_loss, text_ops.linear_text_loss):
            patch.setattr(
                each,
                "op",
                lambda *args, each=each, **numbers: (
                    captured.append((each, args, numbers)) or each.forward(*args, **numbers)
                ),
            )
        for run, _ in both_losses("cpu", *linear_case(2, rows=2), {}):
            run()
    (args, numbers) = next(call for each, *call in captured if each is operator)
    torch.library.opcheck(operator.op, args, numbers)


def test_compiled_whole_with_few_recompilations():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    def step(loss_fn, student, teacher, index):
        out = loss_fn(teacher_logits=teacher, student_logits=student * 1.5, index=index)
        return out.loss, out.metrics.divergence_tree

    torch._dynamo.reset()
    c = random_case(1, alphabet=b"abc", scale=4.0)
    loss_fn = TextLoss(c.aligner)
    compiled = torch.compile(step, fullgraph=True, backend=backend)
    rows = [(c.ids["teacher"][row], c.ids["student"][row]) for row in range(len(c.ids["teacher"]))]
    generator = torch.Generator().manual_seed(0)
    for count in range(2, 14):
        chosen = [rows[(count * 5 + number) % len(rows)] for number in range(count)]
        batch = c.aligner.align_batch(*map(list, zip(*chosen, strict=True)))
        teacher, student = (
            torch.randn(
                len(getattr(batch, side).values), c.logits[side].shape[1], generator=generator
            )
            for side in SIDES
        )
        index = batch.index(text_events=True).to("cpu")
        ours, plain = (student.clone().requires_grad_() for _ in range(2))
        loss, metric = compiled(loss_fn, ours, teacher, index)
        expected, plain_metric = step(loss_fn, plain, teacher, index)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(metric, plain_metric)
        torch.testing.assert_close(ours.grad, plain.grad)
    assert 1 < len(graphs) <= 3, f"{len(graphs) - 1} recompilations"


@pytest.mark.parametrize("reduction", ["token", "none"])
def test_compiled_through_autograd(reduction):
    c, heads = linear_case(4)
    for number in range(2):
        torch._dynamo.reset()
        grads = []
        for compiled in (False, True):
            found = both_losses("cpu", c, heads, {"reduction": reduction}, torch.float32)
            run, leaves = list(found)[number]

            def step(run=run):
                return run().loss.sum() * 2

            if compiled:
                step = torch.compile(step, fullgraph=True, backend="aot_eager")
            step().backward()
            grads.append([leaf.grad for leaf in leaves])
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_inputs_are_near_the_truth(dtype):
    """The truth is float64 from the same narrow numbers: what is computed in is float32."""
    for seed in range(6):
        c = random_case(seed, scale=3.0)
        narrow = {side: logits.to(dtype) for side, logits in c.logits.items()}
        x = narrow["student"].clone().requires_grad_()
        y = narrow["student"].double().requires_grad_()
        keywords = {"reduction": "token", "epsilon": 0.1}
        out = c.run(x, teacher=narrow["teacher"], **keywords)
        truth = c.run(y, teacher=narrow["teacher"].double(), **keywords)
        assert out.loss.dtype == out.per_unit.dtype == torch.float32
        torch.testing.assert_close(out.per_unit.double(), truth.per_unit, rtol=1e-4, atol=1e-5)
        out.loss.backward()
        truth.loss.backward()
        assert x.grad.dtype == dtype
        tolerance = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
        error = (x.grad.double() - y.grad).norm() / y.grad.norm()
        assert error < tolerance


def test_no_grad_and_autocast():
    c, heads = linear_case(5)
    with torch.no_grad():
        for run, _ in both_losses("cpu", c, heads, {}, torch.float32):
            assert not run().loss.requires_grad
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            for run, leaves in both_losses("cpu", c, heads, {}, torch.float32):
                out = run()
                out.loss.backward()
                results.append([out.loss, *(leaf.grad for leaf in leaves)])
    for plain, cast in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(plain, cast, rtol=0, atol=0)


def test_second_derivative_is_refused():
    for run, leaves in both_losses("cpu", *linear_case(0), {}):
        with pytest.raises(RuntimeError, match="no second derivative"):
            torch.autograd.grad(run().loss, leaves, create_graph=True)


def test_backward_twice_and_from_per_unit():
    for run, leaves in both_losses("cpu", *linear_case(1), {"reduction": "sum"}):
        out = run()
        first = [g.clone() for g in torch.autograd.grad(out.loss, leaves, retain_graph=True)]
        second = torch.autograd.grad(3 * out.loss, leaves, retain_graph=True)
        third = torch.autograd.grad(out.loss + out.per_unit.sum(), leaves)
        for a, b, c in zip(first, second, third, strict=True):
            torch.testing.assert_close(b, 3 * a)
            torch.testing.assert_close(c, 2 * a)


def test_reduction_none_returns_the_offsets_with_their_gradients():
    c = random_case(2, scale=4.0)
    x, y = (c.logits["student"].clone().requires_grad_() for _ in range(2))
    out = c.run(x, reduction="none", epsilon=0.1)
    assert out.loss is out.per_unit
    weights = torch.rand(len(out.loss), dtype=torch.float64)
    (out.loss * weights).sum().backward()
    expected, _ = c.twin(y, epsilon=0.1)
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-7, atol=1e-10)
    with pytest.raises(ValueError, match="normalizer"):
        c.run(reduction="none", normalizer=2.0)


def test_copies_and_pickles_compute_the_same():
    c = random_case(3)
    loss_fn = TextLoss(c.aligner, epsilon=0.1, straddled="tree")
    tensors = {f"{side}_logits": c.logits[side] for side in SIDES}
    expected = loss_fn(**tensors, index=c.index).per_unit
    for other in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))):
        torch.testing.assert_close(other(**tensors, index=c.index).per_unit, expected)
        assert not other.state_dict()


def rows_of_offsets(index, side):
    """The flat logit rows that each offset reads: from the first source to the last row."""
    rows = getattr(index, f"{side}_text_row")
    ends = getattr(index, f"{side}_source_offsets")
    sources = getattr(index, f"{side}_source_row")
    found = []
    for offset, own in enumerate(getattr(index, f"{side}_own_text_row")):
        read = [*sources[ends[offset] : ends[offset + 1]], *([own] if own >= 0 else [])]
        found.append({int(row) for row in rows[min(read) : max(read) + 1]} if read else set())
    return found


@pytest.mark.parametrize("chunk_bytes", [1, None])
@pytest.mark.parametrize("side", SIDES)
def test_nan_spoils_what_reads_it_only(side, chunk_bytes):
    c = random_case(4, scale=3.0)
    keywords = {"epsilon": 0.3, "chunk_bytes": chunk_bytes}
    clean = c.run(**keywords)
    reads = rows_of_offsets(c.index, side)
    spoiled_once = set()
    for row in range(0, len(c.logits[side]), 2):
        spoiled = torch.tensor([row in rows for rows in reads])
        spoiled_once |= {int(spoiled.sum())}
        logits = {name: z.clone() for name, z in c.logits.items()}
        logits[side][row, row % 3] = torch.nan
        x = logits["student"].requires_grad_()
        out = c.run(x, teacher=logits["teacher"], **keywords)
        assert out.metrics.offsets_spoiled == spoiled.sum()
        expected = clean.per_unit.masked_fill(spoiled, 0.0)
        torch.testing.assert_close(out.per_unit, expected)
        out.loss.backward()
        y = c.logits["student"].clone().requires_grad_()
        (c.run(y, **keywords).per_unit * ~spoiled).sum().backward()
        others = torch.arange(len(x)) != (row if side == "student" else -1)
        torch.testing.assert_close(x.grad[others], y.grad[others])
        assert x.grad.isfinite().all()
        for value in out.metrics:
            assert not value.isinf()
    assert len(spoiled_once) > 2


def test_a_batch_of_nan_adds_nothing():
    c = random_case(5)
    x = torch.full_like(c.logits["student"], torch.nan).requires_grad_()
    out = c.run(x)
    out.loss.backward()
    assert out.loss == 0
    assert not x.grad.any()
    assert out.metrics.offsets_spoiled == len(out.per_unit)
    assert out.metrics.divergence_tree.isnan()


def test_statistics_of_offsets_name_one_kind_each():
    c = random_case(6, scale=4.0)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        original = text_ops.text_loss.forward

        def forward(*tensors, **numbers):
            results = original(*tensors, **numbers)
            found.append(results[2])
            return results

        patch.setattr(text_ops.text_loss, "op", forward)
        c.run()
    (stats,) = found
    kinds = [
        OffsetStat.TREE, OffsetStat.NEXT_BYTE, OffsetStat.ONE_ROW, OffsetStat.LEFT_OUT,
        OffsetStat.SPOILED,
    ]  # fmt: skip
    assert (stats[kinds].sum(0) == 1).all()
    masses = stats[OffsetStat.ENDED :]
    assert (masses >= -1e-12).all()
    assert (masses <= 1 + 1e-12).all()
