"""What the losses ask of a back end: the few calls in which nearly all of the time is spent.

The engine cuts the units into chunks, keeps the figures per unit, and decides which units take
part. A back end turns rows of logits into scores, compares two sides' scores, and writes the
gradient's rows. `Scores` belong to the back end that made them: the engine hands them on and reads
nothing of them except the masses, so a back end may keep whole rows there, or only row numbers.

To add one, write a class with the attributes of `Backend` and pass an object of it to a loss as
`backend=`, or give it a name with `register_backend`. `TorchBackend` is the reference; what a
back end refuses is computed by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ...divergence import Divergence
    from ..columns import SideColumns
    from ..layout import SideUnits


@dataclass(frozen=True)
class RowSettings:
    """What reading and writing rows of logits depends on.

    Attributes:
        temperature: Logits are divided by it.
        chunk_bytes: Workspace to aim for.
        gradient: Whether the student's gradient is wanted.
        dtype: What is computed in, float32 or float64.
    """

    temperature: float
    chunk_bytes: int
    gradient: bool
    dtype: torch.dtype


@dataclass(frozen=True)
class Settings(RowSettings):
    """What the caller of a loss chose.

    Attributes:
        score: One of `formulas.SCORES`.
        divergence: Value and derivative.
        multi: Whether MULTI units take part.
        min_teacher_mass: Units below this add 0.
        mass_multi: Whether the mass of the candidates is wanted at MULTI units.
        mass_shared: Whether it is wanted at SHARED and SPECIAL units.
        on_path: Whether on-path continuations are candidates.
    """

    score: str
    divergence: Divergence
    multi: bool
    min_teacher_mass: float
    mass_multi: bool
    mass_shared: bool
    on_path: bool


@dataclass(frozen=True)
class Logits:
    """Ready-made logits, `[tokens, columns]` or `[batch, length, columns]`."""

    logits: Tensor


@dataclass(frozen=True)
class Head:
    """Logits as `softcap tanh(scale (hidden weight^T + bias) / softcap)`.

    Attributes:
        hidden: `[tokens, width]` or `[batch, length, width]`.
        weight: `[columns, width]`.
        bias: `[columns]`, None without one.
        softcap: 0 without one.
        scale: A factor of the product.
        weight_gradient: Whether the weight's gradient is wanted along with the hidden states'.
        bias_gradient: Whether the bias's is.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    softcap: float
    scale: float
    weight_gradient: bool = False
    bias_gradient: bool = False


@dataclass(frozen=True)
class SideProblem:
    """One model.

    Attributes:
        source: Where its logits come from.
        columns: Its logit columns.
        units: Its side of the units.
    """

    source: Logits | Head
    columns: SideColumns
    units: SideUnits


@dataclass(frozen=True)
class Problem:
    """One call of a loss.

    Attributes:
        teacher: The teacher.
        student: The student.
        n_shared: SHARED and SPECIAL units, the first ones.
        n_multi: MULTI units, which follow.
        realized_column: `[n_multi]` shared column of the realized text, -1 if none.
        stop_column: Shared column of the stops, -1 if none.
        settings: What the caller chose.
    """

    teacher: SideProblem
    student: SideProblem
    n_shared: int
    n_multi: int
    realized_column: Tensor
    stop_column: int
    settings: Settings

    @property
    def n_units(self) -> int:
        """How many units take part."""
        return self.n_shared + (self.n_multi if self.settings.multi else 0)


class Scores(Protocol):
    """One side's scores of a chunk of units, as the back end keeps them.

    Attributes:
        shared_mass: `[c]` the model's probability of the shared tokens; None if not asked for.
        realized_mass: `[c]` what the realized unit adds to it; None also at SHARED units.
    """

    @property
    def shared_mass(self) -> Tensor | None: ...  # noqa: D102
    @property
    def realized_mass(self) -> Tensor | None: ...  # noqa: D102


S = TypeVar("S", bound=Scores)
"""A back end's own scores."""
S_co = TypeVar("S_co", bound=Scores, covariant=True)


class Side(Protocol[S_co]):
    """One model's rows on a back end."""

    def scores(self, units: slice, *, multi: bool, mass: bool) -> S_co:
        """Score the candidates of a chunk of units.

        Args:
            units: Units of the problem, all SHARED and SPECIAL or all MULTI.
            multi: Which of the two.
            mass: Whether the masses are wanted.
        """
        ...


class StudentSide(Side[S], Protocol[S]):
    """The student's rows, which take the gradient."""

    def accumulate(self, scores: S) -> None:
        """Take the gradient by the rows of a chunk, whose scores `Computation.compare` has seen.

        Args:
            scores: Of the chunk; not used again.
        """
        ...

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the source's tensors, in their dtypes; empty if not wanted."""
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
        """Return how many units to take at once.

        Args:
            multi: Of MULTI units, or of the others.
        """
        ...

    def prepare_paths(self) -> None:
        """Read what realized paths need beside their units' own rows: before all MULTI units."""
        ...

    def finish_paths(self) -> None:
        """Take the gradient by what `prepare_paths` read: after all MULTI units."""
        ...

    def compare(self, teacher: S, student: S, grad: Tensor | None) -> Tensor:
        """Return the divergences of a chunk, and prepare the student's scores for `accumulate`.

        Args:
            teacher: The teacher's scores.
            student: The student's.
            grad: `[c]` what the derivative of every unit is multiplied by; None without one.

        Returns:
            `[c]` divergences.
        """
        ...


@runtime_checkable
class Backend(Protocol):
    """Computes losses on a device.

    Attributes:
        name: What `backend=` calls it.
    """

    name: str

    def refuses(self, problem: Problem) -> str | None:
        """Return why a problem must be computed by the reference instead; None if it need not.

        Args:
            problem: The problem.
        """
        ...

    def start(self, problem: Problem) -> Computation[Any]:
        """Begin to compute a problem.

        Args:
            problem: The problem.
        """
        ...
