//! Whole journeys: a client's packet to its backend and the answer back, at every hook where flows begin, for every place of
//! a backend. The table of `steps/place.rs`, seen from outside.

use std::net::IpAddr;

use super::node::{
    BACKEND_PORT, BACKEND_VETH, BRIDGE_MAC, BY_POLICY, CLIENT_VETH, HAIRPIN, HOST, HZ, L3, LO, LOCAL, NODE_PORTS, Node,
    REMOTE, STEER, STEER_MAC, Sent, TCP, UDP, UPLINK, each_family, left_to_device,
};
use super::packet::{Decoded, Packet, diff};
use crate::layout::config;
use crate::pipeline::Hook;
use crate::testing::{Buffer, Lookup};
use crate::verdict::{Action, Reason};

/// A client's port.
const PORT: u16 = 40_000;
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// One row: where a client's packets are seen, and what has to become of them.
struct Journey {
    hook: u8,
    client: fn(&Node) -> IpAddr,
    frontend: fn(&Node) -> IpAddr,
    port: u16,
    /// A process of this host is the client.
    by_host: bool,
    /// How the translated packet goes on, and out of which device.
    forward: (Action, u32),
    /// The source that the backend sees.
    seen: Seen,
    backend: fn(&Node) -> IpAddr,
    /// Hooks that the answer passes untouched, then the one at which it is restored.
    reply_passes: &'static [u8],
    reply_hook: u8,
    reply: (Action, u32),
}

/// The source that a backend sees.
#[derive(Clone, Copy, PartialEq)]
enum Seen {
    /// The client, its port too.
    Client,
    /// The client's address and a port of ours.
    ClientAddress,
    /// The frontend's address, the client's port.
    Frontend,
    /// The node's address towards the backend and a port of ours.
    Node,
}

fn client(node: &Node) -> IpAddr {
    node.at.client()
}
fn pod(node: &Node) -> IpAddr {
    node.at.pod()
}
fn own(node: &Node) -> IpAddr {
    node.at.node()
}
fn vip(node: &Node) -> IpAddr {
    node.at.vip()
}
fn lb(node: &Node) -> IpAddr {
    node.at.lb()
}
fn local_pod(node: &Node) -> IpAddr {
    node.at.local_pod()
}
fn remote_pod(node: &Node) -> IpAddr {
    node.at.remote_pod()
}

/// Where nothing else is said, an outside client of the LoadBalancer IP whose backend is local.
const BASE: Journey = Journey {
    hook: Hook::UPLINK_IN,
    client,
    frontend: lb,
    port: LOCAL,
    by_host: false,
    forward: (Action::Pass, 0),
    seen: Seen::ClientAddress,
    backend: local_pod,
    reply_passes: &[Hook::POD_IN],
    reply_hook: Hook::UPLINK_OUT,
    reply: (Action::Pass, 0),
};

const JOURNEYS: &[Journey] = &[
    BASE,
    Journey {
        frontend: own,
        port: LOCAL + NODE_PORTS,
        ..BASE
    },
    Journey {
        port: HOST,
        backend: own,
        reply_passes: &[],
        ..BASE
    },
    Journey {
        port: BY_POLICY,
        seen: Seen::Client,
        ..BASE
    },
    // To another node and back; the client's answer is routed by us too.
    Journey {
        port: REMOTE,
        forward: (Action::Neighbour, UPLINK),
        seen: Seen::Node,
        backend: remote_pod,
        reply_passes: &[],
        reply_hook: Hook::UPLINK_IN,
        reply: (Action::Neighbour, UPLINK),
        ..BASE
    },
    // Pods.
    Journey {
        hook: Hook::POD_IN,
        client: pod,
        frontend: vip,
        seen: Seen::Client,
        reply_passes: &[Hook::POD_IN],
        reply_hook: Hook::POD_OUT,
        ..BASE
    },
    Journey {
        hook: Hook::POD_IN,
        client: pod,
        frontend: vip,
        seen: Seen::Client,
        port: REMOTE,
        backend: remote_pod,
        reply_passes: &[Hook::UPLINK_IN],
        reply_hook: Hook::POD_OUT,
        ..BASE
    },
    Journey {
        hook: Hook::POD_IN,
        client: pod,
        frontend: vip,
        seen: Seen::Client,
        port: HOST,
        backend: own,
        reply_passes: &[],
        reply_hook: Hook::POD_OUT,
        ..BASE
    },
    Journey {
        hook: Hook::POD_IN,
        client: pod,
        frontend: own,
        port: HAIRPIN + NODE_PORTS,
        by_host: false,
        forward: (Action::Transmit, CLIENT_VETH),
        seen: Seen::Frontend,
        backend: pod,
        reply_passes: &[],
        reply_hook: Hook::POD_IN,
        reply: (Action::Transmit, CLIENT_VETH),
    },
    // Processes of the host.
    Journey {
        hook: Hook::STEER_OUT,
        client: own,
        frontend: vip,
        by_host: true,
        forward: (Action::Neighbour, BACKEND_VETH),
        seen: Seen::Node,
        reply_passes: &[],
        reply_hook: Hook::POD_IN,
        reply: (Action::Receive, STEER),
        ..BASE
    },
    Journey {
        hook: Hook::STEER_OUT,
        client: own,
        frontend: vip,
        port: REMOTE,
        by_host: true,
        forward: (Action::Neighbour, UPLINK),
        seen: Seen::Node,
        backend: remote_pod,
        reply_passes: &[],
        reply_hook: Hook::UPLINK_IN,
        reply: (Action::Receive, STEER),
    },
    Journey {
        hook: Hook::STEER_OUT,
        client: own,
        frontend: vip,
        port: HOST,
        by_host: true,
        forward: (Action::Receive, STEER),
        seen: Seen::Frontend,
        backend: own,
        reply_passes: &[],
        reply_hook: Hook::STEER_OUT,
        reply: (Action::Receive, STEER),
    },
    // A pod that no hook saw.
    Journey {
        hook: Hook::STEER_OUT,
        client: pod,
        frontend: vip,
        port: REMOTE,
        forward: (Action::Neighbour, UPLINK),
        seen: Seen::Node,
        backend: remote_pod,
        reply_passes: &[],
        reply_hook: Hook::UPLINK_IN,
        reply: (Action::Neighbour, CLIENT_VETH),
        ..BASE
    },
    // NodePorts on the loopback.
    Journey {
        hook: Hook::LO_OUT,
        client: own,
        frontend: own,
        port: HOST + NODE_PORTS,
        by_host: true,
        seen: Seen::Client,
        backend: own,
        reply_passes: &[],
        reply_hook: Hook::LO_OUT,
        ..BASE
    },
    Journey {
        hook: Hook::LO_OUT,
        client: own,
        frontend: own,
        port: REMOTE + NODE_PORTS,
        by_host: true,
        forward: (Action::Neighbour, UPLINK),
        seen: Seen::Node,
        backend: remote_pod,
        reply_passes: &[],
        reply_hook: Hook::UPLINK_IN,
        reply: (Action::Receive, LO),
    },
];

/// Who computes the transport checksum.
#[derive(Clone, Copy, PartialEq)]
enum Computed {
    Sender,
    Device,
    Twice,
}

impl Computed {
    const ALL: [Self; 3] = [Self::Sender, Self::Device, Self::Twice];

    fn buffer(self, packet: &Packet) -> Buffer {
        match self {
            Self::Sender => packet.build().into(),
            Self::Device => left_to_device(packet),
            Self::Twice => Buffer::from(packet.build()).complete(L3),
        }
    }
}

/// A segment or datagram with a payload.
fn packet(protocol: u8, from: (IpAddr, u16), to: (IpAddr, u16), flags: &str, payload: &[u8]) -> Packet {
    let packet = Packet::new(from.0, to.0)
        .macs(CLIENT_MAC, NODE_MAC)
        .ttl(17)
        .payload(payload);
    match protocol {
        TCP => packet.tcp(from.1, to.1, flags),
        _ => packet.udp(from.1, to.1),
    }
}

fn ends(decoded: &Decoded) -> ((IpAddr, u16), (IpAddr, u16)) {
    let (source, destination) = decoded.ports().expect("ports");
    ((decoded.ip.source, source), (decoded.ip.destination, destination))
}

impl Journey {
    fn send(node: &Node, hook: u8, mut buffer: Buffer, by_host: bool) -> Sent {
        buffer.sent_by_host = by_host && matches!(hook, Hook::STEER_OUT | Hook::LO_OUT);
        buffer.ifindex = match hook {
            Hook::POD_IN | Hook::POD_OUT => CLIENT_VETH,
            Hook::STEER_OUT => STEER,
            Hook::LO_OUT => LO,
            _ => UPLINK,
        };
        node.send_as_is(hook, L3, buffer)
    }

    /// Nothing but addresses, ports, sums and what the way asks for has changed.
    #[track_caller]
    fn check_only_translated(before: &Packet, sent: &Sent, after: &Packet, way: (Action, u32), by_host: bool) {
        let after = match way.0 {
            Action::Neighbour if !by_host => after.clone().ttl(16),
            Action::Transmit => after.clone().macs(NODE_MAC, CLIENT_MAC),
            Action::Receive => {
                let mac = if way.1 == STEER { STEER_MAC } else { [0; 6] };
                after.clone().macs(CLIENT_MAC, mac)
            }
            Action::Pass | Action::Drop | Action::Neighbour | Action::Deliver | Action::Answer => after.clone(),
        };
        sent.decoded();
        let wire = sent.buffer.wire();
        assert!(wire == after.build(), "{:?}", diff(&after.build(), &wire));
        assert!(
            sent.buffer.sum_is_right(),
            "the running sum is wrong: {before:?} {sent:?}"
        );
    }

    /// The client's packet to the backend; returns what the backend sees of the client.
    fn out(&self, node: &Node, protocol: u8, flags: &str, computed: Computed, reason: Reason) -> (IpAddr, u16) {
        let (from, to) = (((self.client)(node), PORT), ((self.frontend)(node), self.port));
        let sent_packet = packet(protocol, from, to, flags, b"to the backend");
        let sent = Self::send(node, self.hook, computed.buffer(&sent_packet), self.by_host);
        sent.expect(self.forward.0, Reason::Forward);
        assert!(sent.counted.contains_key(&reason), "{sent:?}");
        assert_eq!(sent.outcome.ifindex, self.forward.1);
        let (source, destination) = ends(&sent.decoded());
        assert_eq!(destination, ((self.backend)(node), BACKEND_PORT));
        match self.seen {
            Seen::Client => assert_eq!(source, from),
            Seen::ClientAddress => {
                assert_eq!(source.0, from.0);
                assert!((23_192..30_000).contains(&source.1), "{source:?}");
            }
            Seen::Frontend => assert_eq!(source, (to.0, PORT)),
            Seen::Node => {
                let towards = if destination.0 == node.at.local_pod() {
                    node.at.tunnel()
                } else {
                    node.at.node()
                };
                assert_eq!(source.0, towards);
                assert!((16_384..23_192).contains(&source.1), "{source:?}");
            }
        }
        let expected = packet(protocol, source, destination, flags, b"to the backend");
        Self::check_only_translated(&sent_packet, &sent, &expected, self.forward, self.by_host);
        source
    }

    /// The backend's answer to the client.
    fn back(&self, node: &Node, seen: (IpAddr, u16), protocol: u8, flags: &str, computed: Computed) {
        let from = ((self.backend)(node), BACKEND_PORT);
        let answer = packet(protocol, from, seen, flags, b"to the client, who asked");
        let by_host = from.0 == node.at.node();
        for hook in self.reply_passes {
            let passed = Self::send(node, *hook, computed.buffer(&answer), by_host);
            passed.expect(Action::Pass, Reason::OtherHook);
            assert!(passed.is_untouched());
        }
        let sent = Self::send(node, self.reply_hook, computed.buffer(&answer), by_host);
        sent.expect(self.reply.0, Reason::Reply);
        assert_eq!(sent.outcome.ifindex, self.reply.1);
        let (source, destination) = (((self.frontend)(node), self.port), ((self.client)(node), PORT));
        assert_eq!(ends(&sent.decoded()), (source, destination));
        let expected = packet(protocol, source, destination, flags, b"to the client, who asked");
        Self::check_only_translated(&answer, &sent, &expected, self.reply, by_host);
    }
}

#[test]
fn every_packet_of_a_connection_reaches_its_backend_and_every_answer_its_client() {
    for journey in JOURNEYS {
        for computed in Computed::ALL {
            each_family(|node| {
                let seen = journey.out(&node, TCP, "S", computed, Reason::NewFlow);
                journey.back(&node, seen, TCP, "SA", computed);
                for flags in ["A", "PA", "FA"] {
                    assert_eq!(journey.out(&node, TCP, flags, computed, Reason::Forward), seen);
                    journey.back(&node, seen, TCP, flags, computed);
                    node.tables.advance(HZ);
                }
            });
        }
    }
}

#[test]
fn every_datagram_reaches_its_backend_and_every_answer_its_client() {
    for journey in JOURNEYS {
        for computed in Computed::ALL {
            each_family(|node| {
                let seen = journey.out(&node, UDP, "", computed, Reason::NewFlow);
                for _ in 0..3 {
                    journey.back(&node, seen, UDP, "", computed);
                    assert_eq!(journey.out(&node, UDP, "", computed, Reason::Forward), seen);
                    node.tables.advance(HZ / 2);
                }
            });
        }
    }
}

#[test]
fn packets_of_a_settled_flow_are_noted_sixteen_seconds_apart_and_of_a_young_one_every_second() {
    let journey = &JOURNEYS[0];
    each_family(|node| {
        let seen = journey.out(&node, TCP, "S", Computed::Sender, Reason::NewFlow);
        journey.back(&node, seen, TCP, "SA", Computed::Sender);
        journey.out(&node, TCP, "A", Computed::Sender, Reason::Forward);
        let (from, to) = (
            ((journey.client)(&node), PORT),
            ((journey.frontend)(&node), journey.port),
        );
        let backend = ((journey.backend)(&node), BACKEND_PORT);
        let noted_after = |seconds: u32| {
            node.pass_seconds(seconds);
            journey.out(&node, TCP, "A", Computed::Sender, Reason::Forward);
            let halves = [(from, to), (backend, seen)];
            halves.map(|(from, to)| node.half(TCP, from, to).expect("a half").control.last_seen == node.now())
        };
        // It settles with the first of these.
        assert_eq!(noted_after(1), [true; 2]);
        assert_eq!(noted_after(15), [false; 2]);
        assert_eq!(noted_after(1), [true; 2]);
    });
}

#[test]
fn a_packet_of_an_established_flow_costs_one_look_up_in_the_flow_table_and_none_in_the_service_tables() {
    for journey in JOURNEYS {
        for protocol in [TCP, UDP] {
            each_family(|node| {
                let seen = journey.out(&node, protocol, "S", Computed::Sender, Reason::NewFlow);
                journey.back(&node, seen, protocol, "SA", Computed::Sender);
                journey.out(&node, protocol, "A", Computed::Sender, Reason::Forward);
                journey.back(&node, seen, protocol, "A", Computed::Sender);

                let from = ((journey.client)(&node), PORT);
                let to = ((journey.frontend)(&node), journey.port);
                let forward = packet(protocol, from, to, "PA", b"x").build().into();
                let forward = Journey::send(&node, journey.hook, forward, journey.by_host);
                let backend = ((journey.backend)(&node), BACKEND_PORT);
                let reply = packet(protocol, backend, seen, "PA", b"x").build().into();
                let reply = Journey::send(&node, journey.reply_hook, reply, backend.0 == node.at.node());
                for (sent, reason) in [(&forward, Reason::Forward), (&reply, Reason::Reply)] {
                    assert_eq!(sent.outcome.reason, reason);
                    let of = |kind| sent.lookups.of(kind);
                    assert_eq!(of(Lookup::Flows), 1, "{sent:?}");
                    assert!(of(Lookup::FlowSets) <= 2, "{sent:?}");
                    assert!(of(Lookup::Bits) <= 2, "{sent:?}");
                    let plain = L3 + if node.v6 { 40 } else { 20 } + 20;
                    assert!(sent.buffer.linear <= plain, "payload was moved: {sent:?}");
                    assert_eq!(of(Lookup::Clock), 1, "{sent:?}");
                    let backend_words = u64::from(protocol == UDP && reason == Reason::Forward);
                    assert_eq!(of(Lookup::Backend), backend_words, "{sent:?}");
                    let routed = sent.outcome.action == Action::Neighbour;
                    assert_eq!(of(Lookup::Route), u64::from(routed), "{sent:?}");
                    for kind in [
                        Lookup::Frontends,
                        Lookup::FrontendSets,
                        Lookup::Service,
                        Lookup::Arena,
                        Lookup::Device,
                        Lookup::Ranges,
                        Lookup::Affinity,
                        Lookup::Fragment,
                    ] {
                        assert_eq!(of(kind), 0, "{kind:?} {sent:?}");
                    }
                }
            });
        }
    }
}

#[test]
fn the_way_out_of_a_flows_first_packet_is_asked_for_once_where_it_is_settled() {
    each_family(|node| {
        let mut ports = PORT..;
        let mut asked = |source: Option<IpAddr>, is_free: bool| {
            node.route(None, UPLINK, node.at.gateway(), source, 1500);
            let from = (node.at.client(), ports.next().expect("a port"));
            let packet = packet(TCP, from, (node.at.lb(), REMOTE), "S", b"");
            let packet = if is_free && !node.v6 {
                packet.may_fragment()
            } else {
                packet
            };
            let sent = node.send(Hook::UPLINK_IN, &packet);
            sent.expect(Action::Neighbour, Reason::Forward);
            sent.lookups.of(Lookup::Route)
        };
        let preferred = node.at.node();
        assert_eq!(asked(Some(preferred), false), 1);
        assert_eq!(asked(None, false), 2, "the source is chosen by us");
        assert_eq!(
            asked(Some(preferred), true),
            if node.v6 { 1 } else { 2 },
            "its length is no matter at first"
        );
    });
}

#[test]
fn traffic_that_is_no_services_costs_three_bits_at_most_and_no_look_up() {
    each_family(|node| {
        for (hook, bits) in [
            (Hook::UPLINK_IN, 2),
            (Hook::POD_IN, 3),
            (Hook::POD_OUT, 1),
            (Hook::UPLINK_OUT, 1),
        ] {
            let stranger = packet(TCP, (node.at.client(), PORT), (node.at.stranger(), 443), "S", b"");
            let sent = node.send(hook, &stranger);
            sent.expect(Action::Pass, Reason::NotOurs);
            assert!(sent.is_untouched());
            assert_eq!(sent.lookups.of(Lookup::Bits), bits, "{sent:?}");
            let all: u64 = [
                Lookup::Flows,
                Lookup::Frontends,
                Lookup::Config,
                Lookup::Clock,
                Lookup::Route,
            ]
            .map(|kind| sent.lookups.of(kind))
            .iter()
            .sum();
            assert_eq!(all, 0, "{sent:?}");
        }
    });
}

#[test]
fn a_reply_of_ours_on_a_bridge_port_is_lifted_to_the_bridge_and_nothing_else() {
    each_family(|node| {
        let of_a_pod = |journey: &&Journey| journey.hook == Hook::POD_IN;
        let journey = JOURNEYS.iter().find(of_a_pod).expect("a pod's journey");
        let seen = journey.out(&node, TCP, "S", Computed::Sender, Reason::NewFlow);
        node.set_flags(config::FLAG_BRIDGES);
        let answer = |to: IpAddr, port| packet(TCP, (node.at.local_pod(), BACKEND_PORT), (to, port), "SA", b"");
        let send = |packet: &Packet| {
            let mut buffer = Buffer::from(packet.build());
            buffer.ifindex = BACKEND_VETH;
            node.send_as_is(Hook::POD_IN, L3, buffer)
        };
        let lifted = send(&answer(seen.0, seen.1));
        lifted.expect(Action::Pass, Reason::Lifted);
        assert_eq!(lifted.decoded().link.map(|link| link.destination), Some(BRIDGE_MAC));
        let expected = answer(seen.0, seen.1).macs(CLIENT_MAC, BRIDGE_MAC).build();
        assert_eq!(lifted.buffer.bytes(), expected);

        let other = send(&answer(node.at.stranger(), PORT));
        other.expect(Action::Pass, Reason::NotOurs);
        assert!(other.is_untouched());
    });
}
