"""SimCT as an algorithm of KDFlow: the class that its trainers construct and call.

Register it under a name of your own; nothing here imports KDFlow::

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

_NO_INPUT = ("stu_input_ids", "stu_attn_mask", "stu_loss_mask")


class SimCTAlgorithm:
    """Compares both models on SimCT's candidates, in KDFlow's training loop.

    Use it where KDFlow's teacher sends hidden states of the positions that its loss mask names. In
    both loss masks, `mask[i]` says that logits `i` take part: they predict token `i + 1`.

    Args:
        strategy: KDFlow's; `strategy.args.kd.kd_ratio` below 1 mixes in the cross-entropy of the
            student's own tokens, and `strategy.ring_attn_group` goes to the student.
        student_model: Called as `student_model(ids, attention_mask=..., allgather_logits=True,
            ring_attn_group=..., **multimodal)`; returns `{"logits": [B, T_s, V_s]}`.
        teacher_lm_head: Makes teacher logits of hidden states; has a `weight`.
        student_tokenizer: A fast `transformers` tokenizer, or whatever
            `from_tokenizer` reads, or a vocabulary.
        teacher_tokenizer: Likewise.
        candidates: `"shared"` or `"realized"`; see `SimCTLoss`, also
            for the next three. `"on_path"` needs the teacher's opinion after the last token of
            an answer as well, of which KDFlow sends no hidden state.
        score: How paths are scored.
        divergence: What is minimized.
        temperature: Divides both sides' logits.
        stop_tokens: See `Aligner`.
        unused: Further keywords of KDFlow's, for other algorithms.

    Raises:
        ValueError: A keyword out of its range.
        UnsupportedTokenizerError: A tokenizer whose bytes cannot be read.
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
        """Computes the loss of a micro-batch.

        Args:
            micro_batch: `stu_input_ids`, `stu_attn_mask`, `stu_loss_mask` `[B, T_s]`;
                `tea_input_ids`, `tea_loss_mask` `[B, T_t]`; `teacher_hiddens`
                `[tokens, H]`, one row for every true element of `tea_loss_mask`, row by row;
                `avg_micro_batch_token_num`, which the sum over units is divided by. Other keys
                that begin with `stu_` go to the student without that prefix.

        Returns:
            0-d tensors: `loss`, which the trainer differentiates; `kd_loss`, its part from
            distillation; `align_ratio`, the share of the student's tokens that lie in units
            compared; `multi_units`, how many units of several tokens were; and `ce_loss`, if
            `kd_ratio` is below 1.

        Raises:
            ValueError: Without `teacher_hiddens`, or with another number of them than the mask
                says.

        Complexity:
            One copy of ids and masks to the host, and that of the loss; teacher logits are made
            for the masked positions only.
        """
        hiddens = micro_batch.get("teacher_hiddens")
        if hiddens is None:
            raise ValueError("micro_batch has no 'teacher_hiddens'")
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
        """Aligns the rows; teacher rows number the hidden states, which are packed."""
        ids, masks = {}, {}
        for side in ("tea", "stu"):
            ids[side] = micro_batch[f"{side}_input_ids"].cpu()
            masks[side] = micro_batch[f"{side}_loss_mask"].cpu().bool()
        expected = int(masks["tea"].sum())
        if n_hiddens != expected:
            raise ValueError(
                f"teacher_hiddens has {n_hiddens} rows, but tea_loss_mask has {expected} true "
                "elements"
            )
        # A token takes part if the logits before it do; the first of a row has none.
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
