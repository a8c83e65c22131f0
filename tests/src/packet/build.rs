//! The builder of packets, with right checksums or wrong ones on request.

use std::net::IpAddr;

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv4Options, Ipv6Header, Ipv6RawExtHeader, SingleVlanHeader,
    TcpHeader, UdpHeader, VlanId,
};

use super::{ICMP, ICMPV6, IPV4, IPV6, Sum, TCP, UDP, VLAN, checksum_offset, start_sum};

/// Which checksums a built packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sums {
    /// All right.
    Right,
    /// The transport's field holds the pseudo-header's sum, as a CHECKSUM_PARTIAL packet's does.
    Partial,
    /// The transport's checksum is off by one.
    WrongTransport,
    /// The IPv4 header's checksum is off by one.
    WrongHeader,
}

/// A packet under construction: `Packet::new(client, vip).tcp(4000, 80, "S").build()`.
///
/// A method that changes a part which the packet does not have panics.
#[derive(Clone, Debug)]
pub struct Packet {
    link: Option<([u8; 6], [u8; 6])>,
    vlans: Vec<u16>,
    network: Network,
    transport: Part,
    payload: Vec<u8>,
    sums: Sums,
}

#[derive(Clone, Debug)]
enum Network {
    V4(Ipv4Header),
    V6(Ipv6Header, Vec<(u8, Vec<u8>)>),
}

#[derive(Clone, Debug)]
enum Part {
    Tcp(Box<TcpHeader>),
    Udp {
        source: u16,
        destination: u16,
        summed: bool,
    },
    Icmp {
        icmp_type: u8,
        code: u8,
        rest: [u8; 4],
    },
    Other(u8),
}

impl Packet {
    /// A packet between two addresses of one family, with TTL 64, DF (IPv4), and no transport yet.
    #[track_caller]
    pub fn new(source: impl Into<IpAddr>, destination: impl Into<IpAddr>) -> Self {
        let network = match (source.into(), destination.into()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => Network::V4(Ipv4Header {
                time_to_live: 64,
                dont_fragment: true,
                source: source.octets(),
                destination: destination.octets(),
                ..Ipv4Header::default()
            }),
            (IpAddr::V6(source), IpAddr::V6(destination)) => Network::V6(
                Ipv6Header {
                    hop_limit: 64,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                },
                Vec::new(),
            ),
            (source, destination) => panic!("{source} and {destination} are of different families"),
        };
        Self {
            link: Some(([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])),
            vlans: Vec::new(),
            network,
            transport: Part::Other(59),
            payload: Vec::new(),
            sums: Sums::Right,
        }
    }

    /// Whether it is an IPv4 packet.
    pub fn is_v4(&self) -> bool {
        matches!(self.network, Network::V4(_))
    }

    /// Source and destination MAC address; 02::1 and 02::2 otherwise.
    #[must_use]
    pub fn macs(mut self, source: [u8; 6], destination: [u8; 6]) -> Self {
        self.link = Some((source, destination));
        self
    }

    /// No Ethernet header: the bytes begin with the IP header.
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.link = None;
        self
    }

    /// A VLAN tag inside those there are already.
    #[must_use]
    pub fn vlan(mut self, id: u16) -> Self {
        self.vlans.push(id);
        self
    }

    /// TTL or hop limit.
    #[must_use]
    pub fn ttl(mut self, ttl: u8) -> Self {
        match &mut self.network {
            Network::V4(header) => header.time_to_live = ttl,
            Network::V6(header, _) => header.hop_limit = ttl,
        }
        self
    }

    /// The byte of TOS or traffic class: DSCP in the upper six bits, ECN in the lower two.
    #[must_use]
    pub fn tos(mut self, tos: u8) -> Self {
        match &mut self.network {
            Network::V4(header) => {
                header.dscp = (tos >> 2).try_into().expect("six bits");
                header.ecn = (tos & 3).try_into().expect("two bits");
            }
            Network::V6(header, _) => header.traffic_class = tos,
        }
        self
    }

    /// IPv4 identification.
    #[must_use]
    #[track_caller]
    pub fn identification(mut self, identification: u16) -> Self {
        self.ipv4().identification = identification;
        self
    }

    /// IPv4: clears DF.
    #[must_use]
    #[track_caller]
    pub fn may_fragment(mut self) -> Self {
        self.ipv4().dont_fragment = false;
        self
    }

    /// IPv4 options; the length must be a multiple of 4, at most 40.
    #[must_use]
    #[track_caller]
    pub fn options(mut self, options: &[u8]) -> Self {
        self.ipv4().options = Ipv4Options::try_from(options).expect("IPv4 options of a multiple of 4 bytes");
        self
    }

    /// IPv6 hop-by-hop options, padded to size.
    #[must_use]
    #[track_caller]
    pub fn hop_by_hop(self, options: &[u8]) -> Self {
        self.extension(0, options)
    }

    /// IPv6 destination options, padded to size.
    #[must_use]
    #[track_caller]
    pub fn destination_options(self, options: &[u8]) -> Self {
        self.extension(60, options)
    }

    /// An IPv6 extension header of the common shape, behind those there are; zeros pad it to a multiple of 8 bytes.
    #[must_use]
    #[track_caller]
    pub fn extension(mut self, number: u8, content: &[u8]) -> Self {
        let Network::V6(_, extensions) = &mut self.network else {
            panic!("extension headers are IPv6's")
        };
        let mut content = content.to_vec();
        content.resize((content.len() + 2).next_multiple_of(8) - 2, 0);
        extensions.push((number, content));
        self
    }

    /// A TCP segment; `flags` are letters of `SAFRPU`. Sequence number 1, acknowledgement 0, window 64240.
    #[must_use]
    #[track_caller]
    pub fn tcp(mut self, source: u16, destination: u16, flags: &str) -> Self {
        let mut header = TcpHeader::new(source, destination, 1, 64240);
        for flag in flags.chars() {
            match flag {
                'S' => header.syn = true,
                'A' => header.ack = true,
                'F' => header.fin = true,
                'R' => header.rst = true,
                'P' => header.psh = true,
                'U' => header.urg = true,
                other => panic!("no TCP flag {other:?}"),
            }
        }
        self.transport = Part::Tcp(Box::new(header));
        self
    }

    /// TCP sequence and acknowledgement numbers.
    #[must_use]
    #[track_caller]
    pub fn sequence(mut self, sequence: u32, acknowledgement: u32) -> Self {
        let header = self.tcp_header();
        (header.sequence_number, header.acknowledgment_number) = (sequence, acknowledgement);
        self
    }

    /// TCP window, unscaled.
    #[must_use]
    #[track_caller]
    pub fn window(mut self, window: u16) -> Self {
        self.tcp_header().window_size = window;
        self
    }

    /// TCP options, padded to a multiple of 4 bytes.
    #[must_use]
    #[track_caller]
    pub fn tcp_options(mut self, options: &[u8]) -> Self {
        self.tcp_header()
            .set_options_raw(options)
            .expect("at most 40 bytes of TCP options");
        self
    }

    /// A UDP datagram.
    #[must_use]
    pub fn udp(mut self, source: u16, destination: u16) -> Self {
        self.transport = Part::Udp {
            source,
            destination,
            summed: true,
        };
        self
    }

    /// A UDP datagram whose checksum field is zero (IPv4: none was computed; in IPv6 not allowed, so a broken one).
    #[must_use]
    pub fn udp_unsummed(mut self, source: u16, destination: u16) -> Self {
        self.transport = Part::Udp {
            source,
            destination,
            summed: false,
        };
        self
    }

    /// An ICMP or ICMPv6 message, as the packet's family says; `rest` is the second word of the header.
    #[must_use]
    pub fn icmp(mut self, icmp_type: u8, code: u8, rest: [u8; 4]) -> Self {
        self.transport = Part::Icmp { icmp_type, code, rest };
        self
    }

    /// An echo request.
    #[must_use]
    pub fn echo_request(self, id: u16, sequence: u16) -> Self {
        let icmp_type = if matches!(self.network, Network::V4(_)) { 8 } else { 128 };
        let ([a, b], [c, d]) = (id.to_be_bytes(), sequence.to_be_bytes());
        self.icmp(icmp_type, 0, [a, b, c, d])
    }

    /// An ICMP error about `quoted`, bytes that begin with an IP header; they are cut as far as routers do
    /// (IPv4: header and 8 bytes are the least, 548 bytes here; IPv6: 1232).
    #[must_use]
    pub fn icmp_error(self, icmp_type: u8, code: u8, rest: [u8; 4], quoted: &[u8]) -> Self {
        let room = if matches!(self.network, Network::V4(_)) {
            548
        } else {
            1232
        };
        self.icmp(icmp_type, code, rest)
            .payload(&quoted[..quoted.len().min(room)])
    }

    /// Any other protocol; the payload follows the IP header.
    #[must_use]
    pub fn protocol(mut self, number: u8) -> Self {
        self.transport = Part::Other(number);
        self
    }

    /// What follows the transport header.
    #[must_use]
    pub fn payload(mut self, bytes: &[u8]) -> Self {
        self.payload = bytes.to_vec();
        self
    }

    /// Which checksums to write; all right otherwise.
    #[must_use]
    pub fn sums(mut self, sums: Sums) -> Self {
        self.sums = sums;
        self
    }

    /// The bytes.
    #[track_caller]
    pub fn build(&self) -> Vec<u8> {
        let (ether_type, network) = match &self.network {
            Network::V4(header) => (IPV4, self.build_v4(header)),
            Network::V6(header, extensions) => (IPV6, self.build_v6(header, extensions)),
        };
        let mut bytes = Vec::with_capacity(network.len() + 22);
        if let Some((source, destination)) = self.link {
            let types: Vec<u16> = self.vlans.iter().map(|_| VLAN).chain([ether_type]).collect();
            let link = Ethernet2Header {
                source,
                destination,
                ether_type: EtherType(types[0]),
            };
            bytes.extend_from_slice(&link.to_bytes());
            for (id, next) in self.vlans.iter().zip(&types[1..]) {
                let vlan_id = VlanId::try_new(*id).expect("a VLAN id of 12 bits");
                let tag = SingleVlanHeader {
                    vlan_id,
                    ether_type: EtherType(*next),
                    ..SingleVlanHeader::default()
                };
                bytes.extend_from_slice(&tag.to_bytes());
            }
        }
        bytes.extend_from_slice(&network);
        bytes
    }

    fn build_v4(&self, header: &Ipv4Header) -> Vec<u8> {
        let transport = self.build_transport(header.source.into(), header.destination.into(), ICMP);
        let mut header = header.clone();
        header.protocol = IpNumber(self.protocol_number(ICMP));
        header
            .set_payload_len(transport.len())
            .expect("a packet of at most 65535 bytes");
        header.header_checksum = header.calc_header_checksum() ^ u16::from(self.sums == Sums::WrongHeader);
        [header.to_bytes().as_slice(), &transport].concat()
    }

    fn build_v6(&self, header: &Ipv6Header, extensions: &[(u8, Vec<u8>)]) -> Vec<u8> {
        let transport = self.build_transport(header.source.into(), header.destination.into(), ICMPV6);
        let numbers: Vec<u8> = extensions
            .iter()
            .map(|(number, _)| *number)
            .chain([self.protocol_number(ICMPV6)])
            .collect();
        let mut rest = Vec::new();
        for ((_, content), next) in extensions.iter().zip(&numbers[1..]) {
            let extension = Ipv6RawExtHeader::new_raw(IpNumber(*next), content).expect("a padded extension header");
            rest.extend_from_slice(&extension.to_bytes());
        }
        rest.extend_from_slice(&transport);
        let mut header = header.clone();
        header.next_header = IpNumber(numbers[0]);
        header
            .set_payload_length(rest.len())
            .expect("a payload of at most 65535 bytes");
        [header.to_bytes().as_slice(), &rest].concat()
    }

    /// Transport header and payload, with the checksum asked for.
    fn build_transport(&self, source: IpAddr, destination: IpAddr, icmp: u8) -> Vec<u8> {
        let header = match &self.transport {
            Part::Tcp(header) => header.to_bytes().to_vec(),
            Part::Udp {
                source, destination, ..
            } => {
                let length = (UdpHeader::LEN + self.payload.len()) as u16;
                let header = UdpHeader {
                    source_port: *source,
                    destination_port: *destination,
                    length,
                    checksum: 0,
                };
                header.to_bytes().to_vec()
            }
            Part::Icmp { icmp_type, code, rest } => [&[*icmp_type, *code, 0, 0], rest.as_slice()].concat(),
            Part::Other(_) => Vec::new(),
        };
        let protocol = self.protocol_number(icmp);
        let mut bytes = [header, self.payload.clone()].concat();
        let unsummed = matches!(self.transport, Part::Udp { summed: false, .. });
        if let Some(offset) = checksum_offset(protocol).filter(|_| !unsummed) {
            let start = start_sum(source, destination, protocol, bytes.len());
            let field = self.transport_sum(&start, &bytes, protocol);
            bytes[offset..offset + 2].copy_from_slice(&field);
        }
        bytes
    }

    fn transport_sum(&self, start: &Sum, bytes: &[u8], protocol: u8) -> [u8; 2] {
        if self.sums == Sums::Partial {
            return start.folded();
        }
        let mut sum = start.clone().and(bytes).complement();
        if protocol == UDP && sum == [0, 0] {
            // RFC 768: zero means "none", its other form stands for zero.
            sum = [0xff, 0xff];
        }
        if self.sums == Sums::WrongTransport {
            sum[1] ^= 1;
        }
        sum
    }

    fn protocol_number(&self, icmp: u8) -> u8 {
        match &self.transport {
            Part::Tcp(_) => TCP,
            Part::Udp { .. } => UDP,
            Part::Icmp { .. } => icmp,
            Part::Other(number) => *number,
        }
    }

    #[track_caller]
    fn ipv4(&mut self) -> &mut Ipv4Header {
        let Network::V4(header) = &mut self.network else {
            panic!("this is a part of IPv4 alone")
        };
        header
    }

    #[track_caller]
    fn tcp_header(&mut self) -> &mut TcpHeader {
        let Part::Tcp(header) = &mut self.transport else {
            panic!("this is a part of TCP alone")
        };
        header
    }
}
