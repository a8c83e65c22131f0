//! Several threads at once over one set of tables, as CPUs: what loom explores in the small (`tests/loom.rs`), by force.
//!
//! Thread schedules differ from run to run, the promises do not: they hold for every schedule.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use super::node::{BACKEND_PORT, HZ, LOCAL, MANY, Node, REMOTE, each_family, id};
use super::packet::Packet;
use crate::layout::ServiceWord;
use crate::pipeline::Hook;
use crate::testing::{Block, Sizes};
use crate::verdict::{Action, Reason};

const CPUS: u32 = 4;

#[test]
fn cpus_that_meet_one_new_flow_together_enter_one_pair() {
    each_family(|node| {
        for port in 0..400 {
            let open = Packet::new(node.at.client(), node.at.lb()).tcp(port, REMOTE, "S");
            let seen: Vec<Option<u16>> = thread::scope(|scope| {
                let cpus: Vec<_> = (0..CPUS)
                    .map(|_| {
                        scope.spawn(|| {
                            let sent = node.send(Hook::UPLINK_IN, &open);
                            let forwarded = sent.outcome.reason == Reason::Forward;
                            assert!(forwarded || sent.outcome.reason == Reason::FlowBusy, "{sent:?}");
                            forwarded.then(|| sent.decoded().source_port().expect("a port"))
                        })
                    })
                    .collect();
                cpus.into_iter()
                    .map(|cpu| cpu.join().expect("a CPU's checks"))
                    .collect()
            });
            let mut ports: Vec<u16> = seen.into_iter().flatten().collect();
            ports.dedup();
            assert!(ports.len() <= 1, "one flow left by several ports: {ports:?}");
            assert!(node.widows().is_empty(), "{:?}", node.widows());
            node.check_table();
            for half in node.halves() {
                node.lose(&half);
            }
        }
    });
}

#[test]
fn cpus_that_want_one_port_for_two_flows_give_it_to_one() {
    for v6 in [false, true] {
        for round in 0..400u16 {
            let node = Node::standard(v6);
            // One port of ours for all: whoever comes second has to find that out.
            node.tables.set_config(crate::layout::config::PORT_COUNT, 1);
            let forwarded = AtomicU32::new(0);
            thread::scope(|scope| {
                for cpu in 0..CPUS as u16 {
                    let (node, forwarded) = (&node, &forwarded);
                    scope.spawn(move || {
                        let open = Packet::new(node.at.client(), node.at.lb()).tcp(round * 4 + cpu, REMOTE, "S");
                        let sent = node.send(Hook::UPLINK_IN, &open);
                        match sent.outcome.reason {
                            Reason::Forward => forwarded.fetch_add(1, Ordering::Relaxed),
                            Reason::FlowBusy | Reason::PortsExhausted => 0,
                            other => panic!("{other:?}"),
                        };
                    });
                }
            });
            assert!(forwarded.into_inner() <= 1, "two flows are one to the backend");
            assert!(node.widows().is_empty(), "{:?}", node.widows());
            node.check_table();
        }
    }
}

#[test]
fn evictions_refreshes_and_sweeps_at_once_leave_whole_pairs_and_no_lock() {
    each_family(|node| {
        let node = Node::with(
            node.v6,
            Sizes {
                flow_sets: 4,
                ..Sizes::default()
            },
        );
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let packets: Vec<_> = (0..CPUS as u16)
                .map(|cpu| {
                    let node = &node;
                    scope.spawn(move || {
                        for n in 0..3000u16 {
                            let port = 40_000 + (n * 7 + cpu) % 24;
                            let client = (node.at.pod(), port);
                            let to = (node.at.vip(), LOCAL);
                            let flags = ["S", "A", "FA", "A"][usize::from(n % 4)];
                            let sent = node.send(Hook::POD_IN, &Packet::new(client.0, to.0).tcp(port, to.1, flags));
                            if sent.outcome.reason == Reason::Forward {
                                let seen = sent.decoded();
                                assert_eq!(
                                    (seen.ip.destination, seen.source_port()),
                                    (node.at.local_pod(), Some(port))
                                );
                            }
                            let answer = Packet::new(node.at.local_pod(), client.0).tcp(BACKEND_PORT, port, "A");
                            let sent = node.send(Hook::POD_OUT, &answer);
                            if sent.outcome.reason == Reason::Reply {
                                let seen = sent.decoded();
                                assert_eq!((seen.ip.source, seen.ports()), (to.0, Some((LOCAL, port))));
                            }
                            node.tables.advance(u32::from(n % 64 == 0) * HZ);
                        }
                    })
                })
                .collect();
            let (node, stop) = (&node, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for half in node.halves().into_iter().filter(|half| node.is_expired(half)) {
                        node.free_if_unchanged(&half);
                    }
                }
            });
            let checked: Vec<_> = packets.into_iter().map(thread::ScopedJoinHandle::join).collect();
            stop.store(true, Ordering::Relaxed);
            assert!(checked.iter().all(Result::is_ok), "a CPU's checks");
        });
        node.check_table();
        // What one schedule has widowed, a sweep ends.
        node.tables.advance(90_000 * HZ);
        node.sweep();
        node.sweep();
        assert!(node.halves().is_empty());
    });
}

#[test]
fn tables_that_are_rewritten_under_packets_lead_nobody_astray() {
    each_family(|node| {
        let own: Vec<IpAddr> = (20..25).map(|n| node.at.numbered(n)).collect();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let (node, stop, own) = (&node, &stop, &own);
            scope.spawn(move || {
                // Worse than user space ever is: two services take turns on one place of the arena, without a grace period.
                let offset = 256;
                let turns = [(MANY, [20, 21, 22]), (LOCAL, [1, 1, 1])];
                for (owner, ids) in turns.into_iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    node.tables.write_block(id(owner), 1, offset, &Block::of(&ids));
                    node.tables
                        .switch(id(owner), Some(ServiceWord { generation: 1, offset }));
                }
            });
            let packets: Vec<_> = (0..2u16)
                .map(|cpu| {
                    scope.spawn(move || {
                        let mut through = 0;
                        for n in 0..4000u16 {
                            let open = Packet::new(node.at.pod(), node.at.vip()).tcp(n * 2 + cpu, MANY, "S");
                            let sent = node.send(Hook::POD_IN, &open);
                            match (sent.outcome.action, sent.outcome.reason) {
                                (Action::Pass, Reason::Forward) => {
                                    let backend = sent.decoded().ip.destination;
                                    assert!(own.contains(&backend), "{backend} is another service's");
                                    through += 1;
                                }
                                // A flow that was to be displaced was being entered by the other CPU; or a block was read between
                                // two writes: no owner's promise covers one without a grace period.
                                (Action::Drop, Reason::TablesChanged | Reason::FlowBusy) | (_, Reason::NoEndpoints) => {
                                }
                                (_, other) => panic!("{other:?}"),
                            }
                        }
                        through
                    })
                })
                .collect();
            let checked: Vec<_> = packets.into_iter().map(thread::ScopedJoinHandle::join).collect();
            stop.store(true, Ordering::Relaxed);
            let through: u32 = checked.into_iter().map(|cpu| cpu.expect("a CPU's checks")).sum();
            assert!(through > 0, "no packet got through");
        });
    });
}
