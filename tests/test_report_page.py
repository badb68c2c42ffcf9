"""The page of a report in headless Chromium, as a person uses it.

`make report-test` needs a Chromium; elsewhere these tests are left out where there is none.
"""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from simct_align import Aligner
from simct_align.demo import demo_passage, demo_tokenizers
from support.paths import LEFT_OUT
from support.texts import HOSTILE_TEXTS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

    from simct_align.report import Report

_CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TEXTS = [*demo_passage(), *HOSTILE_TEXTS, "w" * 2_000]


def chromium() -> str:
    found = next(filter(None, map(shutil.which, _CHROMIUMS)), None)
    if found is None:
        said = f"Chromium, as one of {', '.join(_CHROMIUMS)}"
        if os.environ.get("SIMCT_NEEDS_CHROMIUM"):
            pytest.fail(f"needs {said}")
        pytest.skip(f"{LEFT_OUT}{said}")
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses to run as root with its sandbox, and containers have little /dev/shm.
        flags = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        launched = playwright.chromium.launch(executable_path=path, args=flags)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Aligner, Report, Path]:
    aligner = Aligner(*demo_tokenizers())
    report = aligner.report(TEXTS, teacher_name="<i>teacher</i>")
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.save(path)
    return aligner, report, path


class Opened:
    """The page, with all that its console and network said."""

    def __init__(self, browser: Browser, path: Path, **context: Any) -> None:
        context.setdefault("viewport", {"width": 1280, "height": 900})
        self.context = browser.new_context(**context)
        self.page: Page = self.context.new_page()
        self.said: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def current(self) -> str:
        """The classes of the unit in focus."""
        found = self.page.locator("#texts .u.current")
        assert found.count() == 1
        return found.get_attribute("class") or ""


@pytest.fixture
def opened(browser: Browser, made: tuple[Aligner, Report, Path]) -> Iterator[Opened]:
    page = Opened(browser, made[2])
    yield page
    assert page.said == []
    assert page.requests == [made[2].as_uri()]
    page.context.close()


def test_numbers_are_those_of_coverage(opened: Opened, made: tuple[Aligner, Report, Path]) -> None:
    coverage = made[0].align_texts(TEXTS).coverage().as_dict()
    rows = {
        row.locator("th").evaluate("cell => cell.firstChild.textContent"): [
            int(cell.get_attribute("data-count") or "")
            for cell in row.locator("[data-count]").all()
        ]
        for row in opened.page.locator("#kinds tbody tr").all()
    }
    assert rows.pop("all") == [coverage["teacher_tokens"], coverage["student_tokens"]]
    unmatched = {
        f"unmatched: {reason.replace('_', ' ')}": [n, coverage["student_unmatched"][reason]]
        for reason, n in coverage["teacher_unmatched"].items()
        if n or coverage["student_unmatched"][reason]
    }
    assert unmatched
    assert {name: counts for name, counts in rows.items() if name.startswith("unm")} == unmatched
    inside = [counts for name, counts in rows.items() if not name.startswith("unm")]
    assert [sum(side) for side in zip(*inside, strict=True)] == [
        coverage["teacher_tokens_in_units"],
        coverage["student_tokens_in_units"],
    ]
    for cell in opened.page.locator("#kinds [data-count]").all():
        assert (
            cell.inner_text().split("\n")[0] == f"{int(cell.get_attribute('data-count') or ''):,}"
        )


def test_texts_are_shown_as_text(opened: Opened) -> None:
    page = opened.page
    assert (
        page.locator("h1 + .pair").inner_text() == "teacher <i>teacher</i>\nstudent byte_fallback"
    )
    shown = page.locator("#texts").text_content() or ""
    for part in ("\\x1b", "\\x00", "↵", "⇥", "م"):
        assert part in shown
    assert not {"\x00", "\x1b", "\u202e", "\u2066", "\ufeff"} & set(shown)
    # No element but those that the page makes.
    names = page.locator("#texts *").evaluate_all("all => [...new Set(all.map(e => e.tagName))]")
    assert set(names) <= {"H3", "DIV", "SPAN", "BDI", "I", "P"}
    assert page.locator("script").count() == 2


def test_all_texts_are_there(opened: Opened, made: tuple[Aligner, Report, Path]) -> None:
    sample = made[1].to_dict()["sample"]["texts"]
    boxes = opened.page.locator("#texts .textbox")
    assert boxes.count() == len(sample) == len(TEXTS)
    assert opened.page.locator("#texts .u").count() == sum(len(text["spans"]) for text in sample)
    assert opened.page.locator("#found").inner_text().endswith("match")
    for kind in ("multi", "unmatched", "straddled", "shared"):
        assert opened.page.locator(f"#texts .u.{kind}").count() > 0


@pytest.mark.parametrize("what", ["multi", "unmatched", "straddled"])
def test_jumps(opened: Opened, what: str) -> None:
    page = opened.page
    places = page.locator(f"#texts .u.{what}").evaluate_all(
        "all => all.map(e => Number(e.dataset.number))"
    )
    for expected in [*places[:3], places[-1]]:
        if expected == places[-1] and len(places) > 3:
            for _ in range(len(places) - 4):
                page.click(f"[data-jump={what}]")
        page.click(f"[data-jump={what}]")
        assert what in opened.current().split()
        focused = page.evaluate("Number(document.activeElement.dataset.number)")
        assert focused == expected
        assert page.locator("#texts .u.current").is_visible()
        # In the window, and not behind the panel that describes it.
        box, panel = (page.locator(s).bounding_box() for s in ("#texts .u.current", "#detail"))
        assert box is not None
        assert panel is not None
        assert 0 <= box["y"] < panel["y"]
        if len(places) <= 3 and expected == places[-1]:
            break
    page.click(f"[data-jump={what}]")
    assert page.evaluate("Number(document.activeElement.dataset.number)") == places[0]


def test_filters(opened: Opened, made: tuple[Aligner, Report, Path]) -> None:
    page = opened.page
    spans = [span for text in made[1].to_dict()["sample"]["texts"] for span in text["spans"]]
    names = made[1].to_dict()["sample"]["classes"]
    page.select_option("#kind", "multi")
    multi = [span for span in spans if span[2] == 1]
    assert page.locator("#found").inner_text() == f"{len(multi):,} of {len(spans):,} match"
    assert page.locator("#texts .u:not(.dim)").count() == len(multi)
    page.select_option("#class", "Numbers")
    numbers = [span for span in multi if names[span[3]] == "Numbers"]
    assert page.locator("#texts .u:not(.dim)").count() == len(numbers) > 0
    page.click("[data-jump=match]")
    assert "multi" in opened.current()
    assert "Numbers" in page.locator("#detail h3").inner_text()
    page.select_option("#kind", "shared")
    page.select_option("#class", "")
    assert page.locator("#texts .u:not(.dim)").count() == sum(span[2] == 0 for span in spans)
    page.select_option("#kind", "")
    assert page.locator("#texts .u.dim").count() == 0


def test_details_on_hover_and_focus(opened: Opened, made: tuple[Aligner, Report, Path]) -> None:
    page = opened.page
    assert not page.locator("#detail").is_visible()
    batch = made[0].align_texts(TEXTS)
    unit = next(unit for unit in batch.units(0) if unit.text == "12")
    shown = page.locator("#texts .units").first.locator(".u.multi", has_text="12").first
    shown.hover()
    said = page.locator("#detail").inner_text()
    assert "multi unit · Numbers" in said
    for side, tokens in (("teacher", unit.teacher), ("student", unit.student)):
        ids = getattr(batch, side).row(0)
        for position in tokens:
            data = getattr(made[0], side).token_bytes(int(ids[position]))
            line = [side, f"position {position}", f"id {ids[position]}", f"bytes {data.hex(' ')}"]
            assert any(all(part in row for part in line) for row in said.split("\n")), (line, said)
    page.click("#detail button")
    assert not page.locator("#detail").is_visible()


def test_the_keyboard_is_enough(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the aligned text"
    page.keyboard.press("Enter")
    for _ in range(10):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.u')"):
            break
    assert page.evaluate("Number(document.activeElement.dataset.number)") == 0
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("Number(document.activeElement.dataset.number)") == 1
    assert page.locator("#detail").is_visible()
    page.keyboard.press("End")
    assert page.evaluate("document.activeElement === document.activeElement.parentNode.lastChild")
    page.keyboard.press("Home")
    assert page.evaluate("Number(document.activeElement.dataset.number)") == 0
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible()
    # One tab stop per text.
    stops = page.locator("#texts .units").evaluate_all(
        "all => all.map(e => e.querySelectorAll('[tabindex=\"0\"]').length)"
    )
    assert set(stops) <= {0, 1}


def test_names_for_screen_readers(opened: Opened) -> None:
    page = opened.page
    for selector in ("select", ".u[role=option]", "[role=listbox]", "table", "section", ".plot"):
        unnamed = page.locator(selector).evaluate_all(
            """all => all.filter(e => !(e.getAttribute('aria-label') || e.labels?.length
                || e.closest('[aria-label]')
                || document.getElementById(e.getAttribute('aria-labelledby'))
                ?.textContent)).length"""
        )
        assert page.locator(selector).count() > 0
        assert unnamed == 0, selector
    label = page.locator("#texts .u.multi", has_text="12").first.get_attribute("aria-label")
    assert label == "multi: teacher 1 2, student 12"
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(e => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    ids = page.locator("[id]").evaluate_all("all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("width", [390, 1280])
def test_rules_of_accessibility(
    browser: Browser, made: tuple[Aligner, Report, Path], width: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    # The page's own policy lets no other script in.
    opened = Opened(
        browser, made[2], viewport={"width": width, "height": 900}, bypass_csp=True
    )  # fmt: skip
    opened.page.click("[data-jump=multi]")
    found = Axe().run(opened.page).response
    assert len(found["passes"]) > 40
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]] == []
    opened.context.close()


def contrast(first: list[float], second: list[float]) -> float:
    """The contrast of two colours by WCAG 2."""

    def luminance(colour: list[float]) -> float:
        parts = [c / 255 for c in colour[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_can_be_read(
    browser: Browser, made: tuple[Aligner, Report, Path], width: int, scheme: str, tmp_path: Path
) -> None:
    opened = Opened(
        browser, made[2], viewport={"width": width, "height": 900}, color_scheme=scheme
    )  # fmt: skip
    page = opened.page
    page.click("[data-jump=multi]")
    wide = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]
    # Nothing reaches out of the window but within a part that scrolls by itself.
    outside = page.locator("body *").evaluate_all(
        """all => all.filter(e => !e.closest('.wide, svg, .skip') && e.getClientRects().length
            && e.getBoundingClientRect().right > innerWidth + 1)
            .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert outside == []
    for selector in ("p", "td", "small", ".u.multi", ".u.shared", ".u.unmatched", ".u.straddled",
                     "#detail h3", "h2", "a[href='#pair']", "output"):  # fmt: skip
        colours = page.locator(selector).last.evaluate(
            """e => { const numbers = (c) => c.match(/[\\d.]+/g).map(Number);
            let back = e; while (numbers(getComputedStyle(back).backgroundColor)[3] === 0
                && back.parentElement) back = back.parentElement;
            return [numbers(getComputedStyle(e).color),
                numbers(getComputedStyle(back).backgroundColor)]; }"""
        )
        assert contrast(*colours) >= 4.5, (selector, colours)
    folder = Path(os.environ.get("SIMCT_SCREENSHOTS", tmp_path))
    picture = page.screenshot(path=folder / f"report-{width}-{scheme}.png", full_page=True)
    assert len(picture) > 50_000
    assert opened.said == []
    opened.context.close()


def test_printed(opened: Opened) -> None:
    page = opened.page
    page.emulate_media(media="print")
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    for hidden in ("nav", ".tools", "#detail"):
        assert not page.locator(hidden).first.is_visible()
    assert page.pdf()[:4] == b"%PDF"


def test_without_javascript(browser: Browser, made: tuple[Aligner, Report, Path]) -> None:
    opened = Opened(browser, made[2], java_script_enabled=False)
    assert opened.page.locator("#kinds").is_visible()
    assert opened.page.locator("noscript .advice").is_visible()
    opened.context.close()


def test_in_a_frame_of_a_notebook(
    browser: Browser, made: tuple[Aligner, Report, Path], tmp_path: Path
) -> None:
    (tmp_path / "notebook.html").write_text(made[1]._repr_html_(), encoding="utf-8")
    opened = Opened(browser, tmp_path / "notebook.html")
    frame = opened.page.frame_locator("iframe")
    frame.locator("[data-jump=multi]").click()
    assert frame.locator(".u.current").count() == 1
    assert opened.said == []
    opened.context.close()
