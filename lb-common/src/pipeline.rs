//! The packet's way, in order. Everything a hook does starts in [`fast`]; the steps are in [`crate::steps`].
//!
//! ```text
//! fast       parse → is it ours? → flow look-up ─hit, nothing to note→ way out → rewrite → go on
//! note       a hit that changes state, age or hook: noted on both halves → translate; over or gone → begin; twin lost → enter
//! begin      frontend → source class → backend → place → a way out exists → enter
//! enter      port → both halves into the flow table → translate
//! translate  flow look-up → way out → rewrite → go on
//! control    ICMP: an error about a flow → translate both headers; ping to a VIP → answer
//! answer     RST, ICMP error or echo reply built in the packet that asked
//! ```
//! Stages, because a kernel program has 512 bytes of stack: [`fast`] is all that an established flow needs; the others are
//! reached by tail calls, few a flow. [`process`] is their composition.
//!
//! What the later stages need room for stands in a [`Work`] that the caller lends (in the kernel a per-CPU map value).
//!
//! Rules: find out that a packet is ours before dropping or answering anything; decide the way out before writing anything;
//! an established flow costs one flow look-up; every return names a [`Reason`], which the caller counts.

use crate::access::{Packet, Route, TableFamily, Tables};
use crate::family::{Family, Side};
use crate::flow::slot::{Entry, Key, Place, Rewrite, Way};
use crate::flow::state::{self, DATAGRAM, ESTABLISHED, LIVE, REPLY_HALF, SETTLED};
use crate::flow::table::{self, Found, Inserted, Spot};
use crate::hash;
use crate::layout::{BACKEND_SERVING, BackendControl, FRONTEND_ECHO, FRONTEND_REFUSE, config};
use crate::steps::parse::{self, Header, Part, Ports};
use crate::steps::place::{self, NewSource};
use crate::steps::{answer, forward, icmp, rewrite, select};
use crate::verdict::{Action, Answer, Reason, Verdict};
use crate::wire;

/// Stages that one packet may pass before it is given up (the kernel's own limit of tail calls is 33).
const MAX_STAGES: usize = 8;

/// How many SNAT ports are tried for a new flow.
pub const PORT_TRIES: u32 = 8;
/// Distance between the ports that are tried; odd, so that neighbours' walks differ.
const PORT_STEP: u32 = 61;

/// The hooks, one bit each. A hook is a role of a device and a direction.
pub struct Hook;

impl Hook {
    /// Ingress of a pod's host-side device.
    pub const POD_IN: u8 = 1;
    /// Egress of a pod's host-side device.
    pub const POD_OUT: u8 = 2;
    /// Ingress of an uplink or tunnel.
    pub const UPLINK_IN: u8 = 4;
    /// Egress of an uplink or tunnel.
    pub const UPLINK_OUT: u8 = 8;
    /// Egress of steer0.
    pub const STEER_OUT: u8 = 16;
    /// Egress of the loopback.
    pub const LO_OUT: u8 = 32;

    /// Hooks at which new flows begin.
    pub const BEGINS: u8 = Self::POD_IN | Self::UPLINK_IN | Self::STEER_OUT | Self::LO_OUT;
}

/// A verdict on a packet of family `F`.
type Decided<F> = Verdict<<F as Family>::Addr>;

/// A later stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// None: the packet is decided.
    Done,
    /// [`note`].
    Note,
    /// [`begin`].
    Begin,
    /// [`enter`].
    Enter,
    /// [`translate_known`].
    Translate,
    /// [`control`].
    Control,
}

/// What a stage made of a packet; all of it always set (see [`Verdict`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step<N> {
    /// The stage that has to look at it next, the packet being untouched; [`Stage::Done`] where it is decided.
    pub next: Stage,
    /// The verdict, for [`Stage::Done`]; the packet is rewritten where need be.
    pub verdict: Verdict<N>,
}

impl<N: Default> Step<N> {
    /// Decided.
    #[inline(always)]
    pub fn done(verdict: Verdict<N>) -> Self {
        Self {
            next: Stage::Done,
            verdict,
        }
    }

    /// On to another stage.
    #[inline(always)]
    pub fn next(next: Stage) -> Self {
        Self {
            next,
            verdict: Verdict::drop(Reason::StageMissing),
        }
    }
}

/// Room for the later stages, and what one leaves for the next; nothing in it outlives the packet.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Work<F: Family> {
    /// The packet's headers.
    pub header: Header<F>,
    /// Its ports.
    pub ports: Ports,
    /// The flow entry at hand.
    pub entry: Entry<F>,
    /// Another entry: the twin, or one that is evicted.
    pub spare: Entry<F>,
    /// For [`enter`]: the state that the entry begins with.
    pub flow_state: u16,
    /// For [`enter`]: what is to be entered.
    pub task: Task,
}

/// What [`enter`] has to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Enter both halves; the client's port stays if it can.
    Pair,
    /// Enter both halves with a port of ours.
    PairOwnPort,
    /// Enter the reply half again.
    Reply,
}

impl<F: Family> Work<F> {
    /// Room with nothing in it.
    pub fn empty() -> Self {
        Self {
            header: Header::empty(),
            ports: Ports::default(),
            entry: Entry::empty(),
            spare: Entry::empty(),
            flow_state: 0,
            task: Task::Pair,
        }
    }
}

/// All stages: what the programs of a hook do together.
pub fn process<F: TableFamily, P: Packet, T: Tables, const HOOK: u8>(
    packet: &mut P,
    tables: &T,
    l3: usize,
) -> Decided<F> {
    let mut work = Work::<F>::empty();
    let mut step = fast::<F, P, T, HOOK>(packet, tables, l3);
    for _ in 0..MAX_STAGES {
        step = match step.next {
            Stage::Done => break,
            Stage::Note => note(packet, tables, &mut work, l3, HOOK),
            Stage::Begin => begin(packet, tables, &mut work, l3, HOOK),
            Stage::Enter => enter(tables, &mut work),
            Stage::Translate => Step::done(translate_known(packet, tables, &mut work, l3)),
            Stage::Control => Step::done(control(packet, tables, &mut work, l3, HOOK)),
        };
    }
    let verdict = step.verdict;
    tables.count(verdict.reason);
    if verdict.action != Action::Answer {
        return verdict;
    }
    let answered = reply_in_place(packet, tables, &mut work, l3, HOOK, verdict.answer, verdict.mtu);
    if answered.action == Action::Drop {
        tables.count(answered.reason);
    }
    Verdict {
        reason: verdict.reason,
        ..answered
    }
}

/// First stage. The IP header starts at `l3`.
#[inline(always)]
pub fn fast<F: TableFamily, P: Packet, T: Tables, const HOOK: u8>(
    packet: &mut P,
    tables: &T,
    l3: usize,
) -> Step<F::Addr> {
    let mut header = Header::empty();
    if !parse::header::<F, P>(packet, l3, &mut header) {
        return Step::done(Verdict::pass(Reason::NotParsed));
    }
    if header.protocol == F::ICMP {
        return Step::next(Stage::Control);
    }
    let begins = begins::<F, T>(tables, header.dst, HOOK);
    if !begins && !has_bit(hash::bit::<F>(header.src), |word| tables.reply_bits(word)) {
        return Step::done(Verdict::pass(Reason::NotOurs));
    }
    if header.protocol != wire::TCP && header.protocol != wire::UDP || header.fragment.part != Part::Whole {
        return Step::next(Stage::Note);
    }
    let Some(ports) = parse::ports(packet, header.l4, header.protocol) else {
        return Step::done(Verdict::pass(Reason::NotParsed));
    };
    let key = Key {
        src: header.src_side(ports),
        dst: header.dst_side(ports),
        protocol: header.protocol,
    };
    let (spot, read) = table::find::<F, T>(tables, &key, key.hash(tables.config(config::TABLE_SEED)));
    let Some((rewrite, place)) = read else {
        return match spot.found {
            Found::Nothing if begins => Step::next(Stage::Begin),
            Found::Nothing => Step::done(Verdict::pass(Reason::NotOurs)),
            Found::Busy | Found::Entry => Step::done(Verdict::drop(Reason::FlowBusy)),
        };
    };
    let entry = Entry { key, rewrite, place };
    let reply = spot.control.state & REPLY_HALF != 0;
    if entry.place.hooks & HOOK == 0 {
        let lift = HOOK == Hook::POD_IN && tables.config(config::FLAGS) & config::FLAG_BRIDGES != 0;
        return if reply && !lift {
            Step::done(Verdict::pass(Reason::OtherHook))
        } else {
            Step::next(Stage::Note)
        };
    }
    let unremarkable = state::observed(spot.control.state, reply, key.protocol, ports.tcp_flags) == 0
        && (spot.control.age(tables.now()) as u64) < tables.config(config::HZ)
        && !spot.control.closed()
        && (key.protocol != wire::UDP || reply || serving(tables, entry.place.backend));
    if !unremarkable {
        return Step::next(Stage::Note);
    }
    Step::done(translate(packet, tables, &header, ports, &entry, reply))
}

/// Rewrites a packet by its flow entry and sends it on.
#[inline(always)]
fn translate<F: TableFamily, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    header: &Header<F>,
    ports: Ports,
    entry: &Entry<F>,
    reply: bool,
) -> Decided<F> {
    let exit = forward::exit(
        packet,
        tables,
        header,
        &entry.rewrite,
        Way::from_number(entry.place.way),
    );
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
    let spot = table::complete(tables, &mut work.entry);
    match spot.found {
        Found::Entry => match standing(tables, work, &spot, hook) {
            Standing::Healthy => return Step::next(Stage::Translate),
            Standing::TwinLost => return Step::next(Stage::Enter),
            Standing::Elsewhere => return Step::done(elsewhere(packet, tables, &work.header, &work.entry, hook)),
            Standing::Over => {
                table::free_twin(tables, &work.entry, &mut work.spare);
                spot.free::<F, T>(tables);
            }
        },
        Found::Busy => return Step::done(Verdict::drop(Reason::FlowBusy)),
        Found::Nothing => {}
    }
    if begins::<F, T>(tables, work.header.dst, hook) {
        Step::next(Stage::Begin)
    } else {
        Step::done(Verdict::pass(Reason::NotOurs))
    }
}

/// The stage that translates a packet whose flow is known and noted; any hook.
#[inline(always)]
pub fn translate_known<F: TableFamily, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    work: &mut Work<F>,
    l3: usize,
) -> Decided<F> {
    let verdict = addressed(packet, tables, work, l3, 0);
    if verdict.reason != Reason::Forward {
        return verdict;
    }
    let spot = table::complete(tables, &mut work.entry);
    if spot.found != Found::Entry {
        return Verdict::drop(Reason::FlowBusy);
    }
    let reply = spot.control.state & REPLY_HALF != 0;
    translate(packet, tables, &work.header, work.ports, &work.entry, reply)
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
    /// It is over, or has left its backend or its hook: the packet is a new flow's, or nobody's.
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
    if protocol == wire::UDP && !reply && !serving(tables, place.backend) {
        tables.count(Reason::BackendGone);
        return Standing::Over;
    }
    let now = tables.now();
    let flags = work.ports.tcp_flags;
    let opens = protocol == wire::TCP && flags & (wire::TCP_SYN | wire::TCP_ACK) == wire::TCP_SYN;
    if !reply && opens && control.closed() || state::expired(tables, control, now) {
        return Standing::Over;
    }
    let mut add = state::observed(control.state, reply, protocol, flags);
    let second = control.age(now) as u64 >= tables.config(config::HZ);
    if second && control.state & ESTABLISHED != 0 {
        add |= SETTLED;
    }
    if add != 0 || second {
        let noted = table::touch::<F, T>(tables, spot, add, now);
        if !table::touch_twin(tables, &work.entry, &mut work.spare, noted, now) && !reply {
            work.flow_state = noted;
            work.task = Task::Reply;
            return Standing::TwinLost;
        }
    }
    Standing::Healthy
}

/// The stage for a flow's first packet; any hook at which flows begin. Decides what the flow is and leaves the rest to [`enter`].
#[inline(always)]
pub fn begin<F: TableFamily, P: Packet, T: Tables>(
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
    let verdict = new_flow(packet, tables, work, hook);
    if verdict.reason == Reason::NewFlow {
        Step::next(Stage::Enter)
    } else {
        Step::done(verdict)
    }
}

/// Decides on the flow that a packet begins, all but its port ([`Reason::NewFlow`]); the verdict where none may begin.
#[inline(always)]
fn new_flow<F: TableFamily, P: Packet, T: Tables>(packet: &P, tables: &T, work: &mut Work<F>, hook: u8) -> Decided<F> {
    let Work {
        header,
        ports,
        entry,
        flow_state,
        task,
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
        return Verdict::pass(reason);
    }
    let opens = tcp_flags & (wire::TCP_SYN | wire::TCP_ACK) == wire::TCP_SYN;
    if protocol == wire::TCP && !opens && flags & config::FLAG_TAKEOVER != 0 {
        return Verdict::pass(Reason::Takeover);
    }
    let source = if hook == Hook::UPLINK_IN {
        select::Source::Outside
    } else {
        select::Source::Inside
    };
    let mut backend = select::Backend::empty();
    let reason = select::backend(
        tables,
        &select::Wanted {
            frontend: value,
            key: &entry.key,
            source,
        },
        &mut backend,
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
    let places = place::decide(hook, packet.from_host(), backend.flags, own);
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
        NewSource::Keep => {}
        NewSource::Frontend => entry.rewrite.src.addr = entry.key.dst.addr,
        NewSource::Node => {
            let length = forward::wire_length(packet, header);
            let route = tables.route::<F>(packet.ifindex(), F::Addr::default(), backend.side.addr, length);
            let exit = forward::via(packet, header, &route);
            if !exit.leaves {
                return limited(tables, header, tcp_flags, exit.verdict);
            }
            entry.rewrite.src.addr = snat_address::<F, T>(tables, &route);
            if entry.rewrite.src.addr == F::Addr::default() {
                return Verdict::drop(Reason::NoRoute);
            }
        }
    }
    let datagram = if protocol == wire::UDP { DATAGRAM } else { 0 };
    *flow_state = LIVE | datagram | state::observed(0, false, protocol, tcp_flags);
    *task = if places.source == NewSource::Node {
        Task::PairOwnPort
    } else {
        Task::Pair
    };
    Verdict::pass(Reason::NewFlow)
}

/// The stage that enters a flow in the table as [`begin`] or [`note`] decided.
#[inline(always)]
pub fn enter<F: TableFamily, T: Tables>(tables: &T, work: &mut Work<F>) -> Step<F::Addr> {
    let Work {
        entry,
        spare,
        flow_state,
        task,
        ..
    } = work;
    let (hooks, way) = place::reply(entry.place.hooks, Way::from_number(entry.place.way));
    let reply_place = Place {
        hooks,
        way: way as u8,
        ..entry.place
    };
    if *task == Task::Reply {
        if table::insert_reply(tables, entry, spare, reply_place, *flow_state) {
            tables.count(Reason::Healed);
        }
        return Step::next(Stage::Translate);
    }
    let found = free_port(tables, entry, spare, *task == Task::PairOwnPort);
    if found == Port::None {
        return Step::done(Verdict::drop(Reason::PortsExhausted));
    }
    entry.rewrite.src.port = spare.key.dst.port;
    let reply_stands = found == Port::ReplyStands;
    match table::insert_pair(tables, entry, spare, reply_place, *flow_state, reply_stands) {
        Inserted::Pair => {
            tables.count(Reason::NewFlow);
            Step::next(Stage::Translate)
        }
        Inserted::Conflict => Step::done(Verdict::drop(Reason::FlowBusy)),
        Inserted::Full => Step::done(Verdict::drop(Reason::FlowTableFull)),
    }
}

/// What came of the search for a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Port {
    /// None is free.
    None,
    /// This one is free.
    Free,
    /// This one is the flow's already: its reply entry stands.
    ReplyStands,
}

/// Finds the source port that makes the reply's key unique; leaves that key in `spare`.
///
/// The client's own port is tried first where it may stay; ports of ours start at a place that the flow's hash picks and walk
/// from there. A port whose flow is closed is taken over.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn free_port<F: TableFamily, T: Tables>(tables: &T, entry: &Entry<F>, spare: &mut Entry<F>, own_port: bool) -> Port {
    let first = tables.config(config::PORT_MIN) as u32;
    let count = tables.config(config::PORT_COUNT) as u32;
    let start = hash::scale(entry.key.hash(!tables.config(config::TABLE_SEED)), count);
    spare.key = Key {
        src: entry.rewrite.dst,
        dst: entry.rewrite.src,
        protocol: entry.key.protocol,
    };
    for i in 0..PORT_TRIES + 1 {
        let step = start + i * PORT_STEP;
        let ours = (first + if step >= count { step - count } else { step }) as u16;
        let port = if i == 0 && !own_port { entry.key.src.port } else { ours };
        spare.key.dst.port = port;
        let spot = table::locate(tables, &spare.key);
        match spot.found {
            Found::Nothing => return Port::Free,
            Found::Entry => {
                if table::is_twin(tables, &spot, &entry.key) {
                    return Port::ReplyStands;
                }
                if own_port && spot.control.closed() {
                    // Its forward half finds the reply half gone, and ends with its own time-out.
                    spot.free::<F, T>(tables);
                    return Port::Free;
                }
            }
            Found::Busy => {}
        }
    }
    Port::None
}

/// The stage for ICMP; any hook.
#[inline(always)]
pub fn control<F: TableFamily, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    work: &mut Work<F>,
    l3: usize,
    hook: u8,
) -> Decided<F> {
    if !parse::header_again(packet, l3, &mut work.header) {
        return Verdict::pass(Reason::NotParsed);
    }
    if work.header.fragment.part == Part::Later {
        let begins = begins::<F, T>(tables, work.header.dst, hook);
        return lost_fragment::<F, T>(tables, &work.header, begins, Reason::FragmentLost);
    }
    match icmp::kind::<F, P>(packet, work.header.l4) {
        Some(icmp::Kind::Error) => translate_error(packet, tables, work, hook),
        Some(icmp::Kind::EchoRequest) => echo(tables, &work.header, hook),
        _ => Verdict::pass(Reason::NotOurs),
    }
}

/// An ICMP error: translated if it quotes a packet of a flow of ours.
#[inline(always)]
fn translate_error<F: TableFamily, P: Packet, T: Tables>(
    packet: &mut P,
    tables: &T,
    work: &mut Work<F>,
    hook: u8,
) -> Decided<F> {
    let Work { header, entry, .. } = work;
    let mut quoted = icmp::Quoted::default();
    if !icmp::quoted(packet, header.l4, &mut entry.key, &mut quoted) {
        return Verdict::pass(Reason::IcmpErrorPassed);
    }
    if table::complete(tables, entry).found != Found::Entry {
        return Verdict::pass(Reason::IcmpErrorPassed);
    }
    if entry.place.hooks & hook == 0 {
        return Verdict::pass(Reason::OtherHook);
    }
    let way = Way::from_number(entry.place.way);
    let exit = forward::exit(packet, tables, header, &entry.rewrite, way);
    if !exit.leaves {
        return Verdict::drop(Reason::NoRoute);
    }
    let hide_router = matches!(way, Way::Steer | Way::Loopback);
    if !icmp::translate(packet, header, &quoted, entry, hide_router) {
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

/// True when a packet to this address may begin a flow at this hook.
#[inline(always)]
fn begins<F: TableFamily, T: Tables>(tables: &T, dst: F::Addr, hook: u8) -> bool {
    hook & Hook::BEGINS != 0 && has_bit(hash::bit::<F>(dst), |word| tables.forward_bits(word))
}

/// Reads header, ports and the key of a TCP or UDP packet into `work`. [`Reason::Forward`]: they are there; any other verdict
/// is the packet's.
#[inline(always)]
fn addressed<F: TableFamily, P: Packet, T: Tables>(
    packet: &P,
    tables: &T,
    work: &mut Work<F>,
    l3: usize,
    hook: u8,
) -> Decided<F> {
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
fn fragment_key<F: Family>(header: &Header<F>) -> crate::layout::FragmentKey {
    crate::layout::FragmentKey {
        src: F::to_words(header.src),
        dst: F::to_words(header.dst),
        id: header.fragment.id as u64 | (header.protocol as u64) << 32,
    }
}

/// A packet without usable ports: dropped only where its address is ours alone.
#[inline(always)]
fn lost_fragment<F: TableFamily, T: Tables>(
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
fn refuse_with<F: TableFamily, T: Tables>(
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
fn limited<F: TableFamily, T: Tables>(
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

/// True while a backend reference is current and serving.
#[inline(always)]
fn serving<T: Tables>(tables: &T, reference: u64) -> bool {
    let control = BackendControl::from_word(tables.backend(reference as u32, 0));
    control.generation == (reference >> 32) as u16 && control.state & BACKEND_SERVING != 0
}

/// A hit that applies at another hook. A reply that will be un-translated at a bridge port's egress is lifted to the bridge's
/// own MAC, so that it passes the layer at which its flow was translated (netfilter sees both directions or none).
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

/// How a refused packet is answered.
#[inline(always)]
fn refusal(flags: u64, protocol: u8) -> Answer {
    if protocol == wire::TCP && flags & config::FLAG_REFUSE_BY_ICMP == 0 {
        Answer::Reset
    } else {
        Answer::PortUnreachable
    }
}

/// The address that a source-translated packet leaves with: the route's preferred source, else the device's; zero = none.
#[inline(always)]
fn snat_address<F: TableFamily, T: Tables>(tables: &T, route: &Route<F::Addr>) -> F::Addr {
    if route.source != F::Addr::default() {
        return route.source;
    }
    tables.device(route.ifindex).map_or(F::Addr::default(), |device| {
        F::from_words(if F::V6 {
            device.source_v6
        } else {
            [device.source_v4 as u64, 0]
        })
    })
}

/// Carries out [`Action::Answer`]: builds the answer in the packet and says how it leaves.
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
    let exit = forward::exit(packet, tables, header, &no_rewrite(header), way);
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
