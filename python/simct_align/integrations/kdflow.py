"""SimCT as an algorithm of KDFlow: the class that KDFlow's trainers construct and call.

The interface is that of KDFlow's own algorithms, with students that return hidden states, and with
those of its first releases, which return logits. docs/kdflow.md tells how to train. Register the
class under a name of your own. This module does not import KDFlow::

    from kdflow.algorithms import register_algorithm
    from simct_align.integrations.kdflow import SimCTAlgorithm

    register_algorithm("simct")(SimCTAlgorithm)

To set other keywords, register a subclass or a `functools.partial`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from simct_align.aligner import Aligner
from simct_align.loss import SimCTLoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from simct_align.divergence import Divergence
    from simct_align.index import AlignedIndex

__all__ = ["SimCTAlgorithm"]

#: Fields of a micro-batch that the student's model takes, by their prefix.
_MULTIMODAL = "mm_"
#: The same as one mapping.
_MULTIMODAL_INPUTS = "stu_multi_modal_inputs"


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
            ring_attn_group=..., **multimodal)` that returns `{"hidden_states": [..., h]}` with h
            `[B, T_s, H]`, and has the head `student_model.model.lm_head`; or one that returns
            `{"logits": [B, T_s, V_s]}`.
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
        teacher_softcap: The bound of the teacher's logits, for models that have one (Gemma 2:
            30.0). KDFlow's head of the teacher does not apply it.
        student_softcap: The same for the student; applied to logits that are made from hidden
            states.
        stop_tokens: The tokens that end a turn; see `Aligner`.
        unused: KDFlow's keywords for other algorithms; they are not read.

    Raises:
        TypeError: A tokenizer or `divergence` is an object of a wrong type, or `teacher_lm_head` is
            a mapping of several teachers' heads.
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
        teacher_softcap: float | None = None,
        student_softcap: float | None = None,
        stop_tokens: tuple[Sequence[str | int], Sequence[str | int]] | None = None,
        **unused: Any,
    ) -> None:
        del unused
        if candidates == "on_path":
            raise ValueError(
                "candidates: 'on_path' needs the teacher's hidden state at the last token of every "
                "answer, which KDFlow does not send: expected 'shared' or 'realized'"
            )
        if isinstance(teacher_lm_head, Mapping):
            raise TypeError(
                "teacher_lm_head: expected the head of one teacher, got those of "
                f"{sorted(teacher_lm_head)}; several teachers are not supported"
            )
        self.strategy = strategy
        self.student = student_model
        self.teacher_lm_head = teacher_lm_head
        self.teacher_softcap = teacher_softcap
        self.student_softcap = student_softcap
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
                sum over units is divided by. Keys that begin with `mm_` are passed to the student
                without this prefix, and so are the entries of `stu_multi_modal_inputs`. Other keys
                are not read.

        Returns:
            0-d tensors. `loss` is the loss to differentiate. `kd_loss` is the distillation part of
            `loss`. `align_ratio` is the share of the student's tokens that lie in compared units.
            `multi_units` is the number of compared MULTI units. `ce_loss` is the cross-entropy,
            if `kd_ratio` is below 1.

        Raises:
            ValueError: `teacher_hiddens` is missing, or its number of rows differs from the number
                of true elements of `tea_loss_mask`; or the student returns neither logits nor
                hidden states.

        Complexity:
            One copy of ids and masks to the host, plus the cost of the loss. Logits are computed
            for the masked positions only, on both sides.
        """
        hiddens = micro_batch.get("teacher_hiddens")
        if hiddens is None:
            raise ValueError(
                "micro_batch['teacher_hiddens']: expected the teacher's hidden states "
                "[tokens, width], got None or no such key"
            )
        batch = _Masked.read(micro_batch, len(hiddens))
        index = batch.align(self.aligner)
        student_mask = batch.student_mask
        given = micro_batch.get(_MULTIMODAL_INPUTS) or {}
        output = self.student(
            micro_batch["stu_input_ids"],
            attention_mask=micro_batch["stu_attn_mask"],
            allgather_logits=True,
            ring_attn_group=getattr(self.strategy, "ring_attn_group", None),
            **given,
            **{
                key.removeprefix(_MULTIMODAL): value
                for key, value in micro_batch.items()
                if key.startswith(_MULTIMODAL)
            },
        )
        logits = self._student_logits(output, student_mask)
        with torch.no_grad():
            teacher_logits = self.teacher_lm_head(hiddens.to(self.teacher_lm_head.weight))
            teacher_logits = _capped(teacher_logits.to(logits.device), self.teacher_softcap)
        out = self.loss_fn.to(logits.device)(
            teacher_logits=teacher_logits,
            student_logits=logits,
            index=index.to(logits.device),
        )
        tokens = micro_batch["avg_micro_batch_token_num"]
        loss = kd_loss = out.loss / tokens
        compared = index.normalizer("token", self.loss_fn.candidates)
        found = {
            "kd_loss": kd_loss,
            "align_ratio": compared / student_mask.sum().clamp(min=1),
            "multi_units": out.metrics.units_multi,
        }
        ratio = getattr(getattr(self.strategy.args, "kd", None), "kd_ratio", 1.0)
        if ratio < 1:
            labels = _rows(micro_batch["stu_input_ids"].roll(-1, dims=1), student_mask)
            cross_entropy = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            found["ce_loss"] = cross_entropy / tokens
            loss = (1 - ratio) * found["ce_loss"] + ratio * kd_loss
        return {"loss": loss, **found}

    def _student_logits(self, output: Mapping[str, Any], mask: Tensor) -> Tensor:
        """Return the student's logits at the masked positions, `[tokens, V_s]`."""
        if output.get("logits") is not None:
            return _rows(output["logits"], mask)
        if output.get("hidden_states") is None:
            raise ValueError(
                f"student_model: expected an output with 'hidden_states' or 'logits', got "
                f"{sorted(output)}"
            )
        head = self.student.model.lm_head
        # With a chunked loss, KDFlow's head returns its input unless it is told otherwise.
        forward = {"skip": False} if "skip" in inspect.signature(head.forward).parameters else {}
        logits: Tensor = head(_rows(output["hidden_states"][-1], mask), **forward)
        return _capped(logits, self.student_softcap)


class _Masked(NamedTuple):
    """The ids and loss masks of a micro-batch, on the host.

    A mask is true at the position whose logits predict a token of an answer. A student's last
    position predicts none.
    """

    teacher_ids: Tensor
    teacher_mask: Tensor
    student_ids: Tensor
    student_mask: Tensor

    @classmethod
    def read(cls, micro_batch: Mapping[str, Any], n_hiddens: int) -> _Masked:
        """Copy ids and masks to the host; the teacher's mask must select `n_hiddens` positions."""
        teacher_mask, student_mask = (
            micro_batch[f"{side}_loss_mask"].cpu().bool() for side in ("tea", "stu")
        )
        expected = int(teacher_mask.sum())
        if n_hiddens != expected:
            raise ValueError(
                f"teacher_hiddens: expected {expected} rows, one for every true element of "
                f"tea_loss_mask, got {n_hiddens}"
            )
        student_mask = torch.nn.functional.pad(student_mask[:, :-1], (0, 1))
        teacher_ids, student_ids = (
            micro_batch[f"{side}_input_ids"].cpu() for side in ("tea", "stu")
        )
        return cls(teacher_ids, teacher_mask, student_ids, student_mask)

    def align(self, aligner: Aligner) -> AlignedIndex:
        """Align the rows; the rows of the index are those of the masked positions, packed."""
        masks = {"teacher": self.teacher_mask, "student": self.student_mask}
        # A token takes part if its logits do: those before it. A row's first token has none.
        taking = {
            side: torch.nn.functional.pad(mask[:, :-1], (1, 0)) for side, mask in masks.items()
        }
        index = aligner.align_batch(
            self.teacher_ids,
            self.student_ids,
            teacher_mask=taking["teacher"],
            student_mask=taking["student"],
        ).index()
        for side, mask in masks.items():
            packed_row = (mask.flatten().long().cumsum(0) - 1).numpy()
            for rows in (getattr(index, f"{side}_row"), getattr(index, f"{side}_step_row")):
                rows[:] = packed_row[rows]
        return replace(
            index,
            teacher_stride=None,
            student_stride=None,
            teacher_rows_needed=int(self.teacher_mask.sum()),
            student_rows_needed=int(self.student_mask.sum()),
        )


def _rows(values: Tensor, mask: Tensor) -> Tensor:
    """Return the values `[B, T, ...]` at the true positions of a mask on the host, as rows."""
    positions = mask.flatten().nonzero()[:, 0].to(values.device, non_blocking=True)
    return values.flatten(0, 1).index_select(0, positions)


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
