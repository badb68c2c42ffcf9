"""README and the pages of `docs/`: their code, their commands and their figures."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import pytest

from test_public_names import PUBLIC

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
CLI = (ROOT / "python/simct_align/cli.py").read_text(encoding="utf-8")
EXTRAS = re.findall(
    r"^([a-z]+) = \[",
    (ROOT / "pyproject.toml")
    .read_text(encoding="utf-8")
    .partition("[project.optional-dependencies]")[2]
    .partition("[project.scripts]")[0],
    re.MULTILINE,
)

#: Pages whose code imports trainers that the other tests do without.
TRAINERS = {"docs/ms_swift.md": "swift", "docs/verl.md": "verl"}


class Block(NamedTuple):
    """A fenced block, and whether nothing but blank lines lies between it and the one before."""

    language: str
    code: str
    follows: bool


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found, end = [], 0
    for match in re.finditer(r"^```(.*)\n((?s:.*?))^```$", text, re.MULTILINE):
        follows = bool(found) and not text[end : match.start()].strip()
        found.append(Block(match[1], match[2], follows))
        end = match.end()
    return found


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def with_blocks(language: str) -> list[Path]:
    return [page for page in PAGES if any(block.language == language for block in blocks(page))]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_of_a_kind_that_is_checked(page: Path) -> None:
    for block in blocks(page):
        assert block.language in ("python", "console", "sh", "text", "json", "yaml")
        if block.language == "json":
            json.loads(block.code)
        elif block.language == "yaml":
            pytest.importorskip("yaml").safe_load(block.code)


@pytest.mark.parametrize("page", with_blocks("python"), ids=name)
def test_python_runs_and_prints_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of a page share their names; a `text` block right after one is what it prints."""
    if name(page) in TRAINERS:
        pytest.importorskip(TRAINERS[name(page)])  # `make trainer-test` has it
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    printed = None
    for block in blocks(page):
        if block.language == "python":
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                exec(compile(block.code, name(page), "exec"), namespace)
            printed = output.getvalue()
        elif block.language == "text" and block.follows and printed is not None:
            assert block.code == printed
        if block.language != "python":
            printed = None


@pytest.mark.parametrize("page", with_blocks("console"), ids=name)
def test_console_commands_run(page: Path, tmp_path: Path) -> None:
    for block in blocks(page):
        for command in re.findall(r"^\$ (.*)$", block.code, re.MULTILINE):
            assert block.language == "console", command
            program, *arguments = command.split()
            assert program == "simct-align", command
            done = subprocess.run(
                [str(Path(sys.executable).parent / program), *arguments],
                cwd=tmp_path,
                capture_output=True,
                text=True,
                encoding="utf-8",
                check=False,
            )
            assert done.returncode == 0, f"{command}: {done.stderr}"


def check_command(command: str) -> None:
    """Check a command that takes minutes or changes the environment: what it names must exist."""
    words = command.split()
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", MAKEFILE, re.MULTILINE), command
    elif words[:2] == ["pip", "install"]:
        extras = re.search(r"\[(.*)\]", command)
        assert extras is None or set(extras[1].split(",")) <= set(EXTRAS), command
        assert words[2].strip("'").partition("[")[0] in (".", "simct-align"), command
    elif words[0] == "simct-align":
        assert f'"{words[1]}"' in CLI, command
    elif words[0] in ("accelerate", "torchrun"):
        scripts = [word for word in words if word.endswith(".py")]
        assert scripts, command
        assert all((ROOT / script).is_file() for script in scripts), command
    elif words[0] == "python":
        # Options are in the script or in the parts that it shares with others.
        parts = [ROOT / words[1], *(ROOT / words[1]).parent.glob("_*.py")]
        source = "".join(part.read_text(encoding="utf-8") for part in parts)
        for option in re.findall(r"--[a-z-]+", command):
            assert f'"{option}"' in source or option == "--help", command
    else:
        raise AssertionError(f"a command of another kind: {command}")


@pytest.mark.parametrize("page", with_blocks("sh"), ids=name)
def test_other_commands_name_what_exists(page: Path) -> None:
    for block in blocks(page):
        if block.language == "sh":
            for line in block.code.replace("\\\n", " ").splitlines():
                if command := line.partition("  #")[0].strip():
                    check_command(command)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pictures_have_a_text_and_exist(page: Path) -> None:
    for text, target in re.findall(r"!\[(.*?)\]\((.*?)\)", page.read_text(encoding="utf-8")):
        assert text
        assert (page.parent / target).is_file(), target


def test_figures_are_what_the_package_draws() -> None:
    pytest.importorskip("torch")
    command = [sys.executable, str(ROOT / "tools" / "draw_figures.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr


def null_tables() -> list[tuple[str, str, list[str]]]:
    """Every row of a table of null values in a page: page, label and cells."""
    header = "| | code | arithmetic | JSON | GSM8K triples | mixed white space |"
    return [
        (name(page), *row)
        for page in PAGES
        for table in page.read_text(encoding="utf-8").split(header + "\n")[1:]
        for row in table_rows(table)
    ]


def table_rows(text: str) -> Iterator[tuple[str, list[str]]]:
    for line in text.splitlines()[1:]:
        if not line.startswith("|"):
            return
        label, *cells = (re.sub('[*`"]', "", cell).strip() for cell in line.strip("|").split("|"))
        yield label, cells


def test_null_values_are_those_of_the_record() -> None:
    """Median and largest value over pairs of the last measurements, for every table of them."""
    last: dict[tuple[str, ...], float] = {}
    with (ROOT / "benches/record/null.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            key = tuple(row[field] for field in ("objective", "corpus", "teacher", "student"))
            last[key] = float(row["null"])
    corpora = ("code", "arithmetic", "json", "gsm8k", "white_space")
    names = {"shared vocabulary": "shared", "SimCT (the paper)": "realized, mean"}
    tables = null_tables()
    assert {page for page, _, _ in tables} == {"docs/null_test.md", "README.md"}
    for page, label, cells in tables:
        objective = names.get(label, label)
        assert len(cells) == len(corpora)
        for corpus, cell in zip(corpora, cells, strict=True):
            found = [v for key, v in last.items() if key[:2] == (objective, corpus)]
            digits = len(cell.partition(".")[2].partition(",")[0])
            expected = f"{abs(median(found)):.{digits}f}, {max(found):.{digits}f}"
            assert cell == expected, f"{page}: {label}, {corpus}"


def test_readme_shows_the_training_runs_of_the_record_page() -> None:
    """The columns of README's table are those of the table of code, in another order."""
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    runs = dict(table_rows(page.partition("| code | seeds |")[2].partition("\n")[2]))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = list(table_rows(readme.partition("| | the right sol")[2].partition("\n")[2]))
    assert len(shown) == 4
    for label, (gold, samples, own) in shown:
        run = {"SimCT (the paper)": "realized, mean"}.get(label, label.partition(" (")[0])
        assert runs[run][1:] == [own, gold, samples]


def test_results_of_the_readme_are_on_a_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, start, results = readme.partition("## What others report")
    results, end, _ = results.partition("## Documentation")
    assert start
    assert end
    text = " ".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    known = set(re.findall(r"\d+(?:\.\d+)?", text))
    assert set(re.findall(r"\d+(?:\.\d+)?", results)) <= known


def test_readme_is_one_screen_after_another() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_reference_has_every_public_name() -> None:
    reference = "\n".join(
        page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")
    )
    shown = set(re.findall(r"^::: ([\w.]+)$", reference, re.MULTILINE))
    missing = [
        f"{module}.{public}"
        for module, names in PUBLIC.items()
        for public in names
        if module not in shown
        and f"{module}.{public}" not in shown
        and f"`{module}.{public}`" not in reference
    ]
    assert not missing
