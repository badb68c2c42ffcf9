"""The exact models of the null test, and the bench's values against plain Python."""

from __future__ import annotations

import csv
import functools
import itertools
import math
from collections import defaultdict

import numpy as np
import pytest
import torch

import null
from _exact_corpora import CORPORA, available, sample, tilted
from _exact_models import ExactModel, Pair
from _null_values import null_values
from simct_align import Aligner
from simct_align.loss.baselines import GOLDLoss
from support.paths import require
from support.vocabularies import vocabulary

DEMO = ("demo_byte_level", "demo_byte_fallback")
REVERSE_KLS = ("shared", "realized, mean", "realized, event")


def pair_of(teacher: str, student: str, texts: dict[str, float]) -> Pair:
    return Pair.of(vocabulary(teacher), vocabulary(student), texts)


def probabilities(texts: dict[str, float]) -> np.ndarray:
    return np.array(list(texts.values()))


@pytest.mark.parametrize("corpus", CORPORA)
def test_corpora_are_distributions_and_fixed(corpus):
    if corpus == "gsm8k":
        require("SIMCT_DATA", "gsm8k_train_2000.jsonl")
    texts = sample(corpus, 200)
    assert texts == sample(corpus, 200)
    assert math.fsum(texts.values()) == pytest.approx(1.0)
    assert len(texts) > 100
    others = [tilted(texts, seed) for seed in (1, 2)]
    for other in others:
        assert list(other) == list(texts)
        assert math.fsum(other.values()) == pytest.approx(1.0)
    assert max(abs(others[0][t] / others[1][t] - 1.0) for t in texts) > 0.5


def test_gsm8k_is_left_out_without_its_file(monkeypatch, tmp_path):
    monkeypatch.setattr("_exact_corpora.DATA", tmp_path)
    assert available() == [name for name in CORPORA if name != "gsm8k"]


@pytest.mark.parametrize("name", [*DEMO, "deepseek", "qwen_tiktoken", "mistral_v3", "gemma2"])
def test_exact_models_are_distributions_of_the_texts(name):
    """Rows sum to 1, and the chain rule gives every text its probability: all models agree."""
    for corpus in ("code", "words", "white_space", "numbers", "prose"):
        texts = sample(corpus, 60)
        model = ExactModel(vocabulary(name), tuple(texts))
        for p in (probabilities(texts), probabilities(tilted(texts, 1))):
            np.testing.assert_allclose(model.text_probabilities(p), p, rtol=1e-9)
            inner = {int(node) for path in model.nodes for node in path[:-1]}
            for node in sorted(inner)[:40]:
                row = model.row(node, p)
                assert math.fsum(row.values()) == pytest.approx(1.0, abs=1e-12)
                assert min(row.values()) > 0.0
        ends = [model.row(int(path[-2]), probabilities(texts)) for path in model.nodes]
        assert all(model.stop in row for row in ends)


def test_exact_models_need_a_stop_and_exact_bytes():
    from simct_align import Vocabulary

    without = Vocabulary.from_token_bytes([b"a"])
    with pytest.raises(ValueError, match="with a stop"):
        ExactModel(without, ("a",))

    class Upper:
        dummy_prefix, stop_ids = False, (0,)

        def encode_batch(self, texts):
            return [[1] for _ in texts]

        def decode_bytes(self, ids):
            return b"A" * (len(ids) - 1)

    with pytest.raises(ValueError, match="expected tokens that spell 'a', got b'A'"):
        ExactModel(Upper(), ("a",))


def plain_rows(vocab, texts):
    """The ids of every text, and the next-token distribution after every prefix, by counting."""
    ids, mass = {}, defaultdict(lambda: defaultdict(float))
    for text, p in texts.items():
        ids[text] = [*vocab.encode_batch([text])[0], vocab.stop_ids[0]]
        for k, token in enumerate(ids[text]):
            mass[tuple(ids[text][:k])][token] += p
    rows = {h: {t: m / sum(row.values()) for t, m in row.items()} for h, row in mass.items()}
    return ids, rows


def plain_places(vocab, ids):
    """Number of tokens that end at each byte of the text, and whether the first is trimmed."""
    places, at, trimmed = {0: 0}, 0, False
    for k, token in enumerate(ids[:-1]):
        data = vocab.token_bytes(token)
        if k == 0 and vocab.dummy_prefix:
            trimmed, data = data != b" ", data[1:]
        at += len(data)
        places[at] = k + 1
    return places, trimmed


def plain_value(teacher, student, p_teacher, p_student, *, realized, floor=0.0):
    """Nats per byte of the reverse KL over shared tokens, and over realized units by the mean.

    All columns take part here; the bench leaves out some of probability 1e-12.
    """
    aligner = Aligner(teacher, student)
    ids = aligner.shared.teacher_ids.tolist(), aligner.shared.student_ids.tolist()
    columns = [(t, s, teacher.token_bytes(t)) for t, s in zip(*ids, strict=True)]
    sides = [(v, *plain_rows(v, p)) for v, p in ((teacher, p_teacher), (student, p_student))]

    @functools.cache
    def log_row(side, prefix):
        """Log-probabilities of all tokens after a prefix."""
        vocab, _, rows = sides[side]
        row = rows[prefix]
        norm = 1.0 + 1e-12 * (len(vocab) - len(row))
        return [math.log(row.get(token, 1e-12) / norm) for token in range(len(vocab))]

    total = size = 0.0
    for text, p in p_student.items():
        size += p * len(text.encode())
        ids = [side[1][text] for side in sides]
        places, trimmed = zip(
            *(plain_places(vocab, row) for (vocab, _, _), row in zip(sides, ids, strict=True)),
            strict=True,
        )
        common = sorted(places[0].keys() & places[1].keys())
        units = [
            (start, [(at[start], at[end]) for at in places], text.encode()[start:end])
            for start, end in itertools.pairwise(common)
        ]
        units.append((-1, [(len(row) - 1, len(row)) for row in ids], b""))
        for start, ranges, data in units:
            multi = any(last - first > 1 for first, last in ranges)
            if (start == 0 and any(trimmed)) or (multi and not realized):
                continue
            scores = []
            for side, (first, last) in enumerate(ranges):
                kept = [c[side] for c in columns if not multi or c[2] != data]
                at_prefix = log_row(side, tuple(ids[side][:first]))
                row = [at_prefix[token] for token in kept]
                if multi:
                    steps = [
                        log_row(side, tuple(ids[side][:k]))[ids[side][k]]
                        for k in range(first, last)
                    ]
                    row.append(sum(steps) / len(steps))
                norm = math.log(math.fsum(map(math.exp, row)))
                scores.append([x - norm for x in row])
            total += p * math.fsum(
                math.exp(s) * (s - (max(t, math.log(floor)) if floor else t))
                for t, s in zip(*scores, strict=True)
            )
    return total / size


@pytest.mark.parametrize("names", [DEMO, DEMO[::-1]])
def test_values_equal_plain_python(names):
    texts = sample("arithmetic", 4) | {"x = 1\n\n": 0.5, "x = 12\n": 0.25}
    texts = {text: p / math.fsum(texts.values()) for text, p in texts.items()}
    tilts = tilted(texts, 2), tilted(texts, 1)
    found = null.measure(pair_of(*names, texts), texts)
    sides = [vocabulary(name) for name in names]
    for objective, realized, floor in (
        ("shared", False, 0.0), ("realized, mean", True, 0.0),
        ("realized, mean, floor 1e-6", True, 1e-6),
    ):  # fmt: skip
        expected = plain_value(*sides, texts, texts, realized=realized, floor=floor)
        assert found[objective].null == pytest.approx(expected, abs=1e-7), objective
        expected = plain_value(*sides, *tilts, realized=realized, floor=floor)
        assert found[objective].reported == pytest.approx(expected, abs=1e-7), objective
    size = math.fsum(p * len(t.encode()) for t, p in tilts[1].items())
    true_kl = math.fsum(p * math.log(p / tilts[0][t]) for t, p in tilts[1].items()) / size
    assert found["shared"].true_kl == pytest.approx(true_kl)


@pytest.mark.parametrize("name", ["demo_byte_level", "qwen_tiktoken"])
def test_one_tokenizer_on_both_sides_has_no_null_value_and_the_whole_kl(name):
    texts = sample("code", 30)
    pair = pair_of(name, name, texts)
    objectives = {name: entry for name, entry in null.OBJECTIVES.items() if not entry.every_column}
    for objective, value in null.values(pair, texts, objectives, pair.used).items():
        assert value.null == pytest.approx(0.0, abs=1e-8), objective
        if objective in REVERSE_KLS:
            assert value.reported == pytest.approx(value.true_kl, rel=1e-6), objective


@pytest.mark.parametrize(
    ("names", "corpus", "samples"),
    [(DEMO, "words", 12), (DEMO[::-1], "white_space", 12), (("mistral_v3", "deepseek"), "code", 2)],
)
def test_used_columns_give_the_values_of_all_columns(names, corpus, samples):
    texts = sample(corpus, samples)
    pair = pair_of(*names, texts)
    objectives = {name: entry for name, entry in null.OBJECTIVES.items() if not entry.every_column}
    used = null.values(pair, texts, objectives, pair.used)
    whole = null.values(pair, texts, objectives, pair.whole)
    # Which of the tokens that no text uses are among the 16 most probable ones is arbitrary.
    assert objectives.pop("strict, top 16")
    for name in objectives:
        assert used[name] == pytest.approx(whole[name], abs=1e-6), name
    # The weights of GOLD's parts are those that the loss itself takes with all columns.
    plain = {"GOLD": null.Objective(lambda aligner, _whole: GOLDLoss(aligner, reduction="none"))}
    assert null.values(pair, texts, plain, pair.whole)["GOLD"] == pytest.approx(whole["GOLD"])


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("deepseek", "qwen_tiktoken"), ("qwen_tiktoken", "mistral_v3"),
        ("mistral_v3", "qwen_tiktoken"), ("gpt4o", "gemma2"), ("gemma2", "gpt4o"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("corpus", ["code", "arithmetic", "words"])
def test_text_events_report_nothing_where_models_agree(teacher, student, corpus):
    """Mistral's tokenizer puts a space before every text, as a token of its own or glued on."""
    texts = sample(corpus, 100)
    pair = pair_of(teacher, student, texts)
    objectives = {
        name: entry for name, entry in null.OBJECTIVES.items() if name.startswith(null.TEXT)
    }
    found = null.values(pair, texts, objectives, pair.whole, torch.float32, evaluated=6)
    assert len(found) == 2
    for name, value in found.items():
        assert -1e-5 < value.null <= null.BARS[corpus], name
        assert value.offsets_left_out <= null.MOST_LEFT_OUT, name
        assert value.evaluated == 6
        assert math.isnan(value.reported)


def test_units_and_batches_do_not_change_with_memory(monkeypatch):
    texts = sample("words", 12)
    pair = pair_of(*DEMO, texts)
    objectives = {"realized, mean": null.OBJECTIVES["realized, mean"]}
    together = null.values(pair, texts, objectives, pair.used)
    monkeypatch.setattr("_exact_models.LOGIT_BYTES", 1)
    alone = null.values(pair, texts, objectives, pair.used)
    assert together["realized, mean"] == pytest.approx(alone["realized, mean"], rel=1e-12)
    units, left_out = pair.units
    assert units > 12
    assert 0 < left_out <= 12  # the student's first tokens lose a dummy prefix


def test_quick_measures_both_directions_and_records_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(null, "QUICK_TEXTS", 6)
    path = tmp_path / "null.csv"
    null.main(["--quick", "--csv", str(path)])
    printed = capsys.readouterr()
    assert "6 of 6: demo_byte_fallback teaches demo_byte_level, words" in printed.err
    assert all(name in printed.out for name in null.OBJECTIVES)
    assert not path.exists()


def test_rows_are_recorded_and_read_again(capsys, tmp_path):
    path = tmp_path / "null.csv"
    arguments = ["--teacher", DEMO[0], "--student", DEMO[1], "--corpus", "code", "--texts", "5"]
    arguments += ["--csv", str(path)]
    null.main(arguments)
    null.main(arguments)
    assert f"appended to {path}" in capsys.readouterr().out
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == null.FIELDS
    assert [row["objective"] for row in rows] == [*null.OBJECTIVES] * 2
    assert {row["samples"] for row in rows} == {"5"}
    picture = null_values(path)
    assert next(iter(picture)) == "shared"
    assert picture["realized, mean"] == {"code": [float(rows[1]["null"])]}
    assert "ULD" not in picture
    null.append(path, [{**rows[0], "teacher": "other"}])
    assert list(null_values(path)) == ["shared"]  # the others have fewer pairs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "nobody"], "--teacher: expected some of .*; got 'nobody'"),
        (["--corpus", "code,poems"], "--corpus: expected some of .*; got 'poems'"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(SystemExit, match=message):
        null.main(arguments)
