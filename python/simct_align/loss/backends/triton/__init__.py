"""Internal: the back end `triton`, kernels for CUDA devices.

`kernels` and `unit_kernels` have the kernels for units, over columns and over single ones;
`unit_sides` says where they find rows, and `computation` launches them. `text_kernels`,
`offset_kernels`, `text_reading`, `text_side` and `text_computation` are those of text events.
`heads` computes rows of logits from hidden states; `launch` says how rows are read and work is
cut. Triton comes with PyTorch on Linux. Its interpreter (`TRITON_INTERPRET=1`) runs the kernels on
the CPU, for tests.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import TYPE_CHECKING, Any

import torch

from ..protocol import Head, Lists

if TYPE_CHECKING:
    from torch import Tensor

    from ..protocol import Problem, TextProblem


class TritonBackend:
    """Triton kernels for units and text events; see `Backend` and `TextBackend`."""

    name = "triton"

    def refuses(self, problem: Problem) -> str | None:
        """Return why the kernels cannot compute a problem: see `Backend`."""
        reason = _refuses(problem, problem.realized_column.device.type)
        if reason is not None:
            return reason
        if problem.settings.on_path:
            return "on-path continuations are PyTorch operations"
        if problem.index.host is None and _heads(problem):
            return "to cut hidden states into chunks, the index must have a copy on the host"
        return None

    def start(self, problem: Problem) -> Any:
        """Begin to compute a problem: see `Backend`."""
        from .computation import Formula, TritonRun  # imports Triton

        formula = Formula.of(problem.settings.divergence)
        assert formula is not None
        return TritonRun(problem, formula)

    def refuses_text(self, problem: TextProblem) -> str | None:
        """Return why the kernels cannot compute a problem: see `TextBackend`."""
        reason = _refuses(problem, problem.tree.same.device.type)
        if reason is not None:
            return reason
        if problem.settings.straddled != "byte":
            return 'with straddled="tree", sides without a row are PyTorch operations'
        return None

    def start_text(self, problem: TextProblem) -> Any:
        """Begin to compute a problem: see `TextBackend`."""
        from .computation import Formula  # imports Triton
        from .text_computation import TritonText

        formula = Formula.of(problem.settings.divergence)
        assert formula is not None
        return TritonText(problem, formula)


def _heads(problem: Problem | TextProblem) -> list[Head]:
    sources = (problem.teacher.source, problem.student.source)
    return [source for source in sources if isinstance(source, Head)]


@functools.cache
def _is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def _refuses(problem: Problem | TextProblem, device: str) -> str | None:
    if not _is_installed():
        return "Triton is not installed"
    sources = (problem.teacher.source, problem.student.source)
    if any(isinstance(source, Lists) for source in sources):
        return "the kernels read whole rows of logits, not lists of tokens"
    if any(head.weight.dtype != head.dtype for head in _heads(problem)):
        return "the kernels multiply hidden states and output embeddings of one dtype"
    if problem.settings.dtype != torch.float32:
        return "the kernels compute in float32, and the logits are float64"
    if device != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"the kernels run on CUDA devices, and tensors are on {device}"
    from .computation import Formula  # imports Triton

    if Formula.of(problem.settings.divergence) is None:
        return f"the kernels do not know the divergence {problem.settings.divergence!r}"
    return None


def scale_gradient(gradient: Tensor, factor: Tensor) -> Tensor:
    """Multiply a gradient in place by the derivative of the loss, which most often is 1.

    Args:
        gradient: The gradient.
        factor: 0-d.

    Returns:
        The gradient.
    """
    # While a compiler traces, tensors have another type.
    is_plain = type(gradient) is torch.Tensor and gradient.is_cuda and gradient.is_contiguous()
    in_float32 = gradient.dtype != torch.float64 and factor.dtype == torch.float32
    if not (is_plain and in_float32 and _is_installed()):
        return gradient.mul_(factor)
    from .launch import scale  # imports Triton

    return scale(gradient, factor)
