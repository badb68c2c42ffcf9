"""Internal: where the Triton kernels of text events find a model's rows, a run of them at a time.

Ready-made logits are read where they are, all at once. From hidden states, logits are computed for
a run of text rows: once for the sums over all rows, and again for the chunks of offsets that read
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from ..protocol import Head, Logits
from .heads import HeadProducts, pitch_of
from .launch import LogitRows, clear_unwritten

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ..protocol import TextSettings, TextSide


@dataclass(frozen=True)
class TextReading:
    """Where kernels find text rows, and write their gradient.

    Attributes:
        rows: The logits.
        starts: `[K]` where text rows begin in them.
        flat_rows: `[K]` the numbers of text rows among the rows of logits.
        gradient: Receives the gradient, `[rows, columns]`; empty if it is not wanted.
        is_written: int8 `[rows]` whether a row of the gradient is written. Kernels add to those.
    """

    rows: LogitRows
    starts: Tensor
    flat_rows: Tensor
    gradient: Tensor
    is_written: Tensor


class TextReader(Protocol):
    """Reads a model's rows for kernels."""

    @property
    def width(self) -> int:
        """The columns of a row in memory."""
        ...

    def row_bytes(self) -> int:
        """Return the memory that a text row takes while it is read."""
        ...

    def prepare(self, most: int) -> None:
        """Take the memory for runs of at most `most` text rows."""
        ...

    def runs(self) -> Sequence[slice]:
        """Return runs of all text rows."""
        ...

    def read(self, rows: slice) -> TextReading:
        """Return where a run of text rows is. It is valid until the next call."""
        ...

    def accept(self, rows: slice, reading: TextReading) -> None:
        """Take over the gradient of a run of text rows."""
        ...

    def gradients(self) -> list[Tensor]:
        """Return the gradients; see `StudentSide`."""
        ...


class LogitReader:
    """Reads ready-made logits; see `TextReader`.

    Args:
        side: The side of the problem.
        settings: The settings of the loss.
        gradient: Whether the gradient is wanted.
    """

    def __init__(self, side: TextSide, settings: TextSettings, *, gradient: bool) -> None:
        assert isinstance(side.source, Logits)
        logits = side.source.logits
        rows = LogitRows(logits, settings.temperature)
        self.width = rows.width
        self._wanted = gradient
        n_rows = logits.shape[:-1].numel() if gradient else 0
        self._reading = TextReading(
            rows,
            rows.starts(side.events.row),
            side.events.row,
            torch.empty(
                logits.shape if gradient else (0,), dtype=logits.dtype, device=logits.device
            ),
            torch.zeros(n_rows, dtype=torch.int8, device=logits.device),
        )

    def row_bytes(self) -> int:
        """See `TextReader`."""
        return 0

    def prepare(self, most: int) -> None:
        """See `TextReader`."""

    def runs(self) -> Sequence[slice]:
        """See `TextReader`."""
        count = self._reading.flat_rows.shape[0]
        return [slice(0, count)] if count else []

    def read(self, rows: slice) -> TextReading:
        """See `TextReader`."""
        del rows
        return self._reading

    def accept(self, rows: slice, reading: TextReading) -> None:
        """See `TextReader`."""
        reading.is_written.index_fill_(0, reading.flat_rows[rows], 1)

    def gradients(self) -> list[Tensor]:
        """See `TextReader`."""
        if not self._wanted:
            return []
        # Nothing else may hold the gradient: autograd would copy it.
        gradient, is_written = self._reading.gradient, self._reading.is_written
        del self._reading
        clear_unwritten(gradient, is_written)
        return [gradient]


class HeadReader:
    """Computes logits from hidden states; see `TextReader`, and `LogitReader` for the arguments."""

    def __init__(self, side: TextSide, settings: TextSettings, *, gradient: bool) -> None:
        assert isinstance(side.source, Head)
        self._head, self._settings, self._wanted = side.source, settings, gradient
        # A text row may be part of several chunks.
        self._products = HeadProducts(
            side.source, settings.chunk_bytes, gradient=gradient, repeats=True
        )
        self.width = pitch_of(side.source.columns)
        self._flat = side.events.row
        self._numbers = torch.arange(self._flat.shape[0], device=self._flat.device)
        self._most = 0

    def row_bytes(self) -> int:
        """See `TextReader`."""
        return (1 + int(self._wanted)) * self.width * self._head.hidden.element_size()

    def prepare(self, most: int) -> None:
        """See `TextReader`."""
        self._most = most
        hidden = self._head.hidden
        self._memory = hidden.new_empty((most, self.width))
        self._gradient = hidden.new_empty((most if self._wanted else 0, self.width))
        # Every run begins anew.
        self._is_written = torch.zeros(most, dtype=torch.int8, device=hidden.device)

    def runs(self) -> Sequence[slice]:
        """See `TextReader`."""
        count = self._flat.shape[0]
        return [slice(at, min(at + self._most, count)) for at in range(0, count, self._most)]

    def read(self, rows: slice) -> TextReading:
        """See `TextReader`."""
        flat = self._flat[rows]
        z = self._memory[: flat.shape[0]]
        if flat.shape[0]:
            self._products.write_logits(flat, None, z)
        numbers = self._numbers - rows.start
        return TextReading(
            LogitRows(z, self._settings.temperature),
            numbers * self.width,
            numbers,
            self._gradient[: flat.shape[0]],
            self._is_written,
        )

    def accept(self, rows: slice, reading: TextReading) -> None:
        """See `TextReader`."""
        flat = self._flat[rows]
        if flat.shape[0]:
            self._products.accumulate(flat, None, reading.rows.logits, reading.gradient)

    def gradients(self) -> list[Tensor]:
        """See `TextReader`."""
        return self._products.gradients()


def text_reader(side: TextSide, settings: TextSettings, *, gradient: bool) -> TextReader:
    """Return a reader for the form in which a model came; see `LogitReader` for the arguments."""
    if isinstance(side.source, Head):
        return HeadReader(side, settings, gradient=gradient)
    return LogitReader(side, settings, gradient=gradient)
