"""The chunk loop over units with on-path continuations, and over MULTI units beside them.

A unit's candidates reach into the rows of the tokens behind it, and a row takes gradients of many
units, so the work is split by what it touches:

1. log-normalizers of all rows that a path reads, and the realized tokens' log-probabilities;
2. units by descending student row: shared columns, paths, divergence, and their derivatives. A
   unit's own row is written before units in front of it add to single places of it;
3. rows again, for the part that goes through their log-normalizers: a multiple of the softmax.

The other units take the loop of `Engine`, which is the first to write.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from .engine import STUDENT_SHARED, TEACHER_SHARED, Engine, Options, Result, Side, normalize
from .path_scores import Leaves, PathScores, PathSlopes
from .plan import Wanted
from .realized import log_shared_mass

if TYPE_CHECKING:
    from torch import Tensor

    from .index_view import IndexView
    from .plan import DirectionPlan, Plan, SidePlan
    from .realized import MergedStops
    from .rows import StudentRows, Workspace


def wanted_normalizers(options: Options) -> Wanted:
    """Return which prefix rows need their log-normalizer.

    Args:
        options: what the caller chose.

    Returns:
        The answer for either side.
    """
    everywhere = options.score == "mean" or options.coverage_shared
    filters = options.min_teacher_coverage > 0.0
    return Wanted(
        all_units={"teacher": everywhere or filters, "student": everywhere},
        multi_units={"teacher": options.coverage_multi, "student": options.coverage_multi},
        prefix_gradient=options.score == "mean",
    )


def reordered(index: IndexView, plan: Plan) -> IndexView:
    """Return the index in the plan's order, its planned units in the place of MULTI ones.

    Args:
        index: the view of the index as it came.
        plan: the plan.

    Returns:
        A view whose ``realized_column`` and paths nobody reads.
    """
    planned = plan.host.planned
    return replace(
        index,
        n_shared=plan.order.shape[0] - planned,
        n_multi=planned,
        kind=index.kind[plan.order],
        teacher_row=index.teacher_row[plan.order],
        student_row=index.student_row[plan.order],
    )


class _SidePaths:
    """Step 1 on one side, and what the other steps keep about its rows."""

    def __init__(self, engine: OnPathEngine, name: str, side: Side) -> None:
        self.name = name
        self.other = "student" if name == "teacher" else "teacher"
        self.side = side
        self.plan: SidePlan = engine.plan.sides[name]
        plan, rows = self.plan, side.rows
        self.log_norm = torch.empty(plan.norm_row.shape, dtype=engine.dtype, device=engine.device)
        self.next_log_prob = torch.empty_like(self.log_norm)
        for part in engine.chunks(plan.norm_row.shape[0], rows.row_values(True)):
            z = rows.full(plan.norm_row[part])
            picked = z.gather(1, plan.norm_next[part].unsqueeze(1)).squeeze(1)
            self.log_norm[part] = normalize(z)[0]
            self.next_log_prob[part] = picked - self.log_norm[part]
        n = plan.row.shape[0]
        self.rest = torch.zeros(n, dtype=engine.dtype, device=engine.device)
        self.rest.index_add_(0, plan.rest_unit, self.next_log_prob[plan.rest_at])
        self.first_column = side.table.column_of_id[plan.first_id]
        # Units whose first token nobody asks for have no paths here.
        self.is_column = (
            (plan.length == 1)
            & (self.first_column >= 0)
            & (self.first_column == engine.plan.realized_column)
        )


class OnPathEngine(Engine):
    """`Engine` for ``candidates="on_path"``.

    Args:
        student: the student's side, its units in the plan's order.
        teacher: the teacher's side, likewise.
        index: the index from `reordered`.
        options: what the caller chose.
        weight: ``[]`` or ``[units]``, in the order of the index as it came.
        work: scratch buffers.
        dtype: compute dtype.
        plan: what to do.
        leaves: the leaf tables ``[2, leaves]`` (last tokens, one-sided tokens) of the teacher's
            and the student's direction.
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
        plan: Plan,
        leaves: dict[str, Tensor],
    ) -> None:
        if weight.dim():
            weight = weight[plan.order]
        super().__init__(student, teacher, index, options, weight, work, dtype)
        self.plan = plan
        self.dtype = dtype
        self.device = weight.device
        self._leaves = leaves
        self._wanted = wanted_normalizers(options)

    def run(self, student_rows: StudentRows) -> Result:
        """See `Engine.run`; the result is in the order of the index as it came."""
        result = super().run(student_rows)
        back = torch.empty_like(self.plan.order)
        back[self.plan.order] = torch.arange(back.shape[0], device=back.device)
        return Result(result.per_unit[back], result.stats[:, back])

    def _multi_units(self, student_rows: StudentRows) -> None:
        teacher = _SidePaths(self, "teacher", self._teacher)
        student = _SidePaths(self, "student", self._student)
        d_next = torch.zeros_like(student.log_norm)
        d_norm = torch.zeros_like(student.log_norm)
        d_rest = torch.zeros_like(student.rest)
        leaves = self.plan.host.leaves
        widest = self._columns + 1 + int(leaves.max(initial=0))
        values = 2 * widest + max(
            side.rows.row_values(False) for side in (self._student, self._teacher)
        )
        for part in self.chunks(self.plan.host.planned, values):
            columns = self._columns + 1 + int(leaves[part].max(initial=0))
            rows = part.stop - part.start
            units = slice(self._index.n_shared + part.start, self._index.n_shared + part.stop)
            z_teacher = self._work.take("z_teacher", rows, columns, self._dtype)
            z_student = self._work.take("z_student", rows, columns, self._dtype)
            self._scores(teacher, part, z_teacher)
            self._keep(units)
            scores, stops, at = self._scores(student, part, z_student)
            self._divergence(z_student, z_teacher, units)
            if not self._options.gradient:
                continue
            slopes = scores.pull_back(z_student)
            stops.pull_back(z_student)
            plan = student.plan
            student_rows.put_chosen(
                plan.row[part], z_student[:, : self._student.table.ids.shape[0]]
            )
            student_rows.add_at(plan.row[part], plan.first_id[part], slopes.first)
            d_rest[part] = slopes.rest
            self._add_leaves(student_rows, at, slopes, d_norm)
            step_at = plan.step_at[part]
            steps = slopes.steps.masked_fill(step_at < 0, 0.0)
            if d_next.shape[0]:
                d_next.index_add_(0, step_at.clamp_min(0).view(-1), steps.view(-1))
            if self._wanted.prefix_gradient:
                d_norm.index_add_(0, plan.prefix_at[part], slopes.log_norm)
        if self._options.gradient:
            d_next.index_add_(0, student.plan.rest_at, d_rest[student.plan.rest_unit])
            self._softmax_part(student_rows, student, d_next, d_norm - d_next)

    def _add_leaves(
        self,
        student_rows: StudentRows,
        at: tuple[Leaves, Leaves],
        slopes: PathSlopes,
        d_norm: Tensor,
    ) -> None:
        spelled, single = at
        for leaves, slope in ((spelled, slopes.spelled), (single, slopes.single)):
            if slope.shape[0]:
                student_rows.add_at(leaves.row, leaves.token, slope)
        if slopes.spelled.shape[0]:
            d_norm.index_add_(0, spelled.norm_at, slopes.spelled, alpha=-1)

    def _softmax_part(
        self, student_rows: StudentRows, student: _SidePaths, d_next: Tensor, d_norm: Tensor
    ) -> None:
        self._work.release()
        plan = student.plan
        total = self.plan.host.gradient_rows
        for part in self.chunks(total, student_rows.row_values(True)):
            rows = plan.norm_row[part]
            z = student_rows.full(rows)
            z.sub_(student.log_norm[part].unsqueeze(1)).exp_()
            z.mul_(d_norm[part].unsqueeze(1))
            next_id = plan.norm_next[part].unsqueeze(1)
            z.scatter_add_(1, next_id, d_next[part].unsqueeze(1))
            student_rows.add_full(rows, z)

    # Scores of one side

    def _expand(self, name: str, part: slice, width: int) -> tuple[Tensor, ...]:
        """Number the leaves of a chunk: entry, unit in the chunk, place in the scores, leaf."""
        entries: DirectionPlan = self.plan.directions[name]
        host = self.plan.host
        first, last = host.first_entry[name][[part.start, part.stop]].tolist()
        start, stop = host.entry_leaves[name][[first, last]].tolist()
        here = slice(first, last)
        counts = entries.leaves[here]
        numbers = torch.arange(last - first, device=self.device)
        entry = torch.repeat_interleave(numbers, counts, output_size=stop - start)
        within = torch.arange(stop - start, device=self.device)
        within = within - (counts.cumsum(0) - counts)[entry]
        unit = (entries.unit[here] - part.start)[entry]
        flat = unit * width + self._columns + 1 + entries.place[here][entry] + within
        return entry + first, unit, flat, entries.first_leaf[here][entry] + within

    def _leaves_of(self, paths: _SidePaths, part: slice, width: int) -> tuple[Leaves, Leaves]:
        """Return the leaves of a chunk that a side spells, and those that are its own tokens."""
        plan, rows = paths.plan, paths.side.rows
        prefix = plan.row[part]
        entry, unit, flat, leaf = self._expand(paths.other, part, width)
        entries = self.plan.directions[paths.other]
        depth, norm_at = entries.depth[entry], entries.norm_at[entry]
        token = self._leaves[paths.other][0, leaf]
        row = prefix[unit] + depth
        value = rows.pick(row, token) - paths.log_norm[norm_at]
        spelled = Leaves(unit, flat, token, row, depth, norm_at, value)
        entry, unit, flat, leaf = self._expand(paths.name, part, width)
        token, row = self._leaves[paths.name][1, leaf], prefix[unit]
        none = torch.zeros_like(unit)
        single = Leaves(unit, flat, token, row, none, none, rows.pick(row, token))
        return spelled, single

    def _scores(
        self, paths: _SidePaths, part: slice, z: Tensor
    ) -> tuple[PathScores, MergedStops, tuple[Leaves, Leaves]]:
        """Fill a chunk's scores of one side."""
        plan, side, slot = paths.plan, paths.side, self._columns
        units = slice(self._index.n_shared + part.start, self._index.n_shared + part.stop)
        ids = side.table.ids
        rows = plan.row[part]
        side.rows.chosen(rows, z[:, : ids.shape[0]])
        z[:, ids.shape[0] :] = -torch.inf
        stops = self._stops(side)
        stops.merge(z)
        leaves = self._leaves_of(paths, part, z.shape[1])
        first = side.rows.pick(rows, plan.first_id[part])
        prefix_at = plan.prefix_at[part]
        log_norm = None
        if paths.log_norm.shape[0]:
            log_norm = paths.log_norm[prefix_at.clamp_min(0)]
        node = plan.node[part]
        continues = node >= 0
        node = torch.where(continues, node + slot + 1, -1)
        first_column = torch.where(
            paths.first_column[part] >= 0, paths.first_column[part], node[:, 0]
        )
        node[:, 0] = first_column
        column, leaf = self.plan.realized_column[part], self.plan.realized_leaf[part]
        step_at = plan.step_at[part]
        steps = torch.zeros(step_at.shape, dtype=self._dtype, device=self.device)
        if paths.log_norm.shape[0]:
            steps = paths.next_log_prob[step_at.clamp_min(0)].masked_fill(step_at < 0, 0.0)
        scores = PathScores(
            self._options.score,
            slot,
            plan.length[part],
            node,
            continues,
            torch.where(leaf >= 0, leaf + slot + 1, column),
            (plan.same[part] > 0) | paths.is_column[part],
            steps,
            paths.rest[part],
            first,
            log_norm,
            *leaves,
        )
        self._cover(paths, part, units, z, scores, leaves[1], first, log_norm)
        scores.insert(z)
        return scores, stops, leaves

    def _cover(
        self,
        paths: _SidePaths,
        part: slice,
        units: slice,
        z: Tensor,
        scores: PathScores,
        single: Leaves,
        first: Tensor,
        log_norm: Tensor | None,
    ) -> None:
        """Note the coverage of the units for which it was asked."""
        options = self._options
        filters = self._filters and not paths.side.is_student
        if options.coverage_shared or filters:
            measured = torch.arange(units.stop - units.start, device=self.device)
        elif options.coverage_multi:
            bounds = np.searchsorted(self.plan.host.multi, [part.start, part.stop]).tolist()
            measured = self.plan.multi[slice(*bounds)] - part.start
        else:
            return
        if log_norm is None or not measured.shape[0]:
            return
        norm = log_norm[measured]
        mass = log_shared_mass(z[measured], self._n_shared_tokens)
        shared = (mass - norm).exp_()
        first_log_prob = first - log_norm
        everywhere = (single.value - log_norm[single.unit]).exp_()
        singles = torch.zeros_like(first).index_add_(0, single.unit, everywhere)
        paths_only = scores.covered_behind_first(first_log_prob)
        realized = (first_log_prob + paths.rest[part]).exp_()
        realized = realized.masked_fill(
            (paths.first_column[part] >= 0) | (paths.plan.length[part] == 0), 0.0
        )
        beyond = (singles + paths_only)[measured]
        first_row = STUDENT_SHARED if paths.side.is_student else TEACHER_SHARED
        at = units.start + measured
        self._stats[first_row, at] = shared
        self._stats[first_row + 1, at] = shared + realized[measured]
        self._stats[first_row + 2, at] = shared + beyond
