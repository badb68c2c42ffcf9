//! The texts that can follow at an offset, divided into the finest events that both sides tell
//! apart, and the derivative by the probabilities of the tokens.
//!
//! An offset is *left out* where tokens of earlier rows end at it with more than `epsilon` of the
//! mass of a side. A node of the joint tree is *closed* where tokens end exactly behind its string
//! with more than `epsilon` of its mass on a side, unless both vocabularies have the same strings
//! below it; a node of less than [`NEGLIGIBLE`] of the offset's mass is taken to have that much.
//! What is below a closed node is one leaf. What is left of an opened node is one leaf, too, or two
//! where both vocabularies have the same strings below: its string, and what goes on. A node for
//! which a side has no tokens belongs to what is left of the node above. Where straddling tokens
//! hold more than `epsilon`, and where one side has no row, all nodes below the root are closed.
//! [`text_lists`](crate::text_lists) says what is different if only lists of the teacher's tokens are
//! known.
//!
//! Everything of an offset is computed in the memory of a thread: what is kept are its leaves.

use std::ops::Range;

use crate::error::Result;
use crate::text_chunk::{Real, SideChunk, TreeNodes, TreeTokens};
use crate::text_lists::Count;
use crate::text_masses::{Masses, OffsetSide, SourceMass};
use crate::text_tree::short;
use crate::threads::{Threads, in_parallel};

/// The share of an offset's mass below which the masses of nodes are not told apart.
pub const NEGLIGIBLE: f64 = 1e-12;

/// How offsets are divided.
#[derive(Clone, Copy, Debug)]
pub struct LeafOptions {
    /// The share of mass that may end unknown.
    pub epsilon: f64,
    /// Whether nodes are opened where tokens straddle, and where one side has no row.
    pub tree: bool,
    /// How many threads work.
    pub threads: Threads,
}

/// Of the nodes of an offset, in order: each stands for itself and for those that follow up to the
/// next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// A closed node: its subtree is the next leaf.
    Closed(u32),
    /// What is left of an opened node is the next leaf.
    Opened(u32),
    /// What goes on after an opened node's string is the next leaf, its string the one after.
    Split(u32),
    /// A subtree that belongs to what is left of the node above.
    Absent(u32),
}

/// All parts of an offset: they cover all nodes.
#[derive(Debug)]
pub(crate) struct Parts {
    list: Vec<Part>,
    has_absent: bool,
}

impl Parts {
    /// Calls `each` with runs of nodes in order, and with the leaves of what goes on after their
    /// strings and of their strings; these differ for a single node only.
    #[inline]
    pub(crate) fn for_each(
        &self,
        nodes: TreeNodes<'_>,
        mut each: impl FnMut(Range<usize>, usize, usize),
    ) {
        let mut leaf = 0;
        // The opened nodes above: one past the last node, and the leaf of what is left.
        let mut above: Vec<(usize, usize)> = Vec::new();
        for &part in &self.list {
            match part {
                Part::Closed(node) => {
                    let node = node as usize;
                    each(node..nodes.end(node), leaf, leaf);
                    leaf += 1;
                }
                Part::Opened(node) => {
                    let node = node as usize;
                    if self.has_absent {
                        above.push((nodes.end(node), leaf));
                    }
                    each(node..node + 1, leaf, leaf);
                    leaf += 1;
                }
                Part::Split(node) => {
                    let node = node as usize;
                    each(node..node + 1, leaf, leaf + 1);
                    leaf += 2;
                }
                Part::Absent(node) => {
                    let node = node as usize;
                    while above.pop_if(|(end, _)| *end <= node).is_some() {}
                    // The root is above all.
                    let rest = above.last().map_or(0, |&(_, leaf)| leaf);
                    each(node..nodes.end(node), rest, rest);
                }
            }
        }
    }

    fn leaves(&self) -> usize {
        let of_part = |part: &Part| match part {
            Part::Closed(_) | Part::Opened(_) => 1,
            Part::Split(_) => 2,
            Part::Absent(_) => 0,
        };
        self.list.iter().map(of_part).sum()
    }

    /// The masses of the leaves.
    fn masses<T: Real>(
        &self,
        nodes: TreeNodes<'_>,
        tokens: TreeTokens<'_>,
        masses: &Masses<'_, T>,
    ) -> Vec<T> {
        // One more for the stops.
        let mut leaves = Vec::with_capacity(self.leaves() + 1);
        leaves.resize(self.leaves(), T::default());
        self.for_each(nodes, |run, goes_on, exact| {
            if goes_on == exact {
                leaves[exact] += T::of(masses.of_nodes(tokens, run));
            } else {
                let [rest, string] = masses.of_node(tokens, run.start);
                leaves[goes_on] += T::of(rest);
                leaves[exact] += T::of(string);
            }
        });
        leaves
    }
}

/// The leaves of an offset.
#[derive(Debug)]
pub(crate) struct OffsetLeaves<T> {
    pub(crate) sides: [OffsetSide; 2],
    /// Of the student's sources.
    pub(crate) sources: Vec<SourceMass>,
    pub(crate) parts: Parts,
    /// The masses of either side, which sum to 1; the stops are the last leaf where both sides have
    /// a row.
    pub(crate) masses: [Vec<T>; 2],
    /// The leaves that are a part of the first one, because the teacher lists none of their tokens.
    pub(crate) merged: Vec<usize>,
    /// The student's largest mass.
    largest: f64,
    pub(crate) counted: bool,
    pub(crate) deep: bool,
}

impl<T> OffsetLeaves<T> {
    pub(crate) fn both_own(&self) -> bool {
        self.sides.iter().all(|side| side.has_own)
    }
}

/// The leaves at the offsets of a chunk.
#[derive(Debug)]
pub struct Leaves<T> {
    pub(crate) offsets: Vec<OffsetLeaves<T>>,
}

/// Some offsets of a chunk with about as many leaves each.
#[derive(Clone, Debug, PartialEq)]
pub struct Group<T> {
    /// The offsets, by number in the chunk.
    pub offsets: Vec<usize>,
    /// How many leaves each has room for.
    pub width: usize,
    /// Their masses, `[offsets, width]` of either side, 0 where an offset has fewer.
    pub masses: [Vec<T>; 2],
}

/// A figure of every offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// 1 where the offset adds to the loss.
    Counted,
    /// 1 where both sides have a row.
    BothOwn,
    /// 1 where nodes below the root may be opened.
    Deep,
    /// 1 where a row holds NaN.
    Spoiled,
    /// The larger mass, of both sides, of tokens that end at the offset off the realized path.
    Ended,
    /// The larger mass of tokens that reach beyond it.
    Straddling,
    /// Probability of the teacher's control tokens.
    TeacherControl,
    /// Probability of the student's control tokens.
    StudentControl,
    /// The student's mass of its largest leaf.
    LargestLeaf,
    /// 1 where the teacher's lists lack what the offset needs.
    Unlisted,
    /// Probability of tokens that the teacher's own row does not list.
    TeacherUnlisted,
}

impl Figure {
    /// All figures, in the order of [`Leaves::figures`].
    pub const ALL: [Self; 11] = [
        Self::Counted,
        Self::BothOwn,
        Self::Deep,
        Self::Spoiled,
        Self::Ended,
        Self::Straddling,
        Self::TeacherControl,
        Self::StudentControl,
        Self::LargestLeaf,
        Self::Unlisted,
        Self::TeacherUnlisted,
    ];

    fn of<T: Real>(self, leaves: &OffsetLeaves<T>) -> f64 {
        let [teacher, student] = &leaves.sides;
        let flag = |is_true: bool| f64::from(u8::from(is_true));
        match self {
            Self::Counted => flag(leaves.counted),
            Self::BothOwn => flag(leaves.both_own()),
            Self::Deep => flag(leaves.deep),
            Self::Spoiled => flag(teacher.spoiled || student.spoiled),
            Self::Ended => teacher.ended.max(student.ended),
            Self::Straddling => teacher.straddling.max(student.straddling),
            Self::TeacherControl => teacher.control,
            Self::StudentControl => student.control,
            Self::LargestLeaf => leaves.largest,
            Self::Unlisted => flag(teacher.unknown && !(teacher.spoiled || student.spoiled)),
            Self::TeacherUnlisted => teacher.own_unlisted,
        }
    }
}

impl<T: Real> Leaves<T> {
    /// Finds the leaves of a chunk.
    ///
    /// # Errors
    ///
    /// The chunk is not one of these tables: an index that was made for another pair.
    ///
    /// # Complexity
    ///
    /// O(tokens + nodes) for an offset, and O(nodes) memory for a thread.
    pub fn find(
        nodes: TreeNodes<'_>,
        sides: [&SideChunk<'_, T>; 2],
        options: LeafOptions,
    ) -> Result<Self> {
        for side in sides {
            side.check(nodes)?;
        }
        let count = sides[0].offsets().min(sides[1].offsets());
        let finder = || Finder { nodes, sides, options, masses: [Masses::new(), Masses::new()] };
        let offsets = in_parallel(count, options.threads.count(), finder, Finder::offset)?;
        Ok(Self { offsets })
    }

    /// The offsets where nodes are opened, or the others.
    ///
    /// A teacher's mass is at least `floor`, unless the student has none either.
    #[must_use]
    pub fn group(&self, deep: bool, floor: f64) -> Group<T> {
        let members = || self.offsets.iter().enumerate().filter(|(_, leaves)| leaves.deep == deep);
        let width = members().map(|(_, leaves)| leaves.masses[0].len()).max().unwrap_or(0);
        let mut group = Group {
            offsets: members().map(|(offset, _)| offset).collect(),
            width,
            masses: [Vec::new(), Vec::new()],
        };
        let floor = T::of(floor);
        for (row, (_, OffsetLeaves { masses: [teacher, student], .. })) in members().enumerate() {
            group.masses[0].extend(teacher.iter().zip(student).map(|(&teacher, &student)| {
                let is_leaf = teacher > T::default() || student > T::default();
                if is_leaf && teacher < floor { floor } else { teacher }
            }));
            group.masses[1].extend_from_slice(student);
            group.masses.iter_mut().for_each(|all| all.resize((row + 1) * width, T::default()));
        }
        group
    }

    /// A figure of every offset.
    pub fn figures(&self, figure: Figure) -> impl Iterator<Item = f64> {
        self.offsets.iter().map(move |leaves| figure.of(leaves))
    }
}

/// A thread's view of a chunk.
struct Finder<'a, T> {
    nodes: TreeNodes<'a>,
    sides: [&'a SideChunk<'a, T>; 2],
    options: LeafOptions,
    masses: [Masses<'a, T>; 2],
}

impl<'a, T: Real> Finder<'a, T> {
    fn offset(&mut self, offset: usize) -> OffsetLeaves<T> {
        let epsilon = self.options.epsilon;
        let collect = |side: usize, masses: &mut Masses<'a, T>| {
            let chunk = self.sides[side];
            let mut sources = vec![SourceMass::default(); chunk.sources_of(offset).len()];
            (masses.collect(chunk, self.nodes, offset, &mut sources), sources)
        };
        let [of_teacher, of_student] = &mut self.masses;
        let (teacher, _) = collect(0, of_teacher);
        let (student, sources) = collect(1, of_student);
        let sides = [teacher, student];
        let both_own = sides.iter().all(|side| side.has_own);
        let straddles = sides.iter().any(|side| side.straddling > epsilon);
        let deep = self.options.tree || (both_own && !straddles);
        let parts = if deep { self.tree(both_own) } else { self.next_bytes() };
        let merged = self.merged(&parts, both_own);
        let masses = [0, 1].map(|number| {
            let (tokens, side) = (self.sides[number].tokens, &sides[number]);
            let mut masses = parts.masses(self.nodes, tokens, &self.masses[number]);
            masses[0] += T::of(side.ended + side.unlisted);
            if both_own {
                masses.push(T::of(side.stop));
            } else {
                masses[0] += T::of(side.stop);
            }
            for &leaf in &merged {
                let mass = std::mem::take(&mut masses[leaf]);
                masses[0] += mass;
            }
            normalize(&mut masses);
            masses
        });
        let is_right = |side: &OffsetSide| {
            side.known && !side.spoiled && !side.unknown && side.ended <= epsilon
        };
        let counted = sides.iter().all(is_right);
        let largest = masses[1]
            .iter()
            .fold(T::default(), |most, &mass| if mass > most { mass } else { most });
        let largest = largest.into();
        OffsetLeaves { sides, sources, parts, masses, merged, largest, counted, deep }
    }

    /// The leaves for which the teacher has tokens, but lists none.
    fn merged(&self, parts: &Parts, both_own: bool) -> Vec<usize> {
        let chunk = self.sides[0];
        if chunk.lists.is_none() {
            return Vec::new();
        }
        let (tokens, counts) = (chunk.tokens, &self.masses[0].counts);
        let mut leaves = vec![Count::default(); parts.leaves()];
        parts.for_each(self.nodes, |run, goes_on, exact| {
            if goes_on == exact {
                leaves[exact].add(counts.of_nodes(tokens, run));
            } else {
                let [rest, string] = counts.of_node(tokens, run.start);
                leaves[goes_on].add(rest);
                leaves[exact].add(string);
            }
        });
        if both_own {
            leaves.push(counts.of_stops(tokens));
        }
        (1..leaves.len()).filter(|&leaf| leaves[leaf].lacks_all()).collect()
    }

    /// Whether the teacher lists nothing below a node.
    fn is_unlisted(&self, subtree: Range<usize>) -> bool {
        let chunk = self.sides[0];
        chunk.lists.is_some() && !self.masses[0].counts.lists_some(chunk.tokens, subtree)
    }

    /// Every subtree below the root is a part.
    fn next_bytes(&self) -> Parts {
        let mut parts = Parts { list: vec![Part::Opened(0)], has_absent: false };
        let mut node = 1;
        while node < self.nodes.len() {
            let end = self.nodes.end(node);
            if self.is_absent(node..end) {
                parts.has_absent = true;
                parts.list.push(Part::Absent(short(node)));
            } else {
                parts.list.push(Part::Closed(short(node)));
            }
            node = end;
        }
        parts
    }

    /// Opens nodes all over the tree.
    fn tree(&self, both_own: bool) -> Parts {
        let mut parts = Parts { list: Vec::with_capacity(self.nodes.len() / 2), has_absent: false };
        let mut node = 0;
        while node < self.nodes.len() {
            let end = self.nodes.end(node);
            let is_same = both_own && self.nodes.same[node] != 0;
            if node > 0 && !both_own && self.is_absent(node..end) {
                parts.has_absent = true;
                parts.list.push(Part::Absent(short(node)));
                node = end;
            } else if node > 0
                && (self.is_unlisted(node..end) || self.is_one_leaf(node..end, is_same))
            {
                parts.list.push(Part::Closed(short(node)));
                node = end;
            } else {
                let node_number = short(node);
                let part =
                    if is_same { Part::Split(node_number) } else { Part::Opened(node_number) };
                parts.list.push(part);
                node += 1;
            }
        }
        parts
    }

    fn is_one_leaf(&self, subtree: Range<usize>, is_same: bool) -> bool {
        let node = subtree.start;
        if subtree.len() > 1 {
            !is_same && self.closes(subtree)
        } else {
            // What is left of a node without children is all of it. Where both sides have the same
            // strings, only tokens of earlier rows go on.
            !is_same || !self.masses.iter().any(|masses| masses.straddles(node))
        }
    }

    fn is_absent(&self, subtree: Range<usize>) -> bool {
        self.masses.iter().any(|masses| !masses.reaches(subtree.clone()))
    }

    fn closes(&self, subtree: Range<usize>) -> bool {
        self.masses.iter().zip(self.sides).any(|(masses, side)| {
            masses.closes(side.tokens, subtree.clone(), self.options.epsilon, NEGLIGIBLE)
        })
    }
}

/// Makes masses sum to 1, but for rounding.
fn normalize<T: Real>(masses: &mut [T]) {
    let total: f64 = masses.iter().map(|&mass| mass.into()).sum();
    if total > 0.0 {
        let factor = T::of(1.0 / total);
        masses.iter_mut().for_each(|mass| *mass = *mass * factor);
    }
}
