"""The null values of objectives by corpus, from the CSV of `null.py`: what a figure shows."""

from __future__ import annotations

import csv
from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: In this order; others that the CSV has are added.
FIRST = ("shared", "realized, mean", "realized, event")
#: In the CSV only: L1 distances, ALM's divergence of probabilities to the power 1/100, reverse KLs
#: with a floor, and variants. So are objectives that were measured on fewer pairs than others.
LEFT_OUT = ("ULD", "GOLD", "ALM", "ESCD", "strict, top 16", "text events, trees")


def null_values(path: Path) -> dict[str, dict[str, list[float]]]:
    """Return the chosen objectives' values over pairs by corpus; of repeated rows, the last."""
    last: dict[tuple[str, ...], float] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = tuple(row[name] for name in ("objective", "corpus", "teacher", "student"))
            last[key] = float(row["null"])
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (objective, corpus, _, _), value in last.items():
        if objective not in LEFT_OUT and "floor" not in objective:
            found[objective][corpus].append(value)
    pairs = {name: sum(map(len, by_corpus.values())) for name, by_corpus in found.items()}
    found = {name: found[name] for name in found if pairs[name] == max(pairs.values())}
    order = [name for name in FIRST if name in found]
    order += [name for name in found if name not in FIRST]
    return {name: found[name] for name in order}
