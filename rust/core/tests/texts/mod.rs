//! Random vocabularies and batches for the tests of text events, and what all twins read.

#![allow(dead_code, reason = "every test that includes this file needs a part of it")]

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use simct_align::batch::{AlignOptions, AlignedRows, BatchSide, align_batch};
use simct_align::class::TRIMMED;
use simct_align::columns::{Reason, UnitColumns, UnitKind};
use simct_align::error::Error;
use simct_align::ids::{RaggedIds, Side};
use simct_align::index::{Index, IndexOptions, IndexSide, build_index};
use simct_align::pair::{Pair, PairOptions};
use simct_align::sections::{Group, SECTIONS, ranges};
use simct_align::threads::Threads;
use simct_align::vocabulary::{Settings, Token, TokenKind, Vocabulary};

pub(crate) const SIDES: [Side; 2] = [Side::Teacher, Side::Student];

pub(crate) type Text = Vec<u8>;
/// Sections by name.
pub(crate) type Sections = BTreeMap<String, Vec<i64>>;

pub(crate) fn long(count: usize) -> i64 {
    count.try_into().unwrap()
}

pub(crate) fn vocabulary(pair: &Pair, side: Side) -> &Vocabulary {
    match side {
        Side::Teacher => pair.teacher(),
        Side::Student => pair.student(),
    }
}

/// The ids of a side that are text, with their bytes.
pub(crate) fn text_tokens(vocabulary: &Vocabulary) -> Vec<(u32, &[u8])> {
    let is_text = |id: &u32| matches!(vocabulary.kind(*id), TokenKind::Normal | TokenKind::Byte);
    let tokens = vocabulary.ids().filter(is_text).map(|id| (id, vocabulary.token_bytes(id)));
    tokens.filter(|(_, bytes)| !bytes.is_empty()).collect()
}

/// A unit of a batch.
pub(crate) struct Unit {
    pub(crate) row: usize,
    pub(crate) is_text: bool,
    pub(crate) is_trimmed: bool,
    /// Of either side, whether the token before is only a dummy prefix.
    pub(crate) after_dummy: [bool; 2],
    pub(crate) ranges: [std::ops::Range<usize>; 2],
}

/// A side of a stretch: where its text rows stand, counted from the dummy prefix of either side, which tokens they take, and where the first is.
pub(crate) struct Slots {
    pub(crate) at: Vec<usize>,
    pub(crate) ids: Vec<u32>,
    pub(crate) flat: i64,
}

/// One side of a batch.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    pub(crate) values: Vec<i64>,
    pub(crate) offsets: Vec<i64>,
    pub(crate) mask: Vec<u8>,
    pub(crate) row_starts: Vec<i64>,
}

impl Rows {
    pub(crate) fn ids(&self, side: Side) -> RaggedIds<'_, i64> {
        RaggedIds::new(side, &self.values, &self.offsets).unwrap()
    }

    pub(crate) fn push(&mut self, ids: &[i64], takes_part: bool) {
        self.values.extend_from_slice(ids);
        self.mask.resize(self.values.len(), takes_part.into());
    }

    pub(crate) fn end_row(&mut self) {
        self.row_starts.push(self.offsets.last().unwrap() + 3);
        self.offsets.push(long(self.values.len()));
    }
}

#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) pair: Pair,
    pub(crate) sides: [Rows; 2],
    pub(crate) aligned: AlignedRows,
}

impl Batch {
    pub(crate) fn new(pair: Pair, sides: [Rows; 2]) -> Self {
        let [teacher, student] = [0, 1].map(|side| {
            BatchSide::masked(sides[side].ids(SIDES[side]), &sides[side].mask).unwrap()
        });
        let aligned = align_batch(&pair, teacher, student, &AlignOptions::default()).unwrap();
        Self { pair, sides, aligned }
    }

    pub(crate) fn columns(&self) -> UnitColumns<'_> {
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

    pub(crate) fn units(&self) -> Vec<Unit> {
        let columns = self.columns();
        let range = |start: i32, end: i32| start.try_into().unwrap()..end.try_into().unwrap();
        let row_of = |unit: usize| {
            columns.row_offsets.iter().rposition(|&offset| offset <= long(unit)).unwrap()
        };
        let dummies = [0, 1].map(|side| self.dummy_prefixes(side));
        let unit = |unit: usize| {
            let ranges = [
                range(columns.teacher_start[unit], columns.teacher_end[unit]),
                range(columns.student_start[unit], columns.student_end[unit]),
            ];
            let row = row_of(unit);
            let after_dummy = [0, 1].map(|side| {
                let place = self.sides[side].offsets[row] + long(ranges[side].start);
                ranges[side].start > 0 && dummies[side].contains(&(place - 1))
            });
            Unit {
                row,
                is_text: columns.kind[unit] != UnitKind::Special as u8,
                is_trimmed: columns.unit_class[unit] & TRIMMED != 0,
                after_dummy,
                ranges,
            }
        };
        (0..columns.kind.len()).map(unit).collect()
    }

    /// Where the tokens lie that are only a dummy prefix.
    pub(crate) fn dummy_prefixes(&self, side: usize) -> Vec<i64> {
        let (segments, spans) = (&self.aligned.segments, &self.aligned.segments.unmatched);
        let [start, end] = match side {
            0 => [&spans.teacher_start, &spans.teacher_end],
            _ => [&spans.student_start, &spans.student_end],
        };
        let row_of = |span: usize| {
            let offsets = &self.aligned.unmatched_offsets;
            offsets.iter().rposition(|&offset| offset <= long(span)).unwrap()
        };
        let is_dummy = |span: &usize| {
            segments.reason[*span] == Reason::DummyPrefix as u8 && start[*span] < end[*span]
        };
        let spans = (0..segments.reason.len()).filter(is_dummy);
        spans.map(|span| self.sides[side].offsets[row_of(span)] + i64::from(start[span])).collect()
    }

    /// The side whose tokens begin with a dummy prefix that the other side has not.
    pub(crate) fn lead(&self, first: &Unit) -> Option<usize> {
        let bytes = |side: usize| -> usize {
            let rows = &self.sides[side];
            let ids = &rows.ids(SIDES[side]).row(first.row)[first.ranges[side].clone()];
            let own = vocabulary(&self.pair, SIDES[side]);
            ids.iter().map(|&id| own.token_bytes(id.try_into().unwrap()).len()).sum()
        };
        match first.after_dummy {
            [true, false] => Some(0),
            [false, true] => Some(1),
            _ if first.is_trimmed => Some(usize::from(bytes(0) < bytes(1))),
            _ => None,
        }
    }

    pub(crate) fn slots(&self, run: &[Unit], side: usize) -> Slots {
        let (rows, row) = (&self.sides[side], run[0].row);
        let first = run[0].ranges[side].start - usize::from(run[0].after_dummy[side]);
        let range = first..run.last().unwrap().ranges[side].end;
        let flat = rows.row_starts[row] + long(range.start) - 1;
        let ids = &rows.ids(SIDES[side]).row(row)[range];
        let ids: Vec<u32> = ids.iter().map(|&id| id.try_into().unwrap()).collect();
        let mut at = vec![usize::from(self.lead(&run[0]) == Some(1 - side))];
        for &id in &ids {
            at.push(at[at.len() - 1] + vocabulary(&self.pair, SIDES[side]).token_bytes(id).len());
        }
        Slots { at, ids, flat }
    }

    pub(crate) fn takes_part(&self, side: usize, row: usize, position: usize) -> bool {
        let rows = &self.sides[side];
        let start = usize::try_from(rows.offsets[row]).unwrap();
        let end = usize::try_from(rows.offsets[row + 1]).unwrap();
        start + position < end && rows.mask[start + position] != 0
    }

    pub(crate) fn has_same(&self, text: &[u8]) -> bool {
        let strings = SIDES.map(|side| -> BTreeSet<&[u8]> {
            let tokens = text_tokens(vocabulary(&self.pair, side)).into_iter();
            tokens.map(|(_, bytes)| bytes).filter(|bytes| bytes.starts_with(text)).collect()
        });
        strings[0] == strings[1]
    }

    pub(crate) fn index(&self, threads: usize, strides: [Option<i64>; 2]) -> Result<Index, Error> {
        let dummies = [0, 1].map(|side| self.dummy_prefixes(side));
        let [teacher, student] = SIDES.map(|side| IndexSide {
            ids: self.sides[side as usize].ids(side),
            row_starts: &self.sides[side as usize].row_starts,
            stride: strides[side as usize],
            mask: Some(&self.sides[side as usize].mask),
            dummy_prefixes: &dummies[side as usize],
        });
        let text_events = Some(Threads::Count(threads.try_into().unwrap()));
        let options = IndexOptions { text_events, ..IndexOptions::default() };
        build_index(&self.pair, &self.columns(), teacher, student, &options)
    }

    pub(crate) fn sections(&self, index: &Index) -> Sections {
        let all = ranges(&SECTIONS, &[Group::Units, Group::TextEvents], &index.counts);
        let is_text = |name: &str| {
            SECTIONS.iter().any(|known| known.name == name && known.group == Group::TextEvents)
        };
        let all = all.into_iter().filter(|(name, _)| is_text(name));
        all.map(|(name, range)| (name.into(), index.packed[range].to_vec())).collect()
    }
}

/// Letters, a space, and both bytes of `é`.
pub(crate) const ALPHABET: [u8; 4] = [b'a', b' ', 0xc3, 0xa9];

/// Numbers that a test case consists of, taken one after another, round and round.
pub(crate) struct Draw(pub(crate) std::iter::Cycle<std::vec::IntoIter<u8>>);

impl Draw {
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::from(self.0.next().unwrap()) % end
    }

    pub(crate) fn text(&mut self, longest: usize, letters: usize) -> Text {
        let length = 1 + self.below(longest);
        (0..length).map(|_| ALPHABET[self.below(letters)]).collect()
    }
}

/// Control tokens, all bytes, a token without bytes, an unused id and some of the texts, some twice.
pub(crate) fn draw_vocabulary(draw: &mut Draw, texts: &[Text]) -> Vocabulary {
    let (mut bytes, mut offsets, mut kinds) = (Vec::new(), vec![0], Vec::new());
    let mut push = |text: &[u8], kind: TokenKind| {
        bytes.extend_from_slice(text);
        offsets.push(long(bytes.len()));
        kinds.push(kind as u8);
    };
    push(b"", TokenKind::Special);
    push(b"", TokenKind::Special);
    for byte in ALPHABET {
        push(&[byte], if draw.below(2) == 0 { TokenKind::Byte } else { TokenKind::Normal });
    }
    push(b"", TokenKind::Normal);
    push(b"", TokenKind::Unused);
    for text in texts {
        for _ in 0..[0, 1, 1, 1, 2][draw.below(5)] {
            push(text, TokenKind::Normal);
        }
    }
    let settings = Settings { dummy_prefix: draw.below(2) == 0, ..Settings::default() };
    Vocabulary::new(bytes, &offsets, &kinds, settings).unwrap()
}

/// A text in tokens that are drawn, with a token without bytes here and there.
pub(crate) fn draw_ids(draw: &mut Draw, vocabulary: &Vocabulary, mut text: &[u8]) -> Vec<i64> {
    let mut ids = Vec::new();
    let tokens = text_tokens(vocabulary);
    while !text.is_empty() {
        let fits: Vec<_> = tokens.iter().filter(|(_, bytes)| text.starts_with(bytes)).collect();
        let (id, bytes) = fits[draw.below(fits.len())];
        if draw.below(24) == 0 {
            ids.push(6);
        }
        ids.push(i64::from(*id));
        text = &text[bytes.len()..];
    }
    ids
}

/// A pair; one in four with one vocabulary on both sides.
pub(crate) fn draw_pair(draw: &mut Draw) -> Pair {
    let letters = 1 + draw.below(4);
    let mut texts: Vec<_> = (0..draw.below(16)).map(|_| draw.text(5, letters)).collect();
    for _ in 0..draw.below(4) {
        // The beginning of a token, and a token that goes on.
        let text = draw.text(8, letters);
        texts.extend([text[..text.len().div_ceil(2)].to_vec(), text]);
    }
    let mut teacher = std::sync::Arc::new(draw_vocabulary(draw, &texts));
    let student = std::sync::Arc::new(draw_vocabulary(draw, &texts));
    if draw.below(4) == 0 {
        teacher = student.clone();
    }
    let options = PairOptions { special_tokens: vec![(1, 1)], ..PairOptions::default() };
    Pair::new(teacher, student, &options).unwrap()
}

/// Several rows of several regions, each behind a prompt, with a control token at most.
pub(crate) fn draw_batch(draw: &mut Draw) -> Batch {
    let pair = draw_pair(draw);
    let mut sides = [(); 2].map(|()| Rows { offsets: vec![0], ..Rows::default() });
    for _ in 0..draw.below(4) {
        for region in 0..draw.below(4) {
            let letters = 1 + draw.below(4);
            let (prompt, text) = (draw.text(2, 4), draw.text(20, letters));
            let (place, control) = (draw.below(text.len() + 1), draw.below(4));
            for (rows, side) in sides.iter_mut().zip(SIDES) {
                let own = vocabulary(&pair, side);
                if region > 0 || draw.below(4) > 0 {
                    rows.push(&draw_ids(draw, own, &prompt), false);
                }
                let has_dummy = own.settings().dummy_prefix && draw.below(3) > 0;
                let begin = [if has_dummy { &b" "[..] } else { b"" }, &text[..place]].concat();
                rows.push(&draw_ids(draw, own, &begin), true);
                if control < 2 {
                    rows.push(&[long(control)], true);
                }
                rows.push(&draw_ids(draw, own, &text[place..]), true);
            }
        }
        sides.iter_mut().for_each(Rows::end_row);
    }
    Batch::new(pair, sides)
}

pub(crate) fn batches() -> impl Strategy<Value = Batch> {
    prop::collection::vec(any::<u8>(), 300..600)
        .prop_map(|drawn| draw_batch(&mut Draw(drawn.into_iter().cycle())))
}

/// A batch of one row: a prompt of one token, and ids of both sides.
pub(crate) fn one_row(teacher: Vec<Token>, student: Vec<Token>, ids: [Vec<i64>; 2]) -> Batch {
    let [teacher, student] = [teacher, student].map(|side| Vocabulary::from_tokens(side).unwrap());
    let pair = Pair::new(teacher.into(), student.into(), &PairOptions::default()).unwrap();
    let sides = ids.map(|ids| {
        let mut rows = Rows { offsets: vec![0], ..Rows::default() };
        rows.push(&[0], false);
        rows.push(&ids, true);
        rows.end_row();
        rows
    });
    Batch::new(pair, sides)
}
