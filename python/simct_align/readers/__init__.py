"""Internal: readers that give the exact token bytes of supported tokenizer objects and files.

`open_tokenizer` chooses the reader. A reader imports the library of its tokenizers when one of
them is opened.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from simct_align.errors import UnsupportedTokenizerError
from simct_align.readers.base import TextTokenizer, TokenTable
from simct_align.readers.files import find_file, read_file, read_hints

__all__ = ["TextTokenizer", "TokenTable", "open_tokenizer"]

_ACCEPTED = (
    "a tokenizers.Tokenizer, a fast transformers tokenizer, a path (tokenizer.json, "
    "tokenizer.json.gz, tekken.json, a SentencePiece .model, or a directory with one of them), "
    "a hub id, a tiktoken.Encoding, a sentencepiece.SentencePieceProcessor, or a mistral_common "
    "Tekkenizer, SentencePieceTokenizer or MistralTokenizer"
)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# tokenizer.model, and with mistral_common's versions: tokenizer.model.v3, tokenizer.model.v7m1
_SENTENCEPIECE_FILE = re.compile(r".*\.(model|spm)(\.v\d+(m\d+)?)?")
_FILE_SUFFIXES = (".json", ".gz", ".model", ".spm", ".tiktoken", ".txt")


def open_tokenizer(source: object) -> TextTokenizer:
    """Open a tokenizer, to read its token bytes and to tokenize texts.

    Use it if a `Vocabulary` is not enough, for example to inspect the table itself.
    `Vocabulary.from_tokenizer` calls it.

    Args:
        source: A `tokenizers.Tokenizer`; a fast `transformers` tokenizer; a path to
            `tokenizer.json`, `tokenizer.json.gz`, `tekken.json`, a SentencePiece `.model`,
            or to a directory that holds one of them; a hub id, loaded through `transformers` and
            never with remote code; a `tiktoken.Encoding`; a `SentencePieceProcessor`; a
            `mistral_common` `Tekkenizer`, `SentencePieceTokenizer` or `MistralTokenizer`.

    Returns:
        The reader.

    Raises:
        TypeError: `source` is not one of these.
        FileNotFoundError: A path or a hub id cannot be found.
        ValueError: A file is not a tokenizer that can be read.
        ImportError: The library that a file or hub id needs is not installed.
        UnsupportedTokenizerError: The tokenizer is of an unsupported type. The components of the
            tokenizer are checked later, by `table`.

    Complexity:
        That of loading the file. Nothing is read from a tokenizer object yet.

    Example:
        >>> from tokenizers import Tokenizer, decoders, models, pre_tokenizers
        >>> tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "Ġ": 1, "Ġa": 2}, merges=[("Ġ", "a")]))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        >>> tokenizer.decoder = decoders.ByteLevel()
        >>> reader = open_tokenizer(tokenizer)
        >>> reader.table().token_bytes
        [b'a', b' ', b' a']
        >>> reader.encode_batch(["a a"])
        [[0, 2]]
    """
    if isinstance(source, (str, os.PathLike)):
        return _open_path(source)
    if _is_a(source, "tokenizers", "Tokenizer"):
        from simct_align.readers.huggingface import HuggingFaceTokenizer

        tokenizer: Any = source
        return HuggingFaceTokenizer(tokenizer)
    if _is_a(source, "transformers", "PreTrainedTokenizerBase"):
        return _open_transformers(source)
    if _is_a(source, "tiktoken", "Encoding"):
        from simct_align.readers.bpe_tiktoken import TiktokenTokenizer

        return TiktokenTokenizer(source)
    if _is_a(source, "sentencepiece", "SentencePieceProcessor"):
        from simct_align.readers.spm import SentencePieceTokenizer

        return SentencePieceTokenizer(source)
    return _open_mistral(source)


def _is_a(source: object, package: str, name: str) -> bool:
    """Return whether the class of an object, or a base of it, has this name and package.

    The check does not import the package.
    """
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] == package
        for base in type(source).__mro__
    )


def _open_mistral(source: Any) -> TextTokenizer:
    if _is_a(source, "mistral_common", "MistralTokenizer"):
        return _open_mistral(source.instruct_tokenizer.tokenizer)
    if _is_a(source, "mistral_common", "Tekkenizer"):
        from simct_align.readers.tekken import TekkenTokenizer

        return TekkenTokenizer(source)
    if _is_a(source, "mistral_common", "SentencePieceTokenizer"):
        return _open_sentencepiece(Path(source.file_path))
    raise TypeError(
        f"cannot open a {type(source).__module__}.{type(source).__qualname__} as a tokenizer; "
        f"expected {_ACCEPTED}"
    )


def _open_transformers(source: Any) -> TextTokenizer:
    if _is_a(source, "transformers", "MistralCommonBackend"):
        return _open_mistral(source.tokenizer)
    backend: Any = getattr(source, "backend_tokenizer", None)
    if not _is_a(backend, "tokenizers", "Tokenizer"):
        raise UnsupportedTokenizerError(
            f"slow transformers tokenizer {type(source).__name__}",
            "it has no tokenizers backend; pass the fast tokenizer, or the path of its .model file",
        )
    from simct_align.readers.huggingface import HuggingFaceTokenizer

    special = [token for token in source.all_special_ids if token is not None]
    return HuggingFaceTokenizer(
        backend,
        special=special,
        eos=source.eos_token_id,
    )


def _open_path(source: str | os.PathLike[str]) -> TextTokenizer:
    path = Path(source)
    if path.is_dir():
        path = find_file(path)
    if not path.is_file():
        is_name = isinstance(source, str) and _HUB_ID.fullmatch(source)
        if is_name and not path.name.endswith(_FILE_SUFFIXES):
            return _open_hub(str(source))
        raise FileNotFoundError(f"no such tokenizer file or directory: {os.fspath(source)}")
    if _SENTENCEPIECE_FILE.fullmatch(path.name):
        return _open_sentencepiece(path)
    if path.name.startswith("tekken") and path.suffix == ".json":
        return _open_tekken(path)
    return _open_tokenizer_json(path)


def _open_tokenizer_json(path: Path) -> TextTokenizer:
    from tokenizers import Tokenizer

    from simct_align.readers.huggingface import HuggingFaceTokenizer

    try:
        tokenizer = Tokenizer.from_buffer(read_file(path))
    except ValueError as error:
        raise ValueError(
            f"{path} is not a tokenizer.json that this version of tokenizers can read: {error}"
        ) from error
    hints = read_hints(path.parent)
    return HuggingFaceTokenizer(tokenizer, special=hints.special, eos=hints.eos, stops=hints.stops)


def _open_sentencepiece(path: Path) -> TextTokenizer:
    from simct_align.readers.spm import SentencePieceTokenizer, type_of_processor

    processor = type_of_processor()()
    try:
        processor.LoadFromSerializedProto(read_file(path))
    except RuntimeError as error:
        raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
    return SentencePieceTokenizer(processor, stops=_stops(path))


def _open_tekken(path: Path) -> TextTokenizer:
    from simct_align.readers.tekken import TekkenTokenizer

    try:
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs the package mistral-common: pip install mistral-common"
        ) from error
    read_file(path)  # raises an error for a Git LFS pointer
    try:
        tekkenizer = Tekkenizer.from_file(path)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a Tekken tokenizer: {error!r}") from error
    return TekkenTokenizer(tekkenizer, stops=_stops(path))


def _stops(path: Path) -> tuple[str | int, ...]:
    hints = read_hints(path.parent)
    return (*(() if hints.eos is None else (hints.eos,)), *hints.stops)


def _open_hub(name: str) -> TextTokenizer:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ImportError(
            f"{name!r} is not a file or directory; loading it from the hub needs transformers: "
            "pip install 'simct-align[transformers]'"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except OSError as error:
        raise FileNotFoundError(
            f"{name!r} is not a file or directory, and transformers cannot load it: {error}"
        ) from error
    return _open_transformers(tokenizer)
