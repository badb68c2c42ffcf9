//! A teacher and a student vocabulary, and the tables that are computed once for both.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::ids::{MAX_TOKENS, NONE, RaggedIds, Side};
use crate::pair_columns::{
    add_special_columns, check_special, column_map, identical_columns, text_columns,
};
use crate::spelling::{SpelledSide, Spellings, one_sided};
use crate::text_tree::{TextTree, TreeParts};
use crate::threads::Threads;
use crate::vocabulary::Vocabulary;

/// How many low bits of a [`SharedEntry`] hold an id; the class bits lie above.
const ID_BITS: u32 = 24;
const ID_MASK: u32 = (1 << ID_BITS) - 1;
const _: () = assert!(MAX_TOKENS == ID_MASK as usize);

/// The table entry of a student token: the teacher's canonical token with the same bytes, and the
/// class bits of these bytes. Both are packed into 32 bits, so that the table of a large vocabulary
/// stays in the second-level cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SharedEntry(pub(crate) u32);

impl SharedEntry {
    /// No teacher token has these bytes. No id equals its id part: [`MAX_TOKENS`] excludes it.
    pub(crate) const NONE: Self = Self(ID_MASK);

    fn new(teacher_id: u32, class: u8) -> Self {
        Self(teacher_id | u32::from(class) << ID_BITS)
    }

    /// The teacher's id, or [`ID_MASK`], which no token has.
    #[inline]
    pub(crate) fn teacher_id(self) -> u32 {
        self.0 & ID_MASK
    }

    /// The class bits of the text.
    #[inline]
    pub(crate) fn class(self) -> u8 {
        self.0.to_le_bytes()[3]
    }
}

/// The special tokens of both sides that mean the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PairOptions {
    /// Pairs of (teacher id, student id), in addition to the stops.
    pub special_tokens: Vec<(u32, u32)>,
    /// The teacher's stops, canonical first; `None` for the stops of the vocabulary.
    pub teacher_stops: Option<Vec<u32>>,
    /// The student's stops, canonical first; `None` for the stops of the vocabulary.
    pub student_stops: Option<Vec<u32>>,
}

/// The tokens that end a turn, on either side.
///
/// Any stop of one side matches any stop of the other side, and all stops of a side are one
/// candidate. If one side has no stops, those of the other side have no partner: both lists are
/// empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stops {
    /// The teacher's, canonical first.
    pub teacher: Vec<u32>,
    /// The student's, canonical first.
    pub student: Vec<u32>,
}

/// A teacher and a student vocabulary, their shared vocabulary, and the maps into it.
///
/// The *columns* of the shared vocabulary are pairs of (teacher id, student id), sorted by
/// teacher id: one for every byte string that is a single token on both sides, by canonical ids;
/// one for every mapped pair of special tokens; and one for all stops together. If both
/// vocabularies have the same digest, every id is mapped onto itself instead, including special
/// tokens and duplicates. Of several stops, only the canonical one then has a column.
#[derive(Debug)]
pub struct Pair {
    pub(crate) teacher: Arc<Vocabulary>,
    pub(crate) student: Arc<Vocabulary>,
    pub(crate) shared_teacher_ids: Vec<u32>,
    pub(crate) shared_student_ids: Vec<u32>,
    pub(crate) stops: Stops,
    /// Student id -> table entry for the alignment.
    pub(crate) shared: Vec<SharedEntry>,
    /// Id -> column of the text or special token, or [`NONE`].
    pub(crate) teacher_columns: Vec<u32>,
    pub(crate) student_columns: Vec<u32>,
    pub(crate) spellings: OnceLock<Spellings>,
    text_tree: OnceLock<TextTree>,
    /// The tree as it was read from a file, before its first use.
    pub(crate) stored_tree: OnceLock<TreeParts>,
}

impl Pair {
    /// Finds the shared vocabulary of two vocabularies.
    ///
    /// # Complexity
    ///
    /// O(teacher tokens + student tokens) expected time, 12 bytes per token of either side.
    ///
    /// # Errors
    ///
    /// A stop or mapped token that is not special, a token that is mapped twice, or a stop that is
    /// mapped to a token that is not a stop.
    pub fn new(
        teacher: Arc<Vocabulary>,
        student: Arc<Vocabulary>,
        options: &PairOptions,
    ) -> Result<Self> {
        let stops = Self::pick_stops(&teacher, &student, options)?;
        let mut columns = if teacher.digest() == student.digest() {
            identical_columns(&teacher)
        } else {
            text_columns(&teacher, &student)
        };
        add_special_columns(&mut columns, &teacher, &student, options, &stops)?;
        columns.sort_unstable();
        let (shared_teacher_ids, shared_student_ids) = columns.into_iter().unzip();
        Ok(Self::from_columns(teacher, student, shared_teacher_ids, shared_student_ids, stops))
    }

    /// Derives the maps from the columns.
    pub(crate) fn from_columns(
        teacher: Arc<Vocabulary>,
        student: Arc<Vocabulary>,
        shared_teacher_ids: Vec<u32>,
        shared_student_ids: Vec<u32>,
        stops: Stops,
    ) -> Self {
        let teacher_columns = column_map(&teacher, &shared_teacher_ids, &stops.teacher);
        let student_columns = column_map(&student, &shared_student_ids, &stops.student);
        let shared = student
            .ids()
            .map(|id| match student_columns[id as usize] {
                column if column == NONE || student.token_bytes(id).is_empty() => SharedEntry::NONE,
                column => SharedEntry::new(shared_teacher_ids[column as usize], student.class(id)),
            })
            .collect();
        Self {
            teacher,
            student,
            shared_teacher_ids,
            shared_student_ids,
            stops,
            shared,
            teacher_columns,
            student_columns,
            spellings: OnceLock::new(),
            text_tree: OnceLock::new(),
            stored_tree: OnceLock::new(),
        }
    }

    fn pick_stops(
        teacher: &Vocabulary,
        student: &Vocabulary,
        options: &PairOptions,
    ) -> Result<Stops> {
        let pick = |side, vocabulary: &Vocabulary, given: &Option<_>| -> Result<Vec<u32>> {
            let given = given.as_ref().unwrap_or(&vocabulary.settings().stops);
            let mut stops = Vec::with_capacity(given.len());
            let mut known = HashSet::with_capacity(given.len());
            for &id in given {
                check_special("stop_tokens", side, vocabulary, id)?;
                if known.insert(id) {
                    stops.push(id);
                }
            }
            Ok(stops)
        };
        let stops = Stops {
            teacher: pick(Side::Teacher, teacher, &options.teacher_stops)?,
            student: pick(Side::Student, student, &options.student_stops)?,
        };
        if stops.teacher.is_empty() || stops.student.is_empty() {
            return Ok(Stops::default());
        }
        Ok(stops)
    }

    /// The teacher's vocabulary.
    #[must_use]
    pub fn teacher(&self) -> &Arc<Vocabulary> {
        &self.teacher
    }

    /// The student's vocabulary.
    #[must_use]
    pub fn student(&self) -> &Arc<Vocabulary> {
        &self.student
    }

    /// The teacher ids of the columns, ascending.
    #[must_use]
    pub fn shared_teacher_ids(&self) -> &[u32] {
        &self.shared_teacher_ids
    }

    /// The student ids of the columns.
    #[must_use]
    pub fn shared_student_ids(&self) -> &[u32] {
        &self.shared_student_ids
    }

    /// The stops that have a partner.
    #[must_use]
    pub fn stops(&self) -> &Stops {
        &self.stops
    }

    /// The column of all stops.
    #[must_use]
    pub fn stop_column(&self) -> Option<u32> {
        self.stops.teacher.first().map(|&id| self.teacher_column(id))
    }

    /// The column of a teacher token: that of its text, by canonical id, or that of the special
    /// token; [`NONE`] if it has no column.
    #[must_use]
    pub fn teacher_column(&self, id: u32) -> u32 {
        self.teacher_columns.get(id as usize).copied().unwrap_or(NONE)
    }

    /// The column of a student token: see [`Pair::teacher_column`].
    #[must_use]
    pub fn student_column(&self, id: u32) -> u32 {
        self.student_columns.get(id as usize).copied().unwrap_or(NONE)
    }

    /// The vocabulary of a side, with its map into the shared vocabulary.
    pub(crate) fn side(&self, side: Side) -> SpelledSide<'_> {
        let (vocabulary, columns) = match side {
            Side::Teacher => (&self.teacher, &self.teacher_columns),
            Side::Student => (&self.student, &self.student_columns),
        };
        SpelledSide { vocabulary, columns }
    }

    /// The one-sided tokens of a side, by canonical id, ascending.
    ///
    /// # Complexity
    ///
    /// O(tokens of the side).
    #[must_use]
    pub fn one_sided(&self, side: Side) -> Vec<u32> {
        one_sided(self.side(side))
    }

    /// The spellings of one-sided tokens, if they have been computed.
    #[must_use]
    pub fn known_spellings(&self) -> Option<&Spellings> {
        self.spellings.get()
    }

    /// The spellings of one-sided tokens; computed as the shortest paths if there are none yet.
    ///
    /// # Complexity
    ///
    /// That of [`Spellings::new`] on the first call.
    ///
    /// # Errors
    ///
    /// Those of [`Spellings::new`].
    pub fn spellings(&self) -> Result<&Spellings> {
        self.make_spellings(None, None)
    }

    /// Computes the spellings of one-sided tokens from the ids that the tokenizers emit.
    ///
    /// `teacher` has one row per token of [`Pair::one_sided`] of the teacher: the student's ids for
    /// that token, or an empty row. `student` has one row per one-sided token of the student: the
    /// teacher's ids. If the spellings have already been computed, nothing happens, because other
    /// data refers to their nodes.
    ///
    /// # Complexity
    ///
    /// That of [`Spellings::new`] on the first call.
    ///
    /// # Errors
    ///
    /// Those of [`Spellings::new`].
    pub fn make_spellings(
        &self,
        teacher: Option<RaggedIds<'_, i64>>,
        student: Option<RaggedIds<'_, i64>>,
    ) -> Result<&Spellings> {
        if let Some(known) = self.spellings.get() {
            return Ok(known);
        }
        let sides = [Side::Teacher, Side::Student].map(|side| self.side(side));
        let made = Spellings::new(sides, [teacher, student])?;
        Ok(self.spellings.get_or_init(|| made))
    }

    /// Whether the joint tree of both sides' tokens has been made, or read from a file.
    #[must_use]
    pub fn has_text_tree(&self) -> bool {
        self.tree_parts().is_some()
    }

    /// What is stored of the tree, if it has been made.
    pub(crate) fn tree_parts(&self) -> Option<TreeParts> {
        self.text_tree.get().map(TextTree::parts).or_else(|| self.stored_tree.get().cloned())
    }

    /// The joint tree of both sides' tokens; made on the first call, with all cores.
    ///
    /// # Complexity
    ///
    /// That of [`TextTree::new`] on the first call.
    ///
    /// # Errors
    ///
    /// Those of [`TextTree::new`].
    pub fn text_tree(&self) -> Result<&TextTree> {
        if let Some(known) = self.text_tree.get() {
            return Ok(known);
        }
        let made = match self.stored_tree.get() {
            Some(parts) => TextTree::from_parts([&self.teacher, &self.student], parts.clone()),
            None => TextTree::new(&self.teacher, &self.student, Threads::AllCores)?,
        };
        Ok(self.text_tree.get_or_init(|| made))
    }

    /// SHA-256 of everything that an alignment depends on: pairs with equal digests align all ids
    /// in the same way.
    ///
    /// The hashed bytes are, with integers as 32-bit little-endian: the text `simct-align pair 1`;
    /// the [digests](Vocabulary::digest) of the teacher's and of the student's vocabulary; the
    /// number of mapped pairs of special tokens, including the column of the stops, and both ids of
    /// each, by teacher id; the number of the teacher's stops and their ids, canonical first; and
    /// the same of the student's stops. The digest does not depend on the process, the platform or
    /// the format of a saved pair. It does not include the spellings, which depend on the
    /// tokenizers.
    ///
    /// # Complexity
    ///
    /// O(columns) time.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let columns = self.shared_teacher_ids.iter().zip(&self.shared_student_ids);
        let specials: Vec<u32> = columns
            .filter(|(teacher_id, _)| self.teacher.is_special(**teacher_id))
            .flat_map(|(&teacher_id, &student_id)| [teacher_id, student_id])
            .collect();
        let mut hasher = Sha256::new();
        hasher.update(b"simct-align pair 1");
        hasher.update(self.teacher.digest());
        hasher.update(self.student.digest());
        for (count, ids) in [
            (specials.len() / 2, &specials),
            (self.stops.teacher.len(), &self.stops.teacher),
            (self.stops.student.len(), &self.stops.student),
        ] {
            // `MAX_TOKENS` bounds all of them.
            hasher.update(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
            hasher.update(ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<_>>());
        }
        hasher.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::vocabulary::Token;

    fn pair(teacher: Vec<Token>, student: Vec<Token>, options: &PairOptions) -> Result<Pair> {
        let teacher = Vocabulary::from_tokens(teacher)?;
        let student = Vocabulary::from_tokens(student)?;
        Pair::new(teacher.into(), student.into(), options)
    }

    fn small() -> [Vec<Token>; 2] {
        [
            vec![
                Token::normal("x"),
                Token::special("<eos>"),
                Token::byte(b'A'),
                Token::normal("A"),
                Token::special("<turn>"),
            ],
            vec![
                Token::special("</s>"),
                Token::special("<end>"),
                Token::normal("A"),
                Token::normal("y"),
                Token::byte(b'x'),
            ],
        ]
    }

    #[test]
    fn columns_are_canonical_and_sorted() -> Result<()> {
        let [teacher, student] = small();
        let options = PairOptions {
            special_tokens: vec![],
            teacher_stops: Some(vec![1, 4]),
            student_stops: Some(vec![1, 0]),
        };
        let pair = pair(teacher, student, &options)?;
        assert_eq!(pair.shared_teacher_ids(), [0, 1, 3]);
        assert_eq!(pair.shared_student_ids(), [4, 1, 2]);
        assert_eq!(pair.stop_column(), Some(1));
        assert_eq!([0, 1, 2, 3, 4].map(|id| pair.teacher_column(id)), [0, 1, 2, 2, 1]);
        assert_eq!([0, 1, 2, 3, 4].map(|id| pair.student_column(id)), [1, 1, 2, NONE, 0]);
        Ok(())
    }

    #[test]
    fn a_vocabulary_maps_onto_itself() -> Result<()> {
        let [teacher, _] = small();
        let pair = pair(teacher.clone(), teacher, &PairOptions::default())?;
        assert_eq!(pair.shared_teacher_ids(), [0, 1, 2, 3, 4]);
        assert_eq!(pair.shared_student_ids(), [0, 1, 2, 3, 4]);
        assert_eq!(pair.stop_column(), None);
        Ok(())
    }

    #[test]
    fn special_tokens_that_contradict_are_refused() {
        let [teacher, student] = small();
        let refusal = |special_tokens: Vec<(u32, u32)>, stops: [Vec<u32>; 2]| {
            let [teacher_stops, student_stops] = stops.map(Some);
            let options = PairOptions { special_tokens, teacher_stops, student_stops };
            pair(teacher.clone(), student.clone(), &options).err()
        };
        assert_eq!(
            refusal(vec![(0, 0)], [vec![], vec![]]),
            Some(Error::NotSpecial {
                name: "special_tokens",
                side: Side::Teacher,
                id: 0,
                vocab_size: 5
            })
        );
        assert_eq!(
            refusal(vec![(1, 0), (4, 0)], [vec![], vec![]]),
            Some(Error::MappedTwice { side: Side::Student, id: 0 })
        );
        assert_eq!(
            refusal(vec![(4, 0)], [vec![1], vec![0]]),
            Some(Error::StopMappedToOther { teacher: 4, student: 0 })
        );
        assert_eq!(refusal(vec![(1, 0), (1, 0)], [vec![1], vec![0]]), None);
    }

    #[test]
    fn digests_tell_what_an_alignment_depends_on() -> Result<()> {
        let [teacher, student] = small();
        let digest =
            |special_tokens: &[(u32, u32)], teacher_stops: &[u32], student_stops: &[u32]| {
                let options = PairOptions {
                    special_tokens: special_tokens.to_vec(),
                    teacher_stops: Some(teacher_stops.to_vec()),
                    student_stops: Some(student_stops.to_vec()),
                };
                pair(teacher.clone(), student.clone(), &options).map(|pair| pair.digest())
            };
        let base = digest(&[], &[], &[])?;
        // It must not change: batches travel between processes and releases with it.
        let hex: String = base.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "d1df7ef516ced98dbce954fe61f96e881b9b4a70b5b9970390077d87b56b9d0d");
        let all = [
            base,
            digest(&[(1, 0)], &[], &[])?,
            digest(&[(1, 1)], &[], &[])?,
            digest(&[(1, 0), (4, 1)], &[], &[])?,
            digest(&[], &[1], &[0])?,
            digest(&[], &[1, 4], &[0])?,
            digest(&[], &[1], &[0, 1])?,
            digest(&[], &[4, 1], &[0])?,
            pair(student.clone(), teacher.clone(), &PairOptions::default())?.digest(),
        ];
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(digest(&[(1, 0), (4, 1)], &[], &[])?, digest(&[(4, 1), (1, 0)], &[], &[])?);
        // One side's stops alone have no partner.
        assert_eq!(digest(&[], &[1], &[])?, base);
        Ok(())
    }
}
