//! Spellings of one-sided tokens, and the continuations of a batch.

use std::num::NonZeroUsize;
use std::sync::Arc;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use simct_align::continuation::{Entries, PathOptions, on_path as enumerate};
use simct_align::ids::{RaggedIds, Side};
use simct_align::pair::Pair as CorePair;
use simct_align::spelling::SpellingTable;
use simct_align::threads::Threads;
use simct_align::trie::{ByteTrie as CoreTrie, TextParts};

use crate::arrays::{SideArrays, UnitArrays, widen, with_both_ids};
use crate::errors::to_py_err;
use crate::pair::Pair;
use crate::vocabulary::Vocabulary;

type Longs<'py> = Bound<'py, PyArray1<i64>>;
type Ints<'py> = Bound<'py, PyArray1<i32>>;
type Columns<'py> = (Ints<'py>, Ints<'py>, Ints<'py>);
/// (values, offsets) of one row of ids for every one-sided token.
type Encodings<'py> = (PyReadonlyArray1<'py, i64>, PyReadonlyArray1<'py, i64>);

pub(crate) fn path_options(max_path: usize, threads: Option<NonZeroUsize>) -> PathOptions {
    PathOptions { max_path, threads: threads.map_or(Threads::AllCores, Threads::Count) }
}

/// The tokens of a vocabulary, sorted by their bytes.
#[pyclass(frozen, module = "simct_align._native")]
pub(crate) struct ByteTrie {
    core: CoreTrie,
}

#[pymethods]
impl ByteTrie {
    #[new]
    fn new(py: Python<'_>, vocabulary: &Vocabulary) -> Self {
        Self { core: py.detach(|| CoreTrie::new(Arc::clone(&vocabulary.core))) }
    }

    /// The tokens that a text begins with: (length in bytes, id), the shortest first.
    fn prefixes(&self, text: &[u8]) -> Vec<(usize, u32)> {
        self.core.prefixes(text).collect()
    }

    /// The tokens that begin with a prefix, sorted by their bytes.
    fn with_prefix<'py>(&self, py: Python<'py>, prefix: &[u8]) -> Longs<'py> {
        widen(py, self.core.with_prefix(prefix))
    }

    /// The longest token that every part of a text begins with, or −1.
    fn longest_prefixes<'py>(
        &self,
        py: Python<'py>,
        text: &[u8],
        starts: PyReadonlyArray1<'py, i64>,
        ends: PyReadonlyArray1<'py, i64>,
    ) -> PyResult<Longs<'py>> {
        let parts =
            TextParts::new(text, starts.as_slice()?, ends.as_slice()?).map_err(to_py_err)?;
        let longest = |part| self.core.longest_prefix(part).map_or(-1, i64::from);
        let found: Vec<i64> = py.detach(|| parts.iter().map(longest).collect());
        Ok(found.into_pyarray(py))
    }

    /// The ranges of the tokens that begin with every part of a text, among all tokens sorted by
    /// their bytes: (first, stop).
    fn ranges<'py>(
        &self,
        py: Python<'py>,
        text: &[u8],
        starts: PyReadonlyArray1<'py, i64>,
        ends: PyReadonlyArray1<'py, i64>,
    ) -> PyResult<(Longs<'py>, Longs<'py>)> {
        let parts =
            TextParts::new(text, starts.as_slice()?, ends.as_slice()?).map_err(to_py_err)?;
        // A vocabulary has fewer than 2^24 tokens.
        let wide = |place| i64::try_from(place).unwrap_or(i64::MAX);
        let ranges = parts.iter().map(|part| self.core.range(part));
        let (first, stop): (Vec<i64>, Vec<i64>) =
            py.detach(|| ranges.map(|range| (wide(range.start), wide(range.end))).unzip());
        Ok((first.into_pyarray(py), stop.into_pyarray(py)))
    }

    /// The fewest tokens that spell a text.
    fn shortest_path(&self, text: &[u8]) -> Option<Vec<u32>> {
        self.core.shortest_path(text)
    }
}

/// The spellings of one side's one-sided tokens.
#[pyclass(frozen, module = "simct_align._native")]
pub(crate) struct Spellings {
    pair: Arc<CorePair>,
    side: Side,
}

impl Spellings {
    /// The table; the shortest paths, if nobody made it with what tokenizers emit.
    fn table(&self) -> PyResult<&SpellingTable> {
        Ok(self.pair.spellings().map_err(to_py_err)?.of(self.side))
    }
}

#[pymethods]
impl Spellings {
    #[new]
    fn new(pair: &Pair, of_teacher: bool) -> Self {
        Self { pair: Arc::clone(&pair.core), side: side(of_teacher) }
    }

    /// The leaves: (where those of every node begin, last token, one-sided token).
    fn leaf_table<'py>(&self, py: Python<'py>) -> PyResult<(Longs<'py>, Longs<'py>, Longs<'py>)> {
        let table = self.table()?;
        let last = PyArray1::from_iter(py, table.last_tokens().map(i64::from));
        Ok((widen(py, table.node_offsets()), last, widen(py, table.one_sided_tokens())))
    }

    /// The nodes: (the node before, or −1; the last token of the path).
    fn node_table<'py>(&self, py: Python<'py>) -> PyResult<(Longs<'py>, Longs<'py>)> {
        let steps = self.table()?.node_steps();
        let parents = steps.iter().map(|&(parent, _)| parent.map_or(-1, i64::from));
        let parents = PyArray1::from_iter(py, parents);
        Ok((parents, PyArray1::from_iter(py, steps.iter().map(|&(_, token)| i64::from(token)))))
    }

    fn spelling(&self, token_id: u32) -> PyResult<Option<Vec<u32>>> {
        Ok(self.table()?.spelling(token_id).map(<[u32]>::to_vec))
    }

    fn node(&self, path: Vec<u32>) -> PyResult<Option<u32>> {
        Ok(self.table()?.node(&path))
    }

    /// The one-sided tokens without a spelling.
    fn unspelled<'py>(&self, py: Python<'py>) -> PyResult<Longs<'py>> {
        Ok(widen(py, self.table()?.unspelled()))
    }

    /// How many one-sided tokens have a spelling of so many tokens.
    fn counts_by_length(&self) -> PyResult<Vec<usize>> {
        Ok(self.table()?.counts_by_length())
    }
}

/// The one-sided tokens of a side: (ids, their texts, `None` for bytes that are no text).
#[pyfunction]
pub(crate) fn one_sided_tokens<'py>(
    py: Python<'py>,
    pair: &Pair,
    of_teacher: bool,
) -> (Longs<'py>, Vec<Option<String>>) {
    let ids = pair.core.one_sided(side(of_teacher));
    let vocabulary = if of_teacher { pair.core.teacher() } else { pair.core.student() };
    let text = |&id: &u32| String::from_utf8(vocabulary.token_bytes(id).to_vec()).ok();
    (widen(py, &ids), ids.iter().map(text).collect())
}

/// Makes the spellings with what the tokenizers emit: for the teacher's one-sided tokens the
/// student's ids, and the other way round. Does nothing if they have been made.
#[pyfunction]
pub(crate) fn make_spellings(
    py: Python<'_>,
    pair: &Pair,
    teacher: Option<Encodings<'_>>,
    student: Option<Encodings<'_>>,
) -> PyResult<()> {
    let (teacher, student) = (slices(teacher.as_ref())?, slices(student.as_ref())?);
    py.detach(|| {
        // The ids that spell the teacher's tokens are the student's.
        let teacher =
            teacher.map(|(values, offsets)| RaggedIds::new(Side::Student, values, offsets));
        let student =
            student.map(|(values, offsets)| RaggedIds::new(Side::Teacher, values, offsets));
        pair.core.make_spellings(teacher.transpose()?, student.transpose()?).map(|_| ())
    })
    .map_err(to_py_err)
}

fn slices<'a>(encodings: Option<&'a Encodings<'_>>) -> PyResult<Option<(&'a [i64], &'a [i64])>> {
    match encodings {
        None => Ok(None),
        Some((values, offsets)) => Ok(Some((values.as_slice()?, offsets.as_slice()?))),
    }
}

fn side(of_teacher: bool) -> Side {
    if of_teacher { Side::Teacher } else { Side::Student }
}

/// Enumerates the continuations of a batch: (unit, node, depth) of the teacher's spellings, then
/// of the student's.
#[pyfunction]
#[pyo3(signature = (pair, units, teacher, student, *, max_path, threads))]
pub(crate) fn on_path<'py>(
    py: Python<'py>,
    pair: &Pair,
    units: UnitArrays<'py>,
    teacher: SideArrays<'py>,
    student: SideArrays<'py>,
    max_path: usize,
    threads: Option<NonZeroUsize>,
) -> PyResult<(Columns<'py>, Columns<'py>)> {
    let units = units.columns()?;
    let options = path_options(max_path, threads);
    let (teacher_offsets, student_offsets) =
        (teacher.offsets.as_slice()?, student.offsets.as_slice()?);
    let found =
        with_both_ids!(&teacher.values, &student.values, |teacher, student| py.detach(|| {
            let teacher = RaggedIds::new(Side::Teacher, teacher, teacher_offsets)?;
            let student = RaggedIds::new(Side::Student, student, student_offsets)?;
            enumerate(&pair.core, &units, teacher, student, &options)
        }));
    let found = found.map_err(to_py_err)?;
    let columns = |entries: Entries| {
        let Entries { unit, node, depth } = entries;
        (unit.into_pyarray(py), node.into_pyarray(py), depth.into_pyarray(py))
    };
    Ok((columns(found.teacher), columns(found.student)))
}
