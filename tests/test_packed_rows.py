"""Sequences that are packed into rows: neighbours are never one region."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from simct_align import Aligner, SimCTLoss, TextLoss, Vocabulary, packed_rows
from support.text_cases import SIDES, random_case

LOSSES = {"text": TextLoss, "simct": SimCTLoss}


def packs(c, side, groups, padding):
    """The rows of a case side by side in packs, padded on the right to one length.

    Args:
        c: A case.
        side: `"teacher"` or `"student"`.
        groups: The rows of every pack.
        padding: Padding positions of the longest pack.

    Returns:
        Ids, position ids, attention mask and mask, `[packs, length]`, and logits.
    """
    ragged, logits = getattr(c.batch, side), c.logits[side]
    found, length = [], 0
    for rows in groups:
        pack = [[], [], [], []]
        for row in rows:
            at = slice(*ragged.offsets[[row, row + 1]].tolist())
            pack[0] += c.ids[side][row]
            pack[1] += range(at.stop - at.start)
            pack[2] += ragged.mask[at].tolist()
            pack[3].append(logits[at])
        found.append(pack)
        length = max(length, len(pack[0]) + padding)
    arrays = np.zeros((4, len(groups), length), np.int64)
    z = torch.randn(len(groups), length, logits.shape[1], dtype=torch.float64)
    for number, (ids, positions, mask, parts) in enumerate(found):
        n = len(ids)
        arrays[:, number, :n] = ids, positions, np.ones(n), mask
        z[number, :n] = torch.cat(parts)
    ids, positions, attention_mask, mask = arrays
    return ids, positions, attention_mask, mask, z


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("form", ["position_ids", "cu_seqlens"])
@pytest.mark.parametrize(
    ("groups", "padding"), [([[0, 1, 2, 3]], 0), ([[0, 1, 2, 3]], 3), ([[0, 1], [2, 3]], 2)]
)
def test_packed_rows_have_the_loss_of_separate_rows(name, form, groups, padding):
    for seed in range(4):
        c = random_case(seed, alphabet=b"abc", rows=4, scale=3.0)
        sides, logits = {}, {}
        for side in SIDES:
            ids, positions, attention_mask, mask, logits[side] = packs(c, side, groups, padding)
            given = {"position_ids": torch.from_numpy(positions), "attention_mask": attention_mask}
            if form == "cu_seqlens":
                lengths = np.diff(getattr(c.batch, side).offsets)
                bounds, at = [0], 0
                for number, rows in enumerate(groups):
                    at = number * ids.shape[1]
                    for row in rows:
                        at += int(lengths[row])
                        bounds.append(at)
                    if number + 1 < len(groups):
                        bounds[-1] = (number + 1) * ids.shape[1]
                given = {"cu_seqlens": bounds, "attention_mask": attention_mask}
            sides[side] = packed_rows(ids, mask=mask, **given)
        batch = c.aligner.align_batch(sides["teacher"], sides["student"])
        assert len(batch) == 4
        assert batch.kind.tolist() == c.batch.kind.tolist()
        assert batch.student_start.tolist() == c.batch.student_start.tolist()
        loss_fn = LOSSES[name](c.aligner, reduction="sum")
        student = logits["student"].requires_grad_()
        whole = c.logits["student"].clone().requires_grad_()
        expected = loss_fn(teacher_logits=c.logits["teacher"], student_logits=whole, index=c.batch)
        shapes = {"packs": (logits["teacher"], student), "an index": (logits["teacher"], student)}
        if len(groups) == 1:
            shapes["flat"] = (logits["teacher"][0], student[0])
        for shape, (teacher, of_student) in shapes.items():
            index = batch if shape == "packs" else batch.index(**loss_fn.index_options)
            found = loss_fn(teacher_logits=teacher, student_logits=of_student, index=index)
            torch.testing.assert_close(found.per_unit, expected.per_unit)
        found.loss.backward()
        expected.loss.backward()
        starts = batch.student.offsets[:-1].tolist()
        lengths = np.diff(c.batch.student.offsets).tolist()
        flat = student.grad.reshape(-1, student.shape[-1])
        gradient = torch.cat([flat[a : a + n] for a, n in zip(starts, lengths, strict=True)])
        torch.testing.assert_close(gradient, whole.grad)
        assert student.grad.count_nonzero() == whole.grad.count_nonzero()


def digits():
    teacher = Vocabulary.from_token_bytes([b"12", b"1", b"2", b"+"])
    student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
    return Aligner(teacher, student)


def test_text_is_not_compared_across_the_border():
    """`1` and `2` of neighbouring samples are the teacher's `12` only if nobody says otherwise."""
    aligner = digits()
    teacher, student = [3, 1, 2, 3], [2, 0, 1, 2]
    one_row = aligner.align_batch([teacher], [student])
    assert len(one_row.units(0)) == 4
    batch = aligner.align_batch(
        packed_rows([teacher], position_ids=[[0, 1, 0, 1]]),
        packed_rows([student], position_ids=[[0, 1, 0, 1]]),
    )
    assert [[unit.text for unit in batch.units(row)] for row in (0, 1)] == [["+", "1"], ["2", "+"]]
    # The first token of a sequence has no prefix.
    assert batch.index().dropped_no_prefix == 2
    assert one_row.index().dropped_no_prefix == 1


def test_forms_of_ids_are_equal():
    expected = packed_rows([[2, 0, 1, 2]], position_ids=[[0, 1, 0, 1]])
    for form in (
        packed_rows([2, 0, 1, 2], position_ids=[0, 1, 0, 1]),
        packed_rows(torch.tensor([2, 0, 1, 2]), position_ids=torch.tensor([5, 6, 6, 9])),
        packed_rows(np.array([[2, 0, 1, 2]]), cu_seqlens=torch.tensor([0, 2, 4]).int()),
        packed_rows([[2, 0, 1, 2]], cu_seqlens=[0, 2, 4]),
        packed_rows(torch.tensor([[2, 0], [1, 2]]), position_ids=np.array([[0, 1], [2, 3]])),
    ):
        assert form.offsets.tolist() == expected.offsets.tolist() == [0, 2, 4]
        assert form.values.tolist() == [2, 0, 1, 2]
        assert form.mask is None
        assert form.packed
    masked = packed_rows([2, 0, 1, 2], cu_seqlens=[0, 2, 3], mask=[0, 1, 1, 1])
    assert masked.offsets.tolist() == [0, 2, 4]
    assert masked.mask.tolist() == [0, 1, 1, 0]
    padded = packed_rows(
        [2, 0, 2, 2], position_ids=[0, 1, 0, 0], attention_mask=[True, True, False, True]
    )
    assert padded.offsets.tolist() == [0, 3, 4]
    assert padded.mask.tolist() == [1, 1, 0, 1]
    assert len(packed_rows([], cu_seqlens=[0])) == 0
    assert len(packed_rows([2, 0], cu_seqlens=[0])) == 0


def test_a_mask_of_align_batch_has_the_shape_of_the_packs():
    aligner = digits()
    rows = packed_rows([[2, 0, 1, 2]], cu_seqlens=[0, 2, 4])
    teacher = packed_rows([[3, 1, 2, 3]], cu_seqlens=[0, 2, 4])
    mask = np.array([[0, 1, 0, 1]])
    batch = aligner.align_batch(teacher, rows, teacher_mask=mask, student_mask=mask)
    assert [len(batch.units(row)) for row in (0, 1)] == [1, 1]
    assert batch.student.packed
    padded = packed_rows([[2, 0, 1, 2]], cu_seqlens=[0, 2, 3])
    batch = aligner.align_batch(
        teacher, padded, student_mask=np.ones((1, 4), bool), teacher_mask=mask
    )
    assert batch.student.mask.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize(
    ("ids", "keywords", "error", "message"),
    [
        ([1], {}, TypeError, "expected cu_seqlens or position_ids, got neither"),
        ([1], {"cu_seqlens": [0, 1], "position_ids": [0]}, TypeError, "got both"),
        ([1, 2], {"position_ids": [0]}, ValueError, "position_ids: expected the shape of ids"),
        ([[1, 2]], {"position_ids": [[0, 1]] * 3}, ValueError, "1 rows of 2 positions, got 3 rows"),
        ([1, 2], {"cu_seqlens": [1, 2]}, ValueError, "must start at 0.*entry 0 is 1"),
        ([1, 2], {"cu_seqlens": [0, 2, 1]}, ValueError, "never fall.*entry 2 is 1"),
        ([1, 2], {"cu_seqlens": [0, 3]}, ValueError, "end at 2 ids at most, but entry 1 is 3"),
        ([1, 2], {"cu_seqlens": []}, ValueError, "there are none"),
        ([[1, 2], [3, 4]], {"cu_seqlens": [0, 3, 4]}, ValueError, "but 2 is missing: a sequence"),
        (
            [1, 2],
            {"position_ids": [0, 1], "attention_mask": [0, 1]},
            ValueError,
            "begin with padding",
        ),
        ([1, 2], {"position_ids": [0, 1], "mask": [1]}, ValueError, "mask has 1 entries"),
        ([1.5], {"position_ids": [0]}, TypeError, "ids"),
    ],
)
def test_what_is_wrong_is_named(ids, keywords, error, message):
    with pytest.raises(error, match=message):
        packed_rows(ids, **keywords)


def test_a_stride_is_refused():
    aligner = digits()
    batch = aligner.align_batch(
        packed_rows([3, 1], cu_seqlens=[0, 2]), packed_rows([2, 0], cu_seqlens=[0, 2])
    )
    with pytest.raises(ValueError, match="student_stride: the rows are sequences of packed rows"):
        batch.index(student_stride=2)


def test_logprobs_have_the_shape_of_the_packs():
    aligner = digits()
    batch = aligner.align_batch(
        packed_rows([[3, 0, 3]], cu_seqlens=[0, 2, 3]),
        packed_rows([[2, 0, 1, 2]], cu_seqlens=[0, 3, 4]),
    )
    for values in (np.array([[-1.0, -2.0, -3.0]]), np.array([-1.0, -2.0, -3.0])):
        assert batch.student_logprobs(values).tolist() == [-1.0, -1.0, -1.0, -3.0]
