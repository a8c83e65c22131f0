//! The API server goes and comes back, the agent is killed meanwhile: forwarding goes on, and nothing is left that is gone.

use std::time::Duration;

use lb_tests::agent::Agent;
use lb_tests::assert::{OnFailure, eventually};
use lb_tests::traffic::{ConnectErrorKind, HeldConnections, tcp_request};
use lb_tests::world::World;
use serde_json::json;

use super::{PORT, SECOND, Scene, at, names, web};

/// Backoff's longest wait, and room for a slow machine.
const BACK: Duration = Duration::from_mins(1);

/// Waits until the versions that an agent's watches go on from are forgotten, so that it lists anew.
#[track_caller]
fn lists_anew(agent: &Agent) {
    eventually(BACK, "the agent's watches are too old", || {
        let log = agent.log();
        if log.contains("has expired, listing anew") {
            Ok(())
        } else {
            Err(log)
        }
    });
}

#[test]
fn an_outage_with_missed_deletions_leaves_forwarding_and_no_ghosts() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    for (name, address) in [("keep", "10.96.0.10"), ("gone", "10.96.0.11"), ("change", "10.96.0.12")] {
        scene.cluster.create(&web(name, address));
        scene.create_slice(name, &["pod1-2", "pod2-1"]);
    }
    scene.settle();
    let (keep, gone, change) = (at("10.96.0.10", PORT), at("10.96.0.11", PORT), at("10.96.0.12", PORT));
    let mut held = HeldConnections::start(scene.world.pod("pod1-1"), keep, 100);
    let mut open = HeldConnections::start(scene.world.pod("pod1-1"), gone, 10);

    scene.cluster.kill_server();
    eventually(BACK, "the agents tell that the API server is away", || {
        let status = scene.agents[0].json(&["status"]);
        let causes = status["notReady"].to_string();
        if causes.contains("172.31.0.1") || causes.contains("kube-proxy.kubeconfig") {
            Ok(())
        } else {
            Err(causes)
        }
    });
    for to in [keep, gone, change] {
        assert_eq!(
            names(&scene.backends(to)),
            ["pod1-2", "pod2-1"],
            "{to} while the API server is away"
        );
    }
    // An agent that starts without an API server changes nothing.
    scene.agents[0].kill9();
    scene.agents[0].restart();
    for to in [keep, gone, change] {
        assert_eq!(
            names(&scene.backends(to)),
            ["pod1-2", "pod2-1"],
            "{to} with a new agent"
        );
    }

    scene.cluster.behind_the_back(|cluster| {
        cluster.delete("service", "gone");
        cluster.delete("endpointslice", "gone-by-hand");
        cluster.patch(
            "endpointslice",
            "change-by-hand",
            &json!({ "endpoints": [{ "addresses": [scene.world.pod("pod2-2").ip4.to_string()], "nodeName": "node2" }] }),
        );
        cluster.create(&web("new", "10.96.0.13"));
        cluster.create(&new_slice(&scene.world));
    });
    scene.cluster.start_server();
    // Asked for a reading, an agent lists anew whatever it had; its own next try must find the same.
    lists_anew(&scene.agents[1]);
    scene.settle();
    assert_eq!(names(&scene.backends(keep)), ["pod1-2", "pod2-1"]);
    assert_eq!(names(&scene.backends(change)), ["pod2-2"]);
    assert_eq!(names(&scene.backends(at("10.96.0.13", PORT))), ["pod1-2"]);
    assert!(
        scene
            .agents
            .iter()
            .all(|agent| !agent.json(&["services"]).to_string().contains("\"gone\""))
    );
    assert_ne!(scene.failure(gone), ConnectErrorKind::Other);
    for connections in [&mut held, &mut open] {
        let report = connections.check_all();
        assert!(report.lost.is_empty(), "{report:?}");
    }
    let log = scene.agents[1].log();
    assert!(log.contains("objects cannot be followed"), "{log}");
}

#[test]
fn a_compaction_while_the_way_to_the_api_server_is_cut_leaves_no_ghosts() {
    // Without its cache the API server follows etcd for each watch, and is told there that what is asked for is forgotten.
    let mut scene = Scene::of(&World::builder().nodes(1), &["--watch-cache=false"]);
    let _dump = OnFailure::of(&scene.world);
    scene.agents.clear();
    let user = json!({ "token": "kube-proxy" });
    let (relay, kubeconfig) = scene.cluster.relay(&user);
    let agent = Agent::start_on_api(scene.world.node(1), &kubeconfig, &[]);
    scene.agents.push(agent);
    for (name, address) in [("keep", "10.96.0.10"), ("gone", "10.96.0.11")] {
        scene.cluster.create(&web(name, address));
        scene.create_slice(name, &["pod1-2"]);
    }
    scene.settle();
    let (keep, gone) = (at("10.96.0.10", PORT), at("10.96.0.11", PORT));
    let [mut held, mut open] = [keep, gone].map(|to| HeldConnections::start(scene.world.pod("pod1-1"), to, 20));

    drop(relay);
    scene.cluster.delete("service", "gone");
    scene.cluster.delete("endpointslice", "gone-by-hand");
    scene.cluster.compact();
    for to in [keep, gone] {
        assert_eq!(names(&scene.backends(to)), ["pod1-2"], "{to} while the way is cut");
    }
    let _relay = scene.cluster.relay(&user);
    lists_anew(&scene.agents[0]);
    scene.settle();
    assert_eq!(names(&scene.backends(keep)), ["pod1-2"]);
    assert!(tcp_request(scene.world.pod("pod1-1"), gone, None, SECOND).is_err());
    let services = scene.agents[0].json(&["services"]).to_string();
    assert!(!services.contains("\"gone\""), "{services}");
    for connections in [&mut held, &mut open] {
        connections.all_alive().expect("connections of before");
    }
}

/// The slice of the Service that is new.
fn new_slice(world: &World) -> lb_tests::objects::SliceObject {
    let pod = world.pod("pod1-2");
    lb_tests::objects::slice("default", "new-1", "new")
        .v4()
        .port("http", super::SERVER_PORT)
        .endpoint(pod.ip4)
        .node("node1")
}
