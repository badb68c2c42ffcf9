"""Where the tests find real tokenizers and text, and what they say when these are missing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOKENIZERS = Path(os.environ.get("SIMCT_TOKENIZERS", ROOT.parent / "shared" / "tokenizers"))
DATA = Path(os.environ.get("SIMCT_DATA", ROOT.parent / "shared" / "data"))
TOKENIZER_NAMES = ("gemma2", "gpt4o", "llama3_1", "mistral_nemo", "qwen2_5")

#: What was asked for and is not there, for the summary.
_missing: set[str] = set()


def _require(path: Path, variable: str) -> Path:
    if not path.exists():
        _missing.add(f"{path} (set {variable})")
        pytest.skip(f"needs {path}; set {variable}")
    return path


def tokenizer_dir(name: str) -> Path:
    """The directory of a real tokenizer; skips the test, aloud, where it is missing."""
    return _require(TOKENIZERS / name, "SIMCT_TOKENIZERS")


def gsm8k_answers(count: int) -> list[str]:
    """The first answers of the GSM8K sample."""
    path = _require(DATA / "gsm8k_train_2000.jsonl", "SIMCT_DATA")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["answer"] for line, _ in zip(lines, range(count), strict=False)]


def hard_texts() -> list[str]:
    """Short texts that tokenizers treat differently."""
    path = _require(DATA / "hard_texts.jsonl", "SIMCT_DATA")
    with path.open(encoding="utf-8") as lines:  # not splitlines: U+2028 stands in one of them
        return [json.loads(line)["text"] for line in lines]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was left out, whatever the verbosity."""
    if _missing:
        terminalreporter.section("left out: real tokenizers or data that are not there")
        for path in sorted(_missing):
            terminalreporter.line(path)
