"""Every form in which trainers hold ids and masks, and what is said about every wrong one."""

from __future__ import annotations

import array
import collections
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from simct_align import Aligner, Vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

    from simct_align import AlignedBatch

TEACHER_ROWS = [[3, 0, 4], [0], [], [1, 2, 2, 3, 4]]
STUDENT_ROWS = [[1, 3, 0, 5], [3], [], [4, 3, 2, 2, 1, 3, 5]]
WIDTH = 9


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    teacher = Vocabulary.from_token_bytes([b"a", b"bca", b"d", b"ba", b""], special={4: "<eos>"})
    student = Vocabulary.from_token_bytes(
        [b"zz", b"b", b"d", b"a", b"bc", b""], special={5: "</s>"}
    )
    return Aligner(teacher, student, stop_tokens=(["<eos>"], ["</s>"]))


@pytest.fixture(scope="module")
def expected(aligner: Aligner) -> AlignedBatch:
    return aligner.align_batch(TEACHER_ROWS, STUDENT_ROWS)


def table(batch: AlignedBatch) -> dict[str, list[int]]:
    """All arrays but positions, which padding may shift."""
    found = {name: getattr(batch, name).tolist() for name in ("row_offsets", "kind", "unit_class")}
    for side in ("teacher", "student"):
        lengths = getattr(batch, f"{side}_end") - getattr(batch, f"{side}_start")
        found[side] = lengths.tolist()
        spans = batch.unmatched
        lost = getattr(spans, f"{side}_end") - getattr(spans, f"{side}_start")
        found[f"{side}_lost"] = lost.tolist()
    found["lost_offsets"] = batch.unmatched.row_offsets.tolist()
    found["reason"] = batch.unmatched.reason.tolist()
    return found


def ragged(rows: list[list[int]], dtype: Any = np.int64) -> tuple[Any, Any]:
    offsets = np.cumsum([0, *map(len, rows)])
    return np.array([i for row in rows for i in row], dtype), offsets


def padded(rows: list[list[int]], *, left: bool, pad: int = -100) -> tuple[Any, Any]:
    ids = np.full((len(rows), WIDTH), pad, np.int64)
    mask = np.zeros(ids.shape, bool)
    for number, row in enumerate(rows):
        here = slice(WIDTH - len(row), WIDTH) if left else slice(0, len(row))
        ids[number, here], mask[number, here] = row, True
    return ids, mask


def read_only(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array = array.copy()
    array.flags.writeable = False
    return array


def tensor(values: Any, *arguments: Any) -> Any:
    return pytest.importorskip("torch").tensor(values, *arguments)


def test_the_rows_hold_every_kind(expected: AlignedBatch) -> None:
    kinds = [[unit.kind.name for unit in expected.units(row)] for row in range(4)]
    assert kinds == [
        ["MULTI", "SPECIAL"],
        ["SHARED"],
        [],
        ["MULTI", "SHARED", "SHARED", "MULTI", "SPECIAL"],
    ]
    assert expected.unmatched.row_offsets.tolist() == [0, 1, 1, 1, 1]
    assert expected.coverage().student_tokens == 12


class EngineIds(Sequence[Any]):
    """What an inference engine hands out: a sequence, but no list."""

    def __init__(self, entries: Any) -> None:
        self._entries = list(entries)

    def __getitem__(self, at: Any) -> Any:
        return self._entries[at]

    def __len__(self) -> int:
        return len(self._entries)


class OnlyDLPack:
    """An array of a library that NumPy does not know, with DLPack and nothing else."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()  # type: ignore[no-any-return]


def arrow(rows: Any, kind: str = "list_") -> Any:
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.array(rows, getattr(pyarrow, kind)(pyarrow.int64()))


def arrow_chunks(rows: list[list[int]]) -> Any:
    return pytest.importorskip("pyarrow").chunked_array([arrow(rows[:1]), arrow(rows[1:])])


def column(rows: list[list[int]], style: str | None = None) -> Any:
    data = pytest.importorskip("datasets").Dataset.from_dict({"ids": rows})
    return data.with_format(style)["ids"]


def shuffled_column(rows: list[list[int]]) -> Any:
    data = pytest.importorskip("datasets").Dataset.from_dict({"ids": rows[::-1]})
    return data.select(range(len(rows) - 1, -1, -1))["ids"]


def computed_column(rows: list[list[int]]) -> Any:
    data = (
        pytest.importorskip("datasets")
        .Dataset.from_dict({"ids": [[0], *rows]})
        .select(range(1, len(rows) + 1))
    )
    data.set_transform(lambda batch: {"ids": [list(map(int, row)) for row in batch["ids"]]})
    return data["ids"]


def nested(rows: list[list[int]], layout: str) -> Any:
    torch = pytest.importorskip("torch")
    parts = [torch.tensor(row, dtype=torch.long) for row in rows]
    return torch.nested.nested_tensor(parts, layout=getattr(torch, layout))


def object_array(rows: list[Any]) -> Any:
    array = np.empty(len(rows), object)
    array[:] = rows
    return array


ROW_FORMS: dict[str, Callable[[list[list[int]]], Any]] = {
    "list_of_tuples": lambda rows: [tuple(row) for row in rows],
    "lists_of_numpy_integers": lambda rows: [[np.int32(i) for i in row] for row in rows],
    "list_of_arrays": lambda rows: [np.array(row, np.int64) for row in rows],
    "list_of_small_arrays": lambda rows: [np.array(row, np.uint8) for row in rows],
    "list_of_mixed_rows": lambda rows: [
        np.array(row, np.int32) if i % 2 else row for i, row in enumerate(rows)
    ],
    "list_of_tensors": lambda rows: [tensor(row or [0])[: len(row)] for row in rows],
    "ragged": ragged,
    "ragged_lists": lambda rows: tuple(part.tolist() for part in ragged(rows)),
    "ragged_int32_offsets": lambda rows: (ragged(rows)[0], ragged(rows)[1].astype(np.int32)),
    "ragged_uint64_offsets": lambda rows: (ragged(rows)[0], ragged(rows)[1].astype(np.uint64)),
    "ragged_tensors": lambda rows: tuple(tensor(part.tolist()) for part in ragged(rows)),
    "ragged_read_only": lambda rows: tuple(read_only(part) for part in ragged(rows)),
    "ragged_negative_stride": lambda rows: (ragged(rows)[0][::-1].copy()[::-1], ragged(rows)[1]),
    "ragged_strided": lambda rows: (np.repeat(ragged(rows)[0], 3)[::3], ragged(rows)[1]),
    "list_of_array_arrays": lambda rows: [array.array("q", row) for row in rows],
    "list_of_memoryviews": lambda rows: [memoryview(array.array("i", row)) for row in rows],
    "list_of_engine_ids": lambda rows: [EngineIds(row) for row in rows],
    "engine_ids_of_engine_ids": lambda rows: EngineIds(EngineIds(row) for row in rows),
    "tuple_of_tuples": lambda rows: tuple(map(tuple, rows)),
    "tuple_of_engine_ids": lambda rows: tuple(map(EngineIds, rows)),
    "tuple_of_lists": tuple,
    "deque": collections.deque,
    "object_array": object_array,
    "list_of_ranges_and_lists": lambda rows: [
        range(r[0], r[0] + 1) if len(r) == 1 else r for r in rows
    ],
    "list_of_dlpack": lambda rows: [OnlyDLPack(np.array(row, np.int64)) for row in rows],
    "arrow": arrow,
    "arrow_slice": lambda rows: arrow([[9], *rows, [9]])[1 : len(rows) + 1],
    "arrow_large": lambda rows: arrow(rows, "large_list"),
    "arrow_view": lambda rows: arrow(rows, "list_view"),
    "arrow_chunks": arrow_chunks,
    "list_of_arrow_rows": lambda rows: list(arrow(rows)),
    "column": column,
    "column_numpy": lambda rows: column(rows, "numpy"),
    "column_torch": lambda rows: column(rows, "torch"),
    "column_arrow": lambda rows: column(rows, "arrow"),
    "column_shuffled": shuffled_column,
    "column_computed": computed_column,
    "nested_jagged": lambda rows: nested(rows, "jagged"),
    "nested_strided": lambda rows: nested(rows, "strided"),
    "pandas": lambda rows: pytest.importorskip("pandas").Series(rows, index=[7, 5, 3, 1]),
    "ragged_arrow": lambda rows: tuple(map(pytest.importorskip("pyarrow").array, ragged(rows))),
    "ragged_array_array": lambda rows: (
        array.array("q", ragged(rows)[0]),
        ragged(rows)[1].tolist(),
    ),
    "ragged_dlpack": lambda rows: tuple(map(OnlyDLPack, ragged(rows))),
    "ragged_big_endian": lambda rows: ragged(rows, ">i4"),
}


@pytest.mark.parametrize("form", ROW_FORMS)
@pytest.mark.parametrize("other", ["lists", "same"])
def test_forms_of_rows(aligner: Aligner, expected: AlignedBatch, form: str, other: str) -> None:
    shape = ROW_FORMS[form]
    batch = aligner.align_batch(
        shape(TEACHER_ROWS), STUDENT_ROWS if other == "lists" else shape(STUDENT_ROWS)
    )
    assert table(batch) == table(expected)
    assert np.array_equal(batch.student_start, expected.student_start)
    assert [unit.text for row in range(4) for unit in batch.units(row)] == [
        unit.text for row in range(4) for unit in expected.units(row)
    ]


@pytest.mark.parametrize("dtype", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"])
def test_every_integer_dtype(aligner: Aligner, expected: AlignedBatch, dtype: str) -> None:
    mixed = aligner.align_batch(ragged(TEACHER_ROWS, dtype), STUDENT_ROWS)
    assert table(mixed) == table(expected)
    both = aligner.align_batch(ragged(TEACHER_ROWS, dtype), ragged(STUDENT_ROWS, dtype))
    assert table(both) == table(expected)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8"])
def test_every_tensor_dtype(aligner: Aligner, expected: AlignedBatch, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    (t_ids, t_mask), (s_ids, s_mask) = (
        padded(rows, left=True, pad=0) for rows in (TEACHER_ROWS, STUDENT_ROWS)
    )
    batch = aligner.align_batch(
        torch.tensor(t_ids, dtype=getattr(torch, dtype)),
        torch.tensor(s_ids, dtype=getattr(torch, dtype)),
        teacher_mask=torch.tensor(t_mask),
        student_mask=torch.tensor(s_mask).to(getattr(torch, dtype)),
    )
    assert table(batch) == table(expected)


DENSE_FORMS: dict[str, Callable[[Any], Any]] = {
    "array": lambda array: array,
    "fortran_order": np.asfortranarray,
    "negative_strides": lambda array: np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
    "column_slices": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "transposed": lambda array: np.ascontiguousarray(array.T).T,
    "read_only": read_only,
    "tensor": lambda array: tensor(array.tolist()),
    "tensor_transposed": lambda array: tensor(array.T.tolist()).T,
    "tensor_slices": lambda array: tensor(np.repeat(array, 2, axis=1).tolist())[:, ::2],
    "rows_of_arrays": list,
}


@pytest.mark.parametrize("form", DENSE_FORMS)
@pytest.mark.parametrize(("teacher_left", "student_left"), [(False, False), (True, False)])
def test_padded_forms(
    aligner: Aligner, expected: AlignedBatch, form: str, teacher_left: bool, student_left: bool
) -> None:
    shape = DENSE_FORMS[form]
    (t_ids, t_mask), (s_ids, s_mask) = (
        padded(TEACHER_ROWS, left=teacher_left),
        padded(STUDENT_ROWS, left=student_left),
    )
    batch = aligner.align_batch(
        shape(t_ids), shape(s_ids), teacher_mask=shape(t_mask), student_mask=shape(s_mask)
    )
    assert table(batch) == table(expected)
    per_row = np.diff(batch.row_offsets)
    shift = [WIDTH - len(row) for row in TEACHER_ROWS] if teacher_left else [0] * 4
    assert np.array_equal(batch.teacher_start, expected.teacher_start + np.repeat(shift, per_row))
    assert np.array_equal(batch.student_end, expected.student_end)
    if not teacher_left:
        assert batch.coverage() == expected.coverage()


MASK_FORMS = ["uint8", "int64", "lists", "flat", "ragged", "nonzero", "numpy_bools", "engine"]


@pytest.mark.parametrize("form", [*MASK_FORMS, "arrow", "nested", "column"])
def test_forms_of_masks(aligner: Aligner, form: str) -> None:
    """A mask over ragged rows that takes every token but the first of each row's side."""
    masks = []
    for rows in (TEACHER_ROWS, STUDENT_ROWS):
        lists = [[int(i > 0) for i in range(len(row))] for row in rows]
        flat = np.array([bit for row in lists for bit in row])
        masks.append(
            {
                "uint8": [np.array(row, np.uint8) for row in lists],
                "int64": [np.array(row, np.int64) for row in lists],
                "lists": lists,
                "flat": flat.astype(bool),
                "ragged": (flat, ragged(rows)[1]),
                "numpy_bools": [list(np.array(row, bool)) for row in lists],
                "engine": EngineIds(map(EngineIds, lists)),
                "arrow": arrow(lists),
                "nested": nested(lists, "jagged"),
                "column": column(lists, "numpy"),
                "nonzero": [[7 * bit for bit in row] for row in lists],
            }[form]
        )
    batch = aligner.align_batch(
        ragged(TEACHER_ROWS), STUDENT_ROWS, teacher_mask=masks[0], student_mask=masks[1]
    )
    cut = aligner.align_batch([row[1:] for row in TEACHER_ROWS], [row[1:] for row in STUDENT_ROWS])
    assert table(batch) == table(cut)


def test_chunk_ids_of_dense_ids(aligner: Aligner, expected: AlignedBatch) -> None:
    (t_ids, t_mask), (s_ids, s_mask) = (
        padded(rows, left=True) for rows in (TEACHER_ROWS, STUDENT_ROWS)
    )
    batch = aligner.align_batch(t_ids, s_ids, teacher_mask=t_mask, student_mask=s_mask)
    for chunks, mask, side in zip(
        batch.chunk_ids(), (t_mask, s_mask), ("teacher", "student"), strict=True
    ):
        assert chunks.shape == (4, WIDTH)
        assert chunks.dtype == np.int64
        wanted = np.full((4, WIDTH), -1)
        for row in range(4):
            for number, unit in enumerate(batch.units(row)):
                wanted[row, list(getattr(unit, side))] = number
        assert np.array_equal(chunks, wanted)
        assert (chunks[~mask] == -1).all()
    widths = [chunks.shape for chunks in expected.chunk_ids()]
    assert widths == [(4, max(map(len, TEACHER_ROWS))), (4, max(map(len, STUDENT_ROWS)))]


def test_native_arrays_are_not_copied(aligner: Aligner) -> None:
    for dtype in (np.int32, np.uint32, np.int64):
        values, offsets = ragged(STUDENT_ROWS, dtype)
        batch = aligner.align_batch(ragged(TEACHER_ROWS, dtype), (values, offsets))
        assert np.shares_memory(batch.student.values, values)


@pytest.mark.parametrize("form", ["dlpack", "arrow", "column", "nested", "memoryview"])
def test_flat_values_of_other_libraries_are_not_copied(aligner: Aligner, form: str) -> None:
    values, offsets = ragged(STUDENT_ROWS)
    if form == "dlpack":
        given: Any = (OnlyDLPack(values), offsets)
    elif form == "memoryview":
        given = (memoryview(values), offsets)
    elif form == "nested":
        given = nested(STUDENT_ROWS, "jagged")
        values = given.values().numpy()
    else:
        given = arrow(STUDENT_ROWS)
        if form == "column":
            given = column(STUDENT_ROWS)
            values = given.source.data["ids"].chunk(0).values.to_numpy()
        else:
            values = given.values.to_numpy()
    batch = aligner.align_batch(TEACHER_ROWS, given)
    assert np.shares_memory(batch.student.values, values)


def test_two_rows_in_a_tuple(aligner: Aligner) -> None:
    """Two tuples are rows; two flat arrays or lists are values and offsets."""
    student = [STUDENT_ROWS[0], STUDENT_ROWS[3]]
    teacher = [TEACHER_ROWS[0], TEACHER_ROWS[3]]
    wanted = aligner.align_batch(teacher, student)
    for rows in (tuple(map(tuple, student)), tuple(map(EngineIds, student))):
        assert table(aligner.align_batch(teacher, rows)) == table(wanted)
    dense = np.array([[3, 3], [3, 3]])
    pair = aligner.align_batch([[0], [0]], (dense[0].tolist()[:1], [0, 1, 1]))
    assert pair.row_offsets.tolist() == [0, 1, 1]
    # Two-dimensional parts cannot be values and offsets.
    with pytest.raises(TypeError, match=r"row 0.*rank 2"):
        aligner.align_batch([[0], [0]], (dense, dense))


ADVICE: dict[str, tuple[Any, str, Callable[[Any], Any]]] = {
    "flat_array": (np.array([3]), "wrap one row in a list", lambda row: [row]),
    "two_lists": (([3], [3]), "pass two rows as a list", list),
    "generator": (([3] for _ in range(2)), "list(...) of it", list),
    "offsets": (np.array([3, 3]), "tuple (values, offsets)", lambda flat: (flat, [0, 1, 2])),
}


@pytest.mark.parametrize("name", ADVICE)
def test_the_advice_of_errors_works(aligner: Aligner, name: str) -> None:
    given, advice, follow = ADVICE[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        aligner.align_batch([[0], [0]], given)
    assert advice in str(caught.value)
    followed = follow(given)
    rows = [[0]] if name == "flat_array" else [[0], [0]]
    assert len(aligner.align_batch(rows, followed)) == len(rows)


def test_decode_bytes_of_any_sequence(aligner: Aligner) -> None:
    ids = STUDENT_ROWS[3]
    wanted = aligner.student.decode_bytes(ids)
    for row in (EngineIds(ids), array.array("h", ids), np.array(ids, np.uint16), arrow([ids])[0]):
        assert aligner.student.decode_bytes(row) == wanted
    assert aligner.student.decode_bytes(()) == b""
    for wrong in ("12", b"12", 3, [[1]], np.zeros((1, 1), int), [1.5], {1}):
        with pytest.raises(TypeError, match="ids"):
            aligner.student.decode_bytes(wrong)


def test_arguments_are_left_alone(aligner: Aligner) -> None:
    t_ids, t_mask = padded(TEACHER_ROWS, left=True)
    s_ids, s_mask = padded(STUDENT_ROWS, left=False)
    before = [array.copy() for array in (t_ids, t_mask, s_ids, s_mask)]
    aligner.align_batch(t_ids, s_ids, teacher_mask=t_mask, student_mask=s_mask)
    assert all(map(np.array_equal, before, (t_ids, t_mask, s_ids, s_mask)))


EMPTY: dict[str, Any] = {
    "lists": [],
    "dense": np.zeros((0, 5), np.int64),
    "ragged": (np.zeros(0, np.int64), np.zeros(1, np.int64)),
    "ragged_lists": ([], [0]),
}


@pytest.mark.parametrize("teacher", EMPTY)
@pytest.mark.parametrize("student", EMPTY)
def test_empty_batches(aligner: Aligner, teacher: str, student: str) -> None:
    for threads in (1, None):
        batch = aligner.align_batch(EMPTY[teacher], EMPTY[student], threads=threads)
        assert len(batch) == batch.n_units == len(batch.unmatched) == 0
        assert batch.row_offsets.tolist() == [0]
        assert batch.coverage().student_tokens == 0
        assert [len(chunks) for chunks in batch.chunk_ids()] == [0, 0]


EMPTY_ROWS: dict[str, Any] = {
    "lists": [[], []],
    "dense": np.zeros((2, 0), np.int64),
    "arrays": [np.zeros(0, np.int64), np.array([])],
    "ragged": (np.zeros(0, np.int32), np.zeros(3, np.int64)),
}


@pytest.mark.parametrize("form", EMPTY_ROWS)
def test_empty_rows(aligner: Aligner, form: str) -> None:
    batch = aligner.align_batch(EMPTY_ROWS[form], EMPTY_ROWS[form])
    assert len(batch) == 2
    assert batch.row_offsets.tolist() == [0, 0, 0]
    assert batch.units(1) == []
    one_sided = aligner.align_batch(EMPTY_ROWS[form], [[3], []])
    assert one_sided.unmatched.row_offsets.tolist() == [0, 1, 1]


def test_masks_that_select_nothing(aligner: Aligner) -> None:
    nothing = [[[0] * len(row) for row in rows] for rows in (TEACHER_ROWS, STUDENT_ROWS)]
    batch = aligner.align_batch(
        TEACHER_ROWS, STUDENT_ROWS, teacher_mask=nothing[0], student_mask=nothing[1]
    )
    assert batch.n_units == len(batch.unmatched) == 0
    assert batch.coverage().teacher_tokens == 0
    assert all((chunks == -1).all() for chunks in batch.chunk_ids())


def test_masked_ids_may_be_anything(aligner: Aligner) -> None:
    batch = aligner.align_batch(
        [[-100, 0, 2**40]],
        [[2**62, -1, 3]],
        teacher_mask=[[0, 1, 0]],
        student_mask=[[0, 0, 1]],
    )
    assert [(unit.teacher, unit.student) for unit in batch.units(0)] == [(range(1, 2), range(2, 3))]


# --- what is wrong, and what is said about it ---------------------------------------------------

GOOD: dict[str, Any] = {"teacher_ids": [[0]], "student_ids": [[3]]}
TYPE_ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "none": ({"student_ids": None}, "student_ids.*NoneType"),
    "text": ({"teacher_ids": "abc"}, "teacher_ids.*str"),
    "number": ({"teacher_ids": 3}, "teacher_ids.*int"),
    "flat_list": ({"teacher_ids": [0, 1]}, "teacher_ids.*row 0.*int"),
    "flat_array": ({"teacher_ids": np.zeros(3, np.int64)}, "teacher_ids.*rank 1"),
    "scalar_array": ({"teacher_ids": np.int64(3)}, "teacher_ids"),
    "scalar_in_a_tuple": (
        {"teacher_ids": (np.array(None, object), np.array([0]))},
        "teacher_ids values: expected a 1-D array, got rank 0",
    ),
    "three_axes": ({"student_ids": np.zeros((1, 1, 1), np.int64)}, "student_ids.*rank 3"),
    "row_of_rank_2": ({"student_ids": [np.zeros((1, 1), np.int64)]}, "student_ids.*row 0.*rank 2"),
    "float_array": ({"student_ids": np.zeros((1, 1))}, "student_ids.*float64"),
    "float_row": ({"student_ids": [np.zeros(1, np.float32)]}, "student_ids.*row 0.*float32"),
    "bool_ids": ({"student_ids": np.zeros((1, 1), bool)}, "student_ids.*bool"),
    "float_in_list": ({"student_ids": [[3, 1.0]]}, "student_ids.*row 0.*position 1.*float"),
    "none_in_list": ({"student_ids": [[3], [None]]}, "student_ids.*row 1.*position 0.*None"),
    "text_in_list": ({"student_ids": [["3"]]}, "student_ids.*row 0.*position 0.*str"),
    "text_row": ({"student_ids": ["ab"]}, "student_ids.*row 0.*str"),
    "set_of_rows": ({"student_ids": {(3,)}}, "student_ids.*set"),
    "mapping": ({"student_ids": {0: [3]}}, "student_ids.*dict"),
    "generator": (
        {"student_ids": ([3] for _ in range(1))},
        r"student_ids.*generator; pass list\(...\)",
    ),
    "set_row": ({"student_ids": [{3}]}, "student_ids: row 0.*set"),
    "bytes_row": ({"student_ids": [b"ab"]}, "student_ids: row 0.*bytes"),
    "float_array_array": ({"student_ids": [array.array("d", [3])]}, "student_ids: row 0.*float64"),
    "engine_floats": ({"student_ids": [EngineIds([3, 1.0])]}, "row 0, position 1.*float"),
    "named_in_a_mixture": (
        {"student_ids": [np.array([3]), [3, None]], "teacher_ids": [[0], [0]]},
        "student_ids: row 1, position 1.*NoneType",
    ),
    "object_array": ({"student_ids": np.array([[None]])}, "student_ids.*object"),
    "ragged_rank_2": ({"student_ids": (np.zeros((1, 1), int), [0, 1])}, "student_ids.*rank 2"),
    "float_offsets": ({"student_ids": ([3], np.array([0.0, 1.0]))}, "student_ids.*offsets.*float"),
    "float_values": ({"student_ids": (np.array([3.0]), [0, 1])}, "student_ids.*values.*float"),
    "float_mask": ({"student_mask": np.ones((1, 1))}, "student_mask.*float64"),
    "text_mask": ({"teacher_mask": "1"}, "teacher_mask.*str"),
    "float_resync": ({"resync_bytes": 8.0}, "resync_bytes.*float"),
    "bool_resync": ({"resync_bytes": True}, "resync_bytes.*bool"),
    "float_threads": ({"threads": 1.5}, "threads.*float"),
}
VALUE_ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "three_rows_in_a_tuple": ({"student_ids": ([3], [0, 1], [1])}, "1 rows.*3"),
    "two_lists_that_are_rows": ({"student_ids": ([3, 1], [0, 1])}, "pass two rows as a list"),
    "more_teacher_rows": ({"teacher_ids": [[0], [0]]}, "2 rows.*1"),
    "offset_start": ({"student_ids": ([3], [1, 1])}, "student_ids.*offsets.*index 0"),
    "offset_end": ({"student_ids": ([3], [0, 2])}, "student_ids.*offsets"),
    "offset_before_end": ({"student_ids": ([3, 3], [0, 1])}, "student_ids.*offsets"),
    "falling_offsets": (
        {"student_ids": ([3, 3], [0, 2, 1, 2]), "teacher_ids": [[], [], []]},
        "student_ids.*offsets.*index 2",
    ),
    "negative_offsets": ({"student_ids": ([3], [0, -1, 1])}, "student_ids.*offsets"),
    "no_offsets": ({"student_ids": ([], [])}, "student_ids.*offsets"),
    "mask_rows": ({"student_mask": [[1], [1]]}, "student_mask.*2 rows.*1"),
    "mask_width": ({"student_mask": [[1, 1]]}, "student_mask.*row 0.*2.*1"),
    "flat_mask_length": ({"student_mask": np.ones(2, bool)}, "student_mask.*2.*1"),
    "regions": ({"student_mask": [[0]]}, "row 0.*1 region.*0"),
    "id_past_the_end": ({"teacher_ids": [[5]]}, "row 0, position 0.*teacher.*5.*5 tokens"),
    "negative_id": ({"student_ids": [[3, -1]]}, "row 0, position 1.*student.*-1.*6 tokens"),
    "huge_id": ({"student_ids": [[2**63]]}, "student_ids.*row 0.*position 0.*9223372036854775808"),
    "huge_unsigned": (
        {"student_ids": np.array([[3, 2**63]], np.uint64)},
        "student_ids.*position 1.*9223372036854775808",
    ),
    "on_mismatch": ({"on_mismatch": "ignore"}, "on_mismatch.*'skip'.*'error'.*'ignore'"),
    "zero_resync": ({"resync_bytes": 0}, "resync_bytes.*0"),
    "negative_resync": ({"resync_bytes": -1}, "resync_bytes.*-1"),
    "large_resync": ({"resync_bytes": 4097}, "resync_bytes.*4097.*4096"),
    "huge_resync": ({"resync_bytes": 2**64}, "resync_bytes is 18446744073709551616, expected 1 to"),
    "zero_threads": ({"threads": 0}, "threads.*0"),
    "negative_threads": ({"threads": -1}, "threads.*-1"),
}


@pytest.mark.parametrize("row", [[3, True], (3, False), EngineIds([3, True])])
def test_booleans_are_no_ids(aligner: Aligner, row: Any) -> None:
    with pytest.raises(TypeError, match="student_ids: row 1, position 1: expected an integer, got"):
        aligner.align_batch([[0], [0]], [[3], row])
    with pytest.raises(TypeError, match="ids: row 0, position 1: expected an integer, got bool"):
        aligner.student.decode_bytes(row)
    # They are the entries of a mask.
    mask = [[True], [row[1], True]]
    batch = aligner.align_batch([[0], [0]], [[3], [3, 3]], student_mask=mask)
    assert len(batch) == 2


@pytest.mark.parametrize("name", TYPE_ERRORS)
def test_type_errors(aligner: Aligner, name: str) -> None:
    arguments, message = TYPE_ERRORS[name]
    with pytest.raises(TypeError, match=message):
        aligner.align_batch(**{**GOOD, **arguments})


@pytest.mark.parametrize("name", VALUE_ERRORS)
def test_value_errors(aligner: Aligner, name: str) -> None:
    arguments, message = VALUE_ERRORS[name]
    with pytest.raises(ValueError, match=message):
        aligner.align_batch(**{**GOOD, **arguments})


ARROW_ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "null_row": ([[3], None], ValueError, "student_ids: row 1 is null"),
    "null_id": ([[3], [3, None]], ValueError, "student_ids: row 1, position 1 is null"),
    "nested_rows": ([[[3]], [[3]]], TypeError, "student_ids: expected rows of integers"),
    "texts": ([["3"], ["3"]], TypeError, "student_ids"),
    "floats": ([[3.0], [3.0]], TypeError, "student_ids.*float64"),
}


@pytest.mark.parametrize("name", ARROW_ERRORS)
def test_arrow_arrays_that_cannot_be_read(aligner: Aligner, name: str) -> None:
    rows, error, message = ARROW_ERRORS[name]
    with pytest.raises(error, match=message):
        aligner.align_batch([[0], [0]], pytest.importorskip("pyarrow").array(rows))


def test_tensors_that_cannot_be_read(aligner: Aligner) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"student_ids.*float"):
        aligner.align_batch([[0]], torch.zeros(1, 1))
    with pytest.raises(TypeError, match=r"student_ids.*CPU.*meta"):
        aligner.align_batch([[0]], torch.zeros(1, 1, dtype=torch.long, device="meta"))
    away = torch.zeros(1, dtype=torch.long, device="meta")
    for both in ((away, away), [away], (away, [0, 1])):
        with pytest.raises(TypeError, match=r"^student_ids.*CPU.*meta"):
            aligner.align_batch([[0]], both)
    with pytest.raises(TypeError, match=r"student_ids.*bfloat16"):
        aligner.align_batch([[0]], torch.zeros(1, 1, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"student_ids.*2-D rows"):
        aligner.align_batch([[0]], torch.nested.nested_tensor([torch.zeros(1, 1).long()]))


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        ([0, 3], [3, 9], "row 1, position 1: student id 9"),
        ([0], [3, 2, 9], "row 1, position 2: student id 9"),
        ([0, 2, 7], [3], "row 1, position 2: teacher id 7"),
        ([7], [], "row 1, position 0: teacher id 7"),
        ([0, 2, -3], [1, 1, 1], "row 1, position 2: teacher id -3"),
        ([4, 4, 99], [3], "row 1, position 2: teacher id 99"),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_wrong_ids_are_found_wherever_they_stand(
    aligner: Aligner, teacher: list[int], student: list[int], message: str, threads: int
) -> None:
    """In a unit, in what one side goes on with, in what differs."""
    with pytest.raises(ValueError, match=re.escape(message)):
        aligner.align_batch([[0], teacher], [[3], student], threads=threads)


def test_a_wrong_id_behind_lost_synchrony(aligner: Aligner) -> None:
    teacher, student = [2] * 6000 + [77], [1] * 6000
    with pytest.raises(ValueError, match="row 0, position 6000: teacher id 77"):
        aligner.align_batch([teacher], [student])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_first_wrong_row_is_named(aligner: Aligner, threads: int) -> None:
    rows = [[0] * 500 for _ in range(400)]
    students = [[3] * 500 for _ in range(400)]
    for number in (399, 251, 128):
        students[number][number] = 60 + number
    with pytest.raises(ValueError, match="row 128, position 128: student id 188"):
        aligner.align_batch(rows, students, threads=threads)
