"""Internal: Universal Logit Distillation (Boizard et al. 2024, arXiv 2402.12030).

At every position both distributions are sorted and compared rank by rank, `sum |p_(i) - q_(i)|`,
and the shorter one is padded with zeros. Tokens are not matched with each other. The positions are
the units of one token on both sides. The top-k form keeps the k largest probabilities of each
distribution and adds up the rest as one more value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .common import TopKBaseline, sorted_distance

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.top_k import TopKLogprobs

    from .common import UnitRows


class ULDLoss(TopKBaseline):
    """Universal Logit Distillation: L1 distance of sorted probabilities, without MULTI units.

    Use this baseline to compare with an objective that does not match tokens. With `top_k`, the
    likeliest tokens of a served teacher are enough: a `TopKLogprobs` of at least `top_k` tokens.

    Args:
        aligner: The pair of vocabularies.
        top_k: The number of largest probabilities to compare, together with the sum of the rest;
            None compares all.
        **keywords: The keywords of `Baseline`.

    Raises:
        ValueError: `top_k` is not positive, or a keyword is out of its range.

    Complexity:
        O(units x vocabulary x log vocabulary) time for the full sort; memory as for `Baseline`.

    Example:
        >>> from simct_align import Aligner, Vocabulary
        >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> aligner = Aligner(teacher, student)
        >>> ULDLoss(aligner, top_k=10).top_k
        10
    """

    def check_lists(self, lists: TopKLogprobs) -> None:
        """Take lists for the top-k form: see `Loss`."""
        del lists
        if self.top_k is None:
            raise TypeError(
                "teacher_logits: ULDLoss without top_k sorts whole rows, got TopKLogprobs: give "
                "top_k=, at most the length of the lists"
            )

    def lacks(self, teacher: UnitRows) -> Tensor:
        """Return the units whose lists are shorter than `top_k`: see `Baseline`."""
        assert self.top_k is not None  # `check_lists`
        side = self.columns.side("teacher")
        tokens = side.needed - side.unused.shape[0]
        return (teacher.log_probs > -torch.inf).sum(1) < min(self.top_k, tokens)

    def per_unit(self, *, teacher: UnitRows, student: UnitRows) -> Tensor:
        """Return the values of a chunk: see `Baseline`."""
        probs = [side.log_probs.exp() for side in (student, teacher)]
        if self.top_k is None:
            return sorted_distance(*probs)
        kept = [p.topk(min(self.top_k, p.shape[1]), dim=1).values for p in probs]
        rest = [1.0 - k.sum(1) for k in kept]
        return sorted_distance(*kept) + torch.abs(rest[0] - rest[1])
