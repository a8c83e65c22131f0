//! One UDP flow: a socket that stays open, on which numbered datagrams are asked one after another.
//!
//! The answer is the identity line of [`lb_tests::traffic`] followed by the datagram. An answer to an earlier number,
//! which counts as lost already, is passed over.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use lb_tests::netns::Netns;
use lb_tests::traffic::{ConnectError, ConnectErrorKind, Reply};

/// An open flow.
#[derive(Debug)]
pub(crate) struct UdpFlow {
    socket: UdpSocket,
    local: SocketAddr,
    number: u64,
}

impl UdpFlow {
    /// Opens a socket of the namespace to `to`; nothing is sent yet.
    pub(crate) fn open(from: &Netns, to: SocketAddr) -> io::Result<Self> {
        let any: SocketAddr = if to.is_ipv4() {
            ([0; 4], 0).into()
        } else {
            ([0_u16; 8], 0).into()
        };
        let socket = from.run(|| {
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            io::Result::Ok(socket)
        })?;
        let local = socket.local_addr()?;
        Ok(Self {
            socket,
            local,
            number: 0,
        })
    }

    /// Sends the next number and waits for its answer.
    pub(crate) fn ask(&mut self, timeout: Duration) -> Result<Reply, ConnectError> {
        let started = Instant::now();
        self.number += 1;
        self.exchange(started, timeout).map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ConnectErrorKind::Timeout,
                io::ErrorKind::ConnectionRefused => ConnectErrorKind::Refused,
                io::ErrorKind::InvalidData => ConnectErrorKind::Garbled,
                _ => ConnectErrorKind::Other,
            };
            ConnectError {
                kind,
                after: started.elapsed(),
                detail: error.to_string(),
            }
        })
    }

    fn exchange(&self, started: Instant, timeout: Duration) -> io::Result<Reply> {
        self.socket.send(&self.number.to_be_bytes())?;
        let mut buffer = [0; 256];
        loop {
            let left = timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left))?;
            let length = self.socket.recv(&mut buffer)?;
            let (number, backend, client_seen) =
                parse(&buffer[..length]).ok_or(io::Error::from(io::ErrorKind::InvalidData))?;
            if number == self.number {
                let local = self.local;
                return Ok(Reply {
                    backend,
                    client_seen,
                    local,
                });
            }
        }
    }
}

/// The number, who answers, and the client that it saw.
fn parse(answer: &[u8]) -> Option<(u64, String, SocketAddr)> {
    let (line, number) = answer.split_at_checked(answer.len().checked_sub(8)?)?;
    let line = str::from_utf8(line).ok()?.strip_suffix('\n')?;
    let (backend, client) = line.strip_prefix("backend=")?.split_once(" client=")?;
    let number = u64::from_be_bytes(number.try_into().ok()?);
    Some((number, backend.to_owned(), client.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use lb_tests::traffic::Server;

    use super::*;

    #[test]
    fn a_flow_gets_the_answer_to_each_number_and_says_when_there_is_none() {
        let netns = Netns::new("flow");
        let server = Server::udp(&netns, "a", ([127, 0, 0, 1], 0));
        let mut flow = UdpFlow::open(&netns, server.address()).unwrap();
        for _ in 0..3 {
            let reply = flow.ask(Duration::from_secs(5)).unwrap();
            assert_eq!((reply.backend.as_str(), reply.client_seen), ("a", reply.local));
        }
        drop(server);
        let error = flow.ask(Duration::from_secs(5)).unwrap_err();
        assert_eq!(error.kind, ConnectErrorKind::Refused);
    }

    #[test]
    fn an_answer_has_a_line_and_eight_bytes() {
        let text = [b"backend=a client=192.0.2.1:5\n".as_slice(), &7_u64.to_be_bytes()].concat();
        assert_eq!(parse(&text), Some((7, "a".to_owned(), "192.0.2.1:5".parse().unwrap())));
        assert_eq!(parse(b"short"), None);
        assert_eq!(parse(b"no identity line at all"), None);
    }
}
