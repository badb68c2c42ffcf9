"""Reports: every number against a slow twin or the batch itself, the sample, advice and files."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from simct_align import Aligner, MissingTokenizerError, UnitKind, Vocabulary
from simct_align.demo import demo_passage
from simct_align.report import Report, page
from simct_align.report.builder import source_name
from simct_align.report.classes import text_classes
from simct_align.report.row_counts import RowCounts
from support.texts import HOSTILE_TEXTS, answers, hard_texts
from support.vocabularies import BUNDLED, vocabulary

if TYPE_CHECKING:
    from pathlib import Path

    from simct_align import Unit

PAIRS = [
    BUNDLED,
    ("mistral_v1", "tekken"),
    ("gpt4o", "gemma2"),
    ("gemma2", "qwen2_5"),
    ("mistral_nemo", "llama3_1"),
]


def aligner_of(pair: tuple[str, str]) -> Aligner:
    return Aligner(*map(vocabulary, pair))


def texts_of_tests() -> list[str]:
    return [*demo_passage(), *HOSTILE_TEXTS, *hard_texts(), *answers(50)]


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[Aligner, list[str], dict[str, Any]]:
    aligner, texts = aligner_of(request.param), texts_of_tests()
    return aligner, texts, aligner.report(texts).to_dict()


# --- numbers -------------------------------------------------------------------------------------


def test_coverage_is_that_of_the_batch(case: tuple[Aligner, list[str], dict[str, Any]]) -> None:
    aligner, texts, facts = case
    coverage = aligner.align_texts(texts).coverage().as_dict()
    assert facts["coverage"] == coverage
    for side in ("teacher", "student"):
        inside = sum(method[f"{side}_tokens"] for method in facts["methods"].values())
        assert inside == coverage[f"{side}_tokens_in_units"]
        assert facts[side]["tokens"] == coverage[f"{side}_tokens"]
        by_class = sum(sum(row[f"{side}_tokens"].values()) for row in facts["classes"])
        assert by_class == inside
    assert {kind: method["units"] for kind, method in facts["methods"].items()} == coverage["units"]
    assert facts["data"] == {
        "texts": len(texts),
        "bytes": sum(len(text.encode()) for text in texts),
    }


def test_shapes_cuts_and_bytes(case: tuple[Aligner, list[str], dict[str, Any]]) -> None:
    aligner, texts, facts = case
    batch = aligner.align_texts(texts)
    shapes: Counter[tuple[int, int]] = Counter()
    cuts: Counter[tuple[bytes, ...]] = Counter()
    unlisted = 0
    n_bytes = dict.fromkeys(UnitKind, 0)
    for row in range(len(batch)):
        for unit in batch.units(row):
            n_bytes[unit.kind] += len(unit.bytes)
            if unit.kind != UnitKind.MULTI:
                continue
            sides = len(unit.teacher), len(unit.student)
            shapes[min(sides[0], 9), min(sides[1], 9)] += 1
            if sum(sides) > 12:
                unlisted += 1
                continue
            teacher, student = batch.teacher.row(row), batch.student.row(row)
            cuts[
                np.asarray(teacher[unit.teacher], np.int32).tobytes(),
                np.asarray(student[unit.student], np.int32).tobytes(),
            ] += 1
    assert {tuple(row[:2]): row[2] for row in facts["shapes"]["counts"]} == shapes
    assert facts["cuts"]["different"] == len(cuts)
    assert facts["cuts"]["longer_units"] == unlisted
    assert [cut["count"] for cut in facts["cuts"]["most_common"]] == sorted(
        cuts.values(), reverse=True
    )[:30]
    for kind in UnitKind:
        assert facts["methods"][kind.name.lower()]["bytes"] == n_bytes[kind]


def test_counts_of_rows() -> None:
    random = np.random.default_rng(0)
    counts, expected = RowCounts(2), Counter[tuple[int, ...]]()
    for size in (0, 1, 50, 0, 200, 3, 3):
        rows = random.integers(0, 9, (size, 2), np.int32)
        counts.add(rows)
        expected.update(map(tuple, rows.tolist()))
        if size == 200:
            counts.counted()  # changes nothing
    found, numbers = counts.counted()
    assert dict(zip(map(tuple, found.tolist()), numbers.tolist(), strict=True)) == expected
    assert found.tolist() == sorted(found.tolist())


def test_straddling_of_a_pair_by_brute_force(
    case: tuple[Aligner, list[str], dict[str, Any]],
) -> None:
    aligner, texts, facts = case
    batch = aligner.align_texts(texts)
    sides = {
        "teacher": (aligner.teacher, batch.teacher),
        "student": (aligner.student, batch.student),
    }
    vocabularies = {
        name: {side.token_bytes(i) for i in range(len(side))} - {b""}
        for name, (side, _) in sides.items()
    }
    counts = {
        name: Counter(side.token_bytes(int(token)) for token in ids.values)
        for name, (side, ids) in sides.items()
    }
    other = {"teacher": "student", "student": "teacher"}
    shared = Counter(
        unit.bytes
        for row in range(len(batch))
        for unit in batch.units(row)
        if unit.kind == UnitKind.SHARED
    )
    shares: dict[bytes, list[float]] = {}
    for token in shared:
        shares[token] = []
        for name, found in counts.items():
            begin = {text: n for text, n in found.items() if text.startswith(token)}
            longer = sum(
                n
                for text, n in begin.items()
                if len(text) > len(token) and text not in vocabularies[other[name]]
            )
            shares[token].append(longer / max(sum(begin.values()), 1))
    straddled = [token for token in shared if max(shares[token]) >= 0.02]
    assert facts["straddling"]["straddled_units"] == sum(shared[token] for token in straddled)
    assert facts["straddling"]["shared_units"] == sum(shared.values())
    longer_of = {
        name: {token: {t for t in words if t.startswith(token)} for token in list(shared)[:40]}
        for name, words in vocabularies.items()
    }
    same = {
        token
        for token in list(shared)[:40]
        if longer_of["teacher"][token] == longer_of["student"][token]
    }
    assert not same & set(straddled)
    assert sum(shared[token] for token in same) <= facts["straddling"]["never_straddled_units"]
    for row in facts["straddling"]["tokens"]:
        token = aligner.student.token_bytes(row["student_id"])
        assert [row["teacher_share"], row["student_share"]] == pytest.approx(shares[token])
        assert row["units"] == shared[token]
        for side, (side_vocabulary, _) in sides.items():
            listed = [(side_vocabulary.token_bytes(i), n) for i, _, n in row[f"{side}_longer"]]
            assert all(
                text.startswith(token)
                and len(text) > len(token)
                and text not in vocabularies[other[side]]
                for text, _ in listed
            )
            # Ids with the same bytes are listed each for itself.
            assert all(n <= counts[side][text] for text, n in listed)
            assert [n for _, n in listed] == sorted((n for _, n in listed), reverse=True)


def test_a_newline_of_two_meanings() -> None:
    teacher = Vocabulary.from_token_bytes([b"\n", b"\n   ", b" x", b"y", b"   "])
    student = Vocabulary.from_token_bytes([b"\n", b"    ", b"x", b"y", b" x"])
    # The teacher cuts "\n    x" as "\n   ", " x", the student as "\n", "    ", "x"; "\ny" is alike.
    rows = [[1, 2], [0, 3], [0, 3], [0, 3]], [[0, 1, 2], [0, 3], [0, 3], [0, 3]]
    aligner = Aligner(teacher, student)
    from simct_align.report.straddle import find_straddling
    from simct_align.report.tally import Tally

    tally = Tally(aligner)
    tally.add(aligner.align_batch(*rows), 0)
    found = find_straddling(aligner, tally)
    (token,) = found.tokens
    assert (token.student_id, token.units) == (0, 3)
    assert (token.teacher_share, token.student_share) == (0.25, 0.0)
    assert (token.teacher_longer, token.student_longer) == ([(1, 1)], [])
    assert (found.units, found.same_units) == (3, 3)  # nothing straddles the end of "y"


def class_of(unit: Unit) -> str | None:
    """The class of a text by the standard library, or None where it cannot say."""
    text = unit.bytes.decode("utf-8", "ignore")
    if text.encode() != unit.bytes or not text:
        return None
    systems = {"CJK": "Han"}
    kinds = []
    for character in text:
        category = unicodedata.category(character)
        if category[0] in "CM" or (ord(character) > 0x2100 and category[0] == "S"):
            return None
        if character.isspace():
            kinds.append((1, "White space"))
        elif category[0] in "PS":
            kinds.append((2, "Punctuation"))
        elif category[0] == "N":
            kinds.append((3, "Numbers"))
        else:
            first = unicodedata.name(character).split()[0]
            kinds.append((4, systems.get(first, first.title())))
    letters = {name for rank, name in kinds if rank == 4}
    if len(letters) > 1:
        return None
    if letters and set(text) & set('_(){}[]<>=+*/\\|&^%$#@~;:."`'):
        return "Code"
    return max(kinds)[1]


def test_classes_by_the_standard_library(case: tuple[Aligner, list[str], dict[str, Any]]) -> None:
    aligner, texts, _ = case
    batch = aligner.align_texts(texts)
    names = text_classes().names
    checked: Counter[str] = Counter()
    for row in range(len(batch)):
        units = batch.units(row)
        data = b"".join(unit.bytes for unit in units)
        ends = np.cumsum([len(unit.bytes) for unit in units], dtype=np.int64)
        starts = ends - [len(unit.bytes) for unit in units]
        for unit, number in zip(units, text_classes().of_spans(data, starts, ends), strict=True):
            expected = class_of(unit)
            if expected is not None and expected in names:
                assert names[number] == expected, unit
                checked[expected] += 1
    assert {"Latin", "Numbers", "White space", "Punctuation", "Cyrillic", "Greek"} <= set(checked)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("🎉", "Emoji"),
        ("👩‍🔬", "Emoji"),
        ("a🎉", "Emoji"),
        ("1a", "Latin"),
        ("+1", "Numbers"),
        (" +", "Punctuation"),
        (".append(", "Code"),
        ("don't", "Latin"),
        ("小", "Han"),
        ("", "Other"),
        ("\u0301", "Other"),
    ],
)
def test_classes(text: str, expected: str) -> None:
    data = f"é{text}é".encode()
    span = np.array([2]), np.array([len(data) - 2])
    classes = text_classes()
    assert classes.names[classes.of_spans(data, *span)[0]] == expected


def test_parts_of_characters_have_the_class_of_the_character() -> None:
    data = "🎉小".encode()
    classes = text_classes()
    starts, ends = np.array([0, 1, 4, 6]), np.array([1, 4, 6, 7])
    found = [classes.names[i] for i in classes.of_spans(data, starts, ends)]
    assert found == ["Emoji", "Emoji", "Han", "Han"]
    (alone,) = classes.of_spans(data[:2], np.array([0]), np.array([2]))
    assert classes.names[alone] == "Other"
    assert len(classes.of_spans(b"", np.zeros(0, np.int64), np.zeros(0, np.int64))) == 0


def test_one_sided_tokens(case: tuple[Aligner, list[str], dict[str, Any]]) -> None:
    aligner, _, facts = case
    texts = {
        name: {side.token_bytes(i) for i in range(len(side))} - {b""}
        for name, side in (("teacher", aligner.teacher), ("student", aligner.student))
    }
    for name, other in (("teacher", "student"), ("student", "teacher")):
        lengths = Counter(len(text) for text in texts[name] - texts[other])
        side = facts[name]
        assert side["one_sided"] == sum(lengths.values())
        assert sum(count for _, count in side["one_sided_by_bytes"]) == side["one_sided"]
        assert sum(count for _, count in side["one_sided_by_class"]) == side["one_sided"]
        by_bytes = dict(side["one_sided_by_bytes"])
        assert [by_bytes[f"{n}"] for n in (1, 2, 3, 4)] == [lengths[n] for n in (1, 2, 3, 4)]
        assert by_bytes["17+"] == sum(count for length, count in lengths.items() if length > 16)
        assert side["tokens_per_byte"] == side["tokens"] / facts["data"]["bytes"]


# --- the sample ----------------------------------------------------------------------------------


def test_the_sample_is_the_text(case: tuple[Aligner, list[str], dict[str, Any]]) -> None:
    aligner, texts, facts = case
    batch = aligner.align_texts(texts)
    sample = facts["sample"]
    assert len({text["number"] for text in sample["texts"]}) == len(sample["texts"])
    flagged = 0
    for text in sample["texts"]:
        units = batch.units(text["number"])
        spans = text["spans"]
        others = int(np.diff(batch.unmatched.row_offsets)[text["number"]])
        assert text["total_spans"] == len(units) + others
        whole = len(spans) == text["total_spans"]
        assert whole or len(spans) == 400
        for place, side in enumerate(("teacher", "student")):
            ids = [sample["tokens"][side][i][0] for i in text[side]]
            count = sum(span[place] for span in spans)
            row = getattr(batch, side).row(text["number"])
            assert ids == row[:count].tolist()
            assert count == len(row) or not whole
            own = getattr(aligner, side)
            for token, _, data in (sample["tokens"][side][i] for i in text[side]):
                assert bytes.fromhex(data) == own.token_bytes(token)
        flagged += sum(span[4] for span in spans)
        assert all(span[2] == UnitKind.SHARED for span in spans if span[4])
        if not others:
            assert [span[2] for span in spans] == [unit.kind for unit in units[:400]]
    assert flagged
    if facts["data"]["texts"] > 48:
        assert len(sample["texts"]) < facts["data"]["texts"]


def test_texts_with_unmatched_tokens_are_shown() -> None:
    texts = [*["plain words"] * 3_000, "a▁b", *["plain words"] * 3_000]
    sample = aligner_of(BUNDLED).report(texts).to_dict()["sample"]
    assert 3_000 in [text["number"] for text in sample["texts"]]
    assert len(sample["texts"]) == 41


def test_a_span_that_is_a_long_text() -> None:
    # The student's tokenizer writes spaces: nothing is equal to the end of the text.
    aligner = aligner_of(BUNDLED)
    long = "\u2581" * 100_000
    report = aligner.report(["12 apples", "12 " + long, long])
    facts = report.to_dict()
    assert sum(facts["coverage"]["teacher_unmatched"].values()) > 100_000
    assert len(report.html) < 500_000
    for text in facts["sample"]["texts"]:
        assert len(text["teacher"]) + len(text["student"]) <= 2_000
    assert [len(text["spans"]) == text["total_spans"] for text in facts["sample"]["texts"]] == [
        True, False, False,
    ]  # fmt: skip


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    aligner, texts = aligner_of(BUNDLED), texts_of_tests()
    whole = aligner.report(texts).to_dict()
    monkeypatch.setattr("simct_align.text_input._BATCH_TEXTS", 3)
    assert aligner.report(iter(texts), threads=1).to_dict() == whole


# --- edges and errors ----------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [[], [""], ["", ""], ["a"], ["🎉"]])
def test_small_data_makes_a_page(texts: list[str]) -> None:
    report = aligner_of(BUNDLED).report(texts)
    assert report.to_dict()["data"]["texts"] == len(texts)
    assert "</html>" in report.html
    json.dumps(report.to_dict(), allow_nan=False)


def test_a_tokenizer_with_itself() -> None:
    name = BUNDLED[0]
    report = Aligner(vocabulary(name), vocabulary(name)).report(demo_passage())
    facts = report.to_dict()
    assert "No token is one-sided" in report.html
    assert facts["methods"]["multi"]["units"] == facts["straddling"]["straddled_units"] == 0
    assert facts["teacher"]["one_sided"] == 0
    assert "Both sides have the same vocabulary" in [item["title"] for item in facts["warnings"]]


def test_wrong_texts() -> None:
    aligner = aligner_of(BUNDLED)
    with pytest.raises(TypeError, match="got one string"):
        aligner.report("text")
    with pytest.raises(TypeError, match=r"texts\[1\]"):
        aligner.report(["a", 2])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"texts\[0\]"):
        aligner.report(["\ud800"])


def test_an_aligner_without_tokenizers(tmp_path: Path) -> None:
    aligner_of(BUNDLED).save(tmp_path / "pair")
    with pytest.raises(MissingTokenizerError, match="the teacher's tokenizer"):
        Aligner.load(tmp_path / "pair").report(["a"])


def test_advice() -> None:
    aligner = Aligner(*map(vocabulary, BUNDLED), stop_tokens=(["<|end|>"], []))
    facts = aligner.report(["a▁b 12345"]).to_dict()
    titles = [item["title"] for item in facts["warnings"]]
    for part in ("No token that ends a turn is known", "Little data", "bytes_differ"):
        assert any(part in title for title in titles), part
    assert [item["level"] for item in facts["warnings"]] == sorted(
        (item["level"] for item in facts["warnings"]), reverse=True
    )


def test_ends_of_turn_are_those_that_are_compared() -> None:
    facts = aligner_of(BUNDLED).report(["a"]).to_dict()
    for side, name in (("teacher", "<|end|>"), ("student", "</s>")):
        (stop,) = facts[side]["ends_of_turn"]
        assert (stop["name"], stop["sources"]) == (name, ["tokenizer_config.json"])
    other = Aligner(*map(vocabulary, BUNDLED), stop_tokens=(["<|user|>"], ["</s>"]))
    (stop,) = other.report(["a"]).to_dict()["teacher"]["ends_of_turn"]
    assert (stop["name"], stop["sources"]) == ("<|user|>", ["the caller"])


def test_names_of_the_sides() -> None:
    aligner = aligner_of(BUNDLED)
    facts = aligner.report(["a"], teacher_name="<b>T</b>").to_dict()
    assert (facts["teacher"]["name"], facts["student"]["name"]) == ("<b>T</b>", "byte_fallback")


def test_names_of_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer.model.v3"):
        (folder / name).touch()
    for source, expected in {
        "model": "model",
        "model/": "model",
        "model/tokenizer.json": "model",
        "model/tokenizer.model.v3": "tokenizer.model.v3",
        ".": tmp_path.name,
        "org/model": "org/model",
    }.items():
        assert source_name(source) == expected


# --- the page as a file --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report() -> Report:
    return aligner_of(BUNDLED).report(texts_of_tests(), teacher_name="<b>T</b>")


def test_the_page_needs_nothing_else(report: Report) -> None:
    assert len(report.html.encode()) < 2_000_000
    assert not re.findall(r'(?:src|href)="(?!#)', report.html)
    assert "@import" not in report.html
    assert not re.findall(r"url\((?!#)", report.html)
    assert "default-src 'none'" in report.html


def test_texts_are_escaped(report: Report) -> None:
    assert "<b>T</b>" not in report.html
    assert "<script>alert" not in report.html
    assert report.html.count("<script") == 2
    # Control characters and those that turn the direction of text are never in the page.
    hidden = {c for c in report.html if unicodedata.category(c) in ("Cc", "Cf", "Cs")} - {"\n"}
    assert not hidden


def test_save(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    path.chmod(0o640)
    report.save(path)
    assert path.read_text(encoding="utf-8") == report.html
    assert path.stat().st_mode & 0o777 == 0o640
    report.save(str(tmp_path / "new.html"))
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / "new.html").stat().st_mode & 0o777 == 0o666 & ~umask
    with pytest.raises(OSError, match="none"):
        report.save(tmp_path / "none" / "report.html")
    with pytest.raises(OSError, match=re.escape(tmp_path.name)):
        report.save(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new.html", "report.html"]


def test_in_a_notebook(report: Report) -> None:
    frame = report._repr_html_()
    assert frame.startswith('<iframe srcdoc="&lt;!DOCTYPE html&gt;')
    assert frame.count("<") == 2


@pytest.mark.parametrize("name", ["jinja2", "vl_convert"])
def test_a_missing_library(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    find = page.importlib.util.find_spec
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda n: None if n == name else find(n))
    made = aligner_of(BUNDLED).report(["a"])
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'simct-align\[report\]'"):
        made.save(tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    aligner_of(BUNDLED).report(["a"] * 2_000, progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "texts" in shown.err
