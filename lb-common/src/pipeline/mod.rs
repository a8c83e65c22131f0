//! The packet's way, in order. Everything a hook does starts in [`fast`]; the steps are in [`crate::steps`].
//!
//! ```text
//! fast       parse → is it ours? → flow look-up ─hit, nothing to note→ way out → rewrite → go on
//! note       a hit that changes state, age or hook, fragments, IPv4 options: noted on both halves → translate; over or gone → begin; twin lost → enter
//! begin      frontend → source class → backend → place → a way out exists → enter; where none may begin, a SYN: flow look-up ─hit→ note
//! enter      a slot for the forward half ─it stands→ note; port and a slot for the reply half → both into the flow table → translate
//! translate  way out → rewrite → go on
//! control    ICMP: an error about a flow → translate both headers; ping to a VIP → answer; another protocol behind IPv6 extension
//!            headers, if it is ours → note
//! answer     RST, ICMP error or echo reply built in the packet that asked
//! ```
//! Stages, because a kernel program has 512 bytes of stack: [`fast`] is all that an established flow needs; the others are
//! reached by tail calls, few a flow. [`process`] is their composition.
//!
//! What the later stages need room for stands in a [`Work`] that the caller lends (in the kernel a per-CPU map value).
//!
//! At XDP the same stages run with [`Packet::EARLY`], and leave to the tc hook of the device whatever is not plain or has no
//! sure way out, untouched.
//!
//! A SYN is most likely a flow's first packet and is decided on before it is looked for: whether it stands, the roll tells where a slot is taken
//! for it, and no set is waited for. A datagram is, too, where those before it were first.
//!
//! Rules: find out that a packet is ours before dropping or answering anything; decide the way out before writing anything;
//! an established flow costs one flow look-up; every return names a [`Reason`], which the caller counts.

mod begin;
mod control;
mod gate;
mod note;

use crate::access::{Packet, Route, RouteKind, TableFamily, Tables};
use crate::family::Family;
use crate::flow::search::{self, Found};
use crate::flow::slot::{Entry, Key};
use crate::flow::state::{self, REPLY_HALF};
use crate::flow::table::Spot;
use crate::layout::config;
use crate::steps::icmp::Quoted;
use crate::steps::parse::{self, Header, Part, Ports};
use crate::steps::select::Backend;
use crate::verdict::{Action, Reason, Verdict};
use crate::wire;
use gate::{begins, note_first, opens, replies, seems_first, straight};
use note::{serving, translate};

pub use begin::{PORT_TRIES, begin, enter, free_port, take_over, try_port};
pub use control::{control, reply_in_place};
pub use note::{note, translate_known};

/// Stages that one packet may pass before it is given up (the kernel's own limit of tail calls is 33).
const MAX_STAGES: usize = 8;

/// The hooks, one bit each. A hook is a role of a device and a direction.
pub struct Hook;

impl Hook {
    /// Ingress of a pod's host-side device.
    pub const POD_IN: u8 = 1;
    /// Egress of a pod's host-side device.
    pub const POD_OUT: u8 = 2;
    /// Ingress of an uplink or tunnel; an uplink's XDP hook too.
    pub const UPLINK_IN: u8 = 4;
    /// Egress of an uplink or tunnel.
    pub const UPLINK_OUT: u8 = 8;
    /// Egress of steer0.
    pub const STEER_OUT: u8 = 16;
    /// Egress of the loopback.
    pub const LO_OUT: u8 = 32;

    /// Hooks at which new flows begin.
    pub const BEGINS: u8 = Self::POD_IN | Self::UPLINK_IN | Self::STEER_OUT | Self::LO_OUT;
    /// Hooks at which a client that keeps its port is seen whichever way it takes to a backend.
    pub const STRAIGHT: u8 = Self::POD_IN | Self::LO_OUT;
}

/// A verdict on a packet of family `F`.
type Decided<F> = Verdict<<F as Family>::Addr>;

/// A later stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// None: the packet is decided.
    Done,
    /// [`note()`].
    Note,
    /// [`begin()`].
    Begin,
    /// [`enter`].
    Enter,
    /// [`translate_known`].
    Translate,
    /// [`control()`].
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
    /// For [`control()`]: where the packet begins that an error quotes.
    pub quoted: Quoted,
    /// For [`begin()`]: the backend that is chosen.
    pub backend: Backend<F>,
    /// For [`enter`]: its reply half.
    pub reply: Entry<F>,
    /// Another entry: the twin, or one that is evicted.
    pub spare: Entry<F>,
    /// For [`enter`]: where reply and forward half are entered, and room for one more.
    pub spots: [Spot; 3],
    /// For [`enter`]: the state that the entry begins with. For [`translate_known`]: one that tells whether it is a reply half.
    pub flow_state: u16,
    /// For [`enter`]: what is to be entered.
    pub task: Task,
    /// For [`translate_known`]: the way out, where [`begin()`] found it.
    pub route: Route<F::Addr>,
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
            quoted: Quoted::default(),
            backend: Backend::empty(),
            reply: Entry::empty(),
            spare: Entry::empty(),
            spots: [Spot::none(Found::Nothing); 3],
            flow_state: 0,
            task: Task::Pair,
            route: Route::without(RouteKind::None),
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
            Stage::Translate => Step::done(translate_known(packet, tables, &work, HOOK)),
            Stage::Control => control(packet, tables, &mut work, l3, HOOK),
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
    packet.reach(l3 + F::HEADER_LEN + wire::TCP_LEN);
    let mut header = Header::empty();
    if !parse::fixed::<F, P>(packet, l3, &mut header) {
        return Step::done(Verdict::pass(Reason::NotParsed));
    }
    if header.protocol == F::ICMP || parse::is_extension::<F>(header.protocol) {
        return Step::next(Stage::Control);
    }
    let begins = begins::<F, T>(tables, header.dst, HOOK);
    if !begins && !replies::<F, T>(tables, header.src) && !straight::<F, T>(tables, header.dst, HOOK) {
        return Step::done(Verdict::pass(Reason::NotOurs));
    }
    let l4 = l3 + F::HEADER_LEN;
    let odd = header.protocol != wire::TCP && header.protocol != wire::UDP
        || header.fragment.part != Part::Whole
        || header.l4 != l4;
    if P::EARLY && (odd || !parse::is_plain(packet, &header)) {
        return Step::done(Verdict::pass(Reason::HandedOver));
    }
    if odd {
        return Step::next(Stage::Note);
    }
    header.l4 = l4;
    let Some(ports) = parse::ports(packet, header.l4, header.protocol) else {
        return Step::done(Verdict::pass(Reason::NotParsed));
    };
    // May well be a flow's first.
    let datagram = begins && header.protocol == wire::UDP;
    let firsts = if datagram { tables.firsts() } else { 0 };
    if begins && seems_first::<F, T>(tables, header.src, header.protocol, ports.tcp_flags, firsts) {
        return Step::next(Stage::Begin);
    }
    let key = Key {
        src: header.src_side(ports),
        dst: header.dst_side(ports),
        protocol: header.protocol,
    };
    let hash = key.hash(tables.config(config::TABLE_SEED));
    let (found, control, read) = search::find::<F, T>(tables, &key, hash);
    let Some((rewrite, place)) = read else {
        return match found {
            Found::Nothing if begins => {
                if datagram {
                    note_first(tables, firsts, true);
                }
                Step::next(Stage::Begin)
            }
            Found::Nothing
                if opens(key.protocol, ports.tcp_flags)
                    && straight::<F, T>(tables, header.dst, HOOK)
                    && meets_reply(tables, &key) =>
            {
                Step::next(Stage::Begin)
            }
            Found::Nothing => Step::done(Verdict::pass(Reason::NotOurs)),
            Found::Busy | Found::Entry => Step::next(Stage::Note),
        };
    };
    let entry = Entry { key, rewrite, place };
    let reply = control.state & REPLY_HALF != 0;
    if datagram && !reply {
        note_first(tables, firsts, false);
    }
    if entry.place.hooks & HOOK == 0 {
        let lift = HOOK == Hook::POD_IN && tables.config(config::FLAGS) & config::FLAG_BRIDGES != 0;
        return if reply && !lift {
            Step::done(Verdict::pass(Reason::OtherHook))
        } else {
            Step::next(Stage::Note)
        };
    }
    let unremarkable = state::observed(control.state, reply, key.protocol, ports.tcp_flags) == 0
        && (control.age(tables.now()) as u64) < tables.config(state::grain_word(control.state))
        && !control.closed()
        && (key.protocol != wire::UDP || reply || serving(tables, entry.place.backend));
    if !unremarkable {
        return Step::next(Stage::Note);
    }
    Step::done(translate(packet, tables, &header, ports, &entry, reply, HOOK, None))
}

/// True when an answer to this packet may meet an entry.
#[inline(always)]
fn meets_reply<F: TableFamily, T: Tables>(tables: &T, key: &Key<F>) -> bool {
    let answer = key.answer();
    let hash = answer.hash(tables.config(config::TABLE_SEED));
    search::may_stand::<F, T>(tables, hash) && search::find::<F, T>(tables, &answer, hash).0 != Found::Nothing
}
