//! Host routing by BPF: what the other modules demand of pods holds when their packets go past the host's stack, and they do go past it.

use std::time::Duration;

use lb_tests::assert::OnFailure;
use lb_tests::netfilter::{remove_rules, rule_hits, set_rules};
use lb_tests::traffic::{Server, bulk_transfer, udp_request_of};
use lb_tests::world::{Cni, World, WorldBuilder};

use super::outcome::{DROPPED, by, check};
use super::scene::{NODE_PORT, PORT, SERVER_PORT, Scene, at, families};
use super::{
    cluster_ip, fragments, hairpin, icmp_errors, one_client_port, port_reuse, resets, restart, session_affinity,
    tcp_flows, udp_flows, udp_segments,
};

const TABLE: &str = "inet all_forwarded";
/// MTU of a way to a pod: the smallest of IPv6.
const NARROW: u32 = 1280;
const SECOND: Duration = Duration::from_secs(2);

fn world() -> WorldBuilder {
    World::builder().agents(&["--host-routing", "bpf"])
}

/// Drops all that node 1 forwards, and counts it.
#[track_caller]
fn forward_nothing(scene: &Scene) {
    let node = scene.world.node(1);
    set_rules(
        node,
        TABLE,
        "filter hook forward priority filter",
        "counter name hits drop",
    );
}

#[test]
fn packets_between_pods_of_a_node_pass_by_the_rules_for_what_is_forwarded_and_no_others_do() {
    let mut scene = Scene::of(&world(), &[]);
    let _dump = OnFailure::of(&scene.world);
    for (backend, passes_by) in [("pod1-2", true), ("pod2-1", false)] {
        scene.put_endpoints(&[backend]);
        scene.settle();
        let world = &scene.world;
        let pod = world.pod("pod1-1");
        let served = by(&[backend]);
        for addresses in families() {
            let node_port = at(world.node(1).ip_like(addresses.cluster), NODE_PORT);
            let frontends = [at(addresses.cluster, PORT), at(addresses.balancer, PORT), node_port];
            // Where no neighbour was ever asked for, the kernel sends the first packets.
            for to in frontends {
                check("a pod", pod, to, &served);
            }
            forward_nothing(&scene);
            for to in frontends {
                check("a pod", pod, to, if passes_by { &served } else { &DROPPED });
                let met = rule_hits(world.node(1), TABLE);
                assert_eq!(met == 0, passes_by, "{met} packets to {to} at {backend} met the rule");
            }
            let direct = at(world.pod("pod1-2").ip_like(addresses.cluster), SERVER_PORT);
            check("a pod past every Service", pod, direct, &DROPPED);
            remove_rules(world.node(1), TABLE);
        }
    }
}

#[test]
fn behind_a_bridge_and_without_the_setting_the_rules_see_everything() {
    for builder in [world().cni(Cni::Bridge).br_netfilter(), World::builder()] {
        let mut scene = Scene::of(&builder, &[]);
        let _dump = OnFailure::of(&scene.world);
        scene.put_endpoints(&["pod1-2"]);
        scene.settle();
        forward_nothing(&scene);
        for addresses in families() {
            let to = at(addresses.cluster, PORT);
            check("a pod", scene.world.pod("pod1-1"), to, &DROPPED);
        }
    }
}

#[test]
fn every_frontend_reaches_every_backend() {
    let scene = Scene::of(&world().drop_invalid(), &[]);
    let _dump = OnFailure::of(&scene.world);
    cluster_ip::all_frontends_reach_all_backends(&scene);
    for node in scene.world.nodes() {
        assert_eq!(node.invalid_drops(), 0, "{} saw half a connection", node.name);
    }
}

#[test]
fn bulk_data_goes_through_unchanged_with_and_without_checksum_offload() {
    cluster_ip::bulk_is_unchanged(&world());
}

#[test]
fn a_pod_reaches_itself() {
    hairpin::reaches_itself(&world());
}

#[test]
fn fragments_arrive() {
    fragments::fragments_arrive(&world());
}

#[test]
fn segments_arrive() {
    udp_segments::segments_arrive(&world());
}

#[test]
fn a_closed_port_of_the_backend_is_told_as_the_vips() {
    icmp_errors::closed_ports_are_told(&world());
}

#[test]
fn connections_outlive_their_endpoint_and_their_port() {
    tcp_flows::outlive_endpoint_and_port(&world());
}

#[test]
fn a_flow_of_udp_stays_while_its_endpoint_serves_and_moves_when_it_stops() {
    udp_flows::flows_follow_what_serves(&world());
}

#[test]
fn affinity_lasts_for_its_time() {
    session_affinity::affinity_lasts(&world());
}

#[test]
fn one_client_port_reaches_one_backend_straight_and_through_many_services_at_once() {
    one_client_port::one_client_port(&world());
}

#[test]
fn a_port_that_is_used_again_reaches_the_endpoint_of_now() {
    port_reuse::ports_are_used_again(&world());
}

#[test]
fn a_connection_that_goes_on_after_a_forged_reset_is_kept() {
    resets::forged_resets_end_nothing(&world());
}

#[test]
fn nothing_is_lost_over_kills_and_endpoint_churn() {
    restart::nothing_is_lost(Scene::of(&world(), &[]));
}

#[test]
fn a_narrow_way_to_a_pod_is_told_or_datagrams_are_cut_for_it() {
    let mut scene = Scene::of(&world(), &[]);
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&["pod1-2"]);
    scene.settle();
    for pod in ["pod1-1", "pod1-2"] {
        scene.world.narrow_way_to_pod(pod, NARROW);
    }
    let world = &scene.world;
    let client = &world.pod("pod1-1").ns;
    for addresses in families() {
        let to = at(addresses.cluster, PORT);
        let report = bulk_transfer(client, to, 3_000_000, Duration::from_secs(20));
        let report = report.unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!((report.bytes, report.path_mtu), (3_000_000, NARROW), "{to}");
    }
    // Sockets that are made from here on leave DF out of their datagrams, and know of no narrow way.
    for pod in world.pods() {
        pod.ns.sysctl("net.ipv4.ip_no_pmtu_disc", "1");
        pod.ns.ip("route flush cache");
    }
    drop(std::mem::take(&mut scene.servers));
    let backend = scene.world.pod("pod1-2");
    let _server = Server::udp(backend, &backend.name, (backend.ip4, SERVER_PORT));
    let [addresses, _] = families();
    for _ in 0..3 {
        let reply = udp_request_of(client, at(addresses.cluster, PORT), 1400, SECOND);
        assert_eq!(reply.expect("a datagram in pieces").backend, "pod1-2");
    }
}
