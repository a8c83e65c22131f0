//! Connections that outlive what they began under: a device without a hook, tables that had to be made anew; and frames of
//! others, which begin nothing.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::packet::{Decoded, Packet};
use lb_tests::traffic::{FrameSocket, HeldConnections, Server, tcp_request};
use lb_tests::world::{ClientPlace, World, WorldBuilder};

use super::scene::{NODE_PORT, PORT, SERVER_PORT, Scene, at, families};

const SECOND: Duration = Duration::from_secs(2);

#[test]
fn connections_of_a_pod_that_was_born_while_no_agent_ran_go_on_when_one_runs_again() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.agents[0].kill9();
    let pod = scene.world.add_pod(1, "late");
    let mut held = families().map(|family| HeldConnections::start(&pod, at(family.cluster, PORT), 40));
    for connections in &held {
        let backends = connections.backends();
        assert_eq!(backends.len(), 4, "local and remote ones: {backends:?}");
    }
    scene.agents[0].restart();
    scene.settle();
    for connections in &mut held {
        for _ in 0..2 {
            let report = connections.check_all();
            assert!(report.lost.is_empty(), "{report:?}");
        }
    }
}

#[test]
fn connections_find_their_way_again_when_the_tables_had_to_be_made_anew() {
    let mut scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    let world = &scene.world;
    let (node, client, pod) = (world.node(1), world.client(), world.pod("pod1-1"));
    let mut held = Vec::new();
    for family in families() {
        held.push(HeldConnections::start(client, at(family.balancer, PORT), 20));
        held.push(HeldConnections::start(
            client,
            at(node.ip_like(family.cluster), NODE_PORT),
            20,
        ));
        held.push(HeldConnections::start(pod, at(family.cluster, PORT), 20));
        held.push(HeldConnections::start(node, at(family.cluster, PORT), 20));
    }
    scene.agents[0].kill9();
    // Of which layout the pinned maps are, nobody knows any more.
    fs::remove_file(scene.agents[0].pin_dir().join("layout")).expect("the mark");
    scene.agents[0].restart();
    scene.settle();
    assert!(scene.agents[0].log().contains("map replaced"), "the tables are new");
    for connections in &mut held {
        let report = connections.check_all();
        assert!(report.lost.is_empty(), "{report:?}");
    }
}

/// Frames to MAC addresses that nobody has; the bridge of the LAN floods them to every node.
#[track_caller]
fn begin_nothing(builder: &WorldBuilder, arguments: &[&str]) {
    const PORTS: [u16; 2] = [40_005, 40_006];
    let mut scene = Scene::of(&builder.clone().client_place(ClientPlace::Lan), arguments);
    let _dump = OnFailure::of(&scene.world);
    let world = &scene.world;
    let (node, client) = (world.node(1), world.client());
    let backend = world.pod("pod2-1");
    for address in [IpAddr::from(backend.ip4), backend.ip6.into()] {
        scene
            .servers
            .push(Server::tcp(backend, "straight", (address, SERVER_PORT + 1)));
    }
    let wire = FrameSocket::open(client, "eth0");
    for family in families() {
        let (own, node_address) = (client.ip_like(family.balancer), node.ip_like(family.balancer));
        let strange = |packet: Packet| packet.macs([2, 0, 0, 0, 0x77, 2], [2, 0, 0, 0, 0x77, 1]);
        for (to, source, port) in [(family.balancer, PORTS[0], PORT), (node_address, PORTS[1], NODE_PORT)] {
            wire.send(&strange(Packet::new(own, to).tcp(source, port, "S")).build());
        }
        wire.send(&strange(Packet::new(own, family.balancer).echo_request(0x7777, 1)).build());
        // What comes after them, on the same way, has been dealt with after them.
        let reply = tcp_request(client, at(family.balancer, PORT), None, SECOND);
        assert!(reply.is_ok(), "{reply:?}");
        for captured in wire.drain() {
            let Ok(packet) = Decoded::frame(&captured.frame) else {
                continue;
            };
            let answered = packet.destination_port().is_some_and(|port| PORTS.contains(&port));
            let ping = packet.ip.source == family.balancer && packet.ports().is_none();
            assert!(!answered && !ping, "an answer to a frame for somebody else: {packet:?}");
        }
    }
    let flows = scene.agents[0].json(&["flows"]).to_string();
    for port in PORTS {
        assert!(!flows.contains(&port.to_string()), "a flow of port {port}: {flows}");
    }
}

#[test]
fn frames_for_somebody_else_that_a_switch_floods_begin_nothing_and_are_not_answered() {
    begin_nothing(&World::builder(), &["--xdp", "off"]);
}

#[test]
fn neither_do_they_at_xdp() {
    begin_nothing(&World::builder().xdp(), &[]);
}
