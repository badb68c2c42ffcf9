//! On-path continuations by brute force: spellings of all one-sided tokens, compared with the
//! realized tokens one by one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use simct_align::columns::UnitKind;
use simct_align::ids::{RaggedIds, Side};
use simct_align::index::Index;
use simct_align::pair::Pair;
use simct_align::spelling::SpellingTable;
use simct_align::vocabulary::TokenKind;

use crate::case::{Batch, Case, Unit, write};
use crate::{NAMES, SIDES, section, text_tokens, vocabulary_of};

/// The longest path of a node.
const LONGEST_PATH: usize = 64;

/// A leaf: the path of its node, the last token of its spelling, and the one-sided token.
type Leaf = (Vec<i64>, i64, u32);

/// The token that stands for every text of a side: no byte fallback if possible, then the smallest.
fn canonical(pair: &Pair, side: Side) -> BTreeMap<&[u8], u32> {
    let mut found = BTreeMap::new();
    for kind in [TokenKind::Normal, TokenKind::Byte] {
        for (id, bytes) in text_tokens(pair, side) {
            if vocabulary_of(pair, side).kind(id) == kind {
                found.entry(bytes).or_insert(id);
            }
        }
    }
    found
}

/// The fewest tokens that spell a text, the longest first among equals.
fn fewest_tokens(tokens: &BTreeMap<&[u8], u32>, text: &[u8]) -> Option<Vec<i64>> {
    let mut best: Vec<Option<Vec<(usize, i64)>>> = vec![None; text.len()];
    best.push(Some(Vec::new()));
    for at in (0..text.len()).rev() {
        let fits = tokens.iter().filter(|(bytes, _)| text[at..].starts_with(bytes));
        let paths = fits.filter_map(|(bytes, &id)| {
            let rest = best[at + bytes.len()].clone()?;
            Some([vec![(bytes.len(), i64::from(id))], rest].concat())
        });
        best[at] = paths.min_by_key(|path| {
            (path.len(), path.iter().map(|(length, _)| Reverse(*length)).collect::<Vec<_>>())
        });
    }
    best.swap_remove(0).map(|path| path.into_iter().map(|(_, id)| id).collect())
}

/// The one-sided tokens of a side, ascending, with their texts.
fn one_sided(pair: &Pair, side: Side) -> Vec<(u32, &[u8])> {
    let other = canonical(pair, side.other());
    let own = canonical(pair, side).into_iter().filter(|(bytes, _)| !other.contains_key(bytes));
    let mut found: Vec<_> = own.map(|(bytes, id)| (id, bytes)).collect();
    found.sort_unstable();
    found
}

/// What the encoder of the other side emits for every one-sided token: often not its text.
fn encode(pair: &Pair, side: Side, choices: &[u8]) -> Vec<Vec<i64>> {
    let tokens = text_tokens(pair, side.other());
    let rows = one_sided(pair, side).into_iter().enumerate();
    rows.map(|(row, (_, text))| {
        let choices = choices.get(row..).unwrap_or(&[]);
        let is_spaced = choices.first().is_some_and(|choice| choice % 2 == 1);
        let text = [if is_spaced { &b" "[..] } else { b"" }, text].concat();
        write(&tokens, &text, choices)
    })
    .collect()
}

/// What was emitted, if it is the text, or a token of a dummy prefix and the text.
fn exact_part(pair: &Pair, speller: Side, text: &[u8], emitted: &[i64]) -> Option<Vec<i64>> {
    let vocabulary = vocabulary_of(pair, speller);
    let bytes = |ids: &[i64]| vocabulary.decode(ids).expect("ids of the vocabulary");
    if bytes(emitted) == text {
        return Some(emitted.to_vec());
    }
    let (first, rest) = emitted.split_first()?;
    let has_dummy = vocabulary.settings().dummy_prefix && bytes(&[*first]) == b" ";
    (has_dummy && bytes(rest) == text).then(|| rest.to_vec())
}

/// The spellings of a direction, by definition.
#[derive(Default)]
struct Spelled {
    /// All leaves in their order.
    leaves: Vec<Leaf>,
    /// How many tokens the spellings have, those without a leaf included.
    lengths: Vec<usize>,
    unspelled: Vec<u32>,
    /// How many are not the fewest tokens.
    encoded: usize,
}

fn spellings(pair: &Pair, side: Side, emitted: &[Vec<i64>]) -> Spelled {
    let tokens = canonical(pair, side.other());
    let mut found = Spelled::default();
    for (row, (token, text)) in one_sided(pair, side).into_iter().enumerate() {
        let emitted = emitted.get(row).map_or(&[][..], Vec::as_slice);
        let fewest = fewest_tokens(&tokens, text);
        let spelling = exact_part(pair, side.other(), text, emitted);
        found.encoded += usize::from(spelling.is_some() && spelling != fewest);
        let Some(mut path) = spelling.or(fewest) else {
            found.unspelled.push(token);
            continue;
        };
        found.lengths.push(path.len());
        let last = path.pop().expect("no text is empty");
        if path.len() <= LONGEST_PATH {
            found.leaves.push((path, last, token));
        }
    }
    found.leaves.sort();
    found
}

/// The pair's table of spellings of a direction against the definition.
fn check_table(table: &SpellingTable, spelled: &Spelled, max_path: usize) {
    assert_eq!(table.unspelled(), spelled.unspelled);
    let leaves: Vec<_> =
        table.last_tokens().map(i64::from).zip(table.one_sided_tokens().iter().copied()).collect();
    let expected = spelled.leaves.iter().map(|(_, last, token)| (*last, *token));
    assert_eq!(leaves, expected.collect::<Vec<_>>());
    let longer = |most| spelled.lengths.iter().filter(|&&length| length > most + 1).count();
    assert_eq!(table.cut_off(max_path), longer(max_path));
    assert_eq!(spelled.lengths.len() - leaves.len(), longer(LONGEST_PATH));
}

/// The realized tokens of a side from a unit on, as far as nothing but text follows.
fn realized(batch: &Batch, units: &[Unit], side: usize) -> Vec<i64> {
    let goes_on = |at: usize| {
        units[at].is_text()
            && !units[at].is_trimmed
            && (at == 0 || units[at].follows(&units[at - 1]))
    };
    let end = (0..units.len()).find(|&at| !goes_on(at)).unwrap_or(units.len());
    units[..end].iter().flat_map(|unit| batch.ids(unit, side).to_vec()).collect()
}

/// Everything that a unit reaches in a direction: depth, node, and the node's leaves with their
/// numbers.
fn reached<'a>(
    realized: &'a [i64],
    leaves: &'a [Leaf],
    max_path: usize,
) -> impl Iterator<Item = (usize, i64, Vec<(usize, &'a Leaf)>)> {
    let nodes: BTreeSet<&[i64]> = leaves
        .iter()
        .flat_map(|(path, ..)| (1..=path.len()).map(|length| &path[..length]))
        .collect();
    (1..=max_path.min(realized.len())).filter_map(move |depth| {
        let path = &realized[..depth];
        let here: Vec<_> =
            leaves.iter().enumerate().filter(|(_, (of_leaf, ..))| of_leaf == path).collect();
        let node = nodes.iter().position(|node| *node == path)? as i64;
        (!here.is_empty()).then_some((depth, node, here))
    })
}

/// What is found here, and how often: for tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub entries: usize,
    pub deep_entries: usize,
    pub realized_leaves: usize,
    /// Spellings that the encoder's tokens give and the fewest tokens do not.
    pub encoded: usize,
}

/// The continuations of a case's batch against the definition.
pub fn check_continuations(case: &Case) -> Seen {
    let mut seen = Seen::default();
    let Some(batch) = case.batch() else {
        return seen;
    };
    let pair = &batch.pair;
    let emitted = SIDES.map(|side| match &case.encoders {
        Some(choices) => encode(pair, side, &choices[side as usize]),
        None => Vec::new(),
    });
    if case.encoders.is_some() {
        let rows = emitted.each_ref().map(|rows| {
            let ends = (0..=rows.len()).map(|count| rows[..count].concat().len() as i64);
            (rows.concat(), ends.collect::<Vec<_>>())
        });
        let [teacher, student] = SIDES.map(|side| {
            let (values, offsets) = &rows[side as usize];
            Some(RaggedIds::new(side.other(), values, offsets).expect("ragged rows"))
        });
        pair.make_spellings(teacher, student).expect("one row for every one-sided token");
    }
    let index = batch.index(case.max_path);
    for (side, emitted) in SIDES.into_iter().zip(&emitted) {
        let spelled = spellings(pair, side, emitted);
        let table = pair.spellings().expect("few spellings").of(side);
        check_table(table, &spelled, case.max_path);
        check_entries(&batch, &index, side, &spelled.leaves, case.max_path, &mut seen);
        seen.encoded += spelled.encoded;
    }
    seen
}

/// The entries of one direction, and the leaves whose text a unit spells, against the definition.
fn check_entries(
    batch: &Batch,
    index: &Index,
    side: Side,
    leaves: &[Leaf],
    max_path: usize,
    seen: &mut Seen,
) {
    let name = NAMES[side as usize];
    let units = batch.units();
    let has_prefix = |unit: &&Unit| !unit.starts.contains(&0) && !unit.is_trimmed;
    let is_multi = |unit: &&Unit| unit.kind == UnitKind::Multi as u8;
    let (multi, other): (Vec<&Unit>, Vec<&Unit>) =
        units.iter().filter(has_prefix).partition(is_multi);
    let (mut entries, mut realized_leaves) = (Vec::new(), Vec::new());
    for (place, unit) in other.into_iter().chain(multi).enumerate() {
        assert_eq!(section(index, "unit")[place], unit.number as i64);
        let tokens = realized(batch, &units[unit.number..], side.other() as usize);
        let text = batch.text(side as usize, batch.ids(unit, side as usize));
        let mut realized_leaf = -1;
        for (depth, node, here) in reached(&tokens, leaves, max_path) {
            let is_unit = |(_, (_, _, token)): &&(usize, &Leaf)| {
                vocabulary_of(&batch.pair, side).token_bytes(*token) == text
            };
            if let Some((leaf, _)) = here.iter().find(is_unit) {
                realized_leaf = *leaf as i64;
            }
            let of_node: Vec<_> = here.iter().map(|(_, leaf)| (leaf.1, leaf.2)).collect();
            entries.push((place as i64, node, depth as i64, of_node));
        }
        if is_multi(&unit) {
            realized_leaves.push(realized_leaf);
        }
    }
    seen.entries += entries.len();
    seen.deep_entries += entries.iter().filter(|(_, _, depth, _)| *depth > 1).count();
    seen.realized_leaves += realized_leaves.iter().filter(|&&leaf| leaf >= 0).count();
    assert_eq!(section(index, &format!("realized_{name}_leaf")), realized_leaves);
    let table = batch.pair.spellings().expect("few spellings").of(side);
    let last: Vec<i64> = table.last_tokens().map(i64::from).collect();
    let [unit, node, depth] =
        ["unit", "node", "depth"].map(|what| section(index, &format!("{name}_entry_{what}")));
    let entry = |entry: usize| {
        let ends = &table.node_offsets()[node[entry] as usize..];
        let leaves = ends[0] as usize..ends[1] as usize;
        let of_node = leaves.map(|leaf| (last[leaf], table.one_sided_tokens()[leaf])).collect();
        (unit[entry], node[entry], depth[entry], of_node)
    };
    assert_eq!((0..unit.len()).map(entry).collect::<Vec<_>>(), entries, "{name}");
}
