//! ICMP errors about translated flows: both headers translated, every sum right, whatever sent the error and however much of
//! the packet it quotes (RFC 792, RFC 4443, RFC 1812 section 4.3.2.3, RFC 5508 section 7).

use std::net::IpAddr;

use proptest::prelude::*;

use super::node::{BACKEND_PORT, L3, LOCAL, Node, REMOTE, STEER, STEER_MAC, Sent, UPLINK, each_family, transport};
use super::packet::{Decoded, Packet, Transport};
use super::translation::{Look, look};
use crate::pipeline::Hook;
use crate::testing::Buffer;
use crate::verdict::{Action, Reason};

const PORT: u16 = 40_000;

/// A flow, and where errors about either direction are met.
#[derive(Clone, Copy, Debug)]
enum Flow {
    /// From outside to another node: translated at both ends by the uplink.
    Through,
    /// From a pod to a pod of this node.
    PodToPod,
    /// From outside to a pod of this node.
    Inwards,
    /// From a process of the host to another node.
    HostAway,
}

impl Flow {
    const ALL: [Self; 4] = [Self::Through, Self::PodToPod, Self::Inwards, Self::HostAway];

    fn client(self, node: &Node) -> (IpAddr, u16) {
        let address = match self {
            Self::Through | Self::Inwards => node.at.client(),
            Self::PodToPod => node.at.pod(),
            Self::HostAway => node.at.node(),
        };
        (address, PORT)
    }

    fn frontend(self, node: &Node) -> (IpAddr, u16) {
        match self {
            Self::Through => (node.at.lb(), REMOTE),
            Self::Inwards => (node.at.lb(), LOCAL),
            Self::PodToPod => (node.at.vip(), LOCAL),
            Self::HostAway => (node.at.vip(), REMOTE),
        }
    }

    fn backend(self, node: &Node) -> (IpAddr, u16) {
        let address = match self {
            Self::Through | Self::HostAway => node.at.remote_pod(),
            Self::Inwards | Self::PodToPod => node.at.local_pod(),
        };
        (address, BACKEND_PORT)
    }

    fn forward_hook(self) -> u8 {
        match self {
            Self::Through | Self::Inwards => Hook::UPLINK_IN,
            Self::PodToPod => Hook::POD_IN,
            Self::HostAway => Hook::STEER_OUT,
        }
    }

    /// Where the backend's packets, and errors from its side, are un-translated.
    fn reply_hook(self) -> u8 {
        match self {
            Self::Through | Self::HostAway => Hook::UPLINK_IN,
            Self::PodToPod => Hook::POD_OUT,
            Self::Inwards => Hook::UPLINK_OUT,
        }
    }

    /// How an error about a packet to the backend goes on, and out of which device.
    fn onwards(self) -> (Action, u32) {
        match self {
            Self::Through => (Action::Neighbour, UPLINK),
            Self::PodToPod | Self::Inwards => (Action::Pass, 0),
            Self::HostAway => (Action::Receive, STEER),
        }
    }

    /// How an error about a reply goes on to the backend, and out of which device.
    fn to_the_backend(self) -> (Action, u32) {
        match self {
            Self::Through | Self::HostAway => (Action::Neighbour, UPLINK),
            Self::PodToPod | Self::Inwards => (Action::Pass, 0),
        }
    }

    /// Sends a packet of the client's and returns it as the backend sees it.
    fn forward(self, node: &Node, look: &Look) -> Sent {
        let packet = look.packet(self.client(node), self.frontend(node));
        let sent = node.send(self.forward_hook(), &packet);
        assert_eq!(sent.outcome.reason, Reason::Forward, "{sent:?}");
        sent
    }
}

/// Every error that quotes a packet: type, code, second word.
fn kinds(v6: bool) -> Vec<(u8, u8, [u8; 4])> {
    if v6 {
        vec![
            (1, 0, [0; 4]),
            (1, 4, [0; 4]),
            (2, 0, 1280u32.to_be_bytes()),
            (3, 0, [0; 4]),
            (3, 1, [0; 4]),
            (4, 1, [0, 0, 0, 40]),
        ]
    } else {
        vec![
            (3, 0, [0; 4]),
            (3, 1, [0; 4]),
            (3, 3, [0; 4]),
            (3, 4, [0, 0, 5, 0x14]),
            (3, 13, [0; 4]),
            (4, 0, [0; 4]),
            (11, 0, [0; 4]),
            (11, 1, [0; 4]),
            (12, 0, [20, 0, 0, 0]),
        ]
    }
}

/// An error of `kind` about `quoted`, the bytes of an IP packet, of which `room` bytes are quoted.
fn error(from: IpAddr, to: IpAddr, kind: (u8, u8, [u8; 4]), quoted: &[u8], room: usize) -> Packet {
    let quoted = &quoted[..quoted.len().min(room)];
    Packet::new(from, to).ttl(55).icmp_error(kind.0, kind.1, kind.2, quoted)
}

/// The quotation of a frame's error; the quoted header's TTL apart.
fn quotation(frame: &[u8], v6: bool) -> Vec<u8> {
    let outer = if v6 { 40 } else { 20 };
    frame[L3 + outer + 8..].to_vec()
}

/// The IP packet in `frame`, with the TTL that it had when it was quoted.
fn with_ttl_of(frame: &Packet, quoted: &[u8], v6: bool) -> Vec<u8> {
    let ttl = if v6 { quoted[7] } else { quoted[8] };
    frame.clone().bare().ttl(ttl).build()
}

#[track_caller]
fn check(sent: &Sent, onwards: (Action, u32), from: IpAddr, to: IpAddr, kind: (u8, u8, [u8; 4])) -> Decoded {
    sent.expect(onwards.0, Reason::IcmpError);
    assert_eq!(sent.outcome.ifindex, onwards.1, "{sent:?}");
    assert!(sent.buffer.sum_is_right(), "{sent:?}");
    let decoded = sent.decoded();
    assert_eq!((decoded.ip.source, decoded.ip.destination), (from, to), "{decoded:?}");
    let Transport::Icmp {
        icmp_type, code, rest, ..
    } = decoded.transport
    else {
        panic!("no ICMP: {decoded:?}")
    };
    assert_eq!((icmp_type, code, rest), kind);
    decoded
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_error_about_a_packet_to_a_backend_reaches_the_client_and_quotes_what_the_client_sent(
        look in look(), v6: bool, flow in prop::sample::select(Flow::ALL.to_vec()),
        at in 0usize..9, from_router: bool, cut in 0usize..3, summed_twice: bool,
    ) {
        let node = Node::standard(v6);
        let seen = flow.forward(&node, &look);
        let wire = seen.buffer.wire();
        let seen = seen.decoded().ip.source;
        let kinds = kinds(v6);
        let kind = kinds[at % kinds.len()];
        let sender = if from_router { node.at.router() } else { flow.backend(&node).0 };
        // Eight bytes behind the IP header are the least (RFC 792), a whole TCP header is common, all of it is allowed.
        let header = transport(&wire, L3).0 - L3;
        let room = [header + 8, header + 20, usize::MAX][cut];
        let mut buffer = Buffer::from(error(sender, seen, kind, &wire[L3..], room).build());
        if summed_twice {
            buffer = buffer.complete(L3);
        }
        let sent = node.send_buffer(flow.reply_hook(), L3, buffer);
        let (client, frontend) = (flow.client(&node), flow.frontend(&node));
        // A router's own address would fail the strict reverse path filter of the host.
        let from = if from_router && !matches!(flow, Flow::HostAway) { sender } else { frontend.0 };
        check(&sent, flow.onwards(), from, client.0, kind);
        let quoted = quotation(&sent.buffer.wire(), v6);
        let original = with_ttl_of(&look.packet(client, frontend), &quoted, v6);
        prop_assert_eq!(&quoted, &original[..quoted.len()]);
    }

    #[test]
    fn an_error_about_a_reply_reaches_the_backend_and_quotes_what_the_backend_sent(
        look in look(), answer in look(), v6: bool, flow in prop::sample::select(Flow::ALL.to_vec()),
        at in 0usize..9, from_router: bool,
    ) {
        let node = Node::standard(v6);
        let answer = answer.with_protocol_of(&look);
        let seen = flow.forward(&node, &look).decoded();
        let seen = (seen.ip.source, seen.source_port().expect("a port"));
        let backend = flow.backend(&node);
        let reply = node.send(flow.reply_hook(), &answer.packet(backend, seen));
        prop_assert_eq!(reply.outcome.reason, Reason::Reply);
        let (client, frontend) = (flow.client(&node), flow.frontend(&node));
        let kinds = kinds(v6);
        let kind = kinds[at % kinds.len()];
        // A pod and a process of the host have no router before them.
        let from_router = from_router && matches!(flow, Flow::Through | Flow::Inwards);
        let sender = if from_router { node.at.router() } else { client.0 };
        let sent = node.send(flow.forward_hook(), &error(sender, frontend.0, kind, &reply.buffer.wire()[L3..], usize::MAX));
        let from = if from_router { sender } else { seen.0 };
        check(&sent, flow.to_the_backend(), from, backend.0, kind);
        let quoted = quotation(&sent.buffer.wire(), v6);
        let original = with_ttl_of(&answer.packet(backend, seen), &quoted, v6);
        prop_assert_eq!(&quoted, &original[..quoted.len()]);
    }
}

#[test]
fn an_error_that_is_not_about_a_flow_of_ours_is_left_alone() {
    each_family(|node| {
        let quoted = Packet::new(node.at.node(), node.at.stranger())
            .bare()
            .tcp(PORT, 443, "S")
            .build();
        for kind in kinds(node.v6) {
            for hook in [Hook::UPLINK_IN, Hook::POD_OUT, Hook::UPLINK_OUT] {
                let sent = node.send(
                    hook,
                    &error(node.at.router(), node.at.node(), kind, &quoted, usize::MAX),
                );
                sent.expect(Action::Pass, Reason::IcmpErrorPassed);
                assert!(sent.is_untouched());
            }
        }
    });
}

#[test]
fn an_error_sent_to_another_than_the_one_whose_packet_it_quotes_is_left_alone() {
    each_family(|node| {
        let open = Packet::new(node.at.client(), node.at.lb()).tcp(PORT, REMOTE, "S");
        let seen = node.send(Hook::UPLINK_IN, &open).buffer.wire();
        for kind in kinds(node.v6) {
            let forged = error(node.at.router(), node.at.stranger(), kind, &seen[L3..], usize::MAX);
            let sent = node.send(Hook::UPLINK_IN, &forged);
            sent.expect(Action::Pass, Reason::IcmpErrorPassed);
            assert!(sent.is_untouched());
        }
    });
}

#[test]
fn an_error_about_a_flow_that_applies_at_another_hook_passes_untouched() {
    each_family(|node| {
        let open = Packet::new(node.at.pod(), node.at.vip()).tcp(PORT, LOCAL, "S");
        let seen = node.send(Hook::POD_IN, &open).buffer.wire();
        let kind = kinds(node.v6)[0];
        let sent = node.send(
            Hook::POD_IN,
            &error(node.at.local_pod(), node.at.pod(), kind, &seen[L3..], usize::MAX),
        );
        sent.expect(Action::Pass, Reason::OtherHook);
        assert!(sent.is_untouched());
    });
}

#[test]
fn an_error_that_quotes_no_ports_or_a_later_fragment_is_left_alone() {
    each_family(|node| {
        let open = Packet::new(node.at.client(), node.at.lb()).tcp(PORT, REMOTE, "S");
        let seen = node.send(Hook::UPLINK_IN, &open).buffer.wire();
        let kind = kinds(node.v6)[0];
        let header = transport(&seen, L3).0 - L3;
        let own = node.at.node();
        let mut later = seen[L3..].to_vec();
        if !node.v6 {
            later[6..8].copy_from_slice(&[0, 9]);
        }
        let cut = error(node.at.router(), own, kind, &seen[L3..], header + 2);
        let later = error(node.at.router(), own, kind, &later, usize::MAX);
        for error in if node.v6 { vec![cut] } else { vec![cut, later] } {
            let sent = node.send(Hook::UPLINK_IN, &error);
            sent.expect(Action::Pass, Reason::IcmpErrorPassed);
            assert!(sent.is_untouched());
        }
    });
}

#[test]
fn an_error_for_a_process_of_the_host_comes_by_steer0_from_the_vip() {
    each_family(|node| {
        let open = Packet::new(node.at.node(), node.at.vip()).udp(PORT, REMOTE);
        let seen = node.send(Hook::STEER_OUT, &open).buffer.wire();
        let kind = kinds(node.v6)[2];
        let sent = node.send(
            Hook::UPLINK_IN,
            &error(node.at.router(), node.at.node(), kind, &seen[L3..], usize::MAX),
        );
        let decoded = check(&sent, (Action::Receive, STEER), node.at.vip(), node.at.node(), kind);
        assert_eq!(decoded.link.map(|link| link.destination), Some(STEER_MAC));
    });
}

#[test]
fn an_error_on_its_last_hop_is_not_answered_by_another_error() {
    each_family(|node| {
        let open = Packet::new(node.at.client(), node.at.lb()).tcp(PORT, REMOTE, "S");
        let seen = node.send(Hook::UPLINK_IN, &open).buffer.wire();
        let kind = kinds(node.v6)[0];
        let last = error(node.at.router(), node.at.node(), kind, &seen[L3..], usize::MAX).ttl(1);
        assert_eq!(node.send(Hook::UPLINK_IN, &last).outcome.action, Action::Drop);
    });
}

#[test]
fn an_error_that_we_route_ourselves_loses_a_hop() {
    each_family(|node| {
        let open = Packet::new(node.at.client(), node.at.lb()).tcp(PORT, REMOTE, "S");
        let seen = node.send(Hook::UPLINK_IN, &open).buffer.wire();
        let kind = kinds(node.v6)[0];
        let sent = node.send(
            Hook::UPLINK_IN,
            &error(node.at.router(), node.at.node(), kind, &seen[L3..], usize::MAX),
        );
        assert_eq!(sent.decoded().ip.ttl, 54);
    });
}

#[test]
fn an_error_about_a_packet_whose_udp_checksum_comes_to_zero_quotes_the_other_form_of_zero() {
    each_family(|node| {
        let (client, frontend) = ((node.at.client(), PORT), (node.at.lb(), REMOTE));
        // A payload that makes the sum zero, which is sent as all ones (RFC 768).
        let packet = |pad: [u8; 2]| {
            Packet::new(client.0, frontend.0)
                .udp(client.1, frontend.1)
                .payload(&pad)
        };
        let field = |packet: &Packet| {
            let frame = packet.build();
            let (at, _) = transport(&frame, L3);
            u16::from_be_bytes([frame[at + 6], frame[at + 7]])
        };
        let pad = field(&packet([0, 0])).to_be_bytes();
        assert_eq!(field(&packet(pad)), 0xffff);
        let seen = node.send(Hook::UPLINK_IN, &packet(pad)).buffer.wire();
        let kind = kinds(node.v6)[0];
        let sent = node.send(
            Hook::UPLINK_IN,
            &error(node.at.router(), node.at.node(), kind, &seen[L3..], usize::MAX),
        );
        let quoted = quotation(&sent.buffer.wire(), node.v6);
        let original = with_ttl_of(&packet(pad), &quoted, node.v6);
        assert_eq!(quoted, original);
    });
}
