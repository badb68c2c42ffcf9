"""The SimCT loss: from logits (`SimCTLoss`) or from hidden states (`LinearSimCTLoss`)."""

from .linear import LinearSimCTLoss
from .module import SimCTLoss
from .outputs import LossMetrics, LossOutput

__all__ = ["LinearSimCTLoss", "LossMetrics", "LossOutput", "SimCTLoss"]
