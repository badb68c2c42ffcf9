"""Internal: metrics of text events."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import AlignedIndex


class OffsetStat(IntEnum):
    """Rows of the figures that are kept of every offset.

    The first four are 1 for an offset of that kind, else 0. SPOILED is 1 where a row holds NaN.
    The others are masses, the larger one of the two sides where a side is not named.
    """

    TREE = 0
    NEXT_BYTE = 1
    ONE_ROW = 2
    LEFT_OUT = 3
    SPOILED = 4
    ENDED = 5
    STRADDLING = 6
    TEACHER_CONTROL = 7
    STUDENT_CONTROL = 8
    LARGEST_LEAF = 9


class ListStat(IntEnum):
    """Rows that follow those of `OffsetStat` if the teacher is known by lists.

    UNLISTED is 1 where the lists lack what an offset needs, else 0. TEACHER_UNLISTED is the
    probability that the teacher's row at the offset does not list.
    """

    UNLISTED = len(OffsetStat)
    TEACHER_UNLISTED = len(OffsetStat) + 1


N_STATS = len(OffsetStat) + len(ListStat)
"""The number of figures that are kept of every offset."""


class TextMetrics(NamedTuple):
    """Detached 0-d tensors on the device of the loss. Reading one waits for the device.

    A mean over no offset is NaN. Masses are probabilities.

    Attributes:
        offsets_tree: Offsets at which both sides have a row and nodes of the tree are opened.
        offsets_next_byte: Offsets at which both sides have a row and straddling tokens hold more
            than `epsilon`, so that the next bytes are compared.
        offsets_one_row: Offsets at which one side has a row: there the next bytes are compared.
        offsets_left_out: Offsets at which more than `epsilon` of a side's mass ends unknown.
        offsets_spoiled: Offsets that read a row with NaN; they add nothing.
        offsets_unlisted: Offsets that add nothing because a teacher's list lacks a token that the
            text takes, or any token that the offset needs; 0 where whole rows are known.
        units_without_prefix: Units at the start of a row, which no logits predict.
        divergence_tree: Mean divergence of the first kind of offsets.
        divergence_next_byte: Mean divergence of the second kind.
        divergence_one_row: Mean divergence of the third kind.
        mass_ended: Mean mass of tokens that end at an offset off the realized path; the larger one
            of both sides, as for the next.
        mass_straddling: Mean mass of tokens of earlier rows that reach beyond an offset.
        teacher_mass_control: Mean probability of control tokens other than stops, left out.
        student_mass_control: The same for the student.
        mass_largest_leaf: Mean probability of the student's largest leaf.
        teacher_mass_unlisted: Mean probability of the tokens that the teacher's lists lack, over
            the offsets; 0 where the teacher has no row, and where whole rows are known.
    """

    offsets_tree: Tensor
    offsets_next_byte: Tensor
    offsets_one_row: Tensor
    offsets_left_out: Tensor
    offsets_spoiled: Tensor
    offsets_unlisted: Tensor
    units_without_prefix: Tensor
    divergence_tree: Tensor
    divergence_next_byte: Tensor
    divergence_one_row: Tensor
    mass_ended: Tensor
    mass_straddling: Tensor
    teacher_mass_control: Tensor
    student_mass_control: Tensor
    mass_largest_leaf: Tensor
    teacher_mass_unlisted: Tensor


class TextLossOutput(NamedTuple):
    """The result of a loss over text events; the fields are those of `LossOutput`.

    Attributes:
        loss: The reduced loss, a 0-d tensor. With `reduction="none"` it is `per_unit`.
        per_unit: `[offsets]` divergences in nats, in the order of the text; 0 where an offset is
            left out. Differentiable; neither the reduction nor the normalizer is applied.
        metrics: Metrics for the log.
    """

    loss: Tensor
    per_unit: Tensor
    metrics: TextMetrics


def make_text_metrics(per_offset: Tensor, stats: Tensor, index: AlignedIndex) -> TextMetrics:
    """Sum up the figures per offset without waiting for the device.

    Args:
        per_offset: `[offsets]` divergences.
        stats: `[N_STATS, offsets]`.
        index: The index, for what never reached the loss.

    Returns:
        The metrics.
    """
    per_offset = per_offset.detach()
    kinds = (OffsetStat.TREE, OffsetStat.NEXT_BYTE, OffsetStat.ONE_ROW)
    counts = [stats[kind].sum() for kind in kinds]
    sums = [(per_offset * stats[kind]).sum() for kind in kinds]
    means = stats.mean(1)
    return TextMetrics(
        offsets_tree=counts[0],
        offsets_next_byte=counts[1],
        offsets_one_row=counts[2],
        offsets_left_out=stats[OffsetStat.LEFT_OUT].sum(),
        offsets_spoiled=stats[OffsetStat.SPOILED].sum(),
        offsets_unlisted=stats[ListStat.UNLISTED].sum(),
        units_without_prefix=torch.full_like(counts[0], index.text_units_without_prefix),
        divergence_tree=sums[0] / counts[0],
        divergence_next_byte=sums[1] / counts[1],
        divergence_one_row=sums[2] / counts[2],
        mass_ended=means[OffsetStat.ENDED],
        mass_straddling=means[OffsetStat.STRADDLING],
        teacher_mass_control=means[OffsetStat.TEACHER_CONTROL],
        student_mass_control=means[OffsetStat.STUDENT_CONTROL],
        mass_largest_leaf=means[OffsetStat.LARGEST_LEAF],
        teacher_mass_unlisted=means[ListStat.TEACHER_UNLISTED],
    )
