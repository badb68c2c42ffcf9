"""Text events from their definition, in float64: all tokens, all prefixes, no tree of a pair.

Everything is found in byte strings: stretches in the units of a batch, offsets and sources in the
tokens' bytes, the events in the strings of both vocabularies. Values are differentiable by the
student's logits.
"""

from __future__ import annotations

import bisect
import functools
from dataclasses import dataclass, field

import numpy as np
import torch

MULTI_OR_SHARED, TRIMMED, REACH, DUMMY_PREFIX = (0, 1), 32, 64, 4
STOP = "stop"


@dataclass(eq=False)
class Side:
    """A vocabulary, the ids and logits of a batch, and its rows' places in the logits."""

    name: str
    vocabulary: object
    stops: list
    ids: list
    logits: torch.Tensor
    starts: list
    temperature: float = 1.0
    #: {token: probability} of every row, for a teacher of which only these are known.
    lists: list | None = None
    strings: dict = field(default_factory=dict)

    def __post_init__(self):
        kinds = self.vocabulary.kinds
        for token in range(len(self.vocabulary)):
            text = self.vocabulary.token_bytes(token)
            if kinds[token] in (0, 1) and text:
                self.strings.setdefault(text, []).append(token)
        self.ordered = sorted(self.strings)
        self.beginnings = {text[:n] for text in self.strings for n in range(len(text) + 1)}
        self.padding = torch.ones(self.logits.shape[-1], dtype=torch.bool)
        self.padding[: len(kinds)] = torch.from_numpy(np.asarray(kinds) == 3)

    @functools.cache  # noqa: B019
    def below(self, beginning):
        """The set of token strings that begin with a string."""
        start = end = bisect.bisect_left(self.ordered, beginning)
        while end < len(self.ordered) and self.ordered[end].startswith(beginning):
            end += 1
        return frozenset(self.ordered[start:end])

    @functools.cache  # noqa: B019
    def probs(self, row, position):
        if self.lists is not None:
            p = torch.zeros(len(self.vocabulary), dtype=torch.float64)
            for token, value in self.lists[self.starts[row] + position].items():
                p[token] = value
            return p
        z = self.logits[self.starts[row] + position] / self.temperature
        return z.masked_fill(self.padding, -torch.inf).double().softmax(-1)

    def lists_token(self, row, position, token):
        return self.lists is None or token in self.lists[self.starts[row] + position]

    def unlisted(self, row, position):
        """The probability of all tokens that a row does not list together."""
        known = () if self.lists is None else self.lists[self.starts[row] + position]
        tokens = {t for t in range(len(self.vocabulary)) if self.vocabulary.kinds[t] != 3}
        return 0.0 if self.lists is None or tokens <= set(known) else 1.0 - sum(known.values())


@dataclass
class Stretch:
    """Token ranges of both sides, and whether a token that takes part follows on both."""

    row: int
    ranges: dict
    has_end: bool
    #: The side whose tokens begin with a dummy prefix, one byte before the text.
    lead: str | None = None


def stretches(batch, sides):
    """Maximal runs of units that both sides cover without anything in between."""
    found = []
    for row in range(len(batch)):
        run = None
        for u in range(*batch.row_offsets[row : row + 2]):
            at = {
                s.name: (int(getattr(batch, f"{s.name}_start")[u]),
                         int(getattr(batch, f"{s.name}_end")[u]))
                for s in sides
            }  # fmt: skip
            if batch.kind[u] not in MULTI_OR_SHARED:
                run = None
                continue
            is_trimmed = batch.unit_class[u] & TRIMMED
            if (
                run
                and not is_trimmed
                and all(run.ranges[name][1] == start for name, (start, _) in at.items())
            ):
                for name, (_, end) in at.items():
                    run.ranges[name] = (run.ranges[name][0], end)
            else:
                run = Stretch(row, dict(at), has_end=False)
                if is_trimmed:
                    sizes = {
                        s.name: sum(
                            len(s.vocabulary.token_bytes(int(i)))
                            for i in s.ids[row][slice(*at[s.name])]
                        )
                        for s in sides
                    }
                    run.lead = max(sizes, key=sizes.get)
                spans = batch.unmatched
                for span in range(*spans.row_offsets[row : row + 2]):
                    for s in sides:
                        start, end = (
                            int(getattr(spans, f"{s.name}_{what}")[span])
                            for what in ("start", "end")
                        )
                        is_dummy = spans.reason[span] == DUMMY_PREFIX
                        if is_dummy and start < end == at[s.name][0]:
                            run.lead, run.ranges[s.name] = s.name, (start, at[s.name][1])
                if any(start == 0 for start, _ in run.ranges.values()):
                    run = None
                else:
                    found.append(run)
    for run in found:
        run.has_end = all(
            run.ranges[s.name][1] < len(s.ids[run.row])
            and (
                getattr(batch, s.name).mask is None
                or getattr(batch, s.name).mask[
                    getattr(batch, s.name).offsets[run.row] + run.ranges[s.name][1]
                ]
            )
            for s in sides
        )
    return found


class Walk:
    """One side of a stretch."""

    def __init__(self, side, stretch):
        self.side = side
        self.row = stretch.row
        first, end = stretch.ranges[side.name]
        self.first = first
        self.ids = [int(i) for i in side.ids[stretch.row][first:end]]
        self.texts = [side.vocabulary.token_bytes(i) for i in self.ids]
        lead = int(stretch.lead not in (None, side.name))
        self.text = b" " * lead + b"".join(self.texts)
        self.at = [lead]
        for text in self.texts:
            self.at.append(self.at[-1] + len(text))

    def probs(self, slot):
        return self.side.probs(self.row, self.first + slot - 1)

    def token_from(self, offset):
        slot = self.at.index(offset) if offset in self.at else len(self.ids)
        return self.texts[slot] if slot < len(self.ids) else None

    def lists_token(self, slot, token):
        return self.side.lists_token(self.row, self.first + slot - 1, token)

    def items(self, offset, begin):
        """What the sources say about an offset.

        Returns:
            (suffix or STOP, mass, whether of the own row, whether listed) of every token; E(c,
            empty); unlisted mass; whether the lists lack a probability that masses need.
        """
        weight, items, ended, unlisted = torch.ones((), dtype=torch.float64), [], [], []
        slots_with_mass, tokens_at_all, lacking = [], False, set()
        for slot, at in enumerate(self.at):
            if at > offset or slot > len(self.ids):
                break
            if at < begin:
                continue
            begun = self.text[at:offset]
            share = self.side.unlisted(self.row, self.first + slot - 1)
            if at == offset:
                p = self.probs(slot)
                listed = any(self.lists_token(slot, s) for s in self.side.stops)
                stops = [p[s] for s in self.side.stops]
                items += [(STOP, weight * sum(stops), True, listed)] if stops else []
                unlisted.append(weight * share)
            if at == offset or (offset - at <= REACH and begun in self.side.beginnings):
                p, mass, lacks_some = self.probs(slot), 0.0, False
                for text in self.side.below(begun):
                    for token in self.side.strings[text]:
                        listed = self.lists_token(slot, token)
                        if at == offset or len(text) > len(begun):
                            items.append(
                                (text[len(begun) :], weight * p[token], at == offset, listed)
                            )
                        elif not (self.at[slot + 1] == offset and token == self.ids[slot]):
                            ended.append(weight * p[token])
                        else:
                            continue
                        tokens_at_all, mass = True, mass + float(p[token].detach())
                        lacks_some = lacks_some or not listed
                if at == offset:
                    mass += float(sum(p[s].detach() for s in self.side.stops))
                elif lacks_some and mass > 0:
                    unlisted.append(weight * mass * share / (1 - share))
                if mass > 0 or at == offset:
                    slots_with_mass.append((slot, mass))
            if slot < len(self.ids):
                if self.lists_token(slot, self.ids[slot]):
                    weight = weight * self.probs(slot)[self.ids[slot]]
                else:
                    lacking.add(slot)
        relevant = [slot for slot, mass in slots_with_mass if mass > 0 or self.at[slot] == offset]
        unknown = bool(lacking & set(range(relevant[0], relevant[-1]))) if relevant else False
        if not any(mass > 0 for _, mass in slots_with_mass) and self.side.lists is not None:
            unknown = tokens_at_all or offset in self.at
        return items, ended, unlisted, unknown


@functools.cache
def nodes(teacher, student):
    """The two-sided strings at which something changes, of which the children are."""
    two_sided = teacher.beginnings & student.beginnings
    either = teacher.beginnings | student.beginnings
    children = {}
    for z in either:
        if z:
            children.setdefault(z[:-1], []).append(z in two_sided)
    return {
        z
        for z in two_sided
        if not z
        or z in teacher.strings
        or z in student.strings
        or sum(children.get(z, [])) > 1
        or not all(children.get(z, [True]))
    }


def total(values):
    return sum(values, torch.zeros((), dtype=torch.float64))


def leaves(teacher, student, offset, begin, epsilon, straddled):
    """{leaf: (teacher's mass, student's mass)} at an offset, and what it is; {} if left out."""
    found = {w.side.name: w.items(offset, begin) for w in (teacher, student)}
    own = {w.side.name: offset in w.at for w in (teacher, student)}
    both_own = all(own.values())
    kind, reached = "tree" if both_own else "one row", {}
    if any(unknown for *_, unknown in found.values()):
        return {}, "unlisted"
    for w in (teacher, student):
        items, ended, unlisted, _ = found[w.side.name]
        mass, gone = total(m for _, m, _, _ in items) + total(unlisted), total(ended)
        if mass + gone <= 0 or gone > epsilon * (mass + gone):
            return {}, "left out"
        straddling = total(m for _, m, is_own, _ in items if not is_own)
        if both_own and straddled == "byte" and straddling > epsilon * (mass + gone):
            kind = "next byte"
        reached[w.side.name] = {
            text[:n] for text, *_ in items if text is not STOP for n in range(len(text) + 1)
        }
    deep = kind == "tree" or straddled == "tree"
    sides = (teacher.side, student.side)
    out, listing = {}, {}

    def add(leaf, name, mass, flags=()):
        """`flags`: whether each of the tokens is listed."""
        pair = out.setdefault(leaf, {"teacher": [], "student": []})
        pair[name].append(mass)
        if name == "teacher":
            listing.setdefault(leaf, []).extend(flags)

    def child_of(z, text):
        known = nodes(*sides)
        child = next(
            (text[:n] for n in range(len(z) + 1, len(text) + 1) if text[:n] in known), None
        )
        return child if child and all(child in reached[s.name] for s in sides) else None

    def is_same(z):
        return z and both_own and sides[0].below(z) == sides[1].below(z)

    def visit(z, masses):
        """Open or close a node, given the (suffix, mass, listed) of either side that begin so."""
        all_of = {n: total(m for _, m, _ in of) for n, of in masses.items()}
        ends = {n: total(m for text, m, _ in of if text == z) for n, of in masses.items()}
        can = all(ends[n] <= epsilon * max(all_of[n], 1e-12 * whole[n]) for n in masses)
        can = (can or is_same(z)) and any(listed for _, _, listed in masses["teacher"])
        if z and not (deep and can):
            for n, of in masses.items():
                add(z, n, total(m for _, m, _ in of), [listed for _, _, listed in of])
            return
        by_child = {}
        for n, of in masses.items():
            for text, m, listed in of:
                if text == z:
                    add((z, "exact") if is_same(z) else (z, "rest"), n, m, [listed])
                elif child := child_of(z, text):
                    pair = by_child.setdefault(child, {"teacher": [], "student": []})
                    pair[n].append((text, m, listed))
                else:
                    add((z, "rest"), n, m, [listed])
        for child, of_child in by_child.items():
            visit(child, of_child)

    masses, root_rest = {}, (b"", "rest")
    for n, (items, ended, unlisted, _) in found.items():
        masses[n] = [(text, m, listed) for text, m, _, listed in items if text is not STOP]
        add(root_rest, n, total(ended) + total(unlisted))
        stops = [(m, listed) for text, m, _, listed in items if text is STOP]
        flags = [listed for _, listed in stops]
        add(STOP if both_own else root_rest, n, total(m for m, _ in stops), flags)
    whole = {n: total(m for _, m, _ in of) for n, of in masses.items()}
    visit(b"", masses)
    for leaf in [leaf for leaf, flags in listing.items() if flags and not any(flags)]:
        if leaf != root_rest:
            for n, of in out.pop(leaf).items():
                out[root_rest][n].extend(of)
    return {leaf: {n: total(ms) for n, ms in of.items()} for leaf, of in out.items()}, kind


def text_twin(batch, teacher, student, divergence, *, epsilon=0.02, floor=1e-6, straddled="byte"):
    """[(row, offset in the stretch, kind, divergence)] of every counted offset, in order."""
    out = []
    for stretch in stretches(batch, (teacher, student)):
        walks = Walk(teacher, stretch), Walk(student, stretch)
        assert walks[0].text == walks[1].text
        begin = 0
        for offset in sorted({*walks[0].at, *walks[1].at}):
            if offset == walks[0].at[-1] and not stretch.has_end:
                continue
            if stretch.lead and offset == 0:
                continue
            value = torch.zeros((), dtype=torch.float64)
            events, kind = leaves(*walks, offset, begin, epsilon, straddled)
            if events:
                q = torch.stack([of["student"] for of in events.values()])
                p = torch.stack([of["teacher"] for of in events.values()])
                some = (q > 0) | (p > 0)
                q, p = q[some] / q.sum(), (p[some] / p.sum()).clamp_min(floor)
                value = divergence(q, p)
            out.append((stretch.row, offset, kind, value))
            own = [w.token_from(offset) for w in walks if offset in w.at]
            if len(own) == 2 and own[0] is not None and own[0] == own[1]:
                z = own[0]
                if teacher.below(z) == student.below(z):
                    restart = offset + len(z)
                    begin = restart if begin <= restart else begin
    return out
