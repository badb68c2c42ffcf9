"""What a user's program looks like, with the types that a checker has to find.

`mypy --strict` checks this file without the project's settings, and a test runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from simct_align import (
    AlignedBatch,
    AlignedIndex,
    Aligner,
    AlignmentCounts,
    LinearSimCTLoss,
    PreparedBatch,
    SimCTLoss,
    TextLoss,
    Unit,
    UnitKind,
    Vocabulary,
)
from simct_align.demo import demo_tokenizers
from simct_align.loss import Loss, LossOutput, TextLossOutput
from simct_align.loss.baselines import GOLDLoss
from simct_align.served import ServedLogprobs, from_vllm

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from typing_extensions import assert_type
else:

    def assert_type(value, _kind):
        return value


@dataclass(frozen=True)
class SquaredDistance:
    """A divergence of the user's own."""

    weight: float = 1.0

    def __call__(self, *, log_teacher: Tensor, log_student: Tensor, grad: Tensor) -> Tensor:
        student = log_student.exp()
        difference = student - log_teacher.exp()
        torch.mul(difference, student, out=grad)
        grad.mul_(2.0 * self.weight)
        return self.weight * difference.square().sum(-1)


def align(aligner: Aligner, texts: list[str]) -> AlignedBatch:
    assert_type(aligner.teacher, Vocabulary)
    ids = [side.encode_batch(texts) for side in (aligner.teacher, aligner.student)]
    batch = aligner.align_batch(*ids)
    assert_type(batch.units(0), list[Unit])
    assert_type(batch.coverage(), AlignmentCounts)
    shared: list[str] = [u.text for u in batch.units(0) if u.kind is UnitKind.SHARED]
    assert shared
    starts: NDArray[np.int32] = batch.student_start
    assert len(starts) == batch.n_units
    return batch


def losses(aligner: Aligner) -> dict[str, Loss]:
    return {
        "text": TextLoss(aligner),
        "simct": SimCTLoss(aligner, candidates="realized", divergence=SquaredDistance(0.5)),
        "gold": GOLDLoss(aligner),
    }


def train(aligner: Aligner, batch: AlignedBatch) -> dict[str, float]:
    index: AlignedIndex = batch.index(text_events=True, first_ids=True)
    teacher = torch.randn(batch.teacher.values.size, len(aligner.teacher))
    student = torch.randn(batch.student.values.size, len(aligner.student)).requires_grad_()
    values: dict[str, float] = {}
    for name, loss in losses(aligner).items():
        out = loss(teacher_logits=teacher, student_logits=student, index=index)
        values[name] = float(out.loss.detach())
    text = TextLoss(aligner)(teacher_logits=teacher, student_logits=student, index=index)
    assert_type(text, TextLossOutput)
    linear = LinearSimCTLoss(aligner)(
        teacher_hidden=torch.randn(len(teacher), 4),
        teacher_weight=torch.randn(len(aligner.teacher), 4),
        student_hidden=torch.randn(len(student), 3, requires_grad=True),
        student_weight=torch.randn(len(aligner.student), 3),
        index=index,
    )
    assert_type(linear, LossOutput)
    torch.autograd.backward(linear.loss)  # Tensor.backward has no types of its own
    return values


def served(aligner: Aligner) -> NDArray[np.float64]:
    ready: PreparedBatch = aligner.prepare(
        aligner.student.encode_batch(["4 kg"]),
        teacher_prompt_ids=aligner.teacher.encode_batch(["2 + 2 ="]),
        student_prompt_ids=aligner.student.encode_batch(["2 + 2 ="]),
    )
    ids = ready.teacher.input_ids
    answer = {"prompt_logprobs": [None, *({str(i): {"logprob": -0.5}} for i in ids[0][1:])]}
    found = from_vllm([answer], ids, vocab_size=len(aligner.teacher))
    assert_type(found, ServedLogprobs)
    return np.asarray(ready.aligned.student_logprobs(found.logprobs))


def main() -> dict[str, float]:
    aligner = Aligner(*demo_tokenizers())
    assert served(aligner).ndim == 2
    return train(aligner, align(aligner, ["Each of 12 boxes weighs 345 kg.", "naïve 12"]))


if __name__ == "__main__":
    print(main())
