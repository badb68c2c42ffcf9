//! `Pair`: two vocabularies, and the alignment of batches over them.

use std::num::NonZeroUsize;
use std::sync::Arc;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use simct_align::batch::{AlignOptions, AlignedRows, BatchSide, align_batch};
use simct_align::ids::{RaggedIds, Side, TokenId};
use simct_align::pair::{Pair as CorePair, PairOptions};
use simct_align::segment::MismatchPolicy;
use simct_align::storage;
use simct_align::threads::Threads;

use crate::arrays::{SideArrays, widen, with_both_ids};
use crate::errors::to_py_err;
use crate::vocabulary::Vocabulary;

/// A teacher and a student vocabulary, and all that is computed once for both.
#[pyclass(frozen, module = "simct_align._native")]
pub(crate) struct Pair {
    pub(crate) core: Arc<CorePair>,
}

type Ints<'py> = Bound<'py, PyArray1<i32>>;
type Longs<'py> = Bound<'py, PyArray1<i64>>;
type Bytes<'py> = Bound<'py, PyArray1<u8>>;
type Ranges<'py> = (Longs<'py>, Ints<'py>, Ints<'py>, Ints<'py>, Ints<'py>);
type Aligned<'py> = (Ranges<'py>, Bytes<'py>, Bytes<'py>, Ranges<'py>, Bytes<'py>);

#[pymethods]
impl Pair {
    #[new]
    #[pyo3(signature = (teacher, student, *, special_tokens, teacher_stops, student_stops))]
    fn new(
        py: Python<'_>,
        teacher: &Vocabulary,
        student: &Vocabulary,
        special_tokens: Vec<(u32, u32)>,
        teacher_stops: Option<Vec<u32>>,
        student_stops: Option<Vec<u32>>,
    ) -> PyResult<Self> {
        let options = PairOptions { special_tokens, teacher_stops, student_stops };
        let (teacher, student) = (Arc::clone(&teacher.core), Arc::clone(&student.core));
        let core = py.detach(|| CorePair::new(teacher, student, &options)).map_err(to_py_err)?;
        Ok(Self { core: Arc::new(core) })
    }

    #[getter]
    fn teacher(&self) -> Vocabulary {
        Vocabulary { core: Arc::clone(self.core.teacher()) }
    }

    #[getter]
    fn student(&self) -> Vocabulary {
        Vocabulary { core: Arc::clone(self.core.student()) }
    }

    /// The columns of the shared vocabulary: (teacher ids, student ids).
    #[getter]
    fn shared_ids<'py>(&self, py: Python<'py>) -> (Longs<'py>, Longs<'py>) {
        (widen(py, self.core.shared_teacher_ids()), widen(py, self.core.shared_student_ids()))
    }

    /// The stops that have a partner: (teacher ids, student ids), canonical first.
    #[getter]
    fn stop_ids<'py>(&self, py: Python<'py>) -> (Longs<'py>, Longs<'py>) {
        let stops = self.core.stops();
        (widen(py, &stops.teacher), widen(py, &stops.student))
    }

    #[getter]
    fn stop_column(&self) -> Option<u32> {
        self.core.stop_column()
    }

    /// Aligns a batch: ((`row_offsets`, ranges), kind, class, (`row_offsets`, ranges), reason).
    #[pyo3(signature = (teacher, student, *, fail_on_mismatch, resync_bytes, threads))]
    fn align<'py>(
        &self,
        py: Python<'py>,
        teacher: SideArrays<'py>,
        student: SideArrays<'py>,
        fail_on_mismatch: bool,
        resync_bytes: usize,
        threads: Option<NonZeroUsize>,
    ) -> PyResult<Aligned<'py>> {
        let options = AlignOptions {
            mismatch: MismatchPolicy { fail: fail_on_mismatch, resync_bytes },
            threads: threads.map_or(Threads::AllCores, Threads::Count),
        };
        let teacher_mask = teacher.mask.as_ref().map(PyReadonlyArray1::as_slice).transpose()?;
        let student_mask = student.mask.as_ref().map(PyReadonlyArray1::as_slice).transpose()?;
        let offsets = (teacher.offsets.as_slice()?, student.offsets.as_slice()?);
        let aligned = with_both_ids!(&teacher.values, &student.values, |teacher, student| py
            .detach(|| {
                let teacher = batch_side(Side::Teacher, teacher, offsets.0, teacher_mask)?;
                let student = batch_side(Side::Student, student, offsets.1, student_mask)?;
                align_batch(&self.core, teacher, student, &options)
            }));
        Ok(into_arrays(py, aligned.map_err(to_py_err)?))
    }

    /// Whether the spellings of one-sided tokens have been made.
    #[getter]
    fn has_spellings(&self) -> bool {
        self.core.known_spellings().is_some()
    }

    /// Whether the joint tree of both sides' tokens has been made.
    #[getter]
    fn has_text_tree(&self) -> bool {
        self.core.has_text_tree()
    }

    /// What an alignment depends on, as a number of 32 bytes.
    #[getter]
    fn digest<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.core.digest())
    }

    /// The pair as the bytes of a file.
    fn to_bytes<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let bytes = py.detach(|| storage::to_bytes(&self.core));
        PyBytes::new(py, &bytes)
    }

    /// Reads what `to_bytes` wrote.
    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &[u8]) -> PyResult<Self> {
        let core = py.detach(|| storage::from_bytes(data)).map_err(to_py_err)?;
        Ok(Self { core: Arc::new(core) })
    }
}

fn batch_side<'a, I: TokenId>(
    side: Side,
    values: &'a [I],
    offsets: &'a [i64],
    mask: Option<&'a [u8]>,
) -> simct_align::error::Result<BatchSide<'a, I>> {
    let ids = RaggedIds::new(side, values, offsets)?;
    match mask {
        None => Ok(BatchSide::whole_rows(ids)),
        Some(mask) => BatchSide::masked(ids, mask),
    }
}

fn into_arrays(py: Python<'_>, aligned: AlignedRows) -> Aligned<'_> {
    let ranges = |offsets: Vec<i64>, ranges: simct_align::columns::Ranges| {
        (
            offsets.into_pyarray(py),
            ranges.teacher_start.into_pyarray(py),
            ranges.teacher_end.into_pyarray(py),
            ranges.student_start.into_pyarray(py),
            ranges.student_end.into_pyarray(py),
        )
    };
    let segments = aligned.segments;
    (
        ranges(aligned.unit_offsets, segments.units),
        segments.kind.into_pyarray(py),
        segments.unit_class.into_pyarray(py),
        ranges(aligned.unmatched_offsets, segments.unmatched),
        segments.reason.into_pyarray(py),
    )
}
