"""The losses: `SimCTLoss` from logits, `LinearSimCTLoss` from hidden states.

The published objectives to compare with are in `simct_align.loss.baselines`, the back ends in
`simct_align.loss.backends`.
"""

from .backends import Backend, TorchBackend, register_backend
from .contract import Loss, LossOutput
from .metrics import LossMetrics
from .multi_teacher import MultiTeacherLoss, MultiTeacherOutput
from .shards import VocabularyShard
from .simct import LinearSimCTLoss, SimCTLoss
from .text import LinearTextLoss, TextLoss
from .text_metrics import TextLossOutput, TextMetrics

__all__ = [
    "Backend",
    "LinearSimCTLoss",
    "LinearTextLoss",
    "Loss",
    "LossMetrics",
    "LossOutput",
    "MultiTeacherLoss",
    "MultiTeacherOutput",
    "SimCTLoss",
    "TextLoss",
    "TextLossOutput",
    "TextMetrics",
    "TorchBackend",
    "VocabularyShard",
    "register_backend",
]
