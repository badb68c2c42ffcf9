//! Leaves of text events and their gradient, on a case small enough for paper.

#![expect(clippy::unwrap_used, reason = "a broken test must fail")]

use simct_align::error::Error;
use simct_align::ids::Side;
use simct_align::pair::{Pair, PairOptions};
use simct_align::text_chunk::{SideChunk, TreeNodes, TreeTokens};
use simct_align::text_leaves::{Figure, LeafOptions, Leaves};
use simct_align::text_lists::Lists;
use simct_align::text_tree::TextTree;
use simct_align::threads::Threads;
use simct_align::vocabulary::{Token, Vocabulary};

/// The teacher writes `12` as one token, the student as two: offsets 0, 1 and 2, of which the
/// teacher has no row at 1.
struct Case {
    pair: Pair,
    /// Logits of either side, two rows of 4 and three rows of 3.
    logits: [Vec<f64>; 2],
}

const TEACHER: [&str; 4] = ["12", "1", "2", "+"];
const STUDENT: [&str; 3] = ["1", "2", "+"];

fn softmax(logits: &[f64], columns: usize) -> Vec<f64> {
    let rows = logits.chunks(columns).map(|row| {
        let total: f64 = row.iter().map(|z| z.exp()).sum();
        row.iter().map(move |z| z.exp() / total).collect::<Vec<_>>()
    });
    rows.flatten().collect()
}

impl Case {
    fn new() -> Self {
        let vocabulary = |tokens: &[&str]| {
            Vocabulary::from_tokens(tokens.iter().map(|token| Token::normal(*token)))
                .unwrap()
                .into()
        };
        let pair = Pair::new(vocabulary(&TEACHER), vocabulary(&STUDENT), &PairOptions::default());
        let logits = [
            [0.59f64, 0.01, 0.2, 0.2, 0.25, 0.35, 0.15, 0.25].map(f64::ln).to_vec(),
            [0.5f64, 0.3, 0.2, 0.1, 0.8, 0.1, 0.3, 0.3, 0.4].map(f64::ln).to_vec(),
        ];
        Self { pair: pair.unwrap(), logits }
    }

    /// Calls `with` with the nodes and both sides of the chunk of all offsets.
    fn with<R>(&self, with: impl FnOnce(TreeNodes<'_>, [&SideChunk<'_, f64>; 2]) -> R) -> R {
        let tree = self.pair.text_tree().unwrap();
        let probs = [softmax(&self.logits[0], 4), softmax(&self.logits[1], 3)];
        // The text takes the first token of the teacher, and the first two of the student.
        let log_weight = [
            vec![0.0, probs[0][0].ln()],
            vec![0.0, probs[1][0].ln(), (probs[1][0] * probs[1][4]).ln()],
        ];
        let sources = [
            Sources::new(tree, Side::Teacher, &[&[], &[(0, "1")], &[(0, "12")]]),
            Sources::new(tree, Side::Student, &[&[], &[(0, "1")], &[(1, "2")]]),
        ];
        let teacher = sources[0].chunk(tree, &probs[0], 4, &log_weight[0], &[0, -1, 1], &[0, -1]);
        let student = sources[1].chunk(tree, &probs[1], 3, &log_weight[1], &[0, 1, 2], &[0, 1, -1]);
        let nodes = TreeNodes { subtree_end: tree.subtree_ends(), same: tree.same() };
        with(nodes, [&teacher, &student])
    }

    fn leaves(&self) -> Leaves<f64> {
        let options = LeafOptions {
            epsilon: 0.02,
            tree: false,
            threads: Threads::Count(2.try_into().unwrap()),
        };
        self.with(|nodes, sides| Leaves::find(nodes, sides, options)).unwrap()
    }
}

#[derive(Default)]
struct Sources {
    side: Option<Side>,
    offsets: Vec<i64>,
    row: Vec<i64>,
    start: Vec<i64>,
    end: Vec<i64>,
    exact: Vec<i64>,
    suffix: Vec<i64>,
}

impl Sources {
    /// Of every offset: rows, and the text since them.
    fn new(tree: &TextTree, side: Side, offsets: &[&[(i64, &str)]]) -> Self {
        let mut found = Self { side: Some(side), offsets: vec![0], ..Self::default() };
        let texts: &[&str] = if side == Side::Teacher { &TEACHER } else { &STUDENT };
        let of_position = |id: &u32| texts[*id as usize];
        for sources in offsets {
            for &(row, text) in *sources {
                let run: Vec<i64> = (0..)
                    .zip(tree.side(side).ids())
                    .filter(|(_, id)| of_position(id).starts_with(text))
                    .map(|(position, _)| position)
                    .collect();
                let exact =
                    tree.side(side).ids().iter().filter(|id| of_position(id) == text).count();
                let goes_on = u32::try_from(run[0]).unwrap() + u32::try_from(exact).unwrap();
                let suffix = tree.side(side).suffix_start(goes_on, text.len());
                found.row.push(row);
                found.start.push(run[0]);
                found.end.push(run[run.len() - 1] + 1);
                found.exact.push(exact.try_into().unwrap());
                found.suffix.push(suffix.try_into().unwrap());
            }
            found.offsets.push(found.row.len().try_into().unwrap());
        }
        found
    }

    fn chunk<'a>(
        &'a self,
        tree: &'a TextTree,
        probs: &'a [f64],
        columns: usize,
        log_weight: &'a [f64],
        own: &'a [i64],
        token: &'a [i64],
    ) -> SideChunk<'a, f64> {
        let side = self.side.unwrap();
        let of_side = tree.side(side);
        SideChunk {
            side,
            tokens: TreeTokens {
                ids: of_side.ids(),
                node_tokens: of_side.node_tokens(),
                node_exact: of_side.node_exact(),
                suffixes: of_side.suffixes(),
                stops: &[],
            },
            probs,
            columns,
            log_weight,
            token,
            is_nan: &[0; 3][..log_weight.len()],
            first_row: 0,
            own,
            source_offsets: &self.offsets,
            source_row: &self.row,
            source_start: &self.start,
            source_end: &self.end,
            source_exact: &self.exact,
            source_suffix: &self.suffix,
            lists: None,
        }
    }
}

fn assert_near(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    }
}

#[test]
fn masses_of_a_case_on_paper() {
    let leaves = Case::new().leaves();
    // In the order of the tree: the rest, `+`, `1`, `2`, and the stops where both have a row.
    let deep = leaves.group(true, 0.0);
    assert_eq!((deep.offsets.as_slice(), deep.width), ([0, 2].as_slice(), 5));
    assert_near(&deep.masses[0], &[0.0, 0.2, 0.6, 0.2, 0.0, 0.0, 0.25, 0.6, 0.15, 0.0]);
    assert_near(&deep.masses[1], &[0.0, 0.2, 0.5, 0.3, 0.0, 0.0, 0.4, 0.3, 0.3, 0.0]);
    // Behind `1` the teacher's `12` goes on with `2`, and its `1` ends. The student's other
    // tokens are in the rest, because no token of the teacher goes on with them.
    let next_byte = leaves.group(false, 0.0);
    assert_eq!((next_byte.offsets.as_slice(), next_byte.width), ([1].as_slice(), 2));
    assert_near(&next_byte.masses[0], &[0.01 / 0.6, 0.59 / 0.6]);
    assert_near(&next_byte.masses[1], &[0.2, 0.8]);
    let figures = |figure| leaves.figures(figure).collect::<Vec<_>>();
    assert_eq!(figures(Figure::BothOwn), [1.0, 0.0, 1.0]);
    assert_eq!(figures(Figure::Counted), [1.0, 1.0, 1.0]);
    assert_near(&figures(Figure::Ended), &[0.0, 0.01 / 0.6, 0.0]);
    assert_near(&figures(Figure::Straddling), &[0.0, 0.59 / 0.6, 0.0]);
    assert_near(&figures(Figure::LargestLeaf), &[0.5, 0.8, 0.4]);
}

#[test]
fn lists_of_a_case_on_paper() {
    let options =
        LeafOptions { epsilon: 0.02, tree: false, threads: Threads::Count(1.try_into().unwrap()) };
    // The first row lists `12` only, the second one all tokens.
    let probs = [0.59, 0.0, 0.0, 0.0, 0.25, 0.35, 0.15, 0.25];
    let lists = Lists { listed: &[1, 0, 0, 0, 1, 1, 1, 1], unlisted: &[0.41, 0.0] };
    let log_weight = [0.0, 0.59f64.ln()];
    Case::new().with(|nodes, [teacher, student]| {
        let teacher =
            SideChunk { probs: &probs, log_weight: &log_weight, lists: Some(lists), ..*teacher };
        let leaves = Leaves::find(nodes, [&teacher, student], options).unwrap();
        // `+` and `2` are in the rest of the first offset, with what is not listed.
        let deep = leaves.group(true, 0.0);
        assert_near(&deep.masses[0], &[0.41, 0.0, 0.59, 0.0, 0.0, 0.0, 0.25, 0.6, 0.15, 0.0]);
        assert_near(&deep.masses[1], &[0.5, 0.0, 0.5, 0.0, 0.0, 0.0, 0.4, 0.3, 0.3, 0.0]);
        // Behind `1` the same share of the tokens that begin with it is not listed.
        let next_byte = leaves.group(false, 0.0);
        assert_near(&next_byte.masses[0], &[0.41, 0.59]);
        assert_near(&next_byte.masses[1], &[0.2, 0.8]);
        let figures = |figure| leaves.figures(figure).collect::<Vec<_>>();
        assert_near(&figures(Figure::TeacherUnlisted), &[0.41, 0.0, 0.0]);
        assert_eq!(figures(Figure::Unlisted), [0.0, 0.0, 0.0]);

        // If it lists `1` only, this token ends at the second offset, and the rest is unlisted.
        let lists = Lists { listed: &[0, 1, 0, 0, 1, 1, 1, 1], unlisted: &[0.99, 0.0] };
        let probs = [0.0, 0.01, 0.0, 0.0, 0.25, 0.35, 0.15, 0.25];
        let teacher = SideChunk { probs: &probs, lists: Some(lists), ..teacher };
        let leaves = Leaves::find(nodes, [&teacher, student], options).unwrap();
        let figures = |figure| leaves.figures(figure).collect::<Vec<_>>();
        assert_eq!(figures(Figure::Unlisted), [0.0, 0.0, 0.0]);
        assert_near(&figures(Figure::Ended), &[0.0, 0.01, 0.0]);
        assert_near(&leaves.group(false, 0.0).masses[0], &[1.0, 0.0]);
        // If it lists no token that begins with `1`, nothing is known there.
        let lists = Lists { listed: &[0, 0, 1, 0, 1, 1, 1, 1], ..lists };
        let probs = [0.0, 0.0, 0.01, 0.0, 0.25, 0.35, 0.15, 0.25];
        let teacher = SideChunk { probs: &probs, lists: Some(lists), ..teacher };
        let leaves = Leaves::find(nodes, [&teacher, student], options).unwrap();
        assert_eq!(leaves.figures(Figure::Unlisted).collect::<Vec<_>>(), [0.0, 1.0, 0.0]);
    });
}

#[test]
fn a_floor_holds_where_the_student_has_mass() {
    let floored = Case::new().leaves().group(true, 0.21).masses;
    assert_near(&floored[0][..5], &[0.0, 0.21, 0.6, 0.21, 0.0]);
}

/// Some weighted sum of the student's masses, and its derivative by their logarithms.
fn value_and_derivative(leaves: &Leaves<f64>, weight: &[f64]) -> (f64, [Vec<f64>; 2]) {
    let mut value = 0.0;
    let by_log = [false, true].map(|deep| {
        let group = leaves.group(deep, 0.0);
        let rows = group.masses[1].chunks(group.width).zip(&group.offsets);
        let by_log = rows.flat_map(|(masses, &offset)| {
            let factors = (1..).map(|number: i32| f64::from(number * number));
            let mean: f64 = masses.iter().zip(factors.clone()).map(|(q, factor)| q * factor).sum();
            value += weight[offset] * mean;
            masses.iter().zip(factors).map(move |(q, factor)| q * (factor - mean))
        });
        by_log.collect()
    });
    (value, by_log)
}

#[test]
fn the_gradient_is_that_of_differences() {
    let weight = [1.0, 2.0, 0.5];
    let mut case = Case::new();
    let leaves = case.leaves();
    let (_, [next_byte, deep]) = value_and_derivative(&leaves, &weight);
    let mut gradient = vec![f64::NAN; 9];
    let threads = Threads::Count(2.try_into().unwrap());
    case.with(|nodes, [_, student]| {
        leaves.gradient(nodes, student, [&next_byte, &deep], &weight, &mut gradient, threads)
    })
    .unwrap();
    for (place, found) in gradient.into_iter().enumerate() {
        let logit = case.logits[1][place];
        let [above, below] = [1e-6, -1e-6].map(|step| {
            case.logits[1][place] = logit + step;
            value_and_derivative(&case.leaves(), &weight).0
        });
        case.logits[1][place] = logit;
        let expected = (above - below) / 2e-6;
        assert!((found - expected).abs() < 1e-8, "{place}: {found} {expected}");
    }
}

#[test]
fn an_index_of_other_tables_is_an_error() {
    let case = Case::new();
    let options = LeafOptions { epsilon: 0.02, tree: false, threads: Threads::AllCores };
    case.with(|nodes, [teacher, student]| {
        for (field, broken) in [
            ("row", SideChunk { source_row: &[0, 3], ..*student }),
            ("end", SideChunk { source_end: &[2, 9], ..*student }),
            ("own", SideChunk { own: &[0, 1, 5], ..*student }),
            ("rows", SideChunk { log_weight: &[0.0, 0.0], ..*student }),
            ("offsets", SideChunk { source_offsets: &[0, 0, 1, 9], ..*student }),
            ("lists", SideChunk { lists: Some(Lists { listed: &[], unlisted: &[] }), ..*student }),
        ] {
            let found = Leaves::find(nodes, [teacher, &broken], options).map(|_| ());
            assert_eq!(found, Err(Error::ForeignTextEvents { side: Side::Student }), "{field}");
        }
    });
}
