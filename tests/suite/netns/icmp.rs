//! Pings to VIPs, path MTU discovery through translated flows, large datagrams.

use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::traffic::{bulk_transfer, ping, udp_request_of};

use super::scene::{PORT, Scene, at, families};

#[test]
fn a_vip_answers_pings_of_pods_the_node_and_clients() {
    let scene = Scene::new();
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

#[test]
fn path_mtu_discovery_works_with_a_narrow_link_at_either_end() {
    for narrow in ["pod2-1", "pod1-1"] {
        let mut scene = Scene::new();
        let _dump = OnFailure::of(&scene.world);
        scene.put_endpoints(&["pod2-1"]);
        scene.settle();
        scene.world.set_link_mtu(narrow, 1280);
        for addresses in families() {
            let client = scene.world.pod("pod1-1");
            let to = at(addresses.cluster, PORT);
            let report = bulk_transfer(client, to, 5_000_000, Duration::from_secs(20)).expect("the whole transfer");
            assert_eq!(report.bytes, 5_000_000);
            assert!(
                report.path_mtu <= 1280,
                "{to}: the sender learnt of {narrow}'s link: {}",
                report.path_mtu
            );
        }
    }
}
