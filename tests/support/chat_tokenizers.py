"""`transformers` tokenizers with chat templates, around the bundled and the real ones."""

from __future__ import annotations

import functools
import gzip
from typing import Any

from simct_align import Aligner, Vocabulary
from simct_align.demo import demo_tokenizers
from support.vocabularies import BUNDLED, SOURCES

#: Every turn between control tokens; nothing but them is put around the contents.
BYTE_LEVEL_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
#: Roles as text, in the style of Llama 2; a system message is not allowed.
BYTE_FALLBACK_TEMPLATE = (
    "{{ '<s>' }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[Q] ' + m['content'] | trim + ' [A]' }}"
    "{% else %}{{ m['content'] | trim + '</s>' }}{% endif %}{% endfor %}"
)


@functools.cache
def demo_chat_tokenizers() -> tuple[Any, Any]:
    """The bundled pair, byte-level and byte-fallback, as fast tokenizers with templates."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    level, fallback = (
        Tokenizer.from_buffer(gzip.decompress((path / "tokenizer.json.gz").read_bytes()))
        for path in demo_tokenizers()
    )
    return (
        PreTrainedTokenizerFast(
            tokenizer_object=level, eos_token="<|end|>", chat_template=BYTE_LEVEL_TEMPLATE
        ),
        PreTrainedTokenizerFast(
            tokenizer_object=fallback,
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
            chat_template=BYTE_FALLBACK_TEMPLATE,
        ),
    )


def demo_aligner(*, turned: bool = False) -> Aligner:
    """An aligner of the bundled pair from paths: byte-level teaches, unless turned."""
    return Aligner(*demo_tokenizers()[:: -1 if turned else 1])


@functools.cache
def real_chat_tokenizer(name: str) -> Any:
    """A tokenizer with its own chat template, one of the five or of those that need no folder."""
    import json

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    if name in BUNDLED:
        return demo_chat_tokenizers()[BUNDLED.index(name)]
    path = SOURCES[name]()
    config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
    names = ("bos_token", "eos_token", "pad_token", "chat_template")
    options = {
        key: config[key]["content"] if isinstance(config[key], dict) else config[key]
        for key in names
        if config.get(key)
    }
    packed, plain = path / "tokenizer.json.gz", path / "tokenizer.json"
    content = gzip.decompress(packed.read_bytes()) if packed.exists() else plain.read_bytes()
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_buffer(content),
        **({"chat_template": TEMPLATES.get(name)} | options),
    )


#: As the models' own: their folders have none.
TEMPLATES = {
    "gemma2": (
        "{{ bos_token }}{% for m in messages %}"
        "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' "
        "+ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "deepseek": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if m['role'] == 'assistant' %}{{ '<｜Assistant｜>' + m['content'] + eos_token }}"
        "{% else %}{{ '<｜User｜>' + m['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
    ),
}
#: What ends a turn, and a document, in these templates.
STOPS = {
    "gemma2": ["<end_of_turn>", "<eos>"],
    "qwen2_5": ["<|im_end|>", "<|endoftext|>"],
    "llama3_1": ["<|eot_id|>", "<|end_of_text|>"],
    "mistral_nemo": ["</s>"],
    "deepseek": ["<｜end▁of▁sentence｜>"],
    "demo_byte_level": ["<|end|>"],
    "demo_byte_fallback": ["</s>"],
}


def real_aligner(teacher: str, student: str) -> Aligner:
    """An aligner of two real tokenizers, as their chat models end a turn."""
    names = (teacher, student)
    vocabularies = [Vocabulary.from_tokenizer(real_chat_tokenizer(name)) for name in names]
    return Aligner(*vocabularies, stop_tokens=(STOPS[teacher], STOPS[student]))
