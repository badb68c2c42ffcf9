"""The losses: `SimCTLoss` from logits, `LinearSimCTLoss` from hidden states, and `baselines`."""

from .backends import Backend, TorchBackend, register_backend
from .contract import Loss, LossOutput
from .linear import LinearSimCTLoss
from .metrics import LossMetrics
from .simct import SimCTLoss

__all__ = [
    "Backend",
    "LinearSimCTLoss",
    "Loss",
    "LossMetrics",
    "LossOutput",
    "SimCTLoss",
    "TorchBackend",
    "register_backend",
]
