"""The byte trie on real vocabularies, against scans of all tokens."""

from __future__ import annotations

import bisect
import random
import time
from typing import TYPE_CHECKING

import numpy as np
import pytest

from simct_align import _native
from support.slow_continuations import beginning_with, ids_by_bytes
from support.spelling import fewest_tokens
from support.texts import hard_texts
from support.vocabularies import ALL_NAMES, FROM_PYPI, vocabulary

if TYPE_CHECKING:
    from numpy.typing import NDArray


def places(starts: list[int], ends: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.array(starts, np.int64), np.array(ends, np.int64)


@pytest.mark.parametrize("name", ALL_NAMES)
def test_real_vocabularies(name: str) -> None:
    trie = _native.ByteTrie(vocabulary(name)._native)
    ids = ids_by_bytes(name)
    tokens = sorted(ids)
    rng = random.Random(name)
    assert trie.with_prefix(b"").tolist() == [ids[token] for token in tokens]
    for _ in range(200):
        token = rng.choice(tokens)
        prefix = token[: rng.randint(1, len(token))]
        below = [ids[text] for text in beginning_with(tokens, prefix)]
        assert trie.with_prefix(prefix).tolist() == below
        first, stop = trie.ranges(b"\xff" + prefix, *places([1], [len(prefix) + 1]))
        assert first.tolist() == [bisect.bisect_left(tokens, prefix)]
        assert (stop - first).tolist() == [len(below)]
    for text in hard_texts():
        data = text.encode()
        start = rng.randrange(len(data) + 1)
        rest = data[start:]
        prefixes = [(n, ids[rest[:n]]) for n in range(1, len(rest) + 1) if rest[:n] in ids]
        assert trie.prefixes(rest) == prefixes
        longest = trie.longest_prefixes(data, *places([start], [len(data)]))
        assert longest.tolist() == [prefixes[-1][1] if prefixes else -1]
        piece = rest[: rng.randint(0, 24)]
        path = fewest_tokens(piece, ids)
        assert trie.shortest_path(piece) == (None if path is None else list(path))


def test_the_largest_vocabulary_is_sorted_in_no_time() -> None:
    native = max(map(vocabulary, FROM_PYPI), key=len)._native
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        _native.ByteTrie(native)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.15


def test_parts_outside_of_the_text_are_refused() -> None:
    trie = _native.ByteTrie(vocabulary(FROM_PYPI[0])._native)
    for find in (trie.longest_prefixes, trie.ranges):
        with pytest.raises(ValueError, match="part 1: bytes 2 to 4 are not in a text of 3 bytes"):
            find(b"abc", *places([0, 2], [3, 4]))
        with pytest.raises(ValueError, match="ends has 1 entries, expected 2"):
            find(b"abc", *places([0, 1], [2]))
