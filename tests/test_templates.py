"""Rows of conversations, in the manner of templates in the wild: byte for byte what they write."""

from __future__ import annotations

import copy
import itertools
import re
import warnings

import pytest

pytest.importorskip("transformers")

from simct_align import SimCTCollator
from support.templates import CONTROL, TEMPLATES, template_aligner, templated


def user(content):
    return {"role": "user", "content": content}


def says(content, **fields):
    return {"role": "assistant", "content": content, **fields}


def calls(*numbers):
    return [
        {
            "id": f"call{number:05d}",
            "type": "function",
            "function": {"name": "add", "arguments": {"a": number, "b": 2}},
        }
        for number in numbers
    ]


def result(number, content):
    return {
        "role": "tool",
        "content": content,
        "tool_call_id": f"call{number:05d}",
        "name": "add",
    }


def halves(message):
    return message["content"][:3], message["content"][3:]


PLAIN = [
    *(user("2 + 2?"), says("It is 4.")),
    *(user("And 5 + 7?"), says("That is 12 🙂.")),
    *(user("Sure?"), says("Yes.")),
]
#: A call after a call, and an answer.
CALLS = [
    user("1 + 2, 2 + 2?"),
    *(says("", tool_calls=calls(1)), result(1, "3")),
    *(says("", tool_calls=calls(2)), result(2, "4")),
    *(says("3 and 4."), user("Thanks."), says("Bye.")),
]
CONVERSATIONS = {
    "plain": PLAIN,
    "padded": [user(" 2 + 2? "), says(" It is 4. "), user("And?\n"), says("That is 12.\n")],
    "empty": [user("a"), says(""), user("b"), says("")],
    "same": [user("yes"), says("yes")] * 3,
    "thought": [
        *(user("2 + 2?"), says("<think>\nhm\n</think>\n\n4")),
        *(user("And?"), says("<think>\nwell\n</think>\n\n12")),
    ],
    "reasoning": [
        *(user("2 + 2?"), says("4", reasoning_content="hm")),
        *(user("And?"), says("12", reasoning_content="well")),
    ],
    "thinking": [
        *(user("2 + 2?"), says("4", thinking="hm")),
        *(user("And?"), says("12", thinking="well")),
    ],
    "calls": CALLS,
    "no_content": [user("1 + 2?"), says(None, tool_calls=calls(1)), result(1, "3"), says("3.")],
    "text_and_calls": [
        user("1 + 2, 2 + 2?"),
        says("Let me see.", tool_calls=calls(1, 2)),
        *(result(1, "3"), result(2, "4"), says("3 and 4.")),
    ],
    "reasoning_and_calls": [
        user("1 + 2?"),
        says("", reasoning_content="hm", thinking="hm", tool_calls=calls(1)),
        *(result(1, "3"), says("3.", reasoning_content="so", thinking="so")),
        *(user("Thanks."), says("Bye.", reasoning_content="end", thinking="end")),
    ],
    "parts": [
        message | {"content": [{"type": "text", "text": text} for text in halves(message)]}
        for message in PLAIN
    ],
}
ANSWERS = ["It is 4.", "That is 12 🙂.", "Yes."]
THOUGHTS = ["<think>\nhm\n</think>\n\n4<|im_end|>", "<think>\nwell\n</think>\n\n12<|im_end|>"]
CALL = '[CALLS][{"name": "add"}]</s>'
#: A space that the tokenizer with a dummy prefix puts after a control token, or at the start.
DUMMY = re.compile("(^|" + "|".join(map(re.escape, CONTROL)) + ") *")


def spelled(vocabulary, ids) -> str:
    """The text of ids, with special tokens by name, from the vocabulary's own bytes."""
    names = vocabulary.special_names
    pieces = [
        names[token].encode() if token in names else vocabulary.token_bytes(token) for token in ids
    ]
    return b"".join(pieces).decode()


def row_text(vocabulary, side, row=0) -> str:
    return spelled(vocabulary, side.input_ids[row][side.attention_mask[row] == 1].tolist())


def completion_texts(vocabulary, side, row=0) -> list[str]:
    runs: list[list[int]] = []
    before = 0
    for token, taken in zip(side.input_ids[row], side.completion_mask[row], strict=True):
        if taken and not before:
            runs.append([])
        if taken:
            runs[-1].append(int(token))
        before = taken
    return [spelled(vocabulary, run) for run in runs]


def plain(text: str, vocabulary) -> str:
    return DUMMY.sub(r"\1", text) if vocabulary.dummy_prefix else text


def prepared(teacher, student, rows, *, turned=False, **options):
    """A batch of rows, with the aligner and the messages of the warnings."""
    aligner = template_aligner(teacher, student, turned=turned)
    tokenizers = templated(teacher, int(turned)), templated(student, 1 - int(turned))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batch = SimCTCollator(aligner, *tokenizers, **options).prepare(rows)
    return batch, aligner, [str(each.message) for each in caught]


def written(name, side, messages):
    """What a template writes; None if it refuses the conversation, or takes another shape."""
    try:
        text = templated(name, side).apply_chat_template(messages, tokenize=False)
    except Exception:
        return None
    return None if "[{'type'" in text or "[picture]" in text else text


NAMES = list(TEMPLATES)
#: Every template on both sides, next to one that drops reasoning and one that writes everything.
PAIRS = [
    *zip(NAMES, NAMES[1:] + NAMES[:1], strict=True),
    *((name, "chatml") for name in NAMES),
    *(("thinking", name) for name in NAMES),
    ("both_shapes", "parts_only"),
]


@pytest.mark.parametrize("turned", [False, True], ids=["level_teaches", "fallback_teaches"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_rows_are_what_the_templates_write(conversation, turned):
    messages = CONVERSATIONS[conversation]
    compared = 0
    for names in PAIRS:
        sides = (int(turned), 1 - int(turned))
        expected = [written(*each, messages) for each in zip(names, sides, strict=True)]
        if None in expected:
            continue
        compared += 1
        batch, aligner, told = prepared(*names, [{"messages": messages}], turned=turned)
        assert batch.counts.turns_left_out == 0
        for side, vocabulary, text, name in (
            (batch.teacher, aligner.teacher, expected[0], "teacher"),
            (batch.student, aligner.student, expected[1], "student"),
        ):
            same = plain(row_text(vocabulary, side), vocabulary) == plain(text, vocabulary)
            differs = [each for each in told if f"the {name}'s row is not what its" in each]
            # A side differs only where the other template has other words for a call, and says so.
            assert same == (not differs), (names, row_text(vocabulary, side), text)
            if name == "student" or conversation in ("plain", "padded", "empty", "same", "parts"):
                assert same, (names, told)
            assert len(differs) <= 1
    assert compared >= 1


def test_the_two_rows_of_a_conversation_with_reasoning():
    """As docs/design.md prints them."""
    rows = [{"messages": CONVERSATIONS["thought"]}]
    expected = {
        "template": (
            "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
            f"<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n{THOUGHTS[1]}\n"
        ),
        "sampled": (
            f"<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n{THOUGHTS[0]}\n"
            f"<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n{THOUGHTS[1]}"
        ),
    }
    completions = {"template": ["4<|im_end|>", THOUGHTS[1]], "sampled": THOUGHTS}
    for history, text in expected.items():
        batch, aligner, told = prepared("chatml", "thinking", rows, turned=True, history=history)
        assert row_text(aligner.student, batch.student) == text
        assert completion_texts(aligner.student, batch.student) == completions[history]
        assert completion_texts(aligner.teacher, batch.teacher) == completions[history]
        assert not told


def ids_of(name, side, *texts):
    tokenizer = templated(name, side)
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


#: The student's template, what it samples, and the options: the byte-level tokenizer samples.
SAMPLED = [
    ("thinking", "thought", THOUGHTS, {}),
    ("thinking", "plain", [f"{text}<|im_end|>" for text in ANSWERS], {"enable_thinking": False}),
    ("harmony", "plain", [f"<|channel|>final<|message|>{text}<|return|>" for text in ANSWERS], {}),
    ("deep", "thought", ["hm\n</think>\n\n4<|eos|>", "well\n</think>\n\n12<|eos|>"], {}),
    ("spaced", "plain", [f"{text} </s>" for text in ANSWERS], {}),
    ("two_ends", "plain", [f"{text}</s>" for text in ANSWERS], {}),
    ("mistral", "calls", [CALL, CALL, "3 and 4.</s>", "Bye.</s>"], {}),
    ("chatml", "text_and_calls", ["Let me see.<|im_end|>", "3 and 4.<|im_end|>"], {}),
]


@pytest.mark.parametrize(("name", "conversation", "texts", "options"), SAMPLED)
def test_sampled_rows_are_what_the_model_reads_while_it_samples(name, conversation, texts, options):
    """A twin without markers: generation prompts, samples, and what follows a turn in history."""
    messages = CONVERSATIONS[conversation]
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    tokenizer, ids = templated(name, 0), ids_of(name, 0, *texts)
    row = {"messages": messages, "completion_ids": ids, "chat_template_kwargs": options}
    batch, aligner, told = prepared("chatml", name, [row], turned=True, history="sampled")
    assert not told
    assert completion_texts(aligner.student, batch.student) == texts

    def read(upto):
        return tokenizer.apply_chat_template(
            messages[:upto], tokenize=False, add_generation_prompt=True, **options
        )

    text = row_text(aligner.student, batch.student)
    assert text.startswith(read(turns[0]) + texts[0])
    assert text.endswith(texts[-1])
    rest = text
    for turn, sampled in zip(turns, texts, strict=True):
        before, found, rest = rest.partition(sampled)
        assert found
        # Everything between two samples ends what the model reads before the second one.
        assert read(turn).endswith(before)
        # One end between two turns: the sampled one.
        assert not re.match(r"\s*(<\|im_end|<\|return|<\|end|<\|eos|</s>)", rest)


@pytest.mark.parametrize(("name", "conversation", "texts", "options"), SAMPLED)
def test_sampled_ids_in_rows_as_the_template_writes_them(name, conversation, texts, options):
    messages = CONVERSATIONS[conversation]
    ids = ids_of(name, 0, *texts)
    row = {"messages": messages, "completion_ids": ids, "chat_template_kwargs": options}
    batch, aligner, told = prepared("chatml", name, [row], turned=True)
    expected = templated(name, 0).apply_chat_template(messages, tokenize=False, **options)
    found = row_text(aligner.student, batch.student)
    differs = [each for each in told if "the student's row is not what its" in each]
    assert (found == expected) == (not differs)
    # What a template drops from history or writes otherwise is the only difference.
    assert bool(differs) == (conversation in ("thought", "calls", "text_and_calls"))
    stops = re.compile("(" + "|".join(map(re.escape, TEMPLATES[name][1])) + ")$")
    completions = completion_texts(aligner.student, batch.student)
    assert [stops.sub("", text) for text in completions] == [stops.sub("", text) for text in texts]


def test_a_difference_is_told_once_per_side_with_both_texts():
    row = {"messages": CALLS}
    batch, _, told = prepared("mistral", "chatml", [row, row, row])
    assert batch.counts.turns == 12
    (told,) = told
    assert told.startswith("row 0: the teacher's row is not what its chat template writes")
    assert "the row has '" in told
    assert '<tool_call>\\n{"name"' in told
    assert '[CALLS][{"name"' in told
    assert "history='sampled'" in told


def test_calls_that_the_students_template_does_not_write_are_told_once():
    _, _, told = prepared("chatml", "two_ends", [{"messages": CALLS}] * 2)
    of_calls = [each for each in told if "calls 'add'" in each]
    assert len(of_calls) == 1
    assert of_calls[0].startswith("row 0: message 1 calls 'add', which the student's chat template")
    _, _, told = prepared("two_ends", "chatml", [{"messages": CALLS}])
    assert not [each for each in told if "calls 'add'" in each]


def test_an_end_that_is_no_stop_is_told_once():
    aligner = template_aligner("chatml", "gemma")
    tokenizers = templated("harmony", 0), templated("gemma", 1)
    with pytest.warns(UserWarning, match="chat template") as caught:
        SimCTCollator(aligner, *tokenizers).prepare([{"messages": PLAIN}] * 2)
    of_template, of_row = (str(each.message) for each in caught)
    assert "chat template ends a turn with '<|return|>'" in of_template
    message = r"row 0, turn 0: the teacher's .* ends the turn with '<\|end\|>.*stops"
    assert re.match(message, of_row)


def test_all_fields_reach_the_template():
    seen = []
    tokenizer = templated("chatml", 0)
    render = tokenizer.apply_chat_template

    class Watched:
        chat_template = tokenizer.chat_template

        def apply_chat_template(self, messages, **options):
            seen.append((copy.deepcopy(messages), options))
            return render(messages, **options)

        def __call__(self, texts, **options):
            return tokenizer(texts, **options)

    aligner = template_aligner("chatml", "chatml")
    tools = [{"type": "function", "function": {"name": "add"}}]
    messages = [dict(message, weight=1) for message in CALLS]
    collator = SimCTCollator(aligner, Watched(), templated("chatml", 1))
    seen.clear()
    for history in ("template", "sampled"):
        SimCTCollator(aligner, Watched(), templated("chatml", 1), history=history)
    collator.prepare([{"messages": messages, "tools": tools}])
    whole = [given for given, _ in seen if len(given) == len(messages)]
    assert messages in whole
    for given, options in seen:
        if len(given) > 2:
            assert options["tools"] == tools
            for message, original in zip(given, messages, strict=False):
                assert message.keys() >= original.keys() or "weight" not in message


@pytest.mark.parametrize("history", ["template", "sampled"])
def test_a_refused_conversation_names_row_side_and_turn(history):
    good = {"messages": PLAIN}
    doubled = {"messages": [*PLAIN[:2], says("Twice."), says("Thrice.")]}
    message = r"row 1: the teacher's chat template refuses the conversation at .*turn 1.*alternate"
    with pytest.raises(ValueError, match=message):
        prepared("gemma", "chatml", [good, doubled], history=history)
    orphan = {"messages": [user("?"), result(1, "3"), says("3.")]}
    message = r"row 2: the student's .* message 1 \('tool'\), turn 0: .*result without a call"
    with pytest.raises(ValueError, match=message):
        prepared("chatml", "harmony", [good, good, orphan], history="template")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": None}, "row 1: 'messages' is of type NoneType; expected a list of messages"),
        ({"messages": "hello"}, "row 1: 'messages' is of type str"),
        ({"messages": [None]}, "row 1: message 0 of 'messages' is of type NoneType"),
        ({"messages": [{"content": "a"}]}, r"row 1: message 0 of 'messages' has the keys \['con"),
        (
            {"prompt": [user("a")], "completion": [3]},
            "row 1: message 0 of 'completion' is of type int",
        ),
        ({"prompt": 3, "completion_ids": [1]}, "row 1: 'prompt' is of type int"),
        ({"prompt": None, "completion": "a"}, "row 1: 'prompt' is of type NoneType"),
        (
            {"messages": PLAIN[:1], "completion_ids": [1, 10**6]},
            "row 1, turn 0, position 1: student id 1000000 is not in the vocabulary",
        ),
    ],
)
def test_rows_that_cannot_be_read_name_row_and_column(row, message):
    with pytest.raises((TypeError, ValueError), match=message):
        prepared("chatml", "chatml", [{"messages": PLAIN}, row])


@pytest.mark.parametrize("history", ["template", "sampled"])
def test_two_answers_in_a_row_are_two_turns(history):
    """Also where nothing but an end stands between them."""
    messages = [user("a"), says("one"), says("two")]
    batch, aligner, _ = prepared("chatml", "chatml", [{"messages": messages}], history=history)
    for side, vocabulary in ((batch.teacher, aligner.teacher), (batch.student, aligner.student)):
        assert completion_texts(vocabulary, side) == ["one<|im_end|>", "two<|im_end|>"]
    if history == "template":
        batch, aligner, _ = prepared("two_ends", "chatml", [{"messages": messages}])
        assert completion_texts(aligner.teacher, batch.teacher) == ["one", "two</s>"]
        assert row_text(aligner.teacher, batch.teacher) == "[INST]a[/INST]one</s>two</s></s>"


@pytest.mark.parametrize("limit", range(2, 40, 3))
def test_rows_as_written_are_cut_at_their_length_limit(limit):
    row = [{"messages": PLAIN[:4]}]
    full, _, _ = prepared("newline_before_end", "gemma", row)
    cut, _, _ = prepared("newline_before_end", "gemma", row, student_max_length=limit)
    width = full.student.input_ids.shape[1]
    assert cut.student.input_ids.tolist() == full.student.input_ids[:, :limit].tolist()
    assert cut.counts.student_tokens_cut == width - min(limit, width)
    short, _, _ = prepared("newline_before_end", "gemma", row, teacher_max_length=limit)
    assert short.teacher.input_ids.tolist() == full.teacher.input_ids[:, :limit].tolist()
    assert short.student.input_ids.tolist() == full.student.input_ids.tolist()


def test_a_truncated_answer_has_no_end_and_a_truncated_past_one_has_the_templates():
    ids = ids_of("chatml", 1, "It is 4.", "That is")
    row = {"messages": PLAIN[:3], "completion_ids": ids, "truncated": [True, True]}
    batch, aligner, told = prepared("harmony", "chatml", [row])
    assert not told
    text = row_text(aligner.teacher, batch.teacher)
    assert "4.<|end|><|start|>user<|message|>And" in text
    assert re.search(
        r"<\|end\|><\|start\|>assistant<\|channel\|>final<\|message\|> ?That is$", text
    )
    completions = completion_texts(aligner.teacher, batch.teacher)
    assert [text.strip() for text in completions] == ["It is 4.", "That is"]
    assert batch.counts.stops_added == 0


def test_the_last_turn_alone():
    for history, name in itertools.product(("template", "sampled"), ("thinking", "harmony")):
        row = [{"messages": PLAIN}]
        last, aligner, _ = prepared(name, name, row, turns="last", history=history)
        expected = templated(name, 0).apply_chat_template(PLAIN, tokenize=False)
        # While the model samples it reads the past as the template writes it, too.
        assert row_text(aligner.teacher, last.teacher).rstrip("\n") == expected.rstrip("\n")
        assert len(completion_texts(aligner.teacher, last.teacher)) == 1


def test_plain_prompts_take_what_stands_before_a_text_only():
    from tokenizers.processors import TemplateProcessing

    aligner = template_aligner("chatml", "chatml")
    tokenizers = [copy.deepcopy(templated("chatml", side)) for side in (0, 1)]
    for tokenizer in tokenizers:
        named = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<|bos|>", "<eos>")]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|bos|> $A <eos>", special_tokens=named
        )
    rows = [{"prompt": text, "completion": " 4"} for text in ("2 + 2 =", "a", "", "<eos>")]
    collator = SimCTCollator(aligner, *tokenizers)
    batch = collator.prepare(rows)
    for side, vocabulary in ((batch.teacher, aligner.teacher), (batch.student, aligner.student)):
        for number, row in enumerate(rows):
            text = row_text(vocabulary, side, number)
            expected = f"<|bos|>{row['prompt']} 4<|im_end|>"
            assert plain(text, vocabulary) == plain(expected, vocabulary)
    for tokenizer, prompts in zip(tokenizers, collator.prompts(rows), strict=True):
        ids = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<|bos|>", "<eos>")}
        for row, (prompt,) in zip(rows, prompts, strict=True):
            assert prompt[0] == ids["<|bos|>"]
            assert (prompt[-1] == ids["<eos>"]) == (row["prompt"] == "<eos>")
