//! Events of the agent: what an operator must know stands on the object, once when it comes, changes and ends. And what a scrape tells.

use lb_tests::assert::{OnFailure, eventually};
use lb_tests::kubernetes::ControlPlane;
use lb_tests::traffic::HeldConnections;
use lb_tests::world::World;
use serde_json::{Value, json};

use super::health::{LIMIT, get};
use super::{Scene, at, web};

/// Type, reason and note of the agents' events about an object, oldest first.
pub(super) fn events(cluster: &ControlPlane, kind: &str, name: &str) -> Vec<(String, String, String)> {
    let text = cluster.kubectl(&["get", "events.events.k8s.io", "-A", "-o", "json"], "");
    let list: Value = serde_json::from_str(&text).expect("JSON of kubectl");
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let mut found: Vec<(String, Value)> = items
        .into_iter()
        .filter(|event| event["regarding"]["kind"] == kind && event["regarding"]["name"] == name)
        .filter(|event| event["reportingController"] == "steerway.dev/agent")
        .map(|event| (event["eventTime"].as_str().unwrap_or_default().to_owned(), event))
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    let text = |event: &Value, field: &str| event[field].as_str().unwrap_or_default().to_owned();
    found
        .iter()
        .map(|(_, event)| (text(event, "type"), text(event, "reason"), text(event, "note")))
        .collect()
}

#[test]
fn a_rejected_object_has_events_when_it_comes_changes_and_ends() {
    // Both agents have the same to say: one of them says it.
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    let object = web("odd", "10.96.0.20");
    scene.cluster.create(&object);
    let port =
        |number: u16, protocol: &str| json!({ "name": format!("p{number}"), "port": number, "protocol": protocol });
    scene.cluster.patch(
        "service",
        "odd",
        &json!({ "spec": { "ports": [port(80, "TCP"), port(81, "SCTP")] } }),
    );
    let reasons = |scene: &Scene| -> Vec<(String, String)> {
        let all = events(&scene.cluster, "Service", "odd");
        all.into_iter().map(|(kind, reason, _)| (kind, reason)).collect()
    };
    let warning = ("Warning".to_owned(), "NotProgrammed".to_owned());
    let becomes = |scene: &Scene, wanted: &[(String, String)]| {
        eventually(LIMIT, "the events of the Service", || {
            let found = reasons(scene);
            if found == wanted {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        });
    };
    becomes(&scene, std::slice::from_ref(&warning));
    let (_, _, note) = events(&scene.cluster, "Service", "odd").remove(0);
    assert!(
        note.contains("spec.ports: port \"p81\": SCTP is not forwarded"),
        "{note}"
    );

    // Another fault, another event; the same fault over many cycles, none.
    scene.cluster.patch(
        "service",
        "odd",
        &json!({ "spec": { "ports": [port(80, "TCP"), port(82, "SCTP")] } }),
    );
    becomes(&scene, &[warning.clone(), warning.clone()]);
    for number in 0..5 {
        scene
            .cluster
            .create(&web(&format!("more-{number}"), &format!("10.96.0.{}", 30 + number)));
        scene.settle();
    }
    scene.cluster.patch(
        "service",
        "odd",
        &json!({ "spec": { "ports": [port(80, "TCP"), port(82, "TCP")] } }),
    );
    becomes(
        &scene,
        &[warning.clone(), warning, ("Normal".to_owned(), "Resolved".to_owned())],
    );
    let (_, _, note) = events(&scene.cluster, "Service", "odd").remove(2);
    assert!(note.starts_with("NotProgrammed: ") && note.contains("p82"), "{note}");
    for node in ["node1", "node2"] {
        let of_node = events(&scene.cluster, "Node", node);
        let starts = of_node
            .iter()
            .filter(|(kind, reason, _)| kind == "Normal" && reason == "Starting");
        assert_eq!(starts.count(), 1, "{of_node:?}");
    }
}

#[test]
fn a_health_check_port_that_is_taken_has_an_event_on_its_service() {
    let mut scene = Scene::of(&World::builder().nodes(1), &[]);
    let _dump = OnFailure::of(&scene.world);
    let address = at(&scene.world.node(1).ip4.to_string(), 32000);
    let taken = scene
        .world
        .node(1)
        .ns
        .run(|| std::net::TcpListener::bind(address))
        .expect("a free port");
    let object = web("web", "10.96.0.10")
        .load_balancer_ip("203.0.113.10")
        .external_local()
        .health_check_node_port(32000);
    scene.cluster.create(&object);
    scene.settle();
    let becomes = |wanted: &[&str]| {
        eventually(LIMIT, "the events of the Service", || {
            let found = events(&scene.cluster, "Service", "web");
            let reasons: Vec<&str> = found.iter().map(|(_, reason, _)| reason.as_str()).collect();
            if reasons == wanted {
                Ok(())
            } else {
                Err(format!("{found:?}"))
            }
        });
    };
    becomes(&["FailedToStartServiceHealthcheck"]);
    drop(taken);
    becomes(&["FailedToStartServiceHealthcheck", "Resolved"]);
}

#[test]
fn a_scrape_tells_how_long_endpoints_take_and_stays_small() {
    let mut scene = Scene::of(&World::builder().nodes(1), &[]);
    let _dump = OnFailure::of(&scene.world);
    for number in 0..20 {
        scene
            .cluster
            .create(&web(&format!("web-{number}"), &format!("10.96.1.{}", 10 + number)));
    }
    scene.create_pod("pod1-2", "web");
    let selecting = super::selecting(&web("chosen", "10.96.0.40"), "web");
    scene.cluster.create_json(&selecting);
    let node = scene.world.node(1).ns.clone();
    let scrape = || get(&node, at("127.0.0.1", 10249), "/metrics").expect("metrics").2;
    let value = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
    };
    // The real controller writes slices and when what changed them happened.
    let count = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}";
    eventually(LIMIT, "a change of endpoints is measured", || {
        let text = scrape();
        if value(&text, count).is_some_and(|count| count >= 1.0) {
            Ok(())
        } else {
            Err(text)
        }
    });
    scene.settle();
    let text = scrape();
    let sum = value(
        &text,
        "kubeproxy_network_programming_duration_seconds_sum{ip_family=\"IPv4\"}",
    );
    assert!(sum.is_some_and(|sum| sum > 0.0 && sum < 60.0), "{sum:?}");
    assert_eq!(
        value(&text, "kubeproxy_sync_proxy_rules_endpoint_changes_pending"),
        Some(0.0)
    );
    assert!(
        value(&text, "kubeproxy_sync_proxy_rules_service_changes_total") >= Some(21.0),
        "{text}"
    );
    let queued = value(
        &text,
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds{ip_family=\"IPv4\"}",
    );
    assert!(
        queued.is_some_and(|at| at > 1e9)
            && value(
                &text,
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}"
            ) >= queued,
        "{text}"
    );
    let resident = value(&text, "process_resident_memory_bytes ");
    assert!(
        resident.is_some_and(|bytes| bytes > 1e6 && bytes < 1e10),
        "{resident:?}"
    );
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    assert!(series > 300 && series < 500, "{series} series:\n{text}");
    assert!(!text.contains("web-7"), "no series of single Services");
    scene.agents[0].terminate();
    scene.agents[0].set_arguments(&["--service-metrics"]);
    scene.agents[0].restart();
    scene.settle();
    let _held = HeldConnections::start(scene.world.pod("pod1-1"), at("10.96.0.40", 80), 3);
    let port = r#"namespace="default",service="chosen",port="http",protocol="TCP",ip_family="IPv4""#;
    let lines = [
        format!(r#"steerway_service_endpoints{{{port},used="yes",ready="yes"}} 1"#),
        format!("steerway_service_flows{{{port}}} 3"),
    ];
    eventually(LIMIT, "the series of the Service", || {
        let text = scrape();
        if lines.iter().all(|line| text.lines().any(|found| found == line)) {
            Ok(())
        } else {
            Err(text)
        }
    });
}
