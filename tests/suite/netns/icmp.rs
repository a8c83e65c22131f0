//! Pings to VIPs, path MTU discovery through translated flows, large datagrams.

use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::netns::Netns;
use lb_tests::traffic::{bulk_transfer, ping, tcp_request, udp_request_of};
use lb_tests::world::World;

use super::scene::{Addresses, PORT, Scene, at, families};

#[test]
fn a_vip_answers_pings_of_pods_the_node_and_clients() {
    vips_answer_pings(&Scene::new());
}

#[track_caller]
pub(super) fn vips_answer_pings(scene: &Scene) {
    let _dump = OnFailure::of(&scene.world);
    for addresses in families() {
        for vip in [addresses.cluster, addresses.balancer, addresses.external] {
            for (who, place) in [
                ("a pod", scene.world.pod("pod1-1").ns.clone()),
                ("the node", scene.world.node(1).ns.clone()),
                ("a client", scene.world.client().ns.clone()),
            ] {
                let reply = ping(&place, vip, 56, Duration::from_secs(2));
                let reply = reply.unwrap_or_else(|error| panic!("{who} to {vip}: {error:?}"));
                assert_eq!(reply.source, vip, "{who}");
            }
        }
    }
}

#[test]
fn nobody_answers_pings_where_that_is_switched_off_and_requests_are_served() {
    let scene = Scene::of(&World::builder(), &["--no-ping"]);
    let _dump = OnFailure::of(&scene.world);
    let world = &scene.world;
    for addresses in families() {
        for vip in [addresses.cluster, addresses.balancer, addresses.external] {
            let askers: [(&str, &Netns); 3] = [
                ("a pod", &world.pod("pod1-1").ns),
                ("the node", &world.node(1).ns),
                ("a client", &world.client().ns),
            ];
            for (who, from) in askers {
                let answer = ping(from, vip, 56, Duration::from_millis(300));
                assert!(answer.is_err(), "{who} to {vip}: {answer:?}");
                let reply = tcp_request(from, at(vip, PORT), None, Duration::from_secs(2));
                reply.unwrap_or_else(|error| panic!("{who} to {vip}: {error}"));
            }
        }
    }
    assert_eq!(scene.counted("echo"), 0);
}

#[test]
fn large_datagrams_arrive_in_fragments() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&["pod2-1"]);
    scene.settle();
    for addresses in families() {
        let to = at(addresses.cluster, PORT);
        let reply = udp_request_of(scene.world.pod("pod1-1"), to, 4000, Duration::from_secs(2));
        assert_eq!(reply.expect("an answer to 4,000 bytes").backend, "pod2-1");
    }
}

/// Whole transfers from a pod to the VIP's one backend on the other node and back, over a narrow way to `narrow`; the path
/// MTUs that the client has learnt.
fn transfers_over_a_narrow_way_to(narrow: &str) -> Vec<u32> {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&["pod2-1"]);
    scene.settle();
    scene.world.narrow_way_to_pod(narrow, 1280);
    let transfer = |addresses: Addresses| {
        let to = at(addresses.cluster, PORT);
        let report = bulk_transfer(scene.world.pod("pod1-1"), to, 5_000_000, Duration::from_secs(20))
            .unwrap_or_else(|error| panic!("{to} over a narrow way to {narrow}: {error}"));
        assert_eq!(report.bytes, 5_000_000);
        report.path_mtu
    };
    families().map(transfer).to_vec()
}

#[test]
fn a_client_learns_of_a_narrow_link_behind_the_vip() {
    assert_eq!(transfers_over_a_narrow_way_to("pod2-1"), [1280, 1280]);
}

#[test]
fn a_backend_learns_of_a_narrow_link_to_its_client() {
    // The client's own way is wide; that all came back shows that the backend has learnt.
    assert_eq!(transfers_over_a_narrow_way_to("pod1-1"), [1500, 1500]);
}
