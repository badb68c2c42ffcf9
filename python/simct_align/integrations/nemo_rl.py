"""An alignment in the form that NeMo-RL's cross-tokenizer losses read.

NeMo-RL keeps an alignment in seven dense tensors, its `AlignmentBatch`: pairs of chunks, and for
every token the number of its chunk. A unit becomes one chunk on each side and one pair. This module
does not import NeMo-RL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simct_align.units import UnitClass, UnitKind

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from simct_align.batch import AlignedBatch


__all__ = ["alignment_fields", "batch_fields"]


def alignment_fields(aligned: AlignedBatch) -> dict[str, torch.Tensor]:
    """Return the fields of NeMo-RL's `AlignmentBatch`.

    Use the result as `AlignmentBatch(**alignment_fields(aligned))`. Align dense ids `[rows, T]`, so
    that the tensors have the shapes of the models' inputs. Unmatched tokens are not in any chunk.

    Args:
        aligned: An alignment, made with masks that leave prompts and padding out.

    Returns:
        Tensors on the CPU for B rows, where P is the largest number of units in a row (at least
        1), and `T_s` and `T_t` are the widths of the student's and the teacher's ids:

        * `pair_valid` bool `[B, P]`: whether the row has a unit of this number;
        * `pair_is_correct` bool `[B, P]`: whether the row has a unit of this number with the
          same bytes on both sides; false for a unit whose first token holds a dummy prefix;
        * `student_exact_partition_mask` bool `[B, T_s]` and `teacher_exact_partition_mask` bool
          `[B, T_t]`: whether the token is the only token of its unit, on both sides;
        * `student_chunk_id` int64 `[B, T_s]` and `teacher_chunk_id` int64 `[B, T_t]`: the number
          of the token's unit within the row, −1 for tokens outside of units;
        * `num_chunks` int64 `[B]`: the number of units of the row.

    Complexity:
        O(rows × (P + T_s + T_t)) time and memory.

    Example:
        >>> from simct_align import Aligner, Vocabulary
        >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> fields = alignment_fields(Aligner(teacher, student).align_batch([[0, 1]], [[0, 1, 2]]))
        >>> fields["student_chunk_id"].tolist(), fields["teacher_chunk_id"].tolist()
        ([[0, 0, 1]], [[0, 1]])
        >>> fields["student_exact_partition_mask"].tolist()
        [[False, False, True]]
    """
    import torch

    counts = np.diff(aligned.row_offsets)
    rows = np.repeat(np.arange(len(aligned)), counts)
    numbers = np.arange(aligned.n_units) - aligned.row_offsets[:-1][rows]
    teacher_chunk, student_chunk = aligned.chunk_ids()

    pairs = max(1, int(counts.max(initial=0)))
    valid = np.arange(pairs) < counts[:, None]
    correct = valid.copy()
    trimmed = (aligned.unit_class & UnitClass.TRIMMED) != 0
    correct[rows[trimmed], numbers[trimmed]] = False
    alone = aligned.kind != UnitKind.MULTI

    def exact(chunks: NDArray[np.int64], start: NDArray[np.int32]) -> NDArray[np.bool_]:
        mask = np.zeros(chunks.shape, np.bool_)
        mask[rows[alone], start[alone]] = True
        return mask

    arrays = {
        "pair_valid": valid,
        "pair_is_correct": correct,
        "student_exact_partition_mask": exact(student_chunk, aligned.student_start),
        "teacher_exact_partition_mask": exact(teacher_chunk, aligned.teacher_start),
        "student_chunk_id": student_chunk,
        "teacher_chunk_id": teacher_chunk,
        "num_chunks": counts,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def batch_fields(aligned: AlignedBatch, *, teacher: int | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors of `alignment_fields` under the names of a NeMo-RL batch.

    Args:
        aligned: An alignment, made with masks that leave prompts and padding out.
        teacher: The number of the teacher, for a batch with several teachers. With 0 a name is
            `alignment_0_pair_valid`; with None it is `alignment_pair_valid`.

    Returns:
        The tensors of `alignment_fields`, to update a batch with.

    Complexity:
        That of `alignment_fields`.

    Example:
        >>> from simct_align import Aligner, Vocabulary
        >>> words = Vocabulary.from_token_bytes([b"a", b"b"])
        >>> batch = Aligner(words, words).align_batch([[0, 1]], [[0, 1]])
        >>> batch_fields(batch, teacher=0)["alignment_0_num_chunks"].tolist()
        [2]
    """
    prefix = "alignment_" if teacher is None else f"alignment_{teacher}_"
    return {prefix + name: tensor for name, tensor in alignment_fields(aligned).items()}
