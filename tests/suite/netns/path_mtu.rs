//! Path MTU discovery of backends and clients that do not see each other: the errors name addresses that each knows.

use std::net::SocketAddr;
use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::netns::Netns;
use lb_tests::traffic::{bulk_transfer, path_mtu};
use lb_tests::world::{PodRouting, World};

use super::scene::{Addresses, NODE_PORT, PORT, Scene, at, families};

/// MTU of the narrow link: the smallest of IPv6.
const NARROW: u32 = 1280;
/// MTU of a tunnel over links of 1500 bytes.
const TUNNEL: u32 = 1450;
const BYTES: u64 = 3_000_000;

/// A scene with one backend.
#[track_caller]
fn scene_over(mut scene: Scene, backend: &str) -> Scene {
    scene.put_endpoints(&[backend]);
    scene.settle();
    scene
}

/// What a client outside can ask.
fn frontends(scene: &Scene, addresses: Addresses) -> [SocketAddr; 2] {
    let node = scene.world.node(1).ip_like(addresses.cluster);
    [at(node, NODE_PORT), at(addresses.balancer, PORT)]
}

/// The path MTU of a client after a whole transfer to a backend and back.
#[track_caller]
fn transfer(from: &Netns, to: SocketAddr, backend: &str) -> u32 {
    let report = bulk_transfer(from, to, BYTES, Duration::from_secs(20));
    let report = report.unwrap_or_else(|error| panic!("{to}, {backend}: {error}"));
    assert_eq!((report.bytes, report.backend.as_str()), (BYTES, backend));
    report.path_mtu
}

#[test]
fn clients_outside_and_the_node_learn_of_a_narrow_link_to_the_backend() {
    clients_learn(Scene::new);
}

#[track_caller]
pub(super) fn clients_learn(usual: impl Fn() -> Scene) {
    for backend in ["pod1-2", "pod2-1"] {
        let scene = scene_over(usual(), backend);
        let _dump = OnFailure::of(&scene.world);
        scene.world.narrow_way_to_pod(backend, NARROW);
        for addresses in families() {
            for to in frontends(&scene, addresses) {
                let learnt = transfer(&scene.world.client().ns, to, backend);
                assert_eq!(learnt, NARROW, "the client learnt of the link to {backend} behind {to}");
            }
            let to = at(addresses.cluster, PORT);
            let learnt = transfer(&scene.world.node(1).ns, to, backend);
            assert_eq!(learnt, NARROW, "the node learnt of the link to {backend} behind {to}");
        }
    }
}

#[test]
fn clients_outside_and_the_node_learn_of_the_tunnel_to_the_backend() {
    // The pods announce more than the tunnel carries, so that only an error can tell.
    let builder = World::builder().routing(PodRouting::Vxlan).pod_mtu(1500);
    let scene = scene_over(Scene::of(&builder, &[]), "pod2-1");
    let _dump = OnFailure::of(&scene.world);
    let (client, node, pod) = (
        &scene.world.client().ns,
        &scene.world.node(1).ns,
        scene.world.pod("pod2-1"),
    );
    for addresses in families() {
        let [node_port, balancer] = frontends(&scene, addresses);
        for (who, from, to) in [
            ("the client", client, node_port),
            ("the client", client, balancer),
            ("the node", node, node_port),
            ("the node", node, balancer),
            ("the node", node, at(addresses.cluster, PORT)),
        ] {
            let learnt = transfer(from, to, "pod2-1");
            assert_eq!(learnt, TUNNEL, "{who} learnt of the tunnel behind {to}");
            // What it has learnt of its own way back would be announced.
            pod.ns.ip("-4 route flush cache");
            pod.ns.ip("-6 route flush cache");
        }
    }
}

#[test]
fn a_backend_learns_of_a_narrow_link_to_a_client_outside() {
    backends_learn(Scene::new);
}

#[track_caller]
pub(super) fn backends_learn(usual: impl Fn() -> Scene) {
    for backend in ["pod1-2", "pod2-1"] {
        let scene = scene_over(usual(), backend);
        let _dump = OnFailure::of(&scene.world);
        scene.world.narrow_way_to_client("client1", NARROW);
        let pod = scene.world.pod(backend);
        for addresses in families() {
            for to in frontends(&scene, addresses) {
                transfer(&scene.world.client().ns, to, backend);
                // Behind a translated source, the backend knows the node in the client's place.
                let known = if backend == "pod1-2" {
                    scene.world.client().ip_like(to.ip())
                } else {
                    scene.world.node(1).ip_like(to.ip())
                };
                let learnt = path_mtu(pod, at(known, 9));
                assert_eq!(learnt, NARROW, "{backend} learnt of the link to {known} by {to}");
                pod.ns.ip("-4 route flush cache");
                pod.ns.ip("-6 route flush cache");
                assert_eq!(path_mtu(pod, at(known, 9)), 1500, "{backend} has forgotten it");
            }
        }
    }
}
