//! The text events of a chunk of offsets on the CPU: leaves, their masses, and the gradient.

use std::num::NonZeroUsize;

use numpy::{
    Element, PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2,
    PyReadwriteArray2, PyUntypedArrayMethods,
};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use simct_align::ids::Side;
use simct_align::text_chunk::{Real, SideChunk, TreeNodes, TreeTokens};
use simct_align::text_leaves::{Figure, Group, LeafOptions, Leaves};
use simct_align::text_lists::Lists;
use simct_align::threads::Threads;

use crate::errors::to_py_err;

/// The joint tree: the attributes of Python's `HostTree`.
#[derive(FromPyObject)]
pub(crate) struct TreeArrays<'py> {
    subtree_end: PyReadonlyArray1<'py, u32>,
    same: PyReadonlyArray1<'py, u8>,
}

impl TreeArrays<'_> {
    fn nodes(&self) -> PyResult<TreeNodes<'_>> {
        Ok(TreeNodes { subtree_end: self.subtree_end.as_slice()?, same: self.same.as_slice()? })
    }
}

/// Probabilities of rows.
enum Probs<'py> {
    F32(PyReadonlyArray2<'py, f32>),
    F64(PyReadonlyArray2<'py, f64>),
}

impl<'py> FromPyObject<'_, 'py> for Probs<'py> {
    type Error = PyErr;

    fn extract(array: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(array) = array.cast::<PyArray2<f32>>() {
            Ok(Self::F32(array.try_readonly()?))
        } else if let Ok(array) = array.cast::<PyArray2<f64>>() {
            Ok(Self::F64(array.try_readonly()?))
        } else {
            Err(wrong_dtype())
        }
    }
}

fn wrong_dtype() -> PyErr {
    PyTypeError::new_err(
        "probabilities must be two-dimensional arrays of one dtype, float32 or float64",
    )
}

/// One side of a chunk: the attributes of Python's `HostSide`.
#[derive(FromPyObject)]
pub(crate) struct HostSide<'py> {
    token_ids: PyReadonlyArray1<'py, u32>,
    node_tokens: PyReadonlyArray1<'py, u32>,
    node_exact: PyReadonlyArray1<'py, u32>,
    suffixes: PyReadonlyArray1<'py, u32>,
    stops: PyReadonlyArray1<'py, i64>,
    probs: Probs<'py>,
    log_weight: PyReadonlyArray1<'py, f64>,
    token: PyReadonlyArray1<'py, i64>,
    is_nan: PyReadonlyArray1<'py, u8>,
    first_row: i64,
    own: PyReadonlyArray1<'py, i64>,
    source_offsets: PyReadonlyArray1<'py, i64>,
    source_row: PyReadonlyArray1<'py, i64>,
    source_start: PyReadonlyArray1<'py, i64>,
    source_end: PyReadonlyArray1<'py, i64>,
    source_exact: PyReadonlyArray1<'py, i64>,
    source_suffix: PyReadonlyArray1<'py, i64>,
    listed: Option<PyReadonlyArray2<'py, u8>>,
    unlisted: Option<PyReadonlyArray1<'py, f64>>,
}

impl HostSide<'_> {
    fn chunk<'a, T: Real + Element>(
        &'a self,
        side: Side,
        probs: &'a PyReadonlyArray2<'_, T>,
    ) -> PyResult<SideChunk<'a, T>> {
        Ok(SideChunk {
            side,
            tokens: TreeTokens {
                ids: self.token_ids.as_slice()?,
                node_tokens: self.node_tokens.as_slice()?,
                node_exact: self.node_exact.as_slice()?,
                suffixes: self.suffixes.as_slice()?,
                stops: self.stops.as_slice()?,
            },
            probs: probs.as_slice()?,
            columns: probs.shape()[1],
            log_weight: self.log_weight.as_slice()?,
            token: self.token.as_slice()?,
            is_nan: self.is_nan.as_slice()?,
            first_row: self.first_row,
            own: self.own.as_slice()?,
            source_offsets: self.source_offsets.as_slice()?,
            source_row: self.source_row.as_slice()?,
            source_start: self.source_start.as_slice()?,
            source_end: self.source_end.as_slice()?,
            source_exact: self.source_exact.as_slice()?,
            source_suffix: self.source_suffix.as_slice()?,
            lists: match (&self.listed, &self.unlisted) {
                (Some(listed), Some(unlisted)) => {
                    Some(Lists { listed: listed.as_slice()?, unlisted: unlisted.as_slice()? })
                }
                _ => None,
            },
        })
    }
}

enum AnyLeaves {
    F32(Leaves<f32>),
    F64(Leaves<f64>),
}

/// The leaves at the offsets of a chunk.
#[pyclass(frozen, module = "simct_align._native")]
pub(crate) struct TextLeaves {
    leaves: AnyLeaves,
}

#[pymethods]
impl TextLeaves {
    /// Finds the leaves; `tree` says whether nodes are opened everywhere.
    #[new]
    #[pyo3(signature = (nodes, teacher, student, *, epsilon, tree, n_threads))]
    fn new(
        py: Python<'_>,
        nodes: TreeArrays<'_>,
        teacher: HostSide<'_>,
        student: HostSide<'_>,
        epsilon: f64,
        tree: bool,
        n_threads: NonZeroUsize,
    ) -> PyResult<Self> {
        let options = LeafOptions { epsilon, tree, threads: Threads::Count(n_threads) };
        let nodes = nodes.nodes()?;
        let leaves = match (&teacher.probs, &student.probs) {
            (Probs::F32(of_teacher), Probs::F32(of_student)) => {
                let teacher = teacher.chunk(Side::Teacher, of_teacher)?;
                let student = student.chunk(Side::Student, of_student)?;
                py.detach(|| Leaves::find(nodes, [&teacher, &student], options)).map(AnyLeaves::F32)
            }
            (Probs::F64(of_teacher), Probs::F64(of_student)) => {
                let teacher = teacher.chunk(Side::Teacher, of_teacher)?;
                let student = student.chunk(Side::Student, of_student)?;
                py.detach(|| Leaves::find(nodes, [&teacher, &student], options)).map(AnyLeaves::F64)
            }
            _ => return Err(wrong_dtype()),
        };
        Ok(Self { leaves: leaves.map_err(to_py_err)? })
    }

    /// The offsets where nodes are opened, or the others, and the masses of their leaves:
    /// (offsets, teacher's masses, student's).
    fn group<'py>(&self, py: Python<'py>, deep: bool, floor: f64) -> PyResult<GroupArrays<'py>> {
        match &self.leaves {
            AnyLeaves::F32(leaves) => group_arrays(py, leaves.group(deep, floor)),
            AnyLeaves::F64(leaves) => group_arrays(py, leaves.group(deep, floor)),
        }
    }

    /// The figures of every offset, each an array: whether it counts; whether both sides have a
    /// row; whether nodes may be opened; whether a row holds NaN; the larger mass of tokens that
    /// end there, and of those that reach beyond; mass of control tokens, teacher's and
    /// student's; the student's largest leaf; whether the teacher's lists lack what the offset
    /// needs; probability that the teacher's row does not list.
    fn figures<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyArray1<f64>>> {
        Figure::ALL
            .into_iter()
            .map(|figure| match &self.leaves {
                AnyLeaves::F32(leaves) => PyArray1::from_iter(py, leaves.figures(figure)),
                AnyLeaves::F64(leaves) => PyArray1::from_iter(py, leaves.figures(figure)),
            })
            .collect()
    }

    /// Writes the derivative by the student's logits.
    fn gradient(
        &self,
        py: Python<'_>,
        nodes: TreeArrays<'_>,
        student: HostSide<'_>,
        gradient: GradientArrays<'_>,
        n_threads: NonZeroUsize,
    ) -> PyResult<()> {
        let (nodes, threads) = (nodes.nodes()?, Threads::Count(n_threads));
        match (&self.leaves, &student.probs) {
            (AnyLeaves::F32(leaves), Probs::F32(probs)) => {
                let student = student.chunk(Side::Student, probs)?;
                gradient.write(py, leaves, nodes, &student, threads)
            }
            (AnyLeaves::F64(leaves), Probs::F64(probs)) => {
                let student = student.chunk(Side::Student, probs)?;
                gradient.write(py, leaves, nodes, &student, threads)
            }
            _ => Err(wrong_dtype()),
        }
    }
}

/// What a gradient is made of: the attributes of Python's `HostGradient`.
#[derive(FromPyObject)]
pub(crate) struct GradientArrays<'py> {
    /// The derivatives by the logarithms of the masses in both groups.
    by_log_next_bytes: Bound<'py, PyAny>,
    by_log_tree: Bound<'py, PyAny>,
    /// A factor for every offset.
    weight: Bound<'py, PyAny>,
    /// Receives the gradient.
    out: Bound<'py, PyAny>,
}

impl GradientArrays<'_> {
    fn write<T: Real + Element>(
        &self,
        py: Python<'_>,
        leaves: &Leaves<T>,
        nodes: TreeNodes<'_>,
        student: &SideChunk<'_, T>,
        threads: Threads,
    ) -> PyResult<()> {
        let next_bytes: PyReadonlyArray2<'_, T> = self.by_log_next_bytes.extract()?;
        let tree: PyReadonlyArray2<'_, T> = self.by_log_tree.extract()?;
        let weight: PyReadonlyArray1<'_, T> = self.weight.extract()?;
        let mut out: PyReadwriteArray2<'_, T> = self.out.extract()?;
        let (by_log, weight) = ([next_bytes.as_slice()?, tree.as_slice()?], weight.as_slice()?);
        let out = out.as_slice_mut()?;
        py.detach(|| leaves.gradient(nodes, student, by_log, weight, out, threads))
            .map_err(to_py_err)
    }
}

type GroupArrays<'py> = (Bound<'py, PyArray1<i64>>, Bound<'py, PyAny>, Bound<'py, PyAny>);

fn group_arrays<T: Real + Element>(py: Python<'_>, group: Group<T>) -> PyResult<GroupArrays<'_>> {
    let shape = [group.offsets.len(), group.width];
    let offsets = group.offsets.iter().map(|&offset| (offset as u64).cast_signed());
    let offsets = PyArray1::from_iter(py, offsets);
    let [teacher, student] = group.masses.map(|masses| PyArray1::from_vec(py, masses));
    Ok((offsets, teacher.reshape(shape)?.into_any(), student.reshape(shape)?.into_any()))
}
