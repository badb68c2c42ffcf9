//! Spellings: how one side writes the tokens that it does not have.
//!
//! A *one-sided token* is a token, by canonical id, whose bytes are a single token on its own side
//! only. Its *spelling* is the path of tokens with which the other side writes it. It is what the
//! tokenizer of that side emits for the token's text alone, if the emitted tokens have exactly its
//! bytes. Otherwise it is the fewest tokens with these bytes ([`ByteTrie::shortest_path`]). If the
//! tokenizer puts a space before a text, and that space is a token of its own, the token of the
//! space is removed. If the space is part of a larger token, the spelling is the shortest path.
//!
//! A spelling without its last token is the path of a *node*. The *leaves* of a node are the
//! one-sided tokens whose spelling is the path of the node and one more token. If the realized
//! tokens follow the path of a node, both models have scored all of its leaves: see
//! [`continuation`](crate::continuation).
//! Leaves are numbered in the order of their nodes, then of their last token, and nodes in the
//! order of their paths, so the leaves of a node are neighbours.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ids::{NONE, RaggedIds, Side, TokenId};
use crate::path_trie::{MAX_NODES, Nodes, PathTrie};
use crate::trie::{ByteTrie, ShortestPaths};
use crate::vocabulary::{TokenKind, Vocabulary};

/// The largest length of the path of a node. A token of 64 KiB that is spelled with byte tokens
/// would need 65,536 nodes that no text reaches. A longer spelling is kept, without a leaf.
pub const MAX_PATH: usize = 64;

/// One side of a pair: a vocabulary, and its map into the shared vocabulary.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpelledSide<'a> {
    pub(crate) vocabulary: &'a Arc<Vocabulary>,
    /// Id -> column of the shared vocabulary, or [`NONE`].
    pub(crate) columns: &'a [u32],
}

/// The spellings of both directions.
#[derive(Debug)]
pub struct Spellings {
    /// The spellings of the teacher's one-sided tokens, in student tokens.
    pub teacher: SpellingTable,
    /// The spellings of the student's one-sided tokens, in teacher tokens.
    pub student: SpellingTable,
}

impl Spellings {
    /// Finds the spellings of both sides (teacher, student). The encodings are the ids that the
    /// tokenizer of the other side emits for every one-sided token, if that side has a tokenizer.
    ///
    /// # Complexity
    ///
    /// O(bytes of the one-sided tokens) with encodings. A token without an encoding costs
    /// [`ByteTrie::shortest_path`].
    ///
    /// # Errors
    ///
    /// Another number of encodings than of one-sided tokens; more than 2^30 nodes.
    pub(crate) fn new(
        [teacher, student]: [SpelledSide<'_>; 2],
        [teacher_encodings, student_encodings]: [Option<RaggedIds<'_, i64>>; 2],
    ) -> Result<Self> {
        Ok(Self {
            teacher: find_spellings(teacher, student.vocabulary, teacher_encodings)?,
            student: find_spellings(student, teacher.vocabulary, student_encodings)?,
        })
    }

    /// The spellings of one side's tokens.
    #[must_use]
    pub fn of(&self, side: Side) -> &SpellingTable {
        match side {
            Side::Teacher => &self.teacher,
            Side::Student => &self.student,
        }
    }
}

/// The one-sided tokens of a side, by canonical id, ascending.
pub(crate) fn one_sided(SpelledSide { vocabulary, columns }: SpelledSide<'_>) -> Vec<u32> {
    vocabulary
        .ids()
        .filter(|&id| matches!(vocabulary.kind(id), TokenKind::Normal | TokenKind::Byte))
        .filter(|&id| vocabulary.canonical_id(id) == id && !vocabulary.token_bytes(id).is_empty())
        .filter(|&id| columns[id as usize] == NONE)
        .collect()
}

/// The spellings of one side's one-sided tokens in the tokens of the other, and their leaves.
#[derive(Debug)]
pub struct SpellingTable {
    /// The one-sided tokens that have a spelling: the leaves in their order, then the tokens whose
    /// spelling is too long for a leaf.
    pub(crate) tokens: Vec<u32>,
    /// The spelling of `tokens[i]` is `paths[offsets[i]..offsets[i + 1]]`.
    pub(crate) offsets: Vec<u32>,
    pub(crate) paths: Vec<u32>,
    /// The one-sided tokens without a spelling, ascending.
    pub(crate) unspelled: Vec<u32>,
    /// The leaves of node `n` are `node_offsets[n]..node_offsets[n + 1]`.
    node_offsets: Vec<u32>,
    /// One-sided token -> its place in `tokens`, or [`NONE`].
    place_of: Vec<u32>,
    trie: PathTrie,
}

impl SpellingTable {
    /// Builds the trie of spellings of some tokens of `own` in tokens of `speller`, sorted as the
    /// fields say.
    pub(crate) fn from_sorted(
        own: &Vocabulary,
        speller: &Vocabulary,
        tokens: Vec<u32>,
        offsets: Vec<u32>,
        paths: Vec<u32>,
        unspelled: Vec<u32>,
    ) -> Result<Self> {
        let (mut nodes, mut node_offsets) = (Nodes::default(), Vec::new());
        for (leaf, ends) in (0u32..).zip(offsets.windows(2)) {
            let path = &paths[ends[0] as usize..ends[1] as usize];
            // Every spelling has two tokens or more: one token would make the text a shared one.
            let prefix = &path[..path.len().saturating_sub(1)];
            if prefix.len() > MAX_PATH {
                break;
            }
            nodes.insert(prefix);
            node_offsets.resize(nodes.len(), leaf);
        }
        if nodes.len() > MAX_NODES {
            return Err(Error::BadOption {
                name: "number of spelling prefixes",
                found: nodes.len(),
                expected: "less than 2^30",
            });
        }
        let leaves = offsets.windows(2).take_while(|ends| is_leaf(ends[1] - ends[0])).count();
        node_offsets.push(u32::try_from(leaves).unwrap_or(u32::MAX));
        let mut place_of = vec![NONE; own.len()];
        for (place, &token) in (0..).zip(&tokens) {
            place_of[token as usize] = place;
        }
        let trie = PathTrie::new(&nodes, speller.len());
        Ok(Self { tokens, offsets, paths, unspelled, node_offsets, place_of, trie })
    }

    /// Whether a table that was read from a file has every one-sided token once, with a spelling of
    /// its bytes or without one, in the order that nodes need.
    pub(crate) fn spells(&self, own: SpelledSide<'_>, speller: &Vocabulary) -> bool {
        let mut one_sided = one_sided(own);
        let mut listed = [&self.tokens[..], &self.unspelled].concat();
        one_sided.sort_unstable();
        listed.sort_unstable();
        let is_spelled = |(place, &token): (usize, &u32)| {
            spells(speller, self.path(place), own.vocabulary.token_bytes(token))
        };
        let places = 1..self.tokens.len();
        one_sided == listed
            && self.unspelled.is_sorted()
            && self.tokens.iter().enumerate().all(is_spelled)
            && places
                .map(|place| [place - 1, place].map(|place| order_key(self.path(place))))
                .all(|[before, after]| before < after)
    }

    /// The spelling of a token, by canonical id; `None` if it is not one-sided or has none.
    #[must_use]
    pub fn spelling(&self, token: u32) -> Option<&[u32]> {
        match self.place_of.get(token as usize) {
            None | Some(&NONE) => None,
            Some(&place) => Some(self.path(place as usize)),
        }
    }

    /// The one-sided tokens without a spelling, ascending.
    #[must_use]
    pub fn unspelled(&self) -> &[u32] {
        &self.unspelled
    }

    /// The number of one-sided tokens by the length of their spelling: entry `k` is for `k` tokens.
    #[must_use]
    pub fn counts_by_length(&self) -> Vec<usize> {
        let mut counts = Vec::new();
        for ends in self.offsets.windows(2) {
            let length = (ends[1] - ends[0]) as usize;
            if counts.len() <= length {
                counts.resize(length + 1, 0);
            }
            counts[length] += 1;
        }
        counts
    }

    /// The number of spellings with more than `max_path` + 1 tokens.
    #[must_use]
    pub fn cut_off(&self, max_path: usize) -> usize {
        self.offsets.windows(2).filter(|ends| (ends[1] - ends[0]) as usize > max_path + 1).count()
    }

    /// The last token of every node's path, and the node of the path without that token; `None` for
    /// paths of one token.
    ///
    /// # Complexity
    ///
    /// O(nodes × log nodes + vocabulary) time.
    #[must_use]
    pub fn node_steps(&self) -> Vec<(Option<u32>, u32)> {
        self.trie.steps()
    }

    /// The first leaf of every node, then the end.
    #[must_use]
    pub fn node_offsets(&self) -> &[u32] {
        &self.node_offsets
    }

    /// How many leaves there are.
    #[must_use]
    pub fn leaves(&self) -> usize {
        self.node_offsets.last().map_or(0, |&end| end as usize)
    }

    /// The one-sided token of every leaf.
    #[must_use]
    pub fn one_sided_tokens(&self) -> &[u32] {
        &self.tokens[..self.leaves()]
    }

    /// The last token of the spelling of every leaf.
    pub fn last_tokens(&self) -> impl ExactSizeIterator<Item = u32> {
        self.offsets[1..=self.leaves()].iter().map(|&end| self.paths[end as usize - 1])
    }

    /// The node of a path; `None` if no spelling continues it.
    #[must_use]
    pub fn node(&self, path: &[u32]) -> Option<u32> {
        self.trie.node(path)
    }

    /// How many leaves a node has.
    #[inline]
    pub(crate) fn leaves_of(&self, node: i32) -> usize {
        let offsets = usize::try_from(node).ok().and_then(|node| self.node_offsets.get(node..));
        match offsets {
            Some([start, end, ..]) => (end - start) as usize,
            _ => 0,
        }
    }

    /// The leaf of a token, if `realized` begins with the spelling without its last token, and that
    /// part has at most `max_path` tokens.
    pub(crate) fn leaf_on_path(
        &self,
        token: u32,
        max_path: usize,
        realized: impl Iterator<Item = usize>,
    ) -> Option<u32> {
        let place = *self.place_of.get(token as usize).filter(|&&place| place != NONE)?;
        let (_, prefix) = self.path(place as usize).split_last()?;
        let followed = prefix.iter().zip(realized).filter(|(id, at)| **id as usize == *at).count();
        (prefix.len() <= max_path.min(MAX_PATH) && followed == prefix.len()).then_some(place)
    }

    pub(crate) fn trie(&self) -> &PathTrie {
        &self.trie
    }

    fn path(&self, place: usize) -> &[u32] {
        &self.paths[self.offsets[place] as usize..self.offsets[place + 1] as usize]
    }
}

/// The order of spellings: leaves first; then by node, then by last token. No two are equal.
fn order_key(path: &[u32]) -> (bool, &[u32], u32) {
    let (last, prefix) = path.split_last().map_or((NONE, path), |(&last, prefix)| (last, prefix));
    (prefix.len() > MAX_PATH, prefix, last)
}

/// Whether a spelling of this length is short enough for a leaf.
fn is_leaf(tokens: u32) -> bool {
    tokens as usize <= MAX_PATH + 1
}

fn find_spellings(
    own: SpelledSide<'_>,
    speller: &Arc<Vocabulary>,
    encodings: Option<RaggedIds<'_, i64>>,
) -> Result<SpellingTable> {
    let singles = one_sided(own);
    if let Some(encodings) = encodings
        && encodings.rows() != singles.len()
    {
        return Err(Error::LengthMismatch {
            name: "encodings",
            found: encodings.rows(),
            expected: singles.len(),
            why: "one row for every one-sided token",
        });
    }
    let trie = ByteTrie::new(Arc::clone(speller));
    let mut shortest = ShortestPaths::new(&trie);
    let (mut spelled, mut unspelled, mut paths) = (Vec::new(), Vec::new(), Vec::new());
    for (row, &token) in singles.iter().enumerate() {
        let bytes = own.vocabulary.token_bytes(token);
        let start = paths.len();
        let emitted = encodings.map_or(&[][..], |encodings| encodings.row(row));
        match exact_part(speller, emitted, bytes) {
            Some(ids) => {
                paths.extend(ids.iter().filter_map(|&id| u32::try_from(id).ok()));
            }
            None if shortest.append(bytes, &mut paths) => {}
            None => {
                unspelled.push(token);
                continue;
            }
        }
        spelled.push((token, start..paths.len()));
    }
    spelled.sort_unstable_by(|(_, left), (_, right)| {
        order_key(&paths[left.clone()]).cmp(&order_key(&paths[right.clone()]))
    });
    let mut sorted = Vec::with_capacity(paths.len());
    let mut offsets = vec![0];
    for (_, range) in &spelled {
        sorted.extend_from_slice(&paths[range.clone()]);
        // No longer than the bytes of the vocabulary, which 32 bits number.
        offsets.push(u32::try_from(sorted.len()).unwrap_or(u32::MAX));
    }
    let tokens = spelled.into_iter().map(|(token, _)| token).collect();
    SpellingTable::from_sorted(own.vocabulary, speller, tokens, offsets, sorted, unspelled)
}

/// The part of the emitted ids with exactly these bytes: all ids, or all but the first if it is
/// only the space that the tokenizer put before the text.
fn exact_part<'a>(speller: &Vocabulary, emitted: &'a [i64], bytes: &[u8]) -> Option<&'a [i64]> {
    if spells(speller, emitted, bytes) {
        return Some(emitted);
    }
    let (first, rest) = emitted.split_first()?;
    let is_dummy = speller.settings().dummy_prefix && spells(speller, &[*first], b" ");
    (is_dummy && spells(speller, rest, bytes)).then_some(rest)
}

/// Whether the tokens have exactly these bytes, and each token has at least one.
fn spells<I: TokenId>(speller: &Vocabulary, ids: &[I], mut bytes: &[u8]) -> bool {
    for id in ids {
        let token = u32::try_from(id.index()).map_or(&[][..], |id| speller.token_bytes(id));
        match bytes.strip_prefix(token) {
            Some(rest) if !token.is_empty() => bytes = rest,
            _ => return false,
        }
    }
    bytes.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::Token;

    /// Both sides, and what they share.
    struct Sides([Arc<Vocabulary>; 2], [Vec<u32>; 2]);

    impl Sides {
        fn new(teacher: &[&str], student: &[&str], dummy_prefix: bool) -> Self {
            let [teacher, mut student] = [teacher, student]
                .map(|tokens| Vocabulary::from_tokens(tokens.iter().map(Token::normal)).unwrap());
            student.settings.dummy_prefix = dummy_prefix;
            let columns = [(&teacher, &student), (&student, &teacher)].map(|(own, other)| {
                let column = |id| other.find(own.token_bytes(id)).unwrap_or(NONE);
                own.ids().map(column).collect()
            });
            Self([teacher.into(), student.into()], columns)
        }

        fn spell(&self, teacher: Option<RaggedIds<'_, i64>>) -> Result<Spellings> {
            let side = |at: usize| SpelledSide { vocabulary: &self.0[at], columns: &self.1[at] };
            Spellings::new([side(0), side(1)], [teacher, None])
        }
    }

    #[test]
    fn leaves_of_a_node_are_neighbours_and_sorted() -> Result<()> {
        let sides = Sides::new(&["13", "12", "123", "1", "é2", "9"], &["1", "2", "3", "1"], false);
        let Spellings { teacher, student } = sides.spell(None)?;
        // `1`: 12, 13; `1 2`: 123
        assert_eq!(teacher.one_sided_tokens(), [1, 0, 2]);
        assert_eq!(teacher.node_offsets(), [0, 2, 3]);
        assert_eq!(teacher.last_tokens().collect::<Vec<_>>(), [1, 2, 2]);
        assert_eq!(teacher.unspelled(), [4, 5]);
        assert_eq!(teacher.spelling(2), Some(&[0, 1, 2][..]));
        assert_eq!(teacher.spelling(3), None);
        assert_eq!([teacher.node(&[0]), teacher.node(&[0, 1])], [Some(0), Some(1)]);
        assert_eq!([teacher.node(&[]), teacher.node(&[1]), teacher.node(&[0, 1, 2])], [None; 3]);
        assert_eq!(teacher.counts_by_length(), [0, 0, 2, 1]);
        assert_eq!([teacher.cut_off(1), teacher.cut_off(2)], [1, 0]);
        assert_eq!(student.unspelled(), [1, 2]);
        assert_eq!((student.leaves(), student.node_offsets()), (0, &[0][..]));
        Ok(())
    }

    #[test]
    fn what_the_tokenizer_emits_counts_if_it_is_exact() -> Result<()> {
        let sides = Sides::new(&["abc"], &["a", "b", "c", "ab", "bc", " ", " a"], true);
        let spelled = |values: &[i64]| -> Result<Vec<u32>> {
            let offsets = [0, i64::try_from(values.len()).unwrap()];
            let encodings = RaggedIds::new(Side::Student, values, &offsets)?;
            let spellings = sides.spell(Some(encodings))?;
            Ok(spellings.teacher.spelling(0).unwrap().to_vec())
        };
        assert_eq!(spelled(&[0, 4])?, [0, 4]);
        assert_eq!(spelled(&[0, 1, 2])?, [0, 1, 2]);
        // A dummy prefix that is a token of its own comes off; glued, it does not.
        assert_eq!(spelled(&[5, 0, 4])?, [0, 4]);
        let shortest = [3, 2];
        for inexact in [&[6, 4][..], &[5, 5, 0, 4], &[0, 4, 2], &[0, 1], &[0, 99], &[-1], &[]] {
            assert_eq!(spelled(inexact)?, shortest, "{inexact:?}");
        }
        let none = RaggedIds::new(Side::Student, &[], &[0])?;
        assert!(matches!(sides.spell(Some(none)), Err(Error::LengthMismatch { .. })));
        Ok(())
    }

    #[test]
    fn tokens_of_64_kib_cost_no_node_each() -> Result<()> {
        let long = "a".repeat(1 << 16);
        let longest_leaf = "a".repeat(MAX_PATH + 1);
        let sides = Sides::new(&[&long, &long[1..], &longest_leaf, "aa"], &["a"], false);
        let table = sides.spell(None)?.teacher;
        assert_eq!(table.one_sided_tokens(), [3, 2]);
        assert_eq!(table.node_offsets().len(), MAX_PATH + 1);
        assert_eq!(table.spelling(0).map(<[u32]>::len), Some(1 << 16));
        assert_eq!(table.cut_off(MAX_PATH), 2);
        assert_eq!(table.leaf_on_path(2, MAX_PATH, std::iter::repeat_n(0, 99)), Some(1));
        assert_eq!(table.leaf_on_path(2, MAX_PATH - 1, std::iter::repeat_n(0, 99)), None);
        assert_eq!(table.leaf_on_path(1, MAX_PATH, std::iter::repeat_n(0, 1 << 16)), None);
        Ok(())
    }
}
