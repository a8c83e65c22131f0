//! The frontend table as packets read it: {address, port, protocol} -> service port.
//!
//! Layout: [`crate::layout`]. User space is the only writer. A slot is consistent when all its words carry the same version;
//! one seen changing counts as no match and is read again by the next packet (a new flow's first packet is retransmitted).

use crate::access::{SetRef, Slots};
use crate::family::{Family, PAYLOAD_MASK, Side};
use crate::hash;
use crate::layout::{FRONTEND_VALID, FrontendValue, SET_SLOTS, VERSION_MASK};
use crate::slots::{candidates, probe};

/// Looks up one side; `protocol` 0 with port 0 is the wildcard of an address. [`FrontendValue::NONE`] where there is nothing.
#[inline(always)]
pub fn find<F: Family, S: Slots>(table: S, seed: u64, side: &Side<F>, protocol: u8) -> FrontendValue {
    let side = *side;
    let h = hash::side(seed, side, protocol);
    for index in candidates(h, table.mask()) {
        let Some(set) = table.set(index) else { break };
        for i in 0..SET_SLOTS {
            let base = probe(h, i) * F::FRONTEND_WORDS;
            if let Some(value) = read::<F, _>(set, base, side, protocol) {
                return value;
            }
        }
    }
    FrontendValue::NONE
}

/// The value of the slot at `base` if it holds the key.
#[inline(always)]
fn read<F: Family, T: SetRef>(set: T, base: usize, side: Side<F>, protocol: u8) -> Option<FrontendValue> {
    let word = set.load(base + F::SIDE_WORDS);
    let value = FrontendValue::from_word(word);
    if value.flags & FRONTEND_VALID == 0 || value.protocol != protocol {
        return None;
    }
    let version = word & VERSION_MASK;
    for i in 0..F::SIDE_WORDS {
        if set.load(base + i) != version | (F::side_word(side, i) & PAYLOAD_MASK) {
            return None;
        }
    }
    Some(value)
}
