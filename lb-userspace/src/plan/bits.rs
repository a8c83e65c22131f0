//! The two bit-sets that tell packets whether a look-up is worth its cost: how many users each bit has, and when it may go.
//!
//! A bit is set before its first user is published. When the last one is gone, flows may still need it: it goes only after a
//! sweep, begun a grace period later, has found no flow with an address of that bit.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use lb_common::family::{V4, V6};
use lb_common::hash;

use super::image::{Draft, Phase};
use crate::maps::{BitSet, Table, v4_word, v6_words};

/// Words of one operation that have new bits are no further apart; those in between are written as they are.
const APART: u32 = 8;

/// The bit of an address.
pub(super) fn bit_of(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => hash::bit::<V4>(v4_word(address)),
        IpAddr::V6(address) => hash::bit::<V6>(v6_words(address)),
    }
}

/// One bit-set.
#[derive(Clone, Debug)]
pub(super) struct AddressBits {
    table: Table,
    phase: Phase,
    /// Number of users of each bit that has one.
    users: HashMap<u32, u32>,
    /// Bits without users, and when they lost the last one.
    waiting: BTreeMap<u32, u64>,
    /// Bits that no flow needs any more.
    unused: BTreeSet<u32>,
    /// Words with new bits.
    grown: BTreeSet<u32>,
}

impl AddressBits {
    /// The bit-set of a table, without users; they come by [`Self::adopt`].
    pub(super) fn new(table: Table, phase: Phase) -> Self {
        Self {
            table,
            phase,
            users: HashMap::new(),
            waiting: BTreeMap::new(),
            unused: BTreeSet::new(),
            grown: BTreeSet::new(),
        }
    }

    /// Counts a user that was found published.
    pub(super) fn adopt(&mut self, bit: u32) {
        *self.users.entry(bit).or_default() += 1;
    }

    /// After all users are adopted: sets what is missing; what is left over waits as if it had lost its user at `epoch`.
    pub(super) fn settle(&mut self, draft: &mut Draft, epoch: u64) {
        for bit in self.users.keys().copied().collect::<Vec<_>>() {
            self.set(draft, bit);
        }
        for index in 0..draft.length(self.table) {
            let mut word = draft.word(self.table, index);
            while word != 0 {
                let bit = index * 64 + word.trailing_zeros();
                word &= word - 1;
                if !self.users.contains_key(&bit) {
                    self.waiting.entry(bit).or_insert(epoch);
                }
            }
        }
    }

    /// Adds a user.
    pub(super) fn add(&mut self, draft: &mut Draft, bit: u32) {
        let users = self.users.entry(bit).or_default();
        *users += 1;
        if *users == 1 {
            self.waiting.remove(&bit);
            self.unused.remove(&bit);
            self.set(draft, bit);
        }
    }

    /// Takes a user away.
    pub(super) fn remove(&mut self, bit: u32, epoch: u64) {
        if let Entry::Occupied(mut users) = self.users.entry(bit) {
            *users.get_mut() -= 1;
            if *users.get() == 0 {
                users.remove();
                self.waiting.insert(bit, epoch);
            }
        }
    }

    /// After a sweep: bits that lost their last user up to `epoch` and that no flow has are unused.
    pub(super) fn swept(&mut self, epoch: u64, referred: &BitSet) {
        let unused = &mut self.unused;
        self.waiting.retain(|bit, since| {
            let free = *since <= epoch && !referred.contains(*bit);
            if free {
                unused.insert(*bit);
            }
            !free
        });
    }

    /// True when [`Self::release`] has something to do.
    pub(super) fn has_unused(&self) -> bool {
        !self.unused.is_empty()
    }

    /// True when a bit waits for a sweep.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// True when a bit lost its last user after `epoch`.
    pub(super) fn is_waiting_since(&self, epoch: u64) -> bool {
        self.waiting.values().any(|since| *since > epoch)
    }

    /// Writes the words with new bits, those that lie near each other by one operation, then clears the unused bits; at the end of a cycle.
    pub(super) fn release(&mut self, draft: &mut Draft) {
        let grown: Vec<u32> = std::mem::take(&mut self.grown).into_iter().collect();
        for run in grown.chunk_by(|one, next| next - one <= APART) {
            let (first, last) = (run[0], run[run.len() - 1]);
            let words: Vec<u64> = (first..=last).map(|index| draft.word(self.table, index)).collect();
            draft.emit(self.phase, self.table, first, &words);
        }
        for bit in std::mem::take(&mut self.unused) {
            let word = draft.word(self.table, bit / 64) & !(1 << (bit % 64));
            draft.write(Phase::BitsGone, self.table, bit / 64, &[word]);
        }
    }

    /// Bytes of heap that the counts take, near enough.
    pub(super) fn heap_bytes(&self) -> usize {
        self.users.capacity() * (size_of::<(u32, u32)>() + 1)
    }

    fn is_set(&self, draft: &Draft, bit: u32) -> bool {
        draft.word(self.table, bit / 64) >> (bit % 64) & 1 != 0
    }

    fn set(&mut self, draft: &mut Draft, bit: u32) {
        if !self.is_set(draft, bit) {
            draft.change(self.table, bit / 64, draft.word(self.table, bit / 64) | 1 << (bit % 64));
            self.grown.insert(bit / 64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> (Draft, AddressBits) {
        let draft = Draft::new(Default::default(), [1024; Table::PUBLISHED.len()]);
        let bits = AddressBits::new(Table::ForwardBits, Phase::ForwardBits);
        (draft, bits)
    }

    #[test]
    fn a_bit_goes_when_no_user_and_no_flow_has_it() {
        let (mut draft, mut bits) = empty();
        bits.add(&mut draft, 70);
        bits.add(&mut draft, 70);
        bits.remove(70, 1);
        bits.swept(9, &BitSet::default());
        assert!(!bits.has_unused(), "one user is left");
        bits.remove(70, 2);
        bits.swept(1, &BitSet::default());
        assert!(!bits.has_unused(), "the sweep began too early");
        let mut referred = BitSet::with_room(100);
        referred.insert(70);
        bits.swept(2, &referred);
        assert!(!bits.has_unused(), "a flow has it");
        bits.swept(2, &BitSet::default());
        bits.release(&mut draft);
        assert_eq!(draft.word(Table::ForwardBits, 1), 0);
    }

    #[test]
    fn a_bit_that_is_used_again_stays() {
        let (mut draft, mut bits) = empty();
        bits.add(&mut draft, 3);
        bits.remove(3, 1);
        bits.swept(1, &BitSet::default());
        bits.add(&mut draft, 3);
        bits.release(&mut draft);
        assert_eq!(draft.word(Table::ForwardBits, 0), 8);
    }

    #[test]
    fn a_restart_sets_what_is_missing_and_lets_the_rest_wait() {
        let mut tables: [Vec<u64>; Table::PUBLISHED.len()] = Default::default();
        tables[Table::ForwardBits as usize] = vec![0b101];
        let mut draft = Draft::new(tables, [1024; Table::PUBLISHED.len()]);
        let mut bits = AddressBits::new(Table::ForwardBits, Phase::ForwardBits);
        bits.adopt(1);
        bits.adopt(2);
        bits.settle(&mut draft, 4);
        assert_eq!(draft.word(Table::ForwardBits, 0), 0b111);
        bits.swept(4, &BitSet::default());
        bits.release(&mut draft);
        assert_eq!(draft.word(Table::ForwardBits, 0), 0b110);
    }
}
