"""The contracts of NeMo-RL's cross-tokenizer distillation, against a slow reading of the units.

NeMo-RL is not in the package index. `AlignmentBatch`, the arguments of `TokenAligner.align` and the
rules of its projection file are those of nemo_rl/algorithms/x_token in github.com/NVIDIA-NeMo/RL:
token_aligner.py at commit 05179a5 and loss_utils.py at commit 070053c. A later version of the class
has the first two and the two `*_chunk_id` fields only.
"""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
import types

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from simct_align import Aligner, UnitClass, UnitKind, Vocabulary  # noqa: E402
from simct_align.demo import demo_passage, demo_tokenizers  # noqa: E402
from simct_align.integrations.nemo_rl import (  # noqa: E402
    TokenAligner,
    alignment_fields,
    batch_fields,
    write_projection,
)
from support.chat_tokenizers import demo_aligner, demo_chat_tokenizers  # noqa: E402


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


@dataclasses.dataclass
class LaterAlignmentBatch:
    pair_valid: torch.Tensor
    pair_is_correct: torch.Tensor
    student_chunk_id: torch.Tensor
    teacher_chunk_id: torch.Tensor


def padded(rows: list[list[int]], left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows)) + 1
    fill = [[0] * (width - len(row)) for row in rows]
    ids = [f + r if left else r + f for r, f in zip(rows, fill, strict=True)]
    ones = [[0] * len(f) + [1] * len(r) if left else [1] * len(r) + [0] * len(f)
            for r, f in zip(rows, fill, strict=True)]  # fmt: skip
    return torch.tensor(ids), torch.tensor(ones)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("batch_class", [AlignmentBatch, LaterAlignmentBatch])
def test_the_class_of_the_recipe(monkeypatch, left, batch_class):
    """As NeMo-RL's collator calls it, and as its losses read the result."""
    module = types.ModuleType("nemo_rl.algorithms.x_token.token_aligner")
    module.AlignmentBatch = batch_class
    for name in ("nemo_rl", "nemo_rl.algorithms", "nemo_rl.algorithms.x_token"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    teacher, student = demo_chat_tokenizers()
    token_aligner = TokenAligner(student, teacher, projection_matrix_path="projection.pt")
    assert token_aligner.projection_matrix_path == "projection.pt"
    texts = [*demo_passage()][:4]
    sides = token_aligner.aligner.student, token_aligner.aligner.teacher
    student_rows, teacher_rows = (
        [[*row, side.stop_ids[0]] for row in side.encode_batch(texts)] for side in sides
    )
    student_ids, student_mask = padded(student_rows, left)
    teacher_ids, teacher_mask = padded(teacher_rows, left)
    batch = pickle.loads(pickle.dumps(token_aligner)).align(
        student_ids,
        teacher_ids,
        student_offsets=torch.zeros(*student_ids.shape, 2, dtype=torch.long),
        teacher_offsets=torch.zeros(*teacher_ids.shape, 2, dtype=torch.long),
        student_attention_mask=student_mask,
        teacher_attention_mask=teacher_mask,
    )
    assert type(batch) is batch_class
    aligned = token_aligner.aligner.align_batch(
        teacher_ids, student_ids, teacher_mask=teacher_mask, student_mask=student_mask
    )
    expected = slowly(aligned, student_ids.shape[1], teacher_ids.shape[1])
    for field in dataclasses.fields(batch_class):
        assert torch.equal(getattr(batch, field.name), getattr(expected, field.name)), field.name
    assert (batch.student_chunk_id[student_mask == 0] == -1).all()
    # The ends of turn are one pair.
    last = student_mask.flatten().nonzero()[-1]
    assert batch.student_chunk_id.flatten()[last] == batch.teacher_chunk_id[-1].max()
    # Without masks there is no padding.
    whole = token_aligner.align(student_ids[:1, :3], teacher_ids[:1, :3])
    assert whole.student_chunk_id.shape == (1, 3)


def test_bos_are_paired():
    teacher, student = (copy.deepcopy(side) for side in demo_chat_tokenizers())
    teacher.bos_token = "<|user|>"
    aligner = TokenAligner(student, teacher).aligner
    pairs = zip(aligner.shared.teacher_ids, aligner.shared.student_ids, strict=True)
    assert (teacher.bos_token_id, student.bos_token_id) in set(pairs)
    # A BOS that ends turns as well stays a stop, and equal vocabularies are no special case.
    teacher.bos_token = teacher.eos_token
    assert len(TokenAligner(student, teacher).aligner.shared) == len(aligner.shared) - 1
    same = TokenAligner(student, student).aligner
    assert student.bos_token_id in same.shared.student_ids
    own = demo_aligner()
    assert TokenAligner(student, teacher, aligner=own).aligner is own


def test_a_class_with_other_fields_is_refused():
    made = dataclasses.make_dataclass("Batch", ["pair_valid", "pair_weight"])
    with pytest.raises(TypeError, match=r"got Batch with \['pair_weight'\]"):
        TokenAligner(*demo_tokenizers()[::-1]).align(
            torch.zeros(1, 1).long(), torch.zeros(1, 1).long(), batch_class=made
        )


def test_the_projection_file(tmp_path):
    aligner = demo_aligner()
    rows = len(aligner.student) + 7
    count = write_projection(aligner, tmp_path / "projection.pt", student_vocab_size=rows)
    data = torch.load(tmp_path / "projection.pt", weights_only=True)
    indices, likelihoods = data["indices"], data["likelihoods"]
    assert indices.shape == likelihoods.shape == (rows, 2)
    assert (indices.dtype, likelihoods.dtype) == (torch.int64, torch.float32)
    # The strict rule for an exact map: one entry of weight 1, and no second one.
    best, place = likelihoods.sort(dim=-1, descending=True)
    exact = (best[:, 0] == 1.0) & (indices[:, 1] == -1)
    found = {
        (student, indices[student, place[student, 0]].item())
        for student in exact.nonzero()[:, 0].tolist()
    }
    shared = aligner.shared
    assert found == set(zip(shared.student_ids.tolist(), shared.teacher_ids.tolist(), strict=True))
    assert len(found) == count == len(shared)
    # The relaxed rule finds the same, and no teacher's token twice.
    assert torch.equal(best[:, 0] >= 0.6, exact)
    assert len({teacher for _, teacher in found}) == count
    # Entries that are left out by their id have no weight.
    assert (likelihoods[indices < 0] == 0).all()
    with pytest.raises(ValueError, match="student_vocab_size is 5, expected at least 4"):
        write_projection(aligner, tmp_path / "projection.pt", student_vocab_size=5)
