"""Real tokenizers: tables against their own encoders and decoders, and the counted facts."""

from __future__ import annotations

import functools
import random
import time
import unicodedata
from typing import TYPE_CHECKING

import pytest

from simct_align.readers import TextTokenizer, TokenTable, open_tokenizer
from simct_align.token_kind import TokenKind
from support.texts import answers, hard_texts
from support.vocabularies import SOURCES

if TYPE_CHECKING:
    from collections.abc import Callable

NORMAL, BYTE, SPECIAL, UNUSED = TokenKind


DUMMY_PREFIX = {"mistral_v1", "mistral_v3", "mistral_v7"}
STOPS = {
    "gemma2": (1,),
    "gpt4o": (199999,),
    "llama3_1": (128009,),
    "mistral_nemo": (2,),
    "qwen2_5": (151645,),
    "deepseek": (1,),
    "qwen_tiktoken": (151643,),
    "qwen3_tiktoken": (248044,),
    "mistral_v1": (2,),
    "mistral_v3": (2,),
    "mistral_v7": (2,),
    "tekken": (2,),
}
SIZES = {
    "gemma2": {NORMAL: 255739, BYTE: 255, SPECIAL: 6},  # the byte 0x09 is a normal token
    "gpt4o": {NORMAL: 199998, SPECIAL: 2, UNUSED: 19},
    "llama3_1": {NORMAL: 128000, SPECIAL: 256},
    "mistral_nemo": {NORMAL: 130072, SPECIAL: 1000},
    "qwen2_5": {NORMAL: 151651, SPECIAL: 14},
    "deepseek": {NORMAL: 128050, SPECIAL: 1230},
    "qwen_tiktoken": {NORMAL: 151643, SPECIAL: 208},
    "qwen3_tiktoken": {NORMAL: 248044, SPECIAL: 33},
    "mistral_v1": {NORMAL: 31741, BYTE: 256, SPECIAL: 3},
    "mistral_v3": {NORMAL: 31761, BYTE: 256, SPECIAL: 751},
    "mistral_v7": {NORMAL: 31763, BYTE: 256, SPECIAL: 749},
    "tekken": {NORMAL: 130072, SPECIAL: 1000},
}


@functools.cache
def opened(name: str) -> tuple[TextTokenizer, TokenTable]:
    reader = open_tokenizer(SOURCES[name]())
    return reader, reader.table()


def token_bytes(name: str, ids: list[int]) -> bytes:
    table = opened(name)[1]
    return b"".join(table.token_bytes[token] for token in ids)


@pytest.mark.parametrize("name", SIZES)
def test_kinds_and_stops(name):
    table = opened(name)[1]
    kinds = table.kinds.tolist()
    assert {kind: kinds.count(kind) for kind in set(kinds)} == SIZES[name]
    assert table.stop_ids == STOPS[name]
    assert table.dummy_prefix is (name in DUMMY_PREFIX)
    assert sorted(table.special_names) == [i for i, kind in enumerate(kinds) if kind == SPECIAL]
    assert not any(table.token_bytes[i] for i, kind in enumerate(kinds) if kind >= SPECIAL)
    assert all(len(table.token_bytes[i]) == 1 for i, kind in enumerate(kinds) if kind == BYTE)


@pytest.mark.parametrize("name", SIZES)
def test_token_bytes_spell_the_text(name):
    texts = answers(300) + hard_texts()
    for text, row in zip(texts, opened(name)[0].encode_batch(texts), strict=True):
        # Qwen's own tokenizer.json normalizes; its tiktoken file does not.
        expected = unicodedata.normalize("NFC", text) if name == "qwen2_5" else text
        if name in DUMMY_PREFIX and text:
            expected = " " + expected
        assert token_bytes(name, row) == expected.encode()


@pytest.mark.parametrize("name", SIZES)
def test_names_of_control_tokens_stay_text(name):
    reader, table = opened(name)
    words = [*table.special_names.values(), "<eos>", "<|im_end|>", "<|endoftext|>", "</s>"]
    texts = [text for word in words for text in (word, f"x{word}y", f" {word} {word}\n")]
    for text, row in zip(texts, reader.encode_batch(texts), strict=True):
        assert table.special_names.keys().isdisjoint(row)
        spelled = token_bytes(name, row).decode()
        assert (spelled.removeprefix(" ") if name in DUMMY_PREFIX else spelled) == text


def own_decoder(name: str) -> Callable[[list[int]], str]:
    """The tokenizer's decoder of whole sequences."""
    source = SOURCES[name]()
    if "tiktoken" in name:
        return lambda ids: str(source.decode(ids, errors="replace"))
    if name in DUMMY_PREFIX:
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor(model_file=str(source))
        return lambda ids: str(processor.decode(ids))
    if name == "tekken":
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        tekkenizer = Tekkenizer.from_file(source)
        return lambda ids: str(tekkenizer.decode(ids))
    tokenizer = opened(name)[0]._tokenizer
    return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False))


@pytest.mark.parametrize("name", SIZES)
def test_bytes_agree_with_the_own_decoder_on_random_ids(name):
    table = opened(name)[1]
    decode = own_decoder(name)
    # Byte fallbacks in a row are shown with one U+FFFD per byte where they are no character,
    # and control tokens are shown by name: neither has a text to compare.
    usable = [i for i, kind in enumerate(table.kinds.tolist()) if kind == NORMAL]
    generator = random.Random(f"{name} random ids")
    for _ in range(150):
        ids = generator.choices(usable, k=generator.randint(1, 20))
        expected = token_bytes(name, ids).decode(errors="replace")
        if name in DUMMY_PREFIX:
            expected = expected.removeprefix(" ")
        assert decode(ids) == expected


@pytest.mark.parametrize("name", SIZES)
def test_bytes_agree_with_the_own_decoder_on_texts(name):
    texts = answers(50) + hard_texts()
    decode = own_decoder(name)
    for row in opened(name)[0].encode_batch(texts):
        spelled = token_bytes(name, row).decode()
        assert decode(row) == (spelled.removeprefix(" ") if name in DUMMY_PREFIX else spelled)


def distinct(name: str) -> set[bytes]:
    table = opened(name)[1]
    return {table.token_bytes[i] for i, kind in enumerate(table.kinds) if kind in (NORMAL, BYTE)}


@pytest.mark.parametrize(
    ("one", "other", "count"),
    [
        ("qwen2_5", "gemma2", 97_675),
        ("qwen2_5", "gpt4o", 98_863),
        ("gpt4o", "gemma2", 123_099),
        ("llama3_1", "qwen2_5", 109_566),
        ("qwen_tiktoken", "deepseek", 84_030),
        ("deepseek", "tekken", 73_192),
        ("tekken", "mistral_v3", 29_163),
    ],
)
def test_shared_byte_strings(one, other, count):
    assert len((distinct(one) & distinct(other)) - {b""}) == count


@pytest.mark.parametrize(("name", "count"), [("gemma2", 125), ("mistral_v3", 125)])
def test_some_vocabularies_have_duplicates(name, count):
    table = opened(name)[1]
    tokens = sum(kind in (NORMAL, BYTE) for kind in table.kinds.tolist())
    assert tokens - len(distinct(name)) == count


def test_tables_take_no_time():
    reader = opened("qwen3_tiktoken")[0]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        reader.table()
        seconds.append(time.perf_counter() - start)
    # 0.2 s when the machine is idle; the bound is there to catch a call per token.
    assert min(seconds) < 1.0
