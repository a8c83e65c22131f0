//! Servers that say who they are, and clients that count what happened to what they sent.
//!
//! Every server, whatever its protocol, answers with the line `backend=<name> client=<address>:<port>\n`: its own name
//! and the address that it saw. After that line a TCP server echoes, a UDP server repeats the datagram, an HTTP server
//! has ended its body. Clients return what they saw as [`Reply`] or [`ConnectError`] and assert nothing.
//!
//! A server lives on a thread until it is dropped; a client runs in the caller's time, on a thread in the namespace.

mod bulk;
mod error_queue;
mod frames;
mod held;
mod http;
mod packets;
mod ping;
mod server;
mod tcp;
mod udp;
mod udp_segments;
mod udp_stream;

pub use bulk::{BulkReport, bulk_transfer};
pub use error_queue::{PathMtuReport, QueuedError, path_mtu, probe_hops, probe_path_mtu};
pub use frames::{Captured, Direction, FrameSocket, VnetHeader};
pub use held::{HeldConnections, HeldReport, LostConnection, Talking};
pub use http::{HttpClient, http_request};
pub use packets::send_packet;
pub use ping::{PingError, PingReply, ping};
pub use server::Server;
pub use tcp::{distribution, tcp_request};
pub use udp::{UdpKind, udp_distribution, udp_request, udp_request_of, udp_request_with};
pub use udp_segments::udp_segments;
pub use udp_stream::{UdpReport, UdpStream};

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use thiserror::Error;

/// What a server said, and from where it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Name of the server.
    pub backend: String,
    /// The client's address as the server saw it.
    pub client_seen: SocketAddr,
    /// The client's address as the client's socket has it.
    pub local: SocketAddr,
}

/// Why a request got no reply.
#[derive(Clone, Debug, Error)]
#[error("{kind:?} after {after:?}: {detail}")]
pub struct ConnectError {
    /// What happened, for a test to compare.
    pub kind: ConnectErrorKind,
    /// Time from the start of the request.
    pub after: Duration,
    /// What the system said, for a person.
    pub detail: String,
}

/// The ways in which a request fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConnectErrorKind {
    /// A TCP RST in answer to the SYN, or ICMP port unreachable.
    Refused,
    /// No answer within the time allowed.
    Timeout,
    /// ICMP host or network unreachable, or no route.
    Unreachable,
    /// ICMP administratively prohibited, or a local rule.
    Prohibited,
    /// The connection was reset after it had been made.
    Reset,
    /// The connection ended before the reply was complete.
    Closed,
    /// The reply was not what the server must have sent.
    Garbled,
    /// The reply came from another address than the one that was asked.
    ForeignSource,
    /// A datagram was larger than the path carries.
    TooBig,
    /// A program on the sender's own host dropped the packet, and the socket had asked to be told.
    NotSent,
    /// Anything else; see the detail.
    Other,
}

impl ConnectError {
    fn new(kind: ConnectErrorKind, started: Instant, detail: impl Into<String>) -> Self {
        Self {
            kind,
            after: started.elapsed(),
            detail: detail.into(),
        }
    }

    fn from_io(error: &io::Error, started: Instant) -> Self {
        let kind = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ECONNREFUSED) => ConnectErrorKind::Refused,
            Some(Errno::EHOSTUNREACH | Errno::ENETUNREACH) => ConnectErrorKind::Unreachable,
            Some(Errno::EACCES | Errno::EPERM) => ConnectErrorKind::Prohibited,
            Some(Errno::ECONNRESET | Errno::EPIPE) => ConnectErrorKind::Reset,
            Some(Errno::EMSGSIZE) => ConnectErrorKind::TooBig,
            Some(Errno::ENOBUFS) => ConnectErrorKind::NotSent,
            Some(Errno::EAGAIN | Errno::ETIMEDOUT) => ConnectErrorKind::Timeout,
            _ if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => ConnectErrorKind::Timeout,
            _ if error.kind() == ErrorKind::UnexpectedEof => ConnectErrorKind::Closed,
            _ => ConnectErrorKind::Other,
        };
        Self::new(kind, started, error.to_string())
    }
}

/// The line that names a server and the client that it sees.
fn identity(name: &str, client: SocketAddr) -> String {
    // An IPv4 client of a dual-stack socket is shown as what it is.
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    format!("backend={name} client={client}\n")
}

/// Takes the identity line off the front of `bytes`; returns name, client and the rest.
fn parse_identity(bytes: &[u8]) -> Option<(String, SocketAddr, &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let line = std::str::from_utf8(&bytes[..end]).ok()?;
    let (name, client) = line.strip_prefix("backend=")?.split_once(" client=")?;
    Some((name.to_owned(), client.parse().ok()?, &bytes[end + 1..]))
}

/// Counts replies by backend; panics if a request failed, since then the counts say nothing.
#[track_caller]
fn count_backends(to: SocketAddr, replies: Vec<Result<Reply, ConnectError>>) -> BTreeMap<String, usize> {
    let total = replies.len();
    let mut counts = BTreeMap::new();
    let mut failures = Vec::new();
    for reply in replies {
        match reply {
            Ok(reply) => *counts.entry(reply.backend).or_default() += 1,
            Err(error) => failures.push(error),
        }
    }
    if let Some(first) = failures.first() {
        panic!(
            "{} of {total} requests to {to} failed, the first: {first}; replies: {counts:?}",
            failures.len()
        );
    }
    counts
}
