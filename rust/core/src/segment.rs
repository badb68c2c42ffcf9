//! The finest joint segmentation of two token sequences over the same bytes.
//!
//! # What it computes
//!
//! Both sides' tokens have the same bytes. A *boundary* is a byte offset at which a token ends; a
//! *common boundary* is a boundary of both sides. A *unit* is the text between two neighbouring
//! common boundaries: a token range on either side, with the same bytes. No finer partition of the
//! text consists of whole tokens of both sides, because such a partition can only cut at common
//! boundaries, and this one cuts at all of them.
//!
//! ```text
//! teacher   | The | ␣answer | ␣is | ␣ | 123 | 45 | . |
//! student   | The | ␣ans | wer | ␣is | ␣ | 1 | 2 | 3 | 4 | 5 | . |
//! units     | The | ␣answer     | ␣is | ␣ | 123      | 45    | . |
//!             shared multi        shared    multi      multi   shared
//! ```
//!
//! # How
//!
//! Most units of real text are one token on both sides. A table from student id to the teacher's
//! id with the same bytes decides those with one look-up: [`shared_run`](Cursor::shared_run). For
//! all other units, [`grow_unit`](Cursor::grow_unit) compares the bytes of both sides token by
//! token until both sides end a token at the same offset. Every byte is compared once: when the
//! table is built, or here. A region therefore costs O(teacher tokens + student tokens + bytes
//! outside of the table).
//!
//! # Special cases
//!
//! * Special tokens and other tokens without bytes are *at* an offset. At a common boundary, those
//!   of both sides are paired in order ([`pair_zero_bytes`](Cursor::pair_zero_bytes)). Inside a
//!   unit, such a token makes the whole unit unmatched.
//! * If the texts differ, [`resync`](crate::resync) finds the next place where both are equal.
//! * A tokenizer may put a space before the text
//!   ([`trim_dummy_prefix`](Cursor::trim_dummy_prefix)).
//!
//! Every token of a region is in exactly one unit or one unmatched span, both in the order of the
//! text. Ranges are half-open, and positions count from the start of the row.

use std::ops::Range;

use crate::class::{SPLITS_CHARACTER, TEXT_BITS, TRIMMED, class_of_text};
use crate::columns::{Reason, Segments, UnitKind};
use crate::error::{Error, Mismatch, Result};
use crate::ids::{Side, TokenId};
use crate::pair::{Pair, SharedEntry};
use crate::resync::find_resync;
use crate::track::{Open, Track};

/// The reaction to a difference of the texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MismatchPolicy {
    /// Return [`Error::Mismatch`] instead of continuing after the difference.
    pub fail: bool,
    /// The number of equal bytes after which alignment continues, at least 1.
    pub resync_bytes: usize,
}

/// A row of both sides.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a, T, S> {
    /// Its number in the batch, for error messages.
    pub number: usize,
    /// The teacher's ids.
    pub teacher: &'a [T],
    /// The student's ids.
    pub student: &'a [S],
}

/// The limit on tokens that are read in walks that end in a difference: a number of tokens, and a
/// multiple of the tokens of the region. Each such walk begins where the walk before ended. Without
/// a limit, hostile texts (long repetitions without common boundaries, with a difference at the
/// end) would take quadratic time. Regions of up to 700 tokens never reach this limit.
const PATIENCE: usize = 1 << 20;
const PATIENCE_PER_TOKEN: usize = 64;

/// Aligns one region, the given token ranges of a row, and appends what it finds to `out`.
///
/// # Complexity
///
/// If the texts agree, O(teacher tokens + student tokens) time, and no allocation except in `out`.
/// A difference adds O(bytes from the last common boundary to the difference + bytes skipped). All
/// differences together add at most a constant number of passes over the region; a region that
/// would need more ends with an unmatched span (`NoResync`).
///
/// # Errors
///
/// An id that is not in its vocabulary; texts that differ, if `policy.fail`.
pub fn align_region<T: TokenId, S: TokenId>(
    pair: &Pair,
    row: Row<'_, T, S>,
    teacher: Range<usize>,
    student: Range<usize>,
    policy: MismatchPolicy,
    out: &mut Segments,
) -> Result<()> {
    out.reserve_units(teacher.len().min(student.len()))?;
    Cursor {
        pair,
        policy,
        row: row.number,
        region_start: teacher.start,
        patience: PATIENCE + PATIENCE_PER_TOKEN * (teacher.len() + student.len()),
        teacher: Track::new(Side::Teacher, &pair.teacher, row.number, row.teacher, teacher),
        student: Track::new(Side::Student, &pair.student, row.number, row.student, student),
        out,
    }
    .run()
}

/// The state of the walk through a region, always at a common boundary.
struct Cursor<'a, T, S> {
    pair: &'a Pair,
    policy: MismatchPolicy,
    row: usize,
    /// Where the teacher's side of the region starts.
    region_start: usize,
    teacher: Track<'a, T>,
    student: Track<'a, S>,
    /// The number of tokens that may still be read in walks that end in a difference.
    patience: usize,
    out: &'a mut Segments,
}

impl<T: TokenId, S: TokenId> Cursor<'_, T, S> {
    fn run(&mut self) -> Result<()> {
        self.trim_dummy_prefix()?;
        // The table has whole tokens only, so it must not be used for a trimmed token.
        while self.teacher.before_trimmed() || self.student.before_trimmed() {
            self.step()?;
        }
        while !(self.teacher.is_done() && self.student.is_done()) {
            self.shared_run();
            self.step()?;
        }
        Ok(())
    }

    /// Adds all next units that one look-up each decides.
    #[inline]
    fn shared_run(&mut self) {
        let table = self.pair.shared.as_slice();
        let students = self.student.rest();
        let run = self
            .teacher
            .rest()
            .iter()
            .zip(students)
            .take_while(|(teacher, student)| match table.get(student.index()) {
                Some(&entry) => {
                    entry.teacher_id() as usize == teacher.index() && entry != SharedEntry::NONE
                }
                None => false,
            })
            .count();
        if run == 0 {
            return;
        }
        let classes = students[..run].iter().map(|student| table[student.index()].class());
        self.out.push_shared_run(self.teacher.at, self.student.at, run, classes);
        self.teacher.at += run;
        self.student.at += run;
    }

    /// Continues where the table does not decide: to the next common boundary, or to the end of an
    /// unmatched span.
    fn step(&mut self) -> Result<()> {
        let teacher_zero = self.teacher.zero_bytes_end()?;
        let student_zero = self.student.zero_bytes_end()?;
        if teacher_zero > self.teacher.at || student_zero > self.student.at {
            self.pair_zero_bytes(teacher_zero, student_zero)
        } else if self.teacher.is_done() || self.student.is_done() {
            self.skip_rest(Reason::OneSideEnded)
        } else {
            self.grow_unit()
        }
    }

    /// Adds tokens to the shorter side until both sides end a token at the same offset.
    fn grow_unit(&mut self) -> Result<()> {
        let mut teacher = self.teacher.open()?;
        let mut student = self.student.open()?;
        loop {
            let common = teacher.rest.len().min(student.rest.len());
            let (teacher_head, teacher_rest) = teacher.rest.split_at(common);
            let (student_head, student_rest) = student.rest.split_at(common);
            if teacher_head != student_head {
                let read = teacher.end - self.teacher.at + student.end - self.student.at;
                return self.resync(read);
            }
            (teacher.rest, student.rest) = (teacher_rest, student_rest);
            let went_on = match (teacher_rest, student_rest) {
                ([], []) => break,
                ([], _) => self.teacher.extend(&mut teacher)?,
                (_, _) => self.student.extend(&mut student)?,
            };
            if !went_on {
                return self.skip_rest(Reason::OneSideEnded);
            }
        }
        if teacher.holds_zero_bytes || student.holds_zero_bytes {
            self.skip_to(teacher.end, student.end, Reason::Special);
            return Ok(());
        }
        let (kind, class) = self.kind_and_class(&teacher, &student)?;
        self.out.push_unit(self.teacher.at..teacher.end, self.student.at..student.end, kind, class);
        (self.teacher.at, self.student.at) = (teacher.end, student.end);
        Ok(())
    }

    fn kind_and_class(&self, teacher: &Open<'_>, student: &Open<'_>) -> Result<(UnitKind, u8)> {
        let single = |start: usize, end: usize| end - start == 1;
        let trimmed = self.teacher.before_trimmed() || self.student.before_trimmed();
        let split = (teacher.classes | student.classes) & SPLITS_CHARACTER;
        let text = if trimmed {
            // The class bits of a trimmed token include the space.
            class_of_text(&self.student.text(student.end)?)
        } else if single(self.teacher.at, teacher.end) {
            teacher.classes
        } else if single(self.student.at, student.end) {
            student.classes
        } else {
            class_of_text(&self.student.text(student.end)?)
        };
        let class = text & TEXT_BITS | split;
        Ok(if trimmed {
            (UnitKind::Multi, class | TRIMMED)
        } else if single(self.teacher.at, teacher.end) && single(self.student.at, student.end) {
            (UnitKind::Shared, class)
        } else {
            (UnitKind::Multi, class)
        })
    }

    /// Pairs the tokens without bytes that both sides have at this offset: the longest common
    /// subsequence of mapped special tokens. The others are unmatched.
    fn pair_zero_bytes(&mut self, teacher_end: usize, student_end: usize) -> Result<()> {
        let teacher = self.teacher.columns(teacher_end, |id| self.pair.teacher_column(id))?;
        let student = self.student.columns(student_end, |id| self.pair.student_column(id))?;
        for (teacher_index, student_index) in common_subsequence(&teacher, &student) {
            self.skip_zero_bytes(teacher_index, student_index);
            let (teacher, student) = (self.teacher.at, self.student.at);
            self.out.push_unit(teacher..teacher + 1, student..student + 1, UnitKind::Special, 0);
            self.teacher.at += 1;
            self.student.at += 1;
        }
        self.skip_zero_bytes(teacher_end, student_end);
        Ok(())
    }

    /// Leaves tokens without bytes unmatched; a token that is only the dummy prefix has its own
    /// span.
    fn skip_zero_bytes(&mut self, teacher_end: usize, student_end: usize) {
        if let Some(index) = self.teacher.trimmed_in(teacher_end) {
            self.skip_to(index, self.student.at, Reason::Special);
            self.skip_to(index + 1, self.student.at, Reason::DummyPrefix);
        }
        if let Some(index) = self.student.trimmed_in(student_end) {
            self.skip_to(self.teacher.at, index, Reason::Special);
            self.skip_to(self.teacher.at, index + 1, Reason::DummyPrefix);
        }
        self.skip_to(teacher_end, student_end, Reason::Special);
    }

    /// Leaves all tokens up to the given positions unmatched.
    fn skip_to(&mut self, teacher_end: usize, student_end: usize, reason: Reason) {
        let (teacher, student) = (self.teacher.at..teacher_end, self.student.at..student_end);
        self.out.push_unmatched(teacher, student, reason);
        (self.teacher.at, self.student.at) = (teacher_end, student_end);
    }

    /// Leaves the rest of the region unmatched.
    fn skip_rest(&mut self, reason: Reason) -> Result<()> {
        self.teacher.check_rest()?;
        self.student.check_rest()?;
        self.skip_to(self.teacher.end(), self.student.end(), reason);
        Ok(())
    }

    /// Continues after a difference, for which `read` tokens were read.
    fn resync(&mut self, read: usize) -> Result<()> {
        if self.policy.fail {
            return Err(self.mismatch()?);
        }
        // A walk that ends in a difference may begin again one token further on.
        let Some(patience) = self.patience.checked_sub(read) else {
            return self.skip_rest(Reason::NoResync);
        };
        self.patience = patience;
        match find_resync(&self.teacher, &self.student, self.policy.resync_bytes)? {
            Some((teacher, student)) => {
                self.skip_to(teacher, student, Reason::BytesDiffer);
                Ok(())
            }
            None => self.skip_rest(Reason::NoResync),
        }
    }

    fn mismatch(&self) -> Result<Error> {
        let mut before = self.teacher.clone();
        before.at = self.region_start;
        Ok(Error::Mismatch(Box::new(Mismatch {
            row: self.row,
            teacher_position: self.teacher.at,
            student_position: self.student.at,
            byte_offset: before.text(self.teacher.at)?.len(),
            teacher_bytes: self.teacher.excerpt(Mismatch::EXCERPT_BYTES)?,
            student_bytes: self.student.excerpt(Mismatch::EXCERPT_BYTES)?,
        })))
    }

    /// Removes the dummy prefix of a region: if the vocabulary of one side has a dummy prefix and
    /// its text has exactly one more leading space than the other, that space is taken off.
    fn trim_dummy_prefix(&mut self) -> Result<()> {
        let teacher_adds = self.pair.teacher.settings().dummy_prefix;
        let student_adds = self.pair.student.settings().dummy_prefix;
        if !teacher_adds && !student_adds {
            return Ok(());
        }
        let teacher_spaces = self.teacher.leading_spaces()?;
        let student_spaces = self.student.leading_spaces()?;
        if teacher_adds && teacher_spaces == student_spaces + 1 {
            self.teacher.trim_first_text()?;
        } else if student_adds && student_spaces == teacher_spaces + 1 {
            self.student.trim_first_text()?;
        }
        Ok(())
    }
}

/// The largest number of cells of the table of [`common_subsequence`]: 1,024 unpaired tokens at one
/// offset on either side.
const MAX_SUBSEQUENCE_CELLS: usize = 1 << 20;

/// Pairs of positions of a longest common subsequence of (position, column) lists, the earliest
/// of several.
///
/// Equal heads are paired without a search. If the rest needs a larger table than
/// [`MAX_SUBSEQUENCE_CELLS`], which does not happen with ordinary text, equal tails are paired and
/// the middle is not. The pairs are then correct but fewer, and the cost stays linear.
fn common_subsequence(teacher: &[(usize, u32)], student: &[(usize, u32)]) -> Vec<(usize, usize)> {
    let same = |(teacher, student): &(&(usize, u32), &(usize, u32))| teacher.1 == student.1;
    let positions = |(teacher, student): (&(usize, u32), &(usize, u32))| (teacher.0, student.0);
    let head = teacher.iter().zip(student).take_while(same).count();
    let mut pairs: Vec<_> = teacher[..head].iter().zip(&student[..head]).map(positions).collect();
    let (teacher, student) = (&teacher[head..], &student[head..]);
    if teacher.len().saturating_mul(student.len()) <= MAX_SUBSEQUENCE_CELLS {
        pairs.extend(searched_subsequence(teacher, student));
    } else {
        let tail = teacher.iter().rev().zip(student.iter().rev()).take_while(same).count();
        let teacher_tail = &teacher[teacher.len() - tail..];
        let student_tail = &student[student.len() - tail..];
        pairs.extend(teacher_tail.iter().zip(student_tail).map(positions));
    }
    pairs
}

/// [`common_subsequence`] by the textbook's table.
fn searched_subsequence(teacher: &[(usize, u32)], student: &[(usize, u32)]) -> Vec<(usize, usize)> {
    // longest[i * width + j]: of teacher[i..] and student[j..]
    let width = student.len() + 1;
    let mut longest = vec![0u32; (teacher.len() + 1) * width];
    for i in (0..teacher.len()).rev() {
        for j in (0..student.len()).rev() {
            longest[i * width + j] = if teacher[i].1 == student[j].1 {
                longest[(i + 1) * width + j + 1] + 1
            } else {
                longest[(i + 1) * width + j].max(longest[i * width + j + 1])
            };
        }
    }
    let mut from = 0;
    let mut pairs = Vec::new();
    for (i, &(position, column)) in teacher.iter().enumerate() {
        let wanted = longest[i * width + from];
        let partner = (from..student.len())
            .find(|&j| student[j].1 == column && longest[(i + 1) * width + j + 1] + 1 == wanted);
        if let Some(j) = partner {
            pairs.push((position, student[j].0));
            from = j + 1;
        }
    }
    pairs
}
