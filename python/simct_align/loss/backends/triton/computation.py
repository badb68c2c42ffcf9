"""Internal: units in Triton kernels.

Everything is a kernel, because a step of few units takes as long as the host needs to launch what
it has. Six kernels work on a chunk of units: the teacher's shared columns are laid out and summed,
its slots finished; the student's columns are summed and its slots finished with what the teacher's
say; both are compared; and the rows of the gradient are written, the slots last. Before all chunks
come the log-normalizers of the rows of realized paths, after them these rows' gradients.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from ....divergence import (
    JSD,
    ForwardKL,
    ReverseKL,
    SkewedForwardKL,
    SkewedReverseKL,
    TotalVariation,
)
from ...engine import Result
from ...metrics import UnitStat
from ...scores.formulas import SCORES
from . import kernels, unit_kernels
from .launch import ROW_T, UNITS, WARPS, E, Split, T, power_of_two
from .unit_sides import plan_chunks, unit_side

if TYPE_CHECKING:
    from torch import Tensor

    from ....divergence import Divergence
    from ..protocol import Problem
    from .unit_sides import Chunk, Reading, UnitSide


class Formula(NamedTuple):
    """A divergence that the kernels know.

    Attributes:
        number: The number of the kernels' branch.
        weight: `beta` or `alpha`, 0 without one.
        log_weight: Its binary logarithm, 0 without one.
        log_rest: The binary logarithm of 1 minus the weight.
    """

    number: int
    weight: float = 0.0
    log_weight: float = 0.0
    log_rest: float = 0.0

    @classmethod
    def of(cls, divergence: Divergence) -> Formula | None:
        """Return the formula of a divergence; None for one that the kernels do not know."""
        kinds = (ReverseKL, ForwardKL, TotalVariation, JSD, SkewedForwardKL, SkewedReverseKL)
        if type(divergence) not in kinds:
            return None
        weight = float(getattr(divergence, "beta", getattr(divergence, "alpha", 0.0)))
        if 0.0 < weight < 1.0:
            logs = math.log2(weight), math.log2(1.0 - weight)
            return cls(kinds.index(type(divergence)), weight, *logs)
        # At the ends of their range these are plain divergences.
        ends: dict[type[Divergence], type[Divergence]] = {
            JSD: ReverseKL if weight else ForwardKL,
            SkewedForwardKL: ForwardKL,
            SkewedReverseKL: ReverseKL,
        }
        return cls(kinds.index(ends.get(type(divergence), type(divergence))))


REVERSE_KL = Formula.of(ReverseKL())


#: Units of programs that place slots and write their gradients.
SLOT_UNITS = 32
#: The slots of shared columns.
N_SKIPS = 4


class Sums(NamedTuple):
    """Sums over parts of the columns of a chunk of c units, as `kernels` has them.

    Attributes:
        sums: `[c, splits, 2]` maxima and sums of exponentials.
        differences: `[c, splits]`; empty if they are not wanted.
    """

    sums: Tensor
    differences: Tensor


class TritonRun:
    """A problem in Triton kernels; see `UnitRun`.

    Args:
        problem: The problem.
        formula: Its divergence.
    """

    def __init__(self, problem: Problem, formula: Formula) -> None:
        self._problem, self._formula = problem, formula
        settings, columns = problem.settings, [problem.teacher.columns, problem.student.columns]
        self._score = SCORES.index(settings.score)
        self._n_columns = columns[0].ids.shape[0] - columns[0].n_extra
        #: The slot of the realized unit, behind the other stops.
        self._realized = N_SKIPS + max(side.n_extra for side in columns)
        self._n_slots = power_of_two(self._realized + 1)
        self._with_differences = formula == REVERSE_KL
        self._teacher = unit_side("teacher", problem, self._n_slots)
        self._student = unit_side("student", problem, self._n_slots)
        device, units = problem.index.packed.device, problem.n_units
        self._skips = torch.empty((units, N_SKIPS), dtype=torch.int32, device=device)
        self._slot_of_skip = torch.empty_like(self._skips)
        #: Shifts and log-normalizers of all scores, of both sides: see `kernels`.
        self._norms = torch.empty((2, 2, units), device=device)
        self._of_columns = torch.empty(units if self._with_differences else 0, device=device)
        self._per_unit = torch.empty(units, device=device)
        self._stats = torch.zeros((len(UnitStat), units), device=device)
        # What `finish_side` keeps of the student for `compare_units`: see `unit_kernels`.
        self._slot_ids = torch.empty((units, self._n_slots), dtype=torch.int32, device=device)
        self._picked = torch.empty((units, self._n_slots), device=device)
        self._paths = torch.empty((units, 3), device=device)
        # What `kernels.write_gradient` and `unit_kernels.write_slots` read.
        self._figures = torch.empty((4, units), device=device)
        self._by_slot = torch.empty((units, self._n_slots), device=device)
        self._by_rest = torch.empty(units - problem.n_shared, device=device)
        dtype = problem.teacher.source.dtype
        tile_bytes = dtype.itemsize * self._n_columns
        self._chunks = plan_chunks(problem, (self._teacher, self._student), tile_bytes)
        for side in (self._teacher, self._student):
            side.prepare(self._chunks)
        groups = max((-(-(c.units.stop - c.units.start) // UNITS) for c in self._chunks), default=0)
        #: The teacher's shared columns of a chunk, as `kernels.lay_out` writes them.
        self._tiles = torch.empty(groups * UNITS * self._n_columns, dtype=dtype, device=device)

    def run(self, weight: Tensor) -> Result:
        """See `UnitRun`."""
        problem = self._problem
        if problem.n_units:
            self._place_slots()
        weights = weight.expand(problem.n_units)
        for chunk in self._chunks:
            self._run_chunk(chunk, weights)
        return Result(self._per_unit, self._stats)

    def gradients(self) -> list[Tensor]:
        """See `UnitRun`."""
        return self._student.gradients()

    def _place_slots(self) -> None:
        problem, sides = self._problem, (self._teacher, self._student)
        sections = [side.at[what] for side in sides for what in ("step_id", "offsets")]
        unit_kernels.place_slots[(-(-problem.n_units // SLOT_UNITS),)](
            problem.index.packed, *sections, *(side.codes for side in sides),
            problem.realized_column, problem.stop_column, problem.n_shared, problem.n_units,
            self._skips, self._slot_of_skip, UNITS=SLOT_UNITS, num_warps=1,
        )  # fmt: skip

    def _run_chunk(self, chunk: Chunk, weights: Tensor) -> None:
        teacher, student = self._teacher.read(chunk), self._student.read(chunk)
        self._compare_columns(chunk, teacher, student, weights)
        if self._problem.settings.gradient:
            self._write_gradient(chunk, student)
            self._write_path_rows(chunk.steps["student"], student)
            self._student.accept(chunk, student)

    def _compare_columns(
        self, chunk: Chunk, teacher: Reading, student: Reading, weights: Tensor
    ) -> None:
        problem, units = self._problem, chunk.units
        groups = -(-(units.stop - units.start) // UNITS)
        rows, columns = teacher.rows, student.rows
        kernels.lay_out[(-(-rows.width // (T * E)), groups)](
            *rows.reading, teacher.row_at, units.start, units.stop,
            *rows.codes, rows.width, self._tiles, self._n_columns,
            ALIGNED=rows.aligned, UNITS=UNITS, COLUMNS=T * E, num_warps=WARPS,
        )  # fmt: skip
        split = Split.of(self._n_columns, groups, T * E, self._tiles.device)
        sums = self._per_unit.new_empty((units.stop - units.start, split.n_splits, 2))
        cut = (split.per_split, split.n_splits)
        tile = {"MULTI": chunk.is_multi, "UNITS": UNITS, "T": T, "E": E}
        program = (groups * split.n_splits,)
        kernels.sum_teacher[program](
            units.start, units.stop, self._tiles, self._n_columns, self._skips, rows.scale,
            sums, *cut, **tile, num_warps=WARPS,
        )  # fmt: skip
        none = sums.new_empty(0)
        self._finish(self._teacher, chunk, teacher, Sums(sums, none))
        differences = sums.new_empty(sums.shape[:2]) if self._with_differences else none
        common = (
            *columns.reading, student.row_at, units.start, units.stop, problem.n_units,
            student.ids, self._tiles, self._n_columns, self._skips, columns.scale, self._norms,
        )  # fmt: skip
        kernels.sum_student[program](
            *common, sums, differences, *cut, WITH_DIFFERENCES=self._with_differences, **tile,
            num_warps=WARPS,
        )  # fmt: skip
        self._finish(self._student, chunk, student, Sums(sums, differences))
        of_columns = self._of_columns
        if not self._with_differences:
            of_columns = sums
            kernels.sum_terms[program](
                *common, *self._formula[1:], sums, *cut, DIVERGENCE=self._formula.number, **tile,
                num_warps=WARPS,
            )  # fmt: skip
        self._compare(chunk, of_columns, split.n_splits, weights)

    def _finish(self, side: UnitSide, chunk: Chunk, reading: Reading, of_columns: Sums) -> None:
        problem, rows, units = self._problem, reading.rows, chunk.units
        settings, n_splits = problem.settings, of_columns.sums.shape[1]
        mass = settings.mass_multi if chunk.is_multi else settings.mass_shared
        unit_kernels.finish_side[(units.stop - units.start,)](
            *rows.reading, reading.row_at, problem.index.starts["kind"], side.at["offsets"],
            reading.step_row_at, side.at["step_id"], units.start, problem.n_shared,
            problem.n_units, reading.ids, self._n_columns, side.n_extra, side.codes, self._skips,
            self._slot_of_skip, side.step_norms, side.shared_norms, *of_columns, n_splits,
            rows.scale, 1.0 / rows.temperature, settings.min_teacher_mass, self._norms,
            side.scores, self._slot_ids, self._picked, self._paths, self._of_columns, self._stats,
            SIDE=side.number, SCORE=self._score, REALIZED=self._realized,
            MULTI=chunk.is_multi, MASS=mass, FILTERS=side.filters,
            WITH_DIFFERENCES=side is self._student and self._with_differences,
            SPLITS=power_of_two(n_splits), SLOTS=self._n_slots, num_warps=1,
        )  # fmt: skip

    def _compare(self, chunk: Chunk, of_columns: Tensor, n_splits: int, weights: Tensor) -> None:
        problem, student, formula = self._problem, self._student, self._formula
        settings, units = problem.settings, chunk.units
        unit_kernels.compare_units[(units.stop - units.start,)](
            problem.index.packed, student.at["offsets"], units.start, problem.n_shared,
            problem.n_units, student.n_extra, self._teacher.scores, student.scores, self._norms,
            of_columns, n_splits, weights, weights.stride(0), 1.0 / settings.temperature,
            *formula[1:], self._slot_of_skip, self._slot_ids, self._picked, self._paths,
            self._stats, self._per_unit, self._figures, self._by_slot, self._by_rest,
            DIVERGENCE=formula.number, WITH_DIFFERENCES=self._with_differences,
            GRADIENT=settings.gradient, SCORE=self._score, REALIZED=self._realized,
            MULTI=chunk.is_multi, SPLITS=power_of_two(n_splits), SLOTS=self._n_slots, num_warps=1,
        )  # fmt: skip

    def _write_gradient(self, chunk: Chunk, student: Reading) -> None:
        problem, rows, formula, units = self._problem, student.rows, self._formula, chunk.units
        groups = -(-(units.stop - units.start) // UNITS)
        split = Split.of(rows.width, groups, T * E, student.gradient.device)
        kernels.write_gradient[(groups * split.n_splits,)](
            *rows.reading, student.row_at, units.start, units.stop, problem.n_units, *rows.codes,
            rows.width, self._tiles, self._n_columns, rows.scale, self._norms,
            self._figures, *formula[1:], student.gradient, student.is_written, split.per_split,
            split.n_splits, DIVERGENCE=formula.number,
            WITH_NORM=chunk.is_multi and problem.settings.score == "mean", ALIGNED=rows.aligned,
            UNITS=UNITS, T=T, E=E, num_warps=WARPS,
        )  # fmt: skip
        unit_kernels.write_slots[(-(-(units.stop - units.start) // SLOT_UNITS),)](
            rows.reading[-1], student.row_at, units.start, units.stop, self._slot_ids,
            self._by_slot, student.gradient, rows.width, UNITS=SLOT_UNITS, SLOTS=self._n_slots,
            num_warps=4,
        )  # fmt: skip

    def _write_path_rows(self, steps: slice, student: Reading) -> None:
        count, rows, at = steps.stop - steps.start, student.rows, self._student.at
        if not count:
            return
        split = Split.of(rows.width, count, ROW_T * E, student.gradient.device)
        kernels.write_path_rows[(count * split.n_splits,)](
            *rows.reading, student.step_row_at, at["step_id"], at["step_unit"], at["offsets"],
            steps.start, *rows.codes, rows.width, rows.scale, self._student.step_norms,
            self._by_rest, student.gradient, student.is_written, split.per_split, split.n_splits,
            WITH_NORM=self._problem.settings.score != "mean_logit", ALIGNED=rows.aligned, T=ROW_T,
            E=E, num_warps=WARPS,
        )  # fmt: skip
