//! ICMP and ICMPv6 errors about translated flows, both directions (RFC 792, RFC 1191, RFC 4443, RFC 5508 section 7).
//!
//! The packet that an error quotes went the other way, so the quoted tuple reversed is the key of the entry that translates
//! the error: it hits the reply entry when a router or the backend complains about what we sent on, the forward entry when
//! the client complains about a reply. Outer and quoted headers are both translated, with every checksum that is present.

use crate::access::Packet;
use crate::checksum;
use crate::family::{Family, Side};
use crate::flow::{Entry, Key};
use crate::steps::parse::{self, Header, Part};
use crate::steps::rewrite as write;
use crate::wire;

/// Echo request types.
pub const ECHO_REQUEST_V4: u8 = 8;
/// Echo request type of ICMPv6.
pub const ECHO_REQUEST_V6: u8 = 128;

/// What an ICMP message is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An error that quotes a packet.
    Error,
    /// An echo request.
    EchoRequest,
    /// Anything else.
    Other,
}

/// Where an error's quoted packet stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quoted {
    /// Offset of its IP header.
    pub l3: usize,
    /// Offset of its transport header.
    pub l4: usize,
}

/// Classifies the message at `l4`.
#[inline(always)]
pub fn kind<F: Family, P: Packet>(packet: &P, l4: usize) -> Option<Kind> {
    let message_type = packet.half(l4)? as u8;
    Some(if F::V6 {
        match message_type {
            1..=4 => Kind::Error,
            ECHO_REQUEST_V6 => Kind::EchoRequest,
            _ => Kind::Other,
        }
    } else {
        match message_type {
            3 | 4 | 11 | 12 => Kind::Error,
            ECHO_REQUEST_V4 => Kind::EchoRequest,
            _ => Kind::Other,
        }
    })
}

/// Finds the quoted packet of an error (false where there is none that we could know), and fills in the key of the entry that translates the error.
#[cfg_attr(target_arch = "bpf", inline(never))]
pub fn quoted<F: Family, P: Packet>(packet: &P, l4: usize, key: &mut Key<F>, into: &mut Quoted) -> bool {
    let mut header = Header::empty();
    if !parse::header::<F, P>(packet, l4 + wire::ICMP_LEN, &mut header) {
        return false;
    }
    if header.protocol != wire::TCP && header.protocol != wire::UDP || header.fragment.part == Part::Later {
        return false;
    }
    let Some([ports]) = packet.words::<1>(header.l4) else {
        return false;
    };
    *key = Key {
        src: Side {
            addr: header.dst,
            port: u16::from_be((ports >> 16) as u16),
        },
        dst: Side {
            addr: header.src,
            port: u16::from_be(ports as u16),
        },
        protocol: header.protocol,
    };
    *into = Quoted {
        l3: header.l3,
        l4: header.l4,
    };
    true
}

/// Translates an error by the entry that the key of [`quoted`] found. `hide_router` makes the error come from the flow's
/// other side even where a router sent it (a strict reverse path filter would drop it otherwise).
/// False when a header could not be written.
#[cfg_attr(target_arch = "bpf", inline(never))]
pub fn translate<F: Family, P: Packet>(
    packet: &mut P,
    outer: &Header<F>,
    inner: &Quoted,
    entry: &Entry<F>,
    hide_router: bool,
) -> bool {
    write_headers(packet, outer, inner, entry, hide_router).is_some()
}

/// [`translate`], with early returns.
#[inline(always)]
fn write_headers<F: Family, P: Packet>(
    packet: &mut P,
    outer: &Header<F>,
    inner: &Quoted,
    entry: &Entry<F>,
    hide_router: bool,
) -> Option<()> {
    let (key, rewrite) = (&entry.key, &entry.rewrite);
    // The quoted packet went the other way: its source becomes the entry's new destination.
    let (new_src, new_dst) = (rewrite.dst, rewrite.src);
    let addresses = checksum::delta(
        F::sum(key.dst.addr) + F::sum(key.src.addr),
        F::sum(new_src.addr) + F::sum(new_dst.addr),
    );
    let ports = checksum::delta(
        checksum::port(key.dst.port) + checksum::port(key.src.port),
        checksum::port(new_src.port) + checksum::port(new_dst.port),
    );
    let mut message = addresses as u64 + ports as u64;
    let udp = key.protocol == wire::UDP;
    let at = inner.l4 + if udp { wire::UDP_CHECKSUM } else { wire::TCP_CHECKSUM };
    if let Some(field) = packet.half(at)
        && !(udp && field == 0)
    {
        let new = checksum::apply(field, checksum::fold32(addresses as u64 + ports as u64));
        // Zero in UDP says that there is none (RFC 768).
        let new = if udp && new == 0 { 0xffff } else { new };
        packet.set_half(at, new)?;
        message += checksum::delta(field as u64, new as u64) as u64;
    }
    packet.set_words(
        inner.l4,
        [new_src.port.to_be() as u32 | (new_dst.port.to_be() as u32) << 16],
    )?;
    if F::V6 {
        write::addresses::<F, P>(packet, inner.l3, new_src.addr, new_dst.addr, None)?;
    } else {
        let field = packet.half(inner.l3 + 10)?;
        write::addresses::<F, P>(packet, inner.l3, new_src.addr, new_dst.addr, Some(addresses))?;
        message += checksum::delta(field as u64, packet.half(inner.l3 + 10)? as u64) as u64;
    }
    let from_flow = hide_router || outer.src == key.src.addr;
    let outer_src = if from_flow { rewrite.src.addr } else { outer.src };
    let outer_delta = checksum::delta(
        F::sum(outer.src) + F::sum(outer.dst),
        F::sum(outer_src) + F::sum(rewrite.dst.addr),
    );
    if F::V6 {
        message += outer_delta as u64;
    }
    let field = packet.half(outer.l4 + 2)?;
    packet.set_half(outer.l4 + 2, checksum::apply(field, checksum::fold32(message)))?;
    write::addresses::<F, P>(packet, outer.l3, outer_src, rewrite.dst.addr, Some(outer_delta))
}
