"""Prompts of the turns of a conversation, as the chat template of a model writes them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from simct_align.vocabulary import Vocabulary

__all__ = ["ChatTokenizer", "Message", "prompt_ids"]

#: A message of a conversation: `role`, `content`, and whatever else a chat template reads.
Message = dict[str, Any]


class ChatTokenizer(Protocol):
    """The methods of a `transformers` tokenizer that this module calls."""

    def apply_chat_template(self, conversation: list[Message], **options: Any) -> Any:
        """Render messages as text."""
        ...

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Tokenize texts; the name of a special token becomes that token."""
        ...


def prompt_ids(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    turns: Sequence[int],
    *,
    tools: Sequence[Any] | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Return the prompt ids of every turn, as the model reads them before it samples the turn.

    Use it for both sides, each with its own tokenizer, and pass the results to `Aligner.prepare`.
    The first prompt is everything that the template writes up to the turn, including the
    generation prompt. A later prompt is what the template writes between the turn before and this
    turn. The contents of the turns themselves do not matter: they are the completions.

    Args:
        tokenizer: A `transformers` tokenizer with a chat template.
        messages: The conversation: messages with roles and contents.
        turns: Positions of the messages that are completions, ascending. `len(messages)` is an
            answer that `messages` does not contain.
        tools: The argument `tools` of `apply_chat_template`.
        template_options: Additional keyword arguments of `apply_chat_template`.

    Returns:
        One list of ids per turn.

    Raises:
        ValueError: The template does not write the content of a turn exactly once, unchanged.

    Complexity:
        One rendering of the conversation per turn, and one call of the tokenizer.
    """
    texts = []
    for number, turn in enumerate(turns):
        before = list(messages[:turn])
        for earlier, position in enumerate(turns[:number]):
            before[position] = {"role": before[position]["role"], "content": _marker(earlier)}
        text = _render(tokenizer, before, tools, template_options, add_generation_prompt=True)
        if number > 0:
            text = _after(text, _marker(number - 1), f"message {turns[number - 1]}")
        texts.append(text)
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def check_end_of_turn(
    side: str, tokenizer: ChatTokenizer, vocabulary: Vocabulary, stop_ids: Sequence[int]
) -> None:
    """Warn if a chat template ends a turn with another token than the aligner does.

    Args:
        side: `"teacher"` or `"student"`, for the message.
        tokenizer: The tokenizer of that side.
        vocabulary: The vocabulary of that side.
        stop_ids: The stops of that side, the canonical one first.

    Raises:
        ValueError: The template does not write the content of a turn exactly once, unchanged.
    """
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _marker(0)}]
    text = _after(_render(tokenizer, messages, None, None), _marker(0), "message 1")
    ids = tokenizer([text], add_special_tokens=False)["input_ids"][0]
    names = vocabulary.special_names
    end = next((token for token in ids if token in names), None)
    if end is None or end in stop_ids[:1]:
        return
    stops = ", ".join(repr(names.get(stop, stop)) for stop in stop_ids) or "none"
    warnings.warn(
        f"the {side}'s chat template ends a turn with {names[end]!r}, but the aligner ends it with "
        f"the first of its {side} stops ({stops}); put {names[end]!r} first in "
        "Aligner(..., stop_tokens=...)",
        stacklevel=3,
    )


def content_text(message: Message, place: str) -> str:
    """Return the text of a message whose content is text, or a list of text parts.

    Args:
        message: The message.
        place: The place of the message in the input, for the error.

    Returns:
        The text.

    Raises:
        ValueError: The message contains something else, such as a tool call.
    """
    content = message.get("content")
    if isinstance(content, (list, tuple)) and all(
        isinstance(part, dict) and part.get("type") == "text" for part in content
    ):
        content = "".join(part["text"] for part in content)
    calls = [key for key in ("tool_calls", "reasoning_content", "reasoning") if message.get(key)]
    if not isinstance(content, str) or calls:
        what = f"has {calls[0]}" if calls else f"has content of type {type(content).__name__}"
        raise ValueError(
            f"{place} {what}; expected only text: give what the student wrote as text in "
            "'content', or as ids in 'completion_ids'"
        )
    return content


def _marker(turn: int) -> str:
    """Return a placeholder for the content of a turn, in private-use characters."""
    return f"\ue000turn {turn}\ue001"


def _render(
    tokenizer: ChatTokenizer,
    messages: list[Message],
    tools: Sequence[Any] | None,
    options: Mapping[str, Any] | None,
    *,
    add_generation_prompt: bool = False,
) -> str:
    given = {} if tools is None else {"tools": list(tools)}
    text: str = tokenizer.apply_chat_template(
        messages,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        **given,
        **(options or {}),
    )
    return text


def _after(text: str, marker: str, place: str) -> str:
    if text.count(marker) != 1:
        raise ValueError(
            f"the chat template writes the content of {place} {text.count(marker)} times, "
            "expected exactly once and unchanged"
        )
    return text.partition(marker)[2]
