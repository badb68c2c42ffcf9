"""What can be opened: objects of every library, files, directories, hub ids; and what cannot."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
import tiktoken
from tokenizers import AddedToken, Tokenizer, decoders, models

from simct_align.errors import UnsupportedTokenizerError
from simct_align.readers import open_tokenizer
from simct_align.token_kind import TokenKind

NORMAL, BYTE, SPECIAL, UNUSED = TokenKind


def small() -> Tokenizer:
    """Ids: a b ! <eos> <turn> <pad>; of the last three only <eos> is flagged as special."""
    vocabulary = {"a": 0, "b": 1, "!": 2, "</s>": 3}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.add_tokens([AddedToken("<turn>", normalized=False), "<pad>"])
    return tokenizer


def write(directory: Path, name: str = "tokenizer.json", **configs: object) -> Path:
    path = directory / name
    data = small().to_str().encode()
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    for config, content in configs.items():
        (directory / f"{config}.json").write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.json.gz", "other.json"])
@pytest.mark.parametrize("as_text", [True, False])
def test_files(tmp_path, name, as_text):
    path = write(tmp_path, name)
    reader = open_tokenizer(str(path) if as_text else path)
    assert reader.table().token_bytes == [b"a", b"b", b"!", b"</s>", b"", b"<turn>", b"<pad>"]
    assert reader.encode_batch(["ab<eos>", "b"]) == [[0, 1], [1]]


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.json.gz"])
def test_directories(tmp_path, name):
    write(tmp_path, name)
    assert len(open_tokenizer(tmp_path).table().token_bytes) == 7


def test_stops_come_from_the_files_beside(tmp_path):
    write(
        tmp_path,
        tokenizer_config={
            "eos_token": {"content": "<turn>"},
            "pad_token": "!",
            "bos_token": None,
            "additional_special_tokens": ["<pad>", "<unknown>"],
        },
        generation_config={"eos_token_id": [4, 5, 0, 99, -1]},
    )
    table = open_tokenizer(tmp_path).table()
    # "!" is text however it is called, "a" (0) is no control token, 99 and -1 do not exist.
    assert table.special_names == {4: "<eos>", 5: "<turn>", 6: "<pad>"}
    assert table.stop_ids == (5, 4)
    assert open_tokenizer(tmp_path).encode_batch(["a<turn>b<pad>!"]) == [[0, 1, 0, 2]]


@pytest.mark.parametrize(
    ("configs", "stops"),
    [
        ({}, ()),
        ({"tokenizer_config": {"eos_token": "<eos>"}}, (4,)),
        ({"tokenizer_config": {"eos_token": "</s>"}}, (3,)),
        ({"tokenizer_config": {"eos_token": "<unknown>"}}, ()),
        ({"generation_config": {"eos_token_id": 4}}, (4,)),
        ({"generation_config": {"eos_token_id": None}}, ()),
        ({"generation_config": {"eos_token_id": [5, 0]}}, (5,)),
        (
            {
                "tokenizer_config": {
                    "added_tokens_decoder": {"5": {"content": "<turn>", "special": True}}
                },
                "generation_config": {"eos_token_id": [5]},
            },
            (5,),
        ),
    ],
)
def test_stops(tmp_path, configs, stops):
    write(tmp_path, **configs)
    table = open_tokenizer(tmp_path).table()
    assert table.stop_ids == stops
    assert all(table.kinds[stop] == SPECIAL for stop in stops)


def test_a_bare_tokenizer_has_no_known_stop():
    assert open_tokenizer(small()).table().stop_ids == ()


@pytest.mark.parametrize("source", ["no/such/tokenizer.json", "./nowhere/at/all", Path("nowhere")])
def test_missing_paths(source):
    with pytest.raises(FileNotFoundError, match="no such tokenizer file or directory"):
        open_tokenizer(source)


def test_empty_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds none of tokenizer\.json"):
        open_tokenizer(tmp_path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize("name", ["tokenizer.json", "tekken.json", "tokenizer.model"])
def test_lfs_pointers(tmp_path, name):
    (tmp_path / name).write_bytes(LFS)
    with pytest.raises(ValueError, match=r"Git LFS pointer.*git lfs pull"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{", "is not a tokenizer.json"),
        ("tokenizer.json", b"", "is not a tokenizer.json"),
        ("tokenizer.json", b'{"model": 1}', "is not a tokenizer.json"),
        (
            "tokenizer.json.gz",
            gzip.compress(b"{}" * 999, mtime=0)[:-9],
            "is not a complete gzip file",
        ),
        ("tekken.json", b"{", "is not a Tekken tokenizer"),
        ("tekken.json", b"{}", "is not a Tekken tokenizer"),
        ("tekken.json", b"[]", "is not a Tekken tokenizer"),
        ("tokenizer.model", b"\xff\xff\xff", "is not a SentencePiece model"),
        ("tokenizer.model", b"", "is not a SentencePiece model"),
    ],
)
def test_corrupt_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_tokenizer(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"a": "\xff"}', LFS])
def test_corrupt_configurations_are_named(tmp_path, content):
    write(tmp_path)
    (tmp_path / "generation_config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"generation_config\.json"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize("source", [None, 3, b"bytes", [1, 2], SimpleNamespace(encode=len)])
def test_other_objects(source):
    with pytest.raises(TypeError, match=r"cannot open a .*; expected a tokenizers\.Tokenizer"):
        open_tokenizer(source)


# tiktoken


def encoding() -> tiktoken.Encoding:
    ranks = {bytes([value]): value for value in range(256)} | {b"ab": 256, b"\xf0\x9f": 257}
    special = {"<|endoftext|>": 258, "<|im_end|>": 260}
    return tiktoken.Encoding(
        "tiny", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens=special
    )


def test_tiktoken():
    reader = open_tokenizer(encoding())
    table = reader.table()
    assert table.token_bytes[:258] == [*(bytes([v]) for v in range(256)), b"ab", b"\xf0\x9f"]
    assert table.kinds.tolist()[256:] == [NORMAL, NORMAL, SPECIAL, UNUSED, SPECIAL]
    assert table.special_names == {258: "<|endoftext|>", 260: "<|im_end|>"}
    assert (table.stop_ids, table.dummy_prefix) == ((258,), False)
    texts = ["ab<|endoftext|>", "<|im_end|>"]
    rows = reader.encode_batch(texts)
    assert [b"".join(table.token_bytes[i] for i in row).decode() for row in rows] == texts
    assert (reader.token_id("ab"), reader.token_id("<|im_end|>"), reader.token_id("no")) == (
        256,
        260,
        None,
    )


def test_tiktoken_without_end_of_text():
    ranks = {bytes([value]): value for value in range(256)}
    bare = tiktoken.Encoding("bare", pat_str=r"\S+|\s+", mergeable_ranks=ranks, special_tokens={})
    assert open_tokenizer(bare).table().stop_ids == ()


def test_tiktoken_declared():
    reader = open_tokenizer(encoding())
    assert reader.table(special=["ab"]).special_names[256] == "ab"
    assert reader.encode_batch(["ba"]) == [[98, 97]]
    with pytest.raises(ValueError, match=r"texts\[1\] is encoded with token 256 \('ab'\)"):
        reader.encode_batch(["a", "ab"])
    with pytest.raises(ValueError, match="no such token: 259"):
        reader.table(special=[259])


# SentencePiece


def sentencepiece_model(**options: Any) -> bytes:
    model = io.BytesIO()
    lines = ["ab abc abcd 12 é"] * 50 + ["hello world"] * 20
    settings = {
        "vocab_size": 300,
        "byte_fallback": True,
        "model_type": "bpe",
        "user_defined_symbols": ["<turn>", "a▁b"],
        "control_symbols": ["[INST]"],
        "hard_vocab_limit": False,
        "minloglevel": 2,
    } | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **settings
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def model() -> bytes:
    return sentencepiece_model()


def processor(model: bytes, **options: Any) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model, **options)


def test_sentencepiece(model):
    source = processor(model, add_bos=True, add_eos=True)
    reader = open_tokenizer(source)
    table = reader.table()
    pieces = {source.id_to_piece(i): i for i in range(source.get_piece_size())}
    assert table.special_names == {0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]"}
    assert table.token_bytes[:6] == [b"", b"", b"", b"", b"<turn>", b"a b"]
    assert table.token_bytes[pieces["<0xE9>"]] == b"\xe9"
    assert table.token_bytes[pieces["▁abc"]] == b" abc"
    kinds = table.kinds.tolist()
    assert [i for i, kind in enumerate(kinds) if kind == BYTE] == [
        pieces[f"<0x{b:02X}>"] for b in range(256)
    ]
    assert (table.stop_ids, table.dummy_prefix) == ((2,), True)
    texts = ["ab<turn></s>[INST]", "世 é\n", "<unk>"]
    rows = reader.encode_batch(texts)
    assert [b"".join(table.token_bytes[i] for i in row).decode() for row in rows] == [
        " ab<turn></s>[INST]",
        # SentencePiece drops white space at the end and takes a line break for a space
        " 世 é",
        " <unk>",
    ]
    assert source.encode("a")[0] == 1
    assert (reader.token_id("<turn>"), reader.token_id("no such piece")) == (4, None)


def test_sentencepiece_declared(model):
    source = processor(model)
    reader = open_tokenizer(source)
    assert 4 in reader.encode_batch(["ab<turn>"])[0]
    learned = source.piece_to_id("▁abc")
    table = reader.table(special=["<turn>", learned])
    assert table.special_names[4] == "<turn>"
    row = reader.encode_batch(["abc<turn>"])[0]
    assert not {4, learned} & set(row)
    assert b"".join(table.token_bytes[i] for i in row) == b" abc<turn>"
    assert 4 in source.encode("ab<turn>")


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.model.v3", "x.model.v7m1", "x.spm"])
def test_sentencepiece_files(tmp_path, model, name):
    (tmp_path / name).write_bytes(model)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 5, 2]}')
    table = open_tokenizer(tmp_path / name).table()
    assert table.token_bytes[5] == b"a b"
    assert table.stop_ids == (3, 2)


def test_sentencepiece_without_dummy_prefix_and_eos():
    reader = open_tokenizer(processor(sentencepiece_model(add_dummy_prefix=False, eos_id=-1)))
    table = reader.table()
    assert (table.dummy_prefix, table.stop_ids) == (False, ())
    assert b"".join(table.token_bytes[i] for i in reader.encode_batch(["ab c"])[0]) == b"ab c"


def test_sentencepiece_whitespace_suffix():
    source = processor(sentencepiece_model(treat_whitespace_as_suffix=True))
    with pytest.raises(UnsupportedTokenizerError) as caught:
        open_tokenizer(source).table()
    assert caught.value.component == "trainer_spec.treat_whitespace_as_suffix"


@pytest.mark.parametrize(
    ("field", "component"),
    [
        # Appended fields of the model: normalizer_spec {escape_whitespaces: false}, and
        # denormalizer_spec {precompiled_charsmap: "x"}.
        (b"\x1a\x02\x28\x00", "normalizer_spec.escape_whitespaces"),
        (b"\x2a\x03\x12\x01x", "denormalizer_spec"),
    ],
)
def test_sentencepiece_settings_that_pieces_do_not_tell(model, field, component):
    source = SimpleNamespace(serialized_model_proto=lambda: model + field)
    from simct_align.readers.spm import SentencePieceTokenizer

    with pytest.raises(UnsupportedTokenizerError) as caught:
        SentencePieceTokenizer(source).table()
    assert caught.value.component == component


# mistral_common


def test_mistral_common_objects():
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    for is_tekken in (True, False):
        outer = MistralTokenizer.v3(is_tekken=is_tekken)
        inner = outer.instruct_tokenizer.tokenizer
        tables = [open_tokenizer(source).table() for source in (outer, inner, inner.file_path)]
        assert tables[0].token_bytes == tables[1].token_bytes == tables[2].token_bytes
        assert tables[0].stop_ids == (inner.eos_id,)
        assert all(inner.is_special(token) for token in tables[0].special_names if token)
        assert "[INST]" in tables[0].special_names.values()


def test_tekken_declared():
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    reader = open_tokenizer(MistralTokenizer.v3(is_tekken=True))
    token = reader.token_id(" the")
    assert token is not None
    assert (reader.token_id("[INST]"), reader.token_id("two tokens")) == (3, None)
    assert reader.table(special=[" the"]).special_names[token] == " the"
    with pytest.raises(ValueError, match="declared special"):
        reader.encode_batch(["in the end"])


# transformers


def test_transformers_objects(tmp_path):
    transformers = pytest.importorskip("transformers")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=small(), eos_token="<turn>", additional_special_tokens=["<pad>"]
    )
    reader = open_tokenizer(fast)
    table = reader.table()
    assert table.special_names == {4: "<eos>", 5: "<turn>", 6: "<pad>"}
    assert table.stop_ids == (5,)
    before = fast.backend_tokenizer.to_str()
    assert reader.encode_batch(["a<turn>b<eos>"]) == [[0, 1]]
    assert fast.backend_tokenizer.to_str() == before
    assert fast("a<turn>")["input_ids"] == [0, 5]
    fast.save_pretrained(tmp_path)
    assert open_tokenizer(tmp_path).table().special_names == table.special_names
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert open_tokenizer(loaded).table().token_bytes == table.token_bytes


def test_slow_transformers_tokenizers():
    transformers = pytest.importorskip("transformers")

    class Slow(transformers.PreTrainedTokenizer):
        vocab_size = 1

        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

        def _tokenize(self, text: str, **_: object) -> list[str]:
            return list(text)

        def _convert_token_to_id(self, token: str) -> int:
            return ["a"].index(token)

        def _convert_id_to_token(self, index: int) -> str:
            return ["a"][index]

    with pytest.raises(UnsupportedTokenizerError, match="slow transformers tokenizer Slow"):
        open_tokenizer(Slow())


def run_python(code: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_hub_ids(tmp_path):
    pytest.importorskip("transformers")
    repository = tmp_path / "hub" / "models--some-org--some-model"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    write(
        snapshot,
        tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<turn>"},
        config={"model_type": "gpt2"},
    )
    code = """
        from simct_align.readers import open_tokenizer
        print(open_tokenizer("some-org/some-model").table().stop_ids)
        try:
            open_tokenizer("some-org/missing")
        except FileNotFoundError as error:
            print(error)
    """
    expected = (
        "'some-org/missing' is not a file or directory, nor in the cache of the hub, and the hub"
    )
    stops, message = run_python(code, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="1").splitlines()
    assert stops == "(5,)"
    assert message.startswith(expected)
    # Nothing listens there: one refused connection decides, without tries that take a minute.
    start = time.monotonic()
    nowhere = {"HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    stops, message = run_python(code, **nowhere).splitlines()
    assert time.monotonic() - start < 25
    assert stops == "(5,)"
    assert message.startswith(expected)


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("transformers", "some-org/some-model", "pip install 'simct-align[transformers]'"),
        ("mistral_common", "tekken.json", "pip install mistral-common"),
        ("sentencepiece", "tokenizer.model", "pip install sentencepiece"),
    ],
)
def test_missing_libraries_are_named(tmp_path, monkeypatch, module, source, message):
    if "/" not in source:
        (tmp_path / source).write_bytes(b"{}")
        source = str(tmp_path / source)
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError) as caught:
        open_tokenizer(source)
    assert message in str(caught.value)


def test_reading_imports_nothing_optional(tmp_path):
    write(tmp_path)
    code = f"""
        import sys
        import simct_align.readers
        optional = ["tokenizers", "transformers", "torch", "tiktoken", "sentencepiece"]
        print([name for name in [*optional, "mistral_common"] if name in sys.modules])
        simct_align.readers.open_tokenizer({str(tmp_path)!r}).table()
        print([name for name in [*optional, "mistral_common"] if name in sys.modules])
    """
    assert run_python(code).splitlines() == ["[]", "['tokenizers']"]
