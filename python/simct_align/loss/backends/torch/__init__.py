"""The reference back end: PyTorch operations on any device, in chunks.

With `g = dD / d scores` of a unit, which sums to 0:

* SHARED and SPECIAL units: scores are `z - L`, the log-normalizer L cancels, and only the shared
  columns of the prefix row are read and written.
* MULTI units: `g` at the realized unit also reaches `L` of its prefix row and the logits and
  log-normalizers of the path's other steps, each of which is a whole row.

A prefix row or path step is a token position of its own, so every student row is written once. (If
a caller's row starts overlap, two units claim one row and the gradient there is the last one's.)
Peak memory is O(chunk x vocabulary), set by `chunk_bytes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .computation import TorchComputation

if TYPE_CHECKING:
    from ..protocol import Problem


class TorchBackend:
    """PyTorch operations; refuses nothing."""

    name = "torch"

    def refuses(self, problem: Problem) -> str | None:
        """See `Backend`."""
        del problem
        return None

    def start(self, problem: Problem) -> TorchComputation:
        """See `Backend`."""
        return TorchComputation(problem)
