//! Alignment of many rows in parallel, into columns that are contiguous over the whole batch.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::columns::Segments;
use crate::error::{Error, Result, reserve};
use crate::ids::{RaggedIds, Side, TokenId};
use crate::pair::Pair;
pub use crate::resync::RESYNC_WINDOW;
use crate::segment::{MismatchPolicy, Row, align_region};
use crate::threads::{self, Stop, Threads};

/// The approximate number of student tokens that a worker takes at once: their columns stay in its
/// second-level cache until they are copied to their place.
const CHUNK_TOKENS: usize = 8 * 1024;

/// One side of a batch: its ids, and which positions take part.
#[derive(Clone, Copy, Debug)]
pub struct BatchSide<'a, I> {
    ids: RaggedIds<'a, I>,
    mask: Option<&'a [u8]>,
}

impl<'a, I: TokenId> BatchSide<'a, I> {
    /// Every position takes part: each row is one region.
    #[must_use]
    pub fn whole_rows(ids: RaggedIds<'a, I>) -> Self {
        Self { ids, mask: None }
    }

    /// Positions with a mask other than 0 take part: each contiguous run in a row is a region.
    ///
    /// # Errors
    ///
    /// A mask that is not as long as the values.
    pub fn masked(ids: RaggedIds<'a, I>, mask: &'a [u8]) -> Result<Self> {
        if mask.len() != ids.values().len() {
            return Err(Error::LengthMismatch {
                name: "mask",
                found: mask.len(),
                expected: ids.values().len(),
                why: "one entry for every id",
            });
        }
        Ok(Self { ids, mask: Some(mask) })
    }

    /// The regions of a row, as positions in it, into `regions`.
    fn regions(&self, row: usize, regions: &mut Vec<Range<usize>>) {
        regions.clear();
        let range = self.ids.range(row);
        let Some(mask) = self.mask else {
            regions.push(0..range.len());
            return;
        };
        let mask = &mask[range];
        let mut at = 0;
        while let Some(skipped) = mask[at..].iter().position(|&taken| taken != 0) {
            let start = at + skipped;
            let run = mask[start..].iter().position(|&taken| taken == 0);
            at = run.map_or(mask.len(), |length| start + length);
            regions.push(start..at);
        }
    }

    fn check_row_lengths(&self, side: Side) -> Result<()> {
        let rows = 0..self.ids.rows();
        match rows.map(|row| (row, self.ids.range(row).len())).find(|&(_, n)| n > MAX_ROW) {
            Some((row, tokens)) => Err(Error::RowTooLong { row, side, tokens }),
            None => Ok(()),
        }
    }
}

/// Positions are 32-bit integers.
const MAX_ROW: usize = i32::MAX as usize;

/// The options of an alignment.
#[derive(Clone, Copy, Debug)]
pub struct AlignOptions {
    /// The reaction to a difference of the texts; `resync_bytes` may be 1 to 4,096.
    pub mismatch: MismatchPolicy,
    /// The number of threads. The result does not depend on it.
    pub threads: Threads,
}

impl Default for AlignOptions {
    fn default() -> Self {
        Self {
            mismatch: MismatchPolicy { fail: false, resync_bytes: 8 },
            threads: Threads::AllCores,
        }
    }
}

/// The result of the alignment of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlignedRows {
    /// Units and unmatched spans of all rows.
    pub segments: Segments,
    /// The units of row `i` are `unit_offsets[i]..unit_offsets[i + 1]`.
    pub unit_offsets: Vec<i64>,
    /// The unmatched spans of row `i` are `unmatched_offsets[i]..unmatched_offsets[i + 1]`.
    pub unmatched_offsets: Vec<i64>,
}

impl AlignedRows {
    fn empty() -> Self {
        Self { segments: Segments::default(), unit_offsets: vec![0], unmatched_offsets: vec![0] }
    }

    fn with_room(rows: usize, units: usize) -> Result<Self> {
        let mut aligned = Self::empty();
        aligned.segments.reserve_units(units)?;
        reserve("offsets of rows", &mut aligned.unit_offsets, rows)?;
        reserve("offsets of rows", &mut aligned.unmatched_offsets, rows)?;
        Ok(aligned)
    }

    fn clear(&mut self) {
        self.segments.clear();
        self.unit_offsets.truncate(1);
        self.unmatched_offsets.truncate(1);
    }

    fn end_row(&mut self) {
        let count = |length: usize| i64::try_from(length).unwrap_or(i64::MAX);
        self.unit_offsets.push(count(self.segments.units.len()));
        self.unmatched_offsets.push(count(self.segments.unmatched.len()));
    }

    fn append_from(&mut self, other: &Self) {
        self.segments.append_from(&other.segments);
        for (ours, theirs) in [
            (&mut self.unit_offsets, &other.unit_offsets),
            (&mut self.unmatched_offsets, &other.unmatched_offsets),
        ] {
            let base = ours.last().copied().unwrap_or(0);
            ours.extend(theirs.iter().skip(1).map(|offset| base + offset));
        }
    }
}

/// Aligns every region of every row.
///
/// # Complexity
///
/// That of [`align_region`], divided over the threads; 18 bytes of memory per unit, reserved for
/// the smaller number of tokens of either side, and a cache-sized buffer per thread.
///
/// # Errors
///
/// Sides with different numbers of rows, or of regions in a row; an id that is not in its
/// vocabulary; an option out of its range. If several rows are wrong, the error names the first.
pub fn align_batch<T: TokenId, S: TokenId>(
    pair: &Pair,
    teacher: BatchSide<'_, T>,
    student: BatchSide<'_, S>,
    options: &AlignOptions,
) -> Result<AlignedRows> {
    let rows = teacher.ids.rows();
    if rows != student.ids.rows() {
        return Err(Error::RowCount { teacher: rows, student: student.ids.rows() });
    }
    if !(1..=RESYNC_WINDOW).contains(&options.mismatch.resync_bytes) {
        return Err(Error::BadOption {
            name: "resync_bytes",
            found: options.mismatch.resync_bytes,
            expected: "1 to 4,096",
        });
    }
    teacher.check_row_lengths(Side::Teacher)?;
    student.check_row_lengths(Side::Student)?;

    let job = Job { pair, teacher, student, policy: options.mismatch };
    let chunks = chunks(student.ids.offsets());
    let units = teacher.ids.values().len().min(student.ids.values().len());
    let mut aligned = AlignedRows::with_room(rows, units)?;
    let workers = options.threads.count().min(chunks.len());
    if workers <= 1 {
        let stop = Stop::new();
        for rows in chunks {
            stop.check()?;
            job.align_rows(rows, &mut aligned)?;
        }
        return Ok(aligned);
    }
    let queue = InOrder::new(chunks.len(), aligned);
    threads::run(workers, |stop| {
        while let Some((ticket, mut chunk)) = queue.take(chunks.len()) {
            if stop.requested() {
                return;
            }
            let outcome = job.align_rows(chunks[ticket].clone(), &mut chunk);
            queue.deliver(ticket, outcome.map(|()| chunk), stop);
        }
    })?;
    queue.finish()
}

/// Returns, for every position of a dense batch of `width` columns, row after row, the number of
/// the segment of its row that covers the position, or −1. Segment `k` covers `start[k]..end[k]` of
/// its row, and the segments of row `i` are `row_offsets[i]..row_offsets[i + 1]`.
///
/// # Complexity
///
/// O(rows × width) time and memory.
///
/// # Errors
///
/// Offsets that do not fit, and a segment that does not fit the width.
pub fn segment_numbers(
    row_offsets: &[i64],
    start: &[i32],
    end: &[i32],
    width: usize,
) -> Result<Vec<i64>> {
    let segments = RaggedIds::named("row_offsets", start, row_offsets)?;
    if end.len() != start.len() {
        return Err(Error::LengthMismatch {
            name: "end",
            found: end.len(),
            expected: start.len(),
            why: "one entry for every start",
        });
    }
    let cells = segments.rows().saturating_mul(width);
    let mut numbers = Vec::new();
    reserve("numbers of segments", &mut numbers, cells)?;
    numbers.resize(cells, -1);
    for row in 0..segments.rows() {
        let cells = &mut numbers[row * width..][..width];
        for (number, segment) in (0i64..).zip(segments.range(row)) {
            let covered = start[segment].index()..end[segment].index();
            let found = end[segment].index();
            let cells = cells.get_mut(covered).ok_or(Error::BadOption {
                name: "end of a segment",
                found,
                expected: "at most the width",
            })?;
            cells.fill(number);
        }
    }
    Ok(numbers)
}

#[derive(Clone, Copy)]
struct Job<'a, T, S> {
    pair: &'a Pair,
    teacher: BatchSide<'a, T>,
    student: BatchSide<'a, S>,
    policy: MismatchPolicy,
}

impl<T: TokenId, S: TokenId> Job<'_, T, S> {
    fn align_rows(&self, rows: Range<usize>, out: &mut AlignedRows) -> Result<()> {
        let (mut teacher_regions, mut student_regions) = (Vec::new(), Vec::new());
        for number in rows {
            self.teacher.regions(number, &mut teacher_regions);
            self.student.regions(number, &mut student_regions);
            if teacher_regions.len() != student_regions.len() {
                return Err(Error::RegionCount {
                    row: number,
                    teacher: teacher_regions.len(),
                    student: student_regions.len(),
                });
            }
            let (teacher, student) = (self.teacher.ids.row(number), self.student.ids.row(number));
            let row = Row { number, teacher, student };
            for (teacher, student) in teacher_regions.iter().zip(&student_regions) {
                let (teacher, student) = (teacher.clone(), student.clone());
                align_region(self.pair, row, teacher, student, self.policy, &mut out.segments)?;
            }
            out.end_row();
        }
        Ok(())
    }
}

/// Rows in runs of about [`CHUNK_TOKENS`] tokens.
pub(crate) fn chunks(offsets: &[i64]) -> Vec<Range<usize>> {
    let chunk_tokens = i64::try_from(CHUNK_TOKENS).unwrap_or(i64::MAX);
    let (mut chunks, mut start) = (Vec::new(), 0);
    for end in 1..offsets.len() {
        if offsets[end] - offsets[start] >= chunk_tokens || end + 1 == offsets.len() {
            chunks.push(start..end);
            start = end;
        }
    }
    chunks
}

/// Hands out chunks in order, and joins their results in that order.
///
/// A worker does not wait for the chunks before its own. It stores its result and takes the next
/// chunk; one worker at a time appends the results that are next in order. (A condition variable,
/// on which workers wait for their turn, cost two threads 4 to 6 % on a batch of 245,000 tokens:
/// waking up a thread takes longer than a chunk.)
struct InOrder {
    next: AtomicUsize,
    state: Mutex<State>,
}

struct State {
    /// The results that have not been appended yet, by chunk.
    made: Vec<Option<Result<AlignedRows>>>,
    appended: usize,
    /// Everything that has been appended; `None` while a worker appends.
    whole: Option<Result<AlignedRows>>,
    /// Buffers to reuse, which may still be in a cache.
    spare: Vec<AlignedRows>,
}

/// Buffers of earlier batches, so that threads do not touch fresh pages for every batch. It saves
/// two threads 5 % on a batch of 245,000 tokens.
static SPARE: Mutex<Vec<AlignedRows>> = Mutex::new(Vec::new());

/// The largest number of buffers that are kept, and the largest number of units of each.
const MAX_SPARE: usize = 64;
const MAX_SPARE_UNITS: usize = 4 * CHUNK_TOKENS;

impl InOrder {
    fn new(chunks: usize, whole: AlignedRows) -> Self {
        let made = std::iter::repeat_with(|| None).take(chunks).collect();
        // Another thread may have held the lock when this process was forked: see `threads`.
        let spare =
            SPARE.try_lock().map_or_else(|_| Vec::new(), |mut kept| std::mem::take(&mut kept));
        let state = State { made, appended: 0, whole: Some(Ok(whole)), spare };
        Self { next: AtomicUsize::new(0), state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next chunk and an empty buffer, until there are no more.
    fn take(&self, chunks: usize) -> Option<(usize, AlignedRows)> {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        (ticket < chunks).then(|| {
            let spare = self.lock().spare.pop();
            (ticket, spare.unwrap_or_else(AlignedRows::empty))
        })
    }

    fn deliver(&self, ticket: usize, chunk: Result<AlignedRows>, stop: &Stop) {
        let mut state = self.lock();
        state.made[ticket] = Some(chunk);
        // The others may make chunks as fast as this thread appends them.
        while state.whole.is_some() && !stop.requested() {
            let next = state.appended;
            let Some(chunk) = state.made.get_mut(next).and_then(Option::take) else {
                return;
            };
            let Some(whole) = state.whole.take() else {
                return;
            };
            drop(state);
            let (whole, spare) = match (whole, chunk) {
                (Ok(mut whole), Ok(mut chunk)) => {
                    whole.append_from(&chunk);
                    chunk.clear();
                    (Ok(whole), Some(chunk))
                }
                // The error of the first row that has one.
                (Err(error), _) | (Ok(_), Err(error)) => (Err(error), None),
            };
            state = self.lock();
            state.whole = Some(whole);
            state.appended += 1;
            state.spare.extend(spare);
        }
    }

    fn finish(self) -> Result<AlignedRows> {
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        state.spare.retain(|chunk| chunk.segments.kind.capacity() <= MAX_SPARE_UNITS);
        if let Ok(mut kept) = SPARE.try_lock() {
            let room = MAX_SPARE.saturating_sub(kept.len());
            kept.extend(state.spare.drain(..).take(room));
        }
        state.whole.unwrap_or_else(|| Ok(AlignedRows::empty()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_the_system_does_not_give_is_an_error() {
        let units = usize::MAX / 16;
        let bytes = units * size_of::<i32>();
        let error = AlignedRows::with_room(1, units).unwrap_err();
        assert_eq!(error, Error::OutOfMemory { what: "units", bytes });
        let error = segment_numbers(&[0, 0, 0, 0], &[], &[], usize::MAX).unwrap_err();
        assert!(matches!(error, Error::OutOfMemory { what: "numbers of segments", .. }));
    }

    #[test]
    fn rows_of_more_tokens_than_positions_number_are_refused() {
        // Values without a size: a row of 2^31 of them takes no memory.
        #[derive(Clone, Copy)]
        struct Nothing;
        impl TokenId for Nothing {
            fn index(self) -> usize {
                0
            }
            fn value(self) -> i64 {
                0
            }
        }
        let values = [Nothing; MAX_ROW + 1];
        let check = |offsets: [i64; 3]| {
            let ids = RaggedIds::new(Side::Teacher, &values, &offsets)?;
            BatchSide::whole_rows(ids).check_row_lengths(Side::Teacher)
        };
        let end = i64::from(i32::MAX) + 1;
        assert_eq!(check([0, 1, end]), Ok(()));
        let error = check([0, 0, end]).unwrap_err();
        let tokens = MAX_ROW + 1;
        assert_eq!(error, Error::RowTooLong { row: 1, side: Side::Teacher, tokens });
    }
}
