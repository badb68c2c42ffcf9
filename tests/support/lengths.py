"""How much the tests do: `SIMCT_FULL=1` runs the long forms, which `make test` shortens.

A short form has every kind of case of the long one; it has fewer pairs of tokenizers, or fewer
random inputs.
"""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

FULL = os.environ.get("SIMCT_FULL", "") not in ("", "0")


def full(long: T, short: T) -> T:
    """The long form if the environment asks for it, else the short one."""
    return long if FULL else short
