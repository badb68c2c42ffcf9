"""From conversational rows to tensors and index, in the process and in data-loader workers."""

from __future__ import annotations

import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch.utils.data import DataLoader, Dataset  # noqa: E402

from simct_align.collator import SimCTCollator  # noqa: E402
from support.chat_tokenizers import (  # noqa: E402
    demo_aligner,
    demo_chat_tokenizers,
    real_aligner,
    real_chat_tokenizer,
)
from support.texts import answers  # noqa: E402

CONVERSATION = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And 5 + 7? "},
    {"role": "assistant", "content": "That is 12 🙂."},
]
ROWS = [
    {"messages": CONVERSATION},
    {"prompt": CONVERSATION[:1], "completion": CONVERSATION[1:2]},
    {"prompt": "A line of text that ends in a space ", "completion": "and goes on ▁ here"},
    {"messages": CONVERSATION[:3], "completion_ids": [[700, 701], [702, 0, 1, 900, 42]]},
    {"prompt": CONVERSATION[:1], "completion_ids": [1000, 1001], "truncated": True},
    {"prompt": "empty:", "completion": ""},
]
SIDES = ("", "teacher_")
NAMES = ("input_ids", "attention_mask", "labels", "completion_mask")


def collator_of(*, turned: bool = False, **options) -> SimCTCollator:
    tokenizers = demo_chat_tokenizers()
    return SimCTCollator(
        demo_aligner(turned=turned), *tokenizers[:: -1 if turned else 1], **options
    )


def assert_same(found, expected) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if torch.is_tensor(value):
            assert torch.equal(found[name], value), name
    assert found["counts"] == expected["counts"]
    assert np.array_equal(np.asarray(found["index"].packed), expected["index"].packed)
    assert found["index"].sizes() == expected["index"].sizes()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_every_kind_of_row(turned, padding_side):
    collator = collator_of(turned=turned, padding_side=padding_side, pad_to_multiple_of=4)
    batch = collator(ROWS)
    assert set(batch) == {side + name for side in SIDES for name in NAMES} | {"index", "counts"}
    for side in SIDES:
        shape = batch[side + "input_ids"].shape
        assert shape[0] == len(ROWS)
        assert shape[1] % 4 == 0
        assert all(batch[side + name].shape == shape for name in NAMES)
        assert all(batch[side + name].dtype == torch.int64 for name in NAMES)
        labels = torch.where(
            batch[side + "completion_mask"] == 1, batch[side + "input_ids"], torch.tensor(-100)
        )
        assert torch.equal(labels, batch[side + "labels"])
        column = -1 if padding_side == "left" else 0
        assert (batch[side + "attention_mask"][:, column] == 1).all()
    counts = batch["counts"]
    assert (counts["turns"], counts["truncated_turns"], counts["rows"]) == (8, 1, 6)
    assert (
        counts["student_tokens_in_units"] + counts["specials_left_out"] + counts["empty_left_out"]
        == (counts["student_tokens"])
    )
    assert counts["units_special"] == counts["specials"] >= 7

    index = batch["index"]
    for prefix, rows in (("", index.student_row), ("teacher_", index.teacher_row)):
        mask = batch[prefix + "completion_mask"].reshape(-1).numpy()
        # The row that predicts a unit's first token is the one before it.
        assert mask[rows + 1].all()
    for prefix, side in (("", "student"), ("teacher_", "teacher")):
        flat = batch[prefix + "input_ids"].reshape(-1).numpy()
        step_rows = getattr(index, f"{side}_step_row")
        assert np.array_equal(flat[step_rows + 1], getattr(index, f"{side}_step_id"))


def test_texts_are_the_completions_exactly():
    collator = collator_of()
    batch = collator.prepare(ROWS)
    texts = [
        [b"It is 4.", "That is 12 🙂.".encode()],
        [b"It is 4."],
        ["and goes on ▁ here".encode()],
    ]
    for row, expected in enumerate(texts):
        for side, vocab in (
            (batch.student, collator.aligner.student),
            (batch.teacher, collator.aligner.teacher),
        ):
            taken = np.flatnonzero(side.completion_mask[row])
            runs = np.split(taken, np.flatnonzero(np.diff(taken) > 1) + 1)
            assert [vocab.decode_bytes(side.input_ids[row][run]) for run in runs] == expected
            assert all(side.input_ids[row][run[-1]] in vocab.stop_ids for run in runs)


def test_sampled_ids_stay_as_they_are():
    collator = collator_of()
    row = {"prompt": CONVERSATION[:1], "completion_ids": [5, 5, 1, 300], "truncated": True}
    batch = collator([row])
    taken = batch["completion_mask"][0] == 1
    assert batch["input_ids"][0][taken].tolist() == [5, 5, 1, 300]


def test_text_never_becomes_a_control_token():
    collator = collator_of()
    content = "<|end|></s><s> [A] <|assistant|>"
    row = {"prompt": CONVERSATION[:1], "completion": [{"role": "assistant", "content": content}]}
    batch = collator([row])
    assert batch["counts"]["units_special"] == 1
    for prefix, vocab in (("", collator.aligner.student), ("teacher_", collator.aligner.teacher)):
        ids = batch[prefix + "input_ids"][0][batch[prefix + "completion_mask"][0] == 1]
        assert vocab.decode_bytes(ids.numpy()).decode() == content


def test_only_the_last_turn():
    batch = collator_of(turns="last")(ROWS[:1])
    both = collator_of()(ROWS[:1])
    assert batch["counts"]["turns"] == 1
    mask = both["completion_mask"][0]
    last = int(np.flatnonzero(np.diff(mask.numpy()) == 1)[-1]) + 1
    assert batch["input_ids"].tolist() == both["input_ids"].tolist()
    assert batch["completion_mask"][0].tolist() == [0] * last + mask[last:].tolist()


def test_length_limits_and_padding_ids():
    tokenizers = demo_chat_tokenizers()
    batch = collator_of(student_max_length=16, teacher_max_length=18)(ROWS)
    assert batch["input_ids"].shape[1] == 16
    assert batch["teacher_input_ids"].shape[1] <= 18
    assert batch["counts"]["student_tokens_cut"] > 0
    for prefix, tokenizer in (("teacher_", tokenizers[0]), ("", tokenizers[1])):
        padded = batch[prefix + "attention_mask"] == 0
        assert (batch[prefix + "input_ids"][padded] == tokenizer.eos_token_id).all()


def test_continuations_and_options():
    batch = collator_of(max_path=4)(ROWS)
    assert batch["index"].max_path == 4
    assert batch["index"].n_teacher_entries > 0
    plain = collator_of()(ROWS)
    assert plain["index"].max_path == 0
    shouted = collator_of(chat_template_kwargs={"chat_template": "{{ 'X' }}"})
    with pytest.raises(ValueError, match=r"row 0: the \w+'s .* content of message 1 0 times"):
        shouted(ROWS[:1])
    own = {**ROWS[1], "chat_template_kwargs": {"chat_template": "{{ 'Q:' }}"}}
    with pytest.warns(UserWarning, match=r"the row has 'Q:It is 4\.', the template writes 'Q:'"):
        batch = collator_of()([own])
    assert batch["input_ids"].shape[1] < collator_of()([ROWS[1]])["input_ids"].shape[1]


def test_rows_that_cannot_be_read_are_named():
    collator = collator_of()
    for row, message in (
        ({"text": "x"}, r"row 1 has the keys \['text'\]"),
        ({"prompt": "x"}, r"row 1 has the keys \['prompt'\]"),
        (
            {"prompt": "x", "completion": []},
            "'prompt' is of type str and 'completion' of type list",
        ),
        (
            {"prompt": [], "completion": "x"},
            "'prompt' is of type list and 'completion' of type str",
        ),
        ({"messages": CONVERSATION[:1]}, "row 1 has no assistant turn"),
        (
            {"messages": CONVERSATION, "completion_ids": [1]},
            "has 1 turns, expected 2 as in the messages",
        ),
        (
            {"messages": [CONVERSATION[0], {"role": "assistant", "content": None}]},
            "row 1, message 1 has content of type NoneType",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            collator([ROWS[0], row])
    with pytest.raises(ValueError, match="turns: expected 'all' or 'last', got 'some'"):
        collator_of(turns="some")
    with pytest.raises(ValueError, match="padding_side: expected 'left' or 'right', got 'up'"):
        collator_of(padding_side="up")


@pytest.mark.parametrize(("start", "workers"), [("fork", 2), ("spawn", 1)])
def test_workers_give_what_the_process_gives(start, workers):
    collator = collator_of(max_path=3)
    rows = ROWS * 3
    with warnings.catch_warnings():
        # Without an accelerator there is nothing to pin for, which torch says.
        warnings.filterwarnings("ignore", message=".*pin_memory.*")
        loader = DataLoader(
            rows,
            batch_size=4,
            collate_fn=collator,
            num_workers=workers,
            multiprocessing_context=start,
            pin_memory=True,
        )
        found = list(loader)
    expected = [collator(rows[start : start + 4]) for start in range(0, len(rows), 4)]
    assert len(found) == len(expected) == 5
    for batch, same in zip(found, expected, strict=True):
        assert_same(batch, same)
    if torch.cuda.is_available():
        assert all(batch["index"].packed.is_pinned() for batch in found)


def test_what_leaves_a_worker_is_small():
    """No tokenizer, vocabulary or table travels with a batch."""
    batch = collator_of()(ROWS)
    assert len(pickle.dumps(batch["index"])) < batch["index"].packed.nbytes + 2000
    assert len(pickle.dumps(batch)) < 100_000


class Deadly(Dataset):
    """Kills its worker in the middle."""

    def __len__(self):
        return 12

    def __getitem__(self, number):
        if number == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return ROWS[number % len(ROWS)]


def test_a_killed_worker_is_an_error_not_a_gap():
    """In a process of its own: torch raises from a signal handler, at whatever runs just then."""
    script = """
        from torch.utils.data import DataLoader
        from test_collator import Deadly, collator_of
        loader = DataLoader(Deadly(), batch_size=2, collate_fn=collator_of(), num_workers=1)
        batches = 0
        for _ in loader:
            batches += 1
        print("all", batches)
    """
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=120,
        check=False,
    )
    assert ran.returncode != 0
    assert "all" not in ran.stdout
    # Which of them torch sees first, the signal or the broken connection, is a race.
    seen = r"DataLoader worker .*(killed|exited unexpectedly)|ConnectionResetError|EOFError"
    assert re.search(seen, ran.stderr), ran.stderr


def test_threads_are_one_in_a_worker(monkeypatch):
    collator = collator_of()
    assert collator._threads() is None
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: object())
    assert collator._threads() == 1
    assert collator_of(threads=3)._threads() == 3


def test_the_index_feeds_the_loss():
    from simct_align import SimCTLoss

    collator = collator_of()
    batch = collator(ROWS)
    shape = (*batch["input_ids"].shape, len(collator.aligner.student))
    student = torch.randn(shape, generator=torch.Generator().manual_seed(1), requires_grad=True)
    teacher_shape = (*batch["teacher_input_ids"].shape, len(collator.aligner.teacher))
    teacher = torch.randn(teacher_shape, generator=torch.Generator().manual_seed(2))
    loss = SimCTLoss(collator.aligner)(
        teacher_logits=teacher, student_logits=student, index=batch["index"].to("cpu")
    )
    value = loss.loss if hasattr(loss, "loss") else loss
    value.backward()
    assert torch.isfinite(value)
    # Only logits that predict a completion's tokens are learned from.
    touched = student.grad.abs().sum(-1) > 0
    predicts = torch.zeros_like(touched)
    predicts[:, :-1] = batch["completion_mask"][:, 1:] == 1
    assert (touched & ~predicts).sum() == 0
    assert touched.sum() > 0


@pytest.mark.parametrize("names", [("deepseek", "demo_byte_level"), ("gemma2", "qwen2_5")])
def test_real_conversations(names):
    aligner = real_aligner(*names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator = SimCTCollator(aligner, *map(real_chat_tokenizer, names))
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Go on."},
                {"role": "assistant", "content": text},
            ]
        }
        for text in answers(24)
    ]
    batch = collator(rows)
    counts = batch["counts"]
    assert counts["student_tokens_in_units"] == counts["student_tokens"]
    assert counts["teacher_tokens_in_units"] == counts["teacher_tokens"]
    assert counts["units_special"] == 24
    # What the templates write, with the completions in it.
    for prefix, name in zip(("teacher_", ""), names, strict=True):
        tokenizer = real_chat_tokenizer(name)
        ids = batch[prefix + "input_ids"][3][batch[prefix + "attention_mask"][3] == 1]
        text = tokenizer.apply_chat_template(rows[3]["messages"], tokenize=False)
        assert text == tokenizer.decode(ids, skip_special_tokens=False)
