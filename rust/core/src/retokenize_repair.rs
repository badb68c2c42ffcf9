//! Stretches that an encoder changed, spelled again with exactly the sampled bytes.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::ids::{NONE, RaggedIds, Side, TokenId};
use crate::retokenize::{Counts, Retokenized, Retokenizer};
use crate::threads::Stop;

/// A stretch of a region whose bytes are not the same on both sides, as positions in the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Number of the region.
    pub region: usize,
    /// The teacher's tokens of the stretch, which are replaced.
    pub teacher: Range<usize>,
    /// The student's tokens of the stretch, which have the right bytes.
    pub student: Range<usize>,
}

impl Stretch {
    /// Reads stretches of five entries: region, teacher start, teacher end, student start, student
    /// end.
    ///
    /// # Errors
    ///
    /// A negative entry, or entries that are left over.
    pub fn from_flat(entries: &[i64]) -> Result<Vec<Self>> {
        let (stretches, []) = entries.as_chunks::<5>() else {
            return Err(Error::LengthMismatch {
                name: "stretches",
                found: entries.len(),
                expected: entries.len().next_multiple_of(5),
                why: "five entries for every stretch",
            });
        };
        let read = |entry| {
            usize::try_from(entry).map_err(|_| Error::BadOption {
                name: "entry of a stretch",
                found: usize::MAX,
                expected: "0 or more",
            })
        };
        let stretch =
            |&[region, teacher_start, teacher_end, student_start, student_end]: &[i64; 5]| {
                Ok(Self {
                    region: read(region)?,
                    teacher: read(teacher_start)?..read(teacher_end)?,
                    student: read(student_start)?..read(student_end)?,
                })
            };
        stretches.iter().map(stretch).collect()
    }
}

impl Retokenizer {
    /// Replaces the teacher's tokens of stretches, so that they have exactly the student's bytes.
    /// `stretches` are in order.
    ///
    /// Of several spellings, the one that loses the fewest bytes is used, then the one with the
    /// fewest tokens, then the one with the longest first token.
    ///
    /// # Complexity
    ///
    /// O(tokens), and for each byte of a stretch the cost of
    /// [`ByteTrie::prefixes`](crate::trie::ByteTrie::prefixes).
    ///
    /// # Errors
    ///
    /// Stretches that do not lie in their regions, or overlap.
    pub fn repair<I: TokenId>(
        &self,
        mut draft: Retokenized,
        student: RaggedIds<'_, I>,
        stretches: &[Stretch],
    ) -> Result<Retokenized> {
        let mut out = Retokenized::new(student.rows());
        out.replacement = std::mem::take(&mut draft.replacement);
        // What was lost is in some stretch, and will be counted there.
        out.counts = Counts { replaced_bytes: 0, ..draft.counts };
        let teacher = RaggedIds::new(Side::Teacher, &draft.values, &draft.offsets)?;
        let mut stretches = stretches.iter().peekable();
        let mut bytes = Vec::new();
        let stop = Stop::new();
        for region in 0..student.rows() {
            stop.check()?;
            let (teacher, student) = (teacher.row(region), student.row(region));
            let mut at = 0;
            while let Some(stretch) = stretches.next_if(|stretch| stretch.region == region) {
                let kept = teacher.get(at..stretch.teacher.start);
                let sampled = student.get(stretch.student.clone());
                let (Some(kept), Some(sampled)) = (kept, sampled) else {
                    return Err(outside(stretch));
                };
                out.values.extend_from_slice(kept);
                self.respell(sampled, &mut bytes, &mut out);
                at = stretch.teacher.end;
            }
            let Some(kept) = teacher.get(at..) else {
                return Err(Error::BadOption {
                    name: "end of a stretch",
                    found: at,
                    expected: "at most the length of its region",
                });
            };
            out.values.extend_from_slice(kept);
            out.end_region();
        }
        match stretches.next() {
            Some(stretch) => Err(outside(stretch)),
            None => Ok(out),
        }
    }

    /// Spells sampled tokens, special ones between them included.
    fn respell<I: TokenId>(&self, sampled: &[I], bytes: &mut Vec<u8>, out: &mut Retokenized) {
        for &id in sampled {
            // `split` has seen that all ids are tokens.
            let token = u32::try_from(id.index()).unwrap_or(NONE);
            let here = self.pair.student().token_bytes(token);
            bytes.extend_from_slice(here);
            if here.is_empty() {
                self.respell_bytes(bytes, out);
                out.values.extend(self.partner(token).map(i64::from));
            }
        }
        self.respell_bytes(bytes, out);
    }

    fn respell_bytes(&self, bytes: &mut Vec<u8>, out: &mut Retokenized) {
        let replaced = self.speller.append(bytes, &out.replacement, &mut out.values);
        out.counts.replaced_bytes += replaced;
        out.counts.respelled_bytes += bytes.len() - replaced;
        bytes.clear();
    }
}

fn outside(stretch: &Stretch) -> Error {
    Error::BadOption {
        name: "start of a stretch",
        found: stretch.teacher.start,
        expected: "a place in its region, behind the stretch before",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retokenize::tests::{STOP, UNMAPPED, bytes, retokenizer, rows};
    use crate::vocabulary::Token;

    #[test]
    fn repairs_only_the_stretches_with_the_fewest_tokens() -> Result<()> {
        let teacher = ["ab", "a", "b", " c", "b c"].map(Token::normal).into_iter();
        let retokenizer = retokenizer(teacher.chain(bytes()).collect(), false)?;
        let student = [0, STOP, 0, 6, UNMAPPED, 0];
        let draft = Retokenized {
            values: vec![1, 0, 2, 1],
            offsets: vec![0, 4],
            replacement: vec![],
            counts: Counts { replaced_bytes: 7, ..Counts::default() },
        };
        let stretch = |teacher, student| Stretch { region: 0, teacher, student };
        let made = retokenizer.repair(
            draft.clone(),
            rows(&student, &[0, 6])?,
            &[stretch(1..1, 1..2), stretch(2..3, 2..5)],
        )?;
        // ab | <end> | <end> | `ab`,` c` rather than `a`,`b c`: the longest first | ab
        assert_eq!(made.values, [1, 0, 0, 1, 4, 1]);
        assert_eq!(made.counts, Counts { respelled_bytes: 4, ..Counts::default() });
        for wrong in [stretch(3..9, 0..1), stretch(0..1, 5..9)] {
            assert!(retokenizer.repair(draft.clone(), rows(&student, &[0, 6])?, &[wrong]).is_err());
        }
        let elsewhere = Stretch { region: 3, teacher: 0..0, student: 0..0 };
        assert!(retokenizer.repair(draft, rows(&student, &[0, 6])?, &[elsewhere]).is_err());
        Ok(())
    }

    #[test]
    fn stretches_have_five_entries() -> Result<()> {
        let stretch = Stretch { region: 1, teacher: 2..3, student: 4..6 };
        assert_eq!(Stretch::from_flat(&[1, 2, 3, 4, 6])?, [stretch]);
        assert!(matches!(Stretch::from_flat(&[1, 2]), Err(Error::LengthMismatch { found: 2, .. })));
        assert!(Stretch::from_flat(&[1, 2, -3, 4, 6]).is_err());
        Ok(())
    }
}
