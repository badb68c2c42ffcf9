"""Internal: the rows of `SimCTCollator`, read from their forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.chat import content_text
from simct_align.conversation import read_messages, says_text_only
from simct_align.id_forms import as_list, holds_rows
from simct_align.inputs import check_text, flag

if TYPE_CHECKING:
    from collections.abc import Sequence

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


def parse_row(number: int, row: Row, *, last_only: bool, options: dict[str, Any]) -> ParsedRow:
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
    if not isinstance(row, Mapping):
        raise TypeError(f"row {number}: expected a dictionary, got {type(row).__name__}")
    sampled = row.get("completion_ids")
    completion = None
    messages: str | list[Message]
    if "messages" in row:
        messages = read_messages("'messages'", row["messages"], f"row {number}: ")
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
    return ParsedRow(
        number,
        messages,
        turns,
        completion,
        ids,
        _truncated(number, row.get("truncated"), len(turns)),
        row.get("tools"),
        options
        | read_options(f"row {number}: 'chat_template_kwargs'", row.get("chat_template_kwargs")),
    )


def read_options(name: str, options: Any) -> dict[str, Any]:
    """Return keyword arguments of `apply_chat_template`; None for none.

    Args:
        name: The name of the argument or column, for the error.
        options: The keyword arguments.

    Raises:
        TypeError: `options` is not a mapping.
    """
    if options is not None and not isinstance(options, Mapping):
        raise TypeError(f"{name}: expected a dictionary, got {type(options).__name__}")
    return dict(options or {})


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
    if isinstance(prompt, str):
        check_text(f"row {number}: 'prompt'", prompt)
    if row.get("completion_ids") is not None:
        if isinstance(prompt, str):
            return prompt, [1], None
        messages = read_messages("'prompt'", prompt, f"row {number}: ")
        return messages, [len(messages)], None
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, [1], completion
    if isinstance(prompt, str) or isinstance(completion, str) or completion is None:
        raise ValueError(
            f"row {number}: 'prompt' is of type {type(prompt).__name__} and 'completion' of type "
            f"{type(completion).__name__}; expected two texts or two lists of messages"
        )
    before = read_messages("'prompt'", prompt, f"row {number}: ")
    messages = [*before, *read_messages("'completion'", completion, f"row {number}: ")]
    return messages, _assistant_turns(messages, len(before)), None


def _truncated(number: int, given: Any, turns: int) -> list[bool]:
    name = f"row {number}: 'truncated'"
    flags = as_list(given)
    if flags is None:
        return [False] * (turns - 1) + [given is not None and flag(name, given)]
    if len(flags) != turns:
        raise ValueError(f"{name} has {len(flags)} flags, expected one per turn: {turns}")
    return [flag(name, each) for each in flags]


def _turn_ids(number: int, sampled: Any, turns: Sequence[int]) -> list[NDArray[np.int64]]:
    expected = f"row {number}: 'completion_ids': expected a list of integers or one list per turn"
    entries = as_list(sampled)
    if entries is None:
        raise ValueError(f"{expected}, got {type(sampled).__name__}")
    ids = []
    for turn in entries if holds_rows(entries) else [entries]:
        try:
            values = np.asarray(turn)
        except ValueError as error:  # lists of several lengths
            raise ValueError(f"{expected}: {error}") from None
        if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
            raise ValueError(f"{expected}, got {values.dtype} of shape {values.shape}")
        ids.append(values.astype(np.int64))
    if len(ids) != len(turns):
        raise ValueError(
            f"row {number}: 'completion_ids' has {len(ids)} turns, expected {len(turns)} as in the "
            "messages"
        )
    return ids
