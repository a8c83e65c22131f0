//! Where a key may stand in a table of sets: two candidate sets, four slots each, probed from a slot that the hash picks.

use crate::layout::SET_SLOTS;

/// Words of a line of memory, as processors fetch it.
pub const LINE_WORDS: usize = 8;

/// The two candidate sets of `hash` in a table of `mask` + 1 sets; they differ unless the table has one set.
#[inline(always)]
pub const fn candidates(hash: u64, mask: u32) -> [u32; 2] {
    let a = home(hash, mask);
    let b = (hash >> 32) as u32 & mask;
    [a, if a == b { b ^ (1 & mask) } else { b }]
}

/// The first of the two: where a key stands unless that set was full.
#[inline(always)]
pub const fn home(hash: u64, mask: u32) -> u32 {
    hash as u32 & mask
}

/// The slot at step `i` (< 4) of the probe order of `hash`.
#[inline(always)]
pub const fn probe(hash: u64, i: usize) -> usize {
    ((hash >> 60) as usize + i) & (SET_SLOTS - 1)
}

/// Hides where a reference came from, so that a compiler does not compute what a loop's passes share before the loop: in a
/// kernel program those values would all stand on a stack of 512 bytes.
#[inline(always)]
pub fn afresh<T>(reference: &T) -> &T {
    core::hint::black_box(reference)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn candidates_are_two_sets_and_probes_cover_each_slot_once(hash: u64, bits in 1u32..20) {
            let mask = (1u32 << bits) - 1;
            let [a, b] = candidates(hash, mask);
            prop_assert!(a <= mask && b <= mask && a != b);
            let mut seen = [false; SET_SLOTS];
            for i in 0..SET_SLOTS { seen[probe(hash, i)] = true; }
            prop_assert!(seen.iter().all(|s| *s));
        }
    }
}
