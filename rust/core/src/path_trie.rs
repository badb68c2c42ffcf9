//! A trie over token ids: which node a path of tokens leads to.
//!
//! Nodes are numbered in the order of their paths (`1`, `1 2`, `1 5`, `2`), so that what belongs
//! to nodes lies in arrays. The root has no number: every path has at least one token.
//!
//! A batch takes one look at a root for every token, and hardly any path goes on from there: of the
//! units of GSM8K answers (Gemma 2, Qwen2.5) 31 % reach a node with children and 0.05 % one of
//! those. So the children of the root lie in an array by token id, all deeper steps share one
//! open-addressing table, and a filter of hashed bits, small enough for the second-level cache,
//! answers nearly every question that the table would deny: a branch that is predicted right.

use crate::ids::TokenId;

/// A step to a node, and what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step(u32);

impl Step {
    /// Leads nowhere: a node beyond all others, without children and leaves.
    pub(crate) const NONE: Self = Self(u32::MAX << Self::NODE_SHIFT);
    const HAS_CHILDREN: u32 = 1;
    const HAS_LEAVES: u32 = 2;
    const NODE_SHIFT: u32 = 2;

    #[inline]
    pub(crate) fn node(self) -> u32 {
        self.0 >> Self::NODE_SHIFT
    }

    #[inline]
    fn has_children(self) -> bool {
        self.0 & Self::HAS_CHILDREN != 0
    }

    #[inline]
    pub(crate) fn has_leaves(self) -> bool {
        self.0 & Self::HAS_LEAVES != 0
    }
}

/// How many nodes there may be: what the bits of a [`Step`] can number, [`Step::NONE`] left out.
pub(crate) const MAX_NODES: usize = (1 << (u32::BITS - Step::NODE_SHIFT)) - 1;

/// A step below the root, in the table of all of them.
#[derive(Clone, Copy, Debug)]
struct Slot {
    /// The parent node and the token.
    key: u64,
    step: Step,
}

/// How many bits the filter has for every slot: with 8, and slots at most half taken, it lets
/// one in 16 pass that is not there.
const FILTER_BITS: u32 = 3;

/// No node and token make this key.
const FREE: u64 = u64::MAX;

/// The nodes of a trie as they are made: see [`PathTrie::new`].
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    /// The parent of every node, `None` for those below the root, and the token that leads to it.
    steps: Vec<(Option<u32>, u32)>,
    has_leaves: Vec<bool>,
    has_children: Vec<bool>,
    /// The path whose node was made or found last.
    path: Vec<u32>,
    nodes: Vec<u32>,
}

impl Nodes {
    pub(crate) fn len(&self) -> usize {
        self.steps.len()
    }

    /// Makes the node of a path that has leaves, and those above it. Paths come in order.
    pub(crate) fn insert(&mut self, path: &[u32]) {
        let common = self.path.iter().zip(path).take_while(|(old, new)| old == new).count();
        self.path.truncate(common);
        self.nodes.truncate(common);
        for &token in &path[common..] {
            // Bounded by `MAX_NODES`, which the caller checks.
            let node = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
            let parent = self.nodes.last().copied();
            if let Some(parent) = parent {
                self.has_children[parent as usize] = true;
            }
            self.steps.push((parent, token));
            self.has_leaves.push(false);
            self.has_children.push(false);
            self.path.push(token);
            self.nodes.push(node);
        }
        if let Some(&node) = self.nodes.last() {
            self.has_leaves[node as usize] = true;
        }
    }
}

/// Paths of token ids.
#[derive(Debug)]
pub(crate) struct PathTrie {
    /// Token id -> the node of the path of this one token.
    roots: Vec<Step>,
    /// A power of two of them, at most half of them taken.
    slots: Vec<Slot>,
    /// How far to shift a hash for it to be the number of a slot.
    shift: u32,
    /// A bit for the hash of every key, [`FILTER_BITS`] finer than the number of its slot.
    filter: Vec<u64>,
}

impl PathTrie {
    /// Makes the trie of some nodes over the ids of a vocabulary.
    ///
    /// # Complexity
    ///
    /// O(nodes + vocabulary) expected time; 4 bytes per id of the vocabulary and 34 to 68 per
    /// node of two tokens or more.
    pub(crate) fn new(nodes: &Nodes, vocab_size: usize) -> Self {
        let deep = nodes.steps.iter().filter(|(parent, _)| parent.is_some()).count();
        let size = (2 * deep).next_power_of_two().max(2);
        let mut trie = Self {
            roots: vec![Step::NONE; vocab_size],
            slots: vec![Slot { key: FREE, step: Step::NONE }; size],
            shift: u64::BITS - size.trailing_zeros(),
            filter: vec![0; (size << FILTER_BITS).div_ceil(64)],
        };
        for (node, &(parent, token)) in (0u32..).zip(&nodes.steps) {
            let has_children = u32::from(nodes.has_children[node as usize]) * Step::HAS_CHILDREN;
            let has_leaves = u32::from(nodes.has_leaves[node as usize]) * Step::HAS_LEAVES;
            let step = Step(node << Step::NODE_SHIFT | has_leaves | has_children);
            match parent {
                None => {
                    if let Some(root) = trie.roots.get_mut(token as usize) {
                        *root = step;
                    }
                }
                Some(parent) => {
                    let key = key(parent, token);
                    let place = trie.find(key);
                    trie.slots[place] = Slot { key, step };
                    let (word, bit) = trie.filter_bit(key);
                    trie.filter[word] |= bit;
                }
            }
        }
        trie
    }

    /// The first step of a path.
    #[inline]
    pub(crate) fn root<I: TokenId>(&self, token: I) -> Step {
        self.roots.get(token.index()).copied().unwrap_or(Step::NONE)
    }

    /// Whether a step from a node on can lead anywhere: seldom wrong where it does not.
    #[inline]
    pub(crate) fn may_go_on<I: TokenId>(&self, step: Step, token: I) -> bool {
        let token = u32::try_from(token.index()).unwrap_or(u32::MAX);
        let (word, bit) = self.filter_bit(key(step.node(), token));
        step.has_children() & (self.filter[word] & bit != 0)
    }

    /// The step from a node on.
    #[inline]
    pub(crate) fn child<I: TokenId>(&self, step: Step, token: I) -> Step {
        match u32::try_from(token.index()) {
            Ok(token) => self.slots[self.find(key(step.node(), token))].step,
            Err(_) => Step::NONE,
        }
    }

    #[inline]
    fn filter_bit(&self, key: u64) -> (usize, u64) {
        let hash = hash(key) >> (self.shift - FILTER_BITS);
        // As many hashes as the filter has bits.
        let word = usize::try_from(hash / 64).unwrap_or(0);
        (word & (self.filter.len() - 1), 1 << (hash % 64))
    }

    /// The last token of every node's path, and the node that it is a step from: of paths of one
    /// token `None`.
    pub(crate) fn steps(&self) -> Vec<(Option<u32>, u32)> {
        let deep = self.slots.iter().filter(|slot| slot.key != FREE);
        // A key is its parent and its token: both halves fit.
        let deep = deep.map(|slot| {
            let parent = u32::try_from(slot.key >> u32::BITS).unwrap_or(u32::MAX);
            let token = u32::try_from(slot.key & u64::from(u32::MAX)).unwrap_or(u32::MAX);
            (slot.step.node(), (Some(parent), token))
        });
        let roots = (0u32..).zip(&self.roots).filter(|(_, step)| **step != Step::NONE);
        let mut steps: Vec<_> =
            roots.map(|(token, step)| (step.node(), (None, token))).chain(deep).collect();
        steps.sort_unstable_by_key(|&(node, _)| node);
        steps.into_iter().map(|(_, step)| step).collect()
    }

    /// The slot of a key: the one that holds it, else a free one.
    #[inline]
    fn find(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        // The shift leaves as many bits as there are slots.
        let mut place = usize::try_from(hash(key) >> self.shift).unwrap_or(0) & mask;
        while self.slots[place].key != key && self.slots[place].key != FREE {
            place = (place + 1) & mask;
        }
        place
    }

    /// The node of a whole path; `None` for the empty path and for one that leads nowhere.
    pub(crate) fn node(&self, path: &[u32]) -> Option<u32> {
        let (&first, rest) = path.split_first()?;
        let mut step = self.root(first);
        for &token in rest {
            if step == Step::NONE {
                return None;
            }
            step = self.child(step, token);
        }
        (step != Step::NONE).then(|| step.node())
    }
}

/// Fibonacci hashing: the high bits are the good ones.
#[inline]
fn hash(key: u64) -> u64 {
    key.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

#[inline]
fn key(parent: u32, token: u32) -> u64 {
    u64::from(parent) << u32::BITS | u64::from(token)
}
