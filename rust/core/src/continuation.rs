//! On-path continuations of a batch: texts that one forward pass per model scores in addition to
//! the realized text.
//!
//! At a unit's prefix, let `s_1 s_2 ...` be the realized student tokens from there on. Where they
//! follow the path of a node of the teacher's spellings, every leaf `(x, t')` of the node is a
//! text that both models have scored: for the teacher the single token `t'`, for the student the
//! path `s_1 .. s_b x`. The other direction uses the realized teacher tokens and the student's
//! spellings.
//!
//! ```text
//! text      1 2 3                                        teacher tokens  123
//! student   1 | 2 | 3
//! nodes     `1` after one token, `1 2` after two
//! leaves    `1`: 10, 11, 12, ... 19 (teacher tokens spelled `1` `x`)
//!           `1 2`: 120, 121, ... 129
//! ```
//!
//! The candidates of a node depend on the node alone, so a batch only refers to nodes: an *entry*
//! is (unit, node, depth), depth being the length of the node's path, and only nodes with leaves
//! have one.
//!
//! The walk ends at the end of the unit's *stretch*: a maximal run of units that follow each other
//! without a gap on either side, none of them a pair of special tokens. The end of a region, an
//! unmatched span and a token without bytes (which is never in a unit) are gaps. A unit that lost
//! its dummy prefix is not part of a stretch, because its first token has other bytes than the
//! text.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::class::TRIMMED;
use crate::columns::{UnitColumns, UnitKind};
use crate::error::{Error, Result};
use crate::ids::{RaggedIds, Side, TokenId};
use crate::pair::Pair;
use crate::path_trie::Step;
use crate::spelling::{MAX_PATH, SpellingTable};
use crate::threads::{self, Stop, Threads};

/// The approximate number of units that a worker takes at once.
const CHUNK_UNITS: i64 = 16 * 1024;

/// How many units are walked from in one direction before the other.
const BLOCK_UNITS: usize = 256;

/// For how many entries of a block there is room before they are moved out.
const FOUND: usize = 2 * BLOCK_UNITS;

/// The options of the enumeration.
#[derive(Clone, Copy, Debug)]
pub struct PathOptions {
    /// The largest number of realized tokens at the start of a continuation: 1 to [`MAX_PATH`].
    pub max_path: usize,
    /// The number of threads. The result does not depend on it.
    pub threads: Threads,
}

/// The nodes that the units of a batch reach in one direction, as columns, in the order of the
/// units and then of depth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// The number of the unit in the batch.
    pub unit: Vec<i32>,
    /// The node reached, one with leaves.
    pub node: Vec<i32>,
    /// How many realized tokens lead to it.
    pub depth: Vec<i32>,
}

impl Entries {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.unit.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.unit.is_empty()
    }

    fn reserve(&mut self, additional: usize) {
        self.unit.reserve(additional);
        self.node.reserve(additional);
        self.depth.reserve(additional);
    }

    fn extend(&mut self, first_unit: usize, found: &[Found]) {
        // `on_path` has seen that 31 bits number all units, and the trie numbers nodes with 30.
        let first = i32::try_from(first_unit).unwrap_or(i32::MAX);
        self.unit.extend(found.iter().map(|found| first.wrapping_add_unsigned(found.offset)));
        self.node.extend(found.iter().map(|found| found.step.node().cast_signed()));
        self.depth.extend(found.iter().map(|found| found.depth));
    }

    fn append(&mut self, other: &Self) {
        self.unit.extend_from_slice(&other.unit);
        self.node.extend_from_slice(&other.node);
        self.depth.extend_from_slice(&other.depth);
    }
}

/// The entries of both directions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnPath {
    /// Nodes of the teacher's spellings, reached along the student's tokens.
    pub teacher: Entries,
    /// Nodes of the student's spellings, reached along the teacher's tokens.
    pub student: Entries,
}

/// Enumerates the on-path continuations of all units that an [`index`](crate::index) contains:
/// those with a prefix and without a trimmed token.
///
/// If the spellings of the pair have not been computed, they are the shortest paths.
///
/// # Complexity
///
/// At most O(units × `max_path`) time, divided over the threads; two look-ups per unit if no
/// spelling begins with the tokens that follow. 12 bytes of memory per entry.
///
/// # Errors
///
/// An option out of its range. Also columns of different lengths and positions outside of their
/// row, which [`align_batch`](crate::batch::align_batch) never returns.
pub fn on_path<I: TokenId>(
    pair: &Pair,
    units: &UnitColumns<'_>,
    teacher: RaggedIds<'_, I>,
    student: RaggedIds<'_, I>,
    options: &PathOptions,
) -> Result<OnPath> {
    if !(1..=MAX_PATH).contains(&options.max_path) {
        return Err(Error::BadOption {
            name: "max_path",
            found: options.max_path,
            expected: "1 to 64",
        });
    }
    units.check(teacher, student)?;
    if i32::try_from(units.kind.len()).is_err() {
        return Err(Error::BadOption {
            name: "number of units",
            found: units.kind.len(),
            expected: "less than 2^31",
        });
    }
    let spellings = pair.spellings()?;
    let job = Job {
        units,
        teacher,
        student,
        max_path: options.max_path,
        spellings: [&spellings.teacher, &spellings.student],
    };
    let chunks = chunks(units.row_offsets);
    let workers = options.threads.count().min(chunks.len());
    if workers <= 1 {
        let mut found = OnPath::default();
        // Rarely more than one entry per unit; what stays free is never touched.
        found.teacher.reserve(units.kind.len());
        found.student.reserve(units.kind.len());
        let stop = Stop::new();
        for rows in chunks {
            stop.check()?;
            job.rows(rows, &mut found)?;
        }
        return Ok(found);
    }
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(chunks.len())));
    threads::run(workers, |stop| {
        while let Some((number, rows)) = take(&next, &chunks).filter(|_| !stop.requested()) {
            let mut found = OnPath::default();
            let outcome = job.rows(rows, &mut found).map(|()| found);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((number, outcome));
        }
    })?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(number, _)| *number);
    // If several rows are wrong, the error names the first.
    let parts = done.into_iter().map(|(_, outcome)| outcome).collect::<Result<Vec<_>>>()?;
    let mut all = OnPath::default();
    all.teacher.reserve(parts.iter().map(|part| part.teacher.len()).sum());
    all.student.reserve(parts.iter().map(|part| part.student.len()).sum());
    let stop = Stop::new();
    for part in parts {
        stop.check()?;
        all.teacher.append(&part.teacher);
        all.student.append(&part.student);
    }
    Ok(all)
}

/// Rows in runs of about [`CHUNK_UNITS`] units.
fn chunks(row_offsets: &[i64]) -> Vec<Range<usize>> {
    let (mut chunks, mut start) = (Vec::new(), 0);
    for end in 1..row_offsets.len() {
        let is_full = row_offsets[end] - row_offsets[start] >= CHUNK_UNITS;
        if is_full || end + 1 == row_offsets.len() {
            chunks.push(start..end);
            start = end;
        }
    }
    chunks
}

fn take(next: &AtomicUsize, chunks: &[Range<usize>]) -> Option<(usize, Range<usize>)> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    Some((number, chunks.get(number)?.clone()))
}

struct Job<'a, I> {
    units: &'a UnitColumns<'a>,
    teacher: RaggedIds<'a, I>,
    student: RaggedIds<'a, I>,
    max_path: usize,
    /// The teacher's, the student's.
    spellings: [&'a SpellingTable; 2],
}

impl<I: TokenId> Job<'_, I> {
    fn rows(&self, rows: Range<usize>, out: &mut OnPath) -> Result<()> {
        let mut scratch = Scratch::new();
        for row in rows {
            let units = self.units.of_row(row);
            let mut at = units.start;
            while at < units.end {
                let end = self.stretch_end(at, units.end);
                if end > at {
                    self.stretch(row, at..end, &mut scratch, out)?;
                }
                at = end.max(at + 1);
            }
        }
        Ok(())
    }

    /// One past the units that follow each other from here on; here, if this one is no part of a
    /// stretch.
    fn stretch_end(&self, start: usize, limit: usize) -> usize {
        let units = self.units;
        let is_text = |unit: usize| {
            units.kind[unit] != UnitKind::Special as u8 && units.unit_class[unit] & TRIMMED == 0
        };
        let follows = |unit: usize| {
            units.teacher_start[unit] == units.teacher_end[unit - 1]
                && units.student_start[unit] == units.student_end[unit - 1]
        };
        if !is_text(start) {
            return start;
        }
        let mut end = start + 1;
        while end < limit && is_text(end) && follows(end) {
            end += 1;
        }
        end
    }

    fn stretch(
        &self,
        row: usize,
        stretch: Range<usize>,
        scratch: &mut Scratch,
        out: &mut OnPath,
    ) -> Result<()> {
        let units = self.units;
        let (first, last) = (stretch.start, stretch.end - 1);
        let starts = [units.teacher_start[first], units.student_start[first]];
        let ends = [units.teacher_end[last], units.student_end[last]];
        let sides = [(Side::Teacher, self.teacher), (Side::Student, self.student)];
        let mut realized = [&[][..]; 2];
        for (side, (name, ids)) in sides.into_iter().enumerate() {
            realized[side] = usize::try_from(starts[side])
                .ok()
                .zip(usize::try_from(ends[side]).ok())
                .and_then(|(start, end)| ids.row(row).get(start..end))
                .ok_or(Error::UnitOutsideRow {
                    row,
                    unit: first,
                    side: name,
                    start: starts[side],
                    end: ends[side],
                })?;
        }
        // Every unit of a stretch has a prefix but the first of a row.
        let mut start = first + usize::from(starts.contains(&0));
        let [teacher, student] = self.spellings;
        while start < stretch.end {
            let block = start..stretch.end.min(start + BLOCK_UNITS);
            let (along_student, along_teacher) = (
                Realized { ids: realized[1], first: starts[1], starts: units.student_start },
                Realized { ids: realized[0], first: starts[0], starts: units.teacher_start },
            );
            self.walk(teacher, block.clone(), along_student, scratch, &mut out.teacher);
            self.walk(student, block.clone(), along_teacher, scratch, &mut out.student);
            start = block.end;
        }
        Ok(())
    }

    /// Follows the realized tokens from every unit on through a trie, and notes the nodes with
    /// leaves.
    ///
    /// About every second unit reaches one, which no branch predictor foresees. So all roots are
    /// looked up first, and then an entry is always written and counts if there are leaves:
    /// GSM8K answers (Gemma 2, Qwen2.5) take 7.9 ns per unit in one thread, 16.6 unit by unit with
    /// a branch.
    fn walk(
        &self,
        spellings: &SpellingTable,
        block: Range<usize>,
        realized: Realized<'_, I>,
        scratch: &mut Scratch,
        out: &mut Entries,
    ) {
        let trie = spellings.trie();
        let starts = &realized.starts[block.clone()];
        let Scratch { steps, goes_on, found } = scratch;
        for ((&start, step), goes_on) in starts.iter().zip(&mut *steps).zip(&mut *goes_on) {
            let ids = realized.from(start);
            *step = ids.first().map_or(Step::NONE, |&id| trie.root(id));
            *goes_on = ids.get(1).is_some_and(|&id| trie.may_go_on(*step, id));
        }
        let mut count = 0;
        for (offset, &start) in (0u32..).zip(starts) {
            let (mut step, goes_on) = (steps[offset as usize], goes_on[offset as usize]);
            if count + MAX_PATH > found.len() {
                out.extend(block.start, &found[..count]);
                count = 0;
            }
            found[count] = Found { offset, step, depth: 1 };
            count += usize::from(step.has_leaves());
            if goes_on {
                let rest = realized.from(start).iter().take(self.max_path).skip(1);
                for (depth, &token) in (2..).zip(rest) {
                    if !trie.may_go_on(step, token) {
                        break;
                    }
                    step = trie.child(step, token);
                    found[count] = Found { offset, step, depth };
                    count += usize::from(step.has_leaves());
                }
            }
        }
        out.extend(block.start, &found[..count]);
    }
}

/// The realized tokens of a stretch on one side.
#[derive(Clone, Copy)]
struct Realized<'a, I> {
    ids: &'a [I],
    /// The position in the row of the first of them.
    first: i32,
    /// The positions at which the units of the batch start.
    starts: &'a [i32],
}

impl<'a, I> Realized<'a, I> {
    /// The tokens from a position of the row on.
    #[inline]
    fn from(self, position: i32) -> &'a [I] {
        let at = usize::try_from(position.wrapping_sub(self.first)).unwrap_or(usize::MAX);
        self.ids.get(at..).unwrap_or(&[])
    }
}

/// An entry before it is known to count.
#[derive(Clone, Copy)]
struct Found {
    /// The unit, counted from the start of its block.
    offset: u32,
    step: Step,
    depth: i32,
}

/// What one block of units needs, used again for all of them.
struct Scratch {
    steps: [Step; BLOCK_UNITS],
    /// Whether a longer path than the root's may lead somewhere.
    goes_on: [bool; BLOCK_UNITS],
    found: [Found; FOUND],
}

impl Scratch {
    fn new() -> Self {
        Self {
            steps: [Step::NONE; BLOCK_UNITS],
            goes_on: [false; BLOCK_UNITS],
            found: [Found { offset: 0, step: Step::NONE, depth: 0 }; FOUND],
        }
    }
}
