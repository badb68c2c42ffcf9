"""The layout of an index: its sections are found by name, wherever they lie."""

import numpy as np
import pytest

import simct_align.index
from simct_align import AlignedIndex, Aligner
from simct_align.demo import demo_tokenizers
from simct_align.index import SECTIONS, section_slices

GROUPS = {"units", "first_ids", "continuations", "text_events"}


@pytest.fixture(scope="module")
def batch():
    aligner = Aligner(*demo_tokenizers())
    return aligner.align_texts(["12345 is naïve, isn't it?\n  10 + 2", "The answer is 7.", ""] * 3)


def permuted(index, table):
    """The index with its sections in the order of another table."""
    slices = index.sections()
    names = [section.name for section in table if section.name in slices]
    return np.concatenate([index.packed[slices[name]] for name in names])


@pytest.mark.parametrize("seed", range(3))
def test_nothing_but_the_table_says_where_a_section_lies(batch, seed, monkeypatch):
    index = batch.index(max_path=8, first_ids=True, text_events=True)
    names = list(index.sections())
    expected = {name: getattr(index, name).copy() for name in names}
    read = {side: index.rows_read(side) for side in ("teacher", "student")}
    order = np.random.default_rng(seed).permutation(len(SECTIONS))
    table = tuple(SECTIONS[place] for place in order)
    packed = permuted(index, table)
    assert not np.array_equal(packed, index.packed)
    keep = {name: getattr(index, name) for name in index.__dataclass_fields__}
    moved = AlignedIndex(**(keep | {"packed": packed, "host": packed}))
    monkeypatch.setattr(simct_align.index, "SECTIONS", table)
    assert list(moved.sections()) == [section.name for section in table]
    for name in names:
        assert np.array_equal(getattr(moved, name), expected[name]), name
        assert np.array_equal(moved.on_host(name), expected[name]), name
    for side, pairs in read.items():
        for found, known in zip(moved.rows_read(side), pairs, strict=True):
            assert all(map(np.array_equal, found, known))


def test_every_section_is_a_property_and_fills_the_buffer(batch):
    index = batch.index(max_path=8, first_ids=True, text_events=True)
    assert {section.group for section in SECTIONS} == set(index.groups) == GROUPS
    assert sum(index.sizes().values()) == len(index.packed)
    for section in SECTIONS:
        assert isinstance(getattr(AlignedIndex, section.name), property)
        assert len(getattr(index, section.name)) == getattr(index, section.count) + section.extra


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"text_events": "no"}, TypeError, "text_events: expected True or False, got 'no'"),
        ({"first_ids": []}, TypeError, r"first_ids: expected True or False, got \[\]"),
        ({"teacher_stride": 2**64}, ValueError, "teacher_stride is 18446744073709551616, expect"),
        # Row starts that 64 bits would wrap.
        ({"student_stride": 2**61}, ValueError, "student_stride is .*, expected at most 102481911"),
    ],
)
def test_options_that_are_none(batch, options, error, message):
    with pytest.raises(error, match=message):
        batch.index(**options)


def test_sections_that_were_not_asked_for_say_how_to_have_them(batch):
    index = batch.index()
    assert index.groups == ("units",)
    with pytest.raises(AttributeError, match=r"'teacher_first_id'.*batch\.index\(first_ids=True\)"):
        _ = index.teacher_first_id
    with pytest.raises(AttributeError, match=r"'student_entry_node'.*batch\.index\(max_path=8\)"):
        index.on_host("student_entry_node")
    with pytest.raises(AttributeError, match="no section 'n_units'"):
        index.on_host("n_units")
    counts = {section.count: getattr(index, section.count) for section in SECTIONS}
    assert section_slices(counts, index.groups) == index.sections()


@pytest.mark.parametrize("max_path", [0, 8])
def test_first_ids_are_the_tokens_after_the_prefix(batch, max_path):
    plain, index = batch.index(max_path=max_path), batch.index(max_path=max_path, first_ids=True)
    for side in ("teacher", "student"):
        ids = getattr(batch, side)
        # Ragged ids have packed logits: the row after the prefix is the place of the token itself.
        first = ids.values[index.on_host(f"{side}_row") + 1]
        assert np.array_equal(index.on_host(f"{side}_first_id"), first)
        starts = getattr(batch, f"{side}_start")[index.unit]
        row = np.searchsorted(batch.row_offsets, index.unit, side="right") - 1
        assert np.array_equal(ids.values[ids.offsets[row] + starts], first)
    for name in plain.sections():
        assert np.array_equal(getattr(plain, name), getattr(index, name)), name
