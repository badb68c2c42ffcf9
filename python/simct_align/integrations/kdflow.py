"""SimCT as an algorithm of KDFlow: the class that KDFlow's trainers construct and call.

Register the class under a name of your own. This module does not import KDFlow::

    from kdflow.algorithms import register_algorithm
    from simct_align.integrations.kdflow import SimCTAlgorithm

    register_algorithm("simct")(SimCTAlgorithm)

To set other keywords, register a subclass or a `functools.partial`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from simct_align.aligner import Aligner
from simct_align.loss import SimCTLoss

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from simct_align.divergence import Divergence
    from simct_align.index import AlignedIndex

__all__ = ["SimCTAlgorithm"]

_NO_INPUT = ("stu_input_ids", "stu_attn_mask", "stu_loss_mask")


class SimCTAlgorithm:
    """Compare both models on SimCT's candidates, in KDFlow's training loop.

    Use this class where KDFlow's teacher sends the hidden states of the positions in the teacher's
    loss mask. In both loss masks `mask[i]` marks the logits at position `i`, which predict token
    `i + 1`.

    Args:
        strategy: KDFlow's strategy. If `strategy.args.kd.kd_ratio` is below 1, the loss also has
            the cross-entropy of the student's own tokens. `strategy.ring_attn_group` is passed to
            the student.
        student_model: A callable `student_model(ids, attention_mask=..., allgather_logits=True,
            ring_attn_group=..., **multimodal)` that returns `{"logits": [B, T_s, V_s]}`.
        teacher_lm_head: A module with a `weight` that turns hidden states into teacher logits.
        student_tokenizer: A fast `transformers` tokenizer, any other object that
            `Vocabulary.from_tokenizer` reads, or a `Vocabulary`.
        teacher_tokenizer: The same for the teacher.
        candidates: `"shared"` or `"realized"`; see `SimCTLoss`. `"on_path"` would also need the
            teacher's distribution after the last token of an answer, and KDFlow does not send the
            hidden state of that position.
        score: The score of a path; see `SimCTLoss`.
        divergence: The divergence to minimize; see `SimCTLoss`.
        temperature: The number that the logits of both sides are divided by.
        stop_tokens: The tokens that end a turn; see `Aligner`.
        unused: KDFlow's keywords for other algorithms; they are not read.

    Raises:
        TypeError: A tokenizer or `divergence` is an object of a wrong type.
        ValueError: A keyword is out of its range.
        UnsupportedTokenizerError: The bytes of a tokenizer's tokens cannot be read exactly.
    """

    def __init__(
        self,
        strategy: Any,
        student_model: Any,
        teacher_lm_head: nn.Module,
        student_tokenizer: object,
        teacher_tokenizer: object,
        *,
        candidates: str = "realized",
        score: str = "mean",
        divergence: str | Divergence = "reverse_kl",
        temperature: float = 1.0,
        stop_tokens: tuple[Sequence[str | int], Sequence[str | int]] | None = None,
        **unused: Any,
    ) -> None:
        del unused
        if candidates == "on_path":
            raise ValueError(
                "candidates: 'on_path' needs the teacher's hidden state at the last token of every "
                "answer, which KDFlow does not send: expected 'shared' or 'realized'"
            )
        self.strategy = strategy
        self.student = student_model
        self.teacher_lm_head = teacher_lm_head
        self.aligner = Aligner(teacher_tokenizer, student_tokenizer, stop_tokens=stop_tokens)
        self.loss_fn = SimCTLoss(
            self.aligner,
            candidates=candidates,
            score=score,
            divergence=divergence,
            temperature=temperature,
            reduction="sum",
        )

    def training_step(self, micro_batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Compute the loss of a micro-batch.

        Args:
            micro_batch: A mapping with the keys `stu_input_ids`, `stu_attn_mask` and
                `stu_loss_mask`, `[B, T_s]`; `tea_input_ids` and `tea_loss_mask`, `[B, T_t]`;
                `teacher_hiddens`, `[tokens, H]`, one row for every true element of
                `tea_loss_mask`, row by row; and `avg_micro_batch_token_num`, the number that the
                sum over units is divided by. Other keys that begin with `stu_` are passed to the
                student without this prefix.

        Returns:
            0-d tensors. `loss` is the loss to differentiate. `kd_loss` is the distillation part of
            `loss`. `align_ratio` is the share of the student's tokens that lie in compared units.
            `multi_units` is the number of compared MULTI units. `ce_loss` is the cross-entropy,
            if `kd_ratio` is below 1.

        Raises:
            ValueError: `teacher_hiddens` is missing, or its number of rows differs from the number
                of true elements of `tea_loss_mask`.

        Complexity:
            One copy of ids and masks to the host, plus the cost of the loss. Teacher logits are
            computed for the masked positions only.
        """
        hiddens = micro_batch.get("teacher_hiddens")
        if hiddens is None:
            raise ValueError(
                "micro_batch['teacher_hiddens']: expected the teacher's hidden states "
                "[tokens, width], got None or no such key"
            )
        index = self._index(micro_batch, len(hiddens))
        logits = self.student(
            micro_batch["stu_input_ids"],
            attention_mask=micro_batch["stu_attn_mask"],
            allgather_logits=True,
            ring_attn_group=getattr(self.strategy, "ring_attn_group", None),
            **{
                key.removeprefix("stu_"): value
                for key, value in micro_batch.items()
                if key.startswith("stu_") and key not in _NO_INPUT
            },
        )["logits"]
        with torch.no_grad():
            teacher_logits = self.teacher_lm_head(hiddens.to(self.teacher_lm_head.weight))
        out = self.loss_fn.to(logits.device)(
            teacher_logits=teacher_logits.to(logits.device),
            student_logits=logits,
            index=index.to(logits.device),
        )
        tokens = micro_batch["avg_micro_batch_token_num"]
        mask = micro_batch["stu_loss_mask"].bool()
        loss = kd_loss = out.loss / tokens
        compared = index.normalizer("token", self.loss_fn.candidates)
        found = {
            "kd_loss": kd_loss,
            "align_ratio": compared / mask[:, :-1].sum().clamp(min=1),
            "multi_units": out.metrics.units_multi,
        }
        ratio = getattr(getattr(self.strategy.args, "kd", None), "kd_ratio", 1.0)
        if ratio < 1:
            labels = micro_batch["stu_input_ids"][:, 1:][mask[:, :-1]]
            cross_entropy = torch.nn.functional.cross_entropy(
                logits[:, :-1][mask[:, :-1]], labels, reduction="sum"
            )
            found["ce_loss"] = cross_entropy / tokens
            loss = (1 - ratio) * found["ce_loss"] + ratio * kd_loss
        return {"loss": loss, **found}

    def _index(self, micro_batch: Mapping[str, Any], n_hiddens: int) -> AlignedIndex:
        """Align the rows; return an index whose teacher rows are rows of the hidden states."""
        ids, masks = {}, {}
        for side in ("tea", "stu"):
            ids[side] = micro_batch[f"{side}_input_ids"].cpu()
            masks[side] = micro_batch[f"{side}_loss_mask"].cpu().bool()
        expected = int(masks["tea"].sum())
        if n_hiddens != expected:
            raise ValueError(
                f"teacher_hiddens: expected {expected} rows, one for every true element of "
                f"tea_loss_mask, got {n_hiddens}"
            )
        # A token takes part if its logits do: those before it. A row's first token has none.
        teacher, student = (
            torch.nn.functional.pad(masks[side][:, :-1], (1, 0)) for side in ("tea", "stu")
        )
        batch = self.aligner.align_batch(
            ids["tea"], ids["stu"], teacher_mask=teacher, student_mask=student
        )
        index = batch.index()
        packed_row = (masks["tea"].flatten().long().cumsum(0) - 1).numpy()
        for rows in (index.teacher_row, index.teacher_step_row):
            rows[:] = packed_row[rows]
        return replace(index, teacher_rows_needed=n_hiddens, teacher_stride=None)
