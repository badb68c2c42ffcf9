"""The verl adapter against verl 0.9: its teacher manager, its padding, its distillation loss.

Left out where verl is not installed. A virtual environment of its own is enough:
`pip install verl==0.9.1 fastapi uvicorn cachetools`, this package, and pytest.
"""

from __future__ import annotations

import asyncio
import types
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("verl")

from omegaconf import OmegaConf  # noqa: E402
from tensordict import TensorDict  # noqa: E402
from verl.experimental.agent_loop.agent_loop import (  # noqa: E402
    AgentLoopMetrics,
    AgentLoopOutput,
)
from verl.experimental.teacher_loop.teacher_manager import (  # noqa: E402
    AsyncTeacherLLMServerManager,
    _pad_teacher_outputs,
)
from verl.trainer.distillation.losses import (  # noqa: E402
    distillation_loss,
    get_distillation_loss_settings,
)
from verl.utils import tensordict_utils  # noqa: E402
from verl.utils.config import omega_conf_to_dataclass  # noqa: E402
from verl.workers.utils.padding import left_right_2_no_padding  # noqa: E402

from simct_align import UnitClass  # noqa: E402
from simct_align.integrations import verl  # noqa: E402
from simct_align.integrations._teacher_row import TeacherRows  # noqa: E402
from simct_align.integrations.verl import (  # noqa: E402
    SimCTAgentLoopManager,
    SimCTAgentLoopWorker,
    unit_loss,
)
from support.chat_tokenizers import demo_aligner, demo_chat_tokenizers  # noqa: E402

PROMPT_WIDTH, RESPONSE_WIDTH = 40, 48
QUESTIONS = ["What is 12 + 30?", "A river", "Say nothing"]
ANSWERS = ["It is 42: naïve, but 12345 apples.", "Danube 678", ""]


def logprob(position: int, token: int) -> float:
    return -((token * 7 + position * 3) % 11 + 1) / 8


class Client:
    """`LLMServerClient.generate`: entry i belongs to token i + 1, as `extract_prompt_logprobs`."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []

    async def generate(self, *, prompt_ids: list[int], sampling_params: Any, **_: Any) -> Any:
        assert sampling_params["prompt_logprobs"] == 0
        self.sent.append(prompt_ids)
        numbers = [[logprob(at, token)] for at, token in enumerate(prompt_ids)][1:]
        fields = {
            "prompt_logprobs": [*numbers, [0.0]],
            "prompt_ids": [*([token] for token in prompt_ids[1:]), [0]],
        }
        return types.SimpleNamespace(extra_fields=fields)


def configuration(loss_mode: str, **more: Any) -> Any:
    return OmegaConf.create(
        {
            "distillation": {
                "_target_": "verl.workers.config.DistillationConfig",
                "enabled": True,
                "n_gpus_per_node": 1,
                "nnodes": 1,
                "teacher_key": "data_source",
                "teacher_models": {
                    "teacher_model": {
                        "_target_": "verl.workers.config.DistillationTeacherModelConfig",
                        "key": "default",
                        "model_path": "teacher",
                        "num_replicas": 1,
                        "inference": {
                            "_target_": "verl.workers.config.RolloutConfig",
                            "name": "vllm",
                            "temperature": 1.0,
                            "tensor_model_parallel_size": 1,
                        },
                    }
                },
                "distillation_loss": {
                    "_target_": "verl.workers.config.DistillationLossConfig",
                    "loss_mode": loss_mode,
                    "topk": None,
                    "use_task_rewards": False,
                    "loss_max_clamp": None,
                    **more,
                },
            }
        }
    )


def worker_of(loss_mode: str = "simct_k3", **more: Any) -> tuple[Any, Client]:
    """A worker as `AgentLoopWorker.__init__` leaves it, as far as the teacher is concerned."""
    config, client = configuration(loss_mode, **more), Client()
    worker = object.__new__(SimCTAgentLoopWorker)
    worker.config, worker.distillation_enabled = config, True
    distillation = omega_conf_to_dataclass(config.distillation)
    worker.teacher_server_manager = AsyncTeacherLLMServerManager(
        config=config, teacher_client=dict.fromkeys(distillation.teacher_models, client)
    )
    worker.teacher_rows = TeacherRows(demo_aligner(), demo_chat_tokenizers()[0])
    return worker, client


def sample(question: str, answer: str) -> tuple[Any, list[dict[str, str]]]:
    aligner, tokenizer = demo_aligner(), demo_chat_tokenizers()[1]
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer([text], add_special_tokens=False)["input_ids"][0]
    response = aligner.student.encode_batch([answer])[0] if answer else []
    response = [*response, aligner.student.stop_ids[0]]
    output = AgentLoopOutput(
        prompt_ids=prompt,
        response_ids=response,
        response_mask=[1] * len(response),
        metrics=AgentLoopMetrics(),
    )
    return output, messages


def scored(worker: Any, question: str, answer: str) -> Any:
    output, messages = sample(question, answer)
    asyncio.run(
        worker._compute_teacher_logprobs(
            output,
            prompt_ids=output.prompt_ids,
            response_ids=output.response_ids,
            validate=False,
            sample_kwargs={"raw_prompt": np.array(messages, object)},
        )
    )
    return output


def test_the_worker_fills_what_verl_reads() -> None:
    worker, client = worker_of()
    output = scored(worker, QUESTIONS[0], ANSWERS[0])
    aligner = demo_aligner()
    (sent,) = client.sent
    answer = aligner.retokenize([output.response_ids]).row(0).tolist()
    assert sent[-len(answer) :] == answer
    logprobs, units = (output.extra_fields[f"teacher_{name}"] for name in ("logprobs", "ids"))
    length, before = len(output.prompt_ids) + len(output.response_ids), len(output.prompt_ids)
    assert logprobs.shape == units.shape == (length, 1)
    assert (logprobs.dtype, units.dtype) == (torch.float32, torch.int32)
    assert (units[: before - 1] == -1).all()
    assert units[-1] == -1
    of_row = [logprob(at, token) for at, token in enumerate(sent)]
    first = len(sent) - len(answer)
    aligned = aligner.align_batch([answer], [output.response_ids])
    for number, unit in enumerate(aligned.units(0)):
        rows = slice(before + unit.student.start - 1, before + unit.student.stop - 1)
        if unit.unit_class & UnitClass.TRIMMED:
            assert (units[rows] == -1).all()
        else:
            total = sum(of_row[first + at] for at in unit.teacher)
            assert logprobs[rows].sum().item() == pytest.approx(total, rel=1e-5)
            assert (units[rows] == number).all()
    # Nothing is asked for validation.
    validated, _ = sample(QUESTIONS[0], ANSWERS[0])
    asyncio.run(worker._compute_teacher_logprobs(validated, [1], [2], True, {}))
    assert validated.extra_fields == {}
    assert len(client.sent) == 1


def batch_of(outputs: list[Any]) -> TensorDict:
    """As `AgentLoopWorker._postprocess` pads, and the trainer removes the padding again."""
    columns: dict[str, list[Any]] = {}
    for output in outputs:
        prompt, response = output.prompt_ids, output.response_ids
        left, right = PROMPT_WIDTH - len(prompt), RESPONSE_WIDTH - len(response)
        ids, logprobs = _pad_teacher_outputs(
            output.extra_fields["teacher_ids"], output.extra_fields["teacher_logprobs"],
            PROMPT_WIDTH, RESPONSE_WIDTH, len(prompt), len(response), 0,
        )  # fmt: skip
        row = {
            "prompts": [0] * left + prompt,
            "responses": response + [0] * right,
            "input_ids": [0] * left + prompt + response + [0] * right,
            "attention_mask": [0] * left + [1] * (len(prompt) + len(response)) + [0] * right,
            "position_ids": [0] * left + list(range(len(prompt) + len(response))) + [0] * right,
            "response_mask": output.response_mask + [0] * right,
        }
        for name, values in row.items():
            columns.setdefault(name, []).append(torch.tensor(values)[None])
        columns.setdefault("teacher_ids", []).append(ids)
        columns.setdefault("teacher_logprobs", []).append(logprobs)
    data = TensorDict(
        {name: torch.cat(rows) for name, rows in columns.items()}, batch_size=len(outputs)
    )
    return left_right_2_no_padding(data)


@pytest.mark.parametrize(
    ("loss_mode", "policy_gradient", "estimate"),
    [
        ("simct_k1", True, lambda s, t: s - t),
        ("simct_k2", False, lambda s, t: 0.5 * (s - t) ** 2),
        ("simct_k3", False, lambda s, t: np.exp(t - s) - 1 - (t - s)),
    ],
)
def test_the_loss_estimates_whole_units(
    loss_mode: str, policy_gradient: bool, estimate: Any
) -> None:
    assert get_distillation_loss_settings(loss_mode).use_estimator
    worker, _ = worker_of(loss_mode, use_policy_gradient=policy_gradient)
    outputs = [scored(worker, q, a) for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    data = batch_of(outputs)
    lengths = [len(each.prompt_ids) + len(each.response_ids) for each in outputs]
    torch.manual_seed(0)
    flat = (-torch.rand(sum(lengths)) * 0.5).requires_grad_()
    log_probs = torch.nested.nested_tensor_from_jagged(flat, torch.tensor([0, *np.cumsum(lengths)]))
    settings = worker.teacher_server_manager.distillation_config
    losses, metrics = unit_loss(None, settings, {"log_probs": log_probs}, data)
    assert losses.shape[0] == len(outputs)
    start, counted = 0, 0
    for row, output in enumerate(outputs):
        before, size = len(output.prompt_ids), len(output.response_ids)
        rows = slice(before - 1, before + size - 1)
        own = flat[start : start + before + size][rows].detach().numpy().astype(float)
        teacher = output.extra_fields["teacher_logprobs"][rows, 0].numpy().astype(float)
        units = output.extra_fields["teacher_ids"][rows, 0].numpy()
        for unit in set(units.tolist()) - {-1}:
            of_unit = units == unit
            expected = estimate(own[of_unit].sum(), teacher[of_unit].sum())
            found = losses[row, :size].detach().numpy()[of_unit]
            assert found.sum() == pytest.approx(expected, rel=1e-3, abs=1e-5)
            assert np.ptp(found) < 1e-6
        assert (losses[row, :size].detach().numpy()[units == -1] == 0).all()
        assert (losses[row, size:] == 0).all()
        counted += (units >= 0).sum()
        start += before + size
    total = sum(len(output.response_ids) for output in outputs)
    assert metrics["distillation/tokens_in_units"].aggregate() == pytest.approx(counted / total)
    losses.sum().backward()
    assert flat.grad.abs().sum() > 0


def test_verl_s_own_loss_calls_it() -> None:
    worker, _ = worker_of("simct_k3", use_policy_gradient=False)
    data = batch_of([scored(worker, q, a) for q, a in zip(QUESTIONS, ANSWERS, strict=True)])
    offsets = data["input_ids"].offsets()
    flat = (-torch.rand(int(offsets[-1]))).requires_grad_()
    log_probs = torch.nested.nested_tensor_from_jagged(flat, offsets)
    tensordict_utils.assign_non_tensor(data, dp_size=1, batch_num_tokens=10, global_batch_size=3)
    actor = types.SimpleNamespace(
        loss_agg_mode="token-mean", global_batch_info={}, loss_scale_factor=None
    )
    settings = worker.teacher_server_manager.distillation_config
    loss, metrics = distillation_loss(actor, settings, {"log_probs": log_probs}, data)
    loss.backward()
    assert torch.isfinite(loss)
    assert flat.grad.abs().sum() > 0
    assert {"distillation/tokens_in_units", "distillation/loss_max"} <= set(metrics)


def test_what_does_not_fit_is_refused() -> None:
    worker, _ = worker_of("k3")
    del worker.teacher_rows
    with pytest.raises(ValueError, match=r"one teacher and a loss_mode of .*, got 1 and 'k3'"):
        scored(worker, QUESTIONS[0], ANSWERS[0])
    worker, _ = worker_of("simct_k1", use_policy_gradient=False)
    with pytest.raises(ValueError, match="'simct_k1': expected use_policy_gradient=True"):
        unit_loss(None, worker.teacher_server_manager.distillation_config, {}, {})
    with_tools, messages = sample(QUESTIONS[0], ANSWERS[0])
    with_tools.response_mask[2] = 0
    worker, _ = worker_of()
    with pytest.raises(ValueError, match="2 runs of sampled tokens, expected 1"):
        asyncio.run(
            worker._compute_teacher_logprobs(
                with_tools, with_tools.prompt_ids, with_tools.response_ids, False,
                {"raw_prompt": messages},
            )
        )  # fmt: skip


def test_the_manager_starts_these_workers() -> None:
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": {}, "model": {}}})
    manager = SimCTAgentLoopManager(config, None)
    made = manager.agent_loop_workers_class.__ray_metadata__.modified_class
    assert issubclass(made, SimCTAgentLoopWorker)


def test_the_pair_is_made_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, _ = worker_of()
    del worker.teacher_rows
    teacher, student = demo_chat_tokenizers()
    opened = types.SimpleNamespace(from_pretrained={"teacher": teacher}.__getitem__)
    monkeypatch.setattr(verl, "AutoTokenizer", opened)
    worker.tokenizer = student
    worker.model_config = types.SimpleNamespace(
        hf_config=types.SimpleNamespace(vocab_size=len(student) + 7)
    )
    aligner = worker.teacher_rows.aligner
    assert aligner.teacher.digest == demo_aligner().teacher.digest
    assert len(aligner.student) == len(student) + 7
    # A padding id of the embedding, once sampled, is no error.
    output, messages = sample(QUESTIONS[0], ANSWERS[0])
    output.response_ids[2] = len(student) + 3
    asyncio.run(
        worker._compute_teacher_logprobs(
            output, output.prompt_ids, output.response_ids, False, {"raw_prompt": messages}
        )
    )
    assert (output.extra_fields["teacher_ids"] == -1).any()
