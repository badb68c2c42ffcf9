"""Internal: the errors of this package. Each is a `ValueError`, so existing handlers catch it."""

from __future__ import annotations


class UnsupportedTokenizerError(ValueError):
    """The exact token bytes of a tokenizer cannot be read.

    Attributes:
        component: The unsupported part of the tokenizer, such as `"decoder CTC"`.
    """

    def __init__(self, component: str, reason: str) -> None:
        super().__init__(f"cannot read exact token bytes: {component}: {reason}")
        self.component = component


class MissingTokenizerError(ValueError):
    """A method that tokenizes text was called, but the object has no tokenizer."""


class MissingAlignerError(ValueError):
    """A method of a batch needs its aligner, but the process has no aligner with its digest."""
