//! Taking a node over from netfilter's translation (kube-proxy): connections that it began go on through it.
//!
//! Its rules stay, as they do until kube-proxy cleans up, and lead to another pod than ours, so that new flows tell whose they are.

use std::time::Duration;

use lb_tests::assert::{OnFailure, throughout};
use lb_tests::netfilter::set_rules;
use lb_tests::traffic::HeldConnections;
use lb_tests::world::World;

use super::outcome::{by, check};
use super::scene::{NODE_PORT, PORT, SERVER_PORT, Scene, at, families, web};

const TABLE: &str = "inet proxy";
/// Connections of each client.
const COUNT: usize = 20;

#[test]
fn connections_that_netfilter_translates_go_on_and_new_ones_are_ours() {
    let mut scene = Scene::silent(&World::builder());
    let _dump = OnFailure::of(&scene.world);
    let [v4, v6] = families();
    let (node, pod) = (scene.world.node(1), scene.world.pod("pod1-2"));
    let rules = format!(
        "ip daddr {} tcp dport {PORT} dnat ip to {}:{SERVER_PORT}\nip6 daddr {} tcp dport {PORT} dnat ip6 to [{}]:{SERVER_PORT}\n\
         ip daddr {} tcp dport {NODE_PORT} dnat ip to {}:{SERVER_PORT}\nip6 daddr {} tcp dport {NODE_PORT} dnat ip6 to [{}]:{SERVER_PORT}\n",
        v4.cluster, pod.ip4, v6.cluster, pod.ip6, node.ip4, pod.ip4, node.ip6, pod.ip6
    );
    set_rules(node, TABLE, "nat hook prerouting priority dstnat", &rules);
    let mut held = Vec::new();
    for addresses in [v4, v6] {
        let node_port = at(node.ip_like(addresses.cluster), NODE_PORT);
        held.push(HeldConnections::start(
            scene.world.pod("pod1-1"),
            at(addresses.cluster, PORT),
            COUNT,
        ));
        held.push(HeldConnections::start(scene.world.client(), node_port, COUNT));
    }
    scene.put_service(&web());
    scene.put_endpoints(&["pod2-1"]);
    scene.start(&["--takeover"]);
    throughout(Duration::from_millis(1500), "netfilter's connections", || {
        held.iter_mut().try_for_each(HeldConnections::all_alive)
    });
    for addresses in [v4, v6] {
        let node_port = at(scene.world.node(1).ip_like(addresses.cluster), NODE_PORT);
        let expected = by(&["pod2-1"]);
        check(
            "the pod",
            scene.world.pod("pod1-1"),
            at(addresses.cluster, PORT),
            &expected,
        );
        check("the client", scene.world.client(), node_port, &expected);
    }
}
