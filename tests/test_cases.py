"""Hand-made cases of `cases.json`, run through the Python interface.

The Rust core runs the same file through every engine. A case holds two vocabularies, mapped pairs
of special ids, stop ids, one row of ids per side, optional masks, "resync_bytes" and "on_mismatch",
and either what must come out (units: token ranges, kind, class bits; unmatched: token ranges,
reason) or "error". In a vocabulary a string is a token's text, {"hex"} its bytes, {"byte"} a byte
fallback, {"special"} a control token with its name, {"unused"} an id without a token.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from simct_align import Aligner, AlignmentError, UnitKind, UnmatchedReason, Vocabulary

if TYPE_CHECKING:
    import numpy as np

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "cases.json").read_text(encoding="utf-8")
)
ERRORS = {
    "bytes_differ": (AlignmentError, r"row 0.*byte"),
    "id_out_of_range": (ValueError, r"row 0.*position"),
    "regions_differ": (ValueError, r"row 0.*region"),
}


def has_mismatch(case: dict[str, Any]) -> bool:
    return any(span[4] in ("bytes_differ", "no_resync") for span in case["unmatched"])


ALIGNED = [case for case in CASES if "error" not in case]
MISMATCHED = [case for case in ALIGNED if has_mismatch(case)]
MATCHED = [case for case in ALIGNED if not has_mismatch(case)]


def token_bytes(entry: str | dict[str, Any]) -> bytes:
    if isinstance(entry, str):
        return entry.encode()
    if "text" in entry:
        return entry["text"].encode()
    if "hex" in entry:
        return bytes.fromhex(entry["hex"])
    return bytes([entry["byte"]]) if "byte" in entry else b""


def vocabulary(spec: dict[str, Any]) -> Vocabulary:
    of_kind: dict[str, dict[int, Any]] = {"special": {}, "byte": {}, "unused": {}}
    for token_id, entry in enumerate(spec["tokens"]):
        if isinstance(entry, dict):
            for kind in of_kind.keys() & entry.keys():
                of_kind[kind][token_id] = entry[kind]
    return Vocabulary.from_token_bytes(
        [token_bytes(entry) for entry in spec["tokens"]],
        special=of_kind["special"],
        byte_fallback=list(of_kind["byte"]),
        unused=list(of_kind["unused"]),
        dummy_prefix=spec.get("dummy_prefix", False),
    )


def aligner(case: dict[str, Any]) -> Aligner:
    teacher, student = vocabulary(case["teacher"]), vocabulary(case["student"])
    special = {
        teacher.special_names[t]: student.special_names[s]
        for t, s in case.get("special_tokens", [])
    }
    return Aligner(
        teacher,
        student,
        special_tokens=special or None,
        stop_tokens=tuple(case["stops"]) if "stops" in case else None,
    )


def align(case: dict[str, Any], rows: int = 1, **options: Any) -> Any:
    for key in ("resync_bytes", "on_mismatch"):
        if key in case:
            options[key] = case[key]
    for key in ("teacher_mask", "student_mask"):
        if key in case:
            options[key] = [case[key]] * rows
    return aligner(case).align_batch(
        [case["teacher_ids"]] * rows, [case["student_ids"]] * rows, **options
    )


def spans(columns: Any, names: np.ndarray[Any, Any]) -> list[tuple[int, int, int, int, int]]:
    return list(
        zip(
            columns.teacher_start.tolist(),
            columns.teacher_end.tolist(),
            columns.student_start.tolist(),
            columns.student_end.tolist(),
            names.tolist(),
            strict=True,
        )
    )


def test_names_are_unique() -> None:
    assert [n for n, times in Counter(c["name"] for c in CASES).items() if times > 1] == []


def test_every_kind_reason_and_class_bit_occurs() -> None:
    units = [unit for case in CASES for unit in case.get("units", [])]
    assert {unit[4] for unit in units} == {kind.name.lower() for kind in UnitKind}
    reasons = {span[4] for case in CASES for span in case.get("unmatched", [])}
    assert reasons == {reason.name.lower() for reason in UnmatchedReason}
    assert {unit[5] & bit for unit in units for bit in (1, 2, 4, 8, 16, 32)} == {
        0,
        1,
        2,
        4,
        8,
        16,
        32,
    }
    assert {case["error"] for case in CASES if "error" in case} == set(ERRORS)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_case(case: dict[str, Any]) -> None:
    if "error" in case:
        kind, message = ERRORS[case["error"]]
        with pytest.raises(kind, match=message):
            align(case)
        return
    rows = 3
    batch = align(case, rows=rows)
    units = [(a, b, c, d, UnitKind[kind.upper()]) for a, b, c, d, kind, _ in case["units"]]
    lost = [(a, b, c, d, UnmatchedReason[name.upper()]) for a, b, c, d, name in case["unmatched"]]
    assert spans(batch, batch.kind) == units * rows
    assert spans(batch.unmatched, batch.unmatched.reason) == lost * rows
    assert batch.unit_class.tolist() == [unit[5] for unit in case["units"]] * rows
    assert batch.row_offsets.tolist() == [row * len(units) for row in range(rows + 1)]
    assert batch.unmatched.row_offsets.tolist() == [row * len(lost) for row in range(rows + 1)]


@pytest.mark.parametrize("case", MISMATCHED, ids=lambda case: case["name"])
def test_mismatch_raises_if_asked(case: dict[str, Any]) -> None:
    with pytest.raises(AlignmentError, match="row 0"):
        align(case, on_mismatch="error")


@pytest.mark.parametrize("case", MATCHED, ids=lambda case: case["name"])
def test_what_is_no_mismatch_does_not_raise(case: dict[str, Any]) -> None:
    assert align(case, on_mismatch="error").n_units == len(case["units"])
