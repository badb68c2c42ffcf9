"""Internal: the base class of the losses that are operators with a divergence and a back end."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from ..divergence import as_divergence
from .backends import choose_backend
from .contract import Loss
from .operator import BACKENDS, DIVERGENCES
from .shard_plan import ShardKeeper

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import AlignedIndex

    from ..divergence import Divergence
    from .backends import Backend
    from .columns import PairOfVocabularies
    from .operator import OperatorOutput


class OperatorLoss(Loss):
    """The base class of `SimCTLoss`, `TextLoss` and their forms from hidden states.

    Args:
        aligner: See `Loss`, also for all arguments without an entry here.
        divergence: A name or an object.
        backend: A name or an object.
        temperature: The number that the logits of both sides are divided by.
        reduction: What the sum is divided by.
        chunk_bytes: The workspace to aim for.
        continuations: Whether to keep the tables of spellings.

    Raises:
        TypeError: `divergence` or `backend` has a wrong type.
        ValueError: A keyword is out of its range.
    """

    #: Whether the teacher's rows of shared tokens are moved to the process that compares them.
    moves_teacher_rows: ClassVar[bool] = False

    def __init__(
        self,
        aligner: PairOfVocabularies,
        *,
        divergence: str | Divergence,
        backend: str | Backend,
        temperature: float,
        reduction: str,
        chunk_bytes: int | None,
        continuations: bool = False,
    ) -> None:
        super().__init__(
            aligner,
            temperature=temperature,
            reduction=reduction,
            chunk_bytes=chunk_bytes,
            continuations=continuations,
        )
        self.divergence = as_divergence(divergence)
        self.backend = choose_backend(backend)
        self._keep_handles()
        self.shards = ShardKeeper(self.columns)

    @abstractmethod
    def _tensors(self, index: AlignedIndex, weight: Tensor) -> Any:
        """Return the tensors of the loss's operators; a loss defines this and the next two.

        Args:
            index: The index.
            weight: The factor of every value.
        """

    @abstractmethod
    def _numbers(self, index: AlignedIndex, student: Tensor, *, requires_grad: bool) -> Any:
        """Return the numbers of the loss's operators.

        Args:
            index: The index.
            student: A student input.
            requires_grad: Whether any of the student's inputs takes a gradient.
        """

    @abstractmethod
    def _output(self, result: OperatorOutput, index: AlignedIndex) -> Any:
        """Return what a call of the loss returns.

        Args:
            result: What the operator returned.
            index: The index.
        """

    def check_shards(self, *, lists: bool) -> None:
        """Refuse keywords that are not defined for shards of the vocabulary.

        Args:
            lists: Whether the teacher is known by lists.

        Raises:
            TypeError: The divergence is not a `TermwiseDivergence`.
            ValueError: Another keyword does not fit.
        """

    def _keep_handles(self) -> None:
        self._divergence_handle = DIVERGENCES.handle(self.divergence)
        self._backend_handle = BACKENDS.handle(self.backend)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickling and copying; handles are valid in one process only."""
        state = self.__dict__.copy()
        del state["_divergence_handle"], state["_backend_handle"], state["shards"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickled or copied loss."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._keep_handles()
        self.shards = ShardKeeper(self.columns)
