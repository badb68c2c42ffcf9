"""On-policy distillation in verl, with a teacher that has another tokenizer.

`SimCTAgentLoopManager` takes the place of verl's manager of agent loops: it asks verl's own teacher
servers about the teacher's row of every sample. The losses `"simct_k1"`, `"simct_k2"` and
`"simct_k3"` compare whole units. docs/verl.md shows the settings. Import this module in every
process: `VERL_USE_EXTERNAL_MODULES=simct_align.integrations.verl`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import ray
import torch
from transformers import AutoTokenizer
from verl.experimental.agent_loop import AgentLoopManager, AgentLoopWorker
from verl.trainer.distillation.losses import DistillationLossSettings, register_distillation_loss
from verl.trainer.ppo.core_algos import kl_penalty
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.padding import no_padding_2_padding

from simct_align.aligner import Aligner
from simct_align.integrations._teacher_row import TeacherRows
from simct_align.vocabulary import Vocabulary

__all__ = ["SimCTAgentLoopManager", "SimCTAgentLoopWorker", "unit_loss"]

_LOSSES = {"simct_k1": "k1", "simct_k2": "k2", "simct_k3": "k3"}


class SimCTAgentLoopWorker(AgentLoopWorker):  # type: ignore[misc]
    """An agent loop worker whose teacher reads the sampled text in the teacher's own tokens.

    A sample's `teacher_logprobs`, float32 `[tokens, 1]`, are the teacher's log-probabilities, with
    the sum of a unit shared by its student tokens. Its `teacher_ids`, int32 `[tokens, 1]`, are the
    numbers of the units, −1 for tokens that the teacher has no number for. As verl expects it,
    entry `i` belongs to token `i + 1`.
    """

    def make_aligner(self, teacher_tokenizer: Any) -> Aligner:
        """Return the pair of vocabularies; override it to name stops or control tokens."""
        # A student can sample an id of its embedding that no token has.
        size = getattr(self.model_config.hf_config, "vocab_size", None) or 0
        student = Vocabulary.from_tokenizer(
            self.tokenizer, vocab_size=size if size > len(self.tokenizer) else None
        )
        return Aligner(teacher_tokenizer, student)

    @cached_property
    def teacher_rows(self) -> TeacherRows:
        """The maker of the teacher's rows."""
        teachers = list(self.teacher_server_manager.teacher_model_configs.values())
        if (
            len(teachers) != 1
            or self.config.distillation.distillation_loss.loss_mode not in _LOSSES
        ):
            raise ValueError(
                f"distillation: expected one teacher and a loss_mode of {sorted(_LOSSES)}, got "
                f"{len(teachers)} and {self.config.distillation.distillation_loss.loss_mode!r}"
            )
        tokenizer = AutoTokenizer.from_pretrained(teachers[0].model_path)
        return TeacherRows(self.make_aligner(tokenizer), tokenizer)

    async def _compute_teacher_logprobs(
        self,
        output: Any,
        prompt_ids: list[int],
        response_ids: list[int],
        validate: bool,
        sample_kwargs: Any = None,
    ) -> None:
        if not self.distillation_enabled or validate:
            return
        sampled = [0] * len(prompt_ids) + list(output.response_mask)
        found, units = np.full(len(sampled), np.nan), np.full(len(sampled), -1)
        if any(sampled):
            messages = list(sample_kwargs["raw_prompt"])
            row = self.teacher_rows.of_messages([*prompt_ids, *response_ids], sampled, messages)
            ask = self.teacher_server_manager.compute_teacher_logprobs_single
            _, logprobs = await ask(sequence_ids=row.ids)
            found = row.even([np.nan, *logprobs[:-1, 0].tolist()])
            units = np.where(np.isnan(found), -1, row.units())
        shifted = np.append(np.nan_to_num(found[1:], nan=0.0), 0.0), np.append(units[1:], -1)
        output.extra_fields["teacher_logprobs"] = torch.tensor(shifted[0]).float()[:, None]
        output.extra_fields["teacher_ids"] = torch.tensor(shifted[1]).int()[:, None]


class SimCTAgentLoopManager(AgentLoopManager):  # type: ignore[misc]
    """A manager of `SimCTAgentLoopWorker`; set `rollout.agent.agent_loop_manager_class` to it."""

    #: The class of the workers; a subclass can name another one.
    worker_class: type = SimCTAgentLoopWorker

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self.agent_loop_workers_class = ray.remote(self.worker_class)
        super().__init__(*args, **keywords)


@register_distillation_loss(  # type: ignore[untyped-decorator]
    DistillationLossSettings(names=[*_LOSSES], use_estimator=True)
)
def unit_loss(
    config: Any, distillation_config: Any, model_output: Any, data: Any
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Estimate KL(student ‖ teacher) from whole units, as verl's estimators do from tokens.

    The estimator of a unit is computed from both models' sums over the unit, and shared by the
    unit's tokens.

    Returns:
        The loss of every token, `[B, response length]`, and metrics.
    """
    del config
    settings = distillation_config.distillation_loss
    mode = _LOSSES[settings.loss_mode]
    if mode == "k1" and not settings.use_policy_gradient:
        raise ValueError("loss_mode 'simct_k1': expected use_policy_gradient=True, as for 'k1'")
    own = no_padding_2_padding(model_output["log_probs"], data)
    teacher = no_padding_2_padding(data["teacher_logprobs"], data).squeeze(-1).to(own)
    units = no_padding_2_padding(data["teacher_ids"], data).squeeze(-1).long()
    rows, width = own.shape
    answered = data["response_mask"]
    answered = (answered.to_padded_tensor(False) if answered.is_nested else answered).bool()
    inside = (units >= 0) & answered
    # Units are numbered within a row, from 0; the last bucket takes what is in none.
    first = torch.arange(rows, device=own.device)[:, None] * width
    bucket = torch.where(inside, units + first, rows * width).flatten()
    sums = [
        torch.zeros(rows * width + 1, dtype=own.dtype, device=own.device).index_add(
            0, bucket, values.flatten()
        )
        for values in (own, teacher, torch.ones_like(own))
    ]
    student, reference, count = (each[bucket].view(rows, width) for each in sums)
    losses = kl_penalty(logprob=student, ref_logprob=reference, kl_penalty=mode) / count
    losses = torch.where(inside, losses, torch.zeros_like(losses))
    share = inside.sum() / answered.sum().clamp(min=1)
    return losses, {"distillation/tokens_in_units": Metric(AggregationType.MEAN, share)}
