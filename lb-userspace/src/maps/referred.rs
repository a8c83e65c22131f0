//! What the live flows still refer to, as one sweep found it: a backend id or an address bit that is not in here may be
//! used anew, if it was withdrawn a grace period before that sweep began.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lb_common::layout::BITS_WORDS;

/// A set of small numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BitSet(Vec<u64>);

impl BitSet {
    /// An empty set with room for numbers below `limit`.
    pub fn with_room(limit: usize) -> Self {
        Self(vec![0; limit.div_ceil(64)])
    }

    /// Adds a number; one beyond the room is left out.
    #[inline]
    pub fn insert(&mut self, number: u32) {
        if let Some(word) = self.0.get_mut(number as usize / 64) {
            let bit = 1 << (number % 64);
            // Most are there already: whoever reads one does not wait for the one before to be written.
            if *word & bit == 0 {
                *word |= bit;
            }
        }
    }

    /// True when the number is in the set.
    #[inline]
    pub fn contains(&self, number: u32) -> bool {
        self.0
            .get(number as usize / 64)
            .is_some_and(|word| word >> (number % 64) & 1 != 0)
    }

    /// Adds all members of another set of the same room.
    pub fn join(&mut self, other: &Self) {
        for (all, more) in self.0.iter_mut().zip(&other.0) {
            *all |= more;
        }
    }

    /// Number of members.
    pub fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }
}

/// What flows refer to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referred {
    /// Backend ids, of whatever generation.
    pub backends: BitSet,
    /// Bits of the addresses that clients send to.
    pub forward_bits: BitSet,
    /// Bits of the addresses that backends send from.
    pub reply_bits: BitSet,
    /// Addresses that open TCP connections of the node itself go to by way of our device: they need routes to it.
    pub host_destinations: BTreeSet<IpAddr>,
}

impl Referred {
    /// Nothing is referred to, with room for backend ids below `backends`.
    pub fn none(backends: usize) -> Self {
        let bits = BitSet::with_room(BITS_WORDS as usize * 64);
        Self {
            backends: BitSet::with_room(backends),
            forward_bits: bits.clone(),
            reply_bits: bits,
            host_destinations: BTreeSet::new(),
        }
    }

    /// Adds all that another refers to, which has the same room.
    pub fn join(&mut self, other: Self) {
        self.backends.join(&other.backends);
        self.forward_bits.join(&other.forward_bits);
        self.reply_bits.join(&other.reply_bits);
        self.host_destinations.extend(other.host_destinations);
    }
}
