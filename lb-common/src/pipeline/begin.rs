//! A flow's first packet: decide what the flow is ([`begin`]), then enter it in the table ([`enter`]).
//!
//! Nothing is entered before a way out is known to exist, and a pair is entered whole or not at all. What seems to be a flow's first packet (a SYN, or a
//! datagram after many that were first) comes here without having been looked for: [`enter`] finds its flow where it takes a slot for it, [`begin`]
//! looks where none may begin. One whose flow stands goes to [`super::note()`], as if nothing had been decided.

use super::gate::{addressed, is_for_us, limited, opens, refusal, refuse_with, seems_first};
use super::{Decided, Hook, Stage, Step, Task, Work};
use crate::access::{Packet, Route, RouteKind, TableFamily, Tables};
use crate::flow::search::{self, Found};
use crate::flow::slot::{Place, Rewrite, Seen, Way};
use crate::flow::state::{self, DATAGRAM, LIVE, REPLY_HALF};
use crate::flow::table::{self, Claimed};
use crate::hash;
use crate::layout::config;
use crate::steps::place::{self, NewSource};
use crate::steps::{forward, select};
use crate::verdict::{Reason, Verdict};
use crate::wire;

/// How many SNAT ports are tried for a new flow.
pub const PORT_TRIES: u32 = 8;

/// How many ports of flows that are over are freed, beside those that are tried.
const FREED_PORTS: u32 = 2;

/// How often a slot is asked for.
const PASSES: u32 = 1 + PORT_TRIES + FREED_PORTS;

/// Distance between the ports that are tried: a prime above every range, so that no walk meets a port twice.
const PORT_STEP: u32 = 65_537;

/// The stage for a flow's first packet; any hook at which flows begin. Decides what the flow is and leaves the rest to [`enter`].
#[inline(always)]
pub fn begin<F: TableFamily, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    work: &mut Work<F>,
    l3: usize,
    hook: u8,
) -> Step<F::Addr> {
    if !is_for_us(packet, tables, l3, hook) {
        return Step::done(Verdict::pass(if P::EARLY {
            Reason::HandedOver
        } else {
            Reason::NotOurs
        }));
    }
    let verdict = addressed(packet, tables, work, l3, hook);
    if verdict.reason != Reason::Forward {
        return Step::done(verdict);
    }
    let verdict = new_flow(packet, tables, work, hook);
    if verdict.reason == Reason::NewFlow {
        return Step::next(Stage::Enter);
    }
    let (key, tcp_flags) = (&work.entry.key, work.ports.tcp_flags);
    if seems_first::<F, T>(tables, key.src.addr, key.protocol, tcp_flags, tables.firsts()) {
        work.spots[0].aim(tables, &work.entry.key);
        if search::scan(tables, &work.entry.key, &mut work.spots[0]) != Found::Nothing {
            return Step::next(Stage::Note);
        }
    }
    Step::done(verdict)
}

/// Decides on the flow that a packet begins, all but its port ([`Reason::NewFlow`]); the verdict where none may begin.
#[inline(always)]
fn new_flow<F: TableFamily, P: Packet, T: Tables>(packet: &P, tables: &T, work: &mut Work<F>, hook: u8) -> Decided<F> {
    let Work {
        header,
        ports,
        entry,
        backend,
        flow_state,
        task,
        route: way_out,
        ..
    } = work;
    let (header, protocol, tcp_flags) = (&*header, entry.key.protocol, ports.tcp_flags);
    let flags = tables.config(config::FLAGS);
    let (value, reason) = select::frontend::<F, T>(tables, &entry.key.dst, protocol);
    if reason == Reason::UnknownPort {
        return refuse_with(
            tables,
            header,
            tcp_flags,
            Verdict::answer(refusal(flags, protocol), 0, reason),
        );
    }
    if reason != Reason::NewFlow {
        return straight_flow(tables, work, hook, reason);
    }
    if !opens(protocol, tcp_flags) && flags & config::FLAG_TAKEOVER != 0 {
        return Verdict::pass(Reason::Takeover);
    }
    let source = if hook == Hook::UPLINK_IN {
        select::Source::Outside
    } else {
        select::Source::Inside
    };
    let reason = select::backend(
        tables,
        &select::Wanted {
            frontend: value,
            key: &entry.key,
            source,
        },
        backend,
    );
    if reason == Reason::NoEndpoints {
        return refuse_with(
            tables,
            header,
            tcp_flags,
            Verdict::answer(refusal(flags, protocol), 0, reason),
        );
    }
    if reason != Reason::NewFlow {
        return Verdict::drop(reason);
    }
    let own = backend.side.addr == entry.key.src.addr;
    let host_routing = flags & config::FLAG_HOST_ROUTING != 0;
    let places = place::decide(hook, packet.sent_by_host(), host_routing, backend.flags, own);
    entry.rewrite = Rewrite {
        src: entry.key.src,
        dst: backend.side,
    };
    entry.place = Place {
        hooks: places.forward_hooks,
        way: places.forward_way as u8,
        service: value.service,
        backend: backend.reference,
    };
    match places.source {
        NewSource::Keep | NewSource::KeepAddress => {}
        NewSource::Frontend => entry.rewrite.src.addr = entry.key.dst.addr,
        // Whichever the way out prefers.
        NewSource::Node => entry.rewrite.src.addr = F::Addr::default(),
    }
    let into_pod = !P::EARLY && places.forward_way == Way::Pod;
    if into_pod || places.source == NewSource::Node {
        let length = forward::whole_length(packet, header);
        tables.first_route::<F>(packet.ifindex(), length, &entry.rewrite, way_out);
        let route = &*way_out;
        if into_pod {
            if !forward::leads_to_pod(tables, route) {
                // Behind a bridge, perhaps, or without a hook: the stack's.
                entry.place.way = Way::Stack as u8;
            }
        } else {
            let exit = forward::via(packet, header, route);
            if !exit.leaves {
                return limited(tables, header, tcp_flags, exit.verdict);
            }
            entry.rewrite.src.addr = snat_address::<F, T>(tables, route);
            if entry.rewrite.src.addr == F::Addr::default() {
                return Verdict::drop(Reason::NoRoute);
            }
        }
        if !route.settled {
            // It is asked for once more, by the packet as it leaves.
            way_out.kind = RouteKind::None;
        }
    }
    *flow_state = first_state(protocol, tcp_flags);
    *task = match places.source {
        NewSource::Node | NewSource::KeepAddress => Task::PairOwnPort,
        NewSource::Keep | NewSource::Frontend => Task::Pair,
    };
    Verdict::pass(Reason::NewFlow)
}

/// Decides on a packet that is no frontend's and passes for `reason`: where it goes straight to a backend and its answers would meet
/// the reply half of a flow that came there through a frontend from the same client port, it becomes a flow of a port of ours.
#[inline(always)]
fn straight_flow<F: TableFamily, T: Tables>(tables: &T, work: &mut Work<F>, hook: u8, reason: Reason) -> Decided<F> {
    let Work {
        ports,
        entry,
        spare,
        flow_state,
        task,
        ..
    } = work;
    let (protocol, tcp_flags) = (entry.key.protocol, ports.tcp_flags);
    if hook & Hook::STRAIGHT == 0 || !opens(protocol, tcp_flags) {
        return Verdict::pass(reason);
    }
    spare.key = entry.key.answer();
    let spot = search::complete(tables, spare);
    if spot.found == Found::Busy {
        return Verdict::drop(Reason::FlowBusy);
    }
    if spot.found == Found::Nothing || spot.control.state & REPLY_HALF == 0 {
        return Verdict::pass(reason);
    }
    entry.rewrite = Rewrite {
        src: entry.key.src,
        dst: entry.key.dst,
    };
    entry.place = Place {
        hooks: hook,
        way: Way::Stack as u8,
        ..spare.place
    };
    *flow_state = first_state(protocol, tcp_flags);
    *task = Task::PairOwnPort;
    Verdict::pass(Reason::NewFlow)
}

/// The state that a flow's first packet gives it.
#[inline(always)]
fn first_state(protocol: u8, tcp_flags: u8) -> u16 {
    let datagram = if protocol == wire::UDP { DATAGRAM } else { 0 };
    LIVE | datagram | state::observed(0, false, protocol, tcp_flags)
}

/// The stage that enters a flow in the table as `begin` or `note` decided.
#[inline(always)]
pub fn enter<F: TableFamily, T: Tables>(tables: &T, work: &mut Work<F>) -> Step<F::Addr> {
    turn(work);
    work.spots[1].aim(tables, &work.entry.key);
    if work.task == Task::Reply {
        return reply_again(tables, work);
    }
    if !try_port(tables, work, 0) {
        return Step::done(Verdict::drop(Reason::PortsExhausted));
    }
    tables.fetch::<F>(work.spots[1].hash);
    tables.fetch::<F>(work.spots[0].hash);
    let claimed = if table::take_at_home::<F, T>(tables, &mut work.spots[1]) {
        Claimed::Slot
    } else {
        claim(tables, work, false)
    };
    if claimed == Claimed::Entry {
        // Known, as of a SYN that is sent again, or by now.
        return Step::next(Stage::Note);
    }
    if claimed != Claimed::Slot {
        return Step::done(Verdict::drop(refusal_of(claimed)));
    }
    let claimed = if table::take_at_home::<F, T>(tables, &mut work.spots[0]) {
        Claimed::Slot
    } else {
        tables.free_port(work)
    };
    if claimed != Claimed::Slot {
        table::unclaim::<F, T>(tables, &mut work.spots[1]);
        return Step::done(Verdict::drop(if claimed == Claimed::Entry {
            Reason::PortsExhausted
        } else {
            refusal_of(claimed)
        }));
    }
    work.entry.rewrite.src.port = work.reply.key.dst.port;
    table::publish_pair(tables, &work.reply, &work.entry, work.flow_state, &mut work.spots);
    tables.count(Reason::NewFlow);
    Step::next(Stage::Translate)
}

/// Enters the reply half again that the forward half at hand has lost. An answer that nobody un-translates would reset the client.
#[inline(always)]
fn reply_again<F: TableFamily, T: Tables>(tables: &T, work: &mut Work<F>) -> Step<F::Addr> {
    work.spots[0].aim(tables, &work.reply.key);
    // The forward half stays where it stands.
    let own = &mut work.spots[1];
    own.found = search::scan(tables, &work.entry.key, own);
    if own.found != Found::Entry {
        return Step::done(Verdict::drop(Reason::FlowBusy));
    }
    let claimed = claim(tables, work, true);
    let Work {
        reply,
        spots: [spot, ..],
        flow_state,
        ..
    } = work;
    if claimed == Claimed::Slot {
        table::publish(tables, reply, *flow_state | REPLY_HALF, spot);
    } else if claimed != Claimed::Entry
        || search::translates(tables, spot, &reply.rewrite.src, &reply.rewrite.dst) != Seen::Same
    {
        return Step::done(Verdict::drop(refusal_of(claimed)));
    }
    tables.count(Reason::Healed);
    Step::next(Stage::Translate)
}

/// Why a flow that got no slot is dropped.
#[inline(always)]
const fn refusal_of(claimed: Claimed) -> Reason {
    match claimed {
        Claimed::Full => Reason::FlowTableFull,
        Claimed::Slot | Claimed::Entry | Claimed::Busy | Claimed::Again | Claimed::Crowded => Reason::FlowBusy,
    }
}

/// Takes a slot for the reply half at hand, or for the forward half.
#[inline(always)]
fn claim<F: TableFamily, T: Tables>(tables: &T, work: &mut Work<F>, reply: bool) -> Claimed {
    let Work {
        entry,
        reply: answer,
        spare,
        spots: [reply_spot, own, room],
        ..
    } = work;
    if reply {
        tables.claim(&answer.key, spare, reply_spot, own, room)
    } else {
        tables.claim(&entry.key, spare, own, reply_spot, room)
    }
}

/// Makes the reply half of the entry at hand.
#[inline(always)]
fn turn<F: TableFamily>(work: &mut Work<F>) {
    let (hooks, way) = place::reply(work.entry.place.hooks, Way::from_number(work.entry.place.way));
    let answers = Place {
        hooks,
        way: way as u8,
        ..work.entry.place
    };
    work.entry.twin_into(answers, &mut work.reply);
}

/// Gives the reply half the source port that is tried at step `i`, and its spot the hash that follows; false where there is no port. [`free_port`] calls it through
/// [`Tables::try_port`].
#[inline(always)]
pub fn try_port<F: TableFamily, T: Tables>(tables: &T, work: &mut Work<F>, i: u32) -> bool {
    let Some(port) = tried_port(tables, work, i) else {
        return false;
    };
    work.reply.key.dst.port = port;
    work.spots[0].aim_by(work.reply.key.hash(tables.config(config::TABLE_SEED)));
    true
}

/// The source port that a new flow tries at step `i`; none where the node has no ports.
///
/// The client's own is the first where it may stay; ports of ours start at a place that the flow's hash picks and walk from there. They
/// are two halves: what comes in from the wire to a backend of this node draws from the upper one, because its client may be a pod
/// or a node that draws for the same address on its own, from the lower one, and none of the two sees the other's table.
#[inline(always)]
fn tried_port<F: TableFamily, T: Tables>(tables: &T, work: &Work<F>, i: u32) -> Option<u16> {
    let entry = &work.entry;
    let all = tables.config(config::PORT_COUNT) as u32;
    if all == 0 {
        return None;
    }
    if i == 0 && work.task == Task::Pair {
        return Some(entry.key.src.port);
    }
    let count = (all / 2).max(1);
    let mut first = tables.config(config::PORT_MIN) as u32;
    if entry.place.hooks & Hook::UPLINK_IN != 0 && entry.place.way == Way::Stack as u8 {
        first += all - count;
    }
    let start = hash::scale(hash::again(work.spots[1].hash), count);
    Some((first + (start + i * PORT_STEP) % count) as u16)
}

/// Finds the source port that makes the reply's key unique, beginning with the one that it has, leaves it there, and takes a slot for the reply
/// half; [`Claimed::Entry`] where other flows have all that were tried. A port whose flow is closed, or of which this flow's reply half alone is left, is
/// taken over, and what stood there ends whole. Called through [`Tables::free_port`].
#[inline(always)]
pub fn free_port<F: TableFamily, T: Tables>(tables: &T, work: &mut Work<F>) -> Claimed {
    let mut tried = 0;
    for _ in 0..PASSES {
        // As in `afresh`: the places of its parts would stand on the stack.
        let work = core::hint::black_box(&mut *work);
        match claim(tables, work, true) {
            Claimed::Slot => return Claimed::Slot,
            Claimed::Entry if tables.take_over(work) => continue,
            // The client's own is being taken or left at this moment.
            refused @ (Claimed::Busy | Claimed::Again | Claimed::Crowded)
                if tried == 0 && work.task != Task::PairOwnPort =>
            {
                return refused;
            }
            Claimed::Full => return Claimed::Full,
            Claimed::Entry | Claimed::Busy | Claimed::Again | Claimed::Crowded => {}
        }
        tried += 1;
        if tried > PORT_TRIES || !tables.try_port(work, tried) {
            break;
        }
    }
    Claimed::Entry
}

/// Frees the flow that has the port which is tried, if it is over, or if its reply half is this flow's and alone. Called through [`Tables::take_over`].
#[inline(always)]
pub fn take_over<F: TableFamily, T: Tables>(tables: &T, work: &mut Work<F>) -> bool {
    let own_port = work.task == Task::PairOwnPort;
    let Work {
        reply,
        spare,
        spots: [spot, own, room],
        ..
    } = work;
    let seen = search::translates(tables, spot, &reply.rewrite.src, &reply.rewrite.dst);
    let is_over = seen == Seen::Same || seen == Seen::Other && own_port && spot.control.closed();
    let freed = is_over && tables.free_pair(spot, spare, room, own);
    spot.found = Found::Nothing;
    freed
}

/// The address that a source-translated packet leaves with: the route's preferred source, else that of the device it leaves
/// by, else steer0's, which is the node's; zero = none.
#[inline(always)]
fn snat_address<F: TableFamily, T: Tables>(tables: &T, route: &Route<F::Addr>) -> F::Addr {
    if route.source != F::Addr::default() {
        return route.source;
    }
    let source = device_source::<F, T>(tables, route.ifindex);
    if source != F::Addr::default() {
        return source;
    }
    device_source::<F, T>(tables, tables.config(config::STEER_IFINDEX) as u32)
}

/// The source for SNAT out of a device; zero = none.
#[inline(always)]
fn device_source<F: TableFamily, T: Tables>(tables: &T, ifindex: u32) -> F::Addr {
    tables.device(ifindex).map_or(F::Addr::default(), |device| {
        F::from_words(if F::V6 {
            device.source_v6
        } else {
            [device.source_v4 as u64, 0]
        })
    })
}
