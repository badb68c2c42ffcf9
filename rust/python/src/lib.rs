//! The Python module `simct_align._native`: conversions, error mapping, and nothing else.
//!
//! Every function borrows NumPy arrays, releases the GIL, calls the core, and moves the result
//! into new arrays. The Python layer above checks types, ranks and strides first, so that users
//! read about their arguments and not about these.

mod arrays;
mod continuation;
mod errors;
mod ids;
mod index;
mod pair;
mod retokenize;
mod served;
mod spread;
mod text_leaves;
mod text_tree;
mod vocabulary;

use mimalloc::MiMalloc;
use pyo3::prelude::*;

/// Results of large batches are hundreds of megabytes. The system's allocator returns such memory at
/// once and gets fresh pages for the next batch, which takes longer than the alignment; this one keeps
/// it for a second.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Needs no global interpreter lock: all classes are frozen, and what is made on first use is behind
/// locks.
#[pymodule(gil_used = false)]
mod _native {
    #[pymodule_export]
    use super::continuation::{ByteTrie, Spellings, make_spellings, on_path, one_sided_tokens};
    #[pymodule_export]
    use super::errors::AlignmentError;
    #[pymodule_export]
    use super::ids::{ids_from_lists, segment_numbers};
    #[pymodule_export]
    use super::index::{build_index, index_sections};
    #[pymodule_export]
    use super::pair::Pair;
    #[pymodule_export]
    use super::retokenize::{RetokenizePlan, RetokenizedIds, Retokenizer};
    #[pymodule_export]
    use super::served::{
        check_top_k, read_echo_logprobs, read_input_logprobs, read_prompt_logprobs,
    };
    #[pymodule_export]
    use super::spread::spread_sums;
    #[pymodule_export]
    use super::text_leaves::TextLeaves;
    #[pymodule_export]
    use super::text_tree::TextTree;
    #[pymodule_export]
    use super::vocabulary::{Vocabulary, character_groups};

    /// The largest number of tokens of a vocabulary.
    #[pymodule_export]
    const MAX_TOKENS: usize = simct_align::ids::MAX_TOKENS;

    /// The largest number of bytes of a side that an alignment skips at once.
    #[pymodule_export]
    const RESYNC_WINDOW: usize = simct_align::batch::RESYNC_WINDOW;

    #[pymodule_init]
    fn init(module: &pyo3::Bound<'_, pyo3::types::PyModule>) -> pyo3::PyResult<()> {
        let _ = module;
        simct_align::threads::set_interrupt(super::errors::interrupt_requested);
        Ok(())
    }

    #[pymodule_export]
    #[allow(non_upper_case_globals, reason = "Python names it so")]
    const __version__: &str = env!("CARGO_PKG_VERSION");
}
