"""Internal: which process computes which columns, where output embeddings are cut into shards.

Shared columns are numbered by ascending student id, so a process that holds a range of the
student's rows holds a run of shared columns: it compares these columns. The teacher's rows of the
same tokens lie anywhere. The teacher is frozen, so these rows are moved to that process once and
kept. A side whose output embedding is whole on every process is cut into ranges of equal size.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np
import torch

from .columns import SideColumns
from .exchange import Exchange
from .handles import Handles
from .scores.on_path_plan import SIDES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray
    from torch import Tensor

    from simct_align.index import Side

    from .columns import PairColumns
    from .handles import Handle
    from .shards import Ranges, VocabularyShard


@dataclass(frozen=True)
class SideShard:
    """One side's columns on this process.

    Attributes:
        ranges: `[start, stop)` of every rank.
        whole: Whether the whole output embedding is on every process.
        start: The first column of this process.
        stop: One past its last column.
        local: The ids of the shared tokens and stops among these columns, and the padding, counted
            from `start`.
    """

    ranges: Ranges
    whole: bool
    start: int
    stop: int
    local: SideColumns


@dataclass(frozen=True)
class StudentStops:
    """The places of the student's stops; empty unless there are several.

    Attributes:
        count: The number of stops of the side.
        column: The column of the merged stops on this process, -1 if another process has it.
        at: The columns of the stops on this process.
        which: Their numbers among the stops.
    """

    count: int
    column: int
    at: Tensor
    which: Tensor


@dataclass(frozen=True)
class ShardPlan:
    """The columns of a pair on this process.

    Its columns of scores are: `n_owned` shared columns, then other stops, then the realized unit.

    Attributes:
        exchange: The group.
        sides: The columns of either side.
        first_owned: The first shared column of this process.
        n_owned: The number of its shared columns.
        columns: The number of its columns of scores, without that of the realized unit.
        teacher_ids: The teacher's ids of its shared columns. On the process with the column of the
            stops, the teacher's other stops follow.
        teacher_stop_column: The column of the stops on this process, -1 if another process has it.
        n_teacher_stops: The number of the teacher's other stops among `teacher_ids`.
        student_stops: The student's stops.
        widest: The largest number of columns of scores, or of a side's columns, on any process.
        teacher_rows: Which rows of the teacher's output embedding go to which process.
    """

    exchange: Exchange
    sides: dict[Side, SideShard]
    first_owned: int
    n_owned: int
    columns: int
    teacher_ids: Tensor
    teacher_stop_column: int
    n_teacher_stops: int
    student_stops: StudentStops
    widest: int
    teacher_rows: RowMoves

    def owned(self, column: Tensor) -> Tensor:
        """Return shared columns as columns of this process, -1 for those of other processes.

        Args:
            column: Shared columns, -1 for none.
        """
        own = column - self.first_owned
        return own.masked_fill((own < 0) | (own >= self.n_owned), -1)


@dataclass(frozen=True)
class RowMoves:
    """Which rows of the teacher's output embedding this process sends and receives.

    Attributes:
        sent_rows: The rows to send, of rank 0, of rank 1, and so on, counted from `start`.
        sent: How many rows go to every rank.
        received: How many rows come from every rank.
        order: For every row of `ShardPlan.teacher_ids`, its place among the received rows.
    """

    sent_rows: Tensor
    sent: list[int]
    received: list[int]
    order: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Shards:
    """What a loss reads of the shards in one call.

    Attributes:
        plan: The columns of this process.
        teacher_weight: `[n, width]` the teacher's rows of `plan.teacher_ids`; None where the whole
            output embedding, or no output embedding, is on every process.
        teacher_bias: `[n]` their bias; None without one.
        partial_hidden_gradient: See `VocabularyShard`.
    """

    plan: ShardPlan
    teacher_weight: Tensor | None
    teacher_bias: Tensor | None
    partial_hidden_gradient: bool


SHARDS: Handles[Shards] = Handles("shards")


def _even(columns: int, n_ranks: int) -> Ranges:
    cuts = [rank * columns // n_ranks for rank in range(n_ranks + 1)]
    return tuple(itertools.pairwise(cuts))


def _within(ids: Any, start: int, stop: int) -> Any:
    """Return which ids of an array or a tensor are in `[start, stop)`."""
    return (ids >= start) & (ids < stop)


def make_plan(
    columns: PairColumns, shards: dict[Side, VocabularyShard | None], n_columns: dict[Side, int]
) -> ShardPlan:
    """Plan the columns of all processes; this process keeps its own.

    Args:
        columns: The pair's columns.
        shards: The shard of either side; None where its output embedding is whole, which is at most
            one side.
        n_columns: The number of columns of either side, on all processes together.

    Raises:
        ValueError: The shards of both sides are not of the same processes, or there are fewer
            columns than processes.

    Complexity:
        O(vocabulary) time on the host, which waits for the device.
    """
    device = columns.student_ids.device
    teacher_shard, student_shard = shards["teacher"], shards["student"]
    if teacher_shard is not None and student_shard is not None:
        processes = teacher_shard.processes(), student_shard.processes()
        if processes[0] != processes[1]:
            raise ValueError(
                "teacher_shard and student_shard: expected shards of the same processes, got "
                f"processes {processes[0]} and {processes[1]}"
            )
    known = student_shard or teacher_shard
    assert known is not None
    exchange = Exchange(known.group)
    rank, n_ranks = exchange.rank, exchange.n_ranks

    def tensor(values: Any) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.int64)).to(device)

    ids = {side: getattr(columns, f"{side}_ids").cpu().numpy() for side in SIDES}
    n_shared = columns.n_shared_tokens
    ranges: dict[Side, Ranges] = {}
    for side in SIDES:
        shard = shards[side]
        if shard is None and n_columns[side] < n_ranks:
            raise ValueError(
                f"{side}: expected at least a column for each of {n_ranks} processes, got "
                f"{n_columns[side]}"
            )
        ranges[side] = _even(n_columns[side], n_ranks) if shard is None else shard.ranges or ()
    student_starts = np.array(ranges["student"])
    first, last = np.searchsorted(ids["student"][:n_shared], student_starts).T
    extras = {side: ids[side][n_shared:] for side in SIDES}
    stop = columns.stop_column
    stop_rank = int(np.flatnonzero((first <= stop) & (stop < last))[0]) if stop >= 0 else -1

    # The teacher's ids whose logits every rank computes for its shared columns.
    wanted = [ids["teacher"][a:b] for a, b in zip(first, last, strict=True)]
    if stop >= 0:
        wanted[stop_rank] = np.concatenate([wanted[stop_rank], extras["teacher"]])
    own_extras = [_within(extras["student"], *each) for each in ranges["student"]]
    columns_of_rank = [
        max(len(want), int(b - a + here.sum()))
        for want, a, b, here in zip(wanted, first, last, own_extras, strict=True)
    ]

    a, b = int(first[rank]), int(last[rank])
    stop_column = stop - a if stop_rank == rank else -1
    return ShardPlan(
        exchange=exchange,
        sides={
            side: _side_shard(columns, side, ranges[side], rank, whole=shards[side] is None)
            for side in SIDES
        },
        first_owned=a,
        n_owned=b - a,
        columns=columns_of_rank[rank],
        teacher_ids=tensor(wanted[rank]),
        teacher_stop_column=stop_column,
        n_teacher_stops=len(extras["teacher"]) if stop_rank == rank else 0,
        student_stops=_student_stops(own_extras[rank], b - a, stop_column, tensor),
        widest=max(
            *columns_of_rank, *(end - start for side in SIDES for start, end in ranges[side])
        ),
        teacher_rows=_moves(wanted, ranges["teacher"], rank, tensor),
    )


def _side_shard(
    columns: PairColumns, side: Side, ranges: Ranges, rank: int, *, whole: bool
) -> SideShard:
    start, stop = ranges[rank]
    ids, unused = (getattr(columns, f"{side}_{name}").cpu() for name in ("ids", "unused"))
    device = columns.student_ids.device
    local = SideColumns(
        ids=(ids[_within(ids, start, stop)] - start).to(device),
        n_extra=0,
        column_of_id=getattr(columns, f"{side}_column_of_id"),
        unused=(unused[_within(unused, start, stop)] - start).to(device),
        code_of_id=ids[:0],
        needed=min(max(columns.columns_needed[side] - start, 0), stop - start),
    )
    return SideShard(ranges, whole, start, stop, local)


def _student_stops(
    is_here: NDArray[np.bool_], n_owned: int, column: int, tensor: Callable[[Any], Tensor]
) -> StudentStops:
    """Return the places of the student's stops on this process.

    Args:
        is_here: For every stop but the first, whether its row is on this process.
        n_owned: The number of shared columns, which these stops follow.
        column: The column of the first stop, -1 if its row is on another process.
        tensor: Makes a tensor on the device.
    """
    which = np.flatnonzero(is_here) + 1
    at = n_owned + np.arange(len(which))
    if column >= 0:
        which, at = np.append(which, 0), np.append(at, column)
    count = 1 + len(is_here) if len(is_here) else 0
    return StudentStops(count, column, tensor(at), tensor(which))


def _moves(
    wanted: list[NDArray[np.int64]], ranges: Ranges, rank: int, tensor: Callable[[Any], Tensor]
) -> RowMoves:
    start, end = ranges[rank]
    to_rank = [want[_within(want, start, end)] - start for want in wanted]
    own = wanted[rank]
    source = np.zeros(len(own), np.int64)
    for other, (first, last) in enumerate(ranges):
        source[_within(own, first, last)] = other
    order = np.empty(len(own), np.int64)
    order[np.argsort(source, kind="stable")] = np.arange(len(own))
    return RowMoves(
        sent_rows=tensor(np.concatenate(to_rank)),
        sent=[len(each) for each in to_rank],
        received=np.bincount(source, minlength=len(ranges)).tolist(),
        order=tensor(order),
    )


class ShardKeeper:
    """The plans of a loss, and the teacher's rows that have been moved.

    Moving depends on the identity and the version of the teacher's weight: a loss that is called
    with the same weight moves its rows once. All processes of a group decide alike, because they
    run the same program.

    Args:
        columns: The pair's columns.
    """

    def __init__(self, columns: PairColumns) -> None:
        self._columns = columns
        self._key: Any = None
        self._plan: ShardPlan | None = None
        self._moved: tuple[Any, ...] = ()
        self._handle: Handle[Shards] | None = None

    def handle(
        self,
        shards: dict[Side, VocabularyShard | None],
        n_columns: dict[Side, int],
        teacher: tuple[Tensor, ...],
        arguments: tuple[Tensor, ...],
    ) -> Handle[Shards]:
        """Return the handle of what a call reads; see `make_plan`.

        Args:
            shards: The shard of either side; at least one is not None.
            n_columns: The number of columns of either side.
            teacher: The teacher's weight and, if there is one, its bias: the rows of this process.
                Empty if there is no shard of the teacher.
            arguments: The tensors that the caller passed for them, which are the same objects in
                the next call.

        Returns:
            The handle; operators find it by its key.
        """
        device = self._columns.student_ids.device
        groups = tuple(shard and (shard.group, shard.ranges) for shard in shards.values())
        key = (groups, tuple(n_columns.values()), device)
        if self._plan is None or self._key != key:
            self._key, self._plan = key, make_plan(self._columns, shards, n_columns)
            self._handle = None
        student = shards["student"]
        partial = student is not None and student.partial_hidden_gradient
        if (
            self._handle is None
            or self._handle.value.partial_hidden_gradient != partial
            or not self._is_moved(teacher, arguments)
        ):
            rows = [self._move(self._plan, each) for each in teacher] + [None, None]
            versions = map(_version, teacher)
            self._moved = tuple(zip(map(ref, arguments), versions, strict=True))
            self._handle = SHARDS.handle(Shards(self._plan, rows[0], rows[1], partial))
        return self._handle

    def forget(self) -> None:
        """Move the teacher's rows again in the next call."""
        self._moved, self._handle = (), None

    def _is_moved(self, teacher: tuple[Tensor, ...], arguments: tuple[Tensor, ...]) -> bool:
        if len(self._moved) != len(teacher):
            return False
        return all(
            known() is argument and version is not None and version == _version(rows)
            for (known, version), rows, argument in zip(
                self._moved, teacher, arguments, strict=True
            )
        )

    @staticmethod
    def _move(plan: ShardPlan, rows: Tensor) -> Tensor | None:
        moves = plan.teacher_rows
        with torch.no_grad():
            sent = rows.detach().index_select(0, moves.sent_rows)
            received = plan.exchange.swapped(sent, moves.sent, moves.received)
            return received.index_select(0, moves.order)


def _version(tensor: Tensor) -> int | None:
    """Return the number of changes of a tensor; None for one that does not count them."""
    return None if tensor.is_inference() else tensor._version
