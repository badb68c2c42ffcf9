//! Text events by brute force: at every offset, all tokens of all earlier rows.

use std::collections::BTreeSet;

use simct_align::ids::Side;
use simct_align::index::Index;
use simct_align::text_tree::TextTree;

use crate::case::{Batch, Case, Unit};
use crate::slow_tree::{attach, check_tree, has_same_strings};
use crate::{NAMES, SIDES, section, text_tokens, vocabulary_of};

/// How many bytes a source reaches back.
const MAX_REACH: usize = 64;

/// What can be compared at a place of the text.
#[derive(Debug, PartialEq, Eq)]
struct Offset {
    stretch: i64,
    row: i64,
    sides: [OffsetSide; 2],
}

/// One side of it.
#[derive(Debug, Default, PartialEq, Eq)]
struct OffsetSide {
    /// The number of the text row that stands here.
    own: Option<usize>,
    sources: Vec<Source>,
}

#[derive(Debug, PartialEq, Eq)]
struct Source {
    text_row: usize,
    length: usize,
    /// Ids of which the text since the row is the whole token, and those that go on, each with the
    /// node of the rest.
    exact: BTreeSet<u32>,
    longer: BTreeSet<(u32, u32)>,
}

/// What an index says of text events, or what should be there.
#[derive(Debug, Default, PartialEq, Eq)]
struct TextEvents {
    /// Of either side: logit row and realized token (−1 for a last row) of every text row.
    text_rows: [Vec<(i64, i64)>; 2],
    offsets: Vec<Offset>,
    stretches: usize,
    student_tokens: usize,
    units_without_prefix: usize,
}

/// A run of units without a gap.
struct Run<'a> {
    units: Vec<&'a Unit>,
    /// Where the tokens of each side begin in the row: at a dummy prefix, if there is one.
    starts: [usize; 2],
    /// The side whose text begins one byte earlier.
    lead: Option<usize>,
}

impl Run<'_> {
    fn row(&self) -> usize {
        self.units[0].row
    }

    fn end(&self, side: usize) -> usize {
        self.units[self.units.len() - 1].ends[side]
    }
}

/// A run that begins with a unit.
fn begun<'a>(batch: &Batch, unit: &'a Unit) -> Run<'a> {
    let (mut starts, mut lead) = (unit.starts, None);
    if unit.is_trimmed {
        let lengths = [0, 1].map(|side| batch.text(side, batch.ids(unit, side)).len());
        assert_eq!(lengths[0].abs_diff(lengths[1]), 1);
        lead = Some(usize::from(lengths[1] > lengths[0]));
    }
    for (side, rows) in batch.sides.iter().enumerate() {
        let before = rows.offsets[unit.row] + unit.starts[side] as i64 - 1;
        if unit.starts[side] > 0 && rows.dummy_prefixes(&batch.aligned).contains(&before) {
            (starts[side], lead) = (unit.starts[side] - 1, Some(side));
        }
    }
    Run { units: vec![unit], starts, lead }
}

/// All runs, and how many units are in none because no row predicts them.
fn runs<'a>(batch: &Batch, units: &'a [Unit]) -> (Vec<Run<'a>>, usize) {
    let (mut runs, mut without_prefix) = (Vec::<Run<'a>>::new(), 0);
    for (number, unit) in units.iter().enumerate().filter(|(_, unit)| unit.is_text()) {
        let run = runs.last_mut().filter(|run| {
            // The unit before is the run's last one, and no unit of control tokens or a gap.
            run.units.last().is_some_and(|last| last.number + 1 == number && unit.follows(last))
        });
        match run {
            Some(run) if !unit.is_trimmed => run.units.push(unit),
            _ => {
                let run = begun(batch, unit);
                if run.starts.contains(&0) {
                    without_prefix += 1;
                } else {
                    runs.push(run);
                }
            }
        }
    }
    (runs, without_prefix)
}

/// Whether a token that takes part stands at a position of a row.
fn takes_part(batch: &Batch, side: usize, row: usize, position: usize) -> bool {
    let rows = &batch.sides[side];
    let place = rows.offsets[row] as usize + position;
    place < rows.offsets[row + 1] as usize && rows.mask[place] != 0
}

/// The text events of a batch, from the definition.
fn expected(batch: &Batch, nodes: &[Vec<u8>]) -> TextEvents {
    let units = batch.units();
    let (runs, units_without_prefix) = runs(batch, &units);
    let mut events = TextEvents { units_without_prefix, ..TextEvents::default() };
    for run in &runs {
        add_run(batch, nodes, run, &mut events);
    }
    events
}

fn add_run(batch: &Batch, nodes: &[Vec<u8>], run: &Run<'_>, events: &mut TextEvents) {
    let row = run.row();
    let ids = [0, 1].map(|side| &batch.sides[side].row(row)[run.starts[side]..run.end(side)]);
    let lengths = |side: usize| ids[side].iter().map(move |id| batch.text(side, &[*id]).len());
    // Where the text rows stand.
    let places = [0, 1].map(|side| {
        let first = usize::from(run.lead == Some(1 - side));
        let after = lengths(side).scan(first, |at, length| {
            *at += length;
            Some(*at)
        });
        [first].into_iter().chain(after).collect::<Vec<usize>>()
    });
    let longest = run.lead.unwrap_or(0);
    let text = batch.text(longest, ids[longest]);
    let has_end = [0, 1].iter().all(|&side| takes_part(batch, side, row, run.end(side)));
    events.student_tokens += ids[1].len();
    let mut first_rows = [0; 2];
    for side in [0, 1] {
        first_rows[side] = events.text_rows[side].len();
        let flat = batch.sides[side].offsets[row] + run.starts[side] as i64 - 1;
        let taken = ids[side].iter().copied().chain(has_end.then_some(-1));
        events.text_rows[side].extend((flat..).zip(taken));
    }
    let mut offsets: BTreeSet<usize> = places.iter().flatten().copied().collect();
    if !has_end {
        offsets.remove(&text.len());
    }
    if run.lead.is_some() {
        offsets.remove(&0);
    }
    let (mut from, mut restarts) = (0, BTreeSet::new());
    events.stretches += 1;
    for place in offsets {
        if restarts.contains(&place) {
            from = place;
            events.stretches += 1;
        }
        let slots = [0, 1].map(|side| places[side].iter().position(|&at| at == place));
        let taken = [0, 1].map(|side| {
            let id = slots[side].and_then(|slot| ids[side].get(slot))?;
            Some(batch.text(side, &[*id]))
        });
        if let [Some(teacher), Some(student)] = &taken
            && teacher == student
            && has_same_strings(&batch.pair, teacher)
        {
            restarts.insert(place + teacher.len());
        }
        let sides = [0, 1].map(|side| OffsetSide {
            own: slots[side].map(|slot| first_rows[side] + slot),
            sources: (places[side].iter().enumerate())
                .filter(|&(_, &at)| from <= at && at < place && place - at <= MAX_REACH)
                .filter_map(|(slot, &at)| {
                    source(batch, nodes, SIDES[side], first_rows[side] + slot, &text[at..place])
                })
                .collect(),
        });
        let stretch = events.stretches as i64 - 1;
        events.offsets.push(Offset { stretch, row: row as i64, sides });
    }
}

/// What a row is a source of, after so much text; nothing if no token begins with the text.
fn source(
    batch: &Batch,
    nodes: &[Vec<u8>],
    side: Side,
    text_row: usize,
    since: &[u8],
) -> Option<Source> {
    let (mut exact, mut longer) = (BTreeSet::new(), BTreeSet::new());
    for (id, bytes) in text_tokens(&batch.pair, side) {
        match bytes.strip_prefix(since) {
            Some([]) => _ = exact.insert(id),
            Some(rest) => _ = longer.insert((id, attach(nodes, rest))),
            None => {}
        }
    }
    let length = since.len();
    (!exact.is_empty() || !longer.is_empty()).then_some(Source { text_row, length, exact, longer })
}

/// The text events of an index.
fn listed(batch: &Batch, tree: &TextTree, index: &Index) -> TextEvents {
    let counts = index.counts.text;
    assert_eq!(counts.units_left_out, 0);
    let read = |name: &str| section(index, name);
    let mut events = TextEvents {
        stretches: counts.stretches,
        student_tokens: counts.student_tokens,
        units_without_prefix: counts.units_without_prefix,
        ..TextEvents::default()
    };
    let rows = read("text_offset_batch_row").iter();
    for (&stretch, &row) in read("text_offset_stretch").iter().zip(rows) {
        events.offsets.push(Offset { stretch, row, sides: Default::default() });
    }
    for (number, (side, name)) in SIDES.into_iter().zip(NAMES).enumerate() {
        let read = |what: &str| section(index, &format!("{name}_{what}"));
        events.text_rows[number] =
            read("text_row").iter().copied().zip(read("text_id").iter().copied()).collect();
        let [row, start, end, length, exact, suffix] =
            ["row", "start", "end", "length", "exact", "suffix"]
                .map(|what| read(&format!("source_{what}")));
        let (own, ends) = (read("own_text_row"), read("source_offsets"));
        for (at, offset) in events.offsets.iter_mut().enumerate() {
            let sources = (ends[at] as usize..ends[at + 1] as usize).map(|source| {
                let all = &tree.side(side).ids()[start[source] as usize..end[source] as usize];
                let (whole, others) = all.split_at(exact[source] as usize);
                let rests = tree.side(side).suffixes().iter().skip(suffix[source] as usize);
                Source {
                    text_row: row[source] as usize,
                    length: length[source] as usize,
                    exact: whole.iter().copied().collect(),
                    longer: others.iter().copied().zip(rests.copied()).collect(),
                }
            });
            offset.sides[number] =
                OffsetSide { own: usize::try_from(own[at]).ok(), sources: sources.collect() };
        }
        // Realized tokens are text.
        let vocabulary = vocabulary_of(&batch.pair, side);
        for &(_, id) in events.text_rows[number].iter().filter(|(_, id)| *id >= 0) {
            assert!(!vocabulary.token_bytes(id as u32).is_empty());
        }
    }
    events
}

/// What is found here, and how often: for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub offsets: usize,
    pub sources: usize,
    pub straddling: usize,
    pub restarts: usize,
    pub dummy_prefixes: usize,
    pub nodes: usize,
}

/// The joint tree of a case's pair and the text events of its batch against the definition.
pub fn check_text_events(case: &Case) -> Seen {
    let mut seen = Seen::default();
    let Some(batch) = case.batch() else {
        return seen;
    };
    let (tree, nodes) = check_tree(&batch.pair);
    let index = batch.index(case.max_path);
    let known = expected(&batch, &nodes);
    assert_eq!(listed(&batch, tree, &index), known);
    let units = batch.units();
    let runs = runs(&batch, &units).0;
    seen.nodes += nodes.len();
    seen.offsets += known.offsets.len();
    seen.restarts += known.stretches - runs.len();
    seen.dummy_prefixes += runs.iter().filter(|run| run.lead.is_some()).count();
    for source in known.offsets.iter().flat_map(|offset| &offset.sides).flat_map(|s| &s.sources) {
        seen.sources += 1;
        seen.straddling += source.longer.len();
    }
    seen
}
