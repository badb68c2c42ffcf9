"""An alignment in the form that NeMo-RL's cross-tokenizer losses read.

NeMo-RL keeps an alignment in seven dense tensors, its `AlignmentBatch`: pairs of chunks, and for
every token the number of its chunk. A unit becomes one chunk on each side and one pair.
`TokenAligner` takes the place of NeMo-RL's class of this name, and `write_projection` writes the
file that its losses read. docs/nemo_rl.md shows how.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.aligner import Aligner
from simct_align.inputs import integer
from simct_align.units import UnitClass, UnitKind
from simct_align.vocabulary import Vocabulary

if TYPE_CHECKING:
    import os

    import torch
    from numpy.typing import NDArray

    from simct_align.batch import AlignedBatch


__all__ = ["TokenAligner", "alignment_fields", "batch_fields", "write_projection"]


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


class TokenAligner:
    """NeMo-RL's `TokenAligner`, with the alignment of this package.

    Use it where NeMo-RL constructs its own class. Whole rows are aligned: all tokens of the
    attention masks. BOS of both sides are paired, and so are all ends of turn. Tokens that have no
    counterpart are in no chunk.

    Args:
        student_tokenizer: The student's tokenizer: any source that `Vocabulary.from_tokenizer`
            reads, or a `Vocabulary`.
        teacher_tokenizer: The same for the teacher.
        projection_matrix_path: A file for NeMo-RL's losses, such as `write_projection` writes. It
            is kept as the attribute of this name, and not read.
        aligner: The pair of vocabularies, the teacher's first; None makes it of the tokenizers.
            Give one where control tokens or stops must be named.

    Example:
        >>> import torch
        >>> from simct_align.demo import demo_tokenizers
        >>> teacher, student = demo_tokenizers()
        >>> token_aligner = TokenAligner(student, teacher)
        >>> sides = token_aligner.aligner.student, token_aligner.aligner.teacher
        >>> ids = [torch.tensor(side.encode_batch(["x = 12"])) for side in sides]
        >>> fields = token_aligner.align(*ids, batch_class=dict)
        >>> fields["num_chunks"].tolist(), fields["student_chunk_id"].tolist()
        ([4], [[0, 1, 2, 3]])
    """

    def __init__(
        self,
        student_tokenizer: Any,
        teacher_tokenizer: Any,
        projection_matrix_path: str | os.PathLike[str] | None = None,
        *,
        aligner: Aligner | None = None,
    ) -> None:
        self.student_tokenizer = student_tokenizer
        self.teacher_tokenizer = teacher_tokenizer
        self.projection_matrix_path = projection_matrix_path
        if aligner is None:
            tokenizers = (teacher_tokenizer, student_tokenizer)
            teacher, student = (
                side if isinstance(side, Vocabulary) else Vocabulary.from_tokenizer(side)
                for side in tokenizers
            )
            left, right = map(_start_token, (teacher, student), tokenizers)
            pairs: dict[str | int, str | int] = {left: right} if left and right else {}
            aligner = Aligner(teacher, student, special_tokens=pairs)
        self.aligner = aligner

    def align(
        self,
        student_ids: torch.Tensor,
        teacher_ids: torch.Tensor,
        *,
        student_offsets: torch.Tensor | None = None,
        teacher_offsets: torch.Tensor | None = None,
        student_attention_mask: torch.Tensor | None = None,
        teacher_attention_mask: torch.Tensor | None = None,
        batch_class: Any = None,
    ) -> Any:
        """Align a batch, with the arguments and the result of NeMo-RL's method.

        Args:
            student_ids: The student's ids, int64 `[B, T_s]`.
            teacher_ids: The teacher's ids, int64 `[B, T_t]`.
            student_offsets: Not read: the bytes of the tokens decide, not their offsets in a text.
            teacher_offsets: Not read.
            student_attention_mask: Nonzero on tokens, `[B, T_s]`; None for no padding.
            teacher_attention_mask: The same for the teacher, `[B, T_t]`.
            batch_class: What to make of the fields; None for NeMo-RL's `AlignmentBatch`.

        Returns:
            An `AlignmentBatch` on the CPU, with as many of the fields of `alignment_fields` as the
            class has.

        Raises:
            TypeError: As for `Aligner.align_batch`, or `batch_class` has a field that this package
                does not know.
            ValueError: As for `Aligner.align_batch`.
            ImportError: `batch_class` is None and NeMo-RL is not installed.
        """
        del student_offsets, teacher_offsets
        if batch_class is None:
            from nemo_rl.algorithms.x_token.token_aligner import AlignmentBatch

            batch_class = AlignmentBatch
        masks = [
            None if mask is None else mask.cpu() != 0
            for mask in (teacher_attention_mask, student_attention_mask)
        ]
        found = alignment_fields(
            self.aligner.align_batch(
                teacher_ids.cpu(), student_ids.cpu(), teacher_mask=masks[0], student_mask=masks[1]
            )
        )
        if batch_class is dict:
            return found
        wanted = [field.name for field in fields(batch_class)]
        if unknown := set(wanted) - set(found):
            raise TypeError(
                f"batch_class: expected a class with the fields {sorted(found)}, or some of them, "
                f"got {batch_class.__name__} with {sorted(unknown)}"
            )
        return batch_class(**{name: found[name] for name in wanted})


def _start_token(vocabulary: Vocabulary, tokenizer: Any) -> str | None:
    """Return the name of BOS, if it is a control token that does not end a turn as well."""
    name: str | None = getattr(tokenizer, "bos_token", None)
    token = vocabulary.special_ids.get(name) if name else None
    return None if token is None or token in vocabulary.stop_ids else name


def write_projection(
    aligner: Aligner, path: str | os.PathLike[str], *, student_vocab_size: int | None = None
) -> int:
    """Write the shared vocabulary as a projection file of NeMo-RL.

    Every student token of `aligner.shared` is projected onto its teacher token with weight 1; the
    stops are one pair. All other tokens have no projection. The file is in the dense format, two
    columns wide, that NeMo-RL's exact token map reads with and without `xtoken_loss`.

    Args:
        aligner: The pair of vocabularies.
        path: The file. An existing file is replaced.
        student_vocab_size: Number of rows, which is the width of the student's logits. The default
            is the size of the student's vocabulary.

    Returns:
        The number of projected tokens.

    Raises:
        TypeError: `student_vocab_size` is not an integer.
        ValueError: `student_vocab_size` is smaller than the student's vocabulary.
        OSError: The file cannot be written.

    Complexity:
        O(student's vocabulary) time and memory.

    Example:
        >>> import tempfile, torch
        >>> from simct_align import Aligner, Vocabulary
        >>> teacher = Vocabulary.from_token_bytes([b"12", b"+", b"1"])
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     count = write_projection(Aligner(teacher, student), file.name)
        ...     torch.load(file.name)["indices"].tolist()
        [[2, -1], [-1, -1], [1, -1]]
    """
    import torch

    size = len(aligner.student)
    if student_vocab_size is not None:
        size = integer("student_vocab_size", student_vocab_size, at_least=size)
    shared = aligner.shared
    columns = torch.from_numpy(shared.student_ids)
    indices = torch.full((size, 2), -1, dtype=torch.int64)
    indices[columns, 0] = torch.from_numpy(shared.teacher_ids)
    likelihoods = torch.zeros(size, 2)
    likelihoods[columns, 0] = 1.0
    torch.save({"indices": indices, "likelihoods": likelihoods}, path)
    return len(shared)
