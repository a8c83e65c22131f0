//! At which hooks a flow goes on, whose frames are met there, and with which address it leaves.

use std::net::IpAddr;

use super::node::{CLIENT_VETH, L3, LOCAL, Node, REMOTE, STEER, Sent, UPLINK, each_family, mac_word};
use super::packet::Packet;
use crate::layout::Device;
use crate::pipeline::Hook;
use crate::testing::{Buffer, Frame, run_early, words};
use crate::verdict::{Action, Reason};

/// A client's port.
const PORT: u16 = 40_000;
const OTHER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn from_pod(node: &Node, flags: &str) -> Packet {
    Packet::new(node.at.pod(), node.at.vip()).tcp(PORT, REMOTE, flags)
}

/// What steer0 meets of others: forwarded, not sent by the host.
fn forwarded(packet: &Packet) -> Buffer {
    let mut buffer = Buffer::from(packet.build());
    (buffer.ifindex, buffer.sent_by_host) = (STEER, false);
    buffer
}

/// The source that a packet leaves with.
#[track_caller]
fn from(sent: &Sent) -> (IpAddr, Option<u16>) {
    let decoded = sent.decoded();
    (decoded.ip.source, decoded.source_port())
}

#[test]
fn a_flow_that_steer0_met_goes_on_at_its_clients_own_device_once_that_is_hooked() {
    each_family(|node| {
        let first = node.send_as_is(Hook::STEER_OUT, L3, forwarded(&from_pod(&node, "S")));
        first.expect(Action::Neighbour, Reason::Forward);
        let sender = from(&first);
        for flags in ["A", "A"] {
            let sent = node.send(Hook::POD_IN, &from_pod(&node, flags));
            sent.expect(Action::Neighbour, Reason::Forward);
            assert_eq!(from(&sent), sender, "the same connection for its backend");
        }
    });
}

#[test]
fn a_frame_to_another_hosts_address_begins_nothing_and_is_not_answered() {
    each_family(|node| {
        let macs = |packet: Packet| packet.macs([2, 0, 0, 0, 0, 1], OTHER_MAC);
        let ask = macs(Packet::new(node.at.client(), node.at.lb()).tcp(PORT, LOCAL, "S"));
        let ping = macs(Packet::new(node.at.client(), node.at.lb()).echo_request(7, 1));
        let before = node.tables.flow_words(node.v6);
        for packet in [&ask, &ping] {
            let foreign = |for_host| {
                let mut buffer = Buffer::from(packet.build());
                (buffer.ifindex, buffer.for_host) = (UPLINK, for_host);
                buffer
            };
            let sent = node.send_as_is(Hook::UPLINK_IN, L3, foreign(false));
            sent.expect(Action::Pass, Reason::NotOurs);
            assert!(sent.is_untouched());
            let mut frame = Frame::new(packet.build(), UPLINK);
            assert_eq!(run_early(&node.tables, node.v6, &mut frame).action, Action::Pass);
            assert_eq!((frame.bytes(), frame.mark), (&packet.build()[..], None));
            assert!(before == node.tables.flow_words(node.v6));
        }
        // A port of a bridge meets what is sent to the bridge.
        node.tables.set_device(
            UPLINK,
            Device {
                bridge_mac: mac_word(OTHER_MAC),
                ..Device::default()
            },
        );
        let mut to_bridge = Buffer::from(ask.build());
        (to_bridge.ifindex, to_bridge.for_host) = (UPLINK, false);
        node.send_as_is(Hook::UPLINK_IN, L3, to_bridge)
            .expect(Action::Pass, Reason::Forward);
    });
}

#[test]
fn where_no_route_tells_a_source_it_is_that_of_the_device_or_else_of_steer0() {
    each_family(|node| {
        let steer_source = node.at.stranger();
        node.tables.set_device(
            STEER,
            Device {
                source_v4: words(super::node::Addresses { v6: false }.stranger())[0] as u32,
                source_v6: words(super::node::Addresses { v6: true }.stranger()),
                ..Device::default()
            },
        );
        node.route(None, UPLINK, node.at.gateway(), None, 1500);
        let remote = node.send_as_is(Hook::STEER_OUT, L3, forwarded(&from_pod(&node, "S")));
        assert_eq!(from(&remote).0, node.at.node());
        node.tables.set_device(CLIENT_VETH, Device::default());
        node.route(
            Some(node.at.remote_pod()),
            CLIENT_VETH,
            node.at.remote_pod(),
            None,
            1500,
        );
        let other = Packet::new(node.at.pod(), node.at.vip()).tcp(PORT + 1, REMOTE, "S");
        let sent = node.send_as_is(Hook::STEER_OUT, L3, forwarded(&other));
        assert_eq!(from(&sent).0, steer_source);
    });
}
