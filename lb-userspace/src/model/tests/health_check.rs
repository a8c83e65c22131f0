//! Facts for the health check servers: `TestHealthCheckNodePortWhenTerminating` and the gates on type and policy.

use super::*;

fn spec(kind: &str, external: &str, port: u16) -> Value {
    json!({
        "type": kind, "clusterIP": CLUSTER_IP, "externalTrafficPolicy": external, "healthCheckNodePort": port,
        "ports": [{ "name": "http", "port": 80 }, { "name": "https", "port": 443 }],
    })
}

#[track_caller]
fn checks(spec: Value, endpoints: &[&str]) -> BTreeMap<String, (u16, Vec<(Family, usize)>)> {
    let mut world = World::new();
    let ports = [
        json!({ "name": "http", "port": 8080 }),
        json!({ "name": "https", "port": 8443 }),
    ];
    let endpoints = endpoints.iter().map(|text| endpoint(text)).collect();
    world.service("web", spec).slice_of("web", "web-1", &ports, endpoints);
    let found = world.build().health_checks;
    found
        .iter()
        .map(|(key, check)| {
            (
                key.to_string(),
                (check.port, check.local_endpoints.clone().into_iter().collect()),
            )
        })
        .collect()
}

fn one(port: u16, count: usize) -> BTreeMap<String, (u16, Vec<(Family, usize)>)> {
    BTreeMap::from([("default/web".to_owned(), (port, vec![(Family::V4, count)]))])
}

#[test]
fn distinct_addresses_of_local_ready_endpoints_are_counted_over_all_ports() {
    let endpoints = [
        "10.0.0.1 on=node-a",
        "10.0.0.2 on=node-a",
        "10.0.0.3 on=node-b",
        "10.0.0.4 on=node-a unready",
    ];
    assert_eq!(checks(spec("LoadBalancer", "Local", 32000), &endpoints), one(32000, 2));
}

#[test]
fn only_terminating_endpoints_count_as_none() {
    let endpoints = [
        "10.0.0.1 on=node-a unready terminating",
        "10.0.0.2 on=node-a unready terminating",
    ];
    assert_eq!(checks(spec("LoadBalancer", "Local", 32000), &endpoints), one(32000, 0));
}

#[test]
fn other_types_and_policies_have_none() {
    for (kind, external) in [
        ("LoadBalancer", "Cluster"),
        ("NodePort", "Local"),
        ("ClusterIP", "Local"),
    ] {
        assert_eq!(
            checks(spec(kind, external, 32000), &[]),
            BTreeMap::new(),
            "{kind} {external}"
        );
    }
}

#[test]
fn missing_port_is_rejected() {
    let mut world = World::new();
    world.service("web", spec("LoadBalancer", "Local", 0));
    assert_eq!(world.rejected(), ["Service default/web: spec.healthCheckNodePort"]);
    assert!(world.build().health_checks.is_empty());
}

#[test]
fn contested_port_goes_to_the_first_service() {
    let mut world = World::new();
    let mut second = spec("LoadBalancer", "Local", 32000);
    second["clusterIP"] = json!("10.96.0.11");
    world
        .service("web", second)
        .service("api", spec("LoadBalancer", "Local", 32000));
    let owners: Vec<String> = world.build().health_checks.keys().map(ToString::to_string).collect();
    assert_eq!(owners, ["default/api"]);
    assert_eq!(world.rejected(), ["Service default/web: spec.healthCheckNodePort"]);
}
