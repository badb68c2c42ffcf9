//! NumPy arrays of the integer types that ids come in.

use numpy::{PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

/// A contiguous one-dimensional array of ids.
pub(crate) enum IdArray<'py> {
    I32(PyReadonlyArray1<'py, i32>),
    U32(PyReadonlyArray1<'py, u32>),
    I64(PyReadonlyArray1<'py, i64>),
}

impl<'py> IdArray<'py> {
    pub(crate) fn extract(array: &Bound<'py, PyAny>) -> PyResult<Self> {
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

/// Ids of a core vocabulary (below 2^24) as Python's tensors index with them.
pub(crate) fn widen<'py>(py: Python<'py>, ids: &[u32]) -> Bound<'py, PyArray1<i64>> {
    PyArray1::from_iter(py, ids.iter().map(|&id| i64::from(id)))
}

/// The core reads both sides with one type: the caller converts.
pub(crate) fn different_dtypes() -> PyErr {
    PyTypeError::new_err("both sides' ids must have one dtype")
}
