//! One side's walk through a region.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::ids::{NONE, Side, TokenId};
use crate::vocabulary::Vocabulary;

/// The tokens of one side of a region, and how far they have been read.
#[derive(Clone, Debug)]
pub(crate) struct Track<'a, I> {
    side: Side,
    vocabulary: &'a Vocabulary,
    row: usize,
    /// The row up to the end of the region.
    ids: &'a [I],
    /// Position of the next token.
    pub(crate) at: usize,
    /// Position of the token that lost its first byte, a dummy prefix.
    trimmed: Option<usize>,
}

/// The tokens of one side of a unit that is still growing.
#[derive(Debug)]
pub(crate) struct Open<'a> {
    /// One past the last token.
    pub(crate) end: usize,
    /// The bytes of the last token that the other side has not reached yet.
    pub(crate) rest: &'a [u8],
    /// The class bits of all tokens together.
    pub(crate) classes: u8,
    /// Whether a token without bytes lies between two others.
    pub(crate) holds_zero_bytes: bool,
}

impl<'a, I: TokenId> Track<'a, I> {
    pub(crate) fn new(
        side: Side,
        vocabulary: &'a Vocabulary,
        row: usize,
        ids: &'a [I],
        region: Range<usize>,
    ) -> Self {
        Self { side, vocabulary, row, ids: &ids[..region.end], at: region.start, trimmed: None }
    }

    /// The ids that have not been read.
    pub(crate) fn rest(&self) -> &'a [I] {
        &self.ids[self.at..]
    }

    /// One past the last position of the region.
    pub(crate) fn end(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn is_done(&self) -> bool {
        self.at == self.end()
    }

    /// The token at a position.
    fn id(&self, position: usize) -> Result<u32> {
        let id = self.ids[position];
        match u32::try_from(id.index()) {
            Ok(token) if id.index() < self.vocabulary.len() => Ok(token),
            _ => Err(Error::IdOutOfRange {
                row: self.row,
                position,
                side: self.side,
                id: id.value(),
                vocab_size: self.vocabulary.len(),
            }),
        }
    }

    /// Sees that all ids that have not been read are tokens.
    pub(crate) fn check_rest(&self) -> Result<()> {
        (self.at..self.end()).try_for_each(|position| self.id(position).map(|_| ()))
    }

    /// The bytes of the token at a position, without its dummy prefix.
    pub(crate) fn bytes(&self, position: usize) -> Result<&'a [u8]> {
        let bytes = self.vocabulary.token_bytes(self.id(position)?);
        Ok(if self.trimmed == Some(position) { bytes.get(1..).unwrap_or(&[]) } else { bytes })
    }

    /// One past the tokens without bytes that come next.
    pub(crate) fn zero_bytes_end(&self) -> Result<usize> {
        let mut position = self.at;
        while position < self.end() && self.bytes(position)?.is_empty() {
            position += 1;
        }
        Ok(position)
    }

    /// Starts a unit with the next token.
    pub(crate) fn open(&self) -> Result<Open<'a>> {
        Ok(Open {
            end: self.at + 1,
            rest: self.bytes(self.at)?,
            classes: self.vocabulary.class(self.id(self.at)?),
            holds_zero_bytes: false,
        })
    }

    /// Adds the next token that has bytes to a unit; false if the region has none.
    pub(crate) fn extend(&self, unit: &mut Open<'a>) -> Result<bool> {
        for position in unit.end..self.end() {
            unit.rest = self.bytes(position)?;
            if !unit.rest.is_empty() {
                unit.end = position + 1;
                unit.classes |= self.vocabulary.class(self.id(position)?);
                return Ok(true);
            }
            unit.holds_zero_bytes = true;
        }
        Ok(false)
    }

    /// The bytes from here to a position.
    pub(crate) fn text(&self, end: usize) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        for position in self.at..end {
            text.extend_from_slice(self.bytes(position)?);
        }
        Ok(text)
    }

    /// The next bytes, at most `limit` of them.
    pub(crate) fn excerpt(&self, limit: usize) -> Result<Vec<u8>> {
        let mut text = Vec::with_capacity(limit);
        for position in self.at..self.end() {
            let bytes = self.bytes(position)?;
            text.extend_from_slice(&bytes[..bytes.len().min(limit - text.len())]);
            if text.len() == limit {
                break;
            }
        }
        Ok(text)
    }

    /// The columns of the tokens from here to a position, with their positions, those that have
    /// a column.
    pub(crate) fn columns(
        &self,
        end: usize,
        column: impl Fn(u32) -> u32,
    ) -> Result<Vec<(usize, u32)>> {
        let mut columns = Vec::new();
        for position in self.at..end {
            match column(self.id(position)?) {
                NONE => {}
                _ if self.trimmed == Some(position) => {}
                column => columns.push((position, column)),
            }
        }
        Ok(columns)
    }

    /// How many spaces the text of the region starts with.
    pub(crate) fn leading_spaces(&self) -> Result<usize> {
        let mut spaces = 0;
        for position in self.at..self.end() {
            let bytes = self.bytes(position)?;
            let here = bytes.iter().take_while(|&&byte| byte == b' ').count();
            spaces += here;
            if here < bytes.len() {
                break;
            }
        }
        Ok(spaces)
    }

    /// Takes the first byte off the first token that has one.
    pub(crate) fn trim_first_text(&mut self) -> Result<()> {
        let first = self.zero_bytes_end()?;
        if first < self.end() {
            self.trimmed = Some(first);
        }
        Ok(())
    }

    /// Whether the trimmed token is still to come.
    pub(crate) fn before_trimmed(&self) -> bool {
        self.trimmed.is_some_and(|position| position >= self.at)
    }

    /// The position of the trimmed token, if it lies between here and a position.
    pub(crate) fn trimmed_in(&self, end: usize) -> Option<usize> {
        self.trimmed.filter(|&position| (self.at..end).contains(&position))
    }
}
