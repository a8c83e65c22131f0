//! Datagrams that a sender hands to the kernel as one packet, to be cut up later (UDP segmentation offload).

use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::traffic::udp_segments;
use lb_tests::world::{PodRouting, World, WorldBuilder};

use super::scene::{NODE_PORT, PORT, Scene, at, families};

/// Datagrams of one packet, and their payloads' length: together nearly as much as an IP packet can be.
const COUNT: usize = 45;
const LENGTH: u16 = 1300;
const SECOND: Duration = Duration::from_secs(2);

/// Packets that node 1 has translated towards backends.
#[track_caller]
fn translated(scene: &Scene) -> u64 {
    ["forward", "new_flow"].iter().map(|reason| scene.counted(reason)).sum()
}

#[track_caller]
pub(super) fn segments_arrive(builder: &WorldBuilder) {
    let mut scene = Scene::of(builder, &[]);
    let _dump = OnFailure::of(&scene.world);
    for backend in ["pod1-2", "pod2-1"] {
        scene.put_endpoints(&[backend]);
        scene.settle();
        for family in families() {
            let world = &scene.world;
            let node_port = at(world.node(1).ip_like(family.cluster), NODE_PORT);
            let vip = at(family.cluster, PORT);
            for (who, from, to) in [
                ("a pod", &world.pod("pod1-1").ns, vip),
                ("the node", &world.node(1).ns, vip),
                ("the node", &world.node(1).ns, node_port),
                ("a client", &world.client().ns, node_port),
            ] {
                let before = translated(&scene);
                let answers = udp_segments(from, to, LENGTH, COUNT, SECOND);
                let answers = answers.unwrap_or_else(|error| panic!("{who} to {to} at {backend}: {error}"));
                assert_eq!(answers, [(backend.to_owned(), COUNT)].into(), "{who} to {to}");
                let packets = translated(&scene) - before;
                assert!(
                    packets < COUNT as u64,
                    "{who} to {to}: {packets} packets, so that they had been cut up before"
                );
            }
        }
    }
}

#[test]
fn they_reach_their_backends_from_pods_the_node_and_clients() {
    segments_arrive(&World::builder());
}

#[test]
fn they_reach_their_backends_over_a_tunnel() {
    segments_arrive(&World::builder().routing(PodRouting::Vxlan));
}
