"""Internal: the chunk loop over units, with the statistics that are kept of every unit.

At a unit's prefix h the candidates are the shared tokens, the stops (as one candidate) and, at a
MULTI unit, the realized unit. The candidates' scores become two distributions q_S and q_T, and the
value of the unit is D(q_S, q_T). A back end computes the expensive parts; see `backends.protocol`.

Nothing here runs under autograd. All loops are over integers of the host, so nothing waits for the
device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .backends.protocol import Lists
from .metrics import STUDENT_MASS, TEACHER_MASS, UnitStat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from .backends.protocol import Computation, Problem, Scores
    from .metrics import MassStats


@dataclass(frozen=True)
class Result:
    """The results of the engine.

    Attributes:
        per_unit: `[units]` divergences.
        stats: `[len(UnitStat), units]` statistics; masses are 0 if they are not wanted.
    """

    per_unit: Tensor
    stats: Tensor


def chunks(total: int, size: int) -> Iterator[slice]:
    """Yield consecutive slices of at most `size` that cover the range of `total`."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


#: How much larger than wanted a chunk may be, so that no last chunk has a few units only.
_STRETCH = 1.1


def even_chunks(total: int, size: int) -> Iterator[slice]:
    """Yield consecutive slices of about one size that cover the range of `total`.

    With hidden states a chunk costs a pass over an output embedding, however few units it has.

    Args:
        total: The length of the range.
        size: The size to aim for; slices have at most a tenth more.
    """
    count = -(-total // max(1, int(_STRETCH * size)))
    return chunks(total, -(-total // max(1, count)) or 1)


class Engine:
    """One forward computation. The gradient stays with the student's side of the computation.

    Args:
        problem: The problem.
        computation: The problem on a back end.
        weight: `[]` or `[units]` factor of every unit's gradient.
    """

    def __init__(self, problem: Problem, computation: Computation[Any], weight: Tensor) -> None:
        self.problem = problem
        self.settings = problem.settings
        self._computation = computation
        dtype, units = self.settings.dtype, problem.n_units
        self._weight = weight.to(dtype).expand(units)
        self.per_unit = torch.zeros(units, dtype=dtype, device=weight.device)
        self.stats = torch.zeros((len(UnitStat), units), dtype=dtype, device=weight.device)
        self._filters = self.settings.min_teacher_mass > 0.0

    def run(self) -> Result:
        """Compute everything.

        Returns:
            Divergences and statistics of the units.
        """
        n_shared, size = self.problem.n_shared, self._computation.units_per_chunk(multi=False)
        for units in even_chunks(n_shared, size):
            self._compare_chunk(units, multi=False)
        if self.settings.multi and self.problem.n_multi:
            self.compare_multi()
        return Result(self.per_unit, self.stats)

    def compare_multi(self) -> None:
        """Compare the MULTI units."""
        self._computation.prepare_paths()
        n_shared, size = self.problem.n_shared, self._computation.units_per_chunk(multi=True)
        for part in even_chunks(self.problem.n_multi, size):
            units = slice(n_shared + part.start, n_shared + part.stop)
            self._compare_chunk(units, multi=True)
        if self.settings.gradient:
            self._computation.finish_paths()

    def _compare_chunk(self, units: slice, *, multi: bool) -> None:
        mass = self.settings.mass_multi if multi else self.settings.mass_shared
        sides = self._computation
        teacher = sides.teacher.scores(units, multi=multi, mass=mass or self._filters)
        self._keep_scored(units, teacher, TEACHER_MASS)
        self.decide(units)
        if isinstance(self.problem.teacher.source, Lists):
            self._leave_unlisted(units, teacher)
        student = sides.student.scores(units, multi=multi, mass=mass)
        self._keep_scored(units, student, STUDENT_MASS)
        self.record(units, sides.compare(teacher, student, self.grad(units)))
        if self.settings.gradient:
            sides.student.accumulate(student)

    def _keep_scored(self, units: slice, scores: Scores, at: MassStats) -> None:
        shared, realized = scores.shared_mass, scores.realized_mass
        if shared is not None:
            candidates = shared if realized is None else shared + realized
            self.keep_mass(units, at, shared, candidates, candidates)

    def keep_mass(
        self, units: slice, at: MassStats, shared: Tensor, realized: Tensor, candidates: Tensor
    ) -> None:
        """Keep a model's masses of a chunk.

        Args:
            units: The chunk.
            at: The rows of the statistics.
            shared: `[c]` mass on the shared tokens.
            realized: `[c]` mass on the shared tokens and the realized unit.
            candidates: `[c]` mass on all candidates.
        """
        self.stats[at.shared, units] = shared
        self.stats[at.realized, units] = realized
        self.stats[at.candidates, units] = candidates

    def decide(self, units: slice) -> None:
        """Decide which units of a chunk take part, by the teacher's mass on their candidates."""
        if self._filters:
            mass = self.stats[UnitStat.TEACHER_CANDIDATES, units]
            kept = mass >= self.settings.min_teacher_mass
            self.stats[UnitStat.KEPT, units] = kept.to(self.settings.dtype)
        else:
            self.stats[UnitStat.KEPT, units] = 1.0

    def _leave_unlisted(self, units: slice, teacher: Any) -> None:
        """Leave out the units of a chunk for which the teacher's lists lack what they need."""
        kept = self.stats[UnitStat.KEPT, units]
        lacks = teacher.lacks.to(kept.dtype)
        self.stats[UnitStat.TEACHER_UNLISTED, units] = teacher.unlisted
        self.stats[UnitStat.LACKS, units] = kept * lacks
        self.stats[UnitStat.KEPT, units] = kept * (1.0 - lacks)

    def grad(self, units: slice) -> Tensor | None:
        """Return the factors of a chunk's derivatives; None if derivatives are not wanted."""
        if not self.settings.gradient:
            return None
        return self._weight[units] * self.stats[UnitStat.KEPT, units]

    def record(self, units: slice, divergence: Tensor) -> None:
        """Keep the divergences of a chunk."""
        # A unit that is left out adds exactly 0, even if its divergence is not finite.
        kept = self.stats[UnitStat.KEPT, units] > 0
        self.per_unit[units] = torch.where(kept, divergence, torch.zeros_like(divergence))
