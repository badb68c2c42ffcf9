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
        >>> loss_fn = simct(aligner, divergence="forward_kl")  # doctest: +SKIP
    """
    return SimCTLoss(aligner, candidates="realized", **keywords)
