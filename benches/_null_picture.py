"""The picture of `null.py`: the null values of objectives by corpus, from the CSV (matplotlib)."""

from __future__ import annotations

import csv
from collections import defaultdict
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

#: Drawn in this order; others that the CSV has are added.
FIRST = ("shared", "realized, mean", "realized, event")
#: In the CSV only: L1 distances, ALM's divergence of probabilities to the power 1/100, reverse KLs
#: with a floor, and variants. So are objectives that were measured on fewer pairs than others.
LEFT_OUT = ("ULD", "GOLD", "ALM", "ESCD", "strict, top 16", "text events, trees")
LEAST = 1e-5


def null_values(path: Path) -> dict[str, dict[str, list[float]]]:
    """Return the drawn objectives' null values over pairs by corpus; of repeated rows, the last."""
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


def draw(path: Path, picture: Path) -> None:
    """Draw the median over pairs of every objective and corpus, and the range over pairs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = null_values(path)
    corpora = list(dict.fromkeys(corpus for by in found.values() for corpus in by))
    figure, axes = pyplot.subplots(figsize=(10, 4.5), layout="constrained")
    width = 0.8 / len(found)
    for number, (objective, by_corpus) in enumerate(found.items()):
        places, middle, below, above = [], [], [], []
        for corpus, values in by_corpus.items():
            clipped = [max(value, LEAST) for value in values]
            places.append(corpora.index(corpus) + (number - (len(found) - 1) / 2) * width)
            middle.append(median(clipped))
            below.append(median(clipped) - min(clipped))
            above.append(max(clipped) - median(clipped))
        axes.errorbar(
            places, middle, yerr=(below, above), fmt="o", markersize=5, linewidth=1.5,
            label=objective,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(LEAST / 1.5, 30.0)
    axes.set_xticks(range(len(corpora)), corpora)
    axes.set_ylabel("nats per byte of text; 0 is right")
    axes.set_title("What objectives report for two models that agree on every text")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(ncols=len(found), fontsize="small", loc="upper right")
    figure.supxlabel(
        f"median and range over ordered pairs of tokenizers; values below {LEAST} drawn there",
        fontsize="small",
    )
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)
