"""Alignment, index and losses over random batches for a long time: memory and speed stay the same.

    python benches/soak.py [--minutes N] [--teacher DIR] [--student DIR] [--data JSONL] [--csv CSV]
                           [--quick]

A round draws texts at random, aligns them, makes an index with all sections, and computes losses
with gradients over a few tokens of it. After a tenth of the time, and a minute at least, which
warms caches and pools up, the resident memory and the speed of every tenth are noted. Memory may
not drift by more than 1 %, and the last tenth may not be slower than the first by more than 20 %
(other programs have a part in that).

Before memory is read, the C library gives back what it holds and nobody uses: freed blocks of a
loss, which it keeps or returns by chance, are 5 % of the memory here. What leaks is in use, and
stays. The largest size without that is printed beside it.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from _common import ROOT, Timing, append_csv, print_table
from align import DATA, TOKENIZERS, load_texts, resident
from simct_align import Aligner, SimCTLoss, TextLoss
from simct_align.demo import demo_tokenizers

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 64
#: Tokens of a side whose logits a round makes: those of a large vocabulary take megabytes each.
LOSS_TOKENS = 32
PARTS = 10
WARM_UP = 60.0
DRIFT_BAR = 0.01
SPEED_BAR = 0.8


def rounds(aligner: Aligner, texts: list[str]) -> Callable[[], int]:
    """Return a function that runs a round and returns its number of student tokens."""
    rng = random.Random(0)
    ids = [side.encode_batch(texts) for side in (aligner.teacher, aligner.student)]
    losses = [
        SimCTLoss(aligner),
        SimCTLoss(aligner, candidates="on_path", score="event"),
        TextLoss(aligner),
    ]
    generator = torch.Generator().manual_seed(0)
    logits = [
        torch.randn(LOSS_TOKENS, len(side), generator=generator)
        for side in (aligner.teacher, aligner.student)
    ]

    def run() -> int:
        rows = rng.sample(range(len(texts)), min(ROWS, len(texts)))
        sides = [[side[row] for row in rows] for side in ids]
        batch = aligner.align_batch(*sides)
        batch.index(max_path=8, text_events=True, first_ids=True)
        few = aligner.align_batch(*([side[0][:LOSS_TOKENS]] for side in sides))
        index = few.index(max_path=8, text_events=True, teacher_stride=LOSS_TOKENS,
                          student_stride=LOSS_TOKENS)  # fmt: skip
        student = logits[1].detach().requires_grad_()
        loss = rng.choice(losses)
        out = loss(teacher_logits=logits[0][None], student_logits=student[None], index=index)
        out.loss.backward()
        if not out.loss.isfinite():
            raise SystemExit("a loss is not finite")
        return sum(map(len, sides[1]))

    return run


class Part(NamedTuple):
    """A tenth of the time."""

    resident: float  # bytes at its end, without what the C library holds and nobody uses
    largest: float  # bytes, with that
    rate: float  # student tokens per second


def soak(run: Callable[[], int], seconds: float, warm_up: float) -> list[Part]:
    until = time.monotonic() + warm_up
    while time.monotonic() < until:
        run()
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: pad)  # musl has none
    parts = []
    for _ in range(PARTS):
        begun, tokens, largest = time.monotonic(), 0, 0
        while time.monotonic() - begun < seconds / PARTS or not tokens:
            tokens += run()
            largest = max(largest, resident("VmRSS"))
        rate = tokens / (time.monotonic() - begun)
        give_back(0)
        parts.append(Part(resident("VmRSS"), largest, rate))
    return parts


def record(parts: list[Part], what: str) -> list[dict[str, Any]]:
    names = (
        ("resident memory in use", "MB", 1e6),
        ("resident memory at most", "MB", 1e6),
        ("align, index and loss", "k student tokens/s", 1e3),
    )
    rows = []
    for place, (name, unit, scale) in enumerate(names):
        values = [part[place] / scale for part in parts]
        timing = Timing(tuple(sorted(values)))
        rows.append({
            "case": f"{name}, {what}", "n": len(values), "p20": timing.p20,
            "p50": timing.p50, "p80": timing.p80, "unit": unit, "ratio": values[-1] / values[0],
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--teacher", type=Path, default=TOKENIZERS / "qwen2_5")
    parser.add_argument("--student", type=Path, default=TOKENIZERS / "gemma2")
    parser.add_argument("--data", type=Path, default=DATA / "gsm8k_train_2000.jsonl")
    parser.add_argument("--csv", type=Path, default=ROOT / "benches" / "record" / "soak.csv")
    parser.add_argument("--quick", action="store_true", help="a second; records nothing")
    options = parser.parse_args()
    if not Path("/proc/self/status").exists():
        print("left out: memory is read from /proc")
        return
    if not all(path.exists() for path in (options.teacher, options.student, options.data)):
        print("real tokenizers or text are not there; the bundled ones are used instead")
        options.teacher, options.student = demo_tokenizers()
        options.data = None
    aligner = Aligner(options.teacher, options.student)
    texts = load_texts(options.data, 64 if options.quick else 2000)
    minutes = 1 / 60 if options.quick else options.minutes
    warm_up = 0.1 if options.quick else max(6 * minutes, WARM_UP)
    parts = soak(rounds(aligner, texts), 60 * minutes, warm_up)
    rows = record(parts, f"{options.teacher.stem}, {options.student.stem}, {minutes:g} minutes")
    table = [
        [
            number,
            f"{part.resident / 1e6:.1f}",
            f"{part.largest / 1e6:.1f}",
            f"{part.rate / 1e3:.1f}",
        ]
        for number, part in enumerate(parts)
    ]
    print_table(["part", "MB in use", "MB at most", "k student tokens/s"], table)
    drift, speed = rows[0]["ratio"] - 1, rows[-1]["ratio"]
    print(
        f"memory drifts by {drift:+.2%} (wanted <= {DRIFT_BAR:.0%}); speed {speed:.2f} of the first"
    )
    if options.quick:
        return
    append_csv(options.csv, rows)
    if drift > DRIFT_BAR or speed < SPEED_BAR:
        raise SystemExit("memory or speed drifts")


if __name__ == "__main__":
    main()
