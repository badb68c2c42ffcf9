"""Seconds and peak extra memory of the losses, forward + backward, beside their rivals.

    python benches/loss.py                  the full sizes (500 units; 12 GB of memory)
    python benches/loss.py --quick          a tenth of every size, for CI; no CSV row, no bars
    python benches/loss.py --device cuda --units 4000 --dtype bfloat16    on a GPU; no bars

One thread, one run, ratios within it. Rivals: (a) a plain reverse KL on ready-made logits of the
shared columns, (b) the vectorised but unchunked formula, (c) a loop over units that indexes the
whole logits, timed over a tenth of them, (d) the loss from hidden states beside the products that
no implementation avoids. The answers of `SimCTLoss` are checked against (b)'s and (c)'s, that of
(d) against (b)'s formula.

Then the first 500 units of real texts with random logits, GSM8K answers and code (the sources of
this Python's standard library), Qwen2.5 teaching Gemma 2: `candidates="on_path"` beside
`"realized"` on the same index, in turn. Some units are checked against log-probabilities of the
paths that `Aligner.continuations` lists.

Peak extra memory is the process's high-water mark during a call, less what is resident after it
(inputs and the gradients that the caller asked for). Linux only; elsewhere the column is empty. On
a GPU it is the same difference of the allocator's figures.

`--dtype bfloat16` gives every case inputs of that dtype; all of them compute in float32. The bars
are those of 500 units in float32 on a CPU; other settings go to a CSV of their own.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from _common import ROOT, append_csv, print_table, time_best, time_in_turn
from continuations import MAX_PATH, TOKENIZERS, code, gsm8k
from simct_align import Aligner
from simct_align.demo import demo_tokenizers
from simct_align.index import SECTIONS, AlignedIndex
from simct_align.loss import LinearSimCTLoss, SimCTLoss

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from simct_align.loss import LossOutput

CPU = torch.device("cpu")
DIGEST = "case"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Setting:
    """How many units there are, where the inputs of all cases are, and in which dtype."""

    units: int = 500
    device: torch.device = CPU
    dtype: torch.dtype = torch.float32

    def randn(self, *shape: int, requires_grad: bool = False) -> Tensor:
        made = torch.randn(*shape, device=self.device, dtype=self.dtype)
        return made.requires_grad_(requires_grad)

    @property
    def has_bars(self) -> bool:
        """The bars were set for this setting."""
        return self == Setting()

    @property
    def record(self) -> str:
        """Name of the CSV; a GPU's has its name."""
        if self.has_bars:
            return "loss"
        name = self.device.type
        if name == "cuda":
            name = torch.cuda.get_device_name(self.device)
        dtype = str(self.dtype).removeprefix("torch.")
        return "_".join(["loss", *name.lower().split(), str(self.units), dtype])

    def wait(self) -> None:
        """Wait until the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass
class Case:
    """Random logits and an index of the given sizes; one unit in four is MULTI.

    The row counts leave room for fewer second steps than MULTI units, so some MULTI units are one
    token on both sides; the engine treats them like all others.
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
    """Compute the formula (score "mean") over all units at once, in the most direct way."""
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
    """Loop over units as the published code does: averaged logits, indexed per unit."""
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


def resident(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{STATUS} has no {name}")


def peak_extra(fn: Callable[[], object], leaves: list[Tensor]) -> int | None:
    """Bytes that `fn` held at most beyond what is resident once it is done."""
    for leaf in leaves:
        leaf.grad = None
    gc.collect()
    if leaves[0].device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        fn()
        gc.collect()
        return torch.cuda.max_memory_allocated() - torch.cuda.memory_allocated()
    if not CLEAR.exists():
        return None
    trim = ctypes.CDLL(None).malloc_trim
    trim(0)
    CLEAR.write_text("5")  # the high-water mark starts anew
    fn()
    peak = resident("VmHWM")
    gc.collect()
    trim(0)
    return peak - resident("VmRSS")


@dataclass
class Row:
    name: str
    seconds: float
    timing: object
    extra: int | None
    loss: float


def measure(
    name: str, fn: Callable[[], Tensor], leaves: list[Tensor], repeat: int, times: int = 1
) -> Row:
    """Time `fn` and its backward pass; `times` scales a part up to the whole."""
    value = 0.0

    def step() -> None:
        nonlocal value
        for leaf in leaves:
            leaf.grad = None
        loss = fn()
        loss.backward()
        value = loss.item()  # waits for the device

    extra = peak_extra(step, leaves)
    timing = time_best(step, repeat=repeat, min_seconds=0.0)
    for leaf in leaves:
        leaf.grad = None
    return Row(name, timing.p50 * times, timing, extra, value)


def products(
    case: Case, setting: Setting, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]
) -> float:
    """Seconds for the products of (d): student forward and backward, teacher forward."""

    def seconds_of(a: Tensor, b: Tensor, out: Tensor) -> float:
        def product() -> None:
            torch.mm(a, b, out=out)
            setting.wait()

        return time_best(product, 2, 0.0).p50

    shared_rows = case.units - case.n_multi
    seconds = 0.0
    for is_student, (hidden, weight), steps in (
        (True, student, case.index.n_student_steps),
        (False, teacher, case.index.n_teacher_steps),
    ):
        for rows, columns in ((shared_rows, case.shared), (steps, weight.shape[0])):
            h, w = hidden[:rows].detach(), weight[:columns].detach()
            out = h.new_empty(rows, columns)
            seconds += seconds_of(h, w.T, out)
            if is_student:
                by_h, by_w = torch.empty_like(h), torch.empty_like(w)
                seconds += seconds_of(out, w, by_h) + seconds_of(out.T, h, by_w)
                del by_w
    return seconds


def measure_plain(case: Case, setting: Setting, repeat: int) -> Row:
    ready = [setting.randn(case.units, case.shared) for _ in range(2)]
    ready[0].requires_grad_()
    return measure("(a) plain reverse KL", lambda: plain_kl(*ready), ready[:1], repeat)


def measure_from_logits(case: Case, setting: Setting, repeat: int) -> list[Row]:
    """`SimCTLoss` under every score, then (b) and (c)."""
    student = setting.randn(case.student_rows, case.student_columns, requires_grad=True)
    teacher = setting.randn(case.teacher_rows, case.teacher_columns)
    rows = []
    for score in ("mean", "sum", "event", "mean_logit"):
        loss_fn = SimCTLoss(case.aligner, score=score).to(setting.device)
        step = functools.partial(
            loss_fn, teacher_logits=teacher, student_logits=student, index=case.index
        )
        rows.append(measure(f"SimCTLoss {score}", lambda: step().loss, [student], repeat))  # noqa: B023
    rows.append(measure("(b) vectorised", lambda: vectorised(case, student, teacher), [student], 2))
    tenth = list(range(0, case.units, 10))
    rows.append(
        measure(
            "(c) loop over units",
            lambda: per_unit_loop(case, student, teacher, tenth),
            [student],
            1,
            times=10,
        )
    )
    with torch.no_grad():
        loss_fn = SimCTLoss(case.aligner, score="mean_logit").to(setting.device)
        out = loss_fn(teacher_logits=teacher, student_logits=student, index=case.index)
    same = out.per_unit[[case.order.index(unit) for unit in tenth]].mean().item()
    assert abs(same - rows[-1].loss) < 1e-4 * abs(same), (same, rows[-1].loss)
    return rows


def on_path_by_hand(
    aligner: Aligner, batch: Any, index: Any, unit: int, sides: tuple[Tensor, Tensor]
) -> Tensor:
    """Compute the divergence of a SHARED unit, score "sum", from the paths of its continuations."""
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


def measure_on_path(setting: Setting, repeat: int, quick: bool) -> list[dict[str, object]]:
    """Seconds of "on_path" and of "realized" over the same real units, for every score."""
    if quick:
        pair: tuple[object, object] = demo_tokenizers()
        corpora = {"code": code(1)}
    else:
        pair = (TOKENIZERS / "qwen2_5", TOKENIZERS / "gemma2")
        times = -(-setting.units // 500)
        corpora = {"GSM8K": gsm8k(40 * times), "code": code(3 * times)}
    aligner = Aligner(*pair)
    rows: list[dict[str, object]] = []
    for corpus, texts in corpora.items():
        size = setting.units
        tokens = [side.encode_batch(texts) for side in (aligner.teacher, aligner.student)]
        whole = aligner.align_batch(*tokens)
        # Whole texts where they are short, the beginning of the first where they are long.
        kept = max(1, int(np.searchsorted(whole.row_offsets, size + len(texts[:1])) - 1))
        if kept == 1:
            ends = [getattr(whole, f"{side}_end")[size] for side in ("teacher", "student")]
            tokens = [[ids[0][: int(end)]] for ids, end in zip(tokens, ends, strict=True)]
        batch = aligner.align_batch(*(ids[:kept] for ids in tokens))
        on_host = batch.index(max_path=MAX_PATH)
        index = on_host.to(setting.device)
        student = setting.randn(len(batch.student.values), len(aligner.student), requires_grad=True)
        teacher = setting.randn(len(batch.teacher.values), len(aligner.teacher))
        leaves = np.zeros(len(index))
        for side in ("teacher", "student"):
            per_node = np.diff(getattr(aligner.spellings, side).leaves.node_offsets)
            counts = per_node[getattr(on_host, f"{side}_entry_node")]
            np.add.at(leaves, getattr(on_host, f"{side}_entry_unit"), counts)
        print(
            f"{corpus}: {len(index)} units, {index.n_multi} MULTI; "
            f"{leaves.mean():.0f} leaves per unit, median {np.median(leaves):.0f}"
        )
        with torch.no_grad():
            loss_fn = SimCTLoss(aligner, candidates="on_path", score="sum").to(setting.device)
            out = loss_fn(teacher_logits=teacher, student_logits=student, index=index)
        for unit in np.argsort(-leaves[: index.n_shared])[:3]:
            expected = on_path_by_hand(aligner, batch, on_host, int(unit), (student, teacher))
            assert abs(out.per_unit[unit] - expected) < 1e-4 * abs(expected), (unit, expected)
        for score, bar in (("mean", 1.8), ("sum", 1.4), ("event", 1.4)):
            steps = []
            for candidates in ("realized", "on_path"):
                loss_fn = SimCTLoss(aligner, candidates=candidates, score=score).to(setting.device)

                run = functools.partial(
                    loss_fn, teacher_logits=teacher, student_logits=student, index=index
                )

                def step(run: Callable[[], LossOutput] = run) -> None:
                    student.grad = None  # noqa: B023
                    run().loss.backward()
                    setting.wait()

                steps.append(step)
            # Two calls a turn: every two seconds or so a step takes a third of a second of system
            # time more on our virtual machines, and longer turns let one case have them all.
            timings = time_in_turn(steps, 1 if quick else 4 * repeat, 0.0, calls=2)
            extra = peak_extra(steps[1], [student])
            student.grad = None
            share = "" if extra is None else f"{100 * extra / student.nbytes:.0f}%"
            for name, timing in zip(("realized", "on_path"), timings, strict=True):
                rows.append(
                    {
                        "case": f"{corpus} {score}, {name}", "n": timing.n, "p20": timing.p20,
                        "p50": timing.p50, "p80": timing.p80, "unit": "s",
                        "ratio": timing.p50 / timings[0].p50, "bar": bar,
                        "memory": share if name == "on_path" else "",
                    }
                )  # fmt: skip
    print_table(
        ["case", "seconds", "of realized", "peak extra of student logits"],
        [[r["case"], f"{r['p50']:.3f}", f"{r['ratio']:.2f}", r["memory"]] for r in rows],
    )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of every size")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="where the losses run (default: cpu)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of logits and weights")
    parser.add_argument("--units", type=int, help="(default: 500; 50 with --quick)")
    arguments = parser.parse_args()
    setting = Setting(
        arguments.units or (50 if arguments.quick else 500),
        torch.device(arguments.device),
        DTYPES[arguments.dtype],
    )
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quick = arguments.quick
    units = setting.units
    columns = (25_600, 15_193, 9_767) if quick else (256_000, 151_936, 97_675)
    case = Case(units, round(1.082 * units), round(1.064 * units), *columns)
    widths = (230, 358) if quick else (2_304, 3_584)
    repeat = arguments.repeat
    rows = []

    case.index = case.index.to(setting.device)
    rows.append(measure_plain(case, setting, repeat))
    rows += measure_from_logits(case, setting, repeat)
    loop = rows[-1]
    student_bytes = setting.dtype.itemsize * case.student_rows * case.student_columns

    hidden = [
        setting.randn(case.student_rows, widths[0]),
        setting.randn(case.teacher_rows, widths[1]),
    ]
    weight = [
        setting.randn(columns, width) * width**-0.5
        for columns, width in zip((case.student_columns, case.teacher_columns), widths, strict=True)
    ]
    unavoidable = products(case, setting, (hidden[0], weight[0]), (hidden[1], weight[1]))
    leaves = [hidden[0].requires_grad_(), weight[0].requires_grad_()]
    linear = functools.partial(
        LinearSimCTLoss(case.aligner).to(setting.device),
        teacher_hidden=hidden[1],
        teacher_weight=weight[1],
        student_hidden=hidden[0],
        student_weight=weight[0],
        index=case.index,
    )
    rows.append(measure("(d) LinearSimCTLoss", lambda: linear().loss, leaves, 3))
    with torch.no_grad():
        logits = [h.float() @ w.float().T for h, w in zip(hidden, weight, strict=True)]
        expected = vectorised(case, *logits).item()
        del logits

    by_name = {row.name: row for row in rows}
    a, b, d = (
        by_name[n] for n in ("(a) plain reverse KL", "(b) vectorised", "(d) LinearSimCTLoss")
    )
    ours = by_name["SimCTLoss mean"]
    assert abs(ours.loss - b.loss) < 1e-4 * abs(b.loss), (ours.loss, b.loss)
    assert abs(d.loss - expected) < 1e-4 * abs(expected), (d.loss, expected)
    print_table(
        ["case", "seconds", "of (a)", "peak extra MB", "of student logits"],
        [
            [
                row.name,
                f"{row.seconds:.3f}",
                f"{row.seconds / a.seconds:.2f}",
                "" if row.extra is None else f"{row.extra / 1e6:.0f}",
                "" if row.extra is None else f"{100 * row.extra / student_bytes:.0f}%",
            ]
            for row in rows
        ],
    )
    print(f"products that (d) cannot avoid: {unavoidable:.2f} s")
    on_path = measure_on_path(setting, repeat, quick)
    if quick:
        return 0
    bars = [
        ("SimCTLoss <= 1.0 x (a), time", ours.seconds / a.seconds, 1.0),
        ("(c) >= 50 x SimCTLoss: inverse", ours.seconds / loop.seconds, 1 / 50),
        ("(d) <= 1.5 x (products + (a)), time", d.seconds / (unavoidable + a.seconds), 1.5),
    ]
    if ours.extra is not None and b.extra is not None and d.extra is not None:
        bars.append(
            ("SimCTLoss <= 15% of student logits, memory", ours.extra / student_bytes, 0.15)
        )
        bars.append(("(d) <= 10% of (b), memory", d.extra / b.extra, 0.10))
    bars += [
        (f"{row['case']} <= {row['bar']} x realized, time", row["ratio"], row["bar"])
        for row in on_path
        if row["ratio"] != 1.0
    ]
    reached = True
    if setting.has_bars:
        for name, value, bar in bars:
            print(f"{'reached' if value <= bar else 'MISSED '}  {name}: {value:.3f} (bar {bar:g})")
            reached &= value <= bar
    append_csv(
        ROOT / "benches" / "record" / f"{setting.record}.csv",
        [
            {
                "case": row.name,
                "n": row.timing.n,
                "p20": row.timing.p20 * row.seconds / row.timing.p50,
                "p50": row.seconds,
                "p80": row.timing.p80 * row.seconds / row.timing.p50,
                "unit": "s",
                "ratio": row.seconds / a.seconds,
            }
            for row in rows
        ]
        + [
            {"case": f"{row.name}, peak extra memory", "n": 1, "p50": row.extra, "unit": "bytes",
             "ratio": row.extra / student_bytes}
            for row in rows
            if row.extra is not None
        ]
        + [
            {name: value for name, value in row.items() if name not in ("bar", "memory")}
            for row in on_path
        ],
    )  # fmt: skip
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
