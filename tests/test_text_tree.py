"""The joint tree of real tokenizers against all beginnings of all their tokens."""

from __future__ import annotations

import pickle
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from simct_align import Aligner, Vocabulary
from simct_align.text_tree import MAX_REACH
from support.slow_text_events import BOTH, beginning_with, same, text_tokens
from support.vocabularies import ALL_NAMES, aligner_of, token_bytes, vocabulary

#: All nodes are looked at here; elsewhere a sample.
EXHAUSTIVE = (
    ("demo_byte_level", "demo_byte_fallback"),
    ("mistral_v3", "deepseek"),
    ("gemma2", "qwen2_5"),
)
PAIRS = [(name, ALL_NAMES[(place + 1) % len(ALL_NAMES)]) for place, name in enumerate(ALL_NAMES)]
ARRAYS = ("token_ids", "node_tokens", "node_exact", "suffixes", "suffix_offsets")


def tree_of(teacher: str, student: str) -> Any:
    return aligner_of(teacher, student).text_tree


def strings(tree: Any, name: str) -> list[bytes]:
    """The strings of all nodes, from the teacher's tokens, which some of begin with each."""
    first = np.minimum(tree.teacher.node_tokens[:-1], len(tree.teacher) - 1)
    ids = tree.teacher.token_ids[first].tolist()
    return [token_bytes(name)[i][:n] for i, n in zip(ids, tree.depth.tolist(), strict=True)]


def expected_nodes(names: tuple[str, str]) -> list[bytes]:
    """Every beginning of every token, and what it goes on with."""
    teacher, student = (
        {text[:end] for text, _ in text_tokens(name) for end in range(len(text) + 1)}
        for name in names
    )
    both = teacher & student
    branches = Counter(text[:-1] for text in both if text)
    nodes = {text for text, count in branches.items() if count > 1}
    nodes |= {text[:-1] for text in teacher ^ student if text[:-1] in both}
    nodes |= {text for name in names for text, _ in text_tokens(name) if text in both}
    return sorted(nodes | {b""})


def equal(left: Any, right: Any) -> bool:
    nodes = ("parent", "depth", "subtree_end", "same")
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in nodes) and all(
        np.array_equal(getattr(getattr(left, side), name), getattr(getattr(right, side), name))
        for side in BOTH
        for name in ARRAYS
    )


@pytest.mark.parametrize("names", EXHAUSTIVE, ids="-".join)
def test_nodes_are_the_strings_at_which_something_changes(names):
    tree = tree_of(*names)
    nodes = strings(tree, names[0])
    assert nodes == expected_nodes(names)
    numbers = {text: number for number, text in enumerate(nodes)}

    def attach(text: bytes) -> int:
        return next(
            numbers[text[:end]] for end in range(len(text), -1, -1) if text[:end] in numbers
        )

    for side, name in zip(BOTH, names, strict=True):
        expected = sorted((attach(text), text, token) for text, token in text_tokens(name))
        found = getattr(tree, side)
        assert found.token_ids.tolist() == [token for *_, token in expected]
        counts = np.bincount([node for node, *_ in expected], minlength=len(nodes))
        assert np.array_equal(np.diff(found.node_tokens), counts)
        exact = [node for node, text, _ in expected if nodes[node] == text]
        assert np.array_equal(found.node_exact, np.bincount(exact, minlength=len(nodes)))


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_a_sample_of_nodes_and_suffixes_is_what_all_tokens_say(names):
    tree = tree_of(*names)
    nodes = strings(tree, names[0])
    numbers = {text: number for number, text in enumerate(nodes)}
    assert nodes == sorted(numbers)
    rng = random.Random(0)
    for node in [0, *rng.sample(range(1, len(nodes)), min(300, len(nodes) - 1))]:
        text, end = nodes[node], int(tree.subtree_end[node])
        below = range(node, end)
        assert all(nodes[other].startswith(text) for other in below)
        assert end == len(nodes) or not nodes[end].startswith(text)
        assert bool(tree.same[node]) == same(names, text)
        above = [other for other in range(len(text)) if text[:other] in numbers]
        assert tree.parent[node] == (numbers[text[: above[-1]]] if above else -1)
        for side, name in zip(BOTH, names, strict=True):
            found = getattr(tree, side)
            run = found.token_ids[found.node_tokens[node] : found.node_tokens[end]].tolist()
            assert set(run) == beginning_with(name, text)
            exact = run[: found.node_exact[node]]
            assert [token_bytes(name)[token] for token in exact] == [text] * len(exact)
    for side, name in zip(BOTH, names, strict=True):
        found = getattr(tree, side)
        for position in rng.sample(range(len(found)), min(2000, len(found))):
            text = token_bytes(name)[int(found.token_ids[position])]
            for length in range(1, min(len(text), MAX_REACH + 1)):
                rest = text[length:]
                nearest = next(
                    rest[:end] for end in range(len(rest), -1, -1) if rest[:end] in numbers
                )
                [node], [exact] = found.rests(position, position + 1, length)
                assert (node, exact) == (numbers[nearest], nearest == rest)


def test_rests_of_a_run_are_a_slice():
    names = EXHAUSTIVE[0]
    found = tree_of(*names).teacher
    lengths = np.array([len(token_bytes(names[0])[i]) for i in found.token_ids.tolist()])
    for length in range(1, 8):
        long = np.flatnonzero(lengths > length)
        whole = found.suffixes[slice(*found.suffix_offsets[length : length + 2])]
        assert len(whole) == len(long)
        for first, last in zip(long[::7].tolist(), long[5::7].tolist(), strict=False):
            if last - first == 5 and (lengths[first:last] > length).all():
                nodes, exact = found.rests(first, last, length)
                place = int(np.searchsorted(long, first))
                assert np.array_equal(nodes, whole[place : place + 5] & 0x7FFFFFFF)
                assert np.array_equal(exact, whole[place : place + 5] < 0)
    with pytest.raises(IndexError, match=r"a length of 1 to 64, got 0 and 65"):
        found.suffix_start(0, MAX_REACH + 1)


def test_a_tree_is_made_on_first_use_saved_and_pickled(tmp_path):
    aligner = Aligner(*map(vocabulary, EXHAUSTIVE[0]))
    aligner.save(tmp_path / "without")
    assert not aligner._pair.has_text_tree
    without = Aligner.load(tmp_path / "without")
    tree = aligner.text_tree
    assert tree is aligner.text_tree
    assert aligner._pair.has_text_tree
    aligner.save(tmp_path / "with")
    loaded = Aligner.load(tmp_path / "with")
    again = pickle.loads(pickle.dumps(aligner))
    assert loaded._pair.has_text_tree
    assert again._pair.has_text_tree
    assert not without._pair.has_text_tree
    loaded.save(tmp_path / "again")  # before its first use
    assert (tmp_path / "again").read_bytes() == (tmp_path / "with").read_bytes()
    for other in (loaded, again, without):
        assert equal(other.text_tree, tree)
        assert other.digest == aligner.digest
    without.save(tmp_path / "later")
    assert (tmp_path / "later").read_bytes() == (tmp_path / "with").read_bytes()


def test_swapping_the_sides_mirrors_the_tree():
    teacher, student = map(vocabulary, EXHAUSTIVE[0])
    tree, mirrored = Aligner(teacher, student).text_tree, Aligner(student, teacher).text_tree
    for name in ("parent", "depth", "subtree_end", "same"):
        assert np.array_equal(getattr(tree, name), getattr(mirrored, name))
    for name in ARRAYS:
        assert np.array_equal(getattr(tree.teacher, name), getattr(mirrored.student, name))
        assert np.array_equal(getattr(tree.student, name), getattr(mirrored.teacher, name))


def test_with_one_vocabulary_every_node_is_the_same():
    own = vocabulary(EXHAUSTIVE[0][0])
    tree = Aligner(own, own).text_tree
    assert tree.same.all()
    assert len(tree) >= len({text for text, _ in text_tokens(EXHAUSTIVE[0][0])})


def test_duplicates_and_what_is_no_text():
    teacher = Vocabulary.from_token_bytes([b"a", b"a", b"", b"ab", b"abc"])
    student = Vocabulary.from_token_bytes([b"ax", b"a"])
    tree = Aligner(teacher, student).text_tree
    assert repr(tree) == "<TextTree of 2 nodes, 4 teacher and 2 student tokens>"
    assert tree.teacher.token_ids.tolist() == [0, 1, 3, 4]
    assert tree.teacher.node_exact.tolist() == [0, 2]
    assert tree.student.token_ids.tolist() == [1, 0]
    assert tree.same.tolist() == [0, 0]
