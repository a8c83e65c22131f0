//! Every reason that the pipeline can give, given: one smallest case a reason, for both families.

use std::collections::BTreeSet;

use super::node::{
    BACKEND_PORT, BACKEND_VETH, EMPTY, L3, LOCAL, MANY, NO_LOCAL, Node, RANGED, REMOTE, Sent, UNKNOWN, UNPUBLISHED,
    each_family, id,
};
use super::packet::{Packet, fragments};
use crate::access::RouteKind;
use crate::layout::{ServiceWord, config};
use crate::pipeline::Hook;
use crate::testing::{Block, Buffer, HostRoute, Sizes, words};
use crate::verdict::{Action, Reason};

const PORT: u16 = 40_000;

/// Reasons that no case here gives, and who does.
const GIVEN_ELSEWHERE: &[(Reason, &str)] = &[
    (
        Reason::StageMissing,
        "a kernel, whose program array lacks the next stage's program",
    ),
    (Reason::HandedOver, "hooks before tc: `early.rs`"),
];

/// A reason, what the hook does, and the packet that gets it.
struct Case {
    reason: Reason,
    action: Action,
    /// The verdict's own reason, where the other is counted beside it.
    verdict: Reason,
    run: fn(&Node) -> Sent,
}

const fn case(reason: Reason, action: Action, run: fn(&Node) -> Sent) -> Case {
    Case {
        reason,
        action,
        verdict: reason,
        run,
    }
}

/// A reason that is counted beside the verdict's.
const fn beside(reason: Reason, action: Action, verdict: Reason, run: fn(&Node) -> Sent) -> Case {
    Case {
        reason,
        action,
        verdict,
        run,
    }
}

fn outside(node: &Node, port: u16) -> Packet {
    Packet::new(node.at.client(), node.at.lb()).tcp(PORT, port, "S")
}

fn from_pod(node: &Node, port: u16) -> Packet {
    Packet::new(node.at.pod(), node.at.vip()).tcp(PORT, port, "S")
}

/// A pod's SYN to the remote backend that no route or a strange one leads to, through the node's own routing.
fn steered(node: &Node, kind: RouteKind) -> Sent {
    let route = HostRoute {
        kind,
        ..HostRoute::NONE
    };
    node.tables.set_route(node.v6, Some(words(node.at.remote_pod())), route);
    node.send(Hook::UPLINK_IN, &outside(node, REMOTE))
}

/// Opens a connection from outside to the remote backend; returns the port of ours.
fn open_remote(node: &Node) -> u16 {
    let sent = node.send(Hook::UPLINK_IN, &outside(node, REMOTE));
    sent.decoded().source_port().expect("a port")
}

/// An ICMP port unreachable about what we sent to the remote backend from `port`.
fn unreachable(node: &Node, port: u16) -> Packet {
    let (backend, own) = (node.at.remote_pod(), node.at.node());
    let quoted = Packet::new(own, backend).bare().tcp(port, BACKEND_PORT, "S").build();
    let (icmp_type, code) = if node.v6 { (1, 4) } else { (3, 3) };
    Packet::new(backend, own).icmp_error(icmp_type, code, [0; 4], &quoted)
}

/// The second fragment of a datagram to a VIP.
fn later_fragment(node: &Node) -> Vec<u8> {
    let whole = Packet::new(node.at.pod(), node.at.vip()).udp(PORT, LOCAL);
    let whole = if node.v6 {
        whole
    } else {
        whole.may_fragment().identification(7)
    };
    fragments(&whole.payload(&[7; 64]).build(), 32, 7).remove(1)
}

/// Opens a connection and brings it over its first second, with traffic both ways.
fn settle(node: &Node, port: u16) {
    let client = |flags| Packet::new(node.at.pod(), node.at.vip()).tcp(port, LOCAL, flags);
    let backend = |flags| Packet::new(node.at.local_pod(), node.at.pod()).tcp(BACKEND_PORT, port, flags);
    node.send(Hook::POD_IN, &client("S"));
    node.send(Hook::POD_OUT, &backend("SA"));
    node.send(Hook::POD_IN, &client("A"));
    node.pass_seconds(2);
    node.send(Hook::POD_OUT, &backend("A"));
    node.send(Hook::POD_IN, &client("A"));
}

const CASES: &[Case] = &[
    case(Reason::NotOurs, Action::Pass, |node| {
        node.send(
            Hook::UPLINK_IN,
            &Packet::new(node.at.client(), node.at.stranger()).tcp(1, 2, "S"),
        )
    }),
    case(Reason::NotParsed, Action::Pass, |node| {
        let mut frame = from_pod(node, LOCAL).build();
        frame[L3] = 0x50 | frame[L3] & 0xf;
        node.send_buffer(Hook::POD_IN, L3, frame.into())
    }),
    case(Reason::Forward, Action::Pass, |node| {
        node.send(Hook::POD_IN, &from_pod(node, LOCAL))
    }),
    beside(Reason::NewFlow, Action::Pass, Reason::Forward, |node| {
        node.send(Hook::POD_IN, &from_pod(node, LOCAL))
    }),
    case(Reason::Reply, Action::Pass, |node| {
        node.send(Hook::POD_IN, &from_pod(node, LOCAL));
        let answer = Packet::new(node.at.local_pod(), node.at.pod()).tcp(BACKEND_PORT, PORT, "SA");
        node.send(Hook::POD_OUT, &answer)
    }),
    case(Reason::OtherHook, Action::Pass, |node| {
        node.send(Hook::POD_IN, &from_pod(node, LOCAL));
        let answer = Packet::new(node.at.local_pod(), node.at.pod()).tcp(BACKEND_PORT, PORT, "SA");
        node.send(Hook::POD_IN, &answer)
    }),
    case(Reason::Lifted, Action::Pass, |node| {
        node.send(Hook::POD_IN, &from_pod(node, LOCAL));
        node.set_flags(config::FLAG_BRIDGES);
        let answer = Packet::new(node.at.local_pod(), node.at.pod()).tcp(BACKEND_PORT, PORT, "SA");
        let mut answer = Buffer::from(answer.build());
        answer.ifindex = BACKEND_VETH;
        node.send_as_is(Hook::POD_IN, L3, answer)
    }),
    case(Reason::Takeover, Action::Pass, |node| {
        node.set_flags(config::FLAG_TAKEOVER);
        node.send(
            Hook::POD_IN,
            &Packet::new(node.at.pod(), node.at.vip()).tcp(PORT, LOCAL, "A"),
        )
    }),
    case(Reason::UnknownPortPassed, Action::Pass, |node| {
        node.send(Hook::UPLINK_IN, &outside(node, UNKNOWN))
    }),
    case(Reason::UnknownPort, Action::Transmit, |node| {
        node.send(Hook::POD_IN, &from_pod(node, UNKNOWN))
    }),
    case(Reason::NoEndpoints, Action::Transmit, |node| {
        node.send(Hook::POD_IN, &from_pod(node, EMPTY))
    }),
    case(Reason::NoLocalEndpoints, Action::Drop, |node| {
        node.send(Hook::UPLINK_IN, &outside(node, NO_LOCAL))
    }),
    case(Reason::SourceRange, Action::Drop, |node| {
        node.tables
            .add_range(id(RANGED), words(node.at.router()), if node.v6 { 64 } else { 24 });
        node.send(Hook::UPLINK_IN, &outside(node, RANGED))
    }),
    case(Reason::NoService, Action::Drop, |node| {
        node.send(Hook::UPLINK_IN, &outside(node, UNPUBLISHED))
    }),
    case(Reason::TablesChanged, Action::Drop, |node| {
        let word = node.publish(id(LOCAL), &Block::of(&[1]));
        node.tables.switch(
            id(LOCAL),
            Some(ServiceWord {
                generation: word.generation + 1,
                ..word
            }),
        );
        node.send(Hook::UPLINK_IN, &outside(node, LOCAL))
    }),
    case(Reason::IcmpError, Action::Neighbour, |node| {
        let port = open_remote(node);
        node.send(Hook::UPLINK_IN, &unreachable(node, port))
    }),
    case(Reason::IcmpErrorPassed, Action::Pass, |node| {
        let port = open_remote(node);
        node.send(Hook::UPLINK_IN, &unreachable(node, port ^ 1))
    }),
    case(Reason::Echo, Action::Transmit, |node| {
        node.send(
            Hook::POD_IN,
            &Packet::new(node.at.pod(), node.at.vip()).echo_request(1, 2),
        )
    }),
    case(Reason::EchoDropped, Action::Drop, |node| {
        node.set_flags(0);
        node.send(
            Hook::POD_IN,
            &Packet::new(node.at.pod(), node.at.vip()).echo_request(1, 2),
        )
    }),
    case(Reason::RateLimited, Action::Drop, |node| {
        node.tables.set_answers(1);
        node.send(Hook::POD_IN, &from_pod(node, UNKNOWN))
            .expect(Action::Transmit, Reason::UnknownPort);
        node.send(Hook::POD_IN, &from_pod(node, UNKNOWN))
    }),
    case(Reason::FragmentLost, Action::Drop, |node| {
        node.send_buffer(Hook::POD_IN, L3, later_fragment(node).into())
    }),
    case(Reason::FlowBusy, Action::Drop, |node| {
        node.send(Hook::POD_IN, &from_pod(node, LOCAL));
        for half in node.halves() {
            node.tear(&half);
        }
        node.send(Hook::POD_IN, &from_pod(node, LOCAL))
    }),
    case(Reason::FlowTableFull, Action::Drop, |node| {
        let node = Node::with(
            node.v6,
            Sizes {
                flow_sets: 2,
                ..Sizes::default()
            },
        );
        for port in 1..=4 {
            settle(&node, port);
        }
        node.send(Hook::POD_IN, &from_pod(&node, LOCAL))
    }),
    case(Reason::PortsExhausted, Action::Drop, |node| {
        node.tables.set_config(config::PORT_COUNT, 1);
        node.send(Hook::UPLINK_IN, &outside(node, REMOTE))
            .expect(Action::Neighbour, Reason::Forward);
        let other = Packet::new(node.at.client(), node.at.lb()).tcp(PORT + 1, REMOTE, "S");
        node.send(Hook::UPLINK_IN, &other)
    }),
    case(Reason::NoRoute, Action::Drop, |node| steered(node, RouteKind::None)),
    case(Reason::TooBig, Action::Transmit, |node| {
        node.send(Hook::UPLINK_IN, &outside(node, REMOTE).payload(&[0; 1480]))
    }),
    case(Reason::TimeExceeded, Action::Transmit, |node| {
        node.send(Hook::UPLINK_IN, &outside(node, REMOTE).ttl(1))
    }),
    case(Reason::RewriteFailed, Action::Drop, |node| {
        let mut frame = from_pod(node, LOCAL).build();
        frame.truncate(frame.len() - 4);
        node.send_buffer(Hook::POD_IN, L3, frame.into())
    }),
    beside(Reason::AnswerFailed, Action::Drop, Reason::UnknownPort, |node| {
        let mut frame = from_pod(node, UNKNOWN).build();
        frame.truncate(frame.len() - 4);
        node.send_buffer(Hook::POD_IN, L3, frame.into())
    }),
    beside(Reason::Healed, Action::Pass, Reason::Forward, |node| {
        node.send(Hook::POD_IN, &from_pod(node, LOCAL));
        for half in node.halves().iter().filter(|half| half.is_reply()) {
            node.lose(half);
        }
        node.pass_seconds(1);
        node.send(Hook::POD_IN, &from_pod(node, LOCAL))
    }),
    case(Reason::Silent, Action::Drop, |node| {
        node.send(
            Hook::POD_IN,
            &Packet::new(node.at.pod(), node.at.vip()).tcp(PORT, UNKNOWN, "R"),
        )
    }),
    case(Reason::UnknownProtocol, Action::Transmit, |node| {
        let sctp = Packet::new(node.at.pod(), node.at.vip())
            .protocol(132)
            .payload(&[1; 12]);
        node.send(Hook::POD_IN, &sctp)
    }),
    beside(Reason::BackendGone, Action::Pass, Reason::Forward, |node| {
        let datagram = Packet::new(node.at.pod(), node.at.vip()).udp(PORT, MANY);
        let first = node.send(Hook::POD_IN, &datagram).decoded().ip.destination;
        let gone = (20..25)
            .find(|n| node.at.numbered(*n as u8) == first)
            .expect("one of the backends");
        let rest: Vec<u32> = (20..25).filter(|n| *n != gone).collect();
        node.publish(id(MANY), &Block::of(&rest));
        node.set_state(gone, 0);
        let sent = node.send(Hook::POD_IN, &datagram);
        assert_ne!(sent.decoded().ip.destination, first);
        sent
    }),
    case(Reason::UnsupportedDevice, Action::Drop, |node| {
        let by_host = Packet::new(node.at.node(), node.at.vip()).tcp(PORT, REMOTE, "S");
        let port = node
            .send(Hook::STEER_OUT, &by_host)
            .decoded()
            .source_port()
            .expect("a port");
        let answer = Packet::new(node.at.remote_pod(), node.at.node())
            .bare()
            .tcp(BACKEND_PORT, port, "SA");
        node.send_buffer(Hook::UPLINK_IN, 0, answer.build().into())
    }),
];

#[test]
fn every_reason_is_given_by_a_packet_and_counted_once() {
    for case in CASES {
        each_family(|node| {
            let sent = (case.run)(&node);
            sent.expect(case.action, case.verdict);
            assert_eq!(sent.counted.get(&case.reason), Some(&1), "{:?}: {sent:?}", case.reason);
            let others = sent
                .counted
                .keys()
                .filter(|reason| ![case.reason, case.verdict].contains(reason));
            // What begins with this very packet, or was refused for it, is counted too.
            let beside = [Reason::NewFlow, Reason::TablesChanged];
            assert_eq!(others.filter(|reason| !beside.contains(reason)).count(), 0, "{sent:?}");
        });
    }
}

#[test]
fn no_reason_is_without_a_case() {
    let given: BTreeSet<Reason> = CASES.iter().map(|case| case.reason).collect();
    let excused: BTreeSet<Reason> = GIVEN_ELSEWHERE.iter().map(|(reason, _)| *reason).collect();
    let missing: Vec<&Reason> = Reason::ALL
        .iter()
        .filter(|reason| !given.contains(reason) && !excused.contains(reason))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(given.is_disjoint(&excused), "there are cases for {excused:?}");
}

#[test]
fn what_passes_for_any_reason_but_a_translation_is_untouched() {
    for case in CASES.iter().filter(|case| case.action == Action::Pass) {
        let translated = [Reason::Forward, Reason::Reply, Reason::Lifted];
        if !translated.contains(&case.verdict) {
            each_family(|node| assert!((case.run)(&node).is_untouched(), "{:?}", case.reason));
        }
    }
}
