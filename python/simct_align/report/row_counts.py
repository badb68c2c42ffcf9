"""Internal: how often rows of integers occur, in bulk."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class RowCounts:
    """Counts equal rows of integers, batch by batch.

    Rows of batches wait until they are as many as the rows that are counted. Each row is therefore
    sorted O(log batches) times.

    Args:
        width: The length of a row.
    """

    def __init__(self, width: int) -> None:
        self._rows = np.zeros((0, width), np.int32)
        self._counts = np.zeros(0, np.int64)
        self._waiting: list[tuple[NDArray[np.int32], NDArray[np.int64]]] = []
        self._n_waiting = 0

    def add(self, rows: NDArray[np.int32]) -> None:
        """Add rows, `[rows, width]`."""
        found = _summed(rows, np.ones(len(rows), np.int64))
        self._waiting.append(found)
        self._n_waiting += len(found[1])
        if self._n_waiting >= len(self._counts):
            self._merge()

    def _merge(self) -> None:
        parts = [(self._rows, self._counts), *self._waiting]
        rows, counts = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        self._rows, self._counts = _summed(rows, counts)
        self._waiting, self._n_waiting = [], 0

    def counted(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Return the different rows, sorted, and how often each occurs."""
        self._merge()
        return self._rows, self._counts


def _summed(
    rows: NDArray[np.int32], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the different rows, sorted, and the sums of their counts."""
    if not len(rows):
        return rows, counts
    # Three times as fast as `np.unique(axis=0)`, which compares rows as strings of bytes.
    order = np.lexsort(rows.T[::-1])
    rows = rows[order]
    first = np.flatnonzero(np.append(True, (rows[1:] != rows[:-1]).any(axis=1)))
    return rows[first], np.add.reduceat(counts[order], first)
