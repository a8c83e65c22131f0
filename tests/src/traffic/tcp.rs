//! One TCP request: connect, read the identity line, have a nonce echoed, close.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::{ConnectError, ConnectErrorKind, Reply, count_backends, parse_identity};
use crate::netns::Netns;

const NONCE: &[u8] = b"0123456789abcdef";
/// Longest wait of one request of a distribution.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Makes one request to a [`Server::tcp`](super::Server::tcp) at `to`, from the address `bind` if one is given.
pub fn tcp_request(
    from: &impl AsRef<Netns>,
    to: impl Into<SocketAddr>,
    bind: Option<SocketAddr>,
    timeout: Duration,
) -> Result<Reply, ConnectError> {
    let to = to.into();
    from.as_ref().run(|| request(to, bind, timeout))
}

/// Makes `count` requests one after another, each from a new port; returns how many each backend answered.
///
/// Panics if one fails.
#[track_caller]
pub fn distribution(from: &impl AsRef<Netns>, to: impl Into<SocketAddr>, count: usize) -> BTreeMap<String, usize> {
    let to = to.into();
    let replies = from
        .as_ref()
        .run(|| (0..count).map(|_| request(to, None, REQUEST_TIMEOUT)).collect());
    count_backends(to, replies)
}

fn request(to: SocketAddr, bind: Option<SocketAddr>, timeout: Duration) -> Result<Reply, ConnectError> {
    let started = Instant::now();
    let (mut stream, reply) = connect(to, bind, timeout, started)?;
    let mut echoed = [0; NONCE.len()];
    stream
        .write_all(NONCE)
        .and_then(|()| stream.read_exact(&mut echoed))
        .map_err(|error| ConnectError::from_io(&error, started))?;
    if echoed != NONCE {
        return Err(ConnectError::new(
            ConnectErrorKind::Garbled,
            started,
            "the echo differs from what was sent",
        ));
    }
    // The server's FIN tells that the way of closing works too; a reset here is a failure.
    stream
        .shutdown(Shutdown::Write)
        .and_then(|()| stream.read(&mut echoed))
        .map_err(|error| ConnectError::from_io(&error, started))?;
    Ok(reply)
}

/// Connects in the calling thread's namespace and reads the identity line; reads then time out after `timeout`.
pub(super) fn connect(
    to: SocketAddr,
    bind: Option<SocketAddr>,
    timeout: Duration,
    started: Instant,
) -> Result<(TcpStream, Reply), ConnectError> {
    let mut stream = open(to, bind, timeout).map_err(|error| ConnectError::from_io(&error, started))?;
    let mut line = Vec::with_capacity(80);
    let mut byte = [0];
    while line.last() != Some(&b'\n') {
        // Byte by byte, so that nothing of the echo is taken.
        stream
            .read_exact(&mut byte)
            .map_err(|error| ConnectError::from_io(&error, started))?;
        line.push(byte[0]);
    }
    let (backend, client_seen, _) = parse_identity(&line)
        .ok_or_else(|| ConnectError::new(ConnectErrorKind::Garbled, started, String::from_utf8_lossy(&line)))?;
    let local = stream
        .local_addr()
        .map_err(|error| ConnectError::from_io(&error, started))?;
    Ok((
        stream,
        Reply {
            backend,
            client_seen,
            local,
        },
    ))
}

/// Connects a socket whose reads and writes time out after `timeout`.
pub(super) fn open(to: SocketAddr, bind: Option<SocketAddr>, timeout: Duration) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    if let Some(bind) = bind {
        socket.set_reuse_address(true)?;
        socket.bind(&bind.into())?;
    }
    socket.connect_timeout(&to.into(), timeout).map_err(|error| {
        // socket2 reports its own time-out without an errno.
        if error.kind() == ErrorKind::TimedOut {
            ErrorKind::TimedOut.into()
        } else {
            error
        }
    })?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(timeout))?;
    socket.set_write_timeout(Some(timeout))?;
    Ok(socket.into())
}
