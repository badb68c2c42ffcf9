//! The hand-made cases of `tests/cases.json` as inputs of the targets, to be changed further.
//!
//! A [`Case`](crate::case::Case) is drawn in ways of its own: its targets begin with random bytes.

use std::collections::BTreeSet;

use serde_json::Value;
use simct_align::storage::to_bytes;

use crate::targets::SAVED_HEAD;
use crate::{FuzzToken, pair};

const CASES: &str = include_str!("../../tests/cases.json");

/// The inputs that a target begins with.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    let cases: Vec<Value> = serde_json::from_str(CASES).expect("JSON");
    let cases = cases.iter().map(Case::new);
    match target {
        "alignment" => cases.map(|case| case.alignment()).collect(),
        "common_boundaries" => cases.filter_map(|case| case.cuts()).collect(),
        "saved_file" => cases.map(|case| case.saved_file()).collect(),
        "vocabulary" => cases.flat_map(|case| case.tables()).collect(),
        _ => Vec::new(),
    }
}

/// Writes values as `arbitrary` reads them.
#[derive(Default)]
struct Input(Vec<u8>);

impl Input {
    fn list<T>(&mut self, items: &[T], write: impl Fn(&mut Self, &T)) {
        for item in items {
            self.0.push(1);
            write(self, item);
        }
        self.0.push(0);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.list(bytes, |input, byte| input.0.push(*byte));
    }

    fn token(&mut self, token: &FuzzToken) {
        let variant = match token {
            FuzzToken::Normal(_) => 0,
            FuzzToken::Byte(_) => 1,
            FuzzToken::Special => 2,
            FuzzToken::Unused => 3,
        };
        // A quarter of all 32-bit numbers stands for each variant.
        self.0.extend([0, 0, 0, variant << 6]);
        match token {
            FuzzToken::Normal(bytes) => self.bytes(bytes),
            FuzzToken::Byte(byte) => self.0.push(*byte),
            FuzzToken::Special | FuzzToken::Unused => {}
        }
    }

    /// One row.
    fn rows(&mut self, row: &Row) {
        self.bytes(&row.ids);
        self.bytes(&[]);
        self.0.push(u8::from(row.mask.is_some()));
        if let Some(mask) = &row.mask {
            self.bytes(mask);
        }
    }
}

/// The ids of a side, and which of them take part.
struct Row {
    ids: Vec<u8>,
    mask: Option<Vec<u8>>,
}

/// A case: tokens and row of the teacher, and of the student.
struct Case {
    tokens: [Vec<FuzzToken>; 2],
    rows: [Row; 2],
}

fn small(value: &Value) -> u8 {
    value.as_i64().map_or(u8::MAX, |number| u8::try_from(number).unwrap_or(u8::MAX))
}

fn token(value: &Value) -> FuzzToken {
    if let Some(text) = value.as_str() {
        return FuzzToken::Normal(text.into());
    }
    if let Some(hex) = value["hex"].as_str() {
        let digits = (0..hex.len()).step_by(2).map(|at| &hex[at..at + 2]);
        let bytes = digits.map(|digits| u8::from_str_radix(digits, 16).expect("hexadecimal"));
        return FuzzToken::Normal(bytes.collect());
    }
    match (&value["byte"], &value["special"]) {
        (Value::Number(byte), _) => FuzzToken::Byte(small(&Value::Number(byte.clone()))),
        (_, Value::String(_)) => FuzzToken::Special,
        _ => FuzzToken::Unused,
    }
}

/// A token's bytes as the case has them.
fn text(token: &FuzzToken) -> &[u8] {
    match token {
        FuzzToken::Normal(bytes) => bytes,
        FuzzToken::Byte(byte) => std::slice::from_ref(byte),
        FuzzToken::Special | FuzzToken::Unused => &[],
    }
}

impl Case {
    fn new(case: &Value) -> Self {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let numbers = |value: &Value| list(value).iter().map(small).collect::<Vec<_>>();
        let sides = ["teacher", "student"];
        Self {
            tokens: sides.map(|side| list(&case[side]["tokens"]).iter().map(token).collect()),
            rows: sides.map(|side| Row {
                ids: numbers(&case[format!("{side}_ids")]),
                mask: case.get(format!("{side}_mask")).map(numbers),
            }),
        }
    }

    fn alignment(&self) -> Vec<u8> {
        let mut input = Input::default();
        self.tokens.iter().for_each(|tokens| input.list(tokens, Input::token));
        input.0.extend([2, 1]);
        self.rows.iter().for_each(|row| input.rows(row));
        input.0
    }

    /// The cuts of the text, where both rows have the same.
    fn cuts(&self) -> Option<Vec<u8>> {
        let [teacher, student] = [0, 1].map(|side| {
            let tokens = self.rows[side].ids.iter();
            tokens.filter_map(move |&id| self.tokens[side].get(usize::from(id))).map(text)
        });
        let (teacher, student) = (teacher.collect::<Vec<_>>(), student.collect::<Vec<_>>());
        let bytes = teacher.concat();
        let ends = [&teacher, &student].map(|tokens| {
            let ends = (1..=tokens.len()).map(|count| tokens[..count].concat().len());
            ends.collect::<BTreeSet<_>>()
        });
        let mut input = Input::default();
        input.list(&(0..bytes.len()).collect::<Vec<_>>(), |input, &at| {
            input.0.push(bytes[at]);
            input.0.extend(ends.iter().map(|ends| u8::from(ends.contains(&(at + 1)))));
        });
        (bytes == student.concat()).then_some(input.0)
    }

    fn saved_file(&self) -> Vec<u8> {
        let mut input = Input::default();
        self.tokens.iter().for_each(|tokens| input.list(tokens, Input::token));
        input.0.extend([1, 1]);
        input.bytes(&[]);
        let saved = pair(self.tokens.each_ref().map(Vec::as_slice), [false; 2], 2);
        let body = saved.map_or_else(|_| Vec::new(), |pair| to_bytes(&pair));
        input.bytes(body.get(SAVED_HEAD.len()..body.len().saturating_sub(32)).unwrap_or_default());
        input.rows(&self.rows[0]);
        input.0
    }

    /// The tokens of each side.
    fn tables(&self) -> [Vec<u8>; 2] {
        self.tokens.each_ref().map(|tokens| {
            let mut input = Input::default();
            let texts: Vec<_> = tokens.iter().map(text).collect();
            input.bytes(&texts.concat());
            let ends: Vec<_> = (0..=texts.len()).map(|end| texts[..end].concat().len()).collect();
            input.list(&ends, |input, &end| input.0.extend((end as i64).to_le_bytes()));
            input.bytes(&tokens.iter().map(|token| token.kind() as u8).collect::<Vec<_>>());
            input.0.push(0);
            input.list(&[] as &[u8], |_, _| {});
            input.list(&[] as &[u8], |_, _| {});
            input.0
        })
    }
}

#[cfg(test)]
mod tests {
    use arbitrary::{Arbitrary, Unstructured};

    use super::*;
    use crate::targets::{Alignment, Cuts, SavedFile, TARGETS, Table};

    fn read<'a, T: Arbitrary<'a>>(input: &'a [u8]) -> T {
        T::arbitrary_take_rest(Unstructured::new(input)).expect("a whole input")
    }

    fn cases() -> Vec<Case> {
        let cases: Vec<Value> = serde_json::from_str(CASES).expect("JSON");
        cases.iter().map(Case::new).collect()
    }

    #[test]
    fn inputs_are_the_cases() {
        for case in cases() {
            let (teacher, student, mapped, rows, teacher_rows, student_rows): Alignment =
                read(&case.alignment());
            let found = format!("{:?}", [teacher, student]);
            assert_eq!(found, format!("{:?}", case.tokens));
            assert_eq!((mapped, rows), (2, 1));
            for (found, row) in [teacher_rows, student_rows].into_iter().zip(&case.rows) {
                assert_eq!((&found.values, found.lengths.len()), (&row.ids, 0));
                let mask = row.mask.as_ref().map(|mask| mask.iter().map(|&on| on != 0).collect());
                assert_eq!(found.mask, mask);
            }
            let (_, student, _, _, changes, raw, rows): SavedFile = read(&case.saved_file());
            assert_eq!(format!("{student:?}"), format!("{:?}", case.tokens[1]));
            assert!(changes.is_empty() && !raw.is_empty());
            assert_eq!(rows.values, case.rows[0].ids);
            for (tokens, input) in case.tokens.iter().zip(case.tables()) {
                let (bytes, offsets, kinds, _, stops, special): Table = read(&input);
                assert_eq!(bytes, tokens.iter().map(text).collect::<Vec<_>>().concat());
                assert_eq!((offsets.len(), kinds.len()), (tokens.len() + 1, tokens.len()));
                assert!(stops.is_empty() && special.is_empty());
            }
        }
    }

    #[test]
    fn most_cases_have_one_text() {
        let all = seeds("common_boundaries");
        assert!(all.len() > 50, "{}", all.len());
        assert!(all.iter().all(|input| read::<Cuts>(input).len() == input.len() / 4));
    }

    #[test]
    fn every_target_passes_its_seeds() {
        for (name, run) in TARGETS {
            seeds(name).iter().for_each(|seed| run(seed));
        }
    }
}
