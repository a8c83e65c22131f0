//! Endpoints as they were before slices: in a folder, where no controller mirrors them, they count as slices would.

use lb_tests::assert::OnFailure;
use lb_tests::objects::endpoints;
use lb_tests::world::World;

use super::outcome::{by, check};
use super::scene::{NODE_PORT, PORT, SERVER_PORT, Scene, at, families, web};

#[test]
fn a_service_over_them_is_served_in_both_families_and_follows_their_changes() {
    let mut scene = Scene::silent(&World::builder());
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&web());
    let put = |scene: &Scene, ready: &str, unready: &str| {
        let (ready, unready) = (scene.world.pod(ready), scene.world.pod(unready));
        scene.folder.put(
            &endpoints("default", "web")
                .address(ready.ip4)
                .address(ready.ip6)
                .not_ready(unready.ip4)
                .not_ready(unready.ip6)
                .port("http", SERVER_PORT, "TCP")
                .port("dns", SERVER_PORT, "UDP"),
        );
    };
    put(&scene, "pod1-2", "pod2-1");
    scene.start(&[]);
    for (ready, unready) in [("pod1-2", "pod2-1"), ("pod2-1", "pod1-2")] {
        put(&scene, ready, unready);
        scene.settle();
        for addresses in families() {
            let (world, expected) = (&scene.world, by(&[ready]));
            let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
            check("the pod", world.pod("pod1-1"), at(addresses.cluster, PORT), &expected);
            check("the node", world.node(1), at(addresses.cluster, PORT), &expected);
            check("the client", world.client(), node_port, &expected);
        }
    }
}
