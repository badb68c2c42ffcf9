//! The tensors that a loss gathers with, made from an aligned batch.
//!
//! Logits at position p predict the token at p + 1, so a unit is scored by the logit row before
//! its first token, its *prefix row*; a path of k tokens by k consecutive rows from there on. Rows
//! are numbered through the whole batch, as the trainer lays its logits out.
//!
//! All integers lie in one buffer, in sections, so that one transfer moves them to a device.
//!
//! With continuations, the entries of [`on_path`] are put in the order of the units here, so that
//! the entries of a run of units, and the leaves of those, are runs as well.

use std::ops::Range;

use crate::batch::RaggedIds;
use crate::class::TRIMMED;
use crate::columns::UnitKind;
use crate::continuation::{Entries, PathOptions, on_path};
use crate::error::{Error, Result, Side};
use crate::pair::{NONE, Pair};
use crate::spelling::{SpellingTable, Spellings};
use crate::track::TokenId;
use crate::vocabulary::{Vocabulary, check_offsets};

/// The units of a batch, borrowed column by column: see
/// [`Segments`](crate::columns::Segments).
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

/// One side's ids, and where its rows begin in the flat logits.
#[derive(Clone, Copy, Debug)]
pub struct IndexSide<'a, I> {
    /// The ids of the batch.
    pub ids: RaggedIds<'a, I>,
    /// The flat logit row of position 0 of every row.
    pub row_starts: &'a [i64],
}

/// How many of what an [`Index`] holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// SHARED and SPECIAL units.
    pub shared: usize,
    /// MULTI units.
    pub multi: usize,
    /// Tokens of all MULTI units on the teacher's side.
    pub teacher_steps: usize,
    /// Tokens of all MULTI units on the student's side.
    pub student_steps: usize,
    /// Student tokens in SHARED and SPECIAL units.
    pub student_tokens_shared: usize,
    /// Units left out because they begin a row, where no logits predict them.
    pub dropped_no_prefix: usize,
    /// Units left out because their first token lost its dummy prefix.
    pub dropped_dummy_prefix: usize,
    /// Nodes of the teacher's spellings that units reach.
    pub teacher: EntryCounts,
    /// Nodes of the student's spellings that units reach.
    pub student: EntryCounts,
}

/// How many continuations an [`Index`] holds in one direction; nothing without continuations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryCounts {
    /// Entries.
    pub entries: usize,
    /// Their leaves together.
    pub leaves: usize,
    /// Spellings that are no continuations because they are longer than `max_path` and one token.
    pub cut_off: usize,
}

/// The tensors that a loss gathers with.
///
/// With N = `counts.shared + counts.multi` units, M = `counts.multi`, and P steps on a side, the
/// sections of `packed` are, in order:
///
/// | section | entries | content |
/// | --- | --- | --- |
/// | unit | N | number of the unit in the batch |
/// | kind | N | its [`UnitKind`] |
/// | student tokens | N | how many it has |
/// | teacher row, student row | N each | flat logit row of its prefix |
/// | realized shared column | M | the column whose text is the unit's, or −1 |
/// | teacher offsets, student offsets | M + 1 each | the steps of a MULTI unit |
/// | teacher steps: unit, row, id | 3 × P | number among the MULTI units, logit row, token |
/// | student steps: unit, row, id | 3 × P | likewise |
///
/// SHARED and SPECIAL units come first, then MULTI units, each in the order of the batch.
///
/// With continuations follow, with E entries in a direction:
///
/// | section | entries | content |
/// | --- | --- | --- |
/// | teacher entries: unit, node, depth | 3 × E | place among the N units, ascending; node of the teacher's spellings; how many realized student tokens lead there |
/// | teacher leaf offsets | E + 1 | the leaves of all entries, numbered through |
/// | student entries, student leaf offsets | 4 × E + 1 | likewise, the other way round |
/// | realized teacher leaf, realized student leaf | M each | the leaf whose text the unit's is, if it is a continuation of the unit, else −1 |
///
/// The realized leaf is found by text: the unit's text is that of a one-sided token, on whichever
/// paths either side realized it, and the spelling of that token, but for its last token, is how
/// the realized path of the other side begins. So the leaf is among those of the unit's entries,
/// and stands for a text that the unit has twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// All sections, one after another.
    pub packed: Vec<i64>,
    /// Their sizes, and what was left out.
    pub counts: Counts,
}

/// Makes the index of a batch, with continuations if there are options for them.
///
/// # Complexity
///
/// O(units + tokens in MULTI units) time, and that of [`on_path`]; memory of the result.
///
/// # Errors
///
/// Columns of different lengths, positions that are not in their row, an id that is in no
/// vocabulary: nothing that [`align_batch`](crate::batch::align_batch) makes.
pub fn build_index<I: TokenId>(
    pair: &Pair,
    units: &UnitColumns<'_>,
    teacher: IndexSide<'_, I>,
    student: IndexSide<'_, I>,
    continuations: Option<&PathOptions>,
) -> Result<Index> {
    units.check(teacher.ids, student.ids)?;
    let rows = teacher.ids.rows();
    check_lengths([
        ("teacher_row_starts", teacher.row_starts.len(), rows, "one entry for every row"),
        ("student_row_starts", student.row_starts.len(), rows, "one entry for every row"),
    ])?;
    let mut counts = Counts::default();
    for unit in 0..units.kind.len() {
        units.count(unit, &mut counts);
    }
    let all = counts.shared + counts.multi;
    let (multi, steps) = (counts.multi, (counts.teacher_steps, counts.student_steps));
    let sizes = [all, all, all, all, all, multi, multi + 1, multi + 1];
    let sizes = sizes.into_iter().chain([steps.0; 3]).chain([steps.1; 3]);
    let reached = match continuations {
        Some(options) => Some(Reached::new(pair, units, teacher, student, options)?),
        None => None,
    };
    let more = reached.as_ref().map_or(Vec::new(), |reached| reached.sizes(multi));
    let sizes = sizes.chain(more);
    let mut packed = vec![0; sizes.clone().sum()];
    let mut sections = Sections::split(&mut packed, sizes);
    let [unit_of, kind, tokens, teacher_row, student_row] = sections.take();
    let [column, teacher_offsets, student_offsets] = sections.take();
    let mut teacher_paths = Paths::new(teacher_offsets, sections.take());
    let mut student_paths = Paths::new(student_offsets, sections.take());
    let teacher_entries = sections.take();
    let student_entries = sections.take();
    let [teacher_leaf, student_leaf] = sections.take();

    let (mut next_shared, mut next_multi) = (0, counts.shared);
    for row in 0..teacher.ids.rows() {
        for unit in units.of_row(row) {
            let at = match units.place(unit) {
                Place::Dropped => continue,
                Place::Shared => &mut next_shared,
                Place::Multi => &mut next_multi,
            };
            let place = *at;
            *at += 1;
            let (teacher_range, student_range) = units.ranges(row, unit, teacher, student)?;
            unit_of[place] = long(unit);
            kind[place] = i64::from(units.kind[unit]);
            tokens[place] = long(student_range.len());
            teacher_row[place] = teacher.row_starts[row] + long(teacher_range.start) - 1;
            student_row[place] = student.row_starts[row] + long(student_range.start) - 1;
            if place >= counts.shared {
                let teacher_ids = &teacher.ids.row(row)[teacher_range];
                let student_ids = &student.ids.row(row)[student_range];
                let multi = place - counts.shared;
                let single = single_token(pair, row, teacher_ids, student_ids)?;
                column[multi] = single.map_or(-1, |single| column_of(pair, single));
                if let Some(reached) = &reached {
                    let leaves = reached.realized_leaves(single, teacher_ids, student_ids);
                    [teacher_leaf[multi], student_leaf[multi]] = leaves;
                }
                teacher_paths.push(multi, teacher_row[place], teacher_ids);
                student_paths.push(multi, student_row[place], student_ids);
            }
        }
    }
    if let Some(reached) = reached {
        let order = (&*unit_of, counts.shared);
        counts.teacher = reached.teacher.pack(order, teacher_entries);
        counts.student = reached.student.pack(order, student_entries);
    }
    Ok(Index { packed, counts })
}

/// The continuations of a batch, to be packed.
struct Reached<'a> {
    teacher: Direction<'a>,
    student: Direction<'a>,
}

/// Those of one direction.
struct Direction<'a> {
    entries: Entries,
    spellings: &'a SpellingTable,
    max_path: usize,
}

impl<'a> Reached<'a> {
    fn new<I: TokenId>(
        pair: &'a Pair,
        units: &UnitColumns<'_>,
        teacher: IndexSide<'_, I>,
        student: IndexSide<'_, I>,
        options: &PathOptions,
    ) -> Result<Self> {
        let found = on_path(pair, units, teacher.ids, student.ids, options)?;
        let Spellings { teacher, student } = pair.spellings()?;
        let max_path = options.max_path;
        Ok(Self {
            teacher: Direction { entries: found.teacher, spellings: teacher, max_path },
            student: Direction { entries: found.student, spellings: student, max_path },
        })
    }

    fn sizes(&self, multi: usize) -> Vec<usize> {
        let [teacher, student] = [self.teacher.entries.len(), self.student.entries.len()];
        let of = |entries| [entries, entries, entries, entries + 1];
        [of(teacher), of(student)].concat().into_iter().chain([multi; 2]).collect()
    }

    /// The leaves of both directions, at most one of them, whose text a unit's is.
    fn realized_leaves<I: TokenId>(
        &self,
        single: Option<(Side, u32)>,
        teacher: &[I],
        student: &[I],
    ) -> [i64; 2] {
        let (direction, realized) = match single {
            Some((Side::Teacher, _)) => (&self.teacher, student),
            Some((Side::Student, _)) => (&self.student, teacher),
            None => return [-1; 2],
        };
        let leaf = single.and_then(|(_, token)| {
            let realized = realized.iter().map(|id| id.index());
            direction.spellings.leaf_on_path(token, direction.max_path, realized)
        });
        match (single, leaf.map_or(-1, i64::from)) {
            (Some((Side::Teacher, _)), leaf) => [leaf, -1],
            (_, leaf) => [-1, leaf],
        }
    }
}

impl Direction<'_> {
    /// Writes the entries in the order of the index: of its first units, then of the others.
    fn pack(&self, (unit_of, shared): (&[i64], usize), sections: [&mut [i64]; 4]) -> EntryCounts {
        let [unit, node, depth, leaf_offsets] = sections;
        let (mut next, mut leaves) = (0, 0);
        for block in [0..shared, shared..unit_of.len()] {
            // Both ascend, and every entry's unit is in one of the blocks.
            let mut place = block.start;
            for (entry, &number) in self.entries.unit.iter().enumerate() {
                let number = i64::from(number);
                while place < block.end && unit_of[place] < number {
                    place += 1;
                }
                if place < block.end && unit_of[place] == number {
                    unit[next] = long(place);
                    node[next] = i64::from(self.entries.node[entry]);
                    depth[next] = i64::from(self.entries.depth[entry]);
                    leaves += self.spellings.leaves_of(self.entries.node[entry]);
                    next += 1;
                    leaf_offsets[next] = long(leaves);
                }
            }
        }
        let cut_off = self.spellings.cut_off(self.max_path);
        EntryCounts { entries: next, leaves, cut_off }
    }
}

/// A name, what length came, what length is right, and why.
type Length = (&'static str, usize, usize, &'static str);

fn check_lengths(lengths: impl IntoIterator<Item = Length>) -> Result<()> {
    match lengths.into_iter().find(|(_, found, expected, _)| found != expected) {
        Some((name, found, expected, why)) => {
            Err(Error::LengthMismatch { name, found, expected, why })
        }
        None => Ok(()),
    }
}

/// Where a unit goes.
enum Place {
    Shared,
    Multi,
    Dropped,
}

impl UnitColumns<'_> {
    /// Checks that all columns, and both sides' ids, fit together.
    pub(crate) fn check<I: TokenId>(
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
        // `check` has seen that no offset is negative.
        let at = |index: usize| usize::try_from(self.row_offsets[index]).unwrap_or(0);
        at(row)..at(row + 1)
    }

    fn has_no_prefix(&self, unit: usize) -> bool {
        self.teacher_start[unit] == 0 || self.student_start[unit] == 0
    }

    fn place(&self, unit: usize) -> Place {
        if self.has_no_prefix(unit) || self.unit_class[unit] & TRIMMED != 0 {
            Place::Dropped
        } else if self.kind[unit] == UnitKind::Multi as u8 {
            Place::Multi
        } else {
            Place::Shared
        }
    }

    fn count(&self, unit: usize, counts: &mut Counts) {
        let length = |start: i32, end: i32| usize::try_from(i64::from(end) - i64::from(start));
        // A negative length is an error that `ranges` names.
        let teacher = length(self.teacher_start[unit], self.teacher_end[unit]).unwrap_or(0);
        let student = length(self.student_start[unit], self.student_end[unit]).unwrap_or(0);
        match self.place(unit) {
            Place::Dropped if self.has_no_prefix(unit) => counts.dropped_no_prefix += 1,
            Place::Dropped => counts.dropped_dummy_prefix += 1,
            Place::Shared => {
                counts.shared += 1;
                counts.student_tokens_shared += student;
            }
            Place::Multi => {
                counts.multi += 1;
                counts.teacher_steps += teacher;
                counts.student_steps += student;
            }
        }
    }

    /// The positions of a unit in its rows.
    fn ranges<I: TokenId>(
        &self,
        row: usize,
        unit: usize,
        teacher: IndexSide<'_, I>,
        student: IndexSide<'_, I>,
    ) -> Result<(Range<usize>, Range<usize>)> {
        let range = |side, start: i32, end: i32, length: usize| match (
            usize::try_from(start),
            usize::try_from(end),
        ) {
            (Ok(start), Ok(end)) if start < end && end <= length => Ok(start..end),
            _ => Err(Error::UnitOutsideRow { row, unit, side, start, end }),
        };
        let (teacher_length, student_length) =
            (teacher.ids.row(row).len(), student.ids.row(row).len());
        Ok((
            range(Side::Teacher, self.teacher_start[unit], self.teacher_end[unit], teacher_length)?,
            range(Side::Student, self.student_start[unit], self.student_end[unit], student_length)?,
        ))
    }
}

/// The single token, of either side, whose text a unit spells; by canonical id.
fn single_token<I: TokenId>(
    pair: &Pair,
    row: usize,
    teacher: &[I],
    student: &[I],
) -> Result<Option<(Side, u32)>> {
    let canonical = |vocabulary: &Vocabulary, id: I| {
        u32::try_from(id.index()).ok().map(|id| vocabulary.canonical_id(id))
    };
    Ok(match (teacher, student) {
        ([single], _) => canonical(&pair.teacher, *single).map(|id| (Side::Teacher, id)),
        (_, [single]) => canonical(&pair.student, *single).map(|id| (Side::Student, id)),
        _ => {
            let text = pair.student.decode(student).map_err(|position| Error::IdOutOfRange {
                row,
                position,
                side: Side::Student,
                id: student[position].value(),
                vocab_size: pair.student.len(),
            })?;
            let teacher = pair.teacher.find(&text).map(|id| (Side::Teacher, id));
            teacher.or_else(|| pair.student.find(&text).map(|id| (Side::Student, id)))
        }
    })
}

/// The column of a token's text, or −1.
fn column_of(pair: &Pair, single: (Side, u32)) -> i64 {
    let column = match single {
        (Side::Teacher, id) => pair.teacher_column(id),
        (Side::Student, id) => pair.student_column(id),
    };
    if column == NONE { -1 } else { i64::from(column) }
}

/// The steps of one side's realized paths, as they are written.
struct Paths<'a> {
    offsets: &'a mut [i64],
    unit: &'a mut [i64],
    row: &'a mut [i64],
    id: &'a mut [i64],
    next: usize,
}

impl<'a> Paths<'a> {
    fn new(offsets: &'a mut [i64], [unit, row, id]: [&'a mut [i64]; 3]) -> Self {
        Self { offsets, unit, row, id, next: 0 }
    }

    fn push<I: TokenId>(&mut self, unit: usize, prefix_row: i64, ids: &[I]) {
        for (step, id) in (0..).zip(ids) {
            self.unit[self.next] = long(unit);
            self.row[self.next] = prefix_row + step;
            self.id[self.next] = id.value();
            self.next += 1;
        }
        self.offsets[unit + 1] = long(self.next);
    }
}

/// A buffer cut into sections.
struct Sections<'a>(std::vec::IntoIter<&'a mut [i64]>);

impl<'a> Sections<'a> {
    fn split(mut buffer: &'a mut [i64], sizes: impl Iterator<Item = usize>) -> Self {
        let mut sections = Vec::new();
        for size in sizes {
            let (section, rest) = buffer.split_at_mut(size);
            sections.push(section);
            buffer = rest;
        }
        Self(sections.into_iter())
    }

    /// The next sections; empty ones past the end.
    fn take<const N: usize>(&mut self) -> [&'a mut [i64]; N] {
        std::array::from_fn(|_| self.0.next().unwrap_or_default())
    }
}

fn long(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
