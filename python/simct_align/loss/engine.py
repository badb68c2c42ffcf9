"""The chunk loop: per-unit divergences, their derivative by the student's logits, and coverage.

The formulas are those of the supervision space: at a unit's prefix h the candidates are the shared
tokens, the stops as one of them, and at a MULTI unit the realized unit; their scores become two
distributions q_S and q_T, and the loss is D(q_S, q_T). With ``g = dD / d scores``, summing to 0:

* SHARED and SPECIAL units: scores are ``z - L``, the log-normalizer L cancels, and only the shared
  columns of the prefix row are read and written.
* MULTI units: ``g`` at the realized unit also reaches ``L`` of its prefix row and the logits and
  log-normalizers of the path's other steps, each of which is a whole row.

A prefix row or path step is a token position of its own, so every student row is written once. (If
a caller's row starts overlap, two units claim one row and the gradient there is the last one's.)

Everything here runs under no autograd, with loops over host integers only: nothing waits for the
device. Peak memory is O(chunk x vocabulary), set by ``chunk_bytes``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..divergence import LOG_FLOOR, Divergence
from .realized import MergedStops, RealizedScores
from .rows import normalize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from .index_view import IndexView, RealizedPaths
    from .rows import Rows, StudentRows, Workspace
    from .tables import SideTable

KEPT, TEACHER_SHARED, TEACHER_REALIZED, TEACHER_CANDIDATES = range(4)
STUDENT_SHARED, STUDENT_REALIZED, STUDENT_CANDIDATES = range(4, 7)
"""Rows of `Result.stats`: what the models put on the shared vocabulary, on this and the realized
unit, and on all candidates."""
N_STATS = 7


@dataclass(frozen=True)
class Options:
    """What the caller chose.

    Attributes:
        score: one of `SCORES`.
        divergence: value and derivative.
        multi: whether MULTI units take part.
        min_teacher_mass: units below this add 0.
        coverage_multi: coverage is wanted at MULTI units.
        coverage_shared: and at SHARED and SPECIAL units.
        chunk_bytes: workspace to aim for.
        gradient: whether the student's gradient is wanted.
        stop_column: shared column of the stops, -1 if none.
    """

    score: str
    divergence: Divergence
    multi: bool
    min_teacher_mass: float
    coverage_multi: bool
    coverage_shared: bool
    chunk_bytes: int
    gradient: bool
    stop_column: int


@dataclass(frozen=True)
class Side:
    """One model: its rows, its ids, and which row of logits predicts each unit."""

    rows: Rows
    table: SideTable
    unit_row: Tensor
    paths: RealizedPaths
    is_student: bool


@dataclass(frozen=True)
class Result:
    """``per_unit`` ``[units]`` and ``stats`` ``[N_STATS, units]``, coverage 0 where not asked."""

    per_unit: Tensor
    stats: Tensor


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _add_at(z: Tensor, column: Tensor, value: Tensor) -> None:
    """Add one value to one column of every row."""
    column = column.unsqueeze(1)
    z.scatter_(1, column, z.gather(1, column) + value.unsqueeze(1))


class Engine:
    """One forward computation; `run` does it.

    Args:
        student: the student's side; its rows take the gradient.
        teacher: the teacher's side.
        index: the units.
        options: what the caller chose.
        weight: ``[]`` or ``[units]``, what every unit's gradient is multiplied by.
        work: scratch buffers.
        dtype: compute dtype.
    """

    def __init__(
        self,
        student: Side,
        teacher: Side,
        index: IndexView,
        options: Options,
        weight: Tensor,
        work: Workspace,
        dtype: torch.dtype,
    ) -> None:
        self._student = student
        self._teacher = teacher
        self._index = index
        self._options = options
        self._work = work
        self._dtype = dtype
        self._units = index.n_shared + (index.n_multi if options.multi else 0)
        self._weight = weight.to(dtype).expand(self._units)
        device = weight.device
        self._per_unit = torch.zeros(self._units, dtype=dtype, device=device)
        self._stats = torch.zeros((N_STATS, self._units), dtype=dtype, device=device)
        self._n_shared_tokens = student.table.ids.shape[0] - student.table.n_extra
        # Stops but the first have columns behind the shared ones, as many as the side with more.
        self._columns = max(student.table.ids.shape[0], teacher.table.ids.shape[0])
        self._filters = options.min_teacher_mass > 0.0
        self._item = torch.finfo(dtype).bits // 8

    def run(self, student_rows: StudentRows) -> Result:
        """Compute everything; the gradient goes to ``student_rows``.

        Args:
            student_rows: the rows of ``student``, as the side that takes the gradient.

        Returns:
            Divergences and coverage per unit.
        """
        self._shared_units(student_rows)
        if self._options.multi and self._index.n_multi:
            self._work.release()
            self._multi_units(student_rows)
        return Result(self._per_unit, self._stats)

    # How many rows fit: a quarter of the workspace is for the elementwise arrays.

    def chunks(self, total: int, values: int) -> Iterator[slice]:
        """Yield slices of so many rows that take ``values`` of workspace each."""
        return _chunks(total, self._chunk(values))

    def _chunk(self, values: int) -> int:
        return max(1, 3 * self._options.chunk_bytes // (4 * self._item * values))

    def _elementwise_chunk(self, columns: int) -> int:
        return max(1, self._options.chunk_bytes // (4 * self._item * 2 * columns))

    def _divergence(self, z_student: Tensor, z_teacher: Tensor, units: slice) -> None:
        """Turn scores into divergences; the weighted derivative replaces the student's scores."""
        columns = z_student.shape[1]
        for part in _chunks(z_student.shape[0], self._elementwise_chunk(columns)):
            block = z_student[part]
            rows = block.shape[0]
            log_student = self._work.take("log_student", rows, columns, self._dtype)
            log_teacher = self._work.take("log_teacher", rows, columns, self._dtype)
            torch.log_softmax(block, 1, out=log_student).clamp_(min=LOG_FLOOR)
            torch.log_softmax(z_teacher[part], 1, out=log_teacher).clamp_(min=LOG_FLOOR)
            value = self._options.divergence(log_student, log_teacher, block)
            at = slice(units.start + part.start, units.start + part.stop)
            kept = self._stats[KEPT, at]
            # A unit that is left out adds exactly 0, whatever its value is.
            self._per_unit[at] = torch.where(kept > 0, value, torch.zeros_like(value))
            if self._options.gradient:
                block.mul_((self._weight[at] * kept).unsqueeze(1))

    def _keep(self, units: slice) -> None:
        if self._filters:
            coverage = self._stats[TEACHER_CANDIDATES, units]
            self._stats[KEPT, units] = (coverage >= self._options.min_teacher_mass).to(self._dtype)
        else:
            self._stats[KEPT, units] = 1.0

    def _stops(self, side: Side) -> MergedStops:
        return MergedStops(self._options.stop_column, self._n_shared_tokens, side.table.n_extra)

    def shared_mass(self, side: Side, probs: Tensor) -> Tensor:
        """Return what the shared tokens have, stops among them.

        Args:
            side: whose rows.
            probs: ``[c, columns]`` softmax of whole rows.

        Returns:
            ``[c]`` probabilities.
        """
        ids = side.table.ids
        chosen = self._work.take("log_student", probs.shape[0], ids.shape[0], self._dtype)
        mass: Tensor = torch.gather(probs, 1, ids.expand(probs.shape[0], -1), out=chosen).sum(1)
        return mass

    def _set_coverage(
        self, side: Side, units: slice, shared: Tensor, beyond: Tensor | None
    ) -> None:
        first = STUDENT_SHARED if side.is_student else TEACHER_SHARED
        self._stats[first, units] = shared
        self._stats[first + 1 : first + 3, units] = shared if beyond is None else shared + beyond

    # SHARED and SPECIAL units

    def _shared_scores(self, side: Side, units: slice, z: Tensor, coverage: bool) -> MergedStops:
        rows = side.unit_row[units]
        ids = side.table.ids
        listed = z[:, : ids.shape[0]]
        if coverage:
            self._set_coverage(side, units, self.shared_mass(side, side.rows.softmax(rows)), None)
        side.rows.chosen(rows, listed)
        z[:, ids.shape[0] :] = -torch.inf
        stops = self._stops(side)
        stops.merge(z)
        return stops

    def _shared_units(self, student_rows: StudentRows) -> None:
        options = self._options
        teacher_coverage = options.coverage_shared or self._filters
        values = 2 * self._columns + max(
            self._student.rows.row_values(options.coverage_shared),
            self._teacher.rows.row_values(teacher_coverage),
        )
        ids = self._student.table.ids
        for units in _chunks(self._index.n_shared, self._chunk(values)):
            rows = units.stop - units.start
            z_teacher = self._work.take("z_teacher", rows, self._columns, self._dtype)
            z_student = self._work.take("z_student", rows, self._columns, self._dtype)
            self._shared_scores(self._teacher, units, z_teacher, teacher_coverage)
            self._keep(units)
            stops = self._shared_scores(self._student, units, z_student, options.coverage_shared)
            self._divergence(z_student, z_teacher, units)
            if options.gradient:
                stops.pull_back(z_student)
                student_rows.put_chosen(self._student.unit_row[units], z_student[:, : ids.shape[0]])

    # MULTI units

    @property
    def _coverage_multi(self) -> bool:
        return self._options.coverage_multi or self._filters

    def _rest(self, side: Side) -> tuple[Tensor, Tensor]:
        """Sum the logits, and the log-probabilities, of the steps after the first, per unit."""
        paths = side.paths
        logits = torch.zeros(self._index.n_multi, dtype=self._dtype, device=self._weight.device)
        picked = side.rows.pick(paths.rest_row, paths.rest_id)
        logits.index_add_(0, paths.rest_unit, picked)
        log_norm = torch.empty_like(picked)
        for steps in self.chunks(paths.rest_row.shape[0], side.rows.row_values(True)):
            side.rows.softmax(paths.rest_row[steps], log_norm[steps])
        return logits, logits.index_add(0, paths.rest_unit, log_norm, alpha=-1)

    def _multi_scores(
        self, side: Side, multi: slice, z: Tensor, rest: tuple[Tensor, Tensor], coverage: bool
    ) -> tuple[RealizedScores, MergedStops, Tensor]:
        """Fill a chunk's scores; also return the prefix rows, normalized where that was needed."""
        options, index, paths = self._options, self._index, side.paths
        units = slice(index.n_shared + multi.start, index.n_shared + multi.stop)
        ids = side.table.ids
        full = side.rows.full(side.unit_row[units])
        torch.gather(full, 1, ids.expand(full.shape[0], -1), out=z[:, : ids.shape[0]])
        z[:, ids.shape[0] :] = -torch.inf
        stops = self._stops(side)
        stops.merge(z)
        first_id = paths.first_id[multi]
        first = full.gather(1, first_id.unsqueeze(1)).squeeze(1)
        first_column = side.table.column_of_id[first_id]
        logits, log_probs = rest[0][multi], rest[1][multi]
        log_norm = None
        if coverage or options.score == "mean":
            log_norm = normalize(full)
        if coverage:
            assert log_norm is not None
            shared = self.shared_mass(side, full)
            # A path behind a shared token lies within that token's probability already.
            joint = (first - log_norm + log_probs).exp_().masked_fill_(first_column >= 0, 0.0)
            self._set_coverage(side, units, shared, joint)
        realized = RealizedScores(
            options.score,
            self._columns,
            paths.length[multi],
            first_column,
            index.realized_column[multi],
        )
        realized.insert(z, first, log_norm, logits if options.score == "mean_logit" else log_probs)
        return realized, stops, full

    def _multi_units(self, student_rows: StudentRows) -> None:
        options, index, student = self._options, self._index, self._student
        columns = self._columns + 1
        rest_teacher = self._rest(self._teacher)
        rest_student = self._rest(student)
        d_rest = torch.zeros_like(rest_student[0])
        widest = max(student.rows.row_values(True), self._teacher.rows.row_values(True))
        for multi in _chunks(index.n_multi, self._chunk(2 * columns + widest)):
            rows = multi.stop - multi.start
            units = slice(index.n_shared + multi.start, index.n_shared + multi.stop)
            z_teacher = self._work.take("z_teacher", rows, columns, self._dtype)
            z_student = self._work.take("z_student", rows, columns, self._dtype)
            coverage = self._coverage_multi
            self._multi_scores(self._teacher, multi, z_teacher, rest_teacher, coverage)
            self._keep(units)
            coverage = options.coverage_multi
            realized, stops, full = self._multi_scores(
                student, multi, z_student, rest_student, coverage
            )
            self._divergence(z_student, z_teacher, units)
            if not options.gradient:
                continue
            first, log_norm, d_rest[multi] = realized.pull_back(z_student)
            stops.pull_back(z_student)
            if options.score == "mean":
                full.mul_(log_norm.unsqueeze(1))
            else:
                full.zero_()  # the prefix row's log-normalizer cancels
            ids = student.table.ids.expand(rows, -1)
            gradient = z_student[:, : ids.shape[1]]
            at_ids = self._work.take("z_teacher", rows, ids.shape[1], self._dtype)
            gradient.add_(torch.gather(full, 1, ids, out=at_ids))
            full.scatter_(1, ids, gradient)
            _add_at(full, student.paths.first_id[multi], first)
            student_rows.put_full(student.unit_row[units], full)
        if options.gradient:
            self._rest_gradient(student_rows, d_rest)

    def _rest_gradient(self, student_rows: StudentRows, d_rest: Tensor) -> None:
        paths = self._student.paths
        for steps in self.chunks(paths.rest_row.shape[0], student_rows.row_values(True)):
            slope = d_rest.index_select(0, paths.rest_unit[steps])
            if self._options.score == "mean_logit":
                z = student_rows.full(paths.rest_row[steps]).zero_()
            else:
                z = student_rows.softmax(paths.rest_row[steps]).mul_(-slope.unsqueeze(1))
            _add_at(z, paths.rest_id[steps], slope)
            student_rows.put_full(paths.rest_row[steps], z)
