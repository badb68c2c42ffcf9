"""Alignment inside `datasets` and Ray Data: the result in the process, whoever works on it."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")

from simct_align import Aligner, MissingTokenizerError, Vocabulary  # noqa: E402
from simct_align.demo import demo_passage, demo_tokenizers  # noqa: E402
from simct_align.pipelines import AlignRows, RetokenizeRows, TokenizeRows  # noqa: E402
from support.chat_tokenizers import demo_chat_tokenizers  # noqa: E402

UNITS = ("teacher_start", "teacher_end", "student_start", "student_end", "kind", "unit_class")


@pytest.fixture(scope="module")
def aligner() -> Aligner:
    return Aligner(*demo_tokenizers())


@pytest.fixture(scope="module")
def rows(aligner) -> dict[str, list]:
    """Real text, sampled garbage and empty rows."""
    rng = np.random.default_rng(4)
    student = aligner.student.encode_batch([*demo_passage()] * 4)
    student += [rng.integers(0, 4096, rng.integers(0, 30)).tolist() for _ in range(9)]
    return {
        "number": list(range(len(student))),
        "student_ids": student,
        "teacher_ids": aligner.retokenize(student).tolist(),
    }


@pytest.fixture(scope="module")
def expected(aligner, rows) -> list[dict]:
    """Row by row, from the aligner itself."""
    batch = aligner.align_batch(rows["teacher_ids"], rows["student_ids"])
    lists = []
    for number in rows["number"]:
        units = slice(batch.row_offsets[number], batch.row_offsets[number + 1])
        alone = aligner.align_batch([rows["teacher_ids"][number]], [rows["student_ids"][number]])
        coverage = alone.coverage()
        lists.append(
            {name: column[number] for name, column in rows.items()}
            | {name: getattr(batch, name)[units].tolist() for name in UNITS}
            | {
                "teacher_unmatched": sum(coverage.teacher_unmatched.values()),
                "student_unmatched": sum(coverage.student_unmatched.values()),
            }
        )
    return lists


def as_lists(rows) -> list[dict]:
    """Rows of any engine as plain Python."""
    return [
        {name: np.asarray(value).tolist() for name, value in row.items() if name != "worker"}
        for row in rows
    ]


def rows_of(batch: dict) -> list[dict]:
    return as_lists(dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True))


def test_every_kind_of_batch_gives_the_same(aligner, rows, expected):
    function = AlignRows(aligner)
    assert rows_of(function(rows)) == expected
    arrays = {
        "number": np.array(rows["number"]),
        "student_ids": np.array([np.array(ids, np.int32) for ids in rows["student_ids"]], object),
        "teacher_ids": [np.array(ids, np.int64) for ids in rows["teacher_ids"]],
    }
    assert rows_of(function(arrays)) == expected
    table = function(pa.table(rows))
    assert table.to_pylist() == expected
    assert table.schema.field("kind").type == pa.list_(pa.uint8())
    assert table.schema.field("student_end").type == pa.list_(pa.int32())
    assert function(table).schema == table.schema


def test_arrow_lists_of_every_layout(aligner, rows, expected):
    function = AlignRows(aligner)
    for kind in (pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.uint16())):
        table = pa.table(
            {name: pa.array(rows[name], kind) for name in ("teacher_ids", "student_ids")}
        )
        found = function(table)
        assert [found[name].to_pylist() for name in UNITS] == [
            [row[name] for row in expected] for name in UNITS
        ]
        part = function(table.slice(7, 5))
        assert [part[name].to_pylist() for name in UNITS] == [
            [row[name] for row in expected[7:12]] for name in UNITS
        ]
        chunks = function(pa.concat_tables([table.slice(20), table.slice(0, 20)]))
        assert chunks["kind"].to_pylist() == [row["kind"] for row in expected[20:] + expected[:20]]
        assert len(function(table.slice(0, 0))) == 0
    square = pa.array([[5, 6], [7, 8]], pa.list_(pa.int64(), 2))
    found = function(pa.table({"teacher_ids": square, "student_ids": square}).slice(1))
    assert found["teacher_unmatched"].to_pylist() == [2]


def test_arrow_values_are_read_without_a_copy(aligner, rows, monkeypatch):
    table = pa.table({name: rows[name] for name in ("teacher_ids", "student_ids")})
    seen = {}
    align = Aligner.align_batch

    def watched(self, teacher_ids, student_ids, **options):
        seen["student"] = student_ids[0]
        return align(self, teacher_ids, student_ids, **options)

    monkeypatch.setattr(Aligner, "align_batch", watched)
    AlignRows(aligner)(table)
    memory = table["student_ids"].chunk(0).values.to_numpy()
    assert np.shares_memory(seen["student"], memory)
    assert not seen["student"].flags.writeable


def test_masks(aligner, rows):
    masks = [[place % 3 > 0 for place in range(len(ids))] for ids in rows["student_ids"]]
    made = RetokenizeRows(aligner, student_mask_column="mask", teacher_column="t")(
        rows | {"mask": masks}
    )
    again = RetokenizeRows(aligner, student_mask_column="mask", teacher_column="t")(
        pa.table(rows | {"mask": masks})
    )
    assert [ids.tolist() for ids in made["t"]] == again["t"].to_pylist()
    assert (
        again["t"].to_pylist()
        == aligner.retokenize(rows["student_ids"], student_mask=masks).tolist()
    )
    function = AlignRows(
        aligner, teacher_mask_column="mask", student_mask_column="mask", prefix="p_"
    )
    same = {"teacher_ids": [[5, 6, 7]], "student_ids": [[5, 6, 7]], "mask": [[0, 1, 1]]}
    assert function(same)["p_teacher_unmatched"].tolist() == [2]
    assert function(pa.table(same))["p_student_unmatched"].to_pylist() == [2]


def test_texts_and_rollouts(aligner, rows):
    texts = {"text": [*demo_passage(), ""]}
    found = TokenizeRows(aligner)(texts)
    assert [ids.tolist() for ids in found["teacher_ids"]] == aligner.teacher.encode_batch(
        texts["text"]
    )
    table = TokenizeRows(aligner)(pa.table(texts))
    assert table["student_ids"].to_pylist() == aligner.student.encode_batch(texts["text"])
    made = RetokenizeRows(aligner)(pa.table({"student_ids": rows["student_ids"]}))
    assert made["teacher_ids"].to_pylist() == rows["teacher_ids"]


@pytest.mark.parametrize("as_batch", [dict, pa.table], ids=["mapping", "arrow"])
def test_a_missing_text_names_row_and_column(aligner, as_batch):
    function = TokenizeRows(aligner, text_column="answer")
    with pytest.raises(ValueError, match=r"row 2 of the batch, column 'answer': .*got None"):
        function(as_batch({"answer": ["a", "b", None]}))
    with pytest.raises(TypeError, match=r"row 0 of the batch, column 'answer': .*string, got int"):
        function(as_batch({"answer": [3]}))
    with pytest.raises(KeyError, match=r"column 'answer' is missing; .* \['text'\]"):
        function(as_batch({"text": ["a"]}))
    function = RetokenizeRows(aligner, student_column="sampled")
    with pytest.raises(ValueError, match=r"column 'sampled'.*row 1|row 1.*column 'sampled'"):
        function(as_batch({"sampled": [[1], None]}))


def test_what_is_no_batch_is_named(aligner):
    function = AlignRows(aligner)
    with pytest.raises(TypeError, match=r"batch: expected .*got list; map with batched=True"):
        function([{"teacher_ids": [1]}])
    with pytest.raises(KeyError, match="student_ids"):
        function({"teacher_ids": [[1]]})
    with pytest.raises(KeyError, match="student_ids"):
        function(pa.table({"teacher_ids": [[1]]}))
    with pytest.raises(TypeError, match="column 'teacher_ids': expected lists of integers, got"):
        function(pa.table({"teacher_ids": [1], "student_ids": [[1]]}))
    for ids in ([[1], None], [[1, None]]):
        with pytest.raises(ValueError, match="column 'teacher_ids' has nulls"):
            function(pa.table({"teacher_ids": ids, "student_ids": [[1]] * len(ids)}))
    with pytest.raises(ValueError, match="row 1, position 0: teacher id 9999"):
        function({"teacher_ids": [[1], [9999]], "student_ids": [[1], [1]]})
    with pytest.raises(TypeError, match="aligner: expected an Aligner, got str"):
        AlignRows("path")
    with pytest.raises(ValueError, match="texts differ"):
        AlignRows(aligner, on_mismatch="error")({"teacher_ids": [[500]], "student_ids": [[700]]})


def test_functions_keep_the_whole_pair(aligner):
    """The plain aligner inside has the columns, specials and stops of the one that was given."""
    teacher = Vocabulary.from_token_bytes(
        [b"a", b"b", b"", b"", b""], special=[2, 3, 4], stop_ids=[4]
    )
    student = Vocabulary.from_token_bytes(
        [b"b", b"a", b"", b"", b""], special=[2, 3, 4], stop_ids=[2]
    )
    mapped = Aligner(teacher, student, special_tokens={2: 3}, stop_tokens=([4, 3], [2, 4]))
    for given in (mapped, aligner, Aligner(teacher, teacher, special_tokens={2: 3})):
        for inner in (AlignRows(given)._aligner, pickle.loads(pickle.dumps(given))):
            for name in ("teacher_ids", "student_ids", "teacher_stop_ids", "student_stop_ids"):
                found, wanted = getattr(inner.shared, name), getattr(given.shared, name)
                assert np.array_equal(found, wanted), name
    # A tokenizer that the function never calls does not travel.
    assert AlignRows(aligner)._aligner.teacher.tokenizer is None
    assert RetokenizeRows(aligner)._aligner.student.tokenizer is None
    bare = RetokenizeRows(Aligner(teacher, student))
    with pytest.raises(MissingTokenizerError):
        bare({"student_ids": [[1]]})


@pytest.mark.parametrize("function", [AlignRows, RetokenizeRows, TokenizeRows])
def test_pickles_are_equal_whenever_results_are(aligner, rows, function):
    tokenizers = demo_chat_tokenizers()
    for make in (lambda: Aligner(*demo_tokenizers()), lambda: Aligner(*tokenizers)):
        one, other = make(), make()
        before = pickle.dumps(function(one))
        _ = one.spellings
        one.align_texts(["a"])
        one.retokenize(rows["student_ids"])
        assert pickle.dumps(function(one)) == before
        assert pickle.dumps(function(other)) == before
        assert pickle.dumps(pickle.loads(before)) == before
    if function is AlignRows:
        assert pickle.dumps(AlignRows(aligner, prefix="x")) != pickle.dumps(AlignRows(aligner))


# datasets


@pytest.fixture
def stored(rows, tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "rows", num_shards=2)
    return datasets.load_from_disk(tmp_path / "rows")


def cached(dataset) -> set[str]:
    return {entry["filename"] for entry in dataset.cache_files}


@pytest.mark.parametrize("layout", ["arrow", None])
def test_datasets_map(aligner, stored, expected, layout, capfd):
    from datasets.utils import enable_progress_bars

    enable_progress_bars()
    options = {"batched": True, "batch_size": 6, "num_proc": 2}
    given = stored.with_format(layout)
    found = given.map(AlignRows(aligner), desc="aligning rows", **options)
    assert as_lists(found.with_format(None)) == expected
    assert "aligning rows (num_proc=2)" in capfd.readouterr().err
    # The same function, made anew from an aligner that was used in between: nothing is computed.
    other = Aligner(*demo_tokenizers())
    _ = other.spellings
    again = given.map(AlignRows(other), desc="not again", **options)
    assert again._fingerprint == found._fingerprint
    assert cached(again) == cached(found)
    assert "not again" not in capfd.readouterr().err
    changed = given.map(AlignRows(other, prefix="x_"), **options)
    assert changed._fingerprint != found._fingerprint


def test_the_fingerprint_is_that_of_another_session(aligner):
    pytest.importorskip("datasets")
    script = """
        from datasets.fingerprint import Hasher
        from simct_align import Aligner
        from simct_align.demo import demo_tokenizers
        from simct_align.pipelines import AlignRows, RetokenizeRows, TokenizeRows
        aligner = Aligner(*demo_tokenizers())
        for function in (AlignRows, RetokenizeRows, TokenizeRows):
            print(Hasher.hash(function(aligner)))
    """
    from datasets.fingerprint import Hasher

    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
    )
    here = [Hasher.hash(made(aligner)) for made in (AlignRows, RetokenizeRows, TokenizeRows)]
    assert ran.stdout.split() == here


def test_datasets_retokenizes_in_processes(aligner, stored, rows):
    found = stored.remove_columns("teacher_ids").map(
        RetokenizeRows(aligner), batched=True, batch_size=7, num_proc=2
    )
    assert found["teacher_ids"][:] == rows["teacher_ids"]


class KilledOnce:
    """Kills the process that works on row 20 the first time."""

    def __init__(self, function, marker: Path) -> None:
        self.function = function
        self.marker = marker

    def __call__(self, batch):
        numbers = batch["number"]
        if 20 in (numbers.to_pylist() if isinstance(batch, pa.Table) else numbers):
            try:
                self.marker.touch(exist_ok=False)
            except FileExistsError:
                return self.function(batch)
            os.kill(os.getpid(), signal.SIGKILL)
        return self.function(batch)


def test_a_killed_datasets_worker_is_an_error_and_the_next_run_whole(
    aligner, stored, expected, tmp_path
):
    function = KilledOnce(AlignRows(aligner), tmp_path / "killed")
    options = {"batched": True, "batch_size": 4, "num_proc": 2}
    with pytest.raises(RuntimeError, match=r"subprocess.*died"):
        stored.map(function, **options)
    assert as_lists(stored.map(function, **options)) == expected


# Ray Data


@pytest.fixture(scope="module")
def ray():
    """Ray on this machine; four CPUs in its books, whatever the machine has."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    tests = str(Path(__file__).parent)
    ray.init(
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=200 * 2**20,
        runtime_env={"env_vars": {"PYTHONPATH": tests, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}},
    )
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    yield ray
    ray.shutdown()


class Watched:
    """Says who aligned, with how many threads, and whether the input could be written to."""

    def __init__(self, aligner) -> None:
        self.function = AlignRows(aligner)

    def __call__(self, batch):
        values = batch["student_ids"].chunk(0).values.to_numpy()
        about = [os.getpid(), self.function._threads, int(values.flags.writeable)]
        made = self.function(batch)
        return made.append_column("worker", pa.array([about] * len(batch)))


class KilledActor(KilledOnce):
    """Killed once, and made again by Ray."""

    def __init__(self, aligner, marker: Path) -> None:
        super().__init__(AlignRows(aligner), marker)


def table_parts(rows, size: int = 5) -> list:
    table = pa.table(rows)
    return [table.slice(start, size) for start in range(0, len(table), size)]


def test_ray_actors(ray, aligner, rows, expected):
    data = ray.data.from_arrow(table_parts(rows))
    found = data.map_batches(
        Watched,
        fn_constructor_args=(aligner,),
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=2,
        batch_size=5,
        batch_format="pyarrow",
        zero_copy_batch=True,
    ).take_all()
    assert as_lists(found) == expected
    workers, threads, writable = zip(*(row["worker"] for row in found), strict=True)
    # Built once per actor, in processes of their own; the CPUs asked for; memory of the store.
    assert 1 <= len(set(workers)) <= 2
    assert os.getpid() not in workers
    assert set(threads) == {2}
    assert set(writable) == {0}


def test_ray_goes_on_where_an_actor_was_killed(ray, aligner, rows, expected, tmp_path):
    data = ray.data.from_arrow(table_parts(rows))
    found = data.map_batches(
        KilledActor,
        fn_constructor_args=(aligner, tmp_path / "killed"),
        compute=ray.data.ActorPoolStrategy(size=1),
        batch_size=5,
        batch_format="pyarrow",
        zero_copy_batch=True,
    ).take_all()
    assert (tmp_path / "killed").exists()
    assert as_lists(found) == expected


def test_ray_chains_functions_and_reads_its_default_batches(ray, aligner, rows, expected):
    data = ray.data.from_arrow(table_parts({n: rows[n] for n in ("number", "student_ids")}, 9))
    pool = ray.data.ActorPoolStrategy(size=1)
    for function in (RetokenizeRows, AlignRows):
        data = data.map_batches(function, fn_constructor_args=(aligner,), compute=pool)
    found = as_lists(data.take_all())
    assert [{name: row[name] for name in expected[0]} for row in found] == expected
