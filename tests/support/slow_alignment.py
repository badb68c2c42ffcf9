"""Slow twins of the engine: plain Python over lists of byte strings, quadratic, no helper shared.

`common_boundaries` knows nothing but cumulative lengths and holds for texts that both sides spell
alike. `align_region` obeys every rule: specials, dummy prefix, truncation, resynchronization.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

WINDOW_BYTES = 4096
WHITE_SPACE = frozenset(
    [*range(9, 14), 32, 133, 160, 5760, *range(8192, 8203), 8232, 8233, 8239, 8287, 12288]
)
Span = tuple[int, int, int, int]
"""teacher start, teacher end, student start, student end: half-open token positions"""


def common_boundaries(teacher: Sequence[bytes], student: Sequence[bytes]) -> list[Span]:
    """Cut two spellings of the same bytes, without empty tokens, at every common boundary."""
    assert b"".join(teacher) == b"".join(student)
    ends: list[dict[int, int]] = []
    for tokens in (teacher, student):
        length, places = 0, {0: 0}
        for position, token in enumerate(tokens):
            assert token
            length += len(token)
            places[length] = position + 1
        ends.append(places)
    common = sorted(set(ends[0]) & set(ends[1]))
    places_t, places_s = ends
    units = []
    for begin, end in itertools.pairwise(common):
        span = (places_t[begin], places_t[end], places_s[begin], places_s[end])
        assert b"".join(teacher[span[0] : span[1]]) == b"".join(student[span[2] : span[3]])
        units.append(span)
    return units


def columns(spans: Any, tags: Any, row: int) -> list[Any]:
    """A row of spans as tuples: the four ends, and the tags beside them."""
    here = slice(spans.row_offsets[row], spans.row_offsets[row + 1])
    ranges = (spans.teacher_start, spans.teacher_end, spans.student_start, spans.student_end)
    return list(zip(*(array[here].tolist() for array in (*ranges, *tags)), strict=True))


def unit_class(units_bytes: bytes, token_bytes: Sequence[bytes], *, trimmed: bool) -> int:
    """Class bits of a unit with text: `token_bytes` are its tokens' own bytes, of both sides."""
    bits = 8 if max(units_bytes) >= 0x80 else 0
    bits |= 32 if trimmed else 0
    bits |= 16 if any(t.decode(errors="ignore").encode() != t for t in token_bytes) else 0
    try:
        text = units_bytes.decode()
    except UnicodeDecodeError:
        return bits
    bits |= 1 if all(ord(c) in WHITE_SPACE for c in text) else 0
    bits |= 2 if all(unicodedata.category(c)[0] == "N" for c in text) else 0
    bits |= 4 if all(unicodedata.category(c)[0] in "PS" for c in text) else 0
    return bits


def pair_specials(
    teacher: Sequence[int], student: Sequence[int], matches: Callable[[int, int], bool]
) -> list[tuple[int, int]]:
    """Longest common subsequence; of several, the one whose pairs come first, teacher's first."""

    @functools.cache
    def best(i: int, j: int) -> int:
        if i == len(teacher) or j == len(student):
            return 0
        both = 1 + best(i + 1, j + 1) if matches(teacher[i], student[j]) else 0
        return max(both, best(i + 1, j), best(i, j + 1))

    pairs: list[tuple[int, int]] = []
    i = j = 0
    while wanted := best(i, j):
        i, j = next(
            (a, b)
            for a in range(i, len(teacher))
            for b in range(j, len(student))
            if matches(teacher[a], student[b]) and 1 + best(a + 1, b + 1) == wanted
        )
        pairs.append((i, j))
        i, j = i + 1, j + 1
    return pairs


def places(tokens: Sequence[bytes], start: int) -> dict[int, tuple[int, int]]:
    """Offset of every boundary from `start` on -> positions before and after its empty tokens."""
    found = {0: (start, start)}
    offset = 0
    for position in range(start, len(tokens)):
        offset += len(tokens[position])
        first = position + 1 if tokens[position] else found[offset][0]
        found[offset] = (first, position + 1)
    return found


def resync(
    teacher: bytes, student: bytes, cuts_t: Sequence[int], cuts_s: Sequence[int], need: int
) -> tuple[int, int] | None:
    """Of all pairs of boundaries after which the text agrees, the one that skips fewest bytes."""

    def agree(p: int, q: int, count: int) -> bool:
        enough = len(teacher) - p >= count and len(student) - q >= count
        return teacher[p:] == student[q:] or (
            enough and teacher[p : p + count] == student[q : q + count]
        )

    def needed(p: int, q: int) -> int:
        short = p > 0 and q > 0
        return min(need, 4 if short and p + q <= 12 else 6 if short and p + q <= 24 else need)

    options = [
        (p + q, q, p)
        for p in cuts_t
        for q in cuts_s
        if p + q > 0 and max(p, q) <= WINDOW_BYTES and agree(p, q, needed(p, q))
    ]
    if not options:
        return None
    _, q, p = min(options)
    return p, q


def dummy_prefix(tokens: Sequence[bytes], other: Sequence[bytes], *, marked: bool) -> int:
    """Position of the token whose first space is taken off, -1 if none."""
    mine, others = b"".join(tokens), b"".join(other)
    surplus = (len(mine) - len(mine.lstrip(b" "))) - (len(others) - len(others.lstrip(b" ")))
    if not marked or surplus != 1:
        return -1
    return next(i for i, token in enumerate(tokens) if token)


def align_region(
    teacher_ids: Sequence[int],
    student_ids: Sequence[int],
    teacher_bytes: Callable[[int], bytes],
    student_bytes: Callable[[int], bytes],
    matches: Callable[[int, int], bool],
    *,
    dummies: tuple[bool, bool] = (False, False),
    resync_bytes: int = 8,
) -> tuple[list[tuple[int, int, int, int, str, int]], list[tuple[int, int, int, int, str]]]:
    """Units with kind and class, and unmatched spans with reason, of one region."""
    own_t = [teacher_bytes(i) for i in teacher_ids]
    own_s = [student_bytes(i) for i in student_ids]
    cut_t = dummy_prefix(own_t, own_s, marked=dummies[0])
    cut_s = dummy_prefix(own_s, own_t, marked=dummies[1])
    toks_t = [b[1:] if i == cut_t else b for i, b in enumerate(own_t)]
    toks_s = [b[1:] if i == cut_s else b for i, b in enumerate(own_s)]
    units: list[tuple[int, int, int, int, str, int]] = []
    lost: list[tuple[int, int, int, int, str]] = []

    def lose(t0: int, t1: int, s0: int, s1: int, reason: str) -> None:
        if t0 < t1 or s0 < s1:
            lost.append((t0, t1, s0, s1, reason))

    def gap(t0: int, t1: int, s0: int, s1: int) -> None:
        """Lose what lies between pairs; a lone dummy space is a span of its own."""
        if t0 <= cut_t < t1 and not toks_t[cut_t]:
            lose(t0, cut_t, s0, s0, "special")
            lose(cut_t, cut_t + 1, s0, s0, "dummy_prefix")
            lose(cut_t + 1, t1, s0, s1, "special")
        elif s0 <= cut_s < s1 and not toks_s[cut_s]:
            lose(t0, t0, s0, cut_s, "special")
            lose(t0, t0, cut_s, cut_s + 1, "dummy_prefix")
            lose(t0, t1, cut_s + 1, s1, "special")
        else:
            lose(t0, t1, s0, s1, "special")

    t = s = 0
    while True:
        at_t, at_s = places(toks_t, t), places(toks_s, s)
        run_t, run_s = at_t[0][1], at_s[0][1]
        for a, b in pair_specials(teacher_ids[t:run_t], student_ids[s:run_s], matches):
            a, b = a + at_t[0][0], b + at_s[0][0]
            gap(t, a, s, b)
            units.append((a, a + 1, b, b + 1, "special", 0))
            t, s = a + 1, b + 1
        gap(t, run_t, s, run_s)
        t, s = run_t, run_s
        at_t, at_s = places(toks_t, t), places(toks_s, s)
        rest_t, rest_s = b"".join(toks_t[t:]), b"".join(toks_s[s:])
        if not rest_t or not rest_s:
            lose(t, len(toks_t), s, len(toks_s), "one_side_ended")
            return units, lost
        end = min((set(at_t) & set(at_s)) - {0}, default=0)
        reach = end or min(len(rest_t), len(rest_s))
        if rest_t[:reach] != rest_s[:reach]:
            found = resync(rest_t, rest_s, list(at_t), list(at_s), resync_bytes)
            if found is None:
                lose(t, len(toks_t), s, len(toks_s), "no_resync")
                return units, lost
            to_t, to_s = at_t[found[0]][0], at_s[found[1]][0]
            lose(t, to_t, s, to_s, "bytes_differ")
        elif not end:
            lose(t, len(toks_t), s, len(toks_s), "one_side_ended")
            return units, lost
        else:
            to_t, to_s = at_t[end][0], at_s[end][0]
            inside = [*toks_t[t:to_t], *toks_s[s:to_s]]
            if b"" in inside:
                lose(t, to_t, s, to_s, "special")
            else:
                trimmed = t <= cut_t < to_t or s <= cut_s < to_s
                one = to_t - t == 1 and to_s - s == 1 and not trimmed
                bits = unit_class(rest_t[:end], [*own_t[t:to_t], *own_s[s:to_s]], trimmed=trimmed)
                units.append((t, to_t, s, to_s, "shared" if one else "multi", bits))
        t, s = to_t, to_s
