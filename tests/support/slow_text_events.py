"""Text events by brute force: sorted tokens, byte strings and the definition, no tree."""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align import UnitClass, UnitKind, UnmatchedReason
from support.vocabularies import token_bytes, vocabulary

if TYPE_CHECKING:
    from simct_align import AlignedBatch

BOTH = ("teacher", "student")
MAX_REACH = 64


@functools.cache
def text_tokens(name: str) -> list[tuple[bytes, int]]:
    """The ids that are text, sorted by their bytes."""
    kinds = np.asarray(vocabulary(name).kinds)
    return sorted((b, i) for i, b in enumerate(token_bytes(name)) if kinds[i] in (0, 1) and b)


@functools.lru_cache(maxsize=1 << 20)
def beginning_with(name: str, text: bytes) -> frozenset[int]:
    """All ids whose bytes begin with a text."""
    tokens = text_tokens(name)
    start = end = bisect.bisect_left(tokens, (text,))
    while end < len(tokens) and tokens[end][0].startswith(text):
        end += 1
    return frozenset(token for _, token in tokens[start:end])


@functools.lru_cache(maxsize=1 << 16)
def same(names: tuple[str, str], text: bytes) -> bool:
    """Whether both sides have tokens of the very same strings that begin with a text."""
    teacher, student = (
        {token_bytes(name)[token] for token in beginning_with(name, text)} for name in names
    )
    return teacher == student


@dataclass
class Offset:
    """What both sides say at an offset, by side.

    `own` is (flat row, token or −1); `sources` are (flat row, bytes back, ids, those that end).
    """

    stretch: int
    row: int
    own: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    sources: dict[str, list[tuple[int, int, frozenset[int], frozenset[int]]]] = field(
        default_factory=dict
    )


@dataclass
class Run:
    """A natural stretch: its units, and the side whose tokens begin one byte earlier.

    `first` has the position of its first token, which is the dummy prefix where that is a token of
    its own.
    """

    row: int
    units: list[int]
    lead: str | None
    first: dict[str, int]


def begun(batch: AlignedBatch, row: int, unit: int, names: tuple[str, str]) -> Run:
    """A run that begins with a unit."""
    first = {side: int(getattr(batch, f"{side}_start")[unit]) for side in BOTH}
    run = Run(row, [unit], None, first)
    if batch.unit_class[unit] & UnitClass.TRIMMED:
        sizes = {}
        for side, name in zip(BOTH, names, strict=True):
            ids = getattr(batch, side).row(row)[
                first[side] : int(getattr(batch, f"{side}_end")[unit])
            ]
            sizes[side] = sum(len(token_bytes(name)[token]) for token in ids.tolist())
        run.lead = max(sizes, key=lambda side: sizes[side])
        assert sorted(sizes.values())[0] == sizes[run.lead] - 1
    spans = batch.unmatched
    for span in range(*spans.row_offsets[row : row + 2].tolist()):
        if spans.reason[span] != UnmatchedReason.DUMMY_PREFIX:
            continue
        for side in BOTH:
            start, end = (int(getattr(spans, f"{side}_{what}")[span]) for what in ("start", "end"))
            if start < end == first[side]:
                run.lead, run.first[side] = side, start
    return run


def runs_of_units(batch: AlignedBatch, names: tuple[str, str]) -> list[Run]:
    """All natural stretches."""
    starts, ends = (
        (batch.teacher_start, batch.student_start),
        (batch.teacher_end, batch.student_end),
    )
    runs: list[Run] = []
    for row in range(len(batch)):
        last = None
        for unit in range(int(batch.row_offsets[row]), int(batch.row_offsets[row + 1])):
            if batch.kind[unit] == UnitKind.SPECIAL:
                last = None
                continue
            follows = last is not None and all(
                end[last] == start[unit] for start, end in zip(starts, ends, strict=True)
            )
            if follows and not batch.unit_class[unit] & UnitClass.TRIMMED:
                runs[-1].units.append(unit)
            else:
                run = begun(batch, row, unit, names)
                if min(run.first.values()) == 0:
                    last = None
                    continue
                runs.append(run)
            last = unit
    return runs


def takes_part(ids: Any, row: int, position: int) -> bool:
    place = int(ids.offsets[row]) + position
    return place < ids.offsets[row + 1] and (ids.mask is None or bool(ids.mask[place]))


def text_events(
    batch: AlignedBatch, names: tuple[str, str], row_starts: tuple[Any, Any]
) -> tuple[list[Offset], int]:
    """All offsets of a batch in order, and the student tokens of its stretches."""
    offsets: list[Offset] = []
    stretches, tokens = 0, 0
    for run in runs_of_units(batch, names):
        row, units = run.row, run.units
        slots, ids, flat, has_end = {}, {}, {}, True
        for side, name, starts in zip(BOTH, names, row_starts, strict=True):
            start = run.first[side]
            end = int(getattr(batch, f"{side}_end")[units[-1]])
            ids[side] = getattr(batch, side).row(row)[start:end].tolist()
            lengths = [len(token_bytes(name)[token]) for token in ids[side]]
            lead = int(run.lead not in (None, side))
            slots[side] = np.cumsum([lead, *lengths]).tolist()
            flat[side] = int(starts[row]) + start - 1
            has_end &= takes_part(getattr(batch, side), row, end)
        longest = run.lead or "student"
        name = dict(zip(BOTH, names, strict=True))[longest]
        text = b"".join(token_bytes(name)[token] for token in ids[longest])
        tokens += len(ids["student"])
        places = sorted(
            {*slots["teacher"], *slots["student"]}
            - (set() if has_end else {len(text)})
            - ({0} if run.lead else set())
        )
        begun_at, restarts = 0, set()
        stretches += 1
        for place in places:
            if place in restarts:
                begun_at, stretches = place, stretches + 1
            offset = Offset(stretches - 1, row)
            taken = []
            for side, name in zip(BOTH, names, strict=True):
                sources, own = [], None
                for slot, at in enumerate(slots[side]):
                    token = ids[side][slot] if slot < len(ids[side]) else -1
                    if at == place:
                        own = (flat[side] + slot, token)
                        taken.append(token_bytes(name)[token] if token >= 0 else None)
                    elif begun_at <= at < place <= at + MAX_REACH:
                        since = text[at:place]
                        fits = beginning_with(name, since)
                        exact = frozenset(t for t in fits if token_bytes(name)[t] == since)
                        if fits:
                            sources.append((flat[side] + slot, place - at, fits, exact))
                offset.own[side], offset.sources[side] = own, sources
            if len(taken) == 2 and taken[0] == taken[1] is not None and same(names, taken[0]):
                restarts.add(place + len(taken[0]))
            offsets.append(offset)
    return offsets, tokens


def listed(index: Any, tree: Any) -> list[Offset]:
    """The offsets of an index, in the same form."""
    found = [
        Offset(stretch, row)
        for stretch, row in zip(
            index.text_offset_stretch.tolist(), index.text_offset_batch_row.tolist(), strict=True
        )
    ]
    for side in BOTH:
        read = {
            what: getattr(index, f"{side}_{what}").tolist()
            for what in (
                *("text_row", "text_id", "own_text_row"),
                *("source_offsets", "source_row", "source_start", "source_end"),
                *("source_length", "source_exact", "source_suffix"),
            )
        }
        order = getattr(tree, side).token_ids
        for number, offset in enumerate(found):
            own = read["own_text_row"][number]
            offset.own[side] = None
            if own >= 0:
                offset.own[side] = (read["text_row"][own], read["text_id"][own])
            offset.sources[side] = []
            for source in range(*read["source_offsets"][number : number + 2]):
                row, start = read["source_row"][source], read["source_start"][source]
                ids = order[start : read["source_end"][source]].tolist()
                length, exact = read["source_length"][source], read["source_exact"][source]
                offset.sources[side].append(
                    (read["text_row"][row], length, frozenset(ids), frozenset(ids[:exact]))
                )
                assert len(set(ids)) == len(ids)
                if exact < len(ids):
                    place = getattr(tree, side).suffix_start(start + exact, length)
                    assert read["source_suffix"][source] == place
    return found
