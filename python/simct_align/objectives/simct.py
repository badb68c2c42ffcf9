"""SimCT (arXiv 2605.07711): the paper's Eqs. 7 to 9."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..loss import SimCTLoss

if TYPE_CHECKING:
    from ..loss.tables import PairTables


def simct(aligner: PairTables, **keywords: Any) -> SimCTLoss:
    """Return the loss of the paper: shared tokens and the realized unit, mean log-probabilities.

    Args:
        aligner: the pair of vocabularies.
        **keywords: of `SimCTLoss`.

    Returns:
        The loss module.

    Example:
        >>> from simct_align import Aligner, Vocabulary
        >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
        >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
        >>> aligner = Aligner(teacher, student)
        >>> simct(aligner, divergence="forward_kl").divergence
        ForwardKL()
    """
    return SimCTLoss(aligner, candidates="realized", **keywords)
