"""What every loss is: keyword-only tensors in, a `LossOutput` out, one set of checks.

A loss compares two models over the units of an `AlignedIndex`. It is a `torch.nn.Module` whose
tables are non-persistent buffers, so that `.to()` moves it. A subclass says what a unit costs;
everything else is here.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch

from ..batch import AlignedBatch
from ..index import AlignedIndex
from .columns import PairColumns
from .metrics import make_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import Side

    from .columns import PairOfVocabularies
    from .metrics import LossMetrics

REDUCTIONS = ("unit", "mean", "token", "sum", "none")
#: What `AlignedBatch.index` takes to make a group of sections.
_OPTIONS: dict[str, dict[str, Any]] = {
    "first_ids": {"first_ids": True},
    "continuations": {"max_path": 8},
}


class LossOutput(NamedTuple):
    """What a loss returns.

    Attributes:
        loss: The reduced loss, or `per_unit` with `reduction="none"`.
        per_unit: `[units]` divergences in nats, in index order (SHARED and SPECIAL units, then
            MULTI), 0 where a unit is left out; differentiable, without reduction or normalizer.
        metrics: Metrics for the log.
    """

    loss: Tensor
    per_unit: Tensor
    metrics: LossMetrics


def one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return a value if it is one of the choices.

    Args:
        name: The argument's name, for the message.
        value: The value.
        choices: What is expected.

    Raises:
        ValueError: It is none of them.
    """
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")
    return value


def refuse_positional(loss: object, positional: tuple[object, ...], expected: str) -> None:
    """Refuse tensors without their names: the two models' have the same types.

    Args:
        loss: The loss, for the message.
        positional: The positional arguments of the call.
        expected: The keywords that it takes.

    Raises:
        TypeError: There are some.
    """
    if positional:
        raise TypeError(
            f"{type(loss).__name__} takes keyword arguments only, got {len(positional)} "
            f"positional: call loss({expected})"
        )


class Loss(torch.nn.Module):
    """The base of all losses.

    Args:
        aligner: The pair of vocabularies.
        temperature: Both sides' logits are divided by it; there is no factor T².
        reduction: What the sum over units is divided by: `"unit"` or `"mean"` (units),
            `"token"` (student tokens in them), `"sum"` (nothing); `"none"` returns
            `per_unit` as the loss.
        chunk_bytes: Workspace to aim for; None for the device's default.
        continuations: Keep the tables of spellings too.

    Raises:
        ValueError: A keyword is out of its range.
    """

    #: Workspace by device type, `"other"` for those that are not listed.
    default_chunk_bytes: ClassVar[dict[str, int]]

    def __init__(
        self,
        aligner: PairOfVocabularies,
        *,
        temperature: float,
        reduction: str,
        chunk_bytes: int | None,
        continuations: bool = False,
    ) -> None:
        super().__init__()
        self.reduction = one_of("reduction", reduction, REDUCTIONS)
        if not (temperature > 0.0 and math.isfinite(temperature)):
            raise ValueError(f"temperature: expected a positive number, got {temperature}")
        if chunk_bytes is not None and chunk_bytes <= 0:
            raise ValueError(f"chunk_bytes: expected a positive number, got {chunk_bytes}")
        self.temperature = float(temperature)
        self.chunk_bytes = chunk_bytes
        self.columns = PairColumns(aligner, continuations=continuations)

    @property
    def uses_multi(self) -> bool:
        """Whether MULTI units take part."""
        return True

    @property
    def index_groups(self) -> tuple[str, ...]:
        """The groups of sections that the loss reads of an index, beside the units."""
        return ()

    @property
    def index_options(self) -> dict[str, Any]:
        """The options of `AlignedBatch.index` that make the groups."""
        return {
            name: value for group in self.index_groups for name, value in _OPTIONS[group].items()
        }

    def workspace(self, device: torch.device) -> int:
        """Return the workspace in bytes on a device.

        Args:
            device: The device.
        """
        if self.chunk_bytes is not None:
            return self.chunk_bytes
        return self.default_chunk_bytes.get(device.type, self.default_chunk_bytes["other"])

    def normalizer(self, index: AlignedIndex) -> int:
        """Return what the sum over an index's units is divided by.

        Known before any forward pass, so that micro-batches and ranks can add it up and pass the
        sum as `normalizer=`.

        Args:
            index: The index.
        """
        return index.normalizer(self.reduction, "realized" if self.uses_multi else "shared")

    def check_logits(
        self, teacher_logits: Tensor, student_logits: Tensor, index: AlignedIndex | AlignedBatch
    ) -> AlignedIndex:
        """Refuse logits that do not fit the pair or the index; return the index for them.

        Args:
            teacher_logits: `[tokens, columns]` or `[batch, length, columns]`.
            student_logits: The same for the student.
            index: An index, or a batch to make one of.

        Raises:
            TypeError: The index is neither an index nor a batch.
            ValueError: Logits of a wrong rank, not floating, on another device, with too few
                columns or rows; and see `take_index`.
        """
        self._check_side("teacher", teacher_logits)
        self._check_side("student", student_logits)
        return self.take_index(
            index, teacher=teacher_logits, student=student_logits, argument="logits"
        )

    def _check_side(self, side: Side, logits: Tensor) -> None:
        name = f"{side}_logits"
        if logits.dim() not in (2, 3) or not logits.is_floating_point():
            raise ValueError(
                f"{name}: expected floating [tokens, columns] or [batch, length, columns], "
                f"got {logits.dtype} of shape {tuple(logits.shape)}"
            )
        self.check_device(name, logits)
        self.columns.check_columns(logits.shape[-1], side, name)

    def check_device(self, name: str, tensor: Tensor) -> None:
        """Refuse a tensor on another device than the loss's.

        Args:
            name: The argument's name, for the message.
            tensor: The tensor.

        Raises:
            ValueError: It is on another device.
        """
        expected = self.columns.student_ids.device
        if tensor.device != expected:
            raise ValueError(
                f"{name} is on {tensor.device}, but the loss is on {expected}: "
                f"move one of them with .to()"
            )

    def take_index(
        self,
        index: AlignedIndex | AlignedBatch,
        *,
        teacher: Tensor,
        student: Tensor,
        argument: str,
    ) -> AlignedIndex:
        """Return an index that fits the tensors, as a tensor on their device.

        Args:
            index: An index, or a batch to make one of.
            teacher: `[tokens, ...]` or `[batch, length, ...]` logits or hidden states.
            student: The same for the student.
            argument: Their arguments' names without the side, for messages.

        Raises:
            TypeError: Neither an index nor a batch.
            ValueError: An index of another pair, on another device, without what the loss needs,
                or made for tensors of other shapes.
        """
        if isinstance(index, AlignedBatch):
            index = index.index(
                teacher_stride=teacher.shape[1] if teacher.dim() == 3 else None,
                student_stride=student.shape[1] if student.dim() == 3 else None,
                **self.index_options,
            ).to(student.device)
        elif not isinstance(index, AlignedIndex):
            raise TypeError(
                f"index: expected an AlignedIndex or an AlignedBatch, got {type(index).__name__}"
            )
        if index.pair_digest != self.columns.pair_digest:
            raise ValueError(
                f"index: made by an aligner of another pair of vocabularies "
                f"({index.pair_digest[:12]}) than the loss ({self.columns.pair_digest[:12]})"
            )
        for group in self.index_groups:
            if group not in index.groups:
                options = ", ".join(f"{name}={value}" for name, value in _OPTIONS[group].items())
                raise ValueError(
                    f"index has no {group}, which {type(self).__name__} reads here: make it with "
                    f"batch.index({options})"
                )
        index.check_logits("teacher", f"teacher_{argument}", teacher.shape)
        index.check_logits("student", f"student_{argument}", student.shape)
        if not isinstance(index.packed, torch.Tensor):
            packed = torch.from_numpy(index.packed).to(student.device, non_blocking=True)
            index = replace(index, packed=packed)
        self.check_device("index", index.packed)
        return index

    def weight(
        self, index: AlignedIndex, normalizer: Tensor | float | None, student: Tensor
    ) -> Tensor:
        """Return what the units' sum is multiplied by, a 0-d tensor on the device.

        Args:
            index: The units.
            normalizer: What to divide by instead of the index's own number.
            student: A student input: its device, and the dtype that is computed in.

        Raises:
            ValueError: A normalizer for a reduction that divides by nothing, or several numbers.
        """
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        if self.reduction in ("sum", "none"):
            if normalizer is not None:
                raise ValueError(f"normalizer: reduction={self.reduction!r} divides by nothing")
            return torch.ones((), dtype=dtype, device=student.device)
        if isinstance(normalizer, torch.Tensor):
            total = normalizer.detach().to(device=student.device, dtype=dtype, non_blocking=True)
            if total.dim() != 0:
                raise ValueError(f"normalizer: expected one number, got shape {tuple(total.shape)}")
        else:
            number = self.normalizer(index) if normalizer is None else normalizer
            total = torch.full((), number, dtype=dtype, device=student.device)
        # Without any unit the sum is 0, and so is the loss.
        return torch.where(total == 0, 1.0, total).reciprocal()

    def output(
        self,
        loss: Tensor,
        per_unit: Tensor,
        stats: Tensor,
        index: AlignedIndex,
        *,
        mass_shared: bool = False,
        mass_multi: bool = False,
    ) -> LossOutput:
        """Return the output.

        Args:
            loss: The reduced loss.
            per_unit: `[units that take part]` divergences.
            stats: `[len(UnitStat), units that take part]`.
            index: The units.
            mass_shared: Whether SHARED and SPECIAL units have their masses in `stats`.
            mass_multi: Whether MULTI units have.
        """
        metrics = make_metrics(
            per_unit, stats, index, mass_shared=mass_shared, mass_multi=mass_multi
        )
        # MULTI units that take no part are still units of the index.
        per_unit = torch.nn.functional.pad(per_unit, (0, len(index) - per_unit.shape[0]))
        return LossOutput(per_unit if self.reduction == "none" else loss, per_unit, metrics)
