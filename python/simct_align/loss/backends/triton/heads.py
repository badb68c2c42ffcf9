"""Internal: rows of logits from hidden states and an output embedding, for the Triton kernels.

Matrix products are those of PyTorch. A chunk's logits have the dtype of the hidden states, as a
model's own have; products of gradients are summed in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from . import kernels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ..protocol import Head

#: A block of gathered rows of the output embedding, and its gradient, take this part of the
#: workspace together.
_BLOCK_SHARE = 8
#: Rows of a chunk begin at multiples of it: threads read and products write several logits at once.
PITCH = 128
#: Columns of a program that works on products element by element.
COLUMNS = 1024


def pitch_of(columns: int) -> int:
    """Return the columns of a row with its padding."""
    return -(-columns // PITCH) * PITCH


class HeadProducts:
    """Rows of a model's logits, and the gradients by its output layer from those by rows.

    Chunks of rows have either all columns or chosen ones, which are named by `ids`.

    Args:
        head: Hidden states and output embedding, of one dtype.
        chunk_bytes: The workspace to aim for.
        gradient: Whether gradients are wanted.
        repeats: Whether a row of hidden states may be in several chunks.
    """

    def __init__(
        self, head: Head, chunk_bytes: int, *, gradient: bool, repeats: bool = False
    ) -> None:
        self._head = head
        self._hidden = head.hidden.reshape(-1, head.hidden.shape[-1])
        self._wanted = gradient
        #: Whether the derivative by a product is another one than that by its logit.
        self.caps = head.softcap > 0.0
        width, itemsize = head.weight.shape[1], head.weight.element_size()
        rows = chunk_bytes // (_BLOCK_SHARE * width * (itemsize + 4))
        self._block = max(1, rows // PITCH) * PITCH
        self._repeats = repeats
        if gradient:
            dtype = torch.float32 if repeats else head.hidden.dtype
            self._hidden_grad = torch.zeros_like(self._hidden, dtype=dtype)
        self._weight_grad: Tensor | None = None
        self._bias_grad: Tensor | None = None
        if gradient and head.bias_gradient and head.bias is not None:
            self._bias_grad = torch.zeros_like(head.bias, dtype=torch.float32)

    def _blocks(self, ids: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield columns, their ids, and their rows of the output embedding."""
        for start in range(0, ids.shape[0], self._block):
            block = slice(start, min(start + self._block, ids.shape[0]))
            yield block, ids[block], self._head.weight.index_select(0, ids[block])

    def write_logits(self, rows: Tensor, ids: Tensor | None, out: Tensor) -> None:
        """Compute logits.

        Args:
            rows: `[n]` flat rows of hidden states.
            ids: `[k]` the chosen columns; None for all.
            out: `[n, pitch]`, contiguous; receives the logits in its first columns.
        """
        head = self._head
        hidden = self._hidden.index_select(0, rows)
        if ids is None:
            torch.mm(hidden, head.weight.t(), out=out[:, : head.columns])
        else:
            for block, _, weight in self._blocks(ids):
                torch.mm(hidden, weight.t(), out=out[:, block])
        columns = head.columns if ids is None else ids.shape[0]
        if self.caps or head.bias is not None or head.scale != 1.0:
            bias = head.bias
            if bias is not None and ids is not None:
                bias = bias.index_select(0, ids)
            kernels.finish_products[(rows.shape[0], -(-out.shape[1] // COLUMNS))](
                out, columns, out.shape[1], out if bias is None else bias, head.scale,
                head.softcap, CAPS=self.caps, WITH_BIAS=bias is not None, COLUMNS=COLUMNS,
            )  # fmt: skip

    def accumulate(self, rows: Tensor, ids: Tensor | None, z: Tensor, gradient: Tensor) -> None:
        """Add up gradients.

        Args:
            rows: See `write_logits`.
            ids: See `write_logits`.
            z: `[n, pitch]` the logits; not read without a soft-cap.
            gradient: `[n, pitch]` the gradient by them; it is overwritten.
        """
        head = self._head
        columns = head.columns if ids is None else ids.shape[0]
        if self.caps or head.scale != 1.0:
            kernels.differentiate_products[(rows.shape[0], -(-z.shape[1] // COLUMNS))](
                z, gradient, z.shape[1], head.scale, head.softcap, CAPS=self.caps, COLUMNS=COLUMNS,
            )  # fmt: skip
        hidden = self._hidden.index_select(0, rows)
        by_logits = gradient[:, :columns]
        if ids is None:
            by_hidden = _product(by_logits, head.weight)
            if head.weight_gradient:
                self._add_to_weight(by_logits, hidden)
            if self._bias_grad is not None:
                self._bias_grad.add_(by_logits.sum(0, dtype=torch.float32))
        else:
            by_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
            for block, chosen, weight in self._blocks(ids):
                by_hidden.add_(_product(by_logits[:, block], weight))
                if head.weight_gradient:
                    by_weight = _product(by_logits[:, block].t(), hidden)
                    self._sums_by_weight().index_add_(0, chosen, by_weight)
            if self._bias_grad is not None:
                self._bias_grad.index_add_(0, ids, by_logits.sum(0, dtype=torch.float32))
        if self._repeats:
            self._hidden_grad.index_add_(0, rows, by_hidden)
        else:
            self._hidden_grad.index_copy_(0, rows, by_hidden.to(self._hidden_grad.dtype))

    def _sums_by_weight(self) -> Tensor:
        if self._weight_grad is None:
            self._weight_grad = torch.zeros_like(self._head.weight, dtype=torch.float32)
        return self._weight_grad

    def _add_to_weight(self, by_logits: Tensor, hidden: Tensor) -> None:
        # The first chunk of whole rows has nothing to add to.
        if self._weight_grad is None:
            self._weight_grad = _product(by_logits.t(), hidden)
            return
        for start in range(0, self._head.columns, self._block):
            block = slice(start, start + self._block)
            self._weight_grad[block].add_(_product(by_logits[:, block].t(), hidden))

    def gradients(self) -> list[Tensor]:
        """Return the gradients by hidden states, weight and bias; see `StudentSide`."""
        head = self._head
        weight, bias = self._hidden.new_empty(0), self._hidden.new_empty(0)
        if not self._wanted:
            return [self._hidden.new_empty(0), weight, bias]
        if head.weight_gradient:
            weight = self._sums_by_weight().to(head.weight.dtype)
        if self._bias_grad is not None:
            assert head.bias is not None
            bias = self._bias_grad.to(head.bias.dtype)
        hidden = self._hidden_grad.to(head.hidden.dtype)
        return [hidden.view(head.hidden.shape), weight, bias]


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return a product of matrices with float32 results."""
    if a.dtype == torch.float32:
        return torch.mm(a, b)
    if a.is_cuda and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float())
