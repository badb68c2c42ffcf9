"""What several adapters share: rows with labels, estimates of whole units, the models' ids."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from simct_align.integrations._teacher_row import TeacherRows, model_aligner  # noqa: E402
from simct_align.integrations._tensors import (  # noqa: E402
    align_labels,
    spread_estimates,
    teacher_inputs,
)
from support.chat_tokenizers import demo_aligner, demo_chat_tokenizers  # noqa: E402

ANSWER = "It is 42: naïve, but 12345 apples."


def talk(turns: int) -> list[dict[str, str]]:
    return [
        {"role": role, "content": content}
        for turn in range(turns)
        for role, content in (("user", f"What is {turn}?"), ("assistant", ANSWER))
    ]


def labelled(turns: int, trained: int) -> tuple[list[int], list[int]]:
    """The student's row of `talk(turns)`, and labels of its last `trained` answers."""
    aligner, tokenizer = demo_aligner(), demo_chat_tokenizers()[1]
    ids, labels = [], []
    for turn in range(turns):
        answer = [*aligner.student.encode_batch([ANSWER])[0], aligner.student.stop_ids[0]]
        prompt = tokenizer([f"[Q] What is {turn}? [A]"], add_special_tokens=False)["input_ids"][0]
        ids += [*prompt, *answer]
        taken = answer if turn >= turns - trained else [-100] * len(answer)
        labels += [-100] * len(prompt) + taken
    return ids, labels


def batch(rows: list[tuple[list[int], list[int]]], *, left: bool) -> dict[str, Any]:
    width = max(len(ids) for ids, _ in rows)
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for ids, labels in rows:
        for name, values, fill in (
            ("input_ids", ids, 0),
            ("attention_mask", [1] * len(ids), 0),
            ("labels", labels, -100),
        ):
            padding = [fill] * (width - len(ids))
            columns[name].append(padding + values if left else values + padding)
    return {name: torch.tensor(column) for name, column in columns.items()}


@pytest.mark.parametrize("left", [False, True])
def test_teacher_inputs_of_labelled_rows(left: bool) -> None:
    aligner = demo_aligner()
    rows = TeacherRows(aligner, demo_chat_tokenizers()[0])
    student = batch([labelled(3, 2), labelled(1, 1), labelled(2, 1)], left=left)
    inputs = teacher_inputs(rows, student, [talk(3), talk(1), talk(2)])
    decode = aligner.teacher.decode_bytes
    for row, (turns, trained) in enumerate([(3, 2), (1, 1), (2, 1)]):
        ids, mask, labels = (
            inputs[name][row] for name in ("input_ids", "attention_mask", "labels")
        )
        length = int(mask.sum())
        assert mask[:length].all()
        assert (labels[length:] == -100).all()
        text = demo_chat_tokenizers()[0].decode(ids[:length].tolist())
        assert text.count("<|assistant|>") == turns
        taught = labels[labels >= 0]
        said = student["labels"][row][student["labels"][row] >= 0]
        assert decode(taught.numpy()) == aligner.student.decode_bytes(said.numpy())
        assert decode(taught.numpy()).decode().count(ANSWER) == trained
        assert (ids[labels >= 0] == taught).all()
    index = align_labels(aligner, inputs["labels"], student["labels"])
    trained_tokens = int((student["labels"] >= 0).sum())
    assert index.normalizer("token", "realized") == trained_tokens > 0


def test_labels_without_an_answer_are_refused() -> None:
    rows = TeacherRows(demo_aligner(), demo_chat_tokenizers()[0])
    with pytest.raises(ValueError, match="2 runs of sampled tokens, expected 1"):
        rows.of_labels(*labelled(2, 2), talk(1))
    ids, labels = labelled(1, 0)
    assert rows.of_labels(ids, labels, talk(1)).ids == []


def test_numbers_of_the_tokens_that_follow() -> None:
    rows = TeacherRows(demo_aligner(), demo_chat_tokenizers()[0])
    ids, labels = labelled(1, 1)
    row = rows.of_labels(ids, labels, talk(1))
    own = -np.arange(1.0, len(row.ids) + 1) / 8
    even, units = row.even(own), row.units()
    # The same numbers, as a forward pass has them: entry i is about token i + 1.
    found, found_units = row.even_next([*own[1:], 0.0])
    known = ~np.isnan(even[1:])
    np.testing.assert_allclose(found[:-1][known], even[1:][known])
    np.testing.assert_array_equal(found_units[:-1][known], units[1:][known])
    assert not found[:-1][~known].any()
    assert (found_units[:-1][~known] == -1).all()
    assert (found[-1], found_units[-1]) == (0.0, -1)
    # A row of which nothing was sampled sends nothing, and gets nothing.
    nothing = rows.of_messages(ids, [False] * len(ids), [])
    found, found_units = nothing.even_next([])
    assert (len(nothing.ids), found.any(), found_units.tolist()) == (0, False, [-1] * len(ids))


def test_estimates_of_whole_units() -> None:
    rng = np.random.default_rng(0)
    units = np.array([[0, 0, 1, -1, 2, 2, 2], [0, 1, 1, 1, -1, -1, 0]])
    mask = np.ones_like(units)
    mask[1, 6] = 0  # a padded position, with whatever number
    student, teacher = -rng.random((2, *units.shape))
    tensors = [torch.tensor(each) for each in (student, teacher, units, mask)]
    found, share = spread_estimates(
        lambda s, t: (s - t) ** 2, tensors[0], tensors[1].float(), units=tensors[2], mask=tensors[3]
    )
    for row in range(2):
        for unit in range(3):
            of_unit = (units[row] == unit) & (mask[row] != 0)
            expected = (student[row][of_unit].sum() - teacher[row][of_unit].sum()) ** 2
            assert found[row].numpy()[of_unit].sum() == pytest.approx(expected, rel=1e-5)
            assert len(set(found[row].numpy()[of_unit].tolist())) <= 1
    assert not found.numpy()[(units < 0) | (mask == 0)].any()
    assert float(share) == pytest.approx(10 / 13)
    nothing, share = spread_estimates(
        torch.sub, *tensors[:2], units=tensors[2], mask=torch.zeros_like(tensors[3])
    )
    assert not nothing.any()
    assert float(share) == 0.0


@pytest.mark.parametrize("nested", [False, True])
def test_ids_of_the_embedding_alone_are_unused_ones(nested: bool) -> None:
    teacher, student = demo_chat_tokenizers()
    config = types.SimpleNamespace(vocab_size=len(student) + 7)
    if nested:
        config = types.SimpleNamespace(get_text_config=lambda text=config: text)
    aligner = model_aligner(teacher, student, config)
    assert len(aligner.student) == len(student) + 7
    assert aligner.digest == demo_aligner().digest
    # A size that is not known, or too small, leaves the tokenizer's.
    for size in (None, 3):
        found = model_aligner(teacher, student, types.SimpleNamespace(vocab_size=size))
        assert len(found.student) == len(student)
    assert aligner.align_batch([[0]], [[len(student) + 3]]).n_units == 0
