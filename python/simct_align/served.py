"""Log-probabilities of a teacher that is served: from the answers of servers to arrays.

A server returns, for every token of a text that it reads, the log-probability of that token and, on
request, of the likeliest tokens in its place. The functions of this module check the answers of
vLLM, SGLang and servers with OpenAI's completions API, and return arrays in the layout of the ids
that were sent. `AlignedBatch.student_logprobs` carries the log-probabilities over to the student's
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simct_align import _native
from simct_align.inputs import integer, read_side
from simct_align.top_k import MAX_TOKENS, TopKLogprobs

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["ServedLogprobs", "TopKLogprobs", "from_openai", "from_sglang", "from_vllm"]


@dataclass(frozen=True)
class ServedLogprobs:
    """The log-probabilities in the answers of a server.

    Entry `i` of a row belongs to token `i` of the row: it is the log-probability of this token,
    given the tokens before it.

    Attributes:
        logprobs: The log-probability of every token, float64, in the layout of the ids:
            `[rows, T]` for dense ids, else flat `[tokens]`. NaN where the server has none: the
            first position of an answer, positions before `start`, and padding.
        top: The likeliest tokens of every position: one list per entry of `logprobs`, row after
            row. The likeliest token comes first. The list is empty where `logprobs` is NaN, and
            everywhere if the answers have no lists.
        without: Number of tokens that were sent and have no log-probability.
        token_ids: The ids, int64, in the layout of `logprobs`.
    """

    logprobs: NDArray[np.float64]
    top: TopKLogprobs
    without: int
    token_ids: NDArray[np.int64]

    @property
    def lists(self) -> TopKLogprobs:
        """`top`, with every token of the text in its list: what a loss takes as a teacher.

        vLLM and the completions API return lists of this kind. A loss needs the probabilities of
        the text's tokens where the tokenizers cut the text differently.
        """
        return self.top.with_tokens(self.token_ids, self.logprobs)


class Question(NamedTuple):
    """What a server was asked, for the readers of its answers.

    Attributes:
        values: The ids that were sent, int64 `[tokens]`.
        offsets: The first id of every row, then the end, int64 `[rows + 1]`.
        starts: The first position of every row that the answer has, int64 `[rows]`.
        top_k: The length of the lists; None for all entries of the answer.
        vocab_size: Number of tokens of the model.
    """

    values: NDArray[np.int64]
    offsets: NDArray[np.int64]
    starts: NDArray[np.int64]
    top_k: int | None
    vocab_size: int


def from_vllm(
    answers: object,
    teacher_ids: object,
    *,
    attention_mask: object | None = None,
    top_k: int | None = None,
    vocab_size: int | None = None,
) -> ServedLogprobs:
    """Read `prompt_logprobs` of vLLM, offline or from its OpenAI-compatible server.

    Ask with `prompt_logprobs=k` and send token ids, so that the server has the same ids as the
    alignment. For every position but the first, vLLM returns a dictionary from id to
    log-probability, rank and text: the k likeliest tokens, and the token of the text. The server's
    JSON has −9999.0 in place of −inf, which becomes −inf again.

    Args:
        answers: One answer per row, or a response with one choice per row. An answer is a
            `RequestOutput`, a response or choice (as an object or as a dict of JSON) with
            `prompt_logprobs`, or the value of `prompt_logprobs`.
        teacher_ids: The ids that were sent, in any form that `align_batch` takes. Rows that are
            padded need `attention_mask`.
        attention_mask: Which positions of `teacher_ids` were sent, in its shape. The default is
            all positions.
        top_k: Length of the lists. Longer lists, such as those that have the token of the text in
            addition, keep the likeliest entries. The default keeps all entries. 0 makes no lists.
        vocab_size: Number of tokens of the model, to check ids.

    Returns:
        The log-probabilities, in the layout of `teacher_ids`.

    Raises:
        TypeError: An argument or a part of an answer has another type.
        ValueError: The number of answers is not that of the rows; an answer is an error of the
            server; an answer has no `prompt_logprobs` or another number of positions than its row;
            a position other than the first has no log-probability of its token; a log-probability
            is NaN or above 0; a list is shorter than `top_k`; or an id is out of range. The message
            names row and position, counted over the positions that were sent.

    Complexity:
        O(entries of the answers), in Rust. The GIL is held, because the answers are Python objects.

    Example:
        >>> answer = {
        ...     "prompt_logprobs": [
        ...         None,
        ...         {"5": {"logprob": -0.5, "rank": 1, "decoded_token": "+"}},
        ...     ]
        ... }
        >>> from_vllm([answer], [[3, 5]]).logprobs.tolist()
        [nan, -0.5]
    """
    asked = _Asked(teacher_ids, attention_mask, top_k, vocab_size)
    found = [
        _value(row, answer, "prompt_logprobs") for row, answer in enumerate(asked.rows(answers))
    ]
    return asked.layout(*_native.read_prompt_logprobs(found, asked.question))


def from_sglang(
    answers: object,
    teacher_ids: object,
    *,
    attention_mask: object | None = None,
    start: int | ArrayLike = 0,
    top_k: int | None = None,
    vocab_size: int | None = None,
) -> ServedLogprobs:
    """Read `input_token_logprobs` and `input_top_logprobs` of SGLang.

    Ask with `input_ids`, `return_logprob=True`, `logprob_start_len=0` and, for lists,
    `top_logprobs_num=k`. Entries are `[log-probability, id, text]`. The first entry of an answer
    has no log-probability. A `logprob_start_len` above 0 should therefore be the position before
    the first token that needs one.

    Args:
        answers: One answer per row: a response of `/generate` (as an object or as a dict of JSON),
            its `meta_info`, or the value of `input_token_logprobs`.
        teacher_ids: As for `from_vllm`.
        attention_mask: As for `from_vllm`.
        start: The `logprob_start_len` of the request: one number, or one per row. It counts the
            positions that were sent.
        top_k: Length of the lists, as for `from_vllm`.
        vocab_size: Number of tokens of the model, to check ids. SGLang writes 0 for the last id of
            the vocabulary, which is accepted only with `vocab_size`.

    Returns:
        The log-probabilities, in the layout of `teacher_ids`.

    Raises:
        TypeError: As for `from_vllm`.
        ValueError: As for `from_vllm`; an entry has another id than `teacher_ids`; `start` is not
            a position of its row; or `top_k` is given and an answer has no lists.

    Complexity:
        O(entries of the answers), in Rust, with the GIL.

    Example:
        >>> answer = {"meta_info": {"input_token_logprobs": [[None, 3, None], [-0.5, 5, None]]}}
        >>> from_sglang([answer], [[3, 5]]).logprobs.tolist()
        [nan, -0.5]
    """
    asked = _Asked(teacher_ids, attention_mask, top_k, vocab_size, start)
    found = []
    for row, answer in enumerate(asked.rows(answers)):
        meta = _field(answer, "meta_info")
        meta = answer if meta is None else meta
        tokens = _value(row, meta, "input_token_logprobs")
        found.append((tokens, _field(meta, "input_top_logprobs") or None))
    return asked.layout(*_native.read_input_logprobs(found, asked.question))


def from_openai(
    answers: object,
    teacher_ids: object,
    *,
    attention_mask: object | None = None,
    top_k: int | None = None,
    vocab_size: int | None = None,
) -> ServedLogprobs:
    """Read `logprobs` of a completion that echoes its prompt.

    Ask OpenAI's completions API with `echo=True` and `logprobs=k`, and send token ids. The API
    names tokens by their text, which does not tell their ids. The ids come from the tokens if the
    server writes `"token_id:<id>"` (vLLM: `return_tokens_as_token_ids=True`), else from
    `prompt_token_ids` of the choice (vLLM: `return_token_ids=True`). In the second case only
    `top_k=0` is possible. Tokens that the server generated after the text are left out.

    Args:
        answers: One answer per row, or a response with one choice per row. An answer is a response
            or choice (as an object or as a dict of JSON), or the choice's `logprobs`.
        teacher_ids: As for `from_vllm`.
        attention_mask: As for `from_vllm`.
        top_k: Length of the lists, as for `from_vllm`.
        vocab_size: Number of tokens of the model, to check ids.

    Returns:
        The log-probabilities, in the layout of `teacher_ids`.

    Raises:
        TypeError: As for `from_vllm`.
        ValueError: As for `from_vllm`; the ids of the tokens are not in the answer, or differ from
            `teacher_ids`; or `top_k` is given and an answer has no lists.

    Complexity:
        O(entries of the answers), in Rust, with the GIL.

    Example:
        >>> logprobs = {
        ...     "tokens": ["token_id:3", "token_id:5"],
        ...     "token_logprobs": [None, -0.5],
        ...     "top_logprobs": [None, {"token_id:5": -0.5, "token_id:4": -1.5}],
        ... }
        >>> from_openai([{"logprobs": logprobs}], [[3, 5]]).top.ids.tolist()
        [5, 4]
    """
    asked = _Asked(teacher_ids, attention_mask, top_k, vocab_size)
    found = []
    for row, answer in enumerate(asked.rows(answers)):
        choice = _only_choice(row, answer)
        logprobs = _field(choice, "logprobs")
        logprobs = choice if logprobs is None else logprobs
        tokens = _field(logprobs, "tokens")
        ids = _field(choice, "prompt_token_ids")
        if ids is not None and not _are_named_ids(tokens):
            tokens = ids
        if tokens is None:
            raise ValueError(f"row {row}: the answer has no logprobs with tokens")
        values = _value(row, logprobs, "token_logprobs")
        found.append((tokens, values, _field(logprobs, "top_logprobs") or None))
    return asked.layout(*_native.read_echo_logprobs(found, asked.question))


class _Asked:
    """The rows that were sent to a server, and the way back to the layout of their ids."""

    def __init__(
        self,
        teacher_ids: object,
        attention_mask: object | None,
        top_k: int | None,
        vocab_size: int | None,
        start: int | ArrayLike = 0,
    ) -> None:
        side = read_side("teacher", teacher_ids, attention_mask, mask_name="attention_mask")
        offsets = side.offsets
        _check_offsets(offsets, len(side.values))
        self._width, self._rows, self._vocab_size = side.width, len(side), vocab_size
        self._values = side.values.astype(np.int64)
        self._sent = np.ones(len(side.values), np.bool_) if side.mask is None else side.mask != 0
        if side.mask is not None:
            offsets = np.concatenate([[0], np.cumsum(self._sent)])[offsets]
        self.question = Question(
            side.values[self._sent].astype(np.int64),
            np.ascontiguousarray(offsets, np.int64),
            _starts(start, len(side)),
            None if top_k is None else integer("top_k", top_k, at_least=0, at_most=MAX_TOKENS),
            MAX_TOKENS
            if vocab_size is None
            else integer("vocab_size", vocab_size, at_least=1, at_most=MAX_TOKENS),
        )

    def rows(self, answers: object) -> list[object]:
        """Return one answer per row."""
        _refuse_error("answers", answers)
        choices = _choices("answers", answers)
        if choices is not None:
            # The text of a chat has its log-probabilities beside the choices.
            rows = [answers] if self._rows == 1 else sorted(choices, key=_index)
        elif isinstance(answers, Sequence) and not isinstance(answers, (str, bytes)):
            rows = list(answers)
        else:
            raise TypeError(
                "answers: expected a list with one answer per row, or a response with choices, got "
                f"{type(answers).__name__}"
            )
        if len(rows) != self._rows:
            raise ValueError(
                f"answers has {len(rows)} entries, expected {self._rows}, one for every row of "
                "teacher_ids"
            )
        for row, answer in enumerate(rows):
            _refuse_error(f"row {row}", answer)
        return rows

    def layout(
        self,
        taken: NDArray[np.float64],
        ids: NDArray[np.int32],
        logprobs: NDArray[np.float32],
        offsets: NDArray[np.int64],
    ) -> ServedLogprobs:
        """Return what was read, in the layout of the ids that were sent."""
        every = np.full(len(self._sent), np.nan)
        every[self._sent] = taken
        lengths = np.zeros(len(self._sent) + 1, np.int64)
        lengths[1:][self._sent] = np.diff(offsets)
        shape = every.shape if self._width is None else (self._rows, self._width)
        return ServedLogprobs(
            every.reshape(shape),
            TopKLogprobs(ids, logprobs, np.cumsum(lengths), self._vocab_size, "own"),
            int(np.count_nonzero(np.isnan(taken))),
            self._values.reshape(shape),
        )


def _check_offsets(offsets: NDArray[np.int64], tokens: int) -> None:
    rise = len(offsets) > 0 and (np.diff(offsets) >= 0).all()
    if not rise or offsets[0] != 0 or offsets[-1] != tokens:
        raise ValueError(
            f"teacher_ids: offsets must start at 0, never fall and end at the number of values "
            f"({tokens})"
        )


def _starts(start: int | ArrayLike, rows: int) -> NDArray[np.int64]:
    starts = np.asarray(start)
    if starts.shape not in ((), (rows,)) or (starts.size and starts.dtype.kind not in "iu"):
        raise TypeError(
            f"start: expected an integer, or {rows} of them, got {starts.dtype} of shape "
            f"{starts.shape}"
        )
    return np.ascontiguousarray(np.broadcast_to(starts, rows), np.int64)


def _field(holder: object, name: str) -> Any:
    """Return a field of an object or of a dict of JSON; None if there is none."""
    if isinstance(holder, Mapping):
        return holder.get(name)
    return None if isinstance(holder, Sequence) else getattr(holder, name, None)


def _value(row: int, answer: object, name: str) -> object:
    """Return a field of an answer or of its only choice; the answer, if it is the value itself."""
    if isinstance(answer, Sequence) and not isinstance(answer, (str, bytes)):
        return answer
    value = _field(answer, name)
    if value is None:
        value = _field(_only_choice(row, answer), name)
    if value is None:
        raise ValueError(f"row {row}: the answer has no {name}")
    return value


def _refuse_error(where: str, answer: object) -> None:
    """Raise an error if a server answered with one, or a client returned an exception."""
    error = answer if _field(answer, "object") == "error" else _field(answer, "error")
    if isinstance(answer, BaseException):
        error = repr(answer)
    if error is not None:
        said = _field(error, "message") or error
        raise ValueError(f"{where}: expected an answer of the server, got an error: {said}")


def _choices(where: str, answer: object) -> Sequence[Any] | None:
    choices = _field(answer, "choices")
    if choices is None:
        return None
    if not isinstance(choices, Sequence) or isinstance(choices, (str, bytes)):
        raise TypeError(f"{where}: 'choices': expected a list, got {type(choices).__name__}")
    return choices


def _only_choice(row: int, answer: object) -> object:
    choices = _choices(f"row {row}", answer)
    if choices is None:
        return answer
    if len(choices) != 1:
        raise ValueError(f"row {row}: the answer has {len(choices)} choices, expected 1")
    return choices[0]


def _index(choice: object) -> int:
    index = _field(choice, "index")
    return 0 if index is None else integer("answers: 'index' of a choice", index, at_least=0)


def _are_named_ids(tokens: object) -> bool:
    """Return whether tokens are named by their ids, and not by their texts."""
    first = tokens[0] if isinstance(tokens, Sequence) and len(tokens) > 0 else None
    return isinstance(first, str) and first.startswith("token_id:")
