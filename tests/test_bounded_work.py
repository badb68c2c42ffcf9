"""Work that ends: it can be interrupted, shared by threads, forked away, and is linear."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from _align_hostile import hostile_inputs, one_row
from simct_align import Aligner, AlignmentError
from simct_align.demo import demo_tokenizers
from support.slow_alignment import assert_every_token_once
from support.texts import answers, hard_texts

#: Makes works of about a second, of which `sys.argv[1]` names one.
WORKS = """
import os, signal, sys, threading, time
import numpy as np
from simct_align import Aligner
from simct_align.demo import demo_tokenizers

class Stopped(Exception):
    pass

def stop(*_):
    raise Stopped

aligner = Aligner(*demo_tokenizers())
text = "The answer is 12345, isn't it? na\\u00efve"
sides = []
for side in (aligner.teacher, aligner.student):
    (row,) = side.encode_batch([text])
    rows = int(sys.argv[2])
    sides.append((np.tile(np.int32(row), rows), np.arange(rows + 1, dtype=np.int64) * len(row)))
batch = aligner.align_batch(*sides) if sys.argv[1] in ("index", "text") else None
_ = aligner.text_tree, aligner.spellings
works = {
    "align": lambda: aligner.align_batch(*sides, threads=int(sys.argv[3])),
    "index": lambda: batch.index(max_path=8, threads=int(sys.argv[3])),
    "retokenize": lambda: aligner.retokenize(sides[1], threads=int(sys.argv[3])),
    "align_texts": lambda: aligner.align_texts([text] * rows, threads=int(sys.argv[3])),
    "text": lambda: batch.index(text_events=True, threads=int(sys.argv[3])),
}
work = works[sys.argv[1]]
"""

#: Raises a signal 0.1 s after the work began, and prints how long the work went on.
INTERRUPTED = (
    WORKS
    + """
before = set(threading.enumerate())
for handler, expected in ((signal.default_int_handler, KeyboardInterrupt), (stop, Stopped)):
    signal.signal(signal.SIGINT, handler)
    sent = []
    def send():
        time.sleep(0.1)
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        while True:
            work()
    except expected:
        print(time.perf_counter() - sent[0])
    sender.join()
assert set(threading.enumerate()) == before
aligner.align_batch(*((values[: offsets[9]], offsets[:10]) for values, offsets in sides))
"""
)

#: Raises signals at moments that are spread over the work, in time of the processor.
AT_MOMENTS = (
    WORKS
    + """
signal.signal(signal.SIGPROF, stop)
work()
begun = time.process_time()
work()
length = time.process_time() - begun
for moment in range(12):
    delay = (moment + 0.5) / 12 * length
    due = time.process_time() + delay
    signal.setitimer(signal.ITIMER_PROF, delay)
    try:
        while True:
            work()
    except Stopped:
        print(time.process_time() - due)
"""
)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    ("work", "rows"), [("align", 10**6), ("index", 700_000), ("text", 250_000)]
)
def test_signals_stop_work_at_every_moment(work: str, rows: int) -> None:
    """The time of the processor is the same where others have it too."""
    found = subprocess.run(
        [sys.executable, "-c", AT_MOMENTS, work, str(rows), "1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds = [float(line) for line in found.stdout.split()]
    assert len(seconds) == 12
    assert max(seconds) < 0.12, seconds


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("work", ["align", "index", "text", "retokenize", "align_texts"])
def test_signals_stop_long_work(work: str, threads: int) -> None:
    """0.2 s on an idle machine; here others may have the cores."""
    rows = {"align": 1_000_000, "index": 300_000, "text": 100_000}.get(work, 50_000)
    found = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, work, str(rows), str(threads)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    seconds = [float(line) for line in found.stdout.split()]
    assert len(seconds) == 2
    assert max(seconds) < 2, seconds


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    return Aligner(*demo_tokenizers())


def encoded(aligner: Aligner, texts: list[str]) -> list[list[list[int]]]:
    return [side.encode_batch(texts) for side in (aligner.teacher, aligner.student)]


def test_64_threads_share_an_aligner() -> None:
    """All tables are made on first use: the threads race for them."""
    texts = [*answers(30), *hard_texts()]
    fresh = Aligner(*demo_tokenizers())
    sides = encoded(fresh, texts)
    known = Aligner(*demo_tokenizers())
    expected = known.align_batch(*sides).index(max_path=8, text_events=True, first_ids=True).packed
    retokenized = known.retokenize(sides[1]).tolist()
    barrier = threading.Barrier(64)

    def work(number: int) -> bool:
        barrier.wait()
        batch = fresh.align_batch(*sides, threads=1 + number % 3)
        index = batch.index(max_path=8, text_events=True, first_ids=True, threads=1 + number % 2)
        again = fresh.retokenize(sides[1], threads=1 + number % 2)
        same_ids = again.tolist() == retokenized
        return same_ids and np.array_equal(index.packed, expected)

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(work, range(64)))


def _align_in_child(pipe: Any, path: str, sides: list[list[list[int]]]) -> None:
    units = Aligner.load(path).align_batch(*sides, threads=2).n_units
    pipe.send(units)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork of POSIX")
def test_a_fork_after_use_and_a_killed_child(aligner: Aligner, tmp_path: object) -> None:
    """The child has the pools of the parent, but none of their threads."""
    sides = encoded(aligner, answers(200))
    expected = aligner.align_batch(*sides, threads=2).n_units
    context = multiprocessing.get_context("fork")
    path = f"{tmp_path}/pair"
    aligner.save(path)
    here, there = context.Pipe()
    child = context.Process(target=_align_in_child, args=(there, path, sides))
    child.start()
    assert here.poll(60), "the child waits for threads that it does not have"
    assert here.recv() == expected
    child.join()
    endless = context.Process(target=time.sleep, args=(1000,))
    endless.start()
    assert endless.pid is not None
    os.kill(endless.pid, signal.SIGKILL)
    endless.join()
    assert aligner.align_batch(*sides, threads=2).n_units == expected


def test_an_error_in_one_row_leaves_the_aligner_usable(aligner: Aligner) -> None:
    sides = encoded(aligner, answers(50))
    expected = aligner.align_batch(*sides).n_units
    wrong = [[10**9], *sides[0][1:]]
    for _ in range(20):
        with pytest.raises(ValueError, match="row 0, position 0"):
            aligner.align_batch(wrong, sides[1], threads=2)
        with pytest.raises(AlignmentError):
            aligner.align_batch(sides[0][::-1], sides[1], on_mismatch="error", threads=2)
    assert aligner.align_batch(*sides, threads=2).n_units == expected


@pytest.mark.filterwarnings("ignore:.*are these the ids")
def test_hostile_texts_take_linear_time(aligner: Aligner) -> None:
    """`benches/align.py --hostile` has the costs; here four times the tokens take no 16 times."""
    (row,) = encoded(aligner, [" ".join(answers(100))])[0]
    (student_row,) = encoded(aligner, [" ".join(answers(100))])[1]
    inputs = [
        hostile_inputs(aligner, (one_row(row * times), one_row(student_row * times)))
        for times in (1, 4)
    ]

    def seconds(rows: tuple[Any, Any]) -> float:
        times = []
        for _ in range(5):
            begun = time.perf_counter()
            batch = aligner.align_batch(*rows, threads=1)
            times.append(time.perf_counter() - begun)
        assert_every_token_once(batch, sides=[np.ones(len(side[0])) for side in rows])
        return min(times)

    for name, rows in inputs[0].items():
        assert seconds(inputs[1][name]) < 10 * max(seconds(rows), 1e-3), name


#: Takes all but some of the address space away, and aligns a batch that needs more.
LITTLE_MEMORY = """
import resource
import numpy as np
from simct_align import Aligner
from simct_align.demo import demo_tokenizers

aligner = Aligner(*demo_tokenizers())
sides = []
for side in (aligner.teacher, aligner.student):
    (row,) = side.encode_batch(["The answer is 12345. " * 50])
    rows = 100_000
    sides.append((np.tile(np.int32(row), rows), np.arange(rows + 1, dtype=np.int64) * len(row)))
small = [(values[: offsets[9]], offsets[:10]) for values, offsets in sides]
aligner.align_batch(*small, threads=1)
pages = int(open("/proc/self/statm").read().split()[0])
room = pages * resource.getpagesize() + (40 << 20)
resource.setrlimit(resource.RLIMIT_AS, (room, room))
try:
    aligner.align_batch(*sides, threads=1)
except MemoryError as error:
    print(error)
print(aligner.align_batch(*small, threads=1).n_units > 0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_memory_that_is_not_there_is_an_error() -> None:
    found = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY],
        # Otherwise the allocator of the extension holds a gigabyte of addresses from the start.
        env=os.environ | {"MIMALLOC_ARENA_RESERVE": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    message, usable = found.stdout.splitlines()
    assert re.fullmatch(r"units: the system does not give \d+ bytes of memory; .*", message)
    assert usable == "True"
