//! Which addresses of the node serve node ports: `--nodeport-addresses`.

use std::net::IpAddr;

use lb_tests::assert::OnFailure;
use lb_tests::world::World;

use super::outcome::{Outcome, REFUSED, by, check};
use super::scene::{NODE_PORT, Scene, at, web};

/// Further addresses of node 1, routed to it.
const SECOND: [(&str, u8); 2] = [("10.99.0.1", 32), ("fd00:99::1", 128)];

/// The node's primary and second addresses answer on the node port as expected, to a pod, the node and a client.
#[track_caller]
fn serves(setting: &str, primary: bool, second: bool) {
    let mut scene = Scene::silent(&World::builder());
    let _dump = OnFailure::of(&scene.world);
    for (address, length) in SECOND {
        let nodad = if length == 128 { " nodad" } else { "" };
        let node = scene.world.node(1);
        node.ns.ip(&format!("addr add {address}/{length} dev eth0{nodad}"));
        scene.world.route_to_node(&format!("{address}/{length}"), 1);
    }
    scene.put_service(&web());
    scene.put_endpoints(&["pod1-2", "pod2-1"]);
    scene.start(&["--nodeport-addresses", setting]);
    for (address, _) in SECOND {
        let other: IpAddr = address.parse().expect("an address");
        let own = scene.world.node(1).ip_like(other);
        for (address, served) in [(own, primary), (other, second)] {
            let expected: Outcome = if served { by(&["pod1-2", "pod2-1"]) } else { REFUSED };
            let (world, to) = (&scene.world, at(address, NODE_PORT));
            check(&format!("{setting}: the pod"), world.pod("pod1-1"), to, &expected);
            check(&format!("{setting}: the node"), world.node(1), to, &expected);
            check(&format!("{setting}: the client"), world.client(), to, &expected);
        }
    }
}

#[test]
fn the_primary_addresses_alone_serve_node_ports_unless_told_otherwise() {
    serves("primary", true, false);
}

#[test]
fn networks_choose_the_addresses_that_serve_node_ports() {
    serves("10.99.0.0/24,fd00:99::/64", false, true);
}

#[test]
fn all_networks_mean_all_addresses() {
    serves("0.0.0.0/0,::/0", true, true);
}
