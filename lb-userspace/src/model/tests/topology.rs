//! Topology hints: kube-proxy's `TestCategorizeEndpoints` rows about topology (KEP-2433, KEP-3015, KEP-4444).

use super::*;

/// The port of a NodePort Service seen from `zone`.
#[track_caller]
fn seen_from(zone: Option<&str>, policies: (&str, &str), endpoints: &[&str]) -> ServicePort {
    let spec = json!({
        "type": "NodePort", "clusterIP": CLUSTER_IP, "ports": [{ "port": 80, "nodePort": 30080 }],
        "internalTrafficPolicy": policies.0, "externalTrafficPolicy": policies.1,
    });
    let mut world = World::new();
    world.node(zone, &[]).service("web", spec).slice("web-1", endpoints);
    world.port("default/web TCP IPv4")
}

const BOTH_CLUSTER: (&str, &str) = ("Cluster", "Cluster");
const HINTED: [&str; 4] = [
    "10.0.0.1 zones=zone-a",
    "10.0.0.2 zones=zone-b",
    "10.0.0.3 zones=zone-b",
    "10.0.0.4 zones=zone-a",
];
const ALL: [&str; 4] = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"];

#[test]
fn topology_is_used_since_all_endpoints_have_hints() {
    let port = seen_from(Some("zone-a"), BOTH_CLUSTER, &HINTED);
    assert_sets(&port, &["10.0.0.1", "10.0.0.4"], &[], true);
    assert_eq!(port.topology, Topology::SameZone);
    let elsewhere: Vec<_> = port
        .backends
        .values()
        .filter_map(|backend| backend.why_unused)
        .collect();
    assert_eq!(elsewhere, [WhyUnused::OtherZone, WhyUnused::OtherZone]);
}

#[test]
fn external_local_ignores_topology_for_local_endpoints() {
    let endpoints = ["10.0.0.1 zones=zone-a on=node-b", "10.0.0.2 zones=zone-b on=node-a"];
    let port = seen_from(Some("zone-a"), ("Cluster", "Local"), &endpoints);
    assert_sets(&port, &["10.0.0.1"], &["10.0.0.2"], true);
}

#[test]
fn internal_local_ignores_topology_for_local_endpoints() {
    let endpoints = ["10.0.0.1 zones=zone-a on=node-b", "10.0.0.2 zones=zone-b on=node-a"];
    let port = seen_from(Some("zone-a"), ("Local", "Cluster"), &endpoints);
    assert_sets(&port, &["10.0.0.1"], &["10.0.0.2"], true);
}

#[test]
fn empty_node_labels_turn_filtering_off() {
    let port = seen_from(None, BOTH_CLUSTER, &HINTED);
    assert_sets(&port, &ALL, &[], true);
    assert_eq!(port.topology, Topology::Off);
}

#[test]
fn empty_zone_label_turns_filtering_off() {
    assert_sets(&seen_from(Some(""), BOTH_CLUSTER, &HINTED), &ALL, &[], true);
}

#[test]
fn node_in_a_zone_that_no_endpoint_is_hinted_for_uses_all() {
    assert_sets(&seen_from(Some("zone-c"), BOTH_CLUSTER, &HINTED), &ALL, &[], true);
}

#[test]
fn unready_endpoint_of_the_zone_is_left_out() {
    let endpoints = [
        "10.0.0.1 zones=zone-a unready",
        "10.0.0.2 zones=zone-b",
        "10.0.0.4 zones=zone-a",
    ];
    assert_sets(
        &seen_from(Some("zone-a"), BOTH_CLUSTER, &endpoints),
        &["10.0.0.4"],
        &[],
        true,
    );
}

#[test]
fn only_unready_endpoints_in_the_zone_turn_filtering_off() {
    let endpoints = [
        "10.0.0.1 zones=zone-a unready",
        "10.0.0.2 zones=zone-b",
        "10.0.0.4 zones=zone-a unready",
    ];
    assert_sets(
        &seen_from(Some("zone-a"), BOTH_CLUSTER, &endpoints),
        &["10.0.0.2"],
        &[],
        true,
    );
}

#[test]
fn unready_endpoint_without_hints_does_not_matter() {
    let endpoints = ["10.0.0.1 zones=zone-a", "10.0.0.2 zones=zone-b", "10.0.0.3 unready"];
    assert_sets(
        &seen_from(Some("zone-a"), BOTH_CLUSTER, &endpoints),
        &["10.0.0.1"],
        &[],
        true,
    );
}

#[test]
fn one_endpoint_without_hints_turns_filtering_off() {
    let endpoints = ["10.0.0.1 zones=zone-a", "10.0.0.2 zones=zone-b", "10.0.0.3"];
    assert_sets(
        &seen_from(Some("zone-a"), BOTH_CLUSTER, &endpoints),
        &["10.0.0.1", "10.0.0.2", "10.0.0.3"],
        &[],
        true,
    );
}

#[test]
fn several_hints_per_endpoint_all_count() {
    let endpoints = [
        "10.0.0.1 zones=zone-a,zone-b",
        "10.0.0.2 zones=zone-b,zone-c",
        "10.0.0.3 zones=zone-d",
    ];
    assert_sets(
        &seen_from(Some("zone-c"), BOTH_CLUSTER, &endpoints),
        &["10.0.0.2"],
        &[],
        true,
    );
    assert_sets(
        &seen_from(Some("zone-b"), BOTH_CLUSTER, &endpoints),
        &["10.0.0.1", "10.0.0.2"],
        &[],
        true,
    );
}

#[test]
fn same_node_is_preferred_when_available() {
    let endpoints = [
        "10.0.0.1 nodes=node-a zones=zone-a",
        "10.0.0.2 nodes=node-b zones=zone-a",
    ];
    let port = seen_from(Some("zone-a"), BOTH_CLUSTER, &endpoints);
    assert_sets(&port, &["10.0.0.1"], &[], true);
    assert_eq!(port.topology, Topology::SameNode);
    assert_eq!(
        port.backends.values().next_back().unwrap().why_unused,
        Some(WhyUnused::OtherNode)
    );
}

#[test]
fn same_node_looks_at_the_hint_and_not_at_where_the_endpoint_is() {
    let endpoints = ["10.0.0.1 nodes=node-a on=node-b", "10.0.0.2 nodes=node-b on=node-a"];
    assert_sets(&seen_from(None, BOTH_CLUSTER, &endpoints), &["10.0.0.1"], &[], true);
}

#[test]
fn same_node_is_ignored_if_some_endpoints_are_unhinted() {
    let endpoints = ["10.0.0.1 nodes=node-a zones=zone-a", "10.0.0.2"];
    let port = seen_from(Some("zone-a"), BOTH_CLUSTER, &endpoints);
    assert_sets(&port, &["10.0.0.1", "10.0.0.2"], &[], true);
    assert_eq!(port.topology, Topology::Off);
}

#[test]
fn same_node_falls_back_to_same_zone_if_there_is_no_endpoint_for_the_node() {
    let endpoints = [
        "10.0.0.1 nodes=node-b zones=zone-a",
        "10.0.0.2 nodes=node-c zones=zone-b",
    ];
    let port = seen_from(Some("zone-a"), BOTH_CLUSTER, &endpoints);
    assert_sets(&port, &["10.0.0.1"], &[], true);
    assert_eq!(port.topology, Topology::SameZone);
}

#[test]
fn conflicting_topology_and_locality_keep_both_sets() {
    let endpoints = [
        "10.0.0.1 zones=zone-a on=node-b",
        "10.0.0.2 zones=zone-b on=node-a",
        "10.0.0.3 zones=zone-b on=node-b",
    ];
    let port = seen_from(Some("zone-a"), ("Cluster", "Local"), &endpoints);
    assert_sets(&port, &["10.0.0.1"], &["10.0.0.2"], true);
    assert_eq!(port.backends.len(), 3);
}

#[test]
fn fallback_to_terminating_endpoints_does_not_look_at_hints() {
    let endpoints = [
        "10.0.0.1 zones=zone-a unready terminating",
        "10.0.0.2 zones=zone-b unready terminating",
    ];
    assert_sets(
        &seen_from(Some("zone-a"), BOTH_CLUSTER, &endpoints),
        &["10.0.0.1", "10.0.0.2"],
        &[],
        true,
    );
}

#[test]
fn zone_of_an_endpoint_is_no_hint() {
    let endpoints = ["10.0.0.1 in=zone-a", "10.0.0.2 in=zone-b"];
    assert_sets(
        &seen_from(Some("zone-a"), BOTH_CLUSTER, &endpoints),
        &["10.0.0.1", "10.0.0.2"],
        &[],
        true,
    );
}
