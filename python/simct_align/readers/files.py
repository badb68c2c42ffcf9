"""Internal: finding, unpacking and reading tokenizer files, with errors that name the file."""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

# The tokenizer files of a directory, in the order in which they are searched.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.json.gz", "tekken.json", "tokenizer.model")

_GZIP_MAGIC = b"\x1f\x8b"
_LFS_MAGIC = b"version https://git-lfs.github.com/spec/"
_NAMED_SPECIAL = ("bos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class Hints:
    """Facts about tokens from the configuration files in the directory of a tokenizer file.

    Attributes:
        special: Names of special tokens, from tokenizer_config.json.
        eos: Name of the EOS token, from tokenizer_config.json, or None.
        stops: Ids that end a generation, from generation_config.json.
    """

    special: tuple[str, ...]
    eos: str | None
    stops: tuple[int, ...]


def read_file(path: Path) -> bytes:
    """Read a tokenizer file, and unpack it if it is compressed with gzip.

    Args:
        path: The file.

    Returns:
        The content.

    Raises:
        ValueError: The file is a Git LFS pointer, or a damaged gzip file.
        OSError: The file cannot be read.
    """
    data = path.read_bytes()
    if data.startswith(_LFS_MAGIC):
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull`")
    if data.startswith(_GZIP_MAGIC):
        try:
            return gzip.decompress(data)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is not a complete gzip file: {error}") from error
    return data


def find_file(directory: Path) -> Path:
    """Find the tokenizer file of a model directory.

    Args:
        directory: The directory.

    Returns:
        The first of `TOKENIZER_FILES` that exists.

    Raises:
        FileNotFoundError: None of them exists.
    """
    for name in TOKENIZER_FILES:
        if (directory / name).is_file():
            return directory / name
    raise FileNotFoundError(f"{directory} holds none of {', '.join(TOKENIZER_FILES)}")


def read_hints(directory: Path) -> Hints:
    """Read tokenizer_config.json and generation_config.json, if they exist.

    Args:
        directory: The directory of the tokenizer file.

    Returns:
        The facts about tokens.

    Raises:
        ValueError: A configuration file exists but is not readable JSON.
    """
    config = _read_json(directory / "tokenizer_config.json")
    special = [name for key in _NAMED_SPECIAL if (name := _name(config.get(key))) is not None]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        entries = config.get(key) or []
        values = entries.values() if isinstance(entries, dict) else entries
        special += [name for entry in values if (name := _name(entry)) is not None]
    for entry in (config.get("added_tokens_decoder") or {}).values():
        if entry.get("special"):
            special.append(entry["content"])
    stops = _read_json(directory / "generation_config.json").get("eos_token_id")
    listed = stops if isinstance(stops, list) else [] if stops is None else [stops]
    return Hints(tuple(dict.fromkeys(special)), _name(config.get("eos_token")), tuple(listed))


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_file(path))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def _name(entry: object) -> str | None:
    """Return the name of a token in a configuration: a string, or an object that contains it."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None
