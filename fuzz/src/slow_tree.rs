//! The joint tree by brute force: all beginnings of all tokens.

use std::collections::BTreeSet;

use simct_align::ids::Side;
use simct_align::pair::Pair;
use simct_align::text_tree::{EXACT, TextTree};

use crate::{SIDES, text_tokens};

/// How many bytes of a token its suffixes may leave out.
const LONGEST_BEGINNING: usize = 64;

/// The strings of a side's tokens that begin with a text.
fn strings_below<'a>(pair: &'a Pair, side: Side, text: &[u8]) -> BTreeSet<&'a [u8]> {
    let tokens = text_tokens(pair, side).into_iter().map(|(_, bytes)| bytes);
    tokens.filter(|bytes| bytes.starts_with(text)).collect()
}

/// Whether both sides' tokens that begin with a text are the same strings.
pub fn has_same_strings(pair: &Pair, text: &[u8]) -> bool {
    strings_below(pair, Side::Teacher, text) == strings_below(pair, Side::Student, text)
}

/// The strings of all nodes, in depth-first order, which is that of the strings.
pub fn nodes(pair: &Pair) -> Vec<Vec<u8>> {
    let begun = SIDES.map(|side| {
        let tokens = text_tokens(pair, side).into_iter();
        let all = tokens.flat_map(|(_, bytes)| (0..=bytes.len()).map(|end| &bytes[..end]));
        all.collect::<BTreeSet<_>>()
    });
    let mut nodes = vec![Vec::new()];
    for &text in begun[0].intersection(&begun[1]).filter(|text| !text.is_empty()) {
        let below = SIDES.map(|side| strings_below(pair, side, text));
        let next = |side: usize| -> BTreeSet<u8> {
            below[side].iter().filter_map(|bytes| bytes.get(text.len()).copied()).collect()
        };
        let is_token = below.iter().any(|strings| strings.contains(text));
        if is_token || next(0) != next(1) || next(0).len() > 1 {
            nodes.push(text.to_vec());
        }
    }
    nodes
}

/// The deepest node that a text begins with; with the bit of the tree where it is the text.
pub fn attach(nodes: &[Vec<u8>], text: &[u8]) -> u32 {
    let fits = nodes.iter().enumerate().filter(|(_, node)| text.starts_with(node));
    let (node, string) = fits.max_by_key(|(_, node)| node.len()).expect("the root fits");
    node as u32 | if string == text { EXACT } else { 0 }
}

/// The tree of a pair against the definition; its nodes.
pub fn check_tree(pair: &Pair) -> (&TextTree, Vec<Vec<u8>>) {
    let (tree, nodes) = (pair.text_tree().expect("threads"), nodes(pair));
    assert_eq!(tree.nodes(), nodes.len());
    for (number, node) in nodes.iter().enumerate() {
        let above = nodes[..number].iter().enumerate().filter(|(_, above)| node.starts_with(above));
        let parent =
            above.max_by_key(|(_, above)| above.len()).map_or(u32::MAX, |(at, _)| at as u32);
        let below = nodes.iter().filter(|below| below.starts_with(node)).count();
        assert_eq!(tree.parents()[number], parent);
        assert_eq!(tree.depths()[number] as usize, node.len());
        assert_eq!(tree.subtree_ends()[number] as usize, number + below);
        assert_eq!(tree.same()[number] == 1, has_same_strings(pair, node), "{node:?}");
    }
    for side in SIDES {
        let mut tokens: Vec<_> = text_tokens(pair, side)
            .into_iter()
            .map(|(id, bytes)| (attach(&nodes, bytes) & !EXACT, bytes, id))
            .collect();
        tokens.sort_unstable();
        let found = tree.side(side);
        assert_eq!(found.ids(), tokens.iter().map(|(_, _, id)| *id).collect::<Vec<_>>());
        for (number, node) in nodes.iter().enumerate() {
            let before = tokens.iter().filter(|(at, ..)| (*at as usize) < number).count();
            assert_eq!(found.node_tokens()[number] as usize, before);
            let exact = tokens.iter().filter(|(_, bytes, _)| bytes == node).count();
            assert_eq!(found.node_exact()[number] as usize, exact);
        }
        let longer = |length| tokens.iter().filter(move |(_, bytes, _)| bytes.len() > length);
        let nodes = &nodes;
        let suffixes = (1..=LONGEST_BEGINNING).flat_map(|length| {
            longer(length).map(move |(_, bytes, _)| attach(nodes, &bytes[length..]))
        });
        assert_eq!(found.suffixes(), suffixes.collect::<Vec<_>>());
    }
    (tree, nodes)
}
