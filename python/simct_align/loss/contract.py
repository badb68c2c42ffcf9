"""Internal: the base class of all losses, with their arguments, checks and output.

A loss compares two models over the units of an `AlignedIndex`. It takes tensors by keyword and
returns a `LossOutput`. A loss is a `torch.nn.Module` whose tables are non-persistent buffers, so
that `.to()` moves them. A subclass computes the value of a unit; everything else is here.
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
    from simct_align.inputs import RaggedIds
    from simct_align.top_k import TopKLogprobs

    from .columns import PairOfVocabularies
    from .metrics import LossMetrics

REDUCTIONS = ("unit", "mean", "token", "sum", "none")
#: The options of `AlignedBatch.index` that make each group of sections.
_OPTIONS: dict[str, dict[str, Any]] = {
    "first_ids": {"first_ids": True},
    "continuations": {"max_path": 8},
    "text_events": {"text_events": True},
}


class LossOutput(NamedTuple):
    """The result of a loss.

    Attributes:
        loss: The reduced loss, a 0-d tensor. With `reduction="none"` it is `per_unit`.
        per_unit: `[units]` divergences in nats, in the order of the index: SHARED and SPECIAL
            units first, then MULTI units. A unit that is left out has the value 0. Differentiable;
            neither the reduction nor the normalizer is applied.
        metrics: Metrics for the log, a `LossMetrics`.
    """

    loss: Tensor
    per_unit: Tensor
    metrics: LossMetrics


def one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return a value if it is one of the choices.

    Args:
        name: The argument's name, for the message.
        value: The value.
        choices: The accepted values.

    Returns:
        The value.

    Raises:
        ValueError: The value is not one of the choices.
    """
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")
    return value


def refuse_positional(loss: object, positional: tuple[object, ...], expected: str) -> None:
    """Refuse positional tensors: the teacher's and the student's could be swapped unnoticed.

    Args:
        loss: The loss, for the message.
        positional: The positional arguments of the call.
        expected: The keywords that the loss takes, for the message.

    Raises:
        TypeError: The call has positional arguments.
    """
    if positional:
        raise TypeError(
            f"{type(loss).__name__} takes keyword arguments only, got {len(positional)} "
            f"positional: call loss({expected})"
        )


def _is_packed(batch: AlignedBatch, side: str) -> bool:
    ids: RaggedIds = getattr(batch, side)
    return ids.packed


class Loss(torch.nn.Module):
    """The base class of all losses.

    Use a subclass: `SimCTLoss`, `LinearSimCTLoss` or a baseline.

    Args:
        aligner: The pair of vocabularies.
        temperature: The number that the logits of both sides are divided by. The loss is not
            multiplied by its square.
        reduction: What the sum over units is divided by: `"unit"` or `"mean"` divides by the
            number of units, `"token"` by the number of student tokens in the units, `"sum"` by
            1. `"none"` returns `per_unit` as the loss.
        chunk_bytes: The workspace to aim for, in bytes; None takes the device's default.
        continuations: Whether to keep the tables of spellings too.

    Raises:
        ValueError: A keyword is out of its range, or the shared vocabulary of the aligner
            contradicts its stops.

    Complexity:
        O(vocabulary) time and memory, once.
    """

    #: Workspace in bytes by device type; `"other"` is for device types that are not listed.
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
        """The groups of index sections that the loss reads in addition to the units."""
        return ()

    @property
    def index_options(self) -> dict[str, Any]:
        """The options of `AlignedBatch.index` that make the groups of `index_groups`."""
        return {
            name: value for group in self.index_groups for name, value in _OPTIONS[group].items()
        }

    def workspace(self, device: torch.device) -> int:
        """Return the workspace to aim for on a device.

        Args:
            device: The device.

        Returns:
            `chunk_bytes`, or the device's default.
        """
        if self.chunk_bytes is not None:
            return self.chunk_bytes
        return self.default_chunk_bytes.get(device.type, self.default_chunk_bytes["other"])

    def normalizer(self, index: AlignedIndex) -> int:
        """Return the number that the sum over an index's units is divided by.

        The number is known before any forward pass. Micro-batches and ranks can therefore add
        their numbers up and pass the sum as `normalizer=`.

        Args:
            index: The index.

        Returns:
            The number of units or of student tokens that take part, or 1, as the reduction wants.
        """
        return index.normalizer(self.reduction, "realized" if self.uses_multi else "shared")

    def check_logits(self, side: Side, logits: Tensor) -> None:
        """Refuse logits that do not fit the pair.

        Args:
            side: `"teacher"` or `"student"`.
            logits: `[tokens, columns]` or `[batch, length, columns]`.

        Raises:
            ValueError: The logits have a wrong rank, a dtype that is not floating, another device
                than the loss, or too few columns.
        """
        name = f"{side}_logits"
        if logits.dim() not in (2, 3) or not logits.is_floating_point():
            raise ValueError(
                f"{name}: expected floating [tokens, columns] or [batch, length, columns], "
                f"got {logits.dtype} of shape {tuple(logits.shape)}"
            )
        self.check_device(name, logits)
        self.columns.check_columns(logits.shape[-1], side, name)

    def check_lists(self, lists: TopKLogprobs) -> None:
        """Refuse lists of the teacher's likeliest tokens, which most losses cannot use.

        Args:
            lists: The lists.

        Raises:
            TypeError: The loss needs whole rows.
            ValueError: The lists do not fit the loss.
        """
        del lists
        raise TypeError(
            f"teacher_logits: {type(self).__name__} needs whole rows of logits, got TopKLogprobs; "
            "TextLoss, SimCTLoss, ALMLoss and ULDLoss with top_k= take lists"
        )

    def check_device(self, name: str, tensor: Tensor) -> None:
        """Refuse a tensor on another device than the loss.

        Args:
            name: The argument's name, for the message.
            tensor: The tensor.

        Raises:
            ValueError: The tensor is on another device.
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
        arguments: tuple[str, str],
    ) -> AlignedIndex:
        """Return an index that fits the tensors, as a tensor on the device of the loss.

        Args:
            index: An index, or a batch to make an index from.
            teacher: `[tokens, ...]` or `[batch, length, ...]` logits, hidden states or lists.
            student: The same for the student.
            arguments: The names of both arguments, for messages.

        Returns:
            The index.

        Raises:
            TypeError: `index` is neither an index nor a batch.
            ValueError: The index was made by an aligner of another pair, is on another device,
                lacks a group of sections that the loss reads, or was made for tensors of other
                shapes.

        Complexity:
            That of `AlignedBatch.index` for a batch; else at most one copy to the device.
        """
        if isinstance(index, AlignedBatch):
            batch, inputs = index, {"teacher": teacher, "student": student}
            # `[1, tokens, ...]` of several rows are packed: the layout is that of the ids.
            strides: dict[str, Any] = {
                f"{side}_stride": rows.shape[1]
                for side, rows in inputs.items()
                if rows.dim() == 3 and rows.shape[0] == len(batch) and not _is_packed(batch, side)
            }
            index = batch.index(**strides, **self.index_options).to(student.device)
        elif not isinstance(index, AlignedIndex):
            raise TypeError(
                f"index: expected an AlignedIndex or an AlignedBatch, got {type(index).__name__}"
            )
        if index.pair_digest != self.columns.pair_digest:
            raise ValueError(
                f"index: expected an index of the loss's pair of vocabularies (digest "
                f"{self.columns.pair_digest[:12]}), got one of another pair (digest "
                f"{index.pair_digest[:12]}): make the loss and the index with the same aligner"
            )
        for group in self.index_groups:
            if group not in index.groups:
                options = ", ".join(f"{name}={value}" for name, value in _OPTIONS[group].items())
                raise ValueError(
                    f"index: {type(self).__name__} reads the group {group!r}, which this index "
                    f"lacks: make the index with batch.index({options})"
                )
        index.check_logits("teacher", arguments[0], teacher.shape)
        index.check_logits("student", arguments[1], student.shape)
        if not isinstance(index.packed, torch.Tensor):
            packed = torch.from_numpy(index.packed).to(student.device, non_blocking=True)
            index = replace(index, packed=packed)
        self.check_device("index", index.packed)
        return index

    def weight(
        self, index: AlignedIndex, normalizer: Tensor | float | None, student: Tensor
    ) -> Tensor:
        """Return the factor of the sum over units, a 0-d tensor on the device.

        Args:
            index: The units.
            normalizer: The number to divide by; None takes `self.normalizer(index)`.
            student: A student input; gives the device and the dtype of the factor.

        Returns:
            One over the normalizer, or 1 where the reduction does not divide. float64 for a
            float64 input, else float32.

        Raises:
            ValueError: The reduction does not divide but a normalizer came, or the normalizer
                has more than one number.
        """
        dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
        if self.reduction in ("sum", "none"):
            if normalizer is not None:
                raise ValueError(
                    f"normalizer: reduction={self.reduction!r} does not divide by a normalizer; "
                    f"leave it out, or set reduction='unit' or 'token'"
                )
            return torch.ones((), dtype=dtype, device=student.device)
        if isinstance(normalizer, torch.Tensor):
            total = normalizer.detach().to(device=student.device, dtype=dtype, non_blocking=True)
            if total.dim() != 0:
                raise ValueError(
                    f"normalizer: expected a number or a 0-d tensor, got shape {tuple(total.shape)}"
                )
            # Without any unit the sum is 0, so the loss is 0 with any factor.
            return torch.where(total == 0, 1.0, total).reciprocal()
        number = self.normalizer(index) if normalizer is None else normalizer
        factor = 1.0 / number if number else 1.0
        return torch.full((), factor, dtype=dtype, device=student.device)

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
        """Return the output of the loss.

        Args:
            loss: The reduced loss.
            per_unit: `[units that take part]` divergences.
            stats: `[len(UnitStat), units that take part]` statistics of the units.
            index: The units.
            mass_shared: Whether `stats` has the masses of SHARED and SPECIAL units.
            mass_multi: Whether `stats` has the masses of MULTI units.

        Returns:
            The output, with a `per_unit` that covers all units of the index.
        """
        metrics = make_metrics(
            per_unit, stats, index, mass_shared=mass_shared, mass_multi=mass_multi
        )
        if per_unit.shape[0] < len(index):
            # MULTI units that do not take part are still units of the index.
            per_unit = torch.nn.functional.pad(per_unit, (0, len(index) - per_unit.shape[0]))
        return LossOutput(per_unit if self.reduction == "none" else loss, per_unit, metrics)
