//! How a [`TextTree`] is made: both sides' tokens are sorted by their bytes and walked through
//! together, and the rest of every token is looked up in the tree that results.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::ids::NONE;
use crate::text_tree::{
    MAX_REACH, NodeParts, SideParts, TextTree, TreeParts, is_text, short, subtree_ends,
};
use crate::threads::{self, Threads};
use crate::vocabulary::Vocabulary;

impl TextTree {
    /// Makes the tree of two vocabularies.
    ///
    /// # Complexity
    ///
    /// O(tokens × log tokens) comparisons to sort, O(bytes) for the tree, and for every token a
    /// walk from the root for each of its first [`MAX_REACH`] suffixes, divided over the threads;
    /// about 4 bytes of memory per suffix and 60 per token.
    ///
    /// # Errors
    ///
    /// Threads that the system refuses to start.
    pub fn new(
        teacher: &Arc<Vocabulary>,
        student: &Arc<Vocabulary>,
        threads: Threads,
    ) -> Result<Self> {
        let sorted = [teacher, student].map(|vocabulary| Sorted::new(vocabulary));
        let (nodes, attached) = visit(&sorted);
        let ends = subtree_ends(&nodes.parent);
        let [teacher_parts, student_parts] =
            [0, 1].map(|side| in_token_order(&sorted[side], &attached[side], &nodes, &ends));
        drop(sorted);
        let sides = [Arc::new(teacher_parts), Arc::new(student_parts)];
        let parts = TreeParts { nodes: Arc::new(nodes), sides };
        let mut tree = Self::from_parts([teacher, student], parts);
        let suffixes = [0, 1].map(|side| tree.find_suffixes(side, threads));
        for (side, suffixes) in tree.sides.iter_mut().zip(suffixes) {
            // Nothing else holds the parts, so nothing is cloned.
            Arc::make_mut(&mut side.parts).suffixes = suffixes?;
        }
        Ok(tree)
    }

    fn find_suffixes(&self, side: usize, threads: Threads) -> Result<Vec<u32>> {
        let side = &self.sides[side];
        let offsets = side.suffix_offsets();
        let mut suffixes = vec![0; offsets[MAX_REACH + 1]];
        let (mut slices, mut rest) = (Vec::with_capacity(MAX_REACH), &mut suffixes[..]);
        for length in 1..=MAX_REACH {
            let (slice, after) = rest.split_at_mut(offsets[length + 1] - offsets[length]);
            rest = after;
            if !slice.is_empty() {
                slices.push((length, Mutex::new(slice)));
            }
        }
        let next = AtomicUsize::new(0);
        threads::run(threads.count().min(slices.len()), |stop| {
            while let Some((length, slice)) = slices.get(next.fetch_add(1, Ordering::Relaxed)) {
                if stop.requested() {
                    return;
                }
                let mut slice = slice.lock().unwrap_or_else(PoisonError::into_inner);
                for (suffix, rest) in slice.iter_mut().zip(side.rests(*length)) {
                    *suffix = self.attach(rest);
                }
            }
        })?;
        drop(slices);
        Ok(suffixes)
    }
}

/// The text tokens of a side, sorted by (bytes, id); with the first eight bytes as a number that
/// sorts as they do.
struct Sorted<'a> {
    vocabulary: &'a Vocabulary,
    tokens: Vec<(u64, u32)>,
}

const KEY_BYTES: usize = 8;

impl<'a> Sorted<'a> {
    fn new(vocabulary: &'a Vocabulary) -> Self {
        let key = |id: u32| {
            let bytes = vocabulary.token_bytes(id);
            let mut key = [0; KEY_BYTES];
            let length = bytes.len().min(KEY_BYTES);
            key[..length].copy_from_slice(&bytes[..length]);
            u64::from_be_bytes(key)
        };
        let mut tokens: Vec<(u64, u32)> = vocabulary
            .ids()
            .filter(|&id| is_text(vocabulary, id))
            .map(|id| (key(id), id))
            .collect();
        tokens.sort_unstable_by(|left, right| {
            let bytes = |id: u32| vocabulary.token_bytes(id);
            left.0
                .cmp(&right.0)
                .then_with(|| bytes(left.1).cmp(bytes(right.1)))
                .then_with(|| left.1.cmp(&right.1))
        });
        Self { vocabulary, tokens }
    }

    fn bytes(&self, place: usize) -> &'a [u8] {
        self.vocabulary.token_bytes(self.tokens[place].1)
    }

    /// The byte at a depth that the token is longer than.
    fn byte(&self, place: usize, depth: usize) -> u8 {
        match self.tokens[place].0.to_be_bytes().get(depth) {
            Some(&byte) => byte,
            None => self.bytes(place).get(depth).copied().unwrap_or(0),
        }
    }

    /// One past the tokens from a place on that have its byte at a depth; all are longer.
    fn run_end(&self, range: Range<usize>, depth: usize) -> usize {
        let byte = self.byte(range.start, depth);
        let (mut known, mut step) = (range.start, 1);
        while known + step < range.end && self.byte(known + step, depth) == byte {
            known += step;
            step *= 2;
        }
        // `known` has the byte; what lies `step` further has not, or is out of the range.
        let (mut low, mut high) = (known + 1, range.end.min(known + step));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.byte(middle, depth) == byte { low = middle + 1 } else { high = middle }
        }
        low
    }
}

/// Tokens of both sides, some of each, that share so many bytes at least.
struct Begun {
    parent: u32,
    common: usize,
    ranges: [Range<usize>; 2],
}

/// Makes the nodes, and finds the node that each sorted token is attached to.
fn visit(sorted: &[Sorted<'_>; 2]) -> (NodeParts, [Vec<u32>; 2]) {
    let mut nodes = NodeParts::default();
    let mut attached = [0, 1].map(|side| vec![0u32; sorted[side].tokens.len()]);
    let ranges = [0, 1].map(|side| 0..sorted[side].tokens.len());
    let mut open = vec![Begun { parent: NONE, common: 0, ranges }];
    let mut children = Vec::new();
    while let Some(Begun { parent, common, ranges }) = open.pop() {
        let node = short(nodes.parent.len());
        let is_root = parent == NONE;
        let depth = if is_root { 0 } else { common_prefix(sorted, &ranges, common) };
        let edge = if is_root { 0 } else { sorted[0].byte(ranges[0].start, common - 1) };
        nodes.parent.push(parent);
        nodes.depth.push(short(depth));
        nodes.edge.push(edge);
        let mut at = [0, 1].map(|side| {
            let range = ranges[side].clone();
            let exact =
                range.clone().take_while(|&place| sorted[side].bytes(place).len() == depth).count();
            attached[side][range.start..range.start + exact].fill(node);
            range.start + exact
        });
        loop {
            let next = [0, 1].map(|side| {
                (at[side] < ranges[side].end).then(|| sorted[side].byte(at[side], depth))
            });
            let Some(byte) = next.into_iter().flatten().min() else {
                break;
            };
            let runs = [0, 1].map(|side| match next[side] {
                Some(found) if found == byte => {
                    at[side]..sorted[side].run_end(at[side]..ranges[side].end, depth)
                }
                _ => at[side]..at[side],
            });
            at = [runs[0].end, runs[1].end];
            if runs.iter().any(Range::is_empty) {
                for side in [0, 1] {
                    attached[side][runs[side].clone()].fill(node);
                }
            } else {
                children.push(Begun { parent: node, common: depth + 1, ranges: runs });
            }
        }
        // The last one in is the next one out: children by ascending byte.
        open.extend(children.drain(..).rev());
    }
    (nodes, attached)
}

/// How many bytes all tokens of two sorted ranges share, which share `common` at least.
fn common_prefix(sorted: &[Sorted<'_>; 2], ranges: &[Range<usize>; 2], common: usize) -> usize {
    let first = sorted[0].bytes(ranges[0].start);
    let others = [
        sorted[0].bytes(ranges[0].end - 1),
        sorted[1].bytes(ranges[1].start),
        sorted[1].bytes(ranges[1].end - 1),
    ];
    others.iter().fold(first.len(), |length, other| {
        let known = &first[common..length];
        let same = known.iter().zip(&other[common..]).take_while(|(left, right)| left == right);
        common + same.count()
    })
}

/// Sorts the tokens of a side by (node, bytes, id).
fn in_token_order(
    sorted: &Sorted<'_>,
    attached: &[u32],
    nodes: &NodeParts,
    subtree_end: &[u32],
) -> SideParts {
    let count = nodes.parent.len();
    let mut node_tokens = vec![0u32; count + 1];
    for &node in attached {
        node_tokens[node as usize + 1] += 1;
    }
    for node in 0..count {
        node_tokens[node + 1] += node_tokens[node];
    }
    let mut next = node_tokens.clone();
    let mut ids = vec![0u32; attached.len()];
    for ((_, id), &node) in sorted.tokens.iter().zip(attached) {
        let place = &mut next[node as usize];
        ids[*place as usize] = *id;
        *place += 1;
    }
    let (mut end, mut branch) = (vec![0u32; ids.len()], Vec::with_capacity(ids.len()));
    let (mut node_exact, mut begun) = (Vec::with_capacity(count), Vec::new());
    for node in 0..count {
        let (start, stop) = (node_tokens[node] as usize, node_tokens[node + 1] as usize);
        let depth = nodes.depth[node] as usize;
        let bytes = |position: usize| sorted.vocabulary.token_bytes(ids[position]);
        let exact = (start..stop).take_while(|&place| bytes(place).len() == depth).count();
        node_exact.push(short(exact));
        branch.resize(start + exact, 0);
        end[start..start + exact].fill(node_tokens[subtree_end[node] as usize]);
        for position in start + exact..stop {
            branch.push(bytes(position).get(depth).copied().unwrap_or(0));
            while let Some(&before) = begun.last()
                && !bytes(position).starts_with(bytes(before))
            {
                end[before] = short(position);
                begun.pop();
            }
            begun.push(position);
        }
        for before in begun.drain(..) {
            end[before] = short(stop);
        }
    }
    SideParts { ids, node_tokens, node_exact, end, branch, suffixes: Vec::new() }
}
