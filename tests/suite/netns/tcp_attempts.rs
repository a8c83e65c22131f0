//! A connection that is still being asked for when its endpoint goes: the next SYN goes to one that is there.

use std::time::Duration;

use lb_tests::assert::{OnFailure, eventually};
use lb_tests::netfilter::{rule_hits, set_rules};
use lb_tests::traffic::tcp_request;

use super::scene::{NODE_PORT, PORT, READY, SERVER_PORT, Scene, at, families};

const TABLE: &str = "inet deaf";
/// Long enough for the SYNs after 1 and 3 seconds, too short for the next.
const LIMIT: Duration = Duration::from_millis(6500);

#[test]
fn a_syn_that_is_sent_again_leaves_an_endpoint_that_stopped_serving() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    let deaf = scene.world.pod("pod2-1").clone();
    let rule = format!("tcp dport {SERVER_PORT} counter name hits drop");
    set_rules(&deaf, TABLE, "filter hook input priority filter", &rule);
    scene.set_conditions(&[("pod2-1", READY)]);
    let mut attempts = Vec::new();
    for addresses in families() {
        let world = &scene.world;
        let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
        for (who, netns, to) in [
            ("the pod", &world.pod("pod1-1").ns, at(addresses.cluster, PORT)),
            ("the node", &world.node(1).ns, at(addresses.cluster, PORT)),
            ("the client", &world.client().ns, node_port),
        ] {
            let inside = netns.clone();
            let attempt = netns.spawn(move || tcp_request(&inside, to, None, LIMIT));
            attempts.push((format!("{who} to {to}"), attempt));
        }
    }
    let wanted = attempts.len() as u64;
    eventually(Duration::from_secs(2), "every SYN has met the deaf endpoint", || {
        let seen = rule_hits(&deaf, TABLE);
        if seen >= wanted {
            Ok(())
        } else {
            Err(format!("{seen} of {wanted}"))
        }
    });
    scene.set_conditions(&[("pod1-2", READY)]);
    for (who, attempt) in attempts {
        let reply = attempt.join().expect("the thread of an attempt");
        let reply = reply.unwrap_or_else(|error| panic!("{who}: {error}"));
        assert_eq!(reply.backend, "pod1-2", "{who}");
    }
}
