"""Internal: the chunk loop over MULTI units and units with on-path continuations.

The candidates of a unit read rows of later tokens, and a row gets gradients from many units. The
work therefore has three steps:

1. Compute the log-normalizers of all rows that a path reads, the realized tokens'
   log-probabilities, and the mass on the shared tokens where it is wanted.
2. Go through the units by descending student row: score the shared columns and the paths, and
   compute the divergence and its derivatives. The gradient of a unit's own row is written before
   earlier units add to single columns of that row.
3. Go through the rows again, and add the gradient through the log-normalizers, which is a multiple
   of the softmax.

All other units take the loop of `Engine`, which writes its rows first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...engine import Engine, Result
from ...metrics import STUDENT_MASS, TEACHER_MASS
from ...scores.on_path import Entries, Leaves, PathScores, RealizedUnits
from ...scores.on_path_plan import OTHER, SIDES, Wanted
from ...scores.planner import make_plan
from .computation import TorchComputation, rows_per_chunk

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import Side

    from ...layout import IndexSizes
    from ...scores.on_path_plan import DirectionPlan, Plan, SidePlan
    from ..protocol import Problem, Settings, SideProblem
    from .computation import TorchSide

_GROUP = 64
"""The number of units whose paths are scored at once on the CPU. A larger group needs fewer small
operations; a smaller group fits the cache. On other devices only memory bounds a group, because
every operation is a kernel launch."""


@dataclass(frozen=True)
class LeafTokens:
    """The leaves of one direction.

    Attributes:
        last_token: `[leaves]` last token of the spelling, an id of the side that spells.
        one_sided_token: `[leaves]` the one-sided token, an id of the other side.
    """

    last_token: Tensor
    one_sided_token: Tensor


@dataclass(frozen=True)
class Continuations:
    """The inputs of `OnPathEngine` in addition to the problem.

    Attributes:
        host: The packed index, on the host.
        sizes: The sizes of the index.
        spellings: The packed spellings by direction, from `pack_spellings`; on the host.
        leaves: The tokens of the leaves by direction.
        column_of_shared: `[shared + 1]` column of every entry of the shared vocabulary.
    """

    host: Tensor
    sizes: IndexSizes
    spellings: dict[Side, Tensor]
    leaves: dict[Side, LeafTokens]
    column_of_shared: Tensor

    def plan(self, settings: Settings, device: torch.device) -> Plan:
        """Return the plan of the batch, with the realized columns in the loss's numbering."""
        wanted = wanted_of_prefixes(settings)
        plan = make_plan(self.host, self.sizes, self.spellings, wanted, device)
        column = self.column_of_shared[plan.units.realized_column]
        return replace(plan, units=replace(plan.units, realized_column=column))


def wanted_of_prefixes(settings: Settings) -> Wanted:
    """Return the values of prefix rows that a loss needs.

    Args:
        settings: The settings of the loss.

    Returns:
        The values that are wanted.
    """
    all_units = {"student": settings.mass_shared}
    all_units["teacher"] = settings.mass_shared or settings.min_teacher_mass > 0.0
    others = "multi" if settings.mass_multi else "none"
    return Wanted(
        measured={side: "all" if all_units[side] else others for side in SIDES},
        log_norm=settings.score == "mean",
    )


def _reordered(problem: Problem, plan: Plan) -> Problem:
    """Return the problem in the plan's order, with the planned units as its MULTI units.

    The paths and realized columns of the result are not reordered; the plan has its own.
    """
    order, planned = plan.units.order, plan.host.planned

    def reordered(side: SideProblem) -> SideProblem:
        return replace(side, units=replace(side.units, row=side.units.row[order]))

    return replace(
        problem,
        teacher=reordered(problem.teacher),
        student=reordered(problem.student),
        n_shared=order.shape[0] - planned,
        n_multi=planned,
    )


class _SidePaths:
    """One side's rows: the results of step 1, which the other steps read."""

    def __init__(self, engine: OnPathEngine, name: Side, side: TorchSide) -> None:
        self.name = name
        self.other = OTHER[name]
        self.side = side
        self.plan: SidePlan[Tensor] = engine.plan.sides[name]
        plan, rows, dtype = self.plan, side.rows, engine.settings.dtype
        self.log_norm = torch.empty(plan.norm_row.shape, dtype=dtype, device=engine.device)
        # The mass on the shared tokens, in the prefix rows where it is wanted.
        self.shared_mass = torch.zeros_like(self.log_norm)
        measured = engine.plan.host.measured[name]
        for part in side.chunks(plan.norm_row.shape[0], rows.row_values(True)):
            probs = rows.softmax(plan.norm_row[part], self.log_norm[part])
            inside = slice(max(part.start, measured.start), part.stop)
            if inside.start < inside.stop:
                probs = probs[inside.start - part.start :]
                self.shared_mass[inside] = side.shared_mass(probs)
        self.next_log_prob = rows.pick(plan.norm_row, plan.norm_next).sub_(self.log_norm)
        n = plan.row.shape[0]
        self.rest = torch.zeros(n, dtype=dtype, device=engine.device)
        self.rest.index_add_(0, plan.rest_unit, self.next_log_prob[plan.rest_at])
        self.first_column = side.model.columns.column_of_id[plan.first_id]
        # A unit without a known first token has no path here.
        self.is_column = (
            (plan.length == 1)
            & (self.first_column >= 0)
            & (self.first_column == engine.plan.units.realized_column)
        )


class OnPathEngine(Engine):
    """`Engine` for `candidates="on_path"`, in PyTorch operations.

    Args:
        problem: The problem.
        continuations: The inputs in addition to the problem.
        weight: `[]` or `[units]` factor of every unit's gradient, in the order of the index.
    """

    def __init__(self, problem: Problem, continuations: Continuations, weight: Tensor) -> None:
        self.plan = continuations.plan(problem.settings, weight.device)
        problem = _reordered(problem, self.plan)
        if weight.dim():
            weight = weight[self.plan.units.order]
        self.computation = TorchComputation(problem)
        super().__init__(problem, self.computation, weight)
        self.device = weight.device
        self._leaves = continuations.leaves
        self._columns = self.computation.student.columns
        self._needs_log_norm = wanted_of_prefixes(problem.settings).log_norm

    def run(self) -> Result:
        """Compute everything: see `Engine.run`. The result is in the order of the index."""
        result = super().run()
        order = self.plan.units.order
        back = torch.empty_like(order)
        back[order] = torch.arange(back.shape[0], device=back.device)
        return Result(result.per_unit[back], result.stats[:, back])

    def compare_multi(self) -> None:
        """Compare the planned units."""
        self.computation.work.release()
        student_rows = self.computation.student.rows
        teacher = _SidePaths(self, "teacher", self.computation.teacher)
        student = _SidePaths(self, "student", self.computation.student)
        d_next = torch.zeros_like(student.log_norm)
        d_norm = torch.zeros_like(student.log_norm)
        d_rest = torch.zeros_like(student.rest)
        for group, chunks in self._groups():
            paths = self._paths((teacher, student), group, chunks)
            for part in chunks:
                self._units_of(part, group, (teacher, student), paths)
            if not self.settings.gradient:
                continue
            scores, spelled, single = paths["student"]
            grads, plan = scores.backward(), student.plan
            student_rows.accumulate_at(plan.row[group], plan.first_id[group], grads.first)
            student_rows.accumulate_at(spelled.row, spelled.token, grads.spelled)
            student_rows.accumulate_at(single.row, single.token, grads.single)
            d_rest[group] = grads.rest
            if d_next.shape[0]:
                entries = spelled.entries
                d_norm.index_add_(0, entries.norm_at, entries.sums(grads.spelled), alpha=-1)
                step_at = plan.step_at[group]
                steps = grads.steps.masked_fill(step_at < 0, 0.0)
                d_next.index_add_(0, step_at.clamp_min(0).view(-1), steps.view(-1))
            if self._needs_log_norm:
                d_norm.index_add_(0, plan.prefix_at[group], grads.log_norm)
        if self.settings.gradient:
            d_next.index_add_(0, student.plan.rest_at, d_rest[student.plan.rest_unit])
            self._softmax_part(student, d_next, d_norm - d_next)

    def _groups(self) -> list[tuple[slice, list[slice]]]:
        """Cut the planned units into groups, whose paths are scored at once, and chunks of groups.

        Returns:
            Groups with their chunks, both bounded in memory.
        """
        leaves = self.plan.host.leaves
        widest = self._columns + 1 + int(leaves.max(initial=0))
        sides = (self.computation.teacher, self.computation.student)
        row_values = max(side.rows.row_values(False) for side in sides)
        size = rows_per_chunk(self.settings, 2 * widest + row_values)
        total = self.plan.host.planned
        before = np.concatenate([[0], np.cumsum(leaves)])
        # A leaf needs about 16 numbers.
        room = self.settings.chunk_bytes // (16 * 8)
        most = _GROUP if self.device.type == "cpu" else total
        groups = []
        start = 0
        while start < total:
            fits = int(np.searchsorted(before, before[start] + room, side="right")) - 1
            stop = min(total, max(start + size, min(fits, start + most)))
            chunks = [slice(at, min(at + size, stop)) for at in range(start, stop, size)]
            groups.append((slice(start, stop), chunks))
            start = stop
        return groups

    def _width(self, part: slice) -> int:
        """Return the number of columns of a chunk's scores: shared ones, the slot, the leaves."""
        return self._columns + 1 + int(self.plan.host.leaves[part].max(initial=0))

    def _units_of(
        self,
        part: slice,
        group: slice,
        sides: tuple[_SidePaths, _SidePaths],
        paths: dict[Side, tuple[PathScores, Leaves, Leaves]],
    ) -> None:
        """Compute divergences and derivatives of a chunk."""
        rows = part.stop - part.start
        columns = self._width(part)
        units = slice(self.problem.n_shared + part.start, self.problem.n_shared + part.stop)
        here = slice(part.start - group.start, part.stop - group.start)
        first, last = np.searchsorted(self.plan.host.multi, [part.start, part.stop]).tolist()
        has_paths = last > first
        z, stops = {}, {}
        for paths_of_side in sides:
            name, side = paths_of_side.name, paths_of_side.side
            z[name] = self.computation.work.take(f"z_{name}", rows, columns, self.settings.dtype)
            n_ids = side.model.columns.ids.shape[0]
            side.rows.chosen(paths_of_side.plan.row[part], z[name][:, :n_ids])
            z[name][:, n_ids:] = -torch.inf
            stops[name] = side.merged_stops()
            stops[name].merge(z[name])
            paths[name][0].insert(z[name], here, has_paths=has_paths)
            if name == "teacher":
                self.decide(units)
        divergence = self.computation.divergence(z["teacher"], z["student"], self.grad(units))
        self.record(units, divergence)
        if self.settings.gradient:
            paths["student"][0].collect(z["student"], here, has_paths=has_paths)
            stops["student"].backward(z["student"])
            student = self.computation.student
            n_ids = student.model.columns.ids.shape[0]
            row = self.plan.sides["student"].row[part]
            student.rows.write_chosen(row, z["student"][:, :n_ids])

    def _softmax_part(self, student: _SidePaths, d_next: Tensor, d_norm: Tensor) -> None:
        self.computation.work.release()
        plan, rows = student.plan, self.computation.student.rows
        for part in student.side.chunks(self.plan.host.gradient_rows, rows.row_values(True)):
            at = plan.norm_row[part]
            z = rows.softmax(at).mul_(d_norm[part].unsqueeze(1))
            next_id = plan.norm_next[part].unsqueeze(1)
            z.scatter_add_(1, next_id, d_next[part].unsqueeze(1))
            rows.accumulate_full(at, z)

    # The paths of a group of units, on one side.

    def _entries(self, name: Side, group: slice, row_begin: Tensor) -> tuple[Entries, Tensor]:
        """Return the entries of a group in one direction, and the numbers of their leaves.

        Args:
            name: The direction.
            group: The units of the group.
            row_begin: `[units]` the place in the scores of the chunk where a unit's row begins.

        Returns:
            The entries, and for every leaf its number in the leaf table.
        """
        plan: DirectionPlan[Tensor] = self.plan.directions[name]
        host = self.plan.host
        firsts = host.first_entry[name][group.start : group.stop + 1]
        before = host.entry_leaves[name][firsts]
        bounds = before - before[0]
        here, total = slice(int(firsts[0]), int(firsts[-1])), int(bounds[-1])
        counts = plan.leaves[here]
        numbers = torch.arange(counts.shape[0], device=self.device)
        entry = torch.repeat_interleave(numbers, counts, output_size=total)
        number = torch.arange(total, device=self.device)
        leaves_before = counts.cumsum(0) - counts
        unit = plan.unit[here] - group.start
        begin = row_begin[unit] + plan.place[here] + (self._columns + 1)
        place = (begin - leaves_before).index_select(0, entry).add_(number)
        leaf = (plan.first_leaf[here] - leaves_before).index_select(0, entry).add_(number)
        return Entries(unit, plan.depth[here], plan.norm_at[here], entry, place, bounds), leaf

    def _leaves_of(
        self, paths: _SidePaths, group: slice, entries: dict[Side, tuple[Entries, Tensor]]
    ) -> tuple[Leaves, Leaves]:
        """Return the spelled leaves and the single leaves of a group on one side."""
        prefix, rows = paths.plan.row[group], paths.side.rows
        at, leaf = entries[paths.other]
        token = self._leaves[paths.other].last_token.index_select(0, leaf)
        row = at.spread(prefix[at.unit] + at.depth)
        value = rows.pick(row, token).sub_(at.spread(paths.log_norm[at.norm_at]))
        spelled = Leaves(at, token, row, value)
        at, leaf = entries[paths.name]
        token = self._leaves[paths.name].one_sided_token.index_select(0, leaf)
        row = at.spread(prefix[at.unit])
        return spelled, Leaves(at, token, row, rows.pick(row, token))

    def _paths(
        self, sides: tuple[_SidePaths, _SidePaths], group: slice, chunks: list[slice]
    ) -> dict[Side, tuple[PathScores, Leaves, Leaves]]:
        """Score the paths of a group on both sides."""
        widths = [(part.stop - part.start, self._width(part)) for part in chunks]
        row_begin = torch.cat(
            [torch.arange(0, rows * width, width, device=self.device) for rows, width in widths]
        )
        entries = {side.name: self._entries(side.name, group, row_begin) for side in sides}
        return {
            side.name: self._score(side, group, *self._leaves_of(side, group, entries))
            for side in sides
        }

    def _score(
        self, paths: _SidePaths, group: slice, spelled: Leaves, single: Leaves
    ) -> tuple[PathScores, Leaves, Leaves]:
        """Score the paths of a group on one side, and keep the masses of the candidates."""
        plan, side, slot = paths.plan, paths.side, self._columns
        first = side.rows.pick(plan.row[group], plan.first_id[group])
        node = plan.node[group]
        continues = node >= 0
        node = torch.where(continues, node + slot + 1, -1)
        first_column = paths.first_column[group]
        node[:, 0] = torch.where(first_column >= 0, first_column, node[:, 0])
        column = self.plan.units.realized_column[group]
        leaf = self.plan.units.realized_leaf[group]
        step_at = plan.step_at[group]
        steps = torch.zeros(step_at.shape, dtype=self.settings.dtype, device=self.device)
        log_norm = None
        if paths.log_norm.shape[0]:
            log_norm = paths.log_norm[plan.prefix_at[group].clamp_min(0)]
            steps = paths.next_log_prob[step_at.clamp_min(0)].masked_fill(step_at < 0, 0.0)
        units = RealizedUnits(
            length=plan.length[group],
            node=node,
            continues=continues,
            target=torch.where(leaf >= 0, leaf + slot + 1, column),
            same=(plan.same[group] > 0) | paths.is_column[group],
            steps=steps,
            rest=paths.rest[group],
            first=first,
            log_norm=log_norm,
        )
        scores = PathScores(self.settings.score, slot, units, spelled, single)
        if log_norm is not None:
            self._keep_masses(paths, group, scores, units, single, log_norm)
        return scores, spelled, single

    def _keep_masses(
        self,
        paths: _SidePaths,
        group: slice,
        scores: PathScores,
        units: RealizedUnits,
        single: Leaves,
        log_norm: Tensor,
    ) -> None:
        """Keep the masses of the candidates of a group."""
        first_log_prob = units.first - log_norm
        entries = single.entries
        single_probs = (single.value - entries.spread(log_norm[entries.unit])).exp_()
        beyond = scores.covered_after_first(first_log_prob)
        beyond.index_add_(0, entries.unit, entries.sums(single_probs))
        realized = (first_log_prob + units.rest).exp_()
        realized.masked_fill_((paths.first_column[group] >= 0) | (units.length == 0), 0.0)
        prefix_at = paths.plan.prefix_at[group]
        shared = paths.shared_mass[prefix_at.clamp_min(0)].masked_fill(prefix_at < 0, 0.0)
        at = slice(self.problem.n_shared + group.start, self.problem.n_shared + group.stop)
        mass = STUDENT_MASS if paths.name == "student" else TEACHER_MASS
        self.keep_mass(at, mass, shared, shared + realized, shared + beyond)
