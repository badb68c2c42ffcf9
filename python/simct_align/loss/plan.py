"""What the loss over on-path continuations has to do, worked out on the host before it is done.

Everything here follows from the index and from the tables of spellings, which both lie on the host,
so the device is never asked for a size. NumPy does it in passes over all units or entries at once.

Words: a *spelled* leaf of a side is a continuation that this side writes as a path of realized
tokens and a last one; a *single* leaf is one of its own tokens. What one side spells is single on
the other. ``R_j`` is the path of the first j realized tokens from a unit on: only such paths can
have continuations, so only they can be the beginning of another candidate.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from simct_align.continuations import Spellings

    Longs = NDArray[np.int64]

SIDES = ("teacher", "student")
_OTHER = {"teacher": "student", "student": "teacher"}


class SpellingTable(NamedTuple):
    """The continuations of one direction, on the host: see `pack_spellings`."""

    node_offsets: Longs
    node_parent: Longs
    node_token: Longs
    leaf_key: Longs
    leaf_of_token: Longs


def pack_spellings(spellings: Spellings, vocabulary: int) -> Tensor:
    """Put what planning needs of one direction into one int64 tensor on the host.

    Args:
        spellings: The spellings of the one-sided tokens of a side.
        vocabulary: How many ids that side has.

    Returns:
        The numbers of nodes, leaves and ids, and the five arrays of `SpellingTable`: where the
        leaves of each node begin; the node before it; its last token; ``node << 32 | last token``
        of each leaf, ascending; and the leaf of each one-sided token, or −1.
    """
    leaves, nodes = spellings.leaves, spellings.nodes
    n_nodes, n_leaves = len(nodes.token), len(leaves)
    node = np.repeat(np.arange(n_nodes), np.diff(leaves.node_offsets))
    leaf_of_token = np.full(vocabulary, -1)
    leaf_of_token[leaves.one_sided_token] = np.arange(n_leaves)
    arrays = (
        np.array([n_nodes, n_leaves, vocabulary]),
        leaves.node_offsets,
        nodes.parent,
        nodes.token,
        (node << 32) | leaves.last_token,
        leaf_of_token,
    )
    return torch.from_numpy(np.concatenate(arrays).astype(np.int64))


def _unpack_spellings(packed: Tensor) -> SpellingTable:
    values = packed.numpy()
    nodes, leaves, vocabulary = values[:3].tolist()
    sizes = np.cumsum([3, nodes + 1, nodes, nodes, leaves, vocabulary])
    return SpellingTable(*np.split(values, sizes[:-1])[1:])


@dataclass
class DirectionPlan:
    """Entries of one direction, in the order of the planned units.

    Attributes:
        unit: ``[E]`` number of the planned unit.
        depth: ``[E]`` realized tokens that lead to the node.
        first_leaf: ``[E]`` the node's first leaf in the leaf table.
        leaves: ``[E]`` how many leaves it has.
        place: ``[E]`` how many leaves of the unit come before.
        norm_at: ``[E]`` the row behind the realized tokens, as a place in `SidePlan.norm_row` of
            the side that spells.
    """

    unit: Any
    depth: Any
    first_leaf: Any
    leaves: Any
    place: Any
    norm_at: Any


@dataclass
class SidePlan:
    """One side of the planned units, ``n`` of them; ``d`` is the deepest ``R_j`` that matters.

    Attributes:
        row: ``[n]`` prefix rows.
        first_id: ``[n]`` the token of ``R_1``, 0 where nobody asks.
        length: ``[n]`` tokens of the realized path, 0 at units that are no MULTI.
        same: ``[n]`` 1 where the realized text is a continuation by the very same path.
        node: ``[n, d]`` where ``R_j`` is a continuation: its place among the unit's leaves, or −1.
        step_at: ``[n, d]`` the row of its j-th token as a place in ``norm_row``, or −1; the first
            column is not used.
        prefix_at: ``[n]`` the prefix row as a place in ``norm_row``, or −1.
        rest_unit: ``[r]`` units of the tokens of realized paths behind the first.
        rest_at: ``[r]`` their rows as places in ``norm_row``.
        norm_row: ``[m]`` rows whose log-normalizer is needed, those that get a gradient first.
        norm_next: ``[m]`` the realized token that the row predicts, 0 where nobody asks.
    """

    row: Any
    first_id: Any
    length: Any
    same: Any
    node: Any
    step_at: Any
    prefix_at: Any
    rest_unit: Any
    rest_at: Any
    norm_row: Any
    norm_next: Any


@dataclass(frozen=True)
class Plan:
    """All of it; device tensors but for what `host` says.

    Attributes:
        order: ``[units]`` numbers of the units: first those that `Engine` handles like without
            continuations, then the planned ones by descending student row.
        realized_column: ``[n]`` shared column of the realized text, or −1.
        realized_leaf: ``[n]`` its place among the unit's leaves, or −1.
        sides: by the side's name.
        directions: by the name of the side with the single tokens.
        host: sizes that cut the work into chunks.
    """

    order: Tensor
    realized_column: Tensor
    realized_leaf: Tensor
    sides: dict[str, SidePlan]
    directions: dict[str, DirectionPlan]
    host: HostSizes


@dataclass(frozen=True)
class HostSizes:
    """Sizes on the host.

    Attributes:
        planned: Planned units.
        gradient_rows: Rows of the student's ``norm_row`` that get a gradient.
        leaves: ``[n]`` leaves of each planned unit.
        multi: ``[M]`` planned units that are MULTI, ascending.
        measured: Per side, places in ``norm_row`` of the prefix rows where the shared tokens'
            probability is wanted.
        first_entry: ``[n + 1]`` per direction: entries before each planned unit.
        entry_leaves: ``[E + 1]`` per direction: leaves before each entry.
    """

    planned: int
    gradient_rows: int
    leaves: Longs
    multi: Longs
    measured: dict[str, slice]
    first_entry: dict[str, Longs]
    entry_leaves: dict[str, Longs]


@dataclass(frozen=True)
class Wanted:
    """What is wanted of prefix rows.

    Attributes:
        measured: by side, of which planned units the shared tokens' probability: ``"all"``,
            ``"multi"`` or ``"none"``.
        log_norm: whether all units need their log-normalizer, and the student's its gradient.
    """

    measured: dict[str, str]
    log_norm: bool


class _Index(NamedTuple):
    """The sections of a packed index that planning reads."""

    teacher_row: Longs
    student_row: Longs
    realized_column: Longs
    offsets: dict[str, Longs]
    steps: dict[str, tuple[Longs, Longs, Longs]]
    entries: dict[str, tuple[Longs, Longs, Longs]]
    realized_leaf: dict[str, Longs]


def _read_index(host: Tensor, n_shared: int, n_multi: int, steps: Any, entries: Any) -> _Index:
    units = n_shared + n_multi
    sizes = [units] * 5 + [n_multi, n_multi + 1, n_multi + 1]
    for count in steps:
        sizes += [count] * 3
    for count in entries:
        sizes += [count] * 3
    sizes += [n_multi] * 2
    values = host.numpy()
    if values.shape != (sum(sizes),):
        raise ValueError(
            f"index: {values.size} numbers on the host, but its counts ask for {sum(sizes)}: "
            "make it with batch.index(max_path=...)"
        )
    parts = np.split(values, np.cumsum(sizes)[:-1])
    return _Index(
        teacher_row=parts[3],
        student_row=parts[4],
        realized_column=parts[5],
        offsets={"teacher": parts[6], "student": parts[7]},
        steps={"teacher": tuple(parts[8:11]), "student": tuple(parts[11:14])},  # type: ignore[dict-item]
        entries={"teacher": tuple(parts[14:17]), "student": tuple(parts[17:20])},  # type: ignore[dict-item]
        realized_leaf={"teacher": parts[20], "student": parts[21]},
    )


def _find(keys: Longs, wanted: Longs) -> Longs:
    """Places of the wanted keys among ascending ones, −1 where there is none."""
    place = np.searchsorted(keys, wanted)
    inside = np.minimum(place, max(len(keys) - 1, 0))
    found = keys[inside] == wanted if len(keys) else np.zeros(len(wanted), bool)
    return np.where(found, inside, -1)


class _Planner:
    def __init__(self, index: _Index, tables: dict[str, SpellingTable], n_shared: int) -> None:
        self.index = index
        self.tables = tables
        units = len(index.student_row)
        self.leaf_counts = {
            side: np.diff(table.node_offsets)[index.entries[side][1]]
            for side, table in tables.items()
        }
        leaves = sum(
            np.bincount(index.entries[side][0], counts, units)
            for side, counts in self.leaf_counts.items()
        )
        leaves = np.asarray(leaves, np.int64)
        is_multi = np.arange(units) >= n_shared
        planned = np.flatnonzero((leaves > 0) | is_multi)
        planned = planned[np.argsort(-index.student_row[planned], kind="stable")]
        self.planned = planned
        self.order = np.concatenate([np.flatnonzero((leaves == 0) & ~is_multi), planned])
        self.rank = np.full(units, -1)
        self.rank[planned] = np.arange(len(planned))
        self.leaves = leaves[planned]
        self.is_multi = is_multi[planned]
        self.multi_of = planned - n_shared  # the number among the MULTI units, or negative
        self.multi_rank = self.rank[n_shared:]
        self.nodes: dict[str, Longs] = {}
        self.directions = {side: self._direction(side) for side in SIDES}
        # The student's leaves stand behind the teacher's.
        teacher = self.directions["teacher"]
        before = np.bincount(teacher.unit, teacher.leaves, len(planned)).astype(np.int64)
        student = self.directions["student"]
        student.place = student.place + before[student.unit]

    def _direction(self, side: str) -> DirectionPlan:
        unit, node, depth = self.index.entries[side]
        rank = self.rank[unit]
        order = np.argsort(rank, kind="stable")
        counts = self.leaf_counts[side][order]
        rank = rank[order]
        before = np.cumsum(counts) - counts
        first_of_unit = np.searchsorted(rank, rank)
        place = before - before[first_of_unit] if len(rank) else before
        self.nodes[side] = node[order]
        first_leaf = self.tables[side].node_offsets[node[order]]
        # The rows behind the realized tokens are numbered later, by the side that spells.
        return DirectionPlan(rank, depth[order], first_leaf, counts, place, norm_at=before)

    def places(self, side: str, units: Longs, leaves: Longs) -> Longs:
        """Where leaves of a direction stand among their units' leaves; −1 where they do not."""
        plan, table = self.directions[side], self.tables[side]
        if not len(plan.unit):
            return np.full(len(units), -1)
        node = np.searchsorted(table.node_offsets, leaves, side="right") - 1
        n_nodes = len(table.node_token) + 1
        # A unit's entries have ascending depths, and their nodes ascend with them: each node's path
        # begins with the one before, and paths are numbered in order.
        keys = plan.unit * n_nodes + self.nodes[side]
        entry = _find(keys, units * n_nodes + node)
        known = (leaves >= 0) & (entry >= 0)
        entry = np.where(known, entry, 0)
        place = plan.place[entry] + leaves - plan.first_leaf[entry]
        return np.where(known, place, -1)


class _Sizes(NamedTuple):
    """Of one side, for `HostSizes`."""

    gradient_rows: int
    measured: slice


def _side(planner: _Planner, side: str, wanted: Wanted) -> tuple[SidePlan, Longs, _Sizes]:
    """Plan a side; also return its entries' rows as places in ``norm_row``, and its sizes."""
    index, spelled = planner.index, _OTHER[side]
    entries, table = planner.directions[spelled], planner.tables[spelled]
    n = len(planner.planned)
    row = getattr(index, f"{side}_row")[planner.planned]
    offsets = index.offsets[side]
    length = np.zeros(n, np.int64)
    length[planner.is_multi] = np.diff(offsets)[planner.multi_of[planner.is_multi]]
    depth = int(entries.depth.max(initial=0)) + 1

    # The ids of R_1 .. R_d, as far as a path or a realized unit says them.
    ids = np.full((n, depth), -1)
    node, level = planner.nodes[spelled].copy(), entries.depth.copy()
    while (active := level > 0).any():
        ids[entries.unit[active], level[active] - 1] = table.node_token[node[active]]
        node = np.where(active, table.node_parent[node], node)
        level -= 1
    step_unit, step_row, step_id = index.steps[side]
    step_number = np.arange(len(step_unit)) - offsets[step_unit]
    shallow = step_number < depth
    step_rank = planner.multi_rank[step_unit]
    ids[step_rank[shallow], step_number[shallow]] = step_id[shallow]

    # Rows behind the prefix row: those of path tokens and of last tokens.
    units, numbers = np.nonzero(ids >= 0)
    behind = numbers > 0
    path_row, path_id = row[units[behind]] + numbers[behind], ids[units[behind], numbers[behind]]
    is_rest = step_number > 0
    entry_row = row[entries.unit] + entries.depth
    with_gradient = [path_row, step_row[is_rest], entry_row]
    if wanted.log_norm:
        with_gradient.append(row)
    grad_rows = np.unique(np.concatenate(with_gradient))
    measured = {"all": row, "multi": row[planner.is_multi], "none": row[:0]}[wanted.measured[side]]
    is_measured = np.isin(grad_rows, measured)
    # What is measured stands together: at the end of the rows with a gradient, and behind them.
    others = np.setdiff1d(measured, grad_rows)
    norm_row = np.concatenate([grad_rows[~is_measured], grad_rows[is_measured], others])
    sizes = _Sizes(len(grad_rows), slice(int((~is_measured).sum()), len(norm_row)))
    by_row = np.argsort(norm_row, kind="stable")

    def at(rows: Longs) -> Longs:
        found = _find(norm_row[by_row], rows)
        return np.where(found >= 0, by_row[found], -1) if len(by_row) else found

    norm_next = np.zeros(len(norm_row), np.int64)
    norm_next[at(path_row)] = path_id
    norm_next[at(step_row[is_rest])] = step_id[is_rest]
    step_at = np.full((n, depth), -1)
    step_at[units[behind], numbers[behind]] = at(path_row)

    # Where R_j is a continuation: R_1 a token of this side, R_j of j > 1 one of the other's.
    places = np.full((n, depth), -1)
    everyone = np.arange(n)
    first = ids[:, 0]
    of_token = planner.tables[side].leaf_of_token
    places[:, 0] = planner.places(side, everyone, np.where(first >= 0, of_token[first], -1))
    parents = np.full((n, depth + 1), -1)
    parents[entries.unit, entries.depth] = planner.nodes[spelled]
    for j in range(1, depth):
        known = (ids[:, j] >= 0) & (parents[:, j] >= 0)
        leaf = _find(table.leaf_key, (parents[:, j].clip(0) << 32) | ids[:, j].clip(0))
        places[:, j] = planner.places(spelled, everyone, np.where(known, leaf, -1))
    last = np.where((length > 0) & (length <= depth), length - 1, 0)
    same = (length > 0) & (length <= depth) & (places[everyone, last] >= 0)

    plan = SidePlan(
        row=row,
        first_id=first.clip(0),
        length=length,
        same=same.astype(np.int64),
        node=places,
        step_at=step_at,
        prefix_at=at(row),
        rest_unit=step_rank[is_rest],
        rest_at=at(step_row[is_rest]),
        norm_row=norm_row,
        norm_next=norm_next,
    )
    return plan, at(entry_row), sizes


def make_plan(
    host: Tensor,
    counts: tuple[int, int, tuple[int, int], tuple[int, int]],
    tables: tuple[Tensor, Tensor],
    wanted: Wanted,
    device: torch.device,
) -> Plan:
    """Plan a batch.

    Args:
        host: the packed index, on the host.
        counts: SHARED and MULTI units, then steps and entries of the teacher and the student.
        tables: of the teacher's and the student's direction, from `pack_spellings`.
        wanted: what is wanted of prefix rows.
        device: where the tensors go, in one copy.

    Returns:
        The plan.

    Raises:
        ValueError: the index does not have the size that its counts say.

    Complexity:
        O((units + steps) × deepest path + entries × log entries) time on the host.
    """
    index = _read_index(host, *counts)
    by_side = dict(zip(SIDES, map(_unpack_spellings, tables), strict=True))
    planner = _Planner(index, by_side, counts[0])
    sides: dict[str, SidePlan] = {}
    entry_at: dict[str, Longs] = {}
    by_side_sizes: dict[str, _Sizes] = {}
    for side in SIDES:
        sides[side], entry_at[_OTHER[side]], by_side_sizes[side] = _side(planner, side, wanted)
    n = len(planner.planned)
    realized_leaf = np.full(n, -1)
    everyone = np.arange(n)[planner.is_multi]
    for side in SIDES:
        leaf = index.realized_leaf[side][planner.multi_of[planner.is_multi]]
        place = planner.places(side, everyone, leaf)
        realized_leaf[everyone] = np.maximum(realized_leaf[everyone], place)
    column = np.full(n, -1)
    column[everyone] = index.realized_column[planner.multi_of[planner.is_multi]]
    for side, plan in planner.directions.items():
        plan.norm_at = entry_at[side]
    sizes = HostSizes(
        planned=n,
        gradient_rows=by_side_sizes["student"].gradient_rows,
        leaves=planner.leaves,
        multi=everyone,
        measured={side: found.measured for side, found in by_side_sizes.items()},
        first_entry={
            side: np.searchsorted(plan.unit, np.arange(n + 1))
            for side, plan in planner.directions.items()
        },
        entry_leaves={
            side: np.concatenate([[0], np.cumsum(plan.leaves)])
            for side, plan in planner.directions.items()
        },
    )
    common = [planner.order, column, realized_leaf]
    names = {kind: [field.name for field in fields(kind)] for kind in (SidePlan, DirectionPlan)}
    arrays = common + [
        getattr(part, name)
        for parts in (sides, planner.directions)
        for part in parts.values()
        for name in names[type(part)]
    ]
    packed = torch.from_numpy(np.concatenate([np.ravel(array) for array in arrays]))
    packed = packed.to(device, non_blocking=True)
    pieces = torch.split(packed, [array.size for array in arrays])
    tensors = iter([p.view(array.shape) for p, array in zip(pieces, arrays, strict=True)])
    order, columns, leaves = (next(tensors) for _ in common)
    moved_sides = {side: SidePlan(*(next(tensors) for _ in names[SidePlan])) for side in SIDES}
    moved_directions = {
        side: DirectionPlan(*(next(tensors) for _ in names[DirectionPlan])) for side in SIDES
    }
    return Plan(order, columns, leaves, moved_sides, moved_directions, sizes)
