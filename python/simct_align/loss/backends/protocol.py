"""Internal: the interface between the losses and a back end.

The engine cuts the units into chunks, keeps the statistics of every unit, and decides which units
take part. A back end turns rows of logits into scores, compares the scores of both sides, and
writes the rows of the gradient: the few calls in which nearly all of the time is spent. `Scores`
belong to the back end that made them. The engine passes scores on and reads only their masses, so
a back end may keep whole rows in its scores, or only row numbers. A back end can do without the
engine, too: it then returns a `UnitRun`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from simct_align import index

    from ...divergence import Divergence
    from ..columns import SideColumns
    from ..engine import Result
    from ..layout import IndexSizes, IndexView, SideUnits
    from ..text_blocks import TreeBlocks
    from ..text_layout import TextSideTable, TextSideView, TreeTensors


@dataclass(frozen=True)
class RowSettings:
    """Settings for reading and writing rows of logits.

    Attributes:
        temperature: The number that logits are divided by.
        chunk_bytes: The workspace to aim for, in bytes.
        gradient: Whether the student's gradient is wanted.
        dtype: The compute dtype, float32 or float64.
    """

    temperature: float
    chunk_bytes: int
    gradient: bool
    dtype: torch.dtype


@dataclass(frozen=True)
class Settings(RowSettings):
    """The settings of a loss.

    Attributes:
        score: One of `formulas.SCORES`.
        divergence: The divergence, with its derivative.
        multi: Whether MULTI units take part.
        min_teacher_mass: The smallest teacher mass of a unit that is not left out.
        mass_multi: Whether the mass of the candidates is wanted at MULTI units.
        mass_shared: Whether the mass of the candidates is wanted at SHARED and SPECIAL units.
        on_path: Whether on-path continuations are candidates.
        scratch_bytes: The part of the workspace for elementwise arrays over scores.
    """

    score: str
    divergence: Divergence
    multi: bool
    min_teacher_mass: float
    mass_multi: bool
    mass_shared: bool
    on_path: bool
    scratch_bytes: int


@dataclass(frozen=True)
class Logits:
    """Ready-made logits.

    Attributes:
        logits: `[tokens, columns]` or `[batch, length, columns]`.
        inplace: Whether a back end may write the gradient over the logits. It then returns them as
            the gradient.
    """

    logits: Tensor
    inplace: bool = False

    @property
    def columns(self) -> int:
        """The number of logit columns."""
        return self.logits.shape[-1]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the logits."""
        return self.logits.dtype


@dataclass(frozen=True)
class Head:
    """Logits as `softcap tanh(scale (hidden weight^T + bias) / softcap)`.

    Attributes:
        hidden: `[tokens, width]` or `[batch, length, width]`.
        weight: `[columns, width]`.
        bias: `[columns]`, None without a bias.
        softcap: The bound of the logits' absolute values, 0 without a soft-cap.
        scale: The factor of the product.
        weight_gradient: Whether the gradient by the weight is wanted, too.
        bias_gradient: Whether the gradient by the bias is wanted, too.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    softcap: float
    scale: float
    weight_gradient: bool = False
    bias_gradient: bool = False

    @property
    def columns(self) -> int:
        """The number of logit columns."""
        return self.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the hidden states."""
        return self.hidden.dtype


@dataclass(frozen=True)
class Lists:
    """The likeliest tokens of every row, of a teacher whose other logits are not known.

    Attributes:
        ids: `[tokens, K]` or `[batch, length, K]` token ids, int64; negative where a list is
            shorter.
        logprobs: Their log-probabilities, at the loss's temperature.
    """

    ids: Tensor
    logprobs: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the log-probabilities."""
        return self.logprobs.dtype


@dataclass(frozen=True)
class SideProblem:
    """One model's side of a problem.

    Attributes:
        source: The logits, the hidden states and the output embedding, or, of a teacher, lists.
        columns: The model's logit columns.
        units: The model's side of the units.
    """

    source: Logits | Head | Lists
    columns: SideColumns
    units: SideUnits


@dataclass(frozen=True)
class Problem:
    """One call of a loss.

    Attributes:
        teacher: The teacher's side.
        student: The student's side.
        index: The sections of the packed index.
        n_shared: Number of SHARED and SPECIAL units, which come first.
        n_multi: Number of MULTI units, which follow.
        realized_column: `[n_multi]` shared column of the realized text, -1 if there is none.
        stop_column: Shared column of the stops, -1 if there are none.
        settings: The settings of the loss.
    """

    teacher: SideProblem
    student: SideProblem
    index: IndexView
    n_shared: int
    n_multi: int
    realized_column: Tensor
    stop_column: int
    settings: Settings

    @property
    def n_units(self) -> int:
        """The number of units that take part."""
        return self.n_shared + (self.n_multi if self.settings.multi else 0)


class Scores(Protocol):
    """One side's scores of a chunk of c units, in the form that the back end chooses.

    Attributes:
        shared_mass: `[c]` the model's mass on the shared tokens; None if masses are not wanted.
        realized_mass: `[c]` the mass that the realized unit adds; None also at SHARED and SPECIAL
            units.

    If the teacher's source is `Lists`, its scores also have `unlisted`, `[c]` the probability of
    all tokens that are not listed together, and `lacks`, `[c]` whether the lists lack what the unit
    needs.
    """

    @property
    def shared_mass(self) -> Tensor | None: ...  # noqa: D102
    @property
    def realized_mass(self) -> Tensor | None: ...  # noqa: D102


S = TypeVar("S", bound=Scores)
"""The type of a back end's scores."""
S_co = TypeVar("S_co", bound=Scores, covariant=True)


class Side(Protocol[S_co]):
    """One model's rows on a back end."""

    def scores(self, units: slice, *, multi: bool, mass: bool) -> S_co:
        """Score the candidates of a chunk of units.

        Args:
            units: Units of the problem, either all SHARED and SPECIAL or all MULTI.
            multi: Whether the units are MULTI.
            mass: Whether the masses are wanted.

        Returns:
            The scores of the chunk.
        """
        ...


class StudentSide(Side[S], Protocol[S]):
    """The student's rows, with their gradient."""

    def accumulate(self, scores: S) -> None:
        """Accumulate the gradient by the rows of a chunk, after `Computation.compare`.

        Args:
            scores: The student's scores of the chunk; the engine does not use them again.
        """
        ...

    def gradients(self) -> list[Tensor]:
        """Return the gradients by the source's tensors.

        Returns:
            One gradient for each tensor, in the dtype of the tensor; an empty list if gradients
            are not wanted.
        """
        ...


class Computation(Protocol[S]):
    """A problem on a back end."""

    @property
    def teacher(self) -> Side[S]:
        """The teacher's rows."""
        ...

    @property
    def student(self) -> StudentSide[S]:
        """The student's rows."""
        ...

    def units_per_chunk(self, *, multi: bool) -> int:
        """Return the number of units of a chunk.

        Args:
            multi: Whether the chunk has MULTI units.

        Returns:
            The number, at least 1.
        """
        ...

    def prepare_paths(self) -> None:
        """Read the rows of the realized paths' later steps; called before all MULTI units."""
        ...

    def finish_paths(self) -> None:
        """Write the gradient by the rows of `prepare_paths`; called after all MULTI units."""
        ...

    def compare(self, teacher: S, student: S, grad: Tensor | None) -> Tensor:
        """Return the divergences of a chunk, and prepare the student's scores for `accumulate`.

        Args:
            teacher: The teacher's scores.
            student: The student's scores.
            grad: `[c]` the factor of every unit's derivative; None if gradients are not wanted.

        Returns:
            `[c]` divergences.
        """
        ...


@runtime_checkable
class UnitRun(Protocol):
    """A problem on a back end that does without the engine."""

    def run(self, weight: Tensor) -> Result:
        """Compute everything.

        Args:
            weight: `[]` or `[units]` factor of every unit's gradient.

        Returns:
            Divergences and statistics of the units.
        """
        ...

    def gradients(self) -> list[Tensor]:
        """Return the gradients by the student's tensors; see `StudentSide.gradients`."""
        ...


@runtime_checkable
class Backend(Protocol):
    """A back end: computes losses on a device.

    Attributes:
        name: The name of the back end, for `backend=` and messages.
    """

    name: str

    def refuses(self, problem: Problem) -> str | None:
        """Return the reason why the back end cannot compute a problem.

        Args:
            problem: The problem.

        Returns:
            The reason, for the log; `TorchBackend` then computes the problem. None if the back
            end can compute it.
        """
        ...

    def start(self, problem: Problem) -> Computation[Any] | UnitRun:
        """Begin to compute a problem.

        Args:
            problem: The problem.

        Returns:
            The problem on this back end: its expensive parts, for the engine, or all of it.
        """
        ...


@dataclass(frozen=True)
class TextSettings(RowSettings):
    """The settings of a loss over text events.

    Attributes:
        divergence: The divergence, with its derivative.
        epsilon: The share of mass that may end unknown.
        floor: The least probability of a leaf under the teacher.
        straddled: `"byte"` or `"tree"`.
    """

    divergence: Divergence
    epsilon: float
    floor: float
    straddled: str


@dataclass(frozen=True)
class TextSide:
    """One model's side of a `TextProblem`.

    Attributes:
        source: See `SideProblem`.
        columns: The model's logit columns.
        table: The model's tokens in the joint tree.
        events: The model's text rows and sources.
    """

    source: Logits | Head | Lists
    columns: SideColumns
    table: TextSideTable
    events: TextSideView


@dataclass(frozen=True)
class TextProblem:
    """One call of a loss over text events.

    Attributes:
        teacher: The teacher's side.
        student: The student's side.
        tree: The joint tree of both vocabularies.
        blocks: The tree cut into blocks.
        sizes: The sizes of the index.
        host: The packed index on the host.
        settings: The settings of the loss.
    """

    teacher: TextSide
    student: TextSide
    tree: TreeTensors
    blocks: TreeBlocks
    sizes: IndexSizes
    host: Tensor
    settings: TextSettings

    @property
    def sides(self) -> dict[index.Side, TextSide]:
        """Both sides by name."""
        return {"teacher": self.teacher, "student": self.student}


class TextRun(Protocol):
    """A `TextProblem` on a back end."""

    def run(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Compute everything.

        Args:
            weight: `[]` or `[offsets]` factor of every offset's gradient.

        Returns:
            `[offsets]` divergences, and `[len(OffsetStat), offsets]` figures, followed by those of
            `ListStat` if the back end takes lists.
        """
        ...

    def gradients(self) -> list[Tensor]:
        """Return the gradients by the student's tensors; see `StudentSide.gradients`."""
        ...


@runtime_checkable
class TextBackend(Protocol):
    """A back end that also computes losses over text events.

    Attributes:
        name: See `Backend`.
    """

    name: str

    def refuses_text(self, problem: TextProblem) -> str | None:
        """Return the reason why the back end cannot compute a problem; see `Backend.refuses`.

        Args:
            problem: The problem.
        """
        ...

    def start_text(self, problem: TextProblem) -> TextRun:
        """Begin to compute a problem.

        Args:
            problem: The problem.

        Returns:
            The problem on this back end.
        """
        ...
