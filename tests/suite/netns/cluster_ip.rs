//! Pods reach a Service by every kind of frontend, and backends see the pods' own addresses.

use std::net::IpAddr;
use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::netns::Netns;
use lb_tests::traffic::{bulk_transfer, distribution, tcp_request, udp_distribution, udp_request, udp_request_of};
use lb_tests::world::{Cni, World, WorldBuilder};

use super::scene::{NODE_PORT, PORT, Scene, at, families};

const SECOND: Duration = Duration::from_secs(2);

/// Requests from one pod to every kind of frontend reach every other pod, over TCP and UDP, in both families.
#[track_caller]
pub(super) fn all_frontends_reach_all_backends(scene: &Scene) {
    let client = scene.world.pod("pod1-1");
    let others = ["pod1-2", "pod2-1", "pod2-2"];
    for addresses in families() {
        for to in scene.frontends(addresses) {
            let tcp = distribution(client, to, 60);
            let udp = udp_distribution(client, to, 60);
            for other in others {
                assert!(tcp.contains_key(other), "{to} TCP never reached {other}: {tcp:?}");
                assert!(udp.contains_key(other), "{to} UDP never reached {other}: {udp:?}");
            }
        }
    }
}

#[test]
fn every_frontend_reaches_every_backend_on_a_routed_network() {
    let scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    all_frontends_reach_all_backends(&scene);
}

#[test]
fn every_frontend_reaches_every_backend_on_a_bridge_network() {
    let scene = Scene::of(&World::builder().cni(Cni::Bridge), &[]);
    let _dump = OnFailure::of(&scene.world);
    all_frontends_reach_all_backends(&scene);
}

#[test]
fn every_frontend_reaches_every_backend_where_netfilter_drops_invalid_packets() {
    let bridge = World::builder().cni(Cni::Bridge).drop_invalid();
    for (builder, lifts) in [
        (World::builder().drop_invalid(), false),
        (bridge.clone(), true),
        (bridge.br_netfilter(), true),
    ] {
        let scene = Scene::of(&builder, &[]);
        let _dump = OnFailure::of(&scene.world);
        all_frontends_reach_all_backends(&scene);
        for node in scene.world.nodes() {
            assert_eq!(node.invalid_drops(), 0, "{} saw half a connection", node.name);
        }
        // Answers between two ports of the bridge pass the layer at which their flow was translated.
        assert_eq!(scene.counted("lifted") > 0, lifts, "{builder:?}");
    }
}

#[test]
fn every_frontend_reaches_every_backend_on_an_overlay() {
    let scene = Scene::of(&World::builder().routing(lb_tests::world::PodRouting::Vxlan), &[]);
    let _dump = OnFailure::of(&scene.world);
    all_frontends_reach_all_backends(&scene);
}

#[test]
fn a_backend_sees_the_address_of_the_pod() {
    let scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&["pod1-2"]);
    let mut scene = scene;
    scene.settle();
    let client = scene.world.pod("pod1-1");
    for addresses in families() {
        let to = at(addresses.cluster, PORT);
        let tcp = tcp_request(client, to, None, SECOND).expect("an answer over TCP");
        let udp = udp_request(client, to, None, SECOND).expect("an answer over UDP");
        for reply in [tcp, udp] {
            assert_eq!(reply.backend, "pod1-2");
            assert_eq!(reply.client_seen.ip(), client.ip_like(addresses.cluster));
        }
    }
}

#[test]
fn another_nodes_node_port_works_from_a_pod() {
    let scene = Scene::new();
    let _dump = OnFailure::of(&scene.world);
    let client = scene.world.pod("pod1-1");
    for addresses in families() {
        let node: IpAddr = scene.world.node(2).ip_like(addresses.cluster);
        let seen = distribution(client, at(node, NODE_PORT), 40);
        assert!(seen.contains_key("pod2-1") && seen.contains_key("pod2-2"), "{seen:?}");
    }
}

#[test]
fn bulk_data_goes_through_unchanged_with_and_without_checksum_offload() {
    bulk_is_unchanged(&World::builder());
}

#[track_caller]
pub(super) fn bulk_is_unchanged(usual: &WorldBuilder) {
    for (builder, offload) in [(usual.clone(), true), (usual.clone().no_tx_checksum(), false)] {
        let mut scene = Scene::of(&builder, &[]);
        let _dump = OnFailure::of(&scene.world);
        if !offload {
            // What the builder leaves alone: where the node's own packets set out.
            for device in ["eth0", "steer0"] {
                scene.world.node(1).ns.tx_checksum(device, false);
            }
        }
        for (backend, bytes) in [("pod2-1", 50_000_000), ("pod1-2", 10_000_000)] {
            scene.put_endpoints(&[backend]);
            scene.settle();
            let world = &scene.world;
            for addresses in families() {
                let cluster = at(addresses.cluster, PORT);
                let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
                let ways: [(&str, &Netns, _, _); 3] = [
                    ("a pod", &world.pod("pod1-1").ns, cluster, bytes),
                    ("the node", &world.node(1).ns, cluster, 10_000_000),
                    ("a client", &world.client().ns, node_port, 10_000_000),
                ];
                for (who, from, to, bytes) in ways {
                    let report = bulk_transfer(from, to, bytes, Duration::from_secs(30));
                    let report = report.unwrap_or_else(|error| panic!("{who} to {to} at {backend}: {error}"));
                    assert_eq!(
                        (report.bytes, report.backend.as_str()),
                        (bytes, backend),
                        "{who} to {to}"
                    );
                    // An odd length, whose last byte the sum has to fill up.
                    let reply = udp_request_of(from, to, 1201, SECOND);
                    let reply = reply.unwrap_or_else(|error| panic!("{who} to {to} at {backend} UDP: {error}"));
                    assert_eq!(reply.backend, backend, "{who} to {to} UDP");
                }
            }
        }
    }
}
