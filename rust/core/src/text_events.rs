//! Text events of a batch: which rows, and which tokens of them, say how the text goes on at every
//! boundary of either side.
//!
//! A *stretch* is a run of units that follow each other without a gap on either side, none of them
//! a pair of control tokens, from a unit on that has a prefix. A side's
//! *text rows* in it are the row of the prefix, and those after each of the side's tokens; the row
//! after the last token only where a token that takes part follows on both sides. *Offsets* are the
//! bytes, from the start of the stretch, at which a text row of either side stands.
//!
//! At an offset, a side's *sources* are its earlier text rows of the stretch, up to [`MAX_REACH`]
//! bytes back, of which tokens begin with the text since: those tokens are a run in
//! [token order](crate::text_tree), of which the first ones may end at the offset.
//!
//! ```text
//! text      t h e r e ␣ i s
//! teacher   there | ␣is
//! student   the | re | ␣is       offsets 0, 3, 5, ... : at 3 the teacher has no row of its own, and
//!                                its row of offset 0 is a source with all tokens `the...`
//! ```
//!
//! A tokenizer may put a space before a text, its *dummy prefix*. The side's text rows then begin at
//! that space, one byte before the stretch, where the other side has no text and no offset is: the
//! first token counts with its space, be it a token of its own or not.
//!
//! Where both sides have a row and take the same token after it, with the [same](TextTree::same)
//! strings below, nothing that came before says more about what follows: a new stretch begins
//! after the token.

use std::ops::Range;
use std::sync::Mutex;

use crate::class::TRIMMED;
use crate::columns::{UnitColumns, UnitKind};
use crate::error::{Error, Result};
use crate::ids::{NONE, Side, TokenId};
use crate::index::IndexSide;
use crate::pair::Pair;
use crate::reach::Reach;
use crate::sections::TextCounts;
use crate::text_tree::{MAX_REACH, TextToken, TextTree, short};
use crate::text_walk::{Place, Run};
use crate::threads::{Threads, in_parallel};

/// About how many units a worker takes at once.
const CHUNK_UNITS: i64 = 4 * 1024;

const SIDES: [Side; 2] = [Side::Teacher, Side::Student];

/// A run of units: its rows of the logits are consecutive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// The row of the batch.
    pub(crate) batch_row: usize,
    /// The first row of the logits of either side.
    pub(crate) flat: [i64; 2],
    /// How many text rows of either side it has, of which so many stand before the first offset.
    pub(crate) rows: [usize; 2],
    pub(crate) lead: [usize; 2],
    /// How many offsets.
    pub(crate) offsets: usize,
}

/// An offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offset {
    /// Whether the next text row of either side stands here.
    pub(crate) own: [bool; 2],
    pub(crate) stretch: u32,
    /// One past the sources of either side.
    pub(crate) sources_end: [u32; 2],
}

/// A source of one side at an offset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    /// The text row.
    pub(crate) row: u32,
    /// The tokens: a [`Run`], number by number. As a whole it went through memory, written in halves
    /// and read at once, which processors wait for.
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) exact: u32,
    /// How many bytes back the row stands.
    pub(crate) length: u32,
    /// Where the suffixes of the tokens that are longer begin.
    pub(crate) suffix: u32,
}

/// What some rows of a batch hold; all numbers count from the first of them.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) pieces: Vec<Piece>,
    /// Of every text row, the token that the text takes; [`NONE`] for a last row.
    pub(crate) rows: [Vec<u32>; 2],
    pub(crate) offsets: Vec<Offset>,
    pub(crate) sources: [Vec<Source>; 2],
    pub(crate) counts: TextCounts,
    pub(crate) reach: [Reach; 2],
}

/// Buffers of earlier batches: threads need not touch fresh pages for every batch, which a third of
/// the time went to.
static SPARE: Mutex<Vec<Found>> = Mutex::new(Vec::new());

/// How many buffers are kept at most, and how many offsets each may have room for.
const MAX_SPARE: usize = 64;
const MAX_SPARE_OFFSETS: usize = 16 * 1024;

impl Found {
    /// An empty one.
    fn new() -> Self {
        // Another thread may have held the lock while this process was forked off: see `threads`.
        let spare = SPARE.try_lock().ok().and_then(|mut kept| kept.pop());
        spare.unwrap_or_else(|| Self {
            pieces: Vec::new(),
            rows: [Vec::new(), Vec::new()],
            offsets: Vec::new(),
            sources: [Vec::new(), Vec::new()],
            counts: TextCounts::default(),
            reach: [Reach::NOTHING; 2],
        })
    }

    fn clear(&mut self) {
        self.pieces.clear();
        self.rows.iter_mut().for_each(Vec::clear);
        self.offsets.clear();
        self.sources.iter_mut().for_each(Vec::clear);
        (self.counts, self.reach) = (TextCounts::default(), [Reach::NOTHING; 2]);
    }

    fn is_small(&self) -> bool {
        let sources = self.sources.iter().map(Vec::capacity).max().unwrap_or(0);
        self.offsets.capacity().max(sources) <= MAX_SPARE_OFFSETS
    }
}

/// Keeps buffers for the next batch.
pub(crate) fn keep(found: Vec<Found>) {
    if let Ok(mut kept) = SPARE.try_lock() {
        let room = MAX_SPARE.saturating_sub(kept.len());
        kept.extend(found.into_iter().filter(Found::is_small).take(room).map(|mut found| {
            found.clear();
            found
        }));
    }
}

/// Finds the text events of a batch, in the order of its rows.
pub(crate) fn find<I: TokenId>(
    pair: &Pair,
    units: &UnitColumns<'_>,
    sides: [IndexSide<'_, I>; 2],
    threads: Threads,
) -> Result<Vec<Found>> {
    let job = Job { tree: pair.text_tree()?, units, sides };
    let chunks = chunks(units.row_offsets);
    let found = in_parallel(
        chunks.len(),
        threads.count(),
        || (),
        |(), number| job.rows(chunks[number].clone()),
    )?;
    // Of several wrong rows, the first is named.
    found.into_iter().collect()
}

/// Rows in runs of about [`CHUNK_UNITS`] units.
fn chunks(row_offsets: &[i64]) -> Vec<Range<usize>> {
    let (mut chunks, mut start) = (Vec::new(), 0);
    for end in 1..row_offsets.len() {
        let is_full = row_offsets[end] - row_offsets[start] >= CHUNK_UNITS;
        if is_full || end + 1 == row_offsets.len() {
            chunks.push(start..end);
            start = end;
        }
    }
    chunks
}

struct Job<'a, I> {
    tree: &'a TextTree,
    units: &'a UnitColumns<'a>,
    sides: [IndexSide<'a, I>; 2],
}

/// A stretch while its units are gathered: used again for all of them.
struct Stretch {
    row: usize,
    /// How many units it has.
    units: usize,
    /// The side whose text begins with a dummy prefix, one byte earlier.
    lead: Option<usize>,
    /// Positions of its tokens in their rows.
    ranges: [Range<usize>; 2],
    tokens: [Vec<TextToken>; 2],
    open: [Vec<Open>; 2],
}

/// A text row that may be a source of what follows.
#[derive(Clone, Copy)]
struct Open {
    row: u32,
    /// The offset at which it stands.
    at: usize,
    /// Its token, by number in the stretch.
    token: usize,
    /// Where the text since lies, once the token is over.
    place: Option<Place>,
    /// Up to how many bytes that is.
    length: u32,
}

impl<I: TokenId> Job<'_, I> {
    fn rows(&self, rows: Range<usize>) -> Result<Found> {
        let mut found = Found::new();
        let mut stretch = Stretch {
            row: 0,
            units: 0,
            lead: None,
            ranges: [0..0, 0..0],
            tokens: [Vec::new(), Vec::new()],
            open: [Vec::new(), Vec::new()],
        };
        for row in rows {
            stretch.row = row;
            for unit in self.units.of_row(row) {
                self.add_unit(unit, &mut stretch, &mut found)?;
            }
            self.close(&mut stretch, &mut found);
        }
        Ok(found)
    }

    /// Adds a unit to the stretch, or closes the stretch and begins another one, or none.
    fn add_unit(&self, unit: usize, stretch: &mut Stretch, found: &mut Found) -> Result<()> {
        let lengths = self.sides.map(|side| side.ids.row(stretch.row).len());
        let (teacher, student) = self.units.ranges(stretch.row, unit, lengths.into())?;
        let ranges = [teacher, student];
        let is_trimmed = self.units.unit_class[unit] & TRIMMED != 0;
        let follows = [0, 1].iter().all(|&side| stretch.ranges[side].end == ranges[side].start);
        if stretch.units == 0 || is_trimmed || !follows {
            self.close(stretch, found);
            self.begin(&ranges, stretch);
        }
        if self.units.kind[unit] == UnitKind::Special as u8 {
            self.close(stretch, found);
            return Ok(());
        }
        let known = stretch.tokens.each_ref().map(Vec::len);
        let is_text = match self.push_tokens(&ranges, stretch)? {
            Some([teacher, student]) if is_trimmed => {
                stretch.lead = Some(usize::from(teacher < student));
                teacher.abs_diff(student) == 1
            }
            Some([teacher, student]) => teacher == student,
            None => false,
        };
        let has_prefix = stretch.ranges.iter().all(|range| range.start > 0);
        if is_text && has_prefix {
            stretch.units += 1;
            for (whole, range) in stretch.ranges.iter_mut().zip(ranges) {
                whole.end = range.end;
            }
            return Ok(());
        }
        if is_text {
            found.counts.units_without_prefix += 1;
        } else {
            found.counts.units_left_out += 1;
        }
        for (tokens, known) in stretch.tokens.iter_mut().zip(known) {
            tokens.truncate(known);
        }
        self.close(stretch, found);
        Ok(())
    }

    /// Begins a stretch with a unit; a token before it that is only a dummy prefix is part of it.
    fn begin(&self, ranges: &[Range<usize>; 2], stretch: &mut Stretch) {
        stretch.ranges = ranges.each_ref().map(|range| range.start..range.start);
        for (number, side) in SIDES.into_iter().enumerate() {
            let (rows, range) = (&self.sides[number], &mut stretch.ranges[number]);
            let place = rows.ids.range(stretch.row).start + range.start;
            if rows.dummy_prefixes.binary_search(&(long(place) - 1)).is_err() || range.start == 0 {
                continue;
            }
            let id = rows.ids.row(stretch.row)[range.start - 1];
            if let Some(token) = self.tree.side(side).token(id.index()) {
                stretch.tokens[number].push(*token);
                stretch.lead = Some(number);
                range.start -= 1;
            }
        }
    }

    /// Adds the tokens of a unit; returns how many bytes they are, or nothing where one of them has
    /// none. Alignment makes no such units.
    fn push_tokens(
        &self,
        ranges: &[Range<usize>; 2],
        stretch: &mut Stretch,
    ) -> Result<Option<[u64; 2]>> {
        let mut bytes = [0u64; 2];
        for (number, side) in SIDES.into_iter().enumerate() {
            let (tree, ids) = (self.tree.side(side), self.sides[number].ids.row(stretch.row));
            for position in ranges[number].clone() {
                let id = ids[position];
                match tree.token(id.index()) {
                    Some(token) => {
                        bytes[number] += u64::from(token.length);
                        stretch.tokens[number].push(*token);
                    }
                    None if id.index() < tree.vocab_size() => return Ok(None),
                    None => {
                        return Err(Error::IdOutOfRange {
                            row: stretch.row,
                            position,
                            side,
                            id: id.value(),
                            vocab_size: tree.vocab_size(),
                        });
                    }
                }
            }
        }
        Ok(Some(bytes))
    }

    /// Whether a token that takes part comes at a position.
    fn takes_part(&self, side: usize, row: usize, position: usize) -> bool {
        let side = &self.sides[side];
        let range = side.ids.range(row);
        position < range.len()
            && side.mask.is_none_or(|mask| mask.get(range.start + position) != Some(&0))
    }

    /// Writes the stretch down, if it has units, and empties it.
    fn close(&self, stretch: &mut Stretch, found: &mut Found) {
        if stretch.units > 0 {
            self.write(stretch, found);
        }
        (stretch.units, stretch.lead) = (0, None);
        stretch.tokens.iter_mut().for_each(Vec::clear);
    }

    fn write(&self, stretch: &mut Stretch, found: &mut Found) {
        let ends = [0, 1].map(|side| stretch.ranges[side].end);
        let has_end = [0, 1].iter().all(|&side| self.takes_part(side, stretch.row, ends[side]));
        let rows = stretch.tokens.each_ref().map(|tokens| tokens.len() + usize::from(has_end));
        let flat = [0, 1].map(|side| {
            let before = long(stretch.ranges[side].start) - 1;
            let flat = self.sides[side].row_starts[stretch.row].saturating_add(before);
            found.reach[side].read(flat, before, long(rows[side]) - 1);
            flat
        });
        found.counts.student_tokens += stretch.tokens[1].len();
        let known = found.offsets.len();
        self.walk(stretch, has_end, found);
        let offsets = found.offsets.len() - known;
        let lead = [0, 1].map(|side| usize::from(stretch.lead == Some(side)));
        found.pieces.push(Piece { batch_row: stretch.row, flat, rows, lead, offsets });
    }

    /// Goes through the offsets of a stretch.
    fn walk(&self, stretch: &mut Stretch, has_end: bool, found: &mut Found) {
        let Stretch { tokens, open, lead, .. } = stretch;
        let (mut at, mut before, mut restarts) = (0, 0, true);
        // Of either side: how many rows have been passed, where the last token began, and where it
        // ends, which is where the next row stands.
        let (mut passed, mut began, mut next) = ([0; 2], [0; 2], [0; 2]);
        if let Some(side) = *lead {
            next[1 - side] = 1;
        }
        loop {
            let own = next.map(|next| next == at);
            let is_end = passed[0] == tokens[0].len() && own[0];
            if is_end && !has_end {
                return;
            }
            if restarts {
                found.counts.stretches += 1;
                open.iter_mut().for_each(Vec::clear);
            }
            let number = short(found.counts.stretches - 1);
            for side in [0, 1] {
                if !open[side].is_empty() {
                    // Nothing is read of a dummy prefix that only the teacher has.
                    let read = passed[1].checked_sub(1).map(|last| tokens[1][last].position);
                    let text = match read {
                        Some(position) => (position, before - began[1]..at - began[1]),
                        None => (0, 0..0),
                    };
                    let out = &mut found.sources[side];
                    self.go_on(SIDES[side], &mut open[side], &tokens[side], (at, text), out);
                }
            }
            let sources_end = found.sources.each_ref().map(|sources| short(sources.len()));
            if lead.is_none() || at > 0 {
                found.offsets.push(Offset { own, stretch: number, sources_end });
            }
            for side in [0, 1] {
                if !own[side] {
                    continue;
                }
                let (token, row) = (passed[side], short(found.rows[side].len()));
                let taken = tokens[side].get(token);
                found.rows[side].push(taken.map_or(NONE, |taken| taken.id));
                if let Some(taken) = taken {
                    open[side].push(Open { row, at, token, place: None, length: 0 });
                    began[side] = at;
                    next[side] = at + taken.length as usize;
                }
                passed[side] += 1;
            }
            if is_end {
                return;
            }
            restarts = own == [true; 2]
                && take_the_same(self.tree, [0, 1].map(|side| tokens[side][passed[side] - 1]));
            before = at;
            at = next[0].min(next[1]);
        }
    }

    /// Finds the sources of a side at an offset, and leaves out the rows that will be none again.
    ///
    /// `text` says where the bytes since the last offset lie: in a token of the student.
    fn go_on(
        &self,
        side: Side,
        open: &mut Vec<Open>,
        tokens: &[TextToken],
        (at, text): (usize, (u32, Range<usize>)),
        out: &mut Vec<Source>,
    ) {
        let tree_side = self.tree.side(side);
        open.retain_mut(|source| {
            let reach = at - source.at;
            if reach > MAX_REACH {
                return false;
            }
            let length = short(reach);
            let token = &tokens[source.token];
            let (run, suffix) = if let Some(place) = source.place {
                let bytes = self.tree.side(Side::Student).bytes(text.0);
                let bytes = bytes.get(text.1.clone()).unwrap_or(&[]);
                let Some(place) = self.tree.go_on(side, place, source.length, bytes) else {
                    return false;
                };
                source.place = Some(place);
                let run = self.tree.run_of(side, place, length);
                (run, tree_side.suffix_start(run.start + run.exact, reach))
            } else if length < token.length {
                let run = self.tree.begin_with(side, token, length);
                (run, tree_side.suffix_start(run.start + run.exact, reach))
            } else {
                let run = Run { start: token.first, end: token.end, exact: token.exact };
                if run.goes_on() {
                    source.place = Some(self.tree.place_of(token));
                }
                (run, tree_side.suffix_of(token))
            };
            source.length = length;
            let Run { start, end, exact } = run;
            out.push(Source { row: source.row, start, end, exact, length, suffix: short(suffix) });
            run.goes_on()
        });
    }
}

/// Whether both sides' tokens are the same, with the same strings below.
fn take_the_same(tree: &TextTree, [teacher, student]: [TextToken; 2]) -> bool {
    (teacher.length, teacher.node) == (student.length, student.node)
        && tree.depths()[teacher.node as usize] == teacher.length
        && tree.same()[teacher.node as usize] != 0
}

fn long(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
