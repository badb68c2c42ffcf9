"""The errors of this package: each is a `ValueError`, so that existing handlers catch it."""

from __future__ import annotations


class UnsupportedTokenizerError(ValueError):
    """A tokenizer whose token bytes cannot be read exactly.

    Attributes:
        component: The part that stands in the way, such as `"decoder CTC"`.
    """

    def __init__(self, component: str, reason: str) -> None:
        super().__init__(f"cannot read exact token bytes: {component}: {reason}")
        self.component = component


class MissingTokenizerError(ValueError):
    """A method that tokenizes text was called on an object that has no tokenizer."""


class MissingAlignerError(ValueError):
    """A method of a batch needs its aligner, and the process has none for that batch."""
