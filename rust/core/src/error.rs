//! The error type of this crate.

use crate::ids::{BadOffsets, MAX_TOKENS, Side};

/// Two texts that differ, with the place. It is rare and large, so [`Error`] boxes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Row of the batch.
    pub row: usize,
    /// Position, in the teacher's row, of the first token after the last common boundary.
    pub teacher_position: usize,
    /// Position, in the student's row, of the first token after the last common boundary.
    pub student_position: usize,
    /// Offset of the last common boundary, in bytes from the start of the region.
    pub byte_offset: usize,
    /// The next bytes of the teacher's row, at most [`Mismatch::EXCERPT_BYTES`].
    pub teacher_bytes: Vec<u8>,
    /// The next bytes of the student's row, at most [`Mismatch::EXCERPT_BYTES`].
    pub student_bytes: Vec<u8>,
}

impl Mismatch {
    /// The largest number of bytes of either text in an error.
    pub const EXCERPT_BYTES: usize = 40;
}

/// Everything that can be wrong with the input of this crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// More tokens than a packed table entry can name.
    #[error("a vocabulary holds at most {MAX_TOKENS} tokens, this one has {tokens}")]
    TooManyTokens {
        /// How many came.
        tokens: usize,
    },
    /// Token bytes that do not fit the 32-bit offsets of a vocabulary.
    #[error("the bytes of all tokens together must be less than 4 GiB, these are {bytes}")]
    TooManyBytes {
        /// How many came.
        bytes: usize,
    },
    /// Ragged data whose offsets do not fit its values.
    #[error(transparent)]
    BadOffsets(#[from] BadOffsets),
    /// An array that does not have the length that another array requires.
    #[error("{name} has {found} entries, expected {expected}: {why}")]
    LengthMismatch {
        /// The argument.
        name: &'static str,
        /// Its length.
        found: usize,
        /// The length it should have.
        expected: usize,
        /// Where the expectation comes from.
        why: &'static str,
    },
    /// A part of a text that the text does not have.
    #[error("part {part}: bytes {start} to {end} are not in a text of {bytes} bytes")]
    PartOutsideText {
        /// Number of the part.
        part: usize,
        /// Its first byte.
        start: i64,
        /// The byte after its last.
        end: i64,
        /// Bytes of the text.
        bytes: usize,
    },
    /// Text events that do not fit the tables or the rows that they are read with.
    #[error("index: the {side}'s text events do not fit this pair's tokens and these logits")]
    ForeignTextEvents {
        /// Whose.
        side: Side,
    },
    /// A token kind that does not exist.
    #[error("token {id} has kind {kind}: kinds are 0 (normal), 1 (byte), 2 (special), 3 (unused)")]
    BadKind {
        /// Token id.
        id: usize,
        /// What came.
        kind: u8,
    },
    /// A special or unused token that adds bytes, or a byte token that is not one byte.
    #[error("token {id} is {kind} and has {bytes} bytes, expected {expected}")]
    BadTokenBytes {
        /// Token id.
        id: usize,
        /// Its kind, as a word.
        kind: &'static str,
        /// How many bytes it has.
        bytes: usize,
        /// How many it may have.
        expected: usize,
    },
    /// A token of a vocabulary-wide setting that is not a special token of that vocabulary.
    #[error("{name}: {side} token {id} is not a special token of a vocabulary of {vocab_size}")]
    NotSpecial {
        /// The argument.
        name: &'static str,
        /// Whose vocabulary.
        side: Side,
        /// Token id.
        id: u32,
        /// Size of that vocabulary.
        vocab_size: usize,
    },
    /// A named or stop token that is not a special token of its vocabulary.
    #[error("{name}: token {id} is not a special token of this vocabulary of {vocab_size}")]
    NotSpecialHere {
        /// The argument.
        name: &'static str,
        /// Token id.
        id: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A special token that is mapped to two tokens of the other side.
    #[error("special_tokens: {side} token {id} is mapped twice")]
    MappedTwice {
        /// Whose token.
        side: Side,
        /// Token id.
        id: u32,
    },
    /// A stop of one side that is mapped to a token of the other side that is not a stop.
    #[error(
        "special_tokens: teacher token {teacher} and student token {student} are mapped onto each \
         other, but only one of them is a stop; name both in stop_tokens"
    )]
    StopMappedToOther {
        /// Teacher id.
        teacher: u32,
        /// Student id.
        student: u32,
    },
    /// Sides with different numbers of rows.
    #[error("the teacher has {teacher} rows and the student {student}, expected equal numbers")]
    RowCount {
        /// Rows of the teacher.
        teacher: usize,
        /// Rows of the student.
        student: usize,
    },
    /// A row with different numbers of regions on its sides.
    #[error(
        "row {row}: the masks select {teacher} regions (runs of positions that take part) on the \
         teacher's side and {student} on the student's, expected equal numbers"
    )]
    RegionCount {
        /// Row of the batch.
        row: usize,
        /// Regions of the teacher.
        teacher: usize,
        /// Regions of the student.
        student: usize,
    },
    /// A row with more tokens than 32-bit positions can number.
    #[error("row {row} of the {side} has {tokens} tokens, expected at most 2^31 - 1")]
    RowTooLong {
        /// Row of the batch.
        row: usize,
        /// Whose row.
        side: Side,
        /// Its length.
        tokens: usize,
    },
    /// A token id without a token.
    #[error(
        "row {row}, position {position}: {side} id {id} is not in the vocabulary of {vocab_size} \
         tokens"
    )]
    IdOutOfRange {
        /// Row of the batch.
        row: usize,
        /// Position in the row.
        position: usize,
        /// Whose id.
        side: Side,
        /// What came.
        id: i64,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// Texts that differ, if the caller requested an error for a difference.
    #[error(
        "row {}: the texts differ after byte {} of the region (teacher position {}, student \
         position {}): the teacher continues with b\"{}\", the student with b\"{}\"",
        .0.row, .0.byte_offset, .0.teacher_position, .0.student_position,
        .0.teacher_bytes.escape_ascii(), .0.student_bytes.escape_ascii()
    )]
    Mismatch(Box<Mismatch>),
    /// A unit of a batch whose positions are not tokens of its row.
    #[error("unit {unit}: the {side} positions {start} to {end} are not tokens of row {row}")]
    UnitOutsideRow {
        /// Row of the batch.
        row: usize,
        /// Number of the unit in the batch.
        unit: usize,
        /// Whose positions.
        side: Side,
        /// First position.
        start: i32,
        /// One past the last.
        end: i32,
    },
    /// A listed id without a token.
    #[error("{place}: id {id} is not in a vocabulary of {vocab_size} tokens")]
    ListedId {
        /// The list, in words.
        place: String,
        /// What came.
        id: i64,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// An id that a list has twice.
    #[error("{place}: id {id} is in the list twice")]
    ListedTwice {
        /// The list, in words.
        place: String,
        /// What came.
        id: i64,
    },
    /// A number that is not the logarithm of a probability.
    #[error("{place}: the log-probability of id {id} is {found}, expected at most 0")]
    NotALogprob {
        /// The list, in words.
        place: String,
        /// Whose log-probability.
        id: i64,
        /// What came.
        found: String,
    },
    /// A row of the batch that begins before the logits do.
    #[error("{side}_row_starts: the index would read row {row} of the logits, expected 0 or more")]
    RowBeforeLogits {
        /// Whose logits.
        side: Side,
        /// The first row that would be read.
        row: i64,
    },
    /// A stride that is smaller than the number of rows that are read.
    #[error(
        "{side}_stride: expected at least {needed}, the rows of logits that are read for one row \
         of the batch, got {stride}"
    )]
    StrideTooShort {
        /// Whose logits.
        side: Side,
        /// What came.
        stride: i64,
        /// How many rows are read.
        needed: i64,
    },
    /// A value outside of its range.
    #[error("{name} is {found}, expected {expected}")]
    BadOption {
        /// The argument.
        name: &'static str,
        /// What came.
        found: usize,
        /// What is allowed.
        expected: &'static str,
    },
    /// Memory that the system does not give.
    #[error("{what}: the system does not give {bytes} bytes of memory; use smaller batches")]
    OutOfMemory {
        /// What it is for.
        what: &'static str,
        /// How much.
        bytes: usize,
    },
    /// Worker threads that the system refused to start.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// The requested number.
        threads: usize,
        /// The message of the system.
        reason: String,
    },
    /// Work that was stopped: see [`set_interrupt`](crate::threads::set_interrupt).
    #[error("interrupted")]
    Interrupted,
    /// A saved aligner of another version of the format.
    #[error(
        "the saved aligner has format version {found}, this release reads version {expected}: \
         write the file again with Aligner(teacher, student).save(path)"
    )]
    FileVersion {
        /// The file's version.
        found: u32,
        /// The version that is read.
        expected: u32,
    },
    /// A saved aligner that cannot be read.
    #[error("not a saved aligner, or a damaged one: {reason}")]
    BadFile {
        /// What is wrong with it.
        reason: String,
    },
}

/// The result type of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Makes room in a vector that grows with the batch.
///
/// # Errors
///
/// [`Error::OutOfMemory`], where an allocation that fails otherwise ends the process.
pub(crate) fn reserve<T>(what: &'static str, values: &mut Vec<T>, additional: usize) -> Result<()> {
    values.try_reserve(additional).map_err(|_| {
        let bytes = values.len().saturating_add(additional).saturating_mul(size_of::<T>());
        Error::OutOfMemory { what, bytes }
    })
}
