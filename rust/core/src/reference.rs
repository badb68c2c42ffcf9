//! The slow twin of [`segment`](crate::segment): plain sets of byte offsets, for texts that agree.

use std::collections::BTreeSet;
use std::ops::Range;

use proptest::prelude::*;

use crate::batch::{AlignOptions, AlignedRows, BatchSide, align_batch};
use crate::columns::{Reason, UnitKind};
use crate::error::{Error, Result};
use crate::ids::{RaggedIds, Side};
use crate::pair::{Pair, PairOptions};
use crate::segment::MismatchPolicy;
use crate::threads::Threads;
use crate::vocabulary::{Token, Vocabulary};

/// Token ranges of both sides between neighbouring common boundaries.
fn slow_units(teacher: &[&[u8]], student: &[&[u8]]) -> Vec<(Range<i32>, Range<i32>)> {
    fn ends(tokens: &[&[u8]]) -> Vec<usize> {
        (1..=tokens.len()).map(|n| tokens[..n].concat().len()).collect()
    }
    let (teacher, student) = (ends(teacher), ends(student));
    let teacher_set: BTreeSet<_> = teacher.iter().collect();
    let student_set: BTreeSet<_> = student.iter().collect();
    let mut units = Vec::new();
    let (mut from_teacher, mut from_student) = (0, 0);
    for offset in teacher_set.intersection(&student_set) {
        let position = |ends: &[usize]| {
            i32::try_from(ends.iter().position(|end| end == *offset).unwrap() + 1).unwrap()
        };
        let (to_teacher, to_student) = (position(&teacher), position(&student));
        units.push((from_teacher..to_teacher, from_student..to_student));
        (from_teacher, from_student) = (to_teacher, to_student);
    }
    units
}

/// All byte strings of one to three bytes over this alphabet, and a few longer ones.
const ALPHABET: [u8; 4] = [b'a', b' ', 0xc3, 0xa9];

fn token() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(ALPHABET.to_vec()), 1..6)
}

/// A text and two ways to cut it.
fn cuts() -> impl Strategy<Value = (Vec<Vec<u8>>, Vec<Vec<u8>>)> {
    prop::collection::vec((token(), any::<bool>(), any::<bool>()), 0..60).prop_map(|pieces| {
        let mut sides: [Vec<Vec<u8>>; 2] = [vec![], vec![]];
        let mut open = [vec![], vec![]];
        let last = pieces.len().saturating_sub(1);
        for (number, (bytes, cut_teacher, cut_student)) in pieces.iter().enumerate() {
            for (side, cut) in [cut_teacher, cut_student].into_iter().enumerate() {
                open[side].extend_from_slice(bytes);
                if *cut || number == last {
                    sides[side].push(std::mem::take(&mut open[side]));
                }
            }
        }
        sides.into()
    })
}

/// Distinct tokens in the order of their first use, and the sequence as ids.
fn vocabulary(tokens: &[Vec<u8>]) -> (Vocabulary, Vec<i64>) {
    let distinct: Vec<_> = tokens.iter().collect::<BTreeSet<_>>().into_iter().collect();
    let id = |token: &Vec<u8>| i64::try_from(distinct.binary_search(&token).unwrap()).unwrap();
    let ids = tokens.iter().map(id).collect();
    (Vocabulary::from_tokens(distinct.iter().map(Token::normal)).unwrap(), ids)
}

fn align(pair: &Pair, teacher: &[i64], student: &[i64], threads: usize) -> Result<AlignedRows> {
    let options = AlignOptions {
        threads: Threads::Count(threads.try_into().unwrap()),
        ..AlignOptions::default()
    };
    let end = |ids: &[i64]| i64::try_from(ids.len()).unwrap();
    let (teacher_offsets, student_offsets) = ([0, end(teacher)], [0, end(student)]);
    align_batch(
        pair,
        BatchSide::whole_rows(RaggedIds::new(Side::Teacher, teacher, &teacher_offsets)?),
        BatchSide::whole_rows(RaggedIds::new(Side::Student, student, &student_offsets)?),
        &options,
    )
}

/// Ids of any kind over a vocabulary with everything in it.
fn hostile() -> impl Strategy<Value = (Vec<i64>, Vec<i64>)> {
    let ids = || prop::collection::vec(0i64..9, 0..40);
    (ids(), ids())
}

fn hostile_pair(dummy_prefix: bool) -> Pair {
    let tokens = [
        Token::normal("a"),
        Token::normal(" "),
        Token::normal(" a"),
        Token::byte(b'a'),
        Token::normal("aa"),
        Token::normal(b"\xc3"),
        Token::special("<x>"),
        Token::special("</s>"),
        Token::normal(""),
    ];
    let teacher = Vocabulary::from_tokens(tokens.clone()).unwrap();
    let mut student = Vocabulary::from_tokens(tokens.into_iter().rev()).unwrap();
    student.settings.dummy_prefix = dummy_prefix;
    let options = PairOptions {
        special_tokens: vec![(6, 2)],
        teacher_stops: Some(vec![7]),
        student_stops: Some(vec![1]),
    };
    Pair::new(teacher.into(), student.into(), &options).unwrap()
}

/// Checks that units and spans partition both sides in order, and that units have equal bytes.
fn check_partition(pair: &Pair, teacher: &[i64], student: &[i64], aligned: &AlignedRows) {
    let segments = &aligned.segments;
    let range = |columns: &crate::columns::Ranges, i: usize| {
        let at = |position: i32| usize::try_from(position).unwrap();
        (
            at(columns.teacher_start[i])..at(columns.teacher_end[i]),
            at(columns.student_start[i])..at(columns.student_end[i]),
        )
    };
    let mut pieces: Vec<_> = (0..segments.units.len()).map(|i| range(&segments.units, i)).collect();
    for (unit, kind) in pieces.iter().zip(&segments.kind) {
        let teacher_text = pair.teacher.decode(&teacher[unit.0.clone()]).unwrap();
        let student_text = pair.student.decode(&student[unit.1.clone()]).unwrap();
        let dummy = [b" ".as_slice(), &teacher_text].concat() == student_text;
        assert!(teacher_text == student_text || dummy);
        assert_eq!(teacher_text.is_empty(), *kind == UnitKind::Special as u8);
    }
    pieces.extend((0..segments.unmatched.len()).map(|i| range(&segments.unmatched, i)));
    pieces.sort_by_key(|piece| (piece.0.start, piece.1.start, piece.0.end, piece.1.end));
    let (mut teacher_at, mut student_at) = (0, 0);
    for (teacher_range, student_range) in pieces {
        assert_eq!((teacher_range.start, student_range.start), (teacher_at, student_at));
        (teacher_at, student_at) = (teacher_range.end, student_range.end);
    }
    assert_eq!((teacher_at, student_at), (teacher.len(), student.len()));
}

proptest! {
    #[test]
    fn units_are_all_common_boundaries((teacher, student) in cuts()) {
        let (teacher_vocabulary, teacher_ids) = vocabulary(&teacher);
        let (student_vocabulary, student_ids) = vocabulary(&student);
        let pair = Pair::new(
            teacher_vocabulary.into(),
            student_vocabulary.into(),
            &PairOptions::default(),
        ).unwrap();
        let aligned = align(&pair, &teacher_ids, &student_ids, 1).unwrap();
        let units = &aligned.segments.units;
        let found: Vec<_> = (0..units.len())
            .map(|i| (
                units.teacher_start[i]..units.teacher_end[i],
                units.student_start[i]..units.student_end[i],
            ))
            .collect();
        let teacher: Vec<_> = teacher.iter().map(Vec::as_slice).collect();
        let student: Vec<_> = student.iter().map(Vec::as_slice).collect();
        prop_assert_eq!(found, slow_units(&teacher, &student));
        prop_assert!(aligned.segments.reason.is_empty());
    }

    #[test]
    fn any_ids_are_partitioned((teacher, student) in hostile(), dummy in any::<bool>()) {
        let pair = hostile_pair(dummy);
        let aligned = align(&pair, &teacher, &student, 1).unwrap();
        check_partition(&pair, &teacher, &student, &aligned);
    }
}

#[test]
fn ids_beyond_the_vocabulary_are_refused_wherever_they_stand() {
    let pair = hostile_pair(false);
    for wrong in [-1, 9, (1 << 24) - 1, i64::MAX, i64::MIN] {
        for position in 0..3 {
            // Ids that the table of shared tokens knows, and one that nobody knows.
            let (mut teacher, mut student) = (vec![0i64; 3], vec![8i64; 3]);
            teacher[position] = wrong;
            let error = align(&pair, &teacher, &[8; 3], 1).unwrap_err();
            assert_eq!(
                error,
                Error::IdOutOfRange {
                    row: 0,
                    position,
                    side: Side::Teacher,
                    id: wrong,
                    vocab_size: 9
                }
            );
            student[position] = wrong;
            assert!(matches!(
                align(&pair, &[0; 3], &student, 1).unwrap_err(),
                Error::IdOutOfRange { side: Side::Student, .. }
            ));
        }
    }
}

#[test]
fn half_a_million_unmapped_control_tokens_are_linear() {
    let pair = hostile_pair(false);
    let (teacher, student) = (vec![6i64; 500_000], vec![1i64; 500_000]);
    let aligned = align(&pair, &teacher, &student, 2).unwrap();
    assert_eq!(aligned.segments.reason, [Reason::Special as u8]);
    let shuffled: Vec<i64> = (0..500_000).map(|i| 6 + i % 2).collect();
    let reversed: Vec<i64> = (0..500_000).map(|i| 1 + (i / 2) % 2).collect();
    check_partition(&pair, &shuffled, &reversed, &align(&pair, &shuffled, &reversed, 2).unwrap());
}

#[test]
fn options_out_of_range_are_refused() {
    let pair = hostile_pair(false);
    let side = || BatchSide::whole_rows(RaggedIds::new(Side::Teacher, &[0i64], &[0, 1]).unwrap());
    for resync_bytes in [0, 4097] {
        let options = AlignOptions {
            mismatch: MismatchPolicy { fail: false, resync_bytes },
            ..AlignOptions::default()
        };
        let error = align_batch(&pair, side(), side(), &options).unwrap_err();
        assert!(matches!(error, Error::BadOption { name: "resync_bytes", .. }));
    }
}
