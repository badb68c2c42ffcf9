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


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Return the dot product of every pair of rows."""
    result: Tensor = torch.linalg.vecdot(left, right)
    return result


def _through_softmax(prob: Tensor, by_prob: Tensor, out: Tensor) -> None:
    """Write `prob * (by_prob - sum(prob * by_prob))` to `out`, which may be either argument."""
    mean = _dot(prob, by_prob).unsqueeze(1)
    torch.mul(prob, by_prob - mean, out=out)


@dataclass(frozen=True)
class ReverseKL:
    """The reverse KL, `KL(S || T)`: mode-seeking, the default of the losses.

    Example:
        >>> import torch
        >>> s, t = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.5, 0.5]]).log()
        >>> ReverseKL()(log_teacher=t, log_student=s, grad=torch.empty_like(s)).item()
        0.0
    """

    def __call__(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """See `Divergence`. With `d = log q_S - log q_T`: `dD/da = q_S * (d - D)`."""
        prob = torch.exp(log_student, out=grad)
        difference = log_student.sub_(log_teacher)
        value = _dot(prob, difference)
        prob.mul_(difference.sub_(value.unsqueeze(1)))
        return value


@dataclass(frozen=True)
class ForwardKL:
    """The forward KL, `KL(T || S)`: mass-covering, the divergence of ordinary distillation."""

    def __call__(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """See `Divergence`. `dD/da = q_S - q_T`."""
        torch.exp(log_student, out=grad)
        teacher = log_teacher.exp()
        value = _dot(teacher, log_teacher.sub_(log_student))
        grad.sub_(teacher)
        return value


@dataclass(frozen=True)
class TotalVariation:
    """The total variation, `sum(|q_S - q_T|) / 2`; the derivative is 0 where `q_S = q_T`."""

    def __call__(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """See `Divergence`. `e = sign(q_S - q_T) / 2`."""
        prob = log_student.exp_()
        gap = log_teacher.exp_().neg_().add_(prob)
        value = gap.abs().sum(1).mul_(0.5)
        _through_softmax(prob, gap.sign_().mul_(0.5), grad)
        return value


@dataclass(frozen=True)
class JSD:
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

    def __call__(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """See `Divergence`. `e = (1 - beta) (log q_S - log m)`, up to a constant."""
        if self.beta == 0.0:
            return ForwardKL()(log_teacher=log_teacher, log_student=log_student, grad=grad)
        if self.beta == 1.0:
            return ReverseKL()(log_teacher=log_teacher, log_student=log_student, grad=grad)
        mixed = torch.logaddexp(
            log_student + math.log1p(-self.beta), log_teacher + math.log(self.beta)
        )
        teacher = _dot(log_teacher.exp(), log_teacher.sub_(mixed))
        prob = torch.exp(log_student, out=grad)
        by_prob = log_student.sub_(mixed).mul_(1.0 - self.beta)
        value = _dot(prob, by_prob).add_(teacher, alpha=self.beta)
        _through_softmax(prob, by_prob, grad)
        return value


@dataclass(frozen=True)
class SkewedForwardKL:
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

    def __call__(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """See `Divergence`. `q_S e = -q_T (1 - alpha) q_S / m`, computed without a division."""
        if self.alpha == 0.0:
            return ForwardKL()(log_teacher=log_teacher, log_student=log_student, grad=grad)
        scaled_student = log_student + math.log1p(-self.alpha)
        mixed = torch.logaddexp(log_teacher + math.log(self.alpha), scaled_student)
        teacher = log_teacher.exp()
        weighted = scaled_student.sub_(mixed).exp_().mul_(teacher)
        value = _dot(teacher, log_teacher.sub_(mixed))
        torch.mul(log_student.exp_(), weighted.sum(1, keepdim=True), out=grad)
        grad.sub_(weighted)
        return value


@dataclass(frozen=True)
class SkewedReverseKL:
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

    def __call__(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        """See `Divergence`. `e = log q_S - log m - alpha q_S / m`, up to a constant."""
        if self.alpha == 0.0:
            return ReverseKL()(log_teacher=log_teacher, log_student=log_student, grad=grad)
        mixed = torch.logaddexp(
            log_student + math.log(self.alpha), log_teacher + math.log1p(-self.alpha)
        )
        prob = torch.exp(log_student, out=grad)
        ratio = log_student.sub_(mixed)
        value = _dot(prob, ratio)
        _through_softmax(prob, ratio - ratio.exp().mul_(self.alpha), grad)
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
