//! A pair as the bytes of a file.
//!
//! ```text
//! 8 bytes   "SIMCTALN"
//! u32       version
//! sections  teacher vocabulary, student vocabulary
//! sections  teacher ids and student ids of the columns, teacher stops, student stops
//! section   one byte: whether the spellings have been made
//! sections  if so, of the teacher's and of the student's one-sided tokens: those with a spelling,
//!           in the order of their leaves; where the spellings begin; their ids; those without one
//! section   one byte: whether the text tree has been made
//! sections  if so, its parents, depths and edges; of the teacher's and of the student's tokens: ids
//!           in token order; where the tokens of nodes begin; how many are exact; ends; branches;
//!           suffixes
//! 32 bytes  SHA-256 of all before
//! ```
//!
//! A section is a u64 that counts its bytes, and the bytes; integers are little-endian. What is
//! cheap to derive (the maps into the columns, the tries over spellings) is derived again; what
//! costs a hash table (the canonical ids and the columns themselves), a tokenizer (the spellings) or
//! a sort (the text tree) is stored.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::ids::Side;
use crate::pair::{Pair, Stops};
use crate::spelling::{SpellingTable, Spellings};
use crate::text_tree::{NodeParts, SideParts, TreeParts};
use crate::vocabulary::{Settings, TokenKind, Vocabulary};

const MAGIC: &[u8; 8] = b"SIMCTALN";
const VERSION: u32 = 4;
const CHECKSUM_BYTES: usize = 32;

/// Writes a pair, with its spellings and its text tree if they have been made.
///
/// # Complexity
///
/// O(bytes of both vocabularies, of the spellings and of the tree) time and memory.
#[must_use]
pub fn to_bytes(pair: &Pair) -> Vec<u8> {
    let mut writer = Writer(Vec::new());
    writer.0.extend_from_slice(MAGIC);
    writer.0.extend_from_slice(&VERSION.to_le_bytes());
    writer.vocabulary(&pair.teacher);
    writer.vocabulary(&pair.student);
    writer.integers(&pair.shared_teacher_ids);
    writer.integers(&pair.shared_student_ids);
    writer.integers(&pair.stops.teacher);
    writer.integers(&pair.stops.student);
    let spellings = pair.known_spellings();
    writer.section(&[u8::from(spellings.is_some())]);
    if let Some(spellings) = spellings {
        writer.spellings(&spellings.teacher);
        writer.spellings(&spellings.student);
    }
    let tree = pair.tree_parts();
    writer.section(&[u8::from(tree.is_some())]);
    if let Some(tree) = tree {
        writer.text_tree(&tree);
    }
    let checksum = Sha256::digest(&writer.0);
    writer.0.extend_from_slice(&checksum);
    writer.0
}

/// Reads what [`to_bytes`] wrote.
///
/// # Complexity
///
/// O(bytes) time and memory.
///
/// # Errors
///
/// [`Error::FileVersion`] for another version, [`Error::BadFile`] for a damaged file and anything
/// else.
pub fn from_bytes(data: &[u8]) -> Result<Pair> {
    let Some(rest) = data.strip_prefix(MAGIC) else {
        return Err(bad("it does not begin as one"));
    };
    let Some((body, checksum)) = data.split_last_chunk::<CHECKSUM_BYTES>() else {
        return Err(bad("it is cut off"));
    };
    // The version comes before the checksum: another version may sum up otherwise.
    let Some((version, _)) = rest.split_first_chunk::<4>() else {
        return Err(bad("it is cut off"));
    };
    let version = u32::from_le_bytes(*version);
    if version != VERSION {
        return Err(Error::FileVersion { found: version, expected: VERSION });
    }
    if Sha256::digest(body).as_slice() != checksum {
        return Err(bad("its checksum does not match its content"));
    }
    let mut reader = Reader(&body[MAGIC.len() + VERSION.to_le_bytes().len()..]);
    let teacher = Arc::new(reader.vocabulary()?);
    let student = Arc::new(reader.vocabulary()?);
    let shared_teacher_ids = reader.ids(teacher.len())?;
    let shared_student_ids = reader.ids(student.len())?;
    let stops = Stops { teacher: reader.ids(teacher.len())?, student: reader.ids(student.len())? };
    let has_spellings = reader.section()? == [1];
    if shared_teacher_ids.len() != shared_student_ids.len() {
        return Err(bad("its tables do not fit together"));
    }
    let pair = Pair::from_columns(teacher, student, shared_teacher_ids, shared_student_ids, stops);
    if has_spellings {
        let teacher = reader.spellings(Side::Teacher, &pair)?;
        let student = reader.spellings(Side::Student, &pair)?;
        pair.spellings.get_or_init(|| Spellings { teacher, student });
    }
    if reader.section()? == [1] {
        let tree = reader.text_tree(&pair)?;
        pair.stored_tree.get_or_init(|| tree);
    }
    if !reader.0.is_empty() {
        return Err(bad("there is something behind its end"));
    }
    Ok(pair)
}

fn bad(reason: impl Into<String>) -> Error {
    Error::BadFile { reason: reason.into() }
}

struct Writer(Vec<u8>);

impl Writer {
    fn section(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.0.extend_from_slice(bytes);
    }

    fn integers(&mut self, integers: &[u32]) {
        self.0.extend_from_slice(&(integers.len() as u64 * 4).to_le_bytes());
        self.0.extend(integers.iter().flat_map(|integer| integer.to_le_bytes()));
    }

    fn vocabulary(&mut self, vocabulary: &Vocabulary) {
        let kinds: Vec<u8> = vocabulary.kinds.iter().map(|&kind| kind as u8).collect();
        let settings = &vocabulary.settings;
        self.section(&vocabulary.bytes);
        self.integers(&vocabulary.offsets);
        self.section(&kinds);
        self.section(&vocabulary.classes);
        self.integers(&vocabulary.canonical);
        self.section(&vocabulary.digest);
        self.section(&[u8::from(settings.dummy_prefix)]);
        self.integers(&settings.stops);
        self.integers(&settings.special_names.keys().copied().collect::<Vec<_>>());
        for name in settings.special_names.values() {
            self.section(name.as_bytes());
        }
        self.integers(&settings.stop_sources.keys().copied().collect::<Vec<_>>());
        for sources in settings.stop_sources.values() {
            self.section(&(sources.len() as u64).to_le_bytes());
            for source in sources {
                self.section(source.as_bytes());
            }
        }
    }

    fn spellings(&mut self, table: &SpellingTable) {
        for integers in [&table.tokens, &table.offsets, &table.paths, &table.unspelled] {
            self.integers(integers);
        }
    }

    fn text_tree(&mut self, TreeParts { nodes, sides }: &TreeParts) {
        self.integers(&nodes.parent);
        self.integers(&nodes.depth);
        self.section(&nodes.edge);
        for side in sides {
            let SideParts { ids, node_tokens, node_exact, end, branch, suffixes } = &**side;
            for integers in [ids, node_tokens, node_exact, end, suffixes] {
                self.integers(integers);
            }
            self.section(branch);
        }
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn section(&mut self) -> Result<&'a [u8]> {
        let (length, rest) = self.0.split_first_chunk::<8>().ok_or_else(|| bad("it is cut off"))?;
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (section, rest) = rest.split_at_checked(length).ok_or_else(|| bad("it is cut off"))?;
        self.0 = rest;
        Ok(section)
    }

    fn text(&mut self) -> Result<String> {
        String::from_utf8(self.section()?.to_vec()).map_err(|_| bad("a text in it is not UTF-8"))
    }

    fn integers(&mut self) -> Result<Vec<u32>> {
        match self.section()?.as_chunks::<4>() {
            (integers, []) => Ok(integers.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect()),
            _ => Err(bad("a table in it is cut off")),
        }
    }

    /// Integers that are all ids of a vocabulary.
    fn ids(&mut self, vocab_size: usize) -> Result<Vec<u32>> {
        let ids = self.integers()?;
        match ids.iter().find(|&&id| id as usize >= vocab_size) {
            Some(id) => Err(bad(format!("it names token {id} of {vocab_size}"))),
            None => Ok(ids),
        }
    }

    /// Trusts the checksum for what [`Vocabulary::new`] checks token by token, but not for what
    /// memory safety of an index would need: lengths and offsets.
    fn vocabulary(&mut self) -> Result<Vocabulary> {
        let bytes = self.section()?.to_vec();
        let offsets = self.integers()?;
        let kinds = self.section()?;
        let classes = self.section()?.to_vec();
        let canonical = self.ids(kinds.len())?;
        let digest = self.section()?.try_into().map_err(|_| bad("a digest in it is cut off"))?;
        let dummy_prefix = self.section()? == [1];
        let stops = self.ids(kinds.len())?;
        let mut special_names = BTreeMap::new();
        for id in self.ids(kinds.len())? {
            special_names.insert(id, self.text()?);
        }
        let mut stop_sources = BTreeMap::new();
        for id in self.ids(kinds.len())? {
            let count = self.section()?.try_into().map_err(|_| bad("a count in it is cut off"))?;
            let sources = (0..u64::from_le_bytes(count)).map(|_| self.text());
            stop_sources.insert(id, sources.collect::<Result<_>>()?);
        }
        let kinds = kinds
            .iter()
            .enumerate()
            .map(|(id, &kind)| TokenKind::from_u8(id, kind))
            .collect::<Result<Vec<_>>>()?;
        let fits = offsets.len() == kinds.len() + 1
            && classes.len() == kinds.len()
            && canonical.len() == kinds.len()
            && offsets.first() == Some(&0)
            && offsets.last().map(|&end| end as usize) == Some(bytes.len())
            && offsets.is_sorted();
        if !fits {
            return Err(bad("a vocabulary in it does not fit together"));
        }
        let settings = Settings { dummy_prefix, special_names, stops, stop_sources };
        let mut vocabulary = Vocabulary::from_checked_parts(bytes, offsets, kinds, settings);
        vocabulary.classes = classes;
        vocabulary.canonical = canonical;
        vocabulary.digest = digest;
        Ok(vocabulary)
    }

    fn spellings(&mut self, side: Side, pair: &Pair) -> Result<SpellingTable> {
        let (own, speller) = (pair.side(side).vocabulary, pair.side(side.other()).vocabulary);
        let tokens = self.ids(own.len())?;
        let offsets = self.integers()?;
        let paths = self.ids(speller.len())?;
        let unspelled = self.ids(own.len())?;
        let fits = offsets.len() == tokens.len() + 1
            && offsets.first() == Some(&0)
            && offsets.last().map(|&end| end as usize) == Some(paths.len())
            && offsets.windows(2).all(|ends| ends[1] >= ends[0].saturating_add(2));
        if !fits {
            return Err(bad("the spellings in it do not fit together"));
        }
        SpellingTable::from_sorted(own, speller, tokens, offsets, paths, unspelled)
    }

    fn text_tree(&mut self, pair: &Pair) -> Result<TreeParts> {
        let nodes = Arc::new(NodeParts {
            parent: self.integers()?,
            depth: self.integers()?,
            edge: self.section()?.to_vec(),
        });
        let sides = [Arc::new(self.tree_side()?), Arc::new(self.tree_side()?)];
        let parts = TreeParts { nodes, sides };
        if !parts.fits([&pair.teacher, &pair.student]) {
            return Err(bad("the text tree in it does not fit together"));
        }
        Ok(parts)
    }

    fn tree_side(&mut self) -> Result<SideParts> {
        Ok(SideParts {
            ids: self.integers()?,
            node_tokens: self.integers()?,
            node_exact: self.integers()?,
            end: self.integers()?,
            suffixes: self.integers()?,
            branch: self.section()?.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pair::PairOptions;
    use crate::vocabulary::Token;

    fn saved() -> Result<(Pair, Vec<u8>)> {
        let teacher =
            [Token::normal("ab"), Token::special("<eos>"), Token::byte(b'x'), Token::normal("abx")];
        let student = [Token::special("</s>"), Token::normal("x"), Token::normal("ab")];
        let mut teacher = Vocabulary::from_tokens(teacher)?;
        teacher.settings.stop_sources.insert(1, vec!["config.json".into(), "class".into()]);
        let student = Vocabulary::from_tokens(student)?;
        let options = PairOptions {
            teacher_stops: Some(vec![1]),
            student_stops: Some(vec![0]),
            ..PairOptions::default()
        };
        let pair = Pair::new(teacher.into(), student.into(), &options)?;
        let bytes = to_bytes(&pair);
        Ok((pair, bytes))
    }

    #[test]
    fn what_is_written_is_read() -> Result<()> {
        let (pair, bytes) = saved()?;
        let again = from_bytes(&bytes)?;
        assert_eq!(again.digest(), pair.digest());
        assert_eq!(again.shared, pair.shared);
        assert_eq!(again.teacher_columns, pair.teacher_columns);
        assert_eq!(again.student_columns, pair.student_columns);
        assert_eq!(again.stops, pair.stops);
        assert_eq!(again.teacher.settings, pair.teacher.settings);
        assert_eq!(again.student.digest, pair.student.digest);
        assert_eq!(to_bytes(&again), bytes);
        Ok(())
    }

    #[test]
    fn spellings_are_written_once_they_have_been_made() -> Result<()> {
        let (pair, without) = saved()?;
        assert!(from_bytes(&without)?.known_spellings().is_none());
        pair.spellings()?;
        let bytes = to_bytes(&pair);
        let again = from_bytes(&bytes)?;
        let table = again.known_spellings().map(|spellings| &spellings.teacher).unwrap();
        assert_eq!(table.spelling(3), Some(&[2, 1][..]));
        assert_eq!(table.one_sided_tokens(), [3]);
        assert_eq!(to_bytes(&again), bytes);
        Ok(())
    }

    #[test]
    fn the_text_tree_is_written_once_it_has_been_made() -> Result<()> {
        let (pair, without) = saved()?;
        assert!(!pair.has_text_tree() && !from_bytes(&without)?.has_text_tree());
        let tree = pair.text_tree()?;
        let bytes = to_bytes(&pair);
        let again = from_bytes(&bytes)?;
        assert!(pair.has_text_tree() && again.has_text_tree());
        // Before the first use, and after.
        assert_eq!(to_bytes(&again), bytes);
        assert_eq!(again.text_tree()?, tree);
        assert_eq!(to_bytes(&again), bytes);
        Ok(())
    }

    #[test]
    fn every_damage_is_seen() -> Result<()> {
        let (pair, _) = saved()?;
        pair.spellings()?;
        pair.text_tree()?;
        let bytes = to_bytes(&pair);
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 1;
            let refused = from_bytes(&damaged);
            let version = MAGIC.len()..MAGIC.len() + VERSION.to_le_bytes().len();
            if version.contains(&place) {
                assert!(matches!(refused, Err(Error::FileVersion { .. })), "byte {place}");
            } else {
                assert!(matches!(refused, Err(Error::BadFile { .. })), "byte {place}");
            }
            assert!(matches!(from_bytes(&bytes[..place]), Err(Error::BadFile { .. })));
        }
        Ok(())
    }

    #[test]
    fn another_version_is_refused_with_what_to_do() {
        // How a file of version 2 begins: its note was empty.
        let old = *b"SIMCTALN\x02\0\0\0\0\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0abxy";
        for data in [&old[..], &old[..12]] {
            let data = [data, &[0; CHECKSUM_BYTES]].concat();
            let error = from_bytes(&data).unwrap_err();
            assert_eq!(error, Error::FileVersion { found: 2, expected: 4 });
            assert_eq!(
                error.to_string(),
                "the saved aligner has format version 2, this release reads version 4: write the \
                 file again with Aligner(teacher, student).save(path)"
            );
        }
    }
}
