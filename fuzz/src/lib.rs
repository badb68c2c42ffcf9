//! What the fuzz targets share: small pairs of tokenizers, and everything that can be made of a batch.

pub mod case;
pub mod seeds;
pub mod slow_continuations;
pub mod slow_text_events;
pub mod slow_tree;
pub mod targets;

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use arbitrary::Arbitrary;
use simct_align::batch::{AlignOptions, AlignedRows, BatchSide, align_batch};
use simct_align::class::TRIMMED;
use simct_align::columns::{Ranges, Reason, UnitColumns, UnitKind};
use simct_align::continuation::PathOptions;
use simct_align::error::Result;
use simct_align::ids::{RaggedIds, Side};
use simct_align::index::{Index, IndexOptions, IndexSide, build_index};
use simct_align::pair::{Pair, PairOptions};
use simct_align::sections::{Group, SECTIONS, ranges};
use simct_align::threads::Threads;
use simct_align::vocabulary::{Settings, TokenKind, Vocabulary};

pub const SIDES: [Side; 2] = [Side::Teacher, Side::Student];

/// What their sections of an index begin with.
pub const NAMES: [&str; 2] = ["teacher", "student"];

/// A token of a few bytes of a small alphabet, so that both sides share some.
#[derive(Arbitrary, Clone, Debug)]
pub enum FuzzToken {
    Normal(Vec<u8>),
    Byte(u8),
    Special,
    Unused,
}

/// A zero byte too, which tables have for "no byte".
const ALPHABET: [u8; 7] = [b'a', b'b', b' ', 0xc3, 0xa9, 0xff, 0];

impl FuzzToken {
    fn bytes(&self) -> Vec<u8> {
        let letter = |byte: &u8| ALPHABET[usize::from(*byte) % ALPHABET.len()];
        match self {
            Self::Normal(bytes) => bytes.iter().map(letter).collect(),
            Self::Byte(byte) => vec![letter(byte)],
            Self::Special | Self::Unused => Vec::new(),
        }
    }

    fn kind(&self) -> TokenKind {
        match self {
            Self::Normal(_) => TokenKind::Normal,
            Self::Byte(_) => TokenKind::Byte,
            Self::Special => TokenKind::Special,
            Self::Unused => TokenKind::Unused,
        }
    }
}

fn vocabulary(tokens: &[FuzzToken], dummy_prefix: bool) -> Result<Vocabulary> {
    let (mut bytes, mut offsets) = (Vec::new(), vec![0]);
    for token in tokens {
        bytes.extend(token.bytes());
        offsets.push(bytes.len() as i64);
    }
    let kinds: Vec<u8> = tokens.iter().map(|token| token.kind() as u8).collect();
    Vocabulary::new(bytes, &offsets, &kinds, Settings { dummy_prefix, ..Settings::default() })
}

/// A pair of two lists of tokens, and whether each side puts a space before a text; the special
/// tokens of equal rank are mapped, as far as asked for.
pub fn pair(sides: [&[FuzzToken]; 2], dummy_prefix: [bool; 2], mapped: usize) -> Result<Pair> {
    let [teacher, student] = sides.map(|tokens| {
        let ids = (0u32..).zip(tokens).filter(|(_, token)| matches!(token, FuzzToken::Special));
        ids.map(|(id, _)| id).take(mapped).collect::<Vec<_>>()
    });
    let options = PairOptions {
        special_tokens: teacher.into_iter().zip(student).collect(),
        ..PairOptions::default()
    };
    let [teacher, student] = [0, 1].map(|side| vocabulary(sides[side], dummy_prefix[side]));
    Pair::new(teacher?.into(), student?.into(), &options)
}

pub fn vocabulary_of(pair: &Pair, side: Side) -> &Vocabulary {
    match side {
        Side::Teacher => pair.teacher(),
        Side::Student => pair.student(),
    }
}

/// The ids of a side that are text, with their bytes.
pub fn text_tokens(pair: &Pair, side: Side) -> Vec<(u32, &[u8])> {
    let vocabulary = vocabulary_of(pair, side);
    let is_text = |id: &u32| matches!(vocabulary.kind(*id), TokenKind::Normal | TokenKind::Byte);
    let tokens = vocabulary.ids().filter(is_text).map(|id| (id, vocabulary.token_bytes(id)));
    tokens.filter(|(_, bytes)| !bytes.is_empty()).collect()
}

/// Ids in rows, and which of them take part.
#[derive(Arbitrary, Clone, Debug)]
pub struct Rows {
    pub values: Vec<u8>,
    pub lengths: Vec<u8>,
    pub mask: Option<Vec<bool>>,
}

/// Rows as the core reads them, with their mask.
pub struct Sampled {
    pub side: Side,
    pub values: Vec<i64>,
    pub offsets: Vec<i64>,
    pub mask: Vec<u8>,
}

impl Rows {
    /// Ids of a side's vocabulary, in `rows` rows that hold all of them.
    pub fn sampled(&self, pair: &Pair, side: Side, rows: usize) -> Sampled {
        let vocabulary = vocabulary_of(pair, side);
        let known = if vocabulary.is_empty() { &[][..] } else { &self.values };
        let values: Vec<i64> =
            known.iter().map(|&id| (usize::from(id) % vocabulary.len()) as i64).collect();
        let mut offsets = vec![0];
        for row in 0..rows.saturating_sub(1) {
            let length = i64::from(self.lengths.get(row).copied().unwrap_or(3));
            offsets.push((offsets[row] + length).min(values.len() as i64));
        }
        offsets.push(values.len() as i64);
        let takes_part = |place| match &self.mask {
            Some(mask) => mask.get(place).copied().unwrap_or(true),
            None => true,
        };
        let mask = (0..values.len()).map(|place| u8::from(takes_part(place))).collect();
        Sampled { side, values, offsets, mask }
    }
}

impl Sampled {
    /// All ids as one row that takes part.
    pub fn whole(side: Side, values: Vec<i64>) -> Self {
        let (offsets, mask) = (vec![0, values.len() as i64], vec![1; values.len()]);
        Self { side, values, offsets, mask }
    }

    pub fn rows(&self) -> usize {
        self.offsets.len() - 1
    }

    fn ids(&self) -> Result<RaggedIds<'_, i64>> {
        Ok(RaggedIds::new(self.side, &self.values, &self.offsets)?)
    }

    /// The ids of a row.
    pub fn row(&self, row: usize) -> &[i64] {
        &self.values[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }

    fn indexed<'a>(&'a self, dummy_prefixes: &'a [i64]) -> Result<IndexSide<'a, i64>> {
        Ok(IndexSide {
            ids: self.ids()?,
            row_starts: &self.offsets[..self.rows()],
            stride: None,
            mask: Some(&self.mask),
            dummy_prefixes,
        })
    }

    /// Where the tokens lie that are only a dummy prefix, counted over the whole batch.
    pub fn dummy_prefixes(&self, aligned: &AlignedRows) -> Vec<i64> {
        let spans = &aligned.segments.unmatched;
        let (starts, ends) = match self.side {
            Side::Teacher => (&spans.teacher_start, &spans.teacher_end),
            Side::Student => (&spans.student_start, &spans.student_end),
        };
        let mut places = Vec::new();
        for row in 0..self.rows() {
            let offsets = &aligned.unmatched_offsets[row..];
            for span in offsets[0] as usize..offsets[1] as usize {
                let is_dummy = aligned.segments.reason[span] == Reason::DummyPrefix as u8;
                if is_dummy && starts[span] < ends[span] {
                    places.push(self.offsets[row] + i64::from(starts[span]));
                }
            }
        }
        places
    }

    /// The bytes of each token of a unit.
    fn tokens<'a>(&self, pair: &'a Pair, row: usize, start: i32, end: i32) -> Vec<&'a [u8]> {
        let ids = &self.row(row)[start as usize..end as usize];
        let vocabulary = vocabulary_of(pair, self.side);
        ids.iter().map(|&id| vocabulary.token_bytes(id as u32)).collect()
    }
}

fn threads(count: usize) -> Threads {
    NonZeroUsize::new(count).map_or(Threads::AllCores, Threads::Count)
}

/// Aligns on one thread and on two, which must agree.
pub fn align(pair: &Pair, teacher: &Sampled, student: &Sampled) -> Result<AlignedRows> {
    let on = |count| {
        let teacher = BatchSide::masked(teacher.ids()?, &teacher.mask)?;
        let student = BatchSide::masked(student.ids()?, &student.mask)?;
        let options = AlignOptions { threads: threads(count), ..AlignOptions::default() };
        align_batch(pair, teacher, student, &options)
    };
    let found = on(1);
    assert_eq!(found, on(2));
    found
}

/// Every position that takes part is in one unit or one unmatched span. The units have equal bytes,
/// but for a dummy prefix, and their kinds; tokens without bytes are in SPECIAL units alone.
pub fn check(pair: &Pair, teacher: &Sampled, student: &Sampled, aligned: &AlignedRows) {
    let segments = &aligned.segments;
    let mut taken = [teacher, student].map(|side| vec![0u8; side.values.len()]);
    let mut cover = |columns: &Ranges, offsets: &[i64]| {
        for row in 0..offsets.len() - 1 {
            for i in offsets[row] as usize..offsets[row + 1] as usize {
                for (side, rows, start, end) in [
                    (0, teacher, columns.teacher_start[i], columns.teacher_end[i]),
                    (1, student, columns.student_start[i], columns.student_end[i]),
                ] {
                    let first = rows.offsets[row];
                    let place =
                        (first + i64::from(start)) as usize..(first + i64::from(end)) as usize;
                    assert!(place.end as i64 <= rows.offsets[row + 1]);
                    taken[side][place].iter_mut().for_each(|count| *count += 1);
                }
            }
        }
    };
    cover(&segments.units, &aligned.unit_offsets);
    cover(&segments.unmatched, &aligned.unmatched_offsets);
    assert_eq!(taken[0], teacher.mask);
    assert_eq!(taken[1], student.mask);
    for row in 0..aligned.unit_offsets.len() - 1 {
        for i in aligned.unit_offsets[row] as usize..aligned.unit_offsets[row + 1] as usize {
            let units = &segments.units;
            let of_teacher =
                teacher.tokens(pair, row, units.teacher_start[i], units.teacher_end[i]);
            let of_student =
                student.tokens(pair, row, units.student_start[i], units.student_end[i]);
            let is_trimmed = segments.unit_class[i] & TRIMMED != 0;
            let is_special = segments.kind[i] == UnitKind::Special as u8;
            let are_single = of_teacher.len() == 1 && of_student.len() == 1;
            let is_multi = is_trimmed || !are_single;
            assert_eq!(segments.kind[i] == UnitKind::Multi as u8, is_multi);
            for token in of_teacher.iter().chain(&of_student) {
                assert_eq!(token.is_empty(), is_special);
            }
            let (of_teacher, of_student) = (of_teacher.concat(), of_student.concat());
            let spaced = |text: &[u8]| [b" ", text].concat();
            if !is_trimmed {
                assert_eq!(of_teacher, of_student);
            } else if of_teacher.len() > of_student.len() {
                assert_eq!(of_teacher, spaced(&of_student));
            } else {
                assert_eq!(spaced(&of_teacher), of_student);
            }
        }
    }
}

/// Makes an index with all of its sections, on one thread and on two, which must agree.
pub fn index(
    pair: &Pair,
    sides: [&Sampled; 2],
    aligned: &AlignedRows,
    max_path: usize,
) -> Result<Index> {
    let segments = &aligned.segments;
    let units = UnitColumns {
        row_offsets: &aligned.unit_offsets,
        teacher_start: &segments.units.teacher_start,
        teacher_end: &segments.units.teacher_end,
        student_start: &segments.units.student_start,
        student_end: &segments.units.student_end,
        kind: &segments.kind,
        unit_class: &segments.unit_class,
    };
    let dummies = sides.map(|side| side.dummy_prefixes(aligned));
    let on = |count| {
        let options = IndexOptions {
            first_ids: true,
            continuations: Some(PathOptions { max_path, threads: threads(count) }),
            text_events: Some(threads(count)),
        };
        let [teacher, student] = [0, 1].map(|side| sides[side].indexed(&dummies[side]));
        build_index(pair, &units, teacher?, student?, &options)
    };
    let one = on(1)?;
    assert_eq!(one, on(2)?);
    let dropped = one.counts.dropped_no_prefix + one.counts.dropped_dummy_prefix;
    assert_eq!(one.counts.shared + one.counts.multi + dropped, segments.kind.len());
    Ok(one)
}

/// A section of an index that has all of them.
pub fn section<'a>(index: &'a Index, name: &str) -> &'a [i64] {
    let groups = [Group::Units, Group::FirstIds, Group::Continuations, Group::TextEvents];
    let all = ranges(&SECTIONS, &groups, &index.counts);
    let (_, range) = all.into_iter().find(|(known, _)| *known == name).expect("a known name");
    &index.packed[range]
}

/// The slow twin: token ranges of both sides between neighbouring common boundaries.
pub fn slow_units(teacher: &[Vec<u8>], student: &[Vec<u8>]) -> Vec<[i32; 4]> {
    let ends = |tokens: &[Vec<u8>]| -> Vec<usize> {
        (1..=tokens.len()).map(|count| tokens[..count].concat().len()).collect()
    };
    let (teacher, student) = (ends(teacher), ends(student));
    let common: BTreeSet<usize> =
        teacher.iter().filter(|end| student.contains(end)).copied().collect();
    let after =
        |ends: &[usize], offset| ends.iter().take_while(|&&end| end <= offset).count() as i32;
    let (mut units, mut from) = (Vec::new(), [0; 2]);
    for offset in common {
        let to = [after(&teacher, offset), after(&student, offset)];
        units.push([from[0], to[0], from[1], to[1]]);
        from = to;
    }
    units
}

/// The targets over seeded random bytes, for machines without cargo-fuzz.
#[cfg(test)]
mod tests {
    use arbitrary::{Arbitrary, Unstructured};
    use sha2::{Digest, Sha256};

    use crate::case::Case;
    use crate::slow_continuations::check_continuations;
    use crate::slow_text_events::check_text_events;

    /// Cases of 600 bytes each, as many as the fuzzer's longest inputs have.
    fn cases() -> impl Iterator<Item = Case> {
        (0..2000u32).map(|seed| {
            let blocks = (0..19u32).map(|block| [seed, block].map(u32::to_le_bytes).concat());
            let bytes: Vec<u8> = blocks.flat_map(Sha256::digest).collect();
            Case::arbitrary(&mut Unstructured::new(&bytes)).expect("enough bytes")
        })
    }

    /// What is rare in the cases is not tested by them.
    fn assert_often(seen: &[(&str, usize)]) {
        assert!(seen.iter().all(|(_, times)| *times > 100), "{seen:?}");
    }

    #[test]
    fn continuations_are_those_of_the_definition() {
        let seen: Vec<_> = cases().map(|case| check_continuations(&case)).collect();
        assert_often(&[
            ("entries", seen.iter().map(|seen| seen.entries).sum()),
            ("entries of several tokens", seen.iter().map(|seen| seen.deep_entries).sum()),
            ("realized leaves", seen.iter().map(|seen| seen.realized_leaves).sum()),
            ("encoded spellings", seen.iter().map(|seen| seen.encoded).sum()),
        ]);
    }

    #[test]
    fn text_events_are_those_of_the_definition() {
        let seen: Vec<_> = cases().map(|case| check_text_events(&case)).collect();
        assert_often(&[
            ("nodes", seen.iter().map(|seen| seen.nodes).sum()),
            ("offsets", seen.iter().map(|seen| seen.offsets).sum()),
            ("sources", seen.iter().map(|seen| seen.sources).sum()),
            ("straddling tokens", seen.iter().map(|seen| seen.straddling).sum()),
            ("restarts", seen.iter().map(|seen| seen.restarts).sum()),
            ("dummy prefixes", seen.iter().map(|seen| seen.dummy_prefixes).sum()),
        ]);
    }
}
