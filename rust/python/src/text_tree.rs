//! The joint tree of both sides' tokens, as arrays.

use std::sync::Arc;

use numpy::PyArray1;
use pyo3::prelude::*;
use simct_align::ids::{NONE, Side};
use simct_align::pair::Pair as CorePair;
use simct_align::text_tree::TextTree as CoreTree;

use crate::arrays::widen;
use crate::errors::to_py_err;
use crate::pair::Pair;

type Longs<'py> = Bound<'py, PyArray1<i64>>;
type Ints<'py> = Bound<'py, PyArray1<i32>>;
type Bytes<'py> = Bound<'py, PyArray1<u8>>;

/// The joint tree of a pair.
#[pyclass(frozen, module = "simct_align._native")]
pub(crate) struct TextTree {
    pair: Arc<CorePair>,
}

impl TextTree {
    fn core(&self) -> PyResult<&CoreTree> {
        self.pair.text_tree().map_err(to_py_err)
    }
}

fn side(of_teacher: bool) -> Side {
    if of_teacher { Side::Teacher } else { Side::Student }
}

#[pymethods]
impl TextTree {
    /// Makes the tree unless the pair has it.
    #[new]
    fn new(py: Python<'_>, pair: &Pair) -> PyResult<Self> {
        py.detach(|| pair.core.text_tree().map(|_| ())).map_err(to_py_err)?;
        Ok(Self { pair: Arc::clone(&pair.core) })
    }

    /// The nodes: (parent, −1 for the root; depth; end of the subtree; whether both sides have the
    /// same strings below).
    fn node_table<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Longs<'py>, Longs<'py>, Longs<'py>, Bytes<'py>)> {
        let tree = self.core()?;
        let parent = |&node: &u32| if node == NONE { -1 } else { i64::from(node) };
        Ok((
            PyArray1::from_iter(py, tree.parents().iter().map(parent)),
            widen(py, tree.depths()),
            widen(py, tree.subtree_ends()),
            PyArray1::from_slice(py, tree.same()),
        ))
    }

    /// A side's tokens: (ids in token order, where those of every node begin, how many of them are
    /// exact).
    fn token_table<'py>(
        &self,
        py: Python<'py>,
        of_teacher: bool,
    ) -> PyResult<(Longs<'py>, Longs<'py>, Longs<'py>)> {
        let side = self.core()?.side(side(of_teacher));
        Ok((widen(py, side.ids()), widen(py, side.node_tokens()), widen(py, side.node_exact())))
    }

    /// A side's suffixes: (node, with the sign bit if exact; where those of every length begin).
    fn suffix_table<'py>(
        &self,
        py: Python<'py>,
        of_teacher: bool,
    ) -> PyResult<(Ints<'py>, Longs<'py>)> {
        let side = self.core()?.side(side(of_teacher));
        let suffixes = side.suffixes().iter().map(|suffix| suffix.cast_signed());
        let offsets = side.suffix_offsets().iter().map(|&offset| offset as u64);
        let offsets = PyArray1::from_iter(py, offsets.map(u64::cast_signed));
        Ok((PyArray1::from_iter(py, suffixes), offsets))
    }

    /// Where the suffix after `length` bytes of the first token from a position on lies.
    fn suffix_start(&self, of_teacher: bool, position: u32, length: usize) -> PyResult<usize> {
        Ok(self.core()?.side(side(of_teacher)).suffix_start(position, length))
    }
}
