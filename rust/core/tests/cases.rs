//! The hand-made cases of `tests/cases.json`, with every integer type and thread count.

#![expect(clippy::panic, clippy::unwrap_used, reason = "a broken case file must fail the test")]

use std::sync::Arc;

use serde_json::Value;
use simct_align::batch::{AlignOptions, AlignedRows, BatchSide, align_batch};
use simct_align::error::Error;
use simct_align::ids::{RaggedIds, Side, TokenId};
use simct_align::pair::{Pair, PairOptions};
use simct_align::segment::MismatchPolicy;
use simct_align::threads::Threads;
use simct_align::vocabulary::{Settings, Vocabulary};

const KINDS: [&str; 3] = ["shared", "multi", "special"];
const REASONS: [&str; 5] =
    ["bytes_differ", "one_side_ended", "special", "no_resync", "dummy_prefix"];

fn integers(value: &Value) -> Vec<i64> {
    value.as_array().unwrap().iter().map(|entry| entry.as_i64().unwrap()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    integers(value).into_iter().map(|id| u32::try_from(id).unwrap()).collect()
}

fn vocabulary(value: &Value) -> Arc<Vocabulary> {
    let (mut bytes, mut offsets, mut kinds) = (Vec::new(), vec![0], Vec::new());
    let mut settings = Settings {
        dummy_prefix: value["dummy_prefix"].as_bool().unwrap_or(false),
        ..Settings::default()
    };
    for (id, token) in (0..).zip(value["tokens"].as_array().unwrap()) {
        let mut kind = 0;
        if let Some(text) = token.as_str() {
            bytes.extend_from_slice(text.as_bytes());
        } else if let Some(hex) = token["hex"].as_str() {
            for at in (0..hex.len()).step_by(2) {
                bytes.push(u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
            }
        } else if let Some(byte) = token["byte"].as_u64() {
            bytes.push(u8::try_from(byte).unwrap());
            kind = 1;
        } else if let Some(name) = token["special"].as_str() {
            settings.special_names.insert(id, name.into());
            kind = 2;
        } else {
            assert_eq!(token["unused"], Value::Bool(true));
            kind = 3;
        }
        offsets.push(i64::try_from(bytes.len()).unwrap());
        kinds.push(kind);
    }
    Vocabulary::new(bytes, &offsets, &kinds, settings).unwrap().into()
}

fn pair(case: &Value) -> Pair {
    let mut options = PairOptions::default();
    if let Some(mapped) = case["special_tokens"].as_array() {
        options.special_tokens =
            mapped.iter().map(ids).map(|mapped| (mapped[0], mapped[1])).collect();
    }
    if let Some(stops) = case["stops"].as_array() {
        options.teacher_stops = Some(ids(&stops[0]));
        options.student_stops = Some(ids(&stops[1]));
    }
    Pair::new(vocabulary(&case["teacher"]), vocabulary(&case["student"]), &options).unwrap()
}

/// Aligns the row of a case, `copies` times in one batch.
fn align<I: TokenId>(
    case: &Value,
    convert: impl Fn(i64) -> I,
    copies: usize,
    threads: usize,
) -> Result<AlignedRows, Error> {
    let options = AlignOptions {
        mismatch: MismatchPolicy {
            fail: case["on_mismatch"] == "error",
            resync_bytes: case["resync_bytes"].as_u64().map_or(8, |n| n.try_into().unwrap()),
        },
        threads: Threads::Count(threads.try_into().unwrap()),
    };
    let repeated = |name: &str| case.get(name).map(|value| integers(value).repeat(copies));
    let mask = |name: &str| repeated(name).map(|m| m.iter().map(|&on| u8::from(on != 0)).collect());
    let (teacher_mask, student_mask): (Option<Vec<u8>>, Option<Vec<u8>>) =
        (mask("teacher_mask"), mask("student_mask"));
    let values = |name: &str| repeated(name).unwrap().into_iter().map(&convert).collect();
    let (teacher, student): (Vec<I>, Vec<I>) = (values("teacher_ids"), values("student_ids"));
    let offsets = |values: &[I]| {
        (0..=copies)
            .map(|row| i64::try_from(row * values.len() / copies).unwrap())
            .collect::<Vec<_>>()
    };
    let (teacher_offsets, student_offsets) = (offsets(&teacher), offsets(&student));
    let teacher_ids = RaggedIds::new(Side::Teacher, &teacher, &teacher_offsets)?;
    let student_ids = RaggedIds::new(Side::Student, &student, &student_offsets)?;
    let (teacher, student) =
        (side(teacher_ids, teacher_mask.as_deref())?, side(student_ids, student_mask.as_deref())?);
    align_batch(&pair(case), teacher, student, &options)
}

fn side<'a, I: TokenId>(
    ids: RaggedIds<'a, I>,
    mask: Option<&'a [u8]>,
) -> Result<BatchSide<'a, I>, Error> {
    mask.map_or_else(|| Ok(BatchSide::whole_rows(ids)), |mask| BatchSide::masked(ids, mask))
}

fn name(of: &[&str], number: u8) -> Value {
    of[usize::from(number)].into()
}

fn found(aligned: &AlignedRows) -> (Vec<Value>, Vec<Value>) {
    let segments = &aligned.segments;
    let units = (0..segments.units.len()).map(|unit| {
        let range = &segments.units;
        Value::from(vec![
            range.teacher_start[unit].into(),
            range.teacher_end[unit].into(),
            range.student_start[unit].into(),
            range.student_end[unit].into(),
            name(&KINDS, segments.kind[unit]),
            segments.unit_class[unit].into(),
        ])
    });
    let spans = (0..segments.unmatched.len()).map(|span| {
        let range = &segments.unmatched;
        Value::from(vec![
            range.teacher_start[span].into(),
            range.teacher_end[span].into(),
            range.student_start[span].into(),
            range.student_end[span].into(),
            name(&REASONS, segments.reason[span]),
        ])
    });
    (units.collect(), spans.collect())
}

fn error_name(error: &Error) -> &'static str {
    match error {
        Error::Mismatch(_) => "bytes_differ",
        Error::RegionCount { .. } => "regions_differ",
        Error::IdOutOfRange { .. } => "id_out_of_range",
        other => panic!("no case expects {other}"),
    }
}

#[test]
fn hand_made_cases() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/cases.json");
    let cases: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases = cases.as_array().unwrap();
    assert!(cases.len() >= 40, "only {} cases", cases.len());
    for case in cases {
        let title = &case["name"];
        let narrow = align(case, |id| i32::try_from(id).unwrap(), 1, 1);
        assert_eq!(narrow, align(case, |id| id, 1, 1), "{title}: i32 against i64");
        let aligned = match narrow {
            Err(error) => {
                assert_eq!(case["error"], error_name(&error), "{title}: {error}");
                continue;
            }
            Ok(aligned) => aligned,
        };
        let (units, unmatched) = found(&aligned);
        assert_eq!(Value::from(units), case["units"], "{title}: units");
        assert_eq!(Value::from(unmatched), case["unmatched"], "{title}: unmatched");
        let many = align(case, |id| u32::try_from(id).unwrap(), 100, 1);
        assert_eq!(many, align(case, |id| u32::try_from(id).unwrap(), 100, 3), "{title}: threads");
    }
}
