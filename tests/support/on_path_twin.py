"""The slow twin of the loss over on-path continuations: texts, paths and events by definition.

It finds continuations without tries or tables: every one-sided token is spelled by a plain
dynamic program and held against the realized tokens. A candidate is a text with its distinct paths
on either side; scores and events come from enumerating paths, slopes from autograd.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from support.spelling import canonical_ids, fewest_tokens


@dataclass
class Candidate:
    """A text, or all stops, and its paths; `realized` where the text took it at a MULTI unit."""

    teacher: list
    student: list
    realized: tuple | None = None


@dataclass
class TwinUnit:
    number: int
    kind: int
    rows: dict
    candidates: list = field(default_factory=list)


def realized_tokens(batch, side, row, unit, ids, vocabulary):
    """The ids from a unit on, up to the end of what is in units without a gap."""
    start, end = getattr(batch, f"{side}_start"), getattr(batch, f"{side}_end")
    other = "student" if side == "teacher" else "teacher"
    other_start, other_end = getattr(batch, f"{other}_start"), getattr(batch, f"{other}_end")
    out, u = [], unit
    while u < batch.row_offsets[row + 1] and batch.kind[u] != 2:
        if u > unit and (start[u] != end[u - 1] or other_start[u] != other_end[u - 1]):
            break
        out += [int(i) for i in ids[row][start[u] : end[u]]]
        u += 1
    assert all(vocabulary.token_bytes(i) for i in out)
    return tuple(out)


def twin_units(aligner, batch, ids, row_starts, max_path):
    """All units that have a prefix, with their candidates, in the order of the batch."""
    vocabularies = {"teacher": aligner.teacher, "student": aligner.student}
    tokens = {side: canonical_ids(v) for side, v in vocabularies.items()}
    shared = aligner.shared
    spellings = {
        side: {
            token: fewest_tokens(text, tokens[other])
            for text, token in tokens[side].items()
            if text not in tokens[other]
        }
        for side, other in (("teacher", "student"), ("student", "teacher"))
    }
    out = []
    for row in range(len(batch.row_offsets) - 1):
        for u in range(batch.row_offsets[row], batch.row_offsets[row + 1]):
            if batch.teacher_start[u] == 0 or batch.student_start[u] == 0:
                continue
            rows, realized, ahead = {}, {}, {}
            for side, vocabulary in vocabularies.items():
                a = int(getattr(batch, f"{side}_start")[u])
                b = int(getattr(batch, f"{side}_end")[u])
                rows[side] = int(row_starts[side][row]) + a - 1
                realized[side] = tuple(int(i) for i in ids[side][row][a:b])
                ahead[side] = realized_tokens(batch, side, row, u, ids[side], vocabulary)
            unit = TwinUnit(u, int(batch.kind[u]), rows)
            by_text = {}
            for column, (t, s) in enumerate(
                zip(shared.teacher_ids.tolist(), shared.student_ids.tolist(), strict=True)
            ):
                text = aligner.teacher.token_bytes(t) or f"special {column}"
                if column == shared.stop_column:
                    teacher = [(int(i),) for i in shared.teacher_stop_ids]
                    student = [(int(i),) for i in shared.student_stop_ids]
                    by_text[text] = Candidate(teacher, student)
                else:
                    by_text[text] = Candidate([(t,)], [(s,)])
            if unit.kind != 2:
                for side, other in (("teacher", "student"), ("student", "teacher")):
                    for token, path in spellings[side].items():
                        if path is None or len(path) - 1 > max_path:
                            continue
                        if ahead[other][: len(path) - 1] == path[:-1] and len(path) > 1:
                            text = vocabularies[side].token_bytes(token)
                            assert text not in by_text
                            paths = {side: [(token,)], other: [path]}
                            by_text[text] = Candidate(**paths)
            if unit.kind == 1:
                text = b"".join(aligner.teacher.token_bytes(i) for i in realized["teacher"])
                found = by_text.setdefault(text, Candidate([], []))
                found.realized = (realized["teacher"], realized["student"])
                for side in vocabularies:
                    paths = getattr(found, side)
                    if realized[side] not in paths:
                        paths.append(realized[side])
            unit.candidates = list(by_text.values())
            out.append(unit)
    return out


def side_scores(logits, padding, unit, side, score, temperature):
    """Scores of all candidates of a unit on one side, and the probability of all events."""
    z = torch.where(padding, -torch.inf, logits / temperature)
    logp = {}

    def log_prob(depth, token):
        row = unit.rows[side] + depth
        if row not in logp:
            logp[row] = torch.log_softmax(z[row], -1)
        return logp[row][token]

    joint = {}
    for candidate in unit.candidates:
        for path in getattr(candidate, side):
            joint[path] = sum(log_prob(depth, token) for depth, token in enumerate(path))
    below = {path: [] for path in joint}
    top = []
    for path in joint:
        above = [path[:n] for n in range(1, len(path)) if path[:n] in joint]
        (below[above[-1]] if above else top).append(path)
    events = {}
    for path, children in below.items():
        events[path] = joint[path]
        if children:
            left = 1 - sum((joint[child] - joint[path]).exp() for child in children)
            left = left if left > 1e-6 else torch.full_like(left, 1e-6)
            events[path] = joint[path] + left.log()
    scores = []
    for candidate in unit.candidates:
        paths = getattr(candidate, side)
        if score == "mean":
            if candidate.realized is not None:
                paths = [candidate.realized[side == "student"]]
            means = [joint[path] / len(path) for path in paths]
            scores.append(torch.logsumexp(torch.stack(means), 0))
        else:
            source = joint if score == "sum" else events
            scores.append(torch.logsumexp(torch.stack([source[path] for path in paths]), 0))
    return torch.stack(scores), sum(joint[path].exp() for path in top)


def on_path_twin(student, teacher, aligner, units, *, score, divergence, temperature=1.0,
                 min_teacher_mass=0.0):  # fmt: skip
    """Divergence of every unit, and both sides' coverage."""
    per_unit, coverage = [], []
    flat = {"teacher": teacher, "student": student}
    padding = {}
    for side, vocabulary in (("teacher", aligner.teacher), ("student", aligner.student)):
        padding[side] = torch.ones(flat[side].shape[1], dtype=torch.bool)
        padding[side][: len(vocabulary)] = torch.from_numpy(vocabulary.kinds == 3)
    for unit in units:
        scores, covered = {}, {}
        for side in flat:
            scores[side], covered[side] = side_scores(
                flat[side], padding[side], unit, side, score, temperature
            )
        value = divergence(
            torch.log_softmax(scores["student"], -1), torch.log_softmax(scores["teacher"], -1)
        )
        per_unit.append(value if covered["teacher"] >= min_teacher_mass else 0.0 * value)
        coverage.append((covered["teacher"].detach(), covered["student"].detach()))
    return torch.stack(per_unit), torch.tensor(coverage)
