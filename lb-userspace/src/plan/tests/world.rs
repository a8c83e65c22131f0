//! Desired states to test with, and tables to publish them to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::IpNet;
use lb_common::layout::config;

use crate::maps::{Dump, MapOp, MapStore, MemorySizes, MemoryStore, OpList, Referred, SourceRange, Table};
use crate::model::{
    Backend, BackendSet, Choice, Conditions, DesiredState, EndpointAddress, Family, Frontend, FrontendKind, NodeFacts,
    ObjectKey, OrdMap, PerFamily, Protocol, ServicePort, ServicePortKey, ServiceType, SourceRanges, Topology,
    TrafficPolicy, WhenEmpty,
};
use crate::plan::{NodeTables, Plan, Planner, service_port_name};

pub(super) const SEED: u64 = 0x1234_5678_9abc_def1;

/// Tables small enough to look at every word, large enough for what the tests publish.
pub(super) const SMALL: MemorySizes = MemorySizes {
    frontend_sets: 32,
    services: 32,
    arena_words: 1024,
    backends: 256,
    flow_sets: 2,
};

pub(super) fn store(sizes: MemorySizes) -> MemoryStore {
    MemoryStore::new(sizes).unwrap()
}

pub(super) fn adopt(store: &MemoryStore) -> Planner {
    Planner::adopt(Dump::of(store).unwrap(), SEED)
}

/// The tables hold what the planner believes, to the word.
pub(super) fn expect_exact(planner: &Planner, store: &MemoryStore) {
    let dump = Dump::of(store).unwrap();
    for table in Table::PUBLISHED {
        let (found, known) = (&dump.tables[table as usize], planner.draft.used(table));
        for index in 0..found.len().max(known.len()) {
            let found = found.get(index).copied().unwrap_or(0);
            assert_eq!(found, planner.draft.word(table, index as u32), "{table:?} {index}");
        }
    }
    let states = || {
        let ids = planner.services.by_key();
        ids.filter_map(|(_, id)| Some((id, planner.services.get(id)?)))
    };
    let range = |service, range: &IpNet| SourceRange { service, range: *range };
    let ranges = states().flat_map(|(id, state)| state.ranges.iter().map(move |of| range(id, of)));
    assert_eq!(dump.ranges, ranges.collect());
    assert_eq!(dump.devices, planner.devices);
    assert_eq!(dump.names.keys().copied().collect::<BTreeSet<_>>(), planner.names);
    for (id, state) in states().filter(|(id, _)| planner.names.contains(id)) {
        assert_eq!(dump.names[&id], service_port_name(&state.key));
    }
}

/// Tables with the same content.
pub(super) fn copy_of(original: &MemoryStore, sizes: MemorySizes) -> MemoryStore {
    let (copy, dump) = (store(sizes), Dump::of(original).unwrap());
    for (table, words) in Table::PUBLISHED.into_iter().zip(&dump.tables) {
        copy.write(table, 0, words).unwrap();
    }
    let names: Vec<_> = dump
        .names
        .iter()
        .map(|(id, name)| (*id, name.as_str().into()))
        .collect();
    copy.put_names(&names).unwrap();
    copy.put_ranges(&dump.ranges.iter().copied().collect::<Vec<_>>())
        .unwrap();
    for (ifindex, device) in &dump.devices {
        copy.put_device(*ifindex, *device).unwrap();
    }
    copy
}

/// Carries a plan out word by word and calls `check` after each.
pub(super) fn apply_stepwise(plan: &Plan, store: &MemoryStore, mut check: impl FnMut(&MemoryStore, &MapOp)) {
    for stage in &plan.stages {
        for op in stage.ops() {
            if let MapOp::Write {
                table,
                index,
                first,
                count,
            } = op
            {
                for (offset, word) in (0..).zip(stage.words(*first, *count)) {
                    store.write(*table, index + offset, &[*word]).unwrap();
                    check(store, op);
                }
            } else {
                let mut single = OpList::default();
                single.push(op.clone());
                single.apply(store).unwrap();
                check(store, op);
            }
        }
    }
}

/// Lets everything that was given up become free, as if no flow existed.
pub(super) fn settle(planner: &mut Planner, store: &MemoryStore, desired: &DesiredState, node: &NodeTables) {
    for _ in 0..3 {
        planner.grace_passed(planner.mark());
        let mark = planner.sweep_mark();
        planner.swept(mark, &Referred::none(256));
        planner.plan(desired, node).apply(store).unwrap();
    }
}

/// The address `host` of a group (ClusterIPs, nodes and so on) in a family.
pub(super) fn address(family: Family, group: u8, host: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, group, 0, host).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, group.into(), 0, 0, 0, 0, 0, host.into()).into(),
    }
}

pub(super) const CLUSTER_IPS: u8 = 96;
pub(super) const NODES: u8 = 0;
pub(super) const EXTERNAL: u8 = 7;
pub(super) const PODS: u8 = 1;
pub(super) const CLIENTS: u8 = 9;

pub(super) fn key(name: &str, protocol: Protocol, family: Family) -> ServicePortKey {
    ServicePortKey {
        namespace: "default".into(),
        name: name.into(),
        port: "http".into(),
        protocol,
        family,
    }
}

pub(super) fn pod(family: Family, host: u8) -> EndpointAddress {
    EndpointAddress {
        address: address(family, PODS, host),
        port: 8080,
    }
}

pub(super) fn backend(in_cluster_set: bool, in_local_set: bool, serving: bool) -> Backend {
    Backend {
        conditions: Conditions {
            ready: in_cluster_set || in_local_set,
            serving,
            terminating: false,
        },
        local: in_local_set,
        in_cluster_set,
        in_local_set,
        why_unused: None,
        node_name: None,
        zone: None,
    }
}

/// A service port with a ClusterIP and backends that all traffic may use.
pub(in crate::plan) fn service_port(family: Family, cluster_ip: u8, pods: impl IntoIterator<Item = u8>) -> ServicePort {
    let cluster = Choice {
        set: BackendSet::Cluster,
        when_empty: WhenEmpty::Reject,
    };
    let frontend = Frontend {
        kind: FrontendKind::ClusterIp,
        address: Some(address(family, CLUSTER_IPS, cluster_ip)),
        port: 80,
    };
    ServicePort {
        service_type: ServiceType::ClusterIP,
        frontends: vec![frontend],
        backends: pods
            .into_iter()
            .map(|host| (pod(family, host), backend(true, false, true)))
            .collect(),
        internal: cluster,
        external: cluster,
        external_from_inside: cluster,
        has_any: true,
        affinity_seconds: None,
        source_ranges: SourceRanges::AllowAll,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        topology: Topology::Off,
    }
}

pub(super) fn desired(ports: impl IntoIterator<Item = (ServicePortKey, ServicePort)>) -> DesiredState {
    let ports = ports.into_iter().map(|(key, port)| (key, Arc::new(port)));
    let service_ports: OrdMap<_, _> = ports.collect();
    let mut cluster_ips = OrdMap::default();
    for (key, port) in &service_ports {
        for frontend in port
            .frontends
            .iter()
            .filter(|frontend| frontend.kind == FrontendKind::ClusterIp)
        {
            let object = ObjectKey {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
            };
            cluster_ips.extend(frontend.address.map(|address| (address, object)));
        }
    }
    let node = NodeFacts {
        name: "node".into(),
        known: true,
        zone: None,
        addresses: Box::default(),
        primary: PerFamily::default(),
        eligible: true,
    };
    DesiredState {
        service_ports,
        cluster_ips,
        ..DesiredState::of_node(node)
    }
}

/// Changes a service port.
pub(super) fn change(desired: &mut DesiredState, key: &ServicePortKey, change: impl FnOnce(&mut ServicePort)) {
    let mut port = ServicePort::clone(desired.service_ports.get(key).unwrap());
    change(&mut port);
    desired.service_ports.insert(key.clone(), Arc::new(port));
}

/// Services `web0`, `web1` ... with a ClusterIP each and `pods` backends each, IPv4.
pub(super) fn services(count: u8, pods: u8) -> DesiredState {
    let port = |i: u8| service_port(Family::V4, i, (0..pods).map(|j| i * pods + j));
    desired((0..count).map(|i| (key(&format!("web{i}"), Protocol::Tcp, Family::V4), port(i))))
}

pub(super) fn node() -> NodeTables {
    let own = BTreeSet::from([address(Family::V4, NODES, 1), address(Family::V6, NODES, 1)]);
    let mut config = [0; config::WORDS];
    config[config::SELECT_SEED] = 5;
    config[config::HZ] = 250;
    NodeTables {
        addresses: own.clone(),
        nodeport_addresses: own,
        config,
        devices: BTreeMap::new(),
    }
}
