"""Tiny tokenizers of every decoder family against tables written by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from simct_align.errors import UnsupportedTokenizerError
from simct_align.readers import open_tokenizer
from simct_align.readers.patterns import literal_of
from simct_align.token_kind import TokenKind

NORMAL, BYTE, SPECIAL, UNUSED = TokenKind

# The printable form of the bytes 0 to 255 in byte-level vocabularies, written out once as data.
BYTE_ALPHABET = (
    "ĀāĂăĄąĆćĈĉĊċČčĎďĐđĒēĔĕĖėĘęĚěĜĝĞğĠ!\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    "[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~ġĢģĤĥĦħĨĩĪīĬĭĮįİıĲĳĴĵĶķĸĹĺĻļĽľĿŀŁł¡¢£¤¥¦§¨©ª«¬Ń®¯°±²³´µ¶·¸¹º"
    "»¼½¾¿ÀÁÂÃÄÅÆÇÈÉÊËÌÍÎÏÐÑÒÓÔÕÖ×ØÙÚÛÜÝÞßàáâãäåæçèéêëìíîïðñòóôõö÷øùúûüýþÿ"
)
SENTENCEPIECE_CHAIN = decoders.Sequence(
    [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
)


def bpe(tokens: list[str], decoder: object, **options: object) -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[], **options)
    )
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


def byte_level() -> Tokenizer:
    tokenizer = bpe([*BYTE_ALPHABET, "Ġthe", "ðŁĻ", "é世", "<s>", ""], decoders.ByteLevel())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "<|end|>"])
    tokenizer.add_tokens([AddedToken("né", normalized=False), "<tool>"])
    return tokenizer


def sentencepiece() -> Tokenizer:
    tokens = [
        "<unk>",
        "<s>",
        "<0x0A>",
        "<0xE4>",
        "<0xe4>",
        "<0x0A",
        "▁",
        "▁the",
        "a▁b",
        "é",
        "▁▁",
        "\n\n",
    ]
    tokenizer = bpe(tokens, SENTENCEPIECE_CHAIN, unk_token="<unk>", byte_fallback=True)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.add_special_tokens(["<s>"])
    literal = [AddedToken(text, normalized=False) for text in ("▁▁", "\n\n", "x▁y", "x y")]
    tokenizer.add_tokens([*literal, AddedToken("a new", normalized=True)])
    return tokenizer


def metaspace() -> Tokenizer:
    pieces = [("<pad>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁a", -1.0), ("b", -2.0), ("▁c▁", -3.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>"])
    return tokenizer


def word_piece(*, cleanup: bool = True) -> Tokenizer:
    tokens = ["[UNK]", "[CLS]", "un", "##able", "##s", ".", "##.", "'s", "n't", "do not", "é"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=cleanup)
    tokenizer.add_special_tokens(["[CLS]"])
    return tokenizer


def test_byte_level_table():
    table = open_tokenizer(byte_level()).table()
    assert table.token_bytes[:256] == [bytes([value]) for value in range(256)]
    assert table.token_bytes[256:] == [
        b" the",
        b"\xf0\x9f\x99",
        "é世".encode(),  # one character outside of the alphabet: plain text, both of them
        b"",
        b"",
        b"",
        "né".encode(),  # an added token is its own text: é is no byte there
        b"<tool>",
    ]
    assert table.kinds.tolist() == [NORMAL] * 259 + [SPECIAL, NORMAL, SPECIAL, NORMAL, NORMAL]
    assert table.kinds.dtype == "uint8"
    assert table.special_names == {259: "<s>", 261: "<|end|>"}
    assert (table.dummy_prefix, table.stop_ids) == (False, ())


def test_sentencepiece_table():
    table = open_tokenizer(sentencepiece()).table()
    assert table.token_bytes == [
        b"",
        b"",
        b"\n",
        b"\xe4",
        b"\xe4",
        b"<0x0A",
        b" ",
        b" the",
        b"a b",
        "é".encode(),
        b"  ",
        b"\n\n",
        "x▁y".encode(),  # not in the model: text is cut at these very characters
        b"x y",
        b" a new",  # looked for in normalized text, where a space stands before it
    ]
    kinds = [SPECIAL, SPECIAL, BYTE, BYTE, BYTE, *[NORMAL] * 10]
    assert table.kinds.tolist() == kinds
    assert table.special_names == {0: "<unk>", 1: "<s>"}
    assert table.dummy_prefix


def test_metaspace_table():
    table = open_tokenizer(metaspace()).table()
    assert table.token_bytes == [b"", b"", b" ", b" a", b"b", b" c "]
    assert table.special_names == {0: "<pad>", 1: "<unk>"}
    assert table.dummy_prefix


@pytest.mark.parametrize("cleanup", [True, False])
def test_word_piece_table(cleanup):
    table = open_tokenizer(word_piece(cleanup=cleanup)).table()
    tidy = [b"un", b"able", b"s", b".", b".", b"'s", b"n't", b"don't", "é".encode()]
    plain = [b"un", b"able", b"s", b".", b".", b"'s", b"n't", b"do not", "é".encode()]
    spaced = {"un", "do not", "é"} if cleanup else {"un", ".", "'s", "n't", "do not", "é"}
    tokens = ["un", "##able", "##s", ".", "##.", "'s", "n't", "do not", "é"]
    expected = [
        (b" " if token in spaced else b"") + text
        for token, text in zip(tokens, tidy if cleanup else plain, strict=True)
    ]
    assert table.token_bytes == [b"", b"", *expected]
    assert table.special_names == {0: "[UNK]", 1: "[CLS]"}
    assert table.dummy_prefix


FAMILIES = {
    "byte_level": byte_level(),
    "sentencepiece": sentencepiece(),
    "metaspace": metaspace(),
    "word_piece": word_piece(),
    "word_piece_plain": word_piece(cleanup=False),
}
TABLES = {name: open_tokenizer(tokenizer).table() for name, tokenizer in FAMILIES.items()}
# What the decoder reads otherwise than the encoder: added tokens that the model does not have (the
# last one only in versions of tokenizers that do not keep the normalized form).
DECODED_OTHERWISE = {("byte_level", 262), ("sentencepiece", 12), ("sentencepiece", 14)}


@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data())
def test_bytes_agree_with_the_decoder_on_sequences(name, data):
    tokenizer, table = FAMILIES[name], TABLES[name]
    # One token per invalid byte is how ByteFallback shows them: compare valid runs only.
    usable = [
        token
        for token, kind in enumerate(table.kinds.tolist())
        if kind != SPECIAL
        and (name, token) not in DECODED_OTHERWISE
        and not (kind == BYTE and table.token_bytes[token] >= b"\x80")
    ]
    first = next(token for token in usable if table.token_bytes[token][:1] not in (b" ", b""))
    if name.startswith("word_piece"):
        first = 2  # a continuation at the start keeps its mark: begin with a word
    ids = [first, *data.draw(st.lists(st.sampled_from(usable), max_size=12))]
    text = b"".join(table.token_bytes[token] for token in ids).decode(errors="replace")
    if name.startswith("word_piece"):
        text = text.removeprefix(" ")
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_every_replacement_of_the_word_piece_cleanup():
    tokens = ["x", *(f"##a{t}b" for t in (" .", " ?", " !", " ,", " ' ", " n't", " 'm"))]
    tokens += [f"##a{t}b" for t in (" do not", " 's", " 've", " 're", " . , ? do not")]
    tokens += ["'m", "'ve", "'re", "' ", "?", "!", ","]
    tokenizer = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="x"))
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    table = open_tokenizer(tokenizer).table()
    for token in range(1, len(tokens)):
        assert tokenizer.decode([0, token]).encode() == b"x" + table.token_bytes[token]


def test_added_tokens_under_a_byte_level_normalizer():
    tokenizer = bpe([*BYTE_ALPHABET], decoders.ByteLevel())
    tokenizer.normalizer = normalizers.ByteLevel()
    tokenizer.add_tokens([AddedToken("né ", normalized=True), AddedToken("zé", normalized=False)])
    reader = open_tokenizer(tokenizer)
    assert reader.table().token_bytes[256:] == ["né ".encode(), "zé".encode()]
    assert reader.encode_batch(["né zé"]) == [[256, 257]]


def test_added_tokens_under_another_normalizer():
    tokenizer = bpe(["a"], SENTENCEPIECE_CHAIN)
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_tokens([AddedToken("X▁Y", normalized=True), AddedToken("X▁Z", normalized=False)])
    reader = open_tokenizer(tokenizer)
    assert reader.table().token_bytes[1:] == ["x▁y".encode(), "X▁Z".encode()]
    assert reader.encode_batch(["X▁Yx▁yX▁Z"]) == [[1, 1, 2]]


def test_holes_are_unused():
    tokenizer = Tokenizer(models.BPE(vocab={"a": 1, "b": 4}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    table = open_tokenizer(tokenizer).table()
    assert table.token_bytes == [b"", b"a", b"", b"", b"b"]
    assert table.kinds.tolist() == [UNUSED, NORMAL, UNUSED, UNUSED, NORMAL]


def test_empty_tokenizer():
    table = open_tokenizer(bpe([], decoders.ByteLevel())).table()
    assert (table.token_bytes, table.kinds.tolist(), table.special_names) == ([], [], {})


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Fuse(),
        decoders.ByteFallback(),
        decoders.Sequence([]),
        decoders.Sequence([decoders.ByteLevel()]),
        decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]),
        decoders.Sequence([decoders.Sequence([decoders.Replace("▁", " ")]), decoders.Fuse()]),
        decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()]),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Replace("_", "-")]),
    ],
)
def test_supported_chains(decoder):
    tokens = ["a", "b_"]
    table = open_tokenizer(bpe(tokens, decoder)).table()
    tokenizer = bpe(tokens, decoder)
    assert table.token_bytes == [tokenizer.decode([token]).encode() for token in (0, 1)]


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
FALLBACK_CHAINS = {
    "fallback_metaspace": [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")],
    "fallback_replace": [decoders.ByteFallback(), decoders.Replace("▁", " ")],
    "fallback_replace_fuse": [
        decoders.ByteFallback(), decoders.Replace("▁", " "), decoders.Fuse(),
    ],
    "fallback_fuse_replace": [
        decoders.ByteFallback(), decoders.Fuse(), decoders.Replace("▁", " "),
    ],
    "fallback_ascii": [
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Replace("_", "-"),
    ],
    "ascii_to_nothing": [
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Replace("_", ""),
    ],
    "regex": [
        decoders.Replace(Regex("▁"), " "), decoders.ByteFallback(), decoders.Fuse(),
    ],
    "regex_escapes": [
        decoders.Replace(Regex(r"\u2581"), " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Replace(Regex(r"\."), "!"), decoders.Replace(Regex("[_]"), "-"),
    ],
    "longer_before_fuse": [
        decoders.Replace("ab", "x"), decoders.Replace("▁", " "), decoders.ByteFallback(),
    ],
    "start": [
        decoders.ByteFallback(), decoders.Replace("▁", " "), decoders.Fuse(),
        decoders.Replace(Regex(r"\A "), ""),
    ],
    "start_before_spaces": [
        decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(Regex("(?<!\n)^▁?"), ""),
        decoders.Replace("▁", " "),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", FALLBACK_CHAINS)
@given(data=st.data())
def test_chains_with_byte_fallback_agree_with_the_decoder(name, data):
    tokens = ["▁", "▁a", "a", "ab", "b", "_", "a_", ".", "\n", "é", *BYTES]
    tokenizer = bpe(tokens, decoders.Sequence(FALLBACK_CHAINS[name]), byte_fallback=True)
    table = open_tokenizer(tokenizer).table()
    # Bytes that are no character alone are shown as U+FFFD, each by itself.
    usable = [token for token, text in enumerate(table.token_bytes) if text < b"\x80" or token < 10]
    first = tokens.index("b")
    ids = [first, *data.draw(st.lists(st.sampled_from(usable), max_size=12))]
    text = b"".join(table.token_bytes[token] for token in ids).decode()
    assert tokenizer.decode(ids) == text


def random_component(generator: random.Random) -> decoders.Decoder:
    replaced = [("▁", " "), (Regex("▁"), " "), ("_", "-"), (" ", "_"), ("a", ""), ("▁a", "x")]
    removed = [Regex(r"\A "), Regex("(?<!\n)^▁"), Regex("^ "), "ab"]
    return generator.choice(
        [
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
            decoders.Metaspace(prepend_scheme=generator.choice(["always", "never"])),
            *(decoders.Replace(*pair) for pair in replaced),
            decoders.Replace(generator.choice(removed), ""),
        ]
    )


def test_random_chains_are_exact_or_refused():
    generator = random.Random(f"{__name__} chains")
    # Without tokens for the letters of "▁a" and "ab", chains that join fallbacks are refused.
    tokens = ["b", "▁", "▁a", "a", "ab", "_", "a_", " ", "é", "\n", "▁▁"]
    fallbacks = [f"<0x{byte:02X}>" for byte in (0x20, 0x5F, 0x0A, 0x41)]
    exact = 0
    for _ in range(1500):
        chain = [random_component(generator) for _ in range(generator.randint(1, 5))]
        tokenizer = bpe([*tokens, *fallbacks], decoders.Sequence(chain), byte_fallback=True)
        try:
            table = open_tokenizer(tokenizer).table()
        except UnsupportedTokenizerError:
            continue
        exact += 1
        for _ in range(8):
            ids = [0, *generator.choices(range(len(table.token_bytes)), k=generator.randint(0, 9))]
            text = b"".join(table.token_bytes[token] for token in ids).decode()
            assert tokenizer.decode(ids) == text
    assert exact > 300


def test_a_space_that_only_byte_fallbacks_spell_is_refused():
    chain = decoders.Sequence([decoders.ByteFallback(), decoders.Replace("▁", " ")])
    # Without such fallbacks, or with a token for the mark, no encoder writes the mark in bytes.
    assert open_tokenizer(bpe(["▁a", "b"], chain)).table().token_bytes == [b" a", b"b"]
    assert open_tokenizer(bpe(["▁", *BYTES], chain)).table().token_bytes[0] == b" "
    with pytest.raises(UnsupportedTokenizerError, match="only byte fallbacks spell '▁'"):
        open_tokenizer(bpe(["▁a", "b", *BYTES], chain)).table()


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("^ ", "start of every line"),
        ("▁+", "more than one text"),
        (r"\s", "more than one text"),
        (r"\A +", "more than one text"),
    ],
)
def test_patterns_that_are_not_exact_have_a_reason(pattern, reason):
    chain = decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex(pattern), "")])
    with pytest.raises(UnsupportedTokenizerError, match=reason) as caught:
        open_tokenizer(bpe(["a"], chain)).table()
    assert repr(pattern) in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ({"String": "▁"}, "▁"), ({"String": ""}, None), ({"String": "a+"}, "a+"),
        ({"Regex": "▁▁"}, "▁▁"), ({"Regex": r"\ \t\x41\u2581\x{1F600}[b]"}, " \tA▁😀b"),
        ({"Regex": ""}, None), ({"Regex": r"\d"}, None), ({"Regex": r"\b"}, None),
        ({"Regex": "a|b"}, None), ({"Regex": "(a)"}, None), ({"Regex": "[ab]"}, None),
        ({"Regex": "a{2}"}, None), ({"Regex": "."}, None), ({"Regex": "^a"}, None),
    ],
)  # fmt: skip
def test_literal_patterns(pattern, text):
    assert literal_of(pattern) == text


SPACE = decoders.Replace("▁", " ")
#: What converters of GGUF files write for byte-level vocabularies.
GGUF_CHAIN = decoders.Sequence(
    [
        decoders.ByteFallback(),
        decoders.Fuse(),
        SPACE,
        decoders.ByteLevel(add_prefix_space=False),
    ]
)


def test_byte_level_behind_components_with_nothing_to_do():
    tokens = [*BYTE_ALPHABET, "Ġthe", "ðŁĻ", "Ĥ", "<s>"]
    tokenizer = bpe([*tokens, "<｜end▁of▁text｜>"], GGUF_CHAIN)
    # A control token may look like anything: no text is made of it.
    tokenizer.add_special_tokens(["<｜end▁of▁text｜>"])
    table = open_tokenizer(tokenizer).table()
    plain = open_tokenizer(bpe(tokens, decoders.ByteLevel())).table()
    assert table.token_bytes == [*plain.token_bytes, b""]
    assert table.kinds.tolist() == [*plain.kinds.tolist(), SPECIAL]
    text = b"".join(table.token_bytes[token] for token in (256, 257, 258, 60))
    assert tokenizer.decode([256, 257, 258, 60]) == text.decode()


@pytest.mark.parametrize("token", ["a▁b", "<0x0A>", "a世"])
def test_byte_level_behind_components_that_would_act(token):
    with pytest.raises(UnsupportedTokenizerError, match=f"Sequence.* {token!r}"):
        open_tokenizer(bpe(["a", token], GGUF_CHAIN)).table()


def test_without_fuse_every_token_is_read_alone():
    chain = decoders.Sequence([SPACE, decoders.ByteLevel(), decoders.Fuse()])
    assert open_tokenizer(bpe(["Ġa", "é世"], chain)).table().token_bytes == [b" a", "é世".encode()]


class UpperCase:
    def decode_chain(self, tokens: list[str]) -> list[str]:
        return [token.upper() for token in tokens]


@pytest.mark.parametrize(
    ("decoder", "component"),
    [
        (None, "decoder missing"),
        (decoders.CTC(), "decoder CTC"),
        (decoders.BPEDecoder(), "decoder BPEDecoder"),
        (decoders.Decoder.custom(UpperCase()), "decoder Decoder"),
        (decoders.Replace(Regex("▁+"), " "), "decoder Replace"),
        (
            decoders.Sequence([decoders.Fuse(), decoders.Replace("▁▁", " ")]),
            "decoder Sequence[Fuse, Replace]",
        ),
        (
            decoders.Sequence([SPACE, decoders.Replace(Regex(r"\A "), ""), decoders.Fuse()]),
            "decoder Sequence[Replace, Replace, Fuse]",
        ),
        (
            decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("^ "), "")]),
            "decoder Replace",
        ),
        (
            decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex(r"\A\n"), "")]),
            "decoder Replace",
        ),
        (decoders.Replace(Regex("▁|_"), " "), "decoder Replace"),
        (
            decoders.Sequence([decoders.Fuse(), decoders.Metaspace()]),
            "decoder Sequence[Fuse, Metaspace]",
        ),
        (
            decoders.Sequence([SPACE, decoders.Strip(" ", 1, 0)]),
            "decoder Sequence[Replace, Strip]",
        ),
        (
            decoders.Sequence([decoders.Replace("ab", " "), decoders.ByteLevel()]),
            "decoder Sequence[Replace, ByteLevel]",
        ),
        (
            decoders.Sequence([decoders.ByteLevel(), SPACE]),
            "decoder Sequence[ByteLevel, Replace]",
        ),
        (
            decoders.Sequence([decoders.WordPiece(), decoders.Strip(" ", 1, 0)]),
            "decoder Sequence[WordPiece, Strip]",
        ),
        (decoders.Sequence([decoders.Fuse(), decoders.Fuse()]), "decoder Sequence[Fuse, Fuse]"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 2, 0)]), "decoder Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 1)]), "decoder Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.Strip("x", 1, 0)]), "decoder Strip"),
    ],
)
def test_unsupported_decoders_are_named(decoder, component):
    with pytest.raises(UnsupportedTokenizerError) as caught:
        open_tokenizer(bpe(["a"], decoder)).table()
    assert caught.value.component == component
    assert component in str(caught.value)


@pytest.mark.parametrize(
    ("model", "component"),
    [
        (models.BPE(continuing_subword_prefix="##"), "model BPE continuing_subword_prefix"),
        (models.BPE(end_of_word_suffix="</w>"), "model BPE end_of_word_suffix"),
        (models.WordPiece({"a": 0}, unk_token="a"), "model WordPiece continuing_subword_prefix"),
    ],
)
def test_marks_that_the_decoder_keeps_are_unsupported(model, component):
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.ByteLevel()
    with pytest.raises(UnsupportedTokenizerError) as caught:
        open_tokenizer(tokenizer).table()
    assert caught.value.component == component


def test_a_prefix_that_the_decoder_takes_off_is_supported():
    vocabulary = {"a": 0, "@@b": 1}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], continuing_subword_prefix="@@"))
    tokenizer.decoder = decoders.WordPiece(prefix="@@", cleanup=False)
    assert open_tokenizer(tokenizer).table().token_bytes == [b" a", b"b"]


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "expected"),
    [
        (None, None, False),
        (normalizers.Prepend("▁"), None, True),
        (normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("▁")]), None, True),
        (normalizers.Replace(" ", "▁"), None, False),
        (normalizers.Replace(Regex(r"(?<!\n)^"), "▁"), None, True),
        (normalizers.Replace(Regex(r"\A"), "▁"), None, True),
        (normalizers.Replace(Regex("^"), "▁"), None, True),
        (normalizers.Replace(Regex("^x"), "▁"), None, False),
        (None, pre_tokenizers.Metaspace(prepend_scheme="always"), True),
        (None, pre_tokenizers.Metaspace(prepend_scheme="first"), True),
        (None, pre_tokenizers.Metaspace(prepend_scheme="never"), False),
        (None, pre_tokenizers.ByteLevel(add_prefix_space=True), True),
        (None, pre_tokenizers.ByteLevel(add_prefix_space=False), False),
        (
            None,
            pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.Metaspace()]),
            True,
        ),
    ],
)
def test_dummy_prefix_comes_from_the_encoder(normalizer, pre_tokenizer, expected):
    tokenizer = bpe(["a"], SENTENCEPIECE_CHAIN)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    assert open_tokenizer(tokenizer).table().dummy_prefix is expected


@pytest.mark.parametrize(
    ("attribute", "value", "component"),
    [
        ("normalizer", normalizers.Prepend("x"), "normalizer Prepend"),
        ("pre_tokenizer", pre_tokenizers.Metaspace("_"), "pre_tokenizer Metaspace"),
    ],
)
def test_prefixes_that_the_decoder_does_not_read_as_a_space(attribute, value, component):
    tokenizer = bpe(["a"], SENTENCEPIECE_CHAIN)
    setattr(tokenizer, attribute, value)
    with pytest.raises(UnsupportedTokenizerError) as caught:
        open_tokenizer(tokenizer).table()
    assert caught.value.component == component
