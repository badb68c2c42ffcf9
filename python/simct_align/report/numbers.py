"""Internal: numbers as a report writes them."""

from __future__ import annotations


def count_text(value: int) -> str:
    """Write a whole number."""
    return f"{value:,}"


def share_text(value: float) -> str:
    """Write a share such that no part of something reads as nothing, and no part as all of it."""
    if 0 < value < 0.0005:
        return "< 0.1 %"
    if 0.9995 < value < 1:
        return "> 99.9 %"
    return f"{100 * value:.1f} %"
