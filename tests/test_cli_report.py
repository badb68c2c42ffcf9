"""The commands report, bench and completion, and what all commands have in common."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from simct_align import Aligner
from simct_align.cli import main
from simct_align.commands.completion import SHELLS
from simct_align.demo import demo_passage, demo_tokenizers

if TYPE_CHECKING:
    from pathlib import Path

TEACHER, STUDENT = (str(path) for path in demo_tokenizers())


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def passage(tmp_path: Path) -> str:
    path = tmp_path / "passage.jsonl"
    path.write_text("".join(json.dumps({"answer": text}) + "\n" for text in demo_passage()))
    return str(path)


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simct_align.cli", *arguments],
        capture_output=True, text=True, encoding="utf-8", timeout=60, **options,
    )  # fmt: skip


def one_line_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("simct-align: ")
    assert shown.err.count("\n") == 1
    return shown.err


# --- report --------------------------------------------------------------------------------------


def test_report_writes_a_page(
    passage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["report", TEACHER, STUDENT, "--file", passage, "--field", "answer"]
    assert main([*command, "-o", "page.html"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    for part in ("Coverage of 8 texts", "straddled", "warning: ", "Written to page.html"):
        assert part in shown.out
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "byte_level" in page
    assert str(tmp_path) not in page
    assert main(command) == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


def test_report_as_json(passage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["report", TEACHER, STUDENT, "--file", passage, "--field", "answer", "--json"]
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    aligner = Aligner(TEACHER, STUDENT)
    assert facts["coverage"] == aligner.align_texts(demo_passage()).coverage().as_dict()
    assert [text["line"] for text in facts["sample"]["texts"]] == list(range(1, 9))
    assert not (tmp_path / "report.html").exists()
    assert main([*command, "--limit", "2", "-o", "page.html"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["texts"] == 2
    assert (tmp_path / "page.html").exists()


def test_report_of_standard_input_and_of_a_text(capsys: pytest.CaptureFixture[str]) -> None:
    done = run("report", TEACHER, STUDENT, "-", "--json", input="12 apples\n345 pears\n")
    assert (done.returncode, json.loads(done.stdout)["data"]["texts"]) == (0, 2)
    assert main(["report", TEACHER, STUDENT, "--text", "12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"] == {"texts": 1, "bytes": 2}


def test_progress_of_a_report(tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    path.write_text("12 apples\n" * 3_000)
    command = ("report", TEACHER, STUDENT, "--file", str(path), "--json")
    quiet, loud = run(*command), run(*command, "--progress")
    assert quiet.stdout == loud.stdout
    assert quiet.stderr == ""
    assert "%" in loud.stderr


def test_a_page_that_cannot_be_written_is_told_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tokenizers are not there: nothing was read before the error.
    command = ("report", "missing/a", "missing/b", "--text", "a", "-o")
    assert "no directory" in one_line_error(capsys, *command, "none/report.html")
    assert "is a directory" in one_line_error(capsys, *command, str(tmp_path))
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    found = __import__("importlib.util").util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "vl_convert" else found(name)
    )
    assert "simct-align[report]" in one_line_error(capsys, *command, "report.html")


def test_warnings_of_the_readers_are_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    side = tmp_path / "side"
    shutil.copytree(TEACHER, side)
    (side / "tokenizer_config.json").write_text("{}")
    assert main(["report", str(side), STUDENT, "--text", "a", "--json"]) == 0
    shown = capsys.readouterr()
    assert "simct-align: warning: no token that ends a turn is known of the teacher" in shown.err
    titles = [item["title"] for item in json.loads(shown.out)["warnings"]]
    assert "No token that ends a turn is known of the teacher" in titles
    assert sum("ends a turn" in title for title in titles) == 1


# --- bench ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [False, True])
def test_bench(data: bool, passage: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--data", passage, "--field", "answer"] if data else []
    assert main(["bench", TEACHER, STUDENT, *more, "--limit", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    coverage = Aligner(TEACHER, STUDENT).align_texts(demo_passage()[:5]).coverage()
    assert found["texts"] == 5
    assert found["student_tokens"] == coverage.student_tokens
    assert found["units"] == sum(coverage.units.values())
    names = [row["name"] for row in found["timings"]]
    for part in ("encode, teacher", "encode, student", "align_batch, 1 thread", "index"):
        assert part in names
    for row in found["timings"]:
        tokens = found["teacher_tokens" if row["name"] == "encode, teacher" else "student_tokens"]
        assert row["tokens_per_second"] == pytest.approx(tokens / row["seconds"])


def test_bench_needs_a_file_for_a_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", TEACHER, STUDENT, "--field", "text"]) == 2
    assert "--data" in capsys.readouterr().err


def test_bench_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", TEACHER, STUDENT, "--limit", "3", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    for part in ("million tokens/s", "index with text events", "3 texts of", "ms"):
        assert part in shown


# --- completion ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", SHELLS)
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for part in ("inspect", "report", "bench", "--field"):
        assert part in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(run("completion", "bash").stdout)
    code = f"""
        source {script}
        COMP_WORDS=(simct-align in); COMP_CWORD=1; COMP_LINE="simct-align in"; COMP_POINT=14
        _shtab_simct_align && echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["inspect"], done.stderr


@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish")
def test_fish_completes(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(run("completion", "fish").stdout)
    (tmp_path / "texts.jsonl").touch()

    def offered(line: str) -> list[str]:
        code = f"source {script}; complete -C '{line}'"
        done = subprocess.run(
            ["fish", "--no-config", "-c", code],
            capture_output=True, text=True, check=True, cwd=tmp_path,
        )  # fmt: skip
        assert done.stderr == ""
        return [found.split("\t")[0] for found in done.stdout.splitlines()]

    assert offered("simct-align in") == ["inspect"]
    assert offered("simct-align report --fi") == ["--field", "--file"]
    assert offered("simct-align report --file tex") == ["texts.jsonl"]
    assert offered("simct-align report tex") == ["texts.jsonl"]
    assert offered("simct-align completion ") == list(SHELLS)


def test_completion_without_its_library(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert "simct-align[completion]" in one_line_error(capsys, "completion", "bash")
    assert main(["completion", "powershell"]) == 2


# --- what all commands have in common ------------------------------------------------------------

COMMANDS = [
    ("inspect", TEACHER, STUDENT),
    ("align", TEACHER, STUDENT, "--text", "12"),
    ("report", TEACHER, STUDENT, "--text", "12"),
    ("bench", TEACHER, STUDENT, "--limit", "1"),
    ("demo",),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_json_everywhere(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*command, "--json"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert [json.loads(line) for line in shown.out.splitlines()]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.skipif(sys.platform == "win32", reason="a shell of Unix closes the stream")
def test_a_closed_standard_output_is_no_traceback(command: tuple[str, ...]) -> None:
    for redirect in (">&-", ">&- 2>&-", "| true"):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f'"$@" {redirect}', "-", sys.executable, "-m",
             "simct_align.cli", *command],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), redirect


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_colours_only_where_they_are_wanted(command: tuple[str, ...]) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    assert "\x1b[" not in run(*command, env=environment).stdout
    assert "\x1b[" in run(*command, env={**environment, "FORCE_COLOR": "1"}).stdout
    both = {**environment, "FORCE_COLOR": "1", "NO_COLOR": "1"}
    assert "\x1b[" not in run(*command, env=both).stdout


@pytest.mark.parametrize("command", COMMANDS[:4], ids=lambda command: command[0])
def test_a_wrong_path(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [command[0], TEACHER, "none/tokenizer.json", *command[3:]]
    assert "none/tokenizer.json" in one_line_error(capsys, *arguments)


@pytest.mark.parametrize(
    ("command", "mentions"),
    [
        ("report", ["--output", "--json", "--field", "--progress", "examples:", "[report]"]),
        ("bench", ["--data", "--field", "--limit", "--threads", "examples:"]),
        ("completion", [*SHELLS, "[completion]"]),
    ],
)
def test_help_teaches(
    command: str, mentions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert [word for word in mentions if word not in shown] == []
    assert main(["--help"]) == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", TEACHER, STUDENT],
        ["report", TEACHER],
        ["report", TEACHER, STUDENT, "--text", "a", "--field", "b"],
        ["bench", TEACHER],
        ["bench", TEACHER, STUDENT, "--limit", "0"],
        ["completion"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "usage: simct-align" in shown.err


def test_demo_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    coverage = Aligner(TEACHER, STUDENT).align_texts(demo_passage()).coverage().as_dict()
    assert found["coverage"] == coverage
    assert min(found["speed"]["seconds"].values()) > 0
    if found["loss"] is not None:
        assert [row["candidates"] for row in found["loss"]] == ["shared", "realized"]
