"""Internal: `AlignedIndex`, the rows and ids with which a loss gathers logits."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from simct_align import _native
from simct_align.text_index import TextEventSections
from simct_align.unit_index import UnitSections

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    #: A section: a view of a NumPy array or of a tensor, int64, one-dimensional.
    Longs: TypeAlias = NDArray[np.int64] | torch.Tensor

Side = Literal["teacher", "student"]


class Section(NamedTuple):
    """The description of a section of `AlignedIndex.packed`. All sections are int64.

    The length of a section is a count of the index plus `extra`.

    Attributes:
        name: Name of the section, and of the property of `AlignedIndex` that returns it.
        count: Name of the attribute of `AlignedIndex` with the count.
        extra: The number that is added to the count.
        group: `"units"` (in every index), `"first_ids"`, `"continuations"` or
            `"text_events"`.
    """

    name: str
    count: str  # type: ignore[assignment]  # hides the method of tuples
    extra: int
    group: str


class IndexContents(NamedTuple):
    """The contents of an index in addition to its units: options of `AlignedBatch.index`.

    Attributes:
        first_ids: Whether it has the first token of every unit.
        max_path: The largest number of realized tokens at the start of a continuation; 0 without
            continuations.
        text_events: Whether it has text events.
        threads: Number of threads; None for all cores.
    """

    first_ids: bool
    max_path: int
    text_events: bool
    threads: int | None


#: All sections, in their order in `AlignedIndex.packed`, from the table in the Rust core.
SECTIONS: tuple[Section, ...] = tuple(Section(*entry) for entry in _native.index_sections())

#: The option of `AlignedBatch.index` that adds the sections of a group.
_HOW_TO_MAKE = {
    "first_ids": "first_ids=True",
    "continuations": "max_path=8",
    "text_events": "text_events=True",
}


def section_slices(counts: Mapping[str, int], groups: Collection[str]) -> dict[str, slice]:
    """Return the slices of `AlignedIndex.packed` that hold the sections of an index.

    Args:
        counts: The counts that `SECTIONS` refers to, by name. Counts of absent groups are not
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
class AlignedIndex(UnitSections, TextEventSections):
    """The logit rows and token ids that a loss reads for every unit, in one int64 buffer.

    Logits at position p predict the token at position p + 1. The logit row before the first token
    of a unit is its *prefix row*: it predicts the first token of the unit. A path of k tokens is
    predicted by k consecutive rows, the prefix row first. Row numbers count the logits of the
    whole batch, flattened to `[rows, vocabulary]`.

    `packed` contains all *sections*, one after another. Every section is also a property, which
    is a view and not a copy. `SECTIONS` describes the layout, and `section_slices` computes the
    slices. Sections with one value per unit contain SHARED and SPECIAL units first, then MULTI
    units, each group in the order of the batch. Units without a prefix, and units whose first
    token lost a dummy prefix, are left out and counted.

    The *steps* of a side are the tokens of its MULTI units, unit after unit.

    **Continuations** (`max_path` > 0). There are two directions, one per side, each named after
    the side that has the single token. Take the teacher's direction. An *entry* records that a
    unit reaches a node of `aligner.spellings.teacher`: the path of the node equals the student's
    realized tokens from the first token of the unit on. Every leaf of the node is a one-sided
    teacher token, and its spelling is the path of the node and one more student token. The number
    of tokens of the path is the *depth* of the entry. The realized tokens, and the logit rows that
    predict them, are consecutive in the student's ids and logits; the first of these rows is the
    prefix row of the unit. The leaves are in `aligner.spellings.teacher.leaves`.

    **Duplicates.** A candidate set is a set of texts. If the text of a MULTI unit is also one of
    its continuations, it must count once. `realized_teacher_leaf` is the number of the leaf with
    that text. A unit has such a leaf if two conditions hold. Its text is the text of a one-sided
    teacher token, no matter which tokens either side realized. And the student's realized tokens
    begin with the spelling of that token without its last token, which is at most `max_path`
    tokens long. The leaf then belongs to one of the entries of the unit. The realized student
    tokens can, but need not, equal the whole spelling. `realized_student_leaf` is the same for the
    student's direction. At most one of the two directions has such a leaf. SHARED units have none,
    because their text is a column of the shared vocabulary.

    An index can be pickled. `packed` and `host` stay one array if they were one array. If `packed`
    is a tensor, the unpickled index has two copies.

    Attributes:
        packed: All sections: a NumPy array from `AlignedBatch.index`, a tensor after `to`.
        n_shared: Number of SHARED and SPECIAL units.
        n_multi: Number of MULTI units.
        n_teacher_steps: Teacher tokens in MULTI units.
        n_student_steps: Student tokens in MULTI units.
        student_tokens_shared: Student tokens in SHARED and SPECIAL units.
        dropped_no_prefix: Units left out because they are at position 0 of a row on either side.
        dropped_dummy_prefix: Units left out because their first token lost its dummy prefix.
        max_path: The largest number of realized tokens at the start of a continuation; 0 if the
            index has no continuations.
        n_teacher_entries: Entries of the teacher's direction.
        n_student_entries: Entries of the student's direction.
        n_teacher_leaves: Sum of the numbers of leaves over all entries of the teacher's direction.
        n_student_leaves: Sum of the numbers of leaves over all entries of the student's direction.
        teacher_cut_off: One-sided teacher tokens whose spelling has more than `max_path` + 1
            tokens. They are not among the continuations of any unit.
        student_cut_off: One-sided student tokens whose spelling has more than `max_path` + 1
            tokens.
        n_text_offsets: Offsets of text events; 0 without `text_events=True`, as the next seven.
        n_text_stretches: Stretches.
        n_teacher_text_rows: Text rows of the teacher.
        n_student_text_rows: Text rows of the student.
        n_teacher_sources: Sources of the teacher at all offsets together.
        n_student_sources: Sources of the student at all offsets together.
        text_student_tokens: Student tokens in stretches.
        text_units_without_prefix: Units that are in no stretch because they begin a row.
        text_units_left_out: Units that are in no stretch because a token has no bytes.
        teacher_rows_needed: The smallest number of rows of the teacher's flattened logits that
            contains all rows that the index reads.
        student_rows_needed: The same for the student's logits.
        teacher_stride: Rows of the teacher's logits per row of the batch; 0 if the logits are
            packed, None if the index was built with row starts.
        student_stride: The same for the student's logits.
        host: `packed` as a NumPy array that stays on the host when the index moves. A loss reads
            sizes from it (see `on_host`) without a synchronization with the device.
        groups: The groups of sections that the index has: `"units"`, and `"first_ids"`,
            `"continuations"` and `"text_events"` if it was built with them.
        pair_digest: The `digest` of the aligner that made the batch.
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
        """The number of units in the index: SHARED, SPECIAL and MULTI units."""
        return self.n_shared + self.n_multi

    def sections(self) -> dict[str, slice]:
        """Return the slices of `packed` that hold the sections of this index.

        Returns:
            A slice for every section that the index has, by name, in order.
        """
        counts = {section.count: getattr(self, section.count) for section in SECTIONS}
        return section_slices(counts, self.groups)

    def sizes(self) -> dict[str, int]:
        """Return the sizes of the sections of this index.

        Returns:
            A size for every section that the index has, by name, in order.
        """
        return {name: place.stop - place.start for name, place in self.sections().items()}

    def on_host(self, name: str) -> NDArray[np.int64]:
        """Return a section as a NumPy array on the host, on whatever device `packed` is.

        Args:
            name: Name of the section.

        Returns:
            A view of `host`, int64.

        Raises:
            AttributeError: No section has this name, or this index was built without the section.
            ValueError: The index has no `host`.
        """
        if self.host is None:
            raise ValueError("this index has no copy on the host: build it with batch.index()")
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
                        f"this index has no section {name!r}: build it with "
                        f"batch.index({_HOW_TO_MAKE[section.group]})"
                    )
            raise AttributeError(f"an index has no section {name!r}")
        return found

    @property
    def device(self) -> torch.device:
        """The device of `packed`; the CPU for a NumPy array."""
        import torch

        return self.packed.device if torch.is_tensor(self.packed) else torch.device("cpu")

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> AlignedIndex:
        """Return the index as a tensor on a device, with one transfer.

        Args:
            device: The target device.
            non_blocking: Whether to return before the copy is complete. The copy is asynchronous
                only from pinned memory (see `pin_memory`).

        Returns:
            The index. On the CPU it shares the memory of this index.

        Complexity:
            O(size of `packed`), one transfer.
        """
        return replace(self, packed=self._tensor().to(device, non_blocking=non_blocking))

    def pin_memory(self) -> AlignedIndex:
        """Return the index in page-locked memory, from which copies to a GPU are asynchronous.

        Returns:
            The index, with `packed` as a pinned CPU tensor.
        """
        return replace(self, packed=self._tensor().pin_memory())

    def _tensor(self) -> torch.Tensor:
        import torch

        return self.packed if torch.is_tensor(self.packed) else torch.from_numpy(self.packed)

    def rows_read(self, side: Side) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Return which rows of logits are read on a side, and for which units.

        Args:
            side: `"teacher"` or `"student"`.

        Returns:
            Two or three pairs `(positions of units in this index, rows of the flattened logits)`
            of equal sizes, as NumPy arrays: the prefix rows, the rows of the path steps, and, in an
            index with continuations, the rows that predict the last token of a continuation.

        Raises:
            ValueError: The index has no `host`.
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
        """Raise an error if the shape of the logits does not fit the index.

        Args:
            side: `"teacher"` or `"student"`.
            argument: The name of the argument, for the message.
            shape: Shape of the logits or hidden states: `[tokens, ...]` or
                `[batch, length, ...]`.

        Raises:
            ValueError: The rows have another length than the index was built for, or there are
                fewer rows than the index reads.
        """
        stride, needed = getattr(self, f"{side}_stride"), getattr(self, f"{side}_rows_needed")
        if len(shape) == 3 and shape[0] > 1 and stride is not None and stride != shape[1]:
            expected = f"rows of {stride} positions" if stride else "packed rows"
            raise ValueError(
                f"{argument} has rows of {shape[1]} positions, but the index was built for "
                f"{expected}: build it with batch.index({side}_stride={shape[1]})"
            )
        rows = math.prod(shape[:-1])
        if rows < needed:
            raise ValueError(
                f"{argument} has {rows} rows (shape {tuple(shape)}), but the index reads {needed}"
            )

    def normalizer(self, reduction: str, candidates: str = "realized") -> int:
        """Return the number by which a loss divides the sum of its values.

        It is known before any forward pass, so that micro-batches and ranks can add theirs up.

        Args:
            reduction: `"unit"` or `"mean"` counts units, `"token"` counts the student tokens in
                units, `"sum"` and `"none"` give 1.
            candidates: The candidate set of the loss. `"shared"` counts SHARED and SPECIAL units
                only, `"text"` the student tokens of the stretches of text events.

        Returns:
            The normalizer, at least 0.

        Raises:
            ValueError: `reduction` is unknown, or counts units with `"text"`, or the index has no
                text events.
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
        raise ValueError(
            f"reduction: expected 'unit', 'mean', 'token', 'sum' or 'none', got {reduction!r}"
        )

    def _text_normalizer(self, reduction: str) -> int:
        if reduction != "token":
            raise ValueError(
                f"reduction: text events are counted by offsets, not by units: expected token, sum "
                f"or none, got {reduction!r}"
            )
        if "text_events" not in self.groups:
            raise ValueError("this index has no text events: make it with text_events=True")
        return self.text_student_tokens
