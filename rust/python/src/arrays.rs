//! NumPy arrays, and objects that hold them, as the core reads them.

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use simct_align::columns::UnitColumns;

/// A contiguous one-dimensional array of ids.
pub(crate) enum IdArray<'py> {
    I32(PyReadonlyArray1<'py, i32>),
    U32(PyReadonlyArray1<'py, u32>),
    I64(PyReadonlyArray1<'py, i64>),
}

impl<'py> FromPyObject<'_, 'py> for IdArray<'py> {
    type Error = PyErr;

    fn extract(array: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(array) = array.cast::<PyArray1<i64>>() {
            Ok(Self::I64(array.try_readonly()?))
        } else if let Ok(array) = array.cast::<PyArray1<i32>>() {
            Ok(Self::I32(array.try_readonly()?))
        } else if let Ok(array) = array.cast::<PyArray1<u32>>() {
            Ok(Self::U32(array.try_readonly()?))
        } else {
            Err(PyTypeError::new_err("ids must be a one-dimensional int32, uint32 or int64 array"))
        }
    }
}

/// One side of a batch: the attributes of Python's `RaggedIds`.
#[derive(FromPyObject)]
pub(crate) struct SideArrays<'py> {
    pub(crate) values: IdArray<'py>,
    pub(crate) offsets: PyReadonlyArray1<'py, i64>,
    pub(crate) mask: Option<PyReadonlyArray1<'py, u8>>,
}

/// The units of a batch: the attributes of Python's `UnitColumns`.
#[derive(FromPyObject)]
pub(crate) struct UnitArrays<'py> {
    row_offsets: PyReadonlyArray1<'py, i64>,
    teacher_start: PyReadonlyArray1<'py, i32>,
    teacher_end: PyReadonlyArray1<'py, i32>,
    student_start: PyReadonlyArray1<'py, i32>,
    student_end: PyReadonlyArray1<'py, i32>,
    kind: PyReadonlyArray1<'py, u8>,
    unit_class: PyReadonlyArray1<'py, u8>,
}

impl UnitArrays<'_> {
    pub(crate) fn columns(&self) -> PyResult<UnitColumns<'_>> {
        Ok(UnitColumns {
            row_offsets: self.row_offsets.as_slice()?,
            teacher_start: self.teacher_start.as_slice()?,
            teacher_end: self.teacher_end.as_slice()?,
            student_start: self.student_start.as_slice()?,
            student_end: self.student_end.as_slice()?,
            kind: self.kind.as_slice()?,
            unit_class: self.unit_class.as_slice()?,
        })
    }
}

/// Evaluates an expression in which a name stands for the slice of an [`IdArray`].
macro_rules! with_ids {
    ($array:expr, |$values:ident| $body:expr) => {
        match $array {
            $crate::arrays::IdArray::I64(array) => {
                let $values = array.as_slice()?;
                $body
            }
            $crate::arrays::IdArray::I32(array) => {
                let $values = array.as_slice()?;
                $body
            }
            $crate::arrays::IdArray::U32(array) => {
                let $values = array.as_slice()?;
                $body
            }
        }
    };
}

/// Evaluates an expression in which two names stand for both sides' slices of one type; the caller
/// makes the types equal.
macro_rules! with_both_ids {
    ($first:expr, $second:expr, |$teacher:ident, $student:ident| $body:expr) => {
        match ($first, $second) {
            ($crate::arrays::IdArray::I64(teacher), $crate::arrays::IdArray::I64(student)) => {
                let ($teacher, $student) = (teacher.as_slice()?, student.as_slice()?);
                $body
            }
            ($crate::arrays::IdArray::I32(teacher), $crate::arrays::IdArray::I32(student)) => {
                let ($teacher, $student) = (teacher.as_slice()?, student.as_slice()?);
                $body
            }
            ($crate::arrays::IdArray::U32(teacher), $crate::arrays::IdArray::U32(student)) => {
                let ($teacher, $student) = (teacher.as_slice()?, student.as_slice()?);
                $body
            }
            _ => {
                return Err(pyo3::exceptions::PyTypeError::new_err(
                    "both sides' ids must have one dtype",
                ));
            }
        }
    };
}

pub(crate) use {with_both_ids, with_ids};

/// Ids of a core vocabulary (below 2^24) as Python's tensors index with them.
pub(crate) fn widen<'py>(py: Python<'py>, ids: &[u32]) -> Bound<'py, PyArray1<i64>> {
    PyArray1::from_iter(py, ids.iter().map(|&id| i64::from(id)))
}
