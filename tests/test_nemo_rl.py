"""The contract of NeMo-RL's `AlignmentBatch`, checked against a slow reading of the units."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from simct_align import Aligner, UnitClass, UnitKind, Vocabulary  # noqa: E402
from simct_align.demo import demo_passage, demo_tokenizers  # noqa: E402
from simct_align.integrations.nemo_rl import alignment_fields, batch_fields  # noqa: E402


@dataclasses.dataclass
class AlignmentBatch:
    """The fields that NeMo-RL's class of this name has."""

    pair_valid: torch.Tensor
    pair_is_correct: torch.Tensor
    student_exact_partition_mask: torch.Tensor
    teacher_exact_partition_mask: torch.Tensor
    student_chunk_id: torch.Tensor
    teacher_chunk_id: torch.Tensor
    num_chunks: torch.Tensor


DTYPES = {
    "pair_valid": torch.bool,
    "pair_is_correct": torch.bool,
    "student_exact_partition_mask": torch.bool,
    "teacher_exact_partition_mask": torch.bool,
    "student_chunk_id": torch.int64,
    "teacher_chunk_id": torch.int64,
    "num_chunks": torch.int64,
}


def slowly(aligned, student_width, teacher_width) -> AlignmentBatch:
    rows = len(aligned)
    pairs = max([1, *(len(aligned.units(row)) for row in range(rows))])
    batch = AlignmentBatch(
        torch.zeros(rows, pairs, dtype=torch.bool),
        torch.zeros(rows, pairs, dtype=torch.bool),
        torch.zeros(rows, student_width, dtype=torch.bool),
        torch.zeros(rows, teacher_width, dtype=torch.bool),
        torch.full((rows, student_width), -1),
        torch.full((rows, teacher_width), -1),
        torch.zeros(rows, dtype=torch.int64),
    )
    for row in range(rows):
        for number, unit in enumerate(aligned.units(row)):
            batch.num_chunks[row] += 1
            batch.pair_valid[row, number] = True
            batch.pair_is_correct[row, number] = not unit.unit_class & UnitClass.TRIMMED
            for position in unit.student:
                batch.student_chunk_id[row, position] = number
            for position in unit.teacher:
                batch.teacher_chunk_id[row, position] = number
            if unit.kind in (UnitKind.SHARED, UnitKind.SPECIAL):
                batch.student_exact_partition_mask[row, unit.student[0]] = True
                batch.teacher_exact_partition_mask[row, unit.teacher[0]] = True
    return batch


def assert_contract(aligned, student_width, teacher_width) -> AlignmentBatch:
    fields = alignment_fields(aligned)
    assert {name: tensor.dtype for name, tensor in fields.items()} == DTYPES
    batch = AlignmentBatch(**fields)
    expected = slowly(aligned, student_width, teacher_width)
    for field in dataclasses.fields(AlignmentBatch):
        assert torch.equal(getattr(batch, field.name), getattr(expected, field.name)), field.name
    return batch


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_conversations(padding_side):
    """Padded prompts and completions with ends of turn, and sampled garbage."""
    aligner = Aligner(*demo_tokenizers())
    rng = np.random.default_rng(2)
    answers = aligner.student.encode_batch([*demo_passage()])
    answers += [rng.integers(0, 4096, 12).tolist(), []]
    prompts = [[5, 6]] * len(answers)
    prepared = aligner.prepare(
        answers,
        teacher_prompt_ids=prompts,
        student_prompt_ids=prompts,
        padding_side=padding_side,
    )
    widths = prepared.student.input_ids.shape[1], prepared.teacher.input_ids.shape[1]
    batch = assert_contract(prepared.aligned, *widths)
    outside = torch.from_numpy(prepared.student.completion_mask) == 0
    assert (batch.student_chunk_id[outside] == -1).all()
    assert (batch.num_chunks > 0).all()


def test_ragged_rows_differences_and_trimmed_prefixes():
    aligner = Aligner(*demo_tokenizers())
    texts = ["12 + 30", "", "one"]
    teacher, student = aligner.teacher.encode_batch(texts), aligner.student.encode_batch(texts)
    student[0] = student[0] + aligner.student.encode_batch(["other"])[0]
    aligned = aligner.align_batch(teacher, student)
    batch = assert_contract(aligned, max(map(len, student)), max(map(len, teacher)))
    # The student's dummy prefix is no text of the teacher's.
    trimmed = (aligned.unit_class & UnitClass.TRIMMED) != 0
    assert (batch.pair_valid & ~batch.pair_is_correct).sum() == trimmed.sum() > 0
    assert (batch.student_chunk_id[0] == -1).any()


def test_no_units_and_no_rows():
    words = Vocabulary.from_token_bytes([b"a", b"b"])
    aligner = Aligner(words, words)
    assert_contract(aligner.align_batch([[0], []], [[1], []]), 1, 1)
    fields = alignment_fields(aligner.align_batch([], []))
    assert fields["pair_valid"].shape == (0, 1)
    assert fields["student_chunk_id"].shape == (0, 0)


def test_names_in_a_batch():
    words = Vocabulary.from_token_bytes([b"a", b"b"])
    aligned = Aligner(words, words).align_batch([[0, 1]], [[0, 1]])
    assert set(batch_fields(aligned)) == {f"alignment_{name}" for name in DTYPES}
    assert set(batch_fields(aligned, teacher=1)) == {f"alignment_1_{name}" for name in DTYPES}
