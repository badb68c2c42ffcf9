"""Internal: training inputs of both sides from prompts and sampled completions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.align import align_batch
from simct_align.inputs import RaggedIds, integer, read_side
from simct_align.retokenize import PaddingSide, RetokenizeCounts, pad_rows, retokenize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from simct_align.batch import AlignedBatch
    from simct_align.pair import VocabularyPair

#: The label that `torch.nn.CrossEntropyLoss` and Hugging Face's models ignore.
IGNORED_LABEL = -100


@dataclass(frozen=True)
class PreparedSide:
    """The input of one model.

    Attributes:
        input_ids: Prompts and completions, int64 `[rows, width]`.
        attention_mask: 0 on padding, else 1, int64 `[rows, width]`.
        completion_mask: 1 on completions that take part, including their stop, else 0, int64
            `[rows, width]`.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    completion_mask: NDArray[np.int64]

    @property
    def labels(self) -> NDArray[np.int64]:
        """`input_ids` on completions, −100 elsewhere, int64 `[rows, width]`, not shifted."""
        return np.where(self.completion_mask != 0, self.input_ids, IGNORED_LABEL)


@dataclass(frozen=True)
class PrepareCounts:
    """Counts of what was added, cut and left out while a batch was prepared.

    Attributes:
        turns: Completions, including empty ones.
        truncated_turns: Completions that were flagged as truncated, or cut at the length limit.
            No stop is added to a flagged completion.
        turns_left_out: Completions with tokens on one side only. They do not take part.
        stops_added: Completions to which a stop was added.
        student_tokens_cut: Student tokens after the length limit, prompts included.
        teacher_tokens_cut: Teacher tokens after the length limit, prompts included.
        retokenized: Counts of the tokens and bytes that did not go through the teacher's
            tokenizer.
    """

    turns: int
    truncated_turns: int
    turns_left_out: int
    stops_added: int
    student_tokens_cut: int
    teacher_tokens_cut: int
    retokenized: RetokenizeCounts

    def as_dict(self) -> dict[str, int]:
        """Return all counts as plain integers, ready for a log."""
        counts: dict[str, int] = asdict(self)
        del counts["retokenized"]
        return counts | self.retokenized.as_dict()


@dataclass(frozen=True)
class PreparedBatch:
    """The input of both models and its alignment, from `Aligner.prepare`.

    Attributes:
        teacher: The input of the teacher.
        student: The input of the student.
        aligned: The alignment of these dense ids. `aligned.index()` refers to logits
            `[rows, width, vocabulary]` of either model.
        counts: Counts of what was added, cut and left out.
    """

    teacher: PreparedSide
    student: PreparedSide
    aligned: AlignedBatch
    counts: PrepareCounts


@dataclass(frozen=True)
class _Turns:
    """Token ids of all turns: those of row `i` are `ids[starts[i]:starts[i + 1]]`."""

    ids: list[NDArray[np.int64]]
    starts: list[int]

    def counts(self) -> list[int]:
        return [end - start for start, end in zip(self.starts[:-1], self.starts[1:], strict=True)]


def prepare(
    pair: VocabularyPair,
    completion_ids: object,
    *,
    teacher_prompt_ids: object,
    student_prompt_ids: object,
    completion_mask: object | None,
    teacher_prompt_mask: object | None,
    student_prompt_mask: object | None,
    truncated: ArrayLike | Sequence[Sequence[bool]] | None,
    padding_side: PaddingSide,
    teacher_pad_id: int,
    student_pad_id: int,
    teacher_max_length: int | None,
    student_max_length: int | None,
    pad_to_multiple_of: int | None,
    threads: int | None,
) -> PreparedBatch:
    """Prepare a batch: see `Aligner.prepare`."""
    completions = _read_turns("completion", completion_ids, completion_mask)
    teacher_prompts = _read_turns("teacher_prompt", teacher_prompt_ids, teacher_prompt_mask)
    student_prompts = _read_turns("student_prompt", student_prompt_ids, student_prompt_mask)
    for name, prompts in (("teacher", teacher_prompts), ("student", student_prompts)):
        _check_prompts(name, prompts, completions)
    cut_short = _read_truncated(truncated, completions.starts)
    for name, limit, least in (
        ("teacher_max_length", teacher_max_length, 0),
        ("student_max_length", student_max_length, 0),
        ("pad_to_multiple_of", pad_to_multiple_of, 1),
    ):
        if limit is not None:
            integer(name, limit, at_least=least)

    shared = pair.shared
    student_stops, teacher_stops = shared.student_stop_ids, shared.teacher_stop_ids
    stops_added = 0
    for turn, ids in enumerate(completions.ids):
        if len(student_stops) and not cut_short[turn] and not _ends_with(ids, student_stops):
            completions.ids[turn] = np.append(ids, student_stops[0])
            stops_added += 1
    _drop_repeated_stops(student_prompts, completions, student_stops)
    limited = _limit(student_prompts, completions, student_max_length)
    student_tokens_cut = sum(limited)
    for turn, tokens in enumerate(limited):
        cut_short[turn] |= tokens > 0

    retokenized = retokenize(pair, _ragged(completions.ids), student_mask=None, threads=threads)
    answers = _Turns(
        [retokenized.row(turn).copy() for turn in range(len(retokenized))], completions.starts
    )
    _drop_repeated_stops(teacher_prompts, answers, teacher_stops)
    teacher_tokens_cut = sum(_limit(teacher_prompts, answers, teacher_max_length))

    # A turn without tokens is not a region. If only one side had such a turn, all later turns of
    # the row would be aligned with the wrong turns.
    takes_part = [
        len(teacher) > 0 and len(student) > 0
        for teacher, student in zip(answers.ids, completions.ids, strict=True)
    ]
    left_out = [
        not both and len(teacher) + len(student) > 0
        for both, teacher, student in zip(takes_part, answers.ids, completions.ids, strict=True)
    ]
    sides = [
        _join(prompts, turns, takes_part, padding_side, pad_id, pad_to_multiple_of)
        for prompts, turns, pad_id in (
            (teacher_prompts, answers, teacher_pad_id),
            (student_prompts, completions, student_pad_id),
        )
    ]
    teacher, student = sides
    aligned = align_batch(
        pair,
        teacher.input_ids,
        student.input_ids,
        teacher_mask=teacher.completion_mask,
        student_mask=student.completion_mask,
        threads=threads,
    )
    counts = PrepareCounts(
        turns=len(completions.ids),
        truncated_turns=sum(cut_short),
        turns_left_out=sum(left_out),
        stops_added=stops_added,
        student_tokens_cut=student_tokens_cut,
        teacher_tokens_cut=teacher_tokens_cut,
        retokenized=retokenized.counts,
    )
    return PreparedBatch(teacher, student, aligned, counts)


def _read_turns(name: str, ids: object, mask: object | None) -> _Turns:
    """Read rows of ids, or nested lists `[row][turn]` of ids, as turns."""
    if isinstance(ids, list) and any(_is_list_of_turns(row) for row in ids):
        if mask is not None:
            raise TypeError(
                f"{name}_mask: nested lists of turns cannot have a mask; pass only the ids to use"
            )
        flat = [turn for row in ids for turn in row]
        starts = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
        side = read_side(name, flat, None)
    else:
        side = read_side(name, ids, mask)
        starts = np.arange(len(side) + 1)
    taken = None if side.mask is None else side.mask != 0
    turns = []
    for start, end in zip(side.offsets[:-1].tolist(), side.offsets[1:].tolist(), strict=True):
        turn = side.values[start:end] if taken is None else side.values[start:end][taken[start:end]]
        turns.append(turn.astype(np.int64))
    return _Turns(turns, starts.tolist())


def _is_list_of_turns(row: Any) -> bool:
    return isinstance(row, (list, tuple)) and len(row) > 0 and np.ndim(row[0]) > 0


def _check_prompts(name: str, prompts: _Turns, completions: _Turns) -> None:
    found, expected = prompts.counts(), completions.counts()
    if len(found) != len(expected):
        raise ValueError(
            f"{name}_prompt_ids has {len(found)} rows, expected {len(expected)} as in "
            "completion_ids"
        )
    for row, (prompt_turns, turns) in enumerate(zip(found, expected, strict=True)):
        if prompt_turns != turns:
            raise ValueError(
                f"row {row}: {name}_prompt_ids has {prompt_turns} turns, expected {turns} as in "
                "completion_ids"
            )
        for turn in range(1, turns):
            if len(prompts.ids[prompts.starts[row] + turn]) == 0:
                raise ValueError(
                    f"row {row}, turn {turn}: {name}_prompt_ids is empty; expected at least one "
                    "token between this turn and the one before"
                )


def _read_truncated(truncated: Any, starts: list[int]) -> list[bool]:
    """Return one flag per turn. A single flag for a row describes its last turn."""
    flags = [False] * starts[-1]
    if truncated is None:
        return flags
    rows = len(starts) - 1
    if isinstance(truncated, str) or not hasattr(truncated, "__len__"):
        raise TypeError(f"truncated: expected one flag per row ({rows} rows), got {truncated!r}")
    if len(truncated) != rows:
        raise ValueError(f"truncated has {len(truncated)} entries, expected one per row: {rows}")
    for row, flag in enumerate(truncated):
        start, end = starts[row], starts[row + 1]
        if np.ndim(flag) == 0:
            if end > start:
                flags[end - 1] = bool(flag)
        elif len(flag) == end - start:
            flags[start:end] = map(bool, flag)
        else:
            raise ValueError(
                f"row {row}: truncated has {len(flag)} entries, expected one flag or one per turn: "
                f"{end - start}"
            )
    return flags


def _ends_with(ids: NDArray[np.int64], stops: NDArray[np.int64]) -> bool:
    return len(ids) > 0 and bool((stops == ids[-1]).any())


def _drop_repeated_stops(prompts: _Turns, turns: _Turns, stops: NDArray[np.int64]) -> None:
    """Drop the stop at the start of a prompt if the turn before already ends with a stop."""
    for start, end in zip(turns.starts[:-1], turns.starts[1:], strict=True):
        for turn in range(start + 1, end):
            prompt = prompts.ids[turn]
            if _ends_with(turns.ids[turn - 1], stops) and _ends_with(prompt[:1], stops):
                if len(prompt) == 1:
                    raise ValueError(
                        f"turn {turn - start} of a row: its prompt contains only the stop of the "
                        "turn before; expected at least one more token"
                    )
                prompts.ids[turn] = prompt[1:]


def _limit(prompts: _Turns, turns: _Turns, max_length: int | None) -> list[int]:
    """Cut rows at a length; return how many tokens every turn with its prompt lost."""
    lost = [0] * len(turns.ids)
    if max_length is None:
        return lost
    for start, end in zip(turns.starts[:-1], turns.starts[1:], strict=True):
        room = max_length
        for turn in range(start, end):
            for pieces in (prompts.ids, turns.ids):
                lost[turn] += max(0, len(pieces[turn]) - room)
                pieces[turn] = pieces[turn][:room]
                room -= len(pieces[turn])
    return lost


def _join(
    prompts: _Turns,
    turns: _Turns,
    takes_part: list[bool],
    padding_side: PaddingSide,
    pad_id: int,
    multiple_of: int | None,
) -> PreparedSide:
    pieces: list[NDArray[np.int64]] = []
    taken: list[bool] = []
    for prompt, turn, takes in zip(prompts.ids, turns.ids, takes_part, strict=True):
        pieces += [prompt, turn]
        taken += [False, takes]
    ragged = _ragged(pieces)
    offsets = ragged.offsets[2 * np.array(turns.starts)]
    mask = np.repeat(np.array(taken, np.int64), np.diff(ragged.offsets))
    ids, attention = pad_rows(ragged.values, offsets, padding_side, pad_id, multiple_of=multiple_of)
    completion, _ = pad_rows(mask, offsets, padding_side, 0, multiple_of=multiple_of)
    return PreparedSide(ids, attention, completion)


def _ragged(pieces: list[NDArray[np.int64]]) -> RaggedIds:
    offsets = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
    return RaggedIds(np.concatenate([np.zeros(0, np.int64), *pieces]), offsets)
