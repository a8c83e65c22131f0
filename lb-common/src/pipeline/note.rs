//! A known flow's packets: judge how the flow stands, note what changes, translate.

use super::gate::{addressed, begins, limited, note_first, opens, straight};
use super::{Decided, Hook, Stage, Step, Task, Work};
use crate::access::{Packet, Route, RouteKind, TableFamily, Tables};
use crate::flow::search::{self, Found};
use crate::flow::slot::{Entry, Way};
use crate::flow::state::{self, DATAGRAM, ESTABLISHED, REPLIED, REPLY_HALF, SETTLED};
use crate::flow::table::{self, Spot, Twin};
use crate::layout::{BACKEND_SERVING, BackendControl, config};
use crate::steps::parse::{Header, Ports};
use crate::steps::{forward, rewrite};
use crate::verdict::{Reason, Verdict};
use crate::wire;

/// The stage for a hit with something to note, for fragments and for other protocols; any hook.
#[inline(always)]
pub fn note<F: TableFamily, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    work: &mut Work<F>,
    l3: usize,
    hook: u8,
) -> Step<F::Addr> {
    let verdict = addressed(packet, tables, work, l3, hook);
    if verdict.reason != Reason::Forward {
        return Step::done(verdict);
    }
    let spot = search::complete(tables, &mut work.entry);
    if spot.found == Found::Entry && spot.control.state & (DATAGRAM | REPLY_HALF) == DATAGRAM {
        note_first(tables, tables.firsts(), false);
    }
    match spot.found {
        Found::Entry => match standing(tables, work, &spot, hook) {
            Standing::Healthy => {
                work.flow_state = spot.control.state;
                return Step::next(Stage::Translate);
            }
            Standing::TwinLost => return Step::next(Stage::Enter),
            Standing::Elsewhere => return Step::done(elsewhere(packet, tables, &work.header, &work.entry, hook)),
            Standing::Over => {
                table::free_twin(tables, &work.entry, &mut work.spare, &mut work.spots[0]);
                spot.free::<F, T>(tables);
            }
        },
        Found::Busy => return Step::done(Verdict::drop(Reason::FlowBusy)),
        Found::Nothing => {}
    }
    let dst = work.header.dst;
    if begins::<F, T>(tables, dst, hook) || straight::<F, T>(tables, dst, hook) {
        Step::next(Stage::Begin)
    } else {
        Step::done(Verdict::pass(Reason::NotOurs))
    }
}

/// How a known flow stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Its packets are translated here.
    Healthy,
    /// Its packets are translated here, but its reply half is lost.
    TwinLost,
    /// It applies at another hook.
    Elsewhere,
    /// It is over, has left its backend or its hook, or has lost its way back to another flow: the packet is a new flow's, or
    /// nobody's.
    Over,
}

/// Judges a hit and notes the packet on both halves.
#[inline(always)]
fn standing<F: TableFamily, T: Tables>(tables: &T, work: &mut Work<F>, spot: &Spot, hook: u8) -> Standing {
    let (control, place, protocol) = (spot.control, work.entry.place, work.entry.key.protocol);
    let reply = control.state & REPLY_HALF != 0;
    if place.hooks & hook == 0 {
        // A client that moved to another hook begins anew there.
        return if reply || hook & Hook::BEGINS == 0 {
            Standing::Elsewhere
        } else {
            Standing::Over
        };
    }
    let now = tables.now();
    let flags = work.ports.tcp_flags;
    let opens = opens(protocol, flags);
    let second = control.age(now) as u64 >= tables.config(config::HZ);
    // A connection that nobody has answered for a second may still be another backend's.
    let may_leave = opens && (protocol == wire::UDP || control.state & REPLIED == 0 && second);
    if may_leave && !reply && !serving(tables, place.backend) {
        tables.count(Reason::BackendGone);
        return Standing::Over;
    }
    if !reply && opens && control.closed() || state::expired(tables, control, now) {
        return Standing::Over;
    }
    let mut add = state::observed(control.state, reply, protocol, flags);
    if second && control.state & ESTABLISHED != 0 {
        add |= SETTLED;
    }
    if add != 0 || control.age(now) as u64 >= tables.config(state::grain_word(control.state)) {
        let noted = control.state | add;
        let twin = table::touch_twin(tables, &work.entry, &mut work.spare, noted, now);
        if !reply && twin == Twin::Taken {
            return Standing::Over;
        }
        if !reply && twin == Twin::Lost {
            // Not touched: until it is whole again, every packet of the flow comes here.
            work.flow_state = noted;
            work.task = Task::Reply;
            return Standing::TwinLost;
        }
        table::touch::<F, T>(tables, spot, add, now);
    }
    Standing::Healthy
}

/// True while a backend reference is current and serving.
#[inline(always)]
pub(super) fn serving<T: Tables>(tables: &T, reference: u64) -> bool {
    let Some([control, ..]) = tables.backend(reference as u32) else {
        return false;
    };
    let control = BackendControl::from_word(control);
    control.generation == (reference >> 32) as u16 && control.state & BACKEND_SERVING != 0
}

/// A hit that applies at another hook. A reply that will be un-translated at a bridge port's egress is lifted to the bridge's
/// own MAC, so that it passes the layer at which its flow was translated (netfilter sees both directions or none). One that was
/// asked straight went the same way.
#[inline(always)]
fn elsewhere<F: TableFamily, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    header: &Header<F>,
    entry: &Entry<F>,
    hook: u8,
) -> Decided<F> {
    if hook == Hook::POD_IN
        && header.l3 != 0
        && entry.place.hooks & Hook::POD_OUT != 0
        && entry.rewrite.src != entry.key.src
        && tables.config(config::FLAGS) & config::FLAG_BRIDGES != 0
        && let Some(device) = tables.device(packet.ifindex())
        && device.bridge_mac != 0
    {
        return match forward::set_mac(packet, device.bridge_mac) {
            Some(()) => Verdict::pass(Reason::Lifted),
            None => Verdict::drop(Reason::RewriteFailed),
        };
    }
    Verdict::pass(Reason::OtherHook)
}

/// The stage that translates a packet as the stage before left its headers and its entry in `work`; any hook.
#[inline(always)]
pub fn translate_known<F: TableFamily, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    work: &Work<F>,
    hook: u8,
) -> Decided<F> {
    let reply = work.flow_state & REPLY_HALF != 0;
    let route = (work.route.kind == RouteKind::Via).then_some(&work.route);
    translate(
        packet,
        tables,
        &work.header,
        work.ports,
        &work.entry,
        reply,
        hook,
        route,
    )
}

/// Rewrites a packet by its flow entry and sends it on, by the way out that is known already or is looked up.
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "a hook's whole knowledge of a packet; a struct of it would stand on the stack"
)]
pub(super) fn translate<F: TableFamily, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    header: &Header<F>,
    ports: Ports,
    entry: &Entry<F>,
    reply: bool,
    hook: u8,
    route: Option<&Route<F::Addr>>,
) -> Decided<F> {
    let way = Way::from_number(entry.place.way);
    let exit = forward::exit(packet, tables, header, &entry.rewrite, way, hook, route);
    if !exit.leaves {
        return limited(tables, header, ports.tcp_flags, exit.verdict);
    }
    if rewrite::packet(packet, header, &entry.key, &entry.rewrite, exit.decrement).is_none() {
        return Verdict::drop(Reason::RewriteFailed);
    }
    forward::finish(
        packet,
        header,
        &exit,
        if reply { Reason::Reply } else { Reason::Forward },
    )
}
