"""The loss's index built in plain Python, and small pairs of vocabularies to build it over.

`build_index` is the slow twin of `AlignedBatch.index`: the same packed buffer, a unit at a time.
"""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch

from simct_align import Vocabulary
from simct_align.index import SECTIONS, AlignedIndex

SHARED, MULTI, SPECIAL = 0, 1, 2
TRIMMED = 32
TWIN_DIGEST = "twin"  # of all pairs here


@dataclass
class PlainUnit:
    """A unit as the twins read it; a path's steps are at consecutive logit rows."""

    number: int
    kind: int
    text: bytes
    teacher_row: int
    teacher_path: tuple
    student_row: int
    student_path: tuple


def plain_units(batch, teacher_rows, student_rows, teacher_bytes, teacher_starts, student_starts):
    """Units that reach the loss, in index order; also the counts of the two kinds that do not."""
    first, last, no_prefix, dummy = [], [], 0, 0
    for row in range(len(teacher_rows)):
        for u in range(batch.row_offsets[row], batch.row_offsets[row + 1]):
            t0, t1 = int(batch.teacher_start[u]), int(batch.teacher_end[u])
            s0, s1 = int(batch.student_start[u]), int(batch.student_end[u])
            if t0 == 0 or s0 == 0:
                no_prefix += 1
                continue
            if batch.unit_class[u] & TRIMMED:
                dummy += 1
                continue
            unit = PlainUnit(
                number=u,
                kind=int(batch.kind[u]),
                text=b"".join(teacher_bytes[i] for i in teacher_rows[row][t0:t1]),
                teacher_row=int(teacher_starts[row]) + t0 - 1,
                teacher_path=tuple(int(i) for i in teacher_rows[row][t0:t1]),
                student_row=int(student_starts[row]) + s0 - 1,
                student_path=tuple(int(i) for i in student_rows[row][s0:s1]),
            )
            (last if unit.kind == MULTI else first).append(unit)
    return first + last, no_prefix, dummy


def build_index(units, no_prefix, dummy, column_of_text) -> AlignedIndex:
    """Pack plain units, with the first ids, section by section."""
    shared = [u for u in units if u.kind != MULTI]
    multi = [u for u in units if u.kind == MULTI]
    sections = {
        "unit": [u.number for u in units],
        "kind": [u.kind for u in units],
        "student_tokens": [len(u.student_path) for u in units],
        "realized_shared_column": [column_of_text.get(u.text, -1) for u in multi],
    }
    steps = {}
    for side in ("teacher", "student"):
        rows = {u.number: getattr(u, f"{side}_row") for u in units}
        paths = {u.number: getattr(u, f"{side}_path") for u in units}
        sections[f"{side}_row"] = list(rows.values())
        sections[f"{side}_first_id"] = [path[0] for path in paths.values()]
        steps[side] = [
            (m, rows[u.number] + j, token)
            for m, u in enumerate(multi)
            for j, token in enumerate(paths[u.number])
        ]
        ends = itertools.accumulate((len(paths[u.number]) for u in multi), initial=0)
        sections[f"{side}_offsets"] = list(ends)
        for place, what in enumerate(("unit", "row", "id")):
            sections[f"{side}_step_{what}"] = [step[place] for step in steps[side]]
    numbers = [number for section in SECTIONS for number in sections.get(section.name, [])]
    packed = torch.tensor(numbers, dtype=torch.int64)
    return AlignedIndex(
        packed=packed,
        host=packed.numpy(),
        n_shared=len(shared),
        n_multi=len(multi),
        n_teacher_steps=len(steps["teacher"]),
        n_student_steps=len(steps["student"]),
        student_tokens_shared=sum(len(u.student_path) for u in shared),
        dropped_no_prefix=no_prefix,
        dropped_dummy_prefix=dummy,
        groups=("units", "first_ids"),
        pair_digest=TWIN_DIGEST,
    )


@dataclass
class PlainSide:
    """One vocabulary as the twins read it."""

    token_bytes: list
    kinds: np.ndarray
    shared_ids: list
    stop_ids: list
    stop_column: int
    texts: list  # of the shared columns; None for stops and specials

    def vocabulary(self) -> Vocabulary:
        special, unused = (np.flatnonzero(self.kinds == kind).tolist() for kind in (2, 3))
        return Vocabulary.from_token_bytes(self.token_bytes, special=special, unused=unused)

    def padding(self, columns: int) -> torch.Tensor:
        unused = torch.ones(columns, dtype=torch.bool)
        unused[: len(self.kinds)] = torch.tensor(self.kinds[:columns] == 3)
        return unused


@dataclass
class PlainPair:
    """A pair of vocabularies; also answers as an `Aligner` does, as far as the loss asks."""

    teacher_side: PlainSide
    student_side: PlainSide
    column_of_text: dict = field(default_factory=dict)
    digest: str = TWIN_DIGEST

    @functools.cached_property
    def teacher(self):
        return self.teacher_side.vocabulary()

    @functools.cached_property
    def student(self):
        return self.student_side.vocabulary()

    @property
    def shared(self):
        return SimpleNamespace(
            teacher_ids=np.array(self.teacher_side.shared_ids, dtype=np.int64),
            student_ids=np.array(self.student_side.shared_ids, dtype=np.int64),
            stop_column=self.teacher_side.stop_column,
            teacher_stop_ids=np.array(self.teacher_side.stop_ids, dtype=np.int64),
            student_stop_ids=np.array(self.student_side.stop_ids, dtype=np.int64),
        )


def _vocabulary(rng, tokens, stops, duplicates, unused):
    """Token bytes, kinds and stop ids in random order; duplicates repeat tokens of one byte."""
    entries = [(t, 0) for t in tokens]
    entries += [(rng.choice(tokens), 0) for _ in range(duplicates)]
    entries += [(b"", 2)] * (stops + 1) + [(b"", 3)] * unused
    rng.shuffle(entries)
    special = [i for i, e in enumerate(entries) if e[1] == 2]
    kinds = np.array([k for _, k in entries], dtype=np.uint8)
    return [t for t, _ in entries], kinds, special[:stops], special[stops]


def random_pair(
    seed=0,
    teacher_stops=2,
    student_stops=3,
    duplicates=3,
    identical=False,
    size=14,
    alphabet=b"ab",
):
    """A small pair over an alphabet of two: duplicates, several stops, a mapped special, gaps."""
    rng = random.Random(seed)
    texts = [alphabet[:1], alphabet[1:]] + [
        bytes(rng.choice(alphabet) for _ in range(rng.randint(2, 4))) for _ in range(40)
    ]
    texts = list(dict.fromkeys(texts))
    sides = []
    for stops in (teacher_stops, student_stops):
        chosen = texts[:2] + rng.sample(texts[2:], min(size, len(texts) - 2))
        sides.append(_vocabulary(rng, chosen, stops, duplicates, 2))
    if identical:
        sides[1] = sides[0]
    canonical = [{}, {}]
    for number, (token_bytes, kinds, _, _) in enumerate(sides):
        for i, text in enumerate(token_bytes):
            if kinds[i] == 0:
                canonical[number].setdefault(text, i)
    entries = [(canonical[0][t], canonical[1][t], t) for t in canonical[0] if t in canonical[1]]
    entries.append((sides[0][3], sides[1][3], None))
    stop = (sides[0][2][0], sides[1][2][0], None) if teacher_stops and student_stops else None
    entries = sorted(entries + ([stop] if stop else []), key=lambda e: e[0])
    column = entries.index(stop) if stop else -1
    names = [e[2] for e in entries]
    plain = [
        PlainSide(s[0], s[1], [e[n] for e in entries], s[2], column, names)
        for n, s in enumerate(sides)
    ]
    return PlainPair(*plain, {t: c for c, t in enumerate(names) if t is not None})


def _spell(rng, side, text):
    """A random path of tokens, duplicates included, that spells the text."""
    ids, at = [], 0
    while at < len(text):
        fits = [
            i for i, t in enumerate(side.token_bytes)
            if side.kinds[i] == 0 and t and text.startswith(t, at)
        ]  # fmt: skip
        ids.append(rng.choice(fits))
        at += len(side.token_bytes[ids[-1]])
    return ids


def _append(batch, values):
    for name, value in zip(
        ("teacher_start", "teacher_end", "student_start", "student_end", "kind", "unit_class"),
        values,
        strict=True,
    ):
        getattr(batch, name).append(value)


def random_batch(
    pair, seed=0, rows=3, length=12, only=None, empty_row=False, stop=True, alphabet=b"ab"
):
    """Rows of random text in random spellings, a stop behind each; units by common boundaries.

    `only` keeps units of one kind. Returns the batch and the ids of both sides.
    """
    rng = random.Random(seed)
    batch = SimpleNamespace(
        row_offsets=[0], teacher_start=[], teacher_end=[], student_start=[], student_end=[],
        kind=[], unit_class=[],
    )  # fmt: skip
    ids = ([], [])
    for row in range(rows):
        text = b"" if empty_row and row == 1 else bytes(rng.choice(alphabet) for _ in range(length))
        sides = (pair.teacher_side, pair.student_side)
        row_ids = [_spell(rng, side, text) for side in sides]
        places = [{0: 0}, {0: 0}]
        for n, side in enumerate(sides):
            at = 0
            for position, i in enumerate(row_ids[n]):
                at += len(side.token_bytes[i])
                places[n][at] = position + 1
        common = sorted(places[0].keys() & places[1].keys())
        for a, b in itertools.pairwise(common):
            t0, t1, s0, s1 = places[0][a], places[0][b], places[1][a], places[1][b]
            kind = SHARED if t1 - t0 == s1 - s0 == 1 else MULTI
            if only is None or kind == only:
                _append(batch, (t0, t1, s0, s1, kind, 0))
        if stop and text and pair.teacher_side.stop_column >= 0:
            t0, s0 = len(row_ids[0]), len(row_ids[1])
            row_ids[0].append(rng.choice(pair.teacher_side.stop_ids))
            row_ids[1].append(rng.choice(pair.student_side.stop_ids))
            if only is None:
                _append(batch, (t0, t0 + 1, s0, s0 + 1, SPECIAL, 0))
        for n in range(2):
            ids[n].append(row_ids[n])
        batch.row_offsets.append(len(batch.kind))
    return batch, ids


def case(seed=0, padded=False, extra_columns=0, dtype=torch.float64, pair=None, **keywords):
    """Everything a test needs: pair, units, index, and random logits (flat or padded)."""
    pair = pair or random_pair(seed)
    batch, ids = random_batch(pair, seed, **keywords)
    starts, logits = [], []
    generator = torch.Generator().manual_seed(seed)
    for n, side in enumerate((pair.teacher_side, pair.student_side)):
        lengths = [len(r) for r in ids[n]]
        longest = max([*lengths, 1]) + 2
        starts.append(np.arange(len(lengths)) * longest if padded else np.cumsum([0, *lengths]))
        shape = (len(lengths), longest) if padded else (max(sum(lengths), 1),)
        columns = len(side.token_bytes) + extra_columns
        logits.append(2 * torch.randn(*shape, columns, generator=generator, dtype=dtype))
    units, no_prefix, dummy = plain_units(batch, *ids, pair.teacher_side.token_bytes, *starts)
    index = build_index(units, no_prefix, dummy, pair.column_of_text)
    return SimpleNamespace(
        pair=pair, batch=batch, ids=ids, units=units, index=index,
        teacher=logits[0], student=logits[1],
    )  # fmt: skip
