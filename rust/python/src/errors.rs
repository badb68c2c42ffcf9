//! The conversion of core errors to Python exceptions, and interrupts of long work.

use std::cell::RefCell;

use pyo3::exceptions::{PyKeyboardInterrupt, PyMemoryError, PyRuntimeError, PyValueError};
use pyo3::{PyErr, Python};
use simct_align::error::Error;

thread_local! {
    /// What a handler of signals raised on this thread while the core worked.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
}

/// Runs the handlers of signals that have arrived; whether one of them raised, as for Ctrl-C.
pub(crate) fn interrupt_requested() -> bool {
    let raised = Python::attach(|py| py.check_signals()).err();
    let requested = raised.is_some();
    RAISED.set(raised);
    requested
}

pyo3::create_exception!(
    simct_align._native,
    AlignmentError,
    PyValueError,
    "The two sides of a row hold different text, where the caller asked for an error."
);

/// Every variant means that an argument is wrong, except a mismatch, an error of the
/// system and an interrupt.
pub(crate) fn to_py_err(error: Error) -> PyErr {
    let message = error.to_string();
    match error {
        Error::Mismatch(_) => AlignmentError::new_err(message),
        Error::Interrupted => {
            RAISED.take().unwrap_or_else(|| PyKeyboardInterrupt::new_err(message))
        }
        Error::OutOfMemory { .. } => PyMemoryError::new_err(message),
        Error::Threads { .. } => PyRuntimeError::new_err(message),
        _ => PyValueError::new_err(message),
    }
}
