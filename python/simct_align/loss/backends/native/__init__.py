"""Internal: the back end for text events on the CPU, in Rust.

PyTorch has no operations that walk a tree: on the CPU its operations cost ten times what the
probabilities alone cost. The Rust code reads every row of probabilities once in the order of the
tree, and keeps only the leaves. Reading logits and writing gradients is shared with `torch`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..torch import TorchBackend
from .text_computation import NativeTextComputation

if TYPE_CHECKING:
    from ..protocol import Problem, TextProblem
    from ..torch.computation import TorchComputation


class NativeBackend:
    """Text events on the CPU, in Rust; it refuses everything else."""

    name = "native"

    def refuses(self, problem: Problem) -> str | None:
        """Return that units are compared elsewhere: see `Backend`."""
        del problem
        return "it computes text events only"

    def start(self, problem: Problem) -> TorchComputation:
        """Begin to compute units, which the engine never asks for: see `Backend`."""
        return TorchBackend().start(problem)

    def refuses_text(self, problem: TextProblem) -> str | None:
        """Return whether tensors are on another device: see `TextBackend`."""
        device = problem.student.events.row.device.type
        return None if device == "cpu" else f"it computes on the CPU, and tensors are on {device}"

    def start_text(self, problem: TextProblem) -> NativeTextComputation:
        """Begin to compute a problem: see `TextBackend`."""
        return NativeTextComputation(problem)
