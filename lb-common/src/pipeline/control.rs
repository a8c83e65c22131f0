//! ICMP, and the answers that the node gives itself.

use super::gate::{begins, is_for_us, lost_fragment, refuse_with, replies, straight};
use super::{Decided, Hook, Stage, Step, Work};
use crate::access::{Packet, TableFamily, Tables};
use crate::family::{Family, Side};
use crate::flow::search::{self, Found};
use crate::flow::slot::{Rewrite, Way};
use crate::layout::{FRONTEND_ECHO, config};
use crate::steps::parse::{self, Header, Part};
use crate::steps::{answer, forward, icmp, rewrite, select};
use crate::verdict::{Answer, Reason, Verdict};

/// The stage for ICMP, and for whatever stands behind IPv6 extension headers; any hook.
#[inline(always)]
pub fn control<F: TableFamily, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    work: &mut Work<F>,
    l3: usize,
    hook: u8,
) -> Step<F::Addr> {
    if !parse::header_again(packet, l3, &mut work.header) {
        return Step::done(Verdict::pass(Reason::NotParsed));
    }
    if P::EARLY && !parse::is_plain(packet, &work.header) {
        return Step::done(Verdict::pass(Reason::HandedOver));
    }
    let header = &work.header;
    if header.protocol == F::ICMP {
        return Step::done(icmp(packet, tables, work, l3, hook));
    }
    let ours = begins::<F, T>(tables, header.dst, hook)
        || replies::<F, T>(tables, header.src)
        || straight::<F, T>(tables, header.dst, hook);
    if ours {
        Step::next(Stage::Note)
    } else {
        Step::done(Verdict::pass(Reason::NotOurs))
    }
}

/// ICMP whose header was read.
#[inline(always)]
fn icmp<F: TableFamily, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    work: &mut Work<F>,
    l3: usize,
    hook: u8,
) -> Decided<F> {
    if work.header.fragment.part == Part::Later {
        let begins = begins::<F, T>(tables, work.header.dst, hook);
        return lost_fragment::<F, T>(tables, &work.header, begins, Reason::FragmentLost);
    }
    match icmp::kind::<F, P>(packet, work.header.l4) {
        Some(icmp::Kind::Error) => translate_error(packet, tables, work, hook),
        Some(icmp::Kind::EchoRequest) if is_for_us(packet, tables, l3, hook) => echo(tables, &work.header, hook),
        _ => Verdict::pass(Reason::NotOurs),
    }
}

/// An ICMP error: translated if it quotes a packet of a flow of ours, and was sent to whom that packet came from.
#[inline(always)]
fn translate_error<F: TableFamily, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    work: &mut Work<F>,
    hook: u8,
) -> Decided<F> {
    let Work {
        header, entry, quoted, ..
    } = work;
    if !icmp::quoted(packet, header.l4, &mut entry.key, quoted) || header.dst != entry.key.dst.addr {
        return Verdict::pass(Reason::IcmpErrorPassed);
    }
    if search::complete(tables, entry).found != Found::Entry {
        return Verdict::pass(Reason::IcmpErrorPassed);
    }
    if entry.place.hooks & hook == 0 {
        return Verdict::pass(Reason::OtherHook);
    }
    let way = Way::from_number(entry.place.way);
    let exit = forward::exit(packet, tables, header, &entry.rewrite, way, hook, None);
    if !exit.leaves {
        return if P::EARLY {
            exit.verdict
        } else {
            Verdict::drop(Reason::NoRoute)
        };
    }
    let hide_router = matches!(way, Way::Steer | Way::Loopback);
    if !icmp::translate(packet, header, quoted, entry, hide_router)
        || exit.decrement && rewrite::ttl::<F, P>(packet, header.l3).is_none()
    {
        return Verdict::drop(Reason::RewriteFailed);
    }
    forward::finish(packet, header, &exit, Reason::IcmpError)
}

/// An echo request: answered if it is for a VIP.
#[inline(always)]
fn echo<F: TableFamily, T: Tables>(tables: &T, header: &Header<F>, hook: u8) -> Decided<F> {
    if !begins::<F, T>(tables, header.dst, hook) {
        return Verdict::pass(Reason::NotOurs);
    }
    if select::address_flags::<F, T>(tables, header.dst) & FRONTEND_ECHO == 0 {
        return Verdict::pass(Reason::NotOurs);
    }
    if tables.config(config::FLAGS) & config::FLAG_ECHO == 0 || header.fragment.part != Part::Whole {
        return Verdict::drop(Reason::EchoDropped);
    }
    refuse_with(tables, header, 0, Verdict::answer(Answer::Echo, 0, Reason::Echo))
}

/// Carries out `Action::Answer`: builds the answer in the packet and says how it leaves.
#[inline(always)]
pub fn reply_in_place<F: TableFamily, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    work: &mut Work<F>,
    l3: usize,
    hook: u8,
    how: Answer,
    mtu: u16,
) -> Decided<F> {
    if !parse::header_again(packet, l3, &mut work.header) {
        return Verdict::drop(Reason::AnswerFailed);
    }
    let header = &work.header;
    if answer::build(packet, header, how, mtu).is_none() {
        return Verdict::drop(Reason::AnswerFailed);
    }
    let way = match hook {
        Hook::STEER_OUT => Way::Steer,
        Hook::LO_OUT => Way::Loopback,
        _ => Way::Back,
    };
    let exit = forward::exit(packet, tables, header, &no_rewrite(header), way, hook, None);
    if exit.leaves {
        forward::finish(packet, header, &exit, Reason::Echo)
    } else {
        exit.verdict
    }
}

/// A rewrite that only names the packet's own sides, for ways that do not look at it.
#[inline(always)]
fn no_rewrite<F: Family>(header: &Header<F>) -> Rewrite<F> {
    Rewrite {
        src: Side {
            addr: header.dst,
            port: 0,
        },
        dst: Side {
            addr: header.src,
            port: 0,
        },
    }
}
