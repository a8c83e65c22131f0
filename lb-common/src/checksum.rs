//! Internet checksums: full (RFC 1071) and incremental (RFC 1624).
//!
//! Sums are taken over native-endian loads of wire bytes; the ones' complement sum does not depend on byte order
//! (RFC 1071 section 2 (B)), so the checksum field is read and written by native-endian halves too and nothing is swapped.

/// Folds a wide sum to 32 bits, ones' complement.
#[inline(always)]
pub const fn fold32(sum: u64) -> u32 {
    let s = (sum & 0xffff_ffff) + (sum >> 32);
    ((s & 0xffff_ffff) + (s >> 32)) as u32
}

/// Folds a sum to 16 bits, ones' complement.
#[inline(always)]
pub const fn fold16(sum: u32) -> u16 {
    let s = (sum & 0xffff) + (sum >> 16);
    ((s & 0xffff) + (s >> 16)) as u16
}

/// The delta that turns a sum which contains `old` into one which contains `new`.
#[inline(always)]
pub const fn delta(old: u64, new: u64) -> u32 {
    fold32(new + !fold32(old) as u64)
}

/// No change: what [`change`] gives for equal sums. A multiple of 0xffff above the sum of two IPv6 addresses.
pub const UNCHANGED: u64 = 0xffff << 20;

/// As [`delta`], not folded: 0 < change < 2^37 where the sums are those of two addresses or two ports. Changes may be added.
#[inline(always)]
pub const fn change(old: u64, new: u64) -> u64 {
    UNCHANGED + new - old
}

/// Applies changes, in all below 2^38, to a checksum field (RFC 1624 equation 3).
#[inline(always)]
pub const fn apply_change(field: u16, change: u64) -> u16 {
    let s = !field as u64 + change;
    let s = (s & 0xffff) + (s >> 16);
    let s = (s & 0xffff) + (s >> 16);
    !((s & 0xffff) + (s >> 16)) as u16
}

/// Applies a delta to a checksum field (RFC 1624 equation 3: HC' = ~(~HC + ~m + m')).
#[inline(always)]
pub const fn apply(field: u16, delta: u32) -> u16 {
    !fold16(fold32(!field as u64 + delta as u64))
}

/// The field for a finished sum.
#[inline(always)]
pub const fn finish(sum: u64) -> u16 {
    !fold16(fold32(sum))
}

/// A port as it contributes to a sum.
#[inline(always)]
pub const fn port(port: u16) -> u64 {
    port.to_be() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn full(bytes: &[u8]) -> u16 {
        finish(
            bytes
                .chunks(2)
                .map(|c| u16::from_ne_bytes([c[0], *c.get(1).unwrap_or(&0)]) as u64)
                .sum(),
        )
    }

    #[test]
    fn the_example_of_rfc_1071_section_3() {
        let bytes = [0x00u8, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(full(&bytes).to_ne_bytes(), [0x22, 0x0d]);
    }

    #[test]
    fn the_example_of_rfc_1624_section_4() {
        // HC = 0xDD2F, m = 0x5555 becomes m' = 0x3285: HC' = 0x0000.
        let (hc, old, new) = (0xdd2fu16.to_be(), 0x5555u16.to_be(), 0x3285u16.to_be());
        assert_eq!(apply(hc, delta(old as u64, new as u64)), 0);
    }

    proptest! {
        #[test]
        fn an_increment_equals_a_full_recompute(mut data in prop::collection::vec(any::<u8>(), 24..200), at in 0usize..5, new: u32) {
            data.truncate(data.len() & !3);
            data[20] = 1; // an all-zero packet has no non-zero sum; the wire never carries one
            let at = at * 4;
            let before = full(&data);
            let old = u32::from_ne_bytes(data[at..at + 4].try_into().unwrap());
            data[at..at + 4].copy_from_slice(&new.to_ne_bytes());
            prop_assert_eq!(apply(before, delta(old as u64, new as u64)), full(&data));
            prop_assert_eq!(apply_change(before, change(old as u64, new as u64)), full(&data));
            prop_assert_eq!(apply_change(full(&data), change(new as u64, old as u64) + UNCHANGED), before);
        }
    }
}
