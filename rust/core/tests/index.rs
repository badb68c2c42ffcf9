//! The index and the continuations of random batches against slow twins in plain lines.

#![expect(clippy::unwrap_used, reason = "a broken test must fail")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use simct_align::batch::{AlignOptions, AlignedRows, BatchSide, align_batch};
use simct_align::class::TRIMMED;
use simct_align::columns::{UnitColumns, UnitKind};
use simct_align::continuation::{PathOptions, on_path};
use simct_align::error::Error;
use simct_align::ids::{RaggedIds, Side};
use simct_align::index::{Index, IndexOptions, IndexSide, build_index};
use simct_align::pair::{Pair, PairOptions};
use simct_align::sections::{Group, SECTIONS, ranges};
use simct_align::threads::Threads;
use simct_align::vocabulary::{Settings, TokenKind, Vocabulary};

const SIDES: [Side; 2] = [Side::Teacher, Side::Student];

/// Letters, a space, and both bytes of `é`.
const ALPHABET: [u8; 4] = [b'a', b' ', 0xc3, 0xa9];

/// A unit, and its ids on both sides.
struct Unit {
    row: usize,
    number: i64,
    kind: u8,
    is_trimmed: bool,
    starts: [usize; 2],
    ids: [Vec<i64>; 2],
}

impl Unit {
    fn has_prefix(&self) -> bool {
        !self.starts.contains(&0)
    }

    fn follows(&self, before: &Unit) -> bool {
        let ends = [0, 1].map(|side| before.starts[side] + before.ids[side].len());
        self.row == before.row && self.starts == ends
    }
}

fn vocabulary(pair: &Pair, side: Side) -> &Vocabulary {
    match side {
        Side::Teacher => pair.teacher(),
        Side::Student => pair.student(),
    }
}

/// The token that stands for a text on a side.
fn find(pair: &Pair, side: Side, text: &[u8]) -> Option<u32> {
    let own = vocabulary(pair, side);
    let spells = |id: &u32| !text.is_empty() && own.token_bytes(*id) == text;
    own.ids().filter(spells).min_by_key(|&id| (own.kind(id) == TokenKind::Byte, id))
}

/// All continuations of a direction in their order: path, last token, one-sided token.
fn slow_leaves(pair: &Pair, side: Side) -> Vec<(Vec<i64>, i64, u32)> {
    let table = pair.spellings().unwrap().of(side);
    let own = vocabulary(pair, side);
    let mut leaves = Vec::new();
    for id in own.ids() {
        let text = own.token_bytes(id);
        let is_one_sided =
            find(pair, side, text) == Some(id) && find(pair, side.other(), text).is_none();
        let spelling = table.spelling(id);
        assert!(is_one_sided || spelling.is_none());
        if let Some((last, path)) = spelling.and_then(<[u32]>::split_last) {
            leaves.push((path.iter().map(|&id| i64::from(id)).collect(), i64::from(*last), id));
        }
    }
    leaves.sort();
    leaves
}

/// (unit, node, depth) of all nodes that units reach along the tokens of the side that spells.
fn slow_entries(pair: &Pair, side: Side, units: &[Unit], max_path: usize) -> Vec<[i64; 3]> {
    let leaves = slow_leaves(pair, side);
    let nodes: BTreeSet<&[i64]> = leaves
        .iter()
        .flat_map(|(path, ..)| (1..=path.len()).map(|length| &path[..length]))
        .collect();
    let is_text = |unit: &Unit| unit.kind != UnitKind::Special as u8 && !unit.is_trimmed;
    let mut entries = Vec::new();
    for (at, unit) in units.iter().enumerate() {
        let mut realized = Vec::new();
        for further in at..units.len() {
            if !is_text(&units[further])
                || further > at && !units[further].follows(&units[further - 1])
            {
                break;
            }
            realized.extend_from_slice(&units[further].ids[side.other() as usize]);
        }
        for depth in 1..=max_path.min(realized.len()) {
            let path = &realized[..depth];
            if unit.has_prefix() && leaves.iter().any(|(of_leaf, ..)| of_leaf == path) {
                let node = nodes.iter().position(|node| *node == path).unwrap();
                entries.push([unit.number, node.try_into().unwrap(), depth.try_into().unwrap()]);
            }
        }
    }
    entries
}

/// The row of logits that predicts a token of a unit, or what follows it: of the whole batch, and
/// of its row.
fn logit_row(batch: &Batch, unit: &Unit, side: Side, step: usize) -> (i64, usize) {
    let in_row = unit.starts[side as usize] + step - 1;
    (batch.sides[side as usize].row_starts[unit.row] + i64::try_from(in_row).unwrap(), in_row)
}

/// The sections of one side, by name, and the rows of logits that they read.
fn slow_side(batch: &Batch, side: Side, kept: &[&Unit]) -> (Sections, Vec<(i64, usize)>) {
    let (mut sections, mut read) = (Sections::new(), Vec::new());
    let mut push = |what: &str, value: i64| {
        sections.entry(format!("{side}_{what}")).or_default().push(value);
    };
    push("offsets", 0);
    let (mut multi, mut steps) = (0, 0);
    for unit in kept {
        let ids = &unit.ids[side as usize];
        let prefix = logit_row(batch, unit, side, 0);
        push("row", prefix.0);
        push("first_id", ids[0]);
        read.push(prefix);
        if unit.kind == UnitKind::Multi as u8 {
            for (step, &id) in ids.iter().enumerate() {
                let row = logit_row(batch, unit, side, step);
                push("step_unit", multi);
                push("step_row", row.0);
                push("step_id", id);
                read.push(row);
                steps += 1;
            }
            push("offsets", steps);
            multi += 1;
        }
    }
    (sections, read)
}

/// The column of a MULTI unit's text and its leaf in either direction, each −1 without one.
fn slow_realized(pair: &Pair, unit: &Unit, max_path: usize) -> [i64; 3] {
    let text = pair.teacher().decode(&unit.ids[0]).unwrap();
    let single = SIDES.map(|side| find(pair, side, &text));
    let columns = pair.shared_teacher_ids().iter().zip(pair.shared_student_ids());
    let mut columns = columns.map(|(&teacher, &student)| [Some(teacher), Some(student)]);
    let number = |place: Option<usize>| place.map_or(-1, |place| i64::try_from(place).unwrap());
    let leaf = |side: Side| {
        let realized = &unit.ids[side.other() as usize];
        number(slow_leaves(pair, side).iter().position(|(path, _, token)| {
            single[side as usize] == Some(*token)
                && path.len() <= max_path
                && realized.starts_with(path)
        }))
    };
    [number(columns.position(|column| column == single)), leaf(SIDES[0]), leaf(SIDES[1])]
}

/// All sections by name, and the rows of logits that they read on either side.
fn slow_index(
    batch: &Batch,
    units: &[Unit],
    max_path: usize,
) -> (Sections, [Vec<(i64, usize)>; 2]) {
    let is_kept = |unit: &&Unit| unit.has_prefix() && !unit.is_trimmed;
    let mut kept: Vec<&Unit> = units.iter().filter(is_kept).collect();
    kept.sort_by_key(|unit| unit.kind == UnitKind::Multi as u8);
    let mut sections = Sections::new();
    let mut push = |name: &str, value| sections.entry(name.into()).or_default().push(value);
    for unit in &kept {
        push("unit", unit.number);
        push("kind", unit.kind.into());
        push("student_tokens", unit.ids[1].len().try_into().unwrap());
        if unit.kind == UnitKind::Multi as u8 {
            let [column, teacher_leaf, student_leaf] = slow_realized(&batch.pair, unit, max_path);
            push("realized_shared_column", column);
            push("realized_teacher_leaf", teacher_leaf);
            push("realized_student_leaf", student_leaf);
        }
    }
    let mut read = SIDES.map(|side| {
        let (own, read) = slow_side(batch, side, &kept);
        sections.extend(own);
        read
    });
    for side in SIDES {
        let place = |number| kept.iter().position(|unit| unit.number == number).unwrap();
        let mut entries = slow_entries(&batch.pair, side, units, max_path);
        entries.sort_by_key(|[number, ..]| place(*number));
        for [number, node, depth] in entries {
            let (place, length) = (place(number), usize::try_from(depth).unwrap());
            let mut push = |what: &str, value| {
                sections.entry(format!("{side}_entry_{what}")).or_default().push(value);
            };
            push("unit", place.try_into().unwrap());
            push("node", node);
            push("depth", depth);
            let row = logit_row(batch, kept[place], side.other(), length);
            read[side.other() as usize].push(row);
        }
    }
    (sections, read)
}

/// Sections by name.
type Sections = BTreeMap<String, Vec<i64>>;

/// Numbers that a test case consists of, taken one after another, round and round.
struct Draw(std::iter::Cycle<std::vec::IntoIter<u8>>);

impl Draw {
    fn below(&mut self, end: usize) -> usize {
        usize::from(self.0.next().unwrap()) % end
    }

    fn text(&mut self, longest: usize) -> Vec<u8> {
        let length = 1 + self.below(longest);
        (0..length).map(|_| ALPHABET[self.below(ALPHABET.len())]).collect()
    }
}

/// One side of a batch.
#[derive(Clone, Debug, Default)]
struct Rows {
    values: Vec<i64>,
    offsets: Vec<i64>,
    mask: Vec<u8>,
    row_starts: Vec<i64>,
}

impl Rows {
    fn ids(&self, side: Side) -> RaggedIds<'_, i64> {
        RaggedIds::new(side, &self.values, &self.offsets).unwrap()
    }

    fn push(&mut self, ids: &[i64], takes_part: bool) {
        self.values.extend_from_slice(ids);
        self.mask.resize(self.values.len(), takes_part.into());
    }
}

#[derive(Debug)]
struct Batch {
    pair: Pair,
    sides: [Rows; 2],
    aligned: AlignedRows,
}

/// Two control tokens, all bytes, a token without bytes, and some of the texts, some of them twice.
fn draw_vocabulary(draw: &mut Draw, texts: &[Vec<u8>]) -> Vocabulary {
    let (mut bytes, mut offsets, mut kinds) = (Vec::new(), vec![0], Vec::new());
    let mut push = |text: &[u8], kind: TokenKind| {
        bytes.extend_from_slice(text);
        offsets.push(i64::try_from(bytes.len()).unwrap());
        kinds.push(kind as u8);
    };
    push(b"", TokenKind::Special);
    push(b"", TokenKind::Special);
    let mut singles = ALPHABET;
    singles.rotate_left(draw.below(4));
    for byte in singles {
        push(&[byte], if draw.below(2) == 0 { TokenKind::Byte } else { TokenKind::Normal });
    }
    push(b"", TokenKind::Normal);
    for text in texts {
        for _ in 0..[0, 1, 1, 2][draw.below(4)] {
            push(text, TokenKind::Normal);
        }
    }
    let settings = Settings { dummy_prefix: draw.below(2) == 0, ..Settings::default() };
    Vocabulary::new(bytes, &offsets, &kinds, settings).unwrap()
}

/// A text in tokens that are drawn, with a token without bytes here and there.
fn draw_ids(draw: &mut Draw, vocabulary: &Vocabulary, mut text: &[u8]) -> Vec<i64> {
    let mut ids = Vec::new();
    while !text.is_empty() {
        let begins = |id: &u32| {
            let token = vocabulary.token_bytes(*id);
            text.starts_with(token) && !token.is_empty()
        };
        let fits: Vec<u32> = vocabulary.ids().filter(begins).collect();
        let id = fits[draw.below(fits.len())];
        if draw.below(16) == 0 {
            ids.push(6);
        }
        ids.push(i64::from(id));
        text = &text[vocabulary.token_bytes(id).len()..];
    }
    ids
}

/// A batch of several rows of several regions, each behind a prompt, with a control token at most.
fn draw_batch(draw: &mut Draw) -> Batch {
    let mut texts: Vec<_> = (0..draw.below(12)).map(|_| draw.text(3)).collect();
    let spaced: Vec<_> = texts.iter().map(|text| [b" ", &text[..]].concat()).collect();
    texts.extend(spaced);
    let [teacher, student] = [(); 2].map(|()| draw_vocabulary(draw, &texts));
    let stops = (draw.below(2) == 0).then(|| vec![0]);
    let options = PairOptions {
        special_tokens: vec![(1, 1)],
        teacher_stops: stops.clone(),
        student_stops: stops,
    };
    let pair = Pair::new(teacher.into(), student.into(), &options).unwrap();
    let mut sides = [Rows::default(), Rows::default()];
    for rows in &mut sides {
        rows.offsets.push(0);
    }
    for _ in 0..draw.below(5) {
        for region in 0..draw.below(4) {
            let text = draw.text(20);
            let (place, control) = (draw.below(text.len() + 1), draw.below(4));
            for (rows, side) in sides.iter_mut().zip(SIDES) {
                let own = vocabulary(&pair, side);
                let prompt = draw.text(2);
                if region > 0 || draw.below(4) > 0 {
                    rows.push(&draw_ids(draw, own, &prompt), false);
                }
                let has_dummy = own.settings().dummy_prefix && draw.below(4) > 0;
                let begin = [if has_dummy { &b" "[..] } else { b"" }, &text[..place]].concat();
                rows.push(&draw_ids(draw, own, &begin), true);
                if control < 2 {
                    rows.push(&[control.try_into().unwrap()], true);
                }
                rows.push(&draw_ids(draw, own, &text[place..]), true);
            }
        }
        for rows in &mut sides {
            rows.row_starts.push(rows.offsets.last().unwrap() + 3);
            rows.offsets.push(rows.values.len().try_into().unwrap());
        }
    }
    let aligned = {
        let [teacher, student] = [0, 1].map(|side| {
            BatchSide::masked(sides[side].ids(SIDES[side]), &sides[side].mask).unwrap()
        });
        align_batch(&pair, teacher, student, &AlignOptions::default()).unwrap()
    };
    Batch { pair, sides, aligned }
}

impl Batch {
    /// Joins units with their successors, and leaves units out, as a study of coarser ones does.
    fn join_some(&mut self, draw: &mut Draw) {
        let (columns, offsets) = (&mut self.aligned.segments, &mut self.aligned.unit_offsets);
        let old = columns.clone();
        let rows: Vec<_> = offsets.windows(2).map(|ends| ends[0]..ends[1]).collect();
        *columns = simct_align::columns::Segments::default();
        offsets.truncate(1);
        for row in rows {
            for unit in row.map(|unit| usize::try_from(unit).unwrap()) {
                let before = columns.kind.len().wrapping_sub(1);
                let ranges = &mut columns.units;
                let is_text = |kind: u8| kind != UnitKind::Special as u8;
                let follows = i64::try_from(columns.kind.len()).unwrap() > *offsets.last().unwrap()
                    && ranges.teacher_end[before] == old.units.teacher_start[unit]
                    && ranges.student_end[before] == old.units.student_start[unit]
                    && is_text(columns.kind[before])
                    && is_text(old.kind[unit]);
                if follows && draw.below(3) == 0 {
                    ranges.teacher_end[before] = old.units.teacher_end[unit];
                    ranges.student_end[before] = old.units.student_end[unit];
                    columns.kind[before] = UnitKind::Multi as u8;
                    columns.unit_class[before] |= old.unit_class[unit];
                } else if draw.below(8) > 0 {
                    ranges.teacher_start.push(old.units.teacher_start[unit]);
                    ranges.teacher_end.push(old.units.teacher_end[unit]);
                    ranges.student_start.push(old.units.student_start[unit]);
                    ranges.student_end.push(old.units.student_end[unit]);
                    columns.kind.push(old.kind[unit]);
                    columns.unit_class.push(old.unit_class[unit]);
                }
            }
            offsets.push(columns.kind.len().try_into().unwrap());
        }
    }

    fn columns(&self) -> UnitColumns<'_> {
        let segments = &self.aligned.segments;
        UnitColumns {
            row_offsets: &self.aligned.unit_offsets,
            teacher_start: &segments.units.teacher_start,
            teacher_end: &segments.units.teacher_end,
            student_start: &segments.units.student_start,
            student_end: &segments.units.student_end,
            kind: &segments.kind,
            unit_class: &segments.unit_class,
        }
    }

    fn units(&self) -> Vec<Unit> {
        let columns = self.columns();
        let at = |position: i32| usize::try_from(position).unwrap();
        let mut units = Vec::new();
        for (row, ends) in columns.row_offsets.windows(2).enumerate() {
            for number in ends[0]..ends[1] {
                let unit = usize::try_from(number).unwrap();
                let ranges = [
                    at(columns.teacher_start[unit])..at(columns.teacher_end[unit]),
                    at(columns.student_start[unit])..at(columns.student_end[unit]),
                ];
                units.push(Unit {
                    row,
                    number,
                    kind: columns.kind[unit],
                    is_trimmed: columns.unit_class[unit] & TRIMMED != 0,
                    starts: [ranges[0].start, ranges[1].start],
                    ids: SIDES.map(|side| {
                        let ids = self.sides[side as usize].ids(side).row(row);
                        ids[ranges[side as usize].clone()].to_vec()
                    }),
                });
            }
        }
        units
    }

    fn index(&self, options: &IndexOptions, strides: [Option<i64>; 2]) -> Result<Index, Error> {
        let [teacher, student] = SIDES.map(|side| IndexSide {
            ids: self.sides[side as usize].ids(side),
            row_starts: &self.sides[side as usize].row_starts,
            stride: strides[side as usize],
            mask: None,
            dummy_prefixes: &[],
        });
        build_index(&self.pair, &self.columns(), teacher, student, options)
    }
}

fn batches() -> impl Strategy<Value = Batch> {
    (prop::collection::vec(any::<u8>(), 300..600), any::<bool>()).prop_map(|(drawn, joined)| {
        let mut draw = Draw(drawn.into_iter().cycle());
        let mut batch = draw_batch(&mut draw);
        if joined {
            batch.join_some(&mut draw);
        }
        batch
    })
}

proptest! {
    #[test]
    fn continuations_are_what_following_every_path_finds(
        batch in batches(), max_path in 1usize..5, threads in 1usize..3,
    ) {
        let options = PathOptions { max_path, threads: Threads::Count(threads.try_into().unwrap()) };
        let [teacher, student] = SIDES.map(|side| batch.sides[side as usize].ids(side));
        let found =
            on_path(&batch.pair, &batch.columns(), teacher, student, &options).unwrap();
        let units = batch.units();
        for (side, found) in SIDES.into_iter().zip([found.teacher, found.student]) {
            let found: Vec<[i64; 3]> = (0..found.len())
                .map(|entry| [found.unit[entry], found.node[entry], found.depth[entry]])
                .map(|entry| entry.map(i64::from))
                .collect();
            prop_assert_eq!(found, slow_entries(&batch.pair, side, &units, max_path));
        }
    }

    #[test]
    fn an_index_is_what_a_unit_at_a_time_makes(
        batch in batches(), max_path in 0usize..4, first_ids in any::<bool>(),
    ) {
        let path = PathOptions { max_path, threads: Threads::AllCores };
        let continuations = (max_path > 0).then_some(path);
        let options = IndexOptions { first_ids, continuations, text_events: None };
        let index = batch.index(&options, [None; 2]).unwrap();
        let (mut expected, read) = slow_index(&batch, &batch.units(), max_path);
        let mut groups = vec![Group::Units];
        groups.extend(first_ids.then_some(Group::FirstIds));
        groups.extend((max_path > 0).then_some(Group::Continuations));
        for (name, range) in ranges(&SECTIONS, &groups, &index.counts) {
            let found = index.packed[range].to_vec();
            prop_assert_eq!(found, expected.remove(name).unwrap_or_default(), "{}", name);
        }
        let absent = |name: &str| SECTIONS.iter().any(|section| {
            section.name == name && !groups.contains(&section.group)
        });
        prop_assert!(expected.keys().all(|name| absent(name)), "{:?}", expected);
        let needed = read.each_ref().map(|rows| rows.iter().map(|(flat, _)| flat + 1).max());
        prop_assert_eq!(index.teacher_rows_needed, needed[0].unwrap_or(0));
        prop_assert_eq!(index.student_rows_needed, needed[1].unwrap_or(0));
        for side in SIDES {
            let widest = read[side as usize].iter().map(|(_, in_row)| in_row + 1).max();
            if let Some(widest) = widest.map(|rows| i64::try_from(rows).unwrap()) {
                let mut strides = [None; 2];
                strides[side as usize] = Some(widest);
                prop_assert_eq!(&batch.index(&options, strides).unwrap(), &index);
                strides[side as usize] = Some(widest - 1);
                let expected = Error::StrideTooShort { side, stride: widest - 1, needed: widest };
                prop_assert_eq!(batch.index(&options, strides), Err(expected));
            }
        }
    }
}

/// The properties above mean little if what they speak of is rare in the batches.
#[test]
fn the_batches_hold_everything_that_an_index_speaks_of() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for _ in 0..256 {
        let batch = batches().new_tree(&mut runner).unwrap().current();
        let continuations = Some(PathOptions { max_path: 3, threads: Threads::AllCores });
        let options = IndexOptions { continuations, ..IndexOptions::default() };
        let Index { packed, counts, .. } = batch.index(&options, [None; 2]).unwrap();
        let groups = [Group::Units, Group::Continuations];
        let sections: BTreeMap<_, _> = ranges(&SECTIONS, &groups, &counts).into_iter().collect();
        let count = |name: &str, holds: fn(i64) -> bool| {
            packed[sections[name].clone()].iter().filter(|&&value| holds(value)).count()
        };
        for (what, times) in [
            ("MULTI", counts.multi),
            ("SPECIAL", count("kind", |kind| kind == UnitKind::Special as i64)),
            ("no prefix", counts.dropped_no_prefix),
            ("dummy prefix", counts.dropped_dummy_prefix),
            ("shared column", count("realized_shared_column", |column| column >= 0)),
            ("teacher leaf", count("realized_teacher_leaf", |leaf| leaf >= 0)),
            ("student leaf", count("realized_student_leaf", |leaf| leaf >= 0)),
            ("teacher depth", count("teacher_entry_depth", |depth| depth > 1)),
            ("student depth", count("student_entry_depth", |depth| depth > 1)),
            ("unmatched", batch.aligned.segments.reason.len()),
        ] {
            *seen.entry(what).or_default() += times;
        }
    }
    let rare: Vec<_> = seen.iter().filter(|(_, times)| **times < 20).collect();
    assert!(rare.is_empty(), "{seen:?}");
}
