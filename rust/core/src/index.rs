//! The tensors that a loss gathers with, made from an aligned batch.
//!
//! Logits at position p predict the token at p + 1, so a unit is scored by the logit row before
//! its first token, its *prefix row*; a path of k tokens by k consecutive rows from there on. Rows
//! are numbered through the whole batch, as the trainer lays its logits out.
//!
//! All integers lie in one buffer, in [sections](crate::sections), so that one transfer moves them
//! to a device.
//!
//! `index_side` writes the sections of one side, `index_continuations` those of the continuations,
//! and `text_sections` those of the text events.

use std::ops::Range;

use crate::class::TRIMMED;
use crate::columns::{UnitColumns, UnitKind, check_lengths};
use crate::continuation::PathOptions;
use crate::error::{Error, Result};
use crate::ids::{NONE, RaggedIds, Side, TokenId};
use crate::index_continuations::Reached;
use crate::index_side::{SideWriter, long};
use crate::pair::Pair;
use crate::sections::{Counts, Group, SECTIONS, Section, Sections, ranges};
use crate::threads::{Stop, Threads, runs, zeros};
use crate::vocabulary::Vocabulary;
use crate::{text_events, text_sections};

/// One side's ids, and where its rows lie in the flat logits.
#[derive(Clone, Copy, Debug)]
pub struct IndexSide<'a, I> {
    /// The ids of the batch.
    pub ids: RaggedIds<'a, I>,
    /// The flat logit row of position 0 of every row.
    pub row_starts: &'a [i64],
    /// How many logit rows a row of the batch has, where what is read of it must not reach beyond.
    pub stride: Option<i64>,
    /// 0 for the positions that take no part, one entry for every id; all do without it.
    pub mask: Option<&'a [u8]>,
    /// Where the tokens lie that are only a dummy prefix, counted over the whole batch; ascending.
    pub dummy_prefixes: &'a [i64],
}

/// What an index holds besides its units.
#[derive(Clone, Copy, Debug, Default)]
pub struct IndexOptions {
    /// Whether it has the first token of every unit.
    pub first_ids: bool,
    /// Whether it has continuations, and which.
    pub continuations: Option<PathOptions>,
    /// Whether it has text events, and how many threads find them; the result is the same for
    /// every number.
    pub text_events: Option<Threads>,
}

/// The tensors that a loss gathers with: see [`SECTIONS`] for what they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// All sections, one after another.
    pub packed: Vec<i64>,
    /// The counts that give their lengths, and what was left out.
    pub counts: Counts,
    /// How many rows of the teacher's logits there must be for all that is read.
    pub teacher_rows_needed: i64,
    /// Likewise for the student.
    pub student_rows_needed: i64,
}

/// Makes the index of a batch.
///
/// # Complexity
///
/// O(units + tokens in MULTI units) time, and that of
/// [`on_path`](crate::continuation::on_path) for continuations; with text events
/// O(tokens + sources), divided over the threads, and the pair's tree on the first call; memory of
/// the result.
///
/// # Errors
///
/// Row starts before the logits, a stride shorter than what is read of a row. Columns of different
/// lengths, positions that are not in their row, an id that is in no vocabulary: nothing that
/// [`align_batch`](crate::batch::align_batch) makes.
pub fn build_index<I: TokenId>(
    pair: &Pair,
    units: &UnitColumns<'_>,
    teacher: IndexSide<'_, I>,
    student: IndexSide<'_, I>,
    options: &IndexOptions,
) -> Result<Index> {
    build_in_order(&SECTIONS, pair, units, (teacher, student), options)
}

/// Makes an index whose sections lie in the order of a table.
fn build_in_order<I: TokenId>(
    table: &[Section],
    pair: &Pair,
    units: &UnitColumns<'_>,
    (teacher, student): (IndexSide<'_, I>, IndexSide<'_, I>),
    options: &IndexOptions,
) -> Result<Index> {
    units.check(teacher.ids, student.ids)?;
    let rows = teacher.ids.rows();
    check_lengths([
        ("teacher_row_starts", teacher.row_starts.len(), rows, "one entry for every row"),
        ("student_row_starts", student.row_starts.len(), rows, "one entry for every row"),
    ])?;
    for (name, side) in [("teacher_mask", teacher), ("student_mask", student)] {
        let ids = side.ids.values().len();
        check_lengths(side.mask.map(|mask| (name, mask.len(), ids, "one entry for every id")))?;
    }
    let stop = Stop::new();
    let mut counts = Counts::default();
    for run in runs(units.kind.len()) {
        stop.check()?;
        run.for_each(|unit| units.count(unit, &mut counts));
    }
    let reached = match &options.continuations {
        Some(options) => Some(Reached::new(pair, units, teacher, student, options)?),
        None => None,
    };
    if let Some(reached) = &reached {
        counts.teacher = reached.teacher.counts(&stop)?;
        counts.student = reached.student.counts(&stop)?;
    }
    let events = match options.text_events {
        Some(threads) => {
            let found = text_events::find(pair, units, [teacher, student], threads)?;
            counts.text = text_sections::count(&found);
            Some((found, threads))
        }
        None => None,
    };
    let ranges = ranges(table, &options.groups(), &counts);
    let length = ranges.last().map_or(0, |(_, range)| range.end);
    let mut packed = zeros("sections of the index", length, &stop)?;
    let mut sections = Sections::cut(&mut packed, &ranges);
    let [unit_of, kind, tokens, column] =
        ["unit", "kind", "student_tokens", "realized_shared_column"]
            .map(|name| sections.take(name));
    let mut teacher_out = SideWriter::new(&mut sections, Side::Teacher, teacher);
    let mut student_out = SideWriter::new(&mut sections, Side::Student, student);

    let (mut next_shared, mut next_multi) = (0, counts.shared);
    for row in 0..rows {
        stop.check()?;
        let lengths = (teacher_out.begin_row(row), student_out.begin_row(row));
        for unit in units.of_row(row) {
            let at = match units.place(unit) {
                Place::Dropped => continue,
                Place::Shared => &mut next_shared,
                Place::Multi => &mut next_multi,
            };
            let place = *at;
            *at += 1;
            let (teacher_range, student_range) = units.ranges(row, unit, lengths)?;
            unit_of[place] = long(unit);
            kind[place] = i64::from(units.kind[unit]);
            tokens[place] = long(student_range.len());
            let multi = place.checked_sub(counts.shared);
            let teacher_ids = teacher_out.push(teacher_range, place, multi);
            let student_ids = student_out.push(student_range, place, multi);
            if let Some(multi) = multi {
                let single = single_token(pair, row, teacher_ids, student_ids)?;
                column[multi] = single.map_or(-1, |single| column_of(pair, single));
                if let Some(reached) = &reached {
                    [teacher_out.realized_leaf[multi], student_out.realized_leaf[multi]] =
                        reached.realized_leaves(single, teacher_ids, student_ids);
                }
            }
        }
    }
    if let Some(reached) = reached {
        let order = (&*unit_of, counts.shared);
        // The last token of a continuation is read after the realized ones, by the side that spells.
        let (teacher, student) = (&mut teacher_out, &mut student_out);
        reached.teacher.pack(order, teacher, student, units.student_start, &stop)?;
        reached.student.pack(order, student, teacher, units.teacher_start, &stop)?;
    }
    if let Some((found, threads)) = events {
        text_sections::pack(&found, &mut sections, threads)?;
        for part in &found {
            teacher_out.reach.add(&part.reach[0]);
            student_out.reach.add(&part.reach[1]);
        }
        text_events::keep(found);
    }
    let teacher_rows_needed = teacher_out.reach.check(Side::Teacher, teacher.stride)?;
    let student_rows_needed = student_out.reach.check(Side::Student, student.stride)?;
    Ok(Index { packed, counts, teacher_rows_needed, student_rows_needed })
}

impl IndexOptions {
    fn groups(&self) -> Vec<Group> {
        let more = [
            self.first_ids.then_some(Group::FirstIds),
            self.continuations.map(|_| Group::Continuations),
            self.text_events.map(|_| Group::TextEvents),
        ];
        std::iter::once(Group::Units).chain(more.into_iter().flatten()).collect()
    }
}

/// Where a unit goes.
enum Place {
    Shared,
    Multi,
    Dropped,
}

impl UnitColumns<'_> {
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

    /// The positions of a unit in its rows, which have these lengths.
    pub(crate) fn ranges(
        &self,
        row: usize,
        unit: usize,
        (teacher_length, student_length): (usize, usize),
    ) -> Result<(Range<usize>, Range<usize>)> {
        let range = |side, start: i32, end: i32, length: usize| match (
            usize::try_from(start),
            usize::try_from(end),
        ) {
            (Ok(start), Ok(end)) if start < end && end <= length => Ok(start..end),
            _ => Err(Error::UnitOutsideRow { row, unit, side, start, end }),
        };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::PairOptions;
    use crate::threads::Threads;
    use crate::vocabulary::Token;

    /// A batch of one row with everything in it, and its index in the order of a table.
    fn build(table: &[Section], options: &IndexOptions, strides: [i64; 2]) -> Result<Index> {
        let teacher = ["12", "13", "ab", "+", "a"].map(Token::normal);
        let student = ["1", "2", "3", "b", "+", "a", "23"].map(Token::normal);
        let teacher = Vocabulary::from_tokens(teacher)?;
        let student = Vocabulary::from_tokens(student)?;
        let pair = Pair::new(teacher.into(), student.into(), &PairOptions::default())?;
        // `+`, `+`, `12`, `ab`, `+`
        let (teacher, student) = (vec![3i64, 3, 0, 2, 3], vec![4i64, 4, 0, 1, 5, 3, 4]);
        let units = UnitColumns {
            row_offsets: &[0, 5],
            teacher_start: &[0, 1, 2, 3, 4],
            teacher_end: &[1, 2, 3, 4, 5],
            student_start: &[0, 1, 2, 4, 6],
            student_end: &[1, 2, 4, 6, 7],
            kind: &[0, 0, 1, 1, 0],
            unit_class: &[0; 5],
        };
        let [teacher_offsets, student_offsets] = [[0, 5], [0, 7]];
        let side = |ids, row_starts, stride: i64| IndexSide {
            ids,
            row_starts,
            stride: Some(stride),
            mask: None,
            dummy_prefixes: &[],
        };
        let teacher = RaggedIds::new(Side::Teacher, &teacher, &teacher_offsets)?;
        let student = RaggedIds::new(Side::Student, &student, &student_offsets)?;
        let sides = (side(teacher, &[10], strides[0]), side(student, &[20], strides[1]));
        build_in_order(table, &pair, &units, sides, options)
    }

    fn all() -> IndexOptions {
        let threads = Threads::AllCores;
        let continuations = Some(PathOptions { max_path: 8, threads });
        IndexOptions { first_ids: true, continuations, text_events: Some(threads) }
    }

    #[test]
    fn a_permuted_table_permutes_the_buffer() -> Result<()> {
        let index = build(&SECTIONS, &all(), [9; 2])?;
        let places = ranges(&SECTIONS, &all().groups(), &index.counts);
        assert_eq!(places.len(), SECTIONS.len());
        assert_eq!(places.last().map(|(_, range)| range.end), Some(index.packed.len()));
        for turned in 0..SECTIONS.len() {
            let mut table = SECTIONS;
            table.reverse();
            table.rotate_left(turned);
            let permuted = build(&table, &all(), [9; 2])?;
            assert_eq!(permuted.counts, index.counts);
            for (name, range) in ranges(&table, &all().groups(), &permuted.counts) {
                let known = places.iter().find(|(known, _)| *known == name).unwrap();
                assert_eq!(permuted.packed[range], index.packed[known.1.clone()], "{name}");
            }
        }
        Ok(())
    }

    #[test]
    fn sections_hold_what_their_names_say() -> Result<()> {
        let index = build(&SECTIONS, &all(), [9; 2])?;
        let places = ranges(&SECTIONS, &all().groups(), &index.counts);
        let read = |name: &str| {
            let (_, range) = places.iter().find(|(known, _)| *known == name).unwrap();
            &index.packed[range.clone()]
        };
        assert_eq!(read("unit"), [1, 4, 2, 3]);
        assert_eq!(read("kind"), [0, 0, 1, 1]);
        assert_eq!(read("student_tokens"), [1, 1, 2, 2]);
        assert_eq!(read("teacher_row"), [10, 13, 11, 12]);
        assert_eq!(read("student_row"), [20, 25, 21, 23]);
        assert_eq!(read("realized_shared_column"), [-1, -1]);
        assert_eq!(read("student_offsets"), [0, 2, 4]);
        assert_eq!(read("student_step_unit"), [0, 0, 1, 1]);
        assert_eq!(read("student_step_row"), [21, 22, 23, 24]);
        assert_eq!(read("student_step_id"), [0, 1, 5, 3]);
        assert_eq!(read("teacher_first_id"), [3, 3, 0, 2]);
        assert_eq!(read("student_first_id"), [4, 4, 0, 5]);
        // After `1` come 12 and 13, after `a` comes ab.
        assert_eq!(read("teacher_entry_unit"), [2, 3]);
        assert_eq!(read("teacher_entry_node"), [0, 1]);
        assert_eq!(read("teacher_entry_depth"), [1, 1]);
        assert_eq!(read("student_entry_unit"), []);
        assert_eq!(read("realized_teacher_leaf"), [0, 2]);
        assert_eq!((index.teacher_rows_needed, index.student_rows_needed), (14, 26));
        Ok(())
    }

    #[test]
    fn a_stride_holds_all_that_is_read_of_a_row() {
        let plain = IndexOptions::default();
        assert!(build(&SECTIONS, &plain, [4, 6]).is_ok());
        let error = build(&SECTIONS, &plain, [3, 6]).unwrap_err();
        assert_eq!(error, Error::StrideTooShort { side: Side::Teacher, stride: 3, needed: 4 });
        assert!(build(&SECTIONS, &plain, [4, 5]).unwrap_err().to_string().starts_with(
            "student_stride: expected at least 6, the rows of logits that are read for one row of"
        ));
    }
}
