//! A client port that is used again at once: the new connection is chosen for anew, whatever became of the old one.

use std::net::SocketAddr;
use std::time::Duration;

use lb_tests::assert::{OnFailure, eventually};
use lb_tests::netns::Netns;
use lb_tests::traffic::tcp_request;
use lb_tests::world::{World, WorldBuilder};
use socket2::{Domain, Protocol, Socket, Type};

use super::scene::{NODE_PORT, PORT, READY, Scene, at, families};

/// None that the kernel gives to connections without one.
const CLIENT_PORT: u16 = 27_000;
const LIMIT: Duration = Duration::from_secs(2);

/// Connects from `bind` and ends the connection by a reset.
#[track_caller]
fn connect_and_reset(from: &Netns, to: SocketAddr, bind: SocketAddr) {
    let done = from.run(|| -> std::io::Result<()> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.bind(&bind.into())?;
        socket.connect_timeout(&to.into(), LIMIT)
    });
    done.unwrap_or_else(|error| panic!("{bind} to {to}: {error}"));
}

#[test]
fn a_port_that_is_used_again_after_a_reset_or_a_close_reaches_the_endpoint_of_now() {
    ports_are_used_again(&World::builder());
}

#[track_caller]
pub(super) fn ports_are_used_again(builder: &WorldBuilder) -> Scene {
    let mut scene = Scene::of(builder, &[]);
    let _dump = OnFailure::of(&scene.world);
    let places = |scene: &Scene, v6: usize| -> Vec<(Netns, SocketAddr, SocketAddr)> {
        let (addresses, world) = (families()[v6], &scene.world);
        let like = addresses.cluster;
        let node_port = at(world.node(1).ip_like(like), NODE_PORT);
        let (pod, client, node) = (world.pod("pod1-1"), world.client(), world.node(1));
        vec![
            (pod.ns.clone(), at(pod.ip_like(like), CLIENT_PORT), at(like, PORT)),
            (client.ns.clone(), at(client.ip_like(like), CLIENT_PORT), node_port),
            (node.ns.clone(), at(node.ip_like(like), CLIENT_PORT), at(like, PORT)),
        ]
    };
    for v6 in [0, 1] {
        for (netns, ..) in places(&scene, v6) {
            // A port in TIME-WAIT may be used again a second later.
            netns.sysctl("net.ipv4.tcp_tw_reuse", "1");
        }
        for (old, new) in [("pod1-2", "pod2-1"), ("pod2-1", "pod1-2")] {
            scene.set_conditions(&[(old, READY)]);
            for (netns, bind, to) in places(&scene, v6) {
                connect_and_reset(&netns, to, bind);
            }
            scene.set_conditions(&[(new, READY)]);
            for (netns, bind, to) in places(&scene, v6) {
                let reply = tcp_request(&netns, to, Some(bind), LIMIT);
                let reply = reply.unwrap_or_else(|error| panic!("{bind} to {to} after a reset: {error}"));
                assert_eq!(reply.backend, new, "{bind} to {to} after a reset");
            }
            scene.set_conditions(&[(old, READY)]);
            for (netns, bind, to) in places(&scene, v6) {
                let reply = eventually(Duration::from_secs(5), "the port is free again", || {
                    tcp_request(&netns, to, Some(bind), LIMIT)
                });
                assert_eq!(reply.backend, old, "{bind} to {to} after a close");
            }
        }
    }
    scene
}
