"""Rows, turns and numbers that cannot be: one error names the argument and the place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from simct_align import SimCTCollator  # noqa: E402
from simct_align.chat import prompt_ids  # noqa: E402
from simct_align.integrations._teacher_row import TeacherRows  # noqa: E402
from support.chat_tokenizers import demo_aligner, demo_chat_tokenizers  # noqa: E402

QUESTION = {"role": "user", "content": "What is 12 + 30?"}
ANSWER = {"role": "assistant", "content": "It is 42."}


def sampled_row() -> dict[str, Any]:
    """The arguments of `TeacherRows.of_messages`."""
    aligner, tokenizer = demo_aligner(), demo_chat_tokenizers()[1]
    text = tokenizer.apply_chat_template([QUESTION], tokenize=False, add_generation_prompt=True)
    prompt = tokenizer([text], add_special_tokens=False)["input_ids"][0]
    answer = [*aligner.student.encode_batch(["It is 42."])[0], aligner.student.stop_ids[0]]
    return {
        "token_ids": prompt + answer,
        "sampled": [0] * len(prompt) + [1] * len(answer),
        "messages": [QUESTION],
    }


def teacher_rows() -> TeacherRows:
    return TeacherRows(demo_aligner(), demo_chat_tokenizers()[0])


def test_forms_of_a_sampled_row() -> None:
    row, rows = sampled_row(), teacher_rows()
    expected = rows.of_messages(**row).ids
    forms: list[dict[str, Any]] = [
        {"token_ids": np.array(row["token_ids"], np.uint16), "sampled": np.array(row["sampled"])},
        {"token_ids": torch.tensor(row["token_ids"]), "sampled": torch.tensor(row["sampled"]) > 0},
        {"token_ids": tuple(row["token_ids"]), "sampled": tuple(map(bool, row["sampled"]))},
        {"messages": np.array([QUESTION], object), "turns": np.array([1])},
        {"messages": [QUESTION, ANSWER], "turns": [1]},
    ]
    for form in forms:
        assert rows.of_messages(**row | form).ids == expected


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"token_ids": [1.5] * 22}, TypeError, "token_ids: .*position 0: expected an integer, got"),
        ({"token_ids": ["7"] * 22}, TypeError, "token_ids: .*position 0: expected an integer, got"),
        ({"token_ids": None}, TypeError, "token_ids: expected a one-dimensional sequence of int"),
        ({"token_ids": "hello"}, TypeError, "token_ids: expected a one-dimensional sequence"),
        ({"token_ids": [2**70] * 22}, ValueError, "token_ids: .*position 0: .* does not fit int64"),
        ({"token_ids": [4096] * 22}, ValueError, "position 16: student id 4096 is not in the voc"),
        ({"token_ids": [-1] * 22}, ValueError, "position 16: student id -1 is not in the vocab"),
        (
            {"sampled": ["0"] * 22},
            TypeError,
            "sampled: expected booleans or integers, got dtype <U",
        ),
        ({"sampled": [0.5] * 22}, TypeError, "sampled: expected booleans or integers, got dtype f"),
        ({"sampled": None}, TypeError, "sampled: expected an array or a tensor, got NoneType"),
        ({"sampled": [1] * 21}, ValueError, r"sampled: expected 22 entries, one per token, got sh"),
        ({"messages": "Hi"}, TypeError, "messages is of type str; expected a list of messages"),
        ({"messages": QUESTION}, TypeError, "messages is of type dict; expected a list of mess"),
        ({"messages": None}, TypeError, "messages is of type NoneType; expected a list of mess"),
        ({"messages": [{"content": "x"}]}, TypeError, r"message 0 of messages has the keys \['con"),
        ({"turns": "1"}, TypeError, "turns: expected a list of positions, got str"),
        ({"turns": [1.0]}, TypeError, r"turns\[0\]: expected an integer, got float"),
        ({"turns": [5]}, ValueError, r"turns\[0\] is 5, expected 0 to 1"),
        ({"turns": [-1]}, ValueError, r"turns\[0\] is -1, expected 0 to 1"),
        ({"turns": [0]}, ValueError, r"turns\[0\] is 0, a message with the role 'user'; expected"),
        ({"turns": [1, 1]}, ValueError, r"turns\[1\] is 1, expected a position after 1"),
    ],
)
def test_sampled_rows(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        teacher_rows().of_messages(**sampled_row() | change)


def test_labels_and_prompts() -> None:
    rows, row = teacher_rows(), sampled_row()
    labels = np.where(row["sampled"], row["token_ids"], -100)
    for messages in ("Hi", None, [1]):
        with pytest.raises(TypeError, match=r"expected a (list of messages|dictionary with the)"):
            rows.of_labels(row["token_ids"], labels, messages)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="prompt: expected a text, got NoneType"):
        rows.of_text(row["token_ids"], row["sampled"], None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="position 0: student id 5000 is not in the vocabulary"):
        rows.of_text([5000, *row["token_ids"]], [0, *row["sampled"]], "2 +")
    assert rows.of_text([7, 8], [0, 0], "2 +").ids == []


def test_numbers_of_a_teacher() -> None:
    row = teacher_rows().of_messages(**sampled_row())
    size = len(row.ids)
    wrong: list[tuple[Any, type[Exception], str]] = [
        (
            ["x"] * size,
            TypeError,
            "teacher_logprobs, position 0: expected a number or None, got str",
        ),
        (None, TypeError, "teacher_logprobs: expected an array or a tensor, got NoneType"),
        (np.zeros((1, size)), ValueError, rf"expected {size} numbers.* got shape \(1, {size}\)"),
        (torch.zeros(size, requires_grad=True), TypeError, r"pass tensor.detach\(\)"),
        # Probabilities in place of their logarithms.
        (
            [-1.0, 0.5] * (size // 2),
            ValueError,
            "position 1 is 0.5, expected the logarithm of a pr",
        ),
    ]
    for numbers, error, message in wrong:
        with pytest.raises(error, match=message):
            row.even(numbers)


def test_tokenizers_in_the_wrong_place() -> None:
    aligner, (teacher, student) = demo_aligner(), demo_chat_tokenizers()
    spelled = "its ids of 'the 12 answers' are .* expected the tokenizer of this vocabulary"
    with pytest.raises(ValueError, match="teacher_tokenizer: " + spelled):
        SimCTCollator(aligner, student, teacher)
    with pytest.raises(ValueError, match="student_tokenizer: " + spelled):
        SimCTCollator(aligner, teacher, teacher)
    with pytest.raises(ValueError, match="teacher_tokenizer: " + spelled):
        TeacherRows(aligner, student)
    for wrong in (None, "gpt2"):
        with pytest.raises(TypeError, match="teacher_tokenizer: expected a tokenizer of transform"):
            TeacherRows(aligner, wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="student_tokenizer: expected a tokenizer of transform"):
            SimCTCollator(aligner, teacher, wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="aligner: expected an Aligner, got"):
            SimCTCollator(wrong, teacher, student)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="the chat template: expected a tokenizer of transform"):
            prompt_ids(wrong, [QUESTION], [1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ([QUESTION, ANSWER], TypeError, "row 0: expected a dictionary, got list"),
        (None, TypeError, "row 0: expected a dictionary, got NoneType"),
        ({"truncated": "no"}, TypeError, "row 0: 'truncated': expected True or False, got 'no'"),
        ({"truncated": [0.5]}, TypeError, "row 0: 'truncated': expected True or False, got 0.5"),
        ({"truncated": []}, ValueError, "row 0: 'truncated' has 0 flags, expected one per turn: 1"),
        ({"completion_ids": {"x": 1}}, ValueError, "row 0: 'completion_ids': .* turn, got dict"),
        ({"completion_ids": [1, [2]]}, ValueError, "row 0: 'completion_ids': .* integers or one"),
        ({"completion_ids": 5}, ValueError, "row 0: 'completion_ids': .* per turn, got int"),
        ({"completion_ids": "ab"}, ValueError, "row 0: 'completion_ids': .* per turn, got str"),
        (
            {"chat_template_kwargs": [1]},
            TypeError,
            "row 0: 'chat_template_kwargs': expected a dict",
        ),
    ],
)
def test_rows_of_a_data_set(row: Any, error: type[Exception], message: str) -> None:
    collate = SimCTCollator(demo_aligner(), *demo_chat_tokenizers())
    if isinstance(row, dict):
        row = {"messages": [QUESTION, ANSWER]} | row
    with pytest.raises(error, match=message):
        collate([row])


def test_rows_that_are_none() -> None:
    collate = SimCTCollator(demo_aligner(), *demo_chat_tokenizers())
    for rows in (None, "x", {"messages": [QUESTION, ANSWER]}):
        with pytest.raises(TypeError, match="rows: expected a list of dictionaries, got"):
            collate(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize("history", ["template", "sampled"])
def test_texts_that_are_not_unicode(history: Any) -> None:
    """JSON may have half of a surrogate pair: completions take its bytes."""
    collate = SimCTCollator(demo_aligner(), *demo_chat_tokenizers(), history=history)
    message = "row 0: the teacher's chat template: .* around a completion is not valid Unicode at"
    for change in ({"role": "a\ud800"}, {"content": "a\ud800"}):
        for completion in ({}, {"completion_ids": [5]}):
            with pytest.raises(ValueError, match=message):
                collate([{"messages": [QUESTION | change, ANSWER], **completion}])
    with pytest.raises(ValueError, match="row 0: 'prompt' is not valid Unicode at character 1"):
        collate([{"prompt": "a\ud800", "completion": "b"}])
    batch = collate.prepare([{"messages": [QUESTION, ANSWER | {"content": "a\ud800"}]}])
    text = b"".join(unit.bytes for unit in batch.aligned.units(0))
    assert text == b"a\xed\xa0\x80"


def test_options_of_templates_are_a_dictionary() -> None:
    with pytest.raises(TypeError, match="chat_template_kwargs: expected a dictionary, got str"):
        SimCTCollator(demo_aligner(), *demo_chat_tokenizers(), chat_template_kwargs="x")  # type: ignore[arg-type]


def test_flags_of_prepared_rows_are_flags() -> None:
    aligner = demo_aligner()
    prompts = {"teacher_prompt_ids": [[0]], "student_prompt_ids": [[0]]}
    for flag in (True, 1, np.True_, np.array(1), torch.tensor(True)):
        assert aligner.prepare([[70]], truncated=[flag], **prompts).counts.truncated_turns == 1
    for flag in ("no", 0.5, None):
        with pytest.raises(TypeError, match="row 0: truncated: expected True or False, got"):
            aligner.prepare([[70]], truncated=[flag], **prompts)
