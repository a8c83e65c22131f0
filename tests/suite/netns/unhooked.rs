//! Clients behind a device that nothing of ours is on: their packets to VIPs are met at steer0, forwarded, not sent by the host.

use std::net::SocketAddr;
use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::traffic::{HeldConnections, tcp_request, udp_request};
use lb_tests::world::World;

use super::scene::{PORT, Scene, at, families, web};

const SECOND: Duration = Duration::from_secs(2);
/// The first local port that two clients share; another for each backend, since TCP keeps a closed port for a minute. None that the
/// kernel gives to connections without one, which are closed here, too.
const CLIENT_PORT: u16 = 21_000;

/// Makes `backend`, a pod or node 1 itself, the Service's only endpoint.
#[track_caller]
fn put_backend(scene: &mut Scene, backend: &str) {
    if backend.starts_with("pod") {
        scene.put_endpoints(&[backend]);
    } else {
        scene.put_node_endpoints(&[1]);
    }
    scene.settle();
}

#[test]
fn they_reach_backends_on_every_node_and_in_the_host_network() {
    let mut scene = Scene::silent(&World::builder().pods_per_node(3));
    let _dump = OnFailure::of(&scene.world);
    scene.put_service(&web());
    scene.serve_on_node(1);
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
