//! Host routing by BPF: from pod to pod of this node past its stack, and what is left to the stack all the same.

use std::net::IpAddr;

use super::node::{
    BACKEND_PORT, BACKEND_VETH, CLIENT_VETH, HOST, L3, LO, LOCAL, Node, REMOTE, Sent, TCP, UDP, each_family, mac_word,
};
use super::packet::{Decoded, Packet};
use crate::access::{Macs, RouteKind};
use crate::layout::{DEVICE_POD, Device, config};
use crate::pipeline::Hook;
use crate::testing::{Buffer, HostRoute, words};
use crate::verdict::{Action, Reason};

const PORT: u16 = 40_000;
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
const BACKEND_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];

/// The way to a pod, whose MAC address the kernel knows or not.
fn way(node: &Node, pod: IpAddr, veth: u32, mac: Option<[u8; 6]>) {
    let macs = mac.map_or_else(Macs::default, |mac| Macs {
        to: mac_word(mac),
        from: mac_word(HOST_MAC),
    });
    let route = HostRoute {
        kind: RouteKind::Via,
        ifindex: veth,
        next_hop: words(pod),
        source: [0; 2],
        mtu: 1500,
        macs,
    };
    node.tables.set_route(node.v6, Some(words(pod)), route);
}

/// Both families' nodes with host routing by BPF, two pods, and neighbours that are known.
fn each_node(test: impl Fn(Node)) {
    each_family(|node| {
        node.set_flags(config::FLAG_ECHO | config::FLAG_HOST_ROUTING);
        for veth in [CLIENT_VETH, BACKEND_VETH] {
            let device = Device {
                flags: DEVICE_POD,
                ..Device::default()
            };
            node.tables.set_device(veth, device);
        }
        way(&node, node.at.pod(), CLIENT_VETH, Some(CLIENT_MAC));
        way(&node, node.at.local_pod(), BACKEND_VETH, Some(BACKEND_MAC));
        test(node);
    });
}

fn packet(protocol: u8, from: (IpAddr, u16), to: (IpAddr, u16), flags: &str) -> Packet {
    let packet = Packet::new(from.0, to.0).ttl(17).payload(b"from pod to pod");
    if protocol == TCP {
        packet.tcp(from.1, to.1, flags)
    } else {
        packet.udp(from.1, to.1)
    }
}

/// A packet of the client to a port of the ClusterIP.
fn asked(node: &Node, protocol: u8, port: u16, flags: &str) -> Packet {
    packet(protocol, (node.at.pod(), PORT), (node.at.vip(), port), flags)
}

/// A packet of the local backend to the client.
fn answered(node: &Node, protocol: u8, flags: &str) -> Packet {
    packet(
        protocol,
        (node.at.local_pod(), BACKEND_PORT),
        (node.at.pod(), PORT),
        flags,
    )
}

/// Sends a packet through a hook of a device.
fn send(node: &Node, hook: u8, ifindex: u32, packet: &Packet) -> Sent {
    let mut buffer = Buffer::from(packet.build());
    buffer.ifindex = ifindex;
    node.send_as_is(hook, L3, buffer)
}

fn ends(decoded: &Decoded) -> ((IpAddr, u16), (IpAddr, u16)) {
    let (source, destination) = decoded.ports().expect("ports");
    ((decoded.ip.source, source), (decoded.ip.destination, destination))
}

/// The packet goes into the pod behind `veth`, one hop on, in a frame of the host's to the pod.
#[track_caller]
fn is_delivered(sent: &Sent, reason: Reason, veth: u32, mac: [u8; 6]) -> Decoded {
    sent.expect(Action::Deliver, reason);
    assert_eq!(sent.outcome.ifindex, veth);
    let decoded = sent.decoded();
    let link = decoded.link.as_ref().expect("a link header");
    assert_eq!((link.destination, link.source), (mac, HOST_MAC));
    assert_eq!(decoded.ip.ttl, 16);
    decoded
}

#[test]
fn both_directions_go_straight_into_the_pod() {
    each_node(|node| {
        let (pod, vip, backend) = (node.at.pod(), node.at.vip(), node.at.local_pod());
        for protocol in [TCP, UDP] {
            for (flags, back) in [("S", "SA"), ("A", "A"), ("PA", "FA")] {
                let there = send(&node, Hook::POD_IN, CLIENT_VETH, &asked(&node, protocol, LOCAL, flags));
                let decoded = is_delivered(&there, Reason::Forward, BACKEND_VETH, BACKEND_MAC);
                assert_eq!(ends(&decoded), ((pod, PORT), (backend, BACKEND_PORT)));
                let back = send(&node, Hook::POD_IN, BACKEND_VETH, &answered(&node, protocol, back));
                let decoded = is_delivered(&back, Reason::Reply, CLIENT_VETH, CLIENT_MAC);
                assert_eq!(ends(&decoded), ((vip, LOCAL), (pod, PORT)));
            }
        }
        assert_eq!(node.halves().len(), 4);
    });
}

#[test]
fn an_answer_that_came_by_the_stack_is_translated_where_it_leaves() {
    each_node(|node| {
        send(&node, Hook::POD_IN, CLIENT_VETH, &asked(&node, TCP, LOCAL, "S")).expect(Action::Deliver, Reason::Forward);
        let back = send(&node, Hook::POD_OUT, CLIENT_VETH, &answered(&node, TCP, "SA"));
        let decoded = back.expect(Action::Pass, Reason::Reply).decoded();
        assert_eq!(ends(&decoded), ((node.at.vip(), LOCAL), (node.at.pod(), PORT)));
        assert_eq!(decoded.ip.ttl, 17, "the stack has taken its step");
    });
}

#[test]
fn the_kernel_finds_neighbours_that_are_not_known() {
    each_node(|node| {
        way(&node, node.at.local_pod(), BACKEND_VETH, None);
        way(&node, node.at.pod(), CLIENT_VETH, None);
        let there = send(&node, Hook::POD_IN, CLIENT_VETH, &asked(&node, UDP, LOCAL, ""));
        there.expect(Action::Neighbour, Reason::Forward);
        assert_eq!(there.outcome.ifindex, BACKEND_VETH);
        assert_eq!(there.decoded().ip.ttl, 16);
        let back = send(&node, Hook::POD_IN, BACKEND_VETH, &answered(&node, UDP, ""));
        back.expect(Action::Neighbour, Reason::Reply);
        assert_eq!(back.outcome.ifindex, CLIENT_VETH);
        // Known at last: the same flow.
        way(&node, node.at.local_pod(), BACKEND_VETH, Some(BACKEND_MAC));
        let there = send(&node, Hook::POD_IN, CLIENT_VETH, &asked(&node, UDP, LOCAL, ""));
        is_delivered(&there, Reason::Forward, BACKEND_VETH, BACKEND_MAC);
    });
}

#[test]
fn what_is_no_pod_s_device_gets_its_packets_from_the_stack() {
    each_node(|node| {
        for port in [REMOTE, HOST] {
            let there = send(&node, Hook::POD_IN, CLIENT_VETH, &asked(&node, TCP, port, "S"));
            there.expect(Action::Pass, Reason::Forward);
        }
        // The pod stands behind a bridge, or its device has no hook.
        node.tables.set_device(BACKEND_VETH, Device::default());
        let there = send(&node, Hook::POD_IN, CLIENT_VETH, &asked(&node, TCP, LOCAL, "S"));
        assert_eq!(there.expect(Action::Pass, Reason::Forward).decoded().ip.ttl, 17);
        let passed = send(&node, Hook::POD_IN, BACKEND_VETH, &answered(&node, TCP, "SA"));
        assert!(passed.expect(Action::Pass, Reason::OtherHook).is_untouched());
        let back = send(&node, Hook::POD_OUT, CLIENT_VETH, &answered(&node, TCP, "SA"));
        back.expect(Action::Pass, Reason::Reply);
    });
}

#[test]
fn a_device_without_link_headers_has_the_kernel_make_them() {
    each_node(|node| {
        let mut buffer = Buffer::from(asked(&node, TCP, LOCAL, "S").build().split_off(L3));
        buffer.ifindex = CLIENT_VETH;
        let there = node.send_as_is(Hook::POD_IN, 0, buffer);
        there.expect(Action::Neighbour, Reason::Forward);
        assert_eq!(there.outcome.ifindex, BACKEND_VETH);
    });
}

#[test]
fn without_the_setting_every_packet_passes_the_stack() {
    each_node(|node| {
        node.set_flags(config::FLAG_ECHO);
        let there = send(&node, Hook::POD_IN, CLIENT_VETH, &asked(&node, TCP, LOCAL, "S"));
        there.expect(Action::Pass, Reason::Forward);
        let passed = send(&node, Hook::POD_IN, BACKEND_VETH, &answered(&node, TCP, "SA"));
        passed.expect(Action::Pass, Reason::OtherHook);
        // A flow stays on the way that it began.
        node.set_flags(config::FLAG_ECHO | config::FLAG_HOST_ROUTING);
        let there = send(&node, Hook::POD_IN, CLIENT_VETH, &asked(&node, TCP, LOCAL, "A"));
        there.expect(Action::Pass, Reason::Forward);
    });
}

#[test]
fn what_the_stack_would_refuse_is_refused() {
    each_node(|node| {
        send(&node, Hook::POD_IN, CLIENT_VETH, &asked(&node, UDP, LOCAL, "")).expect(Action::Deliver, Reason::Forward);
        let last = asked(&node, UDP, LOCAL, "").ttl(1);
        send(&node, Hook::POD_IN, CLIENT_VETH, &last).expect(Action::Transmit, Reason::TimeExceeded);
        let long = asked(&node, UDP, LOCAL, "").payload(&[1; 1500]);
        send(&node, Hook::POD_IN, CLIENT_VETH, &long).expect(Action::Transmit, Reason::TooBig);
        if !node.v6 {
            let cut = send(&node, Hook::POD_IN, CLIENT_VETH, &long.may_fragment());
            cut.expect(Action::Receive, Reason::Forward);
            assert_eq!(cut.outcome.ifindex, LO);
        }
    });
}
