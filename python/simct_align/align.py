"""Internal: the alignment of a batch of token ids."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Literal

import numpy as np

from simct_align import _native
from simct_align.batch import AlignedBatch, UnmatchedSpans
from simct_align.inputs import integer, read_side, same_dtype, thread_count
from simct_align.units import UnmatchedReason

if TYPE_CHECKING:
    from simct_align.pair import VocabularyPair

#: The reasons of tokens whose text the other side does not have.
_OTHER_TEXT = (UnmatchedReason.BYTES_DIFFER, UnmatchedReason.NO_RESYNC)
#: Fewer tokens than this say nothing about the ids of a batch.
_TELLING_TOKENS = 64


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
        resync_bytes=integer(
            "resync_bytes", resync_bytes, at_least=1, at_most=_native.RESYNC_WINDOW
        ),
        threads=thread_count(threads),
    )
    batch = AlignedBatch(
        *units,
        kind=kind,
        unit_class=unit_class,
        unmatched=UnmatchedSpans(*unmatched, reason=reason),
        teacher=teacher,
        student=student,
        pair_digest=pair.digest,
        _pair=pair,
    )
    if not pair._warned_of_other_texts:
        pair._warned_of_other_texts = _warn_of_other_texts(batch)
    return batch


def _warn_of_other_texts(batch: AlignedBatch) -> bool:
    """Warn if most of a batch holds other texts on one side than on the other.

    Ids of another tokenizer, or of the other side, are in range as often as not. Nearly all of them
    then lie where the texts differ, and a loss would train on what is left.

    Args:
        batch: The batch.

    Returns:
        Whether there was a warning.
    """
    spans = batch.unmatched
    if len(spans) == 0:
        return False
    differs = np.isin(spans.reason, _OTHER_TEXT)
    lost = [
        int((end - start)[differs].sum(dtype=np.int64))
        for start, end in (
            (spans.teacher_start, spans.teacher_end),
            (spans.student_start, spans.student_end),
        )
    ]
    # Every unit has a token of either side, so that this is more than half of what takes part.
    if max(lost) < _TELLING_TOKENS or min(lost) <= batch.n_units:
        return False
    warnings.warn(
        f"{lost[0]} teacher tokens and {lost[1]} student tokens lie where the texts of both sides "
        f"differ, more than the {batch.n_units} units that both sides share: are these the ids of "
        "these two tokenizers, in the order teacher, student? batch.coverage() counts what is lost "
        "(further batches of this aligner are not reported)",
        stacklevel=4,
    )
    return True
