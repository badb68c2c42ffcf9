//! How far a side's logits are read.

use crate::error::{Error, Result};
use crate::ids::Side;

/// How far one side's logits are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reach {
    /// The first flat row.
    first: i64,
    /// One past the last flat row.
    end: i64,
    /// One past the last row, counted from the start of its row of the batch.
    width: i64,
}

impl Reach {
    pub(crate) const NOTHING: Self = Self { first: 0, end: 0, width: 0 };

    /// Notes that a flat row, which has a number in its row of the batch, and some rows after it
    /// are read.
    #[inline]
    pub(crate) fn read(&mut self, flat: i64, in_row: i64, further: i64) {
        self.first = self.first.min(flat);
        self.end = self.end.max(flat.saturating_add(further + 1));
        self.width = self.width.max(in_row + further + 1);
    }

    /// Notes all that another one has noted.
    pub(crate) fn add(&mut self, other: &Self) {
        self.first = self.first.min(other.first);
        self.end = self.end.max(other.end);
        self.width = self.width.max(other.width);
    }

    /// How many rows of logits there must be, if each row of the batch has its own.
    pub(crate) fn check(self, side: Side, stride: Option<i64>) -> Result<i64> {
        match stride {
            _ if self.first < 0 => Err(Error::RowBeforeLogits { side, row: self.first }),
            Some(stride) if self.width > stride => {
                Err(Error::StrideTooShort { side, stride, needed: self.width })
            }
            _ => Ok(self.end),
        }
    }
}
