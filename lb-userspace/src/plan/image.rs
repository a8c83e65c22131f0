//! The exact image of what is published, word for word, and the draft of what is to change in it.
//!
//! Whatever is written here changes the image at once and becomes an operation of its [`Phase`]. Two rules keep the two the
//! same: the plan works in the order of the phases wherever it writes one word twice, and a word that has its value already
//! makes no operation.

use lb_common::layout::{BACKEND_WORDS, BackendControl, config};

use crate::maps::{MapOp, OpList, Table};

/// Stages of a cycle, in order. Up to [`Phase::Addresses`] is the way in: each stage only refers to what stands before it.
/// From [`Phase::AddressesGone`] on is the way out, the reverse. Between any two operations forwarding is that of the old
/// state or of the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Config,
    Devices,
    Names,
    Ranges,
    ReplyBits,
    Backends,
    Blocks,
    Services,
    ForwardBits,
    Frontends,
    Addresses,
    AddressesGone,
    FrontendsGone,
    ServicesGone,
    BackendsGone,
    AffinityGone,
    RangesGone,
    DevicesGone,
    BackendsFreed,
    BitsGone,
    NamesGone,
}

impl Phase {
    const COUNT: usize = Self::NamesGone as usize + 1;
}

/// Image and draft.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    tables: [Vec<u64>; Table::PUBLISHED.len()],
    lengths: [u32; Table::PUBLISHED.len()],
    phases: [OpList; Phase::COUNT],
    /// Valid slots of the frontend tables by family; kept by [`super::slot`].
    pub(super) valid_slots: [u64; 2],
}

impl Draft {
    /// The image of tables that hold `tables` (cut after their last word that is not zero) of `lengths` words.
    pub(super) fn new(tables: [Vec<u64>; Table::PUBLISHED.len()], lengths: [u32; Table::PUBLISHED.len()]) -> Self {
        Self {
            tables,
            lengths,
            phases: Default::default(),
            valid_slots: [0; 2],
        }
    }

    /// Words of a table.
    pub(super) fn length(&self, table: Table) -> u32 {
        self.lengths[table as usize]
    }

    /// The words of a table that may differ from zero.
    pub(super) fn used(&self, table: Table) -> &[u64] {
        &self.tables[table as usize]
    }

    /// A word.
    #[inline]
    pub(super) fn word(&self, table: Table, index: u32) -> u64 {
        self.tables[table as usize].get(index as usize).copied().unwrap_or(0)
    }

    /// The control word of a backend.
    #[inline]
    pub(super) fn control(&self, id: u32) -> BackendControl {
        BackendControl::from_word(self.word(Table::Backends, id * BACKEND_WORDS as u32))
    }

    /// The seed of the tables; 0 before it is set.
    pub(super) fn seed(&self) -> u64 {
        self.word(Table::Config, config::TABLE_SEED as u32)
    }

    /// Stores words, in ascending order, unless they stand there already.
    pub(super) fn write(&mut self, phase: Phase, table: Table, index: u32, words: &[u64]) {
        let memory = &mut self.tables[table as usize];
        let (start, end) = (index as usize, index as usize + words.len());
        if memory.len() < end {
            memory.resize(end, 0);
        }
        if memory[start..end] != *words {
            memory[start..end].copy_from_slice(words);
            self.phases[phase as usize].write(table, index, words);
        }
    }

    /// Changes a word of the image alone; [`Self::emit`] makes the operation.
    pub(super) fn change(&mut self, table: Table, index: u32, word: u64) {
        let memory = &mut self.tables[table as usize];
        let place = index as usize;
        if memory.len() <= place {
            memory.resize(place + 1, 0);
        }
        memory[place] = word;
    }

    /// Stores words that the image holds already.
    pub(super) fn emit(&mut self, phase: Phase, table: Table, index: u32, words: &[u64]) {
        self.phases[phase as usize].write(table, index, words);
    }

    /// Adds an operation that stores no words.
    pub(super) fn push(&mut self, phase: Phase, op: MapOp) {
        self.phases[phase as usize].push(op);
    }

    /// The draft, stage by stage; begins a new one.
    pub(super) fn take(&mut self) -> Vec<OpList> {
        std::mem::take(&mut self.phases)
            .into_iter()
            .filter(|phase| !phase.is_empty())
            .collect()
    }

    /// Bytes of heap that the image takes.
    pub(super) fn heap_bytes(&self) -> usize {
        self.tables
            .iter()
            .map(|table| table.capacity() * size_of::<u64>())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_stands_makes_no_operation() {
        let mut draft = Draft::new(Default::default(), [100; Table::PUBLISHED.len()]);
        draft.write(Phase::Services, Table::Services, 5, &[9]);
        draft.write(Phase::Services, Table::Services, 5, &[9]);
        draft.write(Phase::Blocks, Table::Arena, 0, &[0]);
        assert_eq!(draft.word(Table::Services, 5), 9);
        let phases = draft.take();
        assert_eq!(phases.len(), 1);
        assert_eq!(phases[0].len(), 1);
        assert!(draft.take().is_empty());
    }
}
