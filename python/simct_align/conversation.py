"""Internal: where the turns of a conversation lie in the text that a chat template writes.

A chat template is a program: it may trim a text, drop the reasoning of past turns, write headers
in front of a turn, and end a past turn otherwise than the last one. Nothing here knows a template.
A turn is found by rendering the conversation again with this one message changed: what differs is
what the template writes of the message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from simct_align.inputs import check_text
from simct_align.vocabulary import common_prefix

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A message of a conversation: `role`, `content`, and whatever else a chat template reads.
Message = dict[str, Any]

#: The fields of an assistant's message, next to its content, that are part of what it says.
SAID = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")

#: A private-use character, which no text of a conversation should have. Templates that trim texts
#: or change their case leave it as it is.
_MARK = "\ue000"
#: What stands for the content of a turn.
_MARKER = f"{_MARK}\ue001{_MARK}"
#: The character that stands for turn 0 in a rendering with the markers of all turns.
_FIRST_TURN = 0xE010
_LAST_PRIVATE = 0xF8FF
#: The opening of a block, in characters: `<think>` with white space is one, a bracket is none.
_SHORTEST_OVERLAP, _LONGEST_OVERLAP = 4, 64
#: Fields that link messages or choose a branch of a template: a change would change the structure.
_FIXED = ("role", "type", "id", "tool_call_id")


class ChatTokenizer(Protocol):
    """The methods of a `transformers` tokenizer that this package calls to render conversations."""

    def apply_chat_template(self, conversation: list[Message], **options: Any) -> Any:
        """Render messages as text."""
        ...

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Tokenize texts; the name of a special token becomes that token."""
        ...


class Place(NamedTuple):
    """Where a turn lies in a text.

    Attributes:
        start: The offset of the first character of the turn.
        end: The offset behind the last character of the turn, before what ends the turn.
        left_out: The end of the generation prompt that the text lacks in front of the turn, such as
            an empty think block.
    """

    start: int
    end: int
    left_out: str = ""


@dataclass(frozen=True)
class Template:
    """The chat template of a side, with the arguments of a row.

    Attributes:
        tokenizer: The tokenizer with the template.
        tools: The argument `tools` of `apply_chat_template`.
        options: Additional keyword arguments of `apply_chat_template`.
        place: The name of the template in errors.
    """

    tokenizer: ChatTokenizer
    tools: Sequence[Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    place: str = "the chat template"

    def __post_init__(self) -> None:
        if not callable(getattr(self.tokenizer, "apply_chat_template", None)):
            raise TypeError(
                f"{self.place}: expected a tokenizer of transformers, which has "
                f"apply_chat_template, got {type(self.tokenizer).__name__}"
            )

    def render(
        self, messages: Sequence[Message], turns: Sequence[int] = (), *, generate: bool = False
    ) -> str:
        """Return what the template writes.

        Args:
            messages: The conversation.
            turns: Positions of the turns, to name one in an error.
            generate: Whether the generation prompt follows.

        Raises:
            ValueError: There is no template, or it raises an error. The message says from which
                message on.
        """
        if "chat_template" not in self.options and (
            getattr(self.tokenizer, "chat_template", "") is None
        ):
            raise ValueError(
                f"{self.place} is missing: set the attribute chat_template of the tokenizer to the "
                "template of its model, or give the row as texts, {'prompt': ..., "
                "'completion': ...}"
            )
        try:
            return self._write(messages, generate)
        except Exception as error:
            raise ValueError(
                f"{self.place} refuses the conversation{self._refused(messages, turns, generate)}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def attempt(self, messages: Sequence[Message], *, generate: bool = False) -> str | None:
        """Return what the template writes, or None if it raises an error."""
        try:
            return self._write(messages, generate)
        except Exception:
            return None

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts that the template wrote; names of special tokens become these tokens.

        Raises:
            ValueError: A text is not valid Unicode, because a message is not.
        """
        if not texts:
            return []
        for text in texts:
            check_text(f"{self.place}: the text that it writes around a completion", text)
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return found

    def _write(self, messages: Sequence[Message], generate: bool) -> str:
        given = {} if self.tools is None else {"tools": list(self.tools)}
        text: str = self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generate, **given, **self.options
        )
        return text

    def _refused(self, messages: Sequence[Message], turns: Sequence[int], generate: bool) -> str:
        """Name the first message after the longest part of the conversation that is accepted."""
        accepted = (
            count
            for count in range(len(messages) - 1, 0, -1)
            if self.attempt(messages[:count]) is not None
        )
        if generate and self.attempt(messages) is not None:
            first, what = len(messages), "the generation prompt"
        elif (first := next(accepted, -1)) >= 0:
            what = f"message {first} ({messages[first].get('role')!r})"
        else:
            return ""
        number = next((number for number, turn in enumerate(turns) if turn >= first), None)
        return f" at {what}" + ("" if number is None else f", turn {number}")


def read_messages(name: str, messages: Any, place: str = "") -> list[Message]:
    """Return a conversation as a list of messages.

    Args:
        name: The name of the argument or column, for errors.
        messages: The conversation.
        place: What stands before the name in errors.

    Raises:
        TypeError: `messages` is not a list of dictionaries that have a role.
    """
    if isinstance(messages, (str, Mapping)) or not hasattr(messages, "__iter__"):
        raise TypeError(
            f"{place}{name} is of type {type(messages).__name__}; expected a list of messages"
        )
    checked = list(messages)
    for position, message in enumerate(checked):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            what = (
                f"has the keys {sorted(map(str, message))}"
                if isinstance(message, dict)
                else f"is of type {type(message).__name__}"
            )
            raise TypeError(
                f"{place}message {position} of {name} {what}; expected a dictionary with the text "
                "'role'"
            )
    return checked


def text_of(message: Message) -> str | None:
    """Return the content of a message if it is a text or a list of text parts, else None."""
    content = message.get("content")
    if isinstance(content, (list, tuple)):
        texts = [
            part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
            for part in content
        ]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else None  # type: ignore[arg-type]
    return content if isinstance(content, str) else None


def says_text_only(message: Message) -> bool:
    """Tell whether an assistant's message has neither tool calls nor reasoning."""
    return not any(message.get(name) for name in SAID)


def with_text(message: Message, text: str) -> Message:
    """Return the message with another text, in the shape of its content."""
    is_parts = isinstance(message.get("content"), (list, tuple))
    return message | {"content": [{"type": "text", "text": text}] if is_parts else text}


def answer_like(messages: Sequence[Message], text: str) -> Message:
    """Return an assistant's message with its content in the shape of the other messages."""
    is_parts = any(isinstance(message.get("content"), (list, tuple)) for message in messages)
    return with_text({"role": "assistant", "content": [] if is_parts else ""}, text)


def around_text(
    template: Template, messages: Sequence[Message], turn: int, *, generate: bool = False
) -> tuple[str, str] | None:
    """Return what the template writes before and after the content of a message.

    Args:
        template: The template.
        messages: The conversation.
        turn: The position of the message.
        generate: Whether the generation prompt follows.

    Returns:
        Both texts; None if the template accepts no other content for the message, or if it does not
        write the content of a message that has more than its content.

    Raises:
        ValueError: The template does not write the content of a message without calls and reasoning
            exactly once.
    """
    changed = _replaced(messages, turn, with_text(messages[turn], _MARKER))
    text = template.attempt(changed, generate=generate)
    if text is None:
        return None
    if (times := text.count(_MARKER)) == 1:
        before, _, after = text.partition(_MARKER)
        return before, after
    if says_text_only(messages[turn]):
        raise ValueError(
            f"{template.place} writes the content of message {turn} {times} times, expected "
            "exactly once and unchanged"
        )
    return None


def between_turns(
    template: Template, messages: Sequence[Message], turns: Sequence[int], *, generate: bool = False
) -> list[str] | None:
    """Return what the template writes around the contents of some messages, in one rendering.

    Args:
        template: The template.
        messages: The conversation.
        turns: The positions of the messages, ascending.
        generate: Whether the generation prompt follows.

    Returns:
        One text more than turns, or None if the template does not write each content exactly once.
    """
    if _FIRST_TURN + len(turns) > _LAST_PRIVATE:
        return None
    marked = list(messages)
    markers = [chr(_FIRST_TURN + number) for number in range(len(turns))]
    for marker, turn in zip(markers, turns, strict=True):
        marked[turn] = with_text(marked[turn], f"{_MARKER}{marker}")
    text = template.attempt(marked, generate=generate)
    if text is None:
        return None
    pieces = re.split(f"{_MARKER}(.)", text)
    return pieces[::2] if pieces[1::2] == markers else None


def find_text(
    template: Template, messages: Sequence[Message], turn: int, text: str, *, generate: bool = False
) -> tuple[int | None, int] | None:
    """Return where the content of a message lies in a rendering of the conversation.

    Args:
        template: The template.
        messages: The conversation.
        turn: The position of the message.
        text: The rendering.
        generate: Whether the rendering has the generation prompt.

    Returns:
        `(start, end)`. The start is None if what is in front of the content depends on the content.
        None if the end depends on it, or as for `around_text`.

    Raises:
        ValueError: As for `around_text`.
    """
    around = around_text(template, messages, turn, generate=generate)
    if around is None or not text.endswith(around[1]):
        return None
    end = len(text) - len(around[1])
    start = len(around[0])
    return (start if text.startswith(around[0]) and start <= end else None), end


def find_turn(
    template: Template,
    messages: Sequence[Message],
    turn: int,
    text: str,
    *,
    low: int = 0,
    generate: bool = False,
) -> Place:
    """Return where a whole turn lies in a rendering of the conversation.

    The turn begins where the generation prompt ends: it is what the model has to write. It ends
    before the first special token after the last character that depends on the message.

    Args:
        template: The template.
        messages: The conversation.
        turn: The position of the message.
        text: The rendering.
        low: An offset before which the turn does not begin.
        generate: Whether the rendering has the generation prompt.

    Returns:
        The place of the turn.

    Raises:
        ValueError: The template does not write the turn, or as for `around_text`.
    """
    marked = find_text(template, messages, turn, text, generate=generate)
    depends = _depends(template, messages, turn, text, generate=generate)
    if depends is None and marked is not None:
        depends = marked[1], marked[1]
    if depends is None:
        raise ValueError(f"{template.place} does not write message {turn}")
    start, left_out = _find_start(template, messages, turn, text, low, max(low, depends[0]))
    if marked is not None and says_text_only(messages[turn]):
        return Place(start, max(start, marked[1]), left_out)
    alone = _find_alone(template, messages[: turn + 1], text, low, max(low, depends[0]))
    if alone is None:
        last = max(start, depends[1])
        special = special_pattern(template.tokenizer)
        found = None if special is None else special.search(text, last)
        return Place(start, last if found is None else found.start(), left_out)
    if alone[0] is None or alone[0] == start:
        return Place(start, max(start, alone[1]), left_out)
    return Place(alone[0], alone[1])


def _find_start(
    template: Template, messages: Sequence[Message], turn: int, text: str, low: int, first: int
) -> tuple[int, str]:
    """Return where a turn begins, and the end of the generation prompt that the text lacks there.

    Args:
        template: The template.
        messages: The conversation.
        turn: The position of the message.
        text: The rendering.
        low: An offset before which the turn does not begin.
        first: The first offset of what depends on the message.
    """
    prompt = template.attempt(messages[:turn], generate=True)
    if prompt is None:
        return first, ""
    if text.startswith(prompt) and low <= len(prompt) <= first:
        return len(prompt), ""
    before = template.attempt(messages[:turn])
    opening = prompt[len(before) :] if before is not None and prompt.startswith(before) else ""
    # In history a template may write less than the whole generation prompt: try to leave out its
    # last lines or control tokens, one more at a time.
    ends = [at.end() for at in re.finditer(r"[\n>\]]", opening)]
    for cut in sorted({len(opening), *ends} - {0}, reverse=True):
        at = text.rfind(opening[:cut], low, first)
        if at >= 0:
            return at + cut, opening[cut:]
    return first, ""


def _find_alone(
    template: Template, messages: Sequence[Message], text: str, low: int, first: int
) -> tuple[int | None, int] | None:
    """Find the last of some messages in a text, from its rendering as the last one.

    What follows a call may depend on the call as well, such as the header of the result.

    Args:
        template: The template.
        messages: The messages.
        text: The rendering of these messages and others.
        low: An offset before which the turn does not begin.
        first: The first offset of what depends on the message: the turn begins there or before.

    Returns:
        `(start, end)`. The start is None if the text has only the end of the turn: history may lack
        the reasoning in front of a call. None if the text has neither.
    """
    turn = len(messages) - 1
    alone = template.attempt(messages)
    depends = None if alone is None else _depends(template, messages, turn, alone)
    if alone is None or depends is None:
        return None
    start, _ = _find_start(template, messages, turn, alone, 0, depends[0])
    end = max(start, _end_of_last(template, messages, alone, depends[1]))
    if alone == text:
        return start, end
    body = alone[start:end]
    special = special_pattern(template.tokenizer)
    cuts = [] if special is None else [found.start() for found in special.finditer(body)]
    for cut in [0, *cuts]:
        at = text.rfind(body[cut:], low, first + len(body) - cut) if body else -1
        if at >= 0:
            return (None if cut else at), at + len(body) - cut
    return None


def _end_of_last(template: Template, messages: Sequence[Message], alone: str, last: int) -> int:
    """Return where the last message ends in a rendering, after the last offset that depends on it.

    A call mostly ends as an answer does. If not, it ends before the last special token.
    """
    answered = [*messages[:-1], answer_like(messages, "")]
    try:
        around = around_text(template, answered, len(messages) - 1)
    except ValueError:
        around = None
    if around is not None and around[1] and alone.endswith(around[1]):
        end = len(alone) - len(around[1])
        if end >= last:
            return end
    special = special_pattern(template.tokenizer)
    found = [] if special is None else list(special.finditer(alone, last))
    return found[-1].start() if found else max(last, len(alone.rstrip()))


def special_pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Return a pattern that matches the names of a tokenizer's special tokens, or None."""
    names = {str(name) for name in getattr(tokenizer, "all_special_tokens", None) or ()}
    for token in (getattr(tokenizer, "added_tokens_decoder", None) or {}).values():
        if getattr(token, "special", False):
            names.add(str(token))
    names.discard("")
    if not names:
        return None
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))


def overlap(before: str, text: str) -> int:
    """Return how many characters at the start of a text already end what is before it.

    A generation prompt may open a block, such as one for reasoning, that a text opens as well.
    """
    for size in range(min(len(before), len(text), _LONGEST_OVERLAP), _SHORTEST_OVERLAP - 1, -1):
        if before.endswith(text[:size]) and not text[:size].isspace():
            return size
    return 0


def difference(came: str, expected: str, *, margin: int = 40) -> tuple[str, str]:
    """Return the parts of two texts around their first difference."""
    at = max(0, common_prefix(came, expected) - margin)
    shown = []
    for text in (came, expected):
        cut = text[at : at + 2 * margin]
        shown.append("…" * (at > 0) + cut + "…" * (at + 2 * margin < len(text)))
    return shown[0], shown[1]


def _depends(
    template: Template,
    messages: Sequence[Message],
    turn: int,
    text: str,
    *,
    generate: bool = False,
) -> tuple[int, int] | None:
    """Return the first and the last offset of what depends on a message; None for none."""
    # Some templates parse the arguments of a call, refuse a content next to calls, or refuse a
    # function that is not one of the tools.
    for fixed in ((), ("arguments",), ("arguments", "content"), ("name",), ("name", "content")):
        varied = template.attempt(
            _replaced(messages, turn, _vary(messages[turn], (*_FIXED, *fixed))), generate=generate
        )
        if varied is not None and varied != text:
            first = common_prefix(text, varied)
            return first, max(first, len(text) - common_prefix(text[::-1], varied[::-1]))
    prompt = template.attempt(messages[:turn], generate=True)
    if says_text_only(messages[turn]) or prompt is None or not text.startswith(prompt):
        return None
    return len(prompt), len(prompt)


def _replaced(messages: Sequence[Message], turn: int, message: Message) -> list[Message]:
    return [*messages[:turn], message, *messages[turn + 1 :]]


def _vary(value: Any, fixed: Sequence[str]) -> Any:
    """Return a message with a mark at both ends of every text that it says, and other numbers."""
    if isinstance(value, str):
        return f"{_MARK}{value}{_MARK}" if value else value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value + 1
    if isinstance(value, dict):
        return {key: each if key in fixed else _vary(each, fixed) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_vary(each, fixed) for each in value]
    return value
