//! IPv4 and IPv6 as one trait, so that every step is written once.
//!
//! A *side* is an address with a port. In map words a side is packed into [`Family::SIDE_WORDS`] words of 48 payload bits
//! (bits 0..48; the owner of the word keeps its version in bits 48..64): one word for IPv4, three for IPv6.

use core::fmt::Debug;

/// Payload bits of a versioned map word.
pub const PAYLOAD_MASK: u64 = (1 << 48) - 1;

/// The most words that a side has.
pub const MOST_SIDE_WORDS: usize = V6::SIDE_WORDS;

/// What differs between IPv4 and IPv6.
pub trait Family: Copy + Clone + Debug + PartialEq + Eq + 'static {
    /// An address: the native-endian load of its network-order bytes.
    type Addr: Copy + Clone + Debug + Default + PartialEq + Eq;
    /// True for IPv6.
    const V6: bool;
    /// Map words that hold one side.
    const SIDE_WORDS: usize;
    /// Map words of one flow slot: control, key (two sides, protocol), rewrite (two sides), backend, meta.
    const SLOT_WORDS: usize = 4 + 4 * Self::SIDE_WORDS;
    /// Map words of one frontend slot: a side and the value word.
    const FRONTEND_WORDS: usize = 1 + Self::SIDE_WORDS;
    /// Length of the fixed IP header in bytes.
    const HEADER_LEN: usize;
    /// The protocol number of this family's ICMP.
    const ICMP: u8;
    /// The Ethernet type in host order.
    const ETHERTYPE: u16;

    /// Packed word `index` (< [`Self::SIDE_WORDS`]) of a side.
    fn side_word(side: Side<Self>, index: usize) -> u64;
    /// The side whose packed words `word` yields.
    fn side_from(word: impl Fn(usize) -> u64) -> Side<Self>;
    /// The address folded to 64 bits, injective for IPv4.
    fn fold(addr: Self::Addr) -> u64;
    /// The address as two words as backends store it: IPv4 in the low half of the first.
    fn to_words(addr: Self::Addr) -> [u64; 2];
    /// The inverse of [`Self::to_words`].
    fn from_words(words: [u64; 2]) -> Self::Addr;
    /// Ones' complement sum of the address, not folded to 16 bits (RFC 1071).
    fn sum(addr: Self::Addr) -> u64;
}

/// An address with a port in host order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side<F: Family> {
    /// The address.
    pub addr: F::Addr,
    /// The port in host order.
    pub port: u16,
}

/// IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct V6;

impl Family for V4 {
    type Addr = u32;
    const V6: bool = false;
    const SIDE_WORDS: usize = 1;
    const HEADER_LEN: usize = 20;
    const ICMP: u8 = crate::wire::ICMP;
    const ETHERTYPE: u16 = 0x0800;

    #[inline(always)]
    fn side_word(side: Side<Self>, _index: usize) -> u64 {
        side.addr as u64 | (side.port as u64) << 32
    }

    #[inline(always)]
    fn side_from(word: impl Fn(usize) -> u64) -> Side<Self> {
        let w = word(0);
        Side {
            addr: w as u32,
            port: (w >> 32) as u16,
        }
    }

    #[inline(always)]
    fn fold(addr: u32) -> u64 {
        addr as u64
    }

    #[inline(always)]
    fn to_words(addr: u32) -> [u64; 2] {
        [addr as u64, 0]
    }

    #[inline(always)]
    fn from_words(words: [u64; 2]) -> u32 {
        words[0] as u32
    }

    #[inline(always)]
    fn sum(addr: u32) -> u64 {
        addr as u64
    }
}

/// An IPv6 address as two native-endian loads.
pub type Addr6 = [u64; 2];

impl Family for V6 {
    type Addr = Addr6;
    const V6: bool = true;
    const SIDE_WORDS: usize = 3;
    const HEADER_LEN: usize = 40;
    const ICMP: u8 = crate::wire::ICMPV6;
    const ETHERTYPE: u16 = 0x86dd;

    #[inline(always)]
    fn side_word(side: Side<Self>, index: usize) -> u64 {
        let [hi, lo] = side.addr;
        match index {
            0 => hi & PAYLOAD_MASK,
            1 => hi >> 48 | (lo & 0xffff_ffff) << 16,
            _ => lo >> 32 | (side.port as u64) << 32,
        }
    }

    #[inline(always)]
    fn side_from(word: impl Fn(usize) -> u64) -> Side<Self> {
        let (a, b, c) = (word(0) & PAYLOAD_MASK, word(1) & PAYLOAD_MASK, word(2) & PAYLOAD_MASK);
        Side {
            addr: [a | b << 48, b >> 16 | c << 32],
            port: (c >> 32) as u16,
        }
    }

    #[inline(always)]
    fn fold(addr: Addr6) -> u64 {
        addr[0].wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ addr[1]
    }

    #[inline(always)]
    fn to_words(addr: Addr6) -> [u64; 2] {
        addr
    }

    #[inline(always)]
    fn from_words(words: [u64; 2]) -> Addr6 {
        words
    }

    #[inline(always)]
    fn sum(addr: Addr6) -> u64 {
        let [hi, lo] = addr;
        (hi & 0xffff_ffff) + (hi >> 32) + (lo & 0xffff_ffff) + (lo >> 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_side_survives_packing(hi: u64, lo: u64, a: u32, port: u16) {
            let six = Side::<V6> { addr: [hi, lo], port };
            prop_assert_eq!(V6::side_from(|i| V6::side_word(six, i)), six);
            let four = Side::<V4> { addr: a, port };
            prop_assert_eq!(V4::side_from(|i| V4::side_word(four, i)), four);
            for i in 0..3 {
                prop_assert_eq!(V6::side_word(six, i) & !PAYLOAD_MASK, 0);
            }
        }
    }
}
