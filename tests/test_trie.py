"""The byte trie on real vocabularies, against scans of all tokens."""

from __future__ import annotations

import random
import time

import pytest

from simct_align import _native
from support.slow_continuations import beginning_with, ids_by_bytes
from support.spelling import fewest_tokens
from support.texts import hard_texts
from support.vocabularies import ALL_NAMES, FROM_PYPI, vocabulary


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
    for text in hard_texts():
        data = text.encode()
        start = rng.randrange(len(data) + 1)
        rest = data[start:]
        prefixes = [(n, ids[rest[:n]]) for n in range(1, len(rest) + 1) if rest[:n] in ids]
        assert trie.prefixes(rest) == prefixes
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
