//! Answers that the node gives in the destination's place, built in the packet that asked: RST (RFC 9293 section 3.5.2 and
//! 3.10.7.1), ICMP errors (RFC 792, RFC 1812 section 4.3.2, RFC 4443), echo replies.
//!
//! The packet is untranslated, so what it quotes is what its sender sent. An ICMP error quotes the IP header and the transport
//! header, of other protocols the eight bytes by which a sender knows its packet (RFC 792). Its checksum is computed for the bytes as they will be on the wire: where the sender left its own transport checksum
//! to the device (the field then holds the pseudo header's sum), the device will still fill it in inside the quotation, so the
//! value that it will write is summed instead of the one that stands there.

use crate::access::{Packet, SUM_BYTES};
use crate::checksum;
use crate::family::Family;
use crate::steps::parse::{Header, Part};
use crate::steps::rewrite;
use crate::verdict::Answer;
use crate::wire;

/// Longest IP header with extensions that is quoted.
const MAX_QUOTED_HEADER: usize = 120;
const _: () = assert!(MAX_QUOTED_HEADER + wire::TCP_LEN <= SUM_BYTES);
/// Bytes that are quoted of a transport header that we do not know.
const OTHER_LEN: usize = 8;
/// Time to live of what we answer.
const TTL: u32 = 64;

/// True when this packet may be answered at all: never a later fragment, a reset, or a source that is no single host.
#[inline(always)]
pub fn permitted<F: Family>(header: &Header<F>, tcp_flags: u8) -> bool {
    let first = F::to_words(header.src)[0] as u8;
    let many = if F::V6 { first == 0xff } else { first >= 224 };
    !many
        && header.src != F::Addr::default()
        && header.fragment.part != Part::Later
        && !(header.protocol == wire::TCP && tcp_flags & wire::TCP_RST != 0)
}

/// Turns the packet into the answer. The link header is left alone.
#[inline(always)]
pub fn build<F: Family, P: Packet>(packet: &mut P, header: &Header<F>, answer: Answer, mtu: u16) -> Option<()> {
    match answer {
        Answer::Echo => echo(packet, header),
        Answer::Reset => reset(packet, header),
        Answer::PortUnreachable => error(packet, header, if F::V6 { (1, 4) } else { (3, 3) }, 0),
        Answer::TooBig => error(packet, header, if F::V6 { (2, 0) } else { (3, 4) }, mtu),
        Answer::TimeExceeded => error(packet, header, if F::V6 { (3, 0) } else { (11, 0) }, 0),
    }
}

/// Echo request to echo reply.
#[inline(always)]
fn echo<F: Family, P: Packet>(packet: &mut P, header: &Header<F>) -> Option<()> {
    let old = packet.half(header.l4)?;
    let new = if F::V6 { old.wrapping_add(1) } else { old & 0xff00 };
    let field = packet.half(header.l4 + 2)?;
    packet.set_half(header.l4, new)?;
    packet.set_half(
        header.l4 + 2,
        checksum::apply(field, checksum::delta(old as u64, new as u64)),
    )?;
    rewrite::addresses::<F, P>(packet, header.l3, header.dst, header.src, None)?;
    fresh_ttl::<F, P>(packet, header.l3)
}

/// Sets the time to live of a packet that turns round.
#[inline(always)]
fn fresh_ttl<F: Family, P: Packet>(packet: &mut P, l3: usize) -> Option<()> {
    if F::V6 {
        let half = packet.half(l3 + 6)?;
        let new = half & 0x00ff | (TTL as u16) << 8;
        packet.set_half(l3 + 6, new)?;
        packet.whole_delta(checksum::delta(half as u64, new as u64));
        Some(())
    } else {
        let half = packet.half(l3 + 8)?;
        let new = half & 0xff00 | TTL as u16;
        let field = packet.half(l3 + 10)?;
        packet.set_half(l3 + 8, new)?;
        packet.set_half(
            l3 + 10,
            checksum::apply(field, checksum::delta(half as u64, new as u64)),
        )
    }
}

/// Sum of the pseudo header of a transport segment of `length` bytes.
#[inline(always)]
fn pseudo<F: Family>(header: &Header<F>, protocol: u8, length: u16) -> u64 {
    F::sum(header.src) + F::sum(header.dst) + ((protocol as u16).to_be() as u64) + length.to_be() as u64
}

/// True when a device is still to compute the transport checksum: the field holds the pseudo header's sum.
#[inline(always)]
fn left_to_device<F: Family>(header: &Header<F>, field: u16) -> bool {
    let length = header.length.wrapping_sub((header.l4 - header.l3) as u16);
    checksum::fold16(checksum::fold32(pseudo(header, header.protocol, length))) == field
}

/// A segment to the reset that answers it. None for a first fragment of IPv6, whose fragment header would stay.
#[inline(always)]
fn reset<F: Family, P: Packet>(packet: &mut P, header: &Header<F>) -> Option<()> {
    let l4 = header.l4;
    if F::V6 && header.fragment.part != Part::Whole {
        return None;
    }
    let [_ports, sequence, acknowledgement, flags_window, check] = packet.words::<5>(l4)?;
    let ports = packet.words::<1>(l4)?[0];
    let before = ports as u64 + sequence as u64 + acknowledgement as u64 + flags_window as u64 + check as u64;
    let flags = (flags_window >> 8) as u8;
    let transport_len = ((flags_window & 0xf0) >> 2) as u16;
    let partial = left_to_device(header, check as u16);
    let payload = header
        .length
        .wrapping_sub((l4 - header.l3) as u16)
        .wrapping_sub(transport_len);
    packet.trim(l4 + wire::TCP_LEN)?;
    let (sequence, acknowledgement, new_flags) = if flags & wire::TCP_ACK != 0 {
        (acknowledgement, 0, wire::TCP_RST)
    } else {
        let occupied = payload as u32 + (flags & wire::TCP_SYN != 0) as u32 + (flags & wire::TCP_FIN != 0) as u32;
        (
            0,
            u32::from_be(sequence).wrapping_add(occupied).to_be(),
            wire::TCP_RST | wire::TCP_ACK,
        )
    };
    let ports = ports.rotate_left(16);
    let offset_flags = 0x50 | (new_flags as u32) << 8;
    let turned = Header {
        src: header.dst,
        dst: header.src,
        ..*header
    };
    let sum = pseudo(&turned, wire::TCP, wire::TCP_LEN as u16);
    let segment = ports as u64 + sequence as u64 + acknowledgement as u64 + offset_flags as u64;
    let field = if partial {
        checksum::fold16(checksum::fold32(sum))
    } else {
        checksum::finish(sum + segment)
    };
    packet.set_words(l4, [ports, sequence, acknowledgement, offset_flags, field as u32])?;
    packet.whole_delta(checksum::delta(before, segment + field as u64));
    rewrite::addresses::<F, P>(packet, header.l3, header.dst, header.src, None)?;
    let length = (l4 - header.l3 + wire::TCP_LEN) as u16;
    set_length::<F, P>(packet, header.l3, length)?;
    fresh_ttl::<F, P>(packet, header.l3)
}

/// Writes the length of an IP packet; an IPv4 header also forgets its fragment bits.
#[inline(always)]
fn set_length<F: Family, P: Packet>(packet: &mut P, l3: usize, length: u16) -> Option<()> {
    if F::V6 {
        let (old, new) = (packet.half(l3 + 4)?, length.wrapping_sub(40).to_be());
        packet.set_half(l3 + 4, new)?;
        packet.whole_delta(checksum::delta(old as u64, new as u64));
        return Some(());
    }
    let (old_length, old_bits) = (packet.half(l3 + 2)?, packet.half(l3 + 6)?);
    let field = packet.half(l3 + 10)?;
    let delta = checksum::delta(old_length as u64 + old_bits as u64, length.to_be() as u64);
    packet.set_half(l3 + 2, length.to_be())?;
    packet.set_half(l3 + 6, 0)?;
    packet.set_half(l3 + 10, checksum::apply(field, delta))
}

/// A packet to the ICMP error that quotes it.
#[inline(always)]
fn error<F: Family, P: Packet>(packet: &mut P, header: &Header<F>, kind: (u8, u8), mtu: u16) -> Option<()> {
    let header_len = header.l4 - header.l3;
    let (transport_len, field_at) = match header.protocol {
        wire::TCP => (wire::TCP_LEN, wire::TCP_CHECKSUM),
        wire::UDP => (wire::UDP_LEN, wire::UDP_CHECKSUM),
        _ => (
            OTHER_LEN.min((header.length as usize).saturating_sub(header_len) & !3),
            0,
        ),
    };
    let quoted_len = header_len + transport_len;
    if header_len > MAX_QUOTED_HEADER || (header.length as usize) < quoted_len {
        return None;
    }
    packet.trim(header.l3 + quoted_len)?;
    let added = F::HEADER_LEN + wire::ICMP_LEN;
    packet.insert(header.l3, added)?;
    let undefined = packet.sum(header.l3, added)?;

    let quote = header.l3 + added;
    let mut sum = packet.sum(quote, quoted_len)?;
    if field_at != 0 {
        let field = packet.half(quote + header_len + field_at)?;
        if left_to_device(header, field) {
            let final_field = checksum::finish(packet.sum(quote + header_len, transport_len)?);
            let final_field = if final_field == 0 { 0xffff } else { final_field };
            sum += checksum::delta(field as u64, final_field as u64) as u64;
        }
    }
    let length = (added + quoted_len) as u16;
    let first = kind.0 as u32 | (kind.1 as u32) << 8;
    // ICMP carries the MTU in the low half, ICMPv6 in the whole word; both are big-endian, so both end at the last byte.
    let second = (mtu as u32).to_be();
    sum += first as u64 + second as u64;
    let (s, d) = (F::to_words(header.dst), F::to_words(header.src));
    if F::V6 {
        let turned = Header {
            src: header.dst,
            dst: header.src,
            ..*header
        };
        sum += pseudo(&turned, wire::ICMPV6, length - 40);
        let payload_len = (length - 40).to_be() as u32;
        packet.set_words(header.l3, [0x60, payload_len | (wire::ICMPV6 as u32) << 16 | TTL << 24])?;
    } else {
        let head = [
            0xc045 | (length.to_be() as u32) << 16,
            0,
            TTL | (wire::ICMP as u32) << 8,
        ];
        let total: u64 = head.iter().map(|w| *w as u64).sum::<u64>() + s[0] + d[0];
        let field = checksum::finish(total);
        packet.set_words(header.l3, [head[0], head[1], head[2] | (field as u32) << 16])?;
    }
    rewrite::addresses::<F, P>(packet, header.l3, header.dst, header.src, None)?;
    let field = checksum::finish(sum);
    packet.set_words(header.l3 + F::HEADER_LEN, [first | (field as u32) << 16, second])?;
    let written = packet.sum(header.l3, added)?;
    packet.whole_delta(checksum::delta(undefined, written));
    Some(())
}
