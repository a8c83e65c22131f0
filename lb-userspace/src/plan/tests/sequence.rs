//! Random sequences of desired states: after each the tables say what it says, at every single store they say what the old or
//! the new one says, a restart changes nothing, and a fault anywhere is made good by the next cycle.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use lb_common::layout::{BITS_LOG, BackendControl, ServiceWord};
use proptest::prelude::*;

use super::oracle::{self, Answer, Moment, Probe};
use super::reader;
use super::world::{
    CLIENTS, CLUSTER_IPS, EXTERNAL, NODES, PODS, SMALL, address, adopt, apply_stepwise, backend, copy_of, desired,
    expect_exact, key, node, pod, settle, store,
};
use crate::maps::{Dump, Fault, FaultyStore, MapStore as _, MemorySizes, MemoryStore, Referred, Table};
use crate::model::{
    BackendSet, Choice, DesiredState, EndpointAddress, Family, Frontend, FrontendKind, Protocol, ServicePort,
    ServicePortKey, SourceRanges, WhenEmpty,
};
use crate::plan::NodeTables;

const PORTS: [u16; 3] = [80, 81, 30080];

/// One service port, drawn at random.
#[derive(Clone, Debug)]
struct Drawn {
    name: u8,
    protocol: bool,
    v6: bool,
    frontends: Vec<(u8, u8, u8)>,
    /// Host and what it is used for: bits cluster, local, serving.
    backends: BTreeMap<u8, u8>,
    local: (bool, bool),
    drops: bool,
    affinity: Option<u32>,
    ranges: Option<(BTreeSet<u8>, bool)>,
}

fn drawn() -> impl Strategy<Value = Drawn> {
    let identity = (0u8..4, any::<bool>(), any::<bool>());
    let frontends = prop::collection::vec((0u8..4, 0u8..3, 0u8..3), 1..5);
    let backends = prop::collection::btree_map(0u8..8, 0u8..8, 0..6);
    let ranges = prop::option::weighted(0.3, (prop::collection::btree_set(1u8..4, 0..3), any::<bool>()));
    let affinity = prop::option::weighted(0.3, prop_oneof![Just(60u32), Just(10800)]);
    (
        identity,
        frontends,
        backends,
        any::<(bool, bool)>(),
        any::<bool>(),
        affinity,
        ranges,
    )
        .prop_map(
            |((name, protocol, v6), frontends, backends, local, drops, affinity, ranges)| Drawn {
                name,
                protocol,
                v6,
                frontends,
                backends,
                local,
                drops,
                affinity,
                ranges,
            },
        )
}

fn frontend(family: Family, (kind, host, port): (u8, u8, u8)) -> Frontend {
    let of = |kind, group| Frontend {
        kind,
        address: Some(address(family, group, host)),
        port: PORTS[port as usize],
    };
    match kind {
        0 => of(FrontendKind::ClusterIp, CLUSTER_IPS),
        1 => of(FrontendKind::LoadBalancerIp, EXTERNAL),
        2 => of(FrontendKind::ExternalIp, EXTERNAL),
        _ => Frontend {
            kind: FrontendKind::NodePort,
            address: None,
            port: PORTS[port as usize],
        },
    }
}

/// A desired state as the model makes them: frontends belong to one service port each and are sorted.
fn state(all: &[Drawn]) -> DesiredState {
    let mut claimed = BTreeSet::new();
    let mut ports: BTreeMap<ServicePortKey, ServicePort> = BTreeMap::new();
    for drawn in all {
        let family = if drawn.v6 { Family::V6 } else { Family::V4 };
        let protocol = if drawn.protocol { Protocol::Tcp } else { Protocol::Udp };
        let key = key(&format!("s{}", drawn.name), protocol, family);
        let free = |frontend: &Frontend| claimed.insert((family, protocol, frontend.address, frontend.port));
        let mut frontends: Vec<_> = drawn
            .frontends
            .iter()
            .map(|parts| frontend(family, *parts))
            .filter(free)
            .collect();
        frontends.sort_unstable();
        if frontends.is_empty() || ports.contains_key(&key) {
            continue;
        }
        let choice = |local: bool| Choice {
            set: if local { BackendSet::Local } else { BackendSet::Cluster },
            when_empty: if drawn.drops && local {
                WhenEmpty::Drop
            } else {
                WhenEmpty::Reject
            },
        };
        // Host 7 is the node itself.
        let at = |host: u8| match host {
            7 => EndpointAddress {
                address: address(family, NODES, 1),
                port: 8080,
            },
            _ => pod(family, host),
        };
        let uses = |bits: u8| backend(bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
        let range = |host: &u8| IpNet::from(address(family, CLIENTS, *host));
        let port = ServicePort {
            frontends,
            backends: drawn
                .backends
                .iter()
                .map(|(host, bits)| (at(*host), uses(*bits)))
                .collect(),
            internal: choice(drawn.local.0),
            external: choice(drawn.local.1),
            external_from_inside: choice(false),
            affinity_seconds: drawn.affinity,
            source_ranges: match &drawn.ranges {
                None => SourceRanges::AllowAll,
                Some((hosts, allow_node)) => SourceRanges::Ranges {
                    ranges: hosts.iter().map(range).collect(),
                    allow_node: *allow_node,
                },
            },
            ..super::world::service_port(family, 0, [])
        };
        ports.insert(key, port);
    }
    desired(ports)
}

/// The node's addresses: its own, and perhaps what elsewhere is a ClusterIP, an external IP or a second own one.
fn drawn_node() -> impl Strategy<Value = NodeTables> {
    any::<(bool, bool, bool, bool)>().prop_map(|(dns_cache, vip_on_node, second, nodeport_on_vip)| {
        let mut node = node();
        for family in Family::BOTH {
            let mut carry = |present: bool, group, host, nodeport: bool| {
                if present {
                    node.addresses.insert(address(family, group, host));
                    if nodeport {
                        node.nodeport_addresses.insert(address(family, group, host));
                    }
                }
            };
            carry(dns_cache, CLUSTER_IPS, 0, false);
            carry(vip_on_node, EXTERNAL, 0, nodeport_on_vip);
            carry(second, NODES, 2, true);
        }
        node
    })
}

fn probes() -> Vec<Probe> {
    let groups = [(CLUSTER_IPS, 3), (EXTERNAL, 3), (NODES, 3), (PODS, 1)];
    let mut probes = Vec::new();
    for family in Family::BOTH {
        for (group, hosts) in groups {
            for host in 0..hosts {
                for port in PORTS.into_iter().chain([9]) {
                    let address = address(family, group, host);
                    probes.extend([6, 17].map(|protocol| Probe {
                        address,
                        port,
                        protocol,
                    }));
                }
            }
        }
    }
    probes
}

/// Everything a desired state and a node say, for all probes.
fn expect_exactly(store: &MemoryStore, desired: &DesiredState, node: &NodeTables) {
    let moment = Moment::of(desired, node);
    for probe in probes() {
        let expected = oracle::answer(&moment, probe).unwrap();
        assert_eq!(reader::answer(store, probe, true), expected, "{probe:?}");
    }
}

type Step<'a> = (&'a DesiredState, &'a NodeTables);

/// What may be found between two states: what the old one says, the new one, or a mixture of parts that may change in any
/// order.
struct Between<'a> {
    old: Step<'a>,
    new: Step<'a>,
    answers: Vec<(Probe, Vec<Answer>)>,
}

impl<'a> Between<'a> {
    fn new(old: Step<'a>, new: Step<'a>) -> Self {
        let mixture = |bits: u8| {
            let pick = |bit: u8| if bits >> bit & 1 == 0 { old } else { new };
            Moment {
                frontends: pick(0).0,
                services: pick(1).0,
                addresses: pick(2),
                nodes: [pick(3).1, pick(4).1],
                node_ports: pick(5).0,
            }
        };
        let answers = |probe| {
            let mut answers: Vec<Answer> = Vec::new();
            for answer in (0..64).filter_map(|bits| oracle::answer(&mixture(bits), probe)) {
                if !answers.contains(&answer) {
                    answers.push(answer);
                }
            }
            (probe, answers)
        };
        Self {
            old,
            new,
            answers: probes().into_iter().map(answers).collect(),
        }
    }

    fn check(&self, store: &MemoryStore, what: &dyn std::fmt::Debug) {
        for (probe, answers) in &self.answers {
            let found = reader::answer(store, *probe, false);
            let fits = answers
                .iter()
                .any(|expected| agree(&found, expected, self.old, self.new));
            assert!(fits, "{probe:?} finds {found:?} after {what:?}");
        }
    }
}

/// Equal, but for ranges and backend flags, which change one by one: no source of the state in force is shut out, none is let
/// in that neither state allows.
fn agree(found: &Answer, expected: &Answer, old: Step<'_>, new: Step<'_>) -> bool {
    let (Answer::Service(found), Answer::Service(expected)) = (found, expected) else {
        return found == expected;
    };
    let plain = |set: &oracle::Set| {
        let addresses = set
            .members
            .clone()
            .map(|members| members.into_iter().map(|(at, _)| at).collect::<BTreeSet<_>>());
        (set.local, addresses)
    };
    let ranges_fit = match (&found.ranges, &expected.ranges) {
        (None, None) => true,
        (Some(found), Some(expected)) => found.is_superset(expected) && found.is_subset(&all_ranges(old, new)),
        _ => false,
    };
    found.key == expected.key
        && found.affinity_seconds == expected.affinity_seconds
        && plain(&found.outside) == plain(&expected.outside)
        && plain(&found.inside) == plain(&expected.inside)
        && ranges_fit
}

fn all_ranges(old: Step<'_>, new: Step<'_>) -> BTreeSet<IpNet> {
    let clients = Family::BOTH
        .into_iter()
        .flat_map(|family| (0..8).map(move |host| address(family, CLIENTS, host)));
    let own = old.1.addresses.iter().chain(&new.1.addresses).copied();
    clients.chain(own).map(IpNet::from).collect()
}

/// Published backends by service port and address: id and generation.
fn ids(store: &MemoryStore) -> BTreeMap<(String, [u64; 3]), (u32, u16)> {
    let (names, words) = (store.names().unwrap(), store.words(Table::Backends));
    let mut ids = BTreeMap::new();
    for id in 1..SMALL.backends {
        let base = id as usize * 4;
        let control = BackendControl::from_word(words.load(base));
        if control.state != 0 {
            let at = [
                words.load(base + 1),
                words.load(base + 2),
                words.load(base + 3) & 0xffff,
            ];
            ids.insert((names[&control.service].clone(), at), (id, control.generation));
        }
    }
    ids
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 8))]

    #[test]
    fn every_store_of_every_publish_leaves_old_or_new_forwarding(
        steps in prop::collection::vec((prop::collection::vec(drawn(), 0..7), drawn_node(), any::<bool>()), 1..6),
    ) {
        let store = store(SMALL);
        let mut planner = adopt(&store);
        let (mut old, mut old_node) = (state(&[]), node());
        planner.plan(&old, &old_node).apply(&store).unwrap();
        for (services, new_node, restart) in steps {
            let new = state(&services);
            let before = ids(&store);
            let plan = planner.plan(&new, &new_node);
            prop_assert!(plan.rejections.is_empty(), "{:?}", plan.rejections);
            let between = Between::new((&old, &old_node), (&new, &new_node));
            apply_stepwise(&plan, &store, |store, op| between.check(store, op));
            expect_exactly(&store, &new, &new_node);
            for (endpoint, id) in ids(&store) {
                prop_assert!(before.get(&endpoint).is_none_or(|same| *same == id), "{endpoint:?} has a new id");
            }
            prop_assert!(planner.plan(&new, &new_node).is_empty(), "nothing changed");
            expect_exact(&planner, &store);
            let mut restarted = adopt(&store);
            let idle = restarted.plan(&new, &new_node);
            prop_assert!(idle.is_empty(), "a restart changes something: {idle:?}");
            if restart {
                planner = restarted;
            }
            let flows = if restart { Referred::none(256) } else { everything() };
            planner.grace_passed(planner.mark());
            planner.swept(planner.sweep_mark(), &flows);
            (old, old_node) = (new, new_node);
        }
        let none = state(&[]);
        planner.plan(&none, &old_node).apply(&store).unwrap();
        settle(&mut planner, &store, &none, &old_node);
        expect_empty(&store);
    }

    #[test]
    fn a_fault_at_any_store_is_made_good(
        first in prop::collection::vec(drawn(), 0..5),
        second in prop::collection::vec(drawn(), 0..5),
        place: prop::sample::Index,
        fault in prop_oneof![Just(Fault::Once), Just(Fault::Dead)],
    ) {
        let (old, new, node) = (state(&first), state(&second), node());
        let original = store(SMALL);
        let mut planner = adopt(&original);
        planner.plan(&old, &node).apply(&original).unwrap();
        let plan = planner.plan(&new, &node);
        let counter = FaultyStore::new(copy_of(&original, SMALL), fault, 0);
        plan.apply(&counter).unwrap();
        let at = place.index(counter.steps() as usize + 1) as u64 + 1;
        let faulty = FaultyStore::new(copy_of(&original, SMALL), fault, at);
        prop_assert_eq!(plan.apply(&faulty).is_err(), at <= counter.steps());
        let store = faulty.into_inner();
        let kept = ids(&original);
        let mut again = adopt(&store);
        let between = Between::new((&old, &node), (&new, &node));
        apply_stepwise(&again.plan(&new, &node), &store, |store, op| between.check(store, op));
        expect_exactly(&store, &new, &node);
        for (endpoint, id) in ids(&store) {
            prop_assert!(kept.get(&endpoint).is_none_or(|same| *same == id), "{endpoint:?} has a new id");
        }
        settle(&mut again, &store, &new, &node);
        prop_assert!(adopt(&store).plan(&new, &node).is_empty());
        expect_exactly(&store, &new, &node);
    }

    #[test]
    fn a_cycle_that_trusts_nothing_does_the_same(
        steps in prop::collection::vec((prop::collection::vec(drawn(), 0..7), drawn_node(), any::<bool>()), 1..8),
        backends in prop_oneof![Just(SMALL.backends), 4u32..20],
        arena_words in prop_oneof![Just(SMALL.arena_words), Just(64)],
    ) {
        let store = store(MemorySizes { arena_words, backends, ..SMALL });
        let mut planner = adopt(&store);
        for (services, node, free) in steps {
            let desired = state(&services);
            let mut careful = planner.clone();
            careful.adopted = true;
            let plan = planner.plan(&desired, &node);
            prop_assert_eq!(&careful.plan(&desired, &node), &plan);
            for table in Table::PUBLISHED {
                prop_assert_eq!(careful.draft.used(table), planner.draft.used(table), "{:?}", table);
            }
            plan.apply(&store).unwrap();
            expect_exact(&planner, &store);
            if free {
                planner.grace_passed(planner.mark());
                planner.swept(planner.sweep_mark(), &Referred::none(256));
            }
        }
    }

    #[test]
    fn equal_input_gives_equal_bytes(services in prop::collection::vec(drawn(), 0..7), node in drawn_node()) {
        let (new, stores) = (state(&services), [store(SMALL), store(SMALL)]);
        for store in &stores {
            adopt(store).plan(&new, &node).apply(store).unwrap();
        }
        prop_assert_eq!(Dump::of(&stores[0]).unwrap(), Dump::of(&stores[1]).unwrap());
    }
}

/// Flows with everything.
fn everything() -> Referred {
    let mut referred = Referred::none(256);
    (0..256).for_each(|id| referred.backends.insert(id));
    for bit in 0..1 << BITS_LOG {
        referred.forward_bits.insert(bit);
        referred.reply_bits.insert(bit);
    }
    referred
}

/// Only the node's own entries are left.
fn expect_empty(store: &MemoryStore) {
    assert!(store.names().unwrap().is_empty() && store.ranges().unwrap().is_empty());
    assert!(
        (0..SMALL.services as usize).all(|id| ServiceWord::from_word(store.words(Table::Services).load(id)).is_none())
    );
    for id in 1..SMALL.backends as usize {
        let control = BackendControl::from_word(store.words(Table::Backends).load(id * 4));
        assert_eq!((control.state, control.service), (0, 0), "backend {id}");
    }
    assert!(store.words(Table::ReplyBits).copy_used().is_empty());
    let words = store.words(Table::ForwardBits).copy_used();
    let node_addresses = words.iter().map(|word| word.count_ones()).sum::<u32>();
    assert!((2..=8).contains(&node_addresses), "{node_addresses} forward bits");
}
