//! The search for the place at which alignment continues after a difference.
//!
//! Candidates are pairs of boundaries after the last common boundary, one of either side, with
//! equal bytes after them: the next `resync_bytes` bytes, or the whole rest of both regions if it
//! is shorter. The rest can be empty, so that texts that differ only at the very end still
//! resynchronize there. The candidate with the fewest skipped bytes on both sides together is
//! chosen; of several, the one with the fewest skipped bytes on the student's side. Boundaries are
//! at most [`RESYNC_WINDOW`] bytes ahead.
//!
//! After a short difference, such as a composed character on one side and a decomposed one on the
//! other, fewer equal bytes are enough: see [`NEAR`]. Both sides must skip something there.
//!
//! A hash join over the next bytes finds all candidates within a window. A pair that skips at most
//! as many bytes as the window is wide is better than every pair outside of the window. Windows
//! therefore start small and double, and the cost is linear in the skipped bytes, not in the
//! largest window.

use rustc_hash::FxHashMap;

use crate::error::Result;
use crate::ids::TokenId;
use crate::track::Track;

/// The largest number of bytes of a side that may be skipped.
pub const RESYNC_WINDOW: usize = 4096;

/// How many bytes must be equal if both sides skip something, and together at most so many bytes:
/// (skipped, equal), at most `resync_bytes`. `benches/resync.py` measures such rules.
const NEAR: [(usize, usize); 2] = [(12, 4), (24, 6)];

/// The width of the first window, in bytes.
const FIRST_WINDOW: usize = 64;

/// The next bytes and boundaries of one side.
#[derive(Default)]
struct Ahead {
    bytes: Vec<u8>,
    /// (offset in `bytes`, position of the next token), from the last common boundary on.
    boundaries: Vec<(usize, usize)>,
    /// The first position that has not been read.
    next: usize,
}

impl Ahead {
    fn new<I: TokenId>(track: &Track<'_, I>) -> Self {
        Self { bytes: Vec::new(), boundaries: vec![(0, track.at)], next: track.at }
    }

    /// Reads until there are this many bytes, or the region ends.
    fn read_to<I: TokenId>(&mut self, bytes: usize, track: &Track<'_, I>) -> Result<()> {
        while self.bytes.len() < bytes && self.next < track.end() {
            let token = track.bytes(self.next)?;
            self.next += 1;
            if !token.is_empty() {
                self.bytes.extend_from_slice(token);
                self.boundaries.push((self.bytes.len(), self.next));
            }
        }
        Ok(())
    }

    /// The boundaries within a window.
    fn candidates(&self, window: usize, length: usize) -> impl Iterator<Item = Boundary<'_>> {
        self.boundaries.iter().take_while(move |boundary| boundary.0 <= window).map(
            move |&(offset, position)| {
                let rest = &self.bytes[offset..];
                Boundary { offset, position, next_bytes: &rest[..rest.len().min(length)] }
            },
        )
    }

    /// The boundaries of the short rule, without the last common one.
    fn near(&self) -> Vec<Boundary<'_>> {
        let [.., (farthest, longest)] = NEAR;
        self.candidates(farthest, longest).skip(1).collect()
    }
}

#[derive(Clone, Copy)]
struct Boundary<'a> {
    /// In bytes from the last common boundary.
    offset: usize,
    /// Position of the next token.
    position: usize,
    /// The bytes that follow, as far as they are compared.
    next_bytes: &'a [u8],
}

impl<'a> Boundary<'a> {
    /// The next bytes, or all there are.
    fn first(&self, bytes: usize) -> &'a [u8] {
        &self.next_bytes[..self.next_bytes.len().min(bytes)]
    }
}

/// The positions, on the teacher's and the student's side, at which alignment continues; `None` if
/// there are none within the window.
///
/// Fewer than `resync_bytes` bytes follow a boundary only where the region ends, so equal slices
/// are either long enough or all the rest of both sides.
pub(crate) fn find_resync<T: TokenId, S: TokenId>(
    teacher: &Track<'_, T>,
    student: &Track<'_, S>,
    resync_bytes: usize,
) -> Result<Option<(usize, usize)>> {
    let (mut teacher_ahead, mut student_ahead) = (Ahead::new(teacher), Ahead::new(student));
    teacher_ahead.read_to(FIRST_WINDOW + resync_bytes, teacher)?;
    student_ahead.read_to(FIRST_WINDOW + resync_bytes, student)?;
    let near = best_near(&teacher_ahead, &student_ahead, resync_bytes);
    let mut window = FIRST_WINDOW;
    loop {
        teacher_ahead.read_to(window + resync_bytes, teacher)?;
        student_ahead.read_to(window + resync_bytes, student)?;
        let far = best_within(&teacher_ahead, &student_ahead, window, resync_bytes);
        let best = near.iter().chain(&far).min_by_key(|pair| pair.cost());
        match best {
            Some(pair) if pair.skipped <= window => return Ok(Some(pair.positions)),
            _ if window == RESYNC_WINDOW => return Ok(best.map(|pair| pair.positions)),
            _ => window *= 2,
        }
    }
}

struct Candidate {
    skipped: usize,
    skipped_of_student: usize,
    positions: (usize, usize),
}

impl Candidate {
    fn new(ours: Boundary<'_>, theirs: Boundary<'_>) -> Self {
        Self {
            skipped: ours.offset + theirs.offset,
            skipped_of_student: theirs.offset,
            positions: (ours.position, theirs.position),
        }
    }

    /// The smallest is the best.
    fn cost(&self) -> (usize, usize) {
        (self.skipped, self.skipped_of_student)
    }
}

/// The best pair after a short difference.
fn best_near(teacher: &Ahead, student: &Ahead, resync_bytes: usize) -> Option<Candidate> {
    let (ours, theirs) = (teacher.near(), student.near());
    let pairs = ours.iter().flat_map(|&ours| theirs.iter().map(move |&theirs| (ours, theirs)));
    pairs
        .filter(|(ours, theirs)| {
            let skipped = ours.offset + theirs.offset;
            NEAR.iter().find(|&&(limit, _)| skipped <= limit).is_some_and(|&(_, equal)| {
                let equal = equal.min(resync_bytes);
                ours.first(equal) == theirs.first(equal)
            })
        })
        .map(|(ours, theirs)| Candidate::new(ours, theirs))
        .min_by_key(Candidate::cost)
}

fn best_within(
    teacher: &Ahead,
    student: &Ahead,
    window: usize,
    resync_bytes: usize,
) -> Option<Candidate> {
    let mut first_of_student: FxHashMap<&[u8], Boundary> = FxHashMap::default();
    for boundary in student.candidates(window, resync_bytes) {
        first_of_student.entry(boundary.next_bytes).or_insert(boundary);
    }
    teacher
        .candidates(window, resync_bytes)
        .filter_map(|ours| {
            let theirs = if ours.offset > 0 {
                *first_of_student.get(ours.next_bytes)?
            } else {
                // Where nothing is skipped, the texts are known to differ further on.
                student
                    .candidates(window, resync_bytes)
                    .find(|theirs| theirs.offset > 0 && theirs.next_bytes == ours.next_bytes)?
            };
            Some(Candidate::new(ours, theirs))
        })
        .min_by_key(Candidate::cost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Side;
    use crate::vocabulary::{Token, Vocabulary};

    fn resync(teacher: &[&str], student: &[&str], bytes: usize) -> Result<Option<(usize, usize)>> {
        let texts = teacher.iter().chain(student).map(Token::normal);
        let vocabulary = Vocabulary::from_tokens(texts)?;
        let ids: Vec<i64> = vocabulary.ids().map(i64::from).collect();
        let (teacher_ids, student_ids) = ids.split_at(teacher.len());
        find_resync(
            &Track::new(Side::Teacher, &vocabulary, 0, teacher_ids, 0..teacher.len()),
            &Track::new(Side::Student, &vocabulary, 0, student_ids, 0..student.len()),
            bytes,
        )
    }

    #[test]
    fn the_fewest_bytes_are_skipped() -> Result<()> {
        // One token on either side, though a longer skip would do as well.
        assert_eq!(resync(&["x", "ab", "ab"], &["y", "ab", "ab"], 2)?, Some((1, 1)));
        // A tie between one byte of the teacher and one of the student: the teacher's is skipped.
        assert_eq!(resync(&["a", "b", "a"], &["b", "a", "b"], 2)?, Some((1, 0)));
        // Eight bytes do not follow, but all the rest does.
        assert_eq!(resync(&["x", "ab"], &["yz", "a", "b"], 8)?, Some((1, 1)));
        // Nothing but both ends.
        assert_eq!(resync(&["x", "ab"], &["ab", "y"], 8)?, Some((2, 2)));
        Ok(())
    }

    #[test]
    fn equal_bytes_before_a_difference_do_not_stop_the_walk() -> Result<()> {
        // `aab` against `aac`: at (0, 0) two bytes are equal, and are no place to go on at.
        assert_eq!(resync(&["aab", "z"], &["aac", "z"], 2)?, Some((1, 1)));
        // The second best place after (0, 0) is (0, 1).
        assert_eq!(resync(&["aab"], &["a", "aab"], 2)?, Some((0, 1)));
        Ok(())
    }

    #[test]
    fn fewer_bytes_are_enough_after_a_short_difference() -> Result<()> {
        // An accent on either side, and four bytes before the next one.
        let composed = ["é", "tat", " ", "é", "tat s"];
        let decomposed = ["e", "\u{301}", "tat", " ", "e", "\u{301}", "tat s"];
        assert_eq!(resync(&composed, &decomposed, 8)?, Some((1, 2)));
        // Two bytes are too few; after the second accent all the rest is equal.
        let (composed, decomposed) =
            (["é", "ta", "é", "tat"], ["e\u{301}", "ta", "e\u{301}", "tat"]);
        assert_eq!(resync(&composed, &decomposed, 8)?, Some((3, 3)));
        // 13 skipped bytes need six equal ones, and 25 need eight.
        assert_eq!(resync(&["sixteen", "12345", "!"], &["twelve", "12345", "?"], 8)?, Some((3, 3)));
        assert_eq!(
            resync(&["sixteen", "123456", "!"], &["twelve", "123456", "?"], 8)?,
            Some((1, 1))
        );
        let long = ["twelve letters", "1234567", "!"];
        assert_eq!(resync(&long, &["and eleven", "1234567", "?"], 8)?, Some((1, 1)));
        assert_eq!(resync(&long, &["and eleven.", "1234567", "?"], 8)?, Some((3, 3)));
        // Where one side alone skips, the short rule does not hold.
        assert_eq!(resync(&["x", "1234", "!"], &["1234", "?"], 8)?, Some((3, 2)));
        // Never more than what is asked for.
        assert_eq!(resync(&["é", "ta", "é"], &["e\u{301}", "ta", "e"], 2)?, Some((1, 1)));
        Ok(())
    }

    #[test]
    fn beyond_the_window_nothing_is_found() -> Result<()> {
        let long = |byte: &str, count| byte.repeat(count);
        let far = [long("x", RESYNC_WINDOW), "same text".into()];
        let too_far = [long("x", RESYNC_WINDOW + 1), "same text".into()];
        let student = ["y", "same text"];
        assert_eq!(resync(&[&far[0], &far[1]], &student, 8)?, Some((1, 1)));
        assert_eq!(resync(&[&too_far[0], &too_far[1]], &student, 8)?, None);
        Ok(())
    }
}
