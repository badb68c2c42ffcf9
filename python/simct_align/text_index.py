"""Internal: the sections of an index that hold text events."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simct_align.index import Longs


class TextEventSections:
    """The sections of `AlignedIndex` that `batch.index(text_events=True)` adds, as properties.

    A *stretch* is a run of SHARED and MULTI units without a gap or an unmatched span, from a unit
    on that has a prefix row on both sides. A side's *text rows* in it are the row of the prefix and
    the rows after each of the side's tokens; the row after the last token only where a token that
    takes part follows on both sides. *Offsets* are the places in the text, in bytes, at which a
    text row of either side stands.

    A side whose tokenizer put a space before the text, its dummy prefix, has its first text row at
    that space, one byte before the first offset. The space may be a token of its own.

    At an offset a side's *sources* are the earlier text rows of the stretch, at most `MAX_REACH`
    (64) bytes back, that have tokens which begin with the text since: `source_start` to
    `source_end` in the token order of `Aligner.text_tree`. The first `source_exact` of them end at
    the offset; the rests of the others are in `suffixes` from `source_suffix` on. The own row of a
    side is no source.

    Where both sides have a row and take the same token after it, and both have tokens of the very
    same strings that begin with that token (`same` of the tree), a new stretch begins after the
    token: earlier rows are no longer sources.
    """

    if TYPE_CHECKING:

        def _section(self, name: str) -> Longs: ...

    @property
    def teacher_text_row(self) -> Longs:
        """Flat rows of the teacher's logits that the text rows are, `[n_teacher_text_rows]`."""
        return self._section("teacher_text_row")

    @property
    def teacher_text_id(self) -> Longs:
        """The teacher's tokens that the text takes after the text rows, −1 for a last row.

        `[n_teacher_text_rows]`
        """
        return self._section("teacher_text_id")

    @property
    def student_text_row(self) -> Longs:
        """Flat rows of the student's logits that the text rows are, `[n_student_text_rows]`."""
        return self._section("student_text_row")

    @property
    def student_text_id(self) -> Longs:
        """The student's tokens that the text takes after the text rows, −1 for a last row.

        `[n_student_text_rows]`
        """
        return self._section("student_text_id")

    @property
    def teacher_own_text_row(self) -> Longs:
        """The teacher's text rows that stand at the offsets, −1 without one, `[n_text_offsets]`."""
        return self._section("teacher_own_text_row")

    @property
    def student_own_text_row(self) -> Longs:
        """The student's text rows that stand at the offsets, −1 without one, `[n_text_offsets]`."""
        return self._section("student_own_text_row")

    @property
    def text_offset_stretch(self) -> Longs:
        """The stretches of the offsets, ascending, `[n_text_offsets]`."""
        return self._section("text_offset_stretch")

    @property
    def text_offset_batch_row(self) -> Longs:
        """The rows of the batch that the offsets lie in, `[n_text_offsets]`."""
        return self._section("text_offset_batch_row")

    @property
    def teacher_source_offsets(self) -> Longs:
        """Where the teacher's sources of the offsets begin, `[n_text_offsets + 1]`."""
        return self._section("teacher_source_offsets")

    @property
    def teacher_source_row(self) -> Longs:
        """The text rows that the teacher's sources are, ascending at an offset.

        `[n_teacher_sources]`
        """
        return self._section("teacher_source_row")

    @property
    def teacher_source_start(self) -> Longs:
        """Where the teacher's tokens that begin with the text begin in token order.

        `[n_teacher_sources]`
        """
        return self._section("teacher_source_start")

    @property
    def teacher_source_end(self) -> Longs:
        """Where these tokens end, one past the last, `[n_teacher_sources]`."""
        return self._section("teacher_source_end")

    @property
    def teacher_source_length(self) -> Longs:
        """How many bytes of text there are since the teacher's sources, `[n_teacher_sources]`."""
        return self._section("teacher_source_length")

    @property
    def teacher_source_exact(self) -> Longs:
        """How many of these tokens, the first ones, end at the offset, `[n_teacher_sources]`."""
        return self._section("teacher_source_exact")

    @property
    def teacher_source_suffix(self) -> Longs:
        """Where the suffixes of the others begin in `suffixes` of the teacher's tree side.

        `[n_teacher_sources]`
        """
        return self._section("teacher_source_suffix")

    @property
    def student_source_offsets(self) -> Longs:
        """Where the student's sources of the offsets begin, `[n_text_offsets + 1]`."""
        return self._section("student_source_offsets")

    @property
    def student_source_row(self) -> Longs:
        """The text rows that the student's sources are, ascending at an offset.

        `[n_student_sources]`
        """
        return self._section("student_source_row")

    @property
    def student_source_start(self) -> Longs:
        """Where the student's tokens that begin with the text begin in token order.

        `[n_student_sources]`
        """
        return self._section("student_source_start")

    @property
    def student_source_end(self) -> Longs:
        """Where these tokens end, one past the last, `[n_student_sources]`."""
        return self._section("student_source_end")

    @property
    def student_source_length(self) -> Longs:
        """How many bytes of text there are since the student's sources, `[n_student_sources]`."""
        return self._section("student_source_length")

    @property
    def student_source_exact(self) -> Longs:
        """How many of these tokens, the first ones, end at the offset, `[n_student_sources]`."""
        return self._section("student_source_exact")

    @property
    def student_source_suffix(self) -> Longs:
        """Where the suffixes of the others begin in `suffixes` of the student's tree side.

        `[n_student_sources]`
        """
        return self._section("student_source_suffix")
