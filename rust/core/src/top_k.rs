//! Lists of the likeliest tokens, as a server returns them.

use crate::columns::check_lengths;
use crate::error::{Error, Result};
use crate::ids::{TokenId, check_offsets, range_of_row};
use crate::text_chunk::Real;

/// By how much rounding may lift a log-probability above 0.
pub const LOGPROB_ROUNDING: f64 = 1e-3;

/// Whether a number can be a log-probability: not NaN, and at most 0 but for rounding.
#[must_use]
pub fn is_logprob(value: f64) -> bool {
    value <= LOGPROB_ROUNDING
}

/// The lists of some positions: list `i` is `offsets[i]..offsets[i + 1]`.
#[derive(Clone, Copy, Debug)]
pub struct TopK<'a, I, T> {
    /// The ids of all lists.
    pub ids: &'a [I],
    /// Their log-probabilities.
    pub logprobs: &'a [T],
    /// Where every list begins, then the end.
    pub offsets: &'a [i64],
}

impl<I: TokenId, T: Real> TopK<'_, I, T> {
    /// Checks that every id is below `vocab_size`, that no list has an id twice, and that all
    /// values are log-probabilities.
    ///
    /// `row_offsets` divides the lists into rows, for the message: row `i` has the lists
    /// `row_offsets[i]..row_offsets[i + 1]`. Without it, the message counts all lists.
    ///
    /// # Complexity
    ///
    /// O(entries × log of the longest list) time.
    ///
    /// # Errors
    ///
    /// Arrays that do not fit together, and the first entry that is wrong.
    pub fn check(&self, vocab_size: usize, row_offsets: Option<&[i64]>) -> Result<()> {
        let why = "one for every id";
        check_lengths([("logprobs", self.logprobs.len(), self.ids.len(), why)])?;
        check_offsets("offsets", self.offsets, self.ids.len())?;
        if let Some(rows) = row_offsets {
            check_offsets("row_offsets", rows, self.offsets.len() - 1)?;
        }
        let mut sorted = Vec::new();
        for list in 0..self.offsets.len() - 1 {
            let entries = range_of_row(self.offsets, list);
            let (ids, logprobs) = (&self.ids[entries.clone()], &self.logprobs[entries]);
            let place = || place(list, row_offsets);
            for (id, &logprob) in ids.iter().zip(logprobs) {
                if id.index() >= vocab_size {
                    return Err(Error::ListedId { place: place(), id: id.value(), vocab_size });
                }
                let logprob: f64 = logprob.into();
                if !is_logprob(logprob) {
                    let found = logprob.to_string();
                    return Err(Error::NotALogprob { place: place(), id: id.value(), found });
                }
            }
            sorted.clear();
            sorted.extend(ids.iter().map(|id| id.value()));
            sorted.sort_unstable();
            if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
                return Err(Error::ListedTwice { place: place(), id: pair[0] });
            }
        }
        Ok(())
    }
}

fn place(list: usize, row_offsets: Option<&[i64]>) -> String {
    let Some(rows) = row_offsets else {
        return format!("position {list}");
    };
    let row = rows.partition_point(|offset| offset.index() <= list) - 1;
    format!("row {row}, position {}", list - rows[row].index())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ids: &[i32], logprobs: &[f32], rows: Option<&[i64]>) -> Result<()> {
        TopK { ids, logprobs, offsets: &[0, 2, 2, 4] }.check(10, rows)
    }

    #[test]
    fn lists_of_different_positions_may_repeat_an_id() {
        assert_eq!(check(&[1, 2, 2, 1], &[-1.0, f32::NEG_INFINITY, 0.0, 0.0005], None), Ok(()));
    }

    #[test]
    fn the_first_wrong_entry_is_named() {
        let good = [-1.0, -2.0, -1.0, -2.0];
        let rows = Some(&[0, 0, 1, 3][..]);
        for (ids, logprobs, rows, message) in [
            ([1, 2, 3, 10], good, None, "position 2: id 10 is not in a vocabulary of 10 tokens"),
            ([1, -2, 3, 4], good, None, "position 0: id -2 is not in a vocabulary of 10 tokens"),
            ([1, 2, 3, 3], good, rows, "row 2, position 1: id 3 is in the list twice"),
            ([1, 1, 3, 4], good, rows, "row 1, position 0: id 1 is in the list twice"),
            (
                [1, 2, 3, 4],
                [-1.0, f32::NAN, -1.0, -2.0],
                None,
                "position 0: the log-probability of id 2 is NaN, expected at most 0",
            ),
            (
                [1, 2, 3, 4],
                [-1.0, -1.0, -1.0, 0.5],
                rows,
                "row 2, position 1: the log-probability of id 4 is 0.5, expected at most 0",
            ),
        ] {
            assert_eq!(check(&ids, &logprobs, rows).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn arrays_that_do_not_fit_are_errors() {
        let short = TopK { ids: &[1i64, 2], logprobs: &[-1.0f64], offsets: &[0, 2] };
        assert!(short.check(10, None).unwrap_err().to_string().starts_with("logprobs has 1"));
        let open = TopK { ids: &[1i64, 2], logprobs: &[-1.0f64; 2], offsets: &[0, 1] };
        assert!(open.check(10, None).unwrap_err().to_string().starts_with("offsets: "));
        let rows = check(&[1, 2, 3, 4], &[-1.0; 4], Some(&[0, 2])).unwrap_err();
        assert!(rows.to_string().starts_with("row_offsets: "));
    }
}
