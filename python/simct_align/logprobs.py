"""Internal: log-probabilities of one side's tokens, as numbers per token of the other side."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from simct_align import _native
from simct_align.inputs import array_of, thread_count
from simct_align.units import UnitColumns

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

    from simct_align.index import Side
    from simct_align.inputs import RaggedIds

Spread = Literal["even", "last", "first"]


class TokenRows(NamedTuple):
    """Where the rows of a side lie in one value per token.

    Attributes:
        offsets: The first token of every row, then the end, int64 `[rows + 1]`.
        tokens: Number of tokens in all rows.
    """

    offsets: NDArray[np.int64]
    tokens: int


class SpreadChoice(NamedTuple):
    """How sums over units are spread.

    Attributes:
        of_teacher: Whether the values belong to the teacher's tokens.
        spread: The tokens of a unit that share its sum.
        fill: The value of tokens without a sum.
        threads: Number of threads; None for all cores.
    """

    of_teacher: bool
    spread: Spread
    fill: float
    threads: int | None


class TokenLogprobs(UnitColumns):
    """Log-probabilities of one side's tokens as numbers per token of the other side.

    `AlignedBatch` has these methods.
    """

    teacher: RaggedIds
    student: RaggedIds

    def student_logprobs(
        self,
        teacher_logprobs: object,
        *,
        spread: Spread = "even",
        fill: float = math.nan,
        threads: int | None = None,
    ) -> NDArray[np.floating[Any]] | torch.Tensor:
        """Return the teacher's log-probabilities as one number per student token.

        Use it with a teacher that returns log-probabilities of the tokens alone, as servers do:
        subtract the student's own log-probabilities for log-ratio rewards and advantages. A unit's
        log-probability is the sum over its teacher tokens. It is spread over the unit's student
        tokens, so that the sum over a unit is the same on both sides, but for rounding. SHARED and
        SPECIAL units, one token on both sides, keep their number.

        Some student tokens get `fill`: tokens outside of the mask, tokens in no unit, and tokens
        of a unit that lost its dummy prefix (`UnitClass.TRIMMED`), whose texts differ by a space.
        Methods that leave units out, such as `without`, give their tokens `fill` as well.

        Args:
            teacher_logprobs: For every teacher token the natural logarithm of *its own*
                probability: entry `i` belongs to token `i`, not to the token that follows. Servers
                return this order; the log-probabilities of a forward pass are shifted by one. The
                layout is that of the teacher's ids: a 2-D array or tensor `[rows, T]` for dense
                ids, one flat array or tensor `[tokens]`, a list of rows, or a tuple
                `(values, offsets)`; for sequences of `packed_rows` also the shape of the packs.
                Values of positions that do not take part are not used. `None` in a list is NaN. A
                tensor must be on the CPU (`tensor.cpu()`) and have no gradient.
            spread: `"even"` gives every student token of a unit an equal part. `"last"` and
                `"first"` give the whole sum to the last or the first student token, and 0 to the
                unit's other student tokens.
            fill: The number of student tokens without a log-probability of the teacher.
            threads: Number of threads. The default is all cores. The result does not depend on
                the number.

        Returns:
            The numbers in the layout of the student's ids: `[rows, S]` for dense ids, else flat
            `[tokens]`, where row `i` is `student.offsets[i]:student.offsets[i + 1]`. A tensor if
            `teacher_logprobs` is a tensor or a list of tensors, else a NumPy array; float64 if
            `teacher_logprobs` is float64 or has lists of numbers, else float32. The sums are
            computed in float64. A sum with −inf is −inf; "even" then gives −inf to every student
            token of the unit. A NaN makes all student tokens of its unit NaN, and no others.

        Raises:
            TypeError: `teacher_logprobs` has another form, dtype or device, or needs a gradient;
                `fill` is not a number; or `threads` is not an integer.
            ValueError: `teacher_logprobs` has another number of rows or of entries in a row than
                the teacher's ids; `spread` is unknown; or `fill` does not fit the dtype of the
                result.

        Complexity:
            O(tokens + units), in Rust, without the GIL.

        Example:
            >>> from simct_align import Aligner, Vocabulary
            >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
            >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
            >>> batch = Aligner(teacher, student).align_batch([[0, 1]], [[0, 1, 2]])
            >>> batch.student_logprobs([[-3.0, -0.5]]).tolist()
            [-1.5, -1.5, -0.5]
            >>> batch.student_logprobs([[-3.0, -0.5]], spread="last").tolist()
            [0.0, -3.0, -0.5]
        """
        return self._spread("teacher", teacher_logprobs, spread, fill, threads)

    def teacher_logprobs(
        self,
        student_logprobs: object,
        *,
        spread: Spread = "even",
        fill: float = math.nan,
        threads: int | None = None,
    ) -> NDArray[np.floating[Any]] | torch.Tensor:
        """Return the student's log-probabilities as one number per teacher token.

        The way back of `student_logprobs`, with the sides exchanged. Both ways in turn, with the
        same `spread`, give sums over units on the student's own tokens:
        `student_logprobs(teacher_logprobs(own, spread="last"), spread="last")` has the sum of every
        unit at its last student token.

        Args:
            student_logprobs: For every student token the natural logarithm of *its own*
                probability, in the layout of the student's ids, in the forms that
                `student_logprobs` takes.
            spread: As for `student_logprobs`.
            fill: The number of teacher tokens without a log-probability of the student.
            threads: Number of threads. The default is all cores.

        Returns:
            The numbers in the layout of the teacher's ids: `[rows, T]` for dense ids, else flat
            `[tokens]`. Type and dtype are those that `student_logprobs` describes.

        Raises:
            TypeError: As for `student_logprobs`.
            ValueError: As for `student_logprobs`.

        Complexity:
            O(tokens + units), in Rust, without the GIL.

        Example:
            >>> from simct_align import Aligner, Vocabulary
            >>> teacher = Vocabulary.from_token_bytes([b"12", b"+"])
            >>> student = Vocabulary.from_token_bytes([b"1", b"2", b"+"])
            >>> batch = Aligner(teacher, student).align_batch([[0, 1]], [[0, 1, 2]])
            >>> batch.teacher_logprobs([[-1.0, -2.0, -0.5]]).tolist()
            [-3.0, -0.5]
        """
        return self._spread("student", student_logprobs, spread, fill, threads)

    def _spread(
        self, side: Side, logprobs: object, spread: Spread, fill: float, threads: int | None
    ) -> NDArray[np.floating[Any]] | torch.Tensor:
        ids = (self.teacher, self.student) if side == "teacher" else (self.student, self.teacher)
        if spread not in get_args(Spread):
            raise ValueError(f"spread: expected 'even', 'last' or 'first', got {spread!r}")
        values, is_tensor = _read_values(side, logprobs, ids[0])
        choice = SpreadChoice(
            side == "teacher", spread, _number(fill, values.dtype), thread_count(threads)
        )
        rows = [TokenRows(of.offsets, len(of.values)) for of in ids]
        made = _native.spread_sums(self, values, (rows[0], rows[1]), choice)
        if ids[1].width is not None:
            made = made.reshape(len(self), ids[1].width)
        if not is_tensor:
            return made
        import torch

        return torch.from_numpy(made)


def _number(fill: object, dtype: np.dtype[Any]) -> float:
    if isinstance(fill, (str, bytes, bool, np.bool_)):
        raise TypeError(f"fill: expected a number, got {type(fill).__name__}")
    try:
        number = float(fill)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"fill: expected a number, got {type(fill).__name__}") from None
    if math.isfinite(number) and abs(number) > float(np.finfo(dtype).max):
        raise ValueError(f"fill is {number}, which does not fit {dtype}")
    return number


def _read_values(side: str, logprobs: object, ids: RaggedIds) -> tuple[NDArray[Any], bool]:
    """Return one value per token, float32 or float64, and whether they came as tensors."""
    name = f"{side}_logprobs"
    if isinstance(logprobs, tuple):
        return _read_ragged(name, logprobs, ids)
    if isinstance(logprobs, list):
        return _read_rows(name, logprobs, ids)
    values, is_tensor = floats(name, logprobs)
    expected = (len(ids.values),) if ids.width is None else (len(ids), ids.width)
    rows_are_alike = values.ndim == 2 and (np.diff(ids.offsets) == values.shape[1]).all()
    fits = values.shape in (expected, (len(ids.values),))
    fits |= ids.packed and values.size == len(ids.values)
    if not fits and not (rows_are_alike and len(values) == len(ids)):
        raise ValueError(
            f"{name} has shape {values.shape}, expected {expected} as the {side}'s ids, or a list "
            "of rows"
        )
    return np.ascontiguousarray(values.reshape(-1)), is_tensor


def _read_ragged(
    name: str, logprobs: tuple[object, ...], ids: RaggedIds
) -> tuple[NDArray[Any], bool]:
    if len(logprobs) != 2:
        raise TypeError(
            f"{name}: expected a tuple (values, offsets), got a tuple of {len(logprobs)} entries; "
            "pass several rows as a list"
        )
    values, is_tensor = floats(f"{name} values", logprobs[0])
    offsets = logprobs[1]
    if not isinstance(offsets, (list, tuple)):
        offsets = array_of(f"{name} offsets", offsets)
    if values.ndim != 1:
        raise TypeError(f"{name} values: expected a 1-D array, got rank {values.ndim}")
    if not np.array_equal(offsets, ids.offsets):
        raise ValueError(f"{name} offsets: expected the offsets of the ids")
    if len(values) != len(ids.values):
        raise ValueError(f"{name} has {len(values)} values, expected {len(ids.values)}")
    return np.ascontiguousarray(values), is_tensor


def _read_rows(name: str, rows: list[object], ids: RaggedIds) -> tuple[NDArray[Any], bool]:
    if len(rows) != len(ids):
        raise ValueError(f"{name} has {len(rows)} rows, expected {len(ids)} as in the ids")
    read = [floats(f"{name}: row {number}", row) for number, row in enumerate(rows)]
    lengths = np.diff(ids.offsets).tolist()
    for number, ((values, _), length) in enumerate(zip(read, lengths, strict=True)):
        if values.shape != (length,):
            found = f"{len(values)} entries" if values.ndim == 1 else f"shape {values.shape}"
            raise ValueError(
                f"{name}: row {number} has {found}, expected {length} entries as in the ids"
            )
    values = np.concatenate([np.zeros(0, np.float32), *(values for values, _ in read)])
    return values, bool(read) and all(is_tensor for _, is_tensor in read)


def floats(name: str, values: object) -> tuple[NDArray[Any], bool]:
    """Read floating-point numbers.

    Args:
        name: Name of the argument, for messages.
        values: An array or tensor, or a list of numbers and None.

    Returns:
        An array, float64 if `values` is a list or has more than 32 bits, else float32, and whether
        `values` is a tensor. None becomes NaN.

    Raises:
        TypeError: `values` is something else, has another dtype, is on another device, or requires
            a gradient.
    """
    is_tensor = type(values).__module__.partition(".")[0] == "torch" and hasattr(values, "detach")
    if is_tensor:
        tensor: Any = values
        if tensor.requires_grad:
            raise TypeError(
                f"{name}: the result has no gradient, so a tensor that requires one is refused; "
                "pass tensor.detach()"
            )
        if tensor.is_floating_point() and tensor.element_size() < 4:
            values = tensor.float()  # NumPy has no bfloat16
    elif isinstance(values, (list, tuple)):
        return _numbers(name, values), False
    array = array_of(name, values)
    if array.dtype.kind != "f" and array.size:
        raise TypeError(f"{name}: expected floating-point numbers, got dtype {array.dtype}")
    wide = np.float64 if array.dtype.itemsize > 4 else np.float32
    return array.astype(wide, copy=False), is_tensor


def _numbers(name: str, values: list[object] | tuple[object, ...]) -> NDArray[np.float64]:
    """Return a row of Python numbers; None becomes NaN."""
    wrong = {kind for kind in set(map(type, values)) if not _is_number(kind)}
    for position, value in enumerate(values) if wrong else ():
        if type(value) in wrong:
            raise TypeError(
                f"{name}, position {position}: expected a number or None, got "
                f"{type(value).__name__}"
            )
    return np.asarray(values, np.float64)


def _is_number(kind: type) -> bool:
    is_number = issubclass(kind, (int, float, np.integer, np.floating)) and kind is not bool
    return is_number or kind is type(None)
