"""Inputs that make alignment work hard: what the bench `align.py --hostile` times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from _common import Timing, print_table, time_in_turn
from simct_align import TokenKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from simct_align import Aligner, Vocabulary

Rows = tuple[Any, Any]
#: How many times the cost per token of plain text a hostile input may have.
BAR = 3.0


def one_row(ids: Any) -> Rows:
    values = np.asarray(ids, np.int64)
    return values, np.array([0, len(values)], np.int64)


def random_stream(vocabulary: Vocabulary, tokens: int, seed: int) -> Rows:
    """Return tokens of text in any order."""
    text = np.flatnonzero(np.isin(vocabulary.kinds, (TokenKind.NORMAL, TokenKind.BYTE)))
    return one_row(np.random.default_rng(seed).choice(text, tokens))


def of_bytes(vocabulary: Vocabulary, text: bytes, times: int) -> Rows:
    """Return the longest tokens that spell a short text, many times."""
    by_bytes = {vocabulary.token_bytes(token): token for token in range(len(vocabulary))}
    ids = []
    while text:
        size = next(n for n in range(len(text), 0, -1) if text[:n] in by_bytes)
        ids.append(by_bytes[text[:size]])
        text = text[size:]
    return one_row(np.tile(ids, times))


def hostile_inputs(aligner: Aligner, plain: tuple[Rows, Rows]) -> dict[str, tuple[Rows, Rows]]:
    """Return rows of about as many tokens as the plain text has."""
    teacher, student = aligner.teacher, aligner.student
    tokens = len(plain[1][0])
    shifted = np.concatenate([of_bytes(student, b"x", 1)[0], plain[1][0]])
    digits, letters = b"0123456789" * 6, b"a" * 60
    return {
        "two random streams": tuple(
            random_stream(side, tokens, seed) for seed, side in enumerate((teacher, student))
        ),
        "a text against itself after one more byte": (one_row(plain[0][0]), one_row(shifted)),
        "one byte, a million times": (
            of_bytes(teacher, b"a", tokens),
            of_bytes(student, b"a", tokens),
        ),
        "one byte against runs of it": (
            of_bytes(teacher, b"a", tokens),
            of_bytes(student, letters, tokens // len(letters)),
        ),
        "one byte against runs of it, one byte later": (
            of_bytes(teacher, b"a", tokens),
            one_row([*of_bytes(student, b"b", 1)[0], *of_bytes(student, letters, tokens // 60)[0]]),
        ),
        "digits that differ at the end": (
            of_bytes(teacher, digits, tokens // 60),
            one_row([*of_bytes(student, digits, tokens // 60)[0], *of_bytes(student, b"x", 1)[0]]),
        ),
    }


def run_hostile(aligner: Aligner, plain: tuple[Rows, Rows], repeat: int) -> list[dict[str, Any]]:
    """Time every input in turn with plain text in one row; return rows of the record."""
    plain = (one_row(plain[0][0]), one_row(plain[1][0]))
    rows, table = [], []
    for name, sides in hostile_inputs(aligner, plain).items():
        calls: list[Callable[[], object]] = [
            lambda sides=sides: aligner.align_batch(*sides, threads=1)  # type: ignore[misc]
            for sides in (plain, sides)
        ]
        costs = [
            nanoseconds_per_token(timing, sum(len(side[0]) for side in used))
            for timing, used in zip(
                time_in_turn(calls, repeat, 0.0, calls=1), (plain, sides), strict=True
            )
        ]
        ratio = costs[1][1] / costs[0][1]
        reached = "yes" if ratio <= BAR else "NO"
        table.append([name, f"{costs[0][1]:.3g}", f"{costs[1][1]:.3g}", f"{ratio:.2f}", reached])
        rows.append({
            "case": f"hostile: {name}", "n": repeat,
            **dict(zip(("p20", "p50", "p80"), costs[1], strict=True)),
            "unit": "ns/token of both sides", "ratio": ratio,
        })  # fmt: skip
    print_table(["hostile input", "plain ns/token", "ns/token", "ratio", f"<= {BAR:g}"], table)
    return rows


def nanoseconds_per_token(timing: Timing, tokens: int) -> tuple[float, float, float]:
    p20, p50, p80 = (seconds / tokens * 1e9 for seconds in (timing.p20, timing.p50, timing.p80))
    return p20, p50, p80
