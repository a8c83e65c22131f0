//! The harness tested by itself, without an agent: what a test stands on must be right when Steerway is not there.

mod agent;
mod netns;
mod objects;
mod packet;
mod prog_run;
mod traffic;
mod udp_stream;
mod wire;
mod world;

use std::net::SocketAddr;

use lb_tests::traffic::Server;
use lb_tests::world::{Pod, World};

/// A world of one node with two pods, which are returned too.
fn two_pods() -> (World, Pod, Pod) {
    let world = World::builder().nodes(1).clients(0).build();
    let (from, to) = (world.pod("pod1-1").clone(), world.pod("pod1-2").clone());
    (world, from, to)
}

/// A UDP server that answers from another address than the one returned here, because it is bound to the wildcard: its
/// route prefers the pod's first address.
fn server_of_two_addresses(world: &World, pod: &Pod) -> (Server, SocketAddr) {
    pod.ns.ip("address add 10.244.1.99/32 dev eth0");
    world
        .node(1)
        .ns
        .ip(&format!("route add 10.244.1.99/32 dev {}", pod.veth));
    (
        Server::udp(pod, "wild", ([0, 0, 0, 0], 80)),
        ([10, 244, 1, 99], 80).into(),
    )
}
