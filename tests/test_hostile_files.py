"""Files that strangers made: one clear error each, in bounded time and memory, and no panic."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import random
import signal
import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tiktoken
import torch

from simct_align import Aligner, Vocabulary
from simct_align.limits import library_errors
from simct_align.loss import SimCTLoss, TextLoss
from support.saved_files import mutated, saved_pair, signed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PLAIN: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": False,
    },
    "post_processor": None,
    "decoder": {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    },
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {"a": 0, "b": 1, "ab": 2},
        "merges": [["a", "b"]],
    },
}
DEEP = b"[" * 100_000 + b"]" * 100_000


def tokenizer_json(**model: Any) -> bytes:
    state = copy.deepcopy(PLAIN)
    state["model"] |= model
    return json.dumps(state).encode()


def with_part(name: str, part: Any) -> bytes:
    return json.dumps(PLAIN | {name: part}).encode()


def added(**entry: Any) -> bytes:
    plain = {"id": 3, "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False}
    return with_part("added_tokens", [{**plain, "normalized": False, "special": True, **entry}])


def precompiled(charsmap: str) -> bytes:
    return with_part("normalizer", {"type": "Precompiled", "precompiled_charsmap": charsmap})


def replaced(content: str, times: int) -> bytes:
    part = {"type": "Replace", "pattern": {"String": "a"}, "content": content}
    return with_part("normalizer", {"type": "Sequence", "normalizers": [part] * times})


UNREADABLE = "is not a tokenizer.json"
#: What cannot be opened.
BAD_FILES = {
    "id 2^31": (tokenizer_json(vocab={"a": 0, "b": 1, "ab": 2**31}), "has the id 2147483648"),
    "id 2^32 - 1": (tokenizer_json(vocab={"a": 0, "b": 1, "ab": 2**32 - 1}), "ids up to 16777214"),
    "id 2^24": (tokenizer_json(vocab={"a": 0, "b": 1, "ab": 2**24}), "ids up to 16777214"),
    "id 2^32": (tokenizer_json(vocab={"a": 0, "b": 1, "ab": 2**32}), UNREADABLE),
    "negative id": (tokenizer_json(vocab={"a": 0, "b": 1, "ab": -1}), UNREADABLE),
    "negative added id": (added(id=-1), UNREADABLE),
    "one id for two tokens": (tokenizer_json(vocab={"a": 0, "b": 1, "ab": 1}), "to two tokens"),
    "a merge of no tokens": (tokenizer_json(merges=[["q", "z"]]), UNREADABLE),
    "a merge to no token": (tokenizer_json(merges=[["b", "a"]]), UNREADABLE),
    "a merge of three": (tokenizer_json(merges=["a b c"]), UNREADABLE),
    "invalid UTF-8": (tokenizer_json().replace(b'"ab": 2', b'"\xff\xfe": 2'), UNREADABLE),
    "half a surrogate": (tokenizer_json().replace(b'"ab": 2', rb'"\ud800": 2'), UNREADABLE),
    "UTF-16": (tokenizer_json().decode().encode("utf-16"), UNREADABLE),
    "deep": (DEEP, UNREADABLE),
    "deep decoder": (
        tokenizer_json().replace(b'"decoder": {', b'"decoder": ' + b'{"x": ' * 9_999 + b"{"),
        UNREADABLE,
    ),
    "a table that is none": (precompiled("AAAA"), "the library fails: .*precompiled_charsmap"),
    "a text that grows": (replaced("a" * 10, 9), "1000000000 times as long"),
}
#: What opens, and cannot encode some text.
BAD_TEXTS = {
    "a table that lies": (precompiled("BAAAAP////8AAAA="), "out of bounds"),
    "a replacement of nothing": (
        with_part("normalizer", {"type": "Replace", "pattern": {"String": ""}, "content": "a"}),
        "out of bounds",
    ),
    "an expression without end": (
        with_part(
            "pre_tokenizer",
            {
                "type": "Split",
                "pattern": {"Regex": "(a+)+$"},
                "behavior": "Isolated",
                "invert": False,
            },
        ),
        "retry-limit",
    ),
    "an unknown token that is not there": (tokenizer_json(unk_token="<unk>"), "Unk token"),
}


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Whatever a file says, no test of this file takes long."""
    begun = time.perf_counter()
    yield
    assert time.perf_counter() - begun < 60


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(tmp_path: Path, case: str) -> None:
    data, message = BAD_FILES[case]
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "name", [b"BPE", b"version", b"ByteLevel", b"trim_offsets", b'"b"', b"1.0"]
)
def test_bytes_that_are_no_text(tmp_path: Path, name: bytes) -> None:
    """The library ends the process where its message quotes such bytes."""
    place = tokenizer_json().index(name) + 1
    data = tokenizer_json()[:place] + b"\xa0" + tokenizer_json()[place:]
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(ValueError, match=f"{UNREADABLE}.*'utf-8' codec can't decode byte 0xa0"):
        Vocabulary.from_tokenizer(tmp_path)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("merge", [["a", "é"], "a é"])
def test_merges_that_cut_a_character(tmp_path: Path, merge: Any, hidden: bool) -> None:
    """The library takes a byte of `é` for the prefix, and ends the process with its message."""
    data = tokenizer_json(
        vocab={"a": 0, "é": 1}, merges=[merge], continuing_subword_prefix="x", ignore_merges=True
    )
    if hidden:
        data = data.replace(b"continuing", rb"\u0063ontinuing")
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(ValueError, match="the right part 'é' of a merge does not begin with 'x'"):
        Vocabulary.from_tokenizer(tmp_path)


@pytest.mark.parametrize("case", BAD_TEXTS)
def test_what_a_library_cannot_encode_is_an_error(tmp_path: Path, case: str) -> None:
    data, message = BAD_TEXTS[case]
    (tmp_path / "tokenizer.json").write_bytes(data)
    vocabulary = Vocabulary.from_tokenizer(tmp_path)
    with pytest.raises(ValueError, match=f"the tokenizer cannot encode a text: .*{message}"):
        vocabulary.encode_batch(["a" * 30 + "!", "ab"])


def test_unusual_files_are_read(tmp_path: Path) -> None:
    """Ids of added tokens that the library itself changes are those that models have learned."""
    for data, size in (
        (added(id=2**31), 4),
        (added(content=""), 3),
        (tokenizer_json(vocab={}, merges=[]), 0),
        (replaced("aa", 3), 3),
    ):
        (tmp_path / "tokenizer.json").write_bytes(data)
        assert len(Vocabulary.from_tokenizer(tmp_path)) == size


# --- sizes --------------------------------------------------------------------------------------


def test_large_files_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json())
    packed = tmp_path / "packed" / "tokenizer.json.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(bytes(1 << 20)))
    config = tmp_path / "tokenizer_config.json"
    saved = tmp_path / "pair"
    saved_pair().save(saved)
    assert len(Vocabulary.from_tokenizer(path)) == 3
    monkeypatch.setenv("SIMCT_ALIGN_MAX_FILE_BYTES", str(path.stat().st_size))
    assert len(Vocabulary.from_tokenizer(path)) == 3
    for source in (packed, packed.parent):
        with pytest.raises(ValueError, match=r"tokenizer\.json\.gz has more than .* bytes"):
            Vocabulary.from_tokenizer(source)
    config.write_text(json.dumps({"x": "y" * 2000}))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json has more than"):
        Vocabulary.from_tokenizer(path)
    monkeypatch.setenv("SIMCT_ALIGN_MAX_FILE_BYTES", "100")
    with pytest.raises(ValueError, match="pair has more than 100 bytes"):
        Aligner.load(saved)
    for wrong in ("", "0", "-1", "1e9", "many"):
        monkeypatch.setenv("SIMCT_ALIGN_MAX_FILE_BYTES", wrong)
        with pytest.raises(ValueError, match=r"SIMCT_ALIGN_MAX_FILE_BYTES is .* expected a number"):
            Vocabulary.from_tokenizer(path)


def test_a_file_of_one_token_with_the_largest_id(tmp_path: Path) -> None:
    """All ids before it are unused. They take 25 bytes each of what Python counts, not 100."""
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json(vocab={"x": 2**24 - 2}, merges=[]))
    tracemalloc.start()
    try:
        vocabulary = Vocabulary.from_tokenizer(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert vocabulary.token_bytes(2**24 - 2) == b"x"
    assert peak < 40 * len(vocabulary)


def test_a_packed_file_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 3 << 20
    with pytest.raises(ValueError, match="has more than 268435456 bytes"):
        Vocabulary.from_tokenizer(path)


def test_ids_and_sizes_that_no_vocabulary_has() -> None:
    encoding = tiktoken.Encoding(
        "x", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={"<e>": 2**31}
    )
    with pytest.raises(ValueError, match=r"has the id 2147483648; .* at most 16777215 tokens"):
        Vocabulary.from_tokenizer(encoding)
    encoding = tiktoken.Encoding(
        "x", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={"<e>": 1}
    )
    with pytest.raises(ValueError, match="vocab_size is 1000000000000, expected at most 16777215"):
        Vocabulary.from_tokenizer(encoding, vocab_size=10**12)


def test_tokens_that_were_made_to_collide() -> None:
    """Texts to which one fixed hash function of Rust gives the same number, all of them.

    With that function 60,000 tokens took 10 s, and time grew with the square of their number.
    """

    def seconds(seed: int) -> float:
        begun = time.perf_counter()
        start = seed.to_bytes(8, "little")
        vocabulary = Vocabulary.from_token_bytes(
            [start + number.to_bytes(8, "big") for number in range(60_000)]
        )
        assert (vocabulary.canonical_ids == np.arange(60_000)).all()
        return time.perf_counter() - begun

    assert seconds(0x243F6A8885A308D3) < 10 * seconds(0x243F6A8885A308D4) + 0.5


# --- configurations and templates ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"added_tokens_decoder": [1, 2]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"special": True}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": "x"}}),
        ("tokenizer_config.json", {"chat_template": [{"name": "default"}]}),
        ("tokenizer_config.json", {"chat_template": ["x"]}),
        ("tokenizer_config.json", {"additional_special_tokens": 3}),
        ("config.json", {"text_config": "none"}),
    ],
)
def test_configurations_of_another_form(tmp_path: Path, name: str, content: Any) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json())
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"a configuration file in .* does not have the form"):
        Vocabulary.from_tokenizer(tmp_path)


@pytest.mark.parametrize("token", [2**64, 2**32, 2**24, -1, -(2**64)])
def test_stops_that_no_tokenizer_has(tmp_path: Path, token: int) -> None:
    (tmp_path / "tokenizer.json").write_bytes(added())
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": [3, token]}))
    with pytest.warns(UserWarning, match=f"left out of the tokens that end a turn.* {token} of "):
        assert Vocabulary.from_tokenizer(tmp_path).stop_ids == (3,)


@pytest.mark.parametrize("content", [DEEP, b'{"a": ' + b"1" * 5000 + b"}", b"\xff"])
def test_configurations_that_json_cannot_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json())
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        Vocabulary.from_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
            "takes longer than",
        ),
        ("{% for a in range(99999999999) %}x{% endfor %}", "OverflowError"),
        ("{{ 'a' * 99999999999 }}", "too large"),
        ("{{ 99999999999 * 'a' }}", "too large"),
        ("{{ 9 ** (9 ** 9) }}", "too large"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{{" * 5000, "Error"),
    ],
)
def test_templates_that_loop_allocate_or_break_out(
    tmp_path: Path, template: str, message: str
) -> None:
    (tmp_path / "tokenizer.json").write_bytes(tokenizer_json())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.warns(UserWarning, match=f"the chat template was not read .*{message}"):
        Vocabulary.from_tokenizer(tmp_path)


def test_products_and_powers_that_templates_need(tmp_path: Path) -> None:
    template = (
        "{{ '-' * (2 ** 3) }}{% for message in messages %}<{{ message.role }}>"
        "{{ message.content }}</turn>{% endfor %}"
    )
    (tmp_path / "tokenizer.json").write_bytes(added(content="</turn>"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    vocabulary = Vocabulary.from_tokenizer(tmp_path)
    assert vocabulary.stop_sources == {3: ("chat template",)}


# --- saved aligners -----------------------------------------------------------------------------

ROWS = (
    [[0, 5, 6], [1, 2, 5, 4, 6], [3, 8, 9, 10, 11], [12, 2, 5], [4, 3], [9, 8, 6]],
    [[0, 1, 9], [0, 2, 3, 4, 5, 9], [0, 1, 6, 7, 6, 7, 8, 5, 4], [0, 1], [4, 5, 11], [6, 7, 8, 9]],
)


def use_everything(aligner: Aligner) -> None:
    """Whatever reads the tables of an aligner."""
    batch = aligner.align_batch(*ROWS, threads=1)
    index = batch.index(max_path=8, first_ids=True, text_events=True)
    for row in range(len(batch)):
        batch.units(row, max_path=8)
    for side in ("teacher", "student"):
        for token in range(len(getattr(aligner, side))):
            aligner.spelling(token, side=side)  # type: ignore[arg-type]
    teacher, student = (
        torch.zeros(sum(map(len, rows)), len(side), requires_grad=True)
        for rows, side in zip(ROWS, (aligner.teacher, aligner.student), strict=True)
    )
    losses: list[Callable[..., Any]] = [
        SimCTLoss(aligner, candidates="on_path", score="event"),
        *(TextLoss(aligner, backend=backend) for backend in ("native", "torch")),
    ]
    for loss in losses:
        loss(teacher_logits=teacher, student_logits=student, index=index).loss.backward()


def test_saved_files_with_true_checksums_and_wrong_content(tmp_path: Path) -> None:
    """A stranger can sign any content: what loads must be usable, and nothing panics."""
    path = tmp_path / "pair"
    saved_pair().save(path)
    use_everything(Aligner.load(path))
    body = path.read_bytes()[: -hashlib.sha256().digest_size]
    rng = random.Random(0)
    loaded = refused = 0
    for _ in range(1000):
        path.write_bytes(signed(mutated(rng, body)))
        try:
            aligner = Aligner.load(path)
        except ValueError:
            refused += 1
            continue
        loaded += 1
        try:
            use_everything(aligner)
        except ValueError as error:
            # Text events whose tree lies do not fit the tree of the vocabularies.
            assert "text events do not fit" in str(error)  # noqa: PT017
    assert min(loaded, refused) > 20, (loaded, refused)


def test_a_saved_vocabulary_is_what_its_digest_says(tmp_path: Path) -> None:
    path = tmp_path / "pair"
    saved_pair().save(path)
    body = path.read_bytes()[: -hashlib.sha256().digest_size]
    for old, new in ((b" xc12", b" xc13"), (b"23cab", b"23caa")):
        assert body.count(old) == 1
        path.write_bytes(signed(body.replace(old, new)))
        with pytest.raises(ValueError, match="a vocabulary in it is not what its digest says"):
            Aligner.load(path)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 11, 12, 43, 44, 45])
def test_saved_files_of_a_few_bytes(tmp_path: Path, length: int) -> None:
    path = tmp_path / "pair"
    saved_pair().save(path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match="not a saved aligner, or a damaged one"):
        Aligner.load(path)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**40, 2**32, 10**6])
def test_saved_files_with_lengths_beyond_their_end(tmp_path: Path, length: int) -> None:
    path = tmp_path / "pair"
    saved_pair().save(path)
    body = bytearray(path.read_bytes()[: -hashlib.sha256().digest_size])
    body[12:20] = length.to_bytes(8, "little")
    path.write_bytes(signed(bytes(body)))
    with pytest.raises(ValueError, match="it is cut off"):
        Aligner.load(path)


def test_a_saved_file_in_another_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "pair"
    saved_pair().save(path)
    data = bytearray(path.read_bytes())
    data[8:12] = data[8:12][::-1]
    path.write_bytes(data)
    with pytest.raises(ValueError, match="format version 67108864, this release reads version 4"):
        Aligner.load(path)


def test_what_a_handler_of_signals_raises_is_no_error_of_a_library() -> None:
    class StoppedError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    before = signal.signal(signal.SIGINT, stop)
    try:
        with pytest.raises(StoppedError), library_errors("the tokenizer cannot encode a text"):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(ValueError, match="cannot encode"), library_errors("cannot encode"):
        raise RuntimeError
