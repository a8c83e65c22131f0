//! Floods beside settled flows in a table that is far too small for both: none of the settled is lost, and a new connection
//! gets through.

use std::net::IpAddr;

use super::node::{BACKEND_PORT, HZ, LOCAL, Node, TCP, UDP};
use super::packet::Packet;
use super::translation::client;
use crate::flow::state::SETTLED;
use crate::pipeline::Hook;
use crate::testing::Sizes;
use crate::verdict::Reason;

/// Sets of the table: 256 slots, 128 flows.
const SETS: usize = 64;
/// Settled flows: they fill a third of it.
const SETTLED_FLOWS: u16 = 40;
/// Flows of each flood.
const FLOOD: u32 = 4000;

/// A connection or conversation from a pod to a backend on this node.
#[derive(Clone, Copy, Debug)]
struct Peer {
    protocol: u8,
    address: IpAddr,
    port: u16,
}

impl Peer {
    fn packet(self, from: (IpAddr, u16), to: (IpAddr, u16), flags: &str) -> Packet {
        match self.protocol {
            TCP => Packet::new(from.0, to.0).tcp(from.1, to.1, flags),
            _ => Packet::new(from.0, to.0).udp(from.1, to.1),
        }
    }

    /// A packet to the backend; whether it was translated.
    fn send(self, node: &Node, flags: &str) -> bool {
        let packet = self.packet((self.address, self.port), (node.at.vip(), LOCAL), flags);
        node.send(Hook::POD_IN, &packet).outcome.reason == Reason::Forward
    }

    /// A packet from the backend; whether it was restored.
    fn receive(self, node: &Node, flags: &str) -> bool {
        let packet = self.packet((node.at.local_pod(), BACKEND_PORT), (self.address, self.port), flags);
        node.send(Hook::POD_OUT, &packet).outcome.reason == Reason::Reply
    }

    fn shakes_hands(self, node: &Node) -> bool {
        self.send(node, "S") && self.receive(node, "SA") && self.send(node, "A")
    }

    /// Opens, and comes over the first second with traffic both ways.
    fn settle(self, node: &Node) {
        assert!(self.shakes_hands(node));
        node.tables.advance(HZ);
        assert!(self.receive(node, "A") && self.send(node, "A"));
    }

    fn is_settled(self, node: &Node) -> bool {
        node.half(self.protocol, (self.address, self.port), (node.at.vip(), LOCAL))
            .is_some_and(|half| half.control.state & SETTLED != 0)
    }
}

/// The client of flow number `n` of a flood: another address and port each time.
fn flooder(node: &Node, protocol: u8, n: u32) -> Peer {
    let spread = u128::from(n.wrapping_mul(0x9e37_79b1));
    Peer {
        protocol,
        address: client(node.v6, spread << 32 | spread),
        port: (n.wrapping_mul(40_503) >> 4) as u16,
    }
}

/// One flow of a flood.
type Flood = fn(&Node, u32);

const FLOODS: &[(&str, Flood)] = &[
    ("SYN", |node, n| {
        flooder(node, TCP, n).send(node, "S");
    }),
    ("ACK", |node, n| {
        flooder(node, TCP, n).send(node, "A");
    }),
    ("UDP", |node, n| {
        flooder(node, UDP, n).send(node, "");
    }),
    ("answered UDP", |node, n| {
        let flooder = flooder(node, UDP, n);
        flooder.send(node, "");
        flooder.receive(node, "");
    }),
    ("whole handshakes", |node, n| {
        flooder(node, TCP, n).shakes_hands(node);
    }),
    ("handshakes and resets", |node, n| {
        let flooder = flooder(node, TCP, n);
        flooder.shakes_hands(node);
        flooder.send(node, "R");
    }),
];

fn settled(node: &Node) -> Vec<Peer> {
    let peers: Vec<Peer> = (0..SETTLED_FLOWS)
        .map(|n| Peer {
            protocol: TCP,
            address: node.at.pod(),
            port: 50_000 + n,
        })
        .collect();
    for peer in &peers {
        peer.settle(node);
        assert!(peer.is_settled(node));
    }
    peers
}

fn small(v6: bool) -> Node {
    Node::with(
        v6,
        Sizes {
            flow_sets: SETS,
            ..Sizes::default()
        },
    )
}

#[test]
fn no_flood_costs_a_settled_flow_and_every_pair_stays_whole() {
    for (name, flood) in FLOODS {
        for v6 in [false, true] {
            let node = small(v6);
            let peers = settled(&node);
            for n in 0..FLOOD {
                flood(&node, n);
                node.tables.advance(u32::from(n % 8 == 0));
            }
            assert!(node.widows().is_empty(), "{name}: {:?}", node.widows().first());
            node.check_table();
            for peer in peers {
                assert!(peer.receive(&node, "A"), "{name}: {peer:?} lost its answers");
                assert!(peer.send(&node, "A"), "{name}: {peer:?} is lost");
                assert!(peer.is_settled(&node));
            }
        }
    }
}

#[test]
fn a_new_connection_gets_through_every_flood() {
    for (name, flood) in FLOODS {
        for v6 in [false, true] {
            let node = small(v6);
            settled(&node);
            let mut n = 0;
            let mut more = |count: u32| {
                for _ in 0..count {
                    flood(&node, n);
                    n += 1;
                }
                node.tables.advance(1);
            };
            more(2000);
            for port in 0..20 {
                let peer = Peer {
                    protocol: TCP,
                    address: node.at.pod(),
                    port: 60_000 + port,
                };
                // A client sends its SYN again, as often as this and more.
                let comes_about = (0..4).any(|_| {
                    let mut lives = peer.send(&node, "S");
                    more(2);
                    lives &= peer.receive(&node, "SA");
                    more(2);
                    lives && peer.send(&node, "A")
                });
                assert!(comes_about, "{name}: no connection from port {port}");
            }
        }
    }
}

#[test]
fn a_flood_that_fills_the_table_with_flows_as_good_as_new_ones_displaces_its_own() {
    for v6 in [false, true] {
        let node = small(v6);
        let early = Peer {
            protocol: TCP,
            address: node.at.pod(),
            port: 50_000,
        };
        assert!(early.shakes_hands(&node));
        node.tables.advance(2);
        for n in 0..FLOOD {
            flooder(&node, TCP, n).shakes_hands(&node);
            node.tables.advance(u32::from(n % 64 == 0));
        }
        // It was there first, although it has not settled yet.
        assert!(early.receive(&node, "A") && early.send(&node, "A"));
    }
}
