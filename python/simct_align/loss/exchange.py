"""Internal: what the processes of a group tell each other during a loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch import Tensor


class Exchange:
    """Sums and maxima over the processes of a group, in place and under no autograd.

    Every process calls the same methods with tensors of the same shape in the same order.

    Args:
        group: The group; None is the default group.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group
        self.rank = dist.get_rank(group)
        self.n_ranks = dist.get_world_size(group)

    def sum(self, values: Tensor) -> Tensor:
        """Replace contiguous values by their sums over all processes, and return them."""
        if values.numel():
            dist.all_reduce(values, op=dist.ReduceOp.SUM, group=self._group)
        return values

    def max(self, values: Tensor) -> Tensor:
        """Replace contiguous values by their maxima over all processes, and return them."""
        if values.numel():
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self._group)
        return values

    def log_sum_exp(self, top: Tensor, log_sum: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logarithm of a sum of exponentials over all processes, in two parts.

        Both parts are kept apart, so that large logits lose no digits: `(z - top) - log_sum`.

        Args:
            top: The largest exponent on this process.
            log_sum: The logarithm of the sum on this process, minus `top`.

        Returns:
            Both over all processes.
        """
        # A maximum over NaN may be any of the others; the sum is NaN.
        largest = self.max(top.clone(memory_format=torch.contiguous_format))
        return largest, self.sum((top - largest).add_(log_sum).exp_()).log_()

    def gathered(self, rows: Tensor, counts: list[int]) -> Tensor:
        """Return the rows of all processes, in the order of their ranks.

        Args:
            rows: `[counts[rank], ...]` the rows of this process.
            counts: How many rows every process has.
        """
        most = max(counts)
        own = rows.new_zeros(most, *rows.shape[1:])
        own[: rows.shape[0]] = rows
        every = rows.new_empty(self.n_ranks * most, *rows.shape[1:])
        dist.all_gather_into_tensor(every, own, group=self._group)
        parts = torch.split(every, most)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def swapped(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Send rows to every process, and return those that came from every process.

        Args:
            rows: `[sum(sent), ...]` rows for rank 0, rows for rank 1, and so on.
            sent: How many rows go to every process.
            received: How many rows come from every process.

        Returns:
            `[sum(received), ...]` rows of rank 0, rows of rank 1, and so on.
        """
        out = rows.new_empty(sum(received), *rows.shape[1:])
        # As bytes, which all back ends move; some of them do not know bfloat16.
        as_bytes = [each.unsqueeze(-1).contiguous().view(torch.uint8) for each in (rows, out)]
        dist.all_to_all_single(as_bytes[1], as_bytes[0], received, sent, group=self._group)
        return out
