"""The command line: every command, its output for people and machines, its exit codes."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from simct_align import Aligner, Vocabulary
from simct_align.cli import main
from simct_align.demo import demo_passage, demo_tokenizers
from simct_align.terminal import Cell, Progress, Screen, columns_of, draw_cells, visible
from support.paths import tokenizer_dir
from support.texts import hard_texts

if TYPE_CHECKING:
    from pathlib import Path

TEACHER, STUDENT = (str(path) for path in demo_tokenizers())
ESCAPE = "\x1b["


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simct_align.cli", *arguments],
        capture_output=True, text=True, encoding="utf-8", timeout=60, **options,
    )  # fmt: skip


def json_lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def check_ranges(row: dict[str, Any]) -> None:
    """Units and unmatched spans partition the tokens of both sides."""
    spans = sorted(
        [*row["units"], *row["unmatched"]],
        key=lambda s: (s["teacher"][0] + s["student"][0], s["teacher"][1] + s["student"][1]),
    )
    for side in ("teacher", "student"):
        reached = 0
        for span in spans:
            assert span[side][0] == reached
            reached = span[side][1]
        assert reached == len(row[f"{side}_tokens"])


def check_row(row: dict[str, Any], text: str) -> None:
    """The ranges are right, and the units spell the text."""
    check_ranges(row)
    spelled = b"".join(
        bytes.fromhex(unit["bytes"]) if "bytes" in unit else unit["text"].encode()
        for unit in row["units"]
    )
    assert spelled == text.encode()
    assert {span["reason"] for span in row["unmatched"]} <= {"dummy_prefix"}


# --- align ---------------------------------------------------------------------------------------


def test_align_json_of_the_passage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "passage.jsonl", [{"text": text} for text in demo_passage()])
    assert main(["align", TEACHER, STUDENT, "--file", path, "--json"]) == 0
    *rows, coverage = json_lines(capsys.readouterr().out)
    assert [(row["type"], row["text"], row["line"]) for row in rows] == [
        ("text", number, number + 1) for number in range(len(demo_passage()))
    ]
    for row, text in zip(rows, demo_passage(), strict=True):
        check_row(row, text)
    assert coverage.pop("type") == "coverage"
    assert coverage["rows"] == len(rows)
    assert coverage["teacher_tokens"] == sum(len(row["teacher_tokens"]) for row in rows)
    assert coverage["student_tokens"] == sum(len(row["student_tokens"]) for row in rows)
    kinds = [unit["kind"] for row in rows for unit in row["units"]]
    assert coverage["units"] == {k: kinds.count(k) for k in ("shared", "multi", "special")}
    assert coverage == Aligner(TEACHER, STUDENT).align_texts(demo_passage()).coverage().as_dict()


def test_align_text_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", TEACHER, STUDENT, "--text", "It has 12 apples."]) == 0
    shown = capsys.readouterr().out
    assert ESCAPE not in shown
    lines = shown.splitlines()
    teacher, student = (next(x for x in lines if x.startswith(f"  {s} ")) for s in
                        ("teacher", "student"))  # fmt: skip
    assert "│1┊2│" in teacher
    assert "│12 │" in student
    assert [i for i, c in enumerate(teacher) if c == "│"] == [
        i for i, c in enumerate(student) if c == "│"
    ]
    marks = lines[lines.index(student) + 1]
    assert marks[teacher.index("1┊2") :].startswith("~~~")
    assert "Coverage of 1 text\n" in shown


def test_colours_follow_the_environment() -> None:
    arguments = ("align", TEACHER, STUDENT, "--text", "It has 12 apples.")
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    assert ESCAPE not in run(*arguments, env=environment).stdout
    coloured = run(*arguments, env={**environment, "FORCE_COLOR": "1"}).stdout
    assert f"{ESCAPE}30;43m1┊2{ESCAPE}0m" in coloured
    assert "~" not in coloured
    assert ESCAPE not in run(*arguments, env={**environment, "FORCE_COLOR": "0"}).stdout
    both = run(*arguments, env={**environment, "FORCE_COLOR": "1", "NO_COLOR": "1"}).stdout
    assert ESCAPE not in both
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert "│1┊2│" in plain


def test_field_limit_and_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": "no", "answer": f"{n} + {n} = {n + n}"} for n in range(10)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    common = ["align", TEACHER, STUDENT, "--file", path, "--field", "answer"]
    assert main([*common, "--json", "--limit", "3"]) == 0
    *found, coverage = json_lines(capsys.readouterr().out)
    assert coverage["rows"] == 3
    for row, given in zip(found, rows[:3], strict=True):
        check_row(row, given["answer"])
    assert main([*common, "--json", "--summary"]) == 0
    (coverage,) = json_lines(capsys.readouterr().out)
    assert coverage["rows"] == 10
    assert main([*common, "--summary"]) == 0
    assert "Coverage of 10 texts" in capsys.readouterr().out


def test_threads_change_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in demo_passage()] * 3)
    outputs = []
    for threads in (["--threads", "1"], ["--threads", "2"], []):
        assert main(["align", TEACHER, STUDENT, "--file", path, "--json", *threads]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] == outputs[2]


def test_batches_add_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in demo_passage()])
    command = ["align", TEACHER, STUDENT, "--file", path, "--json"]
    assert main(command) == 0
    whole = capsys.readouterr().out
    monkeypatch.setattr("simct_align.text_input._BATCH_TEXTS", 3)
    assert main(command) == 0
    assert capsys.readouterr().out == whole
    monkeypatch.setattr("simct_align.text_input._BATCH_CHARACTERS", 1)
    assert main(command) == 0
    assert capsys.readouterr().out == whole


def test_plain_lines_and_compression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["one 12", "", "  zwei 345 ", '{"text": "x"}']
    content = "\n".join(lines).replace("\n", "\r\n", 1).encode()
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(content))
    for name in ("a.txt", "a.txt.gz"):
        path = str(tmp_path / name)
        assert main(["align", TEACHER, STUDENT, "--file", path, "--json"]) == 0
        *rows, _ = json_lines(capsys.readouterr().out)
        for row, text in zip(rows, lines, strict=True):
            check_row(row, text)
    with gzip.open(tmp_path / "b.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"text": "a"}\n\n  \n{"text": "b"}')
    assert main(["align", TEACHER, STUDENT, "--file", str(tmp_path / "b.jsonl.gz"), "--json"]) == 0
    *rows, _ = json_lines(capsys.readouterr().out)
    assert [(row["text"], row["line"]) for row in rows] == [(0, 1), (1, 4)]


@pytest.mark.parametrize("place", ["-", "--file=-", "after"])
def test_standard_input(place: str) -> None:
    where = ["--json", "-"] if place == "after" else [place, "--json"]
    done = run("align", TEACHER, STUDENT, *where, input="first 12\nnaïve 🚲\n")
    assert (done.returncode, done.stderr) == (0, "")
    *rows, coverage = json_lines(done.stdout)
    check_row(rows[0], "first 12")
    check_row(rows[1], "naïve 🚲")
    assert coverage["rows"] == 2


def test_standard_input_of_json_and_of_nothing() -> None:
    done = run("align", TEACHER, STUDENT, "-", "--field", "t", "--json", input='{"t": "12"}\n')
    check_row(json_lines(done.stdout)[0], "12")
    done = run("align", TEACHER, STUDENT, "-", "--json", input="")
    (coverage,) = json_lines(done.stdout)
    assert (done.returncode, coverage["rows"], coverage["teacher_tokens"]) == (0, 0, 0)
    done = run("align", TEACHER, STUDENT, "-", input="")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Coverage of 0 texts" in done.stdout


def test_json_where_the_stream_is_not_unicode() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = run("align", TEACHER, STUDENT, "--text", "naïve 12", "--json", env=environment)
    assert done.returncode == 0
    assert done.stdout.isascii()
    check_row(json_lines(done.stdout)[0], "naïve 12")
    assert run("align", TEACHER, STUDENT, "--text", "naïve", env=environment).returncode == 0


def test_half_characters_are_given_as_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", TEACHER, TEACHER, "--text", "🦉", "--json"]) == 0
    row, _ = json_lines(capsys.readouterr().out)
    check_row(row, "🦉")
    assert len(row["units"]) > 1
    assert all("bytes" in unit for unit in row["units"])


def test_progress_goes_to_stderr_only(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "12 apples"}] * 2000)
    command = ("align", TEACHER, STUDENT, "--file", path, "--json")
    quiet, loud = run(*command), run(*command, "--progress")
    assert quiet.stdout == loud.stdout
    assert quiet.stderr == ""
    assert "%" in loud.stderr
    assert "texts" in loud.stderr


def test_progress_without_a_size(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(None, shown=True)
    progress.update(0, 1234)
    progress.close()
    assert "1,234 texts" in capsys.readouterr().err


# --- errors --------------------------------------------------------------------------------------


def one_line_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("simct-align: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2: invalid JSON"),
        (b'{"text": "a"}\n\n{"t": 1, "b": 2}\n', "line 3: no field 'text'; the fields are b, t"),
        (b'{"text": 12}\n', "line 1: field 'text': expected a string, got int"),
        (b'["text"]\n', "line 1: expected a JSON object, got a list"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "line 2: not valid UTF-8"),
        (b'{"text": "\\ud83d"}\n', "line 1: field 'text' is not valid Unicode: surrogates"),
        (b"[" * 100_000, "line 1: invalid JSON"),
    ],
)
def test_bad_json_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, expected: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    error = one_line_error(capsys, "align", TEACHER, STUDENT, "--file", str(path))
    assert f"{path}, {expected}" in error


def test_bad_data_after_good_batches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simct_align.text_input._BATCH_TEXTS", 1)
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\nbad\n')
    assert main(["align", TEACHER, STUDENT, "--file", str(path), "--json"]) == 1
    output = capsys.readouterr()
    assert "line 2" in output.err
    (row,) = json_lines(output.out)
    check_row(row, "good")


def test_unreadable_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "none.txt")
    assert missing in one_line_error(capsys, "align", TEACHER, STUDENT, "--file", missing)
    one_line_error(capsys, "align", TEACHER, STUDENT, "--file", str(tmp_path))
    broken = tmp_path / "broken.txt.gz"
    broken.write_bytes(b"no gzip")
    assert "broken" in one_line_error(capsys, "align", TEACHER, STUDENT, "--file", str(broken))
    broken.write_bytes(gzip.compress(b"text " * 1000)[:-20])
    one_line_error(capsys, "align", TEACHER, STUDENT, "--file", str(broken))


def test_unreadable_tokenizers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "tokenizer.json")
    assert missing in one_line_error(capsys, "inspect", TEACHER, missing)
    (tmp_path / "empty").mkdir()
    one_line_error(capsys, "inspect", str(tmp_path / "empty"), STUDENT)
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    one_line_error(capsys, "align", str(broken), STUDENT, "--text", "x")


def test_unsupported_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = gzip.decompress((demo_tokenizers()[0] / "tokenizer.json.gz").read_bytes())
    content = json.loads(source)
    content["decoder"] = {"type": "CTC", "pad_token": "-", "word_delimiter_token": "|",
                          "cleanup": True}  # fmt: skip
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content))
    assert "CTC" in one_line_error(capsys, "inspect", str(path), STUDENT)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["inspect", TEACHER],
        ["align", TEACHER, STUDENT],
        ["align", TEACHER, STUDENT, "--text", "a", "--file", "b"],
        ["align", TEACHER, STUDENT, "--text", "a", "--field", "b"],
        ["align", TEACHER, STUDENT, "--text", "a", "-"],
        ["align", TEACHER, STUDENT, "--text", "a", "--limit", "0"],
        ["align", TEACHER, STUDENT, "--text", "a", "--threads", "x"],
        ["align", TEACHER, STUDENT, "other", "--text", "a"],
        ["demo", "--unknown"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "usage: simct-align" in output.err


def test_exit_codes_of_the_process(tmp_path: Path) -> None:
    assert run("align", TEACHER, STUDENT, "--text", "a").returncode == 0
    bad = run("align", TEACHER, STUDENT, "--file", str(tmp_path / "none"))
    assert (bad.returncode, "Traceback" in bad.stderr) == (1, False)
    assert run("align", TEACHER, STUDENT).returncode == 2


def test_a_reader_that_stops_early(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "12 apples and 345 pears"}] * 3000)
    command = [sys.executable, "-m", "simct_align.cli", "align", TEACHER, STUDENT]
    with subprocess.Popen(
        [*command, "--file", path, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["text"] == 0
        process.stdout.close()
        error = process.stderr.read()
        assert (process.wait(timeout=30), error) == (0, b"")


# --- help, inspect, demo -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "mentions"),
    [
        (["--help"], ["inspect", "align", "demo", "examples:", "exit codes:", "NO_COLOR"]),
        (["inspect", "--help"], ["TEACHER", "STUDENT", "--json", "hub id", "example:"]),
        (
            ["align", "--help"],
            ["--text", "--file", "--field", "--json", "--limit", "--threads", "--summary",
             "--progress", "examples:", '"bytes_differ"'],
        ),
        (["demo", "--help"], ["no network"]),
        (["--version"], ["simct-align "]),
    ],
)  # fmt: skip
def test_help_teaches(
    arguments: list[str], mentions: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert [word for word in mentions if word not in shown] == []


def test_inspect_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", TEACHER, STUDENT, "--json"]) == 0
    (found,) = json_lines(capsys.readouterr().out)
    teacher, student = Vocabulary.from_tokenizer(TEACHER), Vocabulary.from_tokenizer(STUDENT)
    texts = [
        {v.token_bytes(i) for i in range(len(v))} - {b""} for v in (teacher, student)
    ]  # special ids have no bytes
    shared = len(texts[0] & texts[1])
    assert found["shared"]["texts"] == shared
    assert found["shared"]["stops"] == [["<|end|>"], ["</s>"]]
    assert found["shared"]["mapped_specials"] == []
    for side, there, vocabulary in zip(
        ("teacher", "student"), texts, (teacher, student), strict=True
    ):
        assert found[side]["vocabulary"] == sum(found[side]["kinds"].values()) == len(vocabulary)
        assert found[side]["distinct_texts"] == len(there)
        assert found[side]["shared_share"] == pytest.approx(shared / len(there))
        assert found[side]["digest"] == vocabulary.digest
        assert found[side]["one_sided"] == len(there) - shared
        spelled = sum(found[side]["spelled_by_length"].values())
        assert spelled + found[side]["unspelled"] == len(there) - shared
        # One token that spells another side's token would be that token.
        assert min(map(int, found[side]["spelled_by_length"])) == 2
    assert found["student"]["kinds"]["byte"] == 256
    assert found["student"]["dummy_prefix"] is True
    assert found["teacher"]["stops"] == {str(teacher.stop_ids[0]): "<|end|>"}


def test_real_tokenizers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = [str(tokenizer_dir(name)) for name in ("qwen2_5", "gemma2")]
    assert main(["inspect", *pair]) == 0
    shown = capsys.readouterr().out
    for count in ("97,675", "53,976", "158,194"):
        assert count in shown
    # Qwen2.5's tokens that Gemma's encoder writes with two and three; 1,320 are no valid text, and
    # these have a spelling by the byte trie.
    assert main(["inspect", *pair, "--json"]) == 0
    (found,) = json_lines(capsys.readouterr().out)
    for side, expected, no_text in (
        ("teacher", {"2": 45_528, "3": 6_248}, 1_320),
        ("student", {"2": 129_650, "3": 23_323}, 50),
    ):
        counted = found[side]["spelled_by_length"]
        more = [counted[length] - encoded for length, encoded in expected.items()]
        assert min(more) >= 0
        assert sum(more) <= no_text
    texts = hard_texts()
    path = write_jsonl(tmp_path / "hard_texts.jsonl", [{"text": text} for text in texts])
    assert main(["align", *pair, "--file", path, "--json"]) == 0
    *rows, coverage = json_lines(capsys.readouterr().out)
    assert coverage["rows"] == len(rows) == len(texts)
    for row, text in zip(rows, texts, strict=True):
        check_ranges(row)
        if not row["unmatched"]:
            check_row(row, text)
    assert sum(not row["unmatched"] for row in rows) > 25


def test_inspect_a_tokenizer_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", STUDENT, STUDENT, "--json"]) == 0
    (found,) = json_lines(capsys.readouterr().out)
    # Byte fallbacks repeat other tokens' bytes: a text counts once all the same.
    assert found["teacher"]["distinct_texts"] < 4096 - 3
    assert found["shared"]["texts"] == found["teacher"]["distinct_texts"]
    assert found["teacher"]["shared_share"] == found["student"]["shared_share"] == 1.0
    assert found["shared"]["mapped_specials"] == [["<unk>", "<unk>"], ["<s>", "<s>"]]
    for side in ("teacher", "student"):
        assert (found[side]["one_sided"], found[side]["spelled_by_length"]) == (0, {})


def test_inspect_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", TEACHER, STUDENT]) == 0
    shown = capsys.readouterr().out
    for part in ("4,096", "shared texts", "share of the side", "<|end|>", "</s>", "%"):
        assert part in shown
    for part in ("one-sided tokens", "spelled with 2 tokens", "without a spelling"):
        assert part in shown


def test_demo_needs_nothing(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SIMCT_")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run("demo", cwd=tmp_path, env={**environment, "HOME": str(tmp_path)})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Processor time: the clock of a busy machine says little.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("│1┊2│", "Coverage of 8 texts", "1 thread", "tokens/s", "aligner.save", "100.0%"):
        assert part in done.stdout
    assert list(tmp_path.iterdir()) == []


# --- drawing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (b" has", "·has"),
        (b"\n\t", "↵⇥"),
        (b"\xf0\x9f", "\\xf0\\x9f"),
        (b"\x1b[31m", "\\x1b[31m"),
        ("\u200d".encode(), "\\u200d"),
        ("·".encode(), "\\xb7"),
        ("\u0301e".encode(), "◌\u0301e"),
        ("苹果".encode(), "苹果"),
        (b"\\frac", "\\frac"),
    ],
)
def test_nothing_is_hidden(token: bytes, shown: str) -> None:
    assert visible(token) == shown


def test_columns() -> None:
    assert [columns_of(text) for text in ("ab", "苹果", "e\u0301", "🙂", "")] == [2, 4, 1, 2, 0]


def test_long_cells_are_cut_and_lines_wrap() -> None:
    cells = [
        Cell("shared", ["one"], ["one"]),
        Cell("unmatched", ["token"] * 500, []),
        *[Cell("shared", ["word"], ["word"])] * 30,
        Cell("special", ["<|end|>"], ["</s>"]),
    ]
    stream = io.StringIO()
    draw_cells(Screen(stream, colour=False, columns=60), cells)
    lines = stream.getvalue().splitlines()
    assert max(map(columns_of, lines)) <= 60
    assert re.search(r" … \d+ more … ", stream.getvalue())
    assert sum(line.startswith("  teacher") for line in lines) > 3
    assert "!!!" in stream.getvalue()
    assert "^^^^^^^" in lines[-1]
