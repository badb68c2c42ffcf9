"""Internal: units whose columns are cut into shards of the vocabulary, one on every process.

Every process scores the shared columns whose student rows it holds (`ShardPlan`), on both sides.
The formulas are those of `computation`, on the columns of this process. What all of them need are
numbers per unit: log-normalizers of whole rows and of the candidates, the logits of realized tokens
and stops, masses, divergences, the sum in the derivative of a softmax, and the derivatives by the
realized unit. The realized unit is a candidate on one process: where its text has a column, or on
rank 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ....divergence import LOG_FLOOR, TermwiseDivergence, through_softmax
from ...engine import chunks
from ...scores.realized import MergedStops, RealizedScores
from ..protocol import Head, Logits
from .computation import rows_per_chunk
from .readers import teacher_rows
from .rows import Workspace
from .shard_rows import (
    ShardRows,
    StudentShardRows,
    local_source,
    log_sum_exp_,
    teacher_columns,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ...exchange import Exchange
    from ...shard_plan import Shards, StudentStops
    from ..protocol import Problem, SideProblem
    from .rows import Rows


class ShardedStops:
    """`MergedStops` of the student, whose stops may be on several processes.

    Args:
        stops: Their places.
        exchange: The group.
    """

    def __init__(self, stops: StudentStops, exchange: Exchange) -> None:
        self._stops, self._exchange = stops, exchange
        self._shares: Tensor | None = None

    def merge(self, z: Tensor) -> None:
        """See `MergedStops`."""
        places = self._stops
        if not places.count:
            return
        stops = z.new_zeros(z.shape[0], places.count)
        stops = self._exchange.sum(stops.index_copy_(1, places.which, z.index_select(1, places.at)))
        total = torch.logsumexp(stops, 1)
        self._shares = (stops - total.unsqueeze(1)).exp_().nan_to_num_(0.0)
        z.index_fill_(1, places.at, -torch.inf)
        if places.column >= 0:
            z[:, places.column] = total

    def backward(self, gradient: Tensor) -> None:
        """See `MergedStops`."""
        if self._shares is None:
            return
        places = self._stops
        merged = gradient.new_zeros(gradient.shape[0])
        if places.column >= 0:
            merged.copy_(gradient[:, places.column])
        by_stop = self._exchange.sum(merged).unsqueeze(1) * self._shares
        gradient.index_copy_(1, places.at, by_stop.index_select(1, places.which))


@dataclass
class ShardScores:
    """One side's scores of a chunk on this process.

    Attributes:
        z: `[c, columns + 1]` scores; the last column is that of the realized unit.
            `ShardedComputation.compare` replaces the student's scores by the derivative by them.
        units: The chunk.
        stops: The object that merged the stops.
        realized: The object that inserted the realized units; None at SHARED and SPECIAL units.
        rows: `[c, columns of this process]` the prefix rows at MULTI units, normalized if needed.
        shared_mass: See `Scores`.
        realized_mass: See `Scores`.
    """

    z: Tensor
    units: slice
    stops: MergedStops | ShardedStops
    realized: RealizedScores | None = None
    rows: Tensor | None = None
    shared_mass: Tensor | None = None
    realized_mass: Tensor | None = None


class _Rest:
    """Sums over the later steps (all but the first) of one side's realized paths.

    Attributes:
        top: `[steps]` the largest logits of the steps' rows.
        log_sum: `[steps]` their log-normalizers minus `top`.
        logits: `[n_multi]` sums of logits.
        log_probs: `[n_multi]` sums of log-probabilities.
        grad: `[n_multi]`; receives the derivatives by the sums.
    """

    def __init__(self, side: ShardSide) -> None:
        paths, dtype = side.model.units.paths, side.settings.dtype
        picked = side.shard.pick(paths.rest_row, paths.rest_id)
        top, log_sum, rows = torch.empty_like(picked), torch.empty_like(picked), side.shard.rows
        for steps in chunks(len(picked), rows_per_chunk(side.settings, rows.row_values(True))):
            top[steps], log_sum[steps] = log_sum_exp_(rows.full(paths.rest_row[steps]))
        self.top, self.log_sum = side.exchange.log_sum_exp(top, log_sum)
        self.logits = torch.zeros(paths.length.shape, dtype=dtype, device=paths.length.device)
        self.logits.index_add_(0, paths.rest_unit, picked)
        log_probs = (picked - self.top).sub_(self.log_sum)
        self.log_probs = torch.zeros_like(self.logits).index_add_(0, paths.rest_unit, log_probs)
        self.grad = torch.zeros_like(self.logits)


class ShardSide(ABC):
    """One model's rows; see `Side`.

    Args:
        name: `"teacher"` or `"student"`.
        problem: The problem.
        side: The model's side of the problem.
        rows: A reader of the columns of this process.
        shards: The shards.
        work: Scratch buffers.
    """

    def __init__(
        self,
        name: str,
        problem: Problem,
        side: SideProblem,
        rows: Rows,
        shards: Shards,
        work: Workspace,
    ) -> None:
        self.name, self.model, self.settings = name, side, problem.settings
        self.plan = shards.plan
        self.exchange = shards.plan.exchange
        self.local = shards.plan.sides["teacher" if name == "teacher" else "student"]
        self.shard = ShardRows(rows, self.local, self.exchange)
        self._problem, self._work = problem, work
        self.rest: _Rest | None = None

    def prepare_paths(self) -> None:
        """See `Computation`."""
        self.rest = _Rest(self)

    def scores(self, units: slice, *, multi: bool, mass: bool) -> ShardScores:
        """See `Side`."""
        z = self._work.take(
            f"z_{self.name}", units.stop - units.start, self.plan.columns + 1, self.settings.dtype
        )
        scores = ShardScores(z, units, self.merged_stops())
        if multi:
            self._score_multi(scores, mass=mass)
            return scores
        row = self.model.units.row[units]
        if mass:
            full = self.shard.rows.full(row)
            self.shard.normalize(full)
            scores.shared_mass = self._shared_mass(full)
        z.fill_(-torch.inf)
        self.choose(row, z)
        scores.stops.merge(z)
        return scores

    @abstractmethod
    def merged_stops(self) -> MergedStops | ShardedStops:
        """Return the object that merges the stops into one candidate."""

    @abstractmethod
    def choose(self, row: Tensor, z: Tensor) -> None:
        """Write the logits of this process's columns to the first columns of `z`."""

    @abstractmethod
    def choose_of(self, full: Tensor, row: Tensor, z: Tensor) -> None:
        """Write the logits of this process's columns, of rows that have been read as `full`."""

    def _shared_mass(self, probs: Tensor) -> Tensor:
        return self.exchange.sum(probs.index_select(1, self.local.local.ids).sum(1))

    def _score_multi(self, scores: ShardScores, *, mass: bool) -> None:
        z, settings, paths = scores.z, self.settings, self.model.units.paths
        n_shared = self._problem.n_shared
        multi = slice(scores.units.start - n_shared, scores.units.stop - n_shared)
        row = self.model.units.row[scores.units]
        full = self.shard.rows.full(row)
        z.fill_(-torch.inf)
        self.choose_of(full, row, z)
        scores.stops.merge(z)
        first_id = paths.first_id[multi]
        first = self.shard.picked(full, first_id)
        first_column = self.model.columns.column_of_id[first_id]
        assert self.rest is not None
        log_probs = self.rest.log_probs[multi]
        log_norm = None
        if mass or settings.score == "mean":
            log_norm = self.shard.normalize(full)
        if mass:
            assert log_norm is not None
            scores.shared_mass = self._shared_mass(full)
            # The probability of a shared token includes that of every path that begins with it.
            joint = (first - log_norm + log_probs).exp_()
            scores.realized_mass = joint.masked_fill_(first_column >= 0, 0.0)
        target = self._problem.realized_column[multi]
        own_target = self.plan.owned(target)
        scores.realized = RealizedScores(
            settings.score,
            self.plan.columns,
            paths.length[multi],
            self.plan.owned(first_column),
            own_target,
        )
        is_here = own_target >= 0
        if self.exchange.rank == 0:
            is_here |= target < 0
        rest = self.rest.logits[multi] if settings.score == "mean_logit" else log_probs
        own_first = first.masked_fill(~is_here, -torch.inf)
        scores.realized.insert(z, own_first, log_norm, rest)
        scores.rows = full


class TeacherShardSide(ShardSide):
    """The teacher's rows, whose shared columns are read from rows that have been moved."""

    def __init__(self, problem: Problem, shards: Shards, work: Workspace) -> None:
        side, settings = problem.teacher, problem.settings
        shard = shards.plan.sides["teacher"]
        rows = teacher_rows(local_source(side.source, shard), shard.local, work, settings)
        super().__init__("teacher", problem, side, rows, shards, work)
        # With scratch buffers of its own: it reads while whole rows are in those of `rows`.
        own_work = Workspace(problem.realized_column.device)
        self._columns = teacher_columns(side.source, shards, own_work, settings)

    def merged_stops(self) -> MergedStops:
        """See `ShardSide`."""
        plan = self.plan
        return MergedStops(plan.teacher_stop_column, plan.n_owned, plan.n_teacher_stops)

    def choose(self, row: Tensor, z: Tensor) -> None:
        """See `ShardSide`."""
        self._columns.chosen(row, z[:, : self.plan.teacher_ids.shape[0]])

    def choose_of(self, full: Tensor, row: Tensor, z: Tensor) -> None:
        """See `ShardSide`."""
        del full
        self.choose(row, z)


class StudentShardSide(ShardSide):
    """The student's rows; see `StudentSide`."""

    def __init__(self, problem: Problem, shards: Shards, work: Workspace) -> None:
        head = problem.student.source
        assert isinstance(head, Head)  # shards are those of a head
        self.rows = StudentShardRows(head, shards, work, problem.settings)
        super().__init__("student", problem, problem.student, self.rows, shards, work)
        self._ids = self.local.local.ids

    def merged_stops(self) -> ShardedStops:
        """See `ShardSide`."""
        return ShardedStops(self.plan.student_stops, self.exchange)

    def choose(self, row: Tensor, z: Tensor) -> None:
        """See `ShardSide`."""
        self.rows.chosen(row, z[:, : self._ids.shape[0]])

    def choose_of(self, full: Tensor, row: Tensor, z: Tensor) -> None:
        """See `ShardSide`."""
        del row
        n_ids = self._ids.shape[0]
        torch.gather(full, 1, self._ids.expand(full.shape[0], -1), out=z[:, :n_ids])

    def accumulate(self, scores: ShardScores) -> None:
        """See `StudentSide`."""
        gradient, n_ids = scores.z, self._ids.shape[0]
        row = self.model.units.row[scores.units]
        if scores.realized is None:
            scores.stops.backward(gradient)
            self.rows.write_chosen(row, gradient[:, :n_ids])
            return
        full, n_shared = scores.rows, self._problem.n_shared
        assert full is not None
        assert self.rest is not None
        multi = slice(scores.units.start - n_shared, scores.units.stop - n_shared)
        by_paths = scores.realized.backward(gradient)
        by_first, by_log_norm, by_rest = self.exchange.sum(
            torch.stack([by_paths.first, by_paths.log_norm, by_paths.rest])
        )
        self.rest.grad[multi] = by_rest
        scores.stops.backward(gradient)
        if self.settings.score == "mean":
            full.mul_(by_log_norm.unsqueeze(1))
        else:
            full.zero_()  # the prefix row's log-normalizer cancels
        full.index_add_(1, self._ids, gradient[:, :n_ids])
        self._add_at(full, self.model.units.paths.first_id[multi], by_first)
        self.rows.write_full(row, full)

    def _add_at(self, z: Tensor, ids: Tensor, values: Tensor) -> None:
        """Add one value to one token of every row, where the token is here."""
        column, is_here = self.shard.here(ids)
        z.scatter_add_(1, column.unsqueeze(1), values.masked_fill(~is_here, 0.0).unsqueeze(1))

    def finish_paths(self) -> None:
        """See `Computation`."""
        paths, rows, rest = self.model.units.paths, self.rows, self.rest
        assert rest is not None
        size = rows_per_chunk(self.settings, rows.row_values(True))
        for steps in chunks(paths.rest_row.shape[0], size):
            grad = rest.grad.index_select(0, paths.rest_unit[steps])
            z = rows.full(paths.rest_row[steps])
            if self.settings.score == "mean_logit":
                z.zero_()
            else:
                z.sub_(rest.top[steps].unsqueeze(1)).sub_(rest.log_sum[steps].unsqueeze(1))
                z.exp_().mul_(-grad.unsqueeze(1))
            self._add_at(z, paths.rest_id[steps], grad)
            rows.write_full(paths.rest_row[steps], z)

    def gradients(self) -> list[Tensor]:
        """See `StudentSide`."""
        return self.rows.gradients()


class ShardedComputation:
    """A problem whose columns are cut into shards; see `Computation`.

    Args:
        problem: The problem.
        shards: The shards.
    """

    def __init__(self, problem: Problem, shards: Shards) -> None:
        self.problem, self.settings, self._plan = problem, problem.settings, shards.plan
        self.work = Workspace(problem.realized_column.device)
        self.teacher = TeacherShardSide(problem, shards, self.work)
        self.student = StudentShardSide(problem, shards, self.work)

    def units_per_chunk(self, *, multi: bool) -> int:
        """See `Computation`. It is the same on all processes, which exchange sums of chunks."""
        del multi
        widths = [
            source.hidden.shape[-1] if isinstance(source, Head) else source.columns
            for side in (self.problem.teacher, self.problem.student)
            if isinstance(source := side.source, (Head, Logits))
        ]
        # Scores of both sides; rows, their tanh and their narrow copy; hidden states.
        return rows_per_chunk(self.settings, 5 * (self._plan.widest + 1) + 4 * max(widths))

    def prepare_paths(self) -> None:
        """See `Computation`."""
        self.work.release()
        self.teacher.prepare_paths()
        self.student.prepare_paths()

    def finish_paths(self) -> None:
        """See `Computation`."""
        self.student.finish_paths()

    def compare(self, teacher: ShardScores, student: ShardScores, grad: Tensor | None) -> Tensor:
        """See `Computation`."""
        z_teacher, z_student = teacher.z, student.z
        rows, columns = z_student.shape
        dtype, exchange = self.settings.dtype, self._plan.exchange
        divergence = self.settings.divergence
        assert isinstance(divergence, TermwiseDivergence)  # a loss refuses others with shards
        itemsize = torch.finfo(dtype).bits // 8
        size = max(1, self.settings.scratch_bytes // (itemsize * 2 * columns))
        top, log_sum = z_student.new_empty(2, rows), z_student.new_empty(2, rows)
        for part in chunks(rows, size):
            for i, z in enumerate((z_teacher, z_student)):
                block = self.work.take("log_student", part.stop - part.start, columns, dtype)
                top[i, part], log_sum[i, part] = log_sum_exp_(block.copy_(z[part]))
        top, log_sum = exchange.log_sum_exp(top, log_sum)
        #: The divergence, and the sum of `q_S e`.
        sums = torch.empty_like(top)
        for part in chunks(rows, size):
            log_student = self.work.take("log_student", part.stop - part.start, columns, dtype)
            log_teacher = self.work.take("log_teacher", part.stop - part.start, columns, dtype)
            torch.sub(z_teacher[part], top[0, part].unsqueeze(1), out=log_teacher)
            torch.sub(z_student[part], top[1, part].unsqueeze(1), out=log_student)
            sums[0, part] = divergence.terms(
                log_teacher=log_teacher.sub_(log_sum[0, part].unsqueeze(1)).clamp_(min=LOG_FLOOR),
                log_student=log_student.sub_(log_sum[1, part].unsqueeze(1)).clamp_(min=LOG_FLOOR),
                grad=z_student[part],
            )
            sums[1, part] = z_student[part].sum(1)
            z_teacher[part] = log_student
        value: Tensor
        value, mean = exchange.sum(sums)
        if grad is not None:
            through_softmax(z_teacher, z_student, mean)
            z_student.mul_(grad.unsqueeze(1))
        return value
