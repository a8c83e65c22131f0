//! A flood of new flows over a small table: it displaces its own, settled connections and newcomers are served throughout.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_tests::assert::{OnFailure, throughout};
use lb_tests::packet::Packet;
use lb_tests::traffic::{FrameSocket, HeldConnections, tcp_request, udp_request};
use lb_tests::world::World;

use super::scene::{NODE_PORT, PORT, Scene, at, families};

/// Flows that the table of each family is made for, and entries that it has room for: four each.
const FLOWS: u64 = 1024;
const ENTRIES: u64 = 4 * FLOWS;
/// Settled connections of each family by each frontend.
const HELD: usize = 25;
/// A connection settles when it is seen past its first second.
const SETTLED: Duration = Duration::from_millis(1500);
/// Sources of the flood, hosts that do not exist, and ports of each: SYNs and datagrams four times as many as there are entries.
const SOURCES: std::ops::Range<u16> = 100..116;
const SOURCE_PORTS: std::ops::Range<u16> = 40_000..40_512;
const SECOND: Duration = Duration::from_secs(2);
/// The client's and the fabric's link.
const LINK: ([u8; 6], [u8; 6]) = ([2, 0xc0, 0, 0, 0, 0x0b], [2, 0xc0, 0, 0, 0, 1]);

/// Sends a SYN and a datagram to `to` from every source and port.
fn flood(link: &FrameSocket, to: SocketAddr) {
    for source in SOURCES {
        let source: IpAddr = if to.is_ipv4() {
            [192, 0, 2, source as u8].into()
        } else {
            [0x2001, 0xdb8, 2, 0, 0, 0, 0, source].into()
        };
        for port in SOURCE_PORTS {
            let packet = || Packet::new(source, to.ip()).macs(LINK.0, LINK.1);
            link.send(&packet().tcp(port, to.port(), "S").build());
            link.send(&packet().udp(port, to.port()).payload(b"question").build());
        }
    }
}

#[test]
fn settled_connections_stay_and_newcomers_are_served_while_others_displace_each_other() {
    let mut scene = Scene::of(&World::builder(), &["--flow-entries", &FLOWS.to_string()]);
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&["pod1-2", "pod2-1"]);
    scene.settle();
    let (pod, client) = (&scene.world.pod("pod1-1").ns, &scene.world.client().ns);
    let mut held = Vec::new();
    for addresses in families() {
        held.push(HeldConnections::start(pod, at(addresses.cluster, PORT), HELD));
        held.push(HeldConnections::start(client, at(addresses.balancer, PORT), HELD));
    }
    let mut all_alive = |what: &str, time| {
        throughout(time, what, || held.iter_mut().try_for_each(HeldConnections::all_alive));
    };
    all_alive("connections that settle", SETTLED);

    let link = FrameSocket::open(client, "eth0");
    for addresses in families() {
        let node_port = at(scene.world.node(1).ip_like(addresses.cluster), NODE_PORT);
        let before = scene.counted("new_flow");
        flood(&link, node_port);
        let begun = scene.counted("new_flow") - before;
        // Two entries each: most of these flows stand where others of them stood.
        assert!(2 * begun > 4 * ENTRIES, "{begun} flows begun");
        for (who, from, to) in [
            ("a pod", pod, at(addresses.cluster, PORT)),
            ("the client", client, at(addresses.balancer, PORT)),
        ] {
            for (protocol, reply) in [
                ("TCP", tcp_request(from, to, None, SECOND)),
                ("UDP", udp_request(from, to, None, SECOND)),
            ] {
                assert!(reply.is_ok(), "{who} to {to} over {protocol}: {reply:?}");
            }
        }
        all_alive("settled connections after the flood", Duration::from_millis(1));
    }
    let status = scene.agents[0].json(&["status"]);
    let flows = status["flows"].as_array().into_iter().flatten();
    let entries: u64 = flows.filter_map(|summary| summary["entries"].as_u64()).sum();
    assert!(entries <= 2 * ENTRIES, "{:#}", status["flows"]);
}
