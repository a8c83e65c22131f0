//! The decoder of packets, which judges every checksum.

use std::net::IpAddr;

use etherparse::{
    Ethernet2Header, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, Ipv6RawExtHeader, SingleVlanHeader, TcpHeader,
    UdpHeader,
};
use thiserror::Error;

use super::{
    Checksum, FRAGMENT, ICMP, ICMPV6, IPV4, IPV6, Sum, TCP, UDP, VLAN, VLAN_OUTER, checksum_offset, start_sum,
};

/// A packet taken apart. Its `Debug` form is one line.
#[derive(Clone, PartialEq, Eq)]
pub struct Decoded {
    /// The Ethernet header, if the bytes began with one.
    pub link: Option<Link>,
    /// The IP header.
    pub ip: Ip,
    /// The transport header.
    pub transport: Transport,
    /// What the checksum of the transport is.
    pub transport_sum: Checksum,
    /// What follows the transport header, without padding of the link.
    pub payload: Vec<u8>,
}

/// An Ethernet header and VLAN tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Source MAC address.
    pub source: [u8; 6],
    /// Destination MAC address.
    pub destination: [u8; 6],
    /// VLAN ids, outermost first.
    pub vlans: Vec<u16>,
}

/// An IPv4 or IPv6 header with its extension headers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Number of the transport protocol.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// TOS or traffic class.
    pub tos: u8,
    /// Length of the whole packet in bytes, as the header says.
    pub length: usize,
    /// IPv4's DF.
    pub dont_fragment: bool,
    /// IPv4's identification; 0 for IPv6.
    pub identification: u16,
    /// IPv6's flow label; 0 for IPv4.
    pub flow_label: u32,
    /// Place of this fragment; `None` for a whole packet.
    pub fragment: Option<Fragment>,
    /// IPv4's options, or number and content of each IPv6 extension header that is no fragment header.
    pub options: Vec<(u8, Vec<u8>)>,
    /// What the header's checksum is; [`Checksum::Absent`] for IPv6.
    pub header_sum: Checksum,
}

/// The place of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification.
    pub identification: u32,
    /// Offset in bytes.
    pub offset: usize,
    /// Whether more follow.
    pub more: bool,
}

/// A transport header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Letters of `SAFRPUEC` in this order.
        flags: String,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledgement: u32,
        /// Window, unscaled.
        window: u16,
        /// Options as they stand.
        options: Vec<u8>,
    },
    /// UDP.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP or ICMPv6, as the IP header says.
    Icmp {
        /// Type.
        icmp_type: u8,
        /// Code.
        code: u8,
        /// Second word of the header: id and sequence, MTU, or unused.
        rest: [u8; 4],
        /// The packet that an error quotes.
        quoted: Option<Box<Decoded>>,
    },
    /// Ports alone, from a quotation that ends within the header.
    Ports {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// Another protocol, a later fragment, or nothing.
    Opaque,
}

/// Why bytes are no packet.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// A header or the length that it announces goes beyond the bytes, or contradicts itself.
    #[error("{layer}: {detail}")]
    Malformed {
        /// The layer that is wrong.
        layer: &'static str,
        /// What the parser says.
        detail: String,
    },
    /// A frame of another protocol than IP.
    #[error("EtherType {0:#06x} is not IP")]
    NotIp(u16),
}

impl Decoded {
    /// Decodes bytes that begin with an Ethernet header.
    pub fn frame(bytes: &[u8]) -> Result<Self, DecodeError> {
        let (header, mut rest) = Ethernet2Header::from_slice(bytes).map_err(malformed("ethernet"))?;
        let mut link = Link {
            source: header.source,
            destination: header.destination,
            vlans: Vec::new(),
        };
        let mut ether_type = header.ether_type.0;
        while matches!(ether_type, VLAN | VLAN_OUTER) {
            let (tag, inner) = SingleVlanHeader::from_slice(rest).map_err(malformed("vlan"))?;
            link.vlans.push(tag.vlan_id.value());
            (ether_type, rest) = (tag.ether_type.0, inner);
        }
        if !matches!(ether_type, IPV4 | IPV6) {
            return Err(DecodeError::NotIp(ether_type));
        }
        Ok(Self {
            link: Some(link),
            ..Self::ip(rest)?
        })
    }

    /// Decodes bytes that begin with an IP header; bytes beyond the packet's own length are ignored.
    pub fn ip(bytes: &[u8]) -> Result<Self, DecodeError> {
        Self::network(bytes, false)
    }

    /// Source port, if there is one.
    pub fn source_port(&self) -> Option<u16> {
        self.ports().map(|ports| ports.0)
    }

    /// Destination port, if there is one.
    pub fn destination_port(&self) -> Option<u16> {
        self.ports().map(|ports| ports.1)
    }

    /// Source and destination port.
    pub fn ports(&self) -> Option<(u16, u16)> {
        match self.transport {
            Transport::Tcp {
                source, destination, ..
            }
            | Transport::Udp { source, destination }
            | Transport::Ports { source, destination } => Some((source, destination)),
            Transport::Icmp { .. } | Transport::Opaque => None,
        }
    }

    /// The packet that an ICMP error quotes.
    pub fn quoted(&self) -> Option<&Self> {
        match &self.transport {
            Transport::Icmp { quoted, .. } => quoted.as_deref(),
            Transport::Tcp { .. } | Transport::Udp { .. } | Transport::Ports { .. } | Transport::Opaque => None,
        }
    }

    /// Whether no checksum, of this packet or one that it quotes, is wrong. A partial one counts as wrong.
    pub fn sums_are_good(&self) -> bool {
        let good = |sum| matches!(sum, Checksum::Good | Checksum::Absent | Checksum::Unverifiable);
        good(self.ip.header_sum) && good(self.transport_sum) && self.quoted().is_none_or(Self::sums_are_good)
    }

    fn network(bytes: &[u8], quotation: bool) -> Result<Self, DecodeError> {
        let (ip, rest, cut) = match bytes.first().map(|first| first >> 4) {
            Some(4) => decode_v4(bytes, quotation)?,
            _ => decode_v6(bytes, quotation)?,
        };
        let whole = ip.fragment.is_none() && !cut;
        let (transport, payload) = match ip.fragment {
            Some(Fragment { offset, .. }) if offset > 0 => (Transport::Opaque, rest.to_vec()),
            _ => decode_transport(ip.protocol, rest, !whole)?,
        };
        let transport_sum = if whole && transport != Transport::Opaque {
            judge(
                start_sum(ip.source, ip.destination, ip.protocol, rest.len()),
                rest,
                ip.protocol,
                ip.source.is_ipv4(),
            )
        } else {
            Checksum::Unverifiable
        };
        Ok(Self {
            link: None,
            ip,
            transport,
            transport_sum,
            payload,
        })
    }
}

fn malformed<E: std::fmt::Display>(layer: &'static str) -> impl Fn(E) -> DecodeError {
    move |error| DecodeError::Malformed {
        layer,
        detail: error.to_string(),
    }
}

/// The packet's own bytes after its headers, and whether some of them are missing.
fn own_bytes(rest: &[u8], announced: usize, quotation: bool) -> Result<(&[u8], bool), DecodeError> {
    match rest.get(..announced) {
        Some(own) => Ok((own, false)),
        None if quotation => Ok((rest, true)),
        None => {
            let detail = format!("{announced} bytes announced, {} are there", rest.len());
            Err(DecodeError::Malformed {
                layer: "ip length",
                detail,
            })
        }
    }
}

fn decode_v4(bytes: &[u8], quotation: bool) -> Result<(Ip, &[u8], bool), DecodeError> {
    let (header, rest) = Ipv4Header::from_slice(bytes).map_err(malformed("ipv4"))?;
    let announced = header.payload_len().map_err(malformed("ipv4"))?;
    let (rest, cut) = own_bytes(rest, announced.into(), quotation)?;
    let expected = header.calc_header_checksum();
    let header_sum = match header.header_checksum {
        found if found == expected => Checksum::Good,
        found => Checksum::Wrong { found, expected },
    };
    let options = header.options.as_slice();
    let ip = Ip {
        source: header.source.into(),
        destination: header.destination.into(),
        protocol: header.protocol.0,
        ttl: header.time_to_live,
        tos: header.dscp.value() << 2 | header.ecn.value(),
        length: header.total_len.into(),
        dont_fragment: header.dont_fragment,
        identification: header.identification,
        flow_label: 0,
        fragment: header.is_fragmenting_payload().then(|| Fragment {
            identification: header.identification.into(),
            offset: usize::from(header.fragment_offset.value()) * 8,
            more: header.more_fragments,
        }),
        options: if options.is_empty() {
            Vec::new()
        } else {
            vec![(0, options.to_vec())]
        },
        header_sum,
    };
    Ok((ip, rest, cut))
}

fn decode_v6(bytes: &[u8], quotation: bool) -> Result<(Ip, &[u8], bool), DecodeError> {
    let (header, rest) = Ipv6Header::from_slice(bytes).map_err(malformed("ipv6"))?;
    let (mut rest, cut) = own_bytes(rest, header.payload_length.into(), quotation)?;
    let (mut next, mut fragment, mut options) = (header.next_header.0, None, Vec::new());
    while matches!(next, 0 | 43 | 60 | FRAGMENT) {
        if next == FRAGMENT {
            let (extension, inner) = Ipv6FragmentHeader::from_slice(rest).map_err(malformed("fragment header"))?;
            fragment = Some(Fragment {
                identification: extension.identification,
                offset: usize::from(extension.fragment_offset.value()) * 8,
                more: extension.more_fragments,
            });
            (next, rest) = (extension.next_header.0, inner);
            if extension.fragment_offset.value() > 0 {
                break;
            }
        } else {
            let (extension, inner) = Ipv6RawExtHeader::from_slice(rest).map_err(malformed("extension header"))?;
            options.push((next, extension.payload().to_vec()));
            (next, rest) = (extension.next_header.0, inner);
        }
    }
    let ip = Ip {
        source: header.source.into(),
        destination: header.destination.into(),
        protocol: next,
        ttl: header.hop_limit,
        tos: header.traffic_class,
        length: Ipv6Header::LEN + usize::from(header.payload_length),
        dont_fragment: false,
        identification: 0,
        flow_label: header.flow_label.value(),
        fragment,
        options,
        header_sum: Checksum::Absent,
    };
    Ok((ip, rest, cut))
}

fn decode_transport(protocol: u8, bytes: &[u8], cut: bool) -> Result<(Transport, Vec<u8>), DecodeError> {
    let ports = || {
        let word = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        Some(Transport::Ports {
            source: word(0)?,
            destination: word(2)?,
        })
    };
    match protocol {
        TCP => match TcpHeader::from_slice(bytes) {
            Ok((header, payload)) => Ok((tcp(&header), payload.to_vec())),
            Err(_) if cut => Ok((ports().unwrap_or(Transport::Opaque), Vec::new())),
            Err(error) => Err(malformed("tcp")(error)),
        },
        UDP => match UdpHeader::from_slice(bytes) {
            Ok((header, payload)) => {
                if !cut && usize::from(header.length) != bytes.len() {
                    let detail = format!("length {} in {} bytes", header.length, bytes.len());
                    return Err(DecodeError::Malformed { layer: "udp", detail });
                }
                let transport = Transport::Udp {
                    source: header.source_port,
                    destination: header.destination_port,
                };
                Ok((transport, payload.to_vec()))
            }
            Err(_) if cut => Ok((ports().unwrap_or(Transport::Opaque), Vec::new())),
            Err(error) => Err(malformed("udp")(error)),
        },
        ICMP | ICMPV6 => icmp(protocol, bytes),
        _ => Ok((Transport::Opaque, bytes.to_vec())),
    }
}

fn tcp(header: &TcpHeader) -> Transport {
    let flags = [
        (header.syn, 'S'),
        (header.ack, 'A'),
        (header.fin, 'F'),
        (header.rst, 'R'),
        (header.psh, 'P'),
        (header.urg, 'U'),
        (header.ece, 'E'),
        (header.cwr, 'C'),
    ];
    Transport::Tcp {
        source: header.source_port,
        destination: header.destination_port,
        flags: flags
            .into_iter()
            .filter_map(|(set, letter)| set.then_some(letter))
            .collect(),
        sequence: header.sequence_number,
        acknowledgement: header.acknowledgment_number,
        window: header.window_size,
        options: header.options.as_slice().to_vec(),
    }
}

fn icmp(protocol: u8, bytes: &[u8]) -> Result<(Transport, Vec<u8>), DecodeError> {
    let Some(([icmp_type, code, _, _, rest @ ..], payload)) = bytes.split_first_chunk::<8>() else {
        let detail = format!("{} bytes", bytes.len());
        return Err(DecodeError::Malformed { layer: "icmp", detail });
    };
    let is_error = matches!((protocol, icmp_type), (ICMP, 3 | 4 | 5 | 11 | 12) | (ICMPV6, 1..=4));
    let quoted = if is_error {
        Some(Box::new(Decoded::network(payload, true)?))
    } else {
        None
    };
    let transport = Transport::Icmp {
        icmp_type: *icmp_type,
        code: *code,
        rest: *rest,
        quoted,
    };
    Ok((transport, if is_error { Vec::new() } else { payload.to_vec() }))
}

/// Judges the checksum in `bytes`, a whole transport packet, whose pseudo-header sums to `start`.
fn judge(start: Sum, bytes: &[u8], protocol: u8, ipv4: bool) -> Checksum {
    let Some(offset) = checksum_offset(protocol) else {
        return Checksum::Unverifiable;
    };
    let Some(found) = bytes.get(offset..offset + 2) else {
        return Checksum::Unverifiable;
    };
    let partial = start.folded();
    // The sum over everything but the field itself.
    let mut blank = bytes.to_vec();
    blank[offset..offset + 2].fill(0);
    let expected = start.and(&blank).complement();
    let zero = |sum: &[u8]| sum == [0, 0] || sum == [0xff, 0xff];
    if protocol == UDP && found == [0, 0] {
        let (found, expected) = (0, u16::from_be_bytes(expected));
        return if ipv4 {
            Checksum::Absent
        } else {
            Checksum::Wrong { found, expected }
        };
    }
    if found == expected || (zero(found) && zero(&expected)) {
        Checksum::Good
    } else if found == partial {
        Checksum::Partial
    } else {
        Checksum::Wrong {
            found: u16::from_be_bytes([found[0], found[1]]),
            expected: u16::from_be_bytes(expected),
        }
    }
}
