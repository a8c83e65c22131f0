//! How a translated packet leaves the hook: to the stack, back, to the host, or out by our own route look-up.
//!
//! [`exit`] decides before anything is written, so that a packet which cannot leave is answered or dropped untranslated;
//! [`finish`] acts after the rewrite. A packet that we route ourselves skips the kernel's forwarding, so its MTU and time to
//! live are checked here (RFC 791, RFC 1812 section 5.3.1, RFC 8200). One that is too big but may be fragmented is handed to the
//! kernel at the loopback, translated: it forwards from there what has an address of this host as its source, and cuts it.
//!
//! What goes straight into a pod is routed by us as well; the pod's receive path takes it over instead of the host's, of which no
//! hook, no rule and no policy sees it.
//!
//! At a hook that is early ([`Packet::EARLY`]) a packet leaves only by a way that is sure to the end: to the stack with a mark
//! that keeps the later hook from translating it again, or by the device it came in by to a next hop whose MAC address the
//! kernel knows. Any other is handed over, untouched.

use crate::access::{Macs, Packet, Route, RouteKind, TableFamily, Tables};
use crate::flow::slot::{Rewrite, Way};
use crate::layout::{DEVICE_POD, config};
use crate::pipeline::Hook;
use crate::steps::parse::Header;
use crate::verdict::{Action, Answer, Reason, Verdict};
use crate::wire;

/// A decided way out; all of it always set (see [`Verdict`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit<F: TableFamily> {
    /// The verdict as it will be.
    pub verdict: Verdict<F::Addr>,
    /// What becomes of the Ethernet header.
    pub link: Link,
    /// The MAC addresses that [`Link::To`] and [`Link::Hop`] write.
    pub macs: Macs,
    /// Take one from the time to live.
    pub decrement: bool,
    /// False: the packet cannot leave; the verdict says what becomes of it, untranslated.
    pub leaves: bool,
}

/// What becomes of the Ethernet header of a packet that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Link {
    /// It stays, or the kernel writes it.
    Keep,
    /// Its addresses change places.
    Swap,
    /// It gets another destination.
    To,
    /// It gets both addresses.
    Hop,
}

impl<F: TableFamily> Exit<F> {
    /// A way out by `action`.
    #[inline(always)]
    fn by(action: Action) -> Self {
        Self {
            verdict: Verdict::new(action, Reason::Forward),
            link: Link::Keep,
            macs: Macs::default(),
            decrement: false,
            leaves: true,
        }
    }

    /// No way out.
    #[inline(always)]
    fn refused(verdict: Verdict<F::Addr>) -> Self {
        Self {
            verdict,
            leaves: false,
            ..Self::by(Action::Drop)
        }
    }

    /// Left to the later hook.
    #[inline(always)]
    fn handed_over() -> Self {
        Self::refused(Verdict::pass(Reason::HandedOver))
    }
}

/// The mark of a packet that an early hook of the device has translated: of this node, and of this device.
#[inline(always)]
pub fn mark<T: Tables>(tables: &T, ifindex: u32) -> u32 {
    tables.config(config::TABLE_SEED) as u32 ^ ifindex
}

/// Decides how a packet that becomes `rewrite` leaves a hook; by `known`, where that is its way out. One that leaves must be rewritten or dropped.
#[inline(always)]
pub fn exit<F: TableFamily, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    header: &Header<F>,
    rewrite: &Rewrite<F>,
    way: Way,
    hook: u8,
    known: Option<&Route<F::Addr>>,
) -> Exit<F> {
    match way {
        Way::Stack if P::EARLY => match packet.mark(mark(tables, packet.ifindex())) {
            Some(()) => Exit::by(Action::Pass),
            None => Exit::handed_over(),
        },
        Way::Stack => Exit::by(Action::Pass),
        Way::Back => {
            let mut exit = Exit::by(Action::Transmit);
            exit.verdict.ifindex = packet.ifindex();
            exit.link = Link::Swap;
            exit
        }
        Way::Steer | Way::Loopback | Way::Pod if P::EARLY => Exit::handed_over(),
        // The stack has it on its way into the pod already.
        Way::Pod if hook != Hook::POD_IN => Exit::by(Action::Pass),
        Way::Steer => host(
            header,
            tables.config(config::STEER_IFINDEX) as u32,
            tables.config(config::STEER_MAC),
        ),
        Way::Loopback => loopback(tables, header),
        Way::Route | Way::Pod => {
            let route = if let Some(route) = known {
                *route
            } else {
                let length = wire_length(packet, header);
                tables.recent_route::<F>(packet.ifindex(), rewrite.src.addr, rewrite.dst.addr, length)
            };
            if !P::EARLY && route.kind == RouteKind::TooBig && may_be_cut(packet, header) {
                loopback(tables, header)
            } else {
                let mut exit = via(packet, header, &route);
                let known = route.macs.to != 0 && header.l3 != 0;
                if !P::EARLY && way == Way::Pod && exit.leaves && known && leads_to_pod(tables, &route) {
                    exit.verdict.action = Action::Deliver;
                    exit.link = Link::Hop;
                    exit.macs = route.macs;
                }
                exit
            }
        }
    }
}

/// Into the host by the loopback.
#[inline(always)]
fn loopback<F: TableFamily, T: Tables>(tables: &T, header: &Header<F>) -> Exit<F> {
    host(header, tables.config(config::LO_IFINDEX) as u32, 0)
}

/// True for a packet that routers may fragment (RFC 791; IPv6 has none), and that the host can be given: with a link header.
#[inline(always)]
fn may_be_cut<F: TableFamily, P: Packet>(packet: &P, header: &Header<F>) -> bool {
    const DONT_FRAGMENT: u16 = 0x4000;
    let is_free = |half| u16::from_be(half) & DONT_FRAGMENT == 0;
    !F::V6 && header.l3 != 0 && packet.half(header.l3 + 6).is_some_and(is_free)
}

/// The length that a way out must carry: that of the packet on the wire, or nothing where the packet may be cut.
#[inline(always)]
pub fn whole_length<F: TableFamily, P: Packet>(packet: &P, header: &Header<F>) -> u16 {
    if !P::EARLY && may_be_cut(packet, header) {
        0
    } else {
        wire_length(packet, header)
    }
}

/// The exit that a route gives.
#[inline(always)]
pub fn via<F: TableFamily, P: Packet>(packet: &P, header: &Header<F>, route: &Route<F::Addr>) -> Exit<F> {
    match route.kind {
        RouteKind::Via if P::EARLY && header.ttl() > 1 && is_sure(packet, route) => {
            let mut exit = Exit::by(Action::Transmit);
            exit.verdict.ifindex = route.ifindex;
            exit.link = Link::Hop;
            exit.macs = route.macs;
            exit.decrement = true;
            exit
        }
        _ if P::EARLY => Exit::handed_over(),
        RouteKind::Via => {
            let decrement = !packet.sent_by_host();
            if decrement && header.ttl() <= 1 {
                return Exit::refused(Verdict::answer(Answer::TimeExceeded, 0, Reason::TimeExceeded));
            }
            let mut exit = Exit::by(Action::Neighbour);
            exit.verdict.ifindex = route.ifindex;
            exit.verdict.next_hop = route.next_hop;
            exit.decrement = decrement;
            exit
        }
        RouteKind::TooBig => Exit::refused(Verdict::answer(Answer::TooBig, route.mtu, Reason::TooBig)),
        RouteKind::Local => Exit::by(Action::Pass),
        RouteKind::None => Exit::refused(Verdict::drop(Reason::NoRoute)),
    }
}

/// True where a way out is a pod's device.
#[inline(always)]
pub fn leads_to_pod<A, T: Tables>(tables: &T, route: &Route<A>) -> bool {
    route.kind == RouteKind::Via
        && tables
            .device(route.ifindex)
            .is_some_and(|device| device.flags & DEVICE_POD != 0)
}

/// True where a frame may go back out of the device that it came in by. One that was sent to another host (the device is
/// promiscuous) is not ours to forward.
#[inline(always)]
fn is_sure<A, P: Packet>(packet: &P, route: &Route<A>) -> bool {
    route.ifindex == packet.ifindex() && route.macs.to != 0 && Some(route.macs.from) == receiver(packet)
}

/// The MAC address that a frame was sent to.
#[inline(always)]
pub fn receiver<P: Packet>(packet: &P) -> Option<u64> {
    let [first, second] = packet.words::<2>(0)?;
    Some(first as u64 | (second as u64 & 0xffff) << 32)
}

#[inline(always)]
fn host<F: TableFamily>(header: &Header<F>, ifindex: u32, mac: u64) -> Exit<F> {
    if header.l3 == 0 || ifindex == 0 {
        return Exit::refused(Verdict::drop(Reason::UnsupportedDevice));
    }
    let mut exit = Exit::by(Action::Receive);
    exit.verdict.ifindex = ifindex;
    exit.link = Link::To;
    exit.macs.to = mac;
    exit
}

/// Layer-3 length of the largest packet that this one becomes on the wire.
#[inline(always)]
fn wire_length<F: TableFamily, P: Packet>(packet: &P, header: &Header<F>) -> u16 {
    let payload = packet.segment_payload();
    if payload == 0 {
        return header.length;
    }
    let transport = if header.protocol == wire::TCP {
        packet
            .half(header.l4 + 12)
            .map_or(wire::TCP_LEN, |half| ((half & 0xf0) >> 2) as usize)
    } else {
        wire::UDP_LEN
    };
    (header.l4 - header.l3 + transport + payload) as u16
}

/// Sends a rewritten packet on its way.
#[inline(always)]
pub fn finish<F: TableFamily, P: Packet>(
    packet: &mut P,
    header: &Header<F>,
    exit: &Exit<F>,
    reason: Reason,
) -> Verdict<F::Addr> {
    let written = match exit.link {
        Link::Keep => Some(()),
        Link::Swap => swap_macs(packet, header.l3),
        Link::To => set_mac(packet, exit.macs.to),
        Link::Hop => set_macs(packet, exit.macs),
    };
    if written.is_none() {
        return Verdict::drop(Reason::RewriteFailed);
    }
    Verdict { reason, ..exit.verdict }
}

/// Swaps the MAC addresses of the Ethernet header; nothing to do without one.
#[inline(always)]
pub fn swap_macs<P: Packet>(packet: &mut P, l3: usize) -> Option<()> {
    if l3 == 0 {
        return Some(());
    }
    let [a, b, c] = packet.words::<3>(0)?;
    packet.set_words(0, [b >> 16 | c << 16, c >> 16 | a << 16, a >> 16 | b << 16])
}

/// Writes both MAC addresses.
#[inline(always)]
fn set_macs<P: Packet>(packet: &mut P, macs: Macs) -> Option<()> {
    let Macs { to, from } = macs;
    packet.set_words(
        0,
        [to as u32, (to >> 32) as u32 | (from as u32) << 16, (from >> 16) as u32],
    )
}

/// Writes the destination MAC address.
#[inline(always)]
pub fn set_mac<P: Packet>(packet: &mut P, mac: u64) -> Option<()> {
    packet.set_words(0, [mac as u32])?;
    packet.set_half(4, (mac >> 32) as u16)
}
