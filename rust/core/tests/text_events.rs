//! The text events of random batches against a slow twin in plain lines: all tokens at every
//! offset, from the definition.

#![expect(clippy::unwrap_used, reason = "a broken test must fail")]

mod texts;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use simct_align::error::Error;
use simct_align::ids::Side;
use simct_align::index::Index;
use simct_align::text_tree::MAX_REACH;
use simct_align::vocabulary::Token;
use texts::{Batch, SIDES, Sections, Slots, Text, Unit, batches, long, one_row, vocabulary};

/// Runs of units, each with the rows and texts that a stretch is made of; and how many units are
/// left out without a prefix.
fn slow_stretches(units: Vec<Unit>) -> (Vec<Vec<Unit>>, usize) {
    let (mut runs, mut left_out): (Vec<Vec<Unit>>, _) = (Vec::new(), 0);
    let mut goes_on = false;
    for unit in units {
        let follows = goes_on
            && !unit.is_trimmed
            && runs.last().and_then(|run| run.last()).is_some_and(|last| {
                let ends = last.ranges.each_ref().map(|range| range.end);
                last.row == unit.row && ends == unit.ranges.each_ref().map(|range| range.start)
            });
        let has_prefix = [0, 1]
            .iter()
            .all(|&side| unit.ranges[side].start > usize::from(unit.after_dummy[side]));
        goes_on = unit.is_text && (follows || has_prefix);
        if follows && unit.is_text {
            runs.last_mut().unwrap().push(unit);
        } else if goes_on {
            runs.push(vec![unit]);
        } else {
            left_out += usize::from(unit.is_text);
        }
    }
    (runs, left_out)
}

/// What is written so far.
struct Writer<'a> {
    batch: &'a Batch,
    sections: Sections,
    stretches: i64,
    offsets: usize,
}

impl Writer<'_> {
    fn push(&mut self, name: impl Into<String>, value: i64) {
        self.sections.entry(name.into()).or_default().push(value);
    }

    fn len(&self, name: &str) -> i64 {
        long(self.sections.get(name).map_or(0, Vec::len))
    }

    /// All offsets of a run of units, from the definition.
    fn stretch(&mut self, run: &[Unit]) {
        let row = run[0].row;
        let slots = [0, 1].map(|side| self.batch.slots(run, side));
        let lead = self.batch.lead(&run[0]);
        let texts = [self.batch.pair.teacher(), self.batch.pair.student()];
        let longest = lead.unwrap_or(1);
        let text = texts[longest].decode(&slots[longest].ids).unwrap();
        let has_end = [0, 1]
            .map(|side| self.batch.takes_part(side, row, run.last().unwrap().ranges[side].end));
        let mut places: BTreeSet<usize> = slots.iter().flat_map(|side| side.at.clone()).collect();
        if has_end != [true; 2] {
            places.remove(&text.len());
        }
        let (mut from, mut restarts) = (0, BTreeSet::new());
        self.stretches += 1;
        if let Some(side) = lead {
            // A row that stands before all offsets.
            places.remove(&0);
            self.row(side, &slots[side], 0);
        }
        for place in places {
            let own = [0, 1].map(|side| slots[side].at.iter().position(|&at| at == place));
            if restarts.contains(&place) {
                from = place;
                self.stretches += 1;
            }
            self.offsets += 1;
            self.push("text_offset_stretch", self.stretches - 1);
            self.push("text_offset_batch_row", long(row));
            let mut taken = Vec::new();
            for side in [0, 1] {
                self.sources(side, &slots[side], &text, from..place);
                taken.push(self.own(side, &slots[side], own[side]));
            }
            if let [Some(teacher), Some(student)] = &taken[..]
                && teacher == student
                && self.batch.has_same(teacher)
            {
                restarts.insert(place + teacher.len());
            }
        }
    }

    /// The row of a side at an offset, if there is one; returns the bytes that the text takes.
    fn own(&mut self, side: usize, slots: &Slots, slot: Option<usize>) -> Option<Text> {
        let name = SIDES[side];
        let number = slot.map_or(-1, |_| self.len(&format!("{name}_text_row")));
        self.push(format!("{name}_own_text_row"), number);
        self.row(side, slots, slot?)
    }

    /// A text row; returns the bytes that the text takes.
    fn row(&mut self, side: usize, slots: &Slots, slot: usize) -> Option<Text> {
        let name = SIDES[side];
        let id = slots.ids.get(slot).copied();
        self.push(format!("{name}_text_row"), slots.flat + long(slot));
        self.push(format!("{name}_text_id"), id.map_or(-1, i64::from));
        id.map(|id| vocabulary(&self.batch.pair, name).token_bytes(id).to_vec())
    }

    /// The sources of a side at the end of a piece of text, which begins where they may begin.
    fn sources(&mut self, side: usize, slots: &Slots, text: &[u8], piece: std::ops::Range<usize>) {
        let name = SIDES[side];
        let tree = self.batch.pair.text_tree().unwrap().side(name);
        let own = vocabulary(&self.batch.pair, name);
        let bytes = |position: &usize| own.token_bytes(tree.ids()[*position]);
        let rows = self.len(&format!("{name}_text_row"));
        let earlier: Vec<usize> = slots.at.iter().copied().filter(|&at| at < piece.end).collect();
        for (slot, &at) in earlier.iter().enumerate() {
            let begun = &text[at..piece.end];
            let fits: Vec<usize> = (0..tree.ids().len())
                .filter(|position| bytes(position).starts_with(begun))
                .collect();
            if at < piece.start || begun.len() > MAX_REACH || fits.is_empty() {
                continue;
            }
            let (start, end) = (fits[0], fits[fits.len() - 1] + 1);
            assert_eq!(end - start, fits.len(), "the tokens are a run");
            let exact = fits.iter().take_while(|position| bytes(position) == begun).count();
            assert_eq!(exact, fits.iter().filter(|position| bytes(position) == begun).count());
            let first = u32::try_from(start + exact).unwrap();
            self.push(format!("{name}_source_row"), rows - long(earlier.len() - slot));
            self.push(format!("{name}_source_start"), long(start));
            self.push(format!("{name}_source_end"), long(end));
            self.push(format!("{name}_source_length"), long(begun.len()));
            self.push(format!("{name}_source_exact"), long(exact));
            let suffix = tree.suffix_start(first, begun.len());
            self.push(format!("{name}_source_suffix"), long(suffix));
        }
        let end = self.len(&format!("{name}_source_row"));
        self.push(format!("{name}_source_offsets"), end);
    }
}

impl Batch {
    /// The index against the definition; the sections.
    fn check(&self) -> Sections {
        let index = self.index(1, [None; 2]).unwrap();
        assert_eq!(self.index(2, [None; 2]).unwrap(), index);
        let (runs, left_out) = slow_stretches(self.units());
        let sections = Sections::new();
        let mut writer = Writer { batch: self, sections, stretches: 0, offsets: 0 };
        for side in SIDES {
            writer.push(format!("{side}_source_offsets"), 0);
        }
        runs.iter().for_each(|run| writer.stretch(run));
        let tokens = |run: &Vec<Unit>| self.slots(run, 1).ids.len();
        let counts = index.counts.text;
        assert_eq!(long(counts.stretches), writer.stretches);
        assert_eq!(counts.student_tokens, runs.iter().map(tokens).sum());
        assert_eq!((counts.units_without_prefix, counts.units_left_out), (left_out, 0));
        assert_eq!(counts.offsets, writer.offsets);
        let found = self.sections(&index);
        for (name, found) in &found {
            assert_eq!(*found, writer.sections.remove(name).unwrap_or_default(), "{name}");
        }
        assert!(writer.sections.is_empty(), "{:?}", writer.sections);
        self.check_reach(&index, &found);
        found
    }

    /// Rows that are needed, and strides that are too short by one.
    fn check_reach(&self, index: &Index, sections: &Sections) {
        let needed = [index.teacher_rows_needed, index.student_rows_needed];
        for side in SIDES {
            let last = sections[&format!("{side}_text_row")].iter().max().copied();
            assert!(last.unwrap_or(-1) < needed[side as usize]);
            for stride in 0.. {
                let mut strides = [None; 2];
                strides[side as usize] = Some(stride);
                match self.index(1, strides) {
                    Ok(found) => assert_eq!(found, *index),
                    Err(Error::StrideTooShort { side: named, needed, .. }) => {
                        assert!(named == side && needed > stride);
                        continue;
                    }
                    Err(error) => unreachable!("{error}"),
                }
                let rows = &self.sides[side as usize];
                let in_row = |flat: &i64| {
                    let row = rows.row_starts.iter().rposition(|start| start <= flat).unwrap();
                    flat - rows.row_starts[row] < stride
                };
                assert!(sections[&format!("{side}_text_row")].iter().all(in_row));
                break;
            }
        }
    }
}

proptest! {
    #[test]
    fn text_events_are_what_the_definition_says(batch in batches()) {
        batch.check();
    }
}

/// The properties above mean little if what they speak of is rare in the batches.
#[test]
fn the_batches_hold_everything_that_text_events_speak_of() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..512 {
        let batch = batches().new_tree(&mut runner).unwrap().current();
        let index = batch.index(1, [None; 2]).unwrap();
        let (sections, counts) = (batch.sections(&index), index.counts.text);
        let count = |name: &str, holds: fn(i64) -> bool| {
            sections[name].iter().filter(|&&value| holds(value)).count()
        };
        let runs = slow_stretches(batch.units()).0;
        let leads = runs.iter().map(|run| &run[0]).filter(|first| batch.lead(first).is_some());
        let (glued, lone): (Vec<&Unit>, Vec<&Unit>) = leads.partition(|first| first.is_trimmed);
        let longer = sections["teacher_source_row"].iter().enumerate().filter(|(source, row)| {
            let id = sections["teacher_text_id"][usize::try_from(**row).unwrap()];
            let bytes = batch.pair.teacher().token_bytes(id.try_into().unwrap()).len();
            sections["teacher_source_length"][*source] > long(bytes)
        });
        for (what, times) in [
            ("restarts", counts.stretches.saturating_sub(runs.len())),
            ("last rows", count("student_text_id", |id| id < 0)),
            ("offsets of one side", count("teacher_own_text_row", |row| row < 0)),
            ("begun tokens", count("teacher_source_exact", |exact| exact == 0)),
            ("duplicates", count("student_source_exact", |exact| exact > 1)),
            ("beyond the realized token", longer.count()),
            ("no prefix", counts.units_without_prefix),
            ("glued dummy prefixes", glued.len()),
            ("lone dummy prefixes", lone.len()),
            ("unmatched", batch.aligned.segments.reason.len()),
        ] {
            *seen.entry(what).or_default() += times;
        }
    }
    let rare: Vec<_> = seen.iter().filter(|(_, times)| **times < 20).collect();
    assert!(rare.is_empty(), "{seen:?}");
}

#[test]
fn with_one_vocabulary_every_offset_is_a_stretch_without_sources() {
    let tokens = || ["a", "ab", "abc", "b", "a"].map(Token::normal).to_vec();
    let batch = one_row(tokens(), tokens(), [(); 2].map(|()| vec![1, 0, 2, 4, 3]));
    let sections = batch.check();
    assert_eq!(sections["text_offset_stretch"], [0, 1, 2, 3, 4]);
    assert_eq!(sections["student_own_text_row"], [0, 1, 2, 3, 4]);
    assert_eq!(sections["teacher_source_offsets"], [0; 6]);
}

#[test]
fn tokens_of_64_kib_take_part_and_sources_reach_back_64_bytes() {
    let long_text = vec![b'a'; 1 << 16];
    let teacher = [&long_text[..1 << 15], b"a", b"aa", &long_text[..66], b"b"].map(Token::normal);
    let student = [&b"a"[..], b"b", &long_text[..65]].map(Token::normal);
    let ids = [vec![0, 4, 3], vec![0; 1 << 15].into_iter().chain([1, 2, 0]).collect()];
    let batch = one_row(teacher.to_vec(), student.to_vec(), ids);
    let index = batch.index(2, [None; 2]).unwrap();
    let sections = batch.sections(&index);
    let lengths = &sections["teacher_source_length"];
    assert_eq!(lengths.iter().max(), Some(&long(MAX_REACH)));
    // The long token reaches over its first 64 bytes, at every one of which the student stands.
    assert_eq!(lengths[..64], (1..=64).collect::<Vec<_>>());
    assert_eq!(index.counts.text.offsets, (1 << 15) + 3);
    let tree = batch.pair.text_tree().unwrap();
    let texts = |rest: usize| rest.min(MAX_REACH);
    let suffixes = texts((1 << 15) - 1) + 1 + texts(65);
    assert_eq!(tree.side(Side::Teacher).suffixes().len(), suffixes);
}

#[test]
fn a_vocabulary_of_bytes_walks_through_the_tokens_of_the_other() {
    let bytes = (0..=255).map(Token::byte).collect();
    let student = ["a", "ab", "abc"].map(Token::normal).to_vec();
    let batch = one_row(bytes, student, [vec![97, 97, 98, 99], vec![0, 2]]);
    let sections = batch.check();
    assert_eq!(sections["teacher_source_length"], [1, 1, 1]);
    assert_eq!(sections["student_source_length"], [1, 1, 2]);
}

#[test]
fn what_alignment_never_makes_is_left_out_or_refused() {
    let teacher = ["ab", "a", ""].map(Token::normal).to_vec();
    let student = ["a", "b", "ab"].map(Token::normal).to_vec();
    let mut batch = one_row(teacher, student, [vec![0, 1, 0], vec![0, 1, 0, 2]]);
    assert_eq!(batch.index(1, [None; 2]).unwrap().counts.text.units_left_out, 0);
    // `a` against `ab`, and a token without bytes.
    for (side, position, id) in [(1, 3, 2), (0, 2, 2)] {
        let known = std::mem::replace(&mut batch.sides[side].values[position], id);
        let counts = batch.index(1, [None; 2]).unwrap().counts.text;
        assert_eq!((counts.units_left_out, counts.stretches > 1), (1, true));
        batch.sides[side].values[position] = known;
    }
    batch.sides[1].values[3] = 7;
    let error = batch.index(1, [None; 2]).unwrap_err();
    let (row, position, side) = (0, 3, Side::Student);
    assert_eq!(error, Error::IdOutOfRange { row, position, side, id: 7, vocab_size: 3 });
    batch.sides[0].mask.pop();
    let error = batch.index(1, [None; 2]).unwrap_err().to_string();
    assert_eq!(error, "teacher_mask has 3 entries, expected 4: one entry for every id");
}
