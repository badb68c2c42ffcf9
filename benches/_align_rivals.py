"""What `align.py` measures against: other ways to find the spans that two tokenizations share.

Every rival takes one row in the form that it likes best, and returns spans (teacher start, end,
student start, end), so that its answer can be held against the brute force below.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Span = tuple[int, int, int, int]


def common_boundaries(teacher: Sequence[bytes], student: Sequence[bytes]) -> list[Span] | None:
    """Brute force: all common boundaries of two spellings; None where their bytes differ.

    A lone side's dummy prefix, the space in front of the text, is taken off.
    """
    sides = [list(teacher), list(student)]
    texts = [b"".join(side) for side in sides]
    starts = [0, 0]
    for side, other in ((0, 1), (1, 0)):
        if texts[side] == b" " + texts[other]:
            first = sides[side][0][1:]
            starts[side] = 0 if first else 1
            sides[side] = [first, *sides[side][1:]] if first else sides[side][1:]
            texts[side] = texts[other]
    if texts[0] != texts[1]:
        return None
    places: list[dict[int, int]] = []
    for start, side in zip(starts, sides, strict=True):
        ends, length = {0: start}, 0
        for position, token in enumerate(side, start + 1):
            length += len(token)
            ends[length] = position
        places.append(ends)
    common = sorted(places[0].keys() & places[1].keys())
    return [
        (places[0][begin], places[0][end], places[1][begin], places[1][end])
        for begin, end in itertools.pairwise(common)
    ]


def scan_ids(
    teacher_ids: Sequence[int], student_ids: Sequence[int], teacher: Any, student: Any
) -> list[Span]:
    """Align as the published code does: decode every token alone, then scan the strings."""
    return scan_strings(
        [teacher.decode([token], skip_special_tokens=False) for token in teacher_ids],
        [student.decode([token], skip_special_tokens=False) for token in student_ids],
    )


def scan_strings(teacher: Sequence[str], student: Sequence[str]) -> list[Span]:
    """Walk greedily; a span ends only where the next decoded tokens are equal.

    Until then the side with the shorter text takes its next token. So a mismatch is glued to the
    shared token behind it, mismatches side by side fuse, a trailing one is dropped, and half a
    character, decoded as U+FFFD, derails the rest of the row.
    """
    spans = []
    t = s = t_start = s_start = 0
    t_text = s_text = ""
    while t < len(teacher) and s < len(student):
        if t_text == s_text and teacher[t] == student[s]:
            t, s = t + 1, s + 1
            spans.append((t_start, t, s_start, s))
            t_start, s_start, t_text, s_text = t, s, "", ""
        elif t_text == s_text:
            t_text, s_text = t_text + teacher[t], s_text + student[s]
            t, s = t + 1, s + 1
        elif len(t_text) < len(s_text):
            t_text += teacher[t]
            t += 1
        else:
            s_text += student[s]
            s += 1
    return spans


def load_gold_walk() -> Callable[[Any, Any], tuple[list[list[int]], list[list[int]]]]:
    """TRL GOLD's walk over ready byte offsets: (student's, teacher's) -> groups of positions."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gold.gold_trainer import ULDLoss

    return ULDLoss._align_by_byte_offsets  # type: ignore[no-any-return]


def spans_of_groups(groups: tuple[list[list[int]], list[list[int]]]) -> list[Span]:
    student, teacher = groups
    return [
        (t[0], t[-1] + 1, s[0], s[-1] + 1) for s, t in zip(student, teacher, strict=True) if s and t
    ]


def spans_of_links(student_to_teacher: list[list[int]]) -> list[Span]:
    """Tokens that hang together in an alignment by links become one span."""
    spans: list[Span] = []
    for position, linked in enumerate(student_to_teacher):
        if not linked:
            continue
        first, last = min(linked), max(linked) + 1
        if spans and first < spans[-1][1]:
            begin = spans[-1]
            spans[-1] = (begin[0], max(begin[1], last), begin[2], position + 1)
        else:
            spans.append((first, last, position, position + 1))
    return spans


def byte_offsets(tokens: Sequence[bytes]) -> list[list[int]]:
    """[start, end] of every token, as GOLD's collator prepares them."""
    offsets, length = [], 0
    for token in tokens:
        offsets.append([length, length + len(token)])
        length += len(token)
    return offsets
