//! A lane: requests from one place to one frontend, one after another, and the account of them.
//!
//! An account belongs to one phase. Every request counts in the phase in which it started. Which backend answered it
//! counts only if that phase stood all the while, from its change being programmed to the next one: then it says
//! something about the state that the phase shows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lb_tests::netns::Netns;
use lb_tests::traffic::{ConnectError, ConnectErrorKind, HttpClient, Reply, http_request, udp_request};

use crate::udp_flow::UdpFlow;

/// Longest wait for an answer; who waits longer has lost the request.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The ports that single datagrams come from, below those that the kernel hands out. By the time that one comes again,
/// its flow has long been forgotten.
const FIRST_PORT: u16 = 10_000;
const PORTS: u16 = 20_000;

/// How requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Means {
    /// One HTTP request a connection.
    Http,
    /// HTTP requests in turn over this many connections, which stay open.
    OpenHttp(usize),
    /// Each datagram from a port of its own, so that each is a flow of its own.
    Udp,
    /// All datagrams over one socket: one flow.
    UdpFlow,
}

/// Which backends the requests may be answered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Every backend that takes new connections.
    All,
    /// Those of them on the node that the packets come to.
    OnNode,
    /// One of them, always the same (session affinity).
    One,
    /// One, as long as it serves (a UDP flow).
    OneServing,
    /// Those that the connections were once made to.
    Opened,
}

/// From where to where, and what is expected.
#[derive(Debug)]
pub(crate) struct Lane {
    /// Who asks, as a person calls it.
    pub(crate) from: &'static str,
    pub(crate) netns: Netns,
    /// The asking side's own addresses.
    pub(crate) own: Vec<IpAddr>,
    /// The node by which packets from outside come in.
    pub(crate) entry: Option<usize>,
    pub(crate) to: SocketAddr,
    /// What kind of frontend that is.
    pub(crate) what: &'static str,
    pub(crate) means: Means,
    pub(crate) reach: Reach,
    pub(crate) ledger: Mutex<Ledger>,
}

/// What became of a lane's requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    /// One account a phase.
    pub(crate) phases: Vec<Account>,
    /// The client addresses that backends saw, and which backends.
    pub(crate) seen: BTreeMap<IpAddr, BTreeSet<String>>,
}

/// What became of a lane's requests of one phase.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    pub(crate) requests: u64,
    pub(crate) lost: u64,
    /// Longest wait for an answer.
    pub(crate) slowest: Duration,
    /// Why the first lost request was lost.
    pub(crate) error: Option<String>,
    /// Answers by backend, while the phase stood.
    pub(crate) backends: BTreeMap<String, u64>,
}

impl Lane {
    /// The target as one would type it.
    pub(crate) fn target(&self) -> String {
        match self.means {
            Means::Http | Means::OpenHttp(_) if self.to.port() == 80 => {
                let address = self.to.to_string();
                format!("http://{}", address.trim_end_matches(":80"))
            }
            Means::Http | Means::OpenHttp(_) => format!("http://{}", self.to),
            Means::Udp | Means::UdpFlow => format!("udp {}", self.to),
        }
    }

    /// The account of a phase; empty before its first request.
    pub(crate) fn account(&self, phase: usize) -> Account {
        self.lock().phases.get(phase).cloned().unwrap_or_default()
    }

    /// All accounts.
    pub(crate) fn ledger(&self) -> Ledger {
        self.lock().clone()
    }

    /// Enters a request of `phase`; `stood` tells whether the phase stood all the while.
    pub(crate) fn enter(&self, phase: usize, stood: bool, took: Duration, outcome: Result<Reply, ConnectError>) {
        let mut ledger = self.lock();
        if ledger.phases.len() <= phase {
            ledger.phases.resize_with(phase + 1, Account::default);
        }
        let account = &mut ledger.phases[phase];
        account.requests += 1;
        match outcome {
            Ok(reply) => {
                account.slowest = account.slowest.max(took);
                if stood {
                    *account.backends.entry(reply.backend.clone()).or_default() += 1;
                }
                let backends = ledger.seen.entry(reply.client_seen.ip()).or_default();
                if !backends.contains(&reply.backend) {
                    backends.insert(reply.backend);
                }
            }
            Err(error) => {
                account.lost += 1;
                account.error.get_or_insert_with(|| error.to_string());
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a lane's requests; keeps what has to be kept between them.
#[derive(Debug)]
pub(crate) struct Caller<'a> {
    lane: &'a Lane,
    open: Vec<Option<HttpClient>>,
    flow: Option<UdpFlow>,
    turn: usize,
}

impl<'a> Caller<'a> {
    pub(crate) fn new(lane: &'a Lane) -> Self {
        let mut open = Vec::new();
        if let Means::OpenHttp(count) = lane.means {
            open.resize_with(count, || None);
        }
        Self {
            lane,
            open,
            flow: None,
            turn: 0,
        }
    }

    /// Makes one request.
    pub(crate) fn ask(&mut self) -> Result<Reply, ConnectError> {
        let lane = self.lane;
        match lane.means {
            Means::Http => http_request(&lane.netns, lane.to, TIMEOUT),
            Means::OpenHttp(_) => self.ask_open(),
            Means::Udp => {
                self.turn += 1;
                self.ask_from(FIRST_PORT + self.turn as u16 % PORTS)
            }
            Means::UdpFlow => self.ask_flow(),
        }
    }

    /// Asks over the one flow.
    fn ask_flow(&mut self) -> Result<Reply, ConnectError> {
        let flow = match self.flow.take() {
            Some(flow) => flow,
            None => UdpFlow::open(&self.lane.netns, self.lane.to).map_err(|error| ConnectError {
                kind: ConnectErrorKind::Other,
                after: Duration::ZERO,
                detail: error.to_string(),
            })?,
        };
        self.flow.insert(flow).ask(TIMEOUT)
    }

    /// Asks by a datagram from this port.
    fn ask_from(&self, port: u16) -> Result<Reply, ConnectError> {
        let lane = self.lane;
        let like = |address: &&IpAddr| address.is_ipv4() == lane.to.is_ipv4();
        let own = lane
            .own
            .iter()
            .find(like)
            .map(|address| SocketAddr::new(*address, port));
        udp_request(&lane.netns, lane.to, own, TIMEOUT)
    }

    /// Asks over the next connection. One that fails is lost, and made anew at its next turn.
    fn ask_open(&mut self) -> Result<Reply, ConnectError> {
        let count = self.open.len();
        let place = &mut self.open[self.turn % count];
        self.turn += 1;
        let mut client = match place.take() {
            Some(client) => client,
            None => HttpClient::connect(&self.lane.netns, self.lane.to, TIMEOUT)?,
        };
        let reply = client.get()?;
        *place = Some(client);
        Ok(reply)
    }
}
