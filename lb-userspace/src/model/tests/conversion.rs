//! Validation of Services: what is wrong is named with its field, and nothing else is lost (`TestBadIPs` and API rules).

use super::*;

#[track_caller]
fn converted(spec: Value) -> (ServiceObject, Vec<String>) {
    let mut world = World::new();
    world.service("web", spec);
    let service = world.snapshot.services.values().next().expect("the Service is kept");
    (
        ServiceObject::clone(service),
        world
            .rejections
            .iter()
            .map(|rejection| rejection.field.clone())
            .collect(),
    )
}

#[test]
fn addresses_with_leading_zeros_are_read_as_decimal() {
    let mut world = World::new();
    world.service_object(json!({
        "metadata": { "name": "web" },
        "spec": {
            "type": "LoadBalancer", "clusterIP": "010.096.000.010", "externalIPs": ["203.0.113.001"],
            "loadBalancerSourceRanges": ["010.0.0.0/08"], "ports": [{ "port": 80 }],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "192.000.002.001" }] } },
    }));
    let service = world.snapshot.services.values().next().unwrap();
    assert_eq!(service.cluster_ips.v4, Some(CLUSTER_IP.parse().unwrap()));
    assert_eq!(service.external_ips[0].address.to_string(), "203.0.113.1");
    assert_eq!(service.load_balancer_ips[0].address.to_string(), "192.0.2.1");
    assert_eq!(
        service.source_ranges.v4.as_deref(),
        Some(&["10.0.0.0/8".parse().unwrap()][..])
    );
    assert!(world.rejections.is_empty());
}

#[test]
fn wrong_addresses_are_rejected_and_blank_ones_skipped() {
    let (service, rejected) = converted(json!({
        "clusterIP": CLUSTER_IP, "ports": [{ "port": 80 }],
        "externalIPs": ["", "  ", "x", "127.0.0.1", "0.0.0.0", "169.254.0.1", "ff02::1", "203.0.113.1"],
    }));
    let kept: Vec<_> = service
        .external_ips
        .iter()
        .map(|ip| (ip.address.to_string(), ip.index))
        .collect();
    assert_eq!(kept, [("203.0.113.1".to_owned(), 7)]);
    assert_eq!(
        rejected,
        [2, 3, 4, 5, 6].map(|index| format!("spec.externalIPs[{index}]"))
    );
}

#[test]
fn wrong_cluster_ip_leaves_the_service_unproxied() {
    for cluster_ip in ["", "x", "0.0.0.0", "127.0.0.1"] {
        let (service, rejected) = converted(json!({ "clusterIP": cluster_ip, "ports": [{ "port": 80 }] }));
        assert_eq!(service.not_proxied, Some(NotProxied::NoClusterIp), "{cluster_ip}");
        assert_eq!(rejected, ["spec.clusterIP"], "{cluster_ip}");
    }
}

#[test]
fn wrong_ports_are_rejected_and_the_others_stay() {
    let (service, rejected) = converted(json!({ "clusterIP": CLUSTER_IP, "ports": [
        { "name": "a", "port": 0 },
        { "name": "b", "port": 65536 },
        { "name": "c", "port": -1 },
        { "name": "d", "port": 80, "protocol": "tcp" },
        { "name": "E", "port": 80 },
        { "name": "f", "port": 80, "nodePort": 70000 },
        { "name": "f", "port": 81 },
        { "name": "f", "port": 82, "protocol": "UDP", "nodePort": 30082 },
    ] }));
    let kept: Vec<_> = service
        .ports
        .iter()
        .map(|port| (port.port, port.protocol, port.node_port, port.index))
        .collect();
    assert_eq!(
        kept,
        [(80, Protocol::Tcp, None, 5), (82, Protocol::Udp, Some(30082), 7)]
    );
    assert_eq!(
        rejected,
        [
            "spec.ports[0].port",
            "spec.ports[1].port",
            "spec.ports[2].port",
            "spec.ports[3].protocol",
            "spec.ports[4].name",
            "spec.ports[5].nodePort",
            "spec.ports[6].name",
        ]
    );
}

#[test]
fn service_without_ports_is_told_so() {
    assert_eq!(converted(json!({ "clusterIP": CLUSTER_IP })).1, ["spec.ports"]);
}

#[test]
fn session_affinity_has_a_default_and_bounds() {
    let affinity = |affinity: Value, seconds: Value| {
        let (service, rejected) = converted(json!({
            "clusterIP": CLUSTER_IP, "ports": [{ "port": 80 }], "sessionAffinity": affinity,
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": seconds } },
        }));
        (service.affinity_seconds, rejected.len())
    };
    assert_eq!(affinity(json!("ClientIP"), json!(null)), (Some(10_800), 0));
    assert_eq!(affinity(json!("ClientIP"), json!(30)), (Some(30), 0));
    assert_eq!(affinity(json!("ClientIP"), json!(86_400)), (Some(86_400), 0));
    assert_eq!(affinity(json!("ClientIP"), json!(86_401)), (Some(10_800), 1));
    assert_eq!(affinity(json!("ClientIP"), json!(0)), (Some(10_800), 1));
    assert_eq!(affinity(json!("None"), json!(30)), (None, 0));
    assert_eq!(affinity(json!(null), json!(30)), (None, 0));
    assert_eq!(affinity(json!("Cookie"), json!(30)), (None, 1));
}

#[test]
fn unknown_words_are_rejected_and_take_their_default() {
    let (service, rejected) = converted(json!({
        "type": "Magic", "clusterIP": CLUSTER_IP, "ports": [{ "port": 80 }],
        "internalTrafficPolicy": "Nearest", "externalTrafficPolicy": "Nearest",
    }));
    assert_eq!(
        (service.internal_policy, service.external_policy),
        (TrafficPolicy::Cluster, TrafficPolicy::Cluster)
    );
    assert_eq!(
        rejected,
        ["spec.internalTrafficPolicy", "spec.type", "spec.externalTrafficPolicy"]
    );
}

#[test]
fn unknown_ip_mode_and_wrong_ingress_address_are_rejected() {
    let mut world = World::new();
    world.service_object(json!({
        "metadata": { "name": "web" },
        "spec": { "type": "LoadBalancer", "clusterIP": CLUSTER_IP, "ports": [{ "port": 80 }] },
        "status": { "loadBalancer": { "ingress": [{ "ip": "192.0.2.1", "ipMode": "Magic" }, { "ip": "x" }] } },
    }));
    assert_eq!(
        world.rejected(),
        [
            "Service default/web: status.loadBalancer.ingress[0].ipMode",
            "Service default/web: status.loadBalancer.ingress[1].ip",
        ]
    );
}

#[test]
fn object_without_a_usable_name_is_rejected_whole() {
    let spec = json!({ "clusterIP": CLUSTER_IP, "ports": [{ "port": 80 }] });
    for (metadata, field) in [
        (json!({}), "metadata.name"),
        (json!({ "name": "Web" }), "metadata.name"),
        (json!({ "name": "web\u{1b}[2J" }), "metadata.name"),
        (json!({ "name": "w".repeat(254) }), "metadata.name"),
        (json!({ "name": "web", "namespace": "a/b" }), "metadata.namespace"),
    ] {
        let mut world = World::new();
        world.service_object(json!({ "metadata": metadata, "spec": spec }));
        assert!(world.snapshot.services.is_empty());
        assert_eq!(
            world
                .rejections
                .iter()
                .map(|rejection| &*rejection.field)
                .collect::<Vec<_>>(),
            [field]
        );
        let shown = &world.rejections[0].reason;
        assert!(
            shown.len() < 250 && shown.chars().all(|letter| !letter.is_control()),
            "{shown:?}"
        );
    }
}

#[test]
fn service_without_a_spec_is_rejected() {
    let mut world = World::new();
    world.service_object(json!({ "metadata": { "name": "web" } }));
    assert_eq!(world.rejected(), ["Service default/web: spec"]);
}

#[test]
fn rejection_reads_as_one_line_that_says_what_to_do() {
    let mut world = World::new();
    world.service(
        "web",
        json!({ "clusterIP": CLUSTER_IP, "ports": [{ "port": 80, "nodePort": 70000 }] }),
    );
    assert_eq!(
        world.rejections[0].to_string(),
        "Service default/web: spec.ports[0].nodePort: 70000 is not a port number; use 1 to 65535"
    );
}

#[test]
fn service_cidrs_are_read_and_wrong_ones_rejected() {
    let object = read(json!({
        "metadata": { "name": "kubernetes" }, "spec": { "cidrs": ["10.96.0.0/16", "x", "fd00::/108"] },
    }));
    let mut rejections = Vec::new();
    let ranges: Vec<String> = service_ranges(&object, &mut rejections)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(ranges, ["10.96.0.0/16", "fd00::/108"]);
    assert_eq!(rejections[0].field, "spec.cidrs[1]");
}
