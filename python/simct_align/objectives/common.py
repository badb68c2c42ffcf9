"""The interface of the baselines, and the chunk loop that they share.

A baseline says what a chunk of units costs, given the log-probabilities at their prefixes and those
of their paths; its slope comes from autograd, one chunk at a time, in the forward pass, so that
memory is O(chunk x vocabulary) as in the loss proper. Nothing is a loop over units.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from ..loss.index_view import IndexView, RealizedPaths, view_index
from ..loss.rows import LogitsRows, StudentLogitsRows, Workspace
from ..loss.tables import SideTable, Tables

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ..loss.tables import PairTables

_ARRAYS = 12  # [chunk, vocabulary] arrays that a baseline's autograd graph holds, about


class ObjectiveOutput(NamedTuple):
    """``loss`` is differentiable; ``per_unit`` (index order, no normalizer) is for looking at."""

    loss: Tensor
    per_unit: Tensor


@dataclass(frozen=True)
class UnitRows:
    """One side of a chunk of c units.

    Attributes:
        log_probs: ``[c, columns]`` at the prefixes, temperature applied, padding at -inf.
        rest: ``[c]`` summed log-probability of the path's steps after the first.
        first_id: ``[c]`` first token of the path, None where no ids came.
        shared_ids: ``[shared]`` columns of the shared vocabulary.
    """

    log_probs: Tensor
    rest: Tensor
    first_id: Tensor | None
    shared_ids: Tensor

    def realized(self) -> Tensor:
        """Return the units' log-probabilities ``[c]``.

        Raises:
            ValueError: no ids came.
        """
        if self.first_id is None:
            raise ValueError("realized probabilities need student_ids and teacher_ids")
        first = self.log_probs.gather(1, self.first_id.unsqueeze(1)).squeeze(1)
        return first + self.rest


def sorted_distance(left: Tensor, right: Tensor) -> Tensor:
    """Return the L1 distance of sorted rows, the shorter ones padded with zeros.

    Args:
        left: ``[rows, m]`` probabilities.
        right: ``[rows, n]`` probabilities.

    Returns:
        ``[rows]`` distances.
    """
    a, b = (x.sort(dim=1, descending=True).values for x in (left, right))
    common = min(a.shape[1], b.shape[1])
    distance = (a[:, :common] - b[:, :common]).abs().sum(1)
    return distance + a[:, common:].sum(1) + b[:, common:].sum(1)


@dataclass(frozen=True)
class _Side:
    rows: LogitsRows
    table: SideTable
    unit_row: Tensor
    paths: RealizedPaths
    first_id: Tensor | None
    n_shared_tokens: int

    def rest(self, n_shared: int, n_multi: int, size: int, dtype: torch.dtype) -> Tensor:
        """Sum the log-probabilities of the steps after the first, for all units."""
        total = torch.zeros(n_shared + n_multi, dtype=dtype, device=self.unit_row.device)
        for steps in _chunks(self.paths.rest_row.shape[0], size):
            log_probs = self.rows.full(self.paths.rest_row[steps]).log_softmax(1)
            picked = log_probs.gather(1, self.paths.rest_id[steps].unsqueeze(1)).squeeze(1)
            total.index_add_(0, self.paths.rest_unit[steps] + n_shared, picked)
        return total

    def chunk(self, units: slice, log_probs: Tensor, rest: Tensor) -> UnitRows:
        first = None if self.first_id is None else self.first_id[units]
        return UnitRows(log_probs, rest, first, self.table.ids[: self.n_shared_tokens])


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


class _ChunkedSum(torch.autograd.Function):
    """``sum(weight * per_unit)`` and its gradient, a chunk of units at a time."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, objective: Objective, job: _Job) -> tuple[Tensor, Tensor]:
        per_unit, gradient = job.run(objective, logits.requires_grad)
        ctx.gradient = gradient
        ctx.mark_non_differentiable(per_unit)
        return (per_unit * job.weight).sum(), per_unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_loss: Tensor, _: Any) -> tuple[Tensor, None, None]:
        return ctx.gradient * by_loss.to(ctx.gradient.dtype), None, None


@dataclass(frozen=True)
class _Job:
    student: _Side
    teacher: _Side
    index: IndexView
    weight: Tensor
    dtype: torch.dtype
    chunk_rows: int

    def run(self, objective: Objective, wants_gradient: bool) -> tuple[Tensor, Tensor | None]:
        index, rows = self.index, self.student.rows
        assert isinstance(rows, StudentLogitsRows)
        n_multi = index.n_multi if objective.uses_multi else 0
        n_units = index.n_shared + n_multi
        sizes = (index.n_shared, index.n_multi, self.chunk_rows, self.dtype)
        if n_multi:
            sizes = (index.n_shared, index.n_multi, self.chunk_rows, self.dtype)
            rests = [side.rest(*sizes) for side in (self.student, self.teacher)]
        else:
            none = torch.zeros(n_units, dtype=self.dtype, device=self.weight.device)
            rests = [none, none]
        per_unit = torch.zeros_like(rests[0])
        d_rest = torch.zeros(index.n_shared + index.n_multi, dtype=self.dtype).to(
            self.weight.device
        )
        for units in _chunks(n_units, self.chunk_rows):
            log_teacher = self.teacher.rows.full(self.teacher.unit_row[units]).log_softmax(1)
            at = self.student.unit_row[units]
            with torch.set_grad_enabled(wants_gradient):
                z = rows.full(at).detach().requires_grad_(wants_gradient)
                rest = rests[0][units].detach().requires_grad_(wants_gradient)
                value = objective.per_unit(
                    self.student.chunk(units, z.log_softmax(1), rest),
                    self.teacher.chunk(units, log_teacher, rests[1][units]),
                )
            per_unit[units] = value.detach()
            if wants_gradient:
                by_z, by_rest = torch.autograd.grad(
                    value, (z, rest), self.weight.expand_as(value), materialize_grads=True
                )
                rows.put_full(at, by_z)
                d_rest[units] = by_rest
        if not wants_gradient:
            return per_unit, None
        if n_multi:
            self._rest_gradient(rows, d_rest[index.n_shared :])
        return per_unit, rows.gradients()[0]

    def _rest_gradient(self, rows: StudentLogitsRows, d_rest: Tensor) -> None:
        paths = self.student.paths
        for steps in _chunks(paths.rest_row.shape[0], self.chunk_rows):
            at = paths.rest_row[steps]
            slope = d_rest.index_select(0, paths.rest_unit[steps]).unsqueeze(1)
            gradient = rows.full(at).softmax(1).mul_(-slope)
            token = paths.rest_id[steps].unsqueeze(1)
            gradient.scatter_(1, token, gradient.gather(1, token) + slope)
            rows.put_full(at, gradient)


class Objective(torch.nn.Module, ABC):
    """A baseline over the units of an `AlignedIndex`.

    Use a subclass; a new one implements `per_unit` with differentiable operations and says in
    ``uses_multi`` and ``reads_ids`` what it looks at.

    Args:
        aligner: the pair of vocabularies.
        temperature: both sides' logits are divided by it.
        reduction: ``"unit"``, ``"token"`` or ``"sum"``.
        chunk_bytes: workspace to aim for.

    Raises:
        ValueError: a keyword is out of its range.

    Complexity:
        O(chunk_bytes) memory besides the student's gradient.
    """

    uses_multi: ClassVar[bool] = True
    reads_ids: ClassVar[bool] = False

    def __init__(
        self,
        aligner: PairTables,
        *,
        temperature: float = 1.0,
        reduction: str = "unit",
        chunk_bytes: int = 1 << 26,
    ) -> None:
        super().__init__()
        if reduction not in ("unit", "token", "sum"):
            raise ValueError(f"reduction: expected unit, token or sum, got {reduction!r}")
        if not temperature > 0.0:
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        if chunk_bytes <= 0:
            raise ValueError(f"chunk_bytes: expected a positive number, got {chunk_bytes}")
        self.temperature = float(temperature)
        self.reduction = reduction
        self.chunk_bytes = chunk_bytes
        self.tables = Tables(aligner)

    @abstractmethod
    def per_unit(self, student: UnitRows, teacher: UnitRows) -> Tensor:
        """Return ``[c]`` values of a chunk of units, differentiable by the student's side.

        Args:
            student: the student's side; gradients reach ``log_probs`` and ``rest``.
            teacher: the teacher's side.
        """

    def forward(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        index: Any,
        normalizer: Tensor | float | None = None,
        *,
        student_ids: Tensor | None = None,
        teacher_ids: Tensor | None = None,
    ) -> ObjectiveOutput:
        """Compute the objective.

        Args:
            student_logits: ``[tokens, columns]`` or ``[batch, length, columns]``.
            teacher_logits: the same for the teacher.
            index: an `AlignedIndex` on the device.
            normalizer: what to divide the sum by instead of ``index.normalizer``.
            student_ids: ``[tokens]`` or ``[batch, length]``, as the logits; for those that read it.
            teacher_ids: the same for the teacher.

        Returns:
            ``loss`` and ``per_unit``.

        Raises:
            ValueError: shapes do not fit one another or the index, or ids came or are missing
                against ``reads_ids``.
        """
        for name, ids in (("student_ids", student_ids), ("teacher_ids", teacher_ids)):
            if (ids is not None) != self.reads_ids:
                what = "reads" if self.reads_ids else "does not read"
                raise ValueError(f"{name}: {type(self).__name__} {what} token ids")
        self.tables.check_columns(student_logits.shape[-1], "student", "student_logits")
        self.tables.check_columns(teacher_logits.shape[-1], "teacher", "teacher_logits")
        index.check_logits("student", "student_logits", student_logits.shape)
        index.check_logits("teacher", "teacher_logits", teacher_logits.shape)
        with torch.no_grad():
            job = self._job(
                student_logits, teacher_logits, index, normalizer, (student_ids, teacher_ids)
            )
        loss, per_unit = _ChunkedSum.apply(student_logits, self, job)
        return ObjectiveOutput(loss, per_unit)

    def _job(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        index: Any,
        normalizer: Tensor | float | None,
        ids: tuple[Tensor | None, Tensor | None],
    ) -> _Job:
        dtype = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
        device = student_logits.device
        candidates = "realized" if self.uses_multi else "shared"
        if normalizer is None:
            sums = self.reduction == "sum"
            normalizer = 1 if sums else index.normalizer(self.reduction, candidates)
        total = torch.as_tensor(normalizer, dtype=dtype, device=device)
        counts = (index.n_shared, index.n_multi, index.n_teacher_steps, index.n_student_steps)
        view = view_index(torch.as_tensor(index.packed, device=device), *counts)
        work, tables = Workspace(device), self.tables
        sides = []
        for side, logits, token_ids in (
            ("student", student_logits, ids[0]),
            ("teacher", teacher_logits, ids[1]),
        ):
            all_ids = getattr(tables, f"{side}_ids")
            table = SideTable(
                all_ids,
                all_ids.shape[0] - tables.n_shared_tokens,
                getattr(tables, f"{side}_column_of_id"),
                getattr(tables, f"{side}_unused"),
                tables.columns_needed[side],
            )
            common = (logits.detach(), table, work, dtype, self.temperature)
            rows = (
                StudentLogitsRows(*common, gradient=logits.requires_grad)
                if side == "student"
                else LogitsRows(*common)
            )
            unit_row = getattr(view, f"{side}_row")
            # Logits at a row predict the token behind it.
            first = None if token_ids is None else token_ids.reshape(-1)[unit_row + 1]
            paths = getattr(view, side)
            sides.append(_Side(rows, table, unit_row, paths, first, tables.n_shared_tokens))
        values = _ARRAYS * max(student_logits.shape[-1], teacher_logits.shape[-1])
        itemsize = torch.finfo(dtype).bits // 8
        return _Job(
            student=sides[0],
            teacher=sides[1],
            index=view,
            weight=torch.where(total == 0, 1.0, total).reciprocal(),
            dtype=dtype,
            chunk_rows=max(1, self.chunk_bytes // (itemsize * values)),
        )
