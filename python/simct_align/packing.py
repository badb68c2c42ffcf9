"""Internal: sequences that are packed into rows, one after another, as rows of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simct_align.id_forms import holds_rows
from simct_align.inputs import RaggedIds, read_mask, read_row, read_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray


def packed_rows(
    ids: object,
    *,
    cu_seqlens: object | None = None,
    position_ids: object | None = None,
    attention_mask: object | None = None,
    mask: object | None = None,
) -> RaggedIds:
    """Return the sequences of packed rows as the rows of one side of `align_batch`.

    Use it where several sequences stand in one row without padding between them, as for attention
    kernels with sequences of any length. Aligned as one row, neighbouring sequences could become
    one region: text would be compared across their border, and the first token of a sequence would
    count as predicted by the sequence before. Pass the result as `teacher_ids` or `student_ids`;
    sequence `i` of the teacher is aligned with sequence `i` of the student. `batch.index()` is then
    an index for logits in the shape of `ids`: `[tokens, columns]` or `[packs, length, columns]`.

    Args:
        ids: The packed ids, `[tokens]` or `[packs, length]`, in the forms that `align_batch` takes.
        cu_seqlens: The first position of every sequence in the flattened ids, then the end of the
            last one, integers `[sequences + 1]`. Positions from there on are padding.
        position_ids: In place of `cu_seqlens`: the position of every token in its sequence, in the
            shape of `ids`. A sequence begins at the start of a pack and where positions do not
            rise.
        attention_mask: Which positions are tokens (nonzero), in the shape of `ids`. The others are
            padding: they begin no sequence and take no part.
        mask: Which positions take part, in the shape of `ids`; see `align_batch`.

    Returns:
        The sequences. `values` are the flattened ids; padding is at the end of a sequence, and
        `mask` is 0 there.

    Raises:
        TypeError: An argument has another type, dtype or rank; or not exactly one of `cu_seqlens`
            and `position_ids` is given.
        ValueError: An argument has another shape than `ids`; `cu_seqlens` does not start at 0,
            falls, ends after the ids or has a sequence in two packs; or the ids begin with padding.

    Complexity:
        O(tokens), in NumPy.

    Example:
        >>> packed = packed_rows([[5, 7, 8, 5, 9]], position_ids=[[0, 1, 2, 0, 1]])
        >>> packed.offsets.tolist(), packed.row(1).tolist()
        ([0, 3, 5], [5, 9])
        >>> packed_rows([5, 7, 8, 5, 9], cu_seqlens=[0, 3, 5]).offsets.tolist()
        [0, 3, 5]
    """
    if (cu_seqlens is None) == (position_ids is None):
        given = "both" if position_ids is not None else "neither"
        raise TypeError(f"packed_rows: expected cu_seqlens or position_ids, got {given}")
    side = _flat("ids", ids)
    n = len(side.values)
    is_token = _like("attention_mask", attention_mask, side)
    taken = _like("mask", mask, side)
    pack_starts = side.offsets[:-1][np.diff(side.offsets) > 0]
    if position_ids is not None:
        positions = _flat("position_ids", position_ids)
        _check_shape("position_ids", positions, side)
        begins = np.diff(positions.values.astype(np.int64), prepend=0) <= 0
        begins[pack_starts] = True
        end = n
    else:
        starts, end = _read_cu_seqlens(cu_seqlens, pack_starts, n)
        begins = np.zeros(n, np.bool_)
    if is_token is not None:
        if n and not is_token[0]:
            raise ValueError(
                "attention_mask: the ids begin with padding, which belongs to no sequence: pad "
                "packed rows on the right"
            )
        # A token after padding begins a sequence, and padding never does.
        begins |= np.diff(is_token.astype(np.int8), prepend=1) > 0
        begins &= is_token
        taken = is_token if taken is None else taken & is_token
    if position_ids is not None:
        starts = np.flatnonzero(begins)
    if end < n:
        taken = np.ones(n, np.bool_) if taken is None else taken.copy()
        taken[end:] = False
    if not len(starts):
        return RaggedIds(side.values[:0], np.zeros(1, np.int64), packed=True)
    mask_of_values = None if taken is None else taken.view(np.uint8)
    return RaggedIds(side.values, np.append(starts, n), mask_of_values, packed=True)


def _read_cu_seqlens(
    cu_seqlens: object, pack_starts: NDArray[np.int64], n: int
) -> tuple[NDArray[np.int64], int]:
    """Return the starts of the sequences, and the end of the last one."""
    bounds = read_row("cu_seqlens", cu_seqlens).astype(np.int64)
    falls = np.flatnonzero(np.diff(bounds) < 0)
    if not len(bounds) or bounds[0] != 0 or len(falls) or bounds[-1] > n:
        at = int(falls[0]) + 1 if len(falls) else 0 if bounds[:1].any() else len(bounds) - 1
        found = f"entry {at} is {bounds[at]}" if len(bounds) else "there are none"
        raise ValueError(
            f"cu_seqlens must start at 0, never fall and end at {n} ids at most, but {found}"
        )
    inside = pack_starts[pack_starts < bounds[-1]]
    if len(missing := np.setdiff1d(inside, bounds)):
        raise ValueError(
            f"cu_seqlens: expected the start of every pack of ids, but {int(missing[0])} is "
            "missing: a sequence cannot be in two packs"
        )
    return bounds[:-1], int(bounds[-1])


def _flat(name: str, values: object) -> RaggedIds:
    """Read `[tokens]` or `[packs, length]`; the rows are the packs."""
    if isinstance(values, tuple) or holds_rows(values):
        return read_rows(name, values)
    flat = read_row(name, values)
    return RaggedIds(flat, np.array([0, len(flat)]))


def _check_shape(name: str, found: RaggedIds, side: RaggedIds) -> None:
    if not np.array_equal(found.offsets, side.offsets):
        raise ValueError(f"{name}: expected the shape of ids, {_shape(side)}, got {_shape(found)}")


def _shape(side: RaggedIds) -> str:
    lengths = np.diff(side.offsets).tolist()
    return f"{len(lengths)} rows of {lengths[0] if len(set(lengths)) == 1 else lengths} positions"


def _like(name: str, mask: object | None, side: RaggedIds) -> NDArray[np.bool_] | None:
    if mask is None:
        return None
    # A flat list has no rows of its own, as a flat array.
    flat = np.asarray(mask) if isinstance(mask, list) and not holds_rows(mask) else mask
    taken: NDArray[np.bool_] = read_mask(name, flat, side) != 0
    return taken
