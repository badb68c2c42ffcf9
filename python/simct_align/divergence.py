"""Divergences between rows of log-probabilities, each with its value and its derivative.

Every divergence `D(q_S, q_T)` is a sum over the candidates of a row, in nats. The student's scores
`a` enter through `q_S = softmax(a)`, so with `e = dD / dq_S` the derivative that the loss needs is

    dD / da = q_S * (e - sum(q_S * e)).

Log-probabilities are finite: the loss floors them at `LOG_FLOOR`, whose exponential is 0 in float32
and float64. A candidate of probability 0 under both models therefore adds 0 and never NaN. A
candidate whose probability is 0 only under the model that is divided by adds `1e4` times the other
model's probability.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "JSD",
    "LOG_FLOOR",
    "Divergence",
    "ForwardKL",
    "ReverseKL",
    "SkewedForwardKL",
    "SkewedReverseKL",
    "TermwiseDivergence",
    "TotalVariation",
    "as_divergence",
]

LOG_FLOOR = -1.0e4
"""The smallest log-probability that a divergence gets from a loss; `exp(LOG_FLOOR)` is 0."""


@runtime_checkable
class Divergence(Protocol):
    """The interface of a divergence: a hashable object that is called as below.

    Implement this interface to add a divergence. A frozen dataclass with one method is enough.
    """

    def __call__(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """Return the divergence of every row, and write the derivative into `grad`.

        Args:
            log_teacher: `[rows, candidates]` finite log-probabilities; may be overwritten.
            log_student: The same for the student; may be overwritten.
            grad: `[rows, candidates]`; receives the derivative by the student's scores.

        Returns:
            `[rows]` divergences in nats.

        Complexity:
            O(rows x candidates) time, and at most a constant number of arrays of that size.
        """
        ...


class TermwiseDivergence(ABC):
    """The base class of divergences whose candidates can be added up in parts.

    Use this class for a divergence that a loss with shards of the vocabulary can compute: every
    process has a part of the candidates there (`VocabularyShard`). A subclass is a frozen dataclass
    with the method `terms`, and is a `Divergence` through it.

    Example:
        >>> import torch
        >>> class Squares(TermwiseDivergence):
        ...     def terms(self, *, log_teacher, log_student, grad):
        ...         gap = log_student.exp_() - log_teacher.exp()
        ...         torch.mul(log_student, 2 * gap, out=grad)
        ...         return gap.square().sum(1)
        >>> same = torch.tensor([[0.5, 0.5]]).log()
        >>> Squares()(log_teacher=same, log_student=same.clone(), grad=torch.empty(1, 2)).item()
        0.0
    """

    @abstractmethod
    def terms(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """Return the sum of the terms of every row, and replace `log_student` by `q_S`.

        The candidates may be a part of those of their rows, so that no sum over them is known: with
        `e` the derivative by `q_S` (any constant may be added to `e`), write `q_S e`.

        Args:
            log_teacher: `[rows, candidates]` finite log-probabilities; may be overwritten.
            log_student: The same for the student; receives the probabilities.
            grad: `[rows, candidates]`; receives `q_S e`.

        Returns:
            `[rows]` sums of terms, in nats.
        """

    def __call__(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """See `Divergence`."""
        value = self.terms(log_teacher=log_teacher, log_student=log_student, grad=grad)
        through_softmax(log_student, grad, grad.sum(1))
        return value


def through_softmax(prob: Tensor, grad: Tensor, mean: Tensor) -> None:
    """Turn `q_S e` into the derivative by the scores, `q_S (e - sum(q_S e))`.

    Args:
        prob: `[rows, candidates]` `q_S`.
        grad: `[rows, candidates]` `q_S e`; changed in place.
        mean: `[rows]` the sum of `q_S e` over all candidates of the row.
    """
    grad.addcmul_(prob, mean.unsqueeze(1), value=-1.0)


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the dot product of every pair of rows."""
    result: Tensor = torch.linalg.vecdot(left, right)
    return result


@dataclass(frozen=True)
class ReverseKL(TermwiseDivergence):
    """The reverse KL, `KL(S || T)`: mode-seeking, the default of the losses.

    Example:
        >>> import torch
        >>> s, t = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> ReverseKL()(log_teacher=t, log_student=s, grad=torch.empty_like(s)).item()
        0.0
    """

    def terms(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """See `TermwiseDivergence`. `e = log q_S - log q_T`, up to a constant."""
        difference = torch.sub(log_student, log_teacher, out=log_teacher)
        return torch.mul(log_student.exp_(), difference, out=grad).sum(1)

    def __call__(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """See `Divergence`: the sum of `q_S e` is the divergence, which saves a pass."""
        value = self.terms(log_teacher=log_teacher, log_student=log_student, grad=grad)
        through_softmax(log_student, grad, value)
        return value


@dataclass(frozen=True)
class ForwardKL(TermwiseDivergence):
    """The forward KL, `KL(T || S)`: mass-covering, the divergence of ordinary distillation."""

    def terms(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """See `TermwiseDivergence`. `q_S e = -q_T`."""
        teacher = torch.exp(log_teacher, out=grad)
        value = _dot(teacher, log_teacher.sub_(log_student))
        log_student.exp_()
        teacher.neg_()
        return value


@dataclass(frozen=True)
class TotalVariation(TermwiseDivergence):
    """The total variation, `sum(|q_S - q_T|) / 2`; the derivative is 0 where `q_S = q_T`."""

    def terms(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """See `TermwiseDivergence`. `e = sign(q_S - q_T) / 2`."""
        prob = log_student.exp_()
        gap = log_teacher.exp_().neg_().add_(prob)
        value = gap.abs().sum(1).mul_(0.5)
        torch.mul(prob, gap.sign_().mul_(0.5), out=grad)
        return value


@dataclass(frozen=True)
class JSD(TermwiseDivergence):
    """The generalised Jensen-Shannon divergence, `beta KL(T || m) + (1 - beta) KL(S || m)`.

    Use this divergence as a compromise between both KLs. The mixture is
    `m = (1 - beta) S + beta T`. At the ends of `beta` the divergence is, by convention, the limit
    of the scaled divergence: `KL(T || S)` at 0 and `KL(S || T)` at 1.

    Args:
        beta: A number in [0, 1].

    Raises:
        ValueError: `beta` is outside [0, 1].
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"JSD: beta: expected a number in [0, 1], got {self.beta}")

    def terms(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """See `TermwiseDivergence`. `e = (1 - beta) (log q_S - log m)`, up to a constant."""
        if self.beta == 0.0:
            return ForwardKL().terms(log_teacher=log_teacher, log_student=log_student, grad=grad)
        if self.beta == 1.0:
            return ReverseKL().terms(log_teacher=log_teacher, log_student=log_student, grad=grad)
        mixed = torch.logaddexp(
            log_student + math.log1p(-self.beta), log_teacher + math.log(self.beta)
        )
        teacher = _dot(log_teacher.exp(), log_teacher.sub_(mixed))
        by_prob = torch.sub(log_student, mixed, out=mixed).mul_(1.0 - self.beta)
        student = torch.mul(log_student.exp_(), by_prob, out=grad).sum(1)
        return student.add_(teacher, alpha=self.beta)


@dataclass(frozen=True)
class SkewedForwardKL(TermwiseDivergence):
    """The skewed forward KL, `KL(T || alpha T + (1 - alpha) S)`, which stays bounded.

    Args:
        alpha: A number in [0, 1); 0 is the forward KL.

    Raises:
        ValueError: `alpha` is outside [0, 1). At 1 the divergence would be 0 everywhere.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha < 1.0:
            raise ValueError(
                f"SkewedForwardKL: alpha: expected a number in [0, 1), got {self.alpha}"
            )

    def terms(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """See `TermwiseDivergence`. `q_S e = -q_T (1 - alpha) q_S / m`, without a division."""
        if self.alpha == 0.0:
            return ForwardKL().terms(log_teacher=log_teacher, log_student=log_student, grad=grad)
        scaled_student = log_student + math.log1p(-self.alpha)
        mixed = torch.logaddexp(log_teacher + math.log(self.alpha), scaled_student)
        teacher = log_teacher.exp()
        torch.mul(scaled_student.sub_(mixed).exp_(), teacher, out=grad).neg_()
        log_student.exp_()
        return _dot(teacher, log_teacher.sub_(mixed))


@dataclass(frozen=True)
class SkewedReverseKL(TermwiseDivergence):
    """The skewed reverse KL, `KL(S || alpha S + (1 - alpha) T)`, which stays bounded.

    Args:
        alpha: A number in [0, 1); 0 is the reverse KL.

    Raises:
        ValueError: `alpha` is outside [0, 1). At 1 the divergence would be 0 everywhere.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha < 1.0:
            raise ValueError(
                f"SkewedReverseKL: alpha: expected a number in [0, 1), got {self.alpha}"
            )

    def terms(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """See `TermwiseDivergence`. `e = log q_S - log m - alpha q_S / m`, up to a constant."""
        if self.alpha == 0.0:
            return ReverseKL().terms(log_teacher=log_teacher, log_student=log_student, grad=grad)
        mixed = torch.logaddexp(
            log_student + math.log(self.alpha), log_teacher + math.log1p(-self.alpha)
        )
        ratio = torch.sub(log_student, mixed, out=mixed)
        prob = log_student.exp_()
        value = _dot(prob, ratio)
        torch.mul(prob, ratio - ratio.exp().mul_(self.alpha), out=grad)
        return value


_BY_NAME: dict[str, Divergence] = {
    "reverse_kl": ReverseKL(),
    "forward_kl": ForwardKL(),
    "tvd": TotalVariation(),
    "jsd": JSD(),
}


def as_divergence(divergence: str | Divergence) -> Divergence:
    """Return the divergence of a name.

    Args:
        divergence: `"reverse_kl"`, `"forward_kl"`, `"tvd"`, `"jsd"` (beta 0.5), or a
            `Divergence`, which is returned as it is.

    Returns:
        The divergence.

    Raises:
        TypeError: `divergence` is neither a name nor callable.
        ValueError: No divergence has the name.

    Example:
        >>> as_divergence("reverse_kl")
        ReverseKL()
    """
    if isinstance(divergence, str):
        if divergence not in _BY_NAME:
            raise ValueError(
                f"divergence: expected one of {sorted(_BY_NAME)} or an object such as "
                f"JSD(beta=0.5), got {divergence!r}"
            )
        return _BY_NAME[divergence]
    if not isinstance(divergence, Divergence):
        raise TypeError(
            f"divergence: expected a name or a Divergence, got {type(divergence).__name__}"
        )
    return divergence
