"""Lists of likeliest tokens: the class, from servers to a loss, and its promises about devices."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from simct_align import LinearTextLoss, SimCTLoss, TextLoss
from simct_align.loss import ops, text_ops
from simct_align.served import TopKLogprobs, from_openai, from_sglang, from_vllm
from support.index_twin import case
from support.text_cases import random_case
from test_loss_system import Strict
from test_top_k import ALWAYS, NEVER, simct_lists, teacher_lists

INF = math.inf


def lists_of(top):
    return [dict(zip(*(c.tolist() for c in top.of_position(i)), strict=True))
            for i in range(len(top))]  # fmt: skip


# The class


def test_dense_arrays_become_ragged() -> None:
    top = TopKLogprobs(np.array([[[7, 3], [5, -1]]]), np.array([[[-0.1, -2.5], [-0.7, np.nan]]]))
    assert top.is_ragged
    assert len(top) == 2
    assert top.offsets is not None
    assert top.offsets.tolist() == [0, 2, 3]
    assert top.ids.tolist() == [7, 3, 5]


def test_tensors_stay_tensors() -> None:
    ids, logprobs = torch.tensor([[7, 3], [5, -1]]), torch.tensor([[-0.1, -2.5], [-0.7, np.nan]])
    top = TopKLogprobs(ids, logprobs.double().requires_grad_())
    assert not top.is_ragged
    assert len(top) == 2
    assert top.ids is ids
    assert top.logprobs.dtype == torch.float64
    assert not top.logprobs.requires_grad
    assert top.of_position(1)[0].tolist() == [5]
    with pytest.raises(IndexError, match="position 2 is not one of 2 positions"):
        top.of_position(2)


def test_moved_lists_are_filled_up() -> None:
    top = TopKLogprobs([7, 3, 5], [-0.5, -2.5, -1.0], [0, 0, 2, 3], 9)
    moved = top.to("cpu")
    assert moved.ids.tolist() == [[-1, -1], [7, 3], [5, -1]]
    assert moved.logprobs[0].tolist() == [-INF, -INF]
    assert (moved.vocab_size, moved.token) == (9, "next")
    assert lists_of(moved) == lists_of(top)
    assert moved.to("cpu").ids.tolist() == moved.ids.tolist()
    assert TopKLogprobs([], [], [0, 0]).to("cpu").ids.shape == (1, 1)


def test_lists_of_own_tokens_are_shifted_to_rows_of_logits() -> None:
    own = TopKLogprobs([7, 3, 5], [-0.5, -2.5, -1.0], [0, 0, 2, 3], token="own").to("cpu")
    rows = TopKLogprobs(*own.rows_of_logits())
    assert lists_of(rows) == [{7: -0.5, 3: -2.5}, {5: -1.0}, {}]
    assert rows.token == "next"
    assert lists_of(TopKLogprobs(*rows.rows_of_logits())) == lists_of(rows)
    # What came is unchanged.
    assert lists_of(own) == [{}, {7: -0.5, 3: -2.5}, {5: -1.0}]
    with pytest.raises(TypeError, match=r"got ragged lists: call to\(device\)"):
        TopKLogprobs([7], [-0.5], [0, 1]).rows_of_logits()


def test_likeliest_tokens_of_logits() -> None:
    logits = torch.tensor([[[0.0, 3.0, 1.0, 9.0], [2.0, 0.0, 1.0, 9.0]]])
    top = TopKLogprobs.from_logits(logits, 2, temperature=2.0, vocab_size=3)
    assert top.ids.tolist() == [[[1, 2], [0, 2]]]
    expected = (logits[..., :3] / 2.0).log_softmax(-1).gather(-1, top.ids)
    torch.testing.assert_close(top.logprobs, expected)
    assert top.token == "next"
    for k, message in ((0, "k is 0, expected 1 to 3"), (4, "k is 4, expected 1 to 3")):
        with pytest.raises(ValueError, match=message):
            TopKLogprobs.from_logits(logits, k, vocab_size=3)
    with pytest.raises(TypeError, match="logits: expected floating-point numbers"):
        TopKLogprobs.from_logits(logits.long(), 1)


def test_tokens_are_added_where_lists_lack_them() -> None:
    top = TopKLogprobs([7, 3, 7], [-0.5, -2.5, -0.75], [0, 0, 2, 3], 9, "own")
    added = top.with_tokens(np.array([[1, 3, 8]]), [[np.nan, -2.5, -4.0]])
    assert lists_of(added) == [{}, {7: -0.5, 3: -2.5}, {7: -0.75, 8: -4.0}]
    assert (added.vocab_size, added.token) == (9, "own")
    with pytest.raises(ValueError, match="expected 3 ids and log-probabilities"):
        top.with_tokens([1, 2], [-1.0, -1.0])
    with pytest.raises(ValueError, match="id 9 is not in a vocabulary of 9"):
        top.with_tokens([1, 2, 9], [-1.0, -1.0, -1.0])
    with pytest.raises(TypeError, match="with_tokens: expected ragged lists"):
        top.to("cpu").with_tokens([1, 2, 3], [-1.0, -1.0, -1.0])


GOOD: dict[str, Any] = {
    "ids": torch.tensor([[1, 2], [3, -1]]),
    "logprobs": torch.tensor([[-1.0, -2.0], [-0.5, 0.0]]),
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ids": torch.tensor([1, 2])}, TypeError, r"expected a tensor \[\.\.\., K\].*flat ids ne"),
        ({"ids": torch.zeros(2, 0).long()}, TypeError, r"K of 1 or more, got \(2, 0\)"),
        ({"ids": GOOD["ids"].double()}, TypeError, "ids: expected integers, got torch.float64"),
        ({"logprobs": GOOD["logprobs"].int()}, TypeError, "expected floating-point numbers"),
        ({"logprobs": [[-1.0, -2.0]]}, TypeError, "logprobs: expected a tensor on cpu as ids"),
        ({"logprobs": torch.zeros(2, 3)}, ValueError, r"has shape \(2, 3\), expected \(2, 2\)"),
        ({"ids": torch.tensor([[1, 1], [3, -1]])}, ValueError, "position 0: id 1 is in the list"),
        ({"logprobs": GOOD["logprobs"] + 2}, ValueError, "position 0: .* of id 1 is 1"),
        ({"vocab_size": 3}, ValueError, "position 1: id 3 is not in a vocabulary of 3"),
        ({"token": "this"}, ValueError, "token: expected 'next' or 'own', got 'this'"),
        ({"ids": [1, 2], "logprobs": [-1.0, -2.0]}, TypeError, "flat ids need offsets"),
        ({"ids": [[1, 2]], "logprobs": [[-1.0]]}, ValueError, r"has shape \(1, 1\), expected"),
    ],
)
def test_wrong_tensors(change: Any, error: type[Exception], message: str) -> None:
    TopKLogprobs(**GOOD)
    with pytest.raises(error, match=message):
        TopKLogprobs(**(GOOD | change))


# From servers to a loss


def served(c, k, server):
    """Answers of a server about a case, and the lists that they have."""
    expected, lists = teacher_lists(c, k, own=NEVER)
    ids = [list(map(int, row)) for row in c.ids["teacher"]]
    starts = c.batch.teacher.offsets.tolist()
    logprobs = c.logits["teacher"][:, : len(c.aligner.teacher)].log_softmax(1)
    answers = []
    for number, row in enumerate(ids):
        positions = [None]
        for position in range(1, len(row)):
            before = starts[number] + position - 1
            top = {token: math.log(p) for token, p in lists[before].items()}
            positions.append((row[position], float(logprobs[before, row[position]]), top))
        answers.append(WRITERS[server](positions))
    read = {"vllm": from_vllm, "sglang": from_sglang, "openai": from_openai}[server]
    return read(answers, ids, vocab_size=len(c.aligner.teacher)), expected


def _vllm(positions):
    return {
        "prompt_logprobs": [
            None if each is None else {
                str(token): {"logprob": value, "rank": 1, "decoded_token": "?"}
                for token, value in (each[2] | {each[0]: each[1]}).items()
            }
            for each in positions
        ]
    }  # fmt: skip


def _sglang(positions):
    return {
        "meta_info": {
            "input_token_logprobs": [
                [None, 0, None] if each is None else [each[1], each[0], None] for each in positions
            ],
            "input_top_logprobs": [
                None if each is None else [[value, token, None] for token, value in each[2].items()]
                for each in positions
            ],
        }
    }


def _openai(positions):
    first = "token_id:0"
    return {
        "logprobs": {
            "tokens": [first if each is None else f"token_id:{each[0]}" for each in positions],
            "token_logprobs": [None if each is None else each[1] for each in positions],
            "top_logprobs": [
                None if each is None else {
                    f"token_id:{token}": value
                    for token, value in (each[2] | {each[0]: each[1]}).items()
                }
                for each in positions
            ],
        }
    }  # fmt: skip


WRITERS = {"vllm": _vllm, "sglang": _sglang, "openai": _openai}


@pytest.mark.parametrize("server", WRITERS)
def test_answers_of_a_server_are_a_teacher(server):
    c = random_case(7, alphabet=b"abc", scale=3.0)
    first = {row[0] for row in c.ids["teacher"]}
    if server != "vllm":
        # These servers repeat the id of the first position.
        c.ids["teacher"] = [[0, *row[1:]] for row in c.ids["teacher"]]
    assert len(first) == 1
    found, _ = served(c, 2, server)
    teacher, _ = teacher_lists(c, 2, own=ALWAYS)
    expected = c.run(teacher=teacher)
    out = c.run(teacher=found.lists)
    torch.testing.assert_close(out.per_unit, expected.per_unit, rtol=1e-4, atol=1e-5)
    assert out.metrics.offsets_unlisted == 0
    simct = SimCTLoss(c.aligner)(
        teacher_logits=found.lists, student_logits=c.logits["student"], index=c.batch
    )
    assert simct.metrics.left_out_multi == 0


# Devices, dtypes, operators


def losses(device, dtype=torch.float64):
    """Losses with lists, ready to run, and the leaves that get gradients."""
    c = random_case(3, alphabet=b"abc", scale=3.0)
    lists, _ = teacher_lists(c, 3)
    lists = TopKLogprobs(lists.ids.to(device), lists.logprobs.to(device, dtype))
    student = c.logits["student"].to(device, dtype).requires_grad_()
    index = c.index.to(device)
    text = TextLoss(c.aligner).to(device)
    yield lambda: text(teacher_logits=lists, student_logits=student, index=index), [student]
    hidden, weight = (
        torch.randn(n, 5, dtype=torch.float64).to(device, dtype).requires_grad_()
        for n in student.shape
    )
    linear = LinearTextLoss(c.aligner).to(device)
    yield (
        lambda: linear(
            teacher_logits=lists, student_hidden=hidden, student_weight=weight, index=index
        ),
        [hidden, weight],
    )
    u = case(3)
    of_units, _ = simct_lists(u, 3)
    of_units = TopKLogprobs(of_units.ids.to(device), of_units.logprobs.to(device, dtype))
    x = u.student.to(device, dtype).requires_grad_()
    units = u.index.to(device)
    for score in ("mean", "sum", "event"):
        simct = SimCTLoss(u.pair, score=score, metrics="full", min_teacher_mass=0.2).to(device)
        yield (
            lambda simct=simct: simct(teacher_logits=of_units, student_logits=x, index=units),
            [x],
        )


def test_nothing_waits_for_the_device():
    for run, _ in losses("meta"):
        with pytest.MonkeyPatch.context() as patch, Strict() as strict:
            for each in (text_ops.text_loss, text_ops.linear_text_loss, ops.logits_loss):
                patch.setattr(each, "op", each.forward)
            run()
        assert strict.seen > 100


def test_forward_and_backward_on_meta():
    for run, leaves in losses("meta"):
        out = run()
        out.loss.backward()
        assert out.per_unit.device.type == "meta"
        assert all(leaf.grad.shape == leaf.shape for leaf in leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_inputs_are_near_the_truth(dtype):
    for (run, leaves), (truth, wide) in zip(losses("cpu", dtype), losses("cpu"), strict=True):
        if len(leaves) > 1:
            continue  # other random hidden states
        out, expected = run(), truth()
        assert out.per_unit.dtype == torch.float32
        tolerance = 1e-4 if dtype == torch.float32 else 0.2
        torch.testing.assert_close(out.loss.double(), expected.loss, rtol=tolerance, atol=tolerance)
        out.loss.backward()
        expected.loss.backward()
        assert leaves[0].grad.dtype == dtype
        worst = (leaves[0].grad.double() - wide[0].grad).abs().max() / wide[0].grad.abs().max()
        assert worst < tolerance
        leaves[0].grad = wide[0].grad = None


def test_operators_pass_opcheck():
    captured = []
    with pytest.MonkeyPatch.context() as patch:
        for each in (text_ops.text_loss, ops.logits_loss):
            patch.setattr(
                each,
                "op",
                lambda *args, each=each, **numbers: (
                    captured.append((each, args, numbers)) or each.forward(*args, **numbers)
                ),
            )
        every = list(losses("cpu"))
        for run, _ in (every[0], every[2]):
            run()
    assert len(captured) == 2
    patch.undo()
    for operator, args, numbers in captured:
        torch.library.opcheck(operator.op, args, numbers)


def test_lists_with_nan_spoil_what_reads_them_only():
    """On a GPU the contents of lists are not checked."""
    c = random_case(3, alphabet=b"abc", scale=3.0)
    lists, _ = teacher_lists(c, 2)
    expected = c.run(teacher=lists)
    row = int(c.index.teacher_text_row[0])
    broken = copy.copy(lists)
    logprobs = lists.logprobs.clone()
    logprobs[row, 0] = math.nan
    object.__setattr__(broken, "logprobs", logprobs)
    student = c.logits["student"].clone().requires_grad_()
    out = c.run(student, teacher=broken)
    assert out.metrics.offsets_spoiled > 0
    assert out.per_unit.isfinite().all()
    same = out.per_unit == expected.per_unit
    assert same.any()
    assert not out.per_unit[~same].any()
    out.loss.backward()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("token", ["next", "own"])
def test_compiled_whole(token):
    c = random_case(5, alphabet=b"abc", scale=3.0)
    lists, _ = teacher_lists(c, 3)
    lists = TopKLogprobs(lists.ids, lists.logprobs, token=token)
    loss_fn, index = TextLoss(c.aligner), c.index.to("cpu")

    def step(student):
        return loss_fn(teacher_logits=lists, student_logits=student, index=index).loss

    torch._dynamo.reset()
    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        student = c.logits["student"].clone().requires_grad_()
        loss = run(student)
        loss.backward()
        results.append((loss.detach(), student.grad))
    torch.testing.assert_close(*results)
