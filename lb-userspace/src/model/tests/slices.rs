//! How slices become the backends of a service port: `TestUpdateEndpointsMap`, endpointslicecache's "with duplicate
//! Endpoints, prefer non-terminating" and "Nil port should not break anything", `TestBadIPs`, e2e multi-slice cases.

use super::*;

fn web(world: &mut World) -> &mut World {
    world.service("web", json!({ "clusterIP": CLUSTER_IP, "ports": [{ "port": 80 }] }))
}

#[track_caller]
fn backends(world: &World, shown: &str) -> Vec<String> {
    world.port(shown).backends.keys().map(ToString::to_string).collect()
}

#[test]
fn slices_of_a_service_are_joined() {
    let mut world = World::new();
    web(&mut world)
        .slice("web-1", &["10.0.0.2"])
        .slice("web-2", &["10.0.0.1"]);
    assert_eq!(
        backends(&world, "default/web TCP IPv4"),
        ["10.0.0.1:8080", "10.0.0.2:8080"]
    );
}

#[test]
fn duplicate_endpoint_that_is_not_terminating_wins_in_either_order() {
    for slices in [
        ["10.0.0.1 unready terminating", "10.0.0.1"],
        ["10.0.0.1", "10.0.0.1 unready terminating"],
    ] {
        let mut world = World::new();
        web(&mut world)
            .slice("web-1", &slices[..1])
            .slice("web-2", &slices[1..]);
        let port = world.port("default/web TCP IPv4");
        assert_sets(&port, &["10.0.0.1"], &[], true);
        assert!(port.backends.values().all(|backend| !backend.conditions.terminating));
    }
}

#[test]
fn duplicate_endpoint_is_else_taken_from_the_first_slice_by_name() {
    let mut world = World::new();
    web(&mut world)
        .slice("web-2", &["10.0.0.1 on=node-b"])
        .slice("web-1", &["10.0.0.1 on=node-a"]);
    let port = world.port("default/web TCP IPv4");
    assert_eq!(
        port.backends
            .values()
            .map(|backend| backend.node_name.as_deref())
            .collect::<Vec<_>>(),
        [Some(NODE)]
    );
}

#[test]
fn ports_join_by_name_and_protocol_and_their_numbers_may_differ_between_slices() {
    let mut world = World::new();
    world.service(
        "web",
        json!({ "clusterIP": CLUSTER_IP, "ports": [
            { "name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns" },
            { "name": "dns", "port": 53, "protocol": "TCP", "targetPort": "dns" },
        ] }),
    );
    let ports = |number: u16| {
        [
            json!({ "name": "dns", "protocol": "UDP", "port": number }),
            json!({ "name": "dns", "protocol": "TCP", "port": number + 1 }),
            json!({ "name": "metrics", "protocol": "TCP", "port": 9153 }),
        ]
    };
    world.slice_of("web", "web-1", &ports(5300), vec![endpoint("10.0.0.1")]);
    world.slice_of("web", "web-2", &ports(5400), vec![endpoint("10.0.0.2")]);
    assert_eq!(
        backends(&world, "default/web:dns UDP IPv4"),
        ["10.0.0.1:5300", "10.0.0.2:5400"]
    );
    assert_eq!(
        backends(&world, "default/web:dns TCP IPv4"),
        ["10.0.0.1:5301", "10.0.0.2:5401"]
    );
}

#[test]
fn port_with_another_name_does_not_join() {
    let mut world = World::new();
    web(&mut world).slice_of(
        "web",
        "web-1",
        &[json!({ "name": "http", "port": 8080 })],
        vec![endpoint("10.0.0.1")],
    );
    assert_sets(&world.port("default/web TCP IPv4"), &[], &[], false);
}

#[test]
fn ports_without_name_or_number_are_rejected_and_the_others_stay() {
    let mut world = World::new();
    let ports = [
        json!({ "port": 1 }),
        json!({ "name": "" }),
        json!({ "name": "", "port": 0 }),
        json!({ "name": "", "port": 70000 }),
        json!({ "name": "", "port": 8080, "protocol": "ICMP" }),
        json!({ "name": "", "port": 8080 }),
    ];
    web(&mut world).slice_of("web", "web-1", &ports, vec![endpoint("10.0.0.1")]);
    assert_eq!(backends(&world, "default/web TCP IPv4"), ["10.0.0.1:8080"]);
    let slice = "EndpointSlice default/web-1";
    assert_eq!(
        world.rejected(),
        [
            format!("{slice}: ports[0].name"),
            format!("{slice}: ports[1].port"),
            format!("{slice}: ports[2].port"),
            format!("{slice}: ports[3].port"),
            format!("{slice}: ports[4].protocol"),
        ]
    );
}

#[test]
fn bad_endpoints_are_rejected_and_the_others_stay() {
    let mut world = World::new();
    let endpoints = [
        json!({ "addresses": [] }),
        json!({ "addresses": ["web"] }),
        json!({ "addresses": ["2001:db8::1"] }),
        json!({ "addresses": ["127.0.0.1"] }),
        json!({ "addresses": ["0.0.0.0"] }),
        json!({ "addresses": ["169.254.1.1"] }),
        json!({ "addresses": ["224.0.0.1"] }),
        json!({ "addresses": ["10.180.00.001", "10.0.0.2"] }),
    ];
    let mut world_with = |endpoints: &[Value]| {
        web(&mut world).slice_object(json!({
            "metadata": { "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4", "ports": [{ "name": "", "port": 8080 }], "endpoints": endpoints,
        }));
    };
    world_with(&endpoints);
    assert_eq!(backends(&world, "default/web TCP IPv4"), ["10.180.0.1:8080"]);
    let expected: Vec<String> = (0..7)
        .map(|index| format!("EndpointSlice default/web-1: endpoints[{index}].addresses[0]"))
        .collect();
    assert_eq!(world.rejected(), expected);
}

#[test]
fn slice_without_service_name_or_with_unknown_type_is_rejected() {
    let mut world = World::new();
    world.slice_object(json!({ "metadata": { "name": "a" }, "addressType": "IPv4", "endpoints": [] }));
    world.slice_object(json!({
        "metadata": { "name": "b", "labels": { "kubernetes.io/service-name": "" } },
        "addressType": "IPv4", "endpoints": [],
    }));
    world.slice_object(json!({
        "metadata": { "name": "c", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "MAC", "endpoints": [],
    }));
    assert!(world.snapshot.slices.is_empty());
    let label = "metadata.labels[\"kubernetes.io/service-name\"]";
    assert_eq!(
        world.rejected(),
        [
            format!("EndpointSlice default/a: {label}"),
            format!("EndpointSlice default/b: {label}"),
            "EndpointSlice default/c: addressType".to_owned(),
        ]
    );
}

#[test]
fn fqdn_slice_is_ignored_without_a_word() {
    let mut world = World::new();
    web(&mut world).slice_object(json!({
        "metadata": { "name": "web-1", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "FQDN", "endpoints": [{ "addresses": ["example.com"] }],
    }));
    assert!(world.snapshot.slices.is_empty());
    assert_eq!(world.rejected(), [""; 0]);
}

#[test]
fn headless_label_on_a_live_slice_removes_its_endpoints() {
    let mut world = World::new();
    web(&mut world).slice("web-1", &["10.0.0.1"]);
    assert_sets(&world.port("default/web TCP IPv4"), &["10.0.0.1"], &[], true);
    world.slice_object(json!({
        "metadata": {
            "name": "web-1", "namespace": "default",
            "labels": { "kubernetes.io/service-name": "web", "service.kubernetes.io/headless": "" },
        },
        "addressType": "IPv4", "ports": [{ "name": "", "port": 8080 }], "endpoints": [endpoint("10.0.0.1")],
    }));
    assert_sets(&world.port("default/web TCP IPv4"), &[], &[], false);
}

#[test]
fn slice_may_come_before_its_service_and_survive_it() {
    let mut world = World::new();
    world.slice("web-1", &["10.0.0.1"]);
    assert_eq!((world.build().service_ports.len(), world.rejected().len()), (0, 0));
    web(&mut world);
    assert_sets(&world.port("default/web TCP IPv4"), &["10.0.0.1"], &[], true);
}

#[test]
fn slices_of_another_namespace_do_not_join() {
    let mut world = World::new();
    web(&mut world).slice_object(json!({
        "metadata": {
            "name": "web-1", "namespace": "other", "labels": { "kubernetes.io/service-name": "web" },
        },
        "addressType": "IPv4", "ports": [{ "name": "", "port": 8080 }], "endpoints": [endpoint("10.0.0.1")],
    }));
    assert_sets(&world.port("default/web TCP IPv4"), &[], &[], false);
}

#[test]
fn families_are_independent() {
    let mut world = World::new();
    let spec = json!({
        "clusterIP": CLUSTER_IP, "clusterIPs": [CLUSTER_IP, "fd00::10"], "ipFamilies": ["IPv4", "IPv6"],
        "ports": [{ "port": 80 }],
    });
    world
        .service("web", spec)
        .slice("web-1", &["10.0.0.1"])
        .slice("web-2", &["fd00:1::1 unready"]);
    assert_sets(&world.port("default/web TCP IPv4"), &["10.0.0.1"], &[], true);
    assert_sets(&world.port("default/web TCP IPv6"), &[], &[], false);
}

#[test]
fn mapped_address_in_an_ipv6_slice_is_refused() {
    let mut world = World::new();
    world.slice("web-1", &["::ffff:10.0.0.1"]);
    assert_eq!(
        world.rejected(),
        ["EndpointSlice default/web-1: endpoints[0].addresses[0]"]
    );
}

#[test]
fn absent_conditions_mean_ready_serving_and_not_terminating() {
    let mut world = World::new();
    web(&mut world).slice_of(
        "web",
        "web-1",
        &[json!({ "name": "", "port": 1 })],
        vec![json!({ "addresses": ["10.0.0.1"] })],
    );
    let conditions = world
        .port("default/web TCP IPv4")
        .backends
        .values()
        .next()
        .unwrap()
        .conditions;
    assert_eq!(
        conditions,
        Conditions {
            ready: true,
            serving: true,
            terminating: false
        }
    );
}

#[test]
fn serving_defaults_to_true_even_when_not_ready() {
    let mut world = World::new();
    web(&mut world).slice("web-1", &["10.0.0.1 unready terminating"]);
    assert_sets(&world.port("default/web TCP IPv4"), &["10.0.0.1"], &[], true);
}
