//! One client port towards several frontends that lead to one backend, and towards that backend itself: the backend sees
//! separate flows, replies find each.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::netns::Netns;
use lb_tests::objects::{ServiceObject, service};
use lb_tests::traffic::{HeldConnections, UdpKind, udp_request_with};
use lb_tests::world::{Cni, World, WorldBuilder};

use super::scene::{NODE_PORT, PORT, SERVER_PORT, Scene, at, endpoints};

/// Services over the one backend.
const SERVICES: usize = 4;
/// The client's port, none that the kernel gives to connections without one.
const CLIENT_PORT: u16 = 25_000;
/// So few ports of ours that two nodes which chose from the same ones for the client's address would often meet on one.
const SNAT_PORTS: &str = "16384-16639";

/// Addresses of Service `number`: ClusterIP and LoadBalancer IP of each family.
fn addresses(number: usize) -> [[String; 2]; 2] {
    [
        [format!("10.96.1.{number}"), format!("203.0.113.{}", 100 + number)],
        [
            format!("fd00:10:96::1:{number}"),
            format!("2001:db8:113::{}", 100 + number),
        ],
    ]
}

fn object(number: usize) -> ServiceObject {
    let [[cluster4, balancer4], [cluster6, balancer6]] = addresses(number);
    service("default", &format!("web{number}"))
        .cluster_ip(&cluster4)
        .cluster_ip(&cluster6)
        .port("http", PORT, "TCP")
        .target_port(SERVER_PORT)
        .node_port(NODE_PORT + number as u16)
        .port("dns", PORT, "UDP")
        .target_port(SERVER_PORT)
        .node_port(NODE_PORT + number as u16)
        .load_balancer_ip(&balancer4)
        .load_balancer_ip(&balancer6)
}

/// Connections and datagrams from one port of `from` to all of `to` are all served at once by `backend`.
#[track_caller]
fn all_are_served(who: &str, from: &Netns, bind: SocketAddr, to: &[SocketAddr], backend: &str) {
    let mut held = HeldConnections::start_from(from, to, bind);
    for _ in 0..3 {
        let report = held.check_all();
        assert!(report.lost.is_empty(), "{who} over TCP: {report:?}");
    }
    let seen: BTreeSet<SocketAddr> = held.replies().map(|reply| reply.client_seen).collect();
    assert_eq!(
        seen.len(),
        to.len(),
        "{who}: the backend saw separate clients: {seen:?}"
    );
    assert_eq!(held.backends().into_keys().collect::<Vec<_>>(), [backend], "{who}");
    for _ in 0..3 {
        for to in to {
            let limit = Duration::from_secs(2);
            let reply = udp_request_with(from, *to, Some(bind), limit, UdpKind::Unconnected);
            let reply = reply.unwrap_or_else(|error| panic!("{who} to {to} over UDP: {error}"));
            assert_eq!(reply.backend, backend, "{who} to {to} over UDP");
        }
    }
}

#[test]
fn one_client_port_reaches_one_backend_straight_and_through_many_services_at_once() {
    one_client_port(&World::builder());
}

#[test]
fn one_client_port_reaches_one_backend_straight_and_through_many_services_on_a_bridge() {
    one_client_port(&World::builder().cni(Cni::Bridge).drop_invalid());
}

#[track_caller]
pub(super) fn one_client_port(builder: &WorldBuilder) {
    let mut scene = Scene::silent(builder);
    let _dump = OnFailure::of(&scene.world);
    for number in 1..=SERVICES {
        scene.put_service(&object(number));
        for [_, balancer] in addresses(number) {
            let length = if balancer.contains(':') { 128 } else { 32 };
            scene.world.route_to_node(&format!("{balancer}/{length}"), 1);
        }
    }
    for (round, backend) in ["pod1-2", "pod2-1"].into_iter().enumerate() {
        for number in 1..=SERVICES {
            for v6 in [false, true] {
                let pods = [scene.world.pod(backend).clone()];
                scene.folder.put(&endpoints(&format!("web{number}"), &pods, v6));
            }
        }
        if round == 0 {
            scene.start(&["--snat-ports", SNAT_PORTS]);
        } else {
            scene.settle();
        }
        let port = CLIENT_PORT + round as u16;
        for family in 0..2 {
            let towards = |kind: usize| -> Vec<SocketAddr> {
                (1..=SERVICES)
                    .map(|number| {
                        let address: IpAddr = addresses(number)[family][kind].parse().expect("an address");
                        at(address, PORT)
                    })
                    .collect()
            };
            let (clusters, balancers) = (towards(0), towards(1));
            let world = &scene.world;
            let like = clusters[0].ip();
            let node_ports_of = |node: usize| -> Vec<SocketAddr> {
                (1..=SERVICES)
                    .map(|number| at(world.node(node).ip_like(like), NODE_PORT + number as u16))
                    .collect()
            };
            let node_ports = node_ports_of(1);
            let pod = world.pod("pod1-1");
            let straight = vec![at(world.pod(backend).ip_like(like), SERVER_PORT)];
            let all = [
                clusters.clone(),
                balancers.clone(),
                node_ports.clone(),
                node_ports_of(2),
                straight.clone(),
            ]
            .concat();
            all_are_served("the pod", &pod.ns, at(pod.ip_like(like), port), &all, backend);
            let client = world.client();
            let outside = [balancers, node_ports].concat();
            all_are_served(
                "the client",
                &client.ns,
                at(client.ip_like(like), port),
                &outside,
                backend,
            );
            let node = world.node(1);
            let inside = [clusters, straight].concat();
            all_are_served("the node", &node.ns, at(node.ip_like(like), port), &inside, backend);
        }
    }
}
