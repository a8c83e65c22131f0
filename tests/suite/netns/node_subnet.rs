//! LoadBalancer addresses out of the nodes' own subnet, where every neighbour would ask for them on the wire.

use lb_tests::assert::OnFailure;
use lb_tests::world::{ClientPlace, World};

use super::outcome::{by, check};
use super::scene::{PORT, Scene, at, balanced};

/// Addresses of the nodes' LAN that no host has.
const BALANCERS: [&str; 2] = ["172.31.0.200", "fd00:31::200"];

#[test]
fn an_address_of_the_nodes_subnet_is_served_to_pods_nodes_and_clients_on_and_off_the_lan() {
    for place in [ClientPlace::Lan, ClientPlace::BehindFabric] {
        is_served(place, 0);
    }
}

#[test]
fn an_address_of_the_nodes_subnet_is_served_with_a_strict_and_with_a_loose_reverse_path_filter() {
    for rp_filter in [1, 2] {
        is_served(ClientPlace::Lan, rp_filter);
    }
}

#[track_caller]
fn is_served(place: ClientPlace, rp_filter: u8) {
    let mut scene = Scene::silent(&World::builder().client_place(place).rp_filter(rp_filter));
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&balanced(BALANCERS));
    scene.put_endpoints(&["pod1-2", "pod2-1"]);
    scene.start(&[]);
    for (text, length) in BALANCERS.into_iter().zip([32, 128]) {
        let world = &scene.world;
        world.route_to_node(&format!("{text}/{length}"), 1);
        let to = at(text.parse().expect("an address"), PORT);
        let both = by(&["pod1-2", "pod2-1"]);
        check("a pod of node 1", world.pod("pod1-1"), to, &both);
        check("a pod of node 2", world.pod("pod2-2"), to, &both);
        check("node 1", world.node(1), to, &both);
        check("node 2", world.node(2), to, &both);
        check(&format!("a client {place:?}"), world.client(), to, &both);
    }
}
