"""Internal: a report as one HTML file, from its figures."""

from __future__ import annotations

import importlib.util
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

from simct_align.report import charts
from simct_align.report.numbers import count_text, share_text

if TYPE_CHECKING:
    from jinja2 import Environment

#: Modules that the page needs, of the extra `report`.
_NEEDED = ("jinja2", "vl_convert")

_KINDS = (
    ("in shared units", "shared", "one token on both sides"),
    ("in multi units", "multi", "several tokens on at least one side"),
    ("special", "special", "control tokens that are mapped onto each other"),
)


def check_page() -> None:
    """Raise an error at once if a library that makes the page is missing.

    Raises:
        ModuleNotFoundError: The extra `report` is not installed.
    """
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"the page of a report needs {name}: pip install 'simct-align[report]'", name=name
            )


def _environment() -> Environment:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"n": count_text, "share": share_text}
    return environment


def _read(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _for_script(value: object) -> str:
    """Write JSON that stands inside of a script element: without any character of HTML."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _kind_rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tokens of either side by what they are in; the rows add up to all tokens."""
    coverage = facts["coverage"]
    rows = [
        {"name": name, "what": what, "units": facts["methods"][kind]["units"]}
        | {side: facts["methods"][kind][f"{side}_tokens"] for side in ("teacher", "student")}
        for name, kind, what in _KINDS
    ]
    for reason in coverage["teacher_unmatched"]:
        counts = {side: coverage[f"{side}_unmatched"][reason] for side in ("teacher", "student")}
        if any(counts.values()):
            name = reason.replace("_", " ")
            rows.append(
                {"name": f"unmatched: {name}", "what": "in no unit", "units": None, **counts}
            )
    for row in rows:
        for side in ("teacher", "student"):
            row[f"{side}_share"] = row[side] / max(coverage[f"{side}_tokens"], 1)
    return rows


def _class_rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for row in facts["classes"]:
        tokens = sum(row["student_tokens"].values())
        rows.append(
            {
                **row,
                "tokens": tokens,
                "multi": row["student_tokens"]["multi"],
                "share": row["student_tokens"]["multi"] / max(tokens, 1),
            }
        )
    return rows


def _one_sided_table(facts: dict[str, Any], key: str) -> list[tuple[str, str, str]]:
    teacher, student = (dict(facts[side][key]) for side in ("teacher", "student"))
    return [
        (name, count_text(teacher.get(name, 0)), count_text(student.get(name, 0)))
        for name in dict.fromkeys([*teacher, *student])
    ]


def _at_least(number: int, shapes: dict[str, Any]) -> str:
    largest: int = shapes["largest"]
    return f"{number}" if number <= largest else f"{largest + 1} or more"


def _sampled(facts: dict[str, Any]) -> str:
    """Say which part of the data the page shows in full."""
    shown, texts = facts["sample"]["texts"], facts["data"]["texts"]
    cut = sum(text["total_spans"] > len(text["spans"]) for text in shown)
    if len(shown) == texts:
        said = f"All {texts:,} texts." if texts != 1 else "The only text."
    else:
        coverage = facts["coverage"]
        unmatched = any(
            any(coverage[f"{side}_unmatched"].values()) for side in ("teacher", "student")
        )
        more = ", with some more of those that have unmatched tokens" if unmatched else ""
        said = (
            f"A random sample: {len(shown):,} of {texts:,} texts{more}. The numbers above are of "
            "all texts."
        )
    return said + (f" {cut:,} long ones are cut." if cut else "")


def make_page(facts: dict[str, Any]) -> str:
    """Return the page of a report.

    Args:
        facts: All figures, from `make_facts`.

    Returns:
        One HTML document that needs nothing else.

    Raises:
        ModuleNotFoundError: The extra `report` is not installed.
    """
    check_page()
    from markupsafe import Markup

    kinds, classes = _kind_rows(facts), _class_rows(facts)
    shapes = facts["shapes"]
    plots = {
        "kinds": charts.draw_kinds(kinds),
        "classes": charts.draw_classes(classes),
        "shapes": charts.draw_shapes(shapes) if shapes["counts"] else "",
        "lengths": charts.draw_one_sided(facts, "one_sided_by_bytes", "bytes"),
        "systems": charts.draw_one_sided(facts, "one_sided_by_class", ""),
    }
    template = _environment().from_string(_read("page.html.jinja"))
    return template.render(
        facts=facts,
        kinds=kinds,
        classes=classes,
        class_table=[
            (
                row["name"],
                count_text(row["tokens"]),
                count_text(row["multi"]),
                share_text(row["share"]),
            )
            for row in classes
        ],
        lengths=_one_sided_table(facts, "one_sided_by_bytes"),
        systems=_one_sided_table(facts, "one_sided_by_class"),
        shapes=[
            (f"{_at_least(t, shapes)} × {_at_least(s, shapes)}", count_text(n))
            for t, s, n in shapes["counts"]
        ],
        sampled=_sampled(facts),
        # The only parts that are not escaped: SVG and files of this package, and JSON without HTML.
        plots={name: Markup(svg) for name, svg in plots.items()},
        style=Markup(_read("page.css")),
        script=Markup(_read("page.js")),
        data=Markup(_for_script(facts)),
    )
