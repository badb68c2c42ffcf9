"""Internal: where the Triton kernels find the rows of either model, a chunk of units at a time.

Ready-made logits are read where they are. From hidden states, a chunk's logits are computed before
its kernels run: of MULTI units all columns of every step's row, because these rows' normalizers
count; of other units, where nobody asks for normalizers, the shared columns and the stops alone.
The kernels then find rows by their numbers in the chunk, and write the gradient where the logits
were.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from ...engine import chunks
from ..protocol import Head, Logits
from .heads import HeadProducts, pitch_of
from .launch import UNITS, RowReader, clear_unwritten

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from simct_align.index import Side as SideName

    from ..protocol import Problem, SideProblem

#: Of the workspace, the part that a chunk's copy of the teacher's shared columns may take.
TILES_SHARE = 4
#: Of the workspace, the part that is left for a chunk's logits and that copy, with hidden states.
LOGITS_SHARE = 7 / 8
_NONE = slice(0, 0)


class Chunk(NamedTuple):
    """Units that the kernels work on at a time.

    Attributes:
        units: Their numbers.
        is_multi: Whether they are MULTI units; else none of them is.
        steps: The steps of both sides whose rows of the gradient are written after the units.
    """

    units: slice
    is_multi: bool
    steps: dict[SideName, slice]


@dataclass(frozen=True)
class Reading:
    """Where kernels find a side's rows of a chunk.

    Attributes:
        rows: The rows.
        ids: `[shared + extra]` where the shared columns, and all stops but the first, are in them.
        row_at: Where the numbers of prefix rows begin in the packed index of `rows`, for unit 0.
        step_row_at: The same of the rows of steps.
        gradient: Receives the gradient, `[rows, columns]`; empty if it is not wanted.
        is_written: int8 `[rows]` receives 1 for the rows that are written.
    """

    rows: RowReader
    ids: Tensor
    row_at: int
    step_row_at: int
    gradient: Tensor
    is_written: Tensor


class UnitSide(ABC):
    """One model, and what the kernels keep of its units.

    Args:
        name: `"teacher"` or `"student"`.
        problem: The problem.
        n_slots: The number of slots.

    Attributes:
        n_extra: The number of stops behind the first.
        codes: int32; see `SideColumns.code_of_id`.
        step_norms: `[steps, 2]` shifts and log-normalizers of the rows of realized paths.
        shared_norms: `[n_shared, 2]` those of the other units' prefix rows, where they are wanted.
        scores: `[units, n_slots]` scores of the slots.
    """

    def __init__(self, name: SideName, problem: Problem, n_slots: int) -> None:
        self._problem = problem
        self.name = name
        self.side: SideProblem = getattr(problem, name)
        settings, index = problem.settings, problem.index
        self.number = int(name == "student")
        self.n_extra, self.codes = self.side.columns.n_extra, self.side.columns.code_of_id
        self.at = {
            what: index.starts[f"{name}_{what}"]
            for what in ("row", "offsets", "step_unit", "step_row", "step_id")
        }
        self.n_steps = self.side.units.paths.steps.row.shape[0] if settings.multi else 0
        self.filters = name == "teacher" and settings.min_teacher_mass > 0.0
        self._wants_norms = settings.mass_shared or self.filters
        self._wants_gradient = name == "student" and settings.gradient
        device = index.packed.device
        self.step_norms = torch.empty((self.n_steps, 2), device=device)
        n_norms = problem.n_shared if self._wants_norms else 0
        self.shared_norms = torch.empty((n_norms, 2), device=device)
        self.scores = torch.empty((problem.n_units, n_slots), device=device)

    @abstractmethod
    def unit_bytes(self, *, multi: bool) -> NDArray[np.float64]:
        """Return the bytes of logits that the units of a kind need, `[]` or `[units]`."""

    @abstractmethod
    def steps(self, units: slice, *, is_last: bool) -> slice:
        """Return the steps whose rows of the gradient are written after a chunk of MULTI units."""

    @abstractmethod
    def prepare(self, plan: list[Chunk]) -> None:
        """Take the memory that all chunks use."""

    @abstractmethod
    def read(self, chunk: Chunk) -> Reading:
        """Return where the rows of a chunk are."""

    @abstractmethod
    def accept(self, chunk: Chunk, reading: Reading) -> None:
        """Take over the gradient of a chunk."""

    @abstractmethod
    def gradients(self) -> list[Tensor]:
        """Return the gradients; see `StudentSide`."""


class LogitSide(UnitSide):
    """A model whose logits are there; see `UnitSide`."""

    def __init__(self, name: SideName, problem: Problem, n_slots: int) -> None:
        super().__init__(name, problem, n_slots)
        source, columns = self.side.source, self.side.columns
        assert isinstance(source, Logits)
        logits, packed = source.logits, problem.index.packed
        gradient, is_written = logits.new_empty(0), packed.new_empty(0, dtype=torch.int8)
        if self._wants_gradient:
            # Whatever a kernel needs of a row is read before another one writes it.
            gradient = logits if source.inplace else logits.new_empty(logits.shape)
            is_written = torch.zeros(
                logits.shape[:-1].numel(), dtype=torch.int8, device=logits.device
            )
        rows = RowReader(logits, columns.code_of_id, problem.settings.temperature, packed)
        self._reading = Reading(
            rows, columns.ids, self.at["row"], self.at["step_row"], gradient, is_written
        )
        rows.norm(self.at["step_row"], slice(0, self.n_steps), self.step_norms)
        rows.norm(self.at["row"], slice(0, self.shared_norms.shape[0]), self.shared_norms)

    def unit_bytes(self, *, multi: bool) -> NDArray[np.float64]:
        """See `UnitSide`."""
        del multi
        return np.zeros(())

    def steps(self, units: slice, *, is_last: bool) -> slice:
        """See `UnitSide`."""
        del units
        # All of them together, when all derivatives are known.
        return slice(0, self.n_steps) if is_last else _NONE

    def prepare(self, plan: list[Chunk]) -> None:
        """See `UnitSide`."""

    def read(self, chunk: Chunk) -> Reading:
        """See `UnitSide`."""
        del chunk
        return self._reading

    def accept(self, chunk: Chunk, reading: Reading) -> None:
        """See `UnitSide`."""

    def gradients(self) -> list[Tensor]:
        """See `UnitSide`."""
        if not self._wants_gradient:
            return []
        # Nothing else may hold the gradient: autograd would copy it.
        gradient, is_written = self._reading.gradient, self._reading.is_written
        del self._reading
        clear_unwritten(gradient, is_written)
        return [gradient]


class HeadSide(UnitSide):
    """A model whose logits are computed from hidden states; see `UnitSide`."""

    def __init__(self, name: SideName, problem: Problem, n_slots: int) -> None:
        super().__init__(name, problem, n_slots)
        head, columns = self.side.source, self.side.columns
        assert isinstance(head, Head)
        self._head, self._columns = head, columns
        settings, device = problem.settings, problem.index.packed.device
        self._products = HeadProducts(head, settings.chunk_bytes, gradient=self._wants_gradient)
        n_columns = columns.ids.shape[0]
        self._whole_pitch = self._pitch = pitch_of(head.columns)
        self._ids, self._codes, self._chosen = columns.ids, columns.code_of_id, None
        if not self._wants_norms:
            self._pitch, self._chosen = pitch_of(n_columns), columns.ids
            self._ids = torch.arange(n_columns, device=device)
            self._codes = torch.full((self._pitch,), -2, dtype=torch.int32, device=device)
            torch.arange(n_columns, out=self._codes[:n_columns])
            self._codes[n_columns - columns.n_extra : n_columns] = -1
        #: The gradient takes the place of the logits, if they are not needed any more.
        self._copies = 2 if self._wants_gradient and self._products.caps else 1

    def _offsets(self) -> NDArray[np.int64]:
        begin = self.at["offsets"]
        host = self._problem.index.host
        assert host is not None
        return host[begin : begin + self._problem.n_multi + 1].numpy()

    def unit_bytes(self, *, multi: bool) -> NDArray[np.float64]:
        """See `UnitSide`."""
        itemsize = self._copies * self._head.hidden.element_size()
        if multi:
            return np.diff(self._offsets()) * float(itemsize * self._whole_pitch)
        return np.array(float(itemsize * self._pitch))

    def steps(self, units: slice, *, is_last: bool) -> slice:
        """See `UnitSide`."""
        del is_last
        first, end = self._offsets()[[units.start, units.stop]].tolist()
        return slice(first, end)

    def prepare(self, plan: list[Chunk]) -> None:
        """See `UnitSide`."""
        problem, n_shared = self._problem, self._problem.n_shared
        packed = problem.index.packed
        offsets = packed[self.at["offsets"] :]
        sizes = [self._size(chunk) for chunk in plan]
        numbers = torch.arange(max((rows for rows, _ in sizes), default=0), device=packed.device)
        # Behind the packed index come numbers of rows in a chunk: 0, 1, ... for its units or steps,
        # and those of MULTI units' first steps.
        sections, self._prefix_at = [packed, numbers], {}
        at = packed.shape[0] + numbers.shape[0]
        for chunk in plan:
            if chunk.is_multi:
                units = slice(chunk.units.start - n_shared, chunk.units.stop - n_shared)
                sections.append(offsets[units] - chunk.steps[self.name].start)
                self._prefix_at[chunk.units.start] = at
                at += units.stop - units.start
        self._packed = torch.cat(sections)
        most = max((rows * pitch for rows, pitch in sizes), default=0)
        self._memory = [self._head.hidden.new_empty(most) for _ in range(self._copies)]
        self._is_written = numbers.new_empty(numbers.shape, dtype=torch.int8)

    def _size(self, chunk: Chunk) -> tuple[int, int]:
        """Return the rows of a chunk, and their columns with padding."""
        rows, pitch = chunk.units, self._pitch
        if chunk.is_multi:
            rows, pitch = chunk.steps[self.name], self._whole_pitch
        return rows.stop - rows.start, pitch

    def _rows(self, chunk: Chunk) -> Tensor:
        """Return the numbers of a chunk's rows of hidden states."""
        units = self.side.units
        return (
            units.paths.steps.row[chunk.steps[self.name]]
            if chunk.is_multi
            else units.row[chunk.units]
        )

    def read(self, chunk: Chunk) -> Reading:
        """See `UnitSide`."""
        shape = self._size(chunk)
        z, gradient = (self._memory[k][: shape[0] * shape[1]].view(shape) for k in (0, -1))
        columns, numbers_at = self._columns, self._problem.index.packed.shape[0]
        self._products.write_logits(self._rows(chunk), None if chunk.is_multi else self._chosen, z)
        temperature, first = self._problem.settings.temperature, chunk.units.start
        if chunk.is_multi:
            steps = chunk.steps[self.name]
            rows = RowReader(z, columns.code_of_id, temperature, self._packed)
            step_row_at = numbers_at - steps.start
            rows.norm(step_row_at, steps, self.step_norms)
            row_at, ids = self._prefix_at[first] - first, columns.ids
        else:
            rows = RowReader(z, self._codes, temperature, self._packed)
            row_at, step_row_at, ids = numbers_at - first, 0, self._ids
            if self._wants_norms:
                rows.norm(row_at, chunk.units, self.shared_norms)
        return Reading(rows, ids, row_at, step_row_at, gradient, self._is_written)

    def accept(self, chunk: Chunk, reading: Reading) -> None:
        """See `UnitSide`."""
        chosen = None if chunk.is_multi else self._chosen
        self._products.accumulate(self._rows(chunk), chosen, reading.rows.logits, reading.gradient)

    def gradients(self) -> list[Tensor]:
        """See `UnitSide`."""
        return self._products.gradients()


def unit_side(name: SideName, problem: Problem, n_slots: int) -> UnitSide:
    """Return one model's side of a problem, for the form in which the model came."""
    kind = HeadSide if isinstance(getattr(problem, name).source, Head) else LogitSide
    return kind(name, problem, n_slots)


def plan_chunks(problem: Problem, sides: tuple[UnitSide, UnitSide], tile_bytes: int) -> list[Chunk]:
    """Cut the units into chunks that fit the workspace.

    Args:
        problem: The problem.
        sides: Both sides.
        tile_bytes: The bytes of a unit's copy of the teacher's shared columns.

    Returns:
        The chunks, those of MULTI units first: whole rows of logits begin the gradient of an output
        embedding.
    """
    n_shared, n_multi = problem.n_shared, problem.n_units - problem.n_shared
    with_heads = any(isinstance(side, HeadSide) for side in sides)
    budget = problem.settings.chunk_bytes * (LOGITS_SHARE if with_heads else 1 / TILES_SHARE)
    found = []
    if n_multi:
        of_units = sum(
            (side.unit_bytes(multi=True) for side in sides), np.full(n_multi, tile_bytes)
        )
        parts = _cut(np.cumsum(of_units), budget)
        for part in parts:
            is_last = part.stop == n_multi
            steps = {side.name: side.steps(part, is_last=is_last) for side in sides}
            units = slice(n_shared + part.start, n_shared + part.stop)
            found.append(Chunk(units, True, steps))
    of_unit = float(sum((side.unit_bytes(multi=False) for side in sides), np.full((), tile_bytes)))
    most = max(1, int(budget / max(1.0, of_unit)))
    n_chunks = -(-n_shared // most)
    size = UNITS * -(-n_shared // (UNITS * max(1, n_chunks)))
    none = {side.name: _NONE for side in sides}
    found += [Chunk(units, False, none) for units in chunks(n_shared, max(1, size))]
    return found


def _cut(bytes_up_to: NDArray[np.float64], budget: float) -> list[slice]:
    """Cut units into as few parts of about one size as fit a budget, in multiples of `UNITS`.

    Args:
        bytes_up_to: `[n]` bytes of all units up to this one, ascending.
        budget: The most bytes of a part.
    """
    total = float(bytes_up_to[-1])
    size = total / max(1, np.ceil(total / budget))
    found, begin, before = [], 0, 0.0
    while begin < len(bytes_up_to):
        fits = int(np.searchsorted(bytes_up_to, before + size * (1 + 1e-9), "right")) - begin
        end = min(begin + UNITS * max(1, fits // UNITS), len(bytes_up_to))
        found.append(slice(begin, end))
        begin, before = end, float(bytes_up_to[end - 1])
    return found
