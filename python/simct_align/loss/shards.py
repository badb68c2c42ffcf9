"""Internal: `VocabularyShard`, the rows of an output embedding that a process holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from simct_align.index import Side

#: `[start, stop)` of every rank.
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class VocabularyShard:
    """The rows of an output embedding that this process holds, with tensor parallelism.

    Use it for the argument `teacher_shard=` or `student_shard=` of `LinearSimCTLoss` and
    `LinearTextLoss`, next to a weight that has this process's rows only: that of a
    `VocabParallelEmbedding` or of a column-parallel output layer of Megatron or vLLM. A weight
    that is a `DTensor` with the placement `Shard(0)` needs no `VocabularyShard`.

    All processes of the group make it together, once: they tell each other their ranges.

    Args:
        group: The process group; None is the default group. Both sides' shards must have the same
            processes.
        start: The first row (token id) that this process holds.
        stop: One past the last row, padding rows included.
        partial_hidden_gradient: What a loss returns as the gradient of the student's hidden
            states. False: the sum over the processes, the same on each, as with Megatron's
            `copy_to_tensor_model_parallel_region`. True: the part of this process, for models that
            add the parts up themselves, such as sequence parallelism with a reduce-scatter.
        ranges: The ranges of all ranks of the group, where they are known. They are not exchanged
            then.

    Raises:
        RuntimeError: `torch.distributed` has not been initialized.
        ValueError: The process is not in the group; the ranges of all processes overlap, leave rows
            out or are empty; or `partial_hidden_gradient` differs.

    Example:
        >>> import tempfile, torch
        >>> import torch.distributed as dist
        >>> folder = tempfile.mkdtemp()
        >>> dist.init_process_group("gloo", f"file://{folder}/store", rank=0, world_size=1)
        >>> VocabularyShard.of_weight(torch.zeros(12, 4)).ranges
        ((0, 12),)
        >>> dist.destroy_process_group()
    """

    group: dist.ProcessGroup | None
    start: int
    stop: int
    partial_hidden_gradient: bool = False
    ranges: Ranges | None = None

    def __post_init__(self) -> None:
        rank = _rank(self.group)
        own = (self.start, self.stop)
        if self.ranges is None:
            told: list[Any] = [None] * dist.get_world_size(self.group)
            dist.all_gather_object(told, (own, self.partial_hidden_gradient), group=self.group)
            if len({partial for _, partial in told}) > 1:
                raise ValueError(
                    "VocabularyShard: expected the same partial_hidden_gradient on every rank, got "
                    f"{[partial for _, partial in told]}"
                )
            object.__setattr__(self, "ranges", tuple(each for each, _ in told))
        assert self.ranges is not None
        _check_ranges(self.ranges)
        if len(self.ranges) != dist.get_world_size(self.group) or self.ranges[rank] != own:
            raise ValueError(
                f"VocabularyShard: expected ranges of {dist.get_world_size(self.group)} ranks with "
                f"{own} at rank {rank}, got {self.ranges}"
            )

    @classmethod
    def of_weight(
        cls,
        weight: Tensor,
        group: dist.ProcessGroup | None = None,
        *,
        partial_hidden_gradient: bool = False,
    ) -> VocabularyShard:
        """Return the shard of a weight whose rows follow those of the ranks before.

        This is how Megatron and vLLM cut an embedding: all ranks hold the same number of rows, and
        the last ones may be padding. Other numbers of rows are possible too.

        Args:
            weight: `[rows, width]` the rows of this process.
            group: See `VocabularyShard`.
            partial_hidden_gradient: See `VocabularyShard`.

        Raises:
            RuntimeError: As for `VocabularyShard`.
            ValueError: As for `VocabularyShard`.
        """
        rank = _rank(group)
        counts: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(counts, weight.shape[0], group=group)
        start = sum(counts[:rank])
        return cls(group, start, start + weight.shape[0], partial_hidden_gradient)

    @property
    def columns(self) -> int:
        """The number of rows that all processes hold together."""
        assert self.ranges is not None
        return max(stop for _, stop in self.ranges)

    def processes(self) -> list[int]:
        """Return the global ranks of the group's processes."""
        return dist.get_process_group_ranks(self.group)


def _rank(group: dist.ProcessGroup | None) -> int:
    if not dist.is_available() or not dist.is_initialized():
        raise RuntimeError(
            "VocabularyShard: torch.distributed is not initialized: call "
            "torch.distributed.init_process_group first"
        )
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError(
            f"VocabularyShard: process {dist.get_rank()} is not in the group: make shards in the "
            "processes of the group only"
        )
    return rank


def _check_ranges(ranges: Ranges) -> None:
    by_start = sorted(range(len(ranges)), key=lambda rank: ranges[rank])
    reached, before = 0, "row 0"
    for rank in by_start:
        start, stop = ranges[rank]
        if start >= stop:
            raise ValueError(
                f"VocabularyShard: expected at least one row on every rank, got rows {start} to "
                f"{stop} on rank {rank}"
            )
        if start != reached:
            what = "overlap" if start < reached else "leave rows out"
            raise ValueError(
                f"VocabularyShard: the shards {what}: rows {start} to {stop} of rank {rank} do not "
                f"begin at {before}, which is {reached}; all ranges: {ranges}"
            )
        reached, before = stop, f"the end of rank {rank}"


class ShardedWeight(NamedTuple):
    """An output embedding on this process.

    Attributes:
        weight: `[rows, width]` the rows of this process; all rows without a shard.
        bias: `[rows]` its bias; None without a bias.
        shard: Which rows these are; None for all rows.
    """

    weight: Tensor
    bias: Tensor | None
    shard: VocabularyShard | None

    @property
    def columns(self) -> int:
        """The number of rows that all processes hold together."""
        return self.weight.shape[0] if self.shard is None else self.shard.columns


def sharded_weight(
    side: Side, weight: Tensor, bias: Tensor | None, shard: VocabularyShard | None
) -> ShardedWeight:
    """Return the rows of an output embedding on this process, of a `DTensor` too.

    Args:
        side: `"teacher"` or `"student"`.
        weight: The argument `*_weight`.
        bias: The argument `*_bias`.
        shard: The argument `*_shard`.

    Raises:
        TypeError: `shard` is not a `VocabularyShard`, or the bias is a `DTensor` and the weight is
            not.
        ValueError: A placement is not `Shard(0)` or `Replicate()`, weight and bias are placed
            differently, the rows do not match the shard, or there are two descriptions of a shard.
    """
    if shard is not None and not isinstance(shard, VocabularyShard):
        raise TypeError(f"{side}_shard: expected a VocabularyShard, got {type(shard).__name__}")
    if _is_dtensor(weight):
        if shard is not None:
            raise ValueError(
                f"{side}_shard: {side}_weight is a DTensor, which says itself where its rows are: "
                f"leave {side}_shard out"
            )
        shard = _shard_of(side, weight)
        if bias is not None and _is_dtensor(bias):
            placed, expected = tuple(bias.placements), tuple(weight.placements)  # type: ignore[attr-defined]
            if placed != expected:
                raise ValueError(
                    f"{side}_bias: expected the placements of {side}_weight, {expected}, got "
                    f"{placed}"
                )
            bias = bias.to_local()  # type: ignore[attr-defined]
        weight = weight.to_local()  # type: ignore[attr-defined]
    elif bias is not None and _is_dtensor(bias):
        raise TypeError(f"{side}_bias is a DTensor and {side}_weight is not: pass both in one form")
    if shard is not None and weight.dim() == 2 and weight.shape[0] != shard.stop - shard.start:
        raise ValueError(
            f"{side}_weight: expected {shard.stop - shard.start} rows for {side}_shard, which has "
            f"rows {shard.start} to {shard.stop}; got {weight.shape[0]}"
        )
    return ShardedWeight(weight, bias, shard)


def _is_dtensor(tensor: Tensor) -> bool:
    if type(tensor) in (Tensor, torch.nn.Parameter) or not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def refuse_dtensor(argument: str, tensor: Tensor) -> None:
    """Refuse a `DTensor` where every process needs all rows.

    Args:
        argument: The name of the argument.
        tensor: The tensor.

    Raises:
        TypeError: It is a `DTensor`.
    """
    if _is_dtensor(tensor):
        raise TypeError(
            f"{argument}: expected a plain tensor with all rows on every process, got a DTensor: "
            "pass its full_tensor(), or to_local() where it is replicated"
        )


def _shard_of(side: Side, weight: Any) -> VocabularyShard | None:
    """Return the shard that a `DTensor` says; None where it is on every process."""
    from torch.distributed.tensor import Replicate, Shard

    cut = [i for i, placement in enumerate(weight.placements) if placement == Shard(0)]
    others = [i for i, each in enumerate(weight.placements) if each not in (Shard(0), Replicate())]
    if others or len(cut) > 1:
        raise ValueError(
            f"{side}_weight: expected a DTensor with Shard(0) in one dimension of its mesh and "
            f"Replicate() in the others, got {tuple(weight.placements)}"
        )
    if not cut:
        return None
    columns, n_ranks = weight.shape[0], weight.device_mesh.size(cut[0])
    # As torch.chunk: the last ranks may have fewer rows.
    size = -(-columns // n_ranks)
    ranges = tuple(
        (min(rank * size, columns), min((rank + 1) * size, columns)) for rank in range(n_ranks)
    )
    own = ranges[weight.device_mesh.get_local_rank(cut[0])]
    group = weight.device_mesh.get_group(cut[0])
    return VocabularyShard(group, start=own[0], stop=own[1], ranges=ranges)
