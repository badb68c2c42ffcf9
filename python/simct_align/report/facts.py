"""Internal: all figures of a report as plain objects, ready for JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from simct_align import __version__
from simct_align.describe import describe_pair, text_ids
from simct_align.report.advice import advise
from simct_align.report.classes import text_classes
from simct_align.report.sample import describe_sample
from simct_align.report.straddle import STRADDLED_FROM, find_straddling
from simct_align.report.tally import MAX_LISTED_TOKENS, MAX_SHAPE
from simct_align.terminal import visible
from simct_align.units import UnitKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from simct_align import Aligner, Vocabulary
    from simct_align.report.sample import Sample
    from simct_align.report.straddle import Straddling
    from simct_align.report.tally import Tally

_LISTED_CUTS = 30
#: The lengths, in bytes, by which one-sided tokens are counted: up to and with these.
_LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, None)


def make_facts(
    aligner: Aligner,
    tally: Tally,
    sample: Sample,
    *,
    names: tuple[str, str],
    warned: Sequence[str] = (),
) -> dict[str, Any]:
    """Return all figures of a report.

    Args:
        aligner: The aligner.
        tally: The counts of the data.
        sample: The texts to show.
        names: The names of the teacher's and the student's tokenizer.
        warned: Warnings that came with the tokenizers.

    Returns:
        Dictionaries, lists, strings and numbers; `docs/report.md` describes the keys.
    """
    straddling = find_straddling(aligner, tally)
    pair = describe_pair(aligner)
    for side, name in zip(("teacher", "student"), names, strict=True):
        vocabulary, ids = getattr(aligner, side), getattr(tally, f"{side}_ids")
        tokens = int(ids.sum())
        pair[side] |= {
            "name": name,
            "tokens": tokens,
            "tokens_per_byte": tokens / tally.text_bytes if tally.text_bytes else None,
            "different_tokens": int(np.count_nonzero(ids)),
            "ends_of_turn": _ends_of_turn(vocabulary, getattr(aligner.shared, f"{side}_stop_ids")),
            **_one_sided(vocabulary, getattr(aligner.shared, f"{side}_ids")),
        }
    found = {
        "version": __version__,
        **pair,
        "data": {"texts": tally.texts, "bytes": tally.text_bytes},
        "coverage": tally.coverage.counts,
        "methods": _methods(tally),
        "straddling": _describe_straddling(aligner, tally, straddling),
        "shapes": _shapes(tally),
        "cuts": _cuts(aligner, tally),
        "classes": _classes(tally),
        "splits_character": tally.splitting,
        "trimmed": tally.trimmed,
        "sample": describe_sample(aligner, sample.texts(), straddling.student_flag),
    }
    return found | {"warnings": advise(found, warned)}


def _ends_of_turn(vocabulary: Vocabulary, stops: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return the stops that the aligner compares, and where they were found."""
    return [
        {
            "id": token,
            "name": vocabulary.special_names.get(token, f"<{token}>"),
            "sources": list(vocabulary.stop_sources.get(token, ())) or ["the caller"],
        }
        for token in stops.tolist()
    ]


def _one_sided(vocabulary: Vocabulary, shared: NDArray[np.int64]) -> dict[str, Any]:
    """Count the one-sided tokens of a vocabulary by length and by class."""
    data, offsets = vocabulary._native.byte_table()
    ids = np.setdiff1d(text_ids(vocabulary), shared)
    lengths = np.diff(offsets)[ids]
    by_length, low = [], 1
    for high in _LENGTHS:
        label = f"{low}+" if high is None else f"{low}" if low == high else f"{low}–{high}"
        inside = (lengths >= low) & (True if high is None else lengths <= high)
        by_length.append([label, int(inside.sum())])
        low = (high or 0) + 1
    # A byte between neighbours, so that parts of characters of two tokens make no character.
    apart = np.insert(data, offsets[1:-1], 0) if len(offsets) > 2 else data
    starts = (offsets[:-1] + np.arange(len(offsets) - 1))[ids]
    classes = text_classes()
    counts = np.bincount(
        classes.of_spans(apart.tobytes(), starts, starts + lengths), minlength=len(classes.names)
    )
    order = np.argsort(-counts, kind="stable")
    return {
        "one_sided_by_bytes": by_length,
        "one_sided_by_class": [[classes.names[i], int(counts[i])] for i in order if counts[i]],
    }


def _methods(tally: Tally) -> dict[str, Any]:
    """Count the tokens of either side, and the bytes, in units of each kind."""
    return {
        kind.name.lower(): {
            "units": int(tally.units[:, kind].sum()),
            "teacher_tokens": int(tally.teacher_tokens[:, kind].sum()),
            "student_tokens": int(tally.student_tokens[:, kind].sum()),
            "bytes": int(tally.unit_bytes[:, kind].sum()),
        }
        for kind in UnitKind
    }


def _describe_straddling(aligner: Aligner, tally: Tally, found: Straddling) -> dict[str, Any]:
    def longer(vocabulary: Vocabulary, tokens: Iterable[tuple[int, int]]) -> list[list[Any]]:
        return [[token, _text(vocabulary, token), count] for token, count in tokens]

    return {
        "from_share": STRADDLED_FROM,
        "shared_units": int(tally.units[:, UnitKind.SHARED].sum()),
        "straddled_units": found.units,
        "never_straddled_units": found.same_units,
        "tokens": [
            {
                "student_id": token.student_id,
                "text": _text(aligner.student, token.student_id),
                "units": token.units,
                "teacher_share": token.teacher_share,
                "student_share": token.student_share,
                "teacher_longer": longer(aligner.teacher, token.teacher_longer),
                "student_longer": longer(aligner.student, token.student_longer),
            }
            for token in found.tokens
        ],
    }


def _text(vocabulary: Vocabulary, token: int) -> str:
    return visible(vocabulary.token_bytes(token))


def _shapes(tally: Tally) -> dict[str, Any]:
    teacher, student = np.nonzero(tally.shapes)
    return {
        "largest": MAX_SHAPE,
        "counts": [
            [t + 1, s + 1, int(tally.shapes[t, s])]
            for t, s in zip(teacher.tolist(), student.tolist(), strict=True)
        ],
    }


def _cuts(aligner: Aligner, tally: Tally) -> dict[str, Any]:
    most_common, different = tally.most_common_cuts(_LISTED_CUTS)
    return {
        "different": different,
        "longest": MAX_LISTED_TOKENS,
        "longer_units": tally.unlisted,
        "most_common": [
            {
                "count": count,
                "teacher": [_text(aligner.teacher, token) for token in cut.teacher],
                "student": [_text(aligner.student, token) for token in cut.student],
            }
            for cut, count in most_common
        ],
    }


def _classes(tally: Tally) -> list[dict[str, Any]]:
    tokens = tally.student_tokens + tally.teacher_tokens
    order = np.argsort(-tokens.sum(axis=1), kind="stable")
    return [
        {
            "name": text_classes().names[i],
            "units": {kind.name.lower(): int(tally.units[i, kind]) for kind in UnitKind},
            "teacher_tokens": {
                kind.name.lower(): int(tally.teacher_tokens[i, kind]) for kind in UnitKind
            },
            "student_tokens": {
                kind.name.lower(): int(tally.student_tokens[i, kind]) for kind in UnitKind
            },
        }
        for i in order
        if tally.units[i].any()
    ]
