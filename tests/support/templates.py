"""Chat templates in the manner of those in the wild, in own words, and tokenizers for them."""

from __future__ import annotations

import functools
import gzip
from typing import Any

from simct_align import Aligner
from simct_align.demo import demo_tokenizers

#: The control tokens of all templates.
CONTROL = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|bos|>", "<|head|>", "<|/head|>", "<|eot|>"),
    *("<|eom|>", "<turn>", "</turn>", "<eos>", "[INST]", "[/INST]", "[CALLS]", "[RESULT]"),
    *("[/RESULT]", "</s>", "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>"),
    *("<|call|>", "<|User|>", "<|Assistant|>", "<|eos|>"),
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{{ '\n' if m.content or not loop.first }}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Trims texts, and ends a call otherwise than an answer.
LLAMA = (
    "<|bos|>{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n"
    "{% if m.tool_calls %}"
    '{% set f = m.tool_calls[0].function %}{"name": "{{ f.name }}", "parameters": '
    "{{ f.arguments | tojson }}}<|eom|>"
    "{% else %}{{ m.content | trim }}<|eot|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
GEMMA = (
    "<|bos|>{% for m in messages %}"
    "{% if m.role not in ('user', 'assistant') or (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/model, without a system role') }}{% endif %}"
    "<turn>{{ 'model' if m.role == 'assistant' else 'user' }}\n{{ m.content | trim }}</turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
#: Nothing stands between a question and its answer but a control token; ids of nine characters.
MISTRAL = (
    "<|bos|>{% set ns = namespace(calls=0) %}{% for m in messages %}"
    "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% elif m.tool_calls %}{% set ns.calls = ns.calls + 1 %}[CALLS][{% for c in m.tool_calls %}"
    "{% if c.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, '
    '"id": "{{ c.id }}"}{{ ", " if not loop.last }}{% endfor %}]</s>'
    "{% elif m.role == 'tool' %}{% if not ns.calls %}{{ raise_exception('no call') }}{% endif %}"
    "[RESULT]{{ m.content }}[/RESULT]"
    "{% elif m.role == 'assistant' %}{% if messages[loop.index0 - 1].role == 'assistant' %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}</s>"
    "{% else %}{{ raise_exception('no such role: ' + m.role) }}{% endif %}{% endfor %}"
)
#: Reasoning is written after the last question only, where an empty block stands for none.
THINKING = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set content = m.content or '' %}"
    "{% set thought = m.reasoning_content or '' %}"
    "{% if '</think>' in content %}{% set thought = content.split('</think>')[0]"
    ".split('<think>')[-1].strip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "<think>\n{{ thought.strip('\n') }}\n</think>\n\n{% endif %}"
    "{{ content }}{% for call in m.tool_calls or [] %}{{ '\n' if content or not loop.first }}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": '
    "{{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
#: Channels; the last answer ends otherwise than the same answer in history.
HARMONY = (
    "{% set ns = namespace(call='') %}{% for m in messages %}"
    "{% if m.role == 'tool' %}{% if not ns.call %}{{ raise_exception('result without a call') }}"
    "{% endif %}<|start|>functions.{{ ns.call }} to=assistant<|channel|>commentary<|message|>"
    "{{ m.content }}<|end|>"
    "{% elif m.role == 'assistant' and m.tool_calls %}{% set f = m.tool_calls[0].function %}"
    "{% set ns.call = f.name %}{% if m.thinking %}<|start|>assistant<|channel|>analysis<|message|>"
    "{{ m.thinking }}<|end|>{% endif %}<|start|>assistant to=functions.{{ f.name }}<|channel|>"
    "commentary json<|message|>{{ f.arguments | tojson }}<|call|>"
    "{% elif m.role == 'assistant' %}{% if '<|channel|>' in m.content %}"
    "{{ raise_exception('channels belong to the template') }}{% endif %}"
    "{% if m.thinking and loop.last %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
#: Opens a think block for the model, and drops everything up to its end from history.
DEEP = (
    "<|bos|>{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1] }}<|eos|>"
    "{% else %}{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
)
#: An end after every answer, and one more after the conversation.
TWO_ENDS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}</s>"
    "{% else %}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}"
    "{% if not add_generation_prompt %}</s>{% endif %}"
)
#: White space before every end.
SPACED = (
    "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content | trim }} </s>"
    "{% else %}[INST] {{ m.content | trim }} [/INST]{% endif %}{% endfor %}"
)
NEWLINE_BEFORE_END = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}\n<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS_ONLY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% else %}[picture]"
    "{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BOTH_SHAPES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

#: Every template with the tokens that end its turns.
TEMPLATES: dict[str, tuple[str, list[str]]] = {
    "chatml": (CHATML, ["<|im_end|>", "<|endoftext|>"]),
    "llama": (LLAMA, ["<|eot|>", "<|eom|>"]),
    "gemma": (GEMMA, ["</turn>", "<eos>"]),
    "mistral": (MISTRAL, ["</s>"]),
    "thinking": (THINKING, ["<|im_end|>", "<|endoftext|>"]),
    "harmony": (HARMONY, ["<|return|>", "<|call|>", "<|end|>"]),
    "deep": (DEEP, ["<|eos|>"]),
    "two_ends": (TWO_ENDS, ["</s>"]),
    "spaced": (SPACED, ["</s>"]),
    "newline_before_end": (NEWLINE_BEFORE_END, ["<|im_end|>"]),
    "parts_only": (PARTS_ONLY, ["<|im_end|>"]),
    "both_shapes": (BOTH_SHAPES, ["<|im_end|>"]),
    "marked": (MARKED, ["<|im_end|>"]),
}


@functools.cache
def _tokenizer(side: int) -> Any:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    path = demo_tokenizers()[side]
    made = Tokenizer.from_buffer(gzip.decompress((path / "tokenizer.json.gz").read_bytes()))
    made.add_special_tokens([AddedToken(name, normalized=False) for name in CONTROL])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<|endoftext|>")


def templated(name: str, side: int) -> Any:
    """A bundled tokenizer with a template: the byte-level one (0) or the one with fallback (1)."""
    import copy

    tokenizer = copy.deepcopy(_tokenizer(side))
    tokenizer.chat_template = TEMPLATES[name][0]
    return tokenizer


@functools.cache
def template_aligner(teacher: str, student: str, *, turned: bool = False) -> Aligner:
    """An aligner for two templates: the byte-level tokenizer teaches, unless turned."""
    sides = (1, 0) if turned else (0, 1)
    return Aligner(
        *map(_tokenizer, sides), stop_tokens=(TEMPLATES[teacher][1], TEMPLATES[student][1])
    )
