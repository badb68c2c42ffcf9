"""Internal: what a chat template writes around the contents of messages."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import FrameType

#: How long a template may take for all conversations, in seconds; those of models take some ms.
MAX_SECONDS = 2.0
#: The largest result of a multiplication of texts, in characters, and of a power, in bits.
_MAX_PRODUCT = 1_000_000

# The conversations that are tried, the longest first: some templates refuse several turns.
_CONVERSATIONS = (
    ("user", "assistant", "user", "assistant"),
    ("user", "assistant"),
)


@dataclass(frozen=True)
class ChatFrame:
    """The texts around the contents of a conversation.

    Attributes:
        before: The texts before every content, in order.
        after_answer: The text after the last answer of the assistant.
    """

    before: tuple[str, ...]
    after_answer: str

    def end_of_turn(self, names: Iterable[str]) -> str | None:
        """Return the first of the given control tokens after the answer; the longest if several.

        Args:
            names: Names of tokens.

        Returns:
            The name, or `None` if the template writes none of them there.
        """
        found = [(self.after_answer.find(name), -len(name), name) for name in names if name]
        return min((entry for entry in found if entry[0] >= 0), default=(0, 0, None))[2]

    def role_tokens(self, names: Iterable[str]) -> list[str]:
        """Return which tokens delimit messages.

        Text such as line breaks and words does not count. A pair of an opening and a closing mark
        in one place, such as `<think></think>`, belongs to the answer that the model writes.

        Args:
            names: Names of added tokens.

        Returns:
            The names, in the order of `names`.
        """
        places = (*self.before, self.after_answer)
        return [
            name
            for name in names
            if _is_mark(name)
            and any(name in place and not _is_paired(name, place) for place in places)
        ]


def _is_mark(name: str) -> bool:
    inner = any(character.isalnum() for character in name)
    outer = name[:1] + name[-1:]
    return inner and len(name) > 2 and not any(c.isalnum() or c.isspace() for c in outer)


def _is_paired(name: str, place: str) -> bool:
    opening, closing = name.replace("/", "", 1), f"{name[0]}/{name[1:]}"
    return (name != opening and opening in place) or closing in place


def chat_frame(template: str, names: Mapping[str, str]) -> ChatFrame:
    """Render a conversation with a chat template and return what is around the contents.

    Args:
        template: The Jinja template, as in `tokenizer_config.json`.
        names: Names of tokens for the template: `bos_token`, `eos_token` and others.

    Returns:
        The texts.

    Raises:
        ImportError: Jinja is not installed.
        ValueError: The template cannot be rendered, takes longer than `MAX_SECONDS`, or does not
            write every content once.
    """
    environment = _environment()
    try:
        compiled = environment.from_string(template)
    except Exception as error:  # Jinja's own, and what a damaged template makes Python raise
        raise ValueError(f"{type(error).__name__}: {error}") from error
    problem = ""
    deadline = time.monotonic() + MAX_SECONDS
    for roles in _CONVERSATIONS:
        for as_parts in (False, True):
            marks = [f"\ue000{number}\ue001" for number in range(len(roles))]
            messages = [
                {
                    "role": role,
                    "content": [{"type": "text", "text": mark}] if as_parts else mark,
                }
                for role, mark in zip(roles, marks, strict=True)
            ]
            try:
                text = _until(
                    deadline,
                    compiled.render,
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=False,
                    **names,
                )
            except Exception as error:  # whatever a template can raise
                problem = f"{type(error).__name__}: {error}"
                continue
            if all(text.count(mark) == 1 for mark in marks):
                pieces = []
                for mark in marks:
                    piece, _, text = text.partition(mark)
                    pieces.append(piece)
                return ChatFrame(tuple(pieces), text)
            problem = "it does not write the content of every message exactly once"
    raise ValueError(problem)


def _until(deadline: float, render: Callable[..., str], **names: Any) -> str:
    """Render a template, and raise an error when the time is up.

    A template is a program of somebody else: it can loop for ever, in the thread of the caller,
    which nothing else can stop. Under a debugger it runs without a limit.
    """

    def check(_frame: FrameType, _event: str, _argument: Any) -> Any:
        if time.monotonic() > deadline:
            raise TimeoutError(f"it takes longer than {MAX_SECONDS:g} seconds")
        return check

    if sys.gettrace() is not None:
        return render(**names)
    sys.settrace(check)
    try:
        return render(**names)
    finally:
        sys.settrace(None)


def _environment() -> Any:
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        """A sandbox that refuses products and powers of any size, which no deadline interrupts."""

        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            size = 0
            if operator == "**":
                size = left.bit_length() * right if isinstance(left, int) else 0
            for text, times in ((left, right), (right, left)):
                if operator == "*" and isinstance(text, (str, list, tuple)):
                    size = len(text) * times
            if size > _MAX_PRODUCT:
                raise OverflowError(f"the result of {operator} is too large")
            return super().call_binop(context, operator, left, right)

    class Generation(Extension):
        """The block `{% generation %}`, which marks answers and writes nothing."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise, strftime_now=lambda _: "")
    return environment


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


def _raise(message: str) -> None:
    raise ValueError(message)
