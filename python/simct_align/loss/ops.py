"""The loss as `torch.library` operators: tensors and numbers in, tensors out, nothing in between.

An operator is opaque to `torch.compile`, whose graph therefore stays whole, and its shapes follow
from its integer arguments, so that a batch of another size needs no new graph once those are
symbolic. The forward pass computes the gradient; the backward pass only scales it. A second
backward pass through the same graph, or one that starts at ``per_unit``, computes it anew from the
inputs, with the incoming derivatives as weights.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, get_type_hints

import torch

from .engine import N_STATS, Engine, Options, Side
from .index_view import view_index
from .linear_rows import LinearRows, StudentLinearRows
from .on_path import OnPathEngine, reordered, wanted_of_prefixes
from .plan import SIDES, make_plan
from .realized import SCORES
from .rows import LogitsRows, StudentLogitsRows, Workspace
from .tables import SideTable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from ..divergence import Divergence
    from .rows import StudentRows

_divergences: list[Divergence] = []


def divergence_handle(divergence: Divergence) -> int:
    """Return the number by which the operators know a divergence; equal objects share one.

    Args:
        divergence: the object.

    Returns:
        A number that is valid in this process.
    """
    if divergence not in _divergences:
        _divergences.append(divergence)
    return _divergences.index(divergence)


class Scalars(NamedTuple):
    """The numbers that both operators take, in the order of their schema."""

    n_shared: int
    n_multi: int
    n_teacher_steps: int
    n_student_steps: int
    n_teacher_entries: int
    n_student_entries: int
    stop_column: int
    teacher_needed: int
    student_needed: int
    teacher_extra: int
    student_extra: int
    score: int
    divergence: int
    multi: bool
    on_path: bool
    coverage_multi: bool
    coverage_shared: bool
    gradient: bool
    chunk_bytes: int
    temperature: float
    min_teacher_mass: float
    gradient_scale: float


_TENSORS = (
    "Tensor packed, Tensor weight, Tensor column_of_shared, "
    "Tensor teacher_ids, Tensor teacher_column_of_id, Tensor teacher_unused, "
    "Tensor student_ids, Tensor student_column_of_id, Tensor student_unused, "
    # Of continuations, all empty without: the index and the tables of spellings on the host, and
    # the leaves on the device.
    "Tensor host, Tensor teacher_spellings, Tensor student_spellings, "
    "Tensor teacher_leaves, Tensor student_leaves, "
)
_N_TENSORS = 14
_SYMBOLIC = {
    "n_shared",
    "n_multi",
    "n_teacher_steps",
    "n_student_steps",
    "n_teacher_entries",
    "n_student_entries",
}
_SCALARS = ", ".join(
    f"{'SymInt' if name in _SYMBOLIC else kind.__name__} {name}"
    for name, kind in get_type_hints(Scalars).items()
)


def compute_dtype(student: Tensor) -> torch.dtype:
    """Return float64 for float64 inputs and float32 for all others.

    Args:
        student: a student input.

    Returns:
        What the loss computes in.
    """
    return torch.float64 if student.dtype == torch.float64 else torch.float32


def _n_units(scalars: Scalars) -> int:
    return scalars.n_shared + (scalars.n_multi if scalars.multi else 0)


def _tables(tensors: Sequence[Tensor], scalars: Scalars) -> tuple[SideTable, SideTable]:
    t_ids, t_columns, t_unused, s_ids, s_columns, s_unused = tensors[:6]
    return (
        SideTable(t_ids, scalars.teacher_extra, t_columns, t_unused, scalars.teacher_needed),
        SideTable(s_ids, scalars.student_extra, s_columns, s_unused, scalars.student_needed),
    )


def _run(
    rows: tuple[StudentRows, Any],
    tables: tuple[SideTable, SideTable],
    packed: Tensor,
    weight: Tensor,
    column_of_shared: Tensor,
    continuations: Sequence[Tensor],
    scalars: Scalars,
    work: Workspace,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    index = view_index(packed, *scalars[:4])
    index = replace(index, realized_column=column_of_shared[index.realized_column])
    options = Options(
        score=SCORES[scalars.score],
        divergence=_divergences[scalars.divergence],
        multi=scalars.multi,
        min_teacher_mass=scalars.min_teacher_mass,
        coverage_multi=scalars.coverage_multi,
        coverage_shared=scalars.coverage_shared,
        chunk_bytes=scalars.chunk_bytes,
        gradient=scalars.gradient,
        stop_column=scalars.stop_column,
    )
    plan = None
    if scalars.on_path:
        host, *spellings = continuations[:3]
        counts = (scalars.n_shared, scalars.n_multi, scalars[2:4], scalars[4:6])
        wanted = wanted_of_prefixes(options)
        plan = make_plan(host, counts, (spellings[0], spellings[1]), wanted, packed.device)
        plan = replace(plan, realized_column=column_of_shared[plan.realized_column])
        index = reordered(index, plan)
    student = Side(rows[0], tables[1], index.student_row, index.student, is_student=True)
    teacher = Side(rows[1], tables[0], index.teacher_row, index.teacher, is_student=False)
    weight = weight.to(dtype)
    scaled = weight * scalars.gradient_scale
    common = (student, teacher, index, options, scaled, work, dtype)
    if plan is None:
        engine = Engine(*common)
    else:
        leaves = dict(zip(SIDES, continuations[3:], strict=True))
        engine = OnPathEngine(*common, plan, leaves)
    result = engine.run(rows[0])
    loss = (result.per_unit * weight).sum()
    return loss, result.per_unit, result.stats, rows[0].gradients()


def _without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Keep autocast, which still acts inside an operator, from rounding what is computed here."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def logits_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute the loss from logits; the arguments are those of ``simct_align::logits_loss``.

    Args:
        *args: student logits, teacher logits, the index and table tensors, then `Scalars`.

    Returns:
        Loss, divergence per unit, statistics per unit, and the student's gradient (empty if it was
        not asked for).
    """
    student, teacher, packed, weight, column_of_shared, *tables = args[: 2 + _N_TENSORS]
    scalars = Scalars(*args[2 + _N_TENSORS :])
    dtype = compute_dtype(student)
    with torch.no_grad(), _without_autocast(student.device.type):
        work = Workspace(student.device)
        side_tables = _tables(tables, scalars)
        teacher_rows = LogitsRows(teacher, side_tables[0], work, dtype, scalars.temperature)
        student_rows = StudentLogitsRows(
            student, side_tables[1], work, dtype, scalars.temperature, scalars.gradient
        )
        loss, per_unit, stats, gradients = _run(
            (student_rows, teacher_rows),
            side_tables,
            packed,
            weight,
            column_of_shared,
            tables[6:],
            scalars,
            work,
            dtype,
        )
        gradient = gradients[0] if gradients else student.new_empty(0)
    return loss, per_unit, stats, gradient


def linear_forward(*args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the loss from hidden states; arguments as of ``simct_align::linear_loss``.

    Args:
        *args: student hidden states, weight and bias, the same for the teacher, the index and table
            tensors, `Scalars`, then soft-caps (0 for none), scales, and whether the weight and the
            bias need a gradient.

    Returns:
        Loss, divergence per unit, statistics per unit, and the gradients by the student's hidden
        states, weight and bias (empty where not asked for).
    """
    s_hidden, s_weight, s_bias, t_hidden, t_weight, t_bias = args[:6]
    packed, weight, column_of_shared, *tables = args[6 : 6 + _N_TENSORS]
    end = 6 + _N_TENSORS + len(Scalars._fields)
    scalars = Scalars(*args[6 + _N_TENSORS : end])
    s_softcap, t_softcap, s_scale, t_scale, need_weight, need_bias = args[end:]
    dtype = compute_dtype(s_hidden)
    with torch.no_grad(), _without_autocast(s_hidden.device.type):
        work = Workspace(s_hidden.device)
        side_tables = _tables(tables, scalars)
        common = (work, dtype, scalars.temperature, scalars.chunk_bytes)
        teacher_rows = LinearRows(
            t_hidden, t_weight, t_bias, t_softcap, t_scale, side_tables[0], *common
        )
        student_rows = StudentLinearRows(
            s_hidden,
            s_weight,
            s_bias,
            s_softcap,
            s_scale,
            side_tables[1],
            *common,
            gradients=(scalars.gradient, need_weight, need_bias),
        )
        loss, per_unit, stats, gradients = _run(
            (student_rows, teacher_rows),
            side_tables,
            packed,
            weight,
            column_of_shared,
            tables[6:],
            scalars,
            work,
            dtype,
        )
    hidden_grad, weight_grad, bias_grad = gradients
    return loss, per_unit, stats, hidden_grad, weight_grad, bias_grad


logits_loss = torch.library.custom_op(
    "simct_align::logits_loss",
    logits_forward,
    mutates_args=(),
    schema=f"(Tensor student_logits, Tensor teacher_logits, {_TENSORS}{_SCALARS})"
    " -> (Tensor, Tensor, Tensor, Tensor)",
)
linear_loss = torch.library.custom_op(
    "simct_align::linear_loss",
    linear_forward,
    mutates_args=(),
    schema="(Tensor student_hidden, Tensor student_weight, Tensor? student_bias, "
    f"Tensor teacher_hidden, Tensor teacher_weight, Tensor? teacher_bias, {_TENSORS}{_SCALARS}, "
    "float student_softcap, float teacher_softcap, float student_scale, float teacher_scale, "
    "bool weight_gradient, bool bias_gradient)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)


def _fake_head(student: Tensor, scalars: Scalars) -> tuple[Tensor, Tensor, Tensor]:
    dtype, units = compute_dtype(student), _n_units(scalars)
    return (
        student.new_empty((), dtype=dtype),
        student.new_empty(units, dtype=dtype),
        student.new_empty((N_STATS, units), dtype=dtype),
    )


def _fake_gradient(tensor: Tensor | None, student: Tensor, wanted: bool) -> Tensor:
    if tensor is None or not wanted:
        return student.new_empty(0)
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


@logits_loss.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    scalars = Scalars(*args[2 + _N_TENSORS :])
    gradient = _fake_gradient(args[0], args[0], scalars.gradient)
    return (*_fake_head(args[0], scalars), gradient)


@linear_loss.register_fake
def _(*args: Any) -> tuple[Tensor, ...]:
    scalars = Scalars(*args[6 + _N_TENSORS : 6 + _N_TENSORS + len(Scalars._fields)])
    wanted = (True, args[-2], args[-1])
    gradients = [
        _fake_gradient(tensor, args[0], scalars.gradient and bool(want))
        for tensor, want in zip(args[:3], wanted, strict=True)
    ]
    return (*_fake_head(args[0], scalars), *gradients)


_GRADIENT_AT = Scalars._fields.index("gradient")
_SCALE_AT = Scalars._fields.index("gradient_scale")


def _register_autograd(op: Any, n_inputs: int, n_gradients: int) -> None:
    """Give an operator its backward pass.

    Args:
        op: the operator.
        n_inputs: data tensors ahead of the index.
        n_gradients: how many of the first of them get a gradient.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[2:])
        tensors = inputs[: n_inputs + _N_TENSORS]
        ctx.save_for_backward(*tensors)
        ctx.rest = inputs[n_inputs + _N_TENSORS :]
        # Not saved as a tensor: it is handed on in the backward pass, which may happen once.
        ctx.gradients = output[3:] if ctx.rest[_GRADIENT_AT] else None

    def backward(
        ctx: Any, d_loss: Tensor | None, d_per_unit: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the SimCT losses have no second derivative: call backward without create_graph"
            )
        n_arguments = n_inputs + _N_TENSORS + len(ctx.rest)
        gradients, ctx.gradients = ctx.gradients, None
        if d_loss is None and d_per_unit is None:
            return (None,) * n_arguments
        if gradients is not None and d_per_unit is None:
            assert d_loss is not None
            factor = d_loss / ctx.rest[_SCALE_AT]
            gradients = [gradient.mul_(factor) for gradient in gradients]
        else:
            tensors, rest = list(ctx.saved_tensors), list(ctx.rest)
            weight = (
                torch.zeros_like(tensors[n_inputs + 1])
                if d_loss is None
                else (tensors[n_inputs + 1] * d_loss)
            )
            tensors[n_inputs + 1] = weight if d_per_unit is None else weight + d_per_unit
            rest[_GRADIENT_AT], rest[_SCALE_AT] = True, 1.0
            gradients = op(*tensors, *rest)[3:]
        needed = [
            gradient if ctx.needs_input_grad[place] else None
            for place, gradient in enumerate(gradients[:n_gradients])
        ]
        return (*needed, *(None,) * (n_arguments - n_gradients))

    op.register_autograd(backward, setup_context=setup_context)


_register_autograd(logits_loss, n_inputs=2, n_gradients=1)
_register_autograd(linear_loss, n_inputs=6, n_gradients=3)
