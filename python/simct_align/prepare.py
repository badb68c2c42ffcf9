"""Internal: training inputs of both sides from prompts and sampled completions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.align import align_batch
from simct_align.inputs import RaggedIds, flag, integer, read_side
from simct_align.retokenize import PaddingSide, RetokenizeCounts, pad_rows, retokenize
from simct_align.token_kind import TokenKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from simct_align.batch import AlignedBatch
    from simct_align.pair import VocabularyPair
    from simct_align.vocabulary import Vocabulary

#: The label that `torch.nn.CrossEntropyLoss` and Hugging Face's models ignore.
IGNORED_LABEL = -100
#: The largest number of white-space tokens between the text of a turn and its stop.
_MOST_SPACES = 8


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
        stops_added: Completions that got a stop which was not sampled.
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
        return [end - start for start, end in self.rows()]

    def rows(self) -> list[tuple[int, int]]:
        return list(pairwise(self.starts))


@dataclass(frozen=True)
class _Ends:
    """How the turns of a side end.

    Attributes:
        written: Whether a turn ends as the chat template writes it.
        has_stop: Whether the template writes a stop there, which replaces a turn's own stop.
        closings: The end of each such turn that takes part: white space, if any, and the stop.
        tails: What follows the last turn of each row and does not take part.
    """

    written: list[bool]
    has_stop: list[bool]
    closings: list[NDArray[np.int64]]
    tails: list[NDArray[np.int64]]


def prepare(
    pair: VocabularyPair,
    completion_ids: object,
    *,
    teacher_prompt_ids: object,
    student_prompt_ids: object,
    completion_mask: object | None,
    teacher_prompt_mask: object | None,
    student_prompt_mask: object | None,
    teacher_end_ids: Sequence[object] | None,
    student_end_ids: Sequence[object] | None,
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
    teacher_tails = _read_ends("teacher", teacher_end_ids, completions)
    student_tails = _read_ends("student", student_end_ids, completions)
    for name, limit, least in (
        ("teacher_max_length", teacher_max_length, 0),
        ("student_max_length", student_max_length, 0),
        ("pad_to_multiple_of", pad_to_multiple_of, 1),
    ):
        if limit is not None:
            integer(name, limit, at_least=least)

    shared = pair.shared
    student_stops, teacher_stops = shared.student_stop_ids, shared.teacher_stop_ids
    own_stops = [_ends_with(ids, student_stops) for ids in completions.ids]
    student_ends = _take_ends(
        student_prompts, student_tails, cut_short, student_stops, pair.student
    )
    stops_added = 0
    sizes = []
    for turn, ids in enumerate(completions.ids):
        closing = student_ends.closings[turn]
        has_own = own_stops[turn]
        if has_own and student_ends.has_stop[turn]:
            ids = ids[:-1]
        elif not (has_own or student_ends.written[turn] or cut_short[turn]):
            closing = student_stops[:1].astype(np.int64)
        stops_added += not has_own and len(closing) > 0
        sizes.append((len(ids), len(ids) + len(closing)))
        completions.ids[turn] = np.concatenate([ids, closing])
    _drop_repeated_stops(
        "student", student_prompts, completions, student_ends, student_stops, pair.student
    )
    limited, student_tokens_cut = _limit(
        student_prompts, completions, student_ends.tails, student_max_length
    )
    for turn, tokens in enumerate(limited):
        cut_short[turn] |= tokens > 0

    # White space that the student's template writes before a stop is not the teacher's.
    said = [
        ids if len(ids) <= text else np.append(ids[:text], ids[-1:] if len(ids) == whole else [])
        for ids, (text, whole) in zip(completions.ids, sizes, strict=True)
    ]
    retokenized = retokenize(pair, _ragged(said), student_mask=None, threads=threads)
    teacher_ends = _take_ends(
        teacher_prompts, teacher_tails, cut_short, teacher_stops, pair.teacher
    )
    answers = _Turns([], completions.starts)
    for turn, closing in enumerate(teacher_ends.closings):
        ids = retokenized.row(turn)
        replaced = teacher_ends.has_stop[turn] or student_ends.has_stop[turn]
        if teacher_ends.written[turn] and replaced and _ends_with(ids, teacher_stops):
            ids = ids[:-1]
        answers.ids.append(np.concatenate([ids, closing]))
    _drop_repeated_stops(
        "teacher", teacher_prompts, answers, teacher_ends, teacher_stops, pair.teacher
    )
    _, teacher_tokens_cut = _limit(teacher_prompts, answers, teacher_ends.tails, teacher_max_length)

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
        _join(prompts, turns, ends.tails, takes_part, padding_side, pad_id, pad_to_multiple_of)
        for prompts, turns, ends, pad_id in (
            (teacher_prompts, answers, teacher_ends, teacher_pad_id),
            (student_prompts, completions, student_ends, student_pad_id),
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
    for row, of_row in enumerate(truncated):
        start, end = starts[row], starts[row + 1]
        if np.ndim(of_row) == 0:
            is_cut = flag(f"row {row}: truncated", of_row)
            if end > start:
                flags[end - 1] = is_cut
        elif len(of_row) == end - start:
            flags[start:end] = [flag(f"row {row}: truncated", each) for each in of_row]
        else:
            raise ValueError(
                f"row {row}: truncated has {len(of_row)} entries, expected one flag or one per "
                f"turn: {end - start}"
            )
    return flags


def _ends_with(ids: NDArray[np.int64], stops: NDArray[np.int64]) -> bool:
    return len(ids) > 0 and bool((stops == ids[-1]).any())


def _read_ends(
    name: str, ends: Sequence[object] | None, completions: _Turns
) -> list[NDArray[np.int64] | None]:
    """Return what follows the last turn of every row; None for rows without such ids."""
    rows = len(completions.starts) - 1
    if ends is None:
        return [None] * rows
    if len(ends) != rows:
        raise ValueError(
            f"{name}_end_ids has {len(ends)} rows, expected {rows} as in completion_ids"
        )
    read: list[NDArray[np.int64] | None] = []
    for row, end in enumerate(ends):
        ids = None if end is None else np.asarray(end)
        if ids is not None and (ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu")):
            raise TypeError(
                f"row {row}: {name}_end_ids: expected a list of integers or None, got {ids.dtype} "
                f"of shape {ids.shape}"
            )
        read.append(None if ids is None else ids.astype(np.int64))
    return read


def _take_ends(
    prompts: _Turns,
    tails: Sequence[NDArray[np.int64] | None],
    cut_short: Sequence[bool],
    stops: NDArray[np.int64],
    vocabulary: Vocabulary,
) -> _Ends:
    """Cut the ends of turns off from the start of what follows them."""
    nothing = np.zeros(0, np.int64)
    turns = prompts.starts[-1]
    ends = _Ends([False] * turns, [False] * turns, [nothing] * turns, [nothing] * len(tails))
    for row, ((start, end), tail) in enumerate(zip(prompts.rows(), tails, strict=True)):
        if tail is None:
            continue
        for turn in range(start, end):
            if cut_short[turn]:
                continue
            is_last = turn == end - 1
            follows = tail if is_last else prompts.ids[turn + 1]
            size = _closing_size(follows, stops, vocabulary)
            ends.written[turn], ends.has_stop[turn] = True, size > 0
            if size == len(follows) and not is_last:
                # Without a position between them, two turns would be one region.
                size -= 1
            ends.closings[turn] = follows[:size]
            if is_last:
                ends.tails[row] = tail[size:]
            else:
                prompts.ids[turn + 1] = follows[size:]
    return ends


def _closing_size(ids: NDArray[np.int64], stops: NDArray[np.int64], vocabulary: Vocabulary) -> int:
    """Return the number of leading ids that end a turn: white space, if any, and a stop."""
    at = np.flatnonzero(np.isin(ids[: _MOST_SPACES + 1], stops))[:1]
    if not len(at):
        return 0
    before = ids[: at[0]]
    is_space = len(before) == 0 or (
        bool(((before >= 0) & (before < len(vocabulary))).all())
        and not (vocabulary.kinds[before] == TokenKind.SPECIAL).any()
        and vocabulary.decode_bytes(before).isspace()
    )
    return int(at[0]) + 1 if is_space else 0


def _drop_repeated_stops(
    name: str,
    prompts: _Turns,
    turns: _Turns,
    ends: _Ends,
    stops: NDArray[np.int64],
    vocabulary: Vocabulary,
) -> None:
    """Drop the end of a turn at the start of the next prompt if the turn has its own stop."""
    for row, (start, end) in enumerate(turns.rows()):
        for turn in range(start + 1, end):
            if ends.written[turn - 1] or not _ends_with(turns.ids[turn - 1], stops):
                continue
            prompt = prompts.ids[turn]
            size = _closing_size(prompt, stops, vocabulary)
            if size and size == len(prompt):
                raise ValueError(
                    f"row {row}, turn {turn - start}: {name}_prompt_ids contains only the stop of "
                    "the turn before; expected at least one more token"
                )
            prompts.ids[turn] = prompt[size:]


def _limit(
    prompts: _Turns, turns: _Turns, tails: list[NDArray[np.int64]], max_length: int | None
) -> tuple[list[int], int]:
    """Cut rows at a length.

    Returns:
        How many tokens every turn with its prompt lost, and the sum over all turns and tails.
    """
    lost = [0] * len(turns.ids)
    if max_length is None:
        return lost, 0
    of_tails = 0
    for row, (start, end) in enumerate(turns.rows()):
        room = max_length
        for turn in range(start, end):
            for pieces in (prompts.ids, turns.ids):
                lost[turn] += max(0, len(pieces[turn]) - room)
                pieces[turn] = pieces[turn][:room]
                room -= len(pieces[turn])
        of_tails += max(0, len(tails[row]) - room)
        tails[row] = tails[row][:room]
    return lost, sum(lost) + of_tails


def _join(
    prompts: _Turns,
    turns: _Turns,
    tails: Sequence[NDArray[np.int64]],
    takes_part: list[bool],
    padding_side: PaddingSide,
    pad_id: int,
    multiple_of: int | None,
) -> PreparedSide:
    pieces: list[NDArray[np.int64]] = []
    taken: list[bool] = []
    for (start, end), tail in zip(turns.rows(), tails, strict=True):
        for turn in range(start, end):
            pieces += [prompts.ids[turn], turns.ids[turn]]
            taken += [False, takes_part[turn]]
        pieces.append(tail)
        taken.append(False)
    ragged = _ragged(pieces)
    # Two pieces for every turn, and one for every row.
    offsets = ragged.offsets[2 * np.array(turns.starts) + np.arange(len(turns.starts))]
    mask = np.repeat(np.array(taken, np.int64), np.diff(ragged.offsets))
    ids, attention = pad_rows(ragged.values, offsets, padding_side, pad_id, multiple_of=multiple_of)
    completion, _ = pad_rows(mask, offsets, padding_side, 0, multiple_of=multiple_of)
    return PreparedSide(ids, attention, completion)


def _ragged(pieces: list[NDArray[np.int64]]) -> RaggedIds:
    offsets = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
    return RaggedIds(np.concatenate([np.zeros(0, np.int64), *pieces]), offsets)
