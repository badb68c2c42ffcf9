"""Internal: rows, tables and launches of the Triton kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from . import kernels

if TYPE_CHECKING:
    from torch import Tensor

LOG2E = math.log2(math.e)
#: Units that a program works on: 16 logits of two bytes are a sector of memory.
UNITS = 16
#: Columns that a program reads at once, of all its units: threads times columns of a thread. More
#: would take more registers than leave room for two programs on a multiprocessor.
T, E = 16, 8
#: Threads of programs that work on single rows.
ROW_T = 256
#: Programs that a multiprocessor should have at least.
PROGRAMS_PER_PROCESSOR = 4
WARPS = 8


def power_of_two(count: int) -> int:
    """Return the smallest power of two that is at least `count`."""
    return 1 << max(0, count - 1).bit_length()


@dataclass(frozen=True)
class Split:
    """How columns are cut into parts that programs work on.

    Attributes:
        per_split: The columns of a part.
        n_splits: The number of parts.
    """

    per_split: int
    n_splits: int

    @classmethod
    def of(cls, columns: int, groups: int, tile: int, device: torch.device) -> Split:
        """Cut columns so that all multiprocessors have programs.

        Args:
            columns: The number of columns.
            groups: The number of programs without a cut.
            tile: The number of columns that a program reads at once.
            device: The device.
        """
        processors = 1
        if device.type == "cuda":
            processors = torch.cuda.get_device_properties(device).multi_processor_count
        tiles = -(-columns // tile)
        wanted = -(-processors * PROGRAMS_PER_PROCESSOR // max(1, groups))
        tiles_per_split = max(1, -(-tiles // max(1, min(tiles, wanted))))
        per_split = tiles_per_split * tile
        return cls(per_split, max(1, -(-columns // per_split)))


class LogitRows:
    """Rows of logits for kernels.

    Args:
        logits: `[tokens, columns]` or `[batch, length, columns]`, any strides.
        temperature: The number that logits are divided by.
    """

    def __init__(self, logits: Tensor, temperature: float) -> None:
        self.logits = logits
        self.width = logits.shape[-1]
        self.stride = logits.stride(-1)
        self.scale = LOG2E / temperature
        #: How many logits a thread may read at once: all rows begin at multiples of it.
        self.aligned = math.gcd(E, *logits.stride()[:-1], self.width) if self.stride == 1 else 1
        self.temperature = temperature

    def starts(self, rows: Tensor) -> Tensor:
        """Return where rows begin, as `[n]` positions in memory from the first logit on."""
        if self.logits.dim() == 2:
            return rows * self.logits.stride(0)
        length = self.logits.shape[1]
        return rows // length * self.logits.stride(0) + rows % length * self.logits.stride(1)


class RowReader(LogitRows):
    """A side's rows of logits for kernels over units.

    Args:
        logits: See `LogitRows`.
        code_of_id: int32; see `SideColumns`.
        temperature: The number that logits are divided by.
        packed: The packed index, which has the numbers of rows.
    """

    def __init__(
        self, logits: Tensor, code_of_id: Tensor, temperature: float, packed: Tensor
    ) -> None:
        super().__init__(logits, temperature)
        is_batch = logits.dim() == 3
        #: The first arguments of kernels that read rows.
        self.reading = (
            logits,
            max(1, logits.shape[-2]),
            logits.stride(0) if is_batch else 0,
            logits.stride(-2),
            self.stride,
            packed,
        )
        #: What the columns are, and how many of them the table knows.
        self.codes = (code_of_id, min(self.width, code_of_id.shape[0]))

    def norm(self, row_at: int, rows: slice, out: Tensor) -> None:
        """Compute shifts and binary log-normalizers of whole rows.

        Args:
            row_at: Where the rows' numbers begin in the packed index.
            rows: Which of them.
            out: `[numbers, 2]`; receives the results at `rows`.
        """
        if rows.stop > rows.start:
            kernels.norm_rows[(rows.stop - rows.start,)](
                *self.reading, row_at, rows.start, *self.codes, self.scale, out,
                ALIGNED=self.aligned, T=ROW_T, E=E, num_warps=WARPS,
            )  # fmt: skip


def clear_unwritten(gradient: Tensor, is_written: Tensor) -> None:
    """Zero the rows of a gradient that no kernel has written.

    Args:
        gradient: `[..., columns]`, contiguous.
        is_written: int8 `[rows]`.
    """
    count, width = is_written.shape[0], gradient.shape[-1]
    if count:
        split = Split.of(width, count, ROW_T * E, gradient.device)
        kernels.clear_rows[(count * split.n_splits,)](
            gradient, is_written, width, split.per_split, split.n_splits, COLUMNS=ROW_T * E
        )


def scale(values: Tensor, factor: Tensor) -> Tensor:
    """Multiply values in place; nothing is read or written if the factor is 1.

    Args:
        values: Any shape, contiguous, not float64.
        factor: 0-d float32.

    Returns:
        The values.
    """
    count, columns = values.numel(), 8 * ROW_T * E
    if count:
        kernels.scale[(-(-count // columns),)](values, count, factor, COLUMNS=columns, num_warps=4)
    return values
