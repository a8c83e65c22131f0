//! Processes on the node itself reach every kind of frontend, by the packet path alone.

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::objects::slice;
use lb_tests::traffic::{Server, distribution, tcp_request, udp_distribution, udp_request};
use lb_tests::world::{Cni, PodRouting, World, WorldBuilder};

use super::scene::{NODE_PORT, PORT, Scene, at, families};

const SECOND: Duration = Duration::from_secs(2);

/// A scene in which requests from the node to every kind of frontend, and to the node port of the other node, reach every pod.
#[track_caller]
fn all_frontends_reach_all_backends(builder: &WorldBuilder) -> Scene {
    let scene = Scene::of(builder, &[]);
    every_pod_answers(&scene);
    scene
}

#[track_caller]
pub(super) fn every_pod_answers(scene: &Scene) {
    let _dump = OnFailure::of(&scene.world);
    let node = scene.world.node(1);
    for addresses in families() {
        for to in [
            at(addresses.cluster, PORT),
            at(addresses.external, PORT),
            at(addresses.balancer, PORT),
            at(node.ip_like(addresses.cluster), NODE_PORT),
            at(scene.world.node(2).ip_like(addresses.cluster), NODE_PORT),
        ] {
            let tcp = distribution(node, to, 60);
            let udp = udp_distribution(node, to, 60);
            for pod in ["pod1-1", "pod1-2", "pod2-1", "pod2-2"] {
                assert!(tcp.contains_key(pod), "{to} TCP never reached {pod}: {tcp:?}");
                assert!(udp.contains_key(pod), "{to} UDP never reached {pod}: {udp:?}");
            }
        }
    }
}

#[test]
fn every_frontend_reaches_every_backend() {
    all_frontends_reach_all_backends(&World::builder());
}

#[test]
fn every_frontend_reaches_every_backend_with_a_strict_reverse_path_filter() {
    all_frontends_reach_all_backends(&World::builder().rp_filter(1));
}

#[test]
fn every_frontend_reaches_every_backend_with_a_loose_reverse_path_filter() {
    all_frontends_reach_all_backends(&World::builder().rp_filter(2));
}

#[test]
fn every_frontend_reaches_every_backend_without_a_default_route() {
    all_frontends_reach_all_backends(&World::builder().no_default_route());
}

#[test]
fn every_frontend_reaches_every_backend_with_forward_policy_drop() {
    all_frontends_reach_all_backends(&World::builder().forward_policy_drop());
}

#[test]
fn every_frontend_reaches_every_backend_over_a_tunnel() {
    all_frontends_reach_all_backends(&World::builder().routing(PodRouting::Vxlan));
}

#[test]
fn every_frontend_reaches_every_backend_on_a_bridge_where_netfilter_drops_invalid_packets() {
    let bridge = World::builder().cni(Cni::Bridge).drop_invalid();
    for builder in [bridge.clone(), bridge.br_netfilter()] {
        let scene = all_frontends_reach_all_backends(&builder);
        for node in scene.world.nodes() {
            assert_eq!(node.invalid_drops(), 0, "{} saw half a connection", node.name);
        }
    }
}

#[test]
fn a_backend_in_the_host_network_of_the_same_node_answers() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    let node = scene.world.node(1);
    let mut servers = Vec::new();
    for (address, name) in [(IpAddr::V4(node.ip4), "web-v4"), (IpAddr::V6(node.ip6), "web-v6")] {
        servers.push(Server::tcp(node, "node1", (address, 9090)));
        servers.push(Server::udp(node, "node1", (address, 9090)));
        let object = slice("default", name, "web");
        let object = if address.is_ipv6() { object.v6() } else { object.v4() };
        let object = object.port_of("http", 9090, "TCP").port_of("dns", 9090, "UDP");
        scene
            .folder
            .put(&object.endpoint(address).node("node1").ready(true).serving(true));
    }
    scene.settle();
    let node = scene.world.node(1);
    for addresses in families() {
        for to in [
            at(addresses.cluster, PORT),
            at(node.ip_like(addresses.cluster), NODE_PORT),
        ] {
            let tcp = tcp_request(node, to, None, SECOND).unwrap_or_else(|e| panic!("{to} TCP from the node: {e:?}"));
            let udp = udp_request(node, to, None, SECOND).unwrap_or_else(|e| panic!("{to} UDP from the node: {e:?}"));
            assert_eq!((tcp.backend.as_str(), udp.backend.as_str()), ("node1", "node1"));
            let pod = scene.world.pod("pod1-1");
            tcp_request(pod, to, None, SECOND).unwrap_or_else(|e| panic!("{to} TCP from a pod: {e:?}"));
            udp_request(pod, to, None, SECOND).unwrap_or_else(|e| panic!("{to} UDP from a pod: {e:?}"));
        }
        let to = at(node.ip_like(addresses.cluster), NODE_PORT);
        let reply = tcp_request(scene.world.client(), to, None, SECOND).expect("from outside");
        assert_eq!(reply.client_seen.ip(), scene.world.client().ip_like(addresses.cluster));
    }
}

/// A datagram is sent once: the kernel keeps it until the neighbour has answered, and must then send it to that neighbour.
#[test]
fn the_first_datagram_to_a_neighbour_that_is_not_known_yet_arrives() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    let mut lost = Vec::new();
    for backend in ["pod1-2", "pod2-1"] {
        scene.put_endpoints(&[backend]);
        scene.settle();
        let node = scene.world.node(1);
        for addresses in families() {
            let node_port = at(node.ip_like(addresses.cluster), NODE_PORT);
            for to in [at(addresses.cluster, PORT), node_port] {
                node.ns.ip("neigh flush all");
                if let Err(error) = udp_request(node, to, None, SECOND) {
                    lost.push(format!("{to} at {backend}: {error}"));
                }
            }
        }
    }
    assert!(lost.is_empty(), "{lost:#?}");
}
