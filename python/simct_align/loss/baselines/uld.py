"""Universal Logit Distillation (Boizard et al. 2024, arXiv 2402.12030).

At every position both distributions are sorted and compared rank by rank, `sum |p_(i) - q_(i)|`,
the shorter one padded with zeros: no token is matched with any other. Positions are units of one
token on both sides. The top-k form keeps the k largest of either and adds the rest as one bin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .common import Baseline, sorted_distance

if TYPE_CHECKING:
    from torch import Tensor

    from .common import UnitRows


class ULDLoss(Baseline):
    """Sorted-probability L1 at SHARED and SPECIAL units.

    Use it as the baseline that knows nothing of tokens.

    Args:
        aligner: the pair of vocabularies.
        top_k: compare the k largest probabilities and the sum of the rest; None for all.
        **keywords: Of `Baseline`.

    Raises:
        ValueError: `top_k` is not positive.

    Complexity:
        O(units x vocabulary x log vocabulary) for the full sort.

    Example:
        >>> from simct_align import Aligner, Vocabulary
        >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> aligner = Aligner(teacher, student)
        >>> ULDLoss(aligner, top_k=10).top_k
        10
    """

    @property
    def uses_multi(self) -> bool:
        """MULTI units take no part."""
        return False

    def __init__(self, aligner: Any, *, top_k: int | None = None, **keywords: Any) -> None:
        super().__init__(aligner, **keywords)
        if top_k is not None and top_k <= 0:
            raise ValueError(f"top_k: expected a positive number, got {top_k}")
        self.top_k = top_k

    def per_unit(self, *, teacher: UnitRows, student: UnitRows) -> Tensor:
        """See `Baseline`."""
        probs = [side.log_probs.exp() for side in (student, teacher)]
        if self.top_k is None:
            return sorted_distance(*probs)
        kept = [p.topk(min(self.top_k, p.shape[1]), dim=1).values for p in probs]
        rest = [1.0 - k.sum(1) for k in kept]
        return sorted_distance(*kept) + torch.abs(rest[0] - rest[1])
