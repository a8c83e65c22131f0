//! The two hashes of the packet path and the bit-set index.
//!
//! Words are multiplied side by side by odd numbers that follow from the seed, and their sum is mixed once (non-linear over GF(2), so
//! that ports and low address bits spread): a processor multiplies them at the same time, and the set's address is what a look-up
//! waits for. The table's seed is the node's secret, so that nobody can aim at one set; the selection seed is the cluster's, so that
//! every node builds the same choice for the same flow.

use crate::family::{Family, Side};
use crate::layout::BITS_LOG;

const A: u64 = 0x9e37_79b9_7f4a_7c15;
const B: u64 = 0xbf58_476d_1ce4_e5b9;
const C: u64 = 0x94d0_49bb_1331_11eb;

/// What the word at place `i` of a key adds to the sum; each place multiplies by another number.
#[inline(always)]
fn part(seed: u64, word: u64, i: usize) -> u64 {
    const PLACES: [u64; 6] = [
        A,
        B,
        C,
        0xd6e8_feb8_6659_fd93,
        0xa076_1d64_78bd_642f,
        0xe703_7ed1_a0b4_28db,
    ];
    (word ^ A).wrapping_mul(seed ^ PLACES[i] | 1)
}

/// Mixes a sum.
#[inline(always)]
fn mix(sum: u64) -> u64 {
    let x = (sum ^ sum >> 32).wrapping_mul(C);
    let x = (x ^ x >> 29).wrapping_mul(B);
    x ^ x >> 32
}

/// Hash of two sides and a protocol under `seed`.
#[inline(always)]
pub fn sides<F: Family>(seed: u64, src: Side<F>, dst: Side<F>, protocol: u8) -> u64 {
    let mut sum = seed ^ (protocol as u64) << 56;
    for i in 0..F::SIDE_WORDS {
        sum = sum.wrapping_add(part(seed, F::side_word(src, i), i));
        sum = sum.wrapping_add(part(seed, F::side_word(dst, i), F::SIDE_WORDS + i));
    }
    mix(sum)
}

/// Hash of one side and a protocol under `seed`, for the frontend table.
#[inline(always)]
pub fn side<F: Family>(seed: u64, side: Side<F>, protocol: u8) -> u64 {
    let mut sum = seed ^ (protocol as u64) << 56;
    for i in 0..F::SIDE_WORDS {
        sum = sum.wrapping_add(part(seed, F::side_word(side, i), i));
    }
    mix(sum)
}

/// Index of the bit that stands for an address in a bit-set. A multiplication carries upwards only, and an
/// address's last bytes, in which neighbours differ, are the upper ones of its word: they are folded down between two.
#[inline(always)]
pub fn bit<F: Family>(addr: F::Addr) -> u32 {
    let x = F::fold(addr).wrapping_mul(A);
    ((x ^ x >> 32).wrapping_mul(B) >> (64 - BITS_LOG)) as u32
}

/// Another number that follows from a hash and does not tell it by its upper bits: others see ports, and the table's hash is the node's secret.
#[inline(always)]
pub fn again(hash: u64) -> u64 {
    mix(hash ^ A)
}

/// Hash of two addresses, for what is remembered of a way; equal addresses do not cancel out. Its upper bits are the good ones.
#[inline(always)]
pub fn way<F: Family>(src: F::Addr, dst: F::Addr) -> u64 {
    let x = F::fold(src).wrapping_mul(A) ^ F::fold(dst).wrapping_mul(C);
    (x ^ x >> 32).wrapping_mul(B)
}

/// Maps the upper half of `hash` to `0..length` without division.
#[inline(always)]
pub fn scale(hash: u64, length: u32) -> u32 {
    (((hash >> 32) * length as u64) >> 32) as u32
}
