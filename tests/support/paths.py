"""Where the tests find the five real tokenizers and GSM8K, which the repository does not hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

#: The published tokenizers of these models: a folder each in $SIMCT_TOKENIZERS.
TOKENIZER_NAMES = ("gemma2", "gpt4o", "llama3_1", "mistral_nemo", "qwen2_5")
#: How a reason begins that the terminal summary repeats.
LEFT_OUT = "left out: needs "


def found(variable: str, name: str) -> Path | None:
    """The path of `name` in the folder that an environment variable names, if it is there."""
    folder = os.environ.get(variable)
    path = Path(folder, name) if folder else None
    return path if path is not None and path.exists() else None


def require(variable: str, name: str) -> Path:
    """The same; where it is missing, the test is skipped, and the summary says so."""
    path = found(variable, name)
    if path is None:
        pytest.skip(f"{LEFT_OUT}{name} in the folder that {variable} names")
    return path


def tokenizer_dir(name: str) -> Path:
    """The folder of one of the five tokenizers."""
    return require("SIMCT_TOKENIZERS", name)
