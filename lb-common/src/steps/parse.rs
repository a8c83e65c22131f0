//! Reads the IP header and what follows it, as far as a load balancer needs: RFC 791, RFC 8200, RFC 9293, RFC 768.
//!
//! Never touches the packet. A header that is not understood (bad version, truncated, more than [`MAX_EXTENSIONS`] extension
//! headers, a routing header, IPsec) gives `None` or a protocol that no Service has; the packet is then left alone.

use crate::access::Packet;
use crate::family::{Family, Side};
use crate::wire;

/// IPv6 extension headers that are walked.
pub const MAX_EXTENSIONS: usize = 4;

/// Bytes that hold the headers of whatever is looked at: an ICMP error and what it quotes.
const HEADERS: usize = 160;

/// The IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<F: Family> {
    /// Offset of the IP header.
    pub l3: usize,
    /// Offset of the transport header.
    pub l4: usize,
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// Transport protocol.
    pub protocol: u8,
    /// Time to live and protocol, or next header and hop limit, as they stand there.
    pub life: u16,
    /// The IPv4 header's checksum; of IPv6, which has none, 0.
    pub checksum: u16,
    /// Length of the IP packet in bytes, IP header included, as the header says.
    pub length: u16,
    /// Where in a fragmented datagram this is.
    pub fragment: Fragment,
}

/// Where in a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Which part.
    pub part: Part,
    /// The datagram's identification; 0 where it is whole.
    pub id: u32,
}

/// Part of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Part {
    /// All of it.
    Whole,
    /// Its first fragment.
    First,
    /// A later fragment: no transport header.
    Later,
}

impl Fragment {
    /// Not fragmented.
    pub const WHOLE: Self = Self {
        part: Part::Whole,
        id: 0,
    };

    /// From the offset and the more-fragments bit.
    #[inline(always)]
    fn new(later: bool, more: bool, id: u32) -> Self {
        if later {
            Self { part: Part::Later, id }
        } else if more {
            Self { part: Part::First, id }
        } else {
            Self::WHOLE
        }
    }
}

/// The transport header of TCP or UDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Source port.
    pub src: u16,
    /// Destination port.
    pub dst: u16,
    /// TCP flags; 0 for UDP and later fragments.
    pub tcp_flags: u8,
}

impl<F: Family> Header<F> {
    /// A header of nothing, as room to read into.
    #[inline(always)]
    pub fn empty() -> Self {
        let none = F::Addr::default();
        Self {
            l3: 0,
            l4: 0,
            src: none,
            dst: none,
            protocol: 0,
            life: 0,
            checksum: 0,
            length: 0,
            fragment: Fragment::WHOLE,
        }
    }

    /// Time to live, or hop limit.
    #[inline(always)]
    pub fn ttl(&self) -> u8 {
        (if F::V6 { self.life >> 8 } else { self.life }) as u8
    }

    /// The source side.
    #[inline(always)]
    pub fn src_side(&self, ports: Ports) -> Side<F> {
        Side {
            addr: self.src,
            port: ports.src,
        }
    }

    /// The destination side.
    #[inline(always)]
    pub fn dst_side(&self, ports: Ports) -> Side<F> {
        Side {
            addr: self.dst,
            port: ports.dst,
        }
    }
}

/// Reads the fixed part of the IP header at `l3`; false where there is none. Behind IPv6 extension headers, where the protocol is
/// [`is_extension`], [`header`] looks.
#[inline(always)]
pub fn fixed<F: Family, P: Packet>(packet: &P, l3: usize, into: &mut Header<F>) -> bool {
    let read = if F::V6 {
        header_v6(packet, l3)
    } else {
        header_v4(packet, l3)
    };
    match read {
        Some(header) => {
            *into = header;
            true
        }
        None => false,
    }
}

/// True where the protocol of a header's fixed part is that of an extension header.
#[inline(always)]
pub fn is_extension<F: Family>(protocol: u8) -> bool {
    F::V6 && matches!(protocol, wire::HOP_BY_HOP | wire::DESTINATION_OPTIONS | wire::FRAGMENT)
}

/// Reads the IP header at `l3` with its extension headers; false where one is cut off.
#[inline(always)]
pub fn header<F: Family, P: Packet>(packet: &P, l3: usize, into: &mut Header<F>) -> bool {
    fixed(packet, l3, into) && (!F::V6 || extensions(packet, into).is_some())
}

/// [`header`] for the later stages: not inlined for the kernel. Makes the bytes reachable that they look at: the first stage has
/// seen to those of a plain header and a transport header behind it.
#[cfg_attr(target_arch = "bpf", inline(never))]
pub fn header_again<F: Family, P: Packet>(packet: &mut P, l3: usize, into: &mut Header<F>) -> bool {
    if !fixed(packet, l3, into) {
        return false;
    }
    if into.l4 != l3 + F::HEADER_LEN || into.protocol == F::ICMP || is_extension::<F>(into.protocol) {
        packet.reach(HEADERS);
    }
    !F::V6 || extensions(packet, into).is_some()
}

/// True for a packet as nearly all are: whole, in one piece that is there to its end, without IPv4 options or IPv6 extension
/// headers.
#[inline(always)]
pub fn is_plain<F: Family, P: Packet>(packet: &P, header: &Header<F>) -> bool {
    header.fragment.part == Part::Whole
        && header.l4 == header.l3 + F::HEADER_LEN
        && header.l3 + header.length as usize <= packet.length()
}

#[inline(always)]
fn header_v4<F: Family, P: Packet>(packet: &P, l3: usize) -> Option<Header<F>> {
    let [first, second, third, src, dst] = packet.words::<5>(l3)?;
    let header_len = (first & 0x0f) as usize * 4;
    if first & 0xf0 != 0x40 || header_len < 20 {
        return None;
    }
    let offset = u16::from_be((second >> 16) as u16);
    let fragment = Fragment::new(offset & 0x1fff != 0, offset & 0x2000 != 0, second & 0xffff);
    Some(Header {
        l3,
        l4: l3 + header_len,
        src: F::from_words([src as u64, 0]),
        dst: F::from_words([dst as u64, 0]),
        protocol: (third >> 8) as u8,
        life: third as u16,
        checksum: (third >> 16) as u16,
        length: u16::from_be((first >> 16) as u16),
        fragment,
    })
}

#[inline(always)]
fn header_v6<F: Family, P: Packet>(packet: &P, l3: usize) -> Option<Header<F>> {
    let [first, second, s0, s1, s2, s3, d0, d1, d2, d3] = packet.words::<10>(l3)?;
    if first & 0xf0 != 0x60 {
        return None;
    }
    Some(Header {
        l3,
        l4: l3 + F::HEADER_LEN,
        src: F::from_words([s0 as u64 | (s1 as u64) << 32, s2 as u64 | (s3 as u64) << 32]),
        dst: F::from_words([d0 as u64 | (d1 as u64) << 32, d2 as u64 | (d3 as u64) << 32]),
        protocol: (second >> 16) as u8,
        life: (second >> 16) as u16,
        checksum: 0,
        length: u16::from_be(second as u16).wrapping_add(F::HEADER_LEN as u16),
        fragment: Fragment::WHOLE,
    })
}

/// Walks over the extension headers of an IPv6 header whose fixed part was read; none where one is cut off.
#[inline(always)]
fn extensions<F: Family, P: Packet>(packet: &P, header: &mut Header<F>) -> Option<()> {
    for _ in 0..MAX_EXTENSIONS {
        match header.protocol {
            wire::HOP_BY_HOP | wire::DESTINATION_OPTIONS => {
                let half = packet.half(header.l4)?;
                header.protocol = half as u8;
                header.l4 += ((half >> 8) as usize + 1) * 8;
            }
            wire::FRAGMENT => {
                let [head, id] = packet.words::<2>(header.l4)?;
                let offset = u16::from_be((head >> 16) as u16);
                header.fragment = Fragment::new(offset & 0xfff8 != 0, offset & 1 != 0, id);
                header.protocol = head as u8;
                header.l4 += 8;
                if header.fragment.part == Part::Later {
                    break;
                }
            }
            _ => break,
        }
    }
    Some(())
}

/// Reads the ports of a TCP or UDP header at `l4`.
#[inline(always)]
pub fn ports<P: Packet>(packet: &P, l4: usize, protocol: u8) -> Option<Ports> {
    let [ports] = packet.words::<1>(l4)?;
    let tcp_flags = if protocol == wire::TCP {
        (packet.half(l4 + 12)? >> 8) as u8
    } else {
        0
    };
    Some(Ports {
        src: u16::from_be(ports as u16),
        dst: u16::from_be((ports >> 16) as u16),
        tcp_flags,
    })
}
