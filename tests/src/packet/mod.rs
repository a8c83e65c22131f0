//! Packets made and taken apart by a parser that is not ours (etherparse): the oracle that shares no code with lb-common.
//!
//! [`Packet`] builds Ethernet frames or bare IP packets with right checksums, or wrong ones on request. [`Decoded`] takes
//! them apart and judges every checksum, also those of packets quoted in ICMP errors. [`diff`] says in which fields two
//! frames differ. Sources: RFC 791, 8200, 9293, 768, 792, 4443, and RFC 1071 for the sums.

mod build;
mod decode;
mod fragments;
mod show;

pub use build::{Packet, Sums};
pub use decode::{DecodeError, Decoded, Fragment, Ip, Link, Transport};
pub use fragments::fragments;
pub use show::diff;

use std::net::IpAddr;

use etherparse::checksum::Sum16BitWords;

/// What a checksum field turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Right.
    Good,
    /// It holds the pseudo-header's sum alone, as in a CHECKSUM_PARTIAL packet before the device has completed it.
    Partial,
    /// Zero in UDP over IPv4: none was computed.
    Absent,
    /// Anything else.
    Wrong {
        /// The field's value.
        found: u16,
        /// The right value.
        expected: u16,
    },
    /// The packet is a fragment, or is quoted only in part, or the protocol has no checksum that is known here.
    Unverifiable,
}

/// A one's complement sum in memory order, which is the order of the wire (RFC 1071 section 2(B)).
#[derive(Clone)]
struct Sum(Sum16BitWords);

impl Sum {
    fn of(bytes: &[u8]) -> Self {
        Self(Sum16BitWords::new().add_slice(bytes))
    }

    /// The pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 section 3.1, RFC 8200 section 8.1).
    fn pseudo(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Self {
        let mut sum = Sum16BitWords::new();
        let length = (length as u32).to_be_bytes();
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                sum = sum.add_4bytes(source.octets()).add_4bytes(destination.octets());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                sum = sum.add_16bytes(source.octets()).add_16bytes(destination.octets());
            }
            _ => panic!("{source} and {destination} are of different families"),
        }
        Self(sum.add_4bytes(length).add_2bytes([0, protocol]))
    }

    fn and(self, bytes: &[u8]) -> Self {
        Self(self.0.add_slice(bytes))
    }

    /// What goes into the header's field.
    fn complement(&self) -> [u8; 2] {
        self.0.ones_complement().to_ne_bytes()
    }

    /// The sum itself, folded: what the field of a CHECKSUM_PARTIAL packet holds.
    fn folded(&self) -> [u8; 2] {
        (!self.0.ones_complement()).to_ne_bytes()
    }
}

/// Offset of the checksum field in a transport header, if the protocol is known here.
fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(16),
        UDP => Some(6),
        ICMP | ICMPV6 => Some(2),
        _ => None,
    }
}

/// The sum that the pseudo-header gives a protocol; ICMP over IPv4 has none.
fn start_sum(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Sum {
    if protocol == ICMP {
        Sum::of(&[])
    } else {
        Sum::pseudo(source, destination, protocol, length)
    }
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const VLAN_OUTER: u16 = 0x88a8;
