//! The derivative of a divergence over [leaves](crate::text_leaves) by the logits.
//!
//! With `G = dD / d mass` of a leaf, the probability of a token in a row of weight `a` gets the
//! derivative `a G(leaf of the token)`, and `log a` the sum of `a p G` over the tokens of the row,
//! which the log-probabilities of the realized tokens before the row share.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::text_chunk::{Real, SideChunk, TreeNodes, whole};
use crate::text_leaves::{Leaves, OffsetLeaves};
use crate::text_tree::EXACT;
use crate::threads::{Threads, in_parallel};

/// What the sources of an offset get.
#[derive(Default)]
struct Entries<T> {
    /// The derivative by the probability of their tokens, of those that go on only, source after
    /// source.
    by_prob: Vec<T>,
    /// The derivative by the logarithm of every source's weight, through its masses here.
    by_log_weight: Vec<f64>,
}

impl<T: Real> Leaves<T> {
    /// Writes the derivative by the student's logits over temperature.
    ///
    /// `by_log` has the derivative by the logarithms of the student's masses, as a divergence gives
    /// it, for the [groups](Self::group) of all other offsets and of those where nodes are opened;
    /// `weight` a factor for every offset; and `gradient` a row for each of the student's.
    ///
    /// # Errors
    ///
    /// The chunk is not the one that the leaves were found in, or lengths do not fit.
    pub fn gradient(
        &self,
        nodes: TreeNodes<'_>,
        student: &SideChunk<'_, T>,
        by_log: [&[T]; 2],
        weight: &[T],
        gradient: &mut [T],
        threads: Threads,
    ) -> Result<()> {
        student.check(nodes)?;
        let has_sources = |(offset, leaves): (usize, &OffsetLeaves<T>)| {
            student.sources_of(offset).len() == leaves.sources.len()
        };
        let fits = gradient.len() == student.probs.len()
            && (student.offsets(), weight.len()) == (self.offsets.len(), self.offsets.len())
            && self.offsets.iter().enumerate().all(has_sources);
        let by_leaf = self.by_leaf(by_log, weight).filter(|_| fits);
        let by_leaf = by_leaf.ok_or(Error::ForeignTextEvents { side: student.side })?;
        let job = Job { nodes, student, leaves: self, by_leaf, places: student.places() };
        let count = threads.count();
        let entries = in_parallel(self.offsets.len(), count, Vec::new, |by_node, offset| {
            job.entries(by_node, offset)
        })?;
        let readers = job.readers();
        let by_weight: Vec<f64> = readers.iter().map(|row| row.by_log_weight(&entries)).collect();
        let mut later: f64 = by_weight.iter().sum();
        let rows: Vec<_> = gradient.chunks_mut(student.columns.max(1)).map(Mutex::new).collect();
        let rows: Vec<_> = (rows.into_iter().zip(&by_weight).zip(student.token))
            .map(|((out, &by_weight), &token)| {
                later -= by_weight;
                Row { out, by_weight, by_token: if token < 0 { 0.0 } else { later } }
            })
            .collect();
        in_parallel(rows.len(), count, Vec::new, |by_place, number| {
            job.write(number, &readers[number], &entries, &rows[number], by_place);
        })?;
        Ok(())
    }

    /// The derivative by the masses of every offset's leaves; nothing if lengths do not fit.
    ///
    /// By logarithms, derivatives sum to 0, but not those of floored probabilities; and a leaf
    /// without any mass has no derivative.
    fn by_leaf(&self, by_log: [&[T]; 2], weight: &[T]) -> Option<Vec<Vec<T>>> {
        let widths = [false, true].map(|deep| {
            let members = self.offsets.iter().filter(|leaves| leaves.deep == deep);
            members.map(|leaves| leaves.masses[1].len()).max().unwrap_or(0)
        });
        let mut rest = by_log;
        self.offsets
            .iter()
            .zip(weight)
            .map(|(leaves, &weight)| {
                let group = usize::from(leaves.deep);
                let (by_log, others) = rest[group].split_at_checked(widths[group])?;
                rest[group] = others;
                let student = &leaves.masses[1];
                let pairs = by_log.iter().zip(student);
                let with_mass = pairs.clone().filter(|(_, mass)| **mass > T::default());
                let excess = T::of(with_mass.map(|(&by, _)| by.into()).sum());
                let weight = if leaves.counted { weight } else { T::default() };
                let by_mass = pairs.map(|(&by, &mass)| {
                    if mass > T::default() { weight * (by / mass - excess) } else { T::default() }
                });
                let mut by_mass: Vec<T> = by_mass.collect();
                for &leaf in &leaves.merged {
                    by_mass[leaf] = by_mass[0];
                }
                Some(by_mass)
            })
            .collect()
    }
}

struct Job<'a, T> {
    nodes: TreeNodes<'a>,
    student: &'a SideChunk<'a, T>,
    leaves: &'a Leaves<T>,
    by_leaf: Vec<Vec<T>>,
    /// Of every column, its token's position in token order, or one past the last position.
    places: Vec<u32>,
}

/// Where the gradient of a row goes.
struct Row<'a, T> {
    out: Mutex<&'a mut [T]>,
    /// The derivative by the logarithm of its weight, and by that of its realized token.
    by_weight: f64,
    by_token: f64,
}

/// What reads a row: its own offset, and the offsets of which it is a source.
#[derive(Clone, Default)]
struct Readers {
    own: Option<usize>,
    sources: Vec<SourceAt>,
}

#[derive(Clone, Copy)]
struct SourceAt {
    offset: usize,
    /// Among all sources, and among those of the offset.
    number: usize,
    nth: usize,
    /// Where its entries begin.
    first_entry: usize,
}

impl<T: Real> Job<'_, T> {
    /// Calls `each` with runs of nodes in order, and the derivative by the masses of what goes on
    /// after their strings and of their strings.
    #[inline]
    fn for_runs(&self, offset: usize, mut each: impl FnMut(Range<usize>, T, T)) {
        let by_leaf = &self.by_leaf[offset];
        let parts = &self.leaves.offsets[offset].parts;
        parts.for_each(self.nodes, |nodes, goes_on, exact| {
            each(nodes, by_leaf[goes_on], by_leaf[exact]);
        });
    }

    /// `by_node` is memory that is used again.
    fn entries(&self, by_node: &mut Vec<[T; 2]>, offset: usize) -> Entries<T> {
        let numbers = self.student.sources_of(offset);
        let mut found = Entries { by_prob: Vec::new(), by_log_weight: Vec::new() };
        if numbers.is_empty() {
            return found;
        }
        by_node.resize(self.nodes.len(), [T::default(); 2]);
        self.for_runs(offset, |nodes, goes_on, exact| by_node[nodes].fill([goes_on, exact]));
        for (number, mass) in numbers.zip(&self.leaves.offsets[offset].sources) {
            let source = self.student.source(number);
            let (weight, row) = (T::of(mass.weight), self.student.row(source.row));
            let suffixes = &self.student.tokens.suffixes[source.suffix..];
            let mut by_log_weight = (weight * self.by_rest(offset)).into() * mass.ended;
            for (&id, &suffix) in self.student.tokens.ids[source.goes_on].iter().zip(suffixes) {
                let is_exact = usize::from(suffix & EXACT != 0);
                let by_prob = weight * by_node[(suffix & !EXACT) as usize][is_exact];
                by_log_weight += (row[id as usize] * by_prob).into();
                found.by_prob.push(by_prob);
            }
            found.by_log_weight.push(by_log_weight);
        }
        found
    }

    /// The derivative by the mass of the first leaf, where tokens that end belong.
    fn by_rest(&self, offset: usize) -> T {
        self.by_leaf[offset].first().copied().unwrap_or_default()
    }

    fn readers(&self) -> Vec<Readers> {
        let mut readers = vec![Readers::default(); self.student.rows()];
        for offset in 0..self.student.offsets() {
            if let Some(row) = self.student.own_row(offset) {
                readers[row].own = Some(offset);
            }
            let mut first_entry = 0;
            for (nth, number) in self.student.sources_of(offset).enumerate() {
                let source = self.student.source(number);
                readers[source.row].sources.push(SourceAt { offset, number, nth, first_entry });
                first_entry += source.goes_on.len();
            }
        }
        readers
    }

    /// Writes the derivative by the logits of a row; `by_place` is memory that is used again.
    fn write(
        &self,
        number: usize,
        readers: &Readers,
        entries: &[Entries<T>],
        row: &Row<'_, T>,
        by_place: &mut Vec<T>,
    ) {
        let (tokens, probs) = (self.student.tokens, self.student.row(number));
        let mut out = row.out.lock().unwrap_or_else(PoisonError::into_inner);
        let less = T::of(row.by_weight + row.by_token);
        if let Some(offset) = readers.own {
            let by_stop = self.by_own(offset, by_place);
            for ((out, &p), &place) in out.iter_mut().zip(probs).zip(&self.places) {
                *out = p * (by_place[place as usize] - less);
            }
            for id in tokens.stops.iter().map(|&id| whole(id)) {
                out[id] += probs[id] * by_stop;
            }
        } else {
            for (out, &p) in out.iter_mut().zip(probs) {
                *out = p * (T::default() - less);
            }
        }
        for at in &readers.sources {
            let source = self.student.source(at.number);
            let realized = self.student.realized(at.offset, &source);
            let weight = T::of(self.leaves.offsets[at.offset].sources[at.nth].weight);
            let by_ended = weight * self.by_rest(at.offset);
            for &id in tokens.ids[source.ends].iter().filter(|&&id| Some(id) != realized) {
                out[id as usize] += probs[id as usize] * by_ended;
            }
            let by_prob = &entries[at.offset].by_prob[at.first_entry..];
            for (&id, &by_prob) in tokens.ids[source.goes_on].iter().zip(by_prob) {
                out[id as usize] += probs[id as usize] * by_prob;
            }
        }
        if let Some(out) = usize::try_from(self.student.token[number]).ok().map(|id| &mut out[id]) {
            *out += T::of(row.by_token);
        }
    }

    /// Collects the derivative by the probabilities of an offset's own row in token order, with a 0
    /// behind; returns that by the stops'.
    fn by_own(&self, offset: usize, by_place: &mut Vec<T>) -> T {
        let (tokens, leaves) = (self.student.tokens, &self.leaves.offsets[offset]);
        let weight = T::of(leaves.sides[1].own_weight);
        by_place.resize(tokens.ids.len() + 1, T::default());
        self.for_runs(offset, |nodes, goes_on, exact| {
            let places = tokens.of_nodes(nodes.clone());
            if goes_on == exact {
                by_place[places].fill(weight * goes_on);
            } else {
                // Only a single node has two leaves.
                let (exactly, further) =
                    by_place[places].split_at_mut(tokens.node_exact[nodes.start] as usize);
                exactly.fill(weight * exact);
                further.fill(weight * goes_on);
            }
        });
        let by_leaf = &self.by_leaf[offset];
        let by_stop = if leaves.both_own() { by_leaf.last() } else { by_leaf.first() };
        by_stop.map_or(T::default(), |&by_stop| weight * by_stop)
    }
}

impl Readers {
    /// The derivative by the logarithm of the row's weight.
    ///
    /// To scale the weights of all rows at an offset changes nothing: the derivatives there sum to
    /// 0, so that of its own row, which would take a pass over all columns, follows from the others.
    fn by_log_weight<T>(&self, entries: &[Entries<T>]) -> f64 {
        let of_own = self.own.map_or(0.0, |at| -entries[at].by_log_weight.iter().sum::<f64>());
        let of_source = |at: &SourceAt| entries[at.offset].by_log_weight[at.nth];
        of_own + self.sources.iter().map(of_source).sum::<f64>()
    }
}
