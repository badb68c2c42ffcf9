"""Internal: the divergence over the leaves of text events, and its derivative by their masses."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from ....divergence import LOG_FLOOR

if TYPE_CHECKING:
    from torch import Tensor

    from ....divergence import Divergence


class Compared(NamedTuple):
    """Offsets whose leaves have been compared.

    Attributes:
        value: `[O]` divergences.
        largest: `[O]` the student's mass of its largest leaf.
        by_leaf: `[O, leaves]` the derivative by the student's masses; None if it is not wanted.
    """

    value: Tensor
    largest: Tensor
    by_leaf: Tensor | None


def compare_leaves(
    teacher: Tensor,
    student: Tensor,
    divergence: Divergence,
    floor: float,
    weight: Tensor | None,
) -> Compared:
    """Compare the leaves of several offsets.

    Args:
        teacher: `[O, leaves]` the teacher's masses, 0 where there is no leaf; overwritten.
        student: The same for the student.
        divergence: Value and derivative.
        floor: The least probability of a leaf under the teacher.
        weight: `[O]` factor of every offset's derivative; None if it is not wanted.

    Returns:
        Divergences, the largest leaves, and the derivative.
    """
    largest = student.amax(1)
    is_leaf = (teacher > 0) | (student > 0)
    tiny = torch.finfo(student.dtype).tiny
    total = student.sum(1, keepdim=True).clamp_(min=tiny)
    log_student = (student / total).log_().clamp_(min=LOG_FLOOR)
    total = teacher.sum(1, keepdim=True).clamp_(min=tiny)
    log_teacher = teacher.div_(total).clamp_(min=floor).log_().clamp_(min=LOG_FLOOR)
    log_teacher.masked_fill_(~is_leaf, LOG_FLOOR)
    grad = torch.empty_like(log_student)
    value = divergence(log_teacher=log_teacher, log_student=log_student, grad=grad)
    if weight is None:
        return Compared(value, largest, None)
    # Floored probabilities do not sum to 1, and a leaf without any student mass has no
    # derivative: a divergence may rely on either. By scores, derivatives sum to 0.
    grad.masked_fill_(student == 0, 0.0)
    excess = grad.sum(1, keepdim=True)
    by_leaf = grad.div_(student).sub_(excess).mul_(weight.unsqueeze(1))
    return Compared(value, largest, by_leaf.masked_fill_(student == 0, 0.0))
