//! Tables of sets in memory, with their rolls behind them.
//!
//! Words behave as those of [`HostTables`]; each set and each roll that is reached for is counted as a look-up.

use std::sync::atomic::{AtomicU64, Ordering};

use super::tables::{HostTables, Lookup, load, store};
use crate::access::{Rolls, SetRef, Slots};

/// A table of sets.
#[derive(Clone, Copy, Debug)]
pub struct HostSlots<'a> {
    pub(super) words: &'a [AtomicU64],
    pub(super) set_words: usize,
    pub(super) mask: u32,
    pub(super) tables: &'a HostTables,
    pub(super) kind: Lookup,
}

impl<'a> Slots for HostSlots<'a> {
    type Set = HostSet<'a>;

    fn mask(self) -> u32 {
        self.mask
    }

    fn set(self, index: u32) -> Option<HostSet<'a>> {
        let start = index as usize * self.set_words;
        self.tables.look(self.kind);
        Some(HostSet {
            words: self.words.get(start..start + self.set_words)?,
        })
    }
}

impl HostSlots<'_> {
    /// Rolls stand behind all sets.
    fn roll_at(self, index: u32) -> usize {
        (self.mask as usize + 1) * self.set_words + index as usize
    }
}

impl Rolls for HostSlots<'_> {
    fn roll(self, index: u32) -> u64 {
        self.tables.look(Lookup::Rolls);
        load(self.words, self.roll_at(index))
    }

    fn cas_roll(self, index: u32, old: u64, new: u64) -> u64 {
        HostSet { words: self.words }.cas(self.roll_at(index), old, new)
    }
}

/// One set.
#[derive(Clone, Copy, Debug)]
pub struct HostSet<'a> {
    words: &'a [AtomicU64],
}

impl SetRef for HostSet<'_> {
    fn load(self, word: usize) -> u64 {
        load(self.words, word)
    }

    fn store(self, word: usize, value: u64) {
        store(self.words, word, value);
    }

    fn cas(self, word: usize, old: u64, new: u64) -> u64 {
        self.words.get(word).map_or(0, |word| {
            word.compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed)
                .unwrap_or_else(|found| found)
        })
    }
}
