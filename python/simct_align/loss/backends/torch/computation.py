"""Internal: scores of a chunk of rows, divergence and derivative, and the gradient's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ....divergence import LOG_FLOOR
from ...engine import chunks, even_chunks
from ...scores.realized import MergedStops, RealizedScores
from ...scores.rest import RestColumn
from ..protocol import Lists
from .list_rows import ListRows
from .readers import student_rows, teacher_rows
from .rows import Workspace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ..protocol import Problem, Settings, SideProblem
    from .rows import Rows, StudentRows


def _accumulate_at(z: Tensor, column: Tensor, value: Tensor) -> None:
    """Add one value to one column of every row."""
    column = column.unsqueeze(1)
    z.scatter_(1, column, z.gather(1, column) + value.unsqueeze(1))


@dataclass
class TorchScores:
    """One side's scores of a chunk.

    Attributes:
        z: `[c, columns]` scores. `TorchComputation.compare` replaces the student's scores by the
            derivative by them.
        units: The chunk.
        stops: The object that merged the stops.
        realized: The object that inserted the realized units; None at SHARED and SPECIAL units.
        rows: `[c, vocabulary]` the student's prefix rows, normalized where that was needed; None at
            SHARED and SPECIAL units, and of the teacher.
        shared_mass: See `Scores`.
        realized_mass: See `Scores`.
        unlisted: See `Scores`.
        lacks: See `Scores`.
    """

    z: Tensor
    units: slice
    stops: MergedStops
    realized: RealizedScores | None = None
    rows: Tensor | None = None
    shared_mass: Tensor | None = None
    realized_mass: Tensor | None = None
    unlisted: Tensor | None = None
    lacks: Tensor | None = None


class _Rest:
    """Sums over the later steps (all but the first) of one side's realized paths.

    Attributes:
        logits: `[n_multi]` sums of logits.
        log_probs: `[n_multi]` sums of log-probabilities.
        grad: `[n_multi]`; receives the derivatives by the sums.
    """

    def __init__(self, side: TorchSide) -> None:
        paths, dtype = side.model.units.paths, side.settings.dtype
        self.logits = torch.zeros(paths.length.shape, dtype=dtype, device=paths.length.device)
        picked = side.rows.pick(paths.rest_row, paths.rest_id)
        self.logits.index_add_(0, paths.rest_unit, picked)
        log_norm = torch.empty_like(picked)
        for steps in side.chunks(paths.rest_row.shape[0], side.rows.row_values(True)):
            side.rows.softmax(paths.rest_row[steps], log_norm[steps])
        self.log_probs = self.logits.index_add(0, paths.rest_unit, log_norm, alpha=-1)
        self.grad = torch.zeros_like(self.logits)


class TorchSide:
    """One model's rows; see `Side`.

    Args:
        name: `"teacher"` or `"student"`.
        problem: The problem.
        side: The model's side of the problem.
        rows: The model's rows.
        work: Scratch buffers.
    """

    def __init__(
        self, name: str, problem: Problem, side: SideProblem, rows: Rows, work: Workspace
    ) -> None:
        self.name = name
        self.model = side
        self.settings: Settings = problem.settings
        self.rows = rows
        self._problem = problem
        self._work = work
        self._rest: _Rest | None = None
        #: Shared columns, then one column for each stop but the first, on the side with more stops.
        self.columns = max(
            problem.teacher.columns.ids.shape[0], problem.student.columns.ids.shape[0]
        )
        #: One column more, the last one, for what the teacher's lists lack.
        self._has_rest = isinstance(problem.teacher.source, Lists)

    def chunks(self, total: int, values: int) -> Iterator[slice]:
        """Yield slices of `total` rows that fit the workspace, with `values` numbers per row."""
        return even_chunks(total, rows_per_chunk(self.settings, values))

    def merged_stops(self) -> MergedStops:
        """Return the object that merges the stops into one candidate."""
        columns = self.model.columns
        shared = columns.ids.shape[0] - columns.n_extra
        return MergedStops(self._problem.stop_column, shared, columns.n_extra)

    def shared_mass(self, probs: Tensor) -> Tensor:
        """Return the mass on the shared tokens, including the stops.

        Args:
            probs: `[c, vocabulary]` softmax of whole rows.

        Returns:
            `[c]` probabilities.
        """
        ids = self.model.columns.ids
        work = self._work.take("log_student", probs.shape[0], ids.shape[0], self.settings.dtype)
        mass: Tensor = torch.gather(probs, 1, ids.expand(probs.shape[0], -1), out=work).sum(1)
        return mass

    def prepare_paths(self) -> None:
        """See `Computation`."""
        self._rest = _Rest(self)

    def scores(self, units: slice, *, multi: bool, mass: bool) -> TorchScores:
        """See `Side`."""
        columns = self.columns + int(multi) + int(self._has_rest)
        z = self._work.take(
            f"z_{self.name}", units.stop - units.start, columns, self.settings.dtype
        )
        scores = TorchScores(z, units, self.merged_stops())
        if multi:
            self._score_multi(scores, mass=mass)
        else:
            self._score_shared(scores, mass=mass)
        if isinstance(self.rows, ListRows):
            scores.unlisted = self.rows.unlisted(self.model.units.row[units])
            if not multi:
                scores.lacks = (z == -torch.inf).all(1)
        return scores

    def _score_shared(self, scores: TorchScores, *, mass: bool) -> None:
        rows, z = self.model.units.row[scores.units], scores.z
        n_ids = self.model.columns.ids.shape[0]
        if mass:
            scores.shared_mass = self.shared_mass(self.rows.softmax(rows))
        self.rows.chosen(rows, z[:, :n_ids])
        z[:, n_ids:] = -torch.inf
        scores.stops.merge(z)

    def _score_multi(self, scores: TorchScores, *, mass: bool) -> None:
        z, settings, paths = scores.z, self.settings, self.model.units.paths
        n_shared = self._problem.n_shared
        multi = slice(scores.units.start - n_shared, scores.units.stop - n_shared)
        ids = self.model.columns.ids
        full = self.rows.full(self.model.units.row[scores.units])
        torch.gather(full, 1, ids.expand(full.shape[0], -1), out=z[:, : ids.shape[0]])
        z[:, ids.shape[0] :] = -torch.inf
        scores.stops.merge(z)
        first_id = paths.first_id[multi]
        first = full.gather(1, first_id.unsqueeze(1)).squeeze(1)
        first_column = self.model.columns.column_of_id[first_id]
        assert self._rest is not None
        log_probs = self._rest.log_probs[multi]
        log_norm = None
        if mass or settings.score == "mean":
            log_norm = self.rows.normalize(full)
        if mass:
            assert log_norm is not None
            scores.shared_mass = self.shared_mass(full)
            # The probability of a shared token includes that of every path that begins with it.
            joint = (first - log_norm + log_probs).exp_()
            scores.realized_mass = joint.masked_fill_(first_column >= 0, 0.0)
        scores.realized = RealizedScores(
            settings.score,
            self.columns,
            paths.length[multi],
            first_column,
            self._problem.realized_column[multi],
        )
        if isinstance(self.rows, ListRows):
            scores.lacks = first + log_probs == -torch.inf
        rest = self._rest.logits[multi] if settings.score == "mean_logit" else log_probs
        scores.realized.insert(z, first, log_norm, rest)
        if self.name == "student":  # the teacher's would keep a buffer that grows for the student
            scores.rows = full


class TorchStudentSide(TorchSide):
    """The student's rows; see `StudentSide`."""

    rows: StudentRows

    def accumulate(self, scores: TorchScores) -> None:
        """See `StudentSide`."""
        if scores.realized is None:
            scores.stops.backward(scores.z)
            n_ids = self.model.columns.ids.shape[0]
            self.rows.write_chosen(self.model.units.row[scores.units], scores.z[:, :n_ids])
        else:
            self._accumulate_multi(scores, scores.realized)

    def _accumulate_multi(self, scores: TorchScores, realized: RealizedScores) -> None:
        full, n_shared = scores.rows, self._problem.n_shared
        assert full is not None
        assert self._rest is not None
        multi = slice(scores.units.start - n_shared, scores.units.stop - n_shared)
        by_paths = realized.backward(scores.z)
        self._rest.grad[multi] = by_paths.rest
        scores.stops.backward(scores.z)
        if self.settings.score == "mean":
            full.mul_(by_paths.log_norm.unsqueeze(1))
        else:
            full.zero_()  # the prefix row's log-normalizer cancels
        ids = self.model.columns.ids.expand(full.shape[0], -1)
        gradient = scores.z[:, : ids.shape[1]]
        at_ids = self._work.take("z_teacher", full.shape[0], ids.shape[1], self.settings.dtype)
        gradient.add_(torch.gather(full, 1, ids, out=at_ids))
        full.scatter_(1, ids, gradient)
        _accumulate_at(full, self.model.units.paths.first_id[multi], by_paths.first)
        self.rows.write_full(self.model.units.row[scores.units], full)

    def finish_paths(self) -> None:
        """See `Computation`."""
        paths, rows = self.model.units.paths, self.rows
        assert self._rest is not None
        for steps in self.chunks(paths.rest_row.shape[0], rows.row_values(True)):
            grad = self._rest.grad.index_select(0, paths.rest_unit[steps])
            if self.settings.score == "mean_logit":
                z = rows.full(paths.rest_row[steps]).zero_()
            else:
                z = rows.softmax(paths.rest_row[steps]).mul_(-grad.unsqueeze(1))
            _accumulate_at(z, paths.rest_id[steps], grad)
            rows.write_full(paths.rest_row[steps], z)

    def gradients(self) -> list[Tensor]:
        """See `StudentSide`."""
        return self.rows.gradients()


class TorchComputation:
    """A problem in PyTorch operations; see `Computation`.

    Args:
        problem: The problem.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.settings = problem.settings
        self.work = Workspace(problem.realized_column.device)
        teacher, student, work = problem.teacher, problem.student, self.work
        rows = teacher_rows(teacher.source, teacher.columns, work, problem.settings)
        self.teacher = TorchSide("teacher", problem, teacher, rows, work)
        rows_of_student = student_rows(student.source, student.columns, work, problem.settings)
        self.student = TorchStudentSide("student", problem, student, rows_of_student, work)

    def units_per_chunk(self, *, multi: bool) -> int:
        """See `Computation`."""
        settings = self.settings
        filters = settings.min_teacher_mass > 0.0
        student_full = multi or settings.mass_shared
        row_values = max(
            self.student.rows.row_values(student_full),
            self.teacher.rows.row_values(student_full or filters),
        )
        has_rest = isinstance(self.problem.teacher.source, Lists)
        columns = self.student.columns + int(multi) + int(has_rest)
        return rows_per_chunk(settings, (2 + int(has_rest)) * columns + row_values)

    def prepare_paths(self) -> None:
        """See `Computation`."""
        self.work.release()
        self.teacher.prepare_paths()
        self.student.prepare_paths()

    def finish_paths(self) -> None:
        """See `Computation`."""
        self.student.finish_paths()

    def compare(self, teacher: TorchScores, student: TorchScores, grad: Tensor | None) -> Tensor:
        """See `Computation`."""
        if teacher.unlisted is None:
            return self.divergence(teacher.z, student.z, grad)
        units, columns = student.z.shape
        shares = self.work.take("shares", units, columns - 1, self.settings.dtype)
        rest = RestColumn(teacher.z, student.z, teacher.unlisted, shares)
        value = self.divergence(teacher.z, student.z, grad)
        if grad is not None:
            rest.backward(student.z)
        return value

    def divergence(self, z_teacher: Tensor, z_student: Tensor, grad: Tensor | None) -> Tensor:
        """Return divergences, and replace the student's scores by the derivative times `grad`.

        Args:
            z_teacher: `[c, columns]` scores.
            z_student: The same for the student.
            grad: `[c]` factors; None if the derivative is not wanted.

        Returns:
            `[c]` divergences.
        """
        rows, columns = z_student.shape
        dtype = self.settings.dtype
        values = torch.empty(rows, dtype=dtype, device=z_student.device)
        itemsize = torch.finfo(dtype).bits // 8
        size = max(1, self.settings.scratch_bytes // (itemsize * 2 * columns))
        for part in chunks(rows, size):
            block = z_student[part]
            log_student = self.work.take("log_student", block.shape[0], columns, dtype)
            log_teacher = self.work.take("log_teacher", block.shape[0], columns, dtype)
            torch.log_softmax(block, 1, out=log_student).clamp_(min=LOG_FLOOR)
            torch.log_softmax(z_teacher[part], 1, out=log_teacher).clamp_(min=LOG_FLOOR)
            values[part] = self.settings.divergence(
                log_teacher=log_teacher, log_student=log_student, grad=block
            )
            if grad is not None:
                block.mul_(grad[part].unsqueeze(1))
        return values


def rows_per_chunk(settings: Settings, values: int) -> int:
    """Return the number of rows that fit the workspace without its scratch, at least 1.

    Args:
        settings: The workspace's size and the dtype.
        values: The number of values per row.

    Returns:
        The number of rows.
    """
    itemsize = torch.finfo(settings.dtype).bits // 8
    return max(1, (settings.chunk_bytes - settings.scratch_bytes) // (itemsize * values))
