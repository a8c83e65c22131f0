//! Flows for people: every forward half, decoded.

use std::net::SocketAddr;

use lb_common::access::TableFamily;
use lb_common::family::{Family, Side, V4, V6};
use lb_common::flow::slot;
use lb_common::flow::state::{DATAGRAM, ESTABLISHED, FIN_FORWARD, FIN_REPLY, REPLIED, is_closed, timeout_word};
use lb_common::layout::config;

use super::each_forward_half;
use crate::maps::{MapStore, Table, address_of_words};

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
    of_family::<V4>(store, now).chain(of_family::<V6>(store, now))
}

fn of_family<F: TableFamily>(store: &dyn MapStore, now: u32) -> impl Iterator<Item = Flow> {
    each_forward_half::<F>(store).filter_map(move |((_, set, base), _)| {
        let (control, entry) = slot::decode::<F, _>(set, base)?;
        let timeout = timeout_word(control.state);
        debug_assert!(timeout < config::WORDS);
        Some(Flow {
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
            timeout: store.words(Table::Config).load(timeout),
        })
    })
}

fn socket<F: Family>(side: Side<F>) -> SocketAddr {
    SocketAddr::new(address_of_words(F::V6, F::to_words(side.addr)), side.port)
}
