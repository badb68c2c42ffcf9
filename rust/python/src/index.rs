//! The tensors that a loss gathers with.

use std::num::NonZeroUsize;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use simct_align::batch::RaggedIds;
use simct_align::continuation::PathOptions;
use simct_align::error::Side;
use simct_align::index::{EntryCounts, Index, IndexSide, UnitColumns, build_index as build};
use simct_align::pair::Pair as CorePair;
use simct_align::track::TokenId;

use crate::arrays::IdArray;
use crate::continuation::path_options;
use crate::errors::to_py_err;
use crate::pair::Pair;

/// One side: (values, offsets, flat logit row of each row's position 0).
type SideArrays<'py> = (Bound<'py, PyAny>, PyReadonlyArray1<'py, i64>, PyReadonlyArray1<'py, i64>);

/// Makes the index of a batch: (packed sections, counts by name); with continuations if `max_path`
/// is not 0.
#[pyfunction]
#[pyo3(signature = (
    pair, row_offsets, teacher_start, teacher_end, student_start, student_end, kind, unit_class,
    teacher, student, *, max_path, threads,
))]
#[expect(clippy::too_many_arguments, reason = "the columns of a batch")]
pub(crate) fn build_index<'py>(
    py: Python<'py>,
    pair: &Pair,
    row_offsets: PyReadonlyArray1<'py, i64>,
    teacher_start: PyReadonlyArray1<'py, i32>,
    teacher_end: PyReadonlyArray1<'py, i32>,
    student_start: PyReadonlyArray1<'py, i32>,
    student_end: PyReadonlyArray1<'py, i32>,
    kind: PyReadonlyArray1<'py, u8>,
    unit_class: PyReadonlyArray1<'py, u8>,
    teacher: SideArrays<'py>,
    student: SideArrays<'py>,
    max_path: usize,
    threads: Option<NonZeroUsize>,
) -> PyResult<(Bound<'py, PyArray1<i64>>, Bound<'py, PyDict>)> {
    let options = (max_path > 0).then(|| path_options(max_path, threads));
    let units = UnitColumns {
        row_offsets: row_offsets.as_slice()?,
        teacher_start: teacher_start.as_slice()?,
        teacher_end: teacher_end.as_slice()?,
        student_start: student_start.as_slice()?,
        student_end: student_end.as_slice()?,
        kind: kind.as_slice()?,
        unit_class: unit_class.as_slice()?,
    };
    let (teacher_ids, student_ids) = (IdArray::extract(&teacher.0)?, IdArray::extract(&student.0)?);
    let teacher = (teacher.1.as_slice()?, teacher.2.as_slice()?);
    let student = (student.1.as_slice()?, student.2.as_slice()?);
    macro_rules! index {
        ($teacher_ids:ident, $student_ids:ident) => {{
            let (teacher_ids, student_ids) = ($teacher_ids.as_slice()?, $student_ids.as_slice()?);
            let (teacher, student) = ((teacher_ids, teacher), (student_ids, student));
            py.detach(|| index(&pair.core, &units, teacher, student, options.as_ref()))
        }};
    }
    let built = match (&teacher_ids, &student_ids) {
        (IdArray::I64(teacher), IdArray::I64(student)) => index!(teacher, student),
        (IdArray::I32(teacher), IdArray::I32(student)) => index!(teacher, student),
        (IdArray::U32(teacher), IdArray::U32(student)) => index!(teacher, student),
        _ => return Err(crate::arrays::different_dtypes()),
    };
    let Index { packed, counts } = built.map_err(to_py_err)?;
    let names = PyDict::new(py);
    names.set_item("n_shared", counts.shared)?;
    names.set_item("n_multi", counts.multi)?;
    names.set_item("n_teacher_steps", counts.teacher_steps)?;
    names.set_item("n_student_steps", counts.student_steps)?;
    names.set_item("student_tokens_shared", counts.student_tokens_shared)?;
    names.set_item("dropped_no_prefix", counts.dropped_no_prefix)?;
    names.set_item("dropped_dummy_prefix", counts.dropped_dummy_prefix)?;
    names.set_item("max_path", max_path)?;
    for (side, counts) in [("teacher", counts.teacher), ("student", counts.student)] {
        let EntryCounts { entries, leaves, cut_off } = counts;
        names.set_item(format!("n_{side}_entries"), entries)?;
        names.set_item(format!("n_{side}_leaves"), leaves)?;
        names.set_item(format!("{side}_cut_off"), cut_off)?;
    }
    Ok((packed.into_pyarray(py), names))
}

/// Ids, and (offsets, row starts).
type Input<'a, I> = (&'a [I], (&'a [i64], &'a [i64]));

fn index<I: TokenId>(
    pair: &CorePair,
    units: &UnitColumns<'_>,
    teacher: Input<'_, I>,
    student: Input<'_, I>,
    continuations: Option<&PathOptions>,
) -> simct_align::error::Result<Index> {
    let (values, (offsets, row_starts)) = teacher;
    let teacher = IndexSide { ids: RaggedIds::new(Side::Teacher, values, offsets)?, row_starts };
    let (values, (offsets, row_starts)) = student;
    let student = IndexSide { ids: RaggedIds::new(Side::Student, values, offsets)?, row_starts };
    build(pair, units, teacher, student, continuations)
}
