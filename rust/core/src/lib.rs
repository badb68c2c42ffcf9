//! Byte-exact joint segmentation of two tokenizations of the same text.
//!
//! Two language models read the same text through different tokenizers. This crate finds, for
//! whole batches of token ids, the finest partition of the text into *units*: ranges that consist
//! of whole tokens of both tokenizations. Start with [`segment`], which contains the algorithm.
//! [`batch`] runs it over many rows in parallel. [`pair`] contains the tables that are computed
//! once for two vocabularies, and [`vocabulary`] the exact bytes that every token adds to a text.
//!
//! The crate does not depend on Python and contains no `unsafe` code.
//!
//! # Example
//!
//! ```
//! use simct_align::batch::{AlignOptions, BatchSide, align_batch};
//! use simct_align::ids::{RaggedIds, Side};
//! use simct_align::pair::{Pair, PairOptions};
//! use simct_align::vocabulary::{Token, Vocabulary};
//!
//! let teacher = Vocabulary::from_tokens([Token::normal("12"), Token::normal("+")])?;
//! let student = Vocabulary::from_tokens(["1", "2", "+"].map(Token::normal))?;
//! let pair = Pair::new(teacher.into(), student.into(), &PairOptions::default())?;
//!
//! // `12+` is cut as `12`,`+` by the teacher and `1`,`2`,`+` by the student.
//! let aligned = align_batch(
//!     &pair,
//!     BatchSide::whole_rows(RaggedIds::new(Side::Teacher, &[0i64, 1], &[0, 2])?),
//!     BatchSide::whole_rows(RaggedIds::new(Side::Student, &[0i64, 1, 2], &[0, 3])?),
//!     &AlignOptions::default(),
//! )?;
//! assert_eq!(aligned.segments.units.teacher_end, [1, 2]);
//! assert_eq!(aligned.segments.units.student_end, [2, 3]);
//! # Ok::<(), simct_align::error::Error>(())
//! ```

#![forbid(unsafe_code)]

pub mod batch;
pub mod character;
pub mod class;
pub mod columns;
pub mod continuation;
pub mod error;
pub mod ids;
pub mod index;
pub mod pair;
pub mod retokenize;
pub mod sections;
pub mod segment;
pub mod spelling;
pub mod spread;
pub mod storage;
pub mod text_chunk;
pub mod text_events;
pub mod text_leaves;
pub mod text_lists;
pub mod text_tree;
pub mod threads;
pub mod top_k;
pub mod trie;
pub mod vocabulary;

mod index_continuations;
mod index_side;
mod pair_columns;
mod path_trie;
mod reach;
mod resync;
mod retokenize_repair;
mod speller;
mod text_gradient;
mod text_masses;
mod text_sections;
mod text_tree_build;
mod text_walk;
mod track;

#[cfg(test)]
mod reference;
