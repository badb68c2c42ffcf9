"""The TRL trainer on a real GPU, with the tiny models of its other tests."""

from __future__ import annotations

import pytest
import torch

from test_trl import MESSAGES, logged, logged_comparisons, make_trainer

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device here: the tests on a GPU are left out"
)

KEYWORDS = [
    {"candidates": "shared"},
    {"candidates": "realized"},
    {"candidates": "on_path", "score": "event"},
    {"objective": "alm"},
    {"objective": "gold"},
]


@pytest.mark.parametrize("keywords", KEYWORDS, ids=str)
def test_fixed_answers_train_as_on_the_cpu(tmp_path, keywords):
    losses = []
    for use_cpu in (True, False):
        trainer = make_trainer(
            tmp_path / str(use_cpu), use_cpu=use_cpu, lmbda=0.0, max_steps=5, learning_rate=1e-3,
            lr_scheduler_type="constant", rows=MESSAGES[:2], **keywords,
        )  # fmt: skip
        trainer.train()
        devices = {p.device.type for p in trainer.model.parameters()}
        assert devices == {"cpu" if use_cpu else "cuda"}
        losses.append([entry["loss"] for entry in logged(trainer)])
    assert losses[1][-1] < losses[1][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("candidates", ["realized", "on_path"])
def test_trains_on_policy(tmp_path, bf16, candidates):
    trainer = make_trainer(tmp_path, use_cpu=False, bf16=bf16, candidates=candidates, extra=300)
    trainer.train()
    logged_comparisons(trainer, 2)
