"""What adapters of trainers do with tensors: rows with labels, and estimates of whole units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from simct_align.prepare import IGNORED_LABEL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

    from simct_align.aligner import Aligner
    from simct_align.index import AlignedIndex
    from simct_align.integrations._teacher_row import TeacherRow, TeacherRows

_PADDING = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED_LABEL}


def teacher_inputs(
    rows: TeacherRows, student: Mapping[str, Any], messages: Sequence[Any]
) -> dict[str, Tensor]:
    """Return the teacher's inputs for a batch of a student's labelled rows.

    Args:
        rows: The maker of the teacher's rows.
        student: `input_ids`, `attention_mask` and `labels`, tensors `[B, T_s]`. Every run of labels
            is the answer of one assistant turn.
        messages: The conversation of every row.

    Returns:
        The same three tensors for the teacher, int64 `[B, T_t]`, padded on the right, on the device
        of the student's.

    Raises:
        ValueError: A row has more answers than its conversation, or as for `TeacherRows`.
    """
    ids, mask, labels = (student[name].cpu() for name in _PADDING)
    made = [
        _columns(rows.of_labels(ids[taken].tolist(), labels[taken], conversation))
        for ids, taken, labels, conversation in zip(ids, mask != 0, labels, messages, strict=True)
    ]
    pad, device = torch.nn.utils.rnn.pad_sequence, student["input_ids"].device
    return {
        name: pad([row[name] for row in made], batch_first=True, padding_value=fill).to(device)
        for name, fill in _PADDING.items()
    }


def _columns(row: TeacherRow) -> dict[str, Tensor]:
    ids = torch.tensor(row.ids, dtype=torch.int64)
    trained = torch.from_numpy(row.aligned.teacher.mask != 0)
    labels = ids.where(trained, IGNORED_LABEL)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def align_labels(aligner: Aligner, teacher_labels: Tensor, student_labels: Tensor) -> AlignedIndex:
    """Align the tokens that have a label, by the index of logits of whole rows.

    Args:
        aligner: The pair of vocabularies.
        teacher_labels: `[B, T_t]`, −100 on tokens that do not take part.
        student_labels: `[B, T_s]`, in the same form.

    Returns:
        The index, on the device of the labels. Labels on a GPU are copied to the host.
    """
    sides = [labels.cpu() for labels in (teacher_labels, student_labels)]
    masks = [labels != IGNORED_LABEL for labels in sides]
    batch = aligner.align_batch(*sides, teacher_mask=masks[0], student_mask=masks[1])
    return batch.index().to(student_labels.device)


def spread_estimates(
    estimate: Callable[[Tensor, Tensor], Tensor],
    student: Tensor,
    teacher: Tensor,
    *,
    units: Tensor,
    mask: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return an estimate of every unit, shared by the unit's tokens.

    Args:
        estimate: Of the student's and the teacher's log-probabilities, in this order; elementwise.
        student: Log-probability of every token, `[B, T]`.
        teacher: The same for the teacher: numbers whose sum over a unit is the unit's.
        units: The number of the unit of every token within its row, integers `[B, T]`, below T;
            −1 outside of units.
        mask: Nonzero on tokens that take part, `[B, T]`.

    Returns:
        The estimates `[B, T]`, from the sums over a token's unit, divided by the number of tokens
        in the unit, so that they sum up to the units' estimates; 0 outside of units. And the share
        of the mask's tokens that are in a unit, 0-d.
    """
    rows, width = units.shape
    inside = (units >= 0) & (mask != 0)
    first = torch.arange(rows, device=units.device)[:, None] * width
    # The last bucket takes the tokens outside of units.
    bucket = torch.where(inside, units + first, rows * width).flatten()

    def of_unit(values: Tensor) -> Tensor:
        sums = values.new_zeros(rows * width + 1).index_add(0, bucket, values.flatten())
        return sums[bucket].view(rows, width)

    sums = of_unit(student), of_unit(teacher.to(student))
    values = estimate(*sums) / of_unit(torch.ones_like(student))
    return values.where(inside, 0.0), inside.sum() / (mask != 0).sum().clamp(min=1)
