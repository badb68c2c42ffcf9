//! From a student's sampled ids to the teacher's ids of the same bytes.
//!
//! The ids that a student samples need not be the ids that its tokenizer emits for the text. They
//! may cut the text differently, end inside a character, or not be valid text. The ids have bytes,
//! and the teacher has to read these bytes:
//!
//! ```text
//! ids     | Σ x | <0xE2> | <eos> |        student
//! parts   | Σ x | bytes  | stop  |        Retokenizer::split
//! ids     | Σ | ␣x | <0xE2> | <end> |     Retokenizer::assemble, with the teacher's encoder
//! ```
//!
//! The encoder is the teacher's own tokenizer, so the texts leave this crate and come back as ids.
//! The encoder may change a text: it composes characters, reads a `▁` as a space, or puts a space
//! before the text. Alignment of the result with the sampled ids shows these stretches.
//! [`Retokenizer::repair`] (in `retokenize_repair.rs`) spells them, and only them, with the fewest tokens that have exactly
//! their bytes.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ids::{NONE, RaggedIds, Side, TokenId};
use crate::pair::Pair;
pub use crate::retokenize_repair::Stretch;
use crate::speller::Speller;
use crate::threads::Stop;
use crate::vocabulary::Vocabulary;

/// A sentinel before every text that a tokenizer with a dummy prefix encodes. The sentinel takes
/// the prefix: no tokenizer in use joins a line feed with the word after it.
const SENTINEL: &str = "\n";

/// The replacement of bytes for which the teacher has no tokens.
const REPLACEMENT: &str = "\u{fffd}";

/// What crossed in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Special tokens that the pair maps to a teacher token.
    pub specials: usize,
    /// Special tokens without a partner; they are left out.
    pub specials_left_out: usize,
    /// Other ids without bytes; they are left out.
    pub empty_left_out: usize,
    /// Bytes that are not valid UTF-8.
    pub invalid_bytes: usize,
    /// Bytes that the encoder would have changed; they are spelled with the fewest tokens.
    pub respelled_bytes: usize,
    /// Bytes for which the teacher has no tokens; every run of them becomes one U+FFFD.
    pub replaced_bytes: usize,
}

/// One part of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    /// The next text.
    Text,
    /// Bytes that are not valid text, as a range of [`Plan::bytes`].
    Bytes(Range<usize>),
    /// A special token of the teacher.
    Special(u32),
}

/// Regions of sampled ids, split into parts.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    texts: Vec<String>,
    bytes: Vec<u8>,
    parts: Vec<Part>,
    /// The parts of region `i` end at `ends[i]`.
    ends: Vec<usize>,
    counts: Counts,
}

impl Plan {
    /// The texts that the teacher's encoder must tokenize, in this order.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        &self.texts
    }
}

/// The teacher's ids of regions: region `i` is `values[offsets[i]..offsets[i + 1]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retokenized {
    /// Ids of all regions.
    pub values: Vec<i64>,
    /// The start of every region, then the end.
    pub offsets: Vec<i64>,
    /// The teacher's ids of U+FFFD; empty if no byte can need a replacement.
    pub replacement: Vec<i64>,
    /// What crossed in which way.
    pub counts: Counts,
}

impl Retokenized {
    pub(crate) fn new(regions: usize) -> Self {
        let mut offsets = Vec::with_capacity(regions + 1);
        offsets.push(0);
        Self { values: Vec::new(), offsets, replacement: Vec::new(), counts: Counts::default() }
    }

    pub(crate) fn end_region(&mut self) {
        self.offsets.push(i64::try_from(self.values.len()).unwrap_or(i64::MAX));
    }
}

/// Makes teacher's ids of a student's: what that needs beside the pair, made on first use.
#[derive(Debug)]
pub struct Retokenizer {
    pub(crate) pair: Arc<Pair>,
    pub(crate) speller: Speller,
}

impl Retokenizer {
    /// Looks at the teacher's byte tokens.
    ///
    /// # Complexity
    ///
    /// 256 look-ups; the first one builds the vocabulary's table.
    #[must_use]
    pub fn new(pair: Arc<Pair>) -> Self {
        Self { speller: Speller::new(Arc::clone(pair.teacher())), pair }
    }

    /// Splits regions of the student's ids into parts: valid text, other bytes, special tokens.
    ///
    /// A token without bytes ends a text, so that no teacher token crosses it.
    ///
    /// # Complexity
    ///
    /// O(tokens + bytes) time and memory.
    ///
    /// # Errors
    ///
    /// An id that is not in the student's vocabulary. [`Error::Interrupted`], as from the other
    /// functions: see [`set_interrupt`](crate::threads::set_interrupt).
    pub fn split<I: TokenId>(&self, student: RaggedIds<'_, I>) -> Result<Plan> {
        let mut plan = Plan::default();
        let mut pending = Vec::new();
        let stop = Stop::new();
        for region in 0..student.rows() {
            stop.check()?;
            for (position, &id) in student.row(region).iter().enumerate() {
                let token = known_id(self.pair.student(), Side::Student, region, position, id)?;
                match self.pair.student().token_bytes(token) {
                    [] => {
                        self.flush(&mut pending, &mut plan);
                        self.split_empty(token, &mut plan);
                    }
                    bytes => pending.extend_from_slice(bytes),
                }
            }
            self.flush(&mut pending, &mut plan);
            plan.ends.push(plan.parts.len());
        }
        if !self.speller.has_all_bytes() {
            plan.texts.push(self.with_sentinel(REPLACEMENT));
        }
        Ok(plan)
    }

    /// Joins the parts again, with the ids that the teacher's encoder emits for the texts.
    ///
    /// # Complexity
    ///
    /// O(tokens), and that of [`Retokenizer::repair`] for the bytes that are not valid text.
    ///
    /// # Errors
    ///
    /// Another number of encodings than of texts; an id that is not in the teacher's vocabulary.
    pub fn assemble(&self, plan: &Plan, encoded: RaggedIds<'_, i64>) -> Result<Retokenized> {
        if encoded.rows() != plan.texts.len() {
            return Err(Error::LengthMismatch {
                name: "encoded",
                found: encoded.rows(),
                expected: plan.texts.len(),
                why: "one row for every text",
            });
        }
        let mut out = Retokenized::new(plan.ends.len());
        out.counts = plan.counts;
        if !self.speller.has_all_bytes() {
            self.append_text(encoded, plan.texts.len() - 1, &[], &mut out.replacement)?;
        }
        let (mut text, mut start) = (0, 0);
        let stop = Stop::new();
        for &end in &plan.ends {
            stop.check()?;
            for part in &plan.parts[start..end] {
                out.counts.replaced_bytes += match part {
                    Part::Text => {
                        text += 1;
                        self.append_text(encoded, text - 1, &out.replacement, &mut out.values)?
                    }
                    Part::Bytes(range) => self.speller.append(
                        &plan.bytes[range.clone()],
                        &out.replacement,
                        &mut out.values,
                    ),
                    Part::Special(id) => {
                        out.values.push(i64::from(*id));
                        0
                    }
                };
            }
            start = end;
            out.end_region();
        }
        Ok(out)
    }

    /// Ends a text: what is pending becomes parts.
    fn flush(&self, pending: &mut Vec<u8>, plan: &mut Plan) {
        let start = plan.parts.len();
        for chunk in pending.utf8_chunks() {
            if !chunk.valid().is_empty() {
                plan.texts.push(self.with_sentinel(chunk.valid()));
                plan.parts.push(Part::Text);
            }
            let invalid = chunk.invalid();
            if invalid.is_empty() {
                continue;
            }
            plan.counts.invalid_bytes += invalid.len();
            plan.bytes.extend_from_slice(invalid);
            match plan.parts[start..].last_mut() {
                Some(Part::Bytes(range)) => range.end += invalid.len(),
                _ => {
                    let end = plan.bytes.len();
                    plan.parts.push(Part::Bytes(end - invalid.len()..end));
                }
            }
        }
        pending.clear();
    }

    fn split_empty(&self, token: u32, plan: &mut Plan) {
        if let Some(partner) = self.partner(token) {
            plan.counts.specials += 1;
            plan.parts.push(Part::Special(partner));
        } else if self.pair.student().is_special(token) {
            plan.counts.specials_left_out += 1;
        } else {
            plan.counts.empty_left_out += 1;
        }
    }

    /// The teacher's token that a token without bytes is mapped to.
    pub(crate) fn partner(&self, token: u32) -> Option<u32> {
        match self.pair.student_column(token) {
            NONE => None,
            column => self.pair.shared_teacher_ids().get(column as usize).copied(),
        }
    }

    fn with_sentinel(&self, text: &str) -> String {
        if self.pair.teacher().settings().dummy_prefix {
            [SENTINEL, text].concat()
        } else {
            text.to_owned()
        }
    }

    /// Appends the ids of a text, without the sentinel and the space before it, and without special
    /// tokens, which text never becomes. Returns the number of replaced bytes.
    fn append_text(
        &self,
        encoded: RaggedIds<'_, i64>,
        row: usize,
        replacement: &[i64],
        values: &mut Vec<i64>,
    ) -> Result<usize> {
        let teacher = self.pair.teacher();
        let mut tokens = Vec::with_capacity(encoded.row(row).len());
        for (position, &id) in encoded.row(row).iter().enumerate() {
            let token = known_id(teacher, Side::Teacher, row, position, id)?;
            if !teacher.token_bytes(token).is_empty() {
                tokens.push(token);
            }
        }
        let (mut rest, mut replaced) = (tokens.as_slice(), 0);
        if teacher.settings().dummy_prefix
            && let Some((after, begun)) = self.behind_sentinel(&tokens)
        {
            // A token that crosses the end of the sentinel is spelled again.
            replaced = self.speller.append(&begun, replacement, values);
            rest = after;
        }
        values.extend(rest.iter().map(|&token| i64::from(token)));
        Ok(replaced)
    }

    /// The tokens after the sentinel, and the bytes after it of the token in which it ends.
    fn behind_sentinel<'a>(&self, tokens: &'a [u32]) -> Option<(&'a [u32], Vec<u8>)> {
        let mut head = Vec::new();
        for (index, &token) in tokens.iter().enumerate() {
            head.extend_from_slice(self.pair.teacher().token_bytes(token));
            let text = head.strip_prefix(b" ").unwrap_or(&head);
            if let Some(begun) = text.strip_prefix(SENTINEL.as_bytes()) {
                return Some((&tokens[index + 1..], begun.to_vec()));
            }
            if !text.is_empty() {
                return None;
            }
        }
        None
    }
}

/// The id as a token of a vocabulary.
fn known_id<I: TokenId>(
    vocabulary: &Vocabulary,
    side: Side,
    row: usize,
    position: usize,
    id: I,
) -> Result<u32> {
    match u32::try_from(id.index()) {
        Ok(token) if id.index() < vocabulary.len() => Ok(token),
        _ => Err(Error::IdOutOfRange {
            row,
            position,
            side,
            id: id.value(),
            vocab_size: vocabulary.len(),
        }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pair::PairOptions;
    use crate::vocabulary::{Settings, Token};

    /// Ids of the student below.
    pub(crate) const UNMAPPED: i64 = 1;
    pub(crate) const STOP: i64 = 2;
    const UNUSED: i64 = 3;

    pub(crate) fn retokenizer(teacher: Vec<Token>, dummy_prefix: bool) -> Result<Retokenizer> {
        let teacher =
            Vocabulary::from_tokens([Token::special("<end>")].into_iter().chain(teacher))?;
        let settings = Settings { dummy_prefix, ..teacher.settings.clone() };
        let offsets: Vec<i64> = teacher.offsets.iter().map(|&o| i64::from(o)).collect();
        let kinds: Vec<u8> = teacher.kinds.iter().map(|&k| k as u8).collect();
        let teacher = Vocabulary::new(teacher.bytes.clone(), &offsets, &kinds, settings)?;
        let student = Vocabulary::from_tokens([
            Token::normal("ab"),
            Token::special("<tool>"),
            Token::special("<eos>"),
            Token::unused(),
            Token::normal([0xe2, 0x88]),
            Token::normal([0x91]),
            Token::normal(" c"),
        ])?;
        let options = PairOptions {
            teacher_stops: Some(vec![0]),
            student_stops: Some(vec![2]),
            ..PairOptions::default()
        };
        Ok(Retokenizer::new(Arc::new(Pair::new(teacher.into(), student.into(), &options)?)))
    }

    pub(crate) fn bytes() -> impl Iterator<Item = Token> {
        (0..=u8::MAX).map(Token::byte)
    }

    pub(crate) fn rows<'a>(values: &'a [i64], offsets: &'a [i64]) -> Result<RaggedIds<'a, i64>> {
        Ok(RaggedIds::new(Side::Student, values, offsets)?)
    }

    #[test]
    fn splits_text_bytes_and_special_tokens() -> Result<()> {
        let retokenizer = retokenizer(bytes().collect(), false)?;
        // ab <tool> ab Σ-half | Σ <eos> | nothing
        let values = [0, UNMAPPED, 0, 4, UNUSED, 4, 5, STOP];
        let plan = retokenizer.split(rows(&values, &[0, 4, 8, 8])?)?;
        assert_eq!(plan.texts, ["ab", "ab", "\u{2211}"]);
        assert_eq!(
            plan.parts,
            [Part::Text, Part::Text, Part::Bytes(0..2), Part::Text, Part::Special(0)]
        );
        assert_eq!(plan.ends, [3, 5, 5]);
        assert_eq!(
            plan.counts,
            Counts {
                specials: 1,
                specials_left_out: 1,
                empty_left_out: 1,
                invalid_bytes: 2,
                ..Counts::default()
            }
        );
        Ok(())
    }

    #[test]
    fn assembles_without_sentinel_dummy_prefix_and_control_tokens() -> Result<()> {
        let teacher = ["ab", " ", "\n", "\nab", "a"].map(Token::normal).into_iter();
        let retokenizer = retokenizer(teacher.chain(bytes()).collect(), true)?;
        let plan = retokenizer.split(rows(&[0, STOP, 0], &[0, 2, 3])?)?;
        assert_eq!(plan.texts, ["\nab", "\nab"]);
        // ` `,`\n`,`ab` and, joined over the sentinel's end, `<end>`,` `,`\nab`.
        let made = retokenizer.assemble(&plan, rows(&[2, 3, 1, 0, 2, 4], &[0, 3, 6])?)?;
        assert_eq!((made.values, made.offsets), (vec![1, 0, 1], vec![0, 2, 3]));
        Ok(())
    }

    #[test]
    fn an_encoder_that_drops_the_sentinel_keeps_its_tokens() -> Result<()> {
        let teacher = ["ab", " "].map(Token::normal).into_iter();
        let retokenizer = retokenizer(teacher.chain(bytes()).collect(), true)?;
        let plan = retokenizer.split(rows(&[0], &[0, 1])?)?;
        let made = retokenizer.assemble(&plan, rows(&[2, 1], &[0, 2])?)?;
        assert_eq!(made.values, [2, 1]);
        Ok(())
    }

    #[test]
    fn runs_of_bytes_without_tokens_are_replaced_and_counted() -> Result<()> {
        let retokenizer = retokenizer(vec![Token::normal("ab"), Token::normal("\u{fffd}")], false)?;
        let plan = retokenizer.split(rows(&[4, 0, 5, 5], &[0, 4])?)?;
        assert_eq!(plan.texts, ["ab", "\u{fffd}"]);
        let made = retokenizer.assemble(&plan, rows(&[1, 2], &[0, 1, 2])?)?;
        assert_eq!(made.values, [2, 1, 2]);
        assert_eq!(made.counts.replaced_bytes, 4);
        assert_eq!(made.counts.invalid_bytes, 4);
        Ok(())
    }

    #[test]
    fn wrong_ids_and_numbers_of_rows_are_refused() -> Result<()> {
        let retokenizer = retokenizer(bytes().collect(), false)?;
        assert!(matches!(
            retokenizer.split(rows(&[0, 7], &[0, 1, 2])?),
            Err(Error::IdOutOfRange { row: 1, position: 0, side: Side::Student, id: 7, .. })
        ));
        let plan = retokenizer.split(rows(&[0], &[0, 1])?)?;
        assert!(retokenizer.assemble(&plan, rows(&[], &[0])?).is_err());
        assert!(retokenizer.assemble(&plan, rows(&[-1], &[0, 1])?).is_err());
        Ok(())
    }
}
