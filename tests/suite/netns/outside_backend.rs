//! Backends outside the cluster, in slices that somebody wrote by hand: no pod, no node, reached by the usual routes.

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::netns::Netns;
use lb_tests::traffic::{Server, tcp_request, udp_request};
use lb_tests::world::{Cni, World, WorldBuilder};

use super::outcome::{by, check};
use super::scene::{NODE_PORT, PORT, SERVER_PORT, Scene, at, empty_slice, families, web};

const SECOND: Duration = Duration::from_secs(2);

#[track_caller]
pub(super) fn outside_backends_answer(builder: &WorldBuilder) -> Scene {
    let mut scene = Scene::silent(&builder.clone().clients(2));
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&web());
    let [first, second] = scene.world.clients() else {
        panic!("two clients");
    };
    for host in [first, second] {
        for address in [IpAddr::from(host.ip4), host.ip6.into()] {
            scene
                .servers
                .push(Server::tcp(host, &host.name, (address, SERVER_PORT)));
            scene
                .servers
                .push(Server::udp(host, &host.name, (address, SERVER_PORT)));
        }
    }
    for (v6, addresses) in [false, true].into_iter().zip(families()) {
        let hosts = [first, second].map(|host| host.ip_like(addresses.cluster));
        let object = hosts.iter().fold(empty_slice("web", v6), |object, address| {
            object.endpoint(*address).ready(true)
        });
        scene.folder.put(&object);
    }
    scene.start(&[]);
    let (world, both) = (&scene.world, by(&["client1", "client2"]));
    let (pod, node, client) = (world.pod("pod1-1"), world.node(1), world.client());
    for addresses in families() {
        let own = node.ip_like(addresses.cluster);
        let node_port = at(own, NODE_PORT);
        let (cluster, balancer) = (at(addresses.cluster, PORT), at(addresses.balancer, PORT));
        // The backend sees the pod, as it does without a Service, and for anybody else the node.
        let ways: [(&str, &Netns, IpAddr, _); 3] = [
            ("a pod", &pod.ns, pod.ip_like(own), [cluster, balancer, node_port]),
            ("the node", &node.ns, own, [cluster, balancer, node_port]),
            (
                "the client",
                &client.ns,
                own,
                [at(addresses.external, PORT), balancer, node_port],
            ),
        ];
        for (who, from, seen, frontends) in ways {
            for to in frontends {
                check(who, from, to, &both);
                for (protocol, reply) in [
                    ("TCP", tcp_request(from, to, None, SECOND)),
                    ("UDP", udp_request(from, to, None, SECOND)),
                ] {
                    let reply = reply.unwrap_or_else(|error| panic!("{who} to {to} {protocol}: {error}"));
                    assert_eq!(reply.client_seen.ip(), seen, "{who} to {to} {protocol}");
                }
            }
        }
    }
    scene
}

#[test]
fn pods_the_node_and_clients_reach_them_and_a_client_reaches_itself() {
    outside_backends_answer(&World::builder());
}

#[test]
fn they_are_reached_with_a_strict_reverse_path_filter_and_forward_policy_drop() {
    outside_backends_answer(&World::builder().rp_filter(1).forward_policy_drop());
}

#[test]
fn they_are_reached_with_a_loose_reverse_path_filter_where_netfilter_drops_invalid_packets() {
    no_half_connection(&outside_backends_answer(&World::builder().rp_filter(2).drop_invalid()));
}

#[test]
fn they_are_reached_from_a_bridge_where_netfilter_drops_invalid_packets() {
    let bridge = World::builder().cni(Cni::Bridge).drop_invalid();
    no_half_connection(&outside_backends_answer(&bridge.br_netfilter()));
}

#[track_caller]
fn no_half_connection(scene: &Scene) {
    for node in scene.world.nodes() {
        assert_eq!(node.invalid_drops(), 0, "{} saw half a connection", node.name);
    }
}
