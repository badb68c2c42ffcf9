//! What one side says about the texts that can follow at an offset, node by node of the joint tree.
//!
//! A *source* of an offset is a row of the logits with the tokens that begin with the text since
//! that row; the offset's own row is one with all tokens. Of a source with weight `a`, a token of
//! probability `p` adds `a p` to the node that the rest of the token, after the text since, is
//! attached to. All masses of an offset sum to 1, so only ratios of weights matter.

use std::ops::Range;

use crate::text_chunk::{Real, SideChunk, TreeNodes, TreeTokens, whole};
use crate::text_lists::ListCounts;
use crate::text_tree::EXACT;

/// What is kept of one side at an offset. Masses are shares of the offset's whole mass.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct OffsetSide {
    pub(crate) has_own: bool,
    /// Whether there is any mass.
    pub(crate) known: bool,
    /// Whether a row from the earliest source on holds NaN.
    pub(crate) spoiled: bool,
    /// What probabilities of the own row are multiplied by.
    pub(crate) own_weight: f64,
    /// Mass of the stops.
    pub(crate) stop: f64,
    /// Mass of tokens of earlier rows that end at the offset.
    pub(crate) ended: f64,
    /// Mass of tokens of earlier rows that reach beyond it.
    pub(crate) straddling: f64,
    /// Probability of control tokens other than stops in the own row.
    pub(crate) control: f64,
    /// Probability of tokens that the own row does not list.
    pub(crate) own_unlisted: f64,
    /// Mass of tokens that are not listed.
    pub(crate) unlisted: f64,
    /// Whether the lists lack what the masses need.
    pub(crate) unknown: bool,
}

/// What is kept of a source at its offset.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct SourceMass {
    /// Probability of the tokens that end at the offset, the realized one excepted.
    pub(crate) ended: f64,
    /// Probability of the tokens that go on.
    goes_on: f64,
    /// Probability of such tokens that are not listed.
    unlisted: f64,
    /// Logarithm of the weighted mass.
    log: f64,
    /// What probabilities are multiplied by.
    pub(crate) weight: f64,
}

/// The masses of one side at an offset, for a thread that goes from offset to offset.
#[derive(Debug)]
pub(crate) struct Masses<'a, T> {
    /// Probabilities of the own row, and their sums in token order.
    own: Option<&'a [T]>,
    own_sums: RunningSums,
    /// What earlier rows add to the nodes.
    earlier: NodeMasses<T>,
    /// 1 where straddling tokens go on with a string that begins with the node's; only of a side
    /// without an own row.
    reached: Vec<u8>,
    /// Whether there are earlier rows.
    has_entries: bool,
    /// What probabilities of the own row are multiplied by.
    own_weight: f64,
    /// How many tokens are listed.
    pub(crate) counts: ListCounts,
}

impl<'a, T: Real> Masses<'a, T> {
    pub(crate) fn new() -> Self {
        Self {
            own: None,
            own_sums: RunningSums::default(),
            earlier: NodeMasses { nodes: Vec::new(), blocks: Vec::new() },
            reached: Vec::new(),
            has_entries: false,
            own_weight: 0.0,
            counts: ListCounts::default(),
        }
    }

    /// Collects the masses of an offset, those of the own row as sums in token order only.
    pub(crate) fn collect(
        &mut self,
        chunk: &SideChunk<'a, T>,
        nodes: TreeNodes<'_>,
        offset: usize,
        sources: &mut [SourceMass],
    ) -> OffsetSide {
        let own = chunk.own_row(offset);
        let first = chunk.sources_of(offset).start;
        self.own = own.map(|number| chunk.row(number));
        let mut found = OffsetSide { has_own: own.is_some(), ..OffsetSide::default() };
        let (mut log_own, mut top) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
        let mut rows = chunk.rows()..0;
        // The earliest and the last row with listed mass, and whether there are tokens at all.
        let (mut first_listed, mut last_listed) = (chunk.rows(), 0);
        let (mut is_listed, mut has_tokens) = (false, found.has_own);
        if let Some(number) = own {
            let row = chunk.row(number);
            found.stop = chunk.tokens.stops.iter().map(|&id| row[whole(id)].into()).sum();
            let listed = self.own_sums.fill(row, chunk.tokens.ids) + found.stop;
            found.own_unlisted = chunk.lists.map_or(0.0, |lists| lists.unlisted[number]);
            let total = listed + found.own_unlisted;
            (is_listed, last_listed) = (listed > 0.0, number);
            found.control = 1.0 - total;
            log_own = chunk.log_weight[number] + total.ln();
            (top, rows) = (log_own, number..number + 1);
        }
        for (number, mass) in (first..).zip(&mut *sources) {
            let source = chunk.source(number);
            let (row, ids) = (chunk.row(source.row), chunk.tokens.ids);
            let realized = chunk.realized(offset, &source);
            mass.ended =
                sum_of(row, ids[source.ends.clone()].iter().filter(|&&id| Some(id) != realized));
            mass.goes_on = sum_of(row, ids[source.goes_on.clone()].iter());
            let listed = mass.ended + mass.goes_on;
            mass.unlisted = listed * chunk.unlisted_share(&source, realized);
            mass.log = chunk.log_weight[source.row] + (listed + mass.unlisted).ln();
            if listed > 0.0 {
                (first_listed, last_listed) =
                    (first_listed.min(source.row), last_listed.max(source.row));
                is_listed = true;
            }
            has_tokens |= source.goes_on.end - source.ends.start > usize::from(realized.is_some());
            top = top.max(mass.log);
            rows = rows.start.min(source.row)..rows.end.max(source.row + 1);
        }
        // A source's weight against the others' depends on all rows in between.
        found.spoiled = chunk.is_nan.get(rows).unwrap_or(&[]).contains(&1);
        found.unknown = (!is_listed && has_tokens && chunk.lists.is_some())
            || chunk.lacks_realized(first_listed..last_listed);
        found.known = top > f64::NEG_INFINITY;
        let log_total = if found.known {
            let sum: f64 = sources.iter().map(|mass| (mass.log - top).exp()).sum();
            top + (sum + (log_own - top).exp()).ln()
        } else {
            0.0
        };
        // Without any mass a weight does not matter, but must be finite.
        let weight = |log_mass: f64, row: usize| match log_mass {
            f64::NEG_INFINITY => 0.0,
            _ => (chunk.log_weight[row] - log_total).min(80.0).exp(),
        };
        found.own_weight = own.map_or(0.0, |row| weight(log_own, row));
        found.stop *= found.own_weight;
        found.unlisted = found.own_unlisted * found.own_weight;
        self.counts.collect(chunk, offset);

        self.has_entries = !sources.is_empty();
        self.own_weight = found.own_weight;
        if self.has_entries {
            self.earlier.clear(nodes.len());
        }
        if !found.has_own {
            self.reached.clear();
            self.reached.resize(nodes.len(), 0);
        }
        for (number, mass) in (first..).zip(sources) {
            let source = chunk.source(number);
            mass.weight = weight(mass.log, source.row);
            found.ended += mass.weight * mass.ended;
            found.straddling += mass.weight * mass.goes_on;
            found.unlisted += mass.weight * mass.unlisted;
            let (row, suffixes) = (chunk.row(source.row), &chunk.tokens.suffixes[source.suffix..]);
            let ids = &chunk.tokens.ids[source.goes_on];
            for (&id, &suffix) in ids.iter().zip(suffixes) {
                let p: f64 = row[id as usize].into();
                self.earlier.add(suffix, mass.weight * p);
            }
            if !found.has_own {
                for (_, suffix) in ids.iter().zip(suffixes) {
                    self.reached[(suffix & !EXACT) as usize] = 1;
                }
            }
        }
        found
    }

    /// Whether tokens end exactly behind a node's string with more than `epsilon` of its mass,
    /// which counts as `least` if it is less.
    #[inline]
    pub(crate) fn closes(
        &self,
        tokens: TreeTokens<'_>,
        nodes: Range<usize>,
        epsilon: f64,
        least: f64,
    ) -> bool {
        let (mut exact, mut below) = (0.0, 0.0);
        let n_exact = tokens.node_exact[nodes.start] as usize;
        if n_exact == 0 && !self.has_entries {
            return false;
        }
        if self.own.is_some() {
            let places = tokens.of_nodes(nodes.clone());
            exact = self.own_weight * self.own_sums.of(places.start..places.start + n_exact);
            below = self.own_weight * self.own_sums.of(places);
        }
        if self.has_entries {
            exact += self.earlier.nodes[nodes.start][1].into();
            below += self.earlier.of(nodes);
        }
        exact > epsilon * below.max(least)
    }

    /// The mass of a run of nodes.
    #[inline]
    pub(crate) fn of_nodes(&self, tokens: TreeTokens<'_>, nodes: Range<usize>) -> f64 {
        let mut mass = 0.0;
        if let Some(own) = self.own {
            mass += self.own_weight * self.own_mass(own, tokens, tokens.of_nodes(nodes.clone()));
        }
        if self.has_entries {
            mass += self.earlier.of(nodes);
        }
        mass
    }

    /// The masses of what goes on after a node's string, but not as a child does, and of what is
    /// its string.
    pub(crate) fn of_node(&self, tokens: TreeTokens<'_>, node: usize) -> [f64; 2] {
        let mut masses = [0.0; 2];
        if let Some(own) = self.own {
            let Range { start, end } = tokens.of_nodes(node..node + 1);
            let middle = start + tokens.node_exact[node] as usize;
            masses = [middle..end, start..middle]
                .map(|places| self.own_weight * self.own_mass(own, tokens, places));
        }
        if self.has_entries {
            for (mass, &of_entries) in masses.iter_mut().zip(&self.earlier.nodes[node]) {
                *mass += of_entries.into();
            }
        }
        masses
    }

    /// The probability of a run of tokens in the own row.
    #[inline]
    fn own_mass(&self, own: &[T], tokens: TreeTokens<'_>, places: Range<usize>) -> f64 {
        let known = self.own_sums.with_all_digits::<T>(places.clone());
        known.unwrap_or_else(|| sum_of(own, tokens.ids[places].iter()))
    }

    /// Whether tokens of earlier rows go on after a node's string, but not as a child does.
    #[inline]
    pub(crate) fn straddles(&self, node: usize) -> bool {
        self.has_entries && self.earlier.nodes[node][0] > T::default()
    }

    /// Whether the side has tokens of a run of nodes.
    #[inline]
    pub(crate) fn reaches(&self, nodes: Range<usize>) -> bool {
        self.own.is_some() || self.reached[nodes].contains(&1)
    }
}

/// How many nodes have one sum in [`NodeMasses`], and how many values in [`RunningSums`].
const BLOCK: usize = 64;

/// Masses of nodes, few of which have any.
#[derive(Debug)]
struct NodeMasses<T> {
    /// Of every node: what goes on after its string, and what is its string.
    nodes: Vec<[T; 2]>,
    /// The sums of blocks of nodes: where one is 0, its nodes are.
    blocks: Vec<f64>,
}

impl<T: Real> NodeMasses<T> {
    fn clear(&mut self, nodes: usize) {
        self.nodes.resize(nodes, [T::default(); 2]);
        self.blocks.resize(nodes.div_ceil(BLOCK), 0.0);
        for (block, nodes) in self.blocks.iter_mut().zip(self.nodes.chunks_mut(BLOCK)) {
            if *block != 0.0 {
                *block = 0.0;
                nodes.fill([T::default(); 2]);
            }
        }
    }

    #[inline]
    fn add(&mut self, suffix: u32, mass: f64) {
        let node = (suffix & !EXACT) as usize;
        self.nodes[node][usize::from(suffix & EXACT != 0)] += T::of(mass);
        self.blocks[node / BLOCK] += mass;
    }

    /// The mass of a run of nodes.
    #[inline]
    fn of(&self, nodes: Range<usize>) -> f64 {
        let (first, last) = (nodes.start / BLOCK, (nodes.end - 1) / BLOCK);
        let part = |block: usize, nodes: Range<usize>| match self.blocks[block] {
            0.0 => 0.0,
            _ => sum(self.nodes[nodes].as_flattened()),
        };
        if first == last {
            return part(first, nodes);
        }
        let between: f64 = self.blocks[first + 1..last].iter().sum();
        let head = part(first, nodes.start..(first + 1) * BLOCK);
        head + between + part(last, last * BLOCK..nodes.end)
    }
}

/// Sums of probabilities in token order, from the beginning of their block on: sums over runs are
/// differences.
///
/// A difference loses digits where its run has little of its block. Blocks are short: a token that
/// has nearly all probability spoils its neighbours only.
#[derive(Debug, Default)]
struct RunningSums {
    through: Vec<f64>,
    blocks: Vec<f64>,
}

impl RunningSums {
    /// Sums up the probabilities of tokens; returns the sum of all.
    fn fill<T: Real>(&mut self, row: &[T], ids: &[u32]) -> f64 {
        // Read in order once: from far memory, that is several times as fast as in any other.
        std::hint::black_box(row.iter().step_by(LINE).fold(T::default(), |sum, &p| sum + p));
        self.blocks.clear();
        self.through.resize(ids.len(), 0.0);
        for (ids, through) in ids.chunks(BLOCK).zip(self.through.chunks_mut(BLOCK)) {
            // Four at a time, since an addition waits for the one before.
            let (mut total, (fours, rest)) = (0.0, ids.as_chunks::<4>());
            let (through_fours, through_rest) = through.as_chunks_mut::<4>();
            for (through, ids) in through_fours.iter_mut().zip(fours) {
                let [one, b, c, d] = ids.map(|id| row[id as usize].into());
                let two = one + b;
                let three = two + c;
                let four = three + d;
                *through = [total + one, total + two, total + three, total + four];
                total += four;
            }
            for (through, &id) in through_rest.iter_mut().zip(rest) {
                total += row[id as usize].into();
                *through = total;
            }
            self.blocks.push(total);
        }
        self.blocks.iter().sum()
    }

    /// The sum over a run.
    #[inline]
    fn of(&self, run: Range<usize>) -> f64 {
        if run.is_empty() {
            return 0.0;
        }
        let (first, last) = (run.start / BLOCK, (run.end - 1) / BLOCK);
        let before =
            if run.start.is_multiple_of(BLOCK) { 0.0 } else { self.through[run.start - 1] };
        let end = self.through[run.end - 1];
        if first == last {
            end - before
        } else {
            self.blocks[first] - before + self.blocks[first + 1..last].iter().sum::<f64>() + end
        }
    }

    /// The sum over a run that is not empty, if it is known to as many digits as `T` has.
    #[inline]
    fn with_all_digits<T: Real>(&self, run: Range<usize>) -> Option<f64> {
        let block = *self.blocks.get(run.start / BLOCK)?;
        let sum = self.of(run);
        (sum >= T::LEAST_SHARE * block).then_some(sum)
    }
}

/// A sum; that of many values in four parts, whose additions do not wait for each other.
#[inline]
fn sum<T: Real>(values: &[T]) -> f64 {
    let mut total = 0.0;
    let mut rest = values;
    if values.len() >= 8 {
        let (fours, others) = values.as_chunks::<4>();
        let mut sums = [0.0; 4];
        for four in fours {
            for (sum, &value) in sums.iter_mut().zip(four) {
                *sum += value.into();
            }
        }
        (total, rest) = (sums.iter().sum(), others);
    }
    for &value in rest {
        total += value.into();
    }
    total
}

/// The probability of tokens.
fn sum_of<'a, T: Real>(row: &[T], ids: impl Iterator<Item = &'a u32>) -> f64 {
    ids.map(|&id| row[id as usize].into()).sum()
}

/// Numbers in a cache line, or half as many.
const LINE: usize = 8;
