"""Internal: readers that give the exact token bytes of supported tokenizer objects and files.

`open_tokenizer` chooses the reader. A reader imports the library of its tokenizers when one of
them is opened.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simct_align.readers.base import TextTokenizer, TokenTable, is_a
from simct_align.readers.facts import facts_beside, listed_control_tokens
from simct_align.readers.files import FileKind, find_file, kind_of_file, read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

    from simct_align.readers.bpe_tiktoken import TiktokenTokenizer

__all__ = ["TextTokenizer", "TokenTable", "open_ranks", "open_tokenizer"]

_ACCEPTED = (
    "a tokenizers.Tokenizer, a transformers tokenizer, a path (tokenizer.json, "
    "tokenizer.json.gz, tekken.json, a SentencePiece .model, or a directory with one of them), "
    "a hub id, a tiktoken.Encoding, a sentencepiece.SentencePieceProcessor, or a mistral_common "
    "Tekkenizer, SentencePieceTokenizer or MistralTokenizer"
)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FILE_SUFFIXES = (".json", ".gz", ".model", ".spm", ".tiktoken", ".txt")


def open_tokenizer(source: object) -> TextTokenizer:
    """Open a tokenizer, to read its token bytes and to tokenize texts.

    Use it if a `Vocabulary` is not enough, for example to inspect the table itself.
    `Vocabulary.from_tokenizer` calls it.

    Args:
        source: A `tokenizers.Tokenizer`; a `transformers` tokenizer; a path to
            `tokenizer.json`, `tokenizer.json.gz`, `tekken.json`, a SentencePiece `.model`,
            or to a directory that holds one of them; a hub id, whose tokenizer file is read like
            that of a directory, never with remote code; a `tiktoken.Encoding`; a
            `SentencePieceProcessor`; a `mistral_common` `Tekkenizer`, `SentencePieceTokenizer` or
            `MistralTokenizer`.

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
    if is_a(source, "tokenizers", "Tokenizer"):
        from simct_align.readers.huggingface import HuggingFaceTokenizer

        tokenizer: Any = source
        return HuggingFaceTokenizer(tokenizer)
    if is_a(source, "transformers", "MistralCommonBackend"):
        backend: Any = source
        return _open_mistral(backend.tokenizer)
    if is_a(source, "transformers", "PreTrainedTokenizerBase"):
        from simct_align.readers.transformers_objects import open_transformers

        return open_transformers(source)
    if is_a(source, "tiktoken", "Encoding"):
        from simct_align.readers.bpe_tiktoken import TiktokenTokenizer

        return TiktokenTokenizer(source)
    if is_a(source, "sentencepiece", "SentencePieceProcessor"):
        from simct_align.readers.spm import SentencePieceTokenizer

        return SentencePieceTokenizer(source)
    return _open_mistral(source)


def open_ranks(
    source: object, *, pattern: str | None, control_tokens: Mapping[str, int] | None
) -> TiktokenTokenizer:
    """Open a tiktoken rank file.

    Args:
        source: The path of the file, or of a directory with it.
        pattern: The regular expression that cuts text into words, as in `tiktoken.Encoding`.
        control_tokens: Ids of the special tokens by name. The default is what
            `tokenizer_config.json` beside the file lists.

    Returns:
        The reader.

    Raises:
        TypeError: `source` is not a path.
        ValueError: The file is not a rank file, or `pattern` or `control_tokens` is missing or
            wrong.
        OSError: The file cannot be read.
        ImportError: The package tiktoken is not installed.
    """
    from simct_align.readers.bpe_tiktoken import TiktokenTokenizer, encoding_of_ranks

    expected = "pattern and control_tokens belong to a tiktoken rank file"
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"{expected}: expected a path, got {type(source).__name__}")
    path: Path | None = Path(source)
    if path is not None and path.is_dir():
        path = find_file(path)
    if path is None or not path.is_file():
        raise FileNotFoundError(f"{expected}: no such file: {os.fspath(source)}")
    data = read_file(path)
    kind = kind_of_file(path, data)
    if kind is not FileKind.RANKS:
        raise ValueError(f"{expected}, but {path} looks like {kind.value}; leave them out")
    if control_tokens is None:
        control_tokens = listed_control_tokens(path.parent)
    encoding = encoding_of_ranks(path, data, pattern, control_tokens)
    return TiktokenTokenizer(encoding, facts_beside(path.parent))


def _open_mistral(source: Any) -> TextTokenizer:
    if is_a(source, "mistral_common", "MistralTokenizer"):
        return _open_mistral(source.instruct_tokenizer.tokenizer)
    if is_a(source, "mistral_common", "Tekkenizer"):
        from simct_align.readers.tekken import TekkenTokenizer

        try:
            facts = facts_beside(Path(source.file_path).parent)
        except ValueError:  # made from parts: there is no file
            facts = None
        return TekkenTokenizer(source, facts)
    if is_a(source, "mistral_common", "SentencePieceTokenizer"):
        path = Path(source.file_path)
        return _open_sentencepiece(path, read_file(path))
    raise TypeError(
        f"cannot open a {type(source).__module__}.{type(source).__qualname__} as a tokenizer; "
        f"expected {_ACCEPTED}"
    )


def _open_path(source: str | os.PathLike[str]) -> TextTokenizer:
    path = Path(source)
    if path.is_dir():
        return _open_directory(path)
    if not path.is_file():
        is_name = isinstance(source, str) and _HUB_ID.fullmatch(source)
        if is_name and not path.name.endswith(_FILE_SUFFIXES):
            return _open_hub(str(source))
        raise FileNotFoundError(f"no such tokenizer file or directory: {os.fspath(source)}")
    data = read_file(path)
    kind = kind_of_file(path, data)
    if kind is FileKind.RANKS:
        from simct_align.readers.bpe_tiktoken import encoding_of_ranks

        encoding_of_ranks(path, data, None, None)
    if kind is FileKind.SENTENCEPIECE:
        return _open_sentencepiece(path, data)
    if kind is FileKind.TEKKEN:
        return _open_tekken(path)
    return _open_tokenizer_json(path, data)


def _open_directory(directory: Path) -> TextTokenizer:
    path = find_file(directory)
    if path is not None:
        return _open_path(path)
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{directory} has no tokenizer file; making a tokenizer of its other files needs "
            "transformers: pip install 'simct-align[transformers]'"
        ) from error
    from simct_align.readers.transformers_objects import open_with_transformers

    return open_with_transformers(str(directory))


def _open_tokenizer_json(path: Path, data: bytes) -> TextTokenizer:
    from tokenizers import Tokenizer

    from simct_align.readers.huggingface import HuggingFaceTokenizer

    try:
        tokenizer = Tokenizer.from_buffer(data)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a tokenizer.json that this version of tokenizers can read: {error}"
        ) from error
    return HuggingFaceTokenizer(tokenizer, facts_beside(path.parent))


def _open_sentencepiece(path: Path, data: bytes) -> TextTokenizer:
    from simct_align.readers.spm import SentencePieceTokenizer, type_of_processor

    processor = type_of_processor()()
    try:
        processor.LoadFromSerializedProto(data)
    except RuntimeError as error:
        raise ValueError(f"{path} is not a SentencePiece model: {error}") from error
    return SentencePieceTokenizer(processor, facts_beside(path.parent))


def _open_tekken(path: Path) -> TextTokenizer:
    from simct_align.readers.tekken import TekkenTokenizer

    try:
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs the package mistral-common: pip install mistral-common"
        ) from error
    try:
        tekkenizer = Tekkenizer.from_file(path)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a Tekken tokenizer: {error!r}") from error
    return TekkenTokenizer(tekkenizer, facts_beside(path.parent))


def _open_hub(name: str) -> TextTokenizer:
    try:
        from simct_align.readers.transformers_objects import (
            hub_directory,
            hub_problem,
            open_with_transformers,
        )

        problem = hub_problem(name)
        directory = hub_directory(name, only_cache=problem is not None)
    except ImportError as error:
        raise ImportError(
            f"{name!r} is not a file or directory; loading it from the hub needs transformers: "
            "pip install 'simct-align[transformers]'"
        ) from error
    except OSError as error:
        raise FileNotFoundError(
            f"{name!r} is not a file or directory, and transformers cannot load it: {error}"
        ) from error
    if directory is not None:
        return _open_directory(directory)
    try:
        return open_with_transformers(name, only_cache=problem is not None)
    except FileNotFoundError as error:
        if problem is None:
            raise
        raise FileNotFoundError(
            f"{name!r} is not a file or directory, nor in the cache of the hub, and the hub "
            f"cannot be reached: {problem}"
        ) from error
