//! The continuations of a batch, in the order of an index.
//!
//! The entries of [`on_path`] are in the order of the batch. An index has its SHARED units first:
//! the entries are put in the order of the index's units here, so that the entries of a run of
//! units, and the leaves of these entries, are runs as well.

use crate::columns::UnitColumns;
use crate::continuation::{Entries, PathOptions, on_path};
use crate::error::Result;
use crate::ids::{Side, TokenId};
use crate::index::IndexSide;
use crate::index_side::{SideWriter, long};
use crate::pair::Pair;
use crate::sections::EntryCounts;
use crate::spelling::{SpellingTable, Spellings};
use crate::threads::{Stop, runs};

/// The continuations of a batch, to be packed.
pub(crate) struct Reached<'a> {
    pub(crate) teacher: Direction<'a>,
    pub(crate) student: Direction<'a>,
}

/// Those of one direction.
pub(crate) struct Direction<'a> {
    entries: Entries,
    spellings: &'a SpellingTable,
    max_path: usize,
}

impl<'a> Reached<'a> {
    pub(crate) fn new<I: TokenId>(
        pair: &'a Pair,
        units: &UnitColumns<'_>,
        teacher: IndexSide<'_, I>,
        student: IndexSide<'_, I>,
        options: &PathOptions,
    ) -> Result<Self> {
        let found = on_path(pair, units, teacher.ids, student.ids, options)?;
        let Spellings { teacher, student } = pair.spellings()?;
        let max_path = options.max_path;
        Ok(Self {
            teacher: Direction { entries: found.teacher, spellings: teacher, max_path },
            student: Direction { entries: found.student, spellings: student, max_path },
        })
    }

    /// The leaves of both directions, at most one of them, whose text a unit's is.
    pub(crate) fn realized_leaves<I: TokenId>(
        &self,
        single: Option<(Side, u32)>,
        teacher: &[I],
        student: &[I],
    ) -> [i64; 2] {
        let (direction, realized) = match single {
            Some((Side::Teacher, _)) => (&self.teacher, student),
            Some((Side::Student, _)) => (&self.student, teacher),
            None => return [-1; 2],
        };
        let leaf = single.and_then(|(_, token)| {
            let realized = realized.iter().map(|id| id.index());
            direction.spellings.leaf_on_path(token, direction.max_path, realized)
        });
        match (single, leaf.map_or(-1, i64::from)) {
            (Some((Side::Teacher, _)), leaf) => [leaf, -1],
            (_, leaf) => [-1, leaf],
        }
    }
}

impl Direction<'_> {
    pub(crate) fn counts(&self, stop: &Stop) -> Result<EntryCounts> {
        let mut leaves = 0;
        for run in runs(self.entries.len()) {
            stop.check()?;
            let nodes = self.entries.node[run].iter();
            leaves += nodes.map(|&node| self.spellings.leaves_of(node)).sum::<usize>();
        }
        let cut_off = self.spellings.cut_off(self.max_path);
        Ok(EntryCounts { entries: self.entries.len(), leaves, cut_off })
    }

    /// Writes the entries in the order of the index: of its first units, then of the others.
    /// `starts` are the positions at which the units of the batch begin on the side that spells.
    pub(crate) fn pack<I>(
        &self,
        (unit_of, shared): (&[i64], usize),
        single: &mut SideWriter<'_, I>,
        spelled: &mut SideWriter<'_, I>,
        starts: &[i32],
        stop: &Stop,
    ) -> Result<()> {
        let mut next = 0;
        for block in [0..shared, shared..unit_of.len()] {
            // Both ascend, and every entry's unit is in one of the blocks.
            let mut place = block.start;
            for run in runs(self.entries.len()) {
                stop.check()?;
                for entry in run {
                    let number = i64::from(self.entries.unit[entry]);
                    while place < block.end && unit_of[place] < number {
                        place += 1;
                    }
                    if place < block.end && unit_of[place] == number {
                        let depth = i64::from(self.entries.depth[entry]);
                        single.entry_unit[next] = long(place);
                        single.entry_node[next] = i64::from(self.entries.node[entry]);
                        single.entry_depth[next] = depth;
                        let before = i64::from(starts[self.entries.unit[entry].index()]) - 1;
                        spelled.reach.read(spelled.row[place], before, depth);
                        next += 1;
                    }
                }
            }
        }
        Ok(())
    }
}
