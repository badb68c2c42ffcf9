"""The TRL trainer on tiny random models: both tokenizer styles on either side."""

from __future__ import annotations

import copy
import math
import os
import socket
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch._dynamo import OptimizedModule
from transformers import LlamaConfig, LlamaForCausalLM

from simct_align.divergence import JSD
from simct_align.integrations import _trl_config, _trl_metrics, _trl_side
from simct_align.integrations._trl_config import make_loss
from simct_align.integrations.trl import SimCTConfig, SimCTTrainer
from simct_align.loss import LossMetrics, SimCTLoss, TextLoss, TextMetrics
from support.chat_tokenizers import (
    demo_aligner,
    demo_chat_tokenizers,
    real_aligner,
    real_chat_tokenizer,
)

torch.set_num_threads(1)

QUESTIONS = ["2 + 2 =", "How many are seven and five? ", "Name a river.", "x"] * 2
ANSWERS = ["4", "Twelve: 12.", "The Danube flows through ten countries.", ""] * 2
MESSAGES = [
    {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    }
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
]
TEXTS = [
    {"prompt": question, "completion": answer}
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
]


def tiny_model(tokenizer: Any, seed: int, extra: int = 0) -> LlamaForCausalLM:
    """Embeddings may have more rows than the tokenizer has tokens."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + extra,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def tokenizers(turned: bool) -> tuple[Any, Any]:
    """Teacher's and student's, byte-level first unless turned; padded with their ends."""
    pair = copy.deepcopy(demo_chat_tokenizers())
    for tokenizer in pair:
        tokenizer.pad_token = tokenizer.eos_token
    return pair[::-1] if turned else pair


def make_trainer(
    folder: Any, *, turned: bool = False, rows: Any = None, extra: int = 0, **keywords: Any
) -> SimCTTrainer:
    teacher_tokenizer, student_tokenizer = tokenizers(turned)
    trainer_keywords = {
        name: keywords.pop(name) for name in ("peft_config", "callbacks") if name in keywords
    }
    options = {
        "per_device_train_batch_size": 2,
        "max_completion_length": 12,
        "max_length": 96,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "seed": 3,
        "disable_tqdm": True,
    } | keywords
    return SimCTTrainer(
        tiny_model(student_tokenizer, 1, extra),
        tiny_model(teacher_tokenizer, 2, extra),
        SimCTConfig(output_dir=str(folder), **options),
        teacher_tokenizer=teacher_tokenizer,
        aligner=demo_aligner(turned=turned),
        processing_class=student_tokenizer,
        train_dataset=Dataset.from_list(rows or MESSAGES),
        **trainer_keywords,
    )


def logged(trainer: SimCTTrainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def logged_comparisons(trainer: SimCTTrainer, steps: int) -> list[dict[str, float]]:
    """The log of so many steps, in each of which units were compared."""
    entries = logged(trainer)
    assert len(entries) == steps
    for entry in entries:
        assert math.isfinite(entry["loss"])
        assert entry["loss"] > 0.0
        assert entry["simct/units_shared"] + entry["simct/units_multi"] > 0
    return entries


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("rows", [MESSAGES, TEXTS], ids=["messages", "texts"])
def test_trains_on_policy_and_logs_what_was_compared(tmp_path, turned, rows):
    trainer = make_trainer(tmp_path, turned=turned, rows=rows, extra=300)
    trainer.train()
    entries = logged_comparisons(trainer, 2)
    for entry in entries:
        assert entry["simct/turns"] == 2
        for part in ("generation", "alignment", "student", "teacher", "loss"):
            assert entry[f"simct/seconds_{part}"] > 0.0
    # The random student also samples ids that no token has.
    assert sum(entry["simct/tokens_behind_unknown_ids"] for entry in entries) > 0


@pytest.mark.parametrize(
    "keywords",
    [
        {"candidates": "shared"},
        {"candidates": "on_path", "score": "event"},
        {"objective": "text"},
        {"objective": "text", "divergence": "jsd", "beta": 0.9, "loss_temperature": 2.0},
        {"objective": "shared"},
        {"objective": "shared", "divergence": "jsd", "beta": 0.9},
        {"objective": "uld"},
        {"objective": "alm"},
        {"objective": "gold"},
        {"objective": "bpm"},
        {"objective": "strict"},
        {"objective": "escd"},
    ],
    ids=str,
)
def test_loss_falls_on_fixed_answers(tmp_path, keywords):
    trainer = make_trainer(
        tmp_path, lmbda=0.0, max_steps=20, learning_rate=1e-3, lr_scheduler_type="constant",
        rows=MESSAGES[:2], **keywords,
    )  # fmt: skip
    trainer.train()
    entries = logged(trainer)
    assert entries[-1]["loss"] < entries[0]["loss"]


def kept_logits(model: Any, side: Any) -> torch.Tensor:
    """By a forward pass that leaves none out."""
    return model(side.ids, attention_mask=side.mask).logits[:, -side.kept :]


def check_gradient(folder: Any, lmbda: float, steps: int, objective: str = "simct") -> None:
    """One optimizer step's gradient against the sum over all slices of all processes.

    Slices share a normalizer: unequal numbers of units must not change the weights of units. The
    KL to the initial student has its own: all completions' tokens.
    """
    trainer = make_trainer(
        folder,
        lmbda=lmbda,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=steps,
        extra=600,
        initial_kl_weight=0.5,
        objective=objective,
    )
    model = trainer.model
    untrained = tiny_model(trainer.processing_class, 1, 600)
    torch.manual_seed(0)
    with torch.no_grad():  # at the start the KL to it has no gradient
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    # Averages gradients where there are several processes.
    wrapped = trainer.accelerator.prepare_model(model)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.current_gradient_accumulation_steps = steps
    for _ in range(steps):
        trainer.training_step(wrapped, batch, num_items_in_batch=torch.tensor(999))
    if lmbda == 0.5:
        assert len(set(trainer._buffered_on_policy)) == 2
    found = [parameter.grad.clone() for parameter in model.parameters()]

    slices = [inputs["_simct"] for inputs in trainer._buffered_inputs]
    loss: Any = SimCTLoss(trainer.aligner, reduction="sum")
    units = torch.tensor([each.aligned.normalizer("unit") for each in slices])
    if objective == "text":
        loss = TextLoss(trainer.aligner, reduction="sum")
        units = torch.tensor([each.aligned.text_student_tokens for each in slices])
    tokens = torch.tensor(0.0)
    model.zero_grad()
    total, drift = torch.zeros(()), torch.zeros(())
    for each in slices:
        student = kept_logits(model, each.student)
        with torch.no_grad():
            teacher = kept_logits(trainer.teacher_model, each.teacher)
            initial = kept_logits(untrained, each.student)
        total = (
            total + loss(teacher_logits=teacher, student_logits=student, index=each.aligned).loss
        )
        before, now = (logits.double().log_softmax(-1) for logits in (initial, student))
        divergence = (now.exp() * (now - before)).sum(-1)
        predicts = torch.zeros(divergence.shape)
        predicts.view(-1)[each.student.predicting] = 1.0
        drift = drift + (divergence * predicts).sum()
        tokens += predicts.sum()
    everywhere = trainer.accelerator.gather(units)
    tokens = trainer.accelerator.reduce(tokens, reduction="sum")
    assert len(set(everywhere.tolist())) > 1
    (total / everywhere.sum() + 0.5 * drift / tokens).backward()
    for parameter, gradient in zip(model.parameters(), found, strict=True):
        expected = trainer.accelerator.reduce(parameter.grad, reduction="sum")
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lmbda", [0.0, 0.5, 1.0])
def test_accumulation_gives_the_gradient_of_one_big_batch(tmp_path, lmbda):
    check_gradient(tmp_path, lmbda, 4)


@pytest.mark.parametrize("lmbda", [0.0, 1.0])
def test_accumulation_of_text_events_gives_the_gradient_of_one_big_batch(tmp_path, lmbda):
    check_gradient(tmp_path, lmbda, 4, objective="text")


def test_text_events_train_on_policy_and_are_logged(tmp_path):
    trainer = make_trainer(tmp_path, objective="text", extra=300, gradient_accumulation_steps=2)
    assert isinstance(trainer.loss_fn, TextLoss)
    found: list[TextMetrics] = []
    metrics = trainer._metric_sums.metrics

    def keep(each: Any) -> None:
        found.append(each)
        metrics(each)

    trainer._metric_sums.metrics = keep
    before = [parameter.detach().clone() for parameter in trainer.model.parameters()]
    trainer.train()
    assert any(
        not torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True)
    )
    entries = logged(trainer)
    assert len(entries) == 2
    assert len(found) == 4
    for number, entry in enumerate(entries):
        assert math.isfinite(entry["loss"])
        assert entry["loss"] > 0.0
        assert "simct/units_shared" not in entry
        both = found[2 * number : 2 * number + 2]
        offsets = [
            sum(float(getattr(each, name)) for name in each._fields if name.startswith("offsets"))
            for each in both
        ]
        assert min(offsets) > 0
        for name in TextMetrics._fields:
            values = [float(getattr(each, name)) for each in both]
            if name.startswith("divergence"):
                kind = name.replace("divergence", "offsets")
                weights = [float(getattr(each, kind)) for each in both]
            elif "mass" in name:
                weights = offsets
            else:
                assert entry[f"simct/{name}"] == sum(values)
                continue
            parts = [v * w for v, w in zip(values, weights, strict=True) if w]
            expected = sum(parts) / sum(weights) if sum(weights) else math.nan
            assert entry[f"simct/{name}"] == pytest.approx(expected, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("kind", [LossMetrics, TextMetrics])
def test_every_metric_is_a_count_or_a_mean_over_counts(kind):
    means = _trl_metrics._AVERAGED_OVER[kind]
    for name in kind._fields:
        assert (name in means) == ("divergence" in name or "mass" in name)
        for count in means.get(name, ()):
            assert count in kind._fields
            assert count not in means


@pytest.mark.parametrize("lmbda", [0.0, 0.5, 1.0])
def test_two_processes_give_the_gradient_of_one_big_batch(tmp_path, lmbda):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path / str(rank)), str(lmbda)],
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "ACCELERATE_USE_CPU": "true",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for worker in workers:
        output, _ = worker.communicate(timeout=120)
        assert worker.returncode == 0, output
        assert "2 processes agree" in output


def test_teacher_reads_the_sampled_bytes_behind_its_own_prompt(tmp_path):
    trainer = make_trainer(tmp_path)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer._prepare_inputs(batch)
    inputs = trainer._buffered_inputs[0]
    ready = inputs["_simct"]
    for row, prompt in enumerate(inputs["teacher_prompt_ids"]):
        ids = ready.teacher.ids[row][ready.teacher.mask[row].bool()].tolist()
        assert ids[: len(prompt)] == prompt
        sampled = inputs["input_ids"][row][inputs["labels"][row] != -100].tolist()
        assert ids[len(prompt) :] == trainer.aligner.retokenize([sampled]).row(0).tolist()


@pytest.mark.parametrize("lmbda", [0.0, 1.0])
def test_answers_of_the_data_follow_the_headers_that_the_template_writes(tmp_path, lmbda):
    """As channels are: the generation prompt ends before them, and a sample may contain them."""
    trainer = make_trainer(tmp_path, lmbda=lmbda)
    for tokenizer in (trainer.teacher_tokenizer, trainer.processing_class):
        tokenizer.chat_template = (
            "{% for m in messages %}[{{ m.role }}]{{ 'final: ' if m.role == 'assistant' }}"
            "{{ m.content }}{{ eos_token }}{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}"
        )
    batch = next(iter(trainer.get_train_dataloader()))
    trainer._prepare_inputs(batch)
    ready = trainer._buffered_inputs[0]["_simct"]
    for ids, mask, tokenizer in (
        (ready.teacher.ids, ready.teacher.mask, trainer.teacher_tokenizer),
        (ready.student.ids, ready.student.mask, trainer.processing_class),
    ):
        for row, taken in zip(ids, mask, strict=True):
            text = tokenizer.decode(row[taken.bool()])
            assert "[assistant]" in text
            assert ("[assistant]final: " in text) == (lmbda == 0.0)


def test_checkpoint_resumes(tmp_path):
    first = make_trainer(tmp_path, save_strategy="steps", save_steps=1)
    first.train()
    second = make_trainer(tmp_path, save_strategy="steps", save_steps=1, max_steps=3)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert second.state.global_step == 3
    assert len(logged(second)) == 3


@pytest.mark.parametrize("lmbda", [0.0, 1.0])
def test_lora_and_gradient_checkpointing(tmp_path, lmbda):
    from peft import LoraConfig

    trainer = make_trainer(
        tmp_path,
        lmbda=lmbda,
        gradient_checkpointing=True,
        learning_rate=1e-2,
        peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    before = {name: p.clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert before
    assert all("lora" in name for name in before)
    trainer.train()
    after = dict(trainer.model.named_parameters())
    assert any(not torch.equal(after[name], value) for name, value in before.items())


def test_prompts_alone_are_enough_on_policy(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": question}]} for question in QUESTIONS]
    trainer = make_trainer(tmp_path, rows=rows)
    trainer.train()
    assert all(entry["simct/units_shared"] > 0 for entry in logged(trainer))


@pytest.mark.parametrize("turned", [False, True])
def test_log_ratio_is_the_difference_of_whole_log_likelihoods(tmp_path, turned):
    trainer = make_trainer(tmp_path, turned=turned, lmbda=0.0, per_device_train_batch_size=4)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    trainer.compute_loss(trainer.model, inputs)
    found = trainer._metric_sums.collect()["log_ratio_per_byte"]

    ready, ratio, size = inputs["_simct"], 0.0, 0
    labels = inputs["labels"]
    vocabulary = trainer.aligner.student
    for row in range(4):
        completion = inputs["input_ids"][row][labels[row] != -100]
        size += len(vocabulary.decode_bytes(completion.numpy()))
        for sign, model, ids, mask in (
            (1, trainer.model, ready.student.ids, ready.student.mask),
            (-1, trainer.teacher_model, ready.teacher.ids, ready.teacher.mask),
        ):
            prompt = int((inputs["attention_mask"][row].bool() & (labels[row] == -100)).sum())
            if sign < 0:
                prompt = len(inputs["teacher_prompt_ids"][row])
            kept = ids[row][mask[row].bool()]
            with torch.no_grad():
                log_p = model(kept[None]).logits[0].double().log_softmax(-1)
            for place in range(prompt, len(kept)):
                ratio += sign * log_p[place - 1, kept[place]].item()
    assert size > 0
    assert found == pytest.approx(ratio / size, rel=1e-5)


@pytest.mark.parametrize("lora", [False, True])
def test_divergence_from_the_initial_student_is_logged(tmp_path, lora):
    from peft import LoraConfig

    adapters = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    keywords = {"peft_config": adapters} if lora else {}
    trainer = make_trainer(
        tmp_path, initial_kl_weight=0.1, learning_rate=1e-2, max_steps=3, **keywords
    )
    # Adapters are switched off instead of keeping a second model.
    assert (trainer._initial_model is None) == lora
    trainer.train()
    first, *_, last = (entry["simct/initial_kl"] for entry in logged(trainer))
    assert first == pytest.approx(0.0, abs=1e-6)
    assert last > 1e-6


def test_what_does_not_fit_is_counted(tmp_path):
    sampling = make_trainer(tmp_path, max_length=20, max_completion_length=16, max_steps=1)
    sampling.train()
    (entry,) = logged(sampling)
    assert entry["simct/student_prompt_tokens_cut"] > 0
    assert entry["simct/student_tokens_cut"] == 0
    given = make_trainer(tmp_path, max_length=20, lmbda=0.0, max_steps=4)
    given.train()
    entries = logged(given)
    assert sum(entry["simct/student_tokens_cut"] for entry in entries) > 0
    assert sum(entry["simct/student_prompt_tokens_cut"] for entry in entries) == 0


def test_completions_cut_at_the_limit_get_no_end(tmp_path):
    trainer = make_trainer(tmp_path, max_completion_length=2)
    trainer.train()
    for entry in logged(trainer):
        assert entry["simct/truncated_turns"] == entry["simct/turns"] == 2
        assert entry["simct/stops_added"] == entry["simct/units_special"] == 0


def test_a_student_that_only_ends_its_turn_learns_from_the_end(tmp_path):
    trainer = make_trainer(tmp_path)
    end = trainer.processing_class.eos_token_id
    with torch.no_grad():  # so far along one direction that nothing else is ever sampled
        trainer.model.lm_head.weight.zero_()
        trainer.model.model.norm.weight.fill_(1.0)
        trainer.model.lm_head.register_forward_hook(
            lambda _, __, logits: logits.index_add(
                -1, torch.tensor([end]), torch.full((*logits.shape[:-1], 1), 50.0)
            )
        )
    trainer.train()
    for entry in logged(trainer):
        assert entry["simct/units_special"] == entry["simct/turns"] == 2
        assert entry["simct/units_shared"] == entry["simct/truncated_turns"] == 0
        assert math.isfinite(entry["loss"])
        assert entry["loss"] > 0.0


def test_an_end_inside_a_completion_stays_where_it_was_sampled(tmp_path):
    trainer = make_trainer(tmp_path, lmbda=0.0, per_device_train_batch_size=1)
    vocabulary, end = trainer.aligner.student, trainer.processing_class.eos_token_id
    first, second = vocabulary.encode_batch(["Twelve", "12"])
    sampled = [*first, end, *second]
    prompt = vocabulary.encode_batch(["How many?"])[0]
    ids = torch.tensor([prompt + sampled])
    labels = torch.tensor([[-100] * len(prompt) + sampled])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "teacher_prompt_ids": [trainer.aligner.teacher.encode_batch(["How many?"])[0]],
        "student_prompt_lengths": [len(prompt)],
    }
    batch = trainer._prepare_slice(inputs)
    index = batch.aligned.index()
    units = batch.aligned.units(0)
    assert b"".join(unit.bytes for unit in units) == vocabulary.decode_bytes(sampled)
    ends = [number for number, unit in enumerate(units) if unit.kind.name == "SPECIAL"]
    # It did not end by itself, so that no end follows.
    assert len(ends) == 1
    before_it = b"".join(unit.bytes for unit in units[: ends[0]])
    assert before_it == vocabulary.decode_bytes(first)
    assert index.dropped_no_prefix == 0
    assert math.isfinite(trainer.compute_loss(trainer.model, inputs).item())


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_of_padding_changes_nothing(tmp_path, side):
    losses = []
    for padding_side in ("right", side):
        trainer = make_trainer(tmp_path, lmbda=0.0, per_device_train_batch_size=4)
        for tokenizer in (trainer.processing_class, trainer.teacher_tokenizer):
            tokenizer.padding_side = padding_side
        trainer.train()
        losses.append([entry["loss"] for entry in logged(trainer)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "names",
    [
        ("deepseek", "demo_byte_level"),
        ("demo_byte_level", "deepseek"),
        ("qwen2_5", "gemma2"),
        ("gemma2", "qwen2_5"),
    ],
)
def test_thinking_and_tool_calls_are_text_to_whom_they_are_no_tokens(tmp_path, names):
    teacher_tokenizer, student_tokenizer = (copy.deepcopy(real_chat_tokenizer(n)) for n in names)
    for tokenizer in (teacher_tokenizer, student_tokenizer):
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    answer = '<think>\n2 + 2\n</think>\n<tool_call>\n{"name": "add"}\n</tool_call> It is 4.'
    row = {
        "messages": [
            {"role": "user", "content": "What is 2 + 2?"},
            {"role": "assistant", "content": answer},
        ]
    }
    models = [tiny_model(t, seed) for seed, t in enumerate((teacher_tokenizer, student_tokenizer))]
    trainer = SimCTTrainer(
        models[1],
        models[0],
        SimCTConfig(
            output_dir=str(tmp_path), lmbda=0.0, per_device_train_batch_size=1, max_steps=2,
            logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=False,
            gradient_checkpointing=False, disable_tqdm=True,
        ),
        teacher_tokenizer=teacher_tokenizer,
        aligner=real_aligner(*names),
        processing_class=student_tokenizer,
        train_dataset=Dataset.from_list([row] * 2),
    )  # fmt: skip
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    batch = trainer._prepare_slice(inputs)
    units = batch.aligned.units(0)
    assert b"".join(unit.bytes for unit in units).decode() == answer
    assert [unit.kind.name for unit in units].count("SPECIAL") == 1
    assert len(batch.aligned.unmatched) == 0
    trainer.train()
    assert all(math.isfinite(entry["loss"]) for entry in logged(trainer))


@pytest.mark.parametrize(
    "keywords",
    [
        {"candidates": "on_path", "score": "event", "initial_kl_weight": 0.1},
        {"objective": "text"},
        {"objective": "alm"},
        {"objective": "gold"},
        {"objective": "bpm"},
        {"objective": "strict"},
        {"objective": "escd"},
    ],
    ids=str,
)
def test_logits_of_prompts_are_not_made_and_not_missed(tmp_path, monkeypatch, keywords):
    found = []
    for all_of_them in (False, True):
        if all_of_them:
            monkeypatch.setattr(_trl_side, "_can_keep_logits", lambda _: False)
        trainer = make_trainer(tmp_path, lmbda=0.0, per_device_train_batch_size=4, **keywords)
        inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
        loss, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
        loss.backward()
        side = inputs["_simct"].student
        prompts = (inputs["attention_mask"].bool() & (inputs["labels"] == -100)).sum(1)
        left_out = side.ids.shape[1] - outputs.logits.shape[1]
        assert left_out == (0 if all_of_them else prompts.min() - 1)
        gradient = [parameter.grad.clone() for parameter in trainer.model.parameters()]
        figures = trainer._metric_sums.collect()
        ratio, divergence = figures["log_ratio_per_byte"], figures.get("initial_kl", 0.0)
        found.append((loss, gradient, ratio, divergence))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_a_compiled_student_trains_as_a_plain_one(tmp_path, monkeypatch):
    answers = []
    can_keep_logits = _trl_side._can_keep_logits
    monkeypatch.setattr(
        _trl_side,
        "_can_keep_logits",
        lambda model: answers.append(can_keep_logits(model)) or answers[-1],
    )
    losses = []
    for compiled in ({}, {"torch_compile": True, "torch_compile_backend": "eager"}):
        trainer = make_trainer(tmp_path, lmbda=0.0, learning_rate=1e-3, **compiled)
        trainer.train()
        assert isinstance(trainer.model_wrapped, OptimizedModule) == bool(compiled)
        losses.append([entry["loss"] for entry in logged(trainer)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len(answers) >= 4
    assert all(answers)


def test_evaluation_takes_the_answers_of_the_data_set(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.eval_dataset = Dataset.from_list(MESSAGES)
    figures = trainer.evaluate()
    assert math.isfinite(figures["eval_loss"])


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_beta_is_that_of_the_divergence(tmp_path, beta):
    pair = demo_aligner(turned=False)
    config = SimCTConfig(str(tmp_path), divergence="jsd", beta=beta, use_cpu=True, bf16=False)
    assert repr(make_loss(pair, config)) == repr(SimCTLoss(pair, divergence=JSD(beta)))
    config = SimCTConfig(
        str(tmp_path), objective="text", divergence="jsd", beta=beta, loss_temperature=3.0,
        use_cpu=True, bf16=False,
    )  # fmt: skip
    expected = TextLoss(pair, divergence=JSD(beta), temperature=3.0)
    assert repr(make_loss(pair, config)) == repr(expected)
    for objective in ("gold", "bpm") if 0.0 < beta < 1.0 else ("gold",):
        config = SimCTConfig(
            str(tmp_path), objective=objective, beta=beta, use_cpu=True, bf16=False
        )
        assert make_loss(pair, config).beta == beta


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"uld_use_hybrid_loss": True}, "uld_use_hybrid_loss"),
        ({"uld_student_temperature": 2.0}, "uld_student_temperature"),
        ({"beta": 0.1}, "beta"),
        ({"beta": 0.1, "objective": "escd"}, "beta"),
        ({"beta": 0.1, "objective": "alm", "divergence": "jsd"}, "divergence"),
        ({"seq_kd": True}, "seq_kd"),
        ({"objective": "gold", "loss_temperature": 2.0}, "loss_temperature"),
        ({"use_extended_uld": True}, "use_extended_uld"),
        ({"use_uld_loss": False}, "use_uld_loss"),
        ({"objective": "simkt"}, "simkt"),
        ({"initial_kl_weight": -1.0}, "initial_kl_weight"),
        ({"initial_kl_weight": math.nan}, "initial_kl_weight"),
        ({"objective": "uld", "score": "sum"}, "score"),
        ({"objective": "text", "score": "sum"}, "score"),
        ({"objective": "text", "candidates": "on_path"}, "candidates"),
        ({"objective": "text", "beta": 0.1}, "beta"),
    ],
)
def test_fields_that_nothing_reads_are_refused(tmp_path, keywords, named):
    with pytest.raises(ValueError, match=named):
        SimCTConfig(output_dir=str(tmp_path), use_cpu=True, **keywords)


def test_older_releases_of_trl_are_refused_and_newer_ones_tried(monkeypatch):
    monkeypatch.setattr(_trl_config, "version", lambda _: "1.9.2")
    with pytest.raises(ImportError, match=r"tested with trl==1\.16\.\*; found trl 1\.9\.2"):
        _trl_config._check_version()
    for newer in ("1.17.0", "2.0.0.dev1"):
        monkeypatch.setattr(_trl_config, "version", lambda _, newer=newer: newer)
        with pytest.warns(UserWarning, match=rf"found trl {newer}: .* pip install 'trl==1\.16"):
            _trl_config._check_version()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(_trl_config, "version", lambda _: "1.16.3")
        _trl_config._check_version()


@pytest.mark.parametrize("on_accelerator", [False, True])
def test_a_configuration_without_options_fits_the_machine(monkeypatch, tmp_path, on_accelerator):
    monkeypatch.setattr(_trl_config, "is_torch_bf16_gpu_available", lambda: on_accelerator)
    if not on_accelerator:
        assert SimCTConfig(str(tmp_path)).bf16 is False
    assert SimCTConfig(str(tmp_path), use_cpu=True).bf16 is False
    assert SimCTConfig(str(tmp_path), use_cpu=True, bf16=True).bf16 is True


def test_what_is_missing_is_named(tmp_path):
    trainer = make_trainer(tmp_path)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    del inputs["student_prompt_lengths"], inputs["_simct"]
    with pytest.raises(
        ValueError, match=r"inputs: expected 'student_prompt_lengths', .*trainer\.data_collator"
    ):
        trainer.compute_loss(trainer.model, inputs)
    teacher_tokenizer, student_tokenizer = tokenizers(False)
    student = tiny_model(student_tokenizer, 1)
    config = SimCTConfig(str(tmp_path), report_to=[])
    common = {"processing_class": student_tokenizer, "train_dataset": Dataset.from_list(MESSAGES)}
    with pytest.raises(ValueError, match=r"teacher_model: expected a model or .* got None"):
        SimCTTrainer(student, None, config, **common)
    with pytest.raises(ValueError, match=r"^teacher_tokenizer: .* no name .*teacher_tokenizer="):
        SimCTTrainer(student, tiny_model(teacher_tokenizer, 2), config, **common)


@pytest.mark.parametrize("side", ["teacher", "student"])
def test_a_missing_chat_template_is_named(tmp_path, side):
    trainer = make_trainer(tmp_path)
    tokenizer = trainer.teacher_tokenizer if side == "teacher" else trainer.processing_class
    tokenizer.chat_template = None
    with pytest.raises(
        ValueError, match=rf"row 0: the {side}'s chat template is missing: .*'completion'"
    ):
        trainer.train()
    # The advice: the template of its model, or texts.
    assert make_trainer(tmp_path, rows=TEXTS).train().global_step == 2


if __name__ == "__main__":
    check_gradient(sys.argv[1], float(sys.argv[2]), 4)
    print(torch.distributed.get_world_size(), "processes agree", flush=True)
    torch.distributed.destroy_process_group()
    # As in test_loss_system.py: torch's threads can abort an interpreter that finalizes.
    os._exit(0)
