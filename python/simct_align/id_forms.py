"""Internal: arrays and ragged rows of other libraries as NumPy arrays, without a copy if possible.

No library is imported here: an object of a library shows that the library is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    #: The values of all rows, and the first index of every row with the end at last.
    Ragged: TypeAlias = tuple[NDArray[Any], NDArray[np.int64]]

#: The number of the CPU among the device types of DLPack.
_DLPACK_CPU = 1
#: Formats of a `datasets.Dataset` that leave the numbers as they are.
_PLAIN_FORMATS = (
    None,
    "python",
    "numpy",
    "torch",
    "arrow",
    "pandas",
    "polars",
    "jax",
    "tensorflow",
)


def as_array(name: str, value: object) -> NDArray[Any] | None:
    """Return an array of another library as a NumPy array with the same memory.

    Args:
        name: Name of the argument, for messages.
        value: A NumPy array, a CPU tensor, an array of PyArrow without nulls, or an object with
            DLPack, the buffer protocol or `__array__`.

    Returns:
        The array, or `None` if the object is no array.

    Raises:
        TypeError: The array is not on the CPU, or has no NumPy dtype.
        ValueError: An array of PyArrow has nulls.
    """
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, (list, tuple, str, bytes, bytearray)):
        return None
    other: Any = value
    if _library(value) == "torch" and hasattr(value, "detach"):
        return None if other.is_nested else _tensor(name, other)
    if _library(value) == "pyarrow":
        return _arrow_array(name, other)
    if hasattr(value, "__dlpack__"):
        return _dlpack(name, other)
    try:
        return np.asarray(memoryview(other))
    except (TypeError, ValueError):  # no buffer, or one of a format without a dtype
        pass
    if hasattr(value, "__array__") and np.ndim(other):
        return np.asarray(other)
    return None


def as_ragged(name: str, value: object) -> Ragged | None:
    """Return rows that another library keeps as flat values, without a copy of the values.

    Args:
        name: Name of the argument, for messages.
        value: A list array of PyArrow, a column of a `datasets.Dataset`, or a nested tensor.

    Returns:
        Values and offsets, or `None` for other objects.

    Raises:
        TypeError: The rows have more than one axis, or are not on the CPU.
        ValueError: A row or a value is null.
    """
    other: Any = value
    library = _library(value)
    if library == "torch" and getattr(value, "is_nested", False):
        return _nested_tensor(name, other)
    if library == "datasets":
        other = _arrow_column(other)
        library = _library(other)
    return _arrow_lists(name, other) if library == "pyarrow" else None


def as_list(value: object) -> list[Any] | tuple[Any, ...] | None:
    """Return the entries of a sequence, or `None` for text, bytes and what has no order.

    Args:
        value: Any object. An object with a length that can be iterated is a sequence, except
            mappings and sets.

    Returns:
        The entries.
    """
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, (str, bytes, bytearray, Mapping, AbstractSet)):
        return None
    if not (isinstance(value, Sized) and (isinstance(value, Iterable) or _indexable(value))):
        return None
    try:
        # Iteration calls `__getitem__` until an IndexError if there is no `__iter__`.
        return list(value)  # type: ignore[call-overload, no-any-return]
    except TypeError:  # an array or tensor without axes
        return None


def holds_rows(value: object) -> bool:
    """Return whether the entries of an array or sequence are rows, judging by the first entry."""
    if isinstance(value, np.ndarray) and value.dtype != np.object_:
        return value.ndim > 1
    if getattr(value, "ndim", None) == 0 or (
        not isinstance(value, Iterable) and not _indexable(value)
    ):
        return False
    first = next(iter(value), None)  # type: ignore[call-overload]
    if first is None or isinstance(first, str) or getattr(first, "ndim", None) == 0:
        return False
    return isinstance(first, Sized) or hasattr(first, "__dlpack__")


def _indexable(value: object) -> bool:
    return hasattr(value, "__getitem__")


def _library(value: object) -> str:
    return type(value).__module__.partition(".")[0]


def _tensor(name: str, tensor: Any) -> NDArray[Any]:
    if tensor.device.type != "cpu":
        raise TypeError(
            f"{name}: expected a tensor on the CPU, got one on {tensor.device}; pass tensor.cpu()"
        )
    try:
        array: NDArray[Any] = tensor.detach().numpy()
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"{name}: NumPy cannot read a tensor of dtype {tensor.dtype} and layout "
            f"{tensor.layout}: {error}"
        ) from None
    return array


def _nested_tensor(name: str, tensor: Any) -> Ragged:
    if tensor.dim() != 2:
        raise TypeError(
            f"{name}: expected a nested tensor of 1-D rows, got {tensor.dim() - 1}-D rows"
        )
    parts = [tensor] if str(tensor.layout) == "torch.jagged" else []
    if parts and tensor.lengths() is None:
        values, offsets = tensor.values(), tensor.offsets()
        return _tensor(name, values), _tensor(name, offsets).astype(np.int64, copy=False)
    return joined([_tensor(name, row) for row in tensor.unbind()])


def joined(rows: list[NDArray[Any]]) -> Ragged:
    """Join 1-D arrays to values and offsets."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return np.concatenate(rows) if rows else np.zeros(0, np.int64), offsets


def _dlpack(name: str, value: Any) -> NDArray[Any]:
    kind, number = value.__dlpack_device__()
    if kind != _DLPACK_CPU:
        raise TypeError(
            f"{name}: expected an array on the CPU, got one on device type {int(kind)}, number "
            f"{number} of DLPack; copy it to the CPU"
        )
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError) as error:
        raise TypeError(f"{name}: NumPy cannot read this {type(value).__name__}: {error}") from None


def _arrow_array(name: str, value: Any) -> NDArray[Any] | None:
    """Read an array of numbers, or a row of a list array."""
    if hasattr(value, "values") and hasattr(value, "as_py"):  # a ListScalar
        if not value.is_valid:
            raise ValueError(f"{name} is null, expected a row of integers")
        value = value.values
    if not hasattr(value, "null_count"):
        return None
    kind = str(value.type)
    if kind.startswith(("list", "large_list", "fixed_size_list", "struct", "extension")):
        return None
    if value.null_count:
        position = value.is_null().to_pylist().index(True)
        raise ValueError(f"{name}: position {position} is null, expected an integer")
    chunked = hasattr(value, "chunks")
    array: NDArray[Any] = value.to_numpy() if chunked else value.to_numpy(zero_copy_only=False)
    return array


def _arrow_lists(name: str, value: Any) -> Ragged | None:
    if hasattr(value, "chunks"):
        value = value.chunk(0) if value.num_chunks == 1 else value.combine_chunks()
    kind = str(getattr(value, "type", ""))
    if not kind.startswith(("list", "large_list", "fixed_size_list")) or not hasattr(
        value, "null_count"
    ):
        return None
    if value.null_count:
        row = value.is_null().to_pylist().index(True)
        raise ValueError(f"{name}: row {row} is null, expected a row of integers")
    if kind.startswith("fixed_size_list"):
        values = value.flatten()
        offsets = np.arange(len(value) + 1, dtype=np.int64) * value.type.list_size
    else:
        if "list_view" in kind:
            # Rows of a view may overlap or lie in another order: `flatten` copies them in order.
            lengths = value.value_lengths().to_numpy(zero_copy_only=False)
            values = value.flatten()
            offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        else:
            # The offsets of a slice refer to the values of the whole array.
            offsets = value.offsets.to_numpy().astype(np.int64)
            values = value.values[int(offsets[0]) : int(offsets[-1])]
            offsets = offsets - offsets[0]
    if values.null_count:
        at = values.is_null().to_pylist().index(True)
        row = int(np.searchsorted(offsets, at, side="right")) - 1
        raise ValueError(
            f"{name}: row {row}, position {at - int(offsets[row])} is null, expected an integer"
        )
    array = _arrow_array(name, values)
    if array is None:
        raise TypeError(f"{name}: expected rows of integers, got rows of {values.type}")
    return array, offsets


def _arrow_column(column: Any) -> Any:
    """Return the PyArrow array of a column of a data set, or the column if it is computed."""
    source = getattr(column, "source", None)
    style = getattr(source, "format", None)
    if not isinstance(style, dict) or style.get("type") not in _PLAIN_FORMATS:
        return column
    return source.with_format("arrow")[:][column.column_name]  # type: ignore[union-attr]
