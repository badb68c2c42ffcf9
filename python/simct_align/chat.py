"""Prompts of a conversation's turns, each as its model's own chat template writes it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from simct_align.vocabulary import Vocabulary

Message = dict[str, Any]


class ChatTokenizer(Protocol):
    """What is needed of a `transformers` tokenizer."""

    def apply_chat_template(self, conversation: list[Message], **options: Any) -> Any:
        """Renders messages as text."""
        ...

    def __call__(self, text: list[str], **options: Any) -> Any:
        """Tokenizes texts, control tokens in them included."""
        ...


def prompt_ids(
    tokenizer: ChatTokenizer,
    messages: Sequence[Message],
    turns: Sequence[int],
    *,
    tools: Sequence[Any] | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Gives the ids that stand before every turn, as its model reads them while it samples.

    Use it for both sides, each with its own tokenizer, and give the results to
    `prepare`. The first prompt is the template's text up to the turn, generation
    prompt included; a later one is what the template puts between the turn before and this one.
    What these turns say is not looked at: it comes as completions.

    Args:
        tokenizer: A `transformers` tokenizer with a chat template.
        messages: The conversation, roles and contents.
        turns: Which messages are completions, ascending; `len(messages)` stands for an answer
            that is not among them.
        tools: Tools for the template.
        template_options: Further arguments of `apply_chat_template`.

    Returns:
        One list of ids for each turn.

    Raises:
        ValueError: The template does not write a turn's content as it is, or writes it twice.

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
            text = _behind(text, _marker(number - 1), f"message {turns[number - 1]}")
        texts.append(text)
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return ids


def check_end_of_turn(
    side: str, tokenizer: ChatTokenizer, vocabulary: Vocabulary, stop_ids: Sequence[int]
) -> None:
    """Warns where a template ends a turn with another token than the aligner puts there.

    Args:
        side: `"teacher"` or `"student"`, for the message.
        tokenizer: That side's tokenizer.
        vocabulary: That side's vocabulary.
        stop_ids: Its stops, the canonical one first.
    """
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _marker(0)}]
    text = _behind(_render(tokenizer, messages, None, None), _marker(0), "message 1")
    ids = tokenizer([text], add_special_tokens=False)["input_ids"][0]
    names = vocabulary.special_names
    end = next((token for token in ids if token in names), None)
    if end is None or end in stop_ids[:1]:
        return
    stops = ", ".join(repr(names.get(stop, stop)) for stop in stop_ids) or "none"
    warnings.warn(
        f"the {side}'s chat template ends a turn with {names[end]!r}, which is not the first of "
        f"the aligner's stops for that side ({stops}); name it in Aligner(..., stop_tokens=...)",
        stacklevel=3,
    )


def content_text(message: Message, place: str) -> str:
    """The text of a message whose content is text, or parts of text.

    Args:
        message: The message.
        place: Where it is, for the error.

    Raises:
        ValueError: It is something else, such as a tool call.
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
            f"{place} {what}: give what the student wrote as text in 'content', or as ids in "
            "'completion_ids'"
        )
    return content


def _marker(turn: int) -> str:
    """Stands for a turn's content; private-use characters, which no template touches."""
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


def _behind(text: str, marker: str, place: str) -> str:
    if text.count(marker) != 1:
        raise ValueError(
            f"the chat template writes the content of {place} {text.count(marker)} times, "
            "expected once"
        )
    return text.partition(marker)[2]
