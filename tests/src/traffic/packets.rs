//! Whole IP packets of a test's making, sent as if this host had made them (raw(7)): routes, hooks and devices are the usual ones.

use std::net::{SocketAddr, UdpSocket};

use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::Netns;
use crate::packet::{Decoded, Packet};

/// Sends a packet. The kernel looks its destination up; it writes IPv4's identification where there is none and nothing else.
#[track_caller]
pub fn send_packet(from: &impl AsRef<Netns>, packet: &Packet) {
    let bytes = packet.clone().bare().build();
    let to = SocketAddr::new(Decoded::ip(&bytes).expect("a packet").ip.destination, 0);
    let sent = from.as_ref().run(|| -> std::io::Result<usize> {
        let protocol = Protocol::from(libc::IPPROTO_RAW);
        // The type is only a way to a plain `sendto`.
        let socket: UdpSocket = Socket::new(Domain::for_address(to), Type::RAW, Some(protocol))?.into();
        socket.send_to(&bytes, to)
    });
    let sent = sent.unwrap_or_else(|error| panic!("send a packet to {}: {error}", to.ip()));
    assert_eq!(sent, bytes.len(), "bytes sent");
}
