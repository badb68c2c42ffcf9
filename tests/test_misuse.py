"""What is easily got wrong: it works, or one clear error names the argument and the place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from simct_align import Aligner, LinearSimCTLoss, SimCTLoss, Vocabulary
from simct_align.cli import main
from simct_align.demo import demo_tokenizers
from simct_align.loss.baselines import ULDLoss

TEACHER = Vocabulary.from_token_bytes([b"12", b"+"])
STUDENT = Vocabulary.from_token_bytes([b"1", b"2", b"+"])


def byte_level(vocab, merges=(), *, space=False):
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(vocab)}, merges=[*merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


# One vocabulary on both sides


def test_one_vocabulary_with_another_end_of_turn_on_either_side():
    """A base model's EOS against a chat model's."""
    names = {2: "<|endoftext|>", 3: "<|im_end|>"}
    teacher, student = (
        Vocabulary.from_token_bytes([b"a", b"b", b"", b""], special=names, stop_ids=[stop])
        for stop in (2, 3)
    )
    aligner = Aligner(teacher, student)
    assert teacher.digest == student.digest
    prompts = {"teacher_prompt_ids": [[0], [0]], "student_prompt_ids": [[0], [0]]}
    ready = aligner.prepare([[1, 3], [1]], **prompts)
    assert ready.teacher.input_ids.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert ready.student.input_ids.tolist() == [[0, 1, 3], [0, 1, 3]]
    kinds = [[unit.kind.name for unit in ready.aligned.units(row)] for row in (0, 1)]
    assert kinds == [["SHARED", "SPECIAL"]] * 2
    assert not any(ready.aligned.coverage().student_unmatched.values())


def test_padding_of_the_embeddings_makes_no_other_vocabulary():
    source = demo_tokenizers()[0]
    plain = Vocabulary.from_tokenizer(source)
    sizes = [Vocabulary.from_tokenizer(source, vocab_size=len(plain) + n) for n in (0, 7, 130)]
    assert len({vocabulary.digest for vocabulary in sizes}) == 1
    every_id = np.arange(len(plain))
    for pair in ((sizes[1], sizes[2]), (sizes[2], sizes[1])):
        aligner = Aligner(*pair)
        assert len(aligner.shared.teacher_ids) == (plain.kinds != 3).sum()
        crossed = aligner.retokenize([every_id[plain.kinds != 3]])
        assert crossed.tolist() == [every_id[plain.kinds != 3].tolist()]


def test_padding_in_the_middle_is_no_padding():
    holes = [Vocabulary.from_token_bytes([b"a", b"", b"b"], unused=[1])]
    holes.append(Vocabulary.from_token_bytes([b"a", b"b", b""], unused=[2]))
    assert holes[0].digest != holes[1].digest


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        # The same bytes, cut elsewhere.
        (
            byte_level(["a", "b", "ab", "aab"], [("a", "b"), ("a", "ab")]),
            byte_level(["a", "b", "aba", "ab"], [("a", "b"), ("ab", "a")]),
        ),
        (byte_level(["a", "Ġ"]), byte_level(["a", "Ġ"], space=True)),
        (byte_level(["a", "b"]), byte_level(["a", "b", "c"])),
    ],
    ids=["boundaries", "dummy prefix", "more tokens"],
)
def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path, right, wrong):
    Aligner(right, byte_level(["a", "b", "Ġ"])).save(tmp_path / "pair")
    again = Aligner.load(tmp_path / "pair", teacher_tokenizer=right)
    assert again.teacher.encode_batch(["a"])
    again = Aligner.load(tmp_path / "pair", teacher_tokenizer=wrong)
    with pytest.raises(ValueError, match="other tokens"):
        again.teacher.encode_batch(["a"])


# Logits and the index


@pytest.fixture
def padded():
    """Three dense rows, the last of which takes no part, and logits of both sides."""
    aligner = Aligner(TEACHER, STUDENT)
    mask = np.array([[1], [1], [0]])
    batch = aligner.align_batch(
        np.array([[1, 0, 1]] * 3), np.array([[2, 0, 1, 2]] * 3),
        teacher_mask=mask.repeat(3, 1), student_mask=mask.repeat(4, 1),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, *s, generator=generator) for s in ((4, 3), (3, 2)))
    return aligner, batch, student, teacher


def test_shifted_logits_need_an_index_of_their_length(padded):
    aligner, batch, student, teacher = padded
    short_student, short_teacher = student[:, :-1], teacher[:, :-1]
    index = batch.index()
    for loss_fn in (SimCTLoss(aligner), ULDLoss(aligner)):
        with pytest.raises(ValueError, match=r"student_logits has rows of 3 .*student_stride=3"):
            loss_fn(teacher_logits=teacher, student_logits=short_student, index=index)
        with pytest.raises(ValueError, match=r"teacher_logits has rows of 2 .*teacher_stride=2"):
            loss_fn(teacher_logits=short_teacher, student_logits=student, index=index)
    right = SimCTLoss(aligner)(teacher_logits=teacher, student_logits=student, index=index).loss
    fitting = batch.index(student_stride=3, teacher_stride=2)
    for given in (fitting, batch):
        loss = SimCTLoss(aligner)(
            teacher_logits=short_teacher, student_logits=short_student, index=given
        ).loss
        torch.testing.assert_close(loss, right)
    with pytest.raises(ValueError, match="student_stride: expected at least 3"):
        SimCTLoss(aligner)(teacher_logits=teacher, student_logits=student[:, -2:], index=batch)


def test_too_few_rows_of_logits_are_counted(padded):
    aligner, batch, student, teacher = padded
    flat_student, flat_teacher = student.flatten(0, 1), teacher.flatten(0, 1)
    index = batch.index()
    needed = 3 + 4  # the last step of the second row; the third takes no part
    assert index.student_rows_needed == needed
    loss_fn = SimCTLoss(aligner)
    loss = loss_fn(
        teacher_logits=flat_teacher, student_logits=flat_student[:needed], index=index
    ).loss
    torch.testing.assert_close(
        loss, loss_fn(teacher_logits=teacher, student_logits=student, index=index).loss
    )
    with pytest.raises(ValueError, match=r"student_logits has 6 rows .* reads 7"):
        loss_fn(teacher_logits=flat_teacher, student_logits=flat_student[: needed - 1], index=index)
    hidden = {"student_hidden": torch.zeros(needed - 1, 2), "student_weight": torch.zeros(3, 2)}
    hidden |= {"teacher_hidden": torch.zeros(9, 2), "teacher_weight": torch.zeros(2, 2)}
    with pytest.raises(ValueError, match="student_hidden has 6 rows"):
        LinearSimCTLoss(aligner)(**hidden, index=index)


def test_padded_logits_need_a_stride_for_ragged_ids():
    aligner = Aligner(TEACHER, STUDENT)
    batch = aligner.align_batch([[1, 0, 1], [1, 0]], [[2, 0, 1, 2], [2, 0, 1]])
    student, teacher = torch.randn(2, 4, 3), torch.randn(2, 3, 2)
    with pytest.raises(ValueError, match=r"built for packed rows: .*teacher_stride=3"):
        SimCTLoss(aligner)(teacher_logits=teacher, student_logits=student, index=batch.index())
    index = batch.index(student_stride=4, teacher_stride=3)
    expected = SimCTLoss(aligner)(teacher_logits=teacher, student_logits=student, index=batch).loss
    torch.testing.assert_close(
        SimCTLoss(aligner)(teacher_logits=teacher, student_logits=student, index=index).loss,
        expected,
    )
    # One row of packed logits is packed.
    packed = {
        f"{side}_logits": torch.cat([z[0], z[1, :-1]])[None]
        for side, z in (("student", student), ("teacher", teacher))
    }
    torch.testing.assert_close(SimCTLoss(aligner)(**packed, index=batch.index()).loss, expected)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"student_stride": 1}, "student_stride: expected at least 3"),
        ({"teacher_stride": 1}, "teacher_stride: expected at least 2"),
        ({"student_stride": -5}, "student_stride is -5, expected at least 0"),
        ({"student_row_starts": [0, -9]}, "student_row_starts: the index would read row -9"),
        ({"student_row_starts": np.array([0, 2**63], np.uint64)}, "student_row_starts"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": 10**30}, "threads is 10"),
    ],
    ids=str,
)
def test_layouts_that_cannot_be(keywords, message):
    batch = Aligner(TEACHER, STUDENT).align_batch([[1, 0, 1], [1, 0]], [[2, 0, 1, 2], [2, 0, 1]])
    with pytest.raises(ValueError, match=message):
        batch.index(**keywords)


@pytest.mark.parametrize("max_path", [0, 8])
def test_rows_behind_a_path_are_needed_too(max_path):
    """A continuation's last token is read behind the realized ones: there, a row further on."""
    teacher = Vocabulary.from_token_bytes([b"a", b"b", b"ab", b"c"])
    student = Vocabulary.from_token_bytes([b"a", b"b", b"c"])
    batch = Aligner(teacher, student).align_batch([[3, 0]], [[2, 0]])
    index = batch.index(max_path=max_path)
    assert (index.teacher_rows_needed, index.student_rows_needed) == (1, 2 if max_path else 1)


@pytest.mark.parametrize("shape", [(0,), (2, 0), (0, 3)])
@pytest.mark.parametrize("candidates", ["shared", "realized", "on_path"])
def test_no_rows_of_logits_give_no_loss(shape, candidates):
    aligner = Aligner(TEACHER, STUDENT)
    index = aligner.align_batch([], []).index(max_path=8)
    student = torch.zeros(*shape, 3, requires_grad=True)
    out = SimCTLoss(aligner, candidates=candidates)(
        teacher_logits=torch.zeros(*shape, 2), student_logits=student, index=index
    )
    out.loss.backward()
    assert out.loss == 0
    assert student.grad.shape == student.shape


@pytest.mark.parametrize("cap", [0.0, -1.0, float("inf"), float("nan")])
def test_soft_caps_are_positive_numbers(cap):
    index = Aligner(TEACHER, STUDENT).align_batch([[1]], [[2]]).index()
    tensors = {"teacher_hidden": torch.zeros(1, 2), "teacher_weight": torch.zeros(2, 2)}
    tensors |= {"student_hidden": torch.zeros(1, 2), "student_weight": torch.zeros(3, 2)}
    with pytest.raises(ValueError, match="teacher_softcap: expected a positive number"):
        LinearSimCTLoss(Aligner(TEACHER, STUDENT))(**tensors, index=index, teacher_softcap=cap)


# Arguments


def test_counts_may_be_numpy_integers():
    aligner = Aligner(
        Vocabulary.from_token_bytes([b"a", b""], special=[1]),
        Vocabulary.from_token_bytes([b"a", b""], special=[1]),
        stop_tokens=([np.int64(1)], [np.int32(1)]),
    )
    assert aligner.shared.teacher_stop_ids.tolist() == [1]
    batch = aligner.align_batch([[0, 0]], [[0, 0]], threads=np.int64(1))
    assert len(batch.index(max_path=np.int64(2), threads=np.int8(1))) == 1
    assert batch.coarsen(np.int64(2)).n_units == 1


def test_the_batch_of_another_pair_is_refused():
    batch = Aligner(TEACHER, STUDENT).align_batch([[1]], [[2]])
    with pytest.raises(ValueError, match=r"batch: expected a batch that .* made"):
        Aligner(STUDENT, TEACHER).continuations(batch)
    assert len(Aligner(TEACHER, STUDENT).continuations(batch).of_unit(0)) == 0


@pytest.mark.parametrize("kind", [7, None, "multy"])
def test_kinds_of_units_are_known(kind):
    with pytest.raises(ValueError, match="kind: expected"):
        Aligner(TEACHER, STUDENT).align_batch([[1]], [[2]]).without(kind)


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ("abc", TypeError, "texts: expected a list of strings, got one string"),
        (["fine", None], TypeError, r"texts\[1\]: expected a string, got NoneType"),
        (["fine", "x\ud83d"], ValueError, r"texts\[1\] is not valid Unicode at character 1"),
    ],
)
def test_texts_are_named(texts, error, message):
    with pytest.raises(error, match=message):
        Aligner(*demo_tokenizers()).align_texts(texts)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"student_max_length": -1}, ValueError, "student_max_length is -1"),
        ({"teacher_max_length": -1}, ValueError, "teacher_max_length is -1"),
        ({"teacher_max_length": 2.5}, TypeError, "teacher_max_length: expected an integer"),
        ({"pad_to_multiple_of": 0}, ValueError, "pad_to_multiple_of is 0"),
        ({"truncated": True}, TypeError, "truncated: expected one flag per row"),
        ({"truncated": "n"}, TypeError, "truncated"),
    ],
    ids=str,
)
def test_limits_of_prepared_rows(keywords, error, message):
    aligner = Aligner(byte_level(["1", "2", "+"]), STUDENT)
    with pytest.raises(error, match=message):
        aligner.prepare([[0]], teacher_prompt_ids=[[2]], student_prompt_ids=[[2]], **keywords)


# The command line


def test_a_byte_order_mark_is_no_text(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "12"}\n', encoding="utf-8-sig")
    plain = tmp_path / "plain.txt"
    plain.write_text("12\n", encoding="utf-8-sig")
    outputs = []
    for file in (rows, plain):
        assert main(["align", *map(str, demo_tokenizers()), "--file", str(file), "--json"]) == 0
        outputs.append(capsys.readouterr().out.splitlines()[0])
    assert "\\ufeff" not in outputs[1]
    assert '"12"' in outputs[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here: left out")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "simct_align.cli", "demo"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "simct-align: cannot write: No space left on device\n"


def test_a_thread_count_that_no_machine_has(capsys):
    code = main(["align", *map(str, demo_tokenizers()), "--text", "x", "--threads", "9" * 30])
    assert code == 2
    assert "threads is 999" in capsys.readouterr().err
