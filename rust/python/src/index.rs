//! The tensors that a loss gathers with.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use simct_align::batch::RaggedIds;
use simct_align::error::Side;
use simct_align::index::{Index, IndexSide, UnitColumns, build_index as build};
use simct_align::pair::Pair as CorePair;
use simct_align::track::TokenId;

use crate::arrays::IdArray;
use crate::errors::to_py_err;
use crate::pair::Pair;

/// One side: (values, offsets, flat logit row of each row's position 0).
type SideArrays<'py> = (Bound<'py, PyAny>, PyReadonlyArray1<'py, i64>, PyReadonlyArray1<'py, i64>);

/// Makes the index of a batch: (packed sections, counts by name).
#[pyfunction]
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
) -> PyResult<(Bound<'py, PyArray1<i64>>, Bound<'py, PyDict>)> {
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
            py.detach(|| index(&pair.core, &units, (teacher_ids, teacher), (student_ids, student)))
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
    Ok((packed.into_pyarray(py), names))
}

/// Ids, and (offsets, row starts).
type Input<'a, I> = (&'a [I], (&'a [i64], &'a [i64]));

fn index<I: TokenId>(
    pair: &CorePair,
    units: &UnitColumns<'_>,
    teacher: Input<'_, I>,
    student: Input<'_, I>,
) -> simct_align::error::Result<Index> {
    let (values, (offsets, row_starts)) = teacher;
    let teacher = IndexSide { ids: RaggedIds::new(Side::Teacher, values, offsets)?, row_starts };
    let (values, (offsets, row_starts)) = student;
    let student = IndexSide { ids: RaggedIds::new(Side::Student, values, offsets)?, row_starts };
    build(pair, units, teacher, student)
}
