//! Traffic policies and the fallback to terminating endpoints: kube-proxy's `TestCategorizeEndpoints` rows about policy,
//! `TestInternalTrafficPolicy`, `TestTerminatingEndpointsTrafficPolicy{Local,Cluster}` and `TestNoEndpointsReject`.

use super::*;

const CLUSTER: &str = "Cluster";
const LOCAL: &str = "Local";
const REFUSED: WhenEmpty = WhenEmpty::Reject;
const DROPPED: WhenEmpty = WhenEmpty::Drop;

/// The one port of a NodePort Service with these policies and endpoints.
#[track_caller]
fn with_node_port(internal: &str, external: &str, endpoints: &[&str]) -> ServicePort {
    let spec = json!({
        "type": "NodePort", "clusterIP": CLUSTER_IP, "ports": [{ "port": 80, "nodePort": 30080 }],
        "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
    });
    World::new()
        .service("web", spec)
        .slice("web-1", endpoints)
        .port("default/web TCP IPv4")
}

/// The one port of a Service that only has a ClusterIP, although its type would allow more.
#[track_caller]
fn internal_only(internal: &str, external: &str, endpoints: &[&str]) -> ServicePort {
    let spec = json!({
        "type": "NodePort", "clusterIP": CLUSTER_IP, "ports": [{ "port": 80 }],
        "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
    });
    World::new()
        .service("web", spec)
        .slice("web-1", endpoints)
        .port("default/web TCP IPv4")
}

fn cluster(when_empty: WhenEmpty) -> Choice {
    Choice {
        set: BackendSet::Cluster,
        when_empty,
    }
}

fn local(when_empty: WhenEmpty) -> Choice {
    Choice {
        set: BackendSet::Local,
        when_empty,
    }
}

/// Asserts what ClusterIP traffic, outside traffic and inside traffic to the other frontends gets.
#[track_caller]
fn assert_choices(port: &ServicePort, internal: Choice, external: Choice) {
    assert_eq!(port.internal, internal, "internal");
    assert_eq!(port.external, external, "external");
    assert_eq!(port.external_from_inside, cluster(REFUSED), "external from inside");
}

#[test]
fn policy_cluster_uses_ready_endpoints_of_all_nodes() {
    let port = with_node_port(
        CLUSTER,
        CLUSTER,
        &["10.0.0.1 on=node-a", "10.0.0.2 on=node-b", "10.0.0.3 unready"],
    );
    assert_sets(&port, &["10.0.0.1", "10.0.0.2"], &[], true);
    assert_choices(&port, cluster(REFUSED), cluster(REFUSED));
}

#[test]
fn internal_local_with_empty_endpoints_has_nothing_and_rejects() {
    let port = internal_only(LOCAL, CLUSTER, &[]);
    assert_sets(&port, &[], &[], false);
    assert_choices(&port, local(REFUSED), cluster(REFUSED));
}

#[test]
fn internal_local_with_all_endpoints_remote_drops() {
    let port = internal_only(LOCAL, CLUSTER, &["10.0.0.1 on=node-b", "10.0.0.2 on=node-b"]);
    assert_sets(&port, &[], &[], true);
    assert_choices(&port, local(DROPPED), cluster(REFUSED));
}

#[test]
fn internal_local_with_all_endpoints_local_uses_all() {
    let port = internal_only(LOCAL, CLUSTER, &["10.0.0.1 on=node-a", "10.0.0.2 on=node-a"]);
    assert_sets(&port, &[], &["10.0.0.1", "10.0.0.2"], true);
}

#[test]
fn internal_local_with_some_endpoints_local_uses_those_only() {
    let port = internal_only(LOCAL, CLUSTER, &["10.0.0.1 on=node-a", "10.0.0.2 on=node-b"]);
    assert_sets(&port, &[], &["10.0.0.1"], true);
}

#[test]
fn no_cluster_endpoints_for_internal_local_service_without_external_frontends() {
    let port = internal_only(LOCAL, CLUSTER, &["10.0.0.1 on=node-a", "10.0.0.2 on=node-b"]);
    assert_eq!(addresses(&port, BackendSet::Cluster), [""; 0]);
    assert_eq!(
        port.backends
            .values()
            .filter_map(|backend| backend.why_unused)
            .collect::<Vec<_>>(),
        [WhyUnused::NotLocal]
    );
}

#[test]
fn cluster_policy_with_no_endpoint_ready_rejects() {
    let port = with_node_port(
        CLUSTER,
        CLUSTER,
        &["10.0.0.1 on=node-a unready", "10.0.0.2 on=node-b unready"],
    );
    assert_sets(&port, &[], &[], false);
    assert_choices(&port, cluster(REFUSED), cluster(REFUSED));
}

#[test]
fn cluster_policy_with_some_endpoints_ready_uses_those() {
    let port = with_node_port(CLUSTER, CLUSTER, &["10.0.0.1 on=node-a unready", "10.0.0.2 on=node-b"]);
    assert_sets(&port, &["10.0.0.2"], &[], true);
}

#[test]
fn cluster_policy_with_all_endpoints_terminating_uses_those_that_serve() {
    let port = with_node_port(
        CLUSTER,
        CLUSTER,
        &[
            "10.0.0.1 on=node-a unready terminating",
            "10.0.0.2 on=node-b unready terminating",
            "10.0.0.3 on=node-b unready not-serving terminating",
        ],
    );
    assert_sets(&port, &["10.0.0.1", "10.0.0.2"], &[], true);
}

#[test]
fn terminating_endpoints_are_not_used_while_one_is_ready() {
    let port = with_node_port(
        CLUSTER,
        CLUSTER,
        &["10.0.0.1 on=node-a unready terminating", "10.0.0.2 on=node-b"],
    );
    assert_sets(&port, &["10.0.0.2"], &[], true);
    let (_, terminating) = port.backends.first_key_value().unwrap();
    assert_eq!(terminating.why_unused, Some(WhyUnused::Terminating));
}

#[test]
fn internal_local_external_cluster_with_some_endpoints_local() {
    let port = with_node_port(LOCAL, CLUSTER, &["10.0.0.1 on=node-a", "10.0.0.2 on=node-b"]);
    assert_sets(&port, &["10.0.0.1", "10.0.0.2"], &["10.0.0.1"], true);
    assert_choices(&port, local(DROPPED), cluster(REFUSED));
}

#[test]
fn internal_cluster_external_local_with_some_endpoints_local() {
    let port = with_node_port(CLUSTER, LOCAL, &["10.0.0.1 on=node-a", "10.0.0.2 on=node-b"]);
    assert_sets(&port, &["10.0.0.1", "10.0.0.2"], &["10.0.0.1"], true);
    assert_choices(&port, cluster(REFUSED), local(DROPPED));
}

#[test]
fn both_local_with_some_endpoints_local() {
    let port = with_node_port(LOCAL, LOCAL, &["10.0.0.1 on=node-a", "10.0.0.2 on=node-b"]);
    assert_sets(&port, &["10.0.0.1", "10.0.0.2"], &["10.0.0.1"], true);
    assert_choices(&port, local(DROPPED), local(DROPPED));
}

#[test]
fn both_local_with_all_endpoints_remote_drops_but_serves_the_inside() {
    let port = with_node_port(LOCAL, LOCAL, &["10.0.0.1 on=node-b", "10.0.0.2 on=node-b"]);
    assert_sets(&port, &["10.0.0.1", "10.0.0.2"], &[], true);
    assert_choices(&port, local(DROPPED), local(DROPPED));
}

#[test]
fn both_local_with_all_endpoints_remote_and_terminating() {
    let port = with_node_port(LOCAL, LOCAL, &["10.0.0.1 on=node-b unready terminating"]);
    assert_sets(&port, &["10.0.0.1"], &[], true);
    assert_choices(&port, local(DROPPED), local(DROPPED));
}

#[test]
fn external_local_with_terminating_endpoints_uses_the_local_ones_that_serve() {
    let port = with_node_port(
        CLUSTER,
        LOCAL,
        &[
            "10.0.0.1 on=node-a unready terminating",
            "10.0.0.2 on=node-a unready not-serving terminating",
            "10.0.0.3 on=node-b unready terminating",
            "10.0.0.4 on=node-b unready not-serving terminating",
        ],
    );
    assert_sets(&port, &["10.0.0.1", "10.0.0.3"], &["10.0.0.1"], true);
}

#[test]
fn external_local_falls_back_alone_when_only_remote_endpoints_are_ready() {
    let port = with_node_port(
        CLUSTER,
        LOCAL,
        &["10.0.0.1 on=node-a unready terminating", "10.0.0.2 on=node-b"],
    );
    assert_sets(&port, &["10.0.0.2"], &["10.0.0.1"], true);
}

#[test]
fn external_local_with_terminating_only_on_another_node_drops() {
    let port = with_node_port(CLUSTER, LOCAL, &["10.0.0.1 on=node-b unready terminating"]);
    assert_sets(&port, &["10.0.0.1"], &[], true);
    assert_choices(&port, cluster(REFUSED), local(DROPPED));
}

#[test]
fn no_usable_endpoints_on_any_node_rejects_whatever_the_policy() {
    let port = with_node_port(
        LOCAL,
        LOCAL,
        &[
            "10.0.0.1 on=node-a unready not-serving terminating",
            "10.0.0.2 on=node-b unready not-serving terminating",
        ],
    );
    assert_sets(&port, &[], &[], false);
    assert_choices(&port, local(REFUSED), local(REFUSED));
}

#[test]
fn external_policy_is_ignored_when_not_externally_accessible() {
    let port = internal_only(CLUSTER, LOCAL, &["10.0.0.1 on=node-a", "10.0.0.2 on=node-b"]);
    assert_sets(&port, &["10.0.0.1", "10.0.0.2"], &[], true);
    assert_choices(&port, cluster(REFUSED), cluster(REFUSED));
}

#[test]
fn single_endpoint_neither_ready_nor_serving_nor_terminating_is_unused() {
    let port = with_node_port(LOCAL, LOCAL, &["10.0.0.1 on=node-a unready not-serving"]);
    assert_sets(&port, &[], &[], false);
    assert_eq!(
        port.backends.values().next().unwrap().why_unused,
        Some(WhyUnused::NotReady)
    );
}

#[test]
fn unready_but_serving_endpoint_is_never_used() {
    let port = with_node_port(LOCAL, LOCAL, &["10.0.0.1 on=node-a unready"]);
    assert_sets(&port, &[], &[], false);
}

#[test]
fn ready_endpoint_is_used_whatever_serving_and_terminating_say() {
    let port = with_node_port(LOCAL, LOCAL, &["10.0.0.1 on=node-a not-serving terminating"]);
    assert_sets(&port, &["10.0.0.1"], &["10.0.0.1"], true);
}

#[test]
fn endpoint_without_a_node_is_never_local() {
    let port = with_node_port(LOCAL, LOCAL, &["10.0.0.1"]);
    assert_sets(&port, &["10.0.0.1"], &[], true);
    assert!(!port.backends.values().next().unwrap().local);
}

#[test]
fn external_local_is_honoured_by_type_cluster_ip_only_with_external_ips() {
    let mut world = World::new();
    world.slice("web-1", &["10.0.0.1 on=node-b"]);
    let spec = json!({ "clusterIP": CLUSTER_IP, "ports": [{ "port": 80 }], "externalTrafficPolicy": "Local" });
    world.service("web", spec.clone());
    assert_eq!(
        world.port("default/web TCP IPv4").external_policy,
        TrafficPolicy::Cluster
    );
    let mut spec = spec;
    spec["externalIPs"] = json!(["203.0.113.1"]);
    world.service("web", spec);
    let port = world.port("default/web TCP IPv4");
    assert_eq!(port.external_policy, TrafficPolicy::Local);
    assert_choices(&port, cluster(REFUSED), local(DROPPED));
}

#[test]
fn known_endpoints_are_kept_although_unused() {
    let port = with_node_port(CLUSTER, CLUSTER, &["10.0.0.1 on=node-b in=zone-b", "10.0.0.2 unready"]);
    let states: Vec<_> = port
        .backends
        .values()
        .map(|backend| (backend.in_cluster_set, backend.why_unused))
        .collect();
    assert_eq!(states, [(true, None), (false, Some(WhyUnused::NotReady))]);
    let first = port.backends.values().next().unwrap();
    assert_eq!(
        (first.node_name.as_deref(), first.zone.as_deref()),
        (Some("node-b"), Some("zone-b"))
    );
}
