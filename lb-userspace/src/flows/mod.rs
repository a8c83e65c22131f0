//! The flow tables as user space sees them: a sweep that ages flows and tells what they still refer to, and a dump for people.
//!
//! In: the shared memory of the tables, and now. Out: freed slots, what is referred to, decoded flows. Entries are never
//! created here. Nothing is locked: a slot is freed by one compare-and-swap that fails if a packet has touched the entry, so
//! that a kill at any instruction leaves nothing behind but, at the worst, a count of spilled entries that is one too high. Layout and states: [`lb_common::flow`].

mod dump;
mod sweep;
#[cfg(test)]
mod tests;

use lb_common::access::{SetRef as _, Slots as _, TableFamily};
use lb_common::flow::state::{Control, LIVE, REPLY_HALF};
use lb_common::flow::{Key, slot};
use lb_common::layout::SET_SLOTS;
use lb_common::slots::{candidates, probe};

pub use dump::{Flow, FlowState, dump};
pub use sweep::{CLASSES, FlowCounts, Sweeper, Swept, host_connections};

use crate::maps::{MapStore, Table, WordSet, WordSlots};

/// The flow table of a family.
fn slots<F: TableFamily>(store: &dyn MapStore) -> WordSlots<'_> {
    WordSlots::new(store.words(Table::flows(F::V6)), F::SLOT_WORDS)
}

/// A slot: the index of its set, the set, and the index of its control word there.
type Slot<'a> = (u32, WordSet<'a>, usize);

/// Sets whose control words are read together.
const TOGETHER: usize = 16;

/// Every forward half of a family's table: its slot and its control word.
///
/// Control words of several sets are read before any is looked at: a processor that guesses wrong what stands in a slot would wait for
/// its memory before it asks for the next.
fn each_forward_half<F: TableFamily>(store: &dyn MapStore) -> impl Iterator<Item = (Slot<'_>, Control)> {
    let table = slots::<F>(store);
    let slot = move |first: u32, number: usize| {
        let index = first + (number / SET_SLOTS) as u32;
        let base = number % SET_SLOTS * F::SLOT_WORDS;
        table.set(index).map(|set| (index, set, base))
    };
    (0..=table.mask()).step_by(TOGETHER).flat_map(move |first| {
        let words: [u64; TOGETHER * SET_SLOTS] =
            std::array::from_fn(|number| slot(first, number).map_or(0, |(_, set, base)| set.load(base)));
        let words = words.into_iter().enumerate();
        words.filter_map(move |(number, word)| {
            let control = Control::from_word(word);
            let is_forward = control.phase() == LIVE && control.state & REPLY_HALF == 0;
            Some((slot(first, number).filter(|_| is_forward)?, control))
        })
    })
}

/// The entry that holds `key`: its slot and control word.
fn find<'a, F: TableFamily>(table: WordSlots<'a>, seed: u64, key: &Key<F>) -> Option<(Slot<'a>, Control)> {
    let hash = key.hash(seed);
    for index in candidates(hash, table.mask()) {
        let set = table.set(index)?;
        for step in 0..SET_SLOTS {
            let base = probe(hash, step) * F::SLOT_WORDS;
            if let Some(control) = live(set, base).filter(|control| slot::holds(set, base, control.version, key)) {
                return Some(((index, set, base), control));
            }
        }
    }
    None
}

/// The control word of a slot that holds an entry.
fn live(set: WordSet<'_>, base: usize) -> Option<Control> {
    let control = Control::from_word(set.load(base));
    (control.phase() == LIVE).then_some(control)
}
