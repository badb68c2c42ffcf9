"""Internal: `MultiTeacherLoss`, the losses of several teachers over one student."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .backends.triton import scale_gradient
from .contract import Loss, LossOutput, refuse_positional
from .operator import FLOAT16_GRADIENT_SCALE

if TYPE_CHECKING:
    from torch import Tensor

    from .text_metrics import TextLossOutput

_STUDENT = "student_"


class MultiTeacherOutput(NamedTuple):
    """The result of `MultiTeacherLoss`.

    Attributes:
        loss: The weighted sum of the losses, a 0-d tensor, with the gradient.
        by_teacher: The output of every loss by the teacher's name, detached: `loss` before it is
            weighted, `per_unit` and `metrics`.
    """

    loss: Tensor
    by_teacher: dict[str, LossOutput | TextLossOutput]


class MultiTeacherLoss(torch.nn.Module):
    """The weighted sum of the losses of several teachers, over one forward pass of the student.

    Use it where several teachers, each with a tokenizer of its own, teach one student. Every
    teacher has an aligner, an index of every batch, and a loss of any kind. A plain sum of losses
    gives the same numbers, but holds one gradient by the student's logits for each teacher until
    the backward pass. This class adds the gradients up as they are computed: it holds one, and a
    second one while a loss is computed.

    Args:
        losses: The loss of every teacher, by a name of your choice. Losses may differ in kind and
            keywords. `reduction="none"` is refused.
        weights: The factor of every loss, by the same names. The default is 1 for each.

    Raises:
        TypeError: `losses` is not a mapping from names to losses, or a weight is not a number.
        ValueError: There is no loss, the names of `weights` are others, a weight is not finite, or
            a loss does not reduce.

    Complexity:
        The time of all losses; the memory of the largest one, and one more gradient.

    Example:
        >>> from simct_align import Aligner, SimCTLoss, TextLoss, Vocabulary
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> teachers = {
        ...     "pairs": Vocabulary.from_token_bytes([b"12", b"+"]),
        ...     "digits": Vocabulary.from_token_bytes([b"+", b"2", b"1"]),
        ... }
        >>> aligners = {name: Aligner(teacher, student) for name, teacher in teachers.items()}
        >>> loss_fn = MultiTeacherLoss(
        ...     {"pairs": SimCTLoss(aligners["pairs"]), "digits": TextLoss(aligners["digits"])},
        ...     weights={"pairs": 0.25, "digits": 0.75},
        ... )
        >>> student_ids = [[2, 0, 1, 2]]
        >>> student_logits = torch.zeros(4, 3, requires_grad=True)
        >>> out = loss_fn(
        ...     teachers={
        ...         "pairs": {
        ...             "teacher_logits": torch.zeros(3, 2),
        ...             "index": aligners["pairs"].align_batch([[1, 0, 1]], student_ids),
        ...         },
        ...         "digits": {
        ...             "teacher_logits": torch.zeros(4, 3),
        ...             "index": aligners["digits"].align_batch([[0, 2, 1, 0]], student_ids),
        ...         },
        ...     },
        ...     student_logits=student_logits,
        ... )
        >>> out.loss.backward()
        >>> sorted(out.by_teacher), student_logits.grad.shape
        (['digits', 'pairs'], torch.Size([4, 3]))
    """

    def __init__(
        self, losses: Mapping[str, Loss], *, weights: Mapping[str, float] | None = None
    ) -> None:
        super().__init__()
        if not isinstance(losses, Mapping):
            raise TypeError(
                f"losses: expected a mapping from names to losses, got {type(losses).__name__}"
            )
        if not losses:
            raise ValueError("losses: expected at least one loss")
        weights = dict.fromkeys(losses, 1.0) if weights is None else weights
        _check_names("weights", weights, losses)
        for name, loss in losses.items():
            if not isinstance(loss, Loss):
                raise TypeError(f"losses: {name!r} is a {type(loss).__name__}, expected a loss")
            if loss.reduction == "none":
                raise ValueError(
                    f"losses: {name!r} has reduction='none', whose values have no sum; expected "
                    "another reduction"
                )
            weight = weights[name]
            if not isinstance(weight, numbers.Real):
                found = type(weight).__name__
                raise TypeError(f"weights: {name!r} is a {found}, expected a number")
            if not math.isfinite(weight):
                raise ValueError(f"weights: {name!r} is {weight}, expected a finite number")
        self.names = tuple(losses)
        # A name may have characters that names of modules have not.
        self.losses = torch.nn.ModuleList(losses.values())
        self.weights = tuple(float(weights[name]) for name in losses)

    def extra_repr(self) -> str:
        """Return names and weights for `repr`."""
        return ", ".join(
            f"{name}={weight}" for name, weight in zip(self.names, self.weights, strict=True)
        )

    def forward(
        self,
        *positional: object,
        teachers: Mapping[str, Mapping[str, Any]],
        **student: Any,
    ) -> MultiTeacherOutput:
        """Compute all losses and their weighted sum.

        Args:
            *positional: Refused.
            teachers: For every teacher the keywords of its loss that are not the student's:
                `index=`, the teacher in one of its forms, such as `teacher_logits=`, and
                `normalizer=` if it is wanted.
            **student: The student's keywords, which all losses get: `student_logits=`, or
                `student_hidden=`, `student_weight=` and so on for the losses from hidden states.

        Returns:
            The sum, and the output of every loss.

        Raises:
            TypeError: There are positional arguments, keywords of the student do not begin with
                `student_`, or a loss refuses a type.
            ValueError: The names of `teachers` are not those of the losses, or a loss refuses a
                value. The message names the teacher.
        """
        refuse_positional(self, positional, "teachers={name: {...}}, student_logits=...")
        _check_names("teachers", teachers, self.names)
        for name in student:
            if not name.startswith(_STUDENT):
                raise TypeError(
                    f"{type(self).__name__}: {name} is not the student's: pass it in teachers[name]"
                )
        tensors = {name: each for name, each in student.items() if isinstance(each, torch.Tensor)}
        others = {name: each for name, each in student.items() if name not in tensors}
        job = _Job(self, teachers, tuple(tensors), others, torch.is_grad_enabled())
        by_teacher: dict[str, LossOutput | TextLossOutput] = {}
        loss = _WeightedSum.apply(job, by_teacher, *tensors.values())
        return MultiTeacherOutput(loss, by_teacher)


def _check_names(argument: str, found: Mapping[str, Any], expected: Any) -> None:
    if not isinstance(found, Mapping):
        raise TypeError(f"{argument}: expected a mapping, got {type(found).__name__}")
    if set(found) != set(expected):
        raise ValueError(
            f"{argument}: expected the names {sorted(expected)}, got {sorted(map(str, found))}"
        )


@dataclass(frozen=True)
class _Job:
    """One call.

    Attributes:
        loss: The losses and their weights.
        teachers: The keywords of every teacher.
        names: The student's keywords that are tensors.
        others: The student's other keywords.
        grad_enabled: Whether a gradient may be wanted.
    """

    loss: MultiTeacherLoss
    teachers: Mapping[str, Mapping[str, Any]]
    names: tuple[str, ...]
    others: dict[str, Any]
    grad_enabled: bool

    def run(
        self, student: tuple[Tensor, ...], wanted: tuple[bool, ...], factor: Tensor | float
    ) -> tuple[dict[str, Any], tuple[Tensor | None, ...]]:
        """Compute all losses, and the gradient by the student's tensors.

        Args:
            student: The student's tensors.
            wanted: Which of them need a gradient.
            factor: What the gradient is multiplied by.

        Returns:
            The detached outputs by name, and the gradients, None where one is not wanted.
        """
        leaves = [
            each.detach().requires_grad_(need) for each, need in zip(student, wanted, strict=True)
        ]
        keywords = dict(zip(self.names, leaves, strict=True)) | self.others
        outputs = {}
        of_loss = zip(self.loss.names, self.loss.losses, self.loss.weights, strict=True)
        with torch.set_grad_enabled(any(wanted)):
            for name, loss, weight in of_loss:
                try:
                    out = loss(**self.teachers[name], **keywords)
                except (TypeError, ValueError) as error:
                    kind = TypeError if isinstance(error, TypeError) else ValueError
                    raise kind(f"teacher {name!r}: {error}") from error
                if out.loss.requires_grad:
                    # Added to the gradients of the losses before, in place.
                    (out.loss * (weight * factor)).backward()
                outputs[name] = out._replace(loss=out.loss.detach(), per_unit=out.per_unit.detach())
        gradients = tuple(
            None if not need else torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            for leaf, need in zip(leaves, wanted, strict=True)
        )
        return outputs, gradients


class _WeightedSum(torch.autograd.Function):
    """The sum of weighted losses, whose gradient is computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, job: _Job, by_teacher: dict[str, Any], *student: Tensor) -> Tensor:
        wanted = tuple(need and job.grad_enabled for need in ctx.needs_input_grad[2:])
        # As in the losses themselves: float16 has no room for small gradients.
        is_half = any(each.dtype == torch.float16 for each in student)
        ctx.scale = FLOAT16_GRADIENT_SCALE if is_half else 1.0
        outputs, ctx.gradients = job.run(student, wanted, ctx.scale)
        by_teacher.update(outputs)
        ctx.job, ctx.wanted = job, wanted
        ctx.save_for_backward(*student)
        weighted = [
            weight * outputs[name].loss
            for name, weight in zip(job.loss.names, job.loss.weights, strict=True)
        ]
        return torch.stack(weighted).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Any, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:  # a second backward pass: the first one has changed them
            _, gradients = ctx.job.run(ctx.saved_tensors, ctx.wanted, d_loss)
        else:
            factor = d_loss / ctx.scale
            gradients = tuple(
                each if each is None else scale_gradient(each, factor) for each in gradients
            )
        return (None, None, *gradients)
