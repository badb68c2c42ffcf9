"""Draw the figures of the documentation with the package itself.

`python tools/draw_figures.py` writes them to `docs/figures`. `--check` draws them again and
compares them with the files (exit code 1 if they differ), which a test does too. The tokenizers are
the bundled ones. The figure of the null test is drawn from `benches/record/null.csv`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from simct_align import Aligner, UnitKind
from simct_align.demo import demo_tokenizers

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benches"), str(ROOT / "tools")]

from svg import FAINT, GRID, INK, Drawing  # noqa: E402

from _exact_models import Pair  # noqa: E402
from _null_values import null_values  # noqa: E402
from null import OBJECTIVES, values  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from simct_align import Unit, Vocabulary

FIGURES = ROOT / "docs" / "figures"
RECORD = ROOT / "benches" / "record" / "null.csv"
SIDES = ("teacher", "student")
#: Fill, frame and its dashes, by the kind of a unit.
KINDS = {UnitKind.SHARED: ("#dcebfa", "#2f6fb0", ""), UnitKind.MULTI: ("#fde5c4", "#b35c00", "5 3")}
TOKEN_FILL, TOKEN_STROKE = "#f2f4f7", "#7d8794"


def visible(data: bytes) -> str:
    """Return a token's text with its white space visible."""
    return data.decode().replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def tokens_of(aligner: Aligner, unit: Unit, row: list[list[int]], side: int) -> list[bytes]:
    """Return the bytes of a unit's tokens on a side, without a dummy prefix."""
    vocabulary = getattr(aligner, SIDES[side])
    data = [vocabulary.token_bytes(row[side][place]) for place in getattr(unit, SIDES[side])]
    extra = sum(map(len, data)) - len(unit.bytes)
    data[0] = data[0][extra:]
    return [token for token in data if token]


def units() -> Drawing:
    """Draw a text, its tokens on both sides, and the units between them."""
    text = "Each of 12 boxes weighs 345 kg."
    aligner = Aligner(*demo_tokenizers())
    row = [getattr(aligner, side).encode_batch([text])[0] for side in SIDES]
    found = aligner.align_batch([row[0]], [row[1]]).units(0)
    cell, left, height = 21, 86, 34
    tops = (24, 104, 184)  # teacher, units, student
    drawing = Drawing(
        left + cell * len(text) + 24, 282, "The units of a text",
        f"The tokens of a teacher and a student for {text!r}, and between them the units: "
        + ", ".join(f"{unit.text!r} {unit.kind.name}" for unit in found),
    )  # fmt: skip
    for label, top in zip(("teacher", "units", "student"), tops, strict=True):
        drawing.text(left - 12, top + 22, label, anchor="end", bold=label == "units")

    def token(x: float, top: float, data: bytes, fill: str, stroke: str, dashes: str = "") -> None:
        width = cell * len(data)
        drawing.box(x + 1.5, top, width - 3, height, fill=fill, stroke=stroke, dashes=dashes,
                    thickness=1.5)  # fmt: skip
        drawing.text(x + width / 2, top + 22, visible(data), font="mono", anchor="middle")

    x = float(left)
    for unit in found:
        drawing.line(x, tops[0] - 8, x, tops[2] + height + 8, dashes="3 3")
        token(x, tops[1], unit.bytes, *KINDS[unit.kind])
        for side, top in ((0, tops[0]), (1, tops[2])):
            inner = x
            for data in tokens_of(aligner, unit, row, side):
                token(inner, top, data, TOKEN_FILL, TOKEN_STROKE)
                inner += cell * len(data)
        x += cell * len(unit.bytes)
    drawing.line(x, tops[0] - 8, x, tops[2] + height + 8, dashes="3 3")
    place = float(left)
    for kind, words in (
        (UnitKind.SHARED, "SHARED: one token on both sides"),
        (UnitKind.MULTI, "MULTI: several tokens on one side or both"),
    ):
        fill, stroke, dashes = KINDS[kind]
        drawing.box(place, 246, 24, 18, fill=fill, stroke=stroke, dashes=dashes, thickness=1.5)
        drawing.text(place + 32, 260, words, size=13, fill=FAINT)
        place += 290
    return drawing


#: Texts that two exact models agree on, with their probabilities.
INDENTED = {"if x:\n  return y": 0.5, "if x:\n  y": 0.25, "if x:\n    y": 0.25}
#: The objectives of the figure of text events, by their names in `benches/null.py`.
REPORTED = {
    "shared vocabulary": "shared",
    "SimCT, mean": "realized, mean",
    "text events": "text events",
}


def next_tokens(pair: Pair, before: str) -> list[dict[str, float]]:
    """Return both models' next tokens after a text, with their probabilities."""
    p = np.array(list(INDENTED.values()))
    found = []
    for model in (pair.teacher, pair.student):
        vocabulary: Vocabulary = model.vocabulary
        prefix = vocabulary.encode_batch([before])[0]
        # The first text's path begins with the tokens of the prefix, as that of every other does.
        assert all(ids[: len(prefix)] == prefix for ids in model.ids)
        row = model.row(int(model.nodes[0][len(prefix)]), p)
        found.append({visible(vocabulary.token_bytes(t)): share for t, share in row.items()})
    return found


def text_events() -> Drawing:
    """Draw the next tokens of two models that agree, and what objectives report for them."""
    aligner = Aligner(*demo_tokenizers())
    pair = Pair.of(aligner.teacher, aligner.student, INDENTED)
    before = "if x:\n"
    rows = next_tokens(pair, before)
    names = list(REPORTED.values())
    reported = values(pair, INDENTED, {name: OBJECTIVES[name] for name in names}, pair.whole)
    drawing = Drawing(
        820, 320, "Two models that agree on every text",
        "Next tokens of two exact models, and the divergence that objectives report for them: "
        + ", ".join(f"{name} {reported[REPORTED[name]].null:.2f}" for name in REPORTED),
    )  # fmt: skip
    drawing.text(24, 34, "Both models give these texts the same probabilities:", bold=True)
    for number, (text, share) in enumerate(INDENTED.items()):
        drawing.text(24 + 262 * number, 62, f"{share:.0%}", size=13)
        drawing.text(64 + 262 * number, 62, visible(text.encode()), font="mono", size=13)
    drawing.line(24, 82, 796, 82)
    for side, place in enumerate((24, 290)):
        drawing.text(place, 110, f"{SIDES[side]}'s next token", bold=True)
        drawing.text(place, 130, "after", size=13, fill=FAINT)
        drawing.text(place + 40, 130, visible(before.encode()), font="mono", size=13)
        for number, (token, share) in enumerate(
            sorted(rows[side].items(), key=lambda e: len(e[0]))
        ):
            y = 162 + 32 * number
            drawing.text(place, y, token, font="mono")
            drawing.box(place + 84, y - 14, 110 * share, 18, fill="#8fb7df", radius=2)
            drawing.text(place + 90 + 110 * share, y, f"{share:.0%}", size=13)
    drawing.text(560, 110, "divergence that is reported", bold=True)
    drawing.text(560, 130, "nats per byte of text; 0 is right", size=13, fill=FAINT)
    top = max(value.null for value in reported.values())
    for number, (label, name) in enumerate(REPORTED.items()):
        y, value = 160 + 44 * number, reported[name].null
        drawing.text(560, y, label, size=13)
        drawing.box(560, y + 6, 1 + 170 * value / top, 14, fill="#e69f56", radius=2)
        drawing.text(570 + 170 * value / top, y + 18, f"{abs(value):.2f}", size=13)
    for number, words in enumerate((
        "The space before y is a part of the teacher's token, and not of the student's.",
        "As tokens the two rows differ, as texts they are the same.",
    )):  # fmt: skip
        drawing.text(24, 278 + 20 * number, words, size=13, fill=FAINT)
    return drawing


#: Objectives in the figure of the null test: name, mark and colour.
MARKS = {
    "realized, mean": ("SimCT, mean", "triangle", "#b35c00"),
    "realized, event": ("SimCT, event", "diamond", "#8a5fb0"),
    "shared": ("shared vocabulary", "square", "#2f6fb0"),
    "text events": ("text events", "circle", "#1b7f5c"),
}
LEAST, MOST = 1e-5, 10.0


def null_test() -> Drawing:
    """Draw median and range over pairs of what objectives report, by corpus."""
    found = null_values(RECORD)
    corpora = list(found["shared"])
    left, right, top, step = 130, 760, 64, 46
    drawing = Drawing(
        820, top + step * len(corpora) + 70, "What objectives report for two models that agree",
        "Median and range over ordered pairs of tokenizers, in nats per byte of text; 0 is right. "
        + "; ".join(
            f"{corpus}: " + ", ".join(
                f"{label} {abs(median(found[name][corpus])):.4f}"
                for name, (label, _, _) in MARKS.items()
            )
            for corpus in corpora
        ),
    )  # fmt: skip

    def place(value: float) -> float:
        share = (np.log10(max(value, LEAST)) - np.log10(LEAST)) / np.log10(MOST / LEAST)
        return left + (right - left) * float(share)

    bottom = top + step * len(corpora)
    x = float(left)
    for label, shape, colour in MARKS.values():
        drawing.mark(x, 30, shape, colour)
        drawing.text(x + 12, 35, label, size=13)
        x += 160
    for power in range(-5, 2):
        drawing.line(place(10.0**power), top - 10, place(10.0**power), bottom)
        words = f"{10.0**power:g}" if power > -5 else "0.00001 or less"
        drawing.text(place(10.0**power), bottom + 20, words, size=12, anchor="middle", fill=FAINT)
    for number, corpus in enumerate(corpora):
        y = top + step * number
        drawing.text(left - 16, y + 22, corpus.replace("_", " "), size=13, anchor="end")
        drawing.line(left, y + 39, right, y + 39, stroke=GRID, width=0.5)
        for line, (name, (_, shape, colour)) in enumerate(MARKS.items()):
            nulls = found[name][corpus]
            middle = y + 3 + 10 * line
            drawing.line(place(min(nulls)), middle, place(max(nulls)), middle, stroke=colour,
                         width=2)  # fmt: skip
            drawing.mark(place(median(nulls)), middle, shape, colour, radius=4.5)
    drawing.text(
        (left + right) / 2, bottom + 48,
        "nats per byte of text, median and range over ordered pairs of tokenizers; 0 is right",
        size=13, anchor="middle",
    )  # fmt: skip
    return drawing


def continuations() -> Drawing:
    """Draw the student's single tokens that begin along the teacher's path of a number."""
    text, number = "There are 123 boxes.", "123"
    aligner = Aligner(*demo_tokenizers())
    batch = aligner.align_texts([text])
    (place,) = (place for place, unit in enumerate(batch.units(0)) if unit.text == number)
    by_path: dict[tuple[int, ...], list[str]] = {}
    for found in aligner.continuations(batch, max_path=8).of_unit(place):
        assert len(found.student) == 1, "single tokens of the student"
        by_path.setdefault(found.teacher[:-1], []).append(found.text)
    drawing = Drawing(
        820, 300, "On-path continuations of a number",
        f"In {text!r} the teacher writes {number} with one token per digit. "
        + " ".join(
            f"After {len(path)} of these tokens one more token gives {', '.join(texts)}."
            for path, texts in by_path.items()
        ),
    )  # fmt: skip
    drawing.text(24, 36, "the text takes")
    drawing.text(136, 36, visible(text.encode()), font="mono")
    drawing.text(24, 92, "teacher's tokens", bold=True)
    drawing.text(24, 176, "single tokens of the student", bold=True)
    drawing.text(24, 196, "that these, and one more,", size=13, fill=FAINT)
    drawing.text(24, 214, "would spell", size=13, fill=FAINT)
    left, width = 270.0, 240.0
    for depth, digit in enumerate(number):
        x = left + width * depth
        if depth:
            drawing.line(x - width + 44, 87, x - 4, 87, stroke=INK, width=1.5)
        drawing.box(x, 70, 40, 34, fill=TOKEN_FILL, stroke=TOKEN_STROKE, thickness=1.5)
        drawing.text(x + 20, 92, digit, font="mono", anchor="middle")
    for path, texts in by_path.items():
        x = left + width * (len(path) - 1)
        drawing.line(x + 20, 104, x + 20, 146, stroke=INK, width=1.5)
        for rank, spelled in enumerate(texts):
            column, line = rank % 4, rank // 4
            is_text = spelled == number
            fill, stroke, dashes = KINDS[UnitKind.MULTI if is_text else UnitKind.SHARED]
            drawing.box(x + 54 * column, 150 + 36 * line, 48, 30, fill=fill, stroke=stroke,
                        dashes=dashes, thickness=1.5)  # fmt: skip
            drawing.text(x + 24 + 54 * column, 170 + 36 * line, spelled, font="mono",
                         anchor="middle")  # fmt: skip
    drawing.text(
        24, 280, "One forward pass of either model scores all of them. The dashed frame is the "
        "unit that the text took.", size=13, fill=FAINT,
    )  # fmt: skip
    return drawing


FIGURE: dict[str, Callable[[], Drawing]] = {
    "units.svg": units,
    "text_events.svg": text_events,
    "null.svg": null_test,
    "continuations.svg": continuations,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if not parser.parse_args().check:
        for name, draw in FIGURE.items():
            draw().save(FIGURES / name)
            print(FIGURES / name)
        return 0
    differ = [name for name, draw in FIGURE.items() if not is_equal(name, draw())]
    for name in differ:
        print(f"{name}: differs from what this script draws", file=sys.stderr)
    return 1 if differ else 0


def is_equal(name: str, drawing: Drawing) -> bool:
    path = FIGURES / name
    return path.is_file() and path.read_text(encoding="utf-8") == str(drawing)


if __name__ == "__main__":
    raise SystemExit(main())
