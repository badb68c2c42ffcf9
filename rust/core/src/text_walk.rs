//! Which tokens of a side begin with what the text says from a row on, offset by offset.
//!
//! While the text goes on, the tokens that begin with it can only become fewer. Up to the end of
//! the realized token, the nodes above the realized token know them; from there on the walk goes
//! down the tree by the bytes of the text, and beyond the last two-sided string narrows a run of
//! the tokens of one node.

use crate::ids::Side;
use crate::text_tree::{TextToken, TextTree, TreeSide, short};

/// Tokens that begin with a string: positions in token order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u32,
    pub(crate) end: u32,
    /// How many of them, the first ones, are the string.
    pub(crate) exact: u32,
}

impl Run {
    /// Whether a token goes on after the string.
    #[inline]
    pub(crate) fn goes_on(&self) -> bool {
        self.start + self.exact < self.end
    }
}

/// Where a string lies that at least one token of the side begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the way to a node, or at it.
    Node(u32),
    /// Beyond the node that these tokens are attached to.
    Tokens { start: u32, end: u32 },
}

impl TextTree {
    /// Where a realized token lies.
    pub(crate) fn place_of(&self, token: &TextToken) -> Place {
        if self.depths()[token.node as usize] == token.length {
            Place::Node(token.node)
        } else {
            Place::Tokens { start: token.first, end: token.end }
        }
    }

    /// The tokens that begin with the first bytes of a realized token, fewer than it has.
    pub(crate) fn begin_with(&self, side: Side, token: &TextToken, length: u32) -> Run {
        let tokens = self.side(side);
        let mut node = token.node;
        let depth = self.depths()[node as usize];
        if depth < length {
            return tokens.narrow_around(token, depth, length, node);
        }
        loop {
            let above = self.parents()[node as usize];
            match self.depths().get(above as usize) {
                Some(&depth) if depth >= length => node = above,
                _ => return self.run_of(side, Place::Node(node), length),
            }
        }
    }

    /// The tokens of a place, after so many bytes.
    pub(crate) fn run_of(&self, side: Side, place: Place, length: u32) -> Run {
        let tokens = self.side(side);
        match place {
            Place::Node(node) => {
                let at = node as usize;
                let start = tokens.parts.node_tokens[at];
                let end = tokens.parts.node_tokens[self.subtree_ends()[at] as usize];
                let is_node = self.depths()[at] == length;
                Run { start, end, exact: if is_node { tokens.parts.node_exact[at] } else { 0 } }
            }
            Place::Tokens { start, end } => {
                let is_exact = |at: &u32| tokens.length(*at) == length;
                let exact = (start..end).take_while(is_exact).fold(0, |count, _| count + 1);
                Run { start, end, exact }
            }
        }
    }

    /// Goes on from a place after `length` bytes with the next bytes of the text.
    pub(crate) fn go_on(
        &self,
        side: Side,
        place: Place,
        mut length: u32,
        mut text: &[u8],
    ) -> Option<Place> {
        let tokens = self.side(side);
        let mut node = match place {
            Place::Node(node) => node,
            Place::Tokens { start, end } => return tokens.narrow(start, end, length, text),
        };
        while let Some((&byte, rest)) = text.split_first() {
            let depth = self.depths()[node as usize];
            if length < depth {
                let known = self.begun_by(side, node).get(length as usize..depth as usize)?;
                let common = known.len().min(text.len());
                if known[..common] != text[..common] {
                    return None;
                }
                length += short(common);
                text = &text[common..];
            } else if let Some(child) = self.child(node, byte) {
                (node, length, text) = (child, length + 1, rest);
            } else {
                let at = node as usize;
                let start = tokens.parts.node_tokens[at] + tokens.parts.node_exact[at];
                let end = tokens.parts.node_tokens[at + 1];
                let (start, end) = tokens.with_branch(start, end, byte)?;
                return tokens.narrow(start, end, length + 1, rest);
            }
        }
        Some(Place::Node(node))
    }
}

impl TreeSide {
    /// Of the tokens of a node that are longer than its string, those that go on with a byte.
    fn with_branch(&self, start: u32, end: u32, byte: u8) -> Option<(u32, u32)> {
        let branch = self.parts.branch.get(start as usize..end as usize)?;
        // Most texts go on with white space, which sorts before all that tokens go on with.
        if branch.first().is_none_or(|&first| byte < first) {
            return None;
        }
        let first = branch.partition_point(|&other| other < byte);
        let count = branch[first..].partition_point(|&other| other == byte);
        let start = start + short(first);
        (count > 0).then(|| (start, start + short(count)))
    }

    /// Of a run of tokens that share `length` bytes, those that go on with a text.
    fn narrow(&self, mut start: u32, mut end: u32, length: u32, text: &[u8]) -> Option<Place> {
        for (at, &byte) in (length as usize..).zip(text) {
            // Tokens that end here come first.
            while start < end && self.length(start) as usize == at {
                start += 1;
            }
            if start == end {
                return None;
            }
            let byte_of = |position: u32| self.bytes(position).get(at).copied().unwrap_or(0);
            if byte_of(start) != byte || byte_of(end - 1) != byte {
                start = partition(start, end, |position| byte_of(position) < byte);
                end = partition(start, end, |position| byte_of(position) == byte);
                if start == end {
                    return None;
                }
            }
        }
        Some(Place::Tokens { start, end })
    }

    /// Of the tokens of a node of `depth` bytes, those that begin with the first `length` bytes of
    /// one of them.
    fn narrow_around(&self, token: &TextToken, depth: u32, length: u32, node: u32) -> Run {
        let at = node as usize;
        let start = self.parts.node_tokens[at] + self.parts.node_exact[at];
        let end = self.parts.node_tokens[at + 1];
        let text = self.bytes(token.position).get(depth as usize..length as usize).unwrap_or(&[]);
        let rest = |position: u32| {
            let bytes = self.bytes(position).get(depth as usize..).unwrap_or(&[]);
            &bytes[..bytes.len().min(text.len())]
        };
        let start = partition(start, end, |position| rest(position) < text);
        let end = partition(start, end, |position| rest(position) == text);
        let is_exact = |at: &u32| self.length(*at) == length;
        let exact = (start..end).take_while(is_exact).fold(0, |count, _| count + 1);
        Run { start, end, exact }
    }
}

/// The first position for which a condition, which holds for the first ones, does not hold.
fn partition(mut start: u32, mut end: u32, holds: impl Fn(u32) -> bool) -> u32 {
    while start < end {
        let middle = start + (end - start) / 2;
        if holds(middle) { start = middle + 1 } else { end = middle }
    }
    start
}
