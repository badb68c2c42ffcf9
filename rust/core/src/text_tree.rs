//! The strings that the tokens of both sides begin with: one tree for a pair, and each side's
//! tokens in its order.
//!
//! # Words
//!
//! A *text token* is an id of kind `NORMAL` or `BYTE` with at least one byte, duplicates included.
//! A byte string is *two-sided* if both sides have a text token that begins with it; every string
//! begins with itself. The *nodes* are the two-sided strings at which something changes: the root
//! (the empty string, always a node); every one that is a text token of either side; every one
//! that goes on with two or more bytes to two-sided strings; every one that a token of one side
//! continues by a byte with which the other side has none. Nodes are numbered in depth-first
//! order, children by ascending byte, so the subtree of node `n` is `n..subtree_end[n]`.
//!
//! A token is *attached* to the deepest node that it begins with. The *token order* of a side sorts
//! its text tokens by (node, bytes, id).
//!
//! # Why the tokens that begin with a string are a run
//!
//! Let `b` be a string, and `A` the tokens of one side that begin with `b`.
//!
//! * `b` is two-sided. Between a node and its child nothing ends, nothing branches and nothing is
//!   one-sided, so all tokens that begin with `b` begin with the shallowest node `m` that begins
//!   with `b` (`b` itself, or the node at the lower end of the edge that `b` lies in). A token that
//!   begins with `m` is attached to a node of the subtree of `m`, and a token attached there begins
//!   with `m`. So `A` are the tokens attached to the nodes `m..subtree_end[m]`: a run.
//! * `b` is one-sided, of this side. Let `z` be its longest two-sided beginning. The byte of `b`
//!   after `z` is one for which the other side has no token, so `z` is a node. A deeper node that a
//!   token of `A` begins with would be two-sided and begin with `z` and that byte, which is not
//!   two-sided. So all of `A` is attached to `z`, where tokens are sorted by their bytes: a run.
//!
//! Tokens that are exactly `b` are the first of their run: in the first case they are attached to
//! `m = b`, before all that is longer; in the second they sort before what they are a beginning of.

use std::ops::Range;
use std::sync::Arc;

use crate::ids::{NONE, Side};
use crate::vocabulary::{TokenKind, Vocabulary};

/// How many bytes a source of a text event reaches back at most, and the longest beginning of a
/// token that suffixes are kept for. Longer tokens take part as own tokens of their row.
pub const MAX_REACH: usize = 64;

/// The bit of a [suffix](TreeSide::suffixes) that says that the suffix is its node's string.
pub const EXACT: u32 = 1 << 31;

/// For every so many tokens, how many before them are longer than each length: see
/// [`TreeSide::rank`].
const BLOCK: usize = 64;

/// The joint tree of a pair: see the [module](self).
#[derive(Debug, PartialEq, Eq)]
pub struct TextTree {
    nodes: Arc<NodeParts>,
    subtree_end: Vec<u32>,
    same: Vec<u8>,
    /// The children of node `n` are `children[child_start[n]..child_start[n + 1]]`.
    child_start: Vec<u32>,
    child_byte: Vec<u8>,
    children: Vec<u32>,
    pub(crate) sides: [TreeSide; 2],
}

/// One side's tokens in token order.
#[derive(Debug)]
pub struct TreeSide {
    vocabulary: Arc<Vocabulary>,
    pub(crate) parts: Arc<SideParts>,
    /// Id -> what a realized token must know.
    tokens: Vec<TextToken>,
    /// Lengths in bytes by position, 255 for all that are longer; 0 after the last.
    lengths: Vec<[u8; BLOCK]>,
    samples: Vec<[u32; MAX_REACH + 1]>,
    /// Where the suffixes after `j` bytes begin; the end of the last ones is entry `MAX_REACH + 1`.
    suffix_offsets: [usize; MAX_REACH + 2],
}

/// What is stored of a tree: the rest follows from it, which is done on first use.
#[derive(Clone, Debug)]
pub(crate) struct TreeParts {
    pub(crate) nodes: Arc<NodeParts>,
    pub(crate) sides: [Arc<SideParts>; 2],
}

/// What is stored of one side.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SideParts {
    /// Position in token order -> id.
    pub(crate) ids: Vec<u32>,
    pub(crate) node_tokens: Vec<u32>,
    pub(crate) node_exact: Vec<u32>,
    /// One past the tokens that begin with the token of this position.
    pub(crate) end: Vec<u32>,
    /// The byte after its node's string, 0 where the token is the node's string.
    pub(crate) branch: Vec<u8>,
    pub(crate) suffixes: Vec<u32>,
}

/// What is stored of the nodes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct NodeParts {
    pub(crate) parent: Vec<u32>,
    pub(crate) depth: Vec<u32>,
    /// The first byte that a node has and its parent has not; 0 at the root.
    pub(crate) edge: Vec<u8>,
}

/// A token of a text, and the tokens that begin with it: `first..end`, of which `exact` are no
/// longer.
// Never in two cache lines: texts read them from all over a table of megabytes.
#[repr(align(32))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TextToken {
    /// In token order; [`NONE`] for what is no text token.
    pub(crate) position: u32,
    pub(crate) first: u32,
    pub(crate) exact: u32,
    pub(crate) end: u32,
    pub(crate) node: u32,
    pub(crate) length: u32,
    /// How many tokens before it are longer: see [`TreeSide::suffix_of`].
    pub(crate) rank: u32,
    pub(crate) id: u32,
}

impl TextToken {
    const NONE: Self =
        Self { position: NONE, first: 0, exact: 0, end: 0, node: 0, length: 0, rank: 0, id: NONE };
}

impl PartialEq for TreeSide {
    /// What is not compared follows from the rest.
    fn eq(&self, other: &Self) -> bool {
        self.vocabulary.digest() == other.vocabulary.digest() && self.parts == other.parts
    }
}

impl Eq for TreeSide {}

/// A table that has at most so many entries as 32 bits count.
pub(crate) fn short(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// Whether an id is a text token.
pub(crate) fn is_text(vocabulary: &Vocabulary, id: u32) -> bool {
    matches!(vocabulary.kind(id), TokenKind::Normal | TokenKind::Byte)
        && !vocabulary.token_bytes(id).is_empty()
}

/// One past the last node of every subtree.
pub(crate) fn subtree_ends(parent: &[u32]) -> Vec<u32> {
    let mut ends: Vec<u32> = (1..=short(parent.len())).collect();
    for node in (1..parent.len()).rev() {
        let above = parent[node] as usize;
        ends[above] = ends[above].max(ends[node]);
    }
    ends
}

/// Tells the tokens of a run of equal bytes how many they are; 1 is there already.
fn set_exact(tokens: &mut [TextToken], ids: &[u32], run: Range<u32>) {
    if run.len() > 1 {
        for &id in &ids[run.start as usize..run.end as usize] {
            tokens[id as usize].exact = short(run.len());
        }
    }
}

impl TextTree {
    /// Derives the rest from what is stored, which [fits](TreeParts::fits).
    pub(crate) fn from_parts(vocabularies: [&Arc<Vocabulary>; 2], parts: TreeParts) -> Self {
        let TreeParts { nodes, sides: [teacher, student] } = parts;
        let NodeParts { parent, edge, .. } = &*nodes;
        let subtree_end = subtree_ends(parent);
        let mut same: Vec<u8> = (0..parent.len())
            .map(|node| {
                let exact = [&teacher, &student].map(|side| side.node_exact[node]);
                let attached = [&teacher, &student]
                    .map(|side| side.node_tokens[node + 1] - side.node_tokens[node]);
                u8::from((exact[0] > 0) == (exact[1] > 0) && attached == exact)
            })
            .collect();
        let mut child_start = vec![0u32; parent.len() + 1];
        for node in (1..parent.len()).rev() {
            let above = parent[node] as usize;
            same[above] &= same[node];
            child_start[above + 1] += 1;
        }
        for node in 0..parent.len() {
            child_start[node + 1] += child_start[node];
        }
        let mut next = child_start.clone();
        let (mut child_byte, mut children) = (vec![0; parent.len() - 1], vec![0; parent.len() - 1]);
        for node in 1..parent.len() {
            let place = &mut next[parent[node] as usize];
            child_byte[*place as usize] = edge[node];
            children[*place as usize] = short(node);
            *place += 1;
        }
        let [teacher_vocabulary, student_vocabulary] = vocabularies;
        let sides = [
            TreeSide::from_parts(teacher_vocabulary, teacher),
            TreeSide::from_parts(student_vocabulary, student),
        ];
        Self { nodes, subtree_end, same, child_start, child_byte, children, sides }
    }

    /// What is stored of the tree.
    pub(crate) fn parts(&self) -> TreeParts {
        let sides = self.sides.each_ref().map(|side| Arc::clone(&side.parts));
        TreeParts { nodes: Arc::clone(&self.nodes), sides }
    }

    /// How many nodes there are.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.nodes.parent.len()
    }

    /// The node above every node; `u32::MAX` for the root.
    #[must_use]
    pub fn parents(&self) -> &[u32] {
        &self.nodes.parent
    }

    /// How many bytes every node's string has.
    #[must_use]
    pub fn depths(&self) -> &[u32] {
        &self.nodes.depth
    }

    /// The subtree of node `n` is `n..subtree_ends[n]`.
    #[must_use]
    pub fn subtree_ends(&self) -> &[u32] {
        &self.subtree_end
    }

    /// 1 where both sides have tokens of the very same strings that begin with the node's.
    #[must_use]
    pub fn same(&self) -> &[u8] {
        &self.same
    }

    /// One side's tokens.
    #[must_use]
    pub fn side(&self, side: Side) -> &TreeSide {
        &self.sides[side as usize]
    }

    /// The child whose string goes on with a byte.
    #[inline]
    pub(crate) fn child(&self, node: u32, byte: u8) -> Option<u32> {
        let node = node as usize;
        let (start, end) = (self.child_start[node] as usize, self.child_start[node + 1] as usize);
        let place = self.child_byte[start..end].binary_search(&byte).ok()?;
        Some(self.children[start + place])
    }

    /// The bytes of some token of a side that begins with a node's string.
    pub(crate) fn begun_by(&self, side: Side, node: u32) -> &[u8] {
        let side = self.side(side);
        side.bytes(side.parts.node_tokens[node as usize])
    }

    /// The deepest node that a text begins with, and whether it is the text.
    pub(crate) fn attach(&self, text: &[u8]) -> u32 {
        let (mut node, mut skipped) = (0, false);
        while let Some(&byte) = text.get(self.nodes.depth[node as usize] as usize) {
            match self.child(node, byte) {
                Some(child) if self.nodes.depth[child as usize] as usize <= text.len() => {
                    skipped |=
                        self.nodes.depth[child as usize] > self.nodes.depth[node as usize] + 1;
                    node = child;
                }
                _ => break,
            }
        }
        if skipped {
            // The bytes between a node and its child have not been looked at.
            let known = self.begun_by(Side::Teacher, node).iter().zip(text);
            let common = known.take_while(|(known, byte)| known == byte).count();
            while self.nodes.depth[node as usize] as usize > common {
                node = self.nodes.parent[node as usize];
            }
        }
        node | if self.nodes.depth[node as usize] as usize == text.len() { EXACT } else { 0 }
    }
}

impl TreeParts {
    /// Whether what was stored can be a tree of these vocabularies, as far as indices go.
    pub(crate) fn fits(&self, vocabularies: [&Vocabulary; 2]) -> bool {
        let nodes = &self.nodes;
        let count = nodes.parent.len();
        let deeper = |node: usize| {
            let above = nodes.parent[node] as usize;
            above < node && nodes.depth[above] < nodes.depth[node]
        };
        let is_tree = count > 0
            && (nodes.depth.len(), nodes.edge.len()) == (count, count)
            && nodes.parent[0] == NONE
            && nodes.depth[0] == 0
            && (1..count).all(deeper);
        is_tree
            && vocabularies.into_iter().zip(&self.sides).all(|(vocabulary, side)| {
                let tokens = side.ids.len();
                let largest = |numbers: &[u32]| numbers.iter().copied().max().unwrap_or(0) as usize;
                let suffix = side.suffixes.iter().map(|suffix| suffix & !EXACT).max().unwrap_or(0);
                let exact_fits = |(ends, exact): (&[u32], &u32)| *exact <= ends[1] - ends[0];
                (side.end.len(), side.branch.len()) == (tokens, tokens)
                    && (side.node_tokens.len(), side.node_exact.len()) == (count + 1, count)
                    && side.node_tokens[0] == 0
                    && side.node_tokens[count] as usize == tokens
                    && side.node_tokens.is_sorted()
                    && side.node_tokens.windows(2).zip(&side.node_exact).all(exact_fits)
                    && is_every_text_token(vocabulary, &side.ids)
                    && (0..).zip(&side.end).all(|(at, &end)| at < end)
                    && largest(&side.end) <= tokens
                    && (suffix as usize) < count
                    && side.suffixes.len() == suffix_count(vocabulary)
            })
    }
}

/// Whether ids are all text tokens of a vocabulary, each once.
fn is_every_text_token(vocabulary: &Vocabulary, ids: &[u32]) -> bool {
    let mut expected: Vec<bool> = vocabulary.ids().map(|id| is_text(vocabulary, id)).collect();
    let mut found = |id: &u32| expected.get_mut(*id as usize).is_some_and(std::mem::take);
    ids.iter().all(&mut found) && !expected.contains(&true)
}

/// How many suffixes the text tokens of a vocabulary have.
fn suffix_count(vocabulary: &Vocabulary) -> usize {
    let text = vocabulary.ids().filter(|&id| is_text(vocabulary, id));
    text.map(|id| (vocabulary.token_bytes(id).len() - 1).min(MAX_REACH)).sum()
}

impl TreeSide {
    fn from_parts(vocabulary: &Arc<Vocabulary>, parts: Arc<SideParts>) -> Self {
        let mut tokens = vec![TextToken::NONE; vocabulary.len()];
        let mut lengths = vec![[0; BLOCK]; parts.ids.len().div_ceil(BLOCK)];
        let mut samples = Vec::with_capacity(parts.ids.len() / BLOCK + 1);
        let mut longer = [0; MAX_REACH + 1];
        for (node, exact) in (0..).zip(&parts.node_exact) {
            let start = parts.node_tokens[node as usize];
            // The first of the tokens of equal bytes, which are neighbours, and its length.
            let (mut first, mut known) = (start, 0);
            for position in start..parts.node_tokens[node as usize + 1] {
                let (at, id) = (position as usize, parts.ids[position as usize]);
                let length = vocabulary.token_bytes(id).len();
                if at.is_multiple_of(BLOCK) {
                    samples.push(longer);
                }
                let is_equal = length == known
                    && (position < start + exact || position < parts.end[first as usize]);
                if !is_equal {
                    set_exact(&mut tokens, &parts.ids, first..position);
                    (first, known) = (position, length);
                }
                lengths[at / BLOCK][at % BLOCK] = u8::try_from(length).unwrap_or(u8::MAX);
                tokens[id as usize] = TextToken {
                    position,
                    first,
                    exact: 1,
                    end: parts.end[at],
                    node,
                    length: short(length),
                    rank: longer[length.min(MAX_REACH)],
                    id,
                };
                for count in &mut longer[..length.min(MAX_REACH + 1)] {
                    *count += 1;
                }
            }
            set_exact(&mut tokens, &parts.ids, first..parts.node_tokens[node as usize + 1]);
        }
        if parts.ids.len().is_multiple_of(BLOCK) {
            samples.push(longer);
        }
        let mut suffix_offsets = [0; MAX_REACH + 2];
        for length in 1..=MAX_REACH {
            suffix_offsets[length + 1] = suffix_offsets[length] + longer[length] as usize;
        }
        let vocabulary = Arc::clone(vocabulary);
        Self { vocabulary, parts, tokens, lengths, samples, suffix_offsets }
    }

    /// Position in token order -> id.
    #[must_use]
    pub fn ids(&self) -> &[u32] {
        &self.parts.ids
    }

    /// The tokens attached to node `n` are `node_tokens[n]..node_tokens[n + 1]`.
    #[must_use]
    pub fn node_tokens(&self) -> &[u32] {
        &self.parts.node_tokens
    }

    /// How many of a node's tokens are exactly its string: the first ones.
    #[must_use]
    pub fn node_exact(&self) -> &[u32] {
        &self.parts.node_exact
    }

    /// For every `j` from 1 to [`MAX_REACH`], and every token of more than `j` bytes in token
    /// order, the node that the rest after `j` bytes is attached to, with the bit [`EXACT`] if it
    /// is the node's string.
    #[must_use]
    pub fn suffixes(&self) -> &[u32] {
        &self.parts.suffixes
    }

    /// The suffixes after `j` bytes are `suffix_offsets[j]..suffix_offsets[j + 1]`.
    #[must_use]
    pub fn suffix_offsets(&self) -> &[usize] {
        &self.suffix_offsets
    }

    /// Where the suffix after `length` bytes of the first token from a position on that has one
    /// lies; the others of a run of tokens follow.
    ///
    /// # Complexity
    ///
    /// O(1): at most 64 lengths are looked at.
    #[must_use]
    pub fn suffix_start(&self, position: u32, length: usize) -> usize {
        let length = length.min(MAX_REACH);
        self.suffix_offsets[length] + self.rank(position as usize, length)
    }

    /// Where the suffixes of the tokens that begin with a token, and are longer, begin.
    #[inline]
    pub(crate) fn suffix_of(&self, token: &TextToken) -> usize {
        self.suffix_offsets[(token.length as usize).min(MAX_REACH)] + token.rank as usize
    }

    /// How many tokens before a position are longer.
    fn rank(&self, position: usize, length: usize) -> usize {
        let position = position.min(self.parts.ids.len());
        let block = position / BLOCK;
        // Whole blocks and numbers of 8 bits: the compiler makes a few vector instructions of it.
        let before = u8::try_from(position % BLOCK).unwrap_or(0);
        let limit = u8::try_from(length).unwrap_or(u8::MAX);
        let lengths = self.lengths.get(block).unwrap_or(&[0; BLOCK]);
        let more = (0..).zip(lengths).fold(0, |count: u8, (at, &length): (u8, _)| {
            count + u8::from((at < before) & (length > limit))
        });
        self.samples[block][length] as usize + usize::from(more)
    }

    /// What a realized token must know; nothing for an id without text.
    #[inline]
    pub(crate) fn token(&self, id: usize) -> Option<&TextToken> {
        self.tokens.get(id).filter(|token| token.position != NONE)
    }

    /// How many ids there are, those without text included.
    pub(crate) fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// The bytes of the token at a position.
    pub(crate) fn bytes(&self, position: u32) -> &[u8] {
        let id = self.parts.ids.get(position as usize).copied().unwrap_or(NONE);
        self.vocabulary.token_bytes(id)
    }

    pub(crate) fn length(&self, position: u32) -> u32 {
        match self.lengths.as_flattened().get(position as usize) {
            Some(&u8::MAX) => short(self.bytes(position).len()),
            Some(&length) => u32::from(length),
            None => 0,
        }
    }

    /// The suffixes that will be there after so many bytes: position and rest of every token.
    pub(crate) fn rests(&self, length: usize) -> impl Iterator<Item = &[u8]> {
        (0..)
            .zip(self.lengths.as_flattened())
            .filter(move |(_, long)| usize::from(**long) > length)
            .map(move |(position, _)| self.bytes(position).get(length..).unwrap_or(&[]))
    }
}
