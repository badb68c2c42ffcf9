"""Internal: the planner of the loss over on-path continuations, on the host.

A plan follows from the index and the tables of spellings. Both are on the host, so planning never
reads a size back from the device. NumPy computes a plan in passes over all units or entries.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
import torch

from .on_path_plan import (
    OTHER,
    SIDES,
    DirectionPlan,
    HostSizes,
    Plan,
    SidePlan,
    SpellingTable,
    UnitPlan,
)

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.continuations import Spellings
    from simct_align.index import Side

    from ..layout import IndexSizes
    from .on_path_plan import Longs, Wanted


def pack_spellings(spellings: Spellings, vocabulary: int) -> Tensor:
    """Pack the `SpellingTable` of one direction into one int64 tensor on the host.

    Args:
        spellings: The spellings of the one-sided tokens of a side.
        vocabulary: The number of ids of the side.

    Returns:
        The lengths of the arrays of a `SpellingTable`, then the arrays.
    """
    leaves, nodes = spellings.leaves, spellings.nodes
    node = np.repeat(np.arange(len(nodes.token)), np.diff(leaves.node_offsets))
    leaf_of_token = np.full(vocabulary, -1)
    leaf_of_token[leaves.one_sided_token] = np.arange(len(leaves))
    table = SpellingTable(
        node_offsets=leaves.node_offsets,
        node_parent=nodes.parent,
        node_token=nodes.token,
        leaf_key=(node << 32) | leaves.last_token,
        leaf_of_token=leaf_of_token,
    )
    return torch.from_numpy(np.concatenate([[*map(len, table)], *table]).astype(np.int64))


def _unpack_spellings(packed: Tensor) -> SpellingTable:
    lengths, arrays = np.split(packed.numpy(), [len(SpellingTable._fields)])
    return SpellingTable(*np.split(arrays, lengths.cumsum()[:-1]))


class _Entries(NamedTuple):
    """The entries of one direction, in the order of the index."""

    unit: Longs
    node: Longs
    depth: Longs


class _Steps(NamedTuple):
    """The steps of one side's realized paths, in the order of the index."""

    offsets: Longs
    unit: Longs
    row: Longs
    id: Longs


class _Index(NamedTuple):
    """The sections of a packed index that planning reads."""

    row: dict[Side, Longs]
    steps: dict[Side, _Steps]
    entries: dict[Side, _Entries]
    realized_leaf: dict[Side, Longs]
    realized_column: Longs


def _read_index(host: Tensor, sizes: IndexSizes) -> _Index:
    values: Longs = host.numpy()
    at = sizes.sections(values.size)

    def section(side: Side, name: str) -> Longs:
        return values[at[name.format(side)]]

    return _Index(
        row={side: section(side, "{}_row") for side in SIDES},
        steps={
            side: _Steps(
                offsets=section(side, "{}_offsets"),
                unit=section(side, "{}_step_unit"),
                row=section(side, "{}_step_row"),
                id=section(side, "{}_step_id"),
            )
            for side in SIDES
        },
        entries={
            side: _Entries(
                unit=section(side, "{}_entry_unit"),
                node=section(side, "{}_entry_node"),
                depth=section(side, "{}_entry_depth"),
            )
            for side in SIDES
        },
        realized_leaf={side: section(side, "realized_{}_leaf") for side in SIDES},
        realized_column=values[at["realized_shared_column"]],
    )


def _find(keys: Longs, wanted: Longs) -> Longs:
    """Return the places of keys among ascending keys, −1 for keys that are not among them."""
    place = np.searchsorted(keys, wanted)
    inside = np.minimum(place, max(len(keys) - 1, 0))
    found = keys[inside] == wanted if len(keys) else np.zeros(len(wanted), bool)
    return np.where(found, inside, -1)


class _Planner:
    def __init__(self, index: _Index, tables: dict[Side, SpellingTable], n_shared: int) -> None:
        self.index = index
        self.tables = tables
        units = len(index.row["student"])
        self.leaf_counts = {
            side: np.diff(table.node_offsets)[index.entries[side].node]
            for side, table in tables.items()
        }
        leaves = sum(
            np.bincount(index.entries[side].unit, counts, units)
            for side, counts in self.leaf_counts.items()
        )
        leaves = np.asarray(leaves, np.int64)
        is_multi = np.arange(units) >= n_shared
        planned = np.flatnonzero((leaves > 0) | is_multi)
        planned = planned[np.argsort(-index.row["student"][planned], kind="stable")]
        self.planned = planned
        self.order = np.concatenate([np.flatnonzero((leaves == 0) & ~is_multi), planned])
        self.rank = np.full(units, -1)
        self.rank[planned] = np.arange(len(planned))
        self.leaves = leaves[planned]
        self.is_multi = is_multi[planned]
        self.multi_of = planned - n_shared  # the number among the MULTI units; else negative
        self.multi_rank = self.rank[n_shared:]
        self.nodes: dict[Side, Longs] = {}
        self.directions = {side: self._direction(side) for side in SIDES}
        # The student's leaves come after the teacher's.
        teacher = self.directions["teacher"]
        before = np.bincount(teacher.unit, teacher.leaves, len(planned)).astype(np.int64)
        student = self.directions["student"]
        student.place = student.place + before[student.unit]

    def _direction(self, side: Side) -> DirectionPlan[Longs]:
        entries = self.index.entries[side]
        rank = self.rank[entries.unit]
        order = np.argsort(rank, kind="stable")
        counts = self.leaf_counts[side][order]
        rank = rank[order]
        before = np.cumsum(counts) - counts
        first_of_unit = np.searchsorted(rank, rank)
        place = before - before[first_of_unit] if len(rank) else before
        node = self.nodes[side] = entries.node[order]
        first_leaf = self.tables[side].node_offsets[node]
        return DirectionPlan(
            unit=rank,
            depth=entries.depth[order],
            first_leaf=first_leaf,
            leaves=counts,
            place=place,
            norm_at=np.full(len(rank), -1),  # numbered later, by the side that spells
        )

    def places(self, side: Side, units: Longs, leaves: Longs) -> Longs:
        """Return the places of leaves among their units' leaves, −1 for leaves of other units."""
        plan, table = self.directions[side], self.tables[side]
        if not len(plan.unit):
            return np.full(len(units), -1)
        node = np.searchsorted(table.node_offsets, leaves, side="right") - 1
        n_nodes = len(table.node_token) + 1
        # A unit's entries have ascending depths and ascending nodes: the path of a node begins with
        # the path of the node before, and nodes are numbered in the order of their paths.
        keys = plan.unit * n_nodes + self.nodes[side]
        entry = _find(keys, units * n_nodes + node)
        known = (leaves >= 0) & (entry >= 0)
        entry = np.where(known, entry, 0)
        place = plan.place[entry] + leaves - plan.first_leaf[entry]
        return np.where(known, place, -1)


class _Sizes(NamedTuple):
    """The sizes of one side, for `HostSizes`."""

    gradient_rows: int
    measured: slice


def _side(planner: _Planner, side: Side, wanted: Wanted) -> tuple[SidePlan[Longs], Longs, _Sizes]:
    """Return the plan of a side, the rows of its entries as places in `norm_row`, and its sizes."""
    index, spelled = planner.index, OTHER[side]
    entries, table = planner.directions[spelled], planner.tables[spelled]
    n = len(planner.planned)
    row = index.row[side][planner.planned]
    steps = index.steps[side]
    length = np.zeros(n, np.int64)
    length[planner.is_multi] = np.diff(steps.offsets)[planner.multi_of[planner.is_multi]]
    depth = int(entries.depth.max(initial=0)) + 1

    # The ids of R_1 .. R_d, where a node's path or a realized unit has them.
    ids = np.full((n, depth), -1)
    node, level = planner.nodes[spelled].copy(), entries.depth.copy()
    while (active := level > 0).any():
        ids[entries.unit[active], level[active] - 1] = table.node_token[node[active]]
        node = np.where(active, table.node_parent[node], node)
        level -= 1
    step_number = np.arange(len(steps.unit)) - steps.offsets[steps.unit]
    shallow = step_number < depth
    step_rank = planner.multi_rank[steps.unit]
    ids[step_rank[shallow], step_number[shallow]] = steps.id[shallow]

    # The rows after the prefix row: those of the nodes' tokens and of the last tokens.
    units, numbers = np.nonzero(ids >= 0)
    later = numbers > 0
    path_row, path_id = row[units[later]] + numbers[later], ids[units[later], numbers[later]]
    is_rest = step_number > 0
    entry_row = row[entries.unit] + entries.depth
    with_gradient = [path_row, steps.row[is_rest], entry_row]
    if wanted.log_norm:
        with_gradient.append(row)
    grad_rows = np.unique(np.concatenate(with_gradient))
    measured = {"all": row, "multi": row[planner.is_multi], "none": row[:0]}[wanted.measured[side]]
    is_measured = np.isin(grad_rows, measured)
    # Measured rows are contiguous: the last rows with a gradient, then rows without a gradient.
    others = np.setdiff1d(measured, grad_rows)
    norm_row = np.concatenate([grad_rows[~is_measured], grad_rows[is_measured], others])
    sizes = _Sizes(len(grad_rows), slice(int((~is_measured).sum()), len(norm_row)))
    by_row = np.argsort(norm_row, kind="stable")

    def at(rows: Longs) -> Longs:
        found = _find(norm_row[by_row], rows)
        return np.where(found >= 0, by_row[found], -1) if len(by_row) else found

    norm_next = np.zeros(len(norm_row), np.int64)
    norm_next[at(path_row)] = path_id
    norm_next[at(steps.row[is_rest])] = steps.id[is_rest]
    step_at = np.full((n, depth), -1)
    step_at[units[later], numbers[later]] = at(path_row)

    # Where R_j is a continuation: R_1 as a one-sided token of this side, R_j with j > 1 as a
    # spelled leaf.
    places = np.full((n, depth), -1)
    every_unit = np.arange(n)
    first = ids[:, 0]
    of_token = planner.tables[side].leaf_of_token
    places[:, 0] = planner.places(side, every_unit, np.where(first >= 0, of_token[first], -1))
    parents = np.full((n, depth + 1), -1)
    parents[entries.unit, entries.depth] = planner.nodes[spelled]
    for j in range(1, depth):
        known = (ids[:, j] >= 0) & (parents[:, j] >= 0)
        leaf = _find(table.leaf_key, (parents[:, j].clip(0) << 32) | ids[:, j].clip(0))
        places[:, j] = planner.places(spelled, every_unit, np.where(known, leaf, -1))
    last = np.where((length > 0) & (length <= depth), length - 1, 0)
    same = (length > 0) & (length <= depth) & (places[every_unit, last] >= 0)

    plan = SidePlan(
        row=row,
        first_id=first.clip(0),
        length=length,
        same=same.astype(np.int64),
        node=places,
        step_at=step_at,
        prefix_at=at(row),
        rest_unit=step_rank[is_rest],
        rest_at=at(steps.row[is_rest]),
        norm_row=norm_row,
        norm_next=norm_next,
    )
    return plan, at(entry_row), sizes


def make_plan(
    host: Tensor,
    sizes: IndexSizes,
    tables: dict[Side, Tensor],
    wanted: Wanted,
    device: torch.device,
) -> Plan:
    """Plan a batch.

    Args:
        host: The packed index, on the host.
        sizes: The sizes of the index.
        tables: The packed spellings by direction, from `pack_spellings`.
        wanted: The values of prefix rows that the loss needs.
        device: The device that the tensors are moved to, in one copy.

    Returns:
        The plan.

    Raises:
        ValueError: The length of the index does not follow from its sizes.

    Complexity:
        O((units + steps) × deepest path + entries × log entries) time on the host.
    """
    index = _read_index(host, sizes)
    by_side = {side: _unpack_spellings(table) for side, table in tables.items()}
    planner = _Planner(index, by_side, sizes.n_shared)
    sides: dict[Side, SidePlan[Longs]] = {}
    side_sizes: dict[Side, _Sizes] = {}
    for side in SIDES:
        sides[side], entry_at, side_sizes[side] = _side(planner, side, wanted)
        planner.directions[OTHER[side]].norm_at = entry_at
    n = len(planner.planned)
    multi = np.flatnonzero(planner.is_multi)
    number = planner.multi_of[multi]
    realized_leaf, column = np.full(n, -1), np.full(n, -1)
    for side in SIDES:
        place = planner.places(side, multi, index.realized_leaf[side][number])
        realized_leaf[multi] = np.maximum(realized_leaf[multi], place)
    column[multi] = index.realized_column[number]
    directions = planner.directions
    host_sizes = HostSizes(
        planned=n,
        gradient_rows=side_sizes["student"].gradient_rows,
        leaves=planner.leaves,
        multi=multi,
        measured={side: found.measured for side, found in side_sizes.items()},
        first_entry={
            side: np.searchsorted(plan.unit, np.arange(n + 1)) for side, plan in directions.items()
        },
        entry_leaves={
            side: np.concatenate([[0], np.cumsum(plan.leaves)]) for side, plan in directions.items()
        },
    )
    units = UnitPlan(planner.order, column, realized_leaf)
    mover = _Mover([units, *sides.values(), *directions.values()], device)
    return Plan(
        units=mover.moved(units),
        sides={side: mover.moved(plan) for side, plan in sides.items()},
        directions={side: mover.moved(plan) for side, plan in directions.items()},
        host=host_sizes,
    )


class _Mover:
    """Moves all arrays of several plans to a device in one copy.

    Args:
        plans: The plans.
        device: The device.
    """

    def __init__(
        self,
        plans: list[UnitPlan[Longs] | SidePlan[Longs] | DirectionPlan[Longs]],
        device: torch.device,
    ) -> None:
        arrays = [getattr(plan, field.name) for plan in plans for field in fields(plan)]
        packed = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
        moved = packed.to(device, non_blocking=True)
        pieces = torch.split(moved, [array.size for array in arrays])
        self._tensors = {
            id(array): piece.view(array.shape) for array, piece in zip(arrays, pieces, strict=True)
        }

    @overload
    def moved(self, plan: UnitPlan[Longs]) -> UnitPlan[Tensor]: ...
    @overload
    def moved(self, plan: SidePlan[Longs]) -> SidePlan[Tensor]: ...
    @overload
    def moved(self, plan: DirectionPlan[Longs]) -> DirectionPlan[Tensor]: ...

    def moved(
        self, plan: UnitPlan[Longs] | SidePlan[Longs] | DirectionPlan[Longs]
    ) -> UnitPlan[Tensor] | SidePlan[Tensor] | DirectionPlan[Tensor]:
        """Return one of the plans, with tensors in place of its arrays."""
        tensors = {
            field.name: self._tensors[id(getattr(plan, field.name))] for field in fields(plan)
        }
        return replace(plan, **tensors)  # type: ignore[arg-type, return-value]
