//! `Vocabulary`: token id -> bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use numpy::{PyArray1, PyReadonlyArray1};
use pyo3::exceptions::PyIndexError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use simct_align::vocabulary::{Settings, Vocabulary as CoreVocabulary};

use crate::arrays::widen;
use crate::errors::to_py_err;

/// The group of every code point, and the names of the groups.
#[pyfunction]
pub(crate) fn character_groups(py: Python<'_>) -> (Bound<'_, PyArray1<u8>>, Vec<&'static str>) {
    let groups = py.detach(simct_align::character::character_groups);
    (PyArray1::from_vec(py, groups.group), groups.names)
}

/// Token id -> token bytes and kind.
#[pyclass(frozen, module = "simct_align._native")]
pub(crate) struct Vocabulary {
    pub(crate) core: Arc<CoreVocabulary>,
}

#[pymethods]
impl Vocabulary {
    #[new]
    #[pyo3(signature = (token_bytes, offsets, kinds, *, dummy_prefix, special_names, stops))]
    fn new(
        py: Python<'_>,
        token_bytes: &[u8],
        offsets: PyReadonlyArray1<'_, i64>,
        kinds: PyReadonlyArray1<'_, u8>,
        dummy_prefix: bool,
        special_names: BTreeMap<u32, String>,
        stops: Vec<(u32, Vec<String>)>,
    ) -> PyResult<Self> {
        let (offsets, kinds) = (offsets.as_slice()?, kinds.as_slice()?);
        let settings = Settings {
            dummy_prefix,
            special_names,
            stops: stops.iter().map(|&(id, _)| id).collect(),
            stop_sources: stops.into_iter().filter(|(_, sources)| !sources.is_empty()).collect(),
        };
        let core = py
            .detach(|| CoreVocabulary::new(token_bytes.to_vec(), offsets, kinds, settings))
            .map_err(to_py_err)?;
        Ok(Self { core: Arc::new(core) })
    }

    fn __len__(&self) -> usize {
        self.core.len()
    }

    fn token_bytes<'py>(&self, py: Python<'py>, token_id: u32) -> PyResult<Bound<'py, PyBytes>> {
        if token_id as usize >= self.core.len() {
            return Err(PyIndexError::new_err(format!(
                "token id {token_id} is not in the vocabulary of {} tokens",
                self.core.len()
            )));
        }
        Ok(PyBytes::new(py, self.core.token_bytes(token_id)))
    }

    /// The bytes of all tokens of the vocabulary, and where those of every token begin.
    fn byte_table<'py>(
        &self,
        py: Python<'py>,
    ) -> (Bound<'py, PyArray1<u8>>, Bound<'py, PyArray1<i64>>) {
        let (bytes, offsets) = self.core.byte_table();
        (PyArray1::from_slice(py, bytes), widen(py, offsets))
    }

    /// The bytes of all ids, one after another; `IndexError` for an id without a token.
    fn decode_bytes<'py>(
        &self,
        py: Python<'py>,
        ids: PyReadonlyArray1<'py, i64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let ids = ids.as_slice()?;
        let text = py.detach(|| self.core.decode(ids)).map_err(|position| {
            PyIndexError::new_err(format!(
                "position {position}: id {} is not in the vocabulary of {} tokens",
                ids[position],
                self.core.len()
            ))
        })?;
        Ok(PyBytes::new(py, &text))
    }

    fn find(&self, token_bytes: &[u8]) -> Option<u32> {
        self.core.find(token_bytes)
    }

    #[getter]
    fn kinds<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u8>> {
        PyArray1::from_iter(py, self.core.kinds().iter().map(|&kind| kind as u8))
    }

    /// Whether the first character of every token's text is white space.
    #[getter]
    fn begins_with_whitespace<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u8>> {
        let core = &self.core;
        PyArray1::from_iter(py, core.ids().map(|id| u8::from(core.begins_with_whitespace(id))))
    }

    #[getter]
    fn canonical_ids<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        widen(py, self.core.canonical_ids())
    }

    #[getter]
    fn digest<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.core.digest())
    }

    #[getter]
    fn dummy_prefix(&self) -> bool {
        self.core.settings().dummy_prefix
    }

    #[getter]
    fn special_names(&self) -> BTreeMap<u32, String> {
        self.core.settings().special_names.clone()
    }

    #[getter]
    fn stop_ids(&self) -> Vec<u32> {
        self.core.settings().stops.clone()
    }

    #[getter]
    fn stop_sources(&self) -> BTreeMap<u32, Vec<String>> {
        self.core.settings().stop_sources.clone()
    }
}
