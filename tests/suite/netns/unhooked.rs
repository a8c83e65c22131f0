//! Clients behind a device that nothing of ours is on: their packets to VIPs are met at steer0, forwarded, not sent by the host.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::traffic::{HeldConnections, Server, tcp_request, udp_request};
use lb_tests::world::World;

use super::scene::{PORT, SERVER_PORT, Scene, at, empty_slice, families, web};

const SECOND: Duration = Duration::from_secs(2);
/// The first local port that two clients share; another for each backend, since TCP keeps a closed port for a minute.
const CLIENT_PORT: u16 = 41_000;

/// Servers in the host network of node 1.
fn serve_on_the_node(scene: &mut Scene) {
    let node = scene.world.node(1);
    for address in [IpAddr::from(node.ip4), node.ip6.into()] {
        scene.servers.push(Server::tcp(node, "node1", (address, SERVER_PORT)));
        scene.servers.push(Server::udp(node, "node1", (address, SERVER_PORT)));
    }
}

/// Makes `backend`, a pod or node 1 itself, the Service's only endpoint.
#[track_caller]
fn put_backend(scene: &mut Scene, backend: &str) {
    if backend.starts_with("pod") {
        scene.put_endpoints(&[backend]);
    } else {
        for v6 in [false, true] {
            let address = scene.world.node(1).ip_like(families()[usize::from(v6)].cluster);
            let object = empty_slice("web", v6).endpoint(address).node("node1");
            scene.folder.put(&object.ready(true).serving(true));
        }
    }
    scene.settle();
}

#[test]
fn they_reach_backends_on_every_node_and_in_the_host_network() {
    let mut scene = Scene::silent(&World::builder().pods_per_node(3));
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&web());
    serve_on_the_node(&mut scene);
    scene.start(&["--ignore", "veth-pod1-1,veth-pod1-3"]);
    for (port, backend) in (CLIENT_PORT..).zip(["pod1-2", "pod2-1", "node1"]) {
        put_backend(&mut scene, backend);
        for family in families() {
            for vip in [family.cluster, family.balancer, family.external] {
                let to = at(vip, PORT);
                // One port of two clients: replies must not be mixed up.
                for client in ["pod1-1", "pod1-3"] {
                    let pod = scene.world.pod(client);
                    let bind = Some(SocketAddr::new(pod.ip_like(vip), port));
                    for (protocol, reply) in [
                        ("TCP", tcp_request(pod, to, bind, SECOND)),
                        ("UDP", udp_request(pod, to, bind, SECOND)),
                    ] {
                        let reply = reply.unwrap_or_else(|error| panic!("{client} to {to} {protocol}: {error}"));
                        assert_eq!(reply.backend, backend, "{client} to {to} {protocol}");
                    }
                }
                let mut held = HeldConnections::start(scene.world.pod("pod1-1"), to, 20);
                let report = held.check_all();
                assert!(report.lost.is_empty(), "{to} at {backend}: {report:?}");
            }
        }
    }
}
