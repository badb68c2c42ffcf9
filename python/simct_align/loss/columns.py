"""Internal: the logit columns of a pair of vocabularies, as index tensors made once per loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from .scores.on_path_plan import SIDES
from .scores.planner import pack_spellings

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from simct_align.continuations import PairSpellings
    from simct_align.index import Side
    from simct_align.pair import SharedVocabulary

_UNUSED_KIND = 3  # simct_align.TokenKind.UNUSED, whose import would need the native module
#: Lengths of tables for kernels are multiples of it, so that threads read several entries at once.
_CODES = 128


class VocabularyKinds(Protocol):
    """The part of a `Vocabulary` that a loss reads."""

    @property
    def kinds(self) -> NDArray[np.uint8]:
        """The token kind of every id."""
        ...


class PairOfVocabularies(Protocol):
    """The part of an `Aligner` that a loss reads."""

    @property
    def shared(self) -> SharedVocabulary:
        """The shared vocabulary."""
        ...

    @property
    def teacher(self) -> VocabularyKinds:
        """The teacher's vocabulary."""
        ...

    @property
    def student(self) -> VocabularyKinds:
        """The student's vocabulary."""
        ...

    @property
    def spellings(self) -> PairSpellings:
        """The spellings of both sides; read for on-path continuations only."""
        ...

    @property
    def digest(self) -> str:
        """The pair digest, which an index must have as its `pair_digest`."""
        ...


@dataclass(frozen=True)
class SideColumns:
    """One side's ids: the logit columns of candidates, stops and padding.

    Attributes:
        ids: `[shared + extra]` logit columns of the shared tokens, then of all stops but the first.
        n_extra: The number of stops at the end of `ids`.
        column_of_id: `[vocabulary]` shared column of a shared token's canonical id, -1 for all
            other ids.
        unused: The ids below `needed` without a token.
        code_of_id: int32 `[at least needed]` the same as `column_of_id`, and -2 for ids without a
            token; its length is a multiple of 128, for kernels.
        needed: The last token's id plus 1. Logit columns from here on are padding.
    """

    ids: Tensor
    n_extra: int
    column_of_id: Tensor
    unused: Tensor
    code_of_id: Tensor
    needed: int


def _side(
    kinds: NDArray[np.uint8], ids: Any, stops: Any, stop_column: int, side: str
) -> tuple[dict[str, Tensor], int]:
    kinds = np.asarray(kinds)
    ids = np.asarray(ids, dtype=np.int64)
    stops = np.asarray(stops, dtype=np.int64) if stop_column >= 0 else np.empty(0, np.int64)
    extra = stops[1:]
    if stop_column >= 0 and (len(stops) == 0 or ids[stop_column] != stops[0]):
        raise ValueError(
            f"aligner.shared: expected the first of {side}_stop_ids at {side}_ids[stop_column], "
            f"got id {int(ids[stop_column])} and the stops {stops.tolist()}"
        )
    doubled = np.intersect1d(extra, ids)
    if doubled.size:
        raise ValueError(
            f"aligner.shared: expected every {side} stop but the first outside of {side}_ids, "
            f"got stop {int(doubled[0])} there"
        )
    column_of_id = np.full(len(kinds), -1, dtype=np.int64)
    column_of_id[ids] = np.arange(len(ids))
    used = np.flatnonzero(kinds != _UNUSED_KIND)
    needed = int(used[-1]) + 1 if used.size else 0
    code_of_id = np.full(-(-needed // _CODES) * _CODES, -2, dtype=np.int32)
    code_of_id[:needed] = np.where(kinds[:needed] == _UNUSED_KIND, -2, column_of_id[:needed])
    tensors = {
        "ids": torch.from_numpy(np.concatenate([ids, extra])),
        "column_of_id": torch.from_numpy(column_of_id),
        "unused": torch.from_numpy(np.flatnonzero(kinds[:needed] == _UNUSED_KIND)),
        "code_of_id": torch.from_numpy(code_of_id),
    }
    return tensors, needed


class PairColumns(torch.nn.Module):
    """The index tensors of both sides as non-persistent buffers, so that `.to()` moves them.

    The loss numbers the shared columns by ascending student id, which is not the order of the
    shared vocabulary: reading and writing the student's rows in random order takes up to four times
    as long on a GPU. `column_of_shared` has the loss's number for every entry of the shared
    vocabulary.

    Args:
        aligner: An object with `shared`, `teacher.kinds`, `student.kinds` and `digest`.
        continuations: Whether to keep the aligner's `spellings` too: the leaves as buffers, and the
            tables for planning on the host.

    Raises:
        ValueError: The shared vocabulary contradicts its stops.

    Complexity:
        O(vocabulary) time and memory, once.
    """

    column_of_shared: Tensor
    teacher_ids: Tensor
    teacher_column_of_id: Tensor
    teacher_unused: Tensor
    teacher_code_of_id: Tensor
    student_ids: Tensor
    student_column_of_id: Tensor
    student_unused: Tensor
    student_code_of_id: Tensor
    teacher_last_token: Tensor
    teacher_one_sided_token: Tensor
    student_last_token: Tensor
    student_one_sided_token: Tensor

    def __init__(self, aligner: PairOfVocabularies, *, continuations: bool = False) -> None:
        super().__init__()
        shared = aligner.shared
        self.n_shared_tokens = len(shared.teacher_ids)
        order = np.argsort(shared.student_ids)
        # The additional last entry maps -1, which marks "no column", onto -1.
        column_of_shared = np.full(len(order) + 1, -1)
        column_of_shared[order] = np.arange(len(order))
        self.stop_column = int(column_of_shared[shared.stop_column])
        self.register_buffer(
            "column_of_shared", torch.from_numpy(column_of_shared), persistent=False
        )
        sides = {
            side: (
                getattr(aligner, side).kinds,
                np.asarray(getattr(shared, f"{side}_ids"))[order],
                getattr(shared, f"{side}_stop_ids"),
            )
            for side in SIDES
        }
        self.pair_digest = aligner.digest
        self.columns_needed: dict[Side, int] = {}
        for side, (kinds, ids, stops) in sides.items():
            tensors, needed = _side(kinds, ids, stops, self.stop_column, side)
            self.columns_needed[side] = needed
            for name, tensor in tensors.items():
                self.register_buffer(f"{side}_{name}", tensor, persistent=False)

        empty = torch.empty(0, dtype=torch.int64)
        self.spellings: dict[Side, Tensor] = dict.fromkeys(SIDES, empty)
        for side, (kinds, _, _) in sides.items():
            last_token = one_sided_token = empty
            if continuations:
                spellings = getattr(aligner.spellings, side)
                table = spellings.leaves
                self.spellings[side] = pack_spellings(spellings, len(kinds))
                last_token = torch.from_numpy(np.asarray(table.last_token, np.int64))
                one_sided_token = torch.from_numpy(np.asarray(table.one_sided_token, np.int64))
            self.register_buffer(f"{side}_last_token", last_token, persistent=False)
            self.register_buffer(f"{side}_one_sided_token", one_sided_token, persistent=False)

    def side(self, side: Side) -> SideColumns:
        """Return one side's columns.

        Args:
            side: `"teacher"` or `"student"`.

        Returns:
            The columns.
        """
        ids: Tensor = getattr(self, f"{side}_ids")
        return SideColumns(
            ids=ids,
            n_extra=ids.shape[0] - self.n_shared_tokens,
            column_of_id=getattr(self, f"{side}_column_of_id"),
            unused=getattr(self, f"{side}_unused"),
            code_of_id=getattr(self, f"{side}_code_of_id"),
            needed=self.columns_needed[side],
        )

    def check_columns(self, columns: int, side: Side, argument: str) -> None:
        """Refuse a model whose output has fewer columns than the vocabulary.

        Args:
            columns: The number of columns of the logits, or of rows of the output embedding.
            side: `"teacher"` or `"student"`.
            argument: The name of the argument, for the message.

        Raises:
            ValueError: The id of the vocabulary's last token is beyond the columns.
        """
        needed = self.columns_needed[side]
        if columns < needed:
            raise ValueError(
                f"{argument}: expected at least {needed} vocabulary entries, because the {side}'s "
                f"last token has id {needed - 1}; got {columns}"
            )
