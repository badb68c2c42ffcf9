"""Texts to build exact language models from: short, in several forms, and hard to tokenize alike.

A corpus is a function from a seeded generator to one text. `sample` draws `SAMPLES` texts and
returns the distinct ones with their shares. Many texts begin alike and differ later: an
objective is tested where several continuations are possible.

"gsm8k" needs the GSM8K answers in the folder that `SIMCT_DATA` names. "python" and "prose" are read
from the sources of this interpreter's standard library, so they differ a little between versions
of Python.
"""

from __future__ import annotations

import ast
import functools
import itertools
import json
import math
import os
import random
import re
import sysconfig
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from _common import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

SEED, SAMPLES = 0, 500
DATA = Path(os.environ.get("SIMCT_DATA", ROOT.parent / "shared" / "data"))
SOURCE_FILES, GSM8K_BYTES = 60, 32

NAMES = (
    "area", "radius", "value", "index", "total", "count", "result", "newline", "node_id", "x1",
    "compute_sum", "is_valid", "tmp",
)  # fmt: skip
WORDS = (
    "the", "distillation", "of", "tokens", "newline", "rethinking", "unhappiness", "naïve", "café",
    "Übermut", "東京", "привет", "мир", "สวัสดี", "नमस्ते", "السلام", "שלום", "γειά", "한국어", "🙂",
    "don't", "can't", "e-mail", "co-operate", "C++", "3.14", "10:45",
)  # fmt: skip
CELLS = ("a", "Total", "x", "12", "3.5%", "", "**b**", "`f()`", "—", "100")
SPACES = (
    " ", "  ", "   ", "    ", "     ", "        ", "\n", "\n\n", "\n\n\n", "\n    ", "\n ", " \n",
    "\t", "\t\t", "\r\n", "\u00a0",
)  # fmt: skip
BETWEEN_SPACES = ("a", "return", "x1", ".", "(", "#", "the", "12", "é", "東京")


def code(rng: random.Random) -> str:
    """Write a function head and one or two lines, indented by spaces or tabs."""
    indent = rng.choice(("    ", "  ", "\t", "        "))
    lines = [f"def {rng.choice(NAMES)}({rng.choice(NAMES)}):\n"]
    for _ in range(rng.randint(1, 2)):
        depth = 2 if rng.random() < 0.25 else 1
        statement = rng.choice(("return ", "x = ", "if ", "for i in range("))
        number, name = str(rng.randint(0, 999)), rng.choice(NAMES)
        operand = rng.choice((number, name, f"{rng.randint(0, 9)}.5"))
        end = rng.choice(("\n", "\n\n", ":\n", "  # ok\n", ")\n"))
        lines.append(depth * indent + statement + operand + end)
    return "".join(lines)


def arithmetic(rng: random.Random) -> str:
    """Write a sum, a percentage, or a word problem with its answer."""
    left, right = rng.randint(1, 1500), rng.randint(1, 99)
    form = rng.randrange(3)
    if form == 0:
        return f"{left} + {right} = {left + right}."
    if form == 1:
        return f"${left}.{right:02d} * {right}%"
    story = f"She has {left} apples and buys {right} more, so {left + right} in total."
    return f"{story}\n\n#### {left + right}"


def words(rng: random.Random) -> str:
    """Write three to five words of several writing systems."""
    chosen = [rng.choice(WORDS) for _ in range(rng.randint(3, 5))]
    return " ".join(chosen) + rng.choice((".", "!", "?", "…"))


def json_objects(rng: random.Random) -> str:
    """Write an object of one to three members, compact or indented."""

    def value() -> str:
        texts = ("red", "naïve", "", "a b", "\\n", "x_1")
        return rng.choice((
            str(rng.randint(0, 2000)), f'"{rng.choice(texts)}"', "null", "true", "[]", "{}",
            f"[{rng.randint(0, 9)}, {rng.randint(0, 99)}]", "-1.5e3",
        ))  # fmt: skip

    keys = ("id", "name", "value", "items", "is_ok", "price_usd")
    layouts = (("", ", "), ("", ","), ("\n  ", ","), ("\n    ", ","), ("\n\t", ","))
    before, comma = rng.choice(layouts)
    members = [
        f'{before}"{rng.choice(keys)}":{rng.choice((" ", ""))}{value()}'
        for _ in range(rng.randint(1, 3))
    ]
    return "{" + comma.join(members) + before[:1] + "}"


def markdown(rng: random.Random) -> str:
    """Write a table with a head, its rule and one row."""
    columns, pad = rng.randint(2, 3), rng.choice(("", " ", "  "))

    def row() -> str:
        return "|" + "".join(f"{pad}{rng.choice(CELLS)}{pad}|" for _ in range(columns)) + "\n"

    rules = ("---", ":--", "--:", "-----", " --- ")
    rule = "|" + "".join(rng.choice(rules) + "|" for _ in range(columns)) + "\n"
    return row() + rule + row().rstrip("\n") + rng.choice(("", "\n", "\n\n"))


def white_space(rng: random.Random) -> str:
    """Write three to six pieces, each a word or white space."""
    pieces = range(rng.randint(3, 6))
    return "".join(rng.choice(rng.choice((SPACES, BETWEEN_SPACES))) for _ in pieces)


def numbers(rng: random.Random) -> str:
    """Write one number of up to nine digits, with what surrounds numbers."""
    digits = "".join(
        rng.choice("0123456789" if rng.random() < 0.5 else "01") for _ in range(rng.randint(1, 9))
    )
    before = rng.choice(("", "$", "-", "x = ", "1,"))
    return before + digits + rng.choice(("", ".0", "%", ",000", " + 1", "\n", "e10", "th"))


def gsm8k(rng: random.Random) -> str:
    """Draw three consecutive words of the answers of GSM8K, at most 32 bytes.

    Longer ones are calculations of many digits, and one of them would get most of the probability
    of a tilted distribution.
    """
    return _draw(rng, *_gsm8k_triples())


def python(rng: random.Random) -> str:
    """Draw the end of a line of the standard library, and the beginning of the next line."""
    return _draw(rng, *_python_lines())


def prose(rng: random.Random) -> str:
    """Draw four consecutive words of the docstrings of the standard library."""
    return _draw(rng, *_prose_words())


CORPORA: dict[str, Callable[[random.Random], str]] = {
    "code": code, "arithmetic": arithmetic, "words": words, "json": json_objects,
    "markdown": markdown, "white_space": white_space, "numbers": numbers, "gsm8k": gsm8k,
    "python": python, "prose": prose,
}  # fmt: skip


def available() -> list[str]:
    """Return the names of the corpora whose sources are there."""
    return [name for name in CORPORA if name != "gsm8k" or _gsm8k_file().exists()]


def sample(name: str, samples: int = SAMPLES) -> dict[str, float]:
    """Return distinct texts of a corpus with their probabilities, which sum to 1."""
    rng = random.Random(SEED)
    counts = Counter(CORPORA[name](rng) for _ in range(samples))
    return {text: count / samples for text, count in counts.items()}


def tilted(texts: Mapping[str, float], seed: int, spread: float = 0.5) -> dict[str, float]:
    """Return another distribution over the same texts: the same pieces are tilted alike.

    The log-probability of a text changes by the sum of one normal number for each of its words,
    digits and stretches of white space, and one for the text itself. `seed` and the piece decide
    the number.
    """

    def normal(piece: str, deviation: float) -> float:
        return random.Random(f"{seed} {piece}").gauss(0.0, deviation)

    weights = {
        text: p
        * math.exp(
            sum(normal(piece, spread) for piece in re.findall(r"\s+|\d|[^\s\d]+", text))
            + normal(f"text {text}", spread / 2)
        )
        for text, p in texts.items()
    }
    total = sum(weights.values())
    return {text: weight / total for text, weight in weights.items()}


def _draw(rng: random.Random, texts: list[str], counts: list[int]) -> str:
    return rng.choices(texts, counts)[0]


def _listed(found: Iterator[str]) -> tuple[list[str], list[int]]:
    counts = Counter(found)
    return list(counts), list(counts.values())


def _gsm8k_file() -> Path:
    return DATA / "gsm8k_train_2000.jsonl"


@functools.cache
def _gsm8k_triples() -> tuple[list[str], list[int]]:
    with _gsm8k_file().open(encoding="utf-8") as lines:
        answers = [json.loads(line)["answer"].split(" ") for line in lines]
    triples = (" ".join(a[i : i + 3]) for a in answers for i in range(0, len(a) - 3, 3))
    return _listed(text for text in triples if len(text.encode()) <= GSM8K_BYTES)


def _sources() -> list[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    paths = sorted(library.glob("*.py"))[:SOURCE_FILES]
    return [path.read_text(encoding="utf-8", errors="ignore") for path in paths]


@functools.cache
def _python_lines() -> tuple[list[str], list[int]]:
    sources = (source.splitlines(keepends=True) for source in _sources())
    return _listed(
        line[-8:] + following[:14]
        for lines in sources
        for line, following in itertools.pairwise(lines)
        if len(line.strip()) > 8
    )


@functools.cache
def _prose_words() -> tuple[list[str], list[int]]:
    def windows() -> Iterator[str]:
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        for source in _sources():
            for node in ast.walk(ast.parse(source)):
                text = ast.get_docstring(node) if isinstance(node, kinds) else None
                found = (text or "").split()
                yield from (" ".join(found[i : i + 4]) for i in range(0, len(found) - 3, 4))

    return _listed(windows())
