"""Continuations on small vocabularies: where a walk ends, the index, saving, hostile tokens."""

from __future__ import annotations

import pickle
import resource
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from simct_align import Aligner, Vocabulary, _native
from simct_align.demo import demo_tokenizers

if TYPE_CHECKING:
    from pathlib import Path

TEACHER = [b"12", b"13", b"123", b"+", b"1", b"", b"z", b"3+", b" 1", b"\xff\xfe", b"2"]
STUDENT = [b"1", b"2", b"3", b"+", b"", b"", b"q", b"q+", b" "]


def aligner(*, dummy: bool = False) -> Aligner:
    """Teacher: 5 is EOS, 12 is written `1`,`2`. Student: 4 is EOS, 5 adds no bytes."""
    return Aligner(
        Vocabulary.from_token_bytes(TEACHER, special={5: "<eos>"}, stop_ids=[5]),
        Vocabulary.from_token_bytes(STUDENT, special={4: "</s>"}, stop_ids=[4], dummy_prefix=dummy),
    )


def texts(pair: Aligner, teacher: Any, student: Any, unit: int, **options: Any) -> list[str]:
    batch = pair.align_batch(teacher, student, **options)
    return [found.text for found in pair.continuations(batch).of_unit(unit)]


def test_the_walk_goes_on_across_units() -> None:
    pair = aligner()
    # Units: + | 1 | 2 | 3+ ... the teacher has no 2, so it writes 12.
    assert texts(pair, [[3, 0, 3]], [[3, 0, 1, 3]], 1) == ["12", "13", "123"]
    assert texts(pair, [[3, 4, 3]], [[3, 0, 3]], 1) == ["12", "13"]
    # From the second unit on: `3` `+` is a leaf of the node `3`.
    assert texts(pair, [[3, 2, 3]], [[3, 0, 1, 2, 3]], 1) == ["12", "13", "123"]


def test_max_path_is_the_number_of_realized_tokens() -> None:
    pair = aligner()
    batch = pair.align_batch([[3, 0, 3]], [[3, 0, 1, 3]])
    found = pair.continuations(batch, max_path=1)
    assert [f.text for f in found.of_unit(1)] == ["12", "13"]
    assert found.cut_off == (1, 0)
    assert pair.continuations(batch).cut_off == (0, 0)
    assert batch.index(max_path=1).teacher_cut_off == 1


@pytest.mark.parametrize(
    ("teacher", "student", "mask"),
    [
        ([3, 4, 5, 10], [3, 0, 4, 1], None),  # a pair of control tokens
        ([3, 4, 10], [3, 0, 5, 1], None),  # a token of no bytes on the student's side
        ([3, 4, 5, 10], [3, 0, 1], None),  # a control token on the teacher's
        ([3, 4, 6, 10], [3, 0, 6, 1], None),  # texts that differ
        ([3, 4, 3, 10], [3, 0, 3, 1], [1, 1, 0, 1]),  # two regions
    ],
)
def test_the_walk_ends_with_the_stretch(teacher: Any, student: Any, mask: Any) -> None:
    pair = aligner()
    masks = {} if mask is None else {"teacher_mask": [mask], "student_mask": [mask]}
    # `12` and `13` need the `1` alone; `123` the `2` as well, which follows without the break.
    assert texts(pair, [[3, 4, 10]], [[3, 0, 1]], 1) == ["12", "13", "123"]
    assert texts(pair, [teacher], [student], 1, **masks) == ["12", "13"]


def test_units_left_out_of_a_batch_end_the_walk() -> None:
    pair = aligner()
    batch = pair.align_batch([[3, 4, 0, 3]], [[3, 0, 0, 1, 3]])
    assert len(pair.continuations(batch.without("multi")).teacher) == 1
    assert len(pair.continuations(batch).teacher) == 3


def test_a_walk_stops_inside_what_a_longer_region_would_allow() -> None:
    pair = aligner()
    ids: tuple[Any, Any] = ([[3, 0, 3]], [[3, 0, 1, 3]])
    assert "123" in texts(pair, *ids, 1)
    masks = {"teacher_mask": [[1, 1, 0]], "student_mask": [[1, 1, 1, 0]]}
    assert "123" in texts(pair, *ids, 1, **masks)
    assert texts(pair, [[3, 4, 3]], [[3, 0, 3]], 2) == []


def test_units_without_prefix_and_trimmed_units_have_none() -> None:
    pair = aligner()
    assert texts(pair, [[0, 3]], [[0, 1, 3]], 0) == []
    trimming = aligner(dummy=True)
    batch = trimming.align_batch(
        [[3, 0, 3]], [[3, 8, 0, 1, 3]], teacher_mask=[[0, 1, 1]], student_mask=[[0, 1, 1, 1, 1]]
    )
    # The space of its own is dropped, and the units behind it are not trimmed.
    assert [unit.text for unit in batch.units(0)] == ["12", "+"]
    assert [f.text for f in trimming.continuations(batch).of_unit(0)] == ["12", "13", "123"]
    glued = Aligner(
        Vocabulary.from_token_bytes([b"12", b"13", b"+"]),
        Vocabulary.from_token_bytes([b" 1", b"1", b"2", b"3", b"+"], dummy_prefix=True),
    )
    batch = glued.align_batch(
        [[2, 0, 0]], [[4, 0, 2, 1, 2]], teacher_mask=[[0, 1, 1]], student_mask=[[0, 1, 1, 1, 1]]
    )
    found = glued.continuations(batch)
    assert [[f.text for f in found.of_unit(unit)] for unit in (0, 1)] == [[], ["12", "13"]]


def test_both_directions_and_their_paths() -> None:
    teacher = Vocabulary.from_token_bytes([b"ab", b"a", b"b", b"c"])
    student = Vocabulary.from_token_bytes([b"a", b"b", b"c", b"bc"])
    pair = Aligner(teacher, student)
    batch = pair.align_batch([[3, 1, 2, 3]], [[2, 0, 3]])
    found = pair.continuations(batch)
    assert [tuple(f) for f in found.of_unit(1)] == [("ab", (0,), (0, 1))]
    assert [tuple(f) for f in found.of_unit(2)] == [("bc", (2, 3), (3,))]
    assert pair.continuations_after([0]) == [("ab", (0, 1), 0)]
    assert pair.continuations_after([2], side="teacher") == [("bc", (2, 3), 3)]
    assert pair.continuations_after([]) == pair.continuations_after([-1, 0]) == []
    assert (pair.spelling(0), pair.spelling(1), pair.spelling(3, side="student")) == (
        (0, 1),
        (0,),
        (2, 3),
    )
    with pytest.raises(IndexError):
        pair.spelling(4)
    with pytest.raises(ValueError, match="side: expected 'teacher' or 'student'"):
        pair.spelling(0, side="both")  # type: ignore[arg-type]
    assert [unit.continuations for unit in batch.units(0, max_path=2)] == [(), ("ab",), ("bc",)]
    assert [unit.continuations for unit in batch.units(0)] == [()] * 3


def test_tokens_without_a_spelling_are_told() -> None:
    pair = aligner()
    assert pair.spellings.teacher.unspelled.tolist() == [6, 9]
    assert pair.spellings.student.unspelled.tolist() == [2, 6, 7, 8]
    assert pair.spelling(6) is None
    assert pair.spelling(5) is None
    assert pair.spellings.teacher.by_length == {2: 4, 3: 1}
    assert repr(pair.spellings.teacher) == "<Spellings of 5 tokens, 2 without one>"


def test_the_index_holds_the_entries_in_its_own_order() -> None:
    pair = Aligner(*demo_tokenizers())
    batch = pair.align_texts(["12345 is naïve, isn't it?\n  10 + 2", "The answer is 7.", ""] * 5)
    plain, index = batch.index(), batch.index(max_path=8)
    sizes = plain.sizes()
    assert all(np.array_equal(getattr(plain, name), getattr(index, name)) for name in sizes)
    assert not hasattr(plain, "teacher_entry_unit")
    assert sum(index.sizes().values()) == len(index.packed)
    found = pair.continuations(batch)
    for side in ("teacher", "student"):
        entries = getattr(found, side)
        units = index.unit[getattr(index, f"{side}_entry_unit")]
        order = np.argsort(units, kind="stable")
        assert np.array_equal(units[order], entries.unit)
        assert np.array_equal(getattr(index, f"{side}_entry_node")[order], entries.node)
        assert np.array_equal(getattr(index, f"{side}_entry_depth")[order], entries.depth)
        assert (np.diff(getattr(index, f"{side}_entry_unit")) >= 0).all()
        per_entry = np.diff(entries.leaves.node_offsets)[getattr(index, f"{side}_entry_node")]
        assert getattr(index, f"n_{side}_leaves") == per_entry.sum() > 0
        assert getattr(index, f"n_{side}_entries") == len(entries)


def test_the_index_keeps_its_numbers_on_the_host() -> None:
    torch = pytest.importorskip("torch")
    pair = Aligner(*demo_tokenizers())
    index = pair.align_texts(["one two three"]).index(max_path=4)
    moved = index.to("cpu")
    assert torch.is_tensor(moved.teacher_entry_node)
    for held in (index, moved, pickle.loads(pickle.dumps(moved))):
        nodes = held.on_host("teacher_entry_node")
        assert isinstance(nodes, np.ndarray)
        leaves = np.diff(pair.spellings.teacher.leaves.node_offsets)[nodes]
        assert leaves.sum() == index.n_teacher_leaves


def test_realized_leaf_is_found_by_text() -> None:
    # `ab` is the teacher's alone, and the student writes it `a`,`b`.
    teacher = Vocabulary.from_token_bytes([b"ab", b"a", b"b", b"+"])
    student = Vocabulary.from_token_bytes([b"a", b"b", b"+", b"a", b"b"])
    pair = Aligner(teacher, student)
    cases = [
        ([3, 0], [2, 0, 1], 0),  # as spelled
        ([3, 0], [2, 0, 4], 0),  # another last token: the prefix is on the path all the same
        ([3, 0], [2, 3, 1], -1),  # another first token: not on the path
    ]
    for teacher_ids, student_ids, leaf in cases:
        index = pair.align_batch([teacher_ids], [student_ids]).index(max_path=8)
        assert index.realized_teacher_leaf.tolist() == [leaf]
        assert index.realized_student_leaf.tolist() == [-1]
    # Realized by neither side's single token: `a`,`b` joined, as a coarser segmentation has it.
    index = pair.align_batch([[3, 1, 2]], [[2, 0, 1]]).coarsen(3).index(max_path=8)
    assert index.dropped_no_prefix == 1
    batch = pair.align_batch(
        [[3, 1, 2]], [[2, 0, 1]], teacher_mask=[[0, 1, 1]], student_mask=[[0, 1, 1]]
    )
    index = batch.coarsen(2).index(max_path=8)
    assert (index.n_multi, index.realized_teacher_leaf.tolist()) == (1, [0])


def test_threads_and_dtypes_change_nothing() -> None:
    pair = Aligner(*demo_tokenizers())
    texts = [f"{number} apples, {number * 7919} pears and 3 plums\n" * 40 for number in range(300)]
    batch = pair.align_texts(texts)
    assert batch.n_units > 4 * 16 * 1024
    whole = batch.index(max_path=8, threads=1).packed
    for threads in (2, 3, None):
        assert np.array_equal(batch.index(max_path=8, threads=threads).packed, whole)
    for dtype in (np.int32, np.uint32):
        sides = [
            (side.values.astype(dtype), side.offsets) for side in (batch.teacher, batch.student)
        ]
        again = pair.align_batch(*sides).index(max_path=8)
        assert np.array_equal(again.packed, whole)


def test_saved_spellings_are_loaded(tmp_path: Path) -> None:
    pair = Aligner(*demo_tokenizers())
    path = tmp_path / "pair"
    pair.save(path)
    assert not Aligner.load(path)._pair.has_spellings
    table = pair.spellings.teacher
    pair.save(path)
    for again in (Aligner.load(path), pickle.loads(pickle.dumps(pair))):
        assert again._pair.has_spellings
        loaded = again.spellings.teacher
        assert loaded.by_length == table.by_length
        assert np.array_equal(loaded.leaves.last_token, table.leaves.last_token)
        assert np.array_equal(loaded.leaves.one_sided_token, table.leaves.one_sided_token)
        assert np.array_equal(loaded.leaves.node_offsets, table.leaves.node_offsets)


def test_without_tokenizers_the_shortest_paths_spell() -> None:
    with_tokenizers = Aligner(*demo_tokenizers())
    alone = Aligner(
        Vocabulary(with_tokenizers.teacher._native), Vocabulary(with_tokenizers.student._native)
    )
    trie = _native.ByteTrie(alone.student._native)
    for token in alone.spellings.teacher.leaves.one_sided_token.tolist():
        path = alone.spelling(token)
        assert list(path or ()) == trie.shortest_path(alone.teacher.token_bytes(token))
        assert len(path or ()) <= len(with_tokenizers.spelling(token) or ())


def test_a_text_that_the_tokenizer_refuses_has_the_shortest_path() -> None:
    class Refusing(Vocabulary):
        tokenizer = property(lambda self: self)  # type: ignore[assignment]

        def encode_batch(self, texts: Any) -> list[list[int]]:
            if "ab" in texts:
                raise ValueError("ab would become a control token")
            return [[2, 1] if text == "bab" else [0] * len(text) for text in texts]

    student = Vocabulary.from_token_bytes([b"a", b"b", b"ba"])
    pair = Aligner(
        Vocabulary.from_token_bytes([b"aa", b"ab", b"aaa", b"bab", b"bb"]),
        Refusing(student._native),
    )
    assert [pair.spelling(token) for token in range(5)] == [
        (0, 0), (0, 1), (0, 0, 0), (2, 1), (1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize("max_path", [-1, 65, 1 << 70])
def test_max_path_out_of_range(max_path: int) -> None:
    pair = aligner()
    batch = pair.align_batch([[3, 4]], [[3, 0]])
    for call in (batch.index, pair.continuations, lambda **o: batch.units(0, **o)):
        arguments = (batch,) if call == pair.continuations else ()
        with pytest.raises(ValueError, match=r"max_path is -?\d+, expected [01] to 64"):
            call(*arguments, max_path=max_path)
        with pytest.raises(TypeError, match="max_path: expected an integer, got float"):
            call(*arguments, max_path=1.0)


def test_one_vocabulary_with_itself_has_nothing_one_sided() -> None:
    one = Vocabulary.from_token_bytes([b"a", b"ab", b"ab", b""])
    pair = Aligner(one, one)
    assert pair.spellings.teacher.by_length == pair.spellings.student.by_length == {}
    assert pair.align_batch([[0, 1, 2]], [[0, 1, 2]]).index(max_path=8).n_teacher_entries == 0


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ([bytes([b]) for b in range(256)], [bytes([b]) for b in range(256)]),
        ([b"a"], [b"b"]),
        ([b""], [b""]),
        ([], []),
        ([b"aa"], [b"a"]),
        ([b"a" * 65536, b"a" * 65535], [b"a", b"aa"]),
    ],
)
def test_odd_vocabularies(teacher: list[bytes], student: list[bytes]) -> None:
    pair = Aligner(Vocabulary.from_token_bytes(teacher), Vocabulary.from_token_bytes(student))
    for table, own in ((pair.spellings.teacher, teacher), (pair.spellings.student, student)):
        other = student if own is teacher else teacher
        both = set(own) & set(other)
        spelled = sum(table.by_length.values()) + len(table.unspelled)
        assert spelled == len(set(own) - both - {b""})
    rows = [[0, 0]] if teacher and student else [[]]
    batch = pair.align_batch(rows, rows)
    assert batch.index(max_path=64).max_path == 64


def test_a_million_tokens_with_one_prefix() -> None:
    """In a process of its own, so that its peak memory is its own."""
    code = """
import resource, time
from simct_align import Aligner, Vocabulary, _native
prefix = b"p" * 40
tokens = [prefix + n.to_bytes(3, "big") for n in range(1_000_000)]
teacher = Vocabulary.from_token_bytes(tokens)
student = Vocabulary.from_token_bytes([bytes([b]) for b in range(256)] + [prefix])
aligner = Aligner(teacher, student)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
table = aligner.spellings.teacher
assert table.by_length == {4: 1_000_000}, table.by_length
assert aligner.spelling(77_777) == (256, 1, 47, 209)
trie = _native.ByteTrie(teacher._native)
assert trie.prefixes(tokens[5] + b"tail") == [(43, 5)]
assert len(trie.with_prefix(prefix)) == 1_000_000
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Paths, offsets, tokens, sort keys and nodes: less than 150 bytes per token.
    assert int(done.stdout) * 1024 < 150 * 1_000_000 + (64 << 20)


def test_64_kib_tokens_take_memory_by_their_bytes() -> None:
    tokens = [b"a" * 65536 + bytes([n]) for n in range(64)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pair = Aligner(
        Vocabulary.from_token_bytes(tokens),
        Vocabulary.from_token_bytes([bytes([b]) for b in range(256)]),
    )
    assert pair.spellings.teacher.by_length == {65537: 64}
    assert len(pair.spellings.teacher.leaves) == 0
    assert pair.spellings.teacher.cut_off(64) == 64
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 64 << 20
