//! The layout of an index: its sections, described once, and the counts that give their lengths.
//!
//! All integers of an index are `i64` and lie in one buffer, section after section, in the order of
//! [`SECTIONS`]. A section is written and read by its name.

use std::ops::Range;

/// The counts of an [`Index`](crate::index::Index).
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
    /// Units left out because they are at position 0 of a row, where no logits predict them.
    pub dropped_no_prefix: usize,
    /// Units left out because their first token lost its dummy prefix.
    pub dropped_dummy_prefix: usize,
    /// Nodes of the teacher's spellings that units reach.
    pub teacher: EntryCounts,
    /// Nodes of the student's spellings that units reach.
    pub student: EntryCounts,
    /// Text events.
    pub text: TextCounts,
}

/// The counts of continuations of an [`Index`](crate::index::Index) in one direction; 0 without
/// continuations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryCounts {
    /// Entries.
    pub entries: usize,
    /// The leaves of all entries.
    pub leaves: usize,
    /// Spellings that are not continuations because they have more than `max_path` + 1 tokens.
    pub cut_off: usize,
}

/// How much of text events an [`Index`](crate::index::Index) holds; nothing without them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextCounts {
    /// Offsets.
    pub offsets: usize,
    /// Stretches, those that begin inside of others included.
    pub stretches: usize,
    /// Student tokens in stretches.
    pub student_tokens: usize,
    /// Units left out because they begin a row.
    pub units_without_prefix: usize,
    /// Units left out because a token has no bytes.
    pub units_left_out: usize,
    /// The teacher's side.
    pub teacher: TextSideCounts,
    /// The student's side.
    pub student: TextSideCounts,
}

/// How much of text events an index holds on one side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextSideCounts {
    /// Text rows.
    pub rows: usize,
    /// Sources of all offsets together.
    pub sources: usize,
}

/// A count that lengths of sections follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Units: SHARED and SPECIAL ones, then MULTI ones.
    Units,
    /// MULTI units.
    Multi,
    /// Teacher tokens in MULTI units.
    TeacherSteps,
    /// Student tokens in MULTI units.
    StudentSteps,
    /// Entries of the teacher's direction.
    TeacherEntries,
    /// Entries of the student's direction.
    StudentEntries,
    /// Offsets of text events.
    TextOffsets,
    /// Text rows of the teacher.
    TeacherTextRows,
    /// Text rows of the student.
    StudentTextRows,
    /// Sources of the teacher.
    TeacherSources,
    /// Sources of the student.
    StudentSources,
}

impl Count {
    /// What Python calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Units => "n_units",
            Self::Multi => "n_multi",
            Self::TeacherSteps => "n_teacher_steps",
            Self::StudentSteps => "n_student_steps",
            Self::TeacherEntries => "n_teacher_entries",
            Self::StudentEntries => "n_student_entries",
            Self::TextOffsets => "n_text_offsets",
            Self::TeacherTextRows => "n_teacher_text_rows",
            Self::StudentTextRows => "n_student_text_rows",
            Self::TeacherSources => "n_teacher_sources",
            Self::StudentSources => "n_student_sources",
        }
    }

    /// The number.
    #[must_use]
    pub fn of(self, counts: &Counts) -> usize {
        match self {
            Self::Units => counts.shared + counts.multi,
            Self::Multi => counts.multi,
            Self::TeacherSteps => counts.teacher_steps,
            Self::StudentSteps => counts.student_steps,
            Self::TeacherEntries => counts.teacher.entries,
            Self::StudentEntries => counts.student.entries,
            Self::TextOffsets => counts.text.offsets,
            Self::TeacherTextRows => counts.text.teacher.rows,
            Self::StudentTextRows => counts.text.student.rows,
            Self::TeacherSources => counts.text.teacher.sources,
            Self::StudentSources => counts.text.student.sources,
        }
    }
}

/// A group of sections that an index has or lacks together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// What every index has.
    Units,
    /// The first token of every unit.
    FirstIds,
    /// The nodes that units reach, and the leaves with the texts of units.
    Continuations,
    /// The rows and tokens that say how the text goes on at every boundary.
    TextEvents,
}

impl Group {
    /// What Python calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Units => "units",
            Self::FirstIds => "first_ids",
            Self::Continuations => "continuations",
            Self::TextEvents => "text_events",
        }
    }
}

/// A section of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name.
    pub name: &'static str,
    /// The count in its length.
    pub count: Count,
    /// The number that is added to the count: offsets have one entry more.
    pub extra: usize,
    /// Which indices have it.
    pub group: Group,
}

impl Section {
    const fn new(name: &'static str, count: Count, extra: usize, group: Group) -> Self {
        Self { name, count, extra, group }
    }
}

/// All sections, in the order in which they lie in the buffer.
///
/// | section | content |
/// | --- | --- |
/// | `unit` | number of the unit in the batch |
/// | `kind` | its [`UnitKind`](crate::columns::UnitKind) |
/// | `student_tokens` | its number of student tokens |
/// | `teacher_row`, `student_row` | flat logit row of its prefix |
/// | `realized_shared_column` | the column with the text of the unit, or −1 |
/// | `teacher_offsets`, `student_offsets` | where the steps of a MULTI unit begin |
/// | `teacher_step_…`, `student_step_…` | number among the MULTI units, logit row, token |
/// | `teacher_first_id`, `student_first_id` | the unit's first token |
/// | `teacher_entry_…` | place among the units, ascending; node of the teacher's spellings; how many realized student tokens lead there |
/// | `student_entry_…` | the same for the student's spellings and realized teacher tokens |
/// | `realized_teacher_leaf`, `realized_student_leaf` | the leaf with the text of the unit, if it is a continuation of the unit, else −1 |
///
/// | `teacher_text_…`, `student_text_…` | of every [text row](crate::text_events): logit row; the token that the text takes, −1 for a last row |
/// | `teacher_own_text_row`, `student_own_text_row` | of every offset: the text row that stands there, or −1 |
/// | `text_offset_stretch`, `text_offset_batch_row` | of every offset: stretch; row of the batch |
/// | `teacher_source_offsets`, `student_source_offsets` | where the sources of an offset begin |
/// | `teacher_source_…`, `student_source_…` | of every source, the earliest row first: text row; the tokens that begin with the text since, `start..end` in token order; how many bytes that is; how many of the tokens, the first ones, have no more; where the [suffixes](crate::text_tree::TreeSide::suffixes) of the others begin |
///
/// SHARED and SPECIAL units come first, then MULTI units, each in the order of the batch.
///
/// The realized leaf is found by text. The text of the unit is the text of a one-sided token, no
/// matter which tokens either side realized, and the realized path of the other side begins with
/// the spelling of that token without its last token. The leaf then belongs to an entry of the
/// unit, and its text would otherwise count twice.
pub const SECTIONS: [Section; 46] = {
    use Count::{
        Multi, StudentEntries, StudentSources, StudentSteps, StudentTextRows, TeacherEntries,
        TeacherSources, TeacherSteps, TeacherTextRows, TextOffsets, Units,
    };
    use Group::{Continuations, FirstIds, TextEvents};
    let always = Group::Units;
    [
        Section::new("unit", Units, 0, always),
        Section::new("kind", Units, 0, always),
        Section::new("student_tokens", Units, 0, always),
        Section::new("teacher_row", Units, 0, always),
        Section::new("student_row", Units, 0, always),
        Section::new("realized_shared_column", Multi, 0, always),
        Section::new("teacher_offsets", Multi, 1, always),
        Section::new("student_offsets", Multi, 1, always),
        Section::new("teacher_step_unit", TeacherSteps, 0, always),
        Section::new("teacher_step_row", TeacherSteps, 0, always),
        Section::new("teacher_step_id", TeacherSteps, 0, always),
        Section::new("student_step_unit", StudentSteps, 0, always),
        Section::new("student_step_row", StudentSteps, 0, always),
        Section::new("student_step_id", StudentSteps, 0, always),
        Section::new("teacher_first_id", Units, 0, FirstIds),
        Section::new("student_first_id", Units, 0, FirstIds),
        Section::new("teacher_entry_unit", TeacherEntries, 0, Continuations),
        Section::new("teacher_entry_node", TeacherEntries, 0, Continuations),
        Section::new("teacher_entry_depth", TeacherEntries, 0, Continuations),
        Section::new("student_entry_unit", StudentEntries, 0, Continuations),
        Section::new("student_entry_node", StudentEntries, 0, Continuations),
        Section::new("student_entry_depth", StudentEntries, 0, Continuations),
        Section::new("realized_teacher_leaf", Multi, 0, Continuations),
        Section::new("realized_student_leaf", Multi, 0, Continuations),
        Section::new("teacher_text_row", TeacherTextRows, 0, TextEvents),
        Section::new("teacher_text_id", TeacherTextRows, 0, TextEvents),
        Section::new("student_text_row", StudentTextRows, 0, TextEvents),
        Section::new("student_text_id", StudentTextRows, 0, TextEvents),
        Section::new("teacher_own_text_row", TextOffsets, 0, TextEvents),
        Section::new("student_own_text_row", TextOffsets, 0, TextEvents),
        Section::new("text_offset_stretch", TextOffsets, 0, TextEvents),
        Section::new("text_offset_batch_row", TextOffsets, 0, TextEvents),
        Section::new("teacher_source_offsets", TextOffsets, 1, TextEvents),
        Section::new("teacher_source_row", TeacherSources, 0, TextEvents),
        Section::new("teacher_source_start", TeacherSources, 0, TextEvents),
        Section::new("teacher_source_end", TeacherSources, 0, TextEvents),
        Section::new("teacher_source_length", TeacherSources, 0, TextEvents),
        Section::new("teacher_source_exact", TeacherSources, 0, TextEvents),
        Section::new("teacher_source_suffix", TeacherSources, 0, TextEvents),
        Section::new("student_source_offsets", TextOffsets, 1, TextEvents),
        Section::new("student_source_row", StudentSources, 0, TextEvents),
        Section::new("student_source_start", StudentSources, 0, TextEvents),
        Section::new("student_source_end", StudentSources, 0, TextEvents),
        Section::new("student_source_length", StudentSources, 0, TextEvents),
        Section::new("student_source_exact", StudentSources, 0, TextEvents),
        Section::new("student_source_suffix", StudentSources, 0, TextEvents),
    ]
};

/// Where the sections of some groups lie in the buffer, by name, in order.
///
/// `sections` is [`SECTIONS`], or a table of another order.
#[must_use]
pub fn ranges(
    sections: &[Section],
    groups: &[Group],
    counts: &Counts,
) -> Vec<(&'static str, Range<usize>)> {
    let mut end = 0;
    let present = sections.iter().filter(|section| groups.contains(&section.group));
    present
        .map(|section| {
            let start = end;
            end += section.count.of(counts) + section.extra;
            (section.name, start..end)
        })
        .collect()
}

/// A buffer cut into sections, each to be taken once.
pub(crate) struct Sections<'a>(Vec<(&'static str, &'a mut [i64])>);

impl<'a> Sections<'a> {
    /// Cuts a buffer at [`ranges`].
    pub(crate) fn cut(mut buffer: &'a mut [i64], ranges: &[(&'static str, Range<usize>)]) -> Self {
        let mut sections = Vec::with_capacity(ranges.len());
        for (name, range) in ranges {
            let (section, rest) = buffer.split_at_mut(range.len());
            sections.push((*name, section));
            buffer = rest;
        }
        Self(sections)
    }

    /// The section of a name; an empty one if the index does not have it.
    pub(crate) fn take(&mut self, name: &str) -> &'a mut [i64] {
        let place = self.0.iter().position(|(known, _)| *known == name);
        place.map_or(&mut [], |place| self.0.swap_remove(place).1)
    }
}
