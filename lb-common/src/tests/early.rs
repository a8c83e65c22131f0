//! The hook that comes before tc: it does what tc would do, with the next hop's MAC addresses, or leaves the packet untouched.

use super::node::{BACKEND_VETH, LOCAL, Node, REMOTE, UPLINK, each_family, mac_word};
use super::packet::Packet;
use crate::access::{Macs, RouteKind};
use crate::pipeline::Hook;
use crate::testing::{Frame, HostRoute, Outcome, run_early, words};
use crate::verdict::{Action, Reason};

/// A client's port.
const PORT: u16 = 40_000;
/// The MAC address that packets are sent to.
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const HOP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

/// The way to the remote backend and to clients, over a next hop that is known.
fn way(node: &Node) -> HostRoute {
    HostRoute {
        kind: RouteKind::Via,
        ifindex: UPLINK,
        next_hop: words(node.at.gateway()),
        source: words(node.at.node()),
        mtu: 1500,
        macs: Macs {
            to: mac_word(HOP_MAC),
            from: mac_word(OWN_MAC),
        },
    }
}

/// Runs a test for both families, on nodes whose next hop is known.
fn each_node(test: impl Fn(&Node)) {
    each_family(|node| {
        node.tables.set_route(node.v6, None, way(&node));
        test(&node);
    });
}

fn ask(node: &Node, port: u16, flags: &str) -> Packet {
    Packet::new(node.at.client(), node.at.lb())
        .tcp(PORT, port, flags)
        .payload(b"a question")
}

fn send(node: &Node, packet: &Packet) -> (Outcome, Frame) {
    let mut frame = Frame::new(packet.build(), UPLINK);
    let outcome = run_early(&node.tables, node.v6, &mut frame);
    (outcome, frame)
}

/// The packet was left to tc as it was, and the flow tables as they were.
#[track_caller]
fn handed_over(node: &Node, packet: &Packet, why: &str) {
    let before = node.tables.flow_words(node.v6);
    let (outcome, frame) = send(node, packet);
    assert_eq!(
        (outcome.action, outcome.reason),
        (Action::Pass, Reason::HandedOver),
        "{why}"
    );
    assert_eq!((frame.bytes(), frame.mark), (&packet.build()[..], None), "{why}");
    assert!(before == node.tables.flow_words(node.v6), "{why}: a flow was entered");
}

#[test]
fn a_packet_to_another_node_and_its_reply_leave_at_once_as_tc_would_send_them() {
    each_node(|node| {
        for flags in ["S", "A"] {
            let (outcome, frame) = send(node, &ask(node, REMOTE, flags));
            assert_eq!(
                (outcome.action, outcome.reason, outcome.ifindex),
                (Action::Transmit, Reason::Forward, UPLINK)
            );
            assert_eq!(frame.bytes()[..12], [HOP_MAC, OWN_MAC].concat());
            // Now the flow is there: tc makes the same of the same packet.
            let by_tc = node.send(Hook::UPLINK_IN, &ask(node, REMOTE, flags));
            assert_eq!(by_tc.outcome.reason, Reason::Forward);
            assert_eq!(frame.bytes()[12..], by_tc.buffer.bytes()[12..]);
            assert_eq!(frame.mark, None);
        }
    });
}

#[test]
fn a_packet_to_a_backend_of_this_node_goes_up_with_a_mark_of_node_and_device() {
    each_node(|node| {
        let (outcome, frame) = send(node, &ask(node, LOCAL, "S"));
        assert_eq!((outcome.action, outcome.reason), (Action::Pass, Reason::Forward));
        let by_tc = node.send(Hook::UPLINK_IN, &ask(node, LOCAL, "A"));
        assert_eq!(by_tc.outcome.reason, Reason::Forward);
        let other_seed = Node::seeded(node.v6, 99);
        let (_, other) = send(&other_seed, &ask(&other_seed, LOCAL, "S"));
        assert!(frame.mark.is_some() && other.mark.is_some() && frame.mark != other.mark);
        let mut deaf = Frame::new(ask(node, LOCAL, "A").build(), UPLINK);
        deaf.takes_mark = false;
        let outcome = run_early(&node.tables, node.v6, &mut deaf);
        assert_eq!((outcome.action, outcome.reason), (Action::Pass, Reason::HandedOver));
        assert_eq!(deaf.bytes(), ask(node, LOCAL, "A").build());
    });
}

#[test]
fn what_is_not_plain_or_has_no_sure_way_is_left_to_tc_and_enters_no_flow() {
    each_node(|node| {
        let remote = ask(node, REMOTE, "S");
        handed_over(node, &remote.clone().ttl(1), "its last hop");
        handed_over(node, &remote.clone().payload(&[1; 1500]), "too big");
        handed_over(
            node,
            &remote.clone().macs([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 3]),
            "for another host",
        );
        let dressed = if node.v6 {
            remote.clone().hop_by_hop(&[5, 2, 0, 0])
        } else {
            remote.clone().options(&[0x94, 4, 0, 0])
        };
        handed_over(node, &dressed, "options");
        for (why, change) in [
            (
                "an unknown neighbour",
                HostRoute {
                    macs: Macs::default(),
                    ..way(node)
                },
            ),
            (
                "another device",
                HostRoute {
                    ifindex: BACKEND_VETH,
                    ..way(node)
                },
            ),
            ("no route", HostRoute::NONE),
            (
                "this node",
                HostRoute {
                    kind: RouteKind::Local,
                    ..HostRoute::NONE
                },
            ),
        ] {
            node.tables.set_route(node.v6, None, change);
            handed_over(node, &remote, why);
        }
    });
}
