"""A user's program under `mypy --strict`, without the settings of this project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("mypy")

from support import typed_user

ROOT = Path(__file__).resolve().parent.parent


def check(source: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run mypy where no settings are, with the installed package."""
    command = [
        *(sys.executable, "-m", "mypy", "--strict", "--config-file="),
        *("--python-executable", sys.executable),
        *("--cache-dir", str(ROOT / ".mypy_cache" / "user")),
        str(source),
    ]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=False
    )


def test_a_users_program_is_typed(tmp_path: Path) -> None:
    source = tmp_path / "program.py"
    source.write_text(Path(typed_user.__file__).read_text(encoding="utf-8"), encoding="utf-8")
    done = check(source, tmp_path)
    assert done.returncode == 0, done.stdout


def test_wrong_names_are_found(tmp_path: Path) -> None:
    source = tmp_path / "program.py"
    source.write_text(
        "from simct_align import Aligner, TextLoss\n"
        "aligner = Aligner('teacher', 'student')\n"
        "index = aligner.align_texts(['a']).index(text_evens=True)\n"
        "out = TextLoss(aligner)(teacher=1, index=index)\n"
        "print(index.taecher_row, out.los)\n",
        encoding="utf-8",
    )
    found = check(source, tmp_path).stdout
    for line, name in ((3, "text_evens"), (4, "teacher"), (5, "taecher_row"), (5, "los")):
        assert any(
            text.startswith(f"program.py:{line}:") and name in text for text in found.splitlines()
        ), f"{name} in line {line}:\n{found}"


def test_the_program_runs() -> None:
    assert set(typed_user.main()) == {"text", "simct", "gold"}
