"""Internal: the operators of `SimCTLoss` and `LinearSimCTLoss`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .backends import AutoBackend, TorchBackend
from .backends.protocol import Head, Lists, Logits, Problem, Settings, SideProblem, UnitRun
from .backends.torch.on_path import Continuations, LeafTokens, OnPathEngine
from .backends.torch.sharded import ShardedComputation
from .columns import SideColumns
from .engine import Engine
from .layout import IndexSizes, view_index
from .metrics import UnitStat, count_special
from .operator import (
    BACKENDS,
    DIVERGENCES,
    OperatorOutput,
    compute_dtype,
    log_fallback,
    loss_operators,
    scale_weight,
    without_autocast,
)

if TYPE_CHECKING:
    from typing import Any

    from .backends.protocol import Backend, Computation, StudentSide
    from .engine import Result
    from .layout import IndexView
    from .shard_plan import Shards


#: Elementwise arrays on a CPU.
_MOST_SCRATCH = 4 << 20


class PairTensors(NamedTuple):
    """The index, and the pair's columns.

    Attributes:
        packed: The packed index.
        weight: `[]` or `[units]` factor of every unit's divergence.
        column_of_shared: See `PairColumns`, also for all fields without an entry here.
        host: The packed index on the host; empty for an index without a copy there.
    """

    packed: Tensor
    weight: Tensor
    column_of_shared: Tensor
    teacher_ids: Tensor
    teacher_column_of_id: Tensor
    teacher_unused: Tensor
    teacher_code_of_id: Tensor
    student_ids: Tensor
    student_column_of_id: Tensor
    student_unused: Tensor
    student_code_of_id: Tensor
    host: Tensor
    teacher_spellings: Tensor
    student_spellings: Tensor
    teacher_last_token: Tensor
    teacher_one_sided_token: Tensor
    student_last_token: Tensor
    student_one_sided_token: Tensor


class Numbers(NamedTuple):
    """The numbers of both operators."""

    sizes: IndexSizes
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
    inplace: bool

    @property
    def n_stats(self) -> int:
        """How many figures are kept for each unit."""
        return len(UnitStat)

    @property
    def n_values(self) -> int:
        """The number of units that take part."""
        return self.sizes.n_shared + (self.sizes.n_multi if self.multi else 0)


def _problem(
    teacher: Logits | Head | Lists,
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
        code_of_id=pair.teacher_code_of_id,
        needed=numbers.teacher_needed,
    )
    student_columns = SideColumns(
        ids=pair.student_ids,
        n_extra=numbers.student_extra,
        column_of_id=pair.student_column_of_id,
        unused=pair.student_unused,
        code_of_id=pair.student_code_of_id,
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
        scratch_bytes=_scratch_bytes(numbers.chunk_bytes, student_input.device),
        temperature=numbers.temperature,
        chunk_bytes=numbers.chunk_bytes,
        gradient=numbers.gradient,
        dtype=compute_dtype(student_input),
    )
    return Problem(
        teacher=SideProblem(teacher, teacher_columns, index.teacher),
        student=SideProblem(student, student_columns, index.student),
        index=index,
        n_shared=index.n_shared,
        n_multi=index.n_multi,
        realized_column=pair.column_of_shared[index.realized_column],
        stop_column=numbers.stop_column,
        settings=settings,
    )


def _scratch_bytes(chunk_bytes: int, device: torch.device) -> int:
    # What a CPU's cache does not hold is slower, and leaves less room for rows.
    quarter = chunk_bytes // 4
    return min(quarter, _MOST_SCRATCH) if device.type == "cpu" else quarter


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
    teacher: Logits | Head | Lists,
    student: Logits | Head,
    pair: PairTensors,
    numbers: Numbers,
    shards: Shards | None,
) -> tuple[OperatorOutput, list[Tensor]]:
    with torch.no_grad(), without_autocast(pair.packed.device.type):
        host = pair.host if pair.host.numel() else None
        index = view_index(pair.packed, numbers.sizes, host)
        problem = _problem(teacher, student, index, pair, numbers)
        weight = pair.weight.to(problem.settings.dtype)
        scaled = scale_weight(weight, numbers.gradient_scale)
        result, gradients = _run(problem, pair, numbers, shards, scaled)
        loss = (result.per_unit * weight).sum()
        return OperatorOutput(loss, result.per_unit, result.stats), gradients


def _run(
    problem: Problem, pair: PairTensors, numbers: Numbers, shards: Shards | None, weight: Tensor
) -> tuple[Result, list[Tensor]]:
    """Run a back end, or the reference if the back end refuses the problem."""
    backend: Backend = BACKENDS[numbers.backend].value
    is_named = backend.name not in (AutoBackend.name, TorchBackend.name)
    if shards is not None:
        if is_named:
            log_fallback(backend.name, "shards of the vocabulary are PyTorch operations")
        return _run_engine(problem, ShardedComputation(problem, shards), weight)
    if numbers.on_path:
        if is_named:
            log_fallback(backend.name, "on-path continuations are PyTorch operations")
        engine = OnPathEngine(problem, _continuations(pair, numbers), weight)
        return _with_gradients(problem, engine.run(), engine.computation.student)
    if (reason := backend.refuses(problem)) is not None:
        log_fallback(backend.name, reason)
        backend = TorchBackend()
    started = backend.start(problem)
    if isinstance(started, UnitRun):
        return started.run(weight), started.gradients()
    return _run_engine(problem, started, weight)


def _run_engine(
    problem: Problem, computation: Computation[Any], weight: Tensor
) -> tuple[Result, list[Tensor]]:
    result = Engine(problem, computation, weight).run()
    return _with_gradients(problem, result, computation.student)


def _with_gradients(
    problem: Problem, result: Result, student: StudentSide[Any]
) -> tuple[Result, list[Tensor]]:
    count_special(result.stats, problem.index.kind)
    return result, student.gradients()


logits_loss, linear_loss = loss_operators(
    "logits_loss", "linear_loss", tensors=PairTensors, numbers=Numbers, compute=_compute
)
