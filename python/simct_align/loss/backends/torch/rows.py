"""Internal: how rows of logits are read, and how their gradient is written.

A side is read as whole rows, or as chosen columns of rows, in the compute dtype and divided by the
temperature ("scaled logits"). This module reads ready-made logits; `linear_rows` computes the same
rows from hidden states.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from ...columns import SideColumns
    from ..protocol import RowSettings


def fresh_zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a zero tensor that is written once, row by row.

    On the CPU the memory comes from NumPy. The pages of NumPy's large arrays are zeroed by the
    system on first use, and are huge pages where the system has them: 0.03 s instead of 0.20 s for
    541 x 256,000 float32.

    Args:
        shape: The tensor's shape.
        dtype: The tensor's dtype.
        device: The tensor's device.

    Returns:
        The tensor.
    """
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    itemsize = torch.finfo(dtype).bits // 8
    flat = torch.from_numpy(np.zeros(math.prod(shape) * itemsize, dtype=np.uint8))
    return flat.view(dtype).view(*shape)


class Workspace:
    """Scratch buffers that live for one call and grow to the largest request.

    Fresh memory pages cost several times the arithmetic on them, so all chunks share the buffers.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """Return an uninitialised contiguous `[rows, columns]` tensor.

        Args:
            name: The name of the buffer; the same name and dtype share memory.
            rows: The number of rows.
            columns: The number of columns.
            dtype: The dtype.

        Returns:
            A view of the buffer.
        """
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.shape[0] < rows * columns:
            buffer = torch.empty(rows * columns, dtype=dtype, device=self._device)
            self._buffers[name, dtype] = buffer
        return buffer[: rows * columns].view(rows, columns)

    def release(self) -> None:
        """Free all buffers before a stage that needs other ones, which lowers the peak."""
        self._buffers.clear()


class WholeRows(Protocol):
    """A side's rows as probabilities: what text events read."""

    columns: int

    def softmax(self, rows: Tensor, log_norm: Tensor | None = None) -> Tensor:
        """Return the softmax `[c, columns]` of whole rows; may be overwritten.

        Args:
            rows: `[c]` rows.
            log_norm: `[c]`; receives the rows' log-normalizers. None where they are not needed.

        Returns:
            Probabilities, 0 at padding.
        """
        ...

    def pick(self, rows: Tensor, ids: Tensor) -> Tensor:
        """Return the scaled logits `[n]` of single tokens, one per row."""
        ...

    def row_values(self, full: bool) -> int:
        """Return the number of workspace values per row, in addition to the engine's own."""
        ...


class Rows(WholeRows, Protocol):
    """A side's logits, row by row."""

    def full(self, rows: Tensor) -> Tensor:
        """Return `[c, columns]` scaled logits with padding at -inf; may be overwritten."""
        ...

    def normalize(self, z: Tensor) -> Tensor:
        """Replace the rows that `full` read by their softmax; return their log-normalizers."""
        ...

    def chosen(self, rows: Tensor, out: Tensor) -> None:
        """Write the scaled logits of the table's ids to `out`, `[c, len(ids)]`."""
        ...


class StudentWholeRows(WholeRows, Protocol):
    """The student's rows, with the gradient by the scaled logits of whole rows."""

    def accumulate_full(self, rows: Tensor, gradient: Tensor) -> None:
        """Add `[c, columns]` to the distinct rows that `full` read last, and overwrite it."""
        ...

    def gradients(self) -> list[Tensor]:
        """Return the gradients of the inputs, in the inputs' dtypes."""
        ...


class StudentRows(Rows, StudentWholeRows, Protocol):
    """The student's rows, with the gradient by the scaled logits.

    `write_full` and `write_chosen` write a row at most once in one call of a loss: prefix rows and
    the rows of later steps are different token positions. On-path continuations have gradients in
    rows of other units; those are added after the row has been written.
    """

    def write_full(self, rows: Tensor, gradient: Tensor) -> None:
        """Write `[c, columns]` to the rows that `full` read last; `gradient` is overwritten."""
        ...

    def write_chosen(self, rows: Tensor, gradient: Tensor) -> None:
        """Write `[c, len(ids)]` to the rows that `chosen` read last; `gradient` is overwritten."""
        ...

    def accumulate_at(self, rows: Tensor, ids: Tensor, gradient: Tensor) -> None:
        """Add `[n]` to single tokens, one per row; a pair of row and token may repeat."""
        ...


class LogitsRows:
    """Rows of `[tokens, columns]` or `[batch, length, columns]` logits.

    Args:
        logits: Any floating dtype and any strides; a slice of a longer batch is not copied.
        table: This side's ids.
        work: Scratch buffers.
        settings: Compute dtype and temperature.
    """

    def __init__(
        self, logits: Tensor, table: SideColumns, work: Workspace, settings: RowSettings
    ) -> None:
        self.columns = logits.shape[-1]
        self._logits = logits
        self._table = table
        self._work = work
        self._dtype = settings.dtype
        self._scale = 1.0 / settings.temperature
        mergeable = logits.dim() == 2 or logits.stride(0) == logits.shape[1] * logits.stride(1)
        self._flat = logits.view(-1, self.columns) if mergeable else None
        # Reading rows without a copy needs their numbers on the host: on the CPU only.
        self._in_place = (
            mergeable
            and logits.device.type == "cpu"
            and logits.dtype == self._dtype
            and self._scale == 1.0
            and not table.unused.shape[0]
        )

    def _native(self, rows: Tensor) -> Tensor:
        work = self._work.take("native", rows.shape[0], self.columns, self._logits.dtype)
        if self._flat is not None:
            return torch.index_select(self._flat, 0, rows, out=work)
        length = self._logits.shape[1]
        return work.copy_(self._logits[rows // length, rows % length])

    def full(self, rows: Tensor) -> Tensor:
        """See `Rows`."""
        z = self._native(rows)
        if z.dtype != self._dtype:
            z = self._work.take("full", rows.shape[0], self.columns, self._dtype).copy_(z)
        if self._scale != 1.0:
            z.mul_(self._scale)
        return mask_padding(z, self._table)

    def softmax(self, rows: Tensor, log_norm: Tensor | None = None) -> Tensor:
        """See `Rows`."""
        if not self._in_place or self._flat is None:
            return softmax_(self.full(rows), log_norm)
        probs = self._work.take("native", rows.shape[0], self.columns, self._dtype)
        needed = min(self.columns, self._table.needed)
        probs[:, needed:] = 0.0
        for i, row in enumerate(rows.tolist()):
            z, out = self._flat[row, :needed], probs[i, :needed]
            if log_norm is None:
                torch.softmax(z, 0, out=out)
            else:
                log_norm[i] = normalize(z, out)
        return probs

    def normalize(self, z: Tensor) -> Tensor:
        """See `Rows`."""
        return normalize(z)

    def chosen(self, rows: Tensor, out: Tensor) -> None:
        """See `Rows`."""
        z = self._native(rows)
        # gather is ten times as fast as index_select on the CPU where `out` has gaps between rows.
        ids = self._table.ids.expand(rows.shape[0], -1)
        if z.dtype == self._dtype:
            torch.gather(z, 1, ids, out=out)
        else:
            narrow = self._work.take("chosen", rows.shape[0], out.shape[1], z.dtype)
            out.copy_(torch.gather(z, 1, ids, out=narrow))
        if self._scale != 1.0:
            out.mul_(self._scale)

    def pick(self, rows: Tensor, ids: Tensor) -> Tensor:
        """See `Rows`."""
        if self._flat is not None and self._flat.is_contiguous():
            # On the CPU this takes less than half the time of an index by two tensors.
            picked = self._flat.view(-1).index_select(0, rows * self.columns + ids)
        elif self._flat is not None:
            picked = self._flat[rows, ids]
        else:
            length = self._logits.shape[1]
            picked = self._logits[rows // length, rows % length, ids]
        picked = picked.to(self._dtype)
        return picked if self._scale == 1.0 else picked.mul_(self._scale)

    def row_values(self, full: bool) -> int:
        """See `Rows`."""
        return self.columns * (2 if full and self._logits.dtype != self._dtype else 1)


class StudentLogitsRows(LogitsRows):
    """`LogitsRows` with the gradient, which is zero where no unit reads."""

    def __init__(
        self, logits: Tensor, table: SideColumns, work: Workspace, settings: RowSettings
    ) -> None:
        super().__init__(logits, table, work, settings)
        self._gradient: Tensor | None = None
        self._spread: Tensor | None = None
        if settings.gradient:
            self._gradient = fresh_zeros(logits.shape, logits.dtype, logits.device)

    def _write(self, rows: Tensor, gradient: Tensor) -> None:
        assert self._gradient is not None
        self._gradient.view(-1, self.columns).index_copy_(0, rows, gradient)

    def gradient_rows(self, numbers: NDArray[np.int64]) -> Tensor | None:
        """Return the gradient of rows in place, on the CPU.

        Args:
            numbers: The numbers of the rows.

        Returns:
            `[rows, columns]` in the compute dtype; None if the rows do not lie one after the other,
            or if the gradient is rounded or scaled as it is written.
        """
        count, gradient = len(numbers), self._gradient
        if gradient is None or gradient.dtype != self._dtype or self._scale != 1.0:
            return None
        if not count or (np.diff(numbers) != 1).any():
            return None
        return gradient.view(-1, self.columns)[numbers[0] : numbers[0] + count]

    def _unscaled(self, gradient: Tensor) -> Tensor:
        if self._scale != 1.0:
            gradient.mul_(self._scale)
        return gradient.to(self._logits.dtype)

    def write_full(self, rows: Tensor, gradient: Tensor) -> None:
        """See `StudentRows`."""
        self._write(rows, self._unscaled(gradient))

    def write_chosen(self, rows: Tensor, gradient: Tensor) -> None:
        """See `StudentRows`."""
        # Chunks write the same columns, so what is zero in the first chunk stays zero.
        if self._spread is None or self._spread.shape[0] < rows.shape[0]:
            self._spread = torch.zeros(
                (rows.shape[0], self.columns), dtype=self._logits.dtype, device=rows.device
            )
        spread = self._spread[: rows.shape[0]]
        narrow = self._unscaled(gradient)
        self._write(rows, spread.scatter_(1, self._table.ids.expand(rows.shape[0], -1), narrow))

    def accumulate_full(self, rows: Tensor, gradient: Tensor) -> None:
        """See `StudentRows`."""
        assert self._gradient is not None
        self._gradient.view(-1, self.columns).index_add_(0, rows, self._unscaled(gradient))

    def accumulate_at(self, rows: Tensor, ids: Tensor, gradient: Tensor) -> None:
        """See `StudentRows`."""
        assert self._gradient is not None
        values = (gradient * self._scale).to(self._logits.dtype)
        self._gradient.view(-1).index_add_(0, rows * self.columns + ids, values)

    def row_values(self, full: bool) -> int:
        """See `Rows`."""
        return super().row_values(full) + (0 if full or self._gradient is None else self.columns)

    def gradients(self) -> list[Tensor]:
        """See `StudentRows`."""
        return [] if self._gradient is None else [self._gradient]


def normalize(z: Tensor, out: Tensor | None = None) -> Tensor:
    """Replace rows by their softmax; return their log-normalizers.

    On the CPU one softmax takes half the time of an exponential and a sum.

    Args:
        z: `[..., columns]` logits.
        out: A tensor of the same shape that receives the softmax instead of `z`.

    Returns:
        `[...]` log-normalizers.
    """
    if out is None:
        top = z.amax(-1)
        probs = torch.softmax(z, -1, out=z)
    else:
        # The softmax first: of both operations it reads uncached memory faster.
        probs = torch.softmax(z, -1, out=out)
        top = z.amax(-1)
    # The largest probability is exp(top - L).
    log_norm: Tensor = top.sub_(probs.amax(-1).log_())
    return log_norm


def softmax_(z: Tensor, log_norm: Tensor | None) -> Tensor:
    """Replace rows by their softmax.

    Args:
        z: `[c, columns]` logits.
        log_norm: `[c]`; receives the rows' log-normalizers. None where they are not needed.

    Returns:
        `z`.
    """
    if log_norm is None:
        return torch.softmax(z, 1, out=z)
    log_norm.copy_(normalize(z))
    return z


def mask_padding(z: Tensor, table: SideColumns) -> Tensor:
    """Set the columns without a token to -inf, in place.

    Args:
        z: `[c, columns]` logits of whole rows.
        table: The side's ids.

    Returns:
        `z`.
    """
    if z.shape[1] > table.needed:
        z[:, table.needed :] = -torch.inf
    if table.unused.shape[0]:
        z.index_fill_(1, table.unused, -torch.inf)
    return z
