//! Connections straight to a backend beside one of the same client port that goes there through a frontend.

use std::net::IpAddr;

use super::node::{BACKEND_PORT, BACKEND_VETH, CLIENT_VETH, HZ, L3, LOCAL, Node, REMOTE, Sent, TCP, UDP, each_family};
use super::packet::Packet;
use crate::layout::config;
use crate::pipeline::Hook;
use crate::testing::{Buffer, Lookup};
use crate::verdict::{Action, Reason};

/// The client's port.
const PORT: u16 = 40_000;

type End = (IpAddr, u16);

/// A segment or datagram at a pod's device, or at the uplink.
fn send(node: &Node, hook: u8, protocol: u8, from: End, to: End, flags: &str) -> Sent {
    let packet = Packet::new(from.0, to.0).ttl(17).payload(b"straight or not");
    let packet = match protocol {
        TCP => packet.tcp(from.1, to.1, flags),
        _ => packet.udp(from.1, to.1),
    };
    let mut buffer = Buffer::from(packet.build());
    let entering = hook == Hook::POD_IN && from.0 == node.at.local_pod();
    buffer.ifindex = if entering { BACKEND_VETH } else { CLIENT_VETH };
    node.send_as_is(hook, L3, buffer)
}

/// Source and destination as they left.
fn ends(sent: &Sent) -> (End, End) {
    let decoded = sent.decoded();
    let (source, destination) = decoded.ports().expect("ports");
    ((decoded.ip.source, source), (decoded.ip.destination, destination))
}

/// Client, frontend and backend.
fn parties(node: &Node, port: u16) -> [End; 3] {
    let backend = if port == LOCAL {
        node.at.local_pod()
    } else {
        node.at.remote_pod()
    };
    [(node.at.pod(), PORT), (node.at.vip(), port), (backend, BACKEND_PORT)]
}

/// A packet of the client; returns what the backend sees of the client.
#[track_caller]
fn asks(node: &Node, protocol: u8, [from, to]: [End; 2], backend: End, flags: &str) -> End {
    let sent = send(node, Hook::POD_IN, protocol, from, to, flags);
    assert_eq!(sent.outcome.action, Action::Pass, "{sent:?}");
    let (source, destination) = ends(&sent);
    assert_eq!(destination, backend, "{sent:?}");
    assert_eq!(source.0, from.0, "{sent:?}");
    source
}

/// The backend's packet to `seen` reaches the client as one from `from`.
#[track_caller]
fn answers(node: &Node, protocol: u8, backend: End, seen: End, [from, to]: [End; 2], flags: &str) {
    if backend.0 == node.at.local_pod() {
        let entering = send(node, Hook::POD_IN, protocol, backend, seen, flags);
        assert_eq!(entering.outcome.action, Action::Pass, "{entering:?}");
        assert!(entering.is_untouched(), "{entering:?}");
    }
    let sent = send(node, Hook::POD_OUT, protocol, backend, seen, flags);
    assert_eq!(sent.outcome.action, Action::Pass, "{sent:?}");
    assert_eq!(ends(&sent), (from, to), "{sent:?}");
}

#[test]
fn a_straight_connection_from_a_port_that_a_service_has_already_gets_a_port_of_ours() {
    for port in [LOCAL, REMOTE] {
        for protocol in [TCP, UDP] {
            each_family(|node| {
                let [client, frontend, backend] = parties(&node, port);
                let through = asks(&node, protocol, [client, frontend], backend, "S");
                assert_eq!(through, client, "the first keeps its port");
                answers(&node, protocol, backend, through, [frontend, client], "SA");
                asks(&node, protocol, [client, frontend], backend, "A");

                let straight = asks(&node, protocol, [client, backend], backend, "S");
                assert!((16_384..23_192).contains(&straight.1), "{straight:?}");
                answers(&node, protocol, backend, straight, [backend, client], "SA");
                for flags in ["A", "PA"] {
                    assert_eq!(asks(&node, protocol, [client, backend], backend, flags), straight);
                    assert_eq!(asks(&node, protocol, [client, frontend], backend, flags), through);
                    answers(&node, protocol, backend, straight, [backend, client], flags);
                    answers(&node, protocol, backend, through, [frontend, client], flags);
                    node.tables.advance(HZ);
                }
            });
        }
    }
}

#[test]
fn datagrams_that_went_straight_first_step_aside_when_a_service_takes_their_port() {
    each_family(|node| {
        let [client, frontend, backend] = parties(&node, LOCAL);
        assert_eq!(asks(&node, UDP, [client, backend], backend, ""), client);
        let through = asks(&node, UDP, [client, frontend], backend, "");
        let straight = asks(&node, UDP, [client, backend], backend, "");
        assert_ne!(through, straight);
        answers(&node, UDP, backend, straight, [backend, client], "");
        answers(&node, UDP, backend, through, [frontend, client], "");
    });
}

#[test]
fn a_straight_flow_outlives_the_one_it_stepped_aside_for() {
    each_family(|node| {
        let [client, frontend, backend] = parties(&node, LOCAL);
        let through = asks(&node, TCP, [client, frontend], backend, "S");
        answers(&node, TCP, backend, through, [frontend, client], "SA");
        let straight = asks(&node, TCP, [client, backend], backend, "S");
        answers(&node, TCP, backend, straight, [backend, client], "SA");
        asks(&node, TCP, [client, backend], backend, "A");
        answers(&node, TCP, backend, through, [frontend, client], "R");
        node.tables.advance(1000 * HZ);
        assert_eq!(asks(&node, TCP, [client, backend], backend, "PA"), straight);
        answers(&node, TCP, backend, straight, [backend, client], "PA");
    });
}

#[test]
fn a_straight_flow_is_bridged_both_ways_or_routed_both_ways() {
    each_family(|node| {
        let [client, frontend, backend] = parties(&node, LOCAL);
        asks(&node, TCP, [client, frontend], backend, "S");
        let straight = asks(&node, TCP, [client, backend], backend, "S");
        node.set_flags(config::FLAG_BRIDGES);
        let lifted = send(&node, Hook::POD_IN, TCP, backend, client, "SA");
        lifted.expect(Action::Pass, Reason::Lifted);
        let passed = send(&node, Hook::POD_IN, TCP, backend, straight, "SA");
        passed.expect(Action::Pass, Reason::OtherHook);
        assert!(passed.is_untouched());
    });
}

#[test]
fn traffic_between_pods_that_no_service_is_beside_passes_untouched_for_one_look_up_a_packet() {
    each_family(|node| {
        let [client, _, backend] = parties(&node, LOCAL);
        for (protocol, flags, lookups) in [(TCP, "S", 2), (TCP, "A", 1), (TCP, "PA", 1), (UDP, "", 2)] {
            let sent = send(&node, Hook::POD_IN, protocol, client, backend, flags);
            sent.expect(Action::Pass, Reason::NotOurs);
            assert!(sent.is_untouched());
            assert_eq!(sent.lookups.of(Lookup::Flows), lookups, "{sent:?}");
            assert_eq!(sent.lookups.of(Lookup::Frontends), 0, "{sent:?}");
        }
    });
}
