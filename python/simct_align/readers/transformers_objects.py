"""Internal: `transformers` tokenizers, fast and slow, and tokenizers of hub ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simct_align.errors import SlowTokenizerError
from simct_align.readers.base import is_a
from simct_align.readers.facts import (
    CONFIG_FILES,
    TokenizerFacts,
    directory_of,
    facts_of_object,
    without_class_defaults,
)
from simct_align.readers.files import (
    TOKENIZER_FILES,
    FileKind,
    kind_of_file,
    read_file,
    read_json,
)

if TYPE_CHECKING:
    from simct_align.readers.base import TextTokenizer

# Classes whose tokens are bytes, with their subclasses.
_BYTE_CLASSES = ("ByT5Tokenizer", "PerceiverTokenizer")
# White space, digits, several writing systems: what pre-tokenizers cut in different ways.
_PROBES = (
    " x = 12345;",
    "x = 1\r\n\r\n\ty",
    "Don't HE'LL naïve café",
    "日本語 🙂 ﬁ Ａ e\u0301",
    "f(a)\n    return a\n\n",
)
_PROBE = "\n".join(_PROBES)
_EMPTY_MODEL = {"type": "BPE", "vocab": {}, "merges": []}


def open_transformers(source: Any) -> TextTokenizer:
    """Open a tokenizer object of `transformers`.

    Args:
        source: The tokenizer, with a `tokenizers` backend. Of tokenizers without one: those of
            bytes, and those that keep a `tiktoken.Encoding`.

    Returns:
        The reader.

    Raises:
        SlowTokenizerError: The tokenizer has no backend that can be read.
        ValueError: A configuration file beside the tokenizer is not readable.
    """
    backend: Any = getattr(source, "backend_tokenizer", None)
    if is_a(backend, "tokenizers", "Tokenizer"):
        from simct_align.readers.huggingface import HuggingFaceTokenizer

        facts = facts_of_object(source)
        directory = directory_of(source)
        path = None if directory is None else directory / "tokenizer.json"
        if path is not None and path.is_file():
            state = read_json(path)
            facts = without_class_defaults(facts, source, state.get("added_tokens") or ())
            note = _note_of_other_cuts(source, backend, path, state)
            facts = facts.before(TokenizerFacts(notes=note))
        return HuggingFaceTokenizer(backend, facts)
    if any(is_a(source, "transformers", name) for name in _BYTE_CLASSES):
        from simct_align.readers.byte_tokens import ByteTokenizer

        return ByteTokenizer(source, facts_of_object(source))
    return _open_slow(source)


def _note_of_other_cuts(
    source: Any, backend: Any, path: Path, state: dict[str, Any]
) -> tuple[str, ...]:
    """Return a warning if an object cuts text otherwise than the tokenizer.json of its model.

    Some classes of `transformers` put their own normalizer or pre-tokenizer in place of the file's.
    Only these two are compared: the model's tokens would take long to load.
    """
    from tokenizers import Tokenizer

    state = state | {"model": _EMPTY_MODEL, "added_tokens": [], "post_processor": None}
    in_file = [_cut(Tokenizer.from_str(json.dumps(state)), line) for line in _PROBES]
    for ours, theirs in zip([_cut(backend, line) for line in _PROBES], in_file, strict=True):
        if ours != theirs:
            return (
                f"the {type(source).__name__} cuts text otherwise than {path}, from which its "
                f"model may have learned: {ours}, not {theirs}; the object was read, pass the path "
                "to read the file",
            )
    return ()


def _cut(tokenizer: Any, text: str) -> list[str]:
    """Return the pieces into which a text is cut before the model of a tokenizer reads them."""
    if tokenizer.normalizer is not None:
        text = tokenizer.normalizer.normalize_str(text)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _open_slow(source: Any) -> TextTokenizer:
    facts = facts_of_object(source)
    for value in vars(source).values():
        if is_a(value, "tiktoken", "Encoding"):
            return _open_wrapped(source, value, facts)
    files = {
        Path(file): kind_of_file(Path(file), read_file(Path(file)))
        for name in getattr(source, "vocab_files_names", {})
        if (file := getattr(source, name, None) or getattr(source, "init_kwargs", {}).get(name))
        and Path(file).is_file()
    }
    for path, kind in files.items():
        if kind is FileKind.SENTENCEPIECE and (opened := _open_pieces(source, path, facts)):
            return opened
    ranks = tuple(path for path, kind in files.items() if kind is FileKind.RANKS)
    raise SlowTokenizerError(type(source).__name__, "it has no tokenizers backend", files=ranks)


def _open_wrapped(source: Any, encoding: Any, facts: TokenizerFacts) -> TextTokenizer:
    from simct_align.readers.bpe_tiktoken import TiktokenTokenizer

    if list(source(_PROBE, add_special_tokens=False)["input_ids"]) != encoding.encode_ordinary(
        _PROBE
    ):
        raise SlowTokenizerError(
            type(source).__name__, "it changes the ids of the tiktoken.Encoding that it keeps"
        )
    return TiktokenTokenizer(encoding, facts)


def _open_pieces(source: Any, path: Path, facts: TokenizerFacts) -> TextTokenizer | None:
    """Open the SentencePiece model of a slow tokenizer, if both have the same ids."""
    from simct_align.readers.spm import SentencePieceTokenizer, type_of_processor

    processor = type_of_processor()()
    try:
        processor.LoadFromSerializedProto(read_file(path))
    except RuntimeError:
        return None
    size = processor.get_piece_size()
    pieces = [processor.id_to_piece(token) for token in range(size)]
    same = list(source.convert_tokens_to_ids(pieces)) == list(range(size))
    # Tokens that the slow tokenizer adds to the model are not in the file.
    return SentencePieceTokenizer(processor, facts) if same and len(source) == size else None


_SECONDS_FOR_HUB = 5


def hub_problem(name: str) -> str | None:
    """Return why the hub cannot be reached, after one request; None if it answers.

    The library tries again for a minute at every file that it looks for.

    Args:
        name: The hub id.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().model_info(name, timeout=_SECONDS_FOR_HUB)
    except HfHubHTTPError:  # an answer, such as that there is no such repository
        return None
    except Exception as error:
        return f"{error}" or type(error).__name__
    return None


def hub_directory(name: str, *, only_cache: bool = False) -> Path | None:
    """Fetch the tokenizer file and the configurations of a hub id, through the library's cache.

    Args:
        name: The hub id.
        only_cache: Whether to look into the cache alone.

    Returns:
        The directory with the files, or `None` if the repository has no such tokenizer file, or
        is not there.

    Raises:
        ImportError: `transformers` is not installed.
        OSError: The repository cannot be read.
    """
    from transformers.utils import cached_file

    def fetch(file: str) -> Path | None:
        found = cached_file(
            name,
            file,
            local_files_only=only_cache,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        return None if found is None else Path(found)

    for candidate in TOKENIZER_FILES:
        path = fetch(candidate)
        if path is not None:
            for config in CONFIG_FILES:
                fetch(config)
            return path.parent
    return None


def open_with_transformers(name: str, *, only_cache: bool = False) -> TextTokenizer:
    """Let `transformers` make a tokenizer of a hub id, or of a directory without a tokenizer file.

    Args:
        name: The hub id or the directory.
        only_cache: Whether to look into the cache of the hub alone.

    Returns:
        The reader.

    Raises:
        FileNotFoundError: `transformers` finds no tokenizer.
        SlowTokenizerError: As for `open_transformers`.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            name, trust_remote_code=False, local_files_only=only_cache
        )
    except (OSError, ValueError) as error:
        what = "has no tokenizer file" if Path(name).is_dir() else "is not a file or directory"
        raise FileNotFoundError(
            f"{name!r} {what}, and transformers cannot load it: {error}"
        ) from error
    return open_transformers(tokenizer)
