//! The roll of a set of the flow table: one word that tells which slots are taken, a tag of the key in each, and how many entries of
//! the set stand in their second set.
//!
//! ```text
//! version 16 | spilled 4 | turns 4 x 2 | taken 4 | tags 4 x 8
//! ```
//! Rolls stand beside the sets, close together: 8 bytes tell that a key is nowhere in 256 of sets, or 512 for IPv6. Whoever enters a
//! key takes a slot here, by one compare-and-swap, and is alone with the slot until it leaves it here. The version rises with each slot that
//! is taken; the slot's words carry it. A slot's own turn rises as well, whatever becomes of the others. Protocol: [`crate::flow::table`].

use crate::layout::{SET_SLOTS, VERSION_MASK, VERSION_SHIFT};

/// Bits of a tag.
const TAG_BITS: u32 = 8;
/// Where the bits of the slots that are taken begin.
const TAKEN_SHIFT: u32 = TAG_BITS * SET_SLOTS as u32;
/// Where the turns of the slots begin.
const TURN_SHIFT: u32 = TAKEN_SHIFT + SET_SLOTS as u32;
/// Bits of a turn.
const TURN_BITS: u32 = 2;
/// A bit a slot.
const SLOTS_MASK: u32 = (1 << SET_SLOTS) - 1;
/// Mask of a turn.
const TURN_MASK: u64 = (1 << TURN_BITS) - 1;
/// Where the count of spilled entries begins.
const SPILLED_SHIFT: u32 = 44;
/// Most spilled entries that can be counted.
const MOST_SPILLED: u64 = 15;
/// The lowest bit set of each number of four bits, four bits each; four where there is none.
const LOWEST: u64 = 0x0102_0103_0102_0104;

/// Values of the map of a table of so many sets (a power of two from two on), each of `set_words` words: the sets, and behind them their rolls.
pub const fn values(sets: u32, set_words: usize) -> u32 {
    sets + sets.div_ceil(set_words as u32)
}

/// Sets of a table whose map has so many values.
pub const fn sets_of(values: u32) -> u32 {
    if values == 0 { 0 } else { 1 << values.ilog2() }
}

/// A roll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roll(u64);

impl Roll {
    /// Reads a word.
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// The word.
    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// What a slot shows of the hash of its key: bits that choose no first set.
    #[inline(always)]
    pub const fn tag(hash: u64) -> u8 {
        (hash >> 52) as u8
    }

    /// Slots that are taken, a bit each.
    #[inline(always)]
    pub const fn taken(self) -> u32 {
        (self.0 >> TAKEN_SHIFT) as u32 & SLOTS_MASK
    }

    /// Slots that are taken by keys of the same tag, a bit each: where a key of this hash may stand.
    #[inline(always)]
    pub const fn matches(self, hash: u64) -> u32 {
        let different = self.0 as u32 ^ (Self::tag(hash) as u32 * 0x0101_0101);
        // The top bit of each byte that is zero, and perhaps of the byte above such a one.
        let zero = different.wrapping_sub(0x0101_0101) & !different & 0x8080_8080;
        let bits = zero >> 7 | zero >> 14 | zero >> 21 | zero >> 28;
        bits & self.taken()
    }

    /// False where no key of this hash stands, nor is about to, in this set, which is its first, nor in its second.
    #[inline(always)]
    pub const fn may_tell_of(self, hash: u64) -> bool {
        self.matches(hash) != 0 || self.spilled() != 0
    }

    /// The first slot in the probe order of `hash` that is not taken; [`SET_SLOTS`] where all are.
    #[inline(always)]
    pub const fn vacant(self, hash: u64) -> usize {
        let vacant = !self.taken() & SLOTS_MASK;
        if vacant == 0 {
            return SET_SLOTS;
        }
        let start = (hash >> 60) as u32 & (SET_SLOTS as u32 - 1);
        let in_order = (vacant | vacant << SET_SLOTS) >> start & SLOTS_MASK;
        (start as usize + (LOWEST >> (in_order * 4)) as usize) & (SET_SLOTS - 1)
    }

    /// The roll when a slot is taken by a key of this hash.
    #[inline(always)]
    #[must_use]
    pub const fn take(self, slot: usize, hash: u64) -> Self {
        let at = slot as u32 & (SET_SLOTS as u32 - 1);
        let (tag_at, turn_at) = (at * TAG_BITS, TURN_SHIFT + at * TURN_BITS);
        let turn = ((self.0 >> turn_at) + 1) & TURN_MASK;
        let others = self.0 & !(0xff << tag_at) & !(TURN_MASK << turn_at);
        let tag = (Self::tag(hash) as u64) << tag_at;
        Self(others | tag | turn << turn_at | 1 << (TAKEN_SHIFT + at)).risen()
    }

    /// What the roll tells of one slot alone: whether it is taken, its tag and its turn.
    #[inline(always)]
    #[must_use]
    pub const fn of_slot(self, slot: usize) -> u64 {
        let at = slot as u32 & (SET_SLOTS as u32 - 1);
        self.0 & (0xff << (at * TAG_BITS) | TURN_MASK << (TURN_SHIFT + at * TURN_BITS) | 1 << (TAKEN_SHIFT + at))
    }

    /// The roll when a slot is left.
    #[inline(always)]
    #[must_use]
    pub const fn leave(self, slot: usize) -> Self {
        let at = slot as u32 & (SET_SLOTS as u32 - 1);
        Self(self.0 & !(0xff << (at * TAG_BITS)) & !(1 << (TAKEN_SHIFT + at)))
    }

    /// The same under the next version, for all who have read it to read it again.
    #[inline(always)]
    #[must_use]
    pub const fn risen(self) -> Self {
        Self(self.0.wrapping_add(1 << VERSION_SHIFT))
    }

    /// The version, in place (bits 48..64).
    #[inline(always)]
    pub const fn version(self) -> u64 {
        self.0 & VERSION_MASK
    }

    /// How many entries stand in their second set because this one was full.
    #[inline(always)]
    pub const fn spilled(self) -> u64 {
        self.0 >> SPILLED_SHIFT & MOST_SPILLED
    }

    /// The roll with one spilled entry more, or one less; as it is where that cannot be counted.
    #[inline(always)]
    #[must_use]
    pub const fn recounted(self, more: bool) -> Self {
        let spilled = self.spilled();
        if spilled == if more { MOST_SPILLED } else { 0 } {
            return self;
        }
        Self(if more {
            self.0 + (1 << SPILLED_SHIFT)
        } else {
            self.0 - (1 << SPILLED_SHIFT)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::probe;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_roll_tells_what_was_taken_and_left(hashes: [u64; SET_SLOTS], left in 0..SET_SLOTS, word: u64) {
            let mut roll = Roll::from_word(word & !(0xf << TAKEN_SHIFT));
            for (number, hash) in hashes.into_iter().enumerate() {
                let slot = roll.vacant(hash);
                prop_assert!((0..SET_SLOTS).map(|step| probe(hash, step)).find(|slot| roll.taken() >> slot & 1 == 0) == Some(slot));
                let before = roll;
                roll = roll.take(slot, hash);
                prop_assert_eq!(roll.taken(), before.taken() | 1 << slot);
                prop_assert_eq!(roll.taken().count_ones() as usize, number + 1);
                prop_assert!(roll.matches(hash) >> slot & 1 == 1);
                prop_assert_eq!(roll.version(), before.version().wrapping_add(1 << VERSION_SHIFT));
                prop_assert_eq!(roll.spilled(), before.spilled());
                for other in 0..SET_SLOTS {
                    prop_assert_eq!(roll.of_slot(other) == before.of_slot(other), other != slot);
                }
            }
            prop_assert_eq!(roll.vacant(hashes[0]), SET_SLOTS);
            let gone = roll.leave(left);
            prop_assert_eq!(gone.taken(), 0xf & !(1 << left));
            prop_assert_eq!((gone.version(), gone.spilled()), (roll.version(), roll.spilled()));
            prop_assert_ne!(gone.take(left, hashes[left]).of_slot(left), roll.of_slot(left), "the same key again is another turn");
        }

        #[test]
        fn no_key_is_missed_and_few_are_taken_for_others(mine: u64, others: [u64; SET_SLOTS]) {
            let mut roll = Roll::from_word(0);
            for other in others {
                roll = roll.take(roll.vacant(other), other);
            }
            for slot in 0..SET_SLOTS {
                let same = roll.word() >> (slot * 8) & 0xff == u64::from(Roll::tag(mine));
                prop_assert!(!same || roll.matches(mine) >> slot & 1 == 1);
            }
            prop_assert!(roll.matches(mine) == 0 || others.iter().any(|other| Roll::tag(*other) == Roll::tag(mine)));
        }
    }

    #[test]
    fn what_is_spilled_is_counted_up_to_fifteen() {
        let mut roll = Roll::from_word(0xabcd << VERSION_SHIFT).take(2, 7);
        assert_eq!(roll.recounted(false), roll);
        for count in 1..=15 {
            roll = roll.recounted(true);
            assert_eq!(roll.spilled(), count);
        }
        assert_eq!(roll.recounted(true), roll);
        assert_eq!((roll.taken(), roll.recounted(false).spilled()), (4, 14));
    }
}
