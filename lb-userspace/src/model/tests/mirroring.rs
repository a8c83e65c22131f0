//! Legacy Endpoints as the mirroring controller would turn them into slices.

use super::*;

fn endpoints(subsets: &Value) -> Value {
    json!({ "metadata": { "name": "web", "namespace": "default" }, "subsets": subsets })
}

fn spec() -> Value {
    json!({ "clusterIPs": [CLUSTER_IP, "fd00::10"], "ports": [{ "port": 80 }] })
}

#[test]
fn subsets_become_slices_of_each_family() {
    let mut world = World::new();
    world.service("web", spec()).endpoints(endpoints(&json!([{
        "addresses": [{ "ip": "10.0.0.1", "nodeName": NODE }, { "ip": "fd00:1::1" }],
        "notReadyAddresses": [{ "ip": "10.0.0.2" }],
        "ports": [{ "port": 8080 }],
    }])));
    let port = world.port("default/web TCP IPv4");
    assert_sets(&port, &["10.0.0.1"], &[], true);
    let states: Vec<_> = port
        .backends
        .values()
        .map(|backend| (backend.conditions.ready, backend.local))
        .collect();
    assert_eq!(states, [(true, true), (false, false)]);
    assert_sets(&world.port("default/web TCP IPv6"), &["fd00:1::1"], &[], true);
    assert_eq!(world.rejected(), [""; 0]);
}

#[test]
fn several_subsets_with_one_address_reach_both_ports() {
    let mut world = World::new();
    let ports = json!([{ "name": "a", "port": 80 }, { "name": "b", "port": 81 }]);
    world
        .service("web", json!({ "clusterIP": CLUSTER_IP, "ports": ports }))
        .endpoints(endpoints(&json!([
            { "addresses": [{ "ip": "10.0.0.1" }], "ports": [{ "name": "a", "port": 8080 }] },
            { "addresses": [{ "ip": "10.0.0.1" }], "ports": [{ "name": "b", "port": 9090 }] },
        ])));
    for (port, expected) in [("a", "10.0.0.1:8080"), ("b", "10.0.0.1:9090")] {
        let found = world.port(&format!("default/web:{port} TCP IPv4"));
        assert_eq!(
            found.backends.keys().map(ToString::to_string).collect::<Vec<_>>(),
            [expected]
        );
    }
}

#[test]
fn objects_that_opt_out_are_not_mirrored() {
    let subsets = json!([{ "addresses": [{ "ip": "10.0.0.1" }], "ports": [{ "port": 8080 }] }]);
    for metadata in [
        json!({ "name": "web", "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } }),
        json!({ "name": "web", "annotations": { "control-plane.alpha.kubernetes.io/leader": "{}" } }),
    ] {
        let mut world = World::new();
        world.endpoints(json!({ "metadata": metadata, "subsets": subsets }));
        assert!(world.snapshot.slices.is_empty());
    }
}

#[test]
fn endpoints_of_a_service_with_a_selector_are_not_used_and_told_so_when_there_is_no_slice() {
    let mut with_selector = spec();
    with_selector["selector"] = json!({ "app": "web" });
    let mut world = World::new();
    world.service("web", with_selector);
    world.endpoints(endpoints(
        &json!([{ "addresses": [{ "ip": "10.0.0.1" }], "ports": [{ "port": 8080 }] }]),
    ));
    assert_sets(&world.port("default/web TCP IPv4"), &[], &[], false);
    assert_eq!(world.rejected(), ["Endpoints default/web: subsets"]);
    world.slice("web-1", &["10.0.0.2"]);
    assert_sets(&world.port("default/web TCP IPv4"), &["10.0.0.2"], &[], true);
    assert_eq!(world.rejected(), [""; 0]);
}

#[test]
fn wrong_addresses_and_ports_are_rejected_and_the_others_stay() {
    let mut world = World::new();
    world.service("web", spec()).endpoints(endpoints(&json!([{
        "addresses": [{ "ip": "x" }, { "ip": "10.0.0.1" }],
        "notReadyAddresses": [{ "ip": "127.0.0.1" }],
        "ports": [{ "port": 0 }, { "port": 8080 }],
    }])));
    assert_sets(&world.port("default/web TCP IPv4"), &["10.0.0.1"], &[], true);
    assert_eq!(
        world.rejected(),
        [
            "Endpoints default/web: subsets[0].ports[0].port",
            "Endpoints default/web: subsets[0].addresses[0].ip",
            "Endpoints default/web: subsets[0].notReadyAddresses[0].ip",
        ]
    );
}
