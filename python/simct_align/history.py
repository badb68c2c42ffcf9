"""Internal: the text around completions, as a template writes it or a sampling model reads it."""

from __future__ import annotations

from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Literal, NamedTuple

from simct_align.conversation import (
    Message,
    Place,
    Template,
    answer_like,
    around_text,
    between_turns,
    find_text,
    find_turn,
    overlap,
    says_text_only,
    text_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

#: How the turns before a turn stand in its row.
HistoryName = Literal["template", "sampled"]


class Around(NamedTuple):
    """The text around the completions of a row.

    Attributes:
        prompts: The text in front of every completion, from the end of the completion before.
        end: The text after the last completion. None if the completions end with their own stops.
        written: What the template writes for the conversation, or None if that is not known.
    """

    prompts: list[str]
    end: str | None
    written: str | None

    def joined(self, texts: Sequence[str]) -> str:
        """Return the row with some texts as its completions."""
        return _joined([*self.prompts, self.end or ""], texts)


class TemplateHistory:
    """A conversation as its template writes it at once.

    Args:
        template: The template.
        messages: The conversation.
        turns: The positions of the completions, ascending. `len(messages)` is an answer that
            `messages` does not contain.
        answer: The text of such an answer, if the template is to write it; None if the model reads
            the generation prompt in front of it.

    Raises:
        ValueError: The template refuses the conversation.
    """

    def __init__(
        self,
        template: Template,
        messages: Sequence[Message],
        turns: Sequence[int],
        *,
        answer: str | None = None,
    ) -> None:
        self._template = template
        self._turns = list(turns)
        self._messages = list(messages[: turns[-1] + 1])
        self._generate = turns[-1] == len(messages)
        text = None
        if self._generate and answer is not None:
            answered = [*self._messages, answer_like(messages, answer)]
            text = template.attempt(answered)
            if text is not None:
                self._messages, self._generate = answered, False
        if text is None:
            text = template.render(self._messages, turns, generate=self._generate)
        self._text = text
        self._written = self._turns[: len(turns) - self._generate]
        self._places: dict[int, Place] = {}
        #: The conversation, if the template does not write its last turn.
        self._lacking: str | None = None
        #: The last turn, if the template does not write it.
        self._unwritten: Message = {}
        try:
            self._contents = self._find_texts()
        except ValueError:
            if self._generate:
                raise
            self._lacking, self._unwritten = text, self._messages.pop()
            self._written, self._generate = self._turns[:-1], True
            self._text = template.render(self._messages, turns, generate=True)
            self._contents = self._find_texts()

    def body(self, number: int) -> str:
        """Return what the template writes of a turn: its content, or calls and reasoning as well.

        Args:
            number: The number of the turn.

        Raises:
            ValueError: The template does not write the turn.
        """
        if number == len(self._written):
            return text_of(self._unwritten) or ""
        content = self._contents[number]
        if content is None or content[0] is None:
            place = self._place(number)
            return self._text[place.start : place.end]
        return self._text[content[0] : content[1]]

    def opened(self, number: int) -> str:  # noqa: ARG002
        """Return the start of a content that belongs to the prompt: here nothing."""
        return ""

    def has(self, number: int, text: str) -> bool:
        """Tell whether a text ends a turn as the template writes it, white space aside.

        Args:
            number: The number of the turn.
            text: The text.
        """
        return number == len(self._written) or self._fit(number, text, 0) is not None

    def around(self, texts: Sequence[str], *, sampled: bool) -> Around:
        """Return the text around the completions.

        Args:
            texts: The completions. One that the template does not write so stands in place of what
                the template writes of the turn.
            sampled: Whether the model has sampled the texts, after its generation prompt.

        Raises:
            ValueError: The template does not write a turn.
        """
        low, prompts = 0, []
        for number in range(len(self._written)):
            place = self._fit(number, texts[number], low)
            if place is None:
                place = self._instead(number, texts[number], low, sampled)
            prompts.append(self._text[low : place.start] + place.left_out)
            low = place.end
        if not self._generate:
            return Around(prompts, self._text[low:], self._text)
        prompts.append(self._text[low:])
        return Around(prompts, self._end_of_answer(), self._lacking)

    def _end_of_answer(self) -> str | None:
        """Return what follows an answer that the messages do not contain."""
        answer = answer_like(self._messages, "")
        try:
            around = around_text(self._template, [*self._messages, answer], len(self._messages))
        except ValueError:
            return None
        return None if around is None else around[1]

    def _find_texts(self) -> list[tuple[int | None, int] | None]:
        """Find the contents of turns that say only text; None for all others."""
        turns, messages = self._written, self._messages
        texts = [text_of(messages[turn]) for turn in turns]
        plain = [
            text is not None and says_text_only(messages[turn])
            for text, turn in zip(texts, turns, strict=True)
        ]
        if turns and all(plain):
            pieces = between_turns(self._template, messages, turns, generate=self._generate)
            if pieces is not None and _joined(pieces, texts) == self._text:
                found: list[tuple[int | None, int] | None] = []
                at = 0
                for piece, text in zip(pieces, texts, strict=False):
                    at += len(piece)
                    found.append((at, at + len(text or "")))
                    at += len(text or "")
                return found
        return [
            self._find_text(number) if is_plain else None for number, is_plain in enumerate(plain)
        ]

    def _find_text(self, number: int) -> tuple[int | None, int] | None:
        turn = self._written[number]
        return find_text(self._template, self._messages, turn, self._text, generate=self._generate)

    def _place(self, number: int) -> Place:
        if number not in self._places:
            low = self._place(number - 1).end if number else 0
            self._places[number] = find_turn(
                self._template,
                self._messages,
                self._written[number],
                self._text,
                low=low,
                generate=self._generate,
            )
        return self._places[number]

    def _fit(self, number: int, text: str, low: int) -> Place | None:
        """Return where a turn ends with a text, with any white space at the end of both."""
        content = self._contents[number]
        end = self._place(number).end if content is None else content[1]
        turn = self._text[low:end]
        if turn.endswith(text):
            return Place(end - len(text), end)
        core, written = text.rstrip(), turn.rstrip()
        if not core or not written.endswith(core):
            return None
        start, end = low + len(written) - len(core), low + len(written) - len(core) + len(text)
        return Place(start, end) if self._text[start:end] == text else None

    def _instead(self, number: int, text: str, low: int, sampled: bool) -> Place:
        """Return where a text stands that the template writes otherwise."""
        content = self._contents[number] or self._find_text(number)
        # A template that drops reasoning writes the end of the text: the text follows the
        # generation prompt.
        drops = text.endswith(self.body(number).strip())
        if not (sampled or drops or content is None or content[0] is None):
            # Headers that the template writes in front of a content belong to the prompt.
            end = content[1] if self._contents[number] else self._place(number).end
            return Place(max(low, content[0]), end)
        place = self._place(number)
        kept = len(place.left_out) - overlap(place.left_out, text)
        return Place(max(low, place.start), place.end, place.left_out[:kept])


class SampledHistory:
    """A conversation as a model reads it that samples one turn after the other.

    Every turn follows its own generation prompt, and past turns stay as they were sampled.

    Args:
        template: The template.
        messages: The conversation.
        turns: The positions of the completions, as for `TemplateHistory`.

    Raises:
        ValueError: The template refuses the conversation up to a turn.
    """

    def __init__(
        self, template: Template, messages: Sequence[Message], turns: Sequence[int]
    ) -> None:
        self._template = template
        self._messages = list(messages)
        self._turns = list(turns)
        self._read = [
            template.render(self._messages[:turn], turns, generate=True) for turn in turns
        ]

    def body(self, number: int) -> str:
        """Return what the model samples in a turn: its content, or calls and reasoning as well.

        Args:
            number: The number of the turn.

        Raises:
            ValueError: The template refuses the turn, or does not write it.
        """
        turn = self._turns[number]
        text = text_of(self._messages[turn])
        if text is not None and says_text_only(self._messages[turn]):
            return text.removeprefix(self.opened(number))
        messages = self._messages[: turn + 1]
        written = self._template.render(messages, self._turns)
        place = find_turn(self._template, messages, turn, written)
        return written[place.start : place.end]

    def opened(self, number: int) -> str:
        """Return the start of a content that the generation prompt has written already."""
        turn = self._turns[number]
        text = text_of(self._messages[turn]) if turn < len(self._messages) else None
        return "" if text is None else text[: overlap(self._read[number], text)]

    def around(self, texts: Sequence[str], *, sampled: bool) -> Around:
        """Return the text around the completions.

        Args:
            texts: The completions.
            sampled: Whether the model has sampled the texts. If not, headers that the template
                writes between the generation prompt and a text belong to the prompt, and what the
                text repeats of the generation prompt does not.

        Raises:
            ValueError: The template does not write the content of a past turn exactly once.
        """
        prompts = []
        for number, read in enumerate(self._read):
            start = self._end_before(number) if number else 0
            if sampled:
                prompts.append(read[start:])
                continue
            prompt = read[start:] + self._header(number, texts[number])
            prompts.append(prompt[: len(prompt) - overlap(prompt, texts[number])])
        return Around(prompts, None, None)

    def _end_before(self, number: int) -> int:
        """Return where the turn before a turn ends in what the model reads before the turn."""
        before = self._turns[number - 1]
        messages, read = self._messages[: self._turns[number]], self._read[number]
        if says_text_only(messages[before]):
            around = around_text(self._template, messages, before, generate=True)
            if around is not None and read.endswith(around[1]):
                return len(read) - len(around[1])
        return find_turn(self._template, messages, before, read, generate=True).end

    def _header(self, number: int, text: str) -> str:
        """Return what the template writes between the generation prompt and a text."""
        turn, read = self._turns[number], self._read[number]
        messages = self._messages[: turn + 1]
        if turn == len(self._messages):
            messages = [*messages, answer_like(messages, text)]
        written = self._template.attempt(messages)
        if written is None or not says_text_only(messages[turn]):
            return ""
        place = find_text(self._template, messages, turn, written)
        if place is None or place[0] is None or not written.startswith(read):
            return ""
        start, end = place
        return written[len(read) : start] if written[start:end].strip() == text.strip() else ""


def _joined(around: Sequence[str], texts: Sequence[str | None]) -> str:
    return "".join(each or "" for each in chain(*zip_longest(around, texts)))
