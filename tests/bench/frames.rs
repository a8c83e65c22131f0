//! The frames of many flows: one is built, the others differ from it in address, port and checksum.

use std::net::{IpAddr, SocketAddr};

use lb_common::checksum::{apply, fold32, port};
use lb_tests::packet::Packet;

/// Words of a frame in the map.
pub(crate) const WORDS: usize = 12;
/// Bytes of the link header.
const LINK: usize = 14;

/// Link addresses of an uplink's far end and of the first node's uplink, as worlds have them: XDP forwards what is sent to it alone.
const FAR_MAC: [u8; 6] = [2, 0x31, 0, 0, 0, 1];
const NODE_MAC: [u8; 6] = [2, 0x31, 0, 0, 0, 11];

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A TCP segment with these flags.
    Tcp(&'static str),
    /// A datagram.
    Udp,
}

/// Writes frames between socket addresses of one family and kind.
pub(crate) struct Frames {
    template: [u8; WORDS * 8],
    length: usize,
    v6: bool,
    /// Offset of the transport's checksum.
    sum: usize,
}

impl Frames {
    /// `length` bytes a frame: 96, or what a segment without payload has (54 for IPv4, 74 for IPv6).
    pub(crate) fn new(v6: bool, kind: Kind, length: usize) -> Self {
        Self::sent_to(NODE_MAC, v6, kind, length)
    }

    /// As [`Self::new`], to another host's link address.
    pub(crate) fn of_others(v6: bool, kind: Kind, length: usize) -> Self {
        const OTHERS_MAC: [u8; 6] = [2, 0x31, 0, 0, 0, 99];
        Self::sent_to(OTHERS_MAC, v6, kind, length)
    }

    fn sent_to(mac: [u8; 6], v6: bool, kind: Kind, length: usize) -> Self {
        let nobody: IpAddr = if v6 { [0; 16].into() } else { [0; 4].into() };
        let packet = Packet::new(nobody, nobody).macs(FAR_MAC, mac);
        let (packet, headers, sum) = match kind {
            Kind::Tcp(flags) => (packet.tcp(0, 0, flags), 20, 16),
            Kind::Udp => (packet.udp(0, 0), 8, 6),
        };
        let network = if v6 { 40 } else { 20 };
        let payload = vec![0x5a; length - LINK - network - headers];
        let built = packet.payload(&payload).build();
        assert_eq!(built.len(), length, "a frame of the length that was asked for");
        let mut template = [0; WORDS * 8];
        template[..length].copy_from_slice(&built);
        Self {
            template,
            length,
            v6,
            sum: LINK + network + sum,
        }
    }

    /// The bytes of a frame as the kernel is given it at first.
    pub(crate) fn first(&self) -> Vec<u8> {
        self.template[..self.length].to_vec()
    }

    /// The frame between two ends, as words in memory order.
    pub(crate) fn between(&self, from: SocketAddr, to: SocketAddr) -> [u64; WORDS] {
        let mut frame = self.template;
        let (mut added, mut transport) = (0, LINK + if self.v6 { 8 } else { 12 });
        for end in [from, to] {
            let mut octets = [0; 16];
            let address = match end.ip() {
                IpAddr::V4(address) => {
                    octets[..4].copy_from_slice(&address.octets());
                    &octets[..4]
                }
                IpAddr::V6(address) => {
                    octets = address.octets();
                    &octets[..]
                }
            };
            frame[transport..transport + address.len()].copy_from_slice(address);
            transport += address.len();
            added += address
                .as_chunks::<2>()
                .0
                .iter()
                .map(|half| u64::from(u16::from_ne_bytes(*half)))
                .sum::<u64>();
        }
        // Without ports so far: the sum of the IPv4 header's changes.
        if !self.v6 {
            add(&mut frame, LINK + 10, added);
        }
        for (offset, end) in [(0, from), (2, to)] {
            frame[transport + offset..transport + offset + 2].copy_from_slice(&end.port().to_be_bytes());
            added += port(end.port());
        }
        add(&mut frame, self.sum, added);
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(frame.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        words
    }
}

/// Takes what was added to the summed bytes into the checksum at an offset.
fn add(frame: &mut [u8], at: usize, added: u64) {
    let field = u16::from_ne_bytes([frame[at], frame[at + 1]]);
    frame[at..at + 2].copy_from_slice(&apply(field, fold32(added)).to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_the_builders_own() {
        let ends = [
            ("192.0.2.7:4711", "203.0.113.10:80"),
            ("[2001:db8::7]:65535", "[fd00:10:96::10]:80"),
        ];
        for (from, to) in ends {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            for kind in [Kind::Tcp("S"), Kind::Udp] {
                let frames = Frames::new(from.is_ipv6(), kind, 96);
                let packet = Packet::new(from.ip(), to.ip()).macs(FAR_MAC, NODE_MAC);
                let packet = match kind {
                    Kind::Tcp(flags) => packet.tcp(from.port(), to.port(), flags),
                    Kind::Udp => packet.udp(from.port(), to.port()),
                };
                let headers = 96 - packet.build().len();
                let expected = packet.payload(&vec![0x5a; headers]).build();
                let words = frames.between(from, to);
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
                assert_eq!(bytes, expected, "{from} {kind:?}");
            }
        }
    }
}
