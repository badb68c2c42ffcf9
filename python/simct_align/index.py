"""The tensors that a loss gathers with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from simct_align import _native
from simct_align.text_index import TextEventSections

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    #: A section: a view of a NumPy array or of a tensor, int64, one-dimensional.
    Longs: TypeAlias = NDArray[np.int64] | torch.Tensor

Side = Literal["teacher", "student"]


class Section(NamedTuple):
    """A section of `AlignedIndex.packed`; all are int64.

    Attributes:
        name: Its name, which is also the name of a property of `AlignedIndex`.
        count: The attribute of `AlignedIndex` that its length follows from.
        extra: What comes on top of the count.
        group: `"units"` (in every index), `"first_ids"`, `"continuations"` or `"text_events"`.
    """

    name: str
    count: str  # type: ignore[assignment]  # hides the method of tuples
    extra: int
    group: str


class IndexContents(NamedTuple):
    """What an index holds besides its units, as `AlignedBatch.index` is asked for it.

    Attributes:
        first_ids: Whether it has the first token of every unit.
        max_path: How many realized tokens a continuation may begin with; 0: it has none.
        text_events: Whether it has text events.
        threads: How many threads work; None for all cores.
    """

    first_ids: bool
    max_path: int
    text_events: bool
    threads: int | None


#: All sections, in the order in which they lie in `AlignedIndex.packed`: the engine's own table.
SECTIONS: tuple[Section, ...] = tuple(Section(*entry) for entry in _native.index_sections())

#: How to make an index with the sections of a group.
_HOW_TO_MAKE = {
    "first_ids": "first_ids=True",
    "continuations": "max_path=8",
    "text_events": "text_events=True",
}


def section_slices(counts: Mapping[str, int], groups: Collection[str]) -> dict[str, slice]:
    """Where the sections of an index lie in `packed`.

    Args:
        counts: The counts that `SECTIONS` names, by name; those of absent groups are not
            needed.
        groups: The groups of sections that the index has.

    Returns:
        A slice for every section that the index has, by name, in order.

    Example:
        >>> counts = dict.fromkeys(("n_units", "n_multi", "n_teacher_steps", "n_student_steps"), 3)
        >>> section_slices(counts, ["units"])["kind"]
        slice(3, 6, None)
    """
    slices, end = {}, 0
    for section in SECTIONS:
        if section.group in groups:
            start = end
            end += counts[section.count] + section.extra
            slices[section.name] = slice(start, end)
    return slices


@dataclass(frozen=True)
class AlignedIndex(TextEventSections):
    """Flat logit rows and token ids of every unit, in one int64 buffer.

    Logits at position p predict the token at p + 1, so a unit is scored by the logit row before
    its first token (its *prefix row*), and a path of k tokens by k consecutive rows from there
    on. Rows number the logits of the whole batch, flattened to `[rows, vocabulary]`.

    `packed` holds *sections*, one after another, which are also properties (views, no copies).
    `SECTIONS` is their layout, and `section_slices` finds them by name. Per-unit
    sections hold SHARED and SPECIAL units first, then MULTI units, each in the order of the batch.
    Left out, and counted, are units without a prefix and units whose first token lost a dummy
    prefix.

    The *steps* of a side are the tokens of its MULTI units, unit after unit.

    With continuations (`max_path` > 0), an *entry* says that a unit reaches a node of the
    spellings of one direction: in the teacher's, every leaf of the node is a text that is a single
    teacher token, and that the student spells by as many realized tokens as the node is deep, from
    the unit's first on, and one token more. Rows and ids of the realized part are consecutive in
    the student's logits and ids, from the unit's prefix row on. The leaves themselves lie in
    `aligner.spellings.teacher.leaves`. A direction is named after the side of the single token.

    A candidate set is a set of texts, so where a MULTI unit's own text is also one of its
    continuations, it must count once. `realized_teacher_leaf` is the number of that leaf: the
    unit's text is the text of a one-sided teacher token, whichever tokens either side realized it
    with, and the student's realized path begins with that token's spelling but for its last token
    (of `max_path` tokens at most). The leaf then belongs to one of the unit's entries. Where the
    realized student path *is* the spelling, both are the same path as well. At most one of the
    two directions has such a leaf, and SHARED units have none: their text is a shared column.

    An index pickles. `packed` and `host` are one array again if they were one array before;
    a tensor and `host` become two copies.

    Attributes:
        packed: All sections: a NumPy array from `index`, a tensor after
            `to`.
        n_shared: SHARED and SPECIAL units.
        n_multi: MULTI units.
        n_teacher_steps: Teacher tokens in MULTI units.
        n_student_steps: Student tokens in MULTI units.
        student_tokens_shared: Student tokens in SHARED and SPECIAL units.
        dropped_no_prefix: Units at position 0 of a row on either side.
        dropped_dummy_prefix: Units whose first token lost its dummy prefix.
        max_path: How many realized tokens a continuation may begin with; 0: none are held.
        n_teacher_entries: Entries of the teacher's direction.
        n_student_entries: Entries of the student's direction.
        n_teacher_leaves: Leaves of all entries of the teacher's direction together.
        n_student_leaves: Leaves of all entries of the student's direction together.
        teacher_cut_off: The teacher's one-sided tokens whose spelling is longer than `max_path`
            tokens and a last one, and which are no continuation anywhere.
        student_cut_off: The student's, likewise.
        n_text_offsets: Offsets of text events; 0 without `text_events=True`, as all that follow.
        n_text_stretches: Stretches.
        n_teacher_text_rows: Text rows of the teacher.
        n_student_text_rows: Text rows of the student.
        n_teacher_sources: Sources of the teacher at all offsets together.
        n_student_sources: Sources of the student, likewise.
        text_student_tokens: Student tokens in stretches.
        text_units_without_prefix: Units that are in no stretch because they begin a row.
        text_units_left_out: Units that are in no stretch because a token lost its dummy prefix, or
            has no bytes.
        teacher_rows_needed: Rows of the teacher's logits, so that all that the index reads are
            there.
        student_rows_needed: Likewise for the student.
        teacher_stride: Rows of the teacher's logits for each row of the batch; 0 where they are
            packed, None where the caller said where each row begins.
        student_stride: Likewise for the student.
        host: `packed` as a NumPy array, which stays on the host when the index moves: whoever
            cuts leaves into chunks looks sizes up here (see `on_host`), without waiting for
            a device.
        groups: The groups of sections that the index has: `"units"`, and `"first_ids"`,
            `"continuations"` and `"text_events"` if it was made with them.
        pair_digest: `digest` of the aligner that made the batch.
    """

    packed: Any
    n_shared: int
    n_multi: int
    n_teacher_steps: int
    n_student_steps: int
    student_tokens_shared: int
    dropped_no_prefix: int
    dropped_dummy_prefix: int
    max_path: int = 0
    n_teacher_entries: int = 0
    n_student_entries: int = 0
    n_teacher_leaves: int = 0
    n_student_leaves: int = 0
    teacher_cut_off: int = 0
    student_cut_off: int = 0
    n_text_offsets: int = 0
    n_text_stretches: int = 0
    n_teacher_text_rows: int = 0
    n_student_text_rows: int = 0
    n_teacher_sources: int = 0
    n_student_sources: int = 0
    text_student_tokens: int = 0
    text_units_without_prefix: int = 0
    text_units_left_out: int = 0
    teacher_rows_needed: int = 0
    student_rows_needed: int = 0
    teacher_stride: int | None = None
    student_stride: int | None = None
    host: NDArray[np.int64] | None = None
    groups: tuple[str, ...] = ("units",)
    pair_digest: str = ""

    def __len__(self) -> int:
        return self.n_units

    @property
    def n_units(self) -> int:
        """Units that the index holds: SHARED, SPECIAL and MULTI ones."""
        return self.n_shared + self.n_multi

    def sections(self) -> dict[str, slice]:
        """Where the sections that this index has lie in `packed`, by name, in order."""
        counts = {section.count: getattr(self, section.count) for section in SECTIONS}
        return section_slices(counts, self.groups)

    def sizes(self) -> dict[str, int]:
        """The sections of `packed` and their sizes, in order."""
        return {name: place.stop - place.start for name, place in self.sections().items()}

    def on_host(self, name: str) -> NDArray[np.int64]:
        """A section as a NumPy array on the host, wherever `packed` is.

        Args:
            name: The section's name.

        Raises:
            AttributeError: There is no such section, or not in this index.
            ValueError: The index was made without `host`.
        """
        if self.host is None:
            raise ValueError("this index has no copy on the host: make it with batch.index()")
        return self.host[self._slice(name)]

    def _section(self, name: str) -> Longs:
        section: Longs = self.packed[self._slice(name)]
        return section

    def _slice(self, name: str) -> slice:
        found = self.sections().get(name)
        if found is None:
            for section in SECTIONS:
                if section.name == name:
                    raise AttributeError(
                        f"this index has no section {name!r}: make it with "
                        f"batch.index({_HOW_TO_MAKE[section.group]})"
                    )
            raise AttributeError(f"an index has no section {name!r}")
        return found

    @property
    def unit(self) -> Longs:
        """Numbers of the units in the batch, `[n_units]`."""
        return self._section("unit")

    @property
    def kind(self) -> Longs:
        """`UnitKind` of the units, `[n_units]`."""
        return self._section("kind")

    @property
    def student_tokens(self) -> Longs:
        """How many student tokens the units have, `[n_units]`."""
        return self._section("student_tokens")

    @property
    def teacher_row(self) -> Longs:
        """Flat rows of the units' prefixes in the teacher's logits, `[n_units]`."""
        return self._section("teacher_row")

    @property
    def student_row(self) -> Longs:
        """Flat rows of the units' prefixes in the student's logits, `[n_units]`."""
        return self._section("student_row")

    @property
    def teacher_first_id(self) -> Longs:
        """The teacher's first token of the units, `[n_units]`; with `first_ids=True`."""
        return self._section("teacher_first_id")

    @property
    def student_first_id(self) -> Longs:
        """The student's first token of the units, `[n_units]`; with `first_ids=True`."""
        return self._section("student_first_id")

    @property
    def realized_shared_column(self) -> Longs:
        """Shared columns of the MULTI units' texts, −1 without one, `[n_multi]`."""
        return self._section("realized_shared_column")

    @property
    def teacher_offsets(self) -> Longs:
        """Where the teacher's steps of the MULTI units begin, `[n_multi + 1]`."""
        return self._section("teacher_offsets")

    @property
    def student_offsets(self) -> Longs:
        """Where the student's steps of the MULTI units begin, `[n_multi + 1]`."""
        return self._section("student_offsets")

    @property
    def teacher_step_unit(self) -> Longs:
        """The steps' units, numbered among the MULTI units, `[n_teacher_steps]`."""
        return self._section("teacher_step_unit")

    @property
    def teacher_step_row(self) -> Longs:
        """Flat rows of the teacher's logits that predict the steps, `[n_teacher_steps]`."""
        return self._section("teacher_step_row")

    @property
    def teacher_step_id(self) -> Longs:
        """The steps' tokens, `[n_teacher_steps]`."""
        return self._section("teacher_step_id")

    @property
    def student_step_unit(self) -> Longs:
        """The steps' units, numbered among the MULTI units, `[n_student_steps]`."""
        return self._section("student_step_unit")

    @property
    def student_step_row(self) -> Longs:
        """Flat rows of the student's logits that predict the steps, `[n_student_steps]`."""
        return self._section("student_step_row")

    @property
    def student_step_id(self) -> Longs:
        """The steps' tokens, `[n_student_steps]`."""
        return self._section("student_step_id")

    @property
    def teacher_entry_unit(self) -> Longs:
        """Places of the entries' units in this index, ascending, `[n_teacher_entries]`."""
        return self._section("teacher_entry_unit")

    @property
    def teacher_entry_node(self) -> Longs:
        """The nodes, which have leaves, `[n_teacher_entries]`."""
        return self._section("teacher_entry_node")

    @property
    def teacher_entry_depth(self) -> Longs:
        """Lengths of the nodes' paths, ascending in a unit, `[n_teacher_entries]`."""
        return self._section("teacher_entry_depth")

    @property
    def student_entry_unit(self) -> Longs:
        """Places of the entries' units in this index, ascending, `[n_student_entries]`."""
        return self._section("student_entry_unit")

    @property
    def student_entry_node(self) -> Longs:
        """The nodes, which have leaves, `[n_student_entries]`."""
        return self._section("student_entry_node")

    @property
    def student_entry_depth(self) -> Longs:
        """Lengths of the nodes' paths, ascending in a unit, `[n_student_entries]`."""
        return self._section("student_entry_depth")

    @property
    def realized_teacher_leaf(self) -> Longs:
        """The teacher's leaf of the MULTI units' texts, −1 without one, `[n_multi]`."""
        return self._section("realized_teacher_leaf")

    @property
    def realized_student_leaf(self) -> Longs:
        """The student's leaf of the MULTI units' texts, −1 without one, `[n_multi]`."""
        return self._section("realized_student_leaf")

    @property
    def device(self) -> torch.device:
        """The device of `packed`; the CPU for a NumPy array."""
        import torch

        return self.packed.device if torch.is_tensor(self.packed) else torch.device("cpu")

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> AlignedIndex:
        """The index as a tensor on a device, in one transfer.

        Args:
            device: Where to.
            non_blocking: Do not wait for the copy; it is asynchronous from pinned memory (see
                `pin_memory`).

        Returns:
            The index; on the CPU it shares the memory of this one.
        """
        return replace(self, packed=self._tensor().to(device, non_blocking=non_blocking))

    def pin_memory(self) -> AlignedIndex:
        """The index in page-locked memory, from which copies to a GPU are asynchronous."""
        return replace(self, packed=self._tensor().pin_memory())

    def _tensor(self) -> torch.Tensor:
        import torch

        return self.packed if torch.is_tensor(self.packed) else torch.from_numpy(self.packed)

    def rows_read(self, side: Side) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """The flat rows of logits that are read on a side, and for which units; on the host.

        Args:
            side: `"teacher"` or `"student"`.

        Returns:
            Pairs of numbers of units and rows of logits, of equal sizes: prefix rows, path steps,
            and rows behind the tokens that lead to a continuation's last.
        """
        prefix = self.on_host(f"{side}_row")
        read = [
            (np.arange(len(self)), prefix),
            (
                self.n_shared + self.on_host(f"{side}_step_unit"),
                self.on_host(f"{side}_step_row"),
            ),
        ]
        if "continuations" in self.groups:
            spelled = "student" if side == "teacher" else "teacher"
            units = self.on_host(f"{spelled}_entry_unit")
            read.append((units, prefix[units] + self.on_host(f"{spelled}_entry_depth")))
        return read

    def check_logits(self, side: Side, argument: str, shape: Sequence[int]) -> None:
        """Refuse logits that the index was not made for, as far as their shape says so.

        Args:
            side: `"teacher"` or `"student"`.
            argument: The name of the argument, for the message.
            shape: `[tokens, ...]` or `[batch, length, ...]`, logits or hidden states.

        Raises:
            ValueError: Rows of another length, or fewer rows than the index reads.
        """
        stride, needed = getattr(self, f"{side}_stride"), getattr(self, f"{side}_rows_needed")
        if len(shape) == 3 and shape[0] > 1 and stride is not None and stride != shape[1]:
            expected = f"rows of {stride} positions" if stride else "packed rows"
            raise ValueError(
                f"{argument} has rows of {shape[1]} positions, but the index was made for "
                f"{expected}: make it with batch.index({side}_stride={shape[1]})"
            )
        rows = math.prod(shape[:-1])
        if rows < needed:
            raise ValueError(
                f"{argument} has {rows} rows ({tuple(shape)}), but the index reads {needed} of them"
            )

    def normalizer(self, reduction: str, candidates: str = "realized") -> int:
        """What a loss divides by: known before any forward pass, so that ranks can add it up.

        Args:
            reduction: `"unit"` or `"mean"` (units), `"token"` (student tokens in them),
                `"sum"` or `"none"` (1).
            candidates: The loss's candidate set; `"shared"` uses SHARED and SPECIAL units only,
                `"text"` the student tokens of the stretches, which are not counted by unit.

        Returns:
            The normalizer, at least 0.

        Raises:
            ValueError: An unknown reduction; `"unit"` or `"mean"` with `"text"`, or `"text"` for an
                index without text events.
        """
        if candidates == "text" and reduction in ("unit", "mean", "token"):
            return self._text_normalizer(reduction)
        multi = candidates != "shared"
        if reduction in ("unit", "mean"):
            return self.n_shared + (self.n_multi if multi else 0)
        if reduction == "token":
            return self.student_tokens_shared + (self.n_student_steps if multi else 0)
        if reduction in ("sum", "none"):
            return 1
        raise ValueError(f"reduction: expected unit, mean, token, sum or none, got {reduction!r}")

    def _text_normalizer(self, reduction: str) -> int:
        if reduction != "token":
            raise ValueError(
                f"reduction: text events are counted by offsets, not by units: expected token, sum "
                f"or none, got {reduction!r}"
            )
        if "text_events" not in self.groups:
            raise ValueError("this index has no text events: make it with text_events=True")
        return self.text_student_tokens
