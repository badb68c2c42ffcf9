//! The sections of one side of an index, as they are written unit by unit.

use std::ops::Range;

use crate::ids::{Side, TokenId};
use crate::index::IndexSide;
use crate::reach::Reach;
use crate::sections::Sections;

/// The sections of one side, as they are written.
pub(crate) struct SideWriter<'a, I> {
    side: IndexSide<'a, I>,
    /// Of the row of the batch that is being written.
    row_start: i64,
    row_ids: &'a [I],
    pub(crate) row: &'a mut [i64],
    first_id: &'a mut [i64],
    offsets: &'a mut [i64],
    step_unit: &'a mut [i64],
    step_row: &'a mut [i64],
    step_id: &'a mut [i64],
    /// Of the direction whose single tokens are this side's.
    pub(crate) entry_unit: &'a mut [i64],
    pub(crate) entry_node: &'a mut [i64],
    pub(crate) entry_depth: &'a mut [i64],
    pub(crate) realized_leaf: &'a mut [i64],
    next_step: usize,
    pub(crate) reach: Reach,
}

impl<'a, I: TokenId> SideWriter<'a, I> {
    pub(crate) fn new(sections: &mut Sections<'a>, name: Side, side: IndexSide<'a, I>) -> Self {
        let mut take = |what: &str| sections.take(&format!("{name}_{what}"));
        Self {
            side,
            row_start: 0,
            row_ids: &[],
            row: take("row"),
            first_id: take("first_id"),
            offsets: take("offsets"),
            step_unit: take("step_unit"),
            step_row: take("step_row"),
            step_id: take("step_id"),
            entry_unit: take("entry_unit"),
            entry_node: take("entry_node"),
            entry_depth: take("entry_depth"),
            realized_leaf: sections.take(&format!("realized_{name}_leaf")),
            next_step: 0,
            reach: Reach::NOTHING,
        }
    }

    /// Goes on with a row of the batch; returns how many tokens it has.
    pub(crate) fn begin_row(&mut self, row: usize) -> usize {
        self.row_start = self.side.row_starts[row];
        self.row_ids = self.side.ids.row(row);
        self.row_ids.len()
    }

    /// Writes a unit at its place, and its steps if it is a MULTI unit.
    #[inline]
    pub(crate) fn push(
        &mut self,
        positions: Range<usize>,
        place: usize,
        multi: Option<usize>,
    ) -> &'a [I] {
        let before = long(positions.start) - 1;
        let prefix = self.row_start.saturating_add(before);
        let ids = &self.row_ids[positions];
        self.row[place] = prefix;
        if let (Some(first), Some(id)) = (self.first_id.get_mut(place), ids.first()) {
            *first = id.value();
        }
        let mut last = 0;
        if let Some(multi) = multi {
            for (step, id) in (0..).zip(ids) {
                self.step_unit[self.next_step] = long(multi);
                self.step_row[self.next_step] = prefix.saturating_add(step);
                self.step_id[self.next_step] = id.value();
                self.next_step += 1;
            }
            self.offsets[multi + 1] = long(self.next_step);
            last = long(ids.len()) - 1;
        }
        self.reach.read(prefix, before, last);
        ids
    }
}

/// A count as an entry of the buffer.
#[inline]
pub(crate) fn long(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
