"""Alignment inside data pipelines: `datasets.Dataset.map` and Ray Data's `map_batches`.

Each class is a function of a batch. It is built once, holds an aligner, and returns the batch with
columns added. A batch is a `pyarrow.Table` or a mapping of columns; the result has the same type.
The ids of a `pyarrow.Table` are read without a copy, even if their memory is read-only. Rows stay
in order. The result of a row depends on that row alone, not on the batch or the process.

With `datasets`, any number of processes works. Functions that give the same columns pickle to the
same bytes, so a second call finds its result in the cache::

    rows = rows.with_format("arrow")
    rows = rows.map(RetokenizeRows(aligner), batched=True, num_proc=8, desc="teacher's ids")
    rows = rows.map(AlignRows(aligner), batched=True, num_proc=8, desc="aligning")

With Ray Data, the class is built once per actor and uses the CPUs of the actor::

    rows.map_batches(
        AlignRows, fn_constructor_args=(aligner,), num_cpus=2,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=64),
        batch_format="pyarrow", zero_copy_batch=True,
    )
"""

from __future__ import annotations

import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import pairwise
from multiprocessing import parent_process
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align.aligner import Aligner
from simct_align.inputs import check_text, read_side
from simct_align.token_kind import TokenKind
from simct_align.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["AlignRows", "RetokenizeRows", "TokenizeRows"]

#: A column of integers, or a column of lists of integers as (values, offsets).
_Column = Any


class _RowFunction(ABC):
    """The base class of all functions of a batch."""

    #: The sides whose tokenizers the function calls.
    _tokenizes: tuple[str, ...] = ()

    def __init__(self, aligner: Aligner, options: dict[str, Any]) -> None:
        if not isinstance(aligner, Aligner):
            raise TypeError(f"aligner: expected an Aligner, got {type(aligner).__name__}")
        self._aligner = _plain_aligner(aligner, self._tokenizes)
        self._options = options
        limit = _thread_limit()
        self._threads: int | None = options.get("threads") or limit

    def __call__(self, batch: Any) -> Any:
        """Return the batch with columns added.

        Args:
            batch: A `pyarrow.Table` or a mapping of columns.

        Returns:
            A batch of the same type with all columns of `batch`. A column with the name of an
            added column is replaced.

        Raises:
            KeyError: A column is missing.
            TypeError: The batch has another type, a column of ids does not contain lists of
                integers, or a column of texts does not contain strings. Rows are numbered within
                the batch.
            ValueError: A column has nulls, or as for `Aligner.align_batch`.
            AlignmentError: As for `Aligner.align_batch`, if the function aligns.

        Complexity:
            That of the method of `Aligner` that the function calls.
        """
        if not isinstance(batch, Mapping) and not _is_arrow(batch):
            raise TypeError(
                f"batch: expected a pyarrow.Table or a mapping of columns, got "
                f"{type(batch).__name__}; map with batched=True, or batch_format='pyarrow'"
            )
        return _with_columns(batch, self._columns(batch))

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._aligner, self._options)

    @abstractmethod
    def _columns(self, batch: Any) -> dict[str, _Column]:
        """Compute the columns to add."""


class TokenizeRows(_RowFunction):
    """A function of a batch that adds the token ids of a text on both sides.

    No special tokens are added, and the name of a special token in a text stays text, as in
    `Aligner.align_texts`.

    Args:
        aligner: The aligner, with the tokenizers of both sides.
        text_column: Name of the column of texts.
        teacher_column: Name of the added column of the teacher's ids, int64 lists.
        student_column: Name of the added column of the student's ids, int64 lists.

    Raises:
        TypeError: `aligner` is not an `Aligner`.

    Example:
        >>> from simct_align.demo import demo_tokenizers
        >>> rows = TokenizeRows(Aligner(*demo_tokenizers()))({"text": ["x = 12"]})
        >>> [len(rows[name][0]) for name in ("teacher_ids", "student_ids")]
        [5, 4]
    """

    _tokenizes = ("teacher", "student")

    def __init__(
        self,
        aligner: Aligner,
        *,
        text_column: str = "text",
        teacher_column: str = "teacher_ids",
        student_column: str = "student_ids",
    ) -> None:
        options = {
            "text_column": text_column,
            "teacher_column": teacher_column,
            "student_column": student_column,
        }
        super().__init__(aligner, options)

    def _columns(self, batch: Any) -> dict[str, _Column]:
        texts = _read_texts(batch, self._options["text_column"])
        columns = {}
        for side, vocabulary in (
            ("teacher", self._aligner.teacher),
            ("student", self._aligner.student),
        ):
            ids = read_side(side, vocabulary.encode_batch(texts), None)
            columns[self._options[f"{side}_column"]] = (ids.values, ids.offsets)
        return columns


class RetokenizeRows(_RowFunction):
    """A function of a batch that adds the teacher's ids of what a student sampled.

    It calls `Aligner.retokenize`.

    Args:
        aligner: The aligner, with the teacher's tokenizer.
        student_column: Name of the column of sampled ids, lists of integers.
        student_mask_column: Name of the column of masks: which positions to retokenize, lists of
            booleans or integers as long as the ids. The default is all positions.
        teacher_column: Name of the added column of the teacher's ids, int64 lists.
        threads: Number of threads. The default is the number of CPUs of the actor in Ray, one in
            another child process, and all cores elsewhere.

    Raises:
        TypeError: `aligner` is not an `Aligner`.

    Example:
        >>> from simct_align.demo import demo_tokenizers
        >>> aligner = Aligner(*demo_tokenizers())
        >>> rows = {"student_ids": aligner.student.encode_batch(["x = 12"])}
        >>> aligner.teacher.decode_bytes(RetokenizeRows(aligner)(rows)["teacher_ids"][0])
        b' x = 12'
    """

    _tokenizes = ("teacher",)

    def __init__(
        self,
        aligner: Aligner,
        *,
        student_column: str = "student_ids",
        student_mask_column: str | None = None,
        teacher_column: str = "teacher_ids",
        threads: int | None = None,
    ) -> None:
        options = {
            "student_column": student_column,
            "student_mask_column": student_mask_column,
            "teacher_column": teacher_column,
            "threads": threads,
        }
        super().__init__(aligner, options)

    def _columns(self, batch: Any) -> dict[str, _Column]:
        made = self._aligner.retokenize(
            _read(batch, self._options["student_column"]),
            student_mask=_read(batch, self._options["student_mask_column"]),
            threads=self._threads,
        )
        return {self._options["teacher_column"]: (made.values, made.offsets)}


class AlignRows(_RowFunction):
    """A function of a batch that aligns two columns of ids and adds the units.

    It calls `Aligner.align_batch`. The added columns `teacher_start`, `teacher_end`,
    `student_start`, `student_end` (int32), `kind` and `unit_class` (uint8) are lists with one
    entry per unit, as in `AlignedBatch`. The added columns `teacher_unmatched` and
    `student_unmatched` (int64) are the numbers of tokens in no unit.

    Args:
        aligner: The aligner. It needs no tokenizers.
        teacher_column: Name of the column of the teacher's ids, lists of integers.
        student_column: Name of the column of the student's ids, lists of integers.
        teacher_mask_column: Name of the column of the teacher's masks: which positions take part,
            lists of booleans or integers. The default is all positions.
        student_mask_column: Name of the column of the student's masks, in the same form.
        on_mismatch: `"skip"` or `"error"`, as for `Aligner.align_batch`.
        prefix: A prefix for the names of the added columns.
        threads: Number of threads. The default is the number of CPUs of the actor in Ray, one in
            another child process, and all cores elsewhere.

    Raises:
        TypeError: `aligner` is not an `Aligner`.

    Example:
        >>> from simct_align.demo import demo_tokenizers
        >>> aligner = Aligner(*demo_tokenizers())
        >>> rows = AlignRows(aligner)(TokenizeRows(aligner)({"text": ["x = 12"]}))
        >>> rows["student_end"][0].tolist(), rows["student_unmatched"].tolist()
        ([1, 2, 3, 4], [0])
    """

    def __init__(
        self,
        aligner: Aligner,
        *,
        teacher_column: str = "teacher_ids",
        student_column: str = "student_ids",
        teacher_mask_column: str | None = None,
        student_mask_column: str | None = None,
        on_mismatch: str = "skip",
        prefix: str = "",
        threads: int | None = None,
    ) -> None:
        options = {
            "teacher_column": teacher_column,
            "student_column": student_column,
            "teacher_mask_column": teacher_mask_column,
            "student_mask_column": student_mask_column,
            "on_mismatch": on_mismatch,
            "prefix": prefix,
            "threads": threads,
        }
        super().__init__(aligner, options)

    def _columns(self, batch: Any) -> dict[str, _Column]:
        options = self._options
        aligned = self._aligner.align_batch(
            _read(batch, options["teacher_column"]),
            _read(batch, options["student_column"]),
            teacher_mask=_read(batch, options["teacher_mask_column"]),
            student_mask=_read(batch, options["student_mask_column"]),
            on_mismatch=options["on_mismatch"],
            threads=self._threads,
        )
        columns: dict[str, _Column] = {
            name: (getattr(aligned, name), aligned.row_offsets)
            for name in ("teacher_start", "teacher_end", "student_start", "student_end")
        }
        columns["kind"] = (aligned.kind, aligned.row_offsets)
        columns["unit_class"] = (aligned.unit_class, aligned.row_offsets)
        spans = aligned.unmatched
        columns["teacher_unmatched"] = _row_sums(
            spans.teacher_end - spans.teacher_start, spans.row_offsets
        )
        columns["student_unmatched"] = _row_sums(
            spans.student_end - spans.student_start, spans.row_offsets
        )
        return {options["prefix"] + name: column for name, column in columns.items()}


def _rebuild(kind: Any, aligner: Aligner, options: dict[str, Any]) -> _RowFunction:
    made: _RowFunction = kind(aligner, **options)
    return made


def _plain_aligner(aligner: Aligner, tokenizes: tuple[str, ...]) -> Aligner:
    """Return the aligner without computed spellings and without the tokenizers it does not call.

    Its pickled bytes are then the same before and after first use, as a cache of `datasets` needs.
    """
    shared = aligner.shared
    teacher_stops, student_stops = shared.teacher_stop_ids, shared.student_stop_ids
    special = aligner.teacher.kinds[shared.teacher_ids] == TokenKind.SPECIAL
    special &= ~np.isin(shared.teacher_ids, teacher_stops)
    mapped = (shared.teacher_ids[special].tolist(), shared.student_ids[special].tolist())
    sides = [
        Vocabulary(side._native, source=side._source if name in tokenizes else None)
        for name, side in (("teacher", aligner.teacher), ("student", aligner.student))
    ]
    return Aligner(
        *sides,
        special_tokens=dict(zip(*mapped, strict=True)),
        stop_tokens=(teacher_stops.tolist(), student_stops.tolist()),
    )


def _thread_limit() -> int | None:
    """Return the default number of threads, None for all cores.

    It is the number of CPUs of the Ray actor or task, and one in another child process.
    """
    ray: Any = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        context = ray.get_runtime_context()
        if context.get_actor_id() is not None or context.get_task_id() is not None:
            threads = max(1, int(context.get_assigned_resources().get("CPU", 1)))
            # The tokenizers library reads this variable once, on first use.
            os.environ.setdefault("RAYON_NUM_THREADS", str(threads))
            return threads
    return None if parent_process() is None else 1


def _is_arrow(batch: object) -> bool:
    arrow: Any = sys.modules.get("pyarrow")
    return arrow is not None and isinstance(batch, arrow.Table)


def _read(batch: Any, name: str | None) -> Any:
    """Return a column in a form that the aligner takes; None without a name."""
    if name is None:
        return None
    column = _column(batch, name)
    if not _is_arrow(batch):
        rows = column if isinstance(column, (list, tuple)) else list(column)
        _check_nulls(name, rows, "a list of integers")
        return rows
    return _read_arrow(name, column)


def _read_texts(batch: Any, name: str) -> list[str]:
    """Return a column of texts."""
    column = _column(batch, name)
    texts = column.to_pylist() if _is_arrow(batch) else list(column)
    _check_nulls(name, texts, "a text")
    for row, text in enumerate(texts):
        check_text(f"row {row} of the batch, column {name!r}", text)
    return texts


def _column(batch: Any, name: str) -> Any:
    names = batch.column_names if _is_arrow(batch) else list(batch)
    if name not in names:
        raise KeyError(f"column {name!r} is missing; the batch has the columns {sorted(names)}")
    return batch[name]


def _check_nulls(name: str, rows: Sequence[object], expected: str) -> None:
    for row, value in enumerate(rows):
        if value is None:
            raise ValueError(
                f"row {row} of the batch, column {name!r}: expected {expected}, got None; drop or "
                "fill such rows before"
            )


def _read_arrow(name: str, column: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return a column of lists as (values, offsets), the values without a copy."""
    import pyarrow as pa

    lists = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    kind = lists.type
    if pa.types.is_fixed_size_list(kind):
        offsets = np.arange(len(lists) + 1, dtype=np.int64) * kind.list_size
        values = lists.flatten()
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        offsets = lists.offsets.to_numpy().astype(np.int64)
        values = lists.values[offsets[0] : offsets[-1]]
        offsets -= offsets[0]
    else:
        raise TypeError(f"column {name!r}: expected lists of integers, got {kind}")
    if lists.null_count or values.null_count:
        import pyarrow.compute as pc

        if lists.null_count:
            row = pc.index(lists.is_null(), True).as_py()
        else:
            at = pc.index(values.is_null(), True).as_py()
            row = int(np.searchsorted(offsets, at, side="right")) - 1
        raise ValueError(
            f"column {name!r} has nulls ({lists.null_count} rows, {values.null_count} values), "
            f"first in row {row} of the batch; expected none: drop or fill them before"
        )
    return values.to_numpy(zero_copy_only=False), offsets


def _with_columns(batch: Any, columns: dict[str, _Column]) -> Any:
    if not _is_arrow(batch):
        made = {
            name: _rows(*column) if isinstance(column, tuple) else column
            for name, column in columns.items()
        }
        return {**batch, **made}
    import pyarrow as pa

    for name, column in columns.items():
        if isinstance(column, tuple):
            values, offsets = column
            array = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values))
        else:
            array = pa.array(column)
        place = batch.schema.get_field_index(name)
        if place < 0:
            batch = batch.append_column(name, array)
        else:
            batch = batch.set_column(place, name, array)
    return batch


def _rows(values: NDArray[Any], offsets: NDArray[np.int64]) -> list[NDArray[Any]]:
    ends = offsets.tolist()
    return [values[start:end] for start, end in pairwise(ends)]


def _row_sums(values: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    before = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    sums: NDArray[np.int64] = before[offsets[1:]] - before[offsets[:-1]]
    return sums
