//! The text tree of random pairs against a slow twin in plain lines: all beginnings of all tokens.

#![expect(clippy::unwrap_used, reason = "a broken test must fail")]

mod texts;

use std::collections::BTreeSet;

use proptest::prelude::*;
use simct_align::ids::Side;
use simct_align::text_tree::{EXACT, MAX_REACH, TextTree};
use simct_align::threads::Threads;
use simct_align::vocabulary::{Token, Vocabulary};
use texts::{Draw, SIDES, Text, draw_pair, text_tokens};

/// The nodes of the tree, sorted: all beginnings of all tokens, looked at one by one.
fn slow_nodes(sides: [&Vocabulary; 2]) -> Vec<Text> {
    let tokens = sides.map(text_tokens);
    let beginnings = |side: usize| -> BTreeSet<Text> {
        let all = tokens[side].iter();
        all.flat_map(|(_, bytes)| (0..=bytes.len()).map(|end| bytes[..end].to_vec())).collect()
    };
    let [teacher, student] = [beginnings(0), beginnings(1)];
    let is_node = |text: &Text| {
        let next = |byte: u8| [text.as_slice(), &[byte]].concat();
        let on = |side: &BTreeSet<Text>| -> BTreeSet<u8> {
            (0..=255).filter(|byte| side.contains(&next(*byte))).collect()
        };
        let (teacher, student) = (on(&teacher), on(&student));
        let is_token = tokens.iter().flatten().any(|(_, bytes)| bytes == text);
        text.is_empty() || is_token || teacher != student || teacher.len() > 1
    };
    let mut two_sided: BTreeSet<Text> = teacher.intersection(&student).cloned().collect();
    two_sided.insert(Text::new());
    two_sided.into_iter().filter(is_node).collect()
}

/// The node that a text is attached to, by number.
fn slow_attach(nodes: &[Text], text: &[u8]) -> usize {
    nodes.iter().rposition(|node| text.starts_with(node)).unwrap()
}

fn check_tree(tree: &TextTree, sides: [&Vocabulary; 2]) {
    // Sorted bytes are the depth-first order.
    let nodes = slow_nodes(sides);
    let tokens = sides.map(text_tokens);
    assert_eq!(tree.nodes(), nodes.len());
    for (number, node) in nodes.iter().enumerate() {
        assert_eq!(tree.depths()[number] as usize, node.len());
        let below = nodes.iter().filter(|other| other.starts_with(node)).count();
        assert_eq!(tree.subtree_ends()[number] as usize, number + below);
        let above = (0..number).rev().find(|&other| node.starts_with(&nodes[other]));
        let above = above.map_or(u32::MAX, |above| above.try_into().unwrap());
        assert_eq!(tree.parents()[number], above);
        let strings = |side: usize| -> BTreeSet<&[u8]> {
            let all = tokens[side].iter().map(|(_, bytes)| *bytes);
            all.filter(|bytes| bytes.starts_with(node)).collect()
        };
        assert_eq!(tree.same()[number] == 1, strings(0) == strings(1), "{node:?}");
    }
    for (side, tokens) in SIDES.into_iter().zip(tokens) {
        check_side(tree, side, &nodes, tokens);
    }
}

fn check_side(tree: &TextTree, side: Side, nodes: &[Text], mut tokens: Vec<(u32, &[u8])>) {
    let found = tree.side(side);
    tokens.sort_by_key(|(id, bytes)| (slow_attach(nodes, bytes), bytes.to_vec(), *id));
    let ids: Vec<u32> = tokens.iter().map(|(id, _)| *id).collect();
    assert_eq!(found.ids(), ids);
    for (number, node) in nodes.iter().enumerate() {
        let attached = |(_, bytes): &&(u32, &[u8])| slow_attach(nodes, bytes) == number;
        let range = found.node_tokens()[number]..found.node_tokens()[number + 1];
        assert_eq!(range.len(), tokens.iter().filter(attached).count());
        let exact = tokens.iter().filter(|(_, bytes)| bytes == node).count();
        assert_eq!(found.node_exact()[number] as usize, exact);
    }
    let mut suffixes = Vec::new();
    for length in 1..=MAX_REACH {
        assert_eq!(found.suffix_offsets()[length], suffixes.len());
        for (position, (_, bytes)) in (0..).zip(&tokens) {
            assert_eq!(found.suffix_start(position, length), suffixes.len());
            if bytes.len() > length {
                let node = slow_attach(nodes, &bytes[length..]);
                let exact = if nodes[node] == bytes[length..] { EXACT } else { 0 };
                suffixes.push(u32::try_from(node).unwrap() | exact);
            }
        }
    }
    assert_eq!(found.suffixes(), suffixes);
}

proptest! {
    #[test]
    fn a_tree_is_what_all_beginnings_of_all_tokens_make(
        drawn in prop::collection::vec(any::<u8>(), 100..300), threads in 1usize..3,
    ) {
        let pair = draw_pair(&mut Draw(drawn.into_iter().cycle()));
        let threads = Threads::Count(threads.try_into().unwrap());
        let tree = TextTree::new(pair.teacher(), pair.student(), threads).unwrap();
        check_tree(&tree, [pair.teacher(), pair.student()]);
    }
}

#[test]
fn many_tokens_with_one_beginning_make_no_deep_recursion() {
    let word = |number: usize| Token::normal([&[b'x'; 5000][..], &number.to_be_bytes()].concat());
    let run = |length: usize| Token::normal(vec![b'y'; length]);
    let side = |first: usize| {
        let words = (first..first + 300).map(word);
        words.chain((1..400).map(run)).collect::<Vec<_>>()
    };
    let [teacher, student] = [0, 100].map(|first| Vocabulary::from_tokens(side(first)).unwrap());
    let (teacher, student) = (teacher.into(), student.into());
    let tree = TextTree::new(&teacher, &student, Threads::AllCores).unwrap();
    let deepest = tree.depths().iter().max();
    assert_eq!(deepest, Some(&5008));
    assert_eq!(tree.same()[0], 0);
    let runs = (0..tree.nodes()).filter(|&node| tree.depths()[node] < 400).count();
    assert_eq!(runs, 400);
}

#[test]
fn vocabularies_that_share_nothing_and_bytes_alone_have_trees_too() {
    let bytes = || (0..=255).map(Token::byte).collect::<Vec<_>>();
    let letters = |text: &str| text.split(' ').map(Token::normal).collect::<Vec<_>>();
    let empty = || vec![Token::special("<s>"), Token::normal("")];
    for (teacher, student) in [
        (bytes(), bytes()),
        (bytes(), letters("a ab abc")),
        (letters("a ab abc ab"), letters("b ba")),
        (letters("a ab"), empty()),
        (empty(), empty()),
    ] {
        let [teacher, student] =
            [teacher, student].map(|side| Vocabulary::from_tokens(side).unwrap());
        let (teacher, student) = (teacher.into(), student.into());
        let tree = TextTree::new(&teacher, &student, Threads::AllCores).unwrap();
        check_tree(&tree, [&teacher, &student]);
    }
}
