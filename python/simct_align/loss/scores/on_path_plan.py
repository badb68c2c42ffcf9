"""What the loss over on-path continuations has to do: the parts of a plan, which `planner` makes.

Words: a *spelled* leaf of a side is a continuation that this side writes as a path of realized
tokens and a last one; a *single* leaf is one of its own tokens. A leaf that is spelled on one side
is single on the other. `R_j` is the path of the first j realized tokens from a unit on: only such
paths can have continuations, so only they can be the beginning of another candidate.
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
"""An array of a plan: on the host while it is made, a tensor on the device in the end."""


class SpellingTable(NamedTuple):
    """The continuations of one direction, on the host.

    Attributes:
        node_offsets: `[nodes + 1]` where the leaves of every node begin.
        node_parent: `[nodes]` the node before it.
        node_token: `[nodes]` its last token.
        leaf_key: `[leaves]` `node << 32 | last token`, ascending.
        leaf_of_token: `[vocabulary]` the leaf of every one-sided token, or −1.
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
        depth: `[E]` realized tokens that lead to the node.
        first_leaf: `[E]` the node's first leaf in the leaf table.
        leaves: `[E]` how many leaves it has.
        place: `[E]` how many leaves of the unit come before.
        norm_at: `[E]` the row behind the realized tokens, as a place in `SidePlan.norm_row` of
            the side that spells.
    """

    unit: A
    depth: A
    first_leaf: A
    leaves: A
    place: A
    norm_at: A


@dataclass
class SidePlan(Generic[A]):
    """One side of the planned units, `n` of them; `d` is the deepest `R_j` that matters.

    Attributes:
        row: `[n]` prefix rows.
        first_id: `[n]` the token of `R_1`, 0 where it is not known and not needed.
        length: `[n]` tokens of the realized path, 0 at units that are not MULTI.
        same: `[n]` 1 where the realized text is a continuation by the very same path.
        node: `[n, d]` where `R_j` is a continuation: its place among the unit's leaves, or −1.
        step_at: `[n, d]` the row of its j-th token as a place in `norm_row`, or −1; the first
            column is not used.
        prefix_at: `[n]` the prefix row as a place in `norm_row`, or −1.
        rest_unit: `[r]` units of the tokens of realized paths after the first.
        rest_at: `[r]` their rows as places in `norm_row`.
        norm_row: `[m]` rows whose log-normalizer is needed, those that get a gradient first.
        norm_next: `[m]` the realized token that the row predicts, 0 where it is not needed.
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
    """What the planned units are on both sides together.

    Attributes:
        order: `[units]` numbers of the units: first those that need no plan, then the planned
            ones by descending student row.
        realized_column: `[n]` shared column of the realized text, or −1.
        realized_leaf: `[n]` its place among the unit's leaves, or −1.
    """

    order: A
    realized_column: A
    realized_leaf: A


@dataclass(frozen=True)
class Plan:
    """A planned batch: tensors on the device, and the sizes that cut the work on the host.

    Attributes:
        units: The units.
        sides: By the side's name.
        directions: By the name of the side with the single tokens.
        host: Sizes that cut the work into chunks.
    """

    units: UnitPlan[Tensor]
    sides: dict[Side, SidePlan[Tensor]]
    directions: dict[Side, DirectionPlan[Tensor]]
    host: HostSizes


@dataclass(frozen=True)
class HostSizes:
    """Sizes on the host.

    Attributes:
        planned: Planned units.
        gradient_rows: Rows of the student's `norm_row` that get a gradient.
        leaves: `[n]` leaves of each planned unit.
        multi: `[M]` planned units that are MULTI, ascending.
        measured: Per side, places in `norm_row` of the prefix rows where the shared tokens'
            probability is wanted.
        first_entry: `[n + 1]` per direction: entries before each planned unit.
        entry_leaves: `[E + 1]` per direction: leaves before each entry.
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
    """What is wanted of prefix rows.

    Attributes:
        measured: by side, of which planned units the shared tokens' probability: `"all"`,
            `"multi"` or `"none"`.
        log_norm: whether all units need their log-normalizer, and the student's its gradient.
    """

    measured: dict[Side, str]
    log_norm: bool
