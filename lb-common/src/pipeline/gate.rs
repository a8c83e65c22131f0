//! What is ours, who may be answered, and the key of a packet: what every stage asks first.

use super::{Decided, Hook, Work};
use crate::access::{Packet, RouteKind, TableFamily, Tables};
use crate::family::Family;
use crate::flow::slot::Key;
use crate::hash;
use crate::layout::{FRONTEND_ECHO, FRONTEND_REFUSE, FragmentKey, config};
use crate::steps::parse::{self, Header, Part, Ports};
use crate::steps::{answer, forward, select};
use crate::verdict::{Action, Answer, Reason, Verdict};
use crate::wire;

/// True when a packet to this address may begin a flow at this hook.
#[inline(always)]
pub(super) fn begins<F: TableFamily, T: Tables>(tables: &T, dst: F::Addr, hook: u8) -> bool {
    hook & Hook::BEGINS != 0 && has_bit(hash::bit::<F>(dst), |word| tables.forward_bits(word))
}

/// True when a packet from this address may answer one that we translated.
#[inline(always)]
pub(super) fn replies<F: TableFamily, T: Tables>(tables: &T, src: F::Addr) -> bool {
    has_bit(hash::bit::<F>(src), |word| tables.reply_bits(word))
}

/// True when a packet to this address may go straight to a backend at this hook, beside flows that go there through a frontend.
#[inline(always)]
pub(super) fn straight<F: TableFamily, T: Tables>(tables: &T, dst: F::Addr, hook: u8) -> bool {
    hook & Hook::STRAIGHT != 0 && has_bit(hash::bit::<F>(dst), |word| tables.reply_bits(word))
}

/// False for a frame from the outside to another host's MAC address: the device sees it because it is promiscuous or a switch
/// floods. To a port of a bridge, the bridge's address is this host's too.
#[inline(always)]
pub(super) fn is_for_us<P: Packet, T: Tables>(packet: &P, tables: &T, l3: usize, hook: u8) -> bool {
    if hook != Hook::UPLINK_IN || l3 == 0 || packet.is_for_host() {
        return true;
    }
    forward::receiver(packet).is_some_and(|mac| tables.receives(packet.ifindex(), mac))
}

/// True when a packet opens a flow, so far as it tells by itself.
#[inline(always)]
pub(super) fn opens(protocol: u8, tcp_flags: u8) -> bool {
    protocol == wire::UDP || connects(tcp_flags)
}

/// True when a packet asks for a connection; one without TCP flags never does.
#[inline(always)]
pub(super) fn connects(tcp_flags: u8) -> bool {
    tcp_flags & (wire::TCP_SYN | wire::TCP_ACK) == wire::TCP_SYN
}

/// Datagrams in a row that were the first of their flows, after which another one is taken for such.
const MANY_FIRSTS: u64 = 64;

/// True for a packet that is decided on before its flow is looked for: one that asks for a connection, and, where the `firsts` datagrams before it all were
/// the first of their flows, one that no backend sends. Whoever decides that it begins no flow has to look then.
#[inline(always)]
pub(super) fn seems_first<F: TableFamily, T: Tables>(
    tables: &T,
    src: F::Addr,
    protocol: u8,
    tcp_flags: u8,
    firsts: u64,
) -> bool {
    if protocol == wire::UDP {
        firsts >= MANY_FIRSTS && !replies::<F, T>(tables, src)
    } else {
        connects(tcp_flags)
    }
}

/// Notes whether a client's datagram was the first of its flow, after `firsts` that were.
#[inline(always)]
pub(super) fn note_first<T: Tables>(tables: &T, firsts: u64, first: bool) {
    let count = if first { (firsts + 1).min(MANY_FIRSTS) } else { 0 };
    if count != firsts {
        tables.set_firsts(count);
    }
}

/// Reads header, ports and the key of a TCP or UDP packet into `work`, of whose way out nothing is known yet. [`Reason::Forward`]: they are there; any other verdict
/// is the packet's.
#[inline(always)]
pub(super) fn addressed<F: TableFamily, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    work: &mut Work<F>,
    l3: usize,
    hook: u8,
) -> Decided<F> {
    work.route.kind = RouteKind::None;
    if !parse::header_again(packet, l3, &mut work.header) {
        return Verdict::pass(Reason::NotParsed);
    }
    let header = &work.header;
    if header.protocol != wire::TCP && header.protocol != wire::UDP {
        return other_protocol::<F, T>(tables, header, begins::<F, T>(tables, header.dst, hook));
    }
    let reason = transport::<F, P, T>(packet, tables, header, &mut work.ports);
    if reason != Reason::Forward {
        return lost_fragment::<F, T>(tables, header, begins::<F, T>(tables, header.dst, hook), reason);
    }
    let ports = work.ports;
    work.entry.key = Key {
        src: header.src_side(ports),
        dst: header.dst_side(ports),
        protocol: header.protocol,
    };
    Verdict::pass(Reason::Forward)
}

/// True when bit `index` is set.
#[inline(always)]
fn has_bit(index: u32, word: impl Fn(u32) -> u64) -> bool {
    word(index >> 6) >> (index & 63) & 1 != 0
}

/// The ports of a TCP or UDP packet, also of a later fragment whose first was seen; [`Reason::Forward`] where they are there.
#[inline(always)]
fn transport<F: TableFamily, P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    header: &Header<F>,
    into: &mut Ports,
) -> Reason {
    if header.fragment.part == Part::Later {
        let Some(ports) = tables.fragment::<F>(&fragment_key(header)) else {
            return Reason::FragmentLost;
        };
        *into = Ports {
            src: (ports >> 16) as u16,
            dst: ports as u16,
            tcp_flags: 0,
        };
        return Reason::Forward;
    }
    let Some(ports) = parse::ports(packet, header.l4, header.protocol) else {
        return Reason::NotParsed;
    };
    *into = ports;
    if header.fragment.part == Part::First {
        tables.remember_fragment::<F>(&fragment_key(header), (ports.src as u64) << 16 | ports.dst as u64);
    }
    Reason::Forward
}

#[inline(always)]
fn fragment_key<F: Family>(header: &Header<F>) -> FragmentKey {
    FragmentKey {
        src: F::to_words(header.src),
        dst: F::to_words(header.dst),
        id: header.fragment.id as u64 | (header.protocol as u64) << 32,
    }
}

/// A packet without usable ports: dropped only where its address is ours alone.
#[inline(always)]
pub(super) fn lost_fragment<F: TableFamily, T: Tables>(
    tables: &T,
    header: &Header<F>,
    to_ours: bool,
    reason: Reason,
) -> Decided<F> {
    let vip = to_ours && select::address_flags::<F, T>(tables, header.dst) & FRONTEND_ECHO != 0;
    if vip {
        Verdict::drop(reason)
    } else {
        Verdict::pass(Reason::NotParsed)
    }
}

/// A protocol that no flow has: refused where the address is a ClusterIP (kube-proxy's nftables mode), else left alone.
#[inline(always)]
fn other_protocol<F: TableFamily, T: Tables>(tables: &T, header: &Header<F>, to_ours: bool) -> Decided<F> {
    let refuse = to_ours && select::address_flags::<F, T>(tables, header.dst) & FRONTEND_REFUSE != 0;
    if refuse {
        return refuse_with(
            tables,
            header,
            0,
            Verdict::answer(Answer::PortUnreachable, 0, Reason::UnknownProtocol),
        );
    }
    Verdict::pass(Reason::NotOurs)
}

/// An answer, if the packet may have one and the rate limit allows it.
#[inline(always)]
pub(super) fn refuse_with<F: TableFamily, T: Tables>(
    tables: &T,
    header: &Header<F>,
    tcp_flags: u8,
    verdict: Decided<F>,
) -> Decided<F> {
    if !answer::permitted(header, tcp_flags) {
        return Verdict::drop(Reason::Silent);
    }
    if !tables.answer_token() {
        return Verdict::drop(Reason::RateLimited);
    }
    verdict
}

/// Passes a verdict on, an answer only within the rate limit.
#[inline(always)]
pub(super) fn limited<F: TableFamily, T: Tables>(
    tables: &T,
    header: &Header<F>,
    tcp_flags: u8,
    verdict: Decided<F>,
) -> Decided<F> {
    if verdict.action == Action::Answer {
        refuse_with(tables, header, tcp_flags, verdict)
    } else {
        verdict
    }
}

/// How a refused packet is answered.
#[inline(always)]
pub(super) fn refusal(flags: u64, protocol: u8) -> Answer {
    if protocol == wire::TCP && flags & config::FLAG_REFUSE_BY_ICMP == 0 {
        Answer::Reset
    } else {
        Answer::PortUnreachable
    }
}
