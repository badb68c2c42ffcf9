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
from ...engine import Result, chunks
from ...metrics import UnitStat
from ...scores.formulas import SCORES
from ..protocol import Logits
from . import kernels, unit_kernels
from .launch import ROW_T, UNITS, WARPS, E, RowReader, Split, T, clear_unwritten, power_of_two

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import Side as SideName

    from ....divergence import Divergence
    from ..protocol import Problem, SideProblem


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


#: Of the workspace, the part that a chunk's copy of the teacher's shared columns may take.
TILES_SHARE = 4
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


class TritonSide:
    """One model's rows, and what the kernels keep of its units.

    Args:
        name: `"teacher"` or `"student"`.
        problem: The problem.
        n_slots: The number of slots.

    Attributes:
        rows: The model's rows.
        n_extra: The number of stops behind the first.
        step_norms: `[steps, 2]` shifts and log-normalizers of the rows of realized paths.
        shared_norms: `[n_shared, 2]` those of the other units' prefix rows, where they are wanted.
        scores: `[units, n_slots]` scores of the slots.
    """

    def __init__(self, name: SideName, problem: Problem, n_slots: int) -> None:
        side: SideProblem = getattr(problem, name)
        assert isinstance(side.source, Logits)
        settings, index, columns = problem.settings, problem.index, side.columns
        self.number = int(name == "student")
        self.rows = RowReader(
            side.source.logits, columns, settings.temperature, problem.index.packed
        )
        self.ids, self.n_extra = columns.ids, columns.n_extra
        self.at = {
            what: index.starts[f"{name}_{what}"]
            for what in ("row", "offsets", "step_unit", "step_row", "step_id")
        }
        self.n_steps = side.units.paths.steps.row.shape[0] if settings.multi else 0
        self.step_norms = self.rows.norms(self.at["step_row"], self.n_steps)
        self.filters = name == "teacher" and settings.min_teacher_mass > 0.0
        wants_shared = settings.mass_shared or self.filters
        self.shared_norms = self.rows.norms(self.at["row"], problem.n_shared if wants_shared else 0)
        self.scores = torch.empty((problem.n_units, n_slots), device=index.packed.device)


class TritonRun:
    """A problem in Triton kernels; see `UnitRun`.

    Args:
        problem: The problem, from logits.
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
        self._teacher = TritonSide("teacher", problem, self._n_slots)
        self._student = TritonSide("student", problem, self._n_slots)
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
        logits = self._student.rows.logits
        self._gradient: Tensor | None = None
        if settings.gradient:
            # Whatever a kernel needs of a row is read before another one writes it.
            inplace = isinstance(problem.student.source, Logits) and problem.student.source.inplace
            self._gradient = logits if inplace else logits.new_empty(logits.shape)
            self._is_written = torch.zeros(
                logits.shape[:-1].numel(), dtype=torch.int8, device=device
            )
        size = self._units_per_chunk()
        #: Of either kind of units.
        self._chunks = [
            slice(first + part.start, first + part.stop)
            for first, count in (
                (0, problem.n_shared),
                (problem.n_shared, units - problem.n_shared),
            )
            for part in chunks(count, size)
        ]
        groups = max((-(-(part.stop - part.start) // UNITS) for part in self._chunks), default=0)
        #: The teacher's shared columns of a chunk, as `kernels.lay_out` writes them.
        self._tiles = self._teacher.rows.logits.new_empty(groups * UNITS * self._n_columns)

    def _units_per_chunk(self) -> int:
        itemsize = self._teacher.rows.logits.element_size()
        group = UNITS * itemsize * max(1, self._n_columns)
        return UNITS * max(1, self._problem.settings.chunk_bytes // TILES_SHARE // group)

    def _is_multi(self, units: slice) -> bool:
        return bool(units.start >= self._problem.n_shared)

    def run(self, weight: Tensor) -> Result:
        """See `UnitRun`."""
        problem = self._problem
        if problem.n_units:
            self._place_slots()
        weights = weight.expand(problem.n_units)
        for units in self._chunks:
            self._compare_chunk(units, weights)
        if self._gradient is not None:
            self._write_path_rows()
        return Result(self._per_unit, self._stats)

    def gradients(self) -> list[Tensor]:
        """See `UnitRun`."""
        if self._gradient is None:
            return []
        # Nothing else may hold the gradient: autograd would copy it.
        gradient, self._gradient = self._gradient, None
        clear_unwritten(gradient, self._is_written)
        return [gradient]

    def _place_slots(self) -> None:
        problem, sides = self._problem, (self._teacher, self._student)
        sections = [side.at[what] for side in sides for what in ("step_id", "offsets")]
        unit_kernels.place_slots[(-(-problem.n_units // SLOT_UNITS),)](
            problem.index.packed, *sections, *(side.rows.codes[0] for side in sides),
            problem.realized_column, problem.stop_column, problem.n_shared, problem.n_units,
            self._skips, self._slot_of_skip, UNITS=SLOT_UNITS, num_warps=1,
        )  # fmt: skip

    def _compare_chunk(self, units: slice, weights: Tensor) -> None:
        problem, teacher, student = self._problem, self._teacher, self._student
        groups = -(-(units.stop - units.start) // UNITS)
        kernels.lay_out[(-(-teacher.rows.width // (T * E)), groups)](
            *teacher.rows.reading, teacher.at["row"], units.start, units.stop,
            *teacher.rows.codes, teacher.rows.width, self._tiles, self._n_columns,
            ALIGNED=teacher.rows.aligned, UNITS=UNITS, COLUMNS=T * E, num_warps=WARPS,
        )  # fmt: skip
        split = Split.of(self._n_columns, groups, T * E, self._tiles.device)
        sums = self._per_unit.new_empty((units.stop - units.start, split.n_splits, 2))
        cut = (split.per_split, split.n_splits)
        tile = {"MULTI": self._is_multi(units), "UNITS": UNITS, "T": T, "E": E}
        program = (groups * split.n_splits,)
        kernels.sum_teacher[program](
            units.start, units.stop, self._tiles, self._n_columns, self._skips, teacher.rows.scale,
            sums, *cut, **tile, num_warps=WARPS,
        )  # fmt: skip
        none = sums.new_empty(0)
        self._finish(teacher, units, Sums(sums, none))
        differences = sums.new_empty(sums.shape[:2]) if self._with_differences else none
        common = (
            *student.rows.reading, student.at["row"], units.start, units.stop, problem.n_units,
            student.ids, self._tiles, self._n_columns, self._skips,
            student.rows.scale, self._norms,
        )  # fmt: skip
        kernels.sum_student[program](
            *common, sums, differences, *cut, WITH_DIFFERENCES=self._with_differences, **tile,
            num_warps=WARPS,
        )  # fmt: skip
        self._finish(student, units, Sums(sums, differences))
        of_columns = self._of_columns
        if not self._with_differences:
            of_columns = sums
            kernels.sum_terms[program](
                *common, *self._formula[1:], sums, *cut, DIVERGENCE=self._formula.number, **tile,
                num_warps=WARPS,
            )  # fmt: skip
        self._compare(units, of_columns, split.n_splits, weights)
        if self._gradient is not None:
            self._write_gradient(units, self._gradient)

    def _finish(self, side: TritonSide, units: slice, of_columns: Sums) -> None:
        problem, rows = self._problem, side.rows
        settings, n_splits = problem.settings, of_columns.sums.shape[1]
        is_multi = self._is_multi(units)
        unit_kernels.finish_side[(units.stop - units.start,)](
            *rows.reading, side.at["row"], problem.index.starts["kind"], side.at["offsets"],
            side.at["step_row"], side.at["step_id"], units.start, problem.n_shared,
            problem.n_units, side.ids, self._n_columns, side.n_extra, rows.codes[0], self._skips,
            self._slot_of_skip, side.step_norms, side.shared_norms, *of_columns, n_splits,
            rows.scale, 1.0 / rows.temperature, settings.min_teacher_mass, self._norms,
            side.scores, self._slot_ids, self._picked, self._paths, self._of_columns, self._stats,
            SIDE=side.number, SCORE=self._score, REALIZED=self._realized,
            MULTI=is_multi, MASS=settings.mass_multi if is_multi else settings.mass_shared,
            FILTERS=side.filters,
            WITH_DIFFERENCES=side is self._student and self._with_differences,
            SPLITS=power_of_two(n_splits), SLOTS=self._n_slots, num_warps=1,
        )  # fmt: skip

    def _compare(self, units: slice, of_columns: Tensor, n_splits: int, weights: Tensor) -> None:
        problem, student, formula = self._problem, self._student, self._formula
        unit_kernels.compare_units[(units.stop - units.start,)](
            problem.index.packed, student.at["offsets"], units.start, problem.n_shared,
            problem.n_units, student.n_extra, self._teacher.scores, student.scores, self._norms,
            of_columns, n_splits, weights, weights.stride(0), 1.0 / student.rows.temperature,
            *formula[1:], self._slot_of_skip, self._slot_ids, self._picked, self._paths,
            self._stats, self._per_unit, self._figures, self._by_slot, self._by_rest,
            DIVERGENCE=formula.number, WITH_DIFFERENCES=self._with_differences,
            GRADIENT=self._gradient is not None, SCORE=self._score, REALIZED=self._realized,
            MULTI=self._is_multi(units), SPLITS=power_of_two(n_splits), SLOTS=self._n_slots,
            num_warps=1,
        )  # fmt: skip

    def _write_gradient(self, units: slice, gradient: Tensor) -> None:
        problem, rows, formula = self._problem, self._student.rows, self._formula
        groups = -(-(units.stop - units.start) // UNITS)
        split = Split.of(rows.width, groups, T * E, gradient.device)
        row_at, is_multi = self._student.at["row"], self._is_multi(units)
        kernels.write_gradient[(groups * split.n_splits,)](
            *rows.reading, row_at, units.start, units.stop, problem.n_units, *rows.codes,
            rows.width, self._tiles, self._n_columns, rows.scale, self._norms,
            self._figures, *formula[1:], gradient, self._is_written, split.per_split,
            split.n_splits, DIVERGENCE=formula.number,
            WITH_NORM=is_multi and problem.settings.score == "mean", ALIGNED=rows.aligned,
            UNITS=UNITS, T=T, E=E, num_warps=WARPS,
        )  # fmt: skip
        unit_kernels.write_slots[(-(-(units.stop - units.start) // SLOT_UNITS),)](
            problem.index.packed, row_at, units.start, units.stop, self._slot_ids,
            self._by_slot, gradient, rows.width, UNITS=SLOT_UNITS, SLOTS=self._n_slots,
            num_warps=4,
        )  # fmt: skip

    def _write_path_rows(self) -> None:
        student, rows, settings = self._student, self._student.rows, self._problem.settings
        count = student.n_steps
        if not count:
            return
        split = Split.of(rows.width, count, ROW_T * E, rows.logits.device)
        kernels.write_path_rows[(count * split.n_splits,)](
            *rows.reading, *(student.at[f"step_{what}"] for what in ("row", "id", "unit")),
            student.at["offsets"], *rows.codes, rows.width, rows.scale, student.step_norms,
            self._by_rest, self._gradient, self._is_written, split.per_split, split.n_splits,
            WITH_NORM=settings.score != "mean_logit", ALIGNED=rows.aligned, T=ROW_T, E=E,
            num_warps=WARPS,
        )  # fmt: skip
