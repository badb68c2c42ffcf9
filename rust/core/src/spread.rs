//! Sums over units: values of one side's tokens, carried over to the other side's tokens.
//!
//! Additive values, such as log-probabilities, belong to the tokens of one side. A unit is the same
//! text on both sides, so the sum of the values over the tokens of one side belongs to the text, and
//! the tokens of the other side can share it.
//!
//! ```text
//! text            1 2 3   +
//! teacher       | 123   | + |     values  -0.9      -0.2
//! student       | 1 | 23| + |     even    -0.45 -0.45  -0.2      last  0 -0.9  -0.2
//! ```

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::batch::chunks;
use crate::class::TRIMMED;
use crate::columns::{UnitColumns, check_lengths};
use crate::error::{Error, Result};
use crate::ids::{Side, TokenId, check_offsets, range_of_row};
use crate::text_chunk::Real;
use crate::threads::{Threads, in_parallel};

/// Which tokens of a unit share the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Every token has an equal part.
    Even,
    /// The first token has the sum, all others 0.
    First,
    /// The last token has the sum, all others 0.
    Last,
}

/// The options of [`spread_sums`].
#[derive(Clone, Copy, Debug)]
pub struct SpreadOptions {
    /// Which tokens of a unit share its sum.
    pub spread: Spread,
    /// The value of tokens without a sum.
    pub fill: f64,
    /// The number of threads. The result does not depend on it.
    pub threads: Threads,
}

/// The values of one side's tokens, and where the rows of both sides lie.
#[derive(Clone, Copy, Debug)]
pub struct TokenValues<'a, T> {
    /// Whose tokens have values.
    pub side: Side,
    /// One value for every token of all rows.
    pub values: &'a [T],
    /// The values of row `i` are `offsets[i]..offsets[i + 1]`.
    pub offsets: &'a [i64],
    /// The other side's tokens of row `i` are `other_offsets[i]..other_offsets[i + 1]`.
    pub other_offsets: &'a [i64],
    /// The number of the other side's tokens.
    pub other_tokens: usize,
}

/// Returns a value for every token of the other side: its part of the sum of its unit.
///
/// The sum is computed in [`f64`]. Tokens in no unit get the fill value, and so do the tokens of a
/// unit without tokens on the side of the values, and of a unit that lost its dummy prefix: the
/// texts of its sides differ by a space. A sum that is not a number makes every token of its unit
/// not a number.
///
/// # Complexity
///
/// O(tokens + units) time, divided over the threads; the memory of the result.
///
/// # Errors
///
/// Columns, values and offsets that do not fit together, and a unit outside of its row.
pub fn spread_sums<T: Real>(
    units: &UnitColumns<'_>,
    tokens: TokenValues<'_, T>,
    options: SpreadOptions,
) -> Result<Vec<T>> {
    check(units, &tokens)?;
    let mut out = vec![T::of(options.fill); tokens.other_tokens];
    let chunks = chunks(tokens.other_offsets);
    let mut rest = out.as_mut_slice();
    let parts: Vec<_> = chunks
        .into_iter()
        .map(|rows| {
            let first = range_of_row(tokens.other_offsets, rows.start).start;
            let end = tokens.other_offsets[rows.end].index();
            let (part, later) = std::mem::take(&mut rest).split_at_mut(end - first);
            rest = later;
            (rows, Mutex::new(part))
        })
        .collect();
    let job = Job { units, tokens, spread: options.spread };
    in_parallel(
        parts.len(),
        options.threads.count(),
        || (),
        |(), number| {
            let (rows, part) = &parts[number];
            job.write(rows.clone(), &mut part.lock().unwrap_or_else(PoisonError::into_inner))
        },
    )?
    .into_iter()
    .collect::<Result<()>>()?;
    drop(parts);
    Ok(out)
}

fn check<T>(units: &UnitColumns<'_>, tokens: &TokenValues<'_, T>) -> Result<()> {
    let (offsets, other_offsets) = match tokens.side {
        Side::Teacher => ("teacher_offsets", "student_offsets"),
        Side::Student => ("student_offsets", "teacher_offsets"),
    };
    check_offsets("row_offsets", units.row_offsets, units.kind.len())?;
    check_offsets(offsets, tokens.offsets, tokens.values.len())?;
    check_offsets(other_offsets, tokens.other_offsets, tokens.other_tokens)?;
    let rows = units.row_offsets.len();
    let count = units.kind.len();
    check_lengths([
        ("teacher_start", units.teacher_start.len(), count, "one entry for every unit"),
        ("teacher_end", units.teacher_end.len(), count, "one entry for every unit"),
        ("student_start", units.student_start.len(), count, "one entry for every unit"),
        ("student_end", units.student_end.len(), count, "one entry for every unit"),
        ("unit_class", units.unit_class.len(), count, "one entry for every unit"),
        (offsets, tokens.offsets.len(), rows, "as many rows as there are in the batch"),
        (other_offsets, tokens.other_offsets.len(), rows, "as many rows as there are in the batch"),
    ])
}

struct Job<'a, T> {
    units: &'a UnitColumns<'a>,
    tokens: TokenValues<'a, T>,
    spread: Spread,
}

impl<T: Real> Job<'_, T> {
    /// Writes the tokens of some rows; `out` begins with the first of them.
    fn write(&self, rows: Range<usize>, out: &mut [T]) -> Result<()> {
        let Some(first) = self.tokens.other_offsets.get(rows.start).map(|first| first.index())
        else {
            return Ok(());
        };
        let side = self.tokens.side;
        for row in rows {
            let values = &self.tokens.values[range_of_row(self.tokens.offsets, row)];
            let place = range_of_row(self.tokens.other_offsets, row);
            let out = &mut out[place.start - first..place.end - first];
            for unit in self.units.of_row(row) {
                if self.units.unit_class[unit] & TRIMMED != 0 {
                    continue;
                }
                let outside = |side| {
                    let (start, end) = self.positions(side, unit);
                    Error::UnitOutsideRow { row, unit, side, start, end }
                };
                let (start, end) = self.positions(side, unit);
                let values = values.get(start.index()..end.index()).ok_or_else(|| outside(side))?;
                let (start, end) = self.positions(side.other(), unit);
                let out =
                    out.get_mut(start.index()..end.index()).ok_or_else(|| outside(side.other()))?;
                spread(values, out, self.spread);
            }
        }
        Ok(())
    }

    fn positions(&self, side: Side, unit: usize) -> (i32, i32) {
        match side {
            Side::Teacher => (self.units.teacher_start[unit], self.units.teacher_end[unit]),
            Side::Student => (self.units.student_start[unit], self.units.student_end[unit]),
        }
    }
}

/// Spreads the sum of a unit's values over its tokens of the other side.
#[inline]
fn spread<T: Real>(values: &[T], out: &mut [T], spread: Spread) {
    match (values, &mut *out) {
        ([value], [only]) => {
            *only = *value;
            return;
        }
        ([], _) | (_, []) => return,
        _ => {}
    }
    let sum: f64 = values.iter().map(|&value| -> f64 { value.into() }).sum();
    let last = out.len() - 1;
    match spread {
        _ if sum.is_nan() => out.fill(T::of(sum)),
        #[expect(clippy::cast_precision_loss, reason = "a row has fewer than 2^31 tokens")]
        Spread::Even => out.fill(T::of(sum / out.len() as f64)),
        Spread::First | Spread::Last => {
            out.fill(T::of(0.0));
            out[if spread == Spread::First { 0 } else { last }] = T::of(sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::columns::UnitKind;
    use std::num::NonZeroUsize;

    const NAN: f64 = f64::NAN;
    const INF: f64 = f64::INFINITY;

    /// Units of rows, each (teacher start, teacher end, student start, student end, class).
    #[derive(Default)]
    struct Units {
        row_offsets: Vec<i64>,
        columns: [Vec<i32>; 4],
        kind: Vec<u8>,
        unit_class: Vec<u8>,
    }

    impl Units {
        fn new(rows: &[&[[i32; 5]]]) -> Self {
            let mut units = Self { row_offsets: vec![0], ..Self::default() };
            for row in rows {
                for unit in *row {
                    for (column, &place) in units.columns.iter_mut().zip(unit) {
                        column.push(place);
                    }
                    units.kind.push(UnitKind::Multi as u8);
                    units.unit_class.push(u8::try_from(unit[4]).unwrap());
                }
                units.row_offsets.push(i64::try_from(units.kind.len()).unwrap());
            }
            units
        }

        fn columns(&self) -> UnitColumns<'_> {
            let [teacher_start, teacher_end, student_start, student_end] = &self.columns;
            UnitColumns {
                row_offsets: &self.row_offsets,
                teacher_start,
                teacher_end,
                student_start,
                student_end,
                kind: &self.kind,
                unit_class: &self.unit_class,
            }
        }
    }

    fn options(spread: Spread) -> SpreadOptions {
        SpreadOptions { spread, fill: NAN, threads: Threads::Count(NonZeroUsize::MIN) }
    }

    fn values<'a>(values: &'a [f64], offsets: &'a [i64], other: &'a [i64]) -> TokenValues<'a, f64> {
        let other_tokens = other.last().map_or(0, |end| end.index());
        TokenValues { side: Side::Teacher, values, offsets, other_offsets: other, other_tokens }
    }

    #[track_caller]
    fn assert_same(found: &[f64], expected: &[f64]) {
        let same = |a: &f64, b: &f64| a == b || (a.is_nan() && b.is_nan());
        assert!(
            found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| same(a, b)),
            "{found:?} != {expected:?}"
        );
    }

    #[test]
    fn sums_are_spread_over_the_units_of_a_row() {
        // Two teacher tokens over three student tokens; a token in no unit; one over one.
        let units = Units::new(&[&[[0, 2, 0, 3, 0], [2, 3, 4, 5, 0]]]);
        let tokens = values(&[-1.0, -2.0, -4.0], &[0, 3], &[0, 5]);
        for (spread, expected) in [
            (Spread::Even, [-1.0, -1.0, -1.0, NAN, -4.0]),
            (Spread::First, [-3.0, 0.0, 0.0, NAN, -4.0]),
            (Spread::Last, [0.0, 0.0, -3.0, NAN, -4.0]),
        ] {
            assert_same(
                &spread_sums(&units.columns(), tokens, options(spread)).unwrap(),
                &expected,
            );
        }
        let back = TokenValues {
            side: Side::Student,
            values: &[-1.0, -2.0, -3.0, -9.0, -4.0],
            offsets: &[0, 5],
            other_offsets: &[0, 3],
            other_tokens: 3,
        };
        let found = spread_sums(&units.columns(), back, options(Spread::Even)).unwrap();
        assert_same(&found, &[-3.0, -3.0, -4.0]);
    }

    #[test]
    fn infinities_and_nan_stay_in_their_unit() {
        let units = Units::new(&[&[[0, 2, 0, 2, 0], [2, 4, 2, 4, 0], [4, 6, 4, 6, 0]]]);
        let tokens = values(&[-INF, -1.0, NAN, -1.0, -1.0, -1.0], &[0, 6], &[0, 6]);
        for (spread, expected) in [
            (Spread::Even, [-INF, -INF, NAN, NAN, -1.0, -1.0]),
            (Spread::First, [-INF, 0.0, NAN, NAN, -2.0, 0.0]),
            (Spread::Last, [0.0, -INF, NAN, NAN, 0.0, -2.0]),
        ] {
            assert_same(
                &spread_sums(&units.columns(), tokens, options(spread)).unwrap(),
                &expected,
            );
        }
    }

    #[test]
    fn units_without_tokens_on_a_side_and_trimmed_units_have_no_sum() {
        let trimmed = i32::from(TRIMMED);
        let units = Units::new(&[&[[0, 1, 0, 1, trimmed], [1, 1, 1, 2, 0], [1, 2, 2, 2, 0]]]);
        let tokens = values(&[-1.0, -2.0], &[0, 2], &[0, 2]);
        let found = spread_sums(&units.columns(), tokens, options(Spread::Even)).unwrap();
        assert_same(&found, &[NAN, NAN]);
    }

    #[test]
    fn threads_and_empty_rows_do_not_change_the_result() {
        let rows: Vec<Vec<[i32; 5]>> = (0..5000)
            .map(|row| (0..row % 7).map(|k| [2 * k, 2 * k + 2, k, k + 1, 0]).collect())
            .collect();
        let rows: Vec<&[[i32; 5]]> = rows.iter().map(Vec::as_slice).collect();
        let units = Units::new(&rows);
        let offsets: Vec<i64> = units.row_offsets.iter().map(|place| 2 * place).collect();
        let numbers: Vec<f64> =
            (0..offsets[5000]).map(|n| -f64::from(i32::try_from(n).unwrap())).collect();
        let tokens = values(&numbers, &offsets, &units.row_offsets);
        let one = spread_sums(&units.columns(), tokens, options(Spread::Even)).unwrap();
        let threads = Threads::Count(NonZeroUsize::new(3).unwrap());
        let three = SpreadOptions { threads, ..options(Spread::Even) };
        assert_eq!(one, spread_sums(&units.columns(), tokens, three).unwrap());
        let sums: Vec<f64> = numbers.chunks(2).map(|pair| pair[0] + pair[1]).collect();
        assert_eq!(one, sums);
    }

    #[test]
    fn single_precision_sums_are_computed_in_double() {
        let units = Units::new(&[&[[0, 3, 0, 1, 0]]]);
        let tokens = TokenValues {
            side: Side::Teacher,
            values: &[-16_777_216.0f32, -1.0, -1.0],
            offsets: &[0, 3],
            other_offsets: &[0, 1],
            other_tokens: 1,
        };
        let found = spread_sums(&units.columns(), tokens, options(Spread::Even)).unwrap();
        assert_eq!(found, [-16_777_218.0f32]);
    }

    #[test]
    fn a_unit_outside_of_its_row_is_an_error() {
        for (unit, side, start, end) in [
            ([0, 3, 0, 1, 0], Side::Teacher, 0, 3),
            ([0, 1, -1, 1, 0], Side::Student, -1, 1),
            ([2, 1, 0, 1, 0], Side::Teacher, 2, 1),
        ] {
            let units = Units::new(&[&[], &[unit]]);
            let tokens = values(&[-1.0, -2.0], &[0, 0, 2], &[0, 0, 1]);
            let error = Error::UnitOutsideRow { row: 1, unit: 0, side, start, end };
            let found = spread_sums(&units.columns(), tokens, options(Spread::Even));
            assert_eq!(found, Err(error));
        }
    }

    #[test]
    fn values_and_offsets_that_do_not_fit_are_errors() {
        let units = Units::new(&[&[[0, 1, 0, 1, 0]]]);
        for (offsets, other, named) in [
            (&[0, 1][..], &[0, 1][..], "teacher_offsets"),
            (&[0, 2], &[1, 1], "student_offsets"),
            (&[0, 2], &[0, 1, 1], "student_offsets"),
            (&[0, 2], &[], "student_offsets"),
        ] {
            let tokens = values(&[-1.0, -2.0], offsets, other);
            let error = spread_sums(&units.columns(), tokens, options(Spread::Even)).unwrap_err();
            assert!(error.to_string().starts_with(named), "{error}");
        }
    }
}
