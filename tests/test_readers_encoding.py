"""Encoding: text never becomes a control token, and the caller's tokenizer stays as it is."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from simct_align.readers import base, open_tokenizer
from support.texts import answers

SPACE = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def characters(*extra: str, **options: object) -> Tokenizer:
    """A tokenizer that spells ASCII text letter by letter, with further strings in its model."""
    tokens = [*map(chr, range(0x20, 0x7F)), *extra]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], **options))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def spelled(
    tokenizer: object, texts: list[str], special: tuple[str | int, ...] = ()
) -> list[bytes]:
    reader = open_tokenizer(tokenizer)
    table = reader.table(special=special)
    return [b"".join(table.token_bytes[i] for i in row) for row in reader.encode_batch(texts)]


TEXTS = ["a<eos>b", "<eos>", "<eos", "x <|im_end|>y<eos><eos>", "<|endoftext|>", ""]


@pytest.mark.parametrize("in_model", [True, False])
def test_flagged_tokens_stay_text(in_model):
    names = ["<eos>", "<|im_end|>", "<|endoftext|>"]
    tokenizer = characters(*(names if in_model else ()))
    tokenizer.add_special_tokens(names)
    assert spelled(tokenizer, TEXTS) == [text.encode() for text in TEXTS]


@pytest.mark.parametrize("name", ["<|im_end|>", 95])
def test_declared_tokens_stay_text(name):
    tokenizer = characters()
    tokenizer.add_tokens(["<|im_end|>", "<tool>"])
    texts = ["a<|im_end|>b<tool>"]
    assert spelled(tokenizer, texts) == [b"a<|im_end|>b<tool>"]
    reader = open_tokenizer(tokenizer)
    assert reader.encode_batch(texts)[0].count(95) == 1
    table = reader.table(special=[name])
    assert table.special_names == {95: "<|im_end|>"}
    row = reader.encode_batch(texts)[0]
    assert row.count(95) == 0
    assert row.count(96) == 1
    # The next table replaces the choice.
    reader.table()
    assert reader.encode_batch(texts)[0].count(95) == 1


def test_the_callers_tokenizer_is_never_changed():
    tokenizer = characters()
    tokenizer.add_special_tokens(["<eos>"])
    tokenizer.add_tokens(["<tool>"])
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=5)
    before = tokenizer.to_str()
    assert spelled(tokenizer, ["abcdef<eos>", "a"], ("<tool>",)) == [b"abcdef<eos>", b"a"]
    assert tokenizer.to_str() == before
    assert not tokenizer.encode_special_tokens
    assert len(tokenizer.encode("<eos>").ids) == 5


def test_no_bos_and_eos():
    from tokenizers import processors

    tokenizer = characters()
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 95)])
    assert tokenizer.encode("a").ids == [95, 65]
    assert open_tokenizer(tokenizer).encode_batch(["a"]) == [[65]]


def test_holes_before_added_tokens():
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 7, "<t>": 3}, []))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens(["<t>", "<u>"])
    reader = open_tokenizer(tokenizer)
    assert reader.encode_batch(["a<t>b<u>"]) == [tokenizer.encode("a<t>b<u>").ids]


def unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("[MASK]", 0.0), ("▁", -2.0)]
    pieces += [(chr(code), -3.0) for code in range(0x21, 0x7F)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["</s>", "<unk>", "[MASK]"])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    return tokenizer


def test_a_model_that_finds_control_tokens_in_text_by_itself():
    # Unigram models score the control pieces with 0, better than any spelling.
    tokenizer = unigram()
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = True
    assert 1 in copy.encode("a</s>b").ids
    texts = ["a</s>b", "<unk>", "plain", "x[MASK]<tool></s>", ""]
    got = spelled(tokenizer, texts)
    assert got == [b" a</s>b", b" <unk>", b" plain", b" x[MASK]<tool> </s>", b""]


def test_unknown_text_still_becomes_the_unknown_token():
    reader = open_tokenizer(unigram())
    assert reader.encode_batch(["é"])[0].count(0) == 1
    assert reader.encode_batch(["é<unk>é"])[0].count(0) == 2
    assert reader.table().token_bytes[0] == b""


def test_words_that_ignore_merges():
    vocabulary = {token: number for number, token in enumerate([*"STOPabc", "STOP", "abc"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["STOP"])
    reader = open_tokenizer(tokenizer)
    assert reader.encode_batch(["STOP", "abc"]) == [[0, 1, 2, 3], [8]]


def test_declared_model_tokens_that_merges_reach():
    vocabulary = {token: number for number, token in enumerate(["a", "b", "ab", "c", "abc"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("ab", "c")]))
    tokenizer.decoder = decoders.Fuse()
    reader = open_tokenizer(tokenizer)
    assert reader.encode_batch(["abc", "ab"]) == [[4], [2]]
    reader.table(special=["abc"])
    assert reader.encode_batch(["abc", "ab"]) == [[2, 3], [2]]
    reader.table(special=["ab"])
    # "abc" is a token of its own still, and spells no control token.
    assert reader.encode_batch(["abc", "ab"]) == [[4], [0, 1]]


def test_declared_tokens_without_another_spelling_are_an_error():
    reader = open_tokenizer(characters())
    reader.table(special=["!"])
    assert reader.encode_batch(["a"]) == [[65]]
    with pytest.raises(ValueError, match=r"texts\[2\] is encoded with token 1 \('!'\)"):
        reader.encode_batch(["a", "b", "a!"])


def test_dropout_does_not_reach_the_encoder():
    vocabulary = {token: number for number, token in enumerate(["a", "b", "ab"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b")], dropout=0.5))
    tokenizer.decoder = decoders.Fuse()
    assert open_tokenizer(tokenizer).encode_batch(["ab"] * 64) == [[2]] * 64
    assert tokenizer.model.dropout == 0.5


@pytest.mark.parametrize("texts", [[], (), ("a", "bb"), ["", "é"]])
def test_any_sequence_of_texts(texts):
    rows = open_tokenizer(characters()).encode_batch(texts)
    assert [len(row) for row in rows] == [sum(map(str.isascii, text)) for text in texts]


def test_normalization_is_the_tokenizers():
    tokenizer = characters()
    tokenizer.normalizer = normalizers.Lowercase()
    assert spelled(tokenizer, ["ABC"]) == [b"abc"]


@pytest.mark.parametrize("special", [["<nope>"], [1000], [-1], ["<eos>", "<nope>", 4711]])
def test_unknown_declared_tokens_are_named(special):
    tokenizer = characters()
    tokenizer.add_special_tokens(["<eos>"])
    wrong = ", ".join(repr(entry) for entry in special if entry != "<eos>")
    with pytest.raises(ValueError, match="no such token") as caught:
        open_tokenizer(tokenizer).table(special=special)
    assert wrong in str(caught.value)
    assert "0 to 95" in str(caught.value)


@pytest.mark.parametrize("special", ["<eos>", [1.5], [True], [None]])
def test_declared_tokens_of_a_wrong_type(special):
    with pytest.raises(TypeError, match="special: expected"):
        open_tokenizer(characters()).table(special=special)


def test_token_id():
    tokenizer = characters()
    tokenizer.add_special_tokens(["<eos>"])
    reader = open_tokenizer(tokenizer)
    assert (reader.token_id("<eos>"), reader.token_id("a"), reader.token_id("no")) == (95, 65, None)


@pytest.mark.parametrize("cores", [1, 2, 7])
def test_slices_have_a_text_for_every_core_and_the_ids_of_one_call(monkeypatch, cores):
    monkeypatch.setattr(base.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(base, "_SLICE_CHARACTERS", 100)
    texts = ["", *answers(40)]
    calls = []

    def encode(part):
        calls.append(len(part))
        return [list(text.encode()) for text in part]

    assert base.encode_in_slices(encode, texts) == [list(text.encode()) for text in texts]
    assert sum(calls) == len(texts)
    assert len(calls) > 1
    assert min(calls[:-1]) >= cores
    reader = open_tokenizer(characters())
    assert reader.encode_batch(texts) == [reader.encode_batch([text])[0] for text in texts]
