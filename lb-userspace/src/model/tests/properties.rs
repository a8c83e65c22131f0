//! The model never fails, gives equal output for equal input, and its sets obey the rules written down anew.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use super::*;

const NODES: [&str; 3] = [NODE, "node-b", "node-c"];
const ZONES: [&str; 3] = ["zone-a", "zone-b", "zone-c"];

fn some_names(of: &'static [&'static str]) -> impl Strategy<Value = Box<[Arc<str>]>> {
    vec(prop::sample::select(of), 0..3).prop_map(|names| names.into_iter().map(Arc::from).collect())
}

fn some_address(family: Family) -> impl Strategy<Value = IpAddr> {
    (1..9_u8).prop_map(move |last| match family {
        Family::V4 => IpAddr::from([10, 0, 0, last]),
        Family::V6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(last)]),
    })
}

fn some_family() -> impl Strategy<Value = Family> {
    prop::sample::select(&Family::BOTH[..])
}

prop_compose! {
    fn some_endpoint(family: Family)(
        address in some_address(family),
        (ready, serving, terminating) in any::<(bool, bool, bool)>(),
        node in option::of(prop::sample::select(&NODES[..])),
        hints in option::of((some_names(&ZONES), some_names(&NODES))),
    ) -> EndpointObject {
        EndpointObject {
            address,
            conditions: Conditions { ready, serving, terminating },
            node: node.map(Arc::from),
            zone: None,
            hints: hints.map(|(zones, nodes)| Arc::new(Hints { zones, nodes })),
        }
    }
}

prop_compose! {
    fn some_slice()(family in some_family())(
        service in prop::sample::select(&["a", "b", "c"][..]),
        (mirrored, headless) in prop::sample::select(&[(false, false), (false, false), (true, false), (false, true)][..]),
        ports in vec((prop::sample::select(&["", "http"][..]), 80..83_u16), 1..3),
        endpoints in vec(some_endpoint(family), 0..6),
        family in Just(family),
    ) -> SliceObject {
        let port = |(name, port): (&str, u16)| SlicePort { name: name.into(), protocol: Protocol::Tcp, port };
        SliceObject {
            service: service.into(),
            mirrored,
            headless,
            family,
            triggered_at: None,
            ports: ports.into_iter().map(port).collect(),
            endpoints: endpoints.into(),
        }
    }
}

fn some_policy() -> impl Strategy<Value = TrafficPolicy> {
    prop::sample::select(&[TrafficPolicy::Cluster, TrafficPolicy::Local][..])
}

fn some_fields() -> impl Strategy<Value = Box<[AddressField]>> {
    let field = (some_family().prop_flat_map(some_address), 0..3_u16);
    vec(field, 0..2).prop_map(|all| {
        all.into_iter()
            .map(|(address, index)| AddressField { address, index })
            .collect()
    })
}

prop_compose! {
    fn some_service()(
        created in option::of(0..3_i64),
        has_selector in any::<bool>(),
        v4 in option::of(some_address(Family::V4)),
        v6 in option::of(some_address(Family::V6)),
        ports in btree_map(prop::sample::select(&["", "http"][..]), (80..82_u16, option::of(30000..30003_u16)), 0..3),
        (external_ips, load_balancer_ips) in (some_fields(), some_fields()),
        (internal_policy, external_policy) in (some_policy(), some_policy()),
        affinity_seconds in option::of(1..100_u32),
        health_check_node_port in option::of(32000..32002_u16),
    ) -> ServiceObject {
        let port = |(index, (name, (port, node_port))): (usize, (&str, _))| PortObject {
            name: name.into(), protocol: Protocol::Tcp, port, node_port, index: index as u16,
        };
        ServiceObject {
            kind: ServiceType::default(),
            created,
            not_proxied: (v4.is_none() && v6.is_none()).then_some(NotProxied::NoClusterIp),
            has_selector,
            cluster_ips: PerFamily { v4, v6 },
            ports: ports.into_iter().enumerate().map(port).collect(),
            external_ips,
            load_balancer_ips,
            source_ranges: PerFamily::default(),
            affinity_seconds,
            internal_policy,
            external_policy,
            health_check_node_port,
        }
    }
}

fn node_in(zone: Option<&str>) -> NodeObject {
    NodeObject {
        name: NODE.into(),
        zone: zone.map(Arc::from),
        addresses: Box::default(),
        eligible: true,
    }
}

prop_compose! {
    fn some_snapshot()(
        services in btree_map(prop::sample::select(&["a", "b", "c"][..]), some_service(), 0..4),
        slices in btree_map("[a-h]", some_slice(), 0..8),
        zone in option::of(prop::sample::select(&ZONES[..])),
    ) -> Snapshot {
        let key = |name: &str| ObjectKey::new("default", name);
        Snapshot {
            services: services.into_iter().map(|(name, service)| (key(name), Arc::new(service))).collect(),
            slices: slices.into_iter().map(|(name, slice)| (key(&name), Arc::new(slice))).collect(),
            node: Some(Arc::new(node_in(zone))),
            other_nodes: BTreeSet::new(),
            service_cidrs: Vec::new(),
        }
    }
}

/// A change of a snapshot.
#[derive(Clone, Debug)]
enum Edit {
    Service(&'static str, Option<ServiceObject>),
    Slice(String, Option<SliceObject>),
    Zone(&'static str),
    NodeGone,
}

impl Edit {
    fn make(self, snapshot: &mut Snapshot) {
        match self {
            Self::Service(name, service) => put(&mut snapshot.services, ObjectKey::new("default", name), service),
            Self::Slice(name, slice) => put(&mut snapshot.slices, ObjectKey::new("default", &name), slice),
            Self::Zone(zone) => {
                let node = snapshot.node.as_deref().cloned();
                snapshot.node = Some(Arc::new(NodeObject {
                    zone: Some(zone.into()),
                    ..node.unwrap_or_else(|| node_in(None))
                }));
            }
            Self::NodeGone => snapshot.node = None,
        }
    }
}

fn put<T: Clone>(map: &mut OrdMap<ObjectKey, Arc<T>>, key: ObjectKey, object: Option<T>) {
    match object {
        Some(object) => drop(map.insert(key, Arc::new(object))),
        None => drop(map.remove(&key)),
    }
}

fn some_edit() -> impl Strategy<Value = Edit> {
    let name = prop::sample::select(&["a", "b", "c"][..]);
    prop_oneof![
        3 => (name, option::weighted(0.8, some_service())).prop_map(|(name, service)| Edit::Service(name, service)),
        5 => ("[a-d]", option::weighted(0.8, some_slice())).prop_map(|(name, slice)| Edit::Slice(name, slice)),
        1 => prop::sample::select(&ZONES[..]).prop_map(Edit::Zone),
        1 => Just(Edit::NodeGone),
    ]
}

fn service_of<'a>(snapshot: &'a Snapshot, key: &ServicePortKey) -> &'a ServiceObject {
    let key = ObjectKey::new(&key.namespace, &key.name);
    snapshot.services.get(&key).expect("only Services have ports")
}

/// Every endpoint of a service port by address, written as plainly as the rules are.
fn expected_endpoints<'a>(
    snapshot: &'a Snapshot,
    key: &ServicePortKey,
) -> BTreeMap<EndpointAddress, &'a EndpointObject> {
    let service = service_of(snapshot, key);
    let mut found: BTreeMap<EndpointAddress, &EndpointObject> = BTreeMap::new();
    for slice in snapshot.slices.values() {
        let hidden = slice.headless || (slice.mirrored && service.has_selector);
        if hidden || slice.service != key.name || slice.family != key.family {
            continue;
        }
        for port in slice
            .ports
            .iter()
            .filter(|port| port.name == key.port && port.protocol == key.protocol)
        {
            for endpoint in &slice.endpoints {
                let known = found
                    .entry(EndpointAddress {
                        address: endpoint.address,
                        port: port.port,
                    })
                    .or_insert(endpoint);
                if known.conditions.terminating && !endpoint.conditions.terminating {
                    *known = endpoint;
                }
            }
        }
    }
    found
}

fn hinted_for(endpoint: &EndpointObject, node: &NodeFacts, mode: Topology) -> bool {
    let Some(hints) = &endpoint.hints else {
        return mode == Topology::Off;
    };
    match mode {
        Topology::Off => true,
        Topology::SameNode => hints.nodes.contains(&node.name),
        Topology::SameZone => hints.zones.iter().any(|zone| Some(zone) == node.zone.as_ref()),
    }
}

/// The topology mode: the first of node and zone that every ready endpoint has a hint for and one hints at us.
fn expected_mode(ready: &[&EndpointObject], node: &NodeFacts) -> Topology {
    let count = |endpoint: &EndpointObject, mode| match (&endpoint.hints, mode) {
        (Some(hints), Topology::SameNode) => hints.nodes.len(),
        (Some(hints), Topology::SameZone) => hints.zones.len(),
        _ => 0,
    };
    let applies = |mode: &Topology| {
        !ready.is_empty()
            && ready.iter().all(|endpoint| count(endpoint, *mode) > 0)
            && ready.iter().any(|endpoint| hinted_for(endpoint, node, *mode))
    };
    [Topology::SameNode, Topology::SameZone]
        .into_iter()
        .find(applies)
        .unwrap_or(Topology::Off)
}

fn draining(endpoint: &EndpointObject) -> bool {
    endpoint.conditions.serving && endpoint.conditions.terminating
}

fn assert_follows_the_rules(snapshot: &Snapshot, node: &NodeFacts, key: &ServicePortKey, port: &ServicePort) {
    let service = service_of(snapshot, key);
    let spec = service
        .ports
        .iter()
        .find(|spec| spec.name == key.port)
        .expect("the port exists");
    let in_family = |ips: &[AddressField]| ips.iter().any(|ip| Family::of(ip.address) == key.family);
    let accessible =
        spec.node_port.is_some() || in_family(&service.external_ips) || in_family(&service.load_balancer_ips);
    let internal_local = service.internal_policy == TrafficPolicy::Local;
    let external_local = service.external_policy == TrafficPolicy::Local && accessible;

    let all = expected_endpoints(snapshot, key);
    let ready: Vec<&EndpointObject> = all
        .values()
        .copied()
        .filter(|endpoint| endpoint.conditions.ready)
        .collect();
    let mode = if internal_local && !accessible {
        Topology::Off
    } else {
        expected_mode(&ready, node)
    };
    let pick = |wanted: &dyn Fn(&EndpointObject) -> bool| -> Vec<EndpointAddress> {
        all.iter()
            .filter(|(_, endpoint)| wanted(endpoint))
            .map(|(at, _)| *at)
            .collect()
    };
    let first_of =
        |first: Vec<EndpointAddress>, second: Vec<EndpointAddress>| if first.is_empty() { second } else { first };

    let mut cluster = first_of(
        pick(&|endpoint| endpoint.conditions.ready && hinted_for(endpoint, node, mode)),
        pick(&draining),
    );
    if internal_local && !accessible {
        cluster.clear();
    }
    let is_local = |endpoint: &EndpointObject| endpoint.node.as_deref() == Some(NODE);
    let mut local = first_of(
        pick(&|endpoint| is_local(endpoint) && endpoint.conditions.ready),
        pick(&|endpoint| is_local(endpoint) && draining(endpoint)),
    );
    if !internal_local && !external_local {
        local.clear();
    }
    let any = all
        .values()
        .any(|endpoint| endpoint.conditions.ready || draining(endpoint));

    let of_set = |set| port.set(set).map(|(at, _)| at).collect::<Vec<_>>();
    assert_eq!(of_set(BackendSet::Cluster), cluster);
    assert_eq!(of_set(BackendSet::Local), local);
    assert_eq!((port.has_any, port.topology), (any, mode));
    assert!(port.backends.keys().eq(all.keys()));
    for backend in port.backends.values() {
        assert_eq!(
            backend.why_unused.is_none(),
            backend.in_cluster_set || backend.in_local_set
        );
    }
    let expected = |is_local: bool| Choice {
        set: if is_local {
            BackendSet::Local
        } else {
            BackendSet::Cluster
        },
        when_empty: if is_local && any {
            WhenEmpty::Drop
        } else {
            WhenEmpty::Reject
        },
    };
    assert_eq!(
        (port.internal, port.external),
        (expected(internal_local), expected(external_local))
    );
    assert_eq!(port.external_from_inside, expected(false));
    // Whoever is sent to a set that may be empty only by policy finds the cluster set filled when anything is usable.
    if any && port.external_from_inside.set == port.external.set && accessible {
        assert!(!cluster.is_empty());
    }
}

proptest! {
    #[test]
    fn sets_and_choices_follow_the_rules(snapshot in some_snapshot()) {
        let state = build(&snapshot, &ModelConfig::new(NODE));
        for (key, port) in &state.service_ports {
            assert_follows_the_rules(&snapshot, &state.node, key, port);
        }
    }

    #[test]
    fn equal_input_gives_equal_output(snapshot in some_snapshot()) {
        let config = ModelConfig::new(NODE);
        prop_assert_eq!(build(&snapshot, &config), build(&snapshot.clone(), &config.clone()));
    }

    #[test]
    fn a_model_with_a_memory_decides_as_one_without(first in some_snapshot(), rounds in vec(vec(some_edit(), 0..4), 1..8)) {
        let config = ModelConfig::new(NODE);
        let (mut model, mut snapshot) = (Model::new(config.clone()), first);
        let mut before = model.build(&Arc::new(snapshot.clone()));
        for edits in rounds {
            let none = edits.is_empty();
            for edit in edits {
                edit.make(&mut snapshot);
            }
            let after = model.build(&Arc::new(snapshot.clone()));
            prop_assert_eq!(&*after, &build(&snapshot, &config));
            prop_assert!(!none || Arc::ptr_eq(&before, &after));
            for (key, port) in &after.service_ports {
                let same = before.service_ports.get(key).filter(|known| **known == *port);
                prop_assert!(same.is_none_or(|known| Arc::ptr_eq(known, port)), "{} is a copy", key);
            }
            before = after;
        }
    }

    #[test]
    fn every_claimed_frontend_has_one_owner_or_a_rejection(snapshot in some_snapshot()) {
        let state = build(&snapshot, &ModelConfig::new(NODE));
        let mut owners = BTreeMap::new();
        for (key, port) in &state.service_ports {
            prop_assert!(!port.frontends.is_empty());
            for frontend in &port.frontends {
                prop_assert!(frontend.address.is_none_or(|address| Family::of(address) == key.family));
                let before = owners.insert((frontend.address, frontend.port, key.protocol, key.family), key);
                prop_assert!(before.is_none(), "{:?} belongs to {} and {:?}", frontend, key, before);
            }
        }
        for (key, service) in snapshot.services.iter().filter(|(_, service)| service.not_proxied.is_none()) {
            for port in &service.ports {
                let Some(v4) = service.cluster_ips.v4 else { continue };
                let owner = owners[&(Some(v4), port.port, port.protocol, Family::V4)];
                let told = state.rejections.iter().any(|rejection| {
                    rejection.object.name == *key.name && rejection.field == "spec.clusterIP"
                });
                prop_assert!(told || (owner.name == key.name && owner.port == port.name));
            }
        }
    }

    #[test]
    fn conversion_never_fails_on_any_text(texts in vec(any::<String>(), 10), numbers in vec(any::<i32>(), 4)) {
        let mut world = World::new();
        world.service_object(json!({
            "metadata": { "name": texts[0], "namespace": "default" },
            "spec": {
                "type": texts[1], "clusterIP": texts[2], "clusterIPs": [texts[2], texts[3]], "ipFamilies": [texts[4]],
                "externalIPs": [texts[5]], "loadBalancerSourceRanges": [texts[6]], "sessionAffinity": texts[7],
                "ports": [{ "name": texts[8], "port": numbers[0], "nodePort": numbers[1], "protocol": texts[9] }],
                "healthCheckNodePort": numbers[2], "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": numbers[3] } },
            },
        }));
        world.slice_object(json!({
            "metadata": { "name": "web-1", "labels": { "kubernetes.io/service-name": texts[0] } },
            "addressType": "IPv4",
            "ports": [{ "name": texts[1], "port": numbers[0] }], "endpoints": [{ "addresses": [texts[2]] }],
        }));
        world.build();
    }

    #[test]
    fn addresses_survive_being_printed_and_read(bytes in any::<[u8; 16]>()) {
        let address = IpAddr::from(bytes).to_canonical();
        prop_assert_eq!(parse_address(&address.to_string()), Some(address));
    }
}
