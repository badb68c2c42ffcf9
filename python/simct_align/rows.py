"""Internal: the rows of `SimCTCollator`, read from their forms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.chat import content_text
from simct_align.conversation import says_text_only

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from simct_align.conversation import Message

Row = dict[str, Any]


@dataclass(frozen=True)
class ParsedRow:
    """A row of any form.

    Attributes:
        number: The number of the row in its batch.
        messages: A conversation, or the text of a prompt.
        turns: Which messages are completions.
        completion: The text of the completion, in a row of two texts.
        ids: The student's ids of the completions, in a row with sampled ids.
        truncated: Whether a completion was cut off, one flag per turn.
        tools: The argument `tools` of `apply_chat_template`.
        options: Keyword arguments of `apply_chat_template`.
    """

    number: int
    messages: str | list[Message]
    turns: list[int]
    completion: str | None
    ids: list[NDArray[np.int64]] | None
    truncated: list[bool]
    tools: Any
    options: dict[str, Any]


def parse_row(number: int, row: Row, *, last_only: bool, options: Mapping[str, Any]) -> ParsedRow:
    """Read a row.

    Args:
        number: The number of the row, for errors.
        row: The row, in one of the forms that `SimCTCollator` describes.
        last_only: Whether only the last assistant turn of `messages` is a completion.
        options: Keyword arguments of `apply_chat_template`; the row's own take precedence.

    Raises:
        TypeError: A column has another type.
        ValueError: The row has none of the forms.
    """
    sampled = row.get("completion_ids")
    completion = None
    messages: str | list[Message]
    if "messages" in row:
        messages = read_messages(number, "messages", row["messages"])
        turns = _assistant_turns(messages, 0)
        if sampled is not None and (not turns or turns[-1] != len(messages) - 1):
            turns.append(len(messages))
        if last_only:
            turns = turns[-1:]
    elif "prompt" in row and ("completion" in row or sampled is not None):
        messages, turns, completion = _prompt_and_completion(number, row)
    else:
        raise ValueError(
            f"row {number} has the keys {sorted(row)}; expected 'messages', or 'prompt' and "
            "'completion', or 'prompt' and 'completion_ids'"
        )
    if not turns:
        raise ValueError(
            f"row {number} has no assistant turn; expected at least one, or 'completion_ids'"
        )
    ids = None if sampled is None else _turn_ids(number, sampled, turns)
    if ids is None and not isinstance(messages, str):
        for turn in turns:
            if says_text_only(messages[turn]):
                content_text(messages[turn], f"row {number}, message {turn}")
    truncated = row.get("truncated", False)
    if np.ndim(truncated) == 0:
        truncated = [False] * (len(turns) - 1) + [bool(truncated)]
    return ParsedRow(
        number,
        messages,
        turns,
        completion,
        ids,
        list(truncated),
        row.get("tools"),
        {**options, **(row.get("chat_template_kwargs") or {})},
    )


def read_messages(number: int, column: str, messages: Any) -> list[Message]:
    """Return a column as a list of messages.

    Args:
        number: The number of the row, for errors.
        column: The name of the column, for errors.
        messages: The column's value.

    Raises:
        TypeError: The value is not a list of dictionaries that have a role.
    """
    if isinstance(messages, str) or not hasattr(messages, "__iter__"):
        raise TypeError(
            f"row {number}: {column!r} is of type {type(messages).__name__}; expected a list of "
            "messages"
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
                f"row {number}: message {position} of {column!r} {what}; expected a dictionary "
                "with the text 'role'"
            )
    return checked


def _assistant_turns(messages: Sequence[Message], start: int) -> list[int]:
    return [
        position
        for position, message in enumerate(messages)
        if position >= start and message["role"] == "assistant"
    ]


def _prompt_and_completion(
    number: int, row: Row
) -> tuple[str | list[Message], list[int], str | None]:
    prompt, completion = row["prompt"], row.get("completion")
    if row.get("completion_ids") is not None:
        if isinstance(prompt, str):
            return prompt, [1], None
        messages = read_messages(number, "prompt", prompt)
        return messages, [len(messages)], None
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, [1], completion
    if isinstance(prompt, str) or isinstance(completion, str) or completion is None:
        raise ValueError(
            f"row {number}: 'prompt' is of type {type(prompt).__name__} and 'completion' of type "
            f"{type(completion).__name__}; expected two texts or two lists of messages"
        )
    before = read_messages(number, "prompt", prompt)
    messages = [*before, *read_messages(number, "completion", completion)]
    return messages, _assistant_turns(messages, len(before)), None


def _turn_ids(number: int, sampled: Any, turns: Sequence[int]) -> list[NDArray[np.int64]]:
    nested = len(sampled) > 0 and np.ndim(sampled[0]) > 0
    ids = []
    for turn in sampled if nested else [sampled]:
        values = np.asarray(turn)
        if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
            raise ValueError(
                f"row {number}: 'completion_ids': expected a list of integers or one list per "
                f"turn, got {values.dtype} of shape {values.shape}"
            )
        ids.append(values.astype(np.int64))
    if len(ids) != len(turns):
        raise ValueError(
            f"row {number}: 'completion_ids' has {len(ids)} turns, expected {len(turns)} as in the "
            "messages"
        )
    return ids
