//! The sections of text events, written side by side by several threads.

use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::ids::NONE;
use crate::sections::{Sections, TextCounts, TextSideCounts};
use crate::text_events::Found;
use crate::threads::{self, Threads};

/// How many of everything all parts of a batch hold.
pub(crate) fn count(found: &[Found]) -> TextCounts {
    let mut all = TextCounts::default();
    for part in found {
        all.stretches += part.counts.stretches;
        all.student_tokens += part.counts.student_tokens;
        all.units_without_prefix += part.counts.units_without_prefix;
        all.units_left_out += part.counts.units_left_out;
        all.offsets += part.offsets.len();
        for (side, number) in [(&mut all.teacher, 0), (&mut all.student, 1)] {
            side.rows += part.rows[number].len();
            side.sources += part.sources[number].len();
        }
    }
    all
}

/// Writes all parts to their sections.
pub(crate) fn pack(found: &[Found], sections: &mut Sections<'_>, threads: Threads) -> Result<()> {
    let mut rest = Rest::take(sections);
    let parts: Vec<_> = found.iter().map(|part| Mutex::new(rest.next_part(part))).collect();
    let next = AtomicUsize::new(0);
    threads::run(threads.count().min(parts.len()), |stop| {
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            if stop.requested() {
                return;
            }
            part.lock().unwrap_or_else(PoisonError::into_inner).write();
        }
    })
}

type Slices<'a, const N: usize> = [&'a mut [i64]; N];

/// One side's sections, or what a part has of them.
struct SideSlices<'a> {
    /// Row of the logits, token.
    rows: Slices<'a, 2>,
    own: &'a mut [i64],
    source_offsets: &'a mut [i64],
    /// Text row, start, end, length, exact, suffix.
    sources: Slices<'a, 6>,
}

/// What has not been given to a part yet, and how much has.
struct Rest<'a> {
    sides: [SideSlices<'a>; 2],
    /// Stretch and row of the batch.
    offsets: Slices<'a, 2>,
    given: Given,
}

/// How much comes before a part.
#[derive(Clone, Copy, Default)]
struct Given {
    stretches: usize,
    sides: [TextSideCounts; 2],
}

/// A part, and where it goes.
struct Part<'a> {
    found: &'a Found,
    sides: [SideSlices<'a>; 2],
    offsets: Slices<'a, 2>,
    before: Given,
}

impl<'a> Rest<'a> {
    fn take(sections: &mut Sections<'a>) -> Self {
        let sides = ["teacher", "student"].map(|side| {
            let mut take = |what: &str| sections.take(&format!("{side}_{what}"));
            let rows = ["text_row", "text_id"].map(&mut take);
            let own = take("own_text_row");
            let source_offsets = match take("source_offsets") {
                [] => &mut [],
                // The buffer is made of zeros.
                [_, ends @ ..] => ends,
            };
            let sources = [
                "source_row",
                "source_start",
                "source_end",
                "source_length",
                "source_exact",
                "source_suffix",
            ];
            SideSlices { rows, own, source_offsets, sources: sources.map(take) }
        });
        let offsets =
            ["text_offset_stretch", "text_offset_batch_row"].map(|name| sections.take(name));
        Self { sides, offsets, given: Given::default() }
    }

    fn next_part(&mut self, found: &'a Found) -> Part<'a> {
        let before = self.given;
        let count = found.offsets.len();
        self.given.stretches += found.counts.stretches;
        let offsets = split(&mut self.offsets, count);
        let mut number = 0;
        let sides = self.sides.each_mut().map(|side| {
            let (rows, sources) = (found.rows[number].len(), found.sources[number].len());
            self.given.sides[number].rows += rows;
            self.given.sides[number].sources += sources;
            number += 1;
            SideSlices {
                rows: split(&mut side.rows, rows),
                own: split_one(&mut side.own, count),
                source_offsets: split_one(&mut side.source_offsets, count),
                sources: split(&mut side.sources, sources),
            }
        });
        Part { found, sides, offsets, before }
    }
}

impl Part<'_> {
    fn write(&mut self) {
        let Self { found, sides, offsets, before } = self;
        let stretches = long(before.stretches);
        let [stretch, batch_row] = offsets;
        let mut first = 0;
        for piece in &found.pieces {
            batch_row[first..first + piece.offsets].fill(long(piece.batch_row));
            first += piece.offsets;
        }
        for (at, offset) in found.offsets.iter().enumerate() {
            stretch[at] = stretches + i64::from(offset.stretch);
        }
        for (number, side) in sides.iter_mut().enumerate() {
            let first_row = long(before.sides[number].rows);
            let first_source = long(before.sides[number].sources);
            let (mut next_row, mut offsets) = (first_row, found.offsets.iter().enumerate());
            for piece in &found.pieces {
                next_row += long(piece.lead[number]);
                for (at, offset) in offsets.by_ref().take(piece.offsets) {
                    side.own[at] = if offset.own[number] { next_row } else { -1 };
                    next_row += i64::from(offset.own[number]);
                    side.source_offsets[at] = first_source + i64::from(offset.sources_end[number]);
                }
            }
            let [flat, id] = &mut side.rows;
            let mut first = 0;
            for piece in &found.pieces {
                let rows = &mut flat[first..first + piece.rows[number]];
                for (step, row) in (0..).zip(rows) {
                    *row = piece.flat[number].saturating_add(step);
                }
                first += piece.rows[number];
            }
            for (id, &taken) in id.iter_mut().zip(&found.rows[number]) {
                *id = if taken == NONE { -1 } else { i64::from(taken) };
            }
            let [row, start, end, length, exact, suffix] = &mut side.sources;
            for (at, source) in found.sources[number].iter().enumerate() {
                row[at] = first_row + i64::from(source.row);
                start[at] = i64::from(source.start);
                end[at] = i64::from(source.end);
                length[at] = i64::from(source.length);
                exact[at] = i64::from(source.exact);
                suffix[at] = i64::from(source.suffix);
            }
        }
    }
}

/// Takes the first entries off slices.
fn split<'a, const N: usize>(slices: &mut Slices<'a, N>, count: usize) -> Slices<'a, N> {
    slices.each_mut().map(|slice| split_one(slice, count))
}

fn split_one<'a>(slice: &mut &'a mut [i64], count: usize) -> &'a mut [i64] {
    let (head, rest) = mem::take(slice).split_at_mut(count);
    *slice = rest;
    head
}

fn long(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
