//! The two hashes of the packet path and the bit-set index.
//!
//! Both mix with multiplications and xor-shifts (non-linear over GF(2), so that ports and low address bits spread), after a
//! seed: the table's seed is the node's secret, so that nobody can aim at one set; the selection seed is the cluster's, so
//! that every node builds the same choice for the same flow.

use crate::family::{Family, Side};
use crate::layout::BITS_LOG;

const A: u64 = 0x9e37_79b9_7f4a_7c15;
const B: u64 = 0xbf58_476d_1ce4_e5b9;
const C: u64 = 0x94d0_49bb_1331_11eb;

/// One round: absorbs a word.
#[inline(always)]
fn absorb(state: u64, word: u64, by: u64) -> u64 {
    let x = (state ^ word).wrapping_mul(by);
    x ^ x >> 32
}

/// Hash of two sides and a protocol under `seed`.
#[inline(always)]
pub fn sides<F: Family>(seed: u64, src: Side<F>, dst: Side<F>, protocol: u8) -> u64 {
    let mut h = seed ^ (protocol as u64) << 56;
    for i in 0..F::SIDE_WORDS {
        h = absorb(h, F::side_word(src, i), A);
    }
    for i in 0..F::SIDE_WORDS {
        h = absorb(h, F::side_word(dst, i), B);
    }
    let x = h.wrapping_mul(C);
    x ^ x >> 31
}

/// Hash of one side and a protocol under `seed`, for the frontend table.
#[inline(always)]
pub fn side<F: Family>(seed: u64, side: Side<F>, protocol: u8) -> u64 {
    let mut h = seed ^ (protocol as u64) << 56;
    for i in 0..F::SIDE_WORDS {
        h = absorb(h, F::side_word(side, i), A);
    }
    let x = h.wrapping_mul(B);
    x ^ x >> 29
}

/// Index of the bit that stands for an address in a bit-set. A multiplication carries upwards only, and an
/// address's last bytes, in which neighbours differ, are the upper ones of its word: they are folded down between two.
#[inline(always)]
pub fn bit<F: Family>(addr: F::Addr) -> u32 {
    let x = absorb(0, F::fold(addr), A);
    (x.wrapping_mul(B) >> (64 - BITS_LOG)) as u32
}

/// Maps the upper half of `hash` to `0..length` without division.
#[inline(always)]
pub fn scale(hash: u64, length: u32) -> u32 {
    (((hash >> 32) * length as u64) >> 32) as u32
}
