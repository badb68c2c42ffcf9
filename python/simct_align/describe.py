"""Internal: pairs and alignments as plain dictionaries (`--json`) and as terminal output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align import TokenKind, UnmatchedReason
from simct_align.terminal import Cell, Screen, draw_cells, draw_table, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from simct_align import AlignedBatch, Aligner, Spellings, Vocabulary


def text_ids(vocabulary: Vocabulary) -> NDArray[np.int64]:
    """Return the canonical ids of all tokens with bytes: one id per distinct text."""
    may_be_text = np.isin(vocabulary.kinds, (TokenKind.NORMAL, TokenKind.BYTE))
    canonical = np.unique(vocabulary.canonical_ids[may_be_text])
    return canonical[np.diff(vocabulary._native.byte_table()[1])[canonical] > 0]


def _side(vocabulary: Vocabulary, shared_texts: int) -> dict[str, Any]:
    kinds = vocabulary.kinds
    texts = len(text_ids(vocabulary))
    return {
        "vocabulary": len(vocabulary),
        "kinds": {kind.name.lower(): int((kinds == kind).sum()) for kind in TokenKind},
        "distinct_texts": texts,
        "shared_share": shared_texts / texts if texts else 0.0,
        "one_sided": texts - shared_texts,
        "dummy_prefix": vocabulary.dummy_prefix,
        "stops": {str(i): _special_name(vocabulary, i) for i in vocabulary.stop_ids},
        "stop_sources": {str(i): list(found) for i, found in vocabulary.stop_sources.items()},
        "digest": vocabulary.digest,
    }


def _special_name(vocabulary: Vocabulary, token: int) -> str:
    return vocabulary.special_names.get(token, f"<{token}>")


def describe_spellings(spellings: Spellings) -> dict[str, Any]:
    """Return the numbers of one side's one-sided tokens by the length of their spelling."""
    return {
        "spelled_by_length": {str(length): n for length, n in spellings.by_length.items()},
        "unspelled": len(spellings.unspelled),
    }


def describe_pair(aligner: Aligner) -> dict[str, Any]:
    """Return counts of both vocabularies and of their shared tokens."""
    teacher, student, shared = aligner.teacher, aligner.student, aligner.shared
    controls = teacher.kinds[shared.teacher_ids] == TokenKind.SPECIAL
    # Equal vocabularies share every id, including ids that repeat the bytes of another id.
    shared_texts = len(np.unique(teacher.canonical_ids[shared.teacher_ids[~controls]]))
    specials = [
        [
            _special_name(teacher, int(shared.teacher_ids[column])),
            _special_name(student, int(shared.student_ids[column])),
        ]
        for column in np.flatnonzero(controls)
        if column != shared.stop_column
    ]
    stops = [
        [_special_name(vocabulary, token) for token in ids.tolist()]
        for vocabulary, ids in (
            (teacher, shared.teacher_stop_ids),
            (student, shared.student_stop_ids),
        )
    ]
    return {
        "teacher": _side(teacher, shared_texts),
        "student": _side(student, shared_texts),
        "shared": {"texts": shared_texts, "mapped_specials": specials, "stops": stops},
    }


def _unmatched_of(batch: AlignedBatch, row: int) -> list[dict[str, Any]]:
    spans = batch.unmatched
    return [
        {
            "teacher": [int(spans.teacher_start[i]), int(spans.teacher_end[i])],
            "student": [int(spans.student_start[i]), int(spans.student_end[i])],
            "reason": UnmatchedReason(int(spans.reason[i])).name.lower(),
        }
        for i in range(int(spans.row_offsets[row]), int(spans.row_offsets[row + 1]))
    ]


def describe_row(batch: AlignedBatch, row: int) -> dict[str, Any]:
    """Return one row of a batch as `align --json` prints it: ids, units, unmatched spans."""
    units = []
    for unit in batch.units(row):
        shown: dict[str, Any] = {
            "teacher": [unit.teacher.start, unit.teacher.stop],
            "student": [unit.student.start, unit.student.stop],
            "kind": unit.kind.name.lower(),
            "text": unit.text,
        }
        if unit.text.encode() != unit.bytes:
            shown["bytes"] = unit.bytes.hex()
        units.append(shown)
    sides = (batch.teacher, batch.student)
    teacher, student = (
        side.values[int(side.offsets[row]) : int(side.offsets[row + 1])].tolist() for side in sides
    )
    return {
        "teacher_tokens": teacher,
        "student_tokens": student,
        "units": units,
        "unmatched": _unmatched_of(batch, row),
    }


def cells_of(aligner: Aligner, row: dict[str, Any]) -> list[Cell]:
    """Return the units and unmatched spans of a described row as cells, in the order of text."""
    spans = [*row["units"], *({"kind": "unmatched", **span} for span in row["unmatched"])]
    spans.sort(
        key=lambda span: (
            span["teacher"][0] + span["student"][0],
            span["teacher"][1] + span["student"][1],
        )
    )
    return [
        Cell(
            span["kind"],
            _shown_tokens(aligner.teacher, row["teacher_tokens"][slice(*span["teacher"])]),
            _shown_tokens(aligner.student, row["student_tokens"][slice(*span["student"])]),
        )
        for span in spans
    ]


def _shown_tokens(vocabulary: Vocabulary, ids: Sequence[int]) -> list[str]:
    return [visible(vocabulary.token_bytes(i)) or _special_name(vocabulary, i) for i in ids]


def draw_row(screen: Screen, aligner: Aligner, row: dict[str, Any], title: str) -> None:
    """Draw one described row: a heading with its counts, then its cells."""
    units, unmatched = row["units"], row["unmatched"]
    multi = sum(unit["kind"] == "multi" for unit in units)
    counts = (
        f"{len(row['teacher_tokens'])} and {len(row['student_tokens'])} tokens, "
        f"{len(units)} units, {multi} of several tokens"
    )
    if unmatched:
        counts += ", " + screen.paint(
            f"{len(unmatched)} unmatched span{'s' * (len(unmatched) > 1)}", "red"
        )
    screen.line(f"{screen.paint(title, 'bold')}  {counts}")
    draw_cells(screen, cells_of(aligner, row))
    screen.line()


def draw_coverage(screen: Screen, counts: dict[str, Any]) -> None:
    """Draw the coverage of all texts: tokens in units, and unmatched tokens by reason."""
    rows = [["", "tokens", "in units", "share", "unmatched"]]
    reasons: dict[str, int] = {}
    for side in ("teacher", "student"):
        tokens, inside = counts[f"{side}_tokens"], counts[f"{side}_tokens_in_units"]
        outside = counts[f"{side}_unmatched"]
        share = f"{inside / tokens:.1%}" if tokens else "–"
        rows.append([side, f"{tokens:,}", f"{inside:,}", share, f"{sum(outside.values()):,}"])
        for reason, number in outside.items():
            reasons[reason] = reasons.get(reason, 0) + number
    units = {name: number for name, number in counts["units"].items() if number}
    screen.line(
        screen.paint(f"Coverage of {counts['rows']:,} text{'s' * (counts['rows'] != 1)}", "bold")
    )
    draw_table(screen, rows)
    kinds = ", ".join(f"{number:,} {name}" for name, number in units.items()) or "none"
    screen.line(f"  units: {kinds}; {counts['units_without_prefix']:,} without a prefix")
    if any(reasons.values()):
        named = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items() if number)
        screen.line(f"  unmatched tokens: {named}")


@dataclass
class CoverageSum:
    """The sum of the coverage of several batches."""

    counts: dict[str, Any] = field(default_factory=dict)

    def add(self, coverage: dict[str, Any]) -> None:
        """Add one batch's `AlignmentCounts.as_dict()`."""
        _add_counts(self.counts, coverage)


def _add_counts(total: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict):
            _add_counts(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value
