"""Inputs that strangers write, led by the coverage of the package's Python code.

    PYTHONPATH=tests:benches:examples python tools/fuzz_atheris.py [--seconds 60] [--target NAME]

Needs `pip install --group fuzz`, which `make fuzz-atheris` does. `tools/fuzz.py` draws inputs from
seeds; here atheris keeps what reaches new lines and changes it further, as JSON where it is JSON. A
refusal is a `TypeError` or a `ValueError`. Any other error, a panic of Rust and an input that takes
longer than 10 seconds are failures. The input is kept in `fuzz/artifacts`, and
`--target NAME --input FILE` repeats it. The targets:

* `tokenizer_json`, `configurations`: a tokenizer file, and the files beside it.
* `saved_files`: a file of `Aligner.save`, its checksum set right.
* `align_batch`: rows, masks and offsets of `align_batch`, then the arguments of `index`.
* `served`: answers of servers, read by all three readers.
* `conversations`: rows of `SimCTCollator`, with several chat templates.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import atheris

with redirect_stderr(io.StringIO()), atheris.instrument_imports(include=["simct_align"]):
    import simct_align.collator
    import simct_align.readers.huggingface
    import simct_align.served  # noqa: F401

import fuzz
import numpy as np

import test_collator
import test_hostile_files as hostile_files
import test_served
from simct_align import Vocabulary
from simct_align.collator import SimCTCollator
from support.hostile_values import small_aligner
from support.saved_files import mutated, signed
from support.templates import TEMPLATES, template_aligner, templated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROOT = Path(__file__).resolve().parent.parent / "fuzz"
REFUSALS = (TypeError, ValueError)
LONGEST_INPUT = 8192


def state_of(data: bytes) -> Any:
    """Return the JSON object of an input; an empty one if it is none."""
    with suppress(ValueError, RecursionError):
        state = json.loads(data)
        if isinstance(state, dict):
            return state
    return {}


@cache
def small_student() -> Vocabulary:
    """Return a vocabulary of three tokens.

    The library `tokenizers` keeps what a tokenizer has encoded when the tokenizer is gone, 1 MB for
    the tokens of a bundled student.
    """
    path = fuzz.FOLDER / "student" / "tokenizer.json"
    path.parent.mkdir()
    path.write_bytes(hostile_files.tokenizer_json())
    return Vocabulary.from_tokenizer(path)


def tokenizer_json(data: bytes) -> None:
    (fuzz.FOLDER / "tokenizer.json").write_bytes(data)
    fuzz.open_folder(small_student())


def configurations(data: bytes) -> None:
    fuzz.open_configurations(
        {name: state for name, state in state_of(data).items() if name in fuzz.CONFIG_FILES},
        small_student(),
    )


def saved_files(data: bytes) -> None:
    fuzz.open_saved(signed(data))


DTYPES = ["int8", "int32", ">u2", "uint32", "int64", "uint64", "float32", "bool", "object"]


def array(value: Any) -> Any:
    """Return an argument: `{"dtype": ..., "values": ...}` is an array, `{"tuple": ...}` a tuple."""
    if isinstance(value, dict) and value.get("dtype") in DTYPES:
        return np.array(value.get("values"), value["dtype"])
    if isinstance(value, dict) and isinstance(value.get("tuple"), list):
        return tuple(map(array, value["tuple"]))
    return value


def arguments(state: Any, names: Iterable[str]) -> dict[str, Any]:
    with suppress(TypeError, ValueError, OverflowError):  # of numpy
        return {name: array(state[name]) for name in names if name in state}
    return {}


SIDE_ARGUMENTS = ("teacher_ids", "student_ids", "teacher_mask", "student_mask")
INDEX_ARGUMENTS = ("teacher_row_starts", "student_row_starts", "teacher_stride", "student_stride")


@cache
def aligner() -> Any:
    return small_aligner()


def align_batch(data: bytes) -> None:
    state = state_of(data)
    given = arguments(state, (*SIDE_ARGUMENTS, "on_mismatch", "resync_bytes", "threads"))
    batch = aligner().align_batch(**{"teacher_ids": [], "student_ids": []} | given)
    batch.coverage()
    for row in range(len(batch)):
        batch.units(row)
    index = batch.index(**arguments(state, (*INDEX_ARGUMENTS, "max_path", "text_events")))
    counted = index.n_units + index.dropped_no_prefix + index.dropped_dummy_prefix
    assert counted == batch.n_units


def served(data: bytes) -> None:
    state = state_of(data)
    names = ("answers", "teacher_ids", "attention_mask", "top_k", "vocab_size")
    given = {"answers": None, "teacher_ids": None} | arguments(state, names)
    reader, _ = test_served.READERS[max(test_served.READERS, key=str(state.get("reader")).__eq__)]
    found = reader(**given)
    assert found.logprobs.shape == found.token_ids.shape
    assert len(found.top) == found.logprobs.size
    _ = found.lists


@cache
def collators() -> list[SimCTCollator]:
    made = [test_collator.collator_of(), test_collator.collator_of(history="sampled", turns="last")]
    for teacher, student in zip(TEMPLATES, [*TEMPLATES][1:], strict=False):
        tokenizers = templated(teacher, 0), templated(student, 1)
        made += [
            SimCTCollator(template_aligner(teacher, student), *tokenizers, history=history)
            for history in ("template", "sampled")
        ]
    return made


def conversations(data: bytes) -> None:
    state = state_of(data)
    chosen = state.get("collator")
    number = chosen if isinstance(chosen, int) else 0
    collators()[number % len(collators())](state.get("rows"))


SERVED_STATES = [
    {
        "reader": reader,
        "answers": test_served.ANSWERS[name],
        "teacher_ids": test_served.IDS,
        "top_k": 2,
        "vocab_size": 10,
    }
    for reader, (_, name) in test_served.READERS.items()
]
ROWS = {"teacher_ids": [[1, 0, 1, 2]], "student_ids": [[2, 0, 1, 2, 3]]}
ALIGN_STATES: list[Any] = [
    {**ROWS, "resync_bytes": 2, "on_mismatch": "error", "threads": 1, "max_path": 8},
    {
        **ROWS,
        "teacher_mask": [[0, 1, 1, 1]],
        "student_mask": [[0, 1, 1, 1, 1]],
        "text_events": True,
    },
    {
        side: {
            "tuple": [
                {"dtype": dtype, "values": rows[0]},
                {"dtype": "int64", "values": [0, len(rows[0])]},
            ]
        }
        for (side, rows), dtype in zip(ROWS.items(), ("int32", ">u2"), strict=True)
    },
    {side: {"dtype": "int64", "values": [*rows, *rows]} for side, rows in ROWS.items()}
    | {"teacher_stride": 4, "student_stride": 9},
]


def small_files() -> list[Any]:
    """Tokenizer files of a few tokens, among them those that the tests expect to be refused."""
    bad = [
        data for data, _ in (*hostile_files.BAD_FILES.values(), *hostile_files.BAD_TEXTS.values())
    ]
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]]}
    words = {"type": "WordPiece", "unk_token": "a", "max_input_chars_per_word": 100}
    models = [
        hostile_files.tokenizer_json(),
        hostile_files.added(),
        hostile_files.tokenizer_json(**unigram, byte_fallback=True),
        hostile_files.tokenizer_json(**words, continuing_subword_prefix="##"),
        hostile_files.with_part(
            "decoder", {"type": "Metaspace", "replacement": "▁", "split": True}
        ),
    ]
    return [data for data in (*models, *bad) if len(data) < LONGEST_INPUT]


#: What is done with an input, and the inputs to begin with.
TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[Any]]]] = {
    "tokenizer_json": (tokenizer_json, small_files),
    "configurations": (configurations, lambda: [dict.fromkeys(fuzz.CONFIG_FILES, fuzz.CONFIG)]),
    "saved_files": (saved_files, lambda: [fuzz.saved_body()]),
    "align_batch": (align_batch, lambda: ALIGN_STATES),
    "served": (served, lambda: SERVED_STATES),
    "conversations": (
        conversations,
        lambda: [
            {"rows": [row], "collator": number}
            for number, row in enumerate([*test_collator.ROWS] * 5)
        ],
    ),
}


def changed(data: bytes, max_size: int, seed: int) -> bytes:
    """Return another input: another JSON value, another saved file, or other bytes."""
    rng = random.Random(seed)
    if rng.random() < 0.8:
        with suppress(ValueError, RecursionError):
            new = json.dumps(fuzz.changed_json(rng, json.loads(data))).encode()
            return new[:max_size]
    if data.startswith(b"SIMCTALN") and rng.random() < 0.5:
        with suppress(ValueError, IndexError):
            return mutated(rng, data)[:max_size]
    return atheris.Mutate(data, len(data))  # type: ignore[no-any-return]


def run(name: str, options: list[str], *, show: bool) -> None:
    """Run a target in this process, which ends with it."""
    target, _ = TARGETS[name]
    shown: set[Any] = set()

    def one(data: bytes) -> None:
        try:
            target(data)
        except REFUSALS as error:
            place = error.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = place and (place.tb_frame.f_code.co_filename, place.tb_lineno)
            if show and where not in shown:
                shown.add(where)
                print(f"{type(error).__name__} at {where}: {error!s:.300}", flush=True)

    atheris.Setup([sys.argv[0], *options], one, custom_mutator=changed)
    atheris.Fuzz()


def fuzzed(name: str, seconds: int, *, show: bool) -> bool:
    """Run a target in a process of its own; return whether it passes."""
    corpus, artifacts = ROOT / "corpus" / f"atheris_{name}", ROOT / "artifacts" / f"atheris_{name}"
    for folder in (corpus, artifacts):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name][1]()):
        content = seed if isinstance(seed, bytes) else json.dumps(seed).encode()
        (corpus / f"seed_{number}").write_bytes(content)
    command = [sys.executable, __file__, "--target", name, *["--show"] * show, "--options"]
    limits = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST_INPUT}",
        "-timeout=10",
        "-rss_limit_mb=4096",  # a vocabulary with the largest id takes 1 GB
    ]
    quiet = ["-verbosity=0", "-print_final_stats=1", f"-artifact_prefix={artifacts}/"]
    print(f"== {name}", flush=True)
    # The libraries of tokenizers print what their panics say, which are errors of Python here.
    environment = os.environ | {"RUST_BACKTRACE": "0"}
    done = subprocess.run([*command, *limits, *quiet, str(corpus)], env=environment)
    return done.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", choices=TARGETS, help="only this one")
    parser.add_argument("--input", type=Path, help="only this input")
    parser.add_argument("--show", action="store_true", help="print every new kind of refusal")
    parser.add_argument("--options", nargs=argparse.REMAINDER, help="of libFuzzer, for one target")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.input:
        TARGETS[options.target][0](options.input.read_bytes())
    elif options.options:
        run(options.target, options.options, show=options.show)
    else:
        names = [options.target] if options.target else TARGETS
        passed = [fuzzed(name, options.seconds, show=options.show) for name in names]
        sys.exit(not all(passed))


if __name__ == "__main__":
    main()
