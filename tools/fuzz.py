"""Random inputs of every kind for a given time, against slow twins and for panics.

    PYTHONPATH=tests:benches:examples python tools/fuzz.py [--seconds 60] [--jobs N]
    PYTHONPATH=tests:benches:examples python tools/fuzz.py --target NAME [--seconds 60 | --seed N]

Every target runs for `--seconds` in a process of its own, `--jobs` of them at a time (default: the
number of cores). An execution is drawn from a seed alone: a failure, the end of the process or an
execution that goes on for minutes prints the command that repeats it, and becomes a named test. The
targets:

* `tokenizer_json`, `configurations`: bytes and JSON values of tokenizer files are changed. What
  opens encodes text and is aligned; all else is a `ValueError`.
* `saved_files`: files of `Aligner.save`, changed at any byte, with the checksum set right.
* `token_tables`: a pair of random byte tables, in all tables of an aligner.
* `alignment`: random ids and masks against the slow twin of the engine.
* `text_events`: random pairs, texts and logits against the twin of the definition, with gradients.
* `rollouts`: random rollouts, of which the index is decoded again.
* `calls`: public calls with two arguments of unusual values.
"""

from __future__ import annotations

import argparse
import atexit
import gzip
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import test_align_hostile as hostile
import test_hostile_calls as hostile_calls
import test_hostile_files as hostile_files
import test_signal as signals
from simct_align import Aligner, Vocabulary
from simct_align.demo import demo_tokenizers
from support.hostile_values import VALUES, calls
from support.rollouts import LAYOUTS, rollouts
from support.saved_files import mutated, saved_pair, signed
from support.text_cases import DIVERGENCES, compare, random_case
from support.vocabularies import BUNDLED, vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(tempfile.mkdtemp(prefix="fuzz"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
NUMBERS = (0, 1, -1, 255, 2**24 - 1, 2**24, 2**31, 2**32 - 1, 2**32, 2**64, 0.5, 1e308)
JSON_VALUES = (*NUMBERS, None, True, "", "x", "\ud800", [], {}, [[]], {"x": 1}, "a" * 1000)


@cache
def tokenizer_files() -> tuple[bytes, ...]:
    packed = [path / "tokenizer.json.gz" for path in demo_tokenizers()]
    found = [gzip.decompress(path.read_bytes()) for path in packed if path.is_file()]
    states = [hostile_files.tokenizer_json(), hostile_files.added(), *found]
    return tuple(states)


def changed_bytes(rng: random.Random, data: bytes) -> bytes:
    """Return bytes of a file of which some were flipped, lost, doubled or replaced."""
    new = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at, size = rng.randrange(len(new) + 1), rng.choice([1, 1, 2, 8, 100])
        kind = rng.randrange(4)
        if kind == 0 and at < len(new):
            new[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del new[at : at + size]
        elif kind == 2:
            new[at:at] = new[at : at + size]
        else:
            new[at : at + size] = rng.randbytes(size)
    return bytes(new)


def changed_json(rng: random.Random, value: Any) -> Any:
    """Return a JSON value of which one part is another value, or is not there."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.85:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        copy: Any = dict(value) if isinstance(value, dict) else list(value)
        if rng.random() < 0.15:
            del copy[key]
        else:
            copy[key] = changed_json(rng, value[key])
        return copy
    return rng.choice(JSON_VALUES)


def open_folder(student: Vocabulary) -> None:
    with suppress(ValueError):
        aligner = Aligner(Vocabulary.from_tokenizer(FOLDER), student)
        batch = aligner.align_texts(["ab a", "naïve 12", "b", ""])
        signals.assert_every_token_once(
            batch, sides=[np.ones(len(side.values)) for side in (batch.teacher, batch.student)]
        )
        batch.index(max_path=4, text_events=True)


def tokenizer_json(rng: random.Random) -> None:
    data = rng.choice(tokenizer_files())
    if rng.random() < 0.6:
        data = json.dumps(changed_json(rng, json.loads(data))).encode()
    else:
        data = changed_bytes(rng, data)
    (FOLDER / "tokenizer.json").write_bytes(data)
    open_folder(vocabulary(rng.choice(BUNDLED)))


CONFIG = {
    "added_tokens_decoder": {"3": {"content": "<x>", "special": True}},
    "eos_token": {"content": "<x>"},
    "additional_special_tokens": ["<x>"],
    "chat_template": "{% for m in messages %}<x>{{ m.role }} {{ m.content }}{% endfor %}",
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token_id": [3],
    "text_config": {"eos_token_id": 3},
}


CONFIG_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    "generation_config.json",
    "chat_template.json",
)


def open_configurations(states: dict[str, Any], student: Vocabulary) -> None:
    (FOLDER / "tokenizer.json").write_bytes(hostile_files.added())
    for name, state in states.items():
        (FOLDER / name).write_text(json.dumps(state))
    try:
        open_folder(student)
    finally:
        for path in FOLDER.glob("*.json"):
            path.unlink()


def configurations(rng: random.Random) -> None:
    states = dict.fromkeys(CONFIG_FILES, CONFIG)
    for name in CONFIG_FILES:
        for _ in range(rng.randint(0, 3)):
            states[name] = changed_json(rng, states[name])
    open_configurations(states, vocabulary(rng.choice(BUNDLED)))


@cache
def saved_body() -> bytes:
    path = FOLDER / "pair"
    saved_pair().save(path)
    return path.read_bytes()[:-32]


def open_saved(data: bytes) -> None:
    path = FOLDER / "mutated"
    path.write_bytes(data)
    with suppress(ValueError):
        hostile_files.use_everything(Aligner.load(path))


def saved_files(rng: random.Random) -> None:
    body = saved_body()
    if rng.random() < 0.3:
        data = changed_bytes(rng, signed(body))
    else:
        data = signed(mutated(rng, body) if rng.random() < 0.7 else changed_bytes(rng, body))
    open_saved(data)


def token_tables(rng: random.Random) -> None:
    alphabet = [b"a", b"b", b" ", b"\xc3", b"\xa9", b"\x00", b"\xff", b"12"]
    sides = []
    for _ in range(2):
        tokens = [
            b"".join(rng.choice(alphabet) for _ in range(rng.choice([0, 1, 1, 2, 3, 9, 70])))
            for _ in range(rng.randint(0, 30))
        ]
        kinds = [rng.choice(["normal"] * 6 + ["special", "unused", "byte"]) for _ in tokens]
        tokens = [
            token if kind == "normal" else token[:1] or b"x" if kind == "byte" else b""
            for token, kind in zip(tokens, kinds, strict=True)
        ]

        def of(kind: str, kinds: list[str] = kinds) -> list[int]:
            return [token for token, found in enumerate(kinds) if found == kind]

        sides.append(
            Vocabulary.from_token_bytes(
                tokens,
                special=of("special"),
                unused=of("unused"),
                byte_fallback=of("byte"),
                dummy_prefix=rng.random() < 0.3,
                stop_ids=of("special")[: rng.randint(0, 3)],
            )
        )
    aligner = Aligner(*sides)
    for shared_t, shared_s in zip(
        aligner.shared.teacher_ids, aligner.shared.student_ids, strict=True
    ):
        assert sides[0].token_bytes(int(shared_t)) == sides[1].token_bytes(int(shared_s))
    rows = [
        [[rng.randrange(len(side)) for _ in range(rng.randint(0, 40))] for _ in range(3)]
        if len(side)
        else [[], [], []]
        for side in sides
    ]
    batch = aligner.align_batch(*rows)
    signals.assert_every_token_once(batch, sides=[np.ones(sum(map(len, side))) for side in rows])
    index = batch.index(max_path=rng.choice([1, 8, 64]), text_events=True, first_ids=True)
    assert index.n_units + index.dropped_no_prefix + index.dropped_dummy_prefix == batch.n_units


def alignment(rng: random.Random) -> None:
    toy = hostile.Toy(rng, long=rng.random() < 0.1)
    rows = [toy.row(rng.randint(0, 20)) for _ in range(10)]
    hostile.check_against_twin(
        toy.aligner,
        [row[0] for row in rows],
        [row[1] for row in rows],
        pairs=toy.pairs,
        resync_bytes=rng.choice([1, 2, 3, 5, 8, 20]),
    )


def text_events(rng: random.Random) -> None:
    case = random_case(
        rng.randrange(2**31),
        alphabet=rng.choice([b"ab", b"abc"]),
        scale=rng.choice([0.5, 2.0]),
        same=rng.random() < 0.1,
    )
    compare(
        case,
        divergence=rng.choice(list(DIVERGENCES)),
        chunk_bytes=rng.choice([None, 1]),
        straddled=rng.choice(["tree", "byte"]),
    )


def decoded_rollouts(rng: random.Random) -> None:
    names = BUNDLED if rng.random() < 0.5 else BUNDLED[::-1]
    aligner = signals.aligner_of(*names)
    made = rollouts(rng, aligner, layout=rng.choice(LAYOUTS), rows=rng.randint(1, 5))
    signals.check_units(names, made)
    signals.check_counts(made)
    signals.check_text_events(aligner, made, names)


@cache
def known_calls() -> dict[str, Any]:
    return calls(FOLDER)


def hostile_arguments(rng: random.Random) -> None:
    name = rng.choice([name for name in known_calls() if name != "save"])
    call, plain = known_calls()[name]
    chosen = rng.sample(list(plain), min(2, len(plain)))
    error = hostile_calls.raised_by(call, plain | {key: rng.choice(VALUES) for key in chosen})
    if error is not None and not isinstance(error, hostile_calls.EXPECTED):
        raise error


TARGETS: dict[str, Callable[[random.Random], None]] = {
    "tokenizer_json": tokenizer_json,
    "configurations": configurations,
    "saved_files": saved_files,
    "token_tables": token_tables,
    "alignment": alignment,
    "text_events": text_events,
    "rollouts": decoded_rollouts,
    "calls": hostile_arguments,
}


#: How many seconds a process may take to start and for its last execution.
LONGEST = 120


def execute(name: str, seed: int) -> None:
    TARGETS[name](random.Random(f"{name} {seed}"))


def run(name: str, seconds: float, seed: Any, passed: Any) -> None:
    """Run a target in this process, which ends at the first failure.

    `seed.value` is the execution that runs. `passed.value` says that none failed: a library may end
    the process as if all were well.
    """
    warnings.simplefilter("ignore")
    begun = time.monotonic()
    try:
        while time.monotonic() - begun < seconds:
            execute(name, seed.value)
            seed.value += 1
        passed.value = 1
    except KeyboardInterrupt:
        raise
    except BaseException:  # an end of the process and a panic, too
        traceback.print_exc()
        sys.exit(1)


def passes(name: str, seconds: float) -> bool:
    """Run a target in a process of its own, and print a line when it ends."""
    context = multiprocessing.get_context("spawn")
    seed, passed = context.RawValue("q", 0), context.RawValue("b", 0)
    process = context.Process(target=run, args=(name, seconds, seed, passed))
    process.start()
    process.join(seconds + LONGEST)
    ends = process.exitcode is not None
    process.kill()
    process.join()
    if process.exitcode == 0 and passed.value:
        print(f"{name}: {seed.value} executions", flush=True)
        return True
    how = f"exit code {process.exitcode}" if ends else "it does not end"
    again = f"--target {name} --seed {seed.value}"
    print(f"{name}: FAILED ({how}), again with: {again}", flush=True)
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="targets at a time")
    parser.add_argument("--target", choices=TARGETS, help="only this one")
    parser.add_argument("--seed", type=int, help="only this execution of the target")
    options = parser.parse_args()
    if options.seed is not None:
        if options.target is None:
            parser.error("--seed needs --target")
        execute(options.target, options.seed)
        return
    os.environ["PYTHONWARNINGS"] = "ignore"  # while the processes import the tests
    names = [options.target] if options.target else list(TARGETS)
    with ThreadPoolExecutor(options.jobs) as pool:
        sys.exit(not all(list(pool.map(passes, names, [options.seconds] * len(names)))))


if __name__ == "__main__":
    main()
