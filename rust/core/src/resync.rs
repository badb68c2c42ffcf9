//! The search for the place at which alignment continues after a difference.
//!
//! Candidates are pairs of boundaries after the last common boundary, one of either side, with
//! equal bytes after them: the next `resync_bytes` bytes, or the whole rest of both regions if it
//! is shorter. The rest can be empty, so that texts that differ only at the very end still
//! resynchronize there. The candidate with the fewest skipped bytes on both sides together is
//! chosen; of several, the one with the fewest skipped bytes on the student's side. Boundaries are
//! at most [`RESYNC_WINDOW`] bytes ahead.
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
pub(crate) const RESYNC_WINDOW: usize = 4096;

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
    let mut window = FIRST_WINDOW;
    loop {
        teacher_ahead.read_to(window + resync_bytes, teacher)?;
        student_ahead.read_to(window + resync_bytes, student)?;
        let best = best_within(&teacher_ahead, &student_ahead, window, resync_bytes);
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
            Some(Candidate {
                skipped: ours.offset + theirs.offset,
                skipped_of_student: theirs.offset,
                positions: (ours.position, theirs.position),
            })
        })
        .min_by_key(|candidate| (candidate.skipped, candidate.skipped_of_student))
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
