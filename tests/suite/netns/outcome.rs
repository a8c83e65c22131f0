//! What becomes of new flows to a frontend, as one value that tests compare: who answered, or how they failed.
//!
//! A few dozen requests find every backend of two with a chance of error below one in a million.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use lb_tests::netns::Netns;
use lb_tests::traffic::{ConnectError, ConnectErrorKind, Reply, distribution, tcp_request, udp_request};

/// Requests that follow the first answered one.
const REQUESTS: usize = 24;
/// A wait that only dropped requests reach.
const LIMIT: Duration = Duration::from_millis(700);
/// A wait that nothing reaches.
const LONG: Duration = Duration::from_secs(5);
/// Source ports of UDP requests, clear of NodePorts and of ports that nodes translate to.
const FIRST_PORT: u16 = 33_000;
const PORTS: u16 = 28_000;

/// What became of new flows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All were answered, by these backends in order of their names.
    Answered(Vec<String>),
    /// The first one failed.
    Failed(ConnectErrorKind),
}

/// Refused at once.
pub(super) const REFUSED: Outcome = Outcome::Failed(ConnectErrorKind::Refused);
/// Never answered.
pub(super) const DROPPED: Outcome = Outcome::Failed(ConnectErrorKind::Timeout);

/// Answered by these backends, each at least once.
pub(super) fn by(backends: &[&str]) -> Outcome {
    let mut names: Vec<String> = backends.iter().map(|&name| name.to_owned()).collect();
    names.sort();
    Outcome::Answered(names)
}

/// Opens TCP connections.
#[track_caller]
pub(super) fn tcp(from: &impl AsRef<Netns>, to: SocketAddr) -> Outcome {
    judge(tcp_request(from, to, None, LIMIT), || {
        distribution(from, to, REQUESTS).into_keys().collect()
    })
}

/// Sends UDP requests, each from a port that no earlier one had: a flow of UDP ends only with its time.
#[track_caller]
pub(super) fn udp(from: &impl AsRef<Netns>, to: SocketAddr) -> Outcome {
    let request = |limit| udp_request(from, to, Some(fresh_port(to)), limit);
    judge(request(LIMIT), || {
        (0..REQUESTS)
            .map(|_| match request(LONG) {
                Ok(reply) => reply.backend,
                Err(error) => panic!("to {to} over UDP, after the first was answered: {error}"),
            })
            .collect()
    })
}

/// The wildcard address of a family with a port that was not given out before.
fn fresh_port(like: SocketAddr) -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let port = FIRST_PORT + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS;
    match like {
        SocketAddr::V4(_) => ([0; 4], port).into(),
        SocketAddr::V6(_) => ([0_u16; 8], port).into(),
    }
}

/// Asserts the same outcome of TCP and UDP.
#[track_caller]
pub(super) fn check(who: &str, from: &impl AsRef<Netns>, to: SocketAddr, expected: &Outcome) {
    assert_eq!(tcp(from, to), *expected, "{who} to {to} over TCP");
    assert_eq!(udp(from, to), *expected, "{who} to {to} over UDP");
}

#[track_caller]
fn judge(first: Result<Reply, ConnectError>, rest: impl FnOnce() -> Vec<String>) -> Outcome {
    match first {
        // On the sender's own host a drop is seen at once, elsewhere by the wait.
        Err(error) if error.kind == ConnectErrorKind::NotSent => DROPPED,
        Err(error) => Outcome::Failed(error.kind),
        Ok(reply) => {
            let mut names = rest();
            names.push(reply.backend);
            names.sort();
            names.dedup();
            Outcome::Answered(names)
        }
    }
}
