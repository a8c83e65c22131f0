//! ICMP and ICMPv6 echo on raw sockets, so that errors and their senders are seen too.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use crate::netns::Netns;

/// An echo reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PingReply {
    /// Who answered.
    pub source: IpAddr,
    /// Time from request to reply.
    pub round_trip: Duration,
}

/// Why there was no echo reply.
#[derive(Clone, Debug, Error)]
pub enum PingError {
    /// Nothing came in time.
    #[error("no answer in {0:?}")]
    Timeout(Duration),
    /// An ICMP error that quotes the request.
    #[error("{from} says type {icmp_type} code {code}")]
    Icmp {
        /// Source of the error.
        from: IpAddr,
        /// ICMP type.
        icmp_type: u8,
        /// ICMP code.
        code: u8,
    },
    /// The request could not be sent.
    #[error("send: {0}")]
    Send(String),
}

/// Sends one echo request to `to` with `payload` bytes of data and waits for its reply or an error about it.
pub fn ping(
    from: &impl AsRef<Netns>,
    to: impl Into<IpAddr>,
    payload: usize,
    timeout: Duration,
) -> Result<PingReply, PingError> {
    let to = to.into();
    from.as_ref().run(|| exchange(to, payload, timeout))
}

fn exchange(to: IpAddr, payload: usize, timeout: Duration) -> Result<PingReply, PingError> {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    let id = (std::process::id() as u16).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
    let failed = |error: std::io::Error| PingError::Send(error.to_string());
    let (domain, protocol, request_type) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128),
    };
    // Not connected: errors come from routers. The type is only a way to a safe `recvfrom`.
    let socket: UdpSocket = Socket::new(domain, Type::RAW, Some(protocol)).map_err(failed)?.into();
    let request = request(request_type, id, payload);
    let started = Instant::now();
    socket.send_to(&request, SocketAddr::new(to, 0)).map_err(failed)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        let left = timeout.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(PingError::Timeout(timeout));
        }
        socket.set_read_timeout(Some(left)).map_err(failed)?;
        let Ok((length, source)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let source = source.ip();
        match judge(&buffer[..length], to, id) {
            Some(Message::Reply) => {
                return Ok(PingReply {
                    source,
                    round_trip: started.elapsed(),
                });
            }
            Some(Message::Error { icmp_type, code }) => {
                return Err(PingError::Icmp {
                    from: source,
                    icmp_type,
                    code,
                });
            }
            None => {}
        }
    }
}

fn request(icmp_type: u8, id: u16, payload: usize) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let mut request = vec![icmp_type, 0, 0, 0, high, low, 0, 1];
    request.resize(8 + payload, 0x70);
    // For ICMPv6 the kernel puts its own sum in.
    let sum = etherparse::checksum::Sum16BitWords::new()
        .add_slice(&request)
        .ones_complement();
    request[2..4].copy_from_slice(&sum.to_ne_bytes());
    request
}

enum Message {
    Reply,
    Error { icmp_type: u8, code: u8 },
}

/// What a message on the raw socket is to the request: a reply, an error that quotes it, or of no concern.
fn judge(message: &[u8], to: IpAddr, id: u16) -> Option<Message> {
    // A raw IPv4 socket also delivers the IP header.
    let icmp = if to.is_ipv4() {
        &message[header_length(message)?..]
    } else {
        message
    };
    let (icmp_type, code) = (*icmp.first()?, *icmp.get(1)?);
    match (to, icmp_type) {
        (IpAddr::V4(_), 0) | (IpAddr::V6(_), 129) => (icmp.get(4..6)? == id.to_be_bytes()).then_some(Message::Reply),
        (IpAddr::V4(wanted), 3 | 11 | 12) => {
            let quoted = icmp.get(8..)?;
            let inner = quoted.get(header_length(quoted)?..)?;
            let ours = quoted.get(16..20)? == wanted.octets() && inner.get(4..6)? == id.to_be_bytes();
            ours.then_some(Message::Error { icmp_type, code })
        }
        (IpAddr::V6(wanted), 1..=4) => {
            let quoted = icmp.get(8..)?;
            let ours = quoted.get(24..40)? == wanted.octets() && quoted.get(44..46)? == id.to_be_bytes();
            ours.then_some(Message::Error { icmp_type, code })
        }
        _ => None,
    }
}

fn header_length(ipv4: &[u8]) -> Option<usize> {
    let length = usize::from(ipv4.first()? & 0x0f) * 4;
    (length <= ipv4.len()).then_some(length)
}
