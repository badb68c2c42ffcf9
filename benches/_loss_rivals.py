"""The case of `loss.py`, and the same values computed without the package, as its rivals."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from continuations import MAX_PATH
from simct_align.index import SECTIONS, AlignedIndex

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align import Aligner

DIGEST = "case"


@dataclass
class Case:
    """Random logits and an index of the given sizes; one unit in four is MULTI.

    There are fewer rows for second steps than MULTI units, so some MULTI units have one token on
    both sides; the engine treats these units like all others.
    """

    units: int
    student_rows: int
    teacher_rows: int
    student_columns: int
    teacher_columns: int
    shared: int
    paths: dict[str, list[tuple[int, list[int]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        multi = [u for u in range(self.units) if u % 4 == 0]
        spare = {"student": self.student_rows, "teacher": self.teacher_rows}
        begin = 0
        for side in ("student", "teacher"):
            second = spare[side] - self.units
            longer = {multi[(begin + i) % len(multi)] for i in range(second)}
            begin += second
            row, self.paths[side] = 0, []
            for unit in range(self.units):
                steps = 2 if unit in longer else 1
                columns = getattr(self, f"{side}_columns")
                self.paths[side].append((row, rng.integers(0, columns, steps).tolist()))
                row += steps
        self.order = [u for u in range(self.units) if u % 4] + multi
        self.n_multi = len(multi)
        self.student_ids = rng.permutation(self.student_columns)[: self.shared]
        self.teacher_ids = np.sort(rng.permutation(self.teacher_columns)[: self.shared])
        self.index = self._index()
        self.aligner = SimpleNamespace(
            shared=SimpleNamespace(
                teacher_ids=self.teacher_ids,
                student_ids=self.student_ids,
                stop_column=0,
                teacher_stop_ids=self.teacher_ids[:1],
                student_stop_ids=self.student_ids[:1],
            ),
            teacher=SimpleNamespace(kinds=np.zeros(self.teacher_columns, np.uint8)),
            student=SimpleNamespace(kinds=np.zeros(self.student_columns, np.uint8)),
            digest=DIGEST,
        )

    def _index(self) -> AlignedIndex:
        multi, units = self.order[-self.n_multi :], self.units
        sections = {
            "unit": self.order,
            "kind": [0] * (units - self.n_multi) + [1] * self.n_multi,
            "student_tokens": [len(self.paths["student"][u][1]) for u in self.order],
            "realized_shared_column": [-1] * self.n_multi,
        }
        for side in ("teacher", "student"):
            paths = [self.paths[side][u] for u in multi]
            sections |= {
                f"{side}_row": [self.paths[side][u][0] for u in self.order],
                f"{side}_offsets": np.cumsum([0, *(len(ids) for _, ids in paths)]).tolist(),
                f"{side}_step_unit": [m for m, (_, ids) in enumerate(paths) for _ in ids],
                f"{side}_step_row": [row + j for row, ids in paths for j in range(len(ids))],
                f"{side}_step_id": [i for _, ids in paths for i in ids],
            }
        return AlignedIndex(
            packed=torch.tensor([n for each in SECTIONS for n in sections.get(each.name, [])]),
            n_shared=units - self.n_multi,
            n_multi=self.n_multi,
            n_teacher_steps=len(sections["teacher_step_id"]),
            n_student_steps=len(sections["student_step_id"]),
            student_tokens_shared=units - self.n_multi,
            dropped_no_prefix=0,
            dropped_dummy_prefix=0,
            pair_digest=DIGEST,
        )


def vectorised(case: Case, student: Tensor, teacher: Tensor, rows: slice | None = None) -> Tensor:
    """Compute the formula (score "mean") over all units at once, without chunks."""
    scores, device = [], student.device
    units = case.order[rows] if rows else case.order
    is_multi = torch.tensor([u % 4 == 0 for u in units], device=device)
    for side, logits in (("student", student), ("teacher", teacher)):
        paths = [case.paths[side][u] for u in units]
        ids = torch.from_numpy(getattr(case, f"{side}_ids")).to(device)
        logp = logits.float().log_softmax(-1)
        shared = logp[[row for row, _ in paths]][:, ids]
        steps = [(m, row + j, i) for m, (row, path) in enumerate(paths) for j, i in enumerate(path)]
        unit, row, token = torch.tensor(steps, device=device).T
        total = torch.zeros(len(units), device=device).index_add(0, unit, logp[row, token])
        lengths = torch.tensor([len(path) for _, path in paths], device=device)
        realized = (total / lengths).masked_fill(~is_multi, -1e4)
        scores.append(torch.cat([shared, realized[:, None]], 1).log_softmax(-1))
    return (scores[0].exp() * (scores[0] - scores[1])).sum(-1).mean()


def per_unit_loop(case: Case, student: Tensor, teacher: Tensor, units: list[int]) -> Tensor:
    """Loop over units as the published code does: average logits that are indexed per unit."""
    ids = [torch.from_numpy(i).to(student.device) for i in (case.student_ids, case.teacher_ids)]
    losses = []
    for unit in units:
        sides = []
        for n, (side, logits) in enumerate((("student", student), ("teacher", teacher))):
            row, path = case.paths[side][unit]
            scores = logits[row, ids[n]].float()
            if unit % 4 == 0:
                steps = torch.stack([logits[row + j, i] for j, i in enumerate(path)]).float()
                scores = torch.cat([scores, steps.mean()[None]])
            sides.append(scores.log_softmax(-1))
        losses.append((sides[0].exp() * (sides[0] - sides[1])).sum())
    return torch.stack(losses).mean()


def plain_kl(student: Tensor, teacher: Tensor) -> Tensor:
    log_s, log_t = student.float().log_softmax(-1), teacher.float().log_softmax(-1)
    return (log_s.exp() * (log_s - log_t)).sum(-1).mean()


def on_path_by_hand(
    aligner: Aligner, batch: Any, index: Any, unit: int, sides: tuple[Tensor, Tensor]
) -> Tensor:
    """Compute a SHARED unit's divergence for score "sum" from its continuations' paths."""
    found = aligner.continuations(batch, max_path=MAX_PATH).of_unit(int(index.unit[unit]))
    scores = []
    for name, logits, row in (
        ("student", sides[0], int(index.student_row[unit])),
        ("teacher", sides[1], int(index.teacher_row[unit])),
    ):
        columns = torch.from_numpy(getattr(aligner.shared, f"{name}_ids")).to(logits.device)
        reach = max((len(getattr(one, name)) for one in found), default=1)
        kinds = torch.from_numpy(getattr(aligner, name).kinds).to(logits.device)
        z = logits[row : row + reach].detach().to(torch.float32, copy=True)
        z[:, len(kinds) :] = -torch.inf
        z[:, : len(kinds)][:, kinds == 3] = -torch.inf
        logp = z.log_softmax(-1)
        paths = [getattr(one, name) for one in found]
        joint = [sum(logp[j, token] for j, token in enumerate(path)) for path in paths]
        stops = getattr(aligner.shared, f"{name}_stop_ids").tolist()
        shared = logp[0][columns]
        if stops:
            shared[aligner.shared.stop_column] = logp[0][stops].logsumexp(0)
        scores.append(torch.cat([shared, torch.stack(joint)]) if joint else shared)
    student, teacher = (side.log_softmax(0) for side in scores)
    return (student.exp() * (student - teacher)).sum()
