"""Texts to tokenize: those of tests/data always, GSM8K and more hard texts where they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from support.paths import found, require
from word_problems import word_problems

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = Path(__file__).resolve().parents[1] / "data"
GSM8K = "gsm8k_train_2000.jsonl"

#: Texts that could break a page or a terminal, or that a tokenizer changes.
HOSTILE_TEXTS = (
    "<script>alert('no')</script></script><!-- &amp; <b>bold</b>",
    "\x00\x07\x1b[31mred\u202eesrever\u2066\u200d\ufeff",
    "a▁b",  # the student's tokenizer writes a space
    "",
    "   ",
    "\r\n\t\n",
    "x" * 3_000,
    "مرحبا שלום 12",
)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="\n") as lines:  # U+2028 and \r end no line
        yield from map(json.loads, lines)


def gsm8k_answers(count: int) -> list[str]:
    """The first answers of GSM8K; skips the test where they are missing."""
    rows = _rows(require("SIMCT_DATA", GSM8K))
    return [row["answer"] for row, _ in zip(rows, range(count), strict=False)]


def answers(count: int) -> list[str]:
    """Answers with arithmetic: written for the tests, then of GSM8K, or generated without it."""
    own = [row["answer"] for row in _rows(DATA / "word_problems.jsonl")][:count]
    more = count - len(own)
    if found("SIMCT_DATA", GSM8K):
        return own + gsm8k_answers(more)
    return own + [row["completion"][0]["content"] for row in word_problems(more, seed=0)]


def hard_texts() -> list[str]:
    """Short texts that tokenizers treat differently: writing systems, white space, code."""
    paths = [DATA / "hard_texts.jsonl", DATA / "functions.jsonl"]
    more = found("SIMCT_DATA", "hard_texts.jsonl")
    return [row["text"] for path in (*paths, *([more] if more else [])) for row in _rows(path)]
