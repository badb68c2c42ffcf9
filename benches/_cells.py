"""Benches that take hours: one file for each result, and a command line that resumes a bench."""

from __future__ import annotations

import argparse
import fnmatch
import gzip
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from _common import commit_id
from gguf_models import Loaded
from measurements import Measured, Ratio
from two_families import as_json

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Cell:
    """One result of a bench, in one file."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.path = name, folder / f"{name}.json"

    def exists(self) -> bool:
        return self.path.exists()

    def read(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return found

    def write(self, **content: Any) -> None:
        """Write the file completely or not at all, so that an interrupted cell is run again."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps({"commit": commit_id()} | content) + "\n", encoding="utf-8")
        part.replace(self.path)

    def figure(self, name: str, of: str = "figures") -> Ratio:
        parts = self.read()[of][name]
        return Ratio(np.array(parts["numerator"]), np.array(parts["denominator"]))


class Resumable(Protocol):
    """A bench of many cells."""

    def run(self, patterns: Sequence[str]) -> int:
        """Run missing cells whose names match; return how many."""
        ...

    def show(self) -> None:
        """Print the finished cells, and list the empty ones."""
        ...


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Return whether a name matches a pattern; without patterns all names match."""
    return not patterns or any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def measured_as_json(measured: Measured) -> dict[str, Any]:
    return {
        "figures": {name: as_json(ratio) for name, ratio in measured.figures.items()},
        "texts": measured.texts[:5],
        "left_out": measured.left_out,
    }


def tiny_models() -> tuple[Loaded, Loaded]:
    """Make random models for the bundled tokenizers, in the form of a loaded real pair."""
    from tokenizers import Tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from simct_align import Vocabulary
    from simct_align.demo import demo_tokenizers

    template = (
        "{% for m in messages %}{{ m['content'] }}{% if m['role'] == 'assistant' %}"
        "{{ eos_token }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
    )
    loaded = []
    for seed, (path, end) in enumerate(zip(demo_tokenizers(), ("<|end|>", "</s>"), strict=True)):
        data = gzip.decompress((path / "tokenizer.json.gz").read_bytes())
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_buffer(data),
            eos_token=end,
            pad_token=end,
            chat_template=template,
        )
        torch.manual_seed(seed)
        stop = tokenizer.convert_tokens_to_ids(end)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            eos_token_id=stop,
            pad_token_id=stop,
        )
        loaded.append(
            Loaded(
                LlamaForCausalLM(config).eval(),
                tokenizer,
                Vocabulary.from_tokenizer(tokenizer),
                (stop,),
                stop,
            )
        )
    return loaded[0], loaded[1]


def command_line(
    description: str | None,
    folder: Path,
    bench: Callable[[Path], Resumable],
    quick: Callable[[], None],
) -> None:
    """Run a bench with the arguments of the command line.

    Args:
        description: The bench's docstring; its first line is the description in the help.
        folder: The default folder of the cells.
        bench: A function of a folder that makes the bench.
        quick: A function that runs a small version of the whole bench and checks the results.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    add = parser.add_argument
    add("--show", action="store_true", help="only show what is there")
    add("--quick", action="store_true", help="tiny random models, into a temporary folder")
    add("--only", action="append", default=[], metavar="GLOB", help="names of cells to run")
    add("--cells", type=Path, default=folder, help="folder of the cells (%(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.quick:
        quick()
        return
    cells = bench(options.cells)
    if not options.show:
        cells.run(options.only)
    cells.show()
