"""Internal: the completions of rows and what surrounds them on either side, as token ids."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from simct_align.aligner import Aligner
from simct_align.conversation import Template, difference, says_text_only, special_pattern, text_of
from simct_align.history import SampledHistory, TemplateHistory
from simct_align.retokenize import TextEncoder
from simct_align.token_kind import TokenKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from simct_align.conversation import ChatTokenizer
    from simct_align.history import Around, HistoryName
    from simct_align.rows import ParsedRow
    from simct_align.vocabulary import Vocabulary

#: A text that every tokenizer of a language model can write.
_PROBE = "the 12 answers"
#: A completion as texts, and special tokens of the student between them.
_Segments = list["str | int"]


@dataclass(frozen=True)
class SideIds:
    """What surrounds the completions on a side.

    Attributes:
        prompts: The ids in front of every completion, `[row][turn]`.
        ends: The ids after the last completion of every row; None for a row whose completions end
            with their own stops.
    """

    prompts: list[list[list[int]]]
    ends: list[list[int] | None]


@dataclass(frozen=True)
class ChatSide:
    """The tokenizer of a side, with its vocabulary and its stops.

    Attributes:
        name: `"teacher"` or `"student"`.
        tokenizer: The tokenizer, for its chat template.
        aligner: The aligner with the vocabulary of the side.
    """

    name: Literal["teacher", "student"]
    tokenizer: ChatTokenizer
    aligner: Aligner

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary."""
        return self.aligner.teacher if self.name == "teacher" else self.aligner.student

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The stops, the canonical one first."""
        shared = self.aligner.shared
        is_teacher = self.name == "teacher"
        return tuple((shared.teacher_stop_ids if is_teacher else shared.student_stop_ids).tolist())

    def check(self) -> None:
        """Refuse a tokenizer whose ids mean other texts in the aligner's vocabulary.

        Raises:
            TypeError: The aligner or the tokenizer is an object of another type.
            ValueError: The ids of a short text spell another text.
        """
        if not isinstance(self.aligner, Aligner):
            raise TypeError(f"aligner: expected an Aligner, got {type(self.aligner).__name__}")
        if not callable(self.tokenizer):
            raise TypeError(
                f"{self.name}_tokenizer: expected a tokenizer of transformers, got "
                f"{type(self.tokenizer).__name__}"
            )
        ids = list(self.tokenizer([_PROBE], add_special_tokens=False)["input_ids"][0])
        decode = getattr(self.tokenizer, "decode", None)
        if decode is None or decode(ids).strip() != _PROBE:
            return  # nothing to compare with, or a tokenizer of few texts
        known = max(ids) < len(self.vocabulary)
        spelled = self.vocabulary.decode_bytes(np.array(ids)) if known else b""
        # Tokenizers may put a space before a text.
        if spelled.strip() != _PROBE.encode():
            raise ValueError(
                f"{self.name}_tokenizer: its ids of {_PROBE!r} are {ids}, which the aligner's "
                f"{self.name} vocabulary reads as {spelled!r}: expected the tokenizer of this "
                "vocabulary; the teacher's comes first"
            )

    def template(self, row: ParsedRow) -> Template:
        """Return the chat template, with the arguments of a row."""
        place = f"row {row.number}: the {self.name}'s chat template"
        return Template(self.tokenizer, row.tools, row.options, place)

    def prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize prompts without a template.

        They begin with what the tokenizer puts before a text, such as BOS. What the tokenizer puts
        after a text is left out, because the completion follows there.
        """
        if not texts:
            return []
        probe = "a"
        *prompts, whole = self.tokenizer([*texts, probe])["input_ids"]
        bare = self.tokenizer([probe], add_special_tokens=False)["input_ids"][0]
        after = whole[::-1].index(bare[-1]) if bare and bare[-1] in whole else 0
        return [list(ids[: len(ids) - after]) for ids in prompts]

    @cached_property
    def stop_names(self) -> list[str]:
        """The names of the stops."""
        names = self.vocabulary.special_names
        return [names[stop] for stop in self.stop_ids if stop in names]

    @cached_property
    def ends_turn(self) -> re.Pattern[str]:
        """A pattern of text that ends a turn with a stop, white space before the stop included."""
        return re.compile(rf"\s*(?:{'|'.join(map(re.escape, self.stop_names))})")


class CompletionReader:
    """Reads completions, and for both sides what stands around them.

    Args:
        teacher: The teacher's side.
        student: The student's side.
        history: As for `SimCTCollator`.
    """

    def __init__(self, teacher: ChatSide, student: ChatSide, history: HistoryName) -> None:
        aligner = student.aligner
        self._sides = {"teacher": teacher, "student": student}
        self._history = history
        self._encoders = {
            side.name: TextEncoder(side.vocabulary)
            for side in (teacher, student)
            if side.name == "student" or side.vocabulary.dummy_prefix
        }
        self._kinds = aligner.student.kinds
        self._warned: set[tuple[str, str]] = set()
        shared, names = aligner.shared, aligner.teacher.special_names
        special = self._kinds[shared.student_ids] == TokenKind.SPECIAL
        pairs = zip(
            shared.student_ids[special].tolist(), shared.teacher_ids[special].tolist(), strict=True
        )
        #: The names that the student's special tokens have on each side.
        self._names: dict[str, Mapping[int, str]] = {
            "teacher": {mine: names[other] for mine, other in pairs if other in names},
            "student": aligner.student.special_names,
        }
        self._special = special_pattern(student.tokenizer)

    def read(
        self, rows: Sequence[ParsedRow], *, threads: int | None
    ) -> tuple[list[list[Any]], SideIds, SideIds]:
        """Return the completions `[row][turn]`, and what surrounds them for teacher and student.

        Args:
            rows: The rows.
            threads: Number of threads; None means all cores.

        Raises:
            MissingTokenizerError: The student's vocabulary has no tokenizer.
            ValueError: A chat template refuses a conversation or does not write a turn, or an id is
                not in the vocabulary.
        """
        segments: list[_Segments] = []
        around: dict[str, list[Around | None]] = {name: [] for name in self._sides}
        for row in rows:
            if isinstance(row.messages, str):
                found: dict[str, Around] = {}
                said: list[_Segments] = [] if row.completion is None else [[row.completion]]
            elif row.ids is None:
                found, said = self._from_texts(row)
            else:
                found, said = self._from_ids(row, row.ids), []
            segments += said
            for name in self._sides:
                around[name].append(found.get(name))
        written = iter(self._encode(segments, threads))
        completions = [
            [next(written) for _ in row.turns] if row.ids is None else row.ids for row in rows
        ]
        teacher, student = (self._ids(rows, name, around[name]) for name in self._sides)
        return completions, teacher, student

    def _from_texts(self, row: ParsedRow) -> tuple[dict[str, Around], list[_Segments]]:
        """Take the completions from the messages, as the student's template writes them."""
        histories = {
            name: self._open(side.template(row), row, None) for name, side in self._sides.items()
        }
        teacher, student = histories["teacher"], histories["student"]
        opened = [student.opened(number) for number in range(len(row.turns))]
        texts = [student.body(number) for number in range(len(row.turns))]
        if isinstance(teacher, TemplateHistory) and isinstance(student, TemplateHistory):
            for number, text in enumerate(texts):
                core = text.strip()
                if not teacher.has(number, text) and teacher.has(number, core):
                    # The teacher's template trims: white space at the ends is not compared.
                    texts[number] = core
        messages = [row.messages[turn] for turn in row.turns]
        segments = [
            self._segments(text, message)  # type: ignore[arg-type]
            for text, message in zip(texts, messages, strict=True)
        ]
        for turn, text, message in zip(row.turns, texts, messages, strict=True):
            self._check_calls(row, turn, text, message)  # type: ignore[arg-type]
        found = {}
        for name, history in histories.items():
            said = [self._said(each, name) for each in segments]
            found[name] = _around(history, said, opened)
            self._compare(self._sides[name], row, found[name], said)
        return found, segments

    def _said(self, segments: _Segments, name: str) -> str:
        """Return a completion as text of a side, where special tokens may have other names."""
        names = self._names[name]
        return "".join(each if isinstance(each, str) else names.get(each, "") for each in segments)

    def _from_ids(self, row: ParsedRow, ids: Sequence[NDArray[np.int64]]) -> dict[str, Around]:
        found = {}
        for name, side in self._sides.items():
            texts = [self._text(row, number, turn, name) for number, turn in enumerate(ids)]
            answer = texts[-1] if name == "teacher" else None
            history = self._open(side.template(row), row, answer)
            found[name] = history.around(texts, sampled=name == "student")
            self._compare(side, row, found[name], texts)
        return found

    def _open(
        self, template: Template, row: ParsedRow, answer: str | None
    ) -> TemplateHistory | SampledHistory:
        messages: Any = row.messages
        if self._history == "sampled":
            return SampledHistory(template, messages, row.turns)
        return TemplateHistory(template, messages, row.turns, answer=answer)

    def _text(self, row: ParsedRow, turn: int, ids: NDArray[np.int64], name: str) -> str:
        """Return sampled ids as text of a side, without their stop; special tokens by name."""
        unknown = (ids < 0) | (ids >= len(self._kinds))
        if unknown.any():
            at = int(np.argmax(unknown))
            raise ValueError(
                f"row {row.number}, turn {turn}, position {at}: student id {ids[at]} is not in the "
                f"vocabulary of {len(self._kinds)} tokens"
            )
        student = self._sides["student"]
        if len(ids) and ids[-1] in student.stop_ids:
            ids = ids[:-1]
        pieces, start = [], 0
        for at in np.flatnonzero(self._kinds[ids] == TokenKind.SPECIAL).tolist():
            pieces.append(student.vocabulary.decode_bytes(ids[start:at]))
            pieces.append(self._names[name].get(int(ids[at]), "").encode())
            start = at + 1
        pieces.append(student.vocabulary.decode_bytes(ids[start:]))
        text = b"".join(pieces).decode("utf-8", "replace")
        return text.removeprefix(" ") if student.vocabulary.dummy_prefix else text

    def _segments(self, text: str, message: dict[str, Any]) -> _Segments:
        """Cut a completion at special tokens that the template wrote, not at those in a content."""
        content = text_of(message)
        if says_text_only(message) or self._special is None:
            return [text]
        before, said, after = text, "", ""
        if content and text.count(content) == 1:
            before, said, after = text.partition(content)
        return [*self._cut(before), said, *self._cut(after)]

    def _cut(self, text: str) -> _Segments:
        ids = self._sides["student"].vocabulary.special_ids
        pieces: _Segments = []
        start = 0
        for found in self._special.finditer(text) if self._special else ():
            if found[0] in ids:
                pieces += [text[start : found.start()], ids[found[0]]]
                start = found.end()
        return [*pieces, text[start:]]

    def _encode(
        self, completions: Sequence[_Segments], threads: int | None
    ) -> list[NDArray[np.int64]]:
        """Tokenize completions, all texts in one call."""
        texts = [each for segments in completions for each in segments if isinstance(each, str)]
        encoded = self._encoders["student"].encode(texts, threads=threads)
        rows = iter([encoded.row(number) for number in range(len(texts))])
        return [
            np.concatenate(
                [
                    next(rows) if isinstance(each, str) else np.array([each], np.int64)
                    for each in segments
                ]
            ).astype(np.int64)
            for segments in completions
        ]

    def _ids(
        self, rows: Sequence[ParsedRow], name: str, arounds: Sequence[Around | None]
    ) -> SideIds:
        """Tokenize what surrounds the completions."""
        side = self._sides[name]
        plain = iter(
            side.prompt_ids([row.messages for row in rows if isinstance(row.messages, str)])
        )
        prompts: list[list[list[int]]] = []
        ends: list[list[int] | None] = []
        for row, around in zip(rows, arounds, strict=True):
            if around is None:
                prompts.append([next(plain)])
                ends.append(None)
                continue
            pieces = [*around.prompts, *(() if around.end is None else (around.end,))]
            ids = self._piece_ids(side, side.template(row), pieces)
            prompts.append(ids[: len(around.prompts)])
            ends.append(None if around.end is None else ids[-1])
        return SideIds(prompts, ends)

    def _piece_ids(
        self, side: ChatSide, template: Template, pieces: Sequence[str]
    ) -> list[list[int]]:
        """Tokenize the pieces of a row; all but the first continue a text."""
        if not side.vocabulary.dummy_prefix:
            return template.ids(pieces)
        # The tokenizer would put a space in front of a piece. It is right in front of the row, and
        # where the tokenizer always puts one, after a special token.
        special = special_pattern(side.tokenizer)
        found = [None if special is None else special.search(piece) for piece in pieces[1:]]
        cuts = [
            len(piece) if at is None else at.start()
            for piece, at in zip(pieces[1:], found, strict=True)
        ]
        leads = [piece[:cut] for piece, cut in zip(pieces[1:], cuts, strict=True)]
        encoded = self._encoders[side.name].encode(leads, threads=1)
        rest = [piece[cut:] for piece, cut in zip(pieces[1:], cuts, strict=True)]
        first, *later = template.ids([*pieces[:1], *rest])
        return [first, *([*encoded.row(at).tolist(), *ids] for at, ids in enumerate(later))]

    def _compare(
        self, side: ChatSide, row: ParsedRow, around: Around, texts: Sequence[str]
    ) -> None:
        """Warn once per side if a row is not what the template writes, or lacks a stop."""
        if around.written is not None and (joined := around.joined(texts)) != around.written:
            came, expected = difference(joined, around.written)
            self._warn(
                side,
                "text",
                f"row {row.number}: the {side.name}'s row is not what its chat template writes for "
                f"the conversation: the row has {came!r}, the template writes {expected!r}. "
                "The completions stay as they are; history='sampled' makes rows as the model reads "
                "them while it samples",
            )
        if around.end is None or not side.stop_names:
            return
        for turn, after in enumerate([*around.prompts[1:], around.end]):
            if not row.truncated[turn] and not side.ends_turn.match(after):
                self._warn(
                    side,
                    "stop",
                    f"row {row.number}, turn {turn}: the {side.name}'s chat template ends the turn "
                    f"with {after[:40]!r}, and not with one of the {side.name}'s stops "
                    f"({', '.join(map(repr, side.stop_names))}): nothing trains the end of such "
                    "turns; name the token that ends them in Aligner(..., stop_tokens=...)",
                )

    def _check_calls(self, row: ParsedRow, turn: int, text: str, message: dict[str, Any]) -> None:
        """Warn once if the student's template does not write the tool calls of a completion."""
        calls = [call for call in message.get("tool_calls") or () if isinstance(call, dict)]
        names = [(call.get("function") or call).get("name") for call in calls]
        missing = [name for name in names if isinstance(name, str) and name not in text]
        if missing:
            self._warn(
                self._sides["student"],
                "calls",
                f"row {row.number}: message {turn} calls {missing[0]!r}, which the student's chat "
                f"template does not write: the completion is {text[:40]!r}; use a template with "
                "tool calls, or give what the student writes as ids in 'completion_ids'",
            )

    def _warn(self, side: ChatSide, kind: str, message: str) -> None:
        if (side.name, kind) not in self._warned:
            self._warned.add((side.name, kind))
            warnings.warn(f"{message} (further rows are not reported)", stacklevel=2)


def _around(
    history: TemplateHistory | SampledHistory, texts: Sequence[str], opened: Sequence[str]
) -> Around:
    """Return the text around completions, with what the student's prompts have of the contents."""
    whole = [start + text for start, text in zip(opened, texts, strict=True)]
    around = history.around(whole, sampled=False)
    prompts = [prompt + start for prompt, start in zip(around.prompts, opened, strict=True)]
    return around._replace(prompts=prompts)
