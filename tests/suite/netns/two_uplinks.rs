//! Nodes with two uplinks: requests come in by either, the way to the other node's pods is the second one, and replies take
//! whichever way the kernel's routes say.
//!
//! ```text
//!  client ── fabric ┬ lan0 ── eth0 ┐ node n: default route by eth0,
//!                   └ lan1 ── eth1 ┘         node 1's way to node 2's pods by eth1
//! ```

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use lb_tests::assert::{OnFailure, eventually};
use lb_tests::netns::Netns;
use lb_tests::traffic::{distribution, udp_distribution, udp_request};
use lb_tests::world::{World, WorldBuilder};

use super::scene::{NODE_PORT, PORT, Scene, at, families, web};

/// Arguments of the agents: nothing but its name tells that the second device leads out.
const ARGUMENTS: [&str; 4] = [
    "--uplink",
    "eth*",
    "--nodeport-addresses",
    "172.31.0.0/24,fd00:31::/64,172.32.0.0/24,fd00:32::/64",
];

/// A node's address on the second LAN.
fn second(node: usize, like: IpAddr) -> IpAddr {
    let text = if like.is_ipv4() {
        format!("172.32.0.{}", 10 + node)
    } else {
        format!("fd00:32::{}", 10 + node)
    };
    text.parse().expect("an address")
}

/// Gives every node an `eth1` on a LAN of their own, by which node 1 reaches the pods of node 2.
fn add_uplinks(world: &mut World) {
    let mut fabric = "link add lan1 address 02:32:00:00:00:01 type bridge forward_delay 0 mcast_snooping 0\n\
        addr add 172.32.0.1/24 dev lan1\naddr add fd00:32::1/64 dev lan1 nodad\n"
        .to_owned();
    for node in world.nodes() {
        let (name, netns) = (&node.name, node.ns.name());
        _ = write!(
            fabric,
            "link add q-{name} type veth peer name eth1 address 02:32:00:00:01:{:02x} netns {netns}\n\
             link set q-{name} master lan1 up\n",
            node.number
        );
    }
    world.fabric.ip_batch(&format!("{fabric}link set lan1 up\n"));
    for node in world.nodes() {
        let [v4, v6] = [node.ip4.into(), node.ip6.into()].map(|like| second(node.number, like));
        node.ns.ip_batch(&format!(
            "link set eth1 up\naddr add {v4}/24 dev eth1\naddr add {v6}/64 dev eth1 nodad\n"
        ));
        node.ns.await_links(&["eth1"]);
    }
    if world.has_xdp() {
        for number in 1..=world.nodes().len() {
            world.carry_xdp(&format!("q-node{number}"));
        }
    }
    let [pods4, pods6] = world.node(2).pod_cidrs();
    let [via4, via6] = families().map(|family| second(2, family.cluster));
    world.node(1).ns.ip_batch(&format!(
        "route replace {pods4} via {via4}\nroute replace {pods6} via {via6}\n"
    ));
}

#[track_caller]
fn scene(builder: &WorldBuilder) -> Scene {
    let mut scene = Scene::silent(builder);
    add_uplinks(&mut scene.world);
    scene.put_service(&web());
    scene.put_endpoints(&["pod1-1", "pod1-2", "pod2-1", "pod2-2"]);
    scene.start(&ARGUMENTS);
    scene
}

/// Every backend answers over TCP and UDP.
#[track_caller]
fn all_answer(who: &str, from: &Netns, to: IpAddr, port: u16) {
    let to = at(to, port);
    for (protocol, reached) in [
        ("TCP", distribution(from, to, 60)),
        ("UDP", udp_distribution(from, to, 60)),
    ] {
        for pod in ["pod1-1", "pod1-2", "pod2-1", "pod2-2"] {
            assert!(
                reached.contains_key(pod),
                "{who} to {to} over {protocol} never reached {pod}: {reached:?}"
            );
        }
    }
}

/// Requests to every address of node 1 by either uplink, from outside, from the node and from a pod.
#[track_caller]
fn every_way_leads_to_every_backend(scene: &Scene, replies: &str) {
    let world = &scene.world;
    let (client, node, pod) = (&world.client().ns, &world.node(1).ns, &world.pod("pod1-1").ns);
    for family in families() {
        let like = family.cluster;
        let (first, second) = (world.node(1).ip_like(like), second(1, like));
        for (uplink, address) in [("eth0", first), ("eth1", second)] {
            let who = format!("{replies}: the client by {uplink}");
            all_answer(&who, client, address, NODE_PORT);
            let length = if like.is_ipv4() { 32 } else { 128 };
            world
                .fabric
                .ip(&format!("route replace {}/{length} via {address}", family.balancer));
            all_answer(&who, client, family.balancer, PORT);
            all_answer(&format!("{replies}: the node"), node, address, NODE_PORT);
            all_answer(&format!("{replies}: a pod"), pod, address, NODE_PORT);
        }
        all_answer(&format!("{replies}: the node"), node, like, PORT);
        all_answer(&format!("{replies}: a pod"), pod, like, PORT);
    }
}

/// Makes node 2 send replies to node 1's second address by the first LAN.
fn turn_replies(world: &World) {
    for family in families() {
        let (to, via) = (second(1, family.cluster), world.node(1).ip_like(family.cluster));
        let length = if to.is_ipv4() { 32 } else { 128 };
        world.node(2).ns.ip(&format!("route add {to}/{length} via {via}"));
    }
}

#[test]
fn replies_return_by_the_uplink_of_the_request_or_by_the_other() {
    replies_return_by_either(&World::builder());
}

#[track_caller]
pub(super) fn replies_return_by_either(builder: &WorldBuilder) -> Scene {
    let scene = scene(builder);
    let _dump = OnFailure::of(&scene.world);
    every_way_leads_to_every_backend(&scene, "by the same uplink");
    turn_replies(&scene.world);
    every_way_leads_to_every_backend(&scene, "by the other uplink");
    scene
}

#[test]
fn a_loose_reverse_path_filter_and_a_firewall_that_drops_invalid_packets_change_nothing() {
    let scene = scene(&World::builder().rp_filter(2).drop_invalid());
    let _dump = OnFailure::of(&scene.world);
    turn_replies(&scene.world);
    every_way_leads_to_every_backend(&scene, "by the other uplink");
    assert_eq!(scene.world.node(1).invalid_drops(), 0);
}

#[test]
fn a_rule_about_the_source_of_translated_packets_decides_on_a_flows_first_packet() {
    let mut scene = scene(&World::builder().xdp());
    let _dump = OnFailure::of(&scene.world);
    scene.put_endpoints(&["pod2-1"]);
    scene.settle();
    let (client, node) = (&scene.world.client().ns, scene.world.node(1));
    for family in families() {
        // The preferred source of the way to node 2's pods, whose packets a rule sends nowhere; a packet whose source is open has a way.
        let source = second(1, family.cluster);
        let version = if source.is_ipv4() { "-4" } else { "-6" };
        let ways = [node.ip_like(source), source].map(|address| at(address, NODE_PORT));
        let ask = |to| udp_request(client, to, None, Duration::from_millis(200));
        // The neighbour is known from here on: without it, the kernel looks for the way once more as the packet leaves.
        for to in ways {
            eventually(Duration::from_secs(5), &format!("{to} before the rule"), || ask(to));
        }
        node.ns.ip(&format!("{version} route add blackhole default table 77"));
        node.ns.ip(&format!("{version} rule add from {source} table 77"));
        for to in ways {
            eventually(Duration::from_secs(5), &format!("{to} in spite of the rule"), || {
                ask(to).map_or_else(|_| Ok(()), |reply| Err(format!("a reply: {reply:?}")))
            });
            // What was found of the way is kept for those that come next.
            for _ in 0..3 {
                let reply = ask(to);
                assert!(reply.is_err(), "{to} in spite of the rule: {reply:?}");
            }
        }
        node.ns.ip(&format!("{version} rule del from {source} table 77"));
        for to in ways {
            eventually(Duration::from_secs(5), &format!("{to} without the rule"), || ask(to));
        }
    }
}
