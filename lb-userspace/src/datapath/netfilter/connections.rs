//! The TCP connections that netfilter carries to another destination than their clients wrote (`linux/netfilter/nfnetlink_conntrack.h`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::socket::{DUMP, Messages, NetfilterError, ask, attribute};

/// The subsystem of the connection tracker, and the message that lists.
const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
/// Attributes of a connection.
const ORIGINAL: u16 = 1;
const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
/// Attributes of a direction, its addresses and its protocol.
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const V4_DESTINATION: u16 = 2;
const V6_DESTINATION: u16 = 4;
const PROTOCOL_NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;
/// Attributes of what is known of TCP.
const INFO_TCP: u16 = 1;
const TCP_STATE: u16 = 1;
/// The bit of the status that says that the destination is translated.
const DESTINATION_TRANSLATED: u32 = 1 << 5;
/// States of TCP from SYN_SENT to LAST_ACK: it may still carry something.
const ALIVE: std::ops::RangeInclusive<u8> = 1..=6;
const TCP: u8 = 6;

/// Where the clients of live translated TCP connections think that they are connected to, one for each connection.
///
/// # Errors
/// The connection tracker cannot be read. That it is not there is no error: then there are no connections.
pub fn translated() -> Result<Vec<SocketAddr>, NetfilterError> {
    let mut found = Vec::new();
    for family in [2, 10] {
        let mut messages = Messages::default();
        let start = messages.begin(GET, DUMP, family, 0);
        messages.end(start);
        let each = |entry: &[u8]| found.extend(read(entry));
        match ask("list connections", &messages, usize::MAX, each) {
            Err(error) if error.source.raw_os_error() != Some(libc::EINVAL) => return Err(error),
            // The tracker's module is not there.
            Ok(()) | Err(_) => {}
        }
    }
    Ok(found)
}

/// The original destination of an entry that is a live translated TCP connection.
fn read(entry: &[u8]) -> Option<SocketAddr> {
    let original = attribute(entry, ORIGINAL)?;
    let protocol = attribute(original, TUPLE_PROTOCOL)?;
    let status = attribute(entry, STATUS)?.try_into().ok().map(u32::from_be_bytes)?;
    if attribute(protocol, PROTOCOL_NUMBER)? != [TCP] || status & DESTINATION_TRANSLATED == 0 {
        return None;
    }
    let state = attribute(attribute(attribute(entry, PROTOCOL_INFO)?, INFO_TCP)?, TCP_STATE)?;
    if !ALIVE.contains(state.first()?) {
        return None;
    }
    let addresses = attribute(original, TUPLE_IP)?;
    let v4 = attribute(addresses, V4_DESTINATION).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
    let v6 = attribute(addresses, V6_DESTINATION).and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
    let address = match (v4, v6) {
        (Some(v4), _) => IpAddr::V4(Ipv4Addr::from(v4)),
        (None, Some(v6)) => IpAddr::V6(Ipv6Addr::from(v6)),
        (None, None) => return None,
    };
    let port = attribute(protocol, DESTINATION_PORT)?.try_into().ok()?;
    Some(SocketAddr::new(address, u16::from_be_bytes(port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nest(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn entry(status: u32, state: u8, protocol: u8) -> Vec<u8> {
        let ip = [nest(1, &[10, 244, 0, 1]), nest(V4_DESTINATION, &[10, 96, 0, 1])].concat();
        let ports = [
            nest(PROTOCOL_NUMBER, &[protocol]),
            nest(2, &[1, 2]),
            nest(DESTINATION_PORT, &[1, 187]),
        ]
        .concat();
        [
            nest(ORIGINAL, &[nest(TUPLE_IP, &ip), nest(TUPLE_PROTOCOL, &ports)].concat()),
            nest(STATUS, &status.to_be_bytes()),
            nest(PROTOCOL_INFO, &nest(INFO_TCP, &nest(TCP_STATE, &[state]))),
        ]
        .concat()
    }

    #[test]
    fn live_tcp_with_another_destination_counts() {
        let destination = Some("10.96.0.1:443".parse().unwrap());
        assert_eq!(read(&entry(DESTINATION_TRANSLATED | 6, 3, TCP)), destination);
        assert_eq!(read(&entry(6, 3, TCP)), None, "not translated");
        assert_eq!(read(&entry(DESTINATION_TRANSLATED, 7, TCP)), None, "TIME_WAIT");
        assert_eq!(read(&entry(DESTINATION_TRANSLATED, 3, 17)), None, "UDP");
        assert_eq!(read(&entry(DESTINATION_TRANSLATED, 3, TCP)[..40]), None, "cut");
    }
}
