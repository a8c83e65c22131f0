//! Forwarding goes on while agents die, come back and endpoints change.

use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::objects::service;
use lb_tests::pinned_map::entries_of_all;
use lb_tests::traffic::{HeldConnections, UdpStream};
use steerway::maps::{Geometry, geometries};

use super::scene::{PORT, Scene, at, endpoints, families};

/// Restarts by SIGKILL while traffic runs.
const RESTARTS: usize = 20;
/// Connections that are held.
const CONNECTIONS: usize = 1000;
/// Datagrams a second.
const RATE: u32 = 10_000;

#[test]
fn nothing_is_lost_over_kills_and_endpoint_churn() {
    nothing_is_lost(Scene::new());
}

#[track_caller]
pub(super) fn nothing_is_lost(mut scene: Scene) {
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
    nothing_is_written(Scene::new());
}

#[track_caller]
pub(super) fn nothing_is_written(mut scene: Scene) {
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(
        &service("default", "other")
            .cluster_ip("10.96.0.99")
            .port("http", PORT, "TCP")
            .load_balancer_ip("203.0.113.99")
            .source_range("192.0.2.0/24")
            .affinity(600),
    );
    let pods: Vec<_> = scene.world.pods().cloned().collect();
    scene.folder.put(&endpoints("other", &pods, false));
    scene.settle();
    let [v4, v6] = families();
    let other = at([10, 96, 0, 99].into(), PORT);
    let (pod, client) = (&scene.world.pod("pod1-1").ns, &scene.world.client().ns);
    let ways = [
        (pod, at(v4.cluster, PORT)),
        (pod, at(v6.cluster, PORT)),
        (pod, other),
        (client, at(v4.balancer, PORT)),
    ];
    let mut held = ways.map(|(from, to)| HeldConnections::start(from, to, 10));
    // Counters are kept for each CPU, and grow with every packet.
    let maps = scene.agents[0].pin_dir().join("maps");
    let contents = || entries_of_all(&maps, &["reasons"]);
    let before = contents();
    for Geometry { name, .. } in geometries() {
        assert!(
            name == "reasons" || before.contains_key(name),
            "{name} is not pinned: {:?}",
            before.keys()
        );
    }
    for written in ["flows_v4", "flows_v6", "affinity_v4", "ranges_v4", "names", "arena"] {
        assert!(!before[written].is_empty(), "{written} holds nothing to lose");
    }

    scene.agents[0].kill9();
    scene.agents[0].restart();
    scene.settle();
    let after = contents();
    for (name, entries) in &before {
        assert!(after.get(name) == Some(entries), "a restart changed the map {name}");
    }
    assert_eq!(after.len(), before.len(), "a restart made maps: {:?}", after.keys());
    let status = scene.agents[0].json(&["status"]);
    let operations = status["reconcile"]["operations"]
        .as_u64()
        .unwrap_or_else(|| panic!("no operation count in {status}"));
    assert_eq!(operations, 0, "{status}");
    for report in held.iter_mut().map(HeldConnections::check_all) {
        assert!(report.lost.is_empty(), "{report:?}");
    }
}
