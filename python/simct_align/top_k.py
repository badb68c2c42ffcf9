"""Internal: `TopKLogprobs`, the likeliest tokens of every position with their log-probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from simct_align import _native
from simct_align.inputs import array_of, integer
from simct_align.logprobs import floats

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

#: The largest number of tokens of a vocabulary of this package.
MAX_TOKENS = (1 << 24) - 1
#: The id of the entries that fill a list up.
NO_TOKEN = -1
ListedToken = Literal["next", "own"]


@dataclass(frozen=True)
class TopKLogprobs:
    """The likeliest tokens at every position, with their log-probabilities.

    Use it in place of a teacher's logits, as `teacher_logits=` of a loss. There are two forms:

    * **Dense**: `ids` and `logprobs` of shape `[..., K]`, without `offsets`; `K` is at least 1.
      Entries with a negative id fill lists up. Tensors stay tensors, on their device.
    * **Ragged**: flat `ids` and `logprobs`, and `offsets`. The list of position `i` is
      `offsets[i]:offsets[i + 1]`. Dense NumPy arrays and nested lists become ragged.

    Lists may have different lengths, in any order, and an empty list means that nothing is known
    about a position. `token` says which token a list is about. Positions are counted over all rows,
    so a list per entry of `[rows, T]` ids and one per token of packed ids are both right.

    Args:
        ids: Token ids, integers: `[..., K]`, or `[entries]` with `offsets`. NumPy arrays are kept
            as int32.
        logprobs: Their natural logarithms of probabilities, in the shape of `ids`. NumPy arrays are
            kept as float32. A loss takes them as they are: ask for the temperature of the training.
        offsets: The first entry of every list, then the end, integers `[positions + 1]`.
        vocab_size: Number of tokens of the model, or None if it is not known.
        token: `"next"`: list `i` is about the token after position `i`, as row `i` of the logits of
            a forward pass. `"own"`: it is about the token at position `i`, as servers return it.

    Raises:
        TypeError: An array has another rank or kind of dtype, or `vocab_size` is not an integer.
        ValueError: The arrays do not fit together; an id is negative in a ragged list or not below
            `vocab_size`; a list has an id twice; a log-probability is NaN or larger than 0 (0.001
            is allowed for rounding); or `token` is unknown. The message names the position. The
            contents of tensors on a GPU are not checked, because that would wait for the device.

    Complexity:
        O(entries × log of the longest list) time, in Rust, without the GIL.

    Example:
        >>> top = TopKLogprobs([7, 3, 7], [-0.1, -2.5, -0.7], [0, 0, 2, 3])
        >>> len(top), top.of_position(1)[0].tolist()
        (3, [7, 3])
        >>> top = TopKLogprobs([[7, 3], [7, -1]], [[-0.1, -2.5], [-0.7, 0.0]])
        >>> top.of_position(1)[0].tolist()
        [7]
    """

    ids: Any
    logprobs: Any
    offsets: NDArray[np.int64] | None = None
    vocab_size: int | None = None
    token: ListedToken = "next"

    def __post_init__(self) -> None:
        if self.vocab_size is not None:
            integer("vocab_size", self.vocab_size, at_least=1, at_most=MAX_TOKENS)
        if self.token not in get_args(ListedToken):
            raise ValueError(f"token: expected 'next' or 'own', got {self.token!r}")
        if self.offsets is None and _is_tensor(self.ids):
            self._check_tensors()
            return
        if self.offsets is None:
            columns = _ragged(_integers("ids", self.ids), _floats("logprobs", self.logprobs))
        else:
            ids = _integers("ids", self.ids, flat=True)
            offsets = _integers("offsets", self.offsets, flat=True)
            logprobs = _floats("logprobs", self.logprobs)
            if logprobs.ndim != 1:
                raise TypeError(f"logprobs: expected a 1-D array, got rank {logprobs.ndim}")
            columns = ids, logprobs, offsets
        ids, logprobs, offsets = columns
        logprobs = np.ascontiguousarray(logprobs, np.float32)
        _native.check_top_k(ids, logprobs, offsets, self.vocab_size or MAX_TOKENS)
        kept = {"ids": ids.astype(np.int32), "logprobs": logprobs, "offsets": offsets}
        for name, column in kept.items():
            object.__setattr__(self, name, column)

    def _check_tensors(self) -> None:
        ids, logprobs = self.ids, self.logprobs
        if not _is_tensor(logprobs) or logprobs.device != ids.device:
            found = logprobs.device if _is_tensor(logprobs) else type(logprobs).__name__
            raise TypeError(f"logprobs: expected a tensor on {ids.device} as ids, got {found}")
        if ids.dim() < 2 or ids.shape[-1] < 1:
            raise TypeError(
                f"ids: expected a tensor [..., K] with K of 1 or more, got {tuple(ids.shape)}; "
                "flat ids need offsets"
            )
        if ids.is_floating_point() or ids.is_complex() or str(ids.dtype) == "torch.bool":
            raise TypeError(f"ids: expected integers, got {ids.dtype}")
        if not logprobs.is_floating_point():
            raise TypeError(f"logprobs: expected floating-point numbers, got {logprobs.dtype}")
        _check_shapes(tuple(ids.shape), tuple(logprobs.shape))
        object.__setattr__(self, "logprobs", logprobs.detach())
        if ids.device.type == "cpu":
            wide = logprobs.detach().double().numpy()
            flat = _ragged(ids.numpy().astype(np.int64, copy=False), wide)
            _native.check_top_k(
                flat[0], flat[1].astype(np.float32), flat[2], self.vocab_size or MAX_TOKENS
            )

    @property
    def is_ragged(self) -> bool:
        """Whether the lists are NumPy arrays with offsets, not tensors `[..., K]`."""
        return self.offsets is not None

    def __len__(self) -> int:
        """Return the number of positions."""
        return math.prod(self.ids.shape[:-1]) if self.offsets is None else len(self.offsets) - 1

    def of_position(self, position: int) -> tuple[NDArray[np.int32], NDArray[Any]]:
        """Return the list of one position, for inspection.

        Args:
            position: Number of the position, from 0, over all rows.

        Returns:
            `(ids, logprobs)`: NumPy arrays of equal lengths.

        Raises:
            IndexError: There is no such position.
        """
        if not 0 <= position < len(self):
            raise IndexError(f"position {position} is not one of {len(self)} positions")
        if self.offsets is not None:
            entries = slice(self.offsets[position], self.offsets[position + 1])
            return self.ids[entries], self.logprobs[entries]
        width = self.ids.shape[-1]
        ids, logprobs = (each.reshape(-1, width)[position] for each in (self.ids, self.logprobs))
        listed = ids >= 0
        return ids[listed].int().cpu().numpy(), logprobs[listed].double().cpu().numpy()

    @classmethod
    def from_logits(
        cls,
        logits: torch.Tensor,
        k: int,
        *,
        temperature: float = 1.0,
        vocab_size: int | None = None,
    ) -> TopKLogprobs:
        """Keep the k likeliest tokens of every row of logits, for example to store them.

        Args:
            logits: `[..., columns]`, floating, on any device.
            k: How many tokens to keep, 1 to the number of columns in use.
            temperature: The logits are divided by it.
            vocab_size: Number of tokens of the model; columns from there on are padding, and have
                no probability. The default is all columns.

        Returns:
            Lists about the next token, tensors `[..., k]`; float64 for float64 logits, else
            float32.

        Raises:
            TypeError: `k` is not an integer, or the logits are not floating.
            ValueError: `k` is out of range.

        Complexity:
            O(rows × columns) time and memory.

        Example:
            >>> import torch
            >>> top = TopKLogprobs.from_logits(torch.zeros(3, 4), 2)
            >>> top.logprobs.exp().sum(-1)
            tensor([0.5000, 0.5000, 0.5000])
        """
        import torch

        if not logits.is_floating_point():
            raise TypeError(f"logits: expected floating-point numbers, got {logits.dtype}")
        used = logits[..., : vocab_size or logits.shape[-1]].detach()
        k = integer("k", k, at_least=1, at_most=used.shape[-1])
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        found = (used.to(dtype) / temperature).log_softmax(-1).topk(k, -1)
        return cls(found.indices, found.values, None, vocab_size, "next")

    def with_tokens(self, ids: object, logprobs: object) -> TopKLogprobs:
        """Add a token to every list that lacks it, such as the token that the text takes.

        A loss needs the probabilities of the tokens that the text takes where a token of one side
        is several of the other. Servers return them in the lists or apart.

        Args:
            ids: One id for every position, integers `[positions]` in any shape.
            logprobs: Its log-probability, in the same shape; NaN where there is none, which adds
                nothing.

        Returns:
            Ragged lists, with the additional tokens last.

        Raises:
            TypeError: The lists are tensors, or an array has another kind of dtype.
            ValueError: There is not one id and one log-probability for every position, or an id or
                a log-probability is out of range.

        Complexity:
            O(entries × log entries), in NumPy.

        Example:
            >>> top = TopKLogprobs([7, 3, 7], [-0.1, -2.5, -0.7], [0, 2, 3])
            >>> top.with_tokens([3, 5], [-2.5, -4.0]).of_position(1)[0].tolist()
            [7, 5]
        """
        if self.offsets is None:
            raise TypeError("with_tokens: expected ragged lists, got tensors [..., K]")
        own = _integers("ids", ids).reshape(-1)
        values = _floats("logprobs", logprobs).reshape(-1)
        if (len(own), len(values)) != (len(self), len(self)):
            raise ValueError(
                f"with_tokens: expected {len(self)} ids and log-probabilities, one for every "
                f"position, got {len(own)} and {len(values)}"
            )
        position = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        missing = ~np.isnan(values)
        missing[position[self.ids == own[position]]] = False
        added = np.flatnonzero(missing)
        order = np.argsort(np.concatenate([position, added]), kind="stable")
        return TopKLogprobs(
            np.concatenate([self.ids, own[added]])[order],
            np.concatenate([self.logprobs, values[added]])[order],
            self.offsets + np.concatenate([[0], np.cumsum(missing)]),
            self.vocab_size,
            self.token,
        )

    def to(self, device: torch.device | str) -> TopKLogprobs:
        """Return the lists as tensors `[..., K]` on a device, without waiting for it.

        A loss does so on every call; do it once for lists that several losses read.

        Args:
            device: The device.

        Returns:
            Dense lists, as long as the longest one; `[positions, K]` for ragged lists, filled up
            with the id −1.

        Complexity:
            O(positions × longest list), and a copy to the device.
        """
        import torch

        ids, logprobs = self.ids, self.logprobs
        if self.offsets is not None:
            counts = np.diff(self.offsets)
            # A list has one entry at least, so that no loss has to read tensors without entries.
            width = max(1, int(counts.max(initial=0)))
            position = np.repeat(np.arange(len(self)), counts)
            within = np.arange(len(ids)) - np.repeat(self.offsets[:-1], counts)
            dense_ids = np.full((len(self), width), NO_TOKEN)
            dense = np.full((len(self), width), -np.inf, np.float32)
            dense_ids[position, within], dense[position, within] = ids, logprobs
            ids, logprobs = torch.from_numpy(dense_ids), torch.from_numpy(dense)
        return replace(
            self,
            ids=ids.to(device, torch.int64, non_blocking=True),
            logprobs=logprobs.to(device, non_blocking=True),
            offsets=None,
        )

    def rows_of_logits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and log-probabilities of the next tokens, as a loss reads them.

        Returns:
            Two tensors `[..., K]`: these lists, or, if they are about each position's own token,
            the lists of the positions that follow; the last one is empty.

        Raises:
            TypeError: The lists are not tensors: call `to` first.
        """
        if self.offsets is not None:
            raise TypeError("rows_of_logits: expected tensors, got ragged lists: call to(device)")
        if self.token == "next":
            return self.ids.long(), self.logprobs
        shape, width = self.ids.shape, self.ids.shape[-1]
        ids = self.ids.long().reshape(-1, width).roll(-1, 0)
        logprobs = self.logprobs.reshape(-1, width).roll(-1, 0)
        ids[-1:] = NO_TOKEN
        return ids.view(shape), logprobs.view(shape)


def _is_tensor(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def _integers(name: str, values: object, *, flat: bool = False) -> NDArray[np.int64]:
    array = np.asarray(values) if isinstance(values, (list, tuple)) else array_of(name, values)
    if (flat and array.ndim != 1) or (array.size and array.dtype.kind not in "iu"):
        what = "a 1-D array of integers" if flat else "integers"
        raise TypeError(f"{name}: expected {what}, got {array.dtype} of rank {array.ndim}")
    return np.ascontiguousarray(array, np.int64)


def _floats(name: str, values: object) -> NDArray[Any]:
    is_nested = isinstance(values, (list, tuple)) and any(map(_is_row, values))
    return floats(name, np.asarray(values, np.float64) if is_nested else values)[0]


def _is_row(value: object) -> bool:
    return isinstance(value, (list, tuple))


def _check_shapes(ids: tuple[int, ...], logprobs: tuple[int, ...]) -> None:
    if ids != logprobs:
        raise ValueError(f"logprobs has shape {logprobs}, expected {ids} as ids")


def _ragged(
    ids: NDArray[np.int64], logprobs: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.int64]]:
    """Return dense lists as flat ones, without the entries that fill lists up."""
    if ids.ndim < 2:
        raise TypeError(
            f"ids: expected [..., K], got rank {ids.ndim}; flat ids need offsets [positions + 1]"
        )
    _check_shapes(ids.shape, logprobs.shape)
    listed = ids.reshape(-1, ids.shape[-1]) >= 0
    offsets = np.concatenate([[0], np.cumsum(listed.sum(1))])
    flat = listed.reshape(-1)
    return ids.reshape(-1)[flat], logprobs.reshape(-1)[flat], offsets
