"""Internal: conversion of token ids and masks, in the forms that trainers use, to ragged arrays."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simct_align import _native
from simct_align.id_forms import as_array, as_list, as_ragged, holds_rows, joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

#: More threads than any machine has cores.
_MOST_THREADS = 1 << 16
#: The dtypes that the engine reads without a copy.
_NATIVE_DTYPES = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.uint32))


def integer(name: str, value: object, *, at_least: int, at_most: int | None = None) -> int:
    """Check an integer argument, given as a Python or NumPy integer.

    Args:
        name: Name of the argument, for the message.
        value: The value.
        at_least: The smallest allowed value.
        at_most: The largest allowed value, or None for no limit.

    Returns:
        The value as a Python integer.

    Raises:
        TypeError: `value` is not an integer.
        ValueError: `value` is out of range.
    """
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if number < at_least or (at_most is not None and number > at_most):
        expected = f"at least {at_least}" if at_most is None else f"{at_least} to {at_most}"
        raise ValueError(f"{name} is {number}, expected {expected}")
    return number


def flag(name: str, value: object) -> bool:
    """Return True or False from a flag of Python, NumPy or PyTorch, or an integer.

    Args:
        name: Name of the argument, for the message.
        value: The flag.

    Raises:
        TypeError: `value` is something else, such as the text "no".
    """
    array = np.asarray(value)
    if array.ndim or array.dtype.kind not in "biu":
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(array)


def check_text(place: str, text: object) -> None:
    """Check a text.

    Args:
        place: The place of the text in the input, for the message.
        text: The text.

    Raises:
        TypeError: `text` is not a string.
        ValueError: `text` is not valid Unicode.
    """
    if not isinstance(text, str):
        raise TypeError(f"{place}: expected a string, got {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place} is not valid Unicode at character {error.start}: {error.reason}"
        ) from None


def thread_count(threads: object | None) -> int | None:
    """Check the argument `threads`; None means all cores."""
    if threads is None:
        return None
    return integer("threads", threads, at_least=1, at_most=_MOST_THREADS)


@dataclass(frozen=True)
class RaggedIds:
    """The token ids of one side of a batch: row `i` is `values[offsets[i]:offsets[i + 1]]`.

    Attributes:
        values: Token ids of all rows, int32, uint32 or int64 `[tokens]`.
        offsets: The first index of every row in `values`, then the end, int64 `[rows + 1]`.
        mask: uint8 `[tokens]`, 0 for positions that do not take part. `None` means that all
            positions take part.
        width: The number of columns if the ids came as a dense array `[rows, width]`, else `None`.
        packed: Whether the rows are sequences of packed rows, from `packed_rows`: their logits have
            the shape of the packs.
    """

    values: NDArray[Any]
    offsets: NDArray[np.int64]
    mask: NDArray[np.uint8] | None = None
    width: int | None = None
    packed: bool = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, number: int) -> NDArray[Any]:
        """Return the ids of one row.

        Args:
            number: Number of the row, from 0.

        Returns:
            A view of `values`.

        Raises:
            IndexError: There is no such row.
        """
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    def only(self, number: int) -> RaggedIds:
        """Return one row as a side of its own.

        Args:
            number: Number of the row, from 0.

        Returns:
            Views of the ids and of the mask.
        """
        row = slice(self.offsets[number], self.offsets[number + 1])
        mask = None if self.mask is None else self.mask[row]
        return RaggedIds(self.values[row], self.offsets[number : number + 2] - row.start, mask)


class LogitRows(NamedTuple):
    """The layout of the flattened logits of one side of a batch.

    Attributes:
        ids: The ids of that side.
        starts: The row of the logits that belongs to position 0 of every row of the batch, int64
            `[rows]`.
        stride: Rows of logits per row of the batch; 0 if the logits are packed, None if they have
            the shape of packs, or the caller gave the row starts.
        dummy_prefixes: The places, in `ids.values`, of the tokens that are only a dummy prefix,
            ascending; int64.
    """

    ids: RaggedIds
    starts: NDArray[np.int64]
    stride: int | None
    dummy_prefixes: NDArray[np.int64] = np.empty(0, np.int64)


def logit_rows(
    name: str, side: RaggedIds, row_starts: ArrayLike | None, stride: int | None
) -> LogitRows:
    """Where the rows of one side lie in the flat logits, as `AlignedBatch.index` is told.

    Args:
        name: `"teacher"` or `"student"`, for messages.
        side: The side.
        row_starts: The flat row of position 0 of every row, or `None`.
        stride: Rows of logits for each row of the batch, or `None`.

    Raises:
        ValueError: Both, or row starts that do not fit.
    """
    if row_starts is not None and stride is not None:
        raise ValueError(f"give {name}_row_starts or {name}_stride, not both")
    if stride is not None and side.packed:
        raise ValueError(
            f"{name}_stride: the rows are sequences of packed rows, whose logits have the shape of "
            "the packs: leave it out"
        )
    if stride is not None:
        stride = integer(f"{name}_stride", stride, at_least=0)
        most = np.iinfo(np.int64).max // max(len(side), 1)
        if stride > most:
            raise ValueError(f"{name}_stride is {stride}, expected at most {most}")
        # Without any row of logits there is no distance; what reads one is told so by its shape.
        return LogitRows(side, np.arange(len(side), dtype=np.int64) * stride, stride or None)
    if row_starts is None:
        lengths = np.diff(side.offsets)
        alike = bool((lengths == lengths[:1]).all())
        stride = int(lengths[0]) if alike and len(lengths) else 0
        return LogitRows(side, side.offsets[:-1], None if side.packed else stride)
    starts = np.asarray(row_starts)
    if starts.shape != (len(side),) or (starts.size and starts.dtype.kind not in "iu"):
        raise ValueError(
            f"{name}_row_starts: expected {len(side)} integers, got {starts.dtype} of shape "
            f"{starts.shape}"
        )
    return LogitRows(side, np.ascontiguousarray(starts, np.int64), None)


def read_side(
    name: str, ids: object, mask: object | None, *, mask_name: str | None = None
) -> RaggedIds:
    """Read the ids and the mask of one side of a batch.

    Args:
        name: `"teacher"` or `"student"`, for messages.
        ids: A sequence of rows, each a sequence of integers or a 1-D array; a 2-D array; rows that
            another library keeps flat (a list array of PyArrow, a column of `datasets`, a nested
            tensor); a tuple `(values, offsets)`; or a `RaggedIds`. Arrays are those that
            `id_forms.as_array` reads.
        mask: `None`, or a mask in the same form and shape as `ids`.
        mask_name: The name of the mask, for messages; the default is that of `align_batch`.

    Returns:
        The ids with their mask.

    Raises:
        TypeError: `ids` or `mask` has another form, dtype or rank.
        ValueError: The mask does not have the shape of the ids, or an id does not fit int64.

    Complexity:
        O(tokens) time; contiguous int32, uint32 and int64 arrays are not copied.
    """
    ragged = read_rows(f"{name}_ids", ids)
    if mask is None:
        return ragged
    taken = read_mask(mask_name or f"{name}_mask", mask, ragged)
    if ragged.packed and ragged.mask is not None:
        taken = taken & ragged.mask  # padding never takes part
    return replace(ragged, mask=taken)


def read_row(name: str, row: object) -> NDArray[Any]:
    """Read one row of ids: any sequence of integers, or a 1-D array that `read_side` reads.

    Args:
        name: Name of the argument, for messages.
        row: The row.

    Returns:
        The ids, int32, uint32 or int64 `[n]`.

    Raises:
        TypeError: `row` is not a sequence of integers.
        ValueError: An id does not fit int64.
    """
    array = as_array(name, row)
    if array is None and as_list(row) is not None:
        return _read_list(name, [row]).values
    if array is None or array.ndim != 1:
        found = type(row).__name__ if array is None else f"an array of rank {array.ndim}"
        raise TypeError(f"{name}: expected a one-dimensional sequence of integers, got {found}")
    return _integers(name, array)


def same_dtype(teacher: RaggedIds, student: RaggedIds) -> tuple[RaggedIds, RaggedIds]:
    """Return both sides with ids of the same dtype, as the Rust core needs them."""
    if teacher.values.dtype == student.values.dtype:
        return teacher, student
    return (
        replace(teacher, values=teacher.values.astype(np.int64)),
        replace(student, values=student.values.astype(np.int64)),
    )


def read_rows(name: str, ids: object, *, integers_only: bool = True) -> RaggedIds:
    """Read rows in any form: see `read_side`.

    Args:
        name: Name of the argument, for messages.
        ids: The rows.
        integers_only: Whether booleans are refused.
    """
    if isinstance(ids, RaggedIds):
        return ids
    if isinstance(ids, tuple) and _is_values_and_offsets(name, ids):
        return _read_ragged(name, ids, integers_only=integers_only)
    if (ragged := as_ragged(name, ids)) is not None:
        return RaggedIds(_integers(name, ragged[0], integers_only=integers_only), ragged[1])
    array = as_array(name, ids)
    if array is not None and not (array.ndim == 1 and array.dtype == np.object_):
        return _read_dense(name, array, integers_only=integers_only)
    rows = as_list(ids)
    if rows is None:
        raise TypeError(
            f"{name}: expected a sequence of rows of ids, a 2-D array or tensor, or a tuple "
            f"(values, offsets), got {type(ids).__name__}"
            + ("; pass list(...) of it" if isinstance(ids, Iterator) else "")
        )
    return _read_list(name, rows, integers_only=integers_only)


def _read_dense(name: str, array: NDArray[Any], *, integers_only: bool) -> RaggedIds:
    if array.ndim != 2:
        raise TypeError(
            f"{name}: expected a 2-D array [rows, positions], got rank {array.ndim}; wrap one row "
            "in a list, and pass ragged rows as a tuple (values, offsets)"
        )
    values = _integers(name, array.reshape(-1), integers_only=integers_only)
    rows, width = array.shape
    return RaggedIds(values, np.arange(rows + 1, dtype=np.int64) * width, width=width)


def _is_values_and_offsets(name: str, ids: tuple[object, ...]) -> bool:
    """Return whether a tuple is ragged: two flat parts, of which one is an array or a list.

    Two tuples, or two sequences of an inference engine, are rows.
    """
    if len(ids) != 2 or any(map(holds_rows, ids)):
        return False
    return any(isinstance(part, list) or as_array(name, part) is not None for part in ids)


def _read_ragged(name: str, ids: tuple[object, ...], *, integers_only: bool) -> RaggedIds:
    arrays = []
    for part, flat in zip(("values", "offsets"), ids, strict=True):
        array = as_array(f"{name} {part}", flat)
        if array is None:
            array = np.asarray(as_list(flat))
        if array.ndim != 1:
            raise TypeError(f"{name} {part}: expected a 1-D array, got rank {array.ndim}")
        arrays.append(array)
    values = _integers(f"{name} values", arrays[0], integers_only=integers_only)
    offsets = _integers(f"{name} offsets", arrays[1]).astype(np.int64, copy=False)
    falls = np.flatnonzero(np.diff(offsets, prepend=offsets[:1]) < 0)
    if len(falls) or len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(values):
        at = int(falls[0]) if len(falls) else 0 if offsets[:1].any() else len(offsets) - 1
        found = f"index {at} is {offsets[at]}" if len(offsets) else "there are none"
        raise ValueError(
            f"{name}: offsets must start at 0, never fall and end at the number of values "
            f"({len(values)}), but {found}; a tuple of two flat parts is (values, offsets): pass "
            "two rows as a list"
        )
    return RaggedIds(values, offsets)


def _read_list(
    name: str,
    rows: Sequence[object],
    *,
    integers_only: bool = True,
) -> RaggedIds:
    if not integers_only:
        # The entries of a NumPy mask are no Python integers.
        rows = [np.array(row) if _begins_with_numpy_bool(row) else row for row in rows]
    if all(isinstance(row, (list, tuple)) for row in rows):
        return RaggedIds(*_native.ids_from_lists(name, rows, booleans=not integers_only))
    arrays: list[NDArray[Any] | None] = []
    lists: list[list[Any] | tuple[Any, ...]] = []
    for number, row in enumerate(rows):
        row_name = f"{name}: row {number}"
        array = as_array(row_name, row)
        entries = as_list(row) if array is None else ()
        if entries is None or (array is not None and array.ndim != 1):
            found = type(row).__name__ if array is None else f"an array of rank {array.ndim}"
            raise TypeError(
                f"{row_name}: expected a sequence of integers or a 1-D array of ids, got {found}"
            )
        if array is not None:
            array = _integers(row_name, array, integers_only=integers_only)
        arrays.append(array)
        lists.append(entries)
    # One call reads all rows without an array, so that a message has the number of the row.
    values, offsets = _native.ids_from_lists(name, lists, booleans=not integers_only)
    return RaggedIds(
        *joined(
            [
                values[offsets[number] : offsets[number + 1]] if array is None else array
                for number, array in enumerate(arrays)
            ]
        )
    )


def _begins_with_numpy_bool(row: object) -> bool:
    return isinstance(row, (list, tuple)) and len(row) > 0 and isinstance(row[0], np.bool_)


def read_mask(name: str, mask: object, ids: RaggedIds) -> NDArray[np.uint8]:
    """Read a mask: see `read_side`.

    Args:
        name: Name of the argument, for messages.
        mask: The mask, in the shape of the ids, or flat.
        ids: The ids.

    Returns:
        uint8 `[tokens]`.

    Raises:
        TypeError: The mask has another form, dtype or rank.
        ValueError: The mask has another shape.
    """
    array = None if isinstance(mask, (RaggedIds, tuple, list)) else as_array(name, mask)
    if array is not None and array.ndim == 1 and array.dtype != np.object_:
        # The flat form belongs to ragged values.
        ragged = RaggedIds(_integers(name, array, integers_only=False), ids.offsets)
        if len(array) != len(ids.values):
            raise ValueError(f"{name} has {len(array)} entries, expected {len(ids.values)}")
    else:
        ragged = read_rows(name, mask, integers_only=False)
        if ids.packed and len(ragged.values) == len(ids.values):
            # In the shape of the packs.
            ragged = replace(ragged, offsets=ids.offsets)
    if len(ragged) != len(ids):
        raise ValueError(f"{name} has {len(ragged)} rows, expected {len(ids)} as in the ids")
    different = np.flatnonzero(np.diff(ragged.offsets) != np.diff(ids.offsets))
    if len(different):
        row = int(different[0])
        found, expected = np.diff(ragged.offsets)[row], np.diff(ids.offsets)[row]
        raise ValueError(
            f"{name}: row {row} has {found} entries, expected {expected} as in the ids"
        )
    values = ragged.values
    return values.view(np.uint8) if values.dtype == np.bool_ else (values != 0).view(np.uint8)


def array_of(name: str, value: object) -> NDArray[Any]:
    """Return a NumPy array or CPU tensor as an array with the same memory.

    Args:
        name: Name of the argument, for the message.
        value: The array or tensor.

    Returns:
        The array.

    Raises:
        TypeError: `value` is something else, or a tensor on another device.
    """
    array = as_array(name, value)
    if array is None:
        raise TypeError(f"{name}: expected an array or a tensor, got {type(value).__name__}")
    return array


def _integers(name: str, array: NDArray[Any], *, integers_only: bool = True) -> NDArray[Any]:
    """Return the array as contiguous integers of a native dtype; masks may stay boolean."""
    if array.dtype == np.bool_ and not integers_only:
        return np.ascontiguousarray(array)
    if array.size == 0:  # an empty list becomes float64
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu":
        what = "integers" if integers_only else "booleans or integers"
        raise TypeError(f"{name}: expected {what}, got dtype {array.dtype}")
    if array.dtype in _NATIVE_DTYPES:
        return np.ascontiguousarray(array)
    if (
        array.dtype.itemsize == 8
        and array.dtype.kind == "u"
        and array.max() > np.iinfo(np.int64).max
    ):
        position = int(array.argmax())
        raise ValueError(f"{name}: position {position}: {array[position]} does not fit int64")
    return np.ascontiguousarray(array, np.int64)
