//! What the leaves of text events are found in: the tables of a pair, and one side's rows and sources
//! at a chunk of offsets.

use std::ops::{Add, AddAssign, Div, Mul, Range, Sub};

use crate::error::{Error, Result};
use crate::ids::Side;
use crate::text_lists::Lists;
use crate::text_tree::short;

/// A floating-point number: `f32` or `f64`.
pub trait Real:
    Copy
    + Default
    + Send
    + Sync
    + PartialOrd
    + Add<Output = Self>
    + AddAssign
    + Into<f64>
    + Mul<Output = Self>
    + Sub<Output = Self>
    + Div<Output = Self>
{
    /// The least share of a sum of 64 that is known to this type's digits as the difference of two
    /// sums of [`f64`].
    const LEAST_SHARE: f64;

    /// The nearest number of this type.
    fn of(value: f64) -> Self;
}

impl Real for f32 {
    // Each of the additions rounds by half of `f64::EPSILON` of the sum at most.
    const LEAST_SHARE: f64 = 64.0 * f64::EPSILON / f32::EPSILON as f64;

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
    fn of(value: f64) -> Self {
        value as Self
    }
}

impl Real for f64 {
    // No difference is as exact as a sum.
    const LEAST_SHARE: f64 = f64::INFINITY;

    #[inline]
    fn of(value: f64) -> Self {
        value
    }
}

/// The nodes of a joint tree, by the fields of [`TextTree`](crate::text_tree::TextTree).
#[derive(Clone, Copy, Debug)]
pub struct TreeNodes<'a> {
    /// One past the last node of the subtree.
    pub subtree_end: &'a [u32],
    /// 1 where both sides have the same strings below.
    pub same: &'a [u8],
}

impl TreeNodes<'_> {
    pub(crate) fn len(&self) -> usize {
        self.subtree_end.len()
    }

    #[inline]
    pub(crate) fn end(&self, node: usize) -> usize {
        self.subtree_end[node] as usize
    }
}

/// One side's tokens in the tree, by the fields of [`TreeSide`](crate::text_tree::TreeSide).
#[derive(Clone, Copy, Debug)]
pub struct TreeTokens<'a> {
    /// Position in token order -> id.
    pub ids: &'a [u32],
    /// Where the tokens of every node begin, and where those of the last one end.
    pub node_tokens: &'a [u32],
    /// How many tokens of a node, the first ones, are its string.
    pub node_exact: &'a [u32],
    /// What the tokens go on with: nodes, with the bit [`EXACT`](crate::text_tree::EXACT).
    pub suffixes: &'a [u32],
    /// The ids of the stops.
    pub stops: &'a [i64],
}

impl TreeTokens<'_> {
    /// The tokens attached to a run of nodes.
    #[inline]
    pub(crate) fn of_nodes(&self, nodes: Range<usize>) -> Range<usize> {
        self.node_tokens[nodes.start] as usize..self.node_tokens[nodes.end] as usize
    }
}

/// One side of a chunk of offsets: text rows, and the sources of the offsets.
#[derive(Clone, Copy, Debug)]
pub struct SideChunk<'a, T> {
    /// The side, for errors.
    pub side: Side,
    /// The side's tokens.
    pub tokens: TreeTokens<'a>,
    /// Probabilities of the chunk's rows, one row after the other.
    pub probs: &'a [T],
    /// How many probabilities a row has.
    pub columns: usize,
    /// The log-probability of all realized tokens before a row, from any row on.
    pub log_weight: &'a [f64],
    /// The realized token after a row, −1 for none.
    pub token: &'a [i64],
    /// 1 where a row holds NaN; its probabilities are 0.
    pub is_nan: &'a [u8],
    /// The text row of the first of these rows: the next fields count from the start of the index.
    pub first_row: i64,
    /// The text row at every offset, −1 for none.
    pub own: &'a [i64],
    /// Where the sources of every offset begin, and where those of the last one end.
    pub source_offsets: &'a [i64],
    /// The text row of every source.
    pub source_row: &'a [i64],
    /// The source's tokens: positions in token order.
    pub source_start: &'a [i64],
    /// One past the last of them.
    pub source_end: &'a [i64],
    /// How many of them, the first ones, end at the offset.
    pub source_exact: &'a [i64],
    /// Where the suffixes of the others begin.
    pub source_suffix: &'a [i64],
    /// What is listed of the rows; [`None`] where whole rows are known.
    pub lists: Option<Lists<'a>>,
}

/// A source whose numbers have been checked.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Among the rows of the chunk.
    pub(crate) row: usize,
    /// Tokens that end at the offset, and tokens that go on.
    pub(crate) ends: Range<usize>,
    pub(crate) goes_on: Range<usize>,
    /// Where the suffixes of those that go on begin.
    pub(crate) suffix: usize,
}

impl<'a, T: Real> SideChunk<'a, T> {
    /// How many offsets the chunk has.
    pub(crate) fn offsets(&self) -> usize {
        self.own.len()
    }

    pub(crate) fn rows(&self) -> usize {
        self.log_weight.len()
    }

    pub(crate) fn row(&self, row: usize) -> &'a [T] {
        &self.probs[row * self.columns..(row + 1) * self.columns]
    }

    /// Of every column, its token's position in token order, or one past the last position.
    pub(crate) fn places(&self) -> Vec<u32> {
        let ids = self.tokens.ids;
        let mut places = vec![short(ids.len()); self.columns];
        for (place, &id) in (0..).zip(ids) {
            places[id as usize] = place;
        }
        places
    }

    /// The row at an offset.
    #[inline]
    pub(crate) fn own_row(&self, offset: usize) -> Option<usize> {
        usize::try_from(self.own[offset] - self.first_row).ok().filter(|_| self.own[offset] >= 0)
    }

    /// The numbers of an offset's sources.
    pub(crate) fn sources_of(&self, offset: usize) -> Range<usize> {
        let before = |at: usize| whole(self.source_offsets[at] - self.source_offsets[0]);
        before(offset)..before(offset + 1)
    }

    pub(crate) fn source(&self, number: usize) -> Source {
        let start = whole(self.source_start[number]);
        let goes_on = start + whole(self.source_exact[number]);
        Source {
            row: whole(self.source_row[number] - self.first_row),
            ends: start..goes_on,
            goes_on: goes_on..whole(self.source_end[number]),
            suffix: whole(self.source_suffix[number]),
        }
    }

    /// The token of a source that the text takes up to its own row at an offset: it is in no mass.
    #[inline]
    pub(crate) fn realized(&self, offset: usize, source: &Source) -> Option<u32> {
        let follows = self.own_row(offset) == Some(source.row + 1);
        if follows { u32::try_from(self.token[source.row]).ok() } else { None }
    }

    /// Checks what the index of the batch says, so that one of another pair is an error. What the
    /// tables of the pair say is taken for granted.
    pub(crate) fn check(&self, nodes: TreeNodes<'_>) -> Result<()> {
        let (rows, offsets) = (self.rows(), self.offsets());
        let sources = self.source_row.len();
        let lengths = [
            self.source_start.len(),
            self.source_end.len(),
            self.source_exact.len(),
            self.source_suffix.len(),
        ];
        let in_rows = |row: i64| usize::try_from(row - self.first_row).is_ok_and(|row| row < rows);
        let source_fits = |number: usize| {
            let start = self.source_start[number];
            let goes_on = start + self.source_exact[number];
            let end = self.source_end[number];
            let suffix = self.source_suffix[number];
            in_rows(self.source_row[number])
                && 0 <= start
                && start <= goes_on
                && goes_on <= end
                && whole(end) <= self.tokens.ids.len()
                && suffix >= 0
                && whole(suffix) + whole(end - goes_on) <= self.tokens.suffixes.len()
        };
        let lists_fit = self.lists.is_none_or(|lists| {
            (lists.listed.len(), lists.unlisted.len()) == (self.probs.len(), rows)
        });
        let fits = self.probs.len() == rows * self.columns
            && lists_fit
            && (self.token.len(), self.is_nan.len()) == (rows, rows)
            && (self.tokens.node_tokens.len(), self.tokens.node_exact.len())
                == (nodes.len() + 1, nodes.len())
            && nodes.same.len() == nodes.len()
            && self.own.iter().all(|&row| row < 0 || in_rows(row))
            && self.source_offsets.len() == offsets + 1
            && self.source_offsets.is_sorted()
            && whole(self.source_offsets[offsets] - self.source_offsets[0]) == sources
            && lengths == [sources; 4]
            && (0..sources).all(source_fits);
        if fits { Ok(()) } else { Err(Error::ForeignTextEvents { side: self.side }) }
    }
}

/// A number that has been checked, or is 0 where it was negative.
#[inline]
pub(crate) fn whole(value: i64) -> usize {
    usize::try_from(value).unwrap_or(0)
}
