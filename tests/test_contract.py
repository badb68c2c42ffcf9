"""The contract of the losses: the same call, output, reductions and refusals for every one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from simct_align import Aligner, Vocabulary
from simct_align import index as index_module
from simct_align.index import Section
from simct_align.loss import (
    LinearSimCTLoss,
    LossOutput,
    SimCTLoss,
    TextLoss,
    TextLossOutput,
    TorchBackend,
    register_backend,
)
from simct_align.loss.backends import backend_names
from simct_align.loss.baselines import (
    ALMLoss,
    Baseline,
    BPMLoss,
    ESCDLoss,
    GOLDLoss,
    StrictLoss,
    ULDLoss,
)
from simct_align.loss.handles import Handles

TEACHER = Vocabulary.from_token_bytes([b"12", b"+", b"13"])
STUDENT = Vocabulary.from_token_bytes([b"1", b"2", b"3", b"+"])
TEACHER_IDS = [[1, 0, 1, 2], [1, 0]]
STUDENT_IDS = [[3, 0, 1, 3, 0, 2], [3, 0, 1]]
LOSSES = {
    "simct": lambda aligner, **keywords: SimCTLoss(aligner, **keywords),
    "shared": lambda aligner, **keywords: SimCTLoss(aligner, candidates="shared", **keywords),
    "on_path": lambda aligner, **keywords: SimCTLoss(aligner, candidates="on_path", **keywords),
    "linear": lambda aligner, **keywords: Linear(aligner, **keywords),
    "text": lambda aligner, **keywords: TextLoss(aligner, **keywords),
    "uld": lambda aligner, **keywords: ULDLoss(aligner, **keywords),
    "alm": lambda aligner, **keywords: ALMLoss(aligner, **keywords),
    "gold": lambda aligner, **keywords: GOLDLoss(aligner, **keywords),
    "bpm": lambda aligner, **keywords: BPMLoss(aligner, **keywords),
    "strict": lambda aligner, **keywords: StrictLoss(aligner, **keywords),
    "escd": lambda aligner, **keywords: ESCDLoss(aligner, **keywords),
}


class Linear(LinearSimCTLoss):
    """The loss from hidden states, called with logits: these times the unit matrix."""

    def forward(self, *positional, teacher_logits, student_logits, index, normalizer=None):
        heads = {}
        for side, logits in (("teacher", teacher_logits), ("student", student_logits)):
            unit = torch.eye(logits.shape[-1], dtype=logits.dtype, device=logits.device)
            heads |= {f"{side}_hidden": logits, f"{side}_weight": unit}
        return super().forward(*positional, **heads, index=index, normalizer=normalizer)


@pytest.fixture(params=LOSSES)
def make(request):
    return LOSSES[request.param]


@pytest.fixture
def aligner():
    return Aligner(TEACHER, STUDENT)


@pytest.fixture
def batch(aligner):
    return aligner.align_batch(TEACHER_IDS, STUDENT_IDS)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return {
        f"{side}_logits": torch.randn(sum(map(len, ids)), width, generator=generator).double()
        for side, ids, width in (("teacher", TEACHER_IDS, 3), ("student", STUDENT_IDS, 4))
    }


def test_index_and_batch_give_the_same(make, aligner, batch, logits):
    loss_fn = make(aligner)
    index = batch.index(**loss_fn.index_options)
    outs = [loss_fn(**logits, index=each) for each in (batch, index, index.to("cpu"))]
    is_text = isinstance(loss_fn, TextLoss)
    assert all(isinstance(out, TextLossOutput if is_text else LossOutput) for out in outs)
    for out in outs:
        torch.testing.assert_close(out.per_unit, outs[0].per_unit, rtol=0, atol=0)
        if is_text:
            assert out.per_unit.shape == (index.n_text_offsets,)
            assert out.metrics.units_without_prefix == index.text_units_without_prefix
            continue
        assert out.per_unit.shape == (len(index),)
        assert out.metrics.units_shared == index.n_shared
        assert out.metrics.dropped_no_prefix == index.dropped_no_prefix


def test_reductions(make, aligner, batch, logits):
    loss_fn = make(aligner, reduction="token")
    per_unit = loss_fn(**logits, index=batch).per_unit
    index = batch.index(**loss_fn.index_options)
    is_text = isinstance(loss_fn, TextLoss)
    uses = "text" if is_text else "realized" if loss_fn.uses_multi else "shared"
    expected = {
        "token": per_unit.sum() / index.normalizer("token", uses),
        "sum": per_unit.sum(),
        "none": per_unit,
    }
    for reduction in ("unit", "mean"):
        if is_text:
            with pytest.raises(ValueError, match="reduction: text events have no units"):
                make(aligner, reduction=reduction)
        else:
            expected[reduction] = per_unit.sum() / index.normalizer("unit", uses)
    for reduction, value in expected.items():
        loss_fn = make(aligner, reduction=reduction)
        torch.testing.assert_close(loss_fn(**logits, index=index).loss, value)
        if reduction in ("sum", "none"):
            with pytest.raises(ValueError, match="normalizer"):
                loss_fn(**logits, index=index, normalizer=3.0)
        else:
            loss = loss_fn(**logits, index=index, normalizer=torch.tensor(4.0)).loss
            torch.testing.assert_close(loss, per_unit.sum() / 4)
    with pytest.raises(ValueError, match="reduction"):
        make(aligner, reduction="average")


def test_positional_tensors_are_a_type_error(make, aligner, batch, logits):
    loss_fn = make(aligner)
    with pytest.raises(TypeError, match="keyword"):
        loss_fn(*logits.values(), batch)
    with pytest.raises(TypeError, match="takes keyword arguments only, got 1 positional"):
        loss_fn(batch, **logits, index=batch)


def test_swapped_logits_are_refused(make, aligner, batch, logits):
    """By their widths; by their rows where both vocabularies are padded to one width."""
    loss_fn = make(aligner)
    teacher, student = logits["teacher_logits"], logits["student_logits"]
    with pytest.raises(
        ValueError, match=r"student_(logits|weight): expected at least 4 vocabulary entries.*got 3"
    ):
        loss_fn(teacher_logits=student, student_logits=teacher, index=batch)
    padded = [torch.nn.functional.pad(z, (0, 8 - z.shape[1])) for z in (teacher, student)]
    with pytest.raises(ValueError, match=r"student_(logits|hidden) has 6 rows .* reads"):
        loss_fn(teacher_logits=padded[1], student_logits=padded[0], index=batch)
    dense = aligner.align_batch(
        *([row[:2] for row in ids] for ids in (TEACHER_IDS, STUDENT_IDS))
    ).index(teacher_stride=3, student_stride=4, **loss_fn.index_options)
    teacher, student = torch.zeros(2, 3, 8), torch.zeros(2, 4, 8)
    loss_fn(teacher_logits=teacher, student_logits=student, index=dense)
    with pytest.raises(ValueError, match=r"teacher_(logits|hidden) has rows of 4 positions"):
        loss_fn(teacher_logits=student, student_logits=teacher, index=dense)


def test_another_pair_is_refused(make, batch, logits):
    mirrored = Aligner(STUDENT, TEACHER)
    stops = Aligner(
        Vocabulary.from_token_bytes([b"12", b"+", b"13", b""], special=[3]),
        Vocabulary.from_token_bytes([b"1", b"2", b"3", b"+", b""], special=[4]),
    )
    for other in (mirrored, stops):
        loss_fn = make(other)
        wide = {name: torch.nn.functional.pad(z, (0, 3)) for name, z in logits.items()}
        for index in (batch, batch.index(**loss_fn.index_options)):
            with pytest.raises(ValueError, match="got one of another pair"):
                loss_fn(**wide, index=index)


def test_what_is_no_index_and_no_logits_is_refused(make, aligner, batch, logits):
    loss_fn = make(aligner)
    with pytest.raises(TypeError, match=r"index: expected an AlignedIndex or an AlignedBatch"):
        loss_fn(**logits, index=batch.index().packed)
    with pytest.raises(ValueError, match=r"teacher_(logits|hidden): expected floating"):
        loss_fn(**logits | {"teacher_logits": logits["teacher_logits"].long()}, index=batch)
    with pytest.raises(ValueError, match=r"student_(logits|hidden): expected floating"):
        loss_fn(**logits | {"student_logits": logits["student_logits"][0]}, index=batch)
    with pytest.raises(ValueError, match=r"student_(logits|hidden) is on meta"):
        loss_fn(**logits | {"student_logits": logits["student_logits"].to("meta")}, index=batch)
    with pytest.raises(ValueError, match="index is on meta"):
        loss_fn(**logits, index=batch.index(**loss_fn.index_options).to("meta"))


@pytest.mark.parametrize(
    ("name", "option"),
    [("on_path", "max_path=8"), ("alm", "first_ids=True"), ("bpm", "first_ids=True")],
)
def test_an_index_without_what_is_read_says_how_to_make_it(name, option, aligner, batch, logits):
    with pytest.raises(ValueError, match=option):
        LOSSES[name](aligner)(**logits, index=batch.index())


def test_sections_in_any_order(monkeypatch, make, aligner, batch, logits):
    """Nothing reads the packed buffer by position: a permuted table and buffer give the same."""
    loss_fn = make(aligner)
    leaf = logits["student_logits"].requires_grad_()
    index = batch.index(max_path=8, first_ids=True, text_events=True)
    expected = loss_fn(**logits, index=index)
    (expected_grad,) = torch.autograd.grad(expected.loss, leaf)
    parts = {name: index.packed[place] for name, place in index.sections().items()}
    order = torch.randperm(
        len(index_module.SECTIONS), generator=torch.Generator().manual_seed(1)
    ).tolist()
    table = tuple(index_module.SECTIONS[n] for n in order)
    assert all(isinstance(section, Section) for section in table)
    monkeypatch.setattr(index_module, "SECTIONS", table)
    packed = torch.from_numpy(index.packed).clone().numpy()
    start = 0
    for section in table:
        part = parts[section.name]
        packed[start : start + len(part)] = part
        start += len(part)
    permuted = replace(index, packed=packed, host=packed)
    out = loss_fn(**logits, index=permuted)
    torch.testing.assert_close(out.per_unit, expected.per_unit, rtol=0, atol=0)
    (grad,) = torch.autograd.grad(out.loss, leaf)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=0)


# What strangers add


@dataclass(frozen=True)
class SquaredHellinger:
    """`sum (sqrt q_S - sqrt q_T)^2 / 2`."""

    def __call__(self, *, log_teacher, log_student, grad):
        student, teacher = (log_student / 2).exp(), (log_teacher / 2).exp()
        overlap = (student * teacher).sum(1)
        grad.copy_((student.square() * overlap.unsqueeze(1) - student * teacher) / 2)
        return 1 - overlap


class LogRatioLoss(Baseline):
    """Half the squared difference of the realized units' log-probabilities."""

    reads_first_ids = True

    def per_unit(self, *, teacher, student):
        return (teacher.realized() - student.realized()).square() / 2


class Counting(TorchBackend):
    """The reference, and how many computations it began."""

    name = "counting"

    def __init__(self):
        self.started = 0

    def start(self, problem):
        self.started += 1
        return super().start(problem)


class Refusing(Counting):
    name = "refusing"

    def refuses(self, problem):
        return f"it refuses {problem.n_units} units"


def gradcheck(loss_fn, batch, logits):
    student = logits["student_logits"].requires_grad_()
    torch.autograd.gradcheck(
        lambda z: (
            loss_fn(teacher_logits=logits["teacher_logits"], student_logits=z, index=batch).loss
        ),
        (student,),
    )


def test_a_divergence_of_ones_own(aligner, batch, logits):
    gradcheck(SimCTLoss(aligner, divergence=SquaredHellinger()), batch, logits)


def test_a_baseline_of_ones_own(aligner, batch, logits):
    gradcheck(LogRatioLoss(aligner), batch, logits)


def test_a_back_end_of_ones_own(aligner, batch, logits, caplog):
    expected = SimCTLoss(aligner)(**logits, index=batch).loss
    counting, refusing = Counting(), Refusing()
    register_backend(counting)
    assert "counting" in backend_names()
    for backend in ("counting", counting):
        out = SimCTLoss(aligner, backend=backend)(**logits, index=batch)
        torch.testing.assert_close(out.loss, expected, rtol=0, atol=0)
    assert counting.started == 2
    for _ in range(2):
        out = SimCTLoss(aligner, backend=refusing)(**logits, index=batch)
        torch.testing.assert_close(out.loss, expected, rtol=0, atol=0)
    assert refusing.started == 0
    assert [record.message for record in caplog.records] == [
        "backend='refusing': computing with the back end 'torch' instead: it refuses 4 units"
    ]
    SimCTLoss(aligner, candidates="on_path", backend=counting)(**logits, index=batch)
    assert counting.started == 2
    assert "on-path continuations" in caplog.records[-1].message


def test_back_ends_that_are_none(aligner):
    with pytest.raises(ValueError, match=r"backend: expected one of .*'torch'"):
        SimCTLoss(aligner, backend="fast")
    with pytest.raises(TypeError, match="backend: expected a name or a Backend, got object"):
        SimCTLoss(aligner, backend=object())
    with pytest.raises(ValueError, match="'torch' is reserved"):
        register_backend(TorchBackend())
    with pytest.raises(TypeError, match="expected a Backend"):
        register_backend("torch")


def test_handles_keep_no_object_alive_and_tell_equal_names_apart():
    class Named:
        def __init__(self, value):
            self.value = value

        def __repr__(self):
            return "Named()"

        def __eq__(self, other):
            return self.value == other.value

        __hash__ = None

    handles = Handles("thing")
    one, two = handles.handle(Named(1)), handles.handle(Named(2))
    assert one.key != two.key
    assert handles.handle(Named(1)) is one
    assert handles[two.key].value.value == 2
    key = one.key
    del one
    with pytest.raises(RuntimeError, match=r"the thing Named\(\) no longer exists"):
        handles[key]


def test_a_second_backward_pass_outlives_its_loss(aligner, batch, logits):
    student = logits["student_logits"].requires_grad_()
    loss = SimCTLoss(aligner, divergence=SquaredHellinger())(**logits, index=batch).loss
    grads = [torch.autograd.grad(loss, student, retain_graph=True)[0] for _ in range(2)]
    torch.testing.assert_close(*grads)
