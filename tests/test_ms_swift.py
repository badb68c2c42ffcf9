"""The ms-swift adapter in ms-swift 4.6: its own pipeline, on tiny random models.

Left out where ms-swift is not installed. It needs an older `transformers` than other tests, so a
virtual environment of its own: `pip install ms-swift==4.6.0 msgspec`, this package, and pytest.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("swift")

from swift.arguments import RLHFArguments  # noqa: E402
from swift.pipelines import rlhf_main  # noqa: E402
from swift.trainers import TrainerFactory  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from simct_align.divergence import JSD  # noqa: E402
from simct_align.integrations import ms_swift  # noqa: E402
from simct_align.loss import SimCTLoss  # noqa: E402
from support.chat_tokenizers import demo_chat_tokenizers  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path

ANSWER = "It is 42: naïve, but 12345 apples."


class Watched(ms_swift.SimCTGKDTrainer):
    """The trainer, with what its last step saw."""

    seen: dict[str, Any] = {}  # noqa: RUF012

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **keywords: Any) -> Any:
        # Before the trainer cuts them to the completions.
        rows = {name: dict(inputs[name]) for name in ("model_inputs", "teacher_model_inputs")}
        loss = super().compute_loss(model, inputs, *args, **keywords)
        Watched.seen = {"trainer": self, "model": model, "loss": loss, **rows}
        return loss


def arguments(folder: Path, rows: list[Any], **more: Any) -> RLHFArguments:
    for name, tokenizer in zip(("teacher", "student"), demo_chat_tokenizers(), strict=True):
        torch.manual_seed(len(name))
        tokenizer.pad_token = tokenizer.eos_token
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    data = folder / "data.jsonl"
    data.write_text("\n".join(json.dumps({"messages": row}) for row in rows), encoding="utf-8")
    options: dict[str, Any] = {
        "rlhf_type": "gkd", "model": str(folder / "student"), "model_type": "llama",
        "template": "default", "teacher_model": str(folder / "teacher"),
        "teacher_model_type": "llama", "dataset": [str(data)], "output_dir": str(folder / "out"),
        "max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
        "lmbda": 0.0, "beta": 0.5, "torch_dtype": "float32", "tuner_type": "full",
        "report_to": [], "save_strategy": "no", "logging_steps": 1, "bf16": False,
        "gradient_checkpointing": False, "max_length": 256, "attn_impl": "sdpa",
        "split_dataset_ratio": 0, "dataloader_num_workers": 0, "loss_scale": "default",
    } | more  # fmt: skip
    return RLHFArguments(**options)


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, rows: list[Any], **more: Any) -> Any:
    monkeypatch.setattr(ms_swift, "Watched", Watched, raising=False)
    monkeypatch.setitem(
        TrainerFactory.TRAINER_MAPPING, "gkd", "simct_align.integrations.ms_swift.Watched"
    )
    return rlhf_main(arguments(folder, rows, **more))


def talk(turns: int, number: int) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for turn in range(turns)
        for role, text in (("user", f"What is {number} + {turn}?"), ("assistant", ANSWER))
    ]


@pytest.mark.parametrize("turns", [1, 2])
def test_a_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, turns: int) -> None:
    done = run(monkeypatch, tmp_path, [talk(turns, number) for number in range(4)])
    assert math.isfinite(done["log_history"][0]["loss"])
    seen, trainer = Watched.seen, Watched.seen["trainer"]
    aligner = trainer.aligner
    teacher, student = seen["teacher_model_inputs"], seen["model_inputs"]
    teacher_tokenizer = demo_chat_tokenizers()[0]
    for row in range(2):
        said = aligner.student.decode_bytes(
            student["labels"][row][student["labels"][row] >= 0].numpy()
        )
        taught = aligner.teacher.decode_bytes(
            teacher["labels"][row][teacher["labels"][row] >= 0].numpy()
        )
        # The student's template writes a space where its tokenizer puts a dummy prefix.
        assert said.decode().strip() == taught.decode().strip()
        assert taught.decode().count(ANSWER) == turns
        ids = teacher["input_ids"][row][teacher["attention_mask"][row] == 1].tolist()
        text = teacher_tokenizer.decode(ids)
        assert text.count("<|user|>What is") == text.count("<|assistant|>") == turns
    # The whole logits, not those of the completions alone.
    loss_fn = SimCTLoss(aligner, divergence=JSD(0.5), temperature=trainer.temperature)
    logits = []
    with torch.no_grad():
        for model, inputs in ((trainer.teacher_model, teacher), (seen["model"], student)):
            forward = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            logits.append(model(**forward).logits)
    masks = [inputs["labels"] != -100 for inputs in (teacher, student)]
    batch = aligner.align_batch(
        teacher["input_ids"], student["input_ids"], teacher_mask=masks[0], student_mask=masks[1]
    )
    assert (batch.kind == 1).any()
    out = loss_fn(teacher_logits=logits[0], student_logits=logits[1], index=batch)
    # The model has made its step since.
    assert seen["loss"].item() == pytest.approx(out.loss.item(), rel=0.05)
    assert trainer._rows.counts["tokens_without_teacher"] == 0


def test_options_of_the_loss(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Watched, "loss_options", {"candidates": "shared"})
    run(monkeypatch, tmp_path, [talk(1, number) for number in range(2)])
    assert Watched.seen["trainer"]._loss_fn.candidates == "shared"


def test_settings_that_are_not_supported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not support these settings: gkd_logits_topk"):
        run(monkeypatch, tmp_path, [talk(1, number) for number in range(2)], gkd_logits_topk=8)
