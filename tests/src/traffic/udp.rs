//! One UDP request to a server that names itself.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use super::error_queue::report_errors;
use super::{ConnectError, ConnectErrorKind, Reply, count_backends, parse_identity};
use crate::netns::Netns;

const REQUEST: &[u8] = b"question";
/// Longest wait of one request of a distribution.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest wait for an address to be free.
const BIND_LIMIT: Duration = Duration::from_secs(1);

/// Whether the client's socket is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpKind {
    /// `connect` and `send`: the kernel hides replies from other addresses.
    Connected,
    /// `sendto`: a reply from another address is seen, and is [`ConnectErrorKind::ForeignSource`].
    Unconnected,
}

/// Makes one request on a connected socket, from the address `bind` if one is given.
pub fn udp_request(
    from: &impl AsRef<Netns>,
    to: impl Into<SocketAddr>,
    bind: Option<SocketAddr>,
    timeout: Duration,
) -> Result<Reply, ConnectError> {
    udp_request_with(from, to, bind, timeout, UdpKind::Connected)
}

/// Makes one request; ICMP errors end it with either kind of socket.
pub fn udp_request_with(
    from: &impl AsRef<Netns>,
    to: impl Into<SocketAddr>,
    bind: Option<SocketAddr>,
    timeout: Duration,
    kind: UdpKind,
) -> Result<Reply, ConnectError> {
    let to = to.into();
    from.as_ref().run(|| request(to, bind, timeout, kind, REQUEST))
}

/// Makes one request with a payload of `length` bytes, which comes back whole: above the path's MTU it travels in fragments.
pub fn udp_request_of(
    from: &impl AsRef<Netns>,
    to: impl Into<SocketAddr>,
    length: usize,
    timeout: Duration,
) -> Result<Reply, ConnectError> {
    let to = to.into();
    let payload: Vec<u8> = (0..length).map(|i| b'a' + (i % 26) as u8).collect();
    from.as_ref()
        .run(|| request(to, None, timeout, UdpKind::Connected, &payload))
}

/// Makes `count` requests one after another, each from a new socket; returns how many each backend answered.
///
/// Panics if one fails.
#[track_caller]
pub fn udp_distribution(from: &impl AsRef<Netns>, to: impl Into<SocketAddr>, count: usize) -> BTreeMap<String, usize> {
    let to = to.into();
    let one = || request(to, None, REQUEST_TIMEOUT, UdpKind::Connected, REQUEST);
    let replies = from.as_ref().run(|| (0..count).map(|_| one()).collect());
    count_backends(to, replies)
}

fn request(
    to: SocketAddr,
    bind: Option<SocketAddr>,
    timeout: Duration,
    kind: UdpKind,
    payload: &[u8],
) -> Result<Reply, ConnectError> {
    let started = Instant::now();
    let mut buffer = vec![0; payload.len() + 1024];
    let mut exchange = || -> std::io::Result<(UdpSocket, usize, SocketAddr)> {
        let socket = bind_to(bind.unwrap_or_else(|| unspecified(to)))?;
        socket.set_read_timeout(Some(timeout))?;
        report_errors(&socket, to.is_ipv6())?;
        match kind {
            UdpKind::Connected => socket.connect(to).and_then(|()| socket.send(payload))?,
            UdpKind::Unconnected => socket.send_to(payload, to)?,
        };
        let (length, source) = socket.recv_from(&mut buffer)?;
        Ok((socket, length, source))
    };
    let (socket, length, source) = exchange().map_err(|error| ConnectError::from_io(&error, started))?;
    if source != to {
        let detail = format!("asked {to}, answered by {source}");
        return Err(ConnectError::new(ConnectErrorKind::ForeignSource, started, detail));
    }
    let answer = &buffer[..length];
    match parse_identity(answer) {
        Some((backend, client_seen, rest)) if rest == payload => {
            let local = socket
                .local_addr()
                .map_err(|error| ConnectError::from_io(&error, started))?;
            Ok(Reply {
                backend,
                client_seen,
                local,
            })
        }
        _ => Err(ConnectError::new(
            ConnectErrorKind::Garbled,
            started,
            String::from_utf8_lossy(answer),
        )),
    }
}

/// Binds a socket. A process that another thread is just starting has a copy of a socket that was closed here, until it runs
/// its own program: the address is free then.
fn bind_to(address: SocketAddr) -> std::io::Result<UdpSocket> {
    let started = Instant::now();
    loop {
        match UdpSocket::bind(address) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && started.elapsed() < BIND_LIMIT => {
                thread::sleep(Duration::from_millis(1));
            }
            other => return other,
        }
    }
}

/// The wildcard address, any port, of the family of `like`.
pub(super) fn unspecified(like: SocketAddr) -> SocketAddr {
    match like {
        SocketAddr::V4(_) => ([0; 4], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    }
}
