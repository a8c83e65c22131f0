//! Backends in the host network, of the clients' node and of another one: for pods, processes of the node and clients outside.

use lb_tests::assert::OnFailure;
use lb_tests::world::{Cni, PodRouting, World, WorldBuilder};

use super::outcome::{by, check};
use super::scene::{NODE_PORT, PORT, Scene, at, families, web};

#[track_caller]
pub(super) fn both_nodes_answer(builder: &WorldBuilder) -> Scene {
    let mut scene = Scene::silent(builder);
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&web());
    scene.serve_on_node(1);
    scene.serve_on_node(2);
    scene.put_node_endpoints(&[1, 2]);
    scene.start(&[]);
    let (world, both) = (&scene.world, by(&["node1", "node2"]));
    for addresses in families() {
        let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
        for to in [at(addresses.cluster, PORT), at(addresses.balancer, PORT), node_port] {
            check("a pod", world.pod("pod1-1"), to, &both);
            check("the node", world.node(1), to, &both);
        }
        for to in [at(addresses.external, PORT), at(addresses.balancer, PORT), node_port] {
            check("the client", world.client(), to, &both);
        }
    }
    scene
}

#[test]
fn pods_the_node_and_clients_reach_those_of_both_nodes() {
    both_nodes_answer(&World::builder());
}

#[test]
fn pods_the_node_and_clients_reach_them_with_a_strict_reverse_path_filter() {
    both_nodes_answer(&World::builder().rp_filter(1));
}

#[test]
fn pods_the_node_and_clients_reach_them_with_a_loose_reverse_path_filter() {
    both_nodes_answer(&World::builder().rp_filter(2));
}

#[test]
fn pods_the_node_and_clients_reach_them_with_forward_policy_drop() {
    both_nodes_answer(&World::builder().forward_policy_drop());
}

#[test]
fn pods_the_node_and_clients_reach_them_over_a_tunnel() {
    both_nodes_answer(&World::builder().routing(PodRouting::Vxlan));
}

#[test]
fn pods_the_node_and_clients_reach_them_from_a_bridge() {
    both_nodes_answer(&World::builder().cni(Cni::Bridge));
}

#[test]
fn pods_the_node_and_clients_reach_them_where_netfilter_drops_invalid_packets() {
    let bridge = World::builder().cni(Cni::Bridge).drop_invalid();
    for builder in [World::builder().drop_invalid(), bridge.br_netfilter()] {
        let scene = both_nodes_answer(&builder);
        for node in scene.world.nodes() {
            assert_eq!(node.invalid_drops(), 0, "{} saw half a connection", node.name);
        }
    }
}
