//! The conversion of core errors to Python exceptions.

use pyo3::PyErr;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use simct_align::error::Error;

pyo3::create_exception!(
    simct_align._native,
    AlignmentError,
    PyValueError,
    "The two sides of a row hold different text, where the caller asked for an error."
);

/// Every variant means that an argument is wrong, except a mismatch and an error of the system.
pub(crate) fn to_py_err(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Mismatch(_) => AlignmentError::new_err(message),
        Error::Threads { .. } => PyRuntimeError::new_err(message),
        _ => PyValueError::new_err(message),
    }
}
