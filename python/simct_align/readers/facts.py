"""Internal: what configuration files and tokenizer objects say about special tokens and stops."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simct_align.readers.chat_frame import ChatFrame, chat_frame
from simct_align.readers.files import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

TEMPLATE_FILE = "chat_template.jinja"
#: Files beside a tokenizer file that say something about its tokens.
CONFIG_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    "generation_config.json",
    TEMPLATE_FILE,
    "chat_template.json",
)
#: Where the chat template's own end of turn was found.
FROM_TEMPLATE = "chat template"

_NAMED_SPECIAL = ("bos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_LISTED_SPECIAL = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True)
class EndOfTurn:
    """A token that ends a turn, and where this is said.

    Attributes:
        token: Name or id.
        source: The file or object that says so.
        of_model: Whether a model's configuration says so, which may name ids of text by mistake.
    """

    token: str | int
    source: str
    of_model: bool = False


@dataclass(frozen=True)
class TokenizerFacts:
    """What is known about the tokens of a tokenizer from outside of its tokenizer file.

    Attributes:
        special: Names or ids of special tokens.
        ends: Tokens that end a turn, in this order: the tokenizer object,
            `special_tokens_map.json`, `tokenizer_config.json`, `config.json`,
            `generation_config.json`, the class. The chat template's own end of turn comes before
            all of them.
        frame: What the chat template writes around contents, or `None`.
        notes: Facts that could not be read, for a warning.
        text: Names of tokens that an object flags as special and that are text.
    """

    special: tuple[str | int, ...] = ()
    ends: tuple[EndOfTurn, ...] = ()
    frame: ChatFrame | None = None
    notes: tuple[str, ...] = ()
    text: frozenset[str] = frozenset()

    def before(self, other: TokenizerFacts) -> TokenizerFacts:
        """Return these facts, then the other ones."""
        return TokenizerFacts(
            tuple(dict.fromkeys((*self.special, *other.special))),
            tuple(dict.fromkeys((*self.ends, *other.ends))),
            self.frame or other.frame,
            tuple(dict.fromkeys((*self.notes, *other.notes))),
            self.text | other.text,
        )


@dataclass
class Stops:
    """The stops of a tokenizer: ids with the places where they were found, in order.

    Attributes:
        sources: The places of every id.
        left_out: What was said to end a turn and does not, for a warning.
    """

    sources: dict[int, list[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out, as a warning."""
        if not self.left_out:
            return ()
        return (
            "left out of the tokens that end a turn, because the tokenizer has no such control "
            f"token: {', '.join(self.left_out)}. If one of them is a token that steers the model, "
            "name the token in Vocabulary.from_tokenizer(..., special=[...])",
        )

    def add(self, token: int, source: str) -> None:
        """Add a place."""
        found = self.sources.setdefault(token, [])
        if source not in found:
            found.append(source)


def resolve_stops(
    facts: TokenizerFacts,
    *,
    control_tokens: Mapping[str, int],
    token_id: Callable[[str], int | None],
    may_end: Callable[[EndOfTurn, int], bool],
) -> Stops:
    """Find the stops of a tokenizer, in the order of `TokenizerFacts.ends`.

    Args:
        facts: The facts.
        control_tokens: Names and ids of the tokens that the chat template may end a turn with.
        token_id: A function that returns the id of a name, or `None`.
        may_end: A function that says whether an id is a control token, or may become one.

    Returns:
        The stops.
    """
    stops = Stops()
    if facts.frame is not None:
        end = facts.frame.end_of_turn(control_tokens)
        if end is not None:
            stops.add(control_tokens[end], FROM_TEMPLATE)
    for entry in facts.ends:
        token = token_id(entry.token) if isinstance(entry.token, str) else entry.token
        if token is not None and may_end(entry, token):
            stops.add(token, entry.source)
        else:
            stops.left_out.append(f"{entry.token!r} of {entry.source}")
    return stops


def role_token_notes(names: Sequence[str]) -> tuple[str, ...]:
    """Return the warning that tokens are read as special, though the tokenizer flags them not.

    Args:
        names: The tokens.

    Returns:
        The warning; empty without tokens.
    """
    if not names:
        return ()
    listed = ", ".join(map(repr, names))
    return (
        f"the chat template writes {listed} around messages, but the tokenizer does not flag "
        f"{'this token' if len(names) == 1 else 'these tokens'} as special; read as special, so "
        "that text never becomes a control token. Vocabulary.from_tokenizer(..., "
        f"special=[{listed}]) says the same without a warning",
    )


def facts_beside(directory: Path) -> TokenizerFacts:
    """Read the configuration files in the directory of a tokenizer file.

    Args:
        directory: The directory.

    Returns:
        The facts; none if there are no such files.

    Raises:
        ValueError: A configuration file is not readable.
    """
    config = read_json(directory / "tokenizer_config.json")
    names = read_json(directory / "special_tokens_map.json")
    model = read_json(directory / "config.json")
    generation = read_json(directory / "generation_config.json")
    special: list[str | int] = [*_special_names(config), *_special_names(names)]
    listed = (config.get("added_tokens_decoder") or {}).values()
    special += [entry["content"] for entry in listed if entry.get("special")]
    # In this order, because the map takes precedence in transformers.
    ends = _ends(names, "eos_token", "special_tokens_map.json")
    ends += _ends(config, "eos_token", "tokenizer_config.json")
    ends += _ends(model, "eos_token_id", "config.json", of_model=True)
    # Models of several kinds of input keep the settings of their language model apart.
    text_model = model.get("text_config") or {}
    ends += _ends(text_model, "eos_token_id", "config.json", of_model=True)
    ends += _ends(generation, "eos_token_id", "generation_config.json", of_model=True)
    if "eos_token" not in config and "eos_token" not in names:
        ends += _class_ends(config.get("tokenizer_class"))
    template = _template_beside(directory, config)
    frame, notes = read_frame(template, {**_token_names(config), **_token_names(names)})
    return TokenizerFacts(tuple(dict.fromkeys(special)), tuple(ends), frame, notes)


def listed_control_tokens(directory: Path) -> dict[str, int] | None:
    """Return the special tokens that `tokenizer_config.json` lists with their ids, if it does.

    Args:
        directory: The directory of the tokenizer file.

    Returns:
        The ids by name, or `None`.
    """
    listed = read_json(directory / "tokenizer_config.json").get("added_tokens_decoder") or {}
    return {entry["content"]: int(token) for token, entry in listed.items()} or None


def facts_of_object(tokenizer: Any) -> TokenizerFacts:
    """Read a `transformers` tokenizer, then the files from which it was loaded.

    Args:
        tokenizer: The tokenizer.

    Returns:
        The facts.

    Raises:
        ValueError: As for `facts_beside`.
    """
    special = tuple(token for token in tokenizer.all_special_ids if token is not None)
    eos = tokenizer.eos_token_id
    ends = () if eos is None else (EndOfTurn(eos, "eos_token of the tokenizer"),)
    frame, notes = read_frame(
        getattr(tokenizer, "chat_template", None), _token_names(tokenizer.special_tokens_map)
    )
    facts = TokenizerFacts(special, ends, frame, notes)
    directory = directory_of(tokenizer)
    return facts if directory is None else facts.before(facts_beside(directory))


def without_class_defaults(
    facts: TokenizerFacts, tokenizer: Any, in_file: Iterable[Mapping[str, Any]]
) -> TokenizerFacts:
    """Return facts in which tokens that only the class of an object calls special are text.

    The class of Gemma 2, for example, has the default `mask_token="<mask>"`, a token of text in the
    tokenizer file that no configuration names. The model has learned it as text.

    Args:
        facts: What is known of the object and of the files beside its tokenizer file.
        tokenizer: The `transformers` tokenizer.
        in_file: The added tokens of its tokenizer file.

    Returns:
        The facts.
    """
    parameters = inspect.signature(type(tokenizer).__init__).parameters
    unflagged = {entry["content"]: entry["id"] for entry in in_file if not entry.get("special")}
    text = {
        name
        for key, name in _token_names(tokenizer.special_tokens_map).items()
        if key in parameters and _name(parameters[key].default) == name and name in unflagged
    }
    # The names are those of configuration files, the ids those of the object.
    text -= {entry for entry in facts.special if isinstance(entry, str)}
    ids = {unflagged[name] for name in text}
    special = tuple(entry for entry in facts.special if entry not in ids)
    return replace(facts, special=special, text=facts.text | text)


def directory_of(tokenizer: Any) -> Path | None:
    """Return the directory, or the cached files of a hub id, from which an object was loaded."""
    name = str(getattr(tokenizer, "name_or_path", None) or "")
    if not name:
        return None
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_file():
        return path.parent
    try:
        from huggingface_hub import try_to_load_from_cache

        cached = [try_to_load_from_cache(name, file) for file in CONFIG_FILES]
    except (ImportError, ValueError):  # ValueError: the name is no hub id
        return None
    return next((Path(file).parent for file in cached if isinstance(file, str)), None)


def read_frame(template: Any, names: Mapping[str, str]) -> tuple[ChatFrame | None, tuple[str, ...]]:
    """Return the frame of a chat template, and notes about what could not be read.

    Args:
        template: The template; several by name, of which `"default"` is read; or `None`.
        names: Names of tokens for the template.

    Returns:
        The frame or `None`, and the notes.
    """
    if isinstance(template, (list, tuple)):
        template = {entry["name"]: entry["template"] for entry in template}
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str) or not template:
        return None, ()
    try:
        return chat_frame(template, names), ()
    except ImportError:
        return None, (
            "the chat template was not read for its end of turn, because jinja2 is not installed: "
            "pip install jinja2, or name the stops in Aligner(..., stop_tokens=...)",
        )
    except ValueError as error:
        return None, (
            f"the chat template was not read for its end of turn ({error}): name the stops in "
            "Aligner(..., stop_tokens=...) if the ones found elsewhere are not enough",
        )


def _template_beside(directory: Path, config: Mapping[str, Any]) -> Any:
    path = directory / TEMPLATE_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return config.get("chat_template") or read_json(directory / "chat_template.json").get(
        "chat_template"
    )


def _special_names(config: Mapping[str, Any]) -> list[str]:
    entries = [config.get(key) for key in _NAMED_SPECIAL]
    for key in _LISTED_SPECIAL:
        listed = config.get(key) or []
        entries += listed.values() if isinstance(listed, dict) else listed
    return [name for entry in entries if (name := _name(entry)) is not None]


def _token_names(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the named tokens of a configuration, as chat templates use them."""
    keys = (*_NAMED_SPECIAL, "eos_token")
    return {key: name for key in keys if (name := _name(config.get(key))) is not None}


def _ends(
    config: Mapping[str, Any], key: str, source: str, *, of_model: bool = False
) -> list[EndOfTurn]:
    value = config.get(key)
    entries: Iterable[Any] = value if isinstance(value, list) else [value]
    names = (entry if isinstance(entry, int) else _name(entry) for entry in entries)
    return [EndOfTurn(name, source, of_model) for name in names if name is not None]


def _class_ends(name: object) -> list[EndOfTurn]:
    """Return the default EOS token of a tokenizer class of `transformers`."""
    if not isinstance(name, str):
        return []
    try:
        import transformers
    except ImportError:
        return []

    for candidate in (name, f"{name}Fast", name.removesuffix("Fast")):
        known = getattr(transformers, candidate, None)
        if isinstance(known, type):
            default = inspect.signature(known.__init__).parameters.get("eos_token")  # type: ignore[misc]
            eos = None if default is None else _name(default.default)
            return [] if eos is None else [EndOfTurn(eos, f"class {name}")]
    return []


def _name(entry: object) -> str | None:
    """Return the name of a token: a string, or an object or dictionary that contains it."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    content = getattr(content, "content", content)
    return content if isinstance(content, str) else None
