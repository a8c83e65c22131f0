//! Which frontends a Service has and who gets a contested one: `TestBuildServiceMap*`, `TestClusterIPGeneral` (as far as it
//! is about keys), `TestLoadBalancerIngressRouteTypeProxy`, servicechangetracker's family filtering.

use super::*;

/// All frontends as `SERVICE KIND ADDRESS:PORT`.
fn frontends(world: &World) -> Vec<String> {
    let shown = |key: &ServicePortKey, frontend: &Frontend| match frontend.address {
        Some(address) => format!(
            "{key} {:?} {}",
            frontend.kind,
            EndpointAddress {
                address,
                port: frontend.port
            }
        ),
        None => format!("{key} {:?} {}", frontend.kind, frontend.port),
    };
    let state = world.build();
    let all = state
        .service_ports
        .iter()
        .flat_map(|(key, port)| port.frontends.iter().map(move |frontend| shown(key, frontend)));
    all.collect()
}

#[track_caller]
fn world(services: &[(&str, Value)]) -> World {
    let mut world = World::new();
    for (name, object) in services {
        let mut object = object.clone();
        object["metadata"]["name"] = json!(name);
        world.service_object(object);
    }
    world
}

fn load_balancer(ingress: &Value) -> Value {
    json!({
        "spec": { "type": "LoadBalancer", "clusterIP": CLUSTER_IP, "ports": [{ "port": 80, "nodePort": 30080 }] },
        "status": { "loadBalancer": { "ingress": ingress } },
    })
}

#[test]
fn every_kind_of_frontend_is_found() {
    let mut object = load_balancer(&json!([{ "ip": "192.0.2.1" }]));
    object["spec"]["externalIPs"] = json!(["203.0.113.1"]);
    let world = world(&[("web", object)]);
    assert_eq!(
        frontends(&world),
        [
            "default/web TCP IPv4 ClusterIp 10.96.0.10:80",
            "default/web TCP IPv4 LoadBalancerIp 192.0.2.1:80",
            "default/web TCP IPv4 ExternalIp 203.0.113.1:80",
            "default/web TCP IPv4 NodePort 30080",
        ]
    );
    assert_eq!(world.rejected(), [""; 0]);
    let owner = ObjectKey::new("default", "web");
    assert_eq!(
        world.build().cluster_ips,
        OrdMap::from_iter([(CLUSTER_IP.parse().unwrap(), owner)])
    );
}

#[test]
fn protocols_on_one_port_number_are_separate() {
    let world = world(&[(
        "dns",
        json!({ "spec": { "clusterIP": CLUSTER_IP, "ports": [
        { "name": "tcp", "port": 53, "protocol": "TCP", "nodePort": 30053 },
        { "name": "udp", "port": 53, "protocol": "UDP", "nodePort": 30053 },
        { "name": "sctp", "port": 53, "protocol": "SCTP" },
    ] } }),
    )]);
    assert_eq!(
        frontends(&world),
        [
            "default/dns:sctp SCTP IPv4 ClusterIp 10.96.0.10:53",
            "default/dns:tcp TCP IPv4 ClusterIp 10.96.0.10:53",
            "default/dns:tcp TCP IPv4 NodePort 30053",
            "default/dns:udp UDP IPv4 ClusterIp 10.96.0.10:53",
            "default/dns:udp UDP IPv4 NodePort 30053",
        ]
    );
    assert_eq!(world.rejected(), [""; 0]);
}

#[test]
fn ip_mode_proxy_and_host_names_are_not_captured() {
    let world = world(&[(
        "web",
        load_balancer(&json!([
            { "ip": "192.0.2.1", "ipMode": "Proxy" },
            { "ip": "192.0.2.2", "ipMode": "VIP" },
            { "ip": "192.0.2.3" },
            { "hostname": "lb.example.com" },
        ])),
    )]);
    let captured: Vec<String> = frontends(&world)
        .into_iter()
        .filter(|text| text.contains("LoadBalancerIp"))
        .collect();
    assert_eq!(
        captured,
        [
            "default/web TCP IPv4 LoadBalancerIp 192.0.2.2:80",
            "default/web TCP IPv4 LoadBalancerIp 192.0.2.3:80",
        ]
    );
    assert_eq!(world.rejected(), [""; 0]);
}

#[test]
fn headless_external_name_and_foreign_services_have_none() {
    let port = json!([{ "port": 80 }]);
    let world = world(&[
        ("headless", json!({ "spec": { "clusterIP": "None", "ports": port } })),
        (
            "name",
            json!({ "spec": { "type": "ExternalName", "clusterIP": CLUSTER_IP, "externalName": "x", "ports": port } }),
        ),
        (
            "foreign",
            json!({
                "metadata": { "labels": { "service.kubernetes.io/service-proxy-name": "" } },
                "spec": { "clusterIP": CLUSTER_IP, "ports": port },
            }),
        ),
    ]);
    let why: Vec<_> = world
        .snapshot
        .services
        .values()
        .map(|service| service.not_proxied)
        .collect();
    assert_eq!(
        why,
        [
            Some(NotProxied::OtherProxy),
            Some(NotProxied::Headless),
            Some(NotProxied::ExternalName)
        ]
    );
    let state = world.build();
    assert_eq!(
        (
            state.service_ports.len(),
            state.cluster_ips.len(),
            world.rejected().len()
        ),
        (0, 0, 0)
    );
}

#[test]
fn service_without_an_address_is_rejected() {
    let world = world(&[(
        "web",
        json!({ "spec": { "type": "NodePort", "ports": [{ "port": 80, "nodePort": 30080 }] } }),
    )]);
    assert_eq!(frontends(&world), [""; 0]);
    assert_eq!(world.rejected(), ["Service default/web: spec.clusterIP"]);
}

#[test]
fn family_without_a_cluster_ip_is_invisible_with_its_node_port_and_external_ips() {
    let world = world(&[(
        "web",
        json!({
            "spec": {
                "type": "LoadBalancer", "clusterIP": "fd00::10", "clusterIPs": ["fd00::10"], "ipFamilies": ["IPv6"],
                "externalIPs": ["203.0.113.1", "2001:db8::1"], "ports": [{ "port": 80, "nodePort": 30080 }],
            },
            "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }, { "ip": "2001:db8::2" }] } },
        }),
    )]);
    assert_eq!(
        frontends(&world),
        [
            "default/web TCP IPv6 ClusterIp [fd00::10]:80",
            "default/web TCP IPv6 LoadBalancerIp [2001:db8::2]:80",
            "default/web TCP IPv6 ExternalIp [2001:db8::1]:80",
            "default/web TCP IPv6 NodePort 30080",
        ]
    );
}

#[test]
fn families_follow_the_order_of_ip_families() {
    let world = world(&[(
        "web",
        json!({ "spec": {
        "clusterIP": "fd00::10", "clusterIPs": ["fd00::10", CLUSTER_IP], "ipFamilies": ["IPv6", "IPv4"],
        "ports": [{ "port": 80 }],
    } }),
    )]);
    assert_eq!(
        frontends(&world),
        [
            "default/web TCP IPv4 ClusterIp 10.96.0.10:80",
            "default/web TCP IPv6 ClusterIp [fd00::10]:80",
        ]
    );
}

#[test]
fn family_that_does_not_fit_its_address_is_rejected_alone() {
    let world = world(&[(
        "web",
        json!({ "spec": {
        "clusterIPs": [CLUSTER_IP, "10.96.0.11"], "ipFamilies": ["IPv4", "IPv6"], "ports": [{ "port": 80 }],
    } }),
    )]);
    assert_eq!(frontends(&world), ["default/web TCP IPv4 ClusterIp 10.96.0.10:80"]);
    assert_eq!(world.rejected(), ["Service default/web: spec.ipFamilies[1]"]);
}

#[test]
fn external_ips_can_be_switched_off() {
    let mut world = world(&[(
        "web",
        json!({ "spec": {
        "clusterIP": CLUSTER_IP, "externalIPs": ["203.0.113.1"], "ports": [{ "port": 80 }],
    } }),
    )]);
    world.config.allow_external_ips = false;
    assert_eq!(frontends(&world), ["default/web TCP IPv4 ClusterIp 10.96.0.10:80"]);
}

fn with_external_ip(cluster_ip: &str, created: Option<&str>) -> Value {
    let mut object = json!({ "spec": {
        "clusterIP": cluster_ip, "externalIPs": ["203.0.113.9", "203.0.113.1"], "ports": [{ "port": 80 }],
    } });
    if let Some(created) = created {
        object["metadata"]["creationTimestamp"] = json!(created);
    }
    object
}

#[track_caller]
fn assert_contested_external_ip(services: &[(&str, Value)], winner: &str, losers: &[&str]) {
    let world = world(services);
    let owners: Vec<String> = frontends(&world)
        .into_iter()
        .filter(|text| text.contains("203.0.113.1:"))
        .collect();
    assert_eq!(owners, [format!("default/{winner} TCP IPv4 ExternalIp 203.0.113.1:80")]);
    let rejections = world.build().rejections;
    let told: Vec<_> = rejections
        .iter()
        .filter(|rejection| rejection.field == "spec.externalIPs[1]")
        .collect();
    assert_eq!(
        told.iter().map(|rejection| &*rejection.object.name).collect::<Vec<_>>(),
        losers
    );
    for rejection in told {
        assert!(
            rejection.reason.contains(&format!("Service default/{winner}")),
            "{rejection}"
        );
    }
}

#[test]
fn contested_frontend_goes_to_the_oldest_service() {
    assert_contested_external_ip(
        &[
            ("a", with_external_ip("10.96.0.1", None)),
            ("b", with_external_ip("10.96.0.2", Some("2026-01-02T00:00:00Z"))),
            ("c", with_external_ip("10.96.0.3", Some("2026-01-01T00:00:00Z"))),
        ],
        "c",
        &["a", "b"],
    );
}

#[test]
fn contested_frontend_goes_to_the_first_by_name_among_equals() {
    assert_contested_external_ip(
        &[
            ("b", with_external_ip("10.96.0.2", None)),
            ("a", with_external_ip("10.96.0.1", None)),
        ],
        "a",
        &["b"],
    );
}

#[test]
fn loser_keeps_its_other_frontends() {
    let world = world(&[
        ("a", with_external_ip("10.96.0.1", None)),
        ("b", with_external_ip("10.96.0.2", None)),
    ]);
    assert!(frontends(&world).contains(&"default/b TCP IPv4 ClusterIp 10.96.0.2:80".to_owned()));
}

#[test]
fn other_ports_of_a_contested_address_are_free() {
    let mut other = with_external_ip("10.96.0.2", None);
    other["spec"]["ports"] = json!([{ "port": 81 }]);
    let world = world(&[("a", with_external_ip("10.96.0.1", None)), ("b", other)]);
    assert_eq!(world.rejected(), [""; 0]);
}

#[test]
fn cluster_ip_cannot_be_taken_by_an_older_external_ip() {
    let mut thief = with_external_ip("10.96.0.1", Some("2020-01-01T00:00:00Z"));
    thief["spec"]["externalIPs"] = json!([CLUSTER_IP]);
    let victim = json!({ "spec": { "clusterIP": CLUSTER_IP, "ports": [{ "port": 80 }] } });
    let world = world(&[("thief", thief), ("victim", victim)]);
    assert!(frontends(&world).contains(&"default/victim TCP IPv4 ClusterIp 10.96.0.10:80".to_owned()));
    assert_eq!(world.rejected(), ["Service default/thief: spec.externalIPs[0]"]);
}

#[test]
fn contested_node_port_is_decided_alike() {
    let node_port = |ip: &str| {
        json!({ "spec": {
        "type": "NodePort", "clusterIP": ip, "ports": [{ "port": 80, "nodePort": 30080 }],
    } })
    };
    let world = world(&[("b", node_port("10.96.0.2")), ("a", node_port("10.96.0.1"))]);
    assert_eq!(
        frontends(&world),
        [
            "default/a TCP IPv4 ClusterIp 10.96.0.1:80",
            "default/a TCP IPv4 NodePort 30080",
            "default/b TCP IPv4 ClusterIp 10.96.0.2:80",
        ]
    );
    assert_eq!(world.rejected(), ["Service default/b: spec.ports[0].nodePort"]);
}

#[test]
fn service_port_that_lost_every_frontend_does_not_appear() {
    let same = json!({ "spec": { "clusterIP": CLUSTER_IP, "ports": [{ "port": 80 }] } });
    let world = world(&[("a", same.clone()), ("b", same)]);
    assert_eq!(frontends(&world), ["default/a TCP IPv4 ClusterIp 10.96.0.10:80"]);
    assert_eq!(world.rejected(), ["Service default/b: spec.clusterIP"]);
}

#[test]
fn two_ports_of_one_service_cannot_share_a_number() {
    let world = world(&[(
        "a",
        json!({ "spec": { "clusterIP": CLUSTER_IP, "ports": [
        { "name": "x", "port": 80 }, { "name": "y", "port": 80 },
    ] } }),
    )]);
    assert_eq!(frontends(&world), ["default/a:x TCP IPv4 ClusterIp 10.96.0.10:80"]);
    assert!(
        world.build().rejections[0]
            .reason
            .contains("spec.ports[0] of the same Service")
    );
}

#[test]
fn address_that_a_service_names_twice_counts_once_as_its_strictest_kind() {
    let mut object = load_balancer(&json!([{ "ip": "192.0.2.1" }]));
    object["spec"]["externalIPs"] = json!(["192.0.2.1", "192.0.2.1"]);
    let world = world(&[("web", object)]);
    assert_eq!(frontends(&world)[1], "default/web TCP IPv4 LoadBalancerIp 192.0.2.1:80");
    assert_eq!((frontends(&world).len(), world.rejected().len()), (3, 0));
}

#[test]
fn explicit_frontend_and_node_port_on_one_address_coexist() {
    let mut world = world(&[
        (
            "a",
            json!({ "spec": { "type": "NodePort", "clusterIP": "10.96.0.1", "ports": [{ "port": 80, "nodePort": 30080 }] } }),
        ),
        (
            "b",
            json!({ "spec": { "clusterIP": "10.96.0.2", "externalIPs": ["192.0.2.7"], "ports": [{ "port": 30080 }] } }),
        ),
    ]);
    world.node(None, &["192.0.2.7"]);
    assert_eq!(world.rejected(), [""; 0]);
    assert!(frontends(&world).contains(&"default/b TCP IPv4 ExternalIp 192.0.2.7:30080".to_owned()));
}
