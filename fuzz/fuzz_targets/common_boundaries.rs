//! Two ways to cut one text: the units are all common boundaries, as the slow twin finds them.

#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use simct_align::ids::Side;
use simct_align::pair::{Pair, PairOptions};
use simct_align::vocabulary::{Token, Vocabulary};
use simct_align_fuzz::{Sampled, align, index, slow_units};

/// Bytes of a text, each with whether the teacher's and the student's token ends there.
type Input = Vec<(u8, bool, bool)>;

fn tokens(text: &[(u8, bool)]) -> Vec<Vec<u8>> {
    let parts = text.split_inclusive(|(_, ends)| *ends);
    parts.map(|part| part.iter().map(|(byte, _)| *byte).collect()).collect()
}

/// The distinct tokens as a vocabulary, and the sequence as ids.
fn vocabulary(tokens: &[Vec<u8>]) -> (Vocabulary, Vec<i64>) {
    let distinct: Vec<_> = tokens.iter().collect::<BTreeSet<_>>().into_iter().collect();
    let ids = tokens.iter().map(|token| distinct.partition_point(|other| *other < token) as i64);
    let ids = ids.collect();
    (Vocabulary::from_tokens(distinct.iter().map(Token::normal)).expect("few tokens"), ids)
}

fuzz_target!(|input: Input| {
    let teacher = tokens(&input.iter().map(|&(byte, ends, _)| (byte, ends)).collect::<Vec<_>>());
    let student = tokens(&input.iter().map(|&(byte, _, ends)| (byte, ends)).collect::<Vec<_>>());
    let (teacher_vocabulary, teacher_ids) = vocabulary(&teacher);
    let (student_vocabulary, student_ids) = vocabulary(&student);
    let pair =
        Pair::new(teacher_vocabulary.into(), student_vocabulary.into(), &PairOptions::default())
            .expect("a pair without options");
    let teacher_row = Sampled::whole(Side::Teacher, teacher_ids);
    let student_row = Sampled::whole(Side::Student, student_ids);
    let aligned = align(&pair, &teacher_row, &student_row).expect("known ids");
    let units = &aligned.segments.units;
    let found: Vec<_> = (0..units.len())
        .map(|i| {
            [
                units.teacher_start[i],
                units.teacher_end[i],
                units.student_start[i],
                units.student_end[i],
            ]
        })
        .collect();
    assert_eq!(found, slow_units(&teacher, &student));
    assert!(aligned.segments.reason.is_empty());
    index(&pair, [&teacher_row, &student_row], &aligned, 8).expect("units of the batch");
});
