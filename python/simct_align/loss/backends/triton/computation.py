"""Internal: chunks of units in Triton kernels.

For every unit the kernels sum over the shared columns. A few columns are *slots*, whose scores are
computed with PyTorch operations on `[units, slots]`: the first stop, the columns of both paths'
first tokens, and that of the realized text; then the other stops, and at last the realized unit.
The classes that score slots are those of the back end `torch`, over slots in place of columns.
"""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field
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
from ...scores.realized import MergedStops, RealizedScores
from ..protocol import Logits
from . import kernels
from .launch import (
    LN2,
    ROW_T,
    UNITS,
    WARPS,
    E,
    RowReader,
    Split,
    T,
    clear_unwritten,
    power_of_two,
)

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


@dataclass
class SlotScores:
    """One side's slots of a chunk of c units.

    Attributes:
        z: `[c, slots]` scores in nats, relative to the shifts.
        ids: `[c, tokens]` int32 ids of the first slots, which are tokens; -1 where there is none.
        picked: `[c, tokens]` their logits in nats, relative to the shifts.
        first: `[c]` the same of the first tokens of paths; None at SHARED and SPECIAL units.
        stops: The object that merged the stops.
        realized: The object that inserted the realized units; None at SHARED and SPECIAL units.
    """

    z: Tensor
    ids: Tensor
    picked: Tensor
    first: Tensor | None
    stops: MergedStops
    realized: RealizedScores | None


class ColumnSums(NamedTuple):
    """Sums over parts of the columns.

    Attributes:
        sums: `[c, splits, 2]` maxima and sums of exponentials, as the kernels store them.
        differences: `[c, splits]`; see `sum_student`.
        log_norm: `[c]` log-normalizers of all columns in nats, relative to the shifts.
    """

    sums: Tensor
    differences: Tensor
    log_norm: Tensor


@dataclass
class Chunk:
    """A chunk of c units, for both sides.

    Attributes:
        units: The units of the problem.
        multi: The MULTI units among those of the problem; None at SHARED and SPECIAL units.
        tiles: The teacher's shared columns as `lay_out` writes them.
        skips: `[c, skips]` int32 shared columns that are slots, -1 where there is none. At MULTI
            units: of the stops, of both paths' first tokens, and of the realized text.
        slot_of_skip: `[c, skips]` the slots of these columns, of which some may be one; -1 where
            there is none. Used at MULTI units only.
        slots: Their scores, by side.
        norms: `[2, 2, c]` of both sides: shifts, and binary log-normalizers of all scores relative
            to the shifts; see `kernels`.
        row_norms: `[c]` log-normalizers of whole prefix rows in nats, relative to the shifts, by
            side, where they are needed.
        differences: `[c]` the columns' part of the reverse KL; None under other divergences.
        dots: `[c]` sums of `q_S dD/dq_S` over all scores.
        slot_derivatives: `[c, slots]` the same at the slots.
        factors: `[c]` the factors of the derivatives.
    """

    units: slice
    multi: slice | None
    tiles: Tensor
    skips: Tensor
    slot_of_skip: Tensor
    norms: Tensor
    slots: dict[str, SlotScores] = field(default_factory=dict)
    row_norms: dict[str, Tensor] = field(default_factory=dict)
    differences: Tensor | None = None
    dots: Tensor | None = None
    slot_derivatives: Tensor | None = None
    factors: Tensor | None = None

    def shift(self, name: SideName) -> Tensor:
        """Return the shifts of a side's units, `[c]`."""
        return self.norms[int(name == "student"), 0]


@dataclass
class TritonScores:
    """One side's scores of a chunk: see `Scores`."""

    chunk: Chunk
    shared_mass: Tensor | None = None
    realized_mass: Tensor | None = None


class TritonSide:
    """One model's rows; see `Side`.

    Args:
        name: `"teacher"` or `"student"`.
        computation: The computation.
        side: The model's side of the problem.
    """

    def __init__(self, name: SideName, computation: TritonComputation, side: SideProblem) -> None:
        assert isinstance(side.source, Logits)
        self.name = name
        self.model = side
        # A strong reference would keep the memory of both until the next garbage collection.
        self.computation: TritonComputation = weakref.proxy(computation)
        temperature = computation.problem.settings.temperature
        self.rows = RowReader(side.source.logits, side.columns, temperature)
        # `[n_multi]` sums over the later steps of realized paths, those of logits for "mean_logit"
        # only, and the steps' normalizers.
        self._rest_logits = self._rest_log_probs = self.rest_norms = torch.empty(0)

    def prepare_paths(self) -> None:
        """See `Computation`."""
        paths = self.model.units.paths
        zeros = torch.zeros(paths.length.shape, device=paths.length.device)
        self.rest_norms = self.rows.norms(paths.rest_row)
        shifts, norms = self.rest_norms.unbind(1)
        log_probs = self.rows.pick(paths.rest_row, paths.rest_id, shifts) - norms * LN2
        if self.computation.problem.settings.score == "mean_logit":
            picked = self.rows.pick(paths.rest_row, paths.rest_id)
            self._rest_logits = zeros.index_add(0, paths.rest_unit, picked)
        self._rest_log_probs = zeros.index_add(0, paths.rest_unit, log_probs)

    def scores(self, units: slice, *, multi: bool, mass: bool) -> TritonScores:
        """See `Side`; the teacher's side is asked first."""
        computation = self.computation
        chunk = computation.chunk_of(units, multi=multi)
        rows, score = self.model.units.row[units], computation.problem.settings.score
        ids, picked = self._pick_slots(chunk, rows)
        columns = computation.sum_columns(chunk, self.name, picked)
        shift = chunk.shift(self.name)
        if mass or (multi and score == "mean"):
            row_shift, row_norm = self.rows.norms(rows).unbind(1)
            chunk.row_norms[self.name] = (
                row_shift - shift
            ) / self.rows.temperature + row_norm * LN2
        first = None
        if chunk.multi is not None:
            first = self.rows.pick(rows, self.model.units.paths.first_id[chunk.multi], shift)
        chunk.slots[self.name] = self._slots(chunk, ids, picked, first)
        computation.keep_norms(chunk, self.name, columns)
        scores = TritonScores(chunk)
        if mass:
            norms = chunk.row_norms[self.name]
            everything = torch.cat([picked, columns.log_norm.unsqueeze(1)], 1).logsumexp(1)
            scores.shared_mass = everything.sub_(norms).exp_()
            if first is not None and chunk.multi is not None:
                # The probability of a shared token includes that of paths that begin with it.
                joint = first - norms + self._rest_log_probs[chunk.multi]
                first_id = self.model.units.paths.first_id[chunk.multi]
                is_shared = self.model.columns.column_of_id[first_id] >= 0
                scores.realized_mass = joint.exp_().masked_fill_(is_shared, 0.0)
        return scores

    def _pick_slots(self, chunk: Chunk, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ids of the slots that are tokens, and their logits, both `[c, tokens]`."""
        count, n_skips = chunk.skips.shape
        n_slots = n_skips + self.model.columns.n_extra
        ids = chunk.skips.new_empty((count, n_slots))
        picked = torch.empty((count, n_slots), device=ids.device)
        kernels.pick_slots[(count,)](
            self.rows.logits, self.rows.starts(rows), self.rows.stride, chunk.skips,
            self.model.columns.ids, self.computation.n_shared_tokens, n_slots, ids, picked,
            N_SKIPS=n_skips, SLOTS=power_of_two(n_slots), num_warps=1,
        )  # fmt: skip
        return ids, picked

    def _slots(self, chunk: Chunk, ids: Tensor, picked: Tensor, first: Tensor | None) -> SlotScores:
        problem, columns = self.computation.problem, self.model.columns
        n_skips = chunk.skips.shape[1]
        z = picked.new_full((picked.shape[0], n_skips + self.computation.n_others + 1), -torch.inf)
        z[:, : picked.shape[1]] = picked
        stops = MergedStops(0, n_skips, columns.n_extra)
        stops.merge(z)
        if chunk.multi is None or first is None:
            return SlotScores(z, ids, picked, None, stops, None)
        score, paths = problem.settings.score, self.model.units.paths
        length = paths.length[chunk.multi]
        realized = RealizedScores(
            score,
            z.shape[1] - 1,
            length,
            chunk.slot_of_skip[:, 1 + int(self.name == "student")],
            chunk.slot_of_skip[:, 3],
        )
        rest = self._rest_log_probs[chunk.multi]
        if score == "mean_logit":
            # A mean of logits moves by the shift as the others do.
            shift = chunk.shift(self.name) / self.rows.temperature
            rest = self._rest_logits[chunk.multi] + (1 - length) * shift
        realized.insert(z, first, chunk.row_norms.get(self.name), rest)
        return SlotScores(z, ids, picked, first, stops, realized)


class TritonStudentSide(TritonSide):
    """The student's rows; see `StudentSide`."""

    def __init__(self, name: SideName, computation: TritonComputation, side: SideProblem) -> None:
        super().__init__(name, computation, side)
        logits = self.rows.logits
        self._gradient: Tensor | None = None
        if computation.problem.settings.gradient:
            # Whatever a kernel needs of a row is read before another one writes it.
            inplace = isinstance(side.source, Logits) and side.source.inplace
            self._gradient = logits if inplace else logits.new_empty(logits.shape)
            self._is_written = torch.zeros(
                logits.shape[:-1].numel(), dtype=torch.int8, device=logits.device
            )
        #: `[n_multi]` derivatives by the sums over the later steps.
        self._by_rest = torch.zeros(computation.problem.n_multi, device=logits.device)

    def accumulate(self, scores: TritonScores) -> None:
        """See `StudentSide`."""
        computation, chunk = self.computation, scores.chunk
        problem, formula = computation.problem, computation.formula
        assert self._gradient is not None
        assert chunk.slot_derivatives is not None
        assert chunk.dots is not None
        assert chunk.factors is not None
        rows, slots = self.model.units.row[chunk.units], chunk.slots["student"]
        log_student = slots.z - chunk.norms[1, 1].unsqueeze(1) * LN2
        by_slot = chunk.slot_derivatives - log_student.exp() * chunk.dots.unsqueeze(1)
        by_slot.mul_(chunk.factors.unsqueeze(1))
        ids = slots.ids
        by_norm = norms = chunk.factors
        with_norm = False
        if slots.realized is not None and chunk.multi is not None:
            by_path = slots.realized.backward(by_slot)
            self._by_rest[chunk.multi] = by_path.rest
            with_norm = problem.settings.score == "mean"
            if with_norm:
                by_norm, norms = by_path.log_norm, chunk.row_norms["student"] / LN2
        slots.stops.backward(by_slot)
        by_id, picked = by_slot[:, : ids.shape[1]], slots.picked
        if slots.first is not None:
            first_id = self.model.units.paths.first_id[chunk.multi]
            ids = torch.cat([ids, first_id.int().unsqueeze(1)], 1)
            by_id = torch.cat([by_id, by_path.first.unsqueeze(1)], 1)
            picked = torch.cat([picked, slots.first.unsqueeze(1)], 1)
        inverse = 1.0 / problem.settings.temperature
        split, groups = computation.split(chunk, self.rows.width)
        starts, gradient_starts = self.rows.starts(rows), rows * self.rows.width
        by_norm = by_norm * inverse
        kernels.write_gradient[(groups * split.n_splits,)](
            self.rows.logits, starts, rows.shape[0], self.rows.stride, self.rows.column_of_id,
            self.rows.width, chunk.tiles, computation.n_shared_tokens, self.rows.scale,
            chunk.norms, chunk.dots, chunk.factors * inverse, by_norm, norms, *formula[1:],
            self._gradient, gradient_starts, split.per_split, split.n_splits,
            DIVERGENCE=formula.number, WITH_NORM=with_norm, ALIGNED=self.rows.aligned,
            UNITS=UNITS, T=T, E=E, num_warps=WARPS,
        )  # fmt: skip
        units = 32
        kernels.write_slots[(-(-rows.shape[0] // units),)](
            picked, rows.shape[0], by_norm, norms, ids, (by_id * inverse).contiguous(),
            self._gradient, gradient_starts, WITH_NORM=with_norm, N_SLOTS=ids.shape[1],
            UNITS=units, num_warps=1,
        )  # fmt: skip
        self._is_written.index_fill_(0, rows, 1)

    def finish_paths(self) -> None:
        """See `Computation`."""
        assert self._gradient is not None
        settings, paths = self.computation.problem.settings, self.model.units.paths
        rows, count = paths.rest_row, paths.rest_row.shape[0]
        if not count:
            return
        by_id = self._by_rest.index_select(0, paths.rest_unit) / settings.temperature
        by_norm = torch.zeros_like(by_id) if settings.score == "mean_logit" else -by_id
        split = Split.of(self.rows.width, count, ROW_T * E, rows.device)
        kernels.write_path_rows[(count * split.n_splits,)](
            self.rows.logits, self.rows.starts(rows), self.rows.stride, self.rows.column_of_id,
            self.rows.width, self.rows.scale, self.rest_norms, paths.rest_id, by_norm, by_id,
            self._gradient, rows * self.rows.width, split.per_split, split.n_splits,
            ALIGNED=self.rows.aligned, T=ROW_T, E=E,
            num_warps=WARPS,
        )  # fmt: skip
        self._is_written.index_fill_(0, rows, 1)

    def gradients(self) -> list[Tensor]:
        """See `StudentSide`."""
        if self._gradient is None:
            return []
        # Nothing else may hold the gradient: autograd would copy it.
        gradient, self._gradient = self._gradient, None
        clear_unwritten(gradient, self._is_written)
        return [gradient]


class TritonComputation:
    """A problem in Triton kernels; see `Computation`.

    Args:
        problem: The problem, from logits.
        formula: Its divergence.
    """

    def __init__(self, problem: Problem, formula: Formula) -> None:
        self.problem = problem
        self.formula = formula
        columns = [problem.teacher.columns, problem.student.columns]
        #: The shared tokens, and the larger number of stops behind the first.
        self.n_shared_tokens = columns[0].ids.shape[0] - columns[0].n_extra
        self.n_others = max(side.n_extra for side in columns)
        self.teacher = TritonSide("teacher", self, problem.teacher)
        self.student = TritonStudentSide("student", self, problem.student)
        self._chunk: Chunk | None = None

    def units_per_chunk(self, *, multi: bool) -> int:
        """See `Computation`; a chunk has one copy of the teacher's shared columns."""
        del multi
        itemsize = self.teacher.rows.logits.element_size()
        groups = self.problem.settings.chunk_bytes // (
            UNITS * itemsize * max(1, self.n_shared_tokens)
        )
        return UNITS * max(1, groups)

    def prepare_paths(self) -> None:
        """See `Computation`."""
        self.teacher.prepare_paths()
        self.student.prepare_paths()

    def finish_paths(self) -> None:
        """See `Computation`."""
        self.student.finish_paths()

    def split(self, chunk: Chunk, columns: int) -> tuple[Split, int]:
        """Return how columns are cut for a chunk's programs, and its number of groups."""
        groups = -(-chunk.skips.shape[0] // UNITS)
        return Split.of(columns, groups, T * E, chunk.skips.device), groups

    def chunk_of(self, units: slice, *, multi: bool) -> Chunk:
        """Return the chunk of some units; its tiles overwrite those of the chunk before."""
        chunk = self._chunk
        if chunk is not None and chunk.units == units:
            return chunk
        problem, rows = self.problem, self.teacher.rows
        count = units.stop - units.start
        groups = -(-count // UNITS)
        size = groups * UNITS * self.n_shared_tokens
        tiles = chunk.tiles if chunk is not None else rows.logits.new_empty(0)
        if tiles.shape[0] < size:
            tiles = rows.logits.new_empty(size)
        device = tiles.device
        part = None
        slot_of_skip = skips = torch.full(
            (count, 1), problem.stop_column, dtype=torch.int32, device=device
        )
        if multi:
            part = slice(units.start - problem.n_shared, units.stop - problem.n_shared)
            columns = [
                side.columns.column_of_id[side.units.paths.first_id[part]]
                for side in (problem.teacher, problem.student)
            ]
            columns.append(problem.realized_column[part])
            skips = torch.cat([skips, torch.stack(columns, 1).int()], 1)
            # A column is the slot of the first that names it.
            first = (skips.unsqueeze(2) == skips.unsqueeze(1)).int().argmax(2)
            slot_of_skip = first.masked_fill(skips < 0, -1)
            skips.masked_fill_(first < torch.arange(4, device=device), -1)
        norms = torch.empty((2, 2, count), dtype=torch.float32, device=device)
        self._chunk = Chunk(units, part, tiles, skips.contiguous(), slot_of_skip, norms)
        starts = rows.starts(self.teacher.model.units.row[units])
        kernels.lay_out[(-(-rows.width // (T * E)), groups)](
            rows.logits, starts, count, rows.stride, rows.column_of_id, rows.width, tiles,
            self.n_shared_tokens, ALIGNED=rows.aligned, UNITS=UNITS, COLUMNS=T * E, num_warps=WARPS,
        )  # fmt: skip
        return self._chunk

    def sum_columns(self, chunk: Chunk, name: SideName, slots: Tensor) -> ColumnSums:
        """Sum over the shared columns but the slots, and keep the shifts.

        Args:
            chunk: The chunk.
            name: The side.
            slots: `[c, slots]` logits of the slots that are tokens, -inf where there is none;
                turned into nats relative to the shifts.

        Returns:
            The sums.
        """
        count, n_skips = chunk.skips.shape
        columns = self.n_shared_tokens
        split, groups = self.split(chunk, columns)
        sums = torch.empty((count, split.n_splits, 2), device=chunk.skips.device)
        cut = (split.per_split, split.n_splits)
        settings = {"N_SKIPS": n_skips, "UNITS": UNITS, "T": T, "E": E, "num_warps": WARPS}
        differences = sums.new_empty((count, split.n_splits))
        rows = (self.teacher if name == "teacher" else self.student).rows
        if name == "teacher":
            kernels.sum_teacher[(groups * split.n_splits,)](
                chunk.tiles, count, columns, chunk.skips, rows.scale, sums, *cut,
                **settings,
            )  # fmt: skip
        else:
            kernels.sum_student[(groups * split.n_splits,)](
                rows.logits, rows.starts(self.student.model.units.row[chunk.units]), count,
                rows.stride, self.student.model.columns.ids, chunk.tiles, columns, chunk.skips,
                rows.scale, chunk.norms, sums, differences, *cut,
                WITH_DIFFERENCES=self.formula == REVERSE_KL, **settings,
            )  # fmt: skip
        log_norm = sums.new_empty(count)
        n_slots = slots.shape[1]
        kernels.finish_columns[(count,)](
            sums, split.n_splits, slots, n_slots, rows.scale, 1.0 / rows.temperature,
            chunk.shift(name), log_norm, SPLITS=power_of_two(split.n_splits),
            SLOTS=power_of_two(n_slots), num_warps=1,
        )  # fmt: skip
        return ColumnSums(sums, differences, log_norm)

    def keep_norms(self, chunk: Chunk, name: SideName, columns: ColumnSums) -> None:
        """Keep the log-normalizers of all scores, and the differences of the reverse KL.

        Args:
            chunk: The chunk, with the scores of the slots.
            name: The side.
            columns: What `sum_columns` returned.
        """
        z, (count, n_splits) = chunk.slots[name].z, columns.differences.shape
        with_differences = name == "student" and self.formula == REVERSE_KL
        differences = torch.empty_like(columns.log_norm)
        kernels.finish_norms[(count,)](
            z, z.shape[1], columns.log_norm, columns.sums, columns.differences, n_splits,
            self.student.rows.scale, chunk.shift(name), chunk.norms[int(name == "student"), 1],
            differences, WITH_DIFFERENCES=with_differences, SPLITS=power_of_two(n_splits),
            SLOTS=power_of_two(z.shape[1]), num_warps=1,
        )  # fmt: skip
        chunk.differences = differences if with_differences else None

    def compare(self, teacher: TritonScores, student: TritonScores, grad: Tensor | None) -> Tensor:
        """See `Computation`."""
        del teacher
        chunk, formula = student.chunk, self.formula
        count, n_skips = chunk.skips.shape
        slots = chunk.slots["student"].z
        values, derivatives = torch.empty_like(slots), torch.empty_like(slots)
        kernels.slot_terms[(count,)](
            chunk.slots["teacher"].z, slots, chunk.norms, count, slots.shape[1],
            *formula[1:], values, derivatives, DIVERGENCE=formula.number,
            SLOTS=power_of_two(slots.shape[1]), num_warps=1,
        )  # fmt: skip
        if chunk.differences is not None:
            of_columns = chunk.differences.unsqueeze(1).expand(-1, 2)
        else:
            rows, columns = self.student.rows, self.n_shared_tokens
            split, groups = self.split(chunk, columns)
            sums = torch.empty((count, split.n_splits, 2), device=slots.device)
            kernels.sum_terms[(groups * split.n_splits,)](
                rows.logits, rows.starts(self.student.model.units.row[chunk.units]), count,
                rows.stride, self.student.model.columns.ids, chunk.tiles, columns, chunk.skips,
                rows.scale, chunk.norms, *formula[1:], sums, split.per_split, split.n_splits,
                DIVERGENCE=formula.number, N_SKIPS=n_skips, UNITS=UNITS, T=T, E=E,
                num_warps=WARPS,
            )  # fmt: skip
            of_columns = sums.sum(1)
        value = values.sum(1) + of_columns[:, 0]
        chunk.dots = derivatives.sum(1) + of_columns[:, 1]
        chunk.slot_derivatives, chunk.factors = derivatives, grad
        return value
