"""Makes the two tokenizers that ship in `simct_align.demo`, from text that it writes itself.

`python tools/make_demo_tokenizers.py` writes them; `--check` builds them again and compares
them with the files in the package (exit code 1 where they differ). The merges are learned here, in
plain Python with a stated order for ties, because the trainers of the `tokenizers` library
promise no order between releases: this way the content is the same byte for byte everywhere.
(Compressed bytes may differ between releases of zlib, so `--check` compares what is inside.)
"""

from __future__ import annotations

import argparse
import gzip
import heapq
import io
import json
import re
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from demo_corpus import texts

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

TARGET = Path(__file__).resolve().parent.parent / "python" / "simct_align" / "demo"

BYTE_LEVEL = "byte_level"
BYTE_LEVEL_SIZE = 4096
BYTE_LEVEL_SPECIALS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
BYTE_LEVEL_TEXTS = {
    "word_problem": 500,
    "mathematics": 700,
    "code": 900,
    "prose": 700,
    "vocabulary": 2500,
    "other_language": 1500,
    "chat": 150,
}
# One digit per token; a word, or a run of signs, with the space before it; white space by itself.
BYTE_LEVEL_WORDS = r"\p{N}| ?[\p{L}\p{M}]+| ?[^\s\p{L}\p{M}\p{N}]+|\s*\n|\s+(?!\S)|\s+"

BYTE_FALLBACK = "byte_fallback"
BYTE_FALLBACK_SIZE = 4096
BYTE_FALLBACK_SPECIALS = ("<unk>", "<s>", "</s>")
BYTE_FALLBACK_TEXTS = {
    "word_problem": 1200,
    "mathematics": 500,
    "code": 200,
    "prose": 1200,
    "vocabulary": 4000,
    "other_language": 900,
    "chat": 300,
}
# The encoder has no such rule: it only keeps merges from joining words, or more than three digits.
BYTE_FALLBACK_WORDS = re.compile(
    r"[0-9]{1,3}|▁?(?:[^\W\d_]|[\u0300-\u036f\u0900-\u097f\u0e00-\u0e7f])+|▁?[^\w▁\n]+|▁+|\n+|."
)
# A character seen less often has no token of its own, and is written as bytes.
BYTE_FALLBACK_RAREST_CHARACTER = 12

Word = tuple[str, ...]


def learn_merges(words: dict[Word, int], limit: int) -> list[tuple[str, str]]:
    """Byte-pair encoding: joins the most frequent neighbours, up to `limit` times.

    Of pairs that are equally frequent, the one that is first in code point order is joined.
    """
    pieces = [list(word) for word in words]
    counts = list(words.values())
    pair_count: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for index, word in enumerate(pieces):
        for pair in pairwise(word):
            pair_count[pair] += counts[index]
            where[pair].add(index)
    heap = [(-count, pair) for pair, count in pair_count.items()]
    heapq.heapify(heap)
    merges: list[tuple[str, str]] = []
    while heap and len(merges) < limit:
        count, pair = heapq.heappop(heap)
        if -count != pair_count[pair]:  # outdated: the current count has its own entry
            continue
        if -count < 2:
            break
        merges.append(pair)
        changed = set()
        for index in where.pop(pair):
            old = pieces[index]
            new = join(old, pair)
            if len(new) == len(old):  # an earlier merge took the pair out of this word
                continue
            for neighbours in pairwise(old):
                pair_count[neighbours] -= counts[index]
                changed.add(neighbours)
            for neighbours in pairwise(new):
                pair_count[neighbours] += counts[index]
                where[neighbours].add(index)
                changed.add(neighbours)
            pieces[index] = new
        for other in changed:
            if pair_count[other] > 0:
                heapq.heappush(heap, (-pair_count[other], other))
    return merges


def join(word: Sequence[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of the pair in the word, from the left, into one piece."""
    joined: list[str] = []
    position = 0
    while position < len(word):
        if tuple(word[position : position + 2]) == pair:
            joined.append(word[position] + word[position + 1])
            position += 2
        else:
            joined.append(word[position])
            position += 1
    return joined


def byte_characters() -> list[str]:
    """Return the printable character of every byte in byte-level BPE.

    Visible Latin-1 characters stand for themselves, the others for U+0100 and on, in order.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)]


def model(
    tokens: Iterable[str], merges: list[tuple[str, str]], **options: object
) -> dict[str, Any]:
    """Return a BPE model: ids are the positions in `tokens`, then the merged tokens, each once."""
    vocabulary = dict.fromkeys([*tokens, *(left + right for left, right in merges)])
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **options,
        "vocab": {token: index for index, token in enumerate(vocabulary)},
        "merges": [f"{left} {right}" for left, right in merges],
    }


def tokenizer_json(specials: Sequence[str], first_special: int, **parts: object) -> dict[str, Any]:
    """Return the outline of a tokenizer.json, with the special tokens at consecutive ids."""
    added = [
        {
            "id": first_special + place,
            "content": name,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for place, name in enumerate(specials)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        **parts,
    }


def byte_level() -> dict[str, Any]:
    """Byte-level BPE that splits digits one by one, without a normalizer."""
    alphabet = byte_characters()
    split = {"type": "Split", "pattern": {"Regex": BYTE_LEVEL_WORDS}, "behavior": "Isolated"}
    steps = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    parts = {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{**split, "invert": False}, {"type": "ByteLevel", **steps}],
        },
        "decoder": {"type": "ByteLevel", **steps},
    }
    # The words are cut by the very pre-tokenizer that the file will carry.
    draft = tokenizer_json((), 0, model=model(alphabet, []), **parts)
    cutter = tokenizers.Tokenizer.from_str(json.dumps(draft)).pre_tokenizer
    words: Counter[Word] = Counter()
    for text in texts(seed=1, counts=BYTE_LEVEL_TEXTS):
        words.update(tuple(word) for word, _ in cutter.pre_tokenize_str(text))
    room = BYTE_LEVEL_SIZE - len(alphabet) - len(BYTE_LEVEL_SPECIALS)
    trained = model(alphabet, learn_merges(words, room))
    size = len(trained["vocab"])
    return tokenizer_json(BYTE_LEVEL_SPECIALS, size, model=trained, **parts)


def byte_fallback() -> dict[str, Any]:
    """SentencePiece-style BPE: a space in front of the text, byte fallback, up to three digits."""
    sample = ["▁" + text.replace(" ", "▁") for text in texts(seed=2, counts=BYTE_FALLBACK_TEXTS)]
    seen = Counter(character for text in sample for character in text)
    alphabet = sorted(c for c, count in seen.items() if count >= BYTE_FALLBACK_RAREST_CHARACTER)
    known = set(alphabet)
    words: Counter[Word] = Counter()
    for text in sample:
        for word in BYTE_FALLBACK_WORDS.findall(text):
            if known.issuperset(word):
                words[tuple(word)] += 1
    tokens = [*BYTE_FALLBACK_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *alphabet]
    merges = learn_merges(words, BYTE_FALLBACK_SIZE - len(tokens))
    space = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    return tokenizer_json(
        BYTE_FALLBACK_SPECIALS,
        0,
        normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "Prepend", "prepend": "▁"}, space],
        },
        decoder={
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        model=model(tokens, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True),
    )


def build() -> dict[str, bytes]:
    """Path below the package -> content (of tokenizer.json.gz: before compression)."""

    def config(**tokens: str) -> bytes:
        return (
            json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **tokens}) + "\n"
        ).encode()

    def compact(value: object) -> bytes:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    return {
        f"{BYTE_LEVEL}/tokenizer.json.gz": compact(byte_level()),
        f"{BYTE_LEVEL}/tokenizer_config.json": config(eos_token="<|end|>"),
        f"{BYTE_FALLBACK}/tokenizer.json.gz": compact(byte_fallback()),
        f"{BYTE_FALLBACK}/tokenizer_config.json": config(
            bos_token="<s>", eos_token="</s>", unk_token="<unk>"
        ),
    }


def compress(content: bytes) -> bytes:
    """Gzip without a time or a name in its header, so that a rebuild changes nothing."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as file:
        file.write(content)
    return buffer.getvalue()


def differences(target: Path) -> list[str]:
    """List the files that differ from what the script makes, one line per file."""
    found = []
    for name, content in build().items():
        path = target / name
        if not path.is_file():
            found.append(f"{name}: missing")
            continue
        there = path.read_bytes()
        if (gzip.decompress(there) if path.suffix == ".gz" else there) != content:
            found.append(f"{name}: differs from what this script makes")
    return found


def write(target: Path) -> None:
    for name, content in build().items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(compress(content) if path.suffix == ".gz" else content)
        print(f"{name}: {path.stat().st_size:,} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    parser.add_argument("--target", type=Path, default=TARGET, help="where the files are")
    arguments = parser.parse_args()
    if not arguments.check:
        write(arguments.target)
        return 0
    found = differences(arguments.target)
    for line in found:
        print(line, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
