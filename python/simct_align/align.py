"""Internal: the alignment of a batch of token ids."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from simct_align.batch import AlignedBatch, UnmatchedSpans
from simct_align.inputs import integer, read_side, same_dtype, thread_count

if TYPE_CHECKING:
    from simct_align.pair import VocabularyPair


def align_batch(
    pair: VocabularyPair,
    teacher_ids: object,
    student_ids: object,
    *,
    teacher_mask: object | None = None,
    student_mask: object | None = None,
    on_mismatch: Literal["skip", "error"] = "skip",
    resync_bytes: int = 8,
    threads: int | None = None,
) -> AlignedBatch:
    """Find the finest joint segmentation of every row: see `Aligner.align_batch`."""
    if on_mismatch not in ("skip", "error"):
        raise ValueError(f"on_mismatch: expected 'skip' or 'error', got {on_mismatch!r}")
    teacher = read_side("teacher", teacher_ids, teacher_mask)
    student = read_side("student", student_ids, student_mask)
    units, kind, unit_class, unmatched, reason = pair._pair.align(
        *same_dtype(teacher, student),
        fail_on_mismatch=on_mismatch == "error",
        resync_bytes=integer("resync_bytes", resync_bytes, at_least=1),
        threads=thread_count(threads),
    )
    return AlignedBatch(
        *units,
        kind=kind,
        unit_class=unit_class,
        unmatched=UnmatchedSpans(*unmatched, reason=reason),
        teacher=teacher,
        student=student,
        pair_digest=pair.digest,
        _pair=pair,
    )
