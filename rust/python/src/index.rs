//! The tensors that a loss gathers with.

use std::num::NonZeroUsize;

use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use simct_align::ids::{RaggedIds, Side};
use simct_align::index::{Index, IndexOptions, IndexSide, build_index as build};
use simct_align::sections::{EntryCounts, SECTIONS, TextCounts};
use simct_align::threads::Threads;

use crate::arrays::{SideArrays, UnitArrays, with_both_ids};
use crate::continuation::path_options;
use crate::errors::to_py_err;
use crate::pair::Pair;

/// One side of a batch, and where its rows lie in the logits.
#[derive(FromPyObject)]
pub(crate) struct LogitRows<'py> {
    ids: SideArrays<'py>,
    starts: PyReadonlyArray1<'py, i64>,
    stride: Option<i64>,
    dummy_prefixes: PyReadonlyArray1<'py, i64>,
}

/// What an index holds besides its units, and how many threads find it: the attributes of Python's
/// `IndexContents`.
#[derive(FromPyObject)]
pub(crate) struct IndexContents {
    first_ids: bool,
    max_path: usize,
    text_events: bool,
    threads: Option<NonZeroUsize>,
}

/// The layout of an index: (name, name of a count, what comes on top of it, name of a group) of
/// every section, in order.
#[pyfunction]
pub(crate) fn index_sections() -> Vec<(&'static str, &'static str, usize, &'static str)> {
    SECTIONS
        .iter()
        .map(|section| (section.name, section.count.name(), section.extra, section.group.name()))
        .collect()
}

/// Makes the index of a batch: (packed sections, counts by name); with continuations if `max_path`
/// is not 0.
#[pyfunction]
pub(crate) fn build_index<'py>(
    py: Python<'py>,
    pair: &Pair,
    units: UnitArrays<'py>,
    sides: (LogitRows<'py>, LogitRows<'py>),
    contents: IndexContents,
) -> PyResult<(Bound<'py, PyArray1<i64>>, Bound<'py, PyDict>)> {
    let IndexContents { first_ids, max_path, text_events, threads } = contents;
    let continuations = (max_path > 0).then(|| path_options(max_path, threads));
    let text_events = text_events.then(|| threads.map_or(Threads::AllCores, Threads::Count));
    let options = IndexOptions { first_ids, continuations, text_events };
    let (units, (teacher, student)) = (units.columns()?, sides);
    let (teacher_offsets, student_offsets) =
        (teacher.ids.offsets.as_slice()?, student.ids.offsets.as_slice()?);
    let (teacher_starts, student_starts) = (teacher.starts.as_slice()?, student.starts.as_slice()?);
    let teacher_mask = teacher.ids.mask.as_ref().map(PyReadonlyArray1::as_slice).transpose()?;
    let student_mask = student.ids.mask.as_ref().map(PyReadonlyArray1::as_slice).transpose()?;
    let teacher_dummies = teacher.dummy_prefixes.as_slice()?;
    let student_dummies = student.dummy_prefixes.as_slice()?;
    // Packed logits have no stride to check, which Python writes as 0.
    let strides = [teacher.stride, student.stride].map(|stride| stride.filter(|&rows| rows != 0));
    let built = with_both_ids!(&teacher.ids.values, &student.ids.values, |teacher, student| py
        .detach(|| {
            let teacher = IndexSide {
                ids: RaggedIds::new(Side::Teacher, teacher, teacher_offsets)?,
                row_starts: teacher_starts,
                stride: strides[0],
                mask: teacher_mask,
                dummy_prefixes: teacher_dummies,
            };
            let student = IndexSide {
                ids: RaggedIds::new(Side::Student, student, student_offsets)?,
                row_starts: student_starts,
                stride: strides[1],
                mask: student_mask,
                dummy_prefixes: student_dummies,
            };
            build(&pair.core, &units, teacher, student, &options)
        }));
    let Index { packed, counts, teacher_rows_needed, student_rows_needed } =
        built.map_err(to_py_err)?;
    let names = PyDict::new(py);
    names.set_item("n_shared", counts.shared)?;
    names.set_item("n_multi", counts.multi)?;
    names.set_item("n_teacher_steps", counts.teacher_steps)?;
    names.set_item("n_student_steps", counts.student_steps)?;
    names.set_item("student_tokens_shared", counts.student_tokens_shared)?;
    names.set_item("dropped_no_prefix", counts.dropped_no_prefix)?;
    names.set_item("dropped_dummy_prefix", counts.dropped_dummy_prefix)?;
    names.set_item("teacher_rows_needed", teacher_rows_needed)?;
    names.set_item("student_rows_needed", student_rows_needed)?;
    for (side, counts) in [("teacher", counts.teacher), ("student", counts.student)] {
        let EntryCounts { entries, leaves, cut_off } = counts;
        names.set_item(format!("n_{side}_entries"), entries)?;
        names.set_item(format!("n_{side}_leaves"), leaves)?;
        names.set_item(format!("{side}_cut_off"), cut_off)?;
    }
    let TextCounts {
        offsets,
        stretches,
        student_tokens,
        units_without_prefix,
        units_left_out,
        teacher,
        student,
    } = counts.text;
    names.set_item("n_text_offsets", offsets)?;
    names.set_item("n_text_stretches", stretches)?;
    names.set_item("text_student_tokens", student_tokens)?;
    names.set_item("text_units_without_prefix", units_without_prefix)?;
    names.set_item("text_units_left_out", units_left_out)?;
    for (side, counts) in [("teacher", teacher), ("student", student)] {
        names.set_item(format!("n_{side}_text_rows"), counts.rows)?;
        names.set_item(format!("n_{side}_sources"), counts.sources)?;
    }
    Ok((packed.into_pyarray(py), names))
}
