"""Internal: two tiny models for the demo, in PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from simct_align.loss import SimCTLoss

if TYPE_CHECKING:
    from torch import Tensor

    from simct_align import AlignedBatch, Aligner
    from simct_align.inputs import RaggedIds

_HIDDEN = 32


class TinyModel(nn.Module):
    """A small recurrent language model."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, _HIDDEN)
        self.recurrent = nn.GRU(_HIDDEN, _HIDDEN, batch_first=True)
        self.output = nn.Linear(_HIDDEN, vocab_size)

    def forward(self, rows: RaggedIds) -> Tensor:
        """Return the packed logits of ragged rows, `[tokens, vocabulary]`."""
        lengths = torch.from_numpy(rows.offsets).diff()
        ids = [torch.from_numpy(rows.row(number)) for number in range(len(rows))]
        padded = nn.utils.rnn.pad_sequence(ids, batch_first=True)
        hidden, _ = self.recurrent(self.embedding(padded))
        taken = torch.arange(padded.shape[1]) < lengths[:, None]
        logits: Tensor = self.output(hidden[taken])
        return logits


def tiny_loss(aligner: Aligner, batch: AlignedBatch) -> list[tuple[str, float, float]]:
    """Compute the loss and the gradient norm of two random models on a batch.

    Args:
        aligner: The aligner.
        batch: A batch of ragged rows.

    Returns:
        One tuple per candidate set: (the candidate set, the mean reverse KL per unit in nats, the
        norm of the student's gradient).
    """
    index = batch.index().to("cpu")
    found = []
    for candidates in ("shared", "realized"):
        torch.manual_seed(0)
        teacher, student = TinyModel(len(aligner.teacher)), TinyModel(len(aligner.student))
        with torch.no_grad():
            teacher_logits = teacher(batch.teacher)
        out = SimCTLoss(aligner, candidates=candidates)(
            teacher_logits=teacher_logits, student_logits=student(batch.student), index=index
        )
        torch.autograd.backward(out.loss)  # Tensor.backward has no types of its own
        norm = nn.utils.get_total_norm(p.grad for p in student.parameters() if p.grad is not None)
        found.append((candidates, float(out.loss.detach()), float(norm)))
    return found
