//! Numbers of the wire: protocols, TCP flags, ICMP types. Sources: IANA registries, RFC 792, RFC 4443, RFC 9293.

/// ICMP (RFC 792).
pub const ICMP: u8 = 1;
/// TCP (RFC 9293).
pub const TCP: u8 = 6;
/// UDP (RFC 768).
pub const UDP: u8 = 17;
/// SCTP (RFC 9260).
pub const SCTP: u8 = 132;
/// ICMPv6 (RFC 4443).
pub const ICMPV6: u8 = 58;
/// IPv6 hop-by-hop options (RFC 8200).
pub const HOP_BY_HOP: u8 = 0;
/// IPv6 routing header (RFC 8200).
pub const ROUTING: u8 = 43;
/// IPv6 fragment header (RFC 8200).
pub const FRAGMENT: u8 = 44;
/// IPv6 destination options (RFC 8200).
pub const DESTINATION_OPTIONS: u8 = 60;

/// TCP FIN bit.
pub const TCP_FIN: u8 = 0x01;
/// TCP SYN bit.
pub const TCP_SYN: u8 = 0x02;
/// TCP RST bit.
pub const TCP_RST: u8 = 0x04;
/// TCP ACK bit.
pub const TCP_ACK: u8 = 0x10;

/// Offset of the checksum in a TCP header.
pub const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
pub const UDP_CHECKSUM: usize = 6;
/// Length of a TCP header without options.
pub const TCP_LEN: usize = 20;
/// Length of a UDP header.
pub const UDP_LEN: usize = 8;
/// Length of an ICMP or ICMPv6 header.
pub const ICMP_LEN: usize = 8;
