"""Internal: rows of logits, computed from hidden states and an output embedding.

`z = softcap * tanh(scale * (h W^T + b) / softcap)`. Whole rows are one product. Chosen columns are
products with gathered rows of W, a block at a time. Neither a `[tokens, vocabulary]` matrix nor a
copy of the shared part of W exists at any time.

GPUs multiply bfloat16 matrices with float32 sums. bfloat16 hidden states and weights are multiplied
without a wider copy there: the logits are as exact as with widened factors, at four times the
speed. The derivative by the logits is a factor of the gradient's products, so it is rounded to
bfloat16, as in any training in that dtype. On all other devices the factors are widened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...engine import chunks
from .rows import fresh_zeros, mask_padding, normalize, softmax_

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ...columns import SideColumns
    from ..protocol import Head, RowSettings
    from .rows import Workspace

_BLOCK_SHARE = 16  # a block of gathered weights takes this fraction of the workspace


def multiplies_narrow(*factors: Tensor) -> bool:
    """Return whether the device multiplies these factors with float32 results.

    Args:
        *factors: Hidden states and weights.

    Returns:
        True for bfloat16 on CUDA devices, in releases of PyTorch with `torch.mm(out_dtype=)`.
    """
    return all(x.device.type == "cuda" and x.dtype == torch.bfloat16 for x in factors) and hasattr(
        torch.ops.aten.mm, "dtype"
    )


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """Write a product into `out`, whose dtype may be wider than that of the factors.

    Args:
        a: `[n, k]`.
        b: `[k, m]`, of the same dtype.
        out: `[n, m]`.

    Returns:
        `out`.
    """
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """Add a product to `out`, whose dtype may be wider than that of the factors.

    Args:
        out: `[n, m]`.
        a: `[n, k]`.
        b: `[k, m]`, of the same dtype.
    """
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        out.add_(product(a, b, torch.empty_like(out)))


class LinearRows:
    """Rows of `hidden @ weight.T + bias`, scaled and soft-capped.

    Args:
        head: Hidden states and output embedding.
        table: This side's ids.
        work: Scratch buffers.
        settings: Compute dtype, temperature, and the workspace to aim for.
    """

    def __init__(
        self, head: Head, table: SideColumns, work: Workspace, settings: RowSettings
    ) -> None:
        self.columns, self._width = head.weight.shape
        self._hidden = head.hidden.reshape(-1, self._width)
        self._weight = head.weight
        self._bias = head.bias
        self._softcap = head.softcap
        self._scale = head.scale
        self._table = table
        self._work = work
        self._dtype = settings.dtype
        self._inverse_temperature = 1.0 / settings.temperature
        itemsize = torch.finfo(self._dtype).bits // 8
        self._block = max(1, settings.chunk_bytes // (_BLOCK_SHARE * itemsize * self._width))
        self._narrow = self._dtype == torch.float32 and multiplies_narrow(head.hidden, head.weight)
        #: The dtype in which factors are multiplied.
        self._factor = head.weight.dtype if self._narrow else self._dtype
        # A CPU multiplies parts of W that fit its cache somewhat faster than all of W.
        on_cpu = head.hidden.device.type == "cpu"
        self._piece = self._block if on_cpu or self._weight.dtype != self._factor else self.columns

    def _rows(self, rows: Tensor) -> Tensor:
        return self._hidden.index_select(0, rows).to(self._factor)

    def _blocks(self, total: int) -> Iterator[slice]:
        return chunks(total, self._block)

    def _gathered(self, ids: Tensor) -> Tensor:
        native = self._work.take("weights", ids.shape[0], self._width, self._weight.dtype)
        torch.index_select(self._weight, 0, ids, out=native)
        if native.dtype == self._factor:
            return native
        wide = self._work.take("wide_weights", ids.shape[0], self._width, self._factor)
        return wide.copy_(native)

    def _contiguous(self) -> Iterator[tuple[slice, Tensor]]:
        """Yield blocks of W in the factors' dtype."""
        for block in chunks(self.columns, self._piece):
            if self._weight.dtype == self._factor:
                yield block, self._weight[block]
                continue
            wide = self._work.take(
                "wide_weights", block.stop - block.start, self._width, self._factor
            )
            yield block, wide.copy_(self._weight[block])

    def _finish(self, product: Tensor) -> None:
        """Scale and soft-cap `h W^T + b` in place."""
        if self._softcap:
            product.mul_(self._scale / self._softcap).tanh_()
            self._remember(product)
            product.mul_(self._softcap * self._inverse_temperature)
        elif self._scale * self._inverse_temperature != 1.0:
            product.mul_(self._scale * self._inverse_temperature)

    def _remember(self, tanh: Tensor) -> None:
        """Keep the tanh for the derivative of the soft-cap; the teacher does not need it."""

    def full(self, rows: Tensor) -> Tensor:
        """See `Rows`."""
        hidden = self._rows(rows)
        z = self._work.take("full", rows.shape[0], self.columns, self._dtype)
        for block, weight in self._contiguous():
            product(hidden, weight.t(), z[:, block])
        if self._bias is not None:
            z.add_(self._bias)
        self._finish(z)
        return mask_padding(z, self._table)

    def softmax(self, rows: Tensor, log_norm: Tensor | None = None) -> Tensor:
        """See `Rows`."""
        return softmax_(self.full(rows), log_norm)

    def normalize(self, z: Tensor) -> Tensor:
        """See `Rows`."""
        return normalize(z)

    def chosen(self, rows: Tensor, out: Tensor) -> None:
        """See `Rows`."""
        hidden = self._rows(rows)
        for block in self._blocks(self._table.ids.shape[0]):
            ids = self._table.ids[block]
            product(hidden, self._gathered(ids).t(), out[:, block])
            if self._bias is not None:
                out[:, block].add_(self._bias.index_select(0, ids))
        self._finish(out)

    def pick(self, rows: Tensor, ids: Tensor) -> Tensor:
        """See `Rows`."""
        picked = torch.empty(rows.shape, dtype=self._dtype, device=rows.device)
        for part in self._blocks(rows.shape[0]):
            hidden = self._rows(rows[part]).to(self._dtype)
            picked[part] = torch.linalg.vecdot(hidden, self._gathered(ids[part]).to(self._dtype))
        if self._bias is not None:
            picked.add_(self._bias[ids])
        factor = self._scale * self._inverse_temperature
        if self._softcap:
            picked.mul_(self._scale / self._softcap).tanh_()
            factor = self._softcap * self._inverse_temperature
        return picked.mul_(factor)

    def row_values(self, full: bool) -> int:
        """See `Rows`."""
        return self._width + (self.columns if full else 0)


class StudentLinearRows(LinearRows):
    """`LinearRows` with gradients by hidden states, weight and bias.

    Gradients accumulate in the compute dtype. They are rounded to the inputs' dtype once, at the
    end.
    """

    def __init__(
        self, head: Head, table: SideColumns, work: Workspace, settings: RowSettings
    ) -> None:
        super().__init__(head, table, work, settings)
        self._wanted = settings.gradient
        self._shape, self._native = head.hidden.shape, head.hidden.dtype
        dtype, device = self._dtype, head.hidden.device
        self._hidden_grad = torch.empty(0, dtype=head.hidden.dtype, device=device)
        self._weight_grad: Tensor | None = None
        self._bias_grad: Tensor | None = None
        if self._wanted:
            self._hidden_grad = torch.zeros_like(self._hidden, dtype=dtype)
        if self._wanted and head.weight_gradient:
            self._weight_grad = fresh_zeros(head.weight.shape, dtype, device)
        if self._wanted and head.bias_gradient and head.bias is not None:
            self._bias_grad = torch.zeros(head.bias.shape, dtype=dtype, device=device)
        self._tanh: Tensor | None = None

    def _remember(self, tanh: Tensor) -> None:
        if self._wanted:
            rows, columns = tanh.shape
            self._tanh = self._work.take("tanh", rows, columns, self._dtype).copy_(tanh)

    def _through_finish(self, gradient: Tensor) -> None:
        """Turn the derivative by the scaled logits into the derivative by `h W^T + b`."""
        if self._softcap:
            assert self._tanh is not None
            gradient.mul_(self._tanh.square_().neg_().add_(1.0))
        factor = self._scale * self._inverse_temperature
        if factor != 1.0:
            gradient.mul_(factor)

    def accumulate_at(self, rows: Tensor, ids: Tensor, gradient: Tensor) -> None:
        """See `StudentRows`."""
        factor = self._scale * self._inverse_temperature
        gradient = gradient * factor
        if self._softcap:
            tanh = self.pick(rows, ids) / (self._softcap * self._inverse_temperature)
            gradient = gradient * (1.0 - tanh.square())
        for part in self._blocks(rows.shape[0]):
            by_logits = gradient[part].unsqueeze(1)  # its products stay in the compute dtype
            by_hidden = by_logits * self._gathered(ids[part])
            self._hidden_grad.index_add_(0, rows[part], by_hidden)
            if self._weight_grad is not None:
                self._weight_grad.index_add_(0, ids[part], by_logits * self._rows(rows[part]))
        if self._bias_grad is not None:
            self._bias_grad.index_add_(0, ids, gradient)

    def accumulate_full(self, rows: Tensor, gradient: Tensor) -> None:
        """See `StudentRows`."""
        by_hidden = self._full_gradient(rows, gradient)
        self._hidden_grad.index_add_(0, rows, by_hidden)

    def write_full(self, rows: Tensor, gradient: Tensor) -> None:
        """See `StudentRows`."""
        by_hidden = self._full_gradient(rows, gradient)
        self._hidden_grad.index_copy_(0, rows, by_hidden)

    def _full_gradient(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """Add to the gradients by weight and bias; return the gradient by the hidden states."""
        self._through_finish(gradient)
        if self._bias_grad is not None:
            self._bias_grad.add_(gradient.sum(0))
        hidden, by_logits = self._rows(rows), self._as_factor(gradient)
        by_hidden = torch.zeros(hidden.shape, dtype=self._dtype, device=hidden.device)
        for block, weight in self._contiguous():
            add_product(by_hidden, by_logits[:, block], weight)
        if self._weight_grad is not None:
            # A narrow product needs memory of its own before it is added.
            for block in chunks(self.columns, self._block if self._narrow else self._piece):
                add_product(self._weight_grad[block], by_logits[:, block].t(), hidden)
        return by_hidden

    def _as_factor(self, gradient: Tensor) -> Tensor:
        if gradient.dtype == self._factor:
            return gradient
        rows, columns = gradient.shape
        return self._work.take("by_logits", rows, columns, self._factor).copy_(gradient)

    def write_chosen(self, rows: Tensor, gradient: Tensor) -> None:
        """See `StudentRows`."""
        self._through_finish(gradient)
        hidden, by_logits = self._rows(rows), self._as_factor(gradient)
        by_hidden = torch.zeros(hidden.shape, dtype=self._dtype, device=hidden.device)
        for block in self._blocks(self._table.ids.shape[0]):
            ids = self._table.ids[block]
            add_product(by_hidden, by_logits[:, block], self._gathered(ids))
            if self._weight_grad is not None:
                by_weight = self._work.take("weight_grad", ids.shape[0], self._width, self._dtype)
                product(by_logits[:, block].t(), hidden, by_weight)
                self._weight_grad.index_add_(0, ids, by_weight)
            if self._bias_grad is not None:
                self._bias_grad.index_add_(0, ids, gradient[:, block].sum(0))
        self._hidden_grad.index_copy_(0, rows, by_hidden)

    def row_values(self, full: bool) -> int:
        """See `Rows`."""
        values = super().row_values(full) + 3 * self._width
        copies = int(self._softcap > 0.0) + int(self._narrow)
        if self._wanted and copies:
            values += copies * (self.columns if full else self._table.ids.shape[0])
        return values

    def gradients(self) -> list[Tensor]:
        """See `StudentRows`."""
        empty = self._hidden.new_empty(0)
        hidden = self._hidden_grad.to(self._native).view(self._shape) if self._wanted else empty
        weight, bias = empty.clone(), empty.clone()
        if self._weight_grad is not None:
            weight = self._weight_grad.to(self._weight.dtype)
        if self._bias_grad is not None:
            assert self._bias is not None
            bias = self._bias_grad.to(self._bias.dtype)
        return [hidden, weight, bias]
