//! The class bits of a unit: what text it contains and how it is cut.

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// All characters are Unicode white space.
pub const WHITESPACE: u8 = 1;
/// All characters are numbers (Unicode category N, the `\p{N}` of tokenizer patterns).
pub const DIGITS: u8 = 2;
/// All characters are punctuation or symbols (Unicode categories P and S).
pub const PUNCTUATION: u8 = 4;
/// At least one byte is not ASCII.
pub const NON_ASCII: u8 = 8;
/// At least one token of the unit, on either side, does not consist of whole characters.
pub const SPLITS_CHARACTER: u8 = 16;
/// The first token lost its dummy prefix: the space that its tokenizer put before the text.
pub const TRIMMED: u8 = 32;

/// The bits that describe a text. The other bits describe how the text is cut.
pub(crate) const TEXT_BITS: u8 = WHITESPACE | DIGITS | PUNCTUATION | NON_ASCII;

fn class_of_char(c: char) -> u8 {
    if c.is_whitespace() {
        WHITESPACE
    } else if c.is_numeric() {
        DIGITS
    } else if matches!(
        c.general_category_group(),
        GeneralCategoryGroup::Punctuation | GeneralCategoryGroup::Symbol
    ) {
        PUNCTUATION
    } else {
        0
    }
}

/// The class bits of one text.
///
/// A text that does not consist of whole characters (not valid UTF-8) has `SPLITS_CHARACTER`, and
/// none of the three bits that describe all characters. Empty text has no bit.
///
/// # Complexity
///
/// O(bytes) time, no allocation.
#[must_use]
pub fn class_of_text(bytes: &[u8]) -> u8 {
    let non_ascii = if bytes.is_ascii() { 0 } else { NON_ASCII };
    match std::str::from_utf8(bytes) {
        Ok("") => 0,
        Ok(text) => {
            let every = WHITESPACE | DIGITS | PUNCTUATION;
            non_ascii | text.chars().fold(every, |bits, c| bits & class_of_char(c))
        }
        Err(_) => non_ascii | SPLITS_CHARACTER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_the_class_of_all_their_characters() {
        for (text, expected) in [
            ("", 0),
            (" \t\n", WHITESPACE),
            ("\u{a0}", WHITESPACE | NON_ASCII),
            ("12", DIGITS),
            ("٣½", DIGITS | NON_ASCII),
            ("+-(", PUNCTUATION),
            ("“≤", PUNCTUATION | NON_ASCII),
            ("1+", 0),
            (" 1", 0),
            ("é", NON_ASCII),
        ] {
            assert_eq!(class_of_text(text.as_bytes()), expected, "{text:?}");
        }
        assert_eq!(class_of_text(b"\xc3"), NON_ASCII | SPLITS_CHARACTER);
    }
}
