"""Internal: the texts that a report shows: a random sample, and more with unmatched tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align import UnmatchedReason
from simct_align.report.classes import text_classes
from simct_align.terminal import visible
from simct_align.units import UnitKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from simct_align import AlignedBatch, Aligner, Vocabulary
    from simct_align.report.columns import UnitTable

#: Texts that a report shows; of those with unmatched tokens so many more.
SHOWN_TEXTS, SHOWN_UNMATCHED_TEXTS = 40, 8
#: A longer text is cut after so many units and unmatched spans, and so are all texts together.
SHOWN_SPANS_OF_TEXT, SHOWN_SPANS = 400, 6_000
#: And before the span with which it has more tokens, of both sides together: a span may be a text.
SHOWN_TOKENS_OF_TEXT = 2_000
_UNMATCHED = len(UnitKind)  # kinds of spans: those of units, then those of unmatched spans


@dataclass(frozen=True)
class ShownText:
    """One text of the sample.

    Attributes:
        number: Number of the text, from 0.
        line: Line of the file, from 1; 0 without a file.
        spans: Units and unmatched spans in the order of the text, int64 `[spans, 4]`: teacher
            tokens, student tokens, kind (a `UnitKind`, or 3 + an `UnmatchedReason`), class of the
            text.
        total_spans: How many there are; more than in `spans` if the text is cut.
        teacher: The teacher's ids in these spans.
        student: The student's ids.
    """

    number: int
    line: int
    spans: NDArray[np.int64]
    total_spans: int
    teacher: NDArray[np.int64]
    student: NDArray[np.int64]


@dataclass
class _Reservoir:
    """A uniform sample of bounded size: the texts with the smallest random numbers."""

    size: int
    texts: list[tuple[float, ShownText]] = field(default_factory=list)

    def places(self, keys: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return which of new texts with these random numbers may be in the sample."""
        places = np.argsort(keys, kind="stable")[: self.size]
        if len(self.texts) < self.size:
            return places
        return places[keys[places] < self.texts[-1][0]]

    def add(self, texts: list[tuple[float, ShownText]]) -> None:
        """Add texts, and keep as many as there is room for."""
        self.texts = sorted([*self.texts, *texts], key=lambda item: item[0])[: self.size]


class Sample:
    """Chooses the texts that a report shows, batch by batch, with memory for them alone.

    Args:
        seed: Seed of the random numbers. The batches in which texts come do not matter.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._any = _Reservoir(SHOWN_TEXTS)
        self._unmatched = _Reservoir(SHOWN_UNMATCHED_TEXTS)
        self._texts = 0

    def add(self, batch: AlignedBatch, table: UnitTable, lines: Sequence[int]) -> None:
        """Consider the texts of a batch.

        Args:
            batch: The batch, one row per text.
            table: Its units.
            lines: The lines of the texts.
        """
        keys = self._random.random(len(batch))
        has_unmatched = np.diff(batch.unmatched.row_offsets) > 0
        for reservoir, rows in (
            (self._any, np.arange(len(batch))),
            (self._unmatched, np.flatnonzero(has_unmatched)),
        ):
            chosen = rows[reservoir.places(keys[rows])].tolist()
            reservoir.add(
                [
                    (float(keys[row]), _shown(batch, table, row, self._texts + row, lines[row]))
                    for row in chosen
                ]
            )
        self._texts += len(batch)

    def texts(self) -> list[ShownText]:
        """Return the sample in the order of the data."""
        chosen = {text.number: text for _, text in [*self._any.texts, *self._unmatched.texts]}
        return [chosen[number] for number in sorted(chosen)]


def _shown(batch: AlignedBatch, table: UnitTable, row: int, number: int, line: int) -> ShownText:
    units = slice(int(batch.row_offsets[row]), int(batch.row_offsets[row + 1]))
    spans = batch.unmatched
    others = slice(int(spans.row_offsets[row]), int(spans.row_offsets[row + 1]))
    columns = [
        np.concatenate([a[units], b[others]]).astype(np.int64)
        for a, b in (
            (batch.teacher_start, spans.teacher_start),
            (batch.teacher_end, spans.teacher_end),
            (batch.student_start, spans.student_start),
            (batch.student_end, spans.student_end),
            (batch.kind, spans.reason + np.uint8(_UNMATCHED)),
            (table.text_class, np.zeros(len(spans.reason), np.uint8)),
        )
    ]
    first_teacher, end_teacher, first_student, end_student, kind, text_class = columns
    order = np.lexsort((end_teacher + end_student, first_teacher + first_student))
    # Spans hold all tokens of the row in their order, so the ends are sums of tokens.
    tokens = (end_teacher + end_student)[order]
    shown = order[
        : min(np.searchsorted(tokens, SHOWN_TOKENS_OF_TEXT, "right"), SHOWN_SPANS_OF_TEXT)
    ]
    columns = [end_teacher - first_teacher, end_student - first_student, kind, text_class]
    return ShownText(
        number,
        line,
        np.stack(columns, axis=1)[shown],
        len(order),
        *(
            side.row(row)[: int(end[shown].max(initial=0))].astype(np.int64)
            for side, end in ((batch.teacher, end_teacher), (batch.student, end_student))
        ),
    )


def describe_sample(
    aligner: Aligner, texts: Sequence[ShownText], straddled: NDArray[np.bool_]
) -> dict[str, Any]:
    """Return the sample as plain objects.

    Args:
        aligner: The aligner.
        texts: The texts.
        straddled: Whether a SHARED unit of each of the student's tokens counts as straddled.

    Returns:
        `tokens`: per side the tokens that occur, as [id, printable text, bytes in hex]; `classes`
        and `kinds`: names; `texts`: per text its number, its line, how many of its spans are shown,
        the places of its tokens in `tokens`, and the spans as [teacher tokens, student tokens,
        kind, class, 1 if straddled].
    """
    kept, room = list[ShownText](), SHOWN_SPANS
    for text in texts:
        if len(text.spans) <= room:
            kept.append(text)
            room -= len(text.spans)
    sides = {
        "teacher": [text.teacher for text in kept],
        "student": [text.student for text in kept],
    }
    none = np.zeros(0, np.int64)
    different = {side: np.unique(np.concatenate([none, *ids])) for side, ids in sides.items()}
    names = text_classes().names
    return {
        "tokens": {
            side: [_token(getattr(aligner, side), int(token)) for token in ids]
            for side, ids in different.items()
        },
        "classes": list(names),
        "kinds": [
            *(kind.name.lower() for kind in UnitKind),
            *(reason.name.lower() for reason in UnmatchedReason),
        ],
        "texts": [
            {
                "number": text.number,
                "line": text.line,
                "spans": _with_flag(text, straddled).tolist(),
                "total_spans": text.total_spans,
                **{
                    side: np.searchsorted(different[side], getattr(text, side)).tolist()
                    for side in sides
                },
            }
            for text in kept
        ],
    }


def _with_flag(text: ShownText, straddled: NDArray[np.bool_]) -> NDArray[np.int64]:
    first = np.cumsum(text.spans[:, 1]) - text.spans[:, 1]
    # A span at the end may have no token of the student; it is not SHARED, so any id will do.
    ids = np.append(text.student, 0)[first]
    flag = (text.spans[:, 2] == UnitKind.SHARED) & straddled[ids]
    return np.column_stack([text.spans, flag])


def _token(vocabulary: Vocabulary, token: int) -> list[Any]:
    data = vocabulary.token_bytes(token)
    name = vocabulary.special_names.get(token, f"<{token}>")
    return [token, visible(data) if data else name, data.hex()]
