"""The contract of KDFlow's algorithms against the loss by hand.

KDFlow is not in the package index. `Student` follows the forward pass of its `DistillModel` and the
head of its `FSDP2Strategy.load_hf_model`, and the micro-batches its `VanillaKD.training_step`:
github.com/kkyyxhll/KDFlow at commit b2d0930 (hidden states, with and without a chunked loss) and
github.com/songmzhang/KDFlow at commit 264dd27 (logits, before that).
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from simct_align import Aligner, UnitClass, UnitKind, Vocabulary  # noqa: E402
from simct_align.demo import demo_tokenizers  # noqa: E402
from simct_align.integrations.kdflow import SimCTAlgorithm  # noqa: E402
from simct_align.loss import SimCTLoss  # noqa: E402

HIDDEN = 6
TALK = [
    ["Ask 1 thing? ", "It costs 12345 naïve apples.", " And more?", " 678 pears"],
    ["Say: ", "def area(r): return 3.14", "", ""],
]


class Student(torch.nn.Module):
    """`DistillModel`, in one of its forms: what it returns, and how its head is called."""

    def __init__(self, size: int, returns: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.returns = returns
        self.model = torch.nn.Module()
        self.model.embedding = torch.nn.Embedding(size, HIDDEN)
        self.model.lm_head = torch.nn.Linear(HIDDEN, size)
        self.head = self.model.lm_head.forward
        if returns == "chunked":
            self.model.lm_head.forward = lambda x, skip=True: x if skip else self.head(x)
        self.seen = {}

    def hidden(self, ids):
        return self.model.embedding(ids).cumsum(1)

    def forward(
        self, sequences, attention_mask=None, allgather_logits=False, ring_attn_group=None, **kwargs
    ):
        self.seen = {"mask": attention_mask, "group": ring_attn_group, **kwargs}
        assert allgather_logits is True
        hidden = self.hidden(sequences)
        if self.returns == "logits":
            return {"logits": self.model.lm_head(hidden), "hidden_states": [hidden]}
        return {"hidden_states": [hidden]}


@pytest.fixture(scope="module")
def sides():
    return [Vocabulary.from_tokenizer(source) for source in demo_tokenizers()]


def dense(vocabulary, *, left: bool):
    """Ids, attention, and KDFlow's loss mask: true one place before every answer's token."""
    rows, masks = [], []
    for talk in TALK:
        parts = vocabulary.encode_batch(talk)
        rows.append([token for part in parts for token in part])
        answers = [number % 2 == 1 for number, part in enumerate(parts) for _ in part]
        masks.append([*answers[1:], False])
    width = max(map(len, rows)) + 2

    def filled(row, value):
        rest = [value] * (width - len(row))
        return [*rest, *row] if left else [*row, *rest]

    return (
        torch.tensor([filled(row, 0) for row in rows]),
        torch.tensor([filled([1] * len(row), 0) for row in rows]),
        torch.tensor([filled(mask, False) for mask in masks]).long(),
    )


def prepared(sides, *, left=False, kd_ratio=1.0, returns="hidden", **keywords):
    teacher, student = sides
    torch.manual_seed(0)
    head = torch.nn.Linear(HIDDEN, len(teacher), bias=False)
    model = Student(len(student) + 5, returns)  # an embedding with padding rows
    strategy = SimpleNamespace(
        args=SimpleNamespace(kd=SimpleNamespace(kd_ratio=kd_ratio)), ring_attn_group="group"
    )
    algorithm = SimCTAlgorithm(
        strategy=strategy, student_model=model, teacher_lm_head=head,
        student_tokenizer=student, teacher_tokenizer=teacher, other="ignored", **keywords,
    )  # fmt: skip
    micro_batch = {}
    for name, side in (("tea", teacher), ("stu", student)):
        for what, tensor in zip(
            ("input_ids", "attn_mask", "loss_mask"), dense(side, left=left), strict=True
        ):
            micro_batch[f"{name}_{what}"] = tensor
    hiddens = torch.randn(*micro_batch["tea_input_ids"].shape, HIDDEN) * 2
    micro_batch["teacher_hiddens"] = hiddens[micro_batch["tea_loss_mask"].bool()]
    micro_batch["avg_micro_batch_token_num"] = 7.0
    return algorithm, micro_batch, hiddens


def by_hand(sides, algorithm, micro_batch, hiddens, **keywords):
    """Teacher logits at all positions, and ids cut out with plain loops."""
    aligner = Aligner(*sides)
    masks = [
        [[False, *row[:-1]] for row in micro_batch[f"{side}_loss_mask"].bool().tolist()]
        for side in ("tea", "stu")
    ]
    batch = aligner.align_batch(
        micro_batch["tea_input_ids"].tolist(), micro_batch["stu_input_ids"].tolist(),
        teacher_mask=masks[0], student_mask=masks[1],
    )  # fmt: skip
    logits = algorithm.student.head(algorithm.student.hidden(micro_batch["stu_input_ids"]))
    out = SimCTLoss(aligner, reduction="sum", **keywords)(
        teacher_logits=algorithm.teacher_lm_head(hiddens).detach(),
        student_logits=logits,
        index=batch,
    )
    return batch, logits, out


@pytest.mark.parametrize(
    ("returns", "left"), [("hidden", False), ("hidden", True), ("chunked", False), ("logits", True)]
)
@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"candidates": "shared"},
        {"score": "event", "temperature": 2.0},
        {"divergence": "forward_kl"},
    ],
)
def test_loss_and_gradient(sides, keywords, returns, left) -> None:
    algorithm, micro_batch, hiddens = prepared(sides, left=left, returns=returns, **keywords)
    found = algorithm.training_step(micro_batch)
    found["loss"].backward()
    gradient = algorithm.student.model.lm_head.weight.grad.clone()
    algorithm.student.zero_grad()
    batch, _, out = by_hand(sides, algorithm, micro_batch, hiddens, **keywords)
    (out.loss / 7).backward()
    assert len(batch.unmatched) == 0
    assert (batch.kind == 1).sum() > 3
    torch.testing.assert_close(found["loss"], out.loss / 7)
    torch.testing.assert_close(found["kd_loss"], found["loss"])
    torch.testing.assert_close(gradient, algorithm.student.model.lm_head.weight.grad)
    assert gradient.abs().sum() > 0
    assert algorithm.teacher_lm_head.weight.grad is None
    assert algorithm.student.seen["group"] == "group"
    assert algorithm.student.seen["mask"] is micro_batch["stu_attn_mask"]
    tokens = sum(
        unit.student.stop - unit.student.start
        for row in range(len(batch))
        for unit in batch.units(row)
        if not unit.unit_class & UnitClass.TRIMMED
        and (keywords.get("candidates") != "shared" or unit.kind != UnitKind.MULTI)
    )
    assert found["align_ratio"].item() == pytest.approx(
        tokens / micro_batch["stu_loss_mask"].sum().item()
    )
    assert found["multi_units"] == out.metrics.units_multi


def test_every_keyword_changes_the_loss(sides) -> None:
    changed = [
        {}, {"candidates": "shared"}, {"score": "sum"},
        {"divergence": "tvd"}, {"temperature": 3.0},
        {"teacher_softcap": 0.5}, {"student_softcap": 0.5},
    ]  # fmt: skip
    losses = []
    for keywords in changed:
        algorithm, micro_batch, _ = prepared(sides, **keywords)
        losses.append(algorithm.training_step(micro_batch)["loss"].item())
    assert len({round(loss, 5) for loss in losses}) == len(changed)
    stops = ([max(sides[0].special_names)], [max(sides[1].special_names)])
    algorithm, *_ = prepared(sides, stop_tokens=stops)
    shared = algorithm.aligner.shared
    assert (shared.teacher_stop_ids.tolist(), shared.student_stop_ids.tolist()) == stops
    assert stops != ([*sides[0].stop_ids], [*sides[1].stop_ids])


def test_softcaps_bound_the_logits(sides) -> None:
    algorithm, micro_batch, hiddens = prepared(sides, teacher_softcap=0.5, student_softcap=0.25)
    found = algorithm.training_step(micro_batch)
    teacher_head, student_head = algorithm.teacher_lm_head, algorithm.student.head
    algorithm.teacher_lm_head = lambda x: 0.5 * torch.tanh(teacher_head(x) / 0.5)
    algorithm.student.head = lambda x: 0.25 * torch.tanh(student_head(x) / 0.25)
    _, _, out = by_hand(sides, algorithm, micro_batch, hiddens)
    torch.testing.assert_close(found["loss"], out.loss / 7)


@pytest.mark.parametrize("returns", ["hidden", "chunked", "logits"])
def test_cross_entropy_is_mixed_in(sides, returns) -> None:
    algorithm, micro_batch, hiddens = prepared(sides, kd_ratio=0.25, returns=returns)
    found = algorithm.training_step(micro_batch)
    _, logits, out = by_hand(sides, algorithm, micro_batch, hiddens)
    expected = 0.0
    for row, mask in enumerate(micro_batch["stu_loss_mask"].tolist()):
        for position, taken in enumerate(mask):
            if taken:
                token = micro_batch["stu_input_ids"][row, position + 1]
                expected -= logits[row, position].log_softmax(-1)[token].item()
    assert found["ce_loss"].item() == pytest.approx(expected / 7, rel=1e-5)
    mixed = 0.75 * expected / 7 + 0.25 * out.loss.item() / 7
    assert found["loss"].item() == pytest.approx(mixed, rel=1e-5)


def test_multimodal_inputs_and_nothing_else_reach_the_student(sides) -> None:
    algorithm, micro_batch, _ = prepared(sides)
    more = {"mm_pixel_values": 3, "stu_extra": 4, "tea_pixels": 5, "response_length": 6}
    algorithm.training_step({**micro_batch, **more})
    assert set(algorithm.student.seen) == {"mask", "group", "pixel_values"}
    assert algorithm.student.seen["pixel_values"] == 3
    algorithm.training_step({**micro_batch, "stu_multi_modal_inputs": {"image_grid_thw": 7}})
    assert set(algorithm.student.seen) == {"mask", "group", "image_grid_thw"}
    algorithm.training_step({**micro_batch, "stu_multi_modal_inputs": None})
    assert set(algorithm.student.seen) == {"mask", "group"}


def test_a_batch_without_answers(sides) -> None:
    algorithm, micro_batch, _ = prepared(sides, kd_ratio=0.5)
    for side in ("tea", "stu"):
        micro_batch[f"{side}_loss_mask"].zero_()
    micro_batch["teacher_hiddens"] = torch.zeros(0, HIDDEN)
    found = algorithm.training_step(micro_batch)
    found["loss"].backward()
    assert found["loss"] == found["align_ratio"] == found["multi_units"] == 0


def test_teacher_hiddens_are_checked(sides) -> None:
    algorithm, micro_batch, _ = prepared(sides)
    count = len(micro_batch["teacher_hiddens"])
    for hiddens, message in (
        (None, "teacher_hiddens'.: expected the teacher's hidden states"),
        (torch.zeros(count + 1, HIDDEN), f"expected {count} rows, .*, got {count + 1}"),
    ):
        with pytest.raises(ValueError, match=message):
            algorithm.training_step({**micro_batch, "teacher_hiddens": hiddens})


def test_what_kdflow_cannot_give(sides) -> None:
    algorithm, micro_batch, _ = prepared(sides)
    algorithm.student.forward = lambda *_, **__: {"loss": 0}
    with pytest.raises(ValueError, match=r"output with 'hidden_states' or 'logits', got \['loss'"):
        algorithm.training_step(micro_batch)
    with pytest.raises(TypeError, match=r"teacher_lm_head: .* got those of \['code', 'math'\]"):
        SimCTAlgorithm(None, None, {"math": None, "code": None}, *sides[::-1])
    with pytest.raises(ValueError, match="'on_path' needs the teacher's hidden state at the last"):
        prepared(sides, candidates="on_path")
