//! A publication is killed at each of its steps in the real maps, and nobody who uses another Service sees anything of it.
//!
//! The publisher (`tests/publisher`) is the agent's own code without its programs, which stand: an agent has them verified at
//! every start, which takes seconds. Agents start in between, to make good what a death left and to find nothing left to do.

use std::os::unix::process::ExitStatusExt as _;
use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::objects::{ServiceObject, documents, service};
use lb_tests::traffic::{HeldConnections, UdpStream, distribution};
use lb_tests::world::Pod;

use super::scene::{PORT, SERVER_PORT, Scene, at, endpoints, families};

/// Connections that are held in each family.
const CONNECTIONS: usize = 20;
/// Datagrams a second.
const RATE: u32 = 1000;
/// The file of the two sets of objects: one, so that an agent sees them change at once.
const FILE: &str = "change.yaml";
/// A whole agent makes good every so many deaths; the others are made good by another publication.
const STEPS_A_RESTART: u64 = 50;
/// The publication has at least so many steps; fewer would be a store that does not count.
const FEWEST_STEPS: u64 = 50;

const MOVED: &str = "10.96.0.21";
const ADDED: &str = "10.96.0.22";

fn one_port(name: &str, address: &str) -> ServiceObject {
    service("default", name)
        .cluster_ip(address)
        .port("http", PORT, "TCP")
        .target_port(SERVER_PORT)
}

/// What stands before the publication under test, and what after it: a Service of several ports with affinity, source
/// ranges and every kind of frontend comes, an endpoint is replaced, a Service goes.
fn objects(scene: &Scene) -> [String; 2] {
    let pods = |names: &[&str]| -> Vec<Pod> { names.iter().map(|name| scene.world.pod(name).clone()).collect() };
    let moved = one_port("moved", MOVED);
    let removed = one_port("removed", "fd00:10:96::23").load_balancer_ip("2001:db8:113::23");
    let removed = removed.source_range("2001:db8:2::/64");
    let added = one_port("added", ADDED)
        .port("dns", PORT, "UDP")
        .target_port(SERVER_PORT)
        .node_port(30090)
        .external_ip("198.51.100.22")
        .load_balancer_ip("203.0.113.22")
        .source_range("192.0.2.0/24")
        .affinity(60);
    let before = documents(&[
        &moved,
        &endpoints("moved", &pods(&["pod1-1"]), false),
        &removed,
        &endpoints("removed", &pods(&["pod2-1"]), true),
    ]);
    let after = documents(&[
        &moved,
        &endpoints("moved", &pods(&["pod2-2"]), false),
        &added,
        &endpoints("added", &pods(&["pod1-2", "pod2-1"]), false),
    ]);
    [before, after]
}

/// Publishes what the folder holds in a process that is killed at `step`; the number of its operations if it came to its end.
#[track_caller]
fn publish(scene: &Scene, step: u64) -> Option<u64> {
    let (node, agent) = (scene.world.node(1), &scene.agents[0]);
    let output = node
        .ns
        .command(env!("CARGO_BIN_EXE_publisher"))
        .args([agent.pin_dir(), scene.folder.path()])
        .args([node.name.clone(), step.to_string()])
        .output()
        .expect("nsenter");
    if output.status.signal() == Some(libc::SIGKILL) {
        return None;
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.trim().parse().expect("a number of operations"))
}

/// Starts the node's agent on what stands, which must leave nothing to do, and kills it again.
#[track_caller]
fn expect_exact(scene: &mut Scene, when: &str) {
    let agent = &mut scene.agents[0];
    agent.restart();
    agent.wait_ready();
    let operations = &agent.json(&["status"])["reconcile"]["operations"];
    assert_eq!(*operations, 0, "{when}: the agent finds something to do");
    agent.kill9();
}

#[test]
fn a_kill_at_any_step_of_a_publication_loses_nothing_and_is_made_good() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    let [before, after] = objects(&scene);
    let [v4, v6] = families();
    let mut held = [v4, v6].map(|family| {
        let outside = HeldConnections::start(scene.world.client(), at(family.balancer, PORT), CONNECTIONS);
        let inside = HeldConnections::start(scene.world.pod("pod1-1"), at(family.cluster, PORT), CONNECTIONS);
        [outside, inside]
    });
    let stream = UdpStream::start(scene.world.pod("pod1-2"), at(v4.cluster, PORT), None, RATE);
    let [moved, added] = [MOVED, ADDED].map(|vip| at(vip.parse().expect("an address"), PORT));
    scene.agents[0].kill9();
    let mut deaths = 0;
    for step in 1.. {
        scene.folder.write(FILE, &before);
        publish(&scene, 0).expect("a life without a death");
        scene.folder.write(FILE, &after);
        let died = publish(&scene, step).is_none();
        let pod = scene.world.pod("pod1-1");
        let reached = distribution(pod, moved, 2);
        assert!(
            reached.keys().all(|name| ["pod1-1", "pod2-2"].contains(&name.as_str())),
            "killed at step {step}: neither old nor new: {reached:?}"
        );
        if step % STEPS_A_RESTART == 1 {
            scene.agents[0].restart();
            scene.settle();
            scene.agents[0].kill9();
        } else {
            publish(&scene, 0).expect("a life without a death");
        }
        assert_eq!(publish(&scene, 0), Some(0), "step {step} was not made good");
        let pod = scene.world.pod("pod1-1");
        assert_eq!(
            distribution(pod, moved, 2),
            [("pod2-2".to_owned(), 2)].into(),
            "step {step}"
        );
        assert_eq!(distribution(pod, added, 2).values().sum::<usize>(), 2, "step {step}");
        for report in held.iter_mut().flatten().map(HeldConnections::check_all) {
            assert!(report.lost.is_empty(), "killed at step {step}: {report:?}");
        }
        if !died {
            break;
        }
        deaths = step;
    }
    assert!(deaths > FEWEST_STEPS, "the publication has {deaths} steps only");
    expect_exact(&mut scene, "after all deaths");
    let report = stream.finish(Duration::from_secs(2));
    assert!(report.is_perfect(), "the stream: {report:?}");
}
