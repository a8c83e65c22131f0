//! Writes new addresses and ports into a packet and keeps its checksums right (RFC 1624).
//!
//! All four of source, destination and ports are written, changed or not: one straight line of code for every kind of
//! translation. A UDP checksum of zero over IPv4 (none) stays zero.

use crate::access::Packet;
use crate::checksum;
use crate::family::Family;
use crate::flow::slot::{Key, Rewrite};
use crate::steps::parse::{Header, Part};
use crate::wire;

/// Rewrites the packet from `key` to `rewrite`. `decrement` also takes one from the time to live.
#[inline(always)]
pub fn packet<F: Family, P: Packet>(
    packet: &mut P,
    header: &Header<F>,
    key: &Key<F>,
    rewrite: &Rewrite<F>,
    decrement: bool,
) -> Option<()> {
    let before = F::sum(key.src.addr) + F::sum(key.dst.addr);
    let after = F::sum(rewrite.src.addr) + F::sum(rewrite.dst.addr);
    let changed = checksum::change(before, after);
    if header.fragment.part != Part::Later {
        let ports_changed = checksum::change(
            checksum::port(key.src.port) + checksum::port(key.dst.port),
            checksum::port(rewrite.src.port) + checksum::port(rewrite.dst.port),
        );
        let udp = header.protocol == wire::UDP;
        let at = header.l4 + if udp { wire::UDP_CHECKSUM } else { wire::TCP_CHECKSUM };
        packet.l4_change(at, changed, ports_changed, udp, F::V6)?;
        let ports = rewrite.src.port.to_be() as u32 | (rewrite.dst.port.to_be() as u32) << 16;
        packet.set_words(header.l4, [ports])?;
    } else if F::V6 {
        // The checksum that absorbs the change is in the first fragment.
        packet.whole_delta(checksum::fold32(changed));
    }
    if F::V6 {
        addresses::<F, P>(packet, header.l3, rewrite.src.addr, rewrite.dst.addr, None)?;
        return if decrement {
            ttl::<F, P>(packet, header.l3)
        } else {
            Some(())
        };
    }
    // Time to live, protocol, checksum and both addresses stand side by side. One less in the first is 0xfffe more (RFC 1141).
    let (life, changed) = if decrement {
        (header.life.wrapping_sub(1), changed + 0xfffe)
    } else {
        (header.life, changed)
    };
    let check = checksum::apply_change(header.checksum, changed);
    let [src, dst] = [rewrite.src.addr, rewrite.dst.addr].map(|address| F::to_words(address)[0] as u32);
    packet.set_words(header.l3 + 8, [life as u32 | (check as u32) << 16, src, dst])
}

/// Writes both addresses; `delta` is their change, which an IPv4 header's checksum absorbs.
#[inline(always)]
pub fn addresses<F: Family, P: Packet>(
    packet: &mut P,
    l3: usize,
    src: F::Addr,
    dst: F::Addr,
    delta: Option<u32>,
) -> Option<()> {
    let (s, d) = (F::to_words(src), F::to_words(dst));
    if F::V6 {
        let halves = |word: u64| [word as u32, (word >> 32) as u32];
        let [[s0, s1], [s2, s3]] = s.map(halves);
        let [[d0, d1], [d2, d3]] = d.map(halves);
        packet.set_words(l3 + 8, [s0, s1, s2, s3, d0, d1, d2, d3])
    } else {
        if let Some(delta) = delta {
            let field = packet.half(l3 + 10)?;
            packet.set_half(l3 + 10, checksum::apply(field, delta))?;
        }
        packet.set_words(l3 + 12, [s[0] as u32, d[0] as u32])
    }
}

/// Takes one from the time to live or hop limit; no checksum in an IPv6 header absorbs that.
#[inline(always)]
pub fn ttl<F: Family, P: Packet>(packet: &mut P, l3: usize) -> Option<()> {
    if F::V6 {
        let half = packet.half(l3 + 6)?;
        packet.set_half(l3 + 6, half.wrapping_sub(0x0100))?;
        packet.whole_delta(checksum::delta(0x0100, 0));
        Some(())
    } else {
        let half = packet.half(l3 + 8)?;
        let new = half.wrapping_sub(1);
        let field = packet.half(l3 + 10)?;
        packet.set_half(l3 + 8, new)?;
        packet.set_half(
            l3 + 10,
            checksum::apply(field, checksum::delta(half as u64, new as u64)),
        )
    }
}
