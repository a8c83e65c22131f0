//! Addresses between Rust's form and the words of the tables: native-endian loads of the network-order bytes, as
//! [`lb_common::family`] has them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use lb_common::family::Addr6;

/// An address as two words, as backends store it: IPv4 in the low half of the first.
pub fn address_words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => [v4_word(address) as u64, 0],
        IpAddr::V6(address) => v6_words(address),
    }
}

/// The inverse of [`address_words`]; the family is not in the words.
#[inline]
pub fn address_of_words(v6: bool, words: [u64; 2]) -> IpAddr {
    if v6 {
        v6_address(words).into()
    } else {
        v4_address(words[0] as u32).into()
    }
}

/// An IPv4 address as `lb_common::family::V4` has it.
pub fn v4_word(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// The inverse of [`v4_word`].
#[inline]
pub fn v4_address(word: u32) -> Ipv4Addr {
    word.to_ne_bytes().into()
}

/// An IPv6 address as `lb_common::family::V6` has it.
pub fn v6_words(address: Ipv6Addr) -> Addr6 {
    bytemuck::cast(address.octets())
}

/// The inverse of [`v6_words`].
#[inline]
pub fn v6_address(words: Addr6) -> Ipv6Addr {
    bytemuck::cast::<Addr6, [u8; 16]>(words).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip_in_network_order() {
        for text in ["10.1.2.3", "255.0.0.1", "2001:db8::1:2", "::"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(address_of_words(address.is_ipv6(), address_words(address)), address);
        }
        assert_eq!(v4_word(Ipv4Addr::new(1, 2, 3, 4)).to_ne_bytes(), [1, 2, 3, 4]);
    }
}
