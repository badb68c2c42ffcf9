//! The group of every character: its writing system, or what else it is.

use std::collections::HashMap;

use unicode_properties::{GeneralCategoryGroup, UnicodeEmoji, UnicodeGeneralCategory};
use unicode_script::{Script, UnicodeScript};

/// The groups that are no writing system, by number; the writing systems follow.
pub const FIXED_GROUPS: [&str; 5] = ["Other", "White space", "Punctuation", "Numbers", "Emoji"];

const OTHER: u8 = 0;
const WHITE_SPACE: u8 = 1;
const PUNCTUATION: u8 = 2;
const NUMBERS: u8 = 3;
const EMOJI: u8 = 4;

/// The groups of all characters.
#[derive(Debug)]
pub struct CharacterGroups {
    /// The number of the group of every code point.
    pub group: Vec<u8>,
    /// The names of the groups, by number.
    pub names: Vec<&'static str>,
}

/// The group that is no writing system, or none for letters and marks of one.
fn fixed_group(c: char) -> Option<u8> {
    if c.is_whitespace() {
        return Some(WHITE_SPACE);
    }
    if c.is_numeric() {
        return Some(NUMBERS);
    }
    // © and ® are emoji to Unicode and signs to readers.
    if c.is_emoji_char() && c > '\u{ff}' {
        return Some(EMOJI);
    }
    match c.general_category_group() {
        GeneralCategoryGroup::Punctuation | GeneralCategoryGroup::Symbol => Some(PUNCTUATION),
        GeneralCategoryGroup::Letter | GeneralCategoryGroup::Mark => match c.script() {
            Script::Common | Script::Inherited | Script::Unknown => Some(OTHER),
            _ => None,
        },
        _ => Some(OTHER),
    }
}

/// Puts every character into a group: white space, numbers (category N), emoji, punctuation and
/// symbols (categories P and S), the writing system of a letter or mark (Unicode's property
/// Script), or "Other". Writing systems are numbered in the order of their first characters.
///
/// # Complexity
///
/// O(number of code points): some tens of milliseconds, and 1.1 MB.
#[must_use]
pub fn character_groups() -> CharacterGroups {
    let mut names = FIXED_GROUPS.to_vec();
    let mut numbers: HashMap<Script, u8> = HashMap::new();
    let group = (0..=u32::from(char::MAX))
        .map(|code| {
            // Code points of surrogates are no characters.
            let Some(c) = char::from_u32(code) else { return OTHER };
            fixed_group(c).unwrap_or_else(|| {
                *numbers.entry(c.script()).or_insert_with(|| {
                    let number = u8::try_from(names.len()).unwrap_or(OTHER);
                    names.push(c.script().full_name());
                    number
                })
            })
        })
        .collect();
    CharacterGroups { group, names }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_are_in_their_groups() {
        let groups = character_groups();
        assert_eq!(groups.group.len(), 0x11_0000);
        // Every writing system has a number of its own.
        assert!(groups.names.len() <= usize::from(u8::MAX));
        for (c, expected) in [
            ('a', "Latin"),
            ('é', "Latin"),
            ('Ж', "Cyrillic"),
            ('α', "Greek"),
            ('小', "Han"),
            ('は', "Hiragana"),
            ('ب', "Arabic"),
            ('म', "Devanagari"),
            ('\u{94d}', "Devanagari"),
            ('7', "Numbers"),
            ('½', "Numbers"),
            (' ', "White space"),
            ('\n', "White space"),
            ('+', "Punctuation"),
            ('©', "Punctuation"),
            ('∑', "Punctuation"),
            ('🎉', "Emoji"),
            ('☀', "Emoji"),
            ('\u{301}', "Other"),
            ('\u{202e}', "Other"),
            ('\u{0}', "Other"),
        ] {
            let number = groups.group[c as usize];
            assert_eq!(groups.names[usize::from(number)], expected, "{c:?}");
        }
        assert_eq!(groups.group[0xd800], OTHER);
    }
}
