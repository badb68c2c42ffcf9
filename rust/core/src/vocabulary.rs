//! Vocabularies: the exact bytes that every token id adds to a text, and its kind.

use std::collections::BTreeMap;
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::OnceLock;

use hashbrown::HashTable;
use rustc_hash::FxBuildHasher;
use sha2::{Digest, Sha256};

use crate::class::class_of_text;
use crate::error::{Error, Result};
use crate::ids::{MAX_TOKENS, TokenId, check_offsets};

/// The kind of a token id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenKind {
    /// A token with text.
    Normal = 0,
    /// A byte fallback: one byte (`<0x0A>`), for text that no normal token spells.
    Byte = 1,
    /// A special token (control token), which adds no bytes.
    Special = 2,
    /// An id without a token: a gap between ids, or a padding row of an embedding.
    Unused = 3,
}

impl TokenKind {
    pub(crate) fn from_u8(id: usize, kind: u8) -> Result<Self> {
        match kind {
            0 => Ok(Self::Normal),
            1 => Ok(Self::Byte),
            2 => Ok(Self::Special),
            3 => Ok(Self::Unused),
            _ => Err(Error::BadKind { id, kind }),
        }
    }
}

/// A token of a small vocabulary: see [`Vocabulary::from_tokens`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    bytes: Vec<u8>,
    kind: TokenKind,
    name: Option<String>,
}

impl Token {
    /// A token of text.
    pub fn normal(bytes: impl AsRef<[u8]>) -> Self {
        Self { bytes: bytes.as_ref().to_vec(), kind: TokenKind::Normal, name: None }
    }

    /// A byte fallback.
    #[must_use]
    pub fn byte(byte: u8) -> Self {
        Self { bytes: vec![byte], kind: TokenKind::Byte, name: None }
    }

    /// A special token.
    pub fn special(name: impl Into<String>) -> Self {
        Self { bytes: Vec::new(), kind: TokenKind::Special, name: Some(name.into()) }
    }

    /// An id without a token.
    #[must_use]
    pub fn unused() -> Self {
        Self { bytes: Vec::new(), kind: TokenKind::Unused, name: None }
    }
}

/// The settings of a tokenizer that its tokens do not contain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Whether the tokenizer puts a space before a text that it tokenizes alone.
    pub dummy_prefix: bool,
    /// Printable names of special tokens.
    pub special_names: BTreeMap<u32, String>,
    /// The special tokens that end a turn, the canonical one first.
    pub stops: Vec<u32>,
    /// Where each stop was found, in the words of the reader of the tokenizer.
    pub stop_sources: BTreeMap<u32, Vec<String>>,
}

/// Token id -> token bytes and kind.
///
/// Ids are indices: a vocabulary of n tokens has the ids 0 to n - 1.
#[derive(Debug)]
pub struct Vocabulary {
    pub(crate) bytes: Vec<u8>,
    /// Where the bytes of a token begin; one more entry than tokens.
    pub(crate) offsets: Vec<u32>,
    pub(crate) kinds: Vec<TokenKind>,
    pub(crate) classes: Vec<u8>,
    pub(crate) canonical: Vec<u32>,
    pub(crate) settings: Settings,
    pub(crate) digest: [u8; 32],
    by_bytes: OnceLock<HashTable<u32>>,
}

impl Vocabulary {
    /// Builds a vocabulary from ragged token bytes: token `i` is
    /// `bytes[offsets[i]..offsets[i + 1]]`, of kind `kinds[i]` (a [`TokenKind`] as a number).
    ///
    /// # Complexity
    ///
    /// O(bytes) time; memory of the bytes and 10 bytes per token.
    ///
    /// # Errors
    ///
    /// Offsets that do not fit, an unknown kind, a special or unused token with bytes, a byte
    /// token that is not one byte, a name or stop that is not a special token, or a vocabulary
    /// too large.
    pub fn new(bytes: Vec<u8>, offsets: &[i64], kinds: &[u8], settings: Settings) -> Result<Self> {
        if kinds.len() > MAX_TOKENS {
            return Err(Error::TooManyTokens { tokens: kinds.len() });
        }
        if u32::try_from(bytes.len()).is_err() {
            return Err(Error::TooManyBytes { bytes: bytes.len() });
        }
        if offsets.len() != kinds.len() + 1 {
            return Err(Error::LengthMismatch {
                name: "offsets",
                found: offsets.len(),
                expected: kinds.len() + 1,
                why: "one more than there are token kinds",
            });
        }
        check_offsets("offsets", offsets, bytes.len())?;
        // `check_offsets` bounds every offset by the number of bytes, which fits.
        let offsets: Vec<u32> =
            offsets.iter().map(|&offset| u32::try_from(offset).unwrap_or(u32::MAX)).collect();
        let kinds = kinds
            .iter()
            .enumerate()
            .map(|(id, &kind)| TokenKind::from_u8(id, kind))
            .collect::<Result<Vec<_>>>()?;
        let mut vocabulary = Self::from_checked_parts(bytes, offsets, kinds, settings);
        vocabulary.check_tokens()?;
        vocabulary.classes =
            vocabulary.ids().map(|id| class_of_text(vocabulary.token_bytes(id))).collect();
        vocabulary.canonical = vocabulary.find_canonical_ids();
        vocabulary.digest = vocabulary.compute_digest();
        Ok(vocabulary)
    }

    /// Builds a vocabulary from a list of tokens, with the default [`Settings`] and the names of
    /// its special tokens.
    ///
    /// # Errors
    ///
    /// Those of [`Vocabulary::new`].
    ///
    /// # Example
    ///
    /// ```
    /// use simct_align::vocabulary::{Token, Vocabulary};
    ///
    /// let vocabulary = Vocabulary::from_tokens([
    ///     Token::normal(" ab"),
    ///     Token::byte(b'A'),
    ///     Token::normal("A"),
    ///     Token::special("<eos>"),
    /// ])?;
    /// assert_eq!(vocabulary.token_bytes(0), b" ab");
    /// assert_eq!(vocabulary.canonical_id(1), 2); // not the byte fallback
    /// # Ok::<(), simct_align::error::Error>(())
    /// ```
    pub fn from_tokens(tokens: impl IntoIterator<Item = Token>) -> Result<Self> {
        let (mut bytes, mut offsets, mut kinds) = (Vec::new(), vec![0], Vec::new());
        let mut settings = Settings::default();
        for (id, token) in (0u32..).zip(tokens) {
            bytes.extend_from_slice(&token.bytes);
            offsets.push(i64::try_from(bytes.len()).unwrap_or(i64::MAX));
            kinds.push(token.kind as u8);
            if let Some(name) = token.name {
                settings.special_names.insert(id, name);
            }
        }
        Self::new(bytes, &offsets, &kinds, settings)
    }

    /// Builds the vocabulary without the tables that are derived from its tokens.
    pub(crate) fn from_checked_parts(
        bytes: Vec<u8>,
        offsets: Vec<u32>,
        kinds: Vec<TokenKind>,
        settings: Settings,
    ) -> Self {
        Self {
            bytes,
            offsets,
            kinds,
            classes: Vec::new(),
            canonical: Vec::new(),
            settings,
            digest: [0; 32],
            by_bytes: OnceLock::new(),
        }
    }

    fn check_tokens(&self) -> Result<()> {
        for id in self.ids() {
            let (kind, expected) = match self.kind(id) {
                TokenKind::Normal => continue,
                TokenKind::Byte => ("a byte fallback", 1),
                TokenKind::Special => ("special", 0),
                TokenKind::Unused => ("unused", 0),
            };
            let bytes = self.token_bytes(id).len();
            if bytes != expected {
                return Err(Error::BadTokenBytes { id: id as usize, kind, bytes, expected });
            }
        }
        let named = self.settings.special_names.keys().map(|&id| ("special_names", id));
        let stops = self.settings.stops.iter().map(|&id| ("stop_ids", id));
        match named.chain(stops).find(|&(_, id)| !self.is_special(id)) {
            Some((name, id)) => Err(Error::NotSpecialHere { name, id, vocab_size: self.len() }),
            None => Ok(()),
        }
    }

    /// How many ids there are, unused ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// Whether there is no id at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// All ids.
    #[must_use]
    pub fn ids(&self) -> Range<u32> {
        // `MAX_TOKENS` bounds the length.
        0..u32::try_from(self.len()).unwrap_or(u32::MAX)
    }

    /// The bytes that a token adds to the text; none for special, unused and unknown ids.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        match self.offsets.get(id as usize..).unwrap_or(&[]) {
            [start, end, ..] => &self.bytes[*start as usize..*end as usize],
            _ => &[],
        }
    }

    /// The bytes of all tokens, one after another, and where those of every token begin: one more
    /// entry than tokens.
    #[must_use]
    pub fn byte_table(&self) -> (&[u8], &[u32]) {
        (&self.bytes, &self.offsets)
    }

    /// The kind of an id; `Unused` for an id that is out of range.
    #[must_use]
    pub fn kind(&self, id: u32) -> TokenKind {
        self.kinds.get(id as usize).copied().unwrap_or(TokenKind::Unused)
    }

    /// The kinds of all ids.
    #[must_use]
    pub fn kinds(&self) -> &[TokenKind] {
        &self.kinds
    }

    /// Whether an id is a special token.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.kind(id) == TokenKind::Special
    }

    /// The [class bits](crate::class) of a token's bytes.
    #[must_use]
    pub fn class(&self, id: u32) -> u8 {
        self.classes.get(id as usize).copied().unwrap_or(0)
    }

    /// Whether a token's text begins with a character that is Unicode white space.
    #[must_use]
    pub fn begins_with_whitespace(&self, id: u32) -> bool {
        let text = self.token_bytes(id).utf8_chunks().next().map_or("", |chunk| chunk.valid());
        text.starts_with(char::is_whitespace)
    }

    /// The canonical id of the bytes of an id: of all ids with the same bytes, the one that is not
    /// a byte fallback, then the smallest. An id without bytes is its own canonical id.
    #[must_use]
    pub fn canonical_id(&self, id: u32) -> u32 {
        self.canonical.get(id as usize).copied().unwrap_or(id)
    }

    /// The canonical ids of all ids.
    #[must_use]
    pub fn canonical_ids(&self) -> &[u32] {
        &self.canonical
    }

    /// The canonical id of the token with these bytes, if there is one.
    ///
    /// # Complexity
    ///
    /// O(bytes) expected time; the first call builds a table in O(tokens).
    #[must_use]
    pub fn find(&self, bytes: &[u8]) -> Option<u32> {
        if bytes.is_empty() {
            return None;
        }
        self.table().find(hash(bytes), |&id| self.token_bytes(id) == bytes).copied()
    }

    /// The bytes of all ids, one after another.
    ///
    /// # Errors
    ///
    /// The position of the first id that is not in the vocabulary.
    pub fn decode<I: TokenId>(&self, ids: &[I]) -> std::result::Result<Vec<u8>, usize> {
        let mut text = Vec::with_capacity(ids.len() * 4);
        for (position, id) in ids.iter().enumerate() {
            match u32::try_from(id.index()) {
                Ok(token) if id.index() < self.len() => {
                    text.extend_from_slice(self.token_bytes(token));
                }
                _ => return Err(position),
            }
        }
        Ok(text)
    }

    /// The settings of the tokenizer.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// SHA-256 of the vocabulary without its stops and without the unused ids after its last token:
    /// equal digests mean equal tokens. (Models have padding rows; tokenizers do not.)
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.digest
    }

    /// Byte string -> canonical id.
    fn table(&self) -> &HashTable<u32> {
        self.by_bytes.get_or_init(|| {
            let mut table = HashTable::with_capacity(self.len());
            let hash_of = |&id: &u32| hash(self.token_bytes(id));
            // Normal tokens come first, so that a byte fallback never takes their place.
            for kind in [TokenKind::Normal, TokenKind::Byte] {
                for id in self.ids().filter(|&id| self.kind(id) == kind) {
                    let bytes = self.token_bytes(id);
                    if !bytes.is_empty() {
                        table
                            .entry(hash(bytes), |&other| self.token_bytes(other) == bytes, hash_of)
                            .or_insert(id);
                    }
                }
            }
            table
        })
    }

    fn find_canonical_ids(&self) -> Vec<u32> {
        self.ids().map(|id| self.find(self.token_bytes(id)).unwrap_or(id)).collect()
    }

    fn compute_digest(&self) -> [u8; 32] {
        let mut hasher = Sha256::new();
        hasher.update(b"simct-align vocabulary 1");
        let used = self.kinds.iter().rposition(|&kind| kind != TokenKind::Unused);
        let used = used.map_or(0, |last| last + 1);
        hasher.update([u8::from(self.settings.dummy_prefix)]);
        hasher.update((used as u64).to_le_bytes());
        hasher.update(self.kinds[..used].iter().map(|&kind| kind as u8).collect::<Vec<_>>());
        hasher
            .update(self.offsets[..=used].iter().flat_map(|o| o.to_le_bytes()).collect::<Vec<_>>());
        hasher.update(&self.bytes);
        for (id, name) in &self.settings.special_names {
            hasher.update(id.to_le_bytes());
            hasher.update((name.len() as u64).to_le_bytes());
            hasher.update(name);
        }
        hasher.finalize().into()
    }
}

fn hash(bytes: &[u8]) -> u64 {
    FxBuildHasher.hash_one(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::BadOffsets;

    #[test]
    fn canonical_ids_prefer_normal_tokens_then_small_ids() -> Result<()> {
        let vocabulary = Vocabulary::from_tokens([
            Token::byte(b'a'),
            Token::normal("b"),
            Token::normal("a"),
            Token::normal("b"),
            Token::special("<s>"),
            Token::normal(""),
            Token::unused(),
            Token::byte(b'c'),
        ])?;
        assert_eq!(vocabulary.canonical_ids(), [2, 1, 2, 1, 4, 5, 6, 7]);
        assert_eq!(vocabulary.find(b"a"), Some(2));
        assert_eq!(vocabulary.find(b"c"), Some(7));
        assert_eq!(vocabulary.find(b""), None);
        assert_eq!(vocabulary.token_bytes(99), b"");
        assert_eq!(vocabulary.kind(99), TokenKind::Unused);
        Ok(())
    }

    #[test]
    fn digests_tell_tokens_apart_and_ignore_stops() -> Result<()> {
        let build = |tokens: [Token; 2], stops| -> Result<_> {
            let vocabulary = Vocabulary::from_tokens(tokens)?;
            let offsets: Vec<i64> = vocabulary.offsets.iter().map(|&o| i64::from(o)).collect();
            let kinds: Vec<u8> = vocabulary.kinds.iter().map(|&k| k as u8).collect();
            let settings = Settings { stops, ..vocabulary.settings.clone() };
            Ok(*Vocabulary::new(vocabulary.bytes.clone(), &offsets, &kinds, settings)?.digest())
        };
        let base = build([Token::normal("ab"), Token::special("</s>")], vec![])?;
        assert_eq!(base, build([Token::normal("ab"), Token::special("</s>")], vec![1])?);
        assert_ne!(base, build([Token::normal("ab"), Token::special("<s>")], vec![])?);
        assert_ne!(base, build([Token::normal("aB"), Token::special("</s>")], vec![])?);
        Ok(())
    }

    #[test]
    fn digests_ignore_padding_behind_the_last_token_only() -> Result<()> {
        let unused = || Token { bytes: vec![], kind: TokenKind::Unused, name: None };
        let digest =
            |tokens: Vec<Token>| Vocabulary::from_tokens(tokens).map(|made| *made.digest());
        let base = digest(vec![Token::normal("a"), Token::normal("b")])?;
        assert_eq!(base, digest(vec![Token::normal("a"), Token::normal("b"), unused(), unused()])?);
        assert_ne!(base, digest(vec![Token::normal("a"), unused(), Token::normal("b")])?);
        assert_eq!(digest(vec![])?, digest(vec![unused()])?);
        Ok(())
    }

    #[test]
    fn bad_tables_are_refused_with_the_place() {
        let build = |bytes: &[u8], offsets: &[i64], kinds: &[u8], stops: Vec<u32>| {
            let settings = Settings { stops, ..Settings::default() };
            Vocabulary::new(bytes.to_vec(), offsets, kinds, settings).err()
        };
        assert!(build(b"ab", &[0, 1], &[0, 0], vec![]).is_some());
        for (offsets, index, found) in
            [(&[1i64, 1, 2][..], 0, 1), (&[0, 2, 1], 2, 1), (&[0, 1, 1], 2, 1), (&[0, 3, 2], 2, 2)]
        {
            assert_eq!(
                build(b"ab", offsets, &[0, 0], vec![]),
                Some(BadOffsets::Wrong { name: "offsets", index, found, values: 2 }.into())
            );
        }
        assert_eq!(build(b"", &[0, 0], &[9], vec![]), Some(Error::BadKind { id: 0, kind: 9 }));
        assert_eq!(
            build(b"ab", &[0, 2], &[1], vec![]),
            Some(Error::BadTokenBytes { id: 0, kind: "a byte fallback", bytes: 2, expected: 1 })
        );
        assert_eq!(
            build(b"a", &[0, 1], &[0], vec![0]),
            Some(Error::NotSpecialHere { name: "stop_ids", id: 0, vocab_size: 1 })
        );
    }
}
