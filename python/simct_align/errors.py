"""Internal: the errors of this package. Each is a `ValueError`, so existing handlers catch it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class UnsupportedTokenizerError(ValueError):
    """The exact token bytes of a tokenizer cannot be read.

    Attributes:
        component: The unsupported part of the tokenizer, such as `"decoder CTC"`.
    """

    def __init__(self, component: str, reason: str) -> None:
        super().__init__(f"cannot read exact token bytes: {component}: {reason}")
        self.component = component


class SlowTokenizerError(UnsupportedTokenizerError):
    """A `transformers` tokenizer that exists only as Python code, without bytes of its tokens.

    The message says which files or objects of the tokenizer can be read instead.

    Args:
        name: The class of the tokenizer.
        reason: Why it cannot be read.
        files: Its rank files.
    """

    def __init__(self, name: str, reason: str, *, files: Sequence[object] = ()) -> None:
        listed = ", ".join(map(str, files))
        ranks = f"its rank file {listed} with pattern= and control_tokens=, or " if files else ""
        super().__init__(
            f"slow transformers tokenizer {name}",
            f"{reason}; pass {ranks}its tiktoken.Encoding or SentencePieceProcessor if it wraps "
            "one, or the bytes of every id to Vocabulary.from_token_bytes",
        )


class MissingTokenizerError(ValueError):
    """A method that tokenizes text was called, but the object has no tokenizer."""


class MissingAlignerError(ValueError):
    """A method of a batch needs its aligner, but the process has no aligner with its digest."""
