//! Property tests of translation: whatever the packet looks like, both ways, its checksums are those that a full computation
//! gives, and nothing but its ends has changed.

use std::net::IpAddr;

use proptest::prelude::*;

use super::node::{
    BACKEND_PORT, BACKEND_VETH, CLIENT_VETH, L3, LOCAL, Node, REMOTE, Sent, TCP, UDP, UPLINK, left_to_device, transport,
};
use super::packet::{Packet, diff, fragments};
use crate::pipeline::Hook;
use crate::testing::Buffer;
use crate::verdict::{Action, Reason};

/// What a packet looks like apart from its ends.
#[derive(Clone, Debug)]
pub(super) struct Look {
    protocol: u8,
    flags: &'static str,
    numbers: (u32, u32, u16),
    tos: u8,
    ttl: u8,
    /// IPv4 options, or the content of IPv6 extension headers.
    options: Vec<Vec<u8>>,
    tcp_options: Vec<u8>,
    payload: Vec<u8>,
    /// UDP over IPv4 without a checksum.
    unsummed: bool,
    computed: u8,
}

impl Look {
    pub(super) fn packet(&self, from: (IpAddr, u16), to: (IpAddr, u16)) -> Packet {
        let mut packet = Packet::new(from.0, to.0).ttl(self.ttl).tos(self.tos);
        if from.0.is_ipv4() {
            packet = packet.options(&self.options.concat()).identification(self.numbers.2);
        } else {
            for (index, content) in self.options.iter().enumerate() {
                packet = packet.extension(if index == 0 { 0 } else { 60 }, content);
            }
        }
        let packet = match self.protocol {
            TCP => packet
                .tcp(from.1, to.1, self.flags)
                .sequence(self.numbers.0, self.numbers.1)
                .window(self.numbers.2)
                .tcp_options(&self.tcp_options),
            _ if self.unsummed && from.0.is_ipv4() => packet.udp_unsummed(from.1, to.1),
            _ => packet.udp(from.1, to.1),
        };
        packet.payload(&self.payload)
    }

    /// The look with the transport of another.
    pub(super) fn with_protocol_of(self, other: &Self) -> Self {
        Self {
            protocol: other.protocol,
            ..self
        }
    }

    /// Whether packets over IPv4 carry no checksum.
    pub(super) fn is_unsummed(&self) -> bool {
        self.unsummed && self.protocol == UDP
    }

    /// The packet as a hook may meet it: summed by the sender, left to the device, or summed by both.
    fn buffer(&self, packet: &Packet) -> Buffer {
        match self.computed {
            0 if !self.is_unsummed() => left_to_device(packet),
            // Without a checksum in the packet nothing absorbs the change of the ports, and nobody looks.
            1 if !self.is_unsummed() => Buffer::from(packet.build()).complete(L3),
            _ => packet.build().into(),
        }
    }
}

/// Any look.
pub(super) fn look() -> impl Strategy<Value = Look> {
    let word = prop::collection::vec(any::<u8>(), 4);
    let head = (
        prop::sample::select(vec![TCP, UDP]),
        prop::sample::select(vec!["S", "A", "PA", "SPU", "FA"]),
        any::<(u32, u32, u16)>(),
        any::<u8>(),
        2u8..,
    );
    let rest = (
        prop::collection::vec(word.clone(), 0..=4),
        prop::collection::vec(word, 0..=10).prop_map(|words| words.concat()),
        prop::collection::vec(any::<u8>(), 0..300),
        prop::bool::weighted(0.1),
        0u8..4,
    );
    (head, rest).prop_map(|(head, (options, tcp_options, payload, unsummed, computed))| Look {
        protocol: head.0,
        flags: head.1,
        numbers: head.2,
        tos: head.3,
        ttl: head.4,
        options,
        tcp_options,
        payload,
        unsummed,
        computed,
    })
}

/// Any single address of a family that is none of ours.
pub(super) fn client(v6: bool, bits: u128) -> IpAddr {
    if v6 {
        let [_, rest @ ..] = bits.to_be_bytes();
        let mut bytes = [0x20; 16];
        bytes[1..].copy_from_slice(&rest);
        bytes.into()
    } else {
        let [_, a, b, c] = (bits as u32).to_be_bytes();
        [11, a, b, c].into()
    }
}

/// A client and how it comes to a frontend of which backend.
#[derive(Clone, Copy, Debug)]
struct Route {
    v6: bool,
    client: IpAddr,
    port: u16,
    /// At an uplink, to another node; else from a pod, to this node.
    outside: bool,
}

impl Route {
    fn frontend(self, node: &Node) -> (IpAddr, u16) {
        if self.outside {
            (node.at.lb(), REMOTE)
        } else {
            (node.at.vip(), LOCAL)
        }
    }

    fn backend(self, node: &Node) -> (IpAddr, u16) {
        let address = if self.outside {
            node.at.remote_pod()
        } else {
            node.at.local_pod()
        };
        (address, BACKEND_PORT)
    }

    fn send(self, node: &Node, mut buffer: Buffer, reply: bool) -> Sent {
        let (hook, ifindex) = match (self.outside, reply) {
            (true, _) => (Hook::UPLINK_IN, UPLINK),
            (false, false) => (Hook::POD_IN, CLIENT_VETH),
            (false, true) => (Hook::POD_OUT, BACKEND_VETH),
        };
        buffer.ifindex = ifindex;
        node.send_as_is(hook, L3, buffer)
    }

    /// One hop less where we route ourselves.
    fn hop(self, packet: &Packet, ttl: u8) -> Packet {
        if self.outside {
            packet.clone().ttl(ttl - 1)
        } else {
            packet.clone()
        }
    }

    fn action(self) -> Action {
        if self.outside { Action::Neighbour } else { Action::Pass }
    }
}

fn route() -> impl Strategy<Value = Route> {
    any::<(bool, u128, u16, bool)>().prop_map(|(v6, bits, port, outside)| Route {
        v6,
        client: client(v6, bits),
        port,
        outside,
    })
}

/// The packet is `expected`, byte for byte, once the device has done its part.
fn check(sent: &Sent, expected: &Packet) -> Result<(), TestCaseError> {
    let (wire, expected) = (sent.buffer.wire(), expected.build());
    prop_assert!(wire == expected, "{:?}", diff(&expected, &wire));
    prop_assert!(
        sent.buffer.sum_is_right(),
        "the running sum is wrong: {:?}",
        sent.buffer
    );
    Ok(())
}

/// The transport bytes of a fragment and where they belong.
fn piece(frame: &[u8]) -> (usize, &[u8]) {
    let (at, _) = transport(frame, L3);
    let field = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let units = if frame[L3] >> 4 == 4 {
        field(L3 + 6) & 0x1fff
    } else {
        field(at - 6) >> 3
    };
    (usize::from(units) * 8, &frame[at..])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_translated_packet_is_the_one_that_its_new_ends_would_have_sent(look in look(), answer in look(), route in route()) {
        let node = Node::standard(route.v6);
        let from = (route.client, route.port);
        let (frontend, backend) = (route.frontend(&node), route.backend(&node));
        let sent = route.send(&node, look.buffer(&look.packet(from, frontend)), false);
        prop_assert_eq!((sent.outcome.action, sent.outcome.reason), (route.action(), Reason::Forward));
        let seen = sent.decoded();
        let seen = (seen.ip.source, seen.source_port().expect("a port"));
        if !route.outside {
            prop_assert_eq!(seen, from);
        }
        check(&sent, &route.hop(&look.packet(seen, backend), look.ttl))?;

        let answer = answer.with_protocol_of(&look);
        let sent = route.send(&node, answer.buffer(&answer.packet(backend, seen)), true);
        prop_assert_eq!((sent.outcome.action, sent.outcome.reason), (route.action(), Reason::Reply));
        check(&sent, &route.hop(&answer.packet(frontend, from), answer.ttl))?;
    }

    #[test]
    fn a_datagram_in_fragments_arrives_as_the_one_that_its_new_ends_would_have_sent(
        look in look(), route in route(), room in 5usize..12, id: u32, answer in any::<bool>()
    ) {
        let node = Node::standard(route.v6);
        let from = (route.client, route.port);
        let (frontend, backend) = (route.frontend(&node), route.backend(&node));
        let id = if route.v6 { id } else { id & 0xffff };
        let look = Look {
            options: Vec::new(),
            numbers: (look.numbers.0, look.numbers.1, id as u16),
            computed: 3,
            tcp_options: Vec::new(),
            payload: [look.payload.clone(), vec![3; 60]].concat(),
            ..look
        };
        let cut = |packet: &Packet| fragments(&packet.build(), room * 8, id);
        let opening = route.send(&node, cut(&look.packet(from, frontend)).remove(0).into(), false);
        let seen = opening.decoded();
        let seen = (seen.ip.source, seen.source_port().expect("a port"));
        let (sent, expected) = if answer {
            (look.packet(backend, seen), look.packet(frontend, from))
        } else {
            (look.packet(from, frontend), look.packet(seen, backend))
        };
        let mut whole = Vec::new();
        for fragment in cut(&sent) {
            let sent = route.send(&node, fragment.into(), answer);
            let reason = if answer { Reason::Reply } else { Reason::Forward };
            prop_assert_eq!((sent.outcome.action, sent.outcome.reason), (route.action(), reason));
            sent.decoded();
            let wire = sent.buffer.wire();
            let (at, bytes) = piece(&wire);
            prop_assert_eq!(at, whole.len());
            whole.extend_from_slice(bytes);
        }
        let expected = expected.build();
        let (at, _) = transport(&expected, L3);
        prop_assert_eq!(whole, expected[at..].to_vec());
    }
}
