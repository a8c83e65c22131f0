//! internalTrafficPolicy and externalTrafficPolicy Local, with terminating endpoints (KEP-2086, KEP-1669).
//!
//! Pod `pod1-2` is on the node that is asked, `pod2-1` on the other one.

use lb_tests::assert::OnFailure;
use lb_tests::traffic::tcp_request;
use lb_tests::world::{World, WorldBuilder};

use super::outcome::{DROPPED, Outcome, REFUSED, by, check};
use super::scene::{Conditions, ENDING, LEAVING, NODE_PORT, PORT, READY, Scene, at, families, web};

/// Endpoints of a row, and what becomes of flows under the policy and beside it.
struct Row {
    what: &'static str,
    endpoints: &'static [(&'static str, Conditions)],
    under_policy: Outcome,
    beside: Outcome,
}

fn rows() -> [Row; 6] {
    let row = |what, endpoints, under_policy, beside| Row {
        what,
        endpoints,
        under_policy,
        beside,
    };
    let (local, remote) = (|| by(&["pod1-2"]), || by(&["pod2-1"]));
    let both = || by(&["pod1-2", "pod2-1"]);
    [
        row("both ready", &[("pod1-2", READY), ("pod2-1", READY)], local(), both()),
        row(
            "the local one leaving",
            &[("pod1-2", LEAVING), ("pod2-1", READY)],
            local(),
            remote(),
        ),
        row(
            "the local one ending",
            &[("pod1-2", ENDING), ("pod2-1", READY)],
            DROPPED,
            remote(),
        ),
        row("only a remote one", &[("pod2-1", READY)], DROPPED, remote()),
        row(
            "both leaving",
            &[("pod1-2", LEAVING), ("pod2-1", LEAVING)],
            local(),
            both(),
        ),
        row("none", &[], REFUSED, REFUSED),
    ]
}

#[test]
fn internal_policy_local_keeps_cluster_ip_traffic_on_the_node_and_nothing_else() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&web().internal_local());
    for row in rows() {
        scene.set_conditions(row.endpoints);
        let (world, what) = (&scene.world, row.what);
        for addresses in families() {
            let to = at(addresses.cluster, PORT);
            check(&format!("{what}: the pod"), world.pod("pod1-1"), to, &row.under_policy);
            check(&format!("{what}: the node"), world.node(1), to, &row.under_policy);
            let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
            check(&format!("{what}: the client"), world.client(), node_port, &row.beside);
            let balancer = at(addresses.balancer, PORT);
            check(&format!("{what}: the pod"), world.pod("pod1-1"), balancer, &row.beside);
        }
    }
}

#[test]
fn external_policy_local_falls_back_to_local_endpoints_that_terminate_while_pods_and_the_node_get_all() {
    external_local_falls_back(&World::builder());
}

#[track_caller]
pub(super) fn external_local_falls_back(builder: &WorldBuilder) -> Scene {
    let mut scene = Scene::of(builder, &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&web().external_local());
    for row in rows() {
        scene.set_conditions(row.endpoints);
        let (world, what) = (&scene.world, row.what);
        for addresses in families() {
            let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
            for to in [node_port, at(addresses.balancer, PORT)] {
                check(&format!("{what}: the client"), world.client(), to, &row.under_policy);
                check(&format!("{what}: the pod"), world.pod("pod1-1"), to, &row.beside);
                check(&format!("{what}: the node"), world.node(1), to, &row.beside);
            }
            let to = at(addresses.cluster, PORT);
            check(&format!("{what}: the pod"), world.pod("pod1-1"), to, &row.beside);
            if matches!(row.under_policy, Outcome::Answered(_)) {
                let client = world.client();
                let reply = tcp_request(client, node_port, None, std::time::Duration::from_secs(2)).expect("an answer");
                assert_eq!(
                    reply.client_seen.ip(),
                    client.ip_like(addresses.cluster),
                    "{what}: the client's own address"
                );
            }
        }
    }
    scene
}
