"""Internal: reading texts for the command line, one by one, from files of any length."""

from __future__ import annotations

import gzip
import json
import os
import stat
import sys
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import ExitStack
    from pathlib import Path

# A batch ends at the first of these limits: enough rows for all threads, few enough for memory.
_BATCH_TEXTS = 512
_BATCH_CHARACTERS = 1 << 20


class DataError(Exception):
    """An input that cannot be read: the command line prints one line and exits with code 1."""


@dataclass(frozen=True)
class InputText:
    """One text, with the number of its line (from 1; 0 for --text) and the bytes read so far."""

    line: int
    text: str
    bytes_read: int


def _checked_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: expected a string, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} is not valid Unicode: {error.reason}") from error
    return value


def _line_text(line: bytes, number: int, name: str, json_field: str | None) -> str | None:
    """Return the text of one line; None for a line of white space between JSON objects."""
    where = f"{name}, line {number}"
    try:
        # A byte order mark at the start of a file is not text.
        content = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not valid UTF-8: {error.reason}") from error
    if json_field is None:
        return content
    if not content.strip():
        return None
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: invalid JSON: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got a {type(row).__name__}")
    if json_field not in row:
        there = ", ".join(sorted(row)) or "none"
        raise DataError(
            f"{where}: no field {json_field!r}; the fields are {there}; choose one with --field"
        )
    return _checked_text(row[json_field], f"{where}: field {json_field!r}")


def _read_lines(
    stream: Iterable[bytes], position: Callable[[], int], name: str, json_field: str | None
) -> Iterator[InputText]:
    try:
        for number, line in enumerate(stream, start=1):
            bare = line.removesuffix(b"\n").removesuffix(b"\r")
            text = _line_text(bare, number, name, json_field)
            if text is not None:
                yield InputText(number, text, position())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {name}: {error}") from error


@dataclass(frozen=True)
class Source:
    """The texts of one run, and the size of their file in bytes (None if unknown)."""

    texts: Iterator[InputText]
    total_bytes: int | None


def single_text(text: str) -> Source:
    """Return the text of `--text` as a source."""
    return Source(iter([InputText(0, _checked_text(text, "--text"), 0)]), None)


def standard_input(json_field: str | None) -> Source:
    """Return the lines of standard input as a source: texts, or JSON objects with a field."""
    lines = _read_lines(sys.stdin.buffer, lambda: 0, "standard input", json_field)
    return Source(lines, None)


def open_file(path: Path, field: str | None, stack: ExitStack) -> Source:
    """Open a file, compressed or not, and return its lines as a source.

    The file is read as JSON lines if its name ends with `.jsonl` or `.ndjson`, or if a field is
    given. The stack closes the file.
    """
    try:
        file = stack.enter_context(path.open("rb"))
        status = os.fstat(file.fileno())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    compressed = path.suffix == ".gz"
    stream: Iterable[bytes] = (
        stack.enter_context(gzip.GzipFile(fileobj=file)) if compressed else file
    )
    name = path.stem if compressed else path.name
    json_lines = field is not None or name.endswith((".jsonl", ".ndjson"))
    json_field = (field or "text") if json_lines else None
    total = status.st_size if stat.S_ISREG(status.st_mode) else None
    # The position in the file on disk, also of a compressed file: a fair measure of progress.
    position = file.tell if total is not None else lambda: 0
    return Source(_read_lines(stream, position, str(path), json_field), total)


def in_batches(texts: Iterator[InputText], limit: int | None) -> Iterator[list[InputText]]:
    """Yield the first `limit` texts (None: all texts) in lists of bounded size."""
    batch: list[InputText] = []
    size = 0
    for number, item in enumerate(texts, start=1):
        batch.append(item)
        size += len(item.text)
        if len(batch) >= _BATCH_TEXTS or size >= _BATCH_CHARACTERS or number == limit:
            yield batch
            batch, size = [], 0
        if number == limit:
            return
    if batch:
        yield batch
