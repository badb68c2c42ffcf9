"""Internal: `SimCTCollator`, which turns conversations into tensors for both models."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from simct_align.chat import check_end_of_turn
from simct_align.completions import ChatSide, CompletionReader
from simct_align.history import SampledHistory
from simct_align.rows import ParsedRow, Row, parse_row, read_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from simct_align.aligner import Aligner
    from simct_align.conversation import ChatTokenizer
    from simct_align.history import HistoryName
    from simct_align.prepare import PreparedBatch, PreparedSide
    from simct_align.retokenize import PaddingSide


class SimCTCollator:
    """A collator that turns conversational rows into a batch for a distillation step.

    Pass it to a `torch.utils.data.DataLoader` as `collate_fn`. It works with any number of
    workers, forked or spawned, with and without `pin_memory`. A row is one of:

    * `{"messages": [...]}`: every assistant turn is a completion, or only the last one (`turns`).
      Messages after the last completion are left out.
    * `{"prompt": ..., "completion": ...}`, both texts or both lists of messages: the assistant
      turns of the completion are completions.
    * `{"prompt": ..., "completion_ids": [...]}` or `{"messages": ..., "completion_ids": [...]}`:
      the ids that a student sampled, which are used unchanged, but for the stop of a turn that the
      template ends with another one. They are one list of ids, or one list per turn. If the last
      message is not an assistant's, the ids answer the messages.

    A row can also have `truncated` (see `Aligner.prepare`), `tools` and `chat_template_kwargs`.
    Messages reach the chat template of each side with all their fields. The completion of a turn
    is its content. That of a turn with tool calls or reasoning is what the student's template
    writes after the generation prompt. Completion texts are tokenized by the student's tokenizer,
    and the teacher's ids are retokenized from the student's ids. Texts without a template take
    what the tokenizer puts before a text, such as BOS, and not what it puts after a text.

    With `history="template"` a row is what the chat template writes for the whole conversation. A
    turn ends as the template ends it: no stop is added where the template writes none. With
    `history="sampled"` a row is what a model reads while it samples one turn after the other: every
    turn follows its generation prompt, past turns stay as they were sampled, and every turn ends
    with a stop. If a template drops the reasoning of past turns, the rows of two turns are

    * template: `<user>2 + 2?<end><assistant>4<end><user>And?<end><assistant>`
      `<think>..</think>12<end>`
    * sampled: `<user>2 + 2?<end><assistant><think>..</think>4<end><user>And?<end><assistant>`
      `<think>..</think>12<end>`

    A row of `history="template"` can still differ from its template, where sampled ids stand in
    place of what the template drops or writes in other words. A warning shows both texts around
    the first difference, once per side.

    A worker returns tensors and the index, without tokenizers and tables. To get the
    `AlignedBatch` in the main process, call `aligner.align_batch` on the returned ids and masks.

    Args:
        aligner: The aligner. The student's vocabulary and the teacher's vocabulary need their
            tokenizers.
        teacher_tokenizer: The teacher's `transformers` tokenizer, for its chat template.
        student_tokenizer: The student's `transformers` tokenizer, for its chat template.
        turns: Which assistant turns of `messages` are completions: `"all"` or the `"last"` one.
        history: What surrounds the completions of a conversation: what its chat template writes,
            `"template"`, or what the model reads while it samples, `"sampled"`.
        padding_side: `"right"` or `"left"`.
        student_max_length: The largest number of tokens in a row of the student. Longer rows are
            cut at the end.
        teacher_max_length: The largest number of tokens in a row of the teacher. Longer rows are
            cut at the end.
        pad_to_multiple_of: The width of the tensors is rounded up to a multiple of this number.
        max_path: As for `AlignedBatch.index`: 0 for an index without on-path continuations.
        chat_template_kwargs: Keyword arguments for `apply_chat_template` of both sides. The
            `chat_template_kwargs` of a row are added and take precedence.
        threads: Number of threads of the alignment. The default is one in a worker and all cores
            elsewhere.

    Raises:
        ValueError: `turns`, `history` or `padding_side` is unknown.

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
        history: HistoryName = "template",
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
        if history not in ("template", "sampled"):
            raise ValueError(f"history: expected 'template' or 'sampled', got {history!r}")
        if padding_side not in ("left", "right"):
            raise ValueError(f"padding_side: expected 'left' or 'right', got {padding_side!r}")
        self.aligner = aligner
        self.teacher_tokenizer = teacher_tokenizer
        self.student_tokenizer = student_tokenizer
        self.turns = turns
        self.history = history
        self.padding_side = padding_side
        self.student_max_length = student_max_length
        self.teacher_max_length = teacher_max_length
        self.pad_to_multiple_of = pad_to_multiple_of
        self.max_path = max_path
        self.chat_template_kwargs = read_options("chat_template_kwargs", chat_template_kwargs)
        self.threads = threads
        if max_path:
            # Computed once, here: workers inherit or unpickle the spellings, so that their indexes
            # refer to the same nodes.
            _ = aligner.spellings
        self._sides = (
            ChatSide("teacher", teacher_tokenizer, aligner),
            ChatSide("student", student_tokenizer, aligner),
        )
        for side in self._sides:
            side.check()
        self._reader = CompletionReader(*self._sides, history)
        for side in self._sides:
            if getattr(side.tokenizer, "chat_template", None) is not None:
                check_end_of_turn(
                    side.name,
                    side.tokenizer,
                    side.vocabulary,
                    side.stop_ids,
                    self.chat_template_kwargs,
                )

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Collate rows into a batch of tensors.

        Args:
            rows: The rows, in the forms that the class describes.

        Returns:
            A dictionary. `input_ids`, `attention_mask`, `labels` and `completion_mask` are the
            student's int64 tensors `[rows, width]`. The same names with the prefix `teacher_` are
            the teacher's. `index` is the `AlignedIndex` for logits `[rows, width, vocabulary]`.
            `counts` are plain integers: what was aligned, added, cut and left out.

        Raises:
            MissingTokenizerError: A vocabulary has no tokenizer.
            TypeError: A column of a row has another type.
            ValueError: A row has none of these forms, an assistant's message has no text, calls or
                reasoning, a chat template refuses a conversation, or it does not write a
                completion exactly once.

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
        """Collate rows into NumPy arrays, with their alignment.

        Args:
            rows: The rows, in the forms that the class describes.

        Returns:
            The same batch as `__call__`, as the result of `Aligner.prepare`.

        Raises:
            MissingTokenizerError: A vocabulary has no tokenizer.
            TypeError, ValueError: As for `__call__`.

        Complexity:
            That of the tokenizers.
        """
        parsed = self._parse(rows)
        threads = self._threads()
        completions, teacher, student = self._reader.read(parsed, threads=threads)
        return self.aligner.prepare(
            completions,
            teacher_prompt_ids=teacher.prompts,
            student_prompt_ids=student.prompts,
            teacher_end_ids=teacher.ends,
            student_end_ids=student.ends,
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
        """Return the prompt of every completion, for a student that will sample completions.

        Args:
            rows: The rows, in the forms that the class describes.

        Returns:
            The teacher's and the student's prompt ids, nested lists `[row][turn]`, not cut at the
            length limits. Each ends with the generation prompt, whatever `history` is.

        Raises:
            TypeError, ValueError: As for `__call__`.

        Complexity:
            That of the tokenizers.
        """
        parsed = self._parse(rows)
        teacher, student = (self._prompts(side, parsed) for side in self._sides)
        return teacher, student

    def _prompts(self, side: ChatSide, rows: Sequence[ParsedRow]) -> list[list[Any]]:
        texts = [row.messages for row in rows if isinstance(row.messages, str)]
        plain = iter(side.prompt_ids(texts))
        prompts: list[list[Any]] = []
        for row in rows:
            if isinstance(row.messages, str):
                prompts.append([next(plain)])
                continue
            template = side.template(row)
            history = SampledHistory(template, row.messages, row.turns)
            around = history.around([""] * len(row.turns), sampled=True)
            prompts.append(template.ids(around.prompts))
        return prompts

    def _parse(self, rows: Sequence[Row]) -> list[ParsedRow]:
        last_only, options = self.turns == "last", self.chat_template_kwargs
        if isinstance(rows, (str, Mapping)) or not hasattr(rows, "__iter__"):
            raise TypeError(f"rows: expected a list of dictionaries, got {type(rows).__name__}")
        return [
            parse_row(number, row, last_only=last_only, options=options)
            for number, row in enumerate(rows)
        ]

    def _threads(self) -> int | None:
        if self.threads is not None:
            return self.threads
        loaders = sys.modules.get("torch.utils.data")
        in_worker = loaders is not None and loaders.get_worker_info() is not None
        return 1 if in_worker else None


def pad_id(tokenizer: Any) -> int:
    """Return the padding id of a tokenizer, else its EOS id, else 0."""
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
    """Flatten nested counts, with joined names."""
    flat: dict[str, int] = {}
    for name, value in counts.items():
        if isinstance(value, dict):
            flat.update({f"{name}_{inner}": count for inner, count in value.items()})
        else:
            flat[name] = value
    return flat
