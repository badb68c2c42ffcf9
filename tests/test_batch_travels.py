"""Batches pickle without their aligner, and find one of the same digest again."""

import copy
import gc
import hashlib
import json
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simct_align import Aligner, MissingAlignerError, UnitKind, Vocabulary
from simct_align.demo import demo_tokenizers

TEXTS = ["12345 is naïve, isn't it?\n  10 + 2", "The answer is 7."]

#: Unpickles a batch in a process without an aligner, then with one.
CONSUME = """
import json, pickle, sys
from simct_align import Aligner, MissingAlignerError, UnitKind
batch = pickle.loads(open(sys.argv[1], "rb").read())
without = [batch.coverage().as_dict(), batch.chunk_ids()[1].tolist(), batch.coarsen(2).n_units]
without += [batch.without(UnitKind.MULTI).n_units, batch.sample_units(0.5, seed=1).n_units]
refused = []
for method, arguments in (("units", [0]), ("index", []), ("coarsen", ["whitespace"])):
    try:
        getattr(batch, method)(*arguments)
    except MissingAlignerError as error:
        refused.append(str(error))
aligner = Aligner.load(sys.argv[2])
index = batch.index(max_path=8)
print(json.dumps([without, refused, index.packed.tolist(), [u.text for u in batch.units(0)]]))
"""


def make_batch(path: str):
    """In a process of its own."""
    return Aligner.load(path).align_batch([[0, 1]], [[0, 1, 2]])


def small() -> Aligner:
    teacher = Vocabulary.from_token_bytes([b"12", b"+"])
    return Aligner(teacher, Vocabulary.from_token_bytes([b"1", b"2", b"+"]))


def arrays_of(batch) -> int:
    sides = (batch.teacher, batch.student)
    parts = [*vars(batch).values(), *vars(batch.unmatched).values()]
    parts += [array for side in sides for array in vars(side).values()]
    return sum(part.nbytes for part in parts if isinstance(part, np.ndarray))


def test_a_pickled_batch_is_its_arrays():
    aligner = Aligner(*demo_tokenizers())
    batch = aligner.align_texts(TEXTS * 20)
    data = pickle.dumps(batch)
    assert len(data) < arrays_of(batch) + 2500
    assert len(pickle.dumps(aligner)) > 20_000
    again = pickle.loads(data)
    assert again.pair_digest == aligner.digest == batch.pair_digest
    assert again.units(1, max_path=8) == batch.units(1, max_path=8)
    assert np.array_equal(again.index(max_path=8).packed, batch.index(max_path=8).packed)
    assert aligner.continuations(again).of_unit(3) == aligner.continuations(batch).of_unit(3)


def test_an_index_pickles_with_one_buffer():
    batch = small().align_batch([[1, 0]], [[2, 0, 1]])
    index = pickle.loads(pickle.dumps(batch.index(max_path=8)))
    assert index.packed is index.host
    assert index.pair_digest == batch.pair_digest
    assert index.student_step_id.tolist() == [0, 1]


def test_a_process_without_the_aligner_says_what_it_needs(tmp_path: Path):
    aligner = Aligner(*demo_tokenizers())
    batch = aligner.align_texts(TEXTS)
    _ = aligner.spellings
    aligner.save(tmp_path / "pair")
    (tmp_path / "batch").write_bytes(pickle.dumps(batch))
    found = subprocess.run(
        [sys.executable, "-c", CONSUME, tmp_path / "batch", tmp_path / "pair"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    without, refused, packed, texts = json.loads(found.stdout)
    assert without == [
        batch.coverage().as_dict(),
        batch.chunk_ids()[1].tolist(),
        batch.coarsen(2).n_units,
        batch.without(UnitKind.MULTI).n_units,
        batch.sample_units(0.5, seed=1).n_units,
    ]
    assert len(refused) == 3
    for message in refused:
        assert f"this process has no aligner with digest {aligner.digest[:12]}" in message
        assert "batch.with_aligner(aligner)" in message
    assert packed == batch.index(max_path=8).packed.tolist()
    assert texts == [unit.text for unit in batch.units(0)]


def test_a_spawned_process_makes_a_batch(tmp_path: Path):
    aligner = small()
    aligner.save(tmp_path / "pair")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        batch = pool.apply(make_batch, (str(tmp_path / "pair"),))
    assert batch.pair_digest == aligner.digest
    assert [unit.text for unit in batch.units(0)] == ["12", "+"]
    del aligner
    gc.collect()
    with pytest.raises(MissingAlignerError, match="units needs the aligner"):
        batch.units(0)
    assert [unit.text for unit in batch.with_aligner(small()).units(0)] == ["12", "+"]


def test_another_aligner_is_refused():
    aligner = small()
    batch = aligner.align_batch([[0, 1]], [[0, 1, 2]])
    other = Aligner(aligner.student, aligner.teacher)
    with pytest.raises(ValueError, match=rf"{other.digest[:12]}.*{aligner.digest[:12]}"):
        batch.with_aligner(other)
    with pytest.raises(TypeError, match="aligner: expected an Aligner, got Vocabulary"):
        batch.with_aligner(aligner.teacher)
    with pytest.raises(ValueError, match=r"batch: expected a batch that .* made"):
        other.continuations(batch)


def test_any_living_aligner_of_the_digest_serves():
    batch = pickle.loads(pickle.dumps(small().align_batch([[0, 1]], [[0, 1, 2]])))
    gc.collect()
    with pytest.raises(MissingAlignerError):
        batch.index()
    first, second = small(), small()
    assert len(batch.index()) == 1
    del second
    gc.collect()
    assert len(batch.index()) == 1
    # What has an aligner keeps it; a copy looks for one.
    held = batch.with_aligner(first)
    del first
    gc.collect()
    assert len(held.coarsen(2).index()) == 0
    assert len(held.index()) == 1
    assert len(copy.deepcopy(held).index()) == 1


def test_the_digest_is_what_an_alignment_depends_on(tmp_path: Path):
    tokens = [b"a", b"", b"", b"b"]
    special = {1: "<eos>", 2: "<turn>"}
    teacher = Vocabulary.from_token_bytes(tokens, special=special, stop_ids=[1])
    student = Vocabulary.from_token_bytes(tokens[::-1], special=special, stop_ids=[2])
    aligner = Aligner(teacher, student, special_tokens={"<turn>": "<eos>"})
    # As `Pair::digest` in the engine says it.
    integers = [2, 1, 2, 2, 1, 1, 1, 1, 2]
    stated = hashlib.sha256(
        b"simct-align pair 1"
        + bytes.fromhex(teacher.digest)
        + bytes.fromhex(student.digest)
        + np.array(integers, "<u4").tobytes()
    )
    assert aligner.digest == stated.hexdigest()
    aligner.save(tmp_path / "pair")
    assert Aligner.load(tmp_path / "pair").digest == aligner.digest
    assert pickle.loads(pickle.dumps(aligner)).digest == aligner.digest
    assert Aligner(teacher, student).digest != aligner.digest


def test_a_file_of_the_format_before_is_refused(tmp_path: Path):
    path = tmp_path / "pair"
    path.write_bytes(b"SIMCTALN" + (2).to_bytes(4, "little") + bytes(8) + bytes(64))
    with pytest.raises(
        ValueError,
        match=r"format version 2, this release reads version 4.*Aligner\(teacher, student\)\.save",
    ):
        Aligner.load(path)
