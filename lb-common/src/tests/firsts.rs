//! Datagrams that are taken for the first of their flows, because all of a good many before them were.

use std::net::IpAddr;

use proptest::prelude::*;

use super::node::{
    BACKEND_PORT, EMPTY, LOCAL, MANY, NODE_PORTS, Node, RANGED, REMOTE, Sent, UDP, UNKNOWN, each_family, id,
};
use super::packet::Packet;
use crate::access::Tables as _;
use crate::pipeline::Hook;
use crate::testing::Block;
use crate::verdict::{Action, Reason};

/// More than are asked for.
const MANY_FIRSTS: u16 = 100;
const PORT: u16 = 40_000;

/// What happens to a node.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A client sends from a port to the frontend of a Service.
    Query {
        hook: u8,
        port: u16,
        to: u16,
        frontend: usize,
    },
    /// A backend answers the last datagram that was translated.
    Answer { hook: u8 },
    /// Endpoints of a Service come or go.
    Publish { backends: u32 },
    /// Seconds pass.
    Pass { seconds: u32 },
}

fn event() -> impl Strategy<Value = Event> {
    let hook = || prop::sample::select(vec![Hook::POD_IN, Hook::UPLINK_IN, Hook::STEER_OUT]);
    let to = prop::sample::select(vec![LOCAL, REMOTE, EMPTY, RANGED, MANY, UNKNOWN]);
    prop_oneof![
        6 => (hook(), PORT..PORT + 3, to, 0..3_usize).prop_map(|(hook, port, to, frontend)| Event::Query { hook, port, to, frontend }),
        3 => hook().prop_map(|hook| Event::Answer { hook }),
        1 => (0..3_u32).prop_map(|backends| Event::Publish { backends }),
        1 => (0..40_u32).prop_map(|seconds| Event::Pass { seconds }),
    ]
}

/// A node that has seen so many first datagrams in a row, whatever happens to it.
struct Guessing {
    node: Node,
    firsts: u64,
    last: Option<((IpAddr, u16), (IpAddr, u16))>,
}

impl Guessing {
    fn new(v6: bool, firsts: u16) -> Self {
        Self {
            node: Node::standard(v6),
            firsts: firsts.into(),
            last: None,
        }
    }

    fn send(&mut self, hook: u8, from: (IpAddr, u16), to: (IpAddr, u16)) -> Sent {
        (&self.node.tables).set_firsts(self.firsts);
        let sent = self
            .node
            .send(hook, &Packet::new(from.0, to.0).udp(from.1, to.1).payload(b"question"));
        if sent.outcome.reason == Reason::Forward && sent.outcome.action != Action::Drop {
            let decoded = sent.decoded();
            let (source, destination) = decoded.ports().expect("ports");
            self.last = Some(((decoded.ip.source, source), (decoded.ip.destination, destination)));
        }
        sent
    }

    fn meet(&mut self, event: Event) -> Option<Sent> {
        let at = self.node.at;
        match event {
            Event::Query {
                hook,
                port,
                to,
                frontend,
            } => {
                let client = match hook {
                    Hook::POD_IN => at.pod(),
                    Hook::UPLINK_IN => at.client(),
                    _ => at.node(),
                };
                let to = [(at.vip(), to), (at.lb(), to), (at.node(), to + NODE_PORTS)][frontend];
                Some(self.send(hook, (client, port), to))
            }
            Event::Answer { hook } => {
                let (to, from) = self.last?;
                Some(self.send(hook, from, to))
            }
            Event::Publish { backends } => {
                let backends: Vec<_> = (20..20 + backends).collect();
                self.node.publish(id(MANY), &Block::of(&backends));
                None
            }
            Event::Pass { seconds } => {
                self.node.pass_seconds(seconds);
                None
            }
        }
    }
}

proptest! {
    #[test]
    fn what_becomes_of_a_datagram_does_not_depend_on_what_it_was_taken_for(v6: bool, events in prop::collection::vec(event(), 1..40)) {
        let [mut looking, mut guessing] = [0, MANY_FIRSTS].map(|firsts| Guessing::new(v6, firsts));
        for event in events {
            let [looked, guessed] = [&mut looking, &mut guessing].map(|node| {
                let sent = node.meet(event);
                sent.map(|sent| (sent.outcome, sent.buffer.bytes().to_vec(), sent.counted))
            });
            prop_assert_eq!(looked, guessed, "{:?}", event);
            prop_assert_eq!(looking.node.halves(), guessing.node.halves(), "{:?}", event);
        }
    }
}

#[test]
fn a_known_flow_of_a_client_ends_the_guessing_and_answers_do_not() {
    each_family(|node| {
        let at = node.at;
        let query = |port| {
            let sent = node.send(Hook::UPLINK_IN, &Packet::new(at.client(), at.lb()).udp(port, REMOTE));
            sent.expect(sent.outcome.action, Reason::Forward);
            sent.decoded()
        };
        let flow = |port| node.half(UDP, (at.client(), port), (at.lb(), REMOTE)).is_some();
        for port in 1..=MANY_FIRSTS {
            let asked = query(port);
            let (source, _) = asked.ports().expect("ports");
            // To an address of the node, as what begins a flow of a NodePort is.
            let answer = Packet::new(asked.ip.destination, asked.ip.source).udp(BACKEND_PORT, source);
            node.send(Hook::UPLINK_IN, &answer)
                .expect(Action::Neighbour, Reason::Reply);
        }
        assert_eq!((&node.tables).firsts(), 64, "counting ends where it is enough");
        let entries = node.halves().len();
        query(1);
        assert_eq!((&node.tables).firsts(), 0);
        assert_eq!(node.halves().len(), entries);
        assert!(flow(1) && !flow(MANY_FIRSTS + 1));
        query(MANY_FIRSTS + 1);
        assert_eq!((&node.tables).firsts(), 1);
        assert!(flow(MANY_FIRSTS + 1));
    });
}
