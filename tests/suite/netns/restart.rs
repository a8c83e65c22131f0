//! Forwarding goes on while agents die, come back and endpoints change.

use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::objects::service;
use lb_tests::traffic::{HeldConnections, UdpStream};

use super::scene::{PORT, Scene, at, endpoints, families};

/// Restarts by SIGKILL while traffic runs.
const RESTARTS: usize = 20;
/// Connections that are held.
const CONNECTIONS: usize = 1000;
/// Datagrams a second.
const RATE: u32 = 10_000;

#[test]
fn nothing_is_lost_over_kills_and_endpoint_churn() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(
        &service("default", "other")
            .cluster_ip("10.96.0.99")
            .port("http", PORT, "TCP"),
    );
    let [v4, v6] = families();
    let mut held = HeldConnections::start(scene.world.client(), at(v4.balancer, PORT), CONNECTIONS / 2);
    let mut inside = HeldConnections::start(scene.world.pod("pod1-1"), at(v6.cluster, PORT), CONNECTIONS / 2);
    let stream = UdpStream::start(scene.world.pod("pod1-2"), at(v4.cluster, PORT), None, RATE);
    let before = stream.sent();
    for round in 0..RESTARTS {
        scene.agents[0].kill9();
        // Another Service's endpoints come and go while no agent sees it: ids and blocks are used again.
        let pods: Vec<_> = ["pod1-1", "pod2-1"]
            .iter()
            .map(|name| scene.world.pod(name).clone())
            .collect();
        scene.folder.put(&endpoints("other", &pods[round % 2..], false));
        scene.agents[0].restart();
        scene.settle();
        for (who, connections) in [("client", &mut held), ("pod", &mut inside)] {
            let report = connections.check_all();
            assert!(
                report.lost.is_empty(),
                "round {round}: the {who}'s connections: {report:?}"
            );
        }
    }
    assert!(stream.sent() > before, "the stream was running");
    let report = stream.finish(Duration::from_secs(2));
    assert!(report.is_perfect(), "the stream: {report:?}");
}

#[test]
fn a_restart_with_nothing_changed_writes_nothing() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.agents[0].kill9();
    scene.agents[0].restart();
    scene.settle();
    let status = scene.agents[0].json(&["status"]);
    let operations = status["reconcile"]["operations"]
        .as_u64()
        .unwrap_or_else(|| panic!("no operation count in {status}"));
    assert_eq!(operations, 0, "{status}");
}
