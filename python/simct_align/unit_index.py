"""Internal: the sections of an index that hold units, first tokens and continuations."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simct_align.index import Longs


class UnitSections:
    """The sections of `AlignedIndex` for units and their continuations, as properties.

    `AlignedIndex` explains the words.
    """

    if TYPE_CHECKING:

        def _section(self, name: str) -> Longs: ...

    @property
    def unit(self) -> Longs:
        """The number of every unit within the batch, `[n_units]`."""
        return self._section("unit")

    @property
    def kind(self) -> Longs:
        """The `UnitKind` of every unit, `[n_units]`."""
        return self._section("kind")

    @property
    def student_tokens(self) -> Longs:
        """The number of student tokens of every unit, `[n_units]`."""
        return self._section("student_tokens")

    @property
    def teacher_row(self) -> Longs:
        """The prefix row of every unit in the teacher's flattened logits, `[n_units]`."""
        return self._section("teacher_row")

    @property
    def student_row(self) -> Longs:
        """The prefix row of every unit in the student's flattened logits, `[n_units]`."""
        return self._section("student_row")

    @property
    def teacher_first_id(self) -> Longs:
        """The first teacher token of every unit, `[n_units]`; with `first_ids=True`."""
        return self._section("teacher_first_id")

    @property
    def student_first_id(self) -> Longs:
        """The first student token of every unit, `[n_units]`; with `first_ids=True`."""
        return self._section("student_first_id")

    @property
    def realized_shared_column(self) -> Longs:
        """The shared column with the text of every MULTI unit, −1 if none, `[n_multi]`."""
        return self._section("realized_shared_column")

    @property
    def teacher_offsets(self) -> Longs:
        """The first teacher step of every MULTI unit, then the end, `[n_multi + 1]`."""
        return self._section("teacher_offsets")

    @property
    def student_offsets(self) -> Longs:
        """The first student step of every MULTI unit, then the end, `[n_multi + 1]`."""
        return self._section("student_offsets")

    @property
    def teacher_step_unit(self) -> Longs:
        """The number, among the MULTI units, of every teacher step's unit, `[n_teacher_steps]`."""
        return self._section("teacher_step_unit")

    @property
    def teacher_step_row(self) -> Longs:
        """The row of the teacher's logits that predicts every step, `[n_teacher_steps]`."""
        return self._section("teacher_step_row")

    @property
    def teacher_step_id(self) -> Longs:
        """The teacher token of every step, `[n_teacher_steps]`."""
        return self._section("teacher_step_id")

    @property
    def student_step_unit(self) -> Longs:
        """The number, among the MULTI units, of every student step's unit, `[n_student_steps]`."""
        return self._section("student_step_unit")

    @property
    def student_step_row(self) -> Longs:
        """The row of the student's logits that predicts every step, `[n_student_steps]`."""
        return self._section("student_step_row")

    @property
    def student_step_id(self) -> Longs:
        """The student token of every step, `[n_student_steps]`."""
        return self._section("student_step_id")

    @property
    def teacher_entry_unit(self) -> Longs:
        """The position in this index of every entry's unit, ascending, `[n_teacher_entries]`."""
        return self._section("teacher_entry_unit")

    @property
    def teacher_entry_node(self) -> Longs:
        """The node of every entry; each has leaves, `[n_teacher_entries]`."""
        return self._section("teacher_entry_node")

    @property
    def teacher_entry_depth(self) -> Longs:
        """The depth of every entry, ascending within a unit, `[n_teacher_entries]`."""
        return self._section("teacher_entry_depth")

    @property
    def student_entry_unit(self) -> Longs:
        """The position in this index of every entry's unit, ascending, `[n_student_entries]`."""
        return self._section("student_entry_unit")

    @property
    def student_entry_node(self) -> Longs:
        """The node of every entry; each has leaves, `[n_student_entries]`."""
        return self._section("student_entry_node")

    @property
    def student_entry_depth(self) -> Longs:
        """The depth of every entry, ascending within a unit, `[n_student_entries]`."""
        return self._section("student_entry_depth")

    @property
    def realized_teacher_leaf(self) -> Longs:
        """The teacher leaf with the text of every MULTI unit, −1 if none, `[n_multi]`."""
        return self._section("realized_teacher_leaf")

    @property
    def realized_student_leaf(self) -> Longs:
        """The student leaf with the text of every MULTI unit, −1 if none, `[n_multi]`."""
        return self._section("realized_student_leaf")
