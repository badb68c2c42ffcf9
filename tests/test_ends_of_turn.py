"""The stops of one model, whatever way its tokenizer comes in, and role tokens without a flag."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import pickle
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import huggingface_hub.constants
import pytest
import sentencepiece
import tiktoken
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from simct_align import Aligner, Vocabulary
from simct_align.cli import main
from support.vocabularies import tokenizer_dir

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ALPHABET = [*map(chr, range(0x21, 0x7F)), "Ġ", "Ċ"]
#: Ids of the control tokens, after the alphabet.
BOS, EOS, TURN, END, PAD, CALL, MAP = range(len(ALPHABET), len(ALPHABET) + 7)
NAMES = ["<s>", "<eos>", "<turn>", "<end>", "<pad>", "<call>", "<map>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<turn>' + m['role'] + '\n' }}"
    "{% generation %}{{ m['content'] + '<end>\n' }}{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)


def byte_level(*, flagged: tuple[str, ...] = tuple(NAMES)) -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(ALPHABET)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [AddedToken(name, normalized=False, special=name in flagged) for name in NAMES]
    )
    return tokenizer


CONFIGS: dict[str, Any] = {
    "tokenizer_config": {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "<eos>",
        "chat_template": TEMPLATE,
    },
    "special_tokens_map": {"eos_token": {"content": "<map>"}, "pad_token": "<pad>"},
    "config": {"model_type": "llama", "eos_token_id": EOS},
    "generation_config": {"eos_token_id": [EOS, CALL]},
}


def write(directory: Path, tokenizer: Tokenizer | None = None, **configs: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text((tokenizer or byte_level()).to_str())
    for name, content in configs.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def hub(cache: Path, directory: Path) -> str:
    """The files of a directory as a hub id in a cache."""
    root = cache / "models--acme--model"
    snapshot = root / "snapshots" / ("0" * 40)
    shutil.copytree(directory, snapshot)
    (root / "refs").mkdir()
    (root / "refs/main").write_text("0" * 40)
    return "acme/model"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def packed(directory: Path) -> Path:
    other = shutil.copytree(directory, directory.parent / "packed")
    file = other / "tokenizer.json"
    (other / "tokenizer.json.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    return other


WAYS: dict[str, Callable[[Path, Path], Any]] = {
    "directory": lambda directory, _: directory,
    "text": lambda directory, _: str(directory),
    "file": lambda directory, _: directory / "tokenizer.json",
    "packed": lambda directory, _: packed(directory),
    "hub id": lambda directory, cache: hub(cache, directory),
    "object": lambda directory, _: transformers.AutoTokenizer.from_pretrained(directory),
    "object of a hub id": lambda directory, cache: transformers.AutoTokenizer.from_pretrained(
        hub(cache, directory)
    ),
}


@pytest.mark.parametrize(("one", "other"), [*itertools.combinations(WAYS, 2)])
def test_ways_of_one_model_agree(
    tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch, one: str, other: str
) -> None:
    found = []
    for number, way in enumerate((one, other)):
        cache = offline / str(number)
        cache.mkdir()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        directory = write(tmp_path / str(number) / "model", **CONFIGS)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            found.append(Vocabulary.from_tokenizer(WAYS[way](directory, cache)))
    left, right = found
    assert left.digest == right.digest
    assert left.stop_ids == right.stop_ids == (END, MAP, EOS, CALL)
    assert left.special_names == right.special_names
    text = ["a<end>\n  b <turn>", "x"]
    assert left.encode_batch(text) == right.encode_batch(text)
    assert not set(NAMES) & {left.special_names.get(token) for token in left.encode_batch(text)[0]}


def test_the_order_and_the_places(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_tokenizer(write(tmp_path, **CONFIGS))
    assert vocabulary.stop_sources == {
        END: ("chat template",),
        MAP: ("special_tokens_map.json",),
        EOS: ("tokenizer_config.json", "config.json", "generation_config.json"),
        CALL: ("generation_config.json",),
    }
    aligner = Aligner(vocabulary, vocabulary)
    aligner.save(tmp_path / "aligner")
    for again in (pickle.loads(pickle.dumps(aligner)), Aligner.load(tmp_path / "aligner")):
        assert again.teacher.stop_ids == vocabulary.stop_ids
        assert again.student.stop_sources == vocabulary.stop_sources
        assert again.teacher.with_tokenizer(byte_level()).stop_sources == vocabulary.stop_sources


@pytest.mark.parametrize("missing", [*CONFIGS, "template"])
def test_every_file_counts(tmp_path: Path, missing: str) -> None:
    configs = {name: dict(content) for name, content in CONFIGS.items()}
    if missing == "template":
        del configs["tokenizer_config"]["chat_template"]
    else:
        del configs[missing]
    stops = Vocabulary.from_tokenizer(write(tmp_path, **configs)).stop_sources
    places = {place for found in stops.values() for place in found}
    gone = {"template": "chat template"}.get(missing, f"{missing}.json")
    assert gone not in places
    assert len(places) == {"tokenizer_config": 3}.get(missing, 4)


@pytest.mark.parametrize("where", ["jinja", "json", "list", "object"])
def test_places_of_the_template(tmp_path: Path, where: str) -> None:
    config = {"eos_token": "<eos>", "bos_token": "<s>"}
    if where == "list":
        config["chat_template"] = [  # type: ignore[assignment]
            {"name": "tool_use", "template": "no"},
            {"name": "default", "template": TEMPLATE},
        ]
    source: Any = write(tmp_path, tokenizer_config=config)
    if where == "jinja":
        (tmp_path / "chat_template.jinja").write_text(TEMPLATE)
    elif where == "json":
        (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    elif where == "object":
        source = transformers.PreTrainedTokenizerFast(
            tokenizer_object=byte_level(), chat_template=TEMPLATE, **config
        )
    vocabulary = Vocabulary.from_tokenizer(source)
    assert vocabulary.stop_ids == (END, EOS)
    assert vocabulary.stop_sources[END] == ("chat template",)


def test_special_tokens_that_only_the_class_of_an_object_names(tmp_path: Path) -> None:
    """They are text in the tokenizer file, so they are text whatever the way in."""
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<mask>", normalized=False, special=False)])
    config = {"tokenizer_class": "RobertaTokenizer", "eos_token": "<eos>"}
    directory = write(tmp_path / "plain", tokenizer, tokenizer_config=config)
    loaded = transformers.RobertaTokenizer.from_pretrained(directory)
    assert loaded.mask_token == "<mask>"
    found = [Vocabulary.from_tokenizer(way) for way in (directory, loaded)]
    assert [vocabulary.special_ids.get("<mask>") for vocabulary in found] == [None, None]
    # A configuration that names the token has the last word, and so has the user.
    named = write(
        tmp_path / "named", tokenizer, tokenizer_config={**config, "mask_token": "<mask>"}
    )
    for way in (named, transformers.RobertaTokenizer.from_pretrained(named)):
        assert "<mask>" in Vocabulary.from_tokenizer(way).special_ids
    assert "<mask>" in Vocabulary.from_tokenizer(loaded, special=["<mask>"]).special_ids
    # What is text is tokenized as text.
    rows = [vocabulary.encode_batch(["a<mask>b"]) for vocabulary in found]
    assert rows[0] == rows[1]
    assert found[1].decode_bytes(rows[1][0]) == b"a<mask>b"


def test_the_default_of_the_class(tmp_path: Path) -> None:
    config = {"tokenizer_class": "Qwen2Tokenizer"}
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    directory = write(tmp_path, tokenizer, tokenizer_config=config)
    vocabulary = Vocabulary.from_tokenizer(directory)
    end = MAP + 1
    assert vocabulary.stop_sources == {end: ("class Qwen2Tokenizer",)}
    loaded = Vocabulary.from_tokenizer(transformers.AutoTokenizer.from_pretrained(directory))
    assert loaded.stop_ids == (end,)
    config["eos_token"] = "<eos>"
    again = Vocabulary.from_tokenizer(write(tmp_path, tokenizer, tokenizer_config=config))
    assert again.stop_ids == (EOS,)


def test_stops_of_the_language_model_in_a_model_of_several_kinds(tmp_path: Path) -> None:
    config = {"text_config": {"eos_token_id": END}}
    assert Vocabulary.from_tokenizer(write(tmp_path, config=config)).stop_ids == (END,)


def test_an_added_token_of_text_does_not_end_a_turn(tmp_path: Path) -> None:
    """Gemma's vocabularies have line breaks as added tokens; an EOS can be a token of the model."""
    tokenizer = byte_level()
    tokenizer.add_tokens(["\n", "."])
    template = "{% for m in messages %}{{ '<turn>' + m['content'] + '.\n<end>\n' }}{% endfor %}"
    config = {"chat_template": template, "eos_token": "~"}
    vocabulary = Vocabulary.from_tokenizer(write(tmp_path, tokenizer, tokenizer_config=config))
    tilde = ALPHABET.index("~")
    assert vocabulary.stop_sources == {
        END: ("chat template",),
        tilde: ("tokenizer_config.json",),
    }
    config["chat_template"] = template.replace("<end>", "~")
    vocabulary = Vocabulary.from_tokenizer(write(tmp_path, tokenizer, tokenizer_config=config))
    assert vocabulary.stop_sources == {tilde: ("chat template", "tokenizer_config.json")}


TEMPLATES = {
    # name: (template, the end of a turn)
    "no_end": ("{% for m in messages %}{{ m['role'] + m['content'] }}{% endfor %}", None),
    "parts": (
        "{% for m in messages %}<turn>{% for part in m['content'] %}{{ part['text'] }}"
        "{% endfor %}<end>{% endfor %}",
        END,
    ),
    "one_turn": (
        "{% if messages | length > 2 %}{{ raise_exception('one turn') }}{% endif %}"
        "{{ messages[0]['content'] + '<turn>' + messages[1]['content'] + eos_token }}",
        EOS,
    ),
    "strict_alternation": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}"
        "{% if (m['role'] == 'user') != (ns.n % 2 == 0) %}{{ raise_exception('no') }}{% endif %}"
        "{% set ns.n = ns.n + 1 %}{% if m['role'] == 'user' %}[Q] {{ m['content'] }} [A]"
        "{%- else %} {{ m['content'] | trim }} <end>{% endif %}{% endfor %}",
        END,
    ),
    "later_token_first_by_id": (
        "{% for m in messages %}{{ m['content'] + '<end><eos>' }}{% endfor %}",
        END,
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates(tmp_path: Path, name: str) -> None:
    template, end = TEMPLATES[name]
    config = {"chat_template": template, "eos_token": "<eos>"}
    vocabulary = Vocabulary.from_tokenizer(write(tmp_path, tokenizer_config=config))
    found = [
        token for token, places in vocabulary.stop_sources.items() if "chat template" in places
    ]
    assert found == ([] if end is None else [end])


@pytest.mark.parametrize("template", ["{{ broken", "{{ raise_exception('never') }}", "constant"])
def test_templates_that_cannot_be_read_warn(tmp_path: Path, template: str) -> None:
    config = {"chat_template": template, "eos_token": "<eos>"}
    with pytest.warns(UserWarning, match="chat template was not read for its end of turn"):
        vocabulary = Vocabulary.from_tokenizer(write(tmp_path, tokenizer_config=config))
    assert vocabulary.stop_ids == (EOS,)
    # The advice: name the stops.
    aligner = Aligner(vocabulary, vocabulary, stop_tokens=(["<end>"], ["<end>"]))
    assert aligner.shared.teacher_stop_ids.tolist() == [END]


def test_stops_that_are_text_are_left_out_and_named(tmp_path: Path) -> None:
    directory = write(tmp_path, generation_config={"eos_token_id": [0, EOS, 10**6]})
    with pytest.warns(UserWarning, match=r"left out .*: 0 of generation_config\.json, 1000000 of"):
        vocabulary = Vocabulary.from_tokenizer(directory)
    assert vocabulary.stop_ids == (EOS,)
    # The advice: declare a control token that is not flagged.
    with pytest.warns(UserWarning, match="1000000 of"):
        declared = Vocabulary.from_tokenizer(directory, special=[0])
    assert declared.stop_ids == (0, EOS)


# Sides without stops


def test_a_side_without_stops_warns() -> None:
    bare, known = byte_level(), Vocabulary.from_token_bytes([b"a", b""], special=[1], stop_ids=[1])
    with pytest.warns(UserWarning, match="no token that ends a turn is known of the student, so"):
        Aligner(known, bare)
    with pytest.warns(UserWarning, match="of the teacher and the student, so"):
        Aligner(bare, bare)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The advice: name them, or say that there are none.
        assert Aligner(known, bare, stop_tokens=([1], ["<end>"])).shared.stop_column >= 0
        assert Aligner(known, bare, stop_tokens=([1], [])).shared.stop_column == -1
        Aligner(Vocabulary.from_token_bytes([b"a"]), Vocabulary.from_token_bytes([b"a"]))


# Role tokens that are not flagged as special


@pytest.mark.parametrize("way", WAYS)
def test_role_tokens_without_a_flag_are_control_tokens(
    tmp_path: Path, offline: Path, way: str
) -> None:
    tokenizer = byte_level(flagged=("<s>", "<eos>"))
    directory = write(tmp_path / "model", tokenizer, **CONFIGS)
    with pytest.warns(UserWarning, match="writes '<turn>', '<end>' around messages"):
        vocabulary = Vocabulary.from_tokenizer(WAYS[way](directory, offline))
    text = "a<end>b<turn>c<call>d"
    ids = vocabulary.encode_batch([text])[0]
    assert not {TURN, END, CALL} & set(ids)
    assert vocabulary.decode_bytes(ids) == text.encode()
    assert vocabulary.stop_ids == (END, MAP, EOS, CALL)


def test_declared_role_tokens_do_not_warn(tmp_path: Path) -> None:
    directory = write(tmp_path, byte_level(flagged=("<s>", "<eos>")), **CONFIGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vocabulary = Vocabulary.from_tokenizer(directory, special=["<turn>", "<end>"])
    assert vocabulary.special_ids["<turn>"] == TURN


def test_marks_of_an_answers_own_text_stay_text(tmp_path: Path) -> None:
    """`<think></think>` before an answer delimits no message, nor do line breaks and words."""
    tokenizer = byte_level()
    tokenizer.add_tokens(["<think>", "</think>", "\n\n", "assistant"])
    template = (
        "{% for m in messages %}{{ '<turn>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
        "{{ m['content'] + '<end>\n' }}{% endfor %}"
    )
    config = {"chat_template": template, "eos_token": "<eos>"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vocabulary = Vocabulary.from_tokenizer(write(tmp_path, tokenizer, tokenizer_config=config))
    assert vocabulary.token_bytes(MAP + 1) == b"<think>"
    assert vocabulary.stop_ids == (END, EOS)


# Other libraries


def test_ways_of_a_sentencepiece_model_agree(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["ab abc abcd 12"] * 50), model_writer=model, vocab_size=300,
        byte_fallback=True, model_type="bpe", user_defined_symbols=["<turn>", "a▁b"],
        control_symbols=["<end>"], hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    plain = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    turn, end = plain.piece_to_id("<turn>"), plain.piece_to_id("<end>")
    config = {"eos_token": "</s>", "chat_template": TEMPLATE}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = []
    for source in (tmp_path, tmp_path / "tokenizer.model"):
        with pytest.warns(UserWarning, match="writes '<turn>' around messages"):
            found.append(Vocabulary.from_tokenizer(source))
    for vocabulary in found:
        assert vocabulary.stop_sources == {
            end: ("chat template",),
            2: ("tokenizer_config.json", "class SentencePieceProcessor"),
        }
        assert turn not in vocabulary.encode_batch(["ab<turn>ab"])[0]
    # Without files, the model alone is known.
    bare = Vocabulary.from_tokenizer(plain)
    assert bare.stop_sources == {2: ("class SentencePieceProcessor",)}


def test_ways_of_a_tekken_tokenizer_agree(tmp_path: Path) -> None:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    inner = MistralTokenizer.v3(is_tekken=True).instruct_tokenizer.tokenizer
    path = shutil.copy(inner.file_path, tmp_path / "tekken.json")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 4]}')
    stops = {2: ("generation_config.json", "class Tekkenizer"), 4: ("generation_config.json",)}
    for source in (tmp_path, path, Tekkenizer.from_file(path)):
        assert Vocabulary.from_tokenizer(source).stop_sources == stops
    assert Vocabulary.from_tokenizer(inner).stop_sources == {2: ("class Tekkenizer",)}


RANKS = {bytes([value]): value for value in range(256)}


def test_stops_of_tiktoken() -> None:
    special = {"<|endoftext|>": 256, "<|return|>": 257}
    encoding = tiktoken.Encoding(
        "tiny", pat_str=r"\S+|\s+", mergeable_ranks=RANKS, special_tokens=special
    )
    assert Vocabulary.from_tokenizer(encoding).stop_sources == {256: ("class tiktoken.Encoding",)}


# The command line


def test_inspect_shows_stops_and_their_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = str(write(tmp_path, **CONFIGS))
    assert main(["inspect", directory, directory]) == 0
    shown = capsys.readouterr().out
    assert shown.count(f"<end>  id {END}, from chat template\n") == 2
    assert f"<call>  id {CALL}, from generation_config.json" in shown
    assert main(["inspect", directory, directory, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["teacher"]["stop_sources"][str(MAP)] == ["special_tokens_map.json"]


def test_inspect_warns_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = str(write(tmp_path, byte_level(flagged=("<s>", "<eos>")), **CONFIGS))
    assert main(["inspect", directory, directory]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("simct-align: warning: the chat template writes") for line in lines)


@pytest.mark.parametrize("name", ["gemma2", "llama3_1", "mistral_nemo", "qwen2_5"])
def test_ways_of_real_tokenizers_agree(tmp_path: Path, name: str) -> None:
    source = tokenizer_dir(name)
    directory = tmp_path / name
    shutil.copytree(source, directory)
    (directory / "tokenizer.json").write_bytes(
        gzip.decompress((source / "tokenizer.json.gz").read_bytes())
    )
    kinds = (transformers.PreTrainedTokenizerFast, transformers.AutoTokenizer)
    loaded = [kind.from_pretrained(directory) for kind in kinds]
    sources = (source, directory / "tokenizer.json", *loaded)
    found = [Vocabulary.from_tokenizer(way) for way in sources]
    assert len({vocabulary.digest for vocabulary in found}) == 1
    assert len({vocabulary.stop_ids for vocabulary in found}) == 1
    has_template = "chat_template" in json.loads((source / "tokenizer_config.json").read_text())
    for vocabulary in found:
        places = vocabulary.stop_sources[vocabulary.stop_ids[0]]
        assert ("chat template" in places) is has_template
