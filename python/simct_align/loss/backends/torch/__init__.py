"""Internal: the reference back end, PyTorch operations on any device, in chunks.

With `g = dD / d scores` of a unit, which sums to 0:

* SHARED and SPECIAL units: scores are `z - L`, the log-normalizer L cancels, and only the shared
  columns of the prefix row are read and written.
* MULTI units: `g` at the realized unit also reaches `L` of its prefix row and the logits and
  log-normalizers of the path's other steps, each of which is a whole row.

Every prefix row and every path step is a token position of its own, so every student row is written
once. (If a caller's row starts overlap, two units share a row, and the row's gradient is that of
the unit that was written last.) Peak memory is O(chunk x vocabulary), set by `chunk_bytes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .computation import TorchComputation
from .text_computation import TextComputation

if TYPE_CHECKING:
    from ..protocol import Problem, TextProblem


class TorchBackend:
    """The reference back end: PyTorch operations on any device. It computes every problem."""

    name = "torch"

    def refuses(self, problem: Problem) -> str | None:
        """Return None: see `Backend`."""
        del problem
        return None

    def start(self, problem: Problem) -> TorchComputation:
        """Begin to compute a problem: see `Backend`."""
        return TorchComputation(problem)

    def refuses_text(self, problem: TextProblem) -> str | None:
        """Return None: see `TextBackend`."""
        del problem
        return None

    def start_text(self, problem: TextProblem) -> TextComputation:
        """Begin to compute a problem: see `TextBackend`."""
        return TextComputation(problem)
