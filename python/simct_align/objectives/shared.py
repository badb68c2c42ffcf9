"""Shared-vocabulary OPD: SimCT's own baseline (SimpleOPD in arXiv 2605.07711).

Reverse KL over the tokens that both vocabularies hold, where both sides emit one such token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..loss import SimCTLoss

if TYPE_CHECKING:
    from ..loss.tables import PairTables


def shared(aligner: PairTables, **keywords: Any) -> SimCTLoss:
    """Return the loss over SHARED and SPECIAL units only.

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
        >>> shared(aligner).candidates
        'shared'
    """
    return SimCTLoss(aligner, candidates="shared", **keywords)
