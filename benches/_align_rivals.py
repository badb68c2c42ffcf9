"""The rivals of `align.py`: other ways to find the spans that two tokenizations share.

Every rival takes one row in the form that suits it best, and returns spans (teacher start, teacher
end, student start, student end). The spans can be compared with those of the brute force below.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Span = tuple[int, int, int, int]


def common_boundaries(teacher: Sequence[bytes], student: Sequence[bytes]) -> list[Span] | None:
    """Find all common boundaries of two tokenizations by brute force.

    The result is None where the bytes of both sides differ. A dummy prefix, the space in front of
    the text, is removed if only one side has it.
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
    """Decode every token by itself and scan the strings, as the published code does."""
    return scan_strings(
        [teacher.decode([token], skip_special_tokens=False) for token in teacher_ids],
        [student.decode([token], skip_special_tokens=False) for token in student_ids],
    )


def scan_strings(teacher: Sequence[str], student: Sequence[str]) -> list[Span]:
    """Walk greedily over the strings; close a span only where the next decoded tokens are equal.

    Until then the side with the shorter text takes its next token. A mismatch is therefore joined
    with the shared token after it, neighbouring mismatches are joined with each other, and a
    mismatch at the end is dropped. Half a character, decoded as U+FFFD, breaks the rest of the row.
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
    """Load TRL GOLD's walk, a function of student and teacher byte offsets to position groups."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gold.gold_trainer import ULDLoss

    return ULDLoss._align_by_byte_offsets  # type: ignore[no-any-return]


def spans_of_groups(groups: tuple[list[list[int]], list[list[int]]]) -> list[Span]:
    student, teacher = groups
    return [
        (t[0], t[-1] + 1, s[0], s[-1] + 1) for s, t in zip(student, teacher, strict=True) if s and t
    ]


def spans_of_links(student_to_teacher: list[list[int]]) -> list[Span]:
    """Turn an alignment by links into spans: linked tokens form one span."""
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
    """Return [start, end] of every token, as GOLD's collator prepares the offsets."""
    offsets, length = [], 0
    for token in tokens:
        offsets.append([length, length + len(token)])
        length += len(token)
    return offsets
