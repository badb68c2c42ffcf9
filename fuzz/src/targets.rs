//! What the targets do with an input: libFuzzer's, and those of `main.rs` on a stable Rust.

use std::collections::BTreeSet;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use sha2::{Digest, Sha256};
use simct_align::error::Error;
use simct_align::ids::Side;
use simct_align::pair::{Pair, PairOptions};
use simct_align::storage::{from_bytes, to_bytes};
use simct_align::vocabulary::{Settings, Token, Vocabulary};

use crate::case::Case;
use crate::slow_continuations::check_continuations;
use crate::slow_text_events::check_text_events;
use crate::{FuzzToken, Rows, Sampled, align, check, index, pair, slow_units};

/// Runs a target on the bytes of an input, as `fuzz_target!` does.
type Run = fn(&[u8]);

/// The targets by name.
pub const TARGETS: [(&str, Run); 6] = [
    ("alignment", |data| run(data, alignment)),
    ("common_boundaries", |data| run(data, common_boundaries)),
    ("continuations", |data| run(data, continuations)),
    ("saved_file", |data| run(data, saved_file)),
    ("text_events", |data| run(data, text_events)),
    ("vocabulary", |data| run(data, vocabulary)),
];

/// Calls a target where the bytes are enough for its input.
fn run<'a, T: Arbitrary<'a>>(data: &'a [u8], target: fn(T)) {
    if let Ok(input) = T::arbitrary_take_rest(Unstructured::new(data)) {
        target(input);
    }
}

/// Tokens of both sides, how many special tokens are mapped, the number of rows, and the rows.
pub type Alignment = (Vec<FuzzToken>, Vec<FuzzToken>, u8, u8, Rows, Rows);

/// Any ids of any pair in rows with masks: each position that takes part is in one unit or span.
pub fn alignment((teacher, student, mapped, rows, teacher_rows, student_rows): Alignment) {
    let Ok(pair) = pair([&teacher, &student], [false; 2], usize::from(mapped)) else {
        return;
    };
    let rows = usize::from(rows % 5);
    let teacher = teacher_rows.sampled(&pair, Side::Teacher, rows);
    let student = student_rows.sampled(&pair, Side::Student, rows);
    match align(&pair, &teacher, &student) {
        Ok(aligned) => {
            check(&pair, &teacher, &student, &aligned);
            index(&pair, [&teacher, &student], &aligned, 8).expect("units of the batch");
        }
        Err(error) => assert!(matches!(error, Error::RegionCount { .. }), "{error}"),
    }
}

/// Bytes of a text, each with whether the teacher's and the student's token ends there.
pub type Cuts = Vec<(u8, bool, bool)>;

fn cut(text: &[(u8, bool)]) -> Vec<Vec<u8>> {
    let parts = text.split_inclusive(|(_, ends)| *ends);
    parts.map(|part| part.iter().map(|(byte, _)| *byte).collect()).collect()
}

/// The distinct tokens as a vocabulary, and the sequence as ids.
fn distinct(tokens: &[Vec<u8>]) -> (Vocabulary, Vec<i64>) {
    let distinct: Vec<_> = tokens.iter().collect::<BTreeSet<_>>().into_iter().collect();
    let ids = tokens.iter().map(|token| distinct.partition_point(|other| *other < token) as i64);
    let ids = ids.collect();
    (Vocabulary::from_tokens(distinct.iter().map(Token::normal)).expect("few tokens"), ids)
}

/// Two ways to cut one text: the units are all common boundaries, as the slow twin finds them.
pub fn common_boundaries(input: Cuts) {
    let teacher = cut(&input.iter().map(|&(byte, ends, _)| (byte, ends)).collect::<Vec<_>>());
    let student = cut(&input.iter().map(|&(byte, _, ends)| (byte, ends)).collect::<Vec<_>>());
    let (teacher_vocabulary, teacher_ids) = distinct(&teacher);
    let (student_vocabulary, student_ids) = distinct(&student);
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
}

/// The continuations of a batch, and the spellings that they come from, are those of the definition.
pub fn continuations(case: Case) {
    check_continuations(&case);
}

/// The joint tree of a pair and the text events of a batch are those of the definition.
pub fn text_events(case: Case) {
    check_text_events(&case);
}

/// Tokens of the pair that was saved, what it had made before, changes of bytes, a file's content
/// without its beginning, and ids.
pub type SavedFile = (Vec<FuzzToken>, Vec<FuzzToken>, bool, bool, Vec<(u16, u8)>, Vec<u8>, Rows);

/// What a saved file begins with.
pub const SAVED_HEAD: &[u8] = b"SIMCTALN\x04\0\0\0";

fn signed(mut body: Vec<u8>) -> Vec<u8> {
    let checksum = Sha256::digest(&body);
    body.extend_from_slice(&checksum);
    body
}

/// A saved file of any content, its checksum true or not, is refused or works.
pub fn saved_file((teacher, student, spellings, tree, changes, raw, rows): SavedFile) {
    let _ = from_bytes(&raw);
    let _ = from_bytes(&signed([SAVED_HEAD, &raw].concat()));
    let Ok(saved) = pair([&teacher, &student], [false; 2], 2) else {
        return;
    };
    let made = (spellings && saved.spellings().is_ok(), tree && saved.text_tree().is_ok());
    let mut body = to_bytes(&saved);
    assert!(body.starts_with(SAVED_HEAD));
    assert_eq!(from_bytes(&body).map(|read| read.digest()), Ok(saved.digest()), "{made:?}");
    body.truncate(body.len() - 32);
    for (place, change) in changes {
        let place = usize::from(place) % body.len();
        body[place] ^= change;
    }
    let Ok(read) = from_bytes(&signed(body)) else {
        return;
    };
    let _ = (read.spellings().is_ok(), read.text_tree().is_ok());
    let teacher = rows.sampled(&read, Side::Teacher, 1);
    let student = rows.sampled(&read, Side::Student, 1);
    if let Ok(aligned) = align(&read, &teacher, &student) {
        check(&read, &teacher, &student, &aligned);
        let _ = index(&read, [&teacher, &student], &aligned, 8);
    }
    assert!(from_bytes(&to_bytes(&read)).is_ok());
}

/// Bytes of all tokens, their offsets and kinds, whether there is a dummy prefix, stops, and special
/// tokens that are mapped onto each other.
pub type Table = (Vec<u8>, Vec<i64>, Vec<u8>, bool, Vec<u32>, Vec<(u32, u32)>);

/// A vocabulary of any bytes, offsets and kinds is refused, or gives every token's bytes back.
pub fn vocabulary((bytes, offsets, kinds, dummy_prefix, stops, special_tokens): Table) {
    let settings = Settings { dummy_prefix, stops, ..Settings::default() };
    let Ok(vocabulary) = Vocabulary::new(bytes.clone(), &offsets, &kinds, settings) else {
        return;
    };
    assert_eq!(vocabulary.len(), kinds.len());
    for (id, ends) in vocabulary.ids().zip(offsets.windows(2)) {
        let token = &bytes[ends[0] as usize..ends[1] as usize];
        assert_eq!(vocabulary.token_bytes(id), token);
        assert_eq!(vocabulary.decode(&[id]).as_deref(), Ok(token));
        assert_eq!(vocabulary.token_bytes(vocabulary.canonical_id(id)), token);
        if !token.is_empty() {
            assert_eq!(vocabulary.find(token), Some(vocabulary.canonical_id(id)));
        }
    }
    let same = Arc::new(vocabulary);
    let options = PairOptions { special_tokens, ..PairOptions::default() };
    if let Ok(pair) = Pair::new(same.clone(), same, &options) {
        let _ = (pair.spellings().is_ok(), pair.text_tree().is_ok());
    }
}
