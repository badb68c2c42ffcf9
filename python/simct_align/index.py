"""The tensors that a loss gathers with."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

Side = Literal["teacher", "student"]


@dataclass(frozen=True)
class AlignedIndex:
    """Flat logit rows and token ids of every unit, in one int64 buffer.

    Logits at position p predict the token at p + 1, so a unit is scored by the logit row before
    its first token (its *prefix row*), and a path of k tokens by k consecutive rows from there
    on. Rows number the logits of the whole batch, flattened to ``[rows, vocabulary]``.

    With N units, M of them MULTI, and P steps on a side, ``packed`` holds these sections, which
    are also attributes (views, no copies):

    ======================== ===== ==========================================================
    section                  size  content
    ======================== ===== ==========================================================
    ``unit``                 N     number of the unit in the batch
    ``kind``                 N     :class:`~simct_align.UnitKind`
    ``student_tokens``       N     how many student tokens it has
    ``teacher_row``          N     flat logit row of its prefix in the teacher's logits
    ``student_row``          N     likewise in the student's
    ``realized_shared_column`` M   the column of the shared vocabulary whose text it spells, or −1
    ``teacher_offsets``      M + 1 steps of MULTI unit i: ``offsets[i]:offsets[i + 1]``
    ``student_offsets``      M + 1 likewise
    ``teacher_step_unit``    P     number of the step's unit among the MULTI units
    ``teacher_step_row``     P     flat logit row that predicts the step's token
    ``teacher_step_id``      P     the token
    ``student_step_unit``    P     likewise for the student
    ``student_step_row``     P
    ``student_step_id``      P
    ======================== ===== ==========================================================

    SHARED and SPECIAL units come first, then MULTI units, each in the order of the batch. Left
    out, and counted, are units without a prefix and units whose first token lost a dummy prefix.

    With continuations (``max_path`` > 0) more sections follow. An *entry* says that a unit reaches
    a node of the spellings of one direction: in the teacher's, every leaf of the node is a text
    that is a single teacher token, and that the student spells by ``depth`` realized tokens, from
    the unit's first on, and one token more. Rows and ids of the realized part are consecutive in
    the student's logits and ids, from the unit's prefix row on. The leaves themselves lie in
    ``aligner.spellings.teacher.leaves``. With E entries in a direction, which is named after the
    side of the single token:

    ============================== ===== ====================================================
    section                        size  content
    ============================== ===== ====================================================
    ``teacher_entry_unit``         E     place of the unit in this index, 0 to N − 1, ascending
    ``teacher_entry_node``         E     the node; only nodes with leaves are listed
    ``teacher_entry_depth``        E     1 to ``max_path``, ascending within a unit
    ``teacher_leaf_offsets``       E + 1 leaves of entry i, numbered through all entries
    ``student_entry_unit``         E     likewise for single student tokens, spelled by the
    ``student_entry_node``         E     teacher
    ``student_entry_depth``        E
    ``student_leaf_offsets``       E + 1
    ``realized_teacher_leaf``      M     number of a leaf in ``leaves``, or −1; see below
    ``realized_student_leaf``      M     likewise
    ============================== ===== ====================================================

    A candidate set is a set of texts, so where a MULTI unit's own text is also one of its
    continuations, it must count once. ``realized_teacher_leaf`` is the number of that leaf: the
    unit's text is the text of a one-sided teacher token, whichever tokens either side realized it
    with, and the student's realized path begins with that token's spelling but for its last token
    (of ``max_path`` tokens at most). The leaf then belongs to one of the unit's entries. Where the
    realized student path *is* the spelling, both are the same path as well. At most one of the
    two directions has such a leaf, and SHARED units have none: their text is a shared column.

    Attributes:
        packed: All sections: a NumPy array from :meth:`AlignedBatch.index`, a tensor after
            :meth:`to`.
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
        teacher_cut_off: The teacher's one-sided tokens whose spelling is longer than ``max_path``
            tokens and a last one, and which are no continuation anywhere.
        student_cut_off: The student's, likewise.
        teacher_rows_needed: Rows of the teacher's logits, so that all that the index reads are
            there.
        student_rows_needed: Likewise for the student.
        teacher_stride: Rows of the teacher's logits for each row of the batch; 0 where they are
            packed, None where the caller said where each row begins.
        student_stride: Likewise for the student.
        host: ``packed`` as a NumPy array, which stays on the host when the index moves: whoever
            cuts leaves into chunks looks sizes up here (see :meth:`on_host`), without waiting for
            a device.
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
    teacher_rows_needed: int = 0
    student_rows_needed: int = 0
    teacher_stride: int | None = None
    student_stride: int | None = None
    host: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return self.n_shared + self.n_multi

    def sizes(self) -> dict[str, int]:
        """The sections of ``packed`` and their sizes, in order."""
        units, multi = len(self), self.n_multi
        per_unit = ("unit", "kind", "student_tokens", "teacher_row", "student_row")
        sizes = dict.fromkeys(per_unit, units)
        sizes["realized_shared_column"] = multi
        sizes |= dict.fromkeys(("teacher_offsets", "student_offsets"), multi + 1)
        for side, steps in (("teacher", self.n_teacher_steps), ("student", self.n_student_steps)):
            sizes |= dict.fromkeys((f"{side}_step_{what}" for what in ("unit", "row", "id")), steps)
        if self.max_path:
            for side, entries in (
                ("teacher", self.n_teacher_entries),
                ("student", self.n_student_entries),
            ):
                names = (f"{side}_entry_{what}" for what in ("unit", "node", "depth"))
                sizes |= dict.fromkeys(names, entries)
                sizes[f"{side}_leaf_offsets"] = entries + 1
            sizes |= dict.fromkeys(("realized_teacher_leaf", "realized_student_leaf"), multi)
        return sizes

    def on_host(self, name: str) -> NDArray[np.int64]:
        """A section as a NumPy array on the host, wherever ``packed`` is.

        Args:
            name: The section's name.

        Raises:
            AttributeError: There is no such section.
        """
        section: NDArray[np.int64] = getattr(replace(self, packed=self.host), name)
        return section

    def __getattr__(self, name: str) -> Any:
        sizes = self.sizes() if not name.startswith("_") else {}
        if name not in sizes:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        ends = dict(zip(sizes, accumulate(sizes.values()), strict=True))
        return self.packed[ends[name] - sizes[name] : ends[name]]

    @property
    def device(self) -> torch.device:
        """The device of ``packed``; the CPU for a NumPy array."""
        import torch

        return self.packed.device if torch.is_tensor(self.packed) else torch.device("cpu")

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> AlignedIndex:
        """The index as a tensor on a device, in one transfer.

        Args:
            device: Where to.
            non_blocking: Do not wait for the copy; it is asynchronous from pinned memory (see
                :meth:`pin_memory`).

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
            side: ``"teacher"`` or ``"student"``.

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
        if self.max_path:
            spelled = "student" if side == "teacher" else "teacher"
            units = self.on_host(f"{spelled}_entry_unit")
            read.append((units, prefix[units] + self.on_host(f"{spelled}_entry_depth")))
        return read

    def check_logits(self, side: Side, argument: str, shape: Sequence[int]) -> None:
        """Refuse logits that the index was not made for, as far as their shape says so.

        Args:
            side: ``"teacher"`` or ``"student"``.
            argument: The name of the argument, for the message.
            shape: ``[tokens, ...]`` or ``[batch, length, ...]``, logits or hidden states.

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
            reduction: ``"unit"`` (units), ``"token"`` (student tokens in them), ``"sum"`` or
                ``"none"`` (1).
            candidates: The loss's candidate set; ``"shared"`` uses SHARED and SPECIAL units only.

        Returns:
            The normalizer, at least 0.

        Raises:
            ValueError: An unknown reduction.
        """
        multi = candidates != "shared"
        if reduction == "unit":
            return self.n_shared + (self.n_multi if multi else 0)
        if reduction == "token":
            return self.student_tokens_shared + (self.n_student_steps if multi else 0)
        if reduction in ("sum", "none"):
            return 1
        raise ValueError(f"reduction: expected unit, token, sum or none, got {reduction!r}")
