"""Internal: losses as `torch.library` operators: schema, fake and autograd.

`torch.compile` does not look into an operator, so the graph stays whole. The shapes of the results
follow from integer arguments, so a batch of another size needs no new graph once the integers are
symbolic. The forward pass computes the gradient; the backward pass only scales it. A second
backward pass through the same graph, or one that starts at `per_unit`, computes the gradient anew
from the inputs, with the incoming derivatives as weights.

Tensors are positional arguments, numbers are keyword arguments. Both are declared once, as the
fields of named tuples, and are passed in objects of these classes.
"""

from __future__ import annotations

import functools
import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, get_type_hints

import torch
from torch import Tensor

from .backends.protocol import Head, Lists, Logits
from .backends.triton import scale_gradient
from .handles import Handles
from .shard_plan import SHARDS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from ..divergence import Divergence
    from .backends.protocol import Backend

_LOG = logging.getLogger(__name__)

DIVERGENCES: Handles[Divergence] = Handles("divergence")
BACKENDS: Handles[Backend] = Handles("back end")


FLOAT16_GRADIENT_SCALE = 1024.0
"""The largest factor of float16 gradients until the backward pass: fewer underflow."""


def scale_weight(weight: Tensor, largest: float) -> Tensor:
    """Return the factor of every unit's divergence, scaled until the backward pass.

    The scale is a power of two, so that no digit changes, and at most 1 / weight: the derivative of
    a single unit can be in the hundreds, and overflows float16 if it is scaled up.

    Args:
        weight: `[]` the factor of every unit's divergence; of any shape if `largest` is 1.
        largest: `OperatorNumbers.gradient_scale`.

    Returns:
        The scaled factor.
    """
    return weight if largest == 1.0 else weight * _gradient_scale(weight, largest)


def unscale(d_loss: Tensor, weight: Tensor, largest: float) -> Tensor:
    """Return the derivative of the loss, divided by the scale of `scale_weight`.

    Args:
        d_loss: `[]` the derivative.
        weight: See `scale_weight`.
        largest: See `scale_weight`.
    """
    return d_loss if largest == 1.0 else d_loss / _gradient_scale(weight, largest)


def _gradient_scale(weight: Tensor, largest: float) -> Tensor:
    return torch.exp2(-weight.log2().ceil()).clamp(1.0, largest)


@functools.cache
def log_fallback(name: str, reason: str) -> None:
    """Warn once that the reference computes a loss.

    Args:
        name: The name of the back end that refuses it.
        reason: Why.
    """
    _LOG.warning("backend=%r: computing with the back end 'torch' instead: %s", name, reason)


class TeacherTensors(NamedTuple):
    """A teacher in one of three forms; the first fields of `LogitsTensors` and `LinearTensors`.

    Attributes:
        teacher_rows: Logits; hidden states, with `teacher_weight`; or `[..., K]`
            log-probabilities, with `teacher_listed`.
        teacher_weight: The output embedding.
        teacher_bias: Its bias.
        teacher_listed: `[..., K]` the tokens of the log-probabilities, int64.
    """

    teacher_rows: Tensor
    teacher_weight: Tensor | None
    teacher_bias: Tensor | None
    teacher_listed: Tensor | None


class LogitsTensors(NamedTuple):
    """A teacher, and the student's logits."""

    teacher_rows: Tensor
    teacher_weight: Tensor | None
    teacher_bias: Tensor | None
    teacher_listed: Tensor | None
    student_logits: Tensor


class LinearTensors(NamedTuple):
    """A teacher, and the student's hidden states and output embedding."""

    teacher_rows: Tensor
    teacher_weight: Tensor | None
    teacher_bias: Tensor | None
    teacher_listed: Tensor | None
    student_hidden: Tensor
    student_weight: Tensor
    student_bias: Tensor | None


class TeacherNumbers(NamedTuple):
    """The numbers of a teacher's output embedding; 0 disables a soft-cap."""

    teacher_softcap: float
    teacher_scale: float


class LinearNumbers(NamedTuple):
    """The numbers of both output embeddings; the first fields are those of `TeacherNumbers`.

    `shards` is the key of the shards' handle; empty where both output embeddings are whole.
    """

    teacher_softcap: float
    teacher_scale: float
    student_softcap: float
    student_scale: float
    weight_gradient: bool
    bias_gradient: bool
    shards: str


class OperatorOutput(NamedTuple):
    """The results of both operators that come before the gradients."""

    loss: Tensor
    per_unit: Tensor
    stats: Tensor


class OperatorNumbers(Protocol):
    """What an operator reads of its numbers.

    Attributes:
        divergence: The key of the divergence's handle.
        backend: The key of the back end's handle.
        gradient: Whether the gradient is wanted.
        gradient_scale: The largest factor of the gradient until the backward pass: see
            `scale_weight`.
        inplace: Whether the gradient takes the place of the student's logits: see `Operator`.
        n_values: How many divergences the loss has.
        n_stats: How many figures it keeps for each of them.
    """

    divergence: str
    backend: str
    gradient: bool
    gradient_scale: float
    inplace: bool
    n_values: int
    n_stats: int


def compute_dtype(student: Tensor) -> torch.dtype:
    """Return float64 for float64 inputs and float32 for all others.

    Args:
        student: A student input.

    Returns:
        The compute dtype.
    """
    return torch.float64 if student.dtype == torch.float64 else torch.float32


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Return a context without autocast, which would act inside an operator too."""
    if torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def teacher_source(
    inputs: TeacherTensors | LogitsTensors | LinearTensors, numbers: TeacherNumbers | LinearNumbers
) -> Logits | Head | Lists:
    """Return the teacher in the form in which it came.

    Args:
        inputs: Its tensors.
        numbers: Its numbers.
    """
    if inputs.teacher_listed is not None:
        return Lists(inputs.teacher_listed, inputs.teacher_rows)
    if inputs.teacher_weight is None:
        return Logits(inputs.teacher_rows)
    return Head(
        hidden=inputs.teacher_rows,
        weight=inputs.teacher_weight,
        bias=inputs.teacher_bias,
        softcap=numbers.teacher_softcap,
        scale=numbers.teacher_scale,
    )


def student_head(inputs: LinearTensors, numbers: LinearNumbers) -> Head:
    """Return the student's output layer.

    Args:
        inputs: Its tensors.
        numbers: Its numbers.
    """
    return Head(
        hidden=inputs.student_hidden,
        weight=inputs.student_weight,
        bias=inputs.student_bias,
        softcap=numbers.student_softcap,
        scale=numbers.student_scale,
        weight_gradient=numbers.weight_gradient,
        bias_gradient=numbers.bias_gradient,
    )


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _leaves(kind: type, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the paths and the types of all fields of a named tuple, and of named tuples in it."""
    for name, hint in _hints(kind).items():
        if hasattr(hint, "_fields"):
            yield from _leaves(hint, (*path, name))
        else:
            yield (*path, name), hint


def _record(kind: Any, by_name: dict[str, Any]) -> Any:
    """Return a named tuple from the values of all these fields, by the last name of their paths."""
    hints = _hints(kind)
    return kind(
        **{
            name: _record(hint, by_name) if hasattr(hint, "_fields") else by_name[name]
            for name, hint in hints.items()
        }
    )


class _Keywords:
    """The numbers of an operator in lists by type, its only keyword arguments.

    An operator has 64 arguments at most, and a call takes a time quadratic in their number. The
    integers may change from batch to batch without a new graph.

    Args:
        kinds: The classes of the numbers.
    """

    _LISTS: ClassVar[dict[str, type]] = {
        "SymInt[] integers": int,
        "float[] reals": float,
        "bool[] flags": bool,
        "str[] names": str,
    }

    def __init__(self, kinds: list[type]) -> None:
        leaves = [(n, path, hint) for n, kind in enumerate(kinds) for path, hint in _leaves(kind)]
        self.schema = list(self._LISTS)
        self._paths = {path[-1]: (n, path) for n, path, _ in leaves}
        self._fields = {
            declared.split()[1]: [path[-1] for _, path, hint in leaves if hint is kind]
            for declared, kind in self._LISTS.items()
        }

    def values(self, *records: Any) -> dict[str, Any]:
        """Return all numbers by name.

        Args:
            *records: Objects of the classes of the numbers.
        """
        found: dict[str, Any] = {}
        for name, (number, path) in self._paths.items():
            value = records[number]
            for part in path:
                value = getattr(value, part)
            found[name] = value
        return found

    def pack(self, numbers: dict[str, Any]) -> dict[str, list[Any]]:
        """Return the keyword arguments.

        Args:
            numbers: All numbers, by name.
        """
        return {name: [numbers[field] for field in fields] for name, fields in self._fields.items()}

    def unpack(self, keywords: dict[str, Any]) -> dict[str, Any]:
        """Return all numbers by name.

        Args:
            keywords: What `pack` returned.
        """
        return {
            field: value
            for name, fields in self._fields.items()
            for field, value in zip(fields, keywords[name], strict=True)
        }


def _schema(tensors: list[type], keywords: list[str], n_results: int) -> str:
    """Return the schema of an operator.

    Args:
        tensors: The classes of its tensors.
        keywords: The declarations of its keyword arguments.
        n_results: The number of its results.
    """
    arguments = [
        f"Tensor{'?' if hint != Tensor else ''} {name}"
        for kind in tensors
        for name, hint in _hints(kind).items()
    ]
    results = ", ".join(["Tensor"] * n_results)
    return f"({', '.join(arguments)}, *, {', '.join(keywords)}) -> ({results})"


class Operator:
    """An operator.

    Args:
        name: The operator's name.
        inputs: The class of the input tensors.
        tensors: The class of the other tensors; one of them is `weight`, the factor of every
            value's gradient.
        numbers: The class of the numbers; see `OperatorNumbers`.
        extra: The class of the numbers of output embeddings.
        compute: The function that computes the results.
        student: The name of the input whose device and compute dtype the results have.
        differentiable: The inputs with a gradient, in the order of the results. The value is the
            name of the number that is true if the gradient is wanted, or None.
    """

    def __init__(
        self,
        name: str,
        inputs: type[Any],
        tensors: type[Any],
        numbers: type[Any],
        extra: type[Any],
        compute: Any,
        student: str,
        differentiable: dict[str, str | None],
    ) -> None:
        self._kinds = (inputs, tensors, numbers, extra)
        self._compute, self._student, self._differentiable = compute, student, differentiable
        self._names = (*inputs._fields, *tensors._fields)
        self._keywords = _Keywords([numbers, extra])
        n_results = len(OperatorOutput._fields) + len(differentiable)
        self.op = torch.library.custom_op(
            f"simct_align::{name}",
            self.forward,
            mutates_args=(),
            schema=_schema([inputs, tensors], self._keywords.schema, n_results),
        )
        self.op.register_fake(self._fake)
        self.op.register_autograd(self._backward, setup_context=self._setup_context)

    def __call__(
        self, inputs: Any, tensors: Any, numbers: Any, extra: Any, *, inplace: bool = False
    ) -> OperatorOutput:
        """Run the operator; with `inplace`, the gradient is written over the student's logits."""
        if inplace and inputs.student_logits.requires_grad and torch.is_grad_enabled():
            check_inplace(inputs.student_logits, gradient=numbers.gradient)
            arguments = (inputs, tensors, numbers._replace(inplace=True), extra)
            return OperatorOutput(*_over_logits(inputs.student_logits, self._compute, arguments))
        keywords = self._keywords.pack(self._keywords.values(numbers, extra))
        results = self.op(*inputs, *tensors, **keywords)
        return OperatorOutput(*results[: len(OperatorOutput._fields)])

    def _read(self, tensors: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[Any, ...]:
        """Return the arguments as objects of their classes."""
        by_name = dict(zip(self._names, tensors, strict=True)) | self._keywords.unpack(keywords)
        return tuple(_record(kind, by_name) for kind in self._kinds)

    def forward(self, *tensors: Any, **keywords: Any) -> tuple[Tensor, ...]:
        """Compute the operator's results without dispatch."""
        results: tuple[Tensor, ...] = self._compute(*self._read(tensors, keywords))
        return results

    def _fake(self, *tensors: Any, **keywords: Any) -> tuple[Tensor, ...]:
        inputs, _, of_loss, extra = self._read(tensors, keywords)
        student = getattr(inputs, self._student)
        dtype, values = compute_dtype(student), of_loss.n_values

        def gradient(name: str, wanted: str | None) -> Tensor:
            tensor = getattr(inputs, name)
            skip = tensor is None or (wanted is not None and not getattr(extra, wanted))
            if skip or not of_loss.gradient:
                return torch.empty(0, dtype=student.dtype, device=student.device)
            # Contiguous for inputs with any strides.
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)

        return (
            student.new_empty((), dtype=dtype),
            student.new_empty(values, dtype=dtype),
            student.new_empty((of_loss.n_stats, values), dtype=dtype),
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
        ctx.numbers = self._keywords.unpack(keyword_only_inputs)
        # A second backward pass may happen after the loss that made the handles is gone.
        _, _, numbers, extra = self._read(inputs, keyword_only_inputs)
        shards = getattr(extra, "shards", "")
        ctx.handles = (
            DIVERGENCES[numbers.divergence],
            BACKENDS[numbers.backend],
            SHARDS[shards] if shards else None,
        )
        # Not saved as tensors: the first backward pass scales the gradients in place.
        ctx.gradients = gradients if numbers.gradient else None

    def _backward(
        self, ctx: Any, d_loss: Tensor | None, d_per_unit: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the losses have no second derivative: call backward without create_graph"
            )
        gradients, ctx.gradients = ctx.gradients, None
        if d_loss is None and d_per_unit is None:
            return (None,) * len(self._names)
        if gradients is not None and d_per_unit is None:
            assert d_loss is not None
            weight = ctx.saved_tensors[self._names.index("weight")]
            factor = unscale(d_loss, weight, ctx.numbers["gradient_scale"])
            gradients = [scale_gradient(gradient, factor) for gradient in gradients]
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
        results: tuple[Tensor, ...] = self.op(*tensors.values(), **self._keywords.pack(numbers))
        return results[len(OperatorOutput._fields) :]


def check_inplace(logits: Tensor, *, gradient: bool) -> None:
    """Check that a gradient can be written over logits.

    Args:
        logits: The student's logits.
        gradient: Whether the forward pass computes the gradient.

    Raises:
        ValueError: It cannot.
    """
    found = None
    if not gradient:
        found = "a reduction whose forward pass computes it, 'none' does not"
    elif logits.is_leaf:
        found = "logits that a model computed, got a leaf, whose values an optimizer needs"
    elif not logits.is_contiguous():
        found = f"contiguous logits, got strides {tuple(logits.stride())}"
    if found is not None:
        raise ValueError(
            f"student_logits: inplace=True writes the gradient over them: expected {found}; "
            "use inplace=False"
        )


class _OverLogits(torch.autograd.Function):
    """A loss whose forward pass replaces the student's logits by their gradient.

    An operator of PyTorch must not return what it was given, so this is none, and `torch.compile`
    breaks its graph here.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, compute: Any, arguments: tuple[Any, ...]) -> Any:
        """Compute the loss from the arguments of an operator's function."""
        _, tensors, numbers, _ = arguments
        *results, gradient = compute(*arguments)
        own = logits.detach()
        if gradient.data_ptr() != own.data_ptr():
            own.copy_(gradient)
        # Whoever saved the logits for a backward pass of their own must not find the gradient.
        torch.autograd.graph.increment_version(logits)
        result = OperatorOutput(*results)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(result.per_unit, result.stats)
        ctx.gradient = own
        ctx.scale = tensors.weight, numbers.gradient_scale
        return tuple(result)

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        """Scale the gradient."""
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None:
            raise RuntimeError(
                "inplace=True: the gradient stood in place of the logits, and the first backward "
                "pass took it: use inplace=False for a second one"
            )
        if d_loss is None:
            return None, None, None
        return scale_gradient(gradient, unscale(d_loss, *ctx.scale)), None, None


_over_logits = torch.compiler.disable(_OverLogits.apply)  # type: ignore[no-untyped-call]


def loss_operators(
    logits_name: str, linear_name: str, *, tensors: type[Any], numbers: type[Any], compute: Any
) -> tuple[Operator, Operator]:
    """Return the two operators of a loss: from logits, and from hidden states.

    Args:
        logits_name: The name of the operator from logits.
        linear_name: The name of the operator from hidden states.
        tensors: See `Operator`.
        numbers: See `Operator`.
        compute: The function of the teacher's `Logits`, `Head` or `Lists`, the student's `Logits`
            or `Head`, the tensors, the numbers, and the `Shards` or None. It returns an
            `OperatorOutput` and the list of the student's gradients, which is empty if no gradient
            is wanted from logits.
    """

    def from_logits(
        inputs: LogitsTensors, others: Any, settings: Any, teacher: TeacherNumbers
    ) -> tuple[Tensor, ...]:
        source = teacher_source(inputs, teacher)
        student = Logits(inputs.student_logits, inplace=settings.inplace)
        output, gradients = compute(source, student, others, settings, None)
        return (*output, *(gradients or [inputs.student_logits.new_empty(0)]))

    def from_hidden(
        inputs: LinearTensors, others: Any, settings: Any, linear: LinearNumbers
    ) -> tuple[Tensor, ...]:
        source, student = teacher_source(inputs, linear), student_head(inputs, linear)
        shards = SHARDS[linear.shards].value if linear.shards else None
        output, gradients = compute(source, student, others, settings, shards)
        return (*output, *gradients)

    return (
        Operator(
            logits_name,
            inputs=LogitsTensors,
            tensors=tensors,
            numbers=numbers,
            extra=TeacherNumbers,
            compute=from_logits,
            student="student_logits",
            differentiable={"student_logits": None},
        ),
        Operator(
            linear_name,
            inputs=LinearTensors,
            tensors=tensors,
            numbers=numbers,
            extra=LinearNumbers,
            compute=from_hidden,
            student="student_hidden",
            differentiable={
                "student_hidden": None,
                "student_weight": "weight_gradient",
                "student_bias": "bias_gradient",
            },
        ),
    )
