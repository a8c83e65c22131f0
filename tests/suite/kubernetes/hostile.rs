//! Objects that are as large as the API allows, or that a broken controller has left in etcd where no API server would take them: what
//! can be used is, what cannot is told by object, field and reason, and no other Service notices.

use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::objects::{Manifest as _, service, slice};
use lb_tests::traffic::{ConnectErrorKind, HeldConnections, tcp_request};
use lb_tests::world::World;
use serde_json::{Value, json};

use super::health::get;
use super::{PORT, SECOND, SERVER_PORT, Scene, at, names, web};

const BALANCER: &str = "203.0.113.10";
const RANGES: u32 = 5_000;
const ENDPOINTS: u32 = 1_000;
/// The longest label of a name (RFC 1123), and the longest name of a slice.
const LABEL: usize = 63;
const NAME: usize = 253;

/// A Service for 5,000 ranges of which none joins another; the last one is the first client's.
fn ranged(scene: &Scene) -> Value {
    let mut object = web("ranged", "10.96.0.20").load_balancer_ip(BALANCER).to_json();
    let ranges = (1..RANGES).map(|number| {
        format!(
            "100.{}.{}.{}/32",
            64 + number / 16384,
            number / 128 % 128,
            number % 128 * 2
        )
    });
    let all: Vec<String> = ranges.chain([format!("{}/32", scene.world.client().ip4)]).collect();
    object["spec"]["loadBalancerSourceRanges"] = json!(all);
    object
}

/// A slice that has all endpoints that one can have.
fn huge() -> Value {
    let object = slice("default", "huge-1", "huge").port("http", SERVER_PORT);
    let all = (0..ENDPOINTS).fold(object, |object, number| {
        let address = format!("10.128.{}.{}", number / 250, 1 + number % 250);
        object.endpoint(&*address).node("node2").condition("ready", true)
    });
    all.to_json()
}

/// What no API server takes.
fn refused(scene: &Scene) -> Vec<Value> {
    let pod = scene.world.pod("pod1-2").ip4;
    let mut crooked = slice("default", "crooked-1", "crooked")
        .port("http", SERVER_PORT)
        .to_json();
    crooked["endpoints"] = json!([
        { "addresses": ["fd00::7"] }, { "addresses": ["10.0.0.300"] }, { "addresses": [pod.to_string()] }, { "addresses": [] },
        { "addresses": ["127.0.0.1"] }, { "addresses": ["224.0.0.1"] }
    ]);
    let unknown = slice("default", "unknown-1", "crooked")
        .address_type("Carrier")
        .to_json();
    let long = slice("default", &"n".repeat(NAME + 1), "crooked").port("http", SERVER_PORT);
    let mut broken = web("broken", "10.96.0.24")
        .port("high", 81, "TCP")
        .port("odd", 82, "CARRIER")
        .to_json();
    broken["spec"]["ports"][1]["port"] = 70_000.into();
    broken["spec"]["loadBalancerSourceRanges"] = json!(["10.0.0.0/40"]);
    let nowhere = web("nowhere", "10.96.0.300").to_json();
    vec![crooked, unknown, long.endpoint(pod).to_json(), broken, nowhere]
}

#[test]
fn hostile_objects_are_served_or_told_and_harm_no_other_service() {
    let mut scene = Scene::of(&World::builder().nodes(1).clients(2), &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.world.route_to_node(&format!("{BALANCER}/32"), 1);
    let healthy = at("10.96.0.10", PORT);
    scene.cluster.create(&web("healthy", "10.96.0.10"));
    scene.create_slice("healthy", &["pod1-2"]);
    scene.settle();
    let connections = HeldConnections::start(scene.world.pod("pod1-1"), healthy, 20);
    let talking = connections.keep_talking(Duration::from_millis(50));
    let serves = |scene: &Scene, address: &str| {
        assert_eq!(names(&scene.backends(at(address, PORT))), ["pod1-2"], "{address}");
    };

    // As large as can be.
    scene.cluster.create_json(&ranged(&scene));
    scene.create_slice("ranged", &["pod1-2"]);
    scene.cluster.create(&web("huge", "10.96.0.21"));
    scene.cluster.create_json(&huge());
    let label = "n".repeat(LABEL);
    scene.cluster.kubectl(&["create", "namespace", &label], "");
    let named = service(&label, &label)
        .cluster_ip("10.96.0.22")
        .port(&label, PORT, "TCP");
    scene.cluster.create(&named);
    let address = scene.world.pod("pod1-2").ip4;
    let named = slice(&label, &"s".repeat(NAME), &label).port(&label, SERVER_PORT);
    scene
        .cluster
        .create(&named.endpoint(address).node("node1").condition("ready", true));
    scene.settle();
    serves(&scene, "10.96.0.10");
    serves(&scene, "10.96.0.22");
    let [allowed, other] = scene.world.clients() else {
        panic!("two clients");
    };
    let balancer = at(BALANCER, PORT);
    let reply = tcp_request(allowed, balancer, None, SECOND).expect("an answer to a source in a range");
    assert_eq!(reply.backend, "pod1-2");
    let error = tcp_request(other, balancer, None, SECOND).expect_err("no range has this source");
    assert_eq!(error.kind, ConnectErrorKind::Timeout, "{error}");
    let found = scene.agents[0].json(&["services"]);
    let found = found.as_array().into_iter().flatten().find(|one| one["name"] == "huge");
    let endpoints = found.and_then(|one| one["endpoints"].as_array()).map_or(0, Vec::len);
    assert_eq!(endpoints, ENDPOINTS as usize);
    assert_eq!(rejections(&scene), []);

    // What no API server takes.
    scene.cluster.create(&web("crooked", "10.96.0.23"));
    scene.cluster.store(&refused(&scene));
    scene.settle();
    serves(&scene, "10.96.0.10");
    serves(&scene, "10.96.0.23");
    let long = "n".repeat(NAME + 1);
    let wanted = [
        ("broken", "spec.loadBalancerSourceRanges[0]"),
        ("broken", "spec.ports[1].port"),
        ("broken", "spec.ports[2].protocol"),
        ("nowhere", "spec.clusterIPs[0]"),
        ("crooked-1", "endpoints[0].addresses[0]"),
        ("crooked-1", "endpoints[1].addresses[0]"),
        ("crooked-1", "endpoints[3].addresses[0]"),
        ("crooked-1", "endpoints[4].addresses[0]"),
        ("crooked-1", "endpoints[5].addresses[0]"),
        (&*long, "metadata.name"),
        ("unknown-1", "addressType"),
    ];
    let found = rejections(&scene);
    let found: Vec<(&str, &str)> = found.iter().map(|(name, field)| (&**name, &**field)).collect();
    assert_eq!(found, wanted);
    talking.stop().all_alive().expect("connections of the healthy Service");
}

/// Object and field of each rejection; the metric counts them, and each has a reason.
#[track_caller]
fn rejections(scene: &Scene) -> Vec<(String, String)> {
    let status = scene.agents[0].json(&["status"]);
    let items = status["rejections"]["items"].as_array().cloned().unwrap_or_default();
    let (_, _, metrics) = get(&scene.world.node(1).ns, at("127.0.0.1", 10249), "/metrics").expect("metrics");
    let line = format!("steerway_rejections {}", items.len());
    assert!(
        metrics.lines().any(|found| found == line),
        "{line} is not in\n{metrics}"
    );
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let told = items.iter().map(|one| {
        assert_ne!(text(&one["reason"]), "", "{one}");
        (text(&one["object"]["name"]), text(&one["field"]))
    });
    told.collect()
}
