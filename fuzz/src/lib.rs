//! What the fuzz targets share: small pairs of tokenizers, and everything that can be made of a batch.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;

use arbitrary::Arbitrary;
use simct_align::batch::{AlignOptions, AlignedRows, BatchSide, align_batch};
use simct_align::columns::{Ranges, UnitColumns, UnitKind};
use simct_align::continuation::PathOptions;
use simct_align::error::Result;
use simct_align::ids::{RaggedIds, Side};
use simct_align::index::{IndexOptions, IndexSide, build_index};
use simct_align::pair::{Pair, PairOptions};
use simct_align::threads::Threads;
use simct_align::vocabulary::{Token, Vocabulary};

/// A token of a few bytes of a small alphabet, so that both sides share some.
#[derive(Arbitrary, Clone, Debug)]
pub enum FuzzToken {
    Normal(Vec<u8>),
    Byte(u8),
    Special,
    Unused,
}

const ALPHABET: [u8; 6] = [b'a', b'b', b' ', 0xc3, 0xa9, 0xff];

impl FuzzToken {
    pub fn token(&self) -> Token {
        let letter = |byte: &u8| ALPHABET[usize::from(*byte) % ALPHABET.len()];
        match self {
            Self::Normal(bytes) => Token::normal(bytes.iter().map(letter).collect::<Vec<_>>()),
            Self::Byte(byte) => Token::byte(letter(byte)),
            Self::Special => Token::special("<x>"),
            Self::Unused => Token::unused(),
        }
    }
}

/// A pair of two lists of tokens; the special tokens of equal rank are mapped, as far as asked for.
pub fn pair(teacher: &[FuzzToken], student: &[FuzzToken], mapped: usize) -> Result<Pair> {
    let specials = |tokens: &[FuzzToken]| {
        let ids = (0u32..).zip(tokens).filter(|(_, token)| matches!(token, FuzzToken::Special));
        ids.map(|(id, _)| id).take(mapped).collect::<Vec<_>>()
    };
    let options = PairOptions {
        special_tokens: specials(teacher).into_iter().zip(specials(student)).collect(),
        ..PairOptions::default()
    };
    let [teacher, student] =
        [teacher, student].map(|side| Vocabulary::from_tokens(side.iter().map(FuzzToken::token)));
    Pair::new(teacher?.into(), student?.into(), &options)
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
        let vocabulary = match side {
            Side::Teacher => pair.teacher(),
            Side::Student => pair.student(),
        };
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

    fn indexed<'a>(&'a self, row_starts: &'a [i64]) -> Result<IndexSide<'a, i64>> {
        Ok(IndexSide {
            ids: self.ids()?,
            row_starts,
            stride: None,
            mask: Some(&self.mask),
            dummy_prefixes: &[],
        })
    }

    fn text(&self, vocabulary: &Vocabulary, row: usize, start: i32, end: i32) -> Vec<u8> {
        let first = self.offsets[row] as usize;
        let ids = &self.values[first + start as usize..first + end as usize];
        vocabulary.decode(ids).expect("ids of the vocabulary")
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

/// Every position that takes part is in one unit or one unmatched span, and units have equal bytes.
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
                teacher.text(pair.teacher(), row, units.teacher_start[i], units.teacher_end[i]);
            let of_student =
                student.text(pair.student(), row, units.student_start[i], units.student_end[i]);
            assert_eq!(of_teacher, of_student);
            assert_eq!(of_teacher.is_empty(), segments.kind[i] == UnitKind::Special as u8);
        }
    }
}

/// Makes an index with all of its sections.
pub fn index(
    pair: &Pair,
    teacher: &Sampled,
    student: &Sampled,
    aligned: &AlignedRows,
) -> Result<()> {
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
    let on = |count| {
        build_index(
            pair,
            &units,
            teacher.indexed(&teacher.offsets[..teacher.rows()])?,
            student.indexed(&student.offsets[..student.rows()])?,
            &IndexOptions {
                first_ids: true,
                continuations: Some(PathOptions { max_path: 8, threads: threads(count) }),
                text_events: Some(threads(count)),
            },
        )
    };
    let one = on(1)?;
    assert_eq!(one, on(2)?);
    let dropped = one.counts.dropped_no_prefix + one.counts.dropped_dummy_prefix;
    assert_eq!(one.counts.shared + one.counts.multi + dropped, segments.kind.len());
    Ok(())
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
