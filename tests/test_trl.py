"""The TRL trainer on tiny random models: both tokenizer styles on either side."""

from __future__ import annotations

import copy
import math
import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

from chat_tokenizers import demo_aligner, demo_chat_tokenizers
from simct_align.integrations.trl import SimCTConfig, SimCTTrainer
from simct_align.loss import SimCTLoss

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


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("rows", [MESSAGES, TEXTS], ids=["messages", "texts"])
def test_trains_on_policy_and_logs_what_was_compared(tmp_path, turned, rows):
    trainer = make_trainer(tmp_path, turned=turned, rows=rows, extra=300)
    trainer.train()
    entries = logged(trainer)
    assert len(entries) == 2
    for entry in entries:
        assert math.isfinite(entry["loss"])
        assert entry["loss"] > 0.0
        assert entry["simct/units_shared"] + entry["simct/units_multi"] > 0
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
        {"objective": "shared"},
        {"objective": "uld"},
        {"objective": "alm"},
        {"objective": "gold"},
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


def check_gradient(folder: Any, lmbda: float, steps: int) -> None:
    """One optimizer step's gradient against the sum over all slices of all processes.

    Slices share a normalizer: unequal numbers of units must not change the weights of units.
    """
    trainer = make_trainer(
        folder,
        lmbda=lmbda,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=steps,
        extra=600,
    )
    model = trainer.model
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
    units = torch.tensor([each.aligned.normalizer("unit") for each in slices])
    model.zero_grad()
    loss = SimCTLoss(trainer.aligner, reduction="sum")
    total = torch.zeros(())
    for each in slices:
        student = model(each.student_ids, attention_mask=each.student_mask).logits
        with torch.no_grad():
            teacher = trainer.teacher_model(each.teacher_ids, each.teacher_mask).logits
        total = total + loss(student, teacher, each.aligned).loss
    total.backward()
    everywhere = trainer.accelerator.gather(units)
    assert len(set(everywhere.tolist())) > 1
    for parameter, gradient in zip(model.parameters(), found, strict=True):
        expected = trainer.accelerator.reduce(parameter.grad, reduction="sum") / everywhere.sum()
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("lmbda", [0.0, 0.5, 1.0])
def test_accumulation_gives_the_gradient_of_one_big_batch(tmp_path, lmbda):
    check_gradient(tmp_path, lmbda, 4)


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
        ids = ready.teacher_ids[row][ready.teacher_mask[row].bool()].tolist()
        assert ids[: len(prompt)] == prompt
        sampled = inputs["input_ids"][row][inputs["labels"][row] != -100].tolist()
        assert ids[len(prompt) :] == trainer.aligner.retokenize([sampled]).row(0).tolist()


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


def test_evaluation_takes_the_answers_of_the_data_set(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.eval_dataset = Dataset.from_list(MESSAGES)
    figures = trainer.evaluate()
    assert math.isfinite(figures["eval_loss"])


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"uld_use_hybrid_loss": True}, "uld_use_hybrid_loss"),
        ({"uld_student_temperature": 2.0}, "uld_student_temperature"),
        ({"beta": 0.1}, "beta"),
        ({"use_extended_uld": True}, "use_extended_uld"),
        ({"use_uld_loss": False}, "use_uld_loss"),
        ({"objective": "simkt"}, "simkt"),
        ({"objective": "uld", "score": "sum"}, "score"),
    ],
)
def test_fields_that_nothing_reads_are_refused(tmp_path, keywords, named):
    with pytest.raises(ValueError, match=named):
        SimCTConfig(output_dir=str(tmp_path), use_cpu=True, **keywords)


def test_another_version_of_trl_is_refused(monkeypatch):
    from simct_align.integrations import trl

    monkeypatch.setattr(trl, "version", lambda _: "1.17.0")
    with pytest.raises(ImportError, match=r"1\.16.*found trl 1\.17\.0"):
        trl._check_version()


if __name__ == "__main__":
    check_gradient(sys.argv[1], float(sys.argv[2]), 4)
    print(torch.distributed.get_world_size(), "processes agree")
    torch.distributed.destroy_process_group()
