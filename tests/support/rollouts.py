"""Random rollouts of every kind, laid out in every way that logits can lie."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from support.texts import answers, hard_texts

if TYPE_CHECKING:
    import random

    from simct_align import AlignedBatch, AlignedIndex, Aligner, Vocabulary

SIDES = ("teacher", "student")
#: How a student can come to its ids.
KINDS = ("canonical", "another cut", "random ids", "specials inside", "cut off", "other text")
LAYOUTS = ("ragged", "left", "right", "packed")


@dataclass
class Rollouts:
    """Rows of turns after prompts, aligned; and their ids as they lie under the logits.

    Row `r` of the logits of a side predicts `ids[side][r + 1]`. `taken` says which ids take part.
    """

    batch: AlignedBatch
    index: AlignedIndex
    ids: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    taken: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)
    #: Where each row begins in `ids`.
    starts: dict[str, np.ndarray[Any, Any]] = field(default_factory=dict)


@functools.cache
def _texts() -> tuple[str, ...]:
    return (*answers(40), *hard_texts())


def sampled(rng: random.Random, aligner: Aligner, kind: str) -> tuple[list[int], list[int]]:
    """A completion: the teacher's ids and the student's."""
    student = aligner.student
    text = rng.choice(_texts())
    text = text[rng.randrange(len(text)) :][: rng.randint(1, 60)]
    ids = student.encode_batch([text])[0]
    specials = [*student.special_names, *student.stop_ids]
    if kind == "another cut":  # in bytes as often as the vocabulary has them
        single = _single_bytes(student)
        cut = []
        for token in ids:
            pieces = [bytes([byte]) for byte in student.token_bytes(token)]
            split = rng.random() < 0.4 and all(piece in single for piece in pieces)
            cut += [single[piece] for piece in pieces] if split else [token]
        ids = cut
    elif kind == "random ids":
        used = np.flatnonzero(np.asarray(student.kinds) != 3)
        ids = [int(used[rng.randrange(len(used))]) for _ in range(rng.randint(1, 12))]
    elif kind == "specials inside" and specials:
        for _ in range(rng.randint(1, 4)):
            ids.insert(rng.randint(0, len(ids)), rng.choice(specials))
    elif kind == "cut off":
        ids = ids[: rng.randint(1, len(ids))] if ids else ids
    if kind != "cut off" and student.stop_ids and rng.random() < 0.7:
        ids = [*ids, student.stop_ids[0]]
    teacher = aligner.retokenize([ids]).row(0).tolist()
    if kind == "other text" and len(teacher) > 1:
        # A token is lost, or the end.
        at = rng.randrange(len(teacher))
        teacher = teacher[:at] + (teacher[at + 1 :] if rng.random() < 0.7 else [])
    return teacher, ids


@functools.cache
def _single_bytes(vocab: Vocabulary) -> dict[bytes, int]:
    """The ids of single bytes."""
    tokens = ((vocab.token_bytes(token), token) for token in range(len(vocab)))
    return {text: token for text, token in tokens if len(text) == 1}


def random_rows(
    rng: random.Random, aligner: Aligner, kinds: tuple[str, ...], rows: int
) -> tuple[dict[str, list[list[int]]], dict[str, list[list[int]]]]:
    """Ids and masks of conversations: prompts of any length, turns of the given kinds."""
    ids: dict[str, list[list[int]]] = {side: [] for side in SIDES}
    masks: dict[str, list[list[int]]] = {side: [] for side in SIDES}
    for _ in range(rows):
        turns = [sampled(rng, aligner, rng.choice(kinds)) for _ in range(rng.randint(0, 3))]
        turns = [turn for turn in turns if all(turn)]
        for place, side in enumerate(SIDES):
            size = len(getattr(aligner, side))
            row: list[int] = []
            mask: list[int] = []
            for number, turn in enumerate(turns):
                # Only before the first turn may a prompt be empty: a gap parts regions.
                prompt = [rng.randrange(size) for _ in range(rng.randint(number > 0, 4))]
                row += [*prompt, *turn[place]]
                mask += [0] * len(prompt) + [1] * len(turn[place])
            tail = [rng.randrange(size) for _ in range(rng.randint(0, 2))]
            ids[side].append(row + tail)
            masks[side].append(mask + [0] * len(tail))
    return ids, masks


def rollouts(
    rng: random.Random,
    aligner: Aligner,
    *,
    kinds: tuple[str, ...] = KINDS,
    layout: str = "ragged",
    rows: int = 6,
    **options: Any,
) -> Rollouts:
    """Random rollouts, aligned, and indexed for logits of a layout."""
    ids, masks = random_rows(rng, aligner, kinds, rows)
    given: dict[str, Any] = {}
    starts: dict[str, Any] = {}
    flat: dict[str, Any] = {}
    taken: dict[str, Any] = {}
    for side in SIDES:
        lengths = [len(row) for row in ids[side]]
        width = max(lengths, default=0) + (layout in ("left", "right"))
        if layout == "packed":
            # Rows lie in one long sequence, in another order and with gaps.
            order = rng.sample(range(rows), rows)
            place, starts[side] = 3, np.zeros(rows, np.int64)
            for row in order:
                starts[side][row] = place
                place += lengths[row] + rng.randint(0, 3)
            flat[side], taken[side] = np.full(place, -1), np.zeros(place, bool)
        elif layout == "ragged":
            starts[side] = np.cumsum([0, *lengths])[:-1]
            flat[side], taken[side] = np.full(sum(lengths), -1), np.zeros(sum(lengths), bool)
        else:
            starts[side] = np.arange(rows) * width
            flat[side], taken[side] = np.zeros(rows * width, int), np.zeros(rows * width, bool)
        for row, (tokens, mask) in enumerate(zip(ids[side], masks[side], strict=True)):
            shift = width - len(tokens) if layout == "left" else 0
            at = slice(int(starts[side][row]) + shift, int(starts[side][row]) + shift + len(tokens))
            flat[side][at], taken[side][at] = tokens, mask
        dense = layout in ("left", "right")
        given[f"{side}_ids"] = flat[side].reshape(rows, width) if dense else ids[side]
        given[f"{side}_mask"] = taken[side].reshape(rows, width) if dense else masks[side]
    batch = aligner.align_batch(**given)
    if layout == "packed":
        options |= {f"{side}_row_starts": starts[side] for side in SIDES}
    index = batch.index(max_path=8, first_ids=True, text_events=True, **options)
    return Rollouts(batch, index, flat, taken, starts)
