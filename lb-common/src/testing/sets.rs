//! Tables of sets in memory, with their rolls behind them.
//!
//! Words behave as those of [`HostTables`]; each set and each roll that is reached for is counted as a look-up.

use std::sync::atomic::{AtomicU64, Ordering};

use super::tables::{HostTables, Lookup, load, store};
use crate::access::{Rolls, SetRef, Slots, WordRef};

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

impl<'a> Rolls for HostSlots<'a> {
    type Roll = HostWord<'a>;

    // Rolls stand behind all sets.
    fn roll_at(self, index: u32) -> Option<HostWord<'a>> {
        self.tables.look(Lookup::Rolls);
        let at = (self.mask as usize + 1) * self.set_words + index as usize;
        self.words.get(at).map(HostWord)
    }
}

/// One word.
#[derive(Clone, Copy, Debug)]
pub struct HostWord<'a>(&'a AtomicU64);

impl WordRef for HostWord<'_> {
    fn load(self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn cas(self, old: u64, new: u64) -> u64 {
        self.0
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::Relaxed)
            .unwrap_or_else(|found| found)
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
        self.words.get(word).map_or(0, |word| HostWord(word).cas(old, new))
    }
}
