//! Room in the arena, in units of one cache line (eight words): the smallest hole that fits, of equal ones the first.
//!
//! A block that is given back can still be read by packets that are under way; it waits for a grace period before it
//! becomes room again. Time is the planner's count of cycles.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use lb_common::layout::BLOCK_HEADER_WORDS;

/// Words of a unit; a block starts at a multiple of it.
pub(super) const UNIT: u32 = BLOCK_HEADER_WORDS;

/// A piece of the arena, in units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Block {
    /// The first unit.
    pub(super) start: u32,
    /// Number of units.
    pub(super) units: u32,
}

impl Block {
    /// Units that a block with a header and `ids` backend ids takes.
    pub(super) fn units_for(ids: usize) -> u32 {
        BLOCK_HEADER_WORDS.saturating_add(ids.div_ceil(2) as u32).div_ceil(UNIT)
    }

    /// Index of the first word.
    pub(super) fn offset(self) -> u32 {
        self.start * UNIT
    }
}

/// The allocator.
#[derive(Clone, Debug)]
pub(super) struct Arena {
    /// Holes: start and units, never adjacent to each other.
    holes: BTreeMap<u32, u32>,
    /// The same as (units, start).
    by_size: BTreeSet<(u32, u32)>,
    waiting: VecDeque<(u64, Block)>,
    waiting_units: u32,
}

impl Arena {
    /// An arena of `words` words of which `live` (sorted, apart) are in use. What lies between them, and up to `high` words,
    /// may have been in use a moment ago and waits like a block given back at `epoch`.
    pub(super) fn around(words: u32, live: &[Block], high: u32, epoch: u64) -> Self {
        let mut arena = Self {
            holes: BTreeMap::new(),
            by_size: BTreeSet::new(),
            waiting: VecDeque::new(),
            waiting_units: 0,
        };
        let mut end = 0;
        for block in live {
            arena.give_back(
                Block {
                    start: end,
                    units: block.start - end,
                },
                epoch,
            );
            end = block.start + block.units;
        }
        let high = high.div_ceil(UNIT).max(end);
        arena.give_back(
            Block {
                start: end,
                units: high - end,
            },
            epoch,
        );
        arena.add_hole(Block {
            start: high,
            units: (words / UNIT).saturating_sub(high),
        });
        arena
    }

    /// Whether [`Self::take`] would succeed.
    pub(super) fn has_room(&self, units: u32) -> bool {
        self.by_size.last().is_some_and(|(largest, _)| *largest >= units)
    }

    /// Whether waiting blocks could make room for `units`.
    pub(super) fn could_have_room(&self, units: u32) -> bool {
        self.waiting_units > 0 && self.waiting_units + self.holes.values().sum::<u32>() >= units
    }

    /// True when blocks wait for a grace period.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Takes room.
    pub(super) fn take(&mut self, units: u32) -> Option<Block> {
        let (size, start) = *self.by_size.range((units, 0)..).next()?;
        self.remove_hole(start, size);
        self.add_hole(Block {
            start: start + units,
            units: size - units,
        });
        Some(Block { start, units })
    }

    /// Gives a block back that packets may still read.
    pub(super) fn give_back(&mut self, block: Block, epoch: u64) {
        if block.units > 0 {
            self.waiting.push_back((epoch, block));
            self.waiting_units += block.units;
        }
    }

    /// Makes room of all blocks given back up to `epoch`.
    pub(super) fn grace_passed(&mut self, epoch: u64) {
        while let Some((given_back, block)) = self.waiting.front().copied()
            && given_back <= epoch
        {
            self.waiting.pop_front();
            self.waiting_units -= block.units;
            self.add_hole(block);
        }
    }

    /// Units in use or waiting.
    pub(super) fn used_units(&self, words: u32) -> u32 {
        words / UNIT - self.holes.values().sum::<u32>()
    }

    fn add_hole(&mut self, block: Block) {
        let Block { mut start, mut units } = block;
        if units == 0 {
            return;
        }
        if let Some((before, size)) = self
            .holes
            .range(..start)
            .next_back()
            .map(|(before, size)| (*before, *size))
            && before + size == start
        {
            self.remove_hole(before, size);
            (start, units) = (before, units + size);
        }
        if let Some(size) = self.holes.get(&(start + units)).copied() {
            self.remove_hole(start + units, size);
            units += size;
        }
        self.holes.insert(start, units);
        self.by_size.insert((units, start));
    }

    fn remove_hole(&mut self, start: u32, units: u32) {
        self.holes.remove(&start);
        self.by_size.remove(&(units, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_block_given_back_waits_for_its_grace_period() {
        let mut arena = Arena::around(4 * UNIT, &[], 0, 0);
        let all = arena.take(4).unwrap();
        assert_eq!(arena.take(1), None);
        arena.give_back(all, 5);
        arena.grace_passed(4);
        assert!(!arena.has_room(1) && arena.could_have_room(4) && !arena.could_have_room(5));
        arena.grace_passed(5);
        assert_eq!(arena.take(4), Some(all));
    }

    #[test]
    fn a_restarted_arena_keeps_off_what_stands_and_what_may_be_read() {
        let live = [Block { start: 1, units: 2 }, Block { start: 5, units: 1 }];
        let mut arena = Arena::around(10 * UNIT, &live, 7 * UNIT - 3, 1);
        assert_eq!(arena.take(1), Some(Block { start: 7, units: 1 }));
        arena.grace_passed(1);
        assert_eq!(
            arena.take(2),
            Some(Block { start: 3, units: 2 }),
            "2 is the smallest hole that fits"
        );
        assert_eq!(arena.used_units(10 * UNIT), 2 + 1 + 2 + 1);
    }

    #[test]
    fn units_hold_header_and_ids() {
        assert_eq!(
            [0, 1, 2, 3, 16, 17, 5000].map(Block::units_for),
            [1, 2, 2, 2, 2, 3, 314]
        );
    }

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_room_comes_back(requests in prop::collection::vec((1u32..6, any::<bool>()), 1..80)) {
            let mut arena = Arena::around(64 * UNIT, &[], 0, 0);
            let mut held: Vec<Block> = Vec::new();
            for (epoch, (units, free)) in requests.into_iter().enumerate() {
                if free && !held.is_empty() {
                    arena.give_back(held.swap_remove(units as usize % held.len()), epoch as u64);
                    arena.grace_passed(epoch as u64);
                }
                if let Some(block) = arena.take(units) {
                    prop_assert!(held.iter().all(|other| block.start >= other.start + other.units || other.start >= block.start + block.units));
                    held.push(block);
                }
            }
            for block in held {
                arena.give_back(block, u64::MAX);
            }
            arena.grace_passed(u64::MAX);
            prop_assert_eq!(arena.take(64), Some(Block { start: 0, units: 64 }));
        }
    }
}
