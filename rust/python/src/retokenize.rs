//! `Retokenizer`: a student's sampled ids as the teacher's ids of the same bytes.

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use simct_align::ids::{RaggedIds, Side};
use simct_align::retokenize::{Counts, Plan, Retokenized, Retokenizer as CoreRetokenizer, Stretch};

use crate::arrays::{IdArray, with_ids};
use crate::errors::to_py_err;
use crate::pair::Pair;

/// Makes teacher's ids of a student's.
#[pyclass(frozen, module = "simct_align._native")]
pub(crate) struct Retokenizer {
    core: CoreRetokenizer,
}

/// Regions of sampled ids, taken apart.
#[pyclass(frozen, module = "simct_align._native")]
pub(crate) struct RetokenizePlan {
    core: Plan,
}

/// The teacher's ids of regions, whose bytes need not be the student's yet.
#[pyclass(frozen, module = "simct_align._native")]
pub(crate) struct RetokenizedIds {
    core: Retokenized,
}

type Longs<'py> = PyReadonlyArray1<'py, i64>;

#[pymethods]
impl Retokenizer {
    #[new]
    fn new(py: Python<'_>, pair: &Pair) -> Self {
        let pair = pair.core.clone();
        Self { core: py.detach(|| CoreRetokenizer::new(pair)) }
    }

    /// Takes regions of the student's ids apart.
    fn split(
        &self,
        py: Python<'_>,
        values: IdArray<'_>,
        offsets: Longs<'_>,
    ) -> PyResult<RetokenizePlan> {
        let offsets = offsets.as_slice()?;
        let plan = with_ids!(&values, |values| py.detach(|| self.core.split(RaggedIds::new(
            Side::Student,
            values,
            offsets
        )?)));
        Ok(RetokenizePlan { core: plan.map_err(to_py_err)? })
    }

    /// Puts regions together from what the teacher's encoder made of the plan's texts.
    fn assemble(
        &self,
        py: Python<'_>,
        plan: &RetokenizePlan,
        values: Longs<'_>,
        offsets: Longs<'_>,
    ) -> PyResult<RetokenizedIds> {
        let (values, offsets) = (values.as_slice()?, offsets.as_slice()?);
        let made = py.detach(|| {
            let encoded = RaggedIds::new(Side::Teacher, values, offsets)?;
            self.core.assemble(&plan.core, encoded)
        });
        Ok(RetokenizedIds { core: made.map_err(to_py_err)? })
    }

    /// Gives stretches exactly the student's bytes. A stretch is five entries: region, teacher
    /// start, teacher end, student start, student end.
    fn repair(
        &self,
        py: Python<'_>,
        draft: &RetokenizedIds,
        values: IdArray<'_>,
        offsets: Longs<'_>,
        stretches: Longs<'_>,
    ) -> PyResult<RetokenizedIds> {
        let (offsets, stretches) = (offsets.as_slice()?, stretches.as_slice()?);
        let made = with_ids!(&values, |values| py.detach(|| {
            let student = RaggedIds::new(Side::Student, values, offsets)?;
            self.core.repair(draft.core.clone(), student, &Stretch::from_flat(stretches)?)
        }));
        Ok(RetokenizedIds { core: made.map_err(to_py_err)? })
    }
}

#[pymethods]
impl RetokenizePlan {
    /// What the teacher's encoder must make ids of.
    fn texts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.core.texts())
    }
}

#[pymethods]
impl RetokenizedIds {
    /// The ids as (values, offsets).
    fn arrays<'py>(
        &self,
        py: Python<'py>,
    ) -> (Bound<'py, PyArray1<i64>>, Bound<'py, PyArray1<i64>>) {
        (self.core.values.clone().into_pyarray(py), self.core.offsets.clone().into_pyarray(py))
    }

    /// What crossed in which way.
    fn counts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let Counts {
            specials,
            specials_left_out,
            empty_left_out,
            invalid_bytes,
            respelled_bytes,
            replaced_bytes,
        } = self.core.counts;
        let names = PyDict::new(py);
        names.set_item("specials", specials)?;
        names.set_item("specials_left_out", specials_left_out)?;
        names.set_item("empty_left_out", empty_left_out)?;
        names.set_item("invalid_bytes", invalid_bytes)?;
        names.set_item("respelled_bytes", respelled_bytes)?;
        names.set_item("replaced_bytes", replaced_bytes)?;
        Ok(names)
    }
}
