//! Packets on the wire: what is sent by hand arrives, what passes is seen, with its offload state.

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::packet::{Checksum, Decoded, Packet, Sums};
use lb_tests::traffic::{Captured, Direction, FrameSocket, Server, VnetHeader, tcp_request, udp_request};

use super::two_pods;

const PATIENCE: Duration = Duration::from_secs(2);

fn decode(captured: &Captured) -> Decoded {
    Decoded::frame(&captured.frame).expect("an IP packet")
}

/// Whether a captured frame is TCP or UDP to port 80.
fn to_port_80(captured: &Captured) -> bool {
    Decoded::frame(&captured.frame).is_ok_and(|packet| packet.destination_port() == Some(80))
}

#[test]
fn a_connection_is_seen_in_both_directions_with_partial_sums() {
    let (world, from, to) = two_pods();
    for address in [IpAddr::from(to.ip4), to.ip6.into()] {
        let _server = Server::tcp(&to, "to", (address, 80));
        let wire = FrameSocket::open(world.node(1), &from.veth);
        tcp_request(&from, (address, 80), None, PATIENCE).expect("a reply");
        let seen = wire.drain();
        let syn = seen.iter().find(|captured| to_port_80(captured)).expect("a SYN");
        assert_eq!(
            (syn.direction, syn.offload.partial),
            (Direction::Incoming, true),
            "{syn:?}"
        );
        assert_eq!(decode(syn).transport_sum, Checksum::Partial);
        let answers =
            |captured: &&Captured| Decoded::frame(&captured.frame).is_ok_and(|packet| packet.source_port() == Some(80));
        let answer = seen.iter().find(answers).expect("a SYN-ACK");
        assert_eq!((answer.direction, decode(answer).ip.ttl), (Direction::Outgoing, 63));
    }
}

#[test]
fn without_offload_sums_are_whole() {
    let (world, from, to) = two_pods();
    from.ns.tx_checksum("eth0", false);
    let _server = Server::udp(&to, "to", (to.ip6, 80));
    let wire = FrameSocket::open(world.node(1), &from.veth);
    udp_request(&from, (to.ip6, 80), None, PATIENCE).expect("a reply");
    let seen = wire.next_matching(PATIENCE, to_port_80).expect("the datagram");
    assert!(!seen.offload.partial);
    assert_eq!(decode(&seen).transport_sum, Checksum::Good);
}

#[test]
fn other_interfaces_are_not_heard() {
    let (world, from, to) = two_pods();
    let _server = Server::udp(&to, "to", (to.ip4, 80));
    let wire = FrameSocket::open(world.node(1), "eth0");
    udp_request(&from, (to.ip4, 80), None, PATIENCE).expect("a reply");
    assert!(
        !wire.drain().iter().any(to_port_80),
        "pod traffic of the node is not on its uplink"
    );
}

/// Sends a datagram by hand from one pod's interface to the other pod's server and returns what arrives there.
fn inject(packet: Packet, offload: impl Fn(&[u8]) -> VnetHeader) -> (u64, Option<Captured>) {
    let (world, from, to) = two_pods();
    let server = Server::udp(&to, "to", (to.ip4, 80));
    let arriving = FrameSocket::open(&to, "eth0");
    let frame = packet.macs([2; 6], [0xee; 6]).build();
    FrameSocket::open(&from, "eth0").send_with(offload(&frame), &frame);
    let captured = arriving.next_matching(Duration::from_millis(300), to_port_80);
    // The server counts before it answers; without an answer it has had time enough.
    let answer =
        |captured: &Captured| Decoded::frame(&captured.frame).is_ok_and(|packet| packet.source_port() == Some(80));
    let answered = arriving.next_matching(Duration::from_millis(300), answer).is_some();
    assert_eq!(server.requests(), u64::from(answered));
    drop(world);
    (server.requests(), captured)
}

fn datagram() -> Packet {
    Packet::new([10, 244, 1, 10], [10, 244, 1, 11])
        .udp(4000, 80)
        .payload(b"by hand")
}

#[test]
fn a_frame_sent_by_hand_reaches_a_server() {
    let (requests, captured) = inject(datagram(), |_| VnetHeader::default());
    let captured = captured.expect("the datagram");
    assert_eq!(
        (requests, decode(&captured).transport_sum, captured.offload.partial),
        (1, Checksum::Good, false)
    );
}

#[test]
fn a_wrong_sum_sent_by_hand_reaches_the_interface_but_not_the_server() {
    let (requests, captured) = inject(datagram().sums(Sums::WrongTransport), |_| VnetHeader::default());
    assert!(matches!(
        decode(&captured.expect("the datagram")).transport_sum,
        Checksum::Wrong { .. }
    ));
    assert_eq!(requests, 0);
}

#[test]
fn a_partial_sum_sent_by_hand_stays_partial_and_is_accepted() {
    let partial = |_: &[u8]| VnetHeader {
        partial: true,
        checksum_start: 34,
        checksum_offset: 6,
        ..VnetHeader::default()
    };
    let (requests, captured) = inject(datagram().sums(Sums::Partial), partial);
    let captured = captured.expect("the datagram");
    assert_eq!((requests, captured.offload.partial), (1, true));
    assert_eq!(
        (captured.offload.checksum_start, captured.offload.checksum_offset),
        (34, 6)
    );
    assert_eq!(decode(&captured).transport_sum, Checksum::Partial);
}

#[test]
fn a_gso_packet_sent_by_hand_arrives_as_one() {
    let (world, from, to) = two_pods();
    let payload = vec![7; 10_000];
    let packet = Packet::new(from.ip4, to.ip4)
        .tcp(4000, 80, "PA")
        .payload(&payload)
        .sums(Sums::Partial);
    let frame = packet.macs([2; 6], [0xee; 6]).build();
    let offload = VnetHeader {
        partial: true,
        checksum_start: 34,
        checksum_offset: 16,
        gso_type: 1,
        gso_size: 1000,
        header_length: 54,
    };
    let arriving = FrameSocket::open(&to, "eth0");
    FrameSocket::open(&from, "eth0").send_with(offload, &frame);
    let captured = arriving.next_matching(PATIENCE, to_port_80).expect("the segment");
    assert_eq!((captured.offload.gso_size, captured.offload.gso_type), (1000, 1));
    assert_eq!(decode(&captured).payload, payload);
    drop(world);
}
