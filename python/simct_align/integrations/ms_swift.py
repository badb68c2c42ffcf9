"""Generalized knowledge distillation in ms-swift, with a teacher that has another tokenizer.

`SimCTGKDTrainer` takes the place of ms-swift's `GKDTrainer`, with a local teacher. docs/ms_swift.md
shows the plugin that puts it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from swift.rlhf_trainers import GKDTrainer

from simct_align.aligner import Aligner
from simct_align.divergence import JSD
from simct_align.integrations._teacher_row import TeacherRows
from simct_align.loss import SimCTLoss
from simct_align.prepare import IGNORED_LABEL

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["SimCTGKDTrainer"]


class SimCTGKDTrainer(GKDTrainer):  # type: ignore[misc]
    """A `GKDTrainer` whose teacher reads the conversation in its own template and tokens.

    `beta` and `temperature` keep their meaning: 0 is KL(teacher ‖ student), 1 is
    KL(student ‖ teacher). The loss is averaged over units, not over tokens. Set the attributes in a
    subclass to change what they say.

    Raises:
        ValueError: The settings ask for a teacher behind a server, for self-distillation, for top-k
            logits, for Liger's loss, for padding-free batches or for sequence parallelism.
    """

    #: The teacher's tokenizer; None loads it from the name of the teacher's model.
    teacher_tokenizer: Any = None
    #: The pair of vocabularies; None makes it of the two tokenizers.
    aligner: Aligner | None = None
    #: Further keywords of `SimCTLoss`, such as `candidates` and `score`.
    loss_options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        unsupported = {
            "no local teacher": self.teacher_model is None,
            "gkd_logits_topk": self.gkd_logits_topk is not None,
            "use_liger_kernel": self.use_liger_gkd_loss,
            "padding_free": self.template.padding_free,
            "sequence_parallel_size": self.template.sequence_parallel_size > 1,
        }
        if any(unsupported.values()):
            found = ", ".join(name for name, asked in unsupported.items() if asked)
            raise ValueError(f"SimCTGKDTrainer does not support these settings: {found}")
        if self.teacher_tokenizer is None:
            from transformers import AutoTokenizer

            teacher = self.accelerator.unwrap_model(self.teacher_model)
            self.teacher_tokenizer = AutoTokenizer.from_pretrained(teacher.config._name_or_path)
        if self.aligner is None:
            self.aligner = Aligner(self.teacher_tokenizer, self.template.tokenizer)
        self._rows = TeacherRows(self.aligner, self.teacher_tokenizer)
        self._loss_fn = SimCTLoss(
            self.aligner,
            divergence=JSD(self.beta),
            temperature=self.temperature,
            **self.loss_options,
        ).to(self.accelerator.device)

    def _encode_samples(self, samples: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        student, opsd = super()._encode_samples(samples)
        if opsd is not None:
            raise ValueError("SimCTGKDTrainer does not support rows with a teacher_prompt")
        columns: dict[str, list[Tensor]] = {"input_ids": [], "attention_mask": [], "labels": []}
        rows = zip(samples, *(student[name].tolist() for name in columns), strict=True)
        for sample, ids, attention, labels in rows:
            row = self._row_of(sample, ids[: sum(attention)], labels[: sum(attention)])
            found = torch.tensor(row.ids)
            taken = torch.from_numpy(row.aligned.teacher.mask != 0)
            columns["input_ids"].append(found)
            columns["attention_mask"].append(torch.ones_like(found))
            columns["labels"].append(found.where(taken, IGNORED_LABEL))
        device = student["input_ids"].device
        pad = torch.nn.utils.rnn.pad_sequence
        fill = {"labels": IGNORED_LABEL}
        return student, {
            name: pad(column, batch_first=True, padding_value=fill.get(name, 0)).to(device)
            for name, column in columns.items()
        }

    def _row_of(self, sample: Any, ids: list[int], labels: list[int]) -> Any:
        sampled = [label != IGNORED_LABEL for label in labels]
        before = [False, *sampled[:-1]]
        runs = sum(now and not last for now, last in zip(sampled, before, strict=True))
        answers = [n for n, said in enumerate(sample.messages) if said["role"] == "assistant"]
        return self._rows.of_messages(
            ids, sampled, sample.messages, turns=answers[len(answers) - runs :]
        )

    def _compute_jsd_loss(
        self, student_logits: Tensor, teacher_output: Any, labels: Tensor
    ) -> Tensor:
        ids = [side.cpu() for side in (teacher_output.labels, labels)]
        masks = [side != IGNORED_LABEL for side in ids]
        batch = self._rows.aligner.align_batch(*ids, teacher_mask=masks[0], student_mask=masks[1])
        out = self._loss_fn(
            teacher_logits=teacher_output.full_logits,
            student_logits=student_logits,
            index=batch.index().to(student_logits.device),
        )
        loss: Tensor = out.loss
        return loss
