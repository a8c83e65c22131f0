//! Datagrams that their senders cut into fragments, each of which fits every link on its way: to backends in every place.

use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::netns::Netns;
use lb_tests::traffic::udp_request_of;
use lb_tests::world::{PodRouting, World, WorldBuilder};

use super::scene::{NODE_PORT, PORT, Scene, at, families};

/// Payload of three fragments.
const LENGTH: usize = 4000;
const SECOND: Duration = Duration::from_secs(2);

#[track_caller]
pub(super) fn fragments_arrive(builder: &WorldBuilder) -> Scene {
    let mut scene = Scene::of(builder, &[]);
    let _dump = OnFailure::of(&scene.world);
    for backend in ["pod1-2", "pod2-1"] {
        scene.put_endpoints(&[backend]);
        scene.settle();
        let world = &scene.world;
        for addresses in families() {
            let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
            let (cluster, balancer) = (at(addresses.cluster, PORT), at(addresses.balancer, PORT));
            // Not the node to its own NodePort: the loopback carries such a datagram whole.
            let ways: [(&str, &Netns, _); 5] = [
                ("a pod", &world.pod("pod1-1").ns, cluster),
                ("a pod", &world.pod("pod1-1").ns, node_port),
                ("the node", &world.node(1).ns, cluster),
                ("the client", &world.client().ns, node_port),
                ("the client", &world.client().ns, balancer),
            ];
            for (who, from, to) in ways {
                for _ in 0..3 {
                    let reply = udp_request_of(from, to, LENGTH, SECOND);
                    let reply = reply.unwrap_or_else(|error| panic!("{who} to {to} at {backend}: {error}"));
                    assert_eq!(reply.backend, backend, "{who} to {to}");
                }
            }
        }
    }
    assert_eq!(scene.counted("fragment_lost"), 0);
    scene
}

#[test]
fn they_arrive_from_pods_the_node_and_clients() {
    fragments_arrive(&World::builder());
}

#[test]
fn they_arrive_from_pods_the_node_and_clients_over_a_tunnel() {
    // What fits the client's link, as what fits a pod's, fits the tunnel.
    fragments_arrive(&World::builder().routing(PodRouting::Vxlan).client_mtu(1450));
}
