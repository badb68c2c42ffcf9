//! The result of an alignment: token ranges, as columns.

use std::ops::Range;

use crate::error::{Error, Result, reserve};
use crate::ids::{RaggedIds, check_offsets, range_of_row};

/// The kind of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum UnitKind {
    /// One token on both sides.
    Shared = 0,
    /// Several tokens on at least one side, or a first token that lost its dummy prefix.
    Multi = 1,
    /// Two special tokens that are mapped onto each other.
    Special = 2,
}

/// The reason why tokens are in no unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// The texts differ here, and are equal again after this span.
    BytesDiffer = 0,
    /// One side has no more text, or ends inside a token of the other side.
    OneSideEnded = 1,
    /// A special or zero-byte token without a partner, or the text range that contains one.
    Special = 2,
    /// The texts differ from here to the end of the region.
    NoResync = 3,
    /// A token that is only the dummy prefix: the space that its tokenizer put before the text.
    DummyPrefix = 4,
}

/// Token ranges of both sides, as columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// First position of the teacher's tokens.
    pub teacher_start: Vec<i32>,
    /// One past their last position.
    pub teacher_end: Vec<i32>,
    /// First position of the student's tokens.
    pub student_start: Vec<i32>,
    /// One past their last position.
    pub student_end: Vec<i32>,
}

impl Ranges {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.teacher_start.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.teacher_start.is_empty()
    }

    fn reserve(&mut self, additional: usize) -> Result<()> {
        self.columns().into_iter().try_for_each(|column| reserve("units", column, additional))
    }

    pub(crate) fn clear(&mut self) {
        for column in self.columns() {
            column.clear();
        }
    }

    pub(crate) fn append_from(&mut self, other: &Self) {
        self.teacher_start.extend_from_slice(&other.teacher_start);
        self.teacher_end.extend_from_slice(&other.teacher_end);
        self.student_start.extend_from_slice(&other.student_start);
        self.student_end.extend_from_slice(&other.student_end);
    }

    fn columns(&mut self) -> [&mut Vec<i32>; 4] {
        [
            &mut self.teacher_start,
            &mut self.teacher_end,
            &mut self.student_start,
            &mut self.student_end,
        ]
    }

    fn push(&mut self, teacher: Range<usize>, student: Range<usize>) {
        self.teacher_start.push(position(teacher.start));
        self.teacher_end.push(position(teacher.end));
        self.student_start.push(position(student.start));
        self.student_end.push(position(student.end));
    }
}

/// Units and unmatched spans, as columns.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments {
    /// The units' token ranges.
    pub units: Ranges,
    /// Their [`UnitKind`] as a number.
    pub kind: Vec<u8>,
    /// Their [class bits](crate::class).
    pub unit_class: Vec<u8>,
    /// The token ranges that are in no unit.
    pub unmatched: Ranges,
    /// Their [`Reason`] as a number.
    pub reason: Vec<u8>,
}

impl Segments {
    pub(crate) fn reserve_units(&mut self, additional: usize) -> Result<()> {
        self.units.reserve(additional)?;
        reserve("units", &mut self.kind, additional)?;
        reserve("units", &mut self.unit_class, additional)
    }

    pub(crate) fn clear(&mut self) {
        self.units.clear();
        self.unmatched.clear();
        for column in [&mut self.kind, &mut self.unit_class, &mut self.reason] {
            column.clear();
        }
    }

    pub(crate) fn append_from(&mut self, other: &Self) {
        self.units.append_from(&other.units);
        self.kind.extend_from_slice(&other.kind);
        self.unit_class.extend_from_slice(&other.unit_class);
        self.unmatched.append_from(&other.unmatched);
        self.reason.extend_from_slice(&other.reason);
    }

    /// Appends a run of units of one token on both sides.
    #[inline]
    pub(crate) fn push_shared_run(
        &mut self,
        teacher: usize,
        student: usize,
        run: usize,
        classes: impl Iterator<Item = u8>,
    ) {
        let (teacher, student, end) = (position(teacher), position(student), position(run));
        self.units.teacher_start.extend(teacher..teacher + end);
        self.units.teacher_end.extend(teacher + 1..teacher + end + 1);
        self.units.student_start.extend(student..student + end);
        self.units.student_end.extend(student + 1..student + end + 1);
        self.kind.resize(self.kind.len() + run, UnitKind::Shared as u8);
        self.unit_class.extend(classes);
    }

    pub(crate) fn push_unit(
        &mut self,
        teacher: Range<usize>,
        student: Range<usize>,
        kind: UnitKind,
        class: u8,
    ) {
        self.units.push(teacher, student);
        self.kind.push(kind as u8);
        self.unit_class.push(class);
    }

    pub(crate) fn push_unmatched(
        &mut self,
        teacher: Range<usize>,
        student: Range<usize>,
        reason: Reason,
    ) {
        if !teacher.is_empty() || !student.is_empty() {
            self.unmatched.push(teacher, student);
            self.reason.push(reason as u8);
        }
    }
}

/// The units of a batch, borrowed column by column: see
/// [`Segments`].
#[derive(Clone, Copy, Debug)]
pub struct UnitColumns<'a> {
    /// The units of row `i` are `row_offsets[i]..row_offsets[i + 1]`.
    pub row_offsets: &'a [i64],
    /// First position of the teacher's tokens.
    pub teacher_start: &'a [i32],
    /// One past their last position.
    pub teacher_end: &'a [i32],
    /// First position of the student's tokens.
    pub student_start: &'a [i32],
    /// One past their last position.
    pub student_end: &'a [i32],
    /// [`UnitKind`] as a number.
    pub kind: &'a [u8],
    /// [Class bits](crate::class).
    pub unit_class: &'a [u8],
}

impl UnitColumns<'_> {
    /// Checks that all columns, and both sides' ids, fit together.
    pub(crate) fn check<I>(
        &self,
        teacher: RaggedIds<'_, I>,
        student: RaggedIds<'_, I>,
    ) -> Result<()> {
        let units = self.kind.len();
        check_offsets("row_offsets", self.row_offsets, units)?;
        let rows = self.row_offsets.len() - 1;
        let lengths = [
            ("teacher_start", self.teacher_start.len(), units, "one entry for every unit"),
            ("teacher_end", self.teacher_end.len(), units, "one entry for every unit"),
            ("student_start", self.student_start.len(), units, "one entry for every unit"),
            ("student_end", self.student_end.len(), units, "one entry for every unit"),
            ("unit_class", self.unit_class.len(), units, "one entry for every unit"),
            ("teacher_ids", teacher.rows(), rows, "as many rows as there are in the batch"),
            ("student_ids", student.rows(), rows, "as many rows as there are in the batch"),
        ];
        check_lengths(lengths)
    }

    /// The units of a row.
    pub(crate) fn of_row(&self, row: usize) -> Range<usize> {
        range_of_row(self.row_offsets, row)
    }
}

/// A name, the length found, the length expected, and the reason for it.
type Length = (&'static str, usize, usize, &'static str);

pub(crate) fn check_lengths(lengths: impl IntoIterator<Item = Length>) -> Result<()> {
    match lengths.into_iter().find(|(_, found, expected, _)| found != expected) {
        Some((name, found, expected, why)) => {
            Err(Error::LengthMismatch { name, found, expected, why })
        }
        None => Ok(()),
    }
}

/// A position as the columns hold it. [`align_batch`](crate::batch::align_batch) refuses longer
/// rows.
#[inline]
fn position(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}
