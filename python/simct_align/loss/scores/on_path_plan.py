"""Internal: the parts of a plan for the loss over on-path continuations; `planner` makes plans.

Two kinds of leaves: a *spelled* leaf of a side is a continuation that the side writes as several
tokens, realized ones and a last one. A *single* leaf of a side is a continuation that is one token
of the side. A leaf that is spelled on one side is single on the other side. `R_j` is the path of
the first j realized tokens from a unit on. Only these paths can be the beginning of another
candidate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from simct_align.index import Side

    Longs = NDArray[np.int64]

SIDES: tuple[Side, Side] = ("teacher", "student")
OTHER: dict[Side, Side] = {"teacher": "student", "student": "teacher"}

A = TypeVar("A")
"""The type of a plan's arrays: NumPy arrays during planning, then tensors on the device."""


class SpellingTable(NamedTuple):
    """The spellings of one direction, on the host.

    Attributes:
        node_offsets: `[nodes + 1]` first leaf of every node, and the number of leaves.
        node_parent: `[nodes]` node of the path without its last token.
        node_token: `[nodes]` last token of the node's path.
        leaf_key: `[leaves]` `node << 32 | last token`, ascending.
        leaf_of_token: `[vocabulary]` leaf of every one-sided token, −1 for other tokens.
    """

    node_offsets: Longs
    node_parent: Longs
    node_token: Longs
    leaf_key: Longs
    leaf_of_token: Longs


@dataclass
class DirectionPlan(Generic[A]):
    """Entries of one direction, in the order of the planned units.

    Attributes:
        unit: `[E]` number of the planned unit.
        depth: `[E]` number of realized tokens that lead to the node.
        first_leaf: `[E]` the node's first leaf in the leaf table.
        leaves: `[E]` number of the node's leaves.
        place: `[E]` number of the unit's leaves before those of the node.
        norm_at: `[E]` the row after the realized tokens, as a place in `SidePlan.norm_row` of the
            side that spells.
    """

    unit: A
    depth: A
    first_leaf: A
    leaves: A
    place: A
    norm_at: A


@dataclass
class SidePlan(Generic[A]):
    """One side of the `n` planned units; `d` is the number of tokens of the longest `R_j` needed.

    Attributes:
        row: `[n]` prefix rows.
        first_id: `[n]` token of `R_1`, 0 where it is not known and not needed.
        length: `[n]` number of tokens of the realized path, 0 at units that are not MULTI.
        same: `[n]` 1 where the realized text is a continuation with the same path, else 0.
        node: `[n, d]` place of `R_j` among the unit's leaves, −1 where `R_j` is not a continuation.
        step_at: `[n, d]` row of the j-th token as a place in `norm_row`, or −1; the first column is
            not used.
        prefix_at: `[n]` prefix row as a place in `norm_row`, or −1.
        rest_unit: `[r]` planned unit of every later step of the realized paths.
        rest_at: `[r]` row of every later step as a place in `norm_row`.
        norm_row: `[m]` rows whose log-normalizer is needed; rows with a gradient come first.
        norm_next: `[m]` realized token that the row predicts, 0 where it is not needed.
    """

    row: A
    first_id: A
    length: A
    same: A
    node: A
    step_at: A
    prefix_at: A
    rest_unit: A
    rest_at: A
    norm_row: A
    norm_next: A


@dataclass
class UnitPlan(Generic[A]):
    """The planned units, independently of a side.

    Attributes:
        order: `[units]` numbers of the units: first the units without a plan, then the planned
            units by descending student row.
        realized_column: `[n]` shared column of the realized text, or −1.
        realized_leaf: `[n]` place of the realized text among the unit's leaves, or −1.
    """

    order: A
    realized_column: A
    realized_leaf: A


@dataclass(frozen=True)
class Plan:
    """The plan of a batch: tensors on the device, and sizes on the host.

    Attributes:
        units: The planned units.
        sides: The sides by their names.
        directions: The directions by the name of the side whose leaves are single tokens.
        host: The sizes for cutting the work into chunks.
    """

    units: UnitPlan[Tensor]
    sides: dict[Side, SidePlan[Tensor]]
    directions: dict[Side, DirectionPlan[Tensor]]
    host: HostSizes


@dataclass(frozen=True)
class HostSizes:
    """Sizes on the host.

    Attributes:
        planned: The number of planned units.
        gradient_rows: The number of rows in the student's `norm_row` with a gradient.
        leaves: `[n]` number of leaves of each planned unit.
        multi: `[M]` numbers of the planned units that are MULTI, ascending.
        measured: For each side, the places in `norm_row` of the prefix rows where the mass on the
            shared tokens is wanted.
        first_entry: For each direction, `[n + 1]` number of entries before each planned unit.
        entry_leaves: For each direction, `[E + 1]` number of leaves before each entry.
    """

    planned: int
    gradient_rows: int
    leaves: Longs
    multi: Longs
    measured: dict[Side, slice]
    first_entry: dict[Side, Longs]
    entry_leaves: dict[Side, Longs]


@dataclass(frozen=True)
class Wanted:
    """The values of prefix rows that a loss needs.

    Attributes:
        measured: For each side, the planned units where the mass on the shared tokens is wanted:
            `"all"`, `"multi"` or `"none"`.
        log_norm: Whether the log-normalizers of all prefix rows are wanted, with the gradient by
            the student's.
    """

    measured: dict[Side, str]
    log_norm: bool
