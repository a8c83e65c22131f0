//! An API server that is slow and cut off every second: nothing is lost, and what changes meanwhile arrives.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lb_tests::agent::{Agent, text};
use lb_tests::assert::{OnFailure, eventually};
use lb_tests::kubernetes::Relay;
use lb_tests::traffic::HeldConnections;
use lb_tests::world::World;
use serde_json::json;

use super::{PORT, Scene, at, names, web};

const VIP: &str = "10.96.0.10";
const COUNT: usize = 100;
/// The longest wait of the agent after failures in a row, and room for a slow machine.
const ARRIVES: Duration = Duration::from_mins(1);
/// The same, where all kinds have to be listed within one time that the way is open.
const READ: Duration = Duration::from_mins(4);
/// Connections that are made anew at least.
const ANEW: u64 = 20;
/// How each chunk is held back, how long the way is open so, and how long nothing passes before it is cut.
const DELAY: Duration = Duration::from_millis(30);
const OPEN: Duration = Duration::from_millis(700);
const STALLED: Duration = Duration::from_millis(300);

/// Delays, stalls and cuts until told to stop; then the way is as good as any.
fn flap(relay: &Relay, stop: &AtomicBool) {
    relay.delay(DELAY);
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(OPEN);
        relay.stall(true);
        thread::sleep(STALLED);
        relay.cut();
        relay.stall(false);
    }
    relay.delay(Duration::ZERO);
}

#[test]
fn a_slow_and_flapping_api_server_costs_no_connection_and_changes_arrive() {
    let mut scene = Scene::of(&World::builder(), &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.agents.clear();
    let (relay, kubeconfig) = scene.cluster.relay(&json!({ "token": "kube-proxy" }));
    for node in scene.world.nodes() {
        scene.agents.push(Agent::start_on_api(node, &kubeconfig, &[]));
    }
    scene.cluster.create(&web("web", VIP));
    scene.create_slice("web", &["pod1-2"]);
    scene.settle();
    let held = HeldConnections::start(scene.world.pod("pod1-1"), at(VIP, PORT), COUNT);
    let talking = held.keep_talking(Duration::from_millis(10));
    let before = relay.connections();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // Whatever fails below, the thread ends.
        let _stop = Stop(&stop);
        scope.spawn(|| flap(&relay, &stop));
        for other in ["pod2-1", "pod2-2"] {
            let expected = ["pod1-2", other];
            scene.cluster.replace(&scene.slice("web", &expected));
            eventually(ARRIVES, &format!("{expected:?} answer"), || {
                let found = scene.backends(at(VIP, PORT));
                if names(&found) == expected {
                    Ok(())
                } else {
                    Err(format!("{found:?} do"))
                }
            });
        }
        eventually(ARRIVES, "connections are made anew", || {
            let made = relay.connections() - before;
            if made >= ANEW {
                Ok(())
            } else {
                Err(format!("only {made}"))
            }
        });
        // Asked for a reading, both agents list anew between two cuts.
        scene.cluster.create(&web("late", "10.96.0.11"));
        for agent in &scene.agents {
            eventually(READ, "all kinds are listed between two cuts", || {
                let output = agent.cli(&["status", "--wait", "60"]);
                if output.status.success() {
                    Ok(())
                } else {
                    Err(text(&output))
                }
            });
            assert!(agent.json(&["services"]).to_string().contains("late"));
        }
    });
    scene.settle();
    let rounds = talking.rounds();
    let report = talking.stop().check_all();
    assert!(rounds > 50, "only {rounds} rounds");
    assert_eq!((report.alive, report.lost.len()), (COUNT, 0), "{report:?}");
}

/// Tells a thread to stop when dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
