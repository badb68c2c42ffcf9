//! On-path continuations of a batch: what one forward pass per model scores beside the text.
//!
//! At a unit's prefix, let `s_1 s_2 ...` be the realized student tokens from there on. Where they
//! follow the path of a node of the teacher's spellings, every leaf `(x, t')` of the node is a
//! text that both models have scored: for the teacher the single token `t'`, for the student the
//! path `s_1 .. s_b x`. And mirrored, with the realized teacher tokens and the student's spellings.
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
//! The walk ends with the *stretch* of the text that the unit lies in: a maximal run of units that
//! follow each other without a gap on either side, none of them a pair of control tokens. A region
//! that ends, an unmatched span, a token without bytes (which is never in a unit) all leave a gap.
//! A unit that lost its dummy prefix is no part of a stretch: its tokens are not those of the text.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::batch::RaggedIds;
use crate::class::TRIMMED;
use crate::columns::UnitKind;
use crate::error::{Error, Result, Side};
use crate::index::UnitColumns;
use crate::pair::Pair;
use crate::path_trie::Step;
use crate::spelling::{MAX_PATH, SpellingTable};
use crate::threads::{self, Threads};
use crate::track::TokenId;

/// About how many units a worker takes at once.
const CHUNK_UNITS: i64 = 16 * 1024;

/// How many units are walked from in one direction before the other.
const BLOCK_UNITS: usize = 256;

/// How to enumerate.
#[derive(Clone, Copy, Debug)]
pub struct PathOptions {
    /// How many realized tokens a continuation may begin with: 1 to [`MAX_PATH`].
    pub max_path: usize,
    /// How many threads work; the result is the same for every number.
    pub threads: Threads,
}

/// The nodes that the units of a batch reach in one direction, as columns, in the order of the
/// units and then of depth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// The number of the unit in the batch.
    pub unit: Vec<i64>,
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

    fn resize(&mut self, length: usize) {
        self.unit.resize(length, 0);
        self.node.resize(length, 0);
        self.depth.resize(length, 0);
    }

    #[inline]
    fn put(&mut self, place: usize, unit: usize, step: Step, depth: i32) {
        self.unit[place] = i64::try_from(unit).unwrap_or(i64::MAX);
        self.node[place] = i32::try_from(step.node()).unwrap_or(i32::MAX);
        self.depth[place] = depth;
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

/// Enumerates the on-path continuations of all units that have a prefix, those that an
/// [`index`](crate::index) holds.
///
/// Spellings are those that the pair has been given, else the shortest paths.
///
/// # Complexity
///
/// O(units × `max_path`) time at most, divided over the threads; two look-ups per unit where no
/// spelling begins as the text goes on. 16 bytes of memory per entry.
///
/// # Errors
///
/// An option out of its range; columns of different lengths and positions that are not in their
/// row, which [`align_batch`](crate::batch::align_batch) never makes.
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
        job.rows(0..teacher.rows(), &mut found)?;
        return Ok(found);
    }
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(chunks.len())));
    threads::run(workers, || {
        while let Some((number, rows)) = take(&next, &chunks) {
            let mut found = OnPath::default();
            let outcome = job.rows(rows, &mut found).map(|()| found);
            done.lock().unwrap_or_else(PoisonError::into_inner).push((number, outcome));
        }
    })?;
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(number, _)| *number);
    let mut parts = done.into_iter().map(|(_, outcome)| outcome);
    let mut all = parts.next().unwrap_or_else(|| Ok(OnPath::default()))?;
    for part in parts {
        let part = part?;
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
        for row in rows {
            let units = self.units.of_row(row);
            let mut at = units.start;
            while at < units.end {
                let end = self.stretch_end(at, units.end);
                if end > at {
                    self.stretch(row, at..end, out)?;
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

    fn stretch(&self, row: usize, stretch: Range<usize>, out: &mut OnPath) -> Result<()> {
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
        let has_no_prefix = starts.contains(&0);
        let mut start = first + usize::from(has_no_prefix);
        while start < stretch.end {
            let block = start..stretch.end.min(start + BLOCK_UNITS);
            start = block.end;
            let at = |starts: &[i32], unit: usize| {
                usize::try_from(starts[unit].wrapping_sub(starts[first])).unwrap_or(usize::MAX)
            };
            let along_student = |unit| at(units.student_start, unit);
            let along_teacher = |unit| at(units.teacher_start, unit);
            let [teacher, student] = self.spellings;
            self.walk(teacher, block.clone(), along_student, realized[1], &mut out.teacher);
            self.walk(student, block, along_teacher, realized[0], &mut out.student);
        }
        Ok(())
    }

    /// Follows the realized tokens from every unit on through a trie, and notes the nodes with
    /// leaves.
    ///
    /// About every second unit reaches one, which no branch predictor foresees. So an entry is
    /// always written, and counts if there are leaves: GSM8K answers (Gemma 2, Qwen2.5) take
    /// 11.7 ns per unit in one thread, 16.6 with a branch.
    #[inline]
    fn walk(
        &self,
        spellings: &SpellingTable,
        block: Range<usize>,
        start_of: impl Fn(usize) -> usize,
        realized: &[I],
        out: &mut Entries,
    ) {
        let trie = spellings.trie();
        let (mut next, goes_deep) = (out.len(), self.max_path > 1);
        out.resize(next + block.len());
        for unit in block.clone() {
            let start = start_of(unit);
            let Some(&first) = realized.get(start) else {
                continue;
            };
            let step = trie.root(first);
            out.put(next, unit, step, 1);
            next += usize::from(step.has_leaves());
            match realized.get(start + 1) {
                Some(&second) if goes_deep && trie.may_go_on(step, second) => {
                    // Room for this unit's entries, and for one of every unit to come.
                    out.resize(next + self.max_path + (block.end - unit));
                    let rest = realized[start + 1..].iter().take(self.max_path - 1);
                    let (mut step, mut depth) = (step, 1);
                    for &token in rest {
                        if !trie.may_go_on(step, token) {
                            break;
                        }
                        step = trie.child(step, token);
                        depth += 1;
                        out.put(next, unit, step, depth);
                        next += usize::from(step.has_leaves());
                    }
                }
                _ => {}
            }
        }
        out.resize(next);
    }
}
