"""What every process of `test_vocabulary_parallel` does: a case is a function of a `Peer`.

The processes of a group run all cases one after the other, because starting them takes longer.
"""

from __future__ import annotations

import functools
import itertools
import json
import traceback
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from simct_align import Aligner, LinearSimCTLoss, LinearTextLoss, SimCTLoss
from simct_align.demo import demo_tokenizers
from simct_align.loss import MultiTeacherLoss, VocabularyShard
from simct_align.loss.backends.torch.rows import Workspace
from simct_align.loss.baselines import ULDLoss
from simct_align.loss.exchange import Exchange
from simct_align.served import TopKLogprobs
from support.text_cases import SIDES, random_case
from test_loss import DIVERGENCES
from test_loss_linear import OPTIONS, linear_case

LAYOUTS = ("equal", "uneven", "last_is_padding", "reversed")
SHARDED = (("teacher", "student"), ("student",), ("teacher",))
CASES = {}


def shard_case(function):
    """Register a case under the name of its function."""
    CASES[function.__name__] = function
    return function


def run_process(rank, n_ranks, folder):
    """Run all cases in one process, and write what went wrong by the names of the cases."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=n_ranks,
        timeout=timedelta(seconds=40),
    )  # fmt: skip
    found = {}
    for name, case in CASES.items():
        found[name] = went_wrong(case, Peer(rank, n_ranks))
        if "DistBackendError" in found[name] or "timed out" in found[name].lower():
            break  # the processes are not in step any more
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def went_wrong(case, peer):
    """Return the traceback of a case, empty if it passed."""
    try:
        case(peer)
    except Exception:
        return traceback.format_exc()
    return ""


@dataclass
class Peer:
    """A process and how the vocabulary is cut."""

    rank: int
    n_ranks: int

    def ranges(self, layout, columns, needed):
        """Ranges of `columns` rows; those after `needed` are padding."""
        n = self.n_ranks
        cuts = [rank * columns // n for rank in range(n + 1)]
        if layout == "uneven":  # the first rank has two thirds, the others little
            cuts = [0, *(2 * columns // 3 + i * (columns // 3) // (n - 1) for i in range(n - 1))]
            cuts.append(columns)
        elif layout == "last_is_padding":
            cuts = [*(rank * needed // (n - 1) for rank in range(n)), columns]
        ranges = list(itertools.pairwise(cuts))
        return ranges[::-1] if layout == "reversed" else ranges

    def shard(self, layout, columns, needed, **keywords):
        start, stop = self.ranges(layout, columns, needed)[self.rank]
        return VocabularyShard(None, start, stop, **keywords)


def text_case(seed, dtype=torch.float64, width=(5, 7), **keywords):
    """A case of text events with hidden states, weights and biases in place of logits."""
    c = random_case(seed, **keywords)
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    found = SimpleNamespace(pair=c.aligner, index=c.index)
    for side, n in zip(SIDES, width, strict=True):
        rows, columns = c.logits[side].shape
        setattr(found, f"{side}_hidden", random(rows, n))
        setattr(found, f"{side}_weight", random(columns, n))
        setattr(found, f"{side}_bias", random(columns))
    return found


def needed(c, side):
    return len(getattr(c.pair, side).kinds)


def run(loss_fn, c, *, bias=False, weights=None, shards=None, start="loss", **options):
    """Call a loss; return its output and the student's gradients, None where there are none."""
    weights = weights or {
        f"{side}_{name}": getattr(c, f"{side}_{name}")
        for side in SIDES
        for name in ("weight", "bias")
    }
    leaves = [c.student_hidden, weights["student_weight"], weights["student_bias"]][: 2 + bias]
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    tensors = {"teacher_hidden": c.teacher_hidden, "teacher_weight": weights["teacher_weight"]}
    if "teacher_logits" in options:
        tensors = {}
    tensors |= {"student_hidden": leaves[0], "student_weight": leaves[1]}
    if bias:
        tensors["student_bias"] = leaves[2]
        if "teacher_logits" not in options:
            tensors["teacher_bias"] = weights["teacher_bias"]
    index = options.pop("index", c.index)
    out = loss_fn(**tensors, **options, **(shards or {}), index=index)
    if start == "loss":
        out.loss.backward()
    else:  # a derivative for every value, which computes the gradient again
        factor = torch.linspace(0.5, 2.0, len(out.per_unit), dtype=out.per_unit.dtype)
        (out.per_unit * factor).sum().backward()
    return out, [leaf.grad for leaf in leaves]


def check(
    peer, c, loss=LinearSimCTLoss, *, sides=SIDES, layout="uneven", options=None, start="loss",
    partial=False, near=None, **keywords,
):  # fmt: skip
    """Compare a loss with shards with the same loss without them."""
    options = dict(options or {})
    expected, whole = run(loss(c.pair, **keywords), c, start=start, **options)
    weights, shards, ranges = {}, {}, {}
    for side in SIDES:
        columns = getattr(c, f"{side}_weight").shape[0]
        ranges[side] = (0, columns)
        if side in sides:
            own = {"partial_hidden_gradient": partial} if side == "student" else {}
            shard = peer.shard(layout, columns, needed(c, side), **own)
            shards[f"{side}_shard"], ranges[side] = shard, (shard.start, shard.stop)
        for name in ("weight", "bias"):
            value = getattr(c, f"{side}_{name}")
            weights[f"{side}_{name}"] = value[slice(*ranges[side])].clone()
    ours, grads = run(
        loss(c.pair, **keywords), c, weights=weights, shards=shards, start=start, **options
    )
    near = near or (lambda a, b: torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12))
    near(ours.loss, expected.loss)
    near(ours.per_unit, expected.per_unit)
    for a, b in zip(ours.metrics, expected.metrics, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
    if partial:
        dist.all_reduce(grads[0])
    near(grads[0], whole[0])
    for ours_, whole_ in zip(grads[1:], whole[1:], strict=True):
        near(ours_, whole_[slice(*ranges["student"])])
    return ours


@shard_case
def scores_and_candidates(peer):
    kinds = [("shared", "mean"), *(("realized", s) for s in ("mean", "sum", "event", "mean_logit"))]
    for number, (candidates, score) in enumerate(kinds):
        for seed, layout in enumerate(LAYOUTS):
            c = linear_case(seed, extra_columns=2, padded=bool(seed % 2))
            check(
                peer, c, layout=layout, candidates=candidates, score=score, temperature=1.3,
                metrics=("none", "multi", "full")[(seed + number) % 3],
                chunk_bytes=1 if seed == number - 1 else (4_000, None)[seed % 2],
            )  # fmt: skip


@shard_case
def one_side_only(peer):
    for sides in SHARDED:
        for seed, layout in enumerate(LAYOUTS):
            c = linear_case(seed + 4, extra_columns=3)
            check(peer, c, sides=sides, layout=layout, score=("mean", "event")[seed % 2],
                  metrics="full", options={"bias": True})  # fmt: skip


@shard_case
def divergences(peer):
    for number, (divergence, *_) in enumerate(DIVERGENCES.values()):
        c = linear_case(number, extra_columns=2)
        check(peer, c, divergence=divergence, score=("mean", "event", "sum")[number % 3])


@shard_case
def bias_softcap_and_scale(peer):
    for number, options in enumerate(OPTIONS.values()):
        for layout in LAYOUTS[:2]:
            check(peer, linear_case(number, extra_columns=2), layout=layout, options=options,
                  sides=SHARDED[number % 3], chunk_bytes=(4_000, None)[number % 2],
                  metrics="full")  # fmt: skip


@shard_case
def stops(peer):
    """One, two and three stops on either side, and none; every cut between rows once."""
    from support.index_twin import random_pair

    for teacher, student in ((1, 3), (3, 1), (2, 2), (0, 0), (0, 2)):
        pair = random_pair(5, teacher_stops=teacher, student_stops=student)
        for layout in LAYOUTS:
            check(peer, linear_case(5, pair=pair), layout="equal" if layout == "last_is_padding"
                  else layout, score="event", metrics="full")  # fmt: skip


@shard_case
def teacher_mass_and_kinds(peer):
    for seed, only in enumerate((None, 0, 1)):
        c = linear_case(seed, only=only, extra_columns=2)
        out = check(peer, c, min_teacher_mass=0.6, metrics="full", layout="last_is_padding")
        left_out = out.metrics.left_out_shared + out.metrics.left_out_multi
        assert only is not None or 0 < left_out < len(c.index)


@shard_case
def reductions_and_accumulation(peer):
    c = linear_case(7, extra_columns=1)
    for reduction in ("token", "sum"):
        check(peer, c, reduction=reduction)
    check(peer, c, reduction="none", start="per_unit")
    check(peer, c, start="per_unit")
    check(peer, c, options={"normalizer": 7.5})
    check(peer, c, options={"normalizer": torch.tensor(3.0)}, reduction="token")


@shard_case
def a_second_backward_pass(peer):
    c = linear_case(3)
    shard = peer.shard("equal", c.student_weight.shape[0], 0)
    weight = c.student_weight[shard.start : shard.stop].clone().requires_grad_()
    hidden = c.student_hidden.clone().requires_grad_()
    out = LinearSimCTLoss(c.pair)(
        teacher_hidden=c.teacher_hidden, teacher_weight=c.teacher_weight,
        student_hidden=hidden, student_weight=weight, student_shard=shard, index=c.index,
    )  # fmt: skip
    out.loss.backward(retain_graph=True)
    once = hidden.grad.clone(), weight.grad.clone()
    out.loss.backward()
    for again, first in zip((hidden.grad, weight.grad), once, strict=True):
        torch.testing.assert_close(again, 2 * first)


@shard_case
def no_units(peer):
    for loss in (LinearSimCTLoss, LinearTextLoss):
        c = text_case(1)
        c.index = c.pair.align_batch([[0]], [[0]]).index(text_events=True)
        c.teacher_hidden, c.student_hidden = c.teacher_hidden[:1], c.student_hidden[:1]
        out = check(peer, c, loss)
        assert out.loss == 0


@shard_case
def no_gradient(peer):
    c = linear_case(2)
    shard = peer.shard("equal", c.student_weight.shape[0], 0)
    with torch.no_grad():
        out = LinearSimCTLoss(c.pair)(
            teacher_hidden=c.teacher_hidden, teacher_weight=c.teacher_weight,
            student_hidden=c.student_hidden, index=c.index,
            student_weight=c.student_weight[shard.start : shard.stop], student_shard=shard,
        )  # fmt: skip
    expected, _ = run(LinearSimCTLoss(c.pair), c)
    torch.testing.assert_close(out.per_unit, expected.per_unit)
    assert not out.loss.requires_grad


@shard_case
def partial_hidden_gradients(peer):
    check(peer, linear_case(4), partial=True)
    check(peer, linear_case(4), partial=True, sides=("student",))
    check(peer, text_case(4), LinearTextLoss, partial=True)


def relative(bound):
    """Compare relative to the whole: single values of a rounded product may be anything."""

    def near(ours, expected):
        error = (ours.double() - expected.double()).norm()
        assert error <= bound * expected.double().norm() + 1e-30, (error, expected.double().norm())

    return near


@shard_case
def narrow_dtypes(peer):
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)):
        for seed, loss in ((3, LinearSimCTLoss), (4, LinearSimCTLoss), (2, LinearTextLoss)):
            make = text_case if loss is LinearTextLoss else linear_case
            c = make(seed, dtype=dtype)
            c.student_hidden, c.teacher_hidden = c.student_hidden / 4, c.teacher_hidden / 4
            check(peer, c, loss, near=relative(bound), options={"bias": True})


@shard_case
def logits_and_lists_of_the_teacher(peer):
    c = linear_case(6, extra_columns=2)
    for score in ("mean", "event"):
        check(peer, c, sides=("student",), score=score, metrics="full",
              options={"teacher_logits": c.teacher, "bias": True})  # fmt: skip
    check(peer, linear_case(6, padded=True), sides=("student",), min_teacher_mass=0.3,
          options={"teacher_logits": linear_case(6, padded=True).teacher})  # fmt: skip
    t = text_case(6)
    logits = t.teacher_hidden @ t.teacher_weight.T
    check(peer, t, LinearTextLoss, sides=("student",), options={"teacher_logits": logits})
    listed, ids = logits[:, : needed(t, "teacher")].log_softmax(1).topk(3)
    lists = TopKLogprobs(ids=ids, logprobs=listed)
    check(peer, t, LinearTextLoss, sides=("student",), options={"teacher_logits": lists})
    with pytest.raises(ValueError, match="TopKLogprobs and student_shard"):
        LinearSimCTLoss(t.pair)(
            teacher_logits=lists, student_hidden=t.student_hidden, index=t.index,
            **sharded(peer, t, "student"),
        )  # fmt: skip


def sharded(peer, c, side, layout="equal"):
    """One side's weight on this process, and its shard, by the names of the arguments."""
    weight = getattr(c, f"{side}_weight")
    shard = peer.shard(layout, weight.shape[0], needed(c, side))
    return {f"{side}_weight": weight[shard.start : shard.stop], f"{side}_shard": shard}


@shard_case
def rows_that_hold_nan(peer):
    c = linear_case(8, rows=4)
    c.student_hidden[3] = torch.nan
    expected, whole = run(LinearSimCTLoss(c.pair, reduction="sum"), c)
    held = sharded(peer, c, "student")
    shard = held["student_shard"]
    ours, grads = run(
        LinearSimCTLoss(c.pair, reduction="sum"), c, shards={"student_shard": shard},
        weights={"student_weight": held["student_weight"], "student_bias": None,
                 "teacher_weight": c.teacher_weight, "teacher_bias": None},
    )  # fmt: skip
    torch.testing.assert_close(ours.per_unit, expected.per_unit, equal_nan=True)
    assert ours.metrics.units_spoiled == expected.metrics.units_spoiled > 0
    torch.testing.assert_close(grads[0].isnan(), whole[0].isnan())
    torch.testing.assert_close(grads[0], whole[0], equal_nan=True)


@shard_case
def logits_of_any_size(peer):
    """Large ones, whose differences need all digits; float16 and float32 near their truth."""
    for seed in range(3):
        c = linear_case(seed, dtype=torch.float32, extra_columns=1)
        c.student_hidden, c.teacher_hidden = c.student_hidden * 3e3, c.teacher_hidden * 3e3
        for score in ("mean", "event"):
            near = functools.partial(torch.testing.assert_close, rtol=2e-4, atol=2e-3)
            check(peer, c, score=score, metrics="full", near=near)


@shard_case
def two_teachers(peer):
    c = text_case(5)
    losses = {"units": LinearSimCTLoss(c.pair), "texts": LinearTextLoss(c.pair)}
    teacher = {"index": c.index, "teacher_hidden": c.teacher_hidden}
    results = []
    for student, own in (
        ({"student_weight": c.student_weight}, {"teacher_weight": c.teacher_weight}),
        (sharded(peer, c, "student"), sharded(peer, c, "teacher")),
    ):
        leaves = [x.clone().requires_grad_() for x in (c.student_hidden, student["student_weight"])]
        out = MultiTeacherLoss(losses)(
            teachers=dict.fromkeys(losses, teacher | own), student_hidden=leaves[0],
            **student | {"student_weight": leaves[1]},
        )  # fmt: skip
        out.loss.backward()
        results.append((out.loss, *(leaf.grad for leaf in leaves)))
    (expected, whole), (ours, own) = ((each[:2], each[2]) for each in results)
    torch.testing.assert_close(ours, expected)
    shard = sharded(peer, c, "student")["student_shard"]
    torch.testing.assert_close(own, whole[shard.start : shard.stop])


@shard_case
def text_events(peer):
    for seed in range(8):
        c = text_case(seed, rows=4)
        check(
            peer, c, LinearTextLoss, sides=SHARDED[seed % 3], layout=LAYOUTS[seed % 4],
            straddled=("byte", "tree")[seed % 2], backend=("auto", "torch", "native")[seed % 3],
            chunk_bytes=(1, 3_000, None)[seed % 3], epsilon=(0.02, 0.3)[seed % 2],
            options={"bias": True, "student_softcap": 4.0, "teacher_scale": 0.7},
        )  # fmt: skip


@shard_case
def text_events_of_one_tokenizer(peer):
    for divergence in ("forward_kl", "jsd", "tvd"):
        check(peer, text_case(3, same=True), LinearTextLoss, divergence=divergence,
              chunk_bytes=1, options={"normalizer": 5.0})  # fmt: skip
    check(peer, text_case(3), LinearTextLoss, reduction="none", start="per_unit")


@shard_case
def dtensors(peer):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (peer.n_ranks,))
    for loss, c in ((LinearSimCTLoss, linear_case(9)), (LinearTextLoss, text_case(9))):
        expected, whole = run(loss(c.pair), c, bias=True)
        for placements in ((Shard(0), Shard(0)), (Shard(0), Replicate()), (Replicate(), Shard(0))):
            weights = {
                f"{side}_{name}": distribute_tensor(getattr(c, f"{side}_{name}"), mesh, [placed])
                for side, placed in zip(SIDES, placements, strict=True)
                for name in ("weight", "bias")
            }
            ours, grads = run(loss(c.pair), c, bias=True, weights=weights)
            torch.testing.assert_close(ours.per_unit, expected.per_unit)
            torch.testing.assert_close(grads[0], whole[0])
            for ours_, whole_ in zip(grads[1:], whole[1:], strict=True):
                assert ours_.placements == (placements[1],)
                torch.testing.assert_close(ours_.full_tensor(), whole_)
    c = linear_case(9)
    teacher = {"teacher_hidden": c.teacher_hidden, "teacher_weight": c.teacher_weight}
    cut = distribute_tensor(c.student_weight, mesh, [Shard(1)])
    with pytest.raises(ValueError, match=r"student_weight: expected a DTensor with Shard\(0\)"):
        LinearSimCTLoss(c.pair)(
            **teacher, student_hidden=c.student_hidden, student_weight=cut, index=c.index
        )
    cut = distribute_tensor(c.teacher_weight, mesh, [Shard(0)])
    for loss in (SimCTLoss, ULDLoss):
        with pytest.raises(ValueError, match="need the student's hidden states, too"):
            loss(c.pair)(
                teacher_hidden=c.teacher_hidden, teacher_weight=cut, student_logits=c.student,
                index=c.index,
            )  # fmt: skip
    cut = distribute_tensor(c.student_hidden, mesh, [Shard(0)])
    with pytest.raises(TypeError, match="student_hidden: expected a plain tensor"):
        LinearSimCTLoss(c.pair)(
            **teacher, student_hidden=cut, student_weight=c.student_weight, index=c.index
        )
    placed = distribute_tensor(c.student_weight, mesh, [Shard(0)])
    with pytest.raises(ValueError, match="student_shard: student_weight is a DTensor"):
        LinearSimCTLoss(c.pair)(
            **teacher, student_hidden=c.student_hidden, student_weight=placed, index=c.index,
            student_shard=peer.shard("equal", c.student_weight.shape[0], 0),
        )  # fmt: skip


@shard_case
def groups_of_some_processes(peer):
    """Processes of other groups have other data and other loops."""
    n_groups = peer.n_ranks // 2
    groups = [dist.new_group([first, first + n_groups]) for first in range(n_groups)]
    number = peer.rank % n_groups
    c = linear_case(10 + number, rows=2 + number)
    expected, whole = run(LinearSimCTLoss(c.pair), c)
    weights, shards = {"teacher_bias": None, "student_bias": None}, {}
    for side in SIDES:
        weight = getattr(c, f"{side}_weight")
        half = len(weight) // 2
        own = weight[half:] if peer.rank >= n_groups else weight[:half]
        weights[f"{side}_weight"] = own
        shards[f"{side}_shard"] = VocabularyShard.of_weight(own, groups[number])
    for _ in range(1 + number):
        ours, grads = run(LinearSimCTLoss(c.pair), c, weights=weights, shards=shards)
    torch.testing.assert_close(ours.per_unit, expected.per_unit)
    torch.testing.assert_close(grads[0], whole[0])
    shard = shards["student_shard"]
    torch.testing.assert_close(grads[1], whole[1][shard.start : shard.stop])


@shard_case
def a_mesh_of_two_dimensions(peer):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, peer.n_ranks // 2))
    c = linear_case(9)
    expected, whole = run(LinearSimCTLoss(c.pair), c)
    placements = [Shard(0), Replicate()]
    weights = {"teacher_bias": None, "student_bias": None} | {
        f"{side}_weight": distribute_tensor(getattr(c, f"{side}_weight"), mesh, placements)
        for side in SIDES
    }
    ours, grads = run(LinearSimCTLoss(c.pair), c, weights=weights)
    torch.testing.assert_close(ours.per_unit, expected.per_unit)
    torch.testing.assert_close(grads[1].full_tensor(), whole[1])
    cut = distribute_tensor(c.student_weight, mesh, [Shard(0), Shard(0)])
    with pytest.raises(ValueError, match="in one dimension of its mesh"):
        run(LinearSimCTLoss(c.pair), c, weights=weights | {"student_weight": cut})


@shard_case
def tokenizers_of_the_demo(peer):
    if peer.n_ranks > 2:
        return  # the larger group runs the small pairs only
    aligner = Aligner(*demo_tokenizers())
    batch = aligner.align_texts(
        ["Each of 12 boxes weighs 345 kg.", "def f(x):\n    return x + 1\n"]
    )
    generator = torch.Generator().manual_seed(0)
    c = SimpleNamespace(pair=aligner, index=batch.index(text_events=True))
    for side, width in zip(SIDES, (6, 4), strict=True):
        n_tokens = getattr(batch, side).values.size
        n_columns = len(getattr(aligner, side)) + 3
        for name, shape in (("hidden", (n_tokens, width)), ("weight", (n_columns, width)),
                            ("bias", (n_columns,))):  # fmt: skip
            drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
            setattr(c, f"{side}_{name}", drawn)
    check(peer, c, metrics="full", options={"bias": True})
    check(peer, c, candidates="shared", divergence="jsd")
    check(peer, c, LinearTextLoss, options={"bias": True})


@shard_case
def rows_of_the_teacher_are_moved_once(peer):
    c = linear_case(2)
    moved, swapped = [], Exchange.swapped

    def counted(self, rows, sent, received):
        moved.append(sum(received))
        return swapped(self, rows, sent, received)

    held = [sharded(peer, c, side) for side in SIDES]
    weight = held[0]["teacher_weight"] = held[0]["teacher_weight"].clone()
    common = {"teacher_hidden": c.teacher_hidden, "student_hidden": c.student_hidden}
    loss_fn = LinearSimCTLoss(c.pair)

    def call():
        return loss_fn(**common, **held[0], **held[1], index=c.index).loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exchange, "swapped", counted)
        first = call()
        assert len(moved) == 1
        torch.testing.assert_close(call(), first)
        assert len(moved) == 1
        weight.mul_(0.5)
        changed = call()
        assert len(moved) == 2
        call()
        loss_fn.forget_teacher_rows()
        torch.testing.assert_close(call(), changed)
        assert len(moved) == 3
    shared = c.pair.shared
    total = torch.tensor(moved[0])
    dist.all_reduce(total)
    # Each shared column's row once, and the other stops'.
    assert total == len(shared.teacher_ids) + len(shared.teacher_stop_ids) - 1
    c.teacher_weight = c.teacher_weight * 0.5
    torch.testing.assert_close(changed, run(LinearSimCTLoss(c.pair), c)[0].loss)


@shard_case
def numbers_that_are_exchanged(peer):
    """Nothing of the size of units times vocabulary: a few numbers per unit and the gradient."""
    c = linear_case(3, rows=6, length=20)
    told, all_reduce = [], dist.all_reduce

    def counted(tensor, *arguments, **keywords):
        told.append(tensor.numel())
        return all_reduce(tensor, *arguments, **keywords)

    held = {**sharded(peer, c, "teacher"), **sharded(peer, c, "student")}
    hidden = c.student_hidden.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_reduce", counted)
        LinearSimCTLoss(c.pair, metrics="full", score="event")(
            teacher_hidden=c.teacher_hidden, student_hidden=hidden, index=c.index, **held
        )
    steps = c.index.n_teacher_steps + c.index.n_student_steps - 2 * c.index.n_multi
    stops = len(c.pair.shared.student_stop_ids) + 1
    multi, shared = c.index.n_multi, c.index.n_shared
    # What the design page says: masses everywhere are 3 more numbers for a SHARED unit and side.
    per_unit = (6 + 6 + stops) * shared + (17 + stops) * multi
    assert sum(told) <= per_unit + 3 * steps + hidden.numel()


@shard_case
def memory_is_that_of_a_chunk(peer):
    c = linear_case(7, rows=40)
    taken, take = [], Workspace.take

    def counted(self, name, rows, columns, dtype):
        taken.append(rows * columns)
        return take(self, name, rows, columns, dtype)

    held = {**sharded(peer, c, "teacher"), **sharded(peer, c, "student")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workspace, "take", counted)
        LinearSimCTLoss(c.pair, chunk_bytes=4_000)(
            teacher_hidden=c.teacher_hidden, student_hidden=c.student_hidden, index=c.index, **held
        )
    assert 8 * max(taken) <= 4_000 < 8 * c.student.numel() / peer.n_ranks


@shard_case
def shards_that_do_not_fit(peer):
    n, rank = peer.n_ranks, peer.rank
    with pytest.raises(ValueError, match=r"overlap: rows 9 to 20 of rank 1"):
        VocabularyShard(None, 9 * rank + (rank > 1) * n, 9 * rank + 10 + (rank > 0))
    with pytest.raises(ValueError, match="leave rows out: rows 11"):
        VocabularyShard(None, 11 * rank, 11 * rank + 10)
    with pytest.raises(ValueError, match="leave rows out: rows 1 to"):
        VocabularyShard(None, 10 * rank + (rank == 0), 10 * rank + 10)
    with pytest.raises(ValueError, match="at least one row on every rank"):
        VocabularyShard(None, 10 * rank, 10 * rank + 10 * (rank > 0))
    with pytest.raises(ValueError, match="same partial_hidden_gradient on every rank"):
        VocabularyShard(None, 10 * rank, 10 * rank + 10, rank == 0)
    with pytest.raises(ValueError, match="expected ranges of"):
        VocabularyShard(None, 0, 5, ranges=((0, 5),) * 1)
    groups = [dist.new_group([other]) for other in range(n)]
    with pytest.raises(ValueError, match="is not in the group"):
        VocabularyShard(groups[(rank + 1) % n], 0, 5)
    c = linear_case(1)
    alone = VocabularyShard.of_weight(c.teacher_weight, groups[rank])
    assert alone.ranges == ((0, c.teacher_weight.shape[0]),)
    common = {"teacher_hidden": c.teacher_hidden, "student_hidden": c.student_hidden}
    student = sharded(peer, c, "student")
    with pytest.raises(ValueError, match="shards of the same processes"):
        LinearSimCTLoss(c.pair)(
            **common, teacher_weight=c.teacher_weight, teacher_shard=alone, **student,
            index=c.index,
        )  # fmt: skip
    bad = student | {"student_weight": c.student_weight}
    with pytest.raises(ValueError, match=r"student_weight: expected .* rows for student_shard"):
        LinearSimCTLoss(c.pair)(**common, teacher_weight=c.teacher_weight, **bad, index=c.index)
    few = c.student_weight[: 2 * n]
    shard = VocabularyShard.of_weight(few[2 * rank : 2 * rank + 2])
    with pytest.raises(ValueError, match=rf"student_weight: expected at least .*; got {2 * n}"):
        LinearSimCTLoss(c.pair)(
            **common, teacher_weight=c.teacher_weight, index=c.index, student_shard=shard,
            student_weight=few[2 * rank : 2 * rank + 2],
        )  # fmt: skip
    with pytest.raises(TypeError, match="student_shard: expected a VocabularyShard, got tuple"):
        LinearSimCTLoss(c.pair)(
            **common, teacher_weight=c.teacher_weight, index=c.index,
            **student | {"student_shard": (0, 3)},
        )  # fmt: skip
    dist.barrier()


class Untermed:
    """A divergence without `terms`."""

    def __call__(self, *, log_teacher, log_student, grad):
        grad.zero_()
        return (log_student - log_teacher).sum(1)


@shard_case
def keywords_that_do_not_fit(peer):
    c = text_case(1)
    student = sharded(peer, c, "student")
    common = {
        "teacher_hidden": c.teacher_hidden, "teacher_weight": c.teacher_weight,
        "student_hidden": c.student_hidden, "index": c.index,
    }  # fmt: skip
    with pytest.raises(TypeError, match=r"need a TermwiseDivergence.*got Untermed"):
        LinearSimCTLoss(c.pair, divergence=Untermed())(**common, **student)
    index = c.pair.align_batch([[0]], [[0]]).index(max_path=2)
    with pytest.raises(ValueError, match="candidates='on_path' needs whole rows"):
        LinearSimCTLoss(c.pair, candidates="on_path")(**common | {"index": index}, **student)


@shard_case
def weights_of_megatron(peer):
    """Equal numbers of rows with padding at the end, of which the shard is made."""
    c = linear_case(5)
    pad = -len(c.student_weight) % (4 * peer.n_ranks)
    c.student_weight = torch.nn.functional.pad(c.student_weight, (0, 0, 0, pad))
    rows = len(c.student_weight) // peer.n_ranks
    own = slice(peer.rank * rows, (peer.rank + 1) * rows)
    shard = VocabularyShard.of_weight(c.student_weight[own])
    assert (shard.start, shard.stop) == (own.start, own.stop)
    expected, whole = run(LinearSimCTLoss(c.pair), c)
    ours, grads = run(
        LinearSimCTLoss(c.pair), c, shards={"student_shard": shard},
        weights={"student_weight": c.student_weight[own], "student_bias": None,
                 "teacher_weight": c.teacher_weight, "teacher_bias": None},
    )  # fmt: skip
    torch.testing.assert_close(ours.per_unit, expected.per_unit)
    torch.testing.assert_close(grads[0], whole[0])
    torch.testing.assert_close(grads[1], whole[1][own])
