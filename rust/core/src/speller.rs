//! Spelling of any bytes with the tokens of one vocabulary, with the fewest lost bytes.

use std::sync::{Arc, OnceLock};

use crate::ids::NONE;
use crate::trie::ByteTrie;
use crate::vocabulary::Vocabulary;

/// Spells bytes. The trie is built on first use.
#[derive(Debug)]
pub(crate) struct Speller {
    vocabulary: Arc<Vocabulary>,
    has_all_bytes: bool,
    trie: OnceLock<ByteTrie>,
}

/// How much a spelling costs: bytes lost, then tokens.
type Cost = (usize, usize);

impl Speller {
    pub(crate) fn new(vocabulary: Arc<Vocabulary>) -> Self {
        let has_all_bytes = (0..=u8::MAX).all(|byte| vocabulary.find(&[byte]).is_some());
        Self { vocabulary, has_all_bytes, trie: OnceLock::new() }
    }

    /// Whether every byte is a token, so that no byte is ever lost.
    pub(crate) fn has_all_bytes(&self) -> bool {
        self.has_all_bytes
    }

    /// Appends the tokens of some bytes: the fewest bytes lost, then the fewest tokens, then the
    /// longest first. Every run of lost bytes is replaced; returns how many bytes were lost.
    ///
    /// O(bytes × (cost of [`ByteTrie::prefixes`])) time, 24 bytes of memory per byte.
    pub(crate) fn append(&self, bytes: &[u8], replacement: &[i64], values: &mut Vec<i64>) -> usize {
        if bytes.is_empty() {
            return 0;
        }
        let best = self.cheapest(bytes);
        let (mut at, mut losing) = (0, false);
        while at < bytes.len() {
            let id = best[at].1;
            if id == NONE {
                if !losing {
                    values.extend_from_slice(replacement);
                }
                at += 1;
            } else {
                values.push(i64::from(id));
                at += self.vocabulary.token_bytes(id).len();
            }
            losing = id == NONE;
        }
        best[0].0.0
    }

    /// For every position, the cost of the rest and its first token; [`NONE`] if the first byte is
    /// lost.
    fn cheapest(&self, bytes: &[u8]) -> Vec<(Cost, u32)> {
        let trie = self.trie.get_or_init(|| ByteTrie::new(Arc::clone(&self.vocabulary)));
        let mut best = vec![((0, 0), NONE); bytes.len() + 1];
        for at in (0..bytes.len()).rev() {
            let (lost, tokens) = best[at + 1].0;
            let mut cheapest = ((lost + 1, tokens), NONE);
            // Longer tokens come later and win ties.
            for (length, id) in trie.prefixes(&bytes[at..]) {
                let (lost, tokens) = best[at + length].0;
                if (lost, tokens + 1) <= cheapest.0 {
                    cheapest = ((lost, tokens + 1), id);
                }
            }
            best[at] = cheapest;
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Result;
    use crate::vocabulary::Token;
    use proptest::prelude::*;

    fn speller(tokens: &[&str]) -> Result<Speller> {
        let tokens = tokens.iter().map(Token::normal);
        Ok(Speller::new(Vocabulary::from_tokens(tokens)?.into()))
    }

    fn spell(speller: &Speller, text: &str) -> (Vec<i64>, usize) {
        let mut values = Vec::new();
        let lost = speller.append(text.as_bytes(), &[99], &mut values);
        (values, lost)
    }

    #[test]
    fn takes_the_fewest_tokens_and_of_these_the_longest_first() -> Result<()> {
        let speller = speller(&["a", "ab", "bc", "b", "c", "abcd"])?;
        assert!(!speller.has_all_bytes());
        assert_eq!(spell(&speller, "abc"), (vec![1, 4], 0));
        assert_eq!(spell(&speller, ""), (vec![], 0));
        Ok(())
    }

    #[test]
    fn loses_as_little_as_can_be_and_replaces_every_run() -> Result<()> {
        let speller = speller(&["ab", "bcd", "e"])?;
        // `a` is lost so that `bcd` is not cut: one byte instead of two.
        assert_eq!(spell(&speller, "abcde"), (vec![99, 1, 2], 1));
        assert_eq!(spell(&speller, "xyexab"), (vec![99, 2, 99, 0], 3));
        Ok(())
    }

    /// The same by trying everything.
    fn brute_force(tokens: &[String], text: &str) -> Cost {
        let Some(first) = text.get(1..) else {
            return (0, 0);
        };
        let (lost, count) = brute_force(tokens, first);
        let spelled = tokens.iter().filter_map(|token| {
            let (lost, count) = brute_force(tokens, text.strip_prefix(token.as_str())?);
            Some((lost, count + 1))
        });
        spelled.chain([(lost + 1, count)]).min().unwrap_or_default()
    }

    proptest! {
        #[test]
        fn costs_what_trying_everything_finds(
            tokens in prop::collection::vec("[abc]{1,4}", 1..8),
            text in "[abcd]{0,8}",
        ) {
            let names: Vec<&str> = tokens.iter().map(String::as_str).collect();
            let speller = speller(&names).map_err(|e| TestCaseError::fail(e.to_string()))?;
            let (values, lost) = spell(&speller, &text);
            let count = values.iter().filter(|&&id| id != 99).count();
            prop_assert_eq!((lost, count), brute_force(&tokens, &text));
        }
    }
}
