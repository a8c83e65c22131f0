//! Many datagrams in one call: the kernel takes them as one packet and cuts it up at the last device (`UDP_SEGMENT`; udp(7)).

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::error_queue::report_errors;
use super::udp::unspecified;
use super::{ConnectError, ConnectErrorKind, parse_identity};
use crate::netns::Netns;

/// Sends `count` datagrams of `length` bytes in one call, and collects their answers. Gives how many each backend answered,
/// once all have been; anything else than each datagram back whole and once, from the address asked, is an error.
pub fn udp_segments(
    from: &impl AsRef<Netns>,
    to: impl Into<SocketAddr>,
    length: u16,
    count: usize,
    timeout: Duration,
) -> Result<BTreeMap<String, usize>, ConnectError> {
    let to = to.into();
    from.as_ref().run(|| exchange(to, length, count, timeout))
}

fn exchange(
    to: SocketAddr,
    length: u16,
    count: usize,
    timeout: Duration,
) -> Result<BTreeMap<String, usize>, ConnectError> {
    let started = Instant::now();
    let failed = |error: &std::io::Error| ConnectError::from_io(error, started);
    let socket = send(to, length, count, timeout).map_err(|error| failed(&error))?;
    let mut open: Vec<bool> = vec![true; count];
    let mut answers = BTreeMap::new();
    let mut buffer = vec![0; usize::from(length) + 1024];
    while open.contains(&true) {
        let (received, source) = socket.recv_from(&mut buffer).map_err(|error| {
            let missing = open.iter().filter(|open| **open).count();
            ConnectError {
                detail: format!("{missing} of {count} datagrams were not answered: {error}"),
                ..failed(&error)
            }
        })?;
        let wrong = |kind, detail: String| Err(ConnectError::new(kind, started, detail));
        if source != to {
            return wrong(
                ConnectErrorKind::ForeignSource,
                format!("asked {to}, answered by {source}"),
            );
        }
        let answer = parse_identity(&buffer[..received]);
        let known = answer.and_then(|(backend, _, rest)| {
            let number = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
            (open.get(number) == Some(&true) && rest == datagram(number, length)).then_some((backend, number))
        });
        let Some((backend, number)) = known else {
            return wrong(
                ConnectErrorKind::Garbled,
                format!("{received} bytes that are no answer, or one for the second time"),
            );
        };
        open[number] = false;
        *answers.entry(backend).or_default() += 1;
    }
    Ok(answers)
}

fn send(to: SocketAddr, length: u16, count: usize, timeout: Duration) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(unspecified(to))?;
    socket.set_read_timeout(Some(timeout))?;
    report_errors(&socket, to.is_ipv6())?;
    setsockopt(&socket, sockopt::UdpGsoSegment, &i32::from(length))?;
    socket.connect(to)?;
    let all: Vec<u8> = (0..count).flat_map(|number| datagram(number, length)).collect();
    socket.send(&all)?;
    Ok(socket)
}

/// The datagram of a number: the number, then bytes that depend on it.
fn datagram(number: usize, length: u16) -> Vec<u8> {
    let mut bytes = (number as u16).to_be_bytes().to_vec();
    bytes.extend((bytes.len()..length.into()).map(|at| (number * 7 + at) as u8));
    bytes
}
