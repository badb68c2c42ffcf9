"""The speed of the log-probabilities of a served teacher, beside that of the alignment.

    python benches/logprobs.py [--teacher DIR] [--student DIR] [--data JSONL] [--csv CSV] [--quick]

Cases: `AlignedBatch.student_logprobs` and the way back, with one thread and two; the same sums with
NumPy (differences of cumulative sums, so that one NaN would spoil all rows after it); a loop over
units in Python; and the readers of servers' answers, with lists of 8, compared with a loop in
Python that only collects the log-probabilities of the text's tokens. Results are checked before
they are timed: all sums must agree, and so must all log-probabilities that are read. Rates are
student tokens per second, for the readers teacher tokens per second. A ratio is the median rate of
`align_batch` over the median rate of the case.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from _common import ROOT, Timing, append_csv, print_table, time_best, time_in_turn
from align import DATA, TOKENIZERS, load_texts
from simct_align import Aligner, UnitClass
from simct_align.demo import demo_tokenizers
from simct_align.served import from_sglang, from_vllm

if TYPE_CHECKING:
    from collections.abc import Callable

    from simct_align import AlignedBatch

OURS = "align_batch, 1 thread"
TOP_K = 8


@dataclass
class Case:
    name: str
    run: Callable[[], Any]
    tokens: int


def with_numpy(batch: AlignedBatch, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Spread the sums evenly."""
    kept = np.flatnonzero((batch.unit_class & UnitClass.TRIMMED) == 0)
    row = np.repeat(np.arange(len(batch)), np.diff(batch.row_offsets))[kept]
    sums_until = np.concatenate([[0.0], np.cumsum(values)])
    first = batch.teacher.offsets[row]
    sums = sums_until[first + batch.teacher_end[kept]]
    sums -= sums_until[first + batch.teacher_start[kept]]
    lengths = batch.student_end[kept] - batch.student_start[kept]
    start = batch.student.offsets[row] + batch.student_start[kept]
    places = np.repeat(start - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
    made = np.full(len(batch.student.values), np.nan)
    made[places] = np.repeat(sums / lengths, lengths)
    return made


def in_a_loop(batch: AlignedBatch, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    made = np.full(len(batch.student.values), np.nan)
    for row in range(len(batch)):
        teacher, student = int(batch.teacher.offsets[row]), int(batch.student.offsets[row])
        for unit in range(batch.row_offsets[row], batch.row_offsets[row + 1]):
            if batch.unit_class[unit] & UnitClass.TRIMMED:
                continue
            a, b = batch.teacher_start[unit], batch.teacher_end[unit]
            c, d = batch.student_start[unit], batch.student_end[unit]
            made[student + c : student + d] = values[teacher + a : teacher + b].sum() / (d - c)
    return made


def served(
    rows: list[list[int]], values: np.ndarray[Any, Any]
) -> tuple[list[Any], list[Any], np.ndarray[Any, Any]]:
    """Answers of vLLM and of SGLang, and the log-probabilities in them."""
    vllm, sglang, taken = [], [], []
    numbers = iter(values.tolist())
    for row in rows:
        logprobs = [next(numbers) for _ in row]
        taken += [np.nan, *logprobs[1:]] if row else []
        tops = [
            {token: logprob} | {1_000_000 + n: -3.0 - n for n in range(TOP_K - 1)}
            for token, logprob in zip(row, logprobs, strict=True)
        ]
        vllm.append(
            [None]
            + [
                {
                    str(token): {"logprob": logprob, "rank": 1, "decoded_token": "x"}
                    for token, logprob in top.items()
                }
                for top in tops[1:]
            ]
        )
        first = [[None, token, None] for token in row[:1]]
        pairs = zip(logprobs[1:], row[1:], strict=True)
        sglang.append(
            {
                "input_token_logprobs": first + [[lp, token, None] for lp, token in pairs],
                "input_top_logprobs": [None]
                + [[[lp, token, None] for token, lp in top.items()] for top in tops[1:]],
            }
        )
    return vllm, sglang, np.array(taken)


def taken_in_a_loop(answers: list[Any], rows: list[list[int]]) -> np.ndarray[Any, Any]:
    return np.array(
        [
            np.nan if entry is None else entry[str(token)]["logprob"]
            for answer, row in zip(answers, rows, strict=True)
            for entry, token in zip(answer, row, strict=True)
        ]
    )


def cases(aligner: Aligner, texts: list[str]) -> list[Case]:
    rows = [aligner.teacher.encode_batch(texts), aligner.student.encode_batch(texts)]
    sides = [(np.concatenate(side), np.cumsum([0, *map(len, side)])) for side in rows]
    batch = aligner.align_batch(*sides)
    rng = np.random.default_rng(0)
    values, back = (-rng.exponential(size=len(side[0])) for side in sides)
    vllm, sglang, taken = served(rows[0], values)
    n_teacher, n_student = len(values), len(back)

    spread = batch.student_logprobs(values)
    for name, other in (("NumPy", with_numpy), ("the loop", in_a_loop)):
        if not np.allclose(other(batch, values), spread, equal_nan=True):
            raise SystemExit(f"student_logprobs does not agree with {name}")
    there = batch.student_logprobs(batch.teacher_logprobs(back))
    takes_part = ~np.isnan(there)
    if not np.isclose(there[takes_part].sum(), back[takes_part].sum()):
        raise SystemExit("the way back loses a part of the sum")
    for found in (
        from_vllm(vllm, sides[0]).logprobs,
        from_sglang(sglang, sides[0]).logprobs,
        taken_in_a_loop(vllm, rows[0]),
    ):
        if not np.array_equal(found, taken, equal_nan=True):
            raise SystemExit("an answer is read wrongly")
    print(f"checked: {batch.n_units:,} units; {n_teacher:,} and {n_student:,} tokens\n")

    single = values.astype(np.float32)
    return [
        Case(OURS, lambda: aligner.align_batch(*sides, threads=1), n_student),
        Case(
            "student_logprobs, 1 thread",
            lambda: batch.student_logprobs(values, threads=1),
            n_student,
        ),
        Case(
            "student_logprobs, 2 threads",
            lambda: batch.student_logprobs(values, threads=2),
            n_student,
        ),
        Case(
            "student_logprobs, float32, 1 thread",
            lambda: batch.student_logprobs(single, threads=1),
            n_student,
        ),
        Case(
            "teacher_logprobs, 1 thread",
            lambda: batch.teacher_logprobs(back, threads=1),
            n_student,
        ),
        Case("cumulative sums in NumPy", lambda: with_numpy(batch, values), n_student),
        Case("loop over units in Python", lambda: in_a_loop(batch, values), n_student),
        Case(f"from_vllm, lists of {TOP_K}", lambda: from_vllm(vllm, sides[0]), n_teacher),
        Case(f"from_sglang, lists of {TOP_K}", lambda: from_sglang(sglang, sides[0]), n_teacher),
        Case(
            "loop in Python over vLLM's answers, without lists",
            lambda: taken_in_a_loop(vllm, rows[0]),
            n_teacher,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", type=Path, default=TOKENIZERS / "qwen2_5")
    parser.add_argument("--student", type=Path, default=TOKENIZERS / "gemma2")
    parser.add_argument("--data", type=Path, default=DATA / "gsm8k_train_2000.jsonl")
    parser.add_argument("--csv", type=Path, help="default: benches/record/logprobs.csv")
    parser.add_argument("--quick", action="store_true", help="small; records nothing")
    options = parser.parse_args()
    missing = [p for p in (options.teacher, options.student, options.data) if not p.exists()]
    if missing and not options.quick:
        raise SystemExit(f"not there: {', '.join(map(str, missing))}; --quick runs without")
    if missing:
        print(f"not there: {', '.join(map(str, missing))}; the bundled tokenizers are used instead")
        options.teacher, options.student = demo_tokenizers()
        options.data = None
    texts = load_texts(options.data, 64 if options.quick else 2000)
    all_cases = cases(Aligner(options.teacher, options.student), texts)
    repeat, min_seconds = (3, 0.0) if options.quick else (20, 1.0)
    # What is compared with the alignment is timed in turn with it.
    in_turn, rest = all_cases[:6], all_cases[6:]
    timings: list[Timing] = time_in_turn([case.run for case in in_turn], repeat, min_seconds)
    timings += [time_best(case.run, 3, min_seconds) for case in rest]
    rows: list[dict[str, object]] = [
        {
            "case": case.name,
            "n": time.n,
            "p20": case.tokens / time.p80 / 1e6,
            "p50": case.tokens / time.p50 / 1e6,
            "p80": case.tokens / time.p20 / 1e6,
            "unit": "M tokens/s",
            "ratio": (all_cases[0].tokens / timings[0].p50) / (case.tokens / time.p50),
        }
        for case, time in zip(all_cases, timings, strict=True)
    ]
    columns = ["case", "p20", "p50", "p80", "unit", "ratio"]
    print_table(columns, [[row[column] for column in columns] for row in rows])
    if options.quick:
        print("--quick: the results are checked; the timings have no meaning and are not recorded")
    if options.csv or not options.quick:
        path = options.csv or ROOT / "benches" / "record" / "logprobs.csv"
        append_csv(path, rows)
        print(f"\nappended to {path}")


if __name__ == "__main__":
    main()
