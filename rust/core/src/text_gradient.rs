//! The derivative of a divergence over [leaves](crate::text_leaves) by the logits.
//!
//! With `G = dD / d mass` of a leaf, the probability of a token in a row of weight `a` gets the
//! derivative `a G(leaf of the token)`, and `log a` the sum of `a p G` over the tokens of the row,
//! which the log-probabilities of the realized tokens before the row share.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::text_chunk::{Real, SideChunk, TreeNodes};
use crate::text_leaves::{Leaves, OffsetLeaves};
use crate::text_tree::EXACT;
use crate::threads::{Threads, in_parallel};

/// What the tokens of the sources of an offset get, those that go on only, source after source.
type Entries<T> = Vec<T>;

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
        let job = Job { nodes, student, leaves: self, by_leaf };
        let count = threads.count();
        let entries = in_parallel(self.offsets.len(), count, Vec::new, |by_node, offset| {
            job.entries(by_node, offset)
        })?;
        let readers = job.readers();
        let columns = student.columns.max(1);
        let rows: Vec<_> = gradient.chunks_mut(columns).map(Mutex::new).collect();
        let by_weight = in_parallel(
            rows.len(),
            count,
            || (),
            |(), row| {
                let mut out = rows[row].lock().unwrap_or_else(PoisonError::into_inner);
                job.by_probs(&readers[row], &entries, row, &mut out)
            },
        )?;
        let mut later: f64 = by_weight.iter().sum();
        let by_token: Vec<_> = (by_weight.iter().zip(student.token))
            .map(|(&own, &token)| {
                later -= own;
                if token < 0 { 0.0 } else { later }
            })
            .collect();
        in_parallel(
            rows.len(),
            count,
            || (),
            |(), row| {
                let mut out = rows[row].lock().unwrap_or_else(PoisonError::into_inner);
                let less = T::of(by_weight[row] + by_token[row]);
                for (out, &p) in out.iter_mut().zip(student.row(row)) {
                    *out = p * (*out - less);
                }
                let token = usize::try_from(student.token[row]).ok();
                if let Some(out) = token.and_then(|token| out.get_mut(token)) {
                    *out += T::of(by_token[row]);
                }
            },
        )?;
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
                Some(by_mass.collect())
            })
            .collect()
    }
}

struct Job<'a, T> {
    nodes: TreeNodes<'a>,
    student: &'a SideChunk<'a, T>,
    leaves: &'a Leaves<T>,
    by_leaf: Vec<Vec<T>>,
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
        if numbers.is_empty() {
            return Vec::new();
        }
        by_node.resize(self.nodes.len(), [T::default(); 2]);
        self.for_runs(offset, |nodes, goes_on, exact| by_node[nodes].fill([goes_on, exact]));
        let mut found = Vec::new();
        for (number, mass) in numbers.zip(&self.leaves.offsets[offset].sources) {
            let source = self.student.source(number);
            let weight = T::of(mass.weight);
            let suffixes = &self.student.tokens.suffixes[source.suffix..][..source.goes_on.len()];
            found.extend(suffixes.iter().map(|&suffix| {
                let is_exact = usize::from(suffix & EXACT != 0);
                weight * by_node[(suffix & !EXACT) as usize][is_exact]
            }));
        }
        found
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

    /// Writes the derivative by the probabilities of a row; returns that by the logarithm of its
    /// weight.
    fn by_probs(
        &self,
        readers: &Readers,
        entries: &[Entries<T>],
        row: usize,
        out: &mut [T],
    ) -> f64 {
        let tokens = self.student.tokens;
        out.fill(T::default());
        if let Some(offset) = readers.own {
            let leaves = &self.leaves.offsets[offset];
            let weight = T::of(leaves.sides[1].own_weight);
            let mut write = |positions: Range<usize>, value: T| {
                for &id in &tokens.ids[positions] {
                    out[id as usize] = value;
                }
            };
            self.for_runs(offset, |nodes, goes_on, exact| {
                let positions = tokens.of_nodes(nodes.clone());
                if goes_on == exact {
                    write(positions, weight * goes_on);
                } else {
                    // Only a single node has two leaves.
                    let middle = positions.start + tokens.node_exact[nodes.start] as usize;
                    write(positions.start..middle, weight * exact);
                    write(middle..positions.end, weight * goes_on);
                }
            });
            let by_leaf = &self.by_leaf[offset];
            let by_stop = if leaves.both_own() { by_leaf.last() } else { by_leaf.first() };
            let by_stop = by_stop.map_or(T::default(), |&by_stop| weight * by_stop);
            for &id in tokens.stops {
                if let Some(out) = usize::try_from(id).ok().and_then(|id| out.get_mut(id)) {
                    *out += by_stop;
                }
            }
        }
        for at in &readers.sources {
            let source = self.student.source(at.number);
            let realized = self.student.realized(at.offset, &source);
            let weight = T::of(self.leaves.offsets[at.offset].sources[at.nth].weight);
            let by_ended = self.by_leaf[at.offset].first().map_or(T::default(), |&by| weight * by);
            for &id in tokens.ids[source.ends].iter().filter(|&&id| Some(id) != realized) {
                out[id as usize] += by_ended;
            }
            let values = &entries[at.offset][at.first_entry..];
            for (&id, &value) in tokens.ids[source.goes_on].iter().zip(values) {
                out[id as usize] += value;
            }
        }
        let probs = self.student.row(row);
        let (mut sums, mut p, mut by) =
            ([T::default(); 8], probs.chunks_exact(8), out.chunks_exact(8));
        let mut total = 0.0;
        // Sums of a few thousand products each: they keep the digits of their type.
        for (number, (p, by)) in p.by_ref().zip(by.by_ref()).enumerate() {
            for ((sum, &p), &by) in sums.iter_mut().zip(p).zip(by) {
                *sum += p * by;
            }
            if number % 512 == 511 {
                total += sums.iter().map(|&sum| sum.into()).sum::<f64>();
                sums = [T::default(); 8];
            }
        }
        total += sums.iter().map(|&sum| sum.into()).sum::<f64>();
        let rest = p.remainder().iter().zip(by.remainder());
        total + rest.map(|(&p, &by)| (p * by).into()).sum::<f64>()
    }
}
