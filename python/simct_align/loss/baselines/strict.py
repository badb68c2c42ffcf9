"""Internal: reverse KL over the shared vocabulary (strict matching, arXiv 2610.08448).

Only units of one token on both sides are compared. With q and p the teacher's and the student's
distribution, both normalized over a set C of shared tokens, the value is

    Σ_{u ∈ C} p(u) log(p(u) / q(u)).

C is the shared vocabulary, or the student's k most probable tokens of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from simct_align.divergence import LOG_FLOOR

from .common import TopKBaseline

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align.index import Side

    from .common import UnitRows


class StrictLoss(TopKBaseline):
    """Strict matching: reverse KL over the shared vocabulary, without MULTI units.

    Use this baseline to compare with an objective that reads shared tokens only. Without `top_k`
    the value of a unit is that of `SimCTLoss(aligner, candidates="shared")`.

    Where it differs from the paper: mapped special tokens are shared tokens, SPECIAL units take
    part, and all stops of a side are one token.

    Args:
        aligner: The pair of vocabularies.
        top_k: The number of shared tokens to compare, the most probable for the student, such as
            16; None compares all.
        **keywords: The keywords of `Baseline`.

    Raises:
        ValueError: `top_k` is not positive, or a keyword is out of its range.

    Complexity:
        O(units x vocabulary) time; memory as for `Baseline`.

    Example:
        >>> from simct_align import Aligner, Vocabulary
        >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> aligner = Aligner(teacher, student)
        >>> StrictLoss(aligner, top_k=16).top_k
        16
    """

    def per_unit(self, *, teacher: UnitRows, student: UnitRows) -> Tensor:
        """Return the values of a chunk: see `Baseline`."""
        log_p = self._shared("student", student.log_probs)
        log_q = self._shared("teacher", teacher.log_probs)
        if self.top_k is not None:
            kept = log_p.detach().topk(min(self.top_k, log_p.shape[1]), dim=1).indices
            log_p, log_q = log_p.gather(1, kept), log_q.gather(1, kept)
        log_p, log_q = (x.log_softmax(1).clamp_min(LOG_FLOOR) for x in (log_p, log_q))
        return (log_p.exp() * (log_p - log_q)).sum(1)

    def _shared(self, side: Side, log_probs: Tensor) -> Tensor:
        """Return `[c, shared]` log-probabilities, with those of all stops added up."""
        columns, stop = self.columns.side(side), self.columns.stop_column
        chosen = log_probs.index_select(1, columns.ids).clamp_min(LOG_FLOOR)
        if not columns.n_extra:
            return chosen
        chosen, extra = chosen.tensor_split([chosen.shape[1] - columns.n_extra], 1)
        stops = torch.cat([chosen[:, stop : stop + 1], extra], 1).logsumexp(1, keepdim=True)
        return torch.cat([chosen[:, :stop], stops, chosen[:, stop + 1 :]], 1)
