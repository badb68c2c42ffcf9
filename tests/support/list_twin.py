"""`SimCTLoss` for a teacher of which only lists are known, in float64 from the definition."""

from __future__ import annotations

import math

import torch

from support import loss_twins

FLOOR = 1e-6


def _teacher(lists, side, unit, score):
    """Scores of the candidates, None where nothing is listed; None if the path is not listed."""
    listed = lists[unit.teacher_row]
    scores = [math.log(listed[v]) if v in listed else None for v in side.shared_ids]
    if side.stop_column >= 0:
        stops = sum(listed[v] for v in side.stop_ids if v in listed)
        scores[side.stop_column] = math.log(stops) if stops else None
    if unit.kind != 1:
        return None if all(value is None for value in scores) else scores
    steps = [lists[unit.teacher_row + j].get(v) for j, v in enumerate(unit.teacher_path)]
    if None in steps:
        return None
    steps = [math.log(p) for p in steps]
    own = sum(steps) / (len(steps) if score == "mean" else 1)
    first = unit.teacher_path[0]
    if score == "event" and len(steps) > 1 and first in side.shared_ids:
        scores[side.shared_ids.index(first)] += math.log(max(1 - math.exp(sum(steps[1:])), FLOOR))
    if unit.text not in side.texts:
        return [*scores, own]
    column = side.texts.index(unit.text)
    if score == "mean" or scores[column] is None:
        scores[column] = own
    elif unit.teacher_path != (side.shared_ids[column],):
        scores[column] = math.log(math.exp(scores[column]) + math.exp(own))
    return scores


def unlisted(listed, side):
    """The probability of all tokens that a list lacks together."""
    tokens = {token for token in range(len(side.kinds)) if side.kinds[token] != 3}
    return 0.0 if tokens <= set(listed) else 1.0 - sum(listed.values())


def simct_list_twin(student, lists, pair, units, divergence, *, score="mean", temperature=1.0):
    """The values of all units, 0 where a unit is left out, and whether each is left out."""
    values, left_out = [], []
    for unit in units:
        teacher = _teacher(lists, pair.teacher_side, unit, score)
        left_out.append(teacher is None)
        if teacher is None:
            values.append(0.0 * student.sum())
            continue
        scores, _ = loss_twins._side(
            student, pair.student_side, unit.student_row, unit.student_path, unit.text, unit.kind,
            score, temperature,
        )  # fmt: skip
        lacks = torch.tensor([value is None for value in teacher])
        t = torch.tensor([v for v in teacher if v is not None], dtype=torch.float64)
        s = scores[~lacks]
        if lacks.any():
            u = max(unlisted(lists[unit.teacher_row], pair.teacher_side), FLOOR)
            t = torch.cat([t, torch.tensor([math.log(u)], dtype=torch.float64)])
            s = torch.cat([s, scores[lacks].logsumexp(0)[None]])
        values.append(divergence(torch.log_softmax(s, -1), torch.log_softmax(t, -1)))
    return torch.stack(values) if values else student.reshape(-1)[:0], left_out
