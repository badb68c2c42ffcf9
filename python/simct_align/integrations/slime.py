"""On-policy distillation in slime, with a teacher that has another tokenizer.

slime calls two functions that its arguments name. Make a module with an object of this class, and
name the object's methods. docs/slime.md shows how. This module does not import slime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.integrations._teacher_row import TeacherRow, TeacherRows
from simct_align.served import from_sglang

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SlimeTeacher"]


class SlimeTeacher(TeacherRows):
    """The functions `reward_func` and `post_process_rewards` of slime's on-policy distillation.

    The teacher's row is the prompt, written by the teacher's chat template, and the sampled text in
    the teacher's tokens. slime subtracts the student's log-probability of every token. The numbers
    that it gets make the difference the same for all tokens of a unit, with the unit's log-ratio
    as its sum, and 0 for tokens that the teacher has no number for.

    The prompt is `sample.metadata["messages"]` if there are any, else `sample.prompt`: messages, or
    a text that no chat template wrote.

    Args:
        aligner: The pair of vocabularies, the teacher's first.
        teacher_tokenizer: The teacher's `transformers` tokenizer.
        template_options: Additional keyword arguments of its `apply_chat_template`.
    """

    async def reward_func(self, args: Any, sample: Any, **_: Any) -> dict[str, Any]:
        """Ask the teacher at `args.rm_url` (SGLang's `/generate`) about one sample.

        Returns:
            `{"teacher_log_probs": [...]}`, one number per token of the response.

        Raises:
            ValueError: The sample has no `rollout_log_probs`, or its prompt cannot be written.
        """
        if sample.rollout_log_probs is None:
            raise ValueError("sample.rollout_log_probs: expected the log-probabilities, got None")
        prompt_length = len(sample.tokens) - sample.response_length
        loss_mask = sample.loss_mask or [1] * sample.response_length
        if not any(loss_mask):
            return {"teacher_log_probs": list(sample.rollout_log_probs)}
        row = self._row_of(sample, [0] * prompt_length + list(loss_mask))
        served = from_sglang([await self.ask(args, row.ids)], [row.ids], top_k=0)
        own = np.concatenate([np.zeros(prompt_length), sample.rollout_log_probs])
        return {"teacher_log_probs": row.beside(served.logprobs, own)[prompt_length:].tolist()}

    def post_process_rewards(
        self, args: Any, samples: Sequence[Any], **_: Any
    ) -> tuple[list[float], list[float]]:
        """Set `sample.teacher_log_probs`, float32 `[response_length]`; rewards are 0."""
        import torch

        for sample in samples:
            found = sample.get_reward_value(args)["teacher_log_probs"]
            sample.teacher_log_probs = torch.tensor(found, dtype=torch.float32)
        return [0.0] * len(samples), [0.0] * len(samples)

    async def ask(self, args: Any, ids: list[int]) -> Any:
        """Return the answer of the teacher's server; override it for another server."""
        import aiohttp

        request = {
            "input_ids": ids,
            "sampling_params": {"temperature": 0, "max_new_tokens": 0},
            "return_logprob": True,
            "logprob_start_len": 0,
        }
        async with (
            aiohttp.ClientSession() as session,
            session.post(args.rm_url, json=request) as response,
        ):
            response.raise_for_status()
            return await response.json()

    def _row_of(self, sample: Any, sampled: list[int]) -> TeacherRow:
        prompt = (sample.metadata or {}).get("messages") or sample.prompt
        of_prompt = self.of_text if isinstance(prompt, str) else self.of_messages
        return of_prompt(sample.tokens, sampled, prompt)
