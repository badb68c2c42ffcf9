"""Internal: finding, unpacking and recognizing tokenizer files, with errors that name the file."""

from __future__ import annotations

import gzip
import io
import json
import re
import zlib
from enum import Enum
from typing import TYPE_CHECKING, Any

from simct_align.limits import max_file_bytes, read_limited, refuse_large

if TYPE_CHECKING:
    from pathlib import Path

# The tokenizer files of a directory, in the order in which they are searched.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.json.gz",
    "tekken.json",
    "tokenizer.model",
    "tiktoken.model",
)
# Files that other libraries make a tokenizer of, if a directory has none of the above.
_OTHER_FILES = ("tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")

_GZIP_MAGIC = b"\x1f\x8b"
_LFS_MAGIC = b"version https://git-lfs.github.com/spec/"
# The first line of a rank file: a token in base 64, and its rank.
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\s*(?:\n|$)")
_TEKKEN_START = re.compile(rb'\s*\{\s*"config"\s*:')
# tokenizer.model, and with mistral_common's versions: tokenizer.model.v3, tokenizer.model.v7m1
_SENTENCEPIECE_NAME = re.compile(r".*\.(model|spm)(\.v\d+(m\d+)?)?")


# A model whose tokens inside of words are marked, or a plain letter that is escaped, which only
# hides such a name: nearly all files have neither.
_PREFIX = re.compile(r'"continuing_subword_prefix"\s*:\s*"[^"]|\\u00[4-7]')


class FileKind(Enum):
    """The formats of tokenizer files."""

    TOKENIZER_JSON = "tokenizer.json"
    TEKKEN = "Tekken"
    SENTENCEPIECE = "SentencePiece"
    RANKS = "tiktoken rank file"


def kind_of_file(path: Path, data: bytes) -> FileKind:
    """Recognize a tokenizer file by its content; by its name if the content does not decide.

    Args:
        path: The file.
        data: Its content, unpacked.

    Returns:
        The format.
    """
    if _RANK_LINE.match(data):
        return FileKind.RANKS
    if (path.name.startswith("tekken") and path.suffix == ".json") or _TEKKEN_START.match(data):
        return FileKind.TEKKEN
    # A SentencePiece model begins with its first piece: field 1 of the message.
    if _SENTENCEPIECE_NAME.fullmatch(path.name) or (
        data.startswith(b"\x0a") and not data.lstrip().startswith(b"{")
    ):
        return FileKind.SENTENCEPIECE
    return FileKind.TOKENIZER_JSON


def read_file(path: Path) -> bytes:
    """Read a tokenizer file, and unpack it if it is compressed with gzip.

    Args:
        path: The file.

    Returns:
        The content.

    Raises:
        ValueError: The file is a Git LFS pointer, a damaged gzip file, or too large, packed or
            unpacked.
        OSError: The file cannot be read.
    """
    data = read_limited(path)
    if data.startswith(_LFS_MAGIC):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull`")
    if data.startswith(_GZIP_MAGIC):
        try:
            with gzip.open(io.BytesIO(data)) as packed:
                data = packed.read(max_file_bytes() + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is not a complete gzip file: {error}") from error
        refuse_large(path, len(data))
    return data


def refuse_cut_characters(text: str) -> None:
    """Raise an error for a merge that makes the library cut a character in two.

    The library takes as many bytes off the right part of a merge as the prefix of tokens inside of
    words has characters. Where this cuts a character, its message is not UTF-8, and it ends the
    process. The same happens if it quotes bytes of the file that are not UTF-8.

    Args:
        text: The content of a `tokenizer.json`.

    Raises:
        ValueError: There is such a merge.
    """
    if not _PREFIX.search(text):
        return
    try:
        model = json.loads(text)["model"]
        prefix, merges = model["continuing_subword_prefix"], model.get("merges") or ()
        # A merge is a list of two tokens, or a string of both with a space between.
        rights = [m.split(" ")[-1] if isinstance(m, str) else m[-1] for m in merges]
        wrong = next((right for right in rights if not right.startswith(prefix)), None)
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
        return  # the library says what is wrong with it
    if wrong is not None:
        raise ValueError(f"the right part {wrong!r} of a merge does not begin with {prefix!r}")


def find_file(directory: Path) -> Path | None:
    """Find the tokenizer file of a model directory.

    Args:
        directory: The directory.

    Returns:
        The first of `TOKENIZER_FILES` that exists, else a rank file `*.tiktoken`. `None` if the
        directory has only files of which `transformers` can make a tokenizer.

    Raises:
        FileNotFoundError: The directory has no tokenizer.
    """
    for name in TOKENIZER_FILES:
        if (directory / name).is_file():
            return directory / name
    ranks = sorted(directory.glob("*.tiktoken"))
    if ranks:
        return ranks[0]
    if any((directory / name).is_file() for name in _OTHER_FILES):
        return None
    raise FileNotFoundError(f"{directory} holds none of {', '.join(TOKENIZER_FILES)}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration file; an empty dictionary if it does not exist.

    Args:
        path: The file.

    Returns:
        The content.

    Raises:
        ValueError: The file is not a JSON object.
    """
    if not path.is_file():
        return {}
    data = read_file(path)
    try:
        content = json.loads(data)
    # Also an integer of too many digits, and brackets in brackets in brackets.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content
