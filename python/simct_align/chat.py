"""Prompts of the turns of a conversation, as the chat template of a model writes them."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from simct_align.conversation import (
    ChatTokenizer,
    Message,
    Template,
    answer_like,
    around_text,
    read_messages,
    text_of,
)
from simct_align.history import SampledHistory
from simct_align.inputs import integer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from simct_align.vocabulary import Vocabulary

__all__ = ["ChatTokenizer", "Message", "prompt_ids"]


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
    turn, from the end of the turn before to the generation prompt. The turns themselves are in no
    prompt: they are the completions. The messages reach the template with all their fields.

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
        TypeError: The tokenizer has no chat templates, `messages` is not a list of messages, or
            `turns` are not integers.
        ValueError: `turns` are not ascending positions of assistant's messages, the template
            refuses the conversation up to a turn, or it does not write the content of a past turn
            exactly once, unchanged.

    Complexity:
        Two renderings of the conversation per turn, a few more for a turn with tool calls or
        reasoning, and one call of the tokenizer.
    """
    messages = read_messages("messages", messages)
    turns = _read_turns(turns, messages)
    if not turns:
        return []
    template = Template(tokenizer, tools, template_options or {})
    history = SampledHistory(template, messages, turns)
    return template.ids(history.around([""] * len(turns), sampled=True).prompts)


def _read_turns(turns: Sequence[int], messages: Sequence[Message]) -> list[int]:
    if isinstance(turns, (str, bytes)) or not hasattr(turns, "__iter__"):
        raise TypeError(f"turns: expected a list of positions, got {type(turns).__name__}")
    found = [
        integer(f"turns[{number}]", turn, at_least=0, at_most=len(messages))
        for number, turn in enumerate(turns)
    ]
    for number, (turn, after) in enumerate(pairwise([*found, len(messages) + 1])):
        if turn >= after:
            raise ValueError(f"turns[{number + 1}] is {after}, expected a position after {turn}")
        role = messages[turn]["role"] if turn < len(messages) else "assistant"
        if role != "assistant":
            raise ValueError(
                f"turns[{number}] is {turn}, a message with the role {role!r}; expected one of the "
                "role 'assistant'"
            )
    return found


def check_end_of_turn(
    side: str,
    tokenizer: ChatTokenizer,
    vocabulary: Vocabulary,
    stop_ids: Sequence[int],
    template_options: Mapping[str, Any] | None = None,
) -> None:
    """Warn if a chat template ends a turn with another token than the aligner does.

    The template writes a question and an answer, as texts or as text parts. A template that refuses
    both is not checked here: the rows show how it ends a turn.

    Args:
        side: `"teacher"` or `"student"`, for the message.
        tokenizer: The tokenizer of that side.
        vocabulary: The vocabulary of that side.
        stop_ids: The stops of that side, the canonical one first.
        template_options: Additional keyword arguments of `apply_chat_template`.
    """
    template = Template(tokenizer, options=template_options or {})
    text = _end_of_probe(template)
    if not text:
        return
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
        ValueError: The content is something else, such as an image.
    """
    content = text_of(message)
    if content is None:
        found = type(message.get("content")).__name__
        raise ValueError(
            f"{place} has content of type {found}; expected text, text parts, tool calls or "
            "reasoning: give what the student wrote as text in 'content', or as ids in "
            "'completion_ids'"
        )
    return content


def _end_of_probe(template: Template) -> str:
    """Return what follows a short answer; nothing if the template writes no such answer."""
    for shape in ("?", [{"type": "text", "text": "?"}]):
        question = {"role": "user", "content": shape}
        try:
            around = around_text(template, [question, answer_like([question], "")], 1)
        except ValueError:
            continue
        if around is not None:
            return around[1]
    return ""
