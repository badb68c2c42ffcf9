"""Internal: the plots of a report, drawn by Vega-Lite as SVG.

Colours are CSS variables of the page, so that plots follow its light and dark form. Every plot says
its numbers as text too, and the page has them as a table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from simct_align.report.numbers import count_text, share_text

if TYPE_CHECKING:
    from collections.abc import Sequence

_VEGA_LITE = "5.20"
_CONFIG = {
    "background": "transparent",
    "font": "sans-serif",
    "axis": {"grid": False, "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal"},
    "header": {"labelFontSize": 13, "labelFontWeight": "bold", "title": None},
    "view": {"stroke": None},
}
_BAR = "var(--bar)"
#: A phone's screen, without the page's margins.
_WIDTH = 350
_SPACING = 8
_LISTED_CLASSES = 12


def _svg(spec: dict[str, Any]) -> str:
    import vl_convert

    svg: str = vl_convert.vegalite_to_svg({"config": _CONFIG, **spec}, vl_version=_VEGA_LITE)
    return svg


def _bars(rows: Sequence[dict[str, Any]], label: str, *, step: int = 24) -> str:
    """Draw a bar for every row of `name`, `value` and `text`, one panel per `side`, in order.

    Without rows there is no plot: an empty string.
    """
    if not rows:
        return ""
    sides = list(dict.fromkeys(row["side"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    # A browser's letters may be wider than those that the library measures: 8 pixels are enough.
    room = 8 + 8 * max(len(row["text"]) for row in rows)  # for the text after a bar
    label_room = 8 + 8 * max(map(len, names)) + (24 if label else 0)
    width = (_WIDTH - label_room) // len(sides) - room - _SPACING
    largest = max((row["value"] for row in rows), default=0) or 1
    x = {
        "field": "value",
        "type": "quantitative",
        "axis": None,
        "scale": {"domain": [0, largest * (1 + room / width)]},
    }
    return _svg(
        {
            "data": {"values": list(rows)},
            "facet": {"column": {"field": "side", "sort": sides, "type": "nominal"}},
            "spacing": _SPACING,
            "padding": {"left": max(label_room - 6 * max(map(len, names)) - 12, 5)},
            "spec": {
                "width": width + room,
                "height": {"step": step},
                "encoding": {
                    "y": {
                        "field": "name",
                        "type": "nominal",
                        "sort": names,
                        "axis": {
                            "title": label or None,
                            "labelLimit": 0,
                            "ticks": False,
                            "domain": False,
                        },
                    },
                    "x": x,
                },
                "layer": [
                    {"mark": {"type": "bar", "color": _BAR, "minBandSize": 2}},
                    {
                        "mark": {"type": "text", "align": "left", "dx": 4, "fontSize": 11},
                        "encoding": {"text": {"field": "text", "type": "nominal"}},
                    },
                ],
            },
        }
    )


def draw_kinds(rows: Sequence[dict[str, Any]]) -> str:
    """Draw the tokens of either side by what they are in: `name`, `teacher`, `student`, shares."""
    return _bars(
        [
            {
                "side": side,
                "name": row["name"],
                "value": row[f"{side}_share"],
                "text": share_text(row[f"{side}_share"]),
            }
            for side in ("teacher", "student")
            for row in rows
        ],
        "",
    )


def draw_one_sided(facts: dict[str, Any], key: str, label: str) -> str:
    """Draw the one-sided tokens of either vocabulary by their length or class."""
    shown = dict[str, int]()
    for side in ("teacher", "student"):
        for name, count in facts[side][key]:
            shown[name] = shown.get(name, 0) + count
    names = list(shown)
    if key == "one_sided_by_class":
        names = sorted(names, key=lambda name: -shown[name])[:_LISTED_CLASSES]
    return _bars(
        [
            {"side": side, "name": name, "value": counts.get(name, 0),
             "text": count_text(counts.get(name, 0))}
            for side in ("teacher", "student")
            for counts in (dict(facts[side][key]),)
            for name in names
        ],
        label,
    )  # fmt: skip


def draw_classes(rows: Sequence[dict[str, Any]]) -> str:
    """Draw the share of the student's tokens that are in MULTI units, by class: `name`, `share`."""
    return _bars(
        [
            {"side": "student tokens in multi units", "name": row["name"], "value": row["share"],
             "text": share_text(row["share"])}
            for row in rows[:_LISTED_CLASSES]
        ],
        "",
    )  # fmt: skip


def draw_shapes(shapes: dict[str, Any]) -> str:
    """Draw the numbers of MULTI units by their teacher and student tokens as a heat map."""
    largest = shapes["largest"]

    def label(number: int) -> str:
        return f"{number}" if number <= largest else f"{largest + 1}+"

    counts = shapes["counts"]
    reach = [max((row[side] for row in counts), default=1) for side in (0, 1)]
    rows = [
        {"teacher": label(t), "student": label(s), "units": n, "text": _short(n)}
        for t, s, n in counts
    ]
    axis = {"labelAngle": 0, "ticks": False, "domain": False}

    def side(name: str, end: int) -> dict[str, Any]:
        values = [label(number) for number in range(1, end + 1)]
        return {
            "field": name,
            "type": "ordinal",
            "scale": {"domain": values},
            "axis": {**axis, "title": f"{name} tokens"},
        }

    return _svg(
        {
            "data": {"values": rows},
            "width": {"step": 34},
            "height": {"step": 28},
            "encoding": {
                "x": {**side("student", reach[1])},
                "y": {**side("teacher", reach[0])},
            },
            "layer": [
                {
                    "mark": {"type": "rect", "color": _BAR, "cornerRadius": 3},
                    "encoding": {
                        "fillOpacity": {
                            "field": "units",
                            "type": "quantitative",
                            "scale": {"type": "log", "range": [0.12, 0.6]},
                            "legend": None,
                        }
                    },
                },
                {
                    "mark": {"type": "text", "fontSize": 11},
                    "encoding": {"text": {"field": "text", "type": "nominal"}},
                },
            ],
        }
    )


def _short(number: int) -> str:
    """Return a number in at most four characters."""
    for size, sign in ((1_000_000_000, "G"), (1_000_000, "M"), (1_000, "k")):
        if number >= size:
            value = number / size
            return f"{value:.1f}{sign}" if value < 9.95 else f"{value:.0f}{sign}"
    return f"{number}"
