"""Prompts, completions and ends of turn, joined for both sides."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from simct_align import Aligner, UnitKind, Vocabulary
from simct_align.chat import check_end_of_turn, content_text, prompt_ids
from simct_align.retokenize import TextEncoder
from support.chat_tokenizers import (
    STOPS,
    demo_aligner,
    demo_chat_tokenizers,
    real_aligner,
    real_chat_tokenizer,
)

CONVERSATION = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And 5 + 7?"},
    {"role": "assistant", "content": "That is 12."},
]


@pytest.fixture(scope="module", params=[False, True], ids=["level_teaches", "fallback_teaches"])
def aligner(request) -> Aligner:
    return demo_aligner(turned=request.param)


def encode(aligner: Aligner, *texts: str) -> list[list[int]]:
    return aligner.student.encode_batch(texts)


def completions_of(side, row: int) -> list[list[int]]:
    """The runs of positions that take part."""
    runs: list[list[int]] = []
    before = 0
    for token, taken in zip(side.input_ids[row], side.completion_mask[row], strict=True):
        if taken and not before:
            runs.append([])
        if taken:
            runs[-1].append(int(token))
        before = taken
    return runs


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_single_turns(aligner, padding_side):
    answers = encode(aligner, "The answer is 12.", "4", "")
    prompts = ["What is 5 + 7? ", "2 + 2 =", "Nothing."]
    teacher_prompts = aligner.teacher.encode_batch(prompts)
    student_prompts = encode(aligner, *prompts)
    batch = aligner.prepare(
        answers,
        teacher_prompt_ids=teacher_prompts,
        student_prompt_ids=student_prompts,
        truncated=[False, True, False],
        padding_side=padding_side,
        teacher_pad_id=11,
        student_pad_id=22,
        pad_to_multiple_of=8,
    )
    stops = (aligner.teacher.stop_ids[0], aligner.student.stop_ids[0])
    for side, vocab, prompt_rows, pad, stop in (
        (batch.teacher, aligner.teacher, teacher_prompts, 11, stops[0]),
        (batch.student, aligner.student, student_prompts, 22, stops[1]),
    ):
        assert side.input_ids.shape[1] % 8 == 0
        assert side.input_ids.shape == side.attention_mask.shape == side.completion_mask.shape
        assert (side.input_ids[side.attention_mask == 0] == pad).all()
        edge = side.attention_mask[:, -1 if padding_side == "left" else 0]
        assert edge.tolist() == [1, 1, 1]
        for row, prompt in enumerate(prompt_rows):
            ids = side.input_ids[row][side.attention_mask[row] == 1].tolist()
            assert ids[: len(prompt)] == prompt
            taken = side.input_ids[row][side.completion_mask[row] == 1].tolist()
            assert ids[len(prompt) :] == taken
            assert vocab.decode_bytes(taken) == aligner.student.decode_bytes(answers[row])
            assert (taken[-1] == stop) == (row != 1)
        assert (side.labels[side.completion_mask == 0] == -100).all()
        labelled = side.completion_mask == 1
        assert (side.labels[labelled] == side.input_ids[labelled]).all()
    counts = batch.counts.as_dict()
    assert counts["turns"] == 3
    assert (counts["truncated_turns"], counts["stops_added"], counts["specials"]) == (1, 2, 2)
    coverage = batch.aligned.coverage()
    assert coverage.student_tokens_in_units == coverage.student_tokens
    assert coverage.units["special"] == 2
    index = batch.aligned.index()
    assert len(index) == batch.aligned.n_units
    width = batch.student.input_ids.shape[1]
    rows, positions = np.divmod(index.student_row, width)
    targets = batch.student.input_ids[rows, positions + 1]
    starts = batch.aligned.student_start[index.unit]
    assert (positions == starts - 1).all()
    assert set(targets[index.kind == UnitKind.SPECIAL].tolist()) == {stops[1]}


def test_a_sampled_stop_is_not_repeated(aligner):
    stop = aligner.student.stop_ids[0]
    answer = [*encode(aligner, "yes")[0], stop]
    for truncated in (None, [True]):
        batch = aligner.prepare(
            [answer], teacher_prompt_ids=[[5]], student_prompt_ids=[[5]], truncated=truncated
        )
        assert batch.counts.stops_added == 0
        assert completions_of(batch.student, 0) == [answer]


def test_turns_end_as_the_end_ids_say(aligner):
    """A stop takes part, with white space before it; what follows does not; None adds a stop."""
    stops = aligner.teacher.stop_ids[0], aligner.student.stop_ids[0]
    spaces = [side.encode_batch(["a\n"])[0][-1] for side in (aligner.teacher, aligner.student)]
    assert aligner.teacher.token_bytes(spaces[0]) == b"\n"
    first, second = encode(aligner, "one", "two")
    cases = (
        # The student's end ids, what follows "two", its mask, and whether that adds a stop.
        ([stops[1], 7, 8], [stops[1], 7, 8], [1, 0, 0], True),
        ([spaces[1], stops[1], 7], [spaces[1], stops[1], 7], [1, 1, 0], True),
        ([7, stops[1]], [7, stops[1]], [0, 0], False),
        ([], [], [], False),
        (None, [stops[1]], [1], True),
    )
    for end, follows, mask, adds in cases:
        for own in ([], [stops[1]]):
            # Where the template writes no stop, a sampled one stays.
            kept = [] if adds else own
            batch = aligner.prepare(
                [[first, [*second, *own]]],
                teacher_prompt_ids=[[[5], [stops[0], 9, 9]]],
                student_prompt_ids=[[[5], [stops[1], 9]]],
                teacher_end_ids=[[stops[0], 3]],
                student_end_ids=[end],
            )
            row = [5, *first, stops[1], 9, *second, *kept, *follows]
            assert batch.student.input_ids[0].tolist() == row
            taken = [0, *first, 1, 0, *second, *kept, *mask]
            assert batch.student.completion_mask[0].tolist() == [int(each > 0) for each in taken]
            teacher = batch.teacher.input_ids[0][batch.teacher.attention_mask[0] == 1].tolist()
            assert teacher[-2:] == [stops[0], 3]
            assert teacher.count(stops[0]) == 2
            runs = completions_of(batch.teacher, 0)
            assert [aligner.teacher.decode_bytes(run).strip() for run in runs] == [b"one", b"two"]
            assert batch.counts.stops_added == 1 + (adds and not own)


def test_turns_that_nothing_stands_between_stay_two_regions(aligner):
    stop = aligner.student.stop_ids[0]
    first, second = encode(aligner, "one", "two")
    batch = aligner.prepare(
        [[first, second]],
        teacher_prompt_ids=[[[5], [aligner.teacher.stop_ids[0]]]],
        student_prompt_ids=[[[5], [stop]]],
        teacher_end_ids=[[]],
        student_end_ids=[[]],
    )
    assert batch.student.input_ids[0].tolist() == [5, *first, stop, *second]
    assert completions_of(batch.student, 0) == [first, second]
    assert "".join(unit.text.strip() for unit in batch.aligned.units(0)) == "onetwo"


def test_padded_prompts_and_completions_with_masks(aligner):
    """As trainers hold them: prompts padded on the left, completions on the right."""
    answers = encode(aligner, "one two three", "four")
    width = max(map(len, answers))
    dense = np.array([[*row, *[0] * (width - len(row))] for row in answers])
    mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in answers])
    prompts, prompt_mask = np.array([[9, 9, 5], [6, 7, 8]]), np.array([[0, 0, 1], [1, 1, 1]])
    given = {"teacher_prompt_ids": [[5], [6, 7, 8]], "truncated": np.array([False, False])}
    padded = aligner.prepare(
        dense,
        completion_mask=mask,
        student_prompt_ids=prompts,
        student_prompt_mask=prompt_mask,
        **given,
    )
    ragged = aligner.prepare(answers, student_prompt_ids=[[5], [6, 7, 8]], **given)
    for side in ("teacher", "student"):
        for name in ("input_ids", "attention_mask", "completion_mask"):
            expected = getattr(getattr(ragged, side), name)
            assert np.array_equal(getattr(getattr(padded, side), name), expected)


def prompts_of(aligner, tokenizers, messages, turns):
    order = (1, 0) if aligner.teacher.dummy_prefix else (0, 1)
    teacher, student = (tokenizers[place] for place in order)
    return prompt_ids(teacher, messages, turns), prompt_ids(student, messages, turns)


def test_conversations_keep_turn_k_with_turn_k(aligner):
    teacher, student = prompts_of(aligner, demo_chat_tokenizers(), CONVERSATION, [1, 3])
    answers = encode(aligner, "It is 4.", "That is 12.")
    batch = aligner.prepare(
        [answers, answers[:1]],
        teacher_prompt_ids=[teacher, teacher[:1]],
        student_prompt_ids=[student, student[:1]],
    )
    for side, vocab in ((batch.teacher, aligner.teacher), (batch.student, aligner.student)):
        runs = completions_of(side, 0)
        assert [vocab.decode_bytes(run).strip() for run in runs] == [b"It is 4.", b"That is 12."]
        assert [run[-1] for run in runs] == [vocab.stop_ids[0]] * 2
        # One end of turn between the turns: the template's is the completion's.
        row = side.input_ids[0][side.attention_mask[0] == 1].tolist()
        assert sum(token == vocab.stop_ids[0] for token in row) == (
            4 if vocab.special_ids.get("<|user|>") else 2
        )
    assert batch.aligned.coverage().units["special"] == 3
    assert batch.counts.turns == 3


def test_the_whole_row_is_what_the_template_writes():
    """With completions as the template has them, prompts and completions make its text."""
    aligner = demo_aligner()
    level, _ = demo_chat_tokenizers()
    prompts = prompt_ids(level, CONVERSATION, [1, 3])
    encoded = TextEncoder(aligner.student).encode(["It is 4.", "That is 12."], threads=1)
    answers = [encoded.row(0), encoded.row(1)]
    batch = aligner.prepare(
        [answers], teacher_prompt_ids=[prompts], student_prompt_ids=[[[1], [1]]]
    )
    text = level.apply_chat_template(CONVERSATION, tokenize=False)
    assert batch.teacher.input_ids[0].tolist() == level(text, add_special_tokens=False)["input_ids"]


def test_truncated_turns_get_no_end(aligner):
    teacher, student = prompts_of(aligner, demo_chat_tokenizers(), CONVERSATION, [1, 3])
    answers = encode(aligner, "It is", "That is")
    batch = aligner.prepare(
        [answers],
        teacher_prompt_ids=[teacher],
        student_prompt_ids=[student],
        truncated=[[True, True]],
    )
    assert batch.counts.truncated_turns == 2
    assert batch.aligned.coverage().units["special"] == 0
    for side, vocab in ((batch.teacher, aligner.teacher), (batch.student, aligner.student)):
        row = side.input_ids[0].tolist()
        # The template's own end of the first turn stays in the prompt of the second.
        first_end = int(np.flatnonzero(np.diff(side.completion_mask[0]) == -1)[0]) + 1
        assert row[first_end] == vocab.stop_ids[0]


def test_turns_that_one_side_lacks_take_no_part(aligner):
    """A lone token without a partner must not shift the turns behind it."""
    unmapped = next(
        token for token in aligner.student.special_names if token not in aligner.student.stop_ids
    )
    answers = [[unmapped], *encode(aligner, "second"), []]
    batch = aligner.prepare(
        [answers],
        teacher_prompt_ids=[[[5], [6], [7]]],
        student_prompt_ids=[[[5], [6], [7]]],
        truncated=[[True, True, True]],
    )
    assert batch.counts.turns_left_out == 1
    assert batch.counts.retokenized.specials_left_out == 1
    assert "".join(unit.text for unit in batch.aligned.units(0)).strip() == "second"
    assert unmapped in batch.student.input_ids[0]


@pytest.mark.parametrize("limit", range(13))
def test_rows_are_cut_at_their_length_limit(aligner, limit):
    answers = encode(aligner, "one two 🙂 three", "four five")
    given = {"teacher_prompt_ids": [[[5, 6], [7, 8]]], "student_prompt_ids": [[[5, 6], [7, 8]]]}
    full = aligner.prepare([answers], **given)
    cut = aligner.prepare([answers], **given, student_max_length=limit)
    width = full.student.input_ids.shape[1]
    assert cut.student.input_ids.tolist() == full.student.input_ids[:, :limit].tolist()
    assert cut.counts.student_tokens_cut == width - min(limit, width)
    coverage = cut.aligned.coverage()
    assert coverage.student_tokens_in_units == coverage.student_tokens
    short = aligner.prepare([answers], **given, teacher_max_length=limit)
    teacher_width = full.teacher.input_ids.shape[1]
    assert short.teacher.input_ids.tolist() == full.teacher.input_ids[:, :limit].tolist()
    assert short.counts.teacher_tokens_cut == teacher_width - min(limit, teacher_width)
    assert short.student.input_ids.tolist() == full.student.input_ids.tolist()


def test_random_rollouts_are_prepared_and_counted(aligner):
    rng = np.random.default_rng(9)
    answers = [rng.integers(0, 4096, rng.integers(0, 40)).tolist() for _ in range(30)]
    prompts = [[5]] * 30
    batch = aligner.prepare(answers, teacher_prompt_ids=prompts, student_prompt_ids=prompts)
    coverage = batch.aligned.coverage()
    counts = batch.counts
    unmatched = sum(coverage.student_unmatched.values())
    assert unmatched == counts.retokenized.specials_left_out + counts.retokenized.empty_left_out
    assert coverage.teacher_tokens_in_units == coverage.teacher_tokens


def test_without_stops_nothing_is_added():
    teacher = Vocabulary.from_token_bytes([b"a", b"b"])
    student = Vocabulary.from_token_bytes([b"a", b"b"])
    batch = Aligner(teacher, student).prepare(
        [[0, 1]], teacher_prompt_ids=[[1]], student_prompt_ids=[[0]]
    )
    assert batch.student.input_ids.tolist() == [[0, 0, 1]]
    assert batch.counts.stops_added == 0


def test_no_rows():
    batch = demo_aligner().prepare([], teacher_prompt_ids=[], student_prompt_ids=[])
    assert batch.teacher.input_ids.shape == (0, 0)
    assert len(batch.aligned.index()) == 0


def test_what_does_not_fit_is_named(aligner):
    one = [[5]]
    with pytest.raises(ValueError, match="teacher_prompt_ids has 2 rows, expected 1"):
        aligner.prepare(one, teacher_prompt_ids=[[1], [2]], student_prompt_ids=one)
    with pytest.raises(ValueError, match=r"row 0: student_prompt_ids has 1 turns, expected 2"):
        aligner.prepare([[[5], [6]]], teacher_prompt_ids=[[[1], [2]]], student_prompt_ids=[[[1]]])
    with pytest.raises(ValueError, match="row 0, turn 1: teacher_prompt_ids is empty"):
        aligner.prepare(
            [[[5], [6]]], teacher_prompt_ids=[[[1], []]], student_prompt_ids=[[[1], [2]]]
        )
    with pytest.raises(ValueError, match="truncated has 2 entries, expected one per row: 1"):
        aligner.prepare(
            one, teacher_prompt_ids=one, student_prompt_ids=one, truncated=[True, False]
        )
    with pytest.raises(ValueError, match="row 0: truncated has 3 entries, expected one flag or"):
        aligner.prepare(
            one, teacher_prompt_ids=one, student_prompt_ids=one, truncated=[[True, False, True]]
        )
    with pytest.raises(TypeError, match="completion_mask: nested lists of turns"):
        aligner.prepare(
            [[[5]]], completion_mask=[[1]], teacher_prompt_ids=one, student_prompt_ids=one
        )
    with pytest.raises(ValueError, match="student_end_ids has 2 rows, expected 1 as in"):
        aligner.prepare(
            one, teacher_prompt_ids=one, student_prompt_ids=one, student_end_ids=[[1], [2]]
        )
    with pytest.raises(TypeError, match="row 0: teacher_end_ids: expected a list of integers or"):
        aligner.prepare(
            one, teacher_prompt_ids=one, student_prompt_ids=one, teacher_end_ids=[["a"]]
        )
    stop = aligner.student.stop_ids[0]
    with pytest.raises(ValueError, match="row 0, turn 1: student_prompt_ids contains only the"):
        aligner.prepare(
            [[[5], [6]]], teacher_prompt_ids=[[[1], [2]]], student_prompt_ids=[[[1], [stop]]]
        )


def test_prompts_of_templates():
    level, fallback = demo_chat_tokenizers()
    first, second = (level.decode(ids) for ids in prompt_ids(level, CONVERSATION, [1, 3]))
    assert first == "<|user|>What is 2 + 2?<|end|><|assistant|>"
    assert second == "<|end|><|user|>And 5 + 7?<|end|><|assistant|>"
    # An answer that is yet to come; earlier turns are context, with what they say.
    (last,) = prompt_ids(level, CONVERSATION[:3], [3])
    assert "It is 4.<|end|><|user|>And" in level.decode(last)
    assert level.decode(last) == level.apply_chat_template(
        CONVERSATION[:3], tokenize=False, add_generation_prompt=True
    )
    assert prompt_ids(level, CONVERSATION, []) == []
    with pytest.raises(Exception, match="no system role"):
        prompt_ids(fallback, [{"role": "system", "content": "x"}, *CONVERSATION], [2])


def test_a_template_that_hides_or_repeats_a_turn_is_refused():
    level, _ = demo_chat_tokenizers()

    class Odd:
        def __init__(self, times):
            self.times = times

        def apply_chat_template(self, messages, **_):
            return "".join(message["content"] * self.times for message in messages)

        def __call__(self, texts, **options):
            return level(texts, **options)

    for times in (0, 2):
        with pytest.raises(ValueError, match=f"content of message 1 {times} times"):
            prompt_ids(Odd(times), CONVERSATION, [1, 3])


def test_options_and_tools_reach_the_template():
    level, _ = demo_chat_tokenizers()
    seen = []

    class Watched:
        def apply_chat_template(self, messages, **options):
            seen.append(options)
            return level.apply_chat_template(messages, tokenize=False)

        def __call__(self, texts, **options):
            return level(texts, **options)

    prompt_ids(Watched(), CONVERSATION[:1], [1], tools=("t",), template_options={"think": True})
    assert seen[0]["tools"] == ["t"]
    assert seen[0]["think"] is True


def test_contents_that_are_not_text_are_refused():
    assert content_text({"content": "a"}, "here") == "a"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert content_text({"content": parts}, "here") == "ab"
    for message in (
        {"content": None},
        {"content": [{"type": "image"}]},
        {"content": [{"type": "text", "text": "a"}, {"type": "image"}]},
        {},
    ):
        with pytest.raises(ValueError, match=r"here has .*'completion_ids'"):
            content_text(message, "here")


def test_a_template_with_another_end_of_turn_is_warned_about():
    level, fallback = demo_chat_tokenizers()
    aligner = demo_aligner()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_end_of_turn("teacher", level, aligner.teacher, [4092])
    with pytest.warns(UserWarning, match=r"teacher's chat template .*'<\|end\|>'.*\(none\)"):
        check_end_of_turn("teacher", level, aligner.teacher, [])
    with pytest.warns(UserWarning, match=r"student's chat template .*'</s>'.*\('<s>'\)"):
        check_end_of_turn("student", fallback, aligner.student, [1])


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("deepseek", "demo_byte_level"),
        ("demo_byte_level", "deepseek"),
        ("gemma2", "qwen2_5"),
        ("qwen2_5", "llama3_1"),
        ("mistral_nemo", "gemma2"),
    ],
)
def test_real_templates(teacher, student):
    """Random rollouts in a real conversation: all but control tokens is in units."""
    tokenizers = [real_chat_tokenizer(teacher), real_chat_tokenizer(student)]
    aligner = real_aligner(teacher, student)
    for side, tokenizer, vocab, stops in (
        ("teacher", tokenizers[0], aligner.teacher, aligner.shared.teacher_stop_ids),
        ("student", tokenizers[1], aligner.student, aligner.shared.student_stop_ids),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            check_end_of_turn(side, tokenizer, vocab, stops.tolist())
    prompts = [prompt_ids(tokenizer, CONVERSATION, [1, 3]) for tokenizer in tokenizers]
    rng = np.random.default_rng(1)
    answers = [
        rng.integers(0, len(aligner.student), 20),
        np.array(aligner.student.encode_batch(["That is <think>12</think> <tool_call>."])[0]),
    ]
    batch = aligner.prepare(
        [answers], teacher_prompt_ids=[prompts[0]], student_prompt_ids=[prompts[1]]
    )
    coverage = batch.aligned.coverage()
    left_out = batch.counts.retokenized.specials_left_out + batch.counts.retokenized.empty_left_out
    assert sum(coverage.student_unmatched.values()) == left_out
    assert coverage.units["special"] == 2
    for side, tokenizer, stops in zip(
        (batch.teacher, batch.student), tokenizers, (STOPS[teacher], STOPS[student]), strict=True
    ):
        row = tokenizer.decode(side.input_ids[0], skip_special_tokens=False)
        assert row.startswith(tokenizer.apply_chat_template(CONVERSATION[:1], tokenize=False)[:20])
        assert row.count(stops[0]) >= 2
        assert stops[0] * 2 not in row
