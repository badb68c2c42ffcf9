//! Pairs with common beginnings of tokens, and rows in which both sides mostly write the same texts.

use arbitrary::{Arbitrary, Result, Unstructured};
use simct_align::batch::AlignedRows;
use simct_align::class::TRIMMED;
use simct_align::columns::UnitKind;
use simct_align::error::Error;
use simct_align::ids::Side;
use simct_align::index::Index;
use simct_align::pair::Pair;

use crate::{ALPHABET, FuzzToken, SIDES, Sampled, align, check, index, pair, text_tokens};

/// What a pair and a batch are made of.
#[derive(Clone, Debug)]
pub struct Case {
    tokens: [Vec<FuzzToken>; 2],
    dummy_prefix: [bool; 2],
    mapped: usize,
    rows: Vec<Vec<Piece>>,
    /// Which tokens the encoders of both sides take for one-sided tokens, if there are encoders.
    pub encoders: Option<[Vec<u8>; 2]>,
    pub max_path: usize,
}

/// What comes next in both rows.
#[derive(Clone, Debug)]
enum Piece {
    /// A token of either side that takes no part, and whether a dummy prefix comes after it.
    Prompt([u8; 2], [bool; 2]),
    /// The text of tokens of either side, and which tokens both sides write it with.
    Text(Vec<(bool, u8)>, [Vec<u8>; 2]),
    /// Any token of a side, special and unused ones included.
    Token(Side, u8),
    /// The control token of this rank of either side that has one.
    Control(usize),
}

/// Between no and `most` of something. (A `Vec` of `arbitrary` mostly has one entry or none.)
fn several<'a, T>(
    u: &mut Unstructured<'a>,
    most: usize,
    mut one: impl FnMut(&mut Unstructured<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    (0..u.int_in_range(0..=most)?).map(|_| one(u)).collect()
}

/// A token; often a longer one than one of those that are there already, or one of them again.
fn draw_token(u: &mut Unstructured<'_>, known: &[FuzzToken]) -> Result<FuzzToken> {
    Ok(match u.int_in_range(0..=15)? {
        0 => FuzzToken::Special,
        1 => FuzzToken::Unused,
        2 => FuzzToken::Byte(u.arbitrary()?),
        3 => FuzzToken::Normal(vec![u.arbitrary()?; usize::from(u.arbitrary::<u8>()? % 80)]),
        4..=9 if !known.is_empty() => match u.choose(known)?.clone() {
            FuzzToken::Normal(start) => {
                FuzzToken::Normal([start, several(u, 3, u8::arbitrary)?].concat())
            }
            other => other,
        },
        _ => FuzzToken::Normal(several(u, 4, u8::arbitrary)?),
    })
}

fn draw_piece(u: &mut Unstructured<'_>) -> Result<Piece> {
    Ok(match u.int_in_range(0..=9)? {
        0 | 1 => Piece::Prompt(u.arbitrary()?, u.arbitrary()?),
        2 => Piece::Token(*u.choose(&SIDES)?, u.arbitrary()?),
        3 => Piece::Control(u.int_in_range(0..=1)?),
        _ => Piece::Text(
            several(u, 6, <(bool, u8)>::arbitrary)?,
            [several(u, 8, u8::arbitrary)?, several(u, 8, u8::arbitrary)?],
        ),
    })
}

impl<'a> Arbitrary<'a> for Case {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Self> {
        let mut common = Vec::new();
        for _ in 0..u.int_in_range(0..=8)? {
            let token = draw_token(u, &common)?;
            common.push(token);
        }
        let mut tokens = [common.clone(), common];
        for side in &mut tokens {
            let letters = 0..ALPHABET.len() as u8;
            match u.int_in_range(0..=7)? {
                0 => {
                    *side = letters.map(FuzzToken::Byte).collect();
                    continue;
                }
                1 | 2 => side.extend(letters.map(FuzzToken::Byte)),
                3..=5 => side.extend(letters.map(|letter| FuzzToken::Normal(vec![letter]))),
                _ => {}
            }
            for _ in 0..u.int_in_range(0..=12)? {
                let token = draw_token(u, side)?;
                side.push(token);
            }
        }
        if u.ratio(1, 8)? {
            tokens[1] = tokens[0].clone();
        }
        Ok(Self {
            tokens,
            dummy_prefix: [u.ratio(1, 3)?, u.ratio(1, 3)?],
            mapped: u.int_in_range(0..=2)?,
            max_path: u.int_in_range(1..=10)?,
            encoders: match u.arbitrary()? {
                true => Some([several(u, 20, u8::arbitrary)?, several(u, 20, u8::arbitrary)?]),
                false => None,
            },
            rows: several(u, 3, |u| several(u, 8, draw_piece))?,
        })
    }
}

/// A pair, rows of both sides, and their alignment.
pub struct Batch {
    pub pair: Pair,
    pub sides: [Sampled; 2],
    pub aligned: AlignedRows,
}

/// A unit of a batch.
pub struct Unit {
    /// Its number in the batch, and its row.
    pub number: usize,
    pub row: usize,
    pub kind: u8,
    pub is_trimmed: bool,
    /// Positions of both sides in the row.
    pub starts: [usize; 2],
    pub ends: [usize; 2],
}

impl Unit {
    pub fn is_text(&self) -> bool {
        self.kind != UnitKind::Special as u8
    }

    /// Whether it begins where another one ends, on both sides.
    pub fn follows(&self, before: &Self) -> bool {
        (self.row, self.starts) == (before.row, before.ends)
    }
}

/// The ids of a text, with the tokens that are taken of those that fit: the longest where no more
/// choices are given. A byte with which no token begins is left out.
pub fn write(tokens: &[(u32, &[u8])], mut text: &[u8], taken: &[u8]) -> Vec<i64> {
    let (mut ids, mut taken) = (Vec::new(), taken.iter());
    while !text.is_empty() {
        let mut fits: Vec<_> = tokens.iter().filter(|(_, bytes)| text.starts_with(bytes)).collect();
        fits.sort_by_key(|(_, bytes)| std::cmp::Reverse(bytes.len()));
        let mut length = 1;
        if !fits.is_empty() {
            let choice = taken.next().map_or(0, |&choice| usize::from(choice) % fits.len());
            ids.push(i64::from(fits[choice].0));
            length = fits[choice].1.len();
        }
        text = &text[length..];
    }
    ids
}

impl Case {
    /// The batch; nothing where the numbers of regions differ, or a side has no token.
    pub fn batch(&self) -> Option<Batch> {
        let [teacher, student] = &self.tokens;
        let pair = pair([teacher, student], self.dummy_prefix, self.mapped).ok()?;
        let [teacher, student] = [0, 1].map(|side| self.rows_of(side, &pair));
        let aligned = match align(&pair, teacher.as_ref()?, student.as_ref()?) {
            Ok(aligned) => aligned,
            Err(Error::RegionCount { .. }) => return None,
            Err(error) => panic!("{error}"),
        };
        let sides = [teacher?, student?];
        check(&pair, &sides[0], &sides[1], &aligned);
        Some(Batch { pair, sides, aligned })
    }

    fn rows_of(&self, number: usize, pair: &Pair) -> Option<Sampled> {
        let side = SIDES[number];
        let all = &self.tokens[number];
        let known = text_tokens(pair, side);
        let any = |id: &u8| (usize::from(*id) % all.len()) as i64;
        let mut rows = Sampled { side, values: vec![], offsets: vec![0], mask: vec![] };
        if all.is_empty() {
            return None;
        }
        for row in &self.rows {
            let mut has_space = false;
            for piece in row {
                let takes_part = !matches!(piece, Piece::Prompt(..));
                let ids = match piece {
                    Piece::Prompt(ids, spaces) => {
                        has_space = spaces[number] && self.dummy_prefix[number];
                        vec![any(&ids[number])]
                    }
                    Piece::Text(words, taken) => {
                        let mut text = Vec::new();
                        if std::mem::take(&mut has_space) {
                            text.push(b' ');
                        }
                        for (of_student, word) in words {
                            let words = &self.tokens[usize::from(*of_student)];
                            let word = words.get(usize::from(*word) % words.len().max(1));
                            text.extend(word.map(FuzzToken::bytes).unwrap_or_default());
                        }
                        write(&known, &text, &taken[number])
                    }
                    Piece::Token(of_side, id) if *of_side == side => vec![any(id)],
                    Piece::Token(..) => vec![],
                    Piece::Control(rank) => {
                        let is_control = |id: &i64| matches!(all[*id as usize], FuzzToken::Special);
                        (0..all.len() as i64).filter(is_control).nth(*rank).into_iter().collect()
                    }
                };
                rows.values.extend(ids);
                rows.mask.resize(rows.values.len(), u8::from(takes_part));
            }
            rows.offsets.push(rows.values.len() as i64);
        }
        Some(rows)
    }
}

impl Batch {
    /// Its units, in order.
    pub fn units(&self) -> Vec<Unit> {
        let (segments, offsets) = (&self.aligned.segments, &self.aligned.unit_offsets);
        let position = |positions: &[i32], number: usize| positions[number] as usize;
        let ranges = &segments.units;
        let mut units = Vec::new();
        for row in 0..offsets.len() - 1 {
            units.extend((offsets[row] as usize..offsets[row + 1] as usize).map(|number| {
                Unit {
                    number,
                    row,
                    kind: segments.kind[number],
                    is_trimmed: segments.unit_class[number] & TRIMMED != 0,
                    starts: [&ranges.teacher_start, &ranges.student_start]
                        .map(|starts| position(starts, number)),
                    ends: [&ranges.teacher_end, &ranges.student_end]
                        .map(|ends| position(ends, number)),
                }
            }));
        }
        units
    }

    /// A unit's ids on a side.
    pub fn ids(&self, unit: &Unit, side: usize) -> &[i64] {
        &self.sides[side].row(unit.row)[unit.starts[side]..unit.ends[side]]
    }

    /// An index with all sections.
    pub fn index(&self, max_path: usize) -> Index {
        let [teacher, student] = &self.sides;
        index(&self.pair, [teacher, student], &self.aligned, max_path).expect("units of the batch")
    }

    /// The bytes of some ids of a side.
    pub fn text(&self, side: usize, ids: &[i64]) -> Vec<u8> {
        let vocabulary = crate::vocabulary_of(&self.pair, SIDES[side]);
        vocabulary.decode(ids).expect("ids of the vocabulary")
    }
}
