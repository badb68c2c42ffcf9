"""The bundled tokenizers: what they promise, and that the script still makes them."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers

from simct_align import Aligner, TokenKind, Vocabulary
from simct_align.demo import demo_passage, demo_tokenizers

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT = REPOSITORY / "tools" / "make_demo_tokenizers.py"
TEACHER, STUDENT = demo_tokenizers()


def loaded(folder: Path) -> tokenizers.Tokenizer:
    content = gzip.decompress((folder / "tokenizer.json.gz").read_bytes()).decode()
    return tokenizers.Tokenizer.from_str(content)


def tokens(folder: Path, text: str) -> list[str]:
    return loaded(folder).encode(text, add_special_tokens=False).tokens


def test_small_enough_to_ship() -> None:
    files = [path for folder in (TEACHER, STUDENT) for path in folder.iterdir()]
    assert sorted({path.name for path in files}) == ["tokenizer.json.gz", "tokenizer_config.json"]
    assert sum(path.stat().st_size for path in files) < 200_000


def test_teacher_splits_digits_one_by_one() -> None:
    assert tokens(TEACHER, "12345")[-5:] == ["1", "2", "3", "4", "5"]
    vocabulary = loaded(TEACHER).get_vocab()
    assert not [token for token in vocabulary if len(re.findall("[0-9]", token)) > 1]


def test_student_groups_up_to_three_digits() -> None:
    vocabulary = loaded(STUDENT).get_vocab()
    plain = [token for token in vocabulary if token.isascii() and token.isdigit()]
    assert {len(token) for token in plain} == {1, 2, 3}
    assert len([token for token in plain if len(token) == 2]) > 50
    assert "12" in tokens(STUDENT, "12 apples")
    for number in (f"{n:06}" for n in range(0, 999_999, 7_919)):
        assert max(len(token) for token in tokens(STUDENT, number)) <= 3


def test_student_has_every_byte_and_falls_back_to_it() -> None:
    vocabulary = loaded(STUDENT).get_vocab()
    assert all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    assert "<0xF0>" in tokens(STUDENT, "🚲")


@pytest.mark.parametrize("folder", [TEACHER, STUDENT], ids=lambda folder: folder.name)
def test_decodes_what_it_encoded(folder: Path) -> None:
    tokenizer = loaded(folder)
    for text in demo_passage():
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_vocabularies_are_read_exactly() -> None:
    teacher, student = (Vocabulary.from_tokenizer(folder) for folder in (TEACHER, STUDENT))
    assert len(teacher) == len(student) == 4096
    assert teacher.verify(demo_passage()).exact
    assert (teacher.dummy_prefix, student.dummy_prefix) == (False, True)
    assert [teacher.special_names[i] for i in teacher.stop_ids] == ["<|end|>"]
    assert [student.special_names[i] for i in student.stop_ids] == ["</s>"]
    assert int((student.kinds == TokenKind.BYTE).sum()) == 256
    assert {"<|user|>", "<|assistant|>", "<|system|>"} <= teacher.special_ids.keys()


def test_every_token_of_the_passage_is_aligned() -> None:
    texts = list(demo_passage())
    batch = Aligner(TEACHER, STUDENT).align_texts(texts)
    coverage = batch.coverage()
    assert coverage.teacher_tokens_in_units == coverage.teacher_tokens
    # All that a dummy prefix may leave over is the token that is only the space.
    assert set(coverage.as_dict()["student_unmatched"]) >= {"dummy_prefix"}
    left_over = {k for k, n in coverage.as_dict()["student_unmatched"].items() if n}
    assert left_over <= {"dummy_prefix"}
    for row, text in enumerate(texts):
        assert b"".join(unit.bytes for unit in batch.units(row)) == text.encode()


def test_passage_has_what_is_hard() -> None:
    passage = "".join(demo_passage())
    for part in ("∑", "def ", "小", "駅", "Н", "ا", "म", "🎉"):
        assert part in passage


def test_script_still_makes_the_committed_files(tmp_path: Path) -> None:
    run = [sys.executable, str(SCRIPT)]
    done = subprocess.run([*run, "--check"], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")

    subprocess.run([*run, "--target", str(tmp_path)], check=True, capture_output=True, timeout=20)
    config = tmp_path / "byte_level" / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": "<|other|>"}))
    (tmp_path / "byte_fallback" / "tokenizer.json.gz").unlink()
    done = subprocess.run(
        [*run, "--check", "--target", str(tmp_path)], capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "byte_level/tokenizer_config.json: differs from what this script makes",
        "byte_fallback/tokenizer.json.gz: missing",
    ]
