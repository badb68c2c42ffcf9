"""On-policy distillation in verl, with a teacher that has another tokenizer.

`SimCTAgentLoopManager` takes the place of verl's manager of agent loops: it asks verl's own teacher
servers about the teacher's row of every sample. The losses `"simct_k1"`, `"simct_k2"` and
`"simct_k3"` compare whole units. docs/verl.md shows the settings. Import this module in every
process: `VERL_USE_EXTERNAL_MODULES=simct_align.integrations.verl`.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import ray
import torch
from transformers import AutoTokenizer
from verl.experimental.agent_loop import AgentLoopManager, AgentLoopWorker

from simct_align.integrations._teacher_row import TeacherRows, model_aligner
from simct_align.integrations._verl_losses import ESTIMATORS, unit_loss

if TYPE_CHECKING:
    from simct_align.aligner import Aligner

__all__ = ["SimCTAgentLoopManager", "SimCTAgentLoopWorker", "unit_loss"]


class SimCTAgentLoopWorker(AgentLoopWorker):  # type: ignore[misc]
    """An agent loop worker whose teacher reads the sampled text in the teacher's own tokens.

    A sample's `teacher_logprobs`, float32 `[tokens, 1]`, are the teacher's log-probabilities, with
    the sum of a unit shared by its student tokens. Its `teacher_ids`, int32 `[tokens, 1]`, are the
    numbers of the units, −1 for tokens that the teacher has no number for. As verl expects it,
    entry `i` belongs to token `i + 1`.
    """

    def make_aligner(self, teacher_tokenizer: Any) -> Aligner:
        """Return the pair of vocabularies; override it to name stops or control tokens."""
        return model_aligner(teacher_tokenizer, self.tokenizer, self.model_config.hf_config)

    @cached_property
    def teacher_rows(self) -> TeacherRows:
        """The maker of the teacher's rows."""
        teachers = list(self.teacher_server_manager.teacher_model_configs.values())
        mode = self.config.distillation.distillation_loss.loss_mode
        if len(teachers) != 1 or mode not in ESTIMATORS:
            raise ValueError(
                f"distillation: expected one teacher and a loss_mode of {sorted(ESTIMATORS)}, got "
                f"{len(teachers)} and {mode!r}"
            )
        tokenizer = AutoTokenizer.from_pretrained(teachers[0].model_path)
        return TeacherRows(self.make_aligner(tokenizer), tokenizer)

    async def _compute_teacher_logprobs(
        self, output: Any, prompt_ids: Any, response_ids: Any, validate: Any, sample_kwargs: Any
    ) -> None:
        if not self.distillation_enabled or validate:
            return
        row = self.teacher_rows.of_messages(
            [*prompt_ids, *response_ids],
            [0] * len(prompt_ids) + list(output.response_mask),
            list(sample_kwargs["raw_prompt"]),
        )
        ask = self.teacher_server_manager.compute_teacher_logprobs_single
        answer = (await ask(sequence_ids=row.ids))[1][:, 0].tolist() if row.ids else []
        logprobs, units = row.even_next(answer)
        output.extra_fields["teacher_logprobs"] = torch.tensor(logprobs).float()[:, None]
        output.extra_fields["teacher_ids"] = torch.tensor(units).int()[:, None]


class SimCTAgentLoopManager(AgentLoopManager):  # type: ignore[misc]
    """A manager of `SimCTAgentLoopWorker`; set `rollout.agent.agent_loop_manager_class` to it."""

    #: The class of the workers; a subclass can name another one.
    worker_class: type = SimCTAgentLoopWorker

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self.agent_loop_workers_class = ray.remote(self.worker_class)
        super().__init__(*args, **keywords)
