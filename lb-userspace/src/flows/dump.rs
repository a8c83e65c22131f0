//! Flows for people: every forward half, decoded.
//!
//! Some sets at a time, by several threads where the table is large, before any flow of theirs is shown: so few that what is decoded takes some
//! megabytes, and so many that threads are seldom started for them, and seldom waited for where others want the processors.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use lb_common::access::TableFamily;
use lb_common::family::{Family, Side, V4, V6};
use lb_common::flow::state::{
    Control, DATAGRAM, ESTABLISHED, FIN_FORWARD, FIN_REPLY, REPLIED, REPLY_HALF, is_closed, timeout_word,
};
use lb_common::flow::{Entry, slot};
use lb_common::layout::config;

use super::walk::{MOST_THREADS, piece, share, threads, walk};
use super::{all_sets, slots, timeouts};
use crate::maps::{MapStore, WordSlots, address_of_words};

/// Sets that are decoded before any flow of theirs is shown: a table as full as can be has 65,536 flows there.
const WINDOW: u32 = 1 << 15;
/// Parts of them; a thread decodes one after the other.
const PARTS: usize = 16;

/// How far a flow is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlowState {
    /// The backend has not answered.
    Unanswered,
    /// The backend has answered; TCP: the handshake is not complete.
    Answered,
    /// TCP: the handshake is complete.
    Established,
    /// TCP: one side has said that it is done.
    Closing,
    /// TCP: both have, or one has torn the connection down.
    Closed,
}

impl FlowState {
    /// The stable name that is shown.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unanswered => "unanswered",
            Self::Answered => "answered",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Closed => "closed",
        }
    }

    fn of(state: u16) -> Self {
        let answered = if state & REPLIED == 0 {
            Self::Unanswered
        } else {
            Self::Answered
        };
        if state & DATAGRAM != 0 {
            answered
        } else if is_closed(state) {
            Self::Closed
        } else if state & (FIN_FORWARD | FIN_REPLY) != 0 {
            Self::Closing
        } else if state & ESTABLISHED != 0 {
            Self::Established
        } else {
            answered
        }
    }
}

/// A flow as its forward half has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The IP protocol: TCP or UDP.
    pub protocol: u8,
    /// Who sends.
    pub client: SocketAddr,
    /// Where to.
    pub frontend: SocketAddr,
    /// Who the backend sees.
    pub source: SocketAddr,
    /// Who gets it.
    pub backend: SocketAddr,
    /// How far it is.
    pub state: FlowState,
    /// The service port's id.
    pub service: u32,
    /// The backend's id.
    pub backend_id: u32,
    /// The generation of that id.
    pub generation: u16,
    /// Jiffies since the client's last packet, near enough: packets of a flow that is under way are noted a sixteenth of its time-out apart, sixteen
    /// seconds at most.
    pub idle: u32,
    /// Jiffies of idleness after which the flow ends.
    pub timeout: u64,
}

/// All flows, IPv4 first, in the order of their slots. One that changes meanwhile may be left out or come twice.
pub fn dump(store: &dyn MapStore, now: u32) -> impl Iterator<Item = Flow> {
    dump_by(MOST_THREADS, store, now)
}

/// [`dump`] by so many threads at most.
pub(super) fn dump_by(most: usize, store: &dyn MapStore, now: u32) -> impl Iterator<Item = Flow> {
    of_family::<V4>(most, store, now).chain(of_family::<V6>(most, store, now))
}

fn of_family<F: TableFamily<Addr: Send>>(most: usize, store: &dyn MapStore, now: u32) -> impl Iterator<Item = Flow> {
    let table = slots::<F>(store);
    let timeouts = timeouts(store);
    let sets = all_sets(table);
    let mut threads = vec![(); most.min(threads(sets.len()))];
    let mut windows = sets.clone().step_by(WINDOW as usize);
    let mut parts: [Mutex<Vec<Flow>>; PARTS] = std::array::from_fn(|_| Mutex::default());
    // The next flow: its part, and its number there.
    let (mut part, mut number) = (PARTS, 0);
    std::iter::from_fn(move || {
        loop {
            let Some(flows) = parts.get_mut(part) else {
                let first = windows.next()?;
                let window = first..sets.end.min(first.saturating_add(WINDOW));
                share(PARTS, &mut threads, |(), part| {
                    let mut flows = parts[part % PARTS].lock().unwrap_or_else(PoisonError::into_inner);
                    flows.clear();
                    decode::<F>(table, piece(&window, PARTS, part), &timeouts, now, &mut flows);
                });
                (part, number) = (0, 0);
                continue;
            };
            if let Some(flow) = flows.get_mut().unwrap_or_else(PoisonError::into_inner).get(number) {
                number += 1;
                return Some(*flow);
            }
            (part, number) = (part + 1, 0);
        }
    })
}

fn decode<F: TableFamily>(
    table: WordSlots<'_>,
    sets: Range<u32>,
    timeouts: &[u64; config::WORDS],
    now: u32,
    into: &mut Vec<Flow>,
) {
    walk::<F>(table, sets, |slot, control| {
        if control.stands()
            && control.state & REPLY_HALF == 0
            && let Some((control, entry)) = slot::decode::<F, _>(slot.words, 0)
        {
            into.push(flow(control, &entry, timeouts, now));
        }
    });
}

#[inline(always)]
fn flow<F: TableFamily>(control: Control, entry: &Entry<F>, timeouts: &[u64; config::WORDS], now: u32) -> Flow {
    Flow {
        protocol: entry.key.protocol,
        client: socket(entry.key.src),
        frontend: socket(entry.key.dst),
        source: socket(entry.rewrite.src),
        backend: socket(entry.rewrite.dst),
        state: FlowState::of(control.state),
        service: entry.place.service,
        backend_id: entry.place.backend as u32,
        generation: (entry.place.backend >> 32) as u16,
        idle: control.age(now),
        timeout: timeouts[timeout_word(control.state)],
    }
}

#[inline]
fn socket<F: Family>(side: Side<F>) -> SocketAddr {
    SocketAddr::new(address_of_words(F::V6, F::to_words(side.addr)), side.port)
}
