"""Slow twins of the losses: plain float64 loops straight from the formulas, slopes by autograd.

They share no helper with the library. A unit is a `PlainUnit` of `index_twin`; logits are flat.
"""

from __future__ import annotations

import torch


def _with(values, place, value):
    return torch.cat([values[:place], value[None], values[place + 1 :]])


def _side(logits, side, row, path, text, kind, score, temperature):
    """Scores of every candidate text on one side, and the coverage of C(h)."""
    z = logits[row : row + len(path)] / temperature
    z = torch.where(side.padding(z.shape[1]), -torch.inf, z)
    logp = torch.log_softmax(z, -1)
    values = z if score == "mean_logit" else logp
    scores, probs = values[0][side.shared_ids], logp[0][side.shared_ids].exp()
    if side.stop_column >= 0:
        stops = side.stop_ids
        scores = _with(scores, side.stop_column, torch.logsumexp(values[0][stops], 0))
        probs = _with(probs, side.stop_column, logp[0][stops].exp().sum())
    if kind != 1:
        return scores, probs.sum()
    steps = [logp[j][v] for j, v in enumerate(path)]
    joint = sum(steps)
    own = joint / len(path) if score == "mean" else joint
    if score == "mean_logit":
        own = sum(z[j][v] for j, v in enumerate(path)) / len(path)
    if len(path) > 1 and path[0] in side.shared_ids:
        # That token's event excludes going on with the path.
        parent = side.shared_ids.index(path[0])
        probs = _with(probs, parent, probs[parent] - joint.exp())
        if score == "event":
            left = 1 - sum(steps[1:]).exp()
            left = left if left > 1e-6 else torch.full_like(left, 1e-6)
            scores = _with(scores, parent, scores[parent] + left.log())
    is_column = len(path) == 1 and path[0] in side.shared_ids
    coverage = probs.sum() if is_column else probs.sum() + joint.exp()
    if text not in side.texts:
        return torch.cat([scores, own[None]]), coverage
    column = side.texts.index(text)  # the text counts once
    if score in ("mean", "mean_logit"):
        scores = _with(scores, column, own)
    elif path != (side.shared_ids[column],):
        scores = _with(scores, column, torch.logaddexp(scores[column], own))
    return scores, coverage


def reverse_kl(s, t):
    return (s.exp() * (s - t)).sum()


def forward_kl(s, t):
    return (t.exp() * (t - s)).sum()


def tvd(s, t):
    return (s.exp() - t.exp()).abs().sum() / 2


def jsd(beta):
    def value(s, t):
        m = ((1 - beta) * s.exp() + beta * t.exp()).log()
        return beta * (t.exp() * (t - m)).sum() + (1 - beta) * (s.exp() * (s - m)).sum()

    return value


def skewed_forward_kl(alpha):
    return lambda s, t: (t.exp() * (t - (alpha * t.exp() + (1 - alpha) * s.exp()).log())).sum()


def skewed_reverse_kl(alpha):
    return lambda s, t: (s.exp() * (s - (alpha * s.exp() + (1 - alpha) * t.exp()).log())).sum()


def simct_twin(
    student,
    teacher,
    pair,
    units,
    *,
    score="mean",
    divergence=reverse_kl,
    temperature=1.0,
    candidates="realized",
    min_teacher_mass=0.0,
):
    """Divergence, teacher coverage and student coverage of every unit, in the order of `units`."""
    per_unit, coverage = [], []
    for unit in units:
        if candidates == "shared" and unit.kind == 1:
            continue
        t, t_cover = _side(
            teacher, pair.teacher_side, unit.teacher_row, unit.teacher_path, unit.text, unit.kind,
            score, temperature,
        )  # fmt: skip
        s, s_cover = _side(
            student, pair.student_side, unit.student_row, unit.student_path, unit.text, unit.kind,
            score, temperature,
        )  # fmt: skip
        value = divergence(torch.log_softmax(s, -1), torch.log_softmax(t, -1))
        kept = t_cover >= min_teacher_mass
        per_unit.append(value if kept else 0.0 * value)
        coverage.append((t_cover.detach(), s_cover.detach()))
    return (torch.stack(per_unit) if per_unit else student.reshape(-1)[:0]), coverage


def _flat_log_probs(logits, side, temperature):
    z = torch.where(side.padding(logits.shape[1]), -torch.inf, logits / temperature)
    return torch.log_softmax(z, -1)


def uld_twin(student, teacher, pair, units, *, top_k=None, temperature=1.0):
    """Sorted-probability L1 at units of one token on both sides."""
    s = _flat_log_probs(student, pair.student_side, temperature).exp()
    t = _flat_log_probs(teacher, pair.teacher_side, temperature).exp()
    out = []
    for unit in (u for u in units if u.kind != 1):
        p, q = sorted(s[unit.student_row], reverse=True), sorted(t[unit.teacher_row], reverse=True)
        if top_k is not None:
            p, q = [*p[:top_k], sum(p[top_k:])], [*q[:top_k], sum(q[top_k:])]
        longest = max(len(p), len(q))
        p, q = p + [0.0] * (longest - len(p)), q + [0.0] * (longest - len(q))
        out.append(sum(abs(a - b) for a, b in zip(p, q, strict=True)))
    return torch.stack(out)


def alm_twin(student, teacher, pair, units, *, tau=100.0, temperature=1.0):
    """Binarised divergence of unit probabilities."""
    s = _flat_log_probs(student, pair.student_side, temperature)
    t = _flat_log_probs(teacher, pair.teacher_side, temperature)
    out = []
    for unit in units:
        log_q = sum(s[unit.student_row + j][v] for j, v in enumerate(unit.student_path))
        log_p = sum(t[unit.teacher_row + j][v] for j, v in enumerate(unit.teacher_path))
        if tau == float("inf"):
            out.append(-log_p * (log_p / log_q).log() + log_p - log_q)
            continue
        p, q = (log_p / tau).exp(), (log_q / tau).exp()
        out.append(p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
    return torch.stack(out)


def gold_twin(student, teacher, pair, units, *, beta=0.5, weights=None, temperature=1.0):
    """JSD over shared tokens, sorted L1 over the others, path probabilities multiplied in."""
    logs = [
        _flat_log_probs(student, pair.student_side, temperature),
        _flat_log_probs(teacher, pair.teacher_side, temperature),
    ]
    out = []
    for unit in units:
        matched, rest = [], []
        for logp, side, row, path in (
            (logs[0], pair.student_side, unit.student_row, unit.student_path),
            (logs[1], pair.teacher_side, unit.teacher_row, unit.teacher_path),
        ):
            probs = logp[row].exp()
            for j, v in list(enumerate(path))[1:]:
                probs = probs * logp[row + j][v].exp()
            matched.append(probs[side.shared_ids].clamp_min(1e-8))
            others = [p for i, p in enumerate(probs) if i not in set(side.shared_ids)]
            rest.append(sorted(others, reverse=True))
        s, t = matched
        m = (1 - beta) * s + beta * t
        jsd = beta * (t * (t / m).log()).sum() + (1 - beta) * (s * (s / m).log()).sum()
        if beta in (0.0, 1.0):
            jsd = (t * (t / s).log()).sum() if beta == 0.0 else (s * (s / t).log()).sum()
        p, q = rest
        longest = max(len(p), len(q))
        p, q = p + [0.0] * (longest - len(p)), q + [0.0] * (longest - len(q))
        share = len(pair.teacher_side.shared_ids) / teacher.shape[1]
        w = weights or (share, 1 - share)
        out.append(w[0] * jsd + w[1] * sum(abs(a - b) for a, b in zip(p, q, strict=True)))
    return torch.stack(out)


def strict_twin(student, teacher, pair, units, *, top_k=None, temperature=1.0):
    """Reverse KL at units of one token on both sides, over shared tokens only."""
    s = _flat_log_probs(student, pair.student_side, temperature).exp()
    t = _flat_log_probs(teacher, pair.teacher_side, temperature).exp()
    out = []
    for unit in (u for u in units if u.kind != 1):
        both = []
        for probs, side, row in (
            (s, pair.student_side, unit.student_row),
            (t, pair.teacher_side, unit.teacher_row),
        ):
            kept = [probs[row][i] for i in side.shared_ids]
            if side.stop_column >= 0:
                kept[side.stop_column] = sum(probs[row][i] for i in side.stop_ids)
            both.append(kept)
        p, q = both
        kept = sorted(range(len(p)), key=lambda i: -p[i].item())[:top_k]
        p_sum, q_sum = sum(p[i] for i in kept), sum(q[i] for i in kept)
        out.append(sum(p[i] / p_sum * (p[i] / p_sum / (q[i] / q_sum)).log() for i in kept))
    return torch.stack(out)


def _names(pair):
    """What every student id says, and every teacher id at the start of a unit."""
    own = pair.student_side
    texts = {text for i, text in enumerate(own.token_bytes) if own.kinds[i] == 0}
    student = []
    for i, text in enumerate(own.token_bytes):
        is_stop = own.stop_column >= 0 and i in own.stop_ids
        student.append(text if own.kinds[i] == 0 else "stop" if is_stop else ("special", i))
    side = pair.teacher_side
    mapped = {
        v: ("special", u)
        for v, u, text in zip(side.shared_ids, own.shared_ids, side.texts, strict=True)
        if text is None
    }
    teacher = []
    for v, text in enumerate(side.token_bytes):
        if side.kinds[v] == 0:
            teacher.append(_longest(texts, text))
        elif side.stop_column >= 0 and v in side.stop_ids:
            teacher.append("stop")
        else:
            teacher.append(mapped.get(v, "residual"))
    return texts, student, teacher


def _longest(texts, data):
    return next((data[:n] for n in range(len(data), 0, -1) if data[:n] in texts), "residual")


def _by_name(names, probs):
    found = {}
    for name, p in zip(names, probs, strict=False):
        found[name] = found.get(name, 0.0) + p
    return found


def bpm_twin(student, teacher, pair, units, *, beta=0.5, skip_whitespace=False, temperature=1.0):
    """JSD of the student and the teacher's tokens by their longest student tokens."""
    s = _flat_log_probs(student, pair.student_side, temperature).exp()
    t = _flat_log_probs(teacher, pair.teacher_side, temperature).exp()
    texts, own_names, names = _names(pair)
    own_bytes, token_bytes = pair.student_side.token_bytes, pair.teacher_side.token_bytes

    def beginning(row, text):
        return [v for v in range(len(token_bytes)) if token_bytes[v].startswith(text)], t[row]

    out = []
    for unit in units:
        total = 0.0 * s[unit.student_row].sum()
        spans, at = [], 0
        for v in unit.teacher_path:
            spans.append((at, at + len(token_bytes[v])))
            at = spans[-1][1]
        start = 0
        for j, u in enumerate(unit.student_path):
            end = start + len(own_bytes[u])
            k = next((k for k, span in enumerate(spans) if span[0] <= start < span[1]), 0)
            c = unit.text[spans[k][0] : start]
            row = t[unit.teacher_row + k]
            if not c:
                mass, found = 1.0, _by_name(names, row)
            else:
                tokens, _ = beginning(unit.teacher_row + k, c)
                mass, found = sum(row[v] for v in tokens), {}
                for v in tokens:
                    name = _longest(texts, token_bytes[v][len(c) :])
                    found[name] = found.get(name, 0.0) + row[v] / mass
            if end > spans[k][1]:
                path, m = row[unit.teacher_path[k]] / mass, k + 1
                while spans[m][1] < end:
                    path = path * t[unit.teacher_row + m][unit.teacher_path[m]]
                    m += 1
                rest, last = beginning(unit.teacher_row + m, unit.text[spans[m][0] : end])
                path = path * sum(last[v] for v in rest)
                found[own_names[u]] = found.get(own_names[u], 0.0) + path
            p = _by_name(own_names, s[unit.student_row + j])
            if not (skip_whitespace and own_bytes[u].isspace()):
                for name in {*p, *found}:
                    x, y = p.get(name, 0.0), found.get(name, 0.0)
                    m = (1 - beta) * x + beta * y
                    total = total + (beta * y * (y / m).log() if y > 0 else 0.0)
                    total = total + ((1 - beta) * x * (x / m).log() if x > 0 else 0.0)
            start = end
        out.append(total)
    return torch.stack(out)


def escd_twin(student, teacher, pair, units, *, temperature=1.0):
    """KL to the projected teacher, and the rest of the teacher's one-sided tokens."""
    s = _flat_log_probs(student, pair.student_side, temperature).exp()
    t = _flat_log_probs(teacher, pair.teacher_side, temperature).exp()
    texts, own_names, names = _names(pair)
    own_bytes, side = pair.student_side.token_bytes, pair.teacher_side
    one_sided = [
        v for v, text in enumerate(side.token_bytes) if side.kinds[v] == 0 and text not in texts
    ]
    groups = {}
    for v in one_sided:
        begins = [b for w in one_sided if side.token_bytes[v].startswith(b := side.token_bytes[w])]
        groups.setdefault(min(begins, key=len), []).append(v)
    read = {unit.student_row for unit in units}
    out = []
    for unit in units:
        p = _by_name(own_names, s[unit.student_row])
        q = _by_name(names, t[unit.teacher_row])
        total = 0.0
        for name, y in q.items():
            if name != "residual" and y > 0:
                total = total + y * (y / p[name]).log()
        a, after = own_bytes[unit.student_path[0]], unit.student_row + 1
        if a and (len(unit.student_path) > 1 or after in read):
            for y, members in groups.items():
                rest = [i for i, text in enumerate(own_bytes) if text.startswith(y[len(a) :])]
                if y.startswith(a) and rest:
                    weight = sum(t[unit.teacher_row][v] for v in members)
                    total = total - weight * sum(s[after][i] for i in rest).log()
        out.append(total)
    return torch.stack(out)
