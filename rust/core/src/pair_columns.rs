//! The columns of a pair's shared vocabulary: which tokens of both sides belong together.

use std::collections::HashSet;

use crate::error::{Error, Result};
use crate::ids::{NONE, Side};
use crate::pair::{PairOptions, Stops};
use crate::vocabulary::{TokenKind, Vocabulary};

/// Every byte string that is a single token on both sides.
pub(crate) fn text_columns(teacher: &Vocabulary, student: &Vocabulary) -> Vec<(u32, u32)> {
    teacher
        .ids()
        .filter(|&id| teacher.canonical_id(id) == id)
        .filter_map(|id| Some((id, student.find(teacher.token_bytes(id))?)))
        .collect()
}

/// Every token of one vocabulary with itself.
pub(crate) fn identical_columns(vocabulary: &Vocabulary) -> Vec<(u32, u32)> {
    vocabulary
        .ids()
        .filter(|&id| vocabulary.kind(id) != TokenKind::Unused)
        .map(|id| (id, id))
        .collect()
}

/// Adds the mapped pairs of special tokens and one column for the stops.
pub(crate) fn add_special_columns(
    columns: &mut Vec<(u32, u32)>,
    teacher: &Vocabulary,
    student: &Vocabulary,
    options: &PairOptions,
    stops: &Stops,
) -> Result<()> {
    let mut mapped = Vec::with_capacity(options.special_tokens.len());
    for &(teacher_id, student_id) in &options.special_tokens {
        check_special("special_tokens", Side::Teacher, teacher, teacher_id)?;
        check_special("special_tokens", Side::Student, student, student_id)?;
        match (stops.teacher.contains(&teacher_id), stops.student.contains(&student_id)) {
            (true, true) => {} // the column of the stops holds them already
            (false, false) => mapped.push((teacher_id, student_id)),
            _ => {
                return Err(Error::StopMappedToOther { teacher: teacher_id, student: student_id });
            }
        }
    }
    mapped.sort_unstable();
    mapped.dedup();
    for (index, &(teacher_id, student_id)) in mapped.iter().enumerate() {
        for &(earlier_teacher, earlier_student) in &mapped[..index] {
            if earlier_teacher == teacher_id {
                return Err(Error::MappedTwice { side: Side::Teacher, id: teacher_id });
            }
            if earlier_student == student_id {
                return Err(Error::MappedTwice { side: Side::Student, id: student_id });
            }
        }
    }
    // For equal vocabularies, mapped tokens and stops replace the map of every id onto itself.
    let taken_by_teacher: HashSet<u32> =
        mapped.iter().map(|pair| pair.0).chain(stops.teacher.iter().copied()).collect();
    let taken_by_student: HashSet<u32> =
        mapped.iter().map(|pair| pair.1).chain(stops.student.iter().copied()).collect();
    columns.retain(|(teacher_id, student_id)| {
        !taken_by_teacher.contains(teacher_id) && !taken_by_student.contains(student_id)
    });
    columns.append(&mut mapped);
    if let (Some(&teacher_stop), Some(&student_stop)) =
        (stops.teacher.first(), stops.student.first())
    {
        columns.push((teacher_stop, student_stop));
    }
    Ok(())
}

/// Whether columns that were read from a file can be those of two vocabularies: ascending by teacher
/// id, no id twice, the same text or two special tokens in each, and one column for all stops.
pub(crate) fn columns_fit(
    teacher: &Vocabulary,
    student: &Vocabulary,
    columns: [&[u32]; 2],
    stops: &Stops,
) -> bool {
    let [teacher_ids, student_ids] = columns;
    let mut seen = vec![false; student.len()];
    let is_column = |(&t, &s): (&u32, &u32)| {
        let first = !std::mem::replace(&mut seen[s as usize], true);
        let kinds = (teacher.kind(t), student.kind(s));
        first
            && (kinds.0 == TokenKind::Special) == (kinds.1 == TokenKind::Special)
            && kinds.0 != TokenKind::Unused
            && kinds.1 != TokenKind::Unused
            && teacher.token_bytes(t) == student.token_bytes(s)
    };
    let are_stops = |vocabulary: &Vocabulary, stops: &[u32], columns: &HashSet<u32>| {
        let distinct: HashSet<u32> = stops.iter().copied().collect();
        distinct.len() == stops.len()
            && stops.iter().all(|&id| vocabulary.is_special(id))
            && stops.iter().skip(1).all(|id| !columns.contains(id))
    };
    let stop_column = match (stops.teacher.first(), stops.student.first()) {
        (None, None) => true,
        (Some(t), Some(s)) => {
            teacher_ids.binary_search(t).is_ok_and(|column| student_ids.get(column) == Some(s))
        }
        _ => false,
    };
    let specials = |vocabulary: &Vocabulary, ids: &[u32]| -> HashSet<u32> {
        ids.iter().copied().filter(|&id| vocabulary.is_special(id)).collect()
    };
    teacher_ids.len() == student_ids.len()
        && teacher_ids.windows(2).all(|pair| pair[0] < pair[1])
        && stop_column
        && teacher_ids.iter().zip(student_ids).all(is_column)
        && are_stops(teacher, &stops.teacher, &specials(teacher, teacher_ids))
        && are_stops(student, &stops.student, &specials(student, student_ids))
}

/// Refuses a token that is not special.
pub(crate) fn check_special(
    name: &'static str,
    side: Side,
    vocabulary: &Vocabulary,
    id: u32,
) -> Result<()> {
    if vocabulary.is_special(id) {
        return Ok(());
    }
    Err(Error::NotSpecial { name, side, id, vocab_size: vocabulary.len() })
}

/// Id -> column, for canonical ids, their duplicates and all stops.
pub(crate) fn column_map(vocabulary: &Vocabulary, shared_ids: &[u32], stops: &[u32]) -> Vec<u32> {
    let mut columns = vec![NONE; vocabulary.len()];
    for (column, &id) in (0..).zip(shared_ids) {
        columns[id as usize] = column;
    }
    for (id, &canonical) in vocabulary.canonical_ids().iter().enumerate() {
        if columns[id] == NONE {
            columns[id] = columns[canonical as usize];
        }
    }
    if let [canonical, others @ ..] = stops {
        for &stop in others {
            columns[stop as usize] = columns[*canonical as usize];
        }
    }
    columns
}
