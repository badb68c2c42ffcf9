"""An alignment in the form that NeMo-RL's cross-tokenizer losses read.

NeMo-RL keeps an alignment in seven dense tensors, its `AlignmentBatch`: pairs of chunks, and
for every token the number of its chunk. A unit is a chunk and a pair. Nothing here imports NeMo-RL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simct_align.units import UnitClass, UnitKind

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from simct_align.batch import AlignedBatch


def alignment_fields(aligned: AlignedBatch) -> dict[str, torch.Tensor]:
    """The fields of NeMo-RL's `AlignmentBatch`: `AlignmentBatch(**alignment_fields(aligned))`.

    Align dense ids `[rows, T]`, so that the tensors have the shapes of the models' inputs. What
    is unmatched is in no chunk.

    Args:
        aligned: An alignment, with masks that leave prompts and padding out.

    Returns:
        Tensors on the CPU, with B rows, P the largest number of units in a row (at least 1), and
        the widths of both sides' ids:

        * `pair_valid` bool `[B, P]`: the row has so many units;
        * `pair_is_correct` bool `[B, P]`: with the same bytes on both sides, as all units
          have but those whose first token holds a dummy prefix;
        * `student_exact_partition_mask` bool `[B, T_s]`, `teacher_exact_partition_mask`
          bool `[B, T_t]`: the token is alone in its unit on both sides;
        * `student_chunk_id` int64 `[B, T_s]`, `teacher_chunk_id` int64 `[B, T_t]`: number
          of the token's unit in its row, −1 outside;
        * `num_chunks` int64 `[B]`: units of the row.

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
    """The same under the names of a NeMo-RL batch.

    Args:
        aligned: As for `alignment_fields`.
        teacher: Number of the teacher where a batch has several: `alignment_0_pair_valid`;
            without it, `alignment_pair_valid`.

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
