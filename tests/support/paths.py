"""Where the tests find real tokenizers and text, and a skip where these are missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKENIZERS = Path(os.environ.get("SIMCT_TOKENIZERS", ROOT.parent / "shared" / "tokenizers"))
DATA = Path(os.environ.get("SIMCT_DATA", ROOT.parent / "shared" / "data"))
TOKENIZER_NAMES = ("gemma2", "gpt4o", "llama3_1", "mistral_nemo", "qwen2_5")

#: What was asked for and is not there, for the summary.
missing: set[str] = set()


def require(path: Path, variable: str) -> Path:
    """The path; skips the test, aloud, where it is missing."""
    if not path.exists():
        missing.add(f"{path} (set {variable})")
        pytest.skip(f"needs {path}; set {variable}")
    return path


def tokenizer_dir(name: str) -> Path:
    """The directory of a real tokenizer."""
    return require(TOKENIZERS / name, "SIMCT_TOKENIZERS")
