"""Internal: the back end `triton`, kernels for CUDA devices.

`kernels` has the kernels, `computation` the chunks, `launch` how rows are read and work is cut.
Triton comes with PyTorch on Linux. Its interpreter (`TRITON_INTERPRET=1`) runs the kernels on the
CPU, for tests.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import torch

from ..protocol import Logits

if TYPE_CHECKING:
    from ..protocol import Problem


class TritonBackend:
    """Triton kernels for units, from logits; see `Backend`."""

    name = "triton"

    def refuses(self, problem: Problem) -> str | None:
        """Return why the kernels cannot compute a problem: see `Backend`."""
        if importlib.util.find_spec("triton") is None:
            return "Triton is not installed"
        sources = (problem.teacher.source, problem.student.source)
        if not all(isinstance(source, Logits) for source in sources):
            return "the kernels read logits, not hidden states"
        if problem.settings.dtype != torch.float32:
            return "the kernels compute in float32, and the logits are float64"
        if problem.settings.on_path:
            return "on-path continuations are PyTorch operations"
        device = problem.realized_column.device.type
        if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return f"the kernels run on CUDA devices, and tensors are on {device}"
        from .computation import Formula  # imports Triton

        if Formula.of(problem.settings.divergence) is None:
            return f"the kernels do not know the divergence {problem.settings.divergence!r}"
        return None

    def start(self, problem: Problem) -> Any:
        """Begin to compute a problem: see `Backend`."""
        from .computation import Formula, TritonComputation  # imports Triton

        formula = Formula.of(problem.settings.divergence)
        assert formula is not None
        return TritonComputation(problem, formula)
