"""The losses as `torch.library` operators: schema, fake, autograd, and nothing else.

An operator is opaque to `torch.compile`, whose graph therefore stays whole, and its shapes follow
from its integer arguments, so that a batch of another size needs no new graph once those are
symbolic. The forward pass computes the gradient; the backward pass only scales it. A second
backward pass through the same graph, or one that starts at `per_unit`, computes it anew from the
inputs, with the incoming derivatives as weights.

Tensors are positional arguments and numbers are keyword-only ones. Both are declared once, as the
fields of the classes below, and travel in objects of these classes.
"""

from __future__ import annotations

import functools
import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from .backends import TorchBackend
from .backends.protocol import Head, Logits, Problem, Settings, SideProblem
from .backends.torch.on_path import Continuations, LeafTokens, OnPathEngine
from .columns import SideColumns
from .engine import Engine
from .handles import Handles
from .layout import IndexSizes, view_index
from .metrics import UnitStat, count_special

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ..divergence import Divergence
    from .backends.protocol import Backend, StudentSide
    from .engine import Result
    from .layout import IndexView

_LOG = logging.getLogger(__name__)

DIVERGENCES: Handles[Divergence] = Handles("divergence")
BACKENDS: Handles[Backend] = Handles("back end")


class LogitsTensors(NamedTuple):
    """Ready-made logits."""

    teacher_logits: Tensor
    student_logits: Tensor


class LinearTensors(NamedTuple):
    """Hidden states and output embeddings."""

    teacher_hidden: Tensor
    teacher_weight: Tensor
    teacher_bias: Tensor | None
    student_hidden: Tensor
    student_weight: Tensor
    student_bias: Tensor | None


class PairTensors(NamedTuple):
    """The index, and the pair's columns.

    Attributes:
        packed: The index.
        weight: `[]` or `[units]`, what every unit's divergence is multiplied by.
        column_of_shared: See `PairColumns`, also for all others.
        host: The index on the host, where continuations are compared; else empty.
    """

    packed: Tensor
    weight: Tensor
    column_of_shared: Tensor
    teacher_ids: Tensor
    teacher_column_of_id: Tensor
    teacher_unused: Tensor
    student_ids: Tensor
    student_column_of_id: Tensor
    student_unused: Tensor
    host: Tensor
    teacher_spellings: Tensor
    student_spellings: Tensor
    teacher_last_token: Tensor
    teacher_one_sided_token: Tensor
    student_last_token: Tensor
    student_one_sided_token: Tensor


class Numbers(NamedTuple):
    """The numbers of both operators; the names of the first twelve are those of `IndexSizes`."""

    n_shared: int
    n_multi: int
    n_teacher_steps: int
    n_student_steps: int
    n_teacher_entries: int
    n_student_entries: int
    n_text_offsets: int
    n_teacher_text_rows: int
    n_student_text_rows: int
    n_teacher_sources: int
    n_student_sources: int
    groups: str
    stop_column: int
    teacher_needed: int
    teacher_extra: int
    student_needed: int
    student_extra: int
    score: str
    divergence: str
    backend: str
    multi: bool
    on_path: bool
    mass_multi: bool
    mass_shared: bool
    gradient: bool
    chunk_bytes: int
    temperature: float
    min_teacher_mass: float
    gradient_scale: float

    @property
    def sizes(self) -> IndexSizes:
        """The index's sizes."""
        return IndexSizes(**{name: getattr(self, name) for name in IndexSizes._fields})

    @property
    def n_units(self) -> int:
        """How many units take part."""
        return self.n_shared + (self.n_multi if self.multi else 0)


class LinearNumbers(NamedTuple):
    """What only the operator from hidden states takes; a soft-cap of 0 is none."""

    teacher_softcap: float
    teacher_scale: float
    student_softcap: float
    student_scale: float
    weight_gradient: bool
    bias_gradient: bool


class OperatorOutput(NamedTuple):
    """What both operators return, before the gradients."""

    loss: Tensor
    per_unit: Tensor
    stats: Tensor


def compute_dtype(student: Tensor) -> torch.dtype:
    """Return float64 for float64 inputs and float32 for all others.

    Args:
        student: A student input.
    """
    return torch.float64 if student.dtype == torch.float64 else torch.float32


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Keep autocast, which still acts inside an operator, from rounding what is computed here."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def _problem(
    teacher: Logits | Head,
    student: Logits | Head,
    index: IndexView,
    pair: PairTensors,
    numbers: Numbers,
) -> Problem:
    teacher_columns = SideColumns(
        ids=pair.teacher_ids,
        n_extra=numbers.teacher_extra,
        column_of_id=pair.teacher_column_of_id,
        unused=pair.teacher_unused,
        needed=numbers.teacher_needed,
    )
    student_columns = SideColumns(
        ids=pair.student_ids,
        n_extra=numbers.student_extra,
        column_of_id=pair.student_column_of_id,
        unused=pair.student_unused,
        needed=numbers.student_needed,
    )
    student_input = student.logits if isinstance(student, Logits) else student.hidden
    settings = Settings(
        score=numbers.score,
        divergence=DIVERGENCES[numbers.divergence].value,
        multi=numbers.multi,
        min_teacher_mass=numbers.min_teacher_mass,
        mass_multi=numbers.mass_multi,
        mass_shared=numbers.mass_shared,
        on_path=numbers.on_path,
        temperature=numbers.temperature,
        chunk_bytes=numbers.chunk_bytes,
        gradient=numbers.gradient,
        dtype=compute_dtype(student_input),
    )
    return Problem(
        teacher=SideProblem(teacher, teacher_columns, index.teacher),
        student=SideProblem(student, student_columns, index.student),
        n_shared=index.n_shared,
        n_multi=index.n_multi,
        realized_column=pair.column_of_shared[index.realized_column],
        stop_column=numbers.stop_column,
        settings=settings,
    )


def _continuations(pair: PairTensors, numbers: Numbers) -> Continuations:
    return Continuations(
        host=pair.host,
        sizes=numbers.sizes,
        spellings={"teacher": pair.teacher_spellings, "student": pair.student_spellings},
        leaves={
            "teacher": LeafTokens(pair.teacher_last_token, pair.teacher_one_sided_token),
            "student": LeafTokens(pair.student_last_token, pair.student_one_sided_token),
        },
        column_of_shared=pair.column_of_shared,
    )


def _compute(
    teacher: Logits | Head, student: Logits | Head, pair: PairTensors, numbers: Numbers
) -> tuple[OperatorOutput, list[Tensor]]:
    with torch.no_grad(), _without_autocast(pair.packed.device.type):
        index = view_index(pair.packed, numbers.sizes)
        problem = _problem(teacher, student, index, pair, numbers)
        weight = pair.weight.to(problem.settings.dtype)
        result, side = _run(problem, pair, numbers, weight * numbers.gradient_scale)
        count_special(result.stats, index.kind)
        loss = (result.per_unit * weight).sum()
        return OperatorOutput(loss, result.per_unit, result.stats), side.gradients()


def _run(
    problem: Problem, pair: PairTensors, numbers: Numbers, weight: Tensor
) -> tuple[Result, StudentSide[Any]]:
    """Run the engine on a back end, and on the reference what that refuses."""
    backend: Backend = BACKENDS[numbers.backend].value
    if numbers.on_path:
        if backend.name != TorchBackend.name:
            _log_fallback(backend.name, "on-path continuations are PyTorch operations")
        on_path = OnPathEngine(problem, _continuations(pair, numbers), weight)
        return on_path.run(), on_path.computation.student
    if (reason := backend.refuses(problem)) is not None:
        _log_fallback(backend.name, reason)
        backend = TorchBackend()
    computation = backend.start(problem)
    return Engine(problem, computation, weight).run(), computation.student


@functools.cache
def _log_fallback(name: str, reason: str) -> None:
    """Say once that the reference computes a loss."""
    _LOG.warning("backend=%r computes with torch: %s", name, reason)


def _compute_logits(
    inputs: LogitsTensors, pair: PairTensors, numbers: Numbers, _: None
) -> tuple[Tensor, ...]:
    teacher, student = Logits(inputs.teacher_logits), Logits(inputs.student_logits)
    output, gradients = _compute(teacher, student, pair, numbers)
    return (*output, *(gradients or [inputs.student_logits.new_empty(0)]))


def _compute_linear(
    inputs: LinearTensors, pair: PairTensors, numbers: Numbers, linear: LinearNumbers
) -> tuple[Tensor, ...]:
    teacher = Head(
        hidden=inputs.teacher_hidden,
        weight=inputs.teacher_weight,
        bias=inputs.teacher_bias,
        softcap=linear.teacher_softcap,
        scale=linear.teacher_scale,
    )
    student = Head(
        hidden=inputs.student_hidden,
        weight=inputs.student_weight,
        bias=inputs.student_bias,
        softcap=linear.student_softcap,
        scale=linear.student_scale,
        weight_gradient=linear.weight_gradient,
        bias_gradient=linear.bias_gradient,
    )
    output, gradients = _compute(teacher, student, pair, numbers)
    return (*output, *gradients)


_SYMBOLIC = {name for name in IndexSizes._fields if name != "groups"}


def _schema(tensors: list[type], numbers: list[type], n_results: int) -> str:
    """Return an operator's schema, made of the fields of its argument classes."""
    arguments = [
        f"Tensor{'?' if hint != Tensor else ''} {name}"
        for kind in tensors
        for name, hint in get_type_hints(kind).items()
    ]
    keywords = [
        f"{'SymInt' if name in _SYMBOLIC else hint.__name__} {name}"
        for kind in numbers
        for name, hint in get_type_hints(kind).items()
    ]
    results = ", ".join(["Tensor"] * n_results)
    return f"({', '.join(arguments)}, *, {', '.join(keywords)}) -> ({results})"


class _Operator:
    """One of the operators.

    Args:
        name: Its name.
        inputs: The class of its input tensors.
        extra: The class of the numbers beside `Numbers`, None without any.
        compute: What it computes.
        student: The input whose device and dtype the results have.
        differentiable: The inputs that get a gradient, in the order of the results; each with the
            number, None without one, that says whether it is wanted.
    """

    def __init__(
        self,
        name: str,
        inputs: type[Any],
        extra: type[Any] | None,
        compute: Any,
        student: str,
        differentiable: dict[str, str | None],
    ) -> None:
        self._inputs, self._extra, self._compute = inputs, extra, compute
        self._student, self._differentiable = student, differentiable
        self._names = (*inputs._fields, *PairTensors._fields)
        n_results = len(OperatorOutput._fields) + len(differentiable)
        numbers: list[type] = [Numbers, *([] if extra is None else [extra])]
        self.op = torch.library.custom_op(
            f"simct_align::{name}",
            self.forward,
            mutates_args=(),
            schema=_schema([inputs, PairTensors], numbers, n_results),
        )
        self.op.register_fake(self._fake)
        self.op.register_autograd(self._backward, setup_context=self._setup_context)

    def __call__(
        self, inputs: Any, pair: PairTensors, numbers: Numbers, extra: Any = None
    ) -> OperatorOutput:
        """Run the operator."""
        keywords = numbers._asdict() | ({} if extra is None else extra._asdict())
        results = self.op(*inputs, *pair, **keywords)
        return OperatorOutput(*results[: len(OperatorOutput._fields)])

    def _read(self, tensors: tuple[Any, ...], numbers: dict[str, Any]) -> tuple[Any, ...]:
        """Return the arguments in their classes, by their names."""
        by_name = dict(zip(self._names, tensors, strict=True)) | numbers
        kinds = (self._inputs, PairTensors, Numbers, self._extra)
        return tuple(
            None if kind is None else kind(**{name: by_name[name] for name in kind._fields})
            for kind in kinds
        )

    def forward(self, *tensors: Any, **numbers: Any) -> tuple[Tensor, ...]:
        """Compute what the operator returns, without being one."""
        results: tuple[Tensor, ...] = self._compute(*self._read(tensors, numbers))
        return results

    def _fake(self, *tensors: Any, **numbers: Any) -> tuple[Tensor, ...]:
        inputs, _, of_loss, extra = self._read(tensors, numbers)
        student = getattr(inputs, self._student)
        dtype, units = compute_dtype(student), of_loss.n_units

        def gradient(name: str, wanted: str | None) -> Tensor:
            tensor = getattr(inputs, name)
            skip = tensor is None or (wanted is not None and not getattr(extra, wanted))
            if skip or not of_loss.gradient:
                return torch.empty(0, dtype=student.dtype, device=student.device)
            # Contiguous, whatever the strides of the input are.
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

        return (
            student.new_empty((), dtype=dtype),
            student.new_empty(units, dtype=dtype),
            student.new_empty((len(UnitStat), units), dtype=dtype),
            *(gradient(name, wanted) for name, wanted in self._differentiable.items()),
        )

    def _setup_context(
        self, ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any
    ) -> None:
        n_outputs = len(OperatorOutput._fields)
        result, gradients = OperatorOutput(*output[:n_outputs]), output[n_outputs:]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(result.stats, *gradients)
        ctx.save_for_backward(*inputs)
        ctx.numbers = keyword_only_inputs
        # A second backward pass may outlive the loss that made the handles.
        numbers = Numbers(**{name: keyword_only_inputs[name] for name in Numbers._fields})
        ctx.handles = (DIVERGENCES[numbers.divergence], BACKENDS[numbers.backend])
        # Not saved as tensors: they are handed on in the backward pass, which may happen once.
        ctx.gradients = gradients if numbers.gradient else None

    def _backward(
        self, ctx: Any, d_loss: Tensor | None, d_per_unit: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the SimCT losses have no second derivative: call backward without create_graph"
            )
        gradients, ctx.gradients = ctx.gradients, None
        if d_loss is None and d_per_unit is None:
            return (None,) * len(self._names)
        if gradients is not None and d_per_unit is None:
            assert d_loss is not None
            factor = d_loss / ctx.numbers["gradient_scale"]
            gradients = [gradient.mul_(factor) for gradient in gradients]
        else:
            gradients = self._again(ctx, d_loss, d_per_unit)
        by_name = dict(zip(self._differentiable, gradients, strict=True))
        needed = zip(self._names, ctx.needs_input_grad[: len(self._names)], strict=True)
        return tuple(by_name.get(name) if wanted else None for name, wanted in needed)

    def _again(
        self, ctx: Any, d_loss: Tensor | None, d_per_unit: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Compute the gradients from the inputs, with the incoming derivatives as weights."""
        tensors = dict(zip(self._names, ctx.saved_tensors, strict=True))
        weight = tensors["weight"]
        weight = torch.zeros_like(weight) if d_loss is None else weight * d_loss
        tensors["weight"] = weight if d_per_unit is None else weight + d_per_unit
        numbers = ctx.numbers | {"gradient": True, "gradient_scale": 1.0}
        results: tuple[Tensor, ...] = self.op(*tensors.values(), **numbers)
        return results[len(OperatorOutput._fields) :]


logits_loss = _Operator(
    "logits_loss",
    inputs=LogitsTensors,
    extra=None,
    compute=_compute_logits,
    student="student_logits",
    differentiable={"student_logits": None},
)
linear_loss = _Operator(
    "linear_loss",
    inputs=LinearTensors,
    extra=LinearNumbers,
    compute=_compute_linear,
    student="student_hidden",
    differentiable={
        "student_hidden": None,
        "student_weight": "weight_gradient",
        "student_bias": "bias_gradient",
    },
)
