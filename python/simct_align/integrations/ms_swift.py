"""Generalized knowledge distillation in ms-swift, with a teacher that has another tokenizer.

`SimCTGKDTrainer` takes the place of ms-swift's `GKDTrainer`, with a local teacher. docs/ms_swift.md
shows the plugin that puts it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from swift.rlhf_trainers import GKDTrainer
from transformers import AutoTokenizer

from simct_align.divergence import JSD
from simct_align.integrations._teacher_row import TeacherRows, model_aligner
from simct_align.integrations._tensors import align_labels, teacher_inputs
from simct_align.loss import SimCTLoss

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from simct_align.aligner import Aligner

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
            name = self.accelerator.unwrap_model(self.teacher_model).config._name_or_path
            self.teacher_tokenizer = AutoTokenizer.from_pretrained(name)
        if self.aligner is None:
            config = self.accelerator.unwrap_model(self.model).config
            self.aligner = model_aligner(self.teacher_tokenizer, self.template.tokenizer, config)
        self._rows = TeacherRows(self.aligner, self.teacher_tokenizer)
        options = {"divergence": JSD(self.beta), "temperature": self.temperature}
        self._loss_fn = SimCTLoss(self.aligner, **{**options, **self.loss_options})
        self._loss_fn.to(self.accelerator.device)

    def _encode_samples(self, samples: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        student, opsd = super()._encode_samples(samples)
        if opsd is not None:
            raise ValueError("SimCTGKDTrainer does not support rows with a teacher_prompt")
        return student, teacher_inputs(self._rows, student, [each.messages for each in samples])

    def _compute_jsd_loss(
        self, student_logits: Tensor, teacher_output: Any, labels: Tensor
    ) -> Tensor:
        loss: Tensor = self._loss_fn(
            teacher_logits=teacher_output.full_logits,
            student_logits=student_logits,
            index=align_labels(self._rows.aligner, teacher_output.labels, labels),
        ).loss
        return loss
