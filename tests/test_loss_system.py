"""The losses inside other machinery: devices, compilation, autocast, checkpoints, processes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from simct_align import Aligner, Vocabulary
from simct_align.demo import demo_tokenizers
from simct_align.loss import LinearSimCTLoss, SimCTLoss, ops
from support.index_twin import case, random_pair
from test_loss_linear import linear_case

SCORES = ("mean", "sum", "event", "mean_logit")
KEYWORDS = [{"score": score} for score in SCORES] + [
    {"metrics": "full"},
    {"metrics": "none"},
    {"candidates": "shared"},
    {"min_teacher_mass": 0.5},
    {"divergence": "tvd", "temperature": 2.0, "chunk_bytes": 2_000},
]
#: The arguments in the order in which tests hold them: those with a gradient first.
LOGITS = ("student_logits", "teacher_logits")
LINEAR = ("student_hidden", "student_weight", "teacher_hidden", "teacher_weight")
REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "item", "unique", "equal.default")


class Strict(TorchDispatchMode):
    """Refuses whatever waits for the device, and operators over several devices."""

    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(func)
        assert not any(f"aten.{word}" in name for word in REFUSED), f"{name} waits for the device"
        devices = {x.device for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)} | {
            x for x in tree_iter(kwargs) if isinstance(x, torch.device)
        }
        assert len(devices) <= 1, f"{name} mixes {devices}"
        for index in args[1] if name.startswith(("aten.index.", "aten.index_put")) else ():
            assert index is None or index.dtype != torch.bool, f"{name} indexes with a mask"
        self.seen += 1
        return func(*args, **kwargs)


def without_operators(patch):
    """Let the modules call the Python functions, so that modes see what is inside."""
    for operator in (ops.logits_loss, ops.linear_loss):
        patch.setattr(operator, "op", operator.forward)


def on(device, c):
    """The tensors and the index of a case on a device."""
    index = c.index.to(device)
    logits = c.student.detach().to(device).requires_grad_(), c.teacher.to(device)
    hidden = (
        c.student_hidden.detach().to(device).requires_grad_(),
        c.student_weight.detach().to(device).requires_grad_(),
        c.teacher_hidden.to(device),
        c.teacher_weight.to(device),
    )
    return logits, hidden, index


def named(names, tensors):
    return dict(zip(names, tensors, strict=True))


def both_losses(device, c, keywords):
    """Both losses on a device, ready to run, and the leaves that get gradients."""
    logits, hidden, index = on(device, c)
    from_logits = SimCTLoss(c.pair, **keywords).to(device)
    yield lambda: from_logits(**named(LOGITS, logits), index=index), logits[:1]
    from_hidden = LinearSimCTLoss(c.pair, **keywords).to(device)
    yield lambda: from_hidden(**named(LINEAR, hidden), index=index), hidden[:2]


@pytest.mark.parametrize("keywords", KEYWORDS, ids=str)
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("padded", [False, True])
def test_nothing_waits_for_the_device(keywords, device, padded):
    c = linear_case(3, padded=padded, extra_columns=2)
    for run, _ in both_losses(device, c, keywords):
        with pytest.MonkeyPatch.context() as patch, Strict() as strict:
            without_operators(patch)
            run()
        assert strict.seen > 100


@pytest.mark.parametrize("keywords", KEYWORDS, ids=str)
def test_forward_and_backward_on_meta(keywords):
    c = linear_case(3)
    for run, leaves in both_losses("meta", c, keywords):
        out = run()
        out.loss.backward()
        assert out.per_unit.device.type == "meta"
        assert all(leaf.grad.shape == leaf.shape for leaf in leaves)


FAKE_CUDA = """
import pytest, torch
from torch._subclasses.fake_tensor import FakeTensorMode
from test_loss_linear import linear_case
from test_loss_system import KEYWORDS, both_losses, without_operators
c = linear_case(3, extra_columns=2)
for keywords in KEYWORDS:
    for inside in (False, True):
        with FakeTensorMode(allow_non_fake_inputs=True), pytest.MonkeyPatch.context() as patch:
            if inside:
                without_operators(patch)
            for run, leaves in both_losses("cuda", c, keywords):
                out = run()
                assert out.loss.device.type == "cuda"
                if not inside:
                    # The autograd engine wants a driver; the node itself does not.
                    with torch.no_grad():
                        grads = out.loss.grad_fn.apply(torch.ones_like(out.loss), *[None] * 5)
                    for grad, leaf in zip([g for g in grads if g is not None], leaves, strict=True):
                        assert grad.device.type == "cuda" and grad.shape == leaf.shape
print("ran on CUDA fake tensors")
"""


def test_forward_and_backward_on_cuda_fake_tensors(capsys):
    if torch.version.cuda is None:
        pytest.skip("this torch is no CUDA build: CUDA fake tensors left out")
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
    with capsys.disabled():
        print(f" [{done.stdout.strip()}] ", end="")


@pytest.mark.parametrize("score", SCORES)
def test_operators_pass_opcheck(score):
    c = case(2, rows=2, length=6)
    captured = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ops.logits_loss,
            "op",
            lambda *args, **numbers: (
                captured.append((args, numbers)) or ops.logits_loss.forward(*args, **numbers)
            ),
        )
        # Kept: the operator finds the divergence through its loss.
        loss_fn = SimCTLoss(c.pair, score=score)
        loss_fn(teacher_logits=c.teacher, student_logits=c.student.requires_grad_(), index=c.index)
    torch.library.opcheck(ops.logits_loss.op, *captured[0])


def compiled_step(loss_fn):
    def step(student, teacher, index):
        out = loss_fn(teacher_logits=teacher, student_logits=student * 1.5, index=index)
        return out.loss, out.metrics.divergence_multi

    return step


def real_batches():
    """Batches of other sizes each, with the indices that users have."""
    both = Aligner(*(Vocabulary.from_tokenizer(t) for t in demo_tokenizers()))
    generator = torch.Generator().manual_seed(0)
    for i in range(20):
        text = "1234567 naïve “quote” 🙂\n\n"
        batch = both.align_texts([text[: 9 + (i + j) % 12] * 2 for j in range(2 + i % 7)])
        logits = [
            torch.randn(len(side.values), len(vocabulary), generator=generator)
            for side, vocabulary in ((batch.student, both.student), (batch.teacher, both.teacher))
        ]
        yield both, *logits, batch.index().to("cpu")


def random_batches():
    pair = random_pair(1)
    for i in range(20):
        c = case(100 + i, pair=pair, rows=2 + i % 7, length=9 + i, dtype=torch.float32)
        yield pair, c.student, c.teacher, c.index


@pytest.mark.parametrize("batches", [random_batches, real_batches])
def test_compiled_whole_with_few_recompilations(batches):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    step = compiled = None
    for pair, logits, teacher, index in batches():
        if step is None:
            step = compiled_step(SimCTLoss(pair))
            compiled = torch.compile(step, fullgraph=True, backend=backend)
        student, plain = (logits.clone().requires_grad_() for _ in range(2))
        loss, _ = compiled(student, teacher, index)
        expected, _ = step(plain, teacher, index)
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(student.grad, plain.grad)
    assert 1 < len(graphs) <= 3, f"{len(graphs) - 1} recompilations"


@pytest.mark.parametrize("reduction", ["unit", "none"])
def test_compiled_through_autograd(reduction):
    c = linear_case(4, dtype=torch.float32)
    c.student, c.teacher = c.student.float(), c.teacher.float()
    for run_case in ("logits", "linear"):
        torch._dynamo.reset()
        loss_type = SimCTLoss if run_case == "logits" else LinearSimCTLoss
        loss_fn = loss_type(c.pair, reduction=reduction)
        grads = []
        for compiled in (False, True):
            logits, hidden, index = on("cpu", c)
            data, leaves = (logits, logits[:1]) if run_case == "logits" else (hidden, hidden[:2])
            leaves = [x.detach().requires_grad_() for x in leaves]
            names = LOGITS if run_case == "logits" else LINEAR

            def step(*leaves, data=data, index=index, loss_fn=loss_fn, names=names):
                tensors = (*leaves, *data[len(leaves) :])
                return loss_fn(**named(names, tensors), index=index).loss.sum() * 2

            run = torch.compile(step, fullgraph=True, backend="aot_eager") if compiled else step
            run(*leaves).backward()
            grads.append([leaf.grad for leaf in leaves])
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b)


def test_no_grad_and_autocast():
    c = linear_case(5, dtype=torch.float32)
    c.student, c.teacher = c.student.float(), c.teacher.float()
    with torch.no_grad():
        for run, _ in both_losses("cpu", c, {}):
            assert not run().loss.requires_grad
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            for run, leaves in both_losses("cpu", c, {}):
                out = run()
                out.loss.backward()
                results.append([out.loss, *(leaf.grad for leaf in leaves)])
    for plain, cast in zip(results[:2], results[2:], strict=True):
        torch.testing.assert_close(plain, cast, rtol=0, atol=0)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    from torch.utils.checkpoint import checkpoint

    c = case(6)
    loss_fn = SimCTLoss(c.pair)
    grads = []
    for checkpointed in (False, True):
        student = c.student.clone().requires_grad_()

        def run(x):
            return loss_fn(teacher_logits=c.teacher, student_logits=x.tanh(), index=c.index).loss

        loss = checkpoint(run, student, use_reentrant=reentrant) if checkpointed else run(student)
        loss.backward()
        grads.append(student.grad)
    torch.testing.assert_close(*grads)


def _model(pair):
    torch.manual_seed(0)
    return torch.nn.Linear(6, len(pair.student.kinds)).double()


def _gradients(pair, parts, wrap, total, scale):
    model = _model(pair)
    wrapped = wrap(model)
    loss_fn = SimCTLoss(pair, min_teacher_mass=0.3)
    for hidden, c in parts:
        (
            scale
            * loss_fn(
                teacher_logits=c.teacher,
                student_logits=wrapped(hidden),
                index=c.index,
                normalizer=total,
            ).loss
        ).backward()
    return [p.grad for p in model.parameters()]


def _parts(pair):
    torch.manual_seed(1)
    cases = [case(20 + rank, pair=pair, rows=2 + rank) for rank in range(2)]
    hidden = [torch.randn(c.student.shape[0], 6, dtype=torch.float64) for c in cases]
    return list(zip(hidden, cases, strict=True))


def _rank(rank, init, path):
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=2)
    torch.set_num_threads(1)
    pair = random_pair(2)
    part = _parts(pair)[rank]
    total = torch.tensor(float(part[1].index.normalizer("unit", "realized")))
    dist.all_reduce(total)
    # DDP averages over ranks; the normalizer already is the union's.
    grads = _gradients(pair, [part], DistributedDataParallel, total, scale=2)
    if rank == 0:
        torch.save(grads, path)
    dist.barrier()  # a rank that leaves early takes the other's connection with it
    dist.destroy_process_group()
    # All is written. torch's threads can abort an interpreter that finalizes around them.
    os._exit(0)


def test_two_processes_equal_one():
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo: the two-process test is left out")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gradients.pt"
        init = f"file://{folder}/init"
        torch.multiprocessing.spawn(_rank, args=(init, str(path)), nprocs=2)
        grads = torch.load(path)
    pair = random_pair(2)
    parts = _parts(pair)
    total = sum(c.index.normalizer("unit", "realized") for _, c in parts)
    expected = _gradients(pair, parts, lambda m: m, total, scale=1)
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b)
