"""From conversations to a batch of both models' tensors, for `torch.utils.data.DataLoader`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from simct_align.chat import ChatTokenizer, Message, check_end_of_turn, content_text, prompt_ids
from simct_align.retokenize import TextEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from simct_align.aligner import Aligner
    from simct_align.prepare import PreparedBatch, PreparedSide
    from simct_align.retokenize import PaddingSide

Row = dict[str, Any]


class SimCTCollator:
    """Makes of conversational rows the batch that a distillation step reads.

    Give it to a `DataLoader` as `collate_fn`, with any number of workers, forked or spawned,
    and with or without `pin_memory`. A row is one of

    * `{"messages": [...]}`: every assistant turn is a completion, or only the last;
    * `{"prompt": ..., "completion": ...}`, both texts or both lists of messages: the completion's
      assistant turns are completions;
    * `{"prompt": ..., "completion_ids": [...]}` or `{"messages": ..., "completion_ids":
      [...]}`: what a student sampled, which stays as it is; one list of ids, or one for every
      turn. Messages that do not end with an assistant's are a prompt to answer.

    and may have `truncated` (see `prepare`), `tools` and
    `chat_template_kwargs`. Each side's prompts come from its own chat template; texts become the
    student's ids by its own tokenizer, and the teacher's ids are made of the student's.

    What leaves a worker is tensors and the index, which holds no tokenizer and no tables.
    `aligner.align_batch` makes the `AlignedBatch` again in the time of a copy.

    Args:
        aligner: The pair; both vocabularies with their tokenizers.
        teacher_tokenizer: The teacher's `transformers` tokenizer, for its chat template.
        student_tokenizer: The student's.
        turns: `"all"` assistant turns of `messages`, or the `"last"`.
        padding_side: `"right"` or `"left"`.
        student_max_length: Cut the student's rows at so many tokens.
        teacher_max_length: Cut the teacher's rows at so many tokens.
        pad_to_multiple_of: Round the widths up to a multiple of this.
        max_path: As in `index`; not 0 for on-path continuations.
        chat_template_kwargs: For `apply_chat_template` of both sides; a row's own come on top.
        threads: How many threads align; without it one in a worker, all cores elsewhere.

    Raises:
        MissingTokenizerError: A vocabulary has no tokenizer.

    Example:
        >>> import gzip
        >>> from tokenizers import Tokenizer
        >>> from transformers import PreTrainedTokenizerFast
        >>> from simct_align import Aligner
        >>> from simct_align.demo import demo_tokenizers
        >>> def load(path):
        ...     data = gzip.decompress((path / "tokenizer.json.gz").read_bytes())
        ...     return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_buffer(data))
        >>> teacher, student = map(load, demo_tokenizers())
        >>> collator = SimCTCollator(Aligner(*demo_tokenizers()), teacher, student)
        >>> batch = collator([{"prompt": "2 + 2 =", "completion": " 4"}])
        >>> batch["completion_mask"].sum().item(), len(batch["index"])
        (3, 3)
    """

    def __init__(
        self,
        aligner: Aligner,
        teacher_tokenizer: ChatTokenizer,
        student_tokenizer: ChatTokenizer,
        *,
        turns: Literal["all", "last"] = "all",
        padding_side: PaddingSide = "right",
        student_max_length: int | None = None,
        teacher_max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        max_path: int = 0,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        threads: int | None = None,
    ) -> None:
        if turns not in ("all", "last"):
            raise ValueError(f"turns: expected 'all' or 'last', got {turns!r}")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side: expected 'left' or 'right', got {padding_side!r}")
        self.aligner = aligner
        self.teacher_tokenizer = teacher_tokenizer
        self.student_tokenizer = student_tokenizer
        self.turns = turns
        self.padding_side = padding_side
        self.student_max_length = student_max_length
        self.teacher_max_length = teacher_max_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.max_path = max_path
        self.chat_template_kwargs = dict(chat_template_kwargs or {})
        self.threads = threads
        self._encoder = TextEncoder(aligner.student)
        if max_path:
            # Made here once: workers inherit or unpickle them, and refer to the same nodes.
            _ = aligner.spellings
        for side, tokenizer, vocabulary, stops in (
            ("teacher", teacher_tokenizer, aligner.teacher, aligner.shared.teacher_stop_ids),
            ("student", student_tokenizer, aligner.student, aligner.shared.student_stop_ids),
        ):
            if getattr(tokenizer, "chat_template", None) is not None:
                check_end_of_turn(side, tokenizer, vocabulary, stops.tolist())

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Makes a batch.

        Args:
            rows: The rows.

        Returns:
            int64 tensors `[rows, width]`: `input_ids`, `attention_mask`, `labels` and
            `completion_mask` for the student, the same with `teacher_` in front for the
            teacher; `index`, the `AlignedIndex` for logits of these shapes; and
            `counts`, plain integers about what was aligned, cut and left out.

        Raises:
            ValueError: A row is none of the above, or an assistant's message is not text.

        Complexity:
            That of the tokenizers.
        """
        import torch

        batch = self.prepare(rows)
        threads = self._threads()
        tensors: dict[str, Any] = {}
        for prefix, side in (("", batch.student), ("teacher_", batch.teacher)):
            for name, array in _named(side).items():
                tensors[prefix + name] = torch.from_numpy(array)
        tensors["index"] = batch.aligned.index(max_path=self.max_path, threads=threads)
        tensors["counts"] = batch.counts.as_dict() | _flat(batch.aligned.coverage().as_dict())
        return tensors

    def prepare(self, rows: Sequence[Row]) -> PreparedBatch:
        """Makes the same batch in NumPy arrays, with its alignment.

        Args:
            rows: The rows.

        Returns:
            What `prepare` returns.

        Raises:
            ValueError: As `__call__`.
        """
        parsed = [self._parse(number, row) for number, row in enumerate(rows)]
        threads = self._threads()
        texts = [text for row in parsed for text in row.texts]
        encoded = self._encoder.encode(texts, threads=threads)
        written = iter([encoded.row(number) for number in range(len(texts))])
        completions = [
            [next(written) for _ in row.texts] if row.ids is None else row.ids for row in parsed
        ]
        return self.aligner.prepare(
            completions,
            teacher_prompt_ids=self._prompts("teacher", parsed),
            student_prompt_ids=self._prompts("student", parsed),
            truncated=[row.truncated for row in parsed],
            padding_side=self.padding_side,
            teacher_pad_id=pad_id(self.teacher_tokenizer),
            student_pad_id=pad_id(self.student_tokenizer),
            teacher_max_length=self.teacher_max_length,
            student_max_length=self.student_max_length,
            pad_to_multiple_of=self.pad_to_multiple_of,
            threads=threads,
        )

    def prompts(self, rows: Sequence[Row]) -> tuple[list[list[Any]], list[list[Any]]]:
        """Gives what stands before every completion, for a student that has yet to sample.

        Args:
            rows: The rows.

        Returns:
            The teacher's and the student's ids, `[row][turn]`, uncut.

        Raises:
            ValueError: As `__call__`.
        """
        parsed = [self._parse(number, row) for number, row in enumerate(rows)]
        return self._prompts("teacher", parsed), self._prompts("student", parsed)

    def _parse(self, number: int, row: Row) -> _Row:
        sampled = row.get("completion_ids")
        messages: str | list[Message]
        if "messages" in row:
            messages = list(row["messages"])
            turns = _assistant_turns(messages, 0)
            if sampled is not None and (not turns or turns[-1] != len(messages) - 1):
                turns.append(len(messages))
            if self.turns == "last":
                turns = turns[-1:]
        elif "prompt" in row and ("completion" in row or sampled is not None):
            messages, turns = _prompt_and_completion(number, row)
        else:
            raise ValueError(
                f"row {number} has the keys {sorted(row)}; expected 'messages', or 'prompt' with "
                "'completion' or 'completion_ids'"
            )
        if not turns:
            raise ValueError(f"row {number} has no assistant turn, so there is nothing to align")
        ids, texts = None, []
        if sampled is not None:
            ids = _turn_ids(number, sampled, turns)
        elif isinstance(messages, str):
            texts = [row["completion"]]
        else:
            texts = [content_text(messages[t], f"row {number}, message {t}") for t in turns]
        truncated = row.get("truncated", False)
        if np.ndim(truncated) == 0:
            truncated = [False] * (len(turns) - 1) + [bool(truncated)]
        options = self.chat_template_kwargs | (row.get("chat_template_kwargs") or {})
        return _Row(messages, turns, texts, ids, list(truncated), row.get("tools"), options)

    def _prompts(self, side: str, rows: Sequence[_Row]) -> list[list[Any]]:
        tokenizer = self.teacher_tokenizer if side == "teacher" else self.student_tokenizer
        plain = [row.messages for row in rows if isinstance(row.messages, str)]
        # With what the tokenizer puts around a text, such as BOS: there is no template to do it.
        tokenized = iter(tokenizer(plain)["input_ids"] if plain else ())
        return [
            [next(tokenized)]
            if isinstance(row.messages, str)
            else prompt_ids(
                tokenizer,
                row.messages,
                row.turns,
                tools=row.tools,
                template_options=row.options,
            )
            for row in rows
        ]

    def _threads(self) -> int | None:
        if self.threads is not None:
            return self.threads
        loaders = sys.modules.get("torch.utils.data")
        in_worker = loaders is not None and loaders.get_worker_info() is not None
        return 1 if in_worker else None


@dataclass(frozen=True)
class _Row:
    """A row in one form."""

    #: A conversation, or a text that the completion follows.
    messages: str | list[Message]
    #: Which messages are completions.
    turns: list[int]
    #: What the completions say, or
    texts: list[str]
    #: the student's ids of them.
    ids: list[NDArray[np.int64]] | None
    truncated: list[bool]
    tools: Any
    options: dict[str, Any]


def _assistant_turns(messages: Sequence[Message], start: int) -> list[int]:
    return [
        position
        for position, message in enumerate(messages)
        if position >= start and message["role"] == "assistant"
    ]


def _prompt_and_completion(number: int, row: Row) -> tuple[str | list[Message], list[int]]:
    prompt, completion = row["prompt"], row.get("completion")
    if "completion_ids" in row:
        return (prompt, [1]) if isinstance(prompt, str) else (list(prompt), [len(prompt)])
    if isinstance(prompt, str) and isinstance(completion, str):
        return prompt, [1]
    if isinstance(prompt, str) or isinstance(completion, str) or completion is None:
        raise ValueError(
            f"row {number}: 'prompt' is a {type(prompt).__name__} and 'completion' a "
            f"{type(completion).__name__}; expected both texts or both lists of messages"
        )
    messages = [*prompt, *completion]
    return messages, _assistant_turns(messages, len(prompt))


def _turn_ids(number: int, sampled: Any, turns: Sequence[int]) -> list[NDArray[np.int64]]:
    nested = len(sampled) > 0 and np.ndim(sampled[0]) > 0
    ids = []
    for turn in sampled if nested else [sampled]:
        values = np.asarray(turn)
        if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
            raise ValueError(
                f"row {number}: 'completion_ids' must be integers, got {values.dtype} of shape "
                f"{values.shape}"
            )
        ids.append(values.astype(np.int64))
    if len(ids) != len(turns):
        raise ValueError(
            f"row {number}: 'completion_ids' has {len(ids)} turns, the messages have {len(turns)}"
        )
    return ids


def pad_id(tokenizer: Any) -> int:
    """The id that a tokenizer pads with: its own, else its EOS, else 0."""
    for name in ("pad_token_id", "eos_token_id"):
        if (token := getattr(tokenizer, name, None)) is not None:
            return int(token)
    return 0


def _named(side: PreparedSide) -> dict[str, NDArray[np.int64]]:
    return {
        "input_ids": side.input_ids,
        "attention_mask": side.attention_mask,
        "labels": side.labels,
        "completion_mask": side.completion_mask,
    }


def _flat(counts: Mapping[str, Any]) -> dict[str, int]:
    """Counts of counts under joined names."""
    flat: dict[str, int] = {}
    for name, value in counts.items():
        if isinstance(value, dict):
            flat.update({f"{name}_{inner}": count for inner, count in value.items()})
        else:
            flat[name] = value
    return flat
