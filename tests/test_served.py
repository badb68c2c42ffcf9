"""Answers of servers as arrays of log-probabilities.

The answers in tests/data/served_answers.json are written by hand after the formats of vLLM (its
OpenAI-compatible server and `vllm.logprobs`, version 0.11), SGLang (`/generate`, version 0.5) and
OpenAI's completions API. All of them are about the same two texts. Those in
tests/data/vllm_answers.json were recorded; the file tells of what.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from simct_align import Aligner, Vocabulary
from simct_align.served import (
    ServedLogprobs,
    TopKLogprobs,
    from_openai,
    from_sglang,
    from_vllm,
)

if TYPE_CHECKING:
    from collections.abc import Callable

NAN, INF = math.nan, math.inf
ANSWERS = json.loads(
    (Path(__file__).parent / "data" / "served_answers.json").read_text(encoding="utf-8")
)
IDS = [[9, 4, 7], [9, 2]]
TAKEN = [NAN, -0.5, -3.25, NAN, -INF]
#: The two likeliest tokens of every position.
TOP = [{}, {4: -0.5, 8: -1.5}, {0: -0.125, 1: -2.5}, {}, {5: -0.25, 6: -1.75}]
READERS: dict[str, tuple[Callable[..., ServedLogprobs], str]] = {
    "vllm": (from_vllm, "vllm_completions"),
    "sglang": (from_sglang, "sglang_generate"),
    "openai": (from_openai, "completions_echo"),
}


@dataclass
class Logprob:
    """The fields of `vllm.logprobs.Logprob`."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class RequestOutput:
    """The fields of `vllm.RequestOutput` that matter here."""

    prompt_token_ids: list[int]
    prompt_logprobs: Any
    outputs: list[Any] = field(default_factory=list)


class FlatLogprobs(Sequence[Any]):
    """Like `vllm.logprobs.FlatLogprobs`: positions are made on demand, the first one empty."""

    def __init__(self, positions: list[Any]) -> None:
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: Any) -> Any:
        return self._positions[position] or {}


def objects(value: Any) -> Any:
    """The same answer as objects with attributes, as client libraries return them."""
    if isinstance(value, list):
        return [objects(each) for each in value]
    if isinstance(value, dict) and not any(key[:1].isdigit() or ":" in key for key in value):
        return SimpleNamespace(**{key: objects(each) for key, each in value.items()})
    return value


def offline(row: int) -> list[Any]:
    """`prompt_logprobs` of a row as vLLM returns it without a server."""
    choice = next(c for c in ANSWERS["vllm_completions"]["choices"] if c["index"] == row)
    return [
        entry
        if entry is None
        else {
            int(key): Logprob(-INF if value["logprob"] == -9999.0 else value["logprob"])
            for key, value in entry.items()
        }
        for entry in choice["prompt_logprobs"]
    ]


def lists(top: TopKLogprobs) -> list[dict[int, float]]:
    return [
        dict(zip(*(column.tolist() for column in top.of_position(position)), strict=True))
        for position in range(len(top))
    ]


def check(found: ServedLogprobs) -> None:
    np.testing.assert_array_equal(found.logprobs, TAKEN)
    assert found.logprobs.dtype == np.float64
    assert lists(found.top) == TOP
    assert found.without == 2


# What servers return


@pytest.mark.parametrize("server", READERS)
def test_a_response(server: str) -> None:
    read, name = READERS[server]
    check(read(ANSWERS[name], IDS, top_k=2))
    check(read(objects(ANSWERS[name]), IDS, top_k=2, vocab_size=13))


@pytest.mark.parametrize("server", ["vllm", "openai"])
def test_one_answer_per_row(server: str) -> None:
    read, name = READERS[server]
    choices = sorted(ANSWERS[name]["choices"], key=lambda choice: choice["index"])
    check(read(choices, IDS, top_k=2))
    check(read([{"choices": [choice]} for choice in choices], IDS, top_k=2))
    check(read(objects([{"choices": [choice]} for choice in choices]), IDS, top_k=2))


def test_the_values_alone() -> None:
    check(from_vllm([offline(0), offline(1)], IDS, top_k=2))
    logprobs = [choice["logprobs"] for choice in ANSWERS["completions_echo"]["choices"]]
    check(from_openai(logprobs, IDS, top_k=2))
    metas = [answer["meta_info"] for answer in ANSWERS["sglang_generate"]]
    check(from_sglang(metas, IDS, top_k=2))
    tokens = from_sglang([meta["input_token_logprobs"] for meta in metas], IDS)
    np.testing.assert_array_equal(tokens.logprobs, TAKEN)
    assert lists(tokens.top) == [{}] * 5


@pytest.mark.parametrize("kind", [list, FlatLogprobs])
def test_vllm_offline(kind: type) -> None:
    outputs = [RequestOutput(ids, kind(offline(row))) for row, ids in enumerate(IDS)]
    check(from_vllm(outputs, IDS, top_k=2))


def test_a_chat_has_its_logprobs_beside_the_choices() -> None:
    for answer in (ANSWERS["vllm_chat"], [ANSWERS["vllm_chat"]], objects(ANSWERS["vllm_chat"])):
        found = from_vllm(answer, IDS[:1], top_k=2)
        np.testing.assert_array_equal(found.logprobs, TAKEN[:3])
        assert lists(found.top) == TOP[:3]


def test_all_entries_are_kept_by_default_and_the_likeliest_is_first() -> None:
    for server in ("vllm", "openai"):
        read, name = READERS[server]
        found = lists(read(ANSWERS[name], IDS).top)
        assert found[2] == {0: -0.125, 1: -2.5, 7: -3.25}
        assert list(found[2]) == [0, 1, 7]
        assert list(found[4].items()) == [(5, -0.25), (6, -1.75), (2, -INF)]
    assert lists(from_sglang(ANSWERS["sglang_generate"], IDS).top) == TOP


@pytest.mark.parametrize("server", READERS)
def test_shorter_lists(server: str) -> None:
    read, name = READERS[server]
    assert [len(found) for found in lists(read(ANSWERS[name], IDS, top_k=1).top)] == [0, 1, 1, 0, 1]
    none = read(ANSWERS[name], IDS, top_k=0)
    assert len(none.top.ids) == 0
    assert len(none.top) == 5
    np.testing.assert_array_equal(none.logprobs, TAKEN)


def test_a_text_without_marked_ids_needs_the_ids_of_the_prompt() -> None:
    answers = copy.deepcopy(ANSWERS["completions_echo"])
    for choice, ids in zip(answers["choices"], IDS, strict=True):
        choice["logprobs"]["tokens"] = ["<s>", "1", "+", "y"][: len(ids) + 1]
    with pytest.raises(ValueError, match=r'row 0, position 0: expected an id or "token_id:<id>"'):
        from_openai(answers, IDS, top_k=0)
    for choice, ids in zip(answers["choices"], IDS, strict=True):
        choice["prompt_token_ids"] = ids
    np.testing.assert_array_equal(from_openai(answers, IDS, top_k=0).logprobs, TAKEN)
    answers["choices"][1]["prompt_token_ids"] = [9, 3]
    with pytest.raises(ValueError, match="row 1, position 1: the answer has id 3, but teacher_ids"):
        from_openai(answers, IDS, top_k=0)


def test_a_part_of_the_text() -> None:
    """`logprob_start_len`: the first position of an answer has no log-probability."""
    answers = copy.deepcopy(ANSWERS["sglang_generate"])
    for answer in answers:
        for name in ("input_token_logprobs", "input_top_logprobs"):
            answer["meta_info"][name] = answer["meta_info"][name][1:]
        answer["meta_info"]["input_token_logprobs"][0][0] = None
        answer["meta_info"]["input_top_logprobs"][0] = None
    for start in (1, [1, 1], np.array([1, 1])):
        found = from_sglang(answers, IDS, start=start, top_k=2)
        np.testing.assert_array_equal(found.logprobs, [NAN, NAN, -3.25, NAN, NAN])
        assert lists(found.top) == [{}, {}, TOP[2], {}, {}]
        assert found.without == 4
    with pytest.raises(ValueError, match="row 0: input_token_logprobs has 2 positions, expected 3"):
        from_sglang(answers, IDS)
    with pytest.raises(ValueError, match="start: row 1: 3 is not a position of a row of 2 tokens"):
        from_sglang(answers, IDS, start=[1, 3])
    with pytest.raises(ValueError, match="start: row 0: -1 is not a position"):
        from_sglang(answers, IDS, start=-1)
    for wrong in ([1, 1, 1], 1.0, "1", True):
        with pytest.raises(TypeError, match="start: expected an integer, or 2 of them, got"):
            from_sglang(answers, IDS, start=wrong)


def test_sglang_writes_0_for_the_last_id() -> None:
    answer = [{"meta_info": {"input_token_logprobs": [[None, 3, None], [-1.0, 0, None]]}}]
    np.testing.assert_array_equal(from_sglang(answer, [[3, 9]], vocab_size=10).logprobs, [NAN, -1])
    for vocab_size in (None, 11):
        with pytest.raises(ValueError, match="row 0, position 1: the answer has id 0, but teacher"):
            from_sglang(answer, [[3, 9]], vocab_size=vocab_size)


# Layouts


@pytest.mark.parametrize("server", READERS)
def test_padded_ids(server: str) -> None:
    read, name = READERS[server]
    ids = np.array([[0, 9, 4, 7], [9, 2, 0, 0]])
    mask = np.array([[0, 1, 1, 1], [1, 1, 0, 0]])
    for given in ((ids, mask), (ids.tolist(), mask.tolist())):
        found = read(ANSWERS[name], given[0], attention_mask=given[1], top_k=2)
        expected = np.full((2, 4), NAN)
        expected[mask != 0] = TAKEN
        shape = (2, 4) if given[0] is ids else (8,)
        np.testing.assert_array_equal(found.logprobs, expected.reshape(shape))
        assert lists(found.top) == [{}, *TOP[:3], *TOP[3:], {}, {}]
        assert found.without == 2


def test_they_go_straight_to_the_student() -> None:
    teacher = Vocabulary.from_token_bytes([b"ab", b"c"])
    student = Vocabulary.from_token_bytes([b"a", b"b", b"c"])
    ids, mask = np.array([[1, 0, 1], [0, 1, 0]]), np.array([[1, 1, 1], [0, 1, 1]])
    batch = Aligner(teacher, student).align_batch(
        ids, [[0, 1, 2], [0, 1]], teacher_mask=[[0, 1, 1], [0, 0, 1]]
    )
    answers = [
        [[None, 1, None], [-3.0, 0, None], [-0.5, 1, None]],
        [[None, 1, None], [-1.0, 0, None]],
    ]
    served = from_sglang(answers, ids, attention_mask=mask, vocab_size=len(teacher))
    assert batch.student_logprobs(served.logprobs).tolist() == [-1.5, -1.5, -0.5, -0.5, -0.5]


def test_ids_may_be_of_numpy() -> None:
    found = from_vllm([[None, {np.int64(5): np.float32(-0.5)}]], [[3, 5]])
    np.testing.assert_array_equal(found.logprobs, [NAN, -0.5])
    pairs = [(None, np.int32(3)), (np.float64(-0.5), np.int32(5))]
    np.testing.assert_array_equal(from_sglang([pairs], [[3, 5]]).logprobs, [NAN, -0.5])


def test_no_rows_and_empty_rows() -> None:
    for read, _ in READERS.values():
        found = read([], [])
        assert len(found.logprobs) == len(found.top) == found.without == 0
    assert from_vllm([[], offline(1)], [[], IDS[1]]).logprobs.tolist()[1] == -INF
    assert len(from_sglang([[]], [[]]).top) == 0


def test_random_answers_of_all_servers_agree() -> None:
    rng = random.Random(0)
    for _ in range(20):
        ids, vllm, sglang, openai, expected = [], [], [], [], []
        for _ in range(rng.randrange(5)):
            row = [rng.randrange(50) for _ in range(rng.randrange(1, 9))]
            ids.append(row)
            tops = [dict.fromkeys(rng.sample(range(50), 4), 0.0) for _ in row]
            for top in tops:
                top.update({i: -rng.expovariate(1) - rng.random() * 1e-3 for i in top})
            taken = [top.get(i, min(top.values()) - 1.0) for top, i in zip(tops, row, strict=True)]
            expected.append((tops, taken))
            full = [{**top, i: lp} for top, i, lp in zip(tops, row, taken, strict=True)]
            vllm.append(
                [None, *({str(i): {"logprob": p} for i, p in each.items()} for each in full[1:])]
            )
            sglang.append(
                {
                    "input_token_logprobs": [
                        [lp if n else None, i, None]
                        for n, (i, lp) in enumerate(zip(row, taken, strict=True))
                    ],
                    "input_top_logprobs": [
                        None,
                        *([(p, i) for i, p in top.items()] for top in tops[1:]),
                    ],
                }
            )
            openai.append(
                {
                    "tokens": [f"token_id:{i}" for i in row],
                    "token_logprobs": [None, *taken[1:]],
                    "top_logprobs": [
                        None,
                        *({f"token_id:{i}": p for i, p in each.items()} for each in full[1:]),
                    ],
                }
            )
        wanted_taken = [lp if n else NAN for _, row in expected for n, lp in enumerate(row)]
        wanted = [
            sorted(top.items(), key=lambda entry: -entry[1]) if n else []
            for tops, _ in expected
            for n, top in enumerate(tops)
        ]
        for read, answers in ((from_vllm, vllm), (from_sglang, sglang), (from_openai, openai)):
            found = read(answers, ids, top_k=4, vocab_size=50)
            np.testing.assert_array_equal(found.logprobs, wanted_taken)
            assert found.without == len(ids)
            for position, entries in enumerate(wanted):
                top_ids, logprobs = found.top.of_position(position)
                assert top_ids.tolist() == [i for i, _ in entries]
                np.testing.assert_array_equal(logprobs, np.float32([p for _, p in entries]))


# Wrong answers

VLLM = [[None, {"4": {"logprob": -0.5}, "8": {"logprob": -1.5}}, {"7": {"logprob": -1.0}}]]


def vllm(position: int, entry: Any) -> list[Any]:
    row = list(VLLM[0])
    row[position] = entry
    return [row]


@pytest.mark.parametrize(
    ("answers", "error", "message"),
    [
        (vllm(1, None), ValueError, "row 0, position 1: the answer has no log-probability of the"),
        (vllm(2, {}), ValueError, "row 0, position 2: the answer has no log-probability of the t"),
        (
            vllm(1, {"5": {"logprob": -1.0}}),
            ValueError,
            "row 0, position 1: the answer has no log-probability of id 4, which teacher_ids has",
        ),
        (vllm(1, {"4": {"logprob": NAN}}), ValueError, "row 0, position 1: the token's .* is NaN"),
        (vllm(1, {"4": {"logprob": 0.5}}), ValueError, "position 1: the token's .* is 0.5, expec"),
        (
            vllm(1, {"4": {"logprob": -1.0}, "8": {"logprob": NAN}}),
            ValueError,
            "row 0, position 1: the log-probability of id 8 is NaN, expected at most 0",
        ),
        (
            vllm(1, {"4": -1.0, 4: -2.0}),
            ValueError,
            "row 0, position 1: id 4 is in the list twice",
        ),
        (
            vllm(1, {"4": -1.0, "64": -2.0}),
            ValueError,
            "row 0, position 1: id 64 is not in a vocabulary of 64 tokens",
        ),
        (vllm(1, {"4": -1.0, "-1": -2.0}), ValueError, "row 0, position 1: id -1 is not in a voc"),
        (vllm(1, {" the": -1.0}), ValueError, "row 0, position 1: expected an id, got .* the"),
        (vllm(1, {"\ud800": -1.0}), ValueError, "row 0, position 1: expected an id, got"),
        (vllm(1, {True: -1.0}), TypeError, "row 0, position 1: expected an id, got bool"),
        (vllm(1, {10**30: -1.0}), ValueError, "row 0, position 1: id 10+ does not fit int64"),
        (
            vllm(1, {"4": 10**400}),
            TypeError,
            "row 0, position 1: expected a log-probability, got i",
        ),
        ([{"prompt_logprobs": 5}], TypeError, "row 0: prompt_logprobs: expected a list, got int"),
        (vllm(1, {4.0: -1.0}), TypeError, "row 0, position 1: expected an id, got float"),
        (vllm(1, {"4": None}), TypeError, "row 0, position 1: expected a log-probability, got No"),
        (vllm(1, {"4": {"logprob": None}}), TypeError, "position 1: expected a log-probability, g"),
        (vllm(1, {"4": "-1.0"}), TypeError, "row 0, position 1: expected a log-probability, got s"),
        (vllm(1, {"4": True}), TypeError, "row 0, position 1: expected a log-probability, got bo"),
        (vllm(1, [[-1.0, 4]]), TypeError, "row 0, position 1: expected a dict from id to log-pro"),
        ([VLLM[0][:2]], ValueError, "row 0: prompt_logprobs has 2 positions, expected 3 as in tea"),
        ([{"text": "1+"}], ValueError, "row 0: the answer has no prompt_logprobs"),
        ([{"prompt_logprobs": None}], ValueError, "row 0: the answer has no prompt_logprobs"),
        ([{"choices": [{}, {}]}], ValueError, "row 0: the answer has 2 choices, expected 1"),
        ([None], ValueError, "row 0: the answer has no prompt_logprobs"),
        ({"choices": {"x": 1}}, TypeError, "answers: 'choices': expected a list, got dict"),
        ([{"choices": "x"}], TypeError, "row 0: 'choices': expected a list, got str"),
        ([], ValueError, "answers has 0 entries, expected 1, one for every row of teacher_ids"),
        (VLLM * 2, ValueError, "answers has 2 entries, expected 1"),
        ("[]", TypeError, "answers: expected a list with one answer per row, or a response with"),
        (RequestOutput([9], VLLM[0]), TypeError, "answers: expected a list .* got RequestOutput"),
    ],
)
def test_wrong_answers(answers: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        from_vllm(answers, [[9, 4, 7]], vocab_size=64)


@pytest.mark.parametrize(
    ("tokens", "lists", "error", "message"),
    [
        ([[None, 9, None], [-1.0, 5, None]], None, ValueError, "position 1: the answer has id 5"),
        ([[None, 9, None], [None, 4, None]], None, ValueError, "position 1: the answer has no log"),
        ([[None, 9, None], [NAN, 4, None]], None, ValueError, "row 0, position 1: the token's lo"),
        ([[None, 9, None]], None, ValueError, "input_token_logprobs has 1 positions, expected 2"),
        ([[None, 9, None], [-1.0]], None, TypeError, r"position 1: expected a list \[log-prob"),
        ([[None, 9, None], -1.0], None, TypeError, r"position 1: expected a list \[log-probabil"),
        ([[None, 9, None], "ab"], None, TypeError, r"position 1: expected a list \[log-probabil"),
        ([[None, 9, None], [-1.0, "4", None]], None, ValueError, "row 0, position 1: expected an"),
        ([[None, 9], {0: -1.0, 1: 4}], None, TypeError, r"position 1: .* \[log-.*, got dict"),
        (5, None, TypeError, "row 0: input_token_logprobs: expected a list, got int"),
        (None, 5, TypeError, "row 0: input_top_logprobs: expected a list, got int"),
        (None, [None, 5], TypeError, "row 0, position 1: expected a list of entries, got int"),
        (None, [None], ValueError, "input_top_logprobs has 1 positions, expected 2"),
        (None, [None, None], ValueError, r"position 1: the answer has 0 log-probabilities, expe"),
        (None, [None, [[-1.0, 4]]], ValueError, r"has 1 log-probabilities, expected at least 2"),
        (None, [None, [[-1.0, 4], [None, 5]]], ValueError, "no log-probability of id 5"),
        (None, [None, [[-1.0, 4], [-2.0, 4]]], ValueError, "position 1: id 4 is in the list tw"),
        (
            None,
            [[[-1.0, 4]], [[-1.0, 4], [-2, 5]]],
            ValueError,
            "position 0: the answer has no log",
        ),
        (None, None, ValueError, r"row 0: the answer has no input_top_logprobs, expected lists of"),
        (None, [], ValueError, r"row 0: the answer has no input_top_logprobs, expected lists of 2"),
    ],
)
def test_wrong_answers_of_sglang(
    tokens: Any, lists: Any, error: type[Exception], message: str
) -> None:
    good = [[None, 9, None], [-1.0, 4, None]]
    meta = {"input_token_logprobs": tokens or good, "input_top_logprobs": lists}
    with pytest.raises(error, match=message):
        from_sglang([{"meta_info": meta}], [[9, 4]], top_k=None if tokens else 2)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokens": ["token_id:9"]}, ValueError, "row 0: tokens has 1 positions, expected 2"),
        ({"tokens": None}, ValueError, "row 0: the answer has no logprobs with tokens"),
        ({"token_logprobs": [None]}, ValueError, "row 0: token_logprobs has 1 positions, expected"),
        ({"token_logprobs": None}, ValueError, "row 0: the answer has no token_logprobs"),
        ({"token_logprobs": [None, None]}, ValueError, "row 0, position 1: the answer has no log"),
        ({"tokens": ["token_id:9", "token_id:5"]}, ValueError, "position 1: the answer has id 5"),
        ({"tokens": ["token_id:9", "token_id:x"]}, ValueError, "row 0, position 1: expected an id"),
        ({"top_logprobs": None}, ValueError, "row 0: the answer has no top_logprobs, expected lis"),
        ({"top_logprobs": [None]}, ValueError, "row 0: top_logprobs has 1 positions, expected 2"),
        ({"top_logprobs": [None, {"4": -1.0}]}, ValueError, "position 1: expected an id or"),
        ({"top_logprobs": [None, [4]]}, TypeError, "row 0, position 1: expected a dict from id"),
    ],
)
def test_wrong_answers_of_completions(change: Any, error: type[Exception], message: str) -> None:
    logprobs = {
        "tokens": ["token_id:9", "token_id:4"],
        "token_logprobs": [None, -1.0],
        "top_logprobs": [None, {"token_id:4": -1.0}],
    }
    from_openai([{"logprobs": logprobs}], [[9, 4]], top_k=1)
    with pytest.raises(error, match=message):
        from_openai([{"logprobs": logprobs | change}], [[9, 4]], top_k=1)


def test_parts_of_answers_that_have_no_order() -> None:
    """What a server's answer has in place of a list or a position."""
    ids = [{"prompt_token_ids": [9, 4], "logprobs": {"tokens": {"x": 1}, "token_logprobs": [0, 0]}}]
    assert from_openai(ids, [[9, 4]], top_k=0).logprobs.tolist() == [0, 0]
    choices = [{"index": index, "prompt_logprobs": VLLM[0]} for index in ("1", 0)]
    with pytest.raises(TypeError, match="answers: 'index' of a choice: expected an integer, got s"):
        from_vllm({"choices": choices}, [[9, 4, 7]] * 2)


def test_wrong_arguments() -> None:
    for keywords, error, message in (
        ({"top_k": -1}, ValueError, "top_k is -1, expected 0 to 16777215"),
        ({"top_k": 2**64}, ValueError, "top_k is 18446744073709551616, expected 0 to 16777215"),
        ({"top_k": 1.5}, TypeError, "top_k: expected an integer, got float"),
        ({"vocab_size": 0}, ValueError, "vocab_size is 0, expected 1 to"),
        ({"attention_mask": [[1, 1]]}, ValueError, "attention_mask: row 0 has 2 entries, expected"),
        (
            {"attention_mask": [[1, 1, 0]]},
            ValueError,
            "prompt_logprobs has 3 positions, expected 2",
        ),
    ):
        with pytest.raises(error, match=message):
            from_vllm(VLLM, [[9, 4, 7]], **keywords)
    for offsets in ([0, 2], [1, 3], [0, 4], [0, 4, 3], []):
        for mask in (None, np.ones(3, bool)) if offsets else (None,):
            with pytest.raises(ValueError, match="teacher_ids: offsets must start at 0"):
                from_vllm([], (np.array([9, 4, 7]), np.array(offsets)), attention_mask=mask)


# Answers of a real server


REAL = json.loads((Path(__file__).parent / "data" / "vllm_answers.json").read_text("utf-8"))


def test_every_format_of_vllm_has_the_same_numbers() -> None:
    ids = REAL["ids"]
    served = from_vllm(REAL["prompt_logprobs"], ids, vocab_size=49152)
    assert served.without == len(ids)
    # bfloat16 in the server, float32 here.
    expected = [NAN, *REAL["forward_pass"][0], NAN, *REAL["forward_pass"][1]]
    np.testing.assert_allclose(served.logprobs, expected, atol=0.2)
    echoed = from_openai(REAL["echo"], ids, vocab_size=49152)
    np.testing.assert_array_equal(echoed.logprobs, served.logprobs)
    assert lists(echoed.top) == lists(served.top)
    by_ids = from_openai(REAL["echo_ids"], ids, top_k=0)
    np.testing.assert_array_equal(by_ids.logprobs, served.logprobs)
    # With `return_token_ids` the echoed lists name tokens by their text; those beside them do not.
    both = from_vllm(REAL["echo_ids"], ids)
    assert lists(both.top) == lists(served.top)
    assert lists(from_vllm(objects(REAL["prompt_logprobs"]), ids).top) == lists(served.top)


def test_lists_of_vllm_have_the_token_of_the_text_in_addition() -> None:
    ids = REAL["ids"]
    every, likeliest = (from_vllm(REAL["prompt_logprobs"], ids, top_k=k).top for k in (None, 2))
    assert {len(row) for row in lists(every)} == {0, 2, 3}
    assert {len(row) for row in lists(likeliest)} == {0, 2}
    assert list(lists(every)[1])[-1] == ids[0][1]
    full = lists(from_vllm(REAL["prompt_logprobs"], ids, top_k=1).lists)
    for row, token in zip(full, [*ids[0], *ids[1]], strict=True):
        assert not row or token in row


def test_a_chat_of_vllm() -> None:
    ids = REAL["chat"]["prompt_token_ids"]
    served = from_vllm(REAL["chat"], [ids], vocab_size=49152)
    assert np.isfinite(served.logprobs[1:]).all()
    assert served.logprobs.max(initial=-INF, where=~np.isnan(served.logprobs)) <= 0.0


@pytest.mark.parametrize("read", [from_vllm, from_openai, from_sglang])
def test_errors_in_place_of_answers(read: Callable[..., ServedLogprobs]) -> None:
    """vLLM's and SGLang's forms of an error, and exceptions that a client gathered."""
    found = "expected an answer of the server, got an error: .*"
    vocabulary = found + "Token id 49160 is out of vocabulary"
    ids, error = [[9, 4, 7]], REAL["error"]
    flat = {"object": "error", **error["error"]}
    for answer in (error, flat, objects(error)):
        with pytest.raises(ValueError, match="answers: " + vocabulary):
            read(answer, ids)
        with pytest.raises(ValueError, match="row 0: " + vocabulary):
            read([answer], ids)
    with pytest.raises(ValueError, match=f"row 0: {found}TimeoutError.*60 seconds"):
        read([TimeoutError("60 seconds")], ids)


# The lists


def test_lists_of_positions() -> None:
    top = TopKLogprobs(
        np.array([7, 3, 7], np.uint8), np.array([-0.1, -2.5, 0.0]), np.array([0, 0, 2, 3], np.int32)
    )
    assert (top.ids.dtype, top.logprobs.dtype, top.offsets.dtype) == (
        np.int32,
        np.float32,
        np.int64,
    )
    assert len(top) == 3
    assert top.of_position(1)[0].tolist() == [7, 3]
    assert len(TopKLogprobs([], [], [0])) == 0
    for position in (-1, 3):
        with pytest.raises(IndexError, match="is not one of 3 positions"):
            top.of_position(position)


def test_lists_of_tensors() -> None:
    torch = pytest.importorskip("torch")
    top = TopKLogprobs(
        torch.tensor([7, 3]), torch.tensor([-0.5, -2.5], dtype=torch.bfloat16), torch.tensor([0, 2])
    )
    assert lists(top) == [{7: -0.5, 3: -2.5}]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"ids": [1, 2]}, ValueError, "logprobs has 3 entries, expected 2: one for every id"),
        ({"offsets": [0, 2]}, ValueError, "offsets must start at 0, never fall and end at the num"),
        ({"offsets": []}, ValueError, "offsets has 0 entries, expected 1"),
        ({"ids": [1, -2, 3]}, ValueError, "position 0: id -2 is not in a vocabulary of 1"),
        ({"ids": [1, 2, 2**40]}, ValueError, "position 1: id 1099511627776 is not in a vocabulary"),
        ({"vocab_size": 3}, ValueError, "position 1: id 3 is not in a vocabulary of 3 tokens"),
        ({"ids": [1, 1, 3]}, ValueError, "position 0: id 1 is in the list twice"),
        ({"logprobs": [-1.0, NAN, -1.0]}, ValueError, "position 0: .* of id 2 is NaN, expected at"),
        ({"logprobs": [-1.0, None, -1.0]}, ValueError, "position 0: .* of id 2 is NaN, expected"),
        ({"logprobs": [-1.0, -1.0, 0.25]}, ValueError, "position 1: .* of id 3 is 0.25, expected"),
        ({"logprobs": [-1.0, -1.0, INF]}, ValueError, "position 1: .* of id 3 is inf, expected"),
        ({"ids": [1.0, 2.0, 3.0]}, TypeError, "ids: expected a 1-D array of integers, got float64"),
        ({"ids": [[1, 2, 3]]}, TypeError, "ids: expected a 1-D array of integers, got int64 of r"),
        ({"ids": "123"}, TypeError, "ids: expected an array or a tensor, got str"),
        ({"logprobs": np.zeros((1, 3))}, TypeError, "logprobs: expected a 1-D array, got rank 2"),
        ({"logprobs": np.zeros(3, int)}, TypeError, "logprobs: expected floating-point numbers"),
        ({"offsets": [0.0, 2.0, 3.0]}, TypeError, "offsets: expected a 1-D array of integers"),
        ({"vocab_size": "3"}, TypeError, "vocab_size: expected an integer, got str"),
        ({"vocab_size": 2**24}, ValueError, "vocab_size is 16777216, expected 1 to 16777215"),
    ],
)
def test_wrong_lists(change: Any, error: type[Exception], message: str) -> None:
    good: dict[str, Any] = {"ids": [1, 2, 3], "logprobs": [-1.0, -2.0, 5e-4], "offsets": [0, 2, 3]}
    TopKLogprobs(**good)
    with pytest.raises(error, match=message):
        TopKLogprobs(**(good | change))
