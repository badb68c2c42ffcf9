"""Tokenizers that are slow, incomplete or contradictory: read, or an error whose advice works."""

from __future__ import annotations

import base64
import gzip
import io
import json
import pickle
import shutil
import sys
import warnings
from typing import TYPE_CHECKING, Any

import huggingface_hub.constants
import numpy as np
import pytest
import sentencepiece
import tiktoken
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models

from simct_align import Aligner, SlowTokenizerError, UnsupportedTokenizerError, Vocabulary
from simct_align.demo import demo_tokenizers
from simct_align.readers import open_tokenizer
from support.vocabularies import tokenizer_dir

if TYPE_CHECKING:
    from pathlib import Path

RANKS = {bytes([byte]): byte for byte in range(256)} | {b" t": 256, b" th": 257, b" the": 258}
PATTERN = r" ?\S+|\s+"
CONTROL = {"[BOS]": 259, "[EOS]": 260, "[END]": 263}
TEXTS = ["x the\n\n  then", "[EOS] naïve 🙂", ""]


def write_ranks(path: Path, ranks: dict[bytes, int] = RANKS, end: bytes = b"\n") -> Path:
    lines = [base64.b64encode(text) + b" %d" % rank for text, rank in ranks.items()]
    path.write_bytes(end.join(lines) + end)
    return path


def encoding() -> tiktoken.Encoding:
    return tiktoken.Encoding("tiny", pat_str=PATTERN, mergeable_ranks=RANKS, special_tokens=CONTROL)


RANK_FILES = ["tiktoken.model", "tokenizer.model", "qwen.tiktoken", "ranks.txt", "other.json"]


@pytest.mark.parametrize(
    ("name", "as_directory"),
    [*((name, False) for name in RANK_FILES), *((name, True) for name in RANK_FILES[:3])],
)
def test_rank_files(tmp_path: Path, name: str, as_directory: bool) -> None:
    path = write_ranks(tmp_path / name)
    source = tmp_path if as_directory else path
    with pytest.raises(ValueError, match="is a tiktoken rank file") as caught:
        Vocabulary.from_tokenizer(source)
    message = str(caught.value)
    assert "SentencePiece" not in message
    # The first advice: the pattern and the control tokens.
    assert "pattern=" in message
    assert "control_tokens=" in message
    vocabulary = Vocabulary.from_tokenizer(source, pattern=PATTERN, control_tokens=CONTROL)
    # The second advice: the encoding.
    assert "tiktoken.Encoding" in message
    wanted = Vocabulary.from_tokenizer(encoding())
    assert vocabulary.digest == wanted.digest
    assert vocabulary.special_ids == CONTROL
    assert vocabulary.encode_batch(TEXTS) == wanted.encode_batch(TEXTS)
    assert [
        vocabulary.decode_bytes(row).decode() for row in vocabulary.encode_batch(TEXTS)
    ] == TEXTS
    again = pickle.loads(pickle.dumps(Aligner(vocabulary, vocabulary, stop_tokens=([], []))))
    assert again.teacher.encode_batch(TEXTS) == wanted.encode_batch(TEXTS)


def test_a_rank_file_takes_its_control_tokens_and_stops_from_the_files_beside(
    tmp_path: Path,
) -> None:
    listed = {str(token): {"content": name, "special": True} for name, token in CONTROL.items()}
    config = {"added_tokens_decoder": listed, "eos_token": "[EOS]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [263]}')
    write_ranks(tmp_path / "tiktoken.model")
    vocabulary = Vocabulary.from_tokenizer(tmp_path, pattern=PATTERN)
    assert vocabulary.special_ids == CONTROL
    assert vocabulary.stop_sources == {
        260: ("tokenizer_config.json",),
        263: ("generation_config.json",),
    }


def test_a_rank_file_for_a_saved_aligner(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "tiktoken.model")
    vocabulary = Vocabulary.from_tokenizer(path, pattern=PATTERN, control_tokens=CONTROL)
    Aligner(vocabulary, vocabulary, stop_tokens=([], [])).save(tmp_path / "pair")
    loaded = Aligner.load(tmp_path / "pair", teacher_tokenizer=path, student_tokenizer=vocabulary)
    assert loaded.student.encode_batch(TEXTS) == vocabulary.encode_batch(TEXTS)
    with pytest.raises(ValueError, match=r"or pass the model's tiktoken\.Encoding"):
        loaded.teacher.encode_batch(TEXTS)
    loaded = Aligner.load(tmp_path / "pair", teacher_tokenizer=encoding())
    assert loaded.teacher.encode_batch(TEXTS) == vocabulary.encode_batch(TEXTS)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"YQ== 0\nYg==\n", "line 2 is b'Yg=='"),
        (b"YQ== 0\n!!!! 1\n", "line 2"),
        (b"YQ== 0\nYg== x\n", "line 2"),
        (b"YQ== 0\nYQ== 1\n", "line 2: the token b'a' or its rank 1 occurs twice"),
        (b"YQ== 0\nYg== 0\n", "line 2: the token b'b' or its rank 0 occurs twice"),
    ],
)
def test_damaged_rank_files(tmp_path: Path, lines: bytes, message: str) -> None:
    path = tmp_path / "tiktoken.model"
    path.write_bytes(lines)
    with pytest.raises(ValueError, match=message) as caught:
        Vocabulary.from_tokenizer(path, pattern=PATTERN, control_tokens={})
    assert str(path) in str(caught.value)


def test_arguments_of_a_rank_file(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "tiktoken.model", end=b"\r\n")
    assert len(Vocabulary.from_tokenizer(path, pattern=PATTERN, control_tokens={})) == len(RANKS)
    with pytest.raises(ValueError, match=r"control_tokens= missing"):
        Vocabulary.from_tokenizer(path, pattern=PATTERN)
    with pytest.raises(ValueError, match=r"rank file.* pattern= missing"):
        Vocabulary.from_tokenizer(path, control_tokens=CONTROL)
    with pytest.raises(ValueError, match=r"pattern='\('"):
        Vocabulary.from_tokenizer(path, pattern="(", control_tokens={})
    with pytest.raises(ValueError, match=r"looks like tokenizer\.json; leave them out"):
        Vocabulary.from_tokenizer(demo_tokenizers()[0], pattern=PATTERN, control_tokens={})
    assert Vocabulary.from_tokenizer(demo_tokenizers()[0])
    with pytest.raises(TypeError, match="expected a path, got Encoding"):
        Vocabulary.from_tokenizer(encoding(), pattern=PATTERN)
    with pytest.raises(FileNotFoundError, match="no such file"):
        Vocabulary.from_tokenizer(tmp_path / "none", pattern=PATTERN)


def test_ids_that_a_rank_file_and_control_tokens_claim(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "tiktoken.model")
    with pytest.raises(UnsupportedTokenizerError, match=r"id 258.*b' the'.*'\[X\]'"):
        Vocabulary.from_tokenizer(path, pattern=PATTERN, control_tokens={"[X]": 258})
    # The advice: another id.
    assert Vocabulary.from_tokenizer(path, pattern=PATTERN, control_tokens={"[X]": 259})
    # Two names of one id: the first by alphabet, in every process.
    names = dict.fromkeys(("[c]", "[a]", "[b]"), 259)
    twice = Vocabulary.from_tokenizer(path, pattern=PATTERN, control_tokens=names)
    assert twice.special_names == {259: "[a]"}


# Slow tokenizers


class Slow(transformers.PreTrainedTokenizer):
    """A tokenizer that is Python code, as remote code is."""

    vocab_files_names = {"vocab_file": "tiktoken.model"}  # noqa: RUF012

    def __init__(self, vocab_file: Any = None, encoder: Any = None, shift: int = 0, **names: Any):
        self.vocab_file = vocab_file
        self.encoder = encoder
        self.shift = shift
        super().__init__(**names)

    @property
    def vocab_size(self) -> int:
        return 259

    def get_vocab(self) -> dict[str, int]:
        return {}

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [str(token + self.shift) for token in self.encoder.encode_ordinary(text)]

    def _convert_token_to_id(self, token: str) -> int:
        return int(token) if token.isdigit() else 0

    def _convert_id_to_token(self, index: int) -> str:
        return str(index)


def test_a_slow_tokenizer_with_an_encoding_is_read() -> None:
    vocabulary = Vocabulary.from_tokenizer(Slow(encoder=encoding()))
    assert vocabulary.digest == Vocabulary.from_tokenizer(encoding()).digest
    assert vocabulary.encode_batch(TEXTS) == Vocabulary.from_tokenizer(encoding()).encode_batch(
        TEXTS
    )
    with pytest.raises(SlowTokenizerError, match="it changes the ids"):
        Vocabulary.from_tokenizer(Slow(encoder=encoding(), shift=1))


def test_a_slow_tokenizer_over_a_rank_file(tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "tiktoken.model")
    with pytest.raises(SlowTokenizerError, match="its rank file") as caught:
        Vocabulary.from_tokenizer(Slow(vocab_file=str(path)))
    assert isinstance(caught.value, UnsupportedTokenizerError)
    message = str(caught.value)
    # Every advice of the message, in order.
    assert f"its rank file {path} with pattern= and control_tokens=" in message
    assert Vocabulary.from_tokenizer(path, pattern=PATTERN, control_tokens=CONTROL)
    assert "its tiktoken.Encoding" in message
    assert Vocabulary.from_tokenizer(encoding())
    assert "Vocabulary.from_token_bytes" in message
    assert Vocabulary.from_token_bytes([*RANKS, b""], special={259: "[EOS]"})


def test_a_slow_tokenizer_without_anything() -> None:
    with pytest.raises(SlowTokenizerError, match="no tokenizers backend; pass its tiktoken"):
        Vocabulary.from_tokenizer(Slow())


# Models of bytes


def byte_tokenizers() -> dict[str, Any]:
    return {
        "ByT5": transformers.ByT5Tokenizer(),
        "ByT5 without extra ids": transformers.ByT5Tokenizer(extra_ids=0),
        "Perceiver": transformers.PerceiverTokenizer(),
    }


@pytest.mark.parametrize("name", byte_tokenizers())
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_models_of_bytes(name: str, text: str) -> None:
    source = byte_tokenizers()[name]
    vocabulary = Vocabulary.from_tokenizer(source)
    ids = vocabulary.encode_batch([text])[0]
    assert vocabulary.decode_bytes(ids) == text.encode()
    assert len(ids) == len(text.encode())
    # Its own splitting of text strips spaces around control tokens: compare what has none.
    if not any(entry.content in text for entry in source.added_tokens_decoder.values()):
        assert ids == source(text, add_special_tokens=False)["input_ids"]


def test_control_tokens_of_a_model_of_bytes(tmp_path: Path) -> None:
    source = transformers.ByT5Tokenizer()
    vocabulary = Vocabulary.from_tokenizer(source)
    assert len(vocabulary) == len(source) == 384
    assert vocabulary.stop_sources == {1: ("eos_token of the tokenizer",)}
    assert vocabulary.special_ids["<extra_id_0>"] == source.convert_tokens_to_ids("<extra_id_0>")
    text = "a</s><extra_id_0>b"
    assert vocabulary.decode_bytes(vocabulary.encode_batch([text])[0]) == text.encode()
    assert not {1, 259} & set(vocabulary.encode_batch([text])[0])
    source.save_pretrained(tmp_path)
    from_directory = Vocabulary.from_tokenizer(tmp_path)
    assert from_directory.digest == vocabulary.digest
    assert from_directory.stop_ids == vocabulary.stop_ids
    again = pickle.loads(pickle.dumps(Aligner(vocabulary, demo_tokenizers()[1])))
    assert again.teacher.encode_batch(["é"]) == vocabulary.encode_batch(["é"])


def test_a_model_of_bytes_as_a_teacher() -> None:
    aligner = Aligner(transformers.ByT5Tokenizer(), demo_tokenizers()[0])
    batch = aligner.align_texts(["naïve 12"])
    assert b"".join(unit.bytes for unit in batch.units(0)) == "naïve 12".encode()
    assert not any(batch.coverage().teacher_unmatched.values())


# Files by content


def test_files_are_recognized_by_content(tmp_path: Path) -> None:
    plain = gzip.decompress((demo_tokenizers()[0] / "tokenizer.json.gz").read_bytes())
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab abc abcd 12"] * 50), model_writer=model, vocab_size=300,
        byte_fallback=True, model_type="bpe", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    inner = MistralTokenizer.v3(is_tekken=True).instruct_tokenizer.tokenizer
    contents = {
        "a.txt": plain, "b.bin": model.getvalue(), "c.bin": gzip.compress(model.getvalue()),
        "mine.json": inner.file_path.read_bytes(),
    }  # fmt: skip
    found = {}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        found[name] = type(open_tokenizer(tmp_path / name)).__name__
    assert found == {
        "a.txt": "HuggingFaceTokenizer",
        "b.bin": "SentencePieceTokenizer",
        "c.bin": "SentencePieceTokenizer",
        "mine.json": "TekkenTokenizer",
    }


# A class that cuts text otherwise than the file of its model


@pytest.fixture
def gpt4o(tmp_path: Path) -> Path:
    source = tokenizer_dir("gpt4o")
    directory = tmp_path / "gpt4o"
    shutil.copytree(source, directory)
    (directory / "tokenizer.json").write_bytes(
        gzip.decompress((source / "tokenizer.json.gz").read_bytes())
    )
    return directory


def test_a_hub_id_is_cut_as_its_file_says(
    tmp_path: Path, gpt4o: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "cache" / "models--acme--tokenizer"
    shutil.copytree(gpt4o, root / "snapshots" / ("0" * 40))
    (root / "refs").mkdir()
    (root / "refs/main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    texts = ["x = 1\r\n\r\n\ty", " x = 12345;"]
    by_hub, by_path = Vocabulary.from_tokenizer("acme/tokenizer"), Vocabulary.from_tokenizer(gpt4o)
    assert by_hub.digest == by_path.digest
    assert by_hub.encode_batch(texts) == by_path.encode_batch(texts)


def test_an_object_that_cuts_otherwise_than_its_file_warns(gpt4o: Path) -> None:
    other = transformers.AutoTokenizer.from_pretrained(gpt4o)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        by_object = Vocabulary.from_tokenizer(other)
    by_path = Vocabulary.from_tokenizer(gpt4o)
    text = ["x = 1\r\n\r\n\ty"]
    same = by_object.encode_batch(text) == by_path.encode_batch(text)
    said = [w for w in caught if "cuts text otherwise than" in str(w.message)]
    assert same is not bool(said)
    # An object that keeps the file's rules says nothing.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        Vocabulary.from_tokenizer(transformers.PreTrainedTokenizerFast.from_pretrained(gpt4o))


# The first token that differs


def plain(tokens: list[bytes], **options: Any) -> Vocabulary:
    return Vocabulary.from_token_bytes(tokens, **options)


def model_of(vocabulary: dict[str, int], *special: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (model_of({"a": 0, "c": 1}, "<e>"), "id 1, NORMAL b'b' .* NORMAL b'c' in the tokenizer"),
        (model_of({"a": 0, "b": 1}), "id 2, SPECIAL b'' .* UNUSED b''"),
        (model_of({"a": 0, "b": 1}, "<e>", "<f>"), "id 3, UNUSED b'' .* SPECIAL b''"),
        (model_of({"b": 0, "a": 1}, "<e>"), "id 0, NORMAL b'a' .* NORMAL b'b'"),
    ],
)
def test_errors_about_digests_name_the_first_token(other: Tokenizer, message: str) -> None:
    own = model_of({"a": 0, "b": 1}, "<e>")
    vocabulary = Vocabulary.from_tokenizer(own)
    with pytest.raises(ValueError, match=message) as caught:
        vocabulary.with_tokenizer(other).encode_batch(["a"])
    # The advice: the tokenizer from which the vocabulary was read.
    assert "pass the tokenizer from which" in str(caught.value)
    assert vocabulary.with_tokenizer(own).encode_batch(["ab"]) == [[0, 1]]
    assert vocabulary.with_tokenizer(vocabulary).encode_batch(["ab"]) == [[0, 1]]


# One id or one text twice


def test_two_tokens_of_a_model_with_one_id() -> None:
    state = json.loads(model_of({"a": 0, "b": 1}).to_str())
    state["model"]["vocab"] = {"a": 0, "b": 1, "c": 1}
    with pytest.raises(UnsupportedTokenizerError, match=r"id 1.*two tokens, 'b' and 'c'"):
        Vocabulary.from_tokenizer(Tokenizer.from_str(json.dumps(state)))
    state["model"]["vocab"] = {"a": 0, "b": 1, "c": 2}
    assert len(Vocabulary.from_tokenizer(Tokenizer.from_str(json.dumps(state)))) == 3


def test_an_added_token_with_the_id_of_a_token_of_text() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 2}, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken("<x>")])  # the library gives it the id 2
    if tokenizer.token_to_id("<x>") == 2:
        with pytest.raises(UnsupportedTokenizerError, match=r"id 2.*'b' of the model.*'<x>'"):
            Vocabulary.from_tokenizer(tokenizer)
    else:
        assert Vocabulary.from_tokenizer(tokenizer).token_bytes(2) == b"b"


def test_one_text_with_two_ids() -> None:
    pieces = [("<unk>", 0.0), ("a", -1.0), ("b", -1.0), ("a", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.decoder = decoders.Fuse()
    vocabulary = Vocabulary.from_tokenizer(tokenizer)
    assert [vocabulary.token_bytes(token) for token in range(4)] == [b"", b"a", b"b", b"a"]
    assert vocabulary.canonical_ids.tolist() == [0, 1, 2, 1]
    assert vocabulary.kinds.tolist() == [2, 0, 0, 0]


def test_one_id_of_two_kinds() -> None:
    with pytest.raises(ValueError, match="id 1 is given as special and as unused"):
        plain([b"a", b""], special=[1], unused=[1])
    with pytest.raises(ValueError, match="id 0 is given as byte and as unused"):
        plain([b"a", b""], byte_fallback=[0], unused=[0])
    assert np.array_equal(plain([b"a", b""], special=[1], unused=[]).kinds, [0, 2])


def test_one_name_of_two_ids_is_the_smallest() -> None:
    vocabulary = plain([b"a", b"", b""], special={2: "<e>", 1: "<e>"})
    assert vocabulary.special_ids == {"<e>": 1}
    stops = (["<e>"], ["<e>"])
    assert Aligner(vocabulary, vocabulary, stop_tokens=stops).shared.teacher_stop_ids.tolist() == [
        1
    ]


# Control tokens that the tokenizer does not flag


def test_a_control_token_that_is_not_flagged_is_declared() -> None:
    tokenizer = model_of({"a": 0, "b": 1}, "<e>")
    tokenizer.add_tokens(["<turn>"])
    stops = (["<turn>"], ["<turn>"])
    with pytest.raises(
        ValueError, match=r"name it in Vocabulary\.from_tokenizer\(\.\.\., special="
    ):
        Aligner(tokenizer, tokenizer, stop_tokens=stops)
    declared = Vocabulary.from_tokenizer(tokenizer, special=["<turn>"])
    assert Aligner(declared, declared, stop_tokens=stops).shared.teacher_stop_ids.tolist() == [3]


def test_a_token_that_cannot_be_declared() -> None:
    tokenizer = model_of({"a": 0, "b": 1}, "<e>")
    with pytest.raises(ValueError, match="leave the token out of special=") as caught:
        Vocabulary.from_tokenizer(tokenizer, special=["a"]).encode_batch(["ab", "b"])
    assert "change the text" in str(caught.value)
    assert Vocabulary.from_tokenizer(tokenizer, special=["a"]).encode_batch(["b"]) == [[1]]
    assert Vocabulary.from_tokenizer(tokenizer).encode_batch(["ab"]) == [[0, 1]]


# Directories without a tokenizer file


def test_a_directory_of_which_only_transformers_makes_a_tokenizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = {token: number for number, token in enumerate(["<|endoftext|>", "a", "b", "ab"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = Vocabulary.from_tokenizer(tmp_path)
    loaded = Vocabulary.from_tokenizer(transformers.AutoTokenizer.from_pretrained(tmp_path))
    assert found.encode_batch(["abb"]) == loaded.encode_batch(["abb"]) == [[3, 2]]
    assert found.stop_ids == loaded.stop_ids == (0,)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'simct-align\[transformers\]'"):
        Vocabulary.from_tokenizer(tmp_path)


def test_a_directory_of_which_nobody_makes_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has no tokenizer file, and transformers cannot"):
        Vocabulary.from_tokenizer(tmp_path)
