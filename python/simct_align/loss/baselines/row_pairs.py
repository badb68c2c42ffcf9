"""Internal: the base class of the baselines that compare more rows than the units' prefix rows.

Such a baseline names pairs of a teacher's row and a student's row. The value of a unit is the sum
of the values of its pairs. The gradient comes from autograd, a chunk of pairs at a time.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from simct_align.divergence import LOG_FLOOR

from ..engine import chunks
from .common import ChunkedLoss, Computed, Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor

    from ..backends.torch.rows import Rows


class RowPairs(NamedTuple):
    """n pairs of rows to compare.

    Attributes:
        unit: `[n]` unit that the value of a pair is added to.
        teacher_row: `[n]` flat logit row of the teacher.
        student_row: `[n]` flat logit row of the student. A row can be in several pairs.
        value: The values `[c]` of the pairs of a slice, from the slice and the log-probabilities
            `[c, columns]` of the teacher's and of the student's rows. The student's side is
            differentiable.
    """

    unit: Tensor
    teacher_row: Tensor
    student_row: Tensor
    value: Callable[[slice, Tensor, Tensor], Tensor]


class TeacherReader:
    """The teacher's log-probabilities, a chunk of rows at a time.

    Args:
        rows: The teacher's rows.
        size: The number of rows of a chunk.
    """

    def __init__(self, rows: Rows, size: int) -> None:
        self._rows = rows
        self.size = size

    def log_probs(self, rows: Tensor) -> Tensor:
        """Return the log-probabilities `[c, columns]` of rows, at least `LOG_FLOOR`."""
        return self._rows.full(rows).log_softmax(1).clamp_min_(LOG_FLOOR)

    def pick(self, rows: Tensor, value: Callable[[slice, Tensor], Tensor]) -> Tensor:
        """Return a number of every row.

        Args:
            rows: `[n]` flat logit rows.
            value: The numbers `[c]` of the rows of a slice, from the slice and the rows'
                log-probabilities.

        Returns:
            `[n]` float64 numbers.
        """
        out = torch.empty(rows.shape, dtype=torch.float64, device=rows.device)
        for part in chunks(rows.shape[0], self.size):
            out[part] = value(part, self.log_probs(rows[part]))
        return out


@dataclass(frozen=True)
class _RowJob(Job):
    """The chunk loop over pairs of rows."""

    baseline: RowBaseline

    def run(self, weight: Tensor) -> Computed:
        """See `Job`."""
        gradient, size = self.settings.gradient, self.chunk_size()
        teacher_rows, rows = self.open_rows()
        teacher = TeacherReader(teacher_rows, size)
        n_units = self.index.n_shared + self.index.n_multi
        weight = weight.expand(n_units)
        per_unit = torch.zeros(n_units, dtype=self.settings.dtype, device=weight.device)
        for pairs in self.baseline.row_pairs(self, teacher):
            for part in chunks(pairs.unit.shape[0], size):
                unit, row = pairs.unit[part], pairs.student_row[part]
                log_teacher = teacher.log_probs(pairs.teacher_row[part])
                with torch.set_grad_enabled(gradient):
                    z = rows.full(row).detach().requires_grad_(gradient)
                    value = pairs.value(part, log_teacher, z.log_softmax(1))
                per_unit.index_add_(0, unit, value.detach())
                if gradient:
                    (by_z,) = torch.autograd.grad(value, z, weight[unit])
                    rows.accumulate_full(row, by_z)
        return Computed(per_unit, rows.gradients()[0] if gradient else None)


class RowBaseline(ChunkedLoss):
    """A baseline over pairs of rows of both sides; a subclass implements `row_pairs`."""

    @abstractmethod
    def row_pairs(self, job: Job, teacher: TeacherReader) -> Iterable[RowPairs]:
        """Return the pairs of rows to compare.

        Args:
            job: The units, and the shapes of the logits.
            teacher: The teacher's rows, for numbers that a value needs of other rows.
        """

    def make_job(self, **inputs: Any) -> Job:
        """Return the job of a call: see `ChunkedLoss`."""
        return _RowJob(baseline=self, **inputs)


def fit(table: Tensor, columns: int) -> Tensor:
    """Return a table of ids for logits with any number of columns.

    Args:
        table: `[vocabulary]` a number for every id.
        columns: The number of logit columns; padding has no probability, so any number will do.

    Returns:
        `[columns]` the table, cut or padded with zeros.
    """
    return torch.nn.functional.pad(table, (0, columns - table.shape[0]))


def add_up(probs: Tensor, event: Tensor, n_events: int) -> Tensor:
    """Return the probabilities of events.

    Args:
        probs: `[c, columns]` probabilities of tokens.
        event: `[columns]` or `[c, columns]` number of every token's event.
        n_events: The number of events.

    Returns:
        `[c, n_events]` sums.
    """
    sums = probs.new_zeros((probs.shape[0], n_events))
    return sums.scatter_add(1, event.expand_as(probs), probs)


def safe_log(probs: Tensor) -> Tensor:
    """Return logarithms; a probability below the dtype's smallest normal number counts as that."""
    return probs.clamp_min(torch.finfo(probs.dtype).tiny).log()
