//! The flow tables as user space sees them: a sweep that ages flows and tells what they still refer to, and a dump for people.
//!
//! In: the shared memory of the tables, and now. Out: freed slots, what is referred to, decoded flows. Entries are never
//! created here. Nothing is locked for packets: an entry is freed by one compare-and-swap that fails if a packet has touched it, and its slot is
//! then left on the roll. A kill at any instruction leaves behind, at the worst, half a flow, which a later sweep frees; a slot that is freed and still taken
//! on its roll, which the sweep leaves a minute later; and a count of spilled entries that is one too high. Large tables are walked
//! over by several threads, which come and go with each walk. Layout and states: [`lb_common::flow`].

mod dump;
mod sweep;
#[cfg(test)]
mod tests;
mod walk;

use std::ops::Range;

use lb_common::access::{Rolls as _, SetRef as _, Slots as _, TableFamily};
use lb_common::flow::roll::Roll;
use lb_common::flow::state::Control;
use lb_common::flow::{Key, slot, table};
use lb_common::layout::{SET_SLOTS, config};
use lb_common::slots::candidates;

pub use dump::{Flow, FlowState, dump};
pub use sweep::{CLASSES, FlowCounts, Sweeper, Swept, host_connections};

use crate::maps::{MapStore, Table, WordSet, WordSlots};

/// The flow table of a family.
fn slots<F: TableFamily>(store: &dyn MapStore) -> WordSlots<'_> {
    WordSlots::with_rolls(store.words(Table::flows(F::V6)), F::SLOT_WORDS)
}

/// A slot: its place, which is the index of its set times [`SET_SLOTS`] and its number there, and its words.
#[derive(Clone, Copy)]
struct Slot<'a> {
    place: u32,
    words: WordSet<'a>,
}

impl<'a> Slot<'a> {
    #[inline]
    fn at<F: TableFamily>(table: WordSlots<'a>, place: u32) -> Option<Self> {
        let words = table.slot::<F>(place)?;
        Some(Self { place, words })
    }

    /// The index of its set.
    fn set(self) -> u32 {
        self.place / SET_SLOTS as u32
    }

    /// Its number in the set.
    fn number(self) -> usize {
        self.place as usize % SET_SLOTS
    }

    /// Leaves it; it is the caller's to leave.
    fn leave<F: TableFamily>(self, table: WordSlots<'_>) {
        table::leave_in::<F, _>(table, self.set(), self.number() * F::SLOT_WORDS);
    }
}

/// The configuration words, for the time-outs.
fn timeouts(store: &dyn MapStore) -> [u64; config::WORDS] {
    let config = store.words(Table::Config);
    std::array::from_fn(|index| config.load(index))
}

/// The sets of a table.
fn all_sets(table: WordSlots<'_>) -> Range<u32> {
    0..table.mask() + 1
}

/// The entry that holds `key`: its slot and control word.
fn find<'a, F: TableFamily>(table: WordSlots<'a>, seed: u64, key: &Key<F>) -> Option<(Slot<'a>, Control)> {
    let hash = key.hash(seed);
    for index in candidates(hash, table.mask()) {
        let roll = Roll::from_word(table.roll(index));
        for number in (0..SET_SLOTS).filter(|number| roll.matches(hash) >> number & 1 != 0) {
            let slot = Slot::at::<F>(table, index * SET_SLOTS as u32 + number as u32)?;
            let control = Control::from_word(slot.words.load(0));
            if control.stands() && slot::holds(slot.words, 0, control.version, key) {
                return Some((slot, control));
            }
        }
        if roll.spilled() == 0 {
            break;
        }
    }
    None
}
