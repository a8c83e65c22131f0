//! ICMP errors about datagrams through VIPs, as the sender's socket is told them: about the VIP it asked, by whoever said it.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use lb_tests::assert::{OnFailure, eventually};
use lb_tests::netns::Netns;
use lb_tests::traffic::{ConnectErrorKind, QueuedError, probe_hops, udp_request};
use lb_tests::world::{World, WorldBuilder};

use super::scene::{NODE_PORT, PORT, READY, Scene, at, endpoint, families, family_slice};

const LIMIT: Duration = Duration::from_secs(2);
/// A port on which no pod listens.
const CLOSED: u16 = 9099;
/// More routers than there are.
const FAR: u8 = 64;

/// A scene in which every ICMP error is sent, however soon it follows another one.
#[track_caller]
fn scene(builder: &WorldBuilder) -> Scene {
    let scene = Scene::of(builder, &[]);
    for (_, netns) in scene.world.namespaces() {
        netns.sysctls(&[("net.ipv4.icmp_ratelimit", "0"), ("net.ipv6.icmp.ratelimit", "0")]);
    }
    scene
}

/// Makes a pod the only endpoint, in both families, at a port on which it does not listen by itself.
#[track_caller]
fn serve_at_closed_ports(scene: &mut Scene, backend: &str) {
    for v6 in [false, true] {
        let ports = family_slice("web", v6)
            .port_of("http", CLOSED, "TCP")
            .port_of("dns", CLOSED, "UDP");
        scene.folder.put(&endpoint(ports, scene.world.pod(backend), v6, READY));
    }
    scene.settle();
}

/// Who asks, from where, and what.
fn ways(scene: &Scene, like: IpAddr) -> Vec<(&'static str, &Netns, SocketAddr)> {
    let world = &scene.world;
    let addresses = families()[usize::from(like.is_ipv6())];
    let node_port = at(world.node(1).ip_like(like), NODE_PORT);
    let (pod, node, client) = (&world.pod("pod1-1").ns, &world.node(1).ns, &world.client().ns);
    vec![
        ("a pod", pod, at(addresses.cluster, PORT)),
        ("the node", node, at(addresses.cluster, PORT)),
        ("the node", node, node_port),
        ("the client", client, node_port),
        ("the client", client, at(addresses.balancer, PORT)),
    ]
}

/// The one error that a datagram with `hops` has brought.
#[track_caller]
fn error(who: &str, from: &Netns, to: SocketAddr, hops: u8) -> QueuedError {
    let errors = probe_hops(from, to, hops, LIMIT);
    let [error] = &errors[..] else {
        panic!("{who} to {to} with {hops} hops: {errors:?}");
    };
    assert!(error.by_icmp, "{who} to {to} with {hops} hops: {error:?}");
    assert_eq!(error.about, Some(to), "{who} to {to} with {hops} hops: {error:?}");
    error.clone()
}

#[test]
fn a_closed_port_of_the_backend_is_told_to_pods_the_node_and_clients_as_the_vips() {
    closed_ports_are_told(&World::builder());
}

#[test]
fn a_closed_port_is_told_to_senders_that_sum_up_their_packets_themselves() {
    closed_ports_are_told(&World::builder().no_tx_checksum());
}

#[track_caller]
pub(super) fn closed_ports_are_told(builder: &WorldBuilder) -> Scene {
    let mut scene = scene(builder);
    let _dump = OnFailure::of(&scene.world);
    for backend in ["pod1-2", "pod2-1"] {
        serve_at_closed_ports(&mut scene, backend);
        for addresses in families() {
            for (who, from, to) in ways(&scene, addresses.cluster) {
                let refused = udp_request(from, to, None, LIMIT).expect_err("nobody listens");
                assert_eq!(
                    refused.kind,
                    ConnectErrorKind::Refused,
                    "{who} to {to} at {backend}: {refused}"
                );
                let error = error(who, from, to, FAR);
                let kind = if to.is_ipv4() { (3, 3) } else { (1, 4) };
                assert_eq!(
                    (error.icmp_type, error.icmp_code),
                    kind,
                    "{who} to {to} at {backend}: {error:?}"
                );
                assert_eq!(error.offender, Some(to.ip()), "{who} to {to} at {backend}");
            }
        }
    }
    scene
}

/// Names of those who say that a datagram's time is over, by its hops from 1 on.
fn on_the_way(who: &str, backend: &str) -> &'static [&'static str] {
    match (who, backend) {
        ("a pod", "pod1-2") => &["node1"],
        ("a pod", _) => &["node1", "node2"],
        // Its own node passes nothing on: it sends.
        ("the node", "pod1-2") => &[],
        ("the node", _) => &["node2"],
        (_, "pod1-2") => &["fabric", "node1"],
        _ => &["fabric", "node1", "node2"],
    }
}

#[test]
fn time_exceeded_on_the_way_to_a_backend_is_told_as_on_the_way_to_the_vip() {
    time_exceeded_is_told(&World::builder());
}

#[track_caller]
pub(super) fn time_exceeded_is_told(builder: &WorldBuilder) -> Scene {
    let mut scene = scene(builder);
    let _dump = OnFailure::of(&scene.world);
    for backend in ["pod1-2", "pod2-1"] {
        scene.put_endpoints(&[backend]);
        scene.settle();
        for addresses in families() {
            for (who, from, to) in ways(&scene, addresses.cluster) {
                let routers = on_the_way(who, backend);
                for (router, hops) in routers.iter().zip(1..) {
                    let error = error(who, from, to, hops);
                    let kind = if to.is_ipv4() { (11, 0) } else { (3, 0) };
                    assert_eq!(
                        (error.icmp_type, error.icmp_code),
                        kind,
                        "{who} to {to} at {backend}: {error:?}"
                    );
                    let told = error.offender.unwrap_or_else(|| panic!("{who} to {to}: {error:?}"));
                    // To a process of node 1, a router's own address would not pass a strict reverse path filter. To a
                    // client, node 1 answers in the VIP's place for what it forwards itself.
                    let for_the_vip =
                        who == "the node" || (*router, backend) == ("node1", "pod2-1") && who == "the client";
                    if for_the_vip {
                        assert_eq!(told, to.ip(), "{who} to {to} at {backend}, hop {hops}, {router}");
                        continue;
                    }
                    let namespaces = scene.world.namespaces();
                    let netns = namespaces.iter().find(|(name, _)| name == router);
                    let (_, netns) = netns.unwrap_or_else(|| panic!("no {router}"));
                    let known = netns.ip("-o address show scope global");
                    assert!(
                        known.contains(&format!(" {told}/")),
                        "{who} to {to} at {backend}, hop {hops}: {told} is not {router}'s"
                    );
                }
                // One more, and it arrives.
                let hops = routers.len() as u8 + 1;
                let errors = probe_hops(from, to, hops, LIMIT);
                assert!(
                    errors.is_empty(),
                    "{who} to {to} at {backend} with {hops} hops: {errors:?}"
                );
            }
        }
    }
    scene
}

/// A UDP socket in a namespace, on a port of the wildcard address.
#[track_caller]
fn socket(place: &Netns, like: IpAddr, port: u16) -> UdpSocket {
    let wildcard = if like.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    // The one before may be held for a moment by a child that another test has just begun.
    let socket = eventually(LIMIT, &format!("a socket on port {port}"), || {
        place.run(|| UdpSocket::bind(at(wildcard, port)))
    });
    socket.set_read_timeout(Some(LIMIT)).expect("a time-out");
    socket
}

#[test]
fn a_backend_that_answers_a_client_which_has_gone_is_told() {
    let mut scene = scene(&World::builder());
    let _dump = OnFailure::of(&scene.world);
    for backend in ["pod1-2", "pod2-1"] {
        serve_at_closed_ports(&mut scene, backend);
        for addresses in families() {
            for (who, from, to) in ways(&scene, addresses.cluster) {
                let server = socket(&scene.world.pod(backend).ns, to.ip(), CLOSED);
                let client = socket(from, to.ip(), 0);
                client.connect(to).expect("a way");
                client.send(b"question").expect("a datagram");
                let mut buffer = [0; 64];
                let (_, seen) = server
                    .recv_from(&mut buffer)
                    .unwrap_or_else(|error| panic!("{who} to {to} at {backend}: no question: {error}"));
                server.connect(seen).expect("a way back");
                server.send(b"answer").expect("a datagram");
                let answer = client.recv(&mut buffer);
                assert!(answer.is_ok(), "{who} to {to} at {backend}: no answer: {answer:?}");
                let port = client.local_addr().expect("a bound socket").port();
                drop(client);
                await_free(from, to.ip(), port);
                server.send(b"late answer").expect("a datagram");
                let told = server.recv(&mut buffer).expect_err("the client has gone");
                assert_eq!(
                    told.kind(),
                    ErrorKind::ConnectionRefused,
                    "{who} to {to} at {backend}, seen as {seen}: {told}"
                );
            }
        }
    }
}

/// Waits until no socket is on a UDP port: a child that another test has just begun holds copies of all open files until it runs a program
/// of its own.
#[track_caller]
fn await_free(place: &Netns, like: IpAddr, port: u16) {
    let path = if like.is_ipv4() { "udp" } else { "udp6" };
    let (path, end) = (format!("/proc/thread-self/net/{path}"), format!(":{port:04X}"));
    eventually(LIMIT, &format!("port {port} is free"), || {
        let sockets = place
            .run(|| fs::read_to_string(&path))
            .expect("the sockets of a namespace");
        let mut local = sockets.lines().filter_map(|line| line.split_whitespace().nth(1));
        if local.any(|address| address.ends_with(&end)) {
            Err("it is taken")
        } else {
            Ok(())
        }
    });
}
