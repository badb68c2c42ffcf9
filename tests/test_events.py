"""Disjoint events by their definition: every token string of two toy models, added up.

A toy model gives next-token probabilities for any prefix. An event is "the text goes on with a path
of u, and with no longer candidate path": each token string of a length that no candidate exceeds
belongs to the longest candidate path that it begins with, if any.
"""

from __future__ import annotations

import itertools
import random
import zlib

import numpy as np
import pytest
import torch

from simct_align import Aligner, Vocabulary
from simct_align.loss import SimCTLoss
from simct_align.loss.backends.torch.computation import TorchComputation
from simct_align.loss.backends.torch.on_path import OnPathEngine
from support.on_path_twin import side_scores, twin_units
from test_loss_on_path import make_aligner, random_spelling

LONGEST = 4


class ToyModel:
    """Log-probabilities of the next token, drawn anew for every prefix."""

    def __init__(self, vocabulary, seed):
        self.vocabulary, self.seed, self.known = vocabulary, seed, {}

    def logits(self, prefix):
        rng = np.random.default_rng([self.seed, zlib.crc32(repr(prefix).encode())])
        return torch.from_numpy(2 * rng.standard_normal(len(self.vocabulary)))

    def probs(self, prefix):
        if prefix not in self.known:
            z = self.logits(prefix)
            z[torch.from_numpy(self.vocabulary.kinds == 3)] = -torch.inf
            self.known[prefix] = torch.softmax(z, 0).tolist()
        return self.known[prefix]


def events_by_enumeration(model, prefix, paths):
    """The probability of every candidate path's event."""
    length = max(map(len, paths))
    events = dict.fromkeys(paths, 0.0)
    ids = [i for i in range(len(model.vocabulary)) if model.vocabulary.kinds[i] != 3]
    beginnings = {path[:n] for path in paths for n in range(len(path))}
    total = 0.0

    def walk(string, probability, longest):
        nonlocal total
        if string in events:
            longest = string
        # Where no candidate path goes on, all longer strings belong to the same event.
        if len(string) == length or (string and string not in beginnings):
            total += probability
            if longest is not None:
                events[longest] += probability
            return
        probs = model.probs(prefix + string)
        for token in ids:
            walk((*string, token), probability * probs[token], longest)

    walk((), 1.0, None)
    assert abs(total - 1) < 1e-9
    return events


@pytest.fixture
def rows_of_scores(monkeypatch):
    """The rows of scores of both sides that the engine compares, by engine position."""
    seen, compared = {}, {}
    divergence, record = TorchComputation.divergence, OnPathEngine.record

    def spy(self, z_teacher, z_student, grad):
        compared.update(teacher=z_teacher.clone(), student=z_student.clone())
        return divergence(self, z_teacher, z_student, grad)

    def spy_units(self, units, divergences):
        for n, unit in enumerate(range(units.start, units.stop)):
            number = int(self.plan.units.order[unit])
            seen[number] = {side: z[n] for side, z in compared.items()}
        record(self, units, divergences)

    monkeypatch.setattr(TorchComputation, "divergence", spy)
    monkeypatch.setattr(OnPathEngine, "record", spy_units)
    return seen


def test_events_are_what_their_definition_says(rows_of_scores):
    checked = 0
    for seed in range(16):
        rows_of_scores.clear()
        checked += check_events(seed, rows_of_scores)
    assert checked > 40


def check_events(seed, rows_of_scores):
    """Compare every unit's events on both sides; return how many rows of scores were compared."""
    aligner = make_aligner(seed, size=4 + seed % 4, longest=4, duplicates=seed % 3, stops=(1, 2))
    rng = np.random.default_rng(seed)
    text = bytes(rng.choice([97, 98], 8).astype(np.uint8))
    ids, models, logits = {}, {}, {}
    for number, (side, v) in enumerate(
        (("teacher", aligner.teacher), ("student", aligner.student))
    ):
        ids[side] = random_spelling(random.Random(seed), v, text)
        models[side] = ToyModel(v, 2 * seed + number)
        logits[side] = torch.stack(
            [models[side].logits(tuple(ids[side][: n + 1])) for n in range(len(ids[side]))]
        )
    batch = aligner.align_batch([ids["teacher"]], [ids["student"]])
    index = batch.index(max_path=8)
    rows = {side: [ids[side]] for side in ids}
    starts = {"teacher": [0], "student": [0]}
    units = {u.number: u for u in twin_units(aligner, batch, rows, starts, 8)}
    loss_fn = SimCTLoss(aligner, candidates="on_path", score="event", metrics="full")
    loss_fn(teacher_logits=logits["teacher"], student_logits=logits["student"], index=index)
    checked = 0
    for position, number in enumerate(index.unit.tolist()):
        unit = units[number]
        for side, model in models.items():
            paths = [path for one in unit.candidates for path in getattr(one, side)]
            if max(map(len, paths)) > LONGEST:
                continue
            assert len(set(paths)) == len(paths)
            prefix = tuple(ids[side][: unit.rows[side] + 1])
            events = events_by_enumeration(model, prefix, paths)
            expected = [sum(events[p] for p in getattr(one, side)) for one in unit.candidates]
            assert sum(expected) <= 1 + 1e-9
            padding = torch.from_numpy(model.vocabulary.kinds == 3)
            scores, covered = side_scores(logits[side], padding, unit, side, "event", 1.0)
            torch.testing.assert_close(scores.exp(), torch.tensor(expected, dtype=torch.float64))
            torch.testing.assert_close(covered, torch.tensor(sum(expected), dtype=torch.float64))
            if position in rows_of_scores:
                z = logits[side][unit.rows[side]].masked_fill(padding, -torch.inf)
                ours = (rows_of_scores[position][side] - torch.logsumexp(z, 0)).exp()
                ours = ours[ours > 0].sort().values
                wanted = torch.tensor(sorted(expected), dtype=torch.float64)
                torch.testing.assert_close(ours, wanted)
                checked += 1
    return checked


def test_twelve_within_one():
    """The example of the design: the student's `1` contains its `1`,`2`; `12` is another token."""
    probabilities = list(itertools.product([0.5, 0.25], [0.6, 0.3]))
    for one, two_after_one in probabilities:
        # The student's tokens are 1 and 2, the teacher has 12 as well.
        event_of_one = one * (1 - two_after_one)
        event_of_twelve = one * two_after_one
        z = torch.tensor([[one, 1 - one], [1 - two_after_one, two_after_one]]).double().log()
        teacher = Vocabulary.from_token_bytes([b"1", b"2", b"12"])
        student = Vocabulary.from_token_bytes([b"1", b"2"])
        aligner = Aligner(teacher, student)
        # Behind a `2`, the text goes on with 1, then 1: that continues to be cut alike.
        index = aligner.align_batch([[1, 0, 0]], [[1, 0, 0]]).index(max_path=8)
        t = torch.full((2, 3), 1 / 3).double().log()
        loss_fn = SimCTLoss(aligner, candidates="on_path", score="event", metrics="full")
        out = loss_fn(
            teacher_logits=torch.cat([t, t[:1]]), student_logits=torch.cat([z, z[:1]]), index=index
        )
        s = torch.tensor([event_of_one, 1 - one, event_of_twelve]).double()
        expected = (s * (s * 3).log()).sum()
        torch.testing.assert_close(out.per_unit[0], expected)
