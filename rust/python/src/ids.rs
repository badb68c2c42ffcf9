//! Conversions between Python lists, ragged arrays and dense ones.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyList, PySequence, PyTuple};

type Longs<'py> = Bound<'py, PyArray1<i64>>;

/// A look for signals such as Ctrl-C comes before this many rows.
const ROWS_PER_LOOK: usize = 1024;

/// Converts a list of lists of integers to (values, offsets); a mask may have booleans too.
#[pyfunction]
#[pyo3(signature = (name, rows, *, booleans = false))]
pub(crate) fn ids_from_lists<'py>(
    py: Python<'py>,
    name: &str,
    rows: &Bound<'py, PySequence>,
    booleans: bool,
) -> PyResult<(Longs<'py>, Longs<'py>)> {
    let rows = rows.to_list()?;
    let (mut values, mut offsets) = (Vec::new(), Vec::with_capacity(rows.len() + 1));
    offsets.push(0i64);
    for (number, row) in rows.iter().enumerate() {
        if number % ROWS_PER_LOOK == 0 {
            py.check_signals()?;
        }
        if let Ok(row) = row.cast::<PyList>() {
            push_row((name, number), row.len(), row.iter(), booleans, &mut values)?;
        } else if let Ok(row) = row.cast::<PyTuple>() {
            push_row((name, number), row.len(), row.iter(), booleans, &mut values)?;
        } else {
            return Err(PyTypeError::new_err(format!(
                "{name}: row {number}: expected a list of integers, got {}",
                row.get_type().name()?
            )));
        }
        offsets.push(i64::try_from(values.len())?);
    }
    Ok((values.into_pyarray(py), offsets.into_pyarray(py)))
}

fn push_row<'py>(
    (name, number): (&str, usize),
    length: usize,
    items: impl Iterator<Item = Bound<'py, PyAny>>,
    booleans: bool,
    values: &mut Vec<i64>,
) -> PyResult<()> {
    values.reserve(length);
    for (position, item) in items.enumerate() {
        let place = || format!("{name}: row {number}, position {position}");
        let no_integer = || {
            let found = item.get_type().name().map_or_else(|_| "?".into(), |n| n.to_string());
            PyTypeError::new_err(format!("{}: expected an integer, got {found}", place()))
        };
        // To Python, True is the integer 1.
        if !booleans && item.is_instance_of::<PyBool>() {
            return Err(no_integer());
        }
        values.push(item.extract().map_err(|error: PyErr| {
            if error.is_instance_of::<PyOverflowError>(item.py()) {
                PyValueError::new_err(format!("{}: {item} does not fit int64", place()))
            } else {
                no_integer()
            }
        })?);
    }
    Ok(())
}

/// Returns, for every position of a dense batch of `width` columns, the number of the segment of
/// its row that covers the position, or −1: segment `k` of row `i` covers `start[k]..end[k]`.
#[pyfunction]
pub(crate) fn segment_numbers<'py>(
    py: Python<'py>,
    row_offsets: PyReadonlyArray1<'py, i64>,
    start: PyReadonlyArray1<'py, i32>,
    end: PyReadonlyArray1<'py, i32>,
    width: usize,
) -> PyResult<Longs<'py>> {
    let (row_offsets, start, end) = (row_offsets.as_slice()?, start.as_slice()?, end.as_slice()?);
    let numbers = py.detach(|| simct_align::batch::segment_numbers(row_offsets, start, end, width));
    Ok(numbers.map_err(crate::errors::to_py_err)?.into_pyarray(py))
}
