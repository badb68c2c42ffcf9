"""A row that a student sampled, as a served teacher reads it, and the teacher's numbers for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.aligner import Aligner
from simct_align.chat import prompt_ids
from simct_align.completions import ChatSide
from simct_align.conversation import read_messages
from simct_align.divergence import LOG_FLOOR
from simct_align.inputs import array_of, read_row
from simct_align.logprobs import floats
from simct_align.prepare import IGNORED_LABEL
from simct_align.token_kind import TokenKind
from simct_align.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from simct_align.batch import AlignedBatch
    from simct_align.conversation import ChatTokenizer, Message

#: How far above 0 rounding may bring a log-probability.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class TeacherRow:
    """The teacher's row of one row of a student.

    Attributes:
        ids: The ids to send to the teacher.
        aligned: The alignment of the teacher's row with the student's, one row each.
        length: Number of tokens of the student's row.
    """

    ids: list[int]
    aligned: AlignedBatch
    length: int

    def even(self, teacher_logprobs: ArrayLike) -> NDArray[np.float64]:
        """Return the teacher's log-probabilities, every unit's sum shared by its student tokens.

        Args:
            teacher_logprobs: The log-probability of every token of `ids`, given those before.

        Returns:
            One number per token of the student's row, NaN for tokens without one.

        Raises:
            TypeError: `teacher_logprobs` is not a sequence of numbers.
            ValueError: There is not one number for every id, or a number is above 0.
        """
        of_ids = floats("teacher_logprobs", teacher_logprobs)[0].astype(np.float64)
        if of_ids.shape != (len(self.ids),):
            raise ValueError(
                f"teacher_logprobs: expected {len(self.ids)} numbers, one for every token that was "
                f"sent, got shape {of_ids.shape}"
            )
        if len(above := np.flatnonzero(of_ids > _ROUNDING)):
            raise ValueError(
                f"teacher_logprobs: position {above[0]} is {of_ids[above[0]]}, expected the "
                "logarithm of a probability, at most 0"
            )
        # With −inf a trainer would compute NaN.
        return self._whole(self.aligned.student_logprobs(np.maximum(of_ids, LOG_FLOOR)[None]))

    def even_next(self, next_logprobs: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return `even` and the units in the order of rows of logits: entry i is about token i + 1.

        Args:
            next_logprobs: For every token of `ids` the log-probability of the token after it. The
                last entry is not used.

        Returns:
            `(logprobs, units)`, for every token of the student's row those of the token after it:
            0 and −1 if the teacher has no number for it, and for the last entry.
        """
        of_ids = np.roll(floats("next_logprobs", next_logprobs)[0].astype(np.float64), 1)
        of_ids[:1] = np.nan
        found = np.roll(self.even(of_ids), -1)
        found[-1:] = np.nan
        units = np.where(np.isnan(found), -1, np.roll(self.units(), -1))
        return np.nan_to_num(found, nan=0.0), units

    def beside(self, teacher_logprobs: ArrayLike, own: ArrayLike) -> NDArray[np.float64]:
        """Return log-probabilities for a trainer that subtracts the student's own per token.

        The difference from `own` has the sum of its unit, and is the same for all tokens of a
        unit. It is 0 for tokens without a number of the teacher.

        Args:
            teacher_logprobs: The log-probability of every token of `ids`, given those before.
            own: The student's own log-probabilities, one per token of its row. Those of tokens that
                were not sampled are not used.

        Returns:
            One number per token of the student's row.
        """
        own = floats("own", own)[0].astype(np.float64)
        if own.shape != (self.length,):
            raise ValueError(
                f"own: expected {self.length} log-probabilities, one for every token of the "
                f"student's row, got shape {own.shape}"
            )
        width = self.aligned.student.width
        of_teacher = self.aligned.teacher_logprobs(own[None, :width])
        ratio = self.even(teacher_logprobs) - self._whole(self.aligned.student_logprobs(of_teacher))
        return own + np.nan_to_num(ratio, nan=0.0)

    def units(self) -> NDArray[np.int64]:
        """Return the number of the unit of every token of the student's row, −1 outside of them."""
        numbers = np.full(self.length, -1)
        found = self.aligned.chunk_ids()[1][0]
        numbers[: len(found)] = found
        return numbers

    def _whole(self, numbers: Any) -> NDArray[np.float64]:
        """Add the tokens after the last sampled one, which have no number."""
        every = np.full(self.length, np.nan)
        every[: numbers.shape[1]] = numbers[0]
        return every


class TeacherRows:
    """Makes teacher's rows of sampled rows, one by one, and counts what they leave out.

    Args:
        aligner: The pair of vocabularies; the teacher's needs its tokenizer.
        teacher_tokenizer: The teacher's `transformers` tokenizer, for its chat template and for
            what it puts before a text.
        template_options: Additional keyword arguments of its `apply_chat_template`.

    Attributes:
        counts: Sums over all rows: `rows`, `sampled_tokens`, and `tokens_without_teacher`, those
            for which `TeacherRow.even` has no number.
    """

    def __init__(
        self,
        aligner: Aligner,
        teacher_tokenizer: ChatTokenizer,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._side = ChatSide("teacher", teacher_tokenizer, aligner)
        self._side.check()
        self.aligner = aligner
        self.teacher_tokenizer = teacher_tokenizer
        self.template_options = dict(template_options or {})
        self.counts = {"rows": 0, "sampled_tokens": 0, "tokens_without_teacher": 0}

    def of_messages(
        self,
        token_ids: Sequence[int],
        sampled: ArrayLike,
        messages: Sequence[Message],
        *,
        turns: Sequence[int] | None = None,
        tools: Sequence[Any] | None = None,
    ) -> TeacherRow:
        """Return the teacher's row of a conversation.

        Args:
            token_ids: The student's row: prompts and what was sampled.
            sampled: Which tokens were sampled, in the length of `token_ids`. Every run is one turn.
            messages: The conversation.
            turns: Positions of the sampled messages; None for one answer after all messages, or
                none if nothing was sampled.
            tools: The argument `tools` of `apply_chat_template`.

        Raises:
            ValueError: The number of turns is not that of the runs in `sampled`, or as for
                `prompt_ids`.
        """
        ids, taken = _read_row(token_ids, sampled)
        messages = read_messages("messages", messages)
        if turns is None:
            turns = [len(messages)] if taken.any() else []
        prompts = prompt_ids(
            self.teacher_tokenizer,
            messages,
            turns,
            tools=tools,
            template_options=self.template_options,
        )
        return self._row(ids, taken, prompts)

    def of_labels(
        self, token_ids: Sequence[int], labels: ArrayLike, messages: Sequence[Message]
    ) -> TeacherRow:
        """Return the teacher's row of a conversation of which some answers have labels.

        Args:
            token_ids: The student's row.
            labels: −100 on tokens that are not trained, in the length of `token_ids`. The runs of
                other labels are the last answers of the conversation.
            messages: The conversation, with its answers.

        Raises:
            ValueError: As for `of_messages`.
        """
        trained = read_row("labels", labels) != IGNORED_LABEL
        messages = read_messages("messages", messages)
        answers = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
        runs = len(_edges(trained)) // 2
        turns = answers[max(0, len(answers) - runs) :]
        return self.of_messages(token_ids, trained, messages, turns=turns)

    def of_text(self, token_ids: Sequence[int], sampled: ArrayLike, prompt: str) -> TeacherRow:
        """Return the teacher's row of a prompt without a chat template, and one answer.

        Raises:
            ValueError: The student's prompt has control tokens inside, or there are several runs in
                `sampled`.
        """
        if not isinstance(prompt, str):
            raise TypeError(f"prompt: expected a text, got {type(prompt).__name__}")
        ids, taken = _read_row(token_ids, sampled)
        before = ids[: taken.argmax()] if taken.any() else ids
        self._check_ids(ids, np.arange(len(before)))
        special = self.aligner.student.kinds[before] == TokenKind.SPECIAL
        inside = np.flatnonzero(special & (np.cumsum(~special) > 0))
        if len(inside):
            token = int(before[inside[0]])
            name = self.aligner.student.special_names.get(token, token)
            raise ValueError(
                f"the prompt has the student's control token {name!r} at position {inside[0]}, "
                "which means nothing to the teacher: give the prompt as messages, so that the "
                "teacher's own chat template writes it"
            )
        return self._row(ids, taken, self._side.prompt_ids([prompt] if taken.any() else []))

    def _check_ids(self, ids: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        size = len(self.aligner.student)
        outside = (ids[positions] < 0) | (ids[positions] >= size)
        if outside.any():
            position = int(positions[outside.argmax()])
            raise ValueError(
                f"token_ids: position {position}: student id {ids[position]} is not in the "
                f"vocabulary of {size} tokens"
            )

    def _row(
        self, ids: NDArray[np.int64], taken: NDArray[np.bool_], prompts: list[list[int]]
    ) -> TeacherRow:
        self._check_ids(ids, np.flatnonzero(taken))
        edges = _edges(taken)
        if len(edges) != 2 * len(prompts):
            raise ValueError(
                f"the student's row has {len(edges) // 2} runs of sampled tokens, expected "
                f"{len(prompts)}, one per turn"
            )
        if not prompts:
            nothing = np.zeros((1, 0), np.int64)
            aligned = self.aligner.align_batch(
                nothing, ids[None], teacher_mask=nothing, student_mask=taken[None]
            )
            return TeacherRow([], aligned, len(ids))
        pieces = np.split(ids, edges)
        contexts, answers = pieces[:-1:2], pieces[1::2]
        ready = self.aligner.prepare(
            [answers],
            teacher_prompt_ids=[prompts],
            student_prompt_ids=[contexts],
            # What was sampled stays as it is: an end that was sampled is among the ids.
            truncated=[[True] * len(answers)],
        )
        written = ready.student.input_ids[0]
        if not np.array_equal(written, ids[: len(written)]):
            raise ValueError(
                "the student's row repeats an end of turn after a turn that has one, so its tokens "
                "cannot be aligned"
            )
        row = TeacherRow(ready.teacher.input_ids[0].tolist(), ready.aligned, len(ids))
        self.counts["rows"] += 1
        self.counts["sampled_tokens"] += int(taken.sum())
        without = np.isnan(row.even(np.zeros(len(row.ids))))
        self.counts["tokens_without_teacher"] += int((taken & without).sum())
        return row


def _read_row(token_ids: object, sampled: object) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the ids of a row, and which of them were sampled."""
    ids = read_row("token_ids", token_ids).astype(np.int64)
    is_list = isinstance(sampled, (list, tuple))
    taken = np.asarray(sampled) if is_list else array_of("sampled", sampled)
    if taken.shape != ids.shape:
        raise ValueError(
            f"sampled: expected {len(ids)} entries, one per token, got shape {taken.shape}"
        )
    if taken.size and taken.dtype.kind not in "biu":
        raise TypeError(f"sampled: expected booleans or integers, got dtype {taken.dtype}")
    return ids, taken.astype(bool)


def _edges(taken: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the first and the end position of every run, in turn."""
    return np.flatnonzero(np.diff(taken, prepend=False, append=False))


def model_aligner(teacher_tokenizer: Any, student_tokenizer: Any, student_config: Any) -> Aligner:
    """Return the pair of two tokenizers, with all ids that the student's model can sample.

    Args:
        teacher_tokenizer: The teacher's tokenizer.
        student_tokenizer: The student's tokenizer.
        student_config: The configuration of the student's model. If it has a `vocab_size` beyond
            the tokenizer's, the ids between are unused ones.
    """
    text_config = getattr(student_config, "get_text_config", lambda: student_config)()
    size = getattr(text_config, "vocab_size", None) or 0
    student = Vocabulary.from_tokenizer(
        student_tokenizer, vocab_size=size if size > len(student_tokenizer) else None
    )
    return Aligner(teacher_tokenizer, student)
