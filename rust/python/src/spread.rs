//! Sums over units, as values of the other side's tokens.

use std::num::NonZeroUsize;

use numpy::{Element, IntoPyArray, PyArray1, PyArrayMethods, PyReadonlyArray1};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use simct_align::columns::UnitColumns;
use simct_align::ids::Side;
use simct_align::spread::{Spread, SpreadOptions, TokenValues, spread_sums as spread};
use simct_align::text_chunk::Real;
use simct_align::threads::Threads;

use crate::arrays::UnitArrays;
use crate::errors::to_py_err;

/// One side of a batch, as far as it is needed: the attributes of Python's `TokenRows`.
#[derive(FromPyObject)]
pub(crate) struct TokenRows<'py> {
    offsets: PyReadonlyArray1<'py, i64>,
    tokens: usize,
}

/// How sums are spread: the attributes of Python's `SpreadChoice`.
#[derive(FromPyObject)]
pub(crate) struct SpreadChoice {
    of_teacher: bool,
    spread: String,
    fill: f64,
    threads: Option<NonZeroUsize>,
}

/// Spreads the sums over units of one side's values over the other side's tokens; the result has
/// the dtype of the values.
#[pyfunction]
pub(crate) fn spread_sums<'py>(
    py: Python<'py>,
    units: UnitArrays<'py>,
    values: &Bound<'py, PyAny>,
    rows: (TokenRows<'py>, TokenRows<'py>),
    choice: SpreadChoice,
) -> PyResult<Bound<'py, PyAny>> {
    let units = units.columns()?;
    if let Ok(values) = values.cast::<PyArray1<f64>>() {
        spread_values(py, &units, &values.try_readonly()?, &rows, &choice)
    } else if let Ok(values) = values.cast::<PyArray1<f32>>() {
        spread_values(py, &units, &values.try_readonly()?, &rows, &choice)
    } else {
        Err(PyTypeError::new_err("values must be a one-dimensional float32 or float64 array"))
    }
}

fn spread_values<'py, T: Real + Element>(
    py: Python<'py>,
    units: &UnitColumns<'_>,
    values: &PyReadonlyArray1<'py, T>,
    rows: &(TokenRows<'py>, TokenRows<'py>),
    choice: &SpreadChoice,
) -> PyResult<Bound<'py, PyAny>> {
    let options = SpreadOptions {
        spread: match choice.spread.as_str() {
            "even" => Spread::Even,
            "first" => Spread::First,
            "last" => Spread::Last,
            other => return Err(PyValueError::new_err(format!("unknown spread {other:?}"))),
        },
        fill: choice.fill,
        threads: choice.threads.map_or(Threads::AllCores, Threads::Count),
    };
    let tokens = TokenValues {
        side: if choice.of_teacher { Side::Teacher } else { Side::Student },
        values: values.as_slice()?,
        offsets: rows.0.offsets.as_slice()?,
        other_offsets: rows.1.offsets.as_slice()?,
        other_tokens: rows.1.tokens,
    };
    let made = py.detach(|| spread(units, tokens, options)).map_err(to_py_err)?;
    Ok(made.into_pyarray(py).into_any())
}
