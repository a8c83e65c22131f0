//! A client behind a device without a link header, as tunnels and modems are: requests, refusals, and ICMP errors both ways.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use lb_tests::assert::{OnFailure, eventually};
use lb_tests::netns::Netns;
use lb_tests::packet::{Decoded, Transport};
use lb_tests::traffic::{
    ConnectErrorKind, FrameSocket, bulk_transfer, distribution, probe_path_mtu, tcp_request, udp_distribution,
    udp_request,
};
use lb_tests::tun::TunCable;
use lb_tests::world::World;

use super::scene::{NODE_PORT, PORT, SERVER_PORT, Scene, at, families, web};

const SECOND: Duration = Duration::from_secs(2);
/// For what must come true.
const LIMIT: Duration = Duration::from_secs(20);
const NARROW: u32 = 1280;

/// The client's and node 1's addresses on the cable.
fn ends(like: IpAddr) -> [IpAddr; 2] {
    let texts = if like.is_ipv4() {
        ["192.0.3.10", "192.0.3.1"]
    } else {
        ["2001:db8:3::10", "2001:db8:3::1"]
    };
    texts.map(|text| text.parse().expect("an address"))
}

/// A scene, a client on a cable to node 1, and the cable.
struct Site {
    scene: Scene,
    client: Netns,
    _cable: TunCable,
}

impl Site {
    #[track_caller]
    fn new(backends: &[&str]) -> Self {
        let mut scene = Scene::silent(&World::builder());
        let client = Netns::new("far-client");
        let node = scene.world.node(1);
        let cable = TunCable::lay([(&client, "tun0"), (&node.ns, "tun0")]);
        for family in families() {
            let [far, near] = ends(family.cluster);
            let length = if far.is_ipv4() { 24 } else { 64 };
            client.ip(&format!("addr add {far}/{length} dev tun0"));
            node.ns.ip(&format!("addr add {near}/{length} dev tun0"));
            client.ip(&format!("route add default via {near}"));
            // Node 2 and what is behind the fabric answer by node 1.
            let via = node.ip_like(far);
            let net = if far.is_ipv4() {
                "192.0.3.0/24"
            } else {
                "2001:db8:3::/64"
            };
            for place in [&scene.world.fabric, &scene.world.node(2).ns] {
                place.ip(&format!("route add {net} via {via}"));
            }
        }
        scene.put_service(&web());
        scene.put_endpoints(backends);
        scene.start(&["--uplink", "eth0,tun0"]);
        Self {
            scene,
            client,
            _cable: cable,
        }
    }
}

#[test]
fn requests_of_every_size_reach_every_backend() {
    let site = Site::new(&["pod1-1", "pod2-1"]);
    let _dump = OnFailure::of(&site.scene.world);
    for family in families() {
        let node = site.scene.world.node(1).ip_like(family.cluster);
        for to in [at(family.balancer, PORT), at(node, NODE_PORT)] {
            for (protocol, reached) in [
                ("TCP", distribution(&site.client, to, 40)),
                ("UDP", udp_distribution(&site.client, to, 40)),
            ] {
                assert_eq!(
                    reached.keys().collect::<Vec<_>>(),
                    ["pod1-1", "pod2-1"],
                    "{to} over {protocol}"
                );
            }
            bulk_transfer(&site.client, to, 1_000_000, Duration::from_secs(20)).expect("a whole transfer");
        }
    }
}

#[test]
fn refusals_come_back_over_the_device() {
    // Without endpoints; and an unknown port of a VIP that has some.
    let cases: [(&[&str], u16); 2] = [(&[], PORT), (&["pod1-1"], 81)];
    for (backends, port) in cases {
        let site = Site::new(backends);
        let _dump = OnFailure::of(&site.scene.world);
        for family in families() {
            let to = at(family.cluster, port);
            for (protocol, reply) in [
                ("TCP", tcp_request(&site.client, to, None, SECOND)),
                ("UDP", udp_request(&site.client, to, None, SECOND)),
            ] {
                let error = reply.expect_err("a refusal");
                assert_eq!(error.kind, ConnectErrorKind::Refused, "{to} over {protocol}: {error:?}");
            }
        }
    }
}

#[test]
fn a_client_learns_of_a_narrow_way_to_the_backend() {
    for backend in ["pod1-2", "pod2-1"] {
        let site = Site::new(&[backend]);
        let _dump = OnFailure::of(&site.scene.world);
        let world = &site.scene.world;
        if backend == "pod1-2" {
            // The node's kernel says so, of the translated packet.
            world.narrow_way_to_pod(backend, NARROW);
        } else {
            // We say so ourselves, of the client's packet.
            for (cidr, via) in world.node(2).pod_cidrs().into_iter().zip(families()) {
                let via = world.node(2).ip_like(via.cluster);
                let node = &world.node(1).ns;
                node.ip(&format!("route replace {cidr} via {via} mtu lock {NARROW}"));
            }
        }
        for family in families() {
            let to = at(family.balancer, PORT);
            let report = probe_path_mtu(&site.client, to, 1400, SECOND);
            assert_eq!(report.path_mtu, NARROW, "{to} at {backend}: {report:?}");
            let error = report
                .errors
                .first()
                .unwrap_or_else(|| panic!("{to} at {backend}: {report:?}"));
            assert!(error.by_icmp, "{error:?}");
            assert_eq!(error.about, Some(to), "what was sent is quoted: {error:?}");
        }
    }
}

#[test]
fn a_backend_learns_that_its_client_has_gone() {
    for backend in ["pod1-2", "pod2-1"] {
        let site = Site::new(&[backend]);
        let _dump = OnFailure::of(&site.scene.world);
        let world = &site.scene.world;
        let pod = world.pod(backend);
        let wire = FrameSocket::open(pod, "eth0");
        for family in families() {
            let to = at(family.balancer, PORT);
            udp_request(&site.client, to, None, SECOND).expect("an answer while the client is there");
            wire.drain();
            let wildcard: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
            let error = eventually(LIMIT, &format!("an error about {to} reaches {backend}"), || {
                // Sent and closed at once, so that the answer finds nobody, unless it was faster.
                site.client.run(|| {
                    let socket = UdpSocket::bind((wildcard, 0)).expect("a socket");
                    socket.send_to(b"and gone", to).expect("a datagram");
                });
                let error = wire.next_matching(SECOND / 4, |captured| {
                    let packet = Decoded::frame(&captured.frame);
                    packet.is_ok_and(|packet| packet.quoted().is_some())
                });
                error.ok_or("none came")
            });
            let error = Decoded::frame(&error.frame).expect("a packet");
            assert!(error.sums_are_good(), "{error:?}");
            assert_eq!(error.ip.destination, pod.ip_like(to.ip()));
            let quoted = error.quoted().expect("a quotation");
            assert_eq!(quoted.ip.source, pod.ip_like(to.ip()), "{backend}: {quoted:?}");
            assert_eq!(quoted.source_port(), Some(SERVER_PORT), "{backend}: {quoted:?}");
            assert!(matches!(quoted.transport, Transport::Udp { .. }), "{quoted:?}");
            // Behind a translated source, the backend knows the node in the client's place.
            let [far, _] = ends(to.ip());
            let known = if backend == "pod1-2" {
                far
            } else {
                world.node(1).ip_like(far)
            };
            assert_eq!(quoted.ip.destination, known, "{backend}: {quoted:?}");
        }
    }
}
