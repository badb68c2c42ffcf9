"""The example of two model families: its figures against plain loops, its problems, its rows."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from _cells import tiny_models
from measurements import LABELS, Measurer, Ratio, change, log_probabilities, sample
from two_families import read_rows, split_rows
from word_problems import word_problems

if TYPE_CHECKING:
    from pathlib import Path

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pair() -> Any:
    return tiny_models()


@pytest.fixture(scope="module")
def measurer(pair: Any) -> Measurer:
    return Measurer(*pair, word_problems(6, 0), max_new_tokens=12)


def text_nll(model: Any, prompt: list[int], completion: list[int], taken: int) -> float:
    """Of the completion's first tokens, by a forward pass without padding."""
    with torch.no_grad():
        ids = torch.tensor([prompt + completion])
        log_p = model(ids).logits[0].double().log_softmax(-1)
    places = range(len(prompt), len(prompt) + taken)
    return -sum(log_p[place - 1, ids[0, place]].item() for place in places)


def test_likelihoods_of_gold_answers_are_those_of_their_text(measurer: Measurer) -> None:
    figures = measurer.measure().figures
    for name, who, side, prompts in (
        ("gold_student", measurer.student, measurer.gold.student, measurer.student_prompts),
        ("gold_teacher", measurer.teacher, measurer.gold.teacher, measurer.teacher_prompts),
    ):
        for number, row in enumerate(word_problems(6, 0)):
            answer = row["completion"][0]["content"].encode()
            ids = side.input_ids[number][side.completion_mask[number] != 0].tolist()
            *ids, end = ids
            assert end in who.stops
            assert who.vocabulary.decode_bytes(ids) == answer
            expected = text_nll(who.model, list(prompts[number]), [*ids, end], len(ids))
            assert figures[name].numerator[number] == pytest.approx(expected, rel=1e-4)
            assert figures[name].denominator[number] == len(answer)


def test_reverse_kl_is_over_whole_samples_with_their_ends(measurer: Measurer) -> None:
    student, teacher = measurer.student, measurer.teacher
    sampled = sample(student, measurer.student_prompts, 12, 0)
    ratio = measurer.measure().figures["reverse_kl"]
    across = measurer.aligner.retokenize(sampled.ids)
    for number, ids in enumerate(sampled.ids):
        other = across.row(number).tolist()
        prompts = measurer.student_prompts[number], measurer.teacher_prompts[number]
        expected = text_nll(teacher.model, list(prompts[1]), other, len(other))
        expected -= text_nll(student.model, list(prompts[0]), ids, len(ids))
        assert ratio.numerator[number] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_measuring_twice_is_measuring_once(measurer: Measurer) -> None:
    one, two = measurer.measure(), measurer.measure()
    assert list(one.figures) == list(LABELS)
    assert one.texts == two.texts
    for name in LABELS:
        found = change(one.figures[name], two.figures[name])
        assert found.value == 0.0 or np.isnan(found.value)


def test_log_probabilities_do_not_depend_on_padding(measurer: Measurer) -> None:
    side = measurer.gold.student
    whole = log_probabilities(measurer.student.model, side).sum(axis=1)
    for number in range(len(whole)):
        one = type(side)(
            *(part[number : number + 1] for part in (side.input_ids, side.attention_mask)),
            side.completion_mask[number : number + 1],
        )
        alone = log_probabilities(measurer.student.model, one).sum()
        assert whole[number] == pytest.approx(alone, rel=1e-5)


def test_standard_errors_are_those_of_the_jackknife() -> None:
    draw = np.random.default_rng(0)
    size = draw.uniform(50, 150, 400)
    before = Ratio(size * 0.3 + draw.normal(0, 5, 400), size)
    # Another denominator: samples differ in length before and after.
    after = Ratio(before.numerator * 0.8 + draw.normal(0, 3, 400), size + draw.uniform(0, 30, 400))

    def without(ratio: Ratio, number: int) -> float:
        kept = np.arange(len(size)) != number
        return float(ratio.numerator[kept].sum() / ratio.denominator[kept].sum())

    for found, replicates in (
        (before.error, [without(before, i) for i in range(400)]),
        (change(before, after).error, [without(after, i) - without(before, i) for i in range(400)]),
    ):
        spread = np.array(replicates) - np.mean(replicates)
        jackknife = np.sqrt(399 / 400 * (spread**2).sum())
        assert found == pytest.approx(jackknife, rel=0.02)
    low, high = change(before, after).interval
    assert low < after.value - before.value < high


def test_word_problems_are_right_and_all_different() -> None:
    rows = word_problems(500, 1)
    questions = [row["prompt"][0]["content"] for row in rows]
    assert len(set(questions)) == 500
    sums = 0
    for row in rows:
        for line in row["completion"][0]["content"].splitlines():
            for left, right in re.findall(r"([\d$][\d$ x+-]*) = (\$?\d+)", line):
                expression = left.replace("$", "").replace("x", "*")
                assert eval(expression) == int(right.lstrip("$")), line
                sums += 1
    assert sums > 900


def test_rows_of_a_file_and_their_splits(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"question": "How many?", "answer": "It is 2+2 = <<2+2=4>>4.\n#### 4"},
        {"prompt": "One\u2028two", "completion": " three"},
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    read = read_rows(path, 0)
    assert read[0]["completion"] == [{"role": "assistant", "content": "It is 2+2 = 4."}]
    assert read[1] == rows[1]
    with pytest.raises(SystemExit, match="2 rows leave none to train on"):
        split_rows(read, 1)
    splits = split_rows(word_problems(30, 0), 10)
    taken = [json.dumps(row) for split in splits for row in split]
    assert len(set(taken)) == len(taken) == 30
    path.write_text('{"text": "?"}\n')
    with pytest.raises(SystemExit, match=r"line 1: expected 'prompt' and 'completion'"):
        read_rows(path, 0)
