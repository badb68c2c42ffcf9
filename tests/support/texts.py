"""Real text: answers with arithmetic, and texts that tokenizers treat differently."""

from __future__ import annotations

import json

from support.paths import DATA, require


def gsm8k_answers(count: int) -> list[str]:
    """The first answers of the GSM8K sample."""
    path = require(DATA / "gsm8k_train_2000.jsonl", "SIMCT_DATA")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["answer"] for line, _ in zip(lines, range(count), strict=False)]


def hard_texts() -> list[str]:
    """Short texts that tokenizers treat differently."""
    path = require(DATA / "hard_texts.jsonl", "SIMCT_DATA")
    with path.open(encoding="utf-8") as lines:  # not splitlines: U+2028 stands in one of them
        return [json.loads(line)["text"] for line in lines]
