//! Text events of a teacher of which only lists of likeliest tokens are known.
//!
//! A list leaves a share `u` of its row's probability to tokens that are not listed. Of a source, the
//! tokens that begin with the text since the row have the listed mass `l`. The same share of all their
//! mass is taken to be unlisted: `l u / (1 - u)`, or 0 if all of these tokens are listed. At the own
//! row, where they are all tokens, that is `u`. Unlisted mass belongs to the rest of the root. So does,
//! on both sides, every leaf for which the teacher has tokens but lists none. A node is closed if
//! nothing is listed below it.

use std::ops::Range;

use crate::text_chunk::{Real, SideChunk, Source, TreeTokens, whole};
use crate::text_tree::EXACT;

/// What is listed of a chunk's rows.
#[derive(Clone, Copy, Debug)]
pub struct Lists<'a> {
    /// 1 where a token is listed, one row after the other.
    pub listed: &'a [u8],
    /// Of every row the probability of all tokens that are not listed.
    pub unlisted: &'a [f64],
}

/// How many tokens there are, and how many of them are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    tokens: usize,
    listed: usize,
}

impl Count {
    pub(crate) fn add(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.listed += other.listed;
    }

    /// Whether there are tokens, none of which is listed.
    pub(crate) fn lacks_all(self) -> bool {
        self.tokens > 0 && self.listed == 0
    }
}

impl<T: Real> SideChunk<'_, T> {
    /// Whether a row lists a token; so does every row that is known as a whole.
    #[inline]
    pub(crate) fn lists(&self, row: usize, id: usize) -> bool {
        self.lists.is_none_or(|lists| lists.listed[row * self.columns + id] != 0)
    }

    /// The unlisted mass of a source, as a multiple of its listed mass.
    pub(crate) fn unlisted_share(&self, source: &Source, realized: Option<u32>) -> f64 {
        let Some(lists) = self.lists else { return 0.0 };
        let ids = &self.tokens.ids[source.ends.start..source.goes_on.end];
        let mut others = ids.iter().filter(|&&id| Some(id) != realized);
        if others.all(|&id| self.lists(source.row, id as usize)) {
            return 0.0;
        }
        let unlisted = lists.unlisted[source.row];
        // Without any listed mass, any finite multiple will do.
        unlisted / (1.0 - unlisted).max(f64::MIN_POSITIVE)
    }

    /// Whether one of some rows does not list the token that the text takes.
    pub(crate) fn lacks_realized(&self, mut rows: Range<usize>) -> bool {
        let lacks = |row: usize| {
            usize::try_from(self.token[row]).is_ok_and(|token| !self.lists(row, token))
        };
        self.lists.is_some() && rows.any(lacks)
    }
}

/// How many tokens are listed at an offset, node by node; nothing where rows are known as a whole.
#[derive(Debug, Default)]
pub(crate) struct ListCounts {
    /// Listed tokens of the own row before every place in token order.
    own: Vec<u32>,
    has_own: bool,
    lists_stops: bool,
    /// Of all tokens of earlier rows that go on: twice the node, and 1 more where a token is exactly
    /// the node's string; sorted, with whether they are listed.
    earlier: Vec<(usize, bool)>,
    /// Listed ones before every one of these.
    before: Vec<u32>,
}

impl ListCounts {
    /// Counts at an offset.
    pub(crate) fn collect<T: Real>(&mut self, chunk: &SideChunk<'_, T>, offset: usize) {
        if chunk.lists.is_none() {
            return;
        }
        let own = chunk.own_row(offset);
        self.has_own = own.is_some();
        self.own.clear();
        self.lists_stops = false;
        if let Some(row) = own {
            let listed =
                chunk.tokens.ids.iter().map(|&id| u32::from(chunk.lists(row, id as usize)));
            self.own.extend(running(listed));
            self.lists_stops = chunk.tokens.stops.iter().any(|&id| chunk.lists(row, whole(id)));
        }
        self.earlier.clear();
        for number in chunk.sources_of(offset) {
            let source = chunk.source(number);
            let suffixes = &chunk.tokens.suffixes[source.suffix..];
            for (&id, &suffix) in chunk.tokens.ids[source.goes_on].iter().zip(suffixes) {
                let slot = 2 * (suffix & !EXACT) as usize + usize::from(suffix & EXACT != 0);
                self.earlier.push((slot, chunk.lists(source.row, id as usize)));
            }
        }
        self.earlier.sort_unstable();
        let listed = self.earlier.iter().map(|&(_, is_listed)| u32::from(is_listed));
        self.before.clear();
        self.before.extend(running(listed));
    }

    /// The tokens of a run of nodes.
    pub(crate) fn of_nodes(&self, tokens: TreeTokens<'_>, nodes: Range<usize>) -> Count {
        let places = tokens.of_nodes(nodes.clone());
        self.count(places, 2 * nodes.start..2 * nodes.end)
    }

    /// The tokens that go on after a node's string, but not as a child does, and those that are its
    /// string.
    pub(crate) fn of_node(&self, tokens: TreeTokens<'_>, node: usize) -> [Count; 2] {
        let Range { start, end } = tokens.of_nodes(node..node + 1);
        let middle = start + tokens.node_exact[node] as usize;
        let slot = 2 * node;
        [self.count(middle..end, slot..slot + 1), self.count(start..middle, slot + 1..slot + 2)]
    }

    /// The stops of the own row.
    pub(crate) fn of_stops(&self, tokens: TreeTokens<'_>) -> Count {
        Count { tokens: tokens.stops.len(), listed: usize::from(self.lists_stops) }
    }

    /// Whether anything is listed below a node.
    pub(crate) fn lists_some(&self, tokens: TreeTokens<'_>, nodes: Range<usize>) -> bool {
        self.of_nodes(tokens, nodes).listed > 0
    }

    fn count(&self, places: Range<usize>, slots: Range<usize>) -> Count {
        let place = |slot| self.earlier.partition_point(|&(other, _)| other < slot);
        let earlier = place(slots.start)..place(slots.end);
        let listed =
            |before: &[u32], run: &Range<usize>| (before[run.end] - before[run.start]) as usize;
        let mut count = Count { tokens: earlier.len(), listed: listed(&self.before, &earlier) };
        if self.has_own {
            count.add(Count { tokens: places.len(), listed: listed(&self.own, &places) });
        }
        count
    }
}

/// The sums before every value, and the sum of all.
fn running(values: impl Iterator<Item = u32>) -> impl Iterator<Item = u32> {
    let mut total = 0;
    std::iter::once(0).chain(values.map(move |value| {
        total += value;
        total
    }))
}
