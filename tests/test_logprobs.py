"""Log-probabilities of one side's tokens as numbers per token of the other side."""

from __future__ import annotations

import functools
import math
import pickle
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from simct_align import Aligner, UnitClass, UnitKind, Vocabulary
from support.texts import answers, hard_texts
from support.vocabularies import vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

    from simct_align import AlignedBatch

NAN, INF = math.nan, math.inf
PAIRS = (
    ("demo_byte_level", "demo_byte_fallback"),
    ("demo_byte_fallback", "demo_byte_level"),
    ("mistral_v3", "deepseek"),
    ("tekken", "mistral_v3"),
    ("qwen2_5", "gemma2"),
    ("gemma2", "llama3_1"),
    ("gpt4o", "mistral_nemo"),
)
METHODS = ("student_logprobs", "teacher_logprobs")


def slow_spread(batch: AlignedBatch, method: str, rows: Any, spread: str, fill: float) -> Any:
    """One list per row of the side that gets the numbers, unit by unit in plain Python."""
    source, target = ("teacher", "student") if method == METHODS[0] else ("student", "teacher")
    made = []
    for row, values in enumerate(rows):
        begin, end = (int(o) for o in getattr(batch, target).offsets[row : row + 2])
        numbers = [fill] * (end - begin)
        for unit in range(int(batch.row_offsets[row]), int(batch.row_offsets[row + 1])):
            if int(batch.unit_class[unit]) & 32:  # lost its dummy prefix
                continue
            a, b = (int(getattr(batch, f"{source}_{what}")[unit]) for what in ("start", "end"))
            c, d = (int(getattr(batch, f"{target}_{what}")[unit]) for what in ("start", "end"))
            total = 0.0
            for position in range(a, b):
                total += values[position]
            for position in range(c, d):
                if spread == "even" or math.isnan(total):
                    numbers[position] = total / (d - c)
                else:
                    chosen = d - 1 if spread == "last" else c
                    numbers[position] = total if position == chosen else 0.0
        made.append(numbers)
    return made


def rows_of(batch: AlignedBatch, side: str, rng: np.random.Generator) -> list[list[float]]:
    """Random log-probabilities, some of them −inf or NaN."""
    rows = []
    for length in np.diff(getattr(batch, side).offsets):
        values = -rng.exponential(size=length)
        values[rng.random(length) < 0.03] = -INF
        values[rng.random(length) < 0.03] = NAN
        rows.append(values.tolist())
    return rows


def flat(rows: list[list[float]]) -> np.ndarray[Any, Any]:
    return np.array([value for row in rows for value in row])


@functools.cache
def aligned(teacher: str, student: str) -> AlignedBatch:
    """Texts, and rows of which one side is cut short or of another text."""
    texts = [*answers(40), *hard_texts()[:40], "", "a"]
    aligner = Aligner(vocabulary(teacher), vocabulary(student))
    ids = [aligner.teacher.encode_batch(texts), aligner.student.encode_batch(texts)]
    for row in range(0, len(texts), 7):
        side = row % 2
        ids[side][row] = ids[side][row][: len(ids[side][row]) // 2]
    ids[1][3], ids[1][4] = ids[1][4], ids[1][3]
    return aligner.align_batch(*ids)


@pytest.fixture(scope="module")
def small() -> AlignedBatch:
    """Units of every kind, an unmatched token on either side, and an empty row."""
    teacher = Vocabulary.from_token_bytes([b"12", b"+", b"3", b"", b"x"], special={3: "<eos>"})
    student = Vocabulary.from_token_bytes([b"1", b"2", b"+3", b"", b"y"], special={3: "</s>"})
    aligner = Aligner(teacher, student, stop_tokens=(["<eos>"], ["</s>"]))
    batch = aligner.align_batch([[0, 1, 2, 3], [], [4, 0]], [[0, 1, 2, 3], [], [4, 0, 1]])
    kinds = [[unit.kind.name for unit in batch.units(row)] for row in range(3)]
    assert kinds == [["MULTI", "MULTI", "SPECIAL"], [], ["MULTI"]]
    assert len(batch.unmatched) == 1
    return batch


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_equals_the_slow_twin(teacher: str, student: str, method: str) -> None:
    batch = aligned(teacher, student)
    rng = np.random.default_rng(PAIRS.index((teacher, student)))
    rows = rows_of(batch, "teacher" if method == "student_logprobs" else "student", rng)
    for spread in ("even", "last", "first"):
        for fill in (NAN, 0.5):
            for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-6)):
                values = flat(rows).astype(dtype)
                exact = np.split(values.astype(float), np.cumsum([len(row) for row in rows])[:-1])
                wanted = flat(slow_spread(batch, method, exact, spread, fill))
                for threads in (1, 3):
                    found = getattr(batch, method)(
                        values, spread=spread, fill=fill, threads=threads
                    )
                    assert found.dtype == dtype
                    np.testing.assert_allclose(found, wanted, rtol=tolerance)


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_the_batches_have_units_of_every_kind(teacher: str, student: str) -> None:
    batch = aligned(teacher, student)
    kinds = batch.coverage().units
    assert kinds["shared"]
    assert kinds["multi"]
    assert len(batch.unmatched) > 5
    lengths = [
        getattr(batch, f"{s}_end") - getattr(batch, f"{s}_start") for s in ("teacher", "student")
    ]
    assert (lengths[0] != lengths[1]).any()
    trimmed = (batch.unit_class & UnitClass.TRIMMED) != 0
    one_dummy = vocabulary(teacher).dummy_prefix != vocabulary(student).dummy_prefix
    assert trimmed.any() <= one_dummy


def test_some_batch_has_trimmed_units() -> None:
    assert any(((aligned(*pair).unit_class & UnitClass.TRIMMED) != 0).any() for pair in PAIRS[:4])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("spread", ["even", "last", "first"])
def test_sums_over_units_are_kept(method: str, spread: str) -> None:
    batch = aligned(*PAIRS[2])
    source, target = ("teacher", "student") if method == METHODS[0] else ("student", "teacher")
    rng = np.random.default_rng(0)
    values = -rng.exponential(size=len(getattr(batch, source).values))
    found = getattr(batch, method)(values, spread=spread)
    row = np.repeat(np.arange(len(batch)), np.diff(batch.row_offsets))
    sums = []
    for side, numbers in ((source, values), (target, found)):
        first = getattr(batch, side).offsets[row]
        start, end = (first + getattr(batch, f"{side}_{what}") for what in ("start", "end"))
        sums.append(np.array([numbers[a:b].sum() for a, b in zip(start, end, strict=True)]))
    takes_part = (batch.unit_class & UnitClass.TRIMMED) == 0
    np.testing.assert_allclose(sums[1][takes_part], sums[0][takes_part], rtol=1e-12)
    assert np.isnan(sums[1][~takes_part]).all()
    back = getattr(batch, METHODS[method == METHODS[0]])(found, spread=spread)
    again = getattr(batch, method)(back, spread=spread)
    np.testing.assert_allclose(again, found, rtol=1e-12)


def test_both_ways_in_turn_are_sums_on_the_own_side(small: AlignedBatch) -> None:
    own = [[-1.0, -2.0, -0.5, -0.1], [], [-9.0, -1.0, -3.0]]
    to_teacher = small.teacher_logprobs(own, spread="last")
    found = small.student_logprobs(to_teacher, spread="last", fill=0.0)
    assert found.tolist() == [0.0, -3.0, -0.5, -0.1, 0.0, 0.0, -4.0]


@pytest.mark.parametrize(
    ("spread", "expected"),
    [
        ("even", [-1.5, -1.5, -0.75, -0.1, NAN, -0.5, -0.5]),
        ("last", [0.0, -3.0, -0.75, -0.1, NAN, 0.0, -1.0]),
        ("first", [-3.0, 0.0, -0.75, -0.1, NAN, -1.0, 0.0]),
    ],
)
def test_every_kind_of_unit(small: AlignedBatch, spread: Any, expected: list[float]) -> None:
    teacher = [[-3.0, -0.5, -0.25, -0.1], [], [-7.0, -1.0]]
    np.testing.assert_array_equal(small.student_logprobs(teacher, spread=spread), expected)


def test_the_way_back_has_the_same_keywords(small: AlignedBatch) -> None:
    student = [[-1.0, -2.0, -0.75, -0.1], [], [-9.0, -0.25, -0.75]]
    for spread, unit in (("even", [-0.375, -0.375]), ("last", [0, -0.75]), ("first", [-0.75, 0])):
        found = small.teacher_logprobs(student, spread=spread, fill=5.0)
        assert found.tolist() == [-3.0, *unit, -0.1, 5.0, -1.0]


def test_infinities_and_nan(small: AlignedBatch) -> None:
    teacher = [[-INF, -0.5, NAN, -0.1], [], [NAN, -INF]]
    for spread, first, third in (
        ("even", [-INF, -INF], [-INF, -INF]),
        ("last", [0.0, -INF], [0.0, -INF]),
        ("first", [-INF, 0.0], [-INF, 0.0]),
    ):
        found = small.student_logprobs(teacher, spread=spread, fill=7.0)
        np.testing.assert_array_equal(found, [*first, NAN, -0.1, 7.0, *third])
    # A NaN is on every token of its unit, whatever the spread.
    for spread in ("even", "last", "first"):
        found = small.student_logprobs([[NAN, -0.5, -0.5, -0.1], [], [0, 0]], spread=spread, fill=7)
        np.testing.assert_array_equal(found[:4], [NAN, NAN, -1.0, -0.1])


def test_units_that_were_left_out_get_the_fill(small: AlignedBatch) -> None:
    teacher = [[-3.0, -0.5, -0.25, -0.1], [], [-7.0, -1.0]]
    without = small.without(UnitKind.SPECIAL)
    assert without.student_logprobs(teacher, fill=9.0).tolist()[:4] == [-1.5, -1.5, -0.75, 9.0]
    joined = small.coarsen(2).student_logprobs(teacher, spread="last", fill=9.0)
    assert joined.tolist()[:4] == [0.0, 0.0, -3.75, -0.1]


def test_a_trimmed_unit_gets_the_fill() -> None:
    teacher = Vocabulary.from_token_bytes([b" a", b"b", b" "], dummy_prefix=True)
    student = Vocabulary.from_token_bytes([b"a", b"b"])
    batch = Aligner(teacher, student).align_batch([[0, 1], [2, 1]], [[0, 1], [1]])
    assert batch.unit_class[0] & UnitClass.TRIMMED
    assert batch.student_logprobs([[-1.0, -2.0], [-4.0, -8.0]], fill=5).tolist() == [5, -2, -8]
    assert batch.teacher_logprobs([[-1.0, -2.0], [-8.0]], fill=5).tolist() == [5, -2, 5, -8]


# Forms and layouts


def dense(rows: list[list[float]], width: int, *, left: bool) -> np.ndarray[Any, Any]:
    made = np.full((len(rows), width), NAN)
    for number, row in enumerate(rows):
        made[number, slice(width - len(row), width) if left else slice(0, len(row))] = row
    return made


@pytest.mark.parametrize("left", [False, True])
def test_dense_ids_have_dense_numbers(small: AlignedBatch, left: bool) -> None:
    pair: Any = small._pair
    ids, masks = [], []
    for side, width in ((small.teacher, 5), (small.student, 6)):
        rows = [side.row(number).tolist() for number in range(3)]
        ids.append(np.nan_to_num(dense(rows, width, left=left)).astype(np.int64))
        masks.append(~np.isnan(dense(rows, width, left=left)))
    batch = pair.align_batch(*ids, teacher_mask=masks[0], student_mask=masks[1])
    rows_t = [[-3.0, -0.5, -0.25, -0.1], [], [-7.0, -1.0]]
    rows_s = [[-1.0, -2.0, -0.5, -0.1], [], [-9.0, -1.0, -3.0]]
    # Padding is NaN here, and must not reach any number.
    found = batch.student_logprobs(dense(rows_t, 5, left=left), fill=1.0)
    expected = small.student_logprobs(rows_t, fill=1.0)
    assert found.shape == (3, 6)
    assert found[masks[1]].tolist() == expected.tolist()
    assert (found[~masks[1]] == 1.0).all()
    back = batch.teacher_logprobs(dense(rows_s, 6, left=left), fill=1.0)
    assert back.shape == (3, 5)
    assert back[masks[0]].tolist() == small.teacher_logprobs(rows_s, fill=1.0).tolist()
    # The same values in the flat form, and as rows of the full width.
    values = dense(rows_t, 5, left=left)
    for form in (values.reshape(-1), list(values), values.tolist()):
        np.testing.assert_array_equal(batch.student_logprobs(form, fill=1.0), found)


TEACHER = [[-3.0, -0.5, -0.25, -0.125], [], [-7.0, -1.0]]
VALUES = np.array([value for row in TEACHER for value in row])
OFFSETS = np.array([0, 4, 4, 6])


def tensor(values: Any, dtype: str = "float64") -> Any:
    torch = pytest.importorskip("torch")
    return torch.tensor(values, dtype=getattr(torch, dtype))


FORMS: dict[str, tuple[Callable[[], Any], str]] = {
    "lists": (lambda: TEACHER, "float64"),
    "tuples": (lambda: [tuple(row) for row in TEACHER], "float64"),
    "integers and None": (lambda: [[-3, *TEACHER[0][1:]], [], [None, -1]], "float64"),
    "numpy numbers": (lambda: [[np.float32(v) for v in row] for row in TEACHER], "float64"),
    "float64": (lambda: VALUES, "float64"),
    "float32": (lambda: VALUES.astype(np.float32), "float32"),
    "float16": (lambda: VALUES.astype(np.float16), "float32"),
    "long double": (lambda: VALUES.astype(np.longdouble), "float64"),
    "big endian": (lambda: VALUES.astype(">f4"), "float32"),
    "strided": (lambda: np.repeat(VALUES, 3)[::3], "float64"),
    "negative stride": (lambda: VALUES[::-1].copy()[::-1], "float64"),
    "list of arrays": (lambda: [np.array(row, np.float32) for row in TEACHER], "float32"),
    "mixed rows": (lambda: [np.array(TEACHER[0], np.float32), *TEACHER[1:]], "float64"),
    "ragged": (lambda: (VALUES, OFFSETS), "float64"),
    "ragged lists": (lambda: (VALUES.tolist(), OFFSETS.tolist()), "float64"),
    "ragged int32": (lambda: (VALUES, OFFSETS.astype(np.int32)), "float64"),
}
TENSOR_FORMS: dict[str, tuple[Callable[[], Any], str]] = {
    "float64": (lambda: tensor(VALUES), "float64"),
    "float32": (lambda: tensor(VALUES, "float32"), "float32"),
    "bfloat16": (lambda: tensor(VALUES, "bfloat16"), "float32"),
    "float16": (lambda: tensor(VALUES, "float16"), "float32"),
    "list of tensors": (lambda: [tensor(row, "bfloat16") for row in TEACHER], "float32"),
    "ragged": (lambda: (tensor(VALUES), tensor(OFFSETS, "int64")), "float64"),
    "strided": (lambda: tensor(np.repeat(VALUES, 2))[::2], "float64"),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(small: AlignedBatch, form: str) -> None:
    make, dtype = FORMS[form]
    found = small.student_logprobs(make())
    assert isinstance(found, np.ndarray)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, [-1.5, -1.5, -0.75, -0.125, NAN, -0.5, -0.5])


@pytest.mark.parametrize("form", TENSOR_FORMS)
def test_forms_of_tensors(small: AlignedBatch, form: str) -> None:
    torch = pytest.importorskip("torch")
    make, dtype = TENSOR_FORMS[form]
    found = small.student_logprobs(make())
    assert torch.is_tensor(found)
    assert found.dtype == getattr(torch, dtype)
    np.testing.assert_array_equal(found.numpy(), [-1.5, -1.5, -0.75, -0.125, NAN, -0.5, -0.5])


def test_sums_of_bfloat16_are_not_rounded_to_bfloat16() -> None:
    torch = pytest.importorskip("torch")
    teacher = Vocabulary.from_token_bytes([b"a", b"b"])
    student = Vocabulary.from_token_bytes([b"ab"])
    batch = Aligner(teacher, student).align_batch([[0, 1]], [[0]])
    values = torch.tensor([[-256.0, -1.0]], dtype=torch.bfloat16)
    assert batch.student_logprobs(values).tolist() == [-257.0]


def test_rows_of_one_length_may_come_as_a_table() -> None:
    words = Vocabulary.from_token_bytes([b"a", b"b"])
    batch = Aligner(words, words).align_batch([[0, 1], [1, 0]], [[0, 1], [1, 0]])
    assert batch.student_logprobs(-np.arange(4.0).reshape(2, 2)).tolist() == [0, -1, -2, -3]
    with pytest.raises(ValueError, match=r"has shape \(1, 4\), expected \(4,\)"):
        batch.student_logprobs(np.zeros((1, 4)))


def test_a_batch_without_rows_or_tokens() -> None:
    words = Vocabulary.from_token_bytes([b"a"])
    aligner = Aligner(words, words)
    assert aligner.align_batch([], []).student_logprobs([]).tolist() == []
    assert aligner.align_batch([[], []], [[], []]).student_logprobs([[], []]).tolist() == []
    no_width = np.zeros((2, 0), np.int64)
    batch = aligner.align_batch(no_width, no_width)
    assert batch.student_logprobs(np.zeros((2, 0))).shape == (2, 0)


def test_the_input_stays_as_it_is(small: AlignedBatch) -> None:
    values = VALUES.copy()
    values.flags.writeable = False
    found = small.student_logprobs(values)
    assert not np.shares_memory(found, values)
    assert found.flags.writeable


def test_an_unpickled_batch_needs_no_aligner(small: AlignedBatch) -> None:
    copy = pickle.loads(pickle.dumps(small))
    np.testing.assert_array_equal(copy.student_logprobs(TEACHER), small.student_logprobs(TEACHER))


def test_threads_share_a_batch() -> None:
    batch = aligned(*PAIRS[0])
    values = -np.random.default_rng(0).exponential(size=len(batch.teacher.values))
    expected = batch.student_logprobs(values, threads=1)
    found: list[Any] = []
    workers = [
        threading.Thread(target=lambda: found.append(batch.student_logprobs(values, threads=2)))
        for _ in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 8
    for each in found:
        np.testing.assert_array_equal(each, expected)


# Wrong input


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (TEACHER[:2], ValueError, "teacher_logprobs has 2 rows, expected 3 as in the ids"),
        (
            [[-1.0] * 4, [], [-1.0]],
            ValueError,
            "teacher_logprobs: row 2 has 1 entries, expected 2 entries as in the ids",
        ),
        (
            [[-1.0] * 4, [], np.zeros((1, 2))],
            ValueError,
            r"teacher_logprobs: row 2 has shape \(1, 2\), expected 2 entries",
        ),
        (VALUES[:5], ValueError, r"has shape \(5,\), expected \(6,\) as the teacher's ids, or a"),
        (np.zeros((3, 4)), ValueError, r"has shape \(3, 4\), expected \(6,\) as the teacher's ids"),
        ((VALUES, OFFSETS + 1), ValueError, "teacher_logprobs offsets: expected the offsets of"),
        ((VALUES[:3], OFFSETS), ValueError, "teacher_logprobs has 3 values, expected 6"),
        ((VALUES,), TypeError, r"expected a tuple \(values, offsets\), got a tuple of 1"),
        ((np.zeros((2, 3)), OFFSETS), TypeError, "values: expected a 1-D array, got rank 2"),
        (VALUES.astype(int), TypeError, "expected floating-point numbers, got dtype int64"),
        (VALUES > 0, TypeError, "expected floating-point numbers, got dtype bool"),
        (VALUES.astype(complex), TypeError, "expected floating-point numbers, got dtype complex"),
        (
            [[-1.0, "-2", -3.0, -4.0], [], [0.0, 0.0]],
            TypeError,
            "teacher_logprobs: row 0, position 1: expected a number or None, got str",
        ),
        (
            [[-1.0, [-2], -3.0, -4.0], [], [0.0, 0.0]],
            TypeError,
            "teacher_logprobs: row 0, position 1: expected a number or None, got list",
        ),
        ([[-1.0, 0, 0, True], [], [0, 0]], TypeError, "row 0, position 3: .* got bool"),
        ([-1.0, -2.0, -3.0], TypeError, "teacher_logprobs: row 0: expected an array"),
        ({"logprobs": VALUES}, TypeError, "teacher_logprobs: expected an array or a tensor, got"),
        (None, TypeError, "teacher_logprobs: expected an array or a tensor, got NoneType"),
    ],
)
def test_wrong_values(
    small: AlignedBatch, values: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        small.student_logprobs(values)


def test_wrong_tensors(small: AlignedBatch) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(TypeError, match=r"teacher_logprobs: .* on meta; pass tensor.cpu\(\)"):
        small.student_logprobs(torch.zeros(6, device="meta"))
    for dtype in (torch.float32, torch.bfloat16):
        learned = torch.zeros(7, requires_grad=True, dtype=dtype)
        with pytest.raises(TypeError, match=r"student_logprobs: .* pass tensor.detach\(\)"):
            small.teacher_logprobs(learned)
    with pytest.raises(TypeError, match="expected floating-point numbers, got dtype int64"):
        small.student_logprobs(torch.zeros(6, dtype=torch.int64))
    if torch.cuda.is_available():
        with pytest.raises(TypeError, match=r"pass tensor.cpu\(\)"):
            small.student_logprobs(torch.zeros(6, device="cuda"))


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"spread": "mean"}, ValueError, "spread: expected 'even', 'last' or 'first', got 'mean'"),
        ({"spread": None}, ValueError, "spread: expected"),
        ({"fill": "nan"}, TypeError, "fill: expected a number, got str"),
        ({"fill": None}, TypeError, "fill: expected a number, got NoneType"),
        ({"fill": True}, TypeError, "fill: expected a number, got bool"),
        ({"fill": 1e300}, ValueError, r"fill is 1e\+300, which does not fit float32"),
        ({"threads": 0}, ValueError, "threads is 0, expected 1 to"),
        ({"threads": 1.5}, TypeError, "threads: expected an integer, got float"),
    ],
)
def test_wrong_keywords(
    small: AlignedBatch, keywords: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        small.student_logprobs(VALUES.astype(np.float32), **keywords)


def test_dense_values_of_another_width(small: AlignedBatch) -> None:
    pair: Any = small._pair
    batch = pair.align_batch(np.array([[0, 1]]), np.array([[0, 1, 2]]))
    for wrong in (np.zeros((1, 3)), np.zeros((2, 2)), np.zeros((1, 2, 1)), np.zeros(3)):
        with pytest.raises(ValueError, match=r"expected \(1, 2\) as the teacher's ids"):
            batch.student_logprobs(wrong)


def test_units_outside_of_their_rows_are_refused(small: AlignedBatch) -> None:
    broken = pickle.loads(pickle.dumps(small))
    broken.teacher_end[-1] = 9
    with pytest.raises(ValueError, match="unit 3: the teacher positions 1 to 9 are not tokens of"):
        broken.student_logprobs(TEACHER)
