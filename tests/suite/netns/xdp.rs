//! Traffic from outside with XDP on the uplinks: what the other modules demand of tc alone holds with both, XDP does its part,
//! and no packet is translated twice.

use std::time::Duration;

use aya::programs::XdpMode;
use lb_tests::agent::Agent;
use lb_tests::assert::{OnFailure, eventually};
use lb_tests::objects::{Folder, NodeObject, service, slice};
use lb_tests::prog_run::xdp::XDP_PASS;
use lb_tests::tiny_program::TinyXdp;
use lb_tests::traffic::{Server, UdpStream, bulk_transfer, distribution, tcp_request, udp_request};
use lb_tests::world::{ClientPlace, Node, PodRouting, World, WorldBuilder};

use super::scene::{NODE_PORT, PORT, SERVER_PORT, Scene, at, families};
use super::{
    fragments, from_outside, from_the_node, host_network, icmp, icmp_errors, local_policy, outside_backend, path_mtu,
    port_reuse, refusal, resets, restart, session_affinity, tcp_flows, termination, two_uplinks, udp_flows,
};

const SECOND: Duration = Duration::from_secs(2);

/// The usual scene with XDP.
#[track_caller]
fn scene() -> Scene {
    Scene::of(&World::builder().xdp(), &[])
}

/// A counter of the uplink's receive queue, as its driver tells.
#[track_caller]
fn uplink_counter(node: &Node, name: &str) -> u64 {
    let shown = node.ns.ok(&["ethtool", "-S", &node.uplink]);
    let queues = shown.lines().filter_map(|line| line.trim().split_once(": "));
    let counts: Vec<u64> = queues
        .filter(|(key, _)| key.starts_with("rx_queue_") && key.ends_with(&format!("_{name}")))
        .map(|(_, count)| count.parse().expect("a count"))
        .collect();
    assert!(!counts.is_empty(), "no counter {name} in {shown}");
    counts.iter().sum()
}

#[test]
fn every_external_frontend_reaches_every_backend() {
    let scene = scene();
    from_outside::all_frontends_reach_all_backends(&scene);
    let sent = uplink_counter(scene.world.node(1), "xdp_tx");
    // Half of all connections go to the other node, and none of them has less than five packets and their answers.
    assert!(sent > 600, "XDP sent {sent} packets only");
}

#[test]
fn every_external_frontend_reaches_every_backend_over_a_tunnel() {
    let builder = World::builder().xdp().routing(PodRouting::Vxlan);
    from_outside::all_frontends_reach_all_backends(&Scene::of(&builder, &[]));
}

#[test]
fn processes_of_the_node_reach_every_backend_by_every_frontend() {
    from_the_node::every_pod_answers(&scene());
}

#[test]
fn a_local_backend_sees_the_client_and_a_remote_one_the_node() {
    from_outside::backends_see_whom_they_should(scene(), PodRouting::Static);
}

#[test]
fn external_policy_local_serves_from_local_backends_alone_and_drops_without_one() {
    from_outside::external_policy_local_holds(scene());
}

#[test]
fn source_ranges_let_only_their_clients_in() {
    from_outside::source_ranges_hold(scene());
}

#[test]
fn a_vip_answers_pings_from_xdp() {
    let scene = scene();
    let before = uplink_counter(scene.world.node(1), "xdp_tx");
    icmp::vips_answer_pings(&scene);
    // The client's, to the two external VIPs and the ClusterIP of each family.
    let sent = uplink_counter(scene.world.node(1), "xdp_tx") - before;
    assert!(sent >= 6, "XDP answered {sent} pings");
}

#[test]
fn clients_outside_and_the_node_learn_of_a_narrow_link_to_the_backend() {
    path_mtu::clients_learn(scene);
}

#[test]
fn a_backend_learns_of_a_narrow_link_to_a_client_outside() {
    path_mtu::backends_learn(scene);
}

#[test]
fn nothing_is_lost_over_kills_and_endpoint_churn() {
    restart::nothing_is_lost(scene());
}

#[test]
fn a_restart_with_nothing_changed_writes_nothing() {
    restart::nothing_is_written(scene());
}

#[test]
fn streams_pass_whole_both_ways() {
    const BYTES: u64 = 20_000_000;
    for place in [ClientPlace::BehindFabric, ClientPlace::Lan] {
        let mut scene = Scene::of(&World::builder().xdp().client_place(place), &[]);
        let _dump = OnFailure::of(&scene.world);
        for pod in ["pod1-1", "pod2-1"] {
            scene.put_endpoints(&[pod]);
            scene.settle();
            for addresses in families() {
                let to = at(scene.world.node(1).ip_like(addresses.cluster), NODE_PORT);
                let report = bulk_transfer(scene.world.client(), to, BYTES, Duration::from_secs(30));
                let report = report.unwrap_or_else(|error| panic!("{to}, {pod}: {error}"));
                assert_eq!((report.bytes, report.backend.as_str()), (BYTES, pod));
            }
        }
    }
}

/// Runs what other modules demand with XDP, which has sent frames in the end.
#[track_caller]
fn sends_by_xdp(demand: impl FnOnce(&WorldBuilder) -> Scene) {
    let scene = demand(&World::builder().xdp());
    let sent = uplink_counter(scene.world.node(1), "xdp_tx");
    assert!(sent > 0, "XDP has sent nothing");
}

#[test]
fn fragments_are_left_to_tc_and_arrive() {
    let scene = fragments::fragments_arrive(&World::builder().xdp());
    // Three requests of three fragments each by two ways, to two backends, in both families.
    let left = scene.counted("handed_over");
    assert!(left >= 72, "XDP left {left} packets to tc");
}

#[test]
fn a_closed_port_of_the_backend_is_told_as_the_vips() {
    sends_by_xdp(icmp_errors::closed_ports_are_told);
}

#[test]
fn time_exceeded_on_the_way_to_a_backend_is_told_as_on_the_way_to_the_vip() {
    sends_by_xdp(icmp_errors::time_exceeded_is_told);
}

#[test]
fn a_service_without_endpoints_and_an_unknown_port_refuse() {
    sends_by_xdp(refusal::all_are_refused);
}

#[test]
fn connections_outlive_their_endpoint_and_their_port() {
    sends_by_xdp(tcp_flows::outlive_endpoint_and_port);
}

#[test]
fn a_flow_of_udp_stays_while_its_endpoint_serves_and_moves_when_it_stops() {
    sends_by_xdp(udp_flows::flows_follow_what_serves);
}

#[test]
fn affinity_lasts_for_its_time_from_each_new_connection_on_and_no_longer() {
    sends_by_xdp(session_affinity::affinity_lasts);
}

#[test]
fn replies_return_by_the_uplink_of_the_request_or_by_the_other() {
    sends_by_xdp(two_uplinks::replies_return_by_either);
}

#[test]
fn external_policy_local_falls_back_to_local_endpoints_that_terminate() {
    sends_by_xdp(local_policy::external_local_falls_back);
}

#[test]
fn new_flows_go_to_ready_endpoints_else_to_serving_ones_that_terminate() {
    sends_by_xdp(termination::best_endpoints_get_new_flows);
}

#[test]
fn a_connection_that_goes_on_after_a_forged_reset_is_kept() {
    sends_by_xdp(resets::forged_resets_end_nothing);
}

#[test]
fn a_port_that_is_used_again_reaches_the_endpoint_of_now() {
    sends_by_xdp(port_reuse::ports_are_used_again);
}

#[test]
fn backends_in_the_host_network_are_reached() {
    sends_by_xdp(host_network::both_nodes_answer);
}

#[test]
fn backends_outside_the_cluster_are_reached() {
    sends_by_xdp(outside_backend::outside_backends_answer);
}

/// A process of node1 is the backend of one Service on the port that is another Service's NodePort: what XDP has translated
/// for the first must not be translated again for the second. A pod of another node, itself a backend, gets its answers by the
/// same uplink.
#[test]
fn what_xdp_has_translated_is_not_translated_again() {
    let mut scene = scene();
    let _dump = OnFailure::of(&scene.world);
    let [v4, v6] = families();
    let host = scene.world.node(1).ns.clone();
    for addresses in [v4, v6] {
        let own = at(scene.world.node(1).ip_like(addresses.cluster), NODE_PORT);
        scene.servers.push(Server::tcp(&host, "host", (own.ip(), own.port())));
        scene.servers.push(Server::udp(&host, "host", (own.ip(), own.port())));
        let v6 = own.is_ipv6();
        let name = if v6 { "own-v6" } else { "own-v4" };
        let object = slice("default", name, "own")
            .port_of("http", NODE_PORT, "TCP")
            .port_of("dns", NODE_PORT, "UDP");
        let object = if v6 { object.v6() } else { object.v4() };
        scene.folder.put(&object.endpoint(own.ip()).node("node1"));
    }
    let frontends = ["198.51.100.9", "2001:db8:51::9"];
    for (frontend, length) in frontends.iter().zip([32, 128]) {
        scene.world.route_to_node(&format!("{frontend}/{length}"), 1);
    }
    scene.folder.put(
        &service("default", "own")
            .cluster_ip("10.96.0.66")
            .cluster_ip("fd00:10:96::66")
            .external_ip(frontends[0])
            .external_ip(frontends[1])
            .port("http", PORT, "TCP")
            .target_port(NODE_PORT)
            .port("dns", PORT, "UDP")
            .target_port(NODE_PORT),
    );
    scene.settle();
    for frontend in frontends {
        let to = at(frontend.parse().expect("an address"), PORT);
        let client = scene.world.client();
        assert_eq!(distribution(client, to, 20).keys().collect::<Vec<_>>(), ["host"]);
        let reply = udp_request(client, to, None, SECOND).expect("an answer over UDP");
        assert_eq!(
            (reply.backend.as_str(), reply.client_seen.ip()),
            ("host", client.ip_like(to.ip()))
        );
    }
    for addresses in families() {
        // Not by node1's NodePort as a Service, but to the pod itself and to the NodePort from a backend.
        let node_port = at(scene.world.node(1).ip_like(addresses.cluster), NODE_PORT);
        let direct = at(scene.world.pod("pod1-1").ip_like(addresses.cluster), SERVER_PORT);
        for to in [node_port, direct] {
            for _ in 0..20 {
                tcp_request(scene.world.pod("pod2-1"), to, None, SECOND).expect("an answer over TCP");
                udp_request(scene.world.pod("pod2-1"), to, None, SECOND).expect("an answer over UDP");
            }
        }
    }
}

/// The rows of an agent's status on XDP of its uplink: method and, where it is not attached, why.
#[track_caller]
fn told(agent: &Agent) -> Vec<(String, Option<String>)> {
    let status = agent.json(&["status"]);
    let rows = status["attachments"].as_array().expect("attachments").iter();
    rows.filter(|row| row["direction"] == "xdp")
        .map(|row| {
            let text = |field: &str| row[field].as_str().map(str::to_owned);
            (text("method").expect("a method"), text("error"))
        })
        .collect()
}

#[test]
fn status_tells_where_xdp_runs_and_why_not() {
    let scene = scene();
    let _dump = OnFailure::of(&scene.world);
    assert_eq!(told(&scene.agents[0]), [("native".to_owned(), None)]);
    drop(scene);
    let plain = Scene::new();
    let rows = told(&plain.agents[0]);
    let [(method, Some(why))] = &rows[..] else {
        panic!("{rows:?}");
    };
    assert!(method == "off" && why.contains("veth"), "{rows:?}");
}

/// What `check` says of XDP: its verdict and what was found.
#[track_caller]
fn checked(agent: &Agent, arguments: &[&str]) -> (String, String) {
    let checks = agent.json(&[&["check"], arguments].concat());
    let check = checks
        .as_array()
        .expect("checks")
        .iter()
        .find(|check| check["name"] == "XDP");
    let text = |field: &str| {
        check
            .and_then(|check| check[field].as_str())
            .expect("a text")
            .to_owned()
    };
    (text("verdict"), text("detail"))
}

#[test]
fn check_tells_what_the_agent_was_told_by_a_driver_that_refuses() {
    const UPLINKS: [&str; 2] = ["--uplink", "eth*"];
    let world = World::builder().nodes(1).pods_per_node(0).clients(0).build();
    let _dump = OnFailure::of(&world);
    let (node, folder) = (world.node(1), Folder::new());
    folder.put(&NodeObject::from(node));
    node.ns.ip_batch("link add eth9 type bridge\nlink set eth9 up\n");
    let mut agent = Agent::prepare(node, &folder, &UPLINKS);
    let veth = "eth0: tc alone, because it is a veth";
    let says = |agent: &Agent, what: &str| {
        let (verdict, found) = checked(agent, &UPLINKS);
        assert_eq!(verdict, "ok");
        for part in [veth, what] {
            assert!(found.contains(part), "no {part} in {found}");
        }
    };
    // Nobody has asked the driver.
    says(&agent, "eth9: nothing yet, an agent asks for native");
    agent.restart();
    agent.wait_ready();
    says(
        &agent,
        "eth9: tc alone, because its driver has no native XDP, says the agent",
    );
    let (verdict, found) = checked(&agent, &[&UPLINKS[..], &["--xdp", "native"]].concat());
    assert_eq!(verdict, "warn", "{found}");
    agent.set_arguments(&[&UPLINKS[..], &["--xdp", "generic"]].concat());
    agent.terminate();
    agent.restart();
    agent.wait_ready();
    let (verdict, found) = checked(&agent, &[&UPLINKS[..], &["--xdp", "generic"]].concat());
    assert_eq!(
        (verdict.as_str(), found.as_str()),
        ("ok", "eth0: generic, ours; eth9: generic, ours")
    );
}

#[test]
fn an_agent_that_cannot_have_xdp_as_told_serves_by_tc_and_is_not_ready_for_that_reason() {
    let scene = Scene::silent(&World::builder());
    let _dump = OnFailure::of(&scene.world);
    let mut foreign = TinyXdp::returning(XDP_PASS);
    foreign.attach(scene.world.node(1), "eth0", XdpMode::Driver);
    scene.put_service(&super::scene::web());
    scene.put_endpoints(&["pod1-1", "pod2-1"]);
    let mut agent = Agent::start(scene.world.node(1), &scene.folder, &["--xdp", "native"]);
    agent.wait_ready();
    let message = eventually(Duration::from_secs(20), "the reason", || {
        let status = agent.json(&["status"]);
        let causes = status["notReady"].as_array().cloned().unwrap_or_default();
        let found = causes.iter().find(|cause| cause["cause"] == "AttachFailed");
        found
            .and_then(|cause| cause["message"].as_str().map(str::to_owned))
            .ok_or_else(|| status.to_string())
    });
    for part in ["eth0", "--xdp native", "somebody else's", "xdp off"] {
        assert!(message.contains(part), "no {part} in {message}");
    }
    for addresses in families() {
        let to = at(scene.world.node(1).ip_like(addresses.cluster), NODE_PORT);
        assert_eq!(distribution(scene.world.client(), to, 30).len(), 2);
    }
}

/// A frame that XDP sends is no use of the neighbour to the kernel: without help it would stay stale for ever, and be sent to
/// after it has changed its MAC address.
#[test]
fn a_neighbour_that_only_xdp_sends_to_is_confirmed() {
    let mut scene = Scene::silent(&World::builder().xdp());
    let _dump = OnFailure::of(&scene.world);
    for family in ["ipv4", "ipv6"] {
        scene.world.node(1).ns.sysctls(&[
            (&format!("net.{family}.neigh.eth0.base_reachable_time_ms"), "400"),
            (&format!("net.{family}.neigh.eth0.delay_first_probe_time"), "1"),
        ]);
    }
    scene.put_service(&super::scene::web());
    scene.put_endpoints(&["pod2-1"]);
    scene.start(&[]);
    for addresses in families() {
        let to = at(scene.world.node(1).ip_like(addresses.cluster), NODE_PORT);
        let (node, hop) = (scene.world.node(1), scene.world.node(2).ip_like(addresses.cluster));
        let stream = UdpStream::start(scene.world.client(), to, None, 100);
        let before = uplink_counter(node, "xdp_tx");
        let mut seen = Vec::new();
        for _ in 0..60 {
            std::thread::sleep(Duration::from_millis(100));
            let shown = node.ns.ip(&format!("neigh show {hop} dev eth0"));
            seen.extend(shown.split_whitespace().last().map(str::to_owned));
        }
        assert!(uplink_counter(node, "xdp_tx") > before + 300, "the stream passes XDP");
        let report = stream.finish(Duration::from_secs(2));
        assert!(report.is_perfect(), "{report:?}");
        // Stale to the end, if nobody asked.
        let asked = ["DELAY", "PROBE", "REACHABLE"];
        let last = &seen[seen.len() - 20..];
        assert!(
            last.iter().any(|state| asked.contains(&state.as_str())),
            "{hop} was not asked: {seen:?}"
        );
    }
}
