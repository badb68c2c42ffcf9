//! Token ids, sides and rows of ids, which all other files use.

use std::fmt;
use std::ops::Range;

/// Which of the two models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The model whose distribution is the target.
    Teacher,
    /// The model that is trained.
    Student,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Side::Teacher => "teacher",
            Side::Student => "student",
        })
    }
}

impl Side {
    /// The other side.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Teacher => Self::Student,
            Self::Student => Self::Teacher,
        }
    }
}

/// The largest number of tokens of a vocabulary: 2^24 - 1, so that an id and the eight class bits
/// of its text share one 32-bit table entry.
pub const MAX_TOKENS: usize = (1 << 24) - 1;

/// The value for "none" in tables of ids and columns.
pub const NONE: u32 = u32::MAX;

/// A token id in one of the integer types of the input.
pub trait TokenId: Copy + Send + Sync {
    /// The id as an index; one past every vocabulary for a negative id.
    fn index(self) -> usize;
    /// The id for an error message.
    fn value(self) -> i64;
}

impl TokenId for i32 {
    #[inline]
    fn index(self) -> usize {
        usize::try_from(self).unwrap_or(usize::MAX)
    }
    fn value(self) -> i64 {
        i64::from(self)
    }
}

impl TokenId for u32 {
    #[inline]
    fn index(self) -> usize {
        self as usize
    }
    fn value(self) -> i64 {
        i64::from(self)
    }
}

impl TokenId for i64 {
    #[inline]
    fn index(self) -> usize {
        usize::try_from(self).unwrap_or(usize::MAX)
    }
    fn value(self) -> i64 {
        self
    }
}

/// Rows of ids: row `i` is `values[offsets[i]..offsets[i + 1]]`.
#[derive(Clone, Copy, Debug)]
pub struct RaggedIds<'a, I> {
    values: &'a [I],
    offsets: &'a [i64],
}

impl<'a, I> RaggedIds<'a, I> {
    /// Checks the offsets: they start at 0, never decrease, and end at the number of values. The
    /// side is for the error message.
    ///
    /// # Errors
    ///
    /// The first offset that is wrong.
    pub fn new(side: Side, values: &'a [I], offsets: &'a [i64]) -> Result<Self, BadOffsets> {
        let name = match side {
            Side::Teacher => "teacher_ids",
            Side::Student => "student_ids",
        };
        Self::named(name, values, offsets)
    }

    /// The same as [`RaggedIds::new`], with a name for the error message.
    pub(crate) fn named(
        name: &'static str,
        values: &'a [I],
        offsets: &'a [i64],
    ) -> Result<Self, BadOffsets> {
        check_offsets(name, offsets, values.len())?;
        Ok(Self { values, offsets })
    }

    /// The ids of all rows.
    #[must_use]
    pub fn values(&self) -> &'a [I] {
        self.values
    }

    /// The start of every row in the values, then the end.
    #[must_use]
    pub fn offsets(&self) -> &'a [i64] {
        self.offsets
    }

    /// The ids of a row.
    #[must_use]
    pub fn row(&self, row: usize) -> &'a [I] {
        &self.values[self.range(row)]
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Where a row lies in the values.
    pub(crate) fn range(&self, row: usize) -> Range<usize> {
        range_of_row(self.offsets, row)
    }
}

/// The range of a row in the values, for offsets that [`check_offsets`] has checked.
pub(crate) fn range_of_row(offsets: &[i64], row: usize) -> Range<usize> {
    // So no offset is negative.
    let at = |index: usize| usize::try_from(offsets[index]).unwrap_or(0);
    at(row)..at(row + 1)
}

/// Offsets that do not fit the values of ragged data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOffsets {
    /// No offset at all.
    #[error("{name} has 0 entries, expected 1: offsets hold one entry more than there are rows")]
    Empty {
        /// The argument.
        name: &'static str,
    },
    /// A wrong offset.
    #[error(
        "{name}: offsets must start at 0, never fall and end at the number of values \
         ({values}); found {found} at index {index}"
    )]
    Wrong {
        /// The argument.
        name: &'static str,
        /// Index of the first wrong offset.
        index: usize,
        /// Its value.
        found: i64,
        /// The number of values.
        values: usize,
    },
}

/// Checks that offsets start at 0, never decrease and end at `values`.
pub(crate) fn check_offsets(
    name: &'static str,
    offsets: &[i64],
    values: usize,
) -> Result<(), BadOffsets> {
    let end = i64::try_from(values).unwrap_or(i64::MAX);
    let wrong = |index: usize| BadOffsets::Wrong { name, index, found: offsets[index], values };
    match offsets {
        [] => Err(BadOffsets::Empty { name }),
        [first, ..] if *first != 0 => Err(wrong(0)),
        [.., last] if *last != end => {
            // An earlier decrease is the more likely cause, and the better place to name.
            let fall = offsets.windows(2).position(|pair| pair[1] < pair[0]);
            Err(wrong(fall.map_or(offsets.len() - 1, |index| index + 1)))
        }
        _ => match offsets.windows(2).position(|pair| pair[1] < pair[0]) {
            Some(index) => Err(wrong(index + 1)),
            None => Ok(()),
        },
    }
}
