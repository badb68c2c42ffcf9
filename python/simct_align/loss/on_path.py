"""The chunk loop over units with on-path continuations, and over MULTI units beside them.

A unit's candidates reach into the rows of the tokens behind it, and a row takes gradients of many
units, so the work is split by what it touches:

1. log-normalizers of all rows that a path reads, the realized tokens' log-probabilities, and what
   the shared tokens have where that is wanted;
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

from .engine import STUDENT_SHARED, TEACHER_SHARED, Engine, Options, Result, Side
from .path_scores import Entries, Leaves, PathScores, RealizedUnits
from .plan import Wanted

if TYPE_CHECKING:
    from torch import Tensor

    from .index_view import IndexView
    from .plan import DirectionPlan, Plan, SidePlan
    from .rows import StudentRows, Workspace


_GROUP = 64
"""Units whose paths are handled at once on the CPU: enough for the small operations to be few, and
few enough for the cache. Elsewhere every operation is a launch, and memory alone bounds a group."""


def wanted_of_prefixes(options: Options) -> Wanted:
    """Return what a loss asks of prefix rows.

    Args:
        options: what the caller chose.

    Returns:
        The answer for either side.
    """
    everyone = {"student": options.coverage_shared}
    everyone["teacher"] = options.coverage_shared or options.min_teacher_mass > 0.0
    others = "multi" if options.coverage_multi else "none"
    return Wanted(
        measured={side: "all" if asked else others for side, asked in everyone.items()},
        log_norm=options.score == "mean",
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
        # What the shared tokens have, in prefix rows for which that is wanted.
        self.shared_mass = torch.zeros_like(self.log_norm)
        measured = engine.plan.host.measured[name]
        for part in engine.chunks(plan.norm_row.shape[0], rows.row_values(True)):
            probs = rows.softmax(plan.norm_row[part], self.log_norm[part])
            inside = slice(max(part.start, measured.start), part.stop)
            if inside.start < inside.stop:
                probs = probs[inside.start - part.start :]
                self.shared_mass[inside] = engine.shared_mass(side, probs)
        self.next_log_prob = rows.pick(plan.norm_row, plan.norm_next).sub_(self.log_norm)
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
        self._wanted = wanted_of_prefixes(options)

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
        for group, chunks in self._groups():
            paths = self._paths((teacher, student), group, chunks)
            for part in chunks:
                self._units_of(part, group, (teacher, student), paths, student_rows)
            if not self._options.gradient:
                continue
            scores, spelled, single = paths["student"]
            slopes, plan = scores.pull_back(), student.plan
            student_rows.add_at(plan.row[group], plan.first_id[group], slopes.first)
            student_rows.add_at(spelled.row, spelled.token, slopes.spelled)
            student_rows.add_at(single.row, single.token, slopes.single)
            d_rest[group] = slopes.rest
            if d_next.shape[0]:
                entries = spelled.entries
                d_norm.index_add_(0, entries.norm_at, entries.sums(slopes.spelled), alpha=-1)
                step_at = plan.step_at[group]
                steps = slopes.steps.masked_fill(step_at < 0, 0.0)
                d_next.index_add_(0, step_at.clamp_min(0).view(-1), steps.view(-1))
            if self._wanted.log_norm:
                d_norm.index_add_(0, plan.prefix_at[group], slopes.log_norm)
        if self._options.gradient:
            d_next.index_add_(0, student.plan.rest_at, d_rest[student.plan.rest_unit])
            self._softmax_part(student_rows, student, d_next, d_norm - d_next)

    def _groups(self) -> list[tuple[slice, list[slice]]]:
        """Cut the planned units into groups whose paths are scored at once, and those into chunks.

        Returns:
            Groups and their chunks, both bounded in memory.
        """
        leaves = self.plan.host.leaves
        widest = self._columns + 1 + int(leaves.max(initial=0))
        row_values = max(side.rows.row_values(False) for side in (self._student, self._teacher))
        size = self._chunk(2 * widest + row_values)
        total = self.plan.host.planned
        before = np.concatenate([[0], np.cumsum(leaves)])
        # A leaf takes about 16 numbers.
        room = self._options.chunk_bytes // (16 * 8)
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
        """How many columns the scores of a chunk have: shared ones, the slot, and its leaves."""
        return self._columns + 1 + int(self.plan.host.leaves[part].max(initial=0))

    def _units_of(
        self,
        part: slice,
        group: slice,
        sides: tuple[_SidePaths, _SidePaths],
        paths: dict[str, tuple[PathScores, Leaves, Leaves]],
        student_rows: StudentRows,
    ) -> None:
        """Divergences and derivatives of a chunk."""
        rows = part.stop - part.start
        columns = self._width(part)
        units = slice(self._index.n_shared + part.start, self._index.n_shared + part.stop)
        here = slice(part.start - group.start, part.stop - group.start)
        first, last = np.searchsorted(self.plan.host.multi, [part.start, part.stop]).tolist()
        has_paths = last > first
        z, stops = {}, {}
        for side in sides:
            name = side.name
            z[name] = self._work.take(f"z_{name}", rows, columns, self._dtype)
            ids = side.side.table.ids
            side.side.rows.chosen(side.plan.row[part], z[name][:, : ids.shape[0]])
            z[name][:, ids.shape[0] :] = -torch.inf
            stops[name] = self._stops(side.side)
            stops[name].merge(z[name])
            paths[name][0].insert(z[name], here, has_paths=has_paths)
            if name == "teacher":
                self._keep(units)
        self._divergence(z["student"], z["teacher"], units)
        if self._options.gradient:
            paths["student"][0].collect(z["student"], here, has_paths=has_paths)
            stops["student"].pull_back(z["student"])
            n_ids = self._student.table.ids.shape[0]
            student_rows.put_chosen(sides[1].plan.row[part], z["student"][:, :n_ids])

    def _softmax_part(
        self, student_rows: StudentRows, student: _SidePaths, d_next: Tensor, d_norm: Tensor
    ) -> None:
        self._work.release()
        plan = student.plan
        total = self.plan.host.gradient_rows
        for part in self.chunks(total, student_rows.row_values(True)):
            rows = plan.norm_row[part]
            z = student_rows.softmax(rows).mul_(d_norm[part].unsqueeze(1))
            next_id = plan.norm_next[part].unsqueeze(1)
            z.scatter_add_(1, next_id, d_next[part].unsqueeze(1))
            student_rows.add_full(rows, z)

    # Paths of a group of units on one side

    def _entries(self, name: str, group: slice, row_begin: Tensor) -> tuple[Entries, Tensor]:
        """Return the entries of a group in a direction, and their leaves' numbers in the table.

        Args:
            name: the direction.
            group: its units.
            row_begin: ``[units]`` where each unit's row begins in the scores of its chunk.

        Returns:
            Both.
        """
        plan: DirectionPlan = self.plan.directions[name]
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
        self, paths: _SidePaths, group: slice, entries: dict[str, tuple[Entries, Tensor]]
    ) -> tuple[Leaves, Leaves]:
        """Return the leaves of a group that a side spells, and those that are its own tokens."""
        prefix, rows = paths.plan.row[group], paths.side.rows
        at, leaf = entries[paths.other]
        token = self._leaves[paths.other][0].index_select(0, leaf)
        row = at.spread(prefix[at.unit] + at.depth)
        value = rows.pick(row, token).sub_(at.spread(paths.log_norm[at.norm_at]))
        spelled = Leaves(at, token, row, value)
        at, leaf = entries[paths.name]
        token = self._leaves[paths.name][1].index_select(0, leaf)
        row = at.spread(prefix[at.unit])
        return spelled, Leaves(at, token, row, rows.pick(row, token))

    def _paths(
        self, sides: tuple[_SidePaths, _SidePaths], group: slice, chunks: list[slice]
    ) -> dict[str, tuple[PathScores, Leaves, Leaves]]:
        """Score the paths of a group on either side."""
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
        """Score the paths of a group on one side, and note what they cover."""
        plan, side, slot = paths.plan, paths.side, self._columns
        first = side.rows.pick(plan.row[group], plan.first_id[group])
        node = plan.node[group]
        continues = node >= 0
        node = torch.where(continues, node + slot + 1, -1)
        first_column = paths.first_column[group]
        node[:, 0] = torch.where(first_column >= 0, first_column, node[:, 0])
        column, leaf = self.plan.realized_column[group], self.plan.realized_leaf[group]
        step_at = plan.step_at[group]
        steps = torch.zeros(step_at.shape, dtype=self._dtype, device=self.device)
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
        scores = PathScores(self._options.score, slot, units, spelled, single)
        if log_norm is not None:
            self._cover_paths(paths, group, scores, units, single, log_norm)
        return scores, spelled, single

    def _cover_paths(
        self,
        paths: _SidePaths,
        group: slice,
        scores: PathScores,
        units: RealizedUnits,
        single: Leaves,
        log_norm: Tensor,
    ) -> None:
        """Note what the candidates of a group cover."""
        first_log_prob = units.first - log_norm
        entries = single.entries
        single_probs = (single.value - entries.spread(log_norm[entries.unit])).exp_()
        beyond = scores.covered_behind_first(first_log_prob)
        beyond.index_add_(0, entries.unit, entries.sums(single_probs))
        realized = (first_log_prob + units.rest).exp_()
        realized.masked_fill_((paths.first_column[group] >= 0) | (units.length == 0), 0.0)
        prefix_at = paths.plan.prefix_at[group]
        shared = paths.shared_mass[prefix_at.clamp_min(0)].masked_fill(prefix_at < 0, 0.0)
        first = STUDENT_SHARED if paths.side.is_student else TEACHER_SHARED
        at = slice(self._index.n_shared + group.start, self._index.n_shared + group.stop)
        self._stats[first, at] = shared
        self._stats[first + 1, at] = shared + realized
        self._stats[first + 2, at] = shared + beyond
