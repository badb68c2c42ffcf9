"""Internal: text events of output embeddings that are cut into shards of the vocabulary.

Nearly every token has a slot of the joint tree of its own, so sums by slot are no fewer numbers
than the logits. Offsets are divided among the processes instead. All processes compute their
columns of the rows of one chunk for each of them, and send them to the process of the chunk. The
derivatives by the student's logits go back. A process receives a chunk's rows of all columns, which
is what one process without shards reads, for one chunk in as many as there are processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...text_metrics import N_STATS
from ..protocol import Head
from .readers import teacher_rows
from .rows import Workspace, softmax_
from .shard_rows import StudentShardRows, SummedRows, local_source

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import Side

    from ...exchange import Exchange
    from ...shard_plan import Shards, SideShard
    from ...text_layout import TextChunk
    from ..protocol import RowSettings, TextProblem
    from .rows import Rows, StudentRows, StudentWholeRows, WholeRows
    from .text_computation import TextComputation


class SwappedRows:
    """`WholeRows` of this process's chunk, all columns of which came from the processes.

    Args:
        local: A reader of the columns of this process.
        side: The columns of all processes.
        exchange: The group.
        settings: The compute dtype.
        work: Scratch buffers.
    """

    def __init__(
        self,
        local: Rows,
        side: SideShard,
        exchange: Exchange,
        settings: RowSettings,
        work: Workspace,
    ) -> None:
        self._local, self._exchange, self._work = local, exchange, work
        self._dtype = settings.dtype
        self._widths = [stop - start for start, stop in side.ranges]
        self._by_start = sorted(range(len(side.ranges)), key=lambda rank: side.ranges[rank])
        self.columns = sum(self._widths)
        self._counts: list[int] = []
        self._rows: Tensor | None = None
        self._z: Tensor | None = None

    def swap(self, rows: list[Tensor]) -> None:
        """Read the rows of one chunk for every process, and keep those of this process.

        Args:
            rows: The rows of every process's chunk.
        """
        self._counts = [each.shape[0] for each in rows]
        self._rows = torch.cat(rows)
        z = self._local.full(self._rows)
        own, rank = self._counts[self._exchange.rank], self._exchange.rank
        received = self._exchange.swapped(
            z.view(-1),
            [count * self._widths[rank] for count in self._counts],
            [own * width for width in self._widths],
        )
        parts = torch.split(received, [own * width for width in self._widths])
        blocks = [parts[other].view(own, self._widths[other]) for other in self._by_start]
        self._z = torch.cat(blocks, 1)

    def softmax(self, rows: Tensor, log_norm: Tensor | None = None) -> Tensor:
        """See `WholeRows`; `rows` are those of the chunk of this process."""
        assert self._z is not None
        probs = self._work.take("probs", rows.shape[0], self.columns, self._dtype)
        return softmax_(probs.copy_(self._z), log_norm)

    def pick(self, rows: Tensor, ids: Tensor) -> Tensor:
        """See `WholeRows`; `rows` are those of the chunk of this process."""
        del rows
        assert self._z is not None
        return self._z.gather(1, ids.unsqueeze(1)).squeeze(1)

    def row_values(self, full: bool) -> int:
        """See `WholeRows`. It is the same on all processes, which plan the same chunks."""
        del full
        return 3 * self.columns


class SwappedStudentRows(SwappedRows):
    """`SwappedRows` with the gradient; see `StudentWholeRows`.

    Args:
        local: A reader of the columns of this process.
        side: The columns of all processes.
        exchange: The group.
        settings: The compute dtype.
        work: Scratch buffers.
    """

    def __init__(
        self,
        local: StudentRows,
        side: SideShard,
        exchange: Exchange,
        settings: RowSettings,
        work: Workspace,
    ) -> None:
        super().__init__(local, side, exchange, settings, work)
        self._student = local
        self._gradient: Tensor | None = None

    def accumulate_full(self, rows: Tensor, gradient: Tensor) -> None:
        """Keep the gradient by the rows of this process's chunk for `swap_back`."""
        del rows
        self._gradient = gradient

    def swap_back(self) -> None:
        """Send the gradient to the processes of its columns, and add what came from them."""
        assert self._rows is not None
        own, rank = self._counts[self._exchange.rank], self._exchange.rank
        gradient, self._gradient = self._gradient, None
        if gradient is None:
            gradient = torch.zeros(0, self.columns, dtype=self._dtype, device=self._rows.device)
        parts = torch.split(gradient, [self._widths[other] for other in self._by_start], 1)
        sent = [parts[self._by_start.index(other)].reshape(-1) for other in range(len(parts))]
        received = self._exchange.swapped(
            torch.cat(sent),
            [own * width for width in self._widths],
            [count * self._widths[rank] for count in self._counts],
        )
        self._student.accumulate_full(self._rows, received.view(-1, self._widths[rank]))

    def gradients(self) -> list[Tensor]:
        """See `StudentRows`."""
        return self._student.gradients()


class ShardedTextRun:
    """A `TextProblem` with shards; see `TextRun`.

    Args:
        problem: The problem.
        shards: The shards.
        computes: The class that compares a chunk.
    """

    def __init__(
        self, problem: TextProblem, shards: Shards, computes: type[TextComputation]
    ) -> None:
        self._problem, self._exchange = problem, shards.plan.exchange
        self._swapped: dict[Side, SwappedRows] = {}
        self._swapped_student: SwappedStudentRows | None = None
        self.computation = computes(problem, (self._teacher(shards), self._student(shards)))

    def _teacher(self, shards: Shards) -> WholeRows:
        teacher, settings = self._problem.teacher, self._problem.settings
        side, work = shards.plan.sides["teacher"], Workspace(teacher.events.row.device)
        if side.whole:
            return teacher_rows(teacher.source, teacher.columns, work, settings)
        local = teacher_rows(local_source(teacher.source, side), side.local, work, settings)
        swapped = SwappedRows(local, side, self._exchange, settings, work)
        self._swapped["teacher"] = swapped
        return swapped

    def _student(self, shards: Shards) -> StudentWholeRows:
        student, settings = self._problem.student, self._problem.settings
        side, work = shards.plan.sides["student"], Workspace(student.events.row.device)
        assert isinstance(student.source, Head)  # shards are those of a head
        if side.whole:
            return SummedRows(student.source, student.columns, work, settings, self._exchange)
        local = StudentShardRows(student.source, shards, work, settings)
        swapped = SwappedStudentRows(local, side, self._exchange, settings, work)
        self._swapped["student"] = self._swapped_student = swapped
        return swapped

    def run(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """See `TextRun`."""
        settings, n_ranks = self._problem.settings, self._exchange.n_ranks
        n_offsets = self._problem.sizes.n_text_offsets
        weight = weight.to(settings.dtype).expand(n_offsets)
        found = torch.zeros(1 + N_STATS, n_offsets, dtype=settings.dtype, device=weight.device)
        chunks = self.computation.chunks
        for start in range(0, len(chunks), n_ranks):
            of_ranks = chunks[start : start + n_ranks]
            for side, swapped in self._swapped.items():
                swapped.swap(self._rows_of(side, of_ranks))
            if self._exchange.rank < len(of_ranks):
                chunk = of_ranks[self._exchange.rank]
                at = chunk.offsets
                found[0, at] = self.computation.compare(chunk, weight[at], found[1:, at])
            if settings.gradient and self._swapped_student is not None:
                self._swapped_student.swap_back()
        # Every offset has figures on one process.
        self._exchange.sum(found)
        return found[0], found[1:]

    def _rows_of(self, side: Side, chunks: list[TextChunk]) -> list[Tensor]:
        """Return the rows of every process's chunk; the last processes may have none."""
        row = self._problem.sides[side].events.row
        rows = [row[chunk.sides[side].rows] for chunk in chunks]
        return rows + [row[:0]] * (self._exchange.n_ranks - len(chunks))

    def gradients(self) -> list[Tensor]:
        """See `TextRun`."""
        return self.computation.student.gradients()
