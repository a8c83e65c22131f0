//! From a destination to a backend: which frontend is met, which run applies to whom, source ranges, session affinity, and a
//! choice that stays the same on every node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::halves::Half;
use super::node::{
    AFFINE, HZ, IN_USE, LOCAL, MANY, NODE_PORTS, Node, RANGED, REMOTE, Sent, TCP, UDP, UNKNOWN, each_family, id,
};
use super::packet::Packet;
use crate::layout::{
    BACKEND_IN_CLUSTER, BACKEND_IN_LOCAL, BACKEND_SERVING, BLOCK_EXTERNAL_DROP, BLOCK_EXTERNAL_LOCAL,
    BLOCK_INSIDE_DROP, BLOCK_INTERNAL_DROP, FrontendValue, ServiceWord, config,
};
use crate::pipeline::Hook;
use crate::testing::{Block, words};
use crate::verdict::{Action, Reason};

const PORT: u16 = 40_000;

fn open(node: &Node, hook: u8, client: IpAddr, to: (IpAddr, u16), port: u16) -> Sent {
    node.send(hook, &Packet::new(client, to.0).tcp(port, to.1, "S"))
}

/// The backend that a new connection gets.
#[track_caller]
fn backend_of(sent: &Sent) -> IpAddr {
    assert_eq!(sent.outcome.reason, Reason::Forward, "{sent:?}");
    sent.decoded().ip.destination
}

#[test]
fn each_kind_of_frontend_and_of_source_has_its_own_run() {
    each_family(|node| {
        let at = node.at;
        let (internal, external, inside) = (at.numbered(20), at.numbered(21), at.numbered(22));
        node.publish(
            id(MANY),
            &Block {
                internal: vec![20],
                external: vec![21],
                inside: vec![22],
                ..Block::default()
            },
        );
        let node_port = (at.node(), MANY + NODE_PORTS);
        for (hook, client, to, expected) in [
            (Hook::POD_IN, at.pod(), (at.vip(), MANY), internal),
            (Hook::UPLINK_IN, at.client(), (at.vip(), MANY), internal),
            (Hook::STEER_OUT, at.node(), (at.vip(), MANY), internal),
            (Hook::UPLINK_IN, at.client(), (at.lb(), MANY), external),
            (Hook::UPLINK_IN, at.client(), node_port, external),
            (Hook::POD_IN, at.pod(), (at.lb(), MANY), inside),
            (Hook::POD_IN, at.pod(), node_port, inside),
            (Hook::STEER_OUT, at.node(), (at.lb(), MANY), inside),
            (Hook::LO_OUT, at.node(), node_port, inside),
        ] {
            assert_eq!(
                backend_of(&open(&node, hook, client, to, PORT)),
                expected,
                "{hook} {to:?}"
            );
        }
    });
}

#[test]
fn an_empty_run_refuses_or_drops_as_its_flag_says() {
    each_family(|node| {
        let at = node.at;
        let ways = [
            (BLOCK_INTERNAL_DROP, Hook::POD_IN, at.pod(), at.vip()),
            (BLOCK_EXTERNAL_DROP, Hook::UPLINK_IN, at.client(), at.lb()),
            (BLOCK_INSIDE_DROP, Hook::POD_IN, at.pod(), at.lb()),
        ];
        for (flag, hook, client, frontend) in ways {
            for set in [0, BLOCK_INTERNAL_DROP, BLOCK_EXTERNAL_DROP, BLOCK_INSIDE_DROP] {
                node.publish(
                    id(MANY),
                    &Block {
                        flags: set,
                        ..Block::default()
                    },
                );
                let sent = open(&node, hook, client, (frontend, MANY), PORT);
                if set == flag {
                    sent.expect(Action::Drop, Reason::NoLocalEndpoints);
                } else {
                    sent.expect(Action::Transmit, Reason::NoEndpoints);
                }
            }
        }
    });
}

#[test]
fn source_ranges_hold_for_load_balancer_addresses_alone() {
    each_family(|node| {
        let at = node.at;
        let (prefix, bits) = (words(at.client()), if node.v6 { 48 } else { 24 });
        node.tables.add_range(id(RANGED), prefix, bits);
        let stranger = at.stranger();
        for (client, to, expected) in [
            (at.client(), (at.lb(), RANGED), Reason::Forward),
            (stranger, (at.lb(), RANGED), Reason::SourceRange),
            (stranger, (at.node(), RANGED + NODE_PORTS), Reason::Forward),
            (stranger, (at.vip(), RANGED), Reason::Forward),
            // Ranges of one service port say nothing about another.
            (stranger, (at.lb(), LOCAL), Reason::Forward),
        ] {
            let sent = open(&node, Hook::UPLINK_IN, client, to, PORT);
            assert_eq!(sent.outcome.reason, expected, "{client} {to:?}");
        }
    });
}

#[test]
fn unknown_ports_are_refused_on_cluster_ips_and_left_to_the_host_elsewhere() {
    each_family(|node| {
        let at = node.at;
        for (to, expected) in [
            ((at.vip(), UNKNOWN), Reason::UnknownPort),
            ((at.lb(), UNKNOWN), Reason::UnknownPortPassed),
            ((at.node(), UNKNOWN), Reason::UnknownPortPassed),
            // NodePorts are the node's, and a Service's port is none of the node's.
            ((at.vip(), LOCAL + NODE_PORTS), Reason::UnknownPort),
            ((at.lb(), LOCAL + NODE_PORTS), Reason::UnknownPortPassed),
            ((at.node(), LOCAL), Reason::UnknownPortPassed),
        ] {
            let sent = open(&node, Hook::UPLINK_IN, at.client(), to, PORT);
            assert_eq!(sent.outcome.reason, expected, "{to:?}");
        }
    });
}

#[test]
fn a_frontend_that_is_removed_or_replaced_is_met_no_more() {
    each_family(|node| {
        let to = (node.at.vip(), LOCAL);
        let is_met = |port| open(&node, Hook::POD_IN, node.at.pod(), to, port).outcome.reason == Reason::Forward;
        assert!(is_met(1));
        assert!(node.tables.write_frontend(to.0, to.1, TCP, FrontendValue::NONE));
        assert!(!is_met(2));
        assert!(is_met(1), "a connection outlives its frontend");
        let datagram = node.send(Hook::POD_IN, &Packet::new(node.at.pod(), to.0).udp(1, to.1));
        assert_eq!(
            datagram.outcome.reason,
            Reason::Forward,
            "the other protocol's frontend is gone"
        );
    });
}

#[test]
fn a_choice_depends_on_the_clusters_seed_and_not_on_the_nodes() {
    for v6 in [false, true] {
        let choices = |table_seed, select_seed| -> Vec<IpAddr> {
            let node = Node::seeded(v6, table_seed);
            node.tables.set_config(config::SELECT_SEED, select_seed);
            let choose = |port| backend_of(&open(&node, Hook::POD_IN, node.at.pod(), (node.at.vip(), MANY), port));
            (0..50).map(choose).collect()
        };
        assert_eq!(choices(1, 7), choices(2, 7));
        assert_ne!(choices(1, 7), choices(1, 8));
        let distinct: BTreeSet<IpAddr> = choices(1, 7).into_iter().collect();
        assert_eq!(distinct.len(), 5);
    }
}

#[test]
fn a_connection_without_an_entry_finds_its_backend_again_while_the_set_is_unchanged() {
    each_family(|node| {
        let to = (node.at.vip(), MANY);
        let before: BTreeMap<u16, IpAddr> = (0..50)
            .map(|port| (port, backend_of(&open(&node, Hook::POD_IN, node.at.pod(), to, port))))
            .collect();
        for half in node.halves() {
            node.lose(&half);
        }
        node.publish(id(MANY), &Block::of(&[20, 21, 22, 23, 24]));
        for (port, backend) in before {
            let later = node.send(Hook::POD_IN, &Packet::new(node.at.pod(), to.0).tcp(port, to.1, "A"));
            assert_eq!(backend_of(&later), backend);
        }
    });
}

#[test]
fn a_client_with_affinity_keeps_its_backend_until_the_time_is_over() {
    each_family(|node| {
        let to = (node.at.vip(), AFFINE);
        let seconds = 10_800;
        let get = |port| backend_of(&open(&node, Hook::POD_IN, node.at.pod(), to, port));
        let first = get(0);
        assert!((1..50).all(|port| get(port) == first), "the client was moved");
        // Each new connection begins the time anew, up to its last jiffy.
        for port in 50..60 {
            node.tables.advance(seconds * HZ);
            assert_eq!(get(port), first);
        }
        // UDP and TCP of one service port share the client's backend.
        let datagram = node.send(Hook::POD_IN, &Packet::new(node.at.pod(), to.0).udp(1, to.1));
        assert_eq!(backend_of(&datagram), first);
        let others: BTreeSet<IpAddr> = (60..100)
            .map(|port| {
                node.tables.advance(seconds * HZ + 1);
                get(port)
            })
            .collect();
        assert!(others.len() > 1, "the client is never free again");
    });
}

#[test]
fn affinity_ends_with_its_backend_and_never_leads_to_the_next_owner_of_the_id() {
    each_family(|node| {
        let to = (node.at.vip(), AFFINE);
        let get = |port| backend_of(&open(&node, Hook::POD_IN, node.at.pod(), to, port));
        let first = get(0);
        let id_of = |address| {
            (30..35)
                .find(|n| node.at.numbered(*n as u8) == address)
                .expect("a backend")
        };
        let gone = id_of(first);
        // A terminating backend takes no new connections, not even its own clients'.
        node.set_state(gone, BACKEND_SERVING);
        let rest: Vec<u32> = (30..35).filter(|n| *n != gone).collect();
        node.publish(
            id(AFFINE),
            &Block {
                affinity: 10_800,
                ..Block::of(&rest)
            },
        );
        let second = get(1);
        assert_ne!(second, first);
        // The id of the second comes back as another's.
        let gone = id_of(second);
        node.backend(gone, id(AFFINE), node.at.numbered(99), 0);
        node.publish(
            id(AFFINE),
            &Block {
                affinity: 10_800,
                ..Block::of(&rest.iter().copied().filter(|n| *n != gone).collect::<Vec<_>>())
            },
        );
        assert_ne!(get(2), node.at.numbered(99));
        node.backend(gone, id(MANY), node.at.numbered(98), 0);
        assert_ne!(get(3), node.at.numbered(98));
    });
}

#[test]
fn affinity_under_a_local_policy_keeps_to_the_local_set() {
    each_family(|node| {
        let to = (node.at.lb(), AFFINE);
        let block = |flags, ids: &[u32]| Block {
            flags,
            affinity: 10_800,
            ..Block::of(ids)
        };
        node.publish(id(AFFINE), &block(BLOCK_EXTERNAL_LOCAL, &[30]));
        let get = |port| backend_of(&open(&node, Hook::UPLINK_IN, node.at.client(), to, port));
        assert_eq!(get(0), node.at.numbered(30));
        // Still in the cluster's set, but no longer local.
        node.set_state(30, BACKEND_IN_CLUSTER | BACKEND_SERVING);
        node.publish(id(AFFINE), &block(BLOCK_EXTERNAL_LOCAL, &[31]));
        assert_eq!(get(1), node.at.numbered(31));
        node.set_state(31, BACKEND_IN_LOCAL | BACKEND_SERVING);
        assert_eq!(get(2), node.at.numbered(31));
        node.publish(id(AFFINE), &block(0, &[32]));
        assert_eq!(get(3), node.at.numbered(32));
    });
}

#[test]
fn a_datagram_leaves_a_backend_that_stops_serving_and_a_connection_stays() {
    each_family(|node| {
        for protocol in [UDP, TCP] {
            let packet = |flags| {
                let packet = Packet::new(node.at.pod(), node.at.vip());
                match protocol {
                    TCP => packet.tcp(PORT, MANY, flags),
                    _ => packet.udp(PORT, MANY),
                }
            };
            let first = backend_of(&node.send(Hook::POD_IN, &packet("S")));
            let gone = (20..25)
                .find(|n| node.at.numbered(*n as u8) == first)
                .expect("a backend");
            let rest: Vec<u32> = (20..25).filter(|n| *n != gone).collect();
            // Terminating, but serving: both stay.
            node.publish(id(MANY), &Block::of(&rest));
            node.set_state(gone, BACKEND_SERVING);
            assert_eq!(backend_of(&node.send(Hook::POD_IN, &packet("A"))), first);
            node.set_state(gone, 0);
            let later = backend_of(&node.send(Hook::POD_IN, &packet("A")));
            assert_eq!(later == first, protocol == TCP);
            let old = (first, super::node::BACKEND_PORT);
            assert_eq!(
                node.half(protocol, old, (node.at.pod(), PORT)).is_some(),
                protocol == TCP
            );
            node.set_state(gone, IN_USE);
            node.publish(id(MANY), &Block::of(&[20, 21, 22, 23, 24]));
        }
    });
}

#[test]
fn a_syn_that_is_sent_again_goes_the_way_of_the_first_whatever_would_be_chosen_now() {
    each_family(|node| {
        for (hook, client) in [(Hook::POD_IN, node.at.pod()), (Hook::UPLINK_IN, node.at.client())] {
            let again = || {
                let sent = open(&node, hook, client, (node.at.lb(), MANY), PORT);
                (backend_of(&sent), sent.decoded().ip.source, sent.decoded().ports())
            };
            let first = again();
            let standing = || -> Vec<_> {
                let ends = |half: Half| (half.from, half.to, half.new_from, half.new_to);
                node.halves().into_iter().map(ends).collect()
            };
            let stood = standing();
            let own = (20..25)
                .find(|n| node.at.numbered(*n as u8) == first.0)
                .expect("a backend");
            let rest: Vec<u32> = (20..25).filter(|n| *n != own).collect();
            for backends in [&rest[..], &[]] {
                node.publish(id(MANY), &Block::of(backends));
                node.set_state(own, BACKEND_SERVING);
                assert_eq!(again(), first, "{backends:?}");
                assert_eq!(standing(), stood, "{backends:?}");
            }
            node.set_state(own, 0);
            node.publish(id(MANY), &Block::of(&rest));
            assert_eq!(again(), first, "its answer may be on its way");
            node.pass_seconds(1);
            assert_ne!(again().0, first.0, "nobody has answered");
            node.set_state(own, IN_USE);
            node.publish(id(MANY), &Block::of(&[20, 21, 22, 23, 24]));
        }
    });
}

#[test]
fn a_block_of_another_service_or_generation_is_never_read_as_ones_own() {
    each_family(|node| {
        let to = (node.at.vip(), REMOTE);
        let word = node.publish(id(REMOTE), &Block::of(&[2]));
        let other = node.publish(id(MANY), &Block::of(&[20]));
        for wrong in [
            other,
            ServiceWord {
                generation: word.generation.wrapping_sub(1),
                ..word
            },
            ServiceWord {
                offset: word.offset + 8,
                ..word
            },
            ServiceWord {
                offset: u32::MAX - 7,
                ..word
            },
        ] {
            node.tables.switch(id(REMOTE), Some(wrong));
            let sent = open(&node, Hook::POD_IN, node.at.pod(), to, PORT);
            sent.expect(Action::Drop, Reason::TablesChanged);
        }
        // A run that names another's backend.
        node.publish(id(REMOTE), &Block::of(&[20]));
        open(&node, Hook::POD_IN, node.at.pod(), to, PORT).expect(Action::Drop, Reason::TablesChanged);
        assert!(node.halves().is_empty());
    });
}
