"""slime and prime-rl, whose teachers are servers, against their contracts.

Neither is in the package index. `Sample` has the fields and the method of slime's class that its
`slime/rollout/on_policy_distillation.py` reads and writes: github.com/THUDM/slime, types.py at
commit 0d234f3 and the rollout at commit 7509ba0. The `prime_rl` modules follow `OPDAlgorithm`
(orchestrator/algo/opd.py), `iter_trainable_traces` (algo/base.py), `assign_reference_logprobs`
(algo/routing.py) and `iter_trainable_branches` (orchestrator/trajectories.py) of
github.com/PrimeIntellect-ai/prime-rl, and `Branch` and `MessageNode` of its verifiers.v1.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
import math
import sys
import threading
import types
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from simct_align import UnitClass  # noqa: E402
from simct_align.integrations._teacher_row import TeacherRows  # noqa: E402
from simct_align.integrations.prime_rl import with_other_tokenizer  # noqa: E402
from simct_align.integrations.slime import SlimeTeacher  # noqa: E402
from support.chat_tokenizers import demo_aligner, demo_chat_tokenizers  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

MESSAGES = [{"role": "user", "content": "What is 12 + 30?"}]
ANSWER = "It is 42: naïve, but 12345 apples."


def pair(*, turned: bool) -> tuple[Any, Any, Any]:
    """The aligner, the teacher's tokenizer and the student's."""
    teacher, student = demo_chat_tokenizers()[:: -1 if turned else 1]
    return demo_aligner(turned=turned), teacher, student


def logprob(position: int, token: int) -> float:
    """What the server says: another number at every place."""
    return -((token * 7 + position * 3) % 11 + 1) / 8


def written(tokenizer: Any, messages: list[dict[str, Any]]) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer([text], add_special_tokens=False)["input_ids"][0]


def by_hand(
    aligner: Any, teacher_row: list[int], answer: list[int], own: list[float], of_row: list[float]
) -> list[float]:
    """The contract in plain loops over units of the answer."""
    teacher_answer = aligner.retokenize([answer]).row(0).tolist()
    before = len(teacher_row) - len(teacher_answer)
    assert teacher_row[before:] == teacher_answer
    expected = list(own)
    for unit in aligner.align_batch([teacher_answer], [answer]).units(0):
        if unit.unit_class & UnitClass.TRIMMED:
            continue
        of_teacher = sum(of_row[before + at] for at in unit.teacher)
        of_student = sum(own[at] for at in unit.student)
        for at in unit.student:
            expected[at] = own[at] + (of_teacher - of_student) / len(unit.student)
    return expected


# slime


@dataclasses.dataclass
class Sample:
    prompt: Any = ""
    tokens: list[int] = dataclasses.field(default_factory=list)
    response_length: int = 0
    reward: Any = None
    loss_mask: list[int] | None = None
    rollout_log_probs: list[float] | None = None
    teacher_log_probs: Any = None
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    def get_reward_value(self, args: Any) -> Any:
        return self.reward if not args.reward_key else self.reward[args.reward_key]


class SGLang(BaseHTTPRequestHandler):
    """`/generate` with `return_logprob`: the first token has no log-probability."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert request["return_logprob"] is True
        assert request["logprob_start_len"] == 0
        assert request["sampling_params"]["max_new_tokens"] == 0
        ids = request["input_ids"]
        of_tokens = [[logprob(at, token), token, None] for at, token in enumerate(ids)]
        of_tokens[0][0] = None
        body = json.dumps({"text": "", "meta_info": {"input_token_logprobs": of_tokens}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    with HTTPServer(("127.0.0.1", 0), SGLang) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield types.SimpleNamespace(
            rm_url=f"http://127.0.0.1:{served.server_port}/generate", reward_key=None
        )
        served.shutdown()
        thread.join()


def sample_of(tokenizer: Any, aligner: Any, **more: Any) -> Sample:
    answer = aligner.student.encode_batch([ANSWER])[0] + [aligner.student.stop_ids[0]]
    return Sample(
        prompt="the prompt as the student's template wrote it",
        tokens=written(tokenizer, MESSAGES) + answer,
        response_length=len(answer),
        rollout_log_probs=[-((at * 5) % 7 + 1) / 4 for at in range(len(answer))],
        metadata={"messages": MESSAGES},
        **more,
    )


async def scored(teacher: Any, args: Any, samples: list[Sample]) -> Any:
    """As slime's rollout and its post-processing call the two functions."""
    rewards = await asyncio.gather(*(teacher.reward_func(args, sample) for sample in samples))
    for sample, reward in zip(samples, rewards, strict=True):
        sample.reward = reward
    return teacher.post_process_rewards(args, samples)


@pytest.mark.parametrize("turned", [False, True])
def test_slime(server: Any, turned: bool) -> None:
    pytest.importorskip("aiohttp")
    aligner, teacher_tokenizer, student_tokenizer = pair(turned=turned)
    teacher = SlimeTeacher(aligner, teacher_tokenizer)
    samples = [sample_of(student_tokenizer, aligner) for _ in range(3)]
    raw, scaled = asyncio.run(scored(teacher, server, samples))
    assert raw == scaled == [0.0] * 3
    for sample in samples:
        found = sample.teacher_log_probs
        assert found.dtype == torch.float32
        assert found.shape == (sample.response_length,)
        answer = sample.tokens[-sample.response_length :]
        sent = written(teacher_tokenizer, MESSAGES) + aligner.retokenize([answer]).row(0).tolist()
        of_row = [logprob(at, token) for at, token in enumerate(sent)]
        expected = by_hand(aligner, sent, answer, sample.rollout_log_probs, of_row)
        assert found.tolist() == pytest.approx(expected)
        # The end of the turn has the teacher's own number.
        assert found[-1].item() == pytest.approx(of_row[-1])
    assert teacher.counts["rows"] == 3
    assert teacher.counts["sampled_tokens"] == 3 * samples[0].response_length
    assert teacher.counts["tokens_without_teacher"] == 0


def test_slime_with_plain_prompts(server: Any) -> None:
    pytest.importorskip("aiohttp")
    aligner, teacher_tokenizer, student_tokenizer = pair(turned=False)
    teacher = SlimeTeacher(aligner, teacher_tokenizer)
    prompt = "12 + 30 ="
    answer = aligner.student.encode_batch(["42"])[0]
    sample = Sample(
        prompt=prompt,
        tokens=student_tokenizer([prompt])["input_ids"][0] + answer,
        response_length=len(answer),
        rollout_log_probs=[-1.0] * len(answer),
    )
    asyncio.run(scored(teacher, server, [sample]))
    assert sample.teacher_log_probs.shape == (len(answer),)
    as_messages = copy.copy(sample)
    as_messages.prompt = MESSAGES
    asyncio.run(scored(teacher, server, [as_messages]))
    assert not torch.equal(as_messages.teacher_log_probs, sample.teacher_log_probs)


def test_slime_samples_that_cannot_be_scored() -> None:
    aligner, teacher_tokenizer, student_tokenizer = pair(turned=True)
    teacher = SlimeTeacher(aligner, teacher_tokenizer)
    sample = sample_of(student_tokenizer, aligner)
    templated = dataclasses.replace(sample, metadata={})
    with pytest.raises(ValueError, match=r"control token '<\|end\|>' .* as messages"):
        asyncio.run(teacher.reward_func(None, templated))
    with pytest.raises(ValueError, match="rollout_log_probs: expected the log-probabilities"):
        asyncio.run(teacher.reward_func(None, dataclasses.replace(sample, rollout_log_probs=None)))
    holes = [1] * sample.response_length
    holes[3] = 0
    with pytest.raises(ValueError, match="2 runs of sampled tokens, expected 1, one per turn"):
        asyncio.run(teacher.reward_func(None, dataclasses.replace(sample, loss_mask=holes)))
    # Nothing was sampled: there is nothing to ask.
    aborted = dataclasses.replace(sample, response_length=0, rollout_log_probs=[])
    assert asyncio.run(teacher.reward_func(None, aborted)) == {"teacher_log_probs": []}


# prime-rl


@dataclasses.dataclass
class Message:
    role: str
    content: str

    def model_dump(self, *, exclude_none: bool) -> dict[str, Any]:
        assert exclude_none
        return dataclasses.asdict(self)


@dataclasses.dataclass
class MessageNode:
    message: Message
    token_ids: list[int]
    mask: list[bool]
    logprobs: list[float]
    reference_logprobs: list[float] | None = None

    @property
    def sampled(self) -> bool:
        return any(self.mask)


@dataclasses.dataclass
class Branch:
    nodes: list[MessageNode]
    trainable: bool = True

    @property
    def token_ids(self) -> list[int]:
        return [token for node in self.nodes for token in node.token_ids]

    @property
    def sampled_mask(self) -> list[bool]:
        return [flag for node in self.nodes for flag in node.mask]

    @property
    def logprobs(self) -> list[float]:
        found: list[float] = []
        for node in self.nodes:
            values = iter(node.logprobs)
            found += [next(values) if flag else 0.0 for flag in node.mask]
        return found


class Teacher:
    """`InferenceClient.score`: 0.0 for the first token."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []

    async def score(self, token_ids: list[int]) -> list[float]:
        self.sent.append(token_ids)
        numbers = [logprob(at, token) for at, token in enumerate(token_ids)]
        return [0.0, *numbers[1:]]


@pytest.fixture
def prime_rl(monkeypatch: pytest.MonkeyPatch) -> type:
    def iter_trainable_traces(episodes: Any) -> Any:
        for episode in episodes:
            for trace in episode.traces:
                if not trace.has_error and trace.agent.trainable:
                    yield episode, trace

    def iter_trainable_branches(trace: Any) -> Any:
        for branch in trace.branches:
            if branch.trainable:
                yield branch, branch.sampled_mask

    def assign_reference_logprobs(branch: Branch, values: list[float]) -> None:
        if len(values) != len(branch.token_ids):
            raise ValueError("reference logprobs must align with branch tokens")
        offset = 0
        for node in branch.nodes:
            end = offset + len(node.token_ids)
            if any(node.mask) and node.reference_logprobs is None:
                node.reference_logprobs = [
                    float(value)
                    for value, sampled in zip(values[offset:end], node.mask, strict=True)
                    if sampled
                ]
            offset = end

    class OPDAlgorithm:
        def __init__(self, teacher: Teacher) -> None:
            self.teacher_clients = teacher

    for name, members in {
        "prime_rl": {},
        "prime_rl.orchestrator": {},
        "prime_rl.orchestrator.algo": {},
        "prime_rl.orchestrator.algo.base": {"iter_trainable_traces": iter_trainable_traces},
        "prime_rl.orchestrator.algo.routing": {
            "assign_reference_logprobs": assign_reference_logprobs
        },
        "prime_rl.orchestrator.trajectories": {"iter_trainable_branches": iter_trainable_branches},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    return OPDAlgorithm


def branch_of(tokenizer: Any, aligner: Any, answers: list[str]) -> Branch:
    """A conversation as a message graph: every node has the tokens that it added to the row."""
    messages: list[dict[str, Any]] = []
    nodes = []
    row: list[int] = []
    for number, answer in enumerate(answers):
        messages.append({"role": "user", "content": f"Question {number}?"})
        whole = written(tokenizer, messages)
        nodes.append(
            MessageNode(
                Message(**messages[-1]), whole[len(row) :], [False] * (len(whole) - len(row)), []
            )
        )
        sampled = aligner.student.encode_batch([answer])[0] + [aligner.student.stop_ids[0]]
        numbers = [-((at * 5) % 7 + 1) / 4 for at in range(len(sampled))]
        messages.append({"role": "assistant", "content": answer})
        nodes.append(MessageNode(Message(**messages[-1]), sampled, [True] * len(sampled), numbers))
        row = whole + sampled
    return Branch(nodes)


@pytest.mark.parametrize("answers", [[ANSWER], ["Seven.", ANSWER]])
@pytest.mark.parametrize("turned", [False, True])
def test_prime_rl(prime_rl: type, turned: bool, answers: list[str]) -> None:
    aligner, teacher_tokenizer, student_tokenizer = pair(turned=turned)
    algorithm = with_other_tokenizer(prime_rl, aligner, teacher_tokenizer)
    branch = branch_of(student_tokenizer, aligner, answers)
    trace = types.SimpleNamespace(
        has_error=False, agent=types.SimpleNamespace(trainable=True), branches=[branch]
    )
    client = Teacher()
    asyncio.run(algorithm(client).score_episode(types.SimpleNamespace(traces=[trace])))
    (sent,) = client.sent
    first = written(teacher_tokenizer, [dataclasses.asdict(branch.nodes[0].message)])
    assert sent[: len(first)] == first
    # The turns are what the student sampled, in the order of the conversation.
    sampled = aligner.retokenize([node.token_ids for node in branch.nodes[1::2]]).tolist()
    assert sent[len(first) : len(first) + len(sampled[0])] == sampled[0]
    assert sent[-len(sampled[-1]) :] == sampled[-1]
    of_row = [logprob(at, token) for at, token in enumerate(sent)]
    last = branch.nodes[-1]
    expected = by_hand(aligner, sent, last.token_ids, last.logprobs, of_row)
    assert last.reference_logprobs == pytest.approx(expected)
    for node in branch.nodes[1::2]:
        # Over the turn, the differences are the log-ratio of its text, the end included.
        assert len(node.reference_logprobs) == len(node.token_ids)
        assert all(map(math.isfinite, node.reference_logprobs))
    assert all(node.reference_logprobs is None for node in branch.nodes[::2])
    assert algorithm.teacher_rows.counts["rows"] == 1


# What they share


def test_tokens_without_a_number_and_impossible_tokens() -> None:
    aligner, teacher_tokenizer, student_tokenizer = pair(turned=False)
    rows = TeacherRows(aligner, teacher_tokenizer)
    prompt = written(student_tokenizer, MESSAGES)
    # A control token that the teacher does not have.
    garbage = aligner.student.special_ids["<unk>"]
    answer = [*aligner.student.encode_batch(["4 kg"])[0], garbage]
    sampled = [False] * len(prompt) + [True] * len(answer) + [False] * 2
    row = rows.of_messages([*prompt, *answer, 5, 6], sampled, MESSAGES)
    logprobs = np.full(len(row.ids), -2.0)
    own = np.full(len(sampled), -1.0)
    even, beside = row.even(logprobs), row.beside(logprobs, own)
    assert np.isnan(even[: len(prompt)]).all()
    assert np.isnan(even[-2:]).all()
    assert (beside[np.isnan(even)] == -1.0).all()
    assert not np.isnan(even[len(prompt)])
    assert rows.counts["tokens_without_teacher"] == np.isnan(even[sampled]).sum() > 0
    assert (row.units()[~np.isnan(even)] >= 0).all()
    impossible = logprobs.copy()
    impossible[len(row.ids) - 4 :] = -np.inf
    assert np.isfinite(row.beside(impossible, own)).all()
    assert row.beside(impossible, own).min() < -1_000
    with pytest.raises(ValueError, match=rf"teacher_logprobs: expected {len(row.ids)} numbers"):
        row.even(logprobs[1:])
    with pytest.raises(ValueError, match=rf"own: expected {len(sampled)} log-probabilities"):
        row.beside(logprobs, own[1:])
    # A row without anything sampled has nothing for the teacher.
    empty = rows.of_messages(prompt, [False] * len(prompt), MESSAGES, turns=[])
    assert (empty.ids, len(empty.even([]))) == ([], len(prompt))
    with pytest.raises(ValueError, match=rf"sampled: expected {len(sampled)} entries"):
        rows.of_messages([*prompt, *answer, 5, 6], sampled[1:], MESSAGES)
