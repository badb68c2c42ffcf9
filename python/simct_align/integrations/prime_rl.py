"""On-policy distillation in prime-rl, with a teacher that has another tokenizer.

`with_other_tokenizer` makes an algorithm of prime-rl's own `OPDAlgorithm`, to put in its place.
docs/prime_rl.md shows how.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.integrations._teacher_row import TeacherRow, TeacherRows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from simct_align.aligner import Aligner
    from simct_align.conversation import ChatTokenizer

__all__ = ["with_other_tokenizer"]


def with_other_tokenizer(
    algorithm: type,
    aligner: Aligner,
    teacher_tokenizer: ChatTokenizer,
    *,
    template_options: Mapping[str, Any] | None = None,
) -> type:
    """Return a subclass of prime-rl's `OPDAlgorithm` for a teacher with another tokenizer.

    The teacher scores the conversation as its own chat template writes it, with the sampled text in
    its own tokens. prime-rl compares the reference log-probabilities with the student's per token.
    The numbers that it gets make the difference the same for all tokens of a unit, with the unit's
    log-ratio as its sum, and 0 for tokens that the teacher has no number for.

    Args:
        algorithm: `prime_rl.orchestrator.algo.opd.OPDAlgorithm`.
        aligner: The pair of vocabularies, the teacher's first.
        teacher_tokenizer: The teacher's `transformers` tokenizer.
        template_options: Additional keyword arguments of its `apply_chat_template`.

    Returns:
        The class. Its attribute `teacher_rows` counts what the teacher's rows leave out.
    """

    class SimCTOPDAlgorithm(algorithm):  # type: ignore[misc]
        teacher_rows = TeacherRows(aligner, teacher_tokenizer, template_options)

        async def score_episode(self, episode: Any) -> None:
            from prime_rl.orchestrator.algo.base import iter_trainable_traces
            from prime_rl.orchestrator.algo.routing import assign_reference_logprobs
            from prime_rl.orchestrator.trajectories import iter_trainable_branches

            # A client in newer versions, a pool in older ones; both have `score`.
            teacher = getattr(self, "teacher_clients", None) or self.teacher_pool
            branches = [
                branch
                for _, trace in iter_trainable_traces([episode])
                for branch, _ in iter_trainable_branches(trace)
            ]
            rows = [_row_of(self.teacher_rows, branch) for branch in branches]
            scores = await asyncio.gather(*(teacher.score(row.ids) for row in rows))
            for branch, row, logprobs in zip(branches, rows, scores, strict=True):
                values = row.beside([np.nan, *logprobs[1:]], branch.logprobs)
                assign_reference_logprobs(branch, values.tolist())

    return SimCTOPDAlgorithm


def _row_of(rows: TeacherRows, branch: Any) -> TeacherRow:
    messages = [
        message if isinstance(message, dict) else message.model_dump(exclude_none=True)
        for message in (node.message for node in branch.nodes)
    ]
    turns = [number for number, node in enumerate(branch.nodes) if any(node.mask)]
    return rows.of_messages(branch.token_ids, branch.sampled_mask, messages, turns=turns)
