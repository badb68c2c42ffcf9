"""Internal: limits on files from unknown sources, and what their libraries raise."""

from __future__ import annotations

import os
import signal
import traceback
from contextlib import contextmanager
from typing import TYPE_CHECKING

from simct_align import _native

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: The largest number of ids of a vocabulary.
MAX_TOKENS = _native.MAX_TOKENS
#: The environment variable with the largest size of a file, in bytes, and its default. The largest
#: tokenizer files of published models have about 35 MB.
FILE_LIMIT_VARIABLE = "SIMCT_ALIGN_MAX_FILE_BYTES"
DEFAULT_FILE_BYTES = 256 << 20


def max_file_bytes() -> int:
    """Return the largest size of a file that is read, in bytes, also after unpacking.

    Raises:
        ValueError: The environment variable is not a positive integer.
    """
    given = os.environ.get(FILE_LIMIT_VARIABLE)
    if given is None:
        return DEFAULT_FILE_BYTES
    if not given.isascii() or not given.isdigit() or int(given) == 0:
        raise ValueError(
            f"the environment variable {FILE_LIMIT_VARIABLE} is {given!r}, expected a number of "
            "bytes above 0"
        )
    return int(given)


def refuse_large(path: Path, size: int) -> None:
    """Raise an error if a file is larger than the limit.

    Args:
        path: The file, for the message.
        size: Its size in bytes, or a size that it has at least after unpacking.

    Raises:
        ValueError: It is too large.
    """
    limit = max_file_bytes()
    if size > limit:
        raise ValueError(
            f"{path} has more than {limit} bytes, which is more than a file of this kind needs; "
            f"set the environment variable {FILE_LIMIT_VARIABLE} to read it"
        )


def read_limited(path: Path) -> bytes:
    """Read a file that has at most the largest size.

    Args:
        path: The file.

    Returns:
        The content.

    Raises:
        ValueError: The file is too large.
        OSError: The file cannot be read.
    """
    # The size that the system reports is 0 for pipes and devices, which may never end.
    with path.open("rb") as file:
        data = file.read(max_file_bytes() + 1)
    refuse_large(path, len(data))
    return data


def checked_size(largest_id: int) -> int:
    """Return the size of a table of all ids, before anything of that size is made.

    Args:
        largest_id: The largest id, or −1 without ids.

    Returns:
        The number of ids.

    Raises:
        ValueError: A vocabulary cannot have so many.
    """
    if largest_id >= MAX_TOKENS:
        raise ValueError(
            f"the tokenizer has the id {largest_id}; a vocabulary holds at most {MAX_TOKENS} "
            f"tokens, with ids up to {MAX_TOKENS - 1}"
        )
    return largest_id + 1


def _raised_by_signal_handler(error: BaseException) -> bool:
    handlers = map(signal.getsignal, signal.valid_signals())
    codes = {getattr(handler, "__code__", None) for handler in handlers} - {None}
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


@contextmanager
def library_errors(doing: str) -> Iterator[None]:
    """Raise what a tokenizer's library raises as a `ValueError`, its panics included.

    A panic of a library in Rust is no `Exception`, so that nothing would catch it. What a handler
    of signals raises in the meantime stays as it is.

    Args:
        doing: What the library does, for the message: `"cannot ..."`.

    Yields:
        Nothing.

    Raises:
        ValueError: The library failed.
    """
    try:
        yield
    except (ValueError, OSError, ImportError, MemoryError):
        raise
    except BaseException as error:
        if _raised_by_signal_handler(error):
            raise
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(f"{doing}: {error}") from error
        raise
