//! The tables as the packet pipeline asks for them ([`lb_common::access`]): views of [`Words`] as sets of slots and their rolls, for
//! the sweep of the real flow tables too, and [`HostTables`], which lets the pipeline run in a test on what the plan wrote.

use std::array;
use std::net::IpAddr;

use lb_common::access::{Rolls, Route, SetRef, Slots, TableFamily, Tables, WordRef};
use lb_common::family::Family;
use lb_common::flow::roll;
use lb_common::layout::{AffinityKey, AffinityValue, BACKEND_WORDS, Device, FragmentKey, SET_SLOTS};
use lb_common::verdict::Reason;

use super::address::address_of_words;
use super::{MapStore as _, MemoryStore, Row, Table, Words};

/// A table of sets of slots in shared memory.
#[derive(Clone, Copy, Debug)]
pub struct WordSlots<'a> {
    sets: Row<'a>,
    rolls: Row<'a>,
    set_words: usize,
    count: u32,
}

impl<'a> WordSlots<'a> {
    /// Views all of `words` as sets of [`SET_SLOTS`] slots of `slot_words` (at least one) each.
    pub fn new(words: &'a Words, slot_words: usize) -> Self {
        let set_words = slot_words.max(1) * SET_SLOTS;
        Self {
            sets: words.row(),
            rolls: Row::default(),
            set_words,
            count: (words.len() / set_words) as u32,
        }
    }

    /// Views `words` as such sets and, behind them, a roll of each, as flow tables are.
    pub fn with_rolls(words: &'a Words, slot_words: usize) -> Self {
        let all = Self::new(words, slot_words);
        let count = roll::sets_of(all.count);
        let set_words = count as usize * all.set_words;
        Self {
            sets: all.sets.part(0, set_words).unwrap_or_default(),
            rolls: all.sets.part(set_words, count as usize).unwrap_or_default(),
            set_words: all.set_words,
            count,
        }
    }

    /// The rolls, by set.
    #[inline]
    pub fn rolls(self) -> Row<'a> {
        self.rolls
    }

    /// The words of one slot of a family's flow table: its set's index times [`SET_SLOTS`] and its number there make its place.
    #[inline]
    pub fn slot<F: Family>(self, place: u32) -> Option<WordSet<'a>> {
        let words = self.sets.part(place as usize * F::SLOT_WORDS, F::SLOT_WORDS)?;
        Some(WordSet { words })
    }
}

impl<'a> Slots for WordSlots<'a> {
    type Set = WordSet<'a>;

    #[inline]
    fn mask(self) -> u32 {
        self.count.saturating_sub(1)
    }

    #[inline]
    fn set(self, index: u32) -> Option<WordSet<'a>> {
        let words = self.sets.part(index as usize * self.set_words, self.set_words)?;
        Some(WordSet { words })
    }
}

impl<'a> Rolls for WordSlots<'a> {
    type Roll = Word<'a>;

    #[inline]
    fn roll_at(self, index: u32) -> Option<Word<'a>> {
        self.rolls.part(index as usize, 1).map(Word)
    }
}

/// One word of a [`WordSlots`].
#[derive(Clone, Copy, Debug)]
pub struct Word<'a>(Row<'a>);

impl WordRef for Word<'_> {
    #[inline]
    fn load(self) -> u64 {
        self.0.load(0)
    }

    #[inline]
    fn cas(self, old: u64, new: u64) -> u64 {
        self.0.cas(0, old, new)
    }
}

/// One set of a [`WordSlots`], or one slot.
#[derive(Clone, Copy, Debug)]
pub struct WordSet<'a> {
    words: Row<'a>,
}

impl WordSet<'_> {
    /// Asks for the memory of a word, as [`Row::expect`] does.
    #[inline]
    pub fn expect(self, word: usize) {
        self.words.expect(word);
    }
}

impl SetRef for WordSet<'_> {
    #[inline]
    fn load(self, word: usize) -> u64 {
        self.words.load(word)
    }

    #[inline]
    fn store(self, word: usize, value: u64) {
        self.words.store(word, value);
    }

    #[inline]
    fn cas(self, word: usize, old: u64, new: u64) -> u64 {
        self.words.cas(word, old, new)
    }
}

/// What the kernel adds to the tables; a test decides it.
pub trait Surroundings {
    /// As [`Tables::now`].
    fn now(&self) -> u32;
    /// As [`Tables::route`].
    fn route<F: TableFamily>(&self, ifindex: u32, saddr: F::Addr, daddr: F::Addr, length: u16) -> Route<F::Addr>;
    /// As [`Tables::answer_token`].
    fn answer_token(&self) -> bool;
}

/// The tables of a [`MemoryStore`] with the surroundings of a test.
#[derive(Clone, Copy, Debug)]
pub struct HostTables<'a, S> {
    /// The tables.
    pub store: &'a MemoryStore,
    /// Everything else.
    pub surroundings: &'a S,
}

impl<S> HostTables<'_, S> {
    fn word(&self, table: Table, index: usize) -> u64 {
        self.store.words(table).load(index)
    }
}

impl<'a, S: Surroundings> Tables for HostTables<'a, S> {
    type Flows<F: TableFamily> = WordSlots<'a>;
    type Frontends<F: TableFamily> = WordSlots<'a>;

    fn flows<F: TableFamily>(&self) -> WordSlots<'a> {
        WordSlots::with_rolls(self.store.words(Table::flows(F::V6)), F::SLOT_WORDS)
    }

    fn frontends<F: TableFamily>(&self) -> WordSlots<'a> {
        WordSlots::new(self.store.words(Table::frontends(F::V6)), F::FRONTEND_WORDS)
    }

    fn config(&self, word: usize) -> u64 {
        self.word(Table::Config, word)
    }

    fn service(&self, id: u32) -> u64 {
        self.word(Table::Services, id as usize)
    }

    fn arena(&self, index: u32) -> u64 {
        self.word(Table::Arena, index as usize)
    }

    fn block(&self, offset: u32) -> Option<impl Fn(u32) -> u64 + Copy> {
        Some(move |word| self.arena(offset.wrapping_add(word)))
    }

    fn backend(&self, id: u32) -> Option<[u64; BACKEND_WORDS]> {
        let at = id as usize * BACKEND_WORDS;
        Some(array::from_fn(|word| self.word(Table::Backends, at + word)))
    }

    fn forward_bits(&self, word: u32) -> u64 {
        self.word(Table::ForwardBits, word as usize)
    }

    fn reply_bits(&self, word: u32) -> u64 {
        self.word(Table::ReplyBits, word as usize)
    }

    fn device(&self, ifindex: u32) -> Option<Device> {
        self.store.device(ifindex)
    }

    fn in_ranges<F: TableFamily>(&self, service: u32, addr: F::Addr) -> bool {
        let address: IpAddr = address_of_words(F::V6, F::to_words(addr));
        self.store
            .has_range(|range| range.service == service && range.range.contains(&address))
    }

    fn affinity<F: TableFamily>(&self, key: &AffinityKey) -> Option<AffinityValue> {
        self.store.affinity(F::V6, (key.client, key.service))
    }

    fn remember_affinity<F: TableFamily>(&self, key: &AffinityKey, value: &AffinityValue) {
        self.store.remember_affinity(F::V6, (key.client, key.service), *value);
    }

    fn fragment<F: TableFamily>(&self, key: &FragmentKey) -> Option<u64> {
        self.store.fragment(F::V6, key)
    }

    fn remember_fragment<F: TableFamily>(&self, key: &FragmentKey, ports: u64) {
        self.store.remember_fragment(F::V6, key, ports);
    }

    fn route<F: TableFamily>(&self, ifindex: u32, saddr: F::Addr, daddr: F::Addr, length: u16) -> Route<F::Addr> {
        self.surroundings.route::<F>(ifindex, saddr, daddr, length)
    }

    fn now(&self) -> u32 {
        self.surroundings.now()
    }

    fn answer_token(&self) -> bool {
        self.surroundings.answer_token()
    }

    fn count(&self, reason: Reason) {
        self.store.count(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rolls_stand_behind_the_sets_and_are_no_sets() {
        // Two sets of four slots of three words, and a value for their rolls.
        let words = Words::zeroed(3 * 12).unwrap();
        let (table, all) = (WordSlots::with_rolls(&words, 3), WordSlots::new(&words, 3));
        assert_eq!((table.mask(), all.mask()), (1, 2));
        assert!(table.set(1).is_some() && table.set(2).is_none());
        assert!(all.set(2).is_some() && all.set(3).is_none());
        assert_eq!(table.cas_roll(1, 0, 5), 0);
        assert_eq!(table.cas_roll(1, 0, 6), 5);
        assert_eq!(table.cas_roll(2, 0, 7), 0);
        assert_eq!([0, 1, 2].map(|index| table.roll(index)), [0, 5, 0]);
        assert_eq!(words.copy_used().iter().rposition(|word| *word == 5), Some(2 * 12 + 1));
        assert_eq!(words.copy_used().len(), 2 * 12 + 2);
        table.set(1).unwrap().store(11, 9);
        assert_eq!(words.load(23), 9);
    }
}
